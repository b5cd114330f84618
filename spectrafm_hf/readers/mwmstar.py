"""SDSS-V (Milky Way Mapper): mwmStar, mwmVisit and astraStar files, DR19 and later.

Source: SDSS data model of mwmStar, mwmVisit and astraStar; astra's documentation ("rest-frame resampled spectra").
HDU 0 holds the star's identifiers; HDU 1 to 4 are tables, BOSS/APO, BOSS/LCO, APOGEE/APO, APOGEE/LCO, one row per
spectrum (mwmStar: combined, mwmVisit: visits), most of them empty for most stars. An empty HDU has 0 rows, and its
DATASUM may be anything: only rows count here.

Wavelengths: vacuum Angstrom, rest frame, log-linear; the header's CRVAL and CDELT (log10) give them to full precision,
the column `wavelength` is float32 (0.001 Angstrom at 15,000) and must agree with them. Columns `flux`, `ivar`,
`pixel_flags`; the bits of the last are APOGEE_PIXMASK or BOSS_PIXMASK of `pixel_flags`.

astraStar files hold what a pipeline fitted: `model_flux`, and `continuum`. ASPCAP's model is normalised, so the model
of the observed flux is model_flux x continuum; The Payne's and SnowWhite's include it already.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from ..spectra import APOGEE_RESOLVING_POWER, Spectrum
from .apogee_grid import N_PIXELS, grid, in_gap, on_detectors, star_of
from .fits_file import FitsFile, Hdu, as_float64, open_fits
from .pixel_flags import APOGEE_PIXMASK, BOSS_PIXMASK, bits_value, flagged, trusted
from .star_names import normalise_star_name

Instrument = Literal["boss", "apogee"]
Observatory = Literal["apo", "lco"]

HDUS: dict[int, tuple[Instrument, Observatory]] = {
    1: ("boss", "apo"),
    2: ("boss", "lco"),
    3: ("apogee", "apo"),
    4: ("apogee", "lco"),
}
"""Number of the HDU -> instrument, observatory."""

_BAD_BITS = {"apogee": bits_value(APOGEE_PIXMASK), "boss": bits_value(BOSS_PIXMASK)}

_FILE_NAME = re.compile(r"^(?:mwm|astra)\w+-[\w.]+-(\d+)\.fits")
"""`mwmStar-0.6.0-103020000.fits`: version of astra, SDSS_ID."""

_FLOAT32_STEP = 1e-6
"""Relative; the float32 column of wavelengths may differ from the header's by this."""


def is_mwmstar(file: FitsFile) -> bool:
    """Whether the file is mwmStar, mwmVisit or astraStar: SDSS_ID, V_ASTRA and four tables."""
    words = "SDSS_ID" in file.primary and ("V_ASTRA" in file.primary or "ASTRA" in file.primary)
    return words and len(file.hdus) >= 5 and all("XTENSION" in hdu.header for hdu in file.hdus[1:5])


def is_astrastar(file: FitsFile) -> bool:
    """Whether a file of `is_mwmstar` holds fitted models."""
    return is_mwmstar(file) and any(_has(hdu, "model_flux") for hdu in file.hdus[1:5])


def _has(hdu: Hdu, column: str) -> bool:
    return column in (name.lower() for name in hdu.columns)


def _filled(file: FitsFile) -> str:
    """The HDUs with rows, for messages."""
    filled = [
        f"HDU {number} {instrument}/{observatory} ({file.hdus[number].n_rows} rows)"
        for number, (instrument, observatory) in HDUS.items()
        if number < len(file.hdus) and file.hdus[number].n_rows
    ]
    return ", ".join(filled) or "none"


