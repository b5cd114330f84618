"""`spectrafm build`: spectra -> datasets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import reader_options

build = typer.Typer(
    help="Build a dataset: a folder of Parquet with a card, which `datasets.load_dataset` streams without our code. "
    "A killed build is finished by the same command; a folder with another build is refused.",
    no_args_is_help=True,
)
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
    from ..builders.build import build_dataset

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
    from ..builders.synthetic import SyntheticConfig

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
    from ..builders.apogee_dr17 import ApogeeDr17Config

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
    from ..builders.mmu_apogee_dr17 import MmuApogeeDr17Config

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
    from ..builders.stellar_libraries import MilesConfig

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
    from ..builders.stellar_libraries import StelibConfig

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
    from ..builders.labelled_folder import FolderConfig

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
