"""A matched-budget search: classes of equal size, choices by their rules, winners on fresh problems."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.settings import load_settings
from reasoning_features.steering import steering_study as search
from reasoning_features.steering.steering_study import Tried, load_studies, run_study, shipped_study

D_SAE, D = 60, 8


@pytest.fixture
def sae():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(D_SAE, D, generator=generator)
    return SimpleNamespace(W_dec=decoder, cfg=SimpleNamespace(d_sae=D_SAE))


@pytest.fixture
def evidence(sae):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"maximum": rng.uniform(1, 5, D_SAE), "density": rng.uniform(0.01, 0.5, D_SAE)})
    table["decoder norm"] = sae.W_dec.norm(dim=1).numpy()
    table.loc[:4, "density"] = 0.0
    table.loc[:4, "maximum"] = 0.0
    names = ["reason score", *(f"{kind} {i}" for kind in ("slot", "random") for i in range(3))]
    for name in names:
        table[f"score:{name}"] = rng.normal(size=D_SAE)
    return table


def test_every_class_has_as_many_candidates_and_only_live_ones(evidence, sae):
    effects = np.where(evidence["density"] > 0, np.linspace(-1, 1, D_SAE), np.nan)
    made = search.candidates(evidence, sae, 6, 3, seed=1, effects=effects)
    groups = pd.Series([candidate.group for candidate in made]).value_counts()
    assert set(groups.index) == set(search.CLASSES) and set(groups) == {6}
    for candidate in made:
        if candidate.feature >= 0:
            expected = evidence["maximum"][candidate.feature] * sae.W_dec[candidate.feature]
            assert torch.allclose(candidate.vector, expected.float())
            assert evidence["density"][candidate.feature] > 0
    causal = {candidate.feature for candidate in made if candidate.group == search.CAUSAL}
    assert causal == set(np.argsort(-np.abs(np.nan_to_num(effects)), kind="stable")[:6])


def test_directions_have_the_sizes_of_the_chosen_features(evidence, sae):
    made = search.candidates(evidence, sae, 6, 3, seed=1)
    sizes = {
        group: torch.stack([c.vector for c in made if c.group == group]).norm(dim=1)
        for group in (search.CHOSEN, search.DIRECTIONS)
    }
    assert torch.allclose(sizes[search.CHOSEN], sizes[search.DIRECTIONS])
    assert search.CAUSAL not in {candidate.group for candidate in made}


def test_matched_features_are_near_and_none_of_the_chosen(evidence):
    live = np.flatnonzero(evidence["density"] > 0)
    chosen = live[:10]
    drawn = search.matched_features(evidence, chosen, live, seed=3)
    assert len(set(drawn)) == 10 and not set(drawn) & set(chosen)
    size = np.log(evidence["maximum"] * evidence["decoder norm"])
    far = np.abs(size[chosen].to_numpy()[:, None] - size[live].to_numpy()[None]).mean()
    assert np.abs(size[chosen].to_numpy() - size[drawn].to_numpy()).mean() < far


def test_in_turn_takes_the_first_of_each_then_the_second():
    rankings = [np.array([4, 1, 2, 3]), np.array([4, 2, 1, 3]), np.array([3, 4, 2, 1])]
    assert search.in_turn(rankings, 4).tolist() == [4, 3, 1, 2]


def test_a_vector_that_two_classes_hold_is_run_once_and_counted_in_both(evidence, sae):
    one = search.Candidate(search.CHOSEN, "feature 7", 7, sae.W_dec[7])
    other = search.Candidate(search.SLOT, "feature 7", 7, sae.W_dec[7])
    study = Tried([one, other], {}, norm=2.0)
    tried = study.trials([-0.2, 0.2])
    run = study.conditions(tried)
    assert [condition.name for condition in run] == ["feature 7 at -0.2", "feature 7 at 0.2"]
    assert tried["share of norm"].iloc[1] == pytest.approx(0.1 * float(sae.W_dec[7].norm()))
    names = [UNSTEERED] * 2 + [run[0].name] * 2 + [run[1].name] * 2
    answers = pd.DataFrame({"condition": names, "correct": [0, 1, 1, 1, 0, 0]})
    found = search.outcomes(tried, answers, ["correct"])
    assert found["gain"].tolist() == [0.5, -0.5, 0.5, -0.5] and set(found["n"]) == {2}


def test_ties_go_to_the_weaker_then_to_the_earlier():
    tried = pd.DataFrame(
        {
            "group": ["a"] * 4 + ["b"],
            "gamma": [0.4, -0.2, 0.2, 0.1, 0.4],
            "correct": [0.6, 0.6, 0.6, 0.5, 0.1],
        }
    )
    assert search.best(tried, 1)["gamma"].tolist() == [-0.2, 0.4]
    assert search.best(tried, 2)["gamma"].tolist() == [-0.2, 0.2, 0.4]


def test_too_few_features_or_vocabularies_are_told(evidence, sae):
    with pytest.raises(UserError, match="lower `candidates`"):
        search.candidates(evidence, sae, 40, 3, seed=0)
    with pytest.raises(UserError, match="lower `search_vocabularies`"):
        search.candidates(evidence, sae, 5, 4, seed=0)


GOOD = {"feature 1 at 0.2": 0.9, "feature 2 at -0.2": 0.7, "bias at 2": 0.8}


@pytest.fixture
def ask():
    """Answers by known chances; records what was asked at each stage."""
    seen: dict[str, list[str]] = {}

    def run(stage, conditions):
        names = [condition.name for condition in conditions]
        assert len(names) == len(set(names))
        seen[stage] = names
        rng = np.random.default_rng(len(seen))
        rows = [
            {
                "condition": name,
                "problem": problem,
                "domain": "pair",
                "correct": bool(rng.random() < GOOD.get(name, 0.5)),
                "thinking_tokens": 40,
            }
            for name in [UNSTEERED, *names]
            for problem in range(400 if stage != "evaluation" else 300)
        ]
        return pd.DataFrame(rows)

    run.seen = seen
    return run


@pytest.fixture
def study(ask):
    vectors = {feature: torch.full((4,), float(feature)) for feature in (1, 2, 3)}
    holders = {search.CHOSEN: (1, 2), search.SLOT: (2, 3)}
    made = [
        search.Candidate(group, f"feature {feature}", feature, vectors[feature])
        for group, features in holders.items()
        for feature in features
    ]
    biases = {"bias": [Condition("bias at 1", gamma=1.0), Condition("bias at 2", gamma=2.0)]}
    measures = ("correct", "thinking_tokens")
    return run_study({"model": "m"}, Tried(made, biases, 10.0), (-0.2, 0.2), 2, measures, ask)


def test_each_stage_asks_each_condition_once(study, ask):
    assert list(ask.seen) == ["screening", "rescreening", "evaluation"]
    assert len(ask.seen["screening"]) == 6  # three vectors at two strengths; two classes share one
    assert len(study.screening) == 8
    assert study.rescreening.groupby("group").size().to_dict() == {
        search.CHOSEN: 2,
        search.SLOT: 2,
        "bias": 2,
    }


def test_one_winner_a_class_is_put_to_fresh_problems(study):
    winners = study.winners.set_index("group")
    assert winners.loc[search.CHOSEN, "condition"] == "feature 1 at 0.2"
    assert winners.loc[search.SLOT, "condition"] == "feature 2 at -0.2"
    assert winners.loc["bias", "condition"] == "bias at 2"
    assert winners.loc[search.CHOSEN, "share of norm"] == pytest.approx(0.2 * 2 / 10)
    assert set(study.evaluation["group"]) == {UNSTEERED, search.CHOSEN, search.SLOT, "bias"}
    assert len(study.outcome(search.CHOSEN)) == 300
    assert study.outcome(search.CHOSEN).mean() == pytest.approx(0.9, abs=0.07)


def test_a_study_is_read_as_it_was_written(study, tmp_path):
    study.save(tmp_path / "m")
    (again,) = load_studies(tmp_path).values()
    assert again.identity == study.identity
    pd.testing.assert_frame_equal(again.evaluation, study.evaluation)
    pd.testing.assert_frame_equal(again.winners, study.winners)
    assert list(load_studies(tmp_path)) == ["m"]


def test_a_shipped_study_is_read_only_under_the_settings_it_was_made_with():
    shipped = load_studies(paths.resolve("data/organism/steering"))
    decoupled = shipped["decoupled-0-relu-0"]
    found = shipped_study(load_settings("organism"), shipped, decoupled.identity)
    assert found is decoupled
    for override in ({"alpha": 0.3}, {"layer": 3}, {"screening_problems": 4}):
        assert shipped_study(load_settings("organism", **override), shipped, decoupled.identity) is None
    assert shipped_study(load_settings("organism"), shipped, decoupled.identity | {"model": "mine"}) is None


def test_a_study_that_is_missing_or_broken_is_told(study, tmp_path):
    with pytest.raises(MissingArtefact, match="make organism"):
        load_studies(tmp_path / "none")
    study.save(tmp_path / "m")
    (tmp_path / "m" / "screening.parquet").write_bytes(b"half")
    with pytest.raises(CorruptArtefact, match="restore"):
        load_studies(tmp_path)


@pytest.fixture
def strengths():
    sae = SimpleNamespace(W_dec=torch.eye(4) * 2, cfg=SimpleNamespace(d_sae=4))
    evidence = pd.DataFrame({"maximum": [0.0, 5.0, 1.0, 1.0], "decoder norm": [2.0] * 4})
    others = {"mean difference": [Condition("md at -0.1", gamma=-0.1, vector=torch.ones(4))]}
    return search.strength_trials(sae, evidence, {"feature 1": 1}, [-0.2, 0.4], 20.0, others)


def test_a_feature_is_added_and_clamped_at_every_strength_and_others_added(strengths):
    conditions, trials = strengths
    assert len(conditions) == len(trials) == 5 and trials["condition"].is_unique
    assert trials["how"].tolist() == [search.ADDED] * 2 + [search.CLAMPED] * 2 + [search.ADDED]
    assert trials["share of norm"].tolist() == pytest.approx([-0.1, 0.2, -0.1, 0.2, -0.1])
    assert conditions[1].vector is not None and conditions[3].clamp == pytest.approx(2.0)


def test_curves_are_means_with_intervals(strengths):
    _, trials = strengths
    one = trials["condition"].iloc[1]
    names = [name for name in trials["condition"] for _ in range(4)]
    answered = pd.DataFrame({"condition": names, "correct": [True, False] * 10, "thinking_tokens": 30})
    answered.loc[answered["condition"] == one, "correct"] = True
    found = search.strength_curves(answered, trials).set_index(["condition", "measure"])
    assert found.loc[(one, "accuracy"), "mean"] == 1
    row = found.loc[(trials["condition"].iloc[0], "accuracy")]
    assert row["mean"] == 0.5 and row["low"] < 0.5 < row["high"] and row["n"] == 4
    assert set(found.xs("thinking tokens", level="measure")["mean"]) == {30}
