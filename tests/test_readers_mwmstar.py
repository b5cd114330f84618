"""SDSS-V: four HDUs, most of them empty, and models with and without their continuum."""

from pathlib import Path

import numpy as np
import pytest
import survey_files as survey

from spectrafm_hf.readers.mwmstar import read_astrastar, read_mwmstar
from spectrafm_hf.readers.pixel_flags import APOGEE_PIXMASK, BOSS_PIXMASK
from spectrafm_hf.spectra import apogee_wavelength

BOTH = {"BOSS/LCO": survey.mwm_arrays("BOSS"), "APOGEE/APO": survey.mwm_arrays("APOGEE")}


def test_apogee(tmp_path: Path) -> None:
    star = read_mwmstar(survey.write_mwmstar(tmp_path / "mwmStar-0.6.0-103020000.fits"))
    np.testing.assert_array_equal(star.wavelength, apogee_wavelength())  # float64, not the float32 column
    assert star.flux.shape == (7514,)
    assert not star.bad_pixel.any()
    np.testing.assert_allclose(star.ivar, 1e4, rtol=1e-6)
    assert (star.star_id, star.survey, star.resolving_power) == (survey.STAR, "sdss5_apogee", 22500.0)
    assert (star.snr, star.meta["v_rad"], star.meta["observatory"]) == (80.0, 15.5, "apo")
    assert star.ids["sdss_id"] == "103020000"
    assert star.ids["gaia_dr3_source_id"] == "5860080419780127104"  # 63 bits: never through a float


def test_boss(tmp_path: Path) -> None:
    path = survey.write_mwmstar(tmp_path / "a.fits", {"BOSS/LCO": survey.mwm_arrays("BOSS")}, apogee_id=None)
    star = read_mwmstar(path)
    np.testing.assert_allclose(star.wavelength, 10 ** (3.5523 + 1e-4 * np.arange(4648)), rtol=1e-14)
    assert (star.survey, star.resolving_power, star.star_id) == ("sdss5_boss", None, "SDSS103020000")
    np.testing.assert_allclose(star.ivar, 2500, rtol=1e-6)


def test_ambiguity_is_refused_with_the_choice(tmp_path: Path) -> None:
    path = survey.write_mwmstar(tmp_path / "a.fits", BOTH)
    filled = r"with spectra: HDU 2 boss/lco \(1 rows\), HDU 3 apogee/apo \(1 rows\)"
    with pytest.raises(ValueError, match=r"a\.fits: more than one HDU with spectra fits .*" + filled):
        read_mwmstar(path)
    assert read_mwmstar(path, "boss").survey == "sdss5_boss"
    assert read_mwmstar(path, observatory="apo").survey == "sdss5_apogee"
    with pytest.raises(ValueError, match=r"no HDU with spectra fits instrument='boss', observatory='apo'; " + filled):
        read_mwmstar(path, "boss", "apo")
    with pytest.raises(ValueError, match="instrument must be 'boss' or 'apogee'"):
        read_mwmstar(path, "lamost")  # type: ignore[arg-type]


