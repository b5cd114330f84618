"""Wavelengths, grids and pseudo-continua against numbers known beforehand."""

import numpy as np
import pytest

from spectrafm_hf.spectra import (
    PseudoContinuum,
    Rebinning,
    Spectrum,
    air_to_vacuum,
    apogee_wavelength,
    check_wavelength,
    highest_resolving_power,
    pixel_edges,
    rebin,
    vacuum_to_air,
)

# ---------------------------------------------------------------- air and vacuum


@pytest.mark.parametrize(
    ("line", "air", "vacuum"),
    [
        ("Ca II K", 3933.663, 3934.777),
        ("H beta", 4861.325, 4862.683),
        ("Na D2", 5889.950, 5891.583),
        ("Na D1", 5895.924, 5897.558),
        ("H alpha", 6562.801, 6564.614),
        ("Ca II 8542", 8542.09, 8544.44),
    ],
)
def test_known_lines(line, air, vacuum):
    """NIST Atomic Spectra Database, Ritz wavelengths."""
    assert air_to_vacuum(np.array([air]))[0] == pytest.approx(vacuum, abs=0.01)
    assert vacuum_to_air(np.array([vacuum]))[0] == pytest.approx(air, abs=0.01)


def test_round_trip():
    wavelength = np.linspace(2000.0, 17_000.0, 5000)
    there_and_back = vacuum_to_air(air_to_vacuum(wavelength))
    np.testing.assert_allclose(there_and_back, wavelength, rtol=0, atol=1e-5)


def test_agrees_with_ciddor():
    """Ciddor (1996), standard dry air with 450 ppm CO2, eq. 1: another measurement of the same air."""
    vacuum = np.linspace(3600.0, 17_000.0, 200)
    sigma2 = (1e4 / vacuum) ** 2
    index = 1 + 1e-8 * (5_792_105 / (238.0185 - sigma2) + 167_917 / (57.362 - sigma2))
    np.testing.assert_allclose(vacuum_to_air(vacuum), vacuum / index, rtol=0, atol=2e-3)


def test_the_shift_is_what_everybody_fears():
    """Taken for each other, air and vacuum differ by 83 km/s at 5,500 Angstrom."""
    velocity = 299_792.458 * (air_to_vacuum(np.array([5500.0]))[0] / 5500.0 - 1)
    assert velocity == pytest.approx(83.3, abs=0.3)


def test_conversion_is_in_float64():
    assert air_to_vacuum(np.array([5500], dtype=np.int64)).dtype == np.float64
    assert vacuum_to_air(np.array([5500.0], dtype=np.float32)).dtype == np.float64


# ---------------------------------------------------------------- a spectrum


def made(**changes):
    told = {"wavelength": np.arange(5000.0, 5010.0), "flux": np.ones(10), "bad_pixel": np.zeros(10, dtype=bool)}
    return Spectrum(**{**told, "star_id": "HD1", "survey": "miles", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flux": np.ones(9)}, r"HD1: flux must be 1-D .* \(10,\), got \(9,\)"),
        ({"bad_pixel": np.zeros(11, dtype=bool)}, "HD1: bad_pixel"),
        ({"ivar": np.ones(3)}, "HD1: ivar"),
        ({"wavelength": np.ones((2, 5)), "flux": np.ones((2, 5)), "bad_pixel": np.zeros((2, 5), dtype=bool)}, "1-D"),
        ({"wavelength": np.arange(5000.0, 5010.0)[::-1]}, "HD1: wavelength must be finite, positive and increasing"),
        ({"wavelength": np.full(10, 5000.0)}, "increasing"),
        ({"wavelength": np.arange(-5.0, 5.0)}, "positive"),
        ({"wavelength": np.where(np.arange(10) == 3, np.nan, np.arange(5000.0, 5010.0))}, "finite"),
    ],
)
def test_spectrum_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_spectrum_keeps_what_it_was_given():
    spectrum = made(labels={"fe_h": -1.2}, ivar=np.zeros(10))
    assert spectrum.labels["fe_h"] == -1.2
    assert spectrum.fwhm is None
    assert spectrum.label_errors == {}


