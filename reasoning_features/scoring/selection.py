"""What the features chosen by ReasonScore depend on: documents, hyperparameters, and the vocabulary itself.

All comparisons are made from the sums of one pass, kept by block of documents: resampling blocks gives
intervals, two halves of the blocks the stability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from reasoning_features.scoring.feature_statistics import FeatureStatistics
from reasoning_features.scoring.reason_score import (
    RELEASED_WINDOW,
    entropy,
    resampled,
    resampled_scores,
    select,
    set_means,
    sets_of_score,
    variant_statistics,
    vocabulary_scores,
)
from reasoning_features.statistics import (
    bootstrap_weights,
    chance_jaccard,
    jaccard,
    null_rank,
    percentile_interval,
)
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import Window

Array = NDArray[np.float64]
REFERENCE = "R"
"""Name of the vocabulary the others are compared with."""


def document_blocks(corpus: Corpus, blocks: int) -> NDArray[np.int64]:
    """Each token's block ``[n_tokens]``: documents dealt in turn into ``blocks`` blocks."""
    return (np.repeat(np.arange(corpus.n_documents), np.diff(corpus.starts)) % blocks).astype(np.int64)


def half_weights(blocks: int) -> Array:
    """Two rows ``[2, blocks]``: the even blocks, and the odd ones."""
    even = np.arange(blocks) % 2 == 0
    return np.stack([even, ~even]).astype(np.float64)


def score_all(
    statistics: FeatureStatistics, vocabularies: Mapping[str, Sequence[str]], window: Window, alpha: float
) -> dict[str, Array]:
    """ReasonScore of every feature ``[..., f]`` for each vocabulary."""
    return {
        name: vocabulary_scores(statistics, name, words, window, alpha)
        for name, words in vocabularies.items()
    }


def top_mean(scores: Array, k: int) -> Array:
    """Mean of the ``k`` largest scores ``[..., f]`` → ``[...]``: the score mass of the chosen features."""
    n = scores.shape[-1]
    largest = np.partition(scores, max(0, n - k), axis=-1)[..., max(0, n - k) :]
    return np.sort(largest, axis=-1).mean(axis=-1)


def chosen(scores: Array, k: int) -> NDArray[np.bool_]:
    """Which features are among the ``k`` best ``[..., f]``; ties go to the lower index."""
    known = np.where(np.isnan(scores), -np.inf, scores)
    n = known.shape[-1]
    last = np.partition(known, max(0, n - k), axis=-1)[..., [max(0, n - k)]]
    above, equal = known > last, known == last
    return above | (equal & (equal.cumsum(axis=-1) <= k - above.sum(axis=-1, keepdims=True)))


def overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Array:
    """Jaccard overlap of two selections ``[..., f]`` → ``[...]``."""
    union = (first | second).sum(axis=-1)
    return np.where(union > 0, (first & second).sum(axis=-1) / np.maximum(union, 1), 1.0)


