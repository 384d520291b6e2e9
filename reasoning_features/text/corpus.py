"""A corpus: documents as token ids laid end to end, with what is known about every token.

It is the same thing whether it came from the organism or from a dataset of the hub: labels (``moves``,
``styles``) are there or None. Every statistic leaves special and template tokens out, as the paper's code
does with BOS and EOS.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from reasoning_features.errors import UserError

SPACE = "▁"  # a space in the tokens of SentencePiece
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")  # a byte of a character that SentencePiece has no token for
_BYTES = {character: bytes([byte]) for byte, character in bytes_to_unicode().items()}


@dataclass(frozen=True)
class TokenBatch:
    """Some documents of a corpus, padded on the right."""

    tokens: Tensor  # ids [b, t] int64; padding holds 0
    valid: Tensor  # [b, t] False at padding
    positions: Tensor  # [b, t] int64, index of each token in `corpus.tokens`; -1 at padding
    documents: NDArray[np.int64]  # [b] which documents these are


@dataclass(frozen=True)
class Corpus:
    """Documents laid end to end: document i is ``tokens[starts[i]:starts[i + 1]]``."""

    name: str
    tokens: NDArray[np.int32]  # ids of all documents [n_tokens]
    starts: NDArray[np.int64]  # [n_documents + 1]
    special: NDArray[np.bool_]  # [n_tokens] BOS, EOS and template tokens: left out of every statistic
    thinking: NDArray[np.bool_]  # [n_tokens] inside the thinking part
    domains: list[str]  # each document's (the problem family of the organism)
    moves: NDArray[np.int8] | None = None  # [n_tokens] index into `move_names`; None where not known
    move_names: tuple[str, ...] = ()
    styles: list[str] | None = None  # each document's hidden style, "" where it has none; None: not known

    def __post_init__(self) -> None:
        if self.n_documents == 0 or len(self.tokens) == 0:
            raise UserError(f"The corpus {self.name!r} is empty: ask for at least one document.")

    @property
    def n_documents(self) -> int:
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens and where documents begin."""
        return hashlib.sha256(self.tokens.tobytes() + self.starts.tobytes()).hexdigest()

    @property
    def document_of(self) -> NDArray[np.int64]:
        """The document each token belongs to ``[n_tokens]``."""
        return np.repeat(np.arange(self.n_documents), np.diff(self.starts))

    @property
    def position_of(self) -> NDArray[np.int64]:
        """Each token's place in its document, from 0 ``[n_tokens]``."""
        return np.arange(self.n_tokens) - np.repeat(self.starts[:-1], np.diff(self.starts))

    def span(self, i: int) -> slice:
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def document(self, i: int) -> NDArray[np.int32]:
        return self.tokens[self.span(i)]

    def texts(self, tokenizer: Any, where: NDArray[np.bool_] | None = None) -> list[str]:
        """Each document's text; with ``where`` ``[n_tokens]`` the text of its tokens marked True alone."""
        kept = np.ones(self.n_tokens, dtype=bool) if where is None else where
        spans = (self.span(i) for i in range(self.n_documents))
        return [tokenizer.decode(self.tokens[span][kept[span]].tolist()) for span in spans]

    def select(self, documents: Sequence[int] | NDArray[np.integer]) -> "Corpus":
        """The corpus of these documents, in this order. Raises UserError: no documents are left."""
        chosen = np.asarray(documents, dtype=np.int64)
        where = np.concatenate([np.arange(self.n_tokens)[self.span(i)] for i in chosen] or [chosen])
        of_tokens = {name: getattr(self, name)[where] for name in ("tokens", "special", "thinking")}
        moves = None if self.moves is None else self.moves[where]
        styles = None if self.styles is None else [self.styles[i] for i in chosen]
        starts, domains = starts_of(np.diff(self.starts)[chosen]), [self.domains[i] for i in chosen]
        return replace(self, starts=starts, domains=domains, moves=moves, styles=styles, **of_tokens)

    def head(self, documents: int | None) -> "Corpus":
        """The corpus of its first documents, as many as there are; None: all."""
        return self.select(range(self.n_documents)[:documents])

    def batches(self, max_tokens: int, documents: NDArray[np.integer] | None = None) -> Iterator[TokenBatch]:
        """These documents (by default all) once each, padded, in batches that :func:`by_length` makes."""
        chosen = np.arange(self.n_documents) if documents is None else np.asarray(documents, dtype=np.int64)
        for batch in by_length(np.diff(self.starts)[chosen], max_tokens):
            these = chosen[batch]
            lengths = np.diff(self.starts)[these]
            offsets = np.arange(lengths.max())
            valid = offsets < lengths[:, None]
            positions = np.where(valid, self.starts[these][:, None] + offsets, -1)
            tokens = np.where(valid, self.tokens[positions], 0).astype(np.int64)
            a, b, c = (torch.from_numpy(padded) for padded in (tokens, valid, positions))
            yield TokenBatch(a, b, c, these)


