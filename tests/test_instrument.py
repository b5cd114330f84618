"""Broadening, velocity, noise and gaps on the APOGEE grid: checked against what a line's moments must do."""

import numpy as np
import pytest

from spectrafm_hf.spectra import APOGEE_RESOLVING_POWER, FWHM_TO_SIGMA, SPEED_OF_LIGHT, apogee_wavelength
from spectrafm_hf.synthesis.instrument import (
    DETECTORS,
    LN_STEP,
    N_PIXELS,
    ApogeeConditions,
    broaden,
    broadening_kernels,
    convolve,
    lsf_variance,
    observe_apogee,
)

WAVELENGTH = apogee_wavelength()
LSF = SPEED_OF_LIGHT * FWHM_TO_SIGMA / APOGEE_RESOLVING_POWER
"""Sigma of the nominal line-spread function, km/s: 5.66."""
LINES = np.array([15_400.13, 16_031.7, 16_752.21])
"""One somewhere on each detector, at no particular place within its pixel."""
PERFECT = {
    "snr": (1e9, 1e9), "noise_shape": 0.0, "vmacro": (0.0, 0.0), "velocity": 0.0, "resolving_power": 0.0,
    "continuum": 0.0, "missing": 0.0,
}  # fmt: skip


def velocities(line):
    return SPEED_OF_LIGHT * np.log(WAVELENGTH / line)


def star(n=1, depth=0.5, sigma=LSF):
    flux = 1.0 - sum(depth * np.exp(-0.5 * (velocities(line) / sigma) ** 2) for line in LINES)
    return np.tile(flux.astype(np.float32), (n, 1))


def moments(flux, line):
    """Equivalent width, centroid and variance of a line: km/s, km/s, (km/s)^2; one per spectrum."""
    velocity = velocities(line)
    near = np.abs(velocity) < 120
    depth, velocity = 1.0 - flux[:, near].astype(np.float64), velocity[near]
    total = depth.sum(axis=1)
    centroid = depth @ velocity / total
    variance = (depth * (velocity - centroid[:, None]) ** 2).sum(axis=1) / total
    return total * LN_STEP * SPEED_OF_LIGHT, centroid, variance


def observed(flux, seed=0, **conditions):
    return observe_apogee(flux, ApogeeConditions(**PERFECT | conditions), np.random.default_rng(seed))


def test_the_grid_is_even_in_ln_wavelength():
    assert N_PIXELS == WAVELENGTH.size == 7514
    for detector in DETECTORS:
        np.testing.assert_allclose(np.diff(np.log(WAVELENGTH[detector])), LN_STEP, rtol=1e-9)
    steps = np.diff(np.log(WAVELENGTH))[[detector.stop - 1 for detector in DETECTORS[:-1]]]
    assert steps.min() > 100 * LN_STEP


# ---------------------------------------------------------------- kernels


def test_no_broadening_and_no_velocity_change_nothing():
    flux = star(2) + 0.01 * np.random.default_rng(0).standard_normal((2, N_PIXELS), dtype=np.float32)
    np.testing.assert_allclose(broaden(flux, np.zeros(2), np.zeros(2)), flux, atol=1e-6)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("velocity", [-12.0, -3.3, 0.4, 2.07, 5.2, 10.0])
def test_velocity_moves_a_line_by_itself(line, velocity):
    flux = star()
    seen = broaden(flux, np.zeros(1), np.array([velocity]))
    before, after = moments(flux, line), moments(seen, line)
    assert after[1][0] - before[1][0] == pytest.approx(velocity, abs=0.01)
    assert after[2][0] == pytest.approx(before[2][0], rel=0.005)
    shifted = 1 - 0.5 * np.exp(-0.5 * (velocities(line * (1 + velocity / SPEED_OF_LIGHT)) / LSF) ** 2)
    near = np.abs(velocities(line)) < 120
    np.testing.assert_allclose(seen[0, near], shifted[near], atol=1e-4)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("variance", [-8.0, -1.0, 0.5, 9.0, 50.0, 100.0])
def test_variances_add_and_equivalent_width_stays(line, variance):
    flux = star()
    seen = broaden(flux, np.array([variance]), np.array([0.7]))
    before, after = moments(flux, line), moments(seen, line)
    assert after[2][0] - before[2][0] == pytest.approx(variance, rel=0.01, abs=0.02)
    assert after[0][0] == pytest.approx(before[0][0], rel=1e-3)
    expected = 1 - 0.5 * LSF / np.sqrt(LSF**2 + variance) * np.exp(
        -0.5 * (velocities(line * (1 + 0.7 / SPEED_OF_LIGHT)) ** 2) / (LSF**2 + variance)
    )
    near = np.abs(velocities(line)) < 120
    np.testing.assert_allclose(seen[0, near], expected[near], atol=5e-4)


