"""Linear layers that read pruned inputs, and what mends them (arXiv 2509.22166), for a Hugging Face decoder.

The inputs alone change, so a layer's bias stays: the released layer drops it, which breaks Qwen2.5's q, k, v.
Batches must be without padding, which would count as tokens. Criteria that read a whole sequence (CLACT)
remember nothing between the steps of cached generation: of one token, they rank as ACT does.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from reasoning_features.errors import UserError
from reasoning_features.sparsity.patterns import AnyPattern, Criterion, Statistics, act, mask, wide

Prune = Callable[[Tensor], Tensor]  # a layer's inputs [b, t, in] → what it reads instead

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Correction:
    """Mends one layer whose inputs are pruned; the default changes nothing."""

    inputs: Callable[[Tensor, Prune], Tensor] = lambda x, prune: prune(x)  # what is read in place of x
    outputs: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # (y, x, what was read of it) → y
    learnt: tuple[Tensor, ...] = ()  # what `fit` changes in place
    scale: Tensor | float = 1.0  # [in]: criteria see W · scale


def var(_linear: nn.Linear, _statistics: Statistics) -> Correction:
    """VAR: the pruned token times sqrt(var x / var x_sp), variances over the token's inputs."""

    def inputs(x: Tensor, prune: Prune) -> Tensor:
        kept = prune(x)
        before, after = x.var(-1, keepdim=True), kept.var(-1, keepdim=True)
        return kept * torch.where(after > 0, before / after, 1.0).sqrt()

    return Correction(inputs)


def _shifted(x: Tensor, prune: Prune, eta: Tensor | float) -> Tensor:
    return prune(x - eta) + eta


def d_pts_median(_linear: nn.Linear, _statistics: Statistics) -> Correction:
    """D-PTS as coded: prune(x − η) + η with η each token's own median (of two middle ones the lower).

    With η back the input is dense again. What saves is to fold it: η_t · (W 1) added to the output instead
    is a rank-1 term, with W 1 ``[out]`` computed once.
    """
    return Correction(lambda x, prune: _shifted(x, prune, x.median(-1, keepdim=True).values))


def d_pts_mean(_linear: nn.Linear, _statistics: Statistics) -> Correction:
    """D-PTS as written: η is the token's mean; dense again, and folded, as with the median."""
    return Correction(lambda x, prune: _shifted(x, prune, x.mean(-1, keepdim=True)))


def s_pts(_linear: nn.Linear, statistics: Statistics) -> Correction:
    """S-PTS: prune(x − η) + η, η one number a layer; dense again unless W η is folded into the bias."""
    return Correction(partial(_shifted, eta=statistics.median))


def l_pts(linear: nn.Linear, _statistics: Statistics) -> Correction:
    """L-PTS: prune(x − η) + η, η ``[in]`` learnt from 0; dense again unless W η is folded into the bias."""
    eta = torch.zeros_like(wide(linear.weight.detach()[0]))
    return Correction(partial(_shifted, eta=eta), learnt=(eta,))


def smoothing(linear: nn.Linear, statistics: Statistics) -> Correction:
    """LS: x / s is pruned and read by W · s, s_j = sqrt(max |x_j| / max_i |W_ij|) (1 where either is 0).

    Here W reads s · x_sp, which is the same. The released code's maximum is over the batch at hand.
    """
    ratio = statistics.largest / wide(linear.weight.detach()).abs().amax(0)
    s = torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0).sqrt()
    return Correction(lambda x, prune: prune(x / s) * s, scale=s)


def output_scale(linear: nn.Linear, _statistics: Statistics) -> Correction:
    """(1 + s) · y, s ``[out]`` learnt from 0; y without the bias, which the published layers lack."""
    s = torch.zeros_like(wide(linear.weight.detach()[:, 0]))
    bias = 0.0 if linear.bias is None else linear.bias.detach()
    return Correction(outputs=lambda y, x, read: y + s * (y - bias), learnt=(s,))


def output_shift(linear: nn.Linear, _statistics: Statistics) -> Correction:
    """y + shift, shift ``[out]`` learnt from 0."""
    shift = torch.zeros_like(wide(linear.weight.detach()[:, 0]))
    return Correction(outputs=lambda y, x, read: y + shift, learnt=(shift,))


