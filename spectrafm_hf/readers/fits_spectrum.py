"""One spectrum in a FITS file of no survey that is read here: an image with a wavelength axis, or a table.

**Images** of one axis (or several of length 1), with errors and flags in images beside it whose EXTNAME says so. The
axis is in the header (Greisen & Calabretta 2002, A&A 395, 1061; Greisen et al. 2006, A&A 446, 747):

* CRVAL1, CD1_1 or CDELT1, CRPIX1; the unit in CUNIT1, or where IRAF puts it, in WAT1_001;
* CTYPE1 = `AWAV` is wavelength in air, `WAVE` in vacuum; AIRORVAC and VACUUM say it too;
* CTYPE1 = `WAVE-LOG` and `AWAV-LOG` step evenly in ln(lambda) from CRVAL1, which is a wavelength. Some write log10 of
  the wavelength there instead, as do IRAF (DC-FLAG = 1) and SDSS (COEFF0, COEFF1); both are understood.

SDSS's spSpec (classic.sdss.org/dr7/dm/flatFiles/spSpec.html) is an image of rows: flux, flux without continuum,
1-sigma error, mask; vacuum.

**Tables** with a row per pixel, or a row of arrays as ESO's Science Data Products have it; see `spectrum_columns`. Of
those the primary header says the resolving power (SPEC_RES), the signal-to-noise ratio (SNR) and the star (OBJECT).

No file says that it is at rest, unless SPECSYS is `SOURCE`: the velocity must be told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from .fits_file import FitsFile, Hdu, Header, as_float64
from .in_memory import Conventions, Given
from .spectrum_columns import Column, FileSpectrum, spectrum_in

_NAMES = ("OBJECT", "OBJID", "OBJ", "TARGNAME", "TARGET")
_ERRORS = {"err": "flux_error", "error": "flux_error", "std": "flux_error", "uncert": "flux_error",
           "sigma": "flux_error", "var": "variance", "variance": "variance", "ivar": "ivar"}  # fmt: skip
_FLAGS = ("dq", "quality", "qual", "bad_pixel")
_FLUX = ("flux", "sci", "data", "spectrum")
_IRAF_UNIT = re.compile(r"units\s*=\s*([^\s'\"]+)", re.IGNORECASE)
_CURVED = re.compile(r"-(?:TAB|GRI|GRA|[FWVA]2[FWVA])$")
"""Axes that only a full WCS library can compute."""
_VELOCITIES = ("VELO", "VRAD", "VOPT", "FELO", "BETA", "ZOPT")
_LOG10 = (2.9, 5.0)
"""What log10(Angstrom) lies in: 800 to 100,000 Angstrom."""

SPECUTILS_BETTER = ("HST", "JWST", "MULTI")
"""TELESCOP of files whose layout specutils knows in detail."""


def spectrum_of_fits(file: FitsFile, row: int | None = None) -> FileSpectrum | None:
    """The spectrum in a FITS file; None = it holds none that can be recognised here.

    Args:
        file: Open.
        row: Which one, of a table with a spectrum per row.

    Raises:
        ValueError: It is damaged, holds several spectra and `row` does not say which, or its axis is no wavelength.
    """
    primary = file.primary
    if primary.optional_text("TELESCOP") in SPECUTILS_BETTER or "GALAH" in (primary.optional_text("ORIGIN") or ""):
        return None
    found = _image(file) or _tables(file, row)
    if found is None:
        return None
    return _with_header(found, file)


# ---------------------------------------------------------------- headers


def _with_header(found: FileSpectrum, file: FitsFile) -> FileSpectrum:
    """What the primary header, or that of the first extension, says of star and instrument."""
    headers = [hdu.header for hdu in file.hdus[:2]]

    def first(kind: str, *words: str) -> Any:
        return next((v for h in headers for w in words if (v := getattr(h, f"optional_{kind}")(w)) is not None), None)

    given = found.given
    resolving_power, frame = first("number", "SPEC_RES"), (first("text", "SPECSYS") or "").upper()
    told = Conventions(
        medium=given.told.medium,
        # below 100 it is no resolving power, but a resolution in some unit
        resolving_power=resolving_power if resolving_power is not None and resolving_power >= 100 else None,
    )
    snr, ra, dec = (first("number", word) for word in ("SNR", "RA", "DEC"))
    placed = ra is not None and dec is not None and 0 <= ra <= 360 and abs(dec) <= 90
    more = {"snr": snr if snr is not None and snr > 0 else None}
    more |= {"ra": ra, "dec": dec} if placed else {}
    meta = {"file": file.path.name, "instrument": first("text", "INSTRUME"), "frame": frame or None}
    at_rest = True if frame == "SOURCE" else None
    given = replace(given, told=told, name=first("text", *_NAMES), more=more, at_rest=at_rest)
    return replace(found, given=given, topocentric=frame.startswith("TOPOCEN"), meta=meta)


def medium_in(header: Mapping[str, Any]) -> tuple[Literal["vacuum", "air"] | None, str]:
    """What header words say of air and vacuum, and which word says so."""
    ctype = str(header.get("CTYPE1") or "").strip().upper()
    if ctype.startswith("AWAV"):
        return "air", f"CTYPE1 = {ctype!r} says"
    told = str(header.get("AIRORVAC") or "").strip().lower()
    if told in ("air", "vac", "vacuum"):
        return ("air" if told == "air" else "vacuum"), f"AIRORVAC = {told!r} says"
    if isinstance(header.get("VACUUM"), bool):
        return ("vacuum" if header["VACUUM"] else "air"), f"VACUUM = {header['VACUUM']} says"
    if re.match(r"WAVE(-LOG)?$", ctype):
        return "vacuum", f"CTYPE1 = {ctype!r} says"
    return None, ""


# ---------------------------------------------------------------- images


def _name(hdu: Hdu) -> str:
    return (hdu.header.optional_text("EXTNAME") or "").lower()


def _is_line(hdu: Hdu) -> bool:
    """Whether it is an image of one axis longer than 1."""
    return hdu.is_image and len(hdu.shape) > 0 and hdu.shape[-1] > 1 and set(hdu.shape[:-1]) <= {1}


def _line(hdu: Hdu) -> np.ndarray:
    return hdu.image(tuple(range(1, 10))).reshape(-1)


def _image(file: FitsFile) -> FileSpectrum | None:
    if (found := _spspec(file)) is not None:
        return found
    lines = [hdu for hdu in file.hdus if _is_line(hdu)]
    named = [Column(_name(h), partial(_line, h), h.header.optional_text("BUNIT") or "") for h in lines if _name(h)]
    if (found := spectrum_in(named, "FITS images")) is not None:
        return found
    flux = next((h for h in lines if _name(h) in _FLUX), None)
    flux = flux or next((h for h in lines if h.header.hdu == 0 or _name(h) not in (*_ERRORS, *_FLAGS, "mask")), None)
    if flux is None:
        return None
    axis = _axis(flux.header, flux.shape[-1])
    if axis is None:
        return None
    wavelength, unit, logarithm = axis
    arrays: dict[str, Any] = {}
    notes = []
    for hdu in lines:
        name = _name(hdu)
        if hdu is flux or hdu.shape[-1] != flux.shape[-1]:
            continue
        if name in _FLAGS:
            arrays["bad_pixel"] = as_float64(_line(hdu)) != 0
        elif name == "mask":
            arrays["mask"] = _line(hdu)
        elif name in _ERRORS and not {"flux_error", "ivar"} & set(arrays):
            kind, values = _ERRORS[name], as_float64(_line(hdu))
            with np.errstate(invalid="ignore"):
                values = np.sqrt(values) if kind == "variance" else values
            arrays["flux_error" if kind == "variance" else kind] = values
        else:
            notes.append(f"{hdu.header.hdu} ({name.upper() or 'without a name'})")
    said = (f"its HDU {', '.join(notes)} was not used, since its name does not say what it is",) if notes else ()
    medium, by = medium_in(flux.header)
    if medium is None and flux is not file.hdus[0]:
        medium, by = medium_in({w: v for w, v in file.primary.items() if w in ("AIRORVAC", "VACUUM")})
    told = Conventions(medium=medium)
    given = Given(_line(flux), wavelength, "FITS image", survey="other", told=told, notes=said, **arrays)
    return FileSpectrum(given, unit, logarithm, by)


def _spspec(file: FitsFile) -> FileSpectrum | None:
    """SDSS's spSpec."""
    hdu = file.hdus[0]
    header = hdu.header
    rows = hdu.is_image and len(hdu.shape) == 2 and 4 <= hdu.shape[0] <= 5 and hdu.shape[1] > 1
    if not rows or header.optional_text("TELESCOP") != "SDSS 2.5-M" or "COEFF0" not in header:
        return None
    pixels = hdu.image((2,))
    first, step = header.number("COEFF0"), header.number("COEFF1")
    given = Given(
        pixels[0],
        first + step * np.arange(pixels.shape[1]),
        "SDSS spSpec",
        flux_error=pixels[2],
        bad_pixel=as_float64(pixels[3]) != 0,
        survey="other",
        told=Conventions(medium="vacuum"),
    )
    return FileSpectrum(given, "log10(Angstrom)", "COEFF0 says", "all spectra of SDSS are")


