r"""How far off the network is, and by how much wider or narrower than it says: learned from stars that no training saw.

**Two factors per label** (`sigma_factors`) need few stars and promise coverage over all stars together. A factor
belongs to one label and one central probability p. It is the f for which the interval

    mean +- z_p sqrt((f sigma)^2 + err^2),      z_p = 1.0000 (68.27 %), 1.9600 (95 %),

holds the fraction p of the calibration stars' published values, whose own errors `err` are counted as known; with the
finite-sample correction of split conformal prediction, ceil((n + 1) p) / n (Vovk et al. 2005; Lei et al. 2018). They
live in preprocessor_config.json (`sigma_factors`), so that everybody who loads the model answers alike.

**A function of what is known when a star is predicted** (`recalibration`) needs thousands of stars and promises more:
coverage among cool stars and hot ones, metal-poor ones, noisy ones. What is known are all labels and sigmas of the
network, and the noise of the pixels. A small network of them gives a shift b, in units of sigma, and two factors f,

    mean + b sigma +- z_p f_p sigma,

by quantile regression (Koenker & Bassett 1978): b is the median of what the network is off by, and ln f_p the quantile
p of ln |residual| / (z_p sigma). A regression alone promises nothing, so that each f_p is then multiplied by the one
number that covers the fraction p of stars set aside, as above (conformalised quantile regression, Romano et al. 2019).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .feature_extraction_spectrafm import Recalibration
from .labels import get_label
from .metrics import HALF_WIDTHS, NOMINAL_COVERAGE, known_errors

FEWEST_STARS = 30
"""Fewer say nothing of a 95 % interval: the label keeps the factors it has."""

FACTOR_LIMITS = (0.5, 20.0)
"""Where published errors explain all of the scatter, any small factor would do. They are guesses themselves, so that
less than half of what the network says is not believed."""

FEWEST_FOR_REGRESSION = 3000
"""Fewer stars with a label do not tell how its errors depend on anything."""

N_HIDDEN, N_STEPS, BATCH_SIZE, LEARNING_RATE = 64, 2500, 1024, 5e-3
"""Size of the small network of `recalibration`, and how it is fitted: 6 seconds. With 32 hidden units more of the rare
stars are covered less than promised."""

SET_ASIDE = 0.3
"""Share of the calibration stars that fix the last factor and take no part in the regression."""


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
    needed = needed_factor(residual, sigma, error, half_width)
    return float(np.clip(conformal_quantile(needed, probability), *FACTOR_LIMITS))


def needed_factor(residual: np.ndarray, sigma: np.ndarray, error: np.ndarray, half_width: float) -> np.ndarray:
    """Each star's smallest factor that covers it, any shape, one unit; see `sigma_factor`."""
    return np.sqrt(np.maximum((residual / half_width) ** 2 - error**2, 0.0)) / sigma


def conformal_quantile(values: np.ndarray, probability: float) -> float:
    """The value that another one of the same kind does not exceed with at least this probability."""
    rank = min(math.ceil((values.size + 1) * probability), values.size)
    return float(np.sort(values)[rank - 1])


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


