"""The benchmark of scorers: hand-computed metrics, ranks among vocabularies, what is stored and refused."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from tiny import make_benchmark

from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.settings import load_settings
from reasoning_features.text.vocabulary import slot_vocabularies
from reasoning_features.truth import benchmark
from reasoning_features.truth.benchmark import CEILING, PRECISION, Benchmark, Scorer

EFFECT = np.array([0.9, -0.8, 0.7, 0.6, 0.5, 0.4, 0.0])
SPREAD = 0.1  # the first six are causal, feature 1 for giving up
SCORE = np.array([6.0, 7.0, 5.0, 4.0, 3.0, 1.0, 2.0])  # order: 1, 0, 2, 3, 4, 6, 5


def evaluated(score, *benchmarks: Benchmark, kind: str = "persistence") -> pd.DataFrame:
    return benchmark.evaluate_all([Scorer("ours", score)], benchmarks, kind).set_index(["scorer", "metric"])


def test_seven_features_by_hand(monkeypatch):
    monkeypatch.setattr(benchmark, "TOP", (1, 2))
    table = evaluated(lambda evidence: SCORE, make_benchmark(EFFECT, SPREAD))
    own, most = table.loc["ours"], table.loc[CEILING, "estimate"]
    assert own.loc["share of effect, top 1", "estimate"] == pytest.approx(0.8 / 3.9)
    assert own.loc["share of effect, top 2", "estimate"] == pytest.approx(1.7 / 3.9)
    assert own.loc["share of effect, top 2", "chance"] == pytest.approx(2 / 7)
    # the causal ones are met at ranks 1 to 5 and 7
    assert own.loc[PRECISION, ["estimate", "chance"]].tolist() == pytest.approx([(5 + 6 / 7) / 6, 6 / 7])
    assert (own["causal"] == 6).all() and (own["live"] == 7).all() and (own["traces"] == 40).all()
    # without noise every resample gives the same
    np.testing.assert_allclose(own["low"], own["high"])
    assert most["share of effect, top 2"] == pytest.approx(1.7 / 3.9)
    assert most[PRECISION] == most["rank correlation"] == pytest.approx(1)


def judged_by(threshold: float, n: int) -> Any:
    return SimpleNamespace(threshold=np.full(n, threshold), size=np.ones(n))


def test_metrics_equal_sklearn_and_scipy_with_ties():
    rng = np.random.default_rng(1)
    score, effects = rng.integers(0, 6, 60).astype(float), rng.standard_normal((7, 60))
    found = benchmark.metrics(score, judged_by(0.8, 60), effects)
    expected = [average_precision_score(np.abs(row) >= 0.8, score) for row in effects]
    np.testing.assert_allclose(found[PRECISION], expected)
    by_scipy = [spearmanr(score, row).statistic for row in effects]
    np.testing.assert_allclose(found["rank correlation"], by_scipy)
    assert np.isnan(benchmark.average_precision(score, np.zeros((1, 60), bool))[0])


@pytest.mark.parametrize(
    ("signed", "threshold", "expected"),
    # read as one-sided, the feature of effect −0.8 comes last; with three causal features nothing is said
    [(True, 0.4, 1.0), (False, 0.4, (5 + 6 / 7) / 6), (True, 0.65, np.nan)],
)
def test_signed_scores_rank_by_size_and_few_causal_features_have_no_precision(signed, threshold, expected):
    found = benchmark.metrics(EFFECT, judged_by(threshold, 7), EFFECT[None], signed)
    assert found[PRECISION][0] == pytest.approx(expected, nan_ok=True)


def test_what_is_refused():
    made = make_benchmark(EFFECT, SPREAD, dead=2)
    for wrong in (SCORE, np.array([np.nan, 0, 1, 2, 3, np.nan, 4, 5, 6])):
        with pytest.raises(UserError, match="each of the 9 features of coupled-0 a number, finite"):
            evaluated(lambda evidence, wrong=wrong: wrong, made)
    # a dead feature may have no score
    assert len(evaluated(lambda evidence: np.array([np.nan, *range(8)]), made)) == 8
    assert np.isnan(made.effect("persistence")[:2]).all()
    with pytest.raises(UserError, match="no decisions of the kind 'mood': choose one of persistence"):
        evaluated(lambda evidence: np.arange(9), made, kind="mood")
    with pytest.raises(UserError, match="no benchmark"):
        evaluated(lambda evidence: SCORE)
    with pytest.raises(UserError, match="no column 'score:released'"):
        evaluated(benchmark.column("score:released"), made)


def test_mean_difference_and_first_features():
    sides = {"at persistence:positive": [1.0, 2.0], "at persistence:negative": [0.0, 3.0]}
    evidence = pd.DataFrame({"decoder norm": [2.0, 0.5]} | sides)
    assert np.asarray(benchmark.mean_difference("persistence")(evidence)).tolist() == [2.0, -0.5]
    # the first features by each score are live
    table = pd.DataFrame({"density": [0.1, 0.0, 0.2, 0.3], "a": [1.0, 9.0, -3.0, 2.0]})
    scorers = [Scorer("plain", benchmark.column("a")), Scorer("signed", benchmark.column("a"), signed=True)]
    found = benchmark.top_sets(table, scorers, [1, 2])
    assert {name: ids.tolist() for name, ids in found.items()} == {
        "plain, top 1": [3], "plain, top 2": [3, 0], "signed, top 1": [2], "signed, top 2": [2, 3]
    }  # fmt: skip


def test_the_rank_among_all_mixtures_is_that_of_brute_force():
    twins, rng = {"wait": "look", "but": "and", "hmm": "well"}, np.random.default_rng(0)
    truth = make_benchmark(EFFECT[1:], SPREAD, dead=1).truths["persistence"]  # four are causal
    of_word = {word: rng.normal(size=7) for pair in twins.items() for word in pair}
    scores = {words: sum(of_word[word] for word in words) for words in product(*twins.items())}
    table = pd.DataFrame({"score:reason score": scores[tuple(twins)]})
    for i, words in enumerate(slot_vocabularies(list(twins), twins, 1023, seed=0)):
        table[f"score:slot {i}"] = scores[words]
    found = benchmark.null_band(table, truth)
    assert set(found["null"]) == {"slot"} and set(found["vocabularies"]) == {7}
    shares = [f"share of effect, top {k}" for k in benchmark.TOP]
    assert found["metric"].tolist() == [*shares, "rank correlation", PRECISION, "contrast"]
    row = found.set_index("metric").loc["contrast"]
    ours, *others = (score[1:] @ EFFECT[1:] for score in scores.values())  # R is first
    above = sum(other >= ours for other in others)
    assert row[["ours", "mean"]].tolist() == pytest.approx([ours, np.mean(others)])
    assert row[["p_value", "percentile"]].tolist() == pytest.approx([(1 + above) / 8, 1 - above / 7])
    assert row["z"] == pytest.approx((ours - np.mean(others)) / np.std(others, ddof=1))
    assert row[["low", "high"]].tolist() == pytest.approx(np.quantile(others, [0.025, 0.975]))
    assert benchmark.null_band(table[["score:reason score"]], truth).empty


def test_what_is_stored_is_loaded_and_what_is_missing_or_damaged_is_named(repository):
    with pytest.raises(MissingArtefact, match="no patching effects in truth: `make organism`"):
        benchmark.load_benchmarks("truth")
    nulls = pd.DataFrame({"null": ["slot"], "metric": ["contrast"], "z": [1.5], "decision": ["persistence"]})
    made = replace(make_benchmark(EFFECT, SPREAD, noise=0.1, dead=2), nulls=nulls)
    benchmark.save_benchmark(repository / "truth" / "a", made)
    (found,) = benchmark.load_benchmarks("truth")
    assert found.identity == made.identity
    pd.testing.assert_frame_equal(found.evidence, made.evidence)
    pd.testing.assert_frame_equal(found.nulls, nulls)
    own, before = found.truths["persistence"], made.truths["persistence"]
    assert own.causal.tolist() == before.causal.tolist() == [True] * 6 + [False]
    for name in ("features", "effect", "size", "random", "sums", "counts"):
        np.testing.assert_allclose(getattr(own, name), getattr(before, name), rtol=1e-3)
    (repository / "truth" / "a" / "features.parquet").write_bytes(b"no table")
    with pytest.raises(CorruptArtefact, match="truth/a cannot be read"):
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
