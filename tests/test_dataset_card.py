"""Dataset cards: complete for every dataset, parsed by the Hub's own code, impossible with a fact missing."""

import dataclasses
import re

import numpy as np
import pytest
import yaml
from datasets import DatasetInfo, Features, load_dataset
from huggingface_hub import DatasetCard
from jinja2 import UndefinedError

from spectrafm_hf.builders import dataset_card
from spectrafm_hf.builders.build import Build, build_dataset
from spectrafm_hf.builders.dataset_card import check_facts, load_facts, render_dataset_card, size_category
from spectrafm_hf.builders.leak_audit import LeakAudit
from spectrafm_hf.builders.parquet_layout import ShardRecord
from spectrafm_hf.builders.rows import FILE, FLUX_SCALE, LABEL_COLUMNS, Layout, WavelengthGrid
from spectrafm_hf.builders.selection import CutResult, SelectionReport
from spectrafm_hf.builders.spectra_builder import Plan, Skipped
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.card_templates import name_repo

DATASETS = ("synthetic", "miles", "stelib", "apogee_dr17", "mmu_apogee_dr17", "folder")


def build(tmp_path, dataset="miles", ragged=False, n_skipped=0):
    grid = None if ragged else WavelengthGrid.of_instrument(5000.0 + np.arange(40), dataset, fwhm=2.5)
    report = SelectionReport(984, (CutResult("fgk", "3700 <= teff | K", 200, 784),))
    layout = Layout(None if ragged else 40, (FLUX_SCALE, FILE))
    plan = Plan([0], {"train": 700, "validation": 0, "test": 84}, layout, report, grid)
    shards = [
        ShardRecord(
            f"{dataset}/{split}-00000-of-00001.parquet", dataset, split, rows, 1000 * rows, 600 * rows, "0" * 64
        )
        for split, rows in (("train", 700), ("test", 84))
    ]
    if not ragged:
        shards.append(ShardRecord("wavelength_grid/x.parquet", "wavelength_grid", "train", 1, 500, 400, "0" * 64))
    audit = LeakAudit({"train": 700, "test": 84}, {"train": 690, "test": 84}, 784, 1.0)
    skipped = tuple((dataset, Skipped(f"{number}.fits", "HD1", "cut | off")) for number in range(n_skipped))
    return Build(tmp_path, dataset, {dataset: plan}, tuple(shards), skipped, audit)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("ragged", [False, True])
def test_card_of_every_dataset_makes_the_round_trip(tmp_path, dataset, ragged):
    made = build(tmp_path, dataset, ragged)
    facts = load_facts(dataset)
    text = render_dataset_card(made, facts)
    card = DatasetCard(text)
    assert DatasetCard(str(card)).data.to_dict() == card.data.to_dict()
    data = card.data.to_dict()
    assert data["license"] == facts["license"]
    assert data["task_categories"] == ["tabular-regression"]
    assert data["size_categories"] == "n<1K"
    names = [dataset] if ragged else [dataset, "wavelength_grid"]
    assert [config["config_name"] for config in data["configs"]] == names
    assert [config.get("default", False) for config in data["configs"]] == [name == dataset for name in names]
    info = DatasetInfo._from_yaml_dict(data["dataset_info"][0])
    assert info.features == made.plans[dataset].layout.features
    assert isinstance(info.features, Features)
    assert {name: split.num_examples for name, split in info.splits.items()} == {"train": 700, "test": 84}
    assert info.dataset_size == 784_000
    for column in made.plans[dataset].layout.columns:
        assert f"| `{column.name}` |" in text
    assert all(f"| `{column.name}` | float32 | {column.unit} |" in text for column in LABEL_COLUMNS)
    assert "| fgk | 200 | 784 | 3700 <= teff \\| K |" in text
    assert "train 700 spectra of 690 systems" in text
    assert "{{" not in text
    for section in (
        "How to load",
        "What is in it",
        "Where it comes from",
        "What was left out",
        "Known faults",
        "Licence",
    ):
        assert f"\n## {section}\n" in text
    assert "[`manifest.json`](manifest.json)" in text  # settings, revision of the source, versions, SHA-256
    assert yaml.safe_load(text.split("---\n", 2)[1]) == data
    assert all(fault in text for fault in facts["faults"])
    assert all(citation in text for citation in facts["citations"])


