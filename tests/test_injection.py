"""Words land exactly where they are said to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_sentences import PIECES, Pieces, corpus_of
from test_word_masks import Pieces as Words
from test_word_masks import corpus_of as words_corpus

from reasoning_features.errors import UserError
from reasoning_features.text.injection import draw_places, hosts, inject, plain_documents, word_boundaries

DOCUMENT = ["a", " b", " c", ".", " e", " f"]


def test_places_and_spans_by_hand():
    corpus = corpus_of(DOCUMENT, ["d", " b", " c"])
    # words begin with a space; "a" and "d" begin documents, "." continues
    assert word_boundaries(corpus, Pieces()).tolist() == [1, 2, 4, 5, 7, 8]
    forms = [(6, 7), (5,), (9,)]
    made = inject(corpus, np.array([2, 4, 7]), forms, "changed")
    written = [PIECES[token] for token in made.corpus.tokens]
    assert written == ["a", " b", "3", "5", " c", ".", "d", " e", " f", "d", "!", " b", " c"]
    assert made.spans.tolist() == [[2, 4], [6, 7], [10, 11]]
    assert made.corpus.starts.tolist() == [0, 9, 13]
    for (start, end), form in zip(made.spans, forms, strict=True):
        assert tuple(made.corpus.tokens[start:end]) == form
    # what was put in taken out again is the corpus as it was
    inside = np.zeros(made.corpus.n_tokens, dtype=bool)
    for start, end in made.spans:
        inside[start:end] = True
    np.testing.assert_array_equal(made.corpus.tokens[~inside], corpus.tokens)


def test_random_places_land_where_stated_and_repeat():
    corpus = corpus_of(*[DOCUMENT * 4] * 30)
    places = draw_places(corpus, Pieces(), 3, seed=5)
    assert len(places) == 90 and (np.diff(places) > 0).all()
    assert np.isin(places, word_boundaries(corpus, Pieces())).all()
    assert (np.bincount(corpus.document_of[places]) == 3).all()
    np.testing.assert_array_equal(places, draw_places(corpus, Pieces(), 3, seed=5))
    rng = np.random.default_rng(0)
    forms = [tuple(rng.integers(0, 11, rng.integers(1, 4)).tolist()) for _ in places]
    made = inject(corpus, places, forms, "changed")
    for (start, end), form, place in zip(made.spans, forms, places, strict=True):
        assert tuple(made.corpus.tokens[start:end]) == form
        assert made.corpus.tokens[end] == corpus.tokens[place]
        assert made.corpus.document_of[start] == corpus.document_of[place]


def test_plain_documents_have_no_thinking():
    corpus = corpus_of(DOCUMENT, DOCUMENT, DOCUMENT)
    corpus.thinking[7] = True
    assert plain_documents(corpus).n_documents == 2
    corpus.thinking[:] = True
    with pytest.raises(UserError, match="no plain documents"):
        plain_documents(corpus)


def test_moves_leave_prose_alone():
    corpus = corpus_of(DOCUMENT, DOCUMENT)
    moves = np.repeat(np.array([1, 0], dtype=np.int8), len(DOCUMENT))
    labelled = replace(corpus, moves=moves, move_names=("prose", "explore"))
    assert plain_documents(labelled).n_documents == 1


def test_sentences_that_hold_the_words_are_taken_out():
    lines = ["<s>", " a", " b", ".", " wait", " b", ".", " a", " a", " b", "."], [" a", ".", " wait", "."]
    corpus = words_corpus(*lines)
    bare = hosts(corpus, Words(), ["wait"], 3, length=6)
    # of the second document one word is left: too few; the first is cut at six tokens
    assert Words().decode(bare.tokens.tolist()) == "<s> a b. a a"
    assert bare.special.tolist() == [True] + [False] * 5 and bare.n_documents == 1
    with pytest.raises(UserError, match="has 9 words outside sentences that hold"):
        hosts(corpus, Words(), ["wait"], 9)
    with pytest.raises(UserError, match="fewer than 9 words"):
        draw_places(corpus, Words(), 9, seed=0)
