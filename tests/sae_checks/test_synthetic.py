"""Data of known features is what it is said to be; the grid learns, goes on where it stopped, and repeats."""

import math
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features.dictionaries.evaluation import EXPLAINED
from reasoning_features.runs.shards import each
from reasoning_features.sae_checks import synthetic
from reasoning_features.sae_checks.synthetic import DECADES, Cell, World

FEW = World(width=64, features=16, active=1.5, firing="unequal", seed=3)
"""Fewer features than dimensions: their activations can be read back."""
TINY = Cell("topk", World(8, 32, 2, "unequal"), steps=6)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(synthetic, "RECORD_AT", (2, 100))


def test_probabilities_are_the_papers():
    assert World(100, 3200, 20, "equal").probabilities == pytest.approx(np.full(3200, 0.00625))
    unequal = World(100, 3200, 20, "unequal").probabilities
    assert unequal.sum() == pytest.approx(20)
    low, high = np.log10([unequal.min(), unequal.max()])
    assert low == pytest.approx(-5.5, abs=0.05) and high == pytest.approx(-1.2, abs=0.05)
    # as many features in every part of the span: the logarithm is uniform
    parts, _ = np.histogram(np.log10(unequal), np.linspace(high - DECADES, high, 5))
    assert parts == pytest.approx(800, abs=100)


def test_features_are_active_as_often_and_as_strongly_as_asked():
    n, p = 20_000, FEW.probabilities
    x = next(FEW.batches(n, "test"))
    strengths = torch.linalg.lstsq(FEW.directions.T.double(), x.T.double()).solution.T
    active = strengths > 1e-3
    assert strengths[~active].abs().max() < 1e-4
    error = np.sqrt(p * (1 - p) / n)
    assert (np.abs(active.double().mean(0).numpy() - p) < 4 * error + 1e-12).all()
    logs = strengths[active].log()
    assert logs.mean().item() == pytest.approx(0, abs=0.01)
    assert logs.std().item() == pytest.approx(0.25, abs=0.01)
    # independent: two features are active together as often as chance has it
    first, second = p.argsort()[-2:]
    together = (active[:, first] & active[:, second]).double().mean().item()
    assert together == pytest.approx(p[first] * p[second], rel=0.1)


def test_a_stream_is_its_own_whatever_else_draws_random_numbers():
    world = World(8, 32, 4, "unequal")
    first = list(islice(world.batches(16), 2))
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, world.batches(16), strict=False))
    assert not torch.equal(first[0], first[1])
    held_out = next(world.batches(16, "held out"))
    assert torch.equal(next(world.batches(16, "held out")), held_out) and not torch.equal(first[0], held_out)
    assert not torch.equal(next(replace(world, seed=1).batches(16, "held out")), held_out)


def test_recovery_is_counted_in_bins_of_equally_many_features(monkeypatch):
    probabilities, found = np.array([0.2, 0.002, 0.05, 0.04]), np.array([True, False, True, False])
    assert len(synthetic.count_by_frequency(found, probabilities)) == 4  # no empty bins
    monkeypatch.setattr(synthetic, "BINS", 2)
    table = synthetic.count_by_frequency(found, probabilities)
    assert table.to_numpy().tolist() == [[0, 0.002, 0.04, 2, 0], [1, 0.05, 0.2, 2, 2]]
    equal = synthetic.count_by_frequency(np.arange(32) < 8, World(8, 32, 4).probabilities)
    assert equal[["in bin", "found"]].values.tolist() == [[32, 8]]


def test_a_cell_is_recorded_as_it_goes_and_gives_the_same_rows_again(recorded, tmp_path):
    synthetic.make_cell(tmp_path / "one", TINY)
    torch.manual_seed(3)  # the global stream has no say
    synthetic.make_cell(tmp_path / "two", TINY)
    one, two = ((tmp_path / name / TINY.file).read_bytes() for name in ("one", "two"))
    assert one == two and "auxiliary-0.25" in replace(TINY, auxiliary=0.25).file
    rows = pd.read_parquet(tmp_path / "one" / TINY.file)
    assert list(dict.fromkeys(rows["step"])) == [0, 2, 6]
    assert (rows["samples"] == 512 * rows["step"]).all() and rows["L0"].iloc[-1] <= 2
    assert (rows.groupby("step")["in bin"].sum() == 32).all() and rows["bin"].tolist() == [*range(10)] * 3
    assert (rows["found"] <= rows["in bin"]).all() and (rows["architecture"] == "topk").all()


def test_the_grid_goes_on_where_it_stopped_and_leaves_nothing_half_made(tmp_path, monkeypatch):
    cells = [replace(TINY, world=replace(TINY.world, seed=seed)) for seed in (1, 0)]
    one_by_one = partial(each, workers=1)
    synthetic.make(tmp_path, one_by_one, cells[:1])
    kept = (tmp_path / cells[0].file).stat().st_mtime_ns
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(synthetic.training, "held_out_quality", lambda trainer, held_out: 1 / 0)
        synthetic.make(tmp_path, one_by_one, cells)
    assert list(tmp_path.iterdir()) == [(tmp_path / cells[0].file)]
    synthetic.make(tmp_path, one_by_one, cells)
    assert (tmp_path / cells[0].file).stat().st_mtime_ns == kept
    assert list(dict.fromkeys(synthetic.merged(tmp_path, cells)["seed"])) == [1, 0]  # as the cells


