"""Where words stand in a corpus, a set of tokens each with its window; and words put into plain documents.

Matching is the released code's (``extraction/compute_score.py``): a word is looked for as the token ids of
its written forms, each encoded alone. Two differences: a window never crosses the end of a document (the
released rows are documents packed to 1,024 tokens), and a form counts only where the tokenizer can write it.
"""

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features.errors import UserError
from reasoning_features.text.corpus import Corpus, sentence_starts, starts_of, token_texts

Window = tuple[int, int]  # tokens before a word's first token, and after its last
Mask = NDArray[np.bool_]

# Words that the released list holds in one form alone: "But" and "Another", without a leading space.
CAPITALISED_ONLY: frozenset[str] = frozenset({"but", "another"})
ALL = "all"  # the set of all tokens that are not special
LENGTH = 64  # tokens of a document that are kept (2601.05679)


def capitalised_with_twins(twins: Mapping[str, str]) -> frozenset[str]:
    """Words with one form, and their twins: a twin must fill its word's slot and no other."""
    return CAPITALISED_ONLY | {twins[word] for word in CAPITALISED_ONLY if word in twins}


def form_ids(
    tokenizer: Any, word: str, capitalised_only: Collection[str] = CAPITALISED_ONLY
) -> list[tuple[int, ...]]:
    """Token ids of each form of ``word`` that the tokenizer can write, without duplicates.

    Forms are the word in lower case and capitalised, each without and with a leading space; a word in
    ``capitalised_only`` has one, capitalised and without a leading space. A form can be written when decoding
    its ids gives the form back. Raises UserError: the tokenizer cannot write any form.
    """
    lower = word.lower()
    capital = lower[:1].upper() + lower[1:]
    forms = (capital,) if lower in capitalised_only else (lower, " " + lower, capital, " " + capital)
    encoded = {form: tokenizer.encode(form, add_special_tokens=False) for form in forms}
    told = {form: tokenizer.decode(ids, clean_up_tokenization_spaces=False) for form, ids in encoded.items()}
    writable = dict.fromkeys(tuple(encoded[form]) for form in forms if told[form] == form)
    if not writable:
        raise UserError(f"The tokenizer cannot produce the word {word!r}: take it out of `words`.")
    return list(writable)


