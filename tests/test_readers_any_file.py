"""One door: formats are told by content, options never vanish, and a thousand damaged files do no harm."""

import gzip
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import survey_files as survey
from astropy.io import fits

from spectrafm_hf.readers.any_file import FORMATS, read_spectrum, recognise
from spectrafm_hf.spectra import apogee_wavelength


def write_stelib(path: Path) -> Path:
    hdu = fits.PrimaryHDU(np.full(6700, 0.7, dtype=np.float32))
    hdu.header.update({"CRVAL1": 3200.0, "CRPIX1": 1.0, "CDELT1": 1.0, "OBJECT": "HD9138", "TEFF": 4061})
    hdu.header.update({"LOG_G": 1.9, "FE_H": -0.39})
    hdu.writeto(path, overwrite=True)
    return path


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "aspcapStar": ("a.fits", survey.write_aspcapstar),
    "apStar / asStar": ("a.fits", survey.write_apstar),
    "mwmStar / mwmVisit": ("a.fits", survey.write_mwmstar),
    "astraStar": ("a.fits", survey.write_astrastar),
    "LAMOST LRS": ("a.fits", survey.write_lamost),
    "IRTF": ("a.fits", survey.write_irtf),
    "STELIB": ("STELIB_v3.2_HD009138.fits", write_stelib),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("suffix", ["", ".gz", ".dat"])
def test_content_decides(tmp_path: Path, name: str, suffix: str) -> None:
    file_name, write = WRITERS[name]
    path = write(tmp_path / file_name)
    if suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))  # gzipped under the old name
    elif suffix and name != "STELIB":  # which takes its star from the file's name
        path = path.rename(tmp_path / "b.dat")
    found = recognise(path)
    assert found is not None
    assert found.name == name
    star = read_spectrum(str(path))
    assert np.isfinite(star.flux).all()
    assert not star.bad_pixel.all()


def test_every_format_has_a_writer() -> None:
    assert {item.name for item in FORMATS} - {"MILES"} == set(WRITERS)


def test_miles_needs_its_table(tmp_path: Path) -> None:
    hdu = fits.PrimaryHDU(np.full(60, 0.7))
    hdu.header.update({"TPLLIB": "MILES", "FWHM": 2.5, "CRPIX1": 1, "CRVAL1": 3540.5, "CDELT1": 0.9})
    path = tmp_path / "MILES_res2.50_star_m0407V.fits"
    hdu.writeto(path)
    with pytest.raises(FileNotFoundError, match=r"no MILES parameter table"):
        read_spectrum(path)
    header = "Name                  MILES   CaT   SpT            Teff   log g   [Fe/H]  Refs   Libraries"
    row = "HD098468               0407         K0                --     --      --     --               "
    (tmp_path / "paramsMILES_v9.1.txt").write_text("\n".join([header, "-", "-", row, ""]))
    star = read_spectrum(path)
    assert (star.star_id, star.ids["miles"]) == ("HD98468", "0407")
    with pytest.raises(ValueError, match="a MILES file is called"):
        read_spectrum(path.rename(tmp_path / "x.fits"))


def test_options_reach_the_reader_or_are_refused(tmp_path: Path) -> None:
    path = survey.write_apstar(tmp_path / "a.fits", n_visits=3)
    assert read_spectrum(path, row=3, all_pixels=True).flux.shape == (8575,)
    with pytest.raises(
        ValueError, match=r"a\.fits: is apStar / asStar, whose reader has no use for medium, velocity; it takes"
    ):
        read_spectrum(path, medium="vacuum", velocity=3.0)
    path = survey.write_aspcapstar(tmp_path / "b.fits")
    assert read_spectrum(path, kind="synthetic").ivar is None


