"""LAMOST: three layouts, one redshift, and lines that come back to rest."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import survey_files as survey

from spectrafm_hf.readers.fits_file import open_fits
from spectrafm_hf.readers.lamost import own_redshift, read_lamost
from spectrafm_hf.readers.pixel_flags import LAMOST_PIXMASK
from spectrafm_hf.spectra import SPEED_OF_LIGHT

LAYOUTS = ("dr1", "dr5", "dr10")
AXIS = 10 ** (3.5682 + 1e-4 * np.arange(3904))
H_ALPHA = 6564.61  # vacuum Angstrom (NIST)


def line_at(wavelength: float) -> np.ndarray:
    return 1200 * (1 - 0.5 * np.exp(-0.5 * ((AXIS - wavelength) / 3) ** 2))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("velocity", [-250.0, 0.0, 120.0])
def test_lines_come_back_to_rest(tmp_path: Path, layout: str, velocity: float) -> None:
    z = velocity / SPEED_OF_LIGHT
    path = survey.write_lamost(tmp_path / "a.fits", flux=line_at(H_ALPHA * (1 + z)), z=z, layout=layout)
    for star in (read_lamost(path), read_lamost(path, velocity=velocity)):
        depth = 1200 - star.flux
        near = np.abs(star.wavelength - H_ALPHA) < 40
        assert np.average(star.wavelength[near], weights=depth[near]) == pytest.approx(H_ALPHA, abs=0.02)  # 1 km/s
    assert star.wavelength.dtype == np.dtype(np.float64)
    assert (star.survey, star.star_id, star.resolving_power) == ("lamost", "LAMOST_J063715.90+271356.5", 1800.0)
    assert star.snr == 12.0
    assert star.meta["snr_g"] == 11.0


@pytest.mark.parametrize("z", [None, -9999.0, 0.5, "bad"])
def test_without_redshift(tmp_path: Path, z: object) -> None:
    path = survey.write_lamost(tmp_path / "a.fits", z=z)  # type: ignore[arg-type]
    assert own_redshift(open_fits(path)) is None
    with pytest.raises(ValueError, match=r"a\.fits, HDU 0: needs the star's redshift Z .*velocity= \(km/s"):
        read_lamost(path)
    assert read_lamost(path, velocity=0.0).wavelength[0] == pytest.approx(AXIS[0])
    for velocity in (5000.0, np.nan):
        with pytest.raises(ValueError, match="velocity must lie within"):
            read_lamost(path, velocity=velocity)


def test_its_reader_s_velocity_replaces_the_header_s(tmp_path: Path) -> None:
    path = survey.write_lamost(tmp_path / "a.fits", z=8e-5)
    assert own_redshift(open_fits(path)) == 8e-5
    assert read_lamost(path, velocity=0.0).wavelength[0] == pytest.approx(AXIS[0], rel=1e-12)
    assert read_lamost(path).wavelength[0] == pytest.approx(AXIS[0] / (1 + 8e-5), rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bit", LAMOST_PIXMASK, ids=[bit.name for bit in LAMOST_PIXMASK])
def test_bits(tmp_path: Path, layout: str, bit) -> None:
    andmask, ormask = np.zeros(3904), np.zeros(3904)
    andmask[100] = 1 << bit.bit
    ormask[200] = 1 << bit.bit
    star = read_lamost(survey.write_lamost(tmp_path / "a.fits", andmask=andmask, ormask=ormask, layout=layout))
    assert np.flatnonzero(star.bad_pixel).tolist() == [100]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_without_information(tmp_path: Path, layout: str) -> None:
    flux, ivar = np.full(3904, 1200.0), np.full(3904, 0.01)
    flux[:2] = np.nan, np.inf
    ivar[2:6] = 0, -1, np.nan, np.inf
    star = read_lamost(survey.write_lamost(tmp_path / "a.fits", flux=flux, ivar=ivar, layout=layout))
    assert np.flatnonzero(star.bad_pixel).tolist() == list(range(6))
    assert star.ivar is not None
    assert np.isfinite(star.flux).all()
    assert (star.ivar[:6] == 0).all()


@pytest.mark.parametrize("layout", ["dr5", "dr10"])
def test_wavelengths_against_the_header(tmp_path: Path, layout: str) -> None:
    path = survey.write_lamost(tmp_path / "a.fits", wavelength=AXIS + 1.0, layout=layout)
    with pytest.raises(ValueError, match=r"HDU \d: its wavelengths \(.*\) are not those of its header"):
        read_lamost(path)


@pytest.mark.parametrize(
    ("primary", "complaint"),
    [
        ({"COEFF0": None, "CRVAL1": None}, "header word CRVAL1 must hold a number"),
        ({"COEFF0": 3700.0}, r"wavelengths must be log10\(Angstrom\), got COEFF0 = 3700"),
        ({"COEFF1": 1e-3}, "wavelengths must be log10"),
        ({"COEFF1": -1e-4}, "wavelengths must be log10"),
        ({"COEFF0": 3.4}, "LRS wavelengths lie in 3500-9500 Angstrom"),
        ({"VACUUM": False}, r"wavelengths are in vacuum \(VACUUM = T\), got False"),
        ({"TELESCOP": "SDSS"}, "needs TELESCOP = 'LAMOST', got 'SDSS'"),
        ({"DESIG": None}, "needs the star's name in DESIG or OBSID"),
    ],
)
def test_damaged_headers(tmp_path: Path, primary: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"a\.fits.*" + complaint):
        read_lamost(survey.write_lamost(tmp_path / "a.fits", primary=primary))


def test_medium_resolution_is_refused(tmp_path: Path) -> None:
    path = survey.write_lamost(tmp_path / "a.fits", layout="dr10")
    path.write_bytes(path.read_bytes().replace(b"'COADD   '", b"'COADD_B '"))
    with pytest.raises(ValueError, match=r"HDU 1: needs one row .*in COADD_B\. Medium-resolution files"):
        read_lamost(path)


def test_resolution_of_another_slit_is_unknown(tmp_path: Path) -> None:
    assert read_lamost(survey.write_lamost(tmp_path / "a.fits", primary={"SLIT_MOD": "x1"})).resolving_power is None


def test_packed_and_cut(tmp_path: Path) -> None:
    path = survey.write_lamost(tmp_path / "a.fits.gz")
    raw = path.read_bytes()
    assert raw[:2] == b"\x1f\x8b"
    assert read_lamost(path).flux.size == 3904
    path.write_bytes(gzip.decompress(raw)[:-10_000])
    with pytest.raises(ValueError, match="HDU 0: needs a complete FITS image"):
        read_lamost(path)
