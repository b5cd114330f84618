"""What all datasets have in common: a plan, chunks of rows, and a face for `datasets`.

A *config* is all there is to know about a dataset: plain values, so that it travels to any process. It makes a *plan*:
which stars, in which split, in chunks of up to 256 rows. It *reads* a chunk into columns. `SpectraBuilder` shows that
to `datasets`; `build.build_dataset` writes it to Parquet. Both see the same rows in the same order.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
from datasets.builder import Key

from .parquet_layout import ROW_GROUP
from .rows import Columns, Layout, WavelengthGrid, to_table
from .selection import SelectionReport

logger = logging.getLogger(__name__)

Chunk = Any
"""Up to 256 rows, in whatever form the config's `read` understands; small and picklable."""


@dataclass(frozen=True)
class Skipped:
    """An input that could not be used.

    Attributes:
        file: Relative to the folder it was looked for in.
        object_id: Star it was to give.
        reason: What was wrong, one sentence.
    """

    file: str
    object_id: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """What a chunk holds.

    Attributes:
        columns: See `rows.Columns`; None if nothing could be read.
        split: Split of each row, shape (n_rows,); or one for all.
        skipped: Inputs without a row.
    """

    columns: Columns | None
    split: np.ndarray | str
    skipped: tuple[Skipped, ...] = ()

    def tables(self, layout: Layout, splits: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """(split, rows of it) for those of `splits` that have any here."""
        if self.columns is None:
            return
        table = to_table(self.columns, layout)
        if isinstance(self.split, str):
            if self.split in splits:
                yield self.split, table
            return
        for split in splits:
            chosen = np.flatnonzero(self.split == split)
            if chosen.size:
                yield split, table if chosen.size == len(table) else table.take(pa.array(chosen))


@dataclass(frozen=True)
class Plan:
    """Which rows there will be.

    Attributes:
        chunks: In the order of the rows.
        rows: Split -> rows planned; skipped inputs come off.
        layout: Columns.
        report: What each cut cost (None = nothing was cut).
        grid: The pixels, if all spectra share them.
        skipped: Inputs found unusable while planning.
        digest: SHA-256 of what the rows hang on beside the config, e.g. the catalogue's stars.
    """

    chunks: Sequence[Chunk]
    rows: Mapping[str, int]
    layout: Layout
    report: SelectionReport | None = None
    grid: WavelengthGrid | None = None
    skipped: tuple[Skipped, ...] = ()
    digest: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have rows."""
        return tuple(split for split, rows in self.rows.items() if rows)


@dataclass
class SpectraConfig(datasets.BuilderConfig):
    """A dataset in plain values.

    Subclasses add fields and define `plan` and `read`. Fields named in `PLACES` say where inputs lie on this machine;
    they are no part of what the dataset is, so they enter neither fingerprint nor card but by their last name.
    """

    dataset: ClassVar[str] = ""
    """Name of the dataset: of its facts in hub_cards/datasets, and on the command line."""

    PLACES: ClassVar[tuple[str, ...]] = ()

    def plan(self) -> Plan:
        """Decide on the rows; reads catalogues, not spectra, where it can.

        Raises:
            ValueError: A setting or an input makes no sense.
            FileNotFoundError: An input is not there.
        """
        raise NotImplementedError

    def read(self, chunk: Chunk) -> Rows:
        """Make the rows of one chunk."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What this config knows better than the dataset's facts in hub_cards/datasets."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Own fields for the manifest, in JSON's types."""
        inherited = {base.name for base in fields(datasets.BuilderConfig)} - {"name"}
        found: dict[str, Any] = {}
        for each in fields(self):
            if each.name in inherited:
                continue
            value = getattr(self, each.name)
            if each.name in self.PLACES and value is not None:
                value = Path(str(value)).name
            found[each.name] = dict(value) if isinstance(value, Mapping) else value
        return found


class SpectraBuilder(datasets.ArrowBasedBuilder):
    """Shows a `SpectraConfig` to `datasets`: streaming, map-style, `download_and_prepare`.

    Example:
        >>> builder = SyntheticApogee(n=1024, seed=0)
        >>> next(iter(builder.as_streaming_dataset("train")))["teff"]
    """

    BUILDER_CONFIG_CLASS = SpectraConfig
    config: SpectraConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()  # features are known with the plan

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        plan = self.config.plan()
        self.info.features = plan.layout.features
        for skipped in plan.skipped:
            logger.warning("skipped %s (%s): %s", skipped.file, skipped.object_id, skipped.reason)
        # `datasets` takes each list for shards; the layout goes along with every chunk.
        return [
            datasets.SplitGenerator(
                name=split, gen_kwargs={"chunks": list(plan.chunks), "split": split, "layout": plan.layout}
            )
            for split in plan.splits
        ]

    def _generate_tables(self, chunks: list[Chunk], split: str, layout: Layout) -> Iterator[tuple[Key, pa.Table]]:
        for number, chunk in enumerate(chunks):
            rows = self.config.read(chunk)
            for skipped in rows.skipped:
                logger.warning("skipped %s (%s): %s", skipped.file, skipped.object_id, skipped.reason)
            for _, table in rows.tables(layout, (split,)):
                yield Key(number, 0), table


def in_chunks(columns: Mapping[str, np.ndarray], size: int = ROW_GROUP) -> list[dict[str, np.ndarray]]:
    """A catalogue -> pieces of `size` rows."""
    n_rows = len(next(iter(columns.values())))
    return [
        {name: values[start : start + size] for name, values in columns.items()} for start in range(0, n_rows, size)
    ]


def digest_of(*arrays: np.ndarray) -> str:
    """SHA-256 over arrays of numbers or text, independent of how they lie in memory."""
    digest = hashlib.sha256()
    for array in arrays:
        if array.dtype.kind in "OUS":
            digest.update("\n".join(map(str, array.tolist())).encode())
        else:
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(str(array.shape).encode())
    return digest.hexdigest()


def count_splits(split: np.ndarray, order: Sequence[str]) -> dict[str, int]:
    """Split -> rows, in this order."""
    return {name: int(np.count_nonzero(split == name)) for name in order}
