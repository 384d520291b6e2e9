"""Tables of the steering studies: paired, corrected, and with planted differences found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.steering import steering_results as results
from reasoning_features.steering.search import CHOSEN, SLOT
from reasoning_features.steering.steering_study import COLUMNS, Study

N = 400


def made(kappa, seed, chances):
    """A study whose winners are right with known chances; ReasonScore's and the slot's may be one."""
    rng = np.random.default_rng(seed)
    uniform, frames = rng.random(N), []
    for group, chance in {UNSTEERED: 0.5, **chances}.items():
        frame = pd.DataFrame({"problem": np.arange(N), "domain": ["pair", "ops"] * (N // 2)})
        frame = frame.assign(group=group, condition=f"{group} at {chance}", feature=1, gamma=0.2)
        frame["share of norm"] = 0.1
        frames.append(frame.assign(correct=uniform < chance, thinking_tokens=40 + (group != UNSTEERED)))
    trials = pd.DataFrame({"group": list(chances), "correct": list(chances.values()), "gamma": 0.2})
    trials = trials.assign(candidate="x", feature=1, n=60, gain=trials["correct"] - 0.5)
    trials = trials.assign(condition=[f"{g} at {c}" for g, c in chances.items()], **{"share of norm": 0.1})
    identity = {"model": f"m{seed}", "kappa": kappa, "model_seed": seed}
    return Study(identity, trials, trials[[*COLUMNS, "correct"]], pd.concat(frames, ignore_index=True))


def test_table_one_finds_a_gain_where_there_is_one_and_corrects_for_looking():
    table = results.winners_table(made(1.0, 0, {CHOSEN: 0.8, SLOT: 0.5}))
    every = table[table["domain"] == results.ALL].set_index("class")
    assert every.loc[CHOSEN, "low"] > 0.2 and every.loc[CHOSEN, "p (Holm)"] < 0.01
    assert every.loc[SLOT, "gain"] == 0 and every.loc[SLOT, "p"] == 1
    assert every.loc[CHOSEN, "longer"] == 1 and np.isnan(every.loc[UNSTEERED, "p"])
    overall = results.overall_table(made(1.0, 0, {CHOSEN: 0.8, SLOT: 0.5})).set_index("class")
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


def test_a_study_agrees_with_itself_and_not_with_another():
    one, other = made(1.0, 0, {CHOSEN: 0.6, SLOT: 0.5}), made(1.0, 0, {CHOSEN: 0.7, SLOT: 0.5})
    assert results.agreement(one, one) == {"model": "m0", "winners": 1, "answers": 1, "screening": 0}
    assert results.agreement(one, other)["winners"] == 0.5
