"""Learning from few stars: what is drawn, what is solved, and what is left alone."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from spectrafm_hf.few_shot import STRENGTHS, draw_stars, solve_readout

# ---------------------------------------------------------------- the draw


def names(stars):
    return [star.star_id for star in stars]


def test_draw_depends_on_names_and_seed_only(fake_library):
    stars = fake_library.split("train")
    drawn = draw_stars(stars, 100, -1.0, seed=3)
    assert names(drawn) == names(draw_stars(stars[::-1], 100, -1.0, seed=3))
    assert len(set(names(drawn))) == 100
    assert all(star.labels["fe_h"] > -1 for star in drawn)
    assert names(drawn) != names(draw_stars(stars, 100, -1.0, seed=4))


def test_all_may_be_drawn(fake_library):
    stars = [star for star in fake_library.split("train") if star.labels["fe_h"] > -1]
    assert sorted(names(draw_stars(stars, len(stars), -1.0, seed=0))) == sorted(names(stars))


def test_too_few_stars_are_refused_in_one_sentence(fake_library):
    stars = fake_library.split("train")[:50]
    rich = sum(star.labels["fe_h"] > -1 for star in stars)
    with pytest.raises(ValueError, match=rf"needs 100 stars with \[Fe/H\] > -1 dex, got {rich} of 50; lower n_stars"):
        draw_stars(stars, 100, -1.0, seed=0)


def test_stars_without_metallicity_are_not_drawn(fake_library):
    stars = [replace(star, labels={**star.labels, "fe_h": np.nan}) for star in fake_library.split("train")]
    stars[:3] = [replace(star, labels={}) for star in stars[:3]]
    with pytest.raises(ValueError, match="got 0 of"):
        draw_stars(stars, 1, -1.0, seed=0)


# ---------------------------------------------------------------- the readout

N_FEATURES = 6


def features(n, seed, shift=0.0):
    """Label features of stars; `shift` moves them along the first axis, as metallicity would."""
    x = np.random.default_rng(seed).normal(size=(n, N_FEATURES))
    x[:, 0] += shift
    return x


ANCHORS = features(600, 1)
FEW = features(100, 2, shift=1.5)


def corrected(correction, x):
    return correction.bias + x @ correction.weight


def test_constant_shift_is_recovered_exactly():
    correction = solve_readout(FEW, np.full(100, 0.37), ANCHORS)
    np.testing.assert_allclose(correction.weight, 0.0, atol=1e-10)
    assert correction.bias == pytest.approx(0.37, abs=1e-10)
    np.testing.assert_allclose(corrected(correction, ANCHORS), 0.37, atol=1e-9)


def test_noise_alone_changes_hardly_anything():
    residual = 0.1 * np.random.default_rng(5).normal(size=100)
    correction = solve_readout(FEW, residual, ANCHORS)
    assert correction.strength >= 3.0
    assert corrected(correction, ANCHORS).std() < 0.02


def test_strong_relation_is_learned():
    truth = np.array([0.5, -0.3, 0.0, 0.0, 0.2, 0.0])
    residual = 0.2 + FEW @ truth + 0.02 * np.random.default_rng(5).normal(size=100)
    correction = solve_readout(FEW, residual, ANCHORS)
    assert correction.strength == STRENGTHS[0]
    np.testing.assert_allclose(correction.weight, truth, atol=0.06)
    fresh = features(200, 9, shift=-1.5)  # metal-poor stars nobody labelled
    assert np.abs(corrected(correction, fresh) - 0.2 - fresh @ truth).max() < 0.35


def test_the_stronger_the_penalty_the_stiller_the_anchors():
    residual = FEW @ np.array([0.5, -0.3, 0.0, 0.0, 0.2, 0.0])
    moved = [np.std(corrected(solve_readout(FEW, residual, ANCHORS, [s]), ANCHORS)) for s in (0.01, 1.0, 100.0, 1e6)]
    assert all(a > 2 * b for a, b in pairwise(moved))
    assert moved[-1] < 1e-5
    stiff = solve_readout(FEW, residual, ANCHORS, [1e6])
    assert corrected(stiff, FEW).mean() == pytest.approx(residual.mean(), abs=1e-4)


def test_stars_far_away_are_not_harmed():
    """Metal-rich residuals bend; the correction of metal-poor anchors stays small, an unpenalised fit's would not."""
    rich, poor = features(100, 3, shift=1.0), features(300, 4, shift=-3.0)
    rng = np.random.default_rng(6)
    residual = 0.15 * rng.normal(size=100) + 0.1
    anchors = np.concatenate([ANCHORS, poor])
    held = solve_readout(rich, residual, anchors)
    free = solve_readout(rich, residual, anchors, [1e-6])
    harm = [np.sqrt(np.mean((corrected(c, poor) - 0.1) ** 2)) for c in (held, free)]
    assert harm[0] < 0.03
    assert harm[0] < 0.5 * harm[1]


