"""From `results.json` to what people read: the model card on the Hub and the table in the terminal.

A number that is missing stops the rendering. A card with a blank in it would be read as "not worth mentioning".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from .card_templates import card_template
from .labels import Label, get_label
from .metrics import METAL_POOR_BELOW, METHOD_NAMES, Figures, method_name

PIPELINE_TAG = "tabular-regression"
"""The closest of the Hub's tasks to "labels of a star"."""

SUBSETS = {"all": "all", "metal_poor": "metal-poor", "metal_rich": "metal-rich"}
"""Key in `results.json` -> how cards and tables write it."""


@dataclass(frozen=True)
class Stage:
    """One of the three stages of training."""

    name: str
    number: int
    what: str


STAGES = {
    stage.name: stage
    for stage in (
        Stage("1-synthetic", 1, "A transformer pre-trained on synthetic stellar spectra; it has not seen a real star."),
        Stage("2-observed", 2, "A transformer pre-trained on synthetic, then fine-tuned on observed ones (MILES)."),
        Stage(
            "3-few-shot",
            3,
            "A transformer pre-trained on synthetic and observed spectra, then fine-tuned on a few metal-rich stars\n"
            "in a wavelength window where it had not seen real ones. It reads [Fe/H] there, of metal-poor stars too.",
        ),
    )
}


class _OptionalFacts(TypedDict, total=False):
    base_model: str


class CardFacts(_OptionalFacts):
    """What a card says beside the results; a key that is left out stops the rendering (but for `base_model`).

    Attributes:
        model_name: Title of the card and name in the model index.
        folder: What `from_pretrained` is to be given: a Hub id or a folder.
        license: Of the weights, as the Hub writes it, e.g. `mit`.
        labels: Name -> lowest and highest value in training, in the label's unit.
        wavelength_range: Lowest and highest wavelength of training, vacuum Angstrom, rest frame.
        teff_range: Lowest and highest effective temperature of training, K.
        fwhm: Full width at half maximum of the line-spread function in training, Angstrom.
        n_parameters: Of the model.
        recipe: File of the recipe, relative to the repository.
        training_data: One line on the spectra.
        parent: Checkpoint it started from; None = random weights.
        spectra_seen: Spectra used by the optimiser, repetitions counted.
        seed: Of the training.
        versions: Package -> version.
        base_model: Hub id of the parent, only if it is on the Hub: a local folder would be a dead link there.
    """

    model_name: str
    folder: str
    license: str
    labels: Mapping[str, tuple[float, float]]
    wavelength_range: tuple[float, float]
    teff_range: tuple[float, float]
    fwhm: float
    n_parameters: int
    recipe: str
    training_data: str
    parent: str | None
    spectra_seen: int
    seed: int
    versions: Mapping[str, str]


