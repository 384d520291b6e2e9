"""Word masks against examples written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from reasoning_features.errors import UserError
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.word_masks import (
    ALL,
    TokenSets,
    capitalised_with_twins,
    form_ids,
    occurrence_table,
    occurrences,
    token_sets,
    vocabulary_set,
    word_forms,
    word_masks,
    word_set,
    words_that_occur,
)

PIECES = ("<s>", "wait", " wait", "Wait", "let", " let", " me", "But", " But", " but", "a", " a", " b", ".")


class Pieces:
    """A tokenizer that takes the longest piece at each place, and writes ? for what it does not know."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = []
        while text:
            found = max((p for p in PIECES if text.startswith(p)), key=len, default="")
            ids.append(PIECES.index(found) if found else len(PIECES))
            text = text[len(found) or 1 :]
        return ids

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = False) -> str:
        return "".join((*PIECES, "?")[i] for i in ids)


def corpus_of(*documents: list[str], thinking: list[int] | None = None) -> Corpus:
    tokens = np.array([PIECES.index(piece) for document in documents for piece in document], dtype=np.int32)
    starts = np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64)
    inside = np.zeros(len(tokens), dtype=bool)
    inside[thinking or []] = True
    return Corpus("example", tokens, starts, tokens == 0, inside, ["math"] * len(documents))


def where(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_four_forms_and_one_form():
    assert word_forms("let me") == ("let me", " let me", "Let me", " Let me")
    assert word_forms("but") == ("But",)
    assert word_forms("but", capitalised_only=()) == ("but", " but", "But", " But")


def test_form_ids_keep_what_the_tokenizer_can_write():
    # "let me" = let + " me", " let me" = " let" + " me"; "Let" cannot be written
    assert form_ids(Pieces(), "let me") == [(4, 6), (5, 6)]
    assert form_ids(Pieces(), "but") == [(7,)]


def test_word_the_tokenizer_cannot_produce():
    with pytest.raises(UserError, match="cannot produce the word 'hmm'"):
        form_ids(Pieces(), "hmm")


def test_masks_written_out():
    # document one                              document two
    #  0     1    2      3      4     5    6     7     8      9      10   11
    #  <s>  " a" " wait" " let" " me" " b" "."   <s>   "Wait" " a"  " b"  "let"
    corpus = corpus_of(["<s>", " a", " wait", " let", " me", " b", "."], ["<s>", "Wait", " a", " b", "let"])
    wait, let_me = word_masks(corpus, Pieces(), ["wait", "let me"], (2, 3))
    # wait at 2: 0…5, without the special 0; at 8: 6…11, clipped to its own document and without 7
    assert where(wait) == [1, 2, 3, 4, 5, 8, 9, 10, 11]
    # let me at 3–4: 1…7 clipped to document one's 1…6; a bare "let" at 11 is no match
    assert where(let_me) == [1, 2, 3, 4, 5, 6]
    # the words overlap: each keeps its own window
    assert where(wait & let_me) == [1, 2, 3, 4, 5]
    narrow = word_masks(corpus, Pieces(), ["wait", "let me"], (0, 0))
    assert [where(mask) for mask in narrow] == [[2, 8], [3, 4]]


def test_a_match_never_crosses_documents():
    corpus = corpus_of([" a", "let"], [" me", " wait"], ["let", " me"])
    assert occurrences(corpus, [(4, 6)]).tolist() == [[4, 6]]


def test_adjacent_and_repeated_words():
    # wait wait a a wait, window 0 before and 1 after: 0–1, 1–2, 4
    corpus = corpus_of([" wait", " wait", " a", " a", " wait"])
    assert where(word_masks(corpus, Pieces(), ["wait"], (0, 1))[0]) == [0, 1, 2, 4]


def test_token_sets_share_words_between_vocabularies():
    corpus = corpus_of(["<s>", " wait", " a", " b", " a"])
    sets = token_sets(corpus, Pieces(), {"R": ["wait", "b"], "S": ["b"]}, [(0, 0), (0, 1)])
    assert sets.names[0] == ALL and len(sets.names) == 1 + 2 * (2 + 2)
    rows = dict(zip(sets.names, sets.masks, strict=True))
    assert where(rows[ALL]) == [1, 2, 3, 4]
    assert where(rows[word_set("b", (0, 1))]) == [3, 4]
    assert where(rows[vocabulary_set("R", (0, 0))]) == [1, 3]
    assert where(rows[vocabulary_set("R", (0, 1))]) == [1, 2, 3, 4]


def test_sets_join_by_name():
    corpus = corpus_of(["<s>", " wait", " a", " b", " a"])
    wide = token_sets(corpus, Pieces(), {"R": ["wait"]}, [(0, 1)])
    both = token_sets(corpus, Pieces(), {"R": ["wait"]}, [(0, 0)]).join(wide)
    expected = token_sets(corpus, Pieces(), {"R": ["wait"]}, [(0, 0), (0, 1)])
    assert both.names == expected.names
    np.testing.assert_array_equal(both.masks, expected.masks)


def test_sets_are_kept_as_bits():
    rng = np.random.default_rng(0)
    masks = {name: rng.random(21) < 0.5 for name in "abc"}
    sets = TokenSets.of(masks)
    assert sets.bits.shape == (3, 3) and sets.n_tokens == 21
    np.testing.assert_array_equal(sets.masks, np.stack(list(masks.values())))
    np.testing.assert_array_equal(sets.mask("b"), masks["b"])
    np.testing.assert_array_equal(sets.only(["c", "a"]).masks, [masks["c"], masks["a"]])


def test_twins_share_the_restriction_of_their_word():
    assert capitalised_with_twins({"but": "and", "wait": "look"}) == {"but", "another", "and"}


def test_word_that_never_occurs():
    with pytest.raises(UserError, match="'but' never occurs in the corpus 'example'"):
        word_masks(corpus_of([" wait", " but"]), Pieces(), ["wait", "but"], (1, 1))


def test_occurrence_table():
    # b occurs at 1 and 3, of which 3 is inside thinking; 5 tokens are not special
    corpus = corpus_of(["<s>", " b", " a", " b", ".", " wait"], thinking=[3, 5])
    table = occurrence_table(corpus, Pieces(), ["b", "wait", "hmm", "but"]).set_index("word")
    assert list(table.index) == ["b", "wait"]
    assert table.loc["b"].tolist() == [2, 0.5, 0.4]
    assert table.loc["wait", "thinking_share"] == 1.0


def test_words_that_never_occur_or_cannot_be_written_are_left_out():
    # "but" is looked for as "But" alone, so " but" is none; the tokenizer has no pieces for "hmm"
    corpus = corpus_of(["<s>", " wait", " a", " but", "let"], ["<s>", " b", ".", " wait"])
    asked = ["wait", "hmm", "let me", "but", "b"]
    assert words_that_occur(corpus, Pieces(), asked) == ["wait", "b"]
    assert words_that_occur(corpus, Pieces(), asked, capitalised_only=()) == ["wait", "but", "b"]
    assert word_masks(corpus, Pieces(), ["wait", "b"], (0, 0)).sum(axis=1).tolist() == [2, 1]


def test_fewer_than_two_words_that_occur_is_told_in_one_sentence():
    with pytest.raises(UserError) as raised:
        words_that_occur(corpus_of([" wait", " a"]), Pieces(), ["wait", "hmm", "b"])
    assert str(raised.value) == (
        "Of the words wait, hmm, b fewer than two occur in the corpus 'example': give other `words`, or more "
        "documents."
    )
