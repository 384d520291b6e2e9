"""Tables of corpora against a written-out example."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from reasoning_features.text.corpus import Corpus
from reasoning_features.text.corpus_tables import move_table, sentences, summary_table, telling_documents


@pytest.fixture
def written(tiny_llama: Path) -> tuple[Corpus, object]:
    """Two documents of three and one lines; BOS begins each."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    runs = [[("Wait, try 3.\n", 0), ("Let me try 4.\n", 0), ("7 is right.", 1)], [("Waiter, try 9.", 0)]]
    tokens: list[int] = []
    moves: list[int] = []
    starts = [0]
    for document in runs:
        tokens.append(0)
        moves.append(1)
        for text, move in document:
            ids = tokenizer.encode(text)
            tokens += ids
            moves += [move] * len(ids)
        starts.append(len(tokens))
    special = np.array(tokens) == 0
    corpus = Corpus(
        name="written",
        tokens=np.array(tokens, dtype=np.int32),
        starts=np.array(starts),
        special=special,
        thinking=~special,
        domains=["pair", "ops"],
        moves=np.array(moves, dtype=np.int8),
        move_names=("explore", "verify"),
    )
    return corpus, tokenizer


def test_sentences_are_lines_with_the_move_of_their_first_token(written) -> None:
    held = sentences(*written)
    assert held.to_numpy().tolist() == [
        [0, "explore", "Wait, try 3."],
        [0, "explore", "Let me try 4."],
        [0, "verify", "7 is right."],
        [1, "explore", "Waiter, try 9."],
    ]


def test_words_of_r_are_whole_words(written) -> None:
    table = move_table([written[0]], written[1], ["wait", "let me"]).set_index("move")
    assert table["sentences"].to_dict() == {"explore": 3, "verify": 1}
    assert table["with a word of R"].to_dict() == {"explore": pytest.approx(2 / 3), "verify": 0.0}
    assert table["tokens"].sum() == (~written[0].special).sum()


def test_without_labels_there_is_one_row(written) -> None:
    corpus = replace(written[0], moves=None, move_names=())
    table = move_table([corpus], written[1], ["wait"])
    assert table["move"].tolist() == ["all"] and table["with a word of R"].tolist() == [0.25]


def test_summary(written) -> None:
    row = summary_table([written[0]]).iloc[0]
    assert (row["documents"], row["tokens"], row["domains"]) == (2, written[0].n_tokens, "pair 1, ops 1")
    assert row["special"] == pytest.approx(2 / written[0].n_tokens)


def test_telling_documents_have_the_most_moves_of_their_style(written) -> None:
    corpus = written[0]
    lengths, moves = [4, 2, 6, 5], [[0, 0, 0, 0], [0, 1], [0, 1, 2, 0, 0, 0], [0, 1, 2, 0, 0]]
    made = replace(
        corpus,
        tokens=np.zeros(17, dtype=np.int32),
        starts=np.cumsum([0, *lengths]),
        special=np.zeros(17, dtype=bool),
        thinking=np.ones(17, dtype=bool),
        domains=["a"] * 4,
        moves=np.concatenate(moves).astype(np.int8),
        styles=["careful", "hasty", "careful", "careful"],
    )
    # Documents 2 and 3 have three kinds of moves each; the 70% length is 5.1, and 5 is nearer to it than 6.
    assert telling_documents(made) == [3, 1]
    assert telling_documents(replace(made, styles=None)) == [3, 2]
    assert telling_documents(replace(made, styles=None, moves=None, move_names=())) == [3, 2]
