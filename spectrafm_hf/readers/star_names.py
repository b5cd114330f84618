"""One spelling per star, so that the same star in two libraries, or in two visits, is recognised as one.

Libraries write `HD009138`, `HD 9138` and `HD9138` for one star, and `BD-010306` for number 306 of zone -01. The rules
below change spelling only: no alias table is consulted, so `HR 2422` and `HD 47129` stay two names (STELIB's reader
takes the HD number from the file name for that reason).
"""

from __future__ import annotations

import re

_BYTES_AS_TEXT = re.compile(r"""^b(['"])(.*)\1$""")
_CLUSTER_MARK = re.compile(r"\s+CL$")
"""MILES ends the name of a cluster member with `Cl` in its own column."""

# Catalogues that number stars from 1: leading zeros carry no meaning; one trailing letter is a component.
_NUMBERED = re.compile(r"^(HDE?|HR|HIP|LHS|LTT|GJ|GL)[\s_-]*0*(\d+)[\s_]*([A-Z]?)$")
# Durchmusterung: sign, zone (its zeros count: BD+01 and BD+10 are two zones; -00 is not +00), number in the zone.
_ZONED = re.compile(r"^(BD|CD|CPD|SD)[\s_]*([+-])(?:(\d{1,2})[\s_]+0*(\d+)|(\d{2})0*(\d+))[\s_]*([A-Z]?)$")
_GICLAS = re.compile(r"^G[\s_]*0*(\d+)-0*(\d+)$")
# `NGC 7789 329(491)`, `M71 1-09`, `Mel ,22 0296`: cluster, then the star's number or name in it.
_CLUSTER = re.compile(r"^(M|NGC|IC|MEL)[\s_]*,?[\s_]*0*(\d+)[\s_]+(\S.*)$")
_COMPONENT = re.compile(r"^((?:HD|HR|HIP|LHS|LTT|GJ)\d+|(?:BD|CD|CPD|SD)[+-]\d{2}_\d+)[A-Z]$")


def normalise_star_name(name: str | bytes) -> str:
    """One canonical spelling of a star's name; applying it twice changes nothing.

    `HD009138`, `hd 9138`, `HD_9138` -> `HD9138`; `BD-010306`, `BD-1 306` -> `BD-01_306`; `HD 020902  Cl` -> `HD20902`;
    `M71 1-09  Cl` -> `M71_1-9`; `b'2M00000002+7417074'` -> `2M00000002+7417074`. A component letter stays
    (`HD23439A` and `HD23439B` are two stars); `system_of` drops it. Names of other catalogues, APOGEE's among them,
    only lose outer blanks and lower case; inner blanks become one underscore, and zeros stay.

    Args:
        name: As published; a byte string, or its `repr` left behind by a careless table writer, is accepted.

    Raises:
        ValueError: The name is empty.
    """
    text = name.decode("utf-8") if isinstance(name, bytes) else name
    text = text.strip()
    if as_text := _BYTES_AS_TEXT.match(text):
        text = as_text[2].strip()
    text = _CLUSTER_MARK.sub("", text.upper())
    if not text:
        raise ValueError(f"a star needs a name, because its split hangs on it; got {name!r}. Give e.g. 'HD 9138'.")
    if found := _NUMBERED.match(text):
        # HDE continues HD's numbers; GL and GJ are one catalogue.
        catalogue = {"HDE": "HD", "GL": "GJ"}.get(found[1], found[1])
        return f"{catalogue}{found[2]}{found[3]}"
    if found := _ZONED.match(text):
        zone, number = (found[3] or found[5]), (found[4] or found[6])
        return f"{found[1]}{found[2]}{int(zone):02d}_{number}{found[7]}"
    if found := _GICLAS.match(text):
        return f"G{found[1]}-{found[2]}"
    if found := _CLUSTER.match(text):
        member = re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"[\s_]+", "_", found[3]))
        return f"{found[1]}{found[2]}_{member}"
    return re.sub(r"[\s_]+", "_", text)


def system_of(star_id: str | bytes) -> str:
    """Name of the system a star belongs to: its normalised name without the component letter, `HD48682A` -> `HD48682`.

    Which component a library means by a bare `HD48682` is seldom said, and close components share a slit, so a
    split must never run between them.
    """
    name = normalise_star_name(star_id)
    found = _COMPONENT.match(name)
    return found[1] if found else name
