"""Stream a dataset of spectra from the Hub, or from a folder, into a plain PyTorch loop: nothing is downloaded first.

    python training/examples/stream_loop.py NAMESPACE/DATASET --revision COMMIT --model runs/transfer/1-synthetic

The dataset is one that `spectrafm build` made. Its rows come shuffled, and without end.
"""

import argparse
import sys
import time
from itertools import islice

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor, AutoModel

from spectrafm_hf.builders.grids import read_wavelength_grid
from spectrafm_hf.collation import SpectrumCollator
from spectrafm_hf.loading import stream_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a Hub repository or a folder")
    parser.add_argument("--revision", default="main", help="of the repository; a commit hash pins it")
    parser.add_argument("--config", help="of the dataset (default: its default)")
    parser.add_argument("--model", required=True, help="the model to go on from: a folder or a Hub repository")
    parser.add_argument("--model-revision", default="main", help="of its repository")
    parser.add_argument("--output", help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=100, help="of the optimiser (default: 100)")
    parser.add_argument("--batch-size", type=int, default=32, help="spectra per step (default: 32)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="default: 1e-4")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows (default: 0)")
    asked = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(asked.model, revision=asked.model_revision).to(device).train()
    extractor = AutoFeatureExtractor.from_pretrained(asked.model, revision=asked.model_revision)
    stream = load_dataset(asked.dataset, asked.config, split="train", streaming=True, revision=asked.revision)
    rows = stream_rows(stream, extractor, read_wavelength_grid(asked.dataset, asked.revision), seed=asked.seed)
    batches = DataLoader(rows, batch_size=asked.batch_size, collate_fn=SpectrumCollator(extractor))
    optimiser = torch.optim.AdamW(model.parameters(), lr=asked.learning_rate)

    start = time.monotonic()
    for step, batch in enumerate(islice(batches, asked.steps), start=1):
        loss = model(**{name: values.to(device) for name, values in batch.items()}).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 0 or step == asked.steps:
            rate = step * asked.batch_size / (time.monotonic() - start)
            print(f"step {step}: loss {loss.item():.3f} nats per label, {rate:.0f} spectra/s", flush=True)
    if asked.output:
        model.save_pretrained(asked.output)
        extractor.save_pretrained(asked.output)
        print(f"saved to {asked.output}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
