"""Data whose features are known, so that what an autoencoder finds of them can be counted.

After *Sanity Checks for Sparse Autoencoders* (2602.14111): an activation is x = Σ_i b_i c_i f_i, with
features f_i uniform on the unit sphere, b_i ~ Bernoulli(p_i) and c_i ~ LogNormal(0, 0.25), all independent.
The paper has 3,200 features in 100 dimensions, 20 of them active on average: p_i = 0.00625 for all, or
p_i ~ LogUniform(10^-5.5, 10^-1.2).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
from torch import Tensor
from torch.sparse import check_sparse_tensor_invariants

from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.diffing.presence import share_of
from reasoning_features.errors import UserError

Array = NDArray[np.float64]
Found = NDArray[np.bool_]
Firing = Literal["equal", "unequal"]
DECADES = 4.3
"""Decades of firing probability in the unequal case: 10^-5.5 to 10^-1.2 in the paper."""
SPREAD = 0.25
"""Standard deviation of the logarithm of a magnitude."""
THRESHOLD = 0.8
"""Cosine above which the paper counts a feature as recovered."""


@dataclass(frozen=True)
class World:
    """Where activations come from.

    Attributes:
        width: dimensions of an activation, d.
        features: number of features, m.
        active: how many of them are active on an activation, in expectation.
        firing: how probability is shared out among features: equally, or LogUniform over 4.3 decades whose
            top is such that ``active`` are active.
        seed: sets features, probabilities and activations. Two worlds that differ in ``firing`` alone have
            the same features.

    Raises:
        UserError: a feature would be active with a probability outside ]0, 1].
    """

    width: int = 50
    features: int = 800
    active: float = 10.0
    firing: Firing = "equal"
    seed: int = 0

    def __post_init__(self) -> None:
        highest = self.probabilities.max()
        if not 0 < highest <= 1:
            raise UserError(
                f"With {self.active:g} of {self.features} features active a feature's probability would be "
                f"up to {highest:.3g}: choose active between 0 and a tenth of the features."
            )

    @property
    def directions(self) -> Tensor:
        """The features ``[m, d]``, of length 1."""
        return self._dictionary().feature_vectors.detach()

    @property
    def probabilities(self) -> Array:
        """The probability ``[m]`` with which each feature is active; they sum to ``active``."""
        relative = np.ones(self.features)
        if self.firing == "unequal":
            drawn = np.random.default_rng(self._seed("probabilities"))
            relative = 10 ** -(DECADES * drawn.random(self.features))
        return self.active * relative / relative.sum()

    def batches(self, size: int, stream: str = "training") -> Iterator[Tensor]:
        """Endless batches ``[size, d]`` of raw activations, float32; each stream is another one.

        A batch is a function of the world, the stream and its number alone: torch's global random state,
        which SAELens draws from, has no part in it and is left as it was.
        """
        generator = ActivationGenerator(
            self.features,
            torch.from_numpy(self.probabilities).float(),
            modify_activations=_log_normal,
            use_sparse_tensors=True,
        )
        dictionary = self._dictionary()
        for number in itertools.count():
            with torch.no_grad(), torch.random.fork_rng(devices=[]), check_sparse_tensor_invariants(False):
                torch.manual_seed(self._seed(stream, number))
                batch = dictionary(generator.sample(size))
            yield batch

    def sample(self, n: int, stream: str) -> Tensor:
        """The first ``n`` activations ``[n, d]`` of a stream: one that is not trained on is held out."""
        return next(self.batches(n, stream))

    def _dictionary(self) -> FeatureDictionary:
        return FeatureDictionary(self.features, self.width, initializer=None, seed=self._seed("directions"))

    def _seed(self, purpose: str, number: int = 0) -> int:
        text = f"{self.width}/{self.features}/{self.seed}/{purpose}/{number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _log_normal(activations: Tensor) -> Tensor:
    """The same sparse activations with magnitudes drawn from LogNormal(0, 0.25) where a feature is active."""
    held = activations.coalesce()
    magnitudes = torch.empty_like(held.values()).log_normal_(0, SPREAD)
    return torch.sparse_coo_tensor(held.indices(), magnitudes, held.shape)


def recovered(decoder: Tensor, features: Tensor, threshold: float = THRESHOLD) -> Found:
    """Which features ``[m, d]`` an autoencoder has found: those with a decoder direction at a cosine above
    ``threshold``.

    Args:
        decoder: ``[s, d]`` decoder directions. The sign counts: a feature's opposite is not that feature.
        features: the true ones.
        threshold: the cosine, 0.8 in the paper.
    """
    return best_cosines(features, decoder) > threshold


def recovery_by_frequency(found: Found, probabilities: Array, bins: int = 10) -> pd.DataFrame:
    """Share of features that were recovered by how often they are active.

    Args:
        found: ``[m]`` which were, from :func:`recovered`.
        probabilities: ``[m]`` how often each is active.
        bins: bins of equally many features; there is one where all features are equally frequent.

    Returns:
        A row a bin, the rarest first: ``from``, ``to`` (least and greatest probability), ``features`` and
        ``found`` (their numbers), ``recovered`` (share), and ``low`` and ``high``, its 95% interval by
        Wilson.
    """
    parts = min(bins, len(np.unique(probabilities)))
    rows = []
    for held in np.array_split(np.argsort(probabilities, kind="stable"), parts):
        share = share_of(found[held])
        ends = {"from": probabilities[held[0]], "to": probabilities[held[-1]]}
        counts = {"features": share.n, "found": int(found[held].sum())}
        rows.append(ends | counts | {"recovered": share.estimate, "low": share.low, "high": share.high})
    return pd.DataFrame(rows)
