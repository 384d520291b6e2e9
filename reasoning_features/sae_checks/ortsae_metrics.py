"""What OrtSAE (2509.22033) judges dictionaries by: how their directions lie, and what they are composed of.

Decoders are rows ``[s, d]``; leave dead latents out. Sizes depend on the width: in 128 dimensions even random
directions have near neighbours, and a MetaSAE explains much of them, so each measure stands beside what as
many random directions give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
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

from reasoning_features.dictionaries.autoencoder import rows_at_once
from reasoning_features.dictionaries.evaluation import WIDE, best_cosines
from reasoning_features.dictionaries.training import AUXILIARY
from reasoning_features.diffing.presence import SAME, activation_correlation, share_of
from reasoning_features.errors import UserError
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
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 12))
"""Ten cosines from which two latents are joined in a graph: from where random directions are joined often."""
PAPER_UNIQUE, PAPER_WIDTH = 0.2, 2304
"""A latent is unique below this cosine with all of another dictionary (OrtSAE), in Gemma-2-2B's stream."""
RANDOM_QUANTILE = 0.95
"""Share of random directions that are to count as unique beside a dictionary."""
RANDOM_DIRECTIONS = 2**13
"""Random directions that a quantile, and a share, is estimated from."""
ACTIVE, FEWER = 4, 4
"""A MetaSAE has so many active latents a row, on average, and so many times fewer latents than rows."""
DEAD_AFTER = 100
"""Steps without activity after which a latent of a MetaSAE is dead."""
STEPS, BATCH, LEARNING_RATE = 400, 2048, 3e-3
"""Of 512 rows, all at a step; five times as many explained 0.02 more of ReLU's rows, 0.003 of TopK's."""


@torch.no_grad()
def added_directions(sae: SAE[Any]) -> Tensor:
    """What a unit of each latent adds to the reconstruction ``[s, d]``, however the decoder scales it."""
    origin = sae.decode(torch.zeros(1, sae.cfg.d_sae, device=sae.device))
    parts = torch.arange(sae.cfg.d_sae, device=sae.device).split(rows_at_once(sae))
    ones = (torch.nn.functional.one_hot(part, sae.cfg.d_sae).float() for part in parts)
    return torch.cat([(sae.decode(one) - origin).float().cpu() for one in ones])


def geometry(decoders: Mapping[str, Tensor], seed: int = 0) -> pd.DataFrame:
    """MeanCosSim and composition of dictionaries, name → live directions ``[s, d]``; 95% intervals.

    MeanCosSim = mean_i max_{j≠i} cos(W_i, W_j). Latents are resampled with the neighbours they have in the
    whole dictionary: a resampled dictionary would hold copies, which are neighbours at cosine 1.

    Returns:
        Rows of ``metric``, ``dictionary``, ``estimate``, ``low``, ``high``, ``n``.
    """
    found = {}
    for name, decoder in tqdm(decoders.items(), desc="Geometry", unit="dictionary"):
        found[NEIGHBOURS, name] = bootstrap_mean(nearest_cosines(decoder), seed=seed)
        found[COMPOSITION, name] = composition(decoder, seed=seed)
    rows = [(*key, i.estimate, i.low, i.high, i.n) for key, i in found.items()]
    table = pd.DataFrame(rows, columns=["metric", "dictionary", "estimate", "low", "high", "n"])
    return table.sort_values("metric", kind="stable", ignore_index=True)


def nearest_cosines(decoder: Tensor) -> Array:
    """For each direction ``[s, d]`` its largest cosine, with its sign, with another one of the dictionary.

    A direction of length 0 has cosine 0 with everything.
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


def isotropic_directions(n: int, width: int, seed: int) -> Tensor:
    """``n`` directions ``[n, width]`` drawn uniformly on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(noise, dim=1)


def composition(decoder: Tensor, seeds: Sequence[int] = (0, 1, 2), seed: int = 0) -> Interval:
    """How far a dictionary's directions are sums of a few others: lower is more atomic.

    A MetaSAE, BatchTopK with a quarter as many latents and four active ones a row, is trained on the rows,
    unit-normalised; composition is the fraction of their variance that it explains. The same arguments give
    the same bytes on the same machine.

    ``seeds`` are the MetaSAEs', ``seed`` is the bootstrap's.
    """
    if len(decoder) < FEWER * ACTIVE:
        raise UserError(
            f"A MetaSAE of {len(decoder)} rows has fewer than {ACTIVE} latents: "
            f"give a dictionary of at least {FEWER * ACTIVE} live ones."
        )
    rows = torch.nn.functional.normalize(decoder.detach().float().cpu(), dim=1)
    error = np.stack([meta_errors(rows, each) for each in seeds])
    return explained(error, (rows - rows.mean(0)).double().square().sum(1).numpy(), seed)


