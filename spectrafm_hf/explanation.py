"""What `explain` found about a model: numbers for JSON, a report to be read, and where it uses the wrong lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .labels import LABELS
from .line_list import SpectralLine

RIGHT_LINES = 0.8
"""Area under the ROC curve from which on a label is said to follow the lines of its element."""

FOLLOWS, CROSS_TALK = 0.5, 0.3
"""dex per dex: a label should follow its own abundance by more than the first, and others by less than the second."""

ENOUGH_PIXELS = 20
"""An element with fewer pixels is not held against a label: its area is known too badly."""

SYMBOLS = {label.name: label.symbol for label in LABELS}
SYMBOLS |= {"c_fe": "[C/Fe]", "n_fe": "[N/Fe]", "alpha_fe": "[alpha/Fe]"}
UNITS = {label.name: label.unit for label in LABELS}

PUBLISHED_PEAKS = (
    *(15433.0, 15483.0, 15770.0, 15893.0, 15959.0, 15970.0, 16372.0, 16386.0, 16530.0, 16629.0, 16660.0, 16812.5),
    *(16877.0, 16910.0),
)
"""Where the attention of the published network peaks, vacuum Angstrom (Koblischke & Bovy 2024, Fig. 5)."""

Peak = tuple[float, str]
"""Vacuum Angstrom, and the elements whose lines are there, e.g. `Mg/Fe`."""


@dataclass(frozen=True)
class LineScore:
    """How well the pixels of a label's own element come before all others; areas under the ROC curve.

    Attributes:
        label, element: E.g. `mg_fe` and `Mg`.
        n_lines, n_pixels: Listed in the range, and their pixels.
        sensitivity_auc: By `explain.sensitivity`, against all other pixels: the causal score.
        among_lines_auc: The same against the pixels of other elements' lines only; NaN if there are none.
        responsive_auc: By sensitivity, for the pixels that the synthesizer darkens most with the abundance; NaN where
            it cannot change it alone.
        attention_auc: By attention.
    """

    label: str
    element: str
    n_lines: int
    n_pixels: int
    sensitivity_auc: float
    among_lines_auc: float
    responsive_auc: float
    attention_auc: float


@dataclass(frozen=True)
class Occlusion:
    """How far labels move when the lines of an element are hidden, and when other pixels are.

    Attributes:
        elements: Whose lines.
        n_stars: In how many spectra.
        moved: Mean over stars of |change of the label|, shape (n_labels, n_elements), K and dex.
        moved_spread: Standard deviation of that between stars.
        control: As `moved`, with matched controls hidden; mean over draws of them.
        control_spread: Standard deviation of that between draws.
        n_pixels: Hidden of each element, (n_elements,).
        depth, control_depth: Mean 1 - flux of the hidden pixels and of their controls, (n_elements,): near each other,
            except where an element has the deepest lines there are.
    """

    elements: list[str]
    n_stars: int
    moved: np.ndarray
    moved_spread: np.ndarray
    control: np.ndarray
    control_spread: np.ndarray
    n_pixels: np.ndarray
    depth: np.ndarray
    control_depth: np.ndarray

    @property
    def excess(self) -> np.ndarray:
        """By how much more than its controls each element moves each label, (n_labels, n_elements), K and dex."""
        return self.moved - self.control


@dataclass(frozen=True)
class Explanation:
    """Everything about one model.

    Attributes:
        label_names: Of the model.
        survey: Whose synthetic stars were asked.
        n_stars: How many, of all kinds together.
        wavelength: Shape (n_pixels,), vacuum Angstrom.
        depth: Mean 1 - flux of these stars, (n_pixels,).
        lines: Those of the list in range.
        pixels: Element -> pixels of its lines, (n_pixels,), bool; the element with the most lines first.
        attention: Kind of star -> (n_labels, n_pixels), 1 = even.
        sensitivity: (n_labels, n_pixels), mean over line widths, K and dex.
        element_auc: Element -> area under the ROC curve of its pixels by `sensitivity`, (n_labels,).
        scores: One per label that has an element of its own with lines in range.
        occlusion: See `Occlusion`.
        abundances: What was changed for `response`.
        response: (n_labels, n_abundances), K or dex per dex.
        peaks: Kind of star -> per label, where attention is highest.
    """

    label_names: list[str]
    survey: str
    n_stars: int
    wavelength: np.ndarray
    depth: np.ndarray
    lines: list[SpectralLine]
    pixels: dict[str, np.ndarray]
    attention: dict[str, np.ndarray]
    sensitivity: np.ndarray
    element_auc: dict[str, np.ndarray]
    scores: list[LineScore]
    occlusion: Occlusion
    abundances: list[str]
    response: np.ndarray
    peaks: dict[str, list[list[Peak]]]

    def wrong_lines(self) -> list[str]:
        """Where the model uses the wrong lines, in plain sentences; empty if nowhere."""
        return [sentence for score in self.scores for sentence in _complaints(self, score)]

    def report(self) -> str:
        """All of it, to be read."""
        sections = (_about_lines, _about_occlusion, _about_response, _about_attention)
        verdict = self.wrong_lines() or ["No label was found to use the wrong lines."]
        return "\n\n".join("\n".join(part) for part in (*(section(self) for section in sections), verdict))

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the curves, as JSON holds them: NaN becomes None."""
        hidden = self.occlusion
        return {
            "survey": self.survey,
            "n_stars": self.n_stars,
            "n_stars_hidden": hidden.n_stars,
            "lines": {f"{score.label}_auc": _number(score.sensitivity_auc) for score in self.scores},
            "scores": {
                score.label: {key: _number(value) for key, value in vars(score).items()} for score in self.scores
            },
            "element_auc": {element: self._by_label(areas) for element, areas in self.element_auc.items()},
            "occlusion": {
                element: {
                    "moved": self._by_label(hidden.moved[:, column]),
                    "moved_spread": self._by_label(hidden.moved_spread[:, column]),
                    "control": self._by_label(hidden.control[:, column]),
                    "control_spread": self._by_label(hidden.control_spread[:, column]),
                    "n_pixels": int(hidden.n_pixels[column]),
                    "depth": _number(hidden.depth[column]),
                    "control_depth": _number(hidden.control_depth[column]),
                }
                for column, element in enumerate(hidden.elements)
            },
            "response": {name: self._by_label(self.response[:, i]) for i, name in enumerate(self.abundances)},
            "attention_peaks": {
                kind: {
                    name: [list(peak) for peak in found] for name, found in zip(self.label_names, of_kind, strict=True)
                }
                for kind, of_kind in self.peaks.items()
            },
            "wrong_lines": self.wrong_lines(),
        }

    def save_figures(self, folder: str | Path) -> list[Path]:
        """Draw `attention.png`, and `attention_and_causal.png` if a label has lines of its own; their paths."""
        from .plots import plot_attention, plot_attention_and_causal

        wavelengths = {
            element: [line.wavelength for line in self.lines if line.element == element] for element in self.pixels
        }
        drawn = [Path(folder) / "attention.png"]
        names = self.label_names
        plot_attention(self.wavelength, self.attention, names, drawn[0], wavelengths, self.peaks, PUBLISHED_PEAKS)
        if self.scores:
            drawn.append(Path(folder) / "attention_and_causal.png")
            rows = [names.index(score.label) for score in self.scores]
            plot_attention_and_causal(
                self.wavelength,
                1 - self.depth,
                {kind: curves[rows] for kind, curves in self.attention.items()},
                self.sensitivity[rows],
                [score.label for score in self.scores],
                {score.element: self.pixels[score.element] for score in self.scores},
                [(score.attention_auc, score.sensitivity_auc) for score in self.scores],
                drawn[1],
            )
        return drawn

    def _by_label(self, values: np.ndarray) -> dict[str, float | None]:
        return {name: _number(value) for name, value in zip(self.label_names, values, strict=True)}