@pytest.mark.parametrize(
    ("wavelength", "message"),
    [
        ([550.0, 551.0], "Nanometres. Multiply by 10"),
        ([0.55, 0.551], r"\[0.55, 0.551\].*Microns. By 1e4"),
        ([3.74, 3.75], "Logarithmic. Take 10"),
        ([15_000.0], r"no pixel lies in \[3600, 7400\] vacuum Angstrom"),
        ([], "empty"),
        ([5000.0, np.nan, np.inf], "2 non-finite and 0 non-positive"),
        ([5000.0, 0.0, -5.0], "0 non-finite and 2 non-positive"),
    ],
)
def test_wavelengths_in_another_unit_are_refused(wavelength, message):
    with pytest.raises(ValueError, match=message):
        check_wavelength(np.array(wavelength), 3600.0, 7400.0)


def test_one_pixel_in_range_is_enough():
    check_wavelength(np.array([100.0, 5000.0, 20_000.0]), 3600.0, 7400.0)


# ---------------------------------------------------------------- pixels


def test_pixel_edges_meet_half_way_and_do_not_cross_gaps():
    wavelength = np.array([10.0, 11.0, 12.0, 30.0, 31.0, 32.0])
    lower, upper = pixel_edges(wavelength)
    np.testing.assert_allclose(lower, [9.5, 10.5, 11.5, 29.25, 30.5, 31.5])
    np.testing.assert_allclose(upper, [10.5, 11.5, 12.75, 30.5, 31.5, 32.5])


def test_lone_pixel_is_one_angstrom_wide():
    assert pixel_edges(np.array([5000.0])) == (4999.5, 5000.5)


def test_rebinning_to_the_same_grid_changes_nothing():
    rng = np.random.default_rng(0)
    wavelength, good = 5000.0 * 1.0003 ** np.arange(300), rng.random(300) > 0.2
    flux = rng.normal(size=(3, 300))
    rebinned, still_good = rebin(wavelength, flux, good, wavelength)
    np.testing.assert_array_equal(still_good, good)
    np.testing.assert_allclose(rebinned, np.where(good, flux, 0.0), atol=1e-9)


@pytest.mark.parametrize("step", [0.37, 1.0, 2.3])
def test_rebinning_conserves_the_flux_of_a_line(step):
    """Equivalent width 1.5 Angstrom before, 1.5 Angstrom after."""
    wavelength = np.arange(5000.0, 5060.0, 0.5)
    line = 1.5 * np.exp(-0.5 * ((wavelength - 5030.2) / 1.1) ** 2) / (1.1 * np.sqrt(2 * np.pi))
    coarse = np.arange(5005.0, 5055.0, step)
    rebinned, good = rebin(wavelength, 1 - line, np.ones(wavelength.size, dtype=bool), coarse)
    assert good.all()
    assert ((1 - rebinned) * step).sum() == pytest.approx(1.5, rel=1e-3)
    assert ((1 - rebinned) * step * coarse).sum() / 1.5 == pytest.approx(5030.2, rel=1e-3)


def test_rebinning_averages():
    wavelength = np.arange(0.5, 8.0)  # pixels [0, 1], [1, 2], ...
    rebinned, good = rebin(wavelength, np.arange(8.0), np.ones(8, dtype=bool), np.array([1.0, 3.0, 5.0, 7.0]))
    np.testing.assert_allclose(rebinned, [0.5, 2.5, 4.5, 6.5])
    assert good.all()


def test_bad_pixels_are_left_out_and_gaps_stay_bad():
    wavelength, flux = np.arange(0.5, 12.0), np.arange(12.0)
    good = np.ones(12, dtype=bool)
    good[[1, 4, 5]] = False
    flux[~good] = 1e6
    rebinned, covered = rebin(wavelength, flux, good, np.arange(1.0, 12.0, 2.0))
    np.testing.assert_array_equal(covered, [True, True, False, True, True, True])
    np.testing.assert_allclose(rebinned, [0.0, 2.5, 0.0, 6.5, 8.5, 10.5])  # the first: its good half alone


def test_nothing_is_invented_beyond_the_ends():
    rebinned, good = rebin(np.arange(10.0, 20.0), np.ones(10), np.ones(10, dtype=bool), np.arange(0.0, 30.0))
    np.testing.assert_array_equal(np.flatnonzero(good), np.arange(10, 20))
    assert not rebinned[~good].any()


# ---------------------------------------------------------------- pseudo-continuum


def test_constant_is_its_own_continuum():
    wavelength = np.arange(5000.0, 6000.0)
    good = np.random.default_rng(0).random(1000) > 0.3
    continuum = PseudoContinuum(wavelength, 60.0)(np.full((1, 1000), 3.5), good[None])
    np.testing.assert_allclose(continuum, 3.5, rtol=1e-5)


