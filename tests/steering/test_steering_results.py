"""What the studies say: planted differences found, votes and mixtures by hand, gains carried by decisions."""

from dataclasses import astuple, replace

import numpy as np
import pandas as pd
import pytest

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.claims import DOES_NOT, RECOVERS, UNDECIDED, Measured, all_claims, verdict
from reasoning_features.statistics import Interval, paired_difference
from reasoning_features.steering import steering_results as results
from reasoning_features.steering import steering_study as search
from reasoning_features.steering.questions import load_questions
from reasoning_features.steering.steering_results import RUNS, STEERED
from reasoning_features.steering.steering_study import CHOSEN, COLUMNS, FEATURES, SLOT, Study
from reasoning_features.steering.token_rules import COUNTERPARTS
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.truth.decisions import find_decisions

N, TRIED = 400, {"feature": 1, "gamma": -0.2, "share of norm": 0.1}


def made(kappa, seed, chances):
    """A study whose winners are right with known chances; ReasonScore's and the slot's may be one."""
    rng = np.random.default_rng(seed)
    uniform, frames = rng.random(N), []
    for group, chance in {UNSTEERED: 0.5, **chances}.items():
        frame = pd.DataFrame({"problem": np.arange(N), "domain": ["pair", "ops"] * (N // 2)})
        frame = frame.assign(group=group, condition=f"{group} at {chance}", **TRIED)
        frames.append(frame.assign(correct=uniform < chance, thinking_tokens=40 + (group != UNSTEERED)))
    trials = pd.DataFrame({"group": list(chances), "correct": list(chances.values()), "candidate": "x"})
    trials = trials.assign(n=60, gain=trials["correct"] - 0.5, **TRIED)
    trials["condition"] = [f"{group} at {chance}" for group, chance in chances.items()]
    identity = {"model": f"m{seed}", "kappa": kappa, "model_seed": seed}
    return Study(identity, trials, trials[[*COLUMNS, "correct"]], pd.concat(frames, ignore_index=True))


def test_table_one_finds_a_gain_where_there_is_one_and_corrects_for_looking():
    study = made(1.0, 0, {CHOSEN: 0.8, SLOT: 0.5})
    table = results.winners_table(study)
    every = table[table["domain"] == results.ALL].set_index("class")
    assert every.loc[CHOSEN, "low"] > 0.2 and every.loc[CHOSEN, "p (Holm)"] < 0.01
    assert every.loc[SLOT, "gain"] == 0 and every.loc[SLOT, "p"] == 1
    assert every.loc[CHOSEN, "longer"] == 1 and np.isnan(every.loc[UNSTEERED, "p"])
    overall = results.winners_table(study, families=False).set_index("class")
    pd.testing.assert_frame_equal(overall, every)
    families = table[(table["domain"] != results.ALL) & (table["class"] != UNSTEERED)]
    assert len(families) == 4 and set(families["n"]) == {N // 2}
    assert (families["p (Holm)"] >= families["p"]).all()


def test_a_trial_of_two_classes_is_told_and_holm_counts_every_row():
    study = made(1.0, 0, {CHOSEN: 0.7, SLOT: 0.5})
    again = study.evaluation[study.evaluation["group"] == CHOSEN].assign(group=search.AMPLIFIED[CHOSEN])
    both = replace(study, evaluation=pd.concat([study.evaluation, again]))
    rows = results.winners_table(both, families=False).set_index("class")
    assert rows["same as"].tolist() == ["", search.AMPLIFIED[CHOSEN], "", CHOSEN]
    assert rows.loc[CHOSEN, "p (Holm)"] == pytest.approx(3 * rows.loc[CHOSEN, "p"])


def test_the_variants_apart_have_an_interval_over_seeds():
    chances = (0.7, 0.75, 0.8)
    planted = [made(1.0, s, {CHOSEN: chances[s], SLOT: 0.5}) for s in range(3)]
    planted += [made(0.0, s, {CHOSEN: 0.5, SLOT: 0.5}) for s in range(3)]
    table = results.variants_apart(planted, SLOT).set_index("seed")
    assert table.index.tolist() == ["0", "1", "2", "all"] and table["n"].tolist() == [N, N, N, 3]
    seeds, every = table.iloc[:3], table.loc["all"]
    assert every[list(results.ARMS)].tolist() == pytest.approx(seeds[list(results.ARMS)].mean().tolist())
    half = 4.3027 * seeds["estimate"].std() / 3**0.5  # Student's t of two degrees of freedom
    middle = seeds["estimate"].mean()
    expected = pytest.approx([middle, middle - half, middle + half], abs=1e-5)
    assert every[["estimate", "low", "high"]].tolist() == expected and every["finding"] == "effect"
    # a problem is drawn for all four winners together
    paired = paired_difference(*(study.outcome(CHOSEN) - study.outcome(SLOT) for study in planted[::3]))
    assert table.loc["0", ["estimate", "low", "high", "n"]].tolist() == pytest.approx([*astuple(paired)])
    assert results.pairs([planted[0], planted[-1]]) == {}  # no seed of both


def test_a_shared_winner_makes_the_contrast_zero_by_construction():
    both = [made(1.0, 0, {CHOSEN: 0.6, SLOT: 0.5}), made(0.0, 0, {CHOSEN: 0.6, SLOT: 0.6})]
    both[1].rescreening["condition"] = "feature 1 at 0.2"
    row, every = results.variants_apart(both, SLOT).iloc
    assert row[results.ZERO] == results.ARMS[1] and row[results.ARMS[1]] == 0
    assert np.isnan(every["low"])  # of one seed


def test_screening_counts_stand_beside_the_papers():
    study = made(1.0, 0, {CHOSEN: 0.6, SLOT: 0.45, FEATURES: 0.45})
    study.screening.loc[2, "condition"] = study.screening.loc[1, "condition"]
    table = results.screening_counts(study).set_index("class")
    assert table.loc[CHOSEN, results.BETTER] == 1 and table.loc[SLOT, results.WORSE] == 1
    assert table.loc["the paper's 46 features", results.BETTER] == pytest.approx(9 / 46)
    assert table["same as"].tolist()[:3] == ["", FEATURES, SLOT]


def test_claims_have_both_intervals_and_controls():
    study = made(1.0, 0, {CHOSEN: 0.7, SLOT: 0.5, FEATURES: 0.55})
    effect = results.effect(study, CHOSEN)
    wide, narrow = effect.value, effect.narrow
    assert wide.n == 400 and wide.estimate == pytest.approx(0.2, abs=0.06)
    assert wide.low < narrow.low < wide.estimate < narrow.high < wide.high
    assert results.screening_effect(study) == Measured(Interval(1, 1, 1, n=1), control=1)


def test_the_best_control_is_chosen_before_fresh_problems_and_models_are_the_units():
    studies = [made(1.0, s, {CHOSEN: 0.7, SLOT: 0.55, FEATURES: 0.5 + 0.1 * s}) for s in range(2)]
    table = results.by_model(studies).set_index("what").loc[results.APART]  # of γ > 0 nothing went on
    assert table["control"].to_list()[:2] == [SLOT, FEATURES] and table["n"].to_list() == [N, N, 2]
    gains = [(studies[i].outcome(CHOSEN) - studies[i].outcome([SLOT, FEATURES][i])).mean() for i in range(2)]
    assert table["estimate"].to_list() == pytest.approx([*gains, np.mean(gains)])
    assert (table["longer"] == 0).all()


def votes(*samples):
    """Answers to two problems whose right answer is "a", sample by sample, ten tokens each."""
    cells = [(k, i, answer) for k, sample in enumerate(samples) for i, answer in enumerate(sample)]
    given = [(2 * k + i, answer, 10 + i) for k, i, answer in cells]
    table = pd.DataFrame(given, columns=["problem", "answer", "thinking_tokens"])
    return table.assign(correct=table["answer"] == "a")


def test_majorities_by_hand():
    answered = votes("ab", "bb", "ba", [None, "a"], "aa")
    found = results.majority_votes(answered.sample(frac=1, random_state=0), 2, [1, 2, 3, 4, 5])
    right = found.pivot(index="size", columns="problem", values="correct")
    assert right[0].tolist() == [True, True, False, False, True]  # a, tie to a, b b, b b, tie to a
    assert right[1].tolist() == [False, False, False, False, True]  # b, b b, b b, tie to b, a a a
    assert found.loc[found["size"] == 3, "tokens"].tolist() == [30, 33]
    assert not results.majority_votes(votes([None, "a"]), 2, [1])["correct"].iloc[0]


TO_STEERED, TO_UNSTEERED, *OWN = RUNS


def answered(right):
    """Answers by condition, right or wrong on each problem; an accuracy is of 200, the easiest first."""
    frames = []
    for name, own in right.items():
        correct = np.arange(200) < 200 * own if np.isscalar(own) else own
        frame = pd.DataFrame({"condition": name, "problem": range(len(correct)), "correct": correct})
        frames.append(frame.assign(thinking_tokens=9))
    return pd.concat(frames, ignore_index=True)


def test_the_mediated_share_is_of_forced_runs():
    given = {UNSTEERED: 0.6, STEERED: 0.8, TO_STEERED: 0.75, TO_UNSTEERED: 0.5, OWN[0]: 0.4, OWN[1]: 0.7}
    table = results.mediation_table(answered(given)).set_index("run")
    assert table["estimate"].to_dict() == pytest.approx({run: own - 0.4 for run, own in given.items()})
    share = results.mediated_share(answered(given))  # forcing costs 20 points, the vector 5 beside
    assert share.estimate == pytest.approx(0.35 / 0.3) and share.low < share.estimate < share.high
    rule = next(claim for claim in all_claims() if claim.id == "mediation")
    for accuracy, said in ((0.75, RECOVERS), (0.42, DOES_NOT), (0.56, UNDECIDED)):
        again = results.mediated_share(answered(given | {TO_STEERED: accuracy}))
        assert verdict(rule, Measured(again), planted=True) == said
    assert results.mediated_share(answered(given | {OWN[1]: 0.405})).n == 0


def test_the_mean_difference_acts_through_the_decisions(organism_subject):
    settings, subject = organism_subject
    splits = "selection", "evaluation"
    measured, reported = (load_questions(settings, subject.tokenizer, split, 32) for split in splits)
    traces = reasoning_corpus(settings, subject.tokenizer, "selection", settings.subject, documents=200)
    decisions = find_decisions(traces, subject.tokenizer, settings.corpus)["persistence"]
    direction = search.mean_difference(subject, decisions, settings.batch_tokens)
    norm = search.mean_norm(subject, traces, settings.batch_tokens)
    given = results.mediation_answers(subject, measured, reported, 0.3 * norm * direction, seed=0)
    assert len(given) == 32 * (2 + len(RUNS))
    means = given.groupby("condition")["explore"].mean()
    # tries follow the rates that are forced, whichever model they are forced on
    assert means[TO_STEERED] > means[UNSTEERED] + 0.5
    assert means[TO_UNSTEERED] < means[STEERED] - 0.5


def test_banning_r_is_compared_with_its_counterparts_and_with_random_sets():
    right = {UNSTEERED: [1, 1, 1, 1], "R": [1, 0, 0, 0], "random 0": [1, 1, 0, 0], "random 1": [1, 1, 1, 1]}
    banned = answered(right | {COUNTERPARTS: [1, 1, 1, 1]})
    table = results.ban_table(banned).set_index("banned")
    assert table.loc["R", "change"] == -0.75 and table.loc[COUNTERPARTS, "change"] == 0
    assert table.loc["random words", ["accuracy", "paper, MATH-500"]].tolist() == [0.75, "89.4 / 4.2k"]
    assert table.loc[f"R less {COUNTERPARTS}", "change"] == -0.75
    assert table.loc["R less random words", "change"] == -0.5
    beyond, cost = results.ban_effects([banned, banned.assign(correct=1)])
    assert (beyond.estimate, beyond.control, cost.estimate) == (0.75, 0, 0.5)
    assert results.ban_effects([answered(right)]) == (None, cost)
