"""The figures: predicted against catalogue label, RMSE of the metal-poor stars, loss of a training stage.

Every function draws on a `Figure` of its own and never touches pyplot: no window, no back end to choose, no state left
behind. Colours are those of Okabe & Ito (2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .labels import Label, get_label
from .metrics import METAL_POOR_BELOW, method_name, summarise_subsets

BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#BDBDBD"
"""Okabe & Ito (2008), and a grey."""

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "legend.frameon": False,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}
"""Matplotlib settings of every figure here, applied inside a context only (typed loosely: its stubs list every key)."""

_BORDER = f"{METAL_POOR_BELOW:.0f}".replace("-", "\u2212")
_SUBSETS = (
    ("metal_poor", VERMILION, "o", f"metal-poor, [Fe/H] < {_BORDER}"),
    ("metal_rich", BLUE, "s", f"metal-rich, [Fe/H] \u2265 {_BORDER}"),
)
_METHODS_OF_OURS = {"spectrafm": BLUE, "spectrafm_zero_shot": ORANGE}


def plot_predicted_against_true(
    predictions: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    truth: np.ndarray,
    label: Label,
    path: str | Path,
    fe_h: np.ndarray | None = None,
    training_range: tuple[float, float] | None = None,
) -> Figure:
    """One panel per method, predicted against catalogue value, on common axes (as Fig. 4 of Koblischke & Bovy 2024).

    Args:
        predictions: Method (key of `metrics.METHOD_NAMES`) -> mean and sigma, both shape (n_stars,), in the label's
            unit; a sigma of None draws no error bars.
        truth: Catalogue value, shape (n_stars,), same unit; NaN = not measured, not drawn.
        label: What is predicted.
        path: Where the picture goes; its suffix chooses the format. Missing folders are made.
        fe_h: Catalogue [Fe/H], dex, shape (n_stars,), for the colours; needed unless `label` is [Fe/H] itself.
        training_range: Lowest and highest value of the training stars in the label's unit, shaded; default
            [Fe/H] > -1 if the label is [Fe/H], else nothing.

    Returns:
        The figure, for whoever wants to look closer.

    Raises:
        ValueError: No method, `fe_h` missing, or shapes that do not fit.
    """
    if not predictions:
        raise ValueError("plot_predicted_against_true needs at least one method, got none.")
    if fe_h is None:
        if label.name != "fe_h":
            raise ValueError(f"colouring {label.name} by metallicity needs [Fe/H] in dex per star; pass fe_h=...")
        fe_h = truth
        training_range = training_range or (METAL_POOR_BELOW, label.valid[1])
    limits = _common_limits(truth, [mean for mean, _ in predictions.values()])
    n_columns = min(len(predictions), 4)
    n_rows = -(-len(predictions) // n_columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 2.45 * n_columns, 0.75 + 2.45 * n_rows), layout="constrained")
        panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, (method, (mean, sigma)) in zip(panels, predictions.items(), strict=False):
            _draw_panel(panel, mean, sigma, truth, label, fe_h, training_range, limits)
            panel.set_title(_wrapped(method_name(method)))
        for number, panel in enumerate(panels):
            if number >= len(predictions):
                panel.set_axis_off()
            # The lowest panel of each column carries the numbers, also above an empty place.
            elif number + n_columns >= len(predictions):
                panel.tick_params(labelbottom=True)
        figure.supxlabel(f"catalogue {label.axis}", fontsize=10)
        figure.supylabel(f"predicted {label.axis}", fontsize=10)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names), handletextpad=0.4)
        _save(figure, path)
    return figure


def _draw_panel(
    panel: Axes,
    mean: np.ndarray,
    sigma: np.ndarray | None,
    truth: np.ndarray,
    label: Label,
    fe_h: np.ndarray,
    training_range: tuple[float, float] | None,
    limits: tuple[float, float],
) -> None:
    """Points, one-to-one line, training range and RMSE of one method."""
    if training_range is not None:
        low, high = np.clip(training_range, *limits)
        panel.axvspan(low, high, color="#EFEFEF", lw=0, zorder=0, label="range of the training stars")
    panel.plot(limits, limits, color="black", lw=0.8, zorder=1)
    figures = summarise_subsets(label, mean, truth, fe_h, sigma)
    for row, (subset, colour, marker, name) in enumerate(_SUBSETS):
        chosen = (fe_h < METAL_POOR_BELOW) if subset == "metal_poor" else (fe_h >= METAL_POOR_BELOW)
        stars = truth[chosen], mean[chosen]
        if sigma is not None:
            panel.errorbar(*stars, yerr=sigma[chosen], fmt="none", ecolor=colour, elinewidth=0.5, alpha=0.25, zorder=2)
        panel.scatter(*stars, s=9, color=colour, marker=marker, alpha=0.75, linewidths=0, label=name, zorder=3)
        rmse = figures[subset]["rmse"]
        if rmse is not None:
            panel.text(
                0.03,  # upper left: no method takes a metal-poor star for the most metal-rich
                0.9 - 0.09 * row,
                f"RMSE {rmse:.{_decimals(label)}f} {label.unit}",
                color=colour,
                transform=panel.transAxes,
                ha="left",
                fontsize=8.5,
                fontweight="bold",
            )
    panel.set(xlim=limits, ylim=limits, aspect="equal")


def _common_limits(truth: np.ndarray, means: Sequence[np.ndarray]) -> tuple[float, float]:
    """Square limits that hold every catalogue value and all but the wildest 1 % of the predictions."""
    measured = np.isfinite(truth)
    lost = np.concatenate([mean[measured] for mean in means])
    low = min(float(truth[measured].min()), float(np.quantile(lost, 0.005)))
    high = max(float(truth[measured].max()), float(np.quantile(lost, 0.995)))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _decimals(label: Label) -> int:
    """0.01 dex and 1 K are the finest digits worth reading in a figure."""
    return 0 if label.unit == "K" else 2


def _wrapped(name: str) -> str:
    """A long method name on two lines, broken before its bracket."""
    return name.replace(" (", "\n(")


def plot_metal_poor_rmse(results: Mapping[str, Any], path: str | Path) -> Figure:
    """RMSE of the metal-poor test stars, one bar per method, the best on top.

    With several seeds (`results["seeds"]`) a bar is their mean and every seed a point; with one seed it is that one.

    Args:
        results: The content of `results.json`.
        path: Where the picture goes; its suffix chooses the format.

    Returns:
        The figure.

    Raises:
        ValueError: No method has a metal-poor RMSE.
    """
    records: Sequence[Mapping[str, Any]] = results.get("seeds") or [results]
    per_seed = {
        method: [record["methods"][method]["metal_poor"]["rmse"] for record in records if method in record["methods"]]
        for method in results["methods"]
    }
    per_seed = {method: values for method, values in per_seed.items() if values and None not in values}
    if not per_seed:
        raise ValueError("no method here has an RMSE of metal-poor stars; evaluate on stars with [Fe/H] < -1.")
    order = sorted(per_seed, key=lambda method: -float(np.mean(per_seed[method])))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 1.1 + 0.42 * len(order)), layout="constrained")
        axes = figure.subplots()
        highest = max(max(values) for values in per_seed.values())
        for height, method in enumerate(order):
            values = per_seed[method]
            colour = _METHODS_OF_OURS.get(method, GREY)
            axes.barh(height, float(np.mean(values)), height=0.62, color=colour, zorder=1)
            axes.text(max(values) + 0.015 * highest, height, f"{np.mean(values):.2f}", va="center", fontweight="bold")
            if len(values) > 1:
                axes.scatter(
                    values, [height] * len(values), s=18, facecolor="white", edgecolor="black", linewidths=0.8, zorder=3
                )
        axes.set_yticks(range(len(order)), [method_name(method) for method in order])
        axes.set_xlim(0, 1.1 * highest)
        axes.tick_params(axis="y", length=0)
        seeds = f", mean and single values of {len(records)} seeds" if len(records) > 1 else ""
        axes.set_xlabel(f"RMSE of {get_label(results['label']).axis}{seeds}")
        axes.set_title(f"{results['n_test_metal_poor']} metal-poor test stars ([Fe/H] < {_BORDER})", loc="left")
        _save(figure, path)
    return figure


def plot_learning_curve(
    log_history: Sequence[Mapping[str, float]], path: str | Path, spectra_per_step: int, title: str = ""
) -> Figure:
    """Training and validation loss against the number of spectra seen.

    Args:
        log_history: `trainer.state.log_history`: records with `step` and `loss` or `eval_loss` (nats, scaled units).
        path: Where the picture goes; its suffix chooses the format.
        spectra_per_step: Spectra per optimiser step over all devices (batch size x accumulation x devices).
        title: Name of the stage.

    Returns:
        The figure.

    Raises:
        ValueError: No record has a loss.
    """
    curves = {
        name: np.array([(record["step"] * spectra_per_step, record[key]) for record in log_history if key in record])
        for key, name in (("loss", "training"), ("eval_loss", "validation"))
    }
    curves = {name: curve for name, curve in curves.items() if curve.size}
    if not curves:
        raise ValueError(
            f"none of the {len(log_history)} log records has a `loss` or `eval_loss`; pass trainer.state.log_history."
        )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.2), layout="constrained")
        axes = figure.subplots()
        for name, curve in curves.items():
            colour, marker = (VERMILION, "o") if name == "validation" else (BLUE, "")
            axes.plot(*curve.T, color=colour, marker=marker, markersize=3.5, lw=1.3, label=name)
        axes.set(xlabel="spectra seen", ylabel="loss [nats per label]", title=title)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend()
        _save(figure, path)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    """Write the picture, making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
