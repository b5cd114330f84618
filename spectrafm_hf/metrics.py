"""How good are predicted labels? RMSE, bias, scatter and coverage, in the label's unit. NumPy only.

Bias and scatter are robust (median, 1.4826 MAD), RMSE is not: a few lost stars show in the one and not in the others.
Coverage asks whether the predicted sigma can be believed: how often the catalogue value falls inside the central
68.27 % and 95 % interval of a Gaussian whose variance is the predicted plus the published one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from .labels import Label, get_label

if TYPE_CHECKING:
    import evaluate

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation -> standard deviation of a Gaussian."""

METAL_POOR_BELOW = -1.0
"""[Fe/H] in dex: a star below it is metal-poor, any other one metal-rich (the paper's border, Fig. 4)."""

NOMINAL_COVERAGE = {"coverage68": 0.6827, "coverage95": 0.95}
"""Central probability each interval should hold. They reach to 1.0000 and 1.9600 sigma."""

BIN_EDGES: dict[str, tuple[float, ...]] = {
    "fe_h": (-5.0, -2.0, -1.5, -1.0, -0.5, 0.0, 1.5),
    "teff": (2500.0, 4000.0, 4500.0, 5000.0, 5500.0, 6000.0, 50_000.0),
    "logg": (-1.0, 1.5, 2.5, 3.5, 4.25, 6.0),
}
"""Edges of the bins for error budgets: fe_h in dex, teff in K, logg in dex. The ends are those of `labels.LABELS`."""

METHOD_NAMES = {
    "spectrafm": "SpectraFM (pre-trained + 100 stars)",
    "spectrafm_zero_shot": "SpectraFM zero-shot",
    "transformer_scratch": "Transformer from scratch",
    "mlp_scratch": "MLP from scratch",
    "cannon": "The Cannon (quadratic)",
    "ridge": "Ridge regression",
    "median": "Median",
}
"""Key in `results.json` -> how figures, tables and cards write it, in the order in which they show it."""

HALF_WIDTHS = {name: NormalDist().inv_cdf(0.5 + probability / 2) for name, probability in NOMINAL_COVERAGE.items()}
"""Of the central intervals, in sigma of a Gaussian."""


def method_name(method: str) -> str:
    """How a method is written: `METHOD_NAMES`, or the key itself for a method of your own."""
    return METHOD_NAMES.get(method, method)


class Figures(TypedDict):
    """What is said about one set of stars; None where there is nothing to say (no star, or no sigma)."""

    n: int
    rmse: float | None
    bias: float | None
    scatter: float | None
    coverage68: float | None
    coverage95: float | None


class BinFigures(Figures):
    """The same for the stars with `low <= label < high` (unit of the label that is binned)."""

    low: float
    high: float


def summarise(
    label: Label,
    predicted: np.ndarray,
    truth: np.ndarray,
    sigma: np.ndarray | None = None,
    truth_err: np.ndarray | None = None,
) -> Figures:
    """Compare predictions of one label with the catalogue.

    Args:
        label: What is compared; its unit is the unit of everything below.
        predicted: Predicted mean, shape (n_stars,).
        truth: Catalogue value, shape (n_stars,); NaN = not measured, the star is left out.
        sigma: Predicted 1-sigma of the model alone, shape (n_stars,); None = the method gives none.
        truth_err: Published 1-sigma error, shape (n_stars,); None, NaN or 0 = not published, which counts as
            `label.default_error` and never as certainty.

    Returns:
        `n`; `rmse`, `bias` = median(predicted - truth) and `scatter` = 1.4826 MAD about the bias, in the label's unit;
        `coverage68` and `coverage95` = fraction of stars with |predicted - truth| <= z sqrt(sigma^2 + truth_err^2),
        where z = 1.0000 and 1.9600 hold 68.27 % and 95 % of a Gaussian. Plain numbers or None, ready for JSON.

    Raises:
        ValueError: Shapes differ, or a star with a catalogue value has a prediction or sigma that is not finite, or a
            negative sigma.
    """
    shape = np.shape(truth)
    for name, values in {"predicted": predicted, "sigma": sigma, "truth_err": truth_err}.items():
        if values is not None and np.shape(values) != shape:
            raise ValueError(f"{label.name}: {name} must have one value per star {shape}, got {np.shape(values)}.")
    measured = np.isfinite(truth)
    residual = _finite(label, "predicted", predicted, measured) - np.asarray(truth, dtype=np.float64)[measured]
    if residual.size == 0:
        return Figures(n=0, rmse=None, bias=None, scatter=None, coverage68=None, coverage95=None)

    coverage: dict[str, float | None] = dict.fromkeys(HALF_WIDTHS)
    if sigma is not None:
        total = np.hypot(_finite(label, "sigma", sigma, measured), known_errors(label, truth_err, measured))
        coverage = {name: float(np.mean(np.abs(residual) <= z * total)) for name, z in HALF_WIDTHS.items()}
    bias = float(np.median(residual))
    return Figures(
        n=residual.size,
        rmse=float(np.sqrt(np.mean(residual**2))),
        bias=bias,
        scatter=float(MAD_TO_SIGMA * np.median(np.abs(residual - bias))),
        coverage68=coverage["coverage68"],
        coverage95=coverage["coverage95"],
    )


