"""Presence: a planted feature is found where it was planted; bounds, pairs and activations by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import signed_identity

from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.dictionaries.training import Recipe, train_autoencoder
from reasoning_features.diffing import presence as diff
from reasoning_features.diffing.presence import RANDOM, VERDICTS, Bounds
from reasoning_features.diffing.stages import stage_recipe
from reasoning_features.errors import UserError

WIDTH = 16
RECIPE = Recipe("relu", d_sae=32, tokens=1500 * 256, learning_rate=1e-2, batch=256, l1=0.05)


def directions(seed: int, n: int = 40) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def activations(active: torch.Tensor, seed: int, n: int = 8000) -> torch.Tensor:
    """Sums of directions that are each active on one token in ten."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, len(active), generator=generator) < 0.1
    return (on * (5 + torch.rand(n, len(active), generator=generator))) @ active


def test_a_feature_planted_at_a_stage_is_found_there_and_in_no_placebo():
    basis = torch.linalg.qr(directions(0, WIDTH))[0]
    old, new = basis[:8], basis[8:9]
    base, planted = activations(old, 1), activations(torch.cat([old, new]), 2)
    start = train_autoencoder(base, RECIPE, "base", "hook").sae
    recipe = stage_recipe(RECIPE, "S-D")
    assert recipe.tokens == round(0.3 * RECIPE.tokens)
    stages = {
        "S": start.W_dec,
        "S-S": train_autoencoder(base, stage_recipe(RECIPE, "S-S"), "base", "hook", initial=start).sae.W_dec,
        "S-D": train_autoencoder(planted, recipe, "base", "hook", initial=start).sae.W_dec,
    }
    cosines = diff.stage_cosines(torch.cat([old, new]), stages)
    assert (cosines.iloc[:8] > 0.9).all(axis=None)  # what was there stays, at every stage
    assert cosines["S-D"].iloc[8] > 0.9
    assert cosines["S"].iloc[8] < 0.7 and cosines["S-S"].iloc[8] < 0.7


def test_a_rotation_keeps_angles_and_loses_places():
    decoder = directions(1)
    turned = diff.rotated(decoder, 3)
    assert torch.allclose(turned @ turned.T, decoder @ decoder.T, atol=1e-3)
    assert torch.equal(turned, diff.rotated(decoder, 3))
    assert best_cosines(decoder, turned).mean() < 0.9
    assert not torch.allclose(turned, diff.rotated(decoder, 4))


def test_the_threshold_lies_between_what_chance_and_a_second_seed_reach():
    ceiling = np.array([0.9, 0.95, 0.8, 0.99])
    floor = np.array([[0.2, 0.3, 0.25, 0.4]])
    assert diff.calibrated(ceiling, floor) == pytest.approx(0.6)  # the middle of 0.4 and 0.8
    # one feature that the second seed lacks does not move it
    assert diff.calibrated(np.append(ceiling, 0.1), floor) == pytest.approx(0.6)
    # a permuted copy of a decoder, and a decoder without a second seed
    decoder = directions(2)
    found = diff.bounds(decoder, decoder[torch.randperm(40)])
    assert found.ceiling == pytest.approx(1.0)
    assert found.floor.shape == (5, 40) and found.floor.max() < found.threshold < 1
    assert found.tested(found.threshold).all()
    assert diff.bounds(decoder, None).threshold == 0.7
    # where all are alike there is no threshold that tells them apart, and it is still one of the cosines
    assert 0 < diff.calibrated(floor[0], floor) <= 0.4


def test_frequency_matched_features_are_others_and_as_frequent():
    density = np.geomspace(1e-4, 0.1, 100)
    density[50] = 0.0
    chosen = np.array([5, 60, 90])
    drawn = diff.frequency_matched(chosen, density, draws=20, seed=0)
    assert drawn.shape == (20, 3)
    assert not np.isin(drawn, [*chosen, 50]).any()
    assert all(len(set(draw)) == 3 for draw in drawn.tolist())
    assert np.abs(np.log(density[drawn] / density[chosen])).max() < 1
    assert len(np.unique(drawn, axis=0)) > 1
    with pytest.raises(UserError, match="60 features are to be matched, but only 40 others"):
        diff.frequency_matched(np.arange(60), density, draws=1, seed=0)


@pytest.fixture
def cosines() -> pd.DataFrame:
    """Ten features: the first four appear at the last stage, the others are there all along."""
    there = np.linspace(0.75, 0.95, 10)
    return pd.DataFrame({"S": np.where(np.arange(10) < 4, 0.3, there), "F": there})


def test_presence_counts_tested_features_alone(cosines):
    tested = np.ones(10, dtype=bool)
    tested[0] = False
    groups = {"new": np.arange(4), "old": np.arange(4, 10), "untested": np.array([0])}
    random = np.array([[4, 5], [6, 7]])
    table = diff.presence(cosines, groups, random, tested, 0.7).set_index(["stage", "group"])
    assert table.loc[("S", "new"), ["share", "n"]].tolist() == [0.0, 3]
    assert table.loc[("F", "new"), "share"] == 1.0
    assert table.loc[("S", "old"), ["share", "n"]].tolist() == [1.0, 6]
    assert np.isnan(table.loc[("S", "untested"), "share"]) and table.loc[("S", "untested"), "n"] == 0
    assert table.loc[("S", RANDOM), ["share", "low", "high"]].tolist() == [1.0, 1.0, 1.0]


