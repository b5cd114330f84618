"""A pre-trained model gets what it ships with: calibrated intervals, limits, a card that says what real stars said.

    python -m training.ship runs/spectrafm-small --dataset runs/synthetic-3 --to spectrafm_hf/checkpoints/NAME

Takes about ten minutes on one core, and the MILES library (`make transfer` fetches it). Of MILES it looks at the
training and validation stars, never at the test stars.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from spectrafm_hf.builders.libraries import load_library
from spectrafm_hf.builders.parquet_layout import write_json
from spectrafm_hf.feature_extraction_spectrafm import SpectraFMFeatureExtractor
from spectrafm_hf.hub import load_pretrained
from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import summarise_labels
from spectrafm_hf.modeling_spectrafm import SpectraFMForLabelPrediction
from spectrafm_hf.prediction import Predicted, ask, rows_of
from spectrafm_hf.publishing import card_facts, draw_learning_curve, write_card
from spectrafm_hf.recipe import StageArguments
from spectrafm_hf.stage_data import held_out, judge, open_dataset, training_facts
from spectrafm_hf.trust import fit_trust

FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "results.json", "stage.json")
REAL_LABELS = ["teff", "logg", "fe_h"]


def main(
    folder: Annotated[Path, typer.Argument(help="Of the finished stage.")],
    dataset: Annotated[Path, typer.Option(help="The dataset it streamed, for what the card says of it.")],
    to: Annotated[Path, typer.Option(help="Folder that ships.")],
    n_stars: Annotated[int, typer.Option(min=3000, help="Unseen synthetic stars of each survey.")] = 20_000,
) -> None:
    final, to = to, to.with_name(f"{to.name}.unfinished")  # whole or not at all
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(folder / name, to / name)
    fit_trust(to, n_stars)
    model, extractor = load_pretrained(to)
    record = json.loads((to / "stage.json").read_text())
    stage = replace(StageArguments(**record["recipe"]), dataset=str(dataset))
    streamed = open_dataset(stage)
    facts = training_facts(stage, streamed, extractor, [])
    record |= {name: value for name, value in facts.items() if name != "datasets"}
    record["weaknesses"] = weaknesses(model, extractor)
    write_json(to / "stage.json", record)
    results = judge(model, extractor, held_out(stage, streamed, extractor), calibrate=False, learned=stage.labels)
    write_json(to / "results.json", results)
    draw_learning_curve(record, to / "figures" / "learning_curve.png")
    write_card(to, results, card_facts(to))
    shutil.rmtree(final, ignore_errors=True)
    to.rename(final)
    print(f"{final} is ready to ship")


def weaknesses(model: SpectraFMForLabelPrediction, extractor: SpectraFMFeatureExtractor) -> list[str]:
    """What real stars say of a model that has seen none."""
    library = load_library("miles")
    stars = [*library.split("train"), *library.split("validation")]
    answer = Predicted.of(extractor, *ask(model, extractor, rows_of(extractor, stars), 64))
    columns = [extractor.label_names.index(name) for name in REAL_LABELS]
    truth = np.array([[star.labels[name] for name in REAL_LABELS] for star in stars])
    found = summarise_labels(
        REAL_LABELS, answer.mean[:, columns], truth, answer.sigma[:, columns], np.full(truth.shape, np.nan)
    )["labels"]
    said = []
    for name in REAL_LABELS:
        label, figures = get_label(name), found[name]
        digits = 0 if label.unit == "K" else 2
        said.append(
            f"{label.symbol} by {figures['bias']:+.{digits}f} {label.unit} (scatter {figures['scatter']:.{digits}f}; "
            f"{figures['coverage68']:.0%} inside the 68 % interval)"
        )
    return [
        "Neither this stage nor those before it saw a real spectrum. Asked for the catalogue labels of "
        f"{len(stars)} MILES stars (3,584-7,411 Angstrom, training and validation splits; the labels are good to about "
        f"100 K, 0.2 and 0.1 dex, which is counted in), it is off in {', '.join(said)}. Sigma covers what noise does, "
        "not what theory gets wrong: tune the model to stars of your own survey first. No real spectrum of the H band "
        "was at hand.",
        "In the optical it did not learn [Mg/Fe] and [O/Fe]: what it says of them there means nothing.",
    ]


if __name__ == "__main__":
    typer.run(main)
