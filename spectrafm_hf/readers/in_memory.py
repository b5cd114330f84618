"""Spectra that are in memory already -> `Spectrum`: arrays with or without unit, mask and error; tables; specutils.

Arrays seldom tell all that a spectrum needs: the unit of the wavelengths, whether they are in air or in vacuum, the
star's velocity, the sign of a mask. Three rules:

* what the array tells itself counts (units, `numpy.ma`, specutils' mask and redshift);
* what it does not tell is taken from `Conventions`, and what nobody tells is assumed to be vacuum Angstrom at rest, and
  said in a sentence;
* what cannot be so is refused: bare numbers that are no Angstrom, a boolean mask without a sign, a velocity given for
  a spectrum that is at rest.

Repeated wavelengths are averaged with their inverse variances as weights, which is what their errors ask for. Pixels of
orders that overlap at different wavelengths stay as they are, sorted: nothing is resampled, so their noise stays
independent, and the feature extractor averages them on the model's pixels. Orders whose flux disagrees where they
overlap would look like lines then; they are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ..spectra import SPEED_OF_LIGHT, Spectrum, air_to_vacuum
from .linear_fits import SANE
from .pixel_flags import ivar_of, trusted
from .specutils_formats import FASTEST
from .star_names import normalise_star_name

Sign = Literal["True is bad", "True is good"]


@dataclass(frozen=True)
class Conventions:
    """What the user knows of spectra that do not tell it themselves; None = not told.

    **Of a file, an array or a table that tells it itself its own counts.** A told value that agrees with it (medium
    `vacuum` or velocity 0 for APOGEE's spectra, which are in vacuum and at rest; velocities closer than
    `SAME_VELOCITY`) is no contradiction. One that differs is refused with both values where the spectrum was given by
    itself. In a folder or a list, where it is meant for those that do not tell, the own value is kept and a sentence
    says so. Two exceptions: a resolving power that differs is left out in a sentence either way, since it moves no
    line; and of arrays and specutils the told medium is taken, in a sentence, since a WCS often says vacuum of air.

    Attributes:
        medium: What wavelengths are measured in.
        velocity: Radial velocity v of the star in the spectrum as it is, km/s, positive = receding; wavelengths are
            divided by 1 + v/c. Or a Quantity.
        redshift: z instead of a velocity; wavelengths are divided by 1 + z.
        wavelength_unit: `Angstrom`, `nm`, `um`, `log10(Angstrom)`, `ln(Angstrom)`, or any unit of a wavelength,
            frequency, energy or wavenumber that astropy knows.
        resolving_power: lambda / FWHM.
        bad_pixel: What True means in an array called `mask`, or any bit in a bitmask.
        reader: Options for `readers.any_file.read_spectrum`. `velocity` of a LAMOST file replaces its own redshift;
            `medium`, `frame` ("rest" = velocity 0), `wavelength_unit` and, of other formats, `velocity` are the same as
            told above.

    Raises:
        ValueError: A value that can be none, or velocity and redshift both.
    """

    medium: Literal["vacuum", "air"] | None = None
    velocity: float | None = None
    redshift: float | None = None
    wavelength_unit: str | None = None
    resolving_power: float | None = None
    bad_pixel: Sign | None = None
    reader: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.medium not in (None, "vacuum", "air"):
            raise ValueError(f"medium must be 'vacuum' or 'air', got {self.medium!r}.")
        if self.bad_pixel not in (None, "True is bad", "True is good"):
            raise ValueError(f"bad_pixel must be 'True is bad' or 'True is good', got {self.bad_pixel!r}.")
        if self.velocity is not None and self.redshift is not None:
            raise ValueError(
                f"give velocity (km/s) or redshift, not both; got {self.velocity!r} and {self.redshift!r}."
            )
        for name in ("velocity", "redshift", "resolving_power"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, number_of(name, getattr(self, name)))
        if self.wavelength_unit is not None:
            object.__setattr__(self, "wavelength_unit", str(self.wavelength_unit))  # one of astropy's, perhaps
        if self.velocity is not None and not abs(self.velocity) <= FASTEST:
            raise ValueError(f"velocity must lie within +-{FASTEST:.0f} km/s, got {self.velocity!r}.")
        if self.redshift is not None and not abs(self.redshift) <= FASTEST / SPEED_OF_LIGHT:
            raise ValueError(
                f"redshift must lie within +-{FASTEST / SPEED_OF_LIGHT:.5f} ({FASTEST:.0f} km/s), got "
                f"{self.redshift!r}. Is it a velocity? Pass velocity= in km/s."
            )
        if self.resolving_power is not None and not 0 < self.resolving_power < math.inf:
            raise ValueError(f"resolving_power is lambda / FWHM and positive, got {self.resolving_power!r}.")

    @property
    def shift(self) -> float | None:
        """1 + z = observed / rest wavelength; None = not told."""
        if self.redshift is not None:
            return 1.0 + float(self.redshift)
        return None if self.velocity is None else 1.0 + float(self.velocity) / SPEED_OF_LIGHT


# ---------------------------------------------------------------- one array


@dataclass(frozen=True, eq=False)
class Values:
    """An array without its wrapping.

    Attributes:
        array: float64, native byte order, our own copy.
        masked: Same shape, bool; True = its own mask says "do not trust".
        unit: Its unit as astropy spells it; None = bare numbers.
        half: Whether it came in half precision, which has three digits.
    """

    array: np.ndarray
    masked: np.ndarray
    unit: str | None
    half: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers taken out of a column that has a unit."""

    value: Any
    unit: Any


