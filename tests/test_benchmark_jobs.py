"""What a method says of one draw: an answer, a refusal in words, or an error that nobody may take for a refusal."""

import numpy as np
import pytest

from spectrafm_hf import benchmark
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
