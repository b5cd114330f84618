"""Built datasets -> training rows: the same rows whether streamed or kept on disk, for the collator of `collation`.

    stream = load_dataset(repo, "synthetic", split="train", streaming=True)
    rows = stream_rows(stream, feature_extractor, read_wavelength_grid(repo), seed=0)
    Trainer(..., train_dataset=rows, data_collator=SpectrumCollator(feature_extractor))

What comes back is a `datasets.IterableDataset`, so a stock `Trainer` knows it. Two things to set for several processes
(`torchrun`): `accelerator_config={"dispatch_batches": False}`, and at least as many shards as processes. accelerate
then hands each rank its own shards; otherwise rank 0 reads everything for all.

**Resuming is exact** in the default mode (endless, shuffled): the stream is a function of its seed, and a resumed
`Trainer` replays it up to where it stopped. `IterableDataset.state_dict` resumes without replaying, but loses what
stood in the shuffle buffer; it is exact only without shuffling.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from .collation import Row, draw_window, row_generator
from .feature_extraction_spectrafm import Pixels, SpectraFMFeatureExtractor

logger = logging.getLogger(__name__)

INPUTS = SpectraFMFeatureExtractor.model_input_names


class RowEncoder:
    """Columns of a built dataset -> rows for `SpectrumCollator`.

    Args:
        feature_extractor: Gives pixels, normalisation, label names and scale.
        wavelength: Grid that all rows share, shape (n_pixels,), vacuum Angstrom; None = each row brings its own.
        window: Part of the spectrum shown, vacuum Angstrom; None = all of it.
        context: Tokens shown at once, as a window drawn at random (tokens of one pixel: scattered); None = all.
        seed: Of that draw, which depends on the star and its place in the set, and on nothing else.
        label_error: 1-sigma of all labels, scaled units, instead of the published ones: for synthetic stars, whose
            labels are true. None = as published.
        learned: Labels that the rows tell; the model's others count as missing, and need no column. None = all.

    Raises:
        ValueError: The window lies outside the model's range.
    """

    def __init__(
        self,
        feature_extractor: SpectraFMFeatureExtractor,
        wavelength: np.ndarray | None = None,
        window: Sequence[float] | None = None,
        context: int | None = None,
        seed: int = 0,
        label_error: float | None = None,
        learned: Sequence[str] | None = None,
    ):
        self.learned = feature_extractor.label_names if learned is None else list(learned)
        self.feature_extractor, self.wavelength = feature_extractor, wavelength
        self.window, self.context, self.seed, self.label_error = window, context, seed, label_error
        low, high = feature_extractor.wavelength_range
        if window is not None and not (window[0] <= high and window[1] >= low):
            raise ValueError(
                f"the window {window[0]:.0f}-{window[1]:.0f} lies outside the model's {low:.0f}-{high:.0f} vacuum "
                "Angstrom."
            )

    def __call__(self, columns: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> list[Row | None]:
        """Rows ready for the collator; None where no good pixel is left.

        Args:
            columns: `object_id`, `flux`, `bad_pixel`, label columns; `wavelength` where there is no common grid; the
                uncertainty is told from `ivar` and the resolution from `resolving_power` where they are there.
            indices: Place of each row in the set.

        Raises:
            ValueError: A column is missing.
        """
        self._check(columns)
        missing = [None] * len(indices)
        labels, errors = (
            np.column_stack(
                [
                    numbers(columns[name + suffix] if name in self.learned else missing, len(indices))
                    for name in self.feature_extractor.label_names
                ]
            )
            for suffix in ("", "_err")
        )
        encoded, encoded_errors = self.feature_extractor.encode_labels(labels, errors)
        if self.label_error is not None:
            encoded_errors = np.full_like(encoded_errors, self.label_error)
        rows: list[Row | None] = []
        for i, index in enumerate(indices):
            try:
                row = self._show(columns, i, index)
            except ValueError as error:
                logger.warning("row %d, %s, is left out: %s", index, columns["object_id"][i], error)
                rows.append(None)
                continue
            rows.append(row | {"labels": encoded[i], "label_errors": encoded_errors[i]})
        return rows

    def _check(self, columns: Mapping[str, Sequence[Any]]) -> None:
        labels = [name + suffix for name in self.learned for suffix in ("", "_err")]
        needed = ["object_id", "flux", "bad_pixel", *labels] + (["wavelength"] if self.wavelength is None else [])
        if missing := [name for name in needed if name not in columns]:
            hint = (
                " Give the grid all rows share: builders.grids.read_wavelength_grid." if "wavelength" in missing else ""
            )
            raise ValueError(f"the dataset lacks {', '.join(missing)}; it has {', '.join(columns)}.{hint}")

    def _show(self, columns: Mapping[str, Sequence[Any]], row: int, index: int) -> Row:
        extractor, star = self.feature_extractor, str(columns["object_id"][row])
        wavelength = columns["wavelength"][row] if self.wavelength is None else self.wavelength
        told = {name: columns[name][row] for name in ("ivar", "resolving_power") if name in columns}
        pixels = extractor.place(
            columns["flux"][row],
            wavelength,
            columns["bad_pixel"][row],
            None if told.get("ivar") is None else _errors(told["ivar"]),
            told.get("resolving_power"),
        )
        if self.window is not None:
            low, high = self.window
            pixels = pixels.only((pixels.wavelength >= low) & (pixels.wavelength <= high))
        if self.context is not None and pixels.good.any():
            # The pseudo-continuum must not see beyond the window either, so what is hidden goes first.
            pixels = self._draw_context(pixels, self.context, self._generator(star, index))
        return extractor.tokenise(pixels)

    def _draw_context(self, pixels: Pixels, context: int, rng: np.random.Generator) -> Pixels:
        """A window of `context` tokens; of single pixels, as many scattered ones, as the paper has it."""
        patch, seen = self.feature_extractor.patch_size, np.flatnonzero(pixels.good)
        if patch == 1:
            shown = np.zeros(pixels.good.size, dtype=bool)
            shown[rng.permutation(seen)[:context]] = True
            return pixels.only(shown)
        # On a common grid tokens start at fixed pixels; on a spectrum's own pixels the window may start at any.
        step = patch if self.feature_extractor.has_grid else 1
        first, n = int(seen[0]) // step, int(seen[-1]) // step - int(seen[0]) // step + 1
        window = draw_window(rng, n, min(context * patch // step, n))
        run = slice((first + window.start) * step, (first + window.stop) * step)
        if step == 1:
            return pixels.cut(run)
        shown = np.zeros(pixels.good.size, dtype=bool)
        shown[run] = True
        return pixels.only(shown)

    def _generator(self, star: str, index: int) -> np.random.Generator:
        """The star's name enters, since two ranks count their rows alike."""
        name = int.from_bytes(hashlib.sha256(star.encode()).digest()[:8], "big")
        return row_generator((self.seed + name) % 2**64, index)


