"""What every source of synthetic spectra looks like from outside, so that one can stand in for another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Synthesizer(Protocol):
    """Labels -> normalised flux on one wavelength grid.

    Attributes:
        label_names: Order of the columns of the labels, names of `labels.LABELS` and nuisances.
        bounds: Label name -> lowest and highest value that can be synthesized, K or dex.
        wavelength: Pixel centres, shape (n_pixels,), vacuum Angstrom, rest frame, float64, increasing.
    """

    @property
    def label_names(self) -> tuple[str, ...]: ...

    @property
    def bounds(self) -> Mapping[str, tuple[float, float]]: ...

    @property
    def wavelength(self) -> np.ndarray: ...

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Flux (n_stars, n_pixels), float32, continuum near 1, for labels (n_stars, n_labels) in K and dex.

        Raises:
            ValueError: Labels outside `bounds`; names the bounds.
        """
        ...


def check_bounds(labels: np.ndarray, bounds: Mapping[str, tuple[float, float]], knows: str, otherwise: str) -> None:
    """Refuse labels outside the bounds of a synthesizer; NaN lies outside.

    Args:
        labels: Shape (n_stars, n_labels), columns in the order of `bounds`.
        bounds: Label name -> range, K or dex.
        knows, otherwise: First and last words of the message: who says no, and what to do.

    Raises:
        ValueError: Names the first label outside, its bounds and what came, with units.
    """
    for column, (name, (low, high)) in enumerate(bounds.items()):
        values, unit = labels[:, column], "K" if name == "teff" else "dex"
        if not ((values >= low) & (values <= high)).all():
            raise ValueError(
                f"{knows} {name} in [{low:g}, {high:g}] {unit}, got [{np.min(values):g}, {np.max(values):g}] {unit}. "
                f"{otherwise}"
            )
