"""Tables of the Virtual Observatory (VOTable, IVOA; Ochsenbein et al. 2019) that hold one spectrum.

astropy reads them, after a look at their structure: astropy would follow the address in a STREAM and open whatever it
names, so a file with one is refused, as is one that declares entities of its own, with which a few bytes can ask for
gigabytes.
"""

from __future__ import annotations

import warnings
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from .spectrum_columns import Column, FileSpectrum, spectrum_in
from .text_columns import unpacked

LARGEST = 1 << 26
"""Bytes, unpacked; a million pixels take it."""


def is_votable(path: Path) -> bool:
    """Whether a file, plain or gzipped, begins as a VOTable does; looks at its first bytes only."""
    try:
        start = unpacked(path, 4096)
    except (OSError, EOFError, zlib.error):
        return False
    return start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<") and b"VOTABLE" in start


def _check(path: Path, content: bytes) -> None:
    """Refuse a file that asks for other files, or for entities.

    Raises:
        ValueError: It does, or is no XML.
    """

    def refuse(what: str) -> None:
        raise ValueError(f"{path}: is a VOTable {what}, which is not read here; save it as FITS or plain text instead.")

    def element(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(":")[2] == "STREAM" and any(word.rpartition(":")[2] == "href" for word in attributes):
            refuse("whose data lie in another file (STREAM href)")

    parser = expat.ParserCreate()
    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = lambda *_: refuse("with a document type of its own (DOCTYPE)")
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"{path}: is a VOTable, but damaged ({error}); copy or fetch it again.") from error


def spectrum_of_votable(path: Path, row: int | None = None) -> FileSpectrum:
    """The spectrum in the first table that holds one.

    Args:
        path: The file, plain or gzipped.
        row: Which one, of a table with a spectrum per row.

    Raises:
        ValueError: It is damaged, too large, points to other files, or holds no spectrum.
    """
    try:
        content = unpacked(path, LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: is a gzipped VOTable, but unpacking failed ({error}); fetch it again.") from error
    if len(content) > LARGEST:
        raise ValueError(f"{path}: is a VOTable of more than {LARGEST >> 20} MiB, too long for one spectrum.")
    _check(path, content)
    from astropy.io import votable

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            parsed = votable.parse(BytesIO(content), verify="ignore")
            tables = [table for table in parsed.iter_tables() if len(table.array)]
    except Exception as error:  # astropy raises whatever a damaged table makes it stumble over
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{path}: is a VOTable, but astropy cannot read it ({first_line}).") from error
    names: list[str] = []
    for table in tables:
        columns = [
            Column(
                str(one.name or one.ID or ""),
                partial(_values, path, table.array, number, row),
                "" if one.unit is None else str(one.unit),
                one.utype or "",
                one.ucd or "",
            )
            for number, one in enumerate(table.fields)
        ]
        if (found := spectrum_in(columns, "VOTable")) is not None:
            return FileSpectrum(found.given, found.unit, found.logarithm, found.medium_by, meta={"file": path.name})
        names += [column.name for column in columns]
    raise ValueError(
        f"{path}: is a VOTable and needs columns wavelength and flux; it has {', '.join(names[:60]) or 'none'}."
    )


def _values(path: Path, array: Any, number: int, row: int | None) -> np.ndarray:
    """One column as floats, missing values NaN; whole numbers and booleans stay what they are."""
    values = array[array.dtype.names[number]]
    if values.dtype.kind == "O" or values.ndim > 1:
        if len(values) > 1 and row is None:
            raise ValueError(f"{path}: holds {len(values)} spectra, one per row; say which with row=.")
        if not 0 <= (row or 0) < len(values):
            raise ValueError(f"{path}: has rows 0 to {len(values) - 1}, got row={row!r}.")
        values = np.ma.asarray(values[row or 0]).reshape(-1)
    return np.ma.filled(values, np.nan) if values.dtype.kind == "f" else values
