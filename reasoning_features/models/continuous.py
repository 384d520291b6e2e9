"""Long answers without idle rows: transformers' own continuous batching, one condition at a time.

When an answer ends the next prompt takes its place, and keys and values lie in pages, so memory is full of
answers that are still being written. Draws depend on what runs together: an answer is not the same in another
run, and conditions are not paired draw by draw as they are with
:func:`reasoning_features.models.sampling.sample`.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig

from reasoning_features.models.sampling import TEMPERATURE, TOP_P, check_context, rows_that_fit

PAGE = 256
"""Tokens of a page of keys and values."""
_CPU_TOKENS = 1024
"""Tokens of one forward pass on a CPU."""


def sample_continuously(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    max_new_tokens: int,
    seed: int,
    ended: Callable[[int, list[int]], None],
    temperature: float = TEMPERATURE,
    progress: tqdm[Any] | None = None,
) -> None:
    """Continues every prompt until ``end`` (kept) or ``max_new_tokens``; tells ``ended`` each as it ends.

    The device's memory fixes how many run together. Temperature 0 takes the likeliest token.

    Raises:
        UserError: a prompt and the longest answer do not fit into the model's context.
        RuntimeError: generation broke off.
    """
    check_context(model, prompts, max_new_tokens)
    sampling = {"temperature": temperature, "top_p": TOP_P, "top_k": 0} if temperature else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=end,
        pad_token_id=end,
        **sampling,
    )
    with _running(model, config, seed, [len(prompt) + max_new_tokens for prompt in prompts]) as manager:
        rows = {manager.add_request(list(prompt)): row for row, prompt in enumerate(prompts)}
        while rows:
            told = manager.get_result(timeout=1)
            if told is None:
                if not manager.is_running():
                    raise RuntimeError("Generation broke off: see the log above.")
                continue
            if not told.is_finished():
                continue
            if told.error is not None:
                raise RuntimeError(f"An answer could not be generated: {told.error}")
            ended(rows.pop(told.request_id), list(told.generated_tokens))
            if progress is not None:
                progress.update(1)


@contextlib.contextmanager
def edited_everywhere(block: torch.nn.Module, change: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Within this context ``change`` is made on a block's output ``[1, tokens, d]``, all answers packed."""
    if change is None:
        yield
        return

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _running(
    model: PreTrainedModel, config: GenerationConfig, seed: int, longest: Sequence[int]
) -> Iterator[Any]:
    """The manager at work; ended at once where this context is left by an error or an interrupt.

    ``longest`` is how many tokens each answer may take with its prompt.
    """
    on_gpu = model.device.type == "cuda"
    pages, room = sum(-(-tokens // PAGE) + 1 for tokens in longest), rows_that_fit(model, PAGE)
    batching = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=pages if pages <= room else None if on_gpu else room,  # None: what the device has
        max_batch_tokens=None if on_gpu else _CPU_TOKENS,
        seed=seed,
        # only where it is installed: it is not to be fetched while a model runs
        auto_switch_to_flash=importlib.util.find_spec("flash_attn") is not None,
    )
    running: Any = model  # whose types do not know of it
    manager = running.init_continuous_batching(config, batching)
    whole = False
    try:
        with torch.no_grad():
            manager.warmup()
            manager.start()
            yield manager
        whole = True
    finally:
        manager.stop(block=True, hard_stop=not whole)
        manager.destroy()
