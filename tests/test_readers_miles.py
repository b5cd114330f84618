"""MILES: the fixed-width table, the wavelength scale, and what happens to damaged files."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from spectrafm_hf.readers.linear_fits import MissingKeywordError
from spectrafm_hf.readers.miles import PARAMETER_FILE, read_miles, read_miles_star, read_miles_table

# Lines of the published table, to the column.
TABLE = """\
Name                  MILES   CaT   SpT            Teff   log g   [Fe/H]  Refs   Libraries
                      s????   
 - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - --
BD+002058A             0272         sd:F            6024   4.50    -1.44   131                
BD-103166              0395                         5400   4.40     0.50   131                
HD044691A              022.         A3m             7950   3.95     0.35   333                
HD098468               0407         K0                --     --      --     --               
HD112028               0451   375   A1 III          9480   3.30      --    66                 
HD135485               0545         B5IIp          18667   4.30     1.65   333                
M71 X             Cl   0970         HB              4800   2.00    -0.84   1                  
NGC 7789 765(804) Cl   0981                         4578   1.76    -0.13   1                  
"""  # noqa: W291
ROW = {"Name": "HD009138", "SpT": "K4III", "Teff": "4090", "log g": "1.50", "[Fe/H]": "-0.39"}


def write_star(path: Path, flux: np.ndarray | None = None, **header: float) -> Path:
    """A file as in the library: flux in the primary HDU, linear air wavelengths in the header."""
    hdu = fits.PrimaryHDU(np.full(60, 0.7) if flux is None else flux)
    hdu.header.update({"TPLLIB": "MILES", "FWHM": 2.5, "CRPIX1": 1, "CRVAL1": 3540.5, "CDELT1": 0.9} | header)
    hdu.writeto(path)
    return path


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / PARAMETER_FILE).write_text(TABLE)
    for number in ("0272", "0395", "0221", "0407", "0451", "0545", "0981"):  # 0970 lies elsewhere, in omit/
        write_star(tmp_path / f"MILES_res2.50_star_m{number}V.fits")
    return tmp_path


def test_table_is_read_by_column_not_by_blank(library: Path) -> None:
    table = read_miles_table(library / PARAMETER_FILE)
    assert len(table) == 8
    assert table["0395"]["SpT"] == ""
    assert table["0395"]["Teff"] == "5400"
    assert table["0981"]["Name"] == "NGC 7789 765(804) Cl"
    assert table["0981"]["[Fe/H]"] == "-0.13"
    assert table["0451"]["SpT"] == "A1 III"


def test_misprinted_number_is_star_0221(library: Path) -> None:
    assert read_miles_table(library / PARAMETER_FILE)["0221"]["Name"] == "HD044691A"


def test_stars_come_by_number_and_absent_files_are_left_out(library: Path) -> None:
    spectra = read_miles(library)
    assert [s.star_id for s in spectra] == [
        "HD44691A",
        "BD+00_2058A",
        "BD-10_3166",
        "HD98468",
        "HD112028",
        "HD135485",
        "NGC7789_765(804)",
    ]
    assert all(s.survey == "miles" and s.fwhm == 2.5 and s.label_errors == {} for s in spectra)


def test_missing_and_impossible_labels_are_absent(library: Path) -> None:
    labels = {s.star_id: s.labels for s in read_miles(library)}
    assert labels["BD+00_2058A"] == {"teff": 6024.0, "logg": 4.5, "fe_h": -1.44}
    assert labels["HD98468"] == {}
    assert labels["HD112028"] == {"teff": 9480.0, "logg": 3.3}
    assert labels["HD135485"] == {"teff": 18667.0, "logg": 4.3}  # [Fe/H] = +1.65 lies outside labels.LABELS


def test_air_becomes_vacuum(tmp_path: Path) -> None:
    # Sodium D2: 5889.95 Angstrom in air, 5891.58 in vacuum (NIST). CRPIX1 = 11 is the eleventh pixel.
    star = read_miles_star(write_star(tmp_path / "star.fits", CRVAL1=5889.951, CRPIX1=11), ROW)
    assert star.wavelength[10] == pytest.approx(5891.583, abs=2e-3)
    assert np.diff(star.wavelength) == pytest.approx(0.9, abs=1e-3)


def test_arrays_are_native_float64(tmp_path: Path) -> None:
    star = read_miles_star(write_star(tmp_path / "star.fits", np.full(60, 0.7, dtype=">f4")), ROW)
    assert star.flux.dtype == np.dtype(np.float64)  # FITS is big-endian, which torch refuses
    assert star.flux.dtype.isnative
    assert star.wavelength.dtype == np.dtype(np.float64)


def test_pixels_without_light_are_bad(tmp_path: Path) -> None:
    flux = np.full(60, 0.7)
    flux[[0, 1, 2, 3]] = [0.0, -0.1, np.nan, np.inf]
    bad = read_miles_star(write_star(tmp_path / "star.fits", flux), ROW).bad_pixel
    assert np.flatnonzero(bad).tolist() == [0, 1, 2, 3]


def test_missing_folder_table_or_spectra(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no MILES folder at .*fetch_libraries"):
        read_miles(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=PARAMETER_FILE):
        read_miles(tmp_path)
    (tmp_path / PARAMETER_FILE).write_text(TABLE)
    with pytest.raises(FileNotFoundError, match=r"holds the MILES table but no MILES_res2\.50"):
        read_miles(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("log g ", "logg  ", "first line must hold the titles"),
        ("BD+002058A             0272", "BD+002058A 0272            ", "line 4: needs a new four-digit MILES number"),
        ("   0395  ", "   0272  ", "line 5: needs a new four-digit MILES number"),
    ],
)
def test_edited_table_is_refused(library: Path, old: str, new: str, complaint: str) -> None:
    assert old in TABLE
    (library / PARAMETER_FILE).write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=complaint):
        read_miles(library)


@pytest.mark.parametrize(
    "keep", [0, 100, 2880, 2880 + 1000], ids=["nothing", "half a header", "header", "half the flux"]
)
def test_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_star(tmp_path / "star.fits", np.full(4300, 0.7))
    path.write_bytes(path.read_bytes()[:keep])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the error says it all
        with pytest.raises(ValueError, match=r"star\.fits, HDU 0: needs a complete FITS image.*fetch it again"):
            read_miles_star(path, ROW)


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = write_star(tmp_path / "star.fits.gz", np.random.default_rng(0).random(4300))
    assert read_miles_star(path, ROW).flux.size == 4300
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"star\.fits\.gz, HDU 0: needs a complete FITS image"):
        read_miles_star(path, ROW)


def test_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "star.fits"
    path.write_text("<html>404 Not Found</html>" * 200)
    with pytest.raises(ValueError, match="no FITS file"):
        read_miles_star(path, ROW)
    with pytest.raises(FileNotFoundError, match="no spectrum at"):
        read_miles_star(tmp_path / "absent.fits", ROW)


@pytest.mark.parametrize("shape", [(2, 30), (1,)])
def test_array_of_another_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs a 1-D array"):
        read_miles_star(write_star(tmp_path / "star.fits", np.ones(shape)), ROW)


def test_empty_primary_hdu(tmp_path: Path) -> None:
    fits.PrimaryHDU().writeto(tmp_path / "star.fits")
    with pytest.raises(ValueError, match="got no data"):
        read_miles_star(tmp_path / "star.fits", ROW)


@pytest.mark.parametrize("word", ["CRVAL1", "CDELT1", "CRPIX1", "FWHM"])
def test_missing_header_word_is_named(tmp_path: Path, word: str) -> None:
    path = write_star(tmp_path / "star.fits")
    with fits.open(path, mode="update") as hdus:
        del hdus[0].header[word]
    with pytest.raises(MissingKeywordError, match=f"header word {word} must hold a number, got None"):
        read_miles_star(path, ROW)


def test_descending_wavelengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"positive and increasing.*CDELT1 = -0\.9 Angstrom"):
        read_miles_star(write_star(tmp_path / "star.fits", CDELT1=-0.9), ROW)
