"""How fast the model is: the paper's network against a plain one, a whole star, many tokens, memory.

    python -m training.benchmarks.model --json results.json [--quick]

About four minutes on two cores, with `--quick` under two. Everything is measured in one run. The two sides of a ratio
take turns, since timings on shared machines drift, and each is taken at its best batch size; of several rounds the
fastest counts, for both. The oracle is `tests/paper_oracle.py`: the published architecture in plain eager float32
PyTorch with nn.MultiheadAttention, one label per spectrum and step, as published. Ours answers five labels.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from spectrafm_hf import SpectraFMConfig, SpectraFMFeatureExtractor, SpectraFMForLabelPrediction
from spectrafm_hf.builders.parquet_layout import write_json
from spectrafm_hf.spectra import apogee_wavelength

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from paper_oracle import PaperOracle, published_loss

CONTEXT, N_CONTEXTS = 512, 15
TOKENS = (512, 1024, 2048, 4096, 7514)
FIVE = ("teff", "logg", "o_fe", "mg_fe", "fe_h")
LABEL_TOKENS = torch.arange(7515, 7520)
Step = Callable[[], Any]


def say(text: str = "") -> None:
    print(text, flush=True)


def best_rates(sides: dict[str, tuple[Step, int]], seconds: float, rounds: int) -> dict[str, float]:
    """Items per second of each side, the fastest step of `rounds` turns of `seconds` each.

    Args:
        sides: Name -> step, and the items it works through.
    """
    best = dict.fromkeys(sides, 0.0)
    for step, _ in sides.values():
        step()
    for _ in range(rounds):
        for name, (step, items) in sides.items():
            end = time.perf_counter() + seconds
            while True:
                start = time.perf_counter()
                step()
                now = time.perf_counter()
                best[name] = max(best[name], items / (now - start))
                if now > end:
                    break
    return best


def matmul_rate(dtype: torch.dtype) -> float:
    """Best GFLOP/s of a matrix product of 2048 x 2048 x 2048, and of the shapes of a feed-forward layer."""
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (8192, 256, 2048), (8192, 2048, 256)):
        one, other = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        rate = best_rates({"product": (lambda a=one, b=other: a @ b, 1)}, 0.5, 2)["product"]
        best = max(best, rate * 2 * rows * inner * columns / 1e9)
    return best


# ---------------------------------------------------------------- the paper's network


def spectra(n: int, n_pixels: int = CONTEXT) -> dict[str, torch.Tensor]:
    """Random pixels of the APOGEE grid, as the model's inputs."""
    rng = np.random.default_rng(0)
    grid = apogee_wavelength()
    chosen = np.stack([np.sort(rng.choice(grid.size, n_pixels, replace=False)) for _ in range(n)])
    flux = torch.from_numpy(rng.standard_normal((n, n_pixels)).astype(np.float32))
    return {
        "flux": flux,
        "wavelength": torch.from_numpy(grid[chosen]),
        "attention_mask": torch.ones(n, n_pixels).long(),
    }


