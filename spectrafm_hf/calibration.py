"""How much wider or narrower than the network says: factors on sigma, from stars that no training saw.

A factor belongs to one label and one central probability p. It is the f for which the interval

    mean +- z_p sqrt((f sigma)^2 + err^2),      z_p = 1.0000 (68.27 %), 1.9600 (95 %),

holds the fraction p of the calibration stars' published values, whose own errors `err` are counted as known; with the
finite-sample correction of split conformal prediction, ceil((n + 1) p) / n (Vovk et al. 2005; Lei et al. 2018). They
live in preprocessor_config.json (`sigma_factors`), so that everybody who loads the model answers alike.
"""

from __future__ import annotations

import math

import numpy as np

from .labels import get_label
from .metrics import HALF_WIDTHS, NOMINAL_COVERAGE, known_errors

FEWEST_STARS = 30
"""Fewer say nothing of a 95 % interval: the label keeps the factors it has."""

FACTOR_LIMITS = (0.5, 20.0)
"""Where published errors explain all of the scatter, any small factor would do. They are guesses themselves, so that
less than half of what the network says is not believed."""


def sigma_factor(
    residual: np.ndarray, sigma: np.ndarray, error: np.ndarray, probability: float, half_width: float
) -> float:
    """The factor of one label and one interval.

    Args:
        residual: Predicted minus published, shape (n,), unit of the label.
        sigma, error: 1-sigma predicted by the network and published, same shape and unit, positive.
        probability: Of the central interval, 0 to 1.
        half_width: Of that interval in sigma.

    Raises:
        ValueError: Fewer than `FEWEST_STARS` residuals, or one is not finite.
    """
    if residual.size < FEWEST_STARS or not np.isfinite(residual).all():
        raise ValueError(
            f"a calibration needs {FEWEST_STARS} finite residuals or more, got {np.isfinite(residual).sum()} of "
            f"{residual.size}."
        )
    # Each star has its own smallest factor that covers it; the quantile of those is the answer.
    needed = np.sqrt(np.maximum((residual / half_width) ** 2 - error**2, 0.0)) / sigma
    rank = min(math.ceil((residual.size + 1) * probability), residual.size)
    return float(np.clip(np.sort(needed)[rank - 1], *FACTOR_LIMITS))


def sigma_factors(
    label_names: list[str],
    mean: np.ndarray,
    sigma: np.ndarray,
    labels: np.ndarray,
    label_errors: np.ndarray | None = None,
) -> dict[str, list[float]]:
    """Factors of every label that enough calibration stars have.

    Args:
        label_names: Columns of what follows.
        mean, sigma: Of the network itself, without factors, shape (n_stars, n_labels), K and dex.
        labels: Published, same shape and units, NaN = missing.
        label_errors: Their 1-sigma; NaN or 0 = not published, which counts as the label's default. None = the labels
            are true, as those of synthetic stars are.

    Returns:
        Label -> factors of the 68.27 % and of the 95 % interval.
    """
    factors = {}
    for column, name in enumerate(label_names):
        known = np.isfinite(labels[:, column]) & np.isfinite(mean[:, column])
        if known.sum() < FEWEST_STARS:
            continue
        published = None if label_errors is None else label_errors[:, column]
        error = np.zeros(int(known.sum()))
        if published is not None:
            error = known_errors(get_label(name), published, known)
        residual = (mean - labels)[known, column]
        factors[name] = [
            sigma_factor(residual, sigma[known, column], error, probability, HALF_WIDTHS[interval])
            for interval, probability in NOMINAL_COVERAGE.items()
        ]
    return factors
