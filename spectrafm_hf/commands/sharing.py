"""`spectrafm push`, `info`, `cache`: models and datasets, here and on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="Of a finished stage, or of `spectrafm build`.")],
    to: Annotated[str, typer.Option(help="NAMESPACE (user or organisation), or NAMESPACE/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; it is private else.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; send and change nothing.")] = False,
) -> None:
    """Publish a model or a dataset on the Hugging Face Hub, in one commit: whole, or not at all.

    Example: `spectrafm push runs/transfer/1-synthetic --to my-name --dry-run`
    """
    from transformers.utils.logging import disable_progress_bar

    from ..publishing import publish, what_goes

    disable_progress_bar()  # of loading; sending has a bar of its own
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


def info(
    model: Annotated[str, typer.Argument(help="A model that ships, a folder or a Hub id.")] = "spectrafm-small",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """What a model tells, of which spectra, how far it can be believed; and which software is here.

    Examples: `spectrafm info`, `spectrafm info my-name/spectrafm-3-few-shot`
    """
    import json

    from transformers.utils.logging import disable_progress_bar

    from ..description import describe, table

    disable_progress_bar()
    told = describe(model, revision)
    typer.echo(json.dumps(told, indent=1, allow_nan=False) if as_json else table(told))


def cache(
    clear: Annotated[
        bool,
        typer.Option("--clear", help="Delete the spectral libraries, which are fetched again when they are needed."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before.")] = False,
) -> None:
    """What is kept on this machine, where, and how large it is.

    Models and datasets of the Hub are looked after by `hf cache`.

    Examples: `spectrafm cache`, `spectrafm cache --clear`
    """
    import shutil

    from ..readers.mangadap_wheel import kept_libraries

    for what, (place, size) in kept_places().items():
        typer.echo(f"{size / 1e6:12,.1f} MB  {what:22} {place}" + ("" if place.exists() else "  (not there)"))
    if not clear:
        return
    libraries = kept_libraries()
    if not libraries:
        typer.echo("no library to delete")
    elif yes or typer.confirm(f"delete {', '.join(map(str, libraries))}?"):
        for folder in libraries:
            shutil.rmtree(folder)
        typer.echo(f"deleted {', '.join(map(str, libraries))}")


def kept_places() -> dict[str, tuple[Path, int]]:
    """What is kept -> folder and size in bytes."""
    from datasets import config as datasets_config
    from huggingface_hub import constants

    from ..readers.mangadap_wheel import cache_folder

    places = {
        "spectral libraries": cache_folder(),
        "Hub: models, datasets": Path(constants.HF_HUB_CACHE),
        "prepared datasets": Path(datasets_config.HF_DATASETS_CACHE),
    }
    return {what: (place, size_of(place)) for what, place in places.items()}


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; those that a link names are counted where they lie."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