class TokenIndex:
    """Finds sequences of token ids in a corpus; sorting once makes every search fast."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._order = np.argsort(corpus.tokens, kind="stable")
        self._sorted = corpus.tokens[self._order]
        self._first, self._end = (corpus.starts[corpus.document_of + i] for i in (0, 1))

    def find(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Positions where the sequence ``ids`` begins, ascending; a match never crosses documents."""
        low, high = np.searchsorted(self._sorted, [ids[0], ids[0] + 1])
        at = self._order[low:high]
        at = at[at + len(ids) <= self._end[at]]
        for offset, token in enumerate(ids[1:], start=1):
            at = at[self.corpus.tokens[at + offset] == token]
        return at

    def occurrences(self, forms: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
        """Start and end (exclusive) of every match of any form ``[n, 2]``, ascending; none is special."""
        spans = np.concatenate([np.stack([at := self.find(ids), at + len(ids)], axis=1) for ids in forms])
        spans = spans[~self.corpus.special[spans[:, 0]]]
        return spans[np.lexsort((spans[:, 1], spans[:, 0]))]

    def mask(self, spans: NDArray[np.int64], window: Window) -> Mask:
        """Tokens within the window of any span ``[n_tokens]``, in its document and not special."""
        start = np.maximum(spans[:, 0] - window[0], self._first[spans[:, 0]])
        end = np.minimum(spans[:, 1] + window[1], self._end[spans[:, 0]])
        change = np.zeros(self.corpus.n_tokens + 1, dtype=np.int64)
        np.add.at(change, start, 1)
        np.add.at(change, end, -1)
        return (np.cumsum(change[:-1]) > 0) & ~self.corpus.special


# --- sets of tokens -----------------------------------------------------------------------------------------


def word_set(word: str, window: Window) -> str:
    """Name of the set of tokens around one word."""
    return f"word {word} {window[0]}-{window[1]}"


def vocabulary_set(name: str, window: Window) -> str:
    """Name of the set of tokens around any word of a vocabulary."""
    return f"vocabulary {name} {window[0]}-{window[1]}"


@dataclass(frozen=True)
class TokenSets:
    """Named sets of a corpus' tokens, one bit a set and token: 300 sets of ten million tokens are 375 MB."""

    names: tuple[str, ...]  # the first is ALL
    bits: NDArray[np.uint8]  # [n_sets, ⌈n_tokens / 8⌉], as numpy.packbits packs them
    n_tokens: int

    @staticmethod
    def of(masks: Mapping[str, Mask]) -> "TokenSets":
        """Sets by name, from ``[n_tokens]`` True where a token belongs to each."""
        (n_tokens,) = {len(mask) for mask in masks.values()}
        return TokenSets(tuple(masks), np.stack([np.packbits(mask) for mask in masks.values()]), n_tokens)

    @property
    def digest(self) -> str:
        """SHA-256 of names and members."""
        return hashlib.sha256(repr(self.names).encode() + self.bits.tobytes()).hexdigest()

    def mask(self, name: str) -> Mask:
        """One set's ``[n_tokens]``."""
        return np.unpackbits(self.bits[self.names.index(name)], count=self.n_tokens).view(bool)

    def only(self, names: Sequence[str]) -> "TokenSets":
        """These sets alone, in this order."""
        where = [self.names.index(name) for name in names]
        return TokenSets(tuple(names), self.bits[where], self.n_tokens)

    def join(self, other: "TokenSets") -> "TokenSets":
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

    All tokens that are not special; D_r of the paper, the tokens in a window around a word's occurrences, of
    every word at every window; their union D_R of every vocabulary at every window (D_¬R is all less D_R).
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
        bits |= {word_set(word, window): np.packbits(index.mask(spans[word], window)) for word in words}
        for name, vocabulary in vocabularies.items():
            own = [bits[word_set(word, window)] for word in vocabulary]
            bits[vocabulary_set(name, window)] = np.bitwise_or.reduce(own)
    return TokenSets(tuple(bits), np.stack(list(bits.values())), corpus.n_tokens)


def occurrence_table(
    corpus: Corpus, tokenizer: Any, words: Sequence[str], capitalised_only: Collection[str] = CAPITALISED_ONLY
) -> pd.DataFrame:
    """Each word's ``occurrences`` in a corpus, ``thinking_share`` (of them, inside thinking) and
    ``frequency`` (per token that is not special); a word that never occurs or cannot be written has no row.
    """
    index = TokenIndex(corpus)
    rows: list[tuple[str, int, float]] = []
    for word in words:
        with contextlib.suppress(UserError):
            starts = index.occurrences(form_ids(tokenizer, word, capitalised_only))[:, 0]
            if len(starts):
                rows.append((word, len(starts), corpus.thinking[starts].mean()))
    table = pd.DataFrame(rows, columns=["word", "occurrences", "thinking_share"])
    return table.assign(frequency=table["occurrences"] / max(int((~corpus.special).sum()), 1))


# --- words put into plain documents -------------------------------------------------------------------------


def plain_documents(general: Corpus) -> Corpus:
    """Documents without thinking, where moves are known those of prose alone; UserError without any."""
    plain = np.bincount(general.document_of, general.thinking, general.n_documents) == 0
    if general.moves is not None and "prose" in general.move_names:
        prose = general.moves == general.move_names.index("prose")
        plain &= np.bincount(general.document_of, prose, general.n_documents) > 0
    if not plain.any():
        raise UserError(f"The corpus {general.name!r} has no plain documents: raise `general_documents`.")
    return general.select(np.flatnonzero(plain))


def hosts(plain: Corpus, tokenizer: Any, tokens: Sequence[int], n: int, length: int = LENGTH) -> Corpus:
    """Documents to put tokens into, without these ``tokens`` and cut at ``length``; those with room for fewer
    than ``n`` words go. Raises UserError: no document is left.
    """
    bare = _kept(plain, plain.special | ~np.isin(plain.tokens, tokens))
    cut = _kept(bare, bare.position_of < length)
    room = np.bincount(cut.document_of[word_boundaries(cut, tokenizer)], minlength=cut.n_documents)
    if not (room >= n).any():
        lacks = f"No plain document of {plain.name!r} has room for {n} words"
        raise UserError(f"{lacks}: raise `general_documents`.")
    return cut.select(np.flatnonzero(room >= n))


def _kept(corpus: Corpus, keep: NDArray[np.bool_]) -> Corpus:
    """The corpus of these tokens alone ``[n_tokens]``, unlabelled; documents of which none is left go."""
    lengths = np.add.reduceat(keep.astype(np.int64), corpus.starts[:-1])
    domains = [domain for domain, length in zip(corpus.domains, lengths, strict=True) if length]
    per_token = (corpus.special[keep], corpus.thinking[keep])
    return Corpus(corpus.name, corpus.tokens[keep], starts_of(lengths[lengths > 0]), *per_token, domains)


def word_boundaries(corpus: Corpus, tokenizer: Any) -> NDArray[np.int64]:
    """Tokens before which a word can be put ``[n]``: those within a document that begin a word."""
    texts, where = token_texts(corpus, tokenizer)
    begins = np.array([text[:1].isspace() and bool(text.strip()) for text in texts])[where]
    begins[sentence_starts(corpus, tokenizer)] = True
    begins[corpus.starts[:-1]] = False
    return np.flatnonzero(begins & ~corpus.special).astype(np.int64)


def draw_places(corpus: Corpus, tokenizer: Any, n: int, seed: int) -> NDArray[np.int64]:
    """``n`` word boundaries in every document, drawn without replacement ``[documents · n]``, ascending."""
    rng = np.random.default_rng(seed)
    boundaries = word_boundaries(corpus, tokenizer)
    by_document = np.split(boundaries, np.searchsorted(boundaries, corpus.starts[1:-1]))
    return np.concatenate([np.sort(rng.choice(own, size=n, replace=False)) for own in by_document])


def inject(corpus: Corpus, places: NDArray[np.int64], tokens: NDArray[np.integer], name: str) -> Corpus:
    """The longer corpus with ``tokens[j]`` before the token ``places[j]`` ``[n]``, none a document's first;
    places ascend.
    """
    starts = corpus.starts + np.searchsorted(places, corpus.starts)
    special, thinking = (np.insert(mask, places, False) for mask in (corpus.special, corpus.thinking))
    written = np.insert(corpus.tokens, places, tokens)
    return Corpus(name, written, starts, special, thinking, corpus.domains)
