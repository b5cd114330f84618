"""What a training tells while it runs, in a real Trainer with the real Trackio; and what it must not tell or change."""

import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import LABEL_SCALE, on_ranks, tiny_extractor, tiny_model
from huggingface_hub import constants
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TrackioCallback

from spectrafm_hf.collation import SpectrumCollator, SyntheticSpectra
from spectrafm_hf.stages import leave_process_group
from spectrafm_hf.tracking import LocalTrackio, Throughput, ValidationScatter, default_report_to, run_name, track

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}  # so that a random number drawn too many shows
UNITS = {"teff": "K", "logg": "dex", "fe_h": "dex"}
KEYS = {f"validation_{name}_{figure}_{unit}" for name, unit in UNITS.items() for figure in ("scatter", "bias")}
CANARY = "hf_canaryThatMustNotSing"


def tracked(project):
    """What Trackio has of a project: name of the run -> its logs, oldest first."""
    from trackio.sqlite_storage import SQLiteStorage

    records = SQLiteStorage.get_run_records(project)
    assert len({record["name"] for record in records}) == len(records)
    return {r["name"]: SQLiteStorage.get_logs(project, r["name"], run_id=r["id"]) for r in records}


def store_file(project):
    from trackio.sqlite_storage import SQLiteStorage

    return Path(SQLiteStorage.get_project_db_path(project))


class SlowSpectra(SyntheticSpectra):
    """A batch takes `seconds` to make."""

    seconds = 0.0

    def __getitems__(self, indices):
        time.sleep(self.seconds)
        return super().__getitems__(indices)


def validation(extractor, n=21, every=3, kind=ValidationScatter):
    """Synthetic stars that no training here shows; every third without log g, the last without any label."""
    spectra = SyntheticSpectra(extractor, n, seed=77)
    labels = spectra.unobserved(range(n))[0]
    labels[::3, 1] = np.nan
    labels[-1] = np.nan
    return kind(extractor, [spectra[i] for i in range(n)], labels, every=every, batch_size=8)


def trainer_of(folder, project, model=None, rows=32, callbacks=(), seconds=0.0, **changes):
    extractor = tiny_extractor()
    spectra = SlowSpectra(extractor, rows, seed=0)
    spectra.seconds = seconds
    told = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 1e-3,
        "logging_steps": 2, "save_steps": 3, "use_cpu": True, "disable_tqdm": True, "seed": 5,
        "remove_unused_columns": False, "label_names": ["labels", "label_errors"], "max_grad_norm": 0.0,
        "report_to": default_report_to(), "project": project, "run_name": "a run",
    }  # fmt: skip
    return Trainer(
        model=tiny_model(**DROPOUT) if model is None else model, args=TrainingArguments(**told | changes),
        train_dataset=spectra, data_collator=SpectrumCollator(extractor), callbacks=list(callbacks),
    )  # fmt: skip


def by_hand(checkpoint):
    """Bias and scatter of the model saved in a folder: star by star, in float32, without any of our code for it."""
    told = validation(tiny_extractor())
    model = tiny_model()
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    residuals = []
    for row, truth in zip(told.rows, told.labels, strict=True):
        batch = {key: torch.from_numpy(row[key])[None] for key in ("flux", "wavelength", "attention_mask")}
        with torch.no_grad():
            mean = model(**batch).label_mean[0].double().numpy()
        residuals.append(mean * told.extractor.label_scale + told.extractor.label_center - truth)
    bias = np.nanmedian(residuals, axis=0)
    scatter = 1.4826 * np.nanmedian(np.abs(residuals - bias), axis=0)
    return {
        f"validation_{name}_{figure}_{unit}": float(values[column])
        for column, (name, unit) in enumerate(UNITS.items())
        for figure, values in (("bias", bias), ("scatter", scatter))
    }


def assert_by_hand(figures, checkpoint):
    """To 1e-4, or to 1e-5 of a label's spread, which is what float32 keeps of a bias of a few K in batches of 8."""
    expected = by_hand(checkpoint)
    assert figures.keys() == expected.keys()
    for name, spread in zip(UNITS, LABEL_SCALE, strict=True):
        for key in (key for key in expected if name in key):
            assert figures[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5 * spread), key


def validated(history):
    """step -> the validation figures logged there."""
    return {e["step"]: {key: e[key] for key in KEYS} for e in history if "validation_n" in e}


