"""A survey becomes a catalogue: every spectrum once, in order, whatever is killed, broken or changed on the way."""

import errno
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from conftest import WINDOW, star_flux, tiny_extractor, tiny_model
from filelock import FileLock
from survey_files import write_lamost

from spectrafm_hf import Spectrum, catalogue, survey_input
from spectrafm_hf.builders import parquet_layout
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.rows import FLUX_SCALE, Layout, WavelengthGrid, columns_of_spectra
from spectrafm_hf.builders.selection import Cut, select
from spectrafm_hf.builders.spectra_builder import Plan, Rows, SpectraConfig
from spectrafm_hf.catalogue import difference, label_survey, parts_folder, runs_of
from spectrafm_hf.examples import example
from spectrafm_hf.labelling import Labeller, predict
from spectrafm_hf.readers.any_file import read_spectrum
from spectrafm_hf.readers.catalogue_file import count_rows, read_provenance
from spectrafm_hf.sources import Conventions, read_source
from spectrafm_hf.survey_input import open_survey, own_rows, rows_of

LAMOST = 10 ** (3.5682 + 1e-4 * np.arange(3904))
GRID = np.arange(4990.0, 5410.0, 0.9) + 1e-7
"""Vacuum Angstrom; float32 would lose its last digits."""
LABELS = ("teff", "logg", "fe_h")
BAD = ("bad-empty.fits", "bad-text.fits", "bad-truncated.fits")
N_GOOD = 20


