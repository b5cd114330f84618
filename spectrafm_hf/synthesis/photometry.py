r"""Colours of synthetic stars: what a photometric survey would have measured of them.

Mucciarelli, Bellazzini & Massari (2021, A&A 653, A90, Table 1) give the effective temperature for Gaia EDR3 colours,

.. math:: 5040\,\mathrm{K} / T_\mathrm{eff} = b_0 + b_1 C + b_2 C^2 + b_3 F + b_4 F^2 + b_5 F C

with :math:`C = (G_\mathrm{BP} - G_\mathrm{RP})_0` and :math:`F` = [Fe/H], for dwarfs and giants apart. It is solved for
the colour here.
"""

from __future__ import annotations

import numpy as np

DWARFS = (0.4929, 0.5092, -0.0353, 0.0192, -0.0020, -0.0395)
GIANTS = (0.5323, 0.4775, -0.0344, -0.0110, -0.0020, -0.0009)
"""b0 to b5; calibrated for colours of 0.39 to 1.50 and 0.33 to 1.81 mag, with a scatter of 61 and 83 K."""

GIANTS_BELOW, DWARFS_ABOVE = 3.0, 4.0
"""log g, dex: between, the two relations are mixed linearly."""


def bp_rp(labels: np.ndarray) -> np.ndarray:
    """Dereddened Gaia EDR3 colour, mag, shape (n_stars,), of stars (n_stars, 3): teff in K, logg and fe_h in dex.

    Beyond the calibrated colours the polynomial is followed as far as it has a solution, and its last one after that.
    """
    teff, logg, fe_h = np.asarray(labels, dtype=np.float64)[:, :3].T
    theta = 5040.0 / teff

    def colour(b: tuple[float, ...]) -> np.ndarray:
        linear = b[1] + b[5] * fe_h
        constant = b[0] + b[3] * fe_h + b[4] * fe_h**2 - theta
        root = np.sqrt(np.maximum(linear**2 - 4 * b[2] * constant, 0.0))
        return -2 * constant / (linear + root)  # the root that goes on to be right where b2 vanishes

    dwarf = np.clip((logg - GIANTS_BELOW) / (DWARFS_ABOVE - GIANTS_BELOW), 0.0, 1.0)
    return dwarf * colour(DWARFS) + (1 - dwarf) * colour(GIANTS)
