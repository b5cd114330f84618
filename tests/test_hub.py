"""Model cards: complete for every stage, and impossible with a number missing."""

import copy
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard
from jinja2 import UndefinedError

from spectrafm_hf import card_templates
from spectrafm_hf.card_templates import card_template
from spectrafm_hf.hub import STAGES, CardFacts, render_model_card, results_table
from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import METHOD_NAMES, summarise_subsets

FACTS: CardFacts = {
    "model_name": "spectrafm-miles-few-shot",
    "folder": "runs/transfer/3-few-shot",
    "license": "mit",
    "labels": {"fe_h": (-0.98, 0.5)},
    "wavelength_range": (5800.0, 7400.0),
    "teff_range": (3700.0, 6900.0),
    "fwhm": 2.5,
    "n_parameters": 1_412_345,
    "recipe": "training/recipes/3_few_shot.yaml",
    "training_data": "100 MILES stars with [Fe/H] > -1",
    "parent": "runs/transfer/2-observed",
    "spectra_seen": 12_000,
    "seed": 0,
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}


def few_shot_results(seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-2.5, 0.5, 213)
    methods = {
        name: summarise_subsets(
            get_label("fe_h"), truth + (0.1 + 0.1 * rank) * rng.normal(size=213), truth, truth, np.full(213, 0.2)
        )
        for rank, name in enumerate(METHOD_NAMES)
    }
    return {
        "protocol": "Pre-trained, then 100 stars, then all test stars.",
        "seed": seed,
        "n_train": 100,
        "n_test": 213,
        "n_test_metal_poor": methods["ridge"]["metal_poor"]["n"],
        "label": "fe_h",
        "unit": "dex",
        "methods": methods,
    }


@pytest.fixture
def results():
    return few_shot_results()


@pytest.fixture
def stage_results(results):
    figures = results["methods"]["ridge"]["all"]
    return {
        "protocol": "Validation stars of MILES, 3,600-5,800 Angstrom.",
        "labels": {"teff": {**figures, "rmse": 123.4}, "logg": figures, "fe_h": figures},
    }


def test_card_of_the_few_shot_stage_has_every_method_and_number(results):
    card = render_model_card(results, "3-few-shot", FACTS)
    for method, subsets in results["methods"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {METHOD_NAMES[method]} |"))
        for subset in ("all", "metal_poor", "metal_rich"):
            assert f"{subsets[subset]['rmse']:.3f}" in row
    assert f"**{results['methods']['spectrafm']['metal_poor']['rmse']:.3f}**" in card  # the best is bold
    assert "2411.04750" in card
    assert "1,412,345" in card


@pytest.mark.parametrize("stage", STAGES)
def test_cards_of_all_stages_have_no_holes(stage, results, stage_results):
    card = render_model_card(results if stage == "3-few-shot" else stage_results, stage, FACTS)
    body = card.split("---\n", 2)[2]
    assert f"**{stage}**" in body
    assert not re.search(r"\| *\|", body.replace("| | |\n", ""))  # no empty cell but in the head of a list
    assert not re.search(r"nan|None|\{\{|\}\}|Undefined|\n\n\n", body)
    assert ("MILES: " in body) == (stage != "1-synthetic")


def test_earlier_stages_have_a_table_of_labels(stage_results):
    card = render_model_card(stage_results, "1-synthetic", FACTS | {"parent": None})
    assert "| Teff | K | 213 | 123 |" in card
    assert "none: random weights" in card
    assert "model-index" not in card


def test_metadata_is_what_the_hub_reads(results):
    data = ModelCard(render_model_card(results, "3-few-shot", FACTS)).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "tabular-regression")
    assert data.tags == ["astronomy", "stellar-spectra", "spectrafm"]
    assert data.base_model is None  # a local parent is no Hub id
    figures = {(entry.dataset_config, entry.metric_type): entry.metric_value for entry in data.eval_results}
    assert len(figures) == 9
    for (subset, metric), value in figures.items():
        assert value == pytest.approx(results["methods"]["spectrafm"][subset][metric], abs=1e-4)


def test_base_model_only_if_given(results):
    data = ModelCard(render_model_card(results, "3-few-shot", FACTS | {"base_model": "someone/spectrafm"})).data
    assert data.base_model == "someone/spectrafm"
    assert data.base_model_relation == "finetune"


