"""Figures of merit: known truths, missing values, and the `evaluate` face."""

import math

import numpy as np
import pytest

from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import (
    BIN_EDGES,
    NOMINAL_COVERAGE,
    bootstrap_rmse,
    stellar_label_metric,
    summarise,
    summarise_bins,
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
