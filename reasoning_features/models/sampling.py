"""Batched sampling with a key-value cache: finished rows leave, each row draws from its own random stream.

A row's tokens therefore do not depend on which other rows share its batch, and a larger run continues a
smaller one. The residual stream, the next token's logits and what was drawn may be changed row by row, so
that many conditions share a batch.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel

from reasoning_features.errors import UserError

TEMPERATURE, TOP_P = 0.6, 0.95
"""The paper's sampling settings."""
_FRONT = 64
"""The likeliest tokens that are sorted first: they nearly always hold the nucleus."""
_MEMORY_SHARE = 0.6
"""Share of the free memory for keys and values: one layer's are held twice while they grow."""
_DROP_SHARE = 0.9
"""The cache is cut down to the unfinished rows when fewer than this share of it are left."""


@dataclass(frozen=True)
class RowEdit:
    """A change of the residual stream after one block while sampling.

    Attributes:
        block: the module whose output is the stream.
        change: takes the stream ``[b, t, d]`` of the prompts, then of one new token at a time, and which of
            the sampled rows these are ``[b]`` int64; gives the stream to go on with.
    """

    block: torch.nn.Module
    change: Callable[[Tensor, Tensor], Tensor]


class TokenRule(Protocol):
    """A change of what rows write, token by token.

    ``rows`` [b] int64 are the sampled rows' numbers, ``written`` the new tokens of each so far, without its
    prompt. What a rule does to a row may depend on that row alone, and a rule that draws does so from a
    random stream of the row's own.
    """

    def logits(self, logits: Tensor, rows: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """The next token's logits [b, vocabulary] to draw from."""
        ...

    def drawn(self, tokens: Tensor, rows: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """The token ids [b] to write in place of those that were drawn."""
        ...


def draw(logits: Tensor, uniform: Tensor, temperature: float = TEMPERATURE, top_p: float = TOP_P) -> Tensor:
    """One token a row from the nucleus of ``softmax(logits / temperature)``.

    ``logits`` [b, vocabulary], ``uniform`` [b] in [0, 1). The nucleus is the smallest set of the likeliest
    tokens that holds at least ``top_p``. Returns token ids [b].
    """
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    likeliest, order = probabilities.topk(min(_FRONT, logits.shape[-1]), dim=-1)
    drawn = _pick(likeliest, order, uniform, top_p)
    # a nucleus that reaches beyond the front, or ties, whose order only a stable sort fixes
    reaches = likeliest.cumsum(-1)[:, -1] - likeliest[:, -1] < top_p
    rest = (reaches | (likeliest.diff(dim=-1) == 0).any(-1)).nonzero().flatten()
    if len(rest):
        likeliest, order = probabilities[rest].sort(dim=-1, descending=True, stable=True)
        drawn[rest] = _pick(likeliest, order, uniform[rest], top_p)
    return drawn


def _pick(likeliest: Tensor, order: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """The draw [b] from probabilities [b, k] in falling order, whose tokens are ``order`` [b, k]."""
    before = likeliest.cumsum(-1) - likeliest
    kept = torch.where(before < top_p, likeliest, 0.0).cumsum(-1)
    target = uniform.double() * kept[:, -1]
    place = torch.searchsorted(kept, target[:, None], right=True)
    return order.gather(1, place.clamp(max=order.shape[-1] - 1)).squeeze(1)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    max_new_tokens: int,
    seed: int,
    streams: Sequence[int] | None = None,
    edit: RowEdit | None = None,
    rule: TokenRule | None = None,
    batch: int = 256,
    progress: str | None = None,
    pad: int | None = None,
    ended: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
    """Continues every prompt until ``end`` (kept) or ``max_new_tokens``.

    ``prompts`` are token ids; row ``i`` draws from the random stream (``seed``, ``streams[i]``), by default
    (``seed``, ``i``): rows given one stream draw the same uniforms, which pairs the conditions of an
    experiment. Prompts of one length are run together, so nothing is padded; with ``pad``, a token, prompts
    of any lengths are, padded on the left. ``edit`` and ``rule`` get rows by their place in ``prompts``.
    ``progress`` names a progress bar. ``ended`` is told each row and its new tokens as it ends. Returns the
    new tokens of each row.

    Raises:
        UserError: a prompt and the longest answer do not fit into the model's context.
    """
    check_context(model, prompts, max_new_tokens)
    seeds = [(seed, stream) for stream in (range(len(prompts)) if streams is None else streams)]
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        by_length[len(prompt) if pad is None else 0].append(row)
    finished: list[list[int]] = [[] for _ in prompts]
    with tqdm(total=len(prompts), desc=progress, unit="trace", disable=progress is None) as bar:
        for rows in by_length.values():
            for start in range(0, len(rows), batch):
                part = rows[start : start + batch]
                given = prompts, part, finished, end, max_new_tokens, seeds, edit, rule, pad, ended
                _sample_batch(model, *given)
                bar.update(len(part))
    return finished


def check_context(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises a UserError where a prompt and the longest answer do not fit into the model's context."""
    context = model.config.max_position_embeddings
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > context:
        raise UserError(
            f"A prompt of {longest} tokens and an answer of up to {max_new_tokens} do not fit into the "
            f"model's context of {context}: give shorter prompts, or let the answers be shorter."
        )


def rows_that_fit(model: PreTrainedModel, tokens: int) -> int:
    """Rows of so many tokens, prompt and answer, whose keys and values fit into the memory that is free."""
    config, device = model.config, model.device
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    row = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * tokens
    row += 64 * config.vocab_size  # logits and what drawing from them takes
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, int(_MEMORY_SHARE * free / row))


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rows: list[int],
    finished: list[list[int]],
    end: int,
    max_new_tokens: int,
    seeds: Sequence[tuple[int, int]],
    edit: RowEdit | None,
    rule: TokenRule | None,
    pad: int | None,
    ended: Callable[[int, list[int]], None] | None,
) -> None:
    """Samples ``rows`` (prompts of one length, or padded) to their ends, into ``finished``."""
    device = model.device
    uniforms = torch.from_numpy(
        np.stack([np.random.default_rng(seeds[row]).random(max_new_tokens) for row in rows])
    )
    numbers = torch.tensor(rows)
    cache = DynamicCache(config=model.config)
    lengths = [len(prompts[row]) for row in rows]
    width = max(lengths)
    padded = [[0 if pad is None else pad] * (width - len(prompts[row])) + list(prompts[row]) for row in rows]
    tokens = torch.tensor(padded, device=device)
    before = None  # padding before each row, where there is any
    if min(lengths) < width:
        before = torch.tensor([width - length for length in lengths], device=device)
    alive = torch.arange(len(rows))
    done = torch.zeros(len(rows), dtype=torch.bool)
    for step in range(max_new_tokens):
        with _edited(edit, numbers[alive].to(device)):
            masked = {} if before is None else _masked(before, width + step, tokens.shape[1])
            ran = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **masked)
        logits = ran.logits[:, -1]
        if rule is None:
            drawn = draw(logits, uniforms[alive, step].to(device))
        else:
            now, written = numbers[alive], [finished[rows[i]] for i in alive.tolist()]
            drawn = draw(rule.logits(logits, now, written), uniforms[alive, step].to(device))
            drawn = rule.drawn(drawn, now, written)
        last = step == max_new_tokens - 1
        for row, token, was_done in zip(alive.tolist(), drawn.tolist(), done.tolist(), strict=True):
            if not was_done:
                finished[rows[row]].append(token)
                if ended is not None and (token == end or last):
                    ended(rows[row], finished[rows[row]])
        done |= drawn.cpu() == end
        if bool(done.all()):
            return
        tokens = drawn[:, None]
        if float((~done).float().mean()) < _DROP_SHARE:
            kept = (~done).nonzero().flatten()
            cache.batch_select_indices(kept.to(device))
            tokens, alive, done = tokens[kept.to(device)], alive[kept], done[kept]
            before = None if before is None else before[kept.to(device)]


def _masked(before: Tensor, width: int, new: int) -> dict[str, Tensor]:
    """Mask ``[b, width]`` and positions ``[b, new]`` of rows with so much padding before them ``[b]``."""
    places = torch.arange(width, device=before.device) - before[:, None]
    return {"attention_mask": (places >= 0).long(), "position_ids": places[:, -new:].clamp(min=0)}


@contextlib.contextmanager
def _edited(edit: RowEdit | None, rows: Tensor) -> Iterator[None]:
    """Within this context the edit, where there is one, is made on these rows."""
    if edit is None:
        yield
        return
    change = edit.change

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0], rows), *output[1:])
        return change(output, rows)

    handle = edit.block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
