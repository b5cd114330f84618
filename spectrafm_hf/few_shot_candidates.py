"""What may be done to a model with a few labelled stars, from leaving it alone to moving every weight.

The frozen ones share what the parent reads from the spectra, and cost next to nothing:

* leave the model as it is;
* add a constant to each label;
* solve each label's linear readout, held still by synthetic stars (`few_shot.solve_readout`), at several penalties.

The trained ones begin from the constant and show the stars again and again, by the likelihood of the labels; how often
is what there is to choose. One training answers for every number of spectra shown on its way to the largest:

* low-rank matrices in every linear layer, and the readouts (LoRA: Hu et al. 2021, arXiv 2106.09685);
* all weights.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import TrainerCallback, TrainingArguments, set_seed

from .collation import Row, row_generator
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .few_shot import solve_readout
from .few_shot_stars import LabelledStars
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .prediction import ask
from .recipe import has_accelerator, has_bfloat16
from .stages import few_threads, train

BATCH_SIZE = 16
"""Spectra per step of the optimiser."""

HIDDEN_TOKENS = 0.3
"""Largest fraction of the tokens of a spectrum hidden each time it is shown."""

PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Of the readouts, the stiffest first; stiffer ones are the constant offset."""

LEARNING_RATE = {"lora": 1e-3, "full": 1e-4}

LORA: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "dense_1", "dense_2"],
    "modules_to_save": ["head"],
}
"""Arguments of peft's `LoraConfig`."""


class Candidate(NamedTuple):
    """One thing that may be done.

    Attributes:
        method: `unchanged`, `offset`, `head`, `lora` or `full`.
        amount: Of `head`, the penalty; of `lora` and `full`, the spectra shown; else 0.
    """

    method: str
    amount: float = 0.0

    def __str__(self) -> str:
        return {
            "unchanged": "network as it is",
            "offset": "constant offset",
            "head": f"head only, penalty {self.amount:g}",
            "lora": f"LoRA, {self.amount:,.0f} spectra shown",
            "full": f"all weights, {self.amount:,.0f} spectra shown",
        }[self.method]


FROZEN = (
    Candidate("unchanged"),
    Candidate("offset"),
    *(Candidate("head", penalty) for penalty in PENALTIES),
)
"""From the stiffest to the most flexible."""


