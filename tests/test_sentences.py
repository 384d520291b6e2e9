"""Where sentences begin."""

from __future__ import annotations

import numpy as np

from reasoning_features.text.corpus import Corpus
from reasoning_features.text.sentences import last_before, sentence_of, sentence_starts

PIECES = ["a", " b", ".", " c", "\n", "d", "3", "5", " e", "!", " f"]


class Pieces:
    """A tokenizer that writes each id as its piece."""

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = False) -> str:
        return "".join(PIECES[i] for i in ids)


def corpus_of(*documents: list[str]) -> Corpus:
    tokens = np.array([PIECES.index(piece) for document in documents for piece in document], dtype=np.int32)
    starts = np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64)
    nowhere = np.zeros(len(tokens), dtype=bool)
    return Corpus("example", tokens, starts, nowhere.copy(), nowhere, ["math"] * len(documents))


def test_sentences_by_newline_and_full_stop():
    corpus = corpus_of(["a", " b", ".", " c", ".", "\n", "d", "3", ".", "5"], [" e", "!", " f"])
    corpus.special[0] = True
    starts = sentence_starts(corpus, Pieces())
    # " b" follows a special token, " c" a full stop, "d" a newline; the stop in 3.5 ends nothing
    assert starts.tolist() == [1, 3, 6, 10, 12]
    # the token before " b" is special, and " e" begins its document
    assert last_before(corpus, starts).tolist() == [2, 5, 11]
    assert sentence_of(corpus, starts).tolist() == [-1, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4]
