"""Shards computed by a Ray cluster: Ray places them, and does those again whose worker died.

The cluster is the one that ``RAY_ADDRESS`` names or that runs on this machine, else one on this machine is
started. Results come back to the driver, which alone writes them, so nodes need no common disk; each needs
the package and the model (in the hub's cache, or under the same path).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from reasoning_features.errors import UserError


def each(
    compute: Callable[[int], Any], shards: Sequence[int], device: str = "cpu"
) -> Iterator[tuple[int, Any]]:
    """Each shard with its result, as they finish.

    A shard takes one GPU, or as many processors as this process has threads: with another number of threads
    sums of floats come out otherwise in their last bits.

    Args:
        compute: takes a shard's number; pickled once.
        shards: their numbers.
        device: where a shard is computed.

    Raises:
        UserError: no node has what a shard takes.
    """
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    threads = torch.get_num_threads()
    wanted = {"GPU": 1.0} if device.startswith("cuda") else {"CPU": float(threads)}
    _check(ray.nodes(), wanted)
    held = ray.put((compute, threads))
    task = ray.remote(_shard).options(num_cpus=wanted.get("CPU", 1), num_gpus=wanted.get("GPU", 0))
    running = {task.remote([held], shard): shard for shard in shards}
    try:
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), _result(done)
    finally:
        for left in running:
            ray.cancel(left)


def _result(done: Any) -> Any:
    """What a shard gave; an error of its own is raised as it was there."""
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error


def _shard(held: list[Any], shard: int) -> Any:
    """One shard, in a worker."""
    compute, threads = _unpickled(held[0])
    torch.set_num_threads(threads)
    return compute(shard)


@functools.lru_cache(1)
def _unpickled(held: Any) -> Any:
    """What the driver pickled: a worker reads it once, and so loads a model once."""
    import ray

    return ray.get(held)


def _check(nodes: Sequence[dict[str, Any]], wanted: dict[str, float]) -> None:
    """Raises a UserError where no node has what one shard takes: Ray would wait for ever."""
    for what, n in wanted.items():
        most = max((node["Resources"].get(what, 0) for node in nodes if node["Alive"]), default=0)
        if most < n:
            raise UserError(
                f"A shard takes {n:g} {what} and the largest node of the Ray cluster has {most:g}: "
                "add a node, or set OMP_NUM_THREADS lower, or DEVICE=cpu."
            )
