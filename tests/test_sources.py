"""Any source gives the same star, or a sentence: however it is wrapped, whatever it does not tell, and when damaged."""

import gzip
import os
import re
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import survey_files as survey
from astropy import units as u
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers_any_file import WRITERS, damage

from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.readers.miles import PARAMETER_FILE
from spectrafm_hf.sources import Conventions, Reading, count_source, read_source
from spectrafm_hf.spectra import SPEED_OF_LIGHT, Spectrum, apogee_wavelength, vacuum_to_air

SODIUM = (5889.951, 5891.583)
"""Na I D2 in air and in vacuum, Angstrom (NIST)."""

WAVELENGTH = 5800.0 + 0.5 * np.arange(400)
FLUX = 1 - 0.5 * np.exp(-0.5 * ((WAVELENGTH - SODIUM[1]) / 1.5) ** 2) + 0.01 * np.random.default_rng(3).normal(size=400)
IVAR = np.linspace(1e3, 1e4, 400)
BAD = np.zeros(400, dtype=bool)
BAD[[7, 150, 151]] = True

AT_REST = Conventions(medium="vacuum", velocity=0.0)
BARE = "wavelengths were taken for vacuum Angstrom in the star's rest frame, which the array does not tell"


def only(source, conventions: Conventions | None = None, **told) -> Reading:
    (reading,) = read_source(source, conventions or Conventions(**told))
    return reading


def spectrum(source, conventions: Conventions | None = None, **told) -> Spectrum:
    reading = only(source, conventions, **told)
    assert reading.spectrum is not None, reading.reason
    return reading.spectrum


def reason(source, conventions: Conventions | None = None, **told) -> str:
    reading = only(source, conventions, **told)
    assert reading.spectrum is None, "it was read"
    assert reading.reason
    return reading.reason


def with_line(wavelength: float) -> np.ndarray:
    """A flux without noise on `WAVELENGTH`, with a line."""
    return 1 - 0.5 * np.exp(-0.5 * ((WAVELENGTH - wavelength) / 1.5) ** 2)


def line(star: Spectrum) -> float:
    """Where it is."""
    return float(np.average(star.wavelength, weights=1 - star.flux))


# ---------------------------------------------------------------- the same star, however it comes

UNITS = ("Angstrom", "nm", "um", "log10(Angstrom)", "THz", "1/cm", "eV")


def in_unit(vacuum_or_air: np.ndarray, unit: str) -> np.ndarray:
    if unit == "log10(Angstrom)":
        return np.log10(vacuum_or_air)
    return (vacuum_or_air * u.AA).to_value(unit, equivalencies=u.spectral())


def wrapped(container: str, parts: dict, unit: str):
    """The parts of a spectrum as people have them, and what must then be told of the unit."""
    told = {} if unit == "Angstrom" else {"wavelength_unit": unit}
    if container == "mapping":
        return parts, told
    if container == "quantities" and unit != "log10(Angstrom)":
        return parts | {"wavelength": parts["wavelength"] * u.Unit(unit), "flux": parts["flux"] * u.Jy}, {}
    if container == "masked":
        flux = np.ma.MaskedArray(np.where(parts["bad_pixel"], np.nan, parts["flux"]), parts["bad_pixel"])
        return {"flux": flux, "wavelength": parts["wavelength"], "ivar": parts["ivar"]}, told
    if container == "masked quantity" and unit != "log10(Angstrom)":
        flux = Masked(parts["flux"] * u.Jy, mask=parts["bad_pixel"])
        return {"flux": flux, "wavelength": parts["wavelength"] * u.Unit(unit), "ivar": parts["ivar"]}, {}
    if container == "table":
        return Table(parts), told
    if container == "rows":
        return Table({name: values[None] for name, values in parts.items()}), told
    if container == "frame":
        return pd.DataFrame(
            {name: values.astype(values.dtype.newbyteorder("=")) for name, values in parts.items()}
        ), told
    if container == "list":
        return {name: values.tolist() for name, values in parts.items()}, told
    if container == "objects":
        return parts | {"flux": parts["flux"].astype(object)}, told
    if container == "dataset":
        return Dataset.from_dict({name: [values.tolist()] for name, values in parts.items()}), told
    return parts, told


CONTAINERS = (
    "mapping", "quantities", "masked", "masked quantity", "table", "rows", "frame", "list", "objects", "dataset",
    "read-only", "strided",
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    container=st.sampled_from(CONTAINERS),
    dtype=st.sampled_from(["<f8", ">f8", "<f4", ">f4"]),
    unit=st.sampled_from(UNITS),
    order=st.sampled_from(["as it is", "reversed", "shuffled"]),
    air=st.booleans(),
    shift=st.sampled_from([None, ("velocity", 0.0), ("velocity", 212.5), ("velocity", -74.0), ("redshift", 3e-4)]),
    seed=st.integers(0, 9),
)
def test_one_star_in_every_wrapping_is_one_spectrum(container, dtype, unit, order, air, shift, seed):
    air = air and unit in ("Angstrom", "nm", "um", "log10(Angstrom)")  # the others are in vacuum by their nature
    stretch = 1.0
    if shift is not None:
        stretch += shift[1] if shift[0] == "redshift" else shift[1] / SPEED_OF_LIGHT
    observed = WAVELENGTH * stretch
    parts = {
        "wavelength": in_unit(vacuum_to_air(observed) if air else observed, unit),
        "flux": FLUX.astype(dtype),
        "ivar": IVAR.astype(dtype),
        "bad_pixel": BAD,
    }
    place = np.arange(400)
    if order != "as it is":
        place = place[::-1] if order == "reversed" else np.random.default_rng(seed).permutation(400)
    parts = {name: values[place] for name, values in parts.items()}
    if container == "read-only":
        for values in parts.values():
            values.flags.writeable = False
    if container == "strided":
        parts = {name: np.stack([values, values], axis=1)[:, 1] for name, values in parts.items()}
    source, told = wrapped(container, parts, unit)
    told |= {"medium": "air"} if air else {}
    told |= {} if shift is None else {shift[0]: shift[1]}
    star = spectrum(source, **told)
    np.testing.assert_allclose(star.wavelength, WAVELENGTH, rtol=2e-8)
    np.testing.assert_array_equal(star.bad_pixel, BAD)
    np.testing.assert_allclose(star.flux[~BAD], FLUX[~BAD], rtol=1e-6)
    np.testing.assert_allclose(star.ivar, np.where(BAD, 0, IVAR), rtol=1e-6)
    assert star.flux.dtype == star.wavelength.dtype == np.dtype("float64")
    assert star.flux.dtype.isnative
    assert count_source(source) == 1


def test_air_lands_in_vacuum_and_velocity_is_taken_out():
    """Against NIST's line, not against our own formula turned round."""
    observed = with_line(SODIUM[0])
    assert line(spectrum((observed, WAVELENGTH), medium="air")) == pytest.approx(SODIUM[1], abs=0.003)
    assert line(spectrum((observed, WAVELENGTH))) == pytest.approx(SODIUM[0], abs=0.003)
    receding = with_line(SODIUM[1] * (1 + 100 / 299_792.458))
    assert line(spectrum((receding, WAVELENGTH), velocity=100.0)) == pytest.approx(SODIUM[1], abs=0.003)


def test_float16_and_whole_numbers():
    star = spectrum((FLUX.astype(np.float16), WAVELENGTH))
    np.testing.assert_allclose(star.flux, FLUX, rtol=1e-3)
    counts = np.round(1000 * FLUX).astype(">i2")
    np.testing.assert_array_equal(spectrum((counts, WAVELENGTH)).flux, counts)


