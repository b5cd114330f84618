"""Which stars to synthesize for APOGEE: the label distribution of Data Release 17, and what no catalogue lists.

Teff, log g, [Fe/H], [Mg/Fe] and [O/Fe] are drawn from a Gaussian mixture of 32 components, fitted to the labels of
12,000 DR17 stars that pass the cuts of Koblischke & Bovy 2024 (arXiv 2411.04750); only its 672 parameters are shipped.
[C/Fe], [N/Fe] and the other alpha elements are nuisances: they change the lines and are no labels of ours.

* Carbon and nitrogen: solar in dwarfs; after the first dredge-up (log g < 3.5) [C/Fe] -0.05 and [N/Fe] +0.2, with a
  scatter of 0.12 dex; in metal-poor giants above the luminosity bump (log g < 2, [Fe/H] < -1) extra mixing brings
  -0.4 and +0.4 (Gratton et al. 2000, A&A 354, 169).
* Si, S, Ca and Ti rise with magnesium, by three quarters as much, with a scatter of 0.05 dex.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import load_file

from .cannon import BOUNDS
from .sampler import LabelSampler

LABEL_NAMES = ("teff", "logg", "fe_h", "mg_fe", "o_fe", "c_fe", "n_fe", "alpha_fe")
"""Order of the columns drawn; `alpha_fe` stands for Si, S, Ca and Ti."""

MIXTURE_FILE = Path(__file__).with_name("dr17_labels.safetensors")
DR17_BELOW_3500_K = 0.022
"""Fraction of DR17 stars too cool for the Cannon grid: they are left out, which a card should say."""

DWARFS_FROM = 3.5
"""log g, dex, that parts dwarfs and subgiants from giants."""


@dataclass(frozen=True)
class Dr17LabelSampler:
    """Draws labels as DR17 has them, inside the `cool` Cannon model; can be widened or restricted.

    Args:
        teff, logg, fe_h: Ranges kept, K and dex.
        stars: `all`, `dwarfs` (log g >= 3.5) or `giants`.
        metal_poor_share: Fraction of stars replaced by ones with [Fe/H] drawn evenly in [-2.5, -1]: DR17 has 2.5 %.
        extra_scatter: 1-sigma added to [Mg/Fe] and [O/Fe], dex, so that they do not only follow [Fe/H].

    Raises:
        ValueError: A range reaches outside the Cannon model, or a share or scatter is out of its range.
    """

    teff: tuple[float, float] = (3500.0, 8000.0)
    logg: tuple[float, float] = (0.0, 5.0)
    fe_h: tuple[float, float] = (-2.5, 0.5)
    stars: Literal["all", "dwarfs", "giants"] = "all"
    metal_poor_share: float = 0.0
    extra_scatter: float = 0.0

    label_names = LABEL_NAMES

    def __post_init__(self) -> None:
        for name, (bottom, top) in BOUNDS["cool"].items():
            low, high = getattr(self, name)
            if not bottom <= low < high <= top:
                unit = "K" if name == "teff" else "dex"
                raise ValueError(
                    f"{name} must be a range within [{bottom:g}, {top:g}] {unit}, got [{low:g}, {high:g}]."
                )
        if self.stars not in ("all", "dwarfs", "giants"):
            raise ValueError(f"stars must be all, dwarfs or giants, got {self.stars!r}.")
        if not 0 <= self.metal_poor_share <= 1 or not 0 <= self.extra_scatter <= 0.5:
            raise ValueError(
                "metal_poor_share must lie in [0, 1] and extra_scatter in [0, 0.5] dex, got "
                f"{self.metal_poor_share:g} and {self.extra_scatter:g}."
            )
        object.__setattr__(self, "_mixture", load_file(MIXTURE_FILE))

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Labels of n stars, shape (n, 8), K and dex, in the order of `LABEL_NAMES`.

        Raises:
            ValueError: Next to no DR17 star lies in the ranges asked for.
        """
        kept: list[np.ndarray] = []
        for _ in range(200):
            candidates = self._draw_mixture(rng, 2 * n)
            kept.append(candidates[self._wanted(candidates)])
            if sum(map(len, kept)) >= n:
                break
        else:
            raise ValueError(f"fewer than 1 in 400 DR17 stars lie in the ranges asked for: {self}. Widen them.")
        five = np.concatenate(kept)[:n]
        poor = np.flatnonzero(rng.random(n) < self.metal_poor_share)
        if poor.size:
            five[poor] = self._draw_metal_poor(rng, poor.size)
        five[:, 3:] += self.extra_scatter * rng.standard_normal((n, 2))
        five[:, 3:] = np.clip(five[:, 3:], -0.4, 0.8)
        return np.column_stack([five, self._nuisances(rng, five)])

    def _draw_mixture(self, rng: np.random.Generator, n: int) -> np.ndarray:
        mixture = self.__dict__["_mixture"]
        component = rng.choice(len(mixture["weight"]), size=n, p=mixture["weight"])
        noise = np.einsum("nij,nj->ni", mixture["cholesky"][component], rng.standard_normal((n, 5)))
        return mixture["mean"][component] + noise

    def _wanted(self, labels: np.ndarray) -> np.ndarray:
        teff, logg, fe_h = labels[:, :3].T
        keep = np.ones(len(labels), dtype=bool)
        for values, (low, high) in ((teff, self.teff), (logg, self.logg), (fe_h, self.fe_h)):
            keep &= (low <= values) & (values <= high)
        if self.stars != "all":
            keep &= (logg >= DWARFS_FROM) == (self.stars == "dwarfs")
        # Above 5,500 K the Cannon model was trained on logg >= 3.5 only; a little beyond is safe, farther is not.
        return keep & (logg >= np.interp(teff, [5500, 6000], [0.0, 3.2]))

    def _draw_metal_poor(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Places on the sequences of the Kiel diagram, alpha enhancement of the halo and thick disc."""
        sequences = LabelSampler(teff=(3600.0, 7200.0), fe_h=(-2.5, -1.0), shares=(0.2, 0.2, 0.6, 0.0))
        rows: list[np.ndarray] = []
        for _ in range(400 * n):
            star = sequences.draw(rng)
            if self._wanted(star[None])[0]:
                rows.append(star)
                if len(rows) == n:
                    break
        else:
            raise ValueError(f"no metal-poor stars lie in the ranges asked for: {self}. Widen them.")
        abundances = np.array([0.25, 0.35]) + np.array([0.1, 0.12]) * rng.standard_normal((n, 2))
        return np.column_stack([np.stack(rows), abundances])

    @staticmethod
    def _nuisances(rng: np.random.Generator, five: np.ndarray) -> np.ndarray:
        _, logg, fe_h, mg_fe, _ = five.T
        dwarf, mixed = logg >= DWARFS_FROM, (logg < 2.0) & (fe_h < -1.0)
        noise = rng.standard_normal((3, len(five)))
        c_fe = np.where(dwarf, 0.0, np.where(mixed, -0.4, -0.05)) + np.where(dwarf, 0.08, 0.12) * noise[0]
        n_fe = np.where(dwarf, 0.0, np.where(mixed, 0.4, 0.2)) + np.where(dwarf, 0.08, 0.12) * noise[1]
        return np.column_stack([c_fe, n_fe, 0.75 * mg_fe + 0.05 * noise[2]])