def test_file_without_spectra(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no HDU with spectra fits .* with spectra: none"):
        read_mwmstar(survey.write_mwmstar(tmp_path / "a.fits", {}))


def test_visits(tmp_path: Path) -> None:
    path = survey.write_mwmstar(tmp_path / "a.fits", {"APOGEE/LCO": survey.mwm_arrays("APOGEE", 3)}, visits=True)
    with pytest.raises(ValueError, match=r"a\.fits, HDU 4: holds 3 spectra; say which with row=0 to row=2"):
        read_mwmstar(path)
    assert np.median(read_mwmstar(path, row=2).flux) == pytest.approx(3, rel=0.01)
    assert read_mwmstar(path, row=1).meta["format"] == "mwmVisit"
    for row in (3, -1, True):
        with pytest.raises(ValueError, match="HDU 4: has rows 0 to 2, got row="):
            read_mwmstar(path, row=row)


@pytest.mark.parametrize(
    ("instrument", "bit"),
    [("APOGEE", bit) for bit in APOGEE_PIXMASK] + [("BOSS", bit) for bit in BOSS_PIXMASK],
    ids=lambda value: getattr(value, "name", value),
)
def test_bits(tmp_path: Path, instrument: str, bit) -> None:
    arrays = survey.mwm_arrays(instrument)
    arrays["pixel_flags"][0, 1000] = 1 << bit.bit
    path = survey.write_mwmstar(tmp_path / "a.fits", {f"{instrument}/APO": arrays})
    star = read_mwmstar(path, all_pixels=True)
    assert star.bad_pixel[1000] == bit.bad
    assert star.ivar is not None
    assert (star.ivar[1000] == 0) == bit.bad


def test_pixels_without_information(tmp_path: Path) -> None:
    arrays = survey.mwm_arrays("BOSS")
    arrays["flux"][0, :2] = np.nan, np.inf
    arrays["ivar"][0, 2:6] = 0, -1, np.nan, np.inf
    arrays["pixel_flags"][0, 6] = np.nan
    star = read_mwmstar(survey.write_mwmstar(tmp_path / "a.fits", {"BOSS/APO": arrays}))
    assert np.flatnonzero(star.bad_pixel).tolist() == list(range(7))
    assert star.ivar is not None
    assert np.isfinite(star.flux).all()
    assert np.isfinite(star.ivar).all()


def test_wavelength_column_against_the_header(tmp_path: Path) -> None:
    for axis in ({"CRVAL": 4.1791}, {"CDELT": 6.1e-6}, {"CRPIX": 2}):
        path = survey.write_mwmstar(tmp_path / "a.fits", axis=axis)
        with pytest.raises(ValueError, match=r"HDU 3: its column 'wavelength' and its CRVAL, CDELT differ by up to"):
            read_mwmstar(path)
    with pytest.raises(ValueError, match=r"HDU 3: wavelengths must be log10\(vacuum Angstrom\)"):
        read_mwmstar(survey.write_mwmstar(tmp_path / "a.fits", axis={"CRVAL": 15100.8, "CDELT": 0.2}))
    path = survey.write_mwmstar(tmp_path / "a.fits", axis={"CRVAL": None, "CDELT": None})
    np.testing.assert_array_equal(read_mwmstar(path).wavelength, apogee_wavelength())


def test_changed_order_of_hdus(tmp_path: Path) -> None:
    path = survey.write_mwmstar(tmp_path / "a.fits", order=(2, 1, 0, 3))
    with pytest.raises(ValueError, match=r"HDU 1: must be BOSS/APO, but its INSTRMNT is 'APOGEE'.*out of order"):
        read_mwmstar(path)


def test_rows_and_files_of_another_star(tmp_path: Path) -> None:
    path = survey.write_mwmstar(tmp_path / "a.fits", extra={"sdss_id": np.array([77])})
    with pytest.raises(ValueError, match="HDU 3: row 0 is of SDSS_ID 77, the file of 103020000"):
        read_mwmstar(path)
    path = survey.write_mwmstar(tmp_path / "mwmStar-0.6.0-103020001.fits")
    with pytest.raises(ValueError, match="HDU 0: is called after SDSS_ID 103020001"):
        read_mwmstar(path)
    path = survey.write_mwmstar(tmp_path / "a.fits", primary={"RA": 10.0})
    with pytest.raises(ValueError, match="arcsec from the header's RA"):
        read_mwmstar(path)


def test_checksum_of_filled_hdus_only(tmp_path: Path) -> None:
    path = survey.write_mwmstar(tmp_path / "a.fits")  # its empty HDUs carry a DATASUM of something else
    assert b"63322194" in path.read_bytes()
    assert read_mwmstar(path).star_id == survey.STAR
    raw = bytearray(path.read_bytes())
    raw[len(raw) - 20 * 2880] ^= 4  # within the data of HDU 3; HDU 4 has none
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="HDU 3: its data sum to"):
        read_mwmstar(path)


def test_aspcap_models_are_normalised(tmp_path: Path) -> None:
    path = survey.write_astrastar(tmp_path / "a.fits")
    times = read_astrastar(path)
    assert times.flux.max() == pytest.approx(500)
    assert times.ivar is None
    assert times.meta["pipeline"] == "ASPCAP"
    np.testing.assert_allclose(read_astrastar(path, times_continuum=False).flux, times.flux / 500, rtol=1e-6)
    with pytest.raises(ValueError, match=r"holds fitted models.*read_astrastar"):
        read_mwmstar(path)


@pytest.mark.parametrize("pipeline", ["ThePayne", "SnowWhite"])
def test_other_pipelines_include_the_continuum(tmp_path: Path, pipeline: str) -> None:
    path = survey.write_astrastar(tmp_path / "a.fits", pipeline=pipeline)
    assert read_astrastar(path).flux.max() == pytest.approx(500)
    assert read_astrastar(path, times_continuum=False).flux.max() == pytest.approx(1)


def test_unknown_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HDU 3: cannot tell whether model_flux includes the continuum"):
        read_astrastar(survey.write_astrastar(tmp_path / "a.fits", pipeline="other"))
    with pytest.raises(ValueError, match="needs a column 'model_flux'"):
        read_astrastar(survey.write_mwmstar(tmp_path / "b.fits"))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.fits, HDU 0: needs SDSS_ID, V_ASTRA and four tables"):
        read_mwmstar(survey.write_apstar(tmp_path / "a.fits"))
    path = survey.write_mwmstar(tmp_path / "b.fits", {"APOGEE/APO": {"flux": np.ones((1, 100), np.float32)}})
    with pytest.raises(ValueError, match="HDU 3: needs a column 'ivar'"):
        read_mwmstar(path)
