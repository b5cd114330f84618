"""A survey as rows with numbers: a folder of files, a list of files, or a dataset; any run of them can be read alone.

    survey = open_survey("spectra/", Conventions())
    survey.length, survey.identity  # how many, and a hash that changes when they do
    survey.read(2048, 4096)  # Readings of these rows, in order

Parquet is read by row groups wherever it lies, so that a run in the middle costs what it holds. Other formats of
`datasets` have no such middle: they are read from the beginning, and only once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.packaged_modules.parquet.parquet import ParquetConfig

from .builders.build import MANIFEST_FILE
from .builders.grids import read_wavelength_grid
from .builders.parquet_layout import ROW_GROUP, sha256_of
from .hub import HubError, attempt, check_dataset, explained, revision_of
from .readers.pixel_flags import trusted
from .readers.star_names import normalise_star_name
from .sources import OWN_COLUMNS, Conventions, Reading, read_source, spectrum_files
from .spectra import Spectrum

BATCH = ROW_GROUP
"""Rows taken out of Parquet at once: one row group as `spectrafm build` writes them."""

BESIDE = frozenset({"wavelength", "ivar", "resolving_power"})
"""Columns that are read of our own datasets beside `OWN_COLUMNS`; of others all are."""

READERS = 8
"""Footers of Parquet files read at once; each is a request or two."""


class Survey(Protocol):
    """Rows with numbers from 0, always the same ones while `identity` is the same.

    Attributes:
        place: Where it is, for people.
        length: Rows; None = known only at the end.
        identity: JSON: all that tells this survey from another one, among it a SHA-256.
        any_order: Whether `read` may be asked for runs in any order at the same cost.
    """

    @property
    def place(self) -> str: ...

    @property
    def any_order(self) -> bool: ...

    @property
    def length(self) -> int | None: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def read(self, start: int, stop: int) -> Iterator[Reading]:
        """Readings of rows start to stop, in order; fewer only where the survey ends."""
        ...


def open_survey(
    source: str | Path | Sequence[str | Path],
    conventions: Conventions | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    leave_out: Sequence[Path] = (),
) -> Survey:
    """Find out what a source is, and how long.

    Args:
        source: A folder of spectra; a file, or a list of files; a folder of Parquet, as `spectrafm build` makes it; or
            a dataset on the Hub. A folder with both spectra and Parquet is a folder of spectra.
        conventions: What the spectra do not tell themselves.
        config, split: Of a dataset; None = its default config, all its splits one after the other.
        revision: Branch, tag or commit of a dataset on the Hub.
        leave_out: Files that are not part of the folder, though they lie in it: the catalogue itself.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: No spectrum in it; no such config or split; or config, split or revision of what is no dataset.
        HubError: The dataset cannot be had.
    """
    conventions = conventions or Conventions()
    told = {name: value for name, value in (("config", config), ("split", split), ("revision", revision)) if value}
    if not isinstance(source, (str, Path)):
        survey: Survey = Files.of_list(list(map(Path, source)), conventions)
    elif Path(source).is_file():
        survey = Files.of_list([Path(source)], conventions)
    elif Path(source).is_dir():
        folder = Path(source).absolute()
        left_out = {path.absolute() for path in leave_out}
        try:
            paths = [path for path in map(folder.joinpath, spectrum_files(folder)) if path not in left_out]
        except ValueError:
            paths = []
        if not paths and _holds_data(folder, left_out):
            return open_dataset(str(folder), conventions, config, split, revision)
        survey = Files.of_folder(folder, paths, conventions)
    elif not Path(source).is_absolute() and len(Path(source).parts) <= 2:
        try:
            return open_dataset(str(source), conventions, config, split, revision)
        except (HubError, FileNotFoundError) as error:  # more often a path with a slip in it than a dataset
            raise type(error)(
                f"there is no file or folder {written(str(source))} here ({Path.cwd()}), and no dataset of that name "
                f"can be had from the Hub: {error}"
            ) from error
    else:
        raise FileNotFoundError(
            f"nothing is at {source}; give a folder of spectra, a list of files, or a dataset (a folder of Parquet, or "
            "OWNER/NAME on the Hub)."
        )
    if told:
        raise ValueError(
            f"{survey.place} holds spectra as files, which have no {' or '.join(told)}; leave that out, or give a "
            "dataset."
        )
    return survey


def _holds_data(folder: Path, left_out: set[Path]) -> bool:
    """Whether a folder without spectra holds a dataset: its card, or Parquet."""
    if (folder / MANIFEST_FILE).is_file() or (folder / "README.md").is_file():
        return True
    return any(path.absolute() not in left_out for path in folder.rglob("*.parquet"))


# ---------------------------------------------------------------- files


def written(text: str) -> str:
    """Text as a file in UTF-8 can hold it, with what is no character of it as backslash escapes.

    A name on disk is a row of bytes, and those that are not UTF-8 come to Python as lone surrogates: the byte FF is
    written as `\\udcff`, and Python opens the file under what that stands for.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Files:
    """One spectrum per file.

    Attributes:
        place: The folder, or how many files.
        paths: Absolute, in the order of the rows.
        names: Of the rows: relative to the folder, or as given; see `written`.
        conventions: What the files do not tell.
        identity: Hash of names, sizes and times of change.
    """

    place: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    conventions: Conventions
    identity: dict[str, Any]
    any_order: bool = True

    @classmethod
    def of_folder(cls, folder: Path, paths: Sequence[Path], conventions: Conventions) -> Files:
        if not paths:
            raise ValueError(
                f"{folder} holds no file that could be a spectrum, and no dataset; give the folder of the spectra "
                "(FITS, or what specutils reads), or of the Parquet."
            )
        named = sorted((path.relative_to(folder).as_posix(), path) for path in paths)
        return cls._of(str(folder), [path for _, path in named], [name for name, _ in named], conventions)

    @classmethod
    def of_list(cls, paths: Sequence[Path], conventions: Conventions) -> Files:
        if not paths:
            raise ValueError("the list of files is empty; give at least one spectrum.")
        if not any(path.is_file() for path in paths):
            raise FileNotFoundError(f"none of the {len(paths)} files is there, e.g. {paths[0]}; are the paths right?")
        place = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files"
        return cls._of(place, [path.absolute() for path in paths], list(map(str, paths)), conventions)

    @classmethod
    def _of(cls, place: str, paths: Sequence[Path], names: Sequence[str], conventions: Conventions) -> Files:
        listing = hashlib.sha256()
        for name, path in zip(names, paths, strict=True):
            try:
                about = path.stat()
                state = f"{about.st_size}\0{about.st_mtime_ns}"
            except (OSError, ValueError):  # of a list: a row with that as its reason
                state = "missing"
            listing.update(f"{name}\0{state}\n".encode("utf-8", "surrogatepass"))
        place = written(place)
        identity = {"input": place, "input hash": listing.hexdigest(), "input rows": len(paths)}
        return cls(place, tuple(paths), tuple(map(written, names)), conventions, identity)

    @property
    def length(self) -> int:
        return len(self.paths)

    def read(self, start: int, stop: int) -> Iterator[Reading]:
        several = len(self.paths) > 1
        for name, path in zip(self.names[start:stop], self.paths[start:stop], strict=True):
            (reading,) = read_source(path, self.conventions, several) if path.is_file() else (missing(path),)
            reason = None if reading.reason is None else written(reading.reason)
            yield replace(reading, name=name, reason=reason, assumed=tuple(map(written, reading.assumed)))


