"""One comparison: every method learns one label from the same N stars and pixels, and is asked about the same others.

Draws of the N stars are numbered by seeds. A method chooses by its N stars and by synthetic spectra alone. Before, it
has seen nothing, or, if it is pre-trained, synthetic spectra, those of the window among them; ours has had its stage 2
as well, with real light that each task tells of. What a task consists of is written into a manifest, star by star.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..baselines import BASELINES, Baseline, MLPPretraining, PretrainedMLP
from ..calibration import FEWEST_STARS, sigma_factor
from ..feature_extraction_spectrafm import SpectraFMFeatureExtractor
from ..few_shot import draw_rows, solve_readout
from ..labels import get_label
from ..metrics import HALF_WIDTHS, NOMINAL_COVERAGE, known_errors, summarise_subsets
from ..modeling_spectrafm import SpectraFMForLabelPrediction
from ..prediction import Observed, Predicted, predict_on_grid
from ..recipe import read_recipe, recipe_folder
from ..scratch import transformer_from_scratch
from .adapted import adapt
from .combined import choose_share, combine, linear_answers, nearness

logger = logging.getLogger(__name__)

SIZES = (10, 30, 100, 300)
MAIN_SIZE = 100
LABEL = "fe_h"
N_SYNTHETIC = 30_000
"""Spectra that the MLP is pre-trained on, each once."""

N_ADAPTING = 20_000
"""The first so many of them adapt the network."""

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Synthetic stars: labels (n, n_labels), K and dex, NaN = not known; flux and good (n, n_pixels), extractor's grid."""


@dataclass(frozen=True)
class Answer:
    """Of one method for all test stars, arrays (n_test,), unit of the label.

    Attributes:
        mean: The label.
        sigma, sigma95: 1-sigma of the model alone, from its 68 % and from its 95 % interval.
    """

    mean: np.ndarray
    sigma: np.ndarray
    sigma95: np.ndarray