def test_what_is_read_does_not_change_with_the_array_it_came_from():
    flux = FLUX.copy()
    star = spectrum((flux, WAVELENGTH))
    flux[:] = 7.0
    np.testing.assert_array_equal(star.flux, FLUX)


def test_memory_mapped(tmp_path):
    FLUX.astype(">f4").tofile(tmp_path / "flux")
    star = spectrum((np.memmap(tmp_path / "flux", ">f4", "r"), WAVELENGTH))
    np.testing.assert_allclose(star.flux, FLUX, rtol=1e-6)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    star = spectrum((torch.from_numpy(FLUX).requires_grad_(), torch.from_numpy(WAVELENGTH)))
    np.testing.assert_array_equal(star.flux, FLUX)


# ---------------------------------------------------------------- what is assumed, and what is refused


def test_bare_numbers_are_assumed_in_a_sentence_and_what_is_told_is_not():
    assert only((FLUX, WAVELENGTH)).assumed == (BARE,)
    assert only((FLUX, WAVELENGTH * u.AA), AT_REST).assumed == ()
    assert only((FLUX, WAVELENGTH), velocity=3.0).assumed == (
        "wavelengths were taken for vacuum Angstrom, which the array does not tell",
    )
    assert only((FLUX, WAVELENGTH / 10 * u.nm)).assumed == (
        "wavelengths were taken to be in vacuum and in the star's rest frame, which the array does not tell",
    )
    assert only((FLUX, in_unit(WAVELENGTH, "THz") * u.THz)).assumed == (
        "wavelengths were taken to be in the star's rest frame, which the array does not tell",
    )


@pytest.mark.parametrize(
    ("wavelength", "complaint"),
    [
        (WAVELENGTH / 1e4, r"0\.58 to 0\.59995 .*looks like micron; pass wavelength_unit='um'"),
        (np.linspace(1.51, 1.70, 400), "looks like micron"),
        (np.linspace(0.8, 5.0, 400), "looks like micron"),
        (WAVELENGTH / 10, "looks like nm; pass wavelength_unit='nm'"),
        (np.linspace(380, 2400, 400), "looks like nm"),
        (np.log10(WAVELENGTH), r"looks like log10\(Angstrom\), or micron; pass wavelength_unit='log10\(Angstrom\)'"),
        (np.linspace(3.55, 4.02, 400), r"looks like log10\(Angstrom\)"),
        (np.log(WAVELENGTH), r"looks like the natural logarithm of Angstrom, or micron; .*'ln\(Angstrom\)' or 'um'"),
        (np.linspace(9.63, 9.74, 400), "looks like the natural logarithm"),  # 15,200 to 17,000 Angstrom
        (np.linspace(8.0, 13.0, 400), "looks like micron"),
        (np.arange(400), "looks like pixel numbers"),
        (1 + np.arange(400), "looks like pixel numbers"),
        (np.linspace(-300, 300, 400), r"looks like velocities \(km/s\)"),
        (WAVELENGTH * 1e-10, "looks like metres"),
        (in_unit(WAVELENGTH, "GHz"), "looks like a frequency"),
        (np.zeros(400), "are no wavelengths"),
        (np.full(400, np.nan), r"got 0 with a usable wavelength; of 400 it is NaN"),
    ],
)
def test_bare_numbers_that_are_no_angstrom(wavelength, complaint):
    assert re.search(complaint, reason((FLUX, wavelength)))


def test_natural_and_decimal_logarithms():
    for values, unit in (
        (np.log(WAVELENGTH), "ln(Angstrom)"),
        (np.log(WAVELENGTH / 10), "ln(nm)"),
        (np.log10(WAVELENGTH), "log10(Angstrom)"),
    ):
        star = spectrum((FLUX, values), wavelength_unit=unit)
        np.testing.assert_allclose(star.wavelength, WAVELENGTH, rtol=1e-12)


def test_the_far_ultraviolet_must_be_told():
    star = spectrum((FLUX, WAVELENGTH / 4), wavelength_unit="Angstrom")
    assert star.wavelength[0] == pytest.approx(1450.0)


@pytest.mark.parametrize(
    ("source", "told", "complaint"),
    [
        (
            (FLUX, WAVELENGTH * u.AA),
            {"wavelength_unit": "nm"},
            "come in 'Angstrom', but wavelength_unit='nm' was passed",
        ),
        ((FLUX, np.arange(400) * u.pix), {}, "are pixel numbers"),
        ((FLUX, np.linspace(-9, 9, 400) * u.km / u.s), {}, "are velocities"),
        ((FLUX, WAVELENGTH * u.K), {}, "must come in a unit of wavelength"),
        ((FLUX, WAVELENGTH), {"wavelength_unit": "furlong?"}, "must come in a unit of wavelength"),
        ((FLUX, WAVELENGTH), {"wavelength_unit": "um"}, r"median of 5\.8\d+e\+07 Angstrom \(um told\)"),
        ((FLUX, in_unit(WAVELENGTH, "THz") * u.THz), {"medium": "air"}, "which give vacuum wavelengths"),
        ((FLUX * u.ABmag, WAVELENGTH), {}, "a logarithm"),
        ((FLUX + 0j, WAVELENGTH), {}, "flux must be real"),
        ((FLUX.astype(str), WAVELENGTH), {}, "flux must be numbers"),
        ((FLUX, WAVELENGTH[:-1]), {}, r"got shapes \(400,\) and \(399,\)"),
        ((FLUX, WAVELENGTH.astype(np.float16)), {}, r"half precision \(float16\), whose steps are 4 Angstrom"),
        ((FLUX[:1], WAVELENGTH[:1]), {}, "at least 2 pixels, got 1"),
        ((FLUX[:0], WAVELENGTH[:0]), {}, "at least 2 pixels, got 0"),
        ((FLUX * np.nan, WAVELENGTH), {}, "none of its 400 pixels can be trusted: 0 are flagged, 400 have no finite"),
        ((np.ma.MaskedArray(FLUX, True), WAVELENGTH), {}, "400 are flagged"),
        ((-FLUX, WAVELENGTH), {}, r"none of its 400 good pixels is positive \(they go from -1\.\d+ to -0\.\d+\)\. Was"),
        ((0 * FLUX, WAVELENGTH), {}, "from 0 to 0.*continuum subtracted"),
        (Spectrum(WAVELENGTH, -FLUX, BAD, "HD1", "own"), {}, "HD1: the flux must be proportional to light, but none"),
    ],
)
def test_refused_with_a_sentence(source, told, complaint):
    assert re.search(complaint, reason(source, **told))


@pytest.mark.parametrize(
    "told",
    [
        {"medium": "glass"},
        {"velocity": 3e5},
        {"velocity": float("nan")},
        {"redshift": 12.0},
        {"velocity": 1.0, "redshift": 1e-5},
        {"resolving_power": -3.0},
        {"bad_pixel": "True"},
    ],
)
def test_conventions_that_can_be_none(told):
    with pytest.raises(ValueError, match=next(iter(told))):
        Conventions(**told)


