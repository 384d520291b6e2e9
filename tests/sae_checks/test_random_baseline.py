"""Trained beside random: what is planted is found, a dictionary beside itself differs by nothing, looks."""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from tiny import make_benchmark

from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.files import write_shipped
from reasoning_features.sae_checks import random_baseline
from reasoning_features.statistics import t_interval
from reasoning_features.truth.benchmark import Scorer, column, evaluate_all


def test_architectures_are_compared_seed_by_seed():
    names = ["TopK", "TopK, seed 1", "TopK, seed 2", "frozen decoder", "frozen decoder, seed 1"]
    names += ["frozen decoder, seed 2", "frozen decoder (cov)"]
    values = [0.9, 0.8, 0.85, 0.5, 0.6, 0.55, 0.0]
    table = pd.DataFrame({"metric": "a", "dictionary": names, "estimate": values})
    alone = table.assign(metric="b")[table["dictionary"].str.startswith("TopK")]
    once = table.assign(metric="c")[~table["dictionary"].str.contains("seed")]
    rows = random_baseline.differences(pd.concat([table, alone, once]), "TopK", "frozen decoder")
    first, other = rows.to_dict("records")
    expected = t_interval([0.4, 0.2, 0.3])
    assert (first["metric"], first["seeds"]) == ("a", 3)
    assert (first["one"], first["other"]) == pytest.approx((0.85, 0.55))
    ends = first["low"], first["difference"], first["high"]
    assert ends == pytest.approx((expected.low, 0.3, expected.high))
    assert first["low"] < first["low 90"] < first["high 90"] < first["high"]
    assert other["metric"] == "c" and other["difference"] == 0.4 and math.isnan(other["low"])
    claim = random_baseline.outcome(rows, "a", control=0.1)
    assert (claim.value.estimate, claim.value.n, claim.control) == pytest.approx((0.3, 3, 0.1))
    assert claim.narrow.low == first["low 90"]


def test_the_share_of_effect_is_the_benchmarks():
    # five features that have an effect and 20 that have none, ranked well and badly
    effect, tested = np.concatenate([np.full(5, 0.5), np.full(20, 0.01)]), []
    made = make_benchmark(effect, spread=0.05, noise=0.05)
    for architecture, score in (("batchtopk", effect), ("soft_frozen_decoder-iso", -effect)):
        evidence = made.evidence.assign(**{"score:reason score": score})
        tested.append(replace(made, architecture=architecture, evidence=evidence))
    scorer = Scorer("ReasonScore", column("score:reason score"))
    table = random_baseline.scorer_shares(evaluate_all([scorer], tested))
    own = table[table["scorer"] == "ReasonScore"].set_index("dictionary")
    sizes = np.abs(made.truths["persistence"].effect)
    assert own.loc["BatchTopK", "estimate"] == pytest.approx(sizes[:10].sum() / sizes.sum())
    assert own.loc["soft-frozen decoder", "estimate"] < 0.1
    assert own.loc["BatchTopK", ["chance", "causal", "live"]].tolist() == [10 / 25, 5, 25]


def test_dictionaries_are_told_apart_and_keep_their_row_in_every_panel():
    names = ["BatchTopK", "BatchTopK, seed 1", "frozen decoder", "frozen decoder (cov)", "TopK", "ReLU"]
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