def render_model_card(results: Mapping[str, Any], stage: str, facts: CardFacts) -> str:
    """The README.md of a checkpoint.

    Args:
        results: The few-shot stage: the content of `results.json`, `{"protocol", "seed", "n_train", "n_test",
            "n_test_metal_poor", "label", "methods": {name: {"all", "metal_poor", "metal_rich"}}}`. The earlier stages:
            `{"protocol", "labels": {name: figures}}`. Figures are those of `metrics.summarise`.
        stage: `1-synthetic`, `2-observed` or `3-few-shot`.
        facts: See `CardFacts`.

    Returns:
        YAML metadata and Markdown.

    Raises:
        ValueError: No such stage, nothing measured, a fact or figure missing, or a number that is not finite.
        jinja2.UndefinedError: Anything else that the template asks for is missing; the message names it.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}.")
    if absent := sorted(CardFacts.__required_keys__ - facts.keys()):
        raise ValueError(f"a card needs the facts {', '.join(absent)} too; got {', '.join(facts)}.")
    _check_results(results)
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"number": _number, "count": _count, "figure": _figure}
    template = environment.from_string(card_template())
    return template.render(
        card_data=_metadata(results, facts).to_yaml(),
        stage=STAGES[stage],
        stages=list(STAGES),
        facts=facts,
        results=results,
        asked=get_label(results["label"]) if results.get("methods") else None,
        labels=[
            {"name": name, "symbol": get_label(name).symbol, "unit": get_label(name).unit, "low": low, "high": high}
            for name, (low, high) in facts["labels"].items()
        ],
        methods=_method_rows(results),
        n_seeds=len(results.get("seeds", ())),
        per_label=[_label_row(get_label(name), figures) for name, figures in results.get("labels", {}).items()],
    )


def _check_results(results: Mapping[str, Any]) -> None:
    """Refuse results that would leave a hole in a table.

    Raises:
        ValueError: No protocol, nothing measured, or a figure is missing or not finite; the message says which.
    """
    if not str(results.get("protocol", "")).strip():
        raise ValueError("results need a `protocol`: a sentence on which stars were trained on and which tested.")
    tables = {name: results[name] for name in ("methods", "labels") if results.get(name)}
    if not tables:
        raise ValueError("results need `methods` (few-shot stage) or `labels` (earlier stages), got neither.")
    if "methods" in tables and "spectrafm" not in tables["methods"]:
        raise ValueError(f"`methods` must hold spectrafm, the model of the card; got {', '.join(tables['methods'])}.")
    for method in tables.get("methods", {}):
        for record in (results, *results.get("seeds", ())):
            subsets = record["methods"].get(method, {})
            for subset in SUBSETS:
                _check_figures(f"{method}, {SUBSETS[subset]} stars, seed {record.get('seed')}", subsets.get(subset, {}))
    for name, figures in tables.get("labels", {}).items():
        _check_figures(name, figures)


def _check_figures(where: str, figures: Mapping[str, Any]) -> None:
    """All of `metrics.Figures` are there; None only where there is no star, or no sigma to cover with.

    Raises:
        ValueError: A figure is missing or not finite.
    """
    if absent := sorted(Figures.__required_keys__ - figures.keys()):
        raise ValueError(f"{where}: no {', '.join(absent)} in the results; take them from metrics.summarise.")
    for key, value in figures.items():
        if not (value is None and (figures["n"] == 0 or key.startswith("coverage"))):
            _finite(value, f"{where}, {key}: ")


def _metadata(results: Mapping[str, Any], facts: CardFacts) -> ModelCardData:
    """YAML head of the card; the few-shot results become a model index."""
    optional: dict[str, Any] = {}
    if "base_model" in facts:
        optional |= {"base_model": facts["base_model"], "base_model_relation": "finetune"}
    if results.get("methods"):
        label = get_label(results["label"])
        optional["eval_results"] = [
            EvalResult(
                task_type=PIPELINE_TAG,
                task_name=f"{label.symbol} from spectra",
                dataset_type="miles",
                dataset_name=f"MILES, {SUBSETS[subset]} test stars",
                dataset_config=subset,  # keeps the subsets apart: the model index merges what is equal
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{'RMSE' if metric == 'rmse' else metric} [{label.unit}]",
                metric_value=round(float(results["methods"]["spectrafm"][subset][metric]), 4),
            )
            for subset in SUBSETS
            for metric in ("rmse", "bias", "scatter")
            if results["methods"]["spectrafm"][subset]["n"] > 0
        ]
    return ModelCardData(
        model_name=facts["model_name"],
        license=facts["license"],
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=["astronomy", "stellar-spectra", "spectrafm"],
        **optional,
    )


def _label_row(label: Label, figures: Mapping[str, Any]) -> dict[str, Any]:
    """One label of the table of the earlier stages; 1 K and 0.001 dex are the last digits that mean anything."""
    digits = "0f" if label.unit == "K" else "3f"
    return {
        "symbol": label.symbol,
        "unit": label.unit,
        "figures": figures,
        "format": f"%.{digits}",
        "signed": f"%+.{digits}",
    }


def _method_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per method: its name, its RMSE per subset (best in bold), its figures per subset."""
    methods = results.get("methods", {})
    values = {method: _rmse_per_subset(results, method) for method in methods}
    best = _best(values)
    return [
        {
            "name": method_name(method),
            "rmse": [_cell(rmse, "**" if method == best[subset] else "") for subset, rmse in values[method].items()],
            "figures": [(name, methods[method][subset]) for subset, name in SUBSETS.items() if subset != "all"],
        }
        for method in _ordered(methods)
    ]


