"""Wrong inputs are told from good ones, each for its own reason; the network here knows the labels beforehand."""

import json
import re

import numpy as np
import pytest
from conftest import miles_grid, tiny_extractor, tiny_model
from safetensors.numpy import save_file

from spectrafm_hf.applicability import FILE_NAME, Applicability, abstain, ranges_of_labels, trained_ranges
from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import auroc, risk_coverage
from spectrafm_hf.plots import plot_reliability, plot_risk_coverage
from spectrafm_hf.reconstruction import Reconstruction
from spectrafm_hf.spectra import SPEED_OF_LIGHT, air_to_vacuum, apogee_wavelength, vacuum_to_air
from spectrafm_hf.synthesis.cannon import CannonSynthesizer
from spectrafm_hf.synthesis.sampler import LabelSampler
from spectrafm_hf.synthesis.surveys import SURVEYS, SurveyConditions
from spectrafm_hf.wrong_inputs import FAMILIES, galaxies, good_stars, m_dwarfs, moved, scores, wrong_units

WAVELENGTH = miles_grid(4700.0, 6100.0)
FWHM, NOISE = 2.5, 0.01
N_CALIBRATION, N_FEATURES = 600, 12
EXTRACTOR = tiny_extractor(pixel_width=None, wavelength_range=(3500.0, 17_000.0), smoothing_length=100.0)


def observed(flux, wavelength=WAVELENGTH, noise=NOISE, seed=0, **changes):
    """Noiseless flux (n, n_pixels) -> spectra as a survey hands them out, with errors and resolving power."""
    rng = np.random.default_rng(seed)
    told = {"flux_error": np.full(wavelength.size, noise), "resolving_power": wavelength / FWHM} | changes
    return [
        {"flux": star + noise * rng.standard_normal(star.size), "wavelength": wavelength, "bad_pixel": None} | told
        for star in flux
    ]


