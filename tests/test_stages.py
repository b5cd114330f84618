"""Stages: recipes are read strictly, what is done stays done, what was killed goes on, and what is frozen stays."""

import json
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ARCHITECTURE, LABEL_CENTER, LABEL_SCALE, PATCH_SIZE, WINDOW, random_batch, run_script
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from spectrafm_hf import SpectraFMFeatureExtractor, SpectraFMForLabelPrediction, shipped, stages
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.few_shot import draw_stars
from spectrafm_hf.prediction import Observed, predict_on_grid
from spectrafm_hf.readers.mangadap_wheel import LibrariesUnavailableError
from spectrafm_hf.recipe import read_recipe, recipe_folder
from spectrafm_hf.stage_data import held_out, open_dataset, training_facts
from spectrafm_hf.stages import fingerprint, last_checkpoint, run_stage
from spectrafm_hf.synthesis.label_tie import LabelTie

TRAIN_SCRIPT = Path(__file__).parents[1] / "training" / "train.py"
COMMON = {
    "labels": ["teff", "logg", "fe_h"],
    "window": list(WINDOW),
    "n_spectra": 64,
    "learning_rate": 1.0e-3,
    "logging_steps": 1,
    "seed": 0,
    "disable_tqdm": True,
    "use_cpu": True,
    "validations": 1,
}
SYNTHETIC = COMMON | {
    "stage": "1-synthetic",
    "data": "synthetic",
    "context": 6,
    "architecture": {**ARCHITECTURE, "hidden_dropout": 0.1},
    "extractor": {"patch_size": PATCH_SIZE, "label_center": LABEL_CENTER, "label_scale": LABEL_SCALE},
    "per_device_train_batch_size": 8,
    "save_steps": 2,
}
BRIEF = SYNTHETIC | {"n_spectra": 16, "validations": 0}
"""Of which it matters only whether it is done."""
OBSERVED = COMMON | {"stage": "2-observed", "data": "miles", "per_device_train_batch_size": 16}
FEW_SHOT = OBSERVED | {
    "stage": "3-few-shot",
    "labels": ["fe_h"],
    "n_stars": 100,
    "fe_h_above": -1.0,
    "readout": "solve",
    "n_anchors": 100,
    "trainable": ["head.log_var"],
    "weight_decay": 0.0,
    "learning_rate": 5.0e-3,
}


def written(folder, recipe, name="recipe.yaml"):
    path = folder / name
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    return path


