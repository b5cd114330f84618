"""What a stage learns from, and the spectra it is judged by: synthetic ones, stars of a library, a streamed dataset.

Every training row is a function of (seed, row number), or of a pinned revision of a dataset and the seed, so that a
killed stage goes on with the rows it would have seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from .builders.grids import read_wavelength_grid
from .builders.libraries import load_library
from .calibration import sigma_factors
from .collation import Interleaved, ObservedSpectra, Row, SyntheticSpectra, row_generator
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .few_shot import draw_stars
from .hub import attempt, check_dataset, explained
from .labels import get_label
from .loading import RowEncoder, numbers, stream_encoded, stream_rows
from .metrics import TRUE_LABEL_ERROR, summarise_labels
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .prediction import Observed, Predicted, ask, rows_on_grid
from .pretraining import STREAMED, Contexts, MixedRows
from .recipe import StageArguments
from .spectra import Spectrum
from .synthesis.label_tie import LabelTie
from .synthesis.observing import ObservingConditions
from .synthesis.sampler import LabelSampler
from .synthesis.surveys import SURVEYS, Survey, SurveyConditions

logger = logging.getLogger(__name__)

SIGMA_TO_FWHM = 2.354820
"""Of a Gaussian."""

HELD_OUT_SEED = 1_000_003
"""Of synthetic stars for that: no recipe's seed."""


def synthesis(stage: StageArguments) -> dict[str, Any]:
    """How the recipe wants its synthetic stars drawn and observed: arguments of `SyntheticSpectra`."""
    return {
        "fwhm": stage.fwhm,
        "sampler": LabelSampler(**stage.sampler),
        "conditions": ObservingConditions(**stage.observing),
        "label_error": stage.synthetic_label_error,
    }


def choose_stars(stage: StageArguments, seed: int) -> list[Spectrum]:
    """The stage's training stars: all of the training split, or the few drawn by the seed."""
    stars = load_library(stage.data, split="train").spectra
    if stage.n_stars is not None:
        return draw_stars(stars, stage.n_stars, lowest_fe_h(stage), seed)
    return [star for star in stars if star.labels["fe_h"] > lowest_fe_h(stage)]


def lowest_fe_h(stage: StageArguments) -> float:
    """The recipe's limit on [Fe/H], dex; minus infinity if it sets none."""
    return -np.inf if stage.fe_h_above is None else stage.fe_h_above


def only_learned(stage: StageArguments, names: list[str], labels: np.ndarray) -> np.ndarray:
    """Labels that the stage does not learn become missing."""
    return np.where(np.isin(names, stage.labels), labels, np.nan)


def observed_rows(
    stage: StageArguments,
    extractor: SpectraFMFeatureExtractor,
    stars: Observed,
    learned: np.ndarray,
    tie: LabelTie | None,
    seed: int,
) -> Dataset:
    """Real spectra with the labels learned from them, shape (n_stars, n_labels), and replayed synthetic ones."""
    real = ObservedSpectra(
        extractor, stars.flux, stars.good, learned, stars.label_errors, stage.n_spectra, seed,
        noise=stage.observed_noise, missing_tokens=stage.hidden_tokens,
    )  # fmt: skip
    if not stage.replay:
        return real
    # In the few-shot stage the replay shows what the stage sees; before, it keeps the whole range alive.
    window = stage.window if stage.n_stars else None
    replayed = SyntheticSpectra(
        extractor, stage.n_spectra, seed + 1, context=stage.context, window=window, relabel=tie, learned=stage.labels,
        **synthesis(stage),
    )  # fmt: skip
    return Interleaved(real, replayed, stage.n_spectra, n_first=round(4 * (1 - stage.replay)), period=4)


# ---------------------------------------------------------------- a dataset, streamed


