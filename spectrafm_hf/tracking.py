"""How a training is doing while it runs: label scatter in K and dex on fixed spectra, and throughput.

All of it goes through `Trainer.log`, so that it lands wherever loss and gradient norm land: in the log history, in the
progress bar, and in Trackio where that is installed. Trackio keeps a database on this machine, under TRACKIO_DIR or in
the Hugging Face cache; `trackio show --project spectrafm` draws it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TrackioCallback

from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .labels import get_label
from .metrics import summarise
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .prediction import Predicted, ask

logger = logging.getLogger(__name__)

PROJECT = "spectrafm"
"""Trackio's project, for recipes that name none."""


def default_report_to() -> list[str]:
    """`report_to` of recipes that say nothing: Trackio if it is installed, else nobody."""
    return ["trackio"] if importlib.util.find_spec("trackio") else []


def run_name(stage: str, seed: int, begun: float) -> str:
    """Name of a stage's run. A killed stage goes on in its run; one begun anew gets a run of its own.

    Args:
        stage, seed: From the recipe.
        begun: When the stage was first begun, seconds since 1970.
    """
    return f"{stage}-seed{seed}-{time.strftime('%Y%m%dT%H%M%S', time.localtime(begun))}"


def track(trainer: Trainer, *callbacks: Throughput) -> None:
    """Add callbacks that log through this `Trainer`, and keep its Trackio, if it has one, to this machine.

    Args:
        trainer: Before `train` is called.
        callbacks: Of one Trainer each; one is enough, since a `ValidationScatter` tells the throughput too.
    """
    if trainer.pop_callback(TrackioCallback) is not None:
        trainer.add_callback(LocalTrackio())
    for callback in callbacks:
        callback.log = trainer.log
        trainer.add_callback(callback)


