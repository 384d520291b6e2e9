"""The blocks of a model after one of them, run as a model of their own: what makes many edits cheap."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class _Skipped(torch.nn.Module):
    """Stands where a block was, so that those after it keep their number: it gives what it gets."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


@dataclass(frozen=True)
class Prefix:
    """What a model keeps of one sequence, so that versions of one of its tokens can be run after it.

    Attributes:
        stream: ``[t, d]`` residual stream at the hook point.
        keys_values: keys and values ``[1, heads, t, d_head]`` of every block.
    """

    stream: Tensor
    keys_values: tuple[tuple[Tensor, Tensor], ...]


def later_blocks(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """``model`` without its blocks up to ``layer``: takes a residual stream as embeddings, shares weights."""
    tail, base = copy.copy(model), copy.copy(model.base_model)
    tail._modules, base._modules = dict(model._modules), dict(model.base_model._modules)
    blocks: Any = model.base_model.layers
    kept = [_Skipped() if i <= layer else block for i, block in enumerate(blocks)]
    base.layers = torch.nn.ModuleList(kept)
    setattr(tail, tail.base_model_prefix, base)
    return tail


def versions_of_one_token(
    tail: PreTrainedModel, prefix: Prefix, place: int, versions: Tensor, width: int
) -> Tensor:
    """Next-token logits ``[m, vocabulary]`` at one place for many versions ``[m, d]`` of the stream there.

    The versions stand side by side as further tokens after the cached ones, ``width`` in a row, each at the
    position ``place`` and seeing the tokens before it and itself alone.
    """
    rows = -(-len(versions) // width)
    padded = torch.nn.functional.pad(versions, (0, 0, 0, rows * width - len(versions)))
    seen = [
        tuple(part[:, :, :place].expand(rows, -1, -1, -1) for part in held) for held in prefix.keys_values
    ]
    barred = torch.full((width, width), torch.finfo(padded.dtype).min, device=padded.device)
    mask = torch.cat([barred.new_zeros(width, place), barred.fill_diagonal_(0)], dim=1)
    logits = tail(
        inputs_embeds=padded.view(rows, width, -1),
        attention_mask=mask.expand(rows, 1, -1, -1),
        position_ids=torch.full((rows, width), place, device=padded.device),
        past_key_values=DynamicCache(seen),
        use_cache=True,
    ).logits
    return logits.flatten(0, 1)[: len(versions)]


@contextlib.contextmanager
def unembedding_reads(model: PreTrainedModel, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context the unembedding reads ``choose`` of the final stream ``[b, t, d]`` alone."""
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (choose(given[0]),))
    try:
        yield
    finally:
        handle.remove()
