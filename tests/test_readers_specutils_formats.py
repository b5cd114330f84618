"""specutils reads the rest, but only when told what nobody should guess."""

import builtins
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from spectrafm_hf.readers.specutils_formats import read_with_specutils
from spectrafm_hf.spectra import SPEED_OF_LIGHT

specutils = pytest.importorskip("specutils")

SODIUM = (5889.951, 5891.583)
"""Na I D2 in air and in vacuum, Angstrom (NIST)."""


def write_wcs(
    path: Path, first: float = 5800.0, step: float = 0.5, unit: str | None = "Angstrom", n: int = 400, **words
):
    """A 1-D image with a linear wavelength axis, a line at `SODIUM` in air."""
    axis = first + step * np.arange(n)
    hdu = fits.PrimaryHDU(1 - 0.5 * np.exp(-0.5 * ((axis - SODIUM[0]) / 1.5) ** 2))
    hdu.header.update({"CRVAL1": first, "CDELT1": step, "CRPIX1": 1, "CTYPE1": "WAVE", "OBJECT": "HD 9138"} | words)
    if unit is not None:
        hdu.header["CUNIT1"] = unit
    hdu.writeto(path)
    return path


def line(star) -> float:
    depth = 1 - star.flux
    return float(np.average(star.wavelength, weights=depth))


def test_air_lands_in_vacuum(tmp_path: Path) -> None:
    path = write_wcs(tmp_path / "a.fits")
    star = read_with_specutils(path, medium="air", frame="rest")
    assert line(star) == pytest.approx(SODIUM[1], abs=0.01)
    assert line(read_with_specutils(path, medium="vacuum", frame="rest")) == pytest.approx(SODIUM[0], abs=0.01)
    assert (star.star_id, star.survey, star.meta["medium"]) == ("HD9138", "other", "air")
    assert star.wavelength.dtype == star.flux.dtype == np.dtype(np.float64)
    assert star.flux.dtype.isnative


def test_velocity_is_taken_out(tmp_path: Path) -> None:
    star = read_with_specutils(write_wcs(tmp_path / "a.fits"), medium="air", velocity=100.0)
    assert line(star) == pytest.approx(SODIUM[1] / (1 + 100 / SPEED_OF_LIGHT), abs=0.01)


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({}, r"needs medium='vacuum' or medium='air'.*got None"),
        ({"medium": "glass", "frame": "rest"}, "got 'glass'"),
        ({"medium": "air"}, r"needs either frame='rest' .* or velocity= \(km/s"),
        ({"medium": "air", "frame": "rest", "velocity": 3.0}, "needs either"),
        ({"medium": "air", "frame": "heliocentric"}, "frame must be 'rest'"),
        ({"medium": "air", "velocity": 3e5}, r"velocity must lie within \+-1000 km/s"),
        ({"medium": "air", "velocity": np.nan}, "velocity must lie within"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, told: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"a\.fits: .*" + complaint):
        read_with_specutils(write_wcs(tmp_path / "a.fits"), **told)


@pytest.mark.parametrize(("unit", "factor"), [("nm", 10.0), ("um", 1e4), ("m", 1e10)])
def test_units_become_angstrom(tmp_path: Path, unit: str, factor: float) -> None:
    path = write_wcs(tmp_path / "a.fits", 5800 / factor, 0.5 / factor, unit)
    star = read_with_specutils(path, medium="vacuum", frame="rest")
    assert star.wavelength[[0, -1]] == pytest.approx([5800.0, 5999.5], rel=1e-9)


def test_axis_without_unit_is_refused(tmp_path: Path) -> None:
    path = write_wcs(tmp_path / "a.fits", 580.0, 0.05, unit=None)  # specutils would take it for Angstrom
    with pytest.raises(ValueError, match=r"a\.fits: its wavelength axis .* has no unit .*wavelength_unit="):
        read_with_specutils(path, medium="vacuum", frame="rest")
    star = read_with_specutils(path, medium="vacuum", frame="rest", wavelength_unit="nm")
    assert star.wavelength[0] == pytest.approx(5800)
    for unit, complaint in (("parrot", "got 'parrot'"), ("Jy", "got 'Jy'")):
        with pytest.raises(ValueError, match=complaint):
            read_with_specutils(path, medium="vacuum", frame="rest", wavelength_unit=unit)


