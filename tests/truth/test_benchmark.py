"""The benchmark of scorers: hand-computed metrics, a perfect score, noise, what is stored and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from tiny import make_benchmark as benchmark

from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.models.subject import load_subject
from reasoning_features.settings import load_settings
from reasoning_features.truth import benchmark as room
from reasoning_features.truth.benchmark import (
    CEILING,
    Benchmark,
    Scorer,
    average_precision,
    builtin,
    column,
    compare_places,
    evaluate_all,
    evaluate_places,
    evaluate_scorer,
    load_benchmarks,
    mean_difference,
    metrics,
    null_band,
    rank_correlation,
    save_benchmark,
    where_most_is_known,
)
from reasoning_features.truth.effects import Effects

FIVE = np.array([0.5, -0.4, 0.1, 0.0, 0.02])
# passing 0.3: features 0 and 1. Ranked by this score: 2, 0, 4, 1, 3
SCORE = np.array([4.0, 2.0, 5.0, 1.0, 3.0])


def test_five_features_by_hand():
    table = evaluate_scorer(lambda evidence: SCORE, [benchmark(FIVE, 0.3)]).set_index("metric")
    # the true ones are met at ranks 2 and 4: (1/2 + 2/4) / 2
    assert table.loc["average precision", "estimate"] == pytest.approx(0.5)
    assert table.loc["average precision", "chance"] == pytest.approx(2 / 5)
    # fewer than 10 positives: no precision at 10; all features are among the top 10
    assert "precision at 10" not in table.index
    assert table.loc["share of effect, top 10", "estimate"] == pytest.approx(1)
    assert (table["positives"] == 2).all() and (table["live"] == 5).all() and (table["traces"] == 40).all()
    # without noise every resample gives the same
    np.testing.assert_allclose(table["low"], table["high"])


def test_share_of_effect_by_hand(monkeypatch):
    monkeypatch.setattr("reasoning_features.truth.benchmark.TOP", (1, 2))
    found = metrics(SCORE, FIVE[None], np.full(5, 0.3), signed=False)
    assert found["share of effect, top 1"][0] == pytest.approx(0.1 / 1.02)
    assert found["share of effect, top 2"][0] == pytest.approx(0.6 / 1.02)
    assert found["precision at 2"][0] == 0.5


def test_signed_scores_rank_by_size():
    def score(evidence):
        return FIVE  # the signed effect itself

    for signed, precision in ((True, 1.0), (False, (1 + 2 / 5) / 2)):
        table = evaluate_scorer(score, [benchmark(FIVE, 0.3)], signed=signed).set_index("metric")
        # read as one-sided, the feature of effect −0.4 comes last
        assert table.loc["average precision", "estimate"] == pytest.approx(precision)
        assert table.loc["rank correlation", "estimate"] == pytest.approx(1)


def test_metrics_equal_sklearn_and_scipy_with_ties():
    rng = np.random.default_rng(1)
    score = rng.integers(0, 6, 60).astype(float)
    effects = rng.standard_normal((7, 60))
    true = effects > 0.8
    expected = [average_precision_score(row, score) for row in true]
    np.testing.assert_allclose(average_precision(score, true), expected)
    expected = [spearmanr(score, row).statistic for row in effects]
    np.testing.assert_allclose(rank_correlation(score[None], effects), expected)
    assert np.isnan(average_precision(score, np.zeros((1, 60), bool))[0])


def test_a_perfect_score_gets_one_and_noise_the_base_rate():
    rng = np.random.default_rng(2)
    effect = rng.laplace(size=300) * 0.1
    made = benchmark(effect, 0.25, noise=0.05, dead=20)
    sizes = np.abs(made.truths["persistence"].effect)
    perfect = evaluate_scorer(lambda evidence: np.append(np.zeros(20), sizes), [made]).set_index("metric")
    assert perfect.loc["average precision", "estimate"] == 1
    base = perfect.loc["average precision", "chance"]
    assert 0 < base < 0.2
    draws = [
        evaluate_scorer(lambda evidence: rng.random(320), [made]).set_index("metric").loc["average precision"]
        for _ in range(40)
    ]
    estimates = np.array([row["estimate"] for row in draws])
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    # with few positives the average precision of noise lies slightly above the base rate
    exact = expected_precision_of_noise(300, round(base * 300))
    assert abs(estimates.mean() - exact) < 4 * error
    assert exact == pytest.approx(base, abs=0.025)


def expected_precision_of_noise(n: int, positives: int) -> float:
    """Mean average precision of a random order: (1/n) Σ_k [1/k + (k − 1)/k · (P − 1)/(n − 1)]."""
    k = np.arange(1, n + 1)
    return float(np.mean(1 / k + (k - 1) / k * (positives - 1) / (n - 1)))


def test_the_effect_itself_is_no_perfect_score_where_thresholds_differ():
    made = benchmark(FIVE, 0.3)
    # with its own threshold the weakest effect passes, and the strongest does not
    made.truths["persistence"] = replace(
        made.truths["persistence"], threshold=np.array([0.6, 0.3, 0.3, 0.3, 0.01])
    )
    table = evaluate_all([], [made]).set_index("metric")
    assert set(table["scorer"]) == {CEILING}
    # by size: 0, 1, 2, 4, 3; the true ones are 1 and 4
    assert table.loc["average precision", "estimate"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert table.loc["rank correlation", "estimate"] == 1


def test_intervals_widen_with_noise_and_cover_the_estimate():
    effect = np.linspace(-0.4, 0.4, 50)
    quiet, loud = (
        evaluate_scorer(lambda evidence: effect, [benchmark(effect, 0.2, noise)], signed=True).iloc[0]
        for noise in (0.05, 1.0)
    )
    assert quiet["high"] - quiet["low"] < loud["high"] - loud["low"]
    assert loud["low"] <= loud["estimate"] <= loud["high"]


def test_no_positives_is_missing_not_zero():
    table = evaluate_scorer(lambda evidence: SCORE, [benchmark(FIVE, 9.0)]).set_index("metric")
    assert np.isnan(table.loc["average precision", "estimate"])
    assert np.isfinite(table.loc["rank correlation", "estimate"])


def test_what_is_refused():
    made = benchmark(FIVE, 0.3, dead=2)
    with pytest.raises(UserError, match=r"gives \(5,\) numbers for the 7 features of coupled-0"):
        evaluate_scorer(lambda evidence: SCORE, [made])
    with pytest.raises(UserError, match="not a finite number at 1 of 5 live features"):
        evaluate_scorer(lambda evidence: np.array([np.nan, 0, 1, np.nan, 2, 3, 4]), [made])
    # a dead feature may have no score
    assert len(evaluate_scorer(lambda evidence: np.array([np.nan, 0, 1, 2, 3, 4, 5]), [made])) == 4
    with pytest.raises(UserError, match="no decisions of the kind 'mood': choose one of persistence"):
        evaluate_scorer(lambda evidence: np.arange(7), [made], kind="mood")
    with pytest.raises(UserError, match="no benchmark"):
        evaluate_scorer(lambda evidence: SCORE, [])
    with pytest.raises(UserError, match="no column 'score:released'"):
        evaluate_scorer(column("score:released"), [made])


def test_registry_and_mean_difference():
    evidence = pd.DataFrame(
        {
            "at persistence:positive": [1.0, 2.0],
            "at persistence:negative": [0.0, 3.0],
            "decoder norm": [2.0, 0.5],
        }
    )
    assert np.asarray(mean_difference("persistence")(evidence)).tolist() == [2.0, -0.5]
    rows = builtin("persistence")
    assert len({row.name for row in rows}) == len(rows)
    assert {row.name for row in rows if row.signed} == {"mean difference", "gradient attribution"}
    made = benchmark(FIVE, 0.3)
    table = evaluate_all([Scorer("ours", lambda evidence: SCORE, False, False, "here")], [made])
    assert set(table["scorer"]) == {"ours", CEILING}
    assert not table.loc[table["scorer"] == "ours", "labels"].any()
    most = table[(table["scorer"] == CEILING) & (table["metric"] == "average precision")]
    assert most["estimate"].item() == pytest.approx(1)  # one threshold for all: the largest effects pass


def test_band_of_vocabularies():
    made = benchmark(FIVE, 0.3)
    made.evidence["score:reason score"] = FIVE
    for i in range(9):
        made.evidence[f"score:slot {i}"] = np.roll(FIVE, i % 4 + 1)
    table = null_band([made], null="slot").set_index("metric")
    # R's score is the effect itself: no other vocabulary has so large a Σ score · effect
    assert table.loc["contrast", "ours"] == pytest.approx(float(FIVE @ FIVE))
    assert table.loc["contrast", "p_value"] == pytest.approx(0.1) and table.loc["contrast", "z"] > 0
    assert table.loc["contrast", "vocabularies"] == 9
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert null_band([made], null="random").empty


# --- stored ------------------------------------------------------------------------------------------------

IDENTITY = {
    "model": "kappa-0.5-0",
    "kappa": 0.5,
    "model_seed": 0,
    "architecture": "relu",
    "autoencoder_seed": 1,
}


def effects(features: list[int], random: np.ndarray | None = None) -> Effects:
    n, counts = len(features), np.array([1, 2, 1])
    sums = np.arange(3 * n, dtype=np.float32).reshape(3, n) / 8
    drawn = np.ones((3, 4)) if random is None else random
    change = sums.sum(0) / counts.sum()
    return Effects(np.array(features), change, np.ones(n), np.full(n, 0.7), sums, counts, drawn)


def test_round_trip_and_the_same_bytes(repository: Path):
    evidence = pd.DataFrame({"feature": range(4), "density": [0.5, 0.0, 0.1, 0.2]})
    measured = {"persistence": {"decision": effects([0, 2, 3]), "trace": effects([0, 2, 3])}}
    folder = repository / "truth" / "kappa-0.5-0-relu-1"
    save_benchmark(folder, evidence, measured, IDENTITY)
    written = [path.read_bytes() for path in sorted(folder.iterdir())]
    save_benchmark(folder, evidence, measured, IDENTITY)
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == written
    (found,) = load_benchmarks("truth")
    assert found.identity == IDENTITY
    assert list(found.evidence) == ["feature", "density"]
    truth = found.truths["persistence"]
    assert truth.features.tolist() == [0, 2, 3] and truth.counts.tolist() == [1, 2, 1]
    # the effect as it is: minus the change on ablation
    np.testing.assert_allclose(truth.effect, measured["persistence"]["decision"].effect)
    np.testing.assert_allclose(truth.effect, -truth.sums.sum(0) / truth.counts.sum())
    again = truth.resampled(500, 0)
    assert again.shape == (500, 3)
    np.testing.assert_allclose(again.mean(0), truth.effect, atol=0.05)
    table = pd.read_parquet(folder / "features.parquet")
    assert {"effect:persistence:trace", "true:persistence:decision"} <= set(table)
    assert table["effect:persistence:decision"].isna().tolist() == [False, True, False, False]


def test_the_whole_trace_comes_back_where_it_was_measured(repository: Path):
    evidence = pd.DataFrame({"feature": range(4), "density": [0.5, 0.0, 0.1, 0.2]})
    sizes = 2.0 ** np.arange(4)
    over = effects([0, 2], np.stack([np.zeros(4), sizes, sizes]))
    save_benchmark(
        repository / "truth" / "a", evidence, {"persistence": {"decision": effects([0, 2, 3])}}, IDENTITY
    )
    both = {"decision": effects([0, 2, 3]), "trace": over}
    save_benchmark(repository / "truth" / "b", evidence, {"persistence": both}, IDENTITY)
    without, found = load_benchmarks("truth")
    assert without.over_trace == {}
    # what is measured at the decision alone is stored as before
    with safe_open(repository / "truth" / "a" / "traces.safetensors", framework="numpy") as file:
        assert set(file.keys()) == {"persistence:sums", "persistence:counts"}
    truth = found.over_trace["persistence"]
    assert truth.features.tolist() == [0, 2] and truth.counts.tolist() == [1, 2, 1]
    np.testing.assert_allclose(truth.effect, over.effect)
    np.testing.assert_allclose(truth.effect, -truth.sums.sum(0) / truth.counts.sum())
    assert truth.slope == pytest.approx(1) and np.isnan(found.truths["persistence"].slope)
    assert truth.true.tolist() == (np.abs(over.effect) > 0.7).tolist()
    some = truth.of(np.array([2, 7]))
    assert some.features.tolist() == [2] and some.sums.shape == (3, 1) and some.effect == truth.effect[1:]


def test_missing_and_damaged(repository: Path):
    with pytest.raises(MissingArtefact, match="no ablation effects in truth: `make organism`"):
        load_benchmarks("truth")
    folder = repository / "truth" / "m-relu-0"
    folder.mkdir(parents=True)
    (folder / "features.parquet").write_bytes(b"no table")
    with pytest.raises(CorruptArtefact, match="m-relu-0 cannot be read"):
        load_benchmarks("truth")


# --- at the decision, and over the whole trace -------------------------------------------------------------


def truth(features: list[int], effect: list[float], noise: float = 0.0) -> Effects:
    """Effects as they are, in 30 traces of one decision each; a feature passes from 0.2."""
    values = np.array(effect)
    sums = -values + noise * np.random.default_rng(0).standard_normal((30, len(values)))
    threshold = np.full(len(values), 0.2)
    return Effects(np.array(features), sums.mean(0), np.ones(len(values)), threshold, sums, np.ones(30))


def both_places(here: Effects, over: Effects) -> Benchmark:
    evidence = pd.DataFrame({"feature": range(6)})
    return Benchmark("coupled-0", 1.0, 0, "relu", 0, evidence, {"persistence": here}, {"persistence": over})


def test_places_side_by_side_largest_first():
    made = both_places(truth([0, 2, 4, 5], [0.5, 0.3, 0.1, 0.0]), truth([0, 2, 5], [0.1, -0.9, 0.3]))
    table, _ = compare_places(made, "persistence", chosen=[5, 3])
    assert table["feature"].tolist() == [2, 5, 0]
    # the change on ablation: minus the effect of the feature as it is
    assert table["at the decision"].tolist() == pytest.approx([-0.3, 0, -0.5])
    assert table["over the trace"].tolist() == pytest.approx([0.9, -0.3, -0.1])
    assert table["passes"].tolist() == ["both", "trace", "decision"]
    assert table["chosen"].tolist() == [False, True, False]
    assert table["trace low"].tolist() == pytest.approx(table["trace high"].tolist())


def test_intervals_hold_the_changes():
    made = both_places(truth([0, 1], [0.5, 0.1], noise=0.3), truth([0, 1], [0.2, 0.4], noise=0.3))
    table, _ = compare_places(made, "persistence", [])
    for name, prefix in (("at the decision", ""), ("over the trace", "trace ")):
        assert (table[f"{prefix}low"] < table[name]).all() and (table[name] < table[f"{prefix}high"]).all()


def test_places_agree_as_far_as_their_ranks_do():
    here, over = [0.5, -0.3, 0.1, 0.0], [0.4, 0.3, 0.05, -0.1]
    random = np.stack([np.zeros(4), np.array([1.0, 4, 16, 64]), np.array([1.0, 2, 4, 8])])
    made = both_places(truth([0, 1, 2, 3], here), replace(truth([0, 1, 2, 3], over), random=random))
    alike = spearmanr(here, over).statistic
    assert compare_places(made, "persistence", [])[1] == (
        "2 of 4 pass at the decision, 2 over the trace, 2 at both; "
        f"rank correlation {alike:.3g} [{alike:.3g}, {alike:.3g}]; slope 2.00"
    )


def test_only_where_every_feature_was_ablated_is_the_whole_trace_a_truth():
    here, over = truth([0, 1, 2], [0.5, 0.1, 0.0]), truth([0, 1, 2], [0.0, 0.7, 0.0])
    complete = both_places(here, over)
    partial = both_places(here, over.of(np.array([1])))
    without = replace(complete, over_trace={})
    assert [made.whole for made in (partial, without, complete)] == [False, False, True]
    assert not replace(complete, truths=complete.truths | {"verification": here}).whole
    another = replace(complete, model="another")
    assert where_most_is_known([partial, another], [without, complete]) == [complete, another]
    likes_one = Scorer("likes 1", lambda evidence: evidence["feature"] == 1, False, False, "here")
    table = evaluate_places([likes_one], [partial, complete], "persistence")
    found = table.query("metric == 'average precision' and scorer == 'likes 1'")
    # feature 1 is the one that passes over the trace; at the decision it is feature 0
    assert found.set_index("ablated")["estimate"].to_dict() == {"decision": pytest.approx(1 / 3), "trace": 1}
    assert evaluate_places([likes_one], [partial], "persistence").empty


# --- one model ---------------------------------------------------------------------------------------------


def test_agreement_is_of_the_same_autoencoder():
    def made(model: str, effect: list[float]) -> Benchmark:
        values = np.array(effect)
        truth = Effects(np.arange(3), -values, np.ones(3), np.full(3, 0.2), values[None], np.ones(1))
        return Benchmark(model, 1.0, 0, "relu", 0, None, {"persistence": truth})

    here = [made("a", [0.5, 0.1, 0.0])]
    stored = [made("b", [9.0, 9.0, 9.0]), made("a", [0.5, 0.3, 0.0])]
    # over the trace, where the one measured some features and the other all
    some = Effects(
        np.array([1]), np.array([-0.5]), np.ones(1), np.full(1, 0.2), np.full((1, 1), 0.5), np.ones(1)
    )
    here.append(replace(here[0], model="c", truths={}, over_trace={"persistence": some}))
    every = made("c", [0.0, 0.1, 0.0])
    stored.append(replace(every, over_trace=every.truths))
    row, over = room.agreement(here, stored).to_dict("records")
    assert (over["ablated"], over["features"], over["largest difference"]) == ("trace", 1, pytest.approx(0.4))
    assert row["ablated"] == "decision" and row["features"] == 3
    assert row["model"] == "a" and row["largest difference"] == pytest.approx(0.2)
    assert (row["here"], row["stored"], row["both"]) == (1, 2, 1)
    assert row["correlation"] == pytest.approx(np.corrcoef([0.5, 0.1, 0.0], [0.5, 0.3, 0.0])[0, 1])


@pytest.mark.slow
def test_end_to_end_on_the_organism():
    settings = load_settings("smoke", decisions=10, random_directions=10, random_vocabularies=4)
    subject = load_subject(settings.subject, settings.layer)
    sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
    told = room.identity(settings, sae)
    assert told == {
        "model": "coupled-0", "kappa": 1.0, "model_seed": 0, "architecture": "relu", "autoencoder_seed": 0
    }  # fmt: skip
    table = room.gather_table(settings, subject, sae)
    assert {"score:random 3", "score:output", "score:gradient persistence"} <= set(table)
    held = room.held_out_decisions(settings, subject)
    assert {kind: len(found) for kind, found in held.items()} == {"persistence": 10, "verification": 10}
    few = held["persistence"].select(np.arange(4))
    found = room.effects_of(settings, subject, sae, {"persistence": few}, table, np.array([3]), known=True)
    at, over = (found["persistence"][place] for place in ("decision", "trace"))
    assert over.features.tolist() == sorted({3, *at.strongest[:2].tolist()})
    assert at.random.shape == (3, 10) and over.random.shape == (3, len(over.features))


def test_text_without_labels_has_no_decisions():
    settings = load_settings("smoke", corpus="organism-text", decisions=10)
    subject = load_subject(settings.subject, settings.layer)
    with pytest.raises(UserError, match="No decisions are known"):
        room.held_out_decisions(settings, subject)
