"""`spectrafm`: puts the commands together, and prints one sentence when something is wrong. No logic of its own."""

from __future__ import annotations

import sys

import typer

from .commands.asking import WrongUseIsOne, evaluate, explain, predict, similar
from .commands.building import build
from .commands.learning import benchmark, calibrate, finetune, pretrain
from .commands.sharing import cache, info, push

app = typer.Typer(
    help="Stellar labels from spectra: datasets, training, prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command(cls=WrongUseIsOne)(predict)
app.command()(similar)
app.command()(evaluate)
app.command()(explain)
app.add_typer(build, name="build")
app.command()(pretrain)
app.command()(finetune)
app.command()(calibrate)
app.command()(benchmark)
app.command()(push)
app.command()(info)
app.command()(cache)


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