def run(recipe, folder, again=False, **changes):
    """Run a recipe into `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = written(folder.parent, recipe, f"{folder.name}.yaml")
    return run_stage(*read_recipe(path, output_dir=str(folder), **changes), again=again)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def times(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Stage 1, in a small way."""
    return run(SYNTHETIC, tmp_path_factory.mktemp("stages") / "1-synthetic")


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    return run(BRIEF, tmp_path_factory.mktemp("stages") / "brief")


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("path", sorted(recipe_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_read(path):
    stage, training = read_recipe(path, use_cpu=True)
    assert 0 < training.learning_rate < 0.1
    assert len(path.read_text().splitlines()) <= 60  # a stage is one page
    assert stage.n_spectra >= 1000


def test_shipped_recipes_follow_the_protocol():
    first, second, third, scratch = (
        read_recipe(recipe_folder() / f"{name}.yaml", use_cpu=True)[0]
        for name in ("1-synthetic", "2-observed", "3-few-shot", "scratch")
    )
    assert [stage.data for stage in (first, second, third)] == ["synthetic", "miles", "miles"]
    assert (third.labels, third.n_stars, third.fe_h_above) == (["fe_h"], 100, -1.0)
    assert second.window[1] < third.window[0]  # no real red light before the last stage
    assert first.window[0] <= second.window[0]
    assert first.window[1] >= third.window[1]
    assert second.n_stars is None
    for key in ("data", "labels", "window", "n_stars", "fe_h_above"):
        assert getattr(scratch, key) == getattr(third, key), key


def test_changes_go_over_the_recipe(tmp_path):
    stage, training = read_recipe(written(tmp_path, SYNTHETIC), seed=5, n_spectra=7, output_dir="elsewhere")
    assert (training.seed, stage.n_spectra, training.output_dir) == (5, 7, "elsewhere")


def test_missing_recipe_names_its_neighbours(tmp_path):
    written(tmp_path, SYNTHETIC, "1-synthetic.yaml")
    with pytest.raises(ValueError, match=r"no recipe at .*2-observed.yaml; that folder has 1-synthetic.yaml"):
        read_recipe(tmp_path / "2-observed.yaml")
    with pytest.raises(ValueError, match="no recipe at"):
        read_recipe(tmp_path / "nowhere" / "2-observed.yaml")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("stage: [1, 2", "is not valid YAML"),
        ("just words", "must hold `key: value` lines, got str"),
        ("", "must hold `key: value` lines, got NoneType"),
        (SYNTHETIC | {"lerning_rate": 1e-3}, "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        (SYNTHETIC | {"n_spectre": 5}, "unknown key 'n_spectre'; did you mean 'n_spectra'"),
        (SYNTHETIC | {"zzzzzz": 5}, "unknown key 'zzzzzz'"),
        (SYNTHETIC | {"learning_rate": "1e-4"}, "learning_rate must be a number, got text '1e-4'; YAML wants 1.0e-4"),
        ({"stage": "x", "labels": ["fe_h"]}, "lacks n_spectra, window"),
        (SYNTHETIC | {"n_spectra": 0}, "n_spectra must be at least 1 spectrum, got 0"),
        (SYNTHETIC | {"data": "sdss"}, "data must be synthetic, miles or dataset, got 'sdss'"),
        (SYNTHETIC | {"window": [5400.0, 5000.0]}, "window must be .low, high. in vacuum Angstrom"),
        (SYNTHETIC | {"window": [5000.0]}, "window must be .low, high."),
        (SYNTHETIC | {"replay": 0.5}, "belong to stages on real stars"),
        (OBSERVED | {"replay": 0.3}, "replay must be 0, 0.25, 0.5 or 0.75 of the spectra, got 0.3"),
        (FEW_SHOT | {"readout": "guess"}, "readout must be solve or left out, got 'guess'"),
        (OBSERVED | {"tie_labels": "loosely"}, "tie_labels must be fit, parent or left out, got 'loosely'"),
        (OBSERVED | {"n_stars": 0}, "n_stars must be at least 1 star, got 0"),
        (FEW_SHOT, "build on a parent; name it with `model:`"),
        (SYNTHETIC | {"lr_scheduler_type": "zigzag"}, "zigzag"),
        (SYNTHETIC | {"max_steps": 5}, "the budget is n_spectra, each shown once; max_steps is not for you to set"),
        (SYNTHETIC | {"labels": "fe_h"}, "labels must be list.str., got 'fe_h'"),
        (SYNTHETIC | {"labels": ["fe_h", 3]}, "labels must be list.str."),
        (SYNTHETIC | {"n_spectra": "many"}, "n_spectra must be a number, got text 'many'"),
        (SYNTHETIC | {"n_spectra": 10.5}, "n_spectra must be int, got 10.5"),
        (SYNTHETIC | {"context": "long"}, "context must be int, got 'long'"),
        (SYNTHETIC | {"window": ["blue", "red"]}, "window must be list.float."),
        (SYNTHETIC | {"sampler": 5}, "sampler must hold `key: value` lines, got 5"),
        (SYNTHETIC | {"seed": -1}, "seed must lie in 0 to"),
        (SYNTHETIC | {"hub_token": "hf_x"}, "hub_token would end up in the checkpoints"),
        (SYNTHETIC | {"push_to_hub": True}, "publish with --push-to NAMESPACE"),
        (SYNTHETIC | {"data": "dataset"}, "belong together"),
        (SYNTHETIC | {"dataset": "astro/spectra"}, "belong together"),
        (SYNTHETIC | {"true_labels": True}, "belong to `data: dataset`"),
        (SYNTHETIC | {"true_labels": 1}, "true_labels must be bool, got 1"),
        (SYNTHETIC | {"data": "dataset", "dataset": "astro/spectra", "replay": 0.5}, "belong to stages on real stars"),
        (SYNTHETIC | {"validations": -1}, "must not be negative"),
    ],
)
def test_recipe_that_makes_no_sense_is_refused(tmp_path, recipe, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(written(tmp_path, recipe))


def test_binary_recipe_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="is not valid YAML"):
        read_recipe(tmp_path / "recipe.yaml")


def test_fingerprint_knows_what_decides_and_what_does_not(tmp_path):
    path = written(tmp_path, SYNTHETIC)
    plain = fingerprint(*read_recipe(path))
    for change in ({"seed": 1}, {"learning_rate": 2e-3}, {"n_spectra": 65}, {"context": 5}, {"window": [5e3, 5.3e3]}):
        assert fingerprint(*read_recipe(path, **change)) != plain, change
    for change in ({"output_dir": "x"}, {"logging_steps": 7}, {"save_steps": 3}, {"disable_tqdm": False}):
        assert fingerprint(*read_recipe(path, **change)) == plain, change


# ---------------------------------------------------------------- a stage


def test_stage_leaves_a_folder_that_hugging_face_loads(parent):
    assert {path.name for path in parent.iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "results.json", "stage.json",
    }  # fmt: skip
    model, extractor = AutoModel.from_pretrained(parent), AutoFeatureExtractor.from_pretrained(parent)
    assert type(model) is SpectraFMForLabelPrediction
    assert type(extractor) is SpectraFMFeatureExtractor
    assert model.config.patch_size == extractor.patch_size == PATCH_SIZE
    assert model.config._attn_implementation == "sdpa"
    assert len(extractor.flux_center) == extractor.wavelength_grid.size


def test_a_child_does_not_answer_with_what_was_learned_of_its_parents_errors(parent, tmp_path):
    extractor = AutoFeatureExtractor.from_pretrained(parent)
    n = 2 * len(extractor.label_names) + 1
    extractor.recalibration = {
        "label_names": ["fe_h"], "center": [0.0] * n, "scale": [1.0] * n, "hidden_weight": [[0.0]] * (n + 1),
        "hidden_bias": [0.0], "output_weight": [[0.0] * 3], "output_bias": [5.0, 0.0, 0.0],
    }  # fmt: skip
    SpectraFMForLabelPrediction.from_pretrained(parent).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    assert AutoFeatureExtractor.from_pretrained(tmp_path).recalibration is not None
    stage, _ = read_recipe(recipe_folder() / "3-few-shot.yaml", model=str(tmp_path))
    _, of_child = stages.load_parent(stage)
    assert of_child.recalibration is None


def test_stage_says_what_it_did(parent):
    record = json.loads((parent / "stage.json").read_text())
    assert record["stage"] == "1-synthetic"
    assert record["recipe"]["window"] == list(WINDOW)
    assert [point["spectra"] for point in record["learning_curve"]] == list(range(8, 65, 8))
    assert all(np.isfinite(point["loss"]) for point in record["learning_curve"])
    assert {"torch", "transformers", "spectrafm_hf"} <= set(record["versions"])


def test_learning_curve_counts_spectra_of_accumulated_steps_too(tmp_path):
    folder = run(SYNTHETIC | {"gradient_accumulation_steps": 2}, tmp_path / "stage")
    curve = json.loads((folder / "stage.json").read_text())["learning_curve"]
    assert [point["spectra"] for point in curve] == [16, 32, 48, 64]


def test_training_learns(tmp_path):
    """From the spread of the labels to less, on spectra that are new each step."""
    told = {"n_spectra": 4800, "context": None, "learning_rate": 3e-3, "per_device_train_batch_size": 32}
    told |= {"architecture": ARCHITECTURE, "logging_steps": 10, "save_steps": 1000}
    folder = run(SYNTHETIC | told, tmp_path / "stage")
    curve = [point["loss"] for point in json.loads((folder / "stage.json").read_text())["learning_curve"]]
    assert np.mean(curve[-2:]) < np.mean(curve[:2]) - 0.2


def test_a_stage_that_is_done_is_not_done_again(brief, tmp_path):
    folder = run(BRIEF, tmp_path / "stage")
    before = times(folder)
    assert run(BRIEF, tmp_path / "stage") == folder
    assert run(BRIEF | {"logging_steps": 3}, tmp_path / "stage") == folder
    assert times(folder) == before
    assert weights(folder) == weights(brief)  # the same recipe elsewhere gives the same bits
    run(BRIEF, tmp_path / "stage", again=True)
    assert times(folder) != before
    assert weights(folder) == weights(brief)


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "preprocessor_config.json", "stage.json"])
def test_a_stage_that_lost_a_file_is_done_again(brief, tmp_path, damage):
    folder = shutil.copytree(brief, tmp_path / "stage")
    (folder / damage).unlink()
    run(BRIEF, tmp_path / "stage")
    assert (folder / damage).is_file()
    assert weights(folder) == weights(brief)


