"""Unseen stars as training would have shown them; and intervals and limits that hold for others of their kind."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_model, two_instruments
from transformers import pipeline

from spectrafm_hf import SpectraFMFeatureExtractor, applicability, calibration, trust
from spectrafm_hf.applicability import FILE_NAME
from spectrafm_hf.hub import check_checkpoint, load_pretrained, staged
from spectrafm_hf.labels import MISSING_LABEL
from spectrafm_hf.pretraining import Contexts
from spectrafm_hf.synthesis.surveys import SURVEYS
from spectrafm_hf.trust import WHOLE, fit_trust, judge_trust, read_recipe_of, read_unseen, unseen_rows

SHARP = {"wider": [1.0, 1.0], "widened": 0.0, "continuum": 0.0, "velocity": 0.0}
RECIPE = {
    "beside": "optical",
    "contexts": {"whole": 0.4, "window": 0.3},
    "conditions": {"snr": [30.0, 1000.0]} | SHARP,
    "beside_conditions": {"snr": [20.0, 20.0]} | SHARP,
    "observing": {"noise": [1e-4, 1e-4], "line_strength": 0.3, "line_list": 0.04, "missing": 0.0},
}
N_STARS = 800
FACTORS = {"fe_h": [3.0, 2.0]}


def five_labels():
    """A network that knows nothing: its weights are random."""
    return tiny_model(patch_size=128, label_names=two_instruments().label_names)


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory):
    """The folder of a stage that has just ended."""
    folder = tmp_path_factory.mktemp("stage")
    five_labels().save_pretrained(folder)
    extractor = two_instruments()
    extractor.sigma_factors = FACTORS
    extractor.save_pretrained(folder)
    (folder / "stage.json").write_text(json.dumps({"recipe": RECIPE}))
    return folder


@pytest.fixture(scope="module")
def trusted(untrusted, tmp_path_factory):
    """The same with uncertainties and limits, fitted in a hurry."""
    folder = shutil.copytree(untrusted, tmp_path_factory.mktemp("trusted") / "stage")
    with pytest.MonkeyPatch.context() as hurry:
        hurry.setattr(calibration, "FEWEST_FOR_REGRESSION", N_STARS)
        hurry.setattr(trust, "FEWEST_FOR_REGRESSION", N_STARS)
        hurry.setattr(calibration, "N_STEPS", 300)
        hurry.setattr(trust, "N_FOR_LIMITS", 200)
        hurry.setattr(applicability, "FEWEST_SPECTRA", 200)
        fit_trust(folder, N_STARS)
    return folder


# ---------------------------------------------------------------- the stars


def test_stars_depend_on_the_seed_alone():
    one, same, other = (next(unseen_rows(two_instruments(), RECIPE, 6, seed, WHOLE)) for seed in (1, 1, 2))
    assert len(one) == 12
    for first, second, third in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(first["flux"], second["flux"])
        assert not np.array_equal(first["labels"], third["labels"])


def test_a_star_does_not_depend_on_how_many_there_are():
    """Whole spectra of a survey are as long as each other, and stay in their order."""
    few, many = (next(unseen_rows(two_instruments(), RECIPE, n, 1, WHOLE)) for n in (4, 9))
    np.testing.assert_array_equal(few[0]["flux"], many[0]["flux"])


def test_both_surveys_have_their_pixels_their_labels_and_their_noise():
    """Streamed stars have all five labels and the dataset's S/N of 50 to 500; those beside three, and S/N 20."""
    unseen = read_unseen(five_labels(), two_instruments(), RECIPE, 40, seed=1, n_rows=80)
    apogee, optical = unseen.survey == "apogee", unseen.survey == "optical"
    assert apogee.sum() == optical.sum() == 40
    assert np.isfinite(unseen.labels[apogee]).all()
    assert (np.isfinite(unseen.labels[optical]) == [True, True, True, False, False]).all()
    # Of the pseudo-continuum, which lies a little below the true one.
    np.testing.assert_allclose(np.median(unseen.answers.noise[optical]), 1 / 20, rtol=0.15)
    assert (unseen.answers.noise[apogee] < 1 / 25).all()
    for row, name in zip(unseen.rows, unseen.survey, strict=True):
        good = row["wavelength"][row["attention_mask"] > 0]
        assert SURVEYS[name].wavelength[0] - 0.1 < good[0] < good[-1] < SURVEYS[name].wavelength[-1] + 0.1


def test_true_labels_come_back_in_their_units():
    extractor = two_instruments()
    unseen = read_unseen(five_labels(), extractor, RECIPE, 5, seed=1, n_rows=10)
    encoded, _ = extractor.encode_labels(unseen.labels)
    np.testing.assert_allclose(encoded, np.stack([row["labels"] for row in unseen.rows]), atol=1e-5)
    assert (encoded[unseen.survey == "optical", 3:] == MISSING_LABEL).all()
    assert 3500 <= unseen.labels[:, 0].min() <= unseen.labels[:, 0].max() <= 8000


def test_metal_poor_stars_are_many():
    """Three tenths, and 2.5 % of the others, as DR17 has it; of 400 stars, within four binomial errors."""
    unseen = read_unseen(five_labels(), two_instruments(), RECIPE, 400, seed=1, contexts=Contexts(0.0, 1.0))
    share = (unseen.labels[unseen.survey == "apogee", 2] < -1).mean()
    assert abs(share - 0.32) < 4 * np.sqrt(0.32 * 0.68 / 400)


