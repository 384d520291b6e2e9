"""Where sentences begin in a corpus, from the tokens' text alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasoning_features.text.corpus import Corpus

STOPS = (".", "!", "?")


def sentence_starts(corpus: Corpus, tokenizer: Any) -> NDArray[np.int64]:
    """Index in ``corpus.tokens`` of the first token of every sentence ``[n]``, ascending.

    A sentence ends at a token whose text ends in a newline, or in ``.``, ``!`` or ``?`` before a token that
    begins with white space; white space alone belongs to the sentence before it. A new sentence also begins
    with each document, and where text follows a special token. Special tokens begin none.
    """
    ids, where = np.unique(corpus.tokens, return_inverse=True)
    texts = [tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in ids]
    newline = np.array([text.endswith("\n") for text in texts])[where]
    stop = np.array([text.endswith(STOPS) for text in texts])[where]
    blank = np.array([not text.strip() for text in texts])[where]
    spaced = np.array([text[:1].isspace() for text in texts])[where]
    ended = newline[:-1] | (stop[:-1] & spaced[1:]) | corpus.special[:-1]
    begins = np.concatenate([[True], ended & ~blank[1:]])
    begins[corpus.starts[:-1]] = True
    return np.flatnonzero(begins & ~corpus.special).astype(np.int64)


def last_before(corpus: Corpus, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token before each sentence ``[m]``; left out where that is special or of another document."""
    inside = starts[~np.isin(starts, corpus.starts[:-1])]
    return (inside - 1)[~corpus.special[inside - 1]]


def sentence_of(corpus: Corpus, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sentence each token belongs to ``[n_tokens]``, as an index into ``starts``; -1 at special tokens.

    Tokens before the first sentence of their document belong to none.
    """
    sentence = np.searchsorted(starts, np.arange(corpus.n_tokens), side="right") - 1
    first = np.repeat(corpus.starts[:-1], np.diff(corpus.starts))
    outside = (sentence < 0) | (starts[np.maximum(sentence, 0)] < first) | corpus.special
    return np.where(outside, -1, sentence).astype(np.int64)
