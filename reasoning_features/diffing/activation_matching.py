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

from reasoning_features.dictionaries.autoencoder import rows_at_once
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
def compare(
    sae: Any,
    residual: Tensor,
    other: Any,
    its: Tensor,
    size: int = 8192,
    features: NDArray[np.int64] | None = None,
) -> JointMoments:
    """Compare what two dictionaries do on the same tokens.

    Args:
        sae: one dictionary, on raw activations.
        residual: ``[n, d]`` what it reads.
        other: another one, perhaps of another model or layer.
        its: ``[n, d']`` what that one reads, at the same tokens in the same order.
        size: the most tokens in one pass.
        features: those of ``sae`` to compare; by default all.

    Raises:
        UserError: different numbers of tokens, or none.
    """
    if len(residual) != len(its):
        raise UserError(f"Activations of {len(residual)} and {len(its)} tokens: give the same tokens.")
    some = slice(None) if features is None else torch.from_numpy(features)
    held = min(size, rows_at_once(sae, other))
    parts = zip(residual.split(held), its.split(held), strict=True)
    return JointMoments.of(
        (sae.encode(a.to(sae.device))[:, some], other.encode(b.to(other.device))) for a, b in parts
    )


@torch.no_grad()
def own_correlation(sae: Any, residual: Tensor, its: Tensor, size: int = 8192) -> Array:
    """Pearson correlation of each feature with itself where it reads something else ``[s]``.

    0 for a feature that never varies. Memory grows with the features, not with their square.

    Args:
        sae: the dictionary, on raw activations.
        residual: ``[n, d]`` what it reads.
        its: ``[n, d]`` what else it reads, at the same tokens in the same order.
        size: the most tokens in one pass.

    Raises:
        UserError: different numbers of tokens, or none.
    """
    if len(residual) != len(its) or not len(its):
        raise UserError(f"Activations of {len(residual)} and {len(its)} tokens: give the same tokens.")
    sums = np.zeros((5, sae.cfg.d_sae))
    held = min(size, rows_at_once(sae))
    for one, two in zip(residual.split(held), its.split(held), strict=True):
        a, b = sae.encode(one.to(sae.device)), sae.encode(two.to(sae.device))
        part = [value.sum(0, dtype=torch.float64) for value in (a, b, a.square(), b.square(), a * b)]
        sums += torch.stack(part).cpu().numpy()
    mean_a, mean_b, square_a, square_b, product = sums / len(residual)
    spread = np.sqrt(np.maximum(square_a - mean_a**2, 0) * np.maximum(square_b - mean_b**2, 0))
    return _divided(product - mean_a * mean_b, spread)


def largest_correlations(
    sae: Any,
    residual: Tensor,
    others: Mapping[str, tuple[Any, Tensor]],
    features: NDArray[np.int64] | None = None,
) -> pd.DataFrame:
    """Each feature's largest correlation with any of other dictionaries: a row a feature, a column each.

    Args:
        sae: the dictionary, on raw activations.
        residual: ``[n, d]`` what it reads.
        others: name → a dictionary and what it reads at the same tokens.
        features: the features to match, the rest being nan; by default all.
    """
    some = np.arange(sae.cfg.d_sae) if features is None else np.unique(features)
    found = pd.DataFrame(index=range(sae.cfg.d_sae), columns=list(others), dtype=float)
    for name, other in tqdm(others.items(), desc="Matching activations", unit="dictionary"):
        its, reads = other
        moments = compare(sae, residual, its, reads, features=some)
        found.loc[some, name] = moments.correlation().max(axis=1)
    return found


def _divided(values: Array, scale: Array) -> Array:
    return np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