def test_what_is_told_may_have_a_unit():
    told = Conventions(velocity=-12_000 * u.m / u.s, resolving_power=2000 * u.one, wavelength_unit=u.nm)
    assert (told.velocity, told.resolving_power, told.wavelength_unit) == (-12.0, 2000.0, "nm")
    assert Conventions(redshift=np.float32(0.001)).redshift == pytest.approx(0.001)
    assert Conventions(redshift=1e-3 * u.one).shift == 1.001
    star = spectrum((FLUX, WAVELENGTH / 10), told)
    np.testing.assert_allclose(star.wavelength, WAVELENGTH / (1 - 12 / SPEED_OF_LIGHT), rtol=1e-12)


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({"velocity": "12"}, "velocity must be one number of km/s .*; got '12'"),
        ({"velocity": True}, "velocity must be one number of km/s .*; got True"),
        ({"velocity": 12 * u.K}, "velocity must be in km/s, got 12.0 K"),
        ({"velocity": [1.0, 2.0]}, r'got \[1.0, 2.0\]\. For one per spectrum: .*"velocity": \.\.\.'),
        ({"velocity": np.ma.masked}, "velocity must be one number"),
        ({"redshift": "0.001"}, "redshift must be one number z, without a unit; got '0.001'"),
        ({"redshift": 12 * u.km / u.s}, r"got 12.0 km / s\. Is it a velocity\? Pass velocity="),
        ({"resolving_power": "2000"}, "resolving_power must be one number lambda / FWHM, without a unit; got '2000'"),
        ({"resolving_power": 5 * u.AA}, "without a unit; got 5.0 Angstrom"),
        ({"resolving_power": {}}, "got {}"),
    ],
)
def test_what_is_told_must_be_a_number(told, complaint):
    with pytest.raises(ValueError, match=complaint):
        Conventions(**told)


def test_a_mask_has_two_signs():
    parts = {"flux": FLUX, "wavelength": WAVELENGTH}
    assert "pass bad_pixel='True is bad' or bad_pixel='True is good' (--bad-pixel)" in reason(parts | {"mask": BAD})
    np.testing.assert_array_equal(spectrum(parts | {"mask": BAD}, bad_pixel="True is bad").bad_pixel, BAD)
    np.testing.assert_array_equal(spectrum(parts | {"mask": ~BAD}, bad_pixel="True is good").bad_pixel, BAD)
    np.testing.assert_array_equal(spectrum(parts | {"mask": ~BAD * 1}, bad_pixel="True is good").bad_pixel, BAD)
    # A name that says its sign is not turned round.
    np.testing.assert_array_equal(spectrum(parts | {"bad_pixel": BAD}, bad_pixel="True is good").bad_pixel, BAD)


def test_a_bitmask_must_be_told():
    bits = np.where(BAD, 4, 0)
    parts = {"flux": FLUX, "wavelength": WAVELENGTH}
    for name in ("mask", "bad_pixel"):
        assert "is a bitmask (values up to 4)" in reason(parts | {name: bits})
        assert "is a bitmask" in reason(parts | {name: bits}, bad_pixel="True is good")
        np.testing.assert_array_equal(spectrum(parts | {name: bits}, bad_pixel="True is bad").bad_pixel, BAD)
    assert "whole numbers" in reason(parts | {"mask": FLUX}, bad_pixel="True is bad")


def test_errors_that_say_nothing_make_bad_pixels():
    error = np.full(400, 0.1)
    error[:4] = [0.0, np.nan, -0.1, np.inf]
    star = spectrum({"flux": FLUX, "wavelength": WAVELENGTH, "flux_error": error})
    assert star.bad_pixel[:5].tolist() == [True] * 4 + [False]
    assert star.ivar[3:6] == pytest.approx([0.0, 100.0, 100.0])
    ivar = np.full(400, 100.0)
    ivar[:4] = [0.0, np.nan, -1.0, np.inf]
    other = spectrum({"flux": FLUX, "wavelength": WAVELENGTH, "ivar": ivar})
    np.testing.assert_array_equal(other.bad_pixel, star.bad_pixel)
    np.testing.assert_allclose(other.ivar, star.ivar)


def test_error_and_inverse_variance_must_agree():
    parts = {"flux": FLUX, "wavelength": WAVELENGTH, "ivar": np.full(400, 100.0)}
    assert "contradict each other" in reason(parts | {"flux_error": np.full(400, 100.0)})
    both = only(parts | {"flux_error": np.full(400, 0.1)})
    assert "flux_error was not used, since ivar says the same" in both.assumed


@pytest.mark.parametrize("unit", [1e-29, 1e-17, 1e30])
def test_a_flux_in_any_unit_keeps_its_errors(unit):
    """W m-2 Hz-1 of a star are 1e-29, so its inverse variance 1e62, which is more than float32 holds."""
    error = 0.001 * unit * np.ones(400)
    for told in ({"flux_error": error}, {"ivar": error**-2.0}):
        star = spectrum({"flux": FLUX * unit, "wavelength": WAVELENGTH} | told)
        assert not star.bad_pixel.any()
        np.testing.assert_allclose(star.flux * star.ivar**0.5, FLUX / 0.001, rtol=1e-9)


def test_errors_come_in_the_unit_of_the_flux():
    parts = {"flux": FLUX * u.Jy, "wavelength": WAVELENGTH}
    star = spectrum(parts | {"flux_error": np.full(400, 100.0) * u.mJy})
    np.testing.assert_allclose(star.ivar, 100.0)
    star = spectrum(parts | {"ivar": np.full(400, 1e-4) * u.mJy**-2})
    np.testing.assert_allclose(star.ivar, 100.0)
    assert "must come in the unit of the flux" in reason(parts | {"flux_error": np.ones(400) * u.K})


def test_pixels_without_a_wavelength_are_left_out_in_a_sentence():
    wavelength = WAVELENGTH.copy()
    wavelength[[0, 1, 2, 3, 399]] = [np.nan, np.inf, 0.0, -5800.0, -np.inf]
    reading = only((FLUX, wavelength))
    np.testing.assert_array_equal(reading.spectrum.wavelength, WAVELENGTH[4:399])
    np.testing.assert_array_equal(reading.spectrum.flux, FLUX[4:399])
    assert any(sentence.startswith("5 of 400 pixels have no usable wavelength") for sentence in reading.assumed)
    masked = np.ma.MaskedArray(WAVELENGTH, WAVELENGTH > 5900)
    assert spectrum((FLUX, masked)).wavelength[-1] == 5900.0


def test_flux_that_is_not_finite_is_bad():
    flux = FLUX.copy()
    flux[:3] = [np.nan, np.inf, -np.inf]
    star = spectrum((flux, WAVELENGTH))
    assert star.bad_pixel.sum() == 3
    assert np.isfinite(star.flux).all()


# ---------------------------------------------------------------- orders and repeated wavelengths


def test_repeated_wavelengths_are_averaged_by_inverse_variance():
    """(1 x 1 + 3 x 2) / 4 by hand; a bad pixel counts nothing."""
    wavelength = np.repeat(WAVELENGTH, 2)
    flux, ivar = np.tile([1.0, 2.0], 400), np.tile([1.0, 3.0], 400)
    bad = np.zeros(800, dtype=bool)
    bad[1] = bad[4] = bad[5] = True
    place = np.random.default_rng(0).permutation(800)
    parts = {"flux": flux, "wavelength": wavelength, "ivar": ivar, "bad_pixel": bad}
    reading = only({name: values[place] for name, values in parts.items()})
    star = reading.spectrum
    assert star.flux[[0, 1, 3]] == pytest.approx([1.0, 1.75, 1.75])
    assert star.ivar[:4] == pytest.approx([1.0, 4.0, 0.0, 4.0])
    assert star.bad_pixel[:4].tolist() == [False, False, True, False]
    assert any("400 wavelengths came more than once" in sentence for sentence in reading.assumed)
    plain = spectrum({"flux": flux, "wavelength": wavelength})
    assert plain.flux == pytest.approx(np.full(400, 1.5))


def orders(level=1.0):
    """Two orders that overlap by 20 Angstrom on different pixels."""
    red = 5950.0 + 0.43 * np.arange(400)
    return np.r_[FLUX, level * (1 + 0 * red)], np.r_[WAVELENGTH[:340], WAVELENGTH[340:], red]


def test_overlapping_orders_keep_their_pixels():
    flux, wavelength = orders()
    star = spectrum({"flux": flux, "wavelength": wavelength})
    assert star.flux.size == 800 - (wavelength.size - np.unique(wavelength).size)
    assert (np.diff(star.wavelength) > 0).all()
    np.testing.assert_array_equal(star.wavelength, np.unique(wavelength))


