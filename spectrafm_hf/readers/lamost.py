"""LAMOST low-resolution spectra (LRS), pilot survey to DR10 and later.

Source: LAMOST data release documents (DR1, DR3, DR7, DR10); Luo et al. 2015 (RAA 15, 1095). Two layouts:

* until about DR7 the primary HDU is an image of five rows: flux, inverse variance, a third row, ANDMASK, ORMASK. The
  third row is the wavelength in later releases, but the continuum-normalised flux in DR1 (`EXTEN0` says
  "Subcontinuum"; real files checked), so wavelengths come from COEFF0 and COEFF1: log10(lambda), and the row is
  compared where it holds wavelengths;
* after that HDU 1 (`COADD`) is a table of one row: FLUX, IVAR, WAVELENGTH, ANDMASK, ORMASK.

Wavelengths are vacuum Angstrom in the heliocentric frame (VACUUM = T, HELIO = T), **not at rest**: they are divided by
1 + Z with Z (redshift of the star, without unit) from the header. In two real DR1 stars the Ca II line at 8544.44 lies
at 8544.5 (F9) and 8546.3 (M0) after that. LAMOST's velocities are low by about 5 km/s (Luo et al. 2015); nothing is
added for that. A file without a usable Z (-9999) is refused unless a velocity is given.

Bad pixels: any bit of ANDMASK (`pixel_flags.LAMOST_PIXMASK`), inverse variance 0, flux not finite. R = 1,800 at 5,500
Angstrom with the 2/3 slit, and lower towards the blue.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..spectra import SPEED_OF_LIGHT, Spectrum
from .fits_file import FitsFile, Hdu, as_float64, open_fits
from .pixel_flags import LAMOST_PIXMASK, bits_value, flagged, trusted
from .star_names import normalise_star_name

RESOLVING_POWER = 1800.0
"""lambda / FWHM at 5,500 Angstrom (LAMOST data release documents)."""

FASTEST = 0.01
"""Largest |Z| (3,000 km/s) a star of our Galaxy may have; more is a damaged header or no star."""

WINDOW = (3500.0, 9500.0)
"""Angstrom; every LRS spectrum lies inside."""

_BAD_BITS = bits_value(LAMOST_PIXMASK)


def is_lamost(file: FitsFile) -> bool:
    """Whether LAMOST made the file."""
    return (file.primary.optional_text("TELESCOP") or "").upper() == "LAMOST"


def _log_wavelength(hdu: Hdu, n_pixels: int) -> np.ndarray:
    header = hdu.header
    names = ("COEFF0", "COEFF1") if "COEFF0" in header else ("CRVAL1", "CD1_1")
    first, step = (header.number(name) for name in names)
    if not (3 < first < 4 and 0 < step < 0.01 and first + step * n_pixels < 4.1):
        raise ValueError(
            f"{hdu.where}: wavelengths must be log10(Angstrom), got {names[0]} = {first:.6g} and {names[1]} = "
            f"{step:.6g}. The header is damaged; fetch the file again."
        )
    return 10.0 ** (first + step * np.arange(n_pixels))


def _early(hdu: Hdu) -> tuple[np.ndarray, ...]:
    """Wavelength, flux, ivar, andmask, ormask of the layout of five rows."""
    pixels = hdu.image((2,))
    if pixels.shape[0] != 5:
        raise ValueError(
            f"{hdu.where}: needs 5 rows (flux, inverse variance, wavelength, andmask, ormask), got shape "
            f"{pixels.shape}."
        )
    flux, ivar, third, andmask, ormask = (as_float64(row) for row in pixels)
    wavelength = _log_wavelength(hdu, flux.size)
    if "wave" in (hdu.header.optional_text("EXTEN0") or "").lower() or np.nanmedian(third) > 1000:
        _check_same(hdu, wavelength, third)
    return wavelength, flux, ivar, andmask, ormask


def _check_same(hdu: Hdu, wavelength: np.ndarray, published: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        if not (np.abs(published / wavelength - 1) < 1e-5).all():
            raise ValueError(
                f"{hdu.where}: its wavelengths ({np.nanmin(published):.6g} to {np.nanmax(published):.6g}) are not "
                f"those of its header ({wavelength[0]:.6g} to {wavelength[-1]:.6g} Angstrom). One is damaged; fetch it "
                "again."
            )


def _late(file: FitsFile) -> tuple[np.ndarray, ...]:
    """Wavelength, flux, ivar, andmask, ormask of the layout with a table."""
    hdu = file.hdu(1)
    name = (hdu.header.optional_text("EXTNAME") or "").upper()
    if "LOGLAM" in (column.upper() for column in hdu.columns) or name.endswith(("_B", "_R")) or hdu.n_rows != 1:
        raise ValueError(
            f"{hdu.where}: needs one row with FLUX, IVAR, WAVELENGTH, ANDMASK, ORMASK (low resolution), got "
            f"{hdu.n_rows} rows of {', '.join(hdu.columns) or 'nothing'} in {name or 'an HDU without name'}. "
            "Medium-resolution files have an HDU per arm and exposure and are not read here; give arrays of one arm "
            "instead."
        )
    names = ("WAVELENGTH", "FLUX", "IVAR", "ANDMASK", "ORMASK")
    columns = tuple(np.ravel(hdu.column(column)[0]) for column in names)
    if len({column.size for column in columns}) != 1 or columns[0].size < 2:
        raise ValueError(f"{hdu.where}: its columns must be of one length, got {[column.size for column in columns]}.")
    wavelength = as_float64(columns[0])
    if "COEFF0" in file.primary and "COEFF1" in file.primary:
        exact = _log_wavelength(file.hdus[0], wavelength.size)  # the column is float32
        _check_same(hdu, exact, wavelength)
        wavelength = exact
    return (wavelength, *columns[1:])


def own_redshift(file: FitsFile) -> float | None:
    """The star's redshift as the header has it; None = it has none, or one that no star can have."""
    z = file.primary.optional_number("Z")
    return None if z is None or not abs(z) <= FASTEST else z


