"""From `results.json` to what people read: the model card on the Hub and the table in the terminal.

A number that is missing stops the rendering. A card with a blank in it would be read as "not worth mentioning".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypedDict

import numpy as np
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .card_templates import REPO_OR_FOLDER, card_environment, card_template, finite
from .feature_extraction_spectrafm import spoken_ranges
from .labels import LABELS, Label, get_label
from .metrics import BIN_EDGES, METAL_POOR_BELOW, METHOD_NAMES, BinFigures, Figures, method_name

PIPELINE_TAG = "tabular-regression"
"""The closest of the Hub's tasks to "labels of a star"."""

SUBSETS = {"all": "all", "metal_poor": "metal-poor", "metal_rich": "metal-rich"}
"""Key in `results.json` -> how cards and tables write it."""

PUBLISHED = {
    "rmse": "RMSE",
    "bias": "bias",
    "scatter": "scatter",
    "coverage68": "coverage of the 68 % interval",
    "coverage95": "coverage of the 95 % interval",
}
"""Figures of the model index and of `.eval_results` -> how they are written there."""

NOT_CALIBRATED = "Sigma is the network's own; it is not calibrated."

MOVING = ("main", "HEAD")
"""Names of revisions that pin nothing."""


@dataclass(frozen=True)
class Stage:
    """One of the three stages of training, or one of your own (number 0)."""

    name: str
    number: int
    what: str


STAGES = {
    stage.name: stage
    for stage in (
        Stage("1-synthetic", 1, "A transformer pre-trained on synthetic stellar spectra; it has not seen a real star."),
        Stage("2-observed", 2, "A transformer pre-trained on synthetic, then fine-tuned on observed stellar spectra."),
        Stage(
            "3-few-shot",
            3,
            "A transformer pre-trained on synthetic and observed spectra, then fine-tuned on a few metal-rich stars\n"
            "in a wavelength window where it had not seen real ones. It reads [Fe/H] there, of metal-poor stars too.",
        ),
    )
}


class HubDataset(TypedDict):
    """A dataset on the Hub, pinned."""

    id: str
    revision: str


class _OptionalSharpness(TypedDict, total=False):
    fwhm: tuple[float, float]
    resolving_power: tuple[float, float]


class SurveyFacts(_OptionalSharpness):
    """Spectra of one survey, as training showed them.

    Attributes:
        name: Of `synthesis.surveys`.
        wavelength: First and last pixel of every run without a gap, vacuum Angstrom.
        pixel: Their median width, Angstrom.
        fwhm, resolving_power: Lowest and highest; the one that is constant along the survey, Angstrom or lambda / FWHM.
        snr: Lowest and highest signal-to-noise ratio per pixel.
        labels: Learned from them: name -> lowest and highest value, in the label's unit.
    """

    name: str
    wavelength: Sequence[tuple[float, float]]
    pixel: float
    snr: tuple[float, float]
    labels: Mapping[str, tuple[float, float]]


class _OptionalFacts(TypedDict, total=False):
    repo: str | None
    revision: str | None
    base_model: str
    base_model_revision: str
    datasets: Sequence[HubDataset]
    test_dataset: HubDataset
    figures: Sequence[tuple[str, str]]
    snr_range: tuple[float, float] | None
    resolving_power: tuple[float, float] | None
    calibration: str | None
    surveys: Sequence[SurveyFacts] | None
    learned_ranges: Mapping[str, Sequence[Sequence[float]]]
    true_labels: bool
    ships_as: str | None
    survey: str | None
    citations: Sequence[str]
    weaknesses: Sequence[str]


