"""Pairs in turn, medians, and rows that hold what they say."""

from __future__ import annotations

import pytest

from reasoning_features.bench.timing import COLUMNS, Bar, Pairs, Row, all_in_turn, compared, in_turn, to_frame


def test_two_ways_run_in_turn_after_a_warm_up():
    now, order = [0.0], []

    def way(name, seconds, done):
        def work():
            order.append(name)
            now[0] += seconds[order.count(name) - 1]
            return done

        return work

    # the warm-ups take 100 s and do not count
    ours, theirs = way("a", [100, 2, 4], 8.0), way("b", [100, 1, 8], 4.0)
    pairs = in_turn(ours, theirs, 2, clock=lambda: now[0])
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert pairs == Pairs((4.0, 2.0), (4.0, 0.5))
    assert pairs.speed == [1.0, 4.0] and pairs.time == [1.0, 0.25]


def test_several_others_share_our_runs():
    now, order = [0.0], []

    def way(name, seconds):
        def work():
            order.append(name)
            now[0] += seconds
            return 6.0

        return work

    others = [way("b", 2), way("c", 3)]
    first, second = all_in_turn(way("a", 1), others, 2, clock=lambda: now[0])
    assert order == ["a", "b", "c"] * 3
    assert first == Pairs((6.0, 6.0), (3.0, 3.0)) and second == Pairs((6.0, 6.0), (2.0, 2.0))


def test_a_row_is_the_median_of_its_pairs():
    pairs = Pairs((1.0, 2.0, 8.0), (1.0, 1.0, 1.0))
    row = compared("a", "b", pairs, "speed", Bar("at least", 3), "few")
    assert (row.ratio, row.met, row.ours, row.theirs) == (2.0, "missed", 2.0, 1.0)
    assert compared("a", "b", pairs, "time", Bar("at most", 0.5), "few").met == "yes"
    assert compared("a", "b", pairs, "time", None, "few").met == ""


@pytest.mark.parametrize(
    ("bar", "met"),
    [(Bar("at most", 1.15), [True, True, False]), (Bar("at least", 1.15), [False, True, True])],
)
def test_a_bar_itself_is_met(bar, met):
    assert [bar.met(ratio) for ratio in (1.0, 1.15, 1.2)] == met


def test_the_table_tells_a_missed_bar():
    rows = [
        Row("a", "b", "time, ours / theirs", (1.3, 1.1, 1.2), Bar("at most", 1.15), "3 tokens", "why", 5, 6),
        Row("a", "itself", "peak memory", (1.0,), None, "3 tokens"),
    ]
    table = to_frame(rows)
    assert tuple(table.columns) == COLUMNS
    first, second = table.to_dict("records")
    assert (first["ratio"], first["lowest"], first["highest"], first["runs"]) == (1.2, 1.1, 1.3, 3)
    assert (first["bar"], first["met"], first["note"], first["ours per s"]) == ("≤ 1.15", "missed", "why", 5)
    assert (second["bar"], second["met"], second["runs"]) == ("", "", 1)
    assert table["theirs per s"].isna().tolist() == [False, True]
