"""What all APOGEE files on the apStar grid share: the grid, the detectors, and how a star is called.

Facts (SDSS data model of apStar and aspcapStar; Majewski et al. 2017, AJ 154, 94): 8,575 pixels,
log10(lambda) = 4.179 + 6e-6 n, vacuum Angstrom, shifted to rest; three detectors with gaps between them. Stars are
called after their 2MASS position, `2M17334253-1654573` = 17h33m42.53s -16d54m57.3s (J2000), a few otherwise.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from ..spectra import APOGEE_DETECTORS, apogee_wavelength, apstar_wavelength
from .fits_file import Hdu, Header
from .star_names import normalise_star_name

N_PIXELS = 8575

LARGEST_OFFSET = 60.0
"""Arcsec between a header's position and the one in the star's name. Proper motions since 2MASS are smaller for all
stars but Barnard's; a header of another star is farther away."""

_NAME = re.compile(r"2M(\d{2})(\d{2})(\d{2})(\d{2})([+-])(\d{2})(\d{2})(\d{2})(\d)")


@functools.cache
def grid(all_pixels: bool) -> np.ndarray:
    """Wavelengths, vacuum Angstrom, rest frame; shape (8575,) or, on the detectors, (7514,). Shared: do not write."""
    wavelength = apstar_wavelength() if all_pixels else apogee_wavelength()
    wavelength.setflags(write=False)
    return wavelength


@functools.cache
def in_gap() -> np.ndarray:
    """Pixels of the 8,575 that lie on no detector; shape (8575,), bool. Shared: do not write."""
    gap = np.ones(N_PIXELS, dtype=bool)
    for detector in APOGEE_DETECTORS:
        gap[detector] = False
    gap.setflags(write=False)
    return gap


def on_detectors(pixels: np.ndarray) -> np.ndarray:
    """Shape (8575,) -> (7514,)."""
    return np.concatenate([pixels[detector] for detector in APOGEE_DETECTORS])


def check_grid(hdu: Hdu) -> None:
    """Refuse an image that is not on the apStar grid.

    Raises:
        ValueError: The number of pixels or a wavelength word differs; the message says how.
    """
    if not hdu.shape or hdu.shape[-1] != N_PIXELS:
        raise ValueError(
            f"{hdu.where}: needs {N_PIXELS} pixels on the apStar grid, got shape {hdu.shape}. "
            "Is it another format, or are its HDUs out of order?"
        )
    words = {word: hdu.header.number(word) for word in ("CRVAL1", "CDELT1")} | {
        "CRPIX1": float(hdu.header.optional_number("CRPIX1") or 1.0)
    }
    # 1e-9 in log10(lambda) per pixel adds up to 0.3 Angstrom at the red end: the words must be the grid's to rounding.
    first = words["CRVAL1"] + (1.0 - words["CRPIX1"]) * words["CDELT1"]
    if abs(first - 4.179) > 1e-8 or abs(words["CDELT1"] - 6e-6) > 1e-12:
        raise ValueError(
            f"{hdu.where}: needs the apStar grid, CRVAL1 = 4.179, CDELT1 = 6e-6 (log10 of vacuum Angstrom), got "
            + ", ".join(f"{word} = {value:.10g}" for word, value in words.items())
            + ". The header is damaged or the file was rebinned."
        )


def star_of(path: Path, header: Header, words: tuple[str, ...]) -> str | None:
    """Name of the star from a header, checked against the file's name and the header's position.

    Args:
        path: The file.
        header: Primary header; RA and DEC in degrees are compared with the name where both are there.
        words: Header words that may hold the name; the first that does counts.

    Returns:
        Normalised name, or None where the header has none.

    Raises:
        ValueError: File name, header and position do not belong to one star.
    """
    name = next((text for word in words if (text := header.optional_text(word))), None)
    if name in (None, "None"):
        return None
    star = normalise_star_name(str(name))
    named, called = _NAME.search(star), _NAME.search(path.name)
    if called and named and called[0] != named[0]:
        raise ValueError(
            f"{path}, HDU 0: is called after {called[0]} but its header is that of {named[0]}. "
            "The file was renamed, mixed up or damaged; fetch it again."
        )
    ra, dec = header.optional_number("RA"), header.optional_number("DEC")
    if named and ra is not None and dec is not None:
        hours, minutes, seconds, hundredths, sign, degrees, arcmin, arcsec, tenths = named.groups()
        ra_name = 15 * (int(hours) + int(minutes) / 60 + (int(seconds) + int(hundredths) / 100) / 3600)
        dec_name = int(degrees) + int(arcmin) / 60 + (int(arcsec) + int(tenths) / 10) / 3600
        dec_name = -dec_name if sign == "-" else dec_name
        wrapped = (ra - ra_name + 180) % 360 - 180
        offset = 3600 * float(np.hypot(wrapped * np.cos(np.radians(dec_name)), dec - dec_name))
        if offset > LARGEST_OFFSET:
            raise ValueError(
                f"{path}, HDU 0: {named[0]} lies {offset:.0f} arcsec from the header's RA = {ra:.6g}, DEC = {dec:.6g} "
                f"degrees, more than {LARGEST_OFFSET:.0f}. Name and header belong to two stars; fetch the file again."
            )
    return star
