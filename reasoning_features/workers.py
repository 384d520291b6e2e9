"""Work done for each of several items, in this process or in several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

Each = Callable[[Callable[..., None], Sequence[object]], None]
"""Does some work for each of several items, perhaps side by side."""


def each(work: Callable[..., None], items: Sequence[object], workers: int) -> None:
    """Does the work for each item in so many processes; one process is the same without a pool."""
    if workers == 1:
        for item in items:
            work(item)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(work, items):
            pass
