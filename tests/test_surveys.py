"""Synthetic stars as surveys see them, and what is told of them beside the spectrum."""

import numpy as np
import pytest
import torch

from spectrafm_hf import SpectraFMFeatureExtractor
from spectrafm_hf.collation import SpectrumCollator, SurveySpectra, draw_given
from spectrafm_hf.synthesis.photometry import DWARFS, GIANTS, absolute_g, bp_rp
from spectrafm_hf.synthesis.surveys import SURVEYS, SurveyConditions, observe_survey

LABELS = ("teff", "logg", "fe_h", "mg_fe", "o_fe")
QUIET = SurveyConditions(wider=(1.0, 1.0), widened=0.0, continuum=0.0, velocity=0.0, missing=0.0, unknown=0.0)


def native_extractor(**changes):
    told = {"patch_size": 32, "pixel_width": None, "wavelength_range": (3500.0, 17_000.0)}
    scale = {"label_center": [5000.0, 3.0, -0.9, 0.1, 0.15], "label_scale": [850.0, 1.4, 0.8, 0.2, 0.25]}
    return SpectraFMFeatureExtractor(LABELS, **told | scale | {"given_names": ("teff", "logg", "bp_rp")} | changes)


def generators(n, seed=0):
    return [np.random.default_rng([seed, row]) for row in range(n)]


def line_on(survey, width=1.0):
    """A line in the middle of the last segment, as wide as the survey's own resolution times `width`; its centre."""
    segment, wavelength = survey.segments[-1], survey.wavelength
    centre = wavelength[(segment.start + segment.stop) // 2]
    sigma = width * centre / survey.resolving_power / 2.3548
    return 1 - 0.3 * np.exp(-0.5 * ((wavelength - centre) / sigma) ** 2), centre


def width_of(flux, wavelength):
    depth = 1 - flux
    centre = (depth * wavelength).sum() / depth.sum()
    return np.sqrt((depth * (wavelength - centre) ** 2).sum() / depth.sum())


# ---------------------------------------------------------------- colours


def test_the_sun_has_the_colour_of_the_sun():
    """BP - RP = 0.82 (Casagrande & VandenBerg 2018); the relation scatters by 61 K, 0.03 mag."""
    assert bp_rp(np.array([[5772.0, 4.44, 0.0]]))[0] == pytest.approx(0.82, abs=0.04)


@pytest.mark.parametrize(("b", "logg"), [(DWARFS, 4.5), (GIANTS, 2.0)])
def test_colour_solves_the_published_relation(b, logg):
    teff, fe_h = np.meshgrid([4300.0, 5000.0, 6000.0], [-2.0, -0.5, 0.3])
    colour = bp_rp(np.column_stack([teff.ravel(), np.full(9, logg), fe_h.ravel()])).reshape(teff.shape)
    theta = b[0] + b[1] * colour + b[2] * colour**2 + b[3] * fe_h + b[4] * fe_h**2 + b[5] * fe_h * colour
    np.testing.assert_allclose(5040 / theta, teff, rtol=1e-9)


def test_cooler_stars_are_redder_and_gravity_changes_colours_smoothly():
    cooler = bp_rp(np.column_stack([np.linspace(7500, 3600, 50), np.full(50, 4.5), np.zeros(50)]))
    assert (np.diff(cooler) > 0).all()
    along = bp_rp(np.column_stack([np.full(60, 4800.0), np.linspace(1, 5, 60), np.full(60, -1.0)]))
    assert np.abs(np.diff(along)).max() < 0.01


def test_the_sun_has_the_brightness_of_the_sun():
    """M_G = 4.67 (Casagrande & VandenBerg 2018)."""
    assert absolute_g(np.array([[5772.0, 4.438]]))[0] == pytest.approx(4.67, abs=0.03)


def test_brightness_follows_gravity_mass_and_temperature():
    dwarf, giant = absolute_g(np.array([[4800.0, 4.5], [4800.0, 2.5]]))
    assert dwarf - giant == pytest.approx(5.0)  # 2 dex of gravity are a factor 100 in luminosity
    assert absolute_g(np.array([[4800.0, 4.5]]), 10.0)[0] == pytest.approx(dwarf - 2.5)
    across = absolute_g(np.column_stack([np.linspace(3900, 4100, 201), np.full(201, 2.0)]))
    assert np.abs(np.diff(across)).max() < 0.01  # no step where one correction takes over from the other


def test_parallaxes_and_magnitudes_can_be_told():
    extractor = native_extractor(given_names=("m_g", "abl_g"))
    rows = SurveySpectra(extractor, SURVEYS["miles"], 100, seed=0, context=4, given_share=1.0).__getitems__(range(60))
    given = np.array([row["given"] for row in rows])
    assert 0.3 < np.isfinite(given).mean() < 0.7
    gravity = np.array([row["labels"][1] for row in rows])
    told = np.isfinite(given[:, 0])
    assert np.corrcoef(given[told, 0], gravity[told])[0, 1] > 0.9  # dwarfs are faint


# ---------------------------------------------------------------- instruments


@pytest.mark.parametrize("name", SURVEYS)
def test_a_wider_line_spread_function_widens_lines_as_it_should(name):
    survey = SURVEYS[name]
    flux, _ = line_on(survey)
    wide = survey.widen(np.repeat(flux[None], 3, axis=0), np.array([1.0, 2.0, 5.0]))
    own = width_of(flux, survey.wavelength)
    np.testing.assert_allclose(wide[0], flux, atol=1e-6)
    for row, factor in ((1, 2.0), (2, 5.0)):
        assert width_of(wide[row], survey.wavelength) == pytest.approx(factor * own, rel=0.02)
        assert (1 - wide[row]).sum() == pytest.approx((1 - flux).sum(), rel=1e-3)  # equivalent width


@pytest.mark.parametrize("name", SURVEYS)
def test_widening_a_constant_changes_nothing(name):
    flux = np.full((1, SURVEYS[name].wavelength.size), 0.9)
    np.testing.assert_allclose(SURVEYS[name].widen(flux, np.array([8.0])), flux, atol=1e-9)


def test_resolving_power_is_constant_for_apogee_and_grows_along_miles():
    apogee = SURVEYS["apogee"].resolving_power_at(np.array([1.0, 12.5]))
    np.testing.assert_allclose(apogee, np.array([[22_500.0], [1800.0]]) * np.ones(7514))
    miles = SURVEYS["miles"]
    fwhm = miles.wavelength / miles.resolving_power_at(np.array([1.0]))[0]
    np.testing.assert_allclose(fwhm, 2.5, rtol=0.01)


@pytest.mark.parametrize("name", SURVEYS)
def test_noise_is_what_its_error_says(name):
    survey = SURVEYS[name]
    clean = np.ones((6, survey.wavelength.size), dtype=np.float32)
    seen = observe_survey(clean, survey, QUIET, generators(6))
    pull = (seen.flux - clean) / seen.flux_error
    np.testing.assert_allclose(pull.std(axis=1), 1.0, atol=0.05)
    assert seen.good.all()
    assert (1 / seen.flux_error[:, 0]).min() > 20
    assert (1 / seen.flux_error[:, 0]).max() < 300


def test_some_spectra_come_without_error_or_resolving_power():
    survey = SURVEYS["miles"]
    clean = np.ones((60, survey.wavelength.size), dtype=np.float32)
    seen = observe_survey(clean, survey, SurveyConditions(unknown=0.5), generators(60))
    without_error, without_power = (seen.flux_error == 0).all(axis=1), (seen.resolving_power == 0).all(axis=1)
    assert 15 < without_error.sum() < 45
    assert 15 < without_power.sum() < 45
    assert (without_error & without_power).any()
    assert (without_error != without_power).any()


@pytest.mark.parametrize("wrong", [{"snr": (30.0, 20.0)}, {"wider": (0.5, 2.0)}, {"missing": 1.0}, {"unknown": 1.5}])
def test_conditions_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="survey conditions must be"):
        SurveyConditions(**wrong)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("name", SURVEYS)
