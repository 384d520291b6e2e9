"""A Llama in Qwen2's form, whose queries, keys and values have large biases that it needs: for a lesson."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import Qwen2Config, Qwen2ForCausalLM

from reasoning_features.models.subject import Subject
from reasoning_features.sparsity.layers import calibrate, linear_layers

KINDS = ("q_proj", "k_proj", "v_proj")


@torch.no_grad()
def with_biases(subject: Subject, texts: Sequence[Tensor], size: float, seed: int = 0) -> Subject:
    """A Llama as a Qwen2 that does nearly the same: each q, k and v reads a large constant of its inputs, and
    a bias of norm ``size`` takes it away again.

    W' = W + u vᵀ and b' = −u (v · μ), for inputs x with mean μ and covariance Σ over ``texts`` (token ids
    ``[t]``): v along Σ⁻¹ μ, where x varies least beside its mean, and u random with ‖u‖ (v · μ) = ``size``.
    """
    parent = subject.model
    read = {n: m for n, m in linear_layers(parent).items() if n.rpartition(".")[2] in KINDS}
    known = calibrate(parent, read, [text[None] for text in texts], keep=len(texts))
    shape = {k: v for k, v in parent.config.to_dict().items() if k in Qwen2Config().to_dict()}
    model = Qwen2ForCausalLM(Qwen2Config(**shape | {"model_type": "qwen2", "architectures": None}))
    model.load_state_dict(parent.state_dict(), strict=False)
    layers, generator = linear_layers(model), torch.Generator().manual_seed(seed)
    for name, told in known.items():
        x, linear = torch.cat(told.inputs).double(), layers[name]
        mean, covariance = x.mean(0), torch.cov(x.T)
        ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=x.dtype)
        v = torch.linalg.solve(covariance + ridge, mean)
        u = normalize(torch.randn(linear.out_features, generator=generator, dtype=x.dtype), dim=0)
        u *= size / (v @ mean)
        linear.weight += torch.outer(u, v).to(linear.weight)
        linear.bias.copy_(-u * (v @ mean))
    return replace(subject, model=model.eval().requires_grad_(False))
