"""Where, and how far, a pre-trained model can be trusted: learned from synthetic stars that no training saw.

Such a model reads two surveys, the one that was streamed to it and the one beside (`pretraining`). Its stage.json tells
how they were observed. The same is done here to stars of other seeds: `fit_trust` learns from them how far the answers
are off (`calibration.recalibration`) and which spectra are usual (`applicability`), and lays both beside the weights;
`judge_trust` counts on yet other stars what the intervals hold.

The streamed stars are those of APOGEE DR17, but every third one is metal-poor: DR17 has one in forty, too few to learn
anything from, or to say anything about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .applicability import Applicability, place
from .builders.parquet_layout import whole_file, write_json
from .builders.synthetic import BLOCK, SyntheticConfig
from .calibration import FEWEST_FOR_REGRESSION, recalibration
from .collation import Row
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .hub import EXTRACTOR, load_pretrained
from .labels import MISSING_LABEL
from .metrics import TRUE_LABEL_ERROR, reliability, summarise_calibration
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .plots import plot_reliability
from .prediction import Answers, Predicted, ask
from .pretraining import STREAMED, Contexts, MixedRows
from .synthesis.observing import ObservingConditions
from .synthesis.surveys import SURVEYS, SurveyConditions

FIT_SEED, JUDGE_SEED = 7_000_003, 7_000_103
"""Of stars that calibrate, and of those that judge: no training's and no benchmark's."""

RECORD = "stage.json"

METAL_POOR_SHARE, EXTRA_SCATTER = 0.3, 0.03
"""See `synthesis.dr17_sampler.Dr17LabelSampler`; abundances scatter as in the training of the model that ships."""

N_FOR_LIMITS = 2000
"""Spectra of each survey that applicability is fitted on; each costs 20 ms."""

WHOLE = Contexts(whole=1.0, window=0.0)

BATCH_SIZE = 64


@dataclass(frozen=True)
class Unseen:
    """Spectra of stars that no training saw, and what the model says of them.

    Attributes:
        answers: The model's.
        labels: True ones, shape (n_spectra, n_labels), K and dex; NaN = the survey's stars have none.
        survey: Names, shape (n_spectra,).
        rows: Of the first spectra, prepared.
    """

    answers: Answers
    labels: np.ndarray
    survey: np.ndarray
    rows: list[Row]


def read_recipe_of(folder: str | Path) -> dict[str, Any]:
    """What the recipe of a finished stage said.

    Raises:
        ValueError: It did not mix two surveys, so that its stars cannot be made anew.
    """
    path = Path(folder) / RECORD
    recipe = json.loads(path.read_text())["recipe"] if path.is_file() else {}
    if recipe.get("beside") is None:
        raise ValueError(
            f"{folder} needs a stage.json of a stage that mixed two surveys (`beside:` in its recipe), so that its "
            "stars can be made anew; a model fine-tuned on real stars is calibrated in its own stage."
        )
    return dict(recipe)


def learned_ranges(recipe: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Where a stage that mixed two surveys learned each of its labels, for an extractor's `learned_ranges`.

    Args:
        recipe: Of `read_recipe_of`.

    Returns:
        Label -> [lowest, highest] of each survey whose stars have it, vacuum Angstrom. Gaps between the detectors of
        one survey do not count.
    """
    surveys = [SURVEYS[name] for name in (STREAMED, recipe["beside"])]
    ends = {survey.name: survey.wavelength[[0, -1]].tolist() for survey in surveys}
    return {
        name: [ends[survey.name] for survey in surveys if name in survey.label_names]
        for name in recipe["labels"]
        if any(name in survey.label_names for survey in surveys)
    }