def values_of(name: str, given: Any) -> Values:
    """Numbers in any wrapping -> `Values`.

    Takes arrays of any real type, byte order and layout, sequences, masked arrays, astropy's Quantity, Column, Masked
    and their mixtures, pandas' Series, torch's tensors. None among objects counts as NaN.

    Raises:
        ValueError: Not numbers, complex numbers, or a ragged array.
    """
    if isinstance(given, Measured):
        inner = values_of(name, given.value)
        return inner if inner.unit is not None or given.unit is None else replace(inner, unit=str(given.unit))
    unit, masked = getattr(given, "unit", None), None
    half = str(getattr(given, "dtype", "")).endswith("float16")
    if type(given).__module__.split(".")[0] == "torch":
        given = given.detach().cpu().double().numpy()
    elif type(given).__module__.split(".")[0] == "pandas":
        given = given.to_numpy(dtype=object, na_value=np.nan)
    elif hasattr(given, "unmasked") and hasattr(given, "mask"):  # astropy's Masked
        masked, given = np.asarray(given.mask), given.unmasked
    if isinstance(given, np.ma.MaskedArray):
        masked, given = np.ma.getmaskarray(given), given.data
    if unit is not None and hasattr(given, "unit"):
        given = getattr(given, "value", given)
    array = _real(name, given)
    masked = np.zeros(array.shape, dtype=bool) if masked is None else np.broadcast_to(masked, array.shape)
    return Values(array, masked, str(unit).strip() or None if unit is not None else None, half)


def _real(name: str, given: Any) -> np.ndarray:
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name} must be one array of numbers, got a ragged one ({error}).") from error
    if array.dtype.kind == "c":
        raise ValueError(f"{name} must be real, got complex numbers; take .real, if their imaginary part is 0, before.")
    if array.dtype.kind not in "biufO" or array.dtype.names:
        raise ValueError(f"{name} must be numbers, got an array of type {array.dtype}.")
    try:
        with np.errstate(all="ignore"):
            return np.array(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, one per pixel, got {_shown(given)} ({error}).") from error


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) < 60 else text[:57] + "..."


# ---------------------------------------------------------------- wavelengths

_LENGTHS = {"angstrom": 1.0, "nm": 10.0, "um": 1e4, "m": 1e10}
_SPELLINGS = {
    "aa": "angstrom", "ang": "angstrom", "angstroms": "angstrom", "å": "angstrom", "ångström": "angstrom",
    "nanometer": "nm", "nanometers": "nm", "nanometre": "nm", "micron": "um", "microns": "um", "µm": "um", "μm": "um",
    "micrometer": "um", "micrometers": "um", "micrometre": "um",
}  # fmt: skip
_LOGARITHM = re.compile(r"^\s*(log10|log|dex|ln)\s*\(\s*(.+?)\s*\)\s*$", re.IGNORECASE)


def _unit_name(unit: str) -> str:
    lower = unit.strip().lower()
    return _SPELLINGS.get(lower, lower if lower in ("angstrom", "nm", "um") else unit.strip())


def to_angstrom(values: np.ndarray, unit: str) -> tuple[np.ndarray, bool]:
    """Wavelengths, frequencies, energies or wavenumbers -> Angstrom, and whether they are in vacuum by their nature.

    Args:
        values: Any shape, float64.
        unit: As `Conventions.wavelength_unit`.

    Raises:
        ValueError: The unit is none of those.
    """
    if logarithm := _LOGARITHM.match(unit):
        with np.errstate(over="ignore"):
            base = math.e if logarithm[1].lower() == "ln" else 10.0
            return to_angstrom(base**values, logarithm[2])
    unit = _unit_name(unit)
    if (factor := _LENGTHS.get(unit)) is not None:
        return values * factor, False
    if unit in ("pix", "pixel", "pixels"):
        raise ValueError("wavelengths are pixel numbers; give the wavelength of each pixel (Angstrom, nm, um) instead.")
    wrong = (
        f"wavelengths must come in a unit of wavelength, frequency, energy or wavenumber (Angstrom, nm, um, "
        f"log10(Angstrom), THz, 1/cm ...), got {unit!r}."
    )
    try:
        from astropy import units as u
    except ImportError as error:
        raise ValueError(f"{wrong} Units beyond these need astropy: pip install astropy") from error
    try:
        parsed = u.Unit(unit)
        kind = parsed.physical_type
    except (ValueError, TypeError) as error:
        raise ValueError(wrong) from error
    if kind == "speed" or kind == "velocity":
        raise ValueError(
            f"wavelengths are velocities ({unit}) around a line; give wavelengths: rest wavelength x (1 + v/c)."
        )
    if kind not in ("length", "frequency", "energy", "wavenumber"):
        raise ValueError(wrong)
    with np.errstate(all="ignore"):
        return np.asarray(u.Quantity(values, parsed).to_value(u.AA, equivalencies=u.spectral())), kind != "length"