def brute_force_solution(x, y, strength, n):
    """The penalised least squares of the docstring, without any algebra: as rows of a design matrix."""
    anchors = ANCHORS - ANCHORS.mean(axis=0)
    m = len(anchors)
    rows = [
        np.column_stack([x, np.ones(len(x))]),
        np.sqrt(strength * n / m) * np.column_stack([anchors, np.zeros(m)]),
        np.sqrt(strength * n / 33) * np.column_stack([np.eye(N_FEATURES), np.zeros(N_FEATURES)]),
    ]
    wanted = np.concatenate([y, np.zeros(m + N_FEATURES)])
    return np.linalg.lstsq(np.concatenate(rows), wanted, rcond=None)[0]


def test_solution_is_that_of_the_formula():
    residual = FEW @ np.array([0.5, -0.3, 0.0, 0.0, 0.2, 0.0]) + 0.1 * np.random.default_rng(5).normal(size=100)
    correction = solve_readout(FEW, residual, ANCHORS, [0.3])
    expected = brute_force_solution(FEW, residual, 0.3, n=100)
    np.testing.assert_allclose([*correction.weight, correction.bias], expected, atol=1e-8)


@pytest.mark.parametrize("strength", [0.03, 3.0])
def test_leave_one_out_is_what_refitting_without_each_star_gives(strength):
    x = FEW[:25]
    residual = x @ np.array([0.5, -0.3, 0.0, 0.0, 0.2, 0.0]) + 0.1 * np.random.default_rng(5).normal(size=25)
    errors = []
    for left_out in range(25):
        kept = np.arange(25) != left_out
        solution = brute_force_solution(x[kept], residual[kept], strength, n=25)  # the penalty is that of all 25
        errors.append(residual[left_out] - [*x[left_out], 1.0] @ solution)
    found = solve_readout(x, residual, ANCHORS, [strength]).leave_one_out[strength]
    assert found == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-8)


def test_of_equally_good_penalties_the_strongest_is_taken():
    """The one-standard-error rule, with the errors of each star computed by brute force."""
    residual = 0.05 * FEW[:, 1] + 0.3 * np.random.default_rng(8).normal(size=100)
    correction = solve_readout(FEW, residual, ANCHORS)
    squares = {}
    for strength in STRENGTHS:
        left_out = []
        for i in range(100):
            kept = np.arange(100) != i
            solution = brute_force_solution(FEW[kept], residual[kept], strength, n=100)
            left_out.append((residual[i] - [*FEW[i], 1.0] @ solution) ** 2)
        squares[strength] = np.array(left_out)
    best = min(squares, key=lambda s: squares[s].mean())
    limit = squares[best].mean() + squares[best].std() / 10
    expected = max(s for s in STRENGTHS if squares[s].mean() <= limit)
    assert correction.strength == expected
    assert set(correction.leave_one_out) == set(STRENGTHS)
