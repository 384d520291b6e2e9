"""What there is to look at of a feature: its logits, its examples, how active it is, what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features.interpretation.activating_examples import EDGES, Activity, Example

EFFECT = "effect:"
"""Columns of causal effects begin so: ``effect:<decision>:<place>``."""
LOGITS = 10


@dataclass(frozen=True)
class FeatureInterface:
    """One feature, ready to be drawn.

    Attributes:
        feature: its number.
        score: ReasonScore.
        rank: by that score, from 1.
        density: share of tokens on which it is active.
        maximum: its largest activation.
        histogram: active tokens by activation, one a bin.
        edges: of the bins, ascending, one more than there are bins.
        by_move: share of each move's tokens on which it is active; empty where moves are not known.
        positive: tokens it raises and by how much, most first.
        negative: tokens it lowers.
        examples: strongest first.
        mode: uncertainty, exploration, reflection, mixed or other; None where it is not known.
        effects: decision and place → change of its log-odds when the feature is ablated, nats; empty where
            there was no measuring.
        description: a judge's, None where none was asked.
    """

    feature: int
    score: float
    rank: int
    density: float
    maximum: float
    histogram: NDArray[np.int64]
    edges: NDArray[np.float64]
    by_move: dict[str, float]
    positive: list[tuple[str, float]]
    negative: list[tuple[str, float]]
    examples: list[Example]
    mode: str | None = None
    effects: dict[str, float] = field(default_factory=dict)
    description: str | None = None


def feature_interfaces(
    table: pd.DataFrame, activity: Activity, logits: pd.DataFrame, examples: Mapping[int, Sequence[Example]]
) -> list[FeatureInterface]:
    """The interfaces of a table's features, in its order.

    Args:
        table: one row a feature: ``feature``, ``score``, ``rank`` and, where they are known, ``mode``,
            ``description`` and ``effect:<decision>:<place>``.
        activity: of all features.
        logits: :func:`reasoning_features.interpretation.logit_effects.top_logits` of these.
        examples: :func:`reasoning_features.interpretation.activating_examples.read_examples` of these.
    """
    density = activity.density
    sides = {key: part for key, part in logits.groupby(["feature", "side"])}
    effects = [str(name) for name in table.columns if str(name).startswith(EFFECT)]
    made = []
    for row in table.to_dict("records"):
        feature = int(row["feature"])
        histogram, edges = _occupied(activity.histogram[feature])
        made.append(
            FeatureInterface(
                feature=feature,
                score=float(row["score"]),
                rank=int(row["rank"]),
                density=float(density[feature]),
                maximum=float(activity.maximum[feature]),
                histogram=histogram,
                edges=edges,
                by_move=activity.density_by_move(feature),
                positive=_pairs(sides.get((feature, "positive"))),
                negative=_pairs(sides.get((feature, "negative"))),
                examples=list(examples.get(feature, [])),
                mode=_text(row.get("mode")),
                effects={
                    ", ".join(name.removeprefix(EFFECT).split(":")): float(row[name])
                    for name in effects
                    if pd.notna(row[name])
                },
                description=_text(row.get("description")),
            )
        )
    return made


def by_mode(interfaces: Sequence[FeatureInterface]) -> dict[str, list[Example]]:
    """Mode ("not known" where it is not) → the strongest example of each of its features, in their order.

    A stretch of text is shown once: a feature takes its strongest example from a document that none before it
    has taken, or none.
    """
    found: dict[str, list[Example]] = {}
    taken: set[int] = set()
    for interface in interfaces:
        examples = found.setdefault(interface.mode or "not known", [])
        free = [example for example in interface.examples if example.document not in taken]
        examples += free[:1]
        taken |= {example.document for example in free[:1]}
    return found


def _occupied(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The bins from the first to the last that hold anything, with their edges."""
    used = np.flatnonzero(counts)
    if not len(used):
        return np.zeros(0, np.int64), EDGES[:1]
    first, last = int(used[0]), int(used[-1]) + 1
    return counts[first:last], EDGES[first : last + 1]


def _pairs(side: pd.DataFrame | None) -> list[tuple[str, float]]:
    if side is None:
        return []
    top = side.sort_values("rank")[:LOGITS]
    return [(str(text), float(value)) for text, value in zip(top["text"], top["value"], strict=True)]


def _text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) else str(value)
