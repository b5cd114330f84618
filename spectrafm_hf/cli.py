"""`spectrafm`: reads options, calls the package, prints one sentence when something is wrong. No logic of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from .labelling import Labelled

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


class WrongUseIsOne(TyperCommand):
    """A command for which 2 is no wrong use, as it is elsewhere, but an answer."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        try:
            return super().make_context(*arguments, **more)
        except Exception as error:
            if getattr(error, "exit_code", None) == 2:  # a usage error, whose class depends on the version of typer
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


@app.command(cls=WrongUseIsOne)
def predict(
    sources: Annotated[
        list[Path] | None, typer.Argument(metavar="SOURCE...", help="Files of spectra, or folders of them.")
    ] = None,
    survey: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="SOURCE", help="The same; with --output also a dataset: a folder, or a Hub id."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="CATALOGUE",
            help="A row per spectrum, written while it goes on, to a file .parquet, .fits or .ecsv. The same command "
            "goes on after a kill.",
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Of a dataset with several.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset; by default all.")] = None,
    input_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a dataset on the Hub.")] = None,
    num_proc: Annotated[int, typer.Option(min=1, help="Processes for --output; one per core is fastest.")] = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", help="For --output: address of a Ray cluster, or `local`.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="For --output: hold every spectrum against the limits of the model (half of the time).")
    ] = True,
    model: Annotated[str, typer.Option(help="A model that ships, a folder or a Hub id.")] = "spectrafm-small",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="A label wanted, or several: `teff,fe_h`; by default all of the model.")
    ] = None,
    medium: Annotated[
        Literal["vacuum", "air"] | None, typer.Option(help="Of the wavelengths, where the files do not tell.")
    ] = None,
    velocity: Annotated[
        float | None, typer.Option(help="Of the star, km/s, positive = receding, where they are not at rest.")
    ] = None,
    redshift: Annotated[float | None, typer.Option(help="The same as z.")] = None,
    resolving_power: Annotated[float | None, typer.Option(help="lambda / FWHM, where the files do not tell.")] = None,
    wavelength_unit: Annotated[
        str | None, typer.Option(help="`Angstrom`, `nm`, `um`, ..., where the files do not tell.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="For the reader of the files, e.g. `kind=best-fit`; may be repeated.")
    ] = None,
    abstain: Annotated[
        bool, typer.Option("--abstain", help="No answer for spectra unlike those of training, and for guesses.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per spectrum and line.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw the spectrum, where each label looks, and whose lines are there; of several "
            "spectra FILE-1.png, FILE-2.png, ...",
        ),
    ] = None,
) -> None:
    """Labels of stars from their spectra, each with its uncertainty and with what speaks against it.

    Ends with 0 if all spectra were read, 2 if some were not (their lines say why), 1 if none was, or the call is wrong.

    Examples:

    `spectrafm predict aspcapStar-dr17-2M00000002+7417074.fits`

    `spectrafm predict spectra/ --json > labels.jsonl`

    `spectrafm predict --input survey/ --output catalogue.parquet --num-proc 2`

    `spectrafm predict star.txt --medium air --velocity -12.3 --resolving-power 2000 --labels teff,fe_h --plot star.png`
    """
    import json
    from itertools import tee

    from transformers.utils.logging import disable_progress_bar

    from .labelling import Labeller, draw
    from .sources import Conventions, count_source, read_source

    disable_progress_bar()
    wanted = [name for some in labels or () for name in some.split(",")] or None
    try:
        told = Conventions(
            medium=medium,
            velocity=velocity,
            redshift=redshift,
            wavelength_unit=wavelength_unit,
            resolving_power=resolving_power,
            reader=reader_options(option or []),
        )
        given = [*map(str, sources or ()), *([str(survey)] if survey else ())]
        if not given:
            raise ValueError("what is to be read? Give files or folders: spectrafm predict SOURCE...")
        source: Any = given[0] if len(given) == 1 else given
        if output is not None:
            from .catalogue import label_survey

            if as_json or plot is not None:
                raise ValueError("--json and --plot show spectra one by one; leave them out with --output.")
            made = label_survey(
                source, output, model=model, revision=revision, labels=wanted, abstain=abstain, check=check,
                conventions=told, config=config, split=split, input_revision=input_revision, num_proc=num_proc, ray=ray,
            )  # fmt: skip
            typer.echo(
                f"{'was there already' if made.was_done else 'written'}: {made.path}; {made.rows:,} spectra, "
                f"{made.flagged:,} with a flag, {made.unreadable:,} that could not be read"
            )
            raise typer.Exit(0 if not made.unreadable else 2 if made.unreadable < made.rows else 1)
        readings, beside = tee(read_source(source, told))  # beside it waits no more than is being labelled
        several = count_source(source) != 1
        labeller = Labeller(model, revision, wanted, abstain=abstain)
        shown, number, n_read = [], 0, 0
        for number, (labelled, reading) in enumerate(zip(labeller.label(readings), beside, strict=True), 1):
            n_read += labelled.readable
            if as_json:
                known = {"model": labeller.model_id, "revision": labeller.revision}
                typer.echo(json.dumps(labelled.to_dict() | known, allow_nan=False))
            else:
                shown.append(labelled)
            if plot is not None and labelled.readable:
                draw(labeller, reading, labelled, plot.with_stem(f"{plot.stem}-{number}") if several else plot)
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if n_read == 0 and not as_json:
        for labelled in shown:
            typer.echo(f"error: {' '.join(labelled.flags)}", err=True)
    elif not as_json:
        print_labels(shown)
    if n_read < number:
        raise typer.Exit(2 if n_read else 1)


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


def print_labels(spectra: Sequence[Labelled]) -> None:
    """A table of all labels, and below it, in words, what speaks against a spectrum and what was assumed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from .labelling import spoken
    from .labels import get_label

    table = Table(Column("name", overflow="fold"), "label", Column("value \u00b1 sigma", justify="right"), "unit")
    for spectrum in spectra:
        for row, (name, answer) in enumerate(spectrum.labels.items()):
            number, unit = spoken(answer).removesuffix(f" {answer.unit}"), answer.unit
            noted = " *" if answer.learned is False else ""
            table.add_row(escape(spectrum.name) if row == 0 else "", get_label(name).symbol, number + noted, unit)
        table.add_section()
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if any(answer.learned is False for spectrum in spectra for answer in spectrum.labels.values()):
        console.print("* a guess: the label was not learned at the wavelengths of this spectrum")
    for spectrum in spectra:
        for sentence in spectrum.flags:
            console.print(f"[bold]{escape(spectrum.name)}[/]: {escape(sentence)}")
    for sentence in dict.fromkeys(sentence for spectrum in spectra for sentence in spectrum.assumed):
        console.print(f"assumed: {escape(sentence)}")


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
    """Entry point: 0 = done, 2 = an error that one sentence explains, 130 = interrupted; `predict` tells its own."""
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