def test_half_written_record_is_no_record(brief, tmp_path):
    folder = shutil.copytree(brief, tmp_path / "stage")
    (folder / "stage.json").write_text('{"stage": "1-synth')
    run(BRIEF, tmp_path / "stage")
    assert json.loads((folder / "stage.json").read_text())["stage"] == "1-synthetic"


def test_a_changed_recipe_is_done_again(brief, tmp_path):
    folder = shutil.copytree(brief, tmp_path / "stage")
    first = json.loads((folder / "stage.json").read_text())
    run(BRIEF | {"learning_rate": 2e-3}, tmp_path / "stage")
    assert weights(folder) != weights(brief)
    second = json.loads((folder / "stage.json").read_text())
    assert first["fingerprint"] != second["fingerprint"]
    assert second["learning_rate"] == 2e-3
    run(BRIEF, tmp_path / "stage", seed=1)
    assert weights(folder) != weights(brief)


def test_a_changed_parent_is_a_changed_recipe(parent, tmp_path):
    child = SYNTHETIC | {"stage": "child", "n_spectra": 16, "model": str(parent)}
    other_parent = run(BRIEF, tmp_path / "other", seed=1)
    path = written(tmp_path, child)
    assert fingerprint(*read_recipe(path)) != fingerprint(*read_recipe(path, model=str(other_parent)))
    moved = tmp_path / "moved"
    moved.symlink_to(parent)
    assert fingerprint(*read_recipe(path)) == fingerprint(*read_recipe(path, model=str(moved)))


