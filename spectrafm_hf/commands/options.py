"""Options that several commands read alike."""

from __future__ import annotations


def reader_options(given: list[str]) -> dict[str, str]:
    """`name=value` -> name and value.

    Raises:
        ValueError: One has no `=`.
    """
    for one in given:
        if "=" not in one:
            raise ValueError(f"--option must be name=value, got {one!r}.")
    return dict(one.split("=", 1) for one in given)
