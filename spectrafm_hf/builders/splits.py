"""Train, validation or test: a function of the star's name and of nothing else.

No row order, seed or library enters, so a star keeps its split for ever, in every library and for every visit.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from ..readers.star_names import normalise_star_name, system_of

__all__ = ["SPLITS", "Split", "normalise_star_name", "split_of", "system_of"]

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