def test_orders_that_disagree_are_refused():
    flux, wavelength = orders(level=1.3)
    assert "two orders overlap at 5950.0 to 5999.5 Angstrom" in reason({"flux": flux, "wavelength": wavelength})


def test_spectra_one_after_the_other_are_refused():
    parts = {"flux": np.tile(FLUX, 3), "wavelength": np.tile(WAVELENGTH, 3)}
    assert "3 times, so they are several spectra" in reason(parts)


def test_chips_from_red_to_blue():
    """As apVisit has them: three runs backwards."""
    place = np.arange(400)[::-1]
    star = spectrum({"flux": FLUX[place], "wavelength": WAVELENGTH[place]})
    np.testing.assert_array_equal(star.flux, FLUX)


# ---------------------------------------------------------------- what belongs to one spectrum


def test_a_mapping_tells_of_itself():
    parts = {"flux": FLUX, "wavelength": vacuum_to_air(WAVELENGTH * (1 + 30 / SPEED_OF_LIGHT)) / 10}
    told = {"name": "HD 9138", "medium": "air", "velocity": 30.0, "wavelength_unit": "nm", "resolving_power": 2000.0}
    reading = only(parts | told)
    np.testing.assert_allclose(reading.spectrum.wavelength, WAVELENGTH, rtol=1e-8)
    assert (reading.name, reading.spectrum.star_id, reading.spectrum.resolving_power) == ("HD 9138", "HD9138", 2000.0)
    assert reading.assumed == ()
    assert "(0.000100069, 30.00 km/s), so the one passed (1.00069e-05, 3.00 km/s) would be taken out as well" in reason(
        parts | told, velocity=3.0
    )
    np.testing.assert_array_equal(spectrum(parts | told, velocity=30.01).wavelength, reading.spectrum.wavelength)
    assert "velocity must lie within" in reason(parts | told | {"velocity": 3e5})
    assert "velocity must be in km/s" in reason(parts | told | {"velocity": 3 * u.K})
    with_unit = parts | told | {"velocity": 30_000.0 * u.m / u.s}
    np.testing.assert_allclose(spectrum(with_unit).wavelength, reading.spectrum.wavelength, rtol=1e-12)


def test_wrong_keys_are_refused_at_once():
    with pytest.raises(ValueError, match="a spectrum has no flux_eror"):
        read_source({"flux": FLUX, "wavelength": WAVELENGTH, "flux_eror": FLUX})
    with pytest.raises(ValueError, match="needs flux and wavelength"):
        read_source({"wave": WAVELENGTH})
    with pytest.raises(ValueError, match="wrong way round"):
        read_source((WAVELENGTH, FLUX))


def test_resolving_power():
    parts = {"flux": FLUX, "wavelength": WAVELENGTH}
    assert spectrum(parts, resolving_power=1800).resolving_power == 1800.0
    own = only(parts | {"resolving_power": np.full(400, 2000.0)}, resolving_power=1800)
    assert own.spectrum.resolving_power == 2000.0
    assert "resolving_power=1800 was not used, since the array tells 2000" in own.assumed
    varying = only(parts | {"resolving_power": np.linspace(1000, 3000, 400)})
    assert varying.spectrum.resolving_power == pytest.approx(2000.0)
    assert any("goes from 1000 to 3000" in sentence for sentence in varying.assumed)


def test_a_spectrum_is_at_rest():
    star = Spectrum(WAVELENGTH, FLUX, BAD, "HD1", "own")
    assert only(star).spectrum is star
    assert spectrum(star, resolving_power=900.0).resolving_power == 900.0
    assert only(star, AT_REST).spectrum is star
    assert only(star, AT_REST).assumed == ()
    assert "taken out twice" in reason(star, velocity=12.0)
    assert "HD1: is a Spectrum, whose wavelengths are in vacuum, but medium='air' was told" in reason(
        star, medium="air"
    )
    (among_others,) = read_source([star], Conventions(velocity=12.0))
    assert among_others.spectrum is star
    assert among_others.assumed == (
        "its own frame, at rest, was used, not a velocity of 12 km/s, which was told for those that do not tell theirs",
    )


# ---------------------------------------------------------------- several


def test_two_axes_and_ragged_lists_are_several_spectra():
    flux = np.stack([FLUX, 2 * FLUX, 3 * FLUX])
    for source in ((flux, WAVELENGTH), (flux, np.tile(WAVELENGTH, (3, 1))), {"flux": flux, "wavelength": WAVELENGTH}):
        readings = list(read_source(source))
        assert [reading.name for reading in readings] == ["row 0", "row 1", "row 2"]
        np.testing.assert_array_equal(readings[2].spectrum.flux, 3 * FLUX)
        assert count_source(source) == 3
    ragged = list(read_source(([FLUX, FLUX[:50]], [WAVELENGTH, WAVELENGTH[:50]])))
    assert [reading.spectrum.flux.size for reading in ragged] == [400, 50]


def test_a_list_of_anything_and_one_bad_one(tmp_path):
    path = survey.write_lamost(tmp_path / "a.fits")
    (tmp_path / "more").mkdir()
    survey.write_apstar(tmp_path / "more" / "b.fits")
    source = [
        (FLUX, WAVELENGTH),
        {"flux": FLUX, "wavelength": WAVELENGTH, "name": "HD 1"},
        (FLUX * np.nan, WAVELENGTH),
        path,
        Table({"flux": FLUX, "wavelength": WAVELENGTH}),
        tmp_path / "more",
        17,
        tmp_path / "absent.fits",
        {"flux": FLUX, "wavelength": WAVELENGTH, "name": "HD 1"},
    ]
    readings = list(read_source(source))
    assert [reading.spectrum is not None for reading in readings] == [1, 1, 0, 1, 1, 1, 0, 0, 1]
    names = [reading.name for reading in readings]
    assert names[:4] == ["spectrum 0", "HD 1", "spectrum 2", str(path)]
    assert names[5] == str(tmp_path / "more" / "b.fits")
    assert len(set(names)) == len(names)
    assert "there is no file" in readings[7].reason
    assert "got int" in readings[6].reason
    assert count_source(source) == len(source)
    alone = [only(one).spectrum for one in (source[0], path)]
    np.testing.assert_array_equal(readings[0].spectrum.flux, alone[0].flux)
    np.testing.assert_array_equal(readings[3].spectrum.flux, alone[1].flux)


def test_an_iterator_is_read_as_it_comes():
    """A stream without end; nothing is taken before it is asked for."""
    taken = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield {"flux": FLUX, "wavelength": WAVELENGTH, "name": "HD 1"}
            number += 1

    readings = read_source(endless())
    assert taken == []
    names = [next(readings).name for _ in range(3)]
    assert names == ["HD 1", "HD 1 (spectrum 1)", "HD 1 (spectrum 2)"]
    assert len(taken) == 3
    assert count_source(endless()) is None


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (5, TypeError),
        (None, TypeError),
        (FLUX, TypeError),
        (np.stack([FLUX, WAVELENGTH]), TypeError),
        ([FLUX, WAVELENGTH], TypeError),
        ([], ValueError),
        ({}, ValueError),
        (b"SIMPLE", TypeError),
        ("", ValueError),
        ((5000.0, 6000.0), TypeError),
        ("no/such/file.fits", FileNotFoundError),
        (Table({"flux": FLUX}), ValueError),
        (pd.DataFrame({"teff": [5000.0]}), ValueError),
        (Dataset.from_dict({"teff": [5000.0]}), ValueError),
    ],
)
def test_what_is_no_source_raises_at_once(source, error):
    with pytest.raises(error):
        read_source(source)


