"""The few-shot kit: a folder of spectra and a table of labels -> a model tuned to them, and what it is worth.

10 to 1,000 labelled stars. What is done to the model (`few_shot_candidates`) is chosen inside them, and how good the
choice is, is measured on stars that had no part in it (`few_shot_nested`). Their answers calibrate sigma as well, so
that its conformal factors (`calibration`) are those of the whole procedure, in the manner of cross-validation+ (Barber
et al. 2021, Ann. Statist. 49, 486).
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .applicability import ranges_of_labels
from .builders.labelled_folder import FolderConfig
from .checkpoints import SHIPPED, located
from .collation import Row
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .few_shot_candidates import (
    FROZEN,
    LEARNING_RATE,
    LORA,
    Training,
    correct_readouts,
    read_frozen,
    trained_candidates,
)
from .few_shot_nested import Choice, LeftOut, cross_validate, deal_folds
from .few_shot_report import Findings, Settings, write_findings
from .few_shot_stars import LabelledStars, anchor_rows, labels_to_learn, read_stars
from .hub import load_pretrained, read_pushed, revision_of
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .stages import BEGUN_FILE, DONE_FILE, RESULTS_FILE, check_writable, read_record

logger = logging.getLogger(__name__)

METHODS = {"auto": ("frozen", "lora", "full"), "head": ("frozen",), "lora": ("lora",), "full": ("full",)}
"""What can be asked for -> methods to choose among."""

SHOWINGS_PER_STAR, MOST_SHOWINGS = 20, 2000
"""Spectra shown in a training: as often each star, but no more in all, lest 1,000 stars take an hour."""

FOLDS, MANY_STARS = 5, 300
"""Parts that take turns in judging. Of many stars three quarters teach nearly as much as four fifths, and 10 trainings
a method take two thirds of the time of 15."""

FEWEST_TO_TRAIN = 30
"""Stars from which on weights are trained: with fewer, a handful judges which of dozens of candidates is best."""

ANSWERS_FOLDER = "fold-answers"
"""In the output folder: what trainings answered, so that a killed run need not repeat them."""


@dataclass(frozen=True)
class KitArguments:
    """What the kit is to do.

    Args:
        labels: Table of labels: CSV, Parquet, FITS or ECSV, see `builders.labelled_folder`.
        spectra: Folder of the spectra.
        output: Folder of the tuned model.
        model: Parent: a folder or a Hub repository; None = the one that ships, see `checkpoints.shipped`.
        revision: Of a Hub parent.
        method: One of `METHODS`: `head` holds all that leave the weights alone, `auto` everything.
        labels_wanted: Labels to learn; None = all that the model knows and enough stars have.
        window: Part of the spectra to use, vacuum Angstrom; None = all that the model reads.
        folds: Parts that take turns in judging, no more than there are stars for; None = 5, or 4 of many stars.
        showings: Most spectra shown in a training; None = 20 per star, and at most 2,000.
        seed: Of folds, trainings and synthetic stars.
        file_column, id_column, reader_options: See `FolderConfig`.

    Raises:
        ValueError: A method, window, number or seed that makes no sense.
    """

    labels: Path
    spectra: Path
    output: Path
    model: str | None = None
    revision: str | None = None
    method: str = "auto"
    labels_wanted: Sequence[str] | None = None
    window: tuple[float, float] | None = None
    folds: int | None = None
    showings: int | None = None
    seed: int = 0
    file_column: str | None = None
    id_column: str | None = None
    reader_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if self.window is not None and not 0 < self.window[0] < self.window[1]:
            raise ValueError(f"window must be LOW HIGH in vacuum Angstrom, got {self.window[0]:g} {self.window[1]:g}.")
        if self.folds is not None and self.folds < 3:
            raise ValueError(f"folds must be 3 or more: one judges, the others choose and learn; got {self.folds}.")
        if self.showings is not None and self.showings < 1:
            raise ValueError(f"showings must be 1 spectrum or more, got {self.showings}.")
        if not 0 <= self.seed < 2**32 - 1:
            raise ValueError(f"seed must lie in 0 to 2**32 - 2, got {self.seed}.")

    @property
    def folder(self) -> FolderConfig:
        """How spectra and table are read."""
        return FolderConfig(
            folder=str(self.spectra),
            table=str(self.labels),
            file_column=self.file_column,
            id_column=self.id_column,
            reader_options=self.reader_options,
        )


# ---------------------------------------------------------------- the run


def finetune(asked: KitArguments) -> Path:
    """Choose, judge, tune, calibrate and save; a killed run goes on where it was, a finished one is not repeated.

    Returns:
        The folder: model.safetensors, config.json, preprocessor_config.json, report.md, results.json, figures/,
        stage.json and a card.

    Raises:
        ValueError, FileNotFoundError: No parent, no spectra or too few labels; the message says what to do.
        OSError: The folder cannot be written.
    """
    folder = asked.output
    check_writable(folder)
    check_output(folder)
    parent = located(asked.model or SHIPPED[0])
    revision = revision_of(parent, asked.revision)
    model, extractor = load_pretrained(parent, revision)
    check_readouts(parent, model)
    stars = read_stars(asked.folder, extractor, asked.window)
    learned, notes = labels_to_learn(stars, extractor.label_names, asked.labels_wanted)
    stars = only_labelled(stars, extractor.label_names, learned)
    methods, said = methods_for(asked.method, stars.n_stars)
    n_folds = min(asked.folds or (FOLDS if stars.n_stars < MANY_STARS else FOLDS - 1), stars.n_stars // 2)
    showings = asked.showings or min(SHOWINGS_PER_STAR * stars.n_stars, MOST_SHOWINGS)
    wanted = fingerprint(model, extractor, stars, [learned, methods, n_folds, showings, asked.seed, asked.window])
    if (read_record(folder) or {}).get("fingerprint") == wanted:
        logger.info("%s is done already", folder)
        return folder

    begin(folder, wanted)
    anchors, why = anchors_for(stars, extractor, asked)
    frozen = read_frozen(model, extractor, stars, learned, anchors)
    left_out = LeftOut(
        fold=deal_folds(stars.star_ids, n_folds, asked.seed),
        frozen=frozen,
        training=Training(model, extractor, frozen, learned, asked.seed),
        candidates={"frozen": FROZEN} | {method: trained_candidates(method, showings) for method in LEARNING_RATE},
        memory=folder / ANSWERS_FOLDER,
    )
    nested = cross_validate(left_out, methods)
    if extractor.recalibration is not None:
        notes.append("The parent's recalibration, which was fitted to its own answers, was taken off.")
    notes += [*said, *why, *more_would_help(left_out, nested.final)]
    found = Findings.of(left_out, nested, learned, notes)
    settings = Settings(
        method=asked.method,
        spectra=asked.spectra.resolve().name,
        labels=asked.labels.name,
        parent=parent_of(parent, revision),
        parent_fingerprint=(read_record(Path(parent)) or {}).get("fingerprint"),
        window=asked.window or reach(stars.rows),
        showings=showings,
        seed=asked.seed,
    )
    save(folder, left_out, nested.final, found, settings, wanted)
    return folder


def save(
    folder: Path, left_out: LeftOut, choice: Choice, found: Findings, settings: Settings, fingerprint: str
) -> None:
    """Tune the model with all stars, and write it, its extractor and what is told of them."""
    tuned = tune(left_out, choice)
    tuned.save_pretrained(folder)
    calibrated(left_out.training.extractor, found).save_pretrained(folder)
    n_parameters = sum(parameter.numel() for parameter in tuned.parameters())
    write_findings(folder, found, settings, fingerprint, n_parameters, as_read(left_out, "teff"))
    shutil.rmtree(folder / ANSWERS_FOLDER, ignore_errors=True)


def check_output(folder: Path) -> None:
    """Refuse a folder that holds something else: what lies there would be written over.

    Raises:
        ValueError: It is neither empty nor of an earlier run.
    """
    of_ours = "showings" in (read_record(folder) or {}).get("recipe", {}) or (folder / ANSWERS_FOLDER).is_dir()
    if not of_ours and any(folder.iterdir()):
        raise ValueError(
            f"the folder {folder} holds something else, which a tuned model would be written over; choose another one "
            "with --output."
        )


def check_readouts(name: str, model: SpectraFMForLabelPrediction) -> None:
    """Refuse a model whose labels share one readout: none could be corrected without the others.

    Raises:
        ValueError: It is such a model.
    """
    if model.config.shared_readout:
        raise ValueError(
            f"{name} reads all labels with one shared readout, as the paper's network does; the few-shot kit needs a "
            "model whose labels have readouts of their own (shared_readout=False). Fine-tune this one by a recipe "
            "instead: training/train.py."
        )


def only_labelled(stars: LabelledStars, names: Sequence[str], learned: Sequence[str]) -> LabelledStars:
    """Stars that have at least one label to be learned."""
    return stars.only(np.isfinite(stars.labels[:, np.isin(names, learned)]).any(axis=1))


def methods_for(method: str, n_stars: int) -> tuple[tuple[str, ...], list[str]]:
    """Methods to choose among, and why one that was asked for is not among them.

    Raises:
        ValueError: LoRA was asked for and peft is not installed.
    """
    methods = METHODS[method]
    has_peft = importlib.util.find_spec("peft") is not None
    if method == "lora" and not has_peft:
        raise ValueError("--method lora needs peft: pip install 'spectrafm_hf[peft]'; or choose another method.")
    if method == "auto" and n_stars < FEWEST_TO_TRAIN:
        return ("frozen",), [
            f"No weights were trained: {n_stars} stars are too few to judge so many candidates, {FEWEST_TO_TRAIN} are "
            "needed (--method lora or full does it all the same)."
        ]
    if method == "auto" and not has_peft:
        return ("frozen", "full"), ["LoRA was not tried: it needs peft, pip install 'spectrafm_hf[peft]'."]
    return methods, []


def anchors_for(
    stars: LabelledStars, extractor: SpectraFMFeatureExtractor, asked: KitArguments
) -> tuple[list[Row] | None, list[str]]:
    """Synthetic stars on the same pixels; or none, and why."""
    try:
        return anchor_rows(stars, extractor, asked.window, asked.seed), []
    except ValueError as error:
        return None, [f"No synthetic stars hold the readouts still, which are a plain ridge regression: {error}"]


def fingerprint(
    model: SpectraFMForLabelPrediction, extractor: SpectraFMFeatureExtractor, stars: LabelledStars, settings: list[Any]
) -> str:
    """SHA-256 of all that decides the outcome; where files lie does not."""
    digest = hashlib.sha256(extractor.to_json_string().encode())
    for weights in model.state_dict().values():
        digest.update(weights.float().numpy().tobytes())
    for values in (stars.labels, stars.label_errors, *(row["flux"] for row in stars.rows)):
        digest.update(np.ascontiguousarray(values).tobytes())
    decided = [*stars.star_ids.tolist(), settings, FROZEN, LEARNING_RATE, LORA, metadata.version("spectrafm_hf")]
    digest.update(json.dumps(decided).encode())
    return digest.hexdigest()


def begin(folder: Path, wanted: str) -> None:
    """Remove what another run left, but for the answers of the same one that was killed."""
    begun = folder / ANSWERS_FOLDER / BEGUN_FILE
    if not begun.is_file() or begun.read_text() != json.dumps(wanted):
        shutil.rmtree(folder / ANSWERS_FOLDER, ignore_errors=True)
    for name in (DONE_FILE, RESULTS_FILE, "README.md", "report.md"):
        (folder / name).unlink(missing_ok=True)
    begun.parent.mkdir(exist_ok=True)
    begun.write_text(json.dumps(wanted))


def more_would_help(left_out: LeftOut, choice: Choice) -> list[str]:
    """Says so where the longest training was the best."""
    longest = left_out.candidates[choice.method][-1]
    if choice.method == "frozen" or choice.number[0] < len(left_out.candidates[choice.method]) - 1:
        return []
    return [
        f"The longest training was chosen ({longest}): a longer one may be better, --showings {2 * longest.amount:.0f}."
    ]


def tune(left_out: LeftOut, choice: Choice) -> SpectraFMForLabelPrediction:
    """The parent, treated as chosen with all stars; a copy."""
    everyone, labels = np.ones(len(left_out.fold), dtype=bool), np.arange(len(choice.number))
    if choice.method == "frozen":
        model = copy.deepcopy(left_out.training.parent)
        weight, bias = left_out.frozen.corrections(everyone)
        correct_readouts(model, weight[choice.number, labels], bias[choice.number, labels])
    else:
        candidates = left_out.candidates[choice.method][: choice.number[0] + 1]
        with tqdm(total=int(candidates[-1].amount), desc="the model itself", unit=" spectra", disable=None) as bar:
            model, _ = left_out.training.run(candidates, everyone, ~everyone, bar)
    correct_readouts(model, log_var=2 * np.log(choice.widening))
    return model


def calibrated(extractor: SpectraFMFeatureExtractor, found: Findings) -> SpectraFMFeatureExtractor:
    """The extractor with the factors found; what else corrected the parent's answers is none of the tuned model's.

    Where the parent tells at which wavelengths a label was learned, those of your stars are told, too.
    """
    own = copy.deepcopy(extractor)
    own.sigma_factors = extractor.sigma_factors | found.factors
    own.recalibration = None
    ranges = ranges_of_labels(found.stars.rows, found.labels, found.learned)
    own.learned_also({name: ranges[name] for name in ranges if name in own.learned_ranges})
    return own


def parent_of(name: str, revision: str | None) -> dict[str, str | None]:
    """Hub id and commit of the parent; of a folder the version as which it was pushed, or its name alone."""
    if revision is not None:
        return {"id": name, "revision": revision}
    pushed = read_pushed(Path(name))
    if pushed is None:
        return {"id": Path(name).resolve().name, "revision": None}
    return {"id": pushed.repo_id, "revision": pushed.revision}


def reach(rows: Sequence[Row]) -> tuple[float, float]:
    """Lowest and highest wavelength with a good pixel, vacuum Angstrom."""
    good = [row["wavelength"][row["attention_mask"] > 0] for row in rows]
    return float(min(each.min() for each in good)), float(max(each.max() for each in good))


def as_read(left_out: LeftOut, name: str) -> np.ndarray:
    """A label of all spectra as the parent reads it, K or dex; empty if it does not know the label."""
    extractor = left_out.training.extractor
    if name not in extractor.label_names:
        return np.empty(0)
    return extractor.decode_labels(left_out.frozen.mean, left_out.frozen.log_var)[name]["value"]