def test_the_first_steps_of_a_training_are_those_of_the_whole(recorded):
    cell = replace(TINY, steps=10)
    whole, first = synthetic.train_cell(cell), synthetic.train_cell(cell, 2)
    assert whole[whole["step"] <= 2].equals(first)


def rows(architecture: str, seed: int, found: list[int], **about) -> pd.DataFrame:
    """A training that ends with so many features found in each of some bins, of 100 features together."""
    common = {"architecture": architecture, "firing": "unequal", "width": 8, "features": 100, "seed": seed}
    common |= {"steps": 10, "step": 10, "samples": 5120, "L0": 2.0, EXPLAINED: 0.5 + seed / 10}
    bins = {"bin": range(len(found)), "from": 0.01, "to": 0.1, "in bin": 100 // len(found), "found": found}
    return pd.DataFrame(common | {"dead share": 0.0, "best cosine": 0.6} | about | bins)


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def test_curves_sum_bins_and_frequencies_pool_the_features_of_all_seeds():
    parts = rows("topk", 0, [0, 0], step=0), rows("topk", 0, [10, 40]), rows("relu", 0, [1, 1], step=4)
    table = synthetic.curves(joined(*parts))
    assert table["recovered"].tolist() == [0, 0.5, 0.02] and synthetic.last(table)["step"].tolist() == [10, 4]
    table = synthetic.by_frequency(joined(rows("topk", 0, [0, 40]), rows("topk", 1, [10, 50])))
    assert table["in bin"].tolist() == [100, 100] and table["recovered"].tolist() == [0.1, 0.9]
    assert (table["high"] - table["low"]).tolist() == pytest.approx([0.119, 0.119], abs=0.002)  # Wilson


def test_summary_has_intervals_over_seeds_and_for_one_seed_over_features_alone():
    apart = [rows("topk", 0, [0, 10]), rows("topk", 1, [40, 50])]
    alike = [rows("relu", 0, [0, 10]), rows("relu", 1, [0, 10])]
    table = synthetic.summary(joined(*apart, *alike, rows("ortsae", 0, [0, 0]))).set_index("architecture")
    assert table["recovered"].tolist() == pytest.approx([0.5, 0.1, 0])
    assert table["seeds"].tolist() == [2, 2, 1]
    assert table.loc["topk", [f"{EXPLAINED} low", f"{EXPLAINED} high"]].tolist() == pytest.approx([0.5, 0.6])
    low, high = table["recovered low"], table["recovered high"]
    assert low["topk"] < 0.15 and high["topk"] > 0.85  # worlds that differ count as two, not as 200 features
    assert 0.05 < low["relu"] < 0.1 < high["relu"] < 0.16
    assert low["ortsae"] >= 0 and 0.01 < high["ortsae"] < 0.04  # nothing found is not certainly nothing
    assert table.loc["ortsae", [f"{EXPLAINED} low", f"{EXPLAINED} high"]].isna().all()


def test_claims_are_judged_by_the_longest_trainings_in_the_smallest_worlds():
    equal = {"firing": "equal"}
    grid = joined(
        rows("topk", 0, [1, 1], **equal),
        rows("topk", 0, [5, 5], steps=40, **equal),
        rows("topk", 0, [3, 3], steps=80, features=3200, **equal),
        rows("relu", 0, [1, 1], **equal),
        rows("relu", 1, [1, 1], **equal),
        rows("topk", 0, [4, 4]),
    )
    assert synthetic.longest(grid)["found"].tolist() == [5, 5, 1, 1, 1, 1, 4, 4]
    found = synthetic.at_end(grid, "topk", "recovered")
    assert (found.estimate, found.n) == (0.1, 100) and 0 < found.low < 0.1 < found.high < 0.3
    one = synthetic.at_end(grid, "topk", EXPLAINED)
    assert (one.estimate, one.n) == (0.5, 1) and math.isnan(one.low) and math.isnan(one.high)
    two = synthetic.at_end(grid, "relu", EXPLAINED)
    assert (two.low, two.high, two.n) == pytest.approx((0.5, 0.6, 2))

    # frequent features are the top fifth
    ours, others = rows("topk", 0, [0, 0, 0, 0, 0, 0, 0, 4, 9, 10]), rows("relu", 0, [10] * 10)
    share, rest = synthetic.frequent(joined(ours, others, rows("topk", 0, [50], firing="equal")), "topk")
    assert (share.estimate, share.n, rest.estimate) == (0.95, 20, 4 / 80)
    assert 0.7 < share.low < 0.95 < share.high < 1
