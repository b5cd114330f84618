"""allStar catalogues: the labels of APOGEE's stars, SDSS DR13 to DR17, and those of astra in SDSS-V (DR19 and later).

Source: SDSS data models of allStar and astraAllStarASPCAP; Jonsson et al. 2020 (AJ 160, 120); Holtzman et al. 2015 (AJ
150, 148). DR17's file is allStar-dr17-synspec_rev1.fits (733,901 rows, 4 GB): one row per star, telescope and field,
so a star may come twice: keep the row with the highest SNR, or those without bit 4 of EXTRATARG (DUPLICATE). astra's
astraAllStarASPCAP has one table per instrument; the one with APOGEE's rows is read.

Which columns. Calibrated ones, as the survey recommends: TEFF, LOGG, FE_H, MG_FE, O_FE with *_ERR (DR17: "named"
columns, filled where the survey trusts them), not PARAM[0] = Teff, PARAM[1] = log g, PARAM[3] = [M/H] (calibrated but
unflagged), nor FPARAM or *_SPEC (raw: what the fit gave; raw log g of giants is 0.2 dex too high). [M/H] is not
[Fe/H]. astra gives [X/H]; here [X/Fe] = [X/H] - [Fe/H], its error the two errors in quadrature, which is an upper
bound where they correlate.

Missing: NaN (DR17), -9999 (before, and for errors), 99.99 (magnitudes), and anything outside `labels.LABELS`' range. An
error of 0, below 0, NaN or -9999 is missing too: NaN, never 0, which would mean certainty. A missing label has no
error.

Flags. STARFLAG judges the spectrum, ASPCAPFLAG the fit (bits below), PARAMFLAG each parameter: bits 0-4 bad (grid edge,
outside calibration, other, FERRE, mismatch), 8-15 the same as warnings, 16 = held fixed, 24-27 = which log g
calibration. FE_H_FLAG and the like are PARAMFLAG's bits for one element: 0 = good. Nothing is cut here; the cuts are
`builders`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..labels import LABELS
from .fits_file import Hdu, TableStream, as_float64
from .star_names import normalise_star_name

STARFLAG = {
    "BAD_PIXELS": 0,
    "COMMISSIONING": 1,
    "BRIGHT_NEIGHBOR": 2,
    "VERY_BRIGHT_NEIGHBOR": 3,
    "LOW_SNR": 4,
    "PERSIST_HIGH": 9,
    "PERSIST_MED": 10,
    "PERSIST_LOW": 11,
    "PERSIST_JUMP_POS": 12,
    "PERSIST_JUMP_NEG": 13,
    "SUSPECT_RV_COMBINATION": 16,
    "SUSPECT_BROAD_LINES": 17,
    "BAD_RV_COMBINATION": 18,
    "RV_REJECT": 19,
    "RV_SUSPECT": 20,
    "MULTIPLE_SUSPECT": 21,
    "RV_FAIL": 22,
    "SUSPECT_ROTATION": 23,
    "MTPFLUX_LT_75": 24,
    "MTPFLUX_LT_50": 25,
}
"""APOGEE_STARFLAG: name -> bit. 0, 3 and 18 are the survey's "bad"; 4: S/N below 5; 9-13 persistence; 16-18 visits'
velocities disagree (binaries); 21: several peaks in the cross-correlation; 24, 25: the fibre lost light."""

ASPCAPFLAG = {
    "TEFF_WARN": 0,
    "LOGG_WARN": 1,
    "VMICRO_WARN": 2,
    "M_H_WARN": 3,
    "ALPHA_M_WARN": 4,
    "C_M_WARN": 5,
    "N_M_WARN": 6,
    "STAR_WARN": 7,
    "CHI2_WARN": 8,
    "COLORTE_WARN": 9,
    "ROTATION_WARN": 10,
    "SN_WARN": 11,
    "SPEC_HOLE_WARN": 12,
    "ATMOS_HOLE_WARN": 13,
    "VSINI_WARN": 14,
    "TEFF_BAD": 16,
    "LOGG_BAD": 17,
    "VMICRO_BAD": 18,
    "M_H_BAD": 19,
    "ALPHA_M_BAD": 20,
    "C_M_BAD": 21,
    "N_M_BAD": 22,
    "STAR_BAD": 23,
    "CHI2_BAD": 24,
    "COLORTE_BAD": 25,
    "ROTATION_BAD": 26,
    "SN_BAD": 27,
    "SPEC_HOLE_BAD": 28,
    "ATMOS_HOLE_BAD": 29,
    "VSINI_BAD": 30,
    "NO_ASPCAP_RESULT": 31,
    "MISSING_APSTAR": 32,
    "NO_GRID": 33,
    "BAD_FRAC_LOWSNR": 34,
    "BAD_FRAC_BADPIX": 35,
    "FERRE_FAIL": 36,
    "PROBLEM_TARGET": 40,
    "MULTIPLE_SUSPECT": 41,
}
"""APOGEE_ASPCAPFLAG: name -> bit. STAR_BAD is set if Teff, log g, chi2, colour, rotation or S/N is bad or the fit lies
on the edge of its grid. Bits above 30 (DR17: 64-bit) say that there is no fit, and why."""

STAR_BAD = 1 << ASPCAPFLAG["STAR_BAD"]
"""The bit to cut on."""

_NUMBERS = {
    "ra": ("ra",),
    "dec": ("dec",),
    "snr": ("snr",),
    "vscatter": ("vscatter", "std_v_rad"),
}
_INTEGERS = {
    "starflag": ("starflag", "spectrum_flags"),
    "aspcapflag": ("aspcapflag",),
    "n_visits": ("nvisits", "n_visits"),
    "extratarg": ("extratarg",),
}
_TEXTS = {
    "apogee_id": ("apogee_id", "sdss4_apogee_id", "obj"),
    "telescope": ("telescope",),
    "field": ("field",),
    "file": ("file", "aspcap_file"),
    "gaia_source_id": ("gaiaedr3_source_id", "gaia_source_id", "gaia_dr3_source_id"),
    "sdss_id": ("sdss_id",),
}
"""Our name -> the catalogues' names, in lower case, the first that is there."""


