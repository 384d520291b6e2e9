"""Where words stand in a corpus, a set of tokens each with its window; and words put into plain documents.

A word is looked for in the text, in any case and whatever tokens it is made of, where no letter or digit
stands beside it. The released code (``extraction/compute_score.py``) looks for the token ids of each written
form encoded alone, which finds few words where a tokenizer writes them differently in context. Its windows
reach into the next document of a packed row; here a window never crosses the end of a document.
"""

import hashlib
import re
from array import array
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features.errors import UserError
from reasoning_features.text.corpus import Corpus, sentence_starts, starts_of, token_bytes, token_texts

Window = tuple[int, int]  # tokens before a word's first token, and after its last
Mask = NDArray[np.bool_]

ALL = "all"  # the set of all tokens that are not special
LENGTH = 64  # tokens of a document that are kept (2601.05679)
_UNIT = re.compile(r"\w+")
_BORDER = b"\1"  # between documents: neither a space nor of a word


class WordIndex:
    """Finds words and phrases in the text of a corpus, which is read once."""

    def __init__(self, corpus: Corpus, tokenizer: Any) -> None:
        self.corpus = corpus
        ids, where = np.unique(corpus.tokens, return_inverse=True)
        pieces = np.array(token_bytes(tokenizer, ids.tolist()), dtype=object)[where]
        for start in corpus.starts[:-1]:
            pieces[start] = _BORDER + pieces[start]
        ends = np.cumsum(np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)))
        self._text = b"".join(pieces).decode("utf-8", "surrogateescape")
        code = np.frombuffer(self._text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        widths = (1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)).astype(np.int64)
        widths[(code >= 0xDC80) & (code <= 0xDCFF)] = 1  # a byte that is of no character
        begins = np.cumsum(widths) - widths
        # the characters that each token's first and last byte are of
        self._first = np.searchsorted(begins, np.concatenate([[0], ends[:-1]]), side="right") - 1
        self._last = np.searchsorted(begins, ends - 1, side="right") - 1
        self._units: dict[str, array[int]] = defaultdict(lambda: array("q"))  # unit → characters it begins at
        for unit in _UNIT.finditer(self._text):
            self._units[unit[0].lower()].append(unit.start())

    def occurrences(self, word: str, capitalised: Collection[str] = ()) -> NDArray[np.int64]:
        """First token and end (exclusive) of every occurrence ``[n, 2]``, ascending; none begins special.

        Of a word among ``capitalised`` only those count that are capitalised and have no space before them.
        """
        known = word.lower().replace("’", "'")
        written = r"\s+".join(re.escape(part).replace("'", "['’]") for part in known.split())
        found = re.compile(rf"{written}(?!\w)" if _UNIT.match(known[-1:]) else written, re.IGNORECASE)
        if unit := _UNIT.match(known):
            matches = [found.match(self._text, begin) for begin in self._units.get(unit[0], ())]
        else:
            matches = list(found.finditer(self._text))
        spans = [match.span() for match in matches if match]
        if known in capitalised:
            spans = [span for span in spans if self._capitalised(*span)]
        begins, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        first, end = np.searchsorted(self._last, begins), np.searchsorted(self._first, ends)
        tokens = np.stack([first, end], axis=1)
        return tokens[~self.corpus.special[first]]

    def _capitalised(self, begin: int, end: int) -> bool:
        word = self._text[begin:end]
        return word == word.capitalize() and self._text[begin - 1] != " "

    def mask(self, spans: NDArray[np.int64], window: Window) -> Mask:
        """Tokens within the window of any span ``[n_tokens]``, in its document and not special."""
        document = np.searchsorted(self.corpus.starts, spans[:, 0], side="right")
        start = np.maximum(spans[:, 0] - window[0], self.corpus.starts[document - 1])
        end = np.minimum(spans[:, 1] + window[1], self.corpus.starts[document])
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
    index: WordIndex,
    vocabularies: Mapping[str, Sequence[str]],
    windows: Sequence[Window],
    capitalised: Collection[str] = (),
) -> TokenSets:
    """All sets that scores of these vocabularies at these windows need, each word's set made once.

    All tokens that are not special; D_r of the paper, the tokens in a window around a word's occurrences, of
    every word at every window; their union D_R of every vocabulary at every window (D_¬R is all less D_R).
    ``capitalised`` as in :meth:`WordIndex.occurrences`. UserError: a word never occurs in the corpus.
    """
    corpus = index.corpus
    words = list(dict.fromkeys(word for vocabulary in vocabularies.values() for word in vocabulary))
    spans = {word: index.occurrences(word, capitalised) for word in words}
    absent = [word for word in words if not len(spans[word])]
    if absent:
        told = f"The word {absent[0]!r} never occurs in the corpus {corpus.name!r}"
        raise UserError(f"{told}: take it out of `words` or use more documents.")
    bits = {ALL: np.packbits(~corpus.special)}
    for window in windows:
        bits |= {word_set(word, window): np.packbits(index.mask(spans[word], window)) for word in words}
        for name, vocabulary in vocabularies.items():
            own = [bits[word_set(word, window)] for word in vocabulary]
            bits[vocabulary_set(name, window)] = np.bitwise_or.reduce(own)
    return TokenSets(tuple(bits), np.stack(list(bits.values())), corpus.n_tokens)


def occurrence_table(
    index: WordIndex, words: Sequence[str], capitalised: Collection[str] = ()
) -> pd.DataFrame:
    """Each word's ``occurrences`` in a corpus, ``thinking_share`` (of them, inside thinking) and
    ``frequency`` (per token that is not special); a word that never occurs has no row.
    """
    corpus, rows = index.corpus, list[tuple[str, int, float]]()
    for word in words:
        starts = index.occurrences(word, capitalised)[:, 0]
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
