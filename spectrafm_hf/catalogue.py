"""A survey -> a catalogue of labels: one row per spectrum, whatever happens on the way.

    label_survey("spectra/", "catalogue.parquet")

Rows are labelled in parts of some thousand, each written whole or not at all beside the output, with the plan they
follow: model and revision, versions, options, hash of the input. A killed run goes on at the first part that is not
there; one with another plan is refused, so that no catalogue mixes two models or two inputs. At the end the parts
become one file, whole or not at all. Numbers hang on the part alone, so that processes and Ray change nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import queue
import shlex
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from .builders.build import one_thread_each
from .builders.parquet_layout import naming_a_full_disk, open_writer, sha256_of, whole_file, write_json
from .builders.ray_cluster import cluster
from .checkpoints import located
from .hub import CONFIG, EXTRACTOR, LIMITS
from .labelling import EMBEDDING, Labelled, Labeller
from .readers.catalogue_file import (
    NUMBERS,
    SUFFIXES,
    TEXTS,
    count_rows,
    parquet_schema,
    read_provenance,
    schema_for,
    write_ecsv,
    write_fits,
)
from .sources import Conventions, Reading
from .survey_input import ParquetRows, Stream, Survey, open_survey, written

CATALOGUE_VERSION = 1
"""Raised when the same plan would give other columns or numbers: a half-done run is not finished with new code."""

PART_ROWS = 2048
"""Spectra of a part: what a kill may cost, some seconds to half a minute."""

ROW_GROUP = 65_536
"""Rows of a row group of the catalogue: 20 MB."""

EMBEDDING_MEANS = "place among other spectra, of similar stars near each other; NaN = there is no spectrum"

RETRIES = 3
"""Times Ray tries a part again after its worker died."""


@dataclass(frozen=True)
class Catalogue:
    """A finished catalogue.

    Attributes:
        path: Parquet, FITS or ECSV.
        rows: Spectra, one row each.
        flagged: Rows with a reason not to trust them, unreadable ones among them.
        unreadable: Rows without an answer, since there is no spectrum.
        kept: Rows that an earlier, killed run had left.
        was_done: Nothing had to be done.
    """

    path: Path
    rows: int
    flagged: int
    unreadable: int
    kept: int = 0
    was_done: bool = False


def label_survey(
    source: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    model: str = "spectrafm-small",
    revision: str | None = None,
    labels: Sequence[str] | str | None = None,
    abstain: bool = False,
    check: bool = True,
    embeddings: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    conventions: Conventions | None = None,
    config: str | None = None,
    split: str | None = None,
    input_revision: str | None = None,
    part_rows: int = PART_ROWS,
    num_proc: int = 1,
    ray: str | None = None,
    progress: bool | None = None,
) -> Catalogue:
    """Label every spectrum of a survey; the same call after a kill goes on where it was.

    Args:
        source, config, split, input_revision: See `survey_input.open_survey`.
        output: Ends in .parquet (in constant memory), .fits or .ecsv (with all rows in memory at the end).
        model, revision, labels, abstain, check, batch_size, device: See `labelling.Labeller`.
        embeddings: Write the embedding of every spectrum too, in which `similar.similar` searches; NaN where there is
            no spectrum. To .parquet only; 25 numbers, 100 bytes, of a model with five labels.
        conventions: What the spectra do not tell themselves.
        part_rows: Spectra of a part.
        num_proc: Processes, each with a model of its own.
        ray: Address of a Ray cluster (`auto`, `ray://head:10001`), or `local` for one of `num_proc` workers here. Input
            and output must be on a file system that all nodes share.
        progress: Show a bar; None = on a terminal.

    Raises:
        ValueError: Options that make no sense; no spectrum at all; the output, or what a killed run left beside it,
            follows another plan; or the input changed while it was read.
        FileNotFoundError: No such source.
        OSError: The output cannot be written, or the disk is full; a process died; another run is at work there.
        HubError: Model or dataset cannot be had.
    """
    output = Path(output).absolute()
    if output.suffix not in SUFFIXES:
        raise ValueError(f"the catalogue's name must end in {', '.join(SUFFIXES)}, got {output.name}.")
    if written(str(output)) != str(output):  # for Arrow, paths are UTF-8
        raise ValueError(f"the catalogue's path must be UTF-8, got {written(str(output))}; choose another --output.")
    if embeddings and output.suffix != ".parquet":
        raise ValueError(f"embeddings are written to .parquet only, got {output.name}; choose another name for it.")
    if part_rows < 1 or num_proc < 1:
        raise ValueError(f"part_rows and num_proc must be at least 1, got {part_rows} and {num_proc}.")
    conventions = conventions or Conventions()
    survey = open_survey(source, conventions, config, split, input_revision, leave_out=[output])
    _check_place(survey, output)
    if not survey.any_order and (num_proc > 1 or ray is not None):
        raise ValueError(
            f"{survey.place} is a dataset that can be read from its beginning only, by one process: leave out num_proc "
            "and ray, or store it as Parquet."
        )
    options: dict[str, Any] = {"model": model, "revision": revision, "labels": labels, "batch_size": batch_size}
    options |= {"abstain": abstain, "check": check, "device": device, "embeddings": embeddings}
    labeller = Labeller(**options)
    if Path(model).is_dir():
        options["model"] = str(Path(model).absolute())  # a worker may be elsewhere
    plan = make_plan(survey, labeller, conventions, part_rows, abstain, check)
    job = Job(survey, options | {"revision": labeller.revision}, plan, parts_folder(output))
    if (done := _finished(output, plan)) is not None:
        shutil.rmtree(job.folder, ignore_errors=True)  # of a run killed just before
        return done
    with _only_one(job):
        begun = _begin(job)
        with tqdm(
            total=survey.length, desc=output.name, unit=" spectra", disable=None if progress is None else not progress
        ) as bar:
            kept = _run(job, labeller, num_proc, ray, bar)
        made = _merge(job, output, begun, kept)
        shutil.rmtree(job.folder)
    return made


def _check_place(survey: Survey, output: Path) -> None:
    """Raises: ValueError: The catalogue would become part of the dataset it is made of."""
    if isinstance(survey, ParquetRows | Stream) and output.is_relative_to(Path(survey.place).absolute()):
        raise ValueError(f"{output} lies in the dataset it is made of, {survey.place}; choose another folder for it.")


# ---------------------------------------------------------------- the plan


def make_plan(
    survey: Survey, labeller: Labeller, conventions: Conventions, part_rows: int, abstain: bool, check: bool
) -> dict[str, Any]:
    """All that decides the numbers of a catalogue: flat, for JSON; None = not told, not known."""
    told = {
        "medium": conventions.medium,
        "velocity [km/s]": conventions.velocity,
        "redshift": conventions.redshift,
        "wavelength unit": conventions.wavelength_unit,
        "resolving power": conventions.resolving_power,
        "bad pixel": conventions.bad_pixel,
        "reader options": json.dumps(dict(conventions.reader), sort_keys=True, default=str),
    }
    return {
        "catalogue version": CATALOGUE_VERSION,
        **survey.identity,
        **told,
        "model": labeller.model_id,
        "model revision": labeller.revision,
        "model settings": _settings_of(labeller),
        "labels": ", ".join(labeller.labels),
        "abstain": abstain,
        "check": check,
        "embedding": EMBEDDING if labeller.embeddings else None,
        "embedding size": labeller.embedding_size if labeller.embeddings else None,
        "rows per part": part_rows,
        **{name: metadata.version(name) for name in ("spectrafm_hf", "torch", "numpy")},
    }


def _settings_of(labeller: Labeller) -> str | None:
    """SHA-256 of what lies beside the weights of a folder: calibration and limits, which decide as well; see `hub`."""
    folder = Path(located(labeller.model_id))
    if not folder.is_dir():
        return None  # a commit stays what it is
    whole = hashlib.sha256()
    for name in (CONFIG, EXTRACTOR, LIMITS):
        whole.update(f"{name} {sha256_of(folder / name) if (folder / name).is_file() else None}\n".encode())
    return whole.hexdigest()


def difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What two plans do not share, in words; empty if they are one; see `BY_HASH`."""
    said = []
    for name in dict.fromkeys((*there, *asked)):
        if name in BY_HASH or there.get(name) == asked.get(name):
            continue
        one, other = there.get(name), asked.get(name)
        if name == "input hash":
            one, other = (
                f"{plan.get('input rows') or 'some'} spectra of {plan.get('input')}, SHA-256 {str(plan[name])[:12]}"
                if name in plan else None for plan in (there, asked)
            )  # fmt: skip
            name = "input"
        said.append(f"{name}: {one} there, {other} asked")
    return "; ".join(said)