# ---------------------------------------------------------------- killed


def train_and_die(recipe, folder, n_threads):
    """In a process of its own: `python training/train.py RECIPE --output FOLDER`, killed at the sixth batch."""
    make, batches = stages.SyntheticSpectra.__getitems__, []

    def make_or_die(self, indices):
        batches.append(indices)
        if len(batches) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(self, indices)

    stages.SyntheticSpectra.__getitems__ = make_or_die
    torch.set_num_threads(n_threads)
    sys.argv = [str(TRAIN_SCRIPT), str(recipe), "--output", str(folder)]
    runpy.run_path(str(TRAIN_SCRIPT), run_name="__main__")


def test_killed_stage_goes_on_and_ends_with_the_same_bits(parent, tmp_path, fresh_processes):
    folder, recipe = tmp_path / "killed", written(tmp_path, SYNTHETIC)
    killed = fresh_processes.Process(target=train_and_die, args=(recipe, folder, torch.get_num_threads()))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert not (folder / "stage.json").exists()
    assert last_checkpoint(folder).name == "checkpoint-4"
    half = folder / "checkpoint-6"  # killed while writing: weights without a state, or with half of one
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"")
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "trainer_state.json").write_text('{"global_step": 8, ')
    assert last_checkpoint(folder).name == "checkpoint-4"

    asked = []

    class Watched(stages.SyntheticSpectra):
        def __getitems__(self, indices):
            asked.append(len(indices))
            return super().__getitems__(indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "SyntheticSpectra", Watched)
        run(SYNTHETIC, folder)
    assert sum(asked) == 64 - 4 * 8  # it went on, and did not begin again
    assert weights(folder) == weights(parent)
    assert not list(folder.glob("checkpoint-*"))
    curves = [json.loads((f / "stage.json").read_text())["learning_curve"] for f in (folder, parent)]
    assert [point["loss"] for point in curves[0]] == [point["loss"] for point in curves[1]]


def test_checkpoints_of_another_recipe_are_not_taken_up(parent, tmp_path):
    folder = tmp_path / "stage"
    stale = folder / "checkpoint-4"
    stale.mkdir(parents=True)
    (stale / "trainer_state.json").write_text('{"global_step": 4}')
    (folder / "begun.json").write_text('{"fingerprint": "another"}')
    run(SYNTHETIC, folder)
    assert weights(folder) == weights(parent)