@dataclass(frozen=True)
class Streamed:
    """The recipe's dataset, opened once for all that a stage takes from it.

    Attributes:
        name: For people: its id, or the last name of its folder.
        splits: Name -> stream.
        wavelength: Pixels that all its spectra share, vacuum Angstrom, shape (n_pixels,); None = rows bring their own.
    """

    name: str
    splits: Mapping[str, datasets.IterableDataset]
    wavelength: np.ndarray | None

    def first(self, split: str, n: int, columns: list[str] | None = None) -> dict[str, Any]:
        """Columns of the first `n` rows of a split; None = all columns.

        Raises:
            ValueError: The split is empty.
        """
        stream = self.splits[split].take(n)
        if columns is not None:
            stream = stream.select_columns([name for name in columns if name in stream.column_names])
        elif "wavelength" not in stream.column_names:
            stream = stream.with_format("numpy")  # fast, but it would make float32 of wavelengths
        with explained(f"streaming {self.name}"):
            taken = list(stream.iter(256))
        if not taken:
            raise ValueError(f"the split {split} of {self.name} is empty.")
        return {name: [value for batch in taken for value in batch[name]] for name in taken[0]}


def open_dataset(stage: StageArguments) -> Streamed | None:
    """The recipe's dataset at its revision; None if it names none.

    Raises:
        ValueError: No such config, a split that a stage needs is missing, or its card points at files outside of it
            (`hub.check_data_files`).
        HubError: It cannot be had.
    """
    if stage.dataset is None:
        return None
    name, revision = stage.dataset, stage.dataset_revision
    with explained(f"streaming {name}"):
        check_dataset(name, revision)
        # Once rows stream, `datasets` itself tries a broken connection again; on the way there it does not.
        splits = attempt(lambda: datasets.load_dataset(name, stage.dataset_config, streaming=True, revision=revision))
        wavelength = attempt(lambda: read_wavelength_grid(name, revision))
    for split in ("train", "validation"):
        if split not in splits:
            raise ValueError(
                f"{name} has no split {split!r}, only {', '.join(splits)}; a stage learns from train and is judged by "
                "validation. Build the dataset with a split by the star's name (--split name)."
            )
    return Streamed(str(told_as(name, revision)), splits, wavelength)


def streamed_rows(
    stage: StageArguments, dataset: Streamed, extractor: SpectraFMFeatureExtractor, seed: int, n_processes: int = 1
) -> datasets.IterableDataset:
    """Training rows of the recipe's dataset, endless and shuffled: the mode in which resuming is exact.

    Args:
        n_processes: That share its shards.

    Raises:
        ValueError: Fewer shards than processes.
    """
    stream = dataset.splits["train"]
    if stream.num_shards < n_processes:
        raise ValueError(
            f"{dataset.name} has {stream.num_shards} training files, fewer than the {n_processes} processes, each of "
            "which reads its own; build it with more shards (--shards), or use fewer processes."
        )
    if stream.num_shards % n_processes:
        logger.warning(
            "%d files over %d processes: stars of the processes with fewer files are seen more often",
            stream.num_shards, n_processes,
        )  # fmt: skip
    if stage.beside is not None:
        mixed = MixedRows(
            extractor,
            seed,
            Contexts(**stage.contexts),
            SurveyConditions(**stage.conditions),
            stage.beside,
            SurveyConditions(**stage.beside_conditions),
            ObservingConditions(**stage.observing),
            label_error=stage.synthetic_label_error,
        )
        return stream_encoded(stream, mixed, dataset.wavelength is not None, seed, stage.shuffle_buffer, batch_size=128)
    return stream_rows(
        stream,
        extractor,
        dataset.wavelength,
        seed=seed,
        buffer_size=stage.shuffle_buffer,
        window=stage.window,
        context=stage.context,
        label_error=stage.synthetic_label_error if stage.true_labels else None,
        learned=stage.labels,
    )


def fit_to_dataset(extractor: SpectraFMFeatureExtractor, dataset: Streamed, n: int = 2000) -> None:
    """Mean and spread of each pixel from the first `n` training spectra, in place.

    Raises:
        ValueError: Neither model nor dataset has a grid that all spectra share.
    """
    wavelength = dataset.wavelength
    if not extractor.has_grid and wavelength is None:
        raise ValueError(
            f"spectra of {dataset.name} bring their own pixels each, and so does this extractor: there is nothing to "
            "average over. Give `pixel_width` (Angstrom) under `extractor:`, or start from a parent."
        )
    columns = dataset.first("train", n)
    placed = [
        extractor.place(flux, columns["wavelength"][row] if wavelength is None else wavelength, bad_pixel)
        for row, (flux, bad_pixel) in enumerate(zip(columns["flux"], columns["bad_pixel"], strict=True))
    ]
    flux, good = np.stack([one.flux for one in placed]), np.stack([one.good for one in placed])
    if not extractor.has_grid:
        extractor.fit_flux_norms(flux, good, placed[0].wavelength)
    elif extractor.pixel_segments is None:
        extractor.fit_flux_norms(flux, good)
    else:
        seen = good.any(axis=0)
        extractor.fit_flux_norms(flux[:, seen], good[:, seen], extractor.wavelength_grid[seen])