def flux_of(number, wavelength, noise=0.01):
    """Of star `number`: the depth of its magnesium lines follows it."""
    rng = np.random.default_rng(number)
    lines = {line: depth * rng.uniform(0.3, 1.3) for line, depth in ((5168.76, 0.3), (5174.13, 0.5), (5185.05, 0.6))}
    return star_flux(wavelength, lines) + noise * rng.standard_normal(wavelength.size)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny model without limits."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_extractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def spectra(tmp_path_factory):
    """A folder of 20 stars as LAMOST has them, in two nights, three files that are no spectra, and notes."""
    folder = tmp_path_factory.mktemp("spectra")
    for number in range(N_GOOD):
        night = folder / f"night{number % 2}"
        night.mkdir(exist_ok=True)
        write_lamost(night / f"spec-{number:03d}.fits", flux=1000 * flux_of(number, LAMOST), z=0.0)
    whole = (folder / "night0/spec-000.fits").read_bytes()
    for name, content in zip(BAD, (b"", b"SIMPLE? no, a text.", whole[: len(whole) // 2]), strict=True):
        (folder / name).write_bytes(content)
    (folder / "notes.csv").write_text("star,remark\n")
    return folder


@dataclass
class StarsConfig(SpectraConfig):
    """Numbered stars that share a grid; `n` of them in chunks of 100."""

    name: str = "stars"
    n: int = 250
    dataset = "folder"

    def plan(self):
        _, report = select([], [Cut("snr", lambda star: True, "SNR > 1")])
        chunks = [(start, min(start + 100, self.n)) for start in range(0, self.n, 100)]
        grid = WavelengthGrid.of_instrument(GRID, "fake", fwhm=2.0)
        return Plan(chunks, {"train": self.n}, Layout(GRID.size, (FLUX_SCALE,)), report, grid)

    def read(self, chunk):
        rng = np.random.default_rng(chunk[0])
        spectra = [
            Spectrum(
                GRID, flux_of(i, GRID), rng.random(GRID.size) < 0.02, f"HD{i}", "fake", ivar=np.full(GRID.size, 1e4)
            )
            for i in range(*chunk)
        ]
        columns = columns_of_spectra(spectra, shared_grid=True)
        return Rows(columns, np.array(["train"] * len(spectra), dtype=object), ())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """250 stars in two files, as `spectrafm build` leaves them."""
    return build_dataset([StarsConfig()], tmp_path_factory.mktemp("stars"), shards=2, progress=False).folder


def run(source, output, model, **told):
    return label_survey(source, output, model=str(model), **{"part_rows": 4, "batch_size": 4, "progress": False} | told)


def rows_in(path):
    return pq.read_table(path).to_pandas()


def same(one, other):
    """Two catalogues hold the same rows, NaN where NaN; numbers but for the rounding of products in other batches."""
    one, other = pq.read_table(one), pq.read_table(other)
    assert one.schema.equals(other.schema)
    for name in one.schema.names:
        mine, others = (table[name].to_numpy(zero_copy_only=False) for table in (one, other))
        if mine.dtype.kind == "f":
            np.testing.assert_allclose(mine, others, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert np.array_equal(mine, others), name


@pytest.fixture(scope="module")
def whole(spectra, model, tmp_path_factory):
    """The catalogue of the folder, made without a stop."""
    output = tmp_path_factory.mktemp("whole") / "catalogue.parquet"
    made = run(spectra, output, model)
    assert (made.rows, made.unreadable, made.kept, made.was_done) == (N_GOOD + 3, 3, 0, False)
    return output


# ---------------------------------------------------------------- rows


def test_every_file_is_a_row_in_order_with_the_numbers_of_the_labeller(whole, spectra, model):
    rows = rows_in(whole)
    names = sorted(str(path.relative_to(spectra)) for path in spectra.rglob("*.fits"))
    assert rows["name"].tolist() == names
    assert rows["row"].tolist() == list(range(len(names)))
    good = [name for name in names if name not in BAD]
    alone = list(Labeller(str(model)).label(read_source([spectra / name for name in good])))
    table = rows.set_index("name").loc[good]
    for label in LABELS:
        for key in ("value", "sigma", "low68", "high68", "low95", "high95"):
            expected = [getattr(star.labels[label], key) for star in alone]
            got = table[label if key == "value" else f"{label}_{key}"]
            assert np.allclose(got, expected, rtol=1e-4, atol=1e-4), (label, key)
        assert (table[f"{label}_low95"] < table[f"{label}_low68"]).all()
    assert table["teff"].nunique() == N_GOOD  # the stars differ, and so do their answers
    low, high = WINDOW
    assert table["wavelength_min"].between(low - 2000, low + 5).all()
    assert table["wavelength_max"].between(high - 5, high + 4000).all()


def test_bad_files_are_rows_with_a_reason_and_change_no_other(whole, spectra, model, tmp_path):
    rows = rows_in(whole).set_index("name")
    bad = rows.loc[list(BAD)]
    assert bad[[*LABELS, *(f"{name}_sigma" for name in LABELS)]].isna().all(axis=None)
    assert not bad[[f"{name}_calibrated" for name in LABELS]].any(axis=None)
    assert bad["flags"].str.len().min() > 20
    assert (bad["flag_names"] == "unreadable").all()
    good = rows.drop(list(BAD))
    assert good[list(LABELS)].notna().all(axis=None)
    assert not good["flag_names"].str.contains("unreadable").any()
    made = run([spectra / name for name in good.index], tmp_path / "good.parquet", model, part_rows=len(good))
    assert made.unreadable == 0
    assert np.allclose(rows_in(made.path)[list(LABELS)], good[list(LABELS)], rtol=1e-4, atol=1e-4)


def test_a_file_of_a_list_that_is_not_there_is_a_row(spectra, model, tmp_path):
    made = run([spectra / "night0/spec-000.fits", tmp_path / "gone.fits"], tmp_path / "two.parquet", model)
    rows = rows_in(made.path)
    assert np.isfinite(rows["teff"][0])
    assert np.isnan(rows["teff"][1])
    assert "there is no file" in rows["flags"][1]
    with pytest.raises(FileNotFoundError, match=r"none of the 1 files.*gone\.fits"):
        run([tmp_path / "gone.fits"], tmp_path / "none.parquet", model)


@pytest.mark.parametrize("suffix", ["parquet", "fits", "ecsv"])
def test_names_that_are_not_utf8_are_read_like_others(suffix, monkeypatch, model, tmp_path):
    """A file system holds bytes; those of old archives are Latin-1 here and there."""
    folder = tmp_path / os.fsdecode(b"nuit d'\xe9t\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system knows UTF-8 only")
    write_lamost(folder / os.fsdecode(b"x\xff.fits"), flux=1000 * flux_of(1, LAMOST), z=0.0)
    write_lamost(folder / "y.fits", flux=1000 * flux_of(1, LAMOST), z=0.0)
    (folder / os.fsdecode(b"bad\xff.fits")).touch()
    monkeypatch.setattr(sys, "argv", ["spectrafm", "predict", "--input", str(folder)])
    output = tmp_path / f"catalogue.{suffix}"
    made = run(folder, output, model)
    assert (made.rows, made.unreadable) == (3, 1)
    assert run(folder, output, model).was_done
    table = Table.read(output, format={"ecsv": "ascii.ecsv"}.get(suffix, suffix))
    names = ["bad\\udcff.fits", "x\\udcff.fits", "y.fits"]
    assert [str(name) for name in table["name"]] == names
    assert table["teff"][1] == table["teff"][2]
    assert "bad\\udcff.fits" in str(table["flags"][0])
    assert read_provenance(output)["command"].endswith("'\"'\"'\\udce9t\\udce9'")
    os.utime(folder / os.fsdecode(b"x\xff.fits"), (0, 0))
    with pytest.raises(ValueError, match=r"another run \(input: "):
        run(folder, output, model)
    with pytest.raises(ValueError, match=r"path must be UTF-8, got .*o\\udcff\.parquet"):
        run(folder, tmp_path / os.fsdecode(b"o\xff.parquet"), model)


def test_a_list_may_hold_names_that_no_file_can_have(spectra, model, tmp_path):
    good = spectra / "night0/spec-000.fits"
    made = run([good, Path("a\0b.fits"), Path("\ud800.fits")], tmp_path / "three.parquet", model)
    assert (made.rows, made.unreadable) == (3, 2)
    assert rows_in(made.path)["name"].tolist() == [str(good), "a\0b.fits", "\\ud800.fits"]


@pytest.mark.parametrize("name", ["no such spectra", "nights/spectr one"])
def test_a_slip_in_a_path_is_called_one_before_the_hub_is(name, model, tmp_path):
    """Blanks, so that no dataset can have the name, and nothing is asked for."""
    with pytest.raises(OSError, match=rf"^there is no file or folder {name} here .*, and no dataset .* Hub: "):
        run(name, tmp_path / "catalogue.parquet", model)


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", ["parquet", "fits", "ecsv"])
def test_astropy_reads_it_back_with_units_and_provenance(suffix, whole, spectra, model, tmp_path):
    output = tmp_path / f"catalogue.{suffix}"
    made = run(spectra, output, model)
    assert not parts_folder(output).exists()
    table = Table.read(output, format={"ecsv": "ascii.ecsv"}.get(suffix, suffix))
    for name, unit in {"teff": "K", "teff_high95": "K", "logg_sigma": "dex", "fe_h": "dex"}.items():
        assert str(table[name].unit) == unit, name
    assert str(table["wavelength_min"].unit) == "Angstrom"
    expected = rows_in(whole)
    assert len(table) == len(expected) == made.rows
    for name in ("teff", "teff_low68", "fe_h_sigma", "wavelength_max"):
        assert np.array_equal(np.ma.filled(table[name].astype(float), np.nan), expected[name], equal_nan=True), name
    texts = {name: [str(one or "") for one in np.ma.filled(table[name].astype(str), "")] for name in ("name", "flags")}
    assert texts["name"] == expected["name"].tolist()
    assert texts["flags"] == [flags.encode("ascii", "backslashreplace").decode() for flags in expected["flags"]]
    told = read_provenance(output)
    assert (told["rows"], told["unreadable"]) == (made.rows, 3)
    plan, labeller = told["plan"], Labeller(str(model))
    assert (plan["model"], plan["model revision"]) == (labeller.model_id, labeller.revision)
    assert len(plan["input hash"]) == 64
    assert {"torch", "numpy", "spectrafm_hf", "velocity [km/s]", "abstain"} <= set(plan)
    if suffix == "fits":
        with warnings.catch_warnings(action="error"):
            quiet = Table.read(output, unit_parse_strict="silent")
        assert [str(quiet[name].unit) for name in quiet.colnames] == [str(table[name].unit) for name in table.colnames]
        assert (table.meta["MODELREV"], table.meta["NUNREAD"]) == (labeller.revision, 3)
    if suffix == "parquet":
        assert pq.read_schema(output).field("logg").metadata[b"unit"] == b"dex"


def test_what_is_not_known_stays_so_in_every_format(whole, spectra, model, tmp_path):
    """A truth that is null must not become False."""
    nulls = pq.read_table(whole)["teff_learned"].is_null().to_numpy()
    assert nulls.any()
    for suffix in ("fits", "ecsv"):
        output = run(spectra, tmp_path / f"catalogue.{suffix}", model).path
        learned = Table.read(output, format={"ecsv": "ascii.ecsv"}.get(suffix, suffix))["teff_learned"]
        assert np.array_equal(np.ma.getmaskarray(learned), nulls), suffix


# ---------------------------------------------------------------- going on


def parts(output):
    return sorted(parts_folder(output).glob("part-*.parquet"))


@pytest.fixture(scope="module")
def processes():
    """Fresh processes that have imported the package already, so that the three kills hit the work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spectrafm_hf.catalogue"])
    return context


@pytest.mark.slow
def test_three_kills_lose_no_row_and_repeat_none(spectra, whole, model, tmp_path, processes):
    output, rng, seen = tmp_path / "catalogue.parquet", np.random.default_rng(), []
    for n_parts, num_proc in ((1, 1), (3, 2), (6, 1)):
        told = {"part_rows": 2, "num_proc": num_proc}
        process = processes.Process(target=run, args=(spectra, output, model), kwargs=told)
        process.start()
        deadline = time.monotonic() + 120
        while len(parts(output)) < n_parts and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        children = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
        assert num_proc == 1 or len(children) >= num_proc
        process.kill()
        process.join()
        assert process.exitcode == -9, "it was done before it could be killed"
        assert not psutil.wait_procs(children, timeout=20)[1], "a worker outlived the run"
        assert not output.exists()
        for path in parts(output):  # whole, each of them
            assert len(pq.read_table(path)) == 2
        seen.append({path.name: path.stat().st_mtime_ns for path in parts(output)})
    made = run(spectra, output, model, part_rows=2)
    assert made.kept == 2 * len(seen[-1]) >= 10
    for earlier, later in pairwise(seen):
        assert earlier.items() <= later.items()  # nothing was done twice
    rows = rows_in(output)
    assert rows["row"].tolist() == list(range(N_GOOD + 3))
    assert rows["name"].is_unique
    expected = rows_in(whole)
    assert rows["name"].tolist() == expected["name"].tolist()
    uninterrupted = run(spectra, tmp_path / "again.parquet", model, part_rows=2)
    same(output, uninterrupted.path)
    assert not parts_folder(output).exists()


def interrupted(monkeypatch, source, output, model, after=2, **told):
    """A run that stops with `after` parts, as Ctrl-C stops it."""
    write, done = catalogue.Job.write, []

    def stop(self, number, rows):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(number)
        return write(self, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(catalogue.Job, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, output, model, **told)
    assert len(parts(output)) == after


def test_it_goes_on_at_what_is_missing_or_damaged(monkeypatch, spectra, whole, model, tmp_path):
    output = tmp_path / "catalogue.parquet"
    interrupted(monkeypatch, spectra, output, model, after=4)
    one, two, three, four = parts(output)
    one.unlink()
    two.write_bytes(two.read_bytes()[:-100])  # no footer
    pq.write_table(pq.read_table(three).slice(1), three)  # a row too few
    (parts_folder(output) / f".{one.name}.elsewhere-1.partial").write_bytes(b"PAR1")
    before = four.stat().st_mtime_ns
    assert run(spectra, output, model).kept == 4
    assert before
    same(output, whole)
    assert not list(tmp_path.rglob("*.partial"))


def test_another_plan_is_refused_and_says_what_differs(monkeypatch, spectra, model, tmp_path):
    folder, output = tmp_path / "spectra", tmp_path / "catalogue.parquet"
    shutil.copytree(spectra / "night0", folder)
    interrupted(monkeypatch, folder, output, model, after=1)
    with pytest.raises(ValueError, match=r"abstain|limits"):
        run(folder, output, model, abstain=True)
    with pytest.raises(ValueError, match=r"labels: teff, logg, fe_h there, teff asked.*another --output"):
        run(folder, output, model, labels=["teff"])
    with pytest.raises(ValueError, match=r"resolving power: None there, 1800(\.0)? asked"):
        run(folder, output, model, conventions=Conventions(resolving_power=1800.0))
    with pytest.raises(ValueError, match="rows per part: 4 there, 8 asked"):
        run(folder, output, model, part_rows=8)
    other = tmp_path / "other"
    tiny_model(seed=1).save_pretrained(other)
    tiny_extractor().save_pretrained(other)
    with pytest.raises(ValueError, match="model revision"):
        run(folder, output, other)
    (folder / "late.fits").write_bytes((folder / "spec-000.fits").read_bytes())
    with pytest.raises(ValueError, match=r"input: 10 spectra of .*there, 11 spectra of .*remove the folder"):
        run(folder, output, model)
    (folder / "late.fits").unlink()
    os.utime(folder / "spec-000.fits", (0, 0))  # somebody wrote into it: as many files, as large
    with pytest.raises(ValueError, match=r"input: 10 spectra of .*there, 10 spectra of"):
        run(folder, output, model)
    assert len(parts(output)) == 1  # as it was


@pytest.mark.parametrize("suffix", ["parquet", "fits", "ecsv"])
def test_a_finished_catalogue_is_left_as_it_is(suffix, spectra, model, tmp_path):
    output = tmp_path / f"catalogue.{suffix}"
    made = run(spectra, output, model)
    parts_folder(output).mkdir()  # killed between the rename and the cleaning up
    before = output.stat().st_mtime_ns
    again = run(spectra, output, model)
    assert again.was_done
    assert (again.rows, again.flagged, again.unreadable) == (made.rows, made.flagged, made.unreadable)
    assert output.stat().st_mtime_ns == before
    assert not parts_folder(output).exists()
    with pytest.raises(ValueError, match=r"is a catalogue of another run \(labels: .*; choose another --output"):
        run(spectra, output, model, labels=["teff"])
    output.write_bytes(b"something else")
    with pytest.raises(ValueError, match="was not written by spectrafm"):
        run(spectra, output, model)
    assert output.read_bytes() == b"something else"


@pytest.mark.parametrize("suffix", ["parquet", "fits"])
def test_a_selection_does_not_pass_for_the_whole(suffix, spectra, model, tmp_path):
    output = run(spectra, tmp_path / f"catalogue.{suffix}", model).path
    if suffix == "parquet":
        pq.write_table(pq.read_table(output).slice(0, 5), output)
    else:
        Table.read(output, unit_parse_strict="silent")[:5].write(output, overwrite=True)
    with pytest.raises(ValueError, match=rf"is a selection of the catalogue .*\(5 rows of {N_GOOD + 3}\)"):
        run(spectra, output, model)
    assert count_rows(output) == 5


def test_a_catalogue_in_the_folder_of_its_spectra_is_no_spectrum(spectra, whole, model, tmp_path):
    folder = tmp_path / "spectra"
    shutil.copytree(spectra, folder, copy_function=shutil.copy2)
    output = folder / "catalogue.fits"
    assert run(folder, output, model).rows == N_GOOD + 3
    assert run(folder, output, model).was_done


def test_one_run_at_a_time(spectra, model, tmp_path):
    output = tmp_path / "catalogue.parquet"
    parts_folder(output).mkdir()
    with FileLock(parts_folder(output) / ".lock"), pytest.raises(OSError, match="another run is at work"):
        run(spectra, output, model)
    assert run(spectra, output, model).rows == N_GOOD + 3


def test_a_full_disk_is_named_and_what_was_done_is_kept(monkeypatch, spectra, whole, model, tmp_path):
    output, written = tmp_path / "catalogue.parquet", []

    class Full(parquet_layout.pq.ParquetWriter):
        def write_table(self, *args, **told):
            if len(written) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(1)
            super().write_table(*args, **told)

    with monkeypatch.context() as patch:
        patch.setattr(parquet_layout.pq, "ParquetWriter", Full)
        with pytest.raises(OSError, match=r"no space left in .*MB free.*same command again"):
            run(spectra, output, model)
    assert len(parts(output)) == 3
    assert not list(tmp_path.rglob("*.partial"))
    assert run(spectra, output, model).kept == 12
    same(output, whole)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"output": "catalogue.csv"}, r"must end in \.parquet, \.fits, \.ecsv, got catalogue\.csv"),
        ({"part_rows": 0}, "at least 1"),
        ({"num_proc": 0}, "at least 1"),
        ({"split": "train"}, "holds spectra as files, which have no split"),
        ({"source": "no/such/thing/anywhere"}, "nothing is at no/such/thing/anywhere"),
    ],
)
def test_wrong_use_is_one_sentence(told, message, spectra, model, tmp_path):
    told = {"source": spectra, "output": "catalogue.parquet"} | told
    source, output = told.pop("source"), tmp_path / told.pop("output")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(source, output, model, **told)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_spectra_is_refused(model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/table.csv").write_text("a\n")
    with pytest.raises(ValueError, match="holds no file that could be a spectrum"):
        run(tmp_path / "empty", tmp_path / "catalogue.parquet", model)


def test_plans_are_told_apart_by_what_matters():
    plan = {"input": "a", "input hash": "0" * 64, "input rows": 3, "abstain": False}
    assert difference(plan, plan | {"input": "the same, mounted elsewhere"}) == ""
    assert difference(plan, plan | {"abstain": True}) == "abstain: False there, True asked"
    assert "3 spectra of a" in difference(plan, plan | {"input hash": "1" * 64})
    assert runs_of([1, 2, 5, 7, 8]) == [[1, 2], [5], [7, 8]]


# ---------------------------------------------------------------- datasets


def readings_equal(one, other):
    assert (one.name, one.reason, one.assumed) == (other.name, other.reason, other.assumed)
    assert one.spectrum.resolving_power == other.spectrum.resolving_power
    for name in ("wavelength", "flux", "bad_pixel", "ivar"):
        mine, others = getattr(one.spectrum, name), getattr(other.spectrum, name)
        assert mine.dtype == others.dtype
        assert np.array_equal(mine, others), name


def test_any_run_of_a_dataset_is_read_alone(dataset):
    survey = open_survey(dataset)
    assert survey.length == 250
    everything = list(survey.read(0, 250))
    assert [reading.name for reading in everything] == [f"HD{i}" for i in range(250)]
    for start, stop in ((0, 1), (99, 101), (120, 250), (249, 250), (40, 40)):
        run_alone = list(survey.read(start, stop))
        assert len(run_alone) == stop - start
        for one, other in zip(run_alone, everything[start:stop], strict=True):
            readings_equal(one, other)
    star = everything[123].spectrum
    assert np.array_equal(star.wavelength, GRID)
    good = ~star.bad_pixel
    ratio = star.flux[good] / flux_of(123, GRID)[good]
    assert np.allclose(ratio, ratio[0], rtol=1e-5)


def test_rows_of_our_own_are_those_of_the_long_way(dataset):
    survey = open_survey(dataset)
    batch = next(survey_input._batches(survey.paths[0], 7, 30))
    quick, slow = own_rows(batch, GRID, 7), list(rows_of(batch, GRID, Conventions(), 7))
    assert len(quick) == len(slow) == 23
    for one, other in zip(quick, slow, strict=True):
        readings_equal(one, other)
    hidden = batch.set_column(
        batch.schema.get_field_index("bad_pixel"),
        batch.schema.field("bad_pixel"),
        pa.FixedSizeListArray.from_arrays(
            pa.array(np.ones(23 * GRID.size, dtype=bool)), type=batch.schema.field("bad_pixel").type
        ),
    )
    assert own_rows(hidden, GRID, 7) is None  # no pixel is good: the long way says so
    assert "can be trusted" in next(rows_of(hidden, GRID, Conventions(), 7)).reason


def test_a_dataset_is_labelled_and_told_apart_by_its_files(dataset, model, tmp_path):
    output = tmp_path / "catalogue.parquet"
    made = run(dataset, output, model, part_rows=64, batch_size=16)
    rows = rows_in(output)
    assert (made.rows, made.unreadable) == (250, 0)
    assert rows["name"].tolist() == [f"HD{i}" for i in range(250)]
    plan = read_provenance(output)["plan"]
    assert (plan["input config"], plan["input split"], plan["input rows"]) == ("stars", "train", 250)
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    assert run(copy, output, model, part_rows=64).was_done  # the same files elsewhere
    (copy / "manifest.json").unlink()
    assert run(copy, output, model, part_rows=64).was_done  # their sums are computed then
    (path,) = sorted(copy.glob("stars/*00001-of*.parquet"))
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ValueError, match=r"input: 250 spectra of .*there, 249 spectra of"):
        run(copy, output, model, part_rows=64)
    with pytest.raises(ValueError, match=r"has no split 'test', only train"):
        run(dataset, output, model, split="test")
    with pytest.raises(ValueError, match="lies in the dataset it is made of"):
        run(copy, copy / "catalogue.parquet", model)


def test_a_broken_line_loses_no_row_and_repeats_none(monkeypatch, dataset):
    """The stream breaks in the middle of a file, twice; as HTTP breaks."""
    survey = open_survey(dataset)
    undisturbed = [reading.name for reading in survey.read(10, 240)]
    whole_batches, faults = survey_input._batches, [60, 130]

    def breaking(path, start, stop):
        for batch in whole_batches(path, start, stop):
            for first in range(0, len(batch), 16):
                if faults and start > 0 and path == survey.paths[0] and first >= 16:
                    faults.pop()
                    raise httpx2.ReadTimeout("the line broke")
                yield batch.slice(first, 16)

    monkeypatch.setattr(survey_input, "_batches", breaking)
    monkeypatch.setattr("spectrafm_hf.hub.FIRST_WAIT", 0.0)
    assert [reading.name for reading in survey.read(10, 240)] == undisturbed
    assert not faults


@pytest.mark.parametrize("n", [12, 13])
def test_a_dataset_without_a_middle_is_read_to_its_end(n, monkeypatch, model, tmp_path):
    """JSON lines have no row groups and no number of rows; 12 fills the last part, 13 does not."""
    folder, output = tmp_path / "lines", tmp_path / "catalogue.parquet"
    folder.mkdir()
    with (folder / "train.jsonl").open("w") as file:
        for i in range(n):
            row = {"object_id": f"star {i}", "flux": flux_of(i, GRID).tolist(), "wavelength": GRID.tolist()}
            file.write(json.dumps(row) + "\n")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n")
    interrupted(monkeypatch, folder, output, model, after=2)
    made = run(folder, output, model)
    assert (made.rows, made.kept) == (n, 8)
    rows = rows_in(output)
    assert rows["name"].tolist() == [f"star {i}" for i in range(n)]
    assert "vacuum Angstrom" in rows["assumed"][0]
    uninterrupted = run(folder, tmp_path / "again.parquet", model)
    same(output, uninterrupted.path)
    with pytest.raises(ValueError, match="from its beginning only"):
        run(folder, tmp_path / "two.parquet", model, num_proc=2)


# ---------------------------------------------------------------- processes, Ray, memory


@pytest.mark.slow
def test_processes_change_nothing(monkeypatch, spectra, whole, model, tmp_path):
    output = tmp_path / "catalogue.parquet"
    interrupted(monkeypatch, spectra, output, model, after=1)
    assert run(spectra, output, model, num_proc=2).kept == 4
    same(output, whole)


class KillOnce(threading.Thread):
    """Kills the first Ray worker that is found at work on a part after another one was written."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.killed, self.over, self.niceness = folder, None, False, None

    def run(self):
        while self.killed is None and not self.over:
            if any(self.folder.glob("part-*.parquet")):
                for process in psutil.Process().children(recursive=True):
                    try:
                        at_work = "MapBatches(RayWorker)).submit" in " ".join(process.cmdline())
                        if at_work and self.killed is None:
                            self.niceness = process.nice()
                            process.kill()
                            self.killed = process.pid
                    except psutil.Error:
                        continue
            time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_ray_worker_changes_nothing(dataset, model, tmp_path):
    pytest.importorskip("ray")
    here = run(dataset, tmp_path / "here.parquet", model, part_rows=10)
    output = tmp_path / "ray.parquet"
    killer = KillOnce(parts_folder(output))
    killer.start()
    made = run(dataset, output, model, part_rows=10, num_proc=2, ray="local")
    killer.over = True
    killer.join()
    assert killer.killed is not None, "no worker was caught at work"
    assert killer.niceness == psutil.Process().nice()  # with Ray's 15 it would wait for all others here
    assert made.rows == 250
    same(output, here.path)


def test_a_part_that_kills_every_worker_does_not_do_so_for_ever(dataset, model, tmp_path):
    """Ray Data itself would try again without end."""
    folder, survey = tmp_path / "parts", open_survey(dataset)
    folder.mkdir()
    labeller = Labeller(str(model))
    plan = catalogue.make_plan(survey, labeller, Conventions(), 10, abstain=False, check=True)
    worker = catalogue.RayWorker(catalogue.Job(survey, {"model": str(model)}, plan, folder))
    for _ in range(catalogue.RETRIES):
        worker._note_try(7)  # and then it died
    assert worker({"number": np.array([7])})["rows"].tolist() == [10]
    with pytest.raises(OSError, match=r"died 4 times over rows 70 to 79.*finished parts are kept"):
        worker({"number": np.array([7])})


def test_without_ray_it_is_said_how_to_get_it(monkeypatch, spectra, model, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'spectrafm_hf\[ray\]'"):
        run(spectra, tmp_path / "catalogue.parquet", model, ray="local")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_survey(model, tmp_path, processes):
    """All spectra as they are read would take 250 MB, and the process stays within 80 of what it had at a fifth."""
    n_groups, grid, folder = 12, np.linspace(4990.0, 5410.0, 20_000), tmp_path / "stars"
    folder.mkdir()
    flux = np.concatenate([flux_of(number, grid) for number in range(64)]).astype(np.float32)
    columns = {"flux": flux, "wavelength": np.tile(grid, 64)}
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(one), grid.size) for name, one in columns.items()}
    table = pa.table({"object_id": [f"HD{number}" for number in range(64)]} | lists)
    with pq.ParquetWriter(folder / "train.parquet", table.schema) as writer:
        for _ in range(n_groups):
            writer.write_table(table)
    output = tmp_path / "catalogue.parquet"
    process = processes.Process(target=run, args=(folder, output, model), kwargs={"part_rows": 32, "batch_size": 32})
    process.start()
    sizes: dict[int, float] = {}
    while process.is_alive():
        done = len(parts(output))
        try:
            sizes[done] = max(sizes.get(done, 0.0), psutil.Process(process.pid).memory_info().rss / 1e6)
        except psutil.Error:
            break
        time.sleep(0.01)
    process.join()
    assert process.exitcode == 0
    assert pq.read_metadata(output).num_rows == 64 * n_groups
    early = max(size for done, size in sizes.items() if 0 < done <= 5)
    late = max(size for done, size in sizes.items() if done > 5)
    assert max(sizes) >= 22
    assert late - early < 80, (early, late)


def test_what_is_told_in_general_leaves_files_that_tell_alone(tmp_path):
    """A LAMOST file at +24 km/s beside a text that tells nothing, both labelled as from a folder of its own."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    lamost, text = shutil.copy(example("optical-solar-like"), mixed), mixed / "z.txt"
    star = read_spectrum(example("optical-metal-poor"))
    np.savetxt(text, np.column_stack([star.wavelength, star.flux]), header="wavelength flux")
    rest = Conventions(medium="vacuum", velocity=0.0)
    made = label_survey(mixed, tmp_path / "mixed.parquet", conventions=rest)
    rows = pq.read_table(made.path).to_pylist()
    assert "its own redshift" in rows[0]["assumed"]
    assert "redshift" not in rows[1]["assumed"]
    for row, alone in zip(rows, (predict(lamost), predict(text, medium="vacuum", velocity=0.0)), strict=True):
        assert row["teff"] == pytest.approx(alone["value"][0], rel=1e-4)
