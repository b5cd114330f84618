r"""Predicted labels -> the spectrum they stand for, held against the one that was read.

A network answers whatever it is shown. The Cannon grid (`synthesis.cannon`) knows nothing of the network: where its
spectrum of the predicted star explains what was read, the answer has a witness. Where the same star on the move does
so, or with wider lines, or a hot star, or no star at all, the input is not what it was taken for.

The spectrum f of a star that moves at v is compared with the synthetic T, both divided by the pseudo-continuum of the
extractor (that of the synthetic one is c),

.. math:: \chi^2(v) = \sum_i w_i \Big[ f_i - \frac{T(\lambda_i (1 - v/\mathrm{c_0}))}{c_i} \Big]^2 .

On nodes even in ln(wavelength) a velocity is a shift, so that all velocities at once are two correlations, done by fast
Fourier transforms: of the data, shared out from the pixels to the nodes, with T and with T^2 (cross-correlation:
Simkin 1974, A&A 31, 129; Tonry & Davis 1979, AJ 84, 1511). A wider line-spread function is a factor in Fourier space.
Pixels err alike, by an amount that nobody need know: explanations a and b of N pixels are as likely as

.. math:: \ln \frac{L_b}{L_a} = \frac{N}{2} \ln \frac{\chi^2_a}{\chi^2_b} .
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .spectra import FWHM_TO_SIGMA, SPEED_OF_LIGHT
from .synthesis.cannon import BOUNDS, LABEL_NAMES, CannonSynthesizer

FASTEST = 600.0
"""km/s, of either sign: velocities that are tried."""

NODES_PER_FWHM = 4
"""Of the sharpest line-spread function, so that lines are smooth on the scale of a node."""

RUNG = 1.3
"""Line-spread functions of a `Reconstruction` are in steps of this factor in width."""

WIDER_RUNGS = 6
"""Steps beyond what was told that are tried, 4.8 times as wide: a galaxy's lines, or a resolving power told wrong."""

GRID_RANGE = (3020.0, 17_960.0)
"""Vacuum Angstrom: where the Cannon grid reaches, with room for a line-spread function."""

FLUX_LIMITS = (0.01, 1.1)
"""Cubic terms overshoot in the deepest lines and above the continuum."""

HOT_STARS = np.array([[teff, 4.0, 0.0] for teff in (9500.0, 12_000.0, 16_000.0, 22_000.0, 30_000.0)])
"""Teff, logg, fe_h in K, dex, dex of the hot stars that are tried."""


@dataclass(frozen=True)
class Explained:
    """One spectrum, explained by the star that was predicted, and by others.

    Attributes:
        velocity: Of the star that was predicted, where it explains the spectrum best; km/s, positive = redder.
        velocity_error: Its 1-sigma, km/s, from the curvature of chi^2 where the pixels err as they do.
        residual: Rms of what is left at that velocity, in units of the continuum.
        wider: ln(L / L_star) of the same star with wider lines than told, or than any spectrum had in training.
        widening: By what factor they are wider, of those tried.
        hot_star: ln(L / L_star) of the best of `HOT_STARS`.
        hot_teff: Its Teff, K.
        no_lines: ln(L / L_star) of a continuum alone.
    """

    velocity: float
    velocity_error: float
    residual: float
    wider: float
    widening: float
    hot_star: float
    hot_teff: float
    no_lines: float


def reachable(labels: np.ndarray) -> np.ndarray:
    """The nearest stars that the cool Cannon model knows; labels (n, 3): teff, logg, fe_h in K, dex, dex."""
    lowest, highest = np.array([BOUNDS["cool"][name] for name in LABEL_NAMES]).T
    near = np.clip(labels, lowest, highest)
    # Above 5,500 K it was trained on logg >= 3.5 only; a little beyond is safe.
    near[:, 1] = np.maximum(near[:, 1], np.interp(near[:, 0], [5500, 6000], [0.0, 3.2]))
    return near


def between_rungs(ladder: np.ndarray, rung: np.ndarray) -> np.ndarray:
    """A ladder (..., n_rungs, n_nodes) at the fractional rung of each node (n_nodes,) -> (..., n_nodes).

    Linear in the square of the width: a line-spread function that is a little wider adds a second derivative, in
    proportion to that.
    """
    rung = np.clip(rung, 0, ladder.shape[-2] - 1)
    lower = np.minimum(rung.astype(int), ladder.shape[-2] - 2)
    share, node = (RUNG ** (2 * (rung - lower)) - 1) / (RUNG**2 - 1), np.arange(ladder.shape[-1])
    return (1 - share) * ladder[..., lower, node] + share * ladder[..., lower + 1, node]


