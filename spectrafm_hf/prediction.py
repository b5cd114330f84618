"""Spectra -> labels in K and dex, with their sigma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .spectra import Spectrum


@dataclass(frozen=True)
class Observed:
    """Real spectra on the model's pixels, with their labels.

    Attributes:
        star_ids: Names, one per spectrum.
        flux: Shape (n_stars, n_pixels), median 1.
        good: Shape (n_stars, n_pixels), True = use; already cut to the window.
        labels: Published labels, shape (n_stars, n_labels), K and dex, NaN = missing.
        label_errors: Their published 1-sigma errors, same shape, NaN = not published.
    """

    star_ids: list[str]
    flux: np.ndarray
    good: np.ndarray
    labels: np.ndarray
    label_errors: np.ndarray

    @classmethod
    def from_spectra(
        cls, spectra: Sequence[Spectrum], extractor: SpectraFMFeatureExtractor, window: Sequence[float] | None = None
    ) -> Observed:
        """Put spectra on the extractor's pixels and hide what lies outside `window` (vacuum Angstrom).

        Raises:
            ValueError: A spectrum has no good pixel in the window; the message names the star.
        """
        low, high = extractor.wavelength_range if window is None else window
        inside = extractor.inside(low, high)
        flux, good = [], []
        for spectrum in spectra:
            try:
                on_grid, usable = extractor.resample(spectrum.flux, spectrum.wavelength, spectrum.bad_pixel)
            except ValueError as error:
                raise ValueError(f"{spectrum.star_id}: {error}") from error
            if not (usable & inside).any():
                raise ValueError(
                    f"{spectrum.star_id} has no good pixel in {low:.0f}-{high:.0f} vacuum Angstrom, it reaches "
                    f"{spectrum.wavelength[0]:.0f}-{spectrum.wavelength[-1]:.0f}; leave it out or change the window."
                )
            flux.append(on_grid)
            good.append(usable & inside)

        def table(of: str) -> np.ndarray:
            return np.array(
                [[getattr(s, of).get(n, np.nan) for n in extractor.label_names] for s in spectra], dtype=float
            )

        return cls([s.star_id for s in spectra], np.stack(flux), np.stack(good), table("labels"), table("label_errors"))


@dataclass(frozen=True)
class Predicted:
    """The model's answer for many spectra, one column per label of the model.

    Attributes:
        mean: Shape (n_spectra, n_labels), K and dex.
        sigma: Predicted 1-sigma, same shape and units.
        scaled_mean: Shape (n_spectra, n_labels), scaled units.
        features: What the readouts see, shape (n_spectra, n_labels, d).
    """

    mean: np.ndarray
    sigma: np.ndarray
    scaled_mean: np.ndarray
    features: np.ndarray


@torch.inference_mode()
def predict_on_grid(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    flux: np.ndarray,
    good: np.ndarray,
    batch_size: int = 128,
) -> Predicted:
    """Predict all labels for spectra on the extractor's pixels, in float32.

    Args:
        flux, good: Shape (n_spectra, n_pixels), see `Observed`.
        batch_size: Spectra at once.
    """
    was_training = model.training
    model.eval()
    means, log_vars, features = [], [], []
    scaled, usable = extractor.clean(flux, good)
    rows = [extractor.cut_tokens(*pair) for pair in zip(scaled, usable, strict=True)]
    for start in range(0, len(rows), batch_size):
        batch = extractor.pad(rows[start : start + batch_size], return_tensors="pt").to(model.device)
        answer = model(**batch)
        means.append(answer.label_mean.float().cpu().numpy())
        log_vars.append(answer.label_log_var.float().cpu().numpy())
        features.append(answer.label_features.float().cpu().numpy())
    model.train(was_training)
    mean, log_var = np.concatenate(means), np.concatenate(log_vars)
    decoded = extractor.decode_labels(mean, log_var)
    return Predicted(
        mean=np.stack([decoded[name]["value"] for name in extractor.label_names], axis=-1),
        sigma=np.stack([decoded[name]["sigma"] for name in extractor.label_names], axis=-1),
        scaled_mean=mean,
        features=np.concatenate(features),
    )
