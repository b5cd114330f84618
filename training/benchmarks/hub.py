"""Times of pushing and loading over the Hub, against what `push_to_hub` does by default, on a Hub on this machine.

    python -m training.benchmarks.hub --json hub.json          a model of 20 MB and a dataset of 1 GB, about 5 minutes
    python -m training.benchmarks.hub --quick                  the same with 60 MB of spectra

The Hub runs in a process of its own and has the loopback for a network, so that what is measured is the work of the
clients: encoding, hashing, sending, decoding. Ratios of one run are what to look at.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOKEN = "hf_benchmarkTOKEN000000"
SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from hub.local_hub import LocalHub
with LocalHub(sys.argv[2]) as hub:
    hub.add_user("astro", sys.argv[3])
    print(hub.url, flush=True)
    sys.stdin.read()
"""
WIDE = {
    "hidden_size": 320,
    "encoder_heads": [4] * 3,
    "encoder_sizes": [1280] * 3,
    "decoder_heads": [4],
    "decoder_sizes": [1280],
}
"""An architecture of about 20 MB."""


@contextmanager
def serving(folder: Path):
    """A Hub in a process of its own; its address."""
    told = [sys.executable, "-c", SERVE, str(ROOT / "tests"), str(folder), TOKEN]
    with subprocess.Popen(told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()
            server.wait()


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(work: Path, n_spectra: int) -> dict[str, Any]:
    """All times; the environment knows the Hub already, before huggingface_hub is imported."""
    import datasets
    import torch
    from huggingface_hub import HfApi
    from transformers import AutoModel

    from spectrafm_hf import SpectraFMConfig, SpectraFMFeatureExtractor, SpectraFMForLabelPrediction
    from spectrafm_hf.builders.build import build_dataset
    from spectrafm_hf.builders.synthetic import SyntheticConfig
    from spectrafm_hf.hub import load_pretrained, push

    datasets.disable_progress_bars()
    model = SpectraFMForLabelPrediction(SpectraFMConfig(**WIDE))
    folder = work / "model"
    model.save_pretrained(folder)
    SpectraFMFeatureExtractor().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model of random weights\n")
    rows = {"model: size, MB": ((folder / "model.safetensors").stat().st_size / 1e6, None)}

    def ours_again() -> None:
        load_pretrained("astro/ours")

    rows["model: push, s"] = (
        seconds(lambda: push(folder, "astro/ours")), seconds(lambda: model.push_to_hub("astro/default", private=True)),
    )  # fmt: skip
    rows["model: load, nothing cached, s"] = (
        seconds(ours_again), seconds(lambda: AutoModel.from_pretrained("astro/default")),
    )  # fmt: skip
    rows["model: load, cached, s"] = (
        seconds(ours_again), seconds(lambda: AutoModel.from_pretrained("astro/default")),
    )  # fmt: skip
    rows["model: push again, unchanged, s"] = (
        seconds(lambda: push(folder, "astro/ours")), seconds(lambda: model.push_to_hub("astro/default")),
    )  # fmt: skip
    assert torch.equal(load_pretrained("astro/ours")[0].head.mean_bias, model.head.mean_bias)

    built = work / "spectra"
    config = SyntheticConfig(n=n_spectra, backend="cannon")
    build_s = seconds(lambda: build_dataset([config], built, num_proc=2))
    stored = datasets.load_dataset(str(built), cache_dir=str(work / "arrow"))  # as `push_to_hub` wants it
    rows["dataset: push, s"] = (
        seconds(lambda: push(built, "astro/spectra")),
        seconds(lambda: stored.push_to_hub("astro/default-spectra", private=True)),
    )

    def size(repo: str) -> float:
        return sum(s.size or 0 for s in HfApi().dataset_info(repo, files_metadata=True).siblings) / 1e6

    def first_batch(repo: str) -> None:
        stream = datasets.load_dataset(repo, split="train", streaming=True).with_format("numpy")
        next(iter(stream.iter(256)))

    def one_pass(repo: str) -> None:
        stream = datasets.load_dataset(repo, split="train", streaming=True).with_format("numpy")
        n = sum(len(batch["object_id"]) for batch in stream.iter(256))
        assert n == stored["train"].num_rows

    pair = "astro/spectra", "astro/default-spectra"
    rows["dataset: size on the Hub, MB"] = tuple(map(size, pair))
    rows["dataset: first batch of 256, s"] = tuple(seconds(lambda r=repo: first_batch(r)) for repo in pair)
    rows["dataset: one streamed pass, s"] = tuple(seconds(lambda r=repo: one_pass(r)) for repo in pair)
    rows["dataset: push again, unchanged, s"] = (
        seconds(lambda: push(built, "astro/spectra")),
        seconds(lambda: stored.push_to_hub("astro/default-spectra")),
    )
    return {
        "rows": {name: {"ours": ours, "default": default} for name, (ours, default) in rows.items()},
        "n_spectra": n_spectra,
        "dataset_build_s": build_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="60 MB of spectra instead of 1 GB")
    parser.add_argument("--n", type=int, help="number of spectra, instead of either")
    parser.add_argument("--work", type=Path, help="where to put about 6 GB for a while (default: the temporary folder)")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="spectrafm-hub-", dir=asked.work) as work,
        serving(Path(work) / "hub") as url,
    ):
        os.environ |= {
            "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HOME": str(Path(work) / "home"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        figures = measure(Path(work), asked.n or (1_700 if asked.quick else 28_000))
    figures["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(f"{'':38}{'ours':>10}{'default':>10}{'ratio':>8}")
    for name, row in figures["rows"].items():
        ours, default = row["ours"], row["default"]
        cells = f"{ours:10.2f}" + ("" if default is None else f"{default:10.2f}{default / ours:8.2f}")
        print(f"{name:38}{cells}")
    print(f"built {figures['n_spectra']:,} spectra in {figures['dataset_build_s']:.1f} s")
    if asked.json:
        from spectrafm_hf.builders.parquet_layout import write_json

        write_json(asked.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
