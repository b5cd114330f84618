"""Factors on sigma, and functions in their place: right where the answer is known, and never certainty."""

import json

import numpy as np
import pytest
from conftest import tiny_extractor, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from spectrafm_hf import calibration
from spectrafm_hf.calibration import (
    FACTOR_LIMITS,
    FEWEST_FOR_REGRESSION,
    FEWEST_STARS,
    recalibration,
    sigma_factor,
    sigma_factors,
)
from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import HALF_WIDTHS, NOMINAL_COVERAGE, summarise
from spectrafm_hf.stage_data import HeldOut, judge

LABELS = ["teff", "logg", "fe_h"]


@pytest.fixture
def in_a_hurry(monkeypatch):
    """Enough for errors that hang on nothing; those of `partial` need all the steps."""
    monkeypatch.setattr(calibration, "N_STEPS", 400)


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


# ---------------------------------------------------------------- a function in place of two factors


def partial(n=8000, seed=0):
    """A network that errs as a function of the star and of the noise, and says the same sigma of all.

    Teff comes out 60 K too high for dwarfs and as much too low for giants; the scatter of all labels grows with the
    noise, and is twice as large for metal-poor stars. Its log g is known of half of the stars.
    """
    rng = np.random.default_rng(seed)
    true = np.array([5000.0, 3.0, -0.8]) + rng.uniform(-1.7, 1.7, (n, 3)) * [500, 1, 0.6]
    noise = 10 ** rng.uniform(-2.3, -1.3, n)
    sigma = np.tile([80.0, 0.15, 0.08], (n, 1))
    spread = sigma * np.where(true[:, 2:] < -0.8, 1.4, 0.7) * (noise[:, None] / 0.016) ** 0.5
    mean = true + spread * rng.normal(size=(n, 3))
    mean[:, 0] += 60 * np.sign(true[:, 1] - 3)
    labels = true.copy()
    labels[::2, 1] = np.nan
    return mean, sigma, labels, noise


def scaled(mean, sigma):
    """What the network of these answers would have given to the tiny extractor."""
    extractor = tiny_extractor()
    return (mean - extractor.label_center) / extractor.label_scale, 2 * np.log(sigma / extractor.label_scale)


def decoded(extractor, mean, sigma, noise=None):
    told = extractor.decode_labels(*scaled(mean, sigma), noise)
    return [np.stack([told[name][key] for name in LABELS], axis=1) for key in ("value", "sigma", "sigma95")]


@pytest.fixture(scope="module")
def recalibrated():
    mean, sigma, labels, noise = partial()
    return tiny_extractor(recalibration=recalibration(LABELS, mean, sigma, labels, None, noise))


def shares_inside(value, sigma, sigma95, labels):
    residual = np.where(np.isfinite(labels), np.abs(value - labels), np.nan)
    return {"coverage68": residual <= sigma, "coverage95": residual <= HALF_WIDTHS["coverage95"] * sigma95}


def test_coverage_holds_for_metal_poor_stars_and_noisy_ones(recalibrated):
    """Bins of 400 stars or more: their own binomial error is 2.3 percentage points and less.

    Over all stars, log g is held to 1,200 stars set aside and judged by 4,000: 1.5 points together.
    """
    mean, sigma, labels, noise = partial(seed=1)
    inside = shares_inside(*decoded(recalibrated, mean, sigma, noise), labels)
    dwarf, poor, noisy = labels[:, 0] > 5000, labels[:, 2] < -0.8, noise > 0.016
    for interval, nominal in NOMINAL_COVERAGE.items():
        for column in range(3):
            known = np.isfinite(labels[:, column])
            assert abs(inside[interval][known, column].mean() - nominal) < 0.03
            for kind in (dwarf, ~dwarf, poor, ~poor, noisy, ~noisy, poor & noisy):
                assert abs(inside[interval][known & kind, column].mean() - nominal) < 0.06


def test_two_factors_fail_where_a_function_does_not(recalibrated):
    """The reason to have it: over all stars both are right, of the metal-poor ones the factors cover too few."""
    mean, sigma, labels, noise = partial(seed=1)
    plain = tiny_extractor(sigma_factors=sigma_factors(LABELS, *partial()[:3]))
    inside = shares_inside(*decoded(plain, mean, sigma, noise), labels)["coverage68"][:, 2]
    assert abs(inside.mean() - 0.6827) < 0.02
    assert inside[labels[:, 2] < -0.8].mean() < 0.6


def test_without_the_noise_coverage_holds_over_all_stars(recalibrated):
    mean, sigma, labels, _ = partial(seed=1)
    inside = shares_inside(*decoded(recalibrated, mean, sigma), labels)
    for interval, nominal in NOMINAL_COVERAGE.items():
        for column in range(3):
            assert abs(inside[interval][np.isfinite(labels[:, column]), column].mean() - nominal) < 0.03


def test_a_bias_is_taken_out(recalibrated):
    mean, sigma, labels, noise = partial(seed=1)
    value, *_ = decoded(recalibrated, mean, sigma, noise)
    for giants in (labels[:, 1] < 2.8, labels[:, 1] > 3.2):
        assert abs(np.median((mean - labels)[giants, 0])) > 50
        assert abs(np.median((value - labels)[giants, 0])) < 12


def test_the_wider_interval_holds_the_other_whatever_comes(recalibrated):
    rng = np.random.default_rng(2)
    mean = rng.normal(scale=30, size=(500, 3)) * [500, 1, 0.6]
    sigma = 10 ** rng.uniform(-6, 6, (500, 3))
    value, narrow, wide = decoded(recalibrated, mean, sigma, 10 ** rng.uniform(-9, 9, 500))
    assert np.isfinite([value, narrow, wide]).all()
    assert (HALF_WIDTHS["coverage95"] * wide >= narrow * (1 - 1e-6)).all()
    assert (narrow > 0).all()