def oracle_tokens(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.ones_like(batch["flux"]).long(), batch["flux"], batch["wavelength"]


def oracle_training(size: int) -> Step:
    model = PaperOracle().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as ours
    tokens, query = oracle_tokens(spectra(size)), LABEL_TOKENS[torch.randint(5, (size, 1))]
    labels, errors = torch.randn(size, 1), torch.full((size, 1), 0.1)

    def step() -> None:
        optimiser.zero_grad()
        published_loss(*model(*tokens, query), labels, errors).backward()
        optimiser.step()

    return step


def oracle_inference(size: int) -> Step:
    model, tokens = PaperOracle().eval(), oracle_tokens(spectra(size))

    def step() -> None:
        with torch.inference_mode():
            model(*tokens, LABEL_TOKENS[:1].expand(size, 1))

    return step


def paper_model(attention: str = "cache_sized") -> SpectraFMForLabelPrediction:
    model = SpectraFMForLabelPrediction(SpectraFMConfig.paper())
    model.set_attn_implementation(attention)
    return model


def training(model: SpectraFMForLabelPrediction, batch: dict[str, torch.Tensor], bf16: bool = True) -> Step:
    """A step of training on all five labels: float32 weights and optimiser, bfloat16 matrix products."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shape = (len(batch["flux"]), len(model.config.label_names))
    told = batch | {"labels": torch.randn(shape), "label_errors": torch.full(shape, 0.1)}

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(**told).loss
        loss.backward()
        optimiser.step()

    return step


def inference(model: SpectraFMForLabelPrediction, batch: dict[str, torch.Tensor], bf16: bool = True) -> Step:
    """All five labels, weights and states in bfloat16 as `from_pretrained(dtype=torch.bfloat16)` gives them."""
    model.eval()
    if bf16:
        model.to(torch.bfloat16)

    def step() -> None:
        with torch.inference_mode():
            model(**batch)

    return step


def at_best_size(make: Callable[[int], Step], sizes: tuple[int, ...], seconds: float) -> tuple[Step, int]:
    """The step whose batch size gives most items per second, and that size."""
    steps = {size: make(size) for size in sizes}
    rates = best_rates({str(size): (step, size) for size, step in steps.items()}, seconds, 2)
    best = max(steps, key=lambda size: rates[str(size)])
    return steps[best], best


def flops(step: Step) -> float:
    """Floating-point operations of the matrix products of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


# ---------------------------------------------------------------- a whole star


def paper_whole_star() -> Step:
    """The paper's way: 15 contexts of 512 pixels, one label asked for at a time."""
    model, tokens = PaperOracle().eval(), oracle_tokens(spectra(N_CONTEXTS))

    def step() -> None:
        with torch.inference_mode():
            for label in LABEL_TOKENS:
                model(*tokens, label.expand(N_CONTEXTS, 1))

    return step


def default_extractor() -> SpectraFMFeatureExtractor:
    return SpectraFMFeatureExtractor(FIVE, pixel_width=None, wavelength_range=(15_000.0, 17_000.0))


def default_model(patch_size: int | None = None) -> SpectraFMForLabelPrediction:
    sizes = {} if patch_size is None else {"patch_size": patch_size}
    return SpectraFMForLabelPrediction(SpectraFMConfig(label_names=FIVE, **sizes))


def whole_stars(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Flux (n, 7514) and wavelength of noisy stars."""
    wavelength = apogee_wavelength()
    noise = np.random.default_rng(0).standard_normal((n, wavelength.size))
    return 1 + 0.05 * noise, wavelength


# ---------------------------------------------------------------- memory


def single_tokens(n_tokens: int) -> Step:
    """One spectrum of `n_tokens` pixels, a twentieth of them missing, through our network with a token for each."""
    batch = spectra(1, n_tokens)
    batch["attention_mask"][:, ::20] = 0
    return inference(default_model(patch_size=1), batch)


def peak_memory(job: str) -> float:
    """Largest resident memory of a fresh process that runs a job twice, GB."""
    command = [sys.executable, "-m", "training.benchmarks.model", "--job", job]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return float(output.splitlines()[-1])


def run_job(job: str) -> None:
    """What `peak_memory` starts: prints the peak, less what the libraries take."""

    def resident() -> float:
        """High-water mark of this process, GB; getrusage would tell the parent's as well."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6

    name, size = job.split(":")
    before = resident()
    step = JOBS[name](int(size))
    step()
    step()
    say(f"{resident() - before:.3f}")


JOBS: dict[str, Callable[[int], Step]] = {
    "paper_training": lambda size: training(paper_model(), spectra(size)),
    "oracle_training": oracle_training,
    "tokens": single_tokens,
    "default_training": lambda size: training(default_model(), default_batch(size)),
}


def default_batch(size: int) -> dict[str, torch.Tensor]:
    return dict(default_extractor()(*whole_stars(size), return_tensors="pt"))


# ---------------------------------------------------------------- all of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and batch sizes: under two minutes")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.job is not None:
        run_job(arguments.job)
        return
    seconds, rounds = (0.7, 2) if arguments.quick else (2.0, 4)
    oracle_sizes, our_sizes = ((8,), (16,)) if arguments.quick else ((4, 8, 16, 32), (8, 16, 32))
    results: dict[str, Any] = {}

    float32, bf16 = matmul_rate(torch.float32), matmul_rate(torch.bfloat16)
    has_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    training_precision = "bfloat16 products, float32 weights and optimiser" if has_bf16 else "float32"
    precision = "bfloat16 weights and states" if has_bf16 else "float32"
    say(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    say(f"matrix products: {float32:.0f} GFLOP/s float32, {bf16:.0f} GFLOP/s bfloat16 ({bf16 / float32:.1f}x)\n")
    results |= {"float32_gflops": float32, "bf16_gflops": bf16}

    def compare(
        what: str, wanted: float, theirs: Callable[[int], Step], ours: Callable[[int], Step]
    ) -> tuple[float, float, int]:
        """Items per second of the oracle and of ours, and our best batch size."""
        their_step, their_size = at_best_size(theirs, oracle_sizes, seconds / 2)
        our_step, our_size = at_best_size(ours, our_sizes, seconds / 2)
        rates = best_rates({"theirs": (their_step, their_size), "ours": (our_step, our_size)}, seconds, rounds)
        ratio = rates["ours"] / rates["theirs"]
        say(f"{what:30} oracle {rates['theirs']:6.1f}/s (float32, batch {their_size})   ours {rates['ours']:6.1f}/s "
            f"(batch {our_size})   {ratio:.2f}x, wanted {wanted:g}")  # fmt: skip
        return rates["theirs"], rates["ours"], our_size

    theirs, ours, size = compare(
        "paper preset, training samples", 5, oracle_training, lambda n: training(paper_model(), spectra(n), has_bf16)
    )
    # Eager attention, whose products are all counted.
    per_sample = flops(training(paper_model("eager"), spectra(2), bf16=False)) / 2 / 1e9
    share = ours * per_sample / bf16
    say(f"{'':30} ours: {training_precision}; {per_sample:.1f} GFLOP per sample, {share:.0%} of the bfloat16 rate")
    results |= {"oracle_training_per_s": theirs, "paper_training_per_s": ours, "paper_train_ratio": ours / theirs}
    results |= {"bf16_share_training": share, "training_batch": size}

    theirs, ours, _ = compare(
        "paper preset, contexts", 4, oracle_inference, lambda n: inference(paper_model(), spectra(n), has_bf16)
    )
    say(f"{'':30} ours: {precision}, all five labels; the oracle answers one")
    results |= {"oracle_contexts_per_s": theirs, "paper_contexts_per_s": ours, "paper_inference_ratio": ours / theirs}

    n_stars = 32
    sides = {"paper": (paper_whole_star(), 1)}
    sides["default"] = (inference(default_model(), default_batch(n_stars), has_bf16), n_stars)
    flux, wavelength = whole_stars(n_stars)
    extractor = default_extractor()
    sides["extractor"] = (partial(extractor, flux, wavelength, return_tensors="pt"), n_stars)
    sides["default training"] = (training(default_model(), default_batch(16), has_bf16), 16)
    rates = best_rates(sides, seconds, rounds)
    ratio = rates["default"] / rates["paper"]
    n_tokens = default_batch(1)["flux"].shape[1] // default_model().config.patch_size
    say(f"\n{'whole H band, five labels':30} paper's way {rates['paper']:.2f} stars/s   default "
        f"{rates['default']:.0f} stars/s ({n_tokens} tokens)   {ratio:.0f}x, wanted 100")  # fmt: skip
    with_extractor = 1 / (1 / rates["default"] + 1 / rates["extractor"])
    say(f"{'':30} with extractor {with_extractor:.0f} stars/s; training {rates['default training']:.0f} stars/s")
    results |= {"whole_star_ratio": ratio, "default_stars_per_s": rates["default"]}
    results |= {"default_stars_per_s_with_extractor": with_extractor}
    results |= {"default_training_per_s": rates["default training"], "paper_way_stars_per_s": rates["paper"]}

    tokens = TOKENS[::2] if arguments.quick else TOKENS
    say("\none spectrum, a token for every pixel, a twentieth of them missing (our network, sdpa)")
    results |= {"tokens": list(tokens), "seconds": [], "tokens_peak_gb": []}
    for n in tokens:
        taken = 1 / best_rates({"one": (single_tokens(n), 1)}, seconds / 2, 1)["one"]
        peak = peak_memory(f"tokens:{n}")
        results["seconds"].append(taken)
        results["tokens_peak_gb"].append(peak)
        say(f"   {n:5} tokens {taken * 1e3:8.1f} ms   {peak:6.2f} GB")

    results["peak_gb"] = peak_memory(f"paper_training:{size}")
    results["oracle_peak_gb"] = peak_memory(f"oracle_training:{size}")
    results["default_peak_gb"] = peak_memory("default_training:16")
    say(f"\npeak memory of training, beside the libraries: paper preset {results['peak_gb']:.2f} GB, oracle "
        f"{results['oracle_peak_gb']:.2f} GB (batch {size}); default, whole H band "
        f"{results['default_peak_gb']:.2f} GB (batch 16)")  # fmt: skip
    if arguments.json is not None:
        write_json(arguments.json, results)
        say(f"figures in {arguments.json}")


if __name__ == "__main__":
    sys.exit(main())