def _redshift(path: Path, file: FitsFile, velocity: float | None) -> float:
    if velocity is not None:
        if not np.isfinite(velocity) or abs(velocity) > FASTEST * SPEED_OF_LIGHT:
            raise ValueError(f"velocity must lie within +-{FASTEST * SPEED_OF_LIGHT:.0f} km/s, got {velocity!r}.")
        return velocity / SPEED_OF_LIGHT
    z = own_redshift(file)
    if z is None:
        raise ValueError(
            f"{path}, HDU 0: needs the star's redshift Z (within +-{FASTEST}) to shift its spectrum to rest, got "
            f"{file.primary.get('Z')!r}. Pass velocity= (km/s, positive = receding; --velocity) if you know it; "
            "velocity=0 leaves the spectrum where it is."
        )
    return z


def read_lamost(path: Path | FitsFile, velocity: float | None = None, check_sums: bool = True) -> Spectrum:
    """Read one spectrum and shift it to rest.

    Args:
        path: FITS file, plain or gzipped; or one that is open.
        velocity: Radial velocity, km/s, positive = receding, heliocentric; **replaces** the header's Z. What a user
            tells of spectra in general does not (see `in_memory.Conventions`).
        check_sums: See `fits_file.open_fits`.

    Returns:
        Flux relative (DR1-) or 1e-17 erg s-1 cm-2 Angstrom-1, by release. `snr` is that of the r band (early releases
        cap it at 99); the others are in `meta`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of medium resolution, in air, or lacks a redshift; the message names the HDU.
    """
    file = open_fits(path, check_sums)
    path = file.path
    header = file.primary
    if not is_lamost(file):
        raise ValueError(f"{path}, HDU 0: needs TELESCOP = 'LAMOST', got {header.get('TELESCOP')!r}.")
    if header.get("VACUUM", True) is not True:
        raise ValueError(f"{path}, HDU 0: LAMOST wavelengths are in vacuum (VACUUM = T), got {header.get('VACUUM')!r}.")
    observed, flux, ivar, andmask, _ = _early(file.hdus[0]) if file.hdus[0].is_image else _late(file)
    if not (np.isfinite(observed).all() and (np.diff(observed) > 0).all()):
        raise ValueError(f"{path}: wavelengths must be finite and increasing (vacuum Angstrom).")
    if observed[0] < WINDOW[0] or observed[-1] > WINDOW[1]:
        raise ValueError(
            f"{path}: LRS wavelengths lie in {WINDOW[0]:.0f}-{WINDOW[1]:.0f} Angstrom, got {observed[0]:.6g} to "
            f"{observed[-1]:.6g}. Another unit, or a damaged header?"
        )
    flux, good_ivar, bad_pixel = trusted(flux, ivar, flagged(np.asarray(andmask), _BAD_BITS))
    name = header.optional_text("DESIG") or header.optional_text("OBSID")
    if name is None:
        raise ValueError(
            f"{path}, HDU 0: needs the star's name in DESIG or OBSID; found neither. Without it the star's split is "
            "unknown. Fetch the file again."
        )
    snr = {band: header.optional_number(f"SN_{band}") or header.optional_number(f"SNR{band}") for band in "UGRIZ"}
    return Spectrum(
        wavelength=observed / (1.0 + _redshift(path, file, velocity)),
        flux=flux,
        bad_pixel=bad_pixel,
        star_id=normalise_star_name(name),
        survey="lamost",
        ivar=good_ivar,
        # Files of later releases do not name the slit; since the pilot survey it is 2/3.
        resolving_power=RESOLVING_POWER if (header.optional_text("SLIT_MOD") or "x2/3") == "x2/3" else None,
        snr=snr["R"],
        ra=header.optional_number("RA"),
        dec=header.optional_number("DEC"),
        ids={
            word.lower(): text
            for word in ("DESIG", "OBSID", "UID", "OBJNAME")
            if (text := header.optional_text(word)) is not None
        },
        meta={
            "file": path.name,
            "format": "LAMOST LRS",
            "class": header.optional_text("CLASS"),
            "subclass": header.optional_text("SUBCLASS"),
            "z": header.optional_number("Z"),
            "velocity": velocity,
        }
        | {f"snr_{band.lower()}": value for band, value in snr.items()},
    )
