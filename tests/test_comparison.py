"""Trained beside frozen: levels and floors in one table, and differences that are what they should be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import signed_identity

from reasoning_features.dictionaries.evaluation import quality
from reasoning_features.foundations import comparison
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.statistics import Interval

GENERATOR = torch.Generator().manual_seed(0)
FRESH = ActivationBatch(torch.randn(400, 4, generator=GENERATOR), torch.arange(400))
DOCUMENTS = np.repeat(np.arange(20), 20)


def test_variance_explained_differs_by_what_is_explained_paired_over_documents() -> None:
    whole, half = signed_identity(4), signed_identity(4, gain=0.5)
    itself = comparison.variance_difference(FRESH, DOCUMENTS, whole, whole)
    assert (itself.estimate, itself.low, itself.high, itself.n) == (0, 0, 0, 20)
    found = comparison.variance_difference(FRESH, DOCUMENTS, whole, half)
    name = comparison.EXPLAINED
    expected = quality(whole, FRESH.residual)[name] - quality(half, FRESH.residual)[name]
    assert found.estimate == pytest.approx(expected) and found.low > 0.2
    narrow = comparison.variance_difference(FRESH, DOCUMENTS, whole, half, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_editing_is_read_at_each_dictionarys_own_number_of_latents() -> None:
    rows = [
        ("a", "both", 1, "left out"), ("a", "both", 5, "left out"), ("a", "both", 5, "kept"),
        ("a", "style", 5, "left out"), ("b", "both", 1, "left out"), ("b", "both", 5, "left out"),
        ("residual stream", "both", 1, ""), ("mean reconstruction", "both", 0, "left out"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["dictionary", "attribute", "n", "error"])
    found = comparison.at_chosen(table, {"a": 5, "b": 1})
    assert list(zip(found["dictionary"], found["n"], strict=True)) == [
        ("a", 5), ("b", 1), ("residual stream", 1), ("mean reconstruction", 0),
    ]  # fmt: skip


def test_a_row_has_both_intervals_and_the_null_keeps_its_share_of_the_distance() -> None:
    def difference(level: float) -> Interval:
        half = 0.1 if level > 0.92 else 0.05
        return Interval(0.2, 0.2 - half, 0.2 + half, 30)

    rows = pd.DataFrame(
        [
            comparison.row("a", [0.9, 0.7], 0.5, difference),
            comparison.row("b", [0.4, 0.7], 0.5, difference),
        ]
    )
    first = rows.iloc[0]
    ends = ["low", "low 90", "high 90", "high"]
    assert first[ends].tolist() == pytest.approx([0.1, 0.15, 0.25, 0.3]) and first["n"] == 30
    kept = comparison.kept(rows)["kept"]
    assert kept[0] == pytest.approx(0.5) and np.isnan(kept[1])
