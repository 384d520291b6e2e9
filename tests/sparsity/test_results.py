"""Results of studies of pruning, on studies whose numbers are written by hand."""

import numpy as np
import pytest

from reasoning_features.sparsity import pruning, results
from reasoning_features.sparsity.patterns import Pattern, cost
from reasoning_features.sparsity.pruning import DENSE, HALF, PATTERNS, WEIGHTS, Setting
from reasoning_features.sparsity.study import Study, as_table

TWO, FOUR, EIGHT, SIXTEEN = map(Setting, PATTERNS)
TEXTS = np.array([2.0, 3.0, 4.0, 5.0])
COSTS = {TWO: 1.0, FOUR: 0.7, EIGHT: 0.5, SIXTEEN: 0.4, Setting(HALF): 0.4}
COSTS |= {Setting(PATTERNS[2], WEIGHTS, "magnitude"): 2.0, Setting(PATTERNS[2], WEIGHTS, "Wanda"): 0.5}
BETTER = {"VAR": 0.8, "LS": 1.2, "CLACT, sequence": 0.9, "Amber": 1.0}  # excess loss over ACT's


def made(model, noise=0.0, tasks=("ARC-easy",)):
    """A study in which every text costs the same, but for noise."""
    costs, grid = dict(COSTS), pruning.grid(5, False)
    for pattern in (PATTERNS[0], PATTERNS[2]):
        for name, share in BETTER.items():
            by, correction = (name, "none") if name in results.CRITERIA else ("ACT", name)
            costs[Setting(pattern, by=by, correction=correction)] = share * costs[Setting(pattern)]
    rng, found = np.random.default_rng(0), []
    for setting in grid:
        spread = noise * rng.normal(size=4) if setting != DENSE else 0
        own = {"loss": TEXTS + costs.get(setting, 0.0) + spread, "divergence": 0 * TEXTS}
        if setting in (DENSE, TWO, SIXTEEN):
            right = {DENSE: 8, TWO: 2, SIXTEEN: 6}[setting]
            own["ARC-easy"] = np.arange(40) < 4 * right
        if setting in (DENSE, EIGHT):
            gain = 3 if setting == DENSE else 0
            own |= {f"unsteered: {m}": np.arange(6) < 2 for m in ("correct", "thinking_tokens")}
            for share in pruning.STEERED:
                named = [f"steered at {share:g}: {m}" for m in ("correct", "thinking_tokens")]
                own |= dict.fromkeys(named, np.arange(6) < 2 + gain)
            flip = 1 if setting == DENSE else -1
            own |= {
                "score": flip * np.arange(8.0),
                "density": np.array([0, 1, 1, 1, 1, 1, 1, 1]) / (2 - flip),
            }
            own |= {"score, half 0": flip * np.arange(8.0), "score, half 1": flip * np.arange(8.0) ** 2}
            own |= {
                "error": np.array([1.0, 3]),
                "deviation": np.array([8.0, 8]),
                "active": np.array([6.0, 2]),
            }
            own |= {
                "tokens": np.array([2.0, 2]),
                "effect": np.array([1.0, 0.5]),
                "alignment": np.array([0.9, 0.1]),
                "others": np.array([0.2, 0.4]),
            }
        found.append(own)
    told = {"model": model, "blocks": 5, "kinds": ["ReasonScore", "random"]}
    told |= {"families": [], "settings": {"zero_shot": list(tasks), "harness": [], "sparsity_problems": 0}}
    return Study(as_table(grid, found), told)


@pytest.fixture
def studies():
    return [made("one"), made("two")]


def test_excess_losses_are_compared_on_the_same_texts(studies):
    assert results.excess(studies, TWO) == pytest.approx(np.ones(4))
    ratio = results.excess_ratio(studies, TWO, SIXTEEN)
    assert (ratio.estimate, ratio.low, ratio.high, ratio.n) == pytest.approx((2.5, 2.5, 2.5, 4))
    weights = Setting(PATTERNS[2], WEIGHTS, "magnitude")
    assert results.excess_ratio(studies, weights, EIGHT).estimate == pytest.approx(4)
    free = Setting(PATTERNS[0], which="mlp")  # it costs nothing, so nothing is a number of times as much
    assert np.isnan(results.excess_ratio(studies, TWO, free).low)
    table = results.settings_table(studies)
    assert len(table) == len(pruning.grid(5, False)) and table["excess"].iloc[1] == pytest.approx(1)
    noisy = results.excess_ratio([made("one", noise=0.1)], TWO, SIXTEEN)
    assert noisy.low < noisy.estimate < noisy.high