@pytest.mark.parametrize("key", FACTS)
def test_a_missing_fact_stops_the_card(key, results):
    with pytest.raises(ValueError, match=f"needs the facts {key} too"):
        render_model_card(results, "3-few-shot", {name: fact for name, fact in FACTS.items() if name != key})


@pytest.mark.parametrize("key", ["n", "rmse", "bias", "scatter", "coverage68", "coverage95"])
def test_a_missing_figure_stops_card_and_table(key, results):
    del results["methods"]["cannon"]["metal_rich"][key]
    with pytest.raises(ValueError, match=rf"cannon, metal-rich stars, seed 0: no {key}"):
        render_model_card(results, "3-few-shot", FACTS)
    with pytest.raises(ValueError, match=f"no {key}"):
        results_table(results)


@pytest.mark.parametrize("key", ["n_test", "n_test_metal_poor", "n_train"])
def test_a_missing_count_stops_the_card(key, results):
    del results[key]
    with pytest.raises(UndefinedError, match=key):
        render_model_card(results, "3-few-shot", FACTS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.2"])
def test_a_number_that_is_none_stops_the_card(value, results):
    results["methods"]["ridge"]["metal_poor"]["rmse"] = value
    with pytest.raises(ValueError, match=r"ridge, metal-poor stars, seed 0, rmse: .*finite"):
        render_model_card(results, "3-few-shot", FACTS)


def test_a_method_missing_from_one_seed_stops_the_card(results):
    other = few_shot_results(1)
    del other["methods"]["cannon"]
    with pytest.raises(ValueError, match="cannon, all stars, seed 1"):
        render_model_card(results | {"seeds": [results, other]}, "3-few-shot", FACTS)


def test_nothing_to_say_is_refused(results):
    with pytest.raises(ValueError, match="stage must be one of"):
        render_model_card(results, "4-more", FACTS)
    with pytest.raises(ValueError, match="got neither"):
        render_model_card({"protocol": "None."}, "1-synthetic", FACTS)
    with pytest.raises(ValueError, match="protocol"):
        render_model_card(results | {"protocol": " "}, "3-few-shot", FACTS)
    del results["methods"]["spectrafm"]
    with pytest.raises(ValueError, match="must hold spectrafm"):
        render_model_card(results, "3-few-shot", FACTS)


def test_a_method_without_sigma_says_so(results):
    results = copy.deepcopy(results)
    for figures in results["methods"]["ridge"].values():
        figures |= {"coverage68": None, "coverage95": None}
    card = render_model_card(results, "3-few-shot", FACTS)
    assert "| none | none |" in card


def test_no_metal_poor_star_is_said(results):
    nothing = {"n": 0, "rmse": None, "bias": None, "scatter": None, "coverage68": None, "coverage95": None}
    for subsets in results["methods"].values():
        subsets["metal_poor"] = nothing
    assert "no star" in render_model_card(results, "3-few-shot", FACTS)
    assert "no star" in results_table(results)


def test_seeds_give_mean_and_deviation(results):
    seeds = [results, few_shot_results(1), few_shot_results(2)]
    rmse = [record["methods"]["ridge"]["metal_poor"]["rmse"] for record in seeds]
    cell = f"{np.mean(rmse):.2f}\u00b1{np.std(rmse, ddof=1):.2f}"
    assert cell in render_model_card(results | {"seeds": seeds}, "3-few-shot", FACTS)
    table = results_table(results | {"seeds": seeds})
    assert cell in table
    assert max(map(len, table.splitlines())) <= 120


def test_table_has_every_method_and_marks_the_best(results):
    table = results_table(results)
    for name in METHOD_NAMES.values():
        assert name in table
    best = next(line for line in table.splitlines() if line.startswith(METHOD_NAMES["spectrafm"]))
    assert best.count("*") == 6
    assert table.count("*") == 7  # and the legend
    assert len({len(line) for line in table.splitlines()[3:]}) == 1


def test_template_is_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    assert "card_data" in card_template()
    (tmp_path / "hub_cards").mkdir()
    (tmp_path / "hub_cards" / "model_card.md.jinja").write_text("from the wheel")
    monkeypatch.setattr(card_templates.resources, "files", lambda package: tmp_path)
    assert card_template() == "from the wheel"
    with pytest.raises(FileNotFoundError, match="no template other"):
        card_template("other")
