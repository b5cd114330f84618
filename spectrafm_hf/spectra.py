"""A spectrum, its wavelengths, its grid and its pseudo-continuum. NumPy only.

Everything past a reader speaks one language: wavelength in **vacuum Angstrom, rest frame**, float64; flux with
`bad_pixel` (True = do not trust) beside it. Bad pixels carry no information, whatever number stands in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FWHM_TO_SIGMA = 1.0 / (2.0 * np.sqrt(2.0 * np.log(2.0)))
SPEED_OF_LIGHT = 299_792.458
"""km/s."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One spectrum of one star, as a reader hands it over.

    Attributes:
        wavelength: Pixel centres, shape (n_pixels,), vacuum Angstrom, rest frame, float64, increasing.
        flux: Shape (n_pixels,), float64; any multiplicative unit, since the pseudo-continuum is divided out.
        bad_pixel: Shape (n_pixels,), bool; True = do not trust.
        star_id: Normalised name of the star (`builders.splits.normalise_star_name`); the split hangs on it.
        survey: Library or survey the spectrum comes from, e.g. `miles`.
        fwhm: Full width at half maximum of the line-spread function, Angstrom (None = unknown, or not constant).
        resolving_power: lambda / FWHM, where that is what is constant (None = unknown, or not constant).
        ivar: Inverse variance of the flux, shape (n_pixels,), 0 = no information (None = not published).
        labels: Label name -> value in the label's unit; a missing one is absent or NaN.
        label_errors: Label name -> published 1-sigma error; absent = not published.
        snr: Published signal-to-noise ratio per pixel (None = not published).
        ra, dec: Position, degrees, ICRS (None = not published).
        ids: What else the star is called: name of the catalogue or column -> identifier.
        meta: Anything worth keeping for provenance (file name, spectral type, ...).

    Raises:
        ValueError: Shapes differ, or wavelengths are not finite, positive and increasing.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    bad_pixel: np.ndarray
    star_id: str
    survey: str
    fwhm: float | None = None
    ivar: np.ndarray | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    label_errors: Mapping[str, float] = field(default_factory=dict)
    resolving_power: float | None = None
    snr: float | None = None
    ra: float | None = None
    dec: float | None = None
    ids: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.wavelength.shape
        arrays = {"flux": self.flux, "bad_pixel": self.bad_pixel} | ({} if self.ivar is None else {"ivar": self.ivar})
        for name, array in arrays.items():
            if array.shape != shape or array.ndim != 1:
                raise ValueError(
                    f"{self.star_id}: {name} must be 1-D with one value per wavelength {shape}, got {array.shape}."
                )
        if not (
            np.isfinite(self.wavelength).all() and (self.wavelength > 0).all() and (np.diff(self.wavelength) > 0).all()
        ):
            raise ValueError(f"{self.star_id}: wavelength must be finite, positive and increasing (vacuum Angstrom).")


APOGEE_DETECTORS = (slice(246, 3274), slice(3585, 6080), slice(6344, 8335))
"""Blue, green and red detector on the 8,575 pixels of the apStar grid; what lies between is gaps.

These 7,514 pixels are those of Koblischke & Bovy 2024 (arXiv 2411.04750)."""

APOGEE_RESOLVING_POWER = 22_500.0
"""lambda / FWHM of APOGEE spectra (Majewski et al. 2017, AJ 154, 94)."""


def apstar_wavelength() -> np.ndarray:
    """Pixel centres of the apStar grid: shape (8575,), vacuum Angstrom, rest frame, float64.

    log10(lambda) = 4.179 + 6e-6 n (SDSS data model of apStar; CRVAL1 and CDELT1 of its files).
    """
    return 10.0 ** (4.179 + 6e-6 * np.arange(8575))


def apogee_wavelength() -> np.ndarray:
    """Pixel centres of the apStar grid on the detectors: shape (7514,), vacuum Angstrom, rest frame, float64."""
    grid = apstar_wavelength()
    return np.concatenate([grid[detector] for detector in APOGEE_DETECTORS])


