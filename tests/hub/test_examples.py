"""The examples that users copy run as their headers say: real processes, real clients, tiny data, no network."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import random_batch, tiny_extractor, tiny_model
from test_loading import WAVELENGTH, write_shards
from test_modeling import answer
from transformers import AutoFeatureExtractor, AutoModel, TrainingArguments

from spectrafm_hf import SpectraFMForLabelPrediction
from spectrafm_hf.builders.rows import WavelengthGrid
from spectrafm_hf.builders.splits import split_of
from spectrafm_hf.labels import get_label

from .local_hub import LocalHub

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "training" / "examples"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
"""Of an active environment."""
N_STARS = 130
QUICKLY = {"--epochs": 5, "--learning-rate": 3e-3}
SHORT_STREAM = {"--steps": 30, "--batch-size": 8, "--learning-rate": 1e-2}
LOSS = r"loss (-?\d+\.\d+) -> (-?\d+\.\d+) nats per label"
CARD = """---
configs:
- config_name: stars
  default: true
  data_files: [{split: train, path: stars/train-*.parquet}]
- config_name: wavelength_grid
  data_files: [{split: train, path: wavelength_grid/train.parquet}]
---
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Nothing is left in the person's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    tiny_model().save_pretrained(folder)
    tiny_extractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of stars on a common grid, which lies beside it as text."""
    folder = write_shards(tmp_path_factory.mktemp("table"), n_shards=1, per_shard=N_STARS)
    np.savetxt(folder / "grid.txt", WAVELENGTH)
    return folder / "train-00000.parquet"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of four shards, laid out as `spectrafm build` does."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "README.md").write_text(CARD)
    for config in ("stars", "wavelength_grid"):
        (folder / config).mkdir()
    write_shards(folder / "stars")
    grid = WavelengthGrid.of_instrument(WAVELENGTH, "fake", fwhm=2.5)
    pq.write_table(grid.table(), folder / "wavelength_grid" / "train.parquet")
    return folder


def command(script, places, **options):
    """The command in a script's header, its places filled in, with more options."""
    text = (EXAMPLES / script).read_text()
    line = re.search(rf"^#? +(?:python |sbatch )?training/examples/{re.escape(script)} .*$", text, flags=re.MULTILINE)
    words = shlex.split(line.group().lstrip("# "))
    words = words[words.index(f"training/examples/{script}") + 1 :]
    filled = [word if word.startswith("--") else places[word] for word in words]
    return [*map(str, filled), *(str(part) for option in options.items() for part in option)]


