"""aspcapStar: detectors, bad pixels, raw and calibrated parameters, and HDUs that were shuffled."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import survey_files as survey
from astropy.io import fits

from spectrafm_hf.readers.aspcapstar import LARGEST_ERROR, read_aspcapstar
from spectrafm_hf.spectra import apogee_wavelength


def test_observed_star(tmp_path: Path) -> None:
    flux, error, _ = survey.apogee_arrays()
    star = read_aspcapstar(survey.write_aspcapstar(tmp_path / "a.fits"))
    detectors = np.concatenate([np.arange(8575)[detector] for detector in survey.DETECTORS])
    assert star.flux.shape == (7514,)
    np.testing.assert_array_equal(star.wavelength, apogee_wavelength())
    np.testing.assert_array_equal(star.flux, flux[detectors].astype(np.float32))
    np.testing.assert_allclose(star.ivar, 1e4, rtol=1e-6)
    assert error.max() == 0.01
    assert not star.bad_pixel.any()
    assert (star.star_id, star.survey, star.snr, star.resolving_power) == (survey.STAR, "apogee", 186.5, 22500.0)
    assert star.ids == {"apogee_id": survey.STAR}
    assert star.ra == pytest.approx(survey.RA, abs=1e-4)
    assert star.labels == {}
    for array in (star.flux, star.wavelength, star.ivar):
        assert array.dtype == np.dtype(np.float64)
        assert array.dtype.isnative


def test_lines_lie_where_they_should(tmp_path: Path) -> None:
    star = read_aspcapstar(survey.write_aspcapstar(tmp_path / "a.fits"), kind="synthetic")
    near = np.abs(star.wavelength - 16723.5) < 3  # Al I, vacuum Angstrom
    assert star.wavelength[near][star.flux[near].argmin()] == pytest.approx(16723.5, abs=0.12)  # half a pixel


def test_synthetic_has_no_noise(tmp_path: Path) -> None:
    path = survey.write_aspcapstar(tmp_path / "a.fits")
    star = read_aspcapstar(path, kind="synthetic")
    assert star.ivar is None
    assert star.flux.max() == 1.0
    assert star.meta["kind"] == "synthetic"
    whole = read_aspcapstar(path, kind="synthetic", all_pixels=True)
    assert whole.flux.shape == (8575,)
    assert whole.bad_pixel.sum() == 8575 - 7514
    with pytest.raises(ValueError, match="kind must be 'observed' or 'synthetic'"):
        read_aspcapstar(path, kind="raw")  # type: ignore[arg-type]


def test_bad_pixels_of_the_observed(tmp_path: Path) -> None:
    flux, error, _ = survey.apogee_arrays()
    cases = {300: (np.nan, 0.01), 301: (1.0, 0.0), 302: (1.0, -0.1), 303: (1.0, np.nan), 304: (1.0, np.inf)}
    cases |= {305: (0.0, 10.0), 306: (0.0001, 1e10), 307: (1.0, LARGEST_ERROR * 1.01), 308: (1.0, 1.0)}
    cases |= {309: (np.inf, 0.01), 310: (-np.inf, 0.01)}
    harmless = {400: (1.0, LARGEST_ERROR * 0.99), 401: (0.02, 0.01), 402: (1.5, 0.01), 403: (-0.01, 0.01)}
    for pixel, (value, sigma) in (cases | harmless).items():
        flux[pixel], error[pixel] = value, sigma
    star = read_aspcapstar(survey.write_aspcapstar(tmp_path / "a.fits", flux=flux, error=error), all_pixels=True)
    gaps = np.flatnonzero(error[:] == 0)
    assert set(np.flatnonzero(star.bad_pixel)) == set(cases) | set(gaps)
    assert star.ivar is not None
    assert (star.ivar[star.bad_pixel] == 0).all()
    assert (star.ivar[~star.bad_pixel] > 0).all()
    assert np.isfinite(star.flux).all()


def test_raw_and_calibrated_parameters(tmp_path: Path) -> None:
    path = survey.write_aspcapstar(
        tmp_path / "a.fits", param=[4000.0, 1.1, *[0.0] * 7], fparam=[4100.0, 1.3, *[0.0] * 7]
    )
    star = read_aspcapstar(path, labels=True)
    assert star.labels == {"teff": 4000.0, "logg": pytest.approx(1.1)}  # PARAM, not FPARAM; [M/H] is not [Fe/H]
    assert star.label_errors == {"teff": pytest.approx(69.28, abs=0.01), "logg": pytest.approx(0.08)}
    missing = survey.write_aspcapstar(tmp_path / "b.fits", param=[-9999.0] * 9)
    assert read_aspcapstar(missing, labels=True).labels == {}
    assert read_aspcapstar(missing, labels=True).label_errors == {}


@pytest.mark.parametrize("order", [(2, 1, 3, 4), (4, 1, 2, 3), (1, 4, 2, 3)])
def test_shuffled_hdus(tmp_path: Path, order: tuple[int, ...]) -> None:
    path = survey.write_aspcapstar(tmp_path / "a.fits", order=order)
    with pytest.raises(ValueError, match=r"a\.fits, HDU \d: needs .*out of order"):
        read_aspcapstar(path)


def test_fluxes_in_physical_units(tmp_path: Path) -> None:
    flux = 1000 * survey.apogee_arrays()[0]
    with pytest.raises(ValueError, match=r"HDU 1: needs a continuum-normalised spectrum, but its median is \d"):
        read_aspcapstar(survey.write_aspcapstar(tmp_path / "a.fits", flux=flux))


def test_star_without_light_is_all_bad(tmp_path: Path) -> None:
    star = read_aspcapstar(survey.write_aspcapstar(tmp_path / "a.fits", flux=np.zeros(8575), error=np.full(8575, 10.0)))
    assert star.bad_pixel.all()


@pytest.mark.parametrize(
    ("axis", "complaint"),
    [
        ({"CRVAL1": 4.1791}, "needs the apStar grid.*CRVAL1 = 4.1791"),
        ({"CDELT1": 6.001e-6}, "needs the apStar grid"),
        ({"CRPIX1": 2}, "needs the apStar grid"),
        ({"CRVAL1": 15100.8, "CDELT1": 0.2}, "needs the apStar grid"),
        ({"CRVAL1": None}, "header word CRVAL1 must hold a number, got None"),
        ({"CDELT1": "six"}, "header word CDELT1 must hold a number, got 'six'"),
    ],
)
def test_other_grids(tmp_path: Path, axis: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"a\.fits, HDU 1: " + complaint):
        read_aspcapstar(survey.write_aspcapstar(tmp_path / "a.fits", axis=axis))


def test_other_numbers_of_pixels(tmp_path: Path) -> None:
    short = [np.ones(8000)] * 3
    with pytest.raises(ValueError, match=r"HDU 1: needs 8575 pixels on the apStar grid, got shape \(8000,\)"):
        read_aspcapstar(survey.write_aspcapstar(tmp_path / "a.fits", None or survey.STAR, *short))


@pytest.mark.parametrize(
    ("name", "star_id"),
    [
        ("b'2M17334253-1654573'", "2M17334253-1654573"),
        ("2m17334253-1654573 ", "2M17334253-1654573"),
        ("VESTA", "VESTA"),
    ],
)
def test_spellings_of_the_name(tmp_path: Path, name: str, star_id: str) -> None:
    path = survey.write_aspcapstar(tmp_path / "a.fits", primary={"OBJ": name})
    assert read_aspcapstar(path).star_id == star_id


def test_name_from_the_table_or_not_at_all(tmp_path: Path) -> None:
    path = survey.write_aspcapstar(tmp_path / "a.fits", primary={"OBJ": None})
    assert read_aspcapstar(path).star_id == survey.STAR
    with fits.open(path) as hdus:
        fits.HDUList([hdu.copy() for hdu in hdus[:4]]).writeto(tmp_path / "b.fits")
    with pytest.raises(ValueError, match=r"b\.fits, HDU 0: needs the star's name"):
        read_aspcapstar(tmp_path / "b.fits")


def test_files_that_were_mixed_up(tmp_path: Path) -> None:
    path = survey.write_aspcapstar(tmp_path / "aspcapStar-dr17-2M00000002+7417074.fits")
    with pytest.raises(ValueError, match=r"called after 2M00000002\+7417074 but its header is that of 2M17334253"):
        read_aspcapstar(path)
    path = survey.write_aspcapstar(tmp_path / "a.fits", primary={"DEC": 16.915936})
    with pytest.raises(ValueError, match=r"lies 121795 arcsec from the header's RA = 263\.427, DEC = 16\.9159"):
        read_aspcapstar(path)
    near = survey.write_aspcapstar(tmp_path / "b.fits", primary={"DEC": survey.DEC + 30 / 3600})  # moved since 2MASS
    assert read_aspcapstar(near).star_id == survey.STAR


def test_ra_wraps_at_zero(tmp_path: Path) -> None:
    path = survey.write_aspcapstar(tmp_path / "a.fits", "2M00000002+7417074", primary={"RA": 359.9999, "DEC": 74.28539})
    assert read_aspcapstar(path).ra == 359.9999


@pytest.mark.parametrize("value", [None, -9999.0, "n/a", True])
def test_snr_may_be_missing(tmp_path: Path, value: object) -> None:
    assert read_aspcapstar(survey.write_aspcapstar(tmp_path / "a.fits", primary={"SNR": value})).snr is None


def test_cut_and_packed(tmp_path: Path) -> None:
    path = survey.write_aspcapstar(tmp_path / "a.fits")
    raw = path.read_bytes()
    path.write_bytes(raw[:-3000])  # within HDU 4, which is not needed: a cut file is still not to be believed
    with pytest.raises(ValueError, match=r"a\.fits, HDU 4: needs a complete FITS"):
        read_aspcapstar(path)
    path.write_bytes(gzip.compress(raw))
    assert read_aspcapstar(path).star_id == survey.STAR
    with pytest.raises(FileNotFoundError, match="no spectrum at"):
        read_aspcapstar(tmp_path / "absent.fits")


def test_checksum(tmp_path: Path) -> None:
    path = survey.write_aspcapstar(tmp_path / "a.fits", checksum=True)
    raw = bytearray(path.read_bytes())
    raw[2 * 2880 + 4 * 1000] ^= 1  # pixel 1000 of HDU 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"HDU 1: its data sum to"):
        read_aspcapstar(path)
    assert read_aspcapstar(path, kind="synthetic").star_id == survey.STAR
    assert read_aspcapstar(path, check_sums=False).star_id == survey.STAR
