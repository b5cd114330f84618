"""`spectrafm pretrain`, `finetune`, `calibrate`, `benchmark`: what changes a model, and what it is worth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import reader_options


def pretrain(
    recipe: Annotated[Path, typer.Argument(help="A page of YAML: see training/recipes.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the stage; by default runs/STAGE.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Parent, over the recipe's: a folder or a Hub id.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Over the recipe's.")] = None,
    n_spectra: Annotated[int | None, typer.Option(min=1, help="Spectra to show, over the recipe's.")] = None,
    push_to: Annotated[
        str | None, typer.Option(metavar="NAMESPACE", help="Publish the stage there; see `spectrafm push`.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository of --push-to public.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Repeat the stage although it is done.")] = False,
) -> None:
    """Train one stage from its recipe: pre-training, fine-tuning, or the few-shot stage.

    A killed stage goes on with the same command and ends with the same weights. On several GPUs:
    `torchrun --nproc_per_node gpu training/train.py RECIPE --output FOLDER`.

    Example: `spectrafm pretrain training/recipes/1-synthetic.yaml --output runs/mine`
    """
    import logging

    from transformers.utils.logging import disable_progress_bar

    from ..publishing import publish
    from ..recipe import read_recipe
    from ..stages import leave_process_group, run_stage

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("spectrafm_hf").setLevel(logging.INFO)
    disable_progress_bar()  # of saving and loading; the stage has a bar of its own
    told = {"output_dir": output and str(output), "model": model, "seed": seed, "n_spectra": n_spectra}
    changes = {name: value for name, value in told.items() if value is not None}
    try:
        folder = run_stage(*read_recipe(recipe, **changes), again=again)
        if push_to:
            publish(folder, push_to, private=not public)
    finally:
        leave_process_group()
    typer.echo(f"saved to {folder}")


def finetune(
    labels: Annotated[Path, typer.Option(help="Table of labels: CSV, Parquet, FITS or ECSV, one row per file.")],
    spectra: Annotated[Path, typer.Option(help="Folder of the spectra; names in the table are relative to it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tuned model.")] = Path("my-model"),
    model: Annotated[str | None, typer.Option(help="Parent: a folder or Hub id; by default the one we ship.")] = None,
    model_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub parent.")] = None,
    method: Annotated[
        Literal["auto", "head", "lora", "full"],
        typer.Option(help="`head` leaves the weights alone, `lora` and `full` train; `auto` finds out what pays."),
    ] = "auto",
    labels_wanted: Annotated[
        list[str] | None, typer.Option(help="A label to learn, may be repeated; by default all that the model knows.")
    ] = None,
    window: Annotated[
        tuple[float, float] | None, typer.Option(help="Part of the spectra to use, LOW HIGH in vacuum Angstrom.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Parts of the stars that take turns in judging; by default 5, or 4 of many.")
    ] = None,
    showings: Annotated[
        int | None, typer.Option(help="Most spectra shown in a training; by default 20 per star, and up to 2,000.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    file_column: Annotated[str | None, typer.Option(help="Column of file names.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of star names; visits of a star share one.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="For the reader of the files, e.g. `medium=air` or `frame=rest`; may be repeated."),
    ] = None,
) -> None:
    """Tune a model to 10 to 1,000 labelled stars of your own, and find out what it is worth on others.

    Example: `spectrafm finetune --labels mytable.csv --spectra spectra --output my-model`
    """
    import json

    from transformers.utils.logging import disable_progress_bar

    from ..few_shot_kit import KitArguments
    from ..few_shot_kit import finetune as run
    from ..few_shot_report import summary

    disable_progress_bar()  # of saving and loading; a training has a bar of its own
    folder = run(
        KitArguments(
            labels=labels,
            spectra=spectra,
            output=output,
            model=model,
            revision=model_revision,
            method=method,
            labels_wanted=labels_wanted,
            window=window,
            folds=folds,
            showings=showings,
            seed=seed,
            file_column=file_column,
            id_column=id_column,
            reader_options=reader_options(option or []),
        )
    )
    typer.echo(summary(json.loads((folder / "results.json").read_text())))
    typer.echo(f"report {folder}/report.md; model {folder}, for AutoModel.from_pretrained")


def calibrate(
    folder: Annotated[Path, typer.Argument(help="Of a finished stage that mixed two surveys.", exists=True)],
    n_stars: Annotated[int, typer.Option(min=3000, help="Unseen synthetic stars of each survey.")] = 10_000,
) -> None:
    """Learn from unseen synthetic stars how far a pre-trained model is off, and what it was not trained for.

    Both are saved beside its weights, and every prediction uses them. About five minutes on one core. What was
    measured with the intervals before, in results.json and on the card, stays as it was.

    Example: `spectrafm calibrate runs/spectrafm-small`
    """
    from ..trust import fit_trust

    fit_trust(folder, n_stars)
    typer.echo(f"{folder}: intervals in preprocessor_config.json, limits in applicability.safetensors")
    if former := [name for name in ("results.json", "README.md") if (folder / name).is_file()]:
        typer.echo(
            f"still of the former intervals: {' and '.join(former)}; python -m training.ship {folder} "
            "--dataset DATASET --to FOLDER makes a copy of the model with intervals, results and card anew"
        )


def benchmark(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; a second run goes on there.")],
    model: Annotated[str, typer.Option(help="Pre-trained model: one that ships, a folder or a Hub id.")] = (
        "spectrafm-small"
    ),
    protocol: Annotated[
        list[str] | None, typer.Option(help="One of the parts, may be repeated; by default all.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Likewise of the methods.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the labelled stars.")] = 10,
    window_stars: Annotated[
        Path | None, typer.Option(help="Real APOGEE window stars (.npz) for the protocol apogee_window.")
    ] = None,
    dr17: Annotated[
        str | None,
        typer.Option(
            help="APOGEE DR17 for the protocol paper: a dataset built with --split paper, a copy of the SDSS archive, "
            "or hugging-science/mmu_apogee_dr17."
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Fits beside each other.")] = 2,
    development: Annotated[
        bool, typer.Option("--development", help="Ask about validation stars, while something is being chosen.")
    ] = False,
) -> None:
    """Compare the model with what it must beat, on the same labelled stars and pixels.

    Example: `spectrafm benchmark --output runs/benchmark --protocol optical --seeds 3`
    """
    import logging

    from transformers.utils.logging import disable_progress_bar

    from ..benchmark import PARTS, BenchmarkPlan, run_benchmark, table

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("spectrafm_hf").setLevel(logging.INFO)
    disable_progress_bar()  # of saving and loading
    plan = BenchmarkPlan(
        output=output,
        model=model,
        n_seeds=seeds,
        protocols=tuple(protocol or PARTS),
        methods=tuple(method) if method else None,
        window_stars=window_stars,
        dr17=dr17,
        n_processes=processes,
        development=development,
    )
    if lacking := [f"{part} {why}" for part in dict.fromkeys(protocol or ()) if (why := plan.lacks(part))]:
        raise ValueError(f"what was asked for cannot run: {'; '.join(lacking)}.")
    typer.echo(table(run_benchmark(plan)))
    typer.echo(f"\nresults {output}/benchmark.json; stars {output}/manifest.json; figures {output}/figures")
