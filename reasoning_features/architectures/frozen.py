"""Frozen baselines (2602.14111): BatchTopK autoencoders of which a part stays at, or near, its random start.

*Frozen decoder*: the directions never move. *Soft-frozen decoder*: after each step every direction is put
back into the cap of cosine τ about its start. *Frozen encoder*: the encoder's directions never move; biases,
the threshold and the decoder are learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, register_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.nn.functional import normalize


def into_cap(directions: Tensor, start: Tensor, cosine: float) -> Tensor:
    """Directions ``[s, d]``, those too far from their start put back on the cap's edge, in their own length.

    Where cos(w, w₀) < τ: w ← ‖w‖ (τ ŵ₀ + √(1 − τ²) ŵ_⊥), ŵ_⊥ being the direction of the part of w that is
    perpendicular to w₀: of all directions of the cap the nearest. Those inside are left as they are, to the
    bit. One that points straight away from its start has no nearest, and is set to the start.

    Args:
        directions: what training has made of them.
        start: ``[s, d]`` where they began; of any length but 0.
        cosine: τ.
    """
    first = normalize(start, dim=1)
    norms = directions.norm(dim=1, keepdim=True)
    along = (directions * first).sum(1, keepdim=True)
    aside = directions - along * first
    edge = norms * (cosine * first + (1 - cosine**2) ** 0.5 * normalize(aside, dim=1))
    lost = aside.norm(dim=1, keepdim=True) <= 1e-6 * norms
    edge = torch.where(lost, norms * first, edge)
    return torch.where(along < cosine * norms, edge, directions)


@dataclass
class FrozenDecoderConfig(BatchTopKTrainingSAEConfig):
    """SAELens' BatchTopK with a decoder that stays at its start."""

    @classmethod
    def architecture(cls) -> str:
        return "frozen_decoder"


class FrozenDecoder(BatchTopKTrainingSAE):
    """BatchTopK whose decoder directions are never trained."""

    cfg: FrozenDecoderConfig

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.W_dec.requires_grad_(False)


@dataclass
class SoftFrozenDecoderConfig(BatchTopKTrainingSAEConfig):
    """SAELens' BatchTopK with a decoder that stays near its start.

    Attributes:
        cap: τ, the least cosine of a direction with its start.
    """

    cap: float = 0.8

    @classmethod
    def architecture(cls) -> str:
        return "soft_frozen_decoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cap < 1:
            raise ValueError(f"A cap is a cosine between 0 and 1: got {self.cap}.")


class SoftFrozenDecoder(BatchTopKTrainingSAE):
    """BatchTopK whose decoder directions stay within a cap about their start."""

    cfg: SoftFrozenDecoderConfig
    start: Tensor

    def __init__(self, cfg: SoftFrozenDecoderConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("start", self.W_dec.detach().clone())

    @torch.no_grad()
    def put_back(self) -> None:
        """Every direction into its cap."""
        self.W_dec.data = into_cap(self.W_dec.data, self.start, self.cfg.cap)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.put_back()  # what the step before has moved
        return super().training_forward_pass(step_input)

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        # the last step's move has not been put back yet
        state_dict["W_dec"] = into_cap(state_dict["W_dec"], self.start, self.cfg.cap)

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        self.put_back()
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict.pop("start")


@dataclass
class FrozenEncoderConfig(BatchTopKTrainingSAEConfig):
    """SAELens' BatchTopK with encoder directions that stay at their start."""

    @classmethod
    def architecture(cls) -> str:
        return "frozen_encoder"


class FrozenEncoder(BatchTopKTrainingSAE):
    """BatchTopK whose encoder directions are never trained."""

    cfg: FrozenEncoderConfig

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.W_enc.requires_grad_(False)


for _class, _config in (
    (FrozenDecoder, FrozenDecoderConfig),
    (SoftFrozenDecoder, SoftFrozenDecoderConfig),
    (FrozenEncoder, FrozenEncoderConfig),
):
    register_sae_training_class(_config.architecture(), _class, _config)
