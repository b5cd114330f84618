"""The network, adapted to one window: shown synthetic stars through it, before it sees a real one there.

A pre-trained network reads any window, and none as well as one that is trained for it: of 512 pixels of the H band, an
MLP that has seen nothing else is better. It may see what the MLP sees, and then it is the better one.
"""

from __future__ import annotations

import copy
import tempfile

import numpy as np
from transformers import TrainingArguments, set_seed

from ..collation import ObservedSpectra
from ..feature_extraction_spectrafm import SpectraFMFeatureExtractor
from ..modeling_spectrafm import SpectraFMForLabelPrediction
from ..recipe import has_accelerator, has_bfloat16
from ..stages import train

LABEL_ERROR = 0.03
"""1-sigma given to synthetic labels, scaled units: theory does not know them better."""

LEARNING_RATE = 3e-4


def adapt(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    labels: np.ndarray,
    flux: np.ndarray,
    good: np.ndarray,
) -> SpectraFMForLabelPrediction:
    """A copy of the model, trained on synthetic stars, each shown once.

    Args:
        model: Pre-trained.
        extractor: Whose grid the spectra are on.
        labels: Shape (n, n_labels), K and dex; NaN = not known.
        flux, good: Shape (n, n_pixels), as the real stars of the window will be.
    """
    set_seed(0)
    own = copy.deepcopy(model)
    errors = np.broadcast_to(LABEL_ERROR * np.asarray(extractor.label_scale), labels.shape)
    rows = ObservedSpectra(extractor, flux, good, labels, errors, len(flux), seed=0, noise=0.0, continuum_wiggle=0.0)
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder, learning_rate=LEARNING_RATE, lr_scheduler_type="cosine", warmup_steps=30,
            weight_decay=0.02, adam_beta2=0.98, per_device_train_batch_size=32, seed=0, logging_steps=50,
            save_strategy="no", report_to="none", bf16=has_bfloat16(), use_cpu=not has_accelerator(),
        )  # fmt: skip
        own.set_attn_implementation("eager")
        train(own, extractor, rows, training, "adapting to the window")
    own.set_attn_implementation("sdpa")
    return own.eval()