class Reconstruction:
    """Synthetic spectra of one range of wavelengths, on nodes even in ln(wavelength), at any resolving power.

    Args:
        low, high: The range, vacuum Angstrom; cut to `GRID_RANGE`.
        resolving_power: lambda / FWHM of training spectra there: lowest and highest.
    """

    def __init__(self, low: float, high: float, resolving_power: tuple[float, float]):
        least, most = resolving_power
        self.most = most
        self.step = 1 / (NODES_PER_FWHM * most)
        self.n_shifts = int(FASTEST / SPEED_OF_LIGHT / self.step)
        reach = np.exp((self.n_shifts + 1) * self.step)
        ends = max(low / reach, GRID_RANGE[0]), min(high * reach, GRID_RANGE[1])
        self.wavelength = np.exp(np.arange(np.log(ends[0]), np.log(ends[1]), self.step))
        self.inside = self.wavelength[0] * reach, self.wavelength[-1] / reach
        self.n_trained = int(np.ceil(np.log(most / least) / np.log(RUNG))) + 1
        self.powers = most * RUNG ** -np.arange(float(self.n_trained + WIDER_RUNGS))

    @cached_property
    def _cool(self) -> CannonSynthesizer:
        return CannonSynthesizer(self.wavelength, resolving_power=self.most)

    @cached_property
    def _hot_ladder(self) -> np.ndarray:
        hot = CannonSynthesizer(self.wavelength, resolving_power=self.most, model="hot")
        return self._ladder(hot(HOT_STARS))

    def _ladder(self, flux: np.ndarray) -> np.ndarray:
        """Flux (n_spectra, n_nodes) at the highest resolving power -> at each of `powers`, (..., n_rungs, n_nodes)."""
        flux = np.clip(flux, *FLUX_LIMITS).astype(np.float64)
        sigma = FWHM_TO_SIGMA * np.sqrt(np.maximum(self.powers**-2 - self.most**-2, 0.0)) / self.step
        pad = int(4 * sigma[-1]) + 1
        n = next_fast_len(flux.shape[1] + 2 * pad, real=True)
        padded = np.pad(flux, ((0, 0), (pad, n - flux.shape[1] - pad)), mode="edge")
        damping = np.exp(-2 * (np.pi * sigma[:, None] * rfftfreq(n)) ** 2)
        return irfft(rfft(padded)[:, None] * damping, n)[..., pad : pad + flux.shape[1]]

    def explain(
        self, extractor: SpectraFMFeatureExtractor, row: Mapping[str, np.ndarray], labels: np.ndarray
    ) -> Explained | None:
        """Hold one prepared spectrum against its labels.

        Args:
            extractor: That prepared it.
            row: Of `SpectraFMFeatureExtractor.tokenise`: flux, wavelength, attention_mask, (n_pixels,), and, if told,
                flux_error and resolving_power.
            labels: Predicted teff, logg, fe_h in K, dex, dex, shape (3,).

        Returns:
            None where the labels are not known, or no good pixel lies in the range.
        """
        within = (row["wavelength"] > self.inside[0]) & (row["wavelength"] < self.inside[1])
        if not (row["attention_mask"][within] > 0).any() or not np.isfinite(labels).all():
            return None
        seen = _Seen(
            self, extractor, *(np.asarray(row.get(name, 0 * within), dtype=np.float64)[within] for name in _Seen.READS)
        )
        star = self._ladder(self._cool(reachable(labels[None])))[0]
        tried, n_trained = seen.rungs()
        base = tried[0]
        templates = np.concatenate([between_rungs(star, base)[None], between_rungs(self._hot_ladder, base)])
        continua = seen.continua(templates)
        chi2 = seen.chi2(np.stack([between_rungs(star, rung) for rung in tried]), continua[:1])
        hot = seen.chi2(templates[1:], continua[1:]).min(axis=1)
        lowest = chi2.min(axis=1)
        best = int(lowest[:n_trained].argmin())
        velocity, velocity_error = seen.velocity(chi2[best])

        def log_ratio(other: float) -> float:
            return float(seen.n / 2 * np.log(lowest[best] / max(other, 1e-12)))

        return Explained(
            velocity=velocity,
            velocity_error=velocity_error,
            residual=float(np.sqrt(lowest[best] / seen.n)),
            wider=log_ratio(lowest[n_trained:].min()),
            widening=float(RUNG ** (1 + lowest[n_trained:].argmin())),
            hot_star=log_ratio(hot.min()),
            hot_teff=float(HOT_STARS[hot.argmin(), 0]),
            no_lines=log_ratio(seen.flat),
        )