def _number(value: Any) -> Any:
    """A number of JSON: None for NaN; words and counts stay."""
    if isinstance(value, (str, int)):
        return value
    return float(value) if np.isfinite(value) else None


# ---------------------------------------------------------------- in words


def _complaints(found: Explanation, score: LineScore) -> Iterator[str]:
    """What speaks against one label reading the lines of its own element."""
    row, symbol, own, auc = (
        found.label_names.index(score.label),
        SYMBOLS[score.label],
        score.element,
        score.sensitivity_auc,
    )
    hidden = found.occlusion
    if auc < 0.5:
        yield f"{symbol} does not follow the lines of {own} (AUC {auc:.2f}; 0.5 = chance): it uses the wrong lines."
    elif auc < RIGHT_LINES:
        yield f"{symbol} follows the lines of {own} little more than other pixels (AUC {auc:.2f}; 0.5 = chance)."
    others = {
        element: found.element_auc[element][row]
        for element, n_pixels in zip(hidden.elements, hidden.n_pixels, strict=True)
        if element != own and n_pixels >= ENOUGH_PIXELS
    }
    first = max(others, key=lambda element: others[element], default=own)
    if auc < RIGHT_LINES and others.get(first, 0.0) > auc:
        yield f"{symbol} follows the lines of {first} more than those of {own} (AUC {others[first]:.2f})."

    column = hidden.elements.index(own)
    moved, control, spread = (of[row, column] for of in (hidden.moved, hidden.control, hidden.control_spread))
    if moved <= control + 2 * spread:
        yield (
            f"Hiding the {score.n_lines} lines of {own} moves {symbol} by {moved:.4f} dex, hiding as many pixels "
            f"elsewhere by {control:.4f} +- {spread:.4f} dex: it does not hang on them."
        )

    slopes = dict(zip(found.abundances, found.response[row], strict=True))
    if (slope := slopes.pop(score.label, np.nan)) < FOLLOWS:
        yield f"Of a change of 1 dex in {symbol} alone it sees {slope:.2f} dex."
    for name, cross in slopes.items():
        if abs(cross) > CROSS_TALK:
            yield f"A change of 1 dex in {SYMBOLS[name]} alone moves {symbol} by {cross:+.2f} dex."


