"""`spectrafm benchmark`: every protocol, every method, one JSON, one page of figures.

    paper_synthetic      the paper's three stages on synthetic H-band spectra of a nature that theory does not know
    optical              MILES in the red: 10 to 300 labelled stars
    across_instruments   trained on MILES, asked about STELIB
    apogee_window        real APOGEE giants through 100 pixels, where a file of them is given
    paper                the paper's own protocol, where APOGEE DR17 is given

and of the model itself, see `protocols.evidence`:

    calibration          do its intervals hold what they say, among unseen synthetic stars?
    lines                does it read the right lines?
    ood                  does it notice what it was not trained for?

What is finished is kept on disk: a second run fits nothing twice, a killed one goes on. Which stars were drawn and
asked about stands in manifest.json, with a SHA-256 of every list.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from .answers import load_answer, save_answer
from .builders.libraries import load_library
from .builders.parquet_layout import write_json
from .builders.splits import Split
from .checkpoints import located
from .labels import get_label
from .metrics import METHOD_NAMES, NOMINAL_COVERAGE, binomial_interval, subsets, summarise
from .plots import plot_benchmark
from .protocols.apogee_window import apogee_window_task
from .protocols.evidence import EVIDENCE, Evidence
from .protocols.few_labels import (
    LABEL,
    MAIN_SIZE,
    METHODS,
    OURS,
    SIZES,
    SLOW,
    Answer,
    Task,
    figures,
    read_by_network,
    seeds_of,
)
from .protocols.instruments import across_instruments_task
from .protocols.optical import optical_task
from .protocols.paper import paper_task
from .protocols.synthetic_h_band import paper_synthetic_task
from .stages import check_writable, few_threads

logger = logging.getLogger(__name__)

PROTOCOLS = ("paper_synthetic", "optical", "across_instruments", "apogee_window", "paper")
PARTS = (*PROTOCOLS, *EVIDENCE)
"""Of a benchmark; each may be run alone."""
SUBSETS = ("all", "metal_poor", "metal_rich")
REFERENCE = "spectrafm"
"""The others are compared with it."""
PAPER = {
    "source": "Koblischke & Bovy 2024, recomputed from its published predictions; RMSE of [Fe/H] in dex, 100 stars, "
    "512 pixels of real APOGEE spectra",
    "mlp_scratch": {"all": 0.158, "metal_poor": 0.763},
    "spectrafm_zero_shot": {"all": 0.210, "metal_poor": 0.510},
    "spectrafm": {"all": 0.094, "metal_poor": 0.232, "coverage68": 0.54},
}


@dataclass(frozen=True)
class BenchmarkPlan:
    """What `run_benchmark` does.

    Attributes:
        output: Folder of the run.
        model: Pre-trained model: one that ships, a folder or a Hub repository.
        n_seeds: Draws of the N stars, numbered from 0.
        protocols: Names of `PARTS`.
        methods: Names of `few_labels.METHODS`; None = all. benchmark.json then tells of these alone.
        window_stars: File of the protocol apogee_window; None = the protocol is left out, and says so.
        dr17: Of the protocol paper: APOGEE DR17, see `protocols.paper`; None likewise.
        n_processes: Fits beside each other.
        budget: Factor on what is made and trained in paper_synthetic, paper and the evidence; below 1 for a trial.
        development: Ask about validation stars instead of test stars, while something is still being chosen. Protocols
            that have test stars alone are left out.
    """

    output: Path
    model: str = "spectrafm-small"
    n_seeds: int = 10
    protocols: tuple[str, ...] = PARTS
    methods: tuple[str, ...] | None = None
    window_stars: Path | None = None
    dr17: str | None = None
    n_processes: int = 2
    budget: float = 1.0
    development: bool = False

    def __post_init__(self) -> None:
        for given, known, what in ((self.protocols, PARTS, "protocol"), (self.methods or (), METHODS, "method")):
            if unknown := [name for name in given if name not in known]:
                raise ValueError(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}.")
        if self.n_seeds < 1 or self.n_processes < 1 or not self.budget > 0:
            raise ValueError(
                "at least one seed, one process and a positive budget are needed, got "
                f"{self.n_seeds}, {self.n_processes} and {self.budget:g}."
            )

    @property
    def start(self) -> str:
        """The model's folder or repository."""
        return located(self.model)

    def lacks(self, part: str) -> str | None:
        """Why a part cannot run as this is told, as a sentence without its subject; None = it can."""
        if self.development and part in PROTOCOLS and part != "optical":
            return "has no validation stars, and nothing may be chosen by its test stars"
        if part == "apogee_window" and self.window_stars is None:
            return "needs a file of real window stars: --window-stars FILE.npz (protocols/apogee_window.py)"
        if part == "paper" and self.dr17 is None:
            return "needs APOGEE DR17: --dr17 FOLDER_OR_DATASET (protocols/paper.py)"
        return None