def fit_to_survey(extractor: SpectraFMFeatureExtractor, survey: Survey, seed: int, n: int = 2000) -> None:
    """Mean and spread of the survey's pixels from `n` synthetic spectra without noise, in place."""
    generators = [row_generator(seed, number) for number in range(n)]
    flux = np.clip(survey.synthesizer(np.stack([survey.draw(rng) for rng in generators])), 0.0, 1.1)
    extractor.fit_flux_norms(flux, np.ones(flux.shape, dtype=bool), survey.wavelength)


# ---------------------------------------------------------------- what a stage is judged by


@dataclass(frozen=True)
class HeldOut:
    """Spectra that no training row comes from.

    Attributes:
        what: What they are, for people.
        star_ids: Names, one per spectrum; two visits of a star have one.
        rows: As `prediction.ask` takes them.
        labels: Shape (n_spectra, n_labels), K and dex, NaN = missing.
        errors: Published 1-sigma, same shape and units, NaN = not published; None = the labels are true.
    """

    what: str
    star_ids: list[str]
    rows: list[Row]
    labels: np.ndarray
    errors: np.ndarray | None

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the spectra of two halves that share no star, by the star's name."""
        first = np.array([hashlib.sha256(star.encode()).digest()[0] % 2 == 0 for star in self.star_ids])
        return np.flatnonzero(first), np.flatnonzero(~first)


def held_out(stage: StageArguments, dataset: Streamed | None, extractor: SpectraFMFeatureExtractor) -> HeldOut:
    """The spectra by which a stage is judged: synthetic ones of another seed, or the validation split of its stars.

    They have the window of the stage, and of the model's labels those that are known.

    Raises:
        ValueError: There are none.
    """
    low, high = stage.window
    if dataset is not None and dataset.wavelength is not None:
        low, high = max(low, dataset.wavelength[0]), min(high, dataset.wavelength[-1])
    where = f"{low:.0f}-{high:.0f} vacuum Angstrom"
    if stage.data == "synthetic":
        # Of the stage's own window and noise, but whole: a draw of contexts would judge the draw.
        made = SyntheticSpectra(
            extractor, stage.n_held_out, seed=HELD_OUT_SEED, window=stage.window, **synthesis(stage)
        )
        labels, flux, good = made.on_grid(range(len(made)))
        return HeldOut(
            f"{len(flux)} synthetic stars it has not seen, observed as in training, {where}",
            [str(number) for number in range(len(flux))],
            rows_on_grid(extractor, flux, good),
            made.known(labels),
            None,
        )
    if dataset is None:
        stars = Observed.from_spectra(load_library("miles", split="validation").spectra, extractor, stage.window)
        what = f"{len(stars.flux)} stars of the validation split of MILES, {where}"
        rows = rows_on_grid(extractor, stars.flux, stars.good)
        return HeldOut(what, stars.star_ids, rows, stars.labels, stars.label_errors)
    told = dataset.first("validation", stage.n_held_out)
    made_rows = RowEncoder(extractor, dataset.wavelength, window=stage.window, learned=stage.labels)(
        told, range(len(told["object_id"]))
    )
    seen = [row is not None for row in made_rows]

    def table(suffix: str) -> np.ndarray:
        nothing = [None] * len(seen)
        return np.column_stack(
            [numbers(told.get(name + suffix, nothing), len(seen)) for name in extractor.label_names]
        )[seen]

    return HeldOut(
        f"{sum(seen)} spectra of the validation split of {dataset.name}, {where}",
        [star for star, there in zip(told["object_id"], seen, strict=True) if there],
        [_inputs(row) for row in made_rows if row is not None],
        table(""),
        None if stage.true_labels else table("_err"),
    )


def _inputs(row: Row) -> Row:
    """A training row without what is asked."""
    return {name: values for name, values in row.items() if name not in ("labels", "label_errors")}


