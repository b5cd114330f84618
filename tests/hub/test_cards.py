"""Cards on a Hub: accepted by its validator, and what they show runs from there, at a pinned revision."""

import re

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_extractor, tiny_model
from huggingface_hub import DatasetCard, HfApi, ModelCard, SpaceCard, hf_hub_download, parse_eval_result_entries
from test_dataset_card import DATASETS
from test_dataset_card import build as fake_build
from test_metric_space import SPACE
from test_model_card import FACTS, ON_THE_HUB, blocks, earlier_results, few_shot_results, of_stage

from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.dataset_card import load_facts, render_dataset_card
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.card_templates import name_repo
from spectrafm_hf.hub import push
from spectrafm_hf.model_card import STAGES, eval_results_yaml, render_model_card

MODEL, DATASET = "astro/spectrafm-1-synthetic", "astro/synthetic-apogee"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("facts", [FACTS, ON_THE_HUB], ids=["local", "on the Hub"])
def test_the_hub_accepts_model_cards(hub, stage, facts):
    ModelCard(render_model_card(of_stage(stage, few_shot_results(), earlier_results()), stage, facts)).validate()


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_hub_accepts_dataset_cards(hub, dataset, tmp_path):
    DatasetCard(render_dataset_card(fake_build(tmp_path, dataset), load_facts(dataset))).validate()


def test_the_hub_accepts_the_card_of_the_metric(hub):
    SpaceCard.load(SPACE / "README.md").validate()


def test_the_hub_refuses_a_broken_head(hub):
    """So that the tests above can fail."""
    card = ModelCard(render_model_card(few_shot_results(), "3-few-shot", ON_THE_HUB))
    card.data.datasets = [{"id": "astro/miles"}]
    with pytest.raises(ValueError, match="datasets"):
        card.validate()


def test_model_card_and_results_come_back_from_the_hub_as_they_went(hub, tmp_path):
    results = few_shot_results()
    HfApi().create_repo(ON_THE_HUB["repo"])
    ModelCard(render_model_card(results, "3-few-shot", ON_THE_HUB)).push_to_hub(ON_THE_HUB["repo"])
    text = eval_results_yaml(results, ON_THE_HUB, "astro/miles", "3f9c0d1e" * 5)
    path = ".eval_results/spectrafm.yaml"
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=ON_THE_HUB["repo"])
    card = ModelCard.load(ON_THE_HUB["repo"])
    assert str(card) == render_model_card(results, "3-few-shot", ON_THE_HUB)
    told = HfApi().model_info(ON_THE_HUB["repo"])
    assert {**told.card_data.to_dict(), "model-index": told.model_index} == card.data.to_dict()
    with open(hf_hub_download(ON_THE_HUB["repo"], path)) as stream:
        entries = parse_eval_result_entries(yaml.safe_load(stream))
    assert {entry.dataset_id for entry in entries} == {"astro/miles"}
    assert len(entries) == len(card.data.eval_results)


def test_code_of_the_model_card_runs_from_the_hub_at_its_revision(hub, tmp_path, star):
    folder = tmp_path / "stage"
    tiny_model().save_pretrained(folder)
    tiny_extractor().save_pretrained(folder)
    facts = FACTS | {"repo": MODEL, "labels": {"teff": (3500.0, 6500.0)}}
    (folder / "README.md").write_text(render_model_card(earlier_results(), "1-synthetic", facts))
    first = push(folder, MODEL)
    tiny_model(seed=1).save_pretrained(folder)  # main moves on
    assert push(folder, MODEL).revision != first.revision
    card = render_model_card(earlier_results(), "1-synthetic", facts | {"revision": first.revision})
    answers = []
    for block in blocks(card, "python"):
        told = {"flux": star[1], "wavelength": star[0]}
        exec(block, told)
        if "extractor" in told:
            inputs = told["extractor"](star[1], star[0], return_tensors="pt")
            with torch.no_grad():
                outputs = told["model"].eval()(**inputs)
            decoded = told["extractor"].decode_labels(outputs.label_mean, outputs.label_log_var)["teff"]
            answers.append([float(decoded["value"][0]), float(decoded["sigma"][0])])
        if "reader" in told:
            one = told["reader"]({"flux": star[1], "wavelength": star[0]})["teff"]
            answers.append([one["value"], one["sigma"]])
    assert len(answers) == 4
    inputs = tiny_extractor()(star[1], star[0], return_tensors="pt")
    with torch.no_grad():
        outputs = tiny_model()(**inputs)
    expected = tiny_extractor().decode_labels(outputs.label_mean, outputs.label_log_var)["teff"]
    np.testing.assert_allclose(answers, [[expected["value"][0], expected["sigma"][0]]] * 4, rtol=1e-5)


def test_code_of_the_dataset_card_streams_from_the_hub_at_its_revision(hub, tmp_path):
    folder = tmp_path / "built"
    build_dataset([SyntheticConfig(n=300)], folder, progress=False)
    readme = (folder / "README.md").read_text()
    (folder / "README.md").write_text(name_repo(readme, DATASET))
    first = push(folder, DATASET)
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n# another version\n"
    )  # main moves on, and lists no configs
    assert push(folder, DATASET).revision != first.revision
    told = {}
    for block in re.findall(r"```python\n(.*?)```", name_repo(readme, DATASET, first.revision), flags=re.DOTALL):
        exec(block, told)
    assert told["row"]["object_id"].startswith("SYNAPOGEE")
    assert len(told["row"]["flux"]) == len(told["wavelength"]) == 7514
    assert DatasetCard.load(DATASET).data.to_dict() == {"license": "mit"}
