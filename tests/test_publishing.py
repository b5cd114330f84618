"""From a stage's folder to its card, without a Hub: what it says, what it refuses to leave blank."""

import json
import os
import shutil

import pytest
from huggingface_hub import ModelCard
from test_stages import SYNTHETIC, run
from typer.testing import CliRunner

from spectrafm_hf import cli, shipped
from spectrafm_hf.hub import PUSHED_FILE, staged
from spectrafm_hf.publishing import card_facts, prepared, repository_of, what_goes


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Stage 1 and a child of it, in a small way."""
    home = tmp_path_factory.mktemp("published")
    first = run(SYNTHETIC, home / "1-synthetic")
    child = {key: value for key, value in SYNTHETIC.items() if key not in ("architecture", "extractor")}
    run(child | {"stage": "2-observed", "model": str(first), "labels": ["fe_h"]}, home / "2-observed")
    return home


@pytest.fixture
def home(stages, tmp_path, unrendered):
    return shutil.copytree(stages, tmp_path / "runs")


def as_it_is(folder):
    """Path -> content and time of change, of all files."""
    files = {path: path.stat() for path in folder.rglob("*")}
    return {path: (told.st_mtime_ns, path.is_file() and path.read_bytes()) for path, told in files.items()}


def change(folder, **changes):
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps({k: v for k, v in (record | changes).items() if v != "gone"}))


def test_the_card_of_a_stage_speaks_of_its_repository(home):
    repo, kind, files = what_goes(home / "1-synthetic", "astro")
    assert (repo, kind) == ("astro/spectrafm-1-synthetic", "model")
    assert {"README.md", "model.safetensors", "pipeline_spectrafm.py", "results.json", "stage.json"} <= files.keys()
    assert "figures/learning_curve.png" in files
    with prepared(home / "1-synthetic", "astro") as place:
        assert place == (home / "1-synthetic", repo, kind)
    assert (home / "1-synthetic/README.md").stat().st_size == files["README.md"]
    card = ModelCard.load(home / "1-synthetic" / "README.md")
    assert "learning_curve.png" in card.content
    assert 'pipeline("stellar-labels"' in card.content
    assert repo in card.content
    assert "| Teff (`teff`) | K |" in card.content
    assert "was calibrated on" in card.content


def test_nothing_of_this_machine_goes(home, tmp_path):
    for stage in ("1-synthetic", "2-observed"):
        with prepared(home / stage, "astro") as (folder, repo, _), staged(folder, repo) as files:
            assert {folder / "README.md", folder / "stage.json"} <= set(files.values())
            for path in files.values():
                if path.suffix != ".safetensors":
                    assert str(tmp_path).encode() not in path.read_bytes(), path
                    assert b"/published" not in path.read_bytes(), path


def test_a_parent_that_was_pushed_later_is_named_by_its_commit(home):
    assert "base_model" not in card_facts(home / "2-observed")
    pushed = {"repo_id": "astro/spectrafm-1-synthetic", "revision": "a" * 40, "url": "https://elsewhere.org"}
    (home / "1-synthetic" / PUSHED_FILE).write_text(json.dumps(pushed))
    facts = card_facts(home / "2-observed")
    assert (facts["base_model"], facts["base_model_revision"]) == ("astro/spectrafm-1-synthetic", "a" * 40)
    change(home / "1-synthetic", fingerprint="of another run")
    assert "base_model" not in card_facts(home / "2-observed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": "gone"}, "lacks calibration: an older version of this package wrote it"),
        ({"fwhm": None}, r"needs the sharpness of the training spectra; give the dataset lsf_sigma \(Angstrom\)"),
        ({"label_ranges": {"teff": [4000, 6000]}}, "needs the range of logg, fe_h in training"),
    ],
)
def test_a_card_is_not_left_blank(home, changes, message):
    change(home / "1-synthetic", **changes)
    with pytest.raises(ValueError, match=message):
        card_facts(home / "1-synthetic")


def test_a_stage_that_is_not_done(home):
    (home / "1-synthetic" / "stage.json").unlink()
    with pytest.raises(ValueError, match="finish the stage first"):
        what_goes(home / "1-synthetic", "astro")


def test_only_learned_labels_are_promised_and_calibrated(home):
    assert list(card_facts(home / "2-observed")["labels"]) == ["fe_h"]
    assert json.loads((home / "2-observed" / "results.json").read_text())["calibrated"] == ["fe_h"]


def test_what_a_stage_says_of_its_stars_is_passed_on(home):
    said = {"survey": "mine", "citations": ["Me 2025"], "weaknesses": ["No dwarfs."]}
    change(home / "1-synthetic", **said)
    assert said.items() <= card_facts(home / "1-synthetic").items()
    with prepared(home / "1-synthetic", "astro"):
        pass
    assert "- No dwarfs.\n" in (home / "1-synthetic" / "README.md").read_text()


def test_a_stage_of_two_surveys_must_tell_both(home):
    record = json.loads((home / "1-synthetic" / "stage.json").read_text())
    change(home / "1-synthetic", recipe=record["recipe"] | {"beside": "optical"})
    with pytest.raises(ValueError, match="lacks surveys: an older version of this package wrote it"):
        card_facts(home / "1-synthetic")


def test_a_name_is_not_said_twice():
    assert repository_of("astro", "2-observed") == "astro/spectrafm-2-observed"
    assert repository_of("astro", "spectrafm-small") == "astro/spectrafm-small"


def test_only_the_very_model_that_ships_is_said_to_ship(home):
    assert card_facts(home / "1-synthetic")["ships_as"] is None
    change(home / "1-synthetic", fingerprint=json.loads((shipped() / "stage.json").read_text())["fingerprint"])
    assert card_facts(home / "1-synthetic")["ships_as"] == "spectrafm-small"


def test_a_dry_run_lists_sizes_sends_nothing_and_changes_nothing(home):
    before = as_it_is(home)
    told = CliRunner().invoke(cli.app, ["push", str(home / "1-synthetic"), "--to", "astro/mine", "--dry-run"])
    assert as_it_is(home) == before
    assert told.exit_code == 0, told.output
    assert "would go to the model repository astro/mine (private, if it is new); nothing was sent" in told.output
    assert " MB  model.safetensors" in told.output
    assert " MB  README.md" in told.output
    assert "Loading weights" not in told.output


def test_what_ships_with_the_package_and_what_cannot_be_written_stay_as_they_are(home, monkeypatch):
    before = as_it_is(shipped())
    with prepared(shipped(), "astro/mine") as (place, _, _), staged(place, "astro/mine") as files:
        assert place.name == shipped().name
        assert "astro/mine" in files["README.md"].read_text()
        assert "figures/learning_curve.png" in files
    assert as_it_is(shipped()) == before
    assert not place.exists()

    before = as_it_is(home)
    refused = home / "1-synthetic"
    may = os.access  # the superuser may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: path != refused and may(path, mode))
    with prepared(refused, "astro") as (place, repo, _):
        assert repo in (place / "README.md").read_text()
        assert "learning_curve.png" in (place / "README.md").read_text()
    assert as_it_is(home) == before


def test_a_folder_that_is_no_checkpoint_is_told_by_its_own_name(home):
    (home / "1-synthetic/model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"{home}/1-synthetic .* lacks model.safetensors"):
        what_goes(home / "1-synthetic", "astro")