def stream_rows(
    dataset: datasets.IterableDataset,
    feature_extractor: SpectraFMFeatureExtractor,
    wavelength: np.ndarray | None = None,
    seed: int = 0,
    buffer_size: int = 1000,
    endless: bool = True,
    window: Sequence[float] | None = None,
    context: int | None = None,
    label_error: float | None = None,
    learned: Sequence[str] | None = None,
) -> datasets.IterableDataset:
    """A streamed dataset as training rows.

    Args:
        dataset: Of `load_dataset(..., streaming=True)`.
        feature_extractor, wavelength, window, context, label_error, learned: See `RowEncoder`.
        seed: Decides the order and the windows.
        buffer_size: Rows among which the next one is drawn; 0 = no shuffling. 1,000 APOGEE rows take 70 MB.
        endless: Start again when all rows were seen (training counts steps). False = one pass, for evaluation.

    Raises:
        ValueError: See `RowEncoder`.
    """
    encoder = RowEncoder(feature_extractor, wavelength, window, context, seed, label_error, learned)
    return stream_encoded(dataset, encoder, wavelength is not None, seed, buffer_size, endless)


def stream_encoded(
    dataset: datasets.IterableDataset,
    encoder: Callable[[Mapping[str, Sequence[Any]], Sequence[int]], Sequence[Row | None]],
    shared_grid: bool,
    seed: int = 0,
    buffer_size: int = 1000,
    endless: bool = True,
    batch_size: int = 64,
) -> datasets.IterableDataset:
    """A streamed dataset as whatever rows `encoder` makes of its columns, a batch at a time; None is left out.

    Args:
        encoder: Columns of some rows and their places in the stream -> rows; not necessarily as many.
        shared_grid: Rows bring no wavelengths of their own.
        seed, buffer_size, endless: See `stream_rows`.
        batch_size: Rows given to the encoder at once.
    """
    rows = dataset.with_format("numpy" if shared_grid else None)  # which would cut wavelengths to float32
    if endless:
        rows = rows.repeat(None)

    def encode(columns: Mapping[str, Sequence[Any]], indices: list[int]) -> dict[str, list[Any]]:
        kept = [row for row in encoder(columns, indices) if row is not None]
        names = dict.fromkeys((*INPUTS, "labels", "label_errors"))
        names |= {name: None for row in kept for name in row}
        nothing = np.float32(0)  # what is not known of a row's pixels
        return {name: [row.get(name, np.full(len(row["flux"]), nothing)) for row in kept] for name in names}

    rows = rows.map(encode, batched=True, batch_size=batch_size, with_indices=True, remove_columns=dataset.column_names)
    rows = rows.with_format(None)  # arrays as they are: the NumPy format would make float32 of wavelengths
    if buffer_size:
        # After the encoding, where rows are arrays and cheap to move; from one shard at a time, since interleaving
        # shards takes rows one by one out of Arrow (260 against 1,200 rows/s with 7,514 pixels).
        rows = rows.shuffle(seed=seed, buffer_size=buffer_size, max_buffer_input_shards=1)
    return rows


