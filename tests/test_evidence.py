"""Evidence of a model: what is known of one that does not look, what is kept, and what must be found anew.

A network whose readouts have no weights answers every star alike: its lines are no better than chance, and its
intervals hold everything or nothing, by how wide they are. Wrong inputs need the limits of a model that was trained.
"""

import json
import shutil

import pytest
import torch
from conftest import fake_spectra, tiny_model, two_instruments

from spectrafm_hf import shipped
from spectrafm_hf.applicability import FILE_NAME
from spectrafm_hf.builders.libraries import Library
from spectrafm_hf.builders.selection import SelectionReport
from spectrafm_hf.protocols import evidence
from spectrafm_hf.protocols.evidence import Evidence
from spectrafm_hf.wrong_inputs import FAMILIES

SHARP = {"wider": [1.0, 1.0], "widened": 0.0, "continuum": 0.0, "velocity": 0.0}
RECIPE = {
    "labels": ["teff", "logg", "fe_h", "mg_fe", "o_fe"],
    "beside": "optical",
    "contexts": {"whole": 0.4, "window": 0.3},
    "conditions": {"snr": [50.0, 500.0]} | SHARP,
    "beside_conditions": {"snr": [50.0, 500.0]} | SHARP,
    "observing": {"noise": [1e-4, 1e-4], "line_strength": 0.3, "line_list": 0.04, "missing": 0.0},
}
SHALLOW = {"hidden_size": 16, "encoder_heads": [1], "encoder_sizes": [16], "decoder_heads": [1], "decoder_sizes": [16]}
"""Architecture of a network whose answers are known beforehand."""
SMALL = 1e-3
"""Budget: the fewest stars that each part takes."""
N_STARS, N_GIANTS, N_STRANGE = 60, 4, 20
"""Then: of each survey, for coverage; giants, and as many dwarfs, for lines; spectra of each wrong kind."""


def blind_folder(folder, times):
    """A network that does not look, as a stage that mixed two surveys leaves it, with `times` its own sigma."""
    model, extractor = tiny_model(patch_size=128, label_names=RECIPE["labels"], **SHALLOW), two_instruments()
    with torch.no_grad():
        for name in ("mean_weight", "log_var_weight"):
            getattr(model.head, name).zero_()
    extractor.sigma_factors = {name: [times, times] for name in RECIPE["labels"]}
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    (folder / "stage.json").write_text(json.dumps({"recipe": RECIPE}))
    return folder


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    return blind_folder(tmp_path_factory.mktemp("wide"), 1e4)


@pytest.mark.usefixtures("unrendered")
def test_intervals_wide_enough_hold_every_star(blind, tmp_path):
    found = Evidence(str(blind), tmp_path, SMALL).find("calibration", None)
    assert found["coverage68"] == found["coverage95"] == 1.0
    assert set(found["per_survey"]) == {"apogee", "optical"}
    both, streamed_alone = ("teff", "logg", "fe_h"), ("mg_fe", "o_fe")
    assert [found["labels"][name]["n"] for name in (*both, *streamed_alone)] == [2 * N_STARS] * 3 + [N_STARS] * 2
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "reliability_apogee.png",
        "reliability_optical.png",
    }


@pytest.mark.usefixtures("unrendered")
def test_evidence_of_other_intervals_is_not_kept(blind, tmp_path):
    wide = Evidence(str(blind), tmp_path / "wide", SMALL)
    kept = {"coverage68": 1.0, "of": wide.origin}
    assert wide.find("calibration", kept) == kept
    narrow = Evidence(str(blind_folder(tmp_path / "narrow", 1e-6)), tmp_path / "run", SMALL)
    found = narrow.find("calibration", kept)
    assert found["coverage68"] == found["coverage95"] == 0.0
    assert found["of"] == narrow.origin != wide.origin


def test_what_evidence_hangs_on(blind, tmp_path):
    """Weights, limits, how answers are decoded, the number of stars; not where the model lies, nor its card."""
    origin = Evidence(str(blind), tmp_path, SMALL).origin
    copy = shutil.copytree(blind, tmp_path / "copy")
    (copy / "README.md").write_text("A card.")
    assert Evidence(str(copy), tmp_path / "elsewhere", SMALL).origin == origin
    assert Evidence(str(copy), tmp_path, 2 * SMALL).origin != origin
    shutil.copy(shipped() / FILE_NAME, copy)
    assert Evidence(str(copy), tmp_path, SMALL).origin != origin
    (copy / FILE_NAME).unlink()
    assert Evidence(str(copy), tmp_path, SMALL).origin == origin
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert Evidence(str(copy), tmp_path, SMALL).origin != origin


def test_a_model_whose_stars_cannot_be_made_anew_says_so_each_time(blind, tmp_path):
    folder = shutil.copytree(blind, tmp_path / "other")
    (folder / "stage.json").write_text(json.dumps({"recipe": {"beside": None}}))
    found = Evidence(str(folder), tmp_path, SMALL).find("calibration", None)
    assert list(found) == ["left_out"]  # not of this model for ever: its stage may yet be told
    assert "a stage that mixed two surveys" in found["left_out"]


@pytest.mark.usefixtures("unrendered")
def test_the_lines_of_a_network_that_does_not_look_are_chance(blind, tmp_path):
    found = Evidence(str(blind), tmp_path, SMALL).find("lines", {"fe_h_auc": 1.0, "of": "another model"})
    assert (found["fe_h_auc"], found["mg_fe_auc"], found["o_fe_auc"]) == (0.5, 0.5, 0.5)
    assert set(found["attention"]) == {"fe_h_auc", "mg_fe_auc", "o_fe_auc"}
    assert found["n_stars"] == 2 * N_GIANTS
    for symbol in (r"[Fe/H]", r"[Mg/Fe]", r"[O/Fe]"):
        assert any(said.startswith(f"{symbol} follows the lines of") for said in found["wrong_lines"])
        assert any(
            said.startswith(f"Of a change of 1 dex in {symbol} alone it sees 0.00") for said in found["wrong_lines"]
        )
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {"attention.png", "attention_and_causal.png"}


def test_wrong_inputs_need_limits(blind, tmp_path):
    found = Evidence(str(blind), tmp_path, SMALL).find("ood", None)
    assert f"make it with: spectrafm calibrate {blind}" in found["left_out"]


def test_wrong_inputs_are_stranger_than_good_ones_to_the_model_that_ships(tmp_path, monkeypatch):
    """Wavelengths in another unit are refused or unlike anything: they are always the stranger ones."""
    stars = fake_spectra(40)
    asked = [star.star_id for split in ("train", "validation") for star in library(stars).split(split)]
    for star in stars:
        if star.star_id not in asked:
            star.labels.clear()  # a test star that was asked about would be missed
    monkeypatch.setattr(evidence, "load_library", lambda name: library(stars))
    found = Evidence(str(shipped()), tmp_path, SMALL).find("ood", None)
    assert found["n_spectra"] == N_STRANGE
    assert set(found["per_survey"]) == {"apogee", "optical"}
    for family in FAMILIES:
        assert found[family] == min(told[family] for told in found["per_survey"].values())
        assert found[family] > 0.9, family
    assert found["wrong_unit"] == 1.0
    assert set(found["risk_coverage"]) == {"by its checks", "by sigma", "at random"}
    assert all(0 < area < 0.3 for area in found["risk_coverage"].values())  # dex
    assert (tmp_path / "figures" / "risk_coverage.png").stat().st_size > 1000


def library(spectra):
    return Library("miles", spectra, SelectionReport(len(spectra), ()))
