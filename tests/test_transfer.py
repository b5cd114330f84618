"""The transfer from end to end, in a small way: tables, folders, figures, and nothing done twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import ARCHITECTURE, LABEL_CENTER, LABEL_SCALE, PATCH_SIZE, patched_library, render_nothing
from transformers import AutoFeatureExtractor, AutoModel

from spectrafm_hf import transfer
from spectrafm_hf.answers import load_answer, save_answer
from spectrafm_hf.baselines import BASELINES, Median, Ridge
from spectrafm_hf.builders.libraries import Library
from spectrafm_hf.builders.selection import SelectionReport
from spectrafm_hf.recipe import read_recipe
from spectrafm_hf.transfer import COMPARED, STAGE_NAMES, TransferPlan, check_test_stars, run_transfer

ALWAYS = {
    "seed": 0,
    "learning_rate": 1.0e-3,
    "logging_steps": 2,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
FEW = {"labels": ["fe_h"], "window": [5500.0, 5900.0], "n_stars": 100, "fe_h_above": -1.0, "data": "miles"}
RECIPES = {
    "1-synthetic": {
        "labels": ["teff", "logg", "fe_h"],
        "window": [5000.0, 5900.0],
        "n_spectra": 96,
        "per_device_train_batch_size": 16,
        "architecture": ARCHITECTURE,
        "extractor": {"patch_size": PATCH_SIZE, "label_center": LABEL_CENTER, "label_scale": LABEL_SCALE},
    },
    "2-observed": {
        "model": "the stage before",
        "data": "miles",
        "labels": ["teff", "logg", "fe_h"],
        "window": [5000.0, 5400.0],
        "n_spectra": 64,
        "replay": 0.5,
        "tie_labels": "fit",
        "per_device_train_batch_size": 16,
    },
    "3-few-shot": {
        **FEW,
        "model": "the stage before",
        "readout": "solve",
        "n_anchors": 100,
        "trainable": ["head.log_var"],
        "n_spectra": 64,
        "replay": 0.5,
        "tie_labels": "parent",
    },
    "scratch": {**FEW, "stage": "transformer-scratch", "n_spectra": 200, "per_device_train_batch_size": 32},
}
METHODS = ("spectrafm", "spectrafm_zero_shot", "transformer_scratch", *COMPARED)
FAST = {name: BASELINES[name] for name in COMPARED} | {"mlp_scratch": Median, "cannon": Ridge}


def written(folder):
    """A plan with recipes of its own."""
    recipes = folder / "recipes"
    recipes.mkdir()
    for name, recipe in RECIPES.items():
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump({"stage": name, **ALWAYS, **recipe}))
    return TransferPlan(folder / "run", recipes=recipes)


@pytest.fixture
def fast(monkeypatch, use_fake_library):
    """Transfers on the fake library; the two slow baselines are played by fast ones."""
    monkeypatch.setattr(transfer, "BASELINES", FAST)


@pytest.fixture
def plan(tmp_path, fast):
    return written(tmp_path)


def watched(kind, seen):
    """A baseline that also adds to `seen` what it is given to learn from."""

    class Watched(kind):
        def fit(self, flux, good, values, errors, seed):
            seen.append((flux, good, values, errors))
            return super().fit(flux, good, values, errors, seed)

    return Watched


@pytest.fixture(scope="module")
def first(tmp_path_factory, fake_library):
    """A transfer from end to end: its plan, its results, and what its baselines learned from."""
    plan, seen = written(tmp_path_factory.mktemp("transfer")), []
    with pytest.MonkeyPatch.context() as patch:
        patched_library(patch, fake_library)
        patch.setattr(transfer, "BASELINES", {name: watched(kind, seen) for name, kind in FAST.items()})
        return plan, run_transfer(plan), seen


def times(folder, *suffixes):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in suffixes}


@pytest.mark.usefixtures("fast")
def test_transfer_from_end_to_end_and_nothing_twice(first, use_fake_library, monkeypatch):
    plan, results, _ = first
    folder = plan.output
    assert json.loads((folder / "results.json").read_text()) == results

    # The table: every key of the schema, every method, every subset.
    test = use_fake_library.split("test")
    poor = sum(star.labels["fe_h"] < -1 for star in test)
    assert f"all {len(test)} held-out MILES stars from 5500-5900 vacuum Angstrom" in results["protocol"]
    assert {key: results[key] for key in ("seed", "n_train", "n_test", "n_test_metal_poor", "label", "unit")} == {
        "seed": 0, "n_train": 100, "n_test": len(test), "n_test_metal_poor": poor, "label": "fe_h", "unit": "dex",
    }  # fmt: skip
    assert list(results["methods"]) == list(METHODS)
    for name, subsets in results["methods"].items():
        assert set(subsets) >= {"all", "metal_poor", "metal_rich"}, name
        assert (subsets["all"]["n"], subsets["metal_poor"]["n"]) == (len(test), poor)
        for figures in subsets.values():
            assert set(figures) == {"n", "rmse", "bias", "scatter", "coverage68", "coverage95"}
            assert 0 < figures["rmse"] < 5
            assert 0 <= figures["coverage68"] <= figures["coverage95"] <= 1
    assert "seeds" not in results

    # What is known beforehand: the median knows nothing of metal-poor stars, ridge regression something.
    methods = results["methods"]
    truth = np.array([star.labels["fe_h"] for star in test])
    assert methods["median"]["metal_poor"]["rmse"] > np.sqrt(np.mean((truth[truth < -1] + 1) ** 2))
    assert methods["ridge"]["metal_poor"]["rmse"] < methods["median"]["metal_poor"]["rmse"]
    assert methods["mlp_scratch"] == methods["median"]  # played by it
    assert methods["cannon"] == methods["ridge"]

    # Three folders that load, with their cards and figures.
    for name in STAGE_NAMES:
        assert AutoModel.from_pretrained(folder / name).config.label_names == ["teff", "logg", "fe_h"]
        assert AutoFeatureExtractor.from_pretrained(folder / name).patch_size == PATCH_SIZE
        card = (folder / name / "README.md").read_text()
        assert card.startswith("---\n")
        assert "{{" not in card
        assert (folder / "figures" / f"learning_curve_{name}.png").stat().st_size > 1000
    figure = f"{results['methods']['spectrafm']['metal_poor']['rmse']:.3f}"
    assert figure in (folder / "3-few-shot" / "README.md").read_text()
    for name in ("predicted_against_true", "metal_poor_rmse"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    # A second call repeats nothing.
    render_nothing(monkeypatch)
    before = times(folder, ".safetensors", ".npz")
    assert len(before) >= 3 + len(METHODS)
    assert run_transfer(plan) == results
    assert times(folder, ".safetensors", ".npz") == before
    assert json.loads((folder / "results.json").read_text()) == results

    # Another draw leaves the first as it was, and counts the wins.
    two = run_transfer(replace(plan, n_seeds=2))
    kept = times(folder, ".safetensors", ".npz")
    assert {path: kept[path] for path in before} == before
    assert [record["seed"] for record in two["seeds"]] == [0, 1]
    assert two["seeds"][0]["methods"] == results["methods"] == two["methods"]
    assert two["seeds"][1]["methods"]["ridge"] != two["seeds"][0]["methods"]["ridge"]
    assert set(two["wins"]) == {name for name in METHODS if not name.startswith("spectrafm")}
    draws = [{name: m["metal_poor"]["rmse"] for name, m in record["methods"].items()} for record in two["seeds"]]
    assert two["wins"]["ridge"] == sum(rmse["spectrafm"] < rmse["ridge"] for rmse in draws)


def test_every_method_learns_from_the_same_stars_and_pixels(first, use_fake_library):
    plan, _, seen = first
    assert len(seen) == len(FAST)
    flux, good, values, errors = seen[0]
    for other in seen[1:]:
        for mine, theirs in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    record = json.loads((plan.output / "3-few-shot" / "stage.json").read_text())
    by_name = {star.star_id: star.labels["fe_h"] for star in use_fake_library.spectra}
    np.testing.assert_allclose(values, [by_name[name] for name in record["stars"]])
    np.testing.assert_array_equal(errors, 0.1)  # unpublished: the default of the label table
    assert flux.shape[1] == 400  # one pixel per Angstrom of the window, and none of the blue half
    assert np.median(flux[good]) == pytest.approx(1.0, abs=0.03)


# ---------------------------------------------------------------- before the training begins


def test_a_limit_of_zero_is_a_limit(plan, use_fake_library):
    """Of the training stars, too few are richer than the Sun: to be said before hours are spent."""
    few_shot = plan.recipe("3-few-shot")[0]
    rich = sum(star.labels["fe_h"] > 0 for star in use_fake_library.split("train"))
    assert rich < 100
    with pytest.raises(ValueError, match=rf"needs 100 stars with \[Fe/H\] > 0 dex, got {rich}"):
        check_test_stars(use_fake_library, replace(few_shot, fe_h_above=0.0), 1)


def test_too_few_stars_are_noticed_first(plan, use_fake_library):
    few_shot = plan.recipe("3-few-shot")[0]
    with pytest.raises(ValueError, match="needs 200 stars"):
        check_test_stars(use_fake_library, replace(few_shot, n_stars=200), 1)


def test_a_test_split_without_metal_poor_stars_is_refused(plan, use_fake_library):
    rich = [star for star in use_fake_library.spectra if star.labels["fe_h"] > -1]
    with pytest.raises(ValueError, match=r"no star with \[Fe/H\] < -1"):
        check_test_stars(Library("miles", rich, SelectionReport(len(rich), ())), plan.recipe("3-few-shot")[0], 1)


def test_misspelt_recipe_is_noticed_before_the_first_stage(plan):
    scratch = plan.recipes / "scratch.yaml"
    scratch.write_text(scratch.read_text() + "hiden_tokens: 0.2\n")
    with pytest.raises(ValueError, match="did you mean 'hidden_tokens'"):
        run_transfer(plan)
    assert not plan.output.exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"n_seeds": 0}, "at least 1 seed"), ({"budget": 0.0}, "positive factor"), ({"budget": -1.0}, "positive")],
)
def test_impossible_plans_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        TransferPlan(tmp_path, **wrong)


def test_budget_is_a_factor_on_every_stage(plan):
    small = replace(plan, budget=0.7)
    assert small.recipe("scratch")[0].n_spectra == 140
    assert small.recipe("2-observed")[0].n_spectra == 64  # at least
    assert plan.recipe("scratch")[0].n_spectra == 200


def test_shipped_recipes_make_a_plan(tmp_path):
    plan = TransferPlan(tmp_path)
    for name in (*STAGE_NAMES, "scratch"):
        stage, _ = plan.recipe(name)
        assert stage == read_recipe(transfer.recipe_folder() / f"{name}.yaml")[0]


# ---------------------------------------------------------------- what is kept


def test_kept_answers_are_those_of_the_same_origin(tmp_path):
    mean, sigma = np.arange(3.0), np.ones(3)
    save_answer(tmp_path / "ridge.npz", "key", (mean, sigma))
    found = load_answer(tmp_path / "ridge.npz", "key")
    np.testing.assert_array_equal(found[0], mean)
    np.testing.assert_array_equal(found[1], sigma)
    assert load_answer(tmp_path / "ridge.npz", "another key") is None
    assert load_answer(tmp_path / "cannon.npz", "key") is None
    assert [path.name for path in tmp_path.iterdir()] == ["ridge.npz"]


def test_results_hold_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        transfer.write_json(tmp_path / "results.json", {"rmse": float("nan")})
    assert not (tmp_path / "results.json").exists()