BY_HASH = ("input", "input rows", "model")
"""Of a plan: told for people, while a hash beside them decides; where things lie does not matter."""


def parts_folder(output: Path) -> Path:
    """Where the parts of a catalogue wait to become one."""
    return output.with_name(output.name + ".parts")


def _command() -> str:
    return written(shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]]))


# ---------------------------------------------------------------- parts


def schema_with(label_names: Sequence[str], embedding_size: int | None) -> pa.Schema:
    """Columns of a part: those of every catalogue and last, if it has numbers, the embedding."""
    schema = schema_for(label_names)
    return schema if embedding_size is None else schema.append(_embedding_field(embedding_size))


def _embedding_field(size: int) -> pa.Field:
    told = {"unit": "", "description": EMBEDDING_MEANS}
    return pa.field("embedding", pa.list_(pa.float32(), size), nullable=False, metadata=told)


def _also_embedded(schema: pa.Schema, size: int) -> pa.Schema:
    """The schema of a file with the embedding as its last column, in the header that astropy reads too."""
    column = f"- {{name: embedding, datatype: float32, description: {json.dumps(EMBEDDING_MEANS)}}}"
    header = schema.metadata[b"table_meta_yaml"].decode().replace("\nmeta:", f"\n{column}\nmeta:", 1)
    return schema.append(_embedding_field(size)).with_metadata(schema.metadata | {b"table_meta_yaml": header.encode()})


