"""Any other file that `specutils` recognises -> `Spectrum`. specutils is optional: `pip install specutils`.

specutils gives flux, a spectral axis with a unit, perhaps an uncertainty and a mask. It does not say whether
wavelengths are in air or in vacuum, nor whether the star's velocity was taken out, and a guess is wrong by 80 km/s or
by whatever the star's velocity is. So `medium`, and `frame` or `velocity`, must be told; nothing is assumed.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..spectra import SPEED_OF_LIGHT, Spectrum, air_to_vacuum
from .pixel_flags import ivar_of, trusted
from .star_names import normalise_star_name

Medium = Literal["vacuum", "air"]

_NAMES = ("OBJECT", "OBJID", "OBJ", "TARGNAME", "TARGET", "NAME")

FASTEST = 1000.0
"""km/s; faster stars are not known, so a larger velocity is a redshift, or in another unit."""


def check_told(path: Path, medium: str | None, frame: str | None, velocity: float | None) -> None:
    """Refuse to read a spectrum whose medium or frame nobody has told.

    Raises:
        ValueError: Something is missing or contradicts itself.
    """
    if medium not in ("vacuum", "air"):
        raise ValueError(
            f"{path}: needs medium='vacuum' or medium='air' for its wavelengths (they differ by 80 km/s), got "
            f"{medium!r}. The format does not tell; look it up in the survey's documentation."
        )
    if (frame is None) == (velocity is None):
        raise ValueError(
            f"{path}: needs either frame='rest' (the star's velocity was taken out) or velocity= (km/s, positive = "
            f"receding, of the spectrum as it is), got frame={frame!r} and velocity={velocity!r}."
        )
    if frame not in (None, "rest"):
        raise ValueError(f"{path}: frame must be 'rest' or None, got {frame!r}. Give velocity= for any other frame.")
    if velocity is not None and not abs(velocity) <= FASTEST:
        raise ValueError(f"{path}: velocity must lie within +-{FASTEST:.0f} km/s, got {velocity!r}.")


def _wavelength(path: Path, read: Any, told_unit: str | None) -> np.ndarray:
    """Spectral axis (wavelength, frequency, energy or wavenumber) -> Angstrom.

    specutils takes a linear axis without CUNIT1 for Angstrom; that is a guess too, so the unit must then be told. An
    axis that has its unit may have been put into another one (metres, of a WCS), so it is the header's unit that one
    which is told must not contradict, and the values are never given another.
    """
    from astropy import units as u

    from .in_memory import same_unit, to_angstrom  # which imports this module

    axis = read.spectral_axis
    header = read.meta.get("header") if hasattr(read.meta, "get") else None
    own, bare = str(getattr(axis, "unit", "") or ""), False
    if header is not None and "CRVAL1" in header and "COEFF0" not in header:
        words = f"{header.get('WAT1_001', '')}"
        named = re.search(r"units\s*=\s*(\S+)", words, re.IGNORECASE)
        own = str(header.get("CUNIT1", "")).strip() or (named[1] if named else "")
        bare = not own
        if bare and told_unit is None:
            raise ValueError(
                f"{path}: its wavelength axis (CRVAL1 = {header['CRVAL1']!r}) has no unit (CUNIT1); pass "
                "wavelength_unit='Angstrom', 'nm' or 'um'."
            )
    try:
        if told_unit is not None:
            to_angstrom(np.ones(1), told_unit)  # refuses what is no unit
            if own and not same_unit(own, told_unit):
                raise ValueError(
                    f"its wavelengths come in {own!r}, but wavelength_unit={told_unit!r} was passed; leave it out, or "
                    "correct the file."
                )
        if bare:  # whose values are the header's numbers, whatever unit specutils gave them
            return to_angstrom(np.asarray(axis.value, dtype=np.float64), str(told_unit))[0]
        unit = getattr(axis, "unit", None)
        if unit is None or unit.physical_type not in ("length", "frequency", "energy", "wavenumber"):
            raise ValueError(
                f"needs a spectral axis in Angstrom, nm, micron, Hz, eV or 1/cm, got the unit '{unit}'. "
                "Set it in the header (CUNIT1), pass wavelength_unit=, or give the arrays themselves."
            )
        quantity = u.Quantity(np.asarray(axis.value, dtype=np.float64), unit)
        return np.asarray(quantity.to_value(u.AA, equivalencies=u.spectral()), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _ivar(uncertainty: Any) -> np.ndarray | None:
    if uncertainty is None or getattr(uncertainty, "array", None) is None:
        return None
    values = np.asarray(uncertainty.array, dtype=np.float64)
    if uncertainty.uncertainty_type == "std":
        return ivar_of(values)
    if uncertainty.uncertainty_type == "var":
        with np.errstate(invalid="ignore"):
            return ivar_of(np.sqrt(values))
    return values if uncertainty.uncertainty_type == "ivar" else None


def _name(read: Any) -> str | None:
    header = read.meta.get("header", {}) if hasattr(read, "meta") else {}
    for key in _NAMES:
        for source in (header, read.meta):
            value = source.get(key) if hasattr(source, "get") else None
            if isinstance(value, str) and value.strip():
                return value.strip()
    return None


def read_with_specutils(
    path: Path,
    medium: Medium | None = None,
    frame: Literal["rest"] | None = None,
    velocity: float | None = None,
    star_id: str | None = None,
    row: int | None = None,
    file_format: str | None = None,
    wavelength_unit: str | None = None,
    default_name: str | None = None,
) -> Spectrum:
    """Read a spectrum with `specutils.Spectrum.read`.

    Args:
        path: The file.
        medium: What its wavelengths are measured in; must be given.
        frame: `rest` if the star's velocity was taken out.
        velocity: Otherwise the star's velocity in the spectrum, km/s, positive = receding.
        star_id: Name of the star, if the header has none in OBJECT or the like.
        row: Which spectrum, where the file holds several.
        file_format: Name of the format for specutils, if it cannot tell (`Spectrum.read.list_formats()`).
        wavelength_unit: Unit of the spectral axis, e.g. `nm`, if the file does not tell.
        default_name: Name of the star where neither `star_id` nor the header tells it.

    Returns:
        Flux in the file's unit (in `meta`); bad where specutils' mask says so or the flux is not finite; resolution
        unknown.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: specutils is not installed or does not recognise the file; medium or frame are not told; a unit is
            missing; or there are several spectra and `row` does not say which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no spectrum at {path}. Check the path.")
    check_told(path, medium, frame, velocity)
    try:
        import specutils
    except ImportError as error:
        raise ValueError(f"{path}: reading this format needs specutils; run: pip install specutils") from error
    # Spectrum1D until specutils 1.x.
    reader = getattr(specutils, "Spectrum", None) or specutils.Spectrum1D
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            read = reader.read(str(path), **({} if file_format is None else {"format": file_format}))
            flux = np.asarray(read.flux.value, dtype=np.float64)
            read.spectral_axis  # noqa: B018  # computed on access, and may fail
            flux_unit, uncertainty, mask = str(read.flux.unit), read.uncertainty, read.mask
    except Exception as error:  # its loaders raise whatever their format's code raises
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{path}: specutils cannot read it ({first_line}). Name its format with file_format=, one of "
            "specutils.Spectrum.read.list_formats(), or give the arrays themselves."
        ) from error
    ivar = _ivar(uncertainty)
    bad_pixel = np.zeros(flux.shape, dtype=bool) if mask is None else np.broadcast_to(np.asarray(mask) != 0, flux.shape)
    wavelength = _wavelength(path, read, wavelength_unit)
    if flux.ndim != 1:
        n_rows = int(np.prod(flux.shape[:-1]))
        if row is None and n_rows > 1:
            raise ValueError(f"{path}: holds {n_rows} spectra (flux of shape {flux.shape}); say which with row=.")
        if not 0 <= (row or 0) < n_rows:
            raise ValueError(f"{path}: has rows 0 to {n_rows - 1}, got row={row!r}.")
        flux, bad_pixel = flux.reshape(n_rows, -1)[row or 0], bad_pixel.reshape(n_rows, -1)[row or 0]
        ivar = None if ivar is None else ivar.reshape(n_rows, -1)[row or 0]
    elif row not in (None, 0):
        raise ValueError(f"{path}: holds one spectrum, got row={row!r}.")
    if wavelength.shape != flux.shape or flux.size < 2:
        raise ValueError(f"{path}: needs as many wavelengths as fluxes, got {wavelength.shape} and {flux.shape}.")
    order = np.argsort(wavelength, kind="stable") if wavelength[0] > wavelength[-1] else np.arange(flux.size)
    wavelength, flux, bad_pixel = wavelength[order], flux[order], bad_pixel[order]
    if not (np.isfinite(wavelength).all() and (wavelength > 0).all() and (np.diff(wavelength) > 0).all()):
        raise ValueError(
            f"{path}: wavelengths must be finite, positive and change in one direction, got {wavelength[0]:.6g} to "
            f"{wavelength[-1]:.6g} Angstrom with {int((np.diff(wavelength) <= 0).sum())} steps back. Overlapping "
            "orders must be merged first."
        )
    if medium == "air":
        wavelength = air_to_vacuum(wavelength)
    name = star_id or _name(read) or default_name
    if name is None:
        raise ValueError(f"{path}: its header names no star (OBJECT); pass star_id=, on which the star's split hangs.")
    flux, ivar, bad_pixel = trusted(flux, None if ivar is None else ivar[order], bad_pixel)
    return Spectrum(
        wavelength=wavelength / (1.0 + (velocity or 0.0) / SPEED_OF_LIGHT),
        flux=flux,
        bad_pixel=bad_pixel,
        star_id=normalise_star_name(name),
        survey="other",
        ivar=ivar,
        ids={"object": name},
        meta={
            "file": path.name,
            "format": f"specutils {file_format or ''}".strip(),
            "medium": medium,
            "frame": frame,
            "velocity": velocity,
            "flux_unit": flux_unit,
        },
    )
