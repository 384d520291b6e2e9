"""What is gathered about a feature."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from reasoning_features.interpretation.feature_interface import FeatureInterface, by_mode, feature_interfaces

from reasoning_features.interpretation.activating_examples import EDGES, Activity, Example


def activity(histogram: np.ndarray) -> Activity:
    n = len(histogram)
    return Activity(
        tokens=100,
        active=histogram.sum(1),
        maximum=np.full(n, 3, np.float32),
        histogram=histogram,
        positions=np.full((n, 1), -1),
        activations=np.zeros((n, 1), np.float32),
        move_names=("explore", "verify"),
        move_tokens=np.array([60, 0]),
        move_active=np.stack([histogram.sum(1), np.zeros(n, int)]),
    )


def test_what_is_gathered():
    histogram = np.zeros((3, len(EDGES) - 1), np.int64)
    one = int(np.flatnonzero(EDGES == 1)[0])
    histogram[2, one], histogram[2, one + 2] = 9, 3
    table = pd.DataFrame({"feature": [2, 0], "score": [0.5, 0.1], "rank": [1, 7], "mode": ["mixed", None]})
    table["effect:persistence:decision"] = [0.25, np.nan]
    logits = pd.DataFrame(
        [
            [2, "positive", 2, 5, " b", 1.0],
            [2, "positive", 1, 4, " a", 2.0],
            [2, "negative", 1, 6, "c", -1.0],
        ],
        columns=["feature", "side", "rank", "token", "text", "value"],
    )
    example = Example(2, 0, ("a",), np.ones(1, np.float32), 0)
    first, second = feature_interfaces(table, activity(histogram), logits, {2: [example]})
    assert (first.feature, first.score, first.rank, first.mode) == (2, 0.5, 1, "mixed")
    assert first.density == 0.12 and first.by_move == {"explore": 0.2}  # no token of verify: nothing to say
    # from the first to the last bin that holds anything
    assert first.histogram.tolist() == [9, 0, 3]
    assert first.edges.tolist() == pytest.approx([1, 2**0.25, 2**0.5, 2**0.75])
    assert first.positive == [(" a", 2), (" b", 1)] and first.negative == [("c", -1)]
    assert first.examples == [example] and first.effects == {"persistence, decision": 0.25}
    assert first.description is None
    # a feature that is never active, of which nothing else is known
    assert second.mode is None and second.effects == {} and second.examples == [] and second.positive == []
    assert len(second.histogram) == 0 and second.density == 0


def test_by_mode_shows_a_document_once():
    def interface(feature: int, mode: str | None, documents: list[int]) -> FeatureInterface:
        examples = [Example(feature, document, ("a",), np.ones(1, np.float32), 0) for document in documents]
        none, edges = np.zeros(0, np.int64), np.ones(1)
        return FeatureInterface(feature, 0.0, 1, 0.1, 1.0, none, edges, {}, [], [], examples, mode)

    made = [interface(1, "mixed", [5, 6]), interface(2, None, [5, 7]), interface(3, "mixed", [5, 7])]
    shown = {
        mode: [(example.feature, example.document) for example in examples]
        for mode, examples in by_mode(made).items()
    }
    assert shown == {"mixed": [(1, 5)], "not known": [(2, 7)]}
