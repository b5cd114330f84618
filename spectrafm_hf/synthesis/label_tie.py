"""Tying the label scale of synthetic spectra to that of real ones, in a window where both are known.

A synthetic star of [Fe/H] = 0 has deeper lines than a real one: atmospheres, line lists and microturbulence err alike
in every window. A network that learned from synthetic spectra therefore reads real stars on a *synthetic* label scale.
Where labelled real stars exist (stage 2's blue window), their labels against the network's reading of them show how the
two scales hang together. Synthetic spectra relabelled with that relation carry the real scale into windows where no
label is known (stage 2's replay, and the red window of stage 3).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LabelTie:
    """Observed label = synthetic label + quadratic polynomial of all synthetic labels.

    Attributes:
        label_names: Order of the columns.
        center, scale: Labels are scaled by these first; K and dex.
        coefficients: Shape (n_terms, n_labels): constant, linear and quadratic terms of the scaled labels.
        low, high: Scaled labels beyond are pulled in before the polynomial is evaluated: it must not extrapolate.
        n_stars: Real stars behind it.
    """

    label_names: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n_stars: int

    @classmethod
    def fit(
        cls,
        label_names: Sequence[str],
        center: Sequence[float],
        scale: Sequence[float],
        as_read: np.ndarray,
        published: np.ndarray,
        strength: float = 3.0,
    ) -> LabelTie:
        """Fit the relation by robust ridge regression (Huber loss, scikit-learn).

        Args:
            label_names, center, scale: Of the feature extractor.
            as_read: The synthetic-trained network's reading of real stars, shape (n_stars, n_labels), K and dex.
            published: Their labels, same shape; NaN = missing.
            strength: Of the ridge penalty on the polynomial's coefficients.

        Raises:
            ValueError: Fewer than 30 stars with all labels.
        """
        from sklearn.linear_model import HuberRegressor

        complete = np.isfinite(published).all(axis=1)
        if complete.sum() < 30:
            raise ValueError(
                f"tying label scales needs at least 30 stars with {', '.join(label_names)}, got {int(complete.sum())}."
            )
        read = (as_read[complete] - np.asarray(center)) / np.asarray(scale)
        difference = (published - as_read)[complete] / np.asarray(scale)
        terms = _terms(read)
        columns = []
        for j in range(len(label_names)):
            huber = HuberRegressor(alpha=strength, fit_intercept=True, max_iter=1000).fit(
                terms[:, 1:], difference[:, j]
            )
            columns.append([float(huber.intercept_), *(float(c) for c in huber.coef_)])
        low, high = np.percentile(read, [1, 99], axis=0)
        rows = tuple(zip(*columns, strict=True))
        reach = (tuple(map(float, low)), tuple(map(float, high)))
        return cls(tuple(label_names), tuple(center), tuple(scale), rows, *reach, n_stars=int(complete.sum()))

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Synthetic labels (n, n_labels) -> labels on the observed scale, same shape; K and dex."""
        scaled = (labels - np.asarray(self.center)) / np.asarray(self.scale)
        correction = _terms(np.clip(scaled, self.low, self.high)) @ np.asarray(self.coefficients)
        return labels + correction * np.asarray(self.scale)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> LabelTie:
        stored: dict[str, Any] = json.loads(path.read_text())
        stored["coefficients"] = tuple(map(tuple, stored["coefficients"]))
        as_tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**as_tuples)


def _terms(scaled: np.ndarray) -> np.ndarray:
    """Constant, linear and all quadratic terms: (n, n_labels) -> (n, n_terms)."""
    n_labels = scaled.shape[1]
    quadratic = [scaled[:, i] * scaled[:, j] for i in range(n_labels) for j in range(i, n_labels)]
    return np.column_stack([np.ones(len(scaled)), scaled, *quadratic])
