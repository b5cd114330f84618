"""Building: the same bytes however it is done, killed or not; and a folder that strangers can read."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset, load_dataset_builder
from huggingface_hub import DatasetCard

from spectrafm_hf import cli
from spectrafm_hf.builders import build as build_module
from spectrafm_hf.builders.build import Build, build_dataset, make_tasks, run_task, shards_for
from spectrafm_hf.builders.leak_audit import LeakError
from spectrafm_hf.builders.rows import Layout, WavelengthGrid, columns_of_spectra
from spectrafm_hf.builders.selection import Cut, select
from spectrafm_hf.builders.spectra_builder import Plan, Rows, Skipped, SpectraBuilder, SpectraConfig
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.spectra import Spectrum

WAVELENGTH = 5000.0 + np.arange(40)


@dataclass
class ToyConfig(SpectraConfig):
    """Numbered stars of 40 pixels; star 7 cannot be read; told to, it puts a star into two splits."""

    name: str = "toy"
    n: int = 700
    leak: bool = False
    dataset = "folder"

    def plan(self):
        _, report = select([], [Cut("snr", lambda star: True, "SNR > 1")])
        chunks = [(start, min(start + 256, self.n)) for start in range(0, self.n, 256)]
        rows = {"train": (self.n + 1) // 2, "test": self.n // 2}
        grid = WavelengthGrid.of_instrument(WAVELENGTH, "toy", fwhm=2.0)
        from spectrafm_hf.builders.rows import FLUX_SCALE

        return Plan(chunks, rows, Layout(40, (FLUX_SCALE,)), report, grid)

    def read(self, chunk):
        numbers = [number for number in range(*chunk) if number != 7]
        names = [f"HD{number + 1}" for number in numbers]
        if self.leak and 10 in numbers:
            names[numbers.index(10)] = "HD12"
        spectra = [
            Spectrum(
                WAVELENGTH, 1 + 0.01 * np.random.default_rng(number).normal(size=40), np.zeros(40, bool), name, "toy"
            )
            for number, name in zip(numbers, names, strict=True)
        ]
        split = np.array(["test" if number % 2 else "train" for number in numbers], dtype=object)
        skipped = (Skipped("star-7.fits", "HD8", "HDU 0: truncated"),) if 7 in range(*chunk) else ()
        return Rows(columns_of_spectra(spectra, True), split, skipped)


class Toy(SpectraBuilder):
    BUILDER_CONFIG_CLASS = ToyConfig


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def toy(folder: Path, n=700, leak=False, **options) -> Build:
    return build_dataset([ToyConfig(n=n, leak=leak)], folder, progress=False, **options)


def test_streamed_equals_stored_equals_built(tmp_path):
    built = toy(tmp_path / "toy")
    builder = Toy(cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    for split in ("train", "test"):
        ways = [
            load_dataset(str(tmp_path / "toy"), "toy", split=split, streaming=True),
            load_dataset(str(tmp_path / "toy"), "toy", split=split, cache_dir=str(tmp_path / "cache2")),
            builder.as_streaming_dataset(split),
            builder.as_dataset(split),
        ]
        first, *others = (list(way) for way in ways)
        assert len(first) == built.rows("toy", split) == (350 if split == "train" else 349)
        assert all(rows == first for rows in others)
        assert len({str(way.features) for way in ways}) == 1
        arrays = np.stack([batch for one in ways[0].with_format("numpy").iter(64) for batch in one["flux"]])
        assert np.array_equal(arrays, np.array([row["flux"] for row in first], dtype=np.float32))


def test_two_workers_prepare_the_same(tmp_path):
    builder = Toy(cache_dir=str(tmp_path))
    builder.download_and_prepare(num_proc=2)
    rows = builder.as_dataset("train")
    assert rows["object_id"][:3] == ["HD1", "HD3", "HD5"]
    assert len(rows) == 350


def test_folder_is_complete_and_a_second_build_does_nothing(tmp_path):
    built = toy(tmp_path, shards=2)
    assert not built.was_done
    assert sorted(digests(tmp_path)) == [
        "README.md", "manifest.json", "skipped.csv",
        *(f"toy/{split}-0000{number}-of-00002.parquet" for split in ("test", "train") for number in (0, 1)),
        "wavelength_grid/train-00000-of-00001.parquet",
    ]  # fmt: skip
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for shard in manifest["shards"]:
        assert digests(tmp_path)[shard["path"]] == shard["sha256"]
    assert manifest["audit"]["spectra"] == {"train": 350, "test": 349}
    with (tmp_path / "skipped.csv").open() as stream:
        assert list(csv.DictReader(stream)) == [
            {"config": "toy", "file": "star-7.fits", "object_id": "HD8", "reason": "HDU 0: truncated"}
        ]
    assert "star-7.fits" in (tmp_path / "README.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = toy(tmp_path, shards=2)
    assert again.was_done
    assert again.audit == built.audit
    assert again.shards == built.shards
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_shard_is_made_again(tmp_path):
    toy(tmp_path)
    whole = digests(tmp_path)
    shard = tmp_path / "toy/train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert not toy(tmp_path).was_done
    assert digests(tmp_path) == whole


def test_other_shards_same_rows(tmp_path):
    rows = []
    for shards in (1, 2, 3):
        toy(tmp_path / str(shards), shards=shards)
        rows.append(list(load_dataset(str(tmp_path / str(shards)), "toy", split="train", streaming=True)))
    assert rows[0] == rows[1] == rows[2]
    with pytest.raises(ValueError, match="700 rows make 3 chunks of 256, so there can be 1 to 3 shards, got 4"):
        toy(tmp_path / "4", shards=4)


def test_another_build_in_the_folder_is_refused(tmp_path):
    toy(tmp_path)
    with pytest.raises(ValueError, match=r"built with other settings \(configs\.0\.n: 700 there, 300 asked"):
        toy(tmp_path, n=300)
    with pytest.raises(ValueError, match=r"shards\.toy: 1 there, 2 asked"):
        toy(tmp_path, shards=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files that are no dataset of ours \(thesis.tex\)"):
        toy(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [".build", "thesis.tex"]


def test_a_leak_stops_the_build(tmp_path):
    with pytest.raises(LeakError, match=r"HD12 \(in train and test\)"):
        toy(tmp_path, leak=True)
    assert not (tmp_path / "README.md").exists()
    assert not (tmp_path / "manifest.json").exists()


def test_two_builds_at_once_and_folders_that_cannot_be_written(tmp_path):
    (tmp_path / ".build").mkdir()
    with build_module._only_one(tmp_path), pytest.raises(OSError, match="another build is at work"):
        toy(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        toy(tmp_path / "file")
    with pytest.raises(ValueError, match="num_proc must be at least 1"):
        toy(tmp_path / "x", num_proc=0)


def test_too_small_a_disk_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "COMPRESSION", 1e12)
    with pytest.raises(OSError, match=r"no space for the build in .* GB are needed"):
        toy(tmp_path)


def test_shards_are_shared_evenly_and_small_sets_get_few():
    assert [shards_for(rows, 60_000) for rows in (1, 5_119, 5_120, 10_240, 20_479, 20_480)] == [1, 1, 2, 4, 4, 8]
    assert [shards_for(rows, 60_000) for rows in (53_000, 54_000, 90_000, 700_000)] == [8, 16, 16, 112]


def test_rows_of_a_task_come_from_its_chunks_alone(tmp_path):
    config = ToyConfig(n=1000)
    tasks = make_tasks(config, config.plan(), tmp_path, 4)
    assert [task.chunks for task in tasks] == [[(0, 256)], [(256, 512)], [(512, 768)], [(768, 1000)]]
    record = run_task(tasks[1])
    assert run_task(tasks[1]) == record
    assert sum(shard.rows for shard in record.shards) == 256


def command(output: Path, *options: str) -> None:
    """In a process of its own: `spectrafm build synthetic`."""
    sys.argv = ["spectrafm", "build", "synthetic", "--n", "1024", "--shards", "4", "--output", str(output), *options]
    cli.main()


def test_killed_builds_and_two_processes_give_the_same_bytes(tmp_path, fresh_processes):
    def run(folder: str, *options: str) -> BaseProcess:
        process = fresh_processes.Process(target=command, args=(tmp_path / folder, *options))
        process.start()
        return process

    def exit_code(process: BaseProcess) -> int | None:
        process.join(300)
        return process.exitcode

    whole, killed = run("whole"), run("killed")
    records = tmp_path / "killed/.build"
    while len(list(records.glob("synthetic-*.json"))) < 2:
        assert killed.is_alive(), "finished before it could be killed"
        time.sleep(0.002)
    killed.kill()
    assert exit_code(killed) == -signal.SIGKILL
    assert exit_code(whole) == 0
    assert not (tmp_path / "killed/README.md").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed/synthetic").glob("*00000-of*")}
    assert exit_code(run("killed", "--num-proc", "2")) == 0
    for name, time_made in kept.items():
        assert (tmp_path / "killed/synthetic" / name).stat().st_mtime_ns == time_made
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")

    # A larger set begins with the rows of a smaller one, and seeds differ.
    few = build_dataset([SyntheticConfig(n=300)], tmp_path / "few", progress=False)
    small = load_dataset(str(few.folder), "synthetic", split="train", streaming=True)
    large = load_dataset(str(tmp_path / "whole"), "synthetic", split="train", streaming=True)
    for one, other in zip(small.take(3), large.take(3), strict=True):
        assert one == other


STRANGER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "spectrafm_hf":
            raise ImportError("a stranger has no spectrafm_hf")
sys.meta_path.insert(0, Refuse())
from datasets import load_dataset
rows = load_dataset(sys.argv[1], "toy", split="test", streaming=True)
row = next(iter(rows))
grid = load_dataset(sys.argv[1], "wavelength_grid", split="train", streaming=True)
(grid,) = grid
assert rows.features["flux"].length == len(row["flux"]) == len(grid["wavelength"]) == 40
assert row["object_id"] == "HD2" and row["teff"] is None and row["restframe"]
assert sum(1 for _ in load_dataset(sys.argv[1], split="train", streaming=True)) == 350
print("read by a stranger")
"""


def test_strangers_read_it_without_our_package(tmp_path):
    toy(tmp_path / "toy", shards=3)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "toy")],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
    )
    assert done.stdout.strip() == "read by a stranger", done.stderr
    card = DatasetCard.load(tmp_path / "toy/README.md")
    splits = {info["config_name"]: info["splits"] for info in card.data.dataset_info}
    assert [(split["name"], split["num_examples"]) for split in splits["toy"]] == [("train", 350), ("test", 349)]
    info = load_dataset_builder(str(tmp_path / "toy"), "toy").info
    assert info.splits["train"].num_examples == 350
    assert info.features["flux"].length == 40
