"""Label values as libraries print them -> numbers, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..labels import get_label


def read_labels(published: Mapping[str, str | float | None]) -> dict[str, float]:
    """Keep the values that are numbers inside their label's valid range; all others are missing and left out.

    So `--`, `-`, blank, NaN and the sentinels 99999, 9999 and -9999 need no list of their own.

    Args:
        published: Label name (see `labels.LABELS`) -> value as printed, in the label's unit.

    Returns:
        Label name -> value, only for labels that are there.

    Raises:
        ValueError: A name is not in the table of labels.
    """
    labels: dict[str, float] = {}
    for name, text in published.items():
        low, high = get_label(name).valid
        try:
            value = float(text)  # type: ignore[arg-type]  # None raises TypeError, which means missing
        except (TypeError, ValueError):
            continue
        if math.isfinite(value) and low <= value <= high:
            labels[name] = value
    return labels
