"""Spectrum -> clean, scaled arrays with an attention_mask; labels -> scaled numbers, and back to K and dex.

What is learned from the training spectra (the mean and spread of the flux at each wavelength, the centre and scale of
each label) is saved in preprocessor_config.json, so that a checkpoint prepares every later spectrum as it prepared its
own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from transformers import BatchFeature
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.utils import PaddingStrategy

from .labels import MISSING_LABEL, Label, Scalar, get_label, get_scalar
from .spectra import PseudoContinuum, Rebinning, check_wavelength, pixel_edges

OUTLIER_LEVEL = 100.0
"""Flux beyond this many times the median flux of its spectrum, where there is any, is no starlight."""

FILLING = 10
"""Neighbouring pixels whose flux is exactly 0 that no star has: its deepest lines are narrower, and noise is not 0."""

RESOLVING_POWER_LIMITS = (50.0, 1e6)
"""lambda / FWHM of any spectrograph: a FWHM in Angstrom lies below, in metres far below."""

NOISE_LIMITS = (6.0, 20.0)
"""What is given may lie outside its valid range by as many of its own 1-sigma errors, and of its default ones.

A measurement is off by its error: log g of 5.8 +- 0.4 may well come as 6.2."""

WAVELENGTH_LIMITS = (3000.0, 25_000.0)
"""Vacuum Angstrom: where the wavelength encoding tells all wavelengths apart."""

GAP = 10.0
"""Pixel spacings without a pixel that part two patches: a token never straddles a detector gap.

The spacing is the upper quartile of the steps, since of two spectrographs one is finer; without the small ones, see
`OVERLAP`, and without those that are gaps by `COARSEST`."""

OVERLAP = 0.3
"""Of the length of a spectrum: so much of it in the smallest steps says nothing of the pixel spacing.

Exposures that overlap have steps near 0 between them. At 0.1, eight of them, a twentieth of a pixel apart, would be
one token per pixel."""

COARSEST = 0.01
"""Of the wavelength: a wider step is a gap whatever the others are, since no spectrograph has pixels as coarse.

Windows of a few pixels around single lines have more of their length in gaps than in pixels."""

DEFAULT_CENTER, DEFAULT_SPREAD = 1.0, 0.1
"""Of the normalised flux, where no training spectrum has said otherwise."""

EVEN_IN = ("wavelength", "log10_wavelength")
"""What the pixels of a segment are even in."""

SMOOTH, MOST_SMOOTH = 2e-6, 0.25
"""Third differences below this, relative to the continuum, are of parts of one pixel; and how large a share may be."""

_Norms = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Wavelength, mean and spread of the training spectra."""

_PER_PIXEL = ("flux", "wavelength", "flux_error", "resolving_power")
_CACHED = ("wavelength_grid", "segments", "_pixel_widths", "_continua", "_norm_table", "_rebinnings")


def spoken_ranges(ranges: Sequence[Sequence[float]]) -> str:
    """Ranges of wavelengths for people, e.g. `3,584-9,088 and 15,152-16,944`."""
    return " and ".join(f"{low:,.0f}-{high:,.0f}" for low, high in ranges)


def _level(flux: np.ndarray) -> float:
    """Median of |flux| where it is not 0; 0 where there is none. Many zeros (clipped lines, filling) are no level."""
    size = np.abs(flux[flux != 0])
    return float(np.median(size)) if size.size else 0.0


def _filling(flux: np.ndarray) -> np.ndarray:
    """Pixels (n,) of neighbours that are all exactly 0: gaps between detectors, and ends, that were filled up."""
    dark = flux == 0
    ends = np.flatnonzero(np.diff(dark, prepend=False, append=False))
    for start, stop in ends.reshape(-1, 2):
        if stop - start < FILLING:
            dark[start:stop] = False
    return dark


@dataclass(frozen=True)
class Pixels:
    """A spectrum on the model's pixels, in order of wavelength; arrays of shape (n_pixels,).

    Attributes:
        flux: Median of the good pixels 1, or continuum-normalised as it came (`smoothing_length=None`).
        wavelength: Vacuum Angstrom, rest frame, float64.
        good: True = use.
        flux_error: 1-sigma, in the unit of `flux`; 0 = not known. None: not known of any.
        resolving_power: lambda / FWHM; 0 = not known. None: not known of any.
    """

    flux: np.ndarray
    wavelength: np.ndarray
    good: np.ndarray
    flux_error: np.ndarray | None = None
    resolving_power: np.ndarray | None = None

    def cut(self, kept: np.ndarray | slice) -> Pixels:
        """Without the other pixels; `kept` (n_pixels,), bool."""
        error, power = self.flux_error, self.resolving_power
        return Pixels(
            self.flux[kept],
            self.wavelength[kept],
            self.good[kept],
            None if error is None else error[kept],
            None if power is None else power[kept],
        )

    def only(self, shown: np.ndarray) -> Pixels:
        """The same with all other pixels bad; `shown` (n_pixels,), bool."""
        return replace(self, good=self.good & shown)


def _array(values: Any) -> np.ndarray:
    """A tensor or an array -> float64."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)


WIDTH_95 = 1.959964
"""Half of the central 95 % interval of a Gaussian, in sigma."""

FARTHEST = 4.0
"""Inputs of a `Recalibration` beyond this many standard deviations of its calibration stars count as that many."""


@dataclass(frozen=True)
class Recalibration:
    """How far off the network's answers are, as learned from stars that it never saw; see `calibration.recalibration`.

    Inputs are all values, the natural logarithms of all sigmas and of the noise, standardised, and whether the noise
    is known; 0 where one is not known. A hidden layer of tanh, which bounds every answer, and a linear one give for
    each label a shift in units of its sigma and the natural logarithms of the factors on sigma for the central
    68.27 % and 95 % intervals.

    Attributes:
        label_names: Labels that have answers, n of the extractor's L.
        center, scale: Of the inputs, shape (2 L + 1,): L values (K, dex), L ln sigma, ln noise.
        hidden_weight, hidden_bias: Shapes (2 L + 2, n_hidden), (n_hidden,).
        output_weight, output_bias: Shapes (n_hidden, 3 n), (3 n,): all shifts, then ln factors of 68 %, of 95 %.
    """

    label_names: list[str]
    center: np.ndarray
    scale: np.ndarray
    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    output_weight: np.ndarray
    output_bias: np.ndarray

    def check(self, label_names: Sequence[str]) -> None:
        """Refuse one that was not made for an extractor with these labels.

        Raises:
            ValueError: A label that it does not have, or shapes that do not fit.
        """
        n_inputs, n_hidden, n_outputs = 2 * len(label_names) + 1, self.hidden_bias.size, 3 * len(self.label_names)
        needed = [(n_inputs,), (n_inputs,), (n_inputs + 1, n_hidden), (n_hidden,), (n_hidden, n_outputs), (n_outputs,)]
        got = [getattr(self, name).shape for name in self.__dataclass_fields__ if name != "label_names"]
        if not set(self.label_names) <= set(label_names) or got != needed:
            raise ValueError(
                f"recalibration must be of labels of this model, {', '.join(label_names)}, and have shapes {needed}, "
                f"got {', '.join(self.label_names)} and {got}; fit it anew with calibration.recalibration."
            )

    @staticmethod
    def raw_inputs(value: np.ndarray, sigma: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Values and sigmas (..., L), K and dex, and noise (...,) -> (..., 2 L + 1)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([value, np.log(sigma), np.log(noise)[..., None]], axis=-1)

    @staticmethod
    def standardise(raw: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Raw inputs (..., 2 L + 1) -> what the hidden layer sees, (..., 2 L + 2)."""
        inputs = np.clip((raw - center) / scale, -FARTHEST, FARTHEST)
        known = np.isfinite(raw)
        return np.concatenate([np.where(known, inputs, 0.0), known[..., -1:]], axis=-1)

    def __call__(self, value: np.ndarray, sigma: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, ...]:
        """Shift in units of sigma, factor of the 68.27 % and of the 95 % interval, each (..., n).

        Args:
            value, sigma: The network's own, shape (..., L), K and dex.
            noise: 1-sigma per pixel relative to the continuum, shape (...,); NaN = not known.
        """
        inputs = self.standardise(self.raw_inputs(value, sigma, noise), self.center, self.scale)
        hidden = np.tanh(inputs @ self.hidden_weight + self.hidden_bias)
        shift, log_68, log_95 = np.split(hidden @ self.output_weight + self.output_bias, 3, axis=-1)
        return shift, np.exp(log_68), np.exp(np.maximum(log_95, log_68 - np.log(WIDTH_95)))  # the wider holds the other