def test_files_that_are_no_single_spectrum(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a catalogue of many stars.*readers.allstar"):
        read_spectrum(survey.write_allstar(tmp_path / "a.fits"))
    with pytest.raises(ValueError, match=r"an apVisit .* file holds one visit as observed"):
        read_spectrum(survey.write_apvisit(tmp_path / "b.fits"))
    for path in (tmp_path, tmp_path / "absent.fits"):
        with pytest.raises(FileNotFoundError, match="no spectrum at"):
            read_spectrum(path)


def test_unknown_fits_lists_what_was_tried(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.ones(100)).writeto(path)
    tried = r"mwmStar / mwmVisit, astraStar, aspcapStar, apStar / asStar, LAMOST LRS, IRTF, MILES, STELIB"
    with pytest.raises(
        ValueError, match=rf"a\.fits: is none of the formats read here \({tried}\)\. specutils may know it"
    ):
        read_spectrum(path)
    with pytest.raises(ValueError, match="Options it has no use for: kind"):
        read_spectrum(path, medium="vacuum", frame="rest", kind="observed")
    pytest.importorskip("specutils")
    with pytest.raises(ValueError, match=rf"a\.fits: .*Tried before: {tried}"):
        read_spectrum(path, medium="vacuum", frame="rest")


def test_specutils_takes_over(tmp_path: Path) -> None:
    pytest.importorskip("specutils")
    hdu = fits.PrimaryHDU(np.ones(100))
    words = {"CRVAL1": 5000.0, "CDELT1": 1.0, "CRPIX1": 1, "CTYPE1": "WAVE", "CUNIT1": "Angstrom", "OBJECT": "HD 1"}
    hdu.header.update(words)
    hdu.writeto(tmp_path / "a.fits")
    assert read_spectrum(tmp_path / "a.fits", medium="vacuum", frame="rest").star_id == "HD1"


def test_sums_are_held_before_specutils_reads(tmp_path: Path) -> None:
    """astropy, who reads the file then, would only warn."""
    pytest.importorskip("specutils")
    hdu = fits.PrimaryHDU(np.ones(100))
    words = {"CRVAL1": 5000.0, "CDELT1": 1.0, "CRPIX1": 1, "CTYPE1": "WAVE", "CUNIT1": "Angstrom", "OBJECT": "HD 1"}
    hdu.header.update(words)
    path = tmp_path / "a.fits"
    hdu.writeto(path, checksum=True)
    told = {"medium": "vacuum", "frame": "rest"}
    assert read_spectrum(path, **told).flux[20] == 1.0
    raw = bytearray(path.read_bytes())
    raw[2880 + 8 * 20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.fits, HDU 0: its data sum to .* DATASUM"):
        read_spectrum(path, **told)
    assert read_spectrum(path, check_sums=False, **told).flux[20] != 1.0


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 300, b"\0" * 5000, bytes(range(256)) * 20])
def test_no_fits(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    for told in ({}, {"medium": "vacuum", "frame": "rest"}):
        with pytest.raises(ValueError, match=r"a\.fits, HDU 0: .*(empty|no FITS file)"):
            read_spectrum(path, **told)


# ---- a thousand damaged files ----

CARDS = {
    "NAXIS": [b"0", b"1", b"3", b"-1", b"999"],
    "NAXIS1": [b"0", b"1", b"8574", b"99999999999", b"-1"],
    "NAXIS2": [b"0", b"1", b"6", b"123456789"],
    "BITPIX": [b"8", b"16", b"-64", b"7"],
    "CRVAL1": [b"4.18", b"0.0", b"1E308", b"NaN", b"'text'", b""],
    "CDELT1": [b"0.0", b"-6E-06", b"6E-05", b"T"],
    "COEFF0": [b"3.6", b"99", b"-3"],
    "COEFF1": [b"0.0", b"1.0", b"-1E-4"],
    "CRVAL": [b"3.5", b"1E9"],
    "NVISITS": [b"0", b"1", b"77", b"1.5"],
    "SDSS_ID": [b"0", b"-1", b"'x'"],
    "Z": [b"5.0", b"-9999.0", b"0.0099"],
    "XUNITS": [b"'nm'", b"0"],
    "WAVETYPE": [b"'Air'", b"''"],
    "TTYPE1": [b"'flux'", b"''"],
    "TFORM1": [b"'E'", b"'999999999999E'", b"'?'"],
    "TFIELDS": [b"0", b"999", b"-1"],
    "BSCALE": [b"0.0", b"1E300"],
    "XTENSION": [b"'IMAGE'", b"'TABLE'", b"'FOREIGN'"],
}


def damage(raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """One kind of damage: a cut, flipped bits, a zeroed or random block, a changed card, two HDUs swapped."""
    data = bytearray(raw)
    kind = str(rng.choice(["cut", "bits", "bits", "zeros", "noise", "card", "card", "swap", "doubled"]))
    if kind == "cut":
        return bytes(data[: rng.integers(0, len(data))]), kind
    if kind == "bits":
        for position in rng.integers(0, len(data), rng.integers(1, 30)):
            data[position] ^= 1 << rng.integers(0, 8)
    elif kind in ("zeros", "noise"):
        start, size = rng.integers(0, len(data)), int(rng.integers(1, 6000))
        piece = rng.bytes(size) if kind == "noise" else bytes(size)
        data[start : start + size] = piece[: len(data[start : start + size])]
    elif kind == "card":
        word = str(rng.choice([word for word in CARDS if word.encode().ljust(8) + b"= " in raw]))
        starts = [i for i in range(0, len(raw), 80) if raw[i : i + 10] == word.encode().ljust(8) + b"= "]
        start = int(rng.choice(starts))
        value = CARDS[word][rng.integers(0, len(CARDS[word]))]
        data[start + 10 : start + 80] = (value.ljust(20) if value.startswith(b"'") else value.rjust(20)).ljust(70)
    elif kind == "swap":
        a, b = sorted(int(block) * 2880 for block in rng.integers(0, len(data) // 2880, 2))
        data[a : a + 2880], data[b : b + 2880] = data[b : b + 2880], data[a : a + 2880]
    else:
        data += data[: int(rng.integers(1, len(data)))]
    return bytes(data), kind


def check(star) -> None:
    """What holds for every spectrum that is returned."""
    assert star.wavelength.dtype == star.flux.dtype == np.dtype(np.float64)
    assert star.wavelength.shape == star.flux.shape == star.bad_pixel.shape
    assert np.isfinite(star.flux if star.survey != "stelib" else star.flux[~star.bad_pixel]).all()
    assert np.isfinite(star.wavelength).all()
    assert (np.diff(star.wavelength) > 0).all()
    assert 1000 < star.wavelength[0] < star.wavelength[-1] < 60_000
    if star.ivar is not None:
        assert np.isfinite(star.ivar.astype(np.float32)).all()
        assert (star.ivar >= 0).all()
        assert (star.ivar[star.bad_pixel] == 0).all()
    assert star.star_id
    if star.survey in ("apogee", "sdss5_apogee") and star.flux.size == 7514:
        np.testing.assert_array_equal(star.wavelength, apogee_wavelength())
    for number in (star.snr, star.ra, star.dec, *star.labels.values()):
        assert number is None or np.isfinite(number)


def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    """Each is refused by name or gives a sane spectrum; with checksums, the true one or none."""
    rng = np.random.default_rng(20_250_101)
    sources = []
    for name, (file_name, write) in WRITERS.items():
        (tmp_path / "whole").mkdir(exist_ok=True)
        path = write(tmp_path / "whole" / file_name)
        sources.append((name, file_name, path.read_bytes(), read_spectrum(path)))
        shutil.rmtree(tmp_path / "whole")
    outcomes: Counter[str] = Counter()
    for number in range(1000):
        name, file_name, raw, original = sources[number % len(sources)]
        damaged, kind = damage(raw, rng)
        if number % 10 == 3:
            damaged = gzip.compress(damaged, 1)
        path = tmp_path / file_name
        path.write_bytes(damaged)
        begun = time.process_time()
        star, complaint = None, ""
        try:
            star = read_spectrum(path)
        except (ValueError, FileNotFoundError) as error:
            complaint = str(error)
        if star is None:
            assert file_name in complaint, f"{number} {kind}: {complaint}"
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            check(star)
            # Written with checksums; but a sum is the same whatever the order of its terms.
            if name in ("mwmStar / mwmVisit", "astraStar") and kind != "swap":
                np.testing.assert_array_equal(star.flux, original.flux, err_msg=f"{number} {kind}")
                np.testing.assert_array_equal(star.bad_pixel, original.bad_pixel)
        assert time.process_time() - begun < 1.0, f"{number} {kind} {name}"
    assert outcomes["refused"] > 300
    assert outcomes["read"] > 100
