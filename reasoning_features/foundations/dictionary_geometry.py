"""How a dictionary's directions lie: each one's nearest neighbour, clusters of them, what two dictionaries
do not share.

The measures are those of OrtSAE (2509.22033). Their size depends on the width: in 128 dimensions even
random directions have near neighbours, so each stands beside what random directions give. Dictionaries are
decoder rows ``[s, d]``; leave dead latents out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from scipy.sparse import csr_matrix
from scipy.stats import beta
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import rows_at_once
from reasoning_features.dictionaries.evaluation import WIDE, best_cosines, gaussian_directions
from reasoning_features.diffing.presence import share_of
from reasoning_features.errors import UserError
from reasoning_features.statistics import Interval, bootstrap_mean, percentile_interval

Array = NDArray[np.float64]
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 12))
"""Ten cosines from which two latents are joined in a graph: from where random directions are joined often."""
PAPER_UNIQUE, PAPER_WIDTH = 0.2, 2304
"""A latent is unique below this cosine with all of another dictionary (OrtSAE), in Gemma-2-2B's stream."""
RANDOM_QUANTILE = 0.95
"""Share of random directions that are to count as unique beside a dictionary."""
RANDOM_DIRECTIONS = 2**13
"""Random directions that a quantile, and a share, is estimated from."""
RANDOM_DRAWS = 20
"""Random dictionaries that a dictionary is compared with."""


@torch.no_grad()
def added_directions(sae: SAE[Any]) -> Tensor:
    """What a unit of each latent adds to the reconstruction ``[s, d]``, however the decoder scales it."""
    origin = sae.decode(torch.zeros(1, sae.cfg.d_sae, device=sae.device))
    parts = torch.arange(sae.cfg.d_sae, device=sae.device).split(rows_at_once(sae))
    ones = (torch.nn.functional.one_hot(part, sae.cfg.d_sae).float() for part in parts)
    return torch.cat([(sae.decode(one) - origin).float().cpu() for one in ones])


def nearest_cosines(decoder: Tensor) -> Array:
    """For each direction ``[s, d]`` its largest cosine, with its sign, with another one of the dictionary.

    A direction of length 0 has cosine 0 with everything.

    Raises:
        UserError: fewer than two directions.
    """
    if len(decoder) < 2:
        raise UserError(
            f"A dictionary of {len(decoder)} latents has no neighbours to measure: give one with two live "
            "latents at least."
        )
    dtype = torch.float64 if len(decoder) ** 2 <= WIDE else torch.float32
    unit = torch.nn.functional.normalize(decoder.detach().to(dtype), dim=1)
    rows = max(1, WIDE // len(unit))
    found = []
    for start in range(0, len(unit), rows):
        cosines = unit[start : start + rows] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)  # a direction is no neighbour of its own
        found.append(cosines.max(1).values.double().cpu())
    return torch.cat(found).numpy()


def mean_cos_sim(decoder: Tensor, n_resamples: int = 2000, seed: int = 0) -> Interval:
    """MeanCosSim = mean_i max_{j≠i} cos(W_i, W_j), with its 95% interval over latents.

    Latents are resampled with the neighbours they have in the whole dictionary: a resampled dictionary
    would hold copies, which are neighbours at cosine 1.
    """
    return bootstrap_mean(nearest_cosines(decoder), n_resamples, seed)


