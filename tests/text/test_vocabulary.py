"""Word ranking, the frequency filter, and the vocabularies R is compared with."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from reasoning_features.errors import UserError
from reasoning_features.text import vocabulary as room


def test_shares_and_phrases_by_hand():
    # six words, "let" three times; "let me" once in the first text, and none across texts
    shares = room.word_shares(["Let me. 3 + Let", "me let it’s"])
    assert shares["let"] == pytest.approx(3 / 6) and shares["it's"] == pytest.approx(1 / 6)
    assert shares["let me"] == pytest.approx(1 / 6)
    assert shares.drop("let me").sum() == pytest.approx(1)
    with pytest.raises(UserError, match="no words"):
        room.word_shares(["1 + 2", ""])


def test_ranking_by_hand():
    # thinking: wait 2/4, the 2/4; solution: the 3/4, is 1/4
    # differences: wait .5, the −.25, is −.25 (ties by alphabet)
    table = room.rank_words(["wait the wait the"], ["the the the is"])
    assert table["word"].tolist() == ["wait", "is", "the"]
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["difference"].tolist() == pytest.approx([0.5, -0.25, -0.25])
    assert table.loc[2, "general_frequency"] > 0.01  # "the" is over 5% of English
    assert room.frequency_filter(table)[["rank", "word"]].values.tolist() == [[1, "wait"]]
    _, drawn = room.draw_ranking(table, ["the"], threshold=1e-3, top=3)
    assert drawn["in_R"].tolist() == [False, False, True] and drawn["kept"].tolist() == [True, False, False]


def test_origin_of_each_word():
    # ranking: but (frequent in English), hmm, zebra, then however (more common in solutions)
    thinking, solution = ["but but but hmm hmm zebra"], ["however however zebra is is is"]
    table = room.rank_words(thinking, solution)
    assert table["word"].tolist() == ["but", "hmm", "zebra", "however", "is"]
    origin = room.vocabulary_origin(table, ["hmm", "but", "however", "perhaps"], top=2).set_index("word")
    assert origin["origin"].tolist() == ["count and filter", "count", "hand", "hand"]
    # filtered ranking: hmm, zebra, however
    assert origin.loc["hmm", "rank_filtered"] == 1 and origin.loc["however", "rank_filtered"] == 3
    assert pd.isna(origin.loc["but", "rank_filtered"]) and pd.isna(origin.loc["perhaps", "rank"])
    assert room.left_out(table, ["hmm", "but"], top=2) == ["zebra"]


def frame(rows: dict[str, tuple[float, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"word": w, "frequency": f, "thinking_share": s} for w, (f, s) in rows.items()],
        columns=["word", "frequency", "thinking_share"],
    )


REFERENCE = frame({"wait": (0.01, 1.0), "but": (0.02, 0.9)})


def test_random_vocabularies_are_matched_and_exclude(monkeypatch):
    rng = np.random.default_rng(0)
    near = {f"near{i}": (0.01 * float(np.exp(rng.normal(0, 0.05))), 0.95) for i in range(12)}
    far = {f"far{i}": (1e-6, 0.0) for i in range(100)}
    pool = frame(near | far | {"wait": (0.01, 1.0), "stop": (0.01, 1.0)})
    monkeypatch.setattr(room, "NEAREST", 5)
    drawn, matching = room.random_vocabularies(REFERENCE, pool, n=100, seed=0, excluded=["stop"])
    words = {word for vocabulary in drawn for word in vocabulary}
    assert words <= set(near) and matching["distinct"] == len(words)
    assert len(drawn) == 100 and all(len(set(vocabulary)) == 2 for vocabulary in drawn)
    # wait differs by about .05 in log frequency, but by about ln 2: the mean is near .37
    assert 0.2 < matching["log_frequency_difference"] < 0.5
    # shares differ by .05 from either word
    assert matching["share_difference"] == pytest.approx(0.05)
    with pytest.raises(UserError, match="2 words cannot be drawn from 1 other words"):
        room.random_vocabularies(REFERENCE, frame({"a": (0.01, 1), "wait": (0.01, 1)}), n=1, seed=0)


def test_slot_vocabularies():
    twins = {"wait": "look", "but": "and", "hmm": "well"}
    words = list(twins)
    every = set(product(*twins.items())) - {tuple(words)}  # 2³ − 1: R itself is none
    drawn = room.slot_vocabularies(words, twins, n=1023, seed=0)
    assert len(drawn) == 7 and set(drawn) == every
    some = room.slot_vocabularies(words, twins, n=5, seed=0)
    assert len(set(some)) == 5 and set(some) < every
    with pytest.raises(UserError, match="'perhaps' has no neutral twin"):
        room.slot_vocabularies(["perhaps"], twins, n=1, seed=0)


def test_word_sets_are_drawn_by_their_share_of_the_thinking():
    words = ["wait", "let me", "let", "me", "the", "is", "low", "never"]
    ranking = pd.DataFrame({"word": words, "p_think": [0.2, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.0]})
    sets = room.draw_word_sets(ranking, 2000, 1, seed=0, excluded=["wait", "let me"])
    shares = pd.Series([word for (word,) in sets]).value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"the": 0.6, "is": 0.2, "low": 0.2}, abs=0.05)
    (every,) = room.draw_word_sets(ranking, 1, 3, seed=1, excluded=["wait", "let me"])
    assert sorted(every) == ["is", "low", "the"]
    with pytest.raises(UserError, match="Sets of 4 words cannot be drawn from 3"):
        room.draw_word_sets(ranking, 1, 4, seed=1, excluded=["wait", "let me"])
