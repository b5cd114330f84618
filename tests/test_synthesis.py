"""Synthetic spectra against what is known about stars, spectrographs and the Doppler effect."""

from pathlib import Path

import numpy as np
import pytest
from conftest import star_flux
from safetensors import safe_open

from spectrafm_hf.spectra import SPEED_OF_LIGHT
from spectrafm_hf.synthesis import cannon
from spectrafm_hf.synthesis.cannon import BOUNDS, GRID_FILE, CannonSynthesizer
from spectrafm_hf.synthesis.label_tie import LabelTie
from spectrafm_hf.synthesis.observing import ObservingConditions, observe, smooth_noise
from spectrafm_hf.synthesis.sampler import LabelSampler

SUN = [5777.0, 4.44, 0.0]
MG_WINDOW = np.arange(5150.0, 5250.0, 0.5)
H_ALPHA = 6564.61


def equivalent_width(flux, step):
    """Angstrom."""
    return (1 - flux).sum(axis=-1) * step


def generators(n, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(n)]


# ---------------------------------------------------------------- stars


@pytest.mark.parametrize("star", [(4500.0, 4.6), (5777.0, 4.44), (4500.0, 2.0)])
def test_lines_deepen_with_metallicity(star):
    spectra = CannonSynthesizer(MG_WINDOW, fwhm=2.5)(np.array([[*star, fe_h] for fe_h in np.arange(-2.5, 0.51, 0.25)]))
    width = equivalent_width(spectra, 0.5)
    assert (np.diff(width) > 0).all()
    assert width[-1] > 3 * width[0]


def test_balmer_lines_are_deeper_in_hotter_stars():
    window = np.arange(6540.0, 6590.0, 0.5)
    cool, hot = CannonSynthesizer(window, fwhm=2.5)(np.array([[4500.0, 4.6, 0.0], [6500.0, 4.3, 0.0]]))
    line = np.abs(window - H_ALPHA) < 3
    assert cool[line].min() > hot[line].min() + 0.2
    assert abs(window[np.argmin(hot)] - H_ALPHA) <= 1.0


def test_metal_lines_are_weaker_in_hotter_stars():
    spectra = CannonSynthesizer(MG_WINDOW, fwhm=2.5)(np.array([[teff, 4.4, 0.0] for teff in (4500.0, 5500.0, 6500.0)]))
    assert (np.diff(equivalent_width(spectra, 0.5)) < 0).all()


def test_magnesium_wings_feel_gravity():
    """Mg b is pressure-broadened: stronger in a K dwarf than in a K giant."""
    triplet = np.arange(5165.0, 5190.0, 0.5)
    giant, dwarf = CannonSynthesizer(triplet, fwhm=2.5)(np.array([[4700.0, 2.0, 0.0], [4700.0, 4.6, 0.0]]))
    assert equivalent_width(dwarf, 0.5) > 1.15 * equivalent_width(giant, 0.5)


@pytest.mark.parametrize("line", [5891.583, 5897.558])
def test_sodium_stands_at_its_vacuum_wavelength(line):
    """In air it would stand 1.63 Angstrom to the blue."""
    window = np.arange(5870.0, 5920.0, 0.1)
    flux = CannonSynthesizer(window, fwhm=0.5)(np.array([SUN]))[0]
    near = np.abs(window - line) < 2
    assert window[near][np.argmin(flux[near])] == pytest.approx(line, abs=0.2)
    assert flux[near].min() < 0.5


def test_continuum_is_near_one():
    flux = CannonSynthesizer(np.arange(6000.0, 7000.0, 1.0), fwhm=2.5)(np.array([SUN, [5777.0, 4.44, -2.0]]))
    assert flux.dtype == np.float32
    assert np.percentile(flux, 95, axis=1) == pytest.approx([1.0, 1.0], abs=0.02)
    assert flux.max() < 1.05
    assert flux.min() > 0


# ---------------------------------------------------------------- spectrographs


def test_lower_resolution_makes_lines_shallower_and_keeps_their_width():
    window = np.arange(5850.0, 5940.0, 0.2)
    sharp, blurred = (CannonSynthesizer(window, fwhm=fwhm)(np.array([SUN]))[0] for fwhm in (0.5, 3.0))
    assert blurred.min() > sharp.min() + 0.3
    assert equivalent_width(blurred, 0.2) == pytest.approx(equivalent_width(sharp, 0.2), rel=0.03)


