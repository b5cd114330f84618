"""Train from a streamed dataset with a stock `Trainer`, on one process or, by the launch scripts beside it, on many.

    python training/examples/stream_trainer.py DATASET --revision COMMIT --model PARENT --output FOLDER

Every process reads its own shards, so there must be at least as many of those. A killed run goes on from its last
checkpoint by the same command, and ends with the weights it would have had. Needs pip install "spectrafm_hf[transfer]".
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoFeatureExtractor, AutoModel, Trainer, TrainingArguments

from spectrafm_hf.builders.grids import read_wavelength_grid
from spectrafm_hf.collation import SpectrumCollator
from spectrafm_hf.loading import stream_rows
from spectrafm_hf.stages import last_checkpoint, leave_process_group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a Hub repository or a folder, made by `spectrafm build`")
    parser.add_argument("--revision", default="main", help="of the repository; a commit hash pins it")
    parser.add_argument("--config", help="of the dataset (default: its default)")
    parser.add_argument("--model", required=True, help="the parent: a folder or a Hub repository")
    parser.add_argument("--model-revision", default="main", help="of a Hub parent")
    parser.add_argument("--output", required=True, help="folder of the model and its checkpoints, seen by all nodes")
    parser.add_argument("--steps", type=int, default=1000, help="of the optimiser (default: 1000)")
    parser.add_argument("--save-steps", type=int, default=500, help="between checkpoints (default: 500)")
    parser.add_argument("--batch-size", type=int, default=32, help="spectra per step and process (default: 32)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="default: 1e-4")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows (default: 0)")
    asked = parser.parse_args()

    arguments = TrainingArguments(
        asked.output,
        max_steps=asked.steps,  # the stream has no end
        per_device_train_batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        warmup_steps=0.05,  # of all steps
        logging_steps=10,
        save_steps=asked.save_steps,
        save_total_limit=2,
        seed=asked.seed,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),  # unsaid, several processes on CPUs do not find each other
        remove_unused_columns=False,  # the collator reads the rows, not the model
        ddp_find_unused_parameters=False,  # every step uses them all
        accelerator_config={"dispatch_batches": False},  # else the first process reads for all
    )
    model = AutoModel.from_pretrained(asked.model, revision=asked.model_revision)
    extractor = AutoFeatureExtractor.from_pretrained(asked.model, revision=asked.model_revision)
    stream = load_dataset(asked.dataset, asked.config, split="train", streaming=True, revision=asked.revision)
    if stream.num_shards < arguments.world_size:
        raise ValueError(
            f"at least as many shards as processes are needed, got {stream.num_shards} and {arguments.world_size}; "
            "start fewer, or build the dataset in more shards."
        )
    grid = read_wavelength_grid(asked.dataset, asked.revision)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=stream_rows(stream, extractor, grid, seed=asked.seed),
        data_collator=SpectrumCollator(extractor),
        processing_class=extractor,
    )
    checkpoint = last_checkpoint(Path(asked.output))
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_world_process_zero():
        model.save_pretrained(asked.output)
        extractor.save_pretrained(asked.output)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per label; saved to {asked.output}")
    weights = hashlib.sha256(b"".join(weight.detach().cpu().numpy().tobytes() for weight in model.parameters()))
    # The same on all processes, or something is wrong.
    print(f"process {arguments.process_index + 1} of {arguments.world_size}: weights {weights.hexdigest()[:12]}")


if __name__ == "__main__":
    message = None
    try:
        main()
    except (ValueError, OSError) as error:
        message = f"error: {error}"
    finally:
        leave_process_group()  # the last thing that one process of several does
    sys.exit(message)
