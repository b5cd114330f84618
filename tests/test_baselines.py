"""Baselines on a family of fake stars whose lines are known functions of Teff, log g and [Fe/H]."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import Ridge as PlainRidge

from spectrafm_hf.baselines import (
    BASELINES,
    MLP,
    BoostedTrees,
    Cannon,
    CannonModel,
    Median,
    MLPPretraining,
    PretrainedMLP,
    Ridge,
    _folds,
)
from spectrafm_hf.metrics import METHOD_NAMES

N_PIXELS = 120
ERRORS = np.array([100.0, 0.2, 0.02])
WIDTHS = (64, 32, 16)
SYNTHETIC_OFFSET = 0.3
"""Synthetic minus catalogue [Fe/H], dex."""


class SmallMLP(MLP):
    """The same training with a network that fits in a test."""

    WIDTHS = WIDTHS
    WAYS = tuple(replace(way, learning_rate=3e-3) for way in MLP.WAYS)


class FewTrees(BoostedTrees):
    MAX_TREES = 100
    SHRINKAGE = 0.1


class SmallPretrainedMLP(PretrainedMLP):
    WAYS = tuple(replace(way, learning_rate=1e-3) for way in PretrainedMLP.WAYS)

    def __init__(self, pretraining=None):
        super().__init__(pretraining or pretrained())


SMALL = BASELINES | {"mlp_scratch": SmallMLP, "boosted_trees": FewTrees, "mlp_pretrained": SmallPretrainedMLP}


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


def draw_synthetic(rows):
    """Fake stars of every metallicity, whose labels are on another scale than the catalogue's."""
    labels, flux = fake_stars(len(rows), seed=1000 + rows.start, noise=0.01, fe_h_range=(-2.5, 0.5))
    return flux, np.ones(flux.shape, dtype=bool), labels[:, 2] + SYNTHETIC_OFFSET


@cache
def pretrained():
    return MLPPretraining.run(draw_synthetic, n_spectra=20_000, widths=WIDTHS)


def fitted(name, labels, flux, seed=0):
    baseline = SMALL[name]()
    values, errors = (labels, np.tile(ERRORS, (len(labels), 1))) if baseline.also_needs else (labels[:, 2], None)
    errors = np.full(len(labels), ERRORS[2]) if errors is None else errors
    return baseline.fit(flux, np.ones(flux.shape, dtype=bool), values, errors, seed)


def predicted(baseline, flux):
    return baseline.predict(flux, np.ones(flux.shape, dtype=bool))


@cache
def of_forty(name):
    """A method that learned from 40 stars with seed 3, their labels and flux; for tests that change none of them."""
    labels, flux = fake_stars(40, seed=10)
    return fitted(name, labels, flux, seed=3), labels, flux


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("ridge", 0.02), ("cannon", 0.02), ("mlp_scratch", 0.08), ("boosted_trees", 0.08), ("mlp_pretrained", 0.08)],
)
def test_known_line_is_read(name, tolerance):
    labels, flux = fake_stars(100, seed=0)
    new_labels, new_flux = fake_stars(60, seed=1)
    mean, sigma = predicted(fitted(name, labels, flux), new_flux)
    assert np.sqrt(np.mean((mean - new_labels[:, 2]) ** 2)) < tolerance
    assert mean.shape == sigma.shape == (60,)
    assert (sigma > 0).all()
    assert np.isfinite(sigma).all()


