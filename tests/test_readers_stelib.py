"""STELIB: labels in headers, names in file names, and telluric bands that stay with the observer."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning

from spectrafm_hf.readers.stelib import TELLURIC_BANDS, read_stelib, read_stelib_star
from spectrafm_hf.spectra import SPEED_OF_LIGHT, vacuum_to_air


def write_star(
    folder: Path, star: str = "HD009138", flux: np.ndarray | None = None, velocity: float = 0.0, **words: str | float
) -> Path:
    """A file as in the library: 6,700 pixels of 1 Angstrom, shifted to rest by `velocity` (km/s)."""
    to_rest = 1 / (1 + velocity / SPEED_OF_LIGHT)
    hdu = fits.PrimaryHDU(np.full(6700, 0.7, dtype=np.float32) if flux is None else flux)
    axis = {"CRVAL1": 3200.0 * to_rest, "CRPIX1": 1.0, "CDELT1": to_rest}
    about = {"OBJECT": star, "SPECTYPE": "K4III", "TELESCOP": "2.3m, Siding Spring Observatory, Australia"}
    hdu.header.update(axis | about | {"TEFF": 4061, "LOG_G": 1.9, "FE_H": -0.39} | words)
    # IRAF wrote this card; it breaks the FITS standard, and every STELIB file has it.
    hdu.header.append(fits.Card.fromstring("APNUM1  = 1 0     "))
    path = folder / f"STELIB_v3.2_{star}.fits"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)
        hdu.writeto(path, output_verify="ignore")
    return path


def test_labels_come_from_the_header(tmp_path: Path) -> None:
    star = read_stelib_star(write_star(tmp_path))
    assert star.labels == {"teff": 4061.0, "logg": 1.9, "fe_h": -0.39}
    assert star.label_errors == {}
    assert star.survey == "stelib"
    assert star.fwhm == 3.1


def test_dash_means_missing(tmp_path: Path) -> None:
    assert read_stelib_star(write_star(tmp_path, LOG_G="-", FE_H="-")).labels == {"teff": 4061.0}


def test_header_against_the_standard_is_read_in_silence(tmp_path: Path) -> None:
    path = write_star(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_stelib_star(path).flux.size == 6700


@pytest.mark.parametrize(
    ("file_star", "written", "star_id"),
    [
        ("HD047129", "HR2422", "HD47129"),
        ("HD026630", "HD26630", "HD26630"),
        ("HD053929lp", "HD53929", "HD53929"),
        ("HD053929ss", "HD053929", "HD53929"),
        ("HD048682A", "HD48682A", "HD48682A"),
        ("Feige110", "Feige110", "FEIGE110"),
    ],
)
def test_star_is_named_after_its_file(tmp_path: Path, file_star: str, written: str, star_id: str) -> None:
    star = read_stelib_star(write_star(tmp_path, file_star, OBJECT=written))
    assert star.star_id == star_id
    assert star.meta["published_name"] == written


def test_air_becomes_vacuum(tmp_path: Path) -> None:
    star = read_stelib_star(write_star(tmp_path, CRVAL1=5889.951, CRPIX1=101.0))
    assert star.wavelength[100] == pytest.approx(5891.583, abs=2e-3)  # sodium D2 (NIST)


def test_zero_means_not_observed(tmp_path: Path) -> None:
    flux = np.full(6700, 0.7, dtype=np.float32)
    flux[:50] = 0.0
    flux[60] = np.nan
    star = read_stelib_star(write_star(tmp_path, flux=flux))
    assert star.bad_pixel[:50].all()
    assert star.bad_pixel[60]
    assert not star.bad_pixel[[50, 59, 61]].any()


@pytest.mark.parametrize("velocity", [0.0, 350.0, -380.0])
def test_telluric_bands_stay_with_the_observer(tmp_path: Path, velocity: float) -> None:
    star = read_stelib_star(write_star(tmp_path, velocity=velocity))
    observed = vacuum_to_air(star.wavelength) * (1 + velocity / SPEED_OF_LIGHT)
    expected = np.zeros(observed.shape, dtype=bool)
    for _, first, last in TELLURIC_BANDS:
        expected |= (observed > first) & (observed < last)
    assert np.count_nonzero(expected != star.bad_pixel) <= 2 * len(TELLURIC_BANDS)  # edges, to a pixel
    # Fraunhofer's A and B (heads at 7593.7 and 6867.2 Angstrom, air) are in, H alpha is not.
    for line, bad in ((7600.0, True), (6870.0, True), (6562.8, False)):
        assert star.bad_pixel[np.abs(observed - line).argmin()] == bad


def test_library_is_read_by_file_name(tmp_path: Path) -> None:
    for star in ("HD026630", "HD009138"):
        write_star(tmp_path, star)
    (tmp_path / "README").write_text("not a spectrum")
    assert [s.star_id for s in read_stelib(tmp_path)] == ["HD9138", "HD26630"]


def test_missing_folder_or_spectra(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no STELIB_v3\.2_.*fetch_libraries"):
            read_stelib(folder)


def test_damaged_files(tmp_path: Path) -> None:
    path = write_star(tmp_path)
    path.write_bytes(path.read_bytes()[:-5760])
    with pytest.raises(ValueError, match=r"STELIB_v3\.2_HD009138\.fits, HDU 0: needs a complete FITS image"):
        read_stelib(tmp_path)
    with pytest.raises(ValueError, match="a STELIB file is called"):
        read_stelib_star(path.rename(tmp_path / "star.fits"))
