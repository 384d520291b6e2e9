"""Published features: their ranks by our scores, chance, and steering beside the paper's numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tiny import signed_identity

from reasoning_features.errors import UserError
from reasoning_features.steering.published import (
    RANDOM,
    beside_paper,
    check_published,
    found_table,
    overall,
    published_conditions,
    rank_table,
    share_found,
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


def test_controls_are_live_and_not_published():
    evidence = pd.DataFrame(
        {"maximum": np.linspace(1, 2, 16), "density": [0.1] * 15 + [0.0], "decoder norm": np.ones(16)}
    )
    evidence["density"] += np.linspace(0, 0.01, 16) * (evidence["density"] > 0)
    made = published_conditions(signed_identity(8), evidence, [2, 3, 15], 2.0, seed=0, controls=2)
    assert [c.name for c in made[:2]] == ["2 at 2", "3 at 2"]
    controls = [c for c in made if c.name.startswith(RANDOM)]
    assert len(controls) == 2 and not {c.feature for c in controls} & {2, 3, 15}
    for condition in made:
        size = condition.vector.norm()
        assert float(size) == pytest.approx(2 * evidence["maximum"][condition.feature], rel=1e-5)


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
    for condition, right, tokens in (("unsteered", [0, 1], 10), ("a", [1, 1], 12), ("b", [0, 1], 14),
                                     (f"{RANDOM} 7", [0, 0], 11)):  # fmt: skip
        rows += [(condition, number, bool(right[number]), tokens) for number in (0, 1)]
    told = overall(pd.DataFrame(rows, columns=["condition", "problem", "correct", "thinking_tokens"]), 2)
    assert told.gain.estimate == pytest.approx(0.25) and told.gain.n == 2
    assert told.longer.estimate == pytest.approx(0.3)
    assert told.longer_random.estimate == pytest.approx(0.1)
