"""Spectra -> labels in K and dex, with their sigma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .feature_extraction_spectrafm import Pixels, SpectraFMFeatureExtractor
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

    def chosen(self, rows: Sequence[int]) -> Observed:
        """Some of the stars, by their places."""
        rows = list(rows)
        return Observed(
            [self.star_ids[row] for row in rows],
            self.flux[rows],
            self.good[rows],
            self.labels[rows],
            self.label_errors[rows],
        )


class Answers(NamedTuple):
    """What a model says of many spectra, before it is decoded.

    Attributes:
        mean, log_var: Scaled units, shape (n_spectra, n_labels); natural logarithm of the variance.
        features: What the readouts see, shape (n_spectra, n_labels, d).
        noise: Of the spectra, shape (n_spectra,), see `SpectraFMFeatureExtractor.noise`; NaN = not known.
    """

    mean: np.ndarray
    log_var: np.ndarray
    features: np.ndarray
    noise: np.ndarray

    def chosen(self, spectra: np.ndarray) -> Answers:
        """For some of the spectra, by their places."""
        return Answers(*(part[spectra] for part in self))


@dataclass(frozen=True)
class Predicted:
    """The model's answer for many spectra, one column per label of the model.

    Attributes:
        mean: Shape (n_spectra, n_labels), K and dex.
        sigma: Predicted 1-sigma, same shape and units.
        sigma95: The same from the 95 % interval, which is mean +- 1.96 sigma95.
        scaled_mean: Shape (n_spectra, n_labels), scaled units.
        features: What the readouts see, shape (n_spectra, n_labels, d).
    """

    mean: np.ndarray
    sigma: np.ndarray
    sigma95: np.ndarray
    scaled_mean: np.ndarray
    features: np.ndarray

    @classmethod
    def of(
        cls,
        extractor: SpectraFMFeatureExtractor,
        mean: np.ndarray,
        log_var: np.ndarray,
        features: np.ndarray,
        noise: np.ndarray,
    ) -> Predicted:
        """From the parts of `Answers`."""
        decoded = extractor.decode_labels(mean, log_var, noise)
        value, sigma, sigma95 = (
            np.stack([decoded[name][key] for name in extractor.label_names], axis=-1)
            for key in ("value", "sigma", "sigma95")
        )
        return cls(mean=value, sigma=sigma, sigma95=sigma95, scaled_mean=mean, features=features)


@torch.inference_mode()
def ask(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    rows: Sequence[Mapping[str, np.ndarray]],
    batch_size: int,
    attend_to_missing: bool = False,
) -> Answers:
    """The model's answer for prepared spectra, in evaluation mode, whatever mode it is in.

    Args:
        rows: Of `SpectraFMFeatureExtractor.tokenise` or `cut_tokens`.
        batch_size: Rows at once.
        attend_to_missing: Attend to all tokens of a row, those without a good pixel too; only padding is masked.
    """
    was_training = model.training
    model.eval()
    answers = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        batch = extractor.pad(some, return_tensors="pt")
        noise = extractor.noise(batch)
        batch = batch.to(model.device)
        if attend_to_missing:
            lengths = torch.tensor([len(row["flux"]) for row in some], device=model.device)
            batch["token_mask"] = torch.arange(batch["flux"].shape[1], device=model.device) < lengths[:, None]
        answer = model(**batch)
        parts = answer.label_mean, answer.label_log_var, answer.label_features
        answers.append([*(part.float().cpu().numpy() for part in parts), noise])
    model.train(was_training)
    return Answers(*map(np.concatenate, zip(*answers, strict=True)))


def rows_of(extractor: SpectraFMFeatureExtractor, spectra: Sequence[Spectrum]) -> list[dict[str, np.ndarray]]:
    """Whole spectra as `ask` takes them, with their resolving power where they tell a line-spread function."""
    power = [None if s.fwhm is None else s.wavelength / s.fwhm for s in spectra]
    return [
        extractor.tokenise(extractor.place(s.flux, s.wavelength, s.bad_pixel, None, told))
        for s, told in zip(spectra, power, strict=True)
    ]


def rows_on_grid(
    extractor: SpectraFMFeatureExtractor, flux: np.ndarray, good: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """Spectra on the extractor's pixels, shape (n_spectra, n_pixels), see `Observed`, as `ask` takes them."""
    scaled, usable = extractor.clean(flux, good)
    return [extractor.cut_tokens(*pair) for pair in zip(scaled, usable, strict=True)]


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
    return Predicted.of(extractor, *ask(model, extractor, rows_on_grid(extractor, flux, good), batch_size))


