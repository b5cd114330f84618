"""Learning from 100 stars without unlearning the rest.

The stars at hand are metal-rich; the model must stay right about metal-poor ones. Anything fitted freely to the
former bends away from the latter, and no cross-validation among the former can see it. So the encoder stays frozen,
and the new linear readout of a label may differ from the pre-trained one only in ways that hold still over synthetic
stars of every metallicity: a constant is free, the rest pays. How much it pays is chosen by leave-one-out inside the
100 stars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .spectra import Spectrum

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def draw_stars(spectra: Sequence[Spectrum], n_stars: int, fe_h_above: float, seed: int) -> list[Spectrum]:
    """Draw the few stars, without replacement, from those with [Fe/H] above a limit (dex).

    The draw depends on the names and the seed only, not on the order of `spectra`.

    Raises:
        ValueError: Fewer stars than wanted pass the limit.
    """
    fe_h = np.array([spectrum.labels.get("fe_h", np.nan) for spectrum in spectra])
    return [spectra[row] for row in draw_rows([s.star_id for s in spectra], fe_h, n_stars, fe_h_above, seed)]


def draw_rows(star_ids: Sequence[str], fe_h: np.ndarray, n_stars: int, fe_h_above: float, seed: int) -> list[int]:
    """Places of the few stars among all, in order of their names; see `draw_stars`.

    Raises:
        ValueError: Fewer stars than wanted pass the limit.
    """
    candidates = sorted((row for row in range(len(star_ids)) if fe_h[row] > fe_h_above), key=lambda row: star_ids[row])
    if len(candidates) < n_stars:
        raise ValueError(
            f"the few-shot stage needs {n_stars} stars with [Fe/H] > {fe_h_above:g} dex, got {len(candidates)} of "
            f"{len(star_ids)}; lower n_stars or fe_h_above in the recipe, or loosen the cuts."
        )
    chosen = np.random.default_rng(seed).choice(len(candidates), n_stars, replace=False)
    return [candidates[i] for i in sorted(chosen)]


def strongest_within_one_error(squared: np.ndarray) -> int:
    """The one-standard-error rule (Breiman et al. 1984): of all penalties as good as the best, the strongest.

    Args:
        squared: Out-of-fold squared residual of each star under each penalty, weakest penalty first, shape
            (n_penalties, n_stars).

    Returns:
        Row of the chosen penalty: the last whose mean is within one standard error of the best mean.
    """
    mean = squared.mean(axis=1)
    best = int(np.argmin(mean))
    return int(np.flatnonzero(mean <= mean[best] + squared[best].std() / np.sqrt(squared.shape[1]))[-1])


@dataclass(frozen=True)
class ReadoutCorrection:
    """What is added to a label's readout: `bias + weight @ features`, scaled units.

    Attributes:
        weight: Shape (d,).
        bias: A number.
        strength: The penalty chosen.
        leave_one_out: strength -> root mean square leave-one-out residual, scaled units.
        left_out: Leave-one-out residual of each star with the penalty chosen, shape (n,), scaled units.
    """

    weight: np.ndarray
    bias: float
    strength: float
    leave_one_out: dict[float, float]
    left_out: np.ndarray


def solve_readout(
    features: np.ndarray, residual: np.ndarray, anchor_features: np.ndarray, strengths: Sequence[float] = STRENGTHS
) -> ReadoutCorrection:
    r"""The correction :math:`c + w \cdot h` that explains residuals of a few stars and is still over many others.

    .. math:: \min_{c, w} \; \sum_{i=1}^{n} (r_i - c - w \cdot h_i)^2
              + s \, \Big[ \tfrac{n}{m} \sum_{j=1}^{m} \big(w \cdot (h_j - \bar h)\big)^2 + \tfrac{n}{33} |w|^2 \Big]

    over labelled stars i and anchors j. It is linear, so leave-one-out residuals are exact: :math:`r_i / (1 - H_{ii})`.
    Of all strengths s within one standard error of the best, the strongest is taken: what the few stars cannot tell
    apart is decided for the pre-trained model.

    Args:
        features: Label features of the labelled stars, shape (n, d).
        residual: Published minus predicted label, shape (n,), scaled units.
        anchor_features: Label features of synthetic stars of every metallicity, shape (m, d).
        strengths: Candidates for s.
    """
    n, center = len(features), anchor_features.mean(axis=0)
    anchors = anchor_features - center
    penalty = np.zeros((features.shape[1] + 1,) * 2)
    penalty[:-1, :-1] = n * (anchors.T @ anchors / len(anchors) + np.eye(features.shape[1]) / 33)
    design = np.column_stack([features - center, np.ones(n)])
    solutions, residuals = {}, {}
    for strength in strengths:
        gram = design.T @ design + strength * penalty
        solutions[strength] = np.linalg.solve(gram, design.T @ residual)
        leverage = np.einsum("ij,ji->i", design, np.linalg.solve(gram, design.T))
        residuals[strength] = (residual - design @ solutions[strength]) / (1 - leverage)
    ascending = sorted(strengths)
    chosen = ascending[strongest_within_one_error(np.array([residuals[s] for s in ascending]) ** 2)]
    weight = solutions[chosen][:-1]
    return ReadoutCorrection(
        weight=weight,
        bias=float(solutions[chosen][-1] - weight @ center),
        strength=float(chosen),
        leave_one_out={float(s): float(np.sqrt((residuals[s] ** 2).mean())) for s in strengths},
        left_out=residuals[chosen],
    )