class CardFacts(_OptionalFacts):
    """What a card says beside the results; one that is left out stops the rendering, but for those called optional.

    Attributes:
        model_name: Title of the card and name in the model index.
        folder: What `from_pretrained` is to be given where there is no `repo`.
        license: Of the weights, as the Hub writes it, e.g. `mit`.
        labels: Name -> lowest and highest value in training, in the label's unit.
        wavelength_range: Lowest and highest wavelength of training, vacuum Angstrom, rest frame.
        teff_range: Lowest and highest effective temperature of training, K.
        fwhm: Full width at half maximum of the line-spread function in training, Angstrom.
        n_parameters: Of the model.
        recipe: File of the recipe, relative to the repository.
        training_data: One line on the spectra and how many there are.
        parent: Checkpoint it started from; None = random weights.
        spectra_seen: Spectra used by the optimiser, repetitions counted.
        seed: Of the training.
        versions: Package -> version.
        repo: Optional. Id on the Hub of the repository the card is for.
        revision: Optional. What the blocks on how to use it pin: a commit or a tag; None = the branch main, with a
            word on how to pin.
        base_model: Optional. Hub id of the parent, if it is there: a local folder would be a dead link.
        base_model_revision: Commit of the parent; needed with `base_model`.
        datasets: Optional. Those on the Hub that it was trained on.
        test_dataset: Optional. The one on the Hub whose stars `results` are about; left out, the first of `datasets`.
        figures: Optional. (path relative to the card, what the figure shows), in order.
        snr_range: Optional. Lowest and highest signal-to-noise per pixel in training.
        resolving_power: Optional. Lowest and highest lambda / FWHM in training; None = that of `fwhm`.
        calibration: Optional. One sentence on how sigma was calibrated; None = it was not.
        surveys: Optional. Several surveys that it learned from, as many spectra of each, the one that `results` are
            about first; the card then speaks of each, and of `wavelength_range`, `fwhm` and the like no more.
        learned_ranges: Optional. The extractor's: label -> where spectra that had it lay in training, vacuum Angstrom.
        true_labels: Optional. The stars of this stage are synthetic, so that their labels are exact.
        ships_as: Optional. Name under which this model ships with the package, see `checkpoints.shipped`.
        survey: Optional. Of the real stars: a file of hub_cards/datasets, which tells whom to cite and what is weak; or
            a name of your own, and then `citations` and `weaknesses` are needed. Left out, it is none in stage 1, none
            with `datasets`, whose own cards tell it, and `miles` otherwise.
        citations: Optional. Whom to cite for the spectra and labels, beside those of `survey`.
        weaknesses: Optional. More known weaknesses, beside those of the labels of `survey`.
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
            "n_test_metal_poor", "label", "methods": {name: {"all", "metal_poor", "metal_rich"}}, "bins": {"spectrafm":
            {binned label: [bin]}}}`. The earlier stages: `{"protocol", "labels": {name: figures}, "bins": {name:
            {binned label: [bin]}}}`, and "split" if the stars are not those of the test split. Figures are those of
            `metrics.summarise`, bins those of `metrics.summarise_bins`.
        stage: `1-synthetic`, `2-observed`, `3-few-shot`, or the name of a stage of your own.
        facts: See `CardFacts`.

    Returns:
        YAML metadata and Markdown.

    Raises:
        ValueError: Nothing measured, a fact or figure missing, or a number that is not finite.
        jinja2.UndefinedError: Anything else that the template asks for is missing; the message names it.
    """
    _check_facts(facts)
    _check_results(results)
    environment = card_environment()
    environment.filters["figure"] = _figure
    low, high = facts["wavelength_range"]
    repo, revision = facts.get("repo"), facts.get("revision")
    known = STAGES.get(stage) or _own_stage(stage, facts)
    survey = _survey(facts, known)
    return environment.from_string(card_template()).render(
        card_data=_metadata(results, known, facts, survey).to_yaml(),
        stage=known,
        stages=list(STAGES),
        facts=facts,
        results=results,
        place=repo or (REPO_OR_FOLDER if facts.get("ships_as") else facts["folder"]),
        revision=revision or "main",
        pinned=repo is None or revision is not None,
        calibration=facts.get("calibration") or NOT_CALIBRATED,
        surveys=facts.get("surveys") or (),
        learned=_learned(facts),
        truth="true" if known.number == 1 or facts.get("true_labels") else "catalogue",
        ships_as=facts.get("ships_as"),
        snr_range=facts.get("snr_range"),
        resolving_power=facts.get("resolving_power") or (low / facts["fwhm"], high / facts["fwhm"]),
        base_model=facts.get("base_model"),
        datasets=facts.get("datasets") or (),
        figures=facts.get("figures") or (),
        survey=survey,
        citations=[*_about(survey, "citations"), *facts.get("citations", ())],
        weaknesses=[*_about(survey, "faults"), *facts.get("weaknesses", ())],
        asked=get_label(results["label"]) if results.get("methods") else None,
        labels=[
            {"name": name, "symbol": get_label(name).symbol, "unit": get_label(name).unit, "low": low, "high": high}
            for name, (low, high) in facts["labels"].items()
        ],
        methods=_method_rows(results),
        n_seeds=len(results.get("seeds", ())),
        per_label=[_label_row(get_label(name), figures) for name, figures in results.get("labels", {}).items()],
        bins=[{**_label_row(get_label(name)), "rows": _bin_rows(binned)} for name, binned in _bins(results).items()],
    )