# ---------------------------------------------------------------- tables


def row_table(**more) -> dict:
    return {
        "name": ["HD 1", "HD 2"],
        "flux": np.stack([FLUX, 2 * FLUX]),
        "wavelength": np.tile(WAVELENGTH, (2, 1)),
    } | more


@pytest.mark.parametrize(
    "make", [Table, QTable, lambda columns: pd.DataFrame({k: list(v) for k, v in columns.items()})]
)
def test_a_spectrum_per_row(make):
    readings = list(read_source(make(row_table(ivar=np.stack([IVAR, IVAR]), teff=[5000.0, 6000.0]))))
    assert [reading.name for reading in readings] == ["HD 1", "HD 2"]
    np.testing.assert_array_equal(readings[1].spectrum.flux, 2 * FLUX)
    np.testing.assert_array_equal(readings[1].spectrum.ivar, IVAR)


def test_units_and_masks_of_columns():
    table = Table(row_table())
    table["wavelength"] = table["wavelength"] / 10
    table["wavelength"].unit = "nm"
    table["flux"] = MaskedColumn(table["flux"], mask=np.tile(BAD, (2, 1)), unit="mJy")
    table["flux_error"] = np.full((2, 400), 1e-4)
    table["flux_error"].unit = "Jy"
    table["velocity"] = [10e3, -10e3]
    table["velocity"].unit = "m/s"
    first, second = read_source(table)
    np.testing.assert_allclose(first.spectrum.wavelength, WAVELENGTH / (1 + 10 / SPEED_OF_LIGHT), rtol=1e-9)
    np.testing.assert_allclose(second.spectrum.wavelength, WAVELENGTH / (1 - 10 / SPEED_OF_LIGHT), rtol=1e-9)
    np.testing.assert_array_equal(first.spectrum.bad_pixel, BAD)
    np.testing.assert_allclose(first.spectrum.ivar[~BAD], 100.0)


def test_a_structured_array_is_a_table():
    array = np.zeros(400, dtype=[("loglam", "f8"), ("flux", ">f4"), ("ivar", "f4")])
    array["loglam"], array["flux"], array["ivar"] = np.log10(WAVELENGTH), FLUX, IVAR
    star = spectrum(array)
    np.testing.assert_allclose(star.wavelength, WAVELENGTH, rtol=1e-12)
    np.testing.assert_allclose(star.ivar, IVAR, rtol=1e-6)


def test_ambiguous_tables_are_refused():
    with pytest.raises(ValueError, match="flux alone holds arrays"):
        read_source(Table({"flux": np.ones((3, 5)), "wavelength": [5000.0, 5001.0, 5002.0]}))
    with pytest.raises(ValueError, match="its names are 2 different ones"):
        read_source(Table({"flux": FLUX, "wavelength": WAVELENGTH, "name": ["HD 1", "HD 2"] * 200}))
    with pytest.raises(ValueError, match="no row"):
        read_source(Table({"flux": FLUX, "wavelength": WAVELENGTH})[:0])


def test_one_bad_row_among_good_ones():
    table = Table(row_table())
    table["flux"][0] = np.nan
    first, second = read_source(table)
    assert "can be trusted" in first.reason
    np.testing.assert_array_equal(second.spectrum.flux, 2 * FLUX)


# ---------------------------------------------------------------- specutils


def specutils_spectrum(**more):
    specutils = pytest.importorskip("specutils")
    kind = getattr(specutils, "Spectrum", None) or specutils.Spectrum1D
    told = {"flux": FLUX * u.Jy, "spectral_axis": WAVELENGTH * u.AA} | more
    return kind(**{name: value for name, value in told.items() if value is not None})


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(np.full(400, 0.1)),
        VarianceUncertainty(np.full(400, 0.01)),
        InverseVariance(np.full(400, 100.0)),
        StdDevUncertainty(np.full(400, 100.0), unit="mJy"),
        VarianceUncertainty(np.full(400, 1e4), unit="mJy2"),
        InverseVariance(np.full(400, 1e-4), unit="mJy-2"),
    ],
)
def test_specutils_mask_and_uncertainty(uncertainty):
    star = spectrum(specutils_spectrum(uncertainty=uncertainty, mask=BAD))
    np.testing.assert_array_equal(star.bad_pixel, BAD)
    np.testing.assert_allclose(star.ivar[~BAD], 100.0)
    np.testing.assert_array_equal(star.flux, FLUX)


def test_specutils_redshift_is_taken_out_once_and_said():
    reading = only(specutils_spectrum(redshift=1e-3))
    np.testing.assert_allclose(reading.spectrum.wavelength, WAVELENGTH / 1.001, rtol=1e-12)
    assert any("its own redshift, 0.001 (299.79 km/s), was taken out" in sentence for sentence in reading.assumed)
    moving = only(specutils_spectrum(radial_velocity=50 * u.km / u.s))
    np.testing.assert_allclose(moving.spectrum.wavelength, WAVELENGTH / (1 + 50 / SPEED_OF_LIGHT), rtol=2e-8)
    assert "taken out as well" in reason(specutils_spectrum(redshift=1e-3), velocity=5.0)


@pytest.mark.parametrize(("ctype", "expected"), [("AWAV", SODIUM[1]), ("WAVE", SODIUM[0])])
def test_specutils_knows_its_medium_from_the_wcs(ctype, expected):
    from astropy.wcs import WCS

    words = {"CRVAL1": 5800.0, "CDELT1": 0.5, "CRPIX1": 1, "CTYPE1": ctype, "CUNIT1": "Angstrom", "NAXIS1": 400}
    flux = with_line(SODIUM[0]) * u.Jy
    reading = only(specutils_spectrum(flux=flux, spectral_axis=None, wcs=WCS(fits.Header(words))))
    assert line(reading.spectrum) == pytest.approx(expected, abs=0.01)
    assert any(f"as CTYPE = '{ctype}' says" in sentence for sentence in reading.assumed)


def test_specutils_of_several_rows_and_frequency():
    rows = specutils_spectrum(flux=np.stack([FLUX, 2 * FLUX]) * u.Jy)
    assert count_source(rows) == 2
    _, second = read_source(rows)
    np.testing.assert_array_equal(second.spectrum.flux, 2 * FLUX)
    frequency = specutils_spectrum(flux=FLUX[::-1] * u.Jy, spectral_axis=in_unit(WAVELENGTH, "THz")[::-1] * u.THz)
    np.testing.assert_allclose(spectrum(frequency).flux, FLUX)
    assert len(list(read_source([rows, frequency]))) == 3


# ---------------------------------------------------------------- rows of datasets


def own_rows(n_pixels=400, wavelength=True, survey_name="toy", n=2) -> Dataset:
    features = {"object_id": Value("string"), "survey": Value("string"), "restframe": Value("bool")}
    features |= {"resolving_power": Value("float32"), "flux": List(Value("float32")), "ivar": List(Value("float32"))}
    features |= {"bad_pixel": List(Value("bool")), "teff": Value("float32")}
    rows = {"object_id": [f"HD{i}" for i in range(n)], "survey": [survey_name] * n, "restframe": [True] * n}
    rows |= {
        "resolving_power": [1800.0] * n,
        "flux": [np.ones(n_pixels)] * n,
        "ivar": [None] + [np.ones(n_pixels)] * (n - 1),
    }
    rows |= {"bad_pixel": [np.arange(n_pixels) < 3] * n, "teff": [5000.0] * n}
    if wavelength:
        features["wavelength"], rows["wavelength"] = List(Value("float64")), [WAVELENGTH] * n
    return Dataset.from_dict(rows, features=Features(features))


