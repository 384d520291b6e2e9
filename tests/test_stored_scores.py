"""Stored scores come back as they were."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reasoning_features.scoring.feature_statistics import FeatureStatistics
from reasoning_features.scoring.stored_scores import StoredScores, feature_table, load_scores

BEST = pd.DataFrame(
    {"feature": [0, 1, 2], "token": ["a", "b", "c"], "precision": 1.0, "recall": 0.5, "f1": 0.7}
)


def test_feature_table_and_round_trip(tmp_path):
    scores = np.array([0.1, 0.9, 0.4])
    table = feature_table(scores, 2, np.full(3, 0.2), BEST, {"token": scores / 2})
    assert table["rank"].tolist() == [3, 1, 2] and table["chosen"].tolist() == [False, True, True]
    assert table["best_token"].tolist() == ["a", "b", "c"]
    statistics = FeatureStatistics(("all", "word a 2-3"), np.array([3.0, 1]), np.arange(6.0).reshape(2, 3))
    stored = StoredScores(
        table, statistics, {"R": ("a",), "slot 0": ("b",)}, {"R": scores, "slot 0": scores[::-1].copy()}
    )
    stored.save(tmp_path, "arm")
    again = load_scores(tmp_path, "arm")
    pd.testing.assert_frame_equal(again.features, table)
    assert again.vocabularies == stored.vocabularies and again.statistics.names == statistics.names
    np.testing.assert_array_equal(again.scores["slot 0"], scores[::-1])
    np.testing.assert_array_equal(again.statistics.sums, statistics.sums)