def test_no_checkpoint_no_resuming(tmp_path):
    assert last_checkpoint(tmp_path) is None


# ---------------------------------------------------------------- real stars


def on_grid(folder, library, window=WINDOW):
    extractor = SpectraFMFeatureExtractor.from_pretrained(folder)
    return extractor, Observed.from_spectra(library.split("test"), extractor, window)


def predicted(folder, library):
    extractor, test = on_grid(folder, library)
    return predict_on_grid(SpectraFMForLabelPrediction.from_pretrained(folder), extractor, test.flux, test.good)


def test_frozen_parameters_stay(parent, tmp_path, use_fake_library):
    folder = run(OBSERVED | {"model": str(parent), "trainable": ["decoder_layers", "head.mean"]}, tmp_path / "stage")
    before, after = load_file(parent / "model.safetensors"), load_file(folder / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("decoder_layers") for name in moved)
    assert moved >= {"head.mean_weight", "head.mean_bias"}
    assert all(name.startswith(("decoder_layers", "head.mean")) for name in moved)


def test_stage_on_real_stars_learns_from_the_training_split_alone(parent, tmp_path, use_fake_library):
    folder = run(OBSERVED | {"model": str(parent), "replay": 0.5}, tmp_path / "stage")
    stars = json.loads((folder / "stage.json").read_text())["stars"]
    assert set(stars) == {star.star_id for star in use_fake_library.split("train")}
    assert not (folder / "label_tie.json").exists()
    before = SpectraFMFeatureExtractor.from_pretrained(parent).to_dict()
    assert SpectraFMFeatureExtractor.from_pretrained(folder).to_dict() == before


def test_stage_that_ties_labels_writes_the_tie_and_its_child_keeps_it(parent, tmp_path, use_fake_library):
    tied = run(OBSERVED | {"model": str(parent), "replay": 0.5, "tie_labels": "fit"}, tmp_path / "tied")
    tie = LabelTie.load(tied / "label_tie.json")
    assert tie.n_stars == len(use_fake_library.split("train"))
    assert tie.label_names == ("teff", "logg", "fe_h")
    untied = run(OBSERVED | {"model": str(parent), "replay": 0.5}, tmp_path / "untied")
    assert weights(tied) != weights(untied)
    few_shot = FEW_SHOT | {"model": str(tied), "replay": 0.5, "tie_labels": "parent"}
    child = run(few_shot, tmp_path / "child")
    assert (child / "label_tie.json").read_text() == (tied / "label_tie.json").read_text()
    with pytest.raises(ValueError, match=r"tie_labels: parent, but .*untied has no label_tie.json"):
        run(few_shot | {"model": str(untied)}, tmp_path / "orphan")


def test_tie_of_an_earlier_recipe_does_not_linger(parent, tmp_path, use_fake_library):
    folder = run(OBSERVED | {"model": str(parent), "replay": 0.5, "tie_labels": "fit"}, tmp_path / "stage")
    run(OBSERVED | {"model": str(parent), "replay": 0.5}, tmp_path / "stage")
    assert not (folder / "label_tie.json").exists()


def test_few_shot_stage_moves_metallicity_and_nothing_else(parent, tmp_path, use_fake_library):
    folder = run(FEW_SHOT | {"model": str(parent)}, tmp_path / "few-shot")
    before, after = predicted(parent, use_fake_library), predicted(folder, use_fake_library)
    for column in (0, 1):
        np.testing.assert_array_equal(after.mean[:, column], before.mean[:, column])
        np.testing.assert_array_equal(after.sigma[:, column], before.sigma[:, column])
    assert np.abs(after.mean[:, 2] - before.mean[:, 2]).min() > 0.01
    assert np.abs(after.sigma[:, 2] - before.sigma[:, 2]).min() > 1e-4
    shared = [load_file(f / "model.safetensors") for f in (parent, folder)]
    moved = {name for name in shared[0] if not torch.equal(shared[0][name], shared[1][name])}
    assert moved == {"head.mean_weight", "head.mean_bias", "head.log_var_weight", "head.log_var_bias"}


