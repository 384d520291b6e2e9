"""How well any score of features ranks them by their causal effect, on every model and autoencoder.

A score sees the evidence (selection split); the truth is each feature's effect on the log-odds of a decision
(evaluation split). Intervals resample traces: effects are averaged again, features that pass the threshold
are found again, and the metric is taken again. Only features that are ever active count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from reasoning_features.errors import UserError
from reasoning_features.statistics import null_rank
from reasoning_features.truth.scorers import Score, Scorer, vocabulary_columns
from reasoning_features.truth.stored_benchmarks import Benchmark, Truth

Array = NDArray[np.float64]
TOP = (10, 20)
"""Numbers of features whose share of the effect, and precision, are reported."""
RESAMPLES, SEED = 200, 0
CEILING = "the effect itself"


def evaluate_scorer(
    score: Score, benchmarks: Sequence[Benchmark], kind: str = "persistence", signed: bool = False
) -> pd.DataFrame:
    """Rank features by a score and compare with their causal effects, on every benchmark.

    A feature is truly causal where its mean effect passes the threshold, whichever its sign.

    Args:
        score: takes the evidence, one row a feature, and gives one number a feature.
        benchmarks: models and autoencoders with their truth (:func:`load_benchmarks`).
        kind: of decision, "persistence" or "verification".
        signed: whether to rank by the size of the score (its sign then says which side is promoted).

    Returns:
        One row a benchmark and metric: what identifies the benchmark, ``metric``, ``estimate``, ``low`` and
        ``high`` (95%, traces resampled), ``chance`` (what a random ranking gives), ``traces``, ``positives``,
        ``live``. Metrics: "average precision"; "rank correlation" (Spearman, the score as given with the
        signed effect); "share of effect, top k" (of Σ|effect|); "precision at k" where there are k positives.
        A metric that cannot be taken (no positives) is missing.

    Raises:
        UserError: no benchmarks, one has no decisions of this kind, or the score does not give one finite
            number a feature.
    """
    if not benchmarks:
        raise UserError("There is no benchmark to evaluate on: `make organism` measures the shipped models.")
    scores = [live_scores(score, benchmark, _truth(benchmark, kind)) for benchmark in benchmarks]
    return _evaluated(scores, benchmarks, kind, signed)


def effect_itself(benchmarks: Sequence[Benchmark], kind: str = "persistence") -> pd.DataFrame:
    """The rows of :func:`evaluate_scorer` for the measured effect used as a score: what could be had at most.

    Its average precision is below 1: the threshold grows with the size of the edit, so a feature that is
    hardly active can pass with a small effect, and one that moves the stream far fail with a larger one.
    """
    return _evaluated([_truth(benchmark, kind).effect for benchmark in benchmarks], benchmarks, kind, True)


def _evaluated(
    scores: Sequence[Array], benchmarks: Sequence[Benchmark], kind: str, signed: bool
) -> pd.DataFrame:
    """Rows of :func:`evaluate_scorer` from the scores of each benchmark's live features."""
    rows: list[dict[str, Any]] = []
    for benchmark, values in zip(benchmarks, scores, strict=True):
        truth = _truth(benchmark, kind)
        effect, again = truth.effect[None], truth.resampled(RESAMPLES, SEED)
        found = metrics(values, effect, truth.threshold, signed)
        resampled = metrics(values, again, truth.threshold, signed)
        positives = int((np.abs(effect) > truth.threshold).sum())
        told = {"traces": len(truth.counts), "positives": positives, "live": len(values)}
        for name, estimate in found.items():
            if name.startswith("precision at") and positives < int(name.rsplit(" ", 1)[1]):
                continue
            low, high = _quantiles(resampled[name])
            numbers = {"metric": name, "estimate": float(estimate[0]), "low": low, "high": high}
            chance = {"chance": chance_of(name, positives, len(values))}
            rows.append(benchmark.identity | numbers | chance | told)
    return pd.DataFrame(rows)


def evaluate_all(
    scorers: Sequence[Scorer], benchmarks: Sequence[Benchmark], kind: str = "persistence"
) -> pd.DataFrame:
    """:func:`evaluate_scorer` for each scorer, with columns ``scorer``, ``signed`` and ``labels``.

    The last rows are those of :func:`effect_itself`, as the scorer ``CEILING``.
    """
    found = [
        evaluate_scorer(scorer.function, benchmarks, kind, scorer.signed).assign(
            scorer=scorer.name, signed=scorer.signed, labels=scorer.labels
        )
        for scorer in scorers
    ]
    most = effect_itself(benchmarks, kind).assign(scorer=CEILING, signed=True, labels=True)
    return pd.concat([*found, most], ignore_index=True)


def metrics(score: Array, effects: Array, threshold: Array, signed: bool) -> dict[str, Array]:
    """Every metric of one score ``[f]`` against effects ``[b, f]``, one number a row of effects ``[b]``."""
    ranking = np.abs(score) if signed else score
    true, sizes = np.abs(effects) > threshold, np.abs(effects)
    order = np.argsort(-ranking, kind="stable")
    found = {
        "average precision": average_precision(ranking, true),
        "rank correlation": rank_correlation(score, effects),
    }
    total = sizes.sum(axis=1)
    for k in TOP:
        top = sizes[:, order[:k]].sum(axis=1)
        found[f"share of effect, top {k}"] = np.divide(
            top, total, out=np.full_like(top, np.nan), where=total > 0
        )
        found[f"precision at {k}"] = true[:, order[:k]].mean(axis=1)
    return found