def test_what_appears_and_what_goes(cosines):
    stages = cosines.assign(lost=np.where(np.arange(10) < 8, cosines["S"], 0.1))
    random = np.array([[4, 5, 6, 7], [6, 7, 8, 9]])
    groups = {"new": np.arange(4), "last": np.arange(8, 10)}
    at = diff.changes(stages, groups, random, np.ones(10, bool), 0.7)
    at = at.set_index(["stage", "change", "group"]).sort_index()
    assert at.loc[("F", "appears", "new"), ["share", "n"]].tolist() == [1.0, 4]
    assert at.loc[("F", "goes", "new"), "share"] == at.loc[("lost", "appears", "new"), "share"] == 0.0
    assert at.loc[("lost", "goes"), "share"].to_dict() == {"new": 0.0, "last": 1.0, RANDOM: 0.25}
    # four of four: the interval is of a share that need not be one
    assert 0.4 < at.loc[("F", "appears", "new"), "low"] < 0.8
    with pytest.raises(UserError, match="No feature is found again"):
        diff.changes(stages, groups, random, np.zeros(10, bool), 0.7)


def test_presence_falls_as_the_threshold_rises(cosines):
    limits = Bounds(np.full(10, 1.0), np.full((2, 10), 0.2), 0.6)
    thresholds = np.linspace(0, 1, 21)
    sweep = diff.threshold_sweep(cosines, {"all": np.arange(10), "new": np.arange(4)}, limits, thresholds)
    for _, part in sweep.groupby(["stage", "group"]):
        assert (np.diff(part.sort_values("threshold")["share"]) <= 0).all()
    at = sweep[sweep["threshold"] == thresholds[10]].set_index(["stage", "group"])["share"]
    assert at["S", "all"] == 0.6 and at["F", "all"] == 1.0
    assert at["second seed", "all"] == 1.0 and at["rotated", "all"] == 0.0
    # the ceiling by frequency
    density = np.array([0.0, 0.001, 0.002, 0.1, 0.2])
    limits = Bounds(np.array([0.1, 0.5, 0.6, 0.9, 1.0]), np.full((2, 5), 0.2), 0.55)
    table = diff.by_frequency(limits, density, bins=2)
    assert table["features"].tolist() == [2, 2]
    assert table["ceiling"].tolist() == pytest.approx([0.55, 0.95])


def test_activations_against_numpy_in_parts_as_at_once(monkeypatch):
    one, two = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(1))
    two += one
    sae, seen = signed_identity(4), []
    a, b = (sae.encode(x).double().numpy() for x in (one, two))
    expected = np.corrcoef(a.T, b.T)[:8, 8:]
    assert diff.activation_correlation(sae, one, sae, two) == pytest.approx(expected, abs=1e-5)
    assert expected[0, 4] < 0  # a coordinate and its opposite
    partners = np.array([3, 1, 0, 2, 7, 6, 5, 4])
    correlation = diff.paired_similarity(sae, one, sae, two, partners)
    assert correlation == pytest.approx(expected[np.arange(8), partners], abs=1e-5)
    assert diff.paired_similarity(sae, one, sae, one) == pytest.approx(1.0)
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    cosine = diff.paired_similarity(sae, one, sae, two, centred=False)
    assert cosine == pytest.approx((a * b).sum(axis=0) / norms, abs=1e-5)
    encode = sae.encode
    monkeypatch.setattr(sae, "encode", lambda x: seen.append(len(x)) or encode(x))
    monkeypatch.setattr("reasoning_features.dictionaries.autoencoder.ELEMENTS", 10 * sae.cfg.d_sae)
    assert diff.activation_correlation(sae, one, sae, two) == pytest.approx(expected, abs=1e-5)
    assert diff.paired_similarity(sae, one, sae, two, partners) == pytest.approx(correlation, abs=1e-6)
    assert max(seen) == 10  # few features stand in memory at once
    some = diff.largest_correlations(sae, one, {"other": (sae, two)}, np.array([5, 1]))["other"]
    assert some.dropna().to_dict() == pytest.approx({i: expected[i].max() for i in (1, 5)}, abs=1e-5)
    one[:, 0] = 0.0  # a feature that never fires is like none
    assert (diff.activation_correlation(sae, one, sae, one)[[0, 4]] == 0).all()
    assert (diff.paired_similarity(sae, one, sae, one, centred=False)[[0, 4]] == 0).all()


def test_a_permuted_decoder_is_put_back_and_no_partner_is_used_twice():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(30, 12, generator=generator)
    order = torch.randperm(30, generator=generator)
    other = decoder[order] * 7 + 0.05 * torch.randn(30, 12, generator=generator)
    assert order[diff.pair_decoders(decoder, other)].tolist() == list(range(30))
    alike = torch.eye(3)[[0, 0, 0]] + 0.1 * torch.eye(3)
    assert sorted(diff.pair_decoders(alike, torch.eye(3)).tolist()) == [0, 1, 2]
    with pytest.raises(UserError, match="4 directions of width 3 cannot be paired with 3 of width 3"):
        diff.pair_decoders(torch.ones(4, 3), torch.eye(3))
    with pytest.raises(UserError, match="of width 2"):
        diff.pair_decoders(torch.ones(2, 3), torch.ones(2, 2))


def test_verdicts_over_depth_have_the_papers_edges_and_add_up():
    cosines = {"1": np.array([0.0, 0.5, 0.51, 0.7, 0.71]), "3": np.array([0.9, 0.9, 0.1, 0.6, 0.6])}
    table = diff.layer_table(cosines, {"every": np.arange(5), "first": np.array([0, 1])})
    at = table.set_index(["layer", "group"])
    assert at.loc[("1", "every"), list(VERDICTS)].tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert at.loc[("3", "first"), "same"] == 1.0 and at.loc[("1", "first"), "different"] == 1.0
    for shares in (table, diff.PAPER_LAYERS):
        assert shares[list(VERDICTS)].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert table["features"].tolist() == [5, 2, 5, 2]
