"""One page of YAML -> what a stage is to do: parent, data, labels, window, what moves, and `TrainingArguments`.

A key that nobody knows is refused with the nearest one that exists: a typo would otherwise train something else.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, PreTrainedConfig, TrainingArguments

from .checkpoints import located
from .configuration_spectrafm import SpectraFMConfig
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .pretraining import Contexts
from .synthesis.observing import ObservingConditions
from .synthesis.sampler import LabelSampler
from .synthesis.surveys import SURVEYS, SurveyConditions
from .tracking import PROJECT, default_report_to

logger = logging.getLogger(__name__)


@dataclass
class StageArguments:
    """What a recipe says beside `TrainingArguments`.

    Args:
        stage: Name of the stage and of its folder.
        n_spectra: Budget: spectra shown, real and replayed together. Never seconds, so that a run can be repeated.
        labels: Labels learned here, names of `labels.LABELS`; the model's others are left alone.
        window: Part of the spectrum shown, vacuum Angstrom [low, high].
        data: `synthetic` (drawn anew each time), `miles`, or `dataset`: one made by `spectrafm build`, streamed.
        dataset: Folder or Hub repository of it; its splits train and validation are used.
        dataset_config: Which of its configs; none = its default.
        dataset_revision: Of the repository; a branch or tag is pinned to the commit it is when the stage begins.
        true_labels: The dataset's labels are exact, because its stars are synthetic; `synthetic_label_error` is then
            their 1-sigma.
        shuffle_buffer: Rows among which the next one of the stream is drawn.
        model: Parent: a folder, a Hub repository, or a model that ships (`checkpoints.SHIPPED`); none = begin from
            random weights.
        model_revision: Of a Hub parent; pinned likewise.
        architecture: Arguments of `SpectraFMConfig`, when there is no parent.
        extractor: Arguments of `SpectraFMFeatureExtractor`, when there is no parent.
        optimizer: `adamw` (as `TrainingArguments.optim` has it), or `muon` for the matrices, see `optimisation`.
        attn_implementation: `sdpa` or `eager`; in training on a CPU eager is the faster.
        beside: Of `data: dataset`: a survey of `synthesis.surveys` whose stars are synthesised, one beside each
            streamed star, all on the model's grid; see `pretraining`. The recipe's `sampler` is not used then.
        contexts: Arguments of `pretraining.Contexts`: how much of those spectra is shown.
        conditions: Arguments of `SurveyConditions`: what streamed spectra go through on top of what they did.
        beside_conditions: The same for the stars beside them; `observing` is then what theory gets wrong.
        context: Tokens of a synthetic spectrum shown at once; none = the whole window.
        fwhm: Of the synthetic line-spread function, Angstrom.
        sampler: Arguments of `LabelSampler`.
        observing: Arguments of `ObservingConditions`.
        synthetic_label_error: 1-sigma given to synthetic labels, scaled units.
        replay: Fraction of synthetic spectra among real ones, against forgetting: 0, 0.25, 0.5 or 0.75.
        tie_labels: Relabel the replayed spectra to the real label scale, see `LabelTie`: `fit` = find it with this
            stage's stars, `parent` = the one the parent found; none = synthetic labels as they are.
        n_stars: Train on this many stars only, drawn by the seed; none = all of the training split.
        fe_h_above: And only on stars with [Fe/H] above, dex.
        observed_noise: 1-sigma of noise added to real spectra, relative to the flux.
        hidden_tokens: Largest fraction of tokens of a real spectrum hidden in training.
        readout: `solve` = first solve the labels' linear readouts exactly, see `few_shot.solve_readout`.
        n_anchors: Synthetic stars that hold the solved readout still.
        trainable: Beginnings of the names of parameters that move; none = all.
        lora: Arguments of peft's `LoraConfig`: low-rank adapters move instead, and are merged into the weights at the
            end. peft is an extra: `pip install spectrafm_hf[peft]`.
        cpu_threads: Of torch on a CPU. Batches this small gain little from a second one, lose much when it has to be
            waited for, and one makes the result independent of the machine's cores.
        n_held_out: Synthetic or streamed spectra by which the stage is judged and calibrated.
        validations: How often in the training the held-out spectra are looked at, for the log alone.
    """

    stage: str
    n_spectra: int
    labels: list[str]
    window: list[float]
    data: str = "synthetic"
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    true_labels: bool = False
    shuffle_buffer: int = 1000
    model: str | None = None
    model_revision: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    extractor: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    attn_implementation: str = "eager"
    beside: str | None = None
    contexts: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    beside_conditions: dict[str, Any] = field(default_factory=dict)
    context: int | None = None
    fwhm: float = 2.5
    sampler: dict[str, Any] = field(default_factory=dict)
    observing: dict[str, Any] = field(default_factory=dict)
    synthetic_label_error: float = 0.03
    replay: float = 0.0
    tie_labels: str | None = None
    n_stars: int | None = None
    fe_h_above: float | None = None
    observed_noise: float = 0.01
    hidden_tokens: float = 0.0
    readout: str | None = None
    n_anchors: int = 600
    trainable: list[str] | None = None
    lora: dict[str, Any] = field(default_factory=dict)
    cpu_threads: int = 1
    n_held_out: int = 500
    validations: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        if self.data not in ("synthetic", "miles", "dataset"):
            raise ValueError(f"data must be synthetic, miles or dataset, got {self.data!r}.")
        if (self.data == "dataset") != (self.dataset is not None):
            raise ValueError("`data: dataset` and `dataset:` (a folder or Hub repository) belong together.")
        if self.data != "dataset" and (self.dataset_config or self.dataset_revision or self.true_labels):
            raise ValueError("dataset_config, dataset_revision and true_labels belong to `data: dataset`.")
        if self.beside is not None and (self.data != "dataset" or self.beside not in SURVEYS):
            raise ValueError(
                f"beside belongs to `data: dataset` and is one of {', '.join(SURVEYS)}, got {self.beside!r} with "
                f"data {self.data!r}."
            )
        if self.beside is None and (self.contexts or self.conditions or self.beside_conditions):
            raise ValueError("contexts, conditions and beside_conditions belong to a recipe with `beside:`.")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer must be adamw or muon, got {self.optimizer!r}.")
        if self.n_held_out < 2:
            raise ValueError(f"n_held_out must be at least 2 spectra, got {self.n_held_out}.")
        if self.validations < 0 or self.shuffle_buffer < 0:
            raise ValueError(f"validations and shuffle_buffer must not be negative, got {self.validations}.")
        if self.n_spectra < 1:
            raise ValueError(f"n_spectra must be at least 1 spectrum, got {self.n_spectra}.")
        if len(self.window) != 2 or not 0 < self.window[0] < self.window[1]:
            raise ValueError(f"window must be [low, high] in vacuum Angstrom, got {self.window}.")
        if self.replay not in (0.0, 0.25, 0.5, 0.75):
            raise ValueError(f"replay must be 0, 0.25, 0.5 or 0.75 of the spectra, got {self.replay:g}.")
        if self.readout not in (None, "solve"):
            raise ValueError(f"readout must be solve or left out, got {self.readout!r}.")
        if self.tie_labels not in (None, "fit", "parent"):
            raise ValueError(f"tie_labels must be fit, parent or left out, got {self.tie_labels!r}.")
        if self.n_stars is not None and self.n_stars < 1:
            raise ValueError(f"n_stars must be at least 1 star, got {self.n_stars}.")
        if self.lora and self.trainable is not None:
            raise ValueError("lora and trainable both say what moves; give one of them.")
        if self.model is None and (self.readout or self.trainable or self.lora or self.tie_labels):
            raise ValueError("readout, trainable, lora and tie_labels build on a parent; name it with `model:`.")
        if self.data != "miles" and (self.replay or self.n_stars or self.readout or self.tie_labels):
            raise ValueError("replay, n_stars, readout and tie_labels belong to stages on real stars (data: miles).")


KINDS: Mapping[str, Any] = {
    "str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict,
}  # fmt: skip
"""How the type of a recipe's value is written in `StageArguments` -> what YAML makes of it."""