def test_rows_as_our_builders_make_them():
    for rows in (own_rows(), own_rows().to_iterable_dataset(), DatasetDict({"test": own_rows()}), own_rows()[1]):
        readings = list(read_source(rows))
        star = readings[-1].spectrum
        np.testing.assert_array_equal(star.wavelength, WAVELENGTH)  # in float64
        assert star.bad_pixel.sum() == 3
        assert (star.star_id, star.survey, star.resolving_power) == ("HD1", "toy", 1800.0)
        assert readings[0].assumed == ()
        if not isinstance(rows, dict) or len(rows) == 1:
            assert (len(readings), readings[0].name, readings[0].spectrum.ivar) == (2, "HD0", None)
    assert count_source(own_rows()) == 2
    assert "at rest" not in str(read_source(own_rows()))
    assert (
        "velocity of 5.00 km/s would be taken out twice"
        in next(read_source(own_rows(), Conventions(velocity=5.0))).reason
    )
    assert all(reading.spectrum is not None for reading in read_source(own_rows(), AT_REST))
    assert "wavelengths are in vacuum" in next(read_source(own_rows(), Conventions(medium="air"))).reason
    with pytest.raises(ValueError, match="splits train, test; pass one"):
        read_source(DatasetDict({"train": own_rows(), "test": own_rows()}))


def test_a_slice_of_a_dataset_is_its_rows():
    """`dataset[:2]` is a mapping of lists."""
    rows = own_rows()
    for several in (rows[:2], rows.remove_columns("ivar").with_format("numpy")[:2]):
        assert count_source(several) == 2
        for one, other in zip(read_source(several), read_source(rows), strict=True):
            assert (one.name, one.assumed) == (other.name, other.assumed)
            np.testing.assert_array_equal(one.spectrum.wavelength, other.spectrum.wavelength)
            np.testing.assert_array_equal(one.spectrum.bad_pixel, other.spectrum.bad_pixel)
    np.testing.assert_allclose(list(read_source(rows[:2]))[1].spectrum.ivar, list(read_source(rows))[1].spectrum.ivar)
    assert [reading.name for reading in read_source(rows[1:])] == ["HD1"]
    assert count_source(rows[0]) == 1
    np.testing.assert_array_equal(spectrum(rows[0]).wavelength, WAVELENGTH)
    shared = own_rows(wavelength=False)[:2]
    assert "the row brings no wavelength" in next(read_source(shared)).reason
    for reading in read_source(shared | {"wavelength": WAVELENGTH}):
        np.testing.assert_array_equal(reading.spectrum.wavelength, WAVELENGTH)
    with pytest.raises(ValueError, match="object_id needs one entry for each of 2 spectra, got 1"):
        read_source(rows[:2] | {"object_id": ["HD0"]})


def test_rows_that_share_a_grid():
    rows = own_rows(wavelength=False)
    assert 'Pass {"rows": dataset, "wavelength":' in next(read_source(rows)).reason
    readings = list(read_source({"rows": rows, "wavelength": WAVELENGTH}))
    np.testing.assert_array_equal(readings[1].spectrum.wavelength, WAVELENGTH)
    assert readings[1].assumed == ()
    apogee = own_rows(7514, wavelength=False, survey_name="apogee")
    np.testing.assert_array_equal(next(read_source(apogee)).spectrum.wavelength, apogee_wavelength())


def test_rows_of_multimodaluniverse():
    pixels = {"flux": FLUX, "ivar": IVAR, "lsf_sigma": FLUX, "lambda": np.r_[WAVELENGTH[:398], -1, -1], "mask": BAD}
    rows = Dataset.from_dict(
        {"object_id": ["a", "b"], "spectrum": [pixels] * 2, "restframe": [True, False], "z": [0.1] * 2}
    )
    first, second = read_source(rows)
    np.testing.assert_allclose(first.spectrum.wavelength, WAVELENGTH[:398])
    np.testing.assert_array_equal(first.spectrum.bad_pixel, BAD[:398])
    assert any("as MultimodalUniverse has it" in sentence for sentence in first.assumed)
    assert any("2 of 400 pixels" in sentence for sentence in first.assumed)
    assert "not in the star's rest frame; pass velocity=" in second.reason
    assert count_source(rows[:2]) == 2
    of_slice, _ = read_source(rows[:2])
    np.testing.assert_array_equal(of_slice.spectrum.flux, first.spectrum.flux)
    (alone,) = read_source({"object_id": "c", "spectrum": pixels})
    np.testing.assert_array_equal(alone.spectrum.flux, first.spectrum.flux)


def test_a_long_stream_takes_constant_memory():
    """Nothing is kept of what was read, the names neither."""
    small = {"flux": [1.0, 2.0, 3.0], "wavelength": [5000.0, 5001.0, 5002.0]}
    readings = read_source({"name": f"HD {i}"} | small for i in range(10_000))
    for _ in range(50):
        next(readings)
    tracemalloc.start()
    repeated = sum("(" in next(readings).name for _ in range(400))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert repeated == 0
    assert held < 20_000


# ---------------------------------------------------------------- files


def test_a_folder_by_name_and_without_what_is_no_spectrum(tmp_path):
    (tmp_path / "b").mkdir()
    survey.write_lamost(tmp_path / "z.fits")
    survey.write_apstar(tmp_path / "b" / "a.dat")
    (tmp_path / "c.fits.gz").write_bytes(gzip.compress((tmp_path / "z.fits").read_bytes()))
    (tmp_path / "broken.fits").write_bytes((tmp_path / "z.fits").read_bytes()[:5000])
    (tmp_path / ".hidden").mkdir()
    survey.write_lamost(tmp_path / ".hidden" / "a.fits")
    for name in ("labels.csv", "README", "README.txt", "plot.png", ".DS_Store", PARAMETER_FILE, "a.py", "x.fits~"):
        (tmp_path / name).write_text("1 2")
    readings = list(read_source(str(tmp_path)))
    assert [reading.name for reading in readings] == ["b/a.dat", "broken.fits", "c.fits.gz", "z.fits"]
    assert [reading.spectrum is not None for reading in readings] == [True, False, True, True]
    assert "truncated" in readings[1].reason
    assert count_source(tmp_path) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no spectrum, but 0 other files"):
        read_source(tmp_path / "empty")
    (tmp_path / "empty" / "train.parquet").touch()
    with pytest.raises(ValueError, match="a dataset, not a folder of spectra"):
        read_source(tmp_path / "empty")


AIR = {"MILES", "STELIB"}
"""Formats whose files are in air."""


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_survey_s_file_tells_counts(tmp_path, name):
    """Alone it is not contradicted; among others its own is kept, in sentences; what agrees is no contradiction."""
    path = WRITERS[name][1](tmp_path / WRITERS[name][0])
    plain = only(path)
    assert plain.assumed == ()
    own, other = ("air", "vacuum") if name in AIR else ("vacuum", "air")
    unit = "um" if name == "IRTF" else "Angstrom"
    at_rest = {} if name == "LAMOST LRS" else {"velocity": 0.0}
    agreeing = only(path, medium=own, wavelength_unit=unit, **at_rest)
    assert agreeing.assumed == ()
    np.testing.assert_array_equal(agreeing.spectrum.wavelength, plain.spectrum.wavelength)
    if name != "LAMOST LRS":
        assert only(path, reader={"frame": "rest", "medium": own}).assumed == ()
        assert f"is {name}, which is read at rest already, but a velocity of 30 km/s was told" in reason(
            path, velocity=30.0
        )
    assert (
        f"{path}: is {name}, whose wavelengths are in {own}, but medium={other!r} was told; leave that out"
        in reason(path, medium=other)
    )
    assert f"whose wavelengths are in {unit}, but wavelength_unit='nm' was told" in reason(path, wavelength_unit="nm")
    told = Conventions(medium=other, velocity=30.0, wavelength_unit="nm", resolving_power=500.0)
    for (kept,) in (read_source(tmp_path, told), read_source([path], told), read_source(path, told, several=True)):
        assert kept.spectrum is not None, kept.reason
        np.testing.assert_array_equal(kept.spectrum.wavelength, plain.spectrum.wavelength)
        for mine in (
            f"medium, {own}, was used, not medium={other!r}",
            f"unit, {unit}, was used, not wavelength_unit='nm'",
            "was used, not a velocity of 30 km/s",
        ):
            assert sum(mine in sentence for sentence in kept.assumed) == 1, kept.assumed
        assert any("resolving_power=500 was not used" in sentence for sentence in kept.assumed)