def part_table(
    rows: Iterable[Labelled], label_names: Sequence[str], first_row: int, embedding_size: int | None = None
) -> pa.Table:
    """Labelled spectra -> rows of the catalogue."""
    schema = schema_with(label_names, embedding_size)
    values: dict[str, list[Any]] = {name: [] for name in schema.names}
    for number, row in enumerate(rows, first_row):
        low, high = row.wavelength_range or (np.nan, np.nan)
        told = {
            "row": number,
            "name": row.name,
            "snr": np.nan if row.snr is None else row.snr,
            "wavelength_min": low,
            "wavelength_max": high,
            "flags": "; ".join(row.flags),
            "flag_names": "; ".join(row.flag_names),
            "assumed": "; ".join(row.assumed),
        }
        for name in label_names:
            answer = row.labels.get(name)
            for key in NUMBERS:
                told[name if key == "value" else f"{name}_{key}"] = np.nan if answer is None else getattr(answer, key)
            told[f"{name}_calibrated"] = answer is not None and bool(answer.calibrated)
            told[f"{name}_learned"] = None if answer is None else answer.learned
        if embedding_size is not None:
            told["embedding"] = np.full(embedding_size, np.nan, np.float32) if row.embedding is None else row.embedding
        for name, value in told.items():
            values[name].append(value)
    return pa.Table.from_pydict(values, schema=schema)


@dataclass(frozen=True)
class Job:
    """All that a worker needs.

    Attributes:
        survey: The input.
        options: Of the Labeller, its revision pinned.
        plan: See `make_plan`.
        folder: Of the parts.
    """

    survey: Survey
    options: dict[str, Any]
    plan: dict[str, Any]
    folder: Path

    @property
    def part_rows(self) -> int:
        return int(self.plan["rows per part"])

    @property
    def label_names(self) -> list[str]:
        return str(self.plan["labels"]).split(", ")

    @property
    def embedding_size(self) -> int | None:
        return self.plan["embedding size"]

    def part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def rows_of(self, number: int) -> int:
        """Rows that a part must have; at most, where the survey's length is not known."""
        length = self.survey.length
        return self.part_rows if length is None else max(0, min(self.part_rows, length - number * self.part_rows))

    def finished_rows(self, number: int) -> int | None:
        """Rows of a part that is there, whole, and ours; None if it must be made."""
        try:
            file = pq.ParquetFile(self.part(number))
            schema = schema_with(self.label_names, self.embedding_size)
            whole = file.schema_arrow.equals(schema) and file.metadata.num_rows
        except (OSError, pa.ArrowInvalid):
            return None
        wanted = self.rows_of(number)
        fits = whole is not False and (whole == wanted or (self.survey.length is None and whole < wanted))
        return int(whole) if fits else None

    def write(self, number: int, rows: Iterable[Labelled]) -> int:
        """Write a part, whole or not at all; gives its rows.

        Raises:
            ValueError: They are not as many as at the beginning of the run.
        """
        table = part_table(rows, self.label_names, number * self.part_rows, self.embedding_size)
        wanted = self.rows_of(number)
        if len(table) != wanted and not (self.survey.length is None and len(table) < wanted):
            raise ValueError(
                f"{self.survey.place} gave {len(table)} spectra from number {number * self.part_rows} on, and {wanted} "
                f"were expected: it changed while it was read. Remove {self.folder} and start anew."
            )
        with naming_a_full_disk(self.folder), whole_file(self.part(number)) as partial:
            with open_writer(partial, table.schema) as writer:
                writer.write_table(table)
            to_disk(partial)
        return len(table)


