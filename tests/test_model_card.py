"""Model cards: complete for every stage, read by the Hub's own code, impossible with a number missing; and they run."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_extractor, tiny_model
from huggingface_hub import ModelCard, metadata_eval_result, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from jinja2 import UndefinedError

from spectrafm_hf import card_templates, shipped
from spectrafm_hf.card_templates import card_environment, card_template, name_repo
from spectrafm_hf.labels import get_label
from spectrafm_hf.metrics import BIN_EDGES, METHOD_NAMES, summarise, summarise_bins, summarise_subsets
from spectrafm_hf.model_card import (
    NOT_CALIBRATED,
    PUBLISHED,
    STAGES,
    CardFacts,
    eval_results_yaml,
    render_model_card,
    results_table,
)
from spectrafm_hf.recipe import read_recipe
from spectrafm_hf.stages import run_stage

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
COMMITS = ["3f9c0d1e" * 5, "12345678" * 5, "0a1b2c3d" * 5]
ON_THE_HUB: CardFacts = FACTS | {
    "repo": "astro/spectrafm-3-few-shot",
    "base_model": "astro/spectrafm-2-observed",
    "base_model_revision": COMMITS[0],
    "datasets": [{"id": "astro/miles", "revision": COMMITS[1]}, {"id": "astro/synthetic", "revision": COMMITS[2]}],
    "test_dataset": {"id": "astro/miles", "revision": COMMITS[1]},
    "figures": [("figures/predicted.png", "Predicted against catalogue [Fe/H].")],
    "snr_range": (33.0, 333.0),
    "resolving_power": (1440.0, 2960.0),
    "calibration": "Sigma was calibrated on 71 validation stars of MILES.",
}


def few_shot_results(seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-2.5, 0.5, 213)
    parameters = {"fe_h": truth, "teff": rng.uniform(3900, 6900, 213), "logg": rng.uniform(0.5, 4.9, 213)}
    answers = {name: truth + (0.1 + 0.1 * rank) * rng.normal(size=213) for rank, name in enumerate(METHOD_NAMES)}
    sigma, fe_h = np.full(213, 0.2), get_label("fe_h")
    methods = {name: summarise_subsets(fe_h, mean, truth, truth, sigma) for name, mean in answers.items()}
    return {
        "protocol": "Pre-trained, then 100 stars, then all test stars.",
        "seed": seed,
        "n_train": 100,
        "n_test": 213,
        "n_test_metal_poor": methods["ridge"]["metal_poor"]["n"],
        "label": "fe_h",
        "unit": "dex",
        "methods": methods,
        "bins": {name: summarise_bins(fe_h, mean, truth, parameters, sigma) for name, mean in answers.items()},
    }


def earlier_results():
    """213 stars, none above Teff = 6000 K; scatter of 120 K, 0.3 dex and 0.15 dex."""
    rng = np.random.default_rng(5)
    truth = {
        "teff": rng.uniform(3900, 5990, 213),
        "logg": rng.uniform(0.5, 4.9, 213),
        "fe_h": rng.uniform(-2, 0.4, 213),
    }
    spread = {"teff": 120.0, "logg": 0.3, "fe_h": 0.15}
    told = {
        name: (get_label(name), values + spread[name] * rng.normal(size=213), values, np.full(213, spread[name]))
        for name, values in truth.items()
    }
    return {
        "protocol": "Validation stars of MILES, 3,600-5,800 Angstrom.",
        "labels": {name: summarise(*of) for name, of in told.items()},
        "bins": {
            name: summarise_bins(label, mean, values, truth, sigma)
            for name, (label, mean, values, sigma) in told.items()
        },
    }


@pytest.fixture
def results():
    return few_shot_results()


@pytest.fixture
def stage_results():
    return earlier_results()


def of_stage(stage, results, stage_results):
    return results if stage == "3-few-shot" else stage_results


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card, flags=re.DOTALL)


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
    for facts in (FACTS, ON_THE_HUB):
        card = render_model_card(of_stage(stage, results, stage_results), stage, facts)
        body = card.split("---\n", 2)[2]
        assert f"**{stage}**" in body
        assert not re.search(r"\| *\|", body.replace("| | |\n", ""))  # no empty cell but in the head of a list
        assert not re.search(r"nan\b|None|\{\{|\{%|Undefined|\n\n\n", body)
        assert not re.search(r"^(?!\|).*\n\|(?! ?\|)(?!.*\n\|---)", body, flags=re.MULTILINE)  # a row has a head
        miles = stage != "1-synthetic" and "datasets" not in facts  # which have cards of their own
        assert ("2006, MNRAS 371, 703" in body) == ("compilation of the literature" in body) == miles
        assert ("labels of astro/miles and astro/synthetic: see the cards" in body) == ("datasets" in facts)
        for section in (
            "What it predicts", "How to use", "Intended use and limits", "Results", "Training", "Licence", "Citation"
        ):  # fmt: skip
            assert f"\n## {section}\n" in body


def test_earlier_stages_have_a_table_of_labels(stage_results):
    card = render_model_card(stage_results, "1-synthetic", FACTS | {"parent": None})
    assert f"| Teff | K | 213 | {stage_results['labels']['teff']['rmse']:.0f} |" in card
    assert f"| log g | dex | 213 | {stage_results['labels']['logg']['rmse']:.3f} |" in card
    assert "none: random weights" in card


@pytest.mark.parametrize("stage", STAGES)
def test_every_bin_with_stars_has_its_row(stage, results, stage_results):
    told = of_stage(stage, results, stage_results)
    card = render_model_card(told, stage, FACTS)
    bins = {"fe_h": told["bins"]["spectrafm"]} if stage == "3-few-shot" else told["bins"]
    rows = [line for line in card.splitlines() if re.match(r"\| (\[Fe/H\]|Teff|log g) (<|>=|-?[\d.]+ to)", line)]
    expected = []
    for name, binned in bins.items():
        digits = 0 if name == "teff" else 3
        assert set(binned) == set(BIN_EDGES)
        for of_one in binned.values():
            expected += [(f"{one['n']}", f"{one['rmse']:.{digits}f}") for one in of_one if one["n"]]
    assert [tuple(row.split(" | ")[1:3]) for row in rows] == expected
    if stage != "3-few-shot":
        assert not any(row.startswith("| Teff >= 6000 K") for row in rows)  # no such star
    assert any(row.startswith("| Teff < 4000 K |") for row in rows)
    assert any(row.startswith("| [Fe/H] -1.5 to -1 dex |") for row in rows)
    assert any(row.startswith("| log g >= 4.25 dex |") for row in rows)


def test_the_card_says_what_it_is_told(results):
    card = render_model_card(results, "3-few-shot", ON_THE_HUB)
    assert f"https://huggingface.co/astro/spectrafm-2-observed) at revision `{COMMITS[0]}`" in card
    for dataset in ON_THE_HUB["datasets"]:
        assert f"https://huggingface.co/datasets/{dataset['id']}) at revision `{dataset['revision']}`" in card
    assert "![Predicted against catalogue [Fe/H].](figures/predicted.png)" in card
    assert "**signal-to-noise** outside 33 to 333 per pixel" in card
    assert "resolving power lambda / FWHM of 1440 to 2960" in card
    assert ON_THE_HUB["calibration"] in card
    assert NOT_CALIBRATED not in card


def test_the_card_says_what_is_not_known(results):
    card = render_model_card(results, "3-few-shot", FACTS)
    assert NOT_CALIBRATED in card
    assert "which was not recorded" in card
    assert "resolving power lambda / FWHM of 2320 to 2960" in card  # 5800 and 7400 Angstrom, over 2.5
    assert "### Figures" not in card
    assert "`runs/transfer/2-observed`" in card


def test_abundances_from_synthetic_spectra_are_called_unverified(stage_results):
    assert "unverified to 30-50 %" not in render_model_card(stage_results, "1-synthetic", FACTS)
    labels = {"teff": (3500, 6500), "mg_fe": (-0.2, 0.5)}
    assert "unverified to 30-50 %" in render_model_card(stage_results, "1-synthetic", FACTS | {"labels": labels})


def test_a_stage_of_your_own_has_a_card(stage_results):
    card = render_model_card(stage_results, "my-stars", ON_THE_HUB)
    assert "labels of stars from their spectra, fine-tuned from another." in card
    assert "of 3:" not in card
    assert "trained from random weights" in render_model_card(stage_results, "my-stars", FACTS | {"parent": None})
    few_shot = render_model_card(stage_results, "3-few-shot", ON_THE_HUB)  # outside the benchmark: labels, no methods
    assert "| Teff | K | 213 |" in few_shot
    assert "| method |" not in few_shot


SURVEYS = [
    {
        "name": "apogee",
        "wavelength": [(15151.6, 15799.2), (15867.7, 16424.4)],
        "pixel": 0.22,
        "resolving_power": (1800, 22500),
        "snr": (26, 447),
        "labels": {"teff": (3519, 7029), "mg_fe": (-0.3, 0.58)},
    },
    {
        "name": "optical",
        "wavelength": [(3584.5, 9087.5)],
        "pixel": 1.0,
        "fwhm": (2.0, 5.0),
        "snr": (20, 300),
        "labels": {"teff": (3600, 7200)},
    },
]
MIXED = FACTS | {
    "labels": {"teff": (3519, 7029), "mg_fe": (-0.3, 0.58)},
    "wavelength_range": (3500.0, 17000.0),
    "surveys": SURVEYS,
    "true_labels": True,
}


def test_a_card_of_two_surveys_tells_them_apart(stage_results):
    card = render_model_card(stage_results, "mixed", MIXED)
    assert "| label | unit | in training, `apogee` | in training, `optical` |\n|---|---|---|---|\n" in card
    assert "| Teff (`teff`) | K | 3519 to 7029 | 3600 to 7200 |\n" in card
    assert "| [Mg/Fe] (`mg_fe`) | dex | -0.3 to 0.58 | not learned |\n" in card
    assert "| `apogee` | 15152-15799, 15868-16424 | 0.22 | lambda / FWHM 1800 to 22500 | 26 to 447 |\n" in card
    assert "| `optical` | 3584-9088 | 1 | FWHM 2 to 5 Angstrom | 20 to 300 |\n" in card
    assert "17000" not in card  # between the two it knows nothing
    assert "The figures below are of whole `apogee` spectra" in card
    assert "so were those that calibrated sigma" not in card
    assert "so were those that calibrated" in render_model_card(stage_results | {"n_calibration": 9}, "mixed", MIXED)
    assert "In this stage it saw synthetic spectra alone." in card
    assert "predicted minus true value" in card
    assert not re.search(r"nan\b|None|Undefined|\n\n\n", card)
    assert "spectrafm finetune --labels mytable.csv --spectra folder --model runs/transfer/3-few-shot --output" in card


def test_a_card_says_where_each_label_was_learned(stage_results):
    ranges = {"teff": [[3584.5, 9087.5], [15152.2, 16943.5]], "mg_fe": [[15152.2, 16943.5]]}
    card = render_model_card(stage_results, "mixed", MIXED | {"learned_ranges": ranges})
    told = "Teff from 3,584-9,088 and 15,152-16,944; [Mg/Fe] from 15,152-16,944."
    assert f"Wavelengths it was learned at, in vacuum Angstrom: {told}" in card
    assert not re.search(r"nan\b|None|Undefined|\n\n\n", card)
    assert "learned at" not in render_model_card(stage_results, "mixed", MIXED)
    assert "learned at" not in render_model_card(stage_results, "mixed", MIXED | {"learned_ranges": {}})


def test_a_model_that_ships_is_loaded_from_the_package(stage_results, star):
    card = render_model_card(stage_results, "mixed", MIXED | {"ships_as": "spectrafm-small"})
    told = {"flux": star[1], "wavelength": star[0]}
    exec(blocks(card, "python")[0], told)
    assert told["folder"] == shipped("spectrafm-small")
    assert "--model spectrafm-small --output" in card
    assert "runs/transfer" not in blocks(card, "python")[1]  # where else it lies is nobody's business
    on_the_hub = render_model_card(
        stage_results, "mixed", MIXED | {"ships_as": "spectrafm-small", "repo": "astro/small"}
    )
    assert 'repo, revision = "astro/small", "main"' in blocks(on_the_hub, "python")[1]


def test_a_bias_of_nothing_has_no_sign(stage_results):
    stage_results["labels"]["teff"]["bias"] = -0.2
    row = re.search(r"\| Teff \| K \|.*", render_model_card(stage_results, "1-synthetic", FACTS))[0]
    assert "| +0 |" in row
    assert "-0 " not in row


def test_a_label_nobody_has_is_said_once(stage_results):
    truth = np.full(213, np.nan)
    stage_results["labels"]["logg"] = summarise(get_label("logg"), truth, truth)
    stage_results["bins"]["logg"] = summarise_bins(get_label("logg"), truth, truth, {"teff": np.full(213, 5000.0)})
    card = render_model_card(stage_results, "2-observed", FACTS)
    assert "| log g | dex | 0 | none | none | none | none | none |" in card
    assert "log g by this model" not in card
    stage_results["bins"]["logg"] = {}
    assert render_model_card(stage_results, "2-observed", FACTS) == card


def test_other_stars_than_miles_are_named_for_what_they_are(stage_results):
    card = render_model_card(stage_results, "2-observed", FACTS | {"survey": "apogee_dr17"})
    assert "Majewski, S. R. et al. 2017" in card
    assert "MNRAS 371, 703" not in card
    with pytest.raises(ValueError, match="knows no survey 'mine', so the card needs the facts citations, weaknesses"):
        render_model_card(stage_results, "2-observed", FACTS | {"survey": "mine"})
    own = {"survey": "mine", "citations": ["Me 2025"], "weaknesses": ["No dwarfs."]}
    card = render_model_card(stage_results, "2-observed", FACTS | own)
    assert "- Me 2025\n" in card
    assert "- No dwarfs.\n" in card


# ---------------------------------------------------------------- what the Hub reads


def test_metadata_is_what_the_hub_reads(results):
    data = ModelCard(render_model_card(results, "3-few-shot", ON_THE_HUB)).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "tabular-regression")
    assert data.tags == ["astronomy", "stellar-spectra", "spectrafm"]
    assert (data.base_model, data.base_model_relation) == ("astro/spectrafm-2-observed", "finetune")
    assert data.datasets == ["astro/miles", "astro/synthetic"]


def test_a_local_parent_is_no_hub_id(results):
    data = ModelCard(render_model_card(results, "3-few-shot", FACTS)).data
    assert (data.base_model, data.get("base_model_relation"), data.datasets) == (None, None, None)


@pytest.mark.parametrize("stage", STAGES)
def test_cards_make_the_round_trip_through_the_hub_library(stage, results, stage_results, tmp_path):
    told = of_stage(stage, results, stage_results)
    text = render_model_card(told, stage, ON_THE_HUB)
    (tmp_path / "README.md").write_text(text)
    card = ModelCard.load(tmp_path / "README.md")
    assert str(card) == text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    metadata = yaml.safe_load(text.split("---\n", 2)[1])
    assert metadata == card.data.to_dict()
    name, entries = model_index_to_eval_results(metadata["model-index"])
    assert name == ON_THE_HUB["model_name"]
    assert {(entry.dataset_type, entry.dataset_revision) for entry in entries} == {("astro/miles", COMMITS[1])}
    figures = {(entry.dataset_config, entry.metric_type): entry.metric_value for entry in entries}
    expected = (
        {f"fe_h_{subset}": of for subset, of in told["methods"]["spectrafm"].items()}
        if stage == "3-few-shot"
        else {f"{label}_all": of for label, of in told["labels"].items()}
    )
    assert figures == {(key, m): round(of[m], 4) for key, of in expected.items() for m in PUBLISHED}
    # The library's own way of writing one result gives the same entry.
    one = next(entry for entry in entries if (entry.dataset_config, entry.metric_type) == ("fe_h_all", "rmse"))
    theirs = metadata_eval_result(
        model_pretty_name=name,
        task_pretty_name=one.task_name,
        task_id=one.task_type,
        metrics_pretty_name=one.metric_name,
        metrics_id=one.metric_type,
        metrics_value=one.metric_value,
        dataset_pretty_name=one.dataset_name,
        dataset_id=one.dataset_type,
        dataset_config=one.dataset_config,
        dataset_split="test",
        dataset_revision=one.dataset_revision,
    )
    assert model_index_to_eval_results(theirs["model-index"]) == (name, [replace(one, verified=False)])


def test_model_index_of_local_stars_names_them(results, stage_results):
    def kinds(*of):
        return {(one.dataset_type, one.dataset_name) for one in ModelCard(render_model_card(*of)).data.eval_results}

    assert kinds(stage_results, "1-synthetic", FACTS) == {("synthetic", "Synthetic spectra: all test stars")}
    ((name, stars),) = kinds(stage_results, "2-observed", FACTS)
    assert (name, stars) == ("miles", "MILES stellar library, F, G and K stars: all test stars")
    assert len(kinds(results, "3-few-shot", FACTS)) == 3
    on_the_hub = {key: value for key, value in ON_THE_HUB.items() if key != "test_dataset"}
    assert kinds(stage_results, "2-observed", on_the_hub) == {("astro/miles", "astro/miles: all test stars")}


def test_eval_results_make_the_round_trip(results):
    text = eval_results_yaml(results, ON_THE_HUB, "astro/miles", COMMITS[1], date="2025-06-01")
    entries = {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(text))}
    spectrafm = results["methods"]["spectrafm"]
    assert len(entries) == 3 * len(PUBLISHED)
    for entry in entries.values():
        assert (entry.dataset_id, entry.dataset_revision, entry.date) == ("astro/miles", COMMITS[1], "2025-06-01")
    assert entries["fe_h_rmse"].value == pytest.approx(spectrafm["all"]["rmse"], abs=1e-4)
    assert entries["fe_h_bias_metal_poor"].value == pytest.approx(spectrafm["metal_poor"]["bias"], abs=1e-4)
    assert entries["fe_h_coverage68_metal_rich"].value == pytest.approx(spectrafm["metal_rich"]["coverage68"], abs=1e-4)
    assert entries["fe_h_rmse_metal_poor"].notes == (
        f"RMSE [dex] of [Fe/H], metal-poor test stars ({spectrafm['metal_poor']['n']}); "
        "recipe training/recipes/3_few_shot.yaml, seed 0"
    )


def test_eval_results_of_earlier_stages(stage_results):
    entries = parse_eval_result_entries(yaml.safe_load(eval_results_yaml(stage_results, FACTS, "astro/miles")))
    assert {entry.task_id for entry in entries} == {f"{n}_{m}" for n in ("teff", "logg", "fe_h") for m in PUBLISHED}
    assert {entry.dataset_revision for entry in entries} == {None}


def test_eval_results_need_a_dataset_and_stars(results, stage_results):
    assert eval_results_yaml(results, FACTS, None) is None
    nothing = {"n": 0, "rmse": None, "bias": None, "scatter": None, "coverage68": None, "coverage95": None}
    stage_results["labels"] = dict.fromkeys(stage_results["labels"], nothing)
    assert eval_results_yaml(stage_results, FACTS, "astro/miles") is None
    with pytest.raises(ValueError, match="dataset_id must be an id on the Hub"):
        eval_results_yaml(results, FACTS, "a/b/c")
    del results["methods"]["spectrafm"]["all"]["bias"]
    with pytest.raises(ValueError, match="no bias"):
        eval_results_yaml(results, FACTS, "astro/miles")


# ---------------------------------------------------------------- how to use: it is run


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    tiny_model().save_pretrained(folder)
    tiny_extractor().save_pretrained(folder)
    return folder


def test_code_of_the_card_runs_and_agrees(checkpoint, star, stage_results):
    told = {"flux": star[1], "wavelength": star[0]}
    facts = FACTS | {"folder": str(checkpoint), "labels": {"teff": (3500, 6500)}}
    by_pipeline, by_model, by_package = blocks(render_model_card(stage_results, "1-synthetic", facts), "python")
    exec(by_pipeline, told)
    exec(by_model, told)
    answer, labels = told["answer"]["teff"], told["labels"]["teff"]
    # The comments of the card say what comes back.
    assert re.search(r'answer\["teff"\]  # (.*)', by_pipeline)[1] == (
        'value, sigma, interval68 and interval95 [low, high], unit ("K"), calibrated, learned (True, False)'
    )
    assert set(answer) == {"value", "sigma", "interval68", "interval95", "unit", "calibrated", "learned"}
    assert set(labels) == {"value", "sigma", "sigma95"}
    for key in ("value", "sigma"):
        assert labels[key].shape == (1,)
        assert answer[key] == pytest.approx(float(labels[key][0]), rel=1e-5)
    half = (answer["interval95"][1] - answer["interval95"][0]) / 2
    assert half == pytest.approx(1.96 * labels["sigma95"][0], rel=1e-4)
    exec(by_package, told)
    again = told["reader"]({"flux": star[1], "wavelength": star[0]})["teff"]
    assert again.keys() == answer.keys()
    for key in ("value", "sigma", "interval68", "interval95"):
        assert again[key] == pytest.approx(answer[key], rel=1e-5)
    inputs = told["extractor"](star[1], star[0], return_tensors="pt")
    torch.testing.assert_close(told["model"](**inputs).label_mean, told["outputs"].label_mean)


def test_recipe_of_the_card_trains(checkpoint, tmp_path, stage_results, use_fake_library):
    facts = FACTS | {"folder": str(checkpoint), "wavelength_range": (5000.0, 5400.0)}
    (recipe,) = blocks(render_model_card(stage_results, "1-synthetic", facts), "yaml")
    (tmp_path / "my-stars.yaml").write_text(recipe)
    few = {"n_spectra": 64, "output_dir": str(tmp_path / "my-stars"), "use_cpu": True, "save_strategy": "no"}
    stage, training = read_recipe(tmp_path / "my-stars.yaml", **few)
    assert (stage.model, stage.model_revision) == (str(checkpoint), "main")
    assert (stage.labels, stage.window) == (["fe_h"], [5000.0, 5400.0])
    folder = run_stage(stage, training)
    assert len(json.loads((folder / "stage.json").read_text())["stars"]) == 100
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("revision", [None, "v1", COMMITS[1]])
def test_how_to_use_pins_the_repository(revision, results):
    card = render_model_card(results, "3-few-shot", ON_THE_HUB | {"revision": revision})
    (recipe,) = blocks(card, "yaml")
    recipe = yaml.safe_load(recipe)
    assert recipe["model"] == "astro/spectrafm-3-few-shot"
    assert recipe["model_revision"] == (revision or "main")  # text, though it may look like a number
    code = blocks(card, "python")
    assert len(code) == 3
    for block in code:
        assert f'repo, revision = "astro/spectrafm-3-few-shot", "{revision or "main"}"' in block
        assert ("# pin the commit" in block) == (revision is None)
        assert ("import spectrafm_hf" in block) != ("trust_remote_code=True" in block)
    assert "runs/transfer/3-few-shot" not in card


# ---------------------------------------------------------------- what stops a card


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base_model": "astro/parent"}, "base_model astro/parent needs the revision that was used"),
        ({"base_model": "astro/parent", "base_model_revision": "main"}, "a commit or a tag; got 'main'"),
        ({"base_model": "../parent", "base_model_revision": "v1"}, "base_model must be an id on the Hub"),
        ({"datasets": [{"id": "astro/miles"}]}, "dataset astro/miles needs the revision"),
        ({"test_dataset": {"id": "astro/miles", "revision": " "}}, "dataset astro/miles needs the revision"),
        ({"repo": "runs/transfer/3-few-shot"}, "repo must be an id on the Hub"),
        ({"figures": [("/tmp/a.png", "A")]}, "must be a path beside the card"),
        ({"figures": [("../a.png", "A")]}, "must be a path beside the card"),
        ({"figures": [("https://x.org/a.png", "A")]}, "must be a path beside the card"),
        ({"figures": [("figures/a.png", " ")]}, "needs a caption"),
        ({"calibrated": "yes"}, r"knows no fact 'calibrated'; calibration\?"),
        ({"resolving_power": (float("nan"), 3000.0)}, "finite"),
        ({"snr_range": (10.0, float("inf"))}, "finite"),
        ({"fwhm": float("nan")}, "finite"),
    ],
)
def test_a_fact_that_leads_nowhere_stops_the_card(wrong, message, results):
    with pytest.raises(ValueError, match=message):
        render_model_card(results, "3-few-shot", FACTS | wrong)


@pytest.mark.parametrize("stage", STAGES)
def test_missing_bins_stop_the_card(stage, results, stage_results):
    told = copy.deepcopy(of_stage(stage, results, stage_results))
    name = "spectrafm" if stage == "3-few-shot" else "fe_h"
    del told["bins"][name]["teff"][0]["scatter"]
    with pytest.raises(ValueError, match=r"fe_h, bin of teff from 2500.*: no scatter"):
        render_model_card(told, stage, FACTS)
    del told["bins"][name]
    with pytest.raises(ValueError, match=r"fe_h: no bins in the results"):
        render_model_card(told, stage, FACTS)


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


def test_all_cards_are_rendered_alike():
    environment = card_environment()
    with pytest.raises(UndefinedError, match="unheard_of"):
        environment.from_string("{{ unheard_of }}").render()
    assert (
        environment.from_string("{{ n | count }}, {{ x | number }}, {{ t | cell }}").render(
            n=1_412_345, x=3700.0, t="a|b\nc"
        )
        == "1,412,345, 3700, a\\|b c"
    )
    with pytest.raises(ValueError, match="finite"):
        environment.from_string("{{ n | count }}").render(n=float("nan"))


def test_a_card_gets_the_name_of_its_repository():
    card = 'repo, revision = "REPO_OR_FOLDER", "main"  # pin\nload("REPO_OR_FOLDER")\n'
    assert name_repo(card, "astro/miles") == 'repo, revision = "astro/miles", "main"  # pin\nload("astro/miles")\n'
    pinned = name_repo(card, "astro/miles", COMMITS[0])
    assert pinned.startswith(f'repo, revision = "astro/miles", "{COMMITS[0]}"')
    assert name_repo(pinned, "other/one") == pinned