def test_continuum_is_the_gaussian_mean():
    """Against the formula of the docstring, evaluated directly; linear between nodes s / 4 apart: 1e-3 at most."""
    rng = np.random.default_rng(1)
    wavelength, good = np.arange(5000.0, 5800.0), rng.random(800) > 0.2
    flux = 1 + 0.3 * rng.standard_normal(800)
    weight = np.exp(-0.5 * ((wavelength[:, None] - wavelength) / 60.0) ** 2) * good
    expected = weight @ flux / weight.sum(axis=1)
    found = PseudoContinuum(wavelength, 60.0)(flux[None], good[None])[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.std(expected) > 5e-3


def test_slow_factor_drops_out():
    """A sensitivity that changes by 30 % over 3,000 Angstrom; the window is 60."""
    wavelength = np.arange(4000.0, 7000.0)
    flux = 1 + 0.2 * np.random.default_rng(2).standard_normal(3000)
    factor = 1 + 0.15 * np.sin(2 * np.pi * wavelength / 6000)
    continuum, good = PseudoContinuum(wavelength, 60.0), np.ones((1, 3000), dtype=bool)
    normalised = flux / continuum(flux[None], good)[0]
    disturbed = flux * factor / continuum((flux * factor)[None], good)[0]
    assert np.abs(disturbed - normalised)[150:-150].max() < 4e-3
    assert np.abs(disturbed - normalised).max() < 2e-2


def test_a_window_has_the_nodes_of_the_whole():
    """With the pixels outside hidden, whole and window agree: the answer does not hang on where the grid begins."""
    wavelength = np.arange(5000.0, 6000.0)
    flux = 1 + 0.3 * np.random.default_rng(3).standard_normal(1000)
    for window in (slice(137, 480), slice(700, 1000)):
        good = np.zeros((1, 1000), dtype=bool)
        good[:, window] = True
        whole = PseudoContinuum(wavelength, 60.0)(flux[None], good)[0, window]
        part = PseudoContinuum(wavelength[window], 60.0)(flux[None, window], good[:, window])[0]
        np.testing.assert_allclose(part, whole, rtol=1e-5)


def test_no_continuum_without_good_pixels_near():
    wavelength = np.arange(5000.0, 7000.0)
    good = (wavelength < 5200)[None]
    continuum = PseudoContinuum(wavelength, 60.0)(np.ones((1, 2000)), good)[0]
    assert np.isfinite(continuum[:300]).all()
    assert np.isnan(continuum[-1000:]).all()


def test_a_rebinning_serves_any_number_of_spectra():
    """As each would be rebinned alone, whatever came before it."""
    rng = np.random.default_rng(4)
    old, new = np.sort(rng.uniform(5000, 5200, 700)), np.arange(5010.0, 5190.0, 0.7)
    rebinning = Rebinning(old, new)
    for _ in range(3):
        flux, good = rng.normal(1, 0.1, old.size), rng.random(old.size) > 0.1
        for found, expected in zip(rebinning(flux, good), rebin(old, flux, good, new), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_rebinning_to_parts_of_pixels_or_whole_ones_keeps_their_values():
    """Two ways through: new pixels inside old ones have their flux; a new one of two old ones has their mean."""
    old = np.arange(5000.0, 5100.0, 1.0)
    flux = np.random.default_rng(5).normal(1, 0.1, old.size)
    good = np.ones(old.size, bool)
    good[40] = False
    halves = np.sort(np.concatenate([old - 0.25, old + 0.25]))
    found, usable = rebin(old, flux, good, halves)
    np.testing.assert_allclose(found[usable], np.repeat(flux, 2)[usable], rtol=1e-12)
    assert list(np.flatnonzero(~usable)) == [80, 81]
    pairs = old[::2] + 0.5
    found, usable = rebin(old, flux, good, pairs)
    expected = flux.reshape(-1, 2).mean(axis=1)
    expected[20] = flux[41]  # the good half of it
    assert usable.all()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_two_pixels_hold_a_line():
    """0.9 Angstrom at 5,000 Angstrom hold 5000 / 1.8; APOGEE's pixels, of 6e-6 in log10, hold R = 36,000."""
    assert highest_resolving_power(5000 + 0.9 * np.arange(-5, 6)) == pytest.approx(5000 / 1.8, rel=1e-3)
    assert highest_resolving_power(apogee_wavelength()[::-1]) == pytest.approx(1 / (2 * 6e-6 * np.log(10)), rel=1e-3)
    assert np.isnan(highest_resolving_power(np.array([5000.0, 5000.0])))