def _choose(file: FitsFile, instrument: str | None, observatory: str | None, row: int | None) -> tuple[int, int]:
    """HDU and row that the caller means; refused where several would do."""
    path = file.path
    if instrument not in (None, "boss", "apogee") or observatory not in (None, "apo", "lco"):
        raise ValueError(
            f"instrument must be 'boss' or 'apogee' and observatory 'apo' or 'lco', got {instrument!r}, "
            f"{observatory!r}."
        )
    for number, (its_instrument, its_observatory) in HDUS.items():
        header = file.hdu(number).header
        for word, expected in (("INSTRMNT", its_instrument), ("OBSRVTRY", its_observatory)):
            told = header.optional_text(word)
            if told is not None and told.lower() != expected:
                raise ValueError(
                    f"{path}, HDU {number}: must be {its_instrument.upper()}/{its_observatory.upper()}, but its {word} "
                    f"is {told!r}. The HDUs are out of order; fetch the file again."
                )
    fitting = [
        number
        for number, (its_instrument, its_observatory) in HDUS.items()
        if file.hdus[number].n_rows and instrument in (None, its_instrument) and observatory in (None, its_observatory)
    ]
    if len(fitting) != 1:
        raise ValueError(
            f"{path}: {'no' if not fitting else 'more than one'} HDU with spectra fits instrument={instrument!r}, "
            f"observatory={observatory!r}; with spectra: {_filled(file)}. Name instrument ('boss', 'apogee') and "
            "observatory ('apo', 'lco') of one of them."
        )
    n_rows = file.hdus[fitting[0]].n_rows
    if row is None and n_rows > 1:
        raise ValueError(f"{path}, HDU {fitting[0]}: holds {n_rows} spectra; say which with row=0 to row={n_rows - 1}.")
    if isinstance(row, bool) or not 0 <= (row or 0) < n_rows:
        raise ValueError(f"{path}, HDU {fitting[0]}: has rows 0 to {n_rows - 1}, got row={row!r}.")
    return fitting[0], row or 0


def _wavelength(hdu: Hdu, n_pixels: int, row: int) -> np.ndarray:
    """From the header's words, or the column where there are none; both must agree."""
    header = hdu.header
    words = {name: header.get(name) for name in ("CRVAL", "CDELT")}
    column = as_float64(hdu.column("wavelength")[row]) if _has(hdu, "wavelength") else None
    if all(isinstance(value, float) for value in words.values()):
        pixels = np.arange(n_pixels) + 1.0 - float(header.optional_number("CRPIX") or 1.0)
        exponent = header.number("CRVAL") + header.number("CDELT") * pixels
        if exponent.min() < 3 or exponent.max() > 5 or header.number("CDELT") <= 0:
            raise ValueError(
                f"{hdu.where}: wavelengths must be log10(vacuum Angstrom), 3 to 5 and increasing, got CRVAL = "
                f"{words['CRVAL']!r}, CDELT = {words['CDELT']!r}. The header is damaged; fetch the file again."
            )
        wavelength = 10.0**exponent
    elif column is not None:
        wavelength = column
    else:
        raise ValueError(f"{hdu.where}: needs CRVAL and CDELT or a column 'wavelength' (vacuum Angstrom); has neither.")
    with np.errstate(invalid="ignore"):
        if column is not None and not (np.abs(column / wavelength - 1) < _FLOAT32_STEP).all():
            worst = np.nanmax(np.abs(column - wavelength)) if np.isfinite(column).any() else np.nan
            raise ValueError(
                f"{hdu.where}: its column 'wavelength' and its CRVAL, CDELT differ by up to {worst:.4g} Angstrom. "
                "One of them is damaged; fetch the file again."
            )
    if not (np.isfinite(wavelength).all() and (wavelength > 0).all() and (np.diff(wavelength) > 0).all()):
        raise ValueError(f"{hdu.where}: wavelengths must be finite, positive and increasing (vacuum Angstrom).")
    return wavelength


def _pixels(hdu: Hdu, name: str, row: int, n_pixels: int | None = None) -> np.ndarray:
    values = hdu.column(name)
    if values.ndim != 2 or values.shape[1] < 2 or n_pixels not in (None, values.shape[1]):
        raise ValueError(
            f"{hdu.where}: column {name!r} needs {n_pixels or 'a row of'} pixels, got shape {values.shape[1:]} per row."
        )
    return values[row]


