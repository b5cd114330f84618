"""One stage of the transfer, from one recipe: parent -> data -> Trainer -> a folder that `AutoModel` loads.

A stage that is done is not done again unless its recipe, its seed or its parent changed; a killed one goes on from its
last checkpoint, and ends with the weights it would have had: every training row is a function of (seed, row number).
"""

from __future__ import annotations

import difflib
import gc
import hashlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from threadpoolctl import threadpool_limits
from torch.utils.data import Dataset
from transformers import (
    HfArgumentParser,
    PreTrainedConfig,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import cached_file

from .builders.libraries import load_library
from .builders.parquet_layout import whole_file
from .collation import Interleaved, ObservedSpectra, SpectrumCollator, SyntheticSpectra
from .configuration_spectrafm import SpectraFMConfig
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .few_shot import draw_stars, solve_readout
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .prediction import Observed, predict_on_grid
from .spectra import Spectrum
from .synthesis.label_tie import LabelTie
from .synthesis.observing import ObservingConditions
from .synthesis.sampler import LabelSampler

logger = logging.getLogger(__name__)

DONE_FILE, TIE_FILE, BEGUN_FILE = "stage.json", "label_tie.json", "begun.txt"
QUIETLY: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}
PACKAGES = ("spectrafm_hf", "transformers", "torch", "accelerate", "safetensors", "numpy")


@dataclass
class StageArguments:
    """What a recipe says beside `TrainingArguments`.

    Args:
        stage: Name of the stage and of its folder.
        n_spectra: Budget: spectra shown, real and replayed together. Never seconds, so that a run can be repeated.
        labels: Labels learned here, names of `labels.LABELS`; the model's others are left alone.
        window: Part of the spectrum shown, vacuum Angstrom [low, high].
        data: `synthetic` or `miles`.
        model: Parent: a folder or a Hub repository; none = begin from random weights.
        model_revision: Of a Hub parent.
        architecture: Arguments of `SpectraFMConfig`, when there is no parent.
        extractor: Arguments of `SpectraFMFeatureExtractor`, when there is no parent.
        attn_implementation: `sdpa` or `eager`; in training on a CPU eager is the faster.
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
    """

    stage: str
    n_spectra: int
    labels: list[str]
    window: list[float]
    data: str = "synthetic"
    model: str | None = None
    model_revision: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    extractor: dict[str, Any] = field(default_factory=dict)
    attn_implementation: str = "eager"
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

    def __post_init__(self) -> None:
        check_types(self)
        if self.data not in ("synthetic", "miles"):
            raise ValueError(f"data must be synthetic or miles, got {self.data!r}.")
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
        if self.data == "synthetic" and (self.replay or self.n_stars or self.readout):
            raise ValueError("replay, n_stars and readout belong to stages on real stars (data: miles).")


