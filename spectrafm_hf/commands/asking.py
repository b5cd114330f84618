"""`spectrafm predict`, `evaluate`, `similar`, `explain`: what a model says of spectra, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from .options import (
    BadPixel,
    Medium,
    ReaderOption,
    Redshift,
    ResolvingPower,
    Velocity,
    WavelengthUnit,
    conventions_told,
    reader_options,
)

if TYPE_CHECKING:
    from ..labelling import Labelled


class WrongUseIsOne(TyperCommand):
    """A command for which 2 is no wrong use, as it is elsewhere, but an answer."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        try:
            return super().make_context(*arguments, **more)
        except Exception as error:
            if getattr(error, "exit_code", None) == 2:  # a usage error, whose class depends on the version of typer
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


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
    embeddings: Annotated[
        bool,
        typer.Option("--embeddings", help="For --output .parquet: also what `spectrafm similar` searches in."),
    ] = False,
    model: Annotated[str, typer.Option(help="A model that ships, a folder or a Hub id.")] = "spectrafm-small",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="A label wanted, or several: `teff,fe_h`; by default all of the model.")
    ] = None,
    medium: Medium = None,
    velocity: Velocity = None,
    redshift: Redshift = None,
    resolving_power: ResolvingPower = None,
    wavelength_unit: WavelengthUnit = None,
    bad_pixel: BadPixel = None,
    option: ReaderOption = None,
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

    Medium, velocity and the like are told of files that do not tell them. One that does, and differs, is refused if it
    is the only one; among others its own is kept, and said.

    Examples:

    `spectrafm predict aspcapStar-dr17-2M00000002+7417074.fits`

    `spectrafm predict spectra/ --json > labels.jsonl`

    `spectrafm predict --input survey/ --output catalogue.parquet --num-proc 2`

    `spectrafm predict star.txt --medium air --velocity -12.3 --resolving-power 2000 --labels teff,fe_h --plot star.png`
    """
    import json
    from itertools import tee

    from transformers.utils.logging import disable_progress_bar

    from ..labelling import Labeller, draw
    from ..sources import count_source, read_source

    disable_progress_bar()
    try:
        told = conventions_told(medium, velocity, redshift, resolving_power, wavelength_unit, bad_pixel, option)
        given = [*map(str, sources or ()), *([str(survey)] if survey else ())]
        if not given:
            raise ValueError("what is to be read? Give files or folders: spectrafm predict SOURCE...")
        source: Any = given[0] if len(given) == 1 else given
        if output is not None:
            from ..catalogue import label_survey

            if as_json or plot is not None:
                raise ValueError("--json and --plot show spectra one by one; leave them out with --output.")
            made = label_survey(
                source, output, model=model, revision=revision, labels=labels or None, abstain=abstain, check=check,
                embeddings=embeddings,
                conventions=told, config=config, split=split, input_revision=input_revision, num_proc=num_proc, ray=ray,
            )  # fmt: skip
            typer.echo(
                f"{'was there already' if made.was_done else 'written'}: {made.path}; {made.rows:,} spectra, "
                f"{made.flagged:,} with a flag, {made.unreadable:,} that could not be read"
            )
            raise typer.Exit(0 if not made.unreadable else 2 if made.unreadable < made.rows else 1)
        readings, beside = tee(read_source(source, told))  # beside it waits no more than is being labelled
        several = count_source(source) != 1
        labeller = Labeller(model, revision, labels or None, abstain=abstain)
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


def evaluate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of numbers and figures.")] = Path("evaluation"),
    labels: Annotated[
        Path | None, typer.Option(help="Table of known labels: CSV, Parquet, FITS or ECSV, one row per file.")
    ] = None,
    spectra: Annotated[Path | None, typer.Option(help="Folder of the spectra; names are relative to it.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead: a dataset with labels, a folder of `spectrafm build` or a Hub id.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Of a dataset with several.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset; by default all.")] = None,
    dataset_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a dataset on the Hub.")] = None,
    model: Annotated[str, typer.Option(help="A model that ships, a folder or a Hub id.")] = "spectrafm-small",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="The known labels have no errors: stars are synthetic.")
    ] = False,
    file_column: Annotated[str | None, typer.Option(help="Column of file names.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of star names.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="For the reader of the files, e.g. `medium=air` or `frame=rest`; may be repeated."),
    ] = None,
) -> None:
    """How right a model is about stars whose labels are known: error, bias, coverage, figures. Nothing is trained.

    Stars that the model has learned from make it look better than it is.

    Examples:

    `spectrafm evaluate --labels mytable.csv --spectra spectra --output runs/evaluation`

    `spectrafm evaluate --dataset data/synthetic --split validation --exact`
    """
    from transformers.utils.logging import disable_progress_bar

    from ..builders.labelled_folder import FolderConfig
    from ..evaluation import evaluate as compare
    from ..evaluation import known_from_dataset, known_from_folder, table
    from ..labelling import Labeller

    disable_progress_bar()
    of_files = (labels, spectra, file_column, id_column, option)
    of_a_dataset = (dataset, config, split, dataset_revision)
    if dataset is not None and any(part is not None for part in of_files):
        raise ValueError(
            "--dataset has spectra and labels in it; leave out --labels, --spectra and what goes with them."
        )
    if dataset is None and any(part is not None for part in of_a_dataset):
        raise ValueError("--config, --split and --dataset-revision are of a dataset; give --dataset.")
    if dataset is None and (labels is None or spectra is None):
        raise ValueError("which stars? Give --labels TABLE and --spectra FOLDER, or --dataset DATASET.")
    labeller = Labeller(model, revision)
    if dataset is not None:
        known = known_from_dataset(dataset, labeller.labels, config, split, dataset_revision)
    else:
        told = FolderConfig(
            folder=str(spectra), table=str(labels), file_column=file_column, id_column=id_column,
            reader_options=reader_options(option or []),
        )  # fmt: skip
        known = known_from_folder(told, labeller.labels)
    typer.echo(table(compare(known, labeller, output, exact)))
    typer.echo(f"numbers {output}/evaluation.json; each star {output}/stars.parquet; figures {output}/figures")


def similar(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Files of spectra, or folders of them.")],
    catalogue: Annotated[
        Path, typer.Option(metavar="CATALOGUE", help="Parquet that `spectrafm predict --output --embeddings` wrote.")
    ],
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Stars to find for each spectrum.")] = 10,
    model: Annotated[
        str, typer.Option(help="The model that made the catalogue: one that ships, a folder or a Hub id.")
    ] = "spectrafm-small",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    medium: Medium = None,
    velocity: Velocity = None,
    redshift: Redshift = None,
    resolving_power: ResolvingPower = None,
    wavelength_unit: WavelengthUnit = None,
    bad_pixel: BadPixel = None,
    option: ReaderOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per neighbour and line.")] = False,
) -> None:
    """Stars of a catalogue in whose spectra the model sees the same as in these.

    Examples:

    `spectrafm predict --input survey/ --output catalogue.parquet --embeddings`

    `spectrafm similar star.fits --catalogue catalogue.parquet -n 5`
    """
    import json
    import math

    from transformers.utils.logging import disable_progress_bar

    from ..similar import similar as find

    disable_progress_bar()
    told = conventions_told(medium, velocity, redshift, resolving_power, wavelength_unit, bad_pixel, option)
    given = list(map(str, sources))
    found = find(given[0] if len(given) == 1 else given, catalogue, n, model=model, revision=revision, conventions=told)
    rows = [dict(zip(found.colnames, row, strict=True)) for row in found.iterrows()]
    if as_json:
        for row in rows:
            plain = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
            none = {name: None for name, value in plain.items() if isinstance(value, float) and math.isnan(value)}
            typer.echo(json.dumps(plain | none, allow_nan=False))
    else:
        print_neighbours(rows)
    if found.meta["unreadable"]:
        typer.echo(f"left out: {found.meta['unreadable']}", err=True)


def explain(
    model: Annotated[str, typer.Argument(help="A model that ships, a folder or a Hub id.")] = "spectrafm-small",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of report and figures.")] = Path("explanation"),
    survey: Annotated[Literal["apogee", "optical"], typer.Option(help="Whose synthetic stars are asked.")] = "apogee",
    n_stars: Annotated[int, typer.Option(min=4, help="Giants, and as many dwarfs.")] = 32,
) -> None:
    """Which lines a model reads: its attention, and what happens when lines are hidden or abundances change.

    About a minute on one core. Lines are hidden, which takes longest, in the spectra of 8 giants and 8 dwarfs at most.

    Example: `spectrafm explain spectrafm-small --output runs/explanation`
    """
    from transformers.utils.logging import disable_progress_bar

    from ..builders.parquet_layout import write_json
    from ..checkpoints import located
    from ..explain import explain as ask
    from ..hub import load_pretrained
    from ..stages import check_writable
    from ..synthesis.surveys import SURVEYS

    disable_progress_bar()
    check_writable(output)
    network, extractor = load_pretrained(located(model))
    found = ask(network, extractor, SURVEYS[survey], n_stars=n_stars, n_hidden=8)
    write_json(output / "explanation.json", found.to_dict())
    (output / "report.txt").write_text(found.report() + "\n")
    found.save_figures(output)
    typer.echo(found.report())
    typer.echo(f"\nreport, figures and numbers in {output}")


def print_labels(spectra: Sequence[Labelled]) -> None:
    """A table of all labels, and below it, in words, what speaks against a spectrum and what was assumed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from ..labelling import spoken
    from ..labels import get_label

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
    named: dict[str, list[str]] = {}
    for spectrum in spectra:
        for sentence in spectrum.assumed:
            named.setdefault(sentence, []).append(spectrum.name)
    for sentence, names in named.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        whose = "" if len(names) == len(spectra) else f" of [bold]{escape(names[0])}[/]{others}"
        console.print(f"assumed{whose}: {escape(sentence)}")


def print_neighbours(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of the neighbours of each spectrum and, in its first row, of the spectrum itself."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from ..labels import LABELS

    labels = [label for label in LABELS if label.name in rows[0]]
    named = [Column(f"{label.symbol}\n{label.unit}".replace("[", r"\["), justify="right") for label in labels]
    table = Table("", Column("star", overflow="fold", min_width=24), Column("distance", justify="right"), *named)

    def numbers(row: Mapping[str, Any], prefix: str = "") -> list[str]:
        values = [(label, row[f"{prefix}{label.name}"]) for label in labels]
        return [f"{value:.{0 if label.unit == 'K' else 2}f}" for label, value in values]

    for row in rows:
        if row["rank"] == 1:
            table.add_section()
            table.add_row("", f"[bold]{escape(row['name'])}[/]", "", *numbers(row))
        star = escape(row["neighbour"]) + (" *" if row["neighbour_flag_names"] else "")
        table.add_row(str(row["rank"]), star, f"{row['distance']:.3f}", *numbers(row, "neighbour_"))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if any(row["neighbour_flag_names"] for row in rows):
        console.print("* something speaks against this star's labels: column flags of the catalogue says what")