def trained_candidates(method: str, most: int) -> tuple[Candidate, ...]:
    """From the fewest spectra shown to the most: an eighth, a quarter, a half, all; in whole steps."""
    steps = -(-most // BATCH_SIZE)
    return tuple(Candidate(method, BATCH_SIZE * some) for some in sorted({-(-steps // part) for part in (8, 4, 2, 1)}))


class Answers(NamedTuple):
    """What candidates say of spectra; scaled units, shape (n_candidates, n_spectra, n_labels)."""

    mean: np.ndarray
    log_var: np.ndarray


# ---------------------------------------------------------------- the model stays, its readouts move


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """What the parent reads from your spectra and from the anchors; every frozen candidate follows from it.

    Attributes:
        stars: Yours.
        scaled: Their labels in scaled units, shape (n_spectra, n_labels), NaN = missing or not to be learned.
        mean, log_var: The parent's answers, same shape, scaled units.
        features: What its readouts see, shape (n_spectra, n_labels, d).
        anchors: The same of synthetic stars, shape (n_anchors, n_labels, d); None = there are none, and readouts are
            penalised by the size of their weights alone (ridge regression).
    """

    stars: LabelledStars
    scaled: np.ndarray
    mean: np.ndarray
    log_var: np.ndarray
    features: np.ndarray
    anchors: np.ndarray | None

    def corrections(self, learned_from: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What every frozen candidate adds to the readouts; visits of a star count as one.

        Args:
            learned_from: Spectra to learn from, shape (n_spectra,), bool.

        Returns:
            Weights (n_candidates, n_labels, d) and constants (n_candidates, n_labels), scaled units.
        """
        stars = self.stars.only(learned_from)
        features = stars.per_star(self.features[learned_from])
        residual = stars.per_star((self.scaled - self.mean)[learned_from])
        n_labels, width = features.shape[1:]
        weight, bias = np.zeros((len(FROZEN), n_labels, width)), np.zeros((len(FROZEN), n_labels))
        for label in range(n_labels):
            known = np.isfinite(residual[:, label])
            if not known.any():
                continue
            seen, missed = features[known, label], residual[known, label]
            # One anchor at the mean of the stars forbids nothing: what is left of the penalty is that of the weights.
            anchors = seen.mean(axis=0, keepdims=True) if self.anchors is None else self.anchors[:, label]
            for number, candidate in enumerate(FROZEN):
                if candidate.method == "offset":
                    bias[number, label] = missed.mean()
                elif candidate.method == "head":
                    solved = solve_readout(seen, missed, anchors, [candidate.amount])
                    weight[number, label], bias[number, label] = solved.weight, solved.bias
        return weight, bias

    def answers(self, learned_from: np.ndarray, asked: np.ndarray) -> Answers:
        """Of every frozen candidate, learned from some spectra and asked for others; both (n_spectra,), bool."""
        weight, bias = self.corrections(learned_from)
        moved = np.einsum("nld,cld->cnl", self.features[asked], weight) + bias[:, None]
        return Answers(self.mean[asked] + moved, np.broadcast_to(self.log_var[asked], moved.shape).copy())


@torch.no_grad()
def correct_readouts(
    model: SpectraFMForLabelPrediction,
    weight: np.ndarray | float = 0.0,
    bias: np.ndarray | float = 0.0,
    log_var: np.ndarray | float = 0.0,
) -> None:
    """Add to the readouts, in place: weights (n_labels, d), constants (n_labels,), log-variances (n_labels,)."""
    head = model.head
    for parameter, more in ((head.mean_weight, weight), (head.mean_bias, bias), (head.log_var_bias, log_var)):
        parameter.add_(torch.as_tensor(more).to(parameter))


# ---------------------------------------------------------------- the weights move


class ShownAgain(Dataset):
    """The rows of labelled stars, shown again and again: every star once a round, one of its visits, parts hidden.

    Args:
        rows: With labels, as the collator takes them.
        star_ids: Of the rows; a star with more visits is shown no more often.
        n_spectra: Length of the set.
        patch_size: Pixels per token.
        seed: With the row number, decides everything random.
    """

    def __init__(self, rows: Sequence[Row], star_ids: np.ndarray, n_spectra: int, patch_size: int, seed: int):
        self.rows, self.n_spectra, self.patch_size, self.seed = rows, n_spectra, patch_size, seed
        self.visits = [np.flatnonzero(star_ids == star) for star in np.unique(star_ids)]

    def __len__(self) -> int:
        return self.n_spectra

    def __getitem__(self, index: int) -> Row:
        rounds, place = divmod(index, len(self.visits))
        star = np.random.default_rng([self.seed, rounds]).permutation(len(self.visits))[place]
        rng = row_generator(self.seed, index)
        row = self.rows[rng.choice(self.visits[star])]
        shown = rng.random(len(row["flux"]) // self.patch_size) >= HIDDEN_TOKENS * rng.random()
        pixels = np.repeat(shown, self.patch_size)
        if not row["attention_mask"][pixels].any():
            return row
        return {name: values[pixels] if len(values) == len(pixels) else values for name, values in row.items()}


class AskOnTheWay(TrainerCallback):
    """Asks a model at some steps of its training, and moves a progress bar.

    Attributes:
        answers: Mean and log-variance (n_rows, n_labels) of each time it was asked, scaled units.
    """

    def __init__(
        self, model: Any, extractor: SpectraFMFeatureExtractor, rows: list[Row], steps: Sequence[int], bar: tqdm
    ):
        self.model, self.extractor, self.rows, self.steps, self.bar = model, extractor, rows, steps, bar
        self.answers: list[tuple[np.ndarray, np.ndarray]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(BATCH_SIZE)
        if self.rows and state.global_step in self.steps:
            self.answers.append(ask(self.model, self.extractor, self.rows, 64)[:2])


@dataclass(frozen=True, eq=False)
class Training:
    """How weights are trained on some of your stars.

    Attributes:
        parent: Model to begin from; it stays what it is.
        extractor: Its extractor.
        frozen: See `FrozenModel`.
        learned: Labels to learn.
        seed: Of the order, of what is hidden and of LoRA's first weights.
    """

    parent: SpectraFMForLabelPrediction
    extractor: SpectraFMFeatureExtractor
    frozen: FrozenModel
    learned: list[str]
    seed: int

    def run(
        self, candidates: Sequence[Candidate], learned_from: np.ndarray, asked: np.ndarray, bar: tqdm
    ) -> tuple[SpectraFMForLabelPrediction, Answers]:
        """Train a copy of the parent, and ask it whenever it has seen as many spectra as a candidate says.

        Args:
            candidates: Of one method, from the fewest spectra shown to the most.
            learned_from, asked: Spectra to learn from and to ask for, shape (n_spectra,), bool.
            bar: Of progress, in spectra shown.

        Returns:
            The model at the end, and the answers for the spectra asked for.
        """
        method, most = candidates[-1].method, int(candidates[-1].amount)
        moving = self.start(method, learned_from)
        # The same weights under another name: a Trainer leaves its own model computing in bfloat16.
        exact = copy.copy(moving)
        rows = self.frozen.stars.only(asked).rows
        steps = [int(candidate.amount) // BATCH_SIZE for candidate in candidates]
        on_the_way = AskOnTheWay(exact, self.extractor, rows, steps, bar)
        with tempfile.TemporaryDirectory(prefix="spectrafm-few-shot-") as scratch:
            arguments = training_arguments(Path(scratch), LEARNING_RATE[method], self.seed)
            # With its own bar off, a Trainer prints its log instead; one bar for all trainings is enough.
            with contextlib.redirect_stdout(io.StringIO()):
                train(
                    moving, self.extractor, self.shown(learned_from, most), arguments, str(candidates[-1]),
                    callbacks=[on_the_way],
                )  # fmt: skip
        empty = np.empty((len(candidates), 0, len(self.extractor.label_names)))
        told = Answers(*map(np.stack, zip(*on_the_way.answers, strict=True))) if rows else Answers(empty, empty)
        return self.finished(exact), told

    def start(self, method: str, learned_from: np.ndarray) -> Any:
        """A copy of the parent with the constant offset; of `lora`, in peft's frame."""
        model = copy.deepcopy(self.parent)
        weight, bias = self.frozen.corrections(learned_from)
        offset = FROZEN.index(Candidate("offset"))
        correct_readouts(model, weight[offset], bias[offset])
        model.set_attn_implementation("eager")  # the faster one in training on a processor
        set_seed(self.seed)
        return with_adapters(model) if method == "lora" else model

    def finished(self, trained: Any) -> SpectraFMForLabelPrediction:
        """An ordinary model again."""
        model: SpectraFMForLabelPrediction = trained.merge_and_unload() if hasattr(trained, "peft_config") else trained
        model.set_attn_implementation(self.parent.config._attn_implementation)
        model.to("cpu")  # type: ignore[arg-type]
        model.requires_grad_(True)
        return model.eval()

    def shown(self, learned_from: np.ndarray, n_spectra: int) -> ShownAgain:
        """Training rows of some spectra, (n_spectra,), bool; labels that are not to be learned count as missing."""
        stars, extractor = self.frozen.stars.only(learned_from), self.extractor
        wanted = np.where(np.isin(extractor.label_names, self.learned), stars.labels, np.nan)
        labels, errors = extractor.encode_labels(wanted, stars.label_errors)
        rows = [
            row | {"labels": label, "label_errors": error}
            for row, label, error in zip(stars.rows, labels, errors, strict=True)
        ]
        return ShownAgain(rows, stars.star_ids, n_spectra, extractor.patch_size, self.seed)


def with_adapters(model: SpectraFMForLabelPrediction) -> Any:
    """Low-rank matrices beside every linear layer of the blocks, and the readouts; all else is frozen."""
    from peft import LoraConfig, get_peft_model  # an extra: pip install spectrafm_hf[peft]

    return get_peft_model(model, LoraConfig(**LORA))


def training_arguments(folder: Path, learning_rate: float, seed: int) -> TrainingArguments:
    """Of a short training; a constant learning rate, so that half of a training is a training of half the length."""
    return TrainingArguments(
        str(folder),
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
        weight_decay=0.0,
        adam_beta2=0.98,
        per_device_train_batch_size=BATCH_SIZE,
        train_sampling_strategy="sequential",
        bf16=has_bfloat16(),
        use_cpu=not has_accelerator(),
        seed=seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def read_frozen(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    stars: LabelledStars,
    learned: Sequence[str],
    anchors: list[Row] | None,
) -> FrozenModel:
    """Ask the parent once for everything that frozen candidates need."""
    wanted = np.where(np.isin(extractor.label_names, learned), stars.labels, np.nan)
    scaled = (wanted - np.array(extractor.label_center)) / np.array(extractor.label_scale)
    with few_threads():
        mean, log_var, features, _ = ask(model, extractor, stars.rows, 64)
        seen = None if anchors is None else ask(model, extractor, anchors, 64)[2].astype(float)
    return FrozenModel(stars, scaled, mean.astype(float), log_var.astype(float), features.astype(float), seen)