def _what_bare_numbers_look_like(wavelength: np.ndarray) -> str | None:
    """A sentence if numbers without unit cannot be Angstrom; None if they may be.

    Stars are observed at 3,000 to 25,000 Angstrom and a little beyond; the bounds are those of the other units.
    """
    told = "pass wavelength_unit="
    finite = wavelength[np.isfinite(wavelength)]
    if finite.size < 2:
        return None
    low, high, middle = float(finite.min()), float(finite.max()), float(np.median(finite))
    came = f"got {low:.6g} to {high:.6g} without a unit, which"
    if (finite < 0).mean() > 0.2:
        return (
            f"{came} looks like velocities (km/s) around a line; give wavelengths: rest wavelength x (1 + v/c), "
            "vacuum Angstrom."
        )
    if low in (0.0, 1.0) and high <= finite.size and (np.diff(np.sort(finite)) == 1).all():
        return f"{came} looks like pixel numbers; give the wavelength of each pixel (vacuum Angstrom)."
    if middle <= 0:
        return f"{came} are no wavelengths; give vacuum Angstrom."
    if middle < 1e-3:
        return f"{came} looks like metres; {told}'m'."
    if low >= 3.3 and high <= 4.7:
        return f"{came} looks like log10(Angstrom), or micron; {told}'log10(Angstrom)' or 'um'."
    if low >= 8.1 and high <= 9.8:  # 3,300 to 18,000 Angstrom
        return (
            f"{came} looks like the natural logarithm of Angstrom, or micron; {told}'ln(Angstrom)' or 'um'. (Those of "
            "log10 lie in 3.3 to 4.7.)"
        )
    if middle < 30:
        return f"{came} looks like micron; {told}'um'."
    if middle < 2800:
        return f"{came} looks like nm; {told}'nm', or 'Angstrom' if it is the far ultraviolet."
    if middle > SANE[1]:
        return f"{came} looks like a frequency or wavenumber; {told}'GHz', say."
    return None


def speed_of(value: Any) -> Any:
    """A velocity in km/s, if it has a unit; else as it is.

    Raises:
        ValueError: Its unit is none of a velocity.
    """
    unit = getattr(value, "unit", None)
    if unit is None:
        return value
    from astropy import units as u

    try:
        return u.Quantity(value.value, unit).to_value(u.km / u.s)
    except u.UnitConversionError as error:
        raise ValueError(f"velocity must be in km/s, got {value.value} {unit}".rstrip() + ".") from error


_NEEDED = {
    "velocity": "one number of km/s (positive = receding), or a Quantity of a velocity",
    "redshift": "one number z, without a unit",
    "resolving_power": "one number lambda / FWHM, without a unit",
}


