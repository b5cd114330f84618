"""How fast the model is: the paper's network against a plain one, a whole star, many tokens, memory.

    python -m training.benchmarks.model --json results.json [--quick]

About eight minutes on two cores, with `--quick` under two. Everything is measured in one run. The two sides of a ratio
take turns, since timings on shared machines drift, and each is taken at its best batch size; of several rounds the
fastest counts, for both. The oracle is `tests/paper_oracle.py`: the published architecture in plain eager float32
PyTorch with nn.MultiheadAttention, one label per spectrum and step, as published. Ours answers five labels.
"""

from __future__ import annotations

import argparse
import json
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
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spectrafm_hf import SpectraFMConfig, SpectraFMFeatureExtractor, SpectraFMForLabelPrediction
from spectrafm_hf.spectra import apogee_wavelength

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from paper_oracle import PaperOracle, published_loss  # noqa: E402

CONTEXT, N_CONTEXTS = 512, 15
TOKENS = (512, 1024, 2048, 4096, 7514)
FIVE = ("teff", "logg", "o_fe", "mg_fe", "fe_h")
LABEL_TOKENS = torch.arange(7515, 7520)
Step = Callable[[], Any]


def say(text: str = "") -> None:
    print(text, flush=True)


def best_rates(sides: dict[str, tuple[Step, int]], seconds: float, rounds: int) -> dict[str, float]:
    """Items per second of each side, the fastest step of `rounds` turns of `seconds` each; sides: name -> step, items."""
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
    return {"flux": flux, "wavelength": torch.from_numpy(grid[chosen]), "attention_mask": torch.ones(n, n_pixels).long()}


def oracle_tokens(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.ones_like(batch["flux"]).long(), batch["flux"], batch["wavelength"]


def oracle_training(size: int) -> Step:
    model = PaperOracle().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
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


def paper_model() -> SpectraFMForLabelPrediction:
    return SpectraFMForLabelPrediction(SpectraFMConfig.paper())


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
    model.eval()

    def step() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
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
