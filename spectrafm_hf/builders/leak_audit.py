"""Proof that no star is in two splits: not under its name, its system's name, or its place on the sky.

It reads the finished files, not the plan, and its result stands in the dataset card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from ..readers.star_names import system_of

RADIUS = 1.0
"""Arcsec. Two stars nearer than this are one source to any survey here (APOGEE fibres see 2 arcsec)."""

_NAMED = 10
"""Violations that the message lists."""


class LeakError(ValueError):
    """A star is in two splits; the message names it."""


@dataclass(frozen=True)
class LeakAudit:
    """What was checked.

    Attributes:
        spectra: Split -> rows.
        systems: Split -> different systems, by name.
        with_position: Rows whose position was checked too.
        radius: Arcsec.
    """

    spectra: Mapping[str, int]
    systems: Mapping[str, int]
    with_position: int
    radius: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One paragraph for the card."""
        splits = ", ".join(
            f"{name} {rows:,} spectra of {self.systems[name]:,} systems" for name, rows in self.spectra.items()
        )
        total = sum(self.spectra.values())
        place = (
            f"and no two positions within {self.radius:g} arcsec of each other are in different splits "
            f"({self.with_position:,} of {total:,} rows have a position)"
            if self.with_position
            else "; no row has a position to be checked"
        )
        return f"No system (a star's name without its component letter) is in two splits {place}: {splits}.".replace(
            " ;", ";"
        )


def systems_of(object_ids: np.ndarray) -> np.ndarray:
    """`system_of` for each name; shape kept, object dtype."""
    known: dict[str, str] = {}
    return np.array([known.get(name) or known.setdefault(name, system_of(name)) for name in object_ids], dtype=object)


def close_pairs(ra: np.ndarray, dec: np.ndarray, radius: float = RADIUS) -> np.ndarray:
    """Pairs of rows nearer than `radius` arcsec on the sky.

    Args:
        ra, dec: Shape (n,), degrees; NaN = no position, never near anything.

    Returns:
        Row numbers, shape (n_pairs, 2), first < second.
    """
    rows = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    alpha, delta = np.radians(ra[rows]), np.radians(dec[rows])
    points = np.stack([np.cos(delta) * np.cos(alpha), np.cos(delta) * np.sin(alpha), np.sin(delta)], axis=1)
    chord = 2 * np.sin(np.radians(radius / 3600) / 2)
    if rows.size < 2:
        return np.empty((0, 2), dtype=np.int64)
    pairs = cKDTree(points).query_pairs(chord, output_type="ndarray")
    return np.sort(rows[pairs], axis=1) if pairs.size else np.empty((0, 2), dtype=np.int64)


def star_groups(object_ids: np.ndarray, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """One name per group of rows that must share a split: same system, or within `RADIUS`.

    One star may be catalogued under two names. The group goes by the alphabetically first of its systems' names, so a
    star without such a twin keeps its own.

    Args:
        object_ids: Shape (n,).
        ra, dec: Shape (n,), degrees; NaN = no position.

    Returns:
        Shape (n,), object dtype.
    """
    systems = systems_of(object_ids)
    leader: dict[str, str] = {}

    def head(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    for first, second in close_pairs(ra, dec):
        low, high = sorted((head(systems[first]), head(systems[second])))
        leader[high] = low
    return np.array([head(name) for name in systems], dtype=object)


def audit_splits(stars: Mapping[str, Mapping[str, np.ndarray]], radius: float = RADIUS) -> LeakAudit:
    """Check that splits share no star.

    Args:
        stars: Split -> columns `object_id`, `ra`, `dec` (degrees, NaN = none), each of shape (n,).
        radius: Arcsec.

    Returns:
        What was checked.

    Raises:
        LeakError: A system is in two splits, or two positions in different splits lie within the radius.
    """
    systems = {split: systems_of(columns["object_id"]) for split, columns in stars.items()}
    sets = {split: set(names) for split, names in systems.items()}
    found = []
    for number, (first, names) in enumerate(sets.items()):
        for second in list(sets)[number + 1 :]:
            found += [f"{name} (in {first} and {second})" for name in sorted(names & sets[second])]
    ids, ra, dec = (
        np.concatenate([np.asarray(columns[name]) for columns in stars.values()]) if stars else np.empty(0)
        for name in ("object_id", "ra", "dec")
    )
    ra, dec = ra.astype(np.float64), dec.astype(np.float64)
    split = np.repeat(np.array(list(stars), dtype=object), [len(columns["object_id"]) for columns in stars.values()])
    for one, other in close_pairs(ra, dec, radius):
        if split[one] != split[other]:
            found.append(f"{ids[one]} ({split[one]}) and {ids[other]} ({split[other]}), {_apart(ra, dec, one, other)}")
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise LeakError(
            f"{len(found)} stars are in two splits: {'; '.join(found[:_NAMED])}{more}. Give each star one name, or "
            "split by `leak_audit.star_groups`."
        )
    return LeakAudit(
        {name: len(columns["object_id"]) for name, columns in stars.items()},
        {name: len(names) for name, names in sets.items()},
        int(np.count_nonzero(np.isfinite(ra) & np.isfinite(dec))),
        radius,
    )


def _apart(ra: np.ndarray, dec: np.ndarray, one: int, other: int) -> str:
    across = (ra[one] - ra[other] + 180) % 360 - 180
    east = across * np.cos(np.radians(dec[one]))
    return f"{3600 * np.hypot(east, dec[one] - dec[other]):.2f} arcsec apart"
