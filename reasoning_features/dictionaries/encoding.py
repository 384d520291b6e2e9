"""Activations encoded a few at a time: 65,536 features of many tokens never stand in memory at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

ELEMENTS = 2**25
"""The most feature activations that are held at once: 128 MiB as 32-bit floats, 512 tokens at 65,536."""


def rows_at_once(*saes: Any) -> int:
    """The most tokens whose features may stand in memory, for the widest of these autoencoders."""
    return max(1, ELEMENTS // max(sae.cfg.d_sae for sae in saes))


def dictionary_digest(sae: Any) -> str:
    """SHA-256 of an autoencoder's weights, with their names and types."""
    found = hashlib.sha256()
    for name, values in sorted(sae.state_dict().items()):
        held = values.detach().cpu().contiguous()
        found.update(f"{name} {held.dtype} {tuple(held.shape)}\n".encode())
        found.update(memoryview(held.view(-1).view(torch.uint8).numpy()))
    return found.hexdigest()


@torch.no_grad()
def encoded(sae: Any, residual: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Features ``[m, f]`` of activations ``[n, d]``, on the autoencoder's device, and their rows."""
    rows = rows_at_once(sae)
    for start in range(0, len(residual), rows):
        part = slice(start, min(start + rows, len(residual)))
        yield part, sae.encode(residual[part].to(sae.device))


def encoded_columns(sae: Any, residual: Tensor, features: Sequence[int] | NDArray[Any]) -> Tensor:
    """Some features ``[n, k]`` of activations ``[n, d]``, float32 in the computer's memory."""
    columns = torch.as_tensor(features, dtype=torch.int64, device=sae.device)
    parts = [values[:, columns].float().cpu() for _, values in encoded(sae, residual)]
    return torch.cat(parts) if parts else torch.empty(0, len(columns))
