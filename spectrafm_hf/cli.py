"""`spectrafm`: reads options, calls the package, prints one sentence when something is wrong. No logic of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    help="Stellar labels from spectra: datasets, training, prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
build = typer.Typer(
    help="Build a dataset: a folder of Parquet with a card, which `datasets.load_dataset` streams without our code. "
    "A killed build is finished by the same command; a folder with another build is refused.",
    no_args_is_help=True,
)
app.add_typer(build, name="build")

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the dataset.")]
Shards = Annotated[
    int | None, typer.Option(min=1, help="Files per split; by default 8 for large sets, fewer for small ones.")
]
NumProc = Annotated[int, typer.Option(min=1, help="Processes. The bytes do not depend on it.")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Address of a Ray cluster (`auto`, `ray://host:10001`), or `local` for one of --num-proc workers here. "
        "The output must be on a file system all nodes share.",
    ),
]
SplitRule = Annotated[
    Literal["name", "paper"],
    typer.Option("--split", help="`name`: by the star's name, for ever. `paper`: 80/20 at random, as in the paper."),
]


def run_build(configs: list[Any], output: Path, shards: int | None, num_proc: int, ray: str | None) -> None:
    """Build, then say where it is and how to load it."""
    from .builders.build import build_dataset

    made = build_dataset(configs, output, shards, num_proc, ray, progress=sys.stderr.isatty())
    for config in configs:
        plan = made.plans[config.name]
        counts = ", ".join(f"{split} {made.rows(config.name, split):,}" for split in plan.splits)
        typer.echo(f"{config.name}: {counts}" + (f"\n{plan.report}" if plan.report is not None else ""))
    if made.skipped:
        typer.echo(f"{len(made.skipped)} inputs could not be used; {output}/skipped.csv says why")
    typer.echo(f"{'was built already' if made.was_done else 'built'}: {output}; no star is in two splits")
    typer.echo(f'load_dataset("{output}", "{configs[0].name}", streaming=True)')


@build.command()
def synthetic(
    output: Output,
    n: Annotated[int, typer.Option("--n", min=1, help="Spectra in all; a tenth of them is validation.")] = 90_000,
    seed: Annotated[int, typer.Option(min=0, help="With the row number, decides everything.")] = 0,
    survey: Annotated[Literal["apogee"], typer.Option(help="Whose pixels, resolution and stars.")] = "apogee",
    backend: Annotated[
        Literal["response", "cannon", "synspec"],
        typer.Option(help="`response`: five labels; `cannon`: three; `synspec`: five, from first principles, slow."),
    ] = "response",
    synspec: Annotated[
        Path | None,
        typer.Option(help="Folder made by `python -m spectrafm_hf.synthesis.synspec_install`, for that backend."),
    ] = None,
    stars: Annotated[Literal["all", "dwarfs", "giants"], typer.Option(help="Which of DR17's stars.")] = "all",
    metal_poor_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of stars replaced by ones with [Fe/H] from -2.5 to -1 dex.")
    ] = 0.0,
    extra_scatter: Annotated[
        float, typer.Option(min=0, max=0.5, help="1-sigma added to [Mg/Fe] and [O/Fe], dex.")
    ] = 0.0,
    shards: Shards = None,
    num_proc: NumProc = 1,
    ray: Ray = None,
) -> None:
    """Synthetic spectra of stars as APOGEE DR17 has them.

    Example: `spectrafm build synthetic --output data/synthetic --survey apogee --n 90000 --num-proc 2`
    """
    from .builders.synthetic import SyntheticConfig

    config = SyntheticConfig(
        n=n,
        seed=seed,
        survey=survey,
        backend=backend,
        synspec=None if synspec is None else str(synspec),
        stars=stars,
        metal_poor_share=metal_poor_share,
        extra_scatter=extra_scatter,
    )
    run_build([config], output, shards, num_proc, ray)


@build.command("apogee-dr17")
def apogee_dr17(
    output: Output,
    archive: Annotated[Path, typer.Option(help="Copy of the SDSS archive: the folder that holds dr17/.")],
    catalogue: Annotated[Path | None, typer.Option(help="allStar file, if it is not in the archive.")] = None,
    split: SplitRule = "name",
    seed: Annotated[int, typer.Option(min=0, help="Of the split `paper`.")] = 0,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Only so many stars, for a trial.")] = None,
    shards: Shards = None,
    num_proc: NumProc = 1,
    ray: Ray = None,
) -> None:
    """APOGEE DR17 from a copy of the archive: observed spectra and ASPCAP's best fits, with the paper's cuts.

    Example: `spectrafm build apogee-dr17 --output data/apogee --archive /sas --num-proc 8`
    """
    from .builders.apogee_dr17 import ApogeeDr17Config

    configs = [
        ApogeeDr17Config(
            name=name,
            archive=str(archive),
            catalogue=None if catalogue is None else str(catalogue),
            split_rule=split,
            seed=seed,
            n=n,
        )
        for name in ("observed", "synthetic")
    ]
    run_build(configs, output, shards, num_proc, ray)


@build.command("mmu-apogee-dr17")
def mmu_apogee_dr17(
    output: Output,
    catalogue: Annotated[
        str, typer.Option(help="Repository (hf://datasets/...) or a folder with a copy of it.")
    ] = "hf://datasets/hugging-science/mmu_apogee_dr17",
    revision: Annotated[str | None, typer.Option(help="Commit of the repository.")] = None,
    split: SplitRule = "name",
    seed: Annotated[int, typer.Option(min=0, help="Of the split `paper`.")] = 0,
    shards: Shards = None,
    num_proc: NumProc = 1,
    ray: Ray = None,
) -> None:
    """APOGEE DR17 from the MultimodalUniverse catalogue on the Hub, with the paper's cuts.

    Example: `spectrafm build mmu-apogee-dr17 --output data/apogee --revision 1a2b3c4 --num-proc 8`
    """
    from .builders.mmu_apogee_dr17 import MmuApogeeDr17Config

    config = MmuApogeeDr17Config(catalogue=catalogue, revision=revision, split_rule=split, seed=seed)
    run_build([config], output, shards, num_proc, ray)


@build.command()
def miles(
    output: Output,
    cache: Annotated[Path | None, typer.Option(help="Where the library is, or is fetched to.")] = None,
    num_proc: NumProc = 1,
    ray: Ray = None,
) -> None:
    """MILES: 767 F, G and K stars; fetched once (121 MB).

    Example: `spectrafm build miles --output data/miles`
    """
    from .builders.stellar_libraries import MilesConfig

    run_build([MilesConfig(cache_dir=None if cache is None else str(cache))], output, None, num_proc, ray)


@build.command()
def stelib(
    output: Output,
    cache: Annotated[Path | None, typer.Option(help="Where the library is, or is fetched to.")] = None,
    num_proc: NumProc = 1,
    ray: Ray = None,
) -> None:
    """STELIB: 151 F, G and K stars, each on pixels of its own; fetched once (121 MB).

    Example: `spectrafm build stelib --output data/stelib`
    """
    from .builders.stellar_libraries import StelibConfig

    run_build([StelibConfig(cache_dir=None if cache is None else str(cache))], output, None, num_proc, ray)


@build.command()
def folder(
    output: Output,
    folder: Annotated[Path, typer.Option(help="Holds the spectra; names in the table are relative to it.")],
    table: Annotated[Path, typer.Option(help="Labels: CSV, Parquet, FITS or ECSV, one row per file.")],
    file_column: Annotated[str | None, typer.Option(help="Column of file names.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of star names; the split hangs on them.")] = None,
    survey: Annotated[str, typer.Option(help="Name of your survey, in every row.")] = "own",
    title: Annotated[str | None, typer.Option(help="Title of the dataset card.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the spectra, as the Hub writes it.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="For the reader of the files, e.g. `medium=air` or `frame=rest`; may be repeated."),
    ] = None,
    shards: Shards = None,
    num_proc: NumProc = 1,
    ray: Ray = None,
) -> None:
    """Your own spectra: a folder of files and a table of labels.

    Example: `spectrafm build folder --output data/mine --folder spectra --table stars.csv --file-column spectrum`
    """
    from .builders.labelled_folder import FolderConfig

    config = FolderConfig(
        folder=str(folder),
        table=str(table),
        file_column=file_column,
        id_column=id_column,
        survey=survey,
        pretty_name=title,
        license=licence,
        reader_options=reader_options(option or []),
    )
    run_build([config], output, shards, num_proc, ray)


@app.command()
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

    from .few_shot_kit import KitArguments
    from .few_shot_kit import finetune as run
    from .few_shot_report import summary

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


@app.command()
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

    from .benchmark import PARTS, BenchmarkPlan, run_benchmark, table

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("spectrafm_hf").setLevel(logging.INFO)
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
    typer.echo(table(run_benchmark(plan)))
    typer.echo(f"\nresults {output}/benchmark.json; stars {output}/manifest.json; figures {output}/figures")


@app.command()
def calibrate(
    folder: Annotated[Path, typer.Argument(help="Of a finished stage that mixed two surveys.", exists=True)],
    n_stars: Annotated[int, typer.Option(min=3000, help="Unseen synthetic stars of each survey.")] = 10_000,
) -> None:
    """Learn from unseen synthetic stars how far a pre-trained model is off, and what it was not trained for.

    Both are saved beside its weights, and every prediction uses them. About five minutes on one core. What was
    measured with the intervals before, in results.json and on the card, stays as it was.

    Example: `spectrafm calibrate runs/spectrafm-small`
    """
    from .trust import fit_trust

    fit_trust(folder, n_stars)
    typer.echo(f"{folder}: intervals in preprocessor_config.json, limits in applicability.safetensors")
    if former := [name for name in ("results.json", "README.md") if (folder / name).is_file()]:
        typer.echo(
            f"still of the former intervals: {' and '.join(former)}; python -m training.ship {folder} "
            "--dataset DATASET --to FOLDER makes a copy of the model with intervals, results and card anew"
        )


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="A model that ships, a folder or a Hub id.")] = "spectrafm-small",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of report and figures.")] = Path("explanation"),
    survey: Annotated[Literal["apogee", "optical"], typer.Option(help="Whose synthetic stars are asked.")] = "apogee",
    n_stars: Annotated[int, typer.Option(min=4, help="How many of them.")] = 32,
) -> None:
    """Which lines a model reads: its attention, and what happens when lines are hidden or abundances change.

    Example: `spectrafm explain spectrafm-small --output runs/explanation`
    """
    from .builders.parquet_layout import write_json
    from .checkpoints import located
    from .explain import explain as ask
    from .hub import load_pretrained
    from .synthesis.surveys import SURVEYS

    network, extractor = load_pretrained(located(model))
    found = ask(network, extractor, SURVEYS[survey], n_stars=n_stars)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "explanation.json", found.to_dict())
    (output / "report.txt").write_text(found.report() + "\n")
    found.save_figures(output)
    typer.echo(found.report())
    typer.echo(f"\nreport, figures and numbers in {output}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Of a finished stage, or of `spectrafm build`.")],
    to: Annotated[str, typer.Option(help="NAMESPACE (user or organisation), or NAMESPACE/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; it is private else.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and send nothing.")] = False,
) -> None:
    """Publish a model or a dataset on the Hugging Face Hub, in one commit: whole, or not at all.

    Example: `spectrafm push runs/transfer/1-synthetic --to my-name --dry-run`
    """
    from .publishing import publish, what_goes

    if dry_run:
        repo, kind, files = what_goes(folder, to)
        for name, size in files.items():
            typer.echo(f"{size / 1e6:10.3f} MB  {name}")
        typer.echo(
            f"{sum(files.values()) / 1e6:10.3f} MB  {len(files)} files would go to the {kind} repository {repo} "
            f"({'public' if public else 'private'}, if it is new); nothing was sent"
        )
        return
    pushed = publish(folder, to, private=not public)
    typer.echo(f"{pushed.url} is now at {pushed.revision}")


def reader_options(given: list[str]) -> dict[str, str]:
    """`name=value` -> name and value.

    Raises:
        ValueError: One has no `=`.
    """
    for one in given:
        if "=" not in one:
            raise ValueError(f"--option must be name=value, got {one!r}.")
    return dict(one.split("=", 1) for one in given)


def main() -> None:
    """Entry point: 0 = done, 2 = an error that one sentence explains, 130 = interrupted."""
    from .readers.mangadap_wheel import LibrariesUnavailableError

    try:
        app()
    except (ValueError, OSError, LibrariesUnavailableError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where it was", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