def stars(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.stack([LabelSampler(teff=(4200.0, 6500.0)).draw(rng) for _ in range(n)])
    return labels, CannonSynthesizer(WAVELENGTH, fwhm=FWHM)(labels)


def prepared(spectra):
    return [EXTRACTOR.tokenise(EXTRACTOR.place(**spectrum)) for spectrum in spectra]


def answers(labels, seed=0, off=(40.0, 0.1, 0.05)):
    """Of a network that is right to within `off`: mean, log-variance, and features that say nothing."""
    rng = np.random.default_rng(seed)
    mean = (labels + off * rng.normal(size=labels.shape) - EXTRACTOR.label_center) / EXTRACTOR.label_scale
    log_var = 2 * np.log(np.array(off) / EXTRACTOR.label_scale) + 0.2 * rng.normal(size=labels.shape)
    return mean, log_var, rng.normal(size=(len(labels), 3, N_FEATURES))


@pytest.fixture(scope="module")
def applicability():
    labels, flux = stars(N_CALIBRATION, seed=1)
    return Applicability.fit(EXTRACTOR, prepared(observed(flux, seed=1)), answers(labels, seed=1))


@pytest.fixture(scope="module")
def fresh():
    """Stars that no limit was fitted on: labels, noiseless flux."""
    return stars(60, seed=2)


def verdicts(applicability, spectra, labels, told=None):
    return applicability.check(EXTRACTOR, prepared(spectra), told or answers(labels, seed=3))


def share_flagged(found, check):
    return np.mean([check in [name for name, _ in verdict.flags] for verdict in found])


def reasons(found, check):
    return [dict(verdict.flags)[check] for verdict in found if check in dict(verdict.flags)]


# ---------------------------------------------------------------- the reconstruction


@pytest.fixture(scope="module")
def reconstruction():
    return Reconstruction(4700.0, 6100.0, (1500.0, 2500.0))


def explained(reconstruction, spectra, labels):
    return [reconstruction.explain(EXTRACTOR, row, star) for row, star in zip(prepared(spectra), labels, strict=True)]


@pytest.mark.parametrize("velocity", [-300.0, -82.0, 0.0, 25.0, 100.0])
def test_a_velocity_is_measured(reconstruction, fresh, velocity):
    """Stars of all kinds at S/N 100 and R = 2,000, where a pixel is 50 km/s wide."""
    labels, flux = fresh
    spectra = moved(observed(flux), np.full(len(flux), velocity))
    found = np.array([one.velocity for one in explained(reconstruction, spectra, labels)])
    assert abs(np.median(found) - velocity) < 2
    assert np.quantile(np.abs(found - velocity), 0.9) < 10


def test_the_error_of_a_velocity_is_that_of_repeated_measurements(reconstruction, fresh):
    labels, flux = fresh
    again = [explained(reconstruction, observed(flux[:15], noise=0.03, seed=seed), labels[:15]) for seed in range(12)]
    scatter = np.std([[one.velocity for one in run] for run in again], axis=0, ddof=1)
    claimed = np.mean([[one.velocity_error for one in run] for run in again], axis=0)
    assert np.median(scatter / claimed) == pytest.approx(1, abs=0.25)


def test_right_labels_leave_the_noise_and_wrong_ones_more(reconstruction, fresh):
    labels, flux = fresh
    right = [one.residual for one in explained(reconstruction, observed(flux), labels)]
    assert np.median(right) == pytest.approx(NOISE, rel=0.1)
    exact = [one.residual for one in explained(reconstruction, observed(flux, noise=1e-6), labels)]
    assert np.median(exact) < 0.001  # in spite of nodes, rungs and the extractor's own pixels
    wrong = [one.residual for one in explained(reconstruction, observed(flux), labels[::-1])]
    assert np.median(wrong) > 2 * NOISE


def test_lines_three_times_as_wide_are_measured(reconstruction, fresh):
    labels, flux = fresh
    wide = CannonSynthesizer(WAVELENGTH, fwhm=3 * FWHM)(labels)
    found = explained(reconstruction, observed(wide), labels)
    assert np.median([one.widening for one in found]) == pytest.approx(3, rel=0.15)
    assert np.mean([one.wider > 10 for one in found]) > 0.9
    assert np.mean([one.wider < 0 for one in explained(reconstruction, observed(flux), labels)]) > 0.9


def test_a_hot_star_explains_a_hot_star(reconstruction):
    hot = CannonSynthesizer(WAVELENGTH, fwhm=FWHM, model="hot")(np.array([[16_000.0, 4.0, 0.0]] * 5))
    found = explained(reconstruction, observed(hot), np.array([[6500.0, 4.2, -0.5]] * 5))
    assert all(one.hot_star > 100 for one in found)
    assert np.median([one.hot_teff for one in found]) == 16_000


def test_nothing_explains_a_continuum(reconstruction, fresh):
    labels, _ = fresh
    found = explained(reconstruction, observed(np.ones((len(labels), WAVELENGTH.size))), labels)
    assert all(one.no_lines > 0 for one in found)


def test_what_is_not_known_is_not_explained(reconstruction, fresh):
    labels, flux = fresh
    row = prepared(observed(flux[:1]))[0]
    assert reconstruction.explain(EXTRACTOR, row, np.array([np.nan, 4.0, 0.0])) is None
    assert Reconstruction(7000.0, 7400.0, (1500.0, 2500.0)).explain(EXTRACTOR, row, labels[0]) is None


def test_a_resolving_power_that_is_not_told_is_found_among_the_trained_ones(reconstruction, fresh):
    """Told nothing, the star is as good an explanation as with the truth, and its velocity as good."""
    labels, flux = fresh
    found = explained(reconstruction, observed(flux, resolving_power=None), labels)
    assert np.median([one.residual for one in found]) == pytest.approx(NOISE, rel=0.15)
    assert np.quantile(np.abs([one.velocity for one in found]), 0.9) < 10


@pytest.fixture(scope="module", params=[0.003, 0.05])
def all_kinds(request, reconstruction):
    """Stars as they are; their lines wider by any factor up to 5; hot stars; a continuum; wrong labels: prepared, with
    labels, and explained in full. A third of them tell no resolving power."""
    n = 12
    labels, flux = stars(n, seed=5)
    wide = [
        CannonSynthesizer(WAVELENGTH, fwhm=factor * FWHM)(labels[row : row + 1])
        for row, factor in enumerate(np.geomspace(1.05, 5.0, n))
    ]
    hot = np.stack([np.geomspace(9500, 29_000, n), np.full(n, 4.0), np.zeros(n)], axis=1)
    hot_flux = CannonSynthesizer(WAVELENGTH, fwhm=FWHM, model="hot")(hot)
    kinds = (flux, np.concatenate(wide), hot_flux, np.ones_like(flux), flux[::-1])
    rows = prepared(observed(np.concatenate(kinds), noise=request.param, seed=6))
    for row in rows[::3]:
        del row["resolving_power"]
    labels = np.tile(labels, (len(kinds), 1))
    return rows, labels, reconstruction.explain_all(EXTRACTOR, rows, labels)


@pytest.mark.parametrize("limit", [3.0, 30.0, 300.0, 3000.0])
def test_nothing_is_left_out_that_matters(reconstruction, all_kinds, limit):
    rows, labels, whole = all_kinds
    quick = reconstruction.explain_all(EXTRACTOR, rows, labels, (limit, limit))
    for name in ("wider", "hot_star"):
        all_of_them, some = (np.array([getattr(one, name) for one in found]) for found in (whole, quick))
        left_out = np.isnan(some)
        assert left_out.mean() > 0.1, name  # which is what makes it quick
        assert (all_of_them[left_out] < limit).all(), name
        assert some[~left_out] == pytest.approx(all_of_them[~left_out], rel=1e-3, abs=1e-2), name
    for name in ("velocity", "residual", "no_lines"):
        assert [getattr(one, name) for one in quick] == pytest.approx([getattr(one, name) for one in whole], rel=1e-6)


# ---------------------------------------------------------------- the checks


def test_good_spectra_pass(applicability, fresh):
    labels, flux = fresh
    found = verdicts(applicability, observed(flux, seed=4), labels)
    assert np.mean([verdict.applicable for verdict in found]) > 0.85
    assert np.median([verdict.score for verdict in found]) < 0.8


def test_every_check_is_made(applicability, fresh):
    labels, flux = fresh
    named = set(verdicts(applicability, observed(flux[:2]), labels[:2])[0].scores)
    assert named == {
        *("coverage", "resolution", "noise", "errors", "features", "labels", "sigma"),
        *("residual", "velocity", "wider", "hot_star", "no_lines"),
    }


def few_pixels(spectra):
    return [{name: value if value is None else value[:500] for name, value in one.items()} for one in spectra]


def outside(spectra):
    beyond = 6100.0 + 0.9 * np.arange(WAVELENGTH.size)
    return [one | {"wavelength": np.where(np.arange(WAVELENGTH.size) % 2, WAVELENGTH, beyond)} for one in spectra]


@pytest.mark.parametrize(
    ("check", "spoil", "word"),
    [
        ("coverage", few_pixels, "500 good pixels"),
        ("coverage", outside, "where no training spectrum had any"),
        ("resolution", lambda s: [one | {"resolving_power": 30_000.0} for one in s], "30,000, in training 1,8.. to"),
        ("errors", lambda s: [one | {"flux_error": one["flux_error"] ** 2} for one in s], "is it a variance"),
        ("velocity", lambda s: moved(s, np.full(len(s), 100.0)), "km/s .*rest frame"),
        ("velocity", lambda s: [one | {"wavelength": vacuum_to_air(WAVELENGTH)} for one in s], "-8. .*in air"),
        ("velocity", lambda s: [one | {"wavelength": air_to_vacuum(WAVELENGTH)} for one in s], "taken for air"),
    ],
)  # fmt: skip
def test_a_spoilt_spectrum_fails_for_its_own_reason(applicability, fresh, check, spoil, word):
    labels, flux = fresh
    chosen = labels[:, 2] > -1  # with lines enough for every reason to be exact
    found = verdicts(applicability, spoil(observed(flux[chosen])), labels[chosen])
    assert share_flagged(found, check) > 0.95
    told = reasons(found, check)
    assert np.mean([bool(re.search(word, reason)) for reason in told]) > 0.9


def test_a_window_is_not_called_wrong(applicability, fresh):
    """500 of 1,556 pixels of good spectra, all of them where training had some."""
    labels, flux = fresh
    for told in reasons(verdicts(applicability, few_pixels(observed(flux)), labels), "coverage"):
        assert "500 good pixels, where whole spectra had 15" in told
        assert "a window need not be wrong" in told
        assert "no training spectrum" not in told
    for told in reasons(verdicts(applicability, outside(observed(flux)), labels), "coverage"):
        assert re.search("77. of its 1556 good pixels lie where no training spectrum had any, outside 4701-6101", told)
        assert "window" not in told


def test_noisier_than_any_training_spectrum(applicability, fresh):
    labels, flux = fresh
    found = verdicts(applicability, observed(flux, noise=0.05), labels)
    assert share_flagged(found, "noise") == 1
    assert "a signal-to-noise ratio of" in reasons(found, "noise")[0]


def test_answers_of_a_kind_the_network_never_gave(applicability, fresh):
    labels, flux = fresh
    mean, log_var, features = answers(labels, seed=3)
    unsure = verdicts(applicability, observed(flux), labels, (mean, log_var + 2 * np.log(5), features))
    assert share_flagged(unsure, "sigma") == 1
    assert "times the usual one" in reasons(unsure, "sigma")[0]
    far = verdicts(applicability, observed(flux), labels, (mean, log_var, features + 3))
    assert share_flagged(far, "features") == 1
    cool = mean.copy()
    cool[:, 0] = (3400 - EXTRACTOR.label_center[0]) / EXTRACTOR.label_scale[0]
    edge = verdicts(applicability, observed(flux), labels, (cool, log_var, features))
    assert share_flagged(edge, "labels") == 1
    assert "Teff of 3400 K" in reasons(edge, "labels")[0]


def test_another_star_than_predicted_is_noticed(applicability, fresh):
    labels, flux = fresh
    swapped = verdicts(applicability, observed(flux), labels, answers(labels[::-1], seed=3))
    good = verdicts(applicability, observed(flux), labels)
    assert auroc(*([v.scores["residual"] for v in found] for found in (good, swapped))) > 0.9


def test_a_label_that_was_given_takes_the_reconstruction_away(applicability, fresh):
    labels, flux = fresh
    mean, log_var, features = answers(labels, seed=3)
    mean[:, 0], log_var[:, 0] = np.nan, np.nan
    found = verdicts(applicability, observed(flux), labels, (mean, log_var, features))
    assert {"features", "labels", "sigma"} <= set(found[0].scores)
    assert "velocity" not in found[0].scores
    assert np.isnan(found[0].velocity)


def test_abstaining_leaves_no_answer_and_the_others_alone(applicability, fresh):
    labels, flux = fresh
    good, noisy = observed(flux[:1], seed=4), observed(flux[1:2], noise=0.05)
    told = answers(labels[:2], seed=4)
    found = verdicts(applicability, good + noisy, labels[:2], told)
    assert [verdict.applicable for verdict in found] == [True, False]
    decoded = EXTRACTOR.decode_labels(*told[:2])
    kept = abstain(decoded, found)
    assert kept.keys() == decoded.keys()
    for name, label in kept.items():
        assert label["value"][0] == decoded[name]["value"][0]
        assert np.isnan([label[key][1] for key in ("value", "sigma", "sigma95")]).all()


# ---------------------------------------------------------------- fitted and saved


def test_verdicts_come_back_with_the_file(applicability, fresh, tmp_path):
    labels, flux = fresh
    applicability.save(tmp_path)
    loaded = Applicability.load(tmp_path)
    before, after = (verdicts(one, observed(flux[:20], noise=0.03), labels[:20]) for one in (applicability, loaded))
    for one, other in zip(before, after, strict=True):
        assert one.flags == other.flags
        assert one.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-6)


