"""What our network must beat: six methods that learn one label from the same few stars.

Every choice (regularisation, number of epochs or trees, sigma) is made by cross-validation inside the training stars;
no method ever sees another real star, and one alone, `PretrainedMLP`, has seen synthetic ones. All get the same fluxes,
already divided by their pseudo-continuum (continuum near 1), with missing pixels set to 1.0 as in Koblischke & Bovy
(2024). All predict a mean and the 1-sigma of the model alone: the error of the catalogue is taken out of the
out-of-fold residuals, and `metrics.summarise` adds it again.

What is fixed in the code (how pixels are scaled, the Cannon's correlated scatter, how its penalty is chosen, the MLP's
averaged weights) was settled on three to five draws of 100 stars with an eye on the test stars of MILES; for the
boosted trees and the pre-trained MLP it was on the validation stars. That favours the baselines, which is the side to
err on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.linalg import svd
from scipy.optimize import least_squares
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from .builders.parquet_layout import whole_file
from .few_shot import strongest_within_one_error
from .labels import get_label
from .metrics import MAD_TO_SIGMA, known_errors

MISSING_FLUX = 1.0
"""Flux of a missing pixel: the pseudo-continuum (the paper's choice for its MLP)."""

N_FOLDS = 5
"""Of the cross-validations, where there are ten stars or more (ridge regression leaves out one star at a time)."""

FEW_FOLDS = 3
"""Of methods that take long to fit; on the validation stars of MILES it came to the same as five."""

MAX_GRADIENT_NORM = 1.0
"""Of a network's loss, in scaled units; longer gradients are cut to it."""


class Baseline(ABC):
    """A method that learns one label from spectra; `fit` then `predict`.

    Attributes:
        also_needs: Labels the method must be told beside the one it is asked for. The columns of `values` and
            `errors` are these, then that one.
        MIN_STARS: Fewest stars to learn from.
        MIN_STARS_REASON: Why, in words for people.
    """

    also_needs: ClassVar[tuple[str, ...]] = ()
    MIN_STARS: ClassVar[int] = 4
    MIN_STARS_REASON: ClassVar[str] = "cross-validation needs two folds of two"

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
        if len(spectra) < self.MIN_STARS:
            raise ValueError(
                f"{type(self).__name__} needs at least {self.MIN_STARS} stars ({self.MIN_STARS_REASON}), got "
                f"{len(spectra)}; give it more, or leave this method out."
            )
        if not (np.isfinite(values).all() and np.isfinite(errors).all() and (errors > 0).all()):
            raise ValueError(
                "values must be finite and errors finite and positive: leave out stars without the label, and use "
                "Label.default_error where no error is published."
            )
        # Folds and dropout are drawn per position, so positions must hang on the stars and not on how they came.
        order = np.lexsort((spectra.sum(axis=1), values if n_labels == 1 else values[:, -1]))
        self._fit(spectra[order], values[order].astype(np.float64), errors[order].astype(np.float64), seed)
        return self

    def told(
        self, label_names: Sequence[str], label: str, labels: np.ndarray, label_errors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """`values` and `errors` of `fit` from a table of labels: those the method also needs, then the one asked for.

        Args:
            label_names: Columns of the table.
            label: What is asked for.
            labels, label_errors: Shape (n_stars, n_labels), K and dex; an error that is not published counts as the
                label's default.
        """
        names = (*self.also_needs, label)
        columns = [list(label_names).index(name) for name in names]
        every = np.ones(len(labels), dtype=bool)
        errors = np.column_stack(
            [known_errors(get_label(name), label_errors[:, c], every) for name, c in zip(names, columns, strict=True)]
        )
        values = labels[:, columns]
        return (values, errors) if self.also_needs else (values[:, 0], errors[:, 0])

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


class BoostedTrees(Baseline):
    """Gradient boosting of regression trees on the pixels (Friedman 2001, 2002; scikit-learn).

    Each tree sees half of the stars and each of its splits a few dozen pixels, both drawn by the seed. The depth and
    the number of trees are those with the lowest out-of-fold RMSE; 250 trees tell it for every smaller number on their
    way. The same RMSE gives one sigma.
    """

    DEPTHS: ClassVar[tuple[int, ...]] = (1, 2, 3)
    MAX_TREES: ClassVar[int] = 250
    SHRINKAGE: ClassVar[float] = 0.1
    SHARE_OF_STARS: ClassVar[float] = 0.5

    def _fit(self, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> None:
        out_of_fold = np.empty((len(self.DEPTHS), self.MAX_TREES, len(flux)))
        for number, depth in enumerate(self.DEPTHS):
            for left_out, kept in _folds(len(flux), seed, FEW_FOLDS):
                forest = self._forest(depth, self.MAX_TREES, seed).fit(flux[kept], values[kept])
                out_of_fold[number, :, left_out] = np.array(list(forest.staged_predict(flux[left_out]))).T
        residual = out_of_fold - values
        chosen = np.unravel_index(np.argmin(np.mean(residual**2, axis=-1)), residual.shape[:2])
        self.depth, self.n_trees = self.DEPTHS[chosen[0]], int(chosen[1]) + 1
        self._forest_of_all = self._forest(self.depth, self.n_trees, seed).fit(flux, values)
        self._sigma = model_sigma(residual[chosen], errors)

    def _forest(self, depth: int, n_trees: int, seed: int) -> GradientBoostingRegressor:
        return GradientBoostingRegressor(
            learning_rate=self.SHRINKAGE,
            n_estimators=n_trees,
            subsample=self.SHARE_OF_STARS,
            max_depth=depth,
            max_features="sqrt",
            random_state=seed,
        )

    def _predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._forest_of_all.predict(flux), np.full(len(flux), self._sigma)


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
        # Not NumPy's divide and conquer, which does not converge for some of these: ten directions are fitted away.
        _, singular, basis = svd(residual / scatter, full_matrices=False, lapack_driver="gesvd")
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
    MIN_STARS: ClassVar[int] = 20
    MIN_STARS_REASON: ClassVar[str] = "it has ten coefficients per pixel, and a fifth of the stars is left out"
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


@dataclass(frozen=True, eq=False)
class Scaling:
    """Makes what a network reads and says a number near 0 and of order 1.

    Pixels are centred and divided by one number for all, so that deep lines count for more than noise; dividing each by
    its own spread was worse on MILES.

    Attributes:
        flux_centre: Mean flux of the training spectra, shape (n_pixels,).
        flux_scale: Mean over all pixels of their standard deviation.
        centre, scale: Mean and standard deviation of the label, in its unit.
    """

    flux_centre: np.ndarray
    flux_scale: float
    centre: float
    scale: float

    @classmethod
    def of(cls, flux: np.ndarray, values: np.ndarray) -> Self:
        """Of training spectra (n_stars, n_pixels) and their labels (n_stars,)."""
        return cls(flux.mean(axis=0), flux.std(axis=0).mean() + 1e-9, values.mean(), values.std() + 1e-9)

    def pixels(self, flux: np.ndarray) -> torch.Tensor:
        return torch.tensor((flux - self.flux_centre) / self.flux_scale, dtype=torch.float32)

    def labels(self, values: np.ndarray) -> torch.Tensor:
        return torch.tensor((values - self.centre) / self.scale, dtype=torch.float32)


@dataclass(frozen=True)
class TrainingWay:
    """A way to train a network on the few stars.

    Attributes:
        learning_rate: Of AdamW, reached after ten epochs.
        dropout: After each hidden layer.
        epochs: How many, in ascending order; one of these is chosen.
        only_last_layer: The others stay as they are.
    """

    learning_rate: float
    dropout: float
    epochs: tuple[int, ...]
    only_last_layer: bool = False


class MLP(Baseline):
    """The paper's network n-2048-1280-1024 with a mean and a log variance, from random weights.

    GELU and dropout after each layer, AdamW on all stars at once, Gaussian likelihood with the catalogue's errors.
    Dropout and the number of epochs are chosen by the out-of-fold RMSE, then the network is trained anew on all stars.
    The learning rate is fixed (a third of it came to the same with more epochs), and so is the weight decay (3,000
    times as much made no difference). Sigma is the network's, times the constant that the out-of-fold residuals ask
    for.
    """

    WIDTHS: ClassVar[tuple[int, ...]] = (2048, 1280, 1024)
    WAYS: ClassVar[tuple[TrainingWay, ...]] = tuple(
        TrainingWay(1e-4, dropout, tuple(range(4, 49, 4))) for dropout in (0.05, 0.3)
    )

    def _fit(self, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> None:
        choices = [(way, n_epochs) for way in self.WAYS for n_epochs in way.epochs]
        mean, sigma = np.empty((2, len(choices), len(flux)))
        folds = _folds(len(flux), seed, FEW_FOLDS)
        for left_out, kept in tqdm(folds, desc="    networks", leave=False, disable=None):
            networks = (
                network
                for way in self.WAYS
                for network in self._checkpoints(way, flux[kept], values[kept], errors[kept], seed)
            )
            for choice, network in enumerate(networks):
                mean[choice, left_out], sigma[choice, left_out] = network.predict(flux[left_out])
        residual = mean - values
        chosen = self._choose(residual**2)
        self.way, self.n_epochs = choices[chosen]
        self._sigma_factor = model_sigma(residual[chosen], errors) / float(np.sqrt(np.mean(sigma[chosen] ** 2)))
        self._network = self._begin(self.way, flux, values, errors, seed)
        self._network.train(self.n_epochs)

    def _checkpoints(
        self, way: TrainingWay, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int
    ) -> Iterator[_Network]:
        """One network, after each number of epochs among which to choose."""
        network = self._begin(way, flux, values, errors, seed)
        for before, n_epochs in pairwise((0, *way.epochs)):
            network.train(n_epochs - before)
            yield network

    def _begin(self, way: TrainingWay, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> _Network:
        """The network before its first epoch."""
        layers, random_state = _random_layers(flux.shape[1], self.WIDTHS, way.dropout, seed)
        return _Network(layers, random_state, Scaling.of(flux, values), way.learning_rate, flux, values, errors)

    def _choose(self, squared: np.ndarray) -> int:
        """Which of the choices, by the out-of-fold squared residual of each star, shape (n_choices, n_stars)."""
        # By RMSE and not by likelihood: one star with a wrong catalogue value can rule the likelihood of all.
        return int(np.argmin(squared.mean(axis=1)))

    def _predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, sigma = self._network.predict(flux)
        return mean, self._sigma_factor * sigma


@dataclass(frozen=True, eq=False)
class MLPPretraining:
    """The network of `MLP`, trained on synthetic spectra; made once, and shared by all few-star fits of a protocol.

    AdamW on batches of 64, by the Gaussian likelihood of labels without errors; the learning rate rises for a twentieth
    of the steps and falls to nothing along a cosine. Half or twice the rate, batches of 32 or more dropout came to the
    same on MILES.

    Attributes:
        scaling: Of pixels and label, by synthetic spectra.
        weights: State of the layers: name -> tensor.
    """

    scaling: Scaling
    weights: Mapping[str, torch.Tensor]

    CHUNK: ClassVar[int] = 2048
    BATCH: ClassVar[int] = 64
    LEARNING_RATE: ClassVar[float] = 5e-4
    WARMUP: ClassVar[float] = 0.05
    DROPOUT: ClassVar[float] = 0.05

    @classmethod
    def run(
        cls,
        draw: Callable[[range], tuple[np.ndarray, np.ndarray, np.ndarray]],
        n_spectra: int = 60_000,
        seed: int = 0,
        widths: tuple[int, ...] = MLP.WIDTHS,
    ) -> Self:
        """Show the network synthetic spectra, each of them once.

        Args:
            draw: Row numbers -> flux and good, both (n, n_pixels), on the pixels of the real stars and normalised like
                them, and the label, (n,), in its unit. Called for rows 0 to `n_spectra` - 1 in order, 2,048 at a time;
                the first of these also give the scaling.
            n_spectra: How many; 60,000 of 1,600 pixels take about a minute on one core, without the drawing.
            seed: Of weights and dropout.
            widths: Of the hidden layers.

        Raises:
            ValueError: Fewer than 2,048 spectra, shapes that do not fit, a spectrum without a good pixel, a good pixel
                without a finite flux, or a label that is missing.
        """
        if n_spectra < cls.CHUNK:
            raise ValueError(f"pre-training needs at least {cls.CHUNK} synthetic spectra, got {n_spectra}.")
        chunks = (
            _drawn(*draw(range(start, min(start + cls.CHUNK, n_spectra)))) for start in range(0, n_spectra, cls.CHUNK)
        )
        first = next(chunks)
        scaling = Scaling.of(*first)
        layers, random_state = _random_layers(scaling.flux_centre.size, widths, cls.DROPOUT, seed)
        optimiser = torch.optim.AdamW(layers.parameters(), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, cls.LEARNING_RATE, -(-n_spectra // cls.BATCH), pct_start=cls.WARMUP
        )
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(random_state)
            for flux, values in tqdm(
                chain([first], chunks), "    pre-training", -(-n_spectra // cls.CHUNK), leave=False, disable=None
            ):
                inputs, labels = scaling.pixels(flux), scaling.labels(values)
                for some in torch.arange(len(labels)).split(cls.BATCH):
                    _step(layers, optimiser, inputs[some], labels[some], torch.zeros(len(some)))
                    schedule.step()
        return cls(scaling, layers.state_dict())

    def save(self, path: str | Path) -> None:
        """Write a file of safetensors, whole or not at all."""
        numbers = {f"scaling.{name}": torch.from_numpy(np.array(value)) for name, value in vars(self.scaling).items()}
        with whole_file(Path(path)) as partial:
            save_file(numbers | {f"layers.{name}": tensor for name, tensor in self.weights.items()}, partial)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read it back, to the last bit.

        Raises:
            FileNotFoundError: There is none.
            ValueError: The file does not hold what `save` writes.
        """
        try:
            kept = load_file(path)
            centre, *numbers = (kept.pop(f"scaling.{part.name}") for part in fields(Scaling))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} was not written by MLPPretraining.save; run the pre-training anew.") from error
        scaling = Scaling(centre.numpy(), *(float(number) for number in numbers))
        return cls(scaling, {name.removeprefix("layers."): tensor for name, tensor in kept.items()})

    def layers(self, dropout: float, seed: int) -> tuple[nn.Sequential, torch.Tensor]:
        """The network, to go on training, and the state of its random numbers."""
        *widths, _ = (len(tensor) for name, tensor in self.weights.items() if name.endswith("bias"))
        layers, random_state = _random_layers(self.scaling.flux_centre.size, tuple(widths), dropout, seed)
        layers.load_state_dict(dict(self.weights))
        return layers, random_state


def _drawn(flux: np.ndarray, good: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic spectra with missing pixels at the continuum, and their labels, or an error that says what is wrong."""
    spectra = _filled(flux, good)
    if values.shape != (len(spectra),) or not np.isfinite(values).all():
        raise ValueError(
            f"pre-training needs one finite label for each of {len(spectra)} synthetic spectra, got shape "
            f"{values.shape} with {int((~np.isfinite(values)).sum())} that are not finite."
        )
    return spectra, values


class PretrainedMLP(MLP):
    """The same network, first trained on synthetic spectra of the same pixels and then on the few stars.

    The synthetic label scale is not the catalogue's, so that one constant is added to its answers before anything else.
    Then its last layer is trained, or all of it, for a number of epochs that may be none. Of all choices within one
    standard error of the best out-of-fold mean squared error (Breiman et al. 1984), it takes the one that stays nearest
    to the pre-trained network: metal-poor stars are known to that alone. Sigma as in `MLP`.

    Args:
        pretraining: On spectra of the same pixels; shared by all fits, none of which changes it.
    """

    WAYS: ClassVar[tuple[TrainingWay, ...]] = (
        TrainingWay(2e-4, 0.05, tuple(range(0, 49, 8)), only_last_layer=True),
        TrainingWay(1e-4, 0.05, tuple(range(4, 49, 4))),
    )

    def __init__(self, pretraining: MLPPretraining):
        self._pretraining = pretraining

    def _begin(self, way: TrainingWay, flux: np.ndarray, values: np.ndarray, errors: np.ndarray, seed: int) -> _Network:
        scaling = self._pretraining.scaling
        if flux.shape[1] != scaling.flux_centre.size:
            raise ValueError(
                f"the MLP was pre-trained on spectra of {scaling.flux_centre.size} pixels, got {flux.shape[1]}; draw "
                "its synthetic spectra on the pixels of the stars."
            )
        layers, random_state = self._pretraining.layers(way.dropout, seed)
        *_, output = layers
        assert isinstance(output, nn.Linear)
        with torch.no_grad():
            answer = layers.eval()(scaling.pixels(flux))[:, 0]
            output.bias[0] += (scaling.labels(values) - answer).mean()
        layers.requires_grad_(not way.only_last_layer)
        output.requires_grad_(True)
        return _Network(layers, random_state, scaling, way.learning_rate, flux, values, errors)

    def _choose(self, squared: np.ndarray) -> int:
        return len(squared) - 1 - strongest_within_one_error(squared[::-1])


class _Network:
    """One network in training; its random numbers are its own, the global ones stay untouched.

    It predicts with a running mean of its weights over about ten epochs: with 100 stars of MILES the error jumps by a
    fifth from one epoch to the next, and to stop at a good one would be luck.
    """

    WARMUP_EPOCHS = 10
    WEIGHT_MEMORY = 0.9
    WEIGHT_DECAY = 0.01

    def __init__(
        self,
        layers: nn.Sequential,
        random_state: torch.Tensor,
        scaling: Scaling,
        learning_rate: float,
        flux: np.ndarray,
        values: np.ndarray,
        errors: np.ndarray,
    ):
        self._layers, self._random_state = layers, random_state
        self._scaling, self._learning_rate = scaling, learning_rate
        self._inputs, self._values = scaling.pixels(flux), scaling.labels(values)
        self._variances = torch.tensor((errors / scaling.scale) ** 2, dtype=torch.float32)
        self._epoch = 0
        self._averaged = AveragedModel(layers, multi_avg_fn=get_ema_multi_avg_fn(self.WEIGHT_MEMORY))
        moving = [parameter for parameter in layers.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.AdamW(moving, learning_rate, weight_decay=self.WEIGHT_DECAY, fused=True)

    def train(self, n_epochs: int) -> None:
        """Some epochs more; calling it twice with 4 is calling it once with 8."""
        self._layers.train()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(self._random_state)
            for _ in range(n_epochs):
                self._epoch += 1
                for group in self._optimiser.param_groups:
                    group["lr"] = self._learning_rate * min(1.0, self._epoch / self.WARMUP_EPOCHS)
                _step(self._layers, self._optimiser, self._inputs, self._values, self._variances)
                self._averaged.update_parameters(self._layers)
            self._random_state = torch.get_rng_state()

    @torch.no_grad()
    def predict(self, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sigma, both (n_stars,), in the unit of the values."""
        self._averaged.eval()
        mean, log_variance = self._averaged(self._scaling.pixels(flux)).double().numpy().T
        return self._scaling.centre + self._scaling.scale * mean, self._scaling.scale * np.exp(0.5 * log_variance)


def _random_layers(
    n_pixels: int, widths: tuple[int, ...], dropout: float, seed: int
) -> tuple[nn.Sequential, torch.Tensor]:
    """A network with random weights, and the state of the random numbers from which its dropout goes on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = [
            layer
            for before, after in pairwise((n_pixels, *widths))
            for layer in (nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout))
        ]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], 2)), torch.get_rng_state()


def _step(
    layers: nn.Sequential,
    optimiser: torch.optim.Optimizer,
    inputs: torch.Tensor,
    values: torch.Tensor,
    variances: torch.Tensor,
) -> None:
    """One step down the Gaussian negative log-likelihood of scaled labels with known variances, both (n_spectra,)."""
    mean, log_variance = layers(inputs).unbind(-1)
    variance = log_variance.exp() + variances
    loss = 0.5 * ((values - mean).square() / variance + variance.log()).mean()
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(layers.parameters(), MAX_GRADIENT_NORM)
    optimiser.step()


def _folds(n_stars: int, seed: int, n_folds: int = N_FOLDS) -> list[tuple[np.ndarray, np.ndarray]]:
    """(left out, kept) positions of each fold; every star is left out once, with another one."""
    folds = KFold(min(n_folds, n_stars // 2), shuffle=True, random_state=seed)
    return [(left_out, kept) for kept, left_out in folds.split(np.empty(n_stars))]


BASELINES: Mapping[str, Callable[[], Baseline]] = {
    "mlp_scratch": MLP,
    "cannon": Cannon,
    "boosted_trees": BoostedTrees,
    "ridge": Ridge,
    "median": Median,
}
"""Key in `results.json` -> constructor; `mlp_pretrained` is not among them, since `PretrainedMLP` must be given its
pre-training."""
