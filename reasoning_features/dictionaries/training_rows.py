"""Rows of tokens that autoencoders are trained on: texts packed end to end, sources in equal parts.

Packing follows the released scripts (TransformerLens' ``tokenize_and_concatenate``): texts are joined by EOS
and cut into rows. A row of texts begins with BOS, where the tokenizer has one: what comes first becomes the
attention sink, and :class:`reasoning_features.dictionaries.training_buffers.Buffers` leaves it out. All is
mapped from disk, and what was tokenised once is kept in the cache of ``datasets``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.errors import UserError
from reasoning_features.settings import Settings, TextSource
from reasoning_features.text.text_corpora import beginning, check_ids
from reasoning_features.text.text_sources import TextRows, open_texts, quiet, without_bos

_FIRST_TEXTS, _TEXTS_A_PIECE = 50, 2000
"""Texts that are packed together, at least and at most; between these half as many as were packed before.

So little more is tokenised than is needed. The tokens after a piece's last whole row are dropped.
"""
_TEXTS_AT_ONCE = 64
"""Texts that are tokenised together: what the tokenizer tells of a token takes far more room than its id."""


@dataclass(frozen=True)
class Rows:
    """Rows of ``context`` tokens; row ``i`` is of source ``i % len(sources)``.

    Attributes:
        context: tokens of a row.
        identity: stands for the content and the order of all rows: what a checkpoint is of.
    """

    context: int
    identity: str
    _parts: tuple[_Part, ...]

    def __len__(self) -> int:
        return len(self._parts) * min(len(part.order) for part in self._parts)

    def rows(self, i: int, j: int) -> Tensor:
        """Rows ``i`` … ``j − 1`` ``[j − i, context]`` int64, in the seeded order.

        Raises:
            IndexError: rows that are not there.
        """
        if not 0 <= i <= j <= len(self):
            raise IndexError(f"rows {i} to {j} of {len(self)}")
        numbers = np.arange(i, j)
        out = np.empty((len(numbers), self.context), dtype=np.int64)
        for k, part in enumerate(self._parts):
            mine = numbers % len(self._parts) == k
            if mine.any():
                out[mine] = part.read(numbers[mine] // len(self._parts), self.context)
        return torch.from_numpy(out)


@dataclass(frozen=True)
class _Part:
    """One source's rows; ``tokens`` holds rows of ``pieces`` × context ids or more in ``column``."""

    tokens: datasets.Dataset
    column: str
    pieces: int
    order: NDArray[np.int64]

    def read(self, places: NDArray[np.int64], context: int) -> NDArray[np.int64]:
        chosen = self.order[places]
        held = self.tokens[(chosen // self.pieces).tolist()][self.column]
        begin = chosen % self.pieces * context
        return np.stack([row[a : a + context] for row, a in zip(held, begin.tolist(), strict=True)])


def training_rows(
    settings: Settings, tokenizer: Any, sources: Sequence[TextSource], tokens: int | None = None
) -> Rows:
    """Rows of ``settings.context`` tokens, the sources' rows in turn, each in an order drawn by the seed.

    A column of token ids is used as it is, longer rows cut up into several; texts are tokenised and packed,
    at most some half more than are needed. Of a source with a ``split_column`` only the rows for training
    are used, of any other all.

    Args:
        settings: context, seed and ``train_tokens``.
        tokenizer: the subject's.
        sources: where texts come from.
        tokens: how many are wanted, of all sources together; by default ``settings.train_tokens``. There may
            be fewer where a source has fewer, or more.

    Raises:
        UserError: no sources, one without a single whole row or without rows for training, or token ids
            that the tokenizer does not have.
    """
    if not sources:
        raise UserError("There are no texts to train on: set `training_text`.")
    wanted = settings.train_tokens if tokens is None else tokens
    needed = -(-wanted // (settings.context * len(sources)))
    parts, identities = [], []
    for source in sources:
        opened = open_texts(source)
        order = opened.order(settings.seed, "training" if source.split_column else None)
        identity = _identity(opened, order, tokenizer)
        if opened.tokens:
            parts.append(_token_part(opened, order, tokenizer, settings))
        else:
            parts.append(_text_part(opened, order, tokenizer, settings, needed, identity))
        identities.append(identity)
    told = repr((identities, settings.context, settings.seed))
    return Rows(settings.context, hashlib.sha256(told.encode()).hexdigest(), tuple(parts))


def _token_part(opened: TextRows, order: NDArray[np.int64], tokenizer: Any, settings: Settings) -> _Part:
    """A column of token ids as it is; rows as long as the first, in one order."""
    column = opened.source.column
    held = opened.rows.select_columns([column]).with_format("numpy")
    check_ids(opened, opened.ids(list(range(min(100, len(held))))), tokenizer)
    pieces = len(held[0][column]) // settings.context
    if not pieces:
        raise UserError(
            f"The rows of {opened.source.dataset} have {len(held[0][column])} tokens, fewer than the "
            f"context of {settings.context}: lower `context`."
        )
    spread = (order[:, None] * pieces + np.arange(pieces)).T.ravel()  # a row's pieces far apart
    return _Part(held, column, pieces, spread)


def _text_part(
    opened: TextRows,
    order: NDArray[np.int64],
    tokenizer: Any,
    settings: Settings,
    needed: int,
    identity: str,
) -> _Part:
    """Texts in their seeded order, packed piece by piece until there are rows enough."""
    packed: list[datasets.Dataset] = []
    start, texts = 0, _FIRST_TEXTS
    with quiet(), tqdm(total=needed, desc=f"rows of {opened.name}", unit="row", leave=False) as bar:
        while start < len(order) and sum(map(len, packed)) < needed:
            chosen = order[start : start + texts].tolist()
            packed.append(_packed(opened, chosen, tokenizer, settings.context, identity))
            bar.update(len(packed[-1]))
            start += texts
            texts = min(max(_FIRST_TEXTS, start // 2), _TEXTS_A_PIECE)
    joined = datasets.concatenate_datasets([piece for piece in packed if len(piece)] or packed[:1])
    if not len(joined):
        raise UserError(
            f"The texts of {opened.source.dataset} do not fill one row of {settings.context} tokens: "
            "lower `context`."
        )
    shuffled = np.random.default_rng([settings.seed, 1]).permutation(len(joined))
    return _Part(joined.with_format("numpy"), "tokens", 1, shuffled)


def _packed(
    opened: TextRows, chosen: list[int], tokenizer: Any, context: int, identity: str
) -> datasets.Dataset:
    """Rows of ``context`` ids from some texts joined by EOS."""

    def pack(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [opened.text_of(value, tokenizer) for value in batch[opened.source.column]]
        given = [without_bos(text, tokenizer) for text in texts if text]
        pieces = [np.empty(0, dtype=np.int32)]
        for start in range(0, len(given), _TEXTS_AT_ONCE):
            some = given[start : start + _TEXTS_AT_ONCE]
            encoded = tokenizer.backend_tokenizer.encode_batch_fast(some, add_special_tokens=False)
            pieces += [np.asarray([*row.ids, tokenizer.eos_token_id], dtype=np.int32) for row in encoded]
        joined, first = np.concatenate(pieces), beginning(tokenizer)
        width = context - len(first)
        n = len(joined) // width
        body = joined[: n * width].reshape(n, width)
        return {"tokens": np.hstack([np.tile(first, (n, 1)), body])}

    key = hashlib.sha256(repr((identity, opened.rows._fingerprint, chosen, context)).encode()).hexdigest()[
        :32
    ]
    texts = opened.rows.select(chosen)
    return texts.map(
        pack,
        batched=True,
        batch_size=None,
        remove_columns=texts.column_names,
        features=datasets.Features({"tokens": datasets.List(datasets.Value("int32"), length=context)}),
        new_fingerprint=key,
    )


def _identity(opened: TextRows, order: NDArray[np.int64], tokenizer: Any) -> str:
    """What determines a source's tokens: its rows and column, and the tokenizer where texts are encoded."""
    told: list[Any] = [opened.name, opened.source.column, opened.content]
    if opened.source.split_column:
        told.append(hashlib.sha256(order.tobytes()).hexdigest())
    if not opened.tokens:
        told += [tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, tokenizer.chat_template]
        told += [beginning(tokenizer).tolist(), _FIRST_TEXTS, _TEXTS_A_PIECE]
    return hashlib.sha256(repr(told).encode()).hexdigest()