KINDS: Mapping[str, Any] = {"str": str, "int": int, "float": (int, float), "list": list, "dict": dict}
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
        if any(not isinstance(each, KINDS[name]) or isinstance(each, bool) for name, each in parts):
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
    check_keys(f"recipe {path.name}", recipe, _names(StageArguments) | _names(TrainingArguments))
    for key in ("max_steps", "num_train_epochs"):
        if key in recipe:
            raise ValueError(
                f"recipe {path.name}: the budget is n_spectra, each shown once; {key} is not for you to set."
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
    accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    recipe = {"use_cpu": not accelerator, "output_dir": f"runs/{recipe['stage']}"} | recipe
    if recipe.get("bf16") and not accelerator and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logger.warning("this processor has no bfloat16 instructions: training in float32, which is slower")
        recipe["bf16"] = False
    try:
        parser = HfArgumentParser([StageArguments, TrainingArguments])  # type: ignore[list-item]
        stage, training = parser.parse_dict(recipe)
        LabelSampler(**stage.sampler)
        ObservingConditions(**stage.observing)
    except (TypeError, ValueError) as error:
        raise ValueError(f"recipe {path.name}: {' '.join(str(error).split())}") from error
    if not 0 <= training.seed < 2**32 - 1:
        raise ValueError(f"recipe {path.name}: seed must lie in 0 to 2**32 - 2, got {training.seed}.")
    return stage, training


def fingerprint(stage: StageArguments, training: TrainingArguments) -> str:
    """SHA-256 of all that decides the outcome: recipe, seed, parent. Folders and logging do not."""
    parent = None
    if stage.model is not None:
        record, weights = read_record(Path(stage.model)), Path(stage.model) / "model.safetensors"
        if record is not None:
            parent = record["fingerprint"]
        elif weights.is_file():
            parent = hashlib.sha256(weights.read_bytes()).hexdigest()
        else:
            parent = [stage.model, stage.model_revision]
    decisive = (
        "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
        "adam_epsilon", "max_grad_norm", "lr_scheduler_kwargs", "per_device_train_batch_size", "max_steps", "optim",
        "gradient_accumulation_steps", "bf16", "fp16", "seed", "data_seed", "dataloader_drop_last",
    )  # fmt: skip
    told = asdict(stage) | {key: getattr(training, key) for key in decisive}
    told |= {"model": parent, "model_revision": None, "spectra_per_step": spectra_per_step(training)}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """stage.json of a folder whose stage is done; None if it is not, or if what it left is damaged."""
    try:
        record = json.loads((folder / DONE_FILE).read_text())
    except (OSError, ValueError):
        return None
    whole = all((folder / name).is_file() for name in ("model.safetensors", "config.json", "preprocessor_config.json"))
    return record if whole and isinstance(record, dict) and "fingerprint" in record else None


# ---------------------------------------------------------------- parts of a stage


def new_extractor(stage: StageArguments, seed: int) -> SpectraFMFeatureExtractor:
    """The extractor of a model without a parent; mean and spread of each pixel from 2,000 synthetic spectra."""
    extractor = SpectraFMFeatureExtractor(stage.labels, wavelength_range=stage.window, **stage.extractor)
    stars = SyntheticSpectra(extractor, 2000, seed=seed, **synthesis(stage))
    _, flux, _ = stars.unobserved(range(len(stars)))
    extractor.fit_flux_norms(flux, np.broadcast_to(extractor.in_range, flux.shape))
    return extractor


def new_model(stage: StageArguments, extractor: SpectraFMFeatureExtractor) -> SpectraFMForLabelPrediction:
    try:
        config = SpectraFMConfig(
            label_names=extractor.label_names, patch_size=extractor.patch_size, **stage.architecture
        )
    except StrictDataclassError as error:
        raise ValueError(f"architecture: {' '.join(str(error).split())}") from error
    return SpectraFMForLabelPrediction(config)


def load_parent(stage: StageArguments) -> tuple[SpectraFMForLabelPrediction, SpectraFMFeatureExtractor]:
    """The parent's model and extractor.

    Raises:
        ValueError: The folder or repository does not hold a SpectraFM model.
    """
    name, revision = str(stage.model), stage.model_revision or "main"
    try:
        model = SpectraFMForLabelPrediction.from_pretrained(name, revision=revision, use_safetensors=True)
        extractor = SpectraFMFeatureExtractor.from_pretrained(name, revision=revision)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the parent {name} is neither a folder with a SpectraFM model nor a repository that can be reached; run "
            "the stage before this one first, or correct `model:` in the recipe "
            f"({' '.join(str(error).split())[:200]})."
        ) from error
    if unknown := set(stage.labels) - set(extractor.label_names):
        raise ValueError(
            f"the parent {name} predicts {', '.join(extractor.label_names)}, but the recipe asks it to learn "
            f"{', '.join(sorted(unknown))}; correct `labels:`, or begin without a parent."
        )
    return model, extractor


def choose_stars(stage: StageArguments, seed: int) -> list[Spectrum]:
    """The stage's training stars: all of the training split, or the few drawn by the seed."""
    stars = load_library(stage.data, split="train").spectra
    if stage.n_stars is not None:
        return draw_stars(stars, stage.n_stars, lowest_fe_h(stage), seed)
    return [star for star in stars if star.labels["fe_h"] > lowest_fe_h(stage)]


