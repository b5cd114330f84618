"""The same build on a Ray cluster: one task per shard, nothing else changes.

A task that dies with its worker is tried again, which is safe: it writes under a name of its own and renames at the
end. The dataset's folder must be on a file system that all nodes share, and spectrafm_hf installed on all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from .build import ShardTask, TaskRecord

RETRIES = 3
"""Times a shard is tried again after its worker died."""


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
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("--ray needs Ray: pip install 'spectrafm_hf[ray]'.") from error
    from .build import run_task

    ours = not ray.is_initialized()
    if ours:
        try:
            if address == "local":
                ray.init(num_cpus=num_proc, include_dashboard=False, log_to_driver=False, configure_logging=False)
            else:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"no Ray cluster at {address} ({error}); start one, or use --ray local.") from error
    records = {}
    try:
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
    finally:
        if ours:
            ray.shutdown()
    return records
