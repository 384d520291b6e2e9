"""The rule of modes, worked by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from reasoning_features.interpretation.modes import mode_shares, modes, modes_by_words

MOVES = ("explore", "compute", "verify", "backtrack", "uncertain")


def means(*rows: tuple[float, ...], place: str = "mean") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[f"{place}:{move}" for move in MOVES])


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        ((0, 0, 0, 0, 2), "uncertainty"),
        ((3, 3.9, 1, 1, 1), "exploration"),  # 3 / 9.9 = 0.303
        ((3, 5, 1, 1, 1), "other"),  # 3 / 11 = 0.27
        ((0, 7, 3, 0, 0), "reflection"),  # exactly the threshold
        ((0, 4, 0, 3, 0), "reflection"),
        ((1, 0, 0, 1, 0), "mixed"),
        ((1, 0, 1, 0, 1), "mixed"),
        ((0, 5, 2, 2, 0), "other"),  # two moves of one mode do not add
        ((0, 0, 0, 0, 0), "other"),
    ],
)
def test_the_rule_by_hand(row, mode):
    assert modes(means(row)) == [mode]


def test_a_feature_may_announce_a_move_or_stand_on_it():
    flat = means((1, 1, 1, 1, 1))
    before = means((0, 1, 0, 0, 3), place="before")
    both = pd.concat([flat, before], axis=1)
    # 0.2 on each move, 3/4 before doubt: the larger counts
    assert mode_shares(both).loc[0].to_dict() == {
        "uncertainty": 0.75,
        "exploration": pytest.approx(0.2),
        "reflection": pytest.approx(0.2),
    }
    assert modes(flat) == ["other"] and modes(before) == ["uncertainty"] and modes(both) == ["uncertainty"]


def test_moves_that_do_not_occur_are_left_out():
    table = means((1, 1, np.nan, np.nan, np.nan))
    assert mode_shares(table).loc[0].to_dict() == {"uncertainty": 0, "exploration": 0.5, "reflection": 0}
    assert modes(table[["mean:compute"]]) == ["other"]


def test_where_moves_are_not_known_there_is_no_mode():
    assert modes(pd.DataFrame({"feature": [0, 1]})) is None


R = ("hmm", "maybe", "alternatively", "another", "wait", "but", "therefore")


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        ((2, 1, 1, 0, 1, 0, 0), "uncertainty"),  # (2 + 1) / 5
        ((0, 1, 2, 3, 1, 1, 0), "exploration"),  # (2 + 3) / 8
        ((0, 0, 0, 0, 2, 4, 5), "reflection"),  # (2 + 4) / 11
        ((2, 0, 2, 0, 2, 0, 0), "mixed"),
        ((1, 1, 2, 0, 0, 0, 0), "mixed"),  # two modes with half each
        ((1, 0, 1, 0, 0, 0, 2), "mixed"),  # words of no mode have half, and not more
        ((0, 0, 0, 0, 0, 1, 2), "other"),
        ((0, 0, 0, 0, 0, 0, 0), "other"),  # active around no word
    ],
)
def test_the_rule_of_words_by_hand(row, mode):
    table = pd.DataFrame([row], columns=[f"word:{word}" for word in R], dtype=np.float32)
    assert modes_by_words(table.assign(feature=0, mean=9.0)) == [mode]


def test_words_of_ones_own_belong_to_no_mode():
    table = pd.DataFrame({"word:Wait": [3, 1], "word:let me": [0, 1], "word:actually": [2, 3]})
    assert modes_by_words(table) == ["reflection", "other"]  # 3 / 5; 3 / 5 of a word without a mode
    assert modes_by_words(table[["word:actually"]]) == ["other", "other"]