def test_line_spread_function_is_the_gaussian_asked_for():
    """A spectrum at 0.5 Angstrom blurred by hand to 3: sigmas add in squares."""
    window = np.arange(5850.0, 5940.0, 0.1)
    sharp, asked = (CannonSynthesizer(window, fwhm=fwhm)(np.array([SUN]))[0] for fwhm in (0.5, 3.0))
    sigma = np.sqrt(3.0**2 - 0.5**2) / 2.3548
    kernel = np.exp(-0.5 * (np.arange(-8.0, 8.05, 0.1) / sigma) ** 2)
    blurred = np.convolve(sharp, kernel / kernel.sum(), mode="same")
    np.testing.assert_allclose(asked[100:-100], blurred[100:-100], atol=2e-3)


def test_resolving_power_is_wavelength_over_fwhm():
    window = np.arange(5885.0, 5900.0, 0.2)
    power = 5892.0 / 2.5
    constant, proportional = CannonSynthesizer(window, fwhm=2.5), CannonSynthesizer(window, resolving_power=power)
    labels = np.array([SUN])
    np.testing.assert_allclose(constant(labels), proportional(labels), atol=2e-3)
    other = CannonSynthesizer(window, resolving_power=2 * power)(labels)
    assert np.abs(other - constant(labels)).max() > 0.05


@pytest.mark.parametrize("instrument", [{"fwhm": 2.5}, {"resolving_power": 2000.0}])
def test_a_pixel_does_not_depend_on_the_window(instrument):
    whole, labels = np.arange(5000.5, 5600.0), np.array([SUN, [4200.0, 1.5, -1.5]])
    flux = CannonSynthesizer(whole, **instrument)(labels)
    for window in (slice(100, 200), slice(450, None)):
        part = CannonSynthesizer(whole[window], **instrument)(labels)
        np.testing.assert_allclose(part, flux[:, window], atol=1e-5)


def test_a_star_does_not_depend_on_its_batch():
    synthesizer = CannonSynthesizer(MG_WINDOW, fwhm=2.5)
    labels = np.array([SUN, [4200.0, 1.5, -1.5], [6500.0, 4.2, -0.5]])
    for row, together in zip(labels, synthesizer(labels), strict=True):
        np.testing.assert_allclose(synthesizer(row), together[None], atol=1e-6)


def test_hot_model_takes_over_where_the_cool_one_ends():
    window = np.arange(6540.0, 6590.0, 0.5)
    labels = np.array([[8000.0, 4.2, 0.0]])
    cool, hot = (CannonSynthesizer(window, fwhm=2.5, model=name)(labels)[0] for name in ("cool", "hot"))
    assert equivalent_width(hot, 0.5) == pytest.approx(equivalent_width(cool, 0.5), rel=0.35)
    assert abs(window[np.argmin(hot)] - H_ALPHA) <= 1.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[3000.0, 4.0, 0.0]], r"teff in \[3500, 8000\] K, got \[3000, 3000\] K"),
        ([SUN, [5000.0, 5.5, 0.0]], r"logg in \[0, 5\] dex, got \[4.44, 5.5\] dex"),
        ([[5000.0, 4.0, -3.0]], r"fe_h in \[-2.5, 0.5\] dex, got \[-3, -3\] dex"),
        ([[5000.0, 4.0, np.nan]], r"fe_h in \[-2.5, 0.5\] dex, got \[nan, nan\]"),
    ],
)
def test_stars_outside_the_grid_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        CannonSynthesizer(MG_WINDOW, fwhm=2.5)(np.array(labels))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"wavelength": np.arange(2900.0, 3100.0), "fwhm": 2.5}, r"reaches \[30\d\d, 179\d\d\] vacuum Angstrom"),
        ({"wavelength": np.arange(17_900.0, 18_100.0), "fwhm": 2.5}, r"got \[17900, 18099\]"),
        ({"wavelength": MG_WINDOW}, "either fwhm .* or resolving_power"),
        ({"wavelength": MG_WINDOW, "fwhm": 2.5, "resolving_power": 2000.0}, "not both"),
        ({"wavelength": MG_WINDOW, "fwhm": 2.5, "model": "lukewarm"}, "one of cool, hot, got 'lukewarm'"),
    ],
)
def test_instruments_the_grid_cannot_serve_are_refused(told, message):
    with pytest.raises(ValueError, match=message):
        CannonSynthesizer(**told)


