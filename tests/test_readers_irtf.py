"""IRTF: micron in, vacuum Angstrom out."""

from pathlib import Path

import numpy as np
import pytest
import survey_files as survey

from spectrafm_hf.readers.irtf import read_irtf


def test_star(tmp_path: Path) -> None:
    star = read_irtf(survey.write_irtf(tmp_path / "a.fits"))
    assert star.wavelength[0] == pytest.approx(8107, abs=0.01)
    assert star.wavelength[-1] < 24_000  # the short mode, of one resolving power
    assert (star.star_id, star.survey, star.resolving_power) == ("HD101501", "irtf", 2000.0)
    assert star.meta["spectral_type"] == "G8 V"
    assert not star.bad_pixel.any()
    assert star.ivar is not None
    np.testing.assert_allclose(star.flux * np.sqrt(star.ivar), 100, rtol=1e-4)
    whole = read_irtf(tmp_path / "a.fits", all_pixels=True)
    assert whole.wavelength[-1] == pytest.approx(49_270, abs=0.1)
    assert whole.resolving_power is None


def test_medium_is_read_not_guessed(tmp_path: Path) -> None:
    vacuum = read_irtf(survey.write_irtf(tmp_path / "a.fits"))
    air = read_irtf(survey.write_irtf(tmp_path / "b.fits", primary={"WAVETYPE": "Air"}))
    assert air.wavelength[0] - vacuum.wavelength[0] == pytest.approx(2.23, abs=0.02)  # n - 1 = 2.75e-4 at 8107 Angstrom
    for told in (None, "unknown"):
        path = survey.write_irtf(tmp_path / "c.fits", primary={"WAVETYPE": told})
        with pytest.raises(ValueError, match=r"c\.fits, HDU 0: needs WAVETYPE 'Vacuum' or 'Air'"):
            read_irtf(path)


def test_missing_data_are_bad(tmp_path: Path) -> None:
    micron = np.geomspace(0.8107, 4.927, 7527)
    flux = np.ones(7527)
    error = np.full(7527, 0.01)
    flux[:3] = np.nan, 0.0, -1.0
    error[3:6] = np.nan, 0.0, -0.01
    star = read_irtf(survey.write_irtf(tmp_path / "a.fits", wavelength=micron, flux=flux, error=error))
    assert np.flatnonzero(star.bad_pixel).tolist() == list(range(6))
    assert np.isfinite(star.flux).all()


@pytest.mark.parametrize("unit", [None, "nm", "Angstrom"])
def test_other_units(tmp_path: Path, unit: str | None) -> None:
    with pytest.raises(ValueError, match=r"HDU 0: needs wavelengths in micron \(XUNITS = 'um'\), got"):
        read_irtf(survey.write_irtf(tmp_path / "a.fits", primary={"XUNITS": unit}))


@pytest.mark.parametrize(
    "wavelength",
    [
        np.geomspace(4.9, 0.8, 7527),
        np.geomspace(8107, 49270, 7527),
        np.full(7527, 1.0),
        np.where(np.arange(7527) == 9, np.nan, np.geomspace(0.81, 4.9, 7527)),
    ],
    ids=["descending", "Angstrom", "constant", "NaN"],
)
def test_impossible_wavelengths(tmp_path: Path, wavelength: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a\.fits, HDU 0: wavelengths must"):
        read_irtf(survey.write_irtf(tmp_path / "a.fits", wavelength=wavelength, flux=np.ones(7527)))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"HDU 0: needs 3 rows \(wavelength, flux, error\), got shape \(5, 3904\)"):
        read_irtf(survey.write_lamost(tmp_path / "a.fits"))
    with pytest.raises(ValueError, match="HDU 0: header word OBJECT must hold text"):
        read_irtf(survey.write_irtf(tmp_path / "b.fits", primary={"OBJECT": None}))
    path = survey.write_irtf(tmp_path / "c.fits")
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(ValueError, match="HDU 0: needs a complete FITS image"):
        read_irtf(path)
