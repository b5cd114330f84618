"""Baselines on a family of fake stars whose lines are known functions of Teff, log g and [Fe/H]."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as PlainRidge

from spectrafm_hf.baselines import BASELINES, MIN_STARS, MLP, Cannon, CannonModel, Median, Ridge

N_PIXELS = 120
ERRORS = np.array([100.0, 0.2, 0.02])


class SmallMLP(MLP):
    """The same training with a network that fits in a test."""

    WIDTHS = (64, 32, 16)
    LEARNING_RATE = 3e-3


SMALL = BASELINES | {"mlp_scratch": SmallMLP}


def fake_stars(n_stars, seed, noise=0.002, fe_h_range=(-1.0, 0.5)):
    """Labels (n_stars, 3) and flux (n_stars, n_pixels): every line is a quadratic function of the labels.

    Pixels 10-19 follow [Fe/H] alone and linearly, the others Teff and log g too.
    """
    rng = np.random.default_rng(seed)
    labels = np.column_stack(
        [rng.uniform(4000, 6500, n_stars), rng.uniform(1, 5, n_stars), rng.uniform(*fe_h_range, n_stars)]
    )
    family = np.random.default_rng(99)  # the same lines for all
    terms = CannonModel.vectorise((labels - [5250, 3, -0.25]) / [1250, 2, 0.75])
    coefficients = 0.02 * family.normal(size=(10, N_PIXELS))
    coefficients[0] = 0.9
    coefficients[1:, 10:20] = 0
    coefficients[3, 10:20] = -0.1
    return labels, terms @ coefficients + noise * rng.normal(size=(n_stars, N_PIXELS))


def fitted(name, labels, flux, seed=0):
    baseline = SMALL[name]()
    values, errors = (labels, np.tile(ERRORS, (len(labels), 1))) if baseline.also_needs else (labels[:, 2], None)
    errors = np.full(len(labels), ERRORS[2]) if errors is None else errors
    return baseline.fit(flux, np.ones(flux.shape, dtype=bool), values, errors, seed)


def predicted(baseline, flux):
    return baseline.predict(flux, np.ones(flux.shape, dtype=bool))


@pytest.mark.parametrize(("name", "tolerance"), [("ridge", 0.02), ("cannon", 0.02), ("mlp_scratch", 0.08)])
def test_known_line_is_read(name, tolerance):
    labels, flux = fake_stars(100, seed=0)
    new_labels, new_flux = fake_stars(60, seed=1)
    mean, sigma = predicted(fitted(name, labels, flux), new_flux)
    assert np.sqrt(np.mean((mean - new_labels[:, 2]) ** 2)) < tolerance
    assert mean.shape == sigma.shape == (60,)
    assert (sigma > 0).all()
    assert np.isfinite(sigma).all()


@pytest.mark.parametrize("name", ["ridge", "cannon", "mlp_scratch"])
def test_sigma_is_honest_inside_the_training_range(name):
    labels, flux = fake_stars(100, seed=2, noise=0.05)
    new_labels, new_flux = fake_stars(400, seed=3, noise=0.05)
    mean, sigma = predicted(fitted(name, labels, flux), new_flux)
    covered = np.mean(np.abs(mean - new_labels[:, 2]) <= np.hypot(sigma, ERRORS[2]))
    assert 0.55 < covered < 0.82


def test_median_is_the_median():
    labels, flux = fake_stars(51, seed=4)
    mean, sigma = predicted(fitted("median", labels, flux), flux)
    middle = np.median(labels[:, 2])
    spread = 1.4826 * np.median(np.abs(labels[:, 2] - middle))
    assert (mean == middle).all()
    assert sigma == pytest.approx(np.sqrt(spread**2 - ERRORS[2] ** 2))


def test_quadratic_cannon_recovers_labels_of_noise_free_spectra():
    labels, flux = fake_stars(100, seed=5, noise=0.0)
    new_labels, new_flux = fake_stars(40, seed=6, noise=0.0, fe_h_range=(-2.0, 0.5))
    model = CannonModel.train(flux, labels, alpha=0.0, correlation=0.0, extension=1.0)
    np.testing.assert_allclose(model.infer(new_flux)[0], new_labels, rtol=1e-4, atol=1e-4)
    cannon = fitted("cannon", labels, flux)
    assert cannon.alpha == 0.0
    np.testing.assert_allclose(predicted(cannon, new_flux)[0], new_labels[:, 2], atol=1e-3)


def test_cannon_slopes_are_those_of_its_terms():
    point, step = np.array([0.3, -1.2, 0.7]), 1e-6
    numeric = np.stack(
        [(CannonModel.vectorise(point + step * axis) - CannonModel.vectorise(point)) / step for axis in np.eye(3)],
        axis=-1,
    )
    np.testing.assert_allclose(CannonModel._slopes(point), numeric, atol=1e-5)


def test_cannon_whitening_is_the_inverse_of_the_covariance_it_claims():
    labels, flux = fake_stars(60, seed=7, noise=0.02)
    share = 0.7
    model = CannonModel.train(flux, labels, alpha=10.0, correlation=share, extension=1.0)
    terms = CannonModel.vectorise((labels - model.centre) / model.scale)
    solver = np.linalg.solve(terms.T @ terms + 10.0 * np.diag([0.0] * 4 + [1.0] * 6), terms.T)
    residual = (flux - terms @ model.coefficients) / (1 - np.diag(terms @ solver))[:, None] / model.scatter
    covariance = share * residual.T @ residual / len(flux) + (1 - share) * np.eye(N_PIXELS)
    whitened = model._whitened(np.diag(model.scatter))  # rows: unit vectors in units of the scatter
    np.testing.assert_allclose(whitened @ whitened.T, (1 - share) * np.linalg.inv(covariance), atol=1e-6)


def test_cannon_stays_inside_its_bounds():
    labels, flux = fake_stars(60, seed=8)
    nonsense = np.random.default_rng(0).uniform(0, 2, (20, N_PIXELS))
    mean, _ = predicted(fitted("cannon", labels, flux), nonsense)
    low, high = labels[:, 2].min(), labels[:, 2].max()
    assert (mean >= low - (high - low) - 1e-9).all()
    assert (mean <= high + (high - low) + 1e-9).all()


def test_ridge_penalty_comes_from_the_training_stars_alone(monkeypatch):
    alphas = np.array([1e-3, 1e-1, 1e1])
    monkeypatch.setattr(Ridge, "ALPHAS", alphas)
    labels, flux = fake_stars(40, seed=9, noise=0.03)
    left_out = np.array(
        [
            [
                PlainRidge(alpha)
                .fit(np.delete(flux, star, 0), np.delete(labels[:, 2], star))
                .predict(flux[star : star + 1])[0]
                for star in range(40)
            ]
            for alpha in alphas
        ]
    )
    squared = np.mean((left_out - labels[:, 2]) ** 2, axis=1)
    ridge = fitted("ridge", labels, flux)
    assert ridge._regression.alpha_ == alphas[np.argmin(squared)]
    sigma = predicted(ridge, flux)[1]
    assert sigma == pytest.approx(np.sqrt(squared.min() - ERRORS[2] ** 2), rel=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_each_star_is_predicted_for_itself(name):
    labels, flux = fake_stars(40, seed=10)
    baseline = fitted(name, labels, flux)
    together = predicted(baseline, flux[:5])
    for star in range(5):
        alone = predicted(baseline, flux[star : star + 1])
        np.testing.assert_allclose(np.ravel(alone), [values[star] for values in together], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_answer_and_global_random_state_untouched(name):
    labels, flux = fake_stars(40, seed=11)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what must not move
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = predicted(fitted(name, labels, flux, seed=3), flux)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    torch.manual_seed(6)
    second = predicted(fitted(name, labels, flux, seed=3), flux)
    np.testing.assert_array_equal(first, second)


def test_another_seed_is_another_network():
    labels, flux = fake_stars(40, seed=11)
    one, other = (predicted(fitted("mlp_scratch", labels, flux, seed=seed), flux)[0] for seed in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("name", SMALL)
def test_order_of_training_stars_does_not_matter(name):
    labels, flux = fake_stars(40, seed=12)
    order = np.random.default_rng(0).permutation(40)
    straight, shuffled = fitted(name, labels, flux), fitted(name, labels[order], flux[order])
    np.testing.assert_array_equal(predicted(straight, flux), predicted(shuffled, flux))


@pytest.mark.parametrize("name", SMALL)
def test_bad_pixels_are_set_to_the_continuum(name):
    labels, flux = fake_stars(40, seed=13)
    baseline = fitted(name, labels, flux)
    good = np.ones((3, N_PIXELS), dtype=bool)
    good[:, 5] = False
    spoiled, filled = flux[:3].copy(), flux[:3].copy()
    spoiled[:, 5], filled[:, 5] = np.nan, 1.0
    np.testing.assert_array_equal(baseline.predict(spoiled, good), predicted(baseline, filled))


def test_bad_input_is_refused():
    labels, flux = fake_stars(40, seed=14)
    good, values, errors = np.ones(flux.shape, dtype=bool), labels[:, 2], np.full(40, 0.1)
    empty = good.copy()
    empty[[3, 8]] = False
    with pytest.raises(ValueError, match=r"2 of 40 stars have no good pixel \(first rows: 3, 8\)"):
        Median().fit(flux, empty, values, errors, 0)
    with pytest.raises(ValueError, match="2 of 40 stars have no good pixel"):
        Median().fit(flux, good, values, errors, 0).predict(flux, empty)
    with pytest.raises(ValueError, match="1 good pixels have no finite flux"):
        Median().fit(np.where(np.arange(flux.size).reshape(flux.shape) == 7, np.nan, flux), good, values, errors, 0)
    with pytest.raises(ValueError, match=f"at least {MIN_STARS} stars, got 5"):
        Median().fit(flux[:5], good[:5], values[:5], errors[:5], 0)
    with pytest.raises(ValueError, match="default_error"):
        Ridge().fit(flux, good, values, np.zeros(40), 0)
    with pytest.raises(ValueError, match="default_error"):
        Ridge().fit(flux, good, np.where(values == values[0], np.nan, values), errors, 0)
    with pytest.raises(ValueError, match=r"shape \(40, 3\) \(teff, logg, the label of each star\)"):
        Cannon().fit(flux, good, values, errors, 0)
    with pytest.raises(ValueError, match="must both be"):
        Median().fit(flux, good[:, :-1], values, errors, 0)


def test_paper_network_has_the_papers_shape():
    assert MLP.WIDTHS == (2048, 1280, 1024)
    assert set(BASELINES) == {"mlp_scratch", "cannon", "ridge", "median"}