def judge(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    judged_by: HeldOut,
    calibrate: bool,
    learned: list[str],
) -> dict[str, Any]:
    """Calibrate sigma on the stars of one half, and say how good the answers for the rest are.

    Args:
        calibrate: Fit `sigma_factors` of the extractor, in place; otherwise they stay, and all spectra are the rest.
        learned: Labels of this stage; the others keep their factors.

    Returns:
        results.json of a stage: `{"protocol", "labels": {name: figures}, "bins": {name: {binned by: [figures]}},
        "split", "n_calibration", "calibrated": labels}`; figures of `metrics.summarise`.
    """
    answers = ask(model, extractor, judged_by.rows, 64)
    rest, n_calibration, fitted = np.arange(len(answers.mean)), 0, {}
    if calibrate:
        half, rest = judged_by.halves()
        kept = extractor.sigma_factors
        extractor.sigma_factors, extractor.recalibration = {}, None  # new factors are on the bare network's sigma
        own = Predicted.of(extractor, *answers.chosen(half))
        errors = None if judged_by.errors is None else judged_by.errors[half]
        of_all = sigma_factors(extractor.label_names, own.mean, own.sigma, judged_by.labels[half], errors)
        fitted = {name: pair for name, pair in of_all.items() if name in learned}
        extractor.sigma_factors = kept | fitted
        if fitted:
            n_calibration = len(half)
        else:
            rest = np.arange(len(answers.mean))
    answer = Predicted.of(extractor, *answers.chosen(rest))
    truth = judged_by.labels[rest]
    errors = np.full(truth.shape, TRUE_LABEL_ERROR) if judged_by.errors is None else judged_by.errors[rest]
    return {
        "protocol": f"Labels of {judged_by.what}"
        + (f"; {n_calibration} of them calibrated the uncertainties and do not count here." if n_calibration else "."),
        **summarise_labels(extractor.label_names, answer.mean, truth, answer.sigma, errors),
        "split": "validation",
        "n_calibration": n_calibration,
        "calibrated": list(fitted),
    }


def training_facts(
    stage: StageArguments, dataset: Streamed | None, extractor: SpectraFMFeatureExtractor, star_ids: list[str]
) -> dict[str, Any]:
    """What a card says of the training spectra: ranges of labels, sharpness, datasets with revisions, one line."""
    low, high = stage.window
    where = f"{low:.0f}-{high:.0f} Angstrom"
    if dataset is not None:
        facts = _dataset_facts(stage, dataset, extractor)
        if stage.beside is not None:
            return facts | _mixed_facts(stage, SURVEYS[stage.beside], facts)
        return facts | {"training_data": f"{facts['training_data']}, {where}"}
    fewest, most = ObservingConditions(**stage.observing).noise
    facts = {"datasets": [], "fwhm": stage.fwhm, "snr_range": [round(1 / most), round(1 / fewest)]}
    if stage.data == "synthetic":
        sampler = LabelSampler(**stage.sampler)
        ranges: dict[str, Any] = {"teff": sampler.teff, "logg": (0.0, 5.0), "fe_h": sampler.fe_h}
        return facts | {
            "label_ranges": ranges,
            "training_data": f"synthetic spectra of the Cannon grid, {where}, drawn anew each time",
        }
    chosen = set(star_ids)
    stars = [star for star in load_library("miles", split="train").spectra if star.star_id in chosen]
    ranges = {
        label: (min(s.labels[label] for s in stars), max(s.labels[label] for s in stars))
        for label in ("teff", "logg", "fe_h")
    }
    data = f"{len(stars)} stars of MILES (training split), {where}"
    data += f"; {stage.replay:.0%} of the spectra shown are synthetic" if stage.replay else ""
    return facts | {"label_ranges": ranges, "training_data": data}


