"""What pre-training must beat: four methods that learn one label from the same few stars and nothing else.

Every choice (regularisation, number of epochs, sigma) is made by cross-validation inside the training stars; no method
ever sees another star. All get the same fluxes, already divided by their pseudo-continuum (continuum near 1), with
missing pixels set to 1.0 as in Koblischke & Bovy (2024). All predict a mean and the 1-sigma of the model alone: the
error of the catalogue is taken out of the out-of-fold residuals, and `metrics.summarise` adds it again.

What is fixed in the code (how pixels are scaled, the Cannon's correlated scatter, how its penalty is chosen, the MLP's
averaged weights) was settled on three to five draws of 100 stars with an eye on the test stars of MILES. That favours
the baselines, which is the side to err on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from scipy.optimize import least_squares
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from .few_shot import strongest_within_one_error
from .metrics import MAD_TO_SIGMA

MISSING_FLUX = 1.0
"""Flux of a missing pixel: the pseudo-continuum (the paper's choice for its MLP)."""

N_FOLDS = 5
"""Of the cross-validations (ridge regression leaves out one star at a time)."""

MIN_STARS = 20
"""Fewest stars to learn from: the Cannon has ten coefficients per pixel, and a fifth of the stars is left out."""


class Baseline(ABC):
    """A method that learns one label from spectra; `fit` then `predict`.

    Attributes:
        also_needs: Labels the method must be told beside the one it is asked for. The columns of `values` and
            `errors` are these, then that one.
    """

    also_needs: ClassVar[tuple[str, ...]] = ()

    def fit(self, flux: np.ndarray, good: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> Self:
        """Learn from a few stars. The order of the stars does not matter.

        Args:
            flux: Shape (n_stars, n_pixels), continuum-normalised, all on one grid.
            good: Shape (n_stars, n_pixels), bool; True = use.
            values: Label of each star in its unit, shape (n_stars,), or (n_stars, n_labels) if the method
                `also_needs` some.
            errors: 1-sigma errors of the values, same shape and unit, all positive.
            seed: Of folds, weights and dropout.

        Returns:
            Itself.

        Raises:
            ValueError: Fewer than `MIN_STARS` stars, shapes that do not fit, a star without a good pixel, a good pixel
                without a finite flux, or a value or error that is missing.
        """
        spectra = _filled(flux, good)
        n_labels = 1 + len(self.also_needs)
        shape = (len(spectra),) if n_labels == 1 else (len(spectra), n_labels)
        if values.shape != shape or errors.shape != shape:
            wanted = ", ".join([*self.also_needs, "the label"])
            raise ValueError(
                f"{type(self).__name__} needs values and errors of shape {shape} ({wanted} of each star), "
                f"got {values.shape} and {errors.shape}."
            )
        if len(spectra) < MIN_STARS:
            raise ValueError(f"{type(self).__name__} needs at least {MIN_STARS} stars, got {len(spectra)}.")
        if not (np.isfinite(values).all() and np.isfinite(errors).all() and (errors > 0).all()):
            raise ValueError(
                "values must be finite and errors finite and positive: leave out stars without the label, and use "
                "Label.default_error where no error is published."
            )
        # Folds and dropout are drawn per position, so positions must hang on the stars and not on how they came.
        order = np.lexsort((spectra.sum(axis=1), values if n_labels == 1 else values[:, -1]))
        self._fit(spectra[order], values[order].astype(np.float64), errors[order].astype(np.float64), seed)
        return self

    def predict(self, flux: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label of other stars.

        Args:
            flux: Shape (n_stars, n_pixels), on the grid of `fit`.
            good: Shape (n_stars, n_pixels), bool; True = use.

        Returns:
            Mean and 1-sigma (of the model alone, without the catalogue's error), both shape (n_stars,), in the
            label's unit.

        Raises:
            ValueError: A star has no good pixel, or a good pixel no finite flux.
        """
        return self._predict(_filled(flux, good))

    @abstractmethod
    def _fit(self, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> None:
        """Learn from checked, filled and ordered stars."""

    @abstractmethod
    def _predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict from checked and filled spectra."""


def _filled(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Flux with its missing pixels at the continuum, float64, or an error that says which star cannot be used."""
    if flux.shape != good.shape or flux.ndim != 2:
        raise ValueError(f"flux and good must both be (n_stars, n_pixels), got {flux.shape} and {good.shape}.")
    good = good.astype(bool)
    empty = np.flatnonzero(~good.any(axis=1))
    if empty.size:
        rows = ", ".join(map(str, empty[:5]))
        raise ValueError(f"{empty.size} of {len(flux)} stars have no good pixel (first rows: {rows}); leave them out.")
    if not np.isfinite(flux[good]).all():
        n_wrong = int((~np.isfinite(flux[good])).sum())
        raise ValueError(f"{n_wrong} good pixels have no finite flux; set good to False there.")
    return np.where(good, flux, MISSING_FLUX).astype(np.float64)


def model_sigma(residual: np.ndarray, errors: np.ndarray) -> float:
    """1-sigma of the model: RMS of the out-of-fold residuals less the catalogue's own errors, in quadrature.

    At least a tenth of the residuals, since errors that explain everything may just be too large.
    """
    squared = float(np.mean(residual**2))
    return float(np.sqrt(max(squared - float(np.mean(errors**2)), 0.01 * squared)))


class Median(Baseline):
    """No spectrum at all: the median of the training stars, with 1.4826 MAD (less the errors) as sigma."""

    def _fit(self, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> None:
        self._median = float(np.median(values))
        spread = MAD_TO_SIGMA * np.median(np.abs(values - self._median))
        self._sigma = model_sigma(np.array([spread]), errors)

    def _predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(flux), self._median), np.full(len(flux), self._sigma)


class Ridge(Baseline):
    """Linear regression on all pixels with an L2 penalty (scikit-learn).

    Pixels are centred and not scaled, so that deep lines count for more than noise; scaling them was a little worse on
    MILES. The penalty is chosen by the leave-one-out error, and the same error gives one sigma for all stars.
    """

    ALPHAS: ClassVar[np.ndarray] = np.logspace(-4, 4, 81)

    def _fit(self, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> None:
        self._regression = RidgeCV(self.ALPHAS, scoring="neg_mean_squared_error").fit(flux, values)
        self._sigma = model_sigma(np.sqrt(-np.array([self._regression.best_score_])), errors)

    def _predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._regression.predict(flux), np.full(len(flux), self._sigma)


@dataclass(frozen=True, eq=False)
class CannonModel:
    """Flux as a quadratic function of three labels, pixel by pixel (Ness et al. 2015, ApJ 808, 16, arXiv 1501.07604).

    Attributes:
        centre: Mean of the training labels, shape (3,).
        scale: Their standard deviation, shape (3,).
        coefficients: Shape (10, n_pixels), for labels that are centred and scaled.
        scatter: How far the training spectra lie from the model in each pixel, left out one by one, shape (n_pixels,).
        basis: Directions of correlated scatter, shape (n_training, n_pixels), orthonormal in units of `scatter`.
        stretch: What each of them is multiplied with, minus one, to have unit variance, shape (n_training,).
        bounds: Lowest and highest label that is looked for, centred and scaled, shape (2, 3).
    """

    centre: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    scatter: np.ndarray
    basis: np.ndarray
    stretch: np.ndarray
    bounds: np.ndarray

    @classmethod
    def train(cls, flux: np.ndarray, labels: np.ndarray, alpha: float, correlation: float, extension: float) -> Self:
        """Least squares in every pixel.

        Args:
            flux: Shape (n_stars, n_pixels).
            labels: Shape (n_stars, 3).
            alpha: L2 penalty on the six quadratic coefficients; 0 is the Cannon of the paper.
            correlation: Share of the measured covariance between pixels in the covariance that is used (the rest is
                its diagonal); 0 is the Cannon of the paper.
            extension: How far beyond the training labels to look, in units of their range.
        """
        centre, scale = labels.mean(axis=0), labels.std(axis=0)
        scaled = (labels - centre) / scale
        terms = cls.vectorise(scaled)
        solver = np.linalg.solve(terms.T @ terms + alpha * np.diag([0.0] * 4 + [1.0] * 6), terms.T)
        leverage = np.einsum("nk,kn->n", terms, solver)
        coefficients = solver @ flux
        residual = (flux - terms @ coefficients) / (1 - leverage)[:, None]  # of each star, left out of the fit
        scatter = np.sqrt(np.mean(residual**2, axis=0)) + 1e-9
        _, singular, basis = np.linalg.svd(residual / scatter, full_matrices=False)
        variance = correlation * singular**2 / len(flux) + 1 - correlation
        low, high = scaled.min(axis=0), scaled.max(axis=0)
        bounds = np.stack([low - extension * (high - low), high + extension * (high - low)])
        return cls(centre, scale, coefficients, scatter, basis, (variance / (1 - correlation)) ** -0.5 - 1, bounds)

    @staticmethod
    def vectorise(scaled: np.ndarray) -> np.ndarray:
        """Labels (..., 3) -> the ten terms 1, l_i, l_i l_j (..., 10)."""
        first, second = np.triu_indices(3)
        products = scaled[..., first] * scaled[..., second]
        return np.concatenate([np.ones_like(scaled[..., :1]), scaled, products], axis=-1)

    @staticmethod
    def _slopes(scaled: np.ndarray) -> np.ndarray:
        """Derivative of the ten terms by the labels, (3,) -> (10, 3)."""
        first, second = np.triu_indices(3)
        unit = np.eye(3)
        products = scaled[first][:, None] * unit[second] + scaled[second][:, None] * unit[first]
        return np.concatenate([np.zeros((1, 3)), unit, products])

    def _whitened(self, flux: np.ndarray) -> np.ndarray:
        """Flux or coefficients (n, n_pixels) in coordinates where the scatter is white with unit variance per pixel."""
        scaled = flux / self.scatter
        return scaled + (scaled @ self.basis.T * self.stretch) @ self.basis

    def infer(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of each star by non-linear least squares, started from the best node of a coarse grid of labels.

        Args:
            flux: Shape (n_stars, n_pixels).

        Returns:
            Labels and their formal 1-sigma errors, both shape (n_stars, 3), in the labels' units.
        """
        # The model moves in the ten directions of its coefficients only, so a star is its ten projections on them.
        directions, triangle = np.linalg.qr(self._whitened(self.coefficients).T)
        projected = self._whitened(flux) @ directions
        low, high = self.bounds
        nodes = np.stack(np.meshgrid(*np.linspace(low, high, 15).T, indexing="ij"), axis=-1).reshape(-1, 3)
        at_nodes = self.vectorise(nodes) @ triangle.T
        nearest = np.argmin(np.sum(at_nodes**2, axis=1) - 2 * projected @ at_nodes.T, axis=1)
        labels, errors = np.empty((len(flux), 3)), np.empty((len(flux), 3))
        for star, (start, wanted) in enumerate(zip(nodes[nearest], projected, strict=True)):
            best = least_squares(
                lambda scaled, wanted=wanted: triangle @ self.vectorise(scaled) - wanted,
                start,
                jac=lambda scaled: triangle @ self._slopes(scaled),
                bounds=self.bounds,
            )
            labels[star] = self.centre + self.scale * best.x
            errors[star] = self.scale * np.sqrt(np.diag(np.linalg.pinv(best.jac.T @ best.jac)))
        return labels, errors


class Cannon(Baseline):
    """The quadratic Cannon of Ness et al. (2015): a model of the flux, turned round by least squares.

    It is told Teff and log g of its training stars too, which no other method here gets. It departs from the published
    method in two ways, both to its advantage on MILES: the model's errors are allowed to be correlated between pixels
    (0.20 instead of 0.27 dex for metal-rich stars), and an L2 penalty on the quadratic terms tames extrapolation (0.7
    instead of 0.9 dex for metal-poor stars). The penalty is the strongest whose out-of-fold mean squared error of the
    asked label is within one standard error of the best (Breiman et al. 1984); none at all is among the choices.

    Labels are looked for within the range of the training stars, extended by that range on either side: for stars with
    -1 < [Fe/H] < +0.5 that is -2.5 to +2. Sigma is the formal error of the fit, which assumes a perfect model, plus in
    quadrature the constant that the out-of-fold residuals ask for.
    """

    also_needs: ClassVar[tuple[str, ...]] = ("teff", "logg")
    ALPHAS: ClassVar[tuple[float, ...]] = (0.0, 10.0, 30.0, 100.0, 300.0)
    CORRELATION: ClassVar[float] = 0.7
    EXTENSION: ClassVar[float] = 1.0

    def _fit(self, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> None:
        residual, formal = np.empty((2, len(self.ALPHAS), len(flux)))
        for number, alpha in enumerate(self.ALPHAS):
            for fold, others in _folds(len(flux), seed):
                model = CannonModel.train(flux[others], values[others], alpha, self.CORRELATION, self.EXTENSION)
                labels, label_errors = model.infer(flux[fold])
                residual[number, fold], formal[number, fold] = labels[:, -1] - values[fold, -1], label_errors[:, -1]
        chosen = strongest_within_one_error(residual**2)
        self.alpha = self.ALPHAS[chosen]
        self._model = CannonModel.train(flux, values, self.alpha, self.CORRELATION, self.EXTENSION)
        self._extra_sigma = model_sigma(residual[chosen], np.hypot(errors[:, -1], np.median(formal[chosen])))

    def _predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels, formal = self._model.infer(flux)
        return labels[:, -1], np.hypot(formal[:, -1], self._extra_sigma)


class MLP(Baseline):
    """The paper's network n-2048-1280-1024 with a mean and a log variance, from random weights.

    GELU and dropout after each layer, AdamW on all stars at once, Gaussian likelihood with the catalogue's errors.
    Pixels are centred and divided by one number for all; dividing each by its own spread was worse on MILES. Dropout
    and the number of epochs are chosen by the out-of-fold RMSE, then the network is trained anew on all stars. The
    learning rate is fixed (a third of it came to the same with more epochs), and so is the weight decay (3,000 times
    as much made no difference). Sigma is the network's, times the constant that the out-of-fold residuals ask for.
    """

    WIDTHS: ClassVar[tuple[int, ...]] = (2048, 1280, 1024)
    DROPOUTS: ClassVar[tuple[float, ...]] = (0.05, 0.3)
    LEARNING_RATE: ClassVar[float] = 1e-4
    WEIGHT_DECAY: ClassVar[float] = 0.01
    MAX_EPOCHS: ClassVar[int] = 48
    CHECK_EVERY: ClassVar[int] = 4

    def _fit(self, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> None:
        n_checks = self.MAX_EPOCHS // self.CHECK_EVERY
        out_of_fold = {}
        folds = _folds(len(flux), seed)
        progress = tqdm(total=len(self.DROPOUTS) * len(folds) + 1, desc="    networks", leave=False, disable=None)
        for dropout in self.DROPOUTS:
            mean, sigma = np.empty((n_checks, len(flux))), np.empty((n_checks, len(flux)))
            for fold, others in folds:
                progress.update()
                network = _Network(flux[others], values[others], errors[others], self.WIDTHS, dropout, seed)
                for check in range(n_checks):
                    network.train(self.CHECK_EVERY, self.LEARNING_RATE, self.WEIGHT_DECAY)
                    mean[check, fold], sigma[check, fold] = network.predict(flux[fold])
            for check in range(n_checks):
                out_of_fold[dropout, (check + 1) * self.CHECK_EVERY] = mean[check] - values, sigma[check]

        # By RMSE and not by likelihood: one star with a wrong catalogue value can rule the likelihood of all.
        chosen = min(out_of_fold, key=lambda choice: float(np.mean(out_of_fold[choice][0] ** 2)))
        residual, sigma = out_of_fold[chosen]
        self.dropout, self.n_epochs = chosen
        self._sigma_factor = model_sigma(residual, errors) / float(np.sqrt(np.mean(sigma**2)))
        self._network = _Network(flux, values, errors, self.WIDTHS, self.dropout, seed)
        self._network.train(self.n_epochs, self.LEARNING_RATE, self.WEIGHT_DECAY)
        progress.close()

    def _predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, sigma = self._network.predict(flux)
        return mean, self._sigma_factor * sigma


class _Network:
    """One network with its scaling and optimiser; its random numbers are its own, the global ones stay untouched.

    It predicts with a running mean of its weights over about ten epochs: with 100 stars of MILES the error jumps by a
    fifth from one epoch to the next, and to stop at a good one would be luck.
    """

    WARMUP_EPOCHS = 10
    WEIGHT_MEMORY = 0.9
    MAX_GRADIENT_NORM = 1.0

    def __init__(
        self,
        flux: np.ndarray,
        values: np.ndarray,
        errors: np.ndarray,
        widths: tuple[int, ...],
        dropout: float,
        seed: int,
    ):
        self._flux_centre = flux.mean(axis=0)
        self._flux_scale = flux.std(axis=0).mean() + 1e-9
        self._centre, self._scale = values.mean(), values.std() + 1e-9
        self._inputs = self._scaled(flux)
        self._values = torch.tensor((values - self._centre) / self._scale, dtype=torch.float32)
        self._variances = torch.tensor((errors / self._scale) ** 2, dtype=torch.float32)
        self._epoch = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = (flux.shape[1], *widths)
            hidden = [
                layer
                for before, after in pairwise(sizes)
                for layer in (nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout))
            ]
            self._layers = nn.Sequential(*hidden, nn.Linear(widths[-1], 2))
            self._random_state = torch.get_rng_state()
        self._averaged = AveragedModel(self._layers, multi_avg_fn=get_ema_multi_avg_fn(self.WEIGHT_MEMORY))
        self._optimiser: torch.optim.AdamW | None = None

    def _scaled(self, flux: np.ndarray) -> torch.Tensor:
        return torch.tensor((flux - self._flux_centre) / self._flux_scale, dtype=torch.float32)

    def train(self, n_epochs: int, learning_rate: float, weight_decay: float) -> None:
        """Some epochs more; calling it twice with 4 is calling it once with 8."""
        if self._optimiser is None:
            self._optimiser = torch.optim.AdamW(
                self._layers.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
            )
        self._layers.train()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(self._random_state)
            for _ in range(n_epochs):
                self._epoch += 1
                for group in self._optimiser.param_groups:
                    group["lr"] = learning_rate * min(1.0, self._epoch / self.WARMUP_EPOCHS)
                mean, log_variance = self._layers(self._inputs).unbind(-1)
                variance = log_variance.exp() + self._variances
                loss = 0.5 * ((self._values - mean).square() / variance + variance.log()).mean()
                self._optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._layers.parameters(), self.MAX_GRADIENT_NORM)
                self._optimiser.step()
                self._averaged.update_parameters(self._layers)
            self._random_state = torch.get_rng_state()

    @torch.no_grad()
    def predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sigma, both (n_stars,), in the unit of the values."""
        self._averaged.eval()
        mean, log_variance = self._averaged(self._scaled(flux)).double().numpy().T
        return self._centre + self._scale * mean, self._scale * np.exp(0.5 * log_variance)


def _folds(n_stars: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(left out, kept) positions of each fold; every star is left out once."""
    folds = KFold(N_FOLDS, shuffle=True, random_state=seed)
    return [(left_out, kept) for kept, left_out in folds.split(np.empty(n_stars))]


BASELINES: Mapping[str, Callable[[], Baseline]] = {
    "mlp_scratch": MLP,
    "cannon": Cannon,
    "ridge": Ridge,
    "median": Median,
}
"""Key in `results.json` -> constructor."""
