"""Training rows streamed from a Hub: bit-equal, at a revision, by ranks, over broken connections, after a SIGKILL."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow.dataset
import pytest
import torch
from conftest import star_flux, tiny_extractor, tiny_model
from datasets import load_dataset
from huggingface_hub import CommitOperationAdd, HfApi
from transformers import Trainer, TrainerCallback, TrainingArguments

from spectrafm_hf import Spectrum
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.grids import read_wavelength_grid
from spectrafm_hf.builders.rows import FLUX_SCALE, Layout, WavelengthGrid, columns_of_spectra
from spectrafm_hf.builders.selection import Cut, select
from spectrafm_hf.builders.spectra_builder import Plan, Rows, SpectraConfig
from spectrafm_hf.collation import SpectrumCollator
from spectrafm_hf.loading import stream_rows
from spectrafm_hf.stages import few_threads

WAVELENGTH = np.arange(4990.0, 5410.0, 0.9) + 1e-7
"""Vacuum Angstrom; float32 would lose its last digits."""
N_SHARDS, PER_SHARD = 4, 10
REPO = "astro/spectra"


def star(shard, i):
    """Star i of a shard: its line depth follows fe_h, and so would a model's answer."""
    rng = np.random.default_rng([shard, i])
    labels = {"teff": rng.uniform(4000, 6000), "logg": rng.uniform(1, 5), "fe_h": rng.uniform(-2, 0.4)}
    flux = star_flux(WAVELENGTH, {5185.05: 0.6 * 10 ** (0.3 * labels["fe_h"])}) + rng.normal(0, 0.01, WAVELENGTH.size)
    bad, errors = rng.random(WAVELENGTH.size) < 0.02, {"teff": 50.0, "logg": 0.1}
    return Spectrum(WAVELENGTH, flux, bad, f"{shard}-{i}", "fake", labels=labels, label_errors=errors)


