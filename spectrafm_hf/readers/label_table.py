"""A table of labels in whatever format people keep one: CSV, Parquet, FITS, ECSV -> columns.

CSV and Parquet go through Arrow; FITS (HDU 1) and ECSV through astropy. Masked values become NaN or empty text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

FORMATS = ".csv, .parquet, .fits, .fits.gz, .fit or .ecsv"


def read_label_table(path: Path) -> dict[str, np.ndarray]:
    """Read a table.

    Args:
        path: Its suffix says what it is.

    Returns:
        Column name, as published -> values, shape (n_rows,); numbers or text (object dtype).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The suffix is unknown, the table cannot be read, or it has no row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}; give a file ending in {FORMATS}.")
    name = path.name.lower()
    try:
        if name.endswith(".csv"):
            columns = _from_arrow(pyarrow.csv.read_csv(path))
        elif name.endswith(".parquet"):
            columns = _from_arrow(pq.read_table(path))
        elif name.endswith((".fits", ".fits.gz", ".fit", ".ecsv")):
            columns = _from_astropy(path)
        else:
            raise ValueError(f"a table must end in {FORMATS}, got {path.name}.")
    except (pa.ArrowInvalid, OSError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: needs a complete table, but reading failed ({error}).") from error
    if not columns or not len(next(iter(columns.values()))):
        raise ValueError(f"{path} has no row.")
    return columns


def _from_arrow(table: pa.Table) -> dict[str, np.ndarray]:
    columns = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            columns[name] = np.array([value or "" for value in column.to_pylist()], dtype=object)
        elif pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            columns[name] = column.to_numpy(zero_copy_only=False)
        else:
            columns[name] = np.array(
                ["" if value is None else str(value) for value in column.to_pylist()], dtype=object
            )
    return columns


def _from_astropy(path: Path) -> dict[str, np.ndarray]:
    from astropy.table import Table

    if path.name.lower().endswith(".ecsv"):
        table = Table.read(path, format="ascii.ecsv")
    else:
        table = Table.read(path, format="fits", hdu=1)
    columns = {}
    for name in table.colnames:
        values = table[name]
        if values.ndim != 1:
            continue
        if values.dtype.kind == "f":
            columns[name] = np.asarray(np.ma.filled(values, np.nan), dtype=np.float64)
        elif values.dtype.kind in "iub":
            columns[name] = np.asarray(np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan))
        else:
            text = np.ma.asarray(values).filled(b"" if values.dtype.kind == "S" else "").tolist()
            columns[name] = np.array(
                [one.decode().strip() if isinstance(one, bytes) else str(one).strip() for one in text], dtype=object
            )
    return columns