def explained(error: Array, deviation: Array, seed: int = 0) -> Interval:
    """Fraction of variance explained, mean over MetaSAEs, with its 95% interval; both are resampled together.

    Args:
        error: ``[seeds, s]`` squared distance of each unit row from its reconstruction.
        deviation: ``[s]`` squared distance of each unit row from their mean.
        seed: of the bootstrap.
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
    fewer than two neighbours counts 0. In a graph with as many edges laid at random it would be the share of
    pairs that are joined. Latents are resampled with the coefficients they have in the whole graph.

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
        found = bootstrap_mean(local, seed=seed)
        share = degree.sum() / (len(unit) * (len(unit) - 1))
        rows.append((threshold, found.estimate, found.low, found.high, share, found.n))
    return pd.DataFrame(rows, columns=["threshold", "estimate", "low", "high", "joined", "n"])


def as_rare(cosine: float, width: int, other_width: int) -> float:
    """The cosine that random directions reach as rarely in ``width`` dimensions as ``cosine`` in
    ``other_width``.

    Of a random direction in d dimensions, (1 + cos) / 2 has the distribution Beta((d − 1)/2, (d − 1)/2).
    """
    halves = (other_width - 1) / 2, (width - 1) / 2
    chance = beta.cdf((1 - cosine) / 2, halves[0], halves[0])  # the lower tail keeps its digits
    return float(1 - 2 * beta.ppf(chance, halves[1], halves[1]))


def uniqueness(decoders: Mapping[str, Tensor], seed: int = 0) -> pd.DataFrame:
    """Share of each dictionary's latents that another lacks: no direction of it at a cosine or nearer.

    At three cosines, because the paper's lies among random directions' in 128 dimensions:

    - "paper": 0.2;
    - "as rare": what random directions reach as rarely in this width as 0.2 in the paper's;
    - "random": below which 95% of random directions lie beside the other dictionary, so that a latent counts
      as shared once it is nearer than chance.

    Returns:
        Rows of ``dictionary``, ``other``, ``threshold`` (the name), ``cosine``, ``estimate``, ``low``,
        ``high`` (95%, Wilson), ``n``, and ``random directions``: the share that is unique of random
        directions, others than those the quantile was taken from.
    """
    rows: list[tuple[Any, ...]] = []
    for (name, decoder), (other, directions) in permutations(decoders.items(), 2):
        width = directions.shape[1]
        first, second = (
            best_cosines(isotropic_directions(RANDOM_DIRECTIONS, width, each), directions)
            for each in (seed, seed + 1)
        )
        cosines = {
            "paper": PAPER_UNIQUE,
            "as rare": as_rare(PAPER_UNIQUE, width, PAPER_WIDTH),
            "random": float(np.quantile(first, RANDOM_QUANTILE)),
        }
        nearest = best_cosines(decoder, directions)
        for threshold, cosine in cosines.items():
            i, by_chance = share_of(nearest < cosine), float((second < cosine).mean())
            rows.append((name, other, threshold, cosine, i.estimate, i.low, i.high, i.n, by_chance))
    columns = ["dictionary", "other", "threshold", "cosine", "estimate", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*columns, "random directions"])


def chosen_overlap(
    saes: Mapping[str, SAE[Any]], chosen: Mapping[str, NDArray[np.int64]], residual: Tensor
) -> pd.DataFrame:
    """How far dictionaries choose the same features: those chosen in one that some chosen one of another does
    (correlation of activations ≥ 0.7), beside those that any latent of the other does.

    Returns:
        Rows of ``dictionary``, ``other``, ``share`` with ``low`` and ``high`` (Wilson), ``n``, and
        ``in the other at all``.
    """
    rows = []
    for one, other in combinations(saes, 2):
        found = activation_correlation(saes[one], residual, saes[other], residual, chosen[one])
        among = share_of(found[:, chosen[other]].max(axis=1) >= SAME)
        anywhere = float((found.max(axis=1) >= SAME).mean())
        rows.append((one, other, among.estimate, among.low, among.high, among.n, anywhere))
    columns = ["dictionary", "other", "share", "low", "high", "n", "in the other at all"]
    return pd.DataFrame(rows, columns=columns)


def less(table: pd.DataFrame, one: str = "BatchTopK", other: str = "OrtSAE") -> Interval:
    """A measure of one dictionary less another's, of independent estimates; ``table`` has rows of
    ``dictionary``, ``estimate``, ``low``, ``high``, ``n``.
    """
    found = {
        row["dictionary"]: Interval(row["estimate"], row["low"], row["high"], row["n"])
        for row in table.to_dict("records")
    }
    return independent_difference(found[one], found[other])


def cost_ratios(costs: pd.DataFrame) -> pd.DataFrame:
    """What a training step costs against one of BatchTopK, by size: median over runs done in turn.

    Args:
        costs: rows of ``name``, ``features``, ``run``, ``seconds`` of a step
            (``data/organism/foundations/costs.parquet``).

    Returns:
        Rows of ``name``, ``features``, ``ratio`` (median), ``lowest``, ``highest``, ``runs``.
    """
    rows = []
    wide = costs.pivot(index=["features", "run"], columns="name", values="seconds")
    for features, runs in wide.groupby("features"):
        for name in pd.unique(costs["name"]):
            if name != "BatchTopK":
                ratio = runs[name] / runs["BatchTopK"]
                rows.append((name, features, ratio.median(), ratio.min(), ratio.max(), len(ratio)))
    return pd.DataFrame(rows, columns=["name", "features", "ratio", "lowest", "highest", "runs"])
