r"""Colours and absolute magnitudes of synthetic stars: what photometry and a parallax would have said of them.

Mucciarelli, Bellazzini & Massari (2021, A&A 653, A90, Table 1) give the effective temperature for Gaia EDR3 colours,

.. math:: 5040\,\mathrm{K} / T_\mathrm{eff} = b_0 + b_1 C + b_2 C^2 + b_3 F + b_4 F^2 + b_5 F C

with :math:`C = (G_\mathrm{BP} - G_\mathrm{RP})_0` and :math:`F` = [Fe/H], for dwarfs and giants apart. It is solved for
the colour here. The absolute magnitude follows from the surface gravity and a mass,

.. math:: M_G = 4.74 - 2.5 \log_{10} \frac{L}{L_\odot} - BC_G(T_\mathrm{eff}), \qquad
          \frac{L}{L_\odot} = \frac{M}{M_\odot} \frac{g_\odot}{g}
          \Big(\frac{T_\mathrm{eff}}{5772\,\mathrm{K}}\Big)^4,

with the bolometric correction of Andrae et al. (2018, A&A 616, A8, Table 4).
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


SUN_TEFF, SUN_LOGG, SUN_BOLOMETRIC = 5772.0, 4.438, 4.74
"""K, dex, mag (IAU 2015 resolutions B2 and B3)."""

CORRECTION_HOT = (6.000e-2, 6.731e-5, -6.647e-8, 2.859e-11, -7.197e-15)
CORRECTION_COOL = (1.749, 1.977e-3, 3.737e-7, -8.966e-11, -4.183e-14)
"""Of powers of Teff - 5772 K; from 4,000 K on and below."""


def absolute_g(labels: np.ndarray, mass: np.ndarray | float = 1.0) -> np.ndarray:
    """Absolute magnitude in Gaia's G, mag, shape (n_stars,), of stars (n_stars, 2 or more): teff in K, logg in dex.

    Args:
        mass: Solar masses, one for all or one per star.
    """
    teff, logg = np.asarray(labels, dtype=np.float64)[:, :2].T
    log_luminosity = np.log10(mass) + SUN_LOGG - logg + 4 * np.log10(teff / SUN_TEFF)
    hotter = teff - SUN_TEFF
    hot, cool = (np.polynomial.polynomial.polyval(hotter, c) for c in (CORRECTION_HOT, CORRECTION_COOL))
    return SUN_BOLOMETRIC - 2.5 * log_luminosity - np.where(teff >= 4000, hot, cool)
