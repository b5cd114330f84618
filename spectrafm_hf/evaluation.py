"""Labels that a model tells, held against labels that are known: what it is worth on your stars, before you use it.

    spectrafm evaluate --labels mytable.csv --spectra spectra/ --output runs/evaluation
    spectrafm evaluate --dataset data/mine --split test --output runs/evaluation

Nothing is trained and nothing tuned. Stars that the model has learned from make it look better than it is, and it does
not know which these were: that the split is honest is for whoever asks to see to (`spectrafm build` sees to it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from .builders.apogee_dr17 import reason_of
from .builders.labelled_folder import FolderConfig
from .builders.parquet_layout import whole_file, write_json
from .builders.rows import published_error, published_label
from .labelling import Labelled, Labeller
from .labels import get_label
from .metrics import known_errors, reliability, summarise_calibration, summarise_labels
from .pipeline_spectrafm import WIDTH_95
from .plots import plot_predicted_against_true, plot_reliability
from .sources import Reading
from .stages import check_writable
from .survey_input import ParquetRows, open_survey

PROBABILITIES = np.arange(0.05, 1.0, 0.05)
"""Central intervals of the reliability diagram."""

NO_ERROR = 1e-9
"""K and dex: of labels that are true by construction; 0 would mean that nobody published one."""

FEWEST_TO_DRAW = 2
"""Stars that a label must be known of to be drawn."""


@dataclass(frozen=True)
class Known:
    """Stars whose labels are known.

    Attributes:
        place: Where they are, for people.
        names: Of the labels.
        truth, error: Shape (n_stars, n_labels), K and dex; NaN = not known, or published without error.
        readings: Their spectra, one by one, in the same order.
    """

    place: str
    names: list[str]
    truth: np.ndarray
    error: np.ndarray
    readings: Iterator[Reading]


def known_from_folder(config: FolderConfig, names: Sequence[str]) -> Known:
    """Spectra in a folder, and a table of their labels.

    Raises:
        ValueError: The table lacks a column; or see `_check`.
        FileNotFoundError: There is no such folder or table.
    """
    if not Path(config.folder).is_dir():
        raise FileNotFoundError(f"no folder at {config.folder!r}; give the one that holds the spectra.")
    stars = config.stars()

    def readings() -> Iterator[Reading]:
        for row, file in enumerate(stars["file"]):
            try:
                yield Reading(file, config.spectrum(stars, row))
            except (ValueError, OSError) as error:
                yield Reading(file, None, reason_of(error, config.folder))

    truth, error = (np.stack([stars[name + suffix] for name in names], axis=-1) for suffix in ("", "_err"))
    return _checked(Known(config.folder, list(names), truth, error, readings()))


def known_from_dataset(
    dataset: str, names: Sequence[str], config: str | None = None, split: str | None = None, revision: str | None = None
) -> Known:
    """A dataset of Parquet with columns called as our labels, in K and dex: a folder, or a repository on the Hub.

    Raises:
        ValueError: It is no Parquet; or see `_checked` and `survey_input.open_survey`.
    """
    survey = open_survey(dataset, config=config, split=split, revision=revision)
    if not isinstance(survey, ParquetRows):
        raise ValueError(f"{dataset} is no dataset of Parquet; build one with `spectrafm build folder`.")
    truth, error = [], []
    for path in survey.paths:
        with fsspec.open(path) as file:
            parquet = pq.ParquetFile(file)
            there = [one for name in names for one in (name, f"{name}_err") if one in parquet.schema_arrow.names]
            table = parquet.read(there)
        missing = np.full(table.num_rows if there else parquet.metadata.num_rows, np.nan)
        column = {name: table[name].to_numpy().astype(np.float64) for name in there}
        values = [published_label(name, column.get(name, missing)) for name in names]
        errors = [
            published_error(column.get(f"{name}_err", missing), one) for name, one in zip(names, values, strict=True)
        ]
        truth.append(np.stack(values, axis=-1))
        error.append(np.stack(errors, axis=-1))
    readings = survey.read(0, survey.length)
    return _checked(Known(dataset, list(names), np.concatenate(truth), np.concatenate(error), readings))


def _checked(known: Known) -> Known:
    """As it came.

    Raises:
        ValueError: Not one of the labels is known of any star.
    """
    if not np.isfinite(known.truth).any():
        raise ValueError(
            f"{known.place}: not one of its {len(known.truth)} stars has a value of {', '.join(known.names)}, which "
            "this model tells; is there such a column, in K and dex?"
        )
    return known


def evaluate(
    known: Known, labeller: Labeller, output: str | Path, exact: bool = False, progress: bool | None = None
) -> dict[str, Any]:
    """Label the stars, compare, and write it down.

    Args:
        known: Stars and labels, those of `labeller.labels`, in that order.
        labeller: The model, with its limits where it has any.
        output: Folder for `evaluation.json`, `stars.parquet` (what was known and what was told of each star) and
            `figures/`. It is made before a star is labelled; what a former evaluation left there is replaced.
        exact: The known labels have no errors, those of synthetic stars. Else one that was published without an error
            is taken to have the usual one (`labels.Label.default_error`), and intervals are widened by it.
        progress: Show a bar; None = on a terminal.

    Returns:
        What `evaluation.json` holds: `model`, `revision`, `input`, `exact`, `n_stars`, `n_unreadable`, `n_flagged`;
        `labels` -> `metrics.summarise` and `metrics.summarise_intervals` of all stars that could be read;
        `without_flags`, the same of those that nothing speaks against; `bins`.

    Raises:
        ValueError: No star that has labels can be read; OSError: the folder cannot be written.
    """
    output = Path(output)
    check_writable(output)
    if exact:
        known = replace(known, error=np.full_like(known.truth, NO_ERROR))
    hidden = None if progress is None else not progress
    told = list(tqdm(labeller.label(known.readings), total=len(known.truth), unit="spectra", disable=hidden))
    value, sigma = (_table(told, known.names, key) for key in ("value", "sigma"))
    sigma95 = (_table(told, known.names, "high95") - value) / WIDTH_95
    answered = np.isfinite(value)
    truth = np.where(answered, known.truth, np.nan)
    if not np.isfinite(truth).any():
        reasons = "; ".join(f"{one.name}: {one.flags[0]}" for one in told if one.flags)[:500]
        raise ValueError(f"not one star of {known.place} that has labels was answered ({reasons or 'no spectra'}).")
    value, sigma, sigma95 = (np.where(answered, part, 1.0) for part in (value, sigma, sigma95))  # not counted
    trusted = np.array([not one.flags for one in told])
    figures = _figures(known, value, truth, sigma, sigma95)
    result = {
        "model": labeller.model_id,
        "revision": labeller.revision,
        "input": known.place,
        "exact": exact,
        "n_stars": len(told),
        "n_unreadable": sum(not one.readable for one in told),
        "n_flagged": int((~trusted).sum()),
        "labels": figures["labels"],
        "without_flags": _figures(known, value, np.where(trusted[:, None], truth, np.nan), sigma, sigma95)["labels"],
        "bins": figures["bins"],
    }
    _save_stars(output / "stars.parquet", known, told)
    _draw(output / "figures", labeller.model_id, known, value, truth, sigma, sigma95)
    write_json(output / "evaluation.json", result)
    return result


def _table(told: Sequence[Labelled], names: Sequence[str], key: str) -> np.ndarray:
    return np.array([[getattr(one.labels[name], key) for name in names] for one in told])


def _figures(
    known: Known, value: np.ndarray, truth: np.ndarray, sigma: np.ndarray, sigma95: np.ndarray
) -> dict[str, Any]:
    compared = summarise_labels(known.names, value, truth, sigma, known.error)
    intervals = summarise_calibration(known.names, value, truth, sigma, sigma95, known.error)["labels"]
    labels = {name: intervals[name] | compared["labels"][name] for name in known.names}
    for name in known.names:  # of the interval's own sigma, see `summarise_intervals`
        labels[name] |= {key: intervals[name][key] for key in ("coverage68", "coverage95")}
    return {"labels": labels, "bins": compared["bins"]}


def _save_stars(path: Path, known: Known, told: Sequence[Labelled]) -> None:
    columns: dict[str, Any] = {"name": [one.name for one in told]}
    for number, name in enumerate(known.names):
        columns |= {f"{name}_known": known.truth[:, number], f"{name}_known_err": known.error[:, number]}
        for key in ("value", "sigma", "low95", "high95"):
            columns[name if key == "value" else f"{name}_{key}"] = _table(told, [name], key)[:, 0]
    columns["flags"] = ["; ".join(one.flags) for one in told]
    with whole_file(path) as partial:
        pq.write_table(pa.table(columns), partial)


def _draw(
    folder: Path,
    model: str,
    known: Known,
    value: np.ndarray,
    truth: np.ndarray,
    sigma: np.ndarray,
    sigma95: np.ndarray,
) -> None:
    """Predicted against known of each label, coloured by metallicity, and how often intervals hold what they should."""
    fe_h = truth[:, known.names.index("fe_h")] if "fe_h" in known.names else np.full(len(truth), np.nan)
    fe_h = np.where(np.isfinite(fe_h), fe_h, 0.0)
    shares, counts = {}, {}
    for number, name in enumerate(known.names):
        here = np.isfinite(truth[:, number])
        if here.sum() < FEWEST_TO_DRAW:
            continue
        label, own = get_label(name), truth[here, number]
        mean, widths = value[here, number], (sigma[here, number], sigma95[here, number])
        stars = {Path(model).name: (mean, widths[0])}
        plot_predicted_against_true(stars, own, label, folder / f"{name}.png", fe_h=fe_h[here])
        shares[name] = reliability(
            mean - own, *widths, PROBABILITIES, known_errors(label, known.error[:, number], here)
        )
        counts[name] = int(here.sum())
    if shares:
        plot_reliability(PROBABILITIES, shares, counts, folder / "reliability.png")


def table(result: dict[str, Any]) -> str:
    """What `evaluate` found, for the terminal."""
    lines = [
        f"{result['model']} on {result['n_stars']:,} spectra of {result['input']}: "
        f"{result['n_unreadable']:,} could not be read, {result['n_flagged']:,} have a flag",
        "",
        f"{'label':8} {'stars':>7} {'RMSE':>9} {'bias':>9} {'scatter':>9} {'68 % holds':>11} {'95 % holds':>11}  "
        "RMSE without flags",
    ]
    for name, one in result["labels"].items():
        label, clean = get_label(name), result["without_flags"][name]
        if not one["n"]:
            lines.append(f"{label.symbol:8} {0:7,}   not known of any star that was answered")
            continue
        digits = 0 if label.unit == "K" else 3
        lines.append(
            f"{label.symbol:8} {one['n']:7,} {one['rmse']:9.{digits}f} {one['bias']:+9.{digits}f} "
            f"{one['scatter']:9.{digits}f} {one['coverage68']:11.0%} {one['coverage95']:11.0%}  "
            + (f"{clean['rmse']:.{digits}f} ({clean['n']:,} stars), " if clean["n"] else "no star, ")
            + label.unit
        )
    errors = "none, as told" if result["exact"] else "those published, else the usual ones"
    lines.append(
        f"bias: median of predicted minus known; scatter: 1.4826 MAD about it; errors of known labels: {errors}"
    )
    return "\n".join(lines)