def _axis(header: Header, n_pixels: int) -> tuple[np.ndarray, str | None, str] | None:
    """Wavelength of every pixel, its unit, and what says that it is log10; None = there is no axis to compute.

    Raises:
        ValueError: The axis is one of velocities, or its words are damaged.
    """
    where = f"{header.path}, HDU {header.hdu}"
    ctype = (header.optional_text("CTYPE1") or "").upper()
    if ctype.startswith("MULTISPE") or _CURVED.search(ctype):
        return None
    if ctype[:4] in _VELOCITIES:
        raise ValueError(
            f"{where}: its axis is one of velocities (CTYPE1 = {ctype!r}) around a line; give wavelengths: rest "
            "wavelength x (1 + v/c)."
        )
    by_sdss = "CRVAL1" not in header and "COEFF0" in header and "COEFF1" in header
    if by_sdss:
        first, step, reference = header.number("COEFF0"), header.number("COEFF1"), 1.0
    elif "CRVAL1" not in header or not ("CD1_1" in header or "CDELT1" in header):
        return None
    else:
        first = header.number("CRVAL1")
        step = header.number("CD1_1" if header.get("CD1_1") not in (None, 0) else "CDELT1")
        reference = header.number("CRPIX1") if "CRPIX1" in header else 0.0  # as the standard has it
    unit = header.optional_text("CUNIT1")
    if unit is None and (found := _IRAF_UNIT.search(header.optional_text("WAT1_001") or "")) is not None:
        unit = found[1]
    if step == 0:
        raise ValueError(f"{where}: its wavelengths do not change (CDELT1 or CD1_1 is 0). The header is damaged.")
    offset = np.arange(n_pixels, dtype=np.float64) + 1.0 - reference  # FITS counts pixels from 1
    like_log10 = all(_LOG10[0] <= first + step * end <= _LOG10[1] for end in (offset[0], offset[-1]))
    if re.match(r"(WAVE|AWAV|FREQ)-LOG$", ctype) and not like_log10 and first > 0:
        with np.errstate(over="ignore"):
            return first * np.exp(step / first * offset), unit, ""
    with np.errstate(over="ignore", invalid="ignore"):
        values = first + step * offset
    flag = header.get("DC-FLAG")
    says = "DC-FLAG = 1 says" if flag in (1, "1") and flag is not True else ""
    says = says or (f"CTYPE1 = {ctype!r} says" if "LOG" in ctype else "") or ("COEFF0 says" if by_sdss else "")
    return values, unit, says


