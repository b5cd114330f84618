"""Write a dataset: plan, shards, audit, card. `build_dataset` is what `spectrafm build` calls.

A shard task writes one file per split from a run of chunks, and then a record beside them. A killed build finds the
records, does the rest, and ends with the same bytes; so does one with more processes, or on a Ray cluster. A folder
that holds another build is refused, never mixed into.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm import tqdm

from .dataset_card import load_facts, render_dataset_card
from .leak_audit import LeakAudit, audit_splits
from .parquet_layout import ROW_GROUP, ShardRecord, naming_a_full_disk, whole_file, write_json, write_shards
from .rows import Layout
from .spectra_builder import Chunk, Plan, Skipped, SpectraConfig

ROWS_VERSION = 1
"""Raised when the same settings would give other rows, so that a half-done build is not finished with new code."""

MANIFEST_FILE, SKIPPED_FILE, CARD_FILE, GRID_CONFIG = "manifest.json", "skipped.csv", "README.md", "wavelength_grid"
WORK_FOLDER = ".build"
PACKAGES = ("spectrafm_hf", "datasets", "pyarrow", "numpy")

ROWS_PER_SHARD = 10 * ROW_GROUP
"""Fewest rows that make another shard worth while: a tenth of them, a validation split, still fills a row group."""

BYTES_PER_SHARD = 400e6
"""Most bytes of a shard before compression; about 250 MB after."""

COMPRESSION = 0.8
"""Size of a shard / size of its arrays, at worst, to see whether the disk will do."""


@dataclass(frozen=True, eq=False)
class ShardTask:
    """One run of chunks and where their rows go; all a process needs.

    Attributes:
        config: How to read chunks.
        layout: Columns.
        splits: Each gets a file.
        number, of: This task among those of the config.
        chunks: Its own.
        folder: Of the dataset.
    """

    config: SpectraConfig
    layout: Layout
    splits: tuple[str, ...]
    number: int
    of: int
    chunks: Sequence[Chunk]
    folder: Path

    @property
    def paths(self) -> dict[str, str]:
        """Split -> file, relative to the folder."""
        name = f"{self.number:05d}-of-{self.of:05d}.parquet"
        return {split: f"{self.config.name}/{split}-{name}" for split in self.splits}

    @property
    def record_path(self) -> Path:
        """Written last: says that the files are complete."""
        return self.folder / WORK_FOLDER / f"{self.config.name}-{self.number:05d}-of-{self.of:05d}.json"


@dataclass(frozen=True)
class TaskRecord:
    """What a finished task left: its files, and inputs it had to skip."""

    shards: tuple[ShardRecord, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Build:
    """A finished build.

    Attributes:
        folder: Holds Parquet, README.md and manifest.json; `load_dataset` reads it, `upload_folder` publishes it.
        dataset: Name.
        plans: Config name -> its plan.
        shards: All files, those of the wavelength grid among them.
        skipped: Inputs without a row, with the config's name.
        audit: What the leak audit checked.
        was_done: Nothing had to be written.
    """

    folder: Path
    dataset: str
    plans: Mapping[str, Plan]
    shards: tuple[ShardRecord, ...]
    skipped: tuple[tuple[str, Skipped], ...]
    audit: LeakAudit
    was_done: bool = False

    def rows(self, config: str, split: str) -> int:
        """Rows written."""
        return sum(shard.rows for shard in self.shards if (shard.config, shard.split) == (config, split))


def run_task(task: ShardTask, count_rows: Callable[[int], None] = lambda rows: None) -> TaskRecord:
    """Do one task; doing it twice, or twice at once, gives the same files."""
    skipped: list[Skipped] = []

    def tables() -> Iterator[tuple[str, pa.Table]]:
        for chunk in task.chunks:
            rows = task.config.read(chunk)
            skipped.extend(rows.skipped)
            yield from rows.tables(task.layout, task.splits)

    shards = write_shards(task.folder, task.config.name, task.paths, task.layout.schema, tables(), count_rows)
    record = TaskRecord(tuple(shards), tuple(skipped))
    write_json(task.record_path, asdict(record))
    return record


def read_record(task: ShardTask) -> TaskRecord | None:
    """The record of a task that was finished and whose files are still there, else None."""
    try:
        content = json.loads(task.record_path.read_text(encoding="utf-8"))
        record = TaskRecord(
            tuple(ShardRecord(**shard) for shard in content["shards"]),
            tuple(Skipped(**skipped) for skipped in content["skipped"]),
        )
        whole = all((task.folder / shard.path).stat().st_size == shard.size for shard in record.shards)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def shards_for(rows: int, row_bytes: int) -> int:
    """Shards per split: a power of two up to 8, then multiples of 8, so that 2, 4 or 8 readers share them evenly.

    Small sets get fewer: 5,120 rows make two, 20,480 make eight.
    """
    wanted = min(rows // ROWS_PER_SHARD, 8)
    few = 1 << max(wanted.bit_length() - 1, 0)
    by_size = math.ceil(rows * row_bytes / BYTES_PER_SHARD / 8) * 8
    return max(few, by_size if few == 8 else 0)


def row_bytes(layout: Layout) -> int:
    """Bytes of a row's arrays; ragged ones are taken for 8,000 pixels."""
    sizes = {"float64": 8.0, "float32": 4.0, "bool": 1 / 8, "string": 16.0}
    n_pixels = layout.n_pixels or 8000
    return round(sum(sizes[column.dtype] * (n_pixels if column.per_pixel else 1) for column in layout.columns))