def run_benchmark(plan: BenchmarkPlan) -> dict[str, Any]:
    """Run what is not done yet, and write benchmark.json and manifest.json.

    Returns:
        The content of benchmark.json.

    Raises:
        ValueError: The model, or a protocol's stars; OSError: the folder cannot be written.
    """
    check_writable(plan.output)
    path = plan.output / "benchmark.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    manifest_path = plan.output / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.is_file() else {}
    results.setdefault("protocols", {})
    with few_threads():
        for number, part in enumerate(plan.protocols, start=1):
            logger.info("\n[%d/%d] %s", number, len(plan.protocols), part)
            if part in EVIDENCE:
                results[part] = Evidence(plan.start, plan.output, plan.budget).find(part, results.get(part))
            else:
                results["protocols"][part], manifest[part] = run_protocol(plan, part)
            results |= {
                "model": Path(plan.start).name,
                "label": LABEL,
                "unit": get_label(LABEL).unit,
                "paper": PAPER,
                "versions": {name: metadata.version(name) for name in ("spectrafm_hf", "torch", "scikit-learn")},
            }
            write_json(path, results)
            write_json(manifest_path, manifest)
    plot_benchmark(results, plan.output / "figures" / "benchmark.png")
    return results


def run_protocol(plan: BenchmarkPlan, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results and manifest of one protocol."""
    folder = plan.output / name
    folder.mkdir(exist_ok=True)
    if why := plan.lacks(name):
        return left_out(why)
    sizes = SIZES if name == "optical" else (MAIN_SIZE,)
    extra: dict[str, Any] = {}
    if name == "apogee_window":
        assert plan.window_stars is not None  # see `BenchmarkPlan.lacks`
        task = apogee_window_task(plan.start, plan.window_stars, folder)
    elif name == "optical":
        split: Split = "validation" if plan.development else "test"
        task = optical_task(plan.start, folder / "2-observed", load_library("miles"), split)
    elif name == "across_instruments":
        libraries = load_library("miles"), load_library("stelib")
        task, extra = across_instruments_task(plan.start, folder / "2-observed", *libraries)
    elif name == "paper":
        assert plan.dr17 is not None
        task = paper_task(plan.start, folder, plan.dr17, plan.budget, plan.n_processes)
    else:
        task = paper_synthetic_task(plan.start, folder, plan.budget)
    task = task.narrowed()
    return compare(plan, task, sizes) | extra, task.manifest(range(plan.n_seeds), sizes)


def left_out(why: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results and manifest of a protocol that cannot run here."""
    logger.info("  left out: %s", why)
    return {"left_out": why, "methods": {}}, {}


# ---------------------------------------------------------------- every method on every draw


@dataclass(frozen=True)
class Job:
    """One method, one draw."""

    method: str
    n_stars: int
    seed: int


def jobs_of(plan: BenchmarkPlan, task: Task, sizes: Sequence[int]) -> Iterator[Job]:
    for method in plan.methods or METHODS:
        for n_stars in sizes:
            yield from (Job(method, n_stars, seed) for seed in seeds_of(method, n_stars, task.name, plan.n_seeds))


_TASK: list[Task] = []
"""What forked processes share without a copy."""


def _answer(job: Job) -> tuple[Job, Answer | str]:
    task = _TASK[0]
    try:
        with few_threads():
            return job, METHODS[job.method](task, task.draw(job.n_stars, job.seed), job.seed)
    except np.linalg.LinAlgError:  # a ValueError, but no refusal
        raise
    except ValueError as error:
        return job, str(error)


def answers_of(plan: BenchmarkPlan, task: Task, sizes: Sequence[int]) -> dict[Job, Answer | str]:
    """Every method's answer for every draw; a sentence where a method cannot learn from so few stars."""
    folder = plan.output / task.name / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    origin = {method: identity(task, method) for method in plan.methods or METHODS}

    def place(job: Job) -> tuple[Path, str]:
        key = hashlib.sha256(f"{origin[job.method]}:{job}:{task.draw(job.n_stars, job.seed)}".encode()).hexdigest()
        return folder / f"{job.method}-{job.n_stars}-{job.seed}.npz", key

    answers: dict[Job, Answer | str] = {}
    open_jobs = []
    for job in jobs_of(plan, task, sizes):
        kept = load_answer(*place(job))
        if kept is None:
            open_jobs.append(job)
        else:
            answers[job] = Answer(*kept)
    if open_jobs:
        _ = task.read, task.pixels  # once, before processes are forked
        if task.folder is None and any(job.method == "mlp_pretrained" for job in open_jobs) and not task.mlp_is_ready:
            _ = task.mlp
    _TASK[:] = [task]
    # The long ones first, so that no process is left alone with one at the end.
    open_jobs.sort(key=lambda job: (job.method not in SLOW, -job.n_stars))
    for job, answer in tqdm(_run(plan, task, open_jobs), total=len(open_jobs), desc=f"  {task.name}", unit=" fit"):
        answers[job] = answer
        if isinstance(answer, Answer):
            save_answer(*place(job), (answer.mean, answer.sigma, answer.sigma95))
    _TASK.clear()
    return answers


def _run(plan: BenchmarkPlan, task: Task, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer | str]]:
    """Answers as they come. What the MLP learns before it sees a star is learned beside the fits of other methods."""
    if plan.n_processes == 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(_answer, jobs)
        return
    with ProcessPoolExecutor(plan.n_processes, mp_context=multiprocessing.get_context("fork")) as pool:
        waiting = [job for job in jobs if job.method == "mlp_pretrained" and not task.mlp_is_ready]
        pretraining = pool.submit(_pretrain) if waiting else None
        running: set[Future[Any]] = {pool.submit(_answer, job) for job in jobs if job not in waiting}
        running |= {pretraining} if pretraining else set()
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if future is pretraining:
                    future.result()
                    running |= {pool.submit(_answer, job) for job in waiting}
                else:
                    yield future.result()


