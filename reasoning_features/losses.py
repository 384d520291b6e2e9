"""What predicting tokens costs."""

from __future__ import annotations

import torch
from torch import Tensor


def next_token_loss(logits: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy ``[b, t - 1]`` (nats) of each next token; NaN where that token is padding."""
    targets = tokens[:, 1:].to(logits.device)
    predicted = logits[:, :-1].float().transpose(1, 2)
    loss = torch.nn.functional.cross_entropy(predicted, targets, reduction="none")
    return loss.masked_fill(~valid[:, 1:].to(loss.device), float("nan"))