# ---------------------------------------------------------------- what is fitted


@pytest.fixture(scope="module")
def figures(untrusted, trusted):
    return {"before": judge_trust(untrusted, 400), "after": judge_trust(trusted, 400)}


def test_a_network_that_knows_nothing_is_made_honest(figures):
    """Three labels of 400 stars of the optical, five of as many of APOGEE: binomial errors of 1.3 points and less."""
    before, after = figures["before"], figures["after"]
    assert abs(before["coverage68"] - 0.6827) > 0.1
    assert set(after["per_survey"]) == {"apogee", "optical"}
    for found in after["per_survey"].values():
        assert abs(found["coverage68"] - 0.6827) < 0.06
        assert abs(found["coverage95"] - 0.95) < 0.03
    assert abs(after["coverage68"] - 0.6827) < 0.03


def test_its_answers_get_better_by_what_is_known_of_the_stars(figures):
    for name, label in figures["after"]["labels"].items():
        assert label["crps"] < figures["before"]["labels"][name]["crps"]


def test_what_is_saved_is_whole_and_loads(trusted, untrusted):
    assert {path.name for path in trusted.iterdir()} == {path.name for path in untrusted.iterdir()} | {FILE_NAME}
    extractor = SpectraFMFeatureExtractor.from_pretrained(trusted)
    assert extractor.recalibration["label_names"] == extractor.label_names
    assert extractor.sigma_factors == FACTORS  # not used, and not lost
    told = json.loads((trusted / "stage.json").read_text())
    assert told["recipe"] == RECIPE
    assert f"calibrated on {N_STARS} whole synthetic stars" in told["calibration"]
    assert (trusted / "model.safetensors").read_bytes() == (untrusted / "model.safetensors").read_bytes()


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs a stage\.json of a stage that mixed two surveys"):
        read_recipe_of(tmp_path)
    (tmp_path / "stage.json").write_text(json.dumps({"recipe": {"beside": None}}))
    with pytest.raises(ValueError, match=r"needs a stage\.json of a stage that mixed two surveys"):
        judge_trust(tmp_path)


def test_too_few_stars_are_refused(untrusted):
    with pytest.raises(ValueError, match="n_per_survey must be 3000 or more, got 2999"):
        fit_trust(untrusted, 2999)


# ---------------------------------------------------------------- what users see of it


def apogee_star(noise):
    """Wavelength, and a flat spectrum with nothing but noise."""
    wavelength = SURVEYS["apogee"].wavelength
    return {"flux": 1 + noise * np.random.default_rng(0).standard_normal(wavelength.size), "wavelength": wavelength}


@pytest.fixture(scope="module")
def reader(trusted):
    return pipeline("stellar-labels", model=str(trusted))


def test_the_pipeline_says_why_a_spectrum_is_not_to_be_trusted(reader):
    answer = reader(apogee_star(noise=0.5))
    assert any(reason.startswith("a signal-to-noise ratio of") for reason in answer["flags"])
    assert np.isfinite(answer["teff"]["value"])
    assert answer["teff"]["calibrated"]


def test_it_abstains_if_asked_to_and_only_where_there_are_flags(reader, trusted):
    model, extractor = load_pretrained(trusted)
    star = read_unseen(model, extractor, RECIPE, 1, seed=5, n_rows=2).rows[0]
    continuum = extractor.unscale(star["flux"], star["wavelength"])
    usual = {"flux": continuum, "wavelength": star["wavelength"], "bad_pixel": star["attention_mask"] == 0}
    found = reader([usual, apogee_star(noise=0.5)], abstain=True, batch_size=2)
    assert np.isnan([found[1]["teff"][part] for part in ("value", "sigma")]).all()
    assert np.isnan(found[1]["fe_h"]["interval95"]).all()
    assert np.isfinite(found[0]["teff"]["value"]) == (found[0]["flags"] == [])
    assert not any("signal-to-noise" in reason for reason in found[0]["flags"])


def test_the_pipeline_tells_the_recalibration_the_noise(reader):
    star = apogee_star(noise=0.02)
    batch = reader.feature_extractor(**star, return_tensors="pt")
    with torch.no_grad():
        told = reader.model(**batch)
    decoded = reader.feature_extractor.decode_labels(told.label_mean, told.label_log_var, np.array([0.02]))
    answer = reader(star)
    assert answer["fe_h"]["sigma"] == pytest.approx(decoded["fe_h"]["sigma"][0], rel=0.02)
    assert answer["fe_h"]["value"] == pytest.approx(decoded["fe_h"]["value"][0], abs=0.02)


def test_without_limits_there_are_no_flags_and_no_abstaining(untrusted):
    reader = pipeline("stellar-labels", model=str(untrusted))
    assert "flags" not in reader(apogee_star(noise=0.5))
    with pytest.raises(ValueError, match="abstain needs limits beside the weights"):
        reader(apogee_star(noise=0.5), abstain=True)


def test_limits_travel_with_a_push_and_are_looked_through(trusted, tmp_path):
    folder = shutil.copytree(trusted, tmp_path / "stage")
    (folder / "README.md").write_text("A card.")
    with staged(folder) as files:
        assert files[FILE_NAME].read_bytes() == (trusted / FILE_NAME).read_bytes()
    (folder / FILE_NAME).write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"applicability\.safetensors claims a header"):
        check_checkpoint("stage", folder)
