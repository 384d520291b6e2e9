"""Batched sampling with a key-value cache: finished rows leave, each row draws from its own random stream.

A row's tokens therefore do not depend on which other rows share its batch, and a larger run continues a
smaller one. The residual stream, the next token's logits and what was drawn may be changed row by row.
"""

import contextlib
import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig

from reasoning_features.errors import WIDER, UserError, check_finite

TEMPERATURE, TOP_P = 0.6, 0.95  # the paper's
_FRONT = 64  # the likeliest tokens, sorted first: they nearly always hold the nucleus
_MEMORY_SHARE = 0.6  # of the free memory for keys and values: one layer's are held twice while they grow
_DROP_SHARE = 0.9  # the cache is cut down to the unfinished rows when fewer than this share of it are left
PAGE = 256  # tokens of a page of keys and values in continuous batching
_CPU_TOKENS = 1024  # tokens of one forward pass of continuous batching on a CPU

# is told a row and its new tokens as it ends
Ended = Callable[[int, list[int]], None]
# takes the stream [b, t, d], the numbers of its rows [b], and its token ids [b, t]; gives the stream to go on
# with (continuous batching knows no ids)
Change = Callable[..., Tensor]
# takes the next token's logits [b, vocabulary] and a number in [0, 1) for each row; gives token ids [b]
Choice = Callable[[Tensor, Tensor], Tensor]
# takes the prompts' ids [b, t], an empty cache to fill, the model's masks, and what changes the stream; gives
# the next token's logits [b, vocabulary]
Reader = Callable[[Tensor, DynamicCache, dict[str, Tensor], Callable[[Tensor], Tensor]], Tensor]