def _first(hdu: Hdu, names: tuple[str, ...]) -> str | None:
    have = {name.lower() for name in hdu.columns}
    return next((name for name in names if name in have), None)


def is_catalogue(hdu: Hdu) -> bool:
    """Whether a table holds one row of labels per star, and no spectra."""
    return (
        hdu.is_table
        and _first(hdu, ("apogee_id", "sdss_id")) is not None
        and _first(hdu, ("teff",)) is not None
        and _first(hdu, ("logg",)) is not None
        and _first(hdu, ("wavelength", "flux", "model_flux")) is None
    )


def _label_columns(hdu: Hdu) -> dict[str, tuple[str, ...]]:
    """Label -> value, error [, [Fe/H], its error]: four where the catalogue gives [X/H]."""
    columns: dict[str, tuple[str, ...]] = {}
    for label in LABELS:
        apogee = label.apogee_column.lower()
        if (name := _first(hdu, (apogee,))) is not None:
            error = _first(hdu, (f"{apogee}_err", f"e_{apogee}"))
            columns[label.name] = (name, error or "")
        elif apogee.endswith("_fe") and _first(hdu, (f"{apogee[:-3]}_h",)) and _first(hdu, ("fe_h",)):
            over_h = f"{apogee[:-3]}_h"
            columns[label.name] = (over_h, f"e_{over_h}", "fe_h", "e_fe_h")
        else:
            raise ValueError(
                f"{hdu.where}: needs a column {label.apogee_column} for {label.name} [{label.unit}], got "
                f"{', '.join(hdu.columns[:20])} ... Is it another catalogue, or a lite version?"
            )
    return columns


def _values(hdu: Hdu, rows: np.ndarray, name: str) -> np.ndarray:
    """A column of numbers as float64; sentinels are NaN."""
    values = as_float64(hdu.column(name, rows))
    if values.ndim != 1:
        raise ValueError(f"{hdu.where}: column {name!r} needs one number per row, got shape {values.shape[1:]}.")
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values) & (values > -9999), values, np.nan)


def _errors(hdu: Hdu, rows: np.ndarray, name: str) -> np.ndarray:
    """1-sigma errors; NaN where the column is absent, or an error is 0, negative or a sentinel (9999 and beyond)."""
    have = name and name.lower() in {column.lower() for column in hdu.columns}
    errors = _values(hdu, rows, name) if have else np.full(len(rows), np.nan)
    with np.errstate(invalid="ignore"):
        return np.where((errors > 0) & (errors < 9999), errors, np.nan)


def _read_labels(hdu: Hdu, rows: np.ndarray) -> dict[str, np.ndarray]:
    columns = _label_columns(hdu)
    result: dict[str, np.ndarray] = {}
    for label in LABELS:
        names = columns[label.name]
        value, error = _values(hdu, rows, names[0]), _errors(hdu, rows, names[1])
        if len(names) == 4:
            value = value - _values(hdu, rows, names[2])
            error = np.hypot(error, _errors(hdu, rows, names[3]))
        with np.errstate(invalid="ignore"):
            valid = (value >= label.valid[0]) & (value <= label.valid[1])
        result[label.name] = np.where(valid, value, np.nan)
        result[f"{label.name}_err"] = np.where(valid, error, np.nan)
        flag = _first(hdu, (f"{label.apogee_column.lower()}_flag", f"{label.apogee_column.lower()}_flags"))
        if flag is not None:
            result[f"{label.name}_flag"] = np.asarray(hdu.column(flag, rows)).astype(np.int64)
    return result


