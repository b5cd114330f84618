"""The wavelengths of a published dataset, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import load_dataset

from .dataset_card import GRID_CONFIG
from .rows import WavelengthGrid


def read_grid(dataset: str | Path, revision: str | None = None) -> WavelengthGrid | None:
    """Pixels shared by all spectra of a dataset, with their line-spread function.

    Args:
        dataset: A folder made by `build_dataset`, or a repository on the Hub.
        revision: Of the repository.

    Returns:
        The grid, or None where each row brings its own `wavelength`.

    Raises:
        ValueError, FileNotFoundError: There is no such dataset, as `load_dataset` says.
    """
    try:
        rows = load_dataset(str(dataset), GRID_CONFIG, split="train", streaming=True, revision=revision)
    except ValueError as error:
        if GRID_CONFIG in str(error) and "not found" in str(error):
            return None
        raise
    (row,) = rows
    sigma = row["lsf_sigma"]
    return WavelengthGrid(
        np.asarray(row["wavelength"], dtype=np.float64),
        row["survey"],
        None if sigma is None else np.asarray(sigma, dtype=np.float64),
        row["resolving_power"],
    )


def read_wavelength_grid(dataset: str | Path, revision: str | None = None) -> np.ndarray | None:
    """`read_grid`'s wavelengths alone: shape (n_pixels,), vacuum Angstrom, rest frame; None = rows bring their own.

    In float64: `datasets` itself hands arrays on as float32 under `with_format("numpy")` and `("torch")`.
    """
    grid = read_grid(dataset, revision)
    return None if grid is None else grid.wavelength
