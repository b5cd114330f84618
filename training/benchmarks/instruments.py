"""One model for two instruments, and what non-spectral inputs are worth: trained here, measured here.

    python -m training.benchmarks.instruments --json FILE --figure FILE.png

trains two networks on the same synthetic stars, APOGEE-like (H band, 0.22 Angstrom per pixel, five labels) and
MILES-like (optical, 0.9 Angstrom, three labels), mixed one to one, each on its own pixels and at resolving powers from
its own down to a twelfth of it. One is told, at random, Teff, log g, [Fe/H] or a colour; the other never. Then, on
stars neither has seen:

1. both instruments, all labels;
2. log g at a signal-to-noise ratio of 30, told nothing, Teff, a colour, and both;
3. the H band seen at resolving powers from 22,500 down to 1,800.

A killed run goes on from its last checkpoint; what is done is not done again. `--quick` shows too few spectra to learn
much, and only that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import TrainingArguments, set_seed

from spectrafm_hf import SpectraFMConfig, SpectraFMFeatureExtractor, SpectraFMForLabelPrediction
from spectrafm_hf.builders.parquet_layout import write_json
from spectrafm_hf.collation import Interleaved, SpectrumCollator, SurveySpectra
from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import MAD_TO_SIGMA
from spectrafm_hf.recipe import has_bfloat16
from spectrafm_hf.stages import last_checkpoint, train
from spectrafm_hf.synthesis import surveys
from spectrafm_hf.synthesis.surveys import SurveyConditions, observe_survey

LABELS = ("teff", "logg", "fe_h", "mg_fe", "o_fe")
GIVEN = ("teff", "logg", "fe_h", "bp_rp")
PATCH_SIZE, CONTEXT = 64, 40
RECIPE_FILE, DONE_FILE = "recipe.json", "learning_curve.json"
EVALUATION_SEED = 1_000_003
SURVEYS = {name: surveys.SURVEYS[name] for name in ("apogee", "miles")}
PLAIN = SurveyConditions(wider=(1.0, 1.0), widened=0.0, unknown=0.0)
RESOLVING_POWERS = (22_500.0, 15_000.0, 10_000.0, 6_000.0, 4_000.0, 2_700.0, 1_800.0)
TOLD_ERRORS = {"teff": 50.0, "bp_rp": 0.03}
"""1-sigma of what is told in the measurement: K, mag."""


def say(text: str = "") -> None:
    print(text, flush=True)


def new_extractor() -> SpectraFMFeatureExtractor:
    """Native pixels of both surveys; mean and spread of the flux from 500 noisy stars of each."""
    extractor = SpectraFMFeatureExtractor(
        LABELS, [5000.0, 3.0, -0.9, 0.1, 0.15], [850.0, 1.4, 0.8, 0.2, 0.25],
        given_names=GIVEN, patch_size=PATCH_SIZE, pixel_width=None, wavelength_range=(3500.0, 17_000.0),
    )  # fmt: skip
    for survey in SURVEYS.values():
        labels, generators = SurveySpectra(extractor, survey, 500, seed=7).stars(range(500))
        clean = np.clip(survey.synthesizer(labels), 0.0, 1.1)
        seen = observe_survey(clean, survey, SurveyConditions(), generators)
        extractor.fit_flux_norms(seen.flux, seen.good, survey.wavelength)
    return extractor


def trained(folder: Path, told: bool, n_spectra: int, learning_rate: float) -> SpectraFMForLabelPrediction:
    """The network in `folder`, trained if it is not there yet.

    Args:
        told: With non-spectral inputs, told at random; or without any.
    """
    recipe = {"told": told, "spectra": n_spectra, "learning_rate": learning_rate, "context": CONTEXT}
    known = json.loads((folder / RECIPE_FILE).read_text()) if (folder / RECIPE_FILE).is_file() else recipe
    if known != recipe:
        raise SystemExit(f"{folder} was trained with {known}, asked for is {recipe}; choose another --output.")
    if (folder / DONE_FILE).is_file():
        return SpectraFMForLabelPrediction.from_pretrained(folder)
    write_json(folder / RECIPE_FILE, recipe)
    set_seed(0)
    extractor = new_extractor()
    config = SpectraFMConfig(
        label_names=LABELS, given_names=GIVEN if told else (), patch_size=PATCH_SIZE, shortest_period=10.0
    )
    if not told:
        extractor.given_names = []
    model = SpectraFMForLabelPrediction(config)
    model.set_attn_implementation("eager")  # on a CPU, in training, the faster one for so few tokens
    sets = [SurveySpectra(extractor, survey, n_spectra, seed=11, context=CONTEXT) for survey in SURVEYS.values()]
    arguments = TrainingArguments(
        output_dir=str(folder), learning_rate=learning_rate, lr_scheduler_type="cosine", warmup_steps=0.03,
        weight_decay=0.02, adam_beta2=0.98, per_device_train_batch_size=16, seed=0, logging_steps=50, save_steps=250,
        save_total_limit=1, dataloader_num_workers=1, bf16=has_bfloat16(),
        use_cpu=not torch.cuda.is_available(), report_to="none",
    )  # fmt: skip
    rows = Interleaved(*sets, n_spectra)
    history = train(model, extractor, rows, arguments, folder.name, last_checkpoint(folder))
    model.set_attn_implementation("sdpa")
    extractor.save_pretrained(folder)
    curve = [{"spectra": entry["step"] * 16, "loss": entry["loss"]} for entry in history if "loss" in entry]
    model.save_pretrained(folder)
    write_json(folder / DONE_FILE, curve)  # last: what a kill left half-written has none
    return model.eval()


@torch.inference_mode()
def scatter(
    model: SpectraFMForLabelPrediction,
    extractor: SpectraFMFeatureExtractor,
    survey: str,
    conditions: SurveyConditions,
    n_stars: int,
    context: int | None = None,
    told: tuple[str, ...] = (),
) -> dict[str, dict[str, float]]:
    """Label -> bias, scatter and pull (spread of residual / sigma) over `n_stars` unseen stars of a survey.

    Args:
        context: Tokens shown, a run anywhere; None = the whole spectrum.
        told: Non-spectral inputs given of every star, with errors of `TOLD_ERRORS`.
    """
    stars = SurveySpectra(extractor, SURVEYS[survey], n_stars, EVALUATION_SEED, context, conditions, given_share=0.0)
    collate = SpectrumCollator(extractor)
    found: dict[str, list[np.ndarray]] = {"residual": [], "pull": []}
    for start in range(0, n_stars, 50):
        numbers = range(start, min(start + 50, n_stars))
        batch = collate(stars.__getitems__(numbers))
        truth = extractor.decode_labels(batch.pop("labels"))
        if "given" in batch:
            drawn, _ = stars.stars(numbers)
            columns = stars.known(drawn)
            noise = np.stack([np.random.default_rng([EVALUATION_SEED, n]).standard_normal(len(GIVEN)) for n in numbers])
            values = {n: columns[n] + TOLD_ERRORS[n] * noise[:, GIVEN.index(n)] for n in told}
            given = extractor.encode_given(values, {n: TOLD_ERRORS[n] for n in told}, len(numbers))
            batch["given"], batch["given_errors"] = map(torch.from_numpy, given)
        batch.pop("label_errors")
        answer = model(**{name: values.to(model.device) for name, values in batch.items()})
        decoded = extractor.decode_labels(answer.label_mean, answer.label_log_var)
        residual = np.stack([decoded[name]["value"] - truth[name]["value"] for name in LABELS], axis=1)
        found["residual"].append(residual)
        found["pull"].append(residual / np.stack([decoded[name]["sigma"] for name in LABELS], axis=1))
    residual, pull = (np.concatenate(found[key]) for key in ("residual", "pull"))

    def spread(values: np.ndarray) -> float:
        return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))

    known = [name for name in LABELS if name in SURVEYS[survey].label_names and name not in told]
    return {
        name: {
            "bias": float(np.median(residual[:, LABELS.index(name)])),
            "scatter": spread(residual[:, LABELS.index(name)]),
            "pull": spread(pull[:, LABELS.index(name)]),
        }
        for name in known
    }


def write(values: dict[str, dict[str, float]], key: str = "scatter") -> str:
    return "  ".join(
        f"{get_label(name).symbol} {v[key]:.{0 if name == 'teff' else 3}f} {get_label(name).unit}"
        for name, v in values.items()
    )


def draw_figure(sweep: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Scatter of each label against resolving power; sweep: resolving power -> label -> figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(LABELS), figsize=(15, 3.2), sharex=True, layout="constrained")
    powers = [float(power) for power in sweep]
    for axis, name in zip(axes, LABELS, strict=True):
        label = get_label(name)
        axis.plot(powers, [entry[name]["scatter"] for entry in sweep.values()], "o-", color="#1f5fa8")
        axis.set_xscale("log")
        axis.invert_xaxis()
        axis.set_xticks([20_000, 10_000, 5_000, 2_000], ["20,000", "10,000", "5,000", "2,000"])
        axis.minorticks_off()
        axis.set_ylim(0, 1.15 * max(entry[name]["scatter"] for entry in sweep.values()))
        axis.set_title(label.symbol)
        axis.set_ylabel(f"scatter [{label.unit}]")
        axis.grid(alpha=0.3)
    figure.supxlabel("resolving power of an H-band spectrum, told to the model; signal-to-noise ratio 100")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/instruments"), help="folder of the two networks")
    parser.add_argument("--spectra", type=int, default=160_000, help="shown to each network, each one once")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--stars", type=int, default=1000, help="unseen stars of each measurement")
    parser.add_argument("--only", choices=("told", "never_told"), help="train this network and stop")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--figure", type=Path, help="draw scatter against resolving power here (PNG)")
    parser.add_argument("--quick", action="store_true", help="1,600 spectra and 100 stars")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.spectra, arguments.stars, arguments.output = 1600, 100, arguments.output / "quick"

    models = {}
    for name in ("told", "never_told") if arguments.only is None else (arguments.only,):
        folder = arguments.output / name
        models[name] = trained(folder, name == "told", arguments.spectra, arguments.learning_rate)
    if arguments.only is not None:
        return
    extractors = {name: SpectraFMFeatureExtractor.from_pretrained(arguments.output / name) for name in models}
    results: dict[str, Any] = {"spectra": arguments.spectra, "stars": arguments.stars}

    say(f"\n1. One model, two instruments: scatter over {arguments.stars} unseen stars, S/N 100, whole spectrum")
    results["instruments"] = {}
    for survey in SURVEYS:
        measured = scatter(
            models["told"], extractors["told"], survey, replace(PLAIN, snr=(100.0, 100.0)), arguments.stars
        )
        results["instruments"][survey] = measured
        say(f"   {survey:7} {write(measured)}")
        say(f"   {'':7} pull: " + "  ".join(f"{name} {value['pull']:.2f}" for name, value in measured.items()))

    say("\n2. log g at S/N 30: scatter in dex, told nothing, Teff (+-50 K), the colour BP-RP (+-0.03 mag), both")
    results["given"] = {}
    for survey in SURVEYS:
        for context in (None, 8):
            where = f"{survey}, {'whole spectrum' if context is None else f'{context * PATCH_SIZE} pixels'}"
            noisy = replace(PLAIN, snr=(30.0, 30.0))
            row = {}
            for told in ((), ("teff",), ("bp_rp",), ("teff", "bp_rp")):
                measured = scatter(models["told"], extractors["told"], survey, noisy, arguments.stars, context, told)
                row["+".join(told) or "nothing"] = measured["logg"]["scatter"]
            never = scatter(models["never_told"], extractors["never_told"], survey, noisy, arguments.stars, context)
            row["model never told"] = never["logg"]["scatter"]
            results["given"][where] = row
            say(f"   {where:24} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))

    say("\n3. The H band at lower resolving power: scatter, S/N 100, whole spectrum")
    results["resolving_power"] = {}
    for power in RESOLVING_POWERS:
        factor = RESOLVING_POWERS[0] / power
        conditions = replace(PLAIN, snr=(100.0, 100.0), wider=(factor, factor), widened=1.0)
        measured = scatter(models["told"], extractors["told"], "apogee", conditions, arguments.stars)
        results["resolving_power"][f"{power:.0f}"] = measured
        say(f"   R = {power:6,.0f}  {write(measured)}")
    if arguments.figure is not None:
        draw_figure(results["resolving_power"], arguments.figure)
        say(f"\nfigure   {arguments.figure}")
    if arguments.json is not None:
        write_json(arguments.json, results)
        say(f"figures  {arguments.json}")


if __name__ == "__main__":
    sys.exit(main())