class _Seen:
    """The pixels of one spectrum, and what the nodes see of them. Bad ones stay, with a weight of 0, so that all
    spectra of a survey have the same pixels, and their pseudo-continuum is prepared once."""

    READS = ("wavelength", "flux", "attention_mask", "flux_error", "resolving_power")

    def __init__(
        self,
        reconstruction: Reconstruction,
        extractor: SpectraFMFeatureExtractor,
        wavelength: np.ndarray,
        flux: np.ndarray,
        attention_mask: np.ndarray,
        flux_error: np.ndarray,
        resolving_power: np.ndarray,
    ):
        self.grid, self.extractor = reconstruction, extractor
        self.wavelength, self.resolving_power = wavelength, resolving_power
        self.good = attention_mask > 0
        self.flux = extractor.unscale(flux, wavelength)
        self.weight = self.good.astype(np.float64)
        if (known := self.good & (flux_error > 0)).any():
            # Worse pixels than most count less; better ones no more, since models err by more than photons do.
            self.weight[known] = np.minimum(np.median(flux_error[known]) / flux_error[known], 1.0) ** 2
        self.n = self.weight.sum()
        self.flat = float((self.weight * (self.flux - 1) ** 2).sum())
        position = (np.log(wavelength) - np.log(reconstruction.wavelength[0])) / reconstruction.step
        self._lower = position.astype(int)
        self._share = position - self._lower

    def rungs(self) -> tuple[list[np.ndarray], int]:
        """Rungs to be tried, each (n_nodes,), and how many of them, the first ones, are what the spectrum may have."""
        grid, known = self.grid, self.resolving_power > 0
        if not known.any():
            return [np.full(grid.wavelength.size, float(rung)) for rung in range(grid.powers.size)], grid.n_trained
        rung = np.log(grid.most / self.resolving_power[known]) / np.log(RUNG)
        told = np.interp(grid.wavelength, self.wavelength[known], rung)
        return [told + extra for extra in range(WIDER_RUNGS + 1)], 1

    def continua(self, templates: np.ndarray) -> np.ndarray:
        """Pseudo-continua (n, n_pixels) that the extractor finds in templates (n, n_nodes)."""
        flux = (1 - self._share) * templates[:, self._lower] + self._share * templates[:, self._lower + 1]
        good = np.broadcast_to(self.good, flux.shape)
        normalised, good = self.extractor.normalise(flux, good, self.wavelength)
        return np.where(good, flux / np.where(good, normalised, 1.0), 1.0)

    def chi2(self, templates: np.ndarray, continua: np.ndarray) -> np.ndarray:
        """At all velocities, from the most negative one: templates (n, n_nodes), continua (n or 1, n_pixels).

        Between nodes a template is linear, T = (1 - s) T_k + s T_k+1, and so T^2 has a term T_k T_k+1 as well.
        """
        size, share = self.grid.wavelength.size, self._share
        n = next_fast_len(size, real=True)
        lags = np.arange(-self.grid.n_shifts, self.grid.n_shifts + 1)
        following = np.roll(templates, -1, axis=1)

        def correlated(values: np.ndarray, lower: np.ndarray, upper: np.ndarray, of: np.ndarray) -> np.ndarray:
            """Values (n or 1, n_pixels), in shares of the nodes below and above each pixel, with `of` (n, n_nodes)."""
            on_nodes = [
                np.bincount(self._lower, one * lower, size) + np.bincount(self._lower + 1, one * upper, size)
                for one in values
            ]
            return irfft(rfft(np.stack(on_nodes), n) * np.conj(rfft(of, n)), n)[:, lags]

        cross = correlated(self.weight * self.flux / continua, 1 - share, share, templates)
        weight = self.weight / continua**2
        own = correlated(weight, (1 - share) ** 2, share**2, templates**2)
        mixed = correlated(weight, 2 * share * (1 - share), 0 * share, templates * following)
        return np.maximum((self.weight * self.flux**2).sum() - 2 * cross + own + mixed, 1e-9)

    def velocity(self, chi2: np.ndarray) -> tuple[float, float]:
        """km/s and its 1-sigma error, from the parabola through the three lowest values of chi2 (n_velocities,)."""
        at = int(np.clip(chi2.argmin(), 1, chi2.size - 2))
        before, lowest, after = chi2[at - 1 : at + 2]
        curvature = max(before - 2 * lowest + after, 1e-9)
        offset = np.clip(0.5 * (before - after) / curvature, -1, 1)
        node = self.grid.step * SPEED_OF_LIGHT
        error = np.sqrt(2 * lowest / self.n / curvature)
        return float(node * (at - self.grid.n_shifts + offset)), float(node * error)
