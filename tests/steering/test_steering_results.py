"""What the studies say: tables, claims and figures, with planted differences found."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible
from studies import N, made

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.claims import Measured
from reasoning_features.statistics import Interval
from reasoning_features.steering import steering_results as results
from reasoning_features.steering.steering_study import CHOSEN, FEATURES, SLOT


def test_table_one_finds_a_gain_where_there_is_one_and_corrects_for_looking():
    table = results.winners_table(made(1.0, 0, {CHOSEN: 0.8, SLOT: 0.5}))
    every = table[table["domain"] == results.ALL].set_index("class")
    assert every.loc[CHOSEN, "low"] > 0.2 and every.loc[CHOSEN, "p (Holm)"] < 0.01
    assert every.loc[SLOT, "gain"] == 0 and every.loc[SLOT, "p"] == 1
    assert every.loc[CHOSEN, "longer"] == 1 and np.isnan(every.loc[UNSTEERED, "p"])
    overall = results.winners_table(made(1.0, 0, {CHOSEN: 0.8, SLOT: 0.5}), families=False).set_index("class")
    pd.testing.assert_frame_equal(overall, every)
    families = table[(table["domain"] != results.ALL) & (table["class"] != UNSTEERED)]
    assert len(families) == 4 and set(families["n"]) == {N // 2}
    assert (families["p (Holm)"] >= families["p"]).all()


def test_the_arms_apart_hold_a_planted_difference_and_say_nothing_where_there_is_none():
    planted = [made(1.0, s, {CHOSEN: 0.75, SLOT: 0.5}) for s in range(3)]
    planted += [made(0.0, s, {CHOSEN: 0.5, SLOT: 0.5}) for s in range(3)]
    table = results.arms_apart(planted).set_index("seed")
    assert list(table.index) == ["0", "1", "2", "all"]
    assert table.loc["all", "low"] < 0.25 < table.loc["all", "high"]
    assert table.loc["all", "finding"] == "effect"
    assert table.loc["all", "high"] - table.loc["all", "low"] < table.loc["0", "high"] - table.loc["0", "low"]
    none = [made(kappa, 0, {CHOSEN: 0.6, SLOT: 0.6}) for kappa in (1.0, 0.0)]
    assert set(results.arms_apart(none)["finding"]) == {"no effect"}


def test_arms_without_a_common_seed_are_told():
    with pytest.raises(UserError, match="no seed has a study of both arms"):
        results.arms_apart([made(1.0, 0, {CHOSEN: 0.5, SLOT: 0.5}), made(0.0, 1, {CHOSEN: 0.5, SLOT: 0.5})])


def test_contrasts_say_where_two_classes_have_one_winner():
    study = made(1.0, 0, {CHOSEN: 0.7, SLOT: 0.5})
    one = study.evaluation["group"] == SLOT
    study.evaluation.loc[one, "condition"] = f"{CHOSEN} at 0.7"
    table = results.contrasts([study]).set_index("against")
    assert bool(table.loc[SLOT, "same"]) and not bool(table.loc[UNSTEERED, "same"])
    assert table.loc[UNSTEERED, "estimate"] == pytest.approx(0.2, abs=0.06)


def test_screening_counts_stand_beside_the_papers():
    study = made(1.0, 0, {CHOSEN: 0.6, SLOT: 0.45})
    table = results.screening_counts(study).set_index("class")
    assert table.loc[CHOSEN, results.BETTER] == 1 and table.loc[SLOT, results.WORSE] == 1
    assert table.loc["the paper's 46 features", results.BETTER] == pytest.approx(9 / 46)


@pytest.fixture
def study():
    return made(1.0, 0, {CHOSEN: 0.7, SLOT: 0.5, FEATURES: 0.55})


def test_a_study_agrees_with_itself_and_not_with_another_of_as_many_trials():
    one, other = made(1.0, 0, {CHOSEN: 0.6, SLOT: 0.5}), made(1.0, 0, {CHOSEN: 0.7, SLOT: 0.5})
    expected = {"model": "m0", "winners": 1, "answers": 1, "screening": 0}
    assert results.agreements([one], [one]).iloc[0].to_dict() == expected
    assert results.agreements([one], [other])["winners"].tolist() == [0.5]
    fewer = replace(one, screening=one.screening.head(1))
    assert results.agreements([one], [fewer, made(1.0, 1, {CHOSEN: 0.6, SLOT: 0.5})]).empty


def test_an_effect_has_both_intervals(study):
    found = results.effect(study, CHOSEN)
    wide, narrow = found.value, found.narrow
    assert wide.n == 400 and wide.estimate == pytest.approx(0.2, abs=0.06)
    assert wide.low < narrow.low < wide.estimate < narrow.high < wide.high


def test_length_is_relative_to_the_unsteered_model(study):
    found = results.length_effect(study, [SLOT])
    assert found.value.estimate == pytest.approx(1 / 40) and found.control == pytest.approx(1 / 40)


def test_the_strongest_control_is_chosen_before_fresh_problems(study):
    study.evaluation.loc[study.evaluation["group"] == SLOT, "correct"] = True
    assert results.strongest_control(study, [SLOT, FEATURES]) == FEATURES


def test_screening_counts_candidates(study):
    found = results.screening_effect(study, [SLOT])
    assert found == Measured(Interval(1, 1, 1, n=1), control=0)


def test_the_difference_is_over_all_seeds():
    studies = [
        made(kappa, s, {CHOSEN: 0.5 + 0.2 * kappa, SLOT: 0.5}) for s in range(2) for kappa in (1.0, 0.0)
    ]
    found = results.difference_effect(studies)
    assert found.value.estimate == pytest.approx(0.2, abs=0.05) and found.value.low > 0.1


@pytest.fixture
def banned():
    right = {UNSTEERED: [1, 1, 1, 1], "R": [1, 0, 0, 0], "random 0": [1, 1, 0, 0], "random 1": [1, 1, 1, 1]}
    right |= {"twins of R": [1, 1, 1, 1]}
    frames = [
        pd.DataFrame({"condition": name, "problem": np.arange(4), "correct": values, "thinking_tokens": 9})
        for name, values in right.items()
    ]
    return pd.concat(frames, ignore_index=True)


def test_banning_r_is_compared_with_the_mean_of_random_sets(banned):
    table = results.ban_table(banned).set_index("banned")
    assert table.loc["R", "change"] == -0.75 and table.loc["twins of R", "change"] == 0
    assert table.loc["random words (2 sets)", "accuracy"] == 0.75
    assert table.loc["R less random words", "change"] == -0.5
    assert results.ban_effect(banned).value.estimate == 0.5
    assert results.run_effect(banned, "R", UNSTEERED).value.estimate == -0.75


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def arms():
    return {
        name: made(kappa, 0, {CHOSEN: 0.6, SLOT: 0.5})
        for name, kappa in (("coupled", 1.0), ("decoupled", 0.0))
    }


def test_screening_and_winners_have_a_row_a_class(arms):
    fig, data = results.draw_screening(arms)
    assert len(fig.axes) == 2 and set(data["arm"]) == set(arms)
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [CHOSEN, SLOT]
    fig, data = results.draw_winners({arm: results.winners_table(study) for arm, study in arms.items()})
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [CHOSEN, SLOT]


def test_the_arms_apart_have_a_row_a_seed_and_one_for_all(arms):
    table = results.arms_apart(list(arms.values()))
    fig, data = results.draw_arms_apart({SLOT: table})
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["seed 0", "all seeds"]
    assert set(data["against"]) == {SLOT}


def test_many_classes_arms_and_vectors_are_legible(arms):
    study = arms["coupled"]
    rows = [study.screening.assign(group=f"class number {i}") for i in range(20)]
    fig, _ = results.draw_screening({"one": replace(study, screening=pd.concat(rows)), "two": study})
    assert len(fig.axes[0].get_yticklabels()) == 22
    legible(fig)
    table = results.winners_table(study)
    winners = [
        table.assign(**{"class": f"class number {i}", "domain": results.ALL}).head(1) for i in range(20)
    ]
    fig, _ = results.draw_winners({f"arm {i}": pd.concat(winners) for i in range(12)})
    points = [held for held in fig.axes[0].collections if held.get_label().startswith("arm")]
    assert different((held.get_facecolor(), held.get_paths()) for held in points) and len(points) == 12
    legible(fig)
    apart = results.arms_apart(list(arms.values()))
    seeds = pd.concat([apart.assign(seed=i) for i in range(10)])
    fig, _ = results.draw_arms_apart({f"words {i}": seeds for i in range(5)})
    legible(fig)
    ends = {"mean": 0.5, "accuracy": 0.5, "low": 0.4, "high": 0.6}
    grid = pd.MultiIndex.from_product(
        [[f"vector {i}" for i in range(20)], ["accuracy", "thinking tokens"], [-0.1, 0.1]]
    )
    curves = grid.to_frame(index=False, name=["vector", "measure", "share of norm"]).assign(
        how="added", **ends
    )
    fig = results.draw_strengths(curves)
    assert different((line.get_color(), line.get_marker()) for line in fig.axes[0].lines[:-1])
    legible(fig)
    spent = curves.rename(columns={"vector": "method", "share of norm": "tokens"})
    fig = results.draw_spending(spent)
    assert different((line.get_color(), line.get_marker()) for line in fig.axes[0].lines)
    legible(fig)
    forest = curves.rename(columns={"mean": "estimate", "share of norm": "panel"})
    forest = forest[forest["measure"] == "accuracy"]
    fig = results.draw_forest(forest, "vector", "panel", "gain (points)", 100)
    legible(fig)