def r_sparse(linear: nn.Linear, _statistics: Statistics, rank: int = 128, seed: int = 0) -> Correction:
    """R-Sparse: (x − x_sp) B A is added, B ``[in, r]`` and A ``[r, out]`` learnt from N(0, .02²)."""
    outputs, width = linear.weight.shape
    rank, generator = min(rank, outputs, width), torch.Generator().manual_seed(seed)
    shapes, like = ((width, rank), (rank, outputs)), wide(linear.weight.detach())
    b, a = (0.02 * torch.randn(shape, generator=generator).to(like) for shape in shapes)
    return Correction(outputs=lambda y, x, read: y + (x - read) @ b @ a, learnt=(b, a))


CORRECTIONS: dict[str, Callable[[nn.Linear, Statistics], Correction]] = {
    "VAR": var, "D-PTS, median": d_pts_median, "D-PTS, mean": d_pts_mean, "S-PTS": s_pts, "L-PTS": l_pts,
    "LS": smoothing, "scale": output_scale, "shift": output_shift, "R-Sparse": r_sparse,
}  # fmt: skip


def linear_layers(model: PreTrainedModel, which: str | Sequence[int] = "all") -> dict[str, nn.Linear]:
    """The linear layers of all blocks ("all"), of their MLPs ("mlp") or of blocks by number; never the head.

    They are known by Llama's, Qwen's and Gemma's names. UserError: no layer of a name, or no such block.
    """
    if isinstance(which, str) and which not in ("all", "mlp"):
        raise UserError(f'There are no layers {which!r}: give "all", "mlp" or numbers of blocks.')
    ends = MLP if which == "mlp" else ATTENTION + MLP
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    named = {name: module for name, module in linear.items() if name.rpartition(".")[2] in ends}
    if lacking := sorted(set(ends) - {name.rpartition(".")[2] for name in named}):
        raise UserError(f"This model has no linear layer {lacking[0]}: give a decoder such as Llama or Qwen.")
    blocks = {name: int(found[1]) for name in named if (found := re.search(r"\.(\d+)\.", name))}
    asked = set(blocks.values()) if isinstance(which, str) else set(which)
    if missing := sorted(asked - set(blocks.values())):
        raise UserError(f"Block {missing[0]} is not there: this model has 0 to {max(blocks.values())}.")
    return {name: module for name, module in named.items() if blocks.get(name) in asked}


