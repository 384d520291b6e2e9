"""Where words stand in a corpus: their forms, their token ids, and one mask a word with its window.

Matching is the released code's (``extraction/compute_score.py``): a word is looked for as the token ids of
its written forms, each form encoded alone, so a form may be several tokens. Two differences: a window never
crosses the end of a document (the released rows are documents packed to 1,024 tokens), and a form counts
only where the tokenizer can write it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features.errors import UserError
from reasoning_features.text.corpus import Corpus

Window = tuple[int, int]
Mask = NDArray[np.bool_]

CAPITALISED_ONLY: frozenset[str] = frozenset({"but", "another"})
"""Words the released list holds in one form alone: "But" and "Another", without a leading space."""

ALL = "all"
"""Name of the set of all tokens that are not special."""


def capitalised_with_twins(twins: Mapping[str, str]) -> frozenset[str]:
    """Words with one form, and their twins: a twin must fill its word's slot and no other."""
    return CAPITALISED_ONLY | {twins[word] for word in CAPITALISED_ONLY if word in twins}


def word_forms(word: str, capitalised_only: Collection[str] = CAPITALISED_ONLY) -> tuple[str, ...]:
    """The written forms of a word: lower and capitalised, each without and with a leading space.

    A word in ``capitalised_only`` has one form, capitalised and without a leading space.
    """
    lower = word.lower()
    capital = lower[:1].upper() + lower[1:]
    return (capital,) if lower in capitalised_only else (lower, " " + lower, capital, " " + capital)


def form_ids(
    tokenizer: Any, word: str, capitalised_only: Collection[str] = CAPITALISED_ONLY
) -> list[tuple[int, ...]]:
    """Token ids of each form of ``word`` that the tokenizer can write, without duplicates.

    A form can be written when decoding its ids gives the form back.

    Raises:
        UserError: the tokenizer cannot write any form.
    """
    found: dict[tuple[int, ...], None] = {}
    for form in word_forms(word, capitalised_only):
        ids = tuple(tokenizer.encode(form, add_special_tokens=False))
        if ids and tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) == form:
            found[ids] = None
    if not found:
        raise UserError(f"The tokenizer cannot produce the word {word!r}: take it out of `words`.")
    return list(found)


