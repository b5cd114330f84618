"""The abundance response repeats Synspec spectra it never saw, and does what chemistry says."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from spectrafm_hf.spectra import air_to_vacuum, apogee_wavelength
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.synthesis.response import (
    BOUNDS,
    LABEL_NAMES,
    RESPONSE_FILE,
    AbundanceResponse,
    most_sensitive_pixels,
    ratio_error,
)

WAVELENGTH = apogee_wavelength()
SYNSPEC = Path(__file__).parent / "data/synspec_ratios.safetensors"


@pytest.fixture(scope="module")
def response():
    return AbundanceResponse()


@pytest.fixture(scope="module")
def synspec():
    """Flux ratios of stars Synspec computed and the network never saw: labels (n, 8) and ratio (n, 7514)."""
    stored = load_file(SYNSPEC)
    return stored["labels"], stored["ratio"].astype(np.float32)


def star(**labels):
    solar = {"teff": 4500.0, "logg": 2.0, "fe_h": -0.2} | dict.fromkeys(LABEL_NAMES[3:], 0.0)
    return np.array([list((solar | labels).values())])


def depth(flux, line, half_width=0.4):
    return 1 - flux[np.abs(WAVELENGTH - line) < half_width].mean()


def test_at_least_a_hundred_unseen_spectra_agree(response, synspec):
    labels, ratio = synspec
    assert len(labels) >= 100
    error, without = ratio_error(response(labels), ratio, labels), ratio_error(None, ratio, labels)
    assert error <= 0.01
    assert error <= 0.5 * without


def test_unseen_spectra_span_what_is_asked_of_the_network(synspec):
    labels, _ = synspec
    giants = labels[:, 1] < 3.5
    assert 0.4 < giants.mean() < 0.9
    assert np.ptp(labels[:, 0]) > 2000
    assert (labels[:, 2] < -1).sum() >= 10
    assert labels[:, 3:5].std(axis=0).min() > 0.1


def test_the_most_sensitive_pixels_are_on_lines_of_that_element(synspec):
    """Magnesium: the 1.57 micron triplet; oxygen: OH at 15282.7 and 16195 Angstrom (Shetrone et al. 2015)."""
    labels, ratio = synspec
    magnesium = WAVELENGTH[most_sensitive_pixels(ratio, labels, "mg_fe")]
    for line in (15745.0, 15753.3, 15770.1):
        assert np.abs(magnesium - line).min() < 0.2
    oxygen = WAVELENGTH[most_sensitive_pixels(ratio, labels, "o_fe")]
    for line in (15282.7, 16195.0):
        assert np.abs(oxygen - line).min() < 0.5


def test_solar_ratios_change_nothing(response):
    for labels in (star(), star(teff=6000.0, logg=4.3, fe_h=0.3), star(teff=3600.0, logg=0.5, fe_h=-2.0)):
        assert np.array_equal(response(labels), np.ones((1, WAVELENGTH.size), np.float32))


def test_a_star_does_not_depend_on_its_company(response, synspec):
    labels, _ = synspec
    together = response(labels)
    assert np.allclose(together[3], response(labels[3])[0], atol=1e-5)


def test_magnesium_lines_deepen_with_magnesium(response):
    for kind in ({"teff": 4200.0, "logg": 1.5}, {"teff": 5000.0, "logg": 3.0}, {"teff": 5700.0, "logg": 4.4}):
        base = CannonSynthesizer(WAVELENGTH, resolving_power=22_500)(star(**kind)[:, :3])
        flux = [(base * response(star(**kind, mg_fe=value)))[0] for value in (-0.3, -0.1, 0.1, 0.3, 0.5)]
        for line in (15745.0, 15753.3, 15770.1):
            depths = [depth(spectrum, line) for spectrum in flux]
            assert all(np.diff(depths) > 0.002), (kind, line, depths)


def test_oxygen_makes_hydroxyl_and_takes_carbon_from_cyanogen(response):
    """4,000 K, log g 1.2: OH at 15279 (air) 0.964 / 0.933 / 0.855 for [O/Fe] -0.2 / 0 / +0.4 in Synspec, CN weaker."""
    ratios = [response(star(teff=4000.0, logg=1.2, fe_h=0.0, o_fe=value))[0] for value in (-0.2, 0.0, 0.4)]
    hydroxyl = float(air_to_vacuum(np.array(15278.5)))
    oh = [ratio[np.abs(WAVELENGTH - hydroxyl) < 0.5].mean() for ratio in ratios]
    assert oh[0] == pytest.approx(0.964 / 0.933, abs=0.02)
    assert oh[2] == pytest.approx(0.855 / 0.933, abs=0.02)
    cyanogen = float(air_to_vacuum(np.array(15260.0)))
    cn = [ratio[np.abs(WAVELENGTH - cyanogen) < 2].mean() for ratio in ratios]
    assert cn[0] < cn[1] < cn[2]


def test_nitrogen_deepens_cyanogen(response):
    ratio = response(star(teff=4000.0, logg=1.2, n_fe=0.5))[0]
    assert ratio[np.abs(WAVELENGTH - float(air_to_vacuum(np.array(15260.0)))) < 2].mean() < 0.995


def test_the_response_fades_in_hot_and_in_metal_poor_stars(response):
    def strength(**labels):
        return np.abs(np.log(response(star(mg_fe=0.3, o_fe=0.3, **labels)))).mean()

    assert strength(teff=4200.0, logg=1.5) > 2 * strength(teff=6500.0, logg=4.2)
    assert strength(fe_h=0.0) > 1.3 * strength(fe_h=-2.0)


@pytest.mark.parametrize(
    ("name", "value", "unit"), [("teff", 3300.0, "K"), ("mg_fe", 1.5, "dex"), ("logg", 5.4, "dex")]
)
def test_labels_outside_are_refused_with_the_bounds(response, name, value, unit):
    low, high = BOUNDS[name]
    with pytest.raises(ValueError, match=rf"{name} in \[{low:g}, {high:g}\] {unit}, got \[{value:g}"):
        response(star(**{name: value}))


def test_the_weights_are_small_and_say_how_they_were_made():
    assert RESPONSE_FILE.stat().st_size <= 3_000_000
    with safe_open(RESPONSE_FILE, framework="np") as stored:
        made_from = stored.metadata()
    assert "Synspec" in made_from["source"]
    assert int(made_from["n_spectra"]) > 500
