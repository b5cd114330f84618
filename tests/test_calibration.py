"""Factors on sigma: right where the answer is known beforehand, and never certainty."""

import numpy as np
import pytest
from conftest import tiny_extractor, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from spectrafm_hf.calibration import FACTOR_LIMITS, FEWEST_STARS, sigma_factor, sigma_factors
from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import HALF_WIDTHS, NOMINAL_COVERAGE, summarise
from spectrafm_hf.stage_data import HeldOut, judge

LABELS = ["teff", "logg", "fe_h"]


def overconfident(n=4000, factor=2.5, seed=0):
    """A network whose sigma is `factor` times too small; published errors of 60 K and 0.1 dex on top."""
    rng = np.random.default_rng(seed)
    scale = np.array([80.0, 0.15, 0.08])
    sigma = scale * rng.uniform(0.5, 2.0, (n, 3))
    errors = np.full((n, 3), [60.0, 0.1, 0.1])
    true = np.array([5000.0, 3.0, -0.5]) + rng.normal(size=(n, 3)) * [500, 1, 0.6]
    published = true + errors * rng.normal(size=(n, 3))
    return true + factor * sigma * rng.normal(size=(n, 3)), sigma, published, errors


def test_the_factor_of_an_overconfident_network_is_found():
    factors = sigma_factors(LABELS, *overconfident())
    assert factors.keys() == set(LABELS)
    np.testing.assert_allclose(list(factors.values()), 2.5, rtol=0.08)


@pytest.mark.parametrize("factor", [0.6, 1.0, 4.0])
def test_other_stars_are_covered_as_promised(factor):
    """Fitted on one half, counted on another: 68.27 and 95 % within three standard errors of the count."""
    factors = sigma_factors(LABELS, *overconfident(factor=factor))
    mean, sigma, labels, errors = overconfident(factor=factor, seed=1)
    for i, name in enumerate(LABELS):
        for which, (interval, nominal) in enumerate(NOMINAL_COVERAGE.items()):
            covered = summarise(
                get_label(name), mean[:, i], labels[:, i], factors[name][which] * sigma[:, i], errors[:, i]
            )[interval]
            assert abs(covered - nominal) < 3 * np.sqrt(2 * nominal * (1 - nominal) / len(mean))


@given(st.integers(FEWEST_STARS, 200), st.integers(0, 2**32 - 1))
def test_of_the_calibration_stars_at_least_so_many_are_inside(n, seed):
    rng = np.random.default_rng(seed)
    residual, sigma, error = rng.standard_cauchy(n), rng.uniform(0.1, 2, n), rng.uniform(0.01, 0.5, n)
    for interval, probability in NOMINAL_COVERAGE.items():
        width = HALF_WIDTHS[interval]
        factor = sigma_factor(residual, sigma, error, probability, width)
        inside = np.abs(residual) <= width * np.sqrt((factor * sigma) ** 2 + error**2) * (1 + 1e-12)
        assert factor == FACTOR_LIMITS[1] or inside.mean() >= probability


def test_errors_that_explain_everything_leave_no_certainty():
    n = FEWEST_STARS
    factor = sigma_factor(np.zeros(n), np.ones(n), np.ones(n), 0.6827, 1.0)
    assert factor == FACTOR_LIMITS[0] == 0.5


def test_too_few_stars_say_nothing():
    mean, sigma, labels, errors = overconfident(n=FEWEST_STARS)
    labels[0, 1] = np.nan
    assert sigma_factors(LABELS, mean, sigma, labels, errors).keys() == {"teff", "fe_h"}
    with pytest.raises(ValueError, match=r"needs 30 finite residuals or more, got 29"):
        sigma_factor(np.zeros(29), np.ones(29), np.ones(29), 0.95, 1.96)


def test_decoded_sigma_is_the_networks_times_the_factor():
    plain, calibrated = tiny_extractor(), tiny_extractor(sigma_factors={"teff": [2.0, 3.0]})
    mean, log_var = np.zeros((1, 3)), np.log(np.full((1, 3), 0.25))
    own, found = plain.decode_labels(mean, log_var), calibrated.decode_labels(mean, log_var)
    assert found["teff"]["sigma"] == 2 * own["teff"]["sigma"]
    assert found["teff"]["sigma95"] == 3 * own["teff"]["sigma95"] == 3 * own["teff"]["sigma"]
    assert found["fe_h"]["sigma"] == own["fe_h"]["sigma"]
    assert found["teff"]["value"] == own["teff"]["value"]


@pytest.mark.parametrize("wrong", [{"m_h": [1, 1]}, {"teff": [1.0]}, {"teff": [0.0, 1.0]}, {"teff": [1.0, np.inf]}])
def test_factors_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"sigma_factors must give labels of this model two positive factors"):
        tiny_extractor(sigma_factors=wrong)


def test_factors_are_saved_with_the_extractor(tmp_path):
    tiny_extractor(sigma_factors={"fe_h": [1.5, 1.25]}).save_pretrained(tmp_path)
    loaded = type(tiny_extractor()).from_pretrained(tmp_path)
    assert loaded.sigma_factors == {"fe_h": [1.5, 1.25]}


def held_out(extractor, n=160, visits=2):
    rng = np.random.default_rng(0)
    grid = extractor.wavelength_grid
    flux = 1 + 0.05 * rng.standard_normal((n, grid.size))
    rows = [extractor.cut_tokens(*pair) for pair in zip(*extractor.clean(flux, np.ones(flux.shape, bool)), strict=True)]
    labels = np.array([5200.0, 3.0, -0.9]) + rng.normal(size=(n, 3)) * [800, 1, 0.7]
    return HeldOut("noise", [f"star {i // visits}" for i in range(n)], rows, labels, None)


def test_a_stage_is_calibrated_on_stars_that_do_not_count_in_its_results():
    extractor, spectra = tiny_extractor(), held_out(tiny_extractor())
    first, rest = spectra.halves()
    names = np.array(spectra.star_ids)
    assert not set(names[first]) & set(names[rest])  # two visits of a star are never parted
    results = judge(tiny_model(), extractor, spectra, calibrate=True, learned=["teff", "fe_h"])
    assert extractor.sigma_factors.keys() == {"teff", "fe_h"}  # log g was not learned
    assert results["n_calibration"] == len(first)
    assert results["labels"]["teff"]["n"] == len(rest)
    assert 0.5 < results["labels"]["teff"]["coverage68"] < 0.85
    before = dict(extractor.sigma_factors)
    again = judge(tiny_model(), extractor, spectra, calibrate=False, learned=["teff"])
    assert extractor.sigma_factors == before
    assert again["labels"]["teff"]["n"] == len(names)


def test_calibrating_twice_is_calibrating_once():
    extractor, spectra = tiny_extractor(), held_out(tiny_extractor())
    judge(tiny_model(), extractor, spectra, calibrate=True, learned=LABELS)
    once = dict(extractor.sigma_factors)
    judge(tiny_model(), extractor, spectra, calibrate=True, learned=LABELS)
    assert extractor.sigma_factors == once