def _pretrain() -> None:
    with few_threads():
        _ = _TASK[0].mlp


def identity(task: Task, method: str) -> str:
    """SHA-256 of what a method's answers hang on, but the draw: the stars and how their pixels are prepared, and, for
    those that have it, the network with its extractor and anchors, or the number of synthetic spectra."""
    prepared = task.extractor.to_dict()
    prepared.pop("learned_ranges", None)  # words for people
    parts: list[bytes | np.ndarray] = [task.name.encode()]
    if method in (*OURS, "transformer_scratch"):
        parts += [task.model.config.to_json_string().encode(), *task.anchors]
        parts += [parameter.detach().float().numpy() for parameter in task.model.parameters()]
    else:
        prepared = {name: value for name, value in prepared.items() if name not in ("sigma_factors", "recalibration")}
    if method == "mlp_pretrained" or (method in OURS and task.adapts):
        parts.append(str(task.n_synthetic).encode())
    parts.append(json.dumps(prepared, default=str, sort_keys=True).encode())
    for stars in (task.pool, task.test):
        parts += ["\n".join(stars.star_ids).encode(), stars.flux, stars.good, stars.labels, stars.label_errors]
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


# ---------------------------------------------------------------- what came of it


def compare(plan: BenchmarkPlan, task: Task, sizes: Sequence[int]) -> dict[str, Any]:
    """What benchmark.json tells of a task, see the README."""
    answers = answers_of(plan, task, sizes)
    by_n: dict[str, Any] = {}
    for n_stars in sizes:
        told: dict[str, Any] = {}
        ours: dict[int, Answer] = {}
        for method in plan.methods or METHODS:
            mine = {job.seed: a for job, a in answers.items() if (job.method, job.n_stars) == (method, n_stars)}
            refused = [a for a in mine.values() if isinstance(a, str)]
            found = {seed: a for seed, a in sorted(mine.items()) if isinstance(a, Answer)}
            ours = found if method == REFERENCE else ours
            told[method] = {"left_out": refused[0]} if refused else over_seeds(task, found, ours)
        by_n[str(n_stars)] = told
    main = str(MAIN_SIZE)
    return {
        "what": task.what,
        "model": Path(plan.start).name,
        "budget": plan.budget,
        "n_stars": MAIN_SIZE,
        "n_test": len(task.test.star_ids),
        "seeds": list(range(plan.n_seeds)),
        "split": "validation" if plan.development else "test",
        "methods": by_n[main],
        "by_n": {n: {method: without_draws(figure) for method, figure in told.items()} for n, told in by_n.items()},
        "labels": label_figures(plan, task),
    }


