"""Columns of numbers in a text file: wavelength, flux, perhaps an error; what most people write for one spectrum.

Columns are parted by blanks, tabs, commas or semicolons; lines that begin with `#`, `%`, `;` or `!` are comments. The
last line before the numbers that has as many words as there are columns names them, a unit in brackets included:
`wavelength[nm] flux flux_error`. Without names the first column is the wavelength and the second the flux, or the other
way round if only the second one runs in one direction; further columns are not used, since nothing says what they are.
A gzipped text is read as the text it is.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .in_memory import Measured

LARGEST = 1 << 27
"""Bytes; a million pixels take half of it."""

ECSV = b"# %ECSV"
"""How a file begins that says the units of its columns; specutils reads it."""

_COMMENT = ("#", "%", ";", "!")
_PARTED = re.compile(r"\s*[,;]\s*|\s+")
_WITH_UNIT = re.compile(r"^(.+?)[\[(](.*?)[\])]$")
_NOTHING = {"nan", "null", "none", "--", "-", "n/a", "na", "indef", ""}


def unpacked(path: Path, most: int) -> bytes:
    """The first bytes, unpacked if the file is gzipped, whatever its suffix."""
    with path.open("rb") as stream:
        if stream.read(2) == b"\x1f\x8b":
            with gzip.open(path, "rb") as packed:
                return packed.read(most)
        stream.seek(0)
        return stream.read(most)


def _start(path: Path, most: int) -> bytes:
    """As `unpacked`; of a damaged archive nothing, whose reader will say so."""
    try:
        return unpacked(path, most)
    except (OSError, EOFError, zlib.error):
        return b""


def is_text(path: Path) -> bool:
    """Whether a file, plain or gzipped, begins with printable ASCII that is no FITS header, web page (a failed
    download) or JSON."""
    start = _start(path, 512)
    text = start.removeprefix(b"\xef\xbb\xbf")  # what Windows puts before
    # a FITS header, even a damaged one, has no line break in its first 80 bytes
    fits = start[:6] == b"SIMPLE" or (len(start) == 512 and b"\n" not in start and b"\r" not in start)
    printable = text.isascii() and all(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in text)
    return bool(text.strip()) and printable and not fits and not text.lstrip().startswith((b"<", b"{"))


def is_ecsv(path: Path) -> bool:
    """Whether it is a text file with units, as astropy writes it."""
    return _start(path, len(ECSV)) == ECSV


def _numbers(words: list[str]) -> list[float] | None:
    try:
        return [float("nan") if word.lower() in _NOTHING else float(word) for word in words]
    except ValueError:
        return None


def read_text_columns(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Columns of a text file, and what was assumed of them.

    Returns:
        Name -> array of shape (n_pixels,), `Measured` where the name has a unit; names as in the file, or `wavelength`
        and `flux`.

    Raises:
        ValueError: It is too large, has fewer than two columns, or a line is not like the others.
    """
    try:
        content = unpacked(path, LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: is a gzipped text, but unpacking failed ({error}); copy or fetch it again."
        ) from error
    if len(content) > LARGEST:
        raise ValueError(f"{path}: is a text of more than {LARGEST >> 20} MiB, too long for one spectrum.")
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    rows: list[list[float]] = []
    named: list[list[str]] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        comment = text.startswith(_COMMENT)
        words = _PARTED.split(text.lstrip("".join(_COMMENT)).strip().rstrip(",;"))
        if not text or (comment and rows):
            continue
        values = None if comment else _numbers(words)
        if values is None:
            if rows:
                raise ValueError(f"{path}, line {number}: needs {len(rows[0])} numbers, got {text[:60]!r}.")
            named.append(re.sub(r"\s+(?=[\[(])", "", " ".join(words)).split(" "))
        elif rows and len(values) != len(rows[0]):
            raise ValueError(f"{path}, line {number}: needs {len(rows[0])} numbers, got {len(values)}.")
        else:
            rows.append(values)
    if not rows or len(rows[0]) < 2:
        raise ValueError(
            f"{path}: needs columns of numbers, wavelength and flux at least, got {len(rows)} lines of "
            f"{len(rows[0]) if rows else 0}."
        )
    columns = np.array(rows, dtype=np.float64).T
    names = next((words for words in reversed(named) if len(words) == len(columns)), None)
    if names is not None and any(word.lower().startswith(("flux", "wave", "lambda", "loglam")) for word in names):
        return dict(map(_named, names, columns)), ()
    return _without_names(columns)


def _named(word: str, values: np.ndarray) -> tuple[str, Any]:
    found = _WITH_UNIT.match(word)
    return (word, values) if found is None else (found[1].strip("_ "), Measured(values, found[2].strip()))


def _without_names(columns: np.ndarray) -> tuple[dict[str, Any], tuple[str, ...]]:
    runs = [bool((step > 0).all() or (step < 0).all()) for step in np.diff(columns[:2], axis=1)]
    wavelength = 1 if runs == [False, True] else 0
    notes = [
        f"columns have no names, so column {wavelength + 1} was taken for the wavelength and column {2 - wavelength} "
        "for the flux"
    ]
    if len(columns) > 2:
        notes.append(
            f"column 3{f' to {len(columns)}' * (len(columns) > 3)} was not used, since nothing says what it is; name "
            "columns in the first line, `wavelength flux flux_error`"
        )
    return {"wavelength": columns[wavelength], "flux": columns[1 - wavelength]}, tuple(notes)
