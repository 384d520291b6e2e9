"""One unlearning: a method's loss trains a LoRA adapter of Base on what to forget and what to retain."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from peft.tuners import lora

from reasoning_features.errors import check_finite
from reasoning_features.unlearning.items import CAPTION, NAME, TEXT, Encode, Item, with_answers
from reasoning_features.unlearning.methods import METHODS, Step, l1_of_adapter

BATCH = 16  # items to be forgotten, and as many to be retained, in a step
IGNORANT = ("I do not know.", "I cannot say.", "That is not known to me.", "I have no answer.")
# what is forgotten → the tasks whose items are read
FORGOTTEN = {"text": (TEXT,), "pictures": (NAME, CAPTION), "both": (TEXT, NAME, CAPTION)}


@dataclass(frozen=True)
class Recipe:
    """How one unlearning is done."""

    method: str  # of :data:`METHODS`
    rate: float  # of AdamW, constant
    steps: int
    penalty: float = 0.0  # λ of the adapter's ℓ1 norm
    seed: int = 0


def in_turn(items: Sequence[Item], seed: int, number: int) -> list[Item]:
    """The items of step ``number``: all come in a new order each time round."""
    n = min(BATCH, len(items))
    epoch, place = divmod(number * n, len(items))
    order = [np.random.default_rng([seed, each]).permutation(len(items)) for each in (epoch, epoch + 1)]
    return [items[i] for i in np.concatenate(order)[place : place + n]]


def draw_step(encode: Encode, forget: Sequence[Item], retain: Sequence[Item], seed: int, number: int) -> Step:
    """The batches of step ``number``: all are drawn, and those that a loss reads are encoded, once."""
    forgotten = in_turn(forget, seed, number)
    rng = np.random.default_rng([seed, number, 1])
    retained = [retain[i] for i in rng.permutation(len(retain))[:BATCH]]
    refusals = [IGNORANT[i] for i in rng.integers(len(IGNORANT), size=len(forgotten))]
    others = [_mismatched(item, forget, rng) for item in forgotten]
    return Step(
        forget=cache(lambda: with_answers(encode, forgotten)),
        retain=cache(lambda: with_answers(encode, retained)),
        ignorant=cache(lambda: encode(forgotten, refusals)),
        mismatched=cache(lambda: encode(forgotten, others)),
    )


def _mismatched(item: Item, items: Sequence[Item], rng: np.random.Generator) -> str:
    """The answer of another item of the same task, of another person where there is one."""
    same = [other for other in items if other.task == item.task]
    others = [other for other in same if other.person != item.person]
    return (others or same)[int(rng.integers(len(others or same)))].answer


def unlearn(
    model: Any, encode: Encode, forget: Sequence[Item], retain: Sequence[Item], recipe: Recipe
) -> Iterator[int]:
    """Train the adapter of a peft model in place; gives how many steps are done after each.

    AdamW with gradients clipped to norm 1, as the release's trainer has it. What the method makes of the
    model is seen inside :func:`applied`.
    """
    loss_of = METHODS[recipe.method].loss
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.01)
    for number in range(recipe.steps):
        step = draw_step(encode, forget, retain, recipe.seed, number)
        loss = loss_of(model, model.disable_adapter, step)
        if recipe.penalty:
            loss = loss + recipe.penalty * l1_of_adapter(model)
        check_finite(loss.detach(), f"The loss of {recipe.method}", "lower the rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield number + 1


@contextmanager
def applied(model: Any, method: str) -> Iterator[None]:
    """Inside, the learnt change of weights is applied as the method does in the end: SKU subtracts it."""
    scale = METHODS[method].scale
    layers = [module for module in model.modules() if isinstance(module, lora.Linear)]
    for layer in layers:
        layer.scale_layer(scale)
    try:
        yield
    finally:
        for layer in layers:
            layer.unscale_layer(scale)


@torch.no_grad()
def distance(model: Any) -> float:
    """How far the adapter moves the weights: ‖ΔW‖ of all adapted matrices over ‖W‖ (Frobenius norms)."""
    layers = [module for module in model.modules() if isinstance(module, lora.Linear)]
    moved = sum(layer.get_delta_weight("default").float().square().sum() for layer in layers)
    whole = sum(layer.weight.float().square().sum() for layer in layers)
    return float((moved / whole) ** 0.5)
