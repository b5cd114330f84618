"""Train, validation or test: a function of the star's name and of nothing else.

No row order, seed or library enters, so a star keeps its split for ever, in every library and for every visit.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from ..readers.star_names import normalise_star_name, system_of

__all__ = ["SPLITS", "Split", "normalise_star_name", "paper_split", "split_of", "splits_of", "system_of"]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(star_id: str | bytes) -> Split:
    """Split of a star: 60 % train, 10 % validation, 30 % test (small libraries need large test sets).

    The draw is SHA-256 of the system's name, so components of one system share a split (see `system_of`).

    Args:
        star_id: The star's name, in any spelling that `normalise_star_name` knows.

    Raises:
        ValueError: The name is empty.
    """
    draw = int.from_bytes(hashlib.sha256(f"spectrafm-v1:{system_of(star_id)}".encode()).digest()[:8], "big") / 2**64
    return "train" if draw < 0.6 else "validation" if draw < 0.7 else "test"


def splits_of(names: np.ndarray) -> np.ndarray:
    """`split_of` for each of many names; shape kept, object dtype."""
    known: dict[str, Split] = {}
    return np.array([known.get(name) or known.setdefault(name, split_of(name)) for name in names], dtype=object)


def paper_split(names: np.ndarray, seed: int = 0) -> np.ndarray:
    """Train (80 %) or test (20 %) at random, as in Koblischke & Bovy 2024; for comparison with it only.

    The paper's own permutation is not published, so its very stars cannot be had: this one is seeded, over the names
    in alphabetical order. Unlike `split_of` it moves stars when the list of stars changes.

    Args:
        names: Shape (n,); equal names share a split.
        seed: Of the permutation.

    Returns:
        Shape (n,), object dtype: `train` or `test`.
    """
    unique, number = np.unique(names.astype(str), return_inverse=True)
    place = np.empty(unique.size, dtype=np.int64)
    place[np.random.default_rng(seed).permutation(unique.size)] = np.arange(unique.size)
    return np.where(place[number] < round(0.8 * unique.size), "train", "test").astype(object)