def to_disk(path: Path) -> None:
    """Have the system write a file out before it gets its name: after a power cut it is whole too."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


class Worker:
    """A model that labels parts, in whatever process.

    Raises:
        ValueError: The model here is not that of the plan.
    """

    def __init__(self, job: Job, labeller: Labeller | None = None):
        self.job, self.labeller = job, labeller or Labeller(**job.options)

    def label(self, number: int, readings: Iterable[Reading], bar: tqdm | None = None) -> int:
        """Label and write one part; gives its rows."""
        labelled = self.labeller.label(readings)
        return self.job.write(number, labelled if bar is None else _counted(labelled, bar))

    def __call__(self, number: int) -> int:
        """The same, read from the survey."""
        start = number * self.job.part_rows
        readings = self.job.survey.read(start, start + self.job.rows_of(number))
        if isinstance(self.job.survey, ParquetRows) and torch.get_num_threads() == 1:
            return self.label(number, readings)  # nothing to wait for, and a second thread would be in the way
        with read_ahead(readings) as ahead:
            return self.label(number, ahead)


def _counted(rows: Iterable[Labelled], bar: tqdm) -> Iterator[Labelled]:
    for row in rows:
        yield row
        bar.update()


@contextmanager
def read_ahead(readings: Iterator[Reading], most: int = 128) -> Iterator[Iterator[Reading]]:
    """The same readings, read by a thread while the model works; at most `most` wait."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(most)
    over = threading.Event()

    def put(kind: str, item: Any = None) -> None:
        while not over.is_set():
            try:
                return waiting.put((kind, item), timeout=0.1)
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for reading in readings:
                put("reading", reading)
                if over.is_set():
                    return
            put("end")
        except BaseException as error:
            put("error", error)

    def take() -> Iterator[Reading]:
        while True:
            kind, item = waiting.get()
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        over.set()
        thread.join()


# ---------------------------------------------------------------- all parts: here, in processes, on a cluster


