r"""What [Mg/Fe], [O/Fe] and four nuisances do to an APOGEE spectrum: the ratio to one of solar abundance ratios.

The Cannon grid knows Teff, log g and [Fe/H]. A small network, trained on Synspec spectra (`synthesis.synspec`), adds
the abundances:

.. math:: F = F_\mathrm{Cannon}(\theta) \cdot R(\theta, x), \qquad
          \ln R = \big(g(\theta, x) - g(\theta, 0)\big) \cdot V

with :math:`\theta` = (teff, logg, fe_h), :math:`x` = (mg_fe, o_fe, c_fe, n_fe, alpha_fe), a network :math:`g` of two
hidden layers (GELU) and :math:`V` principal components of the log ratios. Solar abundance ratios give exactly 1.

How well it repeats Synspec is known (`training/benchmarks/data.py` prints it against spectra it never saw); how well
Synspec's own Mg and O response repeats nature is not, to 30-50 % of the amplitude. Trained and shipped by
`training/train_response.py`; the file's metadata says on how many spectra.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open
from scipy.special import erf

from ..spectra import apogee_wavelength
from .dr17_sampler import LABEL_NAMES
from .synthesizer import check_bounds

RESPONSE_FILE = Path(__file__).with_name("abundance_response.safetensors")
N_PARAMETERS = 3
"""teff, logg and fe_h come first; the abundances, zero for solar ratios, after them."""

BOUNDS = {
    "teff": (3500.0, 8000.0),
    "logg": (0.0, 5.0),
    "fe_h": (-2.5, 0.5),
    "mg_fe": (-0.4, 0.8),
    "o_fe": (-0.4, 0.8),
    "c_fe": (-0.9, 0.6),
    "n_fe": (-0.6, 1.1),
    "alpha_fe": (-0.5, 0.8),
}
"""Range of the training spectra, K and dex. Above 7,500 K, where no line of ours is left, labels count as 7,500 K."""

HOTTEST = 7500.0


class AbundanceResponse:
    """Labels -> flux ratio on the 7,514 APOGEE pixels, at R = 22,500.

    Attributes:
        label_names: Order of the columns of the labels.
        bounds: Range of each label, K or dex.
        wavelength: Pixel centres, shape (7514,), vacuum Angstrom, rest frame.
    """

    label_names = LABEL_NAMES
    bounds = BOUNDS

    def __init__(self, file: Path = RESPONSE_FILE) -> None:
        with safe_open(file, framework="np") as stored:
            self._tensors = {name: stored.get_tensor(name).astype(np.float32) for name in stored.keys()}  # noqa: SIM118
            self.made_from = dict(stored.metadata())
        self.wavelength = apogee_wavelength()

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Flux ratio (n_stars, 7514), float32, for labels (n_stars, 8) in K and dex.

        Raises:
            ValueError: Labels outside `BOUNDS`; names the bounds.
        """
        labels = np.atleast_2d(np.asarray(labels, dtype=np.float64))
        check_bounds(labels, BOUNDS, "the abundance response was trained for", "Stars outside need Synspec itself.")
        solar = labels.copy()
        solar[:, N_PARAMETERS:] = 0.0
        both = self._network(np.concatenate([labels, solar]))
        log_ratio = (both[: len(labels)] - both[len(labels) :]) @ self._tensors["components"]
        return np.exp(log_ratio, out=log_ratio)

    def _network(self, labels: np.ndarray) -> np.ndarray:
        t = self._tensors
        seen = labels.copy()
        seen[:, 0] = np.minimum(seen[:, 0], HOTTEST)
        hidden = ((seen - t["center"]) / t["scale"]).astype(np.float32)
        for layer in (0, 1):
            hidden = hidden @ t[f"weight_{layer}"].T + t[f"bias_{layer}"]
            hidden = 0.5 * hidden * (1 + erf(hidden * np.float32(np.sqrt(0.5))))
        return hidden @ t["weight_2"].T


def most_sensitive_pixels(ratio: np.ndarray, labels: np.ndarray, name: str, fraction: float = 0.05) -> np.ndarray:
    """Pixels that an abundance changes most, judged by the flux ratios themselves and by no network.

    ln(ratio) of each pixel is fitted by a linear function of the five abundances over the stars; the pixels whose
    coefficient of `name` is largest are returned.

    Args:
        ratio: True flux ratios, shape (n_stars, n_pixels).
        labels: Shape (n_stars, 8), in the order of `LABEL_NAMES`.
        name: An abundance, e.g. `mg_fe`.
        fraction: Of all pixels.

    Returns:
        Pixel numbers.
    """
    slopes = np.linalg.lstsq(labels[:, N_PARAMETERS:], np.log(ratio), rcond=None)[0]
    strength = np.abs(slopes[LABEL_NAMES.index(name) - N_PARAMETERS])
    return np.argsort(strength)[::-1][: round(fraction * ratio.shape[1])]


def ratio_error(predicted: np.ndarray | None, ratio: np.ndarray, labels: np.ndarray, percentile: float = 95.0) -> float:
    """Percentile of |predicted - true flux ratio| on the pixels most sensitive to [Mg/Fe] or to [O/Fe].

    Args:
        predicted: Shape (n_stars, n_pixels); None = 1 everywhere, as without a response network.
        ratio, labels: See `most_sensitive_pixels`.
        percentile: Over stars and pixels; the larger of the two abundances' is returned.
    """
    error = np.abs((1.0 if predicted is None else predicted) - ratio)
    return max(
        float(np.percentile(error[:, most_sensitive_pixels(ratio, labels, name)], percentile))
        for name in ("mg_fe", "o_fe")
    )