def over_seeds(task: Task, answers: Mapping[int, Answer], ours: Mapping[int, Answer]) -> dict[str, Any]:
    """Means over the draws, each draw apart, and how sure the RMSE and the coverages are.

    `rmse_ci95` is for other draws and other stars, `rmse_ci95_draws` for other draws of these stars. All methods are
    asked about the same stars, so that their difference is known better than either: `minus_spectrafm_ci95`.
    """
    per_seed = [{"seed": seed, **figures(task, answer)} for seed, answer in answers.items()]
    truth = task.test.labels[:, task.column()]
    squared = np.stack([(answer.mean - truth) ** 2 for answer in answers.values()])
    of_ours = np.stack([(ours[seed].mean - truth) ** 2 for seed in answers]) if set(answers) <= set(ours) else None
    told: dict[str, Any] = {"per_seed": per_seed}
    for subset, chosen in subsets(truth).items():
        every = [record[subset] for record in per_seed]
        mean: dict[str, Any] = {
            key: None if every[0][key] is None else float(np.mean([figure[key] for figure in every]))
            for key in every[0]
        }
        mean["n"] = every[0]["n"]
        if every[0]["rmse"] is not None:
            asked = chosen & np.isfinite(truth)
            resampled = resampled_rmse(squared[:, asked])
            mean["rmse_ci95"] = central_95(resampled)
            mean["rmse_ci95_draws"] = mean_interval([figure["rmse"] for figure in every])
            if of_ours is not None:
                mean["minus_spectrafm_ci95"] = central_95(resampled - resampled_rmse(of_ours[:, asked]))
            for interval in NOMINAL_COVERAGE:
                mean[f"{interval}_ci95"] = list(coverage_interval(mean[interval], mean["n"]))
        told[subset] = mean
    return told


def without_draws(figure: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figure.items() if key != "per_seed"}


def resampled_rmse(squared: np.ndarray, n_resamplings: int = 1000) -> np.ndarray:
    """Mean RMSE over draws, if both the draws and the stars asked about had been others, shape (n_resamplings,).

    A bootstrap over both; the same stars are asked after every draw, so they are resampled together. Arrays of one
    shape are resampled alike.

    Args:
        squared: Squared residuals, shape (n_draws, n_stars).
        n_resamplings: 1,000 fix the ends of a 95 % interval to about 3 % of it.
    """
    rng, (n_draws, n_stars) = np.random.default_rng(0), squared.shape
    found = []
    for _ in range(n_resamplings):
        times = np.bincount(rng.integers(n_stars, size=n_stars), minlength=n_stars)
        rmse = np.sqrt(squared @ times / n_stars)
        found.append(rmse[rng.integers(n_draws, size=n_draws)].mean())
    return np.array(found)


def central_95(resampled: np.ndarray) -> list[float]:
    return [float(end) for end in np.quantile(resampled, [0.025, 0.975])]


def mean_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean over draws (Student's t); None of one draw."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


def coverage_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n stars (`metrics.binomial_interval`): the draws share their test stars, so n is not
    more for many of them."""
    return binomial_interval(round(share * n), n, 0.95)


def label_figures(plan: BenchmarkPlan, task: Task) -> dict[str, Any]:
    """Each label that the pool has, learned by the network from 100 stars of each draw: mean figures."""
    told = {}
    for name in task.extractor.label_names:
        column, label = task.column(name), get_label(name)
        if np.isfinite(task.pool.labels[:, column]).sum() < MAIN_SIZE:
            continue
        every = []
        for seed in range(plan.n_seeds):
            answer, _ = read_by_network(task, task.draw(MAIN_SIZE, seed), name)
            truth, errors = task.test.labels[:, column], task.test.label_errors[:, column]
            every.append(summarise(label, answer.mean, truth, answer.sigma, errors))
        told[name] = {"unit": label.unit} | {
            key: float(np.mean([figure[key] for figure in every])) for key in ("rmse", "bias", "scatter", "coverage68")
        }
    return told


def table(results: Mapping[str, Any]) -> str:
    """One table per protocol, as text: RMSE over the draws, and the 95 % interval of its mean, see
    `resampled_rmse`."""
    lines = []
    for name, told in results["protocols"].items():
        if not told["methods"]:
            lines += ["", f"{name}: left out, {told.get('left_out', '')}"]
            continue
        lines += ["", f"{name}: {told['what']}", f"RMSE in dex, mean of {len(told['seeds'])} draws of 100 stars", ""]
        lines.append(f"{'method':36} {'all':>8} {'metal-poor':>12} {'95 %':>16} {'metal-rich':>12} {'68 % holds':>11}")
        for method, figure in told["methods"].items():
            if "left_out" in figure:
                lines.append(f"{METHOD_NAMES.get(method, method):36} {figure['left_out']}")
                continue
            poor = figure["metal_poor"].get("rmse_ci95")
            interval = "" if poor is None else f"{poor[0]:.3f}-{poor[1]:.3f}"
            numbers = [figure[subset]["rmse"] for subset in SUBSETS]
            written = ["    -" if value is None else f"{value:.3f}" for value in numbers]
            held = figure["all"]["coverage68"]
            inside = "-" if held is None else f"{held:.2f}"
            columns = f"{written[0]:>8} {written[1]:>12} {interval:>16} {written[2]:>12} {inside:>11}"
            lines.append(f"{METHOD_NAMES.get(method, method):36} {columns}")
    return "\n".join(lines)
