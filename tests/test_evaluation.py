"""Known labels against told ones: the figures are those of the stars, and nothing is left out unsaid."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from spectrafm_hf import cli
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.labelled_folder import FolderConfig
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.evaluation import evaluate, known_from_dataset, known_from_folder, table
from spectrafm_hf.examples import EXAMPLES, example
from spectrafm_hf.labelling import Labeller, predict

GIVEN = ["h-band-red-giant", "h-band-dwarf", "h-band-metal-poor-giant"]
FAR = 500.0
"""K, added to a known Teff."""


@pytest.fixture(scope="module")
def labeller():
    return Labeller(labels=["teff", "fe_h"])


@pytest.fixture
def folder(tmp_path):
    """Example stars and the labels they were made with; one file is broken, one Teff is far too hot."""
    spectra = tmp_path / "spectra"
    spectra.mkdir()
    rows = []
    for name in GIVEN:
        shutil.copy(example(name), spectra)
        labels = EXAMPLES[name].labels
        rows.append({"file": f"{name}.fits", "star": name, "teff": labels["teff"], "fe_h": labels["fe_h"]})
    rows[1]["teff"] += FAR
    (spectra / "broken.fits").write_bytes(b"SIMPLE  =                    T" + b" " * 50)
    rows.append({"file": "broken.fits", "star": "broken", "teff": 5000, "fe_h": 0.0})
    path = tmp_path / "stars.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "star", "teff", "fe_h"])
        writer.writeheader()
        writer.writerows(rows)
    return FolderConfig(folder=str(spectra), table=str(path))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "built"
    build_dataset([SyntheticConfig(n=300, seed=3)], folder, 1)
    return folder


def test_a_wrong_label_shows_as_it_is(folder, labeller, tmp_path):
    known = known_from_folder(folder, labeller.labels)
    assert known.truth.shape == (4, 2)
    found = evaluate(known, labeller, tmp_path / "out")
    told = predict([str(example(name)) for name in GIVEN], labels=["teff", "fe_h"])
    value = np.array(told["value"]).reshape(3, 2)
    off = value - known.truth[:3]
    assert abs(off[1, 0] + FAR) < 100  # K: the model is not misled by the table
    assert found["labels"]["teff"]["rmse"] == pytest.approx(np.sqrt(np.mean(off[:, 0] ** 2)), rel=1e-5)
    assert found["labels"]["fe_h"]["bias"] == pytest.approx(np.median(off[:, 1]), abs=1e-5)
    assert (found["n_stars"], found["n_unreadable"], found["labels"]["teff"]["n"]) == (4, 1, 3)
    assert found["labels"]["teff"]["coverage95"] == pytest.approx(2 / 3)
    assert found["revision"] == told["revision"][0]
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == found
    stars = pq.read_table(tmp_path / "out/stars.parquet").to_pylist()
    assert [one["name"] for one in stars] == [*(f"{name}.fits" for name in GIVEN), "broken.fits"]
    np.testing.assert_allclose([one["teff"] for one in stars[:3]], value[:, 0], rtol=1e-6)
    assert stars[3]["flags"]
    assert np.isnan(stars[3]["teff"])
    for figure in ("teff.png", "fe_h.png", "reliability.png"):
        assert (tmp_path / "out/figures" / figure).read_bytes().startswith(b"\x89PNG")


def test_exact_labels_do_not_widen_intervals(dataset, labeller, tmp_path):
    found = [
        evaluate(known_from_dataset(str(dataset), labeller.labels, split="validation"), labeller, tmp_path, exact)
        for exact in (False, True)
    ]
    usual, exact = (one["labels"]["fe_h"] for one in found)
    assert usual["n"] == exact["n"] == 44
    assert usual["rmse"] == exact["rmse"] < 0.05
    assert usual["coverage68"] == 1  # 0.1 dex were added to each sigma
    assert exact["coverage68"] < 1
    assert exact["crps"] < usual["crps"]
    assert "errors of known labels: none" in table(found[1])


def test_labels_of_a_dataset_belong_to_their_spectra(dataset, labeller):
    """Those of other rows would be off by the spread of the stars."""
    known = known_from_dataset(str(dataset), ["teff"], split="validation")
    told = np.array([one.labels["teff"].value for one in labeller.label(known.readings)])
    assert np.corrcoef(told, known.truth[:, 0])[0, 1] > 0.99
    assert abs(np.corrcoef(told, np.roll(known.truth[:, 0], 1))[0, 1]) < 0.5


def test_stars_without_labels_or_spectra_are_told(folder, labeller, tmp_path):
    with pytest.raises(ValueError, match=r"not one of its 4 stars has a value of mg_fe"):
        known_from_folder(folder, ["mg_fe"])
    broken = tmp_path / "only.csv"
    broken.write_text("file,star,teff\nbroken.fits,broken,5000\n")
    known = known_from_folder(FolderConfig(folder=folder.folder, table=str(broken)), labeller.labels)
    with pytest.raises(ValueError, match=r"not one star .* was answered \(broken.fits: "):
        evaluate(known, labeller, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_made_is_told_before_a_star_is_read(folder, labeller, tmp_path):
    known = known_from_folder(folder, labeller.labels)
    with pytest.raises(OSError, match=r"the folder .*stars.csv/out cannot be written \(Not a directory\); choose"):
        evaluate(known, labeller, tmp_path / "stars.csv" / "out")
    assert len(list(known.readings)) == 4


def test_as_a_command(folder, dataset, tmp_path):
    def asked(*arguments):
        return CliRunner().invoke(cli.app, ["evaluate", *arguments, "--output", str(tmp_path / "out")])

    said = asked("--labels", folder.table, "--spectra", folder.folder)
    assert said.exit_code == 0, said.output
    assert "on 4 spectra" in said.output
    assert "1 could not be read" in said.output
    assert "not known of any star" in said.output  # [Mg/Fe]
    for arguments, message in [
        ((), "which stars?"),
        (("--labels", folder.table), "which stars?"),
        (("--dataset", str(dataset), "--spectra", folder.folder), "leave out --labels, --spectra"),
        (("--labels", folder.table, "--spectra", folder.folder, "--split", "test"), "give --dataset"),
        (("--dataset", str(dataset), "--split", "test"), "has no split 'test'"),
    ]:
        said = asked(*arguments)
        assert isinstance(said.exception, ValueError)
        assert message in str(said.exception)
