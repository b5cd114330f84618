r"""What APOGEE does to the spectrum of a star: broadening, velocity, noise, continuum errors, missing pixels.

The apStar grid is even in :math:`\ln\lambda`, 4.14 km/s per pixel, so macroturbulence, a line-spread function wider or
narrower than the nominal one and a radial velocity are the same kernel at every wavelength, and one product in Fourier
space:

.. math:: K(f) = e^{-2 \pi^2 \sigma^2 f^2} \, e^{-2 \pi i f s}

with the frequency :math:`f` in cycles per pixel, the variance :math:`\sigma^2` (negative = sharper than nominal) and
the shift :math:`s` in pixels. At the highest frequency of the grid a spectrum of R = 22,500 has next to nothing left
(1e-4 of its amplitude), so shifts by part of a pixel are as exact as those by whole ones.

`observing` does the like for spectra that are evenly spaced in Angstrom, by the first terms of a Taylor series.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..spectra import APOGEE_DETECTORS, APOGEE_RESOLVING_POWER, FWHM_TO_SIGMA, SPEED_OF_LIGHT

LN_STEP = 6e-6 * np.log(10.0)
"""Step of the apStar grid in ln(wavelength)."""

HALF_WIDTH, FLAT = 16, 10
"""Of a kernel, pixels: behind the first it is 0; from the second on it fades, for a cut would ring."""

SEGMENT = 2 * HALF_WIDTH
"""Pixels computed together: a segment and its neighbour hold everything its kernel reaches."""

SHARPEST, WIDEST, FASTEST = -8.0, 100.0, 12.0
"""What a kernel of that width can do: variance from and to, (km/s)^2; velocity, km/s. A line's flux is right to 2e-4
of its depth there (1e-3 where sharpened most), its centroid to 0.01 km/s, its variance to 0.5 %."""

DEGREE = 4
"""ASPCAP normalises each detector by a polynomial of this degree (Garcia Perez et al. 2016, AJ 151, 144), and so
leaves an error of that shape."""

LONGEST_RUN = 8
"""Pixels spoiled by one sky line or one bad column."""


def _detector_slices() -> tuple[slice, ...]:
    """The detectors on the 7,514 pixels."""
    stops = np.cumsum([0, *(detector.stop - detector.start for detector in APOGEE_DETECTORS)])
    return tuple(slice(int(start), int(stop)) for start, stop in pairwise(stops))


DETECTORS = _detector_slices()
N_PIXELS = DETECTORS[-1].stop


@dataclass(frozen=True)
class ApogeeConditions:
    """How far each nuisance reaches; every spectrum draws its own amounts.

    Args:
        snr: Range of the signal-to-noise ratio per pixel; drawn evenly in its logarithm.
        noise_shape: 1-sigma of the smooth variation of the noise along each detector, natural logarithm.
        vmacro: Range of the macroturbulence, km/s, drawn evenly. Rotation counts as part of it. It is the isotropic
            Gaussian one, a velocity distribution exp(-(v / vmacro)^2) whose standard deviation is vmacro / sqrt(2)
            (Gray 2005, The Observation and Analysis of Stellar Photospheres, chapter 17).
        velocity: 1-sigma of the radial velocity left in a rest-frame spectrum, km/s; cut at 4 sigma.
        resolving_power: 1-sigma of lambda / FWHM about 22,500, relative: fibres differ; cut at 3 sigma.
        continuum: 1-sigma of the continuum's smooth multiplicative error on each detector.
        missing: Largest fraction of missing pixels, in runs of one to eight; drawn evenly from 0.

    Raises:
        ValueError: An amount is negative or beyond what the kernels can do.
    """

    snr: tuple[float, float] = (50.0, 500.0)
    noise_shape: float = 0.2
    vmacro: tuple[float, float] = (2.0, 10.0)
    velocity: float = 0.5
    resolving_power: float = 0.05
    continuum: float = 0.01
    missing: float = 0.03

    def __post_init__(self) -> None:
        limits = {
            "noise_shape": 1.0,
            "velocity": FASTEST / 4,
            "resolving_power": 0.05,
            "continuum": 0.3,
            "missing": 0.9,
        }
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                unit = " km/s" if name == "velocity" else ""
                raise ValueError(f"{name} must lie in [0, {limit:g}]{unit}, got {getattr(self, name):g}.")
        if not 0 < self.snr[0] <= self.snr[1]:
            raise ValueError(f"snr must be an increasing range of positive numbers, got {self.snr}.")
        if not 0 <= self.vmacro[0] <= self.vmacro[1] <= 13:
            raise ValueError(f"vmacro must be an increasing range within [0, 13] km/s, got {self.vmacro}.")


def lsf_variance(resolving_power: np.ndarray | float) -> np.ndarray | float:
    """Variance of a Gaussian line-spread function, (km/s)^2, for lambda / FWHM."""
    return (SPEED_OF_LIGHT * FWHM_TO_SIGMA / resolving_power) ** 2


def broadening_kernels(variance: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """One convolution kernel per spectrum, sum 1; shape (n_spectra, 33), float32, a receding star's peak to the right.

    Args:
        variance: Of the Gaussian broadening, (km/s)^2, shape (n_spectra,); negative = sharper.
        velocity: Radial velocity, km/s, positive = redder, shape (n_spectra,): wavelengths grow by 1 + v / c.

    Raises:
        ValueError: Beyond `SHARPEST`, `WIDEST` or `FASTEST`, where the kernel would be cut off.
    """
    if not ((variance >= SHARPEST) & (variance <= WIDEST)).all():
        raise ValueError(
            f"a broadening's variance must lie in [{SHARPEST:g}, {WIDEST:g}] (km/s)^2, got "
            f"[{np.min(variance):g}, {np.max(variance):g}]. Start from a spectrum of another resolving power."
        )
    if not (np.abs(velocity) <= FASTEST).all():
        raise ValueError(
            f"a residual velocity must lie within {FASTEST:g} km/s, got [{np.min(velocity):g}, {np.max(velocity):g}]. "
            "Bring the spectrum to the rest frame first."
        )
    shift = (np.log1p(velocity / SPEED_OF_LIGHT) / LN_STEP)[:, None]
    variance_pixels = (variance / (SPEED_OF_LIGHT * LN_STEP) ** 2)[:, None]
    n = 8 * HALF_WIDTH
    # The shift alone is a sinc, whose slow tails a Hann window ends within the kernel; then the Gaussian comes on top.
    distance = np.fft.fftfreq(n, 1 / n) - shift
    window = np.cos(0.5 * np.pi * np.minimum(np.abs(distance) / (HALF_WIDTH - np.abs(shift)), 1.0)) ** 2
    gaussian = np.exp(-2 * np.pi**2 * variance_pixels * np.fft.rfftfreq(n) ** 2)
    lag = np.arange(-HALF_WIDTH, HALF_WIDTH + 1)
    kernels = np.fft.irfft(np.fft.rfft(np.sinc(distance) * window, axis=1) * gaussian, n, axis=1)[:, lag]
    fading = np.clip((np.abs(lag) - FLAT) / (HALF_WIDTH + 1 - FLAT), 0.0, 1.0)
    kernels *= np.cos(0.5 * np.pi * fading) ** 2
    return (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)


def convolve(flux: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Convolve each spectrum with its kernel, each detector by itself: beyond its ends, its last pixel goes on.

    A detector is cut into segments of 32 pixels; each becomes a product of itself and its neighbour with two banded
    32 x 32 matrices of its spectrum's kernel. That is twice the multiplications of a plain convolution and, being
    matrix products, five times as fast.

    Args:
        flux: Shape (n_spectra, 7514), float32.
        kernels: Shape (n_spectra, 33), float32.

    Returns:
        Shape (n_spectra, 7514), float32.
    """
    # banded[:, j, i] weighs pixel j - 16 of a segment for pixel i of it: the kernel at lag i - j + 16.
    padded = np.pad(kernels, ((0, 0), (SEGMENT - 1, SEGMENT - 1)))
    banded = np.ascontiguousarray(sliding_window_view(padded, SEGMENT, axis=1)[:, ::-1])
    here, beyond = banded[:, :SEGMENT], banded[:, SEGMENT:]
    result = np.empty(flux.shape, dtype=np.float32)
    for detector in DETECTORS:
        n = detector.stop - detector.start
        n_segments = -(-n // SEGMENT)
        segments = np.empty((len(flux), n_segments + 1, SEGMENT), dtype=np.float32)
        row = segments.reshape(len(flux), -1)
        row[:, :HALF_WIDTH] = flux[:, detector.start, None]
        row[:, HALF_WIDTH : HALF_WIDTH + n] = flux[:, detector]
        row[:, HALF_WIDTH + n :] = flux[:, detector.stop - 1, None]
        convolved = segments[:, :-1] @ here
        convolved += segments[:, 1:] @ beyond
        result[:, detector] = convolved.reshape(len(flux), -1)[:, :n]
    return result


def broaden(flux: np.ndarray, variance: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Broaden and shift spectra (n_spectra, 7514); see `broadening_kernels` for the arguments and `convolve`."""
    return convolve(flux, broadening_kernels(variance, velocity))


def _smooth_shapes() -> np.ndarray:
    """Legendre polynomials on each detector, shape (15, 7514), float32.

    Unit normal coefficients give a function of unit variance, averaged over a detector.
    """
    shapes = np.zeros((len(DETECTORS), DEGREE + 1, N_PIXELS))
    for number, detector in enumerate(DETECTORS):
        position = np.linspace(-1, 1, detector.stop - detector.start)
        shapes[number, :, detector] = np.polynomial.legendre.legvander(position, DEGREE).T
    shapes *= np.sqrt((2 * np.arange(DEGREE + 1) + 1) / (DEGREE + 1))[:, None]
    return shapes.reshape(-1, N_PIXELS).astype(np.float32)


_SHAPES = _smooth_shapes()


def _draw_missing(rng: np.random.Generator, n: int, missing: float) -> np.ndarray:
    """Runs of missing pixels of n spectra: indices into the ravelled (n, 7514) pixels, some of them twice."""
    n_runs = int(np.ceil(missing * N_PIXELS / ((1 + LONGEST_RUN) / 2)))
    wanted = np.arange(n_runs) < n_runs * rng.random((n, 1))
    start = rng.integers(N_PIXELS, size=(n, n_runs))
    stop = np.minimum(start + rng.integers(1, LONGEST_RUN + 1, size=(n, n_runs)), N_PIXELS)
    pixel = start[..., None] + np.arange(LONGEST_RUN)
    spectrum = np.arange(n)[:, None, None]
    return (spectrum * N_PIXELS + pixel)[wanted[..., None] & (pixel < stop[..., None])]


def observe_apogee(flux: np.ndarray, conditions: ApogeeConditions, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Observe synthetic spectra of R = 22,500 with APOGEE.

    Args:
        flux: Normalised, shape (n_spectra, 7514), float32, on `spectra.apogee_wavelength`.
        conditions: How far each nuisance reaches.
        rng: One generator for all; what is drawn does not depend on the flux.

    Returns:
        Per pixel (n_spectra, 7514): `flux`, `ivar` (float32, 0 where bad) and `bad_pixel` (bool; the flux there is 0).
        Per spectrum (n_spectra,), float32: `snr`, `vmacro` (km/s), `velocity` (km/s) and `lsf_change`, the resolving
        power divided by 22,500.

    Raises:
        ValueError: The flux is not on the 7,514 pixels.
    """
    if flux.ndim != 2 or flux.shape[1] != N_PIXELS:
        raise ValueError(f"flux must have shape (n_spectra, {N_PIXELS}), the APOGEE pixels, got {flux.shape}.")
    n = len(flux)
    snr = np.exp(rng.uniform(np.log(conditions.snr[0]), np.log(conditions.snr[1]), size=n))
    vmacro = rng.uniform(conditions.vmacro[0], conditions.vmacro[1], size=n)
    velocity = conditions.velocity * np.clip(rng.standard_normal(n), -4, 4)
    lsf_change = 1 + conditions.resolving_power * np.clip(rng.standard_normal(n), -3, 3)
    continuum = np.float32(conditions.continuum) * rng.standard_normal((n, len(_SHAPES)), dtype=np.float32)
    noise_shape = np.float32(conditions.noise_shape) * rng.standard_normal((n, len(_SHAPES)), dtype=np.float32)

    wider = lsf_variance(APOGEE_RESOLVING_POWER * lsf_change) - lsf_variance(APOGEE_RESOLVING_POWER)
    seen = broaden(flux, vmacro**2 / 2 + wider, velocity)
    wiggle = continuum @ _SHAPES
    wiggle += 1
    seen *= wiggle
    sigma = np.exp(noise_shape @ _SHAPES)
    sigma /= snr[:, None].astype(np.float32)
    noise = rng.standard_normal(seen.shape, dtype=np.float32)
    noise *= sigma
    seen += noise
    ivar = np.square(np.reciprocal(sigma, out=sigma), out=sigma)

    missing = _draw_missing(rng, n, conditions.missing)
    bad_pixel = np.zeros(seen.shape, dtype=bool)
    for values, nothing in ((seen, 0.0), (ivar, 0.0), (bad_pixel, True)):
        values.reshape(-1)[missing] = nothing
    drawn = {"snr": snr, "vmacro": vmacro, "velocity": velocity, "lsf_change": lsf_change}
    return {"flux": seen, "ivar": ivar, "bad_pixel": bad_pixel} | {k: v.astype(np.float32) for k, v in drawn.items()}
