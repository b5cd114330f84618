r"""Synthetic APOGEE spectra, as many as wanted: labels -> flux as the spectrograph would have seen it.

.. math:: F = F_\mathrm{Cannon}(\mathrm{Teff}, \log g, [\mathrm{Fe/H}]) \cdot R(\mathrm{labels})

is the star (`cannon`, `response`), `instrument` observes it. Spectra come in blocks of 256. A block depends on its
number and the seed alone and is always computed whole, on one path, so that neither the order of blocks nor the number
of processes, shards or threads changes a byte. (Another make of processor may round differently.)
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from ..labels import LABELS
from ..spectra import APOGEE_RESOLVING_POWER, apogee_wavelength
from .cannon import CannonSynthesizer
from .dr17_sampler import Dr17LabelSampler
from .instrument import ApogeeConditions, observe_apogee
from .response import AbundanceResponse
from .synthesizer import Synthesizer

BLOCK = 256
"""Spectra computed together."""

DEEPEST, HIGHEST = 0.01, 1.05
"""Flux of a star, before noise: a line never reaches 0, and normalised emission is none of our physics."""


class Sampler(Protocol):
    """Draws stars: labels (n, n_labels) in K and dex, columns as `label_names`."""

    @property
    def label_names(self) -> tuple[str, ...]: ...

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray: ...


class ApogeeSynthesizer:
    """A star as APOGEE would see it without noise: the Cannon grid times the abundance response, R = 22,500.

    Cubic terms overshoot where the Cannon's training spectra were few (metal-poor, hot and large; up to 1.4), so the
    flux is clipped to [0.01, 1.05]: 2 % of the pixels when labels fill the whole box of `bounds`, but 3e-8 of them for
    stars as `Dr17LabelSampler` draws them. Stars below 3,500 K are beyond the Cannon grid, and refused.

    Args:
        response: False = the Cannon grid alone, at solar abundance ratios; then there are three labels.

    Attributes:
        label_names, bounds, wavelength: See `synthesis.synthesizer.Synthesizer`.
    """

    def __init__(self, response: bool = True):
        self.wavelength = apogee_wavelength()
        self._cannon = CannonSynthesizer(self.wavelength, resolving_power=APOGEE_RESOLVING_POWER)
        self._response = AbundanceResponse() if response else None
        self.label_names: tuple[str, ...] = self._cannon.label_names
        self.bounds = dict(self._cannon.bounds)
        if self._response is not None:
            self.label_names = self._response.label_names
            self.bounds = dict(self._response.bounds) | self.bounds

    def unclipped(self, labels: np.ndarray) -> np.ndarray:
        """Flux (n_stars, 7514), float32, as the models give it; labels (n_stars, n_labels) in K and dex.

        Raises:
            ValueError: Labels outside `bounds`, or not as many as `label_names`.
        """
        labels = np.atleast_2d(labels)
        if labels.shape[1] != len(self.label_names):
            raise ValueError(f"labels must have the columns {', '.join(self.label_names)}, got shape {labels.shape}.")
        flux = self._cannon(labels[:, : len(self._cannon.label_names)])
        if self._response is not None:
            flux *= self._response(labels)
        return flux

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Flux (n_stars, 7514), float32, in [0.01, 1.05], for labels (n_stars, n_labels) in K and dex.

        Raises:
            ValueError: Labels outside `bounds`, or not as many as `label_names`.
        """
        flux = self.unclipped(labels)
        return np.clip(flux, DEEPEST, HIGHEST, out=flux)


ONE_THREAD = threadpool_limits.wrap(limits=1, user_api="blas")
"""Some processors' matrix products hang on the number of threads, in their last bit."""