def test_few_shot_stage_removes_the_bias_of_its_stars(parent, tmp_path, use_fake_library):
    folder = run(FEW_SHOT | {"model": str(parent)}, tmp_path / "few-shot")
    record = json.loads((folder / "stage.json").read_text())
    stars = draw_stars(use_fake_library.split("train"), 100, -1.0, seed=0)
    assert record["stars"] == [star.star_id for star in stars]
    extractor = SpectraFMFeatureExtractor.from_pretrained(folder)
    drawn = Observed.from_spectra(stars, extractor, WINDOW)
    residual = []
    for where in (parent, folder):
        model = SpectraFMForLabelPrediction.from_pretrained(where)
        residual.append(predict_on_grid(model, extractor, drawn.flux, drawn.good).mean[:, 2] - drawn.labels[:, 2])
    assert abs(residual[0].mean()) > 0.1  # the parent has hardly been trained
    assert abs(residual[1].mean()) < 0.01
    chosen = record["readout"]["fe_h"]
    loo = chosen["leave_one_out_rmse"][f"{chosen['strength']:g}"]
    assert np.sqrt(np.mean(residual[1] ** 2)) <= loo < 1.0  # dex
    assert set(record["readout"]) == {"fe_h"}


def test_draws_of_stars_differ_by_seed(parent, tmp_path, use_fake_library):
    drawn = []
    for seed in (0, 1):
        folder = run(FEW_SHOT | {"model": str(parent), "n_spectra": 16}, tmp_path / str(seed), seed=seed)
        drawn.append(set(json.loads((folder / "stage.json").read_text())["stars"]))
    assert len(drawn[0]) == len(drawn[1]) == 100
    assert drawn[0] != drawn[1]


# ---------------------------------------------------------------- the command


def command(monkeypatch, capsys, *told):
    """Exit code and standard error of `python training/train.py ...`, without starting another Python."""
    monkeypatch.setattr(sys, "argv", [str(TRAIN_SCRIPT), *map(str, told)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(TRAIN_SCRIPT), run_name="__main__")
    return left.value.code, capsys.readouterr().err


def assert_refused(outcome, message):
    code, error = outcome
    assert code == 2
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    assert message in error


def test_command_runs_a_stage(tmp_path, monkeypatch, capsys, parent):
    path = written(tmp_path, SYNTHETIC)
    told = [path, "--output", tmp_path / "stage", "--n-spectra", "16", "--seed", "3"]
    assert command(monkeypatch, capsys, *told)[0] == 0
    record = json.loads((tmp_path / "stage" / "stage.json").read_text())
    assert (record["seed"], record["recipe"]["n_spectra"]) == (3, 16)
    before = times(tmp_path / "stage")
    assert command(monkeypatch, capsys, *told)[0] == 0
    assert times(tmp_path / "stage") == before


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("stage: [1, 2", "not valid YAML"),
        (SYNTHETIC | {"lerning_rate": 1e-3}, "did you mean 'learning_rate'"),
        (SYNTHETIC | {"learning_rate": "1e-4"}, "learning_rate must be a number"),
        (SYNTHETIC | {"n_spectra": 0}, "n_spectra must be at least 1"),
        (SYNTHETIC | {"labels": ["teff", "feh"]}, "unknown label 'feh'"),
        (SYNTHETIC | {"sampler": {"teff": [3000.0, 7000.0]}}, "teff must be a range within [3500, 8000]"),
    ],
)
def test_command_says_what_is_wrong_with_a_recipe(tmp_path, monkeypatch, capsys, recipe, message):
    outcome = command(monkeypatch, capsys, written(tmp_path, recipe), "--output", tmp_path / "stage")
    assert_refused(outcome, message)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (SYNTHETIC | {"architecture": {"hidden_size": 33}}, "hidden_size must be a multiple"),
        (SYNTHETIC | {"architecture": {"hidden_sise": 64}}, "hidden_sise"),
        (SYNTHETIC | {"extractor": {"smothing_length": 60.0}}, "smothing_length"),
        (SYNTHETIC | {"sampler": {"tef": [4000.0, 5000.0]}}, "tef"),
        (SYNTHETIC | {"observing": {"velosity": 30.0}}, "velosity"),
    ],
)
def test_command_says_what_is_wrong_inside_a_recipe(tmp_path, monkeypatch, capsys, recipe, message):
    outcome = command(monkeypatch, capsys, written(tmp_path, recipe), "--output", tmp_path / "stage")
    assert_refused(outcome, message)


