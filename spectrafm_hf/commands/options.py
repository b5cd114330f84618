"""Options that several commands read alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ..sources import Conventions

# What is told of spectra: `sources.Conventions`.
Medium = Annotated[
    Literal["vacuum", "air"] | None, typer.Option(help="Of the wavelengths, where the files do not tell.")
]
Velocity = Annotated[
    float | None,
    typer.Option(help="Of the star, km/s, positive = receding, where the files do not tell; 0 = at rest."),
]
Redshift = Annotated[float | None, typer.Option(help="The same as z.")]
ResolvingPower = Annotated[float | None, typer.Option(help="lambda / FWHM, where the files do not tell.")]
WavelengthUnit = Annotated[
    str | None,
    typer.Option(help="`Angstrom`, `nm`, `um`, `log10(Angstrom)`, ..., where the files do not tell."),
]
BadPixel = Annotated[
    Literal["True is bad", "True is good"] | None,
    typer.Option(help="What True, or 1, means in a column called mask: 'True is bad' or 'True is good'."),
]
ReaderOption = Annotated[
    list[str] | None,
    typer.Option(
        help="For the reader: `kind=synthetic`, or `velocity=12` in the place of LAMOST's own; may be repeated."
    ),
]


def truth(text: str) -> bool:
    """`true` or `false`.

    Raises:
        ValueError: Another word.
    """
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


NO_TEXT: dict[str, tuple[Callable[[str], Any], str]] = {
    "row": (int, "a whole number"),
    "velocity": (float, "a number, in km/s"),
    "all_pixels": (truth, "true or false"),
}
"""Options of readers that are no text -> how they are read, and how they are written."""


def reader_options(given: Sequence[str]) -> dict[str, Any]:
    """`name=value` -> name and value, text but for those of `NO_TEXT`.

    Raises:
        ValueError: One has no `=`, or another value than it must have.
    """
    told: dict[str, Any] = {}
    for one in given:
        name, is_there, value = one.partition("=")
        if not is_there:
            raise ValueError(f"--option must be name=value, got {one!r}.")
        read, written = NO_TEXT.get(name, (str, "text"))
        try:
            told[name] = read(value)
        except ValueError as error:
            raise ValueError(f"--option {name} must be {written}, got {value!r}.") from error
    return told


def conventions_told(
    medium: Medium,
    velocity: Velocity,
    redshift: Redshift,
    resolving_power: ResolvingPower,
    wavelength_unit: WavelengthUnit,
    bad_pixel: BadPixel,
    option: ReaderOption,
) -> Conventions:
    """What a command was told of spectra.

    Raises:
        ValueError: See `reader_options` and `Conventions`.
    """
    from ..sources import Conventions

    return Conventions(
        medium=medium,
        velocity=velocity,
        redshift=redshift,
        wavelength_unit=wavelength_unit,
        resolving_power=resolving_power,
        bad_pixel=bad_pixel,
        reader=reader_options(option or []),
    )
