"""Options that several commands read alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# Help of what is told of spectra: `sources.Conventions`.
MEDIUM = "Of the wavelengths, where the files do not tell."
VELOCITY = "Of the star, km/s, positive = receding, where the files do not tell; 0 = at rest."
REDSHIFT = "The same as z."
RESOLVING_POWER = "lambda / FWHM, where the files do not tell."
WAVELENGTH_UNIT = "`Angstrom`, `nm`, `um`, `log10(Angstrom)`, ..., where the files do not tell."
BAD_PIXEL = "What True, or 1, means in a column called mask: 'True is bad' or 'True is good'."
OPTION = "For the reader: `kind=synthetic`, or `velocity=12` in the place of LAMOST's own; may be repeated."


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
