"""Answers of a method for the test stars, kept on disk so that nothing is fitted twice."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PARTS = ("mean", "sigma", "sigma95")
"""Of an answer, in this order, each of shape (n_stars,) in the label's unit; the last may be left out."""


def save_answer(path: Path, key: str, answer: Sequence[np.ndarray]) -> None:
    """Keep an answer with the key of what it came from; whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial.npz")
    np.savez(partial, key=np.array(key), **dict(zip(PARTS, answer, strict=False)))  # type: ignore[arg-type]
    os.replace(partial, path)


def load_answer(path: Path, key: str) -> tuple[np.ndarray, ...] | None:
    """A kept answer, if it came from the same stars, recipes and weights."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return tuple(kept[part] for part in PARTS if part in kept) if str(kept["key"]) == key else None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None  # not there, or damaged: it is made anew