def _optional(hdu: Hdu, name: str, row: int) -> float | None:
    """A finite number from a column, or None where there is none (the column, or the number: NaN, -9999)."""
    if not _has(hdu, name):
        return None
    value = float(hdu.column(name)[row])
    return value if np.isfinite(value) and value > -9999 else None


def _spectrum(
    file: FitsFile, number: int, row: int, flux: np.ndarray, ivar: np.ndarray | None, bad_pixel: np.ndarray,
    all_pixels: bool, meta: dict[str, str],
) -> Spectrum:  # fmt: skip
    hdu, header = file.hdus[number], file.primary
    instrument, observatory = HDUS[number]
    wavelength = _wavelength(hdu, flux.size, row)
    if instrument == "apogee":
        if flux.size != N_PIXELS or not np.allclose(wavelength, grid(True), rtol=1e-7, atol=0):
            raise ValueError(
                f"{hdu.where}: APOGEE spectra need the apStar grid ({N_PIXELS} pixels from 10**4.179 Angstrom in steps "
                f"of 6e-6), got {flux.size} pixels from {wavelength[0]:.6g} to {wavelength[-1]:.6g} Angstrom."
            )
        wavelength = grid(all_pixels)
        if all_pixels:
            bad_pixel = bad_pixel | in_gap()
        else:
            flux, bad_pixel = on_detectors(flux), on_detectors(bad_pixel)
            ivar = None if ivar is None else on_detectors(ivar)
    flux, ivar, bad_pixel = trusted(flux, ivar, bad_pixel)
    sdss_id = header.count("SDSS_ID")
    if _has(hdu, "sdss_id") and int(hdu.column("sdss_id")[row]) not in (sdss_id, -1, 0):
        raise ValueError(
            f"{hdu.where}: row {row} is of SDSS_ID {int(hdu.column('sdss_id')[row])}, the file of {sdss_id}. "
            "The file is damaged or mixed up; fetch it again."
        )
    called = _FILE_NAME.search(file.path.name)
    if called and int(called[1]) != sdss_id:
        raise ValueError(
            f"{file.path}, HDU 0: is called after SDSS_ID {called[1]}, but its header is that of {sdss_id}. The file "
            "was renamed, mixed up or damaged; fetch it again."
        )
    ids = {"sdss_id": str(sdss_id)}
    star_of(file.path, header, ("APOGEEID",))  # name and position must belong together
    for word, key in (
        ("APOGEEID", "apogee_id"),
        ("GAIA3_ID", "gaia_dr3_source_id"),
        ("GAIA2_ID", "gaia_dr2_source_id"),
    ):
        text = header.optional_text(word)
        if text is not None and text not in ("None", "-1", "0"):
            ids[key] = normalise_star_name(text) if key == "apogee_id" else text
    if "apogee_id" not in ids and instrument == "apogee" and _has(hdu, "obj"):
        obj = str(hdu.column("obj")[row]).strip()
        if obj:
            ids["apogee_id"] = normalise_star_name(obj)
    return Spectrum(
        wavelength=wavelength,
        flux=flux,
        bad_pixel=bad_pixel,
        # The same star in DR17 must keep its split, so its 2MASS name comes first.
        star_id=ids.get("apogee_id", f"SDSS{sdss_id}"),
        survey=f"sdss5_{instrument}",
        ivar=ivar,
        resolving_power=APOGEE_RESOLVING_POWER if instrument == "apogee" else None,
        snr=_optional(hdu, "snr", row),
        ra=header.optional_number("RA"),
        dec=header.optional_number("DEC"),
        ids=ids,
        meta={
            "file": file.path.name,
            "instrument": instrument,
            "observatory": observatory,
            "row": row,
            "v_rad": _optional(hdu, "v_rad", row),
            "v_astra": header.optional_text("V_ASTRA") or header.optional_text("ASTRA"),
        }
        | meta,
    )