def average_precision(ranking: Array, true: NDArray[np.bool_]) -> Array:
    """Average precision of a ranking ``[f]`` for each row of true sets ``[b, f]`` → ``[b]``.

    Σ over distinct values of the ranking, best first, of (gain in recall) · precision: tied features enter
    together. Missing where a row has no true feature.
    """
    order = np.argsort(-ranking, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(ranking[order]) != 0, True))
    hits = np.cumsum(true[:, order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    total = hits[:, -1]
    summed = (gained * hits / (ends + 1)).sum(axis=1)
    return np.divide(summed, total, out=np.full(len(true), np.nan), where=total > 0)


def rank_correlation(score: Array, effects: Array) -> Array:
    """Spearman's correlation of a score ``[f]`` with each row of effects ``[b, f]`` → ``[b]``."""
    ranks = rankdata(score) - (len(score) + 1) / 2
    others = rankdata(effects, axis=1) - (len(score) + 1) / 2
    scale = np.sqrt((ranks**2).sum() * (others**2).sum(axis=1))
    return np.divide(others @ ranks, scale, out=np.full(len(effects), np.nan), where=scale > 0)


def chance_of(metric: str, positives: int, live: int) -> float:
    """What a random ranking gives: the base rate, 0, or k of the live features."""
    if metric == "rank correlation":
        return 0.0
    if metric.startswith("share of effect"):
        return min(int(metric.rsplit(" ", 1)[1]) / live, 1.0)
    return positives / live


def null_band(benchmarks: Sequence[Benchmark], kind: str = "persistence", null: str = "slot") -> pd.DataFrame:
    """Every metric of ReasonScore under other vocabularies, and where R stands among them.

    To the metrics of :func:`evaluate_scorer` comes "contrast": Σ score · signed effect, whose z among the
    vocabularies says whether R's words point at the causal features more than other words in their place.

    Args:
        benchmarks: models and autoencoders with their truth.
        kind: of decision.
        null: "random" (matched in frequency) or "slot" (mixtures of R and its twins).

    Returns:
        One row a benchmark and metric: what identifies it, ``null``, ``metric``, ``ours`` (R), ``mean``,
        ``low``, ``high`` (of the middle 95% of vocabularies), ``z``, ``percentile``, ``p_value``,
        ``vocabularies``. Empty where there are no such vocabularies.
    """
    rows: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        truth, names = _truth(benchmark, kind), vocabulary_columns(benchmark.evidence, null)
        effect = truth.effect[None]

        def of(name: str, benchmark: Benchmark = benchmark, truth: Truth = truth) -> dict[str, float]:
            values = live_scores(lambda evidence: evidence[name].to_numpy(), benchmark, truth)
            found = metrics(values, truth.effect[None], truth.threshold, signed=False)
            return {key: float(value[0]) for key, value in found.items()} | {
                "contrast": float(values @ truth.effect)
            }

        if not names:
            continue
        ours, others = of("score:reason score"), pd.DataFrame([of(name) for name in names])
        positives = int((np.abs(effect) > truth.threshold).sum())
        for metric, value in ours.items():
            if metric.startswith("precision at") and positives < int(metric.rsplit(" ", 1)[1]):
                continue
            draws = others[metric].to_numpy()
            rank = null_rank(value, draws)
            low, high = _quantiles(draws)
            band = {"ours": value, "mean": float(draws.mean()), "low": low, "high": high}
            place = {"z": rank.z, "percentile": rank.percentile, "p_value": rank.p_value}
            told = {"null": null, "metric": metric, "vocabularies": rank.n}
            rows.append(benchmark.identity | told | band | place)
    return pd.DataFrame(rows)


def live_scores(score: Score, benchmark: Benchmark, truth: Truth) -> Array:
    """A score's values at the features that count ``[f]``.

    Raises:
        UserError: it does not give one finite number a feature.
    """
    evidence = benchmark.evidence
    values = np.asarray(score(evidence), dtype=float)
    if values.shape != (len(evidence),):
        raise UserError(
            f"The score gives {values.shape} numbers for the {len(evidence)} features of {benchmark.model}: "
            "it must give one number a row of the table."
        )
    kept = values[truth.features]
    if not np.isfinite(kept).all():
        raise UserError(
            f"The score is not a finite number at {int((~np.isfinite(kept)).sum())} of {len(kept)} live "
            f"features of {benchmark.model}: give every active feature a number."
        )
    return kept


def _truth(benchmark: Benchmark, kind: str) -> Truth:
    if kind not in benchmark.truths:
        raise UserError(
            f"The benchmark of {benchmark.model} has no decisions of the kind {kind!r}: choose one of "
            f"{', '.join(benchmark.truths) or 'none'}."
        )
    return benchmark.truths[kind]


def _quantiles(values: Array) -> tuple[float, float]:
    """Middle 95% of the values that could be taken."""
    taken = values[np.isfinite(values)]
    if not len(taken):
        return float("nan"), float("nan")
    low, high = np.quantile(taken, [0.025, 0.975])
    return float(low), float(high)
