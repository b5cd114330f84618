"""How fast and how right the data is: synthesis, build, streaming, FITS ingest, against theory and real stars.

    python -m training.benchmarks.data --json results.json [--quick]

About ten minutes on two cores, with `--quick` (a tenth of the work) one. Ratios are measured in one run, the two sides
taking turns, since timings on shared machines drift. Figures of `--quick` that grow with the work are scaled up.
MILES comes from the library cache; the other real stars from `--real-spectra`, a folder with `fits/` (aspcapStar files)
and `apogee_dr12_window_dev.npz`; what is not there is not measured, and null in the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # "per core" means one; before NumPy is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import psutil
import torch
from datasets import load_dataset
from safetensors.numpy import load_file

from spectrafm_hf.builders.libraries import load_library
from spectrafm_hf.readers.aspcapstar import read_aspcapstar
from spectrafm_hf.readers.mangadap_wheel import LibrariesUnavailableError
from spectrafm_hf.spectra import APOGEE_DETECTORS, apogee_wavelength
from spectrafm_hf.synthesis.apogee import BLOCK, ApogeeSpectra, ApogeeSynthesizer
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.synthesis.response import AbundanceResponse, ratio_error

ROOT = Path(__file__).parents[2]
SYNSPEC_RATIOS = ROOT / "tests/data/synspec_ratios.safetensors"
N_BUILD, N_STREAM, N_FITS = 90_000, 20_000, 2_000
BATCH = 256
"""Spectra in a torch batch: a row group of ours."""

sys.path.insert(0, str(ROOT / "tests"))  # its writer of files in the surveys' formats


def say(text: str) -> None:
    print(text, flush=True)


# ---------------------------------------------------------------- synthesis


def synthesis_rate(seconds: float) -> float:
    """Spectra per second of one core, labels to observed flux, all 7,514 pixels."""
    spectra = ApogeeSpectra(seed=0)
    spectra.block(0)
    start, blocks = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        blocks += 1
        spectra.block(blocks)
    return blocks * BLOCK / (time.perf_counter() - start)


def response_errors() -> tuple[float, float, int]:
    """95th percentile of the flux-ratio error with and without the response network, and how many unseen spectra."""
    stored = load_file(SYNSPEC_RATIOS)
    labels, ratio = stored["labels"], stored["ratio"].astype(np.float32)
    return ratio_error(AbundanceResponse()(labels), ratio, labels), ratio_error(None, ratio, labels), len(labels)


# ---------------------------------------------------------------- build


class PeakMemory:
    """Largest resident memory of a process and its children, GB, looked at ten times a second."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self.peak, self._process = 0.0, psutil.Process(process.pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            total = 0
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    try:
                        total += process.memory_info().rss
                    except psutil.NoSuchProcess:
                        continue
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, total / 1e9)

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return self.peak


