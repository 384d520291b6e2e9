"""Architectures that SAELens does not have: importing this registers them there.

Both are BatchTopK in what they compute, and saved as SAELens saves BatchTopK: plain SAELens loads them.

*OrtSAE* (2509.22033) adds γ L_orth to the loss. At each step the latents are divided at random into K chunks
C_k of equal size, and, with signed cosines,

    L_orth = 1/K Σ_k 1/|C_k| Σ_{i ∈ C_k} [max_{j ∈ C_k, j ≠ i} cos(W_i, W_j)]²

The cheap variant adds it at every n-th step, n γ times. A *soft-frozen decoder* (2602.14111) is a random
baseline: after each step its directions are put back into the cap of cosine τ about their random start.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, register_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.nn.functional import normalize


def partition(n: int, chunks: int, seed: int, step: int) -> list[Tensor]:
    """Latents 0 … n − 1 at random in chunks of sizes that differ by one at most, from seed and step alone."""
    drawn = np.random.default_rng([seed, step]).permutation(n)
    return list(torch.from_numpy(drawn).tensor_split(chunks))


def orthogonality_penalty(decoder: Tensor, chunks: list[Tensor]) -> Tensor:
    """L_orth of decoder directions ``[s, d]`` of any lengths; a chunk of one latent counts 0."""
    total = decoder.new_zeros(())
    for chunk in chunks:
        rows = decoder[chunk.to(decoder.device)]
        if len(rows) < 2:
            continue
        norms = rows.norm(dim=1)
        cosines = (rows @ rows.T) / (norms[:, None] * norms[None, :]).clamp(min=1e-8)
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        total = total + cosines.masked_fill(itself, -torch.inf).max(dim=1).values.square().mean()
    return total / len(chunks)


@dataclass
class OrtSAEConfig(BatchTopKTrainingSAEConfig):
    """SAELens' BatchTopK, and the penalty."""

    gamma: float = 0.25
    chunks: int = 1  # K; the paper takes d_sae / 8,192, rounded up
    every: int = 1  # steps from one penalty to the next
    partition_seed: int = 0

    @classmethod
    def architecture(cls) -> str:
        return "ortsae"


class OrtSAE(BatchTopKTrainingSAE):
    """BatchTopK in training, with γ L_orth in its loss."""

    cfg: OrtSAEConfig

    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        losses: dict[str, Any] = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        step, cfg = step_input.n_training_steps, self.cfg
        if cfg.gamma and step % cfg.every == 0:
            chunks = partition(cfg.d_sae, cfg.chunks, cfg.partition_seed, step)
            losses["orthogonality_loss"] = cfg.gamma * cfg.every * orthogonality_penalty(self.W_dec, chunks)
        return losses


def into_cap(directions: Tensor, start: Tensor, cosine: float) -> Tensor:
    """Directions ``[s, d]`` put back onto the nearest edge of the cap of a cosine τ about their start: where
    cos(w, w₀) < τ, w ← ‖w‖ (τ ŵ₀ + √(1 − τ²) ŵ_⊥), w_⊥ the part of w perpendicular to w₀; straight away from
    its start it is set to the start.
    """
    first = normalize(start, dim=1)
    norms = directions.norm(dim=1, keepdim=True)
    along = (directions * first).sum(1, keepdim=True)
    aside = directions - along * first
    edge = norms * (cosine * first + (1 - cosine**2) ** 0.5 * normalize(aside, dim=1))
    opposite = aside.norm(dim=1, keepdim=True) <= 1e-6 * norms
    edge = torch.where(opposite, norms * first, edge)
    return torch.where(along < cosine * norms, edge, directions)


@dataclass
class SoftFrozenDecoderConfig(BatchTopKTrainingSAEConfig):
    """SAELens' BatchTopK with a decoder that stays near its start."""

    cap: float = 0.8  # τ, the least cosine of a direction with its start

    @classmethod
    def architecture(cls) -> str:
        return "soft_frozen_decoder"


class SoftFrozenDecoder(BatchTopKTrainingSAE):
    """BatchTopK whose decoder directions stay within a cap about their start."""

    cfg: SoftFrozenDecoderConfig
    start: Tensor

    def __init__(self, cfg: SoftFrozenDecoderConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("start", self.W_dec.detach().clone())

    @torch.no_grad()
    def put_back(self) -> None:
        """Put every direction into its cap."""
        self.W_dec.data = into_cap(self.W_dec.data, self.start, self.cfg.cap)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.put_back()  # what the step before has moved
        return super().training_forward_pass(step_input)

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        self.put_back()  # what the last step has moved
        state_dict["W_dec"] = self.W_dec.data.clone()
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict.pop("start")


register_sae_training_class("ortsae", OrtSAE, OrtSAEConfig)
register_sae_training_class("soft_frozen_decoder", SoftFrozenDecoder, SoftFrozenDecoderConfig)
