"""The whole way over the Hub: a dataset built, pushed and streamed back, three stages each from the one before as it
stands on the Hub, their cards and their Collection, and the same numbers for everybody who loads them."""

import json
import os
import signal
import subprocess
import sys
import venv
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from conftest import ARCHITECTURE, PATCH_SIZE, star_flux
from huggingface_hub import HfApi, ModelCard
from transformers import AutoFeatureExtractor, AutoModel, pipeline
from typer.testing import CliRunner

from spectrafm_hf import SpectraFMForLabelPrediction, cli
from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.grids import read_wavelength_grid
from spectrafm_hf.builders.synthetic import SyntheticConfig
from spectrafm_hf.hub import load_pretrained, push
from spectrafm_hf.stages import few_threads

from .conftest import STRANGER, TOKEN

TRAINING = Path(__file__).parents[2] / "training"
LABELS = ["teff", "logg", "fe_h"]
COMMON = {
    "labels": LABELS,
    "learning_rate": 1.0e-3,
    "per_device_train_batch_size": 16,
    "n_spectra": 128,
    "logging_steps": 2,
    "validations": 2,
    "disable_tqdm": True,
    "use_cpu": True,
}
SYNTHETIC = COMMON | {
    "stage": "1-synthetic",
    "data": "dataset",
    "dataset": "astro/spectra",
    "true_labels": True,
    "window": [5000.0, 17_000.0],  # where all three stages look
    "context": 8,
    "shuffle_buffer": 64,
    "architecture": ARCHITECTURE,
    "extractor": {"patch_size": PATCH_SIZE, "label_center": [5000.0, 3.0, -0.5], "label_scale": [800.0, 1.3, 0.7]},
}
OBSERVED = COMMON | {"stage": "2-observed", "data": "miles", "window": [5000.0, 5400.0]}
FEW_SHOT = COMMON | {
    "stage": "3-few-shot", "data": "miles", "labels": ["fe_h"], "window": [5500.0, 5900.0], "n_stars": 60,
    "fe_h_above": -1.0, "readout": "solve", "n_anchors": 60, "trainable": ["head.log_var"],
}  # fmt: skip

READ = """
import json, sys
import numpy as np
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, pipeline

told, trust = np.load(sys.argv[1]), sys.argv[2] == "trust"
if not trust:
    import spectrafm_hf
spectra = [{name: told[name][i] for name in ("flux", "wavelength", "bad_pixel")} for i in range(len(told["flux"]))]
answers, modules = [], []
for repo, revision in zip(sys.argv[3::2], sys.argv[4::2]):
    loaded = [kind.from_pretrained(repo, revision=revision, trust_remote_code=trust)
              for kind in (AutoConfig, AutoFeatureExtractor, AutoModel)]
    reader = pipeline("stellar-labels", model=repo, revision=revision, trust_remote_code=trust)
    answers.append(reader(spectra))
    modules.append([type(one).__module__ for one in (*loaded, reader)])
ours = sorted(name for name in sys.modules if name.split(".")[0] == "spectrafm_hf")
print(json.dumps({"answers": answers, "modules": modules, "ours": ours}))
"""