class Rule:
    """A change of what rows write, token by token; without methods of its own it changes nothing.

    ``rows`` are numbers of rows, ``written`` the new tokens of each so far; a row's may depend on it alone.
    """

    def logits(self, logits: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor:
        """The next token's logits ``[b, vocabulary]`` to draw from."""
        return logits

    def drawn(self, tokens: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor:
        """The token ids ``[b]`` to write in place of those that were drawn."""
        return tokens


@contextlib.contextmanager
def edited(
    block: torch.nn.Module | None, change: Callable[..., Tensor] | None, *rows: Tensor
) -> Iterator[None]:
    """Within this context the output ``[b, t, d]`` of a block is ``change(output, *rows)``; None: none is."""
    if block is None or change is None:
        yield
        return

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # in some models; a tensor in most since transformers 5
            return (change(output[0], *rows), *output[1:])
        return change(output, *rows)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Token ids ``[b]`` from the nucleus of ``softmax(logits [b, vocabulary] / TEMPERATURE)``.

    It is the smallest set of the likeliest that holds ``TOP_P``; ``uniform`` ``[b]`` in [0, 1) says which.
    A logit of −∞ bars its token. UserError: another is not finite, or all tokens are barred.
    """
    probabilities = torch.softmax(logits.double() / TEMPERATURE, dim=-1)
    likeliest, order = probabilities.topk(min(_FRONT, logits.shape[-1]), dim=-1)
    check_finite(likeliest, "The probability of a row's next token", f"steer less, or {WIDER}")
    drawn = _pick(likeliest, order, uniform)
    # a nucleus that reaches beyond the front, or ties, whose order only a stable sort fixes
    reaches = likeliest.cumsum(-1)[:, -1] - likeliest[:, -1] < TOP_P
    rest = (reaches | (likeliest.diff(dim=-1) == 0).any(-1)).nonzero().flatten()
    if len(rest):
        likeliest, order = probabilities[rest].sort(dim=-1, descending=True, stable=True)
        drawn[rest] = _pick(likeliest, order, uniform[rest])
    return drawn


def likeliest(logits: Tensor, uniform: Tensor) -> Tensor:
    """Token ids ``[b]`` of greedy decoding: the likeliest, whatever ``uniform``; UserError: not finite."""
    return check_finite(logits, "The logit of a row's next token", f"steer less, or {WIDER}").argmax(-1)


def _pick(likeliest: Tensor, order: Tensor, uniform: Tensor) -> Tensor:
    """The draw ``[b]`` from probabilities ``[b, k]`` in falling order, whose tokens are ``order``."""
    before = likeliest.cumsum(-1) - likeliest
    kept = torch.where(before < TOP_P, likeliest, 0.0).cumsum(-1)
    target = uniform.double() * kept[:, -1]
    place = torch.searchsorted(kept, target[:, None], right=True)
    return order.gather(1, place.clamp(max=order.shape[-1] - 1)).squeeze(1)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end: Collection[int],
    max_new_tokens: int,
    seed: int,
    streams: Sequence[int] | None = None,
    block: torch.nn.Module | None = None,
    change: Change | None = None,
    rule: Rule | None = None,
    batch: int = 256,
    pad: int | None = None,
    ended: Ended | None = None,
    choice: Choice = draw,
    reader: Reader | None = None,
) -> list[list[int]]:
    """New tokens of each prompt to one of ``end`` (kept) or ``max_new_tokens``; UserError beyond the context.

    Row ``i`` draws from the random stream (``seed``, ``streams[i]``), by default (``seed``, ``i``): rows of
    one stream draw the same uniforms, which pairs the conditions of an experiment. Prompts of one length run
    together; with ``pad``, a token, prompts of any lengths do, padded on the left. ``change`` is made on the
    output of ``block``; it and ``rule`` get rows by their place in ``prompts``. ``choice`` picks tokens, by
    default the draw. ``reader`` reads the prompts; by default the model does, every row by itself.
    """
    check_context(model, prompts, max_new_tokens)
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        by_length[len(prompt) if pad is None else 0].append(row)
    parts = [rows[i : i + batch] for rows in by_length.values() for i in range(0, len(rows), batch)]
    written: list[list[int]] = [[] for _ in prompts]
    numbers = range(len(prompts)) if streams is None else streams
    for rows in parts:
        draws = [np.random.default_rng((seed, numbers[row])).random(max_new_tokens) for row in rows]
        uniforms, texts = torch.from_numpy(np.stack(draws)), {row: written[row] for row in rows}
        pads = pad or 0
        _sample_batch(model, prompts, texts, uniforms, end, block, change, rule, pads, ended, choice, reader)
    return written


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    texts: dict[int, list[int]],
    uniforms: Tensor,
    end: Collection[int],
    block: torch.nn.Module | None,
    change: Change | None,
    rule: Rule | None,
    pad: int,
    ended: Ended | None,
    choice: Choice,
    reader: Reader | None,
) -> None:
    """Writes the rows of ``texts`` to their ends, drawing by ``uniforms`` ``[rows, most new tokens]``."""
    device, cache = model.device, DynamicCache(config=model.config)
    numbers, lengths = torch.tensor(list(texts)), torch.tensor([len(prompts[row]) for row in texts])
    width, most = int(lengths.max()), uniforms.shape[1]
    padded = [[pad] * (width - len(prompts[row])) + list(prompts[row]) for row in texts]
    tokens = torch.tensor(padded, device=device)
    # padding before each row, where there is any
    before = (width - lengths).to(device) if int(lengths.min()) < width else None
    alive, done = torch.arange(len(texts)), torch.zeros(len(texts), dtype=torch.bool)
    ends = torch.tensor(list(end))
    for step in range(most):
        here = numbers[alive]
        masked = {}
        if before is not None:
            places = torch.arange(width + step, device=device) - before[:, None]
            masked["attention_mask"] = (places >= 0).long()
            masked["position_ids"] = places[:, -tokens.shape[1] :].clamp(min=0)
        rows = here.tolist()
        if step == 0 and reader is not None and change is not None:
            logits = reader(tokens, cache, masked, partial(change, rows=here.to(device), tokens=tokens))
        else:
            with edited(block, change, here.to(device), tokens):
                ran = model(
                    input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **masked
                )
            logits = ran.logits[:, -1]
        so_far = [texts[row] for row in rows]
        if rule is not None:
            logits = rule.logits(logits, rows, so_far)
        drawn = choice(logits, uniforms[alive, step].to(device))
        if rule is not None:
            drawn = rule.drawn(drawn, rows, so_far)
        for row, token, was_done in zip(rows, drawn.tolist(), done.tolist(), strict=True):
            if not was_done:
                texts[row].append(token)
                if ended is not None and (token in end or step == most - 1):
                    ended(row, texts[row])
        done |= torch.isin(drawn.cpu(), ends)
        if bool(done.all()):
            return
        tokens = drawn[:, None]
        if float((~done).float().mean()) < _DROP_SHARE:
            kept = (~done).nonzero().flatten()
            cache.batch_select_indices(kept.to(device))
            tokens, alive, done = tokens[kept.to(device)], alive[kept], done[kept]
            before = None if before is None else before[kept.to(device)]


def check_context(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises a UserError where a prompt and the longest answer do not fit into the model's context."""
    context, longest = model.config.max_position_embeddings, max(map(len, prompts), default=0)
    if longest + max_new_tokens > context:
        asked = f"A prompt of {longest} tokens and an answer of up to {max_new_tokens}"
        fits = f"do not fit into the model's context of {context}"
        raise UserError(f"{asked} {fits}: give shorter prompts, or let the answers be shorter.")


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


def sample_continuously(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end: Collection[int],
    max_new_tokens: int,
    seed: int,
    ended: Ended,
) -> None:
    """Continues every prompt by transformers' continuous batching, for long answers on a GPU.

    Draws depend on what runs together: an answer is not the same in another run, nor paired with another
    condition's. RuntimeError where generation breaks off, UserError as :func:`sample`.
    """
    check_context(model, prompts, max_new_tokens)
    on_gpu, room = model.device.type == "cuda", rows_that_fit(model, PAGE)
    pages = sum(-(-(len(prompt) + max_new_tokens) // PAGE) + 1 for prompt in prompts)
    batching = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=pages if pages <= room else None if on_gpu else room,  # None: what the device has
        max_batch_tokens=None if on_gpu else _CPU_TOKENS,
        seed=seed,
        # only where it is installed: it is not to be fetched while a model runs
        auto_switch_to_flash=importlib.util.find_spec("flash_attn") is not None,
    )
    options: dict[str, Any] = {"temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0, "eos_token_id": [*end]}
    config = GenerationConfig(do_sample=True, max_new_tokens=max_new_tokens, pad_token_id=min(end), **options)
    running: Any = model  # whose types do not know of it
    manager, whole = running.init_continuous_batching(config, batching), False
    try:
        with torch.no_grad():
            manager.warmup()
            manager.start()
            rows = {manager.add_request(list(prompt)): row for row, prompt in enumerate(prompts)}
            while rows:
                told = manager.get_result(timeout=1)
                if told is None and not manager.is_running():
                    raise RuntimeError("Generation broke off: see the log above.")
                if told is None or not told.is_finished():
                    continue
                if told.error is not None:
                    raise RuntimeError(f"An answer could not be generated: {told.error}")
                ended(rows.pop(told.request_id), list(told.generated_tokens))
        whole = True
    finally:  # at once where an error or an interrupt came
        manager.stop(block=True, hard_stop=not whole)
        manager.destroy()
