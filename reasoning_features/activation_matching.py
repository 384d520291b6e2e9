"""How alike the features of two dictionaries are by what they do: their activations on the same tokens.

A dictionary may lack a direction and still have a feature that fires where this one does, and the other
way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class JointMoments:
    """Sums over tokens of two dictionaries' activations a ``[n, s]`` and b ``[n, r]``, float64.

    Attributes:
        count: tokens.
        totals: Σ a ``[s]`` and Σ b ``[r]``.
        squares: Σ a² ``[s]`` and Σ b² ``[r]``.
        products: Σ a b ``[s, r]``.
    """

    count: int
    totals: tuple[Array, Array]
    squares: tuple[Array, Array]
    products: Array

    @staticmethod
    def of(pairs: Iterable[tuple[Tensor, Tensor]]) -> JointMoments:
        """The moments of activations that come in parts, each part's tokens in one order on both sides.

        Raises:
            UserError: there are no tokens.
        """
        sums: list[Any] = []
        count = 0
        for a, b in pairs:
            part = [side.sum(0, dtype=torch.float64) for side in (a, b)]
            part += [side.square().sum(0, dtype=torch.float64) for side in (a, b)]
            part.append((a.T @ b).double())
            sums = part if not sums else [held + new for held, new in zip(sums, part, strict=True)]
            count += len(a)
        if not count:
            raise UserError("There are no tokens to compare activations on: give a corpus that is not empty.")
        total_a, total_b, square_a, square_b, products = (value.cpu().numpy() for value in sums)
        return JointMoments(count, (total_a, total_b), (square_a, square_b), products)

    def correlation(self) -> Array:
        """Pearson correlation of every feature with every other ``[s, r]``; 0 where one never varies."""
        means = [total / self.count for total in self.totals]
        spreads = [
            np.sqrt(np.maximum(square / self.count - mean**2, 0))
            for square, mean in zip(self.squares, means, strict=True)
        ]
        return _divided(self.products / self.count - np.outer(*means), np.outer(*spreads))

    def cosine(self) -> Array:
        """Cosine of the activations over tokens ``[s, r]``, the paper's over layers; 0 for a dead one."""
        return _divided(self.products, np.sqrt(np.outer(*self.squares)))


@torch.no_grad()
def compare(sae: Any, residual: Tensor, other: Any, its: Tensor, size: int = 8192) -> JointMoments:
    """Compare what two dictionaries do on the same tokens.

    Args:
        sae: one dictionary, on raw activations.
        residual: ``[n, d]`` what it reads.
        other: another one, perhaps of another model or layer.
        its: ``[n, d']`` what that one reads, at the same tokens in the same order.
        size: tokens in one pass.

    Raises:
        UserError: different numbers of tokens, or none.
    """
    if len(residual) != len(its):
        raise UserError(f"Activations of {len(residual)} and {len(its)} tokens: give the same tokens.")
    parts = zip(residual.split(size), its.split(size), strict=True)
    return JointMoments.of((sae.encode(a), other.encode(b)) for a, b in parts)


def largest_correlations(
    sae: Any, residual: Tensor, others: Mapping[str, tuple[Any, Tensor]]
) -> pd.DataFrame:
    """Each feature's largest correlation with any of other dictionaries: a row a feature, a column each.

    Args:
        sae: the dictionary, on raw activations.
        residual: ``[n, d]`` what it reads.
        others: name → a dictionary and what it reads at the same tokens.
    """
    bar = tqdm(others.items(), desc="Matching activations", unit="dictionary")
    return pd.DataFrame(
        {name: compare(sae, residual, *other).correlation().max(axis=1) for name, other in bar}
    )


def _divided(values: Array, scale: Array) -> Array:
    return np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
