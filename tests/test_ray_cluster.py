"""The same bytes from a Ray cluster, although a worker is killed in the middle of a shard."""

import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from test_build import digests

from spectrafm_hf.builders.build import build_dataset
from spectrafm_hf.builders.ray_cluster import run_on_ray
from spectrafm_hf.builders.synthetic import SyntheticConfig

N, SHARDS = 2048, 4


class KillOnce(threading.Thread):
    """Kills the first worker that is found writing a shard into the folder."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.killed, self.over = folder, None, False

    def run(self):
        while self.killed is None and not self.over:
            for partial in self.folder.glob("synthetic/.*.partial"):
                pid = int(partial.name.split("-")[-1].split(".")[0])  # the writer's, see whole_file
                if pid != os.getpid() and psutil.pid_exists(pid):
                    psutil.Process(pid).kill()
                    self.killed = pid
                    return
            time.sleep(0.002)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path):
    pytest.importorskip("ray")
    whole = build_dataset([SyntheticConfig(n=N)], tmp_path / "here", shards=SHARDS, progress=False)
    killer = KillOnce(tmp_path / "ray")
    killer.start()
    built = build_dataset(
        [SyntheticConfig(n=N)], tmp_path / "ray", shards=SHARDS, num_proc=2, ray_address="local", progress=False
    )
    killer.over = True
    killer.join()
    assert killer.killed is not None, "no worker was caught writing"
    assert built.shards == whole.shards
    assert digests(tmp_path / "ray") == digests(tmp_path / "here")


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'spectrafm_hf\[ray\]'"):
        run_on_ray([], "local", 1, None)