def test_lamost_s_own_redshift_is_replaced_by_its_reader_s_option_alone(tmp_path):
    z = 24.0 / SPEED_OF_LIGHT
    path = survey.write_lamost(tmp_path / "a.fits", z=z)
    own = spectrum(path)
    for told in ({"velocity": 24.0}, {"velocity": 24.05}, {"redshift": z}):
        assert only(path, **told).assumed == ()
        np.testing.assert_array_equal(spectrum(path, **told).wavelength, own.wavelength)
    for told in ({"velocity": 0.0}, {"redshift": 0.0}, {"reader": {"frame": "rest"}}):
        refused = reason(path, **told)
        assert "tells its own redshift, 8.006e-05 (24.00 km/s), but a velocity of 0 km/s was told" in refused
        assert "reader={'velocity': 0} (--option velocity=0)" in refused
    for velocity in (0.0, 0 * u.km / u.s):
        replaced = only(path, reader={"velocity": velocity})
        np.testing.assert_allclose(replaced.spectrum.wavelength, own.wavelength * (1 + z), rtol=1e-12)
        assert replaced.assumed == (
            "its own redshift, 8.006e-05 (24.00 km/s), was replaced by the reader's option velocity, 0 km/s",
        )
    assert "velocity must be one number of km/s" in reason(path, reader={"velocity": "0"})
    # One that tells none is told.
    bare = survey.write_lamost(tmp_path / "b.fits", z=-9999.0)
    assert "Pass velocity= (km/s, positive = receding; --velocity)" in reason(bare)
    np.testing.assert_allclose(spectrum(bare, velocity=24.0).wavelength, own.wavelength, rtol=1e-12)
    assert only(bare, velocity=24.0).assumed == ()


def test_surveys_mixed_in_a_folder(tmp_path):
    """Text in vacuum at rest needs a word; those that tell themselves do not mind it."""
    survey.write_aspcapstar(tmp_path / "a.fits")
    survey.write_lamost(tmp_path / "b.fits", z=24.0 / SPEED_OF_LIGHT)
    write_text(tmp_path / "c.txt")
    (tmp_path / "d.txt").write_text("wavelength[nm] flux\n580 1\n590 1\n600 1\n")
    alone = [only(tmp_path / "a.fits"), only(tmp_path / "b.fits"), only(tmp_path / "c.txt", AT_REST)]
    told = {"medium": "vacuum", "velocity": 0.0, "wavelength_unit": "Angstrom"}
    for conventions in (Conventions(**told), Conventions(reader={"frame": "rest", "medium": "vacuum"})):
        readings = list(read_source(tmp_path, conventions))
        assert [reading.reason for reading in readings] == [None] * 4
        for reading, lone in zip(readings, alone, strict=False):
            np.testing.assert_array_equal(reading.spectrum.wavelength, lone.spectrum.wavelength)
        assert readings[3].spectrum.wavelength.tolist() == [5800.0, 5900.0, 6000.0]
        assert readings[0].assumed == ()
        assert readings[1].assumed == (
            "its own redshift, 8.006e-05 (24.00 km/s), was used, not a velocity of 0 km/s, which was told for those "
            "that do not tell theirs",
        )
    readings = list(read_source(tmp_path, Conventions(**told)))
    assert readings[3].assumed == (
        "its own unit, nm, was used, not wavelength_unit='Angstrom', which was told for those that do not tell theirs",
    )
    assert "come in 'nm', but wavelength_unit='Angstrom' was passed" in reason(tmp_path / "d.txt", **told)


def test_the_reader_s_options_reach_it(tmp_path):
    path = survey.write_apstar(tmp_path / "a.fits", n_visits=3)
    assert spectrum(path, reader={"row": 3, "all_pixels": True}).flux.shape == (8575,)
    assert "has no use for kind" in reason(path, reader={"kind": "observed"})


def write_image(path: Path, **words) -> Path:
    hdu = fits.PrimaryHDU(FLUX)
    hdu.header.update({"CRVAL1": 5800.0, "CDELT1": 0.5, "CRPIX1": 1, "CTYPE1": "WAVE", "CUNIT1": "Angstrom"} | words)
    hdu.writeto(path, checksum=True, overwrite=True)
    return path


def write_table(path: Path) -> Path:
    QTable({"wavelength": WAVELENGTH * u.AA, "flux": FLUX * u.Jy}).write(path, overwrite=True)
    with fits.open(path) as hdus:
        hdus.writeto(path, checksum=True, overwrite=True)
    return path


def write_text(path: Path) -> Path:
    rows = "\n".join(f"{w:.3f} {f:.6f} 0.01" for w, f in zip(WAVELENGTH, FLUX, strict=True))
    path.write_text(f"# wavelength flux flux_error\n{rows}\n")
    return path


def write_ecsv(path: Path) -> Path:
    QTable({"wavelength": WAVELENGTH * u.AA, "flux": FLUX * u.Jy}).write(path, format="ascii.ecsv", overwrite=True)
    return path


FOREIGN = {"image.fits": write_image, "table.fits": write_table, "star.txt": write_text, "star.ecsv": write_ecsv}
"""Files that tell neither medium nor frame."""


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_do_not_tell_must_be_told(tmp_path, name):
    pytest.importorskip("specutils")
    path = FOREIGN[name](tmp_path / name)
    assert only(path).spectrum is None
    if name.startswith("star"):
        assert "does not tell whether its wavelengths are in air or vacuum, nor the star's velocity" in reason(path)
    untold = reason(path)
    assert "velocity=" in untold
    assert "--velocity" in untold
    assert "frame=" not in untold
    assert "0 if it is at rest" in reason(path, medium="vacuum")
    star = spectrum(path, AT_REST)
    np.testing.assert_allclose(star.wavelength, WAVELENGTH, rtol=1e-9)
    np.testing.assert_allclose(star.flux, FLUX, atol=1e-6)
    assert star.star_id == Path(name).stem.upper()
    moving = spectrum(path, medium="air", redshift=1e-4, resolving_power=1000.0)
    np.testing.assert_allclose(vacuum_to_air(moving.wavelength * 1.0001), WAVELENGTH, rtol=1e-8)
    assert moving.resolving_power == 1000.0
    other = spectrum(path, reader={"medium": "vacuum", "frame": "rest", "star_id": "HD 5"})
    assert other.star_id == "HD5"
    np.testing.assert_array_equal(other.wavelength, star.wavelength)


