"""A star keeps its split: in every spelling, in both libraries, in any order."""

import collections
import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrafm_hf.builders.splits import (
    SPLITS,
    normalise_star_name,
    paper_split,
    split_of,
    splits_of,
    system_of,
)


@pytest.mark.parametrize(
    ("spellings", "star_id"),
    [
        (("HD009138", "HD9138", "HD 9138", "hd_9138", " HD 009138  ", "HD 009138         Cl", "HDE 9138"), "HD9138"),
        (("HR2422", "HR 2422", "HR02422"), "HR2422"),
        (("BD+012916", "BD+01 2916", "BD +1 2916", "BD+01_2916", "BD+1 02916"), "BD+01_2916"),
        (("BD-010306", "BD-01 306", "bd-1 306"), "BD-01_306"),
        (("BD+002058A", "BD+00 2058 A"), "BD+00_2058A"),
        (("CD-2415398", "CD-24 15398"), "CD-24_15398"),
        (("HD048682A", "HD 48682 A", "HD48682a"), "HD48682A"),
        (("G004-036", "G 4-36", "G4-36"), "G4-36"),
        (("M71 1-09          Cl", "M71 1-9", "M 71 1-09"), "M71_1-9"),
        (("M5 III 03         Cl", "M5 III 3"), "M5_III_3"),
        (("Mel ,22 0296      Cl", "Mel 22 296"), "MEL22_296"),
        (("NGC 7789 329(491) Cl", "NGC7789 329(491)"), "NGC7789_329(491)"),
        (("2M00000002+7417074", "b'2M00000002+7417074'", b"2M00000002+7417074", 'b"2M00000002+7417074 "'), None),
        (("MS0515.4-0710",), "MS0515.4-0710"),
        (("Feige110", "feige110"), "FEIGE110"),
    ],
)
def test_spellings_of_one_star(spellings: tuple[str | bytes, ...], star_id: str | None) -> None:
    expected = star_id or "2M00000002+7417074"
    assert {normalise_star_name(name) for name in spellings} == {expected}
    assert normalise_star_name(expected) == expected


def test_different_stars_stay_different() -> None:
    names = ["HD009138", "HD091380", "HD00913", "HD023439A", "HD023439B", "HR9138", "HIP9138"]  # zeros behind count
    names += ["BD+012916", "BD-012916", "BD+102916", "BD+129160", "CD-012916", "BD+0129", "BD+2916", "BD+012916A"]
    names += ["BD+001291", "BD-001291"]  # two zones, either side of the equator
    names += ["G004-036", "G004-360", "G040-036", "LHS1930", "LTT4364", "2M00000002+7417074", "2M00000002-7417074"]
    names += ["M71 1-09", "M71 1-90", "M7 11-09", "M5 II 51", "M5 III 51", "M71 A2", "M71 A9", "M71 S", "M67 F 108"]
    names += ["M3 398", "NGC 288 77", "NGC 6791 R5", "NGC 6791 R50", "M4 1.05", "M4 1.5"]
    assert len({normalise_star_name(name) for name in names}) == len(names)


@given(st.sampled_from(["BD", "CD"]), st.sampled_from("+-"), st.integers(0, 89), st.integers(1, 99_999))
def test_zone_and_number_survive(survey: str, sign: str, zone: int, number: int) -> None:
    # However MILES pads them: zone in two digits, number in at least four.
    star_id = normalise_star_name(f"{survey}{sign}{zone:02d}{number:04d}")
    assert star_id == f"{survey}{sign}{zone:02d}_{number}"
    assert normalise_star_name(f"{survey}{sign}{zone} {number}") == star_id


@given(st.text(min_size=1).filter(lambda name: name.strip()))
def test_normalising_twice_changes_nothing(name: str) -> None:
    try:
        once = normalise_star_name(name)
    except ValueError:
        return
    assert normalise_star_name(once) == once


def test_component_letter_changes_the_star_but_not_the_split() -> None:
    assert system_of("HD048682A") == system_of("HD 48682") == "HD48682"
    assert system_of("BD+442051A") == "BD+44_2051"
    for number in range(1, 200):
        assert split_of(f"HD{number}A") == split_of(f"HD{number}B") == split_of(f"HD{number:06d}")
    # Letters that are names, not components, stay.
    assert [system_of(name) for name in ("M71 S", "M71 X", "VEGA")] == ["M71_S", "M71_X", "VEGA"]


def test_a_name_is_needed() -> None:
    for empty in ("", "   ", "b''", b""):
        with pytest.raises(ValueError, match="a star needs a name"):
            split_of(empty)


def test_splits_never_move() -> None:
    # Frozen: a change here moves stars between train and test, and voids every published number.
    frozen = {
        "HD9138": "test",
        "HD84937": "train",
        "HD122563": "train",
        "BD+01_2916": "train",
        "M71_1-9": "validation",
        "2M00000002+7417074": "validation",
    }
    assert {name: split_of(name) for name in frozen} == frozen


def test_split_is_the_published_formula() -> None:
    for name in ("HD9138", "2M00000002+7417074", "2M00001653+5540107"):
        draw = int(hashlib.sha256(f"spectrafm-v1:{name}".encode()).hexdigest()[:16], 16) / 2**64
        assert split_of(name) == ("train" if draw < 0.6 else "validation" if draw < 0.7 else "test")


def test_fractions_and_independence_of_order() -> None:
    names = [f"2M{number:08d}+{number * 7919 % 10**7:07d}" for number in range(20_000)]
    splits = {name: split_of(name) for name in names}
    counts = collections.Counter(splits.values())
    for split, fraction in zip(SPLITS, (0.6, 0.1, 0.3), strict=True):
        assert counts[split] / len(names) == pytest.approx(fraction, abs=0.01)
    random.Random(1).shuffle(names)
    assert all(split_of(name) == splits[name] for name in names[:2_000])


def test_many_at_once_are_as_one_by_one() -> None:
    names = np.array([f"HD{number}{letter}" for number in range(1, 200) for letter in ("", "A", "B")], dtype=object)
    assert splits_of(names).tolist() == [split_of(name) for name in names]


def test_paper_split_is_80_to_20_by_star_and_does_not_hang_on_the_order() -> None:
    names = np.array([f"2M{number // 2:08d}" for number in range(4000)], dtype=object)  # each star twice
    split = paper_split(names, seed=1)
    assert (split[::2] == split[1::2]).all()
    assert np.count_nonzero(split == "train") == 3200
    order = np.random.default_rng(0).permutation(4000)
    assert (paper_split(names[order], seed=1) == split[order]).all()
    assert (paper_split(names, seed=2) != split).any()
