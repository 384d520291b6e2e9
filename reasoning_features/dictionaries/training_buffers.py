"""Activations to train an autoencoder on, read from a model while it trains.

Rows of tokens come in a seeded order; so many of them as hold 64 batches are read at a time, the last time
only as many as are still trained on, and their activations shuffled. A buffer is a function of the seed, its
number and the batches that are left at its beginning, and a place in the data is a buffer and a batch: a
training that was interrupted goes on with the very batches it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder_trainer import HELD_OUT
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import FEW, Moments, no_sink

BATCHES = 64
"""Batches that a buffer holds: 2 GB of 16-bit activations of width 4,096 at the paper's batch."""
SPARE = 16
"""A last buffer has one token in so many to spare: attention sinks are known only when they are read."""
Place = tuple[int, int]
"""The next batch: number of the buffer, number of the batch in it."""


class Rows(Protocol):
    """Rows of tokens in a fixed order
    (:func:`reasoning_features.dictionaries.training_rows.training_rows`)."""

    @property
    def context(self) -> int: ...

    @property
    def identity(self) -> str: ...

    def __len__(self) -> int: ...

    def rows(self, i: int, j: int) -> Tensor: ...


def ordinary(tokens: Tensor, special: Tensor) -> Tensor:
    """Tokens ``[b, t]`` that an autoencoder is trained on: neither special nor the first of a row.

    The first is the attention sink: its activation is a hundred times as long as any other.
    """
    kept = ~torch.isin(tokens, special)
    kept[:, 0] = False
    return kept


class Buffers:
    """The activations of rows of tokens at a subject's hook point.

    The first rows, a tenth at most, are held out; the others come again when they are through, shuffled
    otherwise. Special tokens (BOS, EOS, padding), the first of every row and attention sinks are left out.

    Args:
        subject: the model.
        rows: what it reads.
        batch: activations in one batch.
        steps: batches in the whole training.
        batch_tokens: the most token ids in one forward pass.
        seed: of the shuffling.

    Raises:
        UserError: too few rows for one batch.
    """

    def __init__(
        self, subject: Subject, rows: Rows, batch: int, steps: int, batch_tokens: int, seed: int
    ) -> None:
        self._subject, self._rows, self._batch, self._steps, self._seed = subject, rows, batch, steps, seed
        self._rows_at_once = max(1, batch_tokens // rows.context)
        self._special = torch.tensor(sorted(subject.tokenizer.all_special_ids), dtype=torch.int64)
        self._held_out = min(-(-HELD_OUT // rows.context), len(rows) // 10)
        self._cycle = len(rows) - self._held_out
        self._size = min(max(1, BATCHES * batch // rows.context), self._cycle)
        self._first: Tensor | None = None
        if self._size * rows.context < batch:
            raise UserError(
                f"There are {len(rows):,} rows of {rows.context} tokens to train on, fewer than one batch of "
                f"{batch:,}: take more texts or a smaller train_batch."
            )

    def held_out(self) -> Tensor:
        """Activations ``[n, d]`` float32 that no batch holds, at most 8,192."""
        if not self._held_out:
            raise UserError(
                "Fewer than ten rows of tokens to train on: take more texts or a shorter context."
            )
        return self._read(self._rows.rows(0, self._held_out), "held-out activations")[:HELD_OUT].float()

    def moments(self) -> Moments:
        """Moments of the first buffer, for the scale of the input and the mean.

        The buffer is kept for its batches, where these come next.

        Raises:
            UserError: as :meth:`batches`.
        """
        self._first = self._buffer(0, max(1, self._steps))
        return Moments.of(self._first.cpu())

    def batches(self, place: Place = (0, 0), done: int = 0) -> Iterator[tuple[Tensor, Place]]:
        """The batches ``[batch, d]`` float32 that are left, each with the place after it.

        What a buffer holds beyond whole batches is left out.

        Args:
            place: where to begin.
            done: batches of the training before that place.

        Raises:
            UserError: a buffer without one whole batch: nearly all its tokens are special.
        """
        number, first = place
        done -= first  # at the buffer's beginning
        while done + first < self._steps:
            buffer = self._first if number == 0 else None
            self._first = None  # none is kept while another is read
            if buffer is None:
                buffer = self._buffer(number, self._steps - done)
            whole = len(buffer) // self._batch
            for i in range(first, min(whole, self._steps - done)):
                after = (number, i + 1) if i + 1 < whole else (number + 1, 0)
                yield buffer[i * self._batch : (i + 1) * self._batch].float(), after
            done, number, first = done + whole, number + 1, 0

    def _buffer(self, number: int, left: int) -> Tensor:
        """Shuffled activations ``[n, d]`` of one buffer, as the model gives them, on its device.

        Its rows are those of a whole buffer, or the first of them where fewer hold the ``left`` batches.
        """
        begin = number * self._size % self._cycle
        end = min(begin + self._size, self._cycle)
        tokens = self._rows.rows(self._held_out + begin, self._held_out + end)
        if end - begin < self._size:  # from the beginning again
            again = self._rows.rows(self._held_out, self._held_out + self._size - (end - begin))
            tokens = torch.cat([tokens, again])
        held = ordinary(tokens, self._special).sum(1).cumsum(0)
        enough = int((held < left * self._batch * (SPARE + 1) / SPARE).sum()) + 1
        tokens = tokens[:enough]
        activations = self._read(tokens, "activations")
        if len(activations) < self._batch:
            raise UserError(
                f"Of {tokens.numel():,} tokens {len(activations):,} are neither special nor attention sinks, "
                f"fewer than one batch of {self._batch:,}: take other texts or a smaller train_batch."
            )
        drawn = np.random.default_rng([self._seed, number]).permutation(len(activations))
        return activations[torch.from_numpy(drawn).to(activations.device)]

    def _read(self, tokens: Tensor, what: str) -> Tensor:
        """Activations ``[n, d]`` at the tokens that are neither special nor attention sinks."""
        read = []
        parts = tokens.split(self._rows_at_once)
        options = {"unit": "token", "unit_scale": True, "leave": False, "disable": len(parts) < FEW}
        with tqdm(total=tokens.numel(), desc=f"Reading {what}", **options) as bar:
            for part in parts:
                kept = ordinary(part, self._special)
                residual = self._subject.residual(part)
                residual = residual[kept.to(residual.device)]
                read.append(residual[no_sink(residual)])
                bar.update(part.numel())
        return torch.cat(read)