def read_mwmstar(
    path: Path | FitsFile,
    instrument: Instrument | None = None,
    observatory: Observatory | None = None,
    row: int | None = None,
    all_pixels: bool = False,
    check_sums: bool = True,
) -> Spectrum:
    """Read one spectrum of an mwmStar or mwmVisit file.

    Args:
        path: FITS file, plain or gzipped; or one that is open.
        instrument: `boss` (3,600-10,400 Angstrom) or `apogee` (15,100-17,000); needed where both have spectra.
        observatory: `apo` or `lco`; needed where both have.
        row: Which spectrum; needed where the HDU holds several (visits).
        all_pixels: APOGEE: keep the 8,575 pixels, gaps bad, instead of the 7,514 on the detectors.
        check_sums: See `fits_file.open_fits`.

    Returns:
        Flux in 1e-17 erg s-1 cm-2 Angstrom-1; the resolving power of BOSS varies with wavelength, so it is None.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The choice is empty or ambiguous (the message lists the HDUs that hold spectra), or the file is
            damaged or of another kind.
    """
    file = open_fits(path, check_sums)
    path = file.path
    if not is_mwmstar(file):
        raise ValueError(f"{path}, HDU 0: needs SDSS_ID, V_ASTRA and four tables (mwmStar), got {file.summary()}.")
    if is_astrastar(file):
        raise ValueError(f"{path}: holds fitted models, not observed spectra; read it with read_astrastar.")
    number, row = _choose(file, instrument, observatory, row)
    hdu = file.hdus[number]
    flux = as_float64(_pixels(hdu, "flux", row))
    ivar = as_float64(_pixels(hdu, "ivar", row, flux.size))
    bad_pixel = flagged(_pixels(hdu, "pixel_flags", row, flux.size), _BAD_BITS[HDUS[number][0]])
    kind = "mwmVisit" if _has(hdu, "mjd") else "mwmStar"
    return _spectrum(file, number, row, flux, ivar, bad_pixel, all_pixels, {"format": kind, "kind": "observed"})


def _pipeline(hdu: Hdu) -> str | None:
    """Which pipeline fitted: astraStar files have no word for it, but columns only one of them has."""
    for column, pipeline in (("model_flux_nd_h", "ASPCAP"), ("rho_fe_h_c12_c13", "ThePayne"), ("p_dc_ms", "SnowWhite")):
        if _has(hdu, column):
            return pipeline
    return None


def read_astrastar(
    path: Path | FitsFile,
    instrument: Instrument | None = None,
    observatory: Observatory | None = None,
    row: int | None = None,
    times_continuum: bool = True,
    all_pixels: bool = False,
    check_sums: bool = True,
) -> Spectrum:
    """Read a fitted model from an astraStar (astraVisit) file: no noise, so no ivar.

    Args:
        path: FITS file, plain or gzipped; or one that is open.
        instrument, observatory, row, all_pixels, check_sums: See `read_mwmstar`.
        times_continuum: Give the model of the observed flux (1e-17 erg s-1 cm-2 Angstrom-1); False gives the
            normalised.

    Returns:
        Bad pixels: where the model, or the continuum that is used, is not finite or is 0 (gaps).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As `read_mwmstar`; or nothing tells whether the model is normalised.
    """
    file = open_fits(path, check_sums)
    path = file.path
    if not is_astrastar(file):
        raise ValueError(f"{path}: needs a column 'model_flux' (astraStar), got {file.summary()}.")
    number, row = _choose(file, instrument, observatory, row)
    hdu = file.hdus[number]
    flux = as_float64(_pixels(hdu, "model_flux", row))
    pipeline = _pipeline(hdu)
    if pipeline is None:
        raise ValueError(
            f"{hdu.where}: cannot tell whether model_flux includes the continuum: the columns are not those of ASPCAP, "
            "The Payne or SnowWhite. Please report the file's pipeline."
        )
    if (pipeline == "ASPCAP") == times_continuum:
        continuum = as_float64(_pixels(hdu, "continuum", row, flux.size))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            flux = flux * continuum if times_continuum else flux / continuum
    meta = {"format": "astraStar", "kind": "synthetic", "pipeline": pipeline}
    return _spectrum(file, number, row, flux, None, ~np.isfinite(flux) | (flux == 0), all_pixels, meta)
