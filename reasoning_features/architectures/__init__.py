"""Architectures that SAELens does not have: importing this registers them there.

All are BatchTopK in what they compute, so an autoencoder that has been trained is saved as SAELens saves
BatchTopK, a JumpReLU of one threshold, and plain SAELens loads it.
"""

from reasoning_features.architectures.frozen import (
    FrozenDecoder,
    FrozenDecoderConfig,
    FrozenEncoder,
    FrozenEncoderConfig,
    SoftFrozenDecoder,
    SoftFrozenDecoderConfig,
)
from reasoning_features.architectures.ortsae import OrtSAE, OrtSAEConfig

__all__ = [
    "FrozenDecoder",
    "FrozenDecoderConfig",
    "FrozenEncoder",
    "FrozenEncoderConfig",
    "OrtSAE",
    "OrtSAEConfig",
    "SoftFrozenDecoder",
    "SoftFrozenDecoderConfig",
]