def air_to_vacuum(wavelength_air: np.ndarray) -> np.ndarray:
    """Wavelength in air -> vacuum, both Angstrom, any shape, float64.

    Morton (2000, ApJS 130, 403, eq. 8; the IAU standard form), solved for air input as in VALD
    (N. Piskunov): good to 1e-5 Angstrom between 2,000 Angstrom and the H band.
    """
    sigma2 = (1e4 / np.asarray(wavelength_air, dtype=np.float64)) ** 2
    n = (
        1.0
        + 8.336624212083e-5
        + 2.408926869968e-2 / (130.1065924522 - sigma2)
        + 1.599740894897e-4 / (38.92568793293 - sigma2)
    )
    return np.asarray(wavelength_air, dtype=np.float64) * n


def vacuum_to_air(wavelength: np.ndarray) -> np.ndarray:
    """Wavelength in vacuum -> air, both Angstrom, any shape, float64 (Morton 2000, ApJS 130, 403, eq. 8)."""
    sigma2 = (1e4 / np.asarray(wavelength, dtype=np.float64)) ** 2
    n = 1.0 + 8.34254e-5 + 2.406147e-2 / (130.0 - sigma2) + 1.5998e-4 / (38.9 - sigma2)
    return np.asarray(wavelength, dtype=np.float64) / n


def check_wavelength(wavelength: np.ndarray, low: float, high: float) -> None:
    """Refuse wavelengths that cannot be vacuum Angstrom in the range a model was built for.

    Raises:
        ValueError: Not finite, or nothing inside [low, high]; names what is needed, what came, what to do.
    """
    if wavelength.size == 0:
        raise ValueError("wavelength is empty; give at least one pixel (vacuum Angstrom).")
    if not np.isfinite(wavelength).all() or (wavelength <= 0).any():
        raise ValueError(
            "wavelength must be finite and positive (vacuum Angstrom), got "
            f"{int((~np.isfinite(wavelength)).sum())} non-finite and {int((wavelength <= 0).sum())} non-positive "
            "values; drop those pixels."
        )
    if not ((wavelength >= low) & (wavelength <= high)).any():
        raise ValueError(
            f"no pixel lies in [{low:.0f}, {high:.0f}] vacuum Angstrom, where this model works; got "
            f"[{wavelength.min():.6g}, {wavelength.max():.6g}]. Nanometres? Multiply by 10. Microns? By 1e4. "
            "Logarithmic? Take 10**x first."
        )


