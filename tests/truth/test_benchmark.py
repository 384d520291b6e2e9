"""The benchmark of scorers: hand-computed metrics, a perfect score, noise, what is stored and refused."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from tiny import make_benchmark

from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.settings import load_settings
from reasoning_features.truth import benchmark
from reasoning_features.truth.benchmark import Benchmark, Scorer
from reasoning_features.truth.effects import Effects

FIVE = np.array([0.5, -0.4, 0.1, 0.0, 0.02])
# passing 0.3: features 0 and 1. Ranked by this score: 2, 0, 4, 1, 3
SCORE = np.array([4.0, 2.0, 5.0, 1.0, 3.0])


def evaluated(score, *benchmarks: Benchmark, kind: str = "persistence") -> pd.DataFrame:
    return benchmark.evaluate_all([Scorer("ours", score)], benchmarks, kind).set_index(["scorer", "metric"])


def test_five_features_by_hand(monkeypatch):
    table = evaluated(lambda evidence: SCORE, make_benchmark(FIVE, 0.3)).loc["ours"]
    # the true ones are met at ranks 2 and 4: (1/2 + 2/4) / 2
    assert table.loc["average precision", "estimate"] == pytest.approx(0.5)
    assert table.loc["average precision", "chance"] == pytest.approx(2 / 5)
    assert table.loc["share of effect, top 10", "estimate"] == pytest.approx(1)
    assert (table["positives"] == 2).all() and (table["live"] == 5).all() and (table["traces"] == 40).all()
    # without noise every resample gives the same
    np.testing.assert_allclose(table["low"], table["high"])
    monkeypatch.setattr("reasoning_features.truth.benchmark.TOP", (1, 2))
    found = benchmark.metrics(SCORE, FIVE[None], np.full(5, 0.3), signed=False)
    assert found["share of effect, top 1"][0] == pytest.approx(0.1 / 1.02)
    assert found["share of effect, top 2"][0] == pytest.approx(0.6 / 1.02)


def test_metrics_equal_sklearn_and_scipy_with_ties():
    rng = np.random.default_rng(1)
    score = rng.integers(0, 6, 60).astype(float)
    effects = rng.standard_normal((7, 60))
    true = effects > 0.8
    expected = [average_precision_score(row, score) for row in true]
    np.testing.assert_allclose(benchmark.average_precision(score, true), expected)
    expected = [spearmanr(score, row).statistic for row in effects]
    np.testing.assert_allclose(benchmark.rank_correlation(score, effects), expected)
    assert np.isnan(benchmark.average_precision(score, np.zeros((1, 60), bool))[0])
    # a signed score ranks by its size: read as one-sided, the feature of effect −0.4 comes last
    for signed, precision in ((True, 1.0), (False, (1 + 2 / 5) / 2)):
        found = benchmark.metrics(FIVE, FIVE[None], np.full(5, 0.3), signed)
        assert found["average precision"][0] == pytest.approx(precision)


def test_the_effect_itself_is_no_perfect_score_where_thresholds_differ():
    made = make_benchmark(FIVE, 0.3, dead=1)
    # with its own threshold the weakest effect passes, and the strongest does not
    own = np.array([0.6, 0.3, 0.3, 0.3, 0.01])
    made.truths["persistence"] = replace(made.truths["persistence"], threshold=own)
    table = evaluated(lambda evidence: evidence["feature"], made)
    assert set(table.index.get_level_values(0)) == {"ours", benchmark.CEILING}
    # by size: 0, 1, 2, 4, 3; the true ones are 1 and 4
    assert table.loc[(benchmark.CEILING, "average precision"), "estimate"] == pytest.approx(
        (1 / 2 + 2 / 4) / 2
    )
    assert table.loc[(benchmark.CEILING, "rank correlation"), "estimate"] == 1
    assert np.isnan(made.effect("persistence")[0])


def test_what_is_refused():
    made = make_benchmark(FIVE, 0.3, dead=2)
    for wrong in (SCORE, np.array([np.nan, 0, 1, np.nan, 2, 3, 4])):
        with pytest.raises(UserError, match="each of the 7 features of coupled-0 a number, finite"):
            evaluated(lambda evidence, wrong=wrong: wrong, made)
    # a dead feature may have no score
    assert len(evaluated(lambda evidence: np.array([np.nan, 0, 1, 2, 3, 4, 5]), made)) == 8
    with pytest.raises(UserError, match="no decisions of the kind 'mood': choose one of persistence"):
        evaluated(lambda evidence: np.arange(7), made, kind="mood")
    with pytest.raises(UserError, match="no benchmark"):
        evaluated(lambda evidence: SCORE)
    with pytest.raises(UserError, match="no column 'score:released'"):
        evaluated(benchmark.column("score:released"), made)


def test_mean_difference():
    evidence = pd.DataFrame({"decoder norm": [2.0, 0.5]})
    evidence["at persistence:positive"] = [1.0, 2.0]
    evidence["at persistence:negative"] = [0.0, 3.0]
    assert np.asarray(benchmark.mean_difference("persistence")(evidence)).tolist() == [2.0, -0.5]


def test_band_of_vocabularies():
    made = make_benchmark(FIVE, 0.3)
    made.evidence["score:reason score"] = FIVE
    for i in range(9):
        made.evidence[f"score:slot {i}"] = np.roll(FIVE, i % 4 + 1)
    table = benchmark.null_band([made], null="slot").set_index("metric")
    # R's score is the effect itself: no other vocabulary has so large a Σ score · effect
    assert table.loc["contrast", "ours"] == pytest.approx(float(FIVE @ FIVE))
    assert table.loc["contrast", "p_value"] == pytest.approx(0.1) and table.loc["contrast", "z"] > 0
    assert table.loc["contrast", "vocabularies"] == 9
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert benchmark.null_band([made], null="random").empty


# --- at the decision, and over the whole trace -------------------------------------------------------------


def truth(features: list[int], effect: list[float]) -> Effects:
    """Effects as they are, in 30 traces of one decision each; a feature passes from 0.2."""
    sums = np.tile(-np.array(effect), (30, 1))
    threshold = np.full(len(effect), 0.2)
    return Effects(np.array(features), sums[0], np.ones(len(effect)), threshold, sums, np.ones(30))


def both_places(here: Effects, over: Effects | None, model: str = "coupled-0") -> Benchmark:
    evidence = pd.DataFrame({"feature": range(6), "density": [0.5, 0.0, 0.1, 0.2, 0.3, 0.4]})
    over_trace = {} if over is None else {"persistence": over}
    return Benchmark(model, 1.0, 0, "relu", 1, evidence, {"persistence": here}, over_trace)


def test_places_side_by_side_largest_first():
    made = both_places(truth([0, 2, 4, 5], [0.5, 0.3, 0.1, 0.0]), truth([0, 2, 5], [0.1, -0.9, 0.3]))
    table = benchmark.compare_places(made, "persistence", chosen=[5, 3])
    assert table["feature"].tolist() == [2, 5, 0]
    # the change on ablation: minus the effect of the feature as it is
    assert table["at the decision"].tolist() == pytest.approx([-0.3, 0, -0.5])
    assert table["over the trace"].tolist() == pytest.approx([0.9, -0.3, -0.1])
    assert table["passes"].tolist() == ["both", "trace", "decision"]
    assert table["chosen"].tolist() == [False, True, False]


def test_only_where_every_feature_was_ablated_is_the_whole_trace_a_truth(monkeypatch):
    here, over = truth([0, 1, 2], [0.5, 0.1, 0.0]), truth([0, 1, 2], [0.0, 0.7, 0.0])
    complete, partial = both_places(here, over), both_places(here, over.of(np.array([1])))
    assert [made.whole for made in (partial, both_places(here, None), complete)] == [False, False, True]
    assert not replace(complete, truths=complete.truths | {"verification": here}).whole
    likes_one = Scorer("likes 1", lambda evidence: evidence["feature"] == 1)
    monkeypatch.setattr("reasoning_features.truth.benchmark.SIDES", ["persistence"])
    monkeypatch.setattr("reasoning_features.truth.benchmark.builtin", lambda kind: [likes_one])
    table = benchmark.evaluate_places([partial, complete])
    found = table.query("metric == 'average precision' and scorer == 'likes 1'")
    # feature 1 is the one that passes over the trace; at the decision it is feature 0
    assert found.set_index("ablated")["estimate"].to_dict() == {"decision": pytest.approx(1 / 3), "trace": 1}
    assert benchmark.evaluate_places([partial]).empty


def test_agreement_is_of_the_same_autoencoder():
    here = [both_places(truth([0, 1, 2], [0.5, 0.1, 0.0]), None, "a")]
    other = both_places(truth([0, 1, 2], [9.0, 9.0, 9.0]), None, "b")
    there = both_places(truth([0, 1, 2], [0.5, 0.3, 0.0]), truth([0], [0.1]), "a")
    (row,) = benchmark.agreement(here, [other, there]).to_dict("records")
    assert (row["model"], row["ablated"], row["features"]) == ("a", "decision", 3)
    assert row["largest difference"] == pytest.approx(0.2)


# --- stored, and of one model ------------------------------------------------------------------------------


def test_what_is_stored_is_loaded(repository):
    sizes = 2.0 ** np.arange(4)
    over = replace(truth([0, 2], [0.5, 0.25]), random=np.stack([np.zeros(4), sizes, sizes]))
    made = [both_places(truth([0, 2, 3], [0.5, 0.25, 0.0]), each) for each in (None, over)]
    for name, each in zip("ab", made, strict=True):
        benchmark.save_benchmark(repository / "truth" / name, each)
    without, found = benchmark.load_benchmarks("truth")
    assert found.identity == made[1].identity and list(found.evidence) == ["feature", "density"]
    assert without.over_trace == {}
    for here, there in ((found.truths, made[1].truths), (found.over_trace, made[1].over_trace)):
        own, before = here["persistence"], there["persistence"]
        assert own.features.tolist() == before.features.tolist() and own.counts.tolist() == [1] * 30
        np.testing.assert_allclose(own.effect, before.effect)
        np.testing.assert_allclose(own.sums, before.sums)
    assert found.over_trace["persistence"].slope == pytest.approx(1)


def test_missing_and_damaged(repository):
    with pytest.raises(MissingArtefact, match="no ablation effects in truth: `make organism`"):
        benchmark.load_benchmarks("truth")
    folder = repository / "truth" / "m-relu-0"
    folder.mkdir(parents=True)
    (folder / "features.parquet").write_bytes(b"no table")
    with pytest.raises(CorruptArtefact, match="m-relu-0 cannot be read"):
        benchmark.load_benchmarks("truth")


def test_a_subject_that_is_loaded_is_not_loaded_again(monkeypatch):
    loaded = []

    def load(settings):
        loaded.append(settings.subject)
        return benchmark.Variant(settings, SimpleNamespace(tokenizer=None), None)

    monkeypatch.setattr(benchmark, "load_variant", load)
    monkeypatch.setattr(benchmark, "with_words_that_occur", lambda settings, _: settings)
    settings = load_settings("organism")
    subject = load(settings)
    variants = benchmark.load_variants(settings, subject)
    assert loaded == [settings.subject, settings.contrast]
    assert [each.settings.subject for each in variants.values()] == loaded
    assert next(iter(variants.values())).model is subject.model