def test_accuracy_lost_is_of_all_items(studies):
    found = results.accuracy_ratio(studies, TWO, SIXTEEN)
    assert found.estimate == pytest.approx(3) and found.n == 40 and found.low < 3 < found.high
    table = results.tasks_table(studies)
    assert table["change"].tolist() == pytest.approx([0, 0, -0.6, -0.6, -0.2, -0.2])
    assert table["task"].tolist()[1::2] == [results.ALL_ITEMS] * 3 and table["gain"].isna().all()


def test_the_least_help_of_several_ways_is_what_counts(studies):
    assert results.least_recovered(studies, ["VAR"]).estimate == pytest.approx(0.2)
    assert results.least_recovered(studies, ["VAR", "LS"]).estimate == pytest.approx(-0.2)
    assert results.least_recovered(studies, pruning.LEARNT) is None
    assert results.least_recovered(studies, ["CLACT, sequence", "Amber"]).estimate == pytest.approx(0)
    table = results.ways_table([made("one", noise=0.01)]).set_index(["way", "pattern"])
    assert table.loc[("VAR", "2:4"), "recovered"] == pytest.approx(0.2, abs=0.05)
    assert table.loc[("VAR", "2:4"), "p"] < 0.05 < table.loc[("Amber", "2:4"), "p"]
    assert set(table["kind"]) == {"criterion", "correction"}


def test_the_knee_is_what_a_bit_of_metadata_brings_before_and_after(studies):
    bits = [cost(Pattern(n, 2 * n), 2 * n).metadata_bits for n in (4, 8, 16)]
    wanted = (0.1 / (bits[2] - bits[1])) / (0.2 / (bits[1] - bits[0]))
    assert results.knee(studies).estimate == pytest.approx(wanted)


def test_features_are_compared_with_the_dense_models(studies):
    table = results.features_table(studies, 2).set_index(["model", "pattern"])
    dense, pruned, halves = (table.loc[("one", name)] for name in ("dense", "8:16", "dense, other half"))
    assert dense["rank correlation"] == pytest.approx(1) and dense["overlap"] == 1 and dense["rarer"] == 0
    assert pruned["rank correlation"] == pytest.approx(-1) and pruned["overlap"] == 0 and pruned["rarer"] == 2
    assert halves["rank correlation"] == pytest.approx(1)
    assert dense["fraction of variance explained"] == pytest.approx(0.75) and dense["L0"] == 2
    assert dense["effect, ReasonScore"] == 1 and dense["alignment, random"] == pytest.approx(0.1)
    kept = results.features_kept(studies, EIGHT)
    assert kept.estimate == pytest.approx(-2) and kept.control == pytest.approx(1) and kept.value.n == 14
    effects = results.effects_kept(studies, EIGHT)
    assert effects.estimate == pytest.approx(0.5) and effects.value.n == 4
    assert effects.control == pytest.approx(0.3)


def test_a_gain_by_steering_stands_beside_the_dense_models(studies):
    kept = results.steering_kept(studies, EIGHT)
    assert kept.estimate == 0 and kept.control == pytest.approx(0.5) and kept.narrow is not None
    table = results.steered_table(studies)
    assert table["gain"].tolist() == pytest.approx([0.5, 0.5, 0, 0] * 2)
    assert table["thinking_tokens, steered"].iloc[0] == pytest.approx(5 / 6)
    bare = [
        Study(studies[0].table[studies[0].table["measure"].isin(["loss", "divergence"])], studies[0].told)
    ]
    assert results.steering_kept(bare, EIGHT) is results.features_kept(bare, EIGHT) is None
    assert results.effects_kept(bare, EIGHT) is None and results.steered_table(bare).empty
    told = bare[0].told | {"settings": {"zero_shot": [], "harness": [], "sparsity_problems": 0}}
    assert results.accuracy_ratio([Study(bare[0].table, told)], TWO, EIGHT) is None


def test_reported_increases_of_perplexity_stand_beside_ours(studies):
    table = results.beside_the_paper(studies).set_index(["pattern", "pruned"])
    row = table.loc[("8:16", "weights, magnitude")]
    assert row["reported"] == pytest.approx(20.47 / 6.943 - 1) and row["ours"] == pytest.approx(np.expm1(2))
