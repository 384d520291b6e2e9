"""What OrtSAE (2509.22033) judges dictionaries by: how their directions lie, and what they are composed of.

Decoders are rows ``[s, d]``; leave dead latents out. Sizes depend on the width: in 128 dimensions even random
directions have near neighbours, and a MetaSAE explains much of them, so each measure stands beside what as
many random directions give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import astuple
from io import StringIO
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
from sae_lens.config import SAETrainerConfig
from scipy.sparse import csr_matrix
from scipy.stats import beta
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.evaluation import best_cosines, cosines
from reasoning_features.dictionaries.training import AUXILIARY
from reasoning_features.diffing.presence import SAME, activation_correlation, share_of
from reasoning_features.residual_stream.activations import shuffled_batches
from reasoning_features.statistics import (
    Interval,
    bootstrap_mean,
    bootstrap_weights,
    independent_difference,
    percentile_interval,
)

Array = NDArray[np.float64]
NEIGHBOURS, COMPOSITION = "MeanCosSim", "composition (MetaSAE's explained variance)"
# ten cosines from which two latents are joined in a graph: from where random directions are joined often
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 12))
# a latent is unique below this cosine with all of another dictionary (OrtSAE), in Gemma-2-2B's stream
PAPER_UNIQUE, PAPER_WIDTH = 0.2, 2304
RANDOM_QUANTILE = 0.95  # share of random directions that are to count as unique beside a dictionary
RANDOM_DIRECTIONS = 2**13  # that a quantile, and a share, is estimated from
ACTIVE, FEWER = 4, 4  # a MetaSAE has so many active latents a row, and so many times fewer latents than rows
DEAD_AFTER = 100  # steps without activity after which a latent of a MetaSAE is dead
# of 512 rows, all at a step; five times as many explained 0.02 more of ReLU's rows, 0.003 of TopK's
STEPS, BATCH, LEARNING_RATE = 400, 2048, 3e-3


def geometry(decoders: Mapping[str, Tensor], seed: int = 0) -> pd.DataFrame:
    """MeanCosSim and composition of dictionaries, name → live directions ``[s, d]``: rows of ``metric``,
    ``dictionary``, ``estimate``, ``low``, ``high`` (95%), ``n``.

    MeanCosSim = mean_i max_{j≠i} cos(W_i, W_j). Latents are resampled with the neighbours they have in the
    whole dictionary: a resampled dictionary would hold copies, which are neighbours at cosine 1.
    """
    rows = []
    for name, decoder in tqdm(decoders.items(), desc="Geometry", unit="dictionary"):
        rows.append((NEIGHBOURS, name, *astuple(bootstrap_mean(nearest_cosines(decoder), seed=seed))))
        rows.append((COMPOSITION, name, *astuple(composition(decoder, seed=seed))))
    table = pd.DataFrame(rows, columns=["metric", "dictionary", "estimate", "low", "high", "n"])
    return table.sort_values("metric", kind="stable", ignore_index=True)


def nearest_cosines(decoder: Tensor) -> Array:
    """For each direction ``[s, d]`` its largest cosine, with its sign, with another one of the dictionary.

    A direction of length 0 has cosine 0 with everything.
    """
    nearest, start = [], 0
    for part in cosines(decoder, decoder):
        part.diagonal(start).fill_(-torch.inf)  # a direction is no neighbour of its own
        nearest.append(part.max(1).values.double().cpu())
        start += len(part)
    return torch.cat(nearest).numpy()


def isotropic_directions(n: int, width: int, seed: int) -> Tensor:
    """``n`` directions ``[n, width]`` drawn uniformly on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(noise, dim=1)


def composition(decoder: Tensor, seeds: Sequence[int] = (0, 1, 2), seed: int = 0) -> Interval:
    """How far a dictionary's directions are sums of a few others: lower is more atomic.

    A MetaSAE, BatchTopK with a quarter as many latents and four active ones a row, is trained on the rows,
    unit-normalised, from each of ``seeds``; composition is the fraction of their variance that it explains.
    The same arguments give the same bytes on the same machine; ``seed`` is the bootstrap's.
    """
    rows = torch.nn.functional.normalize(decoder.detach().float().cpu(), dim=1)
    error = np.stack([meta_errors(rows, each) for each in seeds])
    return explained(error, (rows - rows.mean(0)).double().square().sum(1).numpy(), seed)


def explained(error: Array, deviation: Array, seed: int = 0) -> Interval:
    """Fraction of variance explained, mean over MetaSAEs, with its 95% interval; both are resampled together.

    ``error`` ``[seeds, s]`` and ``deviation`` ``[s]`` are squared distances of each unit row from its
    reconstruction and from their mean.
    """
    seeds, rows = error.shape
    by_seed = 1 - error.sum(1) / deviation.sum()
    of_seeds = bootstrap_weights(seeds, 2000, seed) / seeds
    of_rows = bootstrap_weights(rows, 2000, seed + 1)
    unexplained = ((of_seeds @ error) * of_rows).sum(1) / (of_rows @ deviation)
    return percentile_interval(float(by_seed.mean()), 1 - unexplained, rows)


