"""The paper's three stages on synthetic H-band spectra, with an honest gap between theory and nature.

Stage 1 knows the synthesizer. "Nature" differs from it in everything a synthesizer may be wrong about: every line has
a strength of its own, the same for all stars; the line-spread function, the macroturbulence, the continuum, the noise
and the velocities are others; published labels are off, by chance and by scale. As in the paper, stage 2 learns from
real spectra in the first half of the band, and the last stage from N stars with [Fe/H] > -1 in 512 pixels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import TrainingArguments, set_seed

from ..baselines import MLPPretraining
from ..collation import Interleaved, ObservedSpectra, row_generator
from ..feature_extraction_spectrafm import SpectraFMFeatureExtractor
from ..hub import load_pretrained
from ..prediction import Observed
from ..pretraining import (
    LINE_PIXELS,
    STRENGTH_PIXELS,
    Contexts,
    Shower,
    SyntheticRows,
    SyntheticStars,
    grid_columns,
    misjudge,
)
from ..recipe import has_accelerator, has_bfloat16
from ..spectra import apogee_wavelength
from ..stages import last_checkpoint, train
from ..synthesis.apogee import ApogeeSynthesizer
from ..synthesis.dr17_sampler import Dr17LabelSampler
from ..synthesis.instrument import ApogeeConditions, observe_apogee
from ..synthesis.observing import ObservingConditions, misjudge_lines
from ..synthesis.surveys import SURVEYS, SurveyConditions, observe_survey
from .few_labels import N_SYNTHETIC, Drawn, Task

logger = logging.getLogger(__name__)

FIRST_HALF, FEW_SHOT_PIXELS = slice(0, 3757), slice(4107, 4619)
"""Of the 7,514 pixels, as in Koblischke & Bovy 2024 (stage 2: 0 to 3756; stage 3: 4107 to 4618)."""

N_OBSERVED, N_POOL, N_TEST = 1500, 800, 2000
"""Stars of stage 2; stars of which the few are drawn; stars asked about, a fifth of them metal-poor."""

N_SPECTRA, N_ANCHORS = 8000, 600
NATURE_SEED = 20_411
DONE_MARK = "stage-2-is-done"
MLP_SEED = 3
PUBLISHED_ERRORS = {"teff": 60.0, "logg": 0.08, "fe_h": 0.03, "mg_fe": 0.03, "o_fe": 0.04}
"""1-sigma of the labels of nature's catalogue, K and dex: as large as those of APOGEE DR19's pipeline."""


REAL_CONDITIONS = ApogeeConditions(snr=(60.0, 250.0), vmacro=(4.0, 12.0), velocity=1.5, continuum=0.02, missing=0.05)


@dataclass(frozen=True)
class Nature:
    """What the stars of stages 2 and 3 are like.

    Args:
        line_strength: 1-sigma of the error of opacities, natural logarithm, 300 pixels long.
        line_list: 1-sigma of the error of each line's depth, relative to three times the depth around it.
        scale: Published minus true [Fe/H] at solar, dex, and per dex of [Fe/H].
        seed: Decides which lines err, and how.
    """

    line_strength: float = 0.1
    line_list: float = 0.02
    scale: tuple[float, float] = (0.03, 0.05)
    conditions: ApogeeConditions = REAL_CONDITIONS
    seed: int = NATURE_SEED

    def stars(
        self, extractor: SpectraFMFeatureExtractor, n_stars: int, metal_poor_share: float, seed: int, prefix: str
    ) -> Observed:
        """Stars with catalogue labels, whole spectra on the extractor's grid."""
        rng = np.random.default_rng([self.seed, seed])
        sampler, synthesizer = Dr17LabelSampler(metal_poor_share=metal_poor_share), ApogeeSynthesizer()
        drawn = sampler.draw(rng, n_stars)
        for column, name in enumerate(synthesizer.label_names):
            drawn[:, column] = np.clip(drawn[:, column], *synthesizer.bounds[name])
        clean = np.concatenate([synthesizer(drawn[i : i + 250]) for i in range(0, n_stars, 250)])
        # One generator for all: the same lines err in every star.
        all_alike = [np.random.default_rng([self.seed, 0]) for _ in range(n_stars)]
        clean = misjudge_lines(clean, self.line_strength, self.line_list, (STRENGTH_PIXELS, LINE_PIXELS), all_alike)
        seen = observe_apogee(np.clip(clean, 0.01, 1.05).astype(np.float32), self.conditions, rng)
        true = dict(zip(synthesizer.label_names, drawn.T, strict=True))
        true["fe_h"] = true["fe_h"] + self.scale[0] + self.scale[1] * true["fe_h"]
        errors = np.array([PUBLISHED_ERRORS[name] for name in extractor.label_names])
        labels = np.column_stack([true[name] for name in extractor.label_names])
        labels = labels + errors * rng.standard_normal(labels.shape)
        flux, good = on_grid(extractor, seen["flux"], ~seen["bad_pixel"])
        return Observed([f"{prefix}{i:05d}" for i in range(n_stars)], flux, good, labels, np.tile(errors, (n_stars, 1)))