@dataclass
class StarsConfig(SpectraConfig):
    """Stars that share a grid, ten in each shard."""

    name: str = "stars"
    dataset = "folder"

    def plan(self):
        _, report = select([], [Cut("snr", lambda star: True, "SNR > 1")])
        grid = WavelengthGrid.of_instrument(WAVELENGTH, "fake", fwhm=2.0)
        layout = Layout(WAVELENGTH.size, (FLUX_SCALE,))
        return Plan(list(range(N_SHARDS)), {"train": N_SHARDS * PER_SHARD}, layout, report, grid)

    def read(self, chunk):
        columns = columns_of_spectra([star(chunk, i) for i in range(PER_SHARD)], shared_grid=True)
        return Rows(columns, np.array(["train"] * PER_SHARD, dtype=object), ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_dataset([StarsConfig()], tmp_path_factory.mktemp("stars"), shards=N_SHARDS, progress=False).folder


@pytest.fixture
def revision(hub, folder):
    return upload(folder)


def upload(folder, repo=REPO):
    """A private dataset; gives its commit."""
    HfApi().create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    return HfApi().create_commit(repo, added, commit_message="Push", repo_type="dataset").oid


def opened(revision, repo=REPO):
    return load_dataset(repo, "stars", split="train", streaming=True, revision=revision)


def rows_of(revision, **told):
    grid = read_wavelength_grid(REPO, revision)
    return stream_rows(opened(revision), tiny_extractor(), grid, **told)


def one_pass(revision):
    return list(rows_of(revision, buffer_size=0, endless=False))


def equal(rows, others):
    return len(rows) == len(others) and all(
        row.keys() == other.keys() and all(np.array_equal(row[name], other[name]) for name in row)
        for row, other in zip(rows, others, strict=True)
    )


# ---------------------------------------------------------------- what was written comes back


def test_a_pushed_dataset_streams_back_bit_equal_at_its_revision(hub, folder, revision):
    written = columns_of_spectra([star(s, i) for s in range(N_SHARDS) for i in range(PER_SHARD)], shared_grid=True)
    HfApi().delete_folder("stars", REPO, repo_type="dataset", commit_message="Away")  # main has moved on
    grid = read_wavelength_grid(REPO, revision)
    assert grid.dtype == np.float64
    assert np.array_equal(grid, WAVELENGTH)
    table = next(iter(opened(revision).with_format("arrow").iter(N_SHARDS * PER_SHARD)))
    for name, values in written.items():
        got = table[name].to_numpy(zero_copy_only=False)
        got = np.stack(got) if np.ndim(values) == 2 else got
        expected = np.asarray(values).astype(got.dtype)  # numbers of a star are stored as float32, see `rows`
        assert np.array_equal(got, expected, equal_nan=expected.dtype.kind == "f"), name
    assert table["flux"].type.value_type == "float"


def test_training_rows_are_those_of_the_folder(hub, folder, revision):
    stream = load_dataset(str(folder), "stars", split="train", streaming=True)
    local = stream_rows(stream, tiny_extractor(), read_wavelength_grid(folder), buffer_size=0, endless=False)
    assert equal(one_pass(revision), list(local))


# ---------------------------------------------------------------- broken connections


def test_faults_of_every_kind_lose_no_row_and_repeat_none(hub, revision):
    undisturbed = one_pass(revision)
    assert len(undisturbed) == N_SHARDS * PER_SHARD
    stream = rows_of(revision, buffer_size=0, endless=False)
    hub.drop("GET", "/lfs/.*train-00000", after=2000)
    hub.fail("GET", "/resolve/.*train-00001", 500)
    hub.fail("GET", "/lfs/.*train-00002", 429, headers={"Retry-After": "0"})
    hub.lose_answer("GET", "/resolve/.*train-00003")
    assert equal(list(stream), undisturbed)
    assert not hub.faults


N_PIXELS, N_LONG = 131_072, 10


@pytest.fixture(scope="module")
def long_spectra(tmp_path_factory):
    """Two shards of 15 MB, each row on its own pixels and in its own row group: a pass takes several requests."""
    folder, rng = tmp_path_factory.mktemp("long"), np.random.default_rng(0)
    features = datasets.Features(
        {"object_id": datasets.Value("string")}
        | {"wavelength": datasets.List(datasets.Value("float64")), "flux": datasets.List(datasets.Value("float32"))}
    )
    written = {"object_id": [f"star {i}" for i in range(2 * N_LONG)]}
    written["wavelength"] = np.linspace(5000, 5400, N_PIXELS) + rng.uniform(0, 0.003, (2 * N_LONG, N_PIXELS))
    written["flux"] = rng.normal(1, 0.1, (2 * N_LONG, N_PIXELS)).astype(np.float32)
    for shard in range(2):
        rows = {name: values[shard * N_LONG : (shard + 1) * N_LONG] for name, values in written.items()}
        dataset = datasets.Dataset.from_dict({k: list(v) for k, v in rows.items()}, features=features)
        dataset.to_parquet(folder / f"train-{shard}.parquet", batch_size=1)
    return folder, written


def test_what_breaks_between_two_rows_of_a_shard_loses_none(hub, long_spectra):
    """Rows of the shard were handed out already when the connection breaks, and then when the Hub goes for a while."""
    folder, written = long_spectra
    revision = upload(folder)
    # Row groups are asked for when their turn comes: 5 MB at rows 0, 1, 4 and 7 of each shard.
    piecewise = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
    stream = load_dataset(REPO, split="train", streaming=True, revision=revision, fragment_scan_options=piecewise)
    back = threading.Timer(0.5, hub.start)
    happens = {
        2: lambda: hub.drop("GET", "/lfs/.*train-0", after=1_000_000),
        5: lambda: hub.fail("GET", "/lfs/.*train-0", 500),
        12: lambda: (hub.stop(), back.start()),
        15: lambda: hub.drop("GET", "/lfs/.*train-1", after=3_000_000),
    }
    seen = []
    for number, row in enumerate(stream.with_format("arrow").iter(1)):
        seen.append(row)
        happens.get(number, lambda: None)()
    back.join()
    assert not hub.faults
    cut = [request.bytes_out for request in hub.requests if request.host == "store" and request.status == 0]
    assert cut == [1_000_000, 3_000_000]
    assert [row["object_id"][0].as_py() for row in seen] == written["object_id"]
    for name in ("wavelength", "flux"):
        got = np.stack([row[name].to_numpy(zero_copy_only=False)[0] for row in seen])
        assert got.dtype == written[name].dtype
        assert np.array_equal(got, written[name])


# ---------------------------------------------------------------- ranks, SIGKILL


class KillAt(TrainerCallback):
    """SIGKILL after a step, between two checkpoints."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(revision, output, killed_at=None, resume=None):
    """A stock Trainer, 16 steps of four rows for each process, a checkpoint at every fourth; gives the weights."""
    arguments = TrainingArguments(
        str(output), max_steps=16, per_device_train_batch_size=4, save_steps=4, learning_rate=1e-3, seed=0,
        use_cpu=True, remove_unused_columns=False, disable_tqdm=True, accelerator_config={"dispatch_batches": False},
        report_to=[],
    )  # fmt: skip
    trainer = Trainer(
        tiny_model(),
        arguments,
        train_dataset=rows_of(revision, seed=1, buffer_size=16, context=10),
        data_collator=SpectrumCollator(tiny_extractor()),
        callbacks=[] if killed_at is None else [KillAt(killed_at)],
    )
    trainer.train(resume_from_checkpoint=resume and str(output / resume))
    return trainer.model.state_dict()


def assert_same_weights(whole, resumed):
    """Bit for bit on one thread of one process, see test_loading.py; another process may round its sums otherwise.

    A row more, less or twice moves weights by a thousand times as much.
    """
    for name in whole:
        assert (resumed[name] - whole[name]).abs().max() <= 1e-6, name


PROCESS = """
import os, sys
from pathlib import Path

os.environ["HF_TOKEN"] = os.environ["TOKENS"].split()[int(os.environ.get("RANK", 0))]
import datasets, transformers  # before the tests' conftest, which tells clients of another Hub
import torch

sys.path.insert(0, {tests!r})
from hub.test_streaming import assert_same_weights, train
from spectrafm_hf.stages import leave_process_group

revision, output, part = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
if part == "resume":
    resumed = train(revision, output / "broken", resume="checkpoint-12")
    whole = torch.load(output / "whole.pt")
    assert_same_weights(whole, resumed)
    leave_process_group()
else:
    if part == "both":
        torch.save(train(revision, output / "whole"), output / "whole.pt")
    train(revision, output / "broken", killed_at=14)
"""


@pytest.fixture
def launch(hub, tmp_path, revision):
    """Runs a part of the script in processes of their own, each rank with a token of its own."""
    script, n_calls = tmp_path / "process.py", 0
    script.write_text(PROCESS.format(tests=str(Path(__file__).parents[1])))
    for rank in (0, 1):
        hub.add_user(f"rank{rank}", f"hf_rank{rank}", orgs=("astro",))

    def run(part, processes):
        nonlocal n_calls
        n_calls += 1
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(several if processes > 1 else []), str(script), revision, str(tmp_path), part]
        told = os.environ | hub.environment(None, tmp_path / f"home{n_calls}")
        told |= {"TOKENS": "hf_rank0 hf_rank1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=told, capture_output=True, text=True, timeout=120, check=False)

    return run


def shards_of(hub, user):
    """Numbers of the shards that a user asked for."""
    asked = (re.search(r"stars/train-0*(\d+)-of", request.path) for request in hub.requests if request.user == user)
    return {int(found[1]) for found in asked if found}


def test_a_killed_process_goes_on_to_the_same_weights(hub, revision, launch, tmp_path):
    """40 rows; it is killed after 56, and goes on from 48, in the second pass."""
    killed = launch("broken", 1)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    with few_threads(1):
        resumed = train(revision, tmp_path / "broken", resume="checkpoint-12")
        whole = train(revision, tmp_path / "whole")
    assert_same_weights(whole, resumed)
    start = tiny_model().state_dict()
    assert not all(torch.equal(whole[name], start[name]) for name in whole)


def test_two_ranks_read_their_own_shards_and_go_on_to_the_same_weights(hub, launch):
    """20 rows for each; they are killed after 56, and go on from 48, in the third pass."""
    killed = launch("both", 2)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr, killed.stderr[-3000:]
    first, second = (shards_of(hub, f"rank{rank}") for rank in (0, 1))
    assert len(first) == len(second) == N_SHARDS // 2
    assert not first & second
    resumed = launch("resume", 2)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert [shards_of(hub, f"rank{rank}") for rank in (0, 1)] == [first, second]
