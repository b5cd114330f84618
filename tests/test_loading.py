"""Rows of a built dataset, streamed or stored, become batches; ranks and resumes neither lose nor repeat any."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import on_ranks, star_flux, tiny_extractor, tiny_model
from datasets import Dataset, Features, List, Value, load_dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from spectrafm_hf.collation import SpectrumCollator
from spectrafm_hf.loading import RowEncoder, StoredSpectra, stream_rows
from spectrafm_hf.stages import leave_process_group

WAVELENGTH = np.arange(4990.0, 5410.0, 0.9)
N_SHARDS, PER_SHARD = 4, 10
LABELS = ("teff", "logg", "fe_h")


def write_shards(folder, n_shards=N_SHARDS, per_shard=PER_SHARD):
    """A dataset of fake stars whose line depth follows fe_h; star s-i is row i of shard s."""
    n = WAVELENGTH.size
    features = Features(
        {"object_id": Value("string"), "flux": List(Value("float32"), length=n)}
        | {"bad_pixel": List(Value("bool"), length=n)}
        | {name + suffix: Value("float32") for name in LABELS for suffix in ("", "_err")}
    )
    rng = np.random.default_rng(0)
    for shard in range(n_shards):
        fe_h = rng.uniform(-2, 0.4, per_shard).astype(np.float32)
        rows = {
            "object_id": [f"{shard}-{i}" for i in range(per_shard)],
            "flux": [star_flux(WAVELENGTH, {5185.05: 0.6 * 10 ** (0.3 * value)}).astype(np.float32) for value in fe_h],
            "bad_pixel": rng.random((per_shard, n)) < 0.02,
            "teff": rng.uniform(4000, 6000, per_shard).astype(np.float32),
            "teff_err": np.full(per_shard, 50, np.float32),
            "logg": rng.uniform(1, 5, per_shard).astype(np.float32),
            "logg_err": np.full(per_shard, 0.1, np.float32),
            "fe_h": fe_h,
            "fe_h_err": [None if i % 2 else 0.05 for i in range(per_shard)],
        }
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"train-{shard:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("dataset"))


def streamed(folder):
    return load_dataset("parquet", data_files=sorted(map(str, folder.glob("*.parquet"))), split="train", streaming=True)


def stored(folder, tmp_path):
    files = sorted(map(str, folder.glob("*.parquet")))
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))


def test_streamed_and_stored_rows_are_the_same(folder, tmp_path, extractor):
    from_stream = list(stream_rows(streamed(folder), extractor, WAVELENGTH, buffer_size=0, endless=False))
    on_disk = StoredSpectra(stored(folder, tmp_path), extractor, WAVELENGTH)
    assert len(from_stream) == len(on_disk) == N_SHARDS * PER_SHARD
    for row, other in zip(from_stream, on_disk.__getitems__(range(len(on_disk))), strict=True):
        for name in ("flux", "wavelength", "attention_mask", "labels", "label_errors"):
            assert np.array_equal(np.asarray(row[name]), other[name]), name


def test_rows_are_what_the_extractor_makes_of_the_spectrum(folder, tmp_path, extractor):
    """Training must see what prediction sees."""
    dataset = stored(folder, tmp_path).with_format("numpy")
    row = StoredSpectra(dataset, extractor, WAVELENGTH)[7]
    spectrum = dataset[7]
    expected = extractor(
        spectrum["flux"],
        WAVELENGTH,
        spectrum["bad_pixel"],
        labels=[[spectrum[name] for name in LABELS]],
        label_errors=[[50, 0.1, np.nan]],  # odd rows publish no error of fe_h
    )
    for name in ("flux", "wavelength", "attention_mask", "labels", "label_errors"):
        assert np.array_equal(row[name], expected[name][0]), name


def test_both_feed_the_collator_and_the_model(folder, tmp_path, extractor):
    model, collate = tiny_model(), SpectrumCollator(extractor)
    stream = stream_rows(streamed(folder), extractor, WAVELENGTH, seed=3)
    for source in (stream, StoredSpectra(stored(folder, tmp_path), extractor, WAVELENGTH)):
        batch = next(iter(DataLoader(source, batch_size=5, collate_fn=collate)))
        assert batch["wavelength"].dtype == torch.float64
        assert batch["labels"].shape == (5, 3)
        assert torch.isfinite(model(**batch).loss)


def test_a_window_hides_the_rest_and_a_context_is_drawn_by_star_and_place(folder, tmp_path, extractor):
    dataset = stored(folder, tmp_path)
    row = StoredSpectra(dataset, extractor, WAVELENGTH, window=(5100.0, 5200.0))[0]
    seen = row["wavelength"][row["attention_mask"] > 0]
    assert seen.min() >= 5100
    assert seen.max() <= 5200
    starts = []
    for seed in range(6):
        row = StoredSpectra(dataset, extractor, WAVELENGTH, seed=seed, context=5)[0]
        assert len(row["flux"]) == 5 * extractor.patch_size
        starts.append(row["wavelength"][0])
    assert len(set(starts)) > 1
    again = StoredSpectra(dataset, extractor, WAVELENGTH, seed=5, context=5)[0]
    assert again["wavelength"][0] == starts[5]


def test_wavelengths_of_ragged_rows_stay_double(tmp_path, extractor):
    wavelength = WAVELENGTH + 1e-7 * np.arange(WAVELENGTH.size)
    row = {"object_id": "a", "wavelength": wavelength, "flux": star_flux(wavelength), "bad_pixel": wavelength < 0}
    row |= {name + suffix: 1.0 for name in LABELS for suffix in ("", "_err")}
    dataset = Dataset.from_list([row])
    expected = extractor(row["flux"], wavelength, row["bad_pixel"])
    for source in (
        stream_rows(dataset.to_iterable_dataset(), extractor, buffer_size=0),
        StoredSpectra(dataset, extractor),
    ):
        assert np.array_equal(next(iter(source))["flux"], expected["flux"][0])


def test_ragged_rows_bring_their_wavelengths(extractor):
    encoder = RowEncoder(extractor)
    columns = {"object_id": ["a", "b"], "bad_pixel": [np.zeros(467, bool), np.zeros(200, bool)]}
    columns["wavelength"] = [WAVELENGTH, WAVELENGTH[100:300] + 0.3]
    columns["flux"] = [star_flux(wavelength) for wavelength in columns["wavelength"]]
    columns |= {name + suffix: [1.0, None] for name in LABELS for suffix in ("", "_err")}
    rows = encoder(columns, [0, 1])
    assert len(rows[1]["flux"]) < len(rows[0]["flux"])
    assert (rows[1]["labels"] == -100).all()


def test_a_row_without_a_good_pixel_is_left_out_of_a_stream_and_named(folder, tmp_path, extractor, caplog):
    bad = stored(folder, tmp_path).map(lambda row, i: {"bad_pixel": [i == 3] * WAVELENGTH.size}, with_indices=True)
    stream = stream_rows(bad.to_iterable_dataset(), extractor, WAVELENGTH, buffer_size=0, endless=False)
    assert len(list(stream)) == N_SHARDS * PER_SHARD - 1
    assert "row 3, 0-3, is left out" in caplog.text
    with pytest.raises(ValueError, match="row 3 has no good pixel"):
        StoredSpectra(bad, extractor, WAVELENGTH)[3]


def test_what_is_missing_is_named(folder, extractor):
    columns = {"object_id": ["a"], "flux": [np.ones(467)], "bad_pixel": [np.zeros(467, bool)]}
    with pytest.raises(ValueError, match="lacks teff, teff_err, logg"):
        RowEncoder(extractor, WAVELENGTH)(columns, [0])
    columns |= {name + suffix: [1.0] for name in LABELS for suffix in ("", "_err")}
    with pytest.raises(ValueError, match=r"lacks wavelength.*read_wavelength_grid"):
        RowEncoder(extractor)(columns, [0])
    with pytest.raises(ValueError, match="9000-9100 lies outside"):
        RowEncoder(extractor, WAVELENGTH, window=(9000.0, 9100.0))


def test_shuffling_is_a_function_of_the_seed_and_goes_round(folder, extractor):
    def labels(seed, n):
        rows = iter(stream_rows(streamed(folder), extractor, WAVELENGTH, seed=seed, buffer_size=8))
        return [float(np.asarray(next(rows)["labels"])[2]) for _ in range(n)]

    n = N_SHARDS * PER_SHARD
    first = labels(0, 3 * n)
    assert first == labels(0, 3 * n)
    assert first != labels(1, 3 * n)
    assert len(set(first)) == n  # no row is lost


def test_an_unshuffled_stream_goes_on_from_its_state(folder, extractor):
    rows = stream_rows(streamed(folder), extractor, WAVELENGTH, buffer_size=0, endless=False)
    everything = [np.asarray(row["labels"]) for row in rows]
    for stop in (1, 17, 25):
        taken, state = [], None
        for row in (fresh := stream_rows(streamed(folder), extractor, WAVELENGTH, buffer_size=0, endless=False)):
            taken.append(np.asarray(row["labels"]))
            if len(taken) == stop:
                state = json.loads(json.dumps(fresh.state_dict()))
                break
        later = stream_rows(streamed(folder), extractor, WAVELENGTH, buffer_size=0, endless=False)
        later.load_state_dict(state)
        taken += [np.asarray(row["labels"]) for row in later]
        assert np.array_equal(taken, everything)


class StopAt(TrainerCallback):
    """Ends a run early, as a kill between two checkpoints would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def train(folder, output, callbacks=(), resume=None, max_steps=14):
    extractor = tiny_extractor()
    arguments = TrainingArguments(
        str(output), max_steps=max_steps, per_device_train_batch_size=4, save_steps=5, learning_rate=1e-3, seed=0,
        use_cpu=True, remove_unused_columns=False, disable_tqdm=True, accelerator_config={"dispatch_batches": False},
    )  # fmt: skip
    trainer = Trainer(
        tiny_model(),
        arguments,
        train_dataset=stream_rows(streamed(folder), extractor, WAVELENGTH, seed=1, buffer_size=16, context=10),
        data_collator=SpectrumCollator(extractor),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_training_from_the_stream_goes_on_after_an_interruption_with_the_same_weights(folder, tmp_path):
    """40 rows, 56 seen: the interruption lies in the second pass, where resuming is hard."""
    whole = train(folder, tmp_path / "whole").model.state_dict()
    train(folder, tmp_path / "broken", callbacks=[StopAt(12)])
    resumed = train(folder, tmp_path / "broken", resume=str(tmp_path / "broken/checkpoint-10")).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def train_and_resume(folder, output):
    """On each of two ranks: it says which rows it read, and that an interruption changes no weight."""
    seen, real = set(), RowEncoder.__call__

    def spy(self, columns, indices):
        seen.update(map(str, columns["object_id"]))
        return real(self, columns, indices)

    RowEncoder.__call__ = spy
    whole = train(folder, output / "whole").model.state_dict()
    (output / f"seen-{os.environ['RANK']}").write_text(json.dumps(sorted(seen)))
    train(folder, output / "broken", callbacks=[StopAt(12)])
    resumed = train(folder, output / "broken", resume=str(output / "broken/checkpoint-10")).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole), "the weights differ"
    leave_process_group()