def test_a_file_of_somebody_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nobody has told where this model can be trusted"):
        Applicability.load(tmp_path)
    save_file({"a": np.zeros(3)}, tmp_path / FILE_NAME, metadata={"applicability": json.dumps({"other": 1})})
    with pytest.raises(ValueError, match=r"was not written by Applicability\.save"):
        Applicability.load(tmp_path)


def test_limits_of_another_model_are_refused(applicability, fresh):
    labels, flux = fresh
    other = tiny_extractor(pixel_width=None, label_names=["teff"], label_center=[5000.0], label_scale=[800.0])
    with pytest.raises(ValueError, match="limits are of a model with the labels teff, logg, fe_h, got one with teff"):
        applicability.check(other, prepared(observed(flux[:1])), answers(labels[:1]))
    assert applicability.check(EXTRACTOR, [], answers(labels[:0])) == []


def test_too_few_spectra_have_no_limits():
    labels, flux = stars(20, seed=5)
    with pytest.raises(ValueError, match="500 calibration spectra or more in each range of wavelengths, got 20 in 47"):
        Applicability.fit(EXTRACTOR, prepared(observed(flux)), answers(labels))


def test_detectors_are_one_range_and_surveys_are_two():
    extractor = tiny_extractor(pixel_width=None, wavelength_range=(3500.0, 17_000.0))
    grids = apogee_wavelength(), miles_grid(4000.0, 7000.0)
    rows = [extractor.tokenise(extractor.place(np.ones(grid.size), grid)) for grid in grids]
    assert trained_ranges(rows) == [
        (pytest.approx(grids[1][0], abs=0.1), pytest.approx(grids[1][-1], abs=0.1)),
        (pytest.approx(grids[0][0], abs=0.1), pytest.approx(grids[0][-1], abs=0.1)),
    ]