def test_a_label_that_was_given_leaves_the_others_answered(recalibrated):
    mean, sigma, *_ = partial(n=5)
    mean[:, 0], sigma[:, 0] = np.nan, np.nan
    value, narrow, _ = decoded(recalibrated, mean, sigma)
    assert np.isnan(value[:, 0]).all()
    assert np.isfinite(value[:, 1:]).all()
    assert np.isfinite(narrow[:, 1:]).all()


def test_labels_themselves_are_decoded_as_they_are(recalibrated):
    """Without a variance it is no answer of the network, and nothing to be corrected."""
    labels = np.array([[5772.0, 4.44, 0.0]])
    encoded, _ = recalibrated.encode_labels(labels)
    told = recalibrated.decode_labels(encoded)
    np.testing.assert_allclose([told[name]["value"][0] for name in LABELS], labels[0], atol=1e-3)


def test_a_recalibration_is_saved_as_plain_numbers(recalibrated, tmp_path):
    recalibrated.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["recalibration"]["label_names"] == LABELS
    assert "_recalibration" not in stored
    loaded = type(recalibrated).from_pretrained(tmp_path)
    mean, sigma, _, noise = partial(n=20)
    np.testing.assert_array_equal(decoded(loaded, mean, sigma, noise), decoded(recalibrated, mean, sigma, noise))


@pytest.mark.usefixtures("in_a_hurry")
def test_labels_without_enough_stars_keep_their_factors():
    mean, sigma, labels, noise = partial(n=2 * FEWEST_FOR_REGRESSION - 2)  # log g is known of half of them
    found = recalibration(LABELS, mean, sigma, labels, None, noise)
    assert found["label_names"] == ["teff", "fe_h"]
    extractor = tiny_extractor(recalibration=found, sigma_factors={"logg": [2.0, 3.0], "teff": [9.0, 9.0]})
    _, narrow, wide = decoded(extractor, mean, sigma, noise)
    np.testing.assert_allclose(narrow[:, 1], 2 * sigma[:, 1])
    np.testing.assert_allclose(wide[:, 1], 3 * sigma[:, 1])
    assert (narrow[:, 0] < 5 * sigma[:, 0]).all()  # not the factors
    few = slice(0, 500)
    assert recalibration(LABELS, mean[few], sigma[few], labels[few], None, noise[few]) is None


@pytest.mark.usefixtures("in_a_hurry")
def test_published_errors_are_not_blamed_on_the_network():
    """A network that is right about itself stays so, though the labels it is held against scatter by 1.5 sigma."""
    rng = np.random.default_rng(3)
    mean, sigma, _, noise = partial()
    true = mean + sigma * rng.normal(size=mean.shape)
    errors = 1.5 * sigma
    found = recalibration(LABELS, mean, sigma, true + errors * rng.normal(size=mean.shape), errors, noise)
    value, narrow, wide = decoded(tiny_extractor(recalibration=found), mean, sigma, noise)
    assert abs(np.median(narrow / sigma) - 1) < 0.15
    assert abs(np.median(wide / sigma) - 1) < 0.15
    assert abs(np.median((value - mean) / sigma)) < 0.1


@pytest.mark.parametrize(
    "change",
    [{"label_names": ["teff", "logg", "mg_fe"]}, {"center": [0.0]}, {"output_bias": [0.0] * 3}],
)
def test_a_recalibration_of_another_model_is_refused(recalibrated, change):
    with pytest.raises(ValueError, match="recalibration must be of labels of this model, teff, logg, fe_h"):
        tiny_extractor(recalibration=recalibrated.recalibration | change)


# ---------------------------------------------------------------- noise, as pixels show it


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.05])
def test_noise_is_measured_and_lines_are_not(star, noise):
    wavelength, flux = star
    noisy = flux * (1 + noise * np.random.default_rng(0).standard_normal((200, flux.size)))
    extractor = tiny_extractor(pixel_width=None)
    found = extractor.noise(extractor(noisy, wavelength, return_tensors="pt"))
    assert np.median(found) == pytest.approx(noise, rel=0.1)
    bad = np.random.default_rng(1).random(noisy.shape) < 0.1
    noisy[bad] = 7.0
    masked = extractor.noise(extractor(noisy, wavelength, bad_pixel=bad, return_tensors="np"))
    assert np.median(masked) == pytest.approx(noise, rel=0.1)


def test_noise_of_a_few_pixels_is_not_known(star):
    wavelength, flux = star
    extractor = tiny_extractor(pixel_width=None)
    assert np.isnan(extractor.noise(extractor(flux[:20], wavelength[:20], return_tensors="np"))).all()


def test_noise_does_not_look_across_a_gap(star):
    """A step of the flux at the gap between two detectors is no noise."""
    wavelength, flux = star
    kept = np.concatenate([np.arange(n, n + 12) for n in range(0, flux.size - 12, 40)])  # 2 of 3 runs would straddle
    stairs = 1 + 0.5 * (np.arange(kept.size) // 12 % 2) + 0.001 * np.random.default_rng(0).standard_normal(kept.size)
    extractor = tiny_extractor(pixel_width=None, smoothing_length=None)
    found = extractor.noise(extractor(stairs, wavelength[kept], return_tensors="np"))
    assert found[0] == pytest.approx(0.001, rel=0.4)