@pytest.fixture(scope="module")
def stranger_python(tmp_path_factory):
    """A virtual environment of its own that has transformers, and not this package.

    It borrows the installed packages by a path file; one that Python finds there in turn, such as that of an editable
    installation, is not followed. What an editable installation copies (recipes, cards) is no code.
    """
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    import torch

    (site / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    python = folder / "bin" / "python"
    absent = "import transformers, spectrafm_hf.modeling_spectrafm"
    ran = subprocess.run([python, "-c", absent], capture_output=True, text=True, cwd=folder)
    assert "No module named 'spectrafm_hf" in ran.stderr
    return python


def spectrafm(*told):
    """What the command says, in this process."""
    ran = CliRunner().invoke(cli.app, [*map(str, told)])
    assert ran.exit_code == 0, f"{ran.output} {ran.exception!r}"
    return ran.output


def command(*told, environment, cwd):
    ran = subprocess.run(
        [sys.executable, *map(str, told)], env=os.environ | environment, cwd=cwd, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def run_recipe(recipe, folder, monkeypatch, capsys, *told):
    """`training/train.py` in this process, which has the fake library of real stars."""
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    monkeypatch.syspath_prepend(str(TRAINING))
    import train

    monkeypatch.setattr(sys, "argv", ["train.py", str(path), "--output", str(folder), *told])
    code = train.main()
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out + printed.err


def read_elsewhere(python, hub, tmp_path, pinned, trust, offline=False):
    """What another Python answers: for each of `pinned`, (repository, revision), one after the other."""
    environment = os.environ | hub.environment(None if offline else TOKEN, tmp_path / "elsewhere")
    ran = subprocess.run(
        [python, "-c", READ, tmp_path / "stars.npz", "trust" if trust else "ours", *chain(*pinned)],
        env=environment | {"HF_HUB_OFFLINE": str(int(offline))}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def assert_same_answers(found, expected):
    """Within float32's rounding: processes differ in threads and memory."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one.keys() - {"flags"} == set(LABELS)
        assert one.get("flags") == other.get("flags")
        for name in LABELS:
            scale = {"K": 1000.0, "dex": 1.0}[one[name]["unit"]]
            for key in ("value", "sigma", "interval68", "interval95"):
                np.testing.assert_allclose(one[name][key], other[name][key], atol=1e-5 * scale, rtol=1e-5)
            assert one[name]["calibrated"] == other[name]["calibrated"]
            assert one[name]["learned"] == other[name]["learned"]


def test_from_a_built_dataset_to_three_published_stages(
    hub, tmp_path, monkeypatch, capsys, use_fake_library, stranger_python
):
    environment = hub.environment(TOKEN, tmp_path / "home")
    spoken = []

    # A dataset: built, pushed, streamed back bit for bit.
    built = tmp_path / "spectra"
    options = ["--output", built, "--n", 900, "--backend", "cannon", "--metal-poor-share", 0.3, "--shards", 4]
    spoken.append(spectrafm("build", "synthetic", *options))
    shown = spectrafm("push", built, "--to", "astro/spectra", "--dry-run")
    assert "nothing was sent" in shown
    assert not hub.repos
    spoken.append(spectrafm("push", built, "--to", "astro/spectra"))
    (version, _) = hub.commits("astro/spectra", "dataset")
    assert hub.repo("astro/spectra", "dataset").private
    for split in ("train", "validation"):
        here = datasets.load_dataset(str(built), split=split, streaming=True)
        there = datasets.load_dataset("astro/spectra", split=split, streaming=True, revision=version)
        for row, other in zip(here, there, strict=True):
            assert row.keys() == other.keys()
            assert np.asarray(row["flux"], np.float32).tobytes() == np.asarray(other["flux"], np.float32).tobytes()
            assert {k: v for k, v in row.items() if k != "flux"} == {k: v for k, v in other.items() if k != "flux"}
    assert np.array_equal(read_wavelength_grid(built), read_wavelength_grid("astro/spectra", version))

    # Stage 1 from the stream, by the command that users have.
    recipe = tmp_path / "1-synthetic.yaml"
    recipe.write_text(yaml.safe_dump(SYNTHETIC))
    stages = [tmp_path / name for name in ("1-synthetic", "2-observed", "3-few-shot")]
    told = [TRAINING / "train.py", recipe, "--output", stages[0], "--push-to", "astro"]
    spoken.append(command(*told, environment=environment, cwd=tmp_path))
    repos = [f"astro/spectrafm-{stage.name}" for stage in stages]
    pinned = [hub.commits(repos[0])[0]]

    # Stages 2 and 3, each from its parent on the Hub; what is pushed to the parent later does not matter.
    for recipe_of_stage, parent, folder in ((OBSERVED, repos[0], stages[1]), (FEW_SHOT, repos[1], stages[2])):
        recipe_of_stage = recipe_of_stage | {"model": parent, "model_revision": pinned[-1]}
        HfApi().upload_file(path_or_fileobj=b"later", path_in_repo="later.md", repo_id=parent)
        spoken.append(run_recipe(recipe_of_stage, folder, monkeypatch, capsys, "--push-to", "astro"))
        pinned.append(hub.commits(f"astro/spectrafm-{folder.name}")[0])
        assert json.loads((folder / "stage.json").read_text())["parent"] == {"id": parent, "revision": pinned[-2]}

    # Three cards that say so.
    cards = [
        ModelCard(hub.files(repo, revision=revision)["README.md"].decode())
        for repo, revision in zip(repos, pinned, strict=True)
    ]
    assert "base_model" not in cards[0].data.to_dict()
    assert cards[0].data.datasets == ["astro/spectra"]
    assert version in cards[0].content
    for number in (1, 2):
        assert cards[number].data.base_model == repos[number - 1]
        assert pinned[number - 1] in cards[number].content
    for card, stage, repo in zip(cards, stages, repos, strict=True):
        assert "(figures/learning_curve.png)" in card.content
        assert hub.files(repo)["figures/learning_curve.png"].startswith(b"\x89PNG")
        assert card.data.library_name == "transformers"
        assert f"| seed | {json.loads((stage / 'stage.json').read_text())['seed']} |" in card.content
        card.validate()  # by the server, as a push does
    (collection,) = HfApi().list_collections(owner="astro")
    assert [item.item_id for item in HfApi().get_collection(collection.slug).items] == repos

    # The same numbers for everybody.
    wavelength = np.arange(5000.0, 5950.0, 0.9)
    flux = np.stack([star_flux(wavelength, {5185.05: depth, 5700.0: depth / 2}) for depth in (0.2, 0.5, 0.8)])
    spectra = {"flux": 3e-14 * flux, "wavelength": np.tile(wavelength, (3, 1)), "bad_pixel": np.zeros(flux.shape, bool)}
    np.savez(tmp_path / "stars.npz", **spectra)
    each = [{name: values[i] for name, values in spectra.items()} for i in range(3)]
    everywhere = list(zip(repos, pinned, strict=True))
    without = read_elsewhere(stranger_python, hub, tmp_path, everywhere, trust=True)
    assert without["ours"] == []
    for (repo, revision), folder, elsewhere, modules in zip(
        everywhere, stages, without["answers"], without["modules"], strict=True
    ):
        here = pipeline(
            "stellar-labels", model=SpectraFMForLabelPrediction.from_pretrained(folder),
            feature_extractor=AutoFeatureExtractor.from_pretrained(folder),
        )(each)  # fmt: skip
        assert len({one["fe_h"]["value"] for one in here}) == 3  # the answer depends on the spectrum
        if folder is stages[0]:  # it knows the H band alone, and is asked in the optical
            assert all("a guess" in one["flags"][0] and not one["fe_h"]["learned"] for one in here)
        model, extractor = load_pretrained(repo, revision)
        by_hand = extractor.decode_labels(*_ask(model, extractor, spectra))
        np.testing.assert_allclose([one["teff"]["value"] for one in here], by_hand["teff"]["value"], rtol=1e-5)
        np.testing.assert_allclose([one["teff"]["sigma"] for one in here], by_hand["teff"]["sigma"], rtol=1e-5)
        assert all(module.startswith("transformers_modules") for module in modules)
        assert_same_answers(elsewhere, here)
    with_us = read_elsewhere(sys.executable, hub, tmp_path, everywhere[-1:], trust=False)
    assert all(module.startswith("spectrafm_hf.") for module in with_us["modules"][0] if "Auto" not in module)
    assert_same_answers(with_us["answers"][0], here)
    n_requests = len(hub.requests)
    from_cache = read_elsewhere(stranger_python, hub, tmp_path, everywhere, trust=True, offline=True)
    assert from_cache["answers"] == without["answers"]
    assert len(hub.requests) == n_requests
    assert here[0]["fe_h"]["learned"]
    assert here[0]["fe_h"]["calibrated"]
    assert not here[0]["teff"]["learned"]  # which the last stage did not learn, and less than half of these pixels told
    assert AutoModel.from_pretrained(repos[2], revision=pinned[2]).config.label_names == LABELS

    # Nobody else reads them, and the token is nowhere.
    with pytest.raises(Exception, match=r"404|401"):
        HfApi(token=STRANGER).model_info(repos[0])
    assert_token_is_nowhere(hub, tmp_path, spoken)


KILL = """
import os, runpy, signal, sys
from transformers import Trainer, TrainerCallback

class KillAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

make = Trainer.__init__
def killed(self, *args, **kwargs):
    make(self, *args, **kwargs)
    self.add_callback(KillAt())
Trainer.__init__ = killed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_streamed_stage_that_is_killed_ends_as_it_would_have_although_main_moved_on(
    hub, tmp_path, monkeypatch, capsys
):
    """Eight steps of 16 spectra, a checkpoint at the fourth, killed after the sixth."""
    environment = hub.environment(TOKEN, tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    built = tmp_path / "spectra"
    build_dataset([SyntheticConfig(n=900, backend="cannon")], built, 4)
    push(built, "astro/spectra")
    recipe = tmp_path / "stage.yaml"
    stage = SYNTHETIC | {"save_steps": 4, "validations": 0}
    recipe.write_text(yaml.safe_dump(stage))
    told = [str(TRAINING / "train.py"), str(recipe), "--output"]
    with few_threads(1):
        run_recipe(stage, tmp_path / "whole", monkeypatch, capsys)
    killed = subprocess.run(
        [sys.executable, "-c", KILL, *told, str(tmp_path / "broken")], env=os.environ | environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "broken" / "checkpoint-4").is_dir()
    first = hub.commits("astro/spectra", "dataset")[0]
    HfApi().delete_file("synthetic/train-00000-of-00004.parquet", "astro/spectra", repo_type="dataset")
    said = command(*told, tmp_path / "broken", environment=environment, cwd=tmp_path)
    assert "saved to" in said
    record = json.loads((tmp_path / "broken" / "stage.json").read_text())
    assert record["recipe"]["dataset_revision"] == first != hub.commits("astro/spectra", "dataset")[0]
    weights = [load_pretrained(tmp_path / name)[0].state_dict() for name in ("whole", "broken")]
    for name, values in weights[0].items():
        assert (values - weights[1][name]).abs().max() <= 1e-6, name


def _ask(model, extractor, spectra):
    import torch

    with torch.no_grad():
        answer = model(**extractor(**spectra, return_tensors="pt"))
    return answer.label_mean, answer.label_log_var


def assert_token_is_nowhere(hub, tmp_path, spoken):
    """Not in what was printed, not in any file that was written (checkpoints, logs, trackers' databases, caches, all
    that is on the Hub in any version)."""
    searched = 0
    for text in spoken:
        assert TOKEN not in text
    for folder in (tmp_path, Path(os.environ["TRACKIO_DIR"])):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                searched += 1
                assert TOKEN.encode() not in path.read_bytes(), path
    assert searched > 100


def test_a_folder_that_is_neither_is_not_pushed(hub, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["spectrafm", "push", str(tmp_path / "empty"), "--to", "astro"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "finish the stage first" in capsys.readouterr().err
    assert not hub.repos