def run_here(monkeypatch, script, words):
    """Run a script in this process, as `python SCRIPT WORDS` would."""
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def run_there(program, words, **environment):
    """Run a program in a process of its own, from the repository's root; gives its output.

    A Python that is aborted at its end (`terminate called`) returns -6.
    """
    environment = os.environ | {"PATH": PATH, "OMP_NUM_THREADS": "1"} | environment
    told = [str(part) for part in (*program, *words)]
    done = subprocess.run(told, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "terminate called" not in done.stderr
    assert "Fatal Python error" not in done.stderr
    return done.stdout


def printed_labels(text):
    """Label -> (value, sigma), of lines such as `teff  5243.12 +- 80.51 K`; each in its own unit."""
    found = {}
    for name, value, sigma, unit in re.findall(r"^(\w+) +(\S+) \+- (\S+) (K|dex)\b", text, flags=re.MULTILINE):
        assert unit == get_label(name).unit
        found[name] = float(value), float(sigma)
        assert np.isfinite(found[name]).all()
    assert list(found) == ["teff", "logg", "fe_h"]
    return found


def predict(folder, row, wavelength=WAVELENGTH):
    """Labels of a row of the table by a saved model: label -> (value, sigma)."""
    model, extractor = AutoModel.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    with torch.no_grad():
        output = model(**extractor(row["flux"], wavelength, row["bad_pixel"], return_tensors="pt"))
    decoded = extractor.decode_labels(output.label_mean, output.label_log_var)
    return {name: (label["value"][0], label["sigma"][0]) for name, label in decoded.items()}


def assert_printed(text, expected):
    for name, printed in printed_labels(text).items():
        np.testing.assert_allclose(printed, expected[name], rtol=0, atol=0.0051)  # two decimals


def losses(text):
    before, after = map(float, re.search(LOSS, text).groups())
    return before, after


def changed(file, folder, change):
    """A copy of a Parquet file, with its table changed."""
    copy = folder / "changed.parquet"
    pq.write_table(change(pq.read_table(file)), copy)
    return copy


# ---------------------------------------------------------------- one's own table


@pytest.mark.parametrize("grid", ["common", "in each row"])
def test_own_table_is_learned_and_the_model_saved(grid, table, parent, tmp_path, monkeypatch, capsys):
    output = tmp_path / "tuned"
    wavelength = {"--wavelength": table.with_name("grid.txt")} if grid == "common" else {}
    if grid != "common":
        repeated = pa.array([WAVELENGTH.tolist()] * N_STARS)
        table = changed(table, tmp_path, lambda rows: rows.append_column("wavelength", repeated))
    places = {"stars.parquet": table, "runs/transfer/2-observed": parent, "runs/own-table": output}
    run_here(monkeypatch, "own_table.py", command("own_table.py", places, **QUICKLY | wavelength))
    printed = capsys.readouterr().out

    before, after = losses(printed)
    assert after < before - 1
    rows = pq.read_table(table).to_pylist()
    held_out = sum(split_of(row["object_id"]) == "test" for row in rows)
    assert 0 < held_out < N_STARS
    assert f"{held_out} stars held out" in printed
    files = {path.name for path in output.iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}  # and no pickle
    for name in ("label_names", "label_center", "label_scale", "pixel_width", "wavelength_range"):
        told = AutoFeatureExtractor.from_pretrained(output), AutoFeatureExtractor.from_pretrained(parent)
        assert getattr(told[0], name) == getattr(told[1], name)
    assert f"{rows[0]['object_id']} by {output}" in printed
    assert_printed(printed, predict(output, rows[0]))
    assert predict(output, rows[0])["teff"] != pytest.approx(predict(parent, rows[0])["teff"], abs=1)


# ---------------------------------------------------------------- LoRA


def lora(monkeypatch, table, grid, parent, output, **options):
    places = {"stars.parquet": table, "runs/transfer/2-observed": parent, "runs/lora": output}
    told = QUICKLY | {"--wavelength": grid} | options
    run_here(monkeypatch, "lora_100_stars.py", command("lora_100_stars.py", places, **told))


def test_lora_trains_adapters_on_100_stars_and_merges_to_the_same_numbers(table, parent, tmp_path, monkeypatch, capsys):
    peft = pytest.importorskip("peft")
    grid, output = table.with_name("grid.txt"), tmp_path / "adapter"
    lora(monkeypatch, table, grid, parent, output)
    printed = capsys.readouterr().out
    base = AutoModel.from_pretrained(parent)
    adapted_modules = [name for name, _ in base.named_modules() if name.endswith(("q_proj", "v_proj"))]
    assert len(adapted_modules) == 2 * 3  # two blocks encode, one decodes
    width, rank = base.config.hidden_size, 8
    n_trained = len(adapted_modules) * rank * 2 * width + sum(weight.numel() for weight in base.head.parameters())
    assert f"100 stars train {n_trained:,} of " in printed
    assert f"{N_STARS - 100} other stars" in printed
    before, after = losses(printed)
    assert after < before - 1

    adapted = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(parent), output).eval()
    merged = AutoModel.from_pretrained(output / "merged")
    assert type(merged) is SpectraFMForLabelPrediction
    batch = random_batch()
    torch.testing.assert_close(answer(merged, batch), answer(adapted, batch), rtol=0, atol=1e-5)
    assert (answer(merged, batch) - answer(base, batch)).abs().max() > 0.05
    agree = [float(number) for number in re.findall(r"agree to (\S+) (?:K|dex)", printed)]
    assert np.all(np.array(agree) < 1e-5 * np.array(AutoFeatureExtractor.from_pretrained(parent).label_scale))

    before, after = base.state_dict(), merged.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    head = {name for name in before if name.startswith("head.")}
    assert moved == {f"{name}.weight" for name in adapted_modules} | head

    stars = np.array(pq.read_table(table)["object_id"])
    chosen = np.random.default_rng(0).choice(np.unique(stars), 100, replace=False)
    first = next(row for row in pq.read_table(table).to_pylist() if row["object_id"] in chosen)
    assert f"{first['object_id']} by {output}/merged" in printed
    assert_printed(printed, predict(output / "merged", first))

    # The other stars are nothing to it: with absurd labels, they leave the same bytes.
    others = ~np.isin(stars, chosen)

    def absurd(rows):
        teff = np.where(others, 40_000.0, rows["teff"].to_numpy()).astype(np.float32)
        return rows.set_column(rows.column_names.index("teff"), rows.schema.field("teff"), [teff])

    lora(monkeypatch, changed(table, tmp_path, absurd), grid, parent, tmp_path / "again")
    again = losses(capsys.readouterr().out)
    assert again[0] > 2 * losses(printed)[0]  # it is these that are measured
    weights = "adapter_model.safetensors"
    assert (output / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()


def test_lora_says_when_there_are_too_few_stars(table, parent, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    with pytest.raises(SystemExit, match=rf"^error: more than 130 stars with a label are needed.*got {N_STARS}"):
        lora(monkeypatch, table, table.with_name("grid.txt"), parent, tmp_path / "adapter", **{"--stars": N_STARS})


# ---------------------------------------------------------------- a stream in a loop


def test_a_stream_is_learned_from_a_pinned_revision_and_left_early(dataset, parent, tmp_path):
    """From a Hub, where main has moved on to what cannot be read; without end, so it is left in the middle."""

    def files(folder):
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    with LocalHub(tmp_path / "hub") as hub:
        hub.add_user("astro", "hf_some_token")
        revision = hub.put_raw("astro/spectra", files(dataset), "dataset", private=True)
        model_revision = hub.put_raw("astro/parent", files(parent), private=True)
        hub.put_raw("astro/spectra", {"stars/train-00000.parquet": b"no Parquet"}, "dataset")
        hub.put_raw("astro/parent", {"config.json": b"no JSON"})
        places = {"NAMESPACE/DATASET": "astro/spectra", "COMMIT": revision, "runs/transfer/1-synthetic": "astro/parent"}
        told = {"--model-revision": model_revision, "--output": tmp_path / "tuned"} | SHORT_STREAM
        printed = run_there(
            [sys.executable, EXAMPLES / "stream_loop.py"],
            command("stream_loop.py", places, **told),
            **hub.environment("hf_some_token", tmp_path / "home"),
        )
        assert not hub.errors
    lines = re.findall(r"^step (\d+): loss (\S+) nats per label, (\d+) spectra/s$", printed, flags=re.MULTILINE)
    assert [int(step) for step, _, _ in lines] == [10, 20, 30]
    assert float(lines[-1][1]) < float(lines[0][1])
    assert all(int(rate) > 0 for _, _, rate in lines)
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (parent, tmp_path / "tuned"))
    assert all(not torch.equal(before[name], after[name]) for name in before if "k_proj.bias" not in name)


# ---------------------------------------------------------------- a missing column


@pytest.mark.parametrize("script", ["own_table.py", "lora_100_stars.py", "stream_loop.py", "stream_trainer.py"])
def test_a_missing_column_is_named(script, table, dataset, parent, tmp_path, monkeypatch):
    def less(rows):
        return rows.drop_columns(["logg_err"])

    if "stream" in script:
        copy = tmp_path / "dataset"
        shutil.copytree(dataset, copy)
        for shard in (copy / "stars").iterdir():
            changed(shard, tmp_path, less).rename(shard)
        words = [copy, "--model", parent, "--output", tmp_path / "tuned", "--steps", 2]
    else:
        if "lora" in script:
            pytest.importorskip("peft")
        words = [changed(table, tmp_path, less), "--model", parent, "--output", tmp_path / "tuned"]
        words += ["--wavelength", table.with_name("grid.txt")]
    with pytest.raises(SystemExit, match=r"^error: the dataset lacks logg_err; it has .*logg, .*fe_h_err"):
        run_here(monkeypatch, script, list(map(str, words)))


# ---------------------------------------------------------------- several processes


def launched(dataset, parent, output, script):
    places = {"DATASET": dataset, "COMMIT": "main", "PARENT": parent, "FOLDER": output}
    return command(script, places, **SHORT_STREAM | {"--save-steps": 10})


@pytest.fixture(scope="module")
def launches(tmp_path_factory, dataset, parent):
    """torchrun with two processes, accelerate with one, side by side: script -> future of (folder, what it printed)."""

    def launch(script, **environment):
        home = tmp_path_factory.mktemp("home")
        environment |= {"HF_HOME": str(home), "HF_DATASETS_CACHE": str(home), "CUDA_VISIBLE_DEVICES": ""}
        words = launched(dataset, parent, home / "tuned", script)
        return home / "tuned", run_there([EXAMPLES / script], words, **environment)

    with ThreadPoolExecutor() as pool:
        yield {
            "launch_torchrun.sh": pool.submit(launch, "launch_torchrun.sh", NPROC="2"),
            "launch_accelerate.sh": pool.submit(launch, "launch_accelerate.sh"),
        }


def digests(text, n_processes):
    """What each process printed of its weights; all say the same, and who they are."""
    said = re.findall(r"process (\d+) of (\d+): weights (\w{12})", text)
    assert sorted(said) == [(str(i + 1), str(n_processes), said[0][2]) for i in range(n_processes)]
    return said[0][2]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "n_processes"), [("launch_torchrun.sh", 2), ("launch_accelerate.sh", 1)])
