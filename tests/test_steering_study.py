"""The study's rules: who is tried again, who wins, and that winners are told on fresh problems alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.settings import load_settings
from reasoning_features.steering import search
from reasoning_features.steering.steering_study import load_studies, load_study, run_study
from reasoning_features.steering.studied_model import shipped_study

GOOD = {"feature 1 at 0.2": 0.9, "feature 2 at -0.2": 0.7, "bias at 2": 0.8}
"""Chance of a right answer under a condition; all others have 0.5."""


@dataclass
class Asked:
    name: str
    n: int
    measures: tuple[str, ...] = ("correct", "thinking_tokens")


@pytest.fixture
def ask():
    """Answers by known chances; records what was asked at each stage."""
    seen: dict[str, tuple[str, list[str]]] = {}

    def run(questions, conditions, stage):
        names = [condition.name for condition in conditions]
        assert len(names) == len(set(names))
        seen[stage] = (questions.name, names)
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
            for problem in range(questions.n)
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
    questions = [Asked(name, n) for name, n in (("first", 400), ("second", 400), ("fresh", 300))]
    return run_study({"model": "m"}, made, biases, (-0.2, 0.2), 2, 10.0, *questions, ask)


def test_each_stage_asks_problems_of_its_own_and_each_condition_once(study, ask):
    assert [ask.seen[stage][0] for stage in ("screening", "rescreening", "evaluation")] == [
        "first",
        "second",
        "fresh",
    ]
    assert len(ask.seen["screening"][1]) == 6  # three vectors at two strengths; two classes share one
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
    again = load_study(tmp_path / "m")
    assert again.identity == study.identity
    pd.testing.assert_frame_equal(again.evaluation, study.evaluation)
    pd.testing.assert_frame_equal(again.winners, study.winners)
    assert list(load_studies(tmp_path)) == ["m"]


def test_a_study_that_is_missing_or_broken_is_told(study, tmp_path):
    with pytest.raises(MissingArtefact, match="make organism"):
        load_study(tmp_path / "none")
    with pytest.raises(MissingArtefact, match="make organism"):
        load_studies(tmp_path / "none")
    study.save(tmp_path / "m")
    (tmp_path / "m" / "screening.parquet").write_bytes(b"half")
    with pytest.raises(CorruptArtefact, match="restore"):
        load_study(tmp_path / "m")


def test_a_shipped_study_is_read_only_under_the_settings_it_was_made_with():
    shipped = load_studies(paths.resolve("data/organism/steering"))
    decoupled = shipped["decoupled-0-relu-0"]
    found = shipped_study(load_settings("organism"), shipped, decoupled.identity)
    assert found is decoupled
    for override in ({"alpha": 0.3}, {"layer": 3}, {"screening_problems": 4}):
        assert shipped_study(load_settings("organism", **override), shipped, decoupled.identity) is None
    assert shipped_study(load_settings("organism"), shipped, decoupled.identity | {"model": "mine"}) is None