@pytest.mark.slow
def test_each_of_two_ranks_reads_its_own_shards_and_resumes_exactly(folder, tmp_path, fresh_processes):
    on_ranks(fresh_processes, train_and_resume, folder, tmp_path)
    first, second = (set(json.loads((tmp_path / f"seen-{rank}").read_text())) for rank in (0, 1))
    assert len(first) == len(second) == N_SHARDS * PER_SHARD // 2
    assert not first & second


# ---------------------------------------------------------------- spectra on their own pixels


def native_columns(n=6, n_pixels=700):
    rng = np.random.default_rng(1)
    wavelength = 15_200 * np.exp(1.4e-5 * np.arange(n_pixels))
    columns = {"object_id": [f"star {i}" for i in range(n)], "flux": 1 + 0.02 * rng.standard_normal((n, n_pixels))}
    columns |= {"bad_pixel": rng.random((n, n_pixels)) < 0.05, "ivar": np.full((n, n_pixels), 50.0**2)}
    columns["ivar"][columns["bad_pixel"]] = 0.0
    columns |= {"resolving_power": [22_500.0] * (n - 1) + [None]}
    return wavelength, columns | {name + suffix: [0.0] * n for name in LABELS for suffix in ("", "_err")}


def native_extractor(**changes):
    told = {"patch_size": 32, "pixel_width": None, "smoothing_length": None, "wavelength_range": (15_000.0, 17_000.0)}
    return tiny_extractor(**told | changes)


