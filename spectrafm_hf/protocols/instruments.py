"""Across instruments, all real: trained on MILES, asked about STELIB; the same star must get the same labels.

Stage 2 sees the training stars of MILES from 3,600 to 7,400 Angstrom. STELIB has other pixels, another resolution, its
own calibration and telluric bands. A star of both libraries is in one split by its name, so the STELIB stars asked
about are those that neither training nor calibration saw in either library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..builders.libraries import Library
from ..builders.splits import split_of
from ..collation import SyntheticSpectra
from ..feature_extraction_spectrafm import SpectraFMFeatureExtractor
from ..hub import load_pretrained
from ..labels import get_label
from ..metrics import MAD_TO_SIGMA
from ..modeling_spectrafm import SpectraFMForLabelPrediction
from ..prediction import Observed, Predicted, predict_on_grid
from ..recipe import read_recipe, recipe_folder
from ..spectra import Spectrum
from ..stage_data import synthesis
from .few_labels import Task
from .optical import ANCHOR_SEED, stage_2, synthetic_stars

WINDOW = (3600.0, 7400.0)
COMMON_LABELS = ("teff", "logg", "fe_h")


def read_spectra(
    model: SpectraFMForLabelPrediction, extractor: SpectraFMFeatureExtractor, stars: Sequence[Spectrum]
) -> tuple[Observed, Predicted]:
    """Stars in the window, and the model's answer."""
    observed = Observed.from_spectra(stars, extractor, WINDOW)
    return observed, predict_on_grid(model, extractor, observed.flux, observed.good)


def compare_pairs(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    first: Sequence[Spectrum],
    second: Sequence[Spectrum],
) -> dict[str, dict[str, float]]:
    r"""Do two spectra of the same stars give the same labels?

    Args:
        first, second: The same stars in the same order, of two instruments.

    Returns:
        Label -> `n`; `scatter` of the difference and its `bias` (K or dex); `pull`, its scatter in units of
        :math:`\sqrt{\sigma_1^2 + \sigma_2^2}`: at most about 1 if the uncertainties are right, since errors that both
        spectra share cancel.
    """
    (_, one), (_, other) = (read_spectra(model, extractor, stars) for stars in (first, second))
    told = {}
    for name in COMMON_LABELS:
        column = extractor.label_names.index(name)
        difference = (one.mean - other.mean)[:, column]
        expected = np.hypot(one.sigma[:, column], other.sigma[:, column])
        bias = float(np.median(difference))
        told[name] = {
            "n": difference.size,
            "bias": bias,
            "scatter": float(MAD_TO_SIGMA * np.median(np.abs(difference - bias))),
            "pull": float(MAD_TO_SIGMA * np.median(np.abs(difference - bias) / expected)),
            "unit": get_label(name).unit,
        }
    return told


def across_instruments_task(start: str, output: Path, miles: Library, stelib: Library) -> tuple[Task, dict[str, Any]]:
    """[Fe/H] of STELIB stars that nobody has seen, and pairs of spectra of the same stars.

    Returns:
        The task; and `pairs`, `pairs_unseen` (of stars that stage 2 and its calibration have not seen) and
        `pairs_zero_shot` (by the model of synthetic spectra alone), see `compare_pairs`.
    """
    model, extractor = load_pretrained(stage_2(start, output, WINDOW))
    by_name = {star.star_id: star for star in miles.spectra}
    common = [star for star in stelib.spectra if star.star_id in by_name]
    unseen = [star for star in common if split_of(star.star_id) == "test"]

    def both(stars: Sequence[Spectrum]) -> tuple[list[Spectrum], Sequence[Spectrum]]:
        return [by_name[star.star_id] for star in stars], stars

    pairs = {
        "pairs": compare_pairs(model, extractor, *both(common)),
        "pairs_unseen": compare_pairs(model, extractor, *both(unseen)),
        "pairs_zero_shot": compare_pairs(*load_pretrained(start), *both(common)),
    }
    asked = [star for star in stelib.spectra if split_of(star.star_id) == "test"]
    few_shot, _ = read_recipe(recipe_folder() / "3-few-shot.yaml", model=start)
    anchors = SyntheticSpectra(extractor, few_shot.n_anchors, ANCHOR_SEED, window=WINDOW, **synthesis(few_shot))
    _, flux, good = anchors.on_grid(range(len(anchors)))
    task = Task(
        name="across_instruments",
        what=f"[Fe/H] of {len(asked)} STELIB stars that nothing saw in either library, "
        f"{WINDOW[0]:.0f}-{WINDOW[1]:.0f} vacuum Angstrom. Ours has learned from all "
        f"{len(miles.split('train'))} training stars of MILES there, the others from the N.",
        model=model,
        extractor=extractor,
        pool=Observed.from_spectra(miles.split("train"), extractor, WINDOW),
        test=Observed.from_spectra(asked, extractor, WINDOW),
        anchors=(flux, good),
        synthetic=synthetic_stars(extractor, WINDOW, synthesis(few_shot)),
        folder=output.parent,
    )
    return task, pairs