def make_tasks(config: SpectraConfig, plan: Plan, folder: Path, shards: int | None) -> list[ShardTask]:
    """Cut a plan into tasks.

    Raises:
        ValueError: More shards than chunks.
    """
    total = sum(plan.rows.values())
    of = shards_for(total, row_bytes(plan.layout)) if shards is None else shards
    of = min(of, len(plan.chunks)) if shards is None else of
    if not 1 <= of <= len(plan.chunks):
        raise ValueError(
            f"{total} rows make {len(plan.chunks)} chunks of {ROW_GROUP}, so there can be 1 to {len(plan.chunks)} "
            f"shards, got {of}."
        )
    ends = [len(plan.chunks) * number // of for number in range(of + 1)]
    return [
        ShardTask(config, plan.layout, plan.splits, number, of, plan.chunks[ends[number] : ends[number + 1]], folder)
        for number in range(of)
    ]


def build_dataset(
    configs: Sequence[SpectraConfig],
    output: str | Path,
    shards: int | None = None,
    num_proc: int = 1,
    ray_address: str | None = None,
    progress: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> Build:
    """Build a dataset folder that `load_dataset(folder, config, streaming=True)` reads without our code.

    Args:
        configs: Of one dataset; the first is the default.
        output: Folder of the dataset.
        shards: Files per split; None = `shards_for`. The rows and their order do not depend on it.
        num_proc: Processes; the bytes do not depend on it.
        ray_address: Of a Ray cluster, or `local` for one of `num_proc` workers here; None = no Ray. The folder must
            be on a file system that all nodes share.
        progress: Show a bar.
        facts: More facts for the card, over those in hub_cards/datasets.

    Raises:
        ValueError: The settings make no sense, or the folder holds another build.
        LeakError: A star would be in two splits; the folder is left without a card and manifest.
        OSError: The folder cannot be written, or the disk is full.
    """
    if not configs:
        raise ValueError("a dataset needs at least one config.")
    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}.")
    folder, dataset = Path(output).absolute(), configs[0].dataset
    known_facts = {**load_facts(dataset), **configs[0].facts(), **(facts or {})}
    plans = {config.name: config.plan() for config in configs}
    for config in configs:
        if not sum(plans[config.name].rows.values()):
            raise ValueError(f"no row is left for {dataset}/{config.name}:\n{plans[config.name].report}")
    tasks = [task for config in configs for task in make_tasks(config, plans[config.name], folder, shards)]
    wanted = _what_is_wanted(configs, plans, tasks)
    _make_folder(folder)
    with _only_one(folder), naming_a_full_disk(folder):
        if (done := _finished(folder, dataset, plans, wanted)) is not None:
            return done
        _begin(folder, wanted)
        records = {task: record for task in tasks if (record := read_record(task)) is not None}
        pending = [task for task in tasks if task not in records]
        _check_space(folder, pending, plans)
        total = sum(sum(plan.rows.values()) for plan in plans.values())
        kept = sum(shard.rows for record in records.values() for shard in record.shards)
        with tqdm(total=total, initial=kept, desc=dataset, unit=" spectra", disable=not progress) as bar:
            records |= run_tasks(pending, num_proc, ray_address, bar)
        _clear_partials(folder)  # of workers that died, where the cluster tried again
        written = [shard for task in tasks for shard in records[task].shards]
        written += _write_grids(folder, plans)
        skipped = [(config.name, one) for config in configs for one in plans[config.name].skipped]
        skipped += [(task.config.name, one) for task in tasks for one in records[task].skipped]
        audit = audit_files(folder, written)
        build = Build(folder, dataset, plans, tuple(written), tuple(skipped), audit)
        _finish(build, wanted, known_facts)
    return build


def run_tasks(
    tasks: Sequence[ShardTask], num_proc: int, ray_address: str | None, bar: tqdm
) -> dict[ShardTask, TaskRecord]:
    """Do all tasks: here, in processes, or on a Ray cluster."""
    if not tasks:
        return {}
    if ray_address is not None:
        from .ray_cluster import run_on_ray

        return run_on_ray(tasks, ray_address, num_proc, bar)
    if num_proc == 1:
        return {task: run_task(task, bar.update) for task in tasks}
    return _run_in_processes(tasks, num_proc, bar)


_rows_done: Any = None
"""In a worker: the counter shared with the parent."""


def _start_worker(counter: Any) -> None:
    global _rows_done
    _rows_done = counter
    pa.set_cpu_count(1)


def _count_rows(rows: int) -> None:
    with _rows_done.get_lock():
        _rows_done.value += rows


def _work(task: ShardTask) -> TaskRecord:
    return run_task(task, _count_rows)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside use one thread for linear algebra: pools of threads take the cores from each other."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _run_in_processes(tasks: Sequence[ShardTask], num_proc: int, bar: tqdm) -> dict[ShardTask, TaskRecord]:
    """Spawned, not forked: the parent has threads, and a fork would inherit their locks."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    start = bar.n
    records = {}
    with one_thread_each():
        pool = ProcessPoolExecutor(min(num_proc, len(tasks)), context, _start_worker, (counter,))
        try:
            futures = {pool.submit(_work, task): task for task in tasks}
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    records[futures[future]] = future.result()
                bar.update(start + counter.value - bar.n)
        except BrokenProcessPool as error:
            raise OSError(
                "a process of the build died, most likely for want of memory; use a smaller --num-proc and run the "
                "same command again: finished shards are kept."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return records


# ---------------------------------------------------------------- the folder


def _what_is_wanted(
    configs: Sequence[SpectraConfig], plans: Mapping[str, Plan], tasks: Sequence[ShardTask]
) -> dict[str, Any]:
    """All that decides the bytes; its digest is the build's fingerprint."""
    wanted: dict[str, Any] = {
        "rows_version": ROWS_VERSION,
        "dataset": configs[0].dataset,
        "configs": [config.settings() for config in configs],
        "rows": {name: dict(plan.rows) for name, plan in plans.items()},
        "digest": {name: plan.digest for name, plan in plans.items()},
        "shards": {config.name: sum(task.config.name == config.name for task in tasks) for config in configs},
    }
    wanted["fingerprint"] = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    return wanted


def _make_folder(folder: Path) -> None:
    """Make the folder and try it, before hours are spent.

    Raises:
        OSError: It cannot be written.
    """
    try:
        (folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise OSError(
            f"the folder {folder} cannot be written ({error.strerror}); choose another one with --output."
        ) from error


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two builds in one folder would tread on each other.

    Raises:
        OSError: Another build is at work there.
    """
    lock = FileLock(folder / WORK_FOLDER / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OSError(f"another build is at work in {folder}; wait for it, or choose another --output.") from error
    try:
        yield
    finally:
        lock.release()
        if (folder / MANIFEST_FILE).is_file():
            shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _finished(folder: Path, dataset: str, plans: Mapping[str, Plan], wanted: Mapping[str, Any]) -> Build | None:
    """The build this folder holds already; None if there is work to do.

    Raises:
        ValueError: It holds something else.
    """
    manifest = _read_json(folder / MANIFEST_FILE)
    begun = (manifest or {}).get("wanted") or _read_json(folder / WORK_FOLDER / "wanted.json")
    if begun is None:
        if strange := sorted(p.name for p in folder.iterdir() if p.name not in (WORK_FOLDER, ".git", ".gitattributes")):
            raise ValueError(
                f"{folder} holds files that are no dataset of ours ({', '.join(strange[:3])}); choose an empty folder "
                "with --output."
            )
        return None
    if begun.get("fingerprint") != wanted["fingerprint"]:
        raise ValueError(
            f"{folder} holds a dataset built with other settings ({_difference(begun, wanted)}); choose another "
            "--output, or remove that folder."
        )
    if manifest is None:
        return None
    shards = tuple(ShardRecord(**shard) for shard in manifest["shards"])
    for shard in shards:
        path = folder / shard.path
        if not path.is_file() or path.stat().st_size != shard.size:
            (folder / MANIFEST_FILE).unlink()  # damaged: build again what is not as it was
            return None
    skipped = tuple((one.pop("config"), Skipped(**one)) for one in manifest["skipped"])
    return Build(folder, dataset, plans, shards, skipped, LeakAudit(**manifest["audit"]), was_done=True)


def _difference(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What changed, in words."""
    there, asked = _flat(begun), _flat(wanted)
    names = [name for name in sorted(there.keys() | asked.keys()) if there.get(name) != asked.get(name)]
    told = [name for name in names if not name.startswith(("fingerprint", "digest"))] or ["the list of stars"]
    return "; ".join(
        f"{name}: {there.get(name)!r} there, {asked.get(name)!r} asked" if name in names else name for name in told[:4]
    )


def _flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(nested, Mapping):
        items = list(nested.items())
    elif isinstance(nested, (list, tuple)):
        items = [(str(number), value) for number, value in enumerate(nested)]
    else:
        return {prefix: nested}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _begin(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Note what is being built."""
    _clear_partials(folder)
    write_json(folder / WORK_FOLDER / "wanted.json", wanted)


def _clear_partials(folder: Path) -> None:
    """Remove what killed processes left half-written; the lock says that no other build is at work here."""
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def _check_space(folder: Path, tasks: Sequence[ShardTask], plans: Mapping[str, Plan]) -> None:
    """Raises: OSError: The disk is too small for what is still to be written."""
    needed = 0.0
    for name, plan in plans.items():
        share = sum(task.config.name == name for task in tasks) / max(1, next((t.of for t in tasks), 1))
        needed += COMPRESSION * share * sum(plan.rows.values()) * row_bytes(plan.layout)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"no space for the build in {folder}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are "
            "free; free some, or choose another --output."
        )


def _write_grids(folder: Path, plans: Mapping[str, Plan]) -> list[ShardRecord]:
    """The config `wavelength_grid`: one row, since all configs of a dataset share their pixels."""
    grid = next((plan.grid for plan in plans.values() if plan.grid is not None), None)
    if grid is None:
        return []
    table = grid.table()
    paths = {"train": f"{GRID_CONFIG}/train-00000-of-00001.parquet"}
    return write_shards(folder, GRID_CONFIG, paths, table.schema, [("train", table)])


def audit_files(folder: Path, shards: Sequence[ShardRecord]) -> LeakAudit:
    """`leak_audit.audit_splits` on what was written; configs of one dataset count together."""
    stars: dict[str, dict[str, list[np.ndarray]]] = {}
    for shard in shards:
        if shard.config == GRID_CONFIG:
            continue
        table = pq.read_table(folder / shard.path, columns=["object_id", "ra", "dec"])
        columns = stars.setdefault(shard.split, {"object_id": [], "ra": [], "dec": []})
        for name, values in columns.items():
            values.append(np.asarray(table[name].to_numpy(zero_copy_only=False)))
    return audit_splits(
        {split: {name: np.concatenate(values) for name, values in columns.items()} for split, columns in stars.items()}
    )


def _finish(build: Build, wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write what is beside the shards; the manifest, written last, says that all is there."""
    folder = build.folder
    if build.skipped:
        with whole_file(folder / SKIPPED_FILE) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["config", "file", "object_id", "reason"])
            table.writerows([config, one.file, one.object_id, one.reason] for config, one in build.skipped)
    with whole_file(folder / CARD_FILE) as partial:
        partial.write_text(render_dataset_card(build, facts), encoding="utf-8")
    manifest = {
        "wanted": dict(wanted),
        "shards": [asdict(shard) for shard in build.shards],
        "selection": {name: plan.report.to_dict() for name, plan in build.plans.items() if plan.report is not None},
        "skipped": [{"config": config, **asdict(one)} for config, one in build.skipped],
        "audit": build.audit.to_dict(),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    write_json(folder / MANIFEST_FILE, manifest)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
