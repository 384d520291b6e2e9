"""Effects at the decision beside those over the whole trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from reasoning_features.truth.scorers import Scorer
from reasoning_features.truth.stored_benchmarks import Benchmark, Truth
from reasoning_features.truth.whole_trace import (
    agreement_of_places,
    compare_places,
    evaluate_places,
    where_most_is_known,
)


def truth(features: list[int], effect: list[float], noise: float = 0.0) -> Truth:
    """Effects as they are, in 30 traces of one decision each; a feature passes from 0.2."""
    values = np.array(effect)
    sums = -values + noise * np.random.default_rng(0).standard_normal((30, len(values)))
    threshold = np.full(len(values), 0.2)
    return Truth(np.array(features), -sums.mean(0), sums, np.ones(30), threshold)


def benchmark(here: Truth, over: Truth) -> Benchmark:
    evidence = pd.DataFrame({"feature": range(6)})
    return Benchmark("coupled-0", 1.0, 0, "relu", 0, evidence, {"persistence": here}, {"persistence": over})


def test_places_side_by_side_largest_first():
    made = benchmark(truth([0, 2, 4, 5], [0.5, 0.3, 0.1, 0.0]), truth([0, 2, 5], [0.1, -0.9, 0.3]))
    table = compare_places(made, "persistence", chosen=[5, 3])
    assert table["feature"].tolist() == [2, 5, 0]
    # the change on ablation: minus the effect of the feature as it is
    assert table["at the decision"].tolist() == pytest.approx([-0.3, 0, -0.5])
    assert table["over the trace"].tolist() == pytest.approx([0.9, -0.3, -0.1])
    assert table["passes"].tolist() == ["both", "trace", "decision"]
    assert table["chosen"].tolist() == [False, True, False]
    assert table["trace low"].tolist() == pytest.approx(table["trace high"].tolist())


def test_intervals_hold_the_changes():
    made = benchmark(truth([0, 1], [0.5, 0.1], noise=0.3), truth([0, 1], [0.2, 0.4], noise=0.3))
    table = compare_places(made, "persistence", [])
    for name, prefix in (("at the decision", ""), ("over the trace", "trace ")):
        assert (table[f"{prefix}low"] < table[name]).all() and (table[name] < table[f"{prefix}high"]).all()


def test_places_agree_as_far_as_their_ranks_do():
    here, over = [0.5, -0.3, 0.1, 0.0], [0.4, 0.3, 0.05, -0.1]
    random = np.stack([np.zeros(4), np.array([1.0, 4, 16, 64]), np.array([1.0, 2, 4, 8])])
    made = benchmark(truth([0, 1, 2, 3], here), replace(truth([0, 1, 2, 3], over), random=random))
    found = agreement_of_places(made, "persistence")
    assert (found.features, found.at_decision, found.over_trace, found.both) == (4, 2, 2, 2)
    assert found.correlation.estimate == pytest.approx(spearmanr(here, over).statistic)
    assert found.correlation.low == found.correlation.high == pytest.approx(found.correlation.estimate)
    assert found.slope == pytest.approx(2)
    assert "2 of 4 pass at the decision" in str(found)


def test_only_where_every_feature_was_ablated_is_the_whole_trace_a_truth():
    here, over = truth([0, 1, 2], [0.5, 0.1, 0.0]), truth([0, 1, 2], [0.0, 0.7, 0.0])
    complete = benchmark(here, over)
    partial = benchmark(here, over.of(np.array([1])))
    without = replace(complete, over_trace={})
    assert [made.whole for made in (partial, without, complete)] == [False, False, True]
    assert not replace(complete, truths=complete.truths | {"verification": here}).whole
    another = replace(complete, model="another")
    assert where_most_is_known([partial, another], [without, complete]) == [complete, another]
    likes_one = Scorer("likes 1", lambda evidence: evidence["feature"] == 1, False, False, "here")
    table = evaluate_places([likes_one], [partial, complete], "persistence")
    found = table.query("metric == 'average precision' and scorer == 'likes 1'")
    # feature 1 is the one that passes over the trace; at the decision it is feature 0
    assert found.set_index("ablated")["estimate"].to_dict() == {"decision": pytest.approx(1 / 3), "trace": 1}
    assert evaluate_places([likes_one], [partial], "persistence").empty
