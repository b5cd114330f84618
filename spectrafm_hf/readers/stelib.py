"""STELIB, version 3.2: 255 spectra of 254 stars, 3200-9900 Angstrom, labels in the headers.

Source: Le Borgne et al. 2003 (A&A 402, 433). Two telescopes: the 1 m Jacobus Kaptein Telescope (214 files) and the
2.3 m at Siding Spring (41). Fluxes are dereddened; zero means that nothing was observed (19 % of all pixels, most of
them redward of 8100 Angstrom). No errors are published, neither for fluxes nor for labels.

What the copy inside sdss-mangadap 4.5.0 says, measured against MILES with the 118 stars that are in both:

* Medium: **air**. Balmer lines of F and A stars lie within 22 km/s of their air wavelengths; vacuum would be 82 km/s.
* Frame: **rest**. Each file was shifted by RADVEL - VHELIO, so CDELT1 = 1 / (1 + v/c) Angstrom; in all but two files
  (HD 48682 A and B, 24 km/s) these header words agree to 1 km/s.
* The wavelength calibration is not as good as that. Median velocity and robust scatter against MILES, stars below
  7600 K: -37 +- 25 km/s in 4000-4400, +22 +- 16 in 4800-5000, +5 +- 13 in 5800-6000, -15 +- 21 in 6400-6600 Angstrom
  (0.5 Angstrom at most); Siding Spring spectra +104 +- 7 falling to +77 +- 11 km/s in 3800-4600 Angstrom (1.3), then
  +50 +- 21 in 4800-5000 and near 0 redward of 5600. They are handed on as published: whoever needs better must
  recalibrate, and a model tested on them must bear it.
* Resolution: 3.1 Angstrom FWHM in 4000-6540 Angstrom (MILES at 2.50 broadened to match 68 stars; 3.0 to 3.3 in two
  thirds of them). The paper says at most 3.
* Telluric bands are in the spectra (MILES has none), at rest with the observer, so shifted with each star.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..spectra import Spectrum, air_to_vacuum
from .linear_fits import read_linear_fits
from .published_labels import read_labels
from .star_names import normalise_star_name

FWHM = 3.1
"""Angstrom; measured, see above."""

NATIVE_STEP = 1.0
"""Angstrom per pixel before the shift to rest (Le Borgne et al. 2003), so CDELT1 / NATIVE_STEP is rest / observed."""

TELLURIC_BANDS: tuple[tuple[str, float, float], ...] = (
    ("O2 gamma", 6272.0, 6320.0),
    ("O2 B", 6862.0, 6946.0),
    ("H2O", 7160.0, 7340.0),
    ("O2 A", 7589.0, 7690.0),
    ("H2O", 8130.0, 8350.0),
    ("H2O", 8950.0, 9800.0),
)
"""Band, first and last wavelength (air Angstrom, at rest with the observer).

Measured here: in these bands the median of 35 O, B and A stars, or that of 81 STELIB / MILES ratios, lies 2 % (gamma,
water) to 70 % (A) below its surroundings. Blue edges include the blur of one resolution element."""

_FILE_NAME = re.compile(r"^STELIB_v3\.2_(?P<star>.+?)(?:lp|ss)?\.fits$")
"""The star's name; `lp` and `ss` tell La Palma from Siding Spring for the one star seen from both (HD 53929)."""


def read_stelib_star(path: Path) -> Spectrum:
    """Read one spectrum.

    The name is the file's, since OBJECT gives an HR number for ten stars (HR2422 in `..._HD047129.fits`).

    Args:
        path: FITS file: flux in HDU 0, a linear air-wavelength axis, TEFF, LOG_G and FE_H (`-` = missing).

    Returns:
        6,700 pixels; `bad_pixel` where the flux is not finite, zero or negative, and in the telluric bands.

    Raises:
        ValueError: The file's name is not STELIB's; or see `read_linear_fits`.
        FileNotFoundError: There is no such file.
    """
    name = _FILE_NAME.match(path.name)
    if name is None:
        raise ValueError(
            f"{path}: a STELIB file is called STELIB_v3.2_<star>.fits; its star's name is taken from there."
        )
    spectrum = read_linear_fits(path)
    header = spectrum.header
    observed = spectrum.wavelength * NATIVE_STEP / header.number("CDELT1")
    telluric = np.zeros(observed.shape, dtype=bool)
    for _, first, last in TELLURIC_BANDS:
        telluric |= (observed >= first) & (observed <= last)
    return Spectrum(
        wavelength=air_to_vacuum(spectrum.wavelength),
        flux=spectrum.flux,
        bad_pixel=telluric | ~(np.isfinite(spectrum.flux) & (spectrum.flux > 0)),
        star_id=normalise_star_name(name["star"]),
        survey="stelib",
        fwhm=FWHM,
        labels=read_labels(
            {name: header.optional_text(word) for name, word in (("teff", "TEFF"), ("logg", "LOG_G"), ("fe_h", "FE_H"))}
        ),
        ids={"stelib": name["star"], "object": header.optional_text("OBJECT") or ""},
        meta={
            "file": path.name,
            "published_name": str(header.get("OBJECT", "")).strip(),
            "spectral_type": str(header.get("SPECTYPE", "")).strip(),
            "telescope": str(header.get("TELESCOP", "")).strip(),
        },
    )


def read_stelib(folder: Path, progress: bool = False) -> list[Spectrum]:
    """Read the library, by file name.

    Args:
        folder: Holds the FITS files.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: The folder is missing or holds no STELIB spectrum.
        ValueError: A spectrum cannot be read; the message names the file.
    """
    paths = sorted(folder.glob("STELIB_v3.2_*.fits"))
    if not paths:
        raise FileNotFoundError(
            f"no STELIB_v3.2_*.fits in {folder}; readers.mangadap_wheel.fetch_libraries() fetches them and returns "
            "the folder above."
        )
    return [read_stelib_star(path) for path in tqdm(paths, desc="STELIB", unit="star", disable=not progress)]
