"""Model diffing: at which stages and layers a feature is present, between what a second seed and chance give.

The paper calls a feature present at a stage when some decoder direction there has cosine ≥ 0.7 with it. The
*ceiling* is what a second seed of the same autoencoder reaches, the *floor* what a randomly rotated decoder
reaches. Only features that the second seed finds again are tested. Activations are compared too.

Over depth, the paper pairs the decoder directions of two layers one to one and judges each pair by the cosine
of its activations over tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder import rows_at_once
from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.errors import UserError
from reasoning_features.statistics import Array, Flags, Ids, bootstrap_mean, percentile_interval, share_of

PAPER_THRESHOLD = 0.7
RANDOM = "random, frequency-matched"
# fraction present of the paper's 46 verified features at each stage, and of its 200 chosen at the last
PAPER_PRESENT, PAPER_CHOSEN = {"S": 0.0, "S-D": 0.04, "S-M": 0.0, "S-D-F": 0.60, "S-M-F": 0.51}, 0.78
ROTATIONS = 5  # of a decoder, for the floor
NEAREST = 10  # a random feature is drawn among so many of the nearest frequency
VERDICTS = ("different", "maybe", "same")
SAME, MAYBE = 0.7, 0.5  # the paper's edges over depth: same above 0.7, maybe above 0.5, else different
# the paper's table 3: features of its layer 19, by the layer in which they are sought
PAPER_LAYERS = pd.DataFrame(
    {
        "layer": np.repeat([13, 15, 17, 21, 23], 2),
        "group": ["chosen", "random"] * 5,
        "different": [0.525, 0.76, 0.435, 0.63, 0.27, 0.49, 0.175, 0.50, 0.175, 0.54],
        "maybe": [0.14, 0.09, 0.17, 0.13, 0.17, 0.13, 0.235, 0.09, 0.22, 0.15],
        "same": [0.335, 0.15, 0.395, 0.24, 0.56, 0.38, 0.59, 0.41, 0.605, 0.31],
        "features": [200, 100] * 5,
    }
)


@dataclass(frozen=True)
class Bounds:
    """What cosines of one dictionary's features mean."""

    ceiling: Array  # [f] each feature's largest cosine with a second seed's directions; NaN without one
    floor: Array  # [draws, f] the same with that decoder (or its own, without one) randomly rotated
    threshold: float  # the calibrated cosine from which a feature is present; the paper's without a seed

    def tested(self, threshold: float) -> Flags:
        """``[f]`` True for features that the second seed finds again at a threshold; without one, all."""
        return ~(self.ceiling < threshold)


def rotated(decoder: Tensor, seed: int) -> Tensor:
    """Directions ``[s, d]`` under a random rotation: all angles among them are kept, their places lost."""
    generator = torch.Generator().manual_seed(seed)
    width = decoder.shape[1]
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
    orthogonal, triangular = torch.linalg.qr(noise)
    rotation = orthogonal * triangular.diagonal().sign()  # uniform over all rotations
    return (decoder.detach().double() @ rotation).to(decoder.dtype)


def bounds(decoder: Tensor, second: Tensor | None, seed: int = 0) -> Bounds:
    """Ceiling and floor of a dictionary's cosines, and the threshold calibrated between them.

    ``decoder`` ``[f, d]``, ``second`` ``[r, d]`` of a second seed. Without it every feature is tested, at the
    paper's threshold.
    """
    other = decoder if second is None else second
    floor = np.stack([best_cosines(decoder, rotated(other, seed + i)) for i in range(ROTATIONS)])
    if second is None:
        return Bounds(np.full(len(decoder), np.nan), floor, PAPER_THRESHOLD)
    ceiling = best_cosines(decoder, second)
    return Bounds(ceiling, floor, calibrated(ceiling, floor))


def calibrated(ceiling: Array, floor: Array) -> float:
    """The threshold with the largest fraction of the ceiling's cosines at or above it, less the floor's."""
    candidates = np.unique(np.concatenate([ceiling.ravel(), floor.ravel()]))
    above = [1 - np.searchsorted(np.sort(v.ravel()), candidates) / v.size for v in (ceiling, floor)]
    best = int((above[0] - above[1]).argmax())
    # any threshold above the candidate before, up to this one, divides the cosines alike: the middle
    return float((candidates[max(best - 1, 0)] + candidates[best]) / 2)


