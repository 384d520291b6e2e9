"""Corpora of texts about which nothing is known beforehand: one piece of each text, all independent.

A piece is ``context`` tokens of a text, drawn by the seed: all depths of a long trace occur, and intervals
over documents hold; a shorter text is taken whole. The first token of what a model reads becomes its
attention sink, whose activation is a hundred times as long as any other (Xiao et al., 2309.17453). So a piece
begins with BOS where the tokenizer has one, and its first token is marked special: no statistic counts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasoning_features.errors import UserError
from reasoning_features.organism.problems import Split
from reasoning_features.organism.traces import END_THINK, THINK
from reasoning_features.settings import TextSource
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.text_sources import TextRows, open_texts, stable_number, without_bos

_THINKING = re.compile(f"(?:{THINK}|^(?!.*{THINK}))(.*?)(?:{END_THINK}|\\Z)", re.DOTALL)
_TEXTS_AT_ONCE = 64
"""Texts that are tokenised together."""


def text_corpus(
    source: TextSource, name: str, tokenizer: Any, split: Split, documents: int, context: int, seed: int
) -> Corpus:
    """Pieces of a source's texts as a corpus; fewer where the source has fewer texts.

    Args:
        source: where texts come from.
        name: the corpus' name.
        tokenizer: the subject's.
        split: which rows.
        documents: how many texts.
        context: the longest piece, tokens.
        seed: of the order of the texts and of the places where pieces begin.

    Raises:
        UserError: no texts, or token ids that the tokenizer does not have.
    """
    opened, first = open_texts(source), beginning(tokenizer)
    text = context - len(first)
    pieces: list[NDArray[np.int32]] = []
    thinking: list[NDArray[np.bool_]] = []
    domains: list[str] = []
    for row, ids, thought in _encoded(opened, tokenizer, opened.order(seed, split)):
        if len(pieces) == documents:
            break
        begin = _begin(opened.name, row, len(ids), text, seed)
        pieces.append(np.concatenate([first, ids[begin : begin + text]]))
        thinking.append(np.concatenate([np.zeros(len(first), dtype=bool), thought[begin : begin + text]]))
        domains += opened.domains([row])
    if not pieces:
        raise UserError(f"The corpus {name!r} is empty: {source.dataset} has no text in the split {split!r}.")
    tokens, lengths = np.concatenate(pieces), [len(piece) for piece in pieces]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    special = np.isin(tokens, tokenizer.all_special_ids)
    # with nothing before it, the first token of text is of no sentence, and in many models an attention sink
    opening = starts[:-1] + len(beginning(tokenizer))
    special[starts[:-1]] = True
    special[opening[opening < starts[1:]]] = True
    return Corpus(
        name=name,
        tokens=tokens,
        starts=starts,
        special=special,
        thinking=np.concatenate(thinking),
        domains=domains,
    )


def whole_texts(source: TextSource, tokenizer: Any, split: Split, documents: int, seed: int) -> list[str]:
    """Whole texts of a source, in the order in which :func:`text_corpus` takes them.

    Raises:
        UserError: no texts.
    """
    opened = open_texts(source)
    found: list[str] = []
    for rows in _groups(opened.order(seed, split)):
        found += [text for text in opened.texts(rows, tokenizer) if text]
        if len(found) >= documents:
            break
    if not found:
        raise UserError(f"There are no texts in {source.dataset} ({split}): name another source.")
    return found[:documents]


def thinking_of(text: str) -> str:
    """The part of a text between ``<think>`` and ``</think>``, all such parts where there are several."""
    if END_THINK not in text and THINK not in text:
        return ""
    return "\n".join(found[1] for found in _THINKING.finditer(text))


def _encoded(
    opened: TextRows, tokenizer: Any, order: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.bool_]]]:
    """Each text's row, token ids and which of them are thinking; texts without tokens are left out."""
    for rows in _groups(order):
        if opened.tokens:
            ids = [_without_bos_id(row, tokenizer) for row in opened.ids(rows)]
            thought = [thinking_of_ids(row, tokenizer) for row in ids]
            check_ids(opened, ids, tokenizer)
        else:
            ids, thought = encode_texts(opened.texts(rows, tokenizer), tokenizer)
        yield from (each for each in zip(rows, ids, thought, strict=True) if len(each[1]))


def encode_texts(
    texts: Sequence[str], tokenizer: Any
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.bool_]]]:
    """Token ids of texts without BOS, and which of them lie between ``<think>`` and ``</think>``.

    A text that holds ``</think>`` alone is thinking from its beginning.
    """
    given = [without_bos(text, tokenizer) for text in texts]
    encoded = tokenizer.backend_tokenizer.encode_batch(given, add_special_tokens=False)
    thinking = []
    for text, encoding in zip(given, encoded, strict=True):
        spans = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        inside = np.zeros(len(spans), dtype=bool)
        for found in _THINKING.finditer(text) if END_THINK in text or THINK in text else ():
            inside |= (spans[:, 0] >= found.start(1)) & (spans[:, 1] <= found.end(1))
        thinking.append(inside)
    return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encoded], thinking


def thinking_of_ids(ids: NDArray[np.int32], tokenizer: Any) -> NDArray[np.bool_]:
    """Which of a row's tokens are thinking; false where the tokenizer has no single tokens for its marks."""
    vocabulary = tokenizer.get_vocab()
    if THINK not in vocabulary or END_THINK not in vocabulary:
        return np.zeros(len(ids), dtype=bool)
    opens, closes = ids == vocabulary[THINK], ids == vocabulary[END_THINK]
    marks = np.flatnonzero(opens | closes)
    inside = len(marks) > 0 and bool(closes[marks[0]])  # a row may begin in the middle of a thought
    latest = np.maximum.accumulate(np.where(opens | closes, np.arange(len(ids)), -1))
    within = np.where(latest < 0, inside, opens[latest])
    return within & ~opens & ~closes


def beginning(tokenizer: Any) -> NDArray[np.int32]:
    """What a piece of text begins with: BOS, where the tokenizer has one."""
    bos = tokenizer.bos_token_id
    return np.asarray([] if bos is None else [bos], dtype=np.int32)


def _without_bos_id(ids: NDArray[np.int32], tokenizer: Any) -> NDArray[np.int32]:
    return ids[1:] if len(ids) and ids[0] == tokenizer.bos_token_id else ids


def check_ids(opened: TextRows, ids: Sequence[NDArray[np.int32]], tokenizer: Any) -> None:
    """Raises a UserError where token ids are not of this tokenizer."""
    largest = max((int(row.max()) for row in ids if len(row)), default=0)
    if largest >= len(tokenizer):
        raise UserError(
            f"{opened.source.dataset} holds the token id {largest}, but the model's tokenizer has "
            f"{len(tokenizer)}: take a dataset that was tokenised for this model, or one of texts."
        )


def _begin(name: str, row: int, length: int, context: int, seed: int) -> int:
    """Where the piece of one text begins."""
    draw = np.random.default_rng([seed, stable_number(name), row])
    return int(draw.integers(0, max(length - context, 0) + 1))


def _groups(order: NDArray[np.int64]) -> Iterator[list[int]]:
    for start in range(0, len(order), _TEXTS_AT_ONCE):
        yield order[start : start + _TEXTS_AT_ONCE].tolist()
