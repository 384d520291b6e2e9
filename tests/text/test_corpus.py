"""Documents laid end to end come back as they were; sentences and tables against written-out examples."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import Pieces, corpus_of

from reasoning_features.errors import UserError
from reasoning_features.text import corpus as room
from reasoning_features.text.corpus import Corpus, join, last_before, move_table, sentence_starts


def written_out() -> Corpus:
    """Three documents: [10 11 12], [20], [30 31]; the first token of each is special."""
    tokens, starts = np.array([10, 11, 12, 20, 30, 31], dtype=np.int32), np.array([0, 3, 4, 6])
    special, thinking = np.array([[1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]], dtype=bool)
    plain = Corpus("example", tokens, starts, special, thinking, ["a", "b", "c"])
    moves, names = np.array([0, 1, 2, 0, 0, 2], dtype=np.int8), ("prompt", "explore", "verify")
    return replace(plain, moves=moves, move_names=names, styles=["careful", "hasty", ""])


def test_documents_and_places():
    corpus = written_out()
    assert [corpus.document(i).tolist() for i in range(3)] == [[10, 11, 12], [20], [30, 31]]
    assert corpus.document_of.tolist() == [0, 0, 0, 1, 2, 2]
    assert corpus.position_of.tolist() == [0, 1, 2, 0, 0, 1]
    assert corpus.digest == written_out().digest != corpus.select([0, 2, 1]).digest
    with pytest.raises(UserError, match="'example' is empty"):
        corpus.select([])


def test_batches_are_sorted_padded_and_point_back():
    # lengths 3, 1, 2 in order of length: documents 1, 2, 0. With at most 4 ids a batch, documents 1 and 2
    # fit together (2 rows of 2), document 0 comes alone (3 rows of 3 would be 9).
    batches = list(written_out().batches(max_tokens=4))
    assert [batch.documents.tolist() for batch in batches] == [[1, 2], [0]]
    assert batches[0].tokens.tolist() == [[20, 0], [30, 31]]
    assert batches[0].valid.tolist() == [[True, False], [True, True]]
    assert batches[0].positions.tolist() == [[3, -1], [4, 5]]
    assert batches[1].positions.tolist() == [[0, 1, 2]]
    # a document longer than a batch comes alone
    assert [batch.documents.tolist() for batch in written_out().batches(max_tokens=1)] == [[1], [2], [0]]


def test_select_and_join_keep_order_and_labels():
    corpus = written_out()
    chosen = corpus.select([2, 0])
    assert chosen.tokens.tolist() == [30, 31, 10, 11, 12] and chosen.starts.tolist() == [0, 2, 5]
    assert chosen.special.tolist() == [True, False, True, False, False]
    assert chosen.thinking.tolist() == [False, True, False, True, True]
    assert chosen.moves is not None and chosen.moves.tolist() == [0, 2, 0, 1, 2]
    assert (chosen.domains, chosen.styles) == (["c", "a"], ["", "careful"])
    both = join("both", [corpus.select([0, 1]), corpus.select([2])])
    assert both.digest == corpus.digest and both.domains == corpus.domains


def test_sentences_by_newline_and_full_stop():
    pieces = ["a", " b", ".", " c", "\n", "d", "3", "5", " e", "!", " f"]
    first = ["a", " b", ".", " c", ".", "\n", "d", "3", ".", "5"]
    corpus = corpus_of(first, [" e", "!", " f"], pieces=pieces)
    corpus.special[0] = True
    starts = sentence_starts(corpus, Pieces(pieces))
    # " b" follows a special token, " c" a full stop, "d" a newline; the stop in 3.5 ends nothing
    assert starts.tolist() == [1, 3, 6, 10, 12]
    # the token before " b" is special, and " e" begins its document
    assert last_before(corpus, starts).tolist() == [2, 5, 11]


def test_tables_count_lines_and_whole_words_of_r():
    lines = ["<s>", "Wait, try 3.\n", "Let me try 4.\n", "7 is right.", "Waiter, try 9."]
    corpus, tokenizer = corpus_of(lines[:4], [lines[0], lines[4]], pieces=lines), Pieces(lines)
    assert corpus.texts(tokenizer) == ["".join(lines[:4]), "<s>Waiter, try 9."]
    assert corpus.texts(tokenizer, ~corpus.special) == ["".join(lines[1:4]), "Waiter, try 9."]
    corpus = replace(corpus, moves=np.array([1, 0, 0, 1, 1, 0]), move_names=("explore", "verify"))
    table = move_table([corpus], tokenizer, ["wait", "let me"]).set_index("move")
    assert table["sentences"].to_dict() == {"explore": 3, "verify": 1}
    assert table["with a word of R"].to_dict() == {"explore": pytest.approx(2 / 3), "verify": 0.0}
    assert table["tokens"].to_dict() == {"explore": 3, "verify": 1}
    unlabelled = move_table([replace(corpus, moves=None, move_names=())], tokenizer, ["wait"])
    assert unlabelled["move"].tolist() == ["all"] and unlabelled["with a word of R"].tolist() == [0.25]


def test_telling_documents_are_of_two_styles_and_one_domain():
    lengths, moves = [4, 2, 6, 5], [[0, 0, 0, 0], [0, 1], [0, 1, 2, 0, 0, 0], [0, 1, 2, 0, 0]]
    known = {"move_names": ("prompt", "explore", "verify"), "styles": ["careful", "hasty", *["careful"] * 2]}
    corpus = corpus_of(*[["a"] * length for length in lengths])
    corpus = replace(corpus, moves=np.concatenate(moves).astype(np.int8), **known)
    # Documents 2 and 3 have three kinds of moves each; 2 is of the longest tenth; 5.1: the 70% quantile.
    assert room.telling_documents(corpus) == [3, 1]
    assert room.telling_documents(replace(corpus, styles=None, moves=None, move_names=())) == [3, 2]
