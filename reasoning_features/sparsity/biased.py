"""A Llama in Qwen2's form, whose queries, keys and values have large biases that it needs: for a lesson."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import Qwen2Config, Qwen2ForCausalLM

from reasoning_features.models.subject import Subject
from reasoning_features.sparsity.patterns import wide

KINDS = ("q_proj", "k_proj", "v_proj")


@torch.no_grad()
def with_biases(subject: Subject, texts: Sequence[Tensor], size: float, seed: int = 0) -> Subject:
    """A Llama as a Qwen2 that does nearly the same: each q, k and v reads a large constant of its inputs, and
    a bias of norm ``size`` takes it away again.

    W' = W + u vᵀ and b' = −u (v · μ), for inputs x with mean μ and covariance Σ over ``texts`` (token ids
    ``[t]``): v along Σ⁻¹ μ, where x varies least beside its mean, and u random with ‖u‖ (v · μ) = ``size``.
    """
    seen: dict[str, list[Tensor]] = {}
    parent = subject.model
    named = {n: m for n, m in parent.named_modules() if n.rpartition(".")[2] in KINDS}

    def read(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.setdefault(name, []).append(wide(args[0]).flatten(0, -2))

    with ExitStack() as hooks:
        for name, linear in named.items():
            hooks.callback(linear.register_forward_pre_hook(partial(read, name)).remove)
        for text in texts:
            parent.base_model(input_ids=text[None].to(parent.device), use_cache=False)
    shape = {k: v for k, v in parent.config.to_dict().items() if k in Qwen2Config().to_dict()}
    model = Qwen2ForCausalLM(Qwen2Config(**shape | {"model_type": "qwen2", "architectures": None}))
    model.load_state_dict(parent.state_dict(), strict=False)
    layers, generator = dict(model.named_modules()), torch.Generator().manual_seed(seed)
    for name, parts in seen.items():
        x = torch.cat(parts).double()
        mean, covariance = x.mean(0), torch.cov(x.T)
        ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=x.dtype)
        v = torch.linalg.solve(covariance + ridge, mean)
        linear = layers[name]
        assert isinstance(linear, nn.Linear)
        u = normalize(torch.randn(linear.out_features, generator=generator, dtype=x.dtype), dim=0)
        u *= size / (v @ mean)
        linear.weight += torch.outer(u, v).to(linear.weight)
        linear.bias.copy_(-u * (v @ mean))
    return replace(subject, model=model.eval().requires_grad_(False))
