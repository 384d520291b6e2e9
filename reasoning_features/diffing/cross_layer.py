"""Features over depth: one layer's features paired with another's, and called the same, perhaps, or
different.

The paper's two steps: decoder directions are paired one to one (the permutation with the largest summed
cosine), then each pair is judged by the cosine of its activations over tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.statistics import bootstrap_mean

Array = NDArray[np.float64]
Features = NDArray[np.int64]
VERDICTS = ("different", "maybe", "same")
SAME, MAYBE = 0.7, 0.5
"""The paper's: same above 0.7, maybe above 0.5, different up to 0.5."""
PAPER = pd.DataFrame(
    [
        (13, "chosen", 0.525, 0.14, 0.335, 200),
        (13, "random", 0.76, 0.09, 0.15, 100),
        (15, "chosen", 0.435, 0.17, 0.395, 200),
        (15, "random", 0.63, 0.13, 0.24, 100),
        (17, "chosen", 0.27, 0.17, 0.56, 200),
        (17, "random", 0.49, 0.13, 0.38, 100),
        (21, "chosen", 0.175, 0.235, 0.59, 200),
        (21, "random", 0.50, 0.09, 0.41, 100),
        (23, "chosen", 0.175, 0.22, 0.605, 200),
        (23, "random", 0.54, 0.15, 0.31, 100),
    ],
    columns=["layer", "group", *VERDICTS, "features"],
)
"""The paper's table: features of its layer 19, by the layer in which they are sought."""


def neighbours(layers: Iterable[int], layer: int) -> list[int]:
    """The nearest of some layers below a layer and above it, where there are any."""
    held = sorted(layers)
    return [*[n for n in held if n < layer][-1:], *[n for n in held if n > layer][:1]]


def pair_decoders(decoder: Tensor, other: Tensor) -> Features:
    """The partner of each direction ``[s]``, none used twice: the permutation of largest summed cosine.

    Args:
        decoder: ``[s, d]``.
        other: ``[r, d]``, r ≥ s.

    Raises:
        UserError: fewer directions on the other side, or of another width.
    """
    if other.shape[1] != decoder.shape[1] or len(other) < len(decoder):
        raise UserError(
            f"{len(decoder)} directions of width {decoder.shape[1]} cannot be paired with {len(other)} of "
            f"width {other.shape[1]}: give dictionaries of one size and width."
        )
    unit, others = (torch.nn.functional.normalize(d.detach().double(), dim=1) for d in (decoder, other))
    rows, columns = linear_sum_assignment((unit @ others.T).cpu().numpy(), maximize=True)
    partners = np.empty(len(decoder), dtype=np.int64)
    partners[rows] = columns
    return partners


def judged(cosines: Array) -> NDArray[np.int64]:
    """What each pair's cosine of activations says: index into :data:`VERDICTS` ``[s]``."""
    return (cosines > MAYBE).astype(np.int64) + (cosines > SAME)


def layer_table(cosines: Mapping[str, Array], groups: Mapping[str, Features], seed: int = 0) -> pd.DataFrame:
    """Shares of each group that are different, maybe the same and the same at every layer.

    Args:
        cosines: layer → cosine of activations of each feature with its partner there ``[s]``.
        groups: name → features.
        seed: of the resamples.

    Returns:
        Rows of ``layer``, ``group``, the three shares each with ``… low`` and ``… high`` (95%, features
        resampled), and ``features``.
    """
    rows = []
    for layer, values in cosines.items():
        for name, features in groups.items():
            verdicts = judged(values[features])
            row: dict[str, object] = {"layer": layer, "group": name}
            for code, verdict in enumerate(VERDICTS):
                share = bootstrap_mean(verdicts == code, seed=seed)
                row |= {verdict: share.estimate, f"{verdict} low": share.low, f"{verdict} high": share.high}
            rows.append(row | {"features": len(features)})
    return pd.DataFrame(rows)