def _ordered(methods: Mapping[str, Any]) -> list[str]:
    """Methods in the order of `METHOD_NAMES`, others behind."""
    return [name for name in METHOD_NAMES if name in methods] + [name for name in methods if name not in METHOD_NAMES]


def _rmse_per_subset(results: Mapping[str, Any], method: str) -> dict[str, list[float]]:
    """Subset -> RMSE of every seed (of the one seed if there is but one); empty where there is no star."""
    records: Sequence[Mapping[str, Any]] = results.get("seeds") or [results]
    figures = {subset: [record["methods"][method][subset] for record in records] for subset in SUBSETS}
    return {subset: [one["rmse"] for one in each if one["n"] > 0] for subset, each in figures.items()}


def _best(values: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, str | None]:
    """Subset -> method of lowest mean RMSE."""
    best: dict[str, str | None] = {}
    for subset in SUBSETS:
        measured = {method: float(np.mean(each[subset])) for method, each in values.items() if len(each[subset])}
        best[subset] = min(measured, key=measured.__getitem__) if measured else None
    return best


def _cell(rmse: Sequence[float], mark: str) -> str:
    """RMSE of one seed, or mean and standard deviation of several."""
    if not rmse:
        return "no star"
    text = f"{rmse[0]:.3f}" if len(rmse) == 1 else f"{np.mean(rmse):.2f}\u00b1{np.std(rmse, ddof=1):.2f}"
    return f"{mark}{text}{mark}"


def _number(value: float) -> str:
    """A number without needless digits."""
    return f"{_finite(value):g}"


def _count(value: int) -> str:
    """A count with thousands separated."""
    return f"{int(_finite(value)):,}"


def _figure(value: float | None, form: str) -> str:
    """A figure of `metrics.summarise`; None says that there was nothing to measure, which the reader is told."""
    return "none" if value is None else form % _finite(value)


def _finite(value: float | None, where: str = "") -> float:
    """The number itself.

    Raises:
        ValueError: It is none, or not finite.
    """
    if isinstance(value, str) or value is None or not math.isfinite(value):
        raise ValueError(f"{where}a card needs finite numbers, got {value!r}; look at results.json and at the facts.")
    return value


def results_table(results: Mapping[str, Any]) -> str:
    """The few-shot results for the terminal; `*` marks the best RMSE of a column.

    Args:
        results: The content of `results.json`. With several seeds RMSE is their mean and standard deviation; bias and
            coverage are those of `results["methods"]` itself.

    Returns:
        Lines of at most 120 characters, without colour.

    Raises:
        ValueError: A figure is missing or not finite.
    """
    _check_results(results)
    label = get_label(results["label"])
    methods = _ordered(results["methods"])
    values = {method: _rmse_per_subset(results, method) for method in methods}
    best = _best(values)
    short = {"all": "all", "metal_poor": "poor", "metal_rich": "rich"}
    ends = [subset for subset in SUBSETS if subset != "all"]
    rows = [["method"]]
    rows[0] += [f"RMSE {short[subset]}" for subset in SUBSETS]
    rows[0] += [f"{name} {short[subset]}" for name in ("bias", "68 %") for subset in ends]
    for method in methods:
        figures = results["methods"][method]
        row = [method_name(method)]
        row += [_cell(values[method][subset], "*" if method == best[subset] else "") for subset in SUBSETS]
        row += [_figure(figures[subset]["bias"], "%+.2f") for subset in ends]
        row += [_figure(figures[subset]["coverage68"], "%.2f") for subset in ends]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(
        [
            f"{label.symbol} of {results['n_test']} test stars, {results['n_test_metal_poor']} of them metal-poor "
            f"([Fe/H] < {METAL_POOR_BELOW:.0f}), learned from {results['n_train']} metal-rich ones.",
            f"RMSE and bias in {label.unit}, * = best; 68 % = share of stars inside the predicted 68 % interval.",
            "",
            lines[0],
            "-" * len(lines[0]),
            *lines[1:],
        ]
    )
