"""Sets of tokens around words, written out by hand; words put in land where they are said to."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import Pieces, corpus_of

from reasoning_features.errors import UserError
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import (
    ALL,
    TokenIndex,
    capitalised_with_twins,
    draw_places,
    form_ids,
    hosts,
    inject,
    occurrence_table,
    plain_documents,
    token_sets,
    vocabulary_set,
    word_boundaries,
    word_set,
)


def where(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def around(corpus: Corpus, words: list[str], window: tuple[int, int]) -> list[list[int]]:
    sets = token_sets(corpus, Pieces(), {"R": words}, [window])
    return [where(sets.mask(word_set(word, window))) for word in words]


def test_form_ids_keep_what_the_tokenizer_can_write():
    # "let me" = let + " me", " let me" = " let" + " me"; "Let" cannot be written
    assert form_ids(Pieces(), "let me") == [(4, 6), (5, 6)]
    # the released list has "But" alone
    assert form_ids(Pieces(), "but") == [(7,)]
    assert form_ids(Pieces(), "but", capitalised_only=()) == [(9,), (7,), (8,)]
    with pytest.raises(UserError, match="cannot produce the word 'hmm'"):
        form_ids(Pieces(), "hmm")
    assert capitalised_with_twins({"but": "and", "wait": "look"}) == {"but", "another", "and"}


def test_sets_written_out():
    # document one                              document two
    #  0     1    2      3      4     5    6     7     8      9      10   11
    #  <s>  " a" " wait" " let" " me" " b" "."   <s>   "Wait" " a"  " b"  "let"
    corpus = corpus_of(["<s>", " a", " wait", " let", " me", " b", "."], ["<s>", "Wait", " a", " b", "let"])
    wait, let_me = around(corpus, ["wait", "let me"], (2, 3))
    # wait at 2: 0…5, without the special 0; at 8: 6…11, clipped to its own document and without 7
    assert wait == [1, 2, 3, 4, 5, 8, 9, 10, 11]
    # let me at 3–4: 1…7 clipped to document one's 1…6; a bare "let" at 11 is no match. The words overlap
    assert let_me == [1, 2, 3, 4, 5, 6]
    assert around(corpus, ["wait", "let me"], (0, 0)) == [[2, 8], [3, 4]]
    # a match never crosses documents
    across = TokenIndex(corpus_of([" a", "let"], [" me", "let", " me"]))
    assert across.occurrences([(4, 6)]).tolist() == [[3, 5]]


def test_token_sets_share_words_between_vocabularies_and_join_by_name():
    corpus = corpus_of(["<s>", " wait", " a", " b", " a"])
    sets = token_sets(corpus, Pieces(), {"R": ["wait", "b"], "S": ["b"]}, [(0, 0), (0, 1)])
    assert sets.names[0] == ALL and len(sets.names) == 1 + 2 * (2 + 2)
    assert where(sets.mask(ALL)) == [1, 2, 3, 4]
    assert where(sets.mask(word_set("b", (0, 1)))) == [3, 4]
    assert where(sets.mask(vocabulary_set("R", (0, 0)))) == [1, 3]
    assert where(sets.mask(vocabulary_set("R", (0, 1)))) == [1, 2, 3, 4]
    wide = token_sets(corpus, Pieces(), {"R": ["wait"]}, [(0, 1)])
    both = token_sets(corpus, Pieces(), {"R": ["wait"]}, [(0, 0)]).join(wide)
    expected = token_sets(corpus, Pieces(), {"R": ["wait"]}, [(0, 0), (0, 1)])
    assert both.names == expected.names and both.digest == expected.digest
    with pytest.raises(UserError, match="'but' never occurs in the corpus 'example'"):
        token_sets(corpus_of([" wait", " but"]), Pieces(), {"R": ["wait", "but"]}, [(1, 1)])


def test_occurrence_table():
    # b occurs at 1 and 3, of which 3 is inside thinking; 5 tokens are not special. "hmm" cannot be written,
    # and "but" is looked for as "But" alone, so " but" is none
    corpus = corpus_of(["<s>", " b", " a", " b", " but", " wait"], thinking=[3, 5])
    table = occurrence_table(corpus, Pieces(), ["b", "wait", "hmm", "but"]).set_index("word")
    assert list(table.index) == ["b", "wait"]
    assert table.loc["b"].tolist() == [2, 0.5, 0.4]
    assert table.loc["wait", "thinking_share"] == 1.0
    assert "but" in occurrence_table(corpus, Pieces(), ["but"], capitalised_only=())["word"].tolist()


PIECES = ["a", " b", ".", " c", "\n", "d", "3", "5", " e", "!", " f"]
DOCUMENT = ["a", " b", " c", ".", " e", " f"]


def test_places_and_what_is_put_there_by_hand():
    corpus = corpus_of(DOCUMENT, ["d", " b", " c"], pieces=PIECES)
    # words begin with a space; "a" and "d" begin documents, "." continues
    assert word_boundaries(corpus, Pieces(PIECES)).tolist() == [1, 2, 4, 5, 7, 8]
    assert draw_places(corpus, Pieces(PIECES), 2, seed=5)[2:].tolist() == [7, 8]  # two in every document
    longer = inject(corpus, np.array([2, 4, 7]), np.array([6, 5, 9]), "changed")
    written = [PIECES[token] for token in longer.tokens]
    assert written == ["a", " b", "3", " c", ".", "d", " e", " f", "d", "!", " b", " c"]
    assert longer.starts.tolist() == [0, 8, 12]


def test_plain_documents_have_no_thinking_and_are_prose():
    corpus = corpus_of(DOCUMENT, DOCUMENT, DOCUMENT, pieces=PIECES)
    corpus.thinking[7] = True
    assert plain_documents(corpus).n_documents == 2
    moves = np.repeat(np.array([1, 0, 0], dtype=np.int8), len(DOCUMENT))
    assert plain_documents(replace(corpus, moves=moves, move_names=("prose", "explore"))).n_documents == 1
    corpus.thinking[:] = True
    with pytest.raises(UserError, match="no plain documents"):
        plain_documents(corpus)


def test_hosts_hold_none_of_the_tokens_and_have_room():
    lines = ["<s>", " a", " b", ".", " wait", " b", ".", " a", " a", " b", "."], [" a", ".", " wait", "."]
    corpus, wait = corpus_of(*lines), form_ids(Pieces(), "wait")
    bare = hosts(corpus, Pieces(), [token for ids in wait for token in ids], 3, length=6)
    # of the second document one word is left: too few; the first is cut at six tokens
    assert Pieces().decode(bare.tokens.tolist()) == "<s> a b. b."
    assert bare.special.tolist() == [True] + [False] * 5 and bare.n_documents == 1
    with pytest.raises(UserError, match="has room for 9 words"):
        hosts(corpus, Pieces(), [], 9)