def pixel_edges(wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of each pixel of an increasing grid; shapes (n_pixels,), Angstrom.

    Edges lie half-way to the neighbour, but no farther than 0.75 of the grid's median step, so that a pixel beside
    a detector gap does not stretch across the gap. A lone pixel is given a width of 1 Angstrom.
    """
    if wavelength.size == 1:
        return wavelength - 0.5, wavelength + 0.5
    step = np.diff(wavelength)
    half = np.minimum(step / 2, 0.75 * np.median(step))
    return wavelength - np.concatenate([half[:1], half]), wavelength + np.concatenate([half, half[-1:]])


class Rebinning:
    """From one grid to another: all that `rebin` has to know of the two, found once for any number of spectra.

    Args:
        wavelength: Increasing, shape (n_pixels,), Angstrom.
        new_wavelength: Increasing, shape (n_new,), same unit, medium and frame as `wavelength`.
        min_coverage: A new pixel is good if at least this fraction of it is covered by good old pixels.
    """

    def __init__(self, wavelength: np.ndarray, new_wavelength: np.ndarray, min_coverage: float = 0.5):
        lower, upper = pixel_edges(wavelength)
        # Every pixel has two edges, so that gaps stay empty.
        edges = np.maximum.accumulate(np.stack([lower, upper], axis=-1).ravel())
        self.n_pixels, self._width = wavelength.size, upper - lower
        new_lower, new_upper = pixel_edges(new_wavelength)
        self._enough = min_coverage * (new_upper - new_lower) * (1 - 1e-9)
        (first, first_share), (last, last_share) = (self._where(edges, new) for new in (new_lower, new_upper))
        self._ends = first, first_share, last, last_share
        self._source: np.ndarray | None = None
        inside = self._inside(lower, upper, new_lower, new_upper)
        if (inside | (self._integral(np.ones(self.n_pixels)) < self._enough)).all():
            middle = np.searchsorted(lower, (new_lower + new_upper) / 2, side="right") - 1
            self._source, self._has_source = np.clip(middle, 0, self.n_pixels - 1), inside

    @staticmethod
    def _inside(lower: np.ndarray, upper: np.ndarray, new_lower: np.ndarray, new_upper: np.ndarray) -> np.ndarray:
        """New pixels that lie in one old pixel, to 1e-5 of their width, which has their flux then."""
        middle, reach = (new_lower + new_upper) / 2, 1e-5 * (new_upper - new_lower)
        old = np.clip(np.searchsorted(lower, middle, side="right") - 1, 0, lower.size - 1)
        return (lower[old] <= new_lower + reach) & (new_upper - reach <= upper[old])

    def _where(self, edges: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the old pixel that a new edge lies in, or of the next one, and how much of it lies below."""
        interval = np.searchsorted(edges, at, side="right") - 1
        within = np.clip(interval, 0, edges.size - 2)
        size = edges[within + 1] - edges[within]
        share = np.clip((at - edges[within]) / np.where(size > 0, size, 1.0), 0.0, 1.0)
        pixel = np.where(interval < 0, 0, np.where(interval >= edges.size - 1, self.n_pixels, (interval + 1) // 2))
        in_pixel = (interval >= 0) & (interval < edges.size - 1) & (interval % 2 == 0) & (size > 0)
        return pixel, np.where(in_pixel, share, 0.0)

    def _integral(self, amount: np.ndarray) -> np.ndarray:
        """Densities (..., n_pixels) -> their integral over each new pixel, (..., n_new)."""
        amount = amount * self._width
        before = np.zeros((*amount.shape[:-1], self.n_pixels + 1))
        np.cumsum(amount, axis=-1, out=before[..., 1:])
        amount = np.concatenate([amount, np.zeros((*amount.shape[:-1], 1))], axis=-1)
        first, first_share, last, last_share = self._ends

        def below(pixel: np.ndarray, share: np.ndarray) -> np.ndarray:
            return before.take(pixel, axis=-1) + share * amount.take(pixel, axis=-1)

        return below(last, last_share) - below(first, first_share)

    def __call__(self, flux: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `rebin`."""
        if self._source is not None:
            new_good = self._has_source & good[self._source]
            return np.where(new_good, flux.take(self._source, axis=-1), 0.0), new_good
        covered = self._integral(good.astype(np.float64))
        new_good = covered >= self._enough
        new_flux = np.where(new_good, self._integral(np.where(good, flux, 0.0)) / np.where(new_good, covered, 1.0), 0.0)
        return new_flux, new_good


def highest_resolving_power(wavelength: np.ndarray) -> float:
    """Lambda / FWHM of the narrowest lines that pixels can hold, two to a FWHM (Nyquist), median over the spectrum.

    Args:
        wavelength: Pixel centres, any order, shape (n_pixels,); Angstrom.

    Returns:
        NaN of fewer than two different wavelengths.
    """
    ordered = np.unique(wavelength[np.isfinite(wavelength)])
    return float(np.median(ordered[1:] / (2 * np.diff(ordered)))) if ordered.size > 1 else np.nan


def rebin(
    wavelength: np.ndarray, flux: np.ndarray, good: np.ndarray, new_wavelength: np.ndarray, min_coverage: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Mean flux density in each pixel of another grid, from good pixels only (flux-conserving).

    A piecewise-constant spectrum is integrated over each new pixel, so rebinning to the same grid changes nothing.

    Args:
        wavelength: Increasing, shape (n_pixels,), Angstrom.
        flux: Shape (..., n_pixels); flux density, e.g. per Angstrom or continuum-normalised.
        good: Shape (n_pixels,), bool; True = use.
        new_wavelength: Increasing, shape (n_new,), same unit, medium and frame as `wavelength`.
        min_coverage: A new pixel is good if at least this fraction of it is covered by good old pixels.

    Returns:
        New flux, shape (..., n_new), 0 where not good; and its `good`, shape (n_new,), bool.
    """
    return Rebinning(wavelength, new_wavelength, min_coverage)(flux, good)


FARTHEST = 14.0
"""Smoothing lengths beyond which a Gaussian is 0 in float32: pixels farther apart know nothing of each other."""


FEW = 4
"""Rows for which a product each is faster than one of matrices."""


class _Smoother:
    """Gaussian sums of pixel values, at nodes and linear between them; see `PseudoContinuum`."""

    def __init__(self, wavelength: np.ndarray, smoothing_length: float):
        spacing = smoothing_length / 4
        # Nodes at multiples of the spacing: a window sees the same nodes as the whole spectrum does.
        first, last = np.floor(wavelength[0] / spacing), np.ceil(wavelength[-1] / spacing)
        nodes = spacing * np.arange(first, last + 2)
        distance = (nodes[:, None] - wavelength[None, :]) / smoothing_length
        self._kernel = np.exp(-0.5 * distance**2).astype(np.float32)
        position = wavelength / spacing - first
        self._left = np.floor(position).astype(np.int64)
        self._right_weight = (position - self._left).astype(np.float32)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if values[..., 0].size <= FEW:
            rows = values.reshape(-1, values.shape[-1])
            at_nodes = np.stack([self._kernel @ row for row in rows]).reshape(*values.shape[:-1], -1)
        else:
            at_nodes = values @ self._kernel.T
        left, right = (at_nodes.take(node, axis=-1) for node in (self._left, self._left + 1))
        return left * (1 - self._right_weight) + right * self._right_weight


class PseudoContinuum:
    r"""Divide a spectrum by its own Gaussian-smoothed self.

    The pseudo-continuum at wavelength :math:`x` is

    .. math:: c(x) = \sum_j w_j f_j \, e^{-(x-\lambda_j)^2 / 2 s^2} \Big/ \sum_j w_j \, e^{-(x-\lambda_j)^2 / 2 s^2}

    with :math:`w_j = 1` for good pixels and 0 otherwise: no pixel is picked as "continuum", no polynomial is fitted,
    flux calibration and reddening drop out on scales longer than the smoothing length :math:`s`, and it is the same
    operation for any library (as in Ho et al. 2017, ApJ 836, 5, for LAMOST). It is evaluated on nodes
    :math:`s/4` apart and interpolated linearly to the pixels, so that a batch costs two matrix products.

    Args:
        wavelength: Pixel centres, shape (n_pixels,), Angstrom, increasing.
        smoothing_length: :math:`s`, Angstrom.
    """

    def __init__(self, wavelength: np.ndarray, smoothing_length: float):
        far = np.flatnonzero(np.diff(wavelength) > FARTHEST * smoothing_length) + 1
        self._islands = [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(np.arange(wavelength.size), far)]
        self._smoothers = [_Smoother(wavelength[island], smoothing_length) for island in self._islands]

    def _smooth(self, values: np.ndarray) -> np.ndarray:
        smoothed = np.zeros(values.shape, dtype=np.float32)
        for island, smooth in zip(self._islands, self._smoothers, strict=True):
            if values[..., island].any():  # a spectrum has good pixels in one of them, mostly
                smoothed[..., island] = smooth(values[..., island])
        return smoothed

    def __call__(self, flux: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Flux and good (..., n_pixels) -> pseudo-continuum (..., n_pixels), float32; NaN far from any good pixel."""
        summed, total = self._smooth(np.stack([np.where(good, flux, 0.0), good]).astype(np.float32))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 1e-6, summed / total, np.nan)
