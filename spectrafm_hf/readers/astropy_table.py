"""Columns -> an astropy table: the way out for those who work with astropy, as `in_memory` is the way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from astropy.table import Table


def table_of(columns: Mapping[str, Sequence[Any]], descriptions: Mapping[str, str], meta: Mapping[str, Any]) -> Table:
    """A table that every format of astropy can write.

    Args:
        columns: Name -> entries; None among truths is masked.
        descriptions: Name -> what the column holds.
        meta: Kept with the table; plain numbers and strings.
    """
    from astropy.table import Column, MaskedColumn, Table

    table = Table(meta=dict(meta))
    for name, entries in columns.items():
        unknown = np.array([entry is None for entry in entries], dtype=bool)
        if unknown.any():
            filled = np.array([entry is not None and bool(entry) for entry in entries])
            table[name] = MaskedColumn(filled, mask=unknown, description=descriptions[name])
        else:
            table[name] = Column(np.array(entries), description=descriptions[name])
    return table
