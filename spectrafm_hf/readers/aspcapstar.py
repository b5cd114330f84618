"""aspcapStar files: the spectrum APOGEE's pipeline ASPCAP fitted, and its best-fit model; SDSS DR10 to DR17.

Source: SDSS data model of aspcapStar; Garcia Perez et al. 2016 (AJ 151, 144). HDU 1 is the observed flux, HDU 2 its
1-sigma error, HDU 3 the best-fit synthetic spectrum, each (8575,) on the apStar grid: vacuum Angstrom, rest frame,
pseudo-continuum-normalised. HDU 4 is a table of one row: FPARAM is what the fit gave (raw), PARAM the same after
calibration, in the order Teff, log g, log vmicro, [M/H], [C/M], [N/M], [alpha/M], log vsini, -; -9999 = missing.

Which pixels are bad. There is no bitmask. A pixel is bad if its flux or error is not finite, its error is 0 or
negative, or its error exceeds `LARGEST_ERROR`. Measured on four DR13 stars: gaps have flux = error = model = 0; pixels
that were not observed have flux 0 and error 10 (DR17: 0.0001 and 1e10); beside sky lines and on bad pixels ASPCAP
inflates the error about a hundredfold, so errors fall into two groups, below 0.2 and from 1 to 100. A pixel of the
model is bad where the model is 0 (gaps).

The rule of Koblischke & Bovy 2024 (flux below 0.05 or above 1.2 is missing) is not applied here: it is a cut on the
value itself, which hides deep lines and emission, and belongs to whoever imitates that paper; `PAPER_FLUX_RANGE` says
it once.

Labels come from the allStar catalogue (`readers.allstar`). The table here holds [M/H], not [Fe/H], and the order of its
elements changed between releases; on request Teff and log g are read, calibrated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ..spectra import APOGEE_RESOLVING_POWER, Spectrum
from .apogee_grid import N_PIXELS, check_grid, grid, on_detectors, star_of
from .fits_file import FitsFile, Hdu, as_float64, open_fits
from .pixel_flags import ivar_of, trusted
from .published_labels import read_labels
from .star_names import normalise_star_name

LARGEST_ERROR = 0.5
"""Of the continuum; a pixel known no better than this says nothing about a flux between 0 and 1."""

PAPER_FLUX_RANGE = (0.05, 1.2)
"""Flux that Koblischke & Bovy 2024 (arXiv 2411.04750) keep; a cut of theirs, not a property of the file."""

NORMALISED = (0.3, 2.0)
"""Where the median of a normalised spectrum may lie; outside, the HDUs are not what they should be."""

NAME_WORDS = ("OBJ", "OBJID", "APOGEE_ID", "OBJECT")


def is_aspcapstar(file: FitsFile) -> bool:
    """Whether the HDUs are those of an aspcapStar file, in whatever order of the three images."""
    if len(file.hdus) < 5:
        return False
    images = all(hdu.shape == (N_PIXELS,) and hdu.is_image for hdu in file.hdus[1:4])
    return images and {"fparam", "aspcapflag"} <= {name.lower() for name in file.hdus[4].columns}


def _star(path: Path, file: FitsFile) -> str:
    star = star_of(path, file.primary, NAME_WORDS)
    if star is None and len(file.hdus) > 4 and "apogee_id" in [name.lower() for name in file.hdus[4].columns]:
        star = normalise_star_name(str(file.hdus[4].column("APOGEE_ID")[0]))
    if star is None:
        raise ValueError(
            f"{path}, HDU 0: needs the star's name in one of {', '.join(NAME_WORDS)}, or APOGEE_ID in HDU 4; found "
            "none. Without it the star's split is unknown. Fetch the file again."
        )
    return star


def _check_normalised(hdu: Hdu, flux: np.ndarray) -> None:
    """Refuse what cannot be a normalised spectrum: errors (near 0.01) or fluxes in physical units, say."""
    some = flux[::7]  # a thousand pixels tell as much, and a median is the slowest step here
    some = some[np.isfinite(some) & (some != 0)]
    if some.size and not NORMALISED[0] < (median := float(np.median(some))) < NORMALISED[1]:
        raise ValueError(
            f"{hdu.where}: needs a continuum-normalised spectrum, but its median is {median:.4g}, not in {NORMALISED}. "
            "HDU 1 must be the flux, HDU 2 its error, HDU 3 the model: are they out of order?"
        )


def _fitted(file: FitsFile) -> tuple[dict[str, float], dict[str, float]]:
    """Calibrated Teff and log g of HDU 4, and their errors."""
    table = file.hdu(4)
    values = np.ravel(table.column("PARAM")[0]).astype(np.float64)
    labels = read_labels({"teff": values[0], "logg": values[1]})
    covariance = as_float64(table.column("PARAM_COV")[0])
    size = values.size
    variance = covariance.reshape(size, size).diagonal() if covariance.size == size * size else np.zeros(size)
    errors = {
        name: float(variance[i]) ** 0.5
        for i, name in enumerate(("teff", "logg"))
        if name in labels and np.isfinite(variance[i]) and variance[i] > 0
    }
    return labels, errors


def read_aspcapstar(
    path: Path | FitsFile,
    kind: Literal["observed", "synthetic"] = "observed",
    all_pixels: bool = False,
    labels: bool = False,
    check_sums: bool = True,
) -> Spectrum:
    """Read one star.

    Args:
        path: FITS file, plain or gzipped; or one that is open.
        kind: `observed` (HDU 1 with the errors of HDU 2) or `synthetic` (HDU 3: no noise, so no ivar).
        all_pixels: Keep the 8,575 pixels, gaps bad, instead of the 7,514 on the detectors.
        labels: Read Teff and log g (calibrated, PARAM) from HDU 4, which costs as much time as the rest.
        check_sums: See `fits_file.open_fits`.

    Returns:
        Flux normalised by ASPCAP; `ivar` for `observed`; `snr` as published, per pixel.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or no aspcapStar file; the message names the HDU.
    """
    if kind not in ("observed", "synthetic"):
        raise ValueError(f"kind must be 'observed' or 'synthetic', got {kind!r}.")
    file = open_fits(path, check_sums)
    path = file.path
    hdu = file.hdu(1 if kind == "observed" else 3)
    check_grid(hdu)
    pick = (lambda pixels: pixels) if all_pixels else on_detectors
    flux = as_float64(pick(hdu.image((1,))))
    ivar = None
    if kind == "observed":
        check_grid(file.hdu(2))
        error = as_float64(pick(file.hdu(2).image((1,))))
        ivar = ivar_of(error)
        with np.errstate(invalid="ignore"):
            bad_pixel = ~(error <= LARGEST_ERROR)
    else:
        bad_pixel = flux == 0
    _check_normalised(hdu, flux)
    flux, ivar, bad_pixel = trusted(flux, ivar, bad_pixel)
    star = _star(path, file)
    published, errors = _fitted(file) if labels else ({}, {})
    header = file.primary
    return Spectrum(
        wavelength=grid(all_pixels),
        flux=flux,
        bad_pixel=bad_pixel,
        star_id=star,
        survey="apogee",
        ivar=ivar,
        labels=published,
        label_errors=errors,
        resolving_power=APOGEE_RESOLVING_POWER,
        snr=header.optional_number("SNR"),
        ra=header.optional_number("RA"),
        dec=header.optional_number("DEC"),
        ids={"apogee_id": star},
        meta={
            "file": path.name,
            "format": "aspcapStar",
            "kind": kind,
            "telescope": header.optional_text("TELESCOP"),
            "field": header.optional_text("FIELD"),
        },
    )
