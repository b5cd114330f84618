"""apStar and asStar files: APOGEE's combined spectra with their visits, SDSS DR10 to DR17 and SDSS-V.

Source: SDSS data model of apStar. HDU 1 flux and HDU 2 its 1-sigma error (1e-17 erg s-1 cm-2 Angstrom-1), HDU 3 the
bitmask APOGEE_PIXMASK, on the apStar grid: vacuum Angstrom, each visit shifted to rest. `as` is the southern telescope.

Rows. A star seen once has one row, or the array is 1-D; seen N times it has N + 2: row 0 combines the visits pixel by
pixel (weights from each pixel's error), row 1 with one weight per visit, row 2 and on are the visits. Real files: DR13
with 2 visits has 4 rows; DR17 with 3 visits has 5; **DR17 with one visit has 2, and its row 1 is all zeros**. Such a
row is refused. The masks of DR17's row 1 are empty too; row 0 is the one to use.

Which pixels are bad: the bits `pixel_flags.APOGEE_PIXMASK` marks (in DR13 the mask of row 0 is the OR over the visits),
and those without a finite flux or a positive, finite error. DR17 writes NaN where nothing was observed, earlier
releases 0; errors of bad pixels reach 1e10 (DR13) to 1e14 (DR17), so their ivar is next to nothing anyway.

apVisit and asVisit files are refused: their visits are neither at rest nor on this grid.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..spectra import APOGEE_RESOLVING_POWER, Spectrum
from .apogee_grid import N_PIXELS, check_grid, grid, in_gap, on_detectors, star_of
from .fits_file import FitsFile, as_float64, open_fits
from .pixel_flags import APOGEE_PIXMASK, bits_value, flagged, ivar_of, trusted

BAD_BITS = bits_value(APOGEE_PIXMASK)

NAME_WORDS = ("OBJID", "OBJ", "APOGEE_ID", "OBJECT")

_UNITS = {1: ("flux",), 2: ("err",), 3: ("flag", "pixel", "mask")}
"""How BUNIT of each HDU begins, in lower case: `Flux (10^-17 ...)`, `Error ...` or `Err ...`, `Pixel bitmask` ..."""


def is_apstar(file: FitsFile) -> bool:
    """Whether the file is an apStar file: NVISITS, and images of 8,575 pixels."""
    return (
        len(file.hdus) >= 4
        and "NVISITS" in file.primary
        and all(hdu.is_image and hdu.shape[-1:] == (N_PIXELS,) for hdu in file.hdus[1:4])
        and not is_apvisit(file)
    )


def is_apvisit(file: FitsFile) -> bool:
    """Whether the file is an apVisit file: one row per chip, and an image of wavelengths in HDU 4."""
    return (
        len(file.hdus) > 4
        and file.hdus[1].shape[:1] == (3,)
        and str(file.hdus[4].header.get("BUNIT", "")).lower().startswith("wave")
    )


def refuse_apvisit(path: Path) -> ValueError:
    """The error for an apVisit file."""
    return ValueError(
        f"{path}, HDU 4: an apVisit (asVisit) file holds one visit as observed: not at rest, not on the apStar grid, "
        "one row per chip from red to blue. Give the star's apStar (asStar) file instead; it holds the same visit at "
        "rest, row=2 for the first one."
    )


def _one_row(pixels: np.ndarray, row: int) -> np.ndarray:
    return pixels if pixels.ndim == 1 else pixels[row]


def read_apstar(path: Path | FitsFile, row: int = 0, all_pixels: bool = False, check_sums: bool = True) -> Spectrum:
    """Read one spectrum of a star.

    Args:
        path: FITS file, plain or gzipped; or one that is open.
        row: 0 = visits combined pixel by pixel, 1 = combined with one weight per visit, 2, 3, ... = visit 1, 2, ...
            A 1-D file has row 0 only.
        all_pixels: Keep the 8,575 pixels, those off the detectors bad, instead of the 7,514 on them.
        check_sums: See `fits_file.open_fits`.

    Returns:
        Flux in 1e-17 erg s-1 cm-2 Angstrom-1, not normalised. `snr` is that of the star (row 0, 1) or the visit.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, no apStar file, or has no such row; the message names the HDU.
    """
    file = open_fits(path, check_sums)
    path = file.path
    if is_apvisit(file):
        raise refuse_apvisit(path)
    header = file.primary
    n_visits = header.count("NVISITS")
    hdus = [file.hdu(number) for number in (1, 2, 3)]
    for number, hdu in enumerate(hdus, start=1):
        check_grid(hdu)
        unit = hdu.header.optional_text("BUNIT")
        if unit is not None and not unit.lower().startswith(_UNITS[number]):
            raise ValueError(
                f"{hdu.where}: needs {('flux', 'error of the flux', 'pixel bitmask')[number - 1]}, but its BUNIT is "
                f"{unit!r}. The HDUs are out of order; fetch the file again."
            )
        if hdu.shape != hdus[0].shape:
            raise ValueError(
                f"{hdu.where}: needs the shape of HDU 1, {hdus[0].shape}, got {hdu.shape}. Fetch the file again."
            )
    shape = hdus[0].shape
    n_rows = 1 if len(shape) == 1 else shape[0]
    expected = (1, 2, 3) if n_visits == 1 else (n_visits + 2,)
    if n_rows not in expected:
        raise ValueError(
            f"{hdus[0].where}: {n_visits} visits take {' or '.join(map(str, expected))} rows (2 combined, then the "
            f"visits), got {n_rows}. The file is of another format or damaged; fetch it again."
        )
    if isinstance(row, bool) or not 0 <= row < n_rows:
        raise ValueError(
            f"{hdus[0].where}: has rows 0 to {n_rows - 1} (0 and 1 combined, from 2 the {n_visits} visits), got "
            f"row={row!r}."
        )
    flux, error, bitmask = (_one_row(hdu.image(), row) for hdu in hdus)
    if bitmask.dtype.kind == "f" and np.any(bitmask % 1):
        raise ValueError(f"{hdus[2].where}: needs a pixel bitmask of whole numbers. The HDUs are out of order.")
    flux = as_float64(flux)
    if not np.any(np.nan_to_num(flux)):
        raise ValueError(
            f"{hdus[0].where}: row {row} holds no light (all 0 or NaN); DR17 leaves row 1 empty for stars seen once. "
            "Read row=0."
        )
    ivar = ivar_of(error)
    bad_pixel = flagged(bitmask, BAD_BITS) | (ivar == 0)
    if all_pixels:
        bad_pixel |= in_gap()
    else:
        flux, ivar, bad_pixel = on_detectors(flux), on_detectors(ivar), on_detectors(bad_pixel)
    flux, good_ivar, bad_pixel = trusted(flux, ivar, bad_pixel)
    star = star_of(path, header, NAME_WORDS)
    if star is None:
        raise ValueError(
            f"{path}, HDU 0: needs the star's name in one of {', '.join(NAME_WORDS)}; found none. Without it the "
            "star's split is unknown. Fetch the file again."
        )
    return Spectrum(
        wavelength=grid(all_pixels),
        flux=flux,
        bad_pixel=bad_pixel,
        star_id=star,
        survey="apogee",
        ivar=good_ivar,
        resolving_power=APOGEE_RESOLVING_POWER,
        snr=header.optional_number("SNR" if row < 2 else f"SNRVIS{row - 1}"),
        ra=header.optional_number("RA"),
        dec=header.optional_number("DEC"),
        ids={"apogee_id": star},
        meta={
            "file": path.name,
            "format": "apStar",
            "row": row,
            "n_visits": n_visits,
            "starflag": header.get("STARFLAG"),
            "vscatter": header.optional_number("VSCATTER"),
            "telescope": header.optional_text("TELESCOP"),
            "field": header.optional_text("FIELD"),
        },
    )