def test_a_label_has_the_ranges_of_the_spectra_that_have_it():
    extractor = tiny_extractor(pixel_width=None, wavelength_range=(3500.0, 17_000.0))
    grids = apogee_wavelength(), miles_grid(4000.0, 7000.0)
    rows = [extractor.tokenise(extractor.place(np.ones(grid.size), grid)) for grid in grids]
    labels = np.array([[5000.0, 0.1, np.nan], [4500.0, np.nan, np.nan]])
    apogee, miles = ([(pytest.approx(g[0], abs=0.1), pytest.approx(g[-1], abs=0.1))] for g in grids)
    assert ranges_of_labels(rows, labels, ["teff", "mg_fe", "fe_h"]) == {"teff": miles + apogee, "mg_fe": apogee}


def test_without_resolving_powers_nothing_is_reconstructed_unless_they_are_given():
    labels, flux = stars(500, seed=6)
    rows = prepared(observed(flux, resolving_power=None))
    blind = Applicability.fit(EXTRACTOR, rows, answers(labels))
    assert not {"velocity", "resolution"} & set(blind.check(EXTRACTOR, rows[:1], answers(labels[:1]))[0].scores)
    told = Applicability.fit(EXTRACTOR, rows, answers(labels), resolving_power=(1800.0, 2500.0))
    assert "velocity" in told.check(EXTRACTOR, rows[:1], answers(labels[:1]))[0].scores