@dataclass(frozen=True)
class Task:
    """What is learned from which stars, and who is asked.

    Attributes:
        name: Of the protocol.
        what: For people, one or two sentences.
        model, extractor: The pre-trained network, before it is adapted to the window.
        pool: Stars that may be drawn.
        test: Stars asked about.
        anchors: Synthetic spectra in the same window, flux and good on the extractor's grid: they hold the readout.
        fe_h_above: Stars of the pool with a lower [Fe/H] are never drawn, dex.
        synthetic: Row numbers -> synthetic stars in the same window, for the MLP that is pre-trained on them; None =
            there is none.
        adapts: Whether the network is shown them, too (`adapted`). It pays where theory is good: it takes a third off
            the error of metal-poor stars in the synthetic H band, and adds one in the optical (training/LOG.md).
        folder: Where that MLP and the adapted network are kept; None = nowhere.
        n_synthetic: How many stars they see.
    """

    name: str
    what: str
    model: SpectraFMForLabelPrediction = field(repr=False)
    extractor: SpectraFMFeatureExtractor = field(repr=False)
    pool: Observed = field(repr=False)
    test: Observed = field(repr=False)
    anchors: tuple[np.ndarray, np.ndarray] = field(repr=False)
    fe_h_above: float = -np.inf
    synthetic: Callable[[range], Drawn] | None = field(default=None, repr=False)
    folder: Path | None = field(default=None, repr=False)
    n_synthetic: int = N_SYNTHETIC
    adapts: bool = False

    def __post_init__(self) -> None:
        if leaked := set(self.pool.star_ids) & set(self.test.star_ids):
            raise ValueError(f"{self.name}: {len(leaked)} stars are to be learned from and asked about: {min(leaked)}.")

    def narrowed(self) -> Task:
        """The same task on no tokens but those that a spectrum shows; what is learned is the same, and learned faster.

        Whole, where these are on more than one detector, or where the extractor's grid is not made of `pixel_segments`.
        """
        parts = (self.pool.flux, self.pool.good), (self.test.flux, self.test.good), self.anchors
        shown = np.flatnonzero(np.any([good.any(axis=0) for _, good in parts], axis=0))
        patch = self.extractor.patch_size
        tokens = slice(int(shown[0]) // patch * patch, (int(shown[-1]) // patch + 1) * patch)
        on_one = any(run.start <= tokens.start and tokens.stop <= run.stop for run in self.extractor.segments)
        if not (self.extractor.pixel_segments and on_one):
            return self
        synthetic = self.synthetic

        def drawn(rows: range) -> Drawn:
            assert synthetic is not None
            labels, flux, good = synthetic(rows)
            return labels, flux[:, tokens], good[:, tokens]

        return replace(
            self,
            extractor=only_tokens(self.extractor, tokens),
            pool=replace(self.pool, flux=self.pool.flux[:, tokens], good=self.pool.good[:, tokens]),
            test=replace(self.test, flux=self.test.flux[:, tokens], good=self.test.good[:, tokens]),
            anchors=(self.anchors[0][:, tokens], self.anchors[1][:, tokens]),
            synthetic=None if synthetic is None else drawn,
        )

    def column(self, label: str = LABEL) -> int:
        return self.extractor.label_names.index(label)

    @cached_property
    def network(self) -> SpectraFMForLabelPrediction:
        """The network before the N stars; if the task `adapts`, after the first synthetic stars that the MLP sees."""
        if not self.adapts or self.synthetic is None:
            return self.model
        path = None if self.folder is None else self.folder / f"adapted-{self._origin}"
        if path is not None and path.is_dir():
            return SpectraFMForLabelPrediction.from_pretrained(path)
        found = adapt(self.model, self.extractor, *self.synthetic(range(min(self.n_synthetic, N_ADAPTING))))
        if path is not None:
            partial = path.with_name(f"{path.name}.unfinished")
            found.save_pretrained(partial)
            partial.rename(path)
        return found

    @cached_property
    def read(self) -> tuple[Predicted, Predicted, Predicted]:
        """The frozen network's answers and features for pool, test and anchors."""
        parts = (self.pool.flux, self.pool.good), (self.test.flux, self.test.good), self.anchors
        pool, test, anchors = (predict_on_grid(self.network, self.extractor, *part) for part in parts)
        return pool, test, anchors

    @cached_property
    def pixels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Continuum-normalised flux and good of the pool and of the test stars, on pixels that any star has."""
        return *self._normalised(self.pool.flux, self.pool.good), *self._normalised(self.test.flux, self.test.good)

    def _normalised(self, flux: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = self.pool.good.any(axis=0) & self.test.good.any(axis=0)
        normalised, usable = self.extractor.normalise(flux, good)
        return normalised[:, inside], usable[:, inside]

    def draw_synthetic(self, rows: range) -> Drawn:
        """Flux and good as `pixels` has them, and the label, of synthetic stars."""
        assert self.synthetic is not None
        labels, flux, good = self.synthetic(rows)
        return *self._normalised(flux, good), labels[:, self.column()]

    @cached_property
    def mlp(self) -> MLPPretraining:
        """The MLP before the N stars; trained if it is not there yet.

        Raises:
            ValueError: The task has no synthetic stars.
        """
        if self.synthetic is None:
            raise ValueError(f"{self.name} has no synthetic stars to pre-train an MLP on.")
        if self._mlp_path is not None and self._mlp_path.is_file():
            return MLPPretraining.load(self._mlp_path)
        found = MLPPretraining.run(self.draw_synthetic, self.n_synthetic)
        if self._mlp_path is not None:
            self._mlp_path.parent.mkdir(parents=True, exist_ok=True)
            found.save(self._mlp_path)
        return found

    @property
    def mlp_is_ready(self) -> bool:
        """Nothing is left to be learned before the N stars; also where there is nothing to learn from."""
        kept = self._mlp_path is not None and self._mlp_path.is_file()
        return kept or self.synthetic is None or "mlp" in vars(self)

    @property
    def _mlp_path(self) -> Path | None:
        return None if self.folder is None else self.folder / f"mlp-{self._shown}.safetensors"

    @cached_property
    def _shown(self) -> str:
        """Of which synthetic stars, and how many, is learned."""
        first = hashlib.sha256(str(self.n_synthetic).encode())
        for part in self.draw_synthetic(range(64)):
            first.update(np.ascontiguousarray(part).tobytes())
        return first.hexdigest()[:16]

    @cached_property
    def _origin(self) -> str:
        """The same, and by which network."""
        found = hashlib.sha256(self._shown.encode())
        for parameter in self.model.parameters():
            found.update(np.ascontiguousarray(parameter.detach().float().numpy()).tobytes())
        return found.hexdigest()[:16]

    def draw(self, n_stars: int, seed: int) -> list[int]:
        """Places in the pool of the N stars of a draw."""
        return draw_rows(self.pool.star_ids, self.pool.labels[:, self.column()], n_stars, self.fe_h_above, seed)

    def manifest(self, seeds: Sequence[int], sizes: Sequence[int]) -> dict[str, Any]:
        """Names of all stars by their role, and a SHA-256 of each list (names sorted, one per line)."""
        roles = {"test": self.test.star_ids, "pool": self.pool.star_ids}
        for n_stars in sizes:
            for seed in seeds:
                roles[f"draw {seed} of {n_stars}"] = [self.pool.star_ids[row] for row in self.draw(n_stars, seed)]
        return {
            role: {"n": len(names), "sha256": sha256_of(names), "star_ids": sorted(names)}
            for role, names in roles.items()
        }


def only_tokens(extractor: SpectraFMFeatureExtractor, tokens: slice) -> SpectraFMFeatureExtractor:
    """An extractor with no tokens but these: what it makes of them is the same, in less memory and time.

    Args:
        extractor: One with `pixel_segments`.
        tokens: Places of their pixels on its grid: whole tokens of one segment.
    """
    number = next(n for n, run in enumerate(extractor.segments) if run.start <= tokens.start < run.stop)
    even_in, first, step, _ = (extractor.pixel_segments or [])[number]
    first += (tokens.start - extractor.segments[number].start) * step
    told = extractor.to_dict() | {"pixel_segments": [[even_in, first, step, tokens.stop - tokens.start]]}
    if told["flux_wavelength"] is None:  # norms are of the whole grid
        told["flux_wavelength"] = extractor.wavelength_grid.tolist()
    return SpectraFMFeatureExtractor(**told)


def sha256_of(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


# ---------------------------------------------------------------- our ways


def read_by_network(task: Task, rows: Sequence[int], label: str = LABEL) -> tuple[Answer, np.ndarray]:
    """The frozen network with its readout solved anew; and its left-out answers for the N stars, (n_stars,)."""
    column, label_scale = task.column(label), task.extractor.label_scale[task.column(label)]
    pool, test, anchors = task.read
    known = np.asarray(rows)[np.isfinite(task.pool.labels[rows, column])]
    labels = task.pool.labels[known, column]
    residual = (labels - pool.mean[known, column]) / label_scale
    correction = solve_readout(pool.features[known, column], residual, anchors.features[:, column])
    shift = correction.bias + test.features[:, column] @ correction.weight
    mean = test.mean[:, column] + label_scale * shift
    left_out = labels - label_scale * correction.left_out
    return _with_sigma(task, known, mean, left_out, label), left_out


def _with_sigma(task: Task, rows: np.ndarray, mean: np.ndarray, left_out: np.ndarray, label: str) -> Answer:
    """The network's sigma, widened or narrowed so that the N stars, left out one by one, are inside as often as told.

    Of fewer than 30 stars nothing is known of their tails: the network's own sigma stays.
    """
    column = task.column(label)
    pool, test, _ = task.read
    factors = [1.0, 1.0]
    if rows.size >= FEWEST_STARS:
        errors = known_errors(get_label(label), task.pool.label_errors[rows, column], np.ones(rows.size, dtype=bool))
        residual = left_out - task.pool.labels[rows, column]
        factors = [
            sigma_factor(residual, sigma[rows, column], errors, probability, HALF_WIDTHS[interval])
            for (interval, probability), sigma in zip(NOMINAL_COVERAGE.items(), (pool.sigma, pool.sigma95), strict=True)
        ]
    return Answer(mean, factors[0] * test.sigma[:, column], factors[1] * test.sigma95[:, column])


def spectrafm(task: Task, rows: Sequence[int], seed: int) -> Answer:
    return read_by_network(task, rows)[0]


def spectrafm_zero_shot(task: Task, rows: Sequence[int], seed: int) -> Answer:
    test, column = task.read[1], task.column()
    return Answer(test.mean[:, column], test.sigma[:, column], test.sigma95[:, column])


def spectrafm_combined(task: Task, rows: Sequence[int], seed: int) -> Answer:
    """The network, and ridge regression where the network sees a star among the N (`combined`)."""
    column = task.column()
    network, left_out = read_by_network(task, rows)
    read_pool, read_test, _ = task.read
    pool, pool_good, test, test_good = task.pixels
    labels = task.pool.labels[rows, column]
    pixels = np.where(pool_good, pool, 1.0)[rows], np.where(test_good, test, 1.0)
    features = read_pool.features[rows, column], read_test.features[:, column]
    linear, linear_left_out = linear_answers((pixels, features), labels, seed)
    share = choose_share(left_out, linear_left_out, labels)
    mean = combine(network.mean, linear, nearness(network.mean, labels), share)
    both_left_out = combine(left_out, linear_left_out, nearness(left_out, labels), share)
    return _with_sigma(task, np.asarray(rows), mean, both_left_out, LABEL)


# ---------------------------------------------------------------- what they must beat


def fitted(method: Baseline, task: Task, rows: Sequence[int], seed: int) -> Answer:
    stars = task.pool.chosen(rows)
    pool, pool_good, test, test_good = task.pixels
    values_and_errors = method.told(task.extractor.label_names, LABEL, stars.labels, stars.label_errors)
    method.fit(pool[rows], pool_good[rows], *values_and_errors, seed)
    mean, sigma = method.predict(test, test_good)
    return Answer(mean, sigma, sigma)


def baseline(make: Callable[[], Baseline]) -> Callable[[Task, Sequence[int], int], Answer]:
    """A baseline as a method of a task."""
    return lambda task, rows, seed: fitted(make(), task, rows, seed)


def mlp_pretrained(task: Task, rows: Sequence[int], seed: int) -> Answer:
    """The MLP that has seen as many synthetic stars in this window as it can learn from, and then the N."""
    return fitted(PretrainedMLP(task.mlp), task, rows, seed)


def transformer_scratch(task: Task, rows: Sequence[int], seed: int) -> Answer:
    """Our network from random weights; as many showings of each star as the recipe has for a hundred."""
    recipe = recipe_folder() / "scratch.yaml"
    with tempfile.TemporaryDirectory() as folder:
        stage, training = read_recipe(recipe, seed=seed, output_dir=folder, report_to="none", disable_tqdm=True)
        stage = replace(stage, n_spectra=stage.n_spectra * len(rows) // (stage.n_stars or MAIN_SIZE))
        parts = task.model.config, task.pool.chosen(rows), task.test
        mean, sigma = transformer_from_scratch(stage, training, task.extractor, *parts)
    return Answer(mean, sigma, sigma)


OURS: Mapping[str, Callable[[Task, Sequence[int], int], Answer]] = {
    "spectrafm": spectrafm,
    "spectrafm_combined": spectrafm_combined,
    "spectrafm_zero_shot": spectrafm_zero_shot,
}
METHODS: Mapping[str, Callable[[Task, Sequence[int], int], Answer]] = {
    **OURS,
    "transformer_scratch": transformer_scratch,
    "mlp_pretrained": mlp_pretrained,
    **{name: baseline(make) for name, make in BASELINES.items()},
}


SLOW, SEEDS_OF_SLOW = ("transformer_scratch", "mlp_scratch", "mlp_pretrained"), 3
"""Methods that have only so many seeds where N is not the main size."""

SLOWEST = "transformer_scratch"
"""A training takes minutes: one seed where N is not the main size, and three in protocols outside `ALL_SEEDS`."""

ALL_SEEDS = ("paper_synthetic", "optical", "paper")
"""Protocols in which metal-poor stars are asked about and never learned from."""


def seeds_of(method: str, n_stars: int, protocol: str, n_seeds: int) -> range:
    """The draws that a method gets of the `n_seeds` that a benchmark has."""
    if n_stars != MAIN_SIZE:
        fewer = 1 if method == SLOWEST else SEEDS_OF_SLOW if method in SLOW else n_seeds
    else:
        fewer = SEEDS_OF_SLOW if method == SLOWEST and protocol not in ALL_SEEDS else n_seeds
    return range(min(n_seeds, fewer))


def figures(task: Task, answer: Answer) -> dict[str, Any]:
    """`all`, `metal_poor` and `metal_rich` -> figures of `metrics.summarise`; 95 % from its own interval."""
    column = task.column()
    truth, errors, label = task.test.labels[:, column], task.test.label_errors[:, column], get_label(LABEL)
    told = summarise_subsets(label, answer.mean, truth, truth, answer.sigma, errors)
    wide = summarise_subsets(label, answer.mean, truth, truth, answer.sigma95, errors)
    return {subset: {**told[subset], "coverage95": wide[subset]["coverage95"]} for subset in told}
