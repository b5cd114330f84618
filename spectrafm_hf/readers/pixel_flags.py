"""What the pixel bitmasks of the surveys mean, bit by bit, and which bits make a pixel bad here.

A bitmask says what happened to a pixel; whether that makes it bad is a judgement, made once, in these tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .fits_file import as_float64

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
"""Flux and inverse variance are kept as float32 in datasets; what overflows there is no measurement."""


@dataclass(frozen=True)
class PixelBit:
    """One bit of a pixel bitmask.

    Attributes:
        bit: Its place; the value is 2**bit.
        name: As the survey calls it.
        bad: Whether a pixel with it is bad here.
        reason: What it means, and why it is bad or not.
    """

    bit: int
    name: str
    bad: bool
    reason: str


APOGEE_PIXMASK: tuple[PixelBit, ...] = (
    PixelBit(0, "BADPIX", True, "in the bad pixel map, or a strong jump from persistence"),
    PixelBit(1, "CRPIX", True, "cosmic ray"),
    PixelBit(2, "SATPIX", True, "saturated"),
    PixelBit(3, "UNFIXABLE", True, "the up-the-ramp fit could not repair it"),
    PixelBit(4, "BADDARK", True, "bad in the dark frame"),
    PixelBit(5, "BADFLAT", True, "bad in the flat field"),
    PixelBit(6, "BADERR", True, "error set very high"),
    PixelBit(7, "NOSKY", True, "no sky fibre saw this wavelength, so sky was not subtracted"),
    PixelBit(8, "LITTROW_GHOST", False, "may hold a ghost; the survey warns only, and the ghost is faint"),
    PixelBit(
        9, "PERSIST_HIGH", False, "high persistence; the error is raised since DR13, and a third of blue would go"
    ),
    PixelBit(10, "PERSIST_MED", False, "medium persistence; as above"),
    PixelBit(11, "PERSIST_LOW", False, "low persistence; as above"),
    PixelBit(12, "SIG_SKYLINE", True, "bright sky line: residuals exceed the error; ASPCAP inflates it 100-fold"),
    PixelBit(13, "SIG_TELLURIC", False, "telluric absorption was divided out and its error is in the error"),
    PixelBit(14, "NOT_ENOUGH_PSF", True, "less than half of the profile fell on good pixels"),
)
"""APOGEE_PIXMASK (SDSS DR17, irspec/apogee-bitmasks), in apStar files and in the APOGEE HDUs of SDSS-V's mwmStar.

The survey's own pipeline calls bits 0-7 and 14 bad and the others warnings; here SIG_SKYLINE is bad too, because ASPCAP
(Garcia Perez et al. 2016, AJ 151, 144) takes such pixels out by their error, which apStar files do not."""

LAMOST_PIXMASK: tuple[PixelBit, ...] = (
    PixelBit(0, "BADCCD", True, "bad pixel of the CCD"),
    PixelBit(1, "BADPROFILE", True, "bad profile in the extraction"),
    PixelBit(2, "NOSKY", True, "no sky was measured at this wavelength"),
    PixelBit(3, "BRIGHTSKY", True, "sky too bright"),
    PixelBit(4, "BADCENTER", True, "the fibre's trace leaves the CCD"),
    PixelBit(5, "NODATA", True, "no good data"),
)
"""Six bits of LAMOST's ANDMASK and ORMASK (LAMOST data release documents; DR1 and the pilot have 0 and 1 only).

ANDMASK: so in **every** exposure: bad. ORMASK: so in at least one; the combination left that exposure out: not bad."""

BOSS_PIXMASK: tuple[PixelBit, ...] = (
    PixelBit(16, "NEARBADPIXEL", False, "a bad pixel within 3 pixels of the trace; the extraction masked it"),
    PixelBit(17, "LOWFLAT", False, "flat field below 0.5; the error says so"),
    PixelBit(18, "FULLREJECT", True, "fully rejected in the extraction"),
    PixelBit(19, "PARTIALREJECT", False, "some pixels rejected; the error says so"),
    PixelBit(20, "SCATTEREDLIGHT", False, "scattered light significant, and subtracted"),
    PixelBit(21, "CROSSTALK", False, "cross-talk significant, and modelled"),
    PixelBit(22, "NOSKY", True, "sky unknown at this wavelength"),
    PixelBit(23, "BRIGHTSKY", True, "sky far above the star: the survey advises against such pixels"),
    PixelBit(24, "NODATA", True, "no data in the combination"),
    PixelBit(25, "COMBINEREJ", True, "rejected in the combination"),
    PixelBit(26, "BADFLUXFACTOR", True, "low flux calibration"),
    PixelBit(27, "BADSKYCHI", True, "sky residuals 3 times their error"),
    PixelBit(28, "REDMONSTER", True, "a stretch of bad sky residuals"),
)
"""SPPIXMASK (SDSS bitmasks), in the BOSS HDUs of SDSS-V's mwmStar; bits 0-15 are about fibres and judge no pixel.

mwmStar keeps flags as float32, which holds the highest bits of a sum and may lose the lowest; all bits above
survive."""


def bits_value(bits: Iterable[PixelBit]) -> int:
    """Sum of 2**bit over the bad bits of a table."""
    return sum(1 << bit.bit for bit in bits if bit.bad)


def flagged(bitmask: np.ndarray, bad_bits: int) -> np.ndarray:
    """Pixels with a bad bit: True = bad. Any numeric type, float too (SDSS-V); not finite or negative counts as bad.

    Negative values are a bitmask of unknown meaning (-1 is all bits), so they are bad.
    """
    if bitmask.dtype.kind == "f":
        odd = ~(np.isfinite(bitmask) & (bitmask >= 0) & (bitmask < 2.0**62))
        whole = np.where(odd, 0, bitmask).astype(np.int64)
    else:
        whole = np.asarray(bitmask).astype(np.int64)
        odd = whole < 0
    return ((whole & bad_bits) != 0) | odd


def ivar_of(error: np.ndarray) -> np.ndarray:
    """1-sigma errors -> inverse variance, float64; 0 where an error is 0, negative, NaN, infinite or absurdly small."""
    error = as_float64(error)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # The smallest errors are left out before the division, for speed: each infinity it makes is slow.
        measured = (error > _LARGEST_FLOAT32**-0.5) & (error < np.inf)
        return np.divide(1.0, error * error, out=np.zeros(error.shape), where=measured)


def trusted(
    flux: np.ndarray, ivar: np.ndarray | None, bad_pixel: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Make flux, ivar and bad_pixel tell one story: a pixel without a usable flux or ivar is bad, and bad has ivar 0.

    Args:
        flux: Shape (n_pixels,), any real type.
        ivar: Inverse variance, or None if not published.
        bad_pixel: What is known to be bad so far.

    Returns:
        flux (float64, native, finite: 0 where it was not), ivar (0 = no information; never NaN or infinite) and
        bad_pixel.
    """
    flux = as_float64(flux)
    with np.errstate(invalid="ignore"):
        usable = np.abs(flux) < _LARGEST_FLOAT32
    bad_pixel = bad_pixel | ~usable
    flux = np.where(usable, flux, 0.0)
    if ivar is None:
        return flux, None, bad_pixel
    ivar = as_float64(ivar)
    with np.errstate(invalid="ignore"):
        bad_pixel = bad_pixel | ~((ivar > 0) & (ivar < _LARGEST_FLOAT32))
    return flux, np.where(bad_pixel, 0.0, ivar), bad_pixel
