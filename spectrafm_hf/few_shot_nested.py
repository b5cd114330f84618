r"""Nested cross-validation: which candidate, chosen how, and how wrong the choice is about stars it knows nothing of.

Stars are dealt out to k folds; visits of a star stay together (Stone 1974; Varma & Simon 2006, BMC Bioinf. 7, 91):

* Without fold i, the other folds take turns in judging every candidate, and one is chosen. It learns from all of them
  and is asked for the stars of fold i. Over all i: answers for every star by a model, and by a choice, that knew
  nothing of it. Their error is that of the whole procedure.
* At last the same choice is made with all stars.

The turn without the folds i and j serves the loops of both, so that a method costs k (k + 1) / 2 trainings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .builders.parquet_layout import whole_file
from .calibration import FACTOR_LIMITS, needed_factor
from .few_shot_candidates import FROZEN, Answers, Candidate, FrozenModel, Training
from .metrics import NOMINAL_COVERAGE

Out = frozenset[int]
"""Folds left out."""

METHOD_TITLES = {"frozen": "frozen weights", "lora": "LoRA", "full": "all weights"}


def deal_folds(star_ids: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold of each spectrum, shape (n_spectra,): by the star's name and the seed alone, sizes differ by 1 at most."""
    stars, star = np.unique(star_ids, return_inverse=True)
    drawn = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in stars]
    fold = np.empty(len(stars), dtype=int)
    fold[sorted(range(len(stars)), key=drawn.__getitem__)] = np.arange(len(stars)) % n_folds
    return fold[star]


def simplest_within_one_error(squared: np.ndarray) -> int:
    """Of all candidates that are not clearly worse than the best, the simplest.

    The one-standard-error rule (Breiman et al. 1984), with the error of the difference: candidates judged by the same
    stars err alike, so that their difference is known far better than either.

    Args:
        squared: Out-of-fold squared error of each star, (n_candidates, n_stars), the simplest candidate first.

    Returns:
        The first row whose mean is not larger than the smallest one by more than one standard error of the difference.
    """
    worse = squared - squared[np.argmin(squared.mean(axis=1))]
    return int(np.flatnonzero(worse.mean(axis=1) <= worse.std(axis=1) / np.sqrt(squared.shape[1]))[0])


def widening(residual: np.ndarray, sigma: np.ndarray, error: np.ndarray) -> float:
    r"""The factor c on sigma for which 68.27 % of the stars left out lie within one sigma.

    .. math:: |r_i| \le \sqrt{c^2 \sigma_i^2 + e_i^2}

    A quantile and not a likelihood, so that one wrong label does not widen the intervals of all stars.

    Args:
        residual, sigma, error: Of each spectrum: predicted minus published, the network's 1-sigma, the published one;
            shape (n,), unit of the label.

    Returns:
        c, within `calibration.FACTOR_LIMITS`; 1 without a residual.
    """
    if not residual.size:
        return 1.0
    needed = needed_factor(residual, sigma, error, half_width=1.0)
    return float(np.clip(np.quantile(needed, NOMINAL_COVERAGE["coverage68"]), *FACTOR_LIMITS))


# ---------------------------------------------------------------- answers for stars left out


