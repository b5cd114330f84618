"""Fine-tune SpectraFM on your own table of spectra, with a stock `Trainer`.

    python training/examples/own_table.py stars.parquet --model runs/transfer/2-observed --output runs/own-table

The table has one row per star (or visit): object_id, flux (any unit), bad_pixel (True = do not trust), and for each
label of the model two columns, say teff and teff_err (K; logg, fe_h and their errors: dex; null = not known). The
wavelengths, vacuum Angstrom and rest frame, are a column as well, or a text file with the grid that all rows share.
"""

import argparse
import sys

import numpy as np
import torch
from datasets import load_dataset
from torch.utils.data import Subset
from transformers import AutoFeatureExtractor, AutoModel, Trainer, TrainingArguments

from spectrafm_hf.builders.splits import splits_of
from spectrafm_hf.collation import SpectrumCollator
from spectrafm_hf.labels import get_label
from spectrafm_hf.loading import StoredSpectra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="Parquet file")
    parser.add_argument("--model", required=True, help="the parent: a folder or a Hub repository")
    parser.add_argument("--model-revision", default="main", help="of a Hub parent; a commit hash pins it")
    parser.add_argument("--wavelength", help="text file of the common grid; without it, the table's column is read")
    parser.add_argument("--output", required=True, help="folder of the fine-tuned model")
    parser.add_argument("--epochs", type=float, default=10, help="how often each star is shown (default: 10)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="default: 1e-4")
    parser.add_argument("--batch-size", type=int, default=32, help="spectra per step (default: 32)")
    asked = parser.parse_args()

    model = AutoModel.from_pretrained(asked.model, revision=asked.model_revision)
    extractor = AutoFeatureExtractor.from_pretrained(asked.model, revision=asked.model_revision)
    extractor.sigma_factors, extractor.recalibration, extractor.learned_ranges = {}, None, {}  # were of the parent
    table = load_dataset("parquet", data_files=asked.table, split="train")
    rows = StoredSpectra(table, extractor, np.loadtxt(asked.wavelength) if asked.wavelength else None)
    star = rows[0]  # if a column is missing, it is told now
    is_test = splits_of(np.array(table["object_id"])) == "test"  # by name: two visits of a star are never parted
    arguments = TrainingArguments(
        asked.output,
        num_train_epochs=asked.epochs,
        learning_rate=asked.learning_rate,
        per_device_train_batch_size=asked.batch_size,
        warmup_steps=0.1,  # of all steps
        logging_steps=10,
        save_strategy="no",
        remove_unused_columns=False,  # the collator reads the rows, not the model
        label_names=["labels", "label_errors"],
        prediction_loss_only=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Subset(rows, np.flatnonzero(~is_test)),
        eval_dataset=Subset(rows, np.flatnonzero(is_test)),
        data_collator=SpectrumCollator(extractor),
        processing_class=extractor,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    model.save_pretrained(asked.output)
    extractor.save_pretrained(asked.output)
    print(f"{is_test.sum()} stars held out: loss {before:.3f} -> {after:.3f} nats per label")

    model, extractor = AutoModel.from_pretrained(asked.output), AutoFeatureExtractor.from_pretrained(asked.output)
    with torch.no_grad():
        answer = model(**SpectrumCollator(extractor)([star]))
    print(f"{table['object_id'][0]} by {asked.output}:")
    for name, label in extractor.decode_labels(answer.label_mean, answer.label_log_var).items():
        print(f"{name:6} {label['value'][0]:8.2f} +- {label['sigma'][0]:.2f} {get_label(name).unit}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