def recalibration(
    label_names: list[str],
    mean: np.ndarray,
    sigma: np.ndarray,
    labels: np.ndarray,
    label_errors: np.ndarray | None,
    noise: np.ndarray,
    seed: int = 0,
) -> dict[str, Any] | None:
    """A `Recalibration` of the labels that enough calibration stars have, for an extractor's `recalibration`.

    Half of the time the noise is hidden, so that it may be missing later, too.

    Args:
        label_names, mean, sigma, labels, label_errors: As `sigma_factors` takes them, one spectrum per star.
        noise: Of their pixels, shape (n_stars,), see `SpectraFMFeatureExtractor.noise`; NaN = not known.
        seed: Of the stars set aside and of the fit.

    Returns:
        Its attributes as lists of numbers; None where no label has enough stars.
    """
    enough = np.isfinite(labels).sum(axis=0) >= FEWEST_FOR_REGRESSION
    if not enough.any():
        return None
    names = [name for name, chosen in zip(label_names, enough, strict=True) if chosen]
    pull, error = ((labels - mean) / sigma)[:, enough], np.zeros((len(labels), len(names)))
    if label_errors is not None:
        everyone = np.ones(len(labels), dtype=bool)
        columns = zip(names, label_errors[:, enough].T, strict=True)
        error = np.stack([known_errors(get_label(name), column, everyone) for name, column in columns], axis=1)
        error /= sigma[:, enough]
    # Every star comes twice, once without its noise.
    mean, sigma, pull, error = (np.tile(part, (2, 1)) for part in (mean, sigma, pull, error))
    noise = np.concatenate([noise, np.full(len(noise), np.nan)])
    aside = np.tile(np.random.default_rng(seed).random(len(labels)) < SET_ASIDE, 2)

    raw = Recalibration.raw_inputs(mean, sigma, noise)
    center, scale = np.nanmean(raw, axis=0), np.nanstd(raw, axis=0) + 1e-6
    inputs = Recalibration.standardise(raw, center, scale)
    weights = _fit(inputs[~aside], pull[~aside], error[~aside], seed)
    fitted = Recalibration(names, center.round(6), scale.round(6), *weights)

    shift, *factors = fitted(mean[aside], sigma[aside], noise[aside])
    log_last = np.zeros((3, len(names)))
    for part, (interval, probability) in enumerate(NOMINAL_COVERAGE.items()):
        needed = needed_factor(pull[aside] - shift, factors[part], error[aside], HALF_WIDTHS[interval])
        for column in range(len(names)):
            stars = needed[np.isfinite(needed[:, column]), column]
            log_last[1 + part, column] = np.log(np.clip(conformal_quantile(stars, probability), *FACTOR_LIMITS))
    found = replace(fitted, output_bias=fitted.output_bias + log_last.ravel())
    return {name: value if name == "label_names" else value.tolist() for name, value in vars(found).items()}


def _fit(inputs: np.ndarray, pull: np.ndarray, error: np.ndarray, seed: int) -> list[np.ndarray]:
    """Weights and biases of a `Recalibration`, by pinball loss.

    Args:
        inputs: Standardised, shape (n, n_inputs).
        pull, error: Published minus predicted, NaN = not known, and published error, in units of sigma, (n, n_labels).
    """
    known = torch.from_numpy(np.isfinite(pull))
    x, y, y_error = (torch.from_numpy(np.nan_to_num(part)).float() for part in (inputs, pull, error))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden, output = nn.Linear(x.shape[1], N_HIDDEN), nn.Linear(N_HIDDEN, 3 * y.shape[1])
        parameters = [hidden.weight, hidden.bias, output.weight, output.bias]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, N_STEPS)
        for _ in range(N_STEPS):
            rows = torch.randint(len(x), (BATCH_SIZE,))
            shift, *log_factors = output(hidden(x[rows]).tanh()).chunk(3, dim=1)
            left = y[rows] - shift
            loss = pinball(left, 0.5)
            for log_factor, (interval, probability) in zip(log_factors, NOMINAL_COVERAGE.items(), strict=True):
                squared = (left.detach() / HALF_WIDTHS[interval]) ** 2 - y_error[rows] ** 2
                needed = squared.clamp(FACTOR_LIMITS[0] ** 2, FACTOR_LIMITS[1] ** 2).log() / 2
                loss = loss + pinball(needed - log_factor, probability)
            optimizer.zero_grad()
            torch.where(known[rows], loss, 0.0).mean().backward()
            optimizer.step()
            schedule.step()
    return [part.detach().double().numpy().T.round(6) for part in parameters]


def pinball(residual: Tensor, probability: float) -> Tensor:
    """Loss whose least expectation lies at a quantile (Koenker & Bassett 1978); any shape."""
    return torch.maximum(probability * residual, (probability - 1) * residual)