def isotropic_directions(n: int, width: int, seed: int) -> Tensor:
    """``n`` directions ``[n, width]`` drawn uniformly on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(noise, dim=1)


def random_cos_sim(n: int, residual: Tensor, draws: int = RANDOM_DRAWS, seed: int = 0) -> pd.DataFrame:
    """MeanCosSim of as many random directions as a dictionary has, with 95% intervals over draws.

    Args:
        n: directions.
        residual: ``[m, d]`` activations, whose covariance the second kind of directions has.
        draws: random dictionaries of each kind.
        seed: of the first; the others count on.

    Returns:
        Rows of ``directions`` ("isotropic", "activations' covariance"), ``estimate``, ``low``, ``high``,
        ``n`` (draws).
    """
    width, seeds = residual.shape[1], range(seed, seed + draws)
    kinds = {
        "isotropic": [isotropic_directions(n, width, each) for each in seeds],
        "activations' covariance": [gaussian_directions(residual, n, each) for each in seeds],
    }
    rows = []
    for kind, dictionaries in kinds.items():
        means = [nearest_cosines(each).mean() for each in dictionaries]
        found = percentile_interval(float(np.mean(means)), means, draws)
        rows.append((kind, found.estimate, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=["directions", "estimate", "low", "high", "n"])


def clustering(
    decoder: Tensor, thresholds: Sequence[float] = THRESHOLDS, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Clustering coefficient of the graph that joins latents at a cosine or nearer, by threshold.

    The mean over latents of the share of their pairs of neighbours that are neighbours too; a latent with
    fewer than two neighbours counts 0. In a graph with as many edges laid at random it would be the share of
    pairs that are joined.

    Args:
        decoder: ``[s, d]``.
        thresholds: cosines.
        n_resamples: of latents, with the coefficients they have in the whole graph.
        seed: of the resamples.

    Returns:
        Rows of ``threshold``, ``estimate``, ``low``, ``high`` (95%), ``joined`` (share of pairs), ``n``.
    """
    unit = torch.nn.functional.normalize(decoder.detach().double(), dim=1)
    cosines = (unit @ unit.T).cpu().numpy()
    np.fill_diagonal(cosines, -np.inf)
    rows = []
    for threshold in thresholds:
        joined = csr_matrix(cosines >= threshold, dtype=np.float64)
        degree = np.asarray(joined.sum(1)).ravel()
        closed = np.asarray((joined @ joined).multiply(joined).sum(1)).ravel()
        pairs = degree * (degree - 1)
        local = np.divide(closed, pairs, out=np.zeros_like(closed), where=pairs > 0)
        found = bootstrap_mean(local, n_resamples, seed)
        share = degree.sum() / (len(unit) * (len(unit) - 1))
        rows.append((threshold, found.estimate, found.low, found.high, share, found.n))
    return pd.DataFrame(rows, columns=["threshold", "estimate", "low", "high", "joined", "n"])


def as_rare(cosine: float, width: int, other_width: int) -> float:
    """The cosine that random directions reach as rarely in one width as ``cosine`` in another.

    Of a random direction in d dimensions, (1 + cos) / 2 has the distribution Beta((d − 1)/2, (d − 1)/2).

    Args:
        cosine: in ``other_width`` dimensions.
        width: dimensions of the cosine that is sought.
        other_width: dimensions of the given one.
    """
    halves = (other_width - 1) / 2, (width - 1) / 2
    chance = beta.cdf((1 - cosine) / 2, halves[0], halves[0])  # the lower tail keeps its digits
    return float(1 - 2 * beta.ppf(chance, halves[1], halves[1]))


def uniqueness(decoder: Tensor, other: Tensor, seed: int = 0) -> pd.DataFrame:
    """Share of a dictionary's latents that another lacks: no direction of it at a cosine or nearer.

    At three cosines, because the paper's lies among random directions' in 128 dimensions:

    - "paper": 0.2;
    - "as rare": what random directions reach as rarely in this width as 0.2 in the paper's;
    - "random": below which 95% of random directions lie beside the other dictionary, so that a latent counts
      as shared once it is nearer than chance.

    Args:
        decoder: ``[s, d]``.
        other: ``[r, d]`` the other dictionary.
        seed: of the random directions.

    Returns:
        Rows of ``threshold`` (the name), ``cosine``, ``estimate``, ``low``, ``high`` (95%, Wilson), ``n``,
        and ``random directions``: the share that is unique of random directions, others than those the
        quantile was taken from.

    Raises:
        UserError: dictionaries of two widths.
    """
    width = decoder.shape[1]
    if other.shape[1] != width:
        raise UserError(
            f"The dictionaries are of widths {width} and {other.shape[1]}: give two of one model's stream."
        )
    first, second = (
        best_cosines(isotropic_directions(RANDOM_DIRECTIONS, width, each), other) for each in (seed, seed + 1)
    )
    cosines = {
        "paper": PAPER_UNIQUE,
        "as rare": as_rare(PAPER_UNIQUE, width, PAPER_WIDTH),
        "random": float(np.quantile(first, RANDOM_QUANTILE)),
    }
    nearest = best_cosines(decoder, other)
    rows = []
    for name, cosine in cosines.items():
        found = share_of(nearest < cosine)
        by_chance = float((second < cosine).mean())
        rows.append((name, cosine, found.estimate, found.low, found.high, found.n, by_chance))
    columns = ["threshold", "cosine", "estimate", "low", "high", "n", "random directions"]
    return pd.DataFrame(rows, columns=columns)