def _learned(facts: CardFacts) -> str:
    """Which label was learned where, labels of the same place together; empty where it is not known of any."""
    together: dict[str, list[str]] = {}
    told = facts.get("learned_ranges", {})
    for name, ranges in sorted(told.items(), key=lambda one: LABELS.index(get_label(one[0]))):
        together.setdefault(spoken_ranges(ranges), []).append(get_label(name).symbol)
    return "; ".join(f"{', '.join(symbols)} from {where}" for where, symbols in together.items())


def _own_stage(name: str, facts: CardFacts) -> Stage:
    started = "fine-tuned from another" if facts["parent"] else "trained from random weights"
    what = f"A transformer that reads labels of stars from their spectra, {started}."
    return Stage(name, 0, what + (" In this stage it saw synthetic spectra alone." if facts.get("true_labels") else ""))


def eval_results_yaml(
    results: Mapping[str, Any],
    facts: CardFacts,
    dataset_id: str | None,
    dataset_revision: str | None = None,
    date: str | None = None,
) -> str | None:
    """The same figures as the Hub's newer `.eval_results/*.yaml`, one entry per label, subset of stars and figure.

    Args:
        results: As for `render_model_card`.
        facts: See `CardFacts`; its recipe and seed go into the notes.
        dataset_id: Hub id of the dataset whose stars were tested on; None = it is not on the Hub.
        dataset_revision: Its commit.
        date: Of the evaluation, ISO 8601; None = the Hub takes that of the commit.

    Returns:
        YAML; None where there is no dataset to name, or no star was measured.

    Raises:
        ValueError: A fact or figure is missing, a number is not finite, or an id is none.
    """
    _check_facts(facts)
    _check_results(results)
    if dataset_id is None:
        return None
    _check_repo("dataset_id", dataset_id)
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id,
            dataset_revision=dataset_revision,
            task_id="_".join([label.name, metric, *([] if subset == "all" else [subset])]),
            value=value,
            date=date,
            notes=f"{_metric_name(metric, label)} of {label.symbol}, {SUBSETS[subset]} "
            f"{results.get('split', 'test')} stars ({figures['n']}); recipe {facts['recipe']}, seed {facts['seed']}",
        )
        for label, subset, figures in _measured(results)
        for metric, value in _published(figures)
    ]
    return (
        yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True) if entries else None
    )


# ---------------------------------------------------------------- what is refused


def _check_facts(facts: CardFacts) -> None:
    """Refuse facts that would leave a hole in the card, or a link to nothing.

    Raises:
        ValueError: One is missing or unknown, not an id, or pins nothing; the message says which.
    """
    known = CardFacts.__required_keys__ | CardFacts.__optional_keys__
    if absent := sorted(CardFacts.__required_keys__ - facts.keys()):
        raise ValueError(f"a card needs the facts {', '.join(absent)} too; got {', '.join(facts)}.")
    for key in facts.keys() - known:
        meant = difflib.get_close_matches(key, known, n=1)
        raise ValueError(f"a card knows no fact {key!r}" + (f"; {meant[0]}?" if meant else "."))
    if facts.get("repo") is not None:
        _check_repo("repo", facts["repo"])
    if "base_model" in facts:
        _check_pinned("base_model", facts["base_model"], facts.get("base_model_revision"))
    tested_on = [facts["test_dataset"]] if facts.get("test_dataset") else []
    for dataset in (*facts.get("datasets", ()), *tested_on):
        _check_pinned("a dataset", dataset.get("id"), dataset.get("revision"))
    for path, caption in facts.get("figures", ()):
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or ":" in path or any(c.isspace() for c in path):
            raise ValueError(f"a figure must be a path beside the card, without spaces, got {path!r}.")
        if not caption.strip():
            raise ValueError(f"the figure {path} needs a caption: it is what those read who cannot see it.")


