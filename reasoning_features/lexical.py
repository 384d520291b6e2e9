"""How far features, and their ranking, are explained by which token they stand on and nothing else.

A feature that fires on a word can have a high ReasonScore without anything to do with reasoning (2601.05679).
Two measures: how well the firing of a feature is told by the identity of a single token (precision and recall
of the best token), and the ReasonScore that would come out if every activation were replaced by the
feature's mean activation on that token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.corpora import Corpus
from reasoning_features.errors import UserError
from reasoning_features.reason_score import FeatureStatistics
from reasoning_features.word_masks import TokenSets

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClassStatistics:
    """Sums of every feature by class of token.

    Attributes:
        counts: tokens of each class ``[v]``.
        sums: summed activations ``[v, f]``.
        active: tokens of the class on which the feature is active ``[v, f]``.
    """

    counts: Array
    sums: Array
    active: Array


def token_classes(corpus: Corpus, context: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Each token's class, and what the classes are: the token with the ``context`` tokens before it.

    Returns:
        Class of each token ``[n_tokens]``, and the ids of each class ``[v, context + 1]`` (the token last; -1
        before a document's beginning).
    """
    columns = []
    place = np.arange(corpus.n_tokens) - np.repeat(corpus.starts[:-1], np.diff(corpus.starts))
    for back in range(context, -1, -1):
        column = np.roll(corpus.tokens, back)
        columns.append(np.where(place >= back, column, -1))
    ids, classes = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    return classes.reshape(-1).astype(np.int64), ids.astype(np.int32)


class ClassSums:
    """Accumulates :class:`ClassStatistics` (an accumulator of :func:`reason_score.one_pass`).

    Args:
        classes: each token's class ``[n_tokens]``.
        n_classes: number of classes.
    """

    def __init__(self, classes: NDArray[np.int64], n_classes: int) -> None:
        self._classes = torch.from_numpy(classes)
        self._counts = torch.zeros(n_classes, dtype=torch.float64)
        self._sums: Tensor | None = None
        self._active: Tensor | None = None

    def update(self, features: Tensor, positions: Tensor) -> None:
        """Add the activations ``features`` ``[n, f]`` of the tokens at ``positions`` ``[n]``."""
        classes = self._classes[positions.cpu()]
        self._counts += torch.bincount(classes, minlength=len(self._counts))
        n = len(classes)
        membership = torch.sparse_coo_tensor(
            torch.stack([classes, torch.arange(n)]),
            torch.ones(n, dtype=torch.float64),
            (len(self._counts), n),
            check_invariants=False,
        ).to(features.device)
        values = features.to(torch.float64)
        sums, active = membership @ values, membership @ (values > 0).to(torch.float64)
        self._sums = sums if self._sums is None else self._sums + sums
        self._active = active if self._active is None else self._active + active

    def result(self) -> ClassStatistics:
        """What was accumulated.

        Raises:
            UserError: nothing was.
        """
        if self._sums is None or self._active is None:
            raise UserError("No activations came through: the corpus is empty, ask for more documents.")
        return ClassStatistics(self._counts.numpy(), self._sums.cpu().numpy(), self._active.cpu().numpy())


def best_token(statistics: ClassStatistics) -> pd.DataFrame:
    """For each feature the class of token whose presence best tells that the feature is active.

    Precision is the share of a feature's active tokens that are of the class; recall the share of the class'
    tokens on which the feature is active; the best class has the highest F1. A feature that is never active
    has precision, recall and F1 0.

    Returns:
        One row a feature: ``feature``, ``token_class``, ``precision``, ``recall``, ``f1``.
    """
    active = statistics.active
    fired = active.sum(axis=0)
    total = fired[None, :] + statistics.counts[:, None]
    f1 = np.divide(2 * active, total, out=np.zeros_like(active), where=total > 0)
    best = f1.argmax(axis=0)
    features = np.arange(active.shape[1])
    hits = active[best, features]
    return pd.DataFrame(
        {
            "feature": features,
            "token_class": best,
            "precision": hits / np.maximum(fired, 1),
            "recall": hits / np.maximum(statistics.counts[best], 1),
            "f1": f1[best, features],
        }
    )


def identity_statistics(
    statistics: ClassStatistics, classes: NDArray[np.int64], sets: TokenSets
) -> FeatureStatistics:
    """The statistics of features that depend on the token's class alone.

    Every activation is replaced by its feature's mean over tokens of that class, so the sums over a set of
    tokens are Σ_v (tokens of class v in the set) · (mean activation on v).
    """
    means = statistics.sums / np.maximum(statistics.counts, 1)[:, None]
    n_classes = len(statistics.counts)
    counts = np.stack([np.bincount(classes[mask], minlength=n_classes) for mask in sets.masks]).astype(float)
    return FeatureStatistics(sets.names, counts.sum(axis=1), counts @ means)
