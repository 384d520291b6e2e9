"""The grid on data with known features: it learns, goes on where it stopped, and repeats to the byte."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from reasoning_features.errors import MissingArtefact
from reasoning_features.foundations import synthetic_grid
from reasoning_features.foundations.synthetic_cells import CELLS, STEPS, USUAL, Cell
from reasoning_features.foundations.synthetic_grid import (
    CHECKED,
    EXPLAINED,
    at_end,
    by_frequency,
    check,
    curves,
    frequent,
    last,
    longest,
    make,
    make_cell,
    merged,
    place,
    revival,
    summary,
    swapped,
    train_cell,
)

TINY = Cell("topk", "unequal", 0, steps=6, width=8, features=32, active=2)
EASY = Cell("topk", "equal", 0, steps=400, width=16, features=16, active=1)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(synthetic_grid, "RECORD_AT", (2, 100))


def one_after_the_other(work, cells):
    for cell in cells:
        work(cell)


def rows(architecture: str, seed: int, found: list[int], **about) -> pd.DataFrame:
    """A training that ends with so many features found in each of two bins of 50."""
    common = {"architecture": architecture, "firing": "unequal", "width": 8, "features": 100, "seed": seed}
    common |= {"steps": 10}
    measured = {"step": 10, "samples": 5120, "L0": 2.0, EXPLAINED: 0.5 + seed / 10, "dead share": 0.0}
    bins = {"bin": [0, 1], "from": [0.01, 0.1], "to": [0.1, 1.0], "in bin": 50, "found": found}
    return pd.DataFrame(common | measured | {"best cosine": 0.6} | about | bins)


def test_cells_are_what_was_planned():
    assert len({cell.name for cell in CELLS}) == len(CELLS) == 42
    usual = [cell for cell in CELLS if cell.steps == STEPS]
    assert len({(cell.architecture, cell.firing, cell.seed) for cell in usual}) == len(usual) == 9 * 2 * 2
    others = [cell for cell in CELLS if cell.steps != STEPS]
    assert {(cell.architecture, cell.firing) for cell in others} == {
        ("topk", "equal"),
        ("batchtopk", "equal"),
    }
    sizes = {(cell.features, cell.width, cell.active, cell.seed) for cell in others}
    assert sizes == {(800, 50, 10, 0), (800, 50, 10, 1), (3200, 100, 20, 0)}
    assert all(cell.world.firing == cell.firing and cell.recipe.k == cell.active for cell in CELLS)
    assert set(CHECKED) <= set(CELLS)


def test_a_cell_is_recorded_as_it_goes(recorded):
    held = train_cell(TINY)
    assert list(dict.fromkeys(held["step"])) == [0, 2, 6]
    assert (held["samples"] == 512 * held["step"]).all()
    assert (held.groupby("step")["in bin"].sum() == 32).all()
    assert held["bin"].tolist() == [*range(10)] * 3
    assert (held["found"] <= held["in bin"]).all()
    assert held["L0"].iloc[-1] <= 2
    assert held[["architecture", "firing", "seed"]].drop_duplicates().values.tolist() == [
        ["topk", "unequal", 0]
    ]


def test_the_same_cell_gives_the_same_rows_and_leaves_random_numbers_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make_cell(tmp_path / "one", TINY)
    assert torch.equal(torch.rand(2), expected)
    make_cell(tmp_path / "two", TINY)
    one, two = (place(tmp_path / name, TINY).read_bytes() for name in ("one", "two"))
    assert one == two
    assert not train_cell(replace(TINY, seed=1)).equals(train_cell(TINY))


@pytest.mark.slow
def test_an_easy_world_is_learnt_and_a_frozen_decoder_finds_nothing():
    learnt, frozen = (
        last(curves(train_cell(cell))).iloc[0]
        for cell in (EASY, replace(EASY, architecture="frozen_decoder"))
    )
    assert learnt["recovered"] > 0.8 and learnt[EXPLAINED] > 0.6
    assert frozen["recovered"] < 0.2 and frozen[EXPLAINED] > 0


def test_the_grid_goes_on_where_it_stopped(tmp_path, monkeypatch):
    cells = [replace(TINY, seed=seed) for seed in (1, 0)]
    with pytest.raises(MissingArtefact, match="2 of 2"):
        merged(tmp_path, cells)
    make(tmp_path, one_after_the_other, cells[:1])
    kept = place(tmp_path, cells[0]).read_bytes()
    asked = []
    monkeypatch.setattr(
        synthetic_grid, "make_cell", lambda folder, cell: (asked.append(cell), make_cell(folder, cell))
    )
    make(tmp_path, one_after_the_other, cells)
    make(tmp_path, one_after_the_other, cells)
    assert asked == cells[1:]
    assert place(tmp_path, cells[0]).read_bytes() == kept
    grid = merged(tmp_path, cells)
    assert list(dict.fromkeys(grid["seed"])) == [1, 0]  # in the order of the cells
    # nothing half made
    assert {path.name for path in tmp_path.iterdir()} == {place(tmp_path, cell).name for cell in cells}


def test_a_training_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def broken(trainer, held_out):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_grid, "held_out_quality", broken)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, one_after_the_other, [TINY])
    assert not list(tmp_path.rglob("*"))


def test_trainings_can_be_checked_by_their_first_steps(recorded):
    cells = [replace(TINY, steps=10), replace(TINY, steps=10, architecture="batchtopk")]
    grid = pd.concat([train_cell(cell) for cell in cells], ignore_index=True)
    table = check(grid, 2, cells)
    assert table[["architecture", "step"]].values.tolist() == [
        ["topk", 0], ["topk", 2], ["batchtopk", 0], ["batchtopk", 2]
    ]  # fmt: skip
    assert table[EXPLAINED].equals(table[f"{EXPLAINED} now"]) and table["found"].equals(table["found now"])
    grid.loc[grid["step"] == 2, EXPLAINED] += 0.1
    changed = check(grid, 2, cells[:1])
    assert (changed[EXPLAINED] == changed[f"{EXPLAINED} now"]).tolist() == [True, False]


def test_curves_sum_bins_and_the_last_step_is_each_trainings_own():
    parts = [rows("topk", 0, [0, 0], step=0), rows("topk", 0, [10, 40]), rows("relu", 0, [1, 1], step=4)]
    table = curves(pd.concat(parts, ignore_index=True))
    assert table["recovered"].tolist() == [0, 0.5, 0.02]
    assert last(table)["step"].tolist() == [10, 4]


def test_by_frequency_pools_the_features_of_all_seeds():
    grid = pd.concat([rows("topk", 0, [0, 40]), rows("topk", 1, [10, 50])], ignore_index=True)
    table = by_frequency(grid)
    assert table["in bin"].tolist() == [100, 100] and table["recovered"].tolist() == [0.1, 0.9]
    assert (table["high"] - table["low"]).tolist() == pytest.approx([0.119, 0.119], abs=0.002)  # Wilson


def test_summary_has_intervals_over_seeds_and_for_one_seed_over_features_alone():
    apart = [rows("topk", 0, [0, 10]), rows("topk", 1, [40, 50])]
    alike = [rows("relu", 0, [0, 10]), rows("relu", 1, [0, 10])]
    table = summary(pd.concat([*apart, *alike, rows("ortsae", 0, [0, 0])], ignore_index=True))
    table = table.set_index("architecture")
    assert table["recovered"].tolist() == pytest.approx([0.5, 0.1, 0])
    assert table["seeds"].tolist() == [2, 2, 1]
    assert table.loc["topk", [f"{EXPLAINED} low", f"{EXPLAINED} high"]].tolist() == pytest.approx([0.5, 0.6])
    low, high = table["recovered low"], table["recovered high"]
    assert low["topk"] < 0.15 and high["topk"] > 0.85  # worlds that differ count as two, not as 200 features
    assert 0.05 < low["relu"] < 0.1 < high["relu"] < 0.16
    assert low["ortsae"] >= 0 and 0.01 < high["ortsae"] < 0.04  # nothing found is not certainly nothing
    assert table.loc["ortsae", [f"{EXPLAINED} low", f"{EXPLAINED} high"]].isna().all()


def bins_of(architecture: str, found: list[int], **about) -> pd.DataFrame:
    """A training that ends with so many features found in each of ten bins of ten."""
    held = rows(architecture, 0, [0, 0], **about).iloc[[0] * 10]
    return held.assign(**{"bin": range(10), "in bin": 10, "found": found})


def test_frequent_features_are_the_top_fifth():
    ours = bins_of("topk", [0, 0, 0, 0, 0, 0, 0, 4, 9, 10])
    others = [bins_of("relu", [10] * 10)]
    equal = rows("topk", 0, [50, 50], firing="equal").iloc[:1]
    found = frequent(pd.concat([ours, *others, equal], ignore_index=True), "topk")
    assert (found.share, found.n, found.others) == (0.95, 20, 4 / 80)
    assert 0.7 < found.low < 0.95 < found.high < 1


def test_at_end_is_of_one_setting_and_tells_what_it_rests_on():
    parts = [rows("topk", 0, [5, 5]), rows("relu", 0, [1, 1]), rows("relu", 1, [1, 1])]
    parts += [rows("topk", 0, [50, 50], firing="equal")]
    small = pd.concat(parts, ignore_index=True)
    found = at_end(small, "unequal", "topk", "recovered")
    assert (found.estimate, found.n) == (0.1, 100) and 0 < found.low < 0.1 < found.high < 0.3
    one = at_end(small, "unequal", "topk", EXPLAINED)
    assert (one.estimate, one.n) == (0.5, 1) and math.isnan(one.low) and math.isnan(one.high)
    two = at_end(small, "unequal", "relu", EXPLAINED)
    assert (two.low, two.high, two.n) == pytest.approx((0.5, 0.6, 2))


def test_claims_are_judged_by_the_longest_trainings_in_the_smallest_worlds():
    parts = [rows("topk", 0, [1, 1]), rows("topk", 0, [9, 9], steps=40), rows("relu", 0, [2, 2])]
    parts += [rows("topk", 0, [3, 3], steps=80, features=3200), rows("topk", 0, [4, 4], firing="equal")]
    kept = longest(pd.concat(parts, ignore_index=True))
    assert kept["found"].tolist() == [9, 9, 2, 2, 4, 4]


def test_revival_has_each_architecture_under_both_weights():
    grid = [rows(name, seed, [40, 40], firing="equal") for name in ("topk", "batchtopk") for seed in (0, 1)]
    grid += [rows("topk", 0, [1, 1]), rows("topk", 0, [9, 9], firing="equal", features=3200)]
    grid += [rows("relu", 0, [9, 9], firing="equal"), rows("topk", 0, [9, 9], firing="equal", steps=40)]
    others = [rows("topk", 0, [10, 10], firing="equal", auxiliary=USUAL["batchtopk"])]
    others += [rows("batchtopk", 0, [0, 0], firing="equal", auxiliary=USUAL["topk"])]
    table = revival(pd.concat(grid, ignore_index=True), pd.concat(others, ignore_index=True))
    found = {(row["architecture"], row["auxiliary"]): row for _, row in table.iterrows()}
    shares = {key: (row["recovered"], row["seeds"]) for key, row in found.items()}
    assert shares == {
        ("topk", 1.0): (0.8, 2), ("topk", 1 / 32): (0.2, 1),
        ("batchtopk", 1 / 32): (0.8, 2), ("batchtopk", 1.0): (0.0, 1),
    }  # fmt: skip


def test_swapped_weights_are_those_that_were_trained_with(recorded, tmp_path, monkeypatch):
    cells = [replace(TINY, auxiliary=0.25), replace(TINY, architecture="batchtopk", auxiliary=2.0)]
    assert [cell.recipe.auxiliary for cell in cells] == [0.25, 2.0]
    assert len({place(tmp_path, cell) for cell in (TINY, *cells)}) == 3
    monkeypatch.setattr(synthetic_grid, "REVIVAL", cells)
    make(tmp_path, one_after_the_other, cells)
    table = swapped(tmp_path)
    assert set(table["auxiliary"]) == {0.25, 2.0} and set(table["architecture"]) == {"topk", "batchtopk"}