def check_types(stage: StageArguments) -> None:
    """Refuse a recipe's value of another type than its key wants.

    Raises:
        ValueError: Names the key, what it wants and what came.
    """
    for key, annotation in StageArguments.__annotations__.items():
        kind, value = annotation.removesuffix(" | None"), getattr(stage, key)
        if value is None and kind != annotation:
            continue
        outer, _, inner = kind.rstrip("]").partition("[")
        parts = [(outer, value)]
        if outer == "list" and isinstance(value, list):
            parts += [(inner, each) for each in value]
        if any(not isinstance(each, KINDS[name]) or isinstance(each, bool) != (name == "bool") for name, each in parts):
            raise ValueError(f"{key} must be {kind}, got {value!r}; see the recipes in training/recipes.")


# ---------------------------------------------------------------- recipes


def recipe_folder() -> Path:
    """Where the recipes lie: beside the code in an installed wheel, under training/ in a checkout."""
    installed = Path(__file__).with_name("recipes")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "training" / "recipes"


def _names(kind: type) -> set[str]:
    return {f.name for f in fields(kind) if f.init}


SECTIONS: Mapping[str, set[str]] = {
    "architecture": _names(SpectraFMConfig) - _names(PreTrainedConfig),
    "extractor": set(inspect.signature(SpectraFMFeatureExtractor.__init__).parameters) - {"self", "kwargs"},
    "sampler": _names(LabelSampler),
    "observing": _names(ObservingConditions),
    "contexts": _names(Contexts),
    "conditions": _names(SurveyConditions),
    "beside_conditions": _names(SurveyConditions),
}
"""Keys that the nested parts of a recipe may have."""