def test_grid_is_small_safe_and_licensed():
    assert GRID_FILE.stat().st_size <= 12_000_000
    assert {path.suffix for path in GRID_FILE.parent.iterdir()} <= {".py", ".safetensors", ".cannon_grid", ""}
    licence = GRID_FILE.with_name("LICENSE.cannon_grid").read_text()
    assert "MIT" in licence
    assert "Nidever" in licence
    assert "pickle" not in Path(cannon.__file__).read_text()
    with safe_open(GRID_FILE, framework="np") as grid:
        assert grid.metadata()["medium"] == "air"
        assert {key.split(".")[0] for key in grid.keys()} == {"cool", "hot"}  # noqa: SIM118


# ---------------------------------------------------------------- which stars


@pytest.fixture(scope="module")
def drawn():
    sampler = LabelSampler()
    return np.stack([sampler.draw(rng) for rng in generators(3000)])


def test_sampled_stars_lie_inside_the_grid(drawn):
    for column, (name, (low, high)) in enumerate(BOUNDS["cool"].items()):
        assert low <= drawn[:, column].min(), name
        assert drawn[:, column].max() <= high, name
    assert drawn[:, 0].min() >= 3600
    assert drawn[:, 0].max() <= 7200


def test_sampled_stars_make_physical_sense(drawn):
    teff, logg, fe_h = drawn.T
    giants, dwarfs = logg < 3.0, logg > 4.2
    assert giants.mean() > 0.25
    assert dwarfs.mean() > 0.25
    assert np.median(teff[giants]) < 5000 < np.median(teff[dwarfs]) + 500
    assert not ((teff > 6000) & (logg < 3.2)).any()
    branch = (logg > 1.5) & (logg < 2.5) & (teff < 5300)
    poor, rich = branch & (fe_h < -1.5), branch & (fe_h > -0.5)
    assert teff[poor].mean() > teff[rich].mean() + 80  # metal-poor giants are hotter
    bins, _ = np.histogram(fe_h, bins=6, range=(-2.5, 0.5))
    assert bins.min() > 0.8 * 500  # evenly, so that the metal-poor are familiar


def test_sampler_is_deterministic(drawn):
    sampler = LabelSampler()
    np.testing.assert_array_equal(np.stack([sampler.draw(rng) for rng in generators(20)]), drawn[:20])


def test_sampler_stays_in_the_range_asked_for():
    sampler = LabelSampler(teff=(4000.0, 5000.0), fe_h=(-1.0, 0.0))
    labels = np.stack([sampler.draw(rng) for rng in generators(300)])
    assert labels[:, 0].min() >= 4000
    assert labels[:, 0].max() <= 5000
    assert labels[:, 2].min() >= -1
    assert labels[:, 2].max() <= 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shares": (0.5, 0.5, 0.5, 0.0)}, "sum to 1"),
        ({"shares": (1.5, -0.5, 0.0, 0.0)}, "non-negative"),
        ({"teff": (3000.0, 7000.0)}, r"teff must be a range within \[3500, 8000\], got \[3000, 7000\]"),
        ({"fe_h": (0.5, -2.5)}, r"fe_h must be a range within \[-2.5, 0.5\]"),
    ],
)
def test_impossible_populations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        LabelSampler(**wrong)


# ---------------------------------------------------------------- observing

PIXELS = np.arange(5100.5, 5300.0)
STILL = {
    "noise": (1e-9, 1e-9), "continuum_wiggle": 0.0, "velocity": 0.0, "fwhm": 0.0, "line_strength": 0.0,
    "line_list": 0.0, "missing": 0.0,
}  # fmt: skip
ONE_LINE = {5200.5: 0.5}


def observed(n=1, **conditions):
    """One line at a FWHM of 8 Angstrom, n times: flux before, and flux and good as observed."""
    flux = np.tile(star_flux(PIXELS, ONE_LINE, fwhm=8.0).astype(np.float32), (n, 1))
    return flux, *observe(flux, PIXELS, 8.0, ObservingConditions(**{**STILL, **conditions}), generators(n))