def _run(job: Job, labeller: Labeller, num_proc: int, ray: str | None, bar: tqdm) -> int:
    """Make all parts that are not there; gives the rows of those that were."""
    if job.survey.length is None:
        return _run_to_the_end(job, labeller, bar)
    numbers = range(-(-job.survey.length // job.part_rows))
    missing = [number for number in numbers if job.finished_rows(number) is None]
    kept = job.survey.length - sum(map(job.rows_of, missing))
    bar.update(kept)
    if not missing:
        return kept
    if ray is not None:
        _run_on_ray(job, missing, ray, num_proc, bar)
    elif num_proc > 1:
        _run_in_processes(job, missing, num_proc, bar)
    else:
        worker = Worker(job, labeller)
        for run in runs_of(missing):
            start, stop = run[0] * job.part_rows, run[-1] * job.part_rows + job.rows_of(run[-1])
            with read_ahead(job.survey.read(start, stop)) as readings:
                for number in run:
                    worker.label(number, islice(readings, job.rows_of(number)), bar)
    return kept


def _run_to_the_end(job: Job, labeller: Labeller, bar: tqdm) -> int:
    """Of a survey whose length nobody knows: the last part is the one that is not full."""
    worker, number, kept = Worker(job, labeller), 0, 0
    while (rows := job.finished_rows(number)) is not None:
        kept, number = kept + rows, number + 1
        if rows < job.part_rows:
            bar.update(kept)
            return kept
    bar.update(kept)
    with read_ahead(job.survey.read(kept, sys.maxsize)) as readings:
        while worker.label(number, islice(readings, job.part_rows), bar) == job.part_rows:
            number += 1
    return kept


def runs_of(numbers: Sequence[int]) -> list[list[int]]:
    """Increasing numbers, cut where one is left out: [1, 2, 5] -> [[1, 2], [5]]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


_worker: Worker | None = None
"""In a process of a pool."""


def _start_worker(job: Job, n_threads: int) -> None:
    global _worker
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(n_threads)
    disable_progress_bar()  # of loading, once per process
    _worker = Worker(job)


def _end_with_the_parent() -> None:
    """A killed parent tells nobody; its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(number: int) -> int:
    assert _worker is not None
    return _worker(number)


def _run_in_processes(job: Job, missing: Sequence[int], num_proc: int, bar: tqdm) -> None:
    """Spawned, not forked: the parent has threads, and a fork would inherit their locks.

    Raises:
        OSError: A process died.
    """
    n_workers = min(num_proc, len(missing))
    n_threads = max(1, (os.cpu_count() or 1) // n_workers)
    with one_thread_each():
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(n_workers, context, _start_worker, (job, n_threads))
        try:
            for future in as_completed([pool.submit(_work, number) for number in missing]):
                bar.update(future.result())
        except BrokenProcessPool as error:
            raise OSError(
                "a process of the run died, most likely for want of memory; use a smaller --num-proc or --batch-size "
                "and run the same command again: finished parts are kept."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class RayWorker:
    """A worker as Ray Data calls it: batches of part numbers -> batches of their rows."""

    def __init__(self, job: Job):
        self.worker = Worker(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = []
        for number in map(int, batch["number"]):
            self._note_try(number)
            rows.append(self.worker(number))
        return {"rows": np.array(rows)}

    def _note_try(self, number: int) -> None:
        """Ray Data tries for ever; a part that kills every worker must not go on for ever.

        Raises:
            OSError: Workers died over this part `RETRIES` times.
        """
        job = self.worker.job
        with (job.folder / f".part-{number:06d}.tries").open("ab") as file:
            tries = file.tell()
            file.write(b".")
        if tries > RETRIES:
            first = number * job.part_rows
            raise OSError(
                f"workers died {tries} times over rows {first} to {first + job.rows_of(number) - 1}, most likely for "
                "want of memory; use a smaller --batch-size, or workers with more memory, and run the same command "
                "again: finished parts are kept."
            )


def _run_on_ray(job: Job, missing: Sequence[int], address: str, num_proc: int, bar: tqdm) -> None:
    """Make parts on a cluster: Ray Data hands their numbers to actors that hold a model, and again if one dies.

    Raises:
        ValueError: Ray is not installed, or there is no such cluster.
        OSError: Ray gave up.
    """
    with cluster(address, num_proc):
        import ray
        import ray.data

        there = ray.cluster_resources()
        n_gpus = int(there.get("GPU", 0))
        n_actors = max(1, min(n_gpus or int(there.get("CPU", 1)), len(missing)))
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        numbers = ray.data.from_items([{"number": number} for number in missing], override_num_blocks=len(missing))
        done = numbers.map_batches(
            RayWorker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=n_actors),
            num_cpus=1,
            num_gpus=1 if n_gpus else 0,
        )
        try:
            for batch in done.iter_batches(batch_size=1, prefetch_batches=0):
                bar.update(int(batch["rows"].sum()))
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except ray.exceptions.RayError as error:
            raise OSError(
                f"Ray gave up on a part ({error}); run the same command again: the others are kept."
            ) from error


def _cause(error: BaseException) -> BaseException:
    """What was raised in the worker, under what Ray puts around it."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return error


# ---------------------------------------------------------------- the folder of the parts


@contextmanager
def _only_one(job: Job) -> Iterator[None]:
    """Two runs in one folder would tread on each other.

    Raises:
        OSError: Another run is at work there, or the folder cannot be made.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {job.folder} cannot be made ({error.strerror}); choose another --output.") from error
    lock = FileLock(job.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OSError(f"another run is at work in {job.folder}; wait for it, or choose another --output.") from error
    try:
        yield
    finally:
        lock.release()


def _begin(job: Job) -> dict[str, Any]:
    """Note the plan, or find that it is the one noted; gives it with command and time of the beginning.

    Raises:
        ValueError: The parts follow another plan.
    """
    for pattern in (".*.partial", ".*.tries"):  # of killed processes: the lock says that none is at work
        for path in job.folder.glob(pattern):
            path.unlink(missing_ok=True)
    path = job.folder / "plan.json"
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    if isinstance(there, dict) and isinstance(there.get("plan"), dict):
        if said := difference(there["plan"], job.plan):
            raise ValueError(
                f"{job.folder} holds parts of another run ({said}). Give the options of that run to go on with it; or "
                "remove the folder to start anew; or choose another --output."
            )
        return there
    for part in job.folder.glob("part-*.parquet"):  # without a plan nobody knows whose they are
        part.unlink()
    begun = {"plan": job.plan, "command": _command(), "begun": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(path, begun)
    return begun


def _finished(output: Path, plan: Mapping[str, Any]) -> Catalogue | None:
    """The catalogue that is there already; None if there is none.

    Raises:
        ValueError: There is a file of that name that is no catalogue of this plan, or not all of one.
    """
    if not output.exists():
        return None
    there = read_provenance(output)
    if there is None:
        raise ValueError(f"{output} is there and was not written by spectrafm; choose another --output, or remove it.")
    if said := difference(there["plan"], plan):
        raise ValueError(
            f"{output} is a catalogue of another run ({said}); choose another --output, or remove that file."
        )
    counts = {name: int(there[name]) for name in ("rows", "flagged", "unreadable")}
    if (n_rows := count_rows(output)) not in (None, counts["rows"]):
        raise ValueError(
            f"{output} is a selection of the catalogue that was asked for ({n_rows} rows of {counts['rows']}); choose "
            "another --output, or remove that file."
        )
    return Catalogue(output, **counts, kept=counts["rows"], was_done=True)


# ---------------------------------------------------------------- parts -> one file


def _merge(job: Job, output: Path, begun: Mapping[str, Any], kept: int) -> Catalogue:
    """Put the parts together, whole or not at all."""
    rows, flagged, unreadable = 0, 0, 0
    numbers: list[int] = []
    lengths = dict.fromkeys(TEXTS, 1)
    while (n_rows := job.finished_rows(len(numbers))) is not None and n_rows:
        part = pq.read_table(job.part(len(numbers)), columns=list(TEXTS))
        numbers.append(len(numbers))
        rows += n_rows
        flagged += pc.sum(pc.greater(pc.binary_length(part["flags"]), 0)).as_py()
        unreadable += pc.sum(pc.match_substring(part["flag_names"], "unreadable")).as_py()
        for name in TEXTS:
            lengths[name] = max(lengths[name], pc.max(pc.utf8_length(part[name])).as_py())
    provenance = {**begun, "rows": rows, "flagged": flagged, "unreadable": unreadable}
    tables = (pq.read_table(job.part(number)) for number in numbers)
    output.parent.mkdir(parents=True, exist_ok=True)
    with naming_a_full_disk(output.parent), whole_file(output) as partial:
        if output.suffix == ".parquet":
            schema = parquet_schema(job.label_names, provenance, lengths)
            if job.embedding_size is not None:
                schema = _also_embedded(schema, job.embedding_size)
            _write_parquet(partial, schema, tables)
        else:
            whole = pa.concat_tables([schema_for(job.label_names).empty_table(), *tables])
            (write_fits if output.suffix == ".fits" else write_ecsv)(partial, whole, job.label_names, provenance)
        to_disk(partial)
    return Catalogue(output, rows, flagged, unreadable, kept)


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Streamed: no more than a row group is in memory."""
    waiting: list[pa.Table] = []
    with open_writer(path, schema) as writer:

        def write() -> None:
            rows = pa.concat_tables(waiting).replace_schema_metadata(schema.metadata)
            writer.write_table(rows.combine_chunks())
            waiting.clear()

        for table in tables:
            waiting.append(table)
            if sum(map(len, waiting)) >= ROW_GROUP:
                write()
        if waiting:
            write()
