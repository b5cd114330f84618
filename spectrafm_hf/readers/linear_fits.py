"""1-D FITS images whose wavelength axis is three header words: CRVAL1, CDELT1, CRPIX1 (MILES, STELIB and many more)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning


@dataclass(frozen=True, eq=False)
class LinearSpectrum:
    """What the file says, before any convention of ours.

    Attributes:
        header: Primary header.
        wavelength: Pixel centres, shape (n_pixels,), float64; medium, frame and unit are the library's.
        flux: Shape (n_pixels,), float64, native byte order.
    """

    header: fits.Header
    wavelength: np.ndarray
    flux: np.ndarray


class MissingKeywordError(ValueError):
    """A header lacks a word, or holds no number in it."""


def header_number(header: fits.Header, word: str, path: Path) -> float:
    """A finite number from a primary header.

    Raises:
        MissingKeywordError: The word is absent, or its value is not a finite number.
    """
    value = header.get(word)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise MissingKeywordError(
        f"{path}, HDU 0: header word {word} must hold a number, got {value!r}. "
        "The file is not as the library published it; fetch it again."
    )


def read_linear_fits(path: Path) -> LinearSpectrum:
    """Read a 1-D spectrum from the primary HDU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated or no FITS file, its primary HDU holds no 1-D array, or its wavelengths are
            not positive and increasing.
        MissingKeywordError: CRVAL1, CDELT1 or CRPIX1 is missing or not a number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no spectrum at {path}; a 1-D FITS file is needed. Check the path.")
    try:
        with warnings.catch_warnings():
            # Either harmless (IRAF cards that break the letter of the standard) or followed by an error (a cut file).
            warnings.simplefilter("ignore", AstropyUserWarning)
            with fits.open(path, memmap=False) as hdus:
                header, data = hdus[0].header, hdus[0].data
    except (OSError, ValueError, TypeError, IndexError, fits.VerifyError) as error:
        raise ValueError(
            f"{path}, HDU 0: needs a complete FITS image, but reading failed ({error}). "
            "The file is truncated or no FITS file; copy or fetch it again."
        ) from error
    if data is None or data.ndim != 1 or data.size < 2:
        found = "no data" if data is None else f"shape {data.shape}"
        raise ValueError(f"{path}, HDU 0: needs a 1-D array of at least 2 pixels, got {found}. Is it a spectrum?")
    first, step, reference = (header_number(header, word, path) for word in ("CRVAL1", "CDELT1", "CRPIX1"))
    # FITS counts pixels from 1.
    wavelength = first + step * (np.arange(data.size, dtype=np.float64) + 1.0 - reference)
    if step <= 0 or wavelength[0] <= 0:
        raise ValueError(
            f"{path}, HDU 0: wavelengths must be positive and increasing, got CRVAL1 = {first:.6g} Angstrom, "
            f"CDELT1 = {step:.6g} Angstrom and CRPIX1 = {reference:.6g}. Check the header."
        )
    return LinearSpectrum(header, wavelength, np.asarray(data, dtype=np.float64))