def meta_errors(rows: Tensor, seed: int) -> Array:
    """Squared distance ``[s]`` of unit rows ``[s, d]`` from what a MetaSAE trained on them makes of them."""
    batch, scale = min(BATCH, len(rows)), rows.shape[1] ** 0.5
    config = BatchTopKTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=len(rows) // FEWER,
        k=ACTIVE,
        aux_loss_coefficient=AUXILIARY,
        normalize_activations="none",
    )
    schedule = SAETrainerConfig(
        total_training_samples=STEPS * batch,
        train_batch_size_samples=batch,
        lr=LEARNING_RATE,
        lr_end=0.0,
        lr_decay_steps=STEPS // 5,
        dead_feature_window=DEAD_AFTER,
    )
    scaled = rows * scale  # inputs of norm √d, for which SAELens' learning rates are meant
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        meta = BatchTopKTrainingSAE(config)
    meta.b_dec.data = scaled.mean(0)
    trainer: SAETrainer[Any, Any] = SAETrainer(
        cfg=schedule, sae=meta, data_provider=shuffled_batches(scaled, batch, seed)
    )
    with redirect_stderr(StringIO()):  # a bar for each of many short trainings; callers show one for all
        trained = trainer.fit()
    with torch.no_grad():
        rebuilt = trained.decode(trained.encode(scaled)) / scale
    return (rows - rebuilt).double().square().sum(1).numpy()


def clustering(decoder: Tensor, thresholds: Sequence[float] = THRESHOLDS, seed: int = 0) -> pd.DataFrame:
    """Clustering coefficient of the graph that joins latents at a cosine or nearer, by threshold.

    The mean over latents of the share of their pairs of neighbours that are neighbours too; a latent with
    fewer than two counts 0. In a random graph it would be the share of pairs ``joined``. Latents are
    resampled with the coefficients they have in the whole graph.
    """
    unit = torch.nn.functional.normalize(decoder.detach().double(), dim=1)
    nearness = (unit @ unit.T).cpu().numpy()
    np.fill_diagonal(nearness, -np.inf)
    rows = []
    for threshold in thresholds:
        joined = csr_matrix(nearness >= threshold, dtype=np.float64)
        degree = np.asarray(joined.sum(1)).ravel()
        closed = np.asarray((joined @ joined).multiply(joined).sum(1)).ravel()
        pairs = degree * (degree - 1)
        local = np.divide(closed, pairs, out=np.zeros_like(closed), where=pairs > 0)
        found = bootstrap_mean(local, seed=seed)
        share = degree.sum() / (len(unit) * (len(unit) - 1))
        rows.append((threshold, *astuple(found), share))
    columns = ["threshold", "estimate", "low", "high", "n", "joined"]
    return pd.DataFrame(rows, columns=columns)[[*columns[:4], "joined", "n"]]


def as_rare(cosine: float, width: int, other_width: int) -> float:
    """The cosine that random directions reach as rarely in ``width`` dimensions as ``cosine`` in
    ``other_width``.

    Of a random direction in d dimensions, (1 + cos) / 2 has the distribution Beta((d − 1)/2, (d − 1)/2).
    """
    halves = (other_width - 1) / 2, (width - 1) / 2
    chance = beta.cdf((1 - cosine) / 2, halves[0], halves[0])  # the lower tail keeps its digits
    return float(1 - 2 * beta.ppf(chance, halves[1], halves[1]))


def uniqueness(decoders: Mapping[str, Tensor], seed: int = 0) -> pd.DataFrame:
    """Share of each dictionary's latents that another lacks: no direction of it at a cosine or nearer
    (Wilson).

    At three cosines, because the paper's lies among random directions' in 128 dimensions: the paper's 0.2;
    what random directions reach "as rare" in this width as 0.2 in the paper's; and "random", below which 95%
    of random directions lie beside the other dictionary. ``random directions`` is the share of others that is
    unique.
    """
    rows: list[tuple[Any, ...]] = []
    for (name, decoder), (other, directions) in permutations(decoders.items(), 2):
        width = directions.shape[1]
        first, second = (
            best_cosines(isotropic_directions(RANDOM_DIRECTIONS, width, each), directions)
            for each in (seed, seed + 1)
        )
        limits = {
            "paper": PAPER_UNIQUE,
            "as rare": as_rare(PAPER_UNIQUE, width, PAPER_WIDTH),
            "random": float(np.quantile(first, RANDOM_QUANTILE)),
        }
        nearest = best_cosines(decoder, directions)
        for threshold, cosine in limits.items():
            unique, by_chance = share_of(nearest < cosine), float((second < cosine).mean())
            rows.append((name, other, threshold, cosine, *astuple(unique), by_chance))
    columns = ["dictionary", "other", "threshold", "cosine", "estimate", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*columns, "random directions"])


def chosen_overlap(
    saes: Mapping[str, SAE[Any]], chosen: Mapping[str, NDArray[np.int64]], residual: Tensor
) -> pd.DataFrame:
    """Share of the features chosen in one dictionary that a chosen one of another follows (correlation of
    activations ≥ 0.7; Wilson), beside the share that any latent of the other does (``in the other at all``).
    """
    rows = []
    for one, other in combinations(saes, 2):
        correlation = activation_correlation(saes[one], residual, saes[other], residual, chosen[one])
        among = share_of(correlation[:, chosen[other]].max(axis=1) >= SAME)
        rows.append((one, other, *astuple(among), float((correlation.max(axis=1) >= SAME).mean())))
    columns = ["dictionary", "other", "share", "low", "high", "n", "in the other at all"]
    return pd.DataFrame(rows, columns=columns)


def less(table: pd.DataFrame, one: str = "BatchTopK", other: str = "OrtSAE") -> Interval:
    """A measure of one dictionary less another's, of independent estimates; ``table`` has rows of
    ``dictionary``, ``estimate``, ``low``, ``high``, ``n``.
    """
    rows = table[["dictionary", "estimate", "low", "high", "n"]].itertuples(index=False)
    intervals = {name: Interval(*interval) for name, *interval in rows}
    return independent_difference(intervals[one], intervals[other])
