"""How far features, and their ranking, are explained by which token they stand on and nothing else.

A feature that fires on a word can have a high ReasonScore without anything to do with reasoning (2601.05679).
Two measures: how well the firing of a feature is told by the identity of a single token (precision and recall
of the best token), and the ReasonScore that would come out if every activation were replaced by the
feature's mean activation on that token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.scoring.feature_statistics import NOTHING_READ, FeatureStatistics
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import TokenSets

Array = NDArray[np.float64]


def token_classes(corpus: Corpus, context: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Each token's class, and what the classes are: the token with the ``context`` tokens before it.

    Returns:
        Class of each token ``[n_tokens]``, and the ids of each class ``[v, context + 1]`` (the token last; -1
        before a document's beginning).
    """
    place = corpus.position_of
    size = int(corpus.tokens.max()) + 2
    keys = np.zeros(corpus.n_tokens, dtype=np.int64)  # ids as the digits of one number, the token's own last
    for back in range(context, -1, -1):
        keys = keys * size + np.where(place >= back, np.roll(corpus.tokens, back), -1) + 1
    found, classes = np.unique(keys, return_inverse=True)
    ids = [found // size**back % size - 1 for back in range(context, -1, -1)]
    return classes.reshape(-1).astype(np.int64), np.stack(ids, axis=1).astype(np.int32)


class BestTokens:
    """Finds for each feature the class of token whose presence best tells that the feature is active.

    An accumulator of :func:`reasoning_features.scoring.feature_statistics.one_pass`. It counts the tokens of
    every class on which every feature is active, where there are any. Where such pairs are more than
    ``most``, each feature goes on with its best classes so far, ``most`` / 2 pairs in all: memory does not
    grow with tokens (16 bytes a pair, four times as much while pairs are sorted), and what is lost are
    classes that tell little.

    Args:
        classes: each token's class ``[n_tokens]``.
        n_classes: number of classes.
        most: pairs of a class and a feature that are counted at once.
    """

    def __init__(self, classes: NDArray[np.int64], n_classes: int, most: int = 2**23) -> None:
        self._classes = torch.from_numpy(classes)
        self._sizes = torch.zeros(n_classes, dtype=torch.int64)
        self._most = most
        self._fired: Tensor | None = None
        self._pairs: list[Tensor] = []  # feature · n_classes + class, each list item without duplicates
        self._hits: list[Tensor] = []

    def update(self, features: Tensor, positions: Tensor) -> None:
        """Add the activations ``features`` ``[n, f]`` of the tokens at ``positions`` ``[n]``."""
        classes, active = self._classes[positions.cpu()], features > 0
        self._sizes += torch.bincount(classes, minlength=len(self._sizes))
        if self._fired is None:
            self._fired = torch.zeros(features.shape[1], dtype=torch.int64, device=features.device)
        self._fired += active.sum(0)
        token, feature = active.nonzero(as_tuple=True)
        pairs = feature * len(self._sizes) + classes.to(features.device)[token]
        found, hits = torch.unique(pairs, return_counts=True)
        self._pairs.append(found)
        self._hits.append(hits)
        if sum(len(part) for part in self._pairs[1:]) > self._most // 4:
            self._merge()

    @property
    def density(self) -> Array:
        """Share of tokens on which each feature is active ``[f]``.

        Raises:
            UserError: nothing came through.
        """
        return self._active().cpu().numpy() / max(int(self._sizes.sum()), 1)

    def result(self) -> pd.DataFrame:
        """One row a feature: ``feature``, ``token_class``, ``precision``, ``recall``, ``f1``.

        Precision is the share of a feature's active tokens that are of the class; recall the share of the
        class' tokens on which the feature is active; the best class has the highest F1, of equals it is the
        first. A feature that is never active has precision, recall and F1 0.

        Raises:
            UserError: nothing came through.
        """
        fired = self._active().cpu().numpy()
        self._merge()
        sizes = self._sizes.numpy()
        feature, label = np.divmod(self._pairs[0].cpu().numpy(), len(sizes))
        hits = self._hits[0].cpu().numpy()
        f1 = 2 * hits / (fired[feature] + sizes[label])
        highest = np.zeros(len(fired))
        np.maximum.at(highest, feature, f1)
        first = np.flatnonzero(f1 == highest[feature])[::-1]  # written last, so the first class stays
        best, most = np.zeros(len(fired), dtype=np.int64), np.zeros(len(fired))
        best[feature[first]], most[feature[first]] = label[first], hits[first]
        return pd.DataFrame(
            {
                "feature": np.arange(len(fired)),
                "token_class": best,
                "precision": most / np.maximum(fired, 1),
                "recall": most / np.maximum(sizes[best], 1),
                "f1": highest,
            }
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Counts of pairs, of active tokens and of classes."""
        fired = self._active()
        self._merge()
        held = {"fired": fired, "sizes": self._sizes, "pairs": self._pairs[0], "hits": self._hits[0]}
        return {name: values.cpu().numpy() for name, values in held.items()}

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Add another's :meth:`state`; pairs beyond ``most`` are dropped as within one pass."""
        given = {name: torch.from_numpy(values) for name, values in state.items()}
        self._sizes += given["sizes"]
        self._fired = given["fired"] if self._fired is None else self._fired + given["fired"]
        self._pairs.append(given["pairs"])
        self._hits.append(given["hits"])
        self._merge()

    def _active(self) -> Tensor:
        if self._fired is None:
            raise UserError(NOTHING_READ)
        return self._fired

    def _merge(self) -> None:
        """Adds up pairs that came more than once, and drops the least telling where there are too many."""
        pairs, order = torch.sort(torch.cat(self._pairs))
        hits = torch.cat(self._hits)[order]
        pairs, place = torch.unique_consecutive(pairs, return_inverse=True)
        hits = torch.zeros_like(pairs).index_add_(0, place, hits)
        if len(pairs) > self._most:
            kept = self._telling(pairs, hits)
            pairs, hits = pairs[kept], hits[kept]
        self._pairs, self._hits = [pairs], [hits]

    def _telling(self, pairs: Tensor, hits: Tensor) -> Tensor:
        """The pairs to go on with, in their order: as many of each feature, those of the highest F1."""
        fired = self._active()
        feature = pairs // len(self._sizes)
        sizes = self._sizes.to(pairs.device)[pairs % len(self._sizes)]
        f1 = 2 * hits.double() / (fired[feature] + sizes)
        order = torch.argsort(f1, descending=True, stable=True)
        order = order[torch.argsort(feature[order], stable=True)]
        counts = torch.bincount(feature, minlength=len(fired))
        begins = (counts.cumsum(0) - counts)[feature]  # pairs come by feature, in this order and in that
        rank = torch.arange(len(pairs), device=pairs.device) - begins
        return order[rank < max(1, self._most // 2 // len(fired))].sort().values


class IdentitySums:
    """Accumulates the statistics of features that depend on the token's class alone.

    Every activation is replaced by its feature's mean over tokens of that class. The sum over a set S is then
    Σ_v n_v(S) · mean_v = Σ_t [n_v(t)(S) / n_v(t)] f_t: a sum of the activations as they are, with weights
    known from the tokens, so no mean of a class has to be kept. An accumulator of
    :func:`reasoning_features.scoring.feature_statistics.one_pass`.

    Args:
        classes: each token's class ``[n_tokens]``.
        n_classes: number of classes.
        sets: what to sum over; the first holds every token that will come.
    """

    def __init__(self, classes: NDArray[np.int64], n_classes: int, sets: TokenSets) -> None:
        self._names = sets.names
        self._classes = torch.from_numpy(classes)
        inside = [np.bincount(classes[sets.mask(name)], minlength=n_classes) for name in sets.names]
        self._counts = np.array([float(counts.sum()) for counts in inside])
        whole = np.maximum(inside[0], 1)
        self._weights = torch.from_numpy(np.stack([counts / whole for counts in inside]))
        self._sums: Tensor | None = None

    def update(self, features: Tensor, positions: Tensor) -> None:
        """Add the activations ``features`` ``[n, f]`` of the tokens at ``positions`` ``[n]``."""
        weights = self._weights[:, self._classes[positions.cpu()]].to(features.device)
        sums = weights @ features.to(torch.float64)
        self._sums = sums if self._sums is None else self._sums + sums

    def state(self) -> dict[str, NDArray[Any]]:
        """The sums."""
        return {"sums": self.result().sums}

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Add another's :meth:`state`."""
        sums = torch.from_numpy(state["sums"])
        self._sums = sums if self._sums is None else self._sums + sums.to(self._sums.device)

    def result(self) -> FeatureStatistics:
        """What was accumulated.

        Raises:
            UserError: nothing was.
        """
        if self._sums is None:
            raise UserError(NOTHING_READ)
        return FeatureStatistics(self._names, self._counts, self._sums.cpu().numpy())
