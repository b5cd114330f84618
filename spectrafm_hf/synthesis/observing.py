"""What a telescope, and the gap between theory and nature, do to a synthetic spectrum. Only in training.

A synthetic spectrum is too clean and wrong in its own ways: line lists and atmospheres err, and every synthetic star
errs alike. A network that sees each spectrum with different errors learns to lean on what survives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..spectra import FWHM_TO_SIGMA, SPEED_OF_LIGHT


@dataclass(frozen=True)
class ObservingConditions:
    """How far each nuisance reaches; every spectrum draws its own amounts.

    Args:
        noise: Range of the 1-sigma noise per pixel, relative to the continuum; drawn evenly in its logarithm.
        continuum_wiggle: 1-sigma of a smooth multiplicative error of the continuum, 200 Angstrom long.
        velocity: 1-sigma of the residual radial velocity, km/s.
        fwhm: 1-sigma of the error of the line-spread function's FWHM, Angstrom.
        line_strength: 1-sigma of a smooth error of the line depths, natural logarithm, 60 Angstrom long.
        line_list: 1-sigma of an error of each line's depth, relative to three times the depth around it.
        missing: Largest fraction of missing pixels; drawn evenly from 0.
    """

    noise: tuple[float, float] = (0.003, 0.03)
    continuum_wiggle: float = 0.05
    velocity: float = 30.0
    fwhm: float = 0.3
    line_strength: float = 0.1
    line_list: float = 0.01
    missing: float = 0.02

    def __post_init__(self) -> None:
        amounts = {name: value for name, value in self.__dict__.items() if name != "noise"}
        if min(amounts.values()) < 0 or not 0 < self.noise[0] <= self.noise[1] or self.missing >= 1:
            raise ValueError(
                "observing conditions must be non-negative, noise an increasing positive range and missing < 1, "
                f"got {self}."
            )


WIGGLE_LENGTH, STRENGTH_LENGTH, LINE_LENGTH = 200.0, 60.0, 3.0
"""Correlation lengths, Angstrom: of flux-calibration errors, of opacity errors, of one line at 2.5 Angstrom FWHM."""


def smooth_noise(rng: np.random.Generator, n_pixels: int, length: float) -> np.ndarray:
    """Unit-variance noise at random knots every `length` pixels, linear between them; shape (n_pixels,), float32."""
    position = np.arange(n_pixels, dtype=np.float32) / np.float32(length) + np.float32(rng.random())
    knots = rng.standard_normal(int(position[-1]) + 2, dtype=np.float32)
    return np.interp(position, np.arange(knots.size, dtype=np.float32), knots).astype(np.float32)


def misjudge_lines(
    flux: np.ndarray,
    line_strength: float,
    line_list: float,
    lengths: tuple[float, float],
    generators: Sequence[np.random.Generator],
) -> np.ndarray:
    """Spectra (n_spectra, n_pixels) with wrong line depths, each in its own way: what theory does to all alike.

    Args:
        line_strength, line_list: See `ObservingConditions`.
        lengths: Correlation length of the one and of the other, pixels.
        generators: One per spectrum.
    """
    strength, depth = (
        sigma * np.stack([smooth_noise(rng, flux.shape[1], length) for rng in generators])
        for sigma, length in zip((line_strength, line_list), lengths, strict=True)
    )
    flux = 1 - (1 - flux) * np.exp(strength)
    return flux + 3 * depth * np.clip(1 - flux, 0.1, 1)


def observe(
    flux: np.ndarray,
    wavelength: np.ndarray,
    fwhm: float,
    conditions: ObservingConditions,
    generators: list[np.random.Generator],
) -> tuple[np.ndarray, np.ndarray]:
    """Observe synthetic spectra.

    Small shifts and broadenings are the first terms of their Taylor series in the flux: a velocity is a first
    derivative, a wider line-spread function half a second one.

    Args:
        flux: Normalised, shape (n_spectra, n_pixels), float32.
        wavelength: Evenly spaced pixel centres, shape (n_pixels,), vacuum Angstrom.
        fwhm: Of the line-spread function already in `flux`, Angstrom.
        conditions: How far each nuisance reaches.
        generators: One random generator per spectrum, so that a spectrum does not depend on its batch.

    Returns:
        Observed flux, float32, and good, bool, both (n_spectra, n_pixels).
    """
    n_pixels, step = wavelength.size, float(wavelength[1] - wavelength[0])

    def amounts(sigma: float) -> np.ndarray:
        return sigma * np.array([[rng.standard_normal()] for rng in generators], dtype=np.float32)

    def fields(sigma: float, length: float) -> np.ndarray:
        return sigma * np.stack([smooth_noise(rng, n_pixels, length / step) for rng in generators])

    slope = np.gradient(flux, step, axis=1)
    curvature = np.gradient(slope, step, axis=1)
    wider = np.maximum(fwhm + amounts(conditions.fwhm), 0.7 * fwhm)
    flux = flux + 0.5 * (wider**2 - fwhm**2) * FWHM_TO_SIGMA**2 * curvature
    flux = flux - amounts(conditions.velocity) / SPEED_OF_LIGHT * wavelength.astype(np.float32) * slope
    lengths = STRENGTH_LENGTH / step, LINE_LENGTH / step
    flux = misjudge_lines(flux, conditions.line_strength, conditions.line_list, lengths, generators)
    flux = flux * (1 + fields(conditions.continuum_wiggle, WIGGLE_LENGTH))

    low, high = np.log(conditions.noise)
    noise = np.exp([[rng.uniform(low, high)] for rng in generators]).astype(np.float32)
    flux = flux + noise * np.stack([rng.standard_normal(n_pixels, dtype=np.float32) for rng in generators])
    missing = np.array([[conditions.missing * rng.random()] for rng in generators], dtype=np.float32)
    good = np.stack([rng.random(n_pixels, dtype=np.float32) for rng in generators]) >= missing
    return flux.astype(np.float32), good
