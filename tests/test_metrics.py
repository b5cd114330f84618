"""Figures of merit: known truths, missing values, and the `evaluate` face."""

import math

import numpy as np
import pytest

from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import (
    BIN_EDGES,
    HALF_WIDTHS,
    NOMINAL_COVERAGE,
    auroc,
    binomial_interval,
    bootstrap_rmse,
    gaussian_crps,
    reliability,
    risk_coverage,
    stellar_label_metric,
    summarise,
    summarise_bins,
    summarise_calibration,
    summarise_intervals,
    summarise_subsets,
)

FE_H = get_label("fe_h")


@pytest.fixture
def stars():
    """20,000 stars whose residuals are Gaussian with exactly the sigma and error that are claimed; shift +0.05 dex."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-2.5, 0.5, 20_000)
    sigma, error = rng.uniform(0.05, 0.3, truth.size), rng.uniform(0.02, 0.2, truth.size)
    predicted = truth + np.hypot(sigma, error) * rng.normal(size=truth.size)
    return {"predicted": predicted, "truth": truth, "sigma": sigma, "truth_err": error}


def test_honest_sigma_gives_nominal_coverage(stars):
    figures = summarise(FE_H, **stars)
    for name, probability in NOMINAL_COVERAGE.items():
        binomial_error = math.sqrt(probability * (1 - probability) / figures["n"])
        assert abs(figures[name] - probability) < 4 * binomial_error


def test_hand_computed_figures():
    figures = summarise(
        FE_H, np.array([0.0, 0.2, 0.1, 1.0]), np.zeros(4), sigma=np.full(4, 0.1), truth_err=np.full(4, 0.1)
    )
    assert figures["n"] == 4
    assert figures["rmse"] == pytest.approx(math.sqrt((0.04 + 0.01 + 1.0) / 4))
    assert figures["bias"] == pytest.approx(0.15)
    assert figures["scatter"] == pytest.approx(1.4826 * 0.1)  # distances from 0.15: 0.15, 0.05, 0.05, 0.85
    assert (figures["coverage68"], figures["coverage95"]) == (0.5, 0.75)  # within 0.141 and 0.277


def test_figures_scale_with_the_unit_and_coverage_does_not(stars):
    one = summarise(FE_H, **stars)
    thousand = summarise(FE_H, **{name: 1000 * values for name, values in stars.items()})
    for name in ("rmse", "bias", "scatter"):
        assert thousand[name] == pytest.approx(1000 * one[name])
    assert thousand["coverage68"] == one["coverage68"]


def test_a_shift_moves_the_bias_and_not_the_scatter(stars):
    plain, shifted = summarise(FE_H, **stars), summarise(FE_H, **(stars | {"predicted": stars["predicted"] + 0.3}))
    assert shifted["bias"] == pytest.approx(plain["bias"] + 0.3)
    assert shifted["scatter"] == pytest.approx(plain["scatter"])


def test_stars_without_truth_are_left_out_whatever_is_predicted(stars):
    few = {name: values[:100] for name, values in stars.items()}
    more = {name: np.append(values, np.nan) for name, values in few.items()}
    assert summarise(FE_H, **more) == summarise(FE_H, **few)


@pytest.mark.parametrize("missing", [np.nan, 0.0])
def test_a_missing_error_counts_as_the_default_and_never_as_certainty(stars, missing):
    few = {name: values[:500] for name, values in stars.items()}
    known = summarise(FE_H, **(few | {"truth_err": np.full(500, FE_H.default_error)}))
    assert summarise(FE_H, **(few | {"truth_err": np.full(500, missing)})) == known
    assert summarise(FE_H, **(few | {"truth_err": None})) == known


def test_no_sigma_no_coverage(stars):
    figures = summarise(FE_H, stars["predicted"], stars["truth"])
    assert figures["coverage68"] is None
    assert figures["coverage95"] is None
    assert figures["rmse"] > 0


def test_no_star_no_figures():
    figures = summarise(FE_H, np.array([0.1]), np.array([np.nan]), sigma=np.array([0.1]))
    assert figures == {"n": 0, "rmse": None, "bias": None, "scatter": None, "coverage68": None, "coverage95": None}


@pytest.mark.parametrize("name", ["predicted", "sigma"])
def test_not_finite_is_refused_and_counted(stars, name):
    stars[name] = stars[name].copy()
    stars[name][:7] = np.nan
    with pytest.raises(ValueError, match=f"fe_h: {name} must be finite.*for 7 of 20000 stars"):
        summarise(FE_H, **stars)


def test_negative_sigma_and_wrong_shape_are_refused(stars):
    with pytest.raises(ValueError, match=">= 0"):
        summarise(FE_H, **(stars | {"sigma": -stars["sigma"]}))
    with pytest.raises(ValueError, match="one value per star"):
        summarise(FE_H, **(stars | {"sigma": stars["sigma"][:-1]}))


def test_subsets_split_at_minus_one():
    truth = np.array([-2.0, -1.0, 0.0, 0.0])
    fe_h = np.array([-2.0, -1.0, 0.0, np.nan])
    subsets = summarise_subsets(FE_H, truth + np.array([0.4, 0.1, 0.1, 0.1]), truth, fe_h)
    assert {name: figures["n"] for name, figures in subsets.items()} == {"all": 4, "metal_poor": 1, "metal_rich": 2}
    assert subsets["metal_poor"]["rmse"] == pytest.approx(0.4)
    assert subsets["metal_rich"]["rmse"] == pytest.approx(0.1)


def test_bins_hold_every_star_once(stars):
    rng = np.random.default_rng(3)
    parameters = {
        "fe_h": stars["truth"],
        "teff": rng.uniform(*BIN_EDGES["teff"][:: len(BIN_EDGES["teff"]) - 1], stars["truth"].size),
        "logg": rng.choice([-1.0, 1.5, 4.25, 6.0], stars["truth"].size),  # on edges, both ends too
    }
    bins = summarise_bins(FE_H, parameters=parameters, **stars)
    for name, records in bins.items():
        assert sum(record["n"] for record in records) == stars["truth"].size, name
        assert [record["low"] for record in records] == list(BIN_EDGES[name][:-1])


def test_bins_end_where_the_label_table_ends():
    for name, edges in BIN_EDGES.items():
        assert (edges[0], edges[-1]) == get_label(name).valid


def test_bootstrap_interval_has_the_width_of_theory(stars):
    residual = np.random.default_rng(4).normal(scale=0.2, size=400)
    low, high = bootstrap_rmse(residual, np.zeros(400), seed=0)
    assert low < 0.2 < high
    assert (high - low) / 2 == pytest.approx(0.2 / math.sqrt(2 * 400), rel=0.15)  # standard error of an RMSE
    assert bootstrap_rmse(residual, np.zeros(400), seed=0) == (low, high)
    with pytest.raises(ValueError, match="at least one star"):
        bootstrap_rmse(residual, np.full(400, np.nan), seed=0)


def test_evaluate_face_says_the_same(stars):
    metric = stellar_label_metric("fe_h")
    same = metric.compute(
        predictions=stars["predicted"],
        references=stars["truth"],
        sigma=stars["sigma"],
        references_err=stars["truth_err"],
    )
    assert same == summarise(FE_H, **stars)
    assert metric.compute(predictions=[0.1, 0.2], references=[0.0, 0.0])["coverage68"] is None


# ---------------------------------------------------------------- intervals, scores, abstention


@pytest.mark.parametrize(("residual", "sigma"), [(0.0, 1.0), (0.7, 0.3), (-2.0, 0.5), (30.0, 80.0)])
def test_crps_is_the_integral_that_defines_it(residual, sigma):
    """The squared distance between the predicted distribution function and the step at the truth, integrated."""
    z = np.linspace(-40, 40, 8001) * sigma
    distribution = np.array([0.5 * (1 + math.erf(x / sigma / math.sqrt(2))) for x in z])
    step = z >= -residual  # the prediction lies at 0
    integral = np.trapezoid((distribution - step) ** 2, z)
    assert float(gaussian_crps(np.array(residual), np.array(sigma))) == pytest.approx(integral, rel=2e-2)


def test_crps_of_certainty_is_the_absolute_error_and_honesty_scores_best():
    residual = np.random.default_rng(0).normal(scale=0.2, size=20_000)
    np.testing.assert_allclose(gaussian_crps(residual, np.full(residual.shape, 1e-9)), np.abs(residual), atol=1e-8)
    mean = {sigma: gaussian_crps(residual, np.full(residual.shape, sigma)).mean() for sigma in (0.1, 0.2, 0.4)}
    assert mean[0.2] == pytest.approx(0.2 / math.sqrt(math.pi), rel=0.02)
    assert mean[0.2] < min(mean[0.1], mean[0.4])


def test_intervals_say_what_summarise_says_and_more(stars):
    figures, intervals = summarise(FE_H, **stars), summarise_intervals(FE_H, sigma95=stars["sigma"], **stars)
    for interval, probability in NOMINAL_COVERAGE.items():
        assert intervals[interval] == pytest.approx(figures[interval])
        low, high = intervals[f"{interval}_interval"]
        assert low < intervals[interval] < high
        assert (high - low) / 2 == pytest.approx(math.sqrt(probability * (1 - probability) / figures["n"]), rel=0.02)
        width = 2 * HALF_WIDTHS[interval] * stars["sigma"].mean()
        assert intervals[interval.replace("coverage", "width")] == pytest.approx(width)
    doubled = summarise_intervals(FE_H, sigma95=2 * stars["sigma"], **stars)
    assert doubled["coverage68"] == intervals["coverage68"]
    assert doubled["coverage95"] > intervals["coverage95"]


def test_no_star_no_intervals():
    nothing = summarise_intervals(FE_H, np.zeros(2), np.full(2, np.nan), np.ones(2), np.ones(2))
    assert nothing.pop("n") == 0
    assert set(nothing.values()) == {None}


def test_a_binomial_interval_stays_in_bounds_and_holds_what_it_says():
    assert binomial_interval(0, 10)[0] == 0.0
    assert binomial_interval(10, 10) == pytest.approx((10 / 11, 1.0), abs=1e-3)  # Wilson: n / (n + z^2)
    counts = np.random.default_rng(0).binomial(40, 0.68, 4000)
    inside = [low <= 0.68 <= high for low, high in (binomial_interval(int(k), 40) for k in counts)]
    assert np.mean(inside) == pytest.approx(0.68, abs=0.06)


def test_reliability_of_the_honest_is_the_diagonal(stars):
    probability = np.linspace(0.05, 0.99, 20)
    residual, sigma = stars["predicted"] - stars["truth"], stars["sigma"]
    share = reliability(residual, sigma, sigma, probability, stars["truth_err"])
    np.testing.assert_allclose(share, probability, atol=4 * 0.5 / math.sqrt(residual.size))
    wide = reliability(residual, sigma, 3 * sigma, probability, stars["truth_err"])
    narrow = probability < NOMINAL_COVERAGE["coverage68"]
    np.testing.assert_array_equal(wide[narrow], share[narrow])
    assert (wide[~narrow] > share[~narrow]).all()


def test_the_worst_bin_is_found(stars):
    """Sigma is halved for the metal-poor: half a sigma holds 38 % of a Gaussian."""
    few = {name: values[:6000] for name, values in stars.items()}
    names, truth = ["fe_h"], few["truth"][:, None]
    exact = np.full(truth.shape, 1e-9)
    sigma = np.hypot(few["sigma"], few["truth_err"])[:, None]
    honest = summarise_calibration(names, few["predicted"][:, None], truth, sigma, sigma, exact)
    assert honest["coverage68"] == pytest.approx(0.6827, abs=0.02)
    assert honest["worst_bin68"] == pytest.approx(0.6827, abs=0.06)
    wrong = np.where((truth >= -2.0) & (truth < -1.5), 0.5, 1.0) * sigma
    found = summarise_calibration(names, few["predicted"][:, None], truth, wrong, sigma, exact)
    assert (found["worst_bin"]["by"], found["worst_bin"]["low"], found["worst_bin"]["high"]) == ("fe_h", -2.0, -1.5)
    assert found["worst_bin68"] == pytest.approx(0.383, abs=0.05)
    assert found["coverage95"] == honest["coverage95"]


def test_bins_of_noise_are_seen_only_if_they_are_told(stars):
    few = {name: values[:4000] for name, values in stars.items()}
    truth, exact = few["truth"][:, None], np.full((4000, 1), 1e-9)
    sigma, snr = np.hypot(few["sigma"], few["truth_err"])[:, None], np.repeat([30.0, 100.0], 2000)
    wrong = np.where(snr[:, None] < 40, 0.5, 2.0) * sigma
    told = summarise_calibration(["fe_h"], few["predicted"][:, None], truth, wrong, wrong, exact, snr)
    assert told["worst_bin"]["by"] == "snr"
    few_stars = summarise_calibration(["fe_h"], *(part[:100] for part in (truth, truth, wrong, wrong, exact)))
    assert few_stars["worst_bin68"] is None  # no bin has enough


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 60).astype(float), rng.integers(3, 12, 50).astype(float)
    pairs = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
    assert auroc(inside, outside) == pytest.approx(pairs)
    assert auroc(inside, np.full(5, np.inf)) == 1.0
    assert auroc(inside, inside) == pytest.approx(0.5)
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside))


@pytest.mark.parametrize(("inside", "outside"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_auroc_needs_scores(inside, outside):
    with pytest.raises(ValueError, match="scores of both kinds, none of them NaN"):
        auroc(np.array(inside), np.array(outside))


def test_risk_falls_if_the_score_knows_and_not_if_it_does_not():
    rng = np.random.default_rng(0)
    sigma = 10 ** rng.uniform(-2, 0, 5000)
    residual = sigma * rng.normal(size=sigma.size)
    answered, risk, area = risk_coverage(residual, sigma)
    assert answered[-1] == 1
    assert risk[-1] == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert risk[500] < 0.1 * risk[-1]
    *_, best = risk_coverage(residual, np.abs(residual))
    *_, blind = risk_coverage(residual, rng.random(sigma.size))
    assert best < area < 0.5 * blind
    with pytest.raises(ValueError, match="at least one star"):
        risk_coverage(np.array([np.nan]), np.zeros(1))