def test_a_row_is_a_function_of_seed_and_number(name):
    rows = SurveySpectra(native_extractor(), SURVEYS[name], 100, seed=3, context=20)
    alone, among = rows[5], rows.__getitems__([2, 5, 9])[1]
    for key in alone:
        np.testing.assert_allclose(alone[key], among[key], atol=2e-4, err_msg=key)
    other = SurveySpectra(native_extractor(), SURVEYS[name], 100, seed=4, context=20)[5]
    assert not np.array_equal(alone["labels"], other["labels"])


def test_labels_a_survey_does_not_have_are_missing():
    rows = SurveySpectra(native_extractor(given_names=()), SURVEYS["miles"], 10, seed=0)
    batch = SpectrumCollator(rows.feature_extractor)(rows.__getitems__(range(4)))
    assert (batch["labels"][:, 3:] == -100).all()
    assert (batch["labels"][:, :3] != -100).all()
    assert "given" not in batch


def test_two_instruments_make_one_batch():
    extractor = native_extractor()
    rows = [SurveySpectra(extractor, survey, 10, seed=0, context=30)[0] for survey in SURVEYS.values()]
    batch = SpectrumCollator(extractor)(rows)
    assert batch["wavelength"].dtype == torch.float64
    for row, (low, high) in enumerate(((15_100, 17_000), (3500, 7500))):
        there = batch["wavelength"][row][batch["attention_mask"][row].bool()]
        assert low < there.min() < there.max() < high


def test_what_is_told_is_not_to_be_learned():
    rows = SurveySpectra(native_extractor(), SURVEYS["miles"], 300, seed=0, context=4, given_share=1.0)
    told = set()
    for row in rows.__getitems__(range(200)):
        given = np.isfinite(row["given"])
        told.add(tuple(given))
        for label, column in (("teff", 0), ("logg", 1)):
            assert (row["labels"][LABELS.index(label)] == -100) == given[column]
        assert row["labels"][2] != -100
    assert len(told) == 8  # every subset of three


def test_told_numbers_are_off_by_their_errors():
    extractor, rng = native_extractor(given_names=("teff", "bp_rp")), np.random.default_rng(0)
    pulls = []
    for _ in range(2000):
        given, errors = draw_given(rng, extractor, {"teff": 5000.0, "bp_rp": 1.0}, share=1.0)
        pulls.append(given / errors)  # both are 0 in scaled units
    assert 0.45 < np.isfinite(pulls).mean() < 0.55
    np.testing.assert_allclose(np.nanstd(pulls, axis=0), 1.0, atol=0.07)


def test_half_of_the_rows_are_told_nothing():
    extractor, rng = native_extractor(), np.random.default_rng(0)
    known = {"teff": 5000.0, "logg": 3.0, "bp_rp": 1.0}
    nothing = [np.isnan(draw_given(rng, extractor, known)[0]).all() for _ in range(1000)]
    assert np.mean(nothing) == pytest.approx(0.5 + 0.5 / 8, abs=0.04)


def test_what_is_not_known_is_not_told():
    given, _ = draw_given(np.random.default_rng(0), native_extractor(), {"teff": np.nan}, share=1.0)
    assert np.isnan(given).all()
