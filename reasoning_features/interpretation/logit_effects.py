"""What a feature writes into the next token's logits: W_U (γ ⊙ W_dec,i), the logit lens.

γ is the scale of the final norm. An RMSNorm divides by the stream's root mean square and does not centre, so
up to that positive number this is the feature's direct path to the logits; what later blocks make of the
feature is left out. Units: logits for one unit of activation where the stream's root mean square is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject


@torch.no_grad()
def logit_effects(subject: Subject, directions: Tensor) -> Tensor:
    """Effects ``[n, vocabulary]`` float32 of directions ``[n, d]`` in the residual stream.

    Raises:
        UserError: the model's final norm is no RMSNorm (it has a bias, or no scale).
    """
    norm: Any = getattr(subject.model.base_model, "norm", None)
    if getattr(norm, "weight", None) is None or getattr(norm, "bias", None) is not None:
        raise UserError(
            f"{subject.name} does not end in an RMSNorm with a scale: its logit effects are not defined here."
        )
    unembedding: Any = subject.model.get_output_embeddings().weight
    scaled = directions.to(norm.weight.device).float() * norm.weight.float()
    return scaled @ unembedding.float().T


def top_logits(
    subject: Subject, sae: Any, features: Sequence[int] | NDArray[Any], n: int = 10
) -> pd.DataFrame:
    """The tokens that features raise and lower most.

    Args:
        subject: the model.
        sae: its autoencoder.
        features: which features.
        n: tokens on each side.

    Returns:
        ``feature``, ``side`` ("positive", "negative"), ``rank`` (from 1), ``token`` (its id), ``text``,
        ``value``. Equal values keep the order of ids.
    """
    tables = []
    for feature in features:
        effect = logit_effects(subject, sae.W_dec[[int(feature)]])[0].cpu()
        for side, sign in (("positive", 1), ("negative", -1)):
            order = torch.argsort(-sign * effect, stable=True)[:n]
            tokens = order.tolist()
            text = [subject.tokenizer.decode([token]) for token in tokens]
            found = {"rank": range(1, len(tokens) + 1), "token": tokens, "text": text}
            found["value"] = effect[order].tolist()
            tables.append(pd.DataFrame({"feature": int(feature), "side": side} | found))
    columns = ["feature", "side", "rank", "token", "text", "value"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
