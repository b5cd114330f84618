r"""Synthetic stars as different surveys would see them: each on its own pixels, at its own resolution.

A survey is a row of a table, not a class. All its nuisances are drawn per spectrum, from one generator per spectrum, so
that a spectrum does not depend on its batch.

On an even grid a wider Gaussian line-spread function is one factor in Fourier space, :math:`e^{-2 \pi^2 \sigma^2 f^2}`,
with the frequency :math:`f` in cycles per pixel and :math:`\sigma` the missing width in pixels. The APOGEE grid is even
in ln(wavelength), that of MILES in wavelength, so a resolving power stays constant along the one and a FWHM along the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Literal

import numpy as np
from scipy.fft import next_fast_len

from ..spectra import (
    APOGEE_RESOLVING_POWER,
    FWHM_TO_SIGMA,
    air_to_vacuum,
    apogee_wavelength,
    pixel_edges,
)
from .apogee import ApogeeSynthesizer
from .cannon import CannonSynthesizer
from .dr17_sampler import Dr17LabelSampler
from .instrument import DETECTORS
from .observing import WIGGLE_LENGTH, smooth_noise
from .sampler import LabelSampler
from .synthesizer import Synthesizer


@dataclass(frozen=True)
class Survey:
    """What all spectra of one instrument share.

    Args:
        name: As in the dataset's column `survey`.
        even_in: What the pixels are even in.
        resolving_power: lambda / FWHM at the middle of the range.
        label_names: What the synthesizer needs, in its order; the first three are teff, logg, fe_h.
        wavelength: Pixel centres, shape (n_pixels,), vacuum Angstrom, rest frame.
        segments: Runs of pixels without a gap.
        draw: Labels of one star, shape (len(label_names),), K and dex.
        make_synthesizer: Labels -> flux on `wavelength` at the survey's own resolution.
    """

    name: str
    even_in: Literal["ln_wavelength", "wavelength"]
    resolving_power: float
    label_names: tuple[str, ...]
    wavelength: np.ndarray = field(repr=False)
    segments: tuple[slice, ...]
    draw: Callable[[np.random.Generator], np.ndarray] = field(repr=False)
    make_synthesizer: Callable[[], Synthesizer] = field(repr=False)

    @cached_property
    def synthesizer(self) -> Synthesizer:
        """Labels -> flux on `wavelength` at the survey's own resolution; made when first asked for."""
        return self.make_synthesizer()

    def resolving_power_at(self, factor: np.ndarray) -> np.ndarray:
        """lambda / FWHM in each pixel, (n_spectra, n_pixels), for line-spread functions `factor` times as wide."""
        own = np.full(self.wavelength.size, self.resolving_power)
        if self.even_in == "wavelength":
            own *= self.wavelength / np.median(self.wavelength)
        return own / factor[:, None]

    def widen(self, flux: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Spectra (n_spectra, n_pixels) through line-spread functions `factor` (n_spectra,) >= 1 times as wide."""
        own = FWHM_TO_SIGMA / self.resolving_power
        if self.even_in == "ln_wavelength":
            step = float(np.log(self.wavelength[1] / self.wavelength[0]))
        else:
            step = float(np.median(np.diff(self.wavelength)) / np.median(self.wavelength))
        sigma = own / step * np.sqrt(np.maximum(factor**2 - 1, 0.0))
        reach = int(np.ceil(4 * sigma.max())) + 1
        seen = np.empty_like(flux)
        for segment in self.segments:
            width = segment.stop - segment.start
            n = next_fast_len(width + 2 * reach, real=True)
            padded = np.pad(flux[:, segment], ((0, 0), (reach, n - width - reach)), mode="edge")
            damped = np.exp(-2 * (np.pi * sigma[:, None] * np.fft.rfftfreq(n)) ** 2)
            wide = np.fft.irfft(np.fft.rfft(padded, axis=1) * damped, n, axis=1)
            seen[:, segment] = wide[:, reach : reach + width]
        return seen


_ANYWHERE = LabelSampler()
_dr17 = cache(Dr17LabelSampler)  # reads its mixture from a file, once and only where such stars are drawn


def draw_apogee_star(rng: np.random.Generator) -> np.ndarray:
    """Half of the stars as DR17 has them, half spread over the box, so that what is rare there is familiar too."""
    if rng.random() < 0.5:
        return _dr17().draw(rng, 1)[0]
    three = _ANYWHERE.draw(rng)
    alpha = 0.3 * rng.random() * min(max(-three[2], 0.0), 1.0)
    abundances = np.clip(alpha + 0.12 * rng.standard_normal(2), -0.4, 0.8)
    nuisances = np.clip(np.array([0.0, 0.1, 0.75 * abundances[0]]) + 0.12 * rng.standard_normal(3), -0.5, 0.8)
    return np.concatenate([three, abundances, nuisances])


_MILES_WAVELENGTH = air_to_vacuum(3540.5 + 0.9 * np.arange(4300))
_MILES_RESOLVING_POWER = 2190.0  # FWHM 2.5 Angstrom at 5,475


def miles_synthesizer() -> CannonSynthesizer:
    return CannonSynthesizer(_MILES_WAVELENGTH, fwhm=float(np.median(_MILES_WAVELENGTH)) / _MILES_RESOLVING_POWER)


OPTICAL_WAVELENGTH = 3584.5 + np.arange(5504.0)
"""Pixels of 1 Angstrom, 3,584-9,088 vacuum Angstrom: what MILES, STELIB and LAMOST have in common."""
_OPTICAL_FWHM = 2.0  # Angstrom; spectra are widened from there


def optical_synthesizer() -> CannonSynthesizer:
    return CannonSynthesizer(OPTICAL_WAVELENGTH, fwhm=_OPTICAL_FWHM)


SURVEYS = {
    survey.name: survey
    for survey in (
        Survey(
            name="apogee",
            even_in="ln_wavelength",
            resolving_power=APOGEE_RESOLVING_POWER,
            label_names=Dr17LabelSampler.label_names,
            wavelength=apogee_wavelength(),
            segments=DETECTORS,
            draw=draw_apogee_star,
            make_synthesizer=ApogeeSynthesizer,
        ),
        Survey(
            name="miles",
            even_in="wavelength",
            resolving_power=_MILES_RESOLVING_POWER,
            label_names=CannonSynthesizer.label_names,
            wavelength=_MILES_WAVELENGTH,
            segments=(slice(0, _MILES_WAVELENGTH.size),),
            draw=_ANYWHERE.draw,
            make_synthesizer=miles_synthesizer,
        ),
        Survey(
            name="optical",
            even_in="wavelength",
            resolving_power=float(np.median(OPTICAL_WAVELENGTH)) / _OPTICAL_FWHM,
            label_names=CannonSynthesizer.label_names,
            wavelength=OPTICAL_WAVELENGTH,
            segments=(slice(0, OPTICAL_WAVELENGTH.size),),
            draw=_ANYWHERE.draw,
            make_synthesizer=optical_synthesizer,
        ),
    )
}


@dataclass(frozen=True)
class SurveyConditions:
    """How far each nuisance of a survey reaches; every spectrum draws its own amounts.

    Args:
        snr: Range of the signal-to-noise ratio per pixel, drawn evenly in its logarithm.
        wider: Range of the factor by which the line-spread function is widened, drawn evenly in its logarithm; 12.5
            makes R = 1,800 of APOGEE's 22,500.
        widened: Share of spectra whose line-spread function is widened at all.
        continuum: 1-sigma of a smooth multiplicative error, 200 Angstrom long.
        velocity: 1-sigma of the residual radial velocity, in pixels of the grid.
        missing: Largest fraction of missing pixels; drawn evenly from 0.
        unknown: Share of spectra whose uncertainty is not told, and of those whose resolving power is not.
    """

    snr: tuple[float, float] = (20.0, 300.0)
    wider: tuple[float, float] = (1.0, 12.5)
    widened: float = 0.5
    continuum: float = 0.02
    velocity: float = 0.1
    missing: float = 0.05
    unknown: float = 0.2

    def __post_init__(self) -> None:
        amounts = (self.continuum, self.velocity, self.missing, self.unknown)
        ranges = 0 < self.snr[0] <= self.snr[1] and 1 <= self.wider[0] <= self.wider[1]
        shares = max(self.missing, self.unknown, self.widened) <= 1 and self.widened >= 0 and self.missing < 1
        if min(amounts) < 0 or not ranges or not shares:
            raise ValueError(
                "survey conditions must be non-negative, snr an increasing positive range, wider one from 1 on, "
                f"widened and unknown at most 1 and missing < 1, got {self}."
            )


@dataclass(frozen=True)
class Seen:
    """Spectra as a survey saw them; arrays (n_spectra, n_pixels) on its pixels.

    Attributes:
        flux: Continuum near 1, float32.
        flux_error: 1-sigma; 0 = not told.
        good: True = use.
        resolving_power: lambda / FWHM; 0 = not told.
    """

    flux: np.ndarray
    flux_error: np.ndarray
    good: np.ndarray
    resolving_power: np.ndarray


def observe_survey(
    flux: np.ndarray, survey: Survey, conditions: SurveyConditions, generators: Sequence[np.random.Generator]
) -> Seen:
    """Observe synthetic spectra (n_spectra, n_pixels) of a survey's own resolution; one generator per spectrum."""
    wavelength = survey.wavelength
    width = float(np.median(np.subtract(*pixel_edges(wavelength)[::-1])))
    drawn = np.array([[rng.random(), rng.random(), *rng.random(3)] for rng in generators])
    sharpest, widest = conditions.wider
    chosen = drawn[:, 0] / max(conditions.widened, 1e-9)
    factor = np.where(chosen < 1, sharpest * (widest / sharpest) ** np.minimum(chosen, 1), 1.0)
    snr = conditions.snr[0] * (conditions.snr[1] / conditions.snr[0]) ** drawn[:, 1]
    told = drawn[:, 2:4] >= conditions.unknown

    seen = survey.widen(flux, factor) if factor.max() > 1 else flux.astype(np.float32)
    shift = conditions.velocity * np.array([[rng.standard_normal()] for rng in generators], dtype=np.float32)
    seen = seen - shift * np.gradient(seen, axis=1)
    wiggle = np.stack([smooth_noise(rng, wavelength.size, WIGGLE_LENGTH / width) for rng in generators])
    seen *= 1 + np.float32(conditions.continuum) * wiggle
    sigma = np.broadcast_to((1 / snr)[:, None], seen.shape).astype(np.float32)
    seen += sigma * np.stack([rng.standard_normal(wavelength.size, dtype=np.float32) for rng in generators])
    lost = np.stack([rng.random(wavelength.size, dtype=np.float32) for rng in generators])
    good = lost >= conditions.missing * drawn[:, 4:5]
    return Seen(
        seen.astype(np.float32),
        np.where(told[:, :1], sigma, np.float32(0)),
        good,
        np.where(told[:, 1:], survey.resolving_power_at(factor), 0.0).astype(np.float32),
    )
