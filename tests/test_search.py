"""The equal search: every class has as many candidates, and choices follow their rules."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.steering import search

D_SAE, D = 60, 8


@pytest.fixture
def sae():
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(W_dec=torch.randn(D_SAE, D, generator=generator))


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
    tried = search.trials([one, other], [-0.2, 0.2], norm=2.0)
    run = search.conditions([one, other], tried)
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