def test_launched_processes_train_and_end_with_one_set_of_weights(script, n_processes, launches, parent):
    output, printed = launches[script].result()
    digests(printed, n_processes)
    before, after = losses(printed)
    assert after < before - 1
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (parent, output))
    assert all(not torch.equal(before[name], after[name]) for name in before if "k_proj.bias" not in name)
    assert AutoFeatureExtractor.from_pretrained(output).label_names == ["teff", "logg", "fe_h"]


SRUN = """#!/usr/bin/env bash
# Two tasks on this node, as SLURM numbers them; the first that fails decides.
while [[ $1 == -* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
wait -n && wait -n
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames node[1-1]" ] && echo 127.0.0.1
"""


@pytest.mark.slow
def test_slurm_goes_on_from_a_checkpoint_and_ends_with_the_weights_of_torchrun(launches, dataset, parent, tmp_path):
    """A job of one node with two tasks, after one that was lost when it had two thirds of its steps."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    output, (by_torchrun, said) = tmp_path / "tuned", launches["launch_torchrun.sh"].result()
    shutil.copytree(by_torchrun / "checkpoint-20", output / "checkpoint-20")
    printed = run_there(
        ["bash", EXAMPLES / "slurm.sbatch"], launched(dataset, parent, output, "slurm.sbatch"),
        SLURM_JOB_ID=str(os.getpid()), SLURM_JOB_NODELIST="node[1-1]", SLURM_NTASKS="2", SLURM_NNODES="1",
        SLURM_CPUS_PER_TASK="1", PATH=f"{tmp_path}{os.pathsep}{PATH}", HF_DATASETS_CACHE=str(tmp_path),
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert digests(printed, n_processes=2) == digests(said, n_processes=2)
    expected, found = (AutoModel.from_pretrained(folder).state_dict() for folder in (by_torchrun, output))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_directives_of_slurm_fit_each_other():
    """One task per GPU, all before the first command; a job that comes back appends to its log."""
    lines = (EXAMPLES / "slurm.sbatch").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [(i, line) for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert max(i for i, _ in directives) < first_command
    told = dict(re.match(r"#SBATCH --([\w-]+)(?:=(\S+))?", line).groups() for _, line in directives)
    assert told["ntasks-per-node"] == told["gpus-per-node"]
    assert int(told["nodes"]) > 1
    assert {"requeue", "time", "cpus-per-task", "output"} <= set(told)
    assert told["open-mode"] == "append"


def test_accelerate_is_not_asked_for_several_processes_on_cpus():
    """It would run one and say nothing."""
    several = os.environ | {"PATH": PATH, "NPROC": "2", "CUDA_VISIBLE_DEVICES": ""}
    script = str(EXAMPLES / "launch_accelerate.sh")
    done = subprocess.run([script], env=several, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert re.match(r"error: on CPUs accelerate runs one process.*NPROC=2.*launch_torchrun\.sh", done.stderr)


def test_more_processes_than_shards_are_refused(dataset, parent, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 5)
    with pytest.raises(SystemExit, match=r"^error: at least as many shards as processes are needed, got 4 and 5"):
        run_here(monkeypatch, "stream_trainer.py", launched(dataset, parent, tmp_path / "tuned", "stream_trainer.py"))


# ---------------------------------------------------------------- what is written about them


def test_every_example_is_in_the_readme_and_has_a_command_of_its_own():
    readme = (EXAMPLES / "README.md").read_text()
    scripts = {path.name for path in EXAMPLES.iterdir() if path.is_file() and path.name != "README.md"}
    assert set(re.findall(r"\]\(([^)]+)\)", readme)) == scripts
    for script in scripts:
        assert re.search(rf"^[# ]+(\w+ )?training/examples/{script} ", (EXAMPLES / script).read_text(), re.MULTILINE)
    for script in ("launch_torchrun.sh", "launch_accelerate.sh"):
        assert os.access(EXAMPLES / script, os.X_OK)


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help_shows_the_command(script, monkeypatch, capsys):
    if "lora" in script:
        pytest.importorskip("peft")
    with pytest.raises(SystemExit, match=r"^0$"):
        run_here(monkeypatch, script, ["--help"])
    assert f"python training/examples/{script} " in capsys.readouterr().out
