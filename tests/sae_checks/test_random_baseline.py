"""Trained beside random: what is planted is found, and a dictionary beside itself differs by nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from studies import made
from tiny import make_benchmark, signed_identity

from reasoning_features.dictionaries.evaluation import quality
from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.files import write_shipped
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.sae_checks import random_baseline
from reasoning_features.steering.steering_study import CHOSEN, FEATURES, SLOT
from reasoning_features.truth.benchmark import Benchmark, Scorer, column, evaluate_all

FRESH = ActivationBatch(torch.randn(400, 4, generator=torch.Generator().manual_seed(0)), torch.arange(400))
DOCUMENTS = np.repeat(np.arange(20), 20)
EFFECT = np.concatenate([np.full(5, 0.5), np.full(20, 0.01)])
SCORER = Scorer("ReasonScore", column("score:reason score"))


def benchmark(architecture: str, score: np.ndarray) -> Benchmark:
    """Five features that have an effect and 20 that have none, ranked by a score."""
    made_of = make_benchmark(EFFECT, 0.3, noise=0.05)
    evidence = made_of.evidence.assign(**{"score:reason score": score})
    return replace(made_of, architecture=architecture, evidence=evidence)


GOOD, BAD = benchmark("batchtopk", EFFECT), benchmark("soft_frozen_decoder-iso", -EFFECT)
STRONG, WEAK = (made(1.0, 0, {CHOSEN: chance, FEATURES: 0.5, SLOT: 0.5}) for chance in (0.8, 0.5))


def test_variance_explained_differs_by_what_is_explained_paired_over_documents():
    saes = {"whole": signed_identity(4), "half": signed_identity(4, gain=0.5)}
    whole, half = (random_baseline.variance_explained(sae, FRESH, DOCUMENTS) for sae in saes.values())
    for found, sae in ((whole, saes["whole"]), (half, saes["half"])):
        assert found[0] == pytest.approx(quality(sae, FRESH.residual)["fraction of variance explained"])
    row = random_baseline.row("variance explained", whole, half, 0.0, 20)
    assert row["difference"] == pytest.approx(whole[0] - half[0]) and row["low"] > 0.2
    assert row["low"] < row["low 90"] < row["high 90"] < row["high"]
    itself = random_baseline.row("variance explained", half, half, 0.0, 20)
    assert itself["difference"] == itself["low"] == itself["high"] == 0


def test_a_row_and_what_the_null_keeps_by_hand():
    trained = np.concatenate([[0.9], np.linspace(0.8, 1.0, 101)])
    null, same = np.full(102, 0.7), np.full(102, 0.4)
    rows = [random_baseline.row("a", trained, null, 0.5, 30), random_baseline.row("b", same, null, 0.5, 30)]
    first = rows[0]
    ends = [first[name] for name in ("low", "low 90", "high 90", "high")]
    assert ends == pytest.approx([0.105, 0.11, 0.29, 0.295]) and first["difference"] == pytest.approx(0.2)
    table = pd.DataFrame(rows)
    kept = random_baseline.kept(table)["kept"]
    assert kept[0] == pytest.approx(0.5) and np.isnan(kept[1])  # the second is at the floor itself
    claim = random_baseline.outcome(table, "a")
    assert (claim.value.low, claim.narrow.low, claim.value.n) == pytest.approx((0.105, 0.11, 30))


def test_precision_over_chance_is_the_benchmarks_less_the_base_rate():
    table = random_baseline.over_chance(evaluate_all([SCORER], [GOOD, BAD]))
    own = table[table["scorer"] == "ReasonScore"].set_index("dictionary")
    assert own.loc["BatchTopK", "estimate"] == pytest.approx(1 - 5 / 25)
    assert own.loc["soft-frozen decoder", "estimate"] < 0.1
    assert own.loc["BatchTopK", "positives"] == 5 and own.loc["BatchTopK", "live"] == 25
    found = random_baseline.precision_over_chance(GOOD)
    assert found[0] == pytest.approx(own.loc["BatchTopK", "estimate"]) and np.isfinite(found).all()
    panels = random_baseline.scorer_panels(table, "coupled-0")
    assert list(panels["metric"].unique()) == ["ReasonScore", "the effect itself"]


def test_the_main_line_is_paired_over_traces_and_problems():
    benchmarks, studies = {"trained": GOOD, "null": BAD}, {"trained": STRONG, "null": WEAK}
    rows = random_baseline.main_line_rows(("trained", "null"), benchmarks, studies).set_index("measure")
    precise, steered = rows.iloc[0], rows.loc["steering, gain of ReasonScore's winner"]
    assert precise["low"] > 0.5 and precise["n"] == 40
    assert steered["null"] == 0 and steered["low"] > 0.2 and steered["n"] == 400
    itself = random_baseline.main_line_rows(("null", "null"), benchmarks, studies)
    assert (itself[["difference", "low", "high"]] == 0).all(axis=None)


def test_presence_counts_by_activation_and_by_cosine():
    one, other = signed_identity(4), signed_identity(4)
    other.W_dec.data = other.W_dec.data.roll(1, dims=1) + other.W_dec.data  # cosine 0.707 with two
    matched = pd.DataFrame({"S": [0.9, 0.1], "S-M": [0.8, 0.75]}, index=[0, 1])
    stages = {"S": ("base", one), "S-M": ("arm", other)}
    table = random_baseline.presence(matched, one, stages, np.array([0, 1]))
    found = table.set_index("stage")
    assert found["share"].tolist() == [0.5, 1.0] and found.loc["S", "n"] == 2
    assert found.loc["S", "by cosine"] == 1 and found.loc["S", "between stages"] == 1
    assert found.loc["S-M", "by cosine"] == 1
    both = pd.concat([table.assign(dictionary="a"), table.assign(dictionary="b", share=0.25)])
    gone = random_baseline.absent(both, "a", "b")
    assert gone.value.estimate == 0.5 and gone.value.low == 1 - found.loc["S", "high"]
    assert gone.control == 0.75


def test_a_shipped_table_is_checked_before_it_is_read(repository, monkeypatch):
    place = "data/organism/foundations/table.parquet"
    table, path = pd.DataFrame({"gamma": [0.0, 0.25]}), repository / place
    path.parent.mkdir(parents=True)
    table.to_parquet(path)
    write_shipped([path], repository / "data/organism/checksums.json")
    monkeypatch.chdir(path.parent)  # read wherever the caller stands
    assert random_baseline.load_table(place).equals(table)
    assert random_baseline.load_table(str(path)).equals(table)
    table.iloc[:1].to_parquet(path)
    with pytest.raises(CorruptArtefact, match=place):
        random_baseline.load_table(place)
    path.unlink()
    with pytest.raises(MissingArtefact, match=place):
        random_baseline.load_table(place)
    with pytest.raises(MissingArtefact, match="no dictionaries of nobody"):
        random_baseline.load_dictionaries("data/organism/foundations", "nobody", 8, "hook")
