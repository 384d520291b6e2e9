"""Work cut into shards: computed here or elsewhere, kept whole or not at all, merged in a fixed order.

How work is cut depends on the work alone and never on who does it, so one process, a cluster and the shares
of an array of jobs give the same bytes (on processors of one kind, with as many threads). A shard is one
file, named by its number in a folder named by all that determines it, the code too; one that is there is not
made again, and one that is damaged is named and made anew.

Who does the work :mod:`reasoning_features.bookkeeping.shares` tells.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.bookkeeping import ray_engine, sources
from reasoning_features.bookkeeping.shares import RAY, asked_engine, asked_share
from reasoning_features.errors import ShareDone
from reasoning_features.files import unfinished, write_json

Arrays = dict[str, NDArray[Any]]
HEAD = "shard"  # of a file: what determined it, and its checksum


@dataclass(frozen=True)
class Work:
    """Work in shards.

    Attributes:
        name: what it is, as progress and the folder are named.
        compute: takes a shard's number and gives its arrays; must be picklable where work is done elsewhere
            (a partial of a module's function).
        n: how many shards there are.
        key: all that determines the arrays, as JSON holds it; the code is added to it.
        device: where a shard is computed: on "cuda" each takes a GPU.
    """

    name: str
    compute: Callable[[int], Arrays]
    n: int
    key: Mapping[str, Any]
    device: str = "cpu"

    @functools.cached_property
    def digest(self) -> str:
        """Stands for all that determines the shards."""
        told = {"name": self.name, "n": self.n, "code": _code_of(self.compute)} | dict(self.key)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def folder(self, kept: Path) -> Path:
        """Where the shards lie in a folder of shards."""
        return kept / f"{self.name}-{self.digest[:16]}"


def map_shards(work: Work, kept: Path, progress: bool = True) -> Iterator[Arrays]:
    """The arrays of every shard, in their order; all are computed before the first is given.

    Args:
        work: the work.
        kept: folder of shards, of many works.
        progress: show a progress bar.

    Raises:
        ShareDone: only a share was asked for, and others are not finished.
        UserError: an engine or a share that is not there.
    """
    complete(work, kept, progress)
    return (read_arrays(shard_file(work, kept, shard)) for shard in range(work.n))


def complete(work: Work, kept: Path, progress: bool = True) -> None:
    """Compute the shards that are missing, or those of the share that is asked for.

    Raises:
        ShareDone: only a share was asked for, and others are not finished.
        UserError: an engine or a share that is not there.
    """
    engine, share = asked_engine(), asked_share()
    folder = work.folder(kept)
    write_json(folder / "key.json", {"name": work.name, "shards": work.n} | dict(work.key))
    missing = [shard for shard in range(work.n) if not _is_whole(shard_file(work, kept, shard), work.digest)]
    mine = missing if share is None else [shard for shard in missing if share.has(shard)]
    made: Iterable[tuple[int, Arrays]] = ((shard, work.compute(shard)) for shard in mine)
    if engine == RAY and mine:
        made = ray_engine.each(work.compute, mine, work.device)
    with tqdm(total=len(mine), desc=work.name, unit="shard", disable=not (progress and mine)) as bar:
        for shard, arrays in made:
            _write(shard_file(work, kept, shard), arrays, work.digest)
            bar.update(1)
    left = len(missing) - len(mine)
    if left:
        others = "run the other shares" if share and share.number else "run the shares that were left out"
        raise ShareDone(f"{work.name}: {work.n - left} of {work.n} shards are there; {others}, then merge.")


def drop_others(work: Work, kept: Path) -> None:
    """Delete what the same work left when something else determined it: nothing asks for that again."""
    for other in kept.glob(f"{work.name}-{'?' * 16}"):
        if other != work.folder(kept):
            shutil.rmtree(other, ignore_errors=True)


def shard_file(work: Work, kept: Path, shard: int) -> Path:
    """Where a shard lies."""
    return work.folder(kept) / f"{shard:05d}.safetensors"


def _write(path: Path, arrays: Arrays, digest: str) -> None:
    """Write a shard whole, its digest and that of what determines it in the file's head."""
    held = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    writing = unfinished(path)
    # one entry: the order of several is drawn anew each time
    save_file(held, writing, metadata={HEAD: f"{digest} {_sum(held)}"})
    os.replace(writing, path)


def read_arrays(path: Path) -> Arrays:
    """The arrays of a shard's file, as it is."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def checksum(path: Path) -> str:
    """The checksum that a shard was written with."""
    return _head(path)[1]


def intact_arrays(path: Path, expected: str) -> Arrays | None:
    """The arrays of a shard's file if they have this checksum; None if not, or where it cannot be read."""
    try:
        arrays = read_arrays(path)
    except (SafetensorError, OSError, ValueError):
        return None
    return arrays if _sum(arrays) == expected else None


def _head(path: Path) -> tuple[str, str]:
    """What determined a shard, and its checksum; ValueError where the file does not say."""
    with safe_open(path, framework="numpy") as file:
        made_by, expected = (file.metadata() or {}).get(HEAD, "").split(" ")
    return made_by, expected


def _is_whole(path: Path, digest: str) -> bool:
    """Whether a shard is there as it was written; one that is damaged is named."""
    if not path.is_file():
        return False
    try:
        made_by, expected = _head(path)
    except (SafetensorError, OSError, ValueError):
        made_by, expected = "", ""
    if made_by == digest and intact_arrays(path, expected) is not None:
        return True
    print(f"{paths.relative(path)} is damaged: it is made again.", file=sys.stderr)
    return False


def _sum(arrays: Arrays) -> str:
    """SHA-256 of arrays with their names, types and shapes."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _code_of(compute: Callable[..., Any]) -> dict[str, str]:
    """Digests of the package's sources that a computation imports; of other code its own file's name."""
    function = compute.func if isinstance(compute, partial) else compute
    module = inspect.getmodule(function)
    return sources.imported_sources([f"import {module.__name__}"]) if module else {}
