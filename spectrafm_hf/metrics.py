"""How good are predicted labels? RMSE, bias, scatter and coverage, in the label's unit. NumPy only.

Bias and scatter are robust (median, 1.4826 MAD), RMSE is not: a few lost stars show in the one and not in the others.
Coverage asks whether the predicted sigma can be believed: how often the catalogue value falls inside the central
68.27 % and 95 % interval of a Gaussian whose variance is the predicted plus the published one.
"""

from __future__ import annotations

import math
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

TRUE_LABEL_ERROR = 1e-9
"""Of a synthetic label, K and dex: as good as none; 0 would mean that nobody has told it."""

NOMINAL_COVERAGE = {"coverage68": 0.6827, "coverage95": 0.95}
"""Central probability each interval should hold. They reach to 1.0000 and 1.9600 sigma."""

BIN_EDGES: dict[str, tuple[float, ...]] = {
    "fe_h": (-5.0, -2.0, -1.5, -1.0, -0.5, 0.0, 1.5),
    "teff": (2500.0, 4000.0, 4500.0, 5000.0, 5500.0, 6000.0, 50_000.0),
    "logg": (-1.0, 1.5, 2.5, 3.5, 4.25, 6.0),
}
"""Edges of the bins for error budgets: fe_h in dex, teff in K, logg in dex. The ends are those of `labels.LABELS`."""

SNR_EDGES = (20.0, 40.0, 80.0, 150.0, 300.0)
"""Edges of the bins of signal-to-noise ratio per pixel; the ends are those of `synthesis.surveys.SurveyConditions`."""

FEWEST_IN_BIN = 300
"""Stars of a bin whose coverage is worth a word: their share of 68 % has a binomial error of 2.7 percentage points."""

METHOD_NAMES = {
    "spectrafm": "SpectraFM (pre-trained + 100 stars)",
    "spectrafm_combined": "SpectraFM and ridge, combined",
    "spectrafm_zero_shot": "SpectraFM zero-shot",
    "transformer_scratch": "Transformer from scratch",
    "mlp_pretrained": "MLP, pre-trained",
    "mlp_scratch": "MLP from scratch",
    "cannon": "The Cannon (quadratic)",
    "boosted_trees": "Boosted trees",
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


class IntervalFigures(TypedDict):
    """How good intervals are: right as often as they say, and narrow. None where there is no star."""

    n: int
    crps: float | None
    width68: float | None
    width95: float | None
    coverage68: float | None
    coverage68_interval: list[float] | None
    coverage95: float | None
    coverage95_interval: list[float] | None


def summarise_intervals(
    label: Label,
    predicted: np.ndarray,
    truth: np.ndarray,
    sigma: np.ndarray,
    sigma95: np.ndarray,
    truth_err: np.ndarray | None = None,
) -> IntervalFigures:
    """Coverage with its binomial uncertainty, and what it is bought with: CRPS and width.

    Args:
        label, predicted, truth, truth_err: As in `summarise`. Labels that are true by construction have errors of 1e-9.
        sigma, sigma95: Of the 68.27 % and of the 95 % interval, as `decode_labels` of the extractor gives them.

    Returns:
        `crps`: mean continuous ranked probability score of the published value, of sigma and its own error, in the unit
        of the label, smaller = better. `width68`, `width95`: mean full width of the predicted intervals, without
        published errors. `coverage68`, `coverage95` as in `summarise`, but each by the sigma of its own interval;
        `*_interval`: where 68.27 % of such counts would put the share (`binomial_interval`).

    Raises:
        ValueError: As in `summarise`.
    """
    measured = np.isfinite(truth)
    n = int(measured.sum())
    if n == 0:
        return IntervalFigures(
            n=0, crps=None, width68=None, width95=None, coverage68=None, coverage68_interval=None, coverage95=None,
            coverage95_interval=None,
        )  # fmt: skip
    residual = _finite(label, "predicted", predicted, measured) - np.asarray(truth, dtype=np.float64)[measured]
    error = known_errors(label, truth_err, measured)
    own = [_finite(label, "sigma", values, measured) for values in (sigma, sigma95)]
    inside = [
        int((np.abs(residual) <= z * np.hypot(values, error)).sum())
        for values, z in zip(own, HALF_WIDTHS.values(), strict=True)
    ]
    widths = [2 * z * float(values.mean()) for values, z in zip(own, HALF_WIDTHS.values(), strict=True)]
    return IntervalFigures(
        n=n,
        crps=float(gaussian_crps(residual, np.hypot(own[0], error)).mean()),
        width68=widths[0],
        width95=widths[1],
        coverage68=inside[0] / n,
        coverage68_interval=list(binomial_interval(inside[0], n)),
        coverage95=inside[1] / n,
        coverage95_interval=list(binomial_interval(inside[1], n)),
    )


def gaussian_crps(residual: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    r"""Continuous ranked probability score of a Gaussian prediction, in the unit of the residual; smaller = better.

    :math:`\sigma \,[z (2 \Phi(z) - 1) + 2 \varphi(z) - 1/\sqrt\pi]` with z = residual / sigma (Gneiting & Raftery 2007,
    JASA 102, 359, eq. 21): the mean absolute error of a sample of the prediction, less half of its mean spread.

    Args:
        residual, sigma: Any shape; sigma positive.
    """
    z = np.asarray(residual, dtype=np.float64) / sigma
    central = np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2))  # 2 Phi(z) - 1
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return np.asarray(sigma * (z * central + 2 * density - 1 / math.sqrt(math.pi)))


