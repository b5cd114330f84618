"""A catalogue of labels as a file: its columns, and Parquet, FITS and ECSV that astropy reads back with units.

What made it is in the file, too: as JSON in the schema of Parquet (`spectrafm`) and in the header there that astropy
reads, in ECSV's meta, and in FITS as the card `SFMPLAN`, beside cards for people. So it stays when pyarrow or astropy
writes some of the rows again.

FITS knows neither letters but ASCII, so that others become backslash escapes in it, nor the unit dex. It is written
nonetheless, as surveys do, for those who read FITS without astropy. Astropy reads it and warns of every such column;
`Table.read(path, unit_parse_strict="silent")` has the same units without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..labels import get_label

if TYPE_CHECKING:
    from astropy.table import Table

SUFFIXES = (".parquet", ".fits", ".ecsv")

PROVENANCE = "spectrafm"
"""Key of the JSON."""

ASTROPY_HEADER = "table_meta_yaml"
"""Key of the header that astropy looks for in Parquet."""

NUMBERS = ("value", "sigma", "low68", "high68", "low95", "high95")
"""Of an answer, as columns: `teff`, `teff_sigma`, `teff_low68`, ..."""

TEXTS = ("name", "flags", "flag_names", "assumed")

FITS_FORMATS = {pa.int64(): "K", pa.float32(): "E", pa.float64(): "D", pa.bool_(): "L"}
UNKNOWN = -1
"""In FITS: null of `_learned`."""


@dataclass(frozen=True)
class CatalogueColumn:
    """One column.

    Attributes:
        name: In all formats.
        kind: Arrow type.
        unit: As astropy spells it; empty = text, number or truth.
        meaning: One line.
    """

    name: str
    kind: pa.DataType
    unit: str
    meaning: str


def columns_for(label_names: Sequence[str]) -> list[CatalogueColumn]:
    """All columns in their order."""
    columns = [
        CatalogueColumn("row", pa.int64(), "", "number of the spectrum in the input, from 0"),
        CatalogueColumn("name", pa.string(), "", "file, relative to the folder, or name of the star"),
        CatalogueColumn("snr", pa.float32(), "", "signal-to-noise ratio per pixel; NaN = not known"),
        CatalogueColumn("wavelength_min", pa.float64(), "Angstrom", "first good pixel, vacuum, rest frame"),
        CatalogueColumn("wavelength_max", pa.float64(), "Angstrom", "last good pixel, vacuum, rest frame"),
    ]
    for name in label_names:
        label = get_label(name)
        of = {
            "value": f"{label.symbol}; NaN = no answer",
            "sigma": f"half of the central 68.27 % interval of {label.symbol}",
            "low68": f"lower end of the central 68.27 % interval of {label.symbol}",
            "high68": f"upper end of the central 68.27 % interval of {label.symbol}",
            "low95": f"lower end of the central 95 % interval of {label.symbol}",
            "high95": f"upper end of the central 95 % interval of {label.symbol}",
        }
        columns += [
            CatalogueColumn(name if key == "value" else f"{name}_{key}", pa.float32(), label.unit, meaning)
            for key, meaning in of.items()
        ]
        columns += [
            CatalogueColumn(f"{name}_calibrated", pa.bool_(), "", "the interval was calibrated on unseen stars"),
            CatalogueColumn(
                f"{name}_learned", pa.bool_(), "", f"{label.symbol} was learned at these wavelengths; null = not known"
            ),
        ]
    columns += [
        CatalogueColumn("flags", pa.string(), "", "reasons not to trust the row, sentences joined by '; '"),
        CatalogueColumn("flag_names", pa.string(), "", "short names of the checks that raised them"),
        CatalogueColumn("assumed", pa.string(), "", "what the spectrum did not tell and was taken for granted"),
    ]
    return columns


def schema_for(label_names: Sequence[str]) -> pa.Schema:
    """Arrow schema; unit and meaning are metadata of the fields."""
    return pa.schema(
        [
            pa.field(
                column.name,
                column.kind,
                nullable=column.name.endswith("_learned"),
                metadata={"unit": column.unit, "description": column.meaning},
            )
            for column in columns_for(label_names)
        ]
    )


def parquet_schema(label_names: Sequence[str], provenance: Mapping[str, Any], lengths: Mapping[str, int]) -> pa.Schema:
    """Schema of the file, with the provenance, and with astropy's own header, from which `Table.read` has units.

    Args:
        label_names: In order.
        provenance: See `read_provenance`.
        lengths: Of the longest text of each of `TEXTS`.
    """
    from astropy.table.meta import get_yaml_from_table

    schema = schema_for(label_names)
    header = "\n".join(get_yaml_from_table(astropy_table(schema.empty_table(), label_names, provenance)))
    told = {PROVENANCE: json.dumps(provenance), ASTROPY_HEADER: header}
    return schema.with_metadata(told | {f"table::len::{name}": str(length) for name, length in lengths.items()})


def astropy_table(rows: pa.Table, label_names: Sequence[str], provenance: Mapping[str, Any]) -> Table:
    """The catalogue as an `astropy.table.Table` with units, descriptions and provenance."""
    from astropy.table import Column, MaskedColumn, Table

    table = Table(meta={PROVENANCE: dict(provenance)})
    for column in columns_for(label_names):
        told = {"name": column.name, "unit": column.unit or None, "description": column.meaning}
        values = rows[column.name]
        if column.name.endswith("_learned"):
            known = values.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
            unknown = values.is_null().to_numpy(zero_copy_only=False).astype(bool)
            table.add_column(MaskedColumn(known, mask=unknown, **told))
        elif pa.types.is_string(column.kind):
            texts = values.to_pylist()
            table.add_column(Column(np.array(texts, dtype=str) if texts else np.zeros(0, "U1"), **told))
        else:
            table.add_column(Column(values.to_numpy(zero_copy_only=False), **told))
    return table


def write_ecsv(path: Path, rows: pa.Table, label_names: Sequence[str], provenance: Mapping[str, Any]) -> None:
    """Text with a header in YAML."""
    astropy_table(rows, label_names, provenance).write(path, format="ascii.ecsv")


def write_fits(path: Path, rows: pa.Table, label_names: Sequence[str], provenance: Mapping[str, Any]) -> None:
    """A binary table. FITS has no truth that is not known: `_learned` is 1, 0 or null; and no letters but ASCII: others
    are backslash escapes, `Å` is `\\xc5`. On units see above."""
    from astropy.io import fits

    columns = []
    for column in columns_for(label_names):
        values = rows[column.name]
        if column.name.endswith("_learned"):
            numbers = values.cast(pa.int16()).fill_null(UNKNOWN).to_numpy()
            columns.append(fits.Column(column.name, "I", null=UNKNOWN, array=numbers))
        elif pa.types.is_string(column.kind):
            texts = [text.encode("ascii", "backslashreplace") for text in values.to_pylist()]
            longest = max(map(len, texts), default=1) or 1
            columns.append(fits.Column(column.name, f"{longest}A", array=np.array(texts, dtype=f"S{longest}")))
        else:
            letter = FITS_FORMATS[column.kind]
            columns.append(fits.Column(column.name, letter, column.unit or None, array=values.to_numpy()))
    table = fits.BinTableHDU.from_columns(columns, name="CATALOGUE")
    for number, column in enumerate(columns_for(label_names), 1):
        table.header[f"TCOMM{number}"] = column.meaning
    for word, value, meaning in fits_cards(provenance):
        value = value if word == "SFMPLAN" else _printable(value)  # JSON is printable
        table.header[word] = (value, meaning) if len(str(value)) + len(meaning) < 60 else value
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, checksum=True)


def _printable(value: Any) -> Any:
    """A header knows printable ASCII only."""
    return value.encode("unicode_escape").decode() if isinstance(value, str) else value


def fits_cards(provenance: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Word, value, comment of the header: what people look for, and all of it as JSON."""
    plan = provenance["plan"]
    return [
        ("MODEL", plan["model"], "model that answered"),
        ("MODELREV", plan["model revision"], "commit, or SHA-256 of the weights"),
        ("INPUT", plan["input"], "spectra"),
        ("INPUTREV", plan.get("input revision") or "", "commit of a dataset"),
        ("INPUTSHA", plan.get("input hash") or "", "SHA-256 of the listing, or of files"),
        ("ABSTAIN", plan["abstain"], "no answer for flagged spectra"),
        ("NFLAGGED", provenance["flagged"], "rows with flags"),
        ("NUNREAD", provenance["unreadable"], "rows without spectrum"),
        ("SFMVERS", plan["spectrafm_hf"], "version of spectrafm_hf"),
        ("TORCHVER", plan["torch"], "version of torch"),
        ("NUMPYVER", plan["numpy"], "version of numpy"),
        ("DATE-BEG", provenance["begun"][:19], "UTC, begin of the run"),
        ("COMMAND", provenance["command"], ""),
        ("SFMPLAN", json.dumps(provenance), ""),
    ]


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """What a catalogue tells of its making: `plan` (see `make_plan`), `command`, `begun`, counts; None = not ours.

    The counts are those of the catalogue as it was made, also in a selection of its rows; see `count_rows`.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            metadata = pq.read_schema(path).metadata or {}
            if PROVENANCE.encode() in metadata:
                told = json.loads(metadata[PROVENANCE.encode()])
            else:  # written again by astropy, which keeps its own header only
                told = _told_to_astropy(metadata[ASTROPY_HEADER.encode()].decode().split("\n"))
        elif path.suffix == ".fits":
            from astropy.io import fits

            told = json.loads(fits.getheader(path, "CATALOGUE")["SFMPLAN"])
        else:
            with path.open(encoding="utf-8") as file:
                lines = [line[2:].rstrip("\n") for line in takewhile(lambda line: line.startswith("# "), file)]
            told = _told_to_astropy(lines[1:])
        return told if {"plan", "command", "begun", "rows", "flagged", "unreadable"} <= set(told) else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowInvalid):
        return None


def _told_to_astropy(lines: list[str]) -> dict[str, Any]:
    """The provenance out of astropy's header in YAML, of plain values.

    Raises:
        KeyError, TypeError, ValueError: It is not there, or that is no such header.
    """
    from astropy.table.meta import YamlParseError, get_header_from_yaml

    try:
        return dict(get_header_from_yaml(lines)["meta"])[PROVENANCE]
    except YamlParseError as error:
        raise ValueError("no header of astropy.") from error


def count_rows(path: str | Path) -> int | None:
    """Rows that a catalogue has now; None of ECSV, which would have to be read for that."""
    path = Path(path)
    if path.suffix == ".parquet":
        return pq.read_metadata(path).num_rows
    if path.suffix == ".fits":
        from astropy.io import fits

        return int(fits.getheader(path, "CATALOGUE")["NAXIS2"])
    return None