@pytest.mark.parametrize(
    ("text", "told", "first"),
    [
        ("wavelength[nm],flux,sigma\n580,1,0.1\n590,1,0.1\n", {}, (5800.0, 100.0)),
        ("# made by hand\n# Wave (um)  flux  ivar\n0.58 1 100\n0.59 1 100\n", {}, (5800.0, 100.0)),
        ("5800\t1.5\n5900\tnan\n6000\t1\n", {}, (5800.0, None)),
        ("1.5 5800\n1.0 5900\n1.2 6000\n", {}, (5800.0, None)),
        ("580 1\n590 1\n600 1\n", {"wavelength_unit": "nm"}, (5800.0, None)),
        ("loglam flux\n3.763428 1\n3.770852 1\n", {}, (5800.0, None)),
    ],
)
def test_columns_of_text(tmp_path, text, told, first):
    path = tmp_path / "a.txt"
    path.write_text(text)
    star = spectrum(path, replace(AT_REST, **told))
    assert star.wavelength[0] == pytest.approx(first[0], rel=1e-6)
    assert (None if star.ivar is None else star.ivar[0]) == (None if first[1] is None else pytest.approx(first[1]))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("580 1\n590 1\n600 1\n", "looks like nm"),
        ("5800 1\n5900 1 2\n", "line 2: needs 2 numbers, got 3"),
        ("5800 1\n5900 one\n", "line 2: needs 2 numbers, got '5900 one'"),
        ("hello\n", "needs columns of numbers"),
        ("wavelength flux mask\n5800 1 0\n5900 1 1\n", "either sign"),
    ],
)
def test_text_that_is_no_spectrum(tmp_path, text, complaint):
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert complaint in reason(path, AT_REST)


def test_a_mask_of_text_has_the_sign_that_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("wavelength flux mask\n5800 1 0\n5900 1 1\n6000 1 0\n")
    for sign, bad in (("True is bad", [False, True, False]), ("True is good", [True, False, True])):
        star = spectrum(tmp_path / "a.txt", replace(AT_REST, bad_pixel=sign))
        assert star.bad_pixel.tolist() == bad


def test_unnamed_columns_are_said(tmp_path):
    (tmp_path / "a.txt").write_text("5800 1 0.1\n5900 1 0.1\n6000 1 0.1\n")
    reading = only(tmp_path / "a.txt", AT_REST)
    assert any("column 1 was taken for the wavelength" in sentence for sentence in reading.assumed)
    assert any("column 3 was not used" in sentence for sentence in reading.assumed)


# ---------------------------------------------------------------- damaged files

N_DAMAGED = int(os.environ.get("SPECTRAFM_DAMAGED_FILES", "300"))
"""How many the test makes; a release is tried with 10,000, which take some minutes."""

SUMMED = {"aspcapStar", "apStar / asStar", "mwmStar / mwmVisit", "astraStar", "LAMOST LRS", "IRTF"}


def write_summed(name: str, path: Path) -> Path:
    """A file with checksums, where its writer can."""
    write = WRITERS[name][1]
    return write(path, checksum=True) if name in SUMMED - {"mwmStar / mwmVisit", "astraStar"} else write(path)


def whole_files(folder: Path) -> dict[str, tuple[str, bytes, Conventions, Spectrum]]:
    """Name -> file name, content, what is told, and what it says."""
    read = {}
    for name, (file_name, _) in WRITERS.items():  # one at a time, since several share a name
        path = write_summed(name, folder / file_name)
        read[name] = (file_name, path.read_bytes(), Conventions(), spectrum(path))
    for file_name, write in FOREIGN.items():
        path = write(folder / file_name)
        read[file_name] = (file_name, path.read_bytes(), AT_REST, spectrum(path, AT_REST))
    return read


def sane(star: Spectrum) -> None:
    """What holds of every spectrum that is handed on."""
    assert star.wavelength.shape == star.flux.shape == star.bad_pixel.shape
    assert star.wavelength.dtype == star.flux.dtype == np.dtype(np.float64)
    assert np.isfinite(star.flux[~star.bad_pixel]).all()
    assert np.isfinite(star.wavelength).all()
    assert (np.diff(star.wavelength) > 0).all()
    assert star.star_id
    if star.ivar is not None:
        assert np.isfinite(star.ivar).all()
        assert (star.ivar[star.bad_pixel] == 0).all()


def test_damaged_files_are_read_or_refused(tmp_path):
    """Every format: cut, flipped, zeroed, swapped, other cards. Never an exception, never a second, nothing absurd."""
    pytest.importorskip("specutils")
    rng = np.random.default_rng(20_260_301)
    files = whole_files(tmp_path)
    outcomes: Counter[str] = Counter()
    for number in range(N_DAMAGED):
        name = list(files)[number % len(files)]
        file_name, raw, told, _ = files[name]
        if b"NAXIS" in raw:
            damaged, kind = damage(raw, rng)
        else:
            damaged, kind = bytearray(raw), "text"
            for position in rng.integers(0, len(raw), rng.integers(1, 20)):
                damaged[position] = rng.choice([*b"\0\n #,.-+eE0959x\xff", rng.integers(0, 256)])
        path = tmp_path / file_name
        path.write_bytes(gzip.compress(bytes(damaged), 1) if number % 10 == 3 else bytes(damaged))
        begun = time.process_time()
        readings = list(read_source(path, told))
        took = time.process_time() - begun
        (reading,) = readings
        where = f"{number} {kind} {name}: {reading.reason}"
        assert took < 1.0, where
        if reading.spectrum is None:
            assert "nobody foresaw" not in reading.reason, where
            outcomes["refused"] += 1
        else:
            sane(reading.spectrum)
            outcomes["read"] += 1
    assert outcomes["refused"] > 0.2 * N_DAMAGED
    assert outcomes["read"] > 0.1 * N_DAMAGED


def data_ranges(raw: bytes, tmp_path: Path) -> list[tuple[int, int]]:
    """First and last byte of the data of every HDU that has a DATASUM of its own, by astropy."""
    path = tmp_path / "ranges.fits"
    path.write_bytes(raw)
    with fits.open(path) as hdus:
        return [
            (int(info["datLoc"]), int(info["datLoc"] + hdu.size))
            for hdu in hdus
            if hdu.size and "DATASUM" in hdu.header
            for info in [hdu.fileinfo()]
        ]


def test_changed_data_are_seen_by_their_sum(tmp_path):
    """One bit of the data of a file with sums: refused, or the HDU it is in is not the one that is read."""
    pytest.importorskip("specutils")
    rng = np.random.default_rng(5)
    outcomes: Counter[bool] = Counter()
    for name, (file_name, raw, told, original) in whole_files(tmp_path).items():
        if b"DATASUM" not in raw:
            continue
        ranges = data_ranges(raw, tmp_path)
        for _ in range(max(3, N_DAMAGED // 40)):
            damaged = bytearray(raw)
            start, stop = ranges[rng.integers(len(ranges))]
            damaged[int(rng.integers(start, stop))] ^= 1 << int(rng.integers(8))
            path = tmp_path / file_name
            path.write_bytes(damaged)
            reading = only(path, told)
            outcomes[reading.spectrum is None] += 1
            if reading.spectrum is None:
                assert "DATASUM" in reading.reason, f"{name}: {reading.reason}"
            else:
                np.testing.assert_array_equal(reading.spectrum.flux, original.flux, err_msg=name)
                np.testing.assert_array_equal(reading.spectrum.bad_pixel, original.bad_pixel, err_msg=name)
                np.testing.assert_array_equal(reading.spectrum.wavelength, original.wavelength, err_msg=name)
    assert outcomes[True] > 10


def test_rows_of_our_own_synthetic_stars_need_nothing_else(tmp_path):
    """They are at rest, whatever velocity error was put in, and have APOGEE's pixels."""
    build_dataset([SyntheticConfig(n=300, seed=3)], tmp_path / "built", 1)
    rows = load_dataset(str(tmp_path / "built"), "synthetic", split="validation", streaming=True)
    assert "velocity" in rows.features
    for reading, row in zip(read_source(rows.take(3)), rows.take(3), strict=True):
        assert reading.spectrum is not None, reading.reason
        np.testing.assert_array_equal(reading.spectrum.wavelength, apogee_wavelength())
        np.testing.assert_allclose(reading.spectrum.flux, row["flux"], rtol=1e-6)