def test_perfect_conditions_change_nothing():
    flux, seen, good = observed(3)
    np.testing.assert_allclose(seen, flux, atol=1e-6)
    assert seen.dtype == np.float32
    assert good.all()


def test_velocity_shifts_a_line_by_v_over_c():
    flux, seen, _ = observed(400, velocity=30.0)
    depth = 1 - seen
    shift = (depth * PIXELS).sum(axis=1) / depth.sum(axis=1) - 5200.5
    velocity = SPEED_OF_LIGHT * shift / 5200.5
    assert np.std(velocity) == pytest.approx(30.0, rel=0.1)
    assert abs(np.mean(velocity)) < 5
    receding = np.argmin(np.abs(velocity - 30.0))
    shifted = star_flux(PIXELS, {5200.5 * (1 + velocity[receding] / SPEED_OF_LIGHT): 0.5}, fwhm=8.0)
    unshifted = np.abs(flux[0] - shifted).max()
    assert np.abs(seen[receding] - shifted).max() < 0.25 * unshifted
    redder, _ = observe(flux, PIXELS + 2000, 8.0, ObservingConditions(**{**STILL, "velocity": 30.0}), generators(400))
    np.testing.assert_allclose((redder - flux), (seen - flux) * (PIXELS + 2000) / PIXELS, atol=1e-5)


def test_resolution_varies_and_equivalent_width_does_not():
    flux, seen, _ = observed(400, fwhm=0.3)
    np.testing.assert_allclose(equivalent_width(seen, 1.0), equivalent_width(flux, 1.0), rtol=1e-3)
    depth = 1 - seen
    variance = (depth * (PIXELS - 5200.5) ** 2).sum(axis=1) / depth.sum(axis=1)
    fwhm = 2.3548 * np.sqrt(variance)
    assert np.mean(fwhm) == pytest.approx(8.0, abs=0.06)
    assert np.std(fwhm) == pytest.approx(0.3, rel=0.12)
    widest = np.argmax(fwhm)
    assert seen[widest].min() > flux[0].min() + 0.02


def test_noise_has_the_size_asked_for():
    flux, seen, _ = observed(200, noise=(0.02, 0.02))
    assert np.std(seen - flux) == pytest.approx(0.02, rel=0.02)
    flux, seen, _ = observed(200, noise=(0.003, 0.03))
    sigma = np.std(seen - flux, axis=1)
    assert 0.0025 < sigma.min() < 0.005
    assert 0.02 < sigma.max() < 0.035
    assert np.median(sigma) == pytest.approx(np.sqrt(0.003 * 0.03), rel=0.3)  # evenly in its logarithm


def test_missing_pixels_reach_the_fraction_asked_for():
    _, _, good = observed(300, missing=0.4)
    missing = 1 - good.mean(axis=1)
    assert missing.max() < 0.5
    assert missing.mean() == pytest.approx(0.2, abs=0.03)


def test_line_errors_leave_the_continuum_alone():
    flux, seen, _ = observed(100, line_strength=0.2)
    far = np.abs(PIXELS - 5200.5) > 30
    np.testing.assert_allclose(seen[:, far], 1.0, atol=1e-5)
    strength = np.log((1 - seen[:, 100]) / (1 - flux[:, 100]))
    assert np.std(strength) == pytest.approx(0.2, rel=0.3)


def test_continuum_errors_are_smooth():
    flux, seen, _ = observed(200, continuum_wiggle=0.05)
    wiggle = seen / flux - 1
    assert np.std(wiggle[:, 0]) == pytest.approx(0.05, rel=0.35)
    assert np.abs(np.diff(wiggle, axis=1)).max() < 0.003


def test_a_spectrum_does_not_depend_on_its_batch():
    usual = ObservingConditions(missing=0.1)
    flux, seen, good = observed(5, **vars(usual))
    for row in (0, 3):
        alone, alone_good = observe(flux[row : row + 1], PIXELS, 8.0, usual, [generators(5)[row]])
        np.testing.assert_array_equal(alone[0], seen[row])
        np.testing.assert_array_equal(alone_good[0], good[row])
    assert not np.array_equal(seen[0], seen[1])


