"""How architectures, frozen baselines, floors and ceilings are called in figures and tables."""

from __future__ import annotations

NAMES = {
    "relu": "ReLU",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "matryoshka": "Matryoshka",
    "ortsae": "OrtSAE",
    "frozen_decoder": "frozen decoder",
    "soft_frozen_decoder": "soft-frozen decoder",
    "frozen_encoder": "frozen encoder",
}
"""Architecture → its name."""
CEILING, FLOOR = "residual stream", "mean reconstruction"
"""Dictionaries that measures stand between: nothing is lost, and nothing is kept but the mean."""


def name_of(label: str) -> str:
    """The name of an architecture's label: "frozen_decoder-cov" is the frozen decoder (cov).

    Of labels that begin "iso" is left out, the sphere being where a baseline starts unless it is said.
    """
    architecture, _, start = label.partition("-")
    return NAMES[architecture] + ("" if start in ("", "iso") else f" ({start})")