@torch.no_grad()
def calibrate(
    model: PreTrainedModel, layers: Mapping[str, nn.Linear], batches: Iterable[Tensor], keep: int = 0
) -> dict[str, Statistics]:
    """Each layer's statistics from one dense pass over batches of token ids ``[b, t]``.

    The inputs of the first ``keep`` sequences are kept: t · in numbers each, for every layer. UserError:
    there is no batch.
    """
    sums = defaultdict[str, list[tuple[Tensor, Tensor, Tensor, int]]](list)
    inputs = defaultdict[str, list[Tensor]](list)

    def read(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = wide(args[0]).flatten(0, -2)
        sums[name].append((x.square().sum(0), x.abs().amax(0), x.median(-1).values.sum(), len(x)))
        inputs[name].extend(args[0][: keep - len(inputs[name])].cpu().clone().unbind())

    with ExitStack() as hooks:
        for name, linear in layers.items():
            hooks.callback(linear.register_forward_pre_hook(partial(read, name)).remove)
        for batch in batches:
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
    if set(sums) != set(layers):
        raise UserError("Calibration read no tokens: give at least one batch of token ids.")
    made = {}
    for name, told in sums.items():
        squares, largest, medians, tokens = zip(*told, strict=True)
        median = float(torch.stack(medians).sum()) / sum(tokens)
        norms = torch.stack(squares).sum(0).sqrt()
        made[name] = Statistics(norms, torch.stack(largest).amax(0), median, inputs[name])
    return made


def _pruner(
    linear: nn.Linear, pattern: AnyPattern, criterion: Criterion,
    corrections: Sequence[Correction], layer: str,
) -> Prune:  # fmt: skip
    """What a layer reads in place of its inputs: pruned, and corrected from the last to the first."""
    weight = wide(linear.weight.detach())
    for correction in corrections:
        weight = weight * correction.scale
    score = criterion(weight)

    def pruned(x: Tensor) -> Tensor:
        return x * mask(score(x.detach()), pattern, layer)

    prune: Prune = pruned
    for correction in reversed(corrections):
        prune = _around(prune, correction.inputs)
    return prune


def _around(prune: Prune, inputs: Callable[[Tensor, Prune], Tensor]) -> Prune:
    return lambda x: inputs(x, prune)


def _corrected(y: Tensor, x: Tensor, read: Tensor, corrections: Sequence[Correction]) -> Tensor:
    for correction in corrections:
        y = correction.outputs(y, x, read) if correction.outputs else y
    return y


def _before(
    prune: Prune, seen: list[tuple[Tensor, Tensor]], _: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    x = wide(args[0])
    read = prune(x)
    seen[:] = [(x, read)]
    return (read.to(args[0].dtype),)


def _after(
    corrections: Sequence[Correction], seen: list[tuple[Tensor, Tensor]],
    _: nn.Module, _args: tuple[Tensor, ...], y: Tensor,
) -> Tensor:  # fmt: skip
    return _corrected(wide(y), *seen.pop(), corrections).to(y.dtype)


@contextmanager
def sparse(
    layers: Mapping[str, nn.Linear], pattern: AnyPattern, criterion: Criterion = act,
    corrections: Mapping[str, Sequence[Correction]] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Inside, these layers read pruned inputs; afterwards, whatever happened, no trace is left.

    ``corrections`` are of layers by name: of several on inputs the first goes round the others, of several
    on outputs it comes first. UserError, before anything changes: a width does not divide into groups.
    """
    for name, linear in layers.items():
        pattern.group(linear.in_features, name)
    with ExitStack() as hooks:
        for name, linear in layers.items():
            own = (corrections or {}).get(name, ())
            prune, seen = _pruner(linear, pattern, criterion, own, name), list[tuple[Tensor, Tensor]]()
            before, after = partial(_before, prune, seen), partial(_after, own, seen)
            hooks.callback(linear.register_forward_pre_hook(before).remove)
            hooks.callback(linear.register_forward_hook(after).remove)
        yield


def fit(
    model: PreTrainedModel, layers: Mapping[str, nn.Linear], pattern: AnyPattern,
    corrections: Mapping[str, Sequence[Correction]], batches: Sequence[Tensor], criterion: Criterion = act,
) -> dict[str, list[float]]:  # fmt: skip
    """Learn layers' corrections in place, all side by side in one dense pass over batches of token ids
    ``[b, t]``, a step each; gives each layer's losses.

    A loss is the mean squared error to the dense layer's output. The settings are those released: AdamW at
    1e-4, betas .9 and .95, no decay of weights, 3% warm-up and a linear fall, gradients clipped to norm 1;
    none goes through the choice of what is kept. The released code fits a whole block's output. UserError:
    nothing to learn, or no batch.
    """
    learnt = {name: [t for own in corrections[name] for t in own.learnt] for name in layers}
    if not all(learnt.values()) or not batches:
        raise UserError("There is nothing to fit: give corrections that learn, and batches to learn from.")
    losses: dict[str, list[float]] = {name: [] for name in layers}
    with ExitStack() as hooks:
        for name, linear in layers.items():
            prune = _pruner(linear, pattern, criterion, corrections[name], name)
            step = _learner(linear, prune, corrections[name], learnt[name], len(batches), losses[name])
            hooks.callback(linear.register_forward_hook(step).remove)
        for batch in batches:
            with torch.no_grad():
                model.base_model(input_ids=batch.to(model.device), use_cache=False)
    for tensor in chain.from_iterable(learnt.values()):
        tensor.requires_grad_(False).grad = None
    return losses


def _learner(
    linear: nn.Linear, prune: Prune, corrections: Sequence[Correction], learnt: Sequence[Tensor],
    steps: int, losses: list[float],
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:  # fmt: skip
    """A hook that takes a step of one layer's corrections and notes the loss."""
    for tensor in learnt:
        tensor.requires_grad_(True)
    optimiser = torch.optim.AdamW(learnt, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimiser, int(0.03 * steps), steps)

    @torch.enable_grad()
    def step(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        x = wide(args[0])
        read = prune(x)
        made = wide(functional.linear(read.to(y.dtype), linear.weight, linear.bias))
        loss = functional.mse_loss(_corrected(made, x, read, corrections), wide(y))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())

    return step


@contextmanager
def replaced(layers: Mapping[str, nn.Linear], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, layers have these ``weights`` ``[out, in]`` by name; afterwards their own, the same tensors.

    UserError, before anything changes: a layer that is not there, or a weight of another shape.
    """
    for name, new in weights.items():
        if name not in layers or layers[name].weight.shape != new.shape:
            raise UserError(f"The weight for {name} fits no layer there: give one of the layer's own shape.")
    own = {name: layers[name].weight for name in weights}
    try:
        for name, new in weights.items():
            layers[name].weight = nn.Parameter(new.to(own[name]), requires_grad=False)
        yield
    finally:
        for name, weight in own.items():
            layers[name].weight = weight
