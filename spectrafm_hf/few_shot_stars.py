"""Your labelled stars, ready for the model, and synthetic ones on the same pixels.

Files and table are read as `spectrafm build folder` reads them. Stars are put in the order of their names, so that what
is learned hangs neither on the order of the files nor on that of the table's rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from .builders.apogee_dr17 import reason_of
from .builders.labelled_folder import FolderConfig
from .builders.spectra_builder import Skipped
from .collation import Row
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .labels import get_label
from .spectra import FWHM_TO_SIGMA, rebin
from .synthesis.cannon import CannonSynthesizer
from .synthesis.sampler import LabelSampler
from .synthesis.surveys import SURVEYS

FEWEST_TO_LEARN = 10
"""Stars that must have a label for it to be learned: of fewer, no part could be left out to judge by."""

N_ANCHORS, N_GRIDS = 600, 4
"""Synthetic stars, and the most sets of pixels that they are shared out to."""

PIXELS_PER_FWHM = 2.5
"""Assumed where a file does not tell its resolution: spectrographs sample a line with 2 to 3 pixels."""

UNKNOWN_NOISE = 0.01
"""1-sigma relative to the flux given to synthetic stars where a file tells no errors."""

Seen = dict[str, Any]
"""One spectrum as `SpectraFMFeatureExtractor.place` takes it: argument -> value."""


@dataclass(frozen=True, eq=False)
class LabelledStars:
    """Spectra of labelled stars in the order of their names.

    Attributes:
        star_ids: Shape (n_spectra,), text; visits of a star have one.
        rows: As `prediction.ask` takes them.
        labels: Shape (n_spectra, n_labels) in the order of the model's labels, K and dex, NaN = missing.
        label_errors: Published 1-sigma, same shape and units, NaN = not published.
        fwhm: Of the line-spread function, Angstrom, shape (n_spectra,); NaN = the file does not tell.
        snr: Per pixel, shape (n_spectra,); NaN = the file does not tell.
        pixels: Spectra that stand for all others' pixels, at most `N_GRIDS`.
        skipped: Files that could not be used, and why.
    """

    star_ids: np.ndarray
    rows: list[Row]
    labels: np.ndarray
    label_errors: np.ndarray
    fwhm: np.ndarray
    snr: np.ndarray
    pixels: list[Seen]
    skipped: list[Skipped]

    @property
    def n_stars(self) -> int:
        return len(np.unique(self.star_ids))

    def only(self, kept: np.ndarray) -> LabelledStars:
        """Without the other spectra; `kept` (n_spectra,), bool."""
        return replace(
            self,
            star_ids=self.star_ids[kept],
            rows=[row for row, keep in zip(self.rows, kept, strict=True) if keep],
            labels=self.labels[kept],
            label_errors=self.label_errors[kept],
            fwhm=self.fwhm[kept],
            snr=self.snr[kept],
        )

    def per_star(self, values: np.ndarray) -> np.ndarray:
        """Mean over the spectra of each star, stars by name: (n_spectra, ...) -> (n_stars, ...); NaN is left out."""
        _, first, star = np.unique(self.star_ids, return_index=True, return_inverse=True)
        if len(first) == len(values):
            return values
        known = np.isfinite(values)
        total, count = np.zeros((2, len(first), *values.shape[1:]))
        np.add.at(total, star, np.where(known, values, 0.0))
        np.add.at(count, star, known)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


# ---------------------------------------------------------------- reading


def read_stars(
    config: FolderConfig, extractor: SpectraFMFeatureExtractor, window: Sequence[float] | None = None
) -> LabelledStars:
    """Read a folder of spectra and its table of labels; what cannot be used is listed.

    Args:
        config: Folder, table, and how to read them.
        extractor: Of the model.
        window: Part of the spectra to use, vacuum Angstrom; None = all that the model reads.

    Raises:
        ValueError, FileNotFoundError: See `FolderConfig.plan`; or no spectrum has a good pixel where the model reads.
    """
    plan = config.plan()
    skipped, told = list(plan.skipped), []
    for chunk in tqdm(plan.chunks, desc="reading spectra", unit="chunk", leave=False, disable=None):
        rows = config.read(chunk)
        skipped += rows.skipped
        if rows.columns is None:
            continue
        shared = None if plan.grid is None else plan.grid.wavelength
        for number in range(len(rows.columns["flux"])):
            one = {name: values[number] for name, values in rows.columns.items() if not isinstance(values, str)}
            seen = spectrum_of(one, shared)
            try:
                told.append((one, seen, prepare(extractor, seen, window)))
            except ValueError as error:
                skipped.append(Skipped(one["file"], one["object_id"], reason_of(error, config.folder)))
    if not told:
        reasons = "; ".join(f"{one.file}: {one.reason}" for one in skipped[:3])
        raise ValueError(f"no spectrum in {config.folder} can be read by this model ({reasons}).")
    told.sort(key=lambda each: (each[0]["object_id"], each[0]["file"]))
    columns, spectra, prepared = zip(*told, strict=True)

    def table(suffix: str) -> np.ndarray:
        return np.array([[one[name + suffix] for name in extractor.label_names] for one in columns], dtype=np.float64)

    return LabelledStars(
        star_ids=np.array([one["object_id"] for one in columns]),
        rows=list(prepared),
        labels=table(""),
        label_errors=table("_err"),
        fwhm=np.array([sharpness(seen) for seen in spectra]),
        snr=np.array([one["snr"] if np.isfinite(one["snr"]) else snr_of(seen) for one, seen, _ in told]),
        pixels=different_pixels(spectra),
        skipped=sorted(skipped, key=lambda one: one.file),
    )


def spectrum_of(one: Mapping[str, Any], shared: np.ndarray | None) -> Seen:
    """One row of a dataset -> arguments of `place`.

    Args:
        one: Column -> value, see `builders.rows`.
        shared: Wavelengths of all spectra, vacuum Angstrom; None = the row brings its own.
    """
    wavelength = one["wavelength"] if shared is None else shared
    ivar, power, sigma = one.get("ivar"), one["resolving_power"], one["lsf_sigma"]
    if not np.isfinite(power):
        power = wavelength * FWHM_TO_SIGMA / sigma if np.isfinite(sigma) else None
    if ivar is not None:
        known = ivar > 0
        ivar = np.where(known, 1 / np.sqrt(np.where(known, ivar, 1.0)), 0.0)
    return {
        "flux": np.asarray(one["flux"], dtype=np.float64),
        "wavelength": wavelength,
        "bad_pixel": np.asarray(one["bad_pixel"]),
        "flux_error": ivar,
        "resolving_power": power,
    }


def prepare(extractor: SpectraFMFeatureExtractor, seen: Seen, window: Sequence[float] | None) -> Row:
    """One spectrum -> one row for the model, cut to the window (vacuum Angstrom).

    Raises:
        ValueError: See `SpectraFMFeatureExtractor.place` and `tokenise`; or no good pixel lies in the window.
    """
    pixels = extractor.place(**seen)
    if window is not None:
        low, high = window
        pixels = pixels.only((pixels.wavelength >= low) & (pixels.wavelength <= high))
        if not pixels.good.any():
            reach = seen["wavelength"][[0, -1]]
            raise ValueError(
                f"no good pixel lies in the window {low:.0f}-{high:.0f} vacuum Angstrom; the spectrum reaches "
                f"{reach[0]:.0f}-{reach[1]:.0f}."
            )
    return extractor.tokenise(pixels)


def sharpness(seen: Seen) -> float:
    """Full width at half maximum of the line-spread function in the middle of a spectrum, Angstrom; NaN = not told."""
    if seen["resolving_power"] is None:
        return np.nan
    return float(np.median(seen["wavelength"] / seen["resolving_power"]))


def assumed_sharpness(wavelength: np.ndarray) -> float:
    """The same guessed from the pixels, see `PIXELS_PER_FWHM`."""
    return PIXELS_PER_FWHM * float(np.median(np.diff(wavelength)))


def snr_of(seen: Seen) -> float:
    """Median signal-to-noise ratio of the good pixels; NaN = the file tells no errors."""
    error = seen["flux_error"]
    if error is None or not (known := ~seen["bad_pixel"] & (error > 0) & np.isfinite(seen["flux"])).any():
        return np.nan
    return float(np.median(np.abs(seen["flux"][known]) / error[known]))


def different_pixels(spectra: Sequence[Seen]) -> list[Seen]:
    """Of all spectra with pixels of their own, `N_GRIDS` spread evenly over the list."""
    kept = list({seen["wavelength"].tobytes(): seen for seen in spectra}.values())
    chosen = np.unique(np.linspace(0, len(kept) - 1, N_GRIDS).round().astype(int))
    return [kept[number] for number in chosen]


# ---------------------------------------------------------------- which labels


def labels_to_learn(
    stars: LabelledStars, known: Sequence[str], wanted: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Labels that enough stars have, and a sentence for each that too few have.

    Args:
        known: Labels of the model, columns of `stars.labels`.
        wanted: Asked for; None = all.

    Raises:
        ValueError: A label the model does not know, or one asked for that too few stars have, or none is left.
    """
    if unknown := sorted(set(wanted or ()) - set(known)):
        raise ValueError(
            f"this model knows {', '.join(known)}, but {', '.join(unknown)} was asked for; correct --labels-wanted, or "
            "give a model that knows it with --model."
        )
    counts = {
        name: len(np.unique(stars.star_ids[np.isfinite(stars.labels[:, column])])) for column, name in enumerate(known)
    }
    learned = [name for name in known if counts[name] >= FEWEST_TO_LEARN and (wanted is None or name in wanted)]
    told = ", ".join(f"{name} [{get_label(name).unit}] {counts[name]}" for name in known)
    short = [name for name in wanted or () if counts[name] < FEWEST_TO_LEARN]
    if not learned or short:
        raise ValueError(
            f"at least {FEWEST_TO_LEARN} stars with {' and with '.join(short) or 'a label that this model knows'} are "
            f"needed, to learn from and to judge by; got {stars.n_stars} stars whose spectra can be read "
            f"({len(stars.skipped)} files cannot), and so many values: {told}. Label more stars, or see whether values "
            "are missing, in another unit or under another name in the table."
        )
    few = [name for name in known if 0 < counts[name] < FEWEST_TO_LEARN]
    return learned, [
        f"{get_label(name).symbol} was not learned: {counts[name]} stars have it, {FEWEST_TO_LEARN} are needed."
        for name in few
    ]


