"""`spectrafm`: puts the commands together, and prints one sentence when something is wrong. No logic of its own."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from .commands.asking import WrongUseIsOne, evaluate, explain, predict, similar
from .commands.building import build
from .commands.learning import benchmark, calibrate, finetune, pretrain
from .commands.sharing import cache, info, push

GO_ON = ("build", "pretrain", "finetune", "benchmark")
"""Commands that keep what they have done, and go on from there; so does `predict --output`."""


class SaysInterrupted(TyperGroup):
    """All commands. One that is interrupted says whether its work is lost; typer would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        arguments = list(ctx.args)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            keeps = any(argument.startswith(("--output", "-o")) for argument in arguments)
            name = ctx.invoked_subcommand
            goes_on = name in GO_ON or (name == "predict" and keeps)
            # The terminal's ^C, and mostly a bar, stand in the line.
            typer.echo("\ninterrupted" + ("; the same command goes on where it was" if goes_on else ""), err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=SaysInterrupted,
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


if __name__ == "__main__":
    main()
