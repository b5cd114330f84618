"""A catalogue of a dataset on a Hub: at one commit, by row groups, over broken connections."""

import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import tiny_extractor, tiny_model
from huggingface_hub import HfApi

from spectrafm_hf.catalogue import label_survey
from spectrafm_hf.readers.catalogue_file import read_provenance
from spectrafm_hf.survey_input import open_survey

from .test_streaming import N_LONG, N_SHARDS, PER_SHARD, REPO, folder, long_spectra, upload  # noqa: F401  # fixtures


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(place)
    tiny_extractor().save_pretrained(place)
    return str(place)


def test_a_catalogue_is_that_of_the_folder_and_of_one_commit(hub, folder, model, tmp_path):  # noqa: F811
    revision = upload(folder)
    told = {"model": model, "part_rows": 8, "progress": False}
    here = label_survey(folder, tmp_path / "here.parquet", **told)
    hub.drop("GET", "/lfs/.*train-00000", after=2000)
    hub.fail("GET", "/lfs/.*train-00002", 429, headers={"Retry-After": "0"})
    hub.lose_answer("GET", "/resolve/.*train-00003")
    there = label_survey(REPO, tmp_path / "there.parquet", input_revision="main", **told)
    assert not hub.faults
    assert here.rows == there.rows == N_SHARDS * PER_SHARD
    one, other = (pq.read_table(made.path).to_pandas() for made in (here, there))
    assert one.equals(other)
    assert read_provenance(there.path)["plan"]["input revision"] == revision
    HfApi().delete_folder("stars", REPO, repo_type="dataset", commit_message="Away")  # main moves on
    again = label_survey(REPO, there.path, input_revision=revision, **told)
    assert again.was_done
    with pytest.raises((ValueError, FileNotFoundError)):
        label_survey(REPO, there.path, input_revision="main", **told)


def test_what_breaks_between_two_rows_loses_none(hub, long_spectra):  # noqa: F811
    """Rows of the file were handed out already when the connection breaks, and then when the Hub goes for a while."""
    place, written = long_spectra
    survey = open_survey(REPO, revision=upload(place))
    assert survey.length == 2 * N_LONG
    back = threading.Timer(0.5, hub.start)
    happens = {
        2: lambda: hub.drop("GET", "/lfs/.*train-0", after=1_000_000),
        5: lambda: hub.fail("GET", "/lfs/.*train-0", 500),
        12: lambda: (hub.stop(), back.start()),
        15: lambda: hub.drop("GET", "/lfs/.*train-1", after=3_000_000),
    }
    read = []
    for reading in survey.read(0, 2 * N_LONG):
        happens.get(len(read), lambda: None)()
        read.append(reading)
    assert [reading.name for reading in read] == written["object_id"]
    for reading, flux in zip(read, written["flux"], strict=True):
        assert np.array_equal(reading.spectrum.flux, flux.astype(float))
    assert [reading.name for reading in survey.read(13, 15)] == written["object_id"][13:15]