def starts_of(lengths: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """``Corpus.starts`` ``[n + 1]`` of documents of these lengths ``[n]``."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def by_length(lengths: NDArray[np.int64], max_tokens: int) -> Iterator[list[int]]:
    """Row numbers, shortest first, in batches of at most ``max_tokens`` with padding, or one longer row."""
    batch: list[int] = []
    for i in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[i] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def join(name: str, corpora: Sequence[Corpus]) -> Corpus:
    """Several corpora as one, in this order, without labels."""
    parts = [(c.tokens, np.diff(c.starts), c.special, c.thinking) for c in corpora]
    tokens, lengths, special, thinking = map(np.concatenate, zip(*parts, strict=True))
    domains = [domain for corpus in corpora for domain in corpus.domains]
    return Corpus(name, tokens, starts_of(lengths), special, thinking, domains)


def sentence_starts(corpus: Corpus, tokenizer: Any) -> NDArray[np.int64]:
    """Index in ``corpus.tokens`` of the first token of every sentence ``[n]``, ascending.

    A sentence ends at a token whose text ends in a newline, or in ``.``, ``!`` or ``?`` before a token that
    begins with white space; white space alone belongs to the sentence before it. A new sentence also begins
    with each document, and where text follows a special token. Special tokens begin none.
    """
    texts, where = token_texts(corpus, tokenizer)
    newline = np.array([text.endswith("\n") for text in texts])[where]
    stop = np.array([text.endswith((".", "!", "?")) for text in texts])[where]
    blank = np.array([not text.strip() for text in texts])[where]
    spaced = np.array([text[:1].isspace() for text in texts])[where]
    ended = newline[:-1] | (stop[:-1] & spaced[1:]) | corpus.special[:-1]
    begins = np.concatenate([[True], ended & ~blank[1:]])
    begins[corpus.starts[:-1]] = True
    return np.flatnonzero(begins & ~corpus.special).astype(np.int64)


def token_texts(corpus: Corpus, tokenizer: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The texts of a corpus' different tokens, and which of them each token is ``[n_tokens]``."""
    ids, where = np.unique(corpus.tokens, return_inverse=True)
    return [piece.decode("utf-8", "replace") for piece in token_bytes(tokenizer, ids.tolist())], where


def token_bytes(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """What each token adds to a text, in UTF-8: perhaps a part of a character, and with the space before it,
    which SentencePiece's tokens lose when they are decoded alone.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = repr(backend.decoder) if backend else ""
    if "ByteLevel" not in decoder and SPACE not in decoder:
        return [tokenizer.decode([i], clean_up_tokenization_spaces=False).encode() for i in ids]
    added, found = {i: text.encode() for text, i in tokenizer.get_added_vocab().items()}, []
    for i, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if "ByteLevel" not in decoder and (byte := _FALLBACK.fullmatch(token or "")):
            found.append(bytes.fromhex(byte[1]))
        elif i in added:
            found.append(added[i])
        elif "ByteLevel" in decoder:
            found.append(b"".join(_BYTES.get(each, each.encode()) for each in token or ""))
        else:
            found.append((token or "").replace(SPACE, " ").encode())
    return found


def last_before(corpus: Corpus, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token before each sentence ``[m]``; left out where that is special or of another document."""
    inside = starts[~np.isin(starts, corpus.starts[:-1])]
    return (inside - 1)[~corpus.special[inside - 1]]


def move_table(corpora: Sequence[Corpus], tokenizer: Any, words: Sequence[str]) -> pd.DataFrame:
    """How each move is phrased: ``corpus``, ``move``, ``tokens``, ``sentences``, share ``with a word of R``.

    Sentences are lines, also cut at special tokens; a line's move is that of its first token. Corpora without
    labels have one row, whose move is "all".
    """
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE)
    tables = []
    for corpus in corpora:
        names = corpus.move_names or ("all",)
        codes = np.zeros(corpus.n_tokens, dtype=int) if corpus.moves is None else corpus.moves
        texts, where = token_texts(corpus, tokenizer)
        ends = np.array(["\n" in text for text in texts])[where] | corpus.special
        ends[corpus.starts[1:] - 1] = True
        token = pd.DataFrame({"line": np.cumsum(ends) - ends, "code": codes, "token": corpus.tokens})
        token = token[~corpus.special]
        lines = token.groupby("line").agg({"code": "first", "token": list})
        written = lines["token"].map(tokenizer.decode)
        found = written.str.contains(pattern)[written.str.strip() != ""]
        by_move = found.groupby(lines["code"])
        table = pd.DataFrame({"sentences": by_move.size(), "with a word of R": by_move.mean()})
        table["tokens"] = token["code"].value_counts()
        tables.append(table.assign(corpus=corpus.name, move=[names[code] for code in table.index]))
    columns = ["corpus", "move", "tokens", "sentences", "with a word of R"]
    return pd.concat(tables, ignore_index=True)[columns]


def telling_documents(corpus: Corpus) -> list[int]:
    """Two documents that contrast, none of the longest tenth: of the first style (by name) one with the most
    kinds of moves, of the second one of the same domain; of those the one whose tokens tell its style best,
    by their log-likelihood ratio. Where labels are not known, the two nearest to the 70% quantile of lengths.
    """
    lengths, of = np.diff(corpus.starts), corpus.document_of
    if corpus.styles is None or corpus.moves is None:
        return np.argsort(np.abs(lengths - np.quantile(lengths, 0.7)), kind="stable")[:2].tolist()
    kinds = pd.Series(corpus.moves).groupby(of).nunique()
    table = pd.DataFrame({"style": corpus.styles, "domain": corpus.domains, "kinds": kinds})
    one, other = sorted({*corpus.styles} - {""})[:2]
    counts = pd.crosstab(corpus.tokens, np.array(corpus.styles)[of])[[one, other]] + 1
    table["lean"] = np.bincount(of, (np.log(counts / counts.sum()) @ [1, -1])[corpus.tokens])
    usual = table[lengths <= np.quantile(lengths, 0.9)]
    first = usual[usual["style"] == one].sort_values(["kinds", "lean"]).index[-1]
    beside = usual[(usual["style"] == other) & (usual["domain"] == usual.at[first, "domain"])]
    return [int(first), int(beside["lean"].idxmin())]
