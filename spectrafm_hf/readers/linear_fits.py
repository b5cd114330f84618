"""1-D FITS images whose wavelength axis is three header words: CRVAL1, CDELT1, CRPIX1 (MILES, STELIB and many more)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .fits_file import Header, MissingKeywordError, as_float64, open_fits

__all__ = ["LinearSpectrum", "MissingKeywordError", "read_linear_fits"]


SANE = (900.0, 100_000.0)
"""Angstrom; spectra of stars lie inside, and headers in other units or damaged ones mostly outside."""


@dataclass(frozen=True, eq=False)
class LinearSpectrum:
    """What the file says, before any convention of ours.

    Attributes:
        header: Primary header.
        wavelength: Pixel centres, shape (n_pixels,), float64; medium, frame and unit are the library's.
        flux: Shape (n_pixels,), float64, native byte order.
    """

    header: Header
    wavelength: np.ndarray
    flux: np.ndarray


def read_linear_fits(path: Path) -> LinearSpectrum:
    """Read a 1-D spectrum from the primary HDU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated or no FITS file, its primary HDU holds no 1-D array, or its wavelengths are
            not increasing, or outside `SANE`.
        MissingKeywordError: CRVAL1, CDELT1 or CRPIX1 is missing or not a number.
    """
    hdu = open_fits(path).hdus[0]
    if len(hdu.shape) != 1 or hdu.shape[0] < 2:
        found = "no data" if 0 in hdu.shape or not hdu.shape else f"shape {hdu.shape}"
        raise ValueError(f"{path}, HDU 0: needs a 1-D array of at least 2 pixels, got {found}. Is it a spectrum?")
    flux = as_float64(hdu.image((1,)))
    first, step, reference = (hdu.header.number(word) for word in ("CRVAL1", "CDELT1", "CRPIX1"))
    with np.errstate(over="ignore", invalid="ignore"):
        # FITS counts pixels from 1.
        wavelength = first + step * (np.arange(flux.size, dtype=np.float64) + 1.0 - reference)
        increasing = bool((np.diff(wavelength) > 0).all())
    if not increasing or wavelength[0] < SANE[0] or wavelength[-1] > SANE[1]:
        raise ValueError(
            f"{path}, HDU 0: wavelengths must be positive and increasing, {SANE[0]:g} to {SANE[1]:g} Angstrom, got "
            f"CRVAL1 = {first:.6g} Angstrom, CDELT1 = {step:.6g} Angstrom and CRPIX1 = {reference:.6g}. Check the "
            "header."
        )
    return LinearSpectrum(hdu.header, wavelength, flux)