def _finite(label: Label, name: str, values: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Values of the measured stars, float64; refuses what would turn every figure into NaN."""
    chosen = np.asarray(values, dtype=np.float64)[measured]
    wrong = ~np.isfinite(chosen) | ((chosen < 0) if name == "sigma" else False)
    if wrong.any():
        need = "finite and >= 0" if name == "sigma" else "finite"
        raise ValueError(
            f"{label.name}: {name} must be {need} in {label.unit} for every star with a catalogue value, but is not "
            f"for {int(wrong.sum())} of {chosen.size} stars; find out why, or set their truth to NaN to leave them out."
        )
    return chosen


def known_errors(label: Label, truth_err: np.ndarray | None, measured: np.ndarray) -> np.ndarray:
    """Published errors of the measured stars, the label's default where there is none."""
    if truth_err is None:
        return np.full(int(measured.sum()), label.default_error)
    errors = np.asarray(truth_err, dtype=np.float64)[measured]
    return np.where(np.isfinite(errors) & (errors > 0), errors, label.default_error)


def summarise_subsets(
    label: Label,
    predicted: np.ndarray,
    truth: np.ndarray,
    fe_h: np.ndarray,
    sigma: np.ndarray | None = None,
    truth_err: np.ndarray | None = None,
) -> dict[str, Figures]:
    """`summarise` for all stars, for the metal-poor ([Fe/H] < -1) and for the metal-rich ([Fe/H] >= -1).

    Args:
        label: What is compared.
        predicted: As in `summarise`, shape (n_stars,), like all that follow.
        truth: As in `summarise`.
        fe_h: Catalogue [Fe/H], dex; a star without it (NaN) counts in `all` only.
        sigma: As in `summarise`.
        truth_err: As in `summarise`.

    Returns:
        The figures under `all`, `metal_poor` and `metal_rich`.

    Raises:
        ValueError: As in `summarise`.
    """
    chosen = {
        "all": np.ones(np.shape(truth), dtype=bool),
        "metal_poor": np.asarray(fe_h) < METAL_POOR_BELOW,
        "metal_rich": np.asarray(fe_h) >= METAL_POOR_BELOW,
    }
    return {name: _summarise_chosen(label, stars, predicted, truth, sigma, truth_err) for name, stars in chosen.items()}


def summarise_bins(
    label: Label,
    predicted: np.ndarray,
    truth: np.ndarray,
    parameters: Mapping[str, np.ndarray],
    sigma: np.ndarray | None = None,
    truth_err: np.ndarray | None = None,
) -> dict[str, list[BinFigures]]:
    """`summarise` in bins of catalogue [Fe/H], Teff and log g (`BIN_EDGES`).

    Args:
        label: What is compared.
        predicted: As in `summarise`, shape (n_stars,), like all that follow.
        truth: As in `summarise`.
        parameters: Name of a binned label (any of `BIN_EDGES`) -> its catalogue values; NaN falls in no bin.
        sigma: As in `summarise`.
        truth_err: As in `summarise`.

    Returns:
        Name -> one record per bin, from low to high; the last bin holds its upper edge too.

    Raises:
        ValueError: A name has no edges in `BIN_EDGES`, or as in `summarise`.
    """
    bins: dict[str, list[BinFigures]] = {}
    for name, values in parameters.items():
        if name not in BIN_EDGES:
            raise ValueError(f"no bins for {name!r}; metrics.BIN_EDGES has {', '.join(BIN_EDGES)}.")
        edges = BIN_EDGES[name]
        bins[name] = []
        for low, high in pairwise(edges):
            chosen = (values >= low) & ((values <= high) if high == edges[-1] else (values < high))
            figures = _summarise_chosen(label, chosen, predicted, truth, sigma, truth_err)
            bins[name].append(BinFigures(low=low, high=high, **figures))
    return bins


def summarise_labels(
    names: Sequence[str],
    predicted: np.ndarray,
    truth: np.ndarray,
    sigma: np.ndarray,
    truth_err: np.ndarray | None = None,
) -> dict[str, Any]:
    """`summarise` and `summarise_bins` of every label, in bins of those labels that have any.

    Args:
        names: Columns of what follows.
        predicted, truth, sigma, truth_err: As in `summarise`, each of shape (n_stars, n_labels).

    Returns:
        `{"labels": {name: figures}, "bins": {name: {binned by: [figures]}}}`.
    """
    in_bins = {name: truth[:, i] for i, name in enumerate(names) if name in BIN_EDGES}
    columns = [(name, get_label(name), i) for i, name in enumerate(names)]
    errors = [None if truth_err is None else truth_err[:, i] for i in range(len(names))]
    return {
        "labels": {
            name: summarise(label, predicted[:, i], truth[:, i], sigma[:, i], errors[i]) for name, label, i in columns
        },
        "bins": {
            name: summarise_bins(label, predicted[:, i], truth[:, i], in_bins, sigma[:, i], errors[i])
            for name, label, i in columns
        },
    }


def _summarise_chosen(
    label: Label,
    chosen: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray,
    sigma: np.ndarray | None,
    truth_err: np.ndarray | None,
) -> Figures:
    """`summarise` with every other star's truth hidden, so that shapes are still checked against each other."""
    return summarise(label, predicted, np.where(chosen, truth, np.nan), sigma, truth_err)


def bootstrap_rmse(
    predicted: np.ndarray, truth: np.ndarray, seed: int, probability: float = 0.6827, n_draws: int = 2000
) -> tuple[float, float]:
    """Central interval of the RMSE if the test stars had been drawn anew (percentile bootstrap over stars).

    Args:
        predicted: Shape (n_stars,), any unit.
        truth: Shape (n_stars,), same unit; NaN is left out.
        seed: Of the resampling.
        probability: What the interval holds.
        n_draws: Resamplings; 2,000 fix the ends to about 2 % of the interval.

    Returns:
        Lower and upper end, in the unit of the label.

    Raises:
        ValueError: No star has a catalogue value.
    """
    squared = ((predicted - truth)[np.isfinite(truth)]) ** 2
    if squared.size == 0:
        raise ValueError("bootstrap_rmse needs at least one star with a finite truth, got none; choose another subset.")
    draws = np.random.default_rng(seed).integers(squared.size, size=(n_draws, squared.size))
    rmse = np.sqrt(squared[draws].mean(axis=1))
    low, high = np.quantile(rmse, [0.5 - probability / 2, 0.5 + probability / 2])
    return float(low), float(high)


def stellar_label_metric(label_name: str = "fe_h") -> evaluate.Metric:
    """The same figures with the face of the `evaluate` library, for those whose pipelines speak it.

    `evaluate` is imported here and not before: nothing else of ours needs it.

    Args:
        label_name: One of `labels.LABELS`.

    Returns:
        A metric; `.compute(predictions=..., references=...)`, optionally with `sigma=` and `references_err=`, gives
        what `summarise` gives.

    Raises:
        ValueError: The label is not in the table.
    """
    import datasets
    import evaluate

    label = get_label(label_name)

    class StellarLabelMetric(evaluate.Metric):
        """RMSE, bias, scatter and coverage of one stellar label."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=f"RMSE, bias, scatter and coverage of {label.symbol}, in {label.unit}.",
                citation="",
                inputs_description="predictions, references: one number per star; a reference of NaN is left out.",
                # float64, or the figures would differ in the eighth digit from those of `summarise`.
                features=datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")}),
            )

        def _compute(
            self,
            predictions: Any,
            references: Any,
            sigma: np.ndarray | None = None,
            references_err: np.ndarray | None = None,
        ) -> Figures:
            return summarise(label, np.asarray(predictions), np.asarray(references), sigma, references_err)

    return StellarLabelMetric(keep_in_memory=True)