def _about_lines(found: Explanation) -> Iterator[str]:
    yield f"{found.n_stars} synthetic stars of {found.survey}, giants and dwarfs alike."
    yield ""
    yield "Does a label rise where its element absorbs? Area under the ROC curve (1 = there first of all, 0.5 = chance)"
    yield f"{'label':>10} {'lines of':>9} {'causal':>7} {'among lines':>12} {'by response':>12} {'attention':>10}"
    for score in found.scores:
        areas = (score.sensitivity_auc, score.among_lines_auc, score.responsive_auc, score.attention_auc)
        cells = zip(areas, (7, 12, 12, 10), strict=True)
        areas_told = (f" {area:>{width}.2f}" if np.isfinite(area) else f" {'-':>{width}}" for area, width in cells)
        yield f"{SYMBOLS[score.label]:>10} {score.element:>9}" + "".join(areas_told)


def _about_occlusion(found: Explanation) -> Iterator[str]:
    hidden = found.occlusion
    yield (
        "How far does a label move when all lines of an element are hidden? Against matched pixels elsewhere; "
        f"{hidden.n_stars} stars"
    )
    for row, name in enumerate(found.label_names):
        digits = 1 if UNITS[name] == "K" else 4
        for column in np.argsort(-hidden.excess[row])[:4]:
            yield (
                f"{SYMBOLS[name]:>10} {hidden.elements[column]:>4}: {hidden.moved[row, column]:.{digits}f} "
                f"(stars +- {hidden.moved_spread[row, column]:.{digits}f}) {UNITS[name]}, "
                f"control {hidden.control[row, column]:.{digits}f} +- {hidden.control_spread[row, column]:.{digits}f}"
            )


def _about_response(found: Explanation) -> Iterator[str]:
    yield "Change of a label per dex of one abundance alone"
    yield " " * 10 + "".join(f"{SYMBOLS[name]:>13}" for name in found.abundances)
    for row, name in enumerate(found.label_names):
        digits = 0 if UNITS[name] == "K" else 2
        yield f"{SYMBOLS[name]:>10}" + "".join(f"{slope:>+13.{digits}f}" for slope in found.response[row])


def _about_attention(found: Explanation) -> Iterator[str]:
    yield "Attention is highest at (vacuum Angstrom)"
    for kind, of_kind in found.peaks.items():
        for name, peaks in zip(found.label_names, of_kind, strict=True):
            yield f"{SYMBOLS[name]:>10} of {kind}: " + ", ".join(f"{where:.0f} {what}" for where, what in peaks)
