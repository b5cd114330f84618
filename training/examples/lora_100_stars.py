"""LoRA on 100 stars of your own table: low-rank matrices and the readouts learn, all else of the parent stays.

    python training/examples/lora_100_stars.py stars.parquet --model runs/transfer/2-observed --output runs/lora

The table is that of own_table.py. The adapter goes to the output folder; merged into its parent, as an ordinary model,
to its folder `merged`. Needs peft: pip install "spectrafm_hf[peft]".
"""

import argparse
import sys

import numpy as np
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Subset
from transformers import AutoFeatureExtractor, AutoModel, Trainer, TrainingArguments, set_seed

from spectrafm_hf.collation import SpectrumCollator
from spectrafm_hf.labels import get_label
from spectrafm_hf.loading import StoredSpectra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="Parquet file, see own_table.py")
    parser.add_argument("--model", required=True, help="the parent: a folder or a Hub repository")
    parser.add_argument("--model-revision", default="main", help="of a Hub parent; a commit hash pins it")
    parser.add_argument("--wavelength", help="text file of the common grid; without it, the table's column is read")
    parser.add_argument("--output", required=True, help="folder of the adapter")
    parser.add_argument("--stars", type=int, default=100, help="how many to learn from (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice and of the training (default: 0)")
    parser.add_argument("--rank", type=int, default=8, help="of the matrices (default: 8)")
    parser.add_argument("--epochs", type=float, default=30, help="how often each star is shown (default: 30)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="default: 1e-3")
    asked = parser.parse_args()

    parent = {"pretrained_model_name_or_path": asked.model, "revision": asked.model_revision}
    extractor = AutoFeatureExtractor.from_pretrained(**parent)
    table = load_dataset("parquet", data_files=asked.table, split="train")
    rows = StoredSpectra(table, extractor, np.loadtxt(asked.wavelength) if asked.wavelength else None)
    rows[0]  # if a column is missing, it is told now
    has_label = table.select_columns(extractor.label_names).to_pandas().notna().any(axis=1).to_numpy()
    star_of = np.array(table["object_id"])
    stars = np.unique(star_of[has_label])
    if len(stars) <= asked.stars:
        raise ValueError(
            f"more than {asked.stars} stars with a label are needed, {asked.stars} to learn from and the others to "
            f"check, got {len(stars)}; lower --stars."
        )
    is_chosen = np.isin(star_of, np.random.default_rng(asked.seed).choice(stars, asked.stars, replace=False))

    set_seed(asked.seed)  # adapters begin at random
    adapted = get_peft_model(
        AutoModel.from_pretrained(**parent),
        LoraConfig(
            r=asked.rank,
            lora_alpha=2 * asked.rank,
            target_modules=["q_proj", "v_proj"],  # of every attention, in encoder and decoder
            modules_to_save=["head"],  # the readouts are small, and learn as they are
        ),
        revision=asked.model_revision,  # kept in the adapter, beside the parent's name
    )
    n_trained, n_all = adapted.get_nb_trainable_parameters()
    print(f"{asked.stars} stars train {n_trained:,} of {n_all:,} parameters")
    arguments = TrainingArguments(
        asked.output,
        num_train_epochs=asked.epochs,
        learning_rate=asked.learning_rate,
        per_device_train_batch_size=32,
        warmup_steps=0.1,  # of all steps
        logging_steps=10,
        save_strategy="no",
        seed=asked.seed,
        remove_unused_columns=False,  # the collator reads the rows, not the model
        label_names=["labels", "label_errors"],
        prediction_loss_only=True,
    )
    collate = SpectrumCollator(extractor)
    trainer = Trainer(
        adapted,
        arguments,
        train_dataset=Subset(rows, np.flatnonzero(has_label & is_chosen)),
        eval_dataset=Subset(rows, np.flatnonzero(has_label & ~is_chosen)),
        data_collator=collate,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"{len(stars) - asked.stars} other stars: loss {before:.3f} -> {after:.3f} nats per label")
    adapted.save_pretrained(asked.output)
    extractor.save_pretrained(asked.output)

    merged = PeftModel.from_pretrained(AutoModel.from_pretrained(**parent), asked.output).merge_and_unload()
    merged.save_pretrained(f"{asked.output}/merged")
    extractor.save_pretrained(f"{asked.output}/merged")
    batch = collate([rows[number] for number in np.flatnonzero(is_chosen)])
    with torch.no_grad():
        by_adapter, by_merged = (model.cpu().eval()(**batch) for model in (adapted, merged))
    by_adapter = extractor.decode_labels(by_adapter.label_mean)
    print(f"{star_of[is_chosen][0]} by {asked.output}/merged:")
    for name, label in extractor.decode_labels(by_merged.label_mean, by_merged.label_log_var).items():
        apart, unit = np.abs(label["value"] - by_adapter[name]["value"]).max(), get_label(name).unit
        print(
            f"{name:6} {label['value'][0]:8.2f} +- {label['sigma'][0]:.2f} {unit}; "
            f"adapter and merged model agree to {apart:.0e} {unit}"
        )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
