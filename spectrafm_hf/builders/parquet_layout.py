"""How a shard lies on disk: Parquet made for streaming, written in one step or not at all.

Row groups of 256 spectra are what a reader fetches at once; BYTE_STREAM_SPLIT puts like bytes of floats together, so
that zstd finds something to compress in noise; floats get no dictionary, which would only be in the way; the page
index lets a filter skip pages. Measured for 7,514 pixels against the layout of `push_to_hub`: 40 % smaller, read
three times as fast.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 256
"""Spectra in a row group; 15 MB for 7,514 pixels, before compression."""

COMPRESSION_LEVEL = 3


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished file.

    Attributes:
        path: Relative to the dataset's folder, with `/`.
        config, split: Whose rows these are.
        rows: Number of them.
        num_bytes: In Arrow, uncompressed: what `dataset_info` calls so.
        size: Of the file, bytes.
        sha256: Of the file.
    """

    path: str
    config: str
    split: str
    rows: int
    num_bytes: int
    size: int
    sha256: str


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer with the settings above."""
    text, floats = [], []
    for field in schema:
        kind, name = field.type, field.name
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            kind, name = kind.value_type, f"{name}.list.element"
        if pa.types.is_floating(kind):
            floats.append(name)
        elif pa.types.is_string(kind):
            text.append(name)
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=text,
        use_byte_stream_split=floats,
        write_page_index=True,
    )


class ShardWriter:
    """Tables of any length -> whole row groups in one file.

    Args:
        path: Where to write; see `whole_file`.
        schema: Of the tables.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self._writer = open_writer(path, schema)
        self._waiting: list[pa.Table] = []
        self.rows = self.num_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self._waiting.append(table)
        self._flush(last=False)

    def _flush(self, last: bool) -> None:
        n_waiting = sum(map(len, self._waiting))
        if not n_waiting or (n_waiting < ROW_GROUP and not last):
            return
        waiting = pa.concat_tables(self._waiting)
        stop = n_waiting if last else n_waiting - n_waiting % ROW_GROUP
        for start in range(0, stop, ROW_GROUP):
            group = waiting.slice(start, min(ROW_GROUP, stop - start)).combine_chunks()
            self._writer.write_table(group, row_group_size=ROW_GROUP)
            self.rows, self.num_bytes = self.rows + len(group), self.num_bytes + group.nbytes
        self._waiting = [waiting.slice(stop)] if stop < n_waiting else []

    def close(self) -> None:
        """Write what is left, and the footer."""
        self._flush(last=True)
        self._writer.close()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; the file gets its own name only when it is complete.

    The temporary name carries the process, so that two attempts at one shard never write into each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON in one step."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_shards(
    folder: Path,
    config: str,
    paths: dict[str, str],
    schema: pa.Schema,
    tables: Iterable[tuple[str, pa.Table]],
    count_rows: Callable[[int], None] = lambda rows: None,
) -> list[ShardRecord]:
    """Write one file per split at once, from tables that come in any order of splits.

    Args:
        folder: Of the dataset.
        config: Name of the config.
        paths: Split -> file, relative to the folder.
        schema: Of all tables.
        tables: (split, table).
        count_rows: Told of every table's length, for a progress bar.

    Returns:
        One record per split.

    Raises:
        OSError: A file cannot be written; says so in one sentence if the disk is full.
    """
    with naming_a_full_disk(folder), ExitStack() as stack:
        partials = {split: stack.enter_context(whole_file(folder / path)) for split, path in paths.items()}
        writers = {split: ShardWriter(partial, schema) for split, partial in partials.items()}
        for split, table in tables:
            writers[split].write(table)
            count_rows(len(table))
        for writer in writers.values():
            writer.close()
        return [
            ShardRecord(
                path, config, split, writers[split].rows, writers[split].num_bytes,
                partials[split].stat().st_size, sha256_of(partials[split]),
            )
            for split, path in paths.items()
        ]  # fmt: skip


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Every library says "no space left" in its own way.

    Raises:
        OSError: There is no room for another shard.
    """
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        if error.errno != errno.ENOSPC and free > 5e7:
            raise
        raise OSError(
            f"no space left in {folder} ({free / 1e6:.0f} MB free); free some and run the same command again: finished "
            "shards are kept, and it goes on where it was."
        ) from error