def test_command_names_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")
    outcome = command(monkeypatch, capsys, written(tmp_path, SYNTHETIC), "--output", tmp_path / "file" / "stage")
    assert_refused(outcome, f"the folder {tmp_path / 'file' / 'stage'} cannot be written (Not a directory)")


def test_command_names_a_missing_parent(tmp_path, monkeypatch, capsys):
    path = written(tmp_path, OBSERVED)
    told = [path, "--output", tmp_path / "stage", "--model", tmp_path / "nowhere"]
    assert_refused(command(monkeypatch, capsys, *told), "run the stage before this one first")


SYNTHETIC_CHILD = {key: value for key, value in SYNTHETIC.items() if key not in ("architecture", "extractor")}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (OBSERVED | {"labels": ["mg_fe"]}, "mg_fe"),
        (SYNTHETIC_CHILD | {"labels": ["mg_fe"]}, "mg_fe"),
        (OBSERVED | {"window": [8000.0, 9000.0]}, "8000"),
        (SYNTHETIC_CHILD | {"window": [8000.0, 9000.0]}, "8000"),
        (
            SYNTHETIC_CHILD | {"trainable": ["heat"]},
            "matches no parameter; they begin with decoder_layers, encoder, head",
        ),
    ],
)
def test_command_says_what_does_not_fit_the_parent(
    tmp_path, monkeypatch, capsys, parent, use_fake_library, recipe, message
):
    """Else a stage would learn nothing, in silence."""
    path = written(tmp_path, recipe | {"model": str(parent)})
    assert_refused(command(monkeypatch, capsys, path, "--output", tmp_path / "stage"), message)


def test_command_says_that_too_few_stars_are_left(tmp_path, monkeypatch, capsys, parent, use_fake_library):
    path = written(tmp_path, FEW_SHOT | {"model": str(parent), "n_stars": 1000})
    outcome = command(monkeypatch, capsys, path, "--output", tmp_path / "stage")
    assert_refused(outcome, "needs 1000 stars with [Fe/H] > -1 dex")


def test_command_says_that_the_stars_cannot_be_had(tmp_path, monkeypatch, capsys, parent):
    def unavailable(*args, **kwargs):
        raise LibrariesUnavailableError("the libraries are neither in the cache nor to be had")

    monkeypatch.setattr("spectrafm_hf.stage_data.load_library", unavailable)
    path = written(tmp_path, OBSERVED | {"model": str(parent)})
    assert_refused(command(monkeypatch, capsys, path, "--output", tmp_path / "stage"), "nor to be had")


def test_real_command_prints_no_traceback(tmp_path, fresh_processes):
    recipe = tmp_path / "nowhere.yaml"
    code, printed, complaints = run_script(fresh_processes, TRAIN_SCRIPT, recipe, home=tmp_path)
    assert code == 2
    assert complaints.strip() == f"error: no recipe at {recipe}."
    assert printed == ""


# ---------------------------------------------------------------- adapters


LORA = {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}, "learning_rate": 1e-2}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_recipe_with_lora_moves_the_adapted_weights_and_saves_an_ordinary_model(parent, tmp_path):
    pytest.importorskip("peft")
    folder = run(SYNTHETIC_CHILD | LORA | {"model": str(parent)}, tmp_path / "adapted")
    before, after = (load_file(path / "model.safetensors") for path in (parent, folder))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith(("q_proj.weight", "v_proj.weight"))}
    change = after["encoder.layers.0.attention.q_proj.weight"] - before["encoder.layers.0.attention.q_proj.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 4
    assert type(AutoModel.from_pretrained(folder)) is SpectraFMForLabelPrediction


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_interrupted_lora_goes_on_and_ends_with_the_same_bits(parent, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    recipe = SYNTHETIC_CHILD | LORA | {"model": str(parent)}
    uninterrupted = run(recipe, tmp_path / "uninterrupted")
    make, batches = stages.SyntheticSpectra.__getitems__, []

    def make_or_stop(self, indices):
        batches.append(indices)
        if len(batches) == 6:
            raise KeyboardInterrupt
        return make(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(stages.SyntheticSpectra, "__getitems__", make_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "interrupted")
    assert last_checkpoint(tmp_path / "interrupted").name == "checkpoint-4"
    assert weights(run(recipe, tmp_path / "interrupted")) == weights(uninterrupted)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 4}, "lora: "),
        ({"r": 4, "target_modules": ["attention_of_another_model"]}, "attention_of_another_model"),
    ],
)
def test_lora_that_does_not_fit_is_refused(parent, tmp_path, lora, message):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message):
        run(SYNTHETIC_CHILD | {"lora": lora, "model": str(parent)}, tmp_path / "stage")