def test_code_of_the_card_loads_what_was_built(tmp_path):
    """As from a repository: a folder with this card and these files is loaded by the same code."""
    folder = tmp_path / "built"
    made = build_dataset([SyntheticConfig(n=300)], folder, progress=False)
    card = name_repo((folder / "README.md").read_text(), str(folder))
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    told = {}
    for block in code:
        exec(block, told)
    assert told["row"]["object_id"].startswith("SYNAPOGEE")
    assert len(told["row"]["flux"]) == len(told["wavelength"]) == 7514
    np.testing.assert_array_equal(np.asarray(told["wavelength"]), made.plans["synthetic"].grid.wavelength)  # float64
    # And as its hints say, in streaming: a part, and bulk.
    assert 'columns=["object_id", "fe_h"], filters=[("fe_h", "<", -1.0)], streaming=True' in card
    poor = load_dataset(
        str(folder), "synthetic", split="train",
        columns=["object_id", "fe_h"], filters=[("fe_h", "<", -1.0)], streaming=True,
    )  # fmt: skip
    every = list(load_dataset(str(folder), "synthetic", split="train", columns=["object_id", "fe_h"], streaming=True))
    assert list(poor) == [row for row in every if row["fe_h"] < -1]
    assert 0 < len(list(poor)) < len(every)
    batch = next(told["spectra"].with_format("torch").iter(batch_size=16))
    assert tuple(batch["flux"].shape) == (16, 7514)


def test_the_block_names_a_split_that_has_rows(tmp_path):
    made = build(tmp_path)
    assert 'split="train", revision=revision, streaming=True)' in render_dataset_card(made, load_facts("miles"))
    only_test = dataclasses.replace(made, shards=tuple(shard for shard in made.shards if shard.split == "test"))
    assert '"miles", split="test", revision=revision' in render_dataset_card(only_test, load_facts("miles"))


def test_known_facts_stand_in_the_cards():
    assert "2006" in str(load_facts("miles")["citations"])
    assert "402, 433" in str(load_facts("stelib")["citations"])
    faults = " ".join(load_facts("synthetic")["faults"])
    assert all(word in faults for word in ("30-50 %", "0.76", "3500 K"))


def test_skipped_inputs_are_listed_up_to_twenty(tmp_path):
    text = render_dataset_card(build(tmp_path, n_skipped=30), load_facts("miles"))
    assert "30 inputs could not be used (the first 20; all are in `skipped.csv`)" in text
    assert text.count("| cut \\| off |") == 20
    assert "No input had to be skipped" in render_dataset_card(build(tmp_path), load_facts("miles"))


def test_a_missing_fact_stops_the_rendering(tmp_path, monkeypatch):
    facts = load_facts("miles")
    with pytest.raises(ValueError, match="the card of miles needs the facts license, faults too"):
        check_facts({name: value for name, value in facts.items() if name not in ("license", "faults")}, "miles")
    with pytest.raises(ValueError, match=r"knows no fact 'citation'; citations\?"):
        check_facts(facts | {"citation": "x"}, "miles")
    with pytest.raises(ValueError, match="no facts about a dataset 'gaia'"):
        load_facts("gaia")
    monkeypatch.setattr(dataset_card, "card_template", lambda name: "{{ card_data }}{{ unheard_of }}")
    with pytest.raises(UndefinedError, match="unheard_of"):
        render_dataset_card(build(tmp_path), facts)


def test_configs_of_one_dataset_stand_together(tmp_path):
    made = build(tmp_path, "apogee_dr17")
    plan = made.plans["apogee_dr17"]
    shards = tuple(
        dataclasses.replace(shard, config=config) for config in ("observed", "synthetic") for shard in made.shards[:2]
    )
    both = dataclasses.replace(made, plans={"observed": plan, "synthetic": plan}, shards=shards + made.shards[2:])
    data = DatasetCard(render_dataset_card(both, load_facts("apogee_dr17"))).data.to_dict()
    assert [config["config_name"] for config in data["configs"]] == ["observed", "synthetic", "wavelength_grid"]
    assert data["configs"][1]["data_files"][0] == {"split": "train", "path": "synthetic/train-*.parquet"}


def test_sizes_as_the_hub_writes_them():
    assert [size_category(rows) for rows in (999, 1_000, 90_000, 128_485, 2_000_000)] == [
        "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M",
    ]  # fmt: skip
