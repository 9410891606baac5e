"""Hands unfinished shards to a pool of workers, and looks on."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from . import shards
from .job import Job
from .worker import Worker

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers about every cluster otherwise
os.environ.setdefault(
    "RAY_BACKEND_LOG_LEVEL", "fatal"
)  # and says on stderr, in every run, how its own pools of actors are made

import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import RayError

SILENT = logging.CRITICAL + 1
"""Ray says every error twice, with tracebacks; here it is said once, in a line. Its log files have them."""
READERS = 2
"""Tasks that read the input at a time."""
AHEAD = 2
"""Shards that are with a worker: one in work, and the next."""

PAUSE = 0.05
"""Seconds between two looks whether a shard is finished."""


@contextlib.contextmanager
def connected(workers: int, gpus: float, say: Callable[[str], object]) -> Iterator[None]:
    """Be connected to the cluster that RAY_ADDRESS names, or to one of this machine's own, as long as the context lasts.

    Args:
        workers: How many there will be. gpus: Of each.
        say: Is told of a cluster.

    Raises:
        ValueError: the cluster cannot be reached, or this machine has not so many GPUs.
    """
    address = os.environ.get("RAY_ADDRESS")
    own: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(**({} if address else own), log_to_driver=False, logging_level=SILENT)
    except (ConnectionError, RuntimeError, RayError) as error:
        where = f"The Ray cluster at RAY_ADDRESS={address} cannot be reached" if address else "Ray cannot be started here"
        raise ValueError(f"{where} ({_first_line(error)}). Check that it runs.") from error
    try:
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(SILENT)
        found = ray.cluster_resources()
        if not address and (have := found.get("GPU", 0)) < workers * gpus:
            raise ValueError(
                f"{workers} workers with {gpus:g} GPUs each need {workers * gpus:g}, and this machine has {have:g}. Lower "
                "--workers or --gpus-per-worker, or set RAY_ADDRESS to a cluster."
            )
        if address:  # may grow while it runs
            have = f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"
            say(f"On the Ray cluster at {address}: {have}, {workers} workers.")
        yield
    finally:
        ray.shutdown()


def run(job: Job, gpus_per_worker: float, advance: Callable[[int], object]) -> None:
    """Finish all shards. Ray is connected.

    Args:
        gpus_per_worker: May be a fraction: so many workers share one.
        advance: Is told how many rows were finished, shard by shard.

    Raises:
        ValueError: what is wrong for all rows, or that workers die again and again.
    """
    while todo := shards.unfinished(job):
        before = len(todo)
        try:
            for shard, problem in _results(job, todo, gpus_per_worker):
                if problem:
                    raise ValueError(problem)
                advance(job.size(shard))
        except RayError as error:
            cause = _first_line(getattr(error, "cause", None) or error)
            raise ValueError(f"Ray gave up ({cause}). What was finished is kept: give the same command again.") from error
        if len(shards.unfinished(job)) == before:
            raise ValueError(f"Nothing of {before} shards was written to {str(job.out)!r}. Do the workers see the same folder?")


def _results(job: Job, todo: list[int], gpus: float) -> Iterator[tuple[int, str]]:
    """(shard, problem) as they come."""
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # A block is what Ray hands on at a time, and it fills them up to this many bytes. One shard each: then all workers have
    # something from the beginning, and what waits in memory is a few shards, not hundreds of MiB.
    context.target_max_block_size = 1
    runs = shards.plan(job, todo)

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        for part in batch.to_pylist():
            yield from packed_shards(job, **part)

    found = (
        ray.data.from_items(runs, override_num_blocks=len(runs))
        # No CPU, or readers would take a worker's place; and what asks for other resources stays a step of its own.
        .map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=0, compute=TaskPoolStrategy(size=READERS))
        .map_batches(
            Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=job.workers, max_tasks_in_flight_per_actor=AHEAD),
            num_cpus=1,
            num_gpus=gpus or None,
        )
    )
    for batch in found.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        yield from zip(batch["shard"].to_pylist(), batch["problem"].to_pylist(), strict=True)


def packed_shards(job: Job, group: int, row: int, todo: list[int]) -> Iterator[pa.Table]:
    """The shards of a run, ready to travel; or, as workers do, what is wrong in words. Arguments as `shards.plan` has them."""
    most = (AHEAD + 1) * job.workers
    try:
        for number, (shard, rows) in enumerate(shards.read_shards(job, group, row, todo)):
            # Ray lets readers go on until its memory is full, and then spills to the disk. Here they wait for what they read.
            while number >= most and not shards.is_finished(job.out, todo[number - most]):
                time.sleep(PAUSE)
            yield shards.pack(shard, rows)
    except (ValueError, OSError, pa.ArrowException) as error:
        yield shards.refusal(f"{str(job.data)!r} cannot be read on: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
