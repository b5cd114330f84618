"""Images and tables of no survey: what their headers say counts, what they do not say must be told, and is said."""

import time
from pathlib import Path

import numpy as np
import pytest
import survey_files as survey
from astropy.io import fits
from astropy.wcs import WCS
from survey_files import SODIUM, with_sodium, write_axis, write_eso, write_spspec
from test_readers_any_file import damage

from spectrafm_hf.readers.any_file import read_with_notes
from spectrafm_hf.spectra import SPEED_OF_LIGHT

AXIS = 5800.0 + 0.5 * np.arange(400)
FLUX = with_sodium(AXIS)
REST = {"medium": "vacuum", "velocity": 0.0}


def read(path: Path, **told):
    return read_with_notes(path, default_name="HD 9138", **told)


def line(star) -> float:
    return float(np.average(star.wavelength, weights=1 - star.flux))


# ---------------------------------------------------------------- units


@pytest.mark.parametrize(("unit", "factor"), [("Angstrom", 1.0), ("nm", 10.0), ("um", 1e4), ("m", 1e10)])
@pytest.mark.parametrize("spelled", ["as it is", "told", "as others spell it"])
def test_the_same_unit_told_is_no_contradiction(tmp_path, unit, factor, spelled):
    path = write_axis(tmp_path / "a.fits", 5800 / factor, 0.5 / factor, FLUX, CUNIT1=unit, CTYPE1="WAVE")
    other = {"Angstrom": "angstroms", "nm": "nanometer", "um": "micron", "m": "1e10 Angstrom"}[unit]
    told = {} if spelled == "as it is" else {"wavelength_unit": unit if spelled == "told" else other}
    star, _ = read(path, **REST, **told)
    np.testing.assert_allclose(star.wavelength, AXIS, rtol=1e-12)


def test_another_unit_told_is_refused_with_both(tmp_path):
    path = write_axis(tmp_path / "a.fits", 580, 0.05, FLUX, CUNIT1="nm", CTYPE1="WAVE")
    with pytest.raises(ValueError, match=r"a\.fits: its wavelengths come in 'nm', but wavelength_unit='Angstrom'"):
        read(path, **REST, wavelength_unit="Angstrom")
    silent = write_axis(tmp_path / "b.fits", 580, 0.05, FLUX)
    with pytest.raises(ValueError, match=r"b\.fits: .*unit of wavelength.*got 'parrot'"):
        read(silent, **REST, wavelength_unit="parrot")


def test_a_unit_that_the_file_lacks(tmp_path):
    path = write_axis(tmp_path / "a.fits", 580, 0.05, FLUX)
    np.testing.assert_allclose(read(path, **REST, wavelength_unit="nm")[0].wavelength, AXIS, rtol=1e-12)
    with pytest.raises(ValueError, match="looks like nm; pass wavelength_unit='nm'"):
        read(path, **REST)
    star, notes = read(write_axis(tmp_path / "b.fits", 5800, 0.5, FLUX), **REST)
    np.testing.assert_allclose(star.wavelength, AXIS, rtol=1e-12)
    assert any("were taken for Angstrom" in sentence for sentence in notes)
    iraf = write_axis(tmp_path / "c.fits", 580, 0.05, FLUX, WAT1_001="wtype=linear label=Wavelength units=nanometers")
    np.testing.assert_allclose(read(iraf, **REST)[0].wavelength, AXIS, rtol=1e-12)


def test_the_axis_is_that_of_the_standard(tmp_path):
    """As wcslib computes it: the reference pixel, CD1_1 before CDELT1, and steps that are even in ln(lambda)."""
    for number, (ctype, words) in enumerate(
        [
            ("WAVE", {"CRPIX1": 17.5}),
            ("WAVE", {"CRPIX1": None}),
            ("AWAV", {"CD1_1": 0.25, "CDELT1": None}),
            ("WAVE-LOG", {"CRPIX1": 100}),
            ("AWAV-LOG", {"CRPIX1": 1}),
        ]
    ):
        path = tmp_path / f"{number}.fits"
        write_axis(path, 5800.0, 0.5, FLUX, CTYPE1=ctype, CUNIT1="Angstrom", **words)
        with fits.open(path) as hdus:
            expected = WCS(hdus[0].header).all_pix2world(np.arange(FLUX.size), 0)[0] * 1e10
        star, _ = read(path, **REST)
        np.testing.assert_allclose(star.wavelength, expected, rtol=1e-11)