def _check_repo(what: str, repo: str | None) -> None:
    """Raises: ValueError: That is no id of the Hub."""
    try:
        validate_repo_id(repo or "")
    except HFValidationError as error:
        raise ValueError(f"{what} must be an id on the Hub, NAMESPACE/NAME, got {repo!r}: {error}") from error


def _check_pinned(what: str, repo: str | None, revision: str | None) -> None:
    """Raises: ValueError: No id of the Hub, or a revision that is missing or moves."""
    _check_repo(what, repo)
    if not (revision or "").strip() or revision in MOVING:
        raise ValueError(f"{what} {repo} needs the revision that was used, a commit or a tag; got {revision!r}.")


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


def _check_figures(where: str, figures: Mapping[str, Any], needed: frozenset[str] = Figures.__required_keys__) -> None:
    """All of `metrics.Figures` are there; None only where there is no star, or no sigma to cover with.

    Raises:
        ValueError: A figure is missing or not finite.
    """
    if absent := sorted(needed - figures.keys()):
        raise ValueError(f"{where}: no {', '.join(absent)} in the results; take them from metrics.summarise.")
    for key, value in figures.items():
        if not (value is None and (figures["n"] == 0 or key.startswith("coverage"))):
            finite(value, f"{where}, {key}: ")


# ---------------------------------------------------------------- metadata


def _measured(results: Mapping[str, Any]) -> Iterator[tuple[Label, str, Figures]]:
    """What is said of the model itself: label, subset of the stars tested on, figures; stars there are."""
    if results.get("methods"):
        for subset in SUBSETS:
            if results["methods"]["spectrafm"][subset]["n"] > 0:
                yield get_label(results["label"]), subset, results["methods"]["spectrafm"][subset]
    for name, figures in results.get("labels", {}).items():
        if figures["n"] > 0:
            yield get_label(name), "all", figures


def _published(figures: Figures) -> list[tuple[str, float]]:
    """Figure -> value to four decimals, of those that are known."""
    told: Mapping[str, Any] = figures
    return [(metric, round(float(told[metric]), 4)) for metric in PUBLISHED if told[metric] is not None]


def _metric_name(metric: str, label: Label) -> str:
    return PUBLISHED[metric] + ("" if metric.startswith("coverage") else f" [{label.unit}]")


def _metadata(
    results: Mapping[str, Any], stage: Stage, facts: CardFacts, survey: Mapping[str, Any] | None
) -> ModelCardData:
    """YAML head of the card, results as a model index included."""
    optional: dict[str, Any] = {}
    if "base_model" in facts:
        optional |= {"base_model": facts["base_model"], "base_model_relation": "finetune"}
    if facts.get("datasets"):
        optional["datasets"] = list(dict.fromkeys(dataset["id"] for dataset in facts["datasets"]))
    tested_on = facts.get("test_dataset") or next(iter(facts.get("datasets") or ()), None)
    stars = survey["pretty_name"] if survey else tested_on["id"] if tested_on else "Synthetic spectra"
    split = results.get("split", "test")
    return ModelCardData(
        model_name=facts["model_name"],
        license=facts["license"],
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=["astronomy", "stellar-spectra", "spectrafm"],
        eval_results=[
            EvalResult(
                task_type=PIPELINE_TAG,
                task_name=f"{label.symbol} from spectra",
                dataset_type=tested_on["id"] if tested_on else survey["name"] if survey else "synthetic",
                dataset_name=f"{stars}: {SUBSETS[subset]} {split} stars",
                # These keep labels and subsets apart: the model index merges what is equal.
                dataset_config=f"{label.name}_{subset}",
                dataset_split=split,
                dataset_revision=tested_on["revision"] if tested_on else None,
                metric_type=metric,
                metric_name=_metric_name(metric, label),
                metric_value=value,
            )
            for label, subset, figures in _measured(results)
            for metric, value in _published(figures)
        ]
        or None,
        **optional,
    )


