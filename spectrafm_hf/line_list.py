"""Which element absorbs where: lines of cool stars, 3,700-8,900 Angstrom and the H band, each with its source.

`line_list.csv` holds wavelengths in air, as the sources print them; here they become vacuum Angstrom. Its H-band lines
are those of linemake that should be strong in cool stars, that no other element drowns, and that the synthesizer shows
where they should be: atoms as a dip of the flux, molecules and Mg as pixels that darken with their abundance.
`tests/test_explain.py` looks at each again.

A molecule stands for the element that its abundance hangs on most in an oxygen-rich star: OH for O, CO for C, CN for N.
A line of CO is a band head: where the lines at the head are deepest together.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .spectra import air_to_vacuum

LINE_LIST_FILE = Path(__file__).with_name("line_list.csv")

HYDROGEN_HALF_WIDTH = 5.0
"""Angstrom: hydrogen lines are wide by themselves, whatever the spectrograph."""


@dataclass(frozen=True)
class SpectralLine:
    """One line.

    Attributes:
        species: As astronomers write it: `Fe I`, `OH`, `H I`.
        element: Whose abundance it tells, e.g. `O` for OH.
        wavelength: Vacuum Angstrom, rest frame.
        source: Where wavelength and identification come from.
    """

    species: str
    element: str
    wavelength: float
    source: str


@cache
def read_line_list() -> tuple[SpectralLine, ...]:
    """All lines, in order of wavelength."""
    with LINE_LIST_FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    vacuum = air_to_vacuum(np.array([float(row["wavelength_air"]) for row in rows]))
    lines = (
        SpectralLine(row["species"], row["element"], float(wavelength), row["source"])
        for row, wavelength in zip(rows, vacuum, strict=True)
    )
    return tuple(sorted(lines, key=lambda line: line.wavelength))


def lines_by_element(lines: Sequence[SpectralLine]) -> dict[str, list[SpectralLine]]:
    """Element -> its lines, the element with the most of them first."""
    elements: dict[str, list[SpectralLine]] = {}
    for line in lines:
        elements.setdefault(line.element, []).append(line)
    return dict(sorted(elements.items(), key=lambda item: (-len(item[1]), item[0])))


def line_pixels(wavelength: np.ndarray, lines: Sequence[SpectralLine], resolving_power: float) -> np.ndarray:
    """True for the pixels of these lines: within half the FWHM of the line-spread function, lambda / (2 R).

    Args:
        wavelength: Pixel centres, shape (n_pixels,), vacuum Angstrom, any order; 0 = no pixel there.
        lines: Which lines; those of hydrogen are at least `HYDROGEN_HALF_WIDTH` wide to either side.
        resolving_power: lambda / FWHM of the spectrograph.

    Returns:
        Shape (n_pixels,), bool.
    """
    chosen = np.zeros(wavelength.shape, dtype=bool)
    for line in lines:
        half_width = line.wavelength / (2 * resolving_power)
        if line.element == "H":
            half_width = max(half_width, HYDROGEN_HALF_WIDTH)
        chosen |= np.abs(wavelength - line.wavelength) <= half_width
    return chosen