def top_features(
    statistics: FeatureStatistics,
    words: Sequence[str],
    window: Window,
    alpha: float,
    k: int,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The ``k`` best features for R, best first, with 95% bootstrap intervals over blocks of documents.

    Args:
        statistics: by block ``[blocks, s, f]``.

    Returns:
        ``rank``, ``feature``, ``score``, ``low``, ``high``, ``entropy``, ``main_word`` (the word around which
        the feature is most active), ``chosen_again`` (share of resamples in whose top ``k`` it is).
    """
    scores = vocabulary_scores(statistics.total(), REFERENCE, words, window, alpha)
    weights = bootstrap_weights(len(statistics.counts), resamples, seed)
    again = resampled_scores(statistics, REFERENCE, words, window, alpha, weights)
    by_word = set_means(statistics.total(), REFERENCE, words, window)[2]
    best = select(scores, k=k)
    low, high = np.quantile(again[:, best], [0.025, 0.975], axis=0)
    return pd.DataFrame(
        {
            "rank": np.arange(1, k + 1),
            "feature": best,
            "score": scores[best],
            "low": low,
            "high": high,
            "entropy": entropy(by_word)[best],
            "main_word": [words[i] for i in by_word[:, best].argmax(axis=0)],
            "chosen_again": chosen(again, k)[:, best].mean(axis=0),
        }
    )


@dataclass(frozen=True)
class Hyperparameters:
    """One way to compute the score."""

    alpha: float
    window: Window
    variant: Literal["paper", "released"] = "paper"


def hyperparameter_grid(
    alphas: Sequence[float], windows: Sequence[Window], released_alpha: float
) -> list[Hyperparameters]:
    """The grid α × window of the paper's variant, and the released code's variant at one α."""
    grid = [Hyperparameters(alpha, window) for alpha in alphas for window in windows]
    return [*grid, Hyperparameters(released_alpha, RELEASED_WINDOW, "released")]


def score_under(
    statistics: FeatureStatistics, norms: Array, words: Sequence[str], way: Hyperparameters
) -> Array:
    """ReasonScore of R ``[..., f]`` under other hyperparameters; ``norms`` ``[f]`` are the decoder's."""
    folded = variant_statistics(statistics, norms, way.variant)
    return vocabulary_scores(folded, REFERENCE, words, way.window, way.alpha)


def grid_table(
    grid: Sequence[Hyperparameters], scores: Sequence[Array], default: Array, counts: Sequence[int]
) -> pd.DataFrame:
    """Overlap of each selection with the default's, for every number of features chosen.

    Returns:
        ``alpha``, ``window``, ``variant``, ``k``, ``overlap`` (Jaccard) and ``chance``.
    """
    rows = []
    for way, values in zip(grid, scores, strict=True):
        told = {"alpha": way.alpha, "window": f"{way.window[0]}-{way.window[1]}", "variant": way.variant}
        for k in counts:
            shared = jaccard(select(values, k=k), select(default, k=k))
            rows.append(told | {"k": k, "overlap": shared, "chance": chance_jaccard(len(default), k, k)})
    return pd.DataFrame(rows)


def resampled_overlap(
    statistics: FeatureStatistics,
    norms: Array,
    words: Sequence[str],
    grid: Sequence[Hyperparameters],
    default: Hyperparameters,
    k: int,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Mean overlap of other selections with the default's, on the data and on resampled blocks.

    Args:
        statistics: by block ``[blocks, s, f]``.

    Returns:
        ``resample`` (0 is the data as they are) and ``overlap``.
    """
    blocks = len(statistics.counts)
    weights = np.concatenate([np.ones((1, blocks)), bootstrap_weights(blocks, resamples, seed)])

    def selections(way: Hyperparameters) -> NDArray[np.bool_]:
        parts = resampled(statistics, sets_of_score(REFERENCE, words, way.window), weights)
        return np.concatenate([chosen(score_under(part, norms, words, way), k) for part in parts])

    reference = selections(default)
    shared = [overlap(reference, selections(way)) for way in grid if way != default]
    return pd.DataFrame({"resample": np.arange(resamples + 1), "overlap": np.mean(shared, axis=0)})


def identity_table(
    score: Array, identity: Mapping[str, Array], live: NDArray[np.bool_], k: int
) -> pd.DataFrame:
    """How far a ranking ``[f]`` is what token identity alone gives, for each token-identity baseline.

    Returns:
        ``identity``, ``spearman`` (over the ``live`` features ``[f]``), ``overlap`` of the top ``k``.
    """
    rows = []
    for name, values in identity.items():
        alike = float(spearmanr(score[live], values[live]).statistic)
        shared = float(overlap(chosen(score, k), chosen(values, k)))
        rows.append({"identity": name, "spearman": alike, "overlap": shared})
    return pd.DataFrame(rows)


def compare_vocabularies(
    statistics: FeatureStatistics,
    vocabularies: Mapping[str, Sequence[str]],
    window: Window,
    alpha: float,
    k: int,
) -> pd.DataFrame:
    """:func:`null_table` of these vocabularies, from statistics by block ``[blocks, s, f]``."""
    halves = statistics.weighted(half_weights(len(statistics.counts)))
    whole = score_all(statistics.total(), vocabularies, window, alpha)
    return null_table(whole, score_all(halves, vocabularies, window, alpha), vocabularies, k)


def null_table(
    whole: Mapping[str, Array], halves: Mapping[str, Array], vocabularies: Mapping[str, Sequence[str]], k: int
) -> pd.DataFrame:
    """Every vocabulary's statistics beside R's.

    Args:
        whole: scores by vocabulary ``[f]``, on all documents.
        halves: the same on two halves of the documents ``[2, f]``.
        vocabularies: the words of each; the name's first word is its kind ("R", "random", "slot", "twins").
        k: features chosen.

    Returns:
        ``vocabulary``, ``kind``, ``words_of_R`` (how many), ``score_mass`` (mean of the k best scores),
        ``maximum``, ``overlap`` (with R's top k, all documents), ``overlap_halves`` (with R's top k on the
        other half: for R itself, its stability).
    """
    own, own_halves = chosen(whole[REFERENCE], k), chosen(halves[REFERENCE], k)
    reference = set(vocabularies[REFERENCE])
    return pd.DataFrame(
        [
            {
                "vocabulary": name,
                "kind": name.split()[0],
                "words_of_R": len(reference & set(vocabularies[name])),
                "score_mass": float(top_mean(scores, k)),
                "maximum": float(scores.max()),
                "overlap": float(overlap(own, chosen(scores, k))),
                "overlap_halves": float(overlap(own_halves, chosen(halves[name], k)[::-1]).mean()),
            }
            for name, scores in whole.items()
        ]
    )


def null_ranks(table: pd.DataFrame, statistics: Sequence[str]) -> pd.DataFrame:
    """Where R stands within each kind of null vocabularies of :func:`null_table`.

    Returns:
        One row a kind and statistic: ``null``, ``statistic``, ``ours``, ``null_mean``, ``null_95`` (its 95%
        quantile), ``z``, ``percentile``, ``p_value`` and ``n``.
    """
    ours = table[table["kind"] == REFERENCE].iloc[0]
    rows = []
    for kind in ("random", "slot"):
        null = table[table["kind"] == kind]
        for name in statistics if len(null) else ():
            rank = null_rank(float(ours[name]), null[name])
            told = {
                "null": kind,
                "statistic": name,
                "ours": rank.value,
                "null_mean": float(null[name].mean()),
            }
            told |= {"null_95": float(null[name].quantile(0.95)), "z": rank.z}
            rows.append(told | {"percentile": rank.percentile, "p_value": rank.p_value, "n": rank.n})
    return pd.DataFrame(rows)


def resampled_comparison(
    statistics: FeatureStatistics,
    vocabularies: Mapping[str, Sequence[str]],
    window: Window,
    alpha: float,
    k: int,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """R against these vocabularies on the data and on bootstrap resamples of its blocks, the same for all.

    Args:
        statistics: by block ``[blocks, s, f]``.
        vocabularies: R and those it is compared with.

    Returns:
        One row a resample (the first, ``resample`` 0, is the data as they are): ``score_mass`` of R,
        ``null_mean`` and ``z`` of R's score mass among the others', ``overlap`` (mean, of R's top k with
        theirs).
    """
    blocks = len(statistics.counts)
    weights = np.concatenate([np.ones((1, blocks)), bootstrap_weights(blocks, resamples, seed)])
    dial = window, alpha, weights
    own = resampled_scores(statistics, REFERENCE, vocabularies[REFERENCE], *dial)
    mass, member = top_mean(own, k), chosen(own, k)
    masses, overlaps = [], []
    for name, words in vocabularies.items():
        if name != REFERENCE:
            scores = resampled_scores(statistics, name, words, *dial)
            masses.append(top_mean(scores, k))
            overlaps.append(overlap(member, chosen(scores, k)))
    null, shared = np.stack(masses), np.stack(overlaps)
    return pd.DataFrame(
        {
            "resample": np.arange(resamples + 1),
            "score_mass": mass,
            "null_mean": null.mean(axis=0),
            "z": (mass - null.mean(axis=0)) / null.std(axis=0, ddof=1),
            "overlap": shared.mean(axis=0),
        }
    )


def intervals(resampled: pd.DataFrame, columns: Sequence[str], blocks: int) -> pd.DataFrame:
    """Estimate and 95% interval of columns of :func:`resampled_comparison`.

    Returns:
        ``statistic``, ``estimate``, ``low``, ``high``, ``n`` (blocks of documents).
    """
    rows = []
    for column in columns:
        estimate, draws = resampled[column].iloc[0], resampled[column].iloc[1:]
        interval = percentile_interval(float(estimate), draws, blocks)
        rows.append({"statistic": column, **vars(interval)})
    return pd.DataFrame(rows)