def binomial_interval(inside: int, n: int, probability: float = 0.6827) -> tuple[float, float]:
    """Where the true share lies if `inside` of n stars were counted (Wilson 1927, JASA 22, 209)."""
    z2 = NormalDist().inv_cdf(0.5 + probability / 2) ** 2
    share = inside / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def reliability(
    residual: np.ndarray,
    sigma: np.ndarray,
    sigma95: np.ndarray,
    probability: np.ndarray,
    error: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Share of the stars inside the central interval of each nominal probability.

    Of a Gaussian of width `sigma` up to 68.27 %, of one of width `sigma95` from 95 % on; between the two, the width is
    interpolated in the number of sigmas.

    Args:
        residual, sigma, sigma95, error: Shape (n_stars,), unit of the label; `error` is the published one.
        probability: Shape (n_probabilities,), in (0, 1).

    Returns:
        Shape (n_probabilities,).
    """
    z = np.array([NormalDist().inv_cdf(0.5 + one / 2) for one in probability])
    share = np.interp(z, list(HALF_WIDTHS.values()), [0.0, 1.0])
    width = sigma + share[:, None] * (sigma95 - sigma)
    return np.asarray((np.abs(residual) <= z[:, None] * np.hypot(width, error)).mean(axis=1))


def summarise_calibration(
    names: Sequence[str],
    predicted: np.ndarray,
    truth: np.ndarray,
    sigma: np.ndarray,
    sigma95: np.ndarray,
    truth_err: np.ndarray | None = None,
    snr: np.ndarray | None = None,
) -> dict[str, Any]:
    """Can the intervals of all labels be believed, for all stars and in every bin of them?

    Args:
        names: Columns of what follows.
        predicted, truth, sigma, sigma95, truth_err: As in `summarise_intervals`, each of shape (n_stars, n_labels).
        snr: Signal-to-noise ratio per pixel, shape (n_stars,), for bins of it (`SNR_EDGES`).

    Returns:
        `coverage68`, `coverage95`: shares of all labels of all stars. `worst_bin68`: that of the bin of at least
        `FEWEST_IN_BIN` stars which is farthest from 68.27 %, None if there is no such bin, and `worst_bin`: which one
        it is. `labels`: name -> `summarise_intervals`.
    """
    edges = {name: np.array(BIN_EDGES[name]) for name in names if name in BIN_EDGES}
    binned = {name: truth[:, names.index(name)] for name in edges}
    if snr is not None:
        edges["snr"], binned["snr"] = np.array(SNR_EDGES), snr
    labels, bins = {}, []
    for column, name in enumerate(names):
        told = [part[:, column] for part in (predicted, sigma, sigma95)]
        error = None if truth_err is None else truth_err[:, column]

        def judged(
            chosen: np.ndarray, name: str = name, column: int = column, told: Any = told, error: Any = error
        ) -> Any:
            only = np.where(chosen, truth[:, column], np.nan)
            return summarise_intervals(get_label(name), told[0], only, told[1], told[2], error)

        labels[name] = judged(np.ones(len(truth), dtype=bool))
        for by, values in binned.items():
            for low, high in pairwise(edges[by]):
                figures = judged((values >= low) & (values < high))
                if figures["n"] >= FEWEST_IN_BIN:
                    bins.append({"label": name, "by": by, "low": float(low), "high": float(high), **figures})
    n_all = sum(figures["n"] for figures in labels.values())
    overall = {
        key: sum(figures["n"] * (figures[key] or 0.0) for figures in labels.values()) / n_all if n_all else None
        for key in NOMINAL_COVERAGE
    }
    worst = max(bins, key=lambda one: abs(one["coverage68"] - NOMINAL_COVERAGE["coverage68"]), default=None)
    return {
        **overall,
        "worst_bin68": None if worst is None else worst["coverage68"],
        "worst_bin": worst,
        "labels": labels,
    }


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Area under the receiver operating characteristic: how often a score of the second kind is the larger one.

    1 = always, 0.5 = as good as chance; ties count half (Mann & Whitney 1947).

    Args:
        inside, outside: Scores of either kind, shapes (n,), (m,); infinite ones are allowed.

    Raises:
        ValueError: No score of one kind, or one is NaN.
    """
    inside, outside = np.sort(np.asarray(inside, dtype=float)), np.asarray(outside, dtype=float)
    if not inside.size or not outside.size or np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError(
            f"auroc needs scores of both kinds, none of them NaN; got {inside.size} and {outside.size}, "
            f"{int(np.isnan(inside).sum() + np.isnan(outside).sum())} of them NaN."
        )
    below, not_above = (np.searchsorted(inside, outside, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / inside.size)


def risk_coverage(residual: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """How large is the error that remains, if the strangest spectra are left unanswered?

    Args:
        residual: Predicted minus true, shape (n_stars,), any unit; NaN is left out.
        score: Larger = less to be trusted, same shape.

    Returns:
        Share of the stars that are answered, 1/n to 1, and the RMSE of those, in the unit of the residual, each (n,);
        and the area under the curve, the mean of that RMSE over all shares (El-Yaniv & Wiener 2010, JMLR 11, 1605).

    Raises:
        ValueError: No finite residual.
    """
    known = np.isfinite(residual)
    if not known.any():
        raise ValueError("risk_coverage needs at least one star with a finite residual, got none.")
    squared = residual[known][np.argsort(score[known], kind="stable")] ** 2
    answered = np.arange(1, squared.size + 1)
    risk = np.sqrt(np.cumsum(squared) / answered)
    return answered / squared.size, risk, float(risk.mean())


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
    return {
        name: _summarise_chosen(label, stars, predicted, truth, sigma, truth_err)
        for name, stars in subsets(np.asarray(fe_h)).items()
    }


def subsets(fe_h: np.ndarray) -> dict[str, np.ndarray]:
    """`all`, `metal_poor`, `metal_rich` -> which stars, (n_stars,).

    Args:
        fe_h: Their [Fe/H], dex, shape (n_stars,); one without it (NaN) is in `all` only.
    """
    everyone = np.ones(fe_h.shape, dtype=bool)
    return {"all": everyone, "metal_poor": fe_h < METAL_POOR_BELOW, "metal_rich": fe_h >= METAL_POOR_BELOW}


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
