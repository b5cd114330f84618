"""Which column of a table is what: wavelength, flux, error; for tables of FITS and of the Virtual Observatory.

Three things tell, in this order:

* the utype (`TUTYPn` in FITS) of the IVOA Spectrum Data Model (McDowell et al. 2011, arXiv:1204.3055), which ESO's
  Science Data Products carry (ESO Science Data Products Standard; archive.eso.org/cms/eso-data/help/1dspectra.html).
  Its end after `Data.` counts, since its beginning is spelled `spec:`, `Spectrum.` or `eso:`;
* of several fluxes the UCD: `meta.main` is the one that the archive means, and its error is the one of the like name
  (`FLUX` and `ERR`, `FLUX_REDUCED` and `ERR_REDUCED`), since another one may be in another unit;
* the names that people use.

The UCD of a wavelength is `em.wl;obs.atmos` in air; in a table with utypes a bare `em.wl` is in vacuum.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..spectra import Spectrum
from .in_memory import Conventions, Given, Measured, spectrum_of, to_angstrom
from .linear_fits import SANE

WAVELENGTHS = ("wavelength", "wave", "lambda", "wavelengths", "lam", "wl", "wave_vac", "wave_air", "lambda_vac",
               "lambda_air", "wavelength_vac", "wavelength_air", "vacwave", "airwave")  # fmt: skip
LOGARITHMS = ("loglam", "log_wavelength", "loglambda", "log10_wavelength", "log_wave", "logwave", "log_lambda")
FLUXES = ("flux", "fluxes", "flux_norm", "norm_flux", "flux_reduced", "flux_cal", "flam", "f_lambda")
ERRORS = ("flux_error", "flux_err", "fluxerr", "error", "err", "sigma", "uncertainty", "e_flux", "err_flux", "std",
          "err_reduced", "err_norm")  # fmt: skip
VARIANCES = ("var", "variance", "flux_var")
INVERSE_VARIANCES = ("ivar", "flux_ivar", "inverse_variance")
BAD_PIXELS = ("bad_pixel", "qual", "quality", "dq", "and_mask")
"""Columns in which 0 is good; one called `mask` may mean either sign."""

_LOG_UNIT = re.compile(r"^\s*log(?:10)?[\s_]+(\w+)\s*$", re.IGNORECASE)
_IS_LOG = re.compile(r"^\s*(?:log10|log|dex|ln)\s*\(", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Column:
    """One column of a table, or one image of a file.

    Attributes:
        name: As printed.
        read: Gives its values, one per pixel, or raises ValueError.
        unit, utype, ucd: As the file spells them; empty = not told.
    """

    name: str
    read: Callable[[], Any]
    unit: str = ""
    utype: str = ""
    ucd: str = ""

    @property
    def part(self) -> str:
        """End of its utype, in lower case: `fluxaxis.value`."""
        _, found, end = self.utype.lower().partition("data.")
        return end.replace("accurancy", "accuracy") if found else ""  # as ESPRESSO and GIRAFFE spell it


@dataclass(frozen=True, eq=False)
class FileSpectrum:
    """What a file says of one spectrum.

    Attributes:
        given: Its arrays; the unit of the wavelengths is that of `unit`.
        unit: Unit of the wavelengths; None = not told.
        logarithm: What says that the wavelengths are log10; empty = nothing does.
        medium_by: What says the medium: `CTYPE1 = 'AWAV' says`.
        topocentric: It says that the motion of the Earth was not taken out.
        meta: Goes into `Spectrum.meta`.
    """

    given: Given
    unit: str | None = None
    logarithm: str = ""
    medium_by: str = ""
    topocentric: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- roles of columns


def _named(columns: Sequence[Column], names: Sequence[str]) -> Column | None:
    by_name = {column.name.strip().lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _ending(flux: str) -> str:
    """`_reduced` of `FLUX_REDUCED`."""
    return flux.strip().lower().removeprefix("flux")


def _error_of(flux: Column, columns: Sequence[Column]) -> Column | None:
    """The error of a flux, by its name, or by the utype where there is one flux and one error."""
    ending = _ending(flux.name)
    if (found := _named(columns, (f"err{ending}", f"error{ending}", f"sigma{ending}"))) is not None:
        return found
    errors = [column for column in columns if column.part == "fluxaxis.accuracy.staterror"]
    if errors:
        fluxes = [column for column in columns if column.part == "fluxaxis.value"]
        return errors[0] if len(errors) == 1 and len(fluxes) == 1 else None
    return None if ending in ("_reduced", "_cal") else _named(columns, ERRORS)


def spectrum_in(columns: Sequence[Column], what: str) -> FileSpectrum | None:
    """The spectrum in columns; None = they hold none.

    Args:
        columns: Of one table.
        what: What it came as, for sentences.

    Raises:
        ValueError: A column cannot be read, or is not as long as the others.
    """
    with_utypes = [column for column in columns if column.part]
    axis = next((column for column in with_utypes if column.part == "spectralaxis.value"), None)
    axis = axis or _named(columns, WAVELENGTHS)
    logarithm = ""
    if axis is None or axis.name.strip().lower() in LOGARITHMS:
        axis = axis or _named(columns, LOGARITHMS)
        logarithm = "" if axis is None else f"the name of its column, {axis.name.strip()!r}, says"
    fluxes = [column for column in with_utypes if column.part == "fluxaxis.value"]
    main = [column for column in fluxes if "meta.main" in column.ucd.lower()]
    flux = next(iter(main), None) or _named(fluxes, FLUXES) or next(iter(fluxes), None) or _named(columns, FLUXES)
    if axis is None or flux is None:
        return None
    notes = []
    if len(fluxes) > 1:
        others = ", ".join(column.name for column in fluxes if column is not flux)
        notes.append(f"flux is its column {flux.name}; {others} was not used")
    given = Given(_with_unit(flux), axis.read(), what, survey="other")
    arrays: dict[str, Any] = {}
    ivar, variance, error = _named(columns, INVERSE_VARIANCES), _named(columns, VARIANCES), _error_of(flux, columns)
    if ivar is not None:
        arrays["ivar"] = ivar.read()
    elif error is not None:
        arrays["flux_error"] = _in_unit_of(flux, error, notes)
    elif variance is not None:
        with np.errstate(invalid="ignore"):
            arrays["flux_error"] = np.sqrt(np.asarray(variance.read(), dtype=np.float64))
    bad = next((c for c in with_utypes if c.part.startswith("fluxaxis.accuracy.quality")), None)
    bad = bad or _named(columns, BAD_PIXELS)
    if bad is not None:
        flags = np.asarray(bad.read())
        if flags.dtype.kind in "biuf" and (flags == 0).any():
            arrays["bad_pixel"] = ~(flags == 0)
        else:
            notes.append(f"its column {bad.name} was not used: 0 means good there, and no pixel has it")
    if (mask := _named(columns, ("mask",))) is not None:
        arrays["mask"] = mask.read()
    medium, by = _medium_of(axis)
    told = Conventions(medium=medium)
    return FileSpectrum(
        replace(given, told=told, notes=tuple(notes), **arrays), axis.unit.strip() or None, logarithm, by
    )


def _with_unit(column: Column) -> Any:
    values, unit = column.read(), column.unit.strip()
    return Measured(values, unit) if unit and not hasattr(values, "unit") else values


def _in_unit_of(flux: Column, error: Column, notes: list[str]) -> Any:
    """An error whose unit is another one than the flux's goes with it, if astropy can read both."""
    own, other = error.unit.strip(), flux.unit.strip()
    if not own or not other or own == other:
        return error.read()
    from astropy import units as u

    try:
        u.Unit(own), u.Unit(other)
    except (ValueError, TypeError):
        notes.append(f"its errors were taken to be in the unit of the flux, {other!r}, though they say {own!r}")
        return error.read()
    return Measured(error.read(), own)


