"""Published features: their ranks by our scores, chance, and steering beside the paper's numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tiny import signed_identity

from reasoning_features.errors import UserError
from reasoning_features.settings import load_settings
from reasoning_features.steering.benchmarks import STEERED
from reasoning_features.steering.published import (
    NAMED,
    RANDOM,
    beside_paper,
    check_published,
    found_table,
    overall,
    rank_table,
    share_found,
    steered_conditions,
    steered_table,
)

SETS = {"named": [0, 1, 9], "other": [5]}


def test_found_counts_those_among_the_best_and_chance():
    scores = {"paper": np.arange(10.0)[::-1], "released": np.arange(10.0)}
    table = found_table(scores, SETS, k=2).set_index(["dials", "set"])
    assert table.loc[("paper", "named"), "found"] == 2
    assert table.loc[("released", "named"), "found"] == 1
    assert table.loc[("paper", "named"), "by chance"] == pytest.approx(0.6)
    # both of the two best among three named of ten: C(3,2) / C(10,2)
    assert table.loc[("paper", "named"), "p"] == pytest.approx(3 / 45)
    assert table.loc[("paper", "other"), ["found", "p"]].tolist() == [0, 1.0]
    assert share_found(scores["paper"], SETS, 2).estimate == pytest.approx(2 / 4)
    ranks = rank_table(scores, SETS).set_index("feature")
    assert ranks.loc[9, "rank, paper"] == 10 and ranks.loc[9, "rank, released"] == 1
    assert ranks.loc[5, "sets"] == "other"


def test_a_feature_that_is_not_there():
    with pytest.raises(UserError, match="10, 12 are not there: this autoencoder has 0 to 9"):
        check_published({"a": [3, 12], "b": [10]}, 10)


@pytest.fixture
def evidence():
    table = pd.DataFrame({"score:reason score": [9.0, 1, 5, 8, 2, 3, 4, 0], "maximum": np.arange(8.0)})
    return table.assign(density=np.linspace(0, 0.4, 8), **{"decoder norm": 1.0})  # the best is never active


def settings(**changes):
    return load_settings("smoke").model_copy(update={"seed": 0, "gamma": 2.0} | changes)


def test_the_best_features_are_steered_where_none_are_named_and_a_random_one_beside_each(evidence):
    asked = settings(interpreted=2, selected=3, gammas=[-1.0, 2.0])
    conditions, kinds = steered_conditions(asked, signed_identity(4), evidence)
    # the third that ReasonScore chooses, 6, is not random either
    assert kinds["ReasonScore"] == [3, 2] and len(set(kinds[RANDOM]) & {1, 4, 5, 7}) == 2
    assert [(c.feature, c.gamma) for c in conditions[:4]] == [(3, -1), (3, 2), (2, -1), (2, 2)]
    assert conditions[1].vector is not None and conditions[1].vector.norm() == 2 * 3
    many = settings(interpreted=20, selected=20, gammas=[1.0])
    _, few = steered_conditions(many, signed_identity(4), evidence)
    assert [len(features) for features in few.values()] == [3, 3]  # seven are ever active


def test_named_features_are_steered_at_the_papers_strength_and_none_is_random(evidence):
    asked = settings(published={STEERED: [0, 2, 5]})  # 0 is never active
    conditions, kinds = steered_conditions(asked, signed_identity(4), evidence)
    assert [c.name for c in conditions[:2]] == ["2 at 2", "5 at 2"] and kinds[NAMED] == [2, 5]
    assert len(kinds[RANDOM]) == 2 and not set(kinds[RANDOM]) & {0, 2, 5}
    for condition in conditions:
        size = 2 * evidence["maximum"][condition.feature]
        assert condition.vector is not None and float(condition.vector.norm()) == pytest.approx(size)


def test_steering_is_paired_over_problems_and_votes_over_answers():
    rows = []
    for condition, feature, right in (
        ("unsteered", -1, [1, 0, 0, 1, 0, 0]),
        ("4395 at 2", 4395, [1, 1, 0, 1, 1, 0]),
    ):
        for number, correct in enumerate(right):  # three problems, twice
            rows.append((condition, feature, number, "MATH-500", str(correct), bool(correct), 10 + correct))
    columns = ["condition", "feature", "problem", "domain", "answer", "correct", "thinking_tokens"]
    table = steered_table(pd.DataFrame(rows, columns=columns), 3).set_index("condition")
    assert table.loc["unsteered", ["pass@1", "maj@k", "gain"]].tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    assert table.loc["4395 at 2", "gain"] == pytest.approx(1 / 3)
    assert table.loc["4395 at 2", ["problems", "k"]].tolist() == [3, 2]
    assert table.loc["4395 at 2", "longer"] == pytest.approx((32 / 3) / (31 / 3) - 1)
    beside = beside_paper(table.reset_index()).set_index("condition")
    assert beside.loc["4395 at 2", ["paper", "paper tokens", "version"]].tolist() == [95.4, 4.1, 2]
    assert beside.loc["unsteered", "paper"] == 93.2


def test_the_mean_over_features_leaves_random_ones_apart():
    rows = []
    for condition, feature, right, tokens in (("unsteered", -1, [0, 1], 10), ("a", 1, [1, 1], 12),
                                              ("b", 2, [0, 1], 14), ("c", 7, [0, 0], 11)):  # fmt: skip
        rows += [(condition, feature, number, bool(right[number]), tokens) for number in (0, 1)]
    columns = ["condition", "feature", "problem", "correct", "thinking_tokens"]
    told = overall(pd.DataFrame(rows, columns=columns), 2, [7])
    assert told.gain.estimate == pytest.approx(0.25) and told.gain.n == 2
    assert told.longer.estimate == pytest.approx(0.3)
    assert told.longer_random.estimate == pytest.approx(0.1)