class ApogeeSpectra:
    """An endless set of synthetic APOGEE spectra; spectrum i lies in block i // 256.

    Args:
        seed: With the block number, decides everything random.
        sampler: Which stars; `Dr17LabelSampler()` if None.
        conditions: How they are observed; `ApogeeConditions()` if None.
        response: False = without the abundance response: [Mg/Fe] and [O/Fe] do nothing and are missing labels.
        synthesizer: Another source of flux on the APOGEE pixels at R = 22,500, instead of the default one.

    Attributes:
        wavelength: Pixel centres, shape (7514,), vacuum Angstrom, rest frame.

    Raises:
        ValueError: A negative seed, or a sampler that does not draw what the synthesizer needs.
    """

    @ONE_THREAD
    def __init__(
        self,
        seed: int,
        sampler: Sampler | None = None,
        conditions: ApogeeConditions | None = None,
        response: bool = True,
        synthesizer: Synthesizer | None = None,
    ):
        self.seed = _unsigned("seed", seed)
        self.sampler: Sampler = sampler or Dr17LabelSampler()
        self.conditions = conditions or ApogeeConditions()
        self.synthesizer: Synthesizer = synthesizer or ApogeeSynthesizer(response)
        self.wavelength = self.synthesizer.wavelength
        missing = [name for name in self.synthesizer.label_names if name not in self.sampler.label_names]
        if missing:
            raise ValueError(
                f"the synthesizer needs {', '.join(self.synthesizer.label_names)}, but the sampler draws no "
                f"{', '.join(missing)}. Use another sampler, or response=False."
            )

    @ONE_THREAD
    def block(self, block_index: int, stop: int = BLOCK) -> dict[str, np.ndarray]:
        """256 spectra: number 256 * block_index and those after it.

        Args:
            block_index: Number of the block.
            stop: Rows from this one on are not wanted. A synthesizer that works star by star (`star_by_star`) is
                spared them, and they are bad; for others a whole block is one product, whose bytes hang on its size.

        Returns:
            `labels` (256, n_labels) in the order of `labels.LABELS`, K and dex, NaN where the synthesizer does not
            know the label; `flux`, `ivar`, `bad_pixel` (256, 7514); `snr` and the nuisances `vmacro`, `velocity`,
            `lsf_change` (`instrument.observe_apogee`) and `c_fe`, `n_fe`, `alpha_fe`, dex, each (256,). All float32
            but `bad_pixel`, bool.

        Raises:
            ValueError: A negative block number, or labels that the synthesizer does not reach.
        """
        key = [self.seed, _unsigned("block_index", block_index)]
        rng = np.random.Generator(np.random.Philox(key=key))  # labels first: conditions do not change the stars
        drawn = dict(zip(self.sampler.label_names, self.sampler.draw(rng, BLOCK).T, strict=True))
        names = self.synthesizer.label_names
        nuisances = [name for name in names if name not in _LABEL_NAMES]
        for name in nuisances:
            # The far tail of a nuisance is worth nothing, and one star in 100,000 must not end a run.
            drawn[name] = np.clip(drawn[name], *self.synthesizer.bounds[name])
        wanted = stop if getattr(self.synthesizer, "star_by_star", False) else BLOCK
        flux = np.full((BLOCK, self.wavelength.size), np.nan, dtype=np.float32)
        flux[:wanted] = self.synthesizer(np.column_stack([drawn[name] for name in names])[:wanted])
        failed = ~np.isfinite(flux).all(axis=1)
        flux[failed] = 1.0
        unknown = np.full(BLOCK, np.nan)
        labels = np.column_stack([drawn[name] if name in names else unknown for name in _LABEL_NAMES])
        seen = observe_apogee(flux, self.conditions, rng)
        seen["bad_pixel"][failed], seen["ivar"][failed] = True, 0.0  # a star without a spectrum
        return {
            "labels": labels.astype(np.float32),
            **seen,
            **{name: drawn[name].astype(np.float32) for name in nuisances},
        }


_LABEL_NAMES = tuple(label.name for label in LABELS)


def _unsigned(name: str, value: int) -> int:
    if not 0 <= value < 2**63:
        raise ValueError(f"{name} must be a non-negative whole number below 2**63, got {value}.")
    return int(value)
