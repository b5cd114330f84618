"""Synthetic spectra from the Cannon grid of D. Nidever: teff, logg, fe_h -> normalised flux, 3,000-17,980 Angstrom.

Two cubic Cannon models (Ness et al. 2015, ApJ 808, 16) of LTE spectra, `cool` (3,500-8,000 K) and `hot`
(8,000-40,000 K), taken from the package thedoppler (MIT; LICENSE.cannon_grid beside this file). Every spectrum is

    flux = vectorizer(labels) @ rotation @ components,

linear in 20 component spectra. A line-spread function and a change of grid are linear too, so they are applied to the
20 components once, and a spectrum afterwards costs 20 multiplications per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from scipy.ndimage import gaussian_filter1d

from ..spectra import FWHM_TO_SIGMA, air_to_vacuum, rebin, vacuum_to_air
from .synthesizer import check_bounds

LABEL_NAMES = ("teff", "logg", "fe_h")
GRID_FILE = Path(__file__).with_name("cannon_grid.safetensors")
BOUNDS = {
    "cool": {"teff": (3500.0, 8000.0), "logg": (0.0, 5.0), "fe_h": (-2.5, 0.5)},
    "hot": {"teff": (8000.0, 40_000.0), "logg": (2.5, 5.0), "fe_h": (-2.5, 0.5)},
}
"""Range of the training labels of each model: K, dex, dex. Above 5,500 K the cool model knows logg >= 3.5 only."""


def vectorize(labels: np.ndarray, fiducial: np.ndarray, label_scale: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Cubic terms of the scaled labels: labels (n, 3) in K, dex, dex; powers (n_terms, 3) -> (n, n_terms)."""
    scaled = (np.asarray(labels, dtype=np.float64) - fiducial) / label_scale
    return np.prod(scaled[:, None, :] ** powers[None], axis=-1)


def check_labels(labels: np.ndarray, model: str = "cool") -> None:
    """Refuse labels the model was not trained for.

    Raises:
        ValueError: A label lies outside `BOUNDS[model]`; names the bounds, with units.
    """
    knows = f"the {model} Cannon model was trained for"
    check_bounds(labels, BOUNDS[model], knows, "Stars outside need another synthesizer.")


@dataclass(frozen=True)
class CannonSynthesizer:
    """The Cannon grid seen by one instrument: a wavelength grid and a line-spread function.

    Args:
        wavelength: Pixel centres wanted, shape (n_pixels,), vacuum Angstrom, rest frame, increasing.
        fwhm: Full width at half maximum of a Gaussian line-spread function, Angstrom, the same everywhere. Or:
        resolving_power: lambda / FWHM, the same everywhere. Exactly one of the two.
        model: `cool` (3,500-8,000 K) or `hot` (8,000-40,000 K).

    Raises:
        ValueError: Wavelengths outside the grid, both or neither of fwhm and resolving_power, unknown model.
    """

    wavelength: np.ndarray
    fwhm: float | None = None
    resolving_power: float | None = None
    model: str = "cool"

    label_names = LABEL_NAMES

    def __post_init__(self) -> None:
        if (self.fwhm is None) == (self.resolving_power is None):
            raise ValueError(
                "give either fwhm (Angstrom) or resolving_power (lambda / FWHM), not both and not neither."
            )
        if self.model not in BOUNDS:
            raise ValueError(f"model must be one of {', '.join(BOUNDS)}, got {self.model!r}.")
        width = self.fwhm if self.fwhm is not None else float(self.wavelength[-1]) / float(self.resolving_power or 1)
        with safe_open(GRID_FILE, framework="np") as grid:
            start, step = (float(grid.metadata()[key]) for key in ("wavelength_start", "wavelength_step"))
            stored = grid.get_slice(f"{self.model}.components")
            n_native = stored.get_shape()[1]
            # Angstrom on either side, for the wings of the line-spread function.
            margin = 4 * width * FWHM_TO_SIGMA + 2.0
            low, high = vacuum_to_air(self.wavelength[[0, -1]]) + np.array([-margin, margin])
            first, last = int(np.floor((low - start) / step)), int(np.ceil((high - start) / step)) + 1
            if first < 0 or last > n_native:
                reach = air_to_vacuum(np.array([start, start + step * (n_native - 1)])) + np.array([margin, -margin])
                raise ValueError(
                    f"the Cannon grid reaches [{reach[0]:.0f}, {reach[1]:.0f}] vacuum Angstrom at this resolution, got "
                    f"[{self.wavelength[0]:.6g}, {self.wavelength[-1]:.6g}]."
                )
            components = stored[:, first:last] * grid.get_tensor(f"{self.model}.component_scale")[:, None]
            table = {
                name: grid.get_tensor(f"{self.model}.{name}")
                for name in ("rotation", "powers", "fiducial", "label_scale")
            }
        native = air_to_vacuum(start + step * np.arange(first, last))
        seen, components = self._convolve(native, components)
        observed, _ = rebin(seen, components, np.ones(seen.size, bool), self.wavelength)
        object.__setattr__(self, "_coefficients", table["rotation"] @ observed)
        object.__setattr__(self, "_table", table)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Label name -> range the model was trained for, K and dex."""
        return BOUNDS[self.model]

    def _convolve(self, native: np.ndarray, components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gaussian line-spread function: constant in Angstrom, or constant in ln(wavelength) for a resolving power."""
        if self.fwhm is not None:
            sigma = self.fwhm * FWHM_TO_SIGMA / np.median(np.diff(native))
            return native, gaussian_filter1d(components, sigma, axis=-1, mode="nearest")
        step = 5e-6  # 0.1 Angstrom at the red end; nodes at its multiples, so that a window sees the nodes of the whole
        uniform = np.exp(step * np.arange(np.ceil(np.log(native[0]) / step), np.log(native[-1]) / step))
        sigma = FWHM_TO_SIGMA / float(self.resolving_power or 1) / step
        on_log = np.stack([np.interp(uniform, native, component) for component in components])
        return uniform, gaussian_filter1d(on_log, sigma, axis=-1, mode="nearest")

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Normalised flux for labels (n_stars, 3) in K, dex, dex -> (n_stars, n_pixels), float32, continuum near 1.

        Raises:
            ValueError: Labels outside the model's training range.
        """
        labels = np.atleast_2d(labels)
        check_labels(labels, self.model)
        table, coefficients = self.__dict__["_table"], self.__dict__["_coefficients"]
        terms = vectorize(labels, table["fiducial"], table["label_scale"], table["powers"])
        return terms.astype(np.float32) @ coefficients.astype(np.float32)