def by_frequency(limits: Bounds, density: Array, bins: int = 5) -> pd.DataFrame:
    """Ceiling and floor of features by ``density`` ``[f]``, the fraction of tokens on which each is active. A
    row a bin of equally many live features: medians, 5% and 95% quantiles.
    """
    live = np.flatnonzero(density > 0)
    rows = []
    for members in np.array_split(live[np.argsort(density[live], kind="stable")], bins):
        row = {"from": density[members[0]], "to": density[members[-1]], "features": len(members)}
        for name, values in (("ceiling", limits.ceiling[members]), ("floor", limits.floor[:, members])):
            low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
            row |= {name: middle, f"{name} low": low, f"{name} high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def stage_cosines(decoder: Tensor, stages: Mapping[str, Tensor]) -> pd.DataFrame:
    """Each feature's largest cosine with the directions of every stage: a row a feature, a column a stage."""
    return pd.DataFrame({name: best_cosines(decoder, other) for name, other in stages.items()})


def frequency_matched(features: Ids, density: Array, draws: int, seed: int) -> Ids:
    """Random features ``[draws, k]``, each from the ``NEAREST`` left in frequency, none of the given."""
    others = np.setdiff1d(np.flatnonzero(density > 0), features)
    if len(others) < len(features):
        raise UserError(f"{len(features)} features are to be matched, but only {len(others)} others fire.")
    rng = np.random.default_rng(seed)
    logs = np.log(np.maximum(density, 1e-12))
    drawn = np.empty((draws, len(features)), dtype=np.int64)
    for draw in range(draws):
        left = others
        for place in rng.permutation(len(features)):
            near = np.argsort(np.abs(logs[left] - logs[features[place]]), kind="stable")[:NEAREST]
            drawn[draw, place] = left[rng.choice(near)]
            left = left[left != drawn[draw, place]]
    return drawn


def presence(
    cosines: pd.DataFrame, groups: Mapping[str, Ids], random: Ids, tested: Flags, threshold: float
) -> pd.DataFrame:
    """Fraction of each group's tested features that is present at every stage.

    ``cosines`` are those of :func:`stage_cosines`, or correlations of activations in the same form,
    ``random`` ``[draws, k]``, ``tested`` ``[f]``. Intervals (95%) of the random features are over the draws.
    """
    rows = []
    for stage in cosines:
        present = cosines[stage].to_numpy() >= threshold
        shares = {name: share_of(present[members[tested[members]]]) for name, members in groups.items()}
        drawn = [present[draw[tested[draw]]].mean() for draw in random if tested[draw].any()]
        shares[RANDOM] = share_of(np.empty(0, dtype=bool))
        if drawn:
            shares[RANDOM] = percentile_interval(float(np.mean(drawn)), drawn, len(np.unique(random)))
        rows += [(stage, name, s.estimate, s.low, s.high, s.n) for name, s in shares.items()]
    return pd.DataFrame(rows, columns=["stage", "group", "share", "low", "high", "n"])


def changes(
    cosines: pd.DataFrame, groups: Mapping[str, Ids], random: Ids, tested: Flags, threshold: float
) -> pd.DataFrame:
    """Fraction of tested features that appear (``change``) or go between S and every other stage. As
    :func:`presence`. UserError where a group has no tested feature.
    """
    if not all(tested[members].any() for members in groups.values()):
        raise UserError("No feature is found again by the second seed: train the autoencoders longer.")
    there = cosines >= threshold
    start, later = there.filter(["S"]).to_numpy(bool), there.drop(columns="S", errors="ignore")
    kinds = {"appears": later & ~start, "goes": ~later & start}
    tables = [presence(kind, groups, random, tested, 1).assign(change=n) for n, kind in kinds.items()]
    return pd.concat(tables, ignore_index=True)


def threshold_sweep(
    cosines: pd.DataFrame, groups: Mapping[str, Ids], limits: Bounds, thresholds: Array
) -> pd.DataFrame:
    """Fraction of each group present at every stage, by threshold: features tested where found again. "second
    seed" and "rotated" are over the group's features whether tested or not.
    """
    rows: list[tuple[object, ...]] = []
    for threshold in thresholds:
        tested = limits.tested(threshold)
        again = np.where(np.isnan(limits.ceiling), np.nan, tested)  # nan without a second seed
        for name, features in groups.items() if len(cosines.columns) else ():
            kept = features[tested[features]]
            by_chance = (limits.floor[:, features] >= threshold).mean()
            rows.append((threshold, "second seed", name, again[features].mean(), len(features)))
            rows.append((threshold, "rotated", name, by_chance, len(features)))
            shares = (cosines.iloc[kept] >= threshold).mean()  # nan of none
            rows += [(threshold, stage, name, share, len(kept)) for stage, share in shares.items()]
    return pd.DataFrame(rows, columns=["threshold", "stage", "group", "share", "n"])


@torch.no_grad()
def activation_correlation(
    sae: Any, residual: Tensor, other: Any, its: Tensor, features: Ids | None = None
) -> Array:
    """Pearson correlation over tokens of (some) features with every feature of another dictionary ``[s, r]``.

    ``residual`` ``[n, d]`` and ``its`` ``[n, d']`` are what the two read at the same tokens. 0 where either
    never varies.
    """
    chosen = slice(None) if features is None else torch.from_numpy(features)
    parts = ((sae.encode(a)[:, chosen], other.encode(b)) for a, b in _same_tokens(sae, residual, other, its))
    return _similarity(parts, len(its), paired=False)


@torch.no_grad()
def paired_similarity(
    sae: Any, residual: Tensor, other: Any, its: Tensor, partners: Ids | None = None, centred: bool = True
) -> Array:
    """How alike each feature fires with one partner ``[s]``: Pearson correlation, or cosine over tokens.

    As :func:`activation_correlation`; ``partners`` ``[s]`` are features of ``other``, by default of the same
    number. The paper judges layers by the cosine (not ``centred``).
    """
    matched = slice(None) if partners is None else torch.from_numpy(partners)
    parts = ((sae.encode(a), other.encode(b)[:, matched]) for a, b in _same_tokens(sae, residual, other, its))
    return _similarity(parts, len(its), paired=True, centred=centred)


def _similarity(parts: Iterable[tuple[Tensor, Tensor]], n: int, paired: bool, centred: bool = True) -> Array:
    """Correlation, or cosine, over n tokens of two sides' activations: each with its partner, or with all."""
    pair: Any = np.multiply if paired else np.outer
    sums: list[Any] = [0.0] * 5
    for a, b in parts:
        both = _total(a * b) if paired else (a.T @ b).double()
        part = [_total(a), _total(b), _total(a.square()), _total(b.square()), both]
        sums = [total + new for total, new in zip(sums, part, strict=True)]
    ours, theirs, square, its_square, both = (total.cpu().numpy() / n for total in sums)
    if centred:
        square, its_square = np.maximum(square - ours**2, 0), np.maximum(its_square - theirs**2, 0)
        both = both - pair(ours, theirs)
    scale = np.sqrt(pair(square, its_square))
    return np.divide(both, scale, out=np.zeros_like(both), where=scale > 0)


def largest_correlations(
    sae: Any, residual: Tensor, others: Mapping[str, tuple[Any, Tensor]], features: Ids | None = None
) -> pd.DataFrame:
    """Each feature's largest correlation with any feature of others: a row a feature, a column a dictionary.
    ``others``: name → a dictionary and what it reads at the same tokens; all but ``features`` are nan.
    """
    chosen = np.arange(sae.cfg.d_sae) if features is None else np.unique(features)
    table = pd.DataFrame(index=range(sae.cfg.d_sae), columns=list(others), dtype=float)
    for name, (other, its) in tqdm(others.items(), desc="Matching activations", unit="dictionary"):
        table.loc[chosen, name] = activation_correlation(sae, residual, other, its, chosen).max(axis=1)
    return table


def pair_decoders(decoder: Tensor, other: Tensor) -> Ids:
    """The partner of each direction ``[s]``, none used twice: the permutation of largest summed cosine."""
    (n, width), (m, its) = decoder.shape, other.shape
    if its != width or m < n:
        raise UserError(f"{n} directions of width {width} cannot be paired with {m} of width {its}.")
    unit, others = (torch.nn.functional.normalize(d.detach().double(), dim=1) for d in (decoder, other))
    # a square or wide matrix has all its rows assigned, in order
    return linear_sum_assignment((unit @ others.T).cpu().numpy(), maximize=True)[1].astype(np.int64)


def layer_table(cosines: Mapping[str, Array], groups: Mapping[str, Ids], seed: int = 0) -> pd.DataFrame:
    """Fractions of each group that are different, maybe the same and the same at every layer (table 3).
    ``cosines``: layer → cosine of activations of each feature with its partner there ``[s]``.
    """
    rows = []
    for layer, values in cosines.items():
        verdicts = (values > MAYBE).astype(int) + (values > SAME)
        for name, features in groups.items():
            row: dict[str, object] = {"layer": layer, "group": name}
            for code, verdict in enumerate(VERDICTS):
                share = bootstrap_mean(verdicts[features] == code, seed=seed)
                row |= share.row(verdict, f"{verdict} ")
            rows.append(row | {"features": len(features)})
    ends = [f"{verdict}{end}" for verdict in VERDICTS for end in ("", " low", " high")]
    return pd.DataFrame(rows, columns=["layer", "group", *ends, "features"])


def _same_tokens(sae: Any, residual: Tensor, other: Any, its: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Both sides' activations in parts of as many tokens as fit, each where its dictionary is."""
    rows = min(8192, rows_at_once(sae, other))
    for one, two in zip(residual.split(rows), its.split(rows), strict=True):
        yield one.to(sae.device), two.to(other.device)


def _total(values: Tensor) -> Tensor:
    return values.sum(0, dtype=torch.float64)