def test_uncertainty_and_resolving_power_come_with_the_pixels():
    wavelength, columns = native_columns()
    rows = RowEncoder(native_extractor(), wavelength)(columns, range(6))
    assert "resolving_power" not in rows[5]
    for row, bad in zip(rows, columns["bad_pixel"], strict=True):
        there = row["wavelength"] > 0
        np.testing.assert_array_equal(row["wavelength"][there], wavelength)
        np.testing.assert_allclose(row["flux_error"][there], np.where(bad, 0, 0.02), rtol=1e-6)
    assert (rows[0]["resolving_power"][rows[0]["wavelength"] > 0] == 22_500).all()


def test_a_context_of_own_pixels_begins_anywhere_and_has_its_size():
    wavelength, columns = native_columns()
    encoder = RowEncoder(native_extractor(), wavelength, context=4)
    rows = encoder(columns, range(6))
    starts = [int(np.flatnonzero(wavelength == row["wavelength"][0])[0]) for row in rows]
    assert all(row["flux"].size == 4 * 32 for row in rows)
    assert len({start % 32 for start in starts}) > 2
    again = encoder(columns, range(6))
    assert all(np.array_equal(one["flux"], other["flux"]) for one, other in zip(rows, again, strict=True))


def test_a_context_of_single_pixels_is_scattered():
    wavelength, columns = native_columns()
    rows = RowEncoder(native_extractor(patch_size=1), wavelength, context=100)(columns, range(6))
    for row in rows:
        assert row["flux"].size == row["attention_mask"].sum() == 100
        assert np.ptp(row["wavelength"]) > 0.9 * np.ptp(wavelength)
    assert not np.array_equal(rows[0]["wavelength"], rows[1]["wavelength"])


def test_a_stream_may_hold_rows_of_which_less_is_known():
    wavelength, columns = native_columns()
    told = {name: [np.asarray(v).tolist() for v in values] for name, values in columns.items()}
    dataset = Dataset.from_dict(told).to_iterable_dataset()
    rows = list(stream_rows(dataset, native_extractor(), wavelength, buffer_size=0, endless=False))
    assert len(rows) == 6
    assert not np.asarray(rows[5]["resolving_power"]).any()
    assert np.asarray(rows[4]["resolving_power"]).any()
    assert SpectrumCollator(native_extractor())(rows)["flux_error"].shape == (6, 704)