def number_of(name: str, value: Any) -> float:
    """A number that a user told: velocity in km/s, redshift, resolving power.

    Raises:
        ValueError: It is no number, several of them, or of another unit.
    """
    if name == "velocity":
        plain = speed_of(value)
    elif (unit := getattr(value, "unit", None)) is None:
        plain = value
    else:
        from astropy import units as u

        try:
            plain = u.Quantity(value.value, unit).to_value(u.one)
        except u.UnitConversionError as error:
            speed = " Is it a velocity? Pass velocity=." * (name == "redshift")
            raise ValueError(f"{name} must be {_NEEDED[name]}; got {value.value} {unit}.{speed}") from error
    shape = np.shape(plain)
    if shape or isinstance(plain, (str, bytes, bool, np.bool_)) or plain is np.ma.masked:
        each = f' For one per spectrum: {{"flux": ..., "wavelength": ..., "{name}": ...}}.' if shape else ""
        raise ValueError(f"{name} must be {_NEEDED[name]}; got {_shown(value)}.{each}")
    try:
        return float(plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {_NEEDED[name]}; got {_shown(value)}.") from error


# ---------------------------------------------------------------- one spectrum


@dataclass(frozen=True, eq=False)
class Given:
    """One spectrum as it came, in whatever wrapping; None = not there.

    Attributes:
        flux, wavelength: One value per pixel.
        what: What it came as, for sentences: `array`, `table`, `row`, `specutils.Spectrum`.
        flux_error: 1-sigma, unit of the flux.
        ivar: Inverse variance.
        bad_pixel: True = do not trust.
        mask: Of either sign, or a bitmask: `Conventions.bad_pixel` must say what it means.
        resolving_power: lambda / FWHM, a number or one per pixel.
        fwhm: Angstrom.
        name, survey: Of the star; of who observed it.
        told: What it says itself: see `Conventions`; counts before them.
        at_rest: Whether it says that it is in the star's rest frame, or that it is not; None = it does not say.
        notes: What was assumed so far.
        more: Other fields of `Spectrum`.
    """

    flux: Any
    wavelength: Any
    what: str = "array"
    flux_error: Any = None
    ivar: Any = None
    bad_pixel: Any = None
    mask: Any = None
    resolving_power: Any = None
    fwhm: float | None = None
    name: str | None = None
    survey: str = "own"
    told: Conventions = field(default_factory=Conventions)
    at_rest: bool | None = None
    notes: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


def spectrum_of(given: Given, conventions: Conventions, default_name: str) -> tuple[Spectrum, tuple[str, ...]]:
    """One spectrum in vacuum Angstrom at rest, pixels in order, and what had to be assumed for it, in sentences.

    Args:
        given: As it came.
        conventions: What the user knows of it.
        default_name: Of the star, where it says none.

    Raises:
        ValueError: It cannot be read; the message says what is needed, what came and what to do.
    """
    assumed = list(given.notes)
    flux, observed = values_of("flux", given.flux), values_of("wavelength", given.wavelength)
    _check_shapes(given, flux.array, observed.array)
    _check_flux_unit(flux.unit)
    if flux.array.size < 2:
        raise ValueError(f"a spectrum needs at least 2 pixels, got {flux.array.size}.")
    scale = _scale_of(flux.array)
    ivar = _ivar_of(given, flux, scale, assumed)
    bad = flux.masked | _bad_pixels(given, flux.array.shape, conventions.bad_pixel)
    wavelength, usable = _rest_wavelength(given, observed, conventions, assumed)
    left_out = usable.size - int(usable.sum())
    if wavelength.size - left_out < 2:
        raise ValueError(
            f"a spectrum needs at least 2 pixels, got {wavelength.size - left_out} with a usable wavelength; of "
            f"{left_out} it is NaN, infinite, zero, negative or masked."
        )
    if left_out:
        assumed.append(
            f"{left_out} of {wavelength.size} pixels have no usable wavelength (NaN, infinite, zero, negative or "
            "masked) and were left out"
        )
    kept = [wavelength, flux.array if scale == 1 else flux.array / scale, bad, *([] if ivar is None else [ivar])]
    wavelength, light, bad, *known = [array[usable] for array in kept] if left_out else kept
    ivar = known[0] if known else None
    pixels = _Pixels(wavelength, *trusted(light, ivar, bad))
    if pixels.bad.all():
        raise ValueError(
            f"none of its {pixels.bad.size} pixels can be trusted: {int(bad.sum())} are flagged, "
            f"{int((~np.isfinite(light)).sum())} have no finite flux, "
            f"{0 if ivar is None else int((~(ivar > 0)).sum())} no usable error. Is a mask inverted, or an error 0 "
            "everywhere?"
        )
    check_light("the flux", pixels.flux, pixels.bad)
    pixels = _in_order(pixels, assumed)
    return (
        Spectrum(
            wavelength=pixels.wavelength,
            flux=pixels.flux,
            bad_pixel=pixels.bad,
            star_id=normalise_star_name(given.name or default_name),
            survey=given.survey,
            ivar=pixels.ivar,
            fwhm=given.fwhm,
            resolving_power=_resolving_power(given, conventions, assumed),
            meta={"format": given.what, "flux_scale": scale},
            **given.more,
        ),
        tuple(assumed),
    )


def _check_shapes(given: Given, flux: np.ndarray, wavelength: np.ndarray) -> None:
    if flux.ndim != 1 or wavelength.ndim != 1 or flux.shape != wavelength.shape:
        raise ValueError(
            f"flux and wavelength must be 1-D with one value per pixel, got shapes {flux.shape} and {wavelength.shape}."
        )


def check_light(what: str, flux: np.ndarray, bad: np.ndarray) -> None:
    """Refuse a flux of which no good pixel is positive.

    Raises:
        ValueError: None is.
    """
    if not (flux[~bad] > 0).any():
        good = flux[~bad]
        raise ValueError(
            f"{what} must be proportional to light, but none of its {good.size} good pixels is positive (they go from "
            f"{good.min():.4g} to {good.max():.4g}). Was its sign turned, the continuum subtracted, or a background "
            "taken off twice? A logarithm or magnitude must become a flux first: 10**(-0.4 x mag)."
        )


def _check_flux_unit(unit: str | None) -> None:
    if unit is not None and re.search(r"(?i)\b(?:\w*mag|dex|db|decibel)\b", unit):
        raise ValueError(
            f"flux must be in a unit that is proportional to light, got {unit!r}, a logarithm; pass 10**(-0.4 x mag)."
        )


def _pixelwise(name: str, given: Any, shape: tuple[int, ...]) -> Values:
    values = values_of(name, given)
    _as_shape(name, values.array, shape)
    return values


def _as_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"{name} must have one value per pixel {shape}, got shape {array.shape}.")
    return array


