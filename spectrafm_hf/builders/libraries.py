"""The two stellar libraries, fetched, read and cut: `load_library("miles")`.

Parsed spectra are not cached: reading all of MILES takes a second, and a cache would be one more thing to go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..readers.mangadap_wheel import fetch_libraries
from ..readers.miles import read_miles
from ..readers.stelib import read_stelib
from ..spectra import Spectrum
from .selection import MILES_CUTS, STELIB_CUTS, Cut, SelectionReport, select
from .splits import SPLITS, Split, split_of

_READERS: Mapping[str, tuple[Callable[[Path], list[Spectrum]], Sequence[Cut]]] = {
    "miles": (read_miles, MILES_CUTS),
    "stelib": (read_stelib, STELIB_CUTS),
}


@dataclass(frozen=True)
class Library:
    """Stars of one library after its cuts.

    Attributes:
        name: `miles` or `stelib`.
        spectra: One per observation, in the library's order.
        report: What each cut cost.
    """

    name: str
    spectra: list[Spectrum]
    report: SelectionReport

    def split(self, name: Split) -> list[Spectrum]:
        """The stars of one split, see `splits.split_of`.

        Raises:
            ValueError: There is no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}.")
        return [spectrum for spectrum in self.spectra if split_of(spectrum.star_id) == name]

    def __str__(self) -> str:
        """Counts per split, then the report."""
        counts = ", ".join(f"{name} {len(self.split(name))}" for name in SPLITS)
        return f"{self.name}: {len(self.spectra)} spectra ({counts})\n{self.report}"


def load_library(
    name: str, split: Split | None = None, cache_dir: Path | None = None, cuts: Sequence[Cut] | None = None
) -> Library:
    """Fetch (once), read and cut a library.

    Args:
        name: `miles` or `stelib`.
        split: Keep the stars of this split only; the report still counts the whole library.
        cache_dir: See `readers.mangadap_wheel.cache_folder`.
        cuts: Instead of the library's own; an empty sequence keeps every star.

    Raises:
        ValueError: Unknown library or split.
        LibrariesUnavailableError: Not in the cache and not to be had.
    """
    if name not in _READERS:
        raise ValueError(f"library must be one of {', '.join(_READERS)}, got {name!r}.")
    read, usual_cuts = _READERS[name]
    spectra, report = select(read(fetch_libraries(cache_dir) / name), usual_cuts if cuts is None else cuts)
    library = Library(name, spectra, report)
    return library if split is None else replace(library, spectra=library.split(split))
