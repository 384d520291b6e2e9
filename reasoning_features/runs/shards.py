"""Work cut into shards: computed here or by a Ray cluster, kept whole or not at all, merged in a fixed order.

How work is cut depends on the work alone, so one process and a cluster give the same bytes (on processors of
one kind, with as many threads). A shard is one file, in a folder named by all that determines it, the code
too; one that is there is not made again, and one that is damaged is made anew.

``ENGINE=ray`` hands shards to the cluster that ``RAY_ADDRESS`` names or that runs here, else one is started.
This process alone writes results, so nodes need no common disk; each needs the package and the model.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import unfinished, write_json
from reasoning_features.runs.provenance import imported_files

Arrays = dict[str, NDArray[Any]]
HEAD = "shard"  # of a file: what determined it, and its checksum
ENGINE = "REASONING_FEATURES_ENGINE"  # who makes shards: empty for this process, or "ray"


@dataclass(frozen=True)
class Work:
    """Work in shards."""

    name: str  # as progress and the folder are named
    compute: Callable[[int], Arrays]  # a shard's arrays by its number; picklable (a partial) for a cluster
    n: int  # shards
    key: Mapping[str, Any]  # all that determines the arrays, as JSON holds it; the code is added to it
    device: str = "cpu"  # where a shard is computed: on "cuda" each takes a GPU

    @functools.cached_property
    def digest(self) -> str:
        """Stands for all that determines the shards."""
        compute = self.compute.func if isinstance(self.compute, partial) else self.compute
        code = imported_files([f"import {compute.__module__}"])
        determined_by = {"name": self.name, "n": self.n, "code": code} | dict(self.key)
        return hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()

    def folder(self, kept: Path) -> Path:
        """Where the shards lie in a folder of shards."""
        return kept / f"{self.name}-{self.digest[:16]}"


def map_shards(work: Work, kept: Path) -> Iterator[Arrays]:
    """The arrays of every shard in order, kept in a folder of many works; first all are computed."""
    complete(work, kept)
    return (read_shard(shard_file(work, kept, shard)) or {} for shard in range(work.n))


def complete(work: Work, kept: Path, progress: bool = True) -> None:
    """Compute the shards that are missing; UserError where no node of the cluster has what one takes."""
    write_json(work.folder(kept) / "key.json", {"name": work.name, "shards": work.n} | dict(work.key))
    files = [shard_file(work, kept, shard) for shard in range(work.n)]
    missing = [shard for shard in range(work.n) if read_shard(files[shard], work.digest) is None]
    for shard in missing:
        if files[shard].is_file():
            print(f"{paths.relative(files[shard])} is damaged: it is made again.", file=sys.stderr)
    made: Iterable[tuple[int, Arrays]] = ((shard, work.compute(shard)) for shard in missing)
    if os.environ.get(ENGINE) and missing:
        made = each_by_ray(work.compute, missing, work.device)
    with tqdm(total=len(missing), desc=work.name, unit="shard", disable=not (progress and missing)) as bar:
        for shard, computed in made:
            arrays = {name: np.asarray(array, order="C") for name, array in computed.items()}
            writing = unfinished(files[shard])
            # one entry: the order of several is drawn anew each time
            save_file(arrays, writing, metadata={HEAD: f"{work.digest} {_sum(arrays)}"})
            writing.replace(files[shard])
            bar.update(1)


def drop_others(work: Work, kept: Path) -> None:
    """Delete what the same work left when something else determined it: nothing asks for that again."""
    for other in kept.glob(f"{work.name}-{'?' * 16}"):
        if other != work.folder(kept):
            shutil.rmtree(other, ignore_errors=True)


def shard_file(work: Work, kept: Path, shard: int) -> Path:
    """Where a shard lies."""
    return work.folder(kept) / f"{shard:05d}.safetensors"


def read_shard(path: Path, made_by: str | None = None) -> Arrays | None:
    """The arrays of a shard; None where it is not there or not as it was written, or by another digest."""
    try:
        with safe_open(path, framework="numpy") as file:
            head = (file.metadata() or {}).get(HEAD, "").split(" ")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError):
        return None
    return arrays if head[-1] == _sum(arrays) and made_by in (None, head[0]) else None


def _sum(arrays: Arrays) -> str:
    """SHA-256 of arrays with their names, types and shapes."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


Each = Callable[[Callable[..., None], Sequence[object]], None]  # does some work for each of several items


def each(work: Callable[..., None], items: Sequence[object], workers: int) -> None:
    """Does the work for each item in so many processes, of one thread each; one alone needs no pool."""
    if workers == 1:
        for item in items:
            work(item)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, items))


def each_by_ray(
    compute: Callable[[int], Any], shards: Sequence[int], device: str
) -> Iterator[tuple[int, Any]]:
    """Each shard with its arrays, as they finish; an error within a shard is raised as it was there. A shard
    takes a GPU, or as many processors as this process has threads: another number sums in another order.
    """
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    threads = torch.get_num_threads()
    what, n = ("GPU", 1) if device.startswith("cuda") else ("CPU", threads)
    most = max((node["Resources"].get(what, 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most < n:  # Ray would wait for ever
        has = f"{most:g}: add a node, or set OMP_NUM_THREADS lower, or DEVICE=cpu."
        raise UserError(f"A shard takes {n} {what} and the largest node of the Ray cluster has {has}")
    shared = ray.put((compute, threads))
    task = ray.remote(_shard).options(num_cpus=n if what == "CPU" else 1, num_gpus=n if what == "GPU" else 0)
    running = {task.remote([shared], shard): shard for shard in shards}
    try:
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            try:
                arrays = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from error
            yield running.pop(done), arrays
    finally:
        for left in running:
            ray.cancel(left)


def _shard(shared: list[Any], shard: int) -> Any:
    """One shard, in a worker."""
    compute, threads = _unpickled(shared[0])
    torch.set_num_threads(threads)
    return compute(shard)


@functools.lru_cache(1)
def _unpickled(shared: Any) -> Any:
    """What the driver pickled: a worker reads it once, and so loads a model once."""
    import ray

    return ray.get(shared)
