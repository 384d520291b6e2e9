"""Trained beside random: what is planted is found, a dictionary beside itself differs by nothing, looks."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_benchmark, signed_identity

from reasoning_features.dictionaries.evaluation import quality
from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.files import write_shipped
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.sae_checks import random_baseline
from reasoning_features.truth.benchmark import Benchmark, Scorer, column, evaluate_all

FRESH = ActivationBatch(torch.randn(400, 4, generator=torch.Generator().manual_seed(0)), torch.arange(400))
DOCUMENTS = np.repeat(np.arange(20), 20)
EFFECT = np.concatenate([np.full(5, 0.5), np.full(20, 0.01)])
SCORER = Scorer("ReasonScore", column("score:reason score"))


def benchmark(architecture: str, score: np.ndarray) -> Benchmark:
    """Five features that have an effect and 20 that have none, ranked by a score."""
    made_of = make_benchmark(EFFECT, spread=0.05, noise=0.05)
    evidence = made_of.evidence.assign(**{"score:reason score": score})
    return replace(made_of, architecture=architecture, evidence=evidence)


GOOD, BAD = benchmark("batchtopk", EFFECT), benchmark("soft_frozen_decoder-iso", -EFFECT)


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


def test_a_row_by_hand():
    trained, null = np.concatenate([[0.9], np.linspace(0.8, 1.0, 101)]), np.full(102, 0.7)
    row = random_baseline.row("a", trained, null, 0.5, 30)
    ends = [row[name] for name in ("low", "low 90", "high 90", "high")]
    assert ends == pytest.approx([0.105, 0.11, 0.29, 0.295]) and row["difference"] == pytest.approx(0.2)
    claim = random_baseline.outcome(pd.DataFrame([row]), "a")
    assert (claim.value.low, claim.narrow.low, claim.value.n) == pytest.approx((0.105, 0.11, 30))


def test_the_share_of_effect_is_the_benchmarks():
    table = random_baseline.scorer_shares(evaluate_all([SCORER], [GOOD, BAD]))
    own = table[table["scorer"] == "ReasonScore"].set_index("dictionary")
    sizes = np.abs(GOOD.truths["persistence"].effect)
    assert own.loc["BatchTopK", "estimate"] == pytest.approx(sizes[:10].sum() / sizes.sum())
    assert own.loc["soft-frozen decoder", "estimate"] < 0.1
    assert own.loc["BatchTopK", ["chance", "causal", "live"]].tolist() == [10 / 25, 5, 25]
    found, null = (random_baseline.share_of_effect(each) for each in (GOOD, BAD))
    assert found[0] == own.loc["BatchTopK", "estimate"] and (found > null).all()


def test_dictionaries_are_told_apart_and_keep_their_row_in_every_panel():
    names = ["BatchTopK", "BatchTopK, second seed", "frozen decoder", "frozen decoder (cov)", "TopK", "ReLU"]
    looks = random_baseline.styles(names)
    parts = ("color", "marker", "markerfacecolor")
    assert len({tuple(str(looks[name][part]) for part in parts) for name in names}) == len(names)
    assert looks["BatchTopK"] == random_baseline.styles(["BatchTopK"])["BatchTopK"]
    given = pd.DataFrame([(m, name) for m in "acb" for name in names], columns=["metric", "dictionary"])
    given = given.assign(estimate=0.1 * np.arange(18), low=np.nan, high=0.5).drop(index=[3])
    fig, drawn = random_baseline.draw_metrics(given.sample(frac=1, random_state=0).sort_index())
    assert drawn.equals(given.reset_index(drop=True))
    labels = [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    for metric, ax in zip("acb", fig.axes, strict=True):
        rows = given[given["metric"] == metric].set_index("dictionary")
        points = [line for line in ax.lines if len(line.get_xdata()) == 1]
        found = {labels[round(line.get_ydata()[0])]: line.get_xdata()[0] for line in points}
        assert found == pytest.approx(rows["estimate"].to_dict())
    plt.close(fig)


def test_a_shipped_table_is_checked_before_it_is_read(repository):
    place = "data/organism/sae_checks/table.parquet"
    table, path = pd.DataFrame({"gamma": [0.0, 0.25]}), repository / place
    path.parent.mkdir(parents=True)
    table.to_parquet(path)
    write_shipped([path], repository / "data/organism/checksums.json")
    assert random_baseline.load_table(place).equals(table)
    table.iloc[:1].to_parquet(path)
    with pytest.raises(CorruptArtefact, match=place):
        random_baseline.load_table(place)
    with pytest.raises(MissingArtefact, match="no dictionaries of nobody"):
        random_baseline.load_dictionaries("data/organism/sae_checks", "nobody", 8, "hook")