# ---------------------------------------------------------------- logarithmic axes


def log_axis(n=2000):
    return 3.76 + 1e-5 * np.arange(n)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"DC-FLAG": 1, "CTYPE1": "LINEAR"}, "DC-FLAG = 1 says"),
        ({"DC-FLAG": 1, "CTYPE1": "LINEAR", "WAT1_001": "wtype=linear label=Wavelength units=angstroms"}, None),
        ({"DC-FLAG": 1, "CDELT1": None, "CD1_1": 1e-5}, "DC-FLAG = 1 says"),
        ({"CTYPE1": "WAVE-LOG", "CUNIT1": "Angstrom"}, None),
        ({"CTYPE1": "WAVE-LOG"}, "CTYPE1 = 'WAVE-LOG' says"),
        ({"CTYPE1": "LOGLAM"}, "CTYPE1 = 'LOGLAM' says"),
        ({"CRVAL1": None, "CDELT1": None, "COEFF0": 3.76, "COEFF1": 1e-5}, "COEFF0 says"),
    ],
)
@pytest.mark.parametrize("unit", [None, "log10(Angstrom)", "Angstrom"])
def test_log10_of_wavelengths(tmp_path, words, said, unit):
    flux = with_sodium(10 ** log_axis(), SODIUM[1])
    path = write_axis(tmp_path / "a.fits", 3.76, 1e-5, flux, **words)
    star, notes = read(path, **REST, **({} if unit is None else {"wavelength_unit": unit}))
    np.testing.assert_allclose(star.wavelength, 10 ** log_axis(), rtol=1e-12)
    assert line(star) == pytest.approx(SODIUM[1], abs=0.01)
    if said is not None and unit is None:
        assert any(said in sentence for sentence in notes)


def test_log10_that_no_word_says(tmp_path):
    flux = with_sodium(10 ** log_axis(), SODIUM[1])
    path = write_axis(tmp_path / "a.fits", 3.76, 1e-5, flux)
    with pytest.raises(ValueError, match=r"looks like log10\(Angstrom\)"):
        read(path, **REST)
    star, _ = read(path, **REST, wavelength_unit="log10(Angstrom)")
    np.testing.assert_allclose(star.wavelength, 10 ** log_axis(), rtol=1e-12)
    wrong = write_axis(tmp_path / "b.fits", 3.76, 1e-5, flux, CUNIT1="Angstrom", CTYPE1="WAVE")
    with pytest.raises(ValueError, match=r"b\.fits: .*pass wavelength_unit='log10\(Angstrom\)'"):
        read(wrong, **REST)
    star, notes = read(wrong, **REST, wavelength_unit="log10(Angstrom)")
    assert line(star) == pytest.approx(SODIUM[1], abs=0.01)
    assert any("though the file says 'Angstrom'" in sentence for sentence in notes)


def test_a_file_that_says_it_is_at_rest(tmp_path):
    path = write_axis(tmp_path / "a.fits", 5800, 0.5, FLUX, CUNIT1="Angstrom", CTYPE1="AWAV", SPECSYS="SOURCE")
    assert line(read(path)[0]) == pytest.approx(SODIUM[1], abs=0.01)
    assert line(read(path, frame="rest")[0]) == pytest.approx(SODIUM[1], abs=0.01)
    with pytest.raises(ValueError, match=r"a\.fits: .*star's rest frame already"):
        read(path, velocity=50.0)


def test_spspec_of_sdss(tmp_path):
    star, notes = read(write_spspec(tmp_path / "a.fit"), velocity=0.0)
    assert np.average(star.wavelength, weights=1 - star.flux) == pytest.approx(SODIUM[1], abs=0.05)
    assert np.flatnonzero(star.bad_pixel).tolist() == [0, 1, 2]
    assert star.ivar[100] == pytest.approx(2500, rel=1e-5)
    assert any("in vacuum, as all spectra of SDSS are" in sentence for sentence in notes)


# ---------------------------------------------------------------- air and vacuum


