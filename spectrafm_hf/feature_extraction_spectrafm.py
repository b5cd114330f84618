"""Spectrum -> clean, scaled arrays with an attention_mask; labels -> scaled numbers, and back to K and dex.

What is learned from the training spectra (the mean and spread of each pixel, the centre and scale of each label) is
saved in preprocessor_config.json, so that a checkpoint prepares every later spectrum as it prepared its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from transformers import BatchFeature
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from .labels import MISSING_LABEL, get_label
from .spectra import PseudoContinuum, check_wavelength, rebin

OUTLIER_LEVEL = 100.0
"""Flux beyond this many times the median flux of its spectrum is no starlight."""

_CACHED = ("wavelength_grid", "_pseudo_continuum")


class SpectraFMFeatureExtractor(SequenceFeatureExtractor):
    """Prepares spectra for SpectraFM.

    In this order: rebin onto the model's pixels (flux-conserving, good pixels only); divide by the pseudo-continuum
    (`spectra.PseudoContinuum`); drop outliers; subtract each pixel's mean and divide by its spread; flag what is
    missing in `attention_mask`. Pixels may come in any order, the wavelength says where they belong.

    Args:
        label_names: Labels in the model's order; names of `labels.LABELS`.
        label_center: Subtracted from each label, in its unit (None = 0).
        label_scale: Then divided by, in its unit (None = 1).
        patch_size: Pixels per token of the model.
        pixel_width: Width of the model's pixels, Angstrom. Pixel n is centred on (n + 0.5) * pixel_width, and tokens
            start at multiples of patch_size * pixel_width, whatever window is given.
        wavelength_range: Where the model works, vacuum Angstrom; pixels outside are ignored.
        smoothing_length: Of the pseudo-continuum, Angstrom.
        flux_range: Continuum-normalised flux outside is an outlier and counts as missing.
        flux_center: Mean normalised flux of each pixel of `wavelength_grid` over the training spectra (None = 1).
        flux_scale: Its spread, likewise (None = 0.1).
        min_good_pixels: A spectrum with fewer is refused.

    Raises:
        ValueError: Lists that do not fit each other, an unknown label, an empty range.
    """

    model_input_names: ClassVar[list[str]] = ["flux", "wavelength", "attention_mask"]

    def __init__(
        self,
        label_names: Sequence[str] = ("teff", "logg", "fe_h"),
        label_center: Sequence[float] | None = None,
        label_scale: Sequence[float] | None = None,
        patch_size: int = 160,
        pixel_width: float = 1.0,
        wavelength_range: Sequence[float] = (3600.0, 7400.0),
        smoothing_length: float = 100.0,
        flux_range: Sequence[float] = (-0.5, 3.0),
        flux_center: Sequence[float] | None = None,
        flux_scale: Sequence[float] | None = None,
        min_good_pixels: int = 1,
        **kwargs: Any,
    ):
        for fixed in ("feature_size", "sampling_rate", "padding_value"):  # of audio; saved by transformers all the same
            kwargs.pop(fixed, None)
        super().__init__(feature_size=1, sampling_rate=1, padding_value=0.0, **kwargs)
        self.label_names = list(label_names)
        self.label_center = [0.0] * len(self.label_names) if label_center is None else [float(c) for c in label_center]
        self.label_scale = [1.0] * len(self.label_names) if label_scale is None else [float(s) for s in label_scale]
        self.patch_size = patch_size
        self.pixel_width = pixel_width
        self.wavelength_range = [float(edge) for edge in wavelength_range]
        self.smoothing_length = smoothing_length
        self.flux_range = [float(edge) for edge in flux_range]
        self.flux_center = None if flux_center is None else [float(c) for c in flux_center]
        self.flux_scale = None if flux_scale is None else [float(s) for s in flux_scale]
        self.min_good_pixels = min_good_pixels
        self._check()

    def _check(self) -> None:
        for name in self.label_names:
            get_label(name)
        if not len(self.label_names) == len(self.label_center) == len(self.label_scale):
            raise ValueError(
                "label_names, label_center and label_scale must have one entry per label, got "
                f"{len(self.label_names)}, {len(self.label_center)} and {len(self.label_scale)}."
            )
        low, high = self.wavelength_range
        if not (0 < low < high and self.pixel_width > 0 and self.smoothing_length > 0 and self.patch_size > 0):
            raise ValueError(
                "wavelength_range, pixel_width, smoothing_length (Angstrom) and patch_size (pixels) must be positive, "
                f"got {self.wavelength_range}, {self.pixel_width}, {self.smoothing_length} and {self.patch_size}."
            )
        n_pixels = self.wavelength_grid.size
        for name, norm in (("flux_center", self.flux_center), ("flux_scale", self.flux_scale)):
            if norm is not None and len(norm) != n_pixels:
                raise ValueError(
                    f"{name} must have one entry per pixel of wavelength_grid ({n_pixels}), got {len(norm)}."
                )

    # ------------------------------------------------------------ grid

    @cached_property
    def wavelength_grid(self) -> np.ndarray:
        """Centres of the model's pixels, vacuum Angstrom, shape (n_pixels,): whole tokens that cover the range."""
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

    @cached_property
    def _pseudo_continuum(self) -> PseudoContinuum:
        return PseudoContinuum(self.wavelength_grid, self.smoothing_length)

    def resample(self, flux: Any, wavelength: Any, bad_pixel: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """One spectrum on the model's pixels.

        Args:
            flux: Shape (n,), any unit; non-finite values count as bad.
            wavelength: Shape (n,), vacuum Angstrom, rest frame, any order; repeated wavelengths are averaged.
            bad_pixel: Shape (n,), True = do not trust; None = all to be trusted.

        Returns:
            Flux, shape (n_pixels,), median of the good pixels 1; and good, shape (n_pixels,), bool.

        Raises:
            ValueError: Shapes differ, no wavelength in range, no good pixel.
        """
        masked = np.ma.getmaskarray(np.ma.asarray(flux))  # np.asarray would drop a MaskedArray's mask without a word
        flux, wavelength = np.asarray(flux, dtype=np.float64), np.asarray(wavelength, dtype=np.float64)
        bad = np.zeros(flux.shape, bool) if bad_pixel is None else np.asarray(bad_pixel, dtype=bool)
        if flux.ndim != 1 or flux.shape != wavelength.shape or bad.shape != flux.shape:
            raise ValueError(
                "flux, wavelength and bad_pixel must be 1-D with one value per pixel, got shapes "
                f"{flux.shape}, {wavelength.shape} and {bad.shape}."
            )
        check_wavelength(wavelength, *self.wavelength_range)
        good = np.isfinite(flux) & ~bad & ~masked
        if good.any():
            # Cosmic rays and dead columns: no continuum is 100 times the median, and sums would drown in them.
            good &= np.abs(np.where(good, flux, 0.0)) <= OUTLIER_LEVEL * np.median(np.abs(flux[good]))
        order = np.argsort(wavelength, kind="stable")
        wavelength, flux, good = wavelength[order], np.where(good, flux, 0.0)[order], good[order]
        # Overlapping orders and duplicates: one pixel per wavelength, the mean of its good ones.
        unique, inverse = np.unique(wavelength, return_inverse=True)
        count = np.bincount(inverse, weights=good)
        total = np.bincount(inverse, weights=flux * good)
        flux, good = total / np.maximum(count, 1), count > 0
        resampled, covered = rebin(unique, flux, good, self.wavelength_grid)
        covered &= self.in_range
        if covered.sum() < self.min_good_pixels or not (level := np.median(np.abs(resampled[covered]))) > 0:
            raise ValueError(
                f"a spectrum needs at least {self.min_good_pixels} good pixel(s) with flux in "
                f"{self.wavelength_range[0]:.0f}-{self.wavelength_range[1]:.0f} vacuum Angstrom, got "
                f"{int(covered.sum())} of {int(good.size)}. Is bad_pixel inverted (True = do not trust), or the flux "
                "all zero or NaN?"
            )
        return resampled / level, covered

    # ------------------------------------------------------------ flux

    def normalise(self, flux: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Continuum-normalise spectra on `wavelength_grid`: (..., n_pixels) -> flux near 1 and good without outliers.

        Outliers are found and the pseudo-continuum taken again without them, so that a spike does not drag it along.
        """
        for attempt in range(2):
            continuum = self._pseudo_continuum(flux, good)
            with np.errstate(invalid="ignore", divide="ignore"):
                normalised = flux / continuum
                outside = ~((normalised > self.flux_range[0]) & (normalised < self.flux_range[1])) | ~(continuum > 0)
            # A spike pulls the continuum along: at first only what cannot be starlight (the median is 1) goes, then the
            # rest is judged.
            outlier = outside if attempt else outside & ((flux <= 0) | (flux > self.flux_range[1]))
            if not (good & outlier).any():
                break
            good = good & ~outlier
        return np.where(good, normalised, 1.0).astype(np.float32), good

    def fit_flux_norms(self, flux: np.ndarray, good: np.ndarray, floor: float = 0.01) -> None:
        """Take flux_center and flux_scale from training spectra on `wavelength_grid`, shapes (n_spectra, n_pixels).

        Args:
            floor: Smallest spread, so that pixels without lines do not become noise amplifiers.
        """
        normalised, good = self.normalise(flux, good)
        count = np.maximum(good.sum(axis=0), 1)
        center = np.where(good, normalised, 0.0).sum(axis=0) / count
        variance = np.where(good, (normalised - center) ** 2, 0.0).sum(axis=0) / count
        self.flux_center = np.round(center.astype(float), 4).tolist()
        self.flux_scale = np.round(np.maximum(np.sqrt(variance.astype(float)), floor), 4).tolist()

    def scale(self, normalised: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Normalised flux -> zero mean and unit spread per pixel over the training spectra; 0 where missing."""
        center = 1.0 if self.flux_center is None else np.asarray(self.flux_center, dtype=np.float32)
        spread = 0.1 if self.flux_scale is None else np.asarray(self.flux_scale, dtype=np.float32)
        return np.where(good, (normalised - center) / spread, 0.0).astype(np.float32)

    def clean(self, flux: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the model sees of spectra on `wavelength_grid`: `normalise`, then `scale`; flux and good, same shape."""
        normalised, good = self.normalise(flux, good)
        return self.scale(normalised, good), good

    def __call__(
        self,
        flux: Any,
        wavelength: Any,
        bad_pixel: Any = None,
        labels: Any = None,
        label_errors: Any = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepare one spectrum (1-D arrays) or several (2-D arrays, or lists of 1-D arrays of any lengths).

        Args:
            flux: Any multiplicative unit.
            wavelength: Vacuum Angstrom, rest frame; 1-D also when several spectra share it.
            bad_pixel: True = do not trust.
            labels: In K and dex, shape (batch, n_labels) in the order of label_names; NaN = missing.
            label_errors: 1-sigma, same shape and units; NaN or 0 = not published.
            return_tensors: "pt", "np" or None.

        Returns:
            flux, wavelength, attention_mask of shape (batch, n), n a multiple of patch_size; with labels, also
            labels and label_errors, scaled.

        Raises:
            ValueError: See `resample`; the message names the spectrum.
        """
        single = np.ndim(flux[0]) == 0 if len(flux) else True
        spectra = [flux] if single else list(flux)
        shared = np.ndim(wavelength[0]) == 0 if len(wavelength) else True
        wavelengths = [wavelength] * len(spectra) if shared else list(wavelength)
        bad = [None] * len(spectra) if bad_pixel is None else [bad_pixel] if single else list(bad_pixel)
        if not len(spectra) == len(wavelengths) == len(bad):
            raise ValueError(
                f"as many wavelength and bad_pixel arrays as spectra are needed, got {len(wavelengths)} and {len(bad)} "
                f"for {len(spectra)}."
            )
        features = []
        for index, spectrum in enumerate(zip(spectra, wavelengths, bad, strict=True)):
            try:
                features.append(self._prepare(*self.resample(*spectrum)))
            except ValueError as error:
                raise ValueError(f"spectrum {index} of {len(spectra)}: {error}") from error
        batch = self.pad(features)
        if labels is not None:
            errors = None if label_errors is None else np.atleast_2d(label_errors)
            batch["labels"], batch["label_errors"] = self.encode_labels(np.atleast_2d(labels), errors)
            if len(batch["labels"]) != len(spectra):
                raise ValueError(
                    f"one row of labels per spectrum is needed, got {len(batch['labels'])} for {len(spectra)}."
                )
        return batch.convert_to_tensors(return_tensors)

    def _prepare(self, flux: np.ndarray, good: np.ndarray) -> dict[str, np.ndarray]:
        scaled, good = (array[0] for array in self.clean(flux[None], good[None]))
        if good.sum() < self.min_good_pixels:
            raise ValueError(
                f"only {int(good.sum())} good pixel(s) are left after outliers (normalised flux outside "
                f"{self.flux_range}) were dropped."
            )
        return self.cut_tokens(scaled, good)

    def cut_tokens(self, scaled: np.ndarray, good: np.ndarray) -> dict[str, np.ndarray]:
        """One spectrum on the grid, shape (n_pixels,) -> the run of tokens from its first to its last good pixel."""
        tokens = np.flatnonzero(good.reshape(-1, self.patch_size).any(axis=1))
        if tokens.size == 0:
            raise ValueError(
                f"no good pixel is left: normalised flux lies outside {self.flux_range} everywhere, or every pixel is "
                "flagged. Is bad_pixel inverted (True = do not trust)?"
            )
        run = slice(tokens[0] * self.patch_size, (tokens[-1] + 1) * self.patch_size)
        return {
            "flux": scaled[run],
            "wavelength": self.wavelength_grid[run],
            "attention_mask": good[run].astype(np.int64),
        }

    def pad(self, processed_features: Any, *unused: Any, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:
        """Pad spectra to the longest one with masked pixels, which change no prediction."""
        length = max(len(row["flux"]) for row in processed_features)
        batch = {
            name: np.stack([np.pad(np.asarray(row[name]), (0, length - len(row[name]))) for row in processed_features])
            for name in self.model_input_names
        }
        return BatchFeature(batch, tensor_type=return_tensors)

    # ------------------------------------------------------------ labels

    def encode_labels(self, labels: Any, label_errors: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Labels in K and dex -> scaled, missing = -100; errors scaled, unpublished = the label's default; float32.

        Args:
            labels: Shape (..., n_labels) in the order of label_names; NaN = missing.
            label_errors: Same shape; None, NaN or not positive = `labels.Label.default_error`, never certainty.
        """
        center, scale = np.asarray(self.label_center), np.asarray(self.label_scale)
        labels = np.asarray(labels, dtype=np.float64)
        if labels.shape[-1:] != (len(self.label_names),):
            raise ValueError(f"labels must have one column per label {self.label_names}, got shape {labels.shape}.")
        default = np.array([get_label(name).default_error for name in self.label_names])
        errors = np.full(labels.shape, np.nan) if label_errors is None else np.asarray(label_errors, dtype=np.float64)
        if errors.shape != labels.shape:
            raise ValueError(f"label_errors must have the shape of labels {labels.shape}, got {errors.shape}.")
        with np.errstate(invalid="ignore"):
            errors = np.where(np.isfinite(errors) & (errors > 0), errors, default)
        scaled = np.where(np.isfinite(labels), (labels - center) / scale, MISSING_LABEL)
        return scaled.astype(np.float32), (errors / scale).astype(np.float32)

    def decode_labels(self, label_mean: Any, label_log_var: Any = None) -> dict[str, dict[str, np.ndarray]]:
        """The model's answer in the labels' units.

        Args:
            label_mean: Shape (batch, n_labels), scaled.
            label_log_var: Same shape, natural logarithm of the variance in scaled units.

        Returns:
            label name -> {"value", "sigma"}, each of shape (batch,), in K or dex; no sigma without label_log_var.
        """
        mean = np.asarray(label_mean.detach().cpu() if hasattr(label_mean, "detach") else label_mean, dtype=np.float64)
        decoded = {
            name: {"value": mean[..., i] * self.label_scale[i] + self.label_center[i]}
            for i, name in enumerate(self.label_names)
        }
        if label_log_var is not None:
            log_var = np.asarray(
                label_log_var.detach().cpu() if hasattr(label_log_var, "detach") else label_log_var, dtype=np.float64
            )
            for i, name in enumerate(self.label_names):
                decoded[name]["sigma"] = np.exp(0.5 * log_var[..., i]) * self.label_scale[i]
        return decoded

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds: the parameters, without what is computed from them."""
        return {key: value for key, value in super().to_dict().items() if key not in _CACHED}
