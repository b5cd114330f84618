"""The transfer protocol: three stages, what pre-training is worth, and the stars nobody has seen.

    stage 1  synthetic spectra, 3,600-7,400 A            teff, logg, fe_h
    stage 2  MILES training stars, 3,600-5,500 A         teff, logg, fe_h
    stage 3  100 of them with [Fe/H] > -1, 5,800-7,400 A       fe_h only
    test     all MILES test stars, 5,800-7,400 A, metal-poor ones above all

Every method of the comparison gets the same 100 stars, the same pixels and the same normalisation. A run uses nothing
of a test star to choose anything; what was looked at while the recipes were written is told in training/LOG.md.
Whatever is finished is kept on disk, so that a run takes up where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainingArguments

from . import plots
from .answers import load_answer, save_answer
from .baselines import BASELINES
from .builders.libraries import Library, load_library
from .builders.parquet_layout import write_json
from .checkpoints import located
from .collation import SyntheticSpectra
from .configuration_spectrafm import SpectraFMConfig
from .feature_extraction_spectrafm import SpectraFMFeatureExtractor
from .few_shot import draw_stars
from .labels import get_label
from .metrics import (
    METAL_POOR_BELOW,
    METHOD_NAMES,
    TRUE_LABEL_ERROR,
    summarise_bins,
    summarise_labels,
    summarise_subsets,
)
from .model_card import results_table
from .modeling_spectrafm import SpectraFMForLabelPrediction
from .prediction import Observed, predict_on_grid
from .publishing import card_facts, draw_learning_curve, write_card
from .recipe import StageArguments, read_recipe, recipe_folder
from .scratch import transformer_from_scratch
from .stage_data import lowest_fe_h, synthesis
from .stages import DONE_FILE, few_threads, fingerprint, run_stage

logger = logging.getLogger(__name__)

STAGE_NAMES = ("1-synthetic", "2-observed", "3-few-shot")
SCRATCH_RECIPE = "scratch"
LABEL = "fe_h"
COMPARED = ("mlp_scratch", "cannon", "ridge", "median")
"""Baselines of the main job; `benchmark` has more of them."""
WANTED_METAL_POOR = 40


@dataclass(frozen=True)
class TransferPlan:
    """What `run_transfer` does.

    Attributes:
        output: Folder of the run.
        n_seeds: Draws of the 100 stars.
        recipes: Folder with the recipes; None = those of the package.
        budget: Factor on the number of spectra of every stage; below 1 for a smoke test.
        again: Repeat what is done.
        start: A pre-trained model instead of stage 1: one that ships, a folder or a Hub repository. None = pre-train.
    """

    output: Path
    n_seeds: int = 1
    recipes: Path | None = None
    budget: float = 1.0
    again: bool = False
    start: str | None = None

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Stages that are run."""
        return STAGE_NAMES if self.start is None else STAGE_NAMES[1:]

    def recipe(self, name: str, **changes: Any) -> tuple[StageArguments, TrainingArguments]:
        path = (self.recipes or recipe_folder()) / f"{name}.yaml"
        stage, training = read_recipe(path, **changes)
        n_spectra = stage.n_spectra if self.budget == 1 else max(int(stage.n_spectra * self.budget), 64)
        return replace(stage, n_spectra=n_spectra), training

    def __post_init__(self) -> None:
        if self.n_seeds < 1:
            raise ValueError(f"at least 1 seed is needed, got {self.n_seeds}.")
        if not 0 < self.budget < np.inf:
            raise ValueError(f"budget must be a finite positive factor, got {self.budget:g}.")


