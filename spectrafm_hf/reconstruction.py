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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.sparse import csr_array

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

SAME_RUNG = 1e-4
"""Rungs that differ by less are one: a line-spread function 0.003 % wider."""

BLOCK = 64
"""Spectra whose synthetic ones are made at once."""

KEPT = 8
"""Sets of pixels that are kept prepared: one per survey, and some that lack a token."""

MOST_STEPS = 20
"""Nodes that the exact minimum of chi^2 may lie from the coarse one, at most."""

MOST_STARTS = 32
"""Coarse minima, the lowest ones, that are followed down: of a spectrum without lines, many are as good."""

THIN = 2
"""Every so many nodes are enough to find the minimum: two per FWHM of the sharpest line-spread function."""

COARSE_SIGMAS = 4.0
"""What coarse chi^2 is taken to be off by at most, in standard deviations of what it leaves out."""

LIKE_HOT = 1e-3
"""Share of sum w T^2 that a hot star of a rung like that of the spectrum (`LIKE_RUNG`) differs by from its own."""

UNSHARP = 2.0
"""Nodes: of a minimum that is wider, float32 does not tell how wide it is."""

SPARSE = (0, 2, 5)
"""Of the wider rungs, those that are tried first."""

SPARSE_SHARE = 0.25
"""Of the log-likelihood ratio that matters: where it is reached between the rungs of `SPARSE`, one of them has more
than this. Chi^2 grows with the square of how much a line-spread function is too narrow or too wide: where a width fits
that is 1.7 times that of the star, one of 1.3 times has gained half of it."""