def _dataset_facts(stage: StageArguments, dataset: Streamed, extractor: SpectraFMFeatureExtractor) -> dict[str, Any]:
    """`training_facts` of a dataset, from its first 2,000 training rows."""
    scalars = [*extractor.label_names, "teff", "lsf_sigma", "resolving_power", "snr"]
    columns = dataset.first("train", 2000, list(dict.fromkeys(scalars)))

    def known(name: str) -> np.ndarray:
        column = columns.get(name, [])
        values = numbers(column, len(column))
        return values[np.isfinite(values)]

    ranges = {
        name: _range_of(name, known(name))
        for name in dict.fromkeys([*extractor.label_names, "teff"])
        if known(name).size
    }
    sigma, power, snr = known("lsf_sigma"), known("resolving_power"), known("snr")
    fwhm = round(SIGMA_TO_FWHM * float(np.median(sigma)), 2) if sigma.size else None
    if fwhm is None and power.size:
        fwhm = round(float(np.mean(stage.window) / np.median(power)), 2)
    config = f" (config {stage.dataset_config})" if stage.dataset_config else ""
    of_hub = [] if stage.dataset_revision is None else [{"id": stage.dataset, "revision": stage.dataset_revision}]
    return {
        "datasets": of_hub,
        "fwhm": fwhm,
        "snr_range": [round(float(snr.min())), round(float(snr.max()))] if snr.size else None,
        "resolving_power": [float(power.min()), float(power.max())] if power.size else None,
        "label_ranges": ranges,
        "training_data": f"the training split of {dataset.name}{config}, streamed",
    }


def _range_of(name: str, values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value of a label, to 1 K or 0.01 dex."""
    digits = 0 if get_label(name).unit == "K" else 2
    return round(float(values.min()), digits), round(float(values.max()), digits)


def _mixed_facts(stage: StageArguments, beside: Survey, streamed: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a stage that learned from two surveys.

    Args:
        beside: The survey whose stars are synthesised.
        streamed: `_dataset_facts` of the other one's spectra, before training degrades them.

    Returns:
        `surveys`, see `model_card.SurveyFacts`, and one line on the training data.
    """
    stars = np.stack([beside.draw(row_generator(0, number)) for number in range(2000)])
    drawn = {name: _range_of(name, values) for name, values in zip(beside.label_names, stars.T, strict=True)}
    noise = [1 / snr for snr in streamed["snr_range"] or ()] or [0.0, 0.0]
    # Theory adds noise to pixels even in wavelength only, see `SyntheticStars`.
    theory = sorted(ObservingConditions(**stage.observing).noise) if beside.even_in == "wavelength" else [0.0, 0.0]
    shown = Contexts(**stage.contexts)
    patches = max(1 - shown.whole - shown.window, 0.0)
    return {
        "surveys": [
            {
                **_degraded(SURVEYS[STREAMED], SurveyConditions(**stage.conditions), noise),
                "labels": {name: streamed["label_ranges"][name] for name in stage.labels},
            },
            {
                **_degraded(beside, SurveyConditions(**stage.beside_conditions), theory[::-1]),
                "labels": {name: drawn[name] for name in stage.labels if name in drawn},
            },
        ],
        "training_data": f"{streamed['training_data']} (survey {STREAMED}), and beside each star another "
        f"one, synthesised for the survey {beside.name}; shown whole ({shown.whole:.0%}), through a window of "
        f"neighbouring pixels ({shown.window:.0%}) or as {shown.n_patches} scattered patches of {shown.patch_pixels} "
        f"pixels ({patches:.0%})",
    }


def _degraded(survey: Survey, conditions: SurveyConditions, noise: Sequence[float]) -> dict[str, Any]:
    """`model_card.SurveyFacts` of a survey's spectra as training shows them, but for the labels.

    Args:
        noise: Highest and lowest 1-sigma of a pixel before `conditions` add theirs, relative to the flux.
    """
    wavelength = survey.wavelength
    sharpest = conditions.wider[0] if conditions.widened == 1 else 1.0
    widest = conditions.wider[1] if conditions.widened else 1.0
    worst, best = np.hypot(1 / np.array(conditions.snr), noise)
    if survey.even_in == "wavelength":
        fwhm = float(np.median(wavelength)) / survey.resolving_power
        sharpness = {"fwhm": [round(fwhm * sharpest, 2), round(fwhm * widest, 2)]}
    else:
        sharpness = {"resolving_power": [round(survey.resolving_power / factor) for factor in (widest, sharpest)]}
    return {
        "name": survey.name,
        "wavelength": [[round(float(wavelength[i]), 1) for i in (run.start, run.stop - 1)] for run in survey.segments],
        "pixel": round(float(np.median(np.diff(wavelength))), 2),
        **sharpness,
        "snr": [round(1 / worst), round(1 / best)],
    }


def told_as(name: str | None, revision: str | None) -> str | None:
    """A repository by its id, a folder by its last name: where it lay on this disk is nobody's business."""
    return name if name is None or revision is not None else Path(name).name
