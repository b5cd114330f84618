"""MILES and STELIB as datasets, after the cuts of `libraries.load_library`.

MILES spectra share one grid; STELIB shifted each spectrum to rest, so its pixels differ and every row brings its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..spectra import Spectrum
from .libraries import Library, load_library
from .rows import FILE, FLUX_SCALE, Layout, WavelengthGrid, columns_of_spectra
from .spectra_builder import Plan, Rows, SpectraBuilder, SpectraConfig, count_splits, digest_of, in_chunks
from .splits import SPLITS, split_of


@lru_cache(maxsize=2)
def _library(name: str, cache_dir: str | None) -> Library:
    """Once per process: reading all of MILES takes a second."""
    return load_library(name, cache_dir=None if cache_dir is None else Path(cache_dir))


def shared_wavelength(spectra: list[Spectrum]) -> np.ndarray | None:
    """The grid of all these spectra, or None if they differ."""
    first = spectra[0].wavelength
    return first if all(np.array_equal(spectrum.wavelength, first) for spectrum in spectra) else None


@dataclass
class LibraryConfig(SpectraConfig):
    """A stellar library.

    Args:
        cache_dir: Where the library is, or is fetched to; see `readers.mangadap_wheel.cache_folder`.
    """

    name: str = "miles"
    cache_dir: str | None = None
    PLACES: ClassVar[tuple[str, ...]] = ("cache_dir",)

    def settings(self) -> dict[str, object]:
        return {"name": self.name}

    def plan(self) -> Plan:
        library = _library(self.dataset, self.cache_dir)
        spectra = library.spectra
        if not spectra:
            raise ValueError(f"no spectrum of {self.dataset} passed the cuts:\n{library.report}")
        wavelength = shared_wavelength(spectra)
        grid = None
        if wavelength is not None:
            grid = WavelengthGrid.of_instrument(wavelength, self.dataset, spectra[0].fwhm, spectra[0].resolving_power)
        ids = np.array([spectrum.star_id for spectrum in spectra], dtype=object)
        split = np.array([split_of(name) for name in ids], dtype=object)
        return Plan(
            in_chunks({"number": np.arange(len(spectra))}),
            count_splits(split, SPLITS),
            Layout(None if wavelength is None else wavelength.size, (FLUX_SCALE, FILE)),
            library.report,
            grid,
            digest=digest_of(ids),
        )

    def read(self, chunk: dict[str, np.ndarray]) -> Rows:
        library = _library(self.dataset, self.cache_dir)
        spectra = [library.spectra[number] for number in chunk["number"]]
        columns = columns_of_spectra(spectra, shared_wavelength(library.spectra) is not None)
        columns["file"] = np.array([str(spectrum.meta.get("file", "")) for spectrum in spectra], dtype=object)
        return Rows(columns, np.array([split_of(spectrum.star_id) for spectrum in spectra], dtype=object))


@dataclass
class MilesConfig(LibraryConfig):
    """MILES: 767 F, G and K stars after the cuts, 3541-7410 Angstrom, 2.5 Angstrom FWHM."""

    name: str = "miles"
    dataset: ClassVar[str] = "miles"


@dataclass
class StelibConfig(LibraryConfig):
    """STELIB: 151 F, G and K stars after the cuts, 3200-9900 Angstrom, 3.1 Angstrom FWHM."""

    name: str = "stelib"
    dataset: ClassVar[str] = "stelib"


class Miles(SpectraBuilder):
    """MILES for `datasets`."""

    BUILDER_CONFIG_CLASS = MilesConfig


class Stelib(SpectraBuilder):
    """STELIB for `datasets`."""

    BUILDER_CONFIG_CLASS = StelibConfig