class SpectrumBatch(BatchFeature):
    """A batch for the model; `to(torch.bfloat16)` leaves wavelengths in float64: bfloat16 steps by 64 Angstrom."""

    def to(self, *args: Any, **kwargs: Any) -> SpectrumBatch:
        wavelength = self["wavelength"]
        moved = super().to(*args, **kwargs)
        if hasattr(wavelength, "to"):
            moved["wavelength"] = wavelength.to(moved["flux"].device)
        return moved  # type: ignore[return-value]


class SpectraFMFeatureExtractor(SequenceFeatureExtractor):
    """Prepares spectra for SpectraFM.

    In this order: sort by wavelength; rebin onto the model's pixels, if it has any (flux-conserving, good pixels only);
    divide by the pseudo-continuum (`spectra.PseudoContinuum`), unless spectra come normalised; drop outliers; subtract
    the training spectra's mean at each wavelength and divide by their spread; cut into patches of neighbouring pixels;
    flag what is missing in `attention_mask`. Pixels may come in any order, the wavelength says where they belong.

    Args:
        label_names: Labels in the model's order; names of `labels.LABELS`.
        label_center: Subtracted from each label, in its unit (None = 0).
        label_scale: Then divided by, in its unit (None = 1).
        given_names: Non-spectral inputs in the model's order: labels of `label_names`, or names of `labels.SCALARS`.
        patch_size: Pixels per token of the model.
        pixel_width: Width of the model's pixels, Angstrom. Pixel n is centred on (n + 0.5) * pixel_width, and tokens
            start at multiples of patch_size * pixel_width, whatever window is given. None = `pixel_segments`; or,
            without those, every spectrum keeps its own pixels, from whatever instrument.
        wavelength_range: Where the model works, vacuum Angstrom; pixels outside are ignored.
        smoothing_length: Of the pseudo-continuum, Angstrom. None = flux comes continuum-normalised and is left alone.
        flux_range: Continuum-normalised flux outside is an outlier and counts as missing.
        flux_wavelength: Where flux_center and flux_scale are known, vacuum Angstrom, increasing; between, they are
            interpolated. None = on `wavelength_grid`.
        flux_center: Mean normalised flux there over the training spectra (None = 1).
        flux_scale: Its spread, likewise (None = 0.1).
        largest_scaled: Scaled flux beyond counts as missing; None = no limit.
        min_good_pixels: A spectrum with fewer is refused.
        sigma_factors: Label -> factors on the network's sigma for its 68.27 % and 95 % intervals, see `calibration`;
            a label that is not there keeps the network's own.
        recalibration: Attributes of a `Recalibration` as lists, which takes their place for the labels it has answers
            for; None = there is none.
        pixel_segments: The model's pixels, where one width does not do: runs in order of wavelength, each
            `[even_in, first, step, n_pixels]`, with pixels even in `wavelength` (first and step in vacuum Angstrom) or
            in `log10_wavelength` (their decadic logarithms, dex), and n_pixels a multiple of patch_size.
        learned_ranges: Label -> where spectra that had it lay in training: a list of [lowest, highest], vacuum
            Angstrom. Of a label that is not there it is not known.

    Raises:
        ValueError: Lists that do not fit each other, an unknown or repeated label or input, an empty range, a scale
            that cannot be divided by.
    """

    model_input_names: ClassVar[list[str]] = ["flux", "wavelength", "attention_mask"]

    def __init__(
        self,
        label_names: Sequence[str] = ("teff", "logg", "fe_h"),
        label_center: Sequence[float] | None = None,
        label_scale: Sequence[float] | None = None,
        patch_size: int = 64,
        pixel_width: float | None = 1.0,
        wavelength_range: Sequence[float] = (3600.0, 7400.0),
        smoothing_length: float | None = 100.0,
        flux_range: Sequence[float] = (-0.5, 3.0),
        flux_center: Sequence[float] | None = None,
        flux_scale: Sequence[float] | None = None,
        min_good_pixels: int = 1,
        given_names: Sequence[str] = (),
        flux_wavelength: Sequence[float] | None = None,
        largest_scaled: float | None = None,
        sigma_factors: Mapping[str, Sequence[float]] | None = None,
        recalibration: Mapping[str, Any] | None = None,
        pixel_segments: Sequence[Sequence[Any]] | None = None,
        learned_ranges: Mapping[str, Sequence[Sequence[float]]] | None = None,
        **kwargs: Any,
    ):
        for fixed in ("feature_size", "sampling_rate", "padding_value"):  # of audio; saved by transformers all the same
            kwargs.pop(fixed, None)
        if __package__ == "spectrafm_hf":
            kwargs.pop("auto_map", None)  # the code that a checkpoint brings along: saved again, it would not be there
        super().__init__(feature_size=1, sampling_rate=1, padding_value=0.0, **kwargs)

        def numbers(values: Sequence[float] | None) -> list[float] | None:
            return None if values is None else [float(value) for value in values]

        self.label_names = list(label_names)
        self.label_center = numbers(label_center) or [0.0] * len(self.label_names)
        self.label_scale = numbers(label_scale) or [1.0] * len(self.label_names)
        self.given_names = list(given_names)
        self.patch_size = patch_size
        self.pixel_width = pixel_width
        self.pixel_segments = None if pixel_segments is None else [list(segment) for segment in pixel_segments]
        self.wavelength_range = [float(edge) for edge in wavelength_range]
        self.smoothing_length = smoothing_length
        self.flux_range = [float(edge) for edge in flux_range]
        self.flux_wavelength = numbers(flux_wavelength)
        self.flux_center = numbers(flux_center)
        self.flux_scale = numbers(flux_scale)
        self.largest_scaled = largest_scaled
        self.min_good_pixels = min_good_pixels
        self.sigma_factors = {name: [float(f) for f in pair] for name, pair in (sigma_factors or {}).items()}
        self.recalibration = None if recalibration is None else dict(recalibration)
        self.learned_ranges = {
            name: [np.asarray(ends, dtype=float).tolist() for ends in ranges]
            for name, ranges in (learned_ranges or {}).items()
        }
        self._check()

    def _check(self) -> None:
        for name in self.label_names:
            get_label(name)
        for name in self.given_names:
            if name not in self.label_names:
                get_scalar(name)
        if not len(self.label_names) == len(self.label_center) == len(self.label_scale):
            raise ValueError(
                "label_names, label_center and label_scale must have one entry per label, got "
                f"{len(self.label_names)}, {len(self.label_center)} and {len(self.label_scale)}."
            )
        for told, names in (("label_names", self.label_names), ("given_names", self.given_names)):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(
                    f"{told} must name each one once, got {', '.join(repeated)} more than once in {names}."
                )
        for name, center, scale in zip(self.label_names, self.label_center, self.label_scale, strict=True):
            if not np.isfinite(center) or not 0 < scale < np.inf:
                raise ValueError(
                    "label_center must be finite, and label_scale positive and finite, since labels are divided by it; "
                    f"got {center:g} and {scale:g} {get_label(name).unit} of {name}."
                )
        for name, factors in self.sigma_factors.items():
            if name not in self.label_names or len(factors) != 2 or not all(0 < factor < np.inf for factor in factors):
                raise ValueError(
                    "sigma_factors must give labels of this model two positive factors each, of the 68.27 % and the "
                    f"95 % interval; got {name}: {factors}."
                )
        if self._recalibration is not None:
            self._recalibration.check(self.label_names)
        for name, ranges in self.learned_ranges.items():
            fit = all(np.shape(ends) == (2,) and np.isfinite(ends).all() and ends[0] < ends[1] for ends in ranges)
            if name not in self.label_names or not ranges or not fit:
                raise ValueError(
                    "learned_ranges must give labels of this model lists of [lowest, highest] wavelength, increasing "
                    f"and finite (vacuum Angstrom), e.g. [[15152.2, 16943.5]]; got {name}: {ranges}."
                )
        if not self.flux_range[0] < self.flux_range[1]:
            raise ValueError(
                f"flux_range must be increasing (normalised flux: lowest, highest), got {self.flux_range}."
            )
        for name in ("pixel_width", "smoothing_length", "patch_size", "largest_scaled"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        low, high = self.wavelength_range
        if not WAVELENGTH_LIMITS[0] <= low < high <= WAVELENGTH_LIMITS[1]:
            raise ValueError(
                f"wavelength_range must be an increasing range within [{WAVELENGTH_LIMITS[0]:.0f}, "
                f"{WAVELENGTH_LIMITS[1]:.0f}] vacuum Angstrom, got {self.wavelength_range}."
            )
        self._check_segments()
        if self.flux_wavelength is None:
            where, n_pixels = "pixel of wavelength_grid", self.wavelength_grid.size if self.has_grid else 0
        else:
            where, n_pixels = "entry of flux_wavelength", len(self.flux_wavelength)
            if not (np.diff(self.flux_wavelength) > 0).all():
                raise ValueError("flux_wavelength must be increasing (vacuum Angstrom).")
        for name, norm in (("flux_center", self.flux_center), ("flux_scale", self.flux_scale)):
            if norm is not None and len(norm) != n_pixels:
                raise ValueError(f"{name} must have one entry per {where} ({n_pixels}), got {len(norm)}.")
        spread = np.asarray(self.flux_scale or [DEFAULT_SPREAD])
        if n_wrong := int((~((spread > 0) & np.isfinite(spread))).sum()):
            raise ValueError(
                "flux_scale must be positive and finite, since normalised flux is divided by it; got "
                f"{n_wrong} of {spread.size} entries that are not, in {spread.min():g} to {spread.max():g}."
            )

    def _check_segments(self) -> None:
        if self.pixel_segments is None:
            return
        if self.pixel_width is not None:
            raise ValueError("pixel_width and pixel_segments both say what the model's pixels are; give one of them.")
        for segment in self.pixel_segments:
            if len(segment) != 4 or segment[0] not in EVEN_IN or not segment[2] > 0 or segment[3] % self.patch_size:
                raise ValueError(
                    f"a segment of pixels must be [even_in, first, step, n_pixels] with even_in one of {EVEN_IN}, a "
                    f"positive step and n_pixels a multiple of patch_size ({self.patch_size}), got {segment}."
                )
        if not (np.diff(self.wavelength_grid) > 0).all():
            raise ValueError("pixel_segments must follow each other in wavelength, without overlap.")

    # ------------------------------------------------------------ pixels

    @property
    def has_grid(self) -> bool:
        """Whether all spectra are brought to the same pixels; otherwise each keeps its own."""
        return self.pixel_width is not None or self.pixel_segments is not None

    @cached_property
    def segments(self) -> list[slice]:
        """Runs of pixels of `wavelength_grid` without a gap."""
        sizes = [self.wavelength_grid.size] if self.pixel_segments is None else [s[3] for s in self.pixel_segments]
        stops = np.cumsum(sizes)
        return [slice(int(stop - size), int(stop)) for stop, size in zip(stops, sizes, strict=True)]

    @cached_property
    def wavelength_grid(self) -> np.ndarray:
        """Centres of the model's pixels, vacuum Angstrom, shape (n_pixels,): whole tokens that cover the range.

        Raises:
            ValueError: Spectra keep their own pixels.
        """
        if self.pixel_segments is not None:
            runs = [(even_in, first + step * np.arange(n)) for even_in, first, step, n in self.pixel_segments]
            return np.concatenate([10.0**run if even_in == EVEN_IN[1] else run for even_in, run in runs])
        if self.pixel_width is None:
            raise ValueError(
                "this extractor leaves every spectrum on its own pixels (pixel_width is None), so there is no common "
                "grid; give pixel_width in Angstrom where one is needed."
            )
        token = self.patch_size * self.pixel_width
        first, last = np.floor(self.wavelength_range[0] / token), np.ceil(self.wavelength_range[1] / token)
        return self.pixel_width * (np.arange(first * self.patch_size, last * self.patch_size) + 0.5)

    @property
    def in_range(self) -> np.ndarray:
        """True for pixels of the grid inside wavelength_range, shape (n_pixels,)."""
        return self.inside(*self.wavelength_range)

    def inside(self, low: float, high: float) -> np.ndarray:
        """True for pixels of the grid centred in [low, high] vacuum Angstrom, shape (n_pixels,)."""
        return (self.wavelength_grid >= low) & (self.wavelength_grid <= high)

    def place(
        self,
        flux: Any,
        wavelength: Any,
        bad_pixel: Any = None,
        flux_error: Any = None,
        resolving_power: Any = None,
    ) -> Pixels:
        """One spectrum on the model's pixels: its own, sorted, or those of `wavelength_grid`.

        Args:
            flux: Shape (n,), any unit; non-finite values count as bad, and so do exact zeros, where `FILLING` or more
                of them are neighbours, or most of the flux is 0.
            wavelength: Shape (n,), vacuum Angstrom, rest frame, any order. Repeated wavelengths are averaged on a
                common grid; otherwise each stays a pixel. Those masked in a MaskedArray are left out.
            bad_pixel: Shape (n,), True = do not trust; None = all to be trusted.
            flux_error: 1-sigma, unit of the flux, shape (n,); not finite or not positive = not known. None = of none.
            resolving_power: lambda / FWHM, a number or shape (n,); likewise.

        Raises:
            ValueError: Shapes differ, complex numbers, no wavelength in range, no good pixel, a resolving power that
                no spectrograph has.
        """
        pixels = self._sorted(flux, wavelength, bad_pixel, flux_error, resolving_power)
        if not self.has_grid:
            low, high = self.wavelength_range
            inside = (pixels.wavelength >= low) & (pixels.wavelength <= high)
            pixels = pixels.cut(inside)
        else:
            pixels = self._on_grid(pixels)
        good = pixels.good
        level = _level(pixels.flux[good])
        if good.sum() < self.min_good_pixels or not level > 0:
            raise ValueError(
                f"a spectrum needs at least {self.min_good_pixels} good pixel(s) with flux in "
                f"{self.wavelength_range[0]:.0f}-{self.wavelength_range[1]:.0f} vacuum Angstrom, got "
                f"{int(good.sum()) if level > 0 else 0} of {len(flux)}. Is bad_pixel inverted (True = do not trust), "
                "or the flux all zero or NaN?"
            )
        if self.smoothing_length is None:
            return pixels
        error = None if pixels.flux_error is None else pixels.flux_error / level
        return replace(pixels, flux=pixels.flux / level, flux_error=error)

    def resample(self, flux: Any, wavelength: Any, bad_pixel: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Flux and good, shape (n_pixels,), of one spectrum on `wavelength_grid`; see `place`."""
        pixels = self.place(flux, wavelength, bad_pixel)
        return pixels.flux, pixels.good

    def _sorted(self, flux: Any, wavelength: Any, bad_pixel: Any, flux_error: Any, resolving_power: Any) -> Pixels:
        """Checked, in order of wavelength, 0 where bad or not known."""
        for name, values in (("flux", flux), ("wavelength", wavelength), ("flux_error", flux_error)):
            if np.iscomplexobj(np.asarray(values)):
                raise ValueError(
                    f"{name} must be real, got complex numbers; take .real, if their imaginary part is 0, before."
                )
        # np.asarray would drop a MaskedArray's mask without a word
        masked, nowhere = (np.ma.getmaskarray(np.ma.asarray(values)) for values in (flux, wavelength))
        flux, wavelength = np.asarray(flux, dtype=np.float64), np.asarray(wavelength, dtype=np.float64)
        bad = np.zeros(flux.shape, bool) if bad_pixel is None else np.asarray(bad_pixel, dtype=bool)
        if flux.ndim != 1 or flux.shape != wavelength.shape or bad.shape != flux.shape:
            raise ValueError(
                "flux, wavelength and bad_pixel must be 1-D with one value per pixel, got shapes "
                f"{flux.shape}, {wavelength.shape} and {bad.shape}."
            )
        if flux.size and nowhere.all():
            raise ValueError(
                f"all {flux.size} pixels are masked in wavelength (vacuum Angstrom); is its mask inverted (True = do "
                "not trust)?"
            )
        check_wavelength(wavelength[~nowhere], *self.wavelength_range)
        good = np.isfinite(flux) & ~bad & ~masked & ~nowhere
        if 2 * (good & (flux == 0)).sum() > good.sum():
            good &= flux != 0  # no star is dark at most wavelengths: what files are filled up with
        if good.any():
            # Cosmic rays and dead columns: no continuum is 100 times the median, and sums would drown in them.
            good &= np.abs(np.where(good, flux, 0.0)) <= OUTLIER_LEVEL * _level(flux[good])
        flux = np.where(good, flux, 0.0)

        def known(name: str, values: Any) -> np.ndarray | None:
            if values is None:
                return None
            values = np.asarray(np.ma.filled(np.ma.asarray(values), 0), dtype=np.float64)
            # An error is no property of a spectrum: one number would be one of several meant for its pixels.
            if values.shape != flux.shape and (name == "flux_error" or values.shape != ()):
                raise ValueError(f"{name} must have one value per pixel {flux.shape}, got shape {values.shape}.")
            values = np.broadcast_to(values, flux.shape)
            with np.errstate(invalid="ignore"):
                return np.where(np.isfinite(values) & (values > 0), values, 0.0)

        error, power = known("flux_error", flux_error), known("resolving_power", resolving_power)
        if power is not None:
            told, (least, most) = power[good & (power > 0)], RESOLVING_POWER_LIMITS
            if (impossible := told[(told < least) | (told > most)]).size:
                raise ValueError(
                    f"resolving_power is lambda / FWHM, got {impossible[0]:g}; is that a FWHM in Angstrom? Between "
                    f"{least:.0f} and {most:.0f} is needed; NaN = not known."
                )
        pixels = Pixels(flux, wavelength, good, error, power)
        if nowhere.any():
            pixels = pixels.cut(~nowhere)
        flux, wavelength, good = pixels.flux, pixels.wavelength, pixels.good
        error, power = pixels.flux_error, pixels.resolving_power
        if not (np.diff(wavelength) > 0).all():
            # Pixels at one wavelength are told apart by what else they hold: the order they came in says nothing.
            told = [part for part in (power, error, good, flux, wavelength) if part is not None]
            pixels = pixels.cut(np.lexsort(told))
        return pixels.only(~_filling(pixels.flux))

    def _on_grid(self, pixels: Pixels) -> Pixels:
        """Rebinned to `wavelength_grid`. Errors are taken as independent: a pixel made of n has 1 / sqrt(n) of them."""
        # Overlapping orders and duplicates: one pixel per wavelength, the mean of its good ones.
        unique, inverse = pixels.wavelength, None
        if not (np.diff(unique) > 0).all():
            unique, inverse = np.unique(unique, return_inverse=True)

        def summed(values: np.ndarray) -> np.ndarray:
            return values.astype(np.float64) if inverse is None else np.bincount(inverse, weights=values)

        n_good = summed(pixels.good)
        flux, covered = self._rebin(unique, summed(pixels.flux * pixels.good) / np.maximum(n_good, 1), n_good > 0)
        error = power = None
        if pixels.flux_error is not None:
            known = pixels.good & (pixels.flux_error > 0)
            n_known = summed(known)
            # Squares of 1e-200 are 0: in units near the errors themselves, a power of 2, which changes no bit.
            unit = np.ldexp(1.0, np.frexp(np.median(pixels.flux_error[known]))[1]) if known.any() else 1.0
            squares = np.where(known, pixels.flux_error / unit, 0.0) ** 2
            variance = summed(squares) / np.maximum(n_known, 1) ** 2
            variance, reached = self._rebin(unique, variance, n_known > 0)
            lower, upper = pixel_edges(unique)
            n_per_angstrom = self._rebin(unique, (n_good > 0) / (upper - lower), n_good >= 0)[0]
            n_merged = np.maximum(n_per_angstrom * self._pixel_widths, 1.0)
            error = np.where(reached, unit * np.sqrt(variance / n_merged), 0.0)
        if pixels.resolving_power is not None:
            known = pixels.good & (pixels.resolving_power > 0)
            n_known, total = summed(known), summed(pixels.resolving_power * known)
            power, reached = self._rebin(unique, total / np.maximum(n_known, 1), n_known > 0)
            power = np.where(reached, power, 0.0)
        return Pixels(flux, self.wavelength_grid, covered & self.in_range, error, power)

    @cached_property
    def _pixel_widths(self) -> np.ndarray:
        """Angstrom, shape (n_pixels,)."""
        edges = [pixel_edges(self.wavelength_grid[segment]) for segment in self.segments]
        return np.concatenate([upper - lower for lower, upper in edges])

    @cached_property
    def _rebinnings(self) -> list[tuple[np.ndarray, list[Rebinning | None]]]:
        """Wavelengths, and how they are rebinned to each segment; spectra of a survey share them."""
        return []

    def _rebin(self, wavelength: np.ndarray, flux: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`spectra.rebin` to the model's pixels, segment by segment: one has no neighbour in the next."""
        kept = self._rebinnings
        found = next((made for known, made in kept if np.array_equal(known, wavelength)), None)
        if found is None:
            grids = [self.wavelength_grid[segment] for segment in self.segments]
            apart = [wavelength[-1] < grid[0] or wavelength[0] > grid[-1] for grid in grids]
            found = [None if far else Rebinning(wavelength, grid) for far, grid in zip(apart, grids, strict=True)]
            kept.insert(0, (wavelength.copy(), found))
            del kept[4:]
        rebinned, covered = np.zeros(self.wavelength_grid.size), np.zeros(self.wavelength_grid.size, dtype=bool)
        for segment, rebinning in zip(self.segments, found, strict=True):
            if rebinning is not None:
                rebinned[segment], covered[segment] = rebinning(flux, good)
        return rebinned, covered

    # ------------------------------------------------------------ flux

    @cached_property
    def _continua(self) -> dict[bytes, PseudoContinuum]:
        """Wavelengths -> their pseudo-continuum; making one costs more than using it."""
        return {}

    def _continuum(self, wavelength: np.ndarray) -> PseudoContinuum:
        key = wavelength.tobytes()
        if key not in self._continua:
            if len(self._continua) >= 8:
                self._continua.pop(next(iter(self._continua)))
            self._continua[key] = PseudoContinuum(wavelength, float(self.smoothing_length or np.inf))
        return self._continua[key]

    def _normalise(
        self, flux: np.ndarray, good: np.ndarray, wavelength: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalised flux, good, and the continuum it was divided by; shapes (..., n_pixels)."""
        low, high = self.flux_range
        if self.smoothing_length is None:
            with np.errstate(invalid="ignore"):
                good = good & (flux > low) & (flux < high)
            return np.where(good, flux, 1.0), good, np.broadcast_to(1.0, flux.shape)  # not rounded before it is scaled
        for attempt in range(2):
            continuum = self._continuum(wavelength)(flux, good)
            with np.errstate(invalid="ignore", divide="ignore"):
                normalised = flux / continuum
                outside = ~((normalised > low) & (normalised < high)) | ~(continuum > 0)
            # A spike pulls the continuum along: at first only what cannot be starlight (the median is 1) goes, then the
            # rest is judged.
            outlier = outside if attempt else outside & ((flux <= 0) | (flux > high))
            if not (good & outlier).any():
                break
            good = good & ~outlier
        return np.where(good, normalised, 1.0).astype(np.float32), good, continuum

    def normalise(
        self, flux: np.ndarray, good: np.ndarray, wavelength: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Continuum-normalise spectra on common pixels: (..., n_pixels) -> flux near 1 and good without outliers.

        Outliers are found and the pseudo-continuum taken again without them, so that a spike does not drag it along.

        Args:
            wavelength: Of the pixels, vacuum Angstrom, shape (n_pixels,); None = `wavelength_grid`.
        """
        return self._normalise(flux, good, self.wavelength_grid if wavelength is None else wavelength)[:2]

    def fit_flux_norms(
        self, flux: np.ndarray, good: np.ndarray, wavelength: np.ndarray | None = None, floor: float = 0.01
    ) -> None:
        """Take flux_center and flux_scale from training spectra on common pixels, shapes (n_spectra, n_pixels).

        Args:
            wavelength: Of the pixels, vacuum Angstrom, increasing; None = `wavelength_grid`. Where other instruments
                were fitted before, their norms stay outside the range of these wavelengths.
            floor: Smallest spread, so that pixels without lines do not become noise amplifiers.
        """
        normalised, good = self.normalise(flux, good, wavelength)
        count = np.maximum(good.sum(axis=0), 1)
        center = np.where(good, normalised, 0.0).sum(axis=0) / count
        variance = np.where(good, (normalised - center) ** 2, 0.0).sum(axis=0) / count
        seen = good.any(axis=0)
        center = np.where(seen, np.round(center.astype(float), 4), DEFAULT_CENTER)
        spread = np.where(seen, np.round(np.maximum(np.sqrt(variance.astype(float)), floor), 4), DEFAULT_SPREAD)
        if wavelength is not None and self.flux_center and self.flux_scale:
            before = np.array(self._norms_kept()[0])
            before = before[:, (before[0] < wavelength[0]) | (before[0] > wavelength[-1])]
            together = np.concatenate([before, np.stack([wavelength, center, spread])], axis=1)
            wavelength, center, spread = together[:, np.argsort(together[0])]
        self.flux_wavelength = None if wavelength is None else wavelength.tolist()
        self.flux_center, self.flux_scale = center.tolist(), spread.tolist()

    def _norms_kept(self) -> tuple[_Norms, list[_Norms]]:
        """Wavelength, mean and spread of the training spectra, each (n,): lists of JSON as arrays, made once. And what
        these are at wavelengths that were asked for: spectra of a survey share them."""
        told = (self.flux_wavelength, self.flux_center, self.flux_scale)
        kept = self.__dict__.get("_norm_table")
        if kept is None or any(old is not new for old, new in zip(kept[0], told, strict=True)):
            where = np.asarray(self.flux_wavelength) if self.flux_wavelength is not None else self.wavelength_grid
            center = np.full(where.size, DEFAULT_CENTER) if self.flux_center is None else np.asarray(self.flux_center)
            spread = np.full(where.size, DEFAULT_SPREAD) if self.flux_scale is None else np.asarray(self.flux_scale)
            self.__dict__["_norm_table"] = kept = (told, (where, center, spread), [])
        return kept[1:]

    def _norms(self, wavelength: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
        """Mean and spread of the training spectra at these wavelengths."""
        if self.flux_center is None and self.flux_scale is None:
            return DEFAULT_CENTER, DEFAULT_SPREAD
        (where, center, spread), kept = self._norms_kept()
        if wavelength is where:
            return center, spread
        found = next((one for one in kept if np.array_equal(one[0], wavelength)), None)
        if found is None:
            beyond = (DEFAULT_CENTER, center), (DEFAULT_SPREAD, spread)
            center, spread = (np.interp(wavelength, where, known, left=edge, right=edge) for edge, known in beyond)
            found = (wavelength.copy(), center, spread)
            kept.insert(0, found)
            del kept[4:]
        return found[1:]

    def scale(self, normalised: np.ndarray, good: np.ndarray, wavelength: np.ndarray | None = None) -> np.ndarray:
        """Normalised flux -> zero mean and unit spread per pixel over the training spectra; 0 where missing."""
        center, spread = self._norms(self.wavelength_grid if wavelength is None else wavelength)
        return np.where(good, (normalised - center) / spread, 0.0).astype(np.float32)

    def clean(
        self, flux: np.ndarray, good: np.ndarray, wavelength: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the model sees of spectra on common pixels: `normalise`, then `scale`; flux and good, same shape."""
        scaled, good, _ = self.clean_with_continuum(
            flux, good, self.wavelength_grid if wavelength is None else wavelength
        )
        return scaled, good

    def clean_with_continuum(
        self, flux: np.ndarray, good: np.ndarray, wavelength: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`clean`, and the pseudo-continuum that the flux was divided by, in the unit of the flux."""
        normalised, good, continuum = self._normalise(flux, good, wavelength)
        scaled = self.scale(normalised, good, wavelength)
        if self.largest_scaled is not None:
            good = good & (np.abs(scaled) <= self.largest_scaled)
            scaled = np.where(good, scaled, np.float32(0))
        return scaled, good, continuum

    def __call__(
        self,
        flux: Any,
        wavelength: Any,
        bad_pixel: Any = None,
        labels: Any = None,
        label_errors: Any = None,
        return_tensors: str | None = None,
        *,
        flux_error: Any = None,
        resolving_power: Any = None,
        given: Mapping[str, Any] | None = None,
        given_errors: Mapping[str, Any] | None = None,
    ) -> BatchFeature:
        """Prepare one spectrum (1-D arrays) or several (2-D arrays, or lists of 1-D arrays of any lengths).

        Args:
            flux: Any multiplicative unit; continuum-normalised if `smoothing_length` is None.
            wavelength: Vacuum Angstrom, rest frame; 1-D also when several spectra share it.
            bad_pixel: True = do not trust.
            labels: In K and dex, shape (batch, n_labels) in the order of label_names; NaN = missing, and so is what
                lies outside `labels.Label.valid`.
            label_errors: 1-sigma, same shape and units; NaN or 0 = not published.
            return_tensors: "pt", "np" or None.
            flux_error: 1-sigma, in the unit of the flux, shaped like it; not finite or not positive = not known.
            resolving_power: lambda / FWHM: a number, one number per spectrum, or shaped like the flux; likewise.
            given: What else is known: name of `given_names` -> a number, or one per spectrum, in its unit (labels: K
                and dex); NaN = not known of that star.
            given_errors: 1-sigma, likewise; a name left out, NaN or 0 = not published.

        Returns:
            flux, wavelength, attention_mask of shape (batch, n), n a multiple of patch_size; flux_error (relative to
            the continuum) and resolving_power, if told, likewise; with labels, also labels and label_errors, scaled;
            with given, also given and given_errors, scaled.

        Raises:
            ValueError: See `place` and `encode_given`; the message names the spectrum.
        """
        single = np.ndim(flux[0]) == 0 if len(flux) else True
        spectra = [flux] if single else list(flux)
        shared = np.ndim(wavelength[0]) == 0 if len(wavelength) else True
        wavelengths = [wavelength] * len(spectra) if shared else list(wavelength)

        def each(values: Any) -> list[Any]:
            """One entry per spectrum of what may be left out, or be one number for all."""
            if values is None or np.isscalar(values) or getattr(values, "ndim", 1) == 0:
                return [values] * len(spectra)
            return [values] if single else list(values)

        told = [each(values) for values in (bad_pixel, flux_error, resolving_power)]
        if any(len(part) != len(spectra) for part in (wavelengths, *told)):
            raise ValueError(
                "as many wavelength, bad_pixel, flux_error and resolving_power arrays as spectra are needed, got "
                f"{len(wavelengths)}, {', '.join(str(len(part)) for part in told)} for {len(spectra)}."
            )
        features = []
        for index, spectrum in enumerate(zip(spectra, wavelengths, *told, strict=True)):
            try:
                features.append(self.tokenise(self.place(*spectrum)))
            except ValueError as error:
                raise ValueError(f"spectrum {index} of {len(spectra)}: {error}") from error
        batch = self.pad(features)
        if given is not None or given_errors is not None:
            batch["given"], batch["given_errors"] = self.encode_given(given or {}, given_errors, len(spectra))
        if labels is not None:
            errors = None if label_errors is None else np.atleast_2d(label_errors)
            batch["labels"], batch["label_errors"] = self.encode_labels(np.atleast_2d(labels), errors)
            if len(batch["labels"]) != len(spectra):
                raise ValueError(
                    f"one row of labels per spectrum is needed, got {len(batch['labels'])} for {len(spectra)}."
                )
        return batch.convert_to_tensors(return_tensors)

    # ------------------------------------------------------------ tokens

    def tokenise(self, pixels: Pixels, keep_empty: bool = False) -> dict[str, np.ndarray]:
        """One spectrum -> a row of the batch: flux, wavelength, attention_mask and what else is known of its pixels.

        Args:
            keep_empty: Also return tokens without a good pixel, which the model does not attend to.

        Raises:
            ValueError: Too few pixels are left after outliers were dropped.
        """
        cleaned = self.clean_with_continuum(pixels.flux[None], pixels.good[None], pixels.wavelength)
        scaled, good, continuum = (array[0] for array in cleaned)
        if good.sum() < self.min_good_pixels:
            raise ValueError(
                f"only {int(good.sum())} good pixel(s) are left after outliers (normalised flux outside "
                f"{self.flux_range}) were dropped."
            )
        extra = {}
        if pixels.flux_error is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                relative = pixels.flux_error / continuum
            extra["flux_error"] = np.where(good & np.isfinite(relative), relative, 0.0).astype(np.float32)
        if pixels.resolving_power is not None:
            extra["resolving_power"] = pixels.resolving_power.astype(np.float32)
        return self.cut_tokens(scaled, good, None if self.has_grid else pixels.wavelength, keep_empty, **extra)

    def cut_tokens(
        self,
        scaled: np.ndarray,
        good: np.ndarray,
        wavelength: np.ndarray | None = None,
        keep_empty: bool = False,
        **extra: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """One spectrum, arrays of shape (n_pixels,), cut into whole tokens.

        Args:
            wavelength: Of the pixels, increasing; patches of neighbouring pixels are counted off from the first pixel
                and from each gap on, the last of each filled up with pixels at wavelength 0. None = `wavelength_grid`,
                whose tokens lie where they always do.
            keep_empty: Return all tokens, not only those with a good pixel.
            extra: More arrays to be cut alike.
        """
        if not good.any():
            raise ValueError(
                f"no good pixel is left: normalised flux lies outside {self.flux_range} everywhere, or every pixel is "
                "flagged. Is bad_pixel inverted (True = do not trust)?"
            )
        row = {
            "flux": scaled,
            "wavelength": self.wavelength_grid if wavelength is None else wavelength,
            "attention_mask": good.astype(np.int64),
            **extra,
        }
        if wavelength is None:
            kept_tokens = keep_empty | good.reshape(-1, self.patch_size).any(axis=1)
            kept_pixels = np.repeat(kept_tokens, self.patch_size)
            return {name: values[kept_pixels] for name, values in row.items()}
        slots = self._slots(wavelength)
        kept = slots.ravel() if keep_empty else slots[(good[slots] & (slots >= 0)).any(axis=1)].ravel()
        return {name: np.where(kept >= 0, values[kept], values.dtype.type(0)) for name, values in row.items()}

    def _slots(self, wavelength: np.ndarray) -> np.ndarray:
        """Pixel numbers of each patch, -1 where it is filled up; shape (n_tokens, patch_size)."""
        step = np.diff(wavelength)
        widest = COARSEST * wavelength[:-1]
        ordered = np.sort(step[step <= widest])
        apart = ordered[np.cumsum(ordered) > OVERLAP * ordered.sum()]  # empty where all wavelengths are one
        gaps = np.flatnonzero(step > (np.minimum(GAP * np.quantile(apart, 0.75), widest) if apart.size else widest)) + 1
        filled = []
        for run in np.split(np.arange(wavelength.size), gaps):
            filled.append(np.pad(run, (0, -run.size % self.patch_size), constant_values=-1))
        return np.concatenate(filled).reshape(-1, self.patch_size)

    def pad(
        self,
        processed_features: Any,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Pad spectra with masked pixels, which change no prediction.

        The words are those of `SequenceFeatureExtractor.pad`, which would pad nothing but flux and attention_mask, and
        make float32 of wavelength. What else all rows have, such as labels, is stacked as it is, if it is numbers: a
        stock `DataCollatorWithPadding` collates no more than what comes out here.

        Args:
            processed_features: Prepared spectra: a list of rows, or one mapping of columns.
            padding: True or "longest"; "max_length"; False = leave the lengths as they are.
            max_length: Pixels to pad to, or to cut at.
            truncation: Cut what is longer than max_length; its red end is lost.
            pad_to_multiple_of: Lengths padded to or cut at are rounded up to a multiple of it.
            return_attention_mask: False = leave it out; else it is always given, 1 where a row came without.
            return_tensors: "pt", "np" or None.

        Raises:
            ValueError: max_length is needed and missing; or other entries that differ in shape from row to row.
        """
        rows = processed_features
        if not isinstance(rows, (list, tuple)):
            rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        strategy = self._get_padding_strategies(padding, max_length)
        if truncation and max_length is None:
            raise ValueError("truncation needs max_length, the number of pixels to keep.")

        def whole(length: int) -> int:
            return -(-length // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)

        lengths = [len(row["flux"]) for row in rows]
        if truncation and max_length is not None:
            lengths = [min(length, whole(max_length)) for length in lengths]
        least = {PaddingStrategy.LONGEST: max(lengths), PaddingStrategy.MAX_LENGTH: max_length}.get(strategy)
        padded = [max(length, whole(least or 0)) for length in lengths]
        present = [name for name in _PER_PIXEL if any(name in row for row in rows)]
        batch = {}
        for name in (*present, *(() if return_attention_mask is False else ("attention_mask",))):
            fill = (1, np.int64) if name == "attention_mask" else (0, np.float32)  # good; or 0 = not known
            arrays = [np.asarray(row.get(name, np.full(len(row["flux"]), *fill))) for row in rows]
            arrays = [
                np.pad(array[:length], (0, to - length))
                for array, length, to in zip(arrays, lengths, padded, strict=True)
            ]
            batch[name] = np.stack(arrays) if len(set(padded)) == 1 else arrays
        for name in rows[0]:
            if name in (*_PER_PIXEL, "attention_mask") or not all(name in row for row in rows):
                continue
            arrays = [np.asarray(row[name]) for row in rows]
            if any(array.dtype.kind not in "biuf" for array in arrays):
                continue  # names of stars are no input of a model, and make no tensor
            if len(shapes := {array.shape for array in arrays}) > 1:
                raise ValueError(f"{name} must have one shape in all rows, got {', '.join(map(str, sorted(shapes)))}.")
            batch[name] = np.stack(arrays)
        return SpectrumBatch(batch, tensor_type=return_tensors)

    # ------------------------------------------------------------ non-spectral inputs

    def encode_given(
        self, given: Mapping[str, Any], given_errors: Mapping[str, Any] | None = None, n_spectra: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Non-spectral inputs -> scaled values, NaN = not given, and errors; (n_spectra, n_given), float32.

        Args:
            given: Name -> a number for all, or one per spectrum; K, dex and the units of `labels.SCALARS`.
            given_errors: 1-sigma, likewise; not told, NaN or not positive = the table's default, never certainty.

        Raises:
            ValueError: A name the model was not made for, or an error without a value; or not one value per spectrum;
                or a value farther outside its valid range than noise takes it (`NOISE_LIMITS`).
        """
        given_errors = given_errors or {}
        for name in (*given, *given_errors):
            if name not in self.given_names:
                known = ", ".join(self.given_names) or "nothing beside a spectrum"
                raise ValueError(f"this model can be given {known}; got {name!r}.")
        if orphans := set(given_errors) - set(given):
            raise ValueError(f"given_errors has {', '.join(sorted(orphans))}, of which given has no value.")
        values, errors = (np.full((n_spectra, len(self.given_names)), np.nan) for _ in range(2))
        for column, name in enumerate(self.given_names):
            center, scale, table = self.input_scale(name)
            for target, told in ((values, given), (errors, given_errors)):
                if name in told:
                    numbers = np.asarray(told[name], dtype=np.float64)
                    if numbers.shape not in ((), (n_spectra,)):
                        raise ValueError(
                            f"{name} must be one number, or one per spectrum ({n_spectra}), got shape {numbers.shape}."
                        )
                    target[:, column] = numbers
            value, error = values[:, column], errors[:, column]
            error[~(np.isfinite(error) & (error > 0))] = table.default_error
            (low, high), (own, default) = table.valid, NOISE_LIMITS
            noise = np.minimum(own * error, default * table.default_error)
            wrong = np.isfinite(value) & ((value < low - noise) | (value > high + noise))
            if wrong.any():
                row = int(np.argmax(wrong))
                raise ValueError(
                    f"{name} must lie in {low:g} to {high:g} {table.unit}".rstrip()
                    + f", got {value[row]:g} in row {row}. NaN = not known; is it in another unit, or a logarithm?"
                )
            values[:, column], errors[:, column] = (value - center) / scale, error / scale
        values[~np.isfinite(values)] = np.nan
        return values.astype(np.float32), errors.astype(np.float32)

    def input_scale(self, name: str) -> tuple[float, float, Label | Scalar]:
        """Centre and scale of a non-spectral input, in its unit, and what the table says of it."""
        if name in self.label_names:
            number = self.label_names.index(name)
            return self.label_center[number], self.label_scale[number], get_label(name)
        scalar = get_scalar(name)
        return scalar.center, scalar.scale, scalar

    # ------------------------------------------------------------ labels

    def encode_labels(self, labels: Any, label_errors: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Labels in K and dex -> scaled, missing = -100; errors scaled, unpublished = the label's default; float32.

        Args:
            labels: Shape (..., n_labels) in the order of label_names; NaN = missing, and so is what lies outside
                `labels.Label.valid`: -9999 of a survey, and all else that is no star.
            label_errors: Same shape; None, NaN or not positive = `labels.Label.default_error`, never certainty.
        """
        center, scale = np.asarray(self.label_center), np.asarray(self.label_scale)
        labels = np.asarray(labels, dtype=np.float64)
        if labels.shape[-1:] != (len(self.label_names),):
            raise ValueError(f"labels must have one column per label {self.label_names}, got shape {labels.shape}.")
        default = np.array([get_label(name).default_error for name in self.label_names])
        lowest, highest = np.array([get_label(name).valid for name in self.label_names]).T
        errors = np.full(labels.shape, np.nan) if label_errors is None else np.asarray(label_errors, dtype=np.float64)
        if errors.shape != labels.shape:
            raise ValueError(f"label_errors must have the shape of labels {labels.shape}, got {errors.shape}.")
        with np.errstate(invalid="ignore"):
            errors = np.where(np.isfinite(errors) & (errors > 0), errors, default)
            known = (labels >= lowest) & (labels <= highest)
        scaled = np.where(known, (labels - center) / scale, MISSING_LABEL)
        return scaled.astype(np.float32), (errors / scale).astype(np.float32)

    def decode_labels(self, label_mean: Any, label_log_var: Any = None, noise: Any = None) -> dict[str, dict[str, Any]]:
        """The model's answer in the labels' units.

        Args:
            label_mean: Shape (batch, n_labels), scaled.
            label_log_var: Same shape, natural logarithm of the variance in scaled units.
            noise: Of the spectra, shape (batch,), see `noise`; it sharpens a `recalibration`. NaN or None = not known.

        Returns:
            label name -> {"value", "sigma", "sigma95"}, each of shape (batch,), in K or dex; `value` alone, and the
            network's own, without label_log_var. `value` +- `sigma` is the central 68.27 % interval, `value` +- 1.96
            `sigma95` that of 95 %; they are the network's own, and equal, where neither `recalibration` nor
            `sigma_factors` has anything on the label.
        """
        value = _array(label_mean) * self.label_scale + self.label_center
        if label_log_var is None:
            return {name: {"value": value[..., i]} for i, name in enumerate(self.label_names)}
        sigma = np.exp(0.5 * _array(label_log_var)) * self.label_scale
        decoded = {}
        for i, name in enumerate(self.label_names):
            narrow, wide = self.sigma_factors.get(name, (1.0, 1.0))
            decoded[name] = {"value": value[..., i], "sigma": narrow * sigma[..., i], "sigma95": wide * sigma[..., i]}
        if self._recalibration is not None:
            known = np.full(value.shape[:-1], np.nan) if noise is None else _array(noise)
            answers = self._recalibration(value, sigma, known)
            for name, shift, narrow, wide in zip(
                self._recalibration.label_names, *(np.moveaxis(part, -1, 0) for part in answers), strict=True
            ):
                own = sigma[..., self.label_names.index(name)]
                decoded[name]["value"] = decoded[name]["value"] + shift * own
                decoded[name] |= {"sigma": narrow * own, "sigma95": wide * own}
        return decoded

    def learned_also(self, ranges: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """Add to `learned_ranges`, in place; those without a gap between them (`COARSEST`) become one.

        Args:
            ranges: As `learned_ranges` has them, to 0.1 Angstrom.
        """
        for name, more in ranges.items():
            joined: list[list[float]] = []
            for low, high in sorted([*self.learned_ranges.get(name, ()), *np.round(more, 1).tolist()]):
                if joined and low <= joined[-1][1] * (1 + COARSEST):
                    joined[-1][1] = max(joined[-1][1], high)
                else:
                    joined.append([low, high])
            self.learned_ranges[name] = joined
        self._check()

    def learned_share(self, wavelength: np.ndarray) -> dict[str, float]:
        """How much of a spectrum lies where a label was learned.

        Args:
            wavelength: Of its good pixels, vacuum Angstrom, shape (n,).

        Returns:
            Label of `learned_ranges` -> share of these pixels, 0 to 1.
        """
        counted: dict[tuple[float, float], int] = {}  # labels that were learned together share their ranges

        def inside(low: float, high: float) -> int:
            if (low, high) not in counted:
                counted[low, high] = int((wavelength >= low).sum() - (wavelength > high).sum())
            return counted[low, high]

        return {
            name: sum(inside(low, high) for low, high in ranges) / max(wavelength.size, 1)
            for name, ranges in self.learned_ranges.items()
        }

    @property
    def _recalibration(self) -> Recalibration | None:
        """`recalibration` with arrays for its lists."""
        if self.recalibration is None:
            return None
        names, *arrays = (self.recalibration[field] for field in Recalibration.__dataclass_fields__)
        return Recalibration(names, *map(np.asarray, arrays))

    def unscale(self, scaled: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        """What `scale` undoes: scaled flux (..., n_pixels) at wavelengths (n_pixels,) -> normalised, near 1."""
        center, spread = self._norms(wavelength)
        return scaled * spread + center

    def noise(self, batch: Mapping[str, Any]) -> np.ndarray:
        """1-sigma noise per pixel relative to the continuum, as the pixels themselves show it; shape (batch,).

        From third differences of neighbouring pixels, which leave little of any line that is resolved: 1.4826 times
        the median of their absolute values, over sqrt(20). Noise that a resampling has correlated is underestimated;
        where one pixel of the spectrum became many of the model's, these are alike and show none.

        Args:
            batch: As this extractor prepares it: flux, wavelength and attention_mask, (batch, n_pixels).

        Returns:
            NaN of spectra with fewer than 30 runs of four good pixels, or where a quarter of these are smooth.
        """
        flux, wavelength, good = (_array(batch[name]) for name in ("flux", "wavelength", "attention_mask"))
        noise = np.full(len(flux), np.nan)
        before = even = None
        for row, (scaled, where, usable) in enumerate(zip(flux, wavelength, good > 0, strict=True)):
            if before is None or not np.array_equal(where, before):  # spectra of a survey share their wavelengths
                step, before = np.diff(where), where
                even = (step > 0) & (step < 1.5 * np.roll(step, 1)) & (step > np.roll(step, 1) / 1.5)
                even = even[1:-1] & even[2:]
            run = usable[:-3] & usable[1:-2] & usable[2:-1] & usable[3:] & even
            third = np.abs(np.diff(self.unscale(scaled, where), 3)[run])
            if third.size >= 30 and (third < SMOOTH).mean() < MOST_SMOOTH:
                noise[row] = 1.4826 * np.median(third) / np.sqrt(20)
        return noise

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds: the parameters, without what is computed from them.

        Norms known at pixels of the grid alone are told on all of it, and `flux_wavelength`, the longest list, is not.
        """
        told = {key: value for key, value in super().to_dict().items() if key not in _CACHED}
        if self.has_grid and self.flux_wavelength and np.isin(self.flux_wavelength, self.wavelength_grid).all():
            center, scale = (
                np.broadcast_to(norm, self.wavelength_grid.shape) for norm in self._norms(self.wavelength_grid)
            )
            told |= {"flux_wavelength": None, "flux_center": center.tolist(), "flux_scale": scale.tolist()}
        return told

    def __repr__(self) -> str:
        """What it makes of which spectra, without its lists of thousands of pixels."""
        pixels = f"{self.wavelength_grid.size:,} pixels" if self.has_grid else "pixels as they come"
        low, high = self.wavelength_range
        return (
            f"{type(self).__name__}({', '.join(self.label_names)}; {low:.0f}-{high:.0f} vacuum Angstrom, {pixels}, "
            f"patches of {self.patch_size})"
        )

    def to_json_string(self) -> str:
        """The same as text, one parameter per line: a list of thousands of pixels is one line, too."""
        told = json.loads(super().to_json_string())
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in told.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"
