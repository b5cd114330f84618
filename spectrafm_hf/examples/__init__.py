"""Example stars that ship with the package: small FITS files in the layouts of two surveys, and what they are made of.

They are **synthetic**: no telescope saw them. `training/make_examples.py` wrote them from the labels below, with the
synthesizers of this package, which is why the labels are known exactly, and why the shipped model, which learned from
the same synthesizers, does better on them than on real stars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ExampleStar:
    """One synthetic star.

    Attributes:
        name: What it is asked for by; its file is called so, too.
        what: In words.
        layout: The file's format: `aspcapStar` (7,514 pixels inside the 8,575 of the apStar grid, at rest) or
            `LAMOST LRS` (3,904 pixels; the header carries the redshift).
        labels: What it was made with, K and dex; at least teff, logg and fe_h.
        snr: Signal-to-noise ratio per pixel.
        nuisances: What else the synthesizer was told, dex: no label of the models.
        velocity: The star's radial velocity, km/s; only LAMOST's layout is not at rest.
    """

    name: str
    what: str
    layout: Literal["aspcapStar", "LAMOST LRS"]
    labels: Mapping[str, float]
    snr: float
    nuisances: Mapping[str, float]
    velocity: float = 0.0


EXAMPLES: dict[str, ExampleStar] = {
    star.name: star
    for star in (
        ExampleStar(
            name="h-band-red-giant",
            what="red giant, H band (APOGEE)",
            layout="aspcapStar",
            labels={"teff": 4650.0, "logg": 2.4, "fe_h": -0.1, "mg_fe": 0.06, "o_fe": 0.05},
            snr=150.0,
            nuisances={"c_fe": -0.05, "n_fe": 0.2, "alpha_fe": 0.04},
        ),
        ExampleStar(
            name="h-band-dwarf",
            what="dwarf, H band (APOGEE)",
            layout="aspcapStar",
            labels={"teff": 5300.0, "logg": 4.5, "fe_h": 0.15, "mg_fe": 0.02, "o_fe": -0.03},
            snr=120.0,
            nuisances={"c_fe": 0.0, "n_fe": 0.0, "alpha_fe": 0.02},
        ),
        ExampleStar(
            name="h-band-metal-poor-giant",
            what="metal-poor giant, H band (APOGEE)",
            layout="aspcapStar",
            labels={"teff": 4750.0, "logg": 1.7, "fe_h": -1.5, "mg_fe": 0.3, "o_fe": 0.4},
            snr=150.0,
            nuisances={"c_fe": -0.4, "n_fe": 0.4, "alpha_fe": 0.25},
        ),
        ExampleStar(
            name="optical-solar-like",
            what="solar-like star, optical (LAMOST)",
            layout="LAMOST LRS",
            labels={"teff": 5772.0, "logg": 4.44, "fe_h": 0.0},
            snr=100.0,
            nuisances={},
            velocity=24.0,
        ),
        ExampleStar(
            name="optical-metal-poor",
            what="metal-poor star, optical (LAMOST)",
            layout="LAMOST LRS",
            labels={"teff": 5200.0, "logg": 3.3, "fe_h": -1.7},
            snr=80.0,
            nuisances={},
            velocity=-152.0,
        ),
    )
}
"""Name -> star, in the order in which they are shown."""

HEADER_WORDS = {"teff": "SYNTEFF", "logg": "SYNLOGG", "fe_h": "SYNFE_H", "mg_fe": "SYNMG_FE", "o_fe": "SYNO_FE"}
"""Label -> word of the primary header of an example file that holds what it was made with."""


def example(name: str) -> Path:
    """The FITS file of a shipped example star, for `spectrafm_hf.predict` or `readers.any_file.read_spectrum`.

    Raises:
        ValueError: None of that name ships, or this installation lacks its file.
    """
    path = Path(__file__).parent / f"{name}.fits"
    if name not in EXAMPLES or not path.is_file():
        raise ValueError(
            f"no example star {name!r} ships with this installation, only {', '.join(EXAMPLES)}; choose one of them, "
            "or install the package again."
        )
    return path