@pytest.mark.parametrize("words", [{"CTYPE1": "AWAV"}, {"AIRORVAC": "air"}, {"VACUUM": False}])
def test_air_that_the_file_tells(tmp_path, words):
    path = write_axis(tmp_path / "a.fits", 5800, 0.5, FLUX, CUNIT1="Angstrom", **words)
    star, notes = read(path, velocity=100.0)
    assert line(star) == pytest.approx(SODIUM[1] / (1 + 100 / SPEED_OF_LIGHT), abs=0.01)
    assert any("taken to be in air, as" in sentence for sentence in notes)
    assert not any("air" in sentence for sentence in read(path, velocity=100.0, medium="air")[1])
    star, notes = read(path, **REST)
    assert line(star) == pytest.approx(SODIUM[0], abs=0.01)
    assert any("in vacuum, as was passed, though the FITS image says air" in sentence for sentence in notes)


def test_what_nobody_tells_is_asked_for(tmp_path):
    path = write_axis(tmp_path / "a.fits", 5800, 0.5, FLUX, CUNIT1="Angstrom", CTYPE1="LINEAR")
    with pytest.raises(ValueError, match=r"a\.fits: does not tell .*pass medium='vacuum' or 'air'.*Got medium=None"):
        read(path, velocity=0.0)
    with pytest.raises(ValueError, match=r"pass velocity= \(--velocity; km/s, positive = receding; 0 if"):
        read(path, medium="air")
    with pytest.raises(ValueError, match="needs either frame='rest'"):
        read(path, medium="air", frame="barycentric")
    told = {"medium": "air", "wavelength_unit": "THz"}
    with pytest.raises(ValueError, match="wavelengths come in 'Angstrom'"):
        read(path, velocity=0.0, **told)
    velocities = write_axis(tmp_path / "b.fits", 0, 1.0, FLUX, CUNIT1="km/s", CTYPE1="VELO")
    with pytest.raises(ValueError, match=r"b\.fits, HDU 0: its axis is one of velocities"):
        read(velocities, **REST)


# ---------------------------------------------------------------- images with errors and flags


def test_errors_and_flags_beside_the_flux(tmp_path):
    words = {"CRVAL1": 5800.0, "CDELT1": 0.5, "CRPIX1": 1, "CUNIT1": "Angstrom", "CTYPE1": "WAVE"}
    flux = fits.ImageHDU(FLUX, fits.Header(words), name="FLUX")
    flags = (np.arange(400) < 5).astype(np.int16)
    for name, values in (("STD", 0.1), ("IVAR", 100.0), ("VAR", 0.01)):
        path = tmp_path / f"{name}.fits"
        errors, quality = fits.ImageHDU(np.full(400, values), name=name), fits.ImageHDU(flags, name="DQ")
        fits.HDUList([fits.PrimaryHDU(), flux, errors, quality]).writeto(path)
        star, _ = read(path, **REST)
        assert star.ivar[10] == pytest.approx(100)
        np.testing.assert_array_equal(star.bad_pixel, flags != 0)
    other = tmp_path / "mask.fits"
    fits.HDUList([fits.PrimaryHDU(), flux, fits.ImageHDU(flags, name="MASK")]).writeto(other)
    with pytest.raises(ValueError, match="mask may mean either sign"):
        read(other, **REST)
    star, _ = read(other, **REST, bad_pixel="True is bad")
    np.testing.assert_array_equal(star.bad_pixel, flags != 0)


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("unit", ["angstrom", "nm"])
def test_a_science_data_product_of_eso(tmp_path, unit):
    star, notes = read_with_notes(write_eso(tmp_path / "a.fits", unit=unit), velocity=0.0)
    assert np.average(star.wavelength, weights=1 - star.flux) == pytest.approx(SODIUM[1], abs=0.02)
    assert (star.star_id, star.resolving_power, star.snr) == ("HD9138", 42310.0, 87.5)
    assert (star.ra, star.dec) == (22.5464, 6.1438)
    assert np.flatnonzero(star.bad_pixel).tolist() == [3, 4]
    assert star.ivar[10] == pytest.approx(1e4, rel=1e-5)
    assert any("taken to be in air, as its UCD 'em.wl;obs.atmos' says" in sentence for sentence in notes)
    assert any("include the Earth's motion" in sentence for sentence in notes)
    assert any("FLUX_REDUCED was not used" in sentence for sentence in notes)