@pytest.fixture
def project():
    return f"test-{uuid.uuid4().hex}"


# ---------------------------------------------------------------- who is told


def who_is_told(said):
    """In a process where nothing has been tracked yet."""
    said.put((default_report_to(), "trackio" in sys.modules))


def test_trackio_is_the_default_where_it_is_installed(monkeypatch, fresh_processes):
    said = fresh_processes.SimpleQueue()
    process = fresh_processes.Process(target=who_is_told, args=(said,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert said.get() == (["trackio"], False)  # found without the half second of its import
    assert "trackio" in TrainingArguments(report_to=default_report_to()).report_to
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    assert default_report_to() == []


@pytest.mark.parametrize("mixed", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_figures_land_in_history_trackio_and_bar_and_are_those_of_the_model_at_that_step(
    mixed, tmp_path, project, capsys
):
    trainer = trainer_of(tmp_path, project, disable_tqdm=False, **mixed)
    track(trainer, validation(tiny_extractor()))
    trainer.train()

    history = trainer.state.log_history
    found = validated(history)
    assert list(found) == [3, 6, 8]  # every third step, and the last
    for step, figures in found.items():
        assert_by_hand(figures, tmp_path / f"checkpoint-{step}")
    assert found[3] != found[6]
    assert {entry["validation_n"] for entry in history if "validation_n" in entry} == {20}

    losses = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in losses] == [2, 4, 6, 8]  # none is lost where a prediction falls on its step
    assert all(entry["grad_norm"] > 0 for entry in losses)  # although nothing is clipped
    speeds = {entry["step"]: entry["spectra_per_s"] for entry in history if "spectra_per_s" in entry}
    assert list(speeds) == [2, 4, 6, 8]
    assert min(speeds.values()) > 0

    (logs,) = tracked(project).values()
    wanted = {"loss", "grad_norm", "spectra_per_s", "validation_n", *KEYS}
    stored = {(log["train/global_step"], key): log[f"train/{key}"] for log in logs for key in wanted & logged(log)}
    assert stored == {(entry["step"], key): entry[key] for entry in history for key in wanted & entry.keys()}
    assert len(stored) == 4 * 3 + 3 * 7

    shown = capsys.readouterr().out
    assert all(f"'{key}'" in shown for key in wanted)


def logged(log):
    return {key.removeprefix("train/") for key in log}


def test_a_resumed_run_goes_on_in_its_run_and_one_of_another_name_has_its_own(tmp_path, project):
    for steps, resume in ((3, None), (6, True)):
        trainer = trainer_of(tmp_path, project, max_steps=steps, logging_steps=1)
        track(trainer)
        trainer.train(resume_from_checkpoint=resume)
    other = trainer_of(tmp_path / "other", project, max_steps=1, logging_steps=1, run_name="another run")
    track(other)
    other.train()
    runs = tracked(project)
    assert set(runs) == {"a run", "another run"}
    assert [log["train/global_step"] for log in runs["a run"] if "train/loss" in log] == [1, 2, 3, 4, 5, 6]
    assert len({log["step"] for log in runs["a run"]}) == len(runs["a run"])


def test_runs_are_named_after_stage_seed_and_beginning():
    first, later = run_name("2-observed", 3, 1.7e9), run_name("2-observed", 3, 1.7e9 + 5)
    assert first.startswith("2-observed-seed3-20231")
    assert first == run_name("2-observed", 3, 1.7e9) != later


def test_a_callback_that_cannot_log_says_what_to_do(tmp_path, project):
    trainer = trainer_of(tmp_path, project, callbacks=[validation(tiny_extractor())], report_to="none")
    with pytest.raises(ValueError, match=r"ValidationScatter cannot log: .*tracking.track\(trainer"):
        trainer.train()


@pytest.mark.parametrize(
    ("rows", "labels", "every", "message"),
    [
        (2, np.zeros((3, 3)), 1, r"shape \(2, 3\), got shape \(3, 3\) with 9"),
        (2, np.zeros((2, 2)), 1, r"teff, logg, fe_h: shape \(2, 3\), got shape \(2, 2\)"),
        (2, np.full((2, 3), np.nan), 1, "with 0 known values"),
        (0, np.zeros((0, 3)), 1, "at least one spectrum"),
        (2, np.zeros((2, 3)), 0, "every and batch_size must be at least 1, got 0"),
    ],
)
def test_a_validation_set_that_does_not_fit_is_refused(extractor, rows, labels, every, message):
    with pytest.raises(ValueError, match=message):
        ValidationScatter(extractor, [{}] * rows, labels, every)


# ---------------------------------------------------------------- throughput


class LateStart(TrainerCallback):
    def on_epoch_begin(self, *args, **kwargs):
        time.sleep(1.5)


class SlowValidation(ValidationScatter):
    def figures(self, model):
        time.sleep(0.4)
        return super().figures(model)


def clocked(history, spectra):
    """Speeds logged, each after so many spectra; seconds they took by our clock, and by the Trainer's for all."""
    speeds = [entry["spectra_per_s"] for entry in history if "spectra_per_s" in entry]
    return speeds, sum(spectra / speed for speed in speeds), history[-1]["train_runtime"]


def test_throughput_counts_neither_validation_nor_what_comes_before_the_first_step(tmp_path, project):
    """A batch of 4 takes 0.1 s to make: at most 40 spectra/s. The loader is a batch or two ahead."""
    trainer = trainer_of(tmp_path, project, rows=32, seconds=0.1, callbacks=[LateStart()], save_strategy="no")
    track(trainer, validation(tiny_extractor(), every=1, kind=SlowValidation))
    trainer.train()
    speeds, seconds, runtime = clocked(trainer.state.log_history, 8)
    assert len(speeds) == 4
    assert max(speeds[1:3]) <= 40
    assert 6 * 0.1 <= seconds <= runtime - 8 * 0.4 - 1.5


def test_throughput_alone_is_logged_once_per_epoch_where_the_loss_is(tmp_path, project):
    trainer = trainer_of(
        tmp_path, project, rows=8, num_train_epochs=3, logging_strategy="epoch", gradient_accumulation_steps=2,
        save_strategy="no", report_to="none", seconds=0.1,
    )  # fmt: skip
    track(trainer, Throughput())
    trainer.train()
    history = trainer.state.log_history
    assert [e["step"] for e in history if "spectra_per_s" in e] == [e["step"] for e in history if "loss" in e]
    assert [e["step"] for e in history if "spectra_per_s" in e] == [1, 2, 3]
    _, seconds, runtime = clocked(history, 8)
    assert 4 * 0.1 <= seconds <= runtime


# ---------------------------------------------------------------- the training stays what it is


class Endings(TrainerCallback):
    """State of everything random, the threads and the mode, before every step."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        numpy_state = np.random.get_state()  # noqa: NPY002
        self.seen.append(
            (
                torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate(),
                torch.get_num_threads(), [module.training for module in model.modules()] if state.global_step else None,
            )
        )  # fmt: skip


def adapted():
    return peft.get_peft_model(
        tiny_model(**DROPOUT), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    )


@pytest.mark.parametrize("kind", ["float32", "bf16", "accumulated", "lora", "lora in bf16"])
def test_training_is_bit_equal_with_and_without_being_watched(kind, tmp_path, project):
    changes = {"bf16": "bf16" in kind, "gradient_accumulation_steps": 2 if kind == "accumulated" else 1}
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = adapted() if "lora" in kind else tiny_model(**DROPOUT)
        endings = Endings()
        trainer = trainer_of(
            tmp_path / str(watched), project, model, callbacks=[endings], save_strategy="no",
            report_to=default_report_to() if watched else "none", **changes,
        )  # fmt: skip
        if watched:
            track(trainer, validation(tiny_extractor(), every=1))
        trainer.train()
        steps = 4 if kind == "accumulated" else 8
        assert len(validated(trainer.state.log_history)) == (steps if watched else 0)
        ends.append((model.state_dict(), endings.seen))
    (plain, states), (watched_weights, watched_states) = ends
    assert states == watched_states
    assert plain.keys() == watched_weights.keys()
    assert all(torch.equal(plain[name], watched_weights[name]) for name in plain)


def test_adapters_are_part_of_what_is_asked(tmp_path, project):
    torch.manual_seed(0)
    model = adapted()
    trainer = trainer_of(tmp_path, project, model, save_strategy="no", learning_rate=0.1)
    told = validation(tiny_extractor())
    track(trainer, told)
    trainer.train()
    last = validated(trainer.state.log_history)[8]
    assert last == pytest.approx({key: told.figures(model.merge_and_unload())[key] for key in KEYS}, rel=1e-4)
    untrained = told.figures(tiny_model(**DROPOUT))
    assert abs(last["validation_teff_bias_K"] - untrained["validation_teff_bias_K"]) > 1.0


def test_a_model_that_answers_nan_is_named_once_and_trains_on(caplog):
    told = validation(tiny_extractor())
    model = tiny_model()
    with torch.no_grad():
        model.head.mean_bias[0] = torch.nan
    with caplog.at_level(logging.WARNING):
        figures = [told.figures(model) for _ in range(2)]
    assert set(figures[1]) == {"validation_n", *KEYS} - {"validation_teff_scatter_K", "validation_teff_bias_K"}
    assert [r.getMessage() for r in caplog.records if "no longer finite" in r.getMessage()] == [
        "the model's teff is no longer finite on the validation spectra: no figures"
    ]


def test_a_label_of_no_spectrum_is_left_out(extractor):
    told = validation(extractor)
    told.labels[:, 1] = np.nan
    assert set(told.figures(tiny_model())) == {"validation_n"} | {key for key in KEYS if "logg" not in key}


# ---------------------------------------------------------------- several processes


def on_two_processes(folder):
    """On each of the two: a batch of 2 takes 0.2 s to make on each."""
    os.environ["TRACKIO_DIR"] = str(folder / "store")
    for watched in (False, True):
        trainer = trainer_of(
            folder / str(watched), "two", per_device_train_batch_size=2, rows=32, seconds=0.2,
            report_to=default_report_to() if watched else "none",
        )  # fmt: skip
        if watched:
            track(trainer, validation(tiny_extractor()))
        trainer.train()
        (folder / f"{watched}-{os.environ['RANK']}.json").write_text(json.dumps(trainer.state.log_history))
        del trainer
    leave_process_group()


@pytest.mark.slow
def test_on_two_processes_the_first_predicts_alone_and_nobody_waits_for_ever(tmp_path, fresh_processes):
    on_ranks(fresh_processes, on_two_processes, tmp_path)
    first, second = (json.loads((tmp_path / f"True-{rank}.json").read_text()) for rank in (0, 1))
    for step, figures in validated(first).items():
        assert_by_hand(figures, tmp_path / "True" / f"checkpoint-{step}")
        weights, expected = (
            load_file(tmp_path / str(watched) / f"checkpoint-{step}" / "model.safetensors") for watched in (True, False)
        )
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert list(validated(first)) == [3, 6, 8]
    assert not validated(second)
    speeds, seconds, runtime = clocked(first, 8)
    assert max(speeds[1:3]) <= 20
    assert 6 * 0.2 <= seconds <= runtime  # twice as long, were the spectra of one process all that count
    assert (tmp_path / "store" / "two.db").is_file()


def test_a_model_in_pieces_is_not_asked(caplog, extractor):
    """Process 0 alone would wait for the others' pieces; here it is the only one of its group."""
    model = tiny_model()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        told, tells = validation(extractor, every=1), []
        told.log = tells.append
        trainer_args = TrainingArguments(report_to="none", use_cpu=True)
        state = Trainer(model=tiny_model(), args=trainer_args).state
        control = type("Control", (), {"should_log": True, "should_training_stop": True})()
        with caplog.at_level(logging.WARNING):
            told.on_train_begin(trainer_args, state, control, model=model)
        told.on_step_begin(trainer_args, state, control, model=model)
        state.global_step += 1
        told.on_step_end(trainer_args, state, control, model=model)
    finally:
        torch.distributed.destroy_process_group()
    assert [list(told) for told in tells] == [["spectra_per_s"]]
    assert "lies in pieces on several processes" in caplog.text


# ---------------------------------------------------------------- Trackio may fail, and keeps to itself


@pytest.fixture
def silent_hub():
    """An address that takes every call and never answers: host name and what was said to it."""
    heard, held = [], []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                connection.settimeout(5)
                heard.append(connection.recv(1000))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", heard
    for connection in held:
        connection.close()


def test_a_damaged_store_only_warns(tmp_path, project):
    import trackio  # noqa: F401

    store_file(project).parent.mkdir(parents=True, exist_ok=True)
    store_file(project).write_bytes(b"this is no database " * 500)
    trainer = trainer_of(tmp_path, project)
    track(trainer, validation(tiny_extractor()))
    with pytest.warns(UserWarning, match="file is not a database"):
        trainer.train()
    assert list(validated(trainer.state.log_history)) == [3, 6, 8]
    assert store_file(project).read_bytes() == b"this is no database " * 500


def test_a_tracker_that_raises_is_named_once_and_training_goes_on(tmp_path, project, monkeypatch, caplog):
    """Trackio itself refuses a server that is no address; transformers lets that end the training."""
    monkeypatch.setenv("TRACKIO_SERVER_URL", "nowhere")
    with pytest.raises(ValueError, match="server_url"):
        trainer_of(tmp_path / "stock", project).train()
    trainer = trainer_of(tmp_path / "ours", project)
    track(trainer, validation(tiny_extractor()))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert list(validated(trainer.state.log_history)) == [3, 6, 8]
    said = [record.getMessage() for record in caplog.records if "Trackio failed" in record.getMessage()]
    assert len(said) == 1
    assert "ValueError: `server_url` must be a full URL" in said[0]


def test_a_push_of_the_model_takes_no_figures_along(tmp_path, project, monkeypatch):
    """The Hub cannot be reached here, so the stock callback, which makes a Space of them, fails at it."""
    monkeypatch.setenv("HF_TOKEN", CANARY)
    stock, ours = (trainer_of(tmp_path / name, project, max_steps=1) for name in ("stock", "ours"))
    track(ours)
    for trainer in (stock, ours):
        trainer.train()
    with pytest.raises(Exception, match="offline mode is enabled"):
        stock.callback_handler.on_push_begin(stock.args, stock.state, stock.control)
    ours.callback_handler.on_push_begin(ours.args, ours.state, ours.control)
    (callback,) = (c for c in ours.callback_handler.callbacks if isinstance(c, TrackioCallback))
    assert isinstance(callback, LocalTrackio)
    assert not callback._failed


def alone(folder):
    trainer = trainer_of(folder, "alone", per_device_train_batch_size=8)
    track(trainer, validation(tiny_extractor()))
    trainer.train()
    trainer.save_model()
    told = {"hub": constants.ENDPOINT, "offline": constants.HF_HUB_OFFLINE, "ended": time.time()}
    sys.stdout.write(json.dumps(told) + "\n")


def test_no_token_is_stored_and_the_hub_is_not_asked_although_it_could_be(tmp_path, silent_hub):
    address, heard = silent_hub
    store, folder = tmp_path / "store", tmp_path / "run"
    # The Hub is read when huggingface_hub is imported: before conftest.py names one that is not there.
    code = "import sys, pathlib, huggingface_hub.constants; sys.path.insert(0, sys.argv[1]); import test_tracking; "
    code += "test_tracking.alone(pathlib.Path(sys.argv[2]))"
    told = {"HF_TOKEN": CANARY, "TRACKIO_DIR": str(store), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"} | told,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    last = json.loads(ran.stdout.strip().splitlines()[-1])
    assert (last["hub"], last["offline"]) == (address, False)
    assert time.time() - last["ended"] < 20
    assert heard == []
    assert (store / "alone.db").stat().st_size > 0
    files = [path for root in (store, folder) for path in root.rglob("*") if path.is_file()]
    assert {"trainer_state.json", "training_args.bin", "model.safetensors"} <= {path.name for path in files}
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in ran.stdout + ran.stderr


def alone_with_this_store(store, folder, complaints):
    """In a process of its own; what it says on standard error goes to a file."""
    os.environ["TRACKIO_DIR"] = str(store)
    with complaints.open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    alone(folder)


def test_a_store_that_cannot_be_written_only_warns(tmp_path, fresh_processes):
    (tmp_path / "file").write_text("no folder")
    told = tmp_path / "file" / "store", tmp_path / "run", tmp_path / "complaints"
    process = fresh_processes.Process(target=alone_with_this_store, args=told)
    process.start()
    process.join(120)
    complaints = (tmp_path / "complaints").read_text()
    assert process.exitcode == 0, complaints[-3000:]
    assert complaints.count("trackio failed to flush metric logs") == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert list(validated(state["log_history"])) == [3, 4]