def _scale_of(flux: np.ndarray) -> float:
    """What a flux is divided by so that it and its inverse variance fit float32: 1, or a power of 10.

    W m-2 Hz-1 make 1e-29 of a bright star, whose inverse variance would overflow and pass for no information.
    """
    for some in (flux[:: 1 + flux.size // 256], flux):  # a power of 10 is known from a few pixels
        seen = np.abs(some[np.isfinite(some) & (some != 0)])
        if seen.size:
            middle = float(np.median(seen))
            return 1.0 if 1e-8 < middle < 1e8 else 10.0 ** round(math.log10(middle))
    return 1.0


def _ivar_of(given: Given, flux: Values, scale: float, assumed: list[str]) -> np.ndarray | None:
    """Inverse variance of the flux in units of `scale`, 0 = no information; None = not told."""
    shape = flux.array.shape
    ivar = error = None
    if given.ivar is not None:
        told = _pixelwise("ivar", given.ivar, shape)
        factor = _factor(told.unit, flux.unit, -2, "ivar")
        with np.errstate(all="ignore"):
            ivar = np.where(told.masked, 0.0, told.array * factor * scale * scale)
    if given.flux_error is not None:
        told = _pixelwise("flux_error", given.flux_error, shape)
        factor = _factor(told.unit, flux.unit, 1, "flux_error")
        with np.errstate(all="ignore"):
            error = ivar_of(np.where(told.masked, np.nan, told.array * factor / scale))
    if ivar is not None and error is not None:
        both = (error > 0) & (ivar > 0) & np.isfinite(ivar)
        if both.any() and not 0.9 < np.median(ivar[both] / error[both]) < 1.1:
            raise ValueError(
                "flux_error and ivar contradict each other (ivar must be 1 / flux_error**2; its median ratio to that "
                f"is {np.median(ivar[both] / error[both]):.3g}); give the one that is right."
            )
        assumed.append("flux_error was not used, since ivar says the same")
    return error if ivar is None else ivar


def _factor(unit: str | None, flux_unit: str | None, power: int, name: str) -> float:
    """From the unit of an error to that of the flux; 1 where either is not told."""
    if unit is None or flux_unit is None:
        return 1.0
    from astropy import units as u

    try:
        return float(u.Unit(unit).to(u.Unit(flux_unit) ** power))
    except u.UnitConversionError as error:
        raise ValueError(
            f"{name} must come in the unit of the flux{' to the power -2' if power == -2 else ''}, got {unit!r} for a "
            f"flux in {flux_unit!r}."
        ) from error


def _bad_pixels(given: Given, shape: tuple[int, ...], sign: Sign | None) -> np.ndarray:
    """Shape (n_pixels,), True = do not trust."""
    bad = np.zeros(shape, dtype=bool)
    for name, flags in (("bad_pixel", given.bad_pixel), ("mask", given.mask)):
        if flags is None:
            continue
        if isinstance(flags, (bool, np.bool_)):  # one for all, as numpy.ma writes "none"
            flags = np.full(shape, bool(flags))
        if name == "bad_pixel" and type(flags) is np.ndarray and flags.dtype == bool:
            bad |= _as_shape(name, flags, shape)
            continue
        values = _pixelwise(name, flags, shape)
        if not np.isfinite(values.array).all() or (values.array % 1).any():
            raise ValueError(f"{name} must be booleans or a bitmask of whole numbers, got other numbers.")
        boolean = bool(((values.array == 0) | (values.array == 1)).all())
        known = given.told.bad_pixel or sign or ("True is bad" if name == "bad_pixel" and boolean else None)
        if known is None and boolean:
            raise ValueError(
                "mask may mean either sign; pass bad_pixel='True is bad' or bad_pixel='True is good' (--bad-pixel), or "
                "call the array or column bad_pixel (True or 1 = do not trust)."
            )
        if known is None or (known == "True is good" and not boolean):
            raise ValueError(
                f"{name} is a bitmask (values up to {values.array.max():.0f}); pass bad_pixel='True is bad' "
                "(--bad-pixel) if any bit makes a pixel bad, else give bad_pixel = (bitmask & bad_bits) != 0."
            )
        # A name that says its sign is not turned round by what was told of another.
        good_is_true = known == "True is good" and name == "mask"
        bad |= values.masked | ((values.array == 0) if good_is_true else (values.array != 0))
    return bad


def _resolving_power(given: Given, conventions: Conventions, assumed: list[str]) -> float | None:
    told = given.told.resolving_power
    if given.resolving_power is not None:
        values = values_of("resolving_power", given.resolving_power)
        known = values.array[~values.masked & np.isfinite(values.array) & (values.array > 0)]
        if known.size:
            told = float(np.median(known))
            if known.min() < 0.9 * told or known.max() > 1.1 * told:
                assumed.append(
                    f"its resolving power goes from {known.min():.0f} to {known.max():.0f}; the median, {told:.0f}, "
                    "was taken for all pixels"
                )
    if told is None and given.fwhm is None:
        return conventions.resolving_power
    if told is not None and conventions.resolving_power and abs(told / conventions.resolving_power - 1) >= 0.01:
        assumed.append(
            f"resolving_power={conventions.resolving_power:g} was not used, since the {given.what} tells {told:g}"
        )
    return told


# ---------------------------------------------------------------- wavelengths of one spectrum


def _rest_wavelength(
    given: Given, values: Values, conventions: Conventions, assumed: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Vacuum Angstrom at rest, and which of them are usable; shapes (n_pixels,)."""
    array, missing = values.array, []
    if values.half:
        raise ValueError(
            "wavelengths came in half precision (float16), whose steps are 4 Angstrom at 5,000; give float32 or "
            "float64."
        )
    own_unit, passed = values.unit or given.told.wavelength_unit, conventions.wavelength_unit
    if own_unit and passed and not same_unit(own_unit, passed):
        raise ValueError(
            f"its wavelengths come in {own_unit!r}, but wavelength_unit={passed!r} was passed; leave it out, or take "
            "the unit off."
        )
    unit = own_unit or passed
    if unit is None:
        if (complaint := _what_bare_numbers_look_like(array[~values.masked])) is not None:
            raise ValueError(f"wavelength must be vacuum Angstrom, or have a unit: {complaint}")
        wavelength, by_nature = array, False
        missing.append("unit")
    else:
        wavelength, by_nature = to_angstrom(array, unit)
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(wavelength) & (wavelength > 0) & ~values.masked
    if usable.any() and 2 * ((wavelength > SANE[0]) & (wavelength < SANE[1])).sum() < usable.sum():
        raise ValueError(
            f"wavelengths must lie in {SANE[0]:g} to {SANE[1]:g} Angstrom, got a median of "
            f"{np.median(wavelength[usable]):.6g} Angstrom ({unit or 'Angstrom'} told). Is the unit right?"
        )
    medium = given.told.medium or conventions.medium
    if given.told.medium and conventions.medium and given.told.medium != conventions.medium:
        medium = conventions.medium
        assumed.append(
            f"wavelengths were taken to be in {medium}, as was passed, though the {given.what} says {given.told.medium}"
        )
    if by_nature and medium == "air":
        raise ValueError(
            f"medium='air' was passed, but {unit} are frequencies, energies or wavenumbers, which give vacuum "
            "wavelengths; leave it out."
        )
    if medium is None and not by_nature:
        missing.append("medium")
    shift = _shift_of(given, conventions)
    if shift is None and not given.at_rest:
        missing.append("frame")
    if missing:
        assumed.append(_taken_for(missing, given.what))
    wavelength = wavelength if usable.all() else np.where(usable, wavelength, 1.0)
    if medium == "air":
        wavelength = _to_vacuum(wavelength)
    return wavelength if shift is None else wavelength / shift, usable


def _to_vacuum(wavelength: np.ndarray) -> np.ndarray:
    """Air to vacuum from 2,000 Angstrom on; bluer wavelengths are given in vacuum by custom, where air is opaque."""
    return np.where(wavelength >= 2000.0, air_to_vacuum(np.maximum(wavelength, 2000.0)), wavelength)


def same_unit(one: str, other: str) -> bool:
    """Whether two units of wavelengths are one, however they are spelled."""
    if _unit_name(one) == _unit_name(other):
        return True
    try:
        probe = np.array([3.0, 4.0])
        return bool(np.allclose(to_angstrom(probe, one)[0], to_angstrom(probe, other)[0], rtol=1e-9, atol=0))
    except ValueError:
        return False


SAME_VELOCITY = 0.1
"""km/s; velocities that differ by less are one, written with fewer digits, and no line of a star tells them apart."""


def same_shift(one: float, other: float) -> bool:
    """Whether two ratios of observed to rest wavelength are one, within `SAME_VELOCITY`."""
    return abs(one - other) * SPEED_OF_LIGHT < SAME_VELOCITY


def _shift_of(given: Given, conventions: Conventions) -> float | None:
    """Observed / rest wavelength; None = nobody has told, or it is at rest."""
    own, told = given.told.shift, conventions.shift
    if given.at_rest is False and own is None and told is None:
        raise ValueError(
            f"the {given.what} says that it is not in the star's rest frame; pass velocity= (--velocity; km/s, "
            "positive = receding) or redshift=."
        )
    if given.at_rest:
        for shift in (own, told):
            if shift is not None and not same_shift(shift, 1.0):
                raise ValueError(
                    f"the {given.what} says that it is in the star's rest frame already, so the velocity of "
                    f"{(shift - 1) * SPEED_OF_LIGHT:.2f} km/s would be taken out twice; leave it out."
                )
        return None
    if own is not None and told is not None and not same_shift(own, told):
        raise ValueError(
            f"the {given.what} brings its own redshift ({own - 1:.6g}, {(own - 1) * SPEED_OF_LIGHT:.2f} km/s), so the "
            f"one passed ({told - 1:.6g}, {(told - 1) * SPEED_OF_LIGHT:.2f} km/s) would be taken out as well; leave it "
            f"out, or take it off the {given.what}."
        )
    return told if own is None else own


def _taken_for(missing: Sequence[str], what: str) -> str:
    """One sentence for all that nobody has told: unit, medium, frame."""
    if "unit" in missing:
        taken = f"taken for {'vacuum ' if 'medium' in missing else ''}Angstrom"
        taken += " in the star's rest frame" if "frame" in missing else ""
    elif "medium" in missing:
        taken = "taken to be in vacuum" + (" and in the star's rest frame" if "frame" in missing else "")
    else:
        taken = "taken to be in the star's rest frame"
    return f"wavelengths were {taken}, which the {what} does not tell"


# ---------------------------------------------------------------- order of pixels


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Shapes (n_pixels,)."""

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray | None
    bad: np.ndarray

    def __getitem__(self, kept: Any) -> _Pixels:
        ivar = None if self.ivar is None else self.ivar[kept]
        return _Pixels(self.wavelength[kept], self.flux[kept], ivar, self.bad[kept])


SAME_SPAN = 0.9
"""Of its wavelengths; runs of pixels that share more with each other are several spectra, not orders of one."""

LARGEST_STEP = 0.1
"""Of the flux; orders that differ by more where they overlap have no common scale."""


def _in_order(pixels: _Pixels, assumed: list[str]) -> _Pixels:
    """Sorted by wavelength, each of which comes once.

    Raises:
        ValueError: The pixels are those of several spectra, or of orders whose fluxes disagree.
    """
    if (pixels.wavelength[1:] > pixels.wavelength[:-1]).all():
        return pixels
    step = np.diff(pixels.wavelength)
    if (step < 0).all():
        return pixels[::-1]
    _check_runs(pixels, step)
    unique, group, count = np.unique(pixels.wavelength, return_inverse=True, return_counts=True)
    # Equal wavelengths are told apart by what they hold, so that the order they came in changes no bit of a sum.
    order = np.lexsort((pixels.flux, pixels.wavelength))
    if unique.size == group.size:
        return pixels[order]
    pixels, group = pixels[order], group[order]
    weight = np.where(pixels.bad, 0.0, 1.0 if pixels.ivar is None else pixels.ivar)
    scale = weight.max() or 1.0
    total = np.bincount(group, weights=weight / scale)
    flux = np.bincount(group, weights=weight / scale * pixels.flux) / np.where(total > 0, total, 1.0)
    assumed.append(
        f"{int((count > 1).sum())} wavelengths came more than once; their good pixels were averaged"
        + ("" if pixels.ivar is None else ", weighted by inverse variance")
    )
    if unique.size < 2:
        raise ValueError(f"a spectrum needs at least 2 different wavelengths, got {unique.size}.")
    return _Pixels(unique, flux, None if pixels.ivar is None else total * scale, ~(total > 0))


def _check_runs(pixels: _Pixels, step: np.ndarray) -> None:
    """Look at pixels that run through the wavelengths several times: orders, chips, or spectra one after the other."""
    forward = (step > 0).sum() >= (step < 0).sum()
    borders = np.flatnonzero(step < 0 if forward else step > 0) + 1
    if borders.size == 0 or borders.size + 1 > pixels.wavelength.size / 8:
        return  # one run with repeated wavelengths, or shuffled pixels
    starts, stops = np.r_[0, borders], np.r_[borders, pixels.wavelength.size]
    runs = [pixels[start:stop] for start, stop in zip(starts, stops, strict=True) if stop - start > 1]
    runs.sort(key=lambda run: float(run.wavelength.min()))
    for blue, red in pairwise(runs):
        ends = [(run.wavelength.min(), run.wavelength.max()) for run in (blue, red)]
        low, high = max(end[0] for end in ends), min(end[1] for end in ends)
        if high <= low:
            continue
        if all(high - low > SAME_SPAN * (end[1] - end[0]) for end in ends):
            raise ValueError(
                f"its pixels run through {low:.1f} to {high:.1f} Angstrom {len(runs)} times, so they are several "
                "spectra one after the other; give a list of spectra, or combine them first."
            )
        inside = [run.flux[~run.bad & (run.wavelength >= low) & (run.wavelength <= high)] for run in (blue, red)]
        if min(part.size for part in inside) < 5:
            continue
        levels = [float(np.median(part)) for part in inside]
        scatter = [float(np.median(np.abs(part - level))) for part, level in zip(inside, levels, strict=True)]
        noise = sum(one**2 / part.size for one, part in zip(scatter, inside, strict=True))
        apart = abs(levels[0] - levels[1])
        if apart > LARGEST_STEP * max(map(abs, levels)) and apart > 10 * noise**0.5:
            raise ValueError(
                f"two orders overlap at {low:.1f} to {high:.1f} Angstrom with a flux of {levels[0]:.4g} and "
                f"{levels[1]:.4g} (medians); divide out the blaze, or merge the orders, first."
            )


# ---------------------------------------------------------------- specutils


def specutils_spectra(spectrum: Any) -> Iterator[Given]:
    """The spectra of a `specutils.Spectrum` (or Spectrum1D), SpectrumCollection or SpectrumList: one per row of flux.

    Its mask is True where bad; std, var and ivar are understood; a redshift other than 0 is taken out.

    Raises:
        ValueError: Its flux has no spectral axis last.
    """
    if isinstance(spectrum, (list, tuple)):
        for one in spectrum:
            yield from specutils_spectra(one)
        return
    axis, flux = spectrum.spectral_axis, spectrum.flux
    meta = spectrum.meta if isinstance(getattr(spectrum, "meta", None), Mapping) else {}
    told, notes = _told_by_specutils(spectrum, meta)
    given = Given(flux, axis, "specutils.Spectrum", told=told, notes=tuple(notes))
    uncertainty, mask = getattr(spectrum, "uncertainty", None), getattr(spectrum, "mask", None)
    given = replace(given, name=_name_in(meta), **_uncertainty(uncertainty, flux))
    shape = np.shape(flux)
    if mask is not None:
        given = replace(given, bad_pixel=np.broadcast_to(np.asarray(mask) != 0, shape))
    if len(shape) == 1:
        yield given
        return
    n_rows = int(np.prod(shape[:-1]))

    def row(values: Any, number: int) -> Any:
        if values is None or np.ndim(values) < 2:
            return values
        return values.reshape((n_rows, shape[-1]))[number]

    for number in range(n_rows):
        own = {name: row(getattr(given, name), number) for name in ("flux", "bad_pixel", "flux_error", "ivar")}
        yield replace(given, wavelength=row(axis, number), name=None, **own)


def _uncertainty(uncertainty: Any, flux: Any) -> dict[str, Any]:
    """An astropy uncertainty of any kind -> `flux_error` or `ivar`, or a note that it is of no known kind."""
    if uncertainty is None or getattr(uncertainty, "array", None) is None:
        return {}
    array, unit = np.asarray(uncertainty.array, dtype=np.float64), getattr(uncertainty, "unit", None)
    array = np.broadcast_to(array, np.shape(flux))
    kind = uncertainty.uncertainty_type
    if kind == "var":
        with np.errstate(invalid="ignore"):
            array = np.sqrt(array)
        unit = None if unit is None else unit**0.5
    if kind not in ("std", "var", "ivar"):
        return {"notes": (f"its uncertainty is of the kind {kind!r}, which is not understood, and was left out",)}
    from astropy import units as u

    return {"ivar" if kind == "ivar" else "flux_error": array if unit is None else u.Quantity(array, unit)}


def _told_by_specutils(spectrum: Any, meta: Mapping[str, Any]) -> tuple[Conventions, list[str]]:
    notes = []
    header = meta.get("header", {})
    words = dict(header) if isinstance(header, Mapping) or hasattr(header, "keys") else {}
    medium, source = _medium_in(getattr(spectrum, "wcs", None), words)
    if medium is not None:
        notes.append(f"wavelengths were taken to be in {medium}, as {source} says")
    redshift = getattr(spectrum, "redshift", None)
    try:
        redshift = None if redshift is None else float(getattr(redshift, "value", redshift))
    except TypeError:
        redshift = None
    if redshift is not None and not (np.isfinite(redshift) and redshift != 0):
        redshift = None
    if redshift is not None:
        notes.append(
            f"its own redshift, {redshift:.6g} ({redshift * SPEED_OF_LIGHT:.2f} km/s), was taken out: wavelengths were "
            "divided by 1 + z"
        )
    return Conventions(medium=medium, redshift=redshift), notes


def _medium_in(wcs: Any, header: Mapping[str, Any]) -> tuple[Literal["vacuum", "air"] | None, str]:
    """What WCS or header say of air and vacuum, and which word says so."""
    types = [str(one) for one in getattr(getattr(wcs, "wcs", None), "ctype", ())] + [str(header.get("CTYPE1", ""))]
    for text in types:
        if text[:4].upper() == "AWAV":
            return "air", f"CTYPE = {text.strip()!r}"
    told = str(header.get("AIRORVAC", "")).strip().lower()
    if told in ("air", "vac", "vacuum"):
        return ("air" if told == "air" else "vacuum"), f"AIRORVAC = {told!r}"
    if isinstance(header.get("VACUUM"), (bool, np.bool_)):
        return ("vacuum" if header["VACUUM"] else "air"), f"VACUUM = {header['VACUUM']}"
    for text in types:
        if text[:4].upper() == "WAVE":
            return "vacuum", f"CTYPE = {text.strip()!r}"
    return None, ""


def _name_in(meta: Mapping[str, Any]) -> str | None:
    header = meta.get("header", {})
    for key in ("OBJECT", "OBJID", "OBJ", "TARGNAME", "TARGET", "NAME", "name"):
        for source in (header, meta):
            value = source.get(key) if hasattr(source, "get") else None
            if isinstance(value, str) and value.strip():
                return value.strip()
    return None