def test_descending_axes_are_turned(tmp_path: Path) -> None:
    path = write_wcs(tmp_path / "a.fits", 5999.5, -0.5)
    star = read_with_specutils(path, medium="vacuum", frame="rest")
    assert (np.diff(star.wavelength) > 0).all()


def table_file(path: Path, **columns) -> Path:
    Table(columns).write(path, format="ascii.ecsv")
    return path


def test_errors_and_missing_values(tmp_path: Path) -> None:
    flux = np.ones(50)
    flux[3] = np.nan
    error = np.full(50, 0.1)
    error[[4, 5]] = 0.0, np.inf
    path = table_file(
        tmp_path / "a.ecsv",
        spectral_axis=np.linspace(5000, 5100, 50) * u.AA,
        flux=flux * u.Jy,
        uncertainty=error * u.Jy,
    )
    star = read_with_specutils(path, medium="vacuum", frame="rest", star_id="HD 1", file_format="ECSV")
    assert np.flatnonzero(star.bad_pixel).tolist() == [3, 4, 5]
    assert star.ivar is not None
    assert star.ivar[0] == pytest.approx(100)
    assert star.star_id == "HD1"
    assert star.meta["flux_unit"] == "Jy"
    with pytest.raises(ValueError, match=r"names no star .*pass star_id="):
        read_with_specutils(path, medium="vacuum", frame="rest", file_format="ECSV")


@pytest.mark.parametrize(
    "wavelength",
    [np.r_[np.linspace(5000, 5100, 25), np.linspace(5090, 5200, 25)], np.r_[5000.0, np.linspace(5000, 5100, 49)]],
    ids=["overlapping orders", "duplicate"],
)
def test_axes_that_go_back(tmp_path: Path, wavelength: np.ndarray) -> None:
    path = table_file(tmp_path / "a.ecsv", spectral_axis=wavelength * u.AA, flux=np.ones(50) * u.Jy)
    with pytest.raises(ValueError, match=r"a\.ecsv: (wavelengths must .* steps back|specutils cannot read it)"):
        read_with_specutils(path, medium="vacuum", frame="rest", star_id="HD 1", file_format="ECSV")


def test_several_spectra(tmp_path: Path) -> None:
    hdu = fits.PrimaryHDU(np.stack([np.ones(100), np.full(100, 2.0)]))
    hdu.header.update({"CRVAL1": 5000.0, "CDELT1": 1.0, "CRPIX1": 1, "CTYPE1": "WAVE", "CUNIT1": "Angstrom"})
    hdu.header.update({"OBJECT": "HD 1", "CRVAL2": 0.0, "CDELT2": 1.0, "CRPIX2": 1, "CTYPE2": "LINEAR"})
    hdu.writeto(tmp_path / "a.fits")
    told = {"medium": "vacuum", "frame": "rest", "file_format": "wcs1d-fits"}
    with pytest.raises(ValueError, match=r"a\.fits: (holds 2 spectra .*say which with row=|specutils cannot read it)"):
        read_with_specutils(tmp_path / "a.fits", **told)


def test_files_specutils_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("no spectrum")
    with pytest.raises(ValueError, match=r"a\.txt: specutils cannot read it .*file_format="):
        read_with_specutils(path, medium="vacuum", frame="rest")
    with pytest.raises(FileNotFoundError, match="no spectrum at"):
        read_with_specutils(tmp_path / "absent", medium="vacuum", frame="rest")


def test_without_specutils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "specutils":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    path = write_wcs(tmp_path / "a.fits")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"a\.fits: reading this format needs specutils; run: pip install specutils"):
        read_with_specutils(path, medium="vacuum", frame="rest")