def combine_contexts(
    mean: np.ndarray, log_var: np.ndarray, as_published: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    r"""One answer from several contexts of the same star, which saw different pixels of it.

    The error of a context's mean :math:`\mu_c`, of predicted variance :math:`v_c`, has a part that all contexts of
    the star share (the network errs on this star), of variance :math:`\rho \bar v`, and a part of its own (noise, the
    lines it happened to see), of variance :math:`(1 - \rho) v_c`. Contexts are averaged by their inverse variances,

    .. math:: \mu = \sum_c \frac{\mu_c}{v_c} \Big/ \sum_c \frac{1}{v_c}, \qquad
              \bar v = K \Big/ \sum_c \frac{1}{v_c},

    and only their own parts differ from each other, so that their scatter tells how large those are:
    :math:`\mathrm{E} \sum_c (\mu_c - \mu)^2 / v_c = (1 - \rho)(K - 1)`. Averaging makes the own part K times smaller,
    and leaves the common one:

    .. math:: \sigma^2 = \bar v \Big[ \rho + \frac{1 - \rho}{K} \Big], \qquad
              1 - \rho = \min\Big(1, \frac{1}{K - 1} \sum_c \frac{(\mu_c - \mu)^2}{v_c}\Big).

    Contexts that agree may agree on an error, and are worth one of them; contexts that scatter as their variances say
    are worth K. One context stays what it is. Of one star's few contexts the scatter is known roughly, and the minimum
    errs to the safe side: were all errors of 15 contexts their own, sigma would come out 1.7 times too large.

    Args:
        mean, log_var: Shape (n_contexts, ...), scaled units; natural logarithm of the variance.
        as_published: The plain mean of the means and of the sigmas, as the published inference has it.

    Returns:
        Mean and log-variance, shape (...).
    """
    if as_published:
        return mean.mean(axis=0), 2 * np.log(np.exp(0.5 * log_var).mean(axis=0))
    n_contexts, smallest = len(mean), log_var.min(axis=0)
    weight = np.exp(smallest - log_var)  # in units of the surest context's, which keeps any log-variance in bounds
    combined = (weight * mean).sum(axis=0) / weight.sum(axis=0)
    log_typical = np.log(n_contexts / weight.sum(axis=0)) + smallest
    scatter = (weight * (mean - combined) ** 2).sum(axis=0) / max(n_contexts - 1, 1)
    with np.errstate(divide="ignore"):
        own = np.exp(np.minimum(np.log(scatter) - smallest, 0.0)) if n_contexts > 1 else 1.0
    return combined, log_typical + np.log(1 - own + own / n_contexts)


def predict_in_contexts(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    spectra: Sequence[Pixels],
    context: int = 512,
    seed: int = 0,
    as_published: bool = False,
    batch_size: int = 16,
) -> Predicted:
    """Predict all labels of spectra that are too long for the model to see at once, in float32.

    The tokens of a spectrum are dealt out at random to contexts of equal size, at most `context` tokens each, so that
    every pixel is seen once; `combine_contexts` makes one answer of theirs.

    Args:
        spectra: From `SpectraFMFeatureExtractor.place`.
        context: Most tokens seen at once.
        seed: Of the dealing, which is the same for spectra with the same number of tokens.
        as_published: Repeat the published inference, faults and all: missing pixels are attended to, as vectors of
            zeros; contexts are full but for the last, which is padded; means and sigmas are averaged. For comparison.
        batch_size: Contexts at once.

    Raises:
        ValueError: `as_published` with a model whose tokens are not pixels; a context of no token; no spectra; or a
            spectrum without a good pixel.
    """
    if context < 1 or not spectra:
        raise ValueError(
            f"at least one spectrum and one token per context are needed, got {len(spectra)} and {context}."
        )
    if as_published and model.config.tokens != "pixel":
        raise ValueError(f"as_published needs a model whose tokens are pixels, got tokens={model.config.tokens!r}.")
    contexts, star_of, noise = [], [], []
    for star, pixels in enumerate(spectra):
        row = extractor.tokenise(pixels, keep_empty=as_published)
        noise.append(extractor.noise({name: values[None] for name, values in row.items()}))
        tokens = {name: values.reshape(-1, extractor.patch_size) for name, values in row.items()}
        n_tokens = len(tokens["flux"])
        # The published code dealt with NumPy's old generator.
        random = np.random.RandomState(seed) if as_published else np.random.default_rng(seed)
        dealt = random.permutation(n_tokens)
        n_contexts = -(-n_tokens // context)
        size = context if as_published else -(-n_tokens // n_contexts)
        for start in range(0, n_tokens, size):
            chosen = dealt[start : start + size]
            contexts.append({name: values[chosen].ravel() for name, values in tokens.items()})
            star_of.append(star)
    mean, log_var, feature, _ = ask(model, extractor, contexts, batch_size, attend_to_missing=as_published)
    mean, log_var, owner = mean.astype(float), log_var.astype(float), np.array(star_of)
    stars = [owner == star for star in range(len(spectra))]
    combined = [combine_contexts(mean[mine], log_var[mine], as_published) for mine in stars]
    return Predicted.of(
        extractor,
        np.stack([star_mean for star_mean, _ in combined]),
        np.stack([star_log_var for _, star_log_var in combined]),
        np.stack([feature[mine].mean(axis=0) for mine in stars]),
        np.concatenate(noise),  # of the whole spectrum: scattered tokens have hardly any neighbours
    )
