"""One stage of the transfer, from one recipe: parent -> data -> Trainer -> a folder that `AutoModel` loads.

A stage that is done is not done again unless its recipe, its seed or its parent changed; a killed one goes on from its
last checkpoint, and ends with the weights it would have had: every training row is a function of (seed, row number).
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from threadpoolctl import threadpool_limits
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from .applicability import ranges_of_labels
from .builders.parquet_layout import whole_file, write_json
from .collation import SpectrumCollator, SyntheticSpectra
from .configuration_spectrafm import SpectraFMConfig
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .few_shot import solve_readout
from .hub import PUSHED_FILE, HubError, fetch, load_pretrained, read_pushed, revision_of
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .optimisation import MuonAndAdamW
from .prediction import Observed, predict_on_grid
from .recipe import StageArguments
from .stage_data import (
    HeldOut,
    Streamed,
    choose_stars,
    fit_to_dataset,
    fit_to_survey,
    held_out,
    judge,
    observed_rows,
    only_learned,
    open_dataset,
    streamed_rows,
    synthesis,
    told_as,
    training_facts,
)
from .synthesis.cannon import LABEL_NAMES as CANNON_LABELS
from .synthesis.label_tie import LabelTie
from .synthesis.surveys import SURVEYS
from .tracking import Throughput, ValidationScatter, run_name, track

logger = logging.getLogger(__name__)

DONE_FILE, TIE_FILE, BEGUN_FILE, RESULTS_FILE = "stage.json", "label_tie.json", "begun.json", "results.json"
N_WATCHED = 500
"""Held-out spectra looked at while a stage trains."""
PACKAGES = (
    "spectrafm_hf", "transformers", "torch", "accelerate", "datasets", "huggingface_hub", "safetensors", "numpy",
)  # fmt: skip


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
    if stage.dataset is not None:
        manifest = Path(stage.dataset) / "manifest.json"
        content = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else stage.dataset
        told |= {"dataset": content, "dataloader_num_workers": training.dataloader_num_workers}  # they share out shards
    told |= {"model": parent, "model_revision": None, "spectra_per_step": spectra_per_step(training), "validations": 0}
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


def new_extractor(stage: StageArguments, dataset: Streamed | None, seed: int) -> SpectraFMFeatureExtractor:
    """The extractor of a model without a parent; mean and spread of each pixel from 2,000 of its spectra."""
    extractor = SpectraFMFeatureExtractor(stage.labels, wavelength_range=stage.window, **stage.extractor)
    if dataset is not None:
        fit_to_dataset(extractor, dataset)
        if stage.beside is not None:
            fit_to_survey(extractor, SURVEYS[stage.beside], seed)
        return extractor
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
    """The parent's model and extractor, without the parent's recalibration.

    Raises:
        ValueError: The folder or repository does not hold a SpectraFM model.
    """
    name = str(stage.model)
    try:
        model, extractor = load_pretrained(name, stage.model_revision)
    except (OSError, ValueError) as error:
        raise no_parent(stage, error) from error
    if unknown := set(stage.labels) - set(extractor.label_names):
        raise ValueError(
            f"the parent {name} predicts {', '.join(extractor.label_names)}, but the recipe asks it to learn "
            f"{', '.join(sorted(unknown))}; correct `labels:`, or begin without a parent."
        )
    extractor.recalibration = None  # it was fitted to the parent's answers
    return model, extractor


class StageProgress(ProgressCallback):
    """One bar per stage, in spectra, with the loss and the scatter of the labels on held-out spectra beside it."""

    def __init__(self, name: str, spectra_per_step: int):
        super().__init__()
        self.name, self.spectra_per_step = name, spectra_per_step
        self.said: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)
            self.training_bar.unit, self.training_bar.unit_scale = " spectra", self.spectra_per_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.said["loss"] = f"loss {float(logs['loss']):.3f} nats"
        for key, value in logs.items():
            if "_scatter_" in key:
                label, unit = key.removeprefix("validation_").split("_scatter_")
                self.said[label] = f"{label} {value:.3g} {unit}"
        self.training_bar.set_postfix_str(", ".join(self.said.values()), refresh=False)


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
    rows: Dataset | IterableDataset,
    training: TrainingArguments,
    name: str,
    checkpoint: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    cpu_threads: int = 1,
    n_spectra: int | None = None,
    watching: Throughput | None = None,
    optimizer: str = "adamw",
) -> list[dict[str, float]]:
    """Show every row once, or `n_spectra` of an endless stream, with a Hugging Face `Trainer`.

    Returns:
        The `Trainer`'s log history.
    """
    training.num_train_epochs, training.remove_unused_columns = 1, False
    if isinstance(rows, IterableDataset):
        if n_spectra is None:
            raise ValueError("a stream has no end: say how many of its spectra are to be shown (n_spectra).")
        training.max_steps = max(n_spectra // spectra_per_step(training), 1)
        # Every process reads its own shards; else the first one reads all of them for all.
        training.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
    training.label_names = ["labels", "label_errors"]
    trainer = Trainer(
        model=model, args=training, train_dataset=rows, data_collator=SpectrumCollator(extractor),
        processing_class=extractor, callbacks=list(callbacks), optimizers=(muon(model, training, optimizer), None),
    )  # fmt: skip
    track(trainer, *([Throughput()] if watching is None else [watching]))
    trainer.remove_callback(ProgressCallback)
    if not training.disable_tqdm:
        trainer.add_callback(StageProgress(name, spectra_per_step(training)))
    with few_threads(cpu_threads):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state.log_history


def muon(model: torch.nn.Module, training: TrainingArguments, optimizer: str) -> MuonAndAdamW | None:
    """The optimiser of that name; None = the one that `Trainer` makes itself."""
    if optimizer != "muon":
        return None
    betas = (training.adam_beta1, training.adam_beta2)
    return MuonAndAdamW(model, training.learning_rate, training.weight_decay, betas, training.adam_epsilon)


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
    folder = Path(str(training.output_dir))
    stage, wanted, done = begin(stage, training, again)
    if done:
        logger.info("%s is done already (%s)", stage.stage, folder)
        return folder

    if training.run_name is None and training.process_index == 0:  # on other nodes the folder may not be there
        training.run_name = run_name(stage.stage, training.seed, (folder / BEGUN_FILE).stat().st_mtime)
    set_seed(training.seed)
    dataset = open_dataset(stage)
    if stage.model is None:
        extractor = new_extractor(stage, dataset, training.seed)
        model = new_model(stage, extractor)
    else:
        model, extractor = load_parent(stage)
    model.set_attn_implementation(stage.attn_implementation)

    rows, tie, facts = rows_to_learn(stage, dataset, training, model, extractor)
    judged_by = held_out(stage, dataset, extractor)
    n_steps = max(stage.n_spectra // spectra_per_step(training), 1)
    watching = ValidationScatter(
        extractor,
        judged_by.rows[:N_WATCHED],
        judged_by.labels[:N_WATCHED],
        every=-(-n_steps // max(stage.validations, 1)),
    )
    moving = choose_parameters(model, stage)
    with naming_a_full_disk(folder):
        history = train(
            moving, extractor, rows, training, stage.stage, last_checkpoint(folder),
            cpu_threads=stage.cpu_threads, n_spectra=stage.n_spectra, watching=watching if stage.validations else None,
            optimizer=stage.optimizer,
        )  # fmt: skip

        if training.process_index == 0:
            model = moving.merge_and_unload() if stage.lora else model  # type: ignore[operator]
            model.set_attn_implementation("sdpa")
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            # The few labelled stars are all that the few-shot stage may know: it keeps its parent's calibration.
            with few_threads(stage.cpu_threads):
                results = judge(model, extractor, judged_by, calibrate=stage.n_stars is None, learned=stage.labels)
            tell_where_learned(stage, extractor, judged_by)
            model.save_pretrained(folder)
            extractor.save_pretrained(folder)
            if tie is not None:
                tie.save(folder / TIE_FILE)
            facts |= training_facts(stage, dataset, extractor, facts.get("stars", []))
            facts["calibration"] = calibration_line(stage, extractor, results)
            facts["n_parameters"] = sum(parameter.numel() for parameter in model.parameters())
            finish(folder, stage, training, wanted, history, facts, results)
    with training.main_process_first(desc="saving"):  # the other processes wait for what the first one saves
        return folder


def rows_to_learn(
    stage: StageArguments,
    dataset: Streamed | None,
    training: TrainingArguments,
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
) -> tuple[Dataset | IterableDataset, LabelTie | None, dict[str, Any]]:
    """Training rows of the recipe, the label tie if it wants one, and what stage.json tells of both.

    With `readout: solve` the model's mean readouts are solved on the way, in place.

    Raises:
        ValueError: See `choose_stars`, `find_tie` and `stage_data.streamed_rows`.
    """
    if dataset is not None:
        return streamed_rows(stage, dataset, extractor, data_seed(training), training.world_size), None, {}
    if stage.data == "synthetic":
        rows: Dataset = SyntheticSpectra(
            extractor, stage.n_spectra, training.seed, context=stage.context, window=stage.window, learned=stage.labels,
            **synthesis(stage),
        )  # fmt: skip
        return rows, None, {}
    stars = Observed.from_spectra(choose_stars(stage, training.seed), extractor, stage.window)
    learned = only_learned(stage, extractor.label_names, stars.labels)
    facts: dict[str, Any] = {"stars": stars.star_ids}
    tie = find_tie(stage, model, extractor, stars)
    if stage.readout == "solve":
        facts["readout"] = solve_readouts(model, extractor, stars, learned, stage, training.seed)
    return observed_rows(stage, extractor, stars, learned, tie, training.seed), tie, facts


def tell_where_learned(stage: StageArguments, extractor: SpectraFMFeatureExtractor, judged_by: HeldOut) -> None:
    """Add the wavelengths of this stage to the extractor's `learned_ranges`, in place.

    Held-out spectra have the window, the pixels and the labels of the training spectra. Of a label of which the parent
    does not tell where it was learned, nothing is told: it may have been anywhere.
    """
    columns = [extractor.label_names.index(name) for name in stage.labels]
    rows, labels = judged_by.rows[:N_WATCHED], judged_by.labels[:N_WATCHED, columns]
    found: list[Mapping[str, Any]] = [ranges_of_labels(rows, labels, stage.labels)]
    if stage.beside is not None:
        survey = SURVEYS[stage.beside]
        found.append({name: [survey.wavelength[[0, -1]]] for name in survey.label_names})
    told = [name for name in stage.labels if stage.model is None or name in extractor.learned_ranges]
    for ranges in found:
        extractor.learned_also({name: ranges[name] for name in told if name in ranges})


def data_seed(training: TrainingArguments) -> int:
    """Of an endless stream. With `ignore_data_skip` a stage goes on with other rows, and does not replay the old."""
    checkpoint = last_checkpoint(Path(str(training.output_dir)))
    if not training.ignore_data_skip or checkpoint is None:
        return training.seed
    return training.seed + int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])


def begin(stage: StageArguments, training: TrainingArguments, again: bool) -> tuple[StageArguments, str, bool]:
    """The recipe with its revisions pinned, its fingerprint, and whether the stage is done.

    The first process finds out and tells the others, who might see another main, or another disk.

    Raises:
        ValueError, OSError: See `pinned` and `is_done`; on all processes.
    """
    told: list[Any] = [None]
    if training.process_index == 0:
        try:
            folder = Path(str(training.output_dir))
            asked = [stage.model_revision, stage.dataset_revision]
            stage = pinned(stage, training, None if again else read_begun(folder))
            pins = [stage.model_revision, stage.dataset_revision]
            wanted = {"fingerprint": fingerprint(stage, training), "asked": asked, "pinned": pins}
            told = [(stage, wanted["fingerprint"], is_done(folder, wanted, again))]
        except (ValueError, OSError) as error:
            told = [error]
    if training.world_size > 1:
        broadcast_object_list(told)
    if isinstance(told[0], Exception):
        raise told[0]
    agreed: tuple[StageArguments, str, bool] = told[0]
    return agreed


def pinned(stage: StageArguments, training: TrainingArguments, begun: Mapping[str, Any] | None) -> StageArguments:
    """The recipe with branches and tags of its Hub parent and dataset replaced by the commits they are now.

    What runs now, and is told in the card, is then one version, whatever is pushed meanwhile: a stage that was killed
    goes on with the commits it began with, unless its recipe asks for others now.

    Args:
        begun: Of `read_begun`.

    Raises:
        ValueError: Parent or dataset cannot be had.
    """
    if begun is not None and begun["asked"] == [stage.model_revision, stage.dataset_revision]:
        model_revision, dataset_revision = begun["pinned"]
        as_begun = replace(stage, model_revision=model_revision, dataset_revision=dataset_revision)
        if fingerprint(as_begun, training) == begun["fingerprint"]:
            return as_begun
    if stage.dataset is not None:
        try:
            stage = replace(stage, dataset_revision=revision_of(stage.dataset, stage.dataset_revision, "dataset"))
        except HubError as error:
            raise ValueError(f"the recipe's dataset cannot be had: {error}") from error
    if stage.model is not None:
        try:
            stage = replace(stage, model_revision=revision_of(stage.model, stage.model_revision))
        except HubError as error:
            raise no_parent(stage, error) from error
    return stage


def no_parent(stage: StageArguments, error: Exception) -> ValueError:
    return ValueError(
        f"the parent {stage.model} is neither a folder with a SpectraFM model nor a repository that can be reached; "
        "run the stage before this one first, or correct `model:` in the recipe "
        f"({' '.join(str(error).split())[:400]})."
    )


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


def read_begun(folder: Path) -> dict[str, Any] | None:
    """Fingerprint of the stage that was begun in a folder and not ended, the revisions its recipe asked for (parent,
    dataset) and the commits they were pinned to."""
    try:
        told = json.loads((folder / BEGUN_FILE).read_text())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and told.keys() == {"fingerprint", "asked", "pinned"} else None


def is_done(folder: Path, wanted: Mapping[str, Any], again: bool) -> bool:
    """Whether the stage is done with this fingerprint; if it is to begin anew, what another recipe left is removed.

    Args:
        wanted: See `read_begun`.

    Raises:
        OSError: The folder cannot be written.
    """
    check_writable(folder)
    record = read_record(folder)
    if record is not None and record["fingerprint"] == wanted["fingerprint"] and not again:
        return True
    if again or read_begun(folder) != wanted:
        for old in [*folder.glob("checkpoint-*"), folder / "figures", folder / ".eval_results"]:
            if old.is_dir():
                shutil.rmtree(old)
        for name in (DONE_FILE, TIE_FILE, RESULTS_FILE, PUSHED_FILE, "README.md"):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / BEGUN_FILE, wanted)
    return False


def find_tie(
    stage: StageArguments, model: SpectraFMForLabelPrediction, extractor: SpectraFMFeatureExtractor, stars: Observed
) -> LabelTie | None:
    """The label tie the recipe asks for: none, the parent's, or one fitted to this stage's stars.

    Raises:
        ValueError: The parent has none; or see `LabelTie.fit`.
    """
    if stage.tie_labels == "parent":
        path = fetch(str(stage.model), stage.model_revision) / TIE_FILE
        if not path.is_file():
            raise ValueError(f"tie_labels: parent, but {stage.model} has no {TIE_FILE}; tie them in the stage before.")
        try:
            return LabelTie.load(path)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{stage.model}: {TIE_FILE} holds no label tie ({error!r}).") from error
    if stage.tie_labels == "fit":
        as_read = predict_on_grid(model, extractor, stars.flux, stars.good).mean
        columns = [extractor.label_names.index(name) for name in CANNON_LABELS]
        scale = [extractor.label_center[c] for c in columns], [extractor.label_scale[c] for c in columns]
        return LabelTie.fit(CANNON_LABELS, *scale, as_read[:, columns], stars.labels[:, columns])
    return None


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
    _, flux, good = anchors.on_grid(range(len(anchors)))
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


def calibration_line(
    stage: StageArguments, extractor: SpectraFMFeatureExtractor, results: Mapping[str, Any]
) -> str | None:
    """How sigma was calibrated, for the card; None = it was not."""
    names = [name for name in stage.labels if name in extractor.sigma_factors]
    if not names:
        return None
    kept = [name for name in names if name not in results["calibrated"]]
    of_parent = f"Sigma of {', '.join(kept)} has the factors of the parent; they were not fitted anew for this stage."
    if not results["calibrated"]:
        return of_parent
    return (
        f"Sigma of {', '.join(results['calibrated'])} was calibrated on {results['n_calibration']} spectra that no "
        "training saw: split conformal factors for the central 68.27 % and 95 % intervals."
        + (f" {of_parent}" if kept else "")
    )


def parent_of(stage: StageArguments) -> dict[str, str | None] | None:
    """Hub id and commit of the parent, if it is there or was pushed from its folder; else its name alone."""
    if stage.model is None:
        return None
    if stage.model_revision is not None:
        return {"id": stage.model, "revision": stage.model_revision}
    pushed = read_pushed(Path(stage.model))
    if pushed is None:
        return {"id": Path(stage.model).name, "revision": None}
    return {"id": pushed.repo_id, "revision": pushed.revision}


def finish(
    folder: Path,
    stage: StageArguments,
    training: TrainingArguments,
    wanted: str,
    history: list[dict[str, float]],
    facts: Mapping[str, Any],
    results: Mapping[str, Any],
) -> None:
    """Write results.json and, the last thing a stage does, stage.json; drop the checkpoints."""
    curve = [
        {"spectra": round(entry["step"] * spectra_per_step(training)), "loss": entry["loss"]}
        for entry in history
        if "loss" in entry
    ]
    record = {
        "stage": stage.stage,
        "fingerprint": wanted,
        "recipe": asdict(stage)
        | {
            "model": told_as(stage.model, stage.model_revision),
            "dataset": told_as(stage.dataset, stage.dataset_revision),
        },
        "parent": parent_of(stage),
        "parent_fingerprint": None
        if stage.model is None
        else (read_record(Path(stage.model)) or {}).get("fingerprint"),
        "learning_rate": training.learning_rate,
        "batch_size": training.train_batch_size,
        "seed": training.seed,
        "learning_curve": curve,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        **facts,
    }
    write_json(folder / RESULTS_FILE, results)
    with whole_file(folder / DONE_FILE) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / BEGUN_FILE).unlink(missing_ok=True)
