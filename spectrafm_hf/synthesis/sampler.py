"""Which stars to synthesize: a physically sensible (teff, logg, fe_h) distribution.

Stars lie on three sequences of the Kiel diagram - main sequence, turn-off and subgiants, red giant branch - whose place
shifts with metallicity, with a broad scatter; a share of draws fills the whole box, so that the network has seen what
is rare. [Fe/H] is drawn evenly, not as the Galaxy has it: the few-shot stage needs metal-poor stars to be familiar.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .cannon import BOUNDS


@dataclass(frozen=True)
class LabelSampler:
    """Draws labels inside the `cool` Cannon model, each star from its own random generator.

    The sequences are straight lines through PARSEC isochrones (Bressan et al. 2012, MNRAS 427, 127) of 2-12 Gyr,
    good to about 150 K and 0.3 dex, which is less than their scatter here.

    Args:
        teff: Range, K.
        fe_h: Range, dex.
        shares: Fractions of main-sequence, turn-off/subgiant, giant-branch and anywhere-in-the-box stars; sum 1.
    """

    teff: tuple[float, float] = (3600.0, 7200.0)
    fe_h: tuple[float, float] = (-2.5, 0.5)
    shares: tuple[float, float, float, float] = (0.25, 0.2, 0.35, 0.2)

    def __post_init__(self) -> None:
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0:
            raise ValueError(f"shares must be non-negative and sum to 1, got {self.shares}.")
        for name, (low, high) in (("teff", self.teff), ("fe_h", self.fe_h)):
            bottom, top = BOUNDS["cool"][name]
            if not bottom <= low < high <= top:
                raise ValueError(f"{name} must be a range within [{bottom:g}, {top:g}], got [{low:g}, {high:g}].")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One star: (teff, logg, fe_h) in K, dex, dex; shape (3,)."""
        fe_h = rng.uniform(*self.fe_h)
        while True:
            kind = rng.choice(4, p=self.shares)
            if kind == 0:
                teff = rng.uniform(*self.teff)
                sequence = float(np.interp(teff, [3500, 4500, 5500, 6500, 7500], [4.8, 4.65, 4.5, 4.25, 4.1]))
                logg = sequence + 0.12 * rng.standard_normal()
            elif kind == 1:
                logg = rng.uniform(3.3, 4.4)
                # The turn-off is hotter for metal-poor stars; subgiants cool towards the base of the giant branch.
                sequence = float(np.interp(logg, [3.3, 3.7, 4.0, 4.4], [5100, 5500, 6000, 6200]))
                teff = sequence - 250 * (fe_h + 0.3) + 350 * rng.standard_normal()
            elif kind == 2:
                logg = rng.uniform(0.0, 3.5)
                sequence = float(np.interp(logg, [0.0, 1.0, 2.0, 3.0, 3.5], [3650, 4050, 4500, 4850, 5000]))
                teff = sequence - 160 * fe_h + 180 * rng.standard_normal()
            else:
                teff, logg = rng.uniform(*self.teff), rng.uniform(0.0, 5.0)
            # Above 5,500 K the Cannon model was trained on logg >= 3.5 only; a little beyond is safe, farther is not.
            lowest = np.interp(teff, [5500, 6000], [0.0, 3.2])
            if self.teff[0] <= teff <= self.teff[1] and lowest <= logg <= 5.0:
                return np.array([teff, logg, fe_h])
