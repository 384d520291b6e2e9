"""Two ways of doing the same, timed in turn in one process, and the row of the table that comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

import pandas as pd

Work = Callable[[], float]
"""Does something once and tells how much of it was done, such as tokens."""

COLUMNS = (
    *("what", "against", "measure", "ratio", "lowest", "highest", "runs", "bar", "met"),
    *("ours per s", "theirs per s", "unit", "sizes", "note"),
)


@dataclass(frozen=True)
class Pairs:
    """Rates of two ways, run in turn.

    Attributes:
        ours: work done a second, run by run.
        theirs: the same of the other way; run ``i`` came right after ours.
    """

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def speed(self) -> list[float]:
        """Our rate as a multiple of theirs, pair by pair."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def time(self) -> list[float]:
        """Our time for the same work as a multiple of theirs, pair by pair."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]


def in_turn(ours: Work, theirs: Work, runs: int, clock: Callable[[], float] = time.perf_counter) -> Pairs:
    """Run both once to warm up, then ours, theirs, ours, theirs …, ``runs`` times each.

    Args:
        ours: our way.
        theirs: the other way; what either tells of its work must be in one unit.
        runs: pairs that count.
        clock: tells the time in seconds.
    """
    return all_in_turn(ours, [theirs], runs, clock)[0]


def all_in_turn(
    ours: Work, others: Sequence[Work], runs: int, clock: Callable[[], float] = time.perf_counter
) -> list[Pairs]:
    """The same against several others: ours, then each of them, in every round; pairs for each."""
    ways = [ours, *others]
    rates: list[list[float]] = [[] for _ in ways]
    for counts in [False] + [True] * runs:
        for way, held in zip(ways, rates, strict=True):
            start = clock()
            done = way()
            if counts:
                held.append(done / (clock() - start))
    return [Pairs(tuple(rates[0]), tuple(held)) for held in rates[1:]]


@dataclass(frozen=True)
class Bar:
    """What a ratio is held to: at most, or at least, a number."""

    kind: Literal["at most", "at least"]
    value: float

    def __str__(self) -> str:
        return f"{'≤' if self.kind == 'at most' else '≥'} {self.value:g}"

    def met(self, ratio: float) -> bool:
        """Whether a ratio keeps to it."""
        return ratio <= self.value if self.kind == "at most" else ratio >= self.value


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: our way.
        against: the other way.
        measure: what the ratio is of, such as "time, ours / theirs".
        ratios: one a pair.
        bar: what their median is held to; None where nothing is.
        sizes: what was run.
        note: what else has to be known.
        ours: the median rate of our way, in ``unit`` a second; None where there is none.
        theirs: the same of the other way.
        unit: what is counted.
    """

    what: str
    against: str
    measure: str
    ratios: tuple[float, ...]
    bar: Bar | None
    sizes: str
    note: str = ""
    ours: float | None = None
    theirs: float | None = None
    unit: str = "tokens"

    @property
    def ratio(self) -> float:
        """The median over pairs."""
        return median(self.ratios)

    @property
    def met(self) -> str:
        """ "yes", "missed", or "" where there is no bar."""
        return "" if self.bar is None else "yes" if self.bar.met(self.ratio) else "missed"


def compared(
    what: str,
    against: str,
    pairs: Pairs,
    measure: Literal["time", "speed"],
    bar: Bar | None,
    sizes: str,
    note: str = "",
) -> Row:
    """The row of what was timed in turn, its ratios being of time or of speed."""
    given = tuple(pairs.time if measure == "time" else pairs.speed)
    rates = median(pairs.ours), median(pairs.theirs)
    return Row(what, against, f"{measure}, ours / theirs", given, bar, sizes, note, *rates)


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The table (:data:`COLUMNS`): each row's median ratio, its extremes, and whether its bar is met."""
    made = []
    for row in rows:
        found = {k: v for k, v in asdict(row).items() if k in ("what", "against", "measure", "sizes", "note")}
        found |= {"ratio": row.ratio, "lowest": min(row.ratios), "highest": max(row.ratios)}
        found |= {"runs": len(row.ratios), "bar": str(row.bar or ""), "met": row.met, "unit": row.unit}
        made.append(found | {"ours per s": row.ours, "theirs per s": row.theirs})
    return pd.DataFrame(made, columns=list(COLUMNS)).astype({"ours per s": float, "theirs per s": float})
