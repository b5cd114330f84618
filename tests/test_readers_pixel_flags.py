"""Bits that make a pixel bad, errors that mean nothing, and numbers that must never reach a model."""

import numpy as np
import pytest

from spectrafm_hf.readers.pixel_flags import (
    APOGEE_PIXMASK,
    BOSS_PIXMASK,
    LAMOST_PIXMASK,
    bits_value,
    flagged,
    ivar_of,
    trusted,
)


@pytest.mark.parametrize("table", [APOGEE_PIXMASK, BOSS_PIXMASK, LAMOST_PIXMASK])
def test_tables_name_each_bit_once(table) -> None:
    assert len({bit.bit for bit in table}) == len({bit.name for bit in table}) == len(table)
    assert all(bit.reason for bit in table)


def test_apogee_bits_are_the_surveys_bad_ones_and_sky_lines() -> None:
    # 16639 = bits 0-7 and 14, what the survey's pipelines call bad.
    assert bits_value(APOGEE_PIXMASK) == 16639 | 1 << 12


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64, ">i2"])
def test_every_bit_in_every_type(dtype) -> None:
    bad = bits_value(APOGEE_PIXMASK)
    values = np.array([0, *(1 << bit.bit for bit in APOGEE_PIXMASK)]).astype(dtype)
    assert flagged(values, bad).tolist() == [False, *(bit.bad for bit in APOGEE_PIXMASK)]


def test_masks_without_meaning_are_bad() -> None:
    assert flagged(np.array([np.nan, np.inf, -1.0, 1e30, 0.0]), 1).tolist() == [True, True, True, True, False]
    assert flagged(np.array([-1, 0, 2], dtype=np.int16), 1).tolist() == [True, False, False]


def test_float32_keeps_the_high_bits() -> None:
    flags = np.array([(1 << 28) + (1 << 2), (1 << 16) + 3], dtype=np.float32)
    assert flagged(flags, bits_value(BOSS_PIXMASK)).tolist() == [True, False]


def test_errors_without_information() -> None:
    errors = np.array([0.5, 0.0, -0.1, np.nan, np.inf, -np.inf, 1e-30, 1e10])
    with np.errstate(all="raise", under="ignore"):
        ivar = ivar_of(errors)
    assert ivar[0] == 4.0
    assert ivar[7] == pytest.approx(1e-20)
    assert (ivar[1:7] == 0).all()


def test_flux_ivar_and_bad_pixel_tell_one_story() -> None:
    flux = np.array([1.0, np.nan, np.inf, 1e39, 1.0, 1.0, 1.0, 1.0], dtype=">f8")
    ivar = np.array([4.0, 4.0, 4.0, 4.0, 0.0, np.nan, np.inf, 4.0])
    known = np.array([False] * 7 + [True])
    flux, ivar, bad = trusted(flux, ivar, known)
    assert bad.tolist() == [False, *[True] * 7]
    assert ivar is not None
    assert ivar.tolist() == [4.0, *[0.0] * 7]
    assert np.isfinite(flux).all()
    assert flux.dtype.isnative
    flux, none, bad = trusted(np.array([1.0, np.nan]), None, np.array([False, False]))
    assert none is None
    assert bad.tolist() == [False, True]