def test_smooth_noise_has_unit_variance_at_its_knots_and_its_length():
    fields = np.stack([smooth_noise(rng, 1000, 50.0) for rng in generators(400)])
    assert abs(fields.mean()) < 0.02
    assert fields.std() == pytest.approx(np.sqrt(2 / 3), rel=0.03)  # linear between unit knots
    correlation = [np.mean(fields[:, :-lag] * fields[:, lag:]) for lag in (5, 50, 150)]
    assert correlation[0] > 0.55 > 0.2 > correlation[1] > 0.0
    assert abs(correlation[2]) < 0.03


@pytest.mark.parametrize("wrong", [{"velocity": -1.0}, {"noise": (0.0, 0.1)}, {"noise": (0.1, 0.01)}, {"missing": 1.0}])
def test_impossible_conditions_are_refused(wrong):
    with pytest.raises(ValueError, match="observing conditions must be non-negative"):
        ObservingConditions(**wrong)


# ---------------------------------------------------------------- label scales

NAMES, CENTER, SCALE = ("teff", "logg", "fe_h"), (5200.0, 3.0, -0.9), (850.0, 1.4, 0.8)


def readings(n=300, seed=0):
    scaled = np.random.default_rng(seed).uniform(-1.5, 1.5, (n, 3))
    return scaled * SCALE + CENTER


def quadratic(labels):
    """A known relation: observed [Fe/H] is 0.2 dex lower, more so for the metal-poor; the other labels are right."""
    teff, _, fe_h = ((labels - np.array(CENTER)) / np.array(SCALE)).T
    return labels + np.outer(-0.2 + 0.1 * fe_h - 0.05 * fe_h**2 + 0.04 * teff * fe_h, [0.0, 0.0, 1.0])


def test_equal_scales_are_left_alone():
    labels = readings()
    tie = LabelTie.fit(NAMES, CENTER, SCALE, labels, labels)
    np.testing.assert_allclose(tie(labels), labels, atol=1e-3 * np.array(SCALE).min())
    assert tie.n_stars == 300


def test_known_relation_is_recovered_in_spite_of_noise_and_outliers():
    rng = np.random.default_rng(1)
    labels = readings()
    published = quadratic(labels) + rng.normal(size=labels.shape) * [80, 0.15, 0.08]
    published[:6, 2] -= 2.0  # six catalogue blunders
    tie = LabelTie.fit(NAMES, CENTER, SCALE, labels, published)
    fresh = readings(100, seed=2)
    residual = tie(fresh) - quadratic(fresh)
    assert np.abs(residual[:, 2]).mean() < 0.03
    assert np.abs(residual[:, 2]).max() < 0.1
    assert np.abs(quadratic(fresh) - fresh)[:, 2].mean() > 0.15  # what there was to correct
    assert np.abs(residual[:, 0]).max() < 60
    assert np.abs(residual[:, 1]).max() < 0.12


def test_tie_does_not_extrapolate():
    labels = readings()
    tie = LabelTie.fit(NAMES, CENTER, SCALE, labels, quadratic(labels))
    far = np.array([[5200.0, 3.0, -0.9 - 5 * 0.8], [5200.0, 3.0, -0.9 - 50 * 0.8]])
    correction = tie(far) - far
    np.testing.assert_allclose(correction[0], correction[1], atol=1e-9)
    edge = np.array([[5200.0, 3.0, -0.9 + 0.8 * tie.low[2]]])
    np.testing.assert_allclose(tie(edge) - edge, correction[:1], atol=1e-9)


def test_tie_survives_the_journey_to_disk(tmp_path):
    labels = readings()
    tie = LabelTie.fit(NAMES, CENTER, SCALE, labels, quadratic(labels))
    tie.save(tmp_path / "label_tie.json")
    loaded = LabelTie.load(tmp_path / "label_tie.json")
    assert loaded == tie
    np.testing.assert_array_equal(loaded(labels), tie(labels))


def test_stars_without_all_labels_do_not_tie():
    labels, published = readings(40), quadratic(readings(40))
    published[:10, 1] = np.nan
    assert LabelTie.fit(NAMES, CENTER, SCALE, labels, published).n_stars == 30
    published[10, 0] = np.nan
    with pytest.raises(ValueError, match="at least 30 stars with teff, logg, fe_h, got 29"):
        LabelTie.fit(NAMES, CENTER, SCALE, labels, published)