def missing(path: Path) -> Reading:
    """Of a file that is not there, or not any more."""
    return Reading(path.name, None, f"there is no file {path}; was it moved, or is the path wrong?")


# ---------------------------------------------------------------- datasets


def open_dataset(
    name: str,
    conventions: Conventions,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Survey:
    """A dataset as `datasets` finds it, at one revision for good.

    Args:
        name: A folder, or a repository on the Hub.
        config, split, revision: See `open_survey`.

    Raises:
        ValueError: No such config or split, or its card names files outside of it; HubError: it cannot be had.
    """
    with explained(f"opening {name}"):
        commit = revision_of(name, revision, "dataset")
        if commit is None and revision is not None:
            raise ValueError(f"{name} is a folder, which has no revisions; leave out revision={revision!r}.")
        check_dataset(name, commit)
        try:
            builder = attempt(lambda: datasets.load_dataset_builder(name, config, revision=commit))
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FileNotFoundError(f"no dataset at {name} ({error}).") from error
    files = {str(one): list(map(str, paths)) for one, paths in (builder.config.data_files or {}).items()}
    splits = list(files) if split is None else [split]
    if unknown := [one for one in splits if one not in files]:
        raise ValueError(f"{name} has no split {unknown[0]!r}, only {', '.join(files)}.")
    chosen = [path for one in splits for path in files[one]]
    about: dict[str, Any] = {
        "input": name,
        "input config": builder.config.name,
        "input split": ", ".join(splits),
        "input revision": commit,
        "input hash": _hash_of_files(Path(name), chosen) if commit is None else _hash_of_listing(chosen),
    }
    if not isinstance(builder.config, ParquetConfig):
        if len(splits) != 1:
            raise ValueError(f"{name} has the splits {', '.join(splits)}, and is no Parquet; choose one of them.")
        return Stream(name, builder.config.name, splits[0], commit, conventions, about)
    with explained(f"opening {name}"), ThreadPoolExecutor(READERS) as pool:
        rows = tuple(pool.map(lambda path: attempt(lambda: _count_rows(path)), chosen))
        grid = attempt(lambda: read_wavelength_grid(name, commit))
    if not sum(rows):
        raise ValueError(f"{name} has no row in {', '.join(splits)}.")
    return ParquetRows(name, tuple(chosen), rows, grid, conventions, about | {"input rows": sum(rows)})


def _hash_of_files(folder: Path, paths: Sequence[str]) -> str:
    """SHA-256 of the files' SHA-256s: from the manifest that `spectrafm build` leaves, or computed."""
    known: dict[str, tuple[int, str]] = {}
    if (folder / MANIFEST_FILE).is_file():
        shards = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")).get("shards", [])
        known = {shard["path"]: (shard["size"], shard["sha256"]) for shard in shards}
    whole = hashlib.sha256()
    for path in map(Path, paths):
        name = os.path.relpath(path, folder.absolute())
        size, digest = known.get(name, (None, ""))
        whole.update(f"{name}\0{digest if size == path.stat().st_size else sha256_of(path)}\n".encode())
    return whole.hexdigest()


def _hash_of_listing(paths: Sequence[str]) -> str:
    """Of names of files at one commit, which stay what they are."""
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()


def _count_rows(path: str) -> int:
    with fsspec.open(path) as file:
        return pq.ParquetFile(file).metadata.num_rows


@dataclass(frozen=True)
class ParquetRows:
    """The rows of Parquet files, one after the other.

    Attributes:
        place: Folder or repository.
        paths: As fsspec opens them, `hf://` with the commit in it.
        rows: Of each file.
        wavelength: Pixels that all share, shape (n_pixels,), vacuum Angstrom; None = each row brings its own.
        conventions: What the rows do not tell.
        identity: Repository and commit, or hash of the files.
    """

    place: str
    paths: tuple[str, ...]
    rows: tuple[int, ...]
    wavelength: np.ndarray | None
    conventions: Conventions
    identity: dict[str, Any]
    any_order: bool = True

    @property
    def length(self) -> int:
        return sum(self.rows)

    def read(self, start: int, stop: int) -> Iterator[Reading]:
        first = 0
        for path, n_rows in zip(self.paths, self.rows, strict=True):
            run = max(start - first, 0), min(stop - first, n_rows)
            if run[0] < run[1]:
                yield from self._read_file(path, *run, first)
            first += n_rows

    def _read_file(self, path: str, start: int, stop: int, first: int) -> Iterator[Reading]:
        """Rows of one file; where the line breaks, it is opened again at the row that is due."""
        due = start
        batches: Iterator[pa.RecordBatch] | None = None

        def next_batch() -> pa.RecordBatch:
            nonlocal batches
            try:
                batches = batches or _batches(path, due, stop)
                return next(batches)
            except BaseException:
                batches = None
                raise

        while due < stop:
            with explained(f"reading {self.place}"):
                batch = attempt(next_batch)
            quick = None if self.conventions != Conventions() else own_rows(batch, self.wavelength, first + due)
            yield from quick or rows_of(batch, self.wavelength, self.conventions, first + due)
            due += len(batch)


def _batches(path: str, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Rows start to stop of a Parquet file, at most `BATCH` at once; only row groups that hold some are read."""
    with fsspec.open(path) as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        names = set(parquet.schema_arrow.names)
        columns = sorted(names & (OWN_COLUMNS | BESIDE)) if names >= OWN_COLUMNS else None
        first = 0
        for group in range(parquet.num_row_groups):
            n_rows = parquet.metadata.row_group(group).num_rows
            if first < stop and first + n_rows > start:
                at = first
                for batch in parquet.iter_batches(BATCH, [group], columns):
                    some = batch.slice(max(start - at, 0), max(min(stop, at + len(batch)) - max(start, at), 0))
                    at += len(batch)
                    if len(some):
                        yield some
                    if at >= stop:
                        return
            first += n_rows


def rows_of(
    batch: pa.RecordBatch, wavelength: np.ndarray | None, conventions: Conventions, first: int
) -> Iterator[Reading]:
    """Readings of rows of any dataset, the first of which has the number `first`."""
    # With a fingerprint of its own it is not pickled to make one, which takes as long as reading it.
    rows = datasets.Dataset(pa.Table.from_batches([batch]), fingerprint=f"rows-{first}")
    return numbered(read_source({"rows": rows, "wavelength": wavelength}, conventions), first)


def own_rows(batch: pa.RecordBatch, wavelength: np.ndarray | None, first: int) -> list[Reading] | None:
    """The same of datasets that `spectrafm build` made, with a grid: all rows at once, in a third of the time.

    Returns:
        None if `rows_of` has to look at every row: it brings pixels of its own, something is missing, or no pixel of a
        row can be trusted.
    """
    names = set(batch.schema.names)
    if wavelength is None or "wavelength" in names or not names >= OWN_COLUMNS | {"ivar"}:
        return None
    pixels = {}
    for name in ("flux", "ivar", "bad_pixel"):
        column = batch.column(name)
        if name == "ivar" and column.null_count == len(batch):
            continue
        fits = pa.types.is_fixed_size_list(column.type) and column.type.list_size == wavelength.size
        values = column.flatten() if fits else None
        if values is None or column.null_count or values.null_count:
            return None
        pixels[name] = values.to_numpy(zero_copy_only=False).reshape(len(batch), wavelength.size)
    told = {name: batch.column(name).to_pylist() for name in ("object_id", "survey", "restframe")}
    power = batch.column("resolving_power").to_pylist() if "resolving_power" in names else []
    power = [one if one is not None and 0 < one < np.inf else None for one in power or [None] * len(batch)]
    flux, ivar, bad = trusted(pixels["flux"], pixels.get("ivar"), pixels["bad_pixel"])
    if not all(told["restframe"]) or not all(told["object_id"]) or not all(told["survey"]) or bad.all(axis=1).any():
        return None
    return [
        Reading(
            told["object_id"][i],
            Spectrum(
                wavelength=wavelength,
                flux=flux[i],
                bad_pixel=bad[i],
                star_id=normalise_star_name(told["object_id"][i]),
                survey=told["survey"][i],
                ivar=None if ivar is None else ivar[i],
                resolving_power=power[i],
                meta={"format": "row"},
            ),
        )
        for i in range(len(batch))
    ]


def numbered(readings: Iterable[Reading], first: int) -> Iterator[Reading]:
    """Readings under the names they have in the whole survey: rows without a name are called by their number.

    Of a run alone, `read_source` counts from 0, and adds the place to names that come again in it.
    """
    for place, reading in enumerate(readings):
        name = reading.name.removesuffix(f" (row {place})")
        yield replace(reading, name=f"row {first + place}" if name == f"row {place}" else name)


@dataclass(frozen=True)
class Stream:
    """A split in a format that can be read from its beginning only.

    Attributes:
        place: Folder or repository.
        config, split, revision: For `load_dataset`; the revision is a commit, None = a folder.
        conventions: What the rows do not tell.
        identity: Repository and commit, or hash of the files.
    """

    place: str
    config: str
    split: str
    revision: str | None
    conventions: Conventions
    identity: dict[str, Any]
    any_order: bool = False

    @property
    def length(self) -> None:
        return None

    def read(self, start: int, stop: int) -> Iterator[Reading]:
        """What comes before `start` is read and thrown away; where the line breaks, `datasets` tries again."""
        with explained(f"reading {self.place}"):
            rows = attempt(
                lambda: datasets.load_dataset(
                    self.place, self.config, split=self.split, streaming=True, revision=self.revision
                )
            )
            yield from islice(numbered(read_source(rows.skip(start), self.conventions), start), stop - start)
