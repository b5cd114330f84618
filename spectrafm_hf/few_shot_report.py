"""What the few-shot kit found, for people and for programs: report.md, figures, results.json, stage.json and a card."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .builders.parquet_layout import whole_file, write_json
from .calibration import FEWEST_STARS, sigma_factors
from .few_shot_candidates import FROZEN, Candidate
from .few_shot_nested import Choice, LeftOut, Nested
from .few_shot_stars import PIXELS_PER_FWHM, LabelledStars, assumed_sharpness
from .labels import Label, get_label
from .metrics import summarise_labels
from .plots import BLUE, GREY, ORANGE, STYLE, VERMILION
from .publishing import card_facts, write_card
from .stages import DONE_FILE, PACKAGES, RESULTS_FILE

logger = logging.getLogger(__name__)

FAR_OFF = 5.0
"""Robust sigmas from the others at which a star is named in the report."""


@dataclass(frozen=True, eq=False)
class Score:
    """How wrong predictions of one label are; each star counts once, the unit is the label's.

    Attributes:
        rmse, error: Root mean square and its standard error.
        gain: By how much the mean squared error is smaller than the other answers' it is compared with, in its own
            standard errors.
    """

    rmse: float
    error: float
    gain: float

    @classmethod
    def of(cls, squared: np.ndarray, other: np.ndarray) -> Score:
        """From squared errors of each star and those of other answers, shape (n_stars,); NaN is left out."""
        known = np.isfinite(squared)
        squared, better = squared[known], (other - squared)[known]
        rmse, root = float(np.sqrt(squared.mean())), np.sqrt(squared.size)
        error = float(squared.std() / root / max(2 * rmse, 1e-12))
        return cls(rmse, error, float(better.mean() / max(better.std() / root, 1e-12)))


@dataclass(frozen=True, eq=False)
class Findings:
    """What nested cross-validation says of the labels learned; arrays (n_spectra, n_learned), K and dex.

    Attributes:
        stars: All of them.
        learned: Labels.
        labels, errors: Published, with their 1-sigma; NaN = missing, or not published.
        mean, sigma: By models that knew nothing of the star; sigma is the network's own, without factors.
        unchanged: By the parent, calibrated as it is.
        offset: By the parent and a constant, learned from other stars.
        fold: Of each spectrum.
        kept_factors: Of the parent, see `calibration`.
        chosen: Candidate of each label at last.
        in_folds: Candidate of each label without each fold.
        tried: Every candidate -> score of each label, by cross-validation that is not nested.
        notes: Sentences that the report must say.
    """

    stars: LabelledStars
    learned: list[str]
    labels: np.ndarray
    errors: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray
    unchanged: np.ndarray
    offset: np.ndarray
    fold: np.ndarray
    kept_factors: dict[str, list[float]]
    chosen: list[Candidate]
    in_folds: list[list[Candidate]]
    tried: dict[Candidate, list[Score]]
    notes: list[str]

    @classmethod
    def of(cls, left_out: LeftOut, nested: Nested, learned: list[str], notes: list[str]) -> Findings:
        """From the cross-validation; all that was tried is scored by the folds that judged the last choice."""
        extractor, stars = left_out.training.extractor, left_out.frozen.stars
        columns = [extractor.label_names.index(name) for name in learned]
        parent = extractor.decode_labels(left_out.frozen.mean, left_out.frozen.log_var)
        scale, center = np.array(extractor.label_scale)[columns], np.array(extractor.label_center)[columns]

        def named(choice: Choice) -> list[Candidate]:
            return [left_out.candidates[choice.method][choice.number[column]] for column in columns]

        squares = {
            candidate: squared[:, columns] * scale**2
            for method in left_out.judged_everywhere()
            for candidate, squared in zip(left_out.candidates[method], left_out.squared(method), strict=True)
        }
        offset = left_out.in_turns("frozen", None).mean[FROZEN.index(Candidate("offset"))]
        return cls(
            stars=stars,
            learned=learned,
            labels=stars.labels[:, columns],
            errors=stars.label_errors[:, columns],
            mean=nested.mean[:, columns] * scale + center,
            sigma=np.exp(0.5 * nested.log_var[:, columns]) * scale,
            unchanged=np.stack([parent[name]["value"] for name in learned], axis=1),
            offset=offset[:, columns] * scale + center,
            fold=left_out.fold,
            kept_factors=extractor.sigma_factors,
            chosen=named(nested.final),
            in_folds=[named(choice) for choice in nested.without],
            tried={
                candidate: [Score.of(*pair) for pair in zip(squared.T, squares[FROZEN[0]].T, strict=True)]
                for candidate, squared in squares.items()
            },
            notes=notes,
        )

    def scores(self, mean: np.ndarray, other: np.ndarray | None = None) -> list[Score]:
        """Of each label; with `self.mean` the honest ones, of the whole procedure.

        Args:
            mean, other: Answers to score, and those they are compared with (None = the parent's); shape (n_spectra,
                n_learned), K and dex.
        """
        answers = mean, self.unchanged if other is None else other
        squared, of_other = (self.stars.per_star((of - self.labels) ** 2).T for of in answers)
        return [Score.of(*pair) for pair in zip(squared, of_other, strict=True)]

    # ------------------------------------------------------------ sigma

    def factors_of(self, spectra: np.ndarray) -> dict[str, list[float]]:
        """Conformal factors from some spectra, (n_spectra,) bool, the first of each star: visits are no new stars."""
        first = np.zeros(len(spectra), dtype=bool)
        first[np.flatnonzero(spectra)[np.unique(self.stars.star_ids[spectra], return_index=True)[1]]] = True
        return sigma_factors(self.learned, self.mean[first], self.sigma[first], self.labels[first], self.errors[first])

    @property
    def factors(self) -> dict[str, list[float]]:
        """Of every label that enough stars have; the others keep the parent's."""
        return self.factors_of(np.ones(len(self.mean), dtype=bool))

    def calibrated_sigma(self) -> tuple[np.ndarray, np.ndarray]:
        """Sigma of the 68 % and of the 95 % interval of each fold, by the factors that the other folds give."""
        both = np.empty((2, *self.sigma.shape))
        for fold in np.unique(self.fold):
            judged = self.fold == fold
            factors = self.kept_factors | self.factors_of(~judged)
            pairs = np.array([factors.get(name, (1.0, 1.0)) for name in self.learned])
            both[:, judged] = self.sigma[judged] * pairs.T[:, None]
        return both[0], both[1]

    def figures(self) -> dict[str, Any]:
        """`labels` and `bins` of results.json, figures of `metrics.summarise`."""
        of68, of95 = (
            summarise_labels(self.learned, self.mean, self.labels, sigma, self.errors)
            for sigma in self.calibrated_sigma()
        )
        for name in self.learned:
            of68["labels"][name]["coverage95"] = of95["labels"][name]["coverage95"]
            for binned, bins in of68["bins"][name].items():
                for one, other in zip(bins, of95["bins"][name][binned], strict=True):
                    one["coverage95"] = other["coverage95"]
        return of68

    # ------------------------------------------------------------ words

    @property
    def protocol(self) -> str:
        n_folds = len(self.in_folds)
        return (
            f"Labels of {len(self.labels)} spectra of {self.stars.n_stars} labelled stars by nested cross-validation: "
            f"each of {n_folds} folds was answered by a model chosen, tuned and calibrated on the other "
            f"{n_folds - 1}. The model itself learned from all of them."
        )

    @property
    def calibration(self) -> str:
        """How sigma was calibrated."""
        fitted = [name for name in self.learned if name in self.factors]
        kept = [name for name in self.learned if name not in fitted]
        said = []
        if fitted:
            said.append(
                f"Sigma of {', '.join(fitted)} was calibrated on the answers for stars left out (cross-validation): "
                "conformal factors for the central 68.27 % and 95 % intervals."
            )
        if kept:
            said.append(
                f"Fewer than {FEWEST_STARS} stars have {', '.join(kept)}: sigma keeps the parent's factors, and was "
                "widened or narrowed by one number that fits these few stars."
            )
        return " ".join(said)

    def far_off(self) -> list[str]:
        """Spectra whose residual lies far from all others: a wrong label, a wrong file or a strange star."""
        residual = self.mean - self.labels
        residual = residual - np.nanmedian(residual, axis=0)
        away = np.abs(residual) / (1.4826 * np.nanmedian(np.abs(residual), axis=0) + 1e-9)
        far = sorted(np.argwhere(away > FAR_OFF).tolist(), key=lambda at: -away[*at])
        lines = []
        for row, column in far[:10]:
            label = get_label(self.learned[column])
            published, predicted = (written(label, values[row, column]) for values in (self.labels, self.mean))
            lines.append(f"{self.stars.star_ids[row]}: {label.symbol} published {published}, predicted {predicted}")
        return lines


