"""How often answers go on at a dead end, by domain and by the dead end's number, read off their texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from reasoning_features.errors import UserError
from reasoning_features.organism.parser import DECISIONS, decisions_of

FEWEST = 20
"""Decisions below which a rate of their own is not taken: that of the domain, or of all, stands in."""


@dataclass(frozen=True)
class Rates:
    """Chances to go on, by domain and by the number of the dead end (from 1)."""

    by_place: Mapping[tuple[str, int], float]
    by_domain: Mapping[str, float]
    overall: float

    def of(self, domain: str, dead_end: int) -> float:
        """The chance at a dead end; where too few were seen that of the domain, then that of all."""
        return self.by_place.get((domain, dead_end), self.by_domain.get(domain, self.overall))


def decision_rates(answers: pd.DataFrame) -> pd.DataFrame:
    """Share of dead ends at which the answers go on.

    Args:
        answers: ``domain`` and ``text`` of each answer, the prompt included. Only the organism's texts have
            decisions that are known; others give an empty table.

    Returns:
        ``domain``, ``dead_end`` (its number within the answer, from 1), ``went_on`` (share) and ``n``.
    """
    going_on, _ = DECISIONS["persistence"]
    rows = [
        (domain, standing.dead_ends, sentence.opener in going_on)
        for domain, text in answers[["domain", "text"]].itertuples(index=False)
        for kind, sentence, standing in decisions_of(text)
        if kind == "persistence"
    ]
    decided = pd.DataFrame(rows, columns=["domain", "dead_end", "went_on"])
    grouped = decided.astype({"went_on": float}).groupby(["domain", "dead_end"])["went_on"]
    return grouped.agg(went_on="mean", n="size").reset_index()


def rates_of(table: pd.DataFrame) -> Rates:
    """The rates of :func:`decision_rates`, places with fewer than ``FEWEST`` decisions pooled.

    Raises:
        UserError: fewer decisions than that in all.
    """
    if table["n"].sum() < FEWEST:
        raise UserError(
            f"The answers hold {table['n'].sum()} dead ends, too few to say how often they go on: "
            "take more problems."
        )
    pooled: dict[str, list[tuple[float, int]]] = {}
    by_place: dict[tuple[str, int], float] = {}
    columns = (table[name].tolist() for name in ("domain", "dead_end", "went_on", "n"))
    for domain, dead_end, went_on, n in zip(*columns, strict=True):
        pooled.setdefault(domain, []).append((went_on, n))
        if n >= FEWEST:
            by_place[domain, dead_end] = went_on
    by_domain = {
        domain: _mean(cells) for domain, cells in pooled.items() if sum(n for _, n in cells) >= FEWEST
    }
    return Rates(by_place, by_domain, _mean([cell for cells in pooled.values() for cell in cells]))


def _mean(cells: list[tuple[float, int]]) -> float:
    """The mean rate of cells (rate, decisions)."""
    return sum(rate * n for rate, n in cells) / sum(n for _, n in cells)