class Throughput(TrainerCallback):
    """Logs `spectra_per_s` beside each loss: spectra shown per second of wall time, all processes together.

    The clock starts with the first step and runs from log to log, waiting for data and writing checkpoints included. A
    last batch that is not full counts as a full one.

    Attributes:
        log: `Trainer.log`; set by `track`.
    """

    log: Callable[[dict[str, Any]], None] | None = None

    def __init__(self) -> None:
        self._since: float | None = None  # seconds, of time.perf_counter
        self._since_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.log is None:
            raise ValueError(
                f"{type(self).__name__} cannot log: give it to tracking.track(trainer, ...) instead of Trainer(...)."
            )
        self._since = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._since is None:
            self._since, self._since_step = time.perf_counter(), state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._tell(control, self._throughput(args, state) if control.should_log else {})

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and control.should_log:
            self._tell(control, self._throughput(args, state))

    def _throughput(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        """Since the last call; nothing if there was no step."""
        now, steps = time.perf_counter(), state.global_step - self._since_step
        if self._since is None or steps < 1:
            return {}
        spectra = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seconds, self._since, self._since_step = now - self._since, now, state.global_step
        return {"spectra_per_s": spectra / seconds}

    def _tell(self, control: TrainerControl, figures: dict[str, Any]) -> None:
        if figures and self.log is not None:
            due = control.should_log
            self.log(figures)
            control.should_log = due  # `Trainer.log` takes it for done, but the loss of this step is still to come


class ValidationScatter(Throughput):
    """Logs bias and scatter of every label on the same spectra, every few steps and after the last, and throughput.

    Keys carry the unit: `validation_teff_scatter_K`, `validation_fe_h_bias_dex`, with the meaning that
    `metrics.summarise` gives them; `validation_n` is the number of spectra with any label. The model answers in
    evaluation mode and without autocast, as it will be used. Training is not changed by it: no random number is drawn,
    no weight touched. The time it takes does not count in `spectra_per_s`.

    Process 0 predicts alone, with no word to the others, who wait for it in their next step. A model that lies in
    pieces on several processes cannot answer so: it is said once, and only the throughput is logged.

    Args:
        extractor: Of the model; its label names are the columns of `labels`.
        rows: Prepared spectra, as `prediction.ask` takes them.
        labels: Catalogue values, shape (n_spectra, n_labels), K and dex, NaN = missing.
        every: Steps from one prediction to the next.
        batch_size: Spectra predicted at once.

    Raises:
        ValueError: Rows and labels do not fit each other or the model, no label is known, or `every` is below 1.
    """

    def __init__(
        self,
        extractor: SpectraFMFeatureExtractor,
        rows: Sequence[Mapping[str, np.ndarray]],
        labels: np.ndarray,
        every: int,
        batch_size: int = 64,
    ):
        super().__init__()
        wanted = (len(rows), len(extractor.label_names))
        if np.shape(labels) != wanted or not np.isfinite(labels).any():
            raise ValueError(
                f"validation needs at least one spectrum with a known label, and one row of labels per spectrum with "
                f"the columns {', '.join(extractor.label_names)}: shape {wanted}, got shape {np.shape(labels)} with "
                f"{np.isfinite(labels).sum()} known values."
            )
        if every < 1 or batch_size < 1:
            raise ValueError(f"every and batch_size must be at least 1, got {every} and {batch_size}.")
        self.extractor, self.rows, self.every, self.batch_size = extractor, rows, every, batch_size
        self.labels = np.asarray(labels, dtype=np.float64)
        self._whole, self._lost = True, set[str]()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._whole = is_whole(model)
        if not self._whole and state.is_world_process_zero:
            logger.warning(
                "no validation_* figures in this training: the model lies in pieces on several processes, and process "
                "0 alone cannot ask it; train with DDP to see them"
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        figures = self._throughput(args, state) if control.should_log else {}
        if self._whole and (state.global_step % self.every == 0 or control.should_training_stop):
            if args.device.type != "cpu":
                torch.accelerator.synchronize()  # or what the device has still to do for the step would count as ours
            begun = time.perf_counter()
            figures |= self.figures(model)
            if self._since is not None:
                self._since += time.perf_counter() - begun
        self._tell(control, figures)

    def figures(self, model: SpectraFMForLabelPrediction) -> dict[str, Any]:
        """What is logged of the model, or of peft's around it, as it is now: key -> number.

        A label without a spectrum that has it is left out, and so is one whose predictions are not finite.
        """
        with no_autocast(model):
            answer = Predicted.of(self.extractor, *ask(model, self.extractor, self.rows, self.batch_size))
        figures: dict[str, Any] = {"validation_n": int(np.isfinite(self.labels).any(axis=1).sum())}
        for name, predicted, truth in zip(self.extractor.label_names, answer.mean.T, self.labels.T, strict=True):
            label, measured = get_label(name), np.isfinite(truth)
            if not measured.any():
                continue
            if not np.isfinite(predicted[measured]).all():
                if name not in self._lost:
                    logger.warning("the model's %s is no longer finite on the validation spectra: no figures", name)
                self._lost.add(name)
                continue
            summary = summarise(label, predicted, truth)
            figures[f"validation_{name}_scatter_{label.unit}"] = summary["scatter"]
            figures[f"validation_{name}_bias_{label.unit}"] = summary["bias"]
        return figures


def is_whole(model: torch.nn.Module) -> bool:
    """Whether this process has all weights: not so under FSDP, tensor parallelism and DeepSpeed's ZeRO-3."""
    return not any(
        hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id") for parameter in model.parameters()
    ) and not any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())


@contextmanager
def no_autocast(model: torch.nn.Module) -> Iterator[None]:
    """The model's own `forward`, for as long as it takes, in place of the autocast that accelerate laid around it."""
    if (own := model.__dict__.get("_original_forward")) is None:
        yield
        return
    wrapped, model.forward = model.forward, own
    try:
        yield
    finally:
        model.forward = wrapped


@contextmanager
def no_hub() -> Iterator[None]:
    """Requests to the Hub fail at once."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class LocalTrackio(TrackioCallback):
    """The Trackio callback of transformers, which cannot stop a training here, nor tell the Hub what nobody asked for.

    Left alone, Trackio asks the Hub for the user's name when a run begins, with the user's token and no limit of time,
    although it logs to the local disk: behind a firewall a training would hang. And a push of the model would bring a
    public Space along, with all figures and arguments of the run. Here the Hub hears of a run only if
    `trackio_space_id` or `trackio_static_space_id`, or Trackio's own environment variables, say so. What fails is said
    once, and training goes on without Trackio.
    """

    _failed = False

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        remote = args.trackio_space_id or os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        with nullcontext() if remote else no_hub():
            super().setup(args, state, model, **kwargs)

    def _unless_failed(self, event: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._failed:
            return
        try:
            event(*args, **kwargs)
        except Exception as error:
            logger.warning("Trackio failed, training goes on without it (%s: %s)", type(error).__name__, error)
            self._failed = True

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._unless_failed(super().on_train_begin, *args, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self._unless_failed(super().on_log, *args, **kwargs)

    def on_predict(self, *args: Any, **kwargs: Any) -> None:
        self._unless_failed(super().on_predict, *args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._unless_failed(super().on_train_end, *args, **kwargs)

    def on_push_begin(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> None:
        if args.trackio_static_space_id:
            self._unless_failed(super().on_push_begin, args, *rest, **kwargs)
