"""How good are predicted labels of stars? RMSE, bias, scatter and coverage of each, in its unit.

A metric of the library `evaluate`. It needs NumPy and nothing else of ours: the package `spectrafm_hf` has the same
figures (`spectrafm_hf.metrics.summarise`), and its tests hold both equal.
"""

from statistics import NormalDist

import datasets
import evaluate
import numpy as np

LABELS = {
    "teff": ("K", 100.0),
    "logg": ("dex", 0.2),
    "fe_h": ("dex", 0.1),
    "mg_fe": ("dex", 0.1),
    "o_fe": ("dex", 0.1),
}
"""Label -> its unit, and the 1-sigma error in it that a catalogue value without a published one is given."""

HALF_WIDTHS = {
    "coverage68": NormalDist().inv_cdf(0.5 + 0.6827 / 2),
    "coverage95": NormalDist().inv_cdf(0.5 + 0.95 / 2),
}
"""Of the intervals that hold 68.27 % and 95 % of a Gaussian, in sigma."""

DESCRIPTION = """
RMSE, bias (median of predicted minus catalogue value), scatter (1.4826 MAD about the bias) and coverage of labels of
stars, in K for Teff and dex for the others. Coverage is the fraction of stars whose catalogue value lies in the
predicted central 68.27 % and 95 % interval: can sigma be believed?
"""

CITATION = """
@article{koblischke2024spectrafm,
  title   = {{SpectraFM: Tuning into Stellar Foundation Models}},
  author  = {Koblischke, Nolan and Bovy, Jo},
  journal = {arXiv e-prints},
  eprint  = {2411.04750},
  year    = {2024}
}
"""

INPUTS = """
Load it with the name of a label, `evaluate.load(..., "fe_h")`, and give one number per star; or without one, and give
one row per star, with `labels=` naming its columns.

Args:
    predictions: Predicted values, in the unit of each label.
    references: Catalogue values in the same units; NaN = not measured, left out.
    sigma: Predicted 1-sigma of the model alone, of the shape of predictions. Without it there is no coverage.
    references_err: Published 1-sigma errors; NaN or 0 = not published, which counts as the label's default error
        (100 K, 0.2 dex for log g, 0.1 dex) and never as certainty.
    labels: Names of the columns: teff, logg, fe_h, mg_fe, o_fe.

Returns:
    n, rmse, bias, scatter, coverage68, coverage95 and unit; for rows, label -> these. None where there is nothing to
    say: no star, or no sigma.
"""


class SpectraRegression(evaluate.Metric):
    """One label, or a row of them."""

    def _info(self):
        if self.config_name != "default" and self.config_name not in LABELS:
            raise ValueError(
                f"the metric is loaded with one of {', '.join(LABELS)}, or without a name, got {self.config_name!r}."
            )
        # float64, or the figures would differ in the eighth digit from those of the package.
        number = datasets.Value("float64")
        kind = datasets.List(number) if self.config_name == "default" else number
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": kind, "references": kind}),
            reference_urls=["https://arxiv.org/abs/2411.04750"],
        )

    def _compute(self, predictions, references, sigma=None, references_err=None, labels=None):
        given = {
            "predictions": predictions,
            "references": references,
            "sigma": sigma,
            "references_err": references_err,
        }
        given = {name: numbers(name, values) for name, values in given.items() if values is not None}
        shape = given["references"].shape
        for name, values in given.items():
            if values.shape != shape:
                raise ValueError(f"{name} must have one value per star and label {shape}, got {values.shape}.")
        if self.config_name != "default":
            return summarise(self.config_name, **given)
        if labels is None or [label for label in labels if label not in LABELS] or shape[1:] != (len(labels),):
            raise ValueError(
                f"rows need labels=[...], the names of their columns in order, of {', '.join(LABELS)}; got {labels} "
                f"for rows of {shape[1] if len(shape) > 1 else 1}."
            )
        return {
            label: summarise(label, **{name: values[:, column] for name, values in given.items()})
            for column, label in enumerate(labels)
        }


def numbers(name, values):
    """An array of float64; None, as JSON has it, is NaN.

    Raises:
        ValueError: Rows of different lengths, or not numbers.
    """
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, in rows of one length: {error}") from error


def summarise(label, predictions, references, sigma=None, references_err=None):
    """Figures of one label; arrays of shape (n_stars,), in its unit."""
    unit, default_error = LABELS[label]
    measured = np.isfinite(references)
    residual = finite(label, "predictions", predictions[measured]) - references[measured]
    figures = {"n": residual.size, "rmse": None, "bias": None, "scatter": None}
    figures |= {**dict.fromkeys(HALF_WIDTHS), "unit": unit}
    if residual.size == 0:
        return figures
    figures["rmse"] = float(np.sqrt(np.mean(residual**2)))
    figures["bias"] = float(np.median(residual))
    figures["scatter"] = float(1.4826 * np.median(np.abs(residual - figures["bias"])))
    if sigma is not None:
        error = np.full(residual.size, np.nan) if references_err is None else references_err[measured]
        error = np.where(np.isfinite(error) & (error > 0), error, default_error)
        total = np.hypot(finite(label, "sigma", sigma[measured]), error)
        figures |= {name: float(np.mean(np.abs(residual) <= z * total)) for name, z in HALF_WIDTHS.items()}
    return figures


def finite(label, name, values):
    """The values themselves.

    Raises:
        ValueError: One is not finite, or a sigma is negative: it would turn every figure into NaN.
    """
    wrong = ~np.isfinite(values) | ((values < 0) if name == "sigma" else False)
    if wrong.any():
        need = "finite and >= 0" if name == "sigma" else "finite"
        raise ValueError(
            f"{label}: {name} must be {need} for every star with a catalogue value, but is not for {int(wrong.sum())} "
            f"of {values.size} stars; find out why, or set their reference to NaN to leave them out."
        )
    return values
