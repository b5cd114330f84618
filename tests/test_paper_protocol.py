"""The paper's protocol on files in DR17's format with synthesised stars in them: no leak, its pixels, the truth."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from survey_files import DETECTORS, N_PIXELS, allstar_columns, position_of, write_allstar, write_aspcapstar

from spectrafm_hf.builders import apogee_dr17, mmu_apogee_dr17
from spectrafm_hf.builders.apogee_dr17 import CATALOGUE_FILE, SPECTRUM_FILE, ApogeeDr17Config
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.checkpoints import located
from spectrafm_hf.hub import load_pretrained
from spectrafm_hf.labels import LABELS
from spectrafm_hf.prediction import predict_on_grid
from spectrafm_hf.protocols import paper
from spectrafm_hf.protocols.few_labels import METHODS, figures
from spectrafm_hf.protocols.paper import (
    N_OBSERVED,
    Dr17Stars,
    check_leaks,
    columns_of,
    joined,
    kept,
    narrowed,
    open_splits,
    paper_task,
    read_dr17,
    read_stars,
    roles,
    with_paper_split,
)
from spectrafm_hf.protocols.synthetic_h_band import FEW_SHOT_PIXELS, FIRST_HALF
from spectrafm_hf.spectra import apogee_wavelength
from spectrafm_hf.synthesis.apogee import ApogeeSynthesizer
from spectrafm_hf.synthesis.dr17_sampler import Dr17LabelSampler
from spectrafm_hf.synthesis.instrument import ApogeeConditions, observe_apogee

from conftest import tiny_extractor  # isort: skip

N_STARS, N_FAINT = 280, 20
"""Rows of the catalogue; those of them that fail the cut on SNR."""

START = located("spectrafm-small")
TRIAL = 0.001
"""Of the budget: stage 2 is two steps."""


@pytest.fixture(scope="module")
def stars():
    """Columns of allStar; flux, error and synthetic (n_stars, 8575). As DR17 has them, but a third are metal-poor."""
    rng = np.random.default_rng(1)
    synthesizer, sampler = ApogeeSynthesizer(), Dr17LabelSampler(metal_poor_share=0.33)
    drawn = sampler.draw(rng, N_STARS)
    for column, name in enumerate(synthesizer.label_names):
        drawn[:, column] = np.clip(drawn[:, column], *synthesizer.bounds[name])
    clean = synthesizer(drawn)
    seen = observe_apogee(clean, ApogeeConditions(snr=(200.0, 400.0)), rng)
    flux, error, synthetic = (np.zeros((N_STARS, N_PIXELS)) for _ in range(3))
    detectors = np.r_[DETECTORS]
    flux[:, detectors] = np.where(seen["bad_pixel"], 1e-4, seen["flux"])
    error[:, detectors] = np.where(seen["bad_pixel"], 1e10, np.maximum(seen["ivar"], 1e-20) ** -0.5)
    synthetic[:, detectors] = clean
    columns = allstar_columns(N_STARS)
    columns["APOGEE_ID"] = np.array([f"2M{i % 24:02d}{i % 60:02d}{i:04d}+{i % 80:02d}{i:05d}" for i in range(N_STARS)])
    columns["RA"], columns["DEC"] = np.array([position_of(name) for name in columns["APOGEE_ID"]]).T
    columns["SNR"] = np.where(np.arange(N_STARS) < N_FAINT, 150, 300).astype(np.float32)
    for label in LABELS:
        values = drawn[:, sampler.label_names.index(label.name)]
        columns[label.apogee_column] = values.astype(np.float32)
    columns["FE_H"][-1] = np.nan
    return columns, (flux, error, synthetic)


@pytest.fixture(scope="module")
def archive(stars, tmp_path_factory):
    columns, spectra = stars
    root = tmp_path_factory.mktemp("sas")
    (root / CATALOGUE_FILE).parent.mkdir(parents=True)
    write_allstar(root / CATALOGUE_FILE, columns)
    for row, name in enumerate(columns["APOGEE_ID"]):
        place = root / SPECTRUM_FILE.format(telescope="apo25m", field="000+02", apogee_id=name)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_aspcapstar(place, name, *(array[row] for array in spectra))
    apogee_dr17._selected.cache_clear()
    return str(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def task(archive, folder):
    return paper_task(START, folder, archive, TRIAL)


@pytest.fixture(scope="module")
def read(task, archive, folder):
    """What was kept of the training and of the test stars."""
    return read_dr17(archive, folder, 1)


# ---------------------------------------------------------------- who is learned from, who is asked


def test_no_star_has_two_roles_and_all_test_stars_are_asked(task, read):
    train, _ = read
    _, observed = roles(train, N_OBSERVED)
    seen = [set(task.pool.star_ids), set(observed.star_ids), set(task.test.star_ids)]
    assert len(set.union(*seen)) == sum(map(len, seen)) == N_STARS - N_FAINT - 1  # one has no [Fe/H]
    assert len(seen[2]) == pytest.approx(0.2 * (N_STARS - N_FAINT), abs=1)  # the paper's share
    assert len(seen[0]) == len(train.flux) // 2


def test_drawn_stars_are_above_minus_one_and_metal_poor_ones_are_asked_about(task):
    assert task.fe_h_above == -1.0
    for seed in range(3):
        drawn = task.draw(60, seed)
        assert (task.pool.labels[drawn, task.column()] > -1).all()
        assert set(task.manifest([seed], [60])[f"draw {seed} of 60"]["star_ids"]) <= set(task.pool.star_ids)
    assert (task.test.labels[:, task.column()] < -1).sum() >= 5


def test_a_star_in_both_splits_is_refused(read):
    train, test = read
    check_leaks(train, test)
    leaky = replace(test, star_ids=np.array([*test.star_ids[1:], train.star_ids[3]]))
    with pytest.raises(ValueError, match=f"1 stars are in .* the test split, {re.escape(train.star_ids[3])} "):
        check_leaks(train, leaky)


# ---------------------------------------------------------------- what is seen of them


def test_the_window_has_512_pixels_between_the_papers_wavelengths(task):
    shown = task.extractor.wavelength_grid[task.test.good.any(axis=0)]
    assert shown.size == 512
    np.testing.assert_allclose(shown, apogee_wavelength()[FEW_SHOT_PIXELS], rtol=1e-9)
    for stars in (task.pool.good, task.anchors[1]):
        assert (stars.any(axis=0) <= task.test.good.any(axis=0)).all()
    _, flux, good = task.synthetic(range(3))
    assert flux.shape[1] == task.extractor.wavelength_grid.size
    assert np.array_equal(good.any(axis=0), task.test.good.any(axis=0))


def test_fluxes_labels_and_bad_pixels_are_those_of_the_files(task, stars):
    columns, (flux, error, _) = stars
    row = {name: i for i, name in enumerate(columns["APOGEE_ID"])}
    window = np.r_[DETECTORS][FEW_SHOT_PIXELS]
    inside = columns_of(task.extractor, FEW_SHOT_PIXELS)
    for place, name in enumerate(task.test.star_ids):
        good = (error[row[name], window] < 1) & (flux[row[name], window] > 0.05) & (flux[row[name], window] < 1.2)
        assert np.array_equal(task.test.good[place, inside], good)
        np.testing.assert_allclose(task.test.flux[place, inside][good], flux[row[name], window][good], rtol=1e-6)
        assert task.test.labels[place, task.column()] == pytest.approx(columns["FE_H"][row[name]], abs=1e-6)


def test_stage_2_sees_the_first_half_alone(read):
    _, extractor = load_pretrained(START)
    seen = read[0].on_grid(extractor, FIRST_HALF)
    there = extractor.wavelength_grid[seen.good.any(axis=0)]
    assert there.size == 3757
    assert there[[0, -1]] == pytest.approx([15_152.2, 16_028.8], abs=1.5)


def test_a_narrow_grid_gives_the_answers_of_the_whole_one(read):
    model, whole = load_pretrained(START)
    extractor, tokens = narrowed(whole, FEW_SHOT_PIXELS)
    assert extractor.wavelength_grid.size == tokens.stop - tokens.start <= 512 + 2 * whole.patch_size
    answers = [
        predict_on_grid(model, who, seen.flux, seen.good).mean
        for who in (whole, extractor)
        for seen in [read[1].on_grid(who, FEW_SHOT_PIXELS)]
    ]
    np.testing.assert_allclose(answers[1] / whole.label_scale, answers[0] / whole.label_scale, atol=2e-3)


def test_a_model_with_other_pixels_is_refused(read):
    with pytest.raises(ValueError, match="are not pixels of the model"):
        read[1].on_grid(tiny_extractor(), FEW_SHOT_PIXELS)


def test_a_sample_of_stars_hangs_on_their_names_alone():
    def made(names):
        nothing = np.zeros((len(names), 1))
        return Dr17Stars(np.array(names), nothing, nothing, np.arange(1), nothing, nothing > 0)

    names = [f"2M{i:08d}" for i in range(400)]
    whole = made(names).lowest(20).star_ids
    assert set(whole) == set(joined([made(names[200:]).lowest(20), made(names[:200]).lowest(20)]).lowest(20).star_ids)
    assert 100 < np.mean([names.index(name) for name in whole]) < 300  # not the first ones


# ---------------------------------------------------------------- answers


def test_methods_answer_and_the_answers_tell_the_truth(task):
    """Stars are of the synthesizer that the model knows, so it must find them; 60 of them do for ridge regression."""
    truth, drawn = task.test.labels[:, task.column()], task.draw(60, 0)
    for name, least in (("spectrafm", 0.9), ("spectrafm_zero_shot", 0.9), ("ridge", 0.8)):
        answer = METHODS[name](task, drawn, 0)
        for values in (answer.mean, answer.sigma, answer.sigma95):
            assert values.shape == truth.shape
            assert np.isfinite(values).all(), name
        assert np.corrcoef(answer.mean, truth)[0, 1] > least, name
        assert figures(task, answer)["metal_poor"]["n"] == (truth < -1).sum()


# ---------------------------------------------------------------- done once


def test_a_second_call_builds_reads_and_trains_nothing(task, archive, folder, monkeypatch):
    def refuse(*told, **options):
        raise AssertionError("it was kept")

    for name in ("build_dataset", "read_stars", "open_splits"):
        monkeypatch.setattr(paper, name, refuse)
    monkeypatch.setattr("spectrafm_hf.protocols.synthetic_h_band.train", refuse)
    again = paper_task(START, folder, archive, TRIAL)
    assert again.manifest(range(2), (60,)) == task.manifest(range(2), (60,))
    assert np.array_equal(again.test.flux, task.test.flux)
    weights = zip(again.model.parameters(), task.model.parameters(), strict=True)
    assert all(bool((one == other).all()) for one, other in weights)


def test_another_model_or_budget_is_another_stage_2(task, archive, folder, monkeypatch):
    asked = []
    monkeypatch.setattr(paper, "tune", lambda start, output, *told: asked.append(output) or START)
    for budget in (TRIAL, 0.01):
        paper_task(START, folder, archive, budget)
    done = [path.parent for path in folder.glob("2-observed-*/model.safetensors")]
    assert done == asked[:1]
    assert asked[1] not in done


def test_what_is_kept_is_read_whole(read, tmp_path):
    path = tmp_path / "stars.npz"
    for turn in (lambda: read[1], lambda: pytest.fail("it was kept")):
        stars = kept(path, turn)
    assert all(np.array_equal(getattr(stars, name), array, equal_nan=name.startswith("label"))
               for name, array in vars(read[1]).items())  # fmt: skip


# ---------------------------------------------------------------- DR17 from elsewhere


def same_stars(one, other):
    for mine, theirs in zip(one, other, strict=True):
        assert np.array_equal(mine.star_ids, theirs.star_ids)
        assert np.array_equal(mine.good, theirs.good)
        assert np.array_equal(mine.flux[mine.good], theirs.flux[theirs.good])
        np.testing.assert_array_equal(mine.labels, theirs.labels)


def test_a_built_dataset_gives_the_same_stars_and_is_read_where_it_lies(read, archive, tmp_path):
    configs = [ApogeeDr17Config(name=name, archive=archive, split_rule="paper") for name in ("observed", "synthetic")]
    build_dataset(configs, tmp_path / "built", progress=False)
    same_stars(read, read_dr17(str(tmp_path / "built"), tmp_path / "out", 1))
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".npz"}
    few = read_stars(open_splits(str(tmp_path / "built"), None)["train"], (FEW_SHOT_PIXELS,), 30)
    assert np.array_equal(few.star_ids, read[0].star_ids[:30])
    assert np.array_equal(few.flux, read[0].flux[:30, -512:])


def write_hats(root, columns, spectra):
    """The catalogue of MultimodalUniverse as LSDB lays it out, in one file."""
    flux, error, _ = (array[:, np.r_[DETECTORS]].astype(np.float32) for array in spectra)
    lists = {
        "flux": flux,
        "ivar": error**-2.0,
        "lambda": np.tile(apogee_wavelength().astype(np.float32), (len(flux), 1)),
        "mask": np.zeros(flux.shape, dtype=bool),
    }
    table = {"object_id": columns["APOGEE_ID"], "spectrum": None}
    for name in ("RA", "DEC", "TELESCOPE", "FIELD", "SNR", "STARFLAG", "ASPCAPFLAG", "VSCATTER"):
        table[name.lower()] = columns[name]
    for label in LABELS:
        for suffix in ("", "_ERR"):
            table[(label.name + suffix).lower()] = columns[label.apogee_column + suffix]
    arrays = {name: pa.array(values.tolist()) for name, values in table.items() if values is not None}
    arrays["spectrum"] = pa.StructArray.from_arrays([pa.array(list(a)) for a in lists.values()], names=list(lists))
    path = root / "dataset/Norder=0/Dir=0/Npix=1.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(arrays), path, row_group_size=100)
    return str(root)


def test_the_catalogue_of_multimodal_universe_gives_the_same_stars(read, stars, tmp_path):
    mmu_apogee_dr17._selected.cache_clear()
    same_stars(read, read_dr17(write_hats(tmp_path / "hats", *stars), tmp_path / "out", 1))


@pytest.mark.parametrize("found", ["nothing", "odd.txt"])
def test_a_folder_without_dr17_is_told_what_it_should_hold(tmp_path, found):
    if found != "nothing":
        (tmp_path / found).write_text("odd")
    with pytest.raises(ValueError, match=rf"mmu_apogee_dr17 on the Hub.*got .*, which holds {found}\.") as error:
        with_paper_split(str(tmp_path), tmp_path / "out", 1)
    assert "spectrafm build apogee-dr17 --archive SAS --split paper" in str(error.value)


def test_what_is_neither_here_nor_on_the_hub_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"needs APOGEE DR17 as one of three.*which is no folder"):
        read_dr17(str(tmp_path / "nowhere"), tmp_path, 1)
    with pytest.raises(ValueError, match="got somebody/dr17, which is no folder here, and of the Hub: looking up"):
        read_dr17("somebody/dr17", tmp_path, 1)


def test_an_archive_without_its_catalogue_is_told(archive, tmp_path):
    (tmp_path / Path(CATALOGUE_FILE).parent).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="allStar-dr17-synspec_rev1"):
        read_dr17(str(tmp_path), tmp_path / "out", 1)


def test_another_split_is_refused(archive, tmp_path):
    build_dataset([ApogeeDr17Config(archive=archive, n=60)], tmp_path / "by-name", progress=False)
    with pytest.raises(ValueError, match=r"training and test stars only, .* has the splits .*; build it with --split"):
        read_dr17(str(tmp_path / "by-name"), tmp_path / "out", 1)


def test_another_dataset_is_refused(tmp_path):
    build_dataset([SyntheticConfig(n=256)], tmp_path / "synthetic", progress=False)
    with pytest.raises(ValueError, match=r"needs APOGEE DR17 .*, whose config `observed` cannot be opened"):
        read_dr17(str(tmp_path / "synthetic"), tmp_path / "out", 1)