@pytest.mark.parametrize("name", ["ridge", "cannon", "mlp_scratch", "boosted_trees", "mlp_pretrained"])
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
    baseline, _, flux = of_forty(name)
    together = predicted(baseline, flux[:5])
    for star in range(5):
        alone = predicted(baseline, flux[star : star + 1])
        np.testing.assert_allclose(np.ravel(alone), [values[star] for values in together], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_answer_and_global_random_state_untouched(name):
    baseline, labels, flux = of_forty(name)  # from another global state
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what must not move
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = predicted(fitted(name, labels, flux, seed=3), flux)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    np.testing.assert_array_equal(predicted(baseline, flux), again)


def test_another_seed_is_another_network():
    baseline, labels, flux = of_forty("mlp_scratch")
    other = fitted("mlp_scratch", labels, flux, seed=4)
    assert not np.array_equal(predicted(baseline, flux)[0], predicted(other, flux)[0])


@pytest.mark.parametrize("name", SMALL)
def test_order_of_training_stars_does_not_matter(name):
    straight, labels, flux = of_forty(name)
    order = np.random.default_rng(0).permutation(40)
    shuffled = fitted(name, labels[order], flux[order], seed=3)
    np.testing.assert_array_equal(predicted(straight, flux), predicted(shuffled, flux))


@pytest.mark.parametrize("name", SMALL)
def test_bad_pixels_are_set_to_the_continuum(name):
    baseline, _, flux = of_forty(name)
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
    with pytest.raises(ValueError, match=r"at least 4 stars \(cross-validation needs two folds of two\), got 3"):
        Median().fit(flux[:3], good[:3], values[:3], errors[:3], 0)
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
    assert set(BASELINES) == {"mlp_scratch", "cannon", "boosted_trees", "ridge", "median"}
    assert set(SMALL) <= set(METHOD_NAMES)


# ---------------------------------------------------------------- few stars


@pytest.mark.parametrize("name", [name for name in SMALL if name != "cannon"])
@pytest.mark.parametrize("n_stars", [4, 10])
def test_few_stars_are_enough(name, n_stars):
    labels, flux = fake_stars(n_stars, seed=15)
    new_labels, new_flux = fake_stars(60, seed=16)
    mean, sigma = predicted(fitted(name, labels, flux), new_flux)
    assert np.isfinite(mean).all()
    assert (sigma > 0).all()
    if n_stars == 10 and name != "median":  # one line alone tells [Fe/H], so that ten stars beat no spectrum at all
        nothing_known, _ = predicted(fitted("median", labels, flux), new_flux)
        assert np.std(mean - new_labels[:, 2]) < 0.8 * np.std(nothing_known - new_labels[:, 2])


def test_cannon_says_why_it_needs_more():
    labels, flux = fake_stars(19, seed=17)
    with pytest.raises(ValueError, match=r"at least 20 stars \(it has ten coefficients per pixel.*got 19"):
        fitted("cannon", labels, flux)


@pytest.mark.parametrize(("n_stars", "n_folds"), [(4, 2), (5, 2), (7, 3), (10, 5), (100, 5)])
def test_each_star_is_left_out_once_and_with_another(n_stars, n_folds):
    folds = _folds(n_stars, seed=0)
    assert len(folds) == n_folds
    assert sorted(np.concatenate([left_out for left_out, _ in folds])) == list(range(n_stars))
    assert all(left_out.size >= 2 and not set(left_out) & set(kept) for left_out, kept in folds)


@pytest.mark.parametrize("name", ["ridge", "boosted_trees", "mlp_scratch", "mlp_pretrained"])
def test_nothing_is_learned_where_there_is_nothing_to_learn(name):
    """Labels dealt out at random: sigma is their spread. Judged by stars they know, methods would think far better."""
    labels, flux = fake_stars(60, seed=18)
    labels[:, 2] = np.random.default_rng(18).permutation(labels[:, 2])
    _, sigma = predicted(fitted(name, labels, flux), flux)
    assert 0.9 < np.sqrt(np.mean(sigma**2)) / labels[:, 2].std() < 1.5


# ---------------------------------------------------------------- boosted trees


def test_trees_do_not_extrapolate():
    labels, flux = fake_stars(100, seed=19)
    _, poor_flux = fake_stars(40, seed=20, fe_h_range=(-2.5, -1.5))
    mean, _ = predicted(fitted("boosted_trees", labels, flux), poor_flux)
    assert mean.min() > labels[:, 2].min() - 0.1
    assert np.median(mean) < np.quantile(labels[:, 2], 0.25)


def test_depth_is_chosen_where_it_is_needed():
    """Which of two pixels is high: stumps add up one pixel at a time, and cannot tell whether both go together."""

    class Stumps(FewTrees):
        DEPTHS = (1,)

    rng = np.random.default_rng(21)
    flux = 1 + 0.1 * rng.normal(size=(200, 4))
    exclusive_or = ((flux[:, 0] > 1) ^ (flux[:, 1] > 1)).astype(float)
    told = flux, np.ones(flux.shape, dtype=bool), exclusive_or, np.full(200, 0.02)
    trees, stumps = FewTrees().fit(*told, 0), Stumps().fit(*told, 0)
    assert trees.depth > 1
    assert predicted(trees, flux)[1][0] < 0.6 * exclusive_or.std()
    assert predicted(stumps, flux)[1][0] > 0.9 * exclusive_or.std()


# ---------------------------------------------------------------- the pre-trained MLP


@pytest.mark.parametrize(("n_stars", "largest_bias"), [(10, 0.2), (30, 0.15), (100, 0.5)])
def test_pre_training_knows_metal_poor_stars(n_stars, largest_bias):
    """Metal-rich ones alone teach the offset between the two label scales; from scratch, poor stars look rich.

    The more of them, the farther they may pull it towards themselves.
    """
    labels, flux = fake_stars(n_stars, seed=22)
    poor_labels, poor_flux = fake_stars(60, seed=23, fe_h_range=(-2.4, -1.6))
    mean, _ = predicted(fitted("mlp_pretrained", labels, flux), poor_flux)
    from_scratch, _ = predicted(fitted("mlp_scratch", labels, flux), poor_flux)
    assert abs(np.mean(mean - poor_labels[:, 2])) < largest_bias
    assert np.sqrt(np.mean((mean - poor_labels[:, 2]) ** 2)) < np.sqrt(np.mean((from_scratch - poor_labels[:, 2]) ** 2))


def test_a_constant_is_the_least_it_learns():
    labels, flux = fake_stars(12, seed=24)
    new_flux = fake_stars(50, seed=25, fe_h_range=(-2.4, 0.4))[1]
    method = SmallPretrainedMLP()
    untrained = method._begin(method.WAYS[0], flux, labels[:, 2], np.full(12, 0.02), seed=0)
    shift = untrained.predict(new_flux)[0] - asked(pretrained(), new_flux)
    np.testing.assert_allclose(shift, shift.mean(), atol=1e-5)
    assert untrained.predict(flux)[0].mean() == pytest.approx(labels[:, 2].mean(), abs=1e-5)
    assert shift.mean() == pytest.approx(-SYNTHETIC_OFFSET, abs=0.05)


def test_choices_are_in_order_of_their_distance_from_the_pre_trained_network():
    """None better than another: the pre-trained network stays as it is."""
    only_last_layer, all_layers = PretrainedMLP.WAYS
    assert only_last_layer.only_last_layer
    assert not all_layers.only_last_layer
    assert only_last_layer.epochs[0] == 0
    n_choices = len(only_last_layer.epochs) + len(all_layers.epochs)
    squared = np.random.default_rng(0).chisquare(1, 20) * np.ones((n_choices, 1))
    assert SmallPretrainedMLP()._choose(squared) == 0
    squared[-1] *= 0.01  # all layers, most epochs: far better
    assert SmallPretrainedMLP()._choose(squared) == n_choices - 1


@pytest.mark.parametrize("way", PretrainedMLP.WAYS)
def test_only_what_may_move_moves(way):
    labels, flux = fake_stars(20, seed=26)
    network = SmallPretrainedMLP()._begin(way, flux, labels[:, 2], np.full(20, 0.02), seed=0)
    network.train(12)
    moved = {
        name
        for name, tensor in network._averaged.module.state_dict().items()
        if not torch.equal(tensor, pretrained().weights[name])
    }
    names = set(pretrained().weights)
    assert moved == ({name for name in names if name.startswith("9.")} if way.only_last_layer else names)


def test_pre_training_is_shared_and_stays_what_it_is(tmp_path):
    before = {name: tensor.clone() for name, tensor in pretrained().weights.items()}
    labels, flux = fake_stars(20, seed=27)
    first = predicted(fitted("mlp_pretrained", labels, flux), flux)
    assert all(torch.equal(before[name], tensor) for name, tensor in pretrained().weights.items())
    pretrained().save(tmp_path / "pretraining.safetensors")
    again = SmallPretrainedMLP(MLPPretraining.load(tmp_path / "pretraining.safetensors"))
    again.fit(flux, np.ones(flux.shape, dtype=bool), labels[:, 2], np.full(20, ERRORS[2]), 0)
    np.testing.assert_array_equal(predicted(again, flux), first)
    assert [path.name for path in tmp_path.iterdir()] == ["pretraining.safetensors"]


def test_pre_training_sees_each_row_once_and_depends_on_its_seed_alone():
    rows = []

    def draw(some):
        rows.extend(some)
        return draw_synthetic(some)

    first = MLPPretraining.run(draw, n_spectra=3000, seed=1, widths=WIDTHS)
    assert rows == list(range(3000))
    torch.manual_seed(9)
    before = torch.get_rng_state()
    same, other = (MLPPretraining.run(draw_synthetic, 3000, seed, WIDTHS) for seed in (1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, same.weights[name]) for name, tensor in first.weights.items())
    assert not torch.equal(first.weights["0.weight"], other.weights["0.weight"])


def test_pre_training_reads_unseen_synthetic_spectra():
    flux, _, values = draw_synthetic(range(50_000, 50_500))
    assert np.sqrt(np.mean((asked(pretrained(), flux) - values) ** 2)) < 0.1


def test_pre_training_that_does_not_fit_is_refused(tmp_path):
    labels, flux = fake_stars(20, seed=28)
    with pytest.raises(ValueError, match="pre-trained on spectra of 120 pixels, got 119"):
        fitted("mlp_pretrained", labels, flux[:, 1:])
    with pytest.raises(ValueError, match="at least 2048 synthetic spectra, got 100"):
        MLPPretraining.run(draw_synthetic, n_spectra=100)

    def without_a_label(rows):
        drawn, good, values = draw_synthetic(rows)
        return drawn, good, np.where(np.arange(len(values)) == 3, np.nan, values)

    with pytest.raises(
        ValueError, match=r"one finite label for each of 2048 synthetic spectra.* 1 that are not finite"
    ):
        MLPPretraining.run(without_a_label, n_spectra=2048)
    with pytest.raises(FileNotFoundError):
        MLPPretraining.load(tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("no safetensors")
    save_file({"scaling.centre": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("text", "other"):
        with pytest.raises(ValueError, match=r"not written by MLPPretraining\.save"):
            MLPPretraining.load(tmp_path / f"{name}.safetensors")


def asked(pretraining, flux):
    """What the pre-trained network itself says."""
    layers, _ = pretraining.layers(dropout=0.0, seed=0)
    with torch.no_grad():
        answer = layers.eval()(pretraining.scaling.pixels(flux))[:, 0].double().numpy()
    return pretraining.scaling.centre + pretraining.scaling.scale * answer