def lowest_fe_h(stage: StageArguments) -> float:
    """The recipe's limit on [Fe/H], dex; minus infinity if it sets none."""
    return -np.inf if stage.fe_h_above is None else stage.fe_h_above


def only_learned(stage: StageArguments, names: list[str], labels: np.ndarray) -> np.ndarray:
    """Labels that the stage does not learn become missing."""
    return np.where(np.isin(names, stage.labels), labels, np.nan)


class StageProgress(ProgressCallback):
    """One bar per stage, in spectra, with the loss beside it."""

    def __init__(self, name: str, spectra_per_step: int):
        super().__init__()
        self.name, self.spectra_per_step = name, spectra_per_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)
            self.training_bar.unit, self.training_bar.unit_scale = " spectra", self.spectra_per_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f} nats", refresh=False)


def spectra_per_step(training: TrainingArguments) -> int:
    """Spectra behind one step of the optimiser, over all processes."""
    return training.train_batch_size * training.gradient_accumulation_steps * training.world_size


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; trainer_state.json is written last."""
    complete = []
    for candidate in folder.glob("checkpoint-*"):
        try:
            complete.append((json.loads((candidate / "trainer_state.json").read_text())["global_step"], candidate))
        except (OSError, ValueError, KeyError):
            logger.info("ignoring %s: it was not finished", candidate.name)
    return max(complete)[1] if complete else None


@contextmanager
def few_threads(cpu_threads: int = 1) -> Iterator[None]:
    """Torch on `cpu_threads`, NumPy's linear algebra on one: busily waiting pools take the cores from each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(cpu_threads)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def train(
    model: torch.nn.Module,
    extractor: SpectraFMFeatureExtractor,
    rows: Dataset,
    training: TrainingArguments,
    name: str,
    checkpoint: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    cpu_threads: int = 1,
) -> list[dict[str, float]]:
    """Show every row once with a Hugging Face `Trainer`; returns its log history."""
    training.num_train_epochs, training.remove_unused_columns = 1, False
    training.label_names = ["labels", "label_errors"]
    trainer = Trainer(
        model=model, args=training, train_dataset=rows, data_collator=SpectrumCollator(extractor),
        processing_class=extractor, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.remove_callback(ProgressCallback)
    if not training.disable_tqdm:
        trainer.add_callback(StageProgress(name, spectra_per_step(training)))
    with few_threads(cpu_threads):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state.log_history


def leave_process_group() -> None:
    """The last thing that one process of several does.

    A group's own thread frees the tensors it was given, and aborts a Python that is finalising by then ("terminate
    called without an active exception"). What still holds the group - a `Trainer` is a cycle of references - keeps that
    thread alive, so it goes first.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


# ---------------------------------------------------------------- the stage


def run_stage(stage: StageArguments, training: TrainingArguments, again: bool = False) -> Path:
    """Run one stage, or find it done.

    Args:
        stage, training: From `read_recipe`; `training.output_dir` is the stage's folder.
        again: Repeat it although it is done.

    Returns:
        The folder: model.safetensors, config.json, preprocessor_config.json, stage.json, and label_tie.json if labels
        were tied.

    Raises:
        ValueError: See `read_recipe`, `load_parent`, `few_shot.draw_stars`.
        OSError: The folder cannot be written.
    """
    folder, wanted = Path(str(training.output_dir)), fingerprint(stage, training)
    with training.main_process_first(desc="clearing the folder"):
        if is_done(folder, wanted, again, begin=training.process_index == 0):
            logger.info("%s is done already (%s)", stage.stage, folder)
            return folder

    set_seed(training.seed)
    if stage.model is None:
        extractor = new_extractor(stage, training.seed)
        model = new_model(stage, extractor)
    else:
        model, extractor = load_parent(stage)
    model.set_attn_implementation(stage.attn_implementation)

    if stage.data == "synthetic":
        tie: LabelTie | None = None
        facts: dict[str, Any] = {}
        rows: Dataset = SyntheticSpectra(
            extractor, stage.n_spectra, training.seed, context=stage.context, window=stage.window, **synthesis(stage)
        )
    else:
        stars = Observed.from_spectra(choose_stars(stage, training.seed), extractor, stage.window)
        learned = only_learned(stage, extractor.label_names, stars.labels)
        facts = {"stars": stars.star_ids}
        tie = find_tie(stage, model, extractor, stars)
        if stage.readout == "solve":
            facts["readout"] = solve_readouts(model, extractor, stars, learned, stage, training.seed)
        rows = observed_rows(stage, extractor, stars, learned, tie, training.seed)

    moving = choose_parameters(model, stage)
    with naming_a_full_disk(folder):
        history = train(
            moving, extractor, rows, training, stage.stage, last_checkpoint(folder), cpu_threads=stage.cpu_threads
        )

        if training.process_index == 0:
            model = moving.merge_and_unload() if stage.lora else model  # type: ignore[operator]
            model.set_attn_implementation("sdpa")
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            model.save_pretrained(folder)
            extractor.save_pretrained(folder)
            if tie is not None:
                tie.save(folder / TIE_FILE)
            finish(folder, stage, training, wanted, history, facts)
    with training.main_process_first(desc="saving"):  # the other processes wait for what the first one saves
        return folder


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Every library says "no space left" in its own way, some in none.

    Raises:
        OSError: Something went wrong, and there is no room for another checkpoint.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free / 1e6
        if free > 50:
            raise
        raise OSError(
            f"no space left in {folder} ({free:.0f} MB free, a stage needs about 100 MB); free some and run the same "
            "command again, it goes on from its last checkpoint."
        ) from error


def is_done(folder: Path, wanted: str, again: bool, begin: bool) -> bool:
    """Whether the stage is done with this fingerprint; if not and `begin`, what another recipe left is removed.

    Raises:
        OSError: The folder cannot be written.
    """
    check_writable(folder)
    record = read_record(folder)
    if record is not None and record["fingerprint"] == wanted and not again:
        return True
    begun = folder / BEGUN_FILE
    if begin and (again or not begun.is_file() or begun.read_text() != wanted):
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        for name in (DONE_FILE, TIE_FILE):
            (folder / name).unlink(missing_ok=True)
        begun.write_text(wanted)
    return False


def synthesis(stage: StageArguments) -> dict[str, Any]:
    """How the recipe wants its synthetic stars drawn and observed: arguments of `SyntheticSpectra`."""
    return {
        "fwhm": stage.fwhm,
        "sampler": LabelSampler(**stage.sampler),
        "conditions": ObservingConditions(**stage.observing),
        "label_error": stage.synthetic_label_error,
    }


def find_tie(
    stage: StageArguments, model: SpectraFMForLabelPrediction, extractor: SpectraFMFeatureExtractor, stars: Observed
) -> LabelTie | None:
    """The label tie the recipe asks for: none, the parent's, or one fitted to this stage's stars.

    Raises:
        ValueError: The parent has none; or see `LabelTie.fit`.
    """
    if stage.tie_labels == "parent":
        path = Path(str(stage.model)) / TIE_FILE
        if not path.is_file():
            path = Path(
                cached_file(str(stage.model), TIE_FILE, revision=stage.model_revision or "main", **QUIETLY) or ""
            )
        if not path.is_file():
            raise ValueError(f"tie_labels: parent, but {stage.model} has no {TIE_FILE}; tie them in the stage before.")
        return LabelTie.load(path)
    if stage.tie_labels == "fit":
        as_read = predict_on_grid(model, extractor, stars.flux, stars.good).mean
        scale = extractor.label_center, extractor.label_scale
        return LabelTie.fit(extractor.label_names, *scale, as_read, stars.labels)
    return None


def observed_rows(
    stage: StageArguments,
    extractor: SpectraFMFeatureExtractor,
    stars: Observed,
    learned: np.ndarray,
    tie: LabelTie | None,
    seed: int,
) -> Dataset:
    """Real spectra with the labels learned from them, shape (n_stars, n_labels), and replayed synthetic ones."""
    real = ObservedSpectra(
        extractor, stars.flux, stars.good, learned, stars.label_errors, stage.n_spectra, seed,
        noise=stage.observed_noise, missing_tokens=stage.hidden_tokens,
    )  # fmt: skip
    if not stage.replay:
        return real
    # In the few-shot stage the replay shows what the stage sees; before, it keeps the whole range alive.
    window = stage.window if stage.n_stars else None
    replayed = SyntheticSpectra(
        extractor, stage.n_spectra, seed + 1, context=stage.context, window=window, relabel=tie, learned=stage.labels,
        **synthesis(stage),
    )  # fmt: skip
    return Interleaved(real, replayed, stage.n_spectra, n_first=round(4 * (1 - stage.replay)), period=4)


def solve_readouts(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    observed: Observed,
    learned: np.ndarray,
    stage: StageArguments,
    seed: int,
) -> dict[str, Any]:
    """Solve the mean readout of each learned label on frozen features, in place; returns what was chosen."""
    answer = predict_on_grid(model, extractor, observed.flux, observed.good)
    anchors = SyntheticSpectra(extractor, stage.n_anchors, seed + 2, window=stage.window, **synthesis(stage))
    _, flux, good, _ = anchors.synthesize(range(len(anchors)))
    anchor_features = predict_on_grid(model, extractor, flux, good).features
    chosen = {}
    for column, name in enumerate(extractor.label_names):
        measured = np.isfinite(learned[:, column])
        if not measured.any():
            continue
        scaled = (learned[:, column] - extractor.label_center[column]) / extractor.label_scale[column]
        correction = solve_readout(
            answer.features[measured, column],
            (scaled - answer.scaled_mean[:, column])[measured],
            anchor_features[:, column],
        )
        with torch.no_grad():
            model.head.mean_weight[column] += torch.from_numpy(correction.weight).to(model.head.mean_weight)
            model.head.mean_bias[column] += correction.bias
        unit = extractor.label_scale[column]
        chosen[name] = {
            "strength": correction.strength,
            "leave_one_out_rmse": {f"{s:g}": error * unit for s, error in correction.leave_one_out.items()},
        }
    return chosen


def choose_parameters(model: SpectraFMForLabelPrediction, stage: StageArguments) -> torch.nn.Module:
    """The model with only the recipe's parameters free: all, those named by `trainable`, or adapters of `lora`.

    Raises:
        ValueError: `trainable` matches no parameter, or `lora` is not what peft understands, or peft is not installed.
    """
    if stage.lora:
        try:
            from peft import LoraConfig, get_peft_model

            return get_peft_model(model, LoraConfig(**stage.lora))
        except ImportError as error:
            raise ValueError("lora in a recipe needs peft: pip install 'spectrafm_hf[peft]'.") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"lora: {error}") from error
    if stage.trainable is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(stage.trainable)))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            names = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
            raise ValueError(f"trainable {stage.trainable} matches no parameter; they begin with {', '.join(names)}.")
    return model


def check_writable(folder: Path) -> None:
    """Make the folder and try it, before hours are spent.

    Raises:
        OSError: It cannot be written; the message says which folder and why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("can be written")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"the folder {folder} cannot be written ({error.strerror}); choose another one with --output."
        ) from error


def finish(
    folder: Path,
    stage: StageArguments,
    training: TrainingArguments,
    wanted: str,
    history: list[dict[str, float]],
    facts: Mapping[str, Any],
) -> None:
    """Write stage.json, the last thing a stage does, and drop the checkpoints."""
    curve = [
        {"spectra": round(entry["step"] * spectra_per_step(training)), "loss": entry["loss"]}
        for entry in history
        if "loss" in entry
    ]
    record = {
        "stage": stage.stage,
        "fingerprint": wanted,
        "recipe": asdict(stage) | {"model": None if stage.model is None else Path(stage.model).name},
        "learning_rate": training.learning_rate,
        "batch_size": training.train_batch_size,
        "seed": training.seed,
        "learning_curve": curve,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        **facts,
    }
    with whole_file(folder / DONE_FILE) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / BEGUN_FILE).unlink(missing_ok=True)
