"""apStar: which row is what, which bits are bad, and visits that must be refused."""

from pathlib import Path

import numpy as np
import pytest
import survey_files as survey

from spectrafm_hf.readers.apstar import read_apstar
from spectrafm_hf.readers.pixel_flags import APOGEE_PIXMASK
from spectrafm_hf.spectra import apogee_wavelength


def test_combined_spectrum_is_row_0(tmp_path: Path) -> None:
    star = read_apstar(survey.write_apstar(tmp_path / "a.fits", n_visits=3))
    assert star.flux.shape == (7514,)
    np.testing.assert_array_equal(star.wavelength, apogee_wavelength())
    assert np.median(star.flux) == pytest.approx(1000, rel=0.01)
    np.testing.assert_allclose(star.ivar, 0.01, rtol=1e-9)
    assert not star.bad_pixel.any()
    assert (star.star_id, star.snr, star.resolving_power, star.survey) == (survey.STAR, 186.5, 22500.0, "apogee")
    assert star.meta["n_visits"] == 3
    assert star.flux.dtype == np.dtype(np.float64)


@pytest.mark.parametrize(
    ("row", "brightness", "snr"), [(0, 1, 186.5), (1, 2, 186.5), (2, 3, 61), (3, 4, 62), (4, 5, 63)]
)
def test_visits_begin_at_row_2(tmp_path: Path, row: int, brightness: float, snr: float) -> None:
    star = read_apstar(survey.write_apstar(tmp_path / "a.fits", n_visits=3), row=row)
    assert np.median(star.flux) == pytest.approx(1000 * brightness, rel=0.01)
    assert star.ivar is not None
    assert np.median(star.ivar) == pytest.approx(0.01 / brightness**2)
    assert star.snr == snr


@pytest.mark.parametrize(
    ("release", "flat"), [("dr13", True), ("dr13", False), ("dr17", False)], ids=["1-D", "one row", "two rows"]
)
def test_star_seen_once(tmp_path: Path, release: str, flat: bool) -> None:
    path = survey.write_apstar(tmp_path / "a.fits", n_visits=1, release=release, one_dimensional=flat)
    assert np.median(read_apstar(path).flux) == pytest.approx(1000, rel=0.01)
    complaint = "row 1 holds no light .*DR17" if release == "dr17" else "has rows 0 to 0"
    with pytest.raises(ValueError, match=r"a\.fits, HDU 1: " + complaint):
        read_apstar(path, row=1)


@pytest.mark.parametrize("row", [-1, 5, True])
def test_rows_that_are_not_there(tmp_path: Path, row: int) -> None:
    with pytest.raises(ValueError, match=r"HDU 1: has rows 0 to 4 \(0 and 1 combined, from 2 the 3 visits\), got row="):
        read_apstar(survey.write_apstar(tmp_path / "a.fits", n_visits=3), row=row)


def test_one_dimensional_with_many_visits(tmp_path: Path) -> None:
    path = survey.write_apstar(tmp_path / "a.fits", n_visits=3, one_dimensional=True)
    with pytest.raises(ValueError, match=r"HDU 1: 3 visits take 5 rows \(2 combined, then the visits\), got 1"):
        read_apstar(path)
    path = survey.write_apstar(tmp_path / "b.fits", n_visits=3, primary={"NVISITS": 2})
    with pytest.raises(ValueError, match=r"HDU 1: 2 visits take 4 rows .* got 5"):
        read_apstar(path)


@pytest.mark.parametrize("bit", APOGEE_PIXMASK, ids=[bit.name for bit in APOGEE_PIXMASK])
@pytest.mark.parametrize("release", ["dr13", "dr17"])
def test_bits(tmp_path: Path, bit, release: str) -> None:
    bitmask = np.zeros(8575, dtype=np.int64)
    bitmask[1000] = 1 << bit.bit
    path = survey.write_apstar(tmp_path / "a.fits", bitmask=bitmask, release=release)
    star = read_apstar(path, all_pixels=True)
    assert star.bad_pixel[1000] == bit.bad
    assert not star.bad_pixel[[999, 1001]].any()


def test_pixels_without_flux_or_error(tmp_path: Path) -> None:
    flux, error, _ = survey.apogee_arrays()
    flux[[300, 301]] = np.nan, np.inf
    error[[302, 303, 304, 305]] = 0, -1, np.nan, np.inf
    star = read_apstar(survey.write_apstar(tmp_path / "a.fits", flux=flux, error=error), all_pixels=True)
    assert set(range(300, 306)) <= set(np.flatnonzero(star.bad_pixel))
    assert star.bad_pixel.sum() == 8575 - 7514 + 6  # off the detectors nothing is trusted
    assert np.isfinite(star.flux).all()
    assert star.ivar is not None
    assert (star.ivar[star.bad_pixel] == 0).all()


@pytest.mark.parametrize("order", [(2, 1, 3), (1, 3, 2), (3, 1, 2)])
def test_shuffled_hdus(tmp_path: Path, order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a\.fits, HDU \d: needs .* but its BUNIT is .*out of order"):
        read_apstar(survey.write_apstar(tmp_path / "a.fits", order=order))


def test_shuffled_hdus_without_units(tmp_path: Path) -> None:
    path = survey.write_apstar(tmp_path / "a.fits", order=(1, 3, 2), axis={"BUNIT": None}, error=np.full(8575, 0.5))
    with pytest.raises(ValueError, match="HDU 3: needs a pixel bitmask of whole numbers"):
        read_apstar(path)


def test_visit_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"v\.fits, HDU 4: an apVisit .*not at rest.*apStar"):
        read_apstar(survey.write_apvisit(tmp_path / "v.fits"))


@pytest.mark.parametrize(
    ("primary", "complaint"),
    [
        ({"NVISITS": None}, "header word NVISITS must hold a whole number, got None"),
        ({"OBJID": None}, "needs the star's name in one of OBJID"),
        ({"OBJID": "2M00000002+7417074"}, "lies .* arcsec"),
    ],
)
def test_missing_words(tmp_path: Path, primary: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"a\.fits, HDU 0: .*" + complaint):
        read_apstar(survey.write_apstar(tmp_path / "a.fits", primary=primary))


def test_other_grid_and_file_of_another_star(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"HDU 1: needs the apStar grid.*CDELT1 = 7e-06"):
        read_apstar(survey.write_apstar(tmp_path / "a.fits", axis={"CDELT1": 7e-6}))
    with pytest.raises(ValueError, match="called after 2M19485057"):
        read_apstar(survey.write_apstar(tmp_path / "apStar-dr17-2M19485057+5005279.fits"))


@pytest.mark.parametrize("keep", [100, 2880 * 2, 2880 * 40, -4000])
def test_cut_files(tmp_path: Path, keep: int) -> None:
    path = survey.write_apstar(tmp_path / "a.fits")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.fits, HDU \d: needs "):
        read_apstar(path)