def on_grid(extractor: SpectraFMFeatureExtractor, flux: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spectra on the 7,514 APOGEE pixels -> on the extractor's grid, which holds them."""
    columns = grid_columns(extractor, SURVEYS["apogee"])
    shape = (len(flux), extractor.wavelength_grid.size)
    everywhere, usable = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
    everywhere[:, columns], usable[:, columns] = np.where(good, flux, 0.0), good
    return everywhere, usable


def only_pixels(extractor: SpectraFMFeatureExtractor, stars: Observed, pixels: slice) -> Observed:
    """The same stars with all other APOGEE pixels hidden."""
    return only_wavelengths(extractor, stars, apogee_wavelength()[pixels][[0, -1]])


def only_wavelengths(extractor: SpectraFMFeatureExtractor, stars: Observed, ends: np.ndarray) -> Observed:
    """The same stars with all pixels hidden but those from `ends[0]` to `ends[1]`, vacuum Angstrom."""
    shown = stars.good & extractor.inside(float(ends[0]) - 0.05, float(ends[1]) + 0.05)
    return Observed(stars.star_ids, stars.flux, shown, stars.labels, stars.label_errors)


THEORY = ObservingConditions(line_strength=0.3, line_list=0.06)
THEORY_CONDITIONS = SurveyConditions(snr=(50.0, 500.0), widened=0.2, wider=(1.0, 3.0), continuum=0.01)
"""What synthetic H-band stars are like in stage 2 of the network, and in the pre-training of the MLP."""


def replay(extractor: SpectraFMFeatureExtractor, n_spectra: int, seed: int, contexts: Contexts) -> SyntheticRows:
    """Synthetic H-band stars as stage 1 saw them."""
    shower = Shower(extractor, SURVEYS["apogee"], contexts, label_error=0.03)
    return SyntheticRows(SyntheticStars(shower, THEORY_CONDITIONS, THEORY), n_spectra, seed)


def theory_stars(extractor: SpectraFMFeatureExtractor, ends: np.ndarray) -> Callable[[range], Drawn]:
    """The same stars from `ends[0]` to `ends[1]`, vacuum Angstrom; for a task's `synthetic`."""
    survey = SURVEYS["apogee"]
    shown = extractor.inside(float(ends[0]) - 0.05, float(ends[1]) + 0.05)

    def drawn(rows: range) -> Drawn:
        generators = [row_generator(MLP_SEED, row) for row in rows]
        stars = np.stack([survey.draw(rng) for rng in generators])
        clean = misjudge(np.clip(survey.synthesizer(stars), 0.0, 1.1), THEORY, generators)
        seen = observe_survey(clean, survey, THEORY_CONDITIONS, generators)
        known = dict(zip(survey.label_names, stars.T, strict=True))
        flux, good = on_grid(extractor, seen.flux, seen.good)
        return np.column_stack([known[name] for name in extractor.label_names]), flux, good & shown

    return drawn


def stage_folder(start: str, output: Path, *told: str) -> Path:
    """A folder in `output`, named by the weights of `start` and by whatever else a stage 2 hangs on."""
    model, _ = load_pretrained(start)
    found = hashlib.sha256("\n".join(told).encode())
    for weight in model.parameters():
        found.update(np.ascontiguousarray(weight.detach().numpy()).tobytes())
    return output / f"2-observed-{found.hexdigest()[:8]}"


def stage_2(start: str, output: Path, nature: Nature, n_observed: int, n_spectra: int) -> Path:
    """The pre-trained model after nature's stars in the first half of the band; trained if it is not there yet."""
    folder = stage_folder(start, output, str(nature), str(n_observed), str(n_spectra))

    def stars(extractor: SpectraFMFeatureExtractor) -> Observed:
        return only_pixels(extractor, nature.stars(extractor, n_observed, 0.05, seed=1, prefix="observed-"), FIRST_HALF)

    return tune(start, folder, stars, n_spectra, "paper_synthetic, stage 2")


def tune(
    start: str, output: Path, stars: Callable[[SpectraFMFeatureExtractor], Observed], n_spectra: int, name: str
) -> Path:
    """A pre-trained model after real stars, shown in turns with synthetic ones; trained if it is not there yet.

    Args:
        start: Pre-trained model.
        output: Its folder afterwards.
        stars: Extractor -> the stars, on its grid.
        n_spectra: Shown in all, half of them real.
        name: For people.
    """
    if (output / DONE_MARK).is_file():
        return output
    set_seed(0)
    model, extractor = load_pretrained(start)
    seen = stars(extractor)
    real = ObservedSpectra(
        extractor, seen.flux, seen.good, seen.labels, seen.label_errors, n_spectra, seed=0, noise=0.003,
        continuum_wiggle=0.01, missing_tokens=0.3,
    )  # fmt: skip
    rows = Interleaved(real, replay(extractor, n_spectra, 1, Contexts()), n_spectra)
    training = TrainingArguments(
        output_dir=str(output), learning_rate=2e-4, lr_scheduler_type="cosine", warmup_steps=30, weight_decay=0.02,
        adam_beta2=0.98, per_device_train_batch_size=32, seed=0, logging_steps=20, save_steps=100, save_total_limit=1,
        report_to="none", bf16=has_bfloat16(), use_cpu=not has_accelerator(),
    )  # fmt: skip
    model.set_attn_implementation("eager")
    train(model, extractor, rows, training, name, last_checkpoint(output))
    model.set_attn_implementation("sdpa")
    extractor.sigma_factors, extractor.recalibration, extractor.learned_ranges = {}, None, {}  # were of the parent
    extractor.save_pretrained(output)
    model.save_pretrained(output)
    (output / DONE_MARK).touch()  # the last thing, so that a killed run is not taken for a finished one
    return output


def paper_synthetic_task(start: str, output: Path, budget: float = 1.0) -> Task:
    """The paper's protocol on nature's stars.

    Args:
        start: Pre-trained model.
        output: Folder of what is made once.
        budget: Factor on stars and spectra; below 1 for a trial.
    """
    nature = Nature()
    n_observed, n_test, n_spectra = (max(round(budget * n), 60) for n in (N_OBSERVED, N_TEST, N_SPECTRA))
    model, extractor = load_pretrained(str(stage_2(start, output, nature, n_observed, n_spectra)))
    pool, test = (
        only_pixels(extractor, nature.stars(extractor, n, share, seed, prefix), FEW_SHOT_PIXELS)
        for n, share, seed, prefix in ((N_POOL, 0.0, 2, "pool-"), (n_test, 0.2, 3, "test-"))
    )
    anchors = only_pixels(
        extractor, nature_of_theory().stars(extractor, N_ANCHORS, 0.5, seed=4, prefix="anchor-"), FEW_SHOT_PIXELS
    )
    return Task(
        name="paper_synthetic",
        what=f"[Fe/H] of {n_test} stars of a nature that theory does not know, from 512 H-band pixels "
        "(16,106-16,220 vacuum Angstrom); labelled stars with [Fe/H] > -1.",
        model=model,
        extractor=extractor,
        pool=pool,
        test=test,
        anchors=(anchors.flux, anchors.good),
        fe_h_above=-1.0,
        synthetic=theory_stars(extractor, apogee_wavelength()[FEW_SHOT_PIXELS][[0, -1]]),
        folder=output,
        n_synthetic=max(round(budget * N_SYNTHETIC), MLPPretraining.CHUNK),
        adapts=True,
    )


def nature_of_theory() -> Nature:
    """A nature without errors of theory: anchors are what the synthesizer says."""
    return Nature(line_strength=0.0, line_list=0.0, scale=(0.0, 0.0), conditions=ApogeeConditions())