def test_the_main_flux_comes_with_its_own_error(tmp_path):
    """Whatever the order of columns, the error of the reduced flux never goes with the calibrated one."""
    for number, fluxes in enumerate([("FLUX_REDUCED", "FLUX"), ("FLUX", "FLUX_REDUCED")]):
        for main in fluxes:
            path = write_eso(tmp_path / f"{number}{main}.fits", fluxes=fluxes, main=main)
            star, _ = read(path, velocity=0.0)
            assert np.median(star.flux) == pytest.approx(1.0)
            assert star.ivar[10] == pytest.approx(1e4, rel=1e-5)
    only = write_eso(tmp_path / "only.fits", fluxes=("FLUX_REDUCED",), main="FLUX_REDUCED", utypes=False)
    assert read(only, **REST)[0].ivar[10] == pytest.approx(1e4, rel=1e-5)


def test_the_medium_of_a_table(tmp_path):
    vacuum, notes = read(write_eso(tmp_path / "a.fits", ucd="em.wl"), velocity=0.0)
    assert line(vacuum) == pytest.approx(SODIUM[0], abs=0.02)
    assert any("in vacuum, as its UCD 'em.wl' says" in sentence for sentence in notes)
    silent = write_eso(tmp_path / "b.fits", ucd=None)
    with pytest.raises(ValueError, match=r"b\.fits: .*pass medium='vacuum' or 'air'"):
        read(silent, velocity=0.0)
    star, notes = read(write_eso(tmp_path / "c.fits"), **REST)
    assert line(star) == pytest.approx(SODIUM[0], abs=0.02)
    assert any("though the FITS table says air" in sentence for sentence in notes)


def write_columns(path: Path, **columns) -> Path:
    made = [fits.Column(name, "J" if array.dtype.kind == "i" else "D", array=array) for name, array in columns.items()]
    fits.BinTableHDU.from_columns(made).writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize("name", ["wave", "WAVELENGTH", "Lambda"])
@pytest.mark.parametrize(
    ("error", "value"), [("err", 0.1), ("flux_error", 0.1), ("sigma", 0.1), ("IVAR", 100.0), ("variance", 0.01)]
)
def test_a_table_without_units(tmp_path, name, error, value):
    path = write_columns(tmp_path / "a.fits", **{name: AXIS / 10, "Flux": FLUX, error: np.full(400, value)})
    star, _ = read(path, **REST, wavelength_unit="nm")
    np.testing.assert_allclose(star.wavelength, AXIS, rtol=1e-12)
    assert star.ivar[0] == pytest.approx(100)
    with pytest.raises(ValueError, match="looks like nm"):
        read(path, **REST)


def test_other_columns(tmp_path):
    logs = write_columns(tmp_path / "a.fits", loglam=np.log10(AXIS), flux=FLUX, and_mask=(AXIS < 5801).astype(int))
    star, notes = read(logs, **REST)
    np.testing.assert_allclose(star.wavelength, AXIS, rtol=1e-12)
    assert star.bad_pixel.sum() == 2
    assert any("log10(Angstrom)" in sentence for sentence in notes)
    never_good = write_columns(tmp_path / "b.fits", wave=AXIS, flux=FLUX, qual=np.full(400, 7))
    star, notes = read(never_good, **REST)
    assert not star.bad_pixel.any()
    assert any("no pixel has it" in sentence for sentence in notes)
    masked = write_columns(tmp_path / "c.fits", wave=AXIS, flux=FLUX, mask=(AXIS < 5801).astype(int))
    with pytest.raises(ValueError, match="mask may mean either sign"):
        read(masked, **REST)
    assert read(masked, **REST, bad_pixel="True is bad")[0].bad_pixel.sum() == 2