# ---------------------------------------------------------------- wrong inputs


PLAIN = SurveyConditions(snr=(300.0, 300.0), wider=(1.0, 1.0), widened=0.0, continuum=0.0, missing=0.0, unknown=0.0)
MILES = SURVEYS["miles"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_depends_on_its_seed_alone(name):
    one, same, other = (FAMILIES[name](MILES, 6, seed, SurveyConditions()) for seed in (1, 1, 2))
    assert len(one) == 6
    for first, second in zip(one, same, strict=True):
        np.testing.assert_array_equal(first["flux"], second["flux"])
        np.testing.assert_array_equal(first["wavelength"], second["wavelength"])
    assert not all(np.array_equal(first["flux"], second["flux"]) for first, second in zip(one, other, strict=True))


def test_m_dwarfs_have_bands():
    """At the head of the TiO band at 7,055 Angstrom the flux falls by a third or more."""
    for spectrum in m_dwarfs(MILES, 5, 0, PLAIN):
        before, after = (
            np.median(spectrum["flux"][(MILES.wavelength > low) & (MILES.wavelength < low + 15)])
            for low in (7030.0, 7062.0)
        )
        assert after < 0.7 * before


def test_lines_of_galaxies_are_as_wide_as_their_stars_move():
    """Their steepest slopes are those of lines 490 km/s wide and not of 137."""
    steep = [
        np.median([np.quantile(np.abs(np.diff(one["flux"])), 0.95) for one in kind(MILES, 30, 0, PLAIN)])
        for kind in (galaxies, good_stars)
    ]
    assert steep[0] < 0.6 * steep[1]


def test_moved_lines_are_found_where_they_should_be():
    spectrum = good_stars(MILES, 1, 0, PLAIN)[0]
    away = moved([spectrum], np.array([100.0]))[0]
    np.testing.assert_allclose(away["wavelength"] / spectrum["wavelength"] - 1, 100 / SPEED_OF_LIGHT, rtol=1e-9)


def test_what_the_door_refuses_is_infinitely_strange(model):
    """Nanometres, micron and logarithms never reach the network."""
    spectra = wrong_units(MILES, 5, 0, SurveyConditions())
    extractor = tiny_extractor(pixel_width=None, wavelength_range=(3500.0, 17_000.0))
    found = scores(tiny_model(), extractor, Applicability(["teff", "logg", "fe_h"], []), spectra[:3])
    assert np.isinf(found).all()


# ---------------------------------------------------------------- figures


def test_figures_are_drawn(tmp_path):
    probability = np.linspace(0.05, 0.95, 10)
    plot_reliability(
        probability, {"fe_h": probability**1.2, "teff": probability}, {"fe_h": 90, "teff": 80}, tmp_path / "r.png"
    )
    rng = np.random.default_rng(0)
    answered, risk, _ = risk_coverage(rng.normal(size=50), rng.random(50))
    plot_risk_coverage({"score": (answered, risk)}, get_label("fe_h"), tmp_path / "c.png")
    for name in ("r.png", "c.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="at least one label"):
        plot_reliability(probability, {}, {}, tmp_path / "r.png")
    with pytest.raises(ValueError, match="at least one curve"):
        plot_risk_coverage({}, get_label("fe_h"), tmp_path / "c.png")