LIKE_RUNG = 0.1
"""Rungs that differ by less have hot stars that are alike: a line-spread function 2.7 % wider."""


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
    """A ladder (..., n_rungs, n_nodes) at fractional rungs (..., n_nodes), or (..., 1) for all nodes -> (..., n_nodes).

    Linear in the square of the width: a line-spread function that is a little wider adds a second derivative, in
    proportion to that.
    """
    rung = np.clip(rung, 0, ladder.shape[-2] - 1)
    lower = np.minimum(rung.astype(int), ladder.shape[-2] - 2)
    share = (np.exp(2 * np.log(RUNG) * (rung - lower).astype(ladder.dtype)) - 1) / ladder.dtype.type(RUNG**2 - 1)
    if rung.shape[-1] == 1:
        below, above = ladder[..., lower[..., 0], :], ladder[..., lower[..., 0] + 1, :]
    else:
        n_nodes = ladder.shape[-1]
        flat, place = ladder.reshape(*ladder.shape[:-2], -1), lower * n_nodes + np.arange(n_nodes)
        below, above = flat.take(place, axis=-1), flat.take(place + n_nodes, axis=-1)
    between = above - below
    between *= share
    between += below
    return between


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
        self._kept: list[_Pixels] = []

    def rung_of(self, resolving_power: Any) -> Any:
        """Steps of `RUNG` in width from the highest resolving power; any shape."""
        return np.log(self.most / np.asarray(resolving_power, dtype=np.float64)) / np.log(RUNG)

    @cached_property
    def _cool(self) -> CannonSynthesizer:
        return CannonSynthesizer(self.wavelength, resolving_power=self.most)

    @cached_property
    def _hot_ladder(self) -> np.ndarray:
        hot = CannonSynthesizer(self.wavelength, resolving_power=self.most, model="hot")
        return self._ladder(hot(HOT_STARS))

    def _ladder(self, flux: np.ndarray) -> np.ndarray:
        """Flux (n_spectra, n_nodes) at the highest resolving power -> less 1, at each of `powers`, (..., n_rungs,
        n_nodes)."""
        return self._blurred(flux, self._damping)

    @cached_property
    def _padding(self) -> tuple[int, int]:
        """Nodes before a template, and in all, so that no line-spread function reaches around its ends."""
        pad = int(4 * self._sigma[-1]) + 1
        return pad, next_fast_len(self.wavelength.size + 2 * pad, real=True)

    @cached_property
    def _thin(self) -> tuple[int, int, int, int]:
        """Thin nodes; those by which a star is moved at most; those transformed together; blocks of them.

        Correlations reach no farther than the moves, so that blocks of nodes can be transformed, and their products
        summed before they are transformed back.
        """
        size, reach = -(-self.wavelength.size // THIN), -(-self.n_shifts // THIN)
        n = max(256, 2 ** int(np.ceil(np.log2(4 * reach))))
        return size, reach, n, -(-size // (n - 2 * reach))

    def thinned(self, depth: np.ndarray) -> _Thin:
        """Templates less 1 (n, n_nodes), for `correlated`."""
        size, reach, n, n_blocks = self._thin
        width = n - 2 * reach
        thin = depth[:, ::THIN]
        step = np.diff(thin, axis=1)
        bend, squared = np.diff(step, axis=1), np.square(step)
        padded = np.zeros((len(depth), 2, n_blocks * width + 2 * reach), dtype=np.float32)
        padded[:, 0, reach : reach + size] = thin
        np.square(thin, out=padded[:, 1, reach : reach + size])
        # Between nodes T is linear, and T^2 is less than linear by s (1 - s) of the squared step, on average 1/6 of it.
        padded[:, 1, reach : reach + size - 1] -= squared / 6
        blocks = np.lib.stride_tricks.sliding_window_view(padded, n, axis=2)[:, :, ::width][:, :, :n_blocks]
        sums = (np.einsum("ij,ij->i", bend, bend) / 120, np.einsum("ij,ij->i", squared, squared) / 180)
        return _Thin(rfft(blocks), np.stack(sums) / step.shape[1])

    def correlated(self, data: np.ndarray, transformed: np.ndarray) -> np.ndarray:
        """Transforms of pixels (k, n_blocks, n_frequencies), see `_Pixels.transformed`, and of templates (n, k, ...) ->
        sums of their products over pixels and k, at every `THIN`-th velocity from the most negative one, (n,
        n_velocities)."""
        _, reach, n, _ = self._thin
        return irfft(np.einsum("kbf,nkbf->nf", data, transformed), n)[:, 2 * reach :: -1]

    @cached_property
    def _sigma(self) -> np.ndarray:
        """Nodes by which each of `powers` blurs what has the highest resolving power, shape (n_rungs,)."""
        return FWHM_TO_SIGMA * np.sqrt(np.maximum(self.powers**-2 - self.most**-2, 0.0)) / self.step

    @cached_property
    def _damping(self) -> np.ndarray:
        """The same in Fourier space, shape (n_rungs, n_frequencies)."""
        frequency = rfftfreq(self._padding[1])
        return np.exp(-2 * (np.pi * self._sigma[:, None] * frequency) ** 2).astype(np.float32)

    def _blurred(self, flux: np.ndarray, damping: np.ndarray, precision: type = np.float32) -> np.ndarray:
        """Flux (n_spectra, n_nodes), through `damping` (n, n_frequencies) -> less 1, (n_spectra, n, n_nodes).

        Without the continuum float32 loses less: its errors are those of the depths of lines.
        """
        (pad, n), size = self._padding, flux.shape[1]
        padded: np.ndarray = np.empty((len(flux), n), dtype=precision)
        depth = padded[:, pad : pad + size]
        np.clip(flux, *FLUX_LIMITS, out=depth)
        depth -= 1
        padded[:, :pad], padded[:, pad + size :] = depth[:, :1], depth[:, -1:]
        return irfft(rfft(padded)[:, None] * damping, n)[..., pad : pad + size]

    def _on_rungs(self, flux: np.ndarray, rungs: np.ndarray, precision: type = np.float32) -> np.ndarray:
        """Flux (n_nodes,) at the highest resolving power -> less 1, at `rungs` (n, n_nodes) or (n, 1), shape (n,
        n_nodes)."""
        if rungs.shape[1] == 1:  # a mixture of two rungs is one blur
            return self._blurred(flux[None], between_rungs(self._damping, rungs), precision)[0]
        least, most = np.clip([int(rungs.min()), int(rungs.max()) + 2], 0, self.powers.size)
        least = min(least, most - 2)
        return between_rungs(self._blurred(flux[None], self._damping[least:most], precision)[0], rungs - least)

    def explain(
        self, extractor: SpectraFMFeatureExtractor, row: Mapping[str, np.ndarray], labels: np.ndarray
    ) -> Explained | None:
        """Hold one prepared spectrum against its labels; see `explain_all`."""
        return self.explain_all(extractor, [row], np.asarray(labels)[None])[0]

    def explain_all(
        self,
        extractor: SpectraFMFeatureExtractor,
        rows: Sequence[Mapping[str, np.ndarray]],
        labels: np.ndarray,
        matters: tuple[float, float] | None = None,
    ) -> list[Explained | None]:
        """Hold prepared spectra against their labels.

        Args:
            extractor: That prepared them.
            rows: Of `SpectraFMFeatureExtractor.tokenise`: flux, wavelength, attention_mask, (n_pixels,), and, if told,
                flux_error and resolving_power.
            labels: Predicted teff, logg, fe_h in K, dex, dex, shape (n, 3).
            matters: `wider` and `hot_star` above which they matter. Below, they may be left out, NaN, which takes half
                the time. None = they always do.

        Returns:
            None where the labels are not known, or no good pixel lies in the range.
        """
        found: list[Explained | None] = [None] * len(rows)
        known = np.flatnonzero(np.isfinite(labels).all(axis=1))
        for some in np.split(known, range(BLOCK, known.size, BLOCK)):
            of_pixels: dict[int, list[tuple[int, _Trial]]] = {}
            stars = self._cool(reachable(labels[some])) if some.size else ()
            for place, star in zip(some.tolist(), stars, strict=True):
                row = rows[place]
                pixels = self._pixels_of(extractor, row["wavelength"])
                if (row["attention_mask"][pixels.chosen] > 0).any():
                    trial = _Trial.of(_Seen(pixels, extractor, row), star, matters)
                    of_pixels.setdefault(id(pixels), []).append((place, trial))
            for together in of_pixels.values():
                trials = [trial for _, trial in together]
                depths = [self._on_rungs(one.star, one.rungs[one.first]) for one in trials]
                good = np.stack([one.seen.good for one in trials])
                pixels = trials[0].seen.pixels
                continua = continua_of(extractor, pixels, np.stack([depth[0] for depth in depths]), good)
                for (place, trial), depth, continuum in zip(together, depths, continua, strict=True):
                    found[place] = self._explained(trial, depth, continuum, matters)
        return found

    def _pixels_of(self, extractor: SpectraFMFeatureExtractor, wavelength: np.ndarray) -> _Pixels:
        """Those of a survey are prepared once, whatever the number of its spectra."""
        kept = self._kept
        pixels = next((one for one in kept if one.are(extractor, wavelength)), None)
        if pixels is None:
            pixels = _Pixels(self, extractor, wavelength)
        if not kept or kept[0] is not pixels:
            self._kept = [pixels, *(one for one in kept if one is not pixels)][:KEPT]
        return pixels

    def _explained(
        self, trial: _Trial, depth: np.ndarray, continuum: np.ndarray, matters: tuple[float, float] | None
    ) -> Explained:
        """Of a star at its first rungs, `depth` (n, n_nodes) less 1, over the continuum of the very first one."""
        seen, rungs, n_trained = trial.seen, trial.rungs, trial.n_trained
        seen.divide_by(continuum)
        seen.hold_against(depth)
        lowest = np.full(len(rungs), np.nan)
        lowest[:n_trained] = [seen.lowest(rung) for rung in range(n_trained)]
        best = int(lowest[:n_trained].argmin())
        wider_matters, hot_matters = (-np.inf, -np.inf) if matters is None else matters

        def log_ratio(other: float) -> float:
            return float(seen.n / 2 * np.log(lowest[best] / max(other, 1e-12)))

        def surely_below(least: np.ndarray, limit: float) -> bool:
            return log_ratio(float(least.min())) < limit

        velocity, velocity_error = seen.velocity(best)
        if velocity_error > UNSHARP * self.step * SPEED_OF_LIGHT:
            precise = self._on_rungs(trial.star, rungs[best : best + 1], np.float64)
            velocity, velocity_error = seen.velocity_of(precise, seen.at[best])
        wider = widening = hot_star = hot_teff = np.nan
        least = seen.at_least()[n_trained:]
        others = np.delete(rungs, trial.first, axis=0)
        if len(others) and not surely_below(least, SPARSE_SHARE * wider_matters):
            least = np.append(least, seen.at_least(self._on_rungs(trial.star, others)))
        if not surely_below(least, wider_matters):
            if len(others):
                seen.hold_against(self._on_rungs(trial.star, rungs))
            lowest[n_trained:] = [seen.lowest(rung) for rung in range(n_trained, len(rungs))]
            wider = log_ratio(lowest[n_trained:].min())
            widening = float(RUNG ** (1 + lowest[n_trained:].argmin()))
        if not any(surely_below(least(rungs[0]), hot_matters) for least in (seen.hot_apart, seen.hot_at_least)):
            hot = between_rungs(self._hot_ladder, rungs[0])
            chi2 = []
            for one, continuum in zip(hot, seen.continua(hot), strict=True):
                seen.divide_by(continuum)
                seen.hold_against(one[None])
                chi2.append(seen.lowest(0))
            hot_star, hot_teff = log_ratio(min(chi2)), float(HOT_STARS[int(np.argmin(chi2)), 0])
        return Explained(
            velocity=velocity,
            velocity_error=velocity_error,
            residual=float(np.sqrt(lowest[best] / seen.n)),
            wider=wider,
            widening=widening,
            hot_star=hot_star,
            hot_teff=hot_teff,
            no_lines=log_ratio(seen.flat),
        )


@dataclass(frozen=True)
class _Thin:
    """Templates on every `THIN`-th node, ready to be correlated.

    Attributes:
        transformed: Of T and T^2 in blocks, each less what it is without lines, (n, 2, n_blocks, n_frequencies).
        left_out: What these nodes leave out, per pixel, (2, n): mean square of T less its chord, s (1 - s) / 2 of its
            bend; and mean square of (s (1 - s) - 1/6) of its squared step.
    """

    transformed: np.ndarray
    left_out: np.ndarray


class _Pixels:
    """The pixels that spectra of a survey share, and where they lie among the nodes.

    Attributes:
        chosen: Those of them within the range of the nodes.
        wavelength: Of these, vacuum Angstrom, shape (n_pixels,).
        center, spread: What the extractor took from the flux, and divided by.
        lower, share: Node below each pixel, and how far on the way to the next it lies.
    """

    def __init__(self, grid: Reconstruction, extractor: SpectraFMFeatureExtractor, wavelength: np.ndarray):
        self.grid = grid
        self._all, self._norms = wavelength.copy(), self._norms_of(extractor)
        within = (wavelength > grid.inside[0]) & (wavelength < grid.inside[1])
        self.chosen: np.ndarray | slice = slice(None) if within.all() else np.flatnonzero(within)
        self.wavelength = wavelength[self.chosen]
        self.center = extractor.unscale(np.zeros(self.wavelength.size), self.wavelength).astype(np.float32)
        self.spread = extractor.unscale(np.ones(self.wavelength.size), self.wavelength).astype(np.float32) - self.center
        position = (np.log(self.wavelength) - np.log(grid.wavelength[0])) / grid.step
        self.lower = position.astype(int)
        self.share = (position - self.lower).astype(np.float32)
        thin = position / THIN
        above, pixel = thin % 1, np.arange(thin.size)
        node = np.concatenate([thin.astype(int), thin.astype(int) + 1])
        _, reach, n, n_blocks = grid._thin
        shape = n_blocks * (n - 2 * reach), thin.size
        shares = np.concatenate([1 - above, above]).astype(np.float32), (node, np.tile(pixel, 2))
        self._shared_out = csr_array(shares, shape=shape)
        self._hot: list[tuple[np.ndarray, _Hot]] = []

    @staticmethod
    def _norms_of(extractor: SpectraFMFeatureExtractor) -> tuple[object, ...]:
        return extractor.flux_wavelength, extractor.flux_center, extractor.flux_scale

    def are(self, extractor: SpectraFMFeatureExtractor, wavelength: np.ndarray) -> bool:
        """Whether they are those of a spectrum that this extractor prepared."""
        same = all(old is new for old, new in zip(self._norms, self._norms_of(extractor), strict=True))
        return same and np.array_equal(self._all, wavelength)

    def transformed(self, values: np.ndarray) -> np.ndarray:
        """Values (n, n_pixels), shared out to the thin nodes around each pixel -> conjugate transforms in blocks."""
        _, reach, n, n_blocks = self.grid._thin
        width = n - 2 * reach
        padded = np.zeros((len(values), n_blocks, n), dtype=np.float32)
        for one, of_blocks in zip(values, padded, strict=True):
            of_blocks[:, :width] = (self._shared_out @ one).reshape(n_blocks, width)
        return np.conj(rfft(padded))

    def hot(self, extractor: SpectraFMFeatureExtractor, rung: np.ndarray) -> _Hot:
        """Hot stars at a rung (n_nodes,) or (1,), over the pseudo-continua of a spectrum without bad pixels; those of
        rungs that are alike are kept."""
        for known, made in self._hot:
            if known.shape == rung.shape and np.abs(known - rung).max() < LIKE_RUNG:
                return made
        depth = between_rungs(self.grid._hot_ladder, rung)
        good = np.ones((len(depth), self.wavelength.size), dtype=bool)
        continua = continua_of(extractor, self, depth, good)
        over = np.stack([np.interp(self.grid.wavelength, self.wavelength, continuum) for continuum in continua])
        depth = ((1 + depth) / over - 1).astype(np.float32)
        thin = self.grid.thinned(depth)
        thin.left_out[0] += LIKE_HOT * np.square(depth).mean(axis=1)
        everywhere = self.transformed(good[:1].astype(np.float32))
        squares = self.grid.correlated(everywhere, thin.transformed[:, 1:])
        made = _Hot(thin.transformed, thin.left_out, squares.max(axis=1))
        self._hot = [(rung, made), *self._hot[: KEPT - 1]]
        return made


@dataclass(frozen=True)
class _Hot(_Thin):
    """`HOT_STARS`, as the pixels see them.

    Attributes:
        square: Of what they differ from 1 by, summed over the pixels, at the velocity that has most of it; (n,).
    """

    square: np.ndarray


def continua_of(
    extractor: SpectraFMFeatureExtractor, pixels: _Pixels, depth: np.ndarray, good: np.ndarray
) -> np.ndarray:
    """Pseudo-continua (n, n_pixels) that the extractor finds in templates less 1 (n, n_nodes), with `good` (n_pixels,)
    or (n, n_pixels)."""
    flux = 1 + between_nodes(depth, pixels.lower, pixels.share)
    normalised, good = extractor.normalise(flux, np.broadcast_to(good, flux.shape), pixels.wavelength)
    return np.where(good, flux / np.where(good, normalised, 1.0), np.float32(1.0))


def between_nodes(depth: np.ndarray, lower: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(..., n_nodes) -> (..., n_pixels), linear."""
    below = depth.take(lower, axis=-1)
    return below + share * (depth.take(lower + 1, axis=-1) - below)


class _Seen:
    """What the nodes see of one spectrum. Bad pixels stay, with a weight of 0, so that all spectra of a survey have
    the same pixels."""

    def __init__(self, pixels: _Pixels, extractor: SpectraFMFeatureExtractor, row: Mapping[str, np.ndarray]):
        self.pixels, self.grid, self.extractor = pixels, pixels.grid, extractor
        self.good = row["attention_mask"][pixels.chosen] > 0
        self.flux = row["flux"][pixels.chosen] * pixels.spread + pixels.center
        self.resolving_power = row["resolving_power"][pixels.chosen] if "resolving_power" in row else None
        self.weight = self.good.astype(np.float32)
        if "flux_error" in row:
            flux_error = row["flux_error"][pixels.chosen]
            known = self.good & (flux_error > 0)
            if known.any():
                # Worse pixels than most count less; better ones no more, since models err by more than photons do.
                told = flux_error[known]
                if told.min() < told.max():
                    self.weight[known] = np.minimum(np.median(told) / told, 1.0) ** 2
        self.n = float(self.weight.sum(dtype=np.float64))
        self.flat = float(np.square(self.flux - 1) @ self.weight)

    def rungs(self) -> tuple[np.ndarray, int]:
        """Rungs to be tried, (n, n_nodes), or (n, 1) if they are the same everywhere; and how many of them, the first
        ones, are what the spectrum may have."""
        grid, power = self.grid, self.resolving_power
        known = None if power is None else power > 0
        if power is None or known is None or not known.any():
            return np.arange(float(grid.powers.size))[:, None], grid.n_trained
        least, most = (grid.rung_of(float(end)) for end in (power[known].max(), power[known].min()))
        if most - least < SAME_RUNG:
            told = np.array([(least + most) / 2])
        else:
            told = np.interp(grid.wavelength, self.pixels.wavelength[known], grid.rung_of(power[known]))
        return told + np.arange(WIDER_RUNGS + 1.0)[:, None], 1

    def continua(self, depth: np.ndarray) -> np.ndarray:
        """Pseudo-continua (n, n_pixels) that the extractor finds in templates less 1, (n, n_nodes)."""
        return continua_of(self.extractor, self.pixels, depth, self.good)

    def divide_by(self, continuum: np.ndarray) -> None:
        """Take a pseudo-continuum (n_pixels,) for that of all templates, at all velocities.

        Differences to 1 are small numbers, of which float32 loses less.
        """
        inverse, root = (1 / continuum).astype(np.float32), np.sqrt(self.weight)
        self._data = self._correlate(inverse)
        self._inverse, self._missed = inverse * root, (self.flux - inverse) * root

    def hold_against(self, depth: np.ndarray) -> None:
        """Templates less 1 (n, n_nodes): their coarse chi^2."""
        self.depth = depth
        self.coarse, self._left_out = self._coarse(depth)
        self._exact: dict[tuple[int, int], float] = {}
        self.at: dict[int, int] = {}

    def _correlate(self, inverse: np.ndarray) -> tuple[np.ndarray, float]:
        """What `Reconstruction.correlated` needs of the pixels for chi^2 over a continuum, and its constant part."""
        weighted, missed = self.weight * inverse, self.flux - inverse
        data = self.pixels.transformed(np.stack([-2 * weighted * missed, weighted * inverse]))
        return data, float(np.square(missed) @ self.weight)

    def _coarse(self, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chi^2 of templates at every `THIN`-th velocity, (n, n_velocities), and what it leaves out, see `_Thin`."""
        thin, (data, constant) = self.grid.thinned(depth), self._data
        return constant + self.grid.correlated(data, thin.transformed), thin.left_out

    def _off_by(self, left_out: np.ndarray, lowest: np.ndarray) -> np.ndarray:
        """What coarse chi^2 may be off by where it is `lowest`, (n,) or a number; see `_Thin`.

        What is wrong with a spectrum may go along with what is left out, other than noise does.
        """
        bent, stepped = self.n * left_out
        return bent + 2 * np.sqrt(np.maximum(lowest, 0.0) * bent) + COARSE_SIGMAS * np.sqrt(stepped)

    def at_least(self, depth: np.ndarray | None = None) -> np.ndarray:
        """Chi^2 of each template, or of others less 1 (n, n_nodes), at any velocity at least, (n,)."""
        coarse, left_out = (self.coarse, self._left_out) if depth is None else self._coarse(depth)
        lowest = coarse.min(axis=1)
        return lowest - self._off_by(left_out, lowest)

    def hot_apart(self, rung: np.ndarray) -> np.ndarray:
        """Chi^2 of each hot star at any velocity at least, (n,): its root is a distance, and those of spectrum and star
        from the continuum differ by no more than the two are apart."""
        hot = self.pixels.hot(self.extractor, rung)
        lowest = np.square(np.maximum(np.sqrt(self.flat) - np.sqrt(hot.square), 0.0))
        return lowest - self._off_by(hot.left_out, lowest)

    def hot_at_least(self, rung: np.ndarray) -> np.ndarray:
        """The same, closer: of all velocities one by one."""
        hot = self.pixels.hot(self.extractor, rung)
        data, constant = self._correlate(np.ones(1, dtype=np.float32))
        lowest = constant + self.grid.correlated(data, hot.transformed).min(axis=1)
        return lowest - self._off_by(hot.left_out, lowest)

    def lowest(self, number: int) -> float:
        """Chi^2 of a template at its best velocity: summed pixel by pixel, downhill from the lowest coarse ones."""
        coarse, last = self.coarse[number], 2 * self.grid.n_shifts
        ends = np.full(1, np.inf)
        around = np.concatenate([ends, coarse, ends])
        off_by = self._off_by(self._left_out[:, number], coarse.min())
        low = (coarse <= around[:-2]) & (coarse <= around[2:]) & (coarse <= coarse.min() + 2 * off_by)
        starts = np.flatnonzero(low)
        found: dict[int, float] = {}
        for start in starts[np.argsort(coarse[starts])][:MOST_STARTS].tolist():
            at = min(max(THIN * (start - self.grid._thin[1]) + self.grid.n_shifts, 1), last - 1)
            for _ in range(MOST_STEPS):
                # Two nodes far, since chi^2 has ripples where pixels are wider than nodes.
                near = (at, *(near for near in (at - 1, at + 1, at - 2, at + 2) if 1 <= near <= last - 1))
                best = min(near, key=lambda near: self._chi2(number, near))
                if best == at:
                    break
                at = best
            found[at] = min(self._chi2(number, at + step) for step in (-1, 0, 1))
        self.at[number] = min(found, key=lambda at: found[at])
        return found[self.at[number]]

    def _chi2(self, number: int, at: int) -> float:
        """Chi^2 of a template at a velocity, in nodes from the most negative one."""
        if (number, at) not in self._exact:
            shift = self.grid.n_shifts - at
            depth = self.depth[number, max(shift, 0) :]
            left = between_nodes(depth, self.pixels.lower + min(shift, 0), self.pixels.share)
            left *= self._inverse
            left -= self._missed
            left = left.astype(np.float64)  # differences of its squares tell the error of the velocity
            self._exact[number, at] = max(float(left @ left), 1e-9)
        return self._exact[number, at]

    def velocity(self, number: int) -> tuple[float, float]:
        """km/s and its 1-sigma error, from the parabola through the lowest chi^2 of a template and its neighbours."""
        at = self.at[number]
        before, lowest, after = (self._chi2(number, at + step) for step in (-1, 0, 1))
        curvature = max(before - 2 * lowest + after, 1e-9)
        offset = np.clip(0.5 * (before - after) / curvature, -1, 1)
        node = self.grid.step * SPEED_OF_LIGHT
        error = np.sqrt(2 * lowest / self.n / curvature)
        return float(node * (at - self.grid.n_shifts + offset)), float(node * error)

    def velocity_of(self, precise: np.ndarray, at: int) -> tuple[float, float]:
        """The same of a template (1, n_nodes) that is known in float64, whose lowest chi^2 is `at`."""
        kept = self.depth, self._exact, self.at
        self.depth, self._exact, self.at = precise, {}, {0: at}
        found = self.velocity(0)
        self.depth, self._exact, self.at = kept
        return found


@dataclass(frozen=True)
class _Trial:
    """A spectrum, and the star that is held against it.

    Attributes:
        seen: The spectrum.
        star: That of its labels at the highest resolving power, shape (n_nodes,).
        rungs, n_trained: See `_Seen.rungs`.
        first: Those of the rungs that are tried first: all, where wider lines always matter.
    """

    seen: _Seen
    star: np.ndarray
    rungs: np.ndarray
    n_trained: int
    first: list[int]

    @classmethod
    def of(cls, seen: _Seen, star: np.ndarray, matters: tuple[float, float] | None) -> _Trial:
        rungs, n_trained = seen.rungs()
        wider = range(n_trained, len(rungs))
        some = wider if matters is None or not matters[0] > 0 else [wider[number] for number in SPARSE]
        return cls(seen, star, rungs, n_trained, [*range(n_trained), *some])
