"""Several contexts of one star: one answer, and the published way of making it."""

import numpy as np
import pytest
import torch
from conftest import tiny_extractor, tiny_model
from test_paper_oracle import LABEL_TOKENS, LABELS, N_ROWS, pair

from spectrafm_hf import SpectraFMFeatureExtractor
from spectrafm_hf.prediction import ask, combine_contexts, predict_in_contexts, predict_on_grid, rows_on_grid


def simulated(share, n_contexts=15, n_stars=4000, seed=0):
    """Answers for stars whose true label is 0: a `share` of each error's variance is common to a star's contexts."""
    rng = np.random.default_rng(seed)
    variance = 0.04 * np.exp(0.5 * rng.standard_normal((n_contexts, 1)))
    own = np.sqrt((1 - share) * variance) * rng.standard_normal((n_contexts, n_stars))
    common = np.sqrt(share * n_contexts / (1 / variance).sum()) * rng.standard_normal(n_stars)
    return common + own, np.broadcast_to(np.log(variance), own.shape)


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_combined_variance_is_that_of_the_combined_error(share):
    mean, log_var = combine_contexts(*simulated(share))
    assert np.exp(log_var).mean() == pytest.approx(mean.var(), rel=0.12)


def test_contexts_with_errors_all_their_own_are_trusted_less_than_they_deserve_never_more():
    """From 15 contexts of one star it cannot be told for certain that nothing is common to them."""
    mean, log_var = combine_contexts(*simulated(0.0))
    assert 1.0 < np.sqrt(np.exp(log_var).mean() / mean.var()) < 2.0


def test_published_rule_has_the_wrong_spread_whenever_errors_are_not_common():
    mean, log_var = combine_contexts(*simulated(0.0), as_published=True)
    assert np.exp(log_var).mean() > 10 * mean.var()


def test_contexts_that_agree_are_worth_one():
    mean, log_var = combine_contexts(np.full((15, 1), 0.3), np.full((15, 1), np.log(0.04)))
    assert mean == pytest.approx(0.3)
    assert np.exp(log_var) == pytest.approx(0.04)


def test_contexts_that_scatter_by_their_variance_or_more_are_worth_their_number():
    scattered = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    mean, log_var = combine_contexts(scattered, np.zeros((4, 1)))
    assert mean == pytest.approx(0.0)
    assert np.exp(log_var) == pytest.approx(1 / 4)


def test_a_context_that_knows_nothing_says_nothing():
    mean, _ = combine_contexts(np.array([[0.5], [-9.0]]), np.array([[np.log(0.01)], [np.log(1e6)]]))
    assert mean == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("as_published", [False, True])
def test_one_context_stays_what_it_is(as_published):
    mean, log_var = combine_contexts(np.array([[0.4, -1.0]]), np.array([[-2.0, 0.5]]), as_published)
    np.testing.assert_allclose(mean, [0.4, -1.0])
    np.testing.assert_allclose(log_var, [-2.0, 0.5])