def _star_ids(apogee_id: np.ndarray, sdss_id: np.ndarray | None) -> np.ndarray:
    """Normalised names, as the spectra's readers give them; empty where the catalogue has none."""
    names = []
    for i, name in enumerate(apogee_id):
        text = str(name).strip()
        if text:
            names.append(normalise_star_name(text))
        else:
            names.append(f"SDSS{sdss_id[i]}" if sdss_id is not None and str(sdss_id[i]).lstrip("-0") else "")
    return np.array(names, dtype=np.str_)


def _chunk(hdu: Hdu, rows: np.ndarray, extra: tuple[str, ...]) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    convert: tuple[tuple[dict[str, tuple[str, ...]], Callable[[np.ndarray], np.ndarray]], ...] = (
        (_TEXTS, lambda values: np.asarray(values).astype(np.str_)),
        (_INTEGERS, lambda values: np.asarray(values).astype(np.int64)),
    )
    for table, as_type in convert:
        for name, theirs in table.items():
            if (found := _first(hdu, theirs)) is not None:
                columns[name] = as_type(hdu.column(found, rows))
    for name, theirs in _NUMBERS.items():
        if (found := _first(hdu, theirs)) is not None:
            columns[name] = _values(hdu, rows, found)
    none = np.full(len(rows), "", dtype=np.str_)
    stars = _star_ids(columns.get("apogee_id", none), columns.get("sdss_id"))
    columns = {"star_id": stars} | columns | _read_labels(hdu, rows)
    for name in extra:
        columns[name] = hdu.column(name, rows)
    return columns


def iterate_allstar(
    path: Path, rows_per_chunk: int = 50_000, extra: tuple[str, ...] = ()
) -> Iterator[dict[str, np.ndarray]]:
    """Read a catalogue some rows at a time, in its order; memory holds one chunk.

    Args:
        path: FITS file, plain or gzipped.
        rows_per_chunk: Rows at a time.
        extra: Columns to add, under their own names and as they are (sentinels and all), e.g. `PARAMFLAG`.

    Yields:
        Column -> array, one entry per row: `star_id` (as `Spectrum.star_id`), `apogee_id`, `ra`, `dec` (degrees), `snr`
        (per pixel), `starflag`, `aspcapflag`, `vscatter` (km/s), `n_visits`, `telescope`, `field`, `file`, ... where
        the catalogue has them; and of each label in `labels.LABELS` its value, `<label>_err` (float64, NaN = missing)
        and, where published, `<label>_flag`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, no HDU is such a catalogue, or a label's column is missing.
    """
    stream = TableStream(path)
    hdus = stream.hdus()
    catalogues = [hdu for hdu in hdus if is_catalogue(hdu)]
    # astra has one table per instrument; that of the other is empty.
    filled = [hdu for hdu in catalogues if hdu.n_rows] or catalogues
    apogee = [hdu for hdu in filled if (hdu.header.optional_text("INSTRMNT") or "APOGEE").upper() == "APOGEE"]
    chosen = (apogee or filled)[:1]
    if not chosen:
        found = "; ".join(f"HDU {hdu.header.hdu}: {', '.join(hdu.columns[:6]) or 'no table'}" for hdu in hdus)
        raise ValueError(
            f"{path}: needs a table with APOGEE_ID or sdss_id, TEFF and LOGG (an allStar catalogue), got {found}. "
            "Spectra of single stars are read with read_spectrum."
        )
    _label_columns(chosen[0])
    for hdu, rows in stream.chunks(chosen[0].header.hdu, rows_per_chunk):
        yield _chunk(hdu, rows, extra)


def read_allstar(path: Path, extra: tuple[str, ...] = (), rows_per_chunk: int = 50_000) -> dict[str, np.ndarray]:
    """Read a catalogue at once: the columns of `iterate_allstar` (DR17: about 300 MB of memory).

    Raises:
        FileNotFoundError, ValueError: As `iterate_allstar`; or the catalogue has no rows.
    """
    chunks = list(iterate_allstar(path, rows_per_chunk, extra))
    if not chunks:
        raise ValueError(f"{path}: the catalogue has no rows. The file is damaged or a stub; fetch it again.")
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
