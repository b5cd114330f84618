"""The same build on a Ray cluster: one task per shard, nothing else changes.

A task that dies with its worker is tried again, which is safe: it writes under a name of its own and renames at the
end. The dataset's folder must be on a file system that all nodes share, and spectrafm_hf installed on all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from .build import ShardTask, TaskRecord

RETRIES = 3
"""Times a shard is tried again after its worker died."""

NICENESS = "RAY_worker_niceness"
"""Ray's own variable of the environment, 15 if it is not set."""


@contextmanager
def cluster(address: str, num_proc: int) -> Iterator[None]:
    """A connection to a Ray cluster, closed at the end unless the caller had one already.

    Workers of a cluster that is started here are as nice as this process. Ray would have them at 15, which spares the
    desktop of its user; but where others share the processors, such workers get next to no time, and a run stands still
    for minutes. Whoever sets `RAY_worker_niceness` is obeyed. Elsewhere it is for the cluster to say.

    Args:
        address, num_proc: See `run_on_ray`.

    Raises:
        ValueError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("--ray needs Ray: pip install 'spectrafm_hf[ray]'.") from error
    ours = not ray.is_initialized()
    if ours:
        try:
            if address == "local":
                os.environ.setdefault(NICENESS, "0")
                ray.init(num_cpus=num_proc, include_dashboard=False, log_to_driver=False, configure_logging=False)
            else:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"no Ray cluster at {address} ({error}); start one, or use --ray local.") from error
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def run_on_ray(tasks: Sequence[ShardTask], address: str, num_proc: int, bar: tqdm) -> dict[ShardTask, TaskRecord]:
    """Do all tasks on a cluster.

    Args:
        tasks: See `build.ShardTask`.
        address: As for `ray.init`, e.g. `auto` or `ray://head:10001`; `local` starts a cluster of `num_proc` workers
            here, and stops it at the end.
        num_proc: Workers of a local cluster.
        bar: Counts rows, a shard at a time.

    Raises:
        ValueError: Ray is not installed, or there is no such cluster.
    """
    records = {}
    with cluster(address, num_proc):
        import ray

        from .build import run_task

        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(run_task)
        waiting = {remote.remote(task): task for task in tasks}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(done)
            try:
                records[task] = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise OSError(
                    f"Ray gave up on a shard ({error}); run the same command again: the others are kept."
                ) from error
            bar.update(sum(shard.rows for shard in records[task].shards))
    return records