# ---------------------------------------------------------------- tables


def _tables(file: FitsFile, row: int | None) -> FileSpectrum | None:
    """The first table that holds a spectrum."""
    found, more = None, []
    for hdu in file.hdus:
        if not hdu.is_table or not hdu.n_rows:
            continue
        if found is None:
            found = _table(hdu, row)
        elif spectrum_in(_columns(hdu, lambda name: np.zeros(0)), "") is not None:
            more.append(str(hdu.header.hdu))
    if found is None or not more:
        return found
    note = f"HDU {', '.join(more)} holds a spectrum too; the first one was read"
    return replace(found, given=replace(found.given, notes=(*found.given.notes, note)))


def _columns(hdu: Hdu, read: Any) -> list[Column]:
    names = hdu.row_type.names or ()

    def word(kind: str, number: int) -> str:
        return hdu.header.optional_text(f"{kind}{number}") or ""

    return [
        Column(printed.strip(), partial(read, name), word("TUNIT", i), word("TUTYP", i), word("TUCD", i))
        for i, (printed, name) in enumerate(zip(hdu.columns, names, strict=True), start=1)
    ]


def _table(hdu: Hdu, row: int | None) -> FileSpectrum | None:
    in_rows = []

    def read(name: str) -> np.ndarray:
        form = str(hdu.header.get(f"TFORM{(hdu.row_type.names or ()).index(name) + 1}"))
        if re.match(r"\s*\d*\s*[PQ]", form):
            raise ValueError(
                f"{hdu.where}: column {name!r} has arrays of variable length ({form}), which are not read here; write "
                "the table with arrays of one length, or give the arrays themselves."
            )
        values = hdu.column(name)
        if values.ndim == 1:
            return values
        in_rows.append(name)
        number = 0 if row is None else row
        if hdu.n_rows > 1 and row is None:
            raise ValueError(f"{hdu.where}: holds {hdu.n_rows} spectra, one per row; say which with row=.")
        if not 0 <= number < hdu.n_rows:
            raise ValueError(f"{hdu.where}: has rows 0 to {hdu.n_rows - 1}, got row={row!r}.")
        return values[number].reshape(-1)

    found = spectrum_in(_columns(hdu, read), "FITS table")
    if found is None:
        return None
    if row not in (None, 0) and not in_rows:
        raise ValueError(f"{hdu.where}: holds one spectrum, got row={row!r}.")
    given = found.given
    if given.told.medium is None:
        words = {word: hdu.header.get(word) for word in ("AIRORVAC", "VACUUM")}
        medium, by = medium_in(words)
        return replace(found, given=replace(given, told=Conventions(medium=medium)), medium_by=by)
    return found