class TokenIndex:
    """Finds sequences of token ids in a corpus; sorting once makes every search fast."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._order = np.argsort(corpus.tokens, kind="stable")
        self._sorted = corpus.tokens[self._order]
        document = np.repeat(np.arange(corpus.n_documents), np.diff(corpus.starts))
        self._first = corpus.starts[document]
        self._end = corpus.starts[document + 1]

    def find(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Positions where the sequence ``ids`` begins, ascending; a match never crosses documents."""
        low, high = np.searchsorted(self._sorted, [ids[0], ids[0] + 1])
        at = self._order[low:high]
        at = at[at + len(ids) <= self._end[at]]
        for offset, token in enumerate(ids[1:], start=1):
            at = at[self.corpus.tokens[at + offset] == token]
        return at

    def occurrences(self, forms: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
        """Start and end (exclusive) of every match of any form ``[n, 2]``, ascending.

        A match that begins at a special token is left out.
        """
        spans = np.concatenate([np.stack([at := self.find(ids), at + len(ids)], axis=1) for ids in forms])
        spans = spans[~self.corpus.special[spans[:, 0]]]
        return spans[np.lexsort((spans[:, 1], spans[:, 0]))]

    def mask(self, spans: NDArray[np.int64], window: Window) -> Mask:
        """Tokens within ``window`` (before the first token, after the last) of any span ``[n_tokens]``.

        Windows are clipped at the ends of their document; special tokens are left out.
        """
        start = np.maximum(spans[:, 0] - window[0], self._first[spans[:, 0]])
        end = np.minimum(spans[:, 1] + window[1], self._end[spans[:, 0]])
        change = np.zeros(self.corpus.n_tokens + 1, dtype=np.int64)
        np.add.at(change, start, 1)
        np.add.at(change, end, -1)
        return (np.cumsum(change[:-1]) > 0) & ~self.corpus.special


def occurrences(corpus: Corpus, forms: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    """Start and end (exclusive) of every match of any of these id sequences ``[n, 2]``, ascending."""
    return TokenIndex(corpus).occurrences(forms)


def word_masks(
    corpus: Corpus,
    tokenizer: Any,
    words: Sequence[str],
    window: Window,
    capitalised_only: Collection[str] = CAPITALISED_ONLY,
) -> Mask:
    """D_r of the paper for each word r ``[n_words, n_tokens]``: tokens in a window around its occurrences.

    Windows of different words may overlap: a token then belongs to both.

    Raises:
        UserError: the tokenizer cannot produce a word, or a word never occurs in the corpus.
    """
    sets = token_sets(corpus, tokenizer, {"words": words}, [window], capitalised_only)
    return sets.only([word_set(word, window) for word in words]).masks


def word_set(word: str, window: Window) -> str:
    """Name of the set of tokens around one word."""
    return f"word {word} {window[0]}-{window[1]}"


def vocabulary_set(name: str, window: Window) -> str:
    """Name of the set of tokens around any word of a vocabulary."""
    return f"vocabulary {name} {window[0]}-{window[1]}"


@dataclass(frozen=True)
class TokenSets:
    """Named sets of a corpus' tokens, one bit a set and token: 300 sets of ten million tokens are 375 MB.

    Attributes:
        names: one name a set; the first is :data:`ALL`.
        bits: ``[n_sets, ⌈n_tokens / 8⌉]`` uint8, as numpy.packbits packs them.
        n_tokens: tokens of the corpus.
    """

    names: tuple[str, ...]
    bits: NDArray[np.uint8]
    n_tokens: int

    @staticmethod
    def of(masks: Mapping[str, Mask]) -> TokenSets:
        """Sets by name, from ``[n_tokens]`` True where a token belongs to each."""
        (n_tokens,) = {len(mask) for mask in masks.values()}
        return TokenSets(tuple(masks), np.stack([np.packbits(mask) for mask in masks.values()]), n_tokens)

    @property
    def digest(self) -> str:
        """SHA-256 of names and members."""
        return hashlib.sha256(repr(self.names).encode() + self.bits.tobytes()).hexdigest()

    @property
    def masks(self) -> Mask:
        """``[n_sets, n_tokens]``, True where the token belongs to the set: eight times the memory."""
        return np.unpackbits(self.bits, axis=1, count=self.n_tokens).view(bool)

    def mask(self, name: str) -> Mask:
        """One set's ``[n_tokens]``."""
        return np.unpackbits(self.bits[self.names.index(name)], count=self.n_tokens).view(bool)

    def only(self, names: Sequence[str]) -> TokenSets:
        """These sets alone, in this order."""
        where = [self.names.index(name) for name in names]
        return TokenSets(tuple(names), self.bits[where], self.n_tokens)

    def join(self, other: TokenSets) -> TokenSets:
        """The sets of both over the same corpus, each name once."""
        new = [name for name in other.names if name not in self.names]
        bits = np.concatenate([self.bits, other.only(new).bits])
        return TokenSets((*self.names, *new), bits, self.n_tokens)


def token_sets(
    corpus: Corpus,
    tokenizer: Any,
    vocabularies: Mapping[str, Sequence[str]],
    windows: Sequence[Window],
    capitalised_only: Collection[str] = CAPITALISED_ONLY,
) -> TokenSets:
    """All sets that scores of these vocabularies at these windows need, each word's set made once.

    The sets are: all tokens that are not special; D_r of every word at every window; D_R, the union, of every
    vocabulary at every window. D_¬R needs no set: it is all tokens less D_R.

    Raises:
        UserError: the tokenizer cannot produce a word, or a word never occurs in the corpus.
    """
    index = TokenIndex(corpus)
    words = list(dict.fromkeys(word for vocabulary in vocabularies.values() for word in vocabulary))
    spans = {word: index.occurrences(form_ids(tokenizer, word, capitalised_only)) for word in words}
    absent = [word for word in words if not len(spans[word])]
    if absent:
        raise UserError(
            f"The word {absent[0]!r} never occurs in the corpus {corpus.name!r}: "
            "take it out of `words` or use more documents."
        )
    bits = {ALL: np.packbits(~corpus.special)}
    for window in windows:
        by_word = {word: np.packbits(index.mask(spans[word], window)) for word in words}
        bits |= {word_set(word, window): packed for word, packed in by_word.items()}
        for name, vocabulary in vocabularies.items():
            union = np.bitwise_or.reduce([by_word[word] for word in vocabulary])
            bits[vocabulary_set(name, window)] = union
    return TokenSets(tuple(bits), np.stack(list(bits.values())), corpus.n_tokens)


def words_that_occur(
    corpus: Corpus, tokenizer: Any, words: Sequence[str], capitalised_only: Collection[str] = CAPITALISED_ONLY
) -> list[str]:
    """R without the words that a corpus lacks or the tokenizer cannot write: a score needs every word.

    Raises:
        UserError: fewer than two words are left.
    """
    found: list[str] = occurrence_table(corpus, tokenizer, words, capitalised_only)["word"].tolist()
    if len(found) < 2:
        raise UserError(
            f"Of the words {', '.join(words)} fewer than two occur in the corpus {corpus.name!r}: give other "
            "`words`, or more documents."
        )
    return found


def occurrence_table(
    corpus: Corpus, tokenizer: Any, words: Sequence[str], capitalised_only: Collection[str] = CAPITALISED_ONLY
) -> pd.DataFrame:
    """How often each word occurs in the corpus, and which share of that is inside thinking.

    Returns:
        Columns ``word``, ``occurrences``, ``frequency`` (per token that is not special) and
        ``thinking_share``; a word that never occurs or cannot be produced has no row.
    """
    index = TokenIndex(corpus)
    rows: list[dict[str, Any]] = []
    for word in words:
        try:
            starts = index.occurrences(form_ids(tokenizer, word, capitalised_only))[:, 0]
        except UserError:
            continue
        if len(starts):
            share = float(corpus.thinking[starts].mean())
            rows.append({"word": word, "occurrences": len(starts), "thinking_share": share})
    table = pd.DataFrame(rows, columns=["word", "occurrences", "thinking_share"])
    return table.assign(frequency=table["occurrences"] / max(int((~corpus.special).sum()), 1))
