"""What predicting tokens costs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def next_token_loss(logits: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of each next token ``[b, t - 1]`` in nats; column ``i`` is of predicting token ``i + 1``.

    Args:
        logits: next-token logits ``[b, t, vocabulary]``.
        tokens: token ids ``[b, t]``, padded on the right.
        valid: True at tokens that are not padding ``[b, t]``. The loss of predicting padding is NaN,
            so that a mean which forgot the padding shows.
    """
    targets = tokens[:, 1:].to(logits.device)
    # row by row: a whole batch's probabilities over a large vocabulary would take most of the memory
    rows = (
        cross_entropy(row[:-1].float(), of_row, reduction="none")
        for row, of_row in zip(logits, targets, strict=True)
    )
    loss = torch.stack(list(rows))
    return loss.masked_fill(~valid[:, 1:].to(loss.device), float("nan"))