def _medium_of(axis: Column) -> tuple[Literal["vacuum", "air"] | None, str]:
    name, ucd = axis.name.strip().lower(), axis.ucd.strip().lower()
    if "obs.atmos" in ucd:
        return "air", f"its UCD {axis.ucd.strip()!r} says"
    if ucd == "em.wl" and axis.part == "spectralaxis.value":
        return "vacuum", f"its UCD {axis.ucd.strip()!r} says"
    for medium in ("air", "vac"):
        if name in (f"wave_{medium}", f"lambda_{medium}", f"wavelength_{medium}", f"{medium}wave"):
            return ("air" if medium == "air" else "vacuum"), f"the name of its column, {axis.name.strip()!r}, says"
    return None, ""


# ---------------------------------------------------------------- what is told besides


def conventions_of(path: Path, options: Mapping[str, Any]) -> Conventions:
    """What `any_file.read_spectrum` was told: `medium`, `frame` or `velocity`, `wavelength_unit`, `bad_pixel`.

    Raises:
        ValueError: A value that can be none, or frame and velocity both.
    """
    frame, velocity = options.get("frame"), options.get("velocity")
    if frame not in (None, "rest") or (frame is not None and velocity is not None):
        raise ValueError(
            f"{path}: needs either frame='rest' (the star's velocity was taken out) or velocity= (km/s, positive = "
            f"receding, of the spectrum as it is), got frame={frame!r} and velocity={velocity!r}."
        )
    told = {name: options.get(name) for name in ("medium", "wavelength_unit", "bad_pixel")}
    try:
        return Conventions(velocity=0.0 if frame == "rest" else velocity, **told)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_told(
    path: Path, found: FileSpectrum, told: Conventions, star_id: str | None = None, default_name: str | None = None
) -> tuple[Spectrum, tuple[str, ...]]:
    """What a file says and what was told besides -> the spectrum, and what was assumed, in sentences.

    Args:
        path: The file.
        found: Its spectrum.
        told: Counts where the file says nothing; a unit that contradicts it is refused, a medium is taken and said.
        star_id: Name of the star, before the file's.
        default_name: Where the file names none either.

    Raises:
        ValueError: Medium or velocity are not known, nor the star's name; or see `in_memory.spectrum_of`.
    """
    given, notes = found.given, list(found.given.notes)
    own, told, more = _units(found, told)
    notes += more
    medium = told.medium or given.told.medium
    unit = own or told.wavelength_unit
    missing = []
    if medium is None and not (unit is not None and _vacuum_by_nature(path, unit)):
        missing.append("medium='vacuum' or 'air' (--medium) for its wavelengths (they differ by 80 km/s)")
    if told.shift is None and given.told.shift is None and not given.at_rest:
        missing.append("velocity= (--velocity; km/s, positive = receding; 0 if it is at rest) or redshift=")
    if missing:
        raise ValueError(
            f"{path}: does not tell all that is needed; pass {', and '.join(missing)}. Got medium={told.medium!r}, "
            f"velocity={told.velocity!r}."
        )
    name = star_id or given.name or default_name
    if name is None:
        raise ValueError(f"{path}: names no star (OBJECT); pass star_id=, on which the star's split hangs.")
    if given.told.medium is not None and told.medium is None:
        notes.append(f"wavelengths were taken to be in {given.told.medium}, as {found.medium_by}")
    if found.topocentric:
        notes.append(
            "its wavelengths are as the telescope saw them (SPECSYS = 'TOPOCENT'), so the velocity told was taken to "
            "include the Earth's motion"
        )
    if own is not None:
        given = replace(given, wavelength=Measured(given.wavelength, own))
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # of damaged numbers, which end as bad pixels
            spectrum, assumed = spectrum_of(replace(given, name=name, notes=tuple(notes)), told, name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    ids = {"object": given.name} if given.name else {}
    meta = {**spectrum.meta, "file": path.name, "medium": medium, "velocity": told.velocity, **found.meta}
    return replace(spectrum, ids=ids, meta=meta), assumed


def _vacuum_by_nature(path: Path, unit: str) -> bool:
    try:
        return to_angstrom(np.ones(1), unit)[1]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _units(found: FileSpectrum, told: Conventions) -> tuple[str | None, Conventions, list[str]]:
    """Unit that the file says, what was told in the same words (log10 of it, where it is one), and notes."""
    own, passed, notes = found.unit, told.wavelength_unit, []
    if own is not None and (spelled := _LOG_UNIT.match(own)):
        own = f"log10({spelled[1]})"
    if found.logarithm:
        if passed is not None and not _IS_LOG.match(passed):
            passed = f"log10({passed})"
        if own is None and passed is None:
            notes.append(f"wavelengths were taken for log10(Angstrom): {found.logarithm} log10, and nothing the unit")
            own = "log10(Angstrom)"
        elif own is None:
            own = passed
        elif not _IS_LOG.match(own):
            own = f"log10({own})"
    elif own is not None and not _IS_LOG.match(own):
        # Headers say Angstrom and mean its logarithm: believed if told, since no star is seen at 3.7 Angstrom.
        middle = _middle(found.given.wavelength, own)
        logarithmic = middle is not None and not SANE[0] < middle < SANE[1] and _middle_of_log(found, own)
        if logarithmic and passed is not None and _IS_LOG.match(passed):
            notes.append(f"wavelengths were taken for {passed}, as was passed, though the file says {own!r}")
            own = passed
        elif logarithmic and passed is None:
            raise ValueError(
                f"{found.meta.get('file', 'the file')}: its wavelengths say {own!r}, which cannot be (a median of "
                f"{middle:.6g} Angstrom). They look like log10({own}); pass wavelength_unit='log10({own})'."
            )
    return own, replace(told, wavelength_unit=passed), notes


def _middle(values: Any, unit: str) -> float | None:
    """Median in Angstrom; None = the unit is none, or there is no number."""
    array = np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
    array = array[np.isfinite(array)]
    try:
        with np.errstate(all="ignore"):
            return float(to_angstrom(np.array([np.median(array)]), unit)[0][0]) if array.size else None
    except ValueError:
        return None


def _middle_of_log(found: FileSpectrum, unit: str) -> bool:
    middle = _middle(found.given.wavelength, f"log10({unit})")
    return middle is not None and SANE[0] < middle < SANE[1]
