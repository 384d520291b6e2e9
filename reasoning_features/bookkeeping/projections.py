"""How long something will take, from a rate measured just before; refused where it would be cut short."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from reasoning_features.errors import UserError

CELL_LIMIT = "REASONING_FEATURES_CELL_LIMIT"


def measured_rate(work: Callable[[], float], seconds: float = 2.0) -> float:
    """Units that ``work`` does in a second; it gives the units it did, and is run for about ``seconds``.

    The first run is not measured: it pays for what is set up once.
    """
    work()
    started, done = time.monotonic(), 0.0
    while True:
        done += work()
        taken = time.monotonic() - started
        if taken >= seconds:
            return done / taken


def project(
    what: str, units: float, rate: float, limit_seconds: float | None = None, unit: str = "tokens"
) -> float:
    """Tell how long something will take, and refuse what would be cut short; gives the seconds.

    Args:
        what: what takes the time.
        units: how much there is to do.
        rate: units a second, as measured.
        limit_seconds: the longest it may take; by default what make gives a cell, where it runs under make.
        unit: what units are called.

    Raises:
        UserError: it will take longer than that.
    """
    seconds = units / rate
    line = f"{what}: about {_duration(seconds)} at {rate:,.0f} {unit}/s, measured just now."
    print(line)
    told = os.environ.get(CELL_LIMIT)
    limit = limit_seconds if limit_seconds is not None else float(told) if told else None
    if limit is not None and seconds > limit:
        wanted = int(2 * seconds)
        give = f"CELL_LIMIT={wanted} LIMIT={2 * wanted}"
        raise UserError(f"{line[:-1]}, but a cell may take {_duration(limit)}: give make {give}.")
    return seconds


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