def test_order_of_contexts_does_not_matter():
    mean, log_var = simulated(0.5, n_stars=3)
    order = np.random.default_rng(1).permutation(15)
    for one, other in zip(combine_contexts(mean, log_var), combine_contexts(mean[order], log_var[order]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_extreme_variances_stay_finite():
    mean, log_var = combine_contexts(np.array([[0.1], [0.2]]), np.array([[-800.0], [800.0]]))
    assert mean == pytest.approx(0.1)
    assert np.isfinite(log_var).all()


# ---------------------------------------------------------------- noise


def noise_alone():
    """Attributes of a `Recalibration` that hears of the noise alone: ln factor = ln(noise / 0.01) / 10."""
    small, hidden = 1e-4, np.zeros((8, 1))  # so small that tanh is the identity
    hidden[6] = small
    part = {"hidden_weight": hidden, "hidden_bias": [0.0], "output_bias": [0.0] * 3}
    part |= {
        "output_weight": [[0.0, 0.1 / small, 0.1 / small]],
        "center": [0.0] * 6 + [np.log(0.01)],
        "scale": [1.0] * 7,
    }
    return {"label_names": ["fe_h"], **{name: np.asarray(values).tolist() for name, values in part.items()}}


@pytest.mark.parametrize("noise", [0.003, 0.05])
def test_sigma_follows_the_noise_that_the_pixels_show(noise):
    plain, told = (tiny_extractor(recalibration=recalibration) for recalibration in (None, noise_alone()))
    flux = 1 + noise * np.random.default_rng(0).standard_normal((20, plain.wavelength_grid.size))
    own, found = (predict_on_grid(tiny_model(), one, flux, np.ones(flux.shape, dtype=bool)) for one in (plain, told))
    np.testing.assert_allclose((found.sigma / own.sigma)[:, 2], (noise / 0.01) ** 0.1, rtol=0.04)
    np.testing.assert_array_equal(found.sigma[:, :2], own.sigma[:, :2])


def test_answers_are_chosen_together(extractor, model):
    flux = 1 + 0.02 * np.random.default_rng(0).standard_normal((5, extractor.wavelength_grid.size))
    rows = rows_on_grid(extractor, flux, np.ones(flux.shape, dtype=bool))
    everyone, few = ask(model, extractor, rows, 2), ask(model, extractor, rows[3:], 2)
    assert everyone.noise == pytest.approx(0.02, rel=0.3)
    for one, other in zip(everyone.chosen(np.array([3, 4])), few, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# ---------------------------------------------------------------- spectra in contexts


def native_extractor(**changes):
    told = {"patch_size": 1, "pixel_width": None, "smoothing_length": None, "wavelength_range": (15_000.0, 17_000.0)}
    return SpectraFMFeatureExtractor(**told | {"flux_range": (0.05, 1.2)} | changes)


def some_pixels(extractor, n_pixels=90, seed=0):
    rng = np.random.default_rng(seed)
    flux = 1 - 0.5 * rng.random(n_pixels) ** 4
    return extractor.place(flux, 15_200 + 0.21 * np.arange(n_pixels), rng.random(n_pixels) < 0.1)


def test_contexts_that_hold_everything_are_the_plain_prediction():
    extractor, model = native_extractor(), tiny_model(patch_size=1)
    pixels = some_pixels(extractor)
    answer = predict_in_contexts(model, extractor, [pixels])
    with torch.no_grad():
        plain = model(**extractor.pad([extractor.tokenise(pixels)], return_tensors="pt"))
    np.testing.assert_allclose(answer.scaled_mean, plain.label_mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(answer.sigma, np.exp(0.5 * plain.label_log_var.numpy()), rtol=1e-5)


def test_scattered_contexts_are_told_the_noise_of_the_whole_spectrum():
    """Single pixels dealt at random have no neighbours, from which a noise could be read."""
    wavelength = 15_200 + 0.21 * np.arange(300)
    flux = 0.8 + 0.03 * np.random.default_rng(0).standard_normal(300)
    plain, told = (native_extractor(recalibration=recalibration) for recalibration in (None, noise_alone()))
    own, found = (
        predict_in_contexts(tiny_model(patch_size=1), one, [one.place(flux, wavelength)], context=20)
        for one in (plain, told)
    )
    np.testing.assert_allclose((found.sigma / own.sigma)[0, 2], (0.03 / 0.01) ** 0.1, rtol=0.03)


def test_a_star_does_not_depend_on_its_companions():
    extractor, model = native_extractor(), tiny_model(patch_size=1)
    stars = [some_pixels(extractor, n, seed=n) for n in (90, 41, 64)]
    together = predict_in_contexts(model, extractor, stars, context=16, batch_size=4)
    for row, star in enumerate(stars):
        alone = predict_in_contexts(model, extractor, [star], context=16)
        np.testing.assert_allclose(together.mean[row], alone.mean[0], atol=1e-5)
        np.testing.assert_allclose(together.sigma[row], alone.sigma[0], rtol=1e-4)


def test_missing_pixels_cost_no_attention_and_their_flux_says_nothing():
    extractor, model = native_extractor(), tiny_model(patch_size=1)
    pixels = some_pixels(extractor)
    kept = pixels.cut(pixels.good)
    answers = [predict_in_contexts(model, extractor, [p], context=16) for p in (pixels, kept)]
    np.testing.assert_allclose(answers[0].mean, answers[1].mean, atol=1e-6)


def test_published_way_needs_pixels_as_tokens():
    extractor = native_extractor(patch_size=16)
    with pytest.raises(ValueError, match="tokens are pixels, got tokens='patch'"):
        predict_in_contexts(tiny_model(), extractor, [some_pixels(extractor)], as_published=True)


def test_published_way_answers_for_a_context_without_a_good_pixel():
    """The last of APOGEE's contexts is short, and may hold missing pixels alone."""
    extractor, (_, model) = native_extractor(label_names=LABELS), pair()
    order = np.random.RandomState(0).permutation(33)
    pixels = some_pixels(extractor, 33)
    bad = np.zeros(33, dtype=bool)
    bad[order[32]] = True
    answer = predict_in_contexts(model, extractor, [pixels.only(~bad)], context=32, as_published=True)
    assert np.isfinite(answer.mean).all()


@pytest.mark.parametrize(("n", "context"), [(0, 16), (1, 0)])
def test_nothing_to_predict_is_refused(n, context):
    extractor = native_extractor()
    with pytest.raises(ValueError, match="at least one spectrum and one token"):
        predict_in_contexts(tiny_model(patch_size=1), extractor, [some_pixels(extractor)] * n, context=context)


def test_published_way_repeats_the_published_faults():
    """Against the oracle, dealt by hand: contexts of 32, missing pixels attended to as zeros, sigmas averaged."""
    oracle, model = pair()
    extractor = native_extractor(label_names=model.config.label_names)
    pixels = some_pixels(extractor)
    answer = predict_in_contexts(model, extractor, [pixels], context=32, as_published=True)

    flux, good = extractor.clean(pixels.flux, pixels.good, pixels.wavelength)
    tokens, wavelength = np.where(good, 1 + np.arange(90) % (N_ROWS - 6), 0), np.where(good, pixels.wavelength, 0.0)
    means, sigmas = [], []
    for chosen in np.split(np.random.RandomState(0).permutation(90), [32, 64]):
        filled = [np.pad(values[chosen], (0, 32 - chosen.size)) for values in (tokens, flux, wavelength)]
        attend = torch.arange(32)[None] < chosen.size
        with torch.no_grad():
            mean, log_var = oracle(*(torch.from_numpy(f)[None] for f in filled), LABEL_TOKENS[None], attend)
        means.append(mean[0].numpy())
        sigmas.append(log_var[0].exp().sqrt().numpy())
    np.testing.assert_allclose(answer.scaled_mean[0], np.mean(means, axis=0), atol=1e-5)
    np.testing.assert_allclose(answer.sigma[0], np.mean(sigmas, axis=0), rtol=1e-4)
    right = predict_in_contexts(model, extractor, [pixels], context=32)
    assert np.abs(right.mean - answer.mean).max() > 1e-3