# ---------------------------------------------------------------- synthetic stars on the same pixels


def anchor_rows(
    stars: LabelledStars, extractor: SpectraFMFeatureExtractor, window: Sequence[float] | None, seed: int
) -> list[Row]:
    """Synthetic stars of every kind as your spectrograph would see them, which hold the readouts still.

    Raises:
        ValueError: No synthetic spectra reach these pixels.
    """
    rng = np.random.default_rng(seed)
    shares = np.array_split(np.arange(N_ANCHORS), len(stars.pixels))
    return [
        prepare(extractor, seen, window)
        for pixels, share in zip(stars.pixels, shares, strict=True)
        for seen in synthetic_spectra(inside(pixels, extractor.wavelength_range), len(share), rng)
    ]


def inside(seen: Seen, wavelength_range: Sequence[float]) -> Seen:
    """The part of a spectrum that the model reads (vacuum Angstrom)."""
    low, high = wavelength_range
    kept = (seen["wavelength"] >= low) & (seen["wavelength"] <= high)
    return {
        name: values[kept] if isinstance(values, np.ndarray) and values.shape == kept.shape else values
        for name, values in seen.items()
    }


def synthetic_spectra(pixels: Seen, n: int, rng: np.random.Generator) -> Iterator[Seen]:
    """`n` synthetic stars with the pixels, the sharpness and the noise of one real spectrum."""
    wavelength, fwhm = pixels["wavelength"], sharpness(pixels)
    flux = synthesize(wavelength, fwhm if np.isfinite(fwhm) else assumed_sharpness(wavelength), n, rng)
    snr = snr_of(pixels)
    noise = 1 / snr if np.isfinite(snr) else UNKNOWN_NOISE
    for star in flux:
        yield pixels | {
            "flux": star * (1 + noise * rng.standard_normal(star.size)),
            "bad_pixel": pixels["bad_pixel"] | ~np.isfinite(star),
            "flux_error": np.full(star.size, noise) if np.isfinite(snr) else None,
        }


def synthesize(wavelength: np.ndarray, fwhm: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Normalised flux of `n` stars, shape (n, n_pixels); NaN where no synthetic spectrum reaches.

    In the H band the synthetic stars have abundances of their own; elsewhere they are those of the Cannon grid.

    Args:
        wavelength: Vacuum Angstrom, increasing.
        fwhm: Of the line-spread function, Angstrom.

    Raises:
        ValueError: See `CannonSynthesizer`.
    """
    h_band = SURVEYS["apogee"]
    factor = fwhm / float(np.median(wavelength)) * h_band.resolving_power
    if h_band.wavelength[0] < np.median(wavelength) < h_band.wavelength[-1] and factor > 0.9:
        clean = h_band.synthesizer(np.stack([h_band.draw(rng) for _ in range(n)]))
        seen = h_band.widen(clean, np.full(n, max(factor, 1.0)))
        flux, reached = rebin(h_band.wavelength, seen, np.ones(h_band.wavelength.size, bool), wavelength)
        return np.where(reached, flux, np.nan)
    sampler = LabelSampler()
    labels = np.stack([sampler.draw(rng) for _ in range(n)])
    return np.clip(CannonSynthesizer(wavelength, fwhm=fwhm)(labels), 0.0, 1.1)
