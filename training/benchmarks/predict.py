"""How fast a survey is labelled, in how much memory, and what kills cost: `label_survey` against the model alone.

    python -m training.benchmarks.predict --json results.json [--rows 100000]

Five minutes for every 30,000 rows on two cores, and 2 GB of disk. Spectra are synthetic, as APOGEE has them, out of a
dataset that `spectrafm build synthetic` made; its files are repeated until there are as many rows as wanted. The
model's own rate is what `training.benchmarks.model` calls "with extractor", of the model that ships and for the same
spectra: preparing them and asking the network take turns, nothing is read, checked or written. It is measured before
and after the survey, since timings on shared machines drift, and the faster one counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch

from spectrafm_hf.builders.parquet_layout import write_json
from spectrafm_hf.catalogue import PART_ROWS, parts_folder
from spectrafm_hf.checkpoints import shipped
from spectrafm_hf.examples import example
from spectrafm_hf.hub import load_pretrained
from spectrafm_hf.survey_input import open_survey

from .model import best_rates, inference

ROOT = Path(__file__).parents[2]
N_BUILD = 4096
"""Different spectra at most."""
SIZES = (32, 64, 128)
"""Batches of which the model takes its best."""
KILLS, KILL_PART = 3, 16
"""Kills, of a run over the validation split in parts of so many rows."""
SETTLED = 0.2
"""Share of the survey after which rate and memory are those of a long run."""


def say(text: str = "") -> None:
    print(text, flush=True)


# ---------------------------------------------------------------- spectra


def build(n: int, folder: Path) -> None:
    command = [sys.executable, "-m", "spectrafm_hf.cli", "build", "synthetic", "--n", str(n), "--output", str(folder)]
    done = subprocess.run([*command, "--num-proc", "2"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with status {done.returncode}: {done.stderr[-1000:]}")


def repeat(built: Path, folder: Path, n_rows: int) -> int:
    """A dataset of at least `n_rows` rows, whose files are links to those of one split of another; gives its rows."""
    shutil.copytree(built / "wavelength_grid", folder / "wavelength_grid")
    shutil.copy(built / "README.md", folder)
    (folder / "synthetic").mkdir()
    files = sorted(built.glob("synthetic/*.parquet"))
    rows, number = 0, 0
    while rows < n_rows:
        file = files[number % len(files)]
        os.link(file, folder / f"synthetic/train-{number:05d}.parquet")
        rows += pq.read_metadata(file).num_rows
        number += 1
    (folder / "synthetic/validation-00000.parquet").symlink_to(files[0])  # which the card promises
    return rows


# ---------------------------------------------------------------- the model alone


def model_rate(survey: Path, seconds: float) -> tuple[float, float, float, int]:
    """Spectra per second of the network with preparation, of the network alone, of preparation; and the batch size."""
    model, extractor = load_pretrained(shipped())
    spectra = [reading.spectrum for reading in open_survey(survey, split="train").read(0, max(SIZES))]
    flux, bad, ivar = (np.stack([getattr(one, name) for one in spectra]) for name in ("flux", "bad_pixel", "ivar"))
    error = np.where(ivar > 0, 1 / np.sqrt(np.where(ivar > 0, ivar, 1.0)), 0.0)
    told = {"flux_error": error, "resolving_power": [one.resolving_power for one in spectra]}
    prepare = partial(extractor, flux, spectra[0].wavelength, bad, **told, return_tensors="pt")
    prepared = dict(prepare())
    steps = {
        size: inference(model, {name: part[:size] for name, part in prepared.items()}, bf16=False) for size in SIZES
    }
    rates = best_rates({str(size): (step, size) for size, step in steps.items()}, seconds, 2)
    size = max(SIZES, key=lambda one: rates[str(one)])
    network = rates[str(size)]
    preparation = best_rates({"prepare": (prepare, len(spectra))}, seconds, 2)["prepare"]
    return 1 / (1 / network + 1 / preparation), network, preparation, size


# ---------------------------------------------------------------- the survey


def start(
    survey: Path, output: Path, part_rows: int, split: str = "train", num_proc: int = 1
) -> subprocess.Popen[bytes]:
    """A fresh process that labels a survey, by itself or with `num_proc` workers."""
    code = (
        "from spectrafm_hf.catalogue import label_survey\n"
        f"if __name__ == '__main__':\n"
        f"    label_survey({str(survey)!r}, {str(output)!r}, split={split!r}, part_rows={part_rows}, "
        f"num_proc={num_proc}, progress=False)"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


def resident_gb(process: psutil.Process) -> float:
    """Of a process and its children; shared pages counted twice."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.Error:
            continue
    return total / 1e9


