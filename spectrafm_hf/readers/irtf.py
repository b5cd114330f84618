"""IRTF / SpeX spectral library of cool stars: 0.8-5 micron, R = 2,000.

Source: Rayner, Cushing & Vacca 2009 (ApJS 185, 289); headers of the files. The primary HDU holds three rows: wavelength
(micron), flux density (W m-2 micron-1), 1-sigma error; NaN = missing.

* Medium: **vacuum** (WAVETYPE), and frame: **rest** (the headers say "shifted to zero radial velocity"). Measured in
  HD 101501: Ca II 8544.44 and 8664.52 lie at 8544.25 and 8664.31, Pa beta 12821.59 at 12821.47 vacuum Angstrom, within
  0.1 pixel; the air wavelengths are 2 to 3.5 Angstrom away.
* Resolution: R = 2,000 up to 2.4 micron (SXD), 2,500 beyond (LXD); about 2.2 pixels per element.
* The band between 1.81 and 1.87 micron is left out where the sky is opaque, or given as NaN.
* No labels: the spectral type is in `meta`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..spectra import Spectrum, air_to_vacuum
from .fits_file import FitsFile, as_float64, open_fits
from .pixel_flags import ivar_of, trusted
from .star_names import normalise_star_name

RESOLVING_POWER = 2000.0
"""lambda / FWHM of the short mode, SXD (header word SXD_R)."""

LONGEST_SXD = 24_000.0
"""Angstrom; redward the spectra come from the long mode, LXD, with R = 2,500."""

MICRON = 1e4
"""Angstrom."""


def is_irtf(file: FitsFile) -> bool:
    """Whether the primary HDU has three rows and the words of SpeX's pipeline."""
    hdu = file.hdus[0]
    return len(hdu.shape) == 2 and hdu.shape[0] == 3 and "XUNITS" in hdu.header and "YUNITS" in hdu.header


def read_irtf(path: Path | FitsFile, all_pixels: bool = False, check_sums: bool = True) -> Spectrum:
    """Read one star.

    Args:
        path: FITS file, plain or gzipped; or one that is open.
        all_pixels: Keep the pixels beyond 2.4 micron too; then the resolving power is not constant, so None.
        check_sums: See `fits_file.open_fits`.

    Returns:
        Flux density in W m-2 micron-1.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of another kind, its unit is not micron, or its medium is not told.
    """
    file = open_fits(path, check_sums)
    path, hdu = file.path, file.hdus[0]
    header = hdu.header
    pixels = hdu.image((2,))
    if pixels.shape[0] != 3 or pixels.shape[1] < 2:
        raise ValueError(f"{hdu.where}: needs 3 rows (wavelength, flux, error), got shape {pixels.shape}.")
    if (header.optional_text("XUNITS") or "").lower() not in ("um", "micron", "microns"):
        raise ValueError(f"{hdu.where}: needs wavelengths in micron (XUNITS = 'um'), got {header.get('XUNITS')!r}.")
    wavelength, flux, error = (as_float64(row) for row in pixels)
    wavelength = wavelength * MICRON
    if not (np.isfinite(wavelength).all() and (np.diff(wavelength) > 0).all() and 5e3 < wavelength[0] < 6e4):
        raise ValueError(
            f"{hdu.where}: wavelengths must increase from 0.5 micron or more, got {wavelength[0] / MICRON:.6g} to "
            f"{wavelength[-1] / MICRON:.6g}. The file is damaged; fetch it again."
        )
    if wavelength[-1] > 6e4:
        raise ValueError(f"{hdu.where}: wavelengths must end below 6 micron, got {wavelength[-1] / MICRON:.6g}.")
    medium = (header.optional_text("WAVETYPE") or "").lower()
    if medium not in ("vacuum", "air"):
        raise ValueError(f"{hdu.where}: needs WAVETYPE 'Vacuum' or 'Air', got {header.get('WAVETYPE')!r}.")
    if medium == "air":
        wavelength = air_to_vacuum(wavelength)
    ivar = ivar_of(error)
    if not all_pixels:
        keep = wavelength <= LONGEST_SXD
        wavelength, flux, ivar = wavelength[keep], flux[keep], ivar[keep]
        if wavelength.size < 2:
            raise ValueError(f"{hdu.where}: has no pixels up to 2.4 micron; pass all_pixels=True for the rest.")
    with np.errstate(invalid="ignore"):
        bad_pixel = ~(flux > 0)
    flux, good_ivar, bad_pixel = trusted(flux, ivar, bad_pixel)
    name = header.text("OBJECT")
    return Spectrum(
        wavelength=wavelength,
        flux=flux,
        bad_pixel=bad_pixel,
        star_id=normalise_star_name(name),
        survey="irtf",
        ivar=good_ivar,
        resolving_power=None if all_pixels else RESOLVING_POWER,
        ids={"object": name},
        meta={
            "file": path.name,
            "format": "IRTF",
            "spectral_type": header.optional_text("SPTYPE"),
            "published_velocity": header.optional_number("RV"),
        },
    )