def test_rows_and_arrays_of_variable_length(tmp_path):
    made = [
        fits.Column("wave", "400D", array=np.stack([AXIS] * 3)),
        fits.Column("flux", "400D", array=FLUX * np.c_[[1, 2, 3]]),
    ]
    fits.BinTableHDU.from_columns(made).writeto(tmp_path / "a.fits")
    with pytest.raises(ValueError, match=r"holds 3 spectra, one per row; say which with row="):
        read(tmp_path / "a.fits", **REST)
    assert np.median(read(tmp_path / "a.fits", **REST, row=2)[0].flux) == pytest.approx(3.0)
    with pytest.raises(ValueError, match=r"has rows 0 to 2, got row=3"):
        read(tmp_path / "a.fits", **REST, row=3)
    heap = [
        fits.Column(name, "PD()", array=np.array([one], dtype=object)) for name, one in (("wave", AXIS), ("flux", FLUX))
    ]
    fits.BinTableHDU.from_columns(heap).writeto(tmp_path / "b.fits")
    with pytest.raises(ValueError, match="arrays of variable length"):
        read(tmp_path / "b.fits", **REST)


# ---------------------------------------------------------------- damaged files

CARDS = {
    "CRVAL1": [b"1E308", b"-3.0", b"'text'", b""],
    "CDELT1": [b"0.0", b"1E300", b"T"],
    "CTYPE1": [b"'AWAV-LOG'", b"'WAVE-F2W'", b"'VELO'", b"7"],
    "CUNIT1": [b"'parrot'", b"'km/s'", b"'(((('", b"5"],
    "DC-FLAG": [b"1", b"'1'", b"1E400"],
    "TUNIT1": [b"'parrot'", b"'10**9**9 m'", b"'log('"],
    "TUNIT2": [b"'mag'", b"'))'", b"'10**99**9'"],
    "TUTYP1": [b"'Data.'", b"'x:Data.FluxAxis.Value'"],
    "TFORM1": [b"'999999999D'", b"'1PD(9)'", b"'0D'", b"'400A'"],
    "TFORM2": [b"'400J'", b"'200D'", b"'400X'"],
    "SPEC_RES": [b"-1.0", b"1E400", b"'x'"],
    "SNR": [b"1E400", b"-2"],
    "OBJECT": [b"''", b"12"],
}


def test_damaged_files_are_read_or_refused(tmp_path):
    pytest.importorskip("specutils")  # asked last, and loaded here, since that takes a second itself
    rng = np.random.default_rng(7)
    write_axis(tmp_path / "image", 5800, 0.5, FLUX, CUNIT1="Angstrom", CTYPE1="AWAV", OBJECT="HD 1", **{"DC-FLAG": 0})
    write_eso(tmp_path / "eso")
    write_spspec(tmp_path / "spspec")
    write_columns(tmp_path / "table", loglam=np.log10(AXIS), flux=FLUX, err=np.full(400, 0.1))
    kinds = [(tmp_path / name).read_bytes() for name in ("image", "eso", "spspec", "table")]
    outcomes = {"read": 0, "refused": 0}
    path = tmp_path / "a.fits"
    for number in range(160):
        raw = kinds[number % 4]
        if number % 3:
            damaged, what = damage(raw, rng)
        else:
            word = str(rng.choice(list(CARDS)))
            value = CARDS[word][rng.integers(len(CARDS[word]))]
            at, what = raw.find(word.encode().ljust(8) + b"="), f"{word} {value!r}"
            damaged = raw if at < 0 else raw[: at + 10] + value.ljust(70) + raw[at + 80 :]
        path.write_bytes(damaged)
        begun, complaint = time.process_time(), None
        try:
            star, _ = read(path, medium="air", velocity=0.0, **({"wavelength_unit": "Angstrom"} if number % 2 else {}))
        except ValueError as error:
            complaint = str(error)
        if complaint is not None:
            assert "a.fits" in complaint, f"{number} {what}: {complaint}"
            outcomes["refused"] += 1
        else:
            assert np.isfinite(star.flux[~star.bad_pixel]).all()
            assert (np.diff(star.wavelength) > 0).all()
            outcomes["read"] += 1
        assert time.process_time() - begun < 1.0, f"{number} {what}"
    assert min(outcomes.values()) > 30


def test_the_survey_s_own_reader_comes_first(tmp_path):
    with pytest.raises(ValueError, match="is LAMOST LRS, whose reader has no use for medium"):
        read(survey.write_lamost(tmp_path / "a.fits"), medium="vacuum")