def label(survey: Path, output: Path, rows: int, part_rows: int, num_proc: int) -> dict[str, float]:
    """Label a survey: spectra per second once it runs, seconds in all, and peak memory up to 20 % and up to the end."""
    began = time.perf_counter()
    process = start(survey, output, part_rows, num_proc=num_proc)
    watched = psutil.Process(process.pid)
    n_parts = -(-rows // part_rows)
    settled, last, early, peak = 0.0, 0.0, 0.0, 0.0
    done = settled_rows = 0
    while process.poll() is None:
        now_done = len(list(parts_folder(output).glob("part-*.parquet")))
        now = time.perf_counter()
        try:
            peak = max(peak, resident_gb(watched))
        except psutil.Error:
            break
        if now_done > done:
            done, last = now_done, now
            if not settled and done >= SETTLED * n_parts:
                settled, settled_rows, early = now, done * part_rows, peak
        time.sleep(0.1)
    if process.wait():
        sys.exit(f"error: labelling {survey} ended with status {process.returncode}")
    seconds = time.perf_counter() - began
    per_s = (rows - settled_rows) / (last - settled) if last > settled else rows / seconds
    return {"per_s": per_s, "seconds": seconds, "peak_gb": peak, "early_gb": early or peak}


def killed_survey(survey: Path, folder: Path) -> tuple[int, int, int, int, bool]:
    """Kill a run at three random points and finish it: rows, lost, repeated, kept at the end; equal to a whole run?"""
    rows = open_survey(survey, split="validation").length or 0
    output, random, kept = folder / "killed.parquet", np.random.default_rng(), 0
    n_parts = -(-rows // KILL_PART)
    for goal in np.sort(random.choice(np.arange(1, n_parts - 1), KILLS, replace=False)):
        process = start(survey, output, KILL_PART, "validation")
        while len(list(parts_folder(output).glob("part-*.parquet"))) < goal and process.poll() is None:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.wait()
        kept = KILL_PART * len(list(parts_folder(output).glob("part-*.parquet")))
    for path in (output, folder / "whole.parquet"):
        if start(survey, path, KILL_PART, "validation").wait():
            sys.exit(f"error: labelling {survey} into {path} failed")
    killed, whole = pq.read_table(output), pq.read_table(folder / "whole.parquet")
    counts = Counter(killed["row"].to_pylist())
    lost = len(set(range(rows)) - set(counts))
    same = all(
        np.array_equal(one := killed[name].to_numpy(), whole[name].to_numpy(), equal_nan=one.dtype.kind == "f")
        for name in whole.schema.names
    )
    return rows, lost, sum(counts.values()) - len(counts), kept, same


# ---------------------------------------------------------------- one star


def cold_start() -> float:
    """Seconds of `spectrafm predict` for one star, from nothing to the answer; the median of three."""
    command = [sys.executable, "-m", "spectrafm_hf.cli", "predict", str(example("h-band-red-giant"))]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - began)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)} ended with status {done.returncode}: {done.stderr[-1000:]}")
    return float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rows", type=int, default=100_000, help="of the survey, at least")
    parser.add_argument("--num-proc", type=int, default=os.cpu_count(), help="processes that label the survey")
    parser.add_argument("--scratch", type=Path, help="where some 2 GB may be written (default: the temporary folder)")
    arguments = parser.parse_args()
    part_rows = min(PART_ROWS, max(1, arguments.rows // 10))
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "num_proc": arguments.num_proc}

    seconds = cold_start()
    figures["cold_start_s"] = round(seconds, 2)
    say(f"{'one star, fresh process':34} {seconds:8.1f} s")

    scratch = Path(tempfile.mkdtemp(prefix="spectrafm-predict-", dir=arguments.scratch))
    try:
        built, survey = scratch / "built", scratch / "survey"
        build(min(N_BUILD, arguments.rows), built)
        survey.mkdir()
        rows = repeat(built, survey, arguments.rows)
        before = model_rate(survey, 3.0)
        run = label(survey, scratch / "catalogue.parquet", rows, part_rows, arguments.num_proc)
        after = model_rate(survey, 3.0)
        rate, network, preparation, size = max(before, after)
        say(f"{'the model alone':34} {rate:8.1f} spectra/s with preparation (float32, batch {size}, "
            f"{torch.get_num_threads()} threads; network {network:.0f}, preparation {preparation:.0f})")  # fmt: skip
        share = run["per_s"] / rate
        say(f"{f'{rows:,} spectra to a catalogue':34} {run['per_s']:8.1f} spectra/s, {share:.0%} of that; "
            f"{arguments.num_proc} processes, {run['seconds']:.0f} s in all")  # fmt: skip
        say(f"{'peak memory':34} {run['peak_gb']:8.2f} GB, {run['early_gb']:.2f} GB in the first {SETTLED:.0%}")
        figures |= {
            "rows": rows,
            "steady_per_s": round(run["per_s"], 1),
            "model_per_s": round(rate, 1),
            "model_per_s_before_and_after": [round(one[0], 1) for one in (before, after)],
            "network_per_s": round(network, 1),
            "preparation_per_s": round(preparation, 1),
            "model_batch": size,
            "share_of_model_rate": round(share, 3),
            "peak_gb": round(run["peak_gb"], 3),
            "peak_gb_at_20_percent": round(run["early_gb"], 3),
            "survey_s": round(run["seconds"], 1),
        }
        n_killed, lost, repeated, kept, same = killed_survey(built, scratch)
        say(f"{f'{KILLS} kills in {n_killed:,} spectra':34} {lost:8} rows lost, {repeated} repeated, {kept:,} kept; "
            f"{'equal' if same else 'NOT EQUAL'} to a run without kills")  # fmt: skip
        figures |= {"rows_lost_after_kills": lost, "rows_repeated_after_kills": repeated}
        figures |= {"rows_of_the_killed_run": n_killed, "rows_kept_after_kills": kept, "equal_after_kills": same}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, figures)
        say(f"figures in {arguments.json}")


if __name__ == "__main__":
    sys.exit(main())