def run_transfer(plan: TransferPlan) -> dict[str, Any]:
    """Run the protocol, or what of it is not done yet.

    Returns:
        The content of results.json; beside it lie the three model folders, their cards and the figures.

    Raises:
        ValueError: A recipe, or too few stars; OSError: the folder cannot be written;
        LibrariesUnavailableError: the stars are neither in the cache nor to be had.
    """
    recipes = {
        name: plan.recipe(name, output_dir=str(plan.output / name)) for name in (*plan.stage_names, SCRATCH_RECIPE)
    }
    check_recipes(recipes)
    n_steps = len(plan.stage_names) + 1 + plan.n_seeds
    announce(1, n_steps, "stars: the MILES library")
    library = load_library("miles")
    logger.info("%s", library)
    check_test_stars(library, recipes["3-few-shot"][0], plan.n_seeds)

    parent = None if plan.start is None else located(plan.start)
    for step, name in enumerate(plan.stage_names[:-1], start=2):
        stage, training = recipes[name]
        announce(step, n_steps, f"stage {name}: {stage.n_spectra:,} spectra")
        parent = str(run_stage(stage if parent is None else replace(stage, model=parent), training, plan.again))

    assert parent is not None
    records: list[dict[str, Any]] = []
    first: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    test = library.split("test")
    truth = np.array([star.labels[LABEL] for star in test])
    for seed in range(plan.n_seeds):
        announce(
            n_steps - plan.n_seeds + seed,
            n_steps,
            f"stage 3-few-shot and what it is compared with, draw {seed + 1} of {plan.n_seeds}",
        )
        home = plan.output if seed == 0 else plan.output / "draws" / str(seed)
        stage, training = plan.recipe("3-few-shot", output_dir=str(home / "3-few-shot"), seed=seed, model=parent)
        folder = run_stage(stage, training, plan.again)
        answers = compare(plan, home / "predictions", stage, training, Path(parent), folder, library)
        first = first or answers
        methods = {
            name: summarise_subsets(get_label(LABEL), mean, truth, truth, sigma)  # the label is [Fe/H] itself
            for name, (mean, sigma) in answers.items()
        }
        records.append({"seed": seed, "n_train": stage.n_stars, "methods": methods})

    announce(n_steps, n_steps, "table, figures, cards")
    results = assemble(plan, recipes, library, records, first, truth)
    write_json(plan.output / "results.json", results)
    draw(plan, results, first, truth)
    write_cards(plan, results)
    return results


def announce(step: int, n_steps: int, what: str) -> None:
    logger.info("\n[%d/%d] %s", step, n_steps, what)


def check_recipes(recipes: dict[str, tuple[StageArguments, TrainingArguments]]) -> None:
    """Refuse recipes that make no comparison, before the training.

    Raises:
        ValueError: Stage 3 draws no stars, or the network from scratch is to see other ones.
    """
    few_shot, scratch = recipes["3-few-shot"][0], recipes[SCRATCH_RECIPE][0]
    if few_shot.n_stars is None or few_shot.fe_h_above is None or few_shot.labels != [LABEL]:
        raise ValueError(f"recipe 3-few-shot must set n_stars and fe_h_above, and its labels must be [{LABEL}].")
    for key in ("data", "labels", "window", "n_stars", "fe_h_above"):
        if getattr(few_shot, key) != getattr(scratch, key):
            raise ValueError(
                f"recipes 3-few-shot and {SCRATCH_RECIPE} must agree on {key} to be compared, got "
                f"{getattr(few_shot, key)} and {getattr(scratch, key)}."
            )


def check_test_stars(library: Library, few_shot: StageArguments, n_seeds: int) -> None:
    """Fail before the training if the last stage cannot be run.

    Raises:
        ValueError: Too few stars to draw from, or no metal-poor test star.
    """
    assert few_shot.n_stars is not None  # see check_recipes
    draw_stars(library.split("train"), few_shot.n_stars, lowest_fe_h(few_shot), seed=0)
    n_poor = sum(star.labels[LABEL] < METAL_POOR_BELOW for star in library.split("test"))
    if n_poor == 0:
        raise ValueError(
            "the test split has no star with [Fe/H] < -1 dex, so there is nothing to compare; loosen the cuts."
        )
    if n_poor < WANTED_METAL_POOR:
        logger.warning("only %d metal-poor test stars; %d are wanted for a comparison", n_poor, WANTED_METAL_POOR)


# ---------------------------------------------------------------- the methods, on the same stars and pixels


