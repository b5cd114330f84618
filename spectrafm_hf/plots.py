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


def plot_reliability(
    probability: np.ndarray, shares: Mapping[str, np.ndarray], n_stars: Mapping[str, int], path: str | Path
) -> Figure:
    """Share of the stars inside the central interval of each nominal probability, one panel per label.

    A curve below the line is that of a network that is too sure. The band holds 95 % of the counts of an honest one.

    Args:
        probability: Shape (n_probabilities,), in (0, 1), increasing.
        shares: Label -> shape (n_probabilities,), see `metrics.reliability`.
        n_stars: Label -> how many were counted.
        path: Where the picture goes; its suffix chooses the format.

    Returns:
        The figure.

    Raises:
        ValueError: No label.
    """
    if not shares:
        raise ValueError("plot_reliability needs at least one label, got none.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.5 + 2.1 * len(shares), 2.7), layout="constrained")
        panels = figure.subplots(1, len(shares), sharex=True, sharey=True, squeeze=False).ravel()
        for panel, (name, share) in zip(panels, shares.items(), strict=True):
            half = 1.96 * np.sqrt(probability * (1 - probability) / n_stars[name])
            panel.fill_between(probability, probability - half, probability + half, color=GREY, lw=0, label="honest")
            panel.plot([0, 1], [0, 1], color="black", lw=0.8)
            panel.plot(probability, share, color=BLUE, lw=1.4, label="counted")
            panel.set(
                title=f"{get_label(name).symbol}, {n_stars[name]:,} stars", xlim=(0, 1), ylim=(0, 1), aspect="equal"
            )
            panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panels[0].legend(loc="upper left")
        figure.supxlabel("nominal probability of the central interval", fontsize=9)
        figure.supylabel("share of stars inside", fontsize=9)
        _save(figure, path)
    return figure


def plot_risk_coverage(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], label: Label, path: str | Path) -> Figure:
    """RMSE of the stars that are answered, against their share, the strangest being left out first.

    Args:
        curves: What strangeness is judged by -> share of the stars answered and RMSE, in the label's unit, each (n,);
            see `metrics.risk_coverage`.
        label: What is predicted.
        path: Where the picture goes; its suffix chooses the format.

    Returns:
        The figure.

    Raises:
        ValueError: No curve.
    """
    if not curves:
        raise ValueError("plot_risk_coverage needs at least one curve, got none.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = figure.subplots()
        for (name, (answered, risk)), colour in zip(curves.items(), (BLUE, VERMILION, ORANGE, GREY), strict=False):
            shown = answered >= min(0.05, answered[-1])  # an RMSE of a few stars is noise
            axes.plot(answered[shown], risk[shown], color=colour, lw=1.4, label=name)
        axes.set(xlabel="share of stars answered", ylabel=f"RMSE of {label.axis}", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        axes.legend()
        _save(figure, path)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    """Write the picture, making its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


_KINDS = {"giants": VERMILION, "dwarfs": BLUE}


def plot_attention(
    wavelength: np.ndarray,
    attention: Mapping[str, np.ndarray],
    label_names: Sequence[str],
    path: str | Path,
    lines: Mapping[str, Sequence[float]],
    peaks: Mapping[str, Sequence[Sequence[tuple[float, str]]]],
    published_peaks: Sequence[float] = (),
) -> Figure:
    """Attention of each label against wavelength, below the lines of each element (as Fig. 5 of the paper).

    Args:
        wavelength: Shape (n_pixels,), vacuum Angstrom, increasing.
        attention: `giants` and `dwarfs`, or one of them -> shape (n_labels, n_pixels), 1 = even.
        label_names: One per row of it.
        path: Where the picture goes; its suffix chooses the format.
        lines: Element -> its lines, vacuum Angstrom.
        peaks: Kind of star -> for each label the places to be named, (vacuum Angstrom, elements).
        published_peaks: Marked among the lines, vacuum Angstrom.

    Returns:
        The figure.

    Raises:
        ValueError: No label.
    """
    if not label_names:
        raise ValueError("plot_attention needs at least one label, got none.")
    rows = {element: list(where) for element, where in lines.items()}
    if inside := [where for where in published_peaks if wavelength[0] <= where <= wavelength[-1]]:
        rows["peaks of the paper"] = inside
    with matplotlib.rc_context(STYLE):
        heights = [0.15 * len(rows) + 0.2] + [1.25] * len(label_names)
        figure = Figure(figsize=(11.0, 0.7 + sum(heights)), layout="constrained")
        top, *panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        top.eventplot(
            list(rows.values()),
            colors=["black" if name in lines else ORANGE for name in rows],
            lineoffsets=-np.arange(len(rows)),
            linelengths=0.75,
            linewidths=0.8,
        )
        top.set_yticks(-np.arange(len(rows)), list(rows), fontsize=6.5)
        top.tick_params(axis="both", length=0)
        for row, (name, panel) in enumerate(zip(label_names, panels, strict=True)):
            panel.axhline(1.0, color=GREY, lw=0.8)
            named: list[float] = []
            for kind, curves in attention.items():
                panel.plot(*_broken(wavelength, curves[row]), color=_KINDS[kind], lw=0.9, label=kind)
                for where, elements in peaks.get(kind, [[]] * len(label_names))[row]:
                    if all(abs(where - other) > 0.008 * (wavelength[-1] - wavelength[0]) for other in named):
                        named.append(where)
                        height = curves[row][int(np.argmin(np.abs(wavelength - where)))]
                        _name_peak(panel, where, height, elements, _KINDS[kind])
            panel.set_ylim(0, 1.35 * max(float(np.nanmax(curves[row])) for curves in attention.values()))
            panel.set_ylabel(get_label(name).symbol)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(attention))
        panels[-1].set_xlabel("vacuum wavelength [\u00c5]")
        panels[-1].set_xlim(wavelength[0], wavelength[-1])
        figure.supylabel("attention of the label (1 = even)", fontsize=9)
        _save(figure, path)
    return figure


def _broken(wavelength: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with a NaN in every gap, so that no line is drawn across it."""
    step = np.diff(wavelength)
    gaps = np.flatnonzero(step > 10 * np.median(step)) + 1
    return np.insert(wavelength, gaps, wavelength[gaps]), np.insert(values.astype(float), gaps, np.nan)


def _name_peak(panel: Axes, where: float, height: float, elements: str, colour: str) -> None:
    panel.annotate(
        elements,
        (where, height),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=6.5,
        color=colour,
    )


def plot_attention_and_causal(
    wavelength: np.ndarray,
    flux: np.ndarray,
    attention: Mapping[str, np.ndarray],
    sensitivity: np.ndarray,
    label_names: Sequence[str],
    own_pixels: Mapping[str, np.ndarray],
    areas: Sequence[tuple[float, float]],
    path: str | Path,
    zoom: float = 60.0,
) -> Figure:
    """Where labels look, and where the flux moves them: side by side with the lines that should matter.

    For each label a row of two pictures: the whole range on the left; on the right, with the mean spectrum, the part
    with the most pixels of the label's own element.

    Args:
        wavelength: Shape (n_pixels,), vacuum Angstrom, increasing.
        flux: Mean flux, (n_pixels,).
        attention: Kind of star -> shape (n_labels, n_pixels), 1 = even.
        sensitivity: Rise of the label when a pixel darkens by its spread, (n_labels, n_pixels), unit of the label.
        label_names: One per row.
        own_pixels: Element of each label, in the same order -> its pixels, (n_pixels,), bool.
        areas: Of each label, under the ROC curve: of attention and of sensitivity.
        path: Where the picture goes; its suffix chooses the format.
        zoom: Width of the part, Angstrom.

    Returns:
        The figure.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 0.6 + 3.1 * len(label_names)), layout="constrained")
        grid = figure.subplots(2 * len(label_names), 2, squeeze=False, width_ratios=(1.4, 1.0))
        for row, (name, (element, own)) in enumerate(zip(label_names, own_pixels.items(), strict=True)):
            label, lines = get_label(name), wavelength[own]
            middle = max(lines, key=lambda line: int((np.abs(lines - line) < zoom / 2).sum()))
            curves = {kind: of_labels[row] for kind, of_labels in attention.items()}
            (looks, part), (moves, part_moves) = grid[2 * row : 2 * row + 2]
            _draw_looks_and_moves(looks, moves, wavelength, curves, sensitivity[row], own)
            shown = np.abs(wavelength - middle) < zoom / 2
            curves = {kind: curve[shown] for kind, curve in curves.items()}
            _draw_looks_and_moves(
                part, part_moves, wavelength[shown], curves, sensitivity[row][shown], own[shown], shaded=True
            )
            spectrum = part.twinx()
            spectrum.plot(*_broken(wavelength[shown], flux[shown]), color="#808080", lw=0.9, ls=":")
            spectrum.set_ylabel("mean flux (dotted)", color="#808080")
            looks.set_title(f"{label.symbol} and the lines of {element} (orange). Attention: AUC {areas[row][0]:.2f}")
            moves.set_title(f"Causal: AUC {areas[row][1]:.2f}")
            looks.set_ylabel("attention (1 = even)")
            moves.set_ylabel(f"rise [{label.unit}] when darker")
        for panel in grid[-1]:
            panel.set_xlabel("vacuum wavelength [\u00c5]")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(attention))
        _save(figure, path)
    return figure


def _draw_looks_and_moves(
    looks: Axes,
    moves: Axes,
    wavelength: np.ndarray,
    attention: Mapping[str, np.ndarray],
    sensitivity: np.ndarray,
    own: np.ndarray,
    shaded: bool = False,
) -> None:
    """Attention above, sensitivity below, and the pixels of the element in both: as ticks, or shaded."""
    for panel in (looks, moves):
        for line in wavelength[own]:
            panel.axvline(
                line, ymax=1.0 if shaded else 0.08, alpha=0.3 if shaded else 1.0, lw=1.0, color=ORANGE, zorder=0
            )
        panel.set_xlim(wavelength[0], wavelength[-1])
    for kind, curve in attention.items():
        looks.plot(*_broken(wavelength, curve), color=_KINDS[kind], lw=0.9, label=kind)
    moves.axhline(0.0, color=GREY, lw=0.8)
    moves.plot(*_broken(wavelength, sensitivity), color="black", lw=0.7)
    looks.tick_params(labelbottom=False)


# ---------------------------------------------------------------- the benchmark


def plot_benchmark(results: Mapping[str, Any], path: str | Path) -> Figure:
    """One page: RMSE of metal-poor against metal-rich stars in each protocol, and RMSE against the number of stars.

    Args:
        results: benchmark.json, see `benchmark.run_benchmark`.
        path: PNG to be written.
    """
    shown = {name: told for name, told in results["protocols"].items() if told["methods"]}
    figure = Figure(figsize=(3 + 3.6 * max(len(shown), 1), 9.0), layout="constrained")
    axes = figure.subplots(2, max(len(shown), 1), squeeze=False)
    for column, (name, told) in enumerate(shown.items()):
        _draw_methods(axes[0, column], name, told, named=column == 0)
        _draw_curves(axes[1, column], told)
    if shown:
        axes[0, 0].legend(fontsize=8)
        lines = axes[1, 0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=4, fontsize=8)
    _save(figure, path)
    return figure


def _draw_methods(axis: Axes, name: str, told: Mapping[str, Any], named: bool) -> None:
    """A row per method: RMSE of metal-poor and of metal-rich stars, with the 95 % interval of the mean over draws."""
    methods = list(told["methods"])
    for row, method in enumerate(methods):
        found = told["methods"][method]
        if "left_out" in found:
            continue
        for subset, colour, shift in (("metal_poor", "#b5402c", -0.17), ("metal_rich", "#1f5fa8", 0.17)):
            value = found[subset]["rmse"]
            if value is not None:
                low, high = found[subset].get("rmse_ci95") or (value, value)
                axis.errorbar(
                    value, row + shift, xerr=[[max(value - low, 0)], [max(high - value, 0)]], capsize=2, color=colour,
                    fmt="D" if method.startswith("spectrafm") else "o", markersize=5,
                    label=subset.replace("_", "-") if row == 0 else None,
                )  # fmt: skip
    axis.set_yticks(range(len(methods)), [method_name(method) for method in methods] if named else [""] * len(methods))
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_title(f"{name}\n{told['n_stars']} labelled stars, {told['n_test']} asked about", fontsize=10)
    axis.set_xlabel("RMSE of [Fe/H] [dex]")
    axis.grid(alpha=0.3)


def _draw_curves(axis: Axes, told: Mapping[str, Any]) -> None:
    """RMSE of all stars against the number of labelled ones, a line per method."""
    for number, method in enumerate(told["methods"]):
        points = {int(n): found[method]["all"]["rmse"] for n, found in told["by_n"].items() if "all" in found[method]}
        style = "D-" if method.startswith("spectrafm") else "o--"
        axis.plot(
            list(points), list(points.values()), style, color=f"C{number}", label=method_name(method), markersize=4
        )
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xticks([int(n) for n in told["by_n"]], list(told["by_n"]))
    axis.minorticks_off()
    axis.set_xlabel("labelled stars")
    axis.set_ylabel("RMSE of [Fe/H], all stars [dex]")
    axis.grid(alpha=0.3)


# ---------------------------------------------------------------- one spectrum


def plot_spectrum(
    wavelength: np.ndarray,
    flux: np.ndarray,
    seen: np.ndarray,
    attention: Mapping[str, np.ndarray],
    peaks: Mapping[str, Sequence[tuple[float, str]]],
    lines: Sequence[float],
    answers: Mapping[str, str],
    title: str,
    path: str | Path,
) -> Figure:
    """One spectrum, and below it where each label looks, with the elements whose lines are there.

    Args:
        wavelength: Shape (n_pixels,), vacuum Angstrom, rest frame, increasing.
        flux: Shape (n_pixels,), any unit, drawn over its median; NaN where it is bad.
        seen: Pixels of the model, shape (n_seen,), vacuum Angstrom, increasing.
        attention: Label -> shape (n_seen,), 1 = even; NaN = not shown.
        peaks: Label -> places to be named, (vacuum Angstrom, elements).
        lines: Marked in the spectrum, vacuum Angstrom: those of these places.
        answers: Label -> what is written beside its curve, e.g. `4810 \u00b1 12 K`.
        title: Of the picture, the star's name.
        path: Where the picture goes; its suffix chooses the format.

    Returns:
        The figure.

    Raises:
        ValueError: No label.
    """
    if not attention:
        raise ValueError("plot_spectrum needs at least one label, got none.")
    with matplotlib.rc_context(STYLE):
        heights = [2.4] + [1.15] * len(attention)
        figure = Figure(figsize=(11.0, 0.8 + sum(heights)), layout="constrained")
        top, *panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        shown = flux / np.nanmedian(flux)
        top.plot(*_broken(wavelength, shown), color="black", lw=0.5)
        low, high = max(float(np.nanmin(shown)), -0.1), float(np.nanquantile(shown, 0.999))
        top.set_ylim(low - 0.05 * (high - low) - 0.01, high + 0.08 * (high - low) + 0.01)
        for line in lines:
            top.axvline(line, color=ORANGE, lw=0.8, alpha=0.35, zorder=0)
        top.set_ylabel("flux / median")
        top.set_title(title)
        width = seen[-1] - seen[0] if seen.size > 1 else 1.0
        for (name, curve), panel in zip(attention.items(), panels, strict=True):
            panel.axhline(1.0, color=GREY, lw=0.8)
            panel.plot(*_broken(seen, curve), color=BLUE, lw=0.9)
            named: list[float] = []
            for where, elements in peaks.get(name, ()):
                if all(abs(where - other) > 0.02 * width for other in named):
                    named.append(where)
                    _name_peak(panel, where, float(curve[np.argmin(np.abs(seen - where))]), elements, BLUE)
            panel.set_ylim(0, 1.4 * float(np.nanmax(curve)))
            panel.set_ylabel(get_label(name).symbol)
            panel.annotate(
                answers[name], (1.0, 1.0), xycoords="axes fraction", ha="right", va="top", fontsize=8, color="black"
            )
        panels[-1].set_xlabel("vacuum wavelength, rest frame [\u00c5]")
        panels[-1].set_xlim(seen[0] - 0.01 * width, seen[-1] + 0.01 * width)
        figure.supylabel(
            "attention of the label (1 = even); orange: lines at the places named; ?: no listed line", fontsize=8
        )
        _save(figure, path)
    return figure