def build(n: int, output: Path) -> tuple[float, float, float]:
    """`spectrafm build synthetic` with two processes: seconds, peak GB (shared pages counted twice), GB on disk."""
    command = [sys.executable, "-m", "spectrafm_hf.cli", "build", "synthetic", "--survey", "apogee"]
    command += ["--n", str(n), "--num-proc", "2", "--output", str(output)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        memory = PeakMemory(process)
        code = process.wait()
        peak = memory.stop()
    if code:
        sys.exit(f"error: {' '.join(command)} ended with status {code}")
    return time.perf_counter() - start, peak, sum(file.stat().st_size for file in output.rglob("*.parquet")) / 1e9


# ---------------------------------------------------------------- streaming


def rss_gb() -> float:
    return psutil.Process().memory_info().rss / 1e9


def stream(folder: Path, name: str | None) -> dict[str, float]:
    """One pass over a split into torch batches: payload MB/s, spectra/s, seconds to the first batch, memory growth."""
    torch.set_num_threads(1)
    data = load_dataset(str(folder), name, split="train", streaming=True).with_format("torch")
    start, first, spectra, payload, memory = time.perf_counter(), 0.0, 0, 0, []
    for batch in data.iter(BATCH):
        first = first or time.perf_counter() - start
        payload += sum(batch[column].nbytes for column in ("flux", "ivar", "bad_pixel"))
        spectra += len(batch["flux"])
        memory.append(rss_gb())
    seconds = time.perf_counter() - start
    assert isinstance(batch["flux"], torch.Tensor)
    quarter = max(1, len(memory) // 4)
    return {
        "mb_s": payload / seconds / 1e6,
        "spectra_s": spectra / seconds,
        "first_s": first,
        "growth_gb": max(memory) - max(memory[:quarter]),
        "spectra": spectra,
    }


def stream_afresh(folder: Path, name: str | None) -> dict[str, float]:
    """`stream` in a process of its own, as training starts: memory that an earlier pass left behind would help."""
    code = "import json; from training.benchmarks.data import *; print(json.dumps(stream(Path({!r}), {!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code.format(str(folder), name)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"error: streaming {folder} failed: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_as_push_to_hub(ours: Path, destination: Path) -> None:
    """The same rows as `Dataset.push_to_hub` would lay them out: its writer, its row groups, its compression."""
    destination.mkdir()
    files = sorted(ours.glob("synthetic/train*.parquet"))
    for number, file in enumerate(files):
        table = datasets.Dataset.from_parquet(str(file), cache_dir=str(destination / "cache"), keep_in_memory=True)
        table.to_parquet(destination / f"train-{number:05d}-of-{len(files):05d}.parquet")
    shutil.rmtree(destination / "cache", ignore_errors=True)


def compare_streams(ours: Path, scratch: Path) -> dict[str, Any]:
    """Our layout against `push_to_hub`'s, three passes each, taking turns; the median of each."""
    default = scratch / "default"
    write_as_push_to_hub(ours, default)
    passes: dict[str, list[dict[str, float]]] = {"ours": [], "default": []}
    for _ in range(3):
        passes["ours"].append(stream_afresh(ours, "synthetic"))
        passes["default"].append(stream_afresh(default, None))
    result: dict[str, Any] = {
        name: {key: float(np.median([one[key] for one in runs])) for key in runs[0]} for name, runs in passes.items()
    }
    for name, folder in (("ours", ours / "synthetic"), ("default", default)):
        result[name]["size_gb"] = sum(f.stat().st_size for f in folder.glob("train*.parquet")) / 1e9
    result["ratio"] = float(
        np.median([a["mb_s"] / b["mb_s"] for a, b in zip(passes["ours"], passes["default"], strict=True)])
    )
    return result


# ---------------------------------------------------------------- FITS


def write_survey_files(folder: Path, n: int) -> list[Path]:
    from survey_files import write_aspcapstar

    folder.mkdir()
    rng = np.random.default_rng(0)
    block = ApogeeSpectra(seed=1).block(0)
    inside = np.zeros(8575, dtype=bool)
    for detector in APOGEE_DETECTORS:
        inside[detector] = True
    paths = []
    for i in range(n):
        flux, error = np.zeros(8575), np.full(8575, 1e10)
        flux[inside] = block["flux"][i % BLOCK]
        error[inside] = 0.01
        name = f"2M{rng.integers(10**7, 10**8)}+{i:07d}"
        paths.append(folder / f"aspcapStar-dr17-{name}.fits")
        write_aspcapstar(paths[-1], name, flux, error, flux)
    return paths


def rates(readers: dict[str, Callable[[Path], Any]], paths: list[Path]) -> dict[str, np.ndarray]:
    """Files per second of each reader; they take turns in runs of 100 files, shape (n_runs,)."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for read in readers.values():
        read(paths[0])
    for first in range(0, len(paths), 100):
        for name, read in readers.items():
            start = time.perf_counter()
            for path in paths[first : first + 100]:
                read(path)
            seconds[name].append((time.perf_counter() - start) / len(paths[first : first + 100]))
    return {name: 1 / np.array(values) for name, values in seconds.items()}


def ingest(paths: list[Path]) -> dict[str, float]:
    """aspcapStar files per second: ours, specutils as one calls it, and specutils when told the format."""
    from specutils import Spectrum as SpecutilsSpectrum

    found = rates(
        {
            "ours": read_aspcapstar,
            "specutils": SpecutilsSpectrum.read,
            "specutils_told": lambda path: SpecutilsSpectrum.read(path, format="APOGEE aspcapStar"),
        },
        paths,
    )
    figures = {name: float(1 / np.mean(1 / rate)) for name, rate in found.items()}
    for name in ("specutils", "specutils_told"):
        figures[f"ratio_to_{name}"] = float(np.median(found["ours"] / found[name]))
    return figures


# ---------------------------------------------------------------- real stars


def correlation(one: np.ndarray, other: np.ndarray, good: np.ndarray) -> float:
    return float(np.corrcoef(one[good], other[good])[0, 1])


def miles_correlations() -> np.ndarray | None:
    """Of each MILES star with the Cannon spectrum at its labels, 3,700-7,400 Angstrom, over their pseudo-continua.

    The smoothing length is 30 Angstrom: flux calibration and the continuum of theory err on longer scales. The median
    hangs on it a little: 0.941 with 30, 0.940 with 50, 0.931 with 100, the model's own.
    """
    from spectrafm_hf.feature_extraction_spectrafm import SpectraFMFeatureExtractor

    try:
        stars = load_library("miles").spectra
    except LibrariesUnavailableError as error:
        say(f"MILES: not measured ({error})")
        return None
    grid = stars[0].wavelength
    synthesizer = CannonSynthesizer(grid, fwhm=2.5)
    extractor = SpectraFMFeatureExtractor(wavelength_range=(3700.0, 7400.0), smoothing_length=30.0)
    found = []
    for star in stars:
        labels = np.array([[star.labels[name] for name in ("teff", "logg", "fe_h")]])
        bounds = np.array(list(synthesizer.bounds.values()))
        if not ((labels >= bounds[:, 0]) & (labels <= bounds[:, 1])).all():
            continue
        pairs = [
            extractor.normalise(*(x[None] for x in extractor.resample(flux, grid, bad)))
            for flux, bad in ((star.flux, star.bad_pixel), (synthesizer(labels)[0], None))
        ]
        found.append(correlation(pairs[0][0][0], pairs[1][0][0], pairs[0][1][0] & pairs[1][1][0]))
    return np.array(found)


def giant_correlations(folder: Path) -> Iterator[tuple[str, float, float, float]]:
    """Star, and its correlation with the Cannon grid, with the response on top, and with ASPCAP's own best fit."""
    from astropy.io import fits

    synthesizer, cannon = ApogeeSynthesizer(), ApogeeSynthesizer(response=False)
    for path in sorted(folder.glob("aspcapStar-*.fits")):
        with fits.open(path) as hdus:
            teff, logg, _, m_h, c_m, n_m, alpha_m = (float(x) for x in hdus[4].data["FPARAM"][0][:7])
        labels = np.array([teff, logg, m_h, alpha_m, alpha_m, c_m, n_m, alpha_m])
        observed, best = read_aspcapstar(path), read_aspcapstar(path, kind="synthetic")
        if not all(low <= x <= high for x, (low, high) in zip(labels, synthesizer.bounds.values(), strict=True)):
            say(f"{observed.star_id}: {teff:.0f} K lies outside the synthesizer, left out")
            continue
        good = ~observed.bad_pixel & ~best.bad_pixel & (observed.flux > 0.05) & (observed.flux < 1.2)
        yield (
            observed.star_id,
            correlation(cannon(labels[:3])[0], observed.flux, good),
            correlation(synthesizer(labels)[0], observed.flux, good),
            correlation(best.flux, observed.flux, good),
        )


def window_correlations(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of the giants of a 22 Angstrom window (15168-15190 Angstrom): Cannon alone, and with the response."""
    with np.load(file, allow_pickle=False) as stored:
        names = [str(name).lower() for name in stored["label_names"]]
        labels, flux, error = stored["labels"], stored["flux"], stored["flux_err"]
        pixels = np.searchsorted(apogee_wavelength(), stored["wavelength"] - 1e-3)
    columns = {name: labels[:, names.index(name)].astype(float) for name in names}
    zero = np.zeros(len(labels))
    full = np.column_stack(
        [columns[n] for n in ("teff", "logg", "fe_h", "mg_fe", "o_fe")] + [zero - 0.05, zero + 0.2, columns["mg_fe"]]
    )
    synthesizer, cannon = ApogeeSynthesizer(), ApogeeSynthesizer(response=False)
    found = []
    for i, row in enumerate(full):
        good = np.isfinite(flux[i]) & (error[i] < 0.1)
        if not np.isfinite(row).all() or good.sum() < 50:
            continue
        row = np.clip(row, *np.array(list(synthesizer.bounds.values())).T)
        # A residual velocity of one or two pixels is in the data: the best of five shifts, for both.
        both = [
            max(correlation(model(part)[0][pixels + shift], flux[i], good) for shift in range(-2, 3))
            for model, part in ((cannon, row[:3]), (synthesizer, row))
        ]
        found.append(both)
    return tuple(np.array(found).T)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--real-spectra", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--scratch", type=Path, help="where some 7 GB may be written (default: the temporary folder)")
    arguments = parser.parse_args()
    share = 10 if arguments.quick else 1
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"quick": arguments.quick}

    rate = synthesis_rate(20 / share)
    figures["synthesis_per_s_core"] = round(rate)
    say(f"synthesis: {rate:,.0f} spectra/s on one core (7,514 pixels, five labels, observed)")

    error, without, n = response_errors()
    figures |= {"response_p95_error": round(error, 5), "no_response_p95_error": round(without, 5)}
    say(f"response against {n} unseen Synspec spectra: 95 % of errors below {error:.4f}; without it {without:.4f}")

    correlations = miles_correlations()
    figures["miles_correlation_median"] = None if correlations is None else round(float(np.median(correlations)), 4)
    if correlations is not None:
        low, median, high = np.percentile(correlations, [16, 50, 84])
        say(f"MILES: correlation {median:.3f} (16-84 %: {low:.3f}-{high:.3f}) for {correlations.size} stars")
    giants = list(giant_correlations(arguments.real_spectra / "fits"))
    for star, cannon, hybrid, best in giants:
        say(f"{star}: correlation {cannon:.3f} Cannon, {hybrid:.3f} with the response, {best:.3f} ASPCAP's best fit")
    window = arguments.real_spectra / "apogee_dr12_window_dev.npz"
    if window.is_file():
        alone, full = window_correlations(window)
        figures["window_correlation_median"] = round(float(np.median(full)), 4)
        say(
            f"{full.size} giants, 15168-15190 A: {np.median(alone):.3f} Cannon, {np.median(full):.3f} with the response"
        )

    scratch = Path(tempfile.mkdtemp(prefix="spectrafm-benchmark-", dir=arguments.scratch))
    try:
        seconds, peak, size = build(N_BUILD // share, scratch / "built")
        figures |= {"build_90k_s": round(seconds * share, 1), "build_peak_gb": round(peak, 2)}
        done = f"{N_BUILD // share:,} spectra, 2 processes"
        say(f"build of {done}: {seconds:.0f} s, peak {peak:.2f} GB, {size:.2f} GB on disk")
        shutil.rmtree(scratch / "built")

        build(N_STREAM // share, scratch / "stream")
        streams = compare_streams(scratch / "stream", scratch)
        figures |= {
            "stream_mb_s": round(streams["ours"]["mb_s"]),
            "stream_ratio_to_default": round(streams["ratio"], 2),
            "stream": streams,
        }
        for name in ("ours", "default"):
            s = streams[name]
            say(
                f"stream, {name}: {s['mb_s']:.0f} MB/s, {s['spectra_s']:.0f} spectra/s, {s['size_gb']:.2f} GB on disk, "
                f"first batch {s['first_s']:.2f} s, memory +{s['growth_gb']:.2f} GB after the first quarter"
            )
        say(f"stream: {streams['ratio']:.2f} times push_to_hub's layout")

        paths = write_survey_files(scratch / "fits", N_FITS // share)
        files = ingest(paths)
        figures |= {
            "fits_per_s_core": round(files["ours"]),
            "fits_ratio_to_specutils": round(files["ratio_to_specutils"], 2),
            "fits_ratio_to_specutils_told_the_format": round(files["ratio_to_specutils_told"], 2),
        }
        say(
            f"aspcapStar: {files['ours']:.0f} files/s on one core; Spectrum.read of specutils {files['specutils']:.0f} "
            f"(ratio {files['ratio_to_specutils']:.0f}), told the format {files['specutils_told']:.0f} "
            f"(ratio {files['ratio_to_specutils_told']:.1f})"
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

    figures["peak_gb_of_this_process"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
        say(f"written: {arguments.json}")


if __name__ == "__main__":
    main()
