"""What hours of pre-training see: streamed stars of one survey and, beside each, one synthesised for another.

Every star is shown differently each time: sharper or blurred, quiet or noisy, whole, through a window, or as a few
scattered patches. Everything random is a function of (seed, star, place in the stream).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .collation import Row, draw_window, row_generator
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .loading import numbers
from .synthesis.observing import ObservingConditions, misjudge_lines, observe
from .synthesis.surveys import SURVEYS, Seen, Survey, SurveyConditions, observe_survey

LINE_PIXELS = 3.0
"""Width of a line of APOGEE, pixels: over as many the error of a line list is the same."""

STRENGTH_PIXELS = 300.0
"""Likewise of an error of the opacities: 60 Angstrom."""


STREAMED = "apogee"
"""Survey of the dataset that a recipe with `beside:` streams."""


@dataclass(frozen=True)
class Contexts:
    """How much of a spectrum is shown at once; every spectrum draws.

    Args:
        whole: Share of spectra shown whole.
        window: Share shown through a window of neighbouring tokens; the rest are shown as scattered patches.
        shortest: Tokens of the shortest window; lengths are drawn evenly in their logarithm.
        n_patches: Scattered patches.
        patch_pixels: Pixels of each.

    Raises:
        ValueError: Shares that are negative or more than all; nothing would be shown.
    """

    whole: float = 0.4
    window: float = 0.4
    shortest: int = 4
    n_patches: int = 16
    patch_pixels: int = 32

    def __post_init__(self) -> None:
        if min(self.whole, self.window) < 0 or self.whole + self.window > 1:
            raise ValueError(f"whole and window are shares of all spectra, got {self.whole:g} and {self.window:g}.")
        if min(self.shortest, self.n_patches, self.patch_pixels) < 1:
            raise ValueError(f"contexts need at least one token, patch and pixel, got {self}.")

    def draw(self, rng: np.random.Generator, there: np.ndarray, patch_size: int) -> tuple[np.ndarray, bool]:
        """Pixels shown, (n_pixels,), and whether the pseudo-continuum is taken from them alone.

        A window is all that another instrument would have; patches are chosen from a spectrum already normalised, as
        in the paper.

        Args:
            there: True for pixels of the survey on the model's grid, shape (n_pixels,); whole tokens.
        """
        tokens = np.flatnonzero(there.reshape(-1, patch_size).any(axis=1))
        kind, shown = rng.random(), np.zeros(there.size, dtype=bool)
        if kind < self.whole:
            return there, True
        if kind < self.whole + self.window:
            shortest = min(self.shortest, tokens.size)
            length = round(float(np.exp(rng.uniform(np.log(shortest), np.log(tokens.size)))))
            run = tokens[draw_window(rng, tokens.size, length)]
            shown.reshape(-1, patch_size)[run] = True
            return shown & there, True
        parts = shown.reshape(-1, self.patch_pixels)
        candidates = np.flatnonzero(there.reshape(-1, self.patch_pixels).all(axis=1))
        parts[rng.permutation(candidates)[: self.n_patches]] = True
        return shown, False


def grid_columns(extractor: SpectraFMFeatureExtractor, survey: Survey) -> np.ndarray:
    """Places of a survey's pixels on the model's grid, shape (n_pixels of the survey,).

    Raises:
        ValueError: The survey's pixels are not among the model's.
    """
    grid, wavelength = extractor.wavelength_grid, survey.wavelength
    columns = np.clip(np.searchsorted(grid, wavelength - 1e-4), 0, grid.size - 1)
    if np.abs(grid[columns] - wavelength).max() > 1e-3:
        raise ValueError(
            f"the pixels of the survey {survey.name} ({wavelength[0]:.2f} to {wavelength[-1]:.2f} vacuum Angstrom) are "
            "not pixels of the model; give it pixel_segments that hold them."
        )
    return columns


@dataclass(frozen=True)
class Shower:
    """Spectra of one survey, as training shows them, on the model's grid.

    Args:
        extractor: One with a grid that holds the survey's pixels.
        survey: Whose pixels.
        contexts: How much is shown.
        label_error: 1-sigma given to labels, scaled units.

    Raises:
        ValueError: The survey's pixels are not among the model's.
    """

    extractor: SpectraFMFeatureExtractor
    survey: Survey
    contexts: Contexts
    label_error: float
    columns: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", grid_columns(self.extractor, self.survey))

    def rows(self, seen: Seen, labels: np.ndarray, generators: Sequence[np.random.Generator]) -> list[Row]:
        """Rows ready for the collator.

        Args:
            seen: Spectra on the survey's pixels.
            labels: Shape (n_spectra, n_labels), in the extractor's order, K and dex; NaN = missing.
            generators: One per spectrum.
        """
        extractor, grid = self.extractor, self.extractor.wavelength_grid
        there = np.zeros(grid.size, dtype=bool)
        there[self.columns] = True
        drawn = [self.contexts.draw(rng, there, extractor.patch_size) for rng in generators]
        shown = np.stack([pixels[self.columns] for pixels, _ in drawn])
        alone = np.array([[first] for _, first in drawn])
        scaled, good, continuum = extractor.clean_with_continuum(
            seen.flux, seen.good & (shown | ~alone), self.survey.wavelength
        )
        good &= shown
        encoded, _ = extractor.encode_labels(labels)
        on_grid: dict[str, np.ndarray] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.where(good, seen.flux_error / continuum, 0.0)
        for name, values in (("flux_error", error), ("resolving_power", seen.resolving_power), ("flux", scaled)):
            on_grid[name] = np.zeros((len(generators), grid.size), dtype=np.float32)
            on_grid[name][:, self.columns] = np.where(np.isfinite(values), values, 0.0)
        usable = np.zeros((len(generators), grid.size), dtype=bool)
        usable[:, self.columns] = good
        rows = []
        for row in np.flatnonzero(usable.any(axis=1)):
            extra = {name: on_grid[name][row] for name in ("flux_error", "resolving_power")}
            rows.append(
                extractor.cut_tokens(on_grid["flux"][row], usable[row], **extra)
                | {
                    "labels": encoded[row],
                    "label_errors": np.full(encoded.shape[1], self.label_error, dtype=np.float32),
                }
            )
        return rows


@dataclass(frozen=True)
class SyntheticStars:
    """Stars of a survey, synthesised when they are asked for.

    Args:
        shower: Shows them; its survey draws and synthesises them.
        conditions: How they are observed.
        theory: What theory gets wrong. On pixels even in ln(wavelength) its line depths only.
    """

    shower: Shower
    conditions: SurveyConditions
    theory: ObservingConditions

    def rows(self, generators: list[np.random.Generator]) -> list[Row]:
        """One row per generator; a star without a good pixel is left out."""
        survey, extractor = self.shower.survey, self.shower.extractor
        drawn = np.stack([survey.draw(rng) for rng in generators])
        clean = np.clip(survey.synthesizer(drawn), 0.0, 1.1)
        if survey.even_in == "wavelength":
            fwhm = float(np.median(survey.wavelength)) / survey.resolving_power
            clean, _ = observe(clean, survey.wavelength, fwhm, self.theory, generators)
        else:
            clean = misjudge(clean, self.theory, generators)
        seen = observe_survey(clean, survey, self.conditions, generators)
        known = dict(zip(survey.label_names, drawn.T, strict=True))
        nowhere = np.full(len(generators), np.nan)
        labels = np.column_stack([known.get(name, nowhere) for name in extractor.label_names])
        return self.shower.rows(seen, labels, generators)


def misjudge(flux: np.ndarray, theory: ObservingConditions, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """APOGEE spectra with line depths that err a third as much as `theory` says of the optical: there are fewer lines,
    and each is resolved."""
    lengths = STRENGTH_PIXELS, LINE_PIXELS
    return misjudge_lines(flux, theory.line_strength / 3, theory.line_list / 3, lengths, generators)


class SyntheticRows(Dataset):
    """`SyntheticStars` as a set of rows: row i is a function of (seed, i)."""

    def __init__(self, stars: SyntheticStars, n_spectra: int, seed: int):
        self.stars, self.n_spectra, self.seed = stars, n_spectra, seed

    def __len__(self) -> int:
        return self.n_spectra

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        rows = self.stars.rows([row_generator(self.seed, index) for index in indices])
        assert len(rows) == len(indices), "a synthetic star is never without a good pixel"
        return rows

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]


class MixedRows:
    """Columns of a streamed dataset of one survey -> as many rows of it and of another.

    Args:
        extractor: One with a grid that holds the pixels of both.
        seed: With the star's name and its place in the stream, decides everything random.
        contexts: How much is shown.
        conditions: What is done to streamed spectra on top of what they went through.
        misjudged: Share of them whose lines are misjudged, see `misjudge`.
        beside: Name of the survey whose stars are synthesised.
        beside_conditions: How those are observed.
        theory: What theory gets wrong.
        label_error: 1-sigma given to labels, scaled units.
        survey: Name of the streamed survey.
    """

    def __init__(
        self,
        extractor: SpectraFMFeatureExtractor,
        seed: int,
        contexts: Contexts,
        conditions: SurveyConditions,
        beside: str,
        beside_conditions: SurveyConditions,
        theory: ObservingConditions,
        misjudged: float = 0.3,
        label_error: float = 0.01,
        survey: str = STREAMED,
    ):
        self.extractor, self.seed = extractor, seed
        self.streamed = Shower(extractor, SURVEYS[survey], contexts, label_error)
        beside_shower = Shower(extractor, SURVEYS[beside], contexts, label_error)
        self.beside = SyntheticStars(beside_shower, beside_conditions, theory)
        self.conditions, self.theory, self.misjudged = conditions, theory, misjudged

    def __call__(self, columns: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> list[Row]:
        """Twice as many rows as stars came, the short ones first: what is batched together then needs little padding.

        A star without a good pixel is left out.
        """
        names = [
            int.from_bytes(hashlib.sha256(str(star).encode()).digest()[:8], "big") for star in columns["object_id"]
        ]
        first, second = (
            [row_generator((self.seed + name) % 2**64, 2 * i + turn) for name, i in zip(names, indices, strict=True)]
            for turn in (0, 1)
        )
        return sorted([*self._streamed(columns, first), *self.beside.rows(second)], key=lambda row: len(row["flux"]))

    def _streamed(self, columns: Mapping[str, Sequence[Any]], generators: Sequence[np.random.Generator]) -> list[Row]:
        survey = self.streamed.survey
        flux = np.stack([np.asarray(values, dtype=np.float32) for values in columns["flux"]])
        ivar = np.stack([np.asarray(values, dtype=np.float32) for values in columns["ivar"]])
        good = ~np.stack([np.asarray(values, dtype=bool) for values in columns["bad_pixel"]])
        flux = np.where(good, flux, 1.0)
        wrong = [row for row, rng in enumerate(generators) if rng.random() < self.misjudged]
        if wrong:
            flux[wrong] = misjudge(flux[wrong], self.theory, [generators[row] for row in wrong])
        seen = observe_survey(flux, survey, self.conditions, generators)
        with np.errstate(divide="ignore"):
            error = np.sqrt(np.where(good & (ivar > 0), 1 / ivar, 0.0) + seen.flux_error**2)
        seen = Seen(seen.flux, np.where(seen.flux_error > 0, error, 0.0), seen.good & good, seen.resolving_power)
        n = len(flux)
        labels = np.column_stack([numbers(columns[name], n) for name in self.extractor.label_names])
        return self.streamed.rows(seen, labels, generators)