def compare(
    plan: TransferPlan,
    folder: Path,
    stage: StageArguments,
    training: TrainingArguments,
    parent: Path,
    few_shot: Path,
    library: Library,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every method's answer for the test stars: name -> mean and sigma of [Fe/H], each of shape (n_test,), dex.

    Answers are kept in `folder`, one file per method, each with the fingerprint of what it came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    extractor = SpectraFMFeatureExtractor.from_pretrained(parent)
    assert stage.n_stars is not None
    stars = draw_stars(library.split("train"), stage.n_stars, lowest_fe_h(stage), training.seed)
    learn = Observed.from_spectra(stars, extractor, stage.window)
    test = Observed.from_spectra(library.split("test"), extractor, stage.window)
    learn_pixels, test_pixels = window_pixels(extractor, learn), window_pixels(extractor, test)
    column = extractor.label_names.index(LABEL)

    def pre_trained(checkpoint: Path) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        def answer() -> tuple[np.ndarray, np.ndarray]:
            model = SpectraFMForLabelPrediction.from_pretrained(checkpoint)
            predicted = predict_on_grid(model, extractor, test.flux, test.good)
            return predicted.mean[:, column], predicted.sigma[:, column]

        return answer

    def baseline(name: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        def answer() -> tuple[np.ndarray, np.ndarray]:
            method = BASELINES[name]()
            values_and_errors = method.told(extractor.label_names, LABEL, learn.labels, learn.label_errors)
            method.fit(*learn_pixels, *values_and_errors, training.seed)
            return method.predict(*test_pixels)

        return answer

    def scratch() -> tuple[np.ndarray, np.ndarray]:
        recipe = plan.recipe(SCRATCH_RECIPE, output_dir=str(folder / "scratch"), seed=training.seed)
        return transformer_from_scratch(*recipe, extractor, SpectraFMConfig.from_pretrained(parent), learn, test)

    ways = {
        "spectrafm": pre_trained(few_shot),
        "spectrafm_zero_shot": pre_trained(parent),
        "transformer_scratch": scratch,
        **{name: baseline(name) for name in COMPARED},
    }
    origin = json.loads((few_shot / DONE_FILE).read_text())["fingerprint"]
    scratch_recipe = fingerprint(*plan.recipe(SCRATCH_RECIPE, seed=training.seed))
    answers = {}
    for name in ways:
        path = folder / f"{name}.npz"
        key = hashlib.sha256(f"{name}:{origin}:{scratch_recipe}:{','.join(test.star_ids)}".encode()).hexdigest()
        kept = None if plan.again else load_answer(path, key)
        if kept is None:
            logger.info("  %s", METHOD_NAMES[name])
            with few_threads():
                kept = ways[name]()
            save_answer(path, key, kept)
        mean, sigma = kept
        answers[name] = mean, sigma
    return answers


def window_pixels(extractor: SpectraFMFeatureExtractor, observed: Observed) -> tuple[np.ndarray, np.ndarray]:
    """Continuum-normalised flux and good of the pixels that any star has; shapes (n_stars, n_pixels of the window)."""
    normalised, good = extractor.normalise(observed.flux, observed.good)
    inside = observed.good.any(axis=0)
    return normalised[:, inside], good[:, inside]


def assemble(
    plan: TransferPlan,
    recipes: dict[str, tuple[StageArguments, TrainingArguments]],
    library: Library,
    records: list[dict[str, Any]],
    answers: dict[str, tuple[np.ndarray, np.ndarray]],
    truth: np.ndarray,
) -> dict[str, Any]:
    """results.json; see the README for its schema."""
    few_shot, test = recipes["3-few-shot"][0], library.split("test")
    in_bins = {name: np.array([star.labels[name] for star in test]) for name in ("fe_h", "teff", "logg")}
    low, high = few_shot.window
    blue = recipes["2-observed"][0]
    results: dict[str, Any] = {
        "protocol": (
            f"[Fe/H] of all {len(test)} held-out MILES stars from {low:.0f}-{high:.0f} vacuum Angstrom, learned there "
            f"from {few_shot.n_stars} MILES stars with [Fe/H] > {few_shot.fe_h_above:g}; split by star. The "
            f"pre-trained network saw synthetic spectra and, from {blue.window[0]:.0f}-{blue.window[1]:.0f} Angstrom, "
            f"all {len(library.split('train'))} stars of the training split with their labels before."
        ),
        **records[0],
        "n_test": len(test),
        "n_test_metal_poor": int((truth < METAL_POOR_BELOW).sum()),
        "label": LABEL,
        "unit": get_label(LABEL).unit,
        "bins": {
            name: summarise_bins(get_label(LABEL), mean, truth, in_bins, sigma)
            for name, (mean, sigma) in answers.items()
        },
        "stages": {name: stage_results(plan, recipes, name, library) for name in plan.stage_names[:-1]},
        "selection": library.report.to_dict(),
        "splits": {split: len(library.split(split)) for split in ("train", "validation", "test")},
        "budget": plan.budget,
        "versions": {
            name: metadata.version(name) for name in ("spectrafm_hf", "transformers", "torch", "scikit-learn")
        },
    }
    if len(records) > 1:
        results["seeds"] = records
        results["wins"] = {
            name: sum(
                r["methods"]["spectrafm"]["metal_poor"]["rmse"] < r["methods"][name]["metal_poor"]["rmse"]
                for r in records
            )
            for name in records[0]["methods"]
            if not name.startswith("spectrafm")
        }
    return results


def stage_results(
    plan: TransferPlan, recipes: dict[str, tuple[StageArguments, TrainingArguments]], name: str, library: Library
) -> dict[str, Any]:
    """How good a stage is at what it learned, per label: unseen synthetic stars, or the test stars in its window."""
    stage, folder = recipes[name][0], plan.output / name
    model = SpectraFMForLabelPrediction.from_pretrained(folder)
    extractor = SpectraFMFeatureExtractor.from_pretrained(folder)
    if stage.data == "synthetic":
        unseen = SyntheticSpectra(extractor, 500, seed=1_000_003, **synthesis(stage))
        labels, flux, good = unseen.on_grid(range(len(unseen)))
        what = f"{len(unseen)} synthetic stars it has not seen, observed as in training"
    else:
        observed = Observed.from_spectra(library.split("test"), extractor, stage.window)
        labels, flux, good = observed.labels, observed.flux, observed.good
        what = f"all {len(flux)} held-out MILES stars"
    answer = predict_on_grid(model, extractor, flux, good)
    errors = np.full(labels.shape, TRUE_LABEL_ERROR) if stage.data == "synthetic" else None
    return {
        "protocol": f"Labels of {what}, from {stage.window[0]:.0f}-{stage.window[1]:.0f} vacuum Angstrom.",
        **summarise_labels(extractor.label_names, answer.mean, labels, answer.sigma, errors),
    }


# ---------------------------------------------------------------- what people look at


def draw(
    plan: TransferPlan, results: dict[str, Any], answers: dict[str, tuple[np.ndarray, np.ndarray]], truth: np.ndarray
) -> None:
    """The figures, as PNG in `output/figures`."""
    output, folder = plan.output, plan.output / "figures"
    plots.plot_predicted_against_true(dict(answers), truth, get_label(LABEL), folder / "predicted_against_true.png")
    plots.plot_metal_poor_rmse(results, folder / "metal_poor_rmse.png")
    for name in plan.stage_names:
        record = json.loads((output / name / DONE_FILE).read_text())
        draw_learning_curve(record, folder / f"learning_curve_{name}.png")


def write_cards(plan: TransferPlan, results: dict[str, Any]) -> None:
    """README.md, results.json and figures of the three model folders, from results.json and stage.json alone."""
    for name in plan.stage_names:
        folder, told = plan.output / name, results if name == "3-few-shot" else results["stages"][name]
        copy_figures(plan.output / "figures", folder / "figures", name)
        write_json(folder / "results.json", told)
        facts = card_facts(folder)
        if plan.budget != 1:
            facts["recipe"] += f", with {plan.budget:g} of its spectra"
        write_card(folder, told, facts)


def copy_figures(made: Path, beside_the_card: Path, stage: str) -> None:
    """A stage's figures to where its card shows them."""
    names = [f"learning_curve_{stage}.png"]
    if stage == "3-few-shot":
        names += ["predicted_against_true.png", "metal_poor_rmse.png"]
    beside_the_card.mkdir(exist_ok=True)
    for name in names:
        if (made / name).is_file():
            shutil.copyfile(made / name, beside_the_card / name)


__all__ = ["TransferPlan", "results_table", "run_transfer"]