def written(label: Label, value: float, signed: bool = False) -> str:
    """A number with its unit, e.g. `0.123 dex`."""
    return f"{digits(label, value, signed)} {label.unit}"


def digits(label: Label, value: float, signed: bool = False) -> str:
    """A number; 1 K and 0.001 dex are the last digits that mean anything."""
    return f"{value:{'+' if signed else ''}.{0 if label.unit == 'K' else 3}f}"


# ---------------------------------------------------------------- the report


@dataclass(frozen=True)
class Settings:
    """What was asked for, as the report and stage.json tell it.

    Attributes:
        method: `auto`, `head`, `lora` or `full`.
        spectra, labels: Names of folder and table, without where they lay.
        parent, parent_fingerprint: Its name and revision, and its own stage.json's fingerprint; None = it has none.
        window: Vacuum Angstrom, lowest and highest wavelength used.
        showings: Most spectra shown in a training.
        seed: Of everything random.
    """

    method: str
    spectra: str
    labels: str
    parent: dict[str, str | None]
    parent_fingerprint: str | None
    window: tuple[float, float]
    showings: int
    seed: int


def report(found: Findings, settings: Settings, folder: str) -> str:
    """report.md."""
    parts = [
        f"# {folder}: {settings.parent['id']} tuned to {found.stars.n_stars} stars",
        _table_of_labels(found),
        _verdict(found),
        "![predicted against published](figures/out_of_fold.png)",
        _how_to_use(found, settings, folder),
        _what_was_tried(found),
        "![everything that was tried](figures/candidates.png)",
        _how_it_was_judged(found),
        f"## Uncertainties\n\n{found.calibration}",
        _your_stars(found, settings),
        _what_it_cannot_know(found, settings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table_of_labels(found: Findings) -> str:
    lines = [
        "| label | stars | RMSE as it was | RMSE now | bias | scatter | inside 68 % | inside 95 % | chosen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    figures = found.figures()["labels"]
    columns = found.learned, found.scores(found.mean), found.scores(found.unchanged), found.chosen
    for name, score, before, chosen in zip(*columns, strict=True):
        label, told = get_label(name), figures[name]
        n_stars = len(np.unique(found.stars.star_ids[np.isfinite(found.labels[:, found.learned.index(name)])]))
        lines.append(
            f"| {label.symbol} [{label.unit}] | {n_stars} | {digits(label, before.rmse)} | "
            f"**{digits(label, score.rmse)}** ± {digits(label, score.error)} | "
            f"{digits(label, told['bias'], signed=True)} | {digits(label, told['scatter'])} | "
            f"{told['coverage68']:.0%} | {told['coverage95']:.0%} | {chosen} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "All figures are about stars that the answering model knew nothing of: it was chosen, tuned and calibrated "
            "without them. RMSE (± its standard error) compares with your labels as they are, errors of theirs "
            "included; bias is the median of predicted minus published, scatter 1.4826 MAD about it.",
        ]
    )


def _verdict(found: Findings) -> str:
    """Which gains are real, over the model as it was, and over what a mere constant would do."""
    lines = []
    scores = found.scores(found.mean), found.scores(found.mean, found.offset)
    for name, score, over_offset in zip(found.learned, *scores, strict=True):
        symbol, told = get_label(name).symbol, f"({over_offset.gain:+.1f} standard errors)"
        if score.gain > 2:
            beyond = "better than" if over_offset.gain > 2 else "not told apart from"
            lines.append(
                f"- {symbol}: better than the model as it was, by {score.gain:.1f} standard errors; {beyond} the model "
                f"plus a constant {told}."
            )
        elif score.gain < -2:
            lines.append(
                f"- **{symbol}: worse than the model as it was**, by {-score.gain:.1f} standard errors: too few stars, "
                "or wrong labels among them."
            )
        else:
            lines.append(
                f"- {symbol}: not told apart from the model as it was ({score.gain:+.1f} standard errors); more stars "
                "would tell."
            )
    return "\n".join([*lines, *(f"- {note}" for note in found.notes)])


def _how_to_use(found: Findings, settings: Settings, folder: str) -> str:
    label, row = get_label(found.learned[0]), found.stars.rows[0]
    told = [name for name in ("flux_error", "resolving_power") if name in row]
    also = "".join(f", {name}={name}" for name in told)
    low, high = settings.window
    hint = f"Your spectra were seen at {low:.0f}-{high:.0f} vacuum Angstrom; give it no other part of new ones."
    hint += f" They came with {' and '.join(told)}, which it needs of new ones too." if told else ""
    return f"""## How to use it

{hint}

```python
import spectrafm_hf
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("{folder}").eval()
extractor = AutoFeatureExtractor.from_pretrained("{folder}")
inputs = extractor(flux, wavelength{also}, return_tensors="pt")  # any flux unit; vacuum Angstrom, rest frame
answer = model(**inputs)
extractor.decode_labels(answer.label_mean, answer.label_log_var)["{label.name}"]  # value and sigma in {label.unit}
```"""


def _what_was_tried(found: Findings) -> str:
    labels = [get_label(name) for name in found.learned]
    lines = [
        "## What was tried",
        "",
        "RMSE of each label by plain cross-validation. The best of many looks better here than it is: the first table "
        "is the one to quote.",
        "",
        "| | " + " | ".join(f"{label.symbol} [{label.unit}]" for label in labels) + " |",
        "|---|" + "---|" * len(labels),
    ]
    for candidate, scores in found.tried.items():
        cells = []
        for label, score, chosen in zip(labels, scores, found.chosen, strict=True):
            cell = f"{digits(label, score.rmse)} ± {digits(label, score.error)}"
            cells.append(f"**{cell}**" if chosen == candidate else cell)
        lines.append(f"| {candidate} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Bold is what was chosen: the simplest that is not clearly worse than the best."])


def _how_it_was_judged(found: Findings) -> str:
    lines = [f"## How it was judged\n\n{found.protocol}\n\nChosen without each fold in turn:\n"]
    for column, name in enumerate(found.learned):
        counts = Counter(str(choices[column]) for choices in found.in_folds)
        told = ", ".join(f"{choice} ({count} x)" for choice, count in counts.most_common())
        lines.append(f"- {get_label(name).symbol}: {told}")
    return "\n".join(lines)


def _your_stars(found: Findings, settings: Settings) -> str:
    low, high = settings.window
    lines = [
        "## Your stars",
        "",
        f"{len(found.labels)} spectra of {found.stars.n_stars} stars, {low:.0f}-{high:.0f} vacuum Angstrom.",
        "",
        "| label | lowest | 5 % below | 5 % above | highest |",
        "|---|---|---|---|---|",
    ]
    for column, name in enumerate(found.learned):
        label, values = get_label(name), found.labels[:, column]
        ends = np.nanquantile(values, [0, 0.05, 0.95, 1])
        lines.append(f"| {label.symbol} [{label.unit}] | " + " | ".join(digits(label, value) for value in ends) + " |")
    if far := found.far_off():
        lines += ["", "Far from all others; a wrong label, a wrong file or a strange star:", ""]
        lines += [f"- {one}" for one in far]
    if found.stars.skipped:
        lines += ["", f"{len(found.stars.skipped)} files could not be used:", ""]
        lines += [f"- {one.file} ({one.object_id}): {one.reason}" for one in found.stars.skipped[:20]]
        lines += [f"- and {len(found.stars.skipped) - 20} more"] if len(found.stars.skipped) > 20 else []
    return "\n".join(lines)


def weaknesses(found: Findings, settings: Settings) -> list[str]:
    """What nothing here can show."""
    lines = [
        "Stars outside the ranges of its training labels are extrapolated to; no figure here is about them.",
        "The figures hold for stars like its training stars: of the same instrument, pixels, noise and mixture.",
        "Whether the training labels are right was not tested: their systematic errors were learned with them.",
    ]
    if not np.isfinite(found.stars.fwhm).all():
        lines.append(
            "The resolution of some training spectra is not known; synthetic stars were given "
            f"{PIXELS_PER_FWHM:g} pixels per FWHM."
        )
    low, high = settings.window
    lines.append(
        f"Outside {low:.0f}-{high:.0f} vacuum Angstrom, and for labels that were not learned, it was not tested; "
        + (
            "it may answer worse there than its parent, since its weights moved."
            if found.chosen[0].method in ("lora", "full")
            else "what was corrected for these spectra is corrected in all others too."
        )
    )
    if found.stars.n_stars < FEWEST_STARS:
        lines.append(f"{found.stars.n_stars} stars are few: every figure here has a large error of its own.")
    return lines


def _what_it_cannot_know(found: Findings, settings: Settings) -> str:
    lines = weaknesses(found, settings)
    return "\n".join(["## What it cannot know", "", *(f"- {line}" for line in lines)])


def summary(told: Mapping[str, Any]) -> str:
    """A few lines for the terminal, from the content of results.json."""
    lines = [f"{'label':8} {'as it was':>11} {'now':>22}   chosen"]
    for name, score in told["scores"].items():
        label = get_label(name)
        now = f"{written(label, score['rmse'])} +- {written(label, score['rmse_error'])}"
        before, chosen = written(label, score["unchanged_rmse"]), told["chosen"][name]
        lines.append(f"{label.symbol:8} {before:>11} {now:>22}   {chosen}")
    return "\n".join(
        [*lines, "RMSE of stars that the answering model knew nothing of (nested cross-validation)", *told["notes"]]
    )


# ---------------------------------------------------------------- figures


def plot_out_of_fold(found: Findings, path: Path) -> Figure:
    """Predicted against published, a row per label: the model as it was, and the tuned one with its sigma."""
    n_labels = len(found.learned)
    sigma = found.calibrated_sigma()[0]
    with matplotlib.rc_context(STYLE | {"figure.constrained_layout.h_pad": 0.1}):
        figure = Figure(figsize=(6.0, 0.4 + 3.0 * n_labels), layout="constrained")
        panels = figure.subplots(n_labels, 2, sharex="row", sharey="row", squeeze=False)
        for row, name in enumerate(found.learned):
            label, known = get_label(name), np.isfinite(found.labels[:, row])
            published = found.labels[known, row]
            answers = (found.unchanged[known, row], ORANGE, None), (found.mean[known, row], BLUE, sigma[known, row])
            ends = np.concatenate([published, *(mean for mean, _, _ in answers)])
            low, high, margin = ends.min(), ends.max(), 0.04 * np.ptp(ends)
            for panel, (mean, colour, error) in zip(panels[row], answers, strict=True):
                panel.plot([low, high], [low, high], color="black", lw=0.8, zorder=1)
                if error is not None:
                    panel.errorbar(published, mean, yerr=error, fmt="none", ecolor=colour, elinewidth=0.5, alpha=0.3)
                panel.scatter(published, mean, s=9, color=colour, linewidths=0, alpha=0.75, zorder=3)
                panel.set(xlabel=f"published {label.axis}", xlim=(low - margin, high + margin))
                panel.set(ylim=(low - margin, high + margin), aspect="equal")
                panel.locator_params(nbins=5)
            panels[row, 0].set_ylabel(f"predicted {label.axis}")
        panels[0, 0].set_title("model as it was", loc="left")
        panels[0, 1].set_title("tuned, by models that never saw the star", loc="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def plot_candidates(found: Findings, path: Path) -> Figure:
    """RMSE of all that was tried over that of a constant offset, a panel per label; what was chosen stands out."""
    with matplotlib.rc_context(STYLE):
        size = 2.4 + 2.2 * len(found.learned), 0.9 + 0.2 * len(found.tried)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(found.learned), sharey=True, squeeze=False)[0]
        for column, panel in enumerate(panels):
            _draw_tried(panel, found, column)
        panels[0].set_yticks(np.arange(len(found.tried)), list(map(str, found.tried)))
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def _draw_tried(panel: Axes, found: Findings, column: int) -> None:
    """One label's candidates, the first at 0; lines part the methods."""
    nested, tried = found.scores(found.mean)[column], list(found.tried)
    unit = found.tried[Candidate("offset")][column].rmse
    low, high = ((nested.rmse + sign * nested.error) / unit for sign in (-1, 1))
    panel.axvspan(low, high, color=BLUE, alpha=0.15, lw=0, label="whole procedure (nested)")
    for at, candidate in enumerate(tried):
        score, chosen = found.tried[candidate][column], candidate == found.chosen[column]
        panel.errorbar(
            score.rmse / unit,
            at,
            xerr=score.error / unit,
            fmt="o" if chosen else ".",
            color=VERMILION if chosen else "black",
            elinewidth=0.8,
            label="chosen" if chosen else None,
        )
        if at and candidate.method != tried[at - 1].method:
            panel.axhline(at - 0.5, color=GREY, lw=0.5)
    panel.tick_params(axis="y", length=0)
    panel.set_title(get_label(found.learned[column]).symbol, loc="left")
    panel.set_xlabel("RMSE / that of an offset")


# ---------------------------------------------------------------- files


def results(found: Findings) -> dict[str, Any]:
    """results.json: figures as of every stage, and what is the kit's own."""
    return {
        "protocol": found.protocol,
        **found.figures(),
        "split": "out-of-fold",
        "n_calibration": found.stars.n_stars if found.factors else 0,
        "calibrated": list(found.factors),
        "chosen": {name: str(chosen) for name, chosen in zip(found.learned, found.chosen, strict=True)},
        "chosen_in_folds": [list(map(str, choices)) for choices in found.in_folds],
        "scores": {
            name: {
                "unit": get_label(name).unit,
                "rmse": score.rmse,
                "rmse_error": score.error,
                "unchanged_rmse": before.rmse,
                "gain": score.gain,
            }
            for name, score, before in zip(
                found.learned, found.scores(found.mean), found.scores(found.unchanged), strict=True
            )
        },
        "tried": {
            str(candidate): {name: score.rmse for name, score in zip(found.learned, scores, strict=True)}
            for candidate, scores in found.tried.items()
        },
        "notes": found.notes,
    }


def record(found: Findings, settings: Settings, name: str, fingerprint: str, n_parameters: int) -> dict[str, Any]:
    """stage.json, as `publishing` reads it."""
    stars, (low, high) = found.stars, settings.window
    ranges = {
        label: (float(np.nanmin(values)), float(np.nanmax(values)))
        for label, values in zip(found.learned, found.labels.T, strict=True)
    }
    widths = stars.fwhm[np.isfinite(stars.fwhm)]
    fwhm = float(np.median(widths)) if widths.size else assumed_sharpness(stars.pixels[0]["wavelength"])
    snr = stars.snr[np.isfinite(stars.snr)]
    chosen = [candidate for candidate in found.chosen if candidate.method in ("lora", "full")]
    return {
        "stage": name,
        "fingerprint": fingerprint,
        "recipe": {
            "data": "dataset",
            "labels": found.learned,
            "window": [low, high],
            "n_spectra": int(chosen[0].amount) if chosen else 0,
            "method": settings.method,
            "showings": settings.showings,
            "folds": len(found.in_folds),
        },
        "parent": settings.parent,
        "parent_fingerprint": settings.parent_fingerprint,
        "label_ranges": ranges,
        "fwhm": round(fwhm, 3),
        "snr_range": [round(float(snr.min())), round(float(snr.max()))] if snr.size else None,
        "training_data": f"{len(stars.rows)} spectra of {stars.n_stars} stars in {settings.spectra}, labels of "
        f"{settings.labels}, {low:.0f}-{high:.0f} Angstrom",
        "datasets": [],
        "n_parameters": n_parameters,
        "calibration": found.calibration,
        "survey": f"stars of {settings.labels}",
        "citations": [f"Whoever published the spectra of {settings.spectra} and the labels of {settings.labels}"],
        "weaknesses": weaknesses(found, settings),
        "learning_curve": [],
        "seed": settings.seed,
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def write_findings(
    folder: Path, found: Findings, settings: Settings, fingerprint: str, n_parameters: int, teff: np.ndarray
) -> None:
    """All files beside the model itself; stage.json, which says that the run is done, last.

    Args:
        folder: Of the model.
        n_parameters: Of the model.
        teff: Effective temperatures of the stars as the parent reads them, K: a card needs their range, and the table
            may not have it.
    """
    name = folder.resolve().name
    plot_out_of_fold(found, folder / "figures" / "out_of_fold.png")
    plot_candidates(found, folder / "figures" / "candidates.png")
    (folder / "report.md").write_text(report(found, settings, name))
    told, done = results(found), record(found, settings, name, fingerprint, n_parameters)
    if teff.size:
        done["label_ranges"].setdefault("teff", (float(teff.min()), float(teff.max())))
    write_json(folder / RESULTS_FILE, told)
    with whole_file(folder / DONE_FILE) as partial:
        partial.write_text(json.dumps(done, indent=1) + "\n")
    try:
        write_card(folder, told, card_facts(folder))
    except ValueError as error:
        logger.warning("no card was written: %s", error)