def _survey(facts: CardFacts, stage: Stage) -> dict[str, Any] | None:
    """Name, citations and what is weak about the real stars; None where there are none, or their datasets tell it.

    Raises:
        ValueError: The survey is not in hub_cards/datasets, and the facts do not say those.
    """
    name = facts.get("survey", None if stage.number == 1 or facts.get("datasets") else "miles")
    if name is None:
        return None
    try:
        told = yaml.safe_load(card_template(f"datasets/{name}.yaml"))
    except FileNotFoundError:
        if absent := [key for key in ("citations", "weaknesses") if not facts.get(key)]:
            raise ValueError(
                f"hub_cards/datasets knows no survey {name!r}, so the card needs the facts {', '.join(absent)} too."
            ) from None
        return {"name": name, "pretty_name": name, "citations": [], "faults": []}
    return {"name": name, **{key: told[key] for key in ("pretty_name", "citations", "faults")}}


def _about(survey: Mapping[str, Any] | None, what: str) -> list[str]:
    """Citations or faults of a survey, under its name."""
    return [f"{survey['pretty_name']}: {text}" for text in survey[what]] if survey else []


# ---------------------------------------------------------------- tables


def _label_row(label: Label, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One label of a table; 1 K and 0.001 dex are the last digits that mean anything."""
    digits = "0f" if label.unit == "K" else "3f"
    return {
        "symbol": label.symbol,
        "unit": label.unit,
        "figures": figures,
        "format": f"%.{digits}",
        "signed": f"%+.{digits}",
    }


def _bins(results: Mapping[str, Any]) -> dict[str, Mapping[str, Sequence[BinFigures]]]:
    """Label -> binned label -> bins of the model of the card.

    Raises:
        ValueError: There are none, or a figure is missing or not finite.
    """
    told = results.get("bins", {})
    binned = {results["label"]: told.get("spectrafm")} if results.get("methods") else {}
    binned |= {name: told.get(name) for name in results.get("labels", {})}
    for name, parameters in binned.items():
        if parameters is None:
            raise ValueError(f"{name}: no bins in the results; take them from metrics.summarise_bins.")
        for parameter, bins in parameters.items():
            for one in bins:
                where = f"{name}, bin of {parameter} from {one.get('low')}"
                _check_figures(where, one, BinFigures.__required_keys__)
    return binned


def _bin_rows(binned: Mapping[str, Sequence[BinFigures]]) -> list[dict[str, Any]]:
    """One row per bin that has stars: which, and its figures."""
    return [
        {"bin": _bin_name(get_label(parameter), one["low"], one["high"]), "figures": one}
        for parameter, bins in binned.items()
        for one in bins
        if one["n"] > 0
    ]


def _bin_name(label: Label, low: float, high: float) -> str:
    """E.g. `[Fe/H] -2 to -1.5 dex`; the outermost bins are open, since no published label lies beyond."""
    first, last = BIN_EDGES[label.name][0], BIN_EDGES[label.name][-1]
    if low == first:
        return f"{label.symbol} < {high:g} {label.unit}"
    return (
        f"{label.symbol} >= {low:g} {label.unit}"
        if high == last
        else f"{label.symbol} {low:g} to {high:g} {label.unit}"
    )


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


def _figure(value: float | None, form: str) -> str:
    """A figure of `metrics.summarise`; None says that there was nothing to measure, which the reader is told."""
    if value is None:
        return "none"
    text = form % finite(value)
    return text if float(text) else form % 0.0  # not "-0"


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
