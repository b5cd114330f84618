"""What the pre-training is worth: the same network from random weights, on the few labelled stars alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import KFold
from transformers import TrainerCallback, TrainingArguments, set_seed

from .baselines import model_sigma
from .collation import ObservedSpectra
from .configuration_spectrafm import SpectraFMConfig
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .labels import get_label
from .metrics import known_errors
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .prediction import Observed, predict_on_grid
from .recipe import StageArguments
from .stage_data import only_learned
from .stages import train

LABEL = "fe_h"
SCRATCH_FOLDS, SCRATCH_CHECKS = 3, 8


class _Watch(TrainerCallback):
    """Predicts held-out stars of a fold as the training goes on."""

    def __init__(self, steps: Sequence[int], predict: Callable[[Any], Any]):
        self.steps, self.predict, self.seen = list(steps), predict, []  # type: ignore[var-annotated]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.seen.append(self.predict(model))


def transformer_from_scratch(
    stage: StageArguments,
    training: TrainingArguments,
    extractor: SpectraFMFeatureExtractor,
    config: SpectraFMConfig,
    learn: Observed,
    test: Observed,
) -> tuple[np.ndarray, np.ndarray]:
    """Our own network from random weights on the few stars; its number of epochs by cross-validation inside them.

    Sigma is the network's, times the constant that brings the out-of-fold residuals to their size (as for the MLP).

    Returns:
        Mean and sigma of [Fe/H] of the test stars, dex.
    """
    column = extractor.label_names.index(LABEL)
    n_stars, batch = len(learn.flux), training.per_device_train_batch_size
    learned = only_learned(stage, extractor.label_names, learn.labels)

    def fit(
        kept: np.ndarray, n_spectra: int, callbacks: list[TrainerCallback], name: str
    ) -> SpectraFMForLabelPrediction:
        set_seed(training.seed)
        model = SpectraFMForLabelPrediction(config)
        model.set_attn_implementation(stage.attn_implementation)
        with torch.no_grad():  # it begins by answering the mean of its stars, with their spread
            scaled = (learned[kept, column] - extractor.label_center[column]) / extractor.label_scale[column]
            model.head.mean_bias[column] = float(scaled.mean())
            model.head.log_var_bias[column] = float(2 * np.log(scaled.std()))
        rows = ObservedSpectra(
            extractor, learn.flux[kept], learn.good[kept], learned[kept], learn.label_errors[kept], n_spectra,
            training.seed, noise=stage.observed_noise, missing_tokens=stage.hidden_tokens,
        )  # fmt: skip
        train(model, extractor, rows, training, name, callbacks=callbacks, cpu_threads=stage.cpu_threads)
        return model

    def answer(model: SpectraFMForLabelPrediction, observed: Observed, chosen: Any) -> tuple[np.ndarray, np.ndarray]:
        predicted = predict_on_grid(model, extractor, observed.flux[chosen], observed.good[chosen])
        return predicted.mean[:, column], predicted.sigma[:, column]

    showings = np.unique(
        np.linspace(stage.n_spectra / n_stars / SCRATCH_CHECKS, stage.n_spectra / n_stars, SCRATCH_CHECKS)
    )
    out_of_fold = np.full((len(showings), 2, n_stars), np.nan)
    folds = KFold(SCRATCH_FOLDS, shuffle=True, random_state=training.seed).split(np.empty(n_stars))
    for number, (kept, left_out) in enumerate(folds, start=1):
        steps = [max(1, int(s * len(kept)) // batch) for s in showings]
        watch = _Watch(steps, lambda model, left_out=left_out: answer(model, learn, left_out))  # type: ignore[misc]
        fit(kept, max(steps) * batch, [watch], f"    fold {number} of {SCRATCH_FOLDS}")
        for check, step in enumerate(steps):
            out_of_fold[check][:, left_out] = watch.seen[sorted(set(steps)).index(step)]
    residual = out_of_fold[:, 0] - learn.labels[:, column]
    best = int(np.argmin(np.mean(residual**2, axis=1)))
    errors = known_errors(get_label(LABEL), learn.label_errors[:, column], np.ones(n_stars, dtype=bool))
    factor = model_sigma(residual[best], errors) / float(np.sqrt(np.mean(out_of_fold[best, 1] ** 2)))
    model = fit(np.arange(n_stars), max(batch, int(showings[best] * n_stars)), [], "    all stars")
    mean, sigma = answer(model, test, slice(None))
    return mean, factor * sigma