@dataclass(eq=False)
class LeftOut:
    """Answers of all candidates for stars that they did not learn from; each is found once.

    Attributes:
        fold: Of each spectrum, shape (n_spectra,).
        frozen: What candidates that leave the weights alone follow from.
        training: How weights are trained.
        candidates: `frozen`, `lora`, `full` -> candidates, the simplest first.
        memory: Folder in which answers of trainings are kept, for a run that is killed.
    """

    fold: np.ndarray
    frozen: FrozenModel
    training: Training
    candidates: Mapping[str, tuple[Candidate, ...]]
    memory: Path
    known: dict[tuple[str, Out], Answers] = field(default_factory=dict)

    @property
    def n_folds(self) -> int:
        return int(self.fold.max()) + 1

    def turns(self, without: int | None) -> dict[int, Out]:
        """Fold that judges -> folds left out meanwhile, the fold `without` always among them."""
        rest = [] if without is None else [without]
        return {fold: frozenset([fold, *rest]) for fold in range(self.n_folds) if fold not in rest}

    def ask(self, method: str, wanted: Iterable[Out]) -> None:
        """Find the answers for stars of these folds."""
        missing = [out for out in dict.fromkeys(wanted) if (method, out) not in self.known]
        if method == "frozen" or not missing:
            for out in missing:
                asked = np.isin(self.fold, list(out))
                self.known[method, out] = self.frozen.answers(~asked, asked)
            return
        most = int(self.candidates[method][-1].amount)
        said = f"{METHOD_TITLES[method]}: {len(missing)} trainings"
        with tqdm(total=most * len(missing), desc=said, unit=" spectra", disable=None) as bar:
            for number, out in enumerate(missing, start=1):
                self.known[method, out] = self._trained(method, out, bar)
                bar.update(number * most - bar.n)

    def _trained(self, method: str, out: Out, bar: tqdm) -> Answers:
        path = self.memory / f"{method}-without-{'-'.join(map(str, sorted(out)))}.npz"
        try:
            with np.load(path) as kept:
                return Answers(kept["mean"], kept["log_var"])
        except (OSError, ValueError, KeyError):
            asked = np.isin(self.fold, list(out))
            answers = self.training.run(self.candidates[method], ~asked, asked, bar)[1]
            with whole_file(path) as partial, partial.open("wb") as stream:
                np.savez(stream, **answers._asdict())
            return answers

    def judged_everywhere(self) -> list[str]:
        """Methods that have been asked for every star."""
        alone = [frozenset([fold]) for fold in range(self.n_folds)]
        return [method for method in self.candidates if all((method, out) in self.known for out in alone)]

    def of_fold(self, method: str, fold: int, out: Out) -> Answers:
        """Answers for the stars of one fold while others may have been left out as well."""
        belongs = self.fold[np.isin(self.fold, list(out))] == fold
        answers = self.known[method, out]
        return Answers(answers.mean[:, belongs], answers.log_var[:, belongs])

    def in_turns(self, method: str, without: int | None) -> Answers:
        """Answers for every star while its fold judged, (n_candidates, n_spectra, n_labels).

        Args:
            without: A fold left out throughout, whose stars stay unanswered (NaN); None = none.
        """
        self.ask(method, self.turns(without).values())
        shape = (len(self.candidates[method]), *self.frozen.mean.shape)
        gathered = Answers(np.full(shape, np.nan), np.full(shape, np.nan))
        for fold, out in self.turns(without).items():
            for whole, part in zip(gathered, self.of_fold(method, fold, out), strict=True):
                whole[:, self.fold == fold] = part
        return gathered

    def squared(self, method: str, without: int | None = None) -> np.ndarray:
        """Squared errors of `in_turns`, (n_candidates, n_stars, n_labels), scaled units; NaN = not known."""
        squares = (self.in_turns(method, without).mean - self.frozen.scaled) ** 2
        return np.stack([self.frozen.stars.per_star(one) for one in squares])


# ---------------------------------------------------------------- the choice