def test_kernels_keep_a_continuum():
    kernels = broadening_kernels(np.array([-8.0, 0.0, 100.0]), np.array([12.0, 3.0, -12.0]))
    assert kernels.shape == (3, 33)
    assert kernels.dtype == np.float32
    np.testing.assert_allclose(kernels.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(convolve(np.ones((3, N_PIXELS), np.float32), kernels), 1.0, atol=1e-6)


def test_convolution_is_the_plain_one():
    rng = np.random.default_rng(1)
    flux = rng.random((3, N_PIXELS), dtype=np.float32)
    kernels = rng.random((3, 33), dtype=np.float32) / 16
    seen = convolve(flux, kernels)
    for row in range(3):
        for detector in DETECTORS:
            ends = np.pad(flux[row, detector], 16, mode="edge")
            np.testing.assert_allclose(seen[row, detector], np.convolve(ends, kernels[row], "valid"), atol=2e-6)


def test_detectors_do_not_see_each_other():
    flux = star()
    changed = flux.copy()
    changed[:, DETECTORS[0]] = 0.2
    changed[:, DETECTORS[2]] = 3.0
    variance, velocity = np.array([50.0]), np.array([12.0])
    seen, seen_changed = broaden(flux, variance, velocity), broaden(changed, variance, velocity)
    np.testing.assert_array_equal(seen[:, DETECTORS[1]], seen_changed[:, DETECTORS[1]])
    np.testing.assert_allclose(seen_changed[:, DETECTORS[0]], 0.2, atol=1e-6)


@pytest.mark.parametrize(
    ("variance", "velocity", "message"),
    [
        (-9.0, 0.0, r"variance must lie in \[-8, 100\] \(km/s\)\^2, got \[-9, -9\]"),
        (150.0, 0.0, "got .150, 150.. Start from a spectrum of another resolving power"),
        (np.nan, 0.0, "got .nan, nan"),
        (0.0, 13.0, r"within 12 km/s, got \[13, 13\]. Bring the spectrum to the rest frame first"),
        (0.0, np.nan, "within 12 km/s"),
    ],
)
def test_what_a_kernel_cannot_hold_is_refused(variance, velocity, message):
    with pytest.raises(ValueError, match=message):
        broaden(star(), np.array([variance]), np.array([velocity]))


# ---------------------------------------------------------------- observing


def test_perfect_conditions_change_nothing():
    flux = star(3)
    seen = observed(flux)
    np.testing.assert_allclose(seen["flux"], flux, atol=1e-6)
    assert not seen["bad_pixel"].any()
    assert seen["bad_pixel"].dtype == bool
    assert {name: values.shape for name, values in seen.items() if name not in ("flux", "ivar", "bad_pixel")} == {
        "snr": (3,), "vmacro": (3,), "velocity": (3,), "lsf_change": (3,)
    }  # fmt: skip
    assert {values.dtype for name, values in seen.items() if name != "bad_pixel"} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(flux, star(3))  # what came is left alone


def test_macroturbulence_is_the_isotropic_gaussian():
    """exp(-(v / vmacro)^2) has the variance vmacro^2 / 2."""
    flux = star(40)
    seen = observed(flux, vmacro=(2.0, 10.0))
    growth = moments(seen["flux"], LINES[1])[2] - moments(flux, LINES[1])[2]
    np.testing.assert_allclose(growth, seen["vmacro"].astype(float) ** 2 / 2, rtol=0.01)
    assert seen["vmacro"].min() < 3 < 9 < seen["vmacro"].max()


def test_resolving_power_varies_as_said():
    flux = star(400)
    seen = observed(flux, resolving_power=0.05, vmacro=(3.0, 3.0))
    expected = lsf_variance(APOGEE_RESOLVING_POWER * seen["lsf_change"].astype(float)) + 3.0**2 / 2
    np.testing.assert_allclose(moments(seen["flux"], LINES[2])[2], expected, rtol=0.005)
    assert np.std(seen["lsf_change"]) == pytest.approx(0.05, rel=0.12)
    assert np.mean(seen["lsf_change"]) == pytest.approx(1.0, abs=0.01)
    assert np.sqrt(lsf_variance(APOGEE_RESOLVING_POWER)) == pytest.approx(LSF)


def test_velocities_scatter_as_said():
    seen = observed(star(400), velocity=2.0)
    np.testing.assert_allclose(
        moments(seen["flux"], LINES[0])[1] - moments(star(), LINES[0])[1], seen["velocity"], atol=0.02
    )
    assert np.std(seen["velocity"]) == pytest.approx(2.0, rel=0.12)


def test_noise_has_the_inverse_variance_given_with_it():
    flux = star(200)
    seen = observed(flux, snr=(50.0, 500.0), noise_shape=0.3)
    pull = (seen["flux"] - flux) * np.sqrt(seen["ivar"])
    assert np.std(pull) == pytest.approx(1.0, abs=0.002)
    assert np.mean(pull) == pytest.approx(0.0, abs=0.005)
    assert np.abs(np.std(pull, axis=1) - 1).max() < 0.04
    assert 50 <= seen["snr"].min() < 60
    assert 420 < seen["snr"].max() <= 500
    assert np.median(seen["snr"]) == pytest.approx(np.sqrt(50 * 500), rel=0.2)  # evenly in its logarithm
    shape = np.log(np.sqrt(seen["ivar"]) / seen["snr"][:, None])
    assert np.std(shape) == pytest.approx(0.3, rel=0.1)
    assert np.abs(np.diff(shape[:, DETECTORS[0]], axis=1)).max() < 0.01  # smooth along a detector
    flat = observed(flux, snr=(100.0, 100.0))
    np.testing.assert_allclose(flat["ivar"], 100.0**2, rtol=1e-5)


def test_continuum_errors_are_smooth_and_of_the_size_asked_for():
    flux = star(300)
    wiggle = observed(flux, continuum=0.02)["flux"] / flux - 1
    assert np.std(wiggle) == pytest.approx(0.02, rel=0.06)
    for detector in DETECTORS:
        assert np.abs(np.diff(wiggle[:, detector], axis=1)).max() < 0.001
    jumps = wiggle[:, DETECTORS[1].start] - wiggle[:, DETECTORS[0].stop - 1]
    assert np.std(jumps) > 0.02  # each detector errs by itself


def test_missing_pixels_come_in_runs_and_carry_nothing():
    seen = observed(star(300), missing=0.2)
    bad = seen["bad_pixel"]
    share = bad.mean(axis=1)
    assert share.max() < 0.21
    assert share.mean() == pytest.approx(0.1, abs=0.015)
    assert (seen["ivar"][bad] == 0).all()
    assert (seen["flux"][bad] == 0).all()
    assert (seen["ivar"][~bad] > 0).all()
    sparse = observed(star(300), missing=0.01)["bad_pixel"].astype(np.int8)
    run_length = sparse.sum() / (np.diff(sparse, axis=1, prepend=0) == 1).sum()
    assert run_length == pytest.approx(4.5, abs=0.4)


def test_what_is_drawn_does_not_depend_on_the_stars():
    usual = ApogeeConditions()
    one = observe_apogee(star(4), usual, np.random.default_rng(5))
    other = observe_apogee(star(4, depth=0.1), usual, np.random.default_rng(5))
    for name in ("ivar", "bad_pixel", "snr", "vmacro", "velocity", "lsf_change"):
        np.testing.assert_array_equal(one[name], other[name])
    assert not np.array_equal(one["flux"], other["flux"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"snr": (0.0, 100.0)}, r"snr must be an increasing range of positive numbers, got \(0.0, 100.0\)"),
        ({"snr": (200.0, 100.0)}, "snr must be an increasing range"),
        ({"vmacro": (-1.0, 5.0)}, r"vmacro must be an increasing range within \[0, 13\] km/s"),
        ({"vmacro": (5.0, 20.0)}, "vmacro"),
        ({"velocity": 6.0}, r"velocity must lie in \[0, 3\] km/s, got 6"),
        ({"resolving_power": 0.2}, r"resolving_power must lie in \[0, 0.05\], got 0.2"),
        ({"missing": 1.0}, "missing"),
        ({"continuum": -0.1}, "continuum"),
        ({"noise_shape": np.nan}, "noise_shape"),
    ],
)
def test_impossible_conditions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ApogeeConditions(**wrong)


def test_other_grids_are_refused():
    with pytest.raises(ValueError, match=r"shape \(n_spectra, 7514\), the APOGEE pixels, got \(2, 8575\)"):
        observed(np.ones((2, 8575), np.float32))


def test_the_harshest_conditions_allowed_can_be_observed():
    harsh = ApogeeConditions(vmacro=(13.0, 13.0), velocity=3.0, resolving_power=0.05)
    sharp = ApogeeConditions(vmacro=(0.0, 0.0), velocity=3.0, resolving_power=0.05)
    for conditions in (harsh, sharp):
        seen = observe_apogee(star(1000), conditions, np.random.default_rng(0))
        assert np.isfinite(seen["flux"]).all()
