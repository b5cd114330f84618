"""The example stars are what they say: readable as they are, at rest, noisy as told, of the labels they tell."""

import re

import numpy as np
import pytest
from astropy.io import fits

from spectrafm_hf.examples import EXAMPLES, HEADER_WORDS, example
from spectrafm_hf.labelling import Labeller
from spectrafm_hf.readers.any_file import read_spectrum
from spectrafm_hf.sources import read_source
from spectrafm_hf.spectra import apogee_wavelength
from training.make_examples import ROUND, table, write

H_BAND = [star for star in EXAMPLES.values() if star.layout == "aspcapStar"]
OPTICAL = [star for star in EXAMPLES.values() if star.layout == "LAMOST LRS"]
HALPHA = 6564.61
"""Vacuum Angstrom (NIST)."""
MAGNESIUM = (15745.02, 15753.29, 15770.15)
"""Mg I, vacuum Angstrom (NIST)."""


def named(stars):
    return pytest.mark.parametrize("star", stars, ids=lambda star: star.name)


def test_they_are_a_handful_and_small():
    assert len(H_BAND) == 3
    assert len(OPTICAL) == 2
    files = list(example(H_BAND[0].name).parent.glob("*.fits"))
    assert {path.stem for path in files} == set(EXAMPLES)
    assert sum(path.stat().st_size for path in files) < 1_000_000


@pytest.mark.parametrize("name", ["sirius", "", "../examples/h-band-dwarf"])
def test_others_are_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match="h-band-red-giant, h-band-dwarf"):
        example(name)


@named(H_BAND)
def test_h_band_star_has_the_pixels_of_apogee(star):
    spectrum = read_spectrum(example(star.name))
    np.testing.assert_array_equal(spectrum.wavelength, apogee_wavelength())
    assert spectrum.snr == star.snr
    assert 0 < spectrum.bad_pixel.mean() < 0.03
    with fits.open(example(star.name)) as file:
        assert file[1].data.shape == (8575,)
        assert (file[1].data == 0).sum() >= 8575 - 7514


@named(H_BAND)
def test_its_noise_is_that_of_its_error(star):
    with fits.open(example(star.name)) as file:
        flux, error, model = (file[number].data.astype(float) for number in (1, 2, 3))
    there = error > 0
    pull = (flux - model)[there] / error[there]
    assert there.sum() == 7514
    assert np.std(pull) == pytest.approx(1, abs=0.04)  # 7,514 draws: 0.008
    assert np.mean(pull) == pytest.approx(0, abs=0.05)
    assert np.median(1 / error[there]) == pytest.approx(star.snr, rel=1e-5)


@named(H_BAND)
def test_magnesium_absorbs_where_it_should(star):
    spectrum = read_spectrum(example(star.name))
    for line in MAGNESIUM:
        near = (np.abs(spectrum.wavelength - line) < 1.5) & ~spectrum.bad_pixel
        deepest = spectrum.wavelength[near][np.argmin(spectrum.flux[near])]
        assert deepest == pytest.approx(line, abs=0.5)


def test_a_metal_poor_giant_has_the_shallower_lines():
    depth = {star.name: 1 - np.median(read_spectrum(example(star.name)).flux) for star in H_BAND}
    assert depth["h-band-metal-poor-giant"] < 0.5 * depth["h-band-red-giant"]


@named(OPTICAL)
def test_optical_star_is_brought_to_rest_by_its_redshift(star):
    spectrum = read_spectrum(example(star.name))
    moving = read_spectrum(example(star.name), velocity=0.0)
    assert spectrum.wavelength.size == 3904
    assert spectrum.resolving_power == 1800
    for one, expected in ((spectrum, HALPHA), (moving, HALPHA * (1 + star.velocity / 299_792.458))):
        near = np.abs(one.wavelength - expected) < 12
        depth = np.clip(np.quantile(one.flux[near], 0.9) - one.flux[near], 0, None)
        centre = np.sum(one.wavelength[near] * depth) / depth.sum()
        assert centre == pytest.approx(expected, abs=0.6)  # 27 km/s; pixels of 1.5 Angstrom


@named(list(EXAMPLES.values()))
def test_its_header_says_that_it_is_synthetic_and_of_which_labels(star):
    header = fits.getheader(example(star.name))
    assert header["SYNTHET"] is True
    assert "synthetic" in str(header["COMMENT"]).lower()
    told = {name: header[word] for name, word in HEADER_WORDS.items() if word in header}
    assert told == star.labels


def test_the_readme_of_the_folder_has_their_labels():
    readme = (example(H_BAND[0].name).parent / "README.md").read_text(encoding="utf-8")
    assert table() in readme
    assert "**Synthetic**" in readme
    for star in EXAMPLES.values():
        row = re.search(rf"\| `{star.name}` \|(.*)\|", readme).group(1).split("|")
        assert [float(cell) for cell in row[3:] if cell.strip()] == list(star.labels.values())


@named([H_BAND[0], OPTICAL[0]])
def test_the_script_makes_them_again(star, tmp_path):
    with fits.open(write(star, tmp_path)) as again, fits.open(example(star.name)) as shipped:
        assert len(again) == len(shipped)
        for ours, theirs in zip(again, shipped, strict=True):
            words = {word for word in theirs.header if word not in ("DATASUM", "COMMENT", "")}
            assert {word: ours.header[word] for word in words} == {word: theirs.header[word] for word in words}
        pair = [file[1].data if star in H_BAND else file[1].data["FLUX"] for file in (again, shipped)]
    # Another make of processor may round single pixels to the next step; float32 has steps of 1e-4 at a flux of 1,000.
    np.testing.assert_allclose(*pair, rtol=2e-7, atol=1.01 * ROUND)


@pytest.fixture(scope="module")
def answers():
    """Labels of all example stars, by the model that ships."""
    readings = (reading for name in EXAMPLES for reading in read_source(example(name)))
    return dict(zip(EXAMPLES, Labeller("spectrafm-small", device="cpu").label(readings), strict=True))


@named(list(EXAMPLES.values()))
def test_the_shipped_model_finds_the_labels_they_were_made_with(star, answers):
    labelled = answers[star.name]
    assert set(labelled.flag_names) <= {"not_learned"}
    for name, made_with in star.labels.items():
        answer = labelled.labels[name]
        assert answer.learned
        assert abs(answer.value - made_with) < 5 * answer.sigma
        assert answer.sigma < {"teff": 100, "logg": 0.2, "o_fe": 0.3}.get(name, 0.15)  # and it is no guess