def unseen_rows(
    extractor: SpectraFMFeatureExtractor,
    recipe: Mapping[str, Any],
    n_per_survey: int,
    seed: int,
    contexts: Contexts,
) -> Iterator[list[Row]]:
    """Stars of both surveys as the recipe's training shows them, up to 2 x 256 at a time, with their labels.

    Args:
        recipe: Of `read_recipe_of`.
        n_per_survey: Stars of each; one that shows no good pixel is left out.
        seed: Decides everything, with the star's number.
        contexts: How much of them is shown.
    """
    mixed = MixedRows(
        extractor,
        seed,
        contexts,
        SurveyConditions(**recipe["conditions"]),
        recipe["beside"],
        SurveyConditions(**recipe["beside_conditions"]),
        ObservingConditions(**recipe["observing"]),
        survey=STREAMED,
    )
    stars = SyntheticConfig(n=n_per_survey, seed=seed, metal_poor_share=METAL_POOR_SHARE, extra_scatter=EXTRA_SCATTER)
    for first in range(0, n_per_survey, BLOCK):
        columns = stars.read(first // BLOCK).columns
        assert columns is not None, "the default backend gives every star a spectrum"
        yield mixed(columns, range(first, first + len(columns["object_id"])))


def read_unseen(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    recipe: Mapping[str, Any],
    n_per_survey: int,
    seed: int,
    contexts: Contexts = WHOLE,
    n_rows: int = 0,
) -> Unseen:
    """Make such stars (`unseen_rows`) and ask the model, in float32; keep about `n_rows` spectra."""
    surveys = np.array([STREAMED, recipe["beside"]])
    ranges = [tuple(SURVEYS[name].wavelength[[0, -1]]) for name in surveys]
    answers: list[Answers] = []
    scaled: list[np.ndarray] = []
    survey: list[np.ndarray] = []
    kept: list[Row] = []
    with tqdm(total=2 * n_per_survey, unit="spectra", desc="unseen stars") as bar:
        for rows in unseen_rows(extractor, recipe, n_per_survey, seed, contexts):
            answers.append(ask(model, extractor, rows, BATCH_SIZE))
            scaled.append(np.stack([row["labels"] for row in rows]))
            survey.append(surveys[place(rows, ranges)[0]])
            if len(kept) < n_rows:
                kept += rows
            bar.update(len(rows))
    known = np.concatenate(scaled).astype(float)
    labels = np.where(known == MISSING_LABEL, np.nan, known * extractor.label_scale + extractor.label_center)
    return Unseen(Answers(*map(np.concatenate, zip(*answers, strict=True))), labels, np.concatenate(survey), kept)


def fit_trust(folder: str | Path, n_per_survey: int = 10_000, seed: int = FIT_SEED) -> None:
    """Learn how far a model's answers are off, and which spectra are usual, and save both in its folder.

    `recalibration` goes into its preprocessor_config.json, and so does where each label was learned; the limits go into
    applicability.safetensors, and a sentence for the card into stage.json. Each file is written whole or not at all.
    Done twice it is the same as done once.

    Args:
        folder: Of a finished stage that mixed two surveys, with its stage.json.
        n_per_survey: Whole stars of each survey, `calibration.FEWEST_FOR_REGRESSION` or more; half as many others are
            shown in parts, as in training. Limits are those of whole ones.
        seed: Of the stars; not that of `judge_trust`.

    Raises:
        ValueError: Too few stars; see also `read_recipe_of` and `hub.load_pretrained`.
    """
    if n_per_survey < FEWEST_FOR_REGRESSION:
        raise ValueError(
            f"n_per_survey must be {FEWEST_FOR_REGRESSION} or more, got {n_per_survey}: fewer stars do not tell how "
            "errors depend on anything."
        )
    folder, recipe = Path(folder), read_recipe_of(folder)
    model, extractor = load_pretrained(folder)
    whole = read_unseen(model, extractor, recipe, n_per_survey, seed, n_rows=2 * N_FOR_LIMITS)
    parts = read_unseen(model, extractor, recipe, n_per_survey // 2, seed + 1, Contexts(**recipe["contexts"]))
    labels = np.concatenate([whole.labels, parts.labels])
    answers = Answers(*map(np.concatenate, zip(whole.answers, parts.answers, strict=True)))
    factors, extractor.sigma_factors, extractor.recalibration = extractor.sigma_factors, {}, None
    own = Predicted.of(extractor, *answers)
    extractor.sigma_factors = factors  # a fine-tuned child, which cannot keep the recalibration, starts from them
    extractor.recalibration = recalibration(extractor.label_names, own.mean, own.sigma, labels, None, answers.noise)
    extractor.learned_also(learned_ranges(recipe))
    Applicability.fit(extractor, whole.rows, whole.answers.chosen(np.arange(len(whole.rows)))).save(folder)
    with whole_file(folder / EXTRACTOR) as partial:
        extractor.to_json_file(partial)
    record = json.loads((folder / RECORD).read_text())
    record["calibration"] = (
        f"Intervals of all labels were calibrated on {n_per_survey:,} whole synthetic stars of each survey that no "
        "training saw, and on half as many shown in parts: conformalised quantile regression for the central 68.27 % "
        "and 95 %."
    )
    write_json(folder / RECORD, record)


def judge_trust(
    folder: str | Path, n_per_survey: int = 5000, seed: int = JUDGE_SEED, figures: Path | None = None
) -> dict[str, Any]:
    """How often the intervals of a model hold the true labels of whole stars that neither trained nor calibrated it.

    Args:
        folder: See `fit_trust`; a model that was not calibrated is judged as it is.
        n_per_survey: Stars of each survey.
        seed: Of the stars; not that of `fit_trust`.
        figures: Where reliability_SURVEY.png goes; None = nowhere.

    Returns:
        `metrics.summarise_calibration` of all of them (`coverage68`, `coverage95`, `worst_bin68`, `worst_bin`,
        `labels` with CRPS and widths), and `per_survey`: name -> the same of its own. Bins of signal-to-noise go by
        the noise that the pixels show.

    Raises:
        ValueError: See `read_recipe_of` and `hub.load_pretrained`.
    """
    recipe = read_recipe_of(folder)
    model, extractor = load_pretrained(folder)
    unseen = read_unseen(model, extractor, recipe, n_per_survey, seed)
    told = Predicted.of(extractor, *unseen.answers)

    def judged(chosen: np.ndarray) -> dict[str, Any]:
        truth = unseen.labels[chosen]
        return summarise_calibration(
            extractor.label_names,
            told.mean[chosen],
            truth,
            told.sigma[chosen],
            told.sigma95[chosen],
            np.full(truth.shape, TRUE_LABEL_ERROR),
            1 / unseen.answers.noise[chosen],
        )

    surveys = STREAMED, recipe["beside"]
    if figures is not None:
        for name in surveys:
            draw_reliability(extractor.label_names, told, unseen, name, figures / f"reliability_{name}.png")
    by_survey = {name: judged(unseen.survey == name) for name in surveys}
    return judged(np.ones(len(unseen.survey), dtype=bool)) | {"per_survey": by_survey}


def draw_reliability(label_names: list[str], told: Predicted, unseen: Unseen, survey: str, path: Path) -> None:
    """Nominal probability of an interval against the share of the survey's stars in it, a panel per label."""
    probability = np.linspace(0.02, 0.98, 49)
    shares, n_stars = {}, {}
    for column, name in enumerate(label_names):
        chosen = (unseen.survey == survey) & np.isfinite(unseen.labels[:, column])
        if chosen.any():
            residual = (told.mean - unseen.labels)[chosen, column]
            sigmas = told.sigma[chosen, column], told.sigma95[chosen, column]
            shares[name], n_stars[name] = reliability(residual, *sigmas, probability), int(chosen.sum())
    plot_reliability(probability, shares, n_stars, path)