def test_lora_and_trainable_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="both say what moves"):
        read_recipe(written(tmp_path, SYNTHETIC | LORA | {"trainable": ["head"]}))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_trains_adapters_and_leaves_the_model_alone(parent):
    peft = pytest.importorskip("peft")
    model = SpectraFMForLabelPrediction.from_pretrained(parent)
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    batch = random_batch(n_tokens=6)
    with torch.no_grad():
        untouched = model(**batch).label_mean
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    assert 0 < adapted.get_nb_trainable_parameters()[0] < 0.2 * model.num_parameters()
    optimiser = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        losses.append(adapted(**batch, labels=torch.zeros(4, 3)).loss)
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert (adapted(**batch).label_mean - untouched).abs().max() > 1e-3
    after = adapted.unload()
    for name, parameter in after.state_dict().items():
        assert torch.equal(parameter, before[name]), name


# ---------------------------------------------------------------- what a card is told of a stage of two surveys


@pytest.fixture(scope="module")
def of_two_surveys(tmp_path_factory):
    """Facts of the recipes of the model that ships, with a small dataset."""
    folder = tmp_path_factory.mktemp("mixed") / "h-band"
    build_dataset([SyntheticConfig(n=300)], folder, progress=False)
    stage, _ = read_recipe(recipe_folder() / "spectrafm-small-1.yaml", use_cpu=True, dataset=str(folder))
    dataset = open_dataset(stage)
    extractor = AutoFeatureExtractor.from_pretrained(shipped())
    return stage, training_facts(stage, dataset, extractor, []), held_out(stage, dataset, extractor)


def test_each_survey_has_wavelengths_sharpness_noise_and_labels_of_its_own(of_two_surveys):
    h_band, optical = of_two_surveys[1]["surveys"]
    assert [(round(low), round(high)) for low, high in optical["wavelength"]] == [(3584, 9088)]
    assert len(h_band["wavelength"]) == 3  # detectors
    assert all(15_100 < low < high < 17_000 for low, high in h_band["wavelength"])
    assert (h_band["resolving_power"], optical["fwhm"]) == ([1800, 22_500], [2.0, 5.0])
    assert (h_band["pixel"], optical["pixel"]) == (0.22, 1.0)
    assert optical["snr"] == [20, 300]  # as the recipe has it: theory's noise is none beside it
    assert list(h_band["labels"]) == ["teff", "logg", "fe_h", "mg_fe", "o_fe"]
    assert list(optical["labels"]) == ["teff", "logg", "fe_h"]
    assert optical["labels"]["teff"] == pytest.approx((3600, 7200), abs=20)
    assert optical["labels"]["fe_h"] == pytest.approx((-2.5, 0.5), abs=0.02)


def test_noise_comes_on_top_of_that_of_the_dataset(of_two_surveys):
    """Variances add."""
    stage, facts, _ = of_two_surveys
    lowest, highest = (
        (own**-2 + more**-2) ** -0.5 for own, more in zip(facts["snr_range"], stage.conditions["snr"], strict=True)
    )
    assert facts["surveys"][0]["snr"] == [round(lowest), round(highest)]


def test_words_tell_both_surveys_and_what_is_shown(of_two_surveys):
    _, facts, judged_by = of_two_surveys
    assert facts["training_data"] == (
        "the training split of h-band, streamed (survey apogee), and beside each star another one, synthesised for the "
        "survey optical; shown whole (40%), through a window of neighbouring pixels (40%) or as 16 scattered patches "
        "of 32 pixels (20%)"
    )
    assert judged_by.what.endswith("spectra of the validation split of h-band, 15152-16944 vacuum Angstrom")
