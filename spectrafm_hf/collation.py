"""Rows -> batches. Synthetic rows are made here, as they are asked for; noise and windows are drawn only in training.

A training set is a list of row numbers. Row i of `SyntheticSpectra` depends on (seed, i) alone: not on the batch it
is in, on the number of processes, or on where a killed run took up again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from .feature_extraction_spectrafm import Pixels, SpectraFMFeatureExtractor
from .labels import MISSING_LABEL
from .synthesis.cannon import LABEL_NAMES, CannonSynthesizer
from .synthesis.observing import WIGGLE_LENGTH, ObservingConditions, observe, smooth_noise
from .synthesis.photometry import absolute_g, bp_rp
from .synthesis.sampler import LabelSampler
from .synthesis.surveys import Survey, SurveyConditions, observe_survey

Row = dict[str, np.ndarray]


class SpectraSource(Protocol):
    """A set that makes a whole batch of rows at once."""

    def __getitems__(self, indices: Sequence[int]) -> list[Row]: ...


def row_generator(seed: int, index: int) -> np.random.Generator:
    """Random numbers of one row: a function of the seed and the row number alone."""
    # As a list, numbers beyond 2**63 would become floats, and neighbouring seeds the same.
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def draw_window(rng: np.random.Generator, n_tokens: int, context: int) -> slice:
    """A run of `context` tokens of a spectrum of `n_tokens`.

    The start is drawn with an overhang of half a context on either side and then pulled in, so that the ends of the
    spectrum are seen alone as often as its middle: a later stage may have nothing but the red end.
    """
    overhang = context // 2
    start = int(np.clip(rng.integers(-overhang, n_tokens - context + overhang + 1), 0, n_tokens - context))
    return slice(start, start + context)


class SyntheticSpectra(Dataset):
    """Synthetic spectra, synthesized and observed when they are asked for.

    Args:
        feature_extractor: Gives the pixels, the normalisation and the label scale.
        n_spectra: Length of the set.
        seed: With the row number, decides everything random.
        fwhm: Of the line-spread function, Angstrom.
        context: Tokens per spectrum, drawn as one window; None = the whole `window`.
        window: Part of the spectrum to be shown, vacuum Angstrom; None = all of it.
        sampler: Which stars.
        conditions: How they are observed.
        label_error: 1-sigma error given to synthetic labels, in scaled units: no synthetic label is worth more.
        relabel: Labels of the Cannon grid (n, 3), K and dex -> labels to be learned; None = as drawn. See
            `synthesis.label_tie`.
        learned: Labels given; the model's others are missing. None = all.
    """

    def __init__(
        self,
        feature_extractor: SpectraFMFeatureExtractor,
        n_spectra: int,
        seed: int,
        fwhm: float = 2.5,
        context: int | None = None,
        window: Sequence[float] | None = None,
        sampler: LabelSampler | None = None,
        conditions: ObservingConditions | None = None,
        label_error: float = 0.03,
        relabel: Callable[[np.ndarray], np.ndarray] | None = None,
        learned: Sequence[str] | None = None,
    ):
        if not set(feature_extractor.label_names) & set(LABEL_NAMES):
            raise ValueError(
                f"the Cannon grid knows {', '.join(LABEL_NAMES)}, but {', '.join(feature_extractor.label_names)} was "
                "asked for."
            )
        self.feature_extractor = feature_extractor
        self.n_spectra, self.seed, self.fwhm, self.context = n_spectra, seed, fwhm, context
        self.sampler, self.conditions = sampler or LabelSampler(), conditions or ObservingConditions()
        self.label_error, self.relabel = label_error, relabel
        low, high = feature_extractor.wavelength_range if window is None else window
        in_window = feature_extractor.in_range & feature_extractor.inside(low, high)
        names = feature_extractor.label_names
        self._given = np.array([learned is None or name in learned for name in names])
        if not in_window.any():
            reach = feature_extractor.wavelength_range
            raise ValueError(
                f"the window {low:.0f}-{high:.0f} lies outside the model's {reach[0]:.0f}-{reach[1]:.0f} "
                "vacuum Angstrom."
            )
        # Of a grid in several segments, the first that the window reaches.
        self.columns = next(segment for segment in feature_extractor.segments if in_window[segment].any())
        self.wavelength = feature_extractor.wavelength_grid[self.columns]
        self.in_window = in_window[self.columns]
        self.synthesizer = CannonSynthesizer(self.wavelength, fwhm=fwhm)

    def __len__(self) -> int:
        return self.n_spectra

    def known(self, labels: np.ndarray) -> np.ndarray:
        """Labels (n, 3) of the synthesizer -> (n, n_labels) of the model, NaN where the one does not know the other."""
        columns = dict(zip(LABEL_NAMES, labels.T, strict=True))
        nowhere = np.full(len(labels), np.nan)
        return np.column_stack([columns.get(name, nowhere) for name in self.feature_extractor.label_names])

    def unobserved(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, list[np.random.Generator]]:
        """Labels (n, 3) in K and dex; flux without any noise (n, n_pixels); the generators, to go on drawing from.

        Pixels are those of `wavelength`.
        """
        generators = [row_generator(self.seed, index) for index in indices]
        labels = np.stack([self.sampler.draw(rng) for rng in generators])
        # A cubic model can overshoot in the deepest lines.
        return labels, np.clip(self.synthesizer(labels), 0.0, 1.1), generators

    def synthesize(
        self, indices: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.random.Generator]]:
        """Labels (n, 3) in K and dex; observed flux and good (n, n_pixels) on `wavelength`; the generators."""
        labels, clean, generators = self.unobserved(indices)
        flux, good = observe(clean, self.wavelength, self.fwhm, self.conditions, generators)
        return labels, flux, good & self.in_window, generators

    def on_grid(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (n, 3) in K and dex; observed flux and good (n, n_pixels) on the extractor's whole grid."""
        labels, flux, good, _ = self.synthesize(indices)
        shape = (len(flux), self.feature_extractor.wavelength_grid.size)
        everywhere, usable = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
        everywhere[:, self.columns], usable[:, self.columns] = flux, good
        return labels, everywhere, usable

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Rows ready for `collate`; what a DataLoader calls with a whole batch of row numbers."""
        extractor, patch = self.feature_extractor, self.feature_extractor.patch_size
        labels, flux, good, generators = self.synthesize(indices)
        tokens = np.flatnonzero(self.in_window.reshape(-1, patch).any(axis=1))
        first, n_tokens = int(tokens[0]), int(tokens[-1] - tokens[0]) + 1
        context = min(self.context or n_tokens, n_tokens)
        pixels = []
        for row, rng in enumerate(generators):
            window = draw_window(rng, n_tokens, context)
            pixels.append(slice((first + window.start) * patch, (first + window.stop) * patch))
            good[row, : pixels[-1].start] = False  # the pseudo-continuum must not see beyond the window either
            good[row, pixels[-1].stop :] = False
        scaled, good = extractor.clean(flux, good, self.wavelength)
        relabelled = self.known(labels if self.relabel is None else self.relabel(labels))
        encoded, _ = extractor.encode_labels(np.where(self._given, relabelled, np.nan))
        return [
            {
                "flux": scaled[row, run],
                "wavelength": self.wavelength[run],
                "attention_mask": good[row, run].astype(np.int64),
                "labels": encoded[row],
                "label_errors": np.full(encoded.shape[1], self.label_error, dtype=np.float32),
            }
            for row, run in enumerate(pixels)
        ]

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]


class ObservedSpectra(Dataset):
    """Real spectra, shown over and over with fresh noise and continuum errors, as training sees them.

    Args:
        feature_extractor: Gives the normalisation and the label scale.
        flux, good: Spectra on the extractor's grid, shape (n_stars, n_pixels); `good` already cut to the window.
        labels, label_errors: Shape (n_stars, n_labels) in K and dex; NaN = missing or not published.
        n_spectra: Length of the set; star i % n_stars stands in row i.
        seed: With the row number, decides the noise.
        noise: 1-sigma of added noise, relative to the flux.
        continuum_wiggle: 1-sigma of the smooth multiplicative error.
        missing_tokens: Largest fraction of tokens hidden.
    """

    def __init__(
        self,
        feature_extractor: SpectraFMFeatureExtractor,
        flux: np.ndarray,
        good: np.ndarray,
        labels: np.ndarray,
        label_errors: np.ndarray | None,
        n_spectra: int,
        seed: int,
        noise: float = 0.01,
        continuum_wiggle: float = 0.05,
        missing_tokens: float = 0.0,
    ):
        self.feature_extractor = feature_extractor
        self.flux, self.good, self.n_spectra, self.seed = flux.astype(np.float32), good, n_spectra, seed
        self.noise, self.continuum_wiggle, self.missing_tokens = noise, continuum_wiggle, missing_tokens
        self.labels, self.label_errors = feature_extractor.encode_labels(labels, label_errors)

    def __len__(self) -> int:
        return self.n_spectra

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        extractor, patch = self.feature_extractor, self.feature_extractor.patch_size
        stars = [index % len(self.flux) for index in indices]
        flux, good = self.flux[stars].copy(), self.good[stars].copy()
        n_pixels, step = flux.shape[1], float(extractor.wavelength_grid[1] - extractor.wavelength_grid[0])
        for row, index in enumerate(indices):
            rng = row_generator(self.seed, index)
            wiggle = smooth_noise(rng, n_pixels, WIGGLE_LENGTH / step)
            noise = rng.standard_normal(n_pixels, dtype=np.float32)
            flux[row] *= (1 + self.continuum_wiggle * wiggle) * (1 + self.noise * noise)
            hidden = rng.random(n_pixels // patch) < self.missing_tokens * rng.random()
            shown = good[row] & ~np.repeat(hidden, patch)
            if shown.any():
                good[row] = shown
        scaled, good = extractor.clean(flux, good)
        return [
            {
                **extractor.cut_tokens(scaled[row], good[row]),
                "labels": self.labels[star],
                "label_errors": self.label_errors[star],
            }
            for row, star in enumerate(stars)
        ]

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]


def draw_given(
    rng: np.random.Generator,
    feature_extractor: SpectraFMFeatureExtractor,
    known: Mapping[str, float],
    share: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """What else a training row is told of its star: a random subset of what is known, each with an error of its own.

    Half of the rows are told nothing; of the others every subset comes up, since each number is told with a probability
    of one half. A number's 1-sigma error is drawn between a third and three times the one it has by default, and the
    number is off by as much.

    Args:
        known: True values: name of `given_names` -> K, dex or the unit of `labels.SCALARS`; not finite = not known.
        share: Of rows that are told anything.

    Returns:
        Scaled values, NaN where not told, and errors, each (n_given,), float32.
    """
    names = feature_extractor.given_names
    told = (rng.random(len(names)) < 0.5) & (rng.random() < share)
    spread, noise = np.exp(rng.uniform(-np.log(3), np.log(3), len(names))), rng.standard_normal(len(names))
    values, errors = {}, {}
    for number, name in enumerate(names):
        if told[number] and np.isfinite(known.get(name, np.nan)):
            *_, table = feature_extractor.input_scale(name)
            errors[name] = table.default_error * spread[number]
            values[name] = known[name] + errors[name] * noise[number]
    scaled, scaled_errors = feature_extractor.encode_given(values, errors)
    return scaled[0], scaled_errors[0]


class SurveySpectra(Dataset):
    """Synthetic stars on a survey's own pixels, with what is known of each: uncertainty, resolving power, other inputs.

    Args:
        feature_extractor: One that leaves spectra on their own pixels (`pixel_width=None`).
        survey: Whose pixels, and which labels its stars have; the model's others are missing.
        n_spectra: Length of the set.
        seed: With the row number, decides everything random.
        context: Tokens per spectrum, a run of neighbouring pixels anywhere; None = all of it.
        conditions: How the stars are observed.
        label_error: 1-sigma error given to synthetic labels, in scaled units: no synthetic label is worth more.
        given_share: Share of rows that are told some of `feature_extractor.given_names`; see `draw_given`.
    """

    def __init__(
        self,
        feature_extractor: SpectraFMFeatureExtractor,
        survey: Survey,
        n_spectra: int,
        seed: int,
        context: int | None = None,
        conditions: SurveyConditions | None = None,
        label_error: float = 0.03,
        given_share: float = 0.5,
    ):
        self.feature_extractor, self.survey, self.n_spectra, self.seed = feature_extractor, survey, n_spectra, seed
        self.context, self.conditions = context, conditions or SurveyConditions()
        self.label_error, self.given_share = label_error, given_share

    def __len__(self) -> int:
        return self.n_spectra

    def stars(self, indices: Sequence[int]) -> tuple[np.ndarray, list[np.random.Generator]]:
        """Labels (n, len(survey.label_names)) in K and dex; the generators, to go on drawing from."""
        generators = [row_generator(self.seed, index) for index in indices]
        return np.stack([self.survey.draw(rng) for rng in generators]), generators

    def known(self, drawn: np.ndarray) -> dict[str, np.ndarray]:
        """What is true of stars with these labels: name -> values, shape (n,), K, dex and mag."""
        return dict(zip(self.survey.label_names, drawn.T, strict=True)) | {"bp_rp": bp_rp(drawn)}

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        extractor, survey = self.feature_extractor, self.survey
        drawn, generators = self.stars(indices)
        clean = np.clip(survey.synthesizer(drawn), 0.0, 1.1)
        seen = observe_survey(clean, survey, self.conditions, generators)
        nowhere = np.full(len(indices), np.nan)
        columns = self.known(drawn)
        labels = np.column_stack([columns.get(name, nowhere) for name in extractor.label_names])
        encoded, _ = extractor.encode_labels(labels)
        rows = []
        for row, rng in enumerate(generators):
            pixels = Pixels(
                seen.flux[row], survey.wavelength, seen.good[row], seen.flux_error[row], seen.resolving_power[row]
            )
            if self.context is not None and (n_shown := self.context * extractor.patch_size) < survey.wavelength.size:
                pixels = pixels.cut(draw_window(rng, survey.wavelength.size, n_shown))
            features = extractor.tokenise(pixels) | {
                "labels": encoded[row],
                "label_errors": np.full(len(extractor.label_names), self.label_error, dtype=np.float32),
            }
            if extractor.given_names:
                known = {name: float(values[row]) for name, values in columns.items()}
                if {"m_g", "abl_g"} & set(extractor.given_names):
                    # Of about a solar mass, to 0.1 dex: a luminosity does not simply give the gravity away.
                    known["m_g"] = float(absolute_g(drawn[row : row + 1], 10 ** (0.1 * rng.standard_normal()))[0])
                    known["abl_g"] = 10 ** (0.2 * known["m_g"])
                given, errors = draw_given(rng, extractor, known, self.given_share)
                told = [name for name, value in zip(extractor.given_names, given, strict=True) if np.isfinite(value)]
                hidden = np.isin(extractor.label_names, told)  # what was told is not to be asked for
                features |= {
                    "labels": np.where(hidden, np.float32(MISSING_LABEL), encoded[row]),
                    "given": given,
                    "given_errors": errors,
                }
            rows.append(features)
        return rows

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]


class Interleaved(Dataset):
    """Rows of one set and of another, taking turns: of every `period` rows, `n_first` come from the first.

    Args:
        first, second: Long enough for the turns they are given.
        n_spectra: Length of the whole.
    """

    def __init__(self, first: SpectraSource, second: SpectraSource, n_spectra: int, n_first: int = 1, period: int = 2):
        self.first, self.second, self.n_spectra, self.n_first, self.period = first, second, n_spectra, n_first, period

    def __len__(self) -> int:
        return self.n_spectra

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        rows: dict[int, Row] = {}
        for part, source in enumerate((self.first, self.second)):
            mine = [i for i in indices if (i % self.period >= self.n_first) == bool(part)]
            size, shift = (self.n_first, 0) if part == 0 else (self.period - self.n_first, self.n_first)
            numbers = [i // self.period * size + i % self.period - shift for i in mine]
            if mine:
                rows |= dict(zip(mine, source.__getitems__(numbers), strict=True))
        return [rows[i] for i in indices]

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]


class SpectrumCollator:
    """Rows -> one padded batch of tensors; wavelength stays float64."""

    def __init__(self, feature_extractor: SpectraFMFeatureExtractor):
        self.feature_extractor = feature_extractor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.feature_extractor.pad(rows, return_tensors="pt"))
        for name in ("labels", "label_errors", "given", "given_errors"):
            told = [np.asarray(row[name], dtype=np.float32) for row in rows if name in row]
            if told:
                nothing = np.full_like(told[0], MISSING_LABEL)  # of rows without: missing, not given, not known
                filled = [np.asarray(row.get(name, nothing), dtype=np.float32) for row in rows]
                batch[name] = torch.from_numpy(np.stack(filled))
        return batch