@dataclass(frozen=True, eq=False)
class Choice:
    """What is done to the model.

    Attributes:
        method: `frozen`, `lora` or `full`.
        number: Of the candidate for each label, shape (n_labels,); of `lora` and `full` one for all.
        widening: Factor on the network's sigma of each label, shape (n_labels,).
    """

    method: str
    number: np.ndarray
    widening: np.ndarray

    def pick(self, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """Of all candidates' answers the chosen ones: mean and log-variance, (n_spectra, n_labels), scaled units."""
        labels = np.arange(len(self.number))
        mean, log_var = (part[self.number, :, labels].T for part in answers)
        return mean, log_var + 2 * np.log(self.widening)


def choose(left_out: LeftOut, methods: Sequence[str], without: int | None = None) -> Choice:
    """The simplest candidate that is not clearly worse than the best, see `simplest_within_one_error`.

    Frozen candidates are chosen label by label. Trained ones move all labels at once; what is compared then is the mean
    over a star's labels of the squared error, in units of that of a constant offset. All weights are tried after LoRA
    only where LoRA pays.

    Args:
        methods: To choose among, of `LeftOut.candidates`, the simplest first.
        without: A fold that has no part in the choice; None = all have.
    """
    frozen = left_out.squared("frozen", without)
    known = np.isfinite(frozen[0])
    labels, stars = np.flatnonzero(known.any(axis=0)), known.any(axis=1)
    number = np.zeros(frozen.shape[-1], dtype=int)
    for label in labels:
        number[label] = simplest_within_one_error(frozen[:, known[:, label], label])
    unit = np.nanmean(frozen[FROZEN.index(Candidate("offset"))][:, labels], axis=0)

    def overall(squared: np.ndarray) -> np.ndarray:
        return np.nanmean(squared[:, stars][:, :, labels] / unit, axis=-1)

    tried: list[tuple[str, int]] = []
    errors = np.empty((0, stars.sum()))
    for method in methods:
        if method == "full" and "lora" in methods and tried[simplest_within_one_error(errors)][0] != "lora":
            break
        squared = left_out.squared(method, without)
        if method == "frozen":
            squared = squared[number, :, np.arange(len(number))].T[None]
        tried += [(method, candidate) for candidate in range(len(squared))]
        errors = np.concatenate([errors, overall(squared)])
    method, candidate = tried[simplest_within_one_error(errors)]
    number = number if method == "frozen" else np.full(len(number), candidate)
    choice = Choice(method, number, np.ones(len(number)))
    return replace(choice, widening=widen(left_out, choice, without))


def widen(left_out: LeftOut, choice: Choice, without: int | None) -> np.ndarray:
    """Factor on sigma, calibrated as the parent's is, for each label, shape (n_labels,), see `widening`."""
    extractor, stars = left_out.training.extractor, left_out.frozen.stars
    mean, log_var = choice.pick(left_out.in_turns(choice.method, without))
    factor = np.array([extractor.sigma_factors.get(name, (1.0, 1.0))[0] for name in extractor.label_names])
    sigma, residual = factor * np.exp(0.5 * log_var), mean - left_out.frozen.scaled
    _, errors = extractor.encode_labels(stars.labels, stars.label_errors)
    known = np.isfinite(residual)
    return np.array(
        [widening(residual[seen, label], sigma[seen, label], errors[seen, label]) for label, seen in enumerate(known.T)]
    )


@dataclass(frozen=True, eq=False)
class Nested:
    """What nested cross-validation found.

    Attributes:
        mean, log_var: Of every spectrum, by a model and a choice that knew nothing of its star; scaled units, shape
            (n_spectra, n_labels).
        without: What was chosen without each fold.
        final: What was chosen with all.
    """

    mean: np.ndarray
    log_var: np.ndarray
    without: list[Choice]
    final: Choice


def cross_validate(left_out: LeftOut, methods: Sequence[str]) -> Nested:
    """The whole procedure without each fold in turn, and the choice with all of them."""
    folds = range(left_out.n_folds)
    for method in methods:
        if method != "full" or "lora" not in methods:  # else it depends
            pairs = [frozenset(pair) for pair in combinations(folds, 2)]
            left_out.ask(method, [*pairs, *(frozenset([fold]) for fold in folds)])
    mean, log_var, chosen = *np.full((2, *left_out.frozen.mean.shape), np.nan), []
    for fold in folds:
        chosen.append(choose(left_out, methods, without=fold))
        alone = frozenset([fold])
        left_out.ask(chosen[-1].method, [alone])
        judged = left_out.fold == fold
        mean[judged], log_var[judged] = chosen[-1].pick(left_out.of_fold(chosen[-1].method, fold, alone))
    return Nested(mean, log_var, chosen, choose(left_out, methods))