def check_keys(where: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Refuse a key that nobody knows.

    Raises:
        ValueError: Names the key and the nearest one that exists.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(f"{where} has an unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "."))


def has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def has_bfloat16() -> bool:
    """Is bfloat16 what to train in here? Processors without instructions for it are 70 times slower than in float32."""
    return has_accelerator() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def read_recipe(path: str | Path, **changes: Any) -> tuple[StageArguments, TrainingArguments]:
    """Read one page of YAML; `changes` go over it.

    Raises:
        ValueError: No such file, not YAML, a key that nobody knows (with the nearest one that exists), a wrong value.
    """
    path = Path(path)
    if not path.is_file():
        nearby = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ValueError(f"no recipe at {path}" + (f"; that folder has {', '.join(nearby)}." if nearby else "."))
    try:
        recipe = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {path} must hold `key: value` lines, got {type(recipe).__name__}.")
    recipe |= changes
    if isinstance(recipe.get("model"), str):
        recipe["model"] = located(recipe["model"])
    check_keys(f"recipe {path.name}", recipe, _names(StageArguments) | _names(TrainingArguments))
    for key in ("max_steps", "num_train_epochs"):
        if key in recipe:
            raise ValueError(
                f"recipe {path.name}: the budget is n_spectra, each shown once; {key} is not for you to set."
            )
    for key in ("hub_token", "push_to_hub"):
        if recipe.get(key):  # a Trainer writes its arguments into every checkpoint, the token in clear
            raise ValueError(
                f"recipe {path.name}: {key} would end up in the checkpoints; log in with `hf auth login` (or set "
                "HF_TOKEN) and publish with --push-to NAMESPACE."
            )
    for section, wanted in SECTIONS.items():
        if not isinstance(recipe.get(section) or {}, dict):
            raise ValueError(f"recipe {path.name}: {section} must hold `key: value` lines, got {recipe[section]!r}.")
        check_keys(f"recipe {path.name}, {section}:", recipe.get(section) or {}, wanted)
    missing = [f.name for f in fields(StageArguments)[:4] if f.name not in recipe]
    if missing:
        raise ValueError(f"recipe {path.name} lacks {', '.join(missing)}.")
    for key in ("n_spectra", "learning_rate", "weight_decay", "warmup_steps"):
        if isinstance(recipe.get(key), str):
            raise ValueError(
                f"recipe {path.name}: {key} must be a number, got text {recipe[key]!r}; YAML wants 1.0e-4, not 1e-4."
            )
    recipe = {
        "use_cpu": not has_accelerator(), "output_dir": f"runs/{recipe['stage']}", "report_to": default_report_to(),
        "project": PROJECT,
    } | recipe  # fmt: skip
    if recipe.get("bf16") and not has_bfloat16():
        logger.warning("this processor has no bfloat16 instructions: training in float32, which is slower")
        recipe["bf16"] = False
    try:
        parser = HfArgumentParser([StageArguments, TrainingArguments])  # type: ignore[list-item]
        stage, training = parser.parse_dict(recipe)
        LabelSampler(**stage.sampler)
        ObservingConditions(**stage.observing)
        Contexts(**stage.contexts)
        for conditions in (stage.conditions, stage.beside_conditions):
            SurveyConditions(**conditions)
    except (TypeError, ValueError) as error:
        raise ValueError(f"recipe {path.name}: {' '.join(str(error).split())}") from error
    if not 0 <= training.seed < 2**32 - 1:
        raise ValueError(f"recipe {path.name}: seed must lie in 0 to 2**32 - 2, got {training.seed}.")
    return stage, training
