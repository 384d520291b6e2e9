"""What determines a trained autoencoder besides its activations: its recipe, and what SAELens makes of it.

"relu" is the paper's architecture (loss ‖x − x̂‖² + λ Σ_i f_i ‖W_dec,i‖₂). SAELens has "topk", "batchtopk",
"jumprelu" and "matryoshka"; "ortsae" and the frozen baselines are :mod:`reasoning_features.architectures`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import SAEMetadata

from reasoning_features.architectures import (
    FrozenDecoder,
    FrozenDecoderConfig,
    FrozenEncoder,
    FrozenEncoderConfig,
    OrtSAE,
    OrtSAEConfig,
    SoftFrozenDecoder,
    SoftFrozenDecoderConfig,
)

Architecture = Literal[
    "relu", "topk", "batchtopk", "jumprelu", "matryoshka", "ortsae",
    "frozen_decoder", "soft_frozen_decoder", "frozen_encoder",
]  # fmt: skip
AUXILIARY = 1 / 32
"""Weight of the loss that revives dead features, of all that are BatchTopK (α of OrtSAE's paper)."""
TOPK_AUXILIARY = 1.0
"""The same of TopK, as SAELens has it."""
NESTED = (16, 8, 4, 2, 1)
"""Matryoshka's levels: the first 1/16 of the features, the first 1/8, …, all."""


def label_of(architecture: str, directions: str) -> str:
    """The architecture, with where its directions start where that is not usual: "frozen_decoder-iso"."""
    return architecture if directions == "default" else f"{architecture}-{directions}"


@dataclass(frozen=True)
class Recipe:
    """What determines a trained SAE besides its activations.

    Attributes:
        architecture: one of ``Architecture``.
        d_sae: number of features.
        tokens: activations seen in training, repeats included.
        learning_rate: Adam's, before its decay.
        batch: activations a step.
        seed: sets the start and the order of the data. The model's name and the architecture go into it too:
            two SAEs that start alike would look alike for that reason alone.
        k: active features; their mean over a batch where the architecture is BatchTopK, and what "jumprelu"
            is penalised for departing from.
        l1: λ, in units of the scaled input ("relu"); weight of the L0 penalty ("jumprelu").
        directions: where decoder directions start: as SAELens draws them, uniform on the sphere ("iso"), or
            Gaussian with the activations' covariance ("cov").
        gamma, chunks, every: of OrtSAE's penalty.
        cap: least cosine of a soft-frozen direction with its start.
        auxiliary: weight of the loss that revives dead features, of TopK and all that are BatchTopK; None for
            ``TOPK_AUXILIARY`` and ``AUXILIARY``.
    """

    architecture: Architecture
    d_sae: int
    tokens: int
    learning_rate: float
    batch: int = 2048
    seed: int = 0
    k: float = 16
    l1: float = 5.0
    directions: Literal["default", "iso", "cov"] = "default"
    gamma: float = 0.25
    chunks: int = 1
    every: int = 1
    cap: float = 0.8
    auxiliary: float | None = None

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.tokens // self.batch

    @property
    def label(self) -> str:
        """As :func:`label_of` has it."""
        return label_of(self.architecture, self.directions)

    def start(self, model_name: str) -> int:
        """The seed of the random streams for a model."""
        text = f"{model_name}/{self.architecture}/{self.seed}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    @property
    def told(self) -> dict[str, Any]:
        """What an SAE's metadata keeps: what every architecture has, and of the rest what is not usual."""
        usual = {field.name: field.default for field in fields(self)}
        some = ("directions", "gamma", "chunks", "every", "cap", "auxiliary")
        return {n: v for n, v in asdict(self).items() if n not in some or v != usual[n]}


def new_autoencoder(recipe: Recipe, width: int, model_name: str, metadata: SAEMetadata) -> TrainingSAE[Any]:
    """SAELens' training SAE at a random start, drawn from torch's global stream.

    Args:
        recipe: architecture and size.
        width: of the activations.
        model_name: what they are of.
        metadata: kept in the SAE.
    """
    common: dict[str, Any] = {
        "d_in": width,
        "d_sae": recipe.d_sae,
        "normalize_activations": "expected_average_only_in",
        "metadata": metadata,
    }
    warm_up = max(1, recipe.steps // 20)
    usual = TOPK_AUXILIARY if recipe.architecture == "topk" else AUXILIARY
    revival = {"aux_loss_coefficient": usual if recipe.auxiliary is None else recipe.auxiliary}
    batchwise = common | revival | {"k": float(recipe.k)}
    match recipe.architecture:
        case "relu":
            penalty = {"l1_coefficient": recipe.l1, "l1_warm_up_steps": warm_up}
            config = StandardTrainingSAEConfig(**common, **penalty, apply_b_dec_to_input=False)
            return StandardTrainingSAE(config)
        case "topk":
            return TopKTrainingSAE(TopKTrainingSAEConfig(**common, **revival, k=int(recipe.k)))
        case "jumprelu":
            penalty = {"l0_coefficient": recipe.l1, "l0_warm_up_steps": warm_up, "target_l0": recipe.k}
            config = JumpReLUTrainingSAEConfig(**common, **penalty, jumprelu_sparsity_loss_mode="quadratic")
            return JumpReLUTrainingSAE(config)
        case "batchtopk":
            return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**batchwise))
        case "matryoshka":
            widths = sorted({max(1, recipe.d_sae // part) for part in NESTED})
            config = MatryoshkaBatchTopKTrainingSAEConfig(**batchwise, matryoshka_widths=widths)
            return MatryoshkaBatchTopKTrainingSAE(config)
        case "ortsae":
            batchwise |= {"gamma": recipe.gamma, "chunks": recipe.chunks, "every": recipe.every}
            return OrtSAE(OrtSAEConfig(**batchwise, partition_seed=recipe.start(model_name)))
        case "frozen_decoder":
            return FrozenDecoder(FrozenDecoderConfig(**batchwise))
        case "soft_frozen_decoder":
            return SoftFrozenDecoder(SoftFrozenDecoderConfig(**batchwise, cap=recipe.cap))
        case "frozen_encoder":
            return FrozenEncoder(FrozenEncoderConfig(**batchwise))
