"""The table of stellar labels: name, unit, survey column, valid range, what an unpublished error means.

And the table of other things that may be known of a star beside its spectrum.

Config, columns, plots and cards read names, units and order from here, so they can never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

MISSING_LABEL = -100.0
"""What a missing label becomes in a batch: a stock `Trainer` counts `labels != -100`. On disk it is NaN."""


@dataclass(frozen=True)
class Label:
    """One stellar parameter or abundance.

    Attributes:
        name: The word used everywhere: columns, tensors, plots, cards.
        unit: Unit of the value and of its error.
        apogee_column: Column of the APOGEE allStar catalogue (SDSS DR17 data model).
        valid: Lowest and highest value a published label may have, in `unit`; outside it is missing.
        default_error: 1-sigma error in `unit` for a label published without one. About the scatter between
            literature compilations (Cenarro et al. 2007 for MILES); never 0, which would mean certainty.
        symbol: How plots write it.
    """

    name: str
    unit: str
    apogee_column: str
    valid: tuple[float, float]
    default_error: float
    symbol: str

    @property
    def axis(self) -> str:
        """Axis title with its unit, e.g. `[Fe/H] [dex]`."""
        return f"{self.symbol} [{self.unit}]"


LABELS: tuple[Label, ...] = (
    Label("teff", "K", "TEFF", (2500.0, 50_000.0), 100.0, "Teff"),
    Label("logg", "dex", "LOGG", (-1.0, 6.0), 0.2, "log g"),
    Label("fe_h", "dex", "FE_H", (-5.0, 1.5), 0.1, "[Fe/H]"),
    Label("mg_fe", "dex", "MG_FE", (-2.0, 2.0), 0.1, "[Mg/Fe]"),
    Label("o_fe", "dex", "O_FE", (-2.0, 2.0), 0.1, "[O/Fe]"),
)

_BY_NAME = {label.name: label for label in LABELS}


def get_label(name: str) -> Label:
    """Look a label up by name.

    Raises:
        ValueError: The name is not in the table; the message lists those that are.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown label {name!r}; the table in spectrafm_hf/labels.py has {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]


@dataclass(frozen=True)
class Scalar:
    """A number known of a star beside its spectrum and its labels: an input of the model, never an answer.

    Attributes:
        name: The word used everywhere.
        unit: Unit of the value and of its error.
        meaning: What it is, and what must have been done to it.
        valid: Lowest and highest value of any star, in `unit`; outside, beyond its noise, it is a mistake.
        center, scale: What the model sees is (value - center) / scale; about the mean and spread of FGK stars.
        default_error: 1-sigma error in `unit` of a value that came without one; never 0, which would mean certainty.
    """

    name: str
    unit: str
    meaning: str
    valid: tuple[float, float]
    center: float
    scale: float
    default_error: float


SCALARS: tuple[Scalar, ...] = (
    Scalar("bp_rp", "mag", "Gaia EDR3 colour G_BP - G_RP, dereddened", (-1.0, 6.0), 1.0, 0.4, 0.05),
    Scalar("j_ks", "mag", "2MASS colour J - K_s, dereddened", (-1.0, 3.0), 0.6, 0.25, 0.05),
    Scalar("m_g", "mag", "absolute magnitude in Gaia's G, extinction removed", (-10.0, 20.0), 2.0, 3.0, 0.3),
    # Linear in the parallax, so that its error stays Gaussian and a negative parallax stays a number.
    Scalar(
        "abl_g",
        "",
        "parallax [mas] * 10^(0.2 G_0 - 2) = 10^(0.2 M_G) (Arenou & Luri 1999)",
        (-50.0, 5000.0),
        5.0,
        8.0,
        1.0,
    ),
)

_SCALAR_BY_NAME = {scalar.name: scalar for scalar in SCALARS}


def get_scalar(name: str) -> Scalar:
    """Look a non-spectral input up by name.

    Raises:
        ValueError: The name is not in the table; the message lists those that are.
    """
    if name not in _SCALAR_BY_NAME:
        raise ValueError(
            f"unknown non-spectral input {name!r}; beside labels, the table in spectrafm_hf/labels.py has "
            f"{', '.join(_SCALAR_BY_NAME)}."
        )
    return _SCALAR_BY_NAME[name]