class StoredSpectra(Dataset):
    """A dataset on disk (`load_dataset` without streaming) as training rows, in any order.

    Args:
        dataset: One split; a shuffling sampler may ask for rows in any order.
        feature_extractor, wavelength, window, context, seed: See `RowEncoder`.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        feature_extractor: SpectraFMFeatureExtractor,
        wavelength: np.ndarray | None = None,
        seed: int = 0,
        window: Sequence[float] | None = None,
        context: int | None = None,
    ):
        self.encoder = RowEncoder(feature_extractor, wavelength, window, context, seed)
        # Arrays straight from Arrow, unless rows bring wavelengths, which the NumPy format would cut to float32.
        self.dataset = dataset.with_format(None if wavelength is None else "numpy")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Rows of these numbers.

        Raises:
            ValueError: A row has no good pixel in the window: a batch of fixed size cannot leave it out.
        """
        rows = self.encoder(self.dataset[list(indices)], indices)
        for index, row in zip(indices, rows, strict=True):
            if row is None:
                raise ValueError(
                    f"row {index} has no good pixel in the window; filter such rows out of the dataset, or stream it "
                    "(stream_rows leaves them out)."
                )
        return [row for row in rows if row is not None]

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]


def _errors(ivar: Any) -> np.ndarray:
    """Inverse variance -> 1-sigma, 0 = not known; shape (n_pixels,)."""
    ivar = np.asarray(ivar, dtype=np.float64)
    return np.where(ivar > 0, 1 / np.sqrt(np.where(ivar > 0, ivar, 1.0)), 0.0)


def numbers(values: Any, n: int) -> np.ndarray:
    """A column of `n` rows -> float64 with NaN where missing."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64).reshape(n)
