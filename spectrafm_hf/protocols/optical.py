"""Optical, all real: MILES in the red, with 10 to 300 labelled stars.

The network starts from synthetic spectra and has seen all training stars of MILES in the blue (stage 2 of the main
job); the N stars of a draw have [Fe/H] > -1 and are seen from 5,800 to 7,400 Angstrom. All test stars are asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..builders.libraries import Library
from ..builders.splits import Split
from ..collation import SyntheticSpectra
from ..feature_extraction_spectrafm import SpectraFMFeatureExtractor
from ..hub import load_pretrained
from ..prediction import Observed
from ..recipe import read_recipe, recipe_folder
from ..stage_data import lowest_fe_h, synthesis
from ..stages import run_stage
from .few_labels import N_SYNTHETIC, Drawn, Task

ANCHOR_SEED, MLP_SEED = 2, 3


def stage_2(start: str, output: Path, window: tuple[float, float] | None = None) -> Path:
    """The folder of stage 2 of the main job, from the pre-trained model `start`; run if it is not there yet.

    Args:
        window: Of the real spectra, vacuum Angstrom; None = the recipe's, the blue.
    """
    changes = {} if window is None else {"window": list(window)}
    stage, training = read_recipe(
        recipe_folder() / "2-observed.yaml", model=start, output_dir=str(output), report_to="none", **changes
    )
    return run_stage(stage, training)


def optical_task(start: str, output: Path, library: Library, split: Split = "test") -> Task:
    """MILES, red.

    Args:
        start: Pre-trained model: a folder or a Hub repository.
        output: Folder of stage 2.
        library: MILES.
        split: Stars asked about; `validation` while something is still being chosen.
    """
    model, extractor = load_pretrained(stage_2(start, output))
    few_shot, _ = read_recipe(recipe_folder() / "3-few-shot.yaml", model=start)
    pool, asked = (Observed.from_spectra(library.split(name), extractor, few_shot.window) for name in ("train", split))
    anchors = SyntheticSpectra(
        extractor, few_shot.n_anchors, ANCHOR_SEED, window=few_shot.window, **synthesis(few_shot)
    )
    _, flux, good = anchors.on_grid(range(len(anchors)))
    low, high = few_shot.window
    return Task(
        name="optical",
        what=f"[Fe/H] of {len(asked.flux)} MILES stars ({split} split) from {low:.0f}-{high:.0f} vacuum Angstrom; "
        f"labelled stars from the training split, [Fe/H] > {lowest_fe_h(few_shot):g}. Ours has seen all "
        f"{len(pool.flux)} training stars in the blue before, with their labels.",
        model=model,
        extractor=extractor,
        pool=pool,
        test=asked,
        anchors=(flux, good),
        fe_h_above=lowest_fe_h(few_shot),
        synthetic=synthetic_stars(extractor, few_shot.window, synthesis(few_shot)),
        folder=output.parent,
    )


def synthetic_stars(
    extractor: SpectraFMFeatureExtractor, window: Sequence[float], conditions: Mapping[str, Any]
) -> Callable[[range], Drawn]:
    """Synthetic optical stars in a window, as stage 1 of the main job sees them; for a task's `synthetic`."""
    made = SyntheticSpectra(extractor, N_SYNTHETIC, MLP_SEED, window=window, **conditions)

    def drawn(rows: range) -> Drawn:
        labels, flux, good = made.on_grid(rows)
        return made.known(labels), flux, good

    return drawn
