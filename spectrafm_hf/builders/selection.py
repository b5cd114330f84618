"""Named cuts, each with its reason, and a report of what each one cost.

The report goes into the dataset card: a result means little without the stars that were left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..spectra import Spectrum


@dataclass(frozen=True)
class Cut:
    """One condition on a star.

    Attributes:
        name: Short, for tables.
        keep: True = the star stays.
        reason: One line, with units.
    """

    name: str
    keep: Callable[[Spectrum], bool]
    reason: str


@dataclass(frozen=True)
class CutResult:
    """What one cut cost: stars removed by it and stars remaining after it."""

    name: str
    reason: str
    removed: int
    remaining: int


@dataclass(frozen=True)
class SelectionReport:
    """Cuts in the order they were applied; a star is counted where it first fails.

    Attributes:
        offered: Stars before the first cut.
        cuts: One result per cut.
    """

    offered: int
    cuts: tuple[CutResult, ...]

    @property
    def kept(self) -> int:
        """Stars that passed every cut."""
        return self.cuts[-1].remaining if self.cuts else self.offered

    def to_dict(self) -> dict[str, Any]:
        """For JSON and the dataset card: offered, kept, and the cuts in order."""
        return {"offered": self.offered, "kept": self.kept, "cuts": [asdict(cut) for cut in self.cuts]}

    def __str__(self) -> str:
        """A plain-text table, one line per cut."""
        width = max([len("offered"), *(len(cut.name) for cut in self.cuts)])
        lines = [f"{'cut':<{width}}  removed  remaining  reason", f"{'offered':<{width}}  {'':>7}  {self.offered:>9}"]
        lines += [f"{c.name:<{width}}  {c.removed:>7}  {c.remaining:>9}  {c.reason}" for c in self.cuts]
        return "\n".join(lines)


def select(spectra: Iterable[Spectrum], cuts: Iterable[Cut]) -> tuple[list[Spectrum], SelectionReport]:
    """Apply cuts in order.

    Returns:
        The spectra that pass all of them, in their order; and what each cut cost.
    """
    kept = list(spectra)
    offered = len(kept)
    results = []
    for cut in cuts:
        before = len(kept)
        kept = [spectrum for spectrum in kept if cut.keep(spectrum)]
        results.append(CutResult(cut.name, cut.reason, before - len(kept), len(kept)))
    return kept, SelectionReport(offered, tuple(results))


def has_labels(*names: str) -> Cut:
    """Keep stars with all these labels."""

    def keep(spectrum: Spectrum) -> bool:
        return all(np.isfinite(spectrum.labels.get(name, np.nan)) for name in names)

    return Cut("all_labels", keep, f"{', '.join(names)} all published")


def label_between(name: str, label: str, low: float, high: float, reason: str) -> Cut:
    """Keep stars whose label lies in [low, high], in the label's unit; a missing label fails."""
    return Cut(name, lambda spectrum: bool(low <= spectrum.labels.get(label, np.nan) <= high), reason)


def few_bad_pixels(low: float, high: float, limit: float) -> Cut:
    """Keep spectra with less than the fraction `limit` of bad pixels in [low, high] vacuum Angstrom.

    A spectrum that does not reach an end of the range has no pixels there, which counts as bad.
    """

    def keep(spectrum: Spectrum) -> bool:
        step = np.median(np.diff(spectrum.wavelength))
        inside = (spectrum.wavelength >= low) & (spectrum.wavelength <= high)
        good = np.count_nonzero(inside & ~spectrum.bad_pixel)
        return bool(good * step > (1 - limit) * (high - low))

    return Cut("bad_pixels", keep, f"less than {limit:.0%} of {low:.0f}-{high:.0f} vacuum Angstrom missing or flagged")


ALL_LABELS = has_labels("teff", "logg", "fe_h")
FGK = label_between(
    "fgk",
    "teff",
    3700.0,
    6900.0,
    "3700 <= teff <= 6900 K: hotter stars lose their metal lines, cooler ones are ruled by molecules",
)
MILES_CUTS = (ALL_LABELS, FGK, few_bad_pixels(3600.0, 7400.0, 0.05))
"""Leave 767 of 984 stars. MILES loses none to bad pixels; that cut guards against other releases."""

STELIB_CUTS = (ALL_LABELS, FGK, few_bad_pixels(3600.0, 7400.0, 0.50))
"""Leave 151 of 255. The limit is loose, since telluric bands take 8 % everywhere and one star in five lacks an arm."""
