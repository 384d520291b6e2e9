"""What predicting tokens costs."""

from __future__ import annotations

import torch
from torch import Tensor


def next_token_loss(logits: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of each next token ``[b, t - 1]`` in nats; column ``i`` is of predicting token ``i + 1``.

    Args:
        logits: next-token logits ``[b, t, vocabulary]``.
        tokens: token ids ``[b, t]``, padded on the right.
        valid: True at tokens that are not padding ``[b, t]``. The loss of predicting padding is NaN,
            so that a mean which forgot the padding shows.
    """
    targets = tokens[:, 1:].to(logits.device)
    predicted = logits[:, :-1].float().transpose(1, 2)
    loss = torch.nn.functional.cross_entropy(predicted, targets, reduction="none")
    return loss.masked_fill(~valid[:, 1:].to(loss.device), float("nan"))
