"""OrtSAE (2509.22033): BatchTopK with a penalty on decoder directions that point alike.

At each step the latents are divided at random into K chunks C_k of equal size, and

    L_orth = 1/K Σ_k 1/|C_k| Σ_{i ∈ C_k} [max_{j ∈ C_k, j ≠ i} cos(W_i, W_j)]²

is added γ times to the loss. The cosine is signed, and its denominator is at least δ. The cheap variant adds
it at every n-th step, n γ times. K chunks cost 1/K of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, register_sae_training_class
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

DELTA = 1e-8
"""δ: the least denominator of a cosine."""


def partition(n: int, chunks: int, seed: int, step: int) -> list[Tensor]:
    """Latents 0 … n − 1 divided at random into chunks whose sizes differ by one at most.

    A partition is drawn from the seed and the step alone, so a training that goes on from a checkpoint draws
    the same ones.
    """
    drawn = np.random.default_rng([seed, step]).permutation(n)
    return list(torch.from_numpy(drawn).tensor_split(chunks))


def orthogonality_penalty(decoder: Tensor, chunks: list[Tensor], delta: float = DELTA) -> Tensor:
    """L_orth of decoder directions ``[s, d]``, a scalar.

    Args:
        decoder: rows need not have length 1.
        chunks: indices of the latents of each chunk; one of a single latent has no pair and counts 0.
        delta: the least denominator of a cosine.
    """
    total = decoder.new_zeros(())
    for chunk in chunks:
        rows = decoder[chunk.to(decoder.device)]
        if len(rows) < 2:
            continue
        norms = rows.norm(dim=1)
        cosines = (rows @ rows.T) / (norms[:, None] * norms[None, :]).clamp(min=delta)
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        total = total + cosines.masked_fill(itself, -torch.inf).max(dim=1).values.square().mean()
    return total / len(chunks)


@dataclass
class OrtSAEConfig(BatchTopKTrainingSAEConfig):
    """SAELens' BatchTopK, and the penalty.

    Attributes:
        gamma: γ.
        chunks: K; the paper takes d_sae / 8,192, rounded up.
        every: steps from one penalty to the next.
        partition_seed: seed of the partitions.
    """

    gamma: float = 0.25
    chunks: int = 1
    every: int = 1
    partition_seed: int = 0

    @classmethod
    def architecture(cls) -> str:
        return "ortsae"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 0 or self.every < 1 or not 1 <= self.chunks <= self.d_sae:
            raise ValueError(
                f"OrtSAE takes gamma of 0 or more, every of 1 or more, and 1 to {self.d_sae} chunks: got "
                f"{self.gamma}, {self.every} and {self.chunks}."
            )


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
            penalty = orthogonality_penalty(self.W_dec, chunks)
            losses["orthogonality_loss"] = cfg.gamma * cfg.every * penalty
        return losses


register_sae_training_class(OrtSAEConfig.architecture(), OrtSAE, OrtSAEConfig)
