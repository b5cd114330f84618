"""What a method says of one draw: an answer, a refusal in words, or an error that nobody may take for a refusal.

And what the command refuses to begin.
"""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from spectrafm_hf import benchmark, cli
from spectrafm_hf.benchmark import Job


class Draws:
    def draw(self, n_stars, seed):
        return list(range(n_stars))


def refuse(task, chosen, seed):
    raise ValueError(f"needs 20 stars, got {len(chosen)}")


def fail(task, chosen, seed):
    raise np.linalg.LinAlgError("SVD did not converge")


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    monkeypatch.setattr(benchmark, "_TASK", [Draws()])
    monkeypatch.setitem(benchmark.METHODS, "refuse", refuse)
    monkeypatch.setitem(benchmark.METHODS, "fail", fail)


def test_a_refusal_is_told():
    assert benchmark._answer(Job("refuse", 10, 0)) == (Job("refuse", 10, 0), "needs 20 stars, got 10")


def test_a_numerical_failure_is_no_refusal():
    with pytest.raises(np.linalg.LinAlgError):
        benchmark._answer(Job("fail", 10, 0))


def asked(*arguments):
    return CliRunner().invoke(cli.app, ["benchmark", *map(str, arguments)]).exception


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--protocol", "paper"], "paper needs APOGEE DR17: --dr17 FOLDER_OR_DATASET"),
        (["--protocol", "optical", "--protocol", "apogee_window"], "apogee_window needs a file .*: --window-stars"),
        (["--protocol", "paper_synthetic", "--development"], "paper_synthetic has no validation stars"),
    ],
)
def test_a_protocol_that_was_asked_for_and_cannot_run_is_refused(arguments, needed, tmp_path):
    refused = asked("--output", tmp_path / "run", *arguments)
    assert isinstance(refused, ValueError)
    assert re.search(f"what was asked for cannot run: {needed}", str(refused))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")
    refused = asked("--output", tmp_path / "file/run", "--protocol", "optical")
    assert isinstance(refused, OSError)
    assert re.search(r"the folder .*file/run cannot be written \(Not a directory\); choose", str(refused))
