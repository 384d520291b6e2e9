"""Does ablating a feature over the whole trace say what ablating it at the decision's own token says?

At the decision's token only what the feature does there counts; over the whole trace also what it wrote
into earlier tokens that the decision looks back at: a feature that governs decisions from afar shows there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from reasoning_features.statistics import Interval, percentile_interval
from reasoning_features.truth.scorer_benchmark import evaluate_all
from reasoning_features.truth.scorers import Scorer
from reasoning_features.truth.stored_benchmarks import PLACE, TRACE, Benchmark, Truth

Array = NDArray[np.float64]
RESAMPLES, SEED = 1000, 0
PASSES = ("neither", PLACE, TRACE, "both")
"""Where a feature's effect passes what random directions of equal norm do."""
COLUMNS = {PLACE: ("at the decision", ""), TRACE: ("over the trace", "trace ")}
"""Place → the column of its effects, and how those of its interval and threshold begin."""


def where_most_is_known(fresh: Sequence[Benchmark], stored: Sequence[Benchmark]) -> list[Benchmark]:
    """For each that was measured anew the stored one of the same autoencoder, where that holds the whole
    trace of every live feature; else itself.
    """
    return [
        next((there for there in stored if there.whole and there.identity == here.identity), here)
        for here in fresh
    ]


def evaluate_places(scorers: Sequence[Scorer], benchmarks: Sequence[Benchmark], kind: str) -> pd.DataFrame:
    """:func:`reasoning_features.truth.scorer_benchmark.evaluate_all` against the effects at each place.

    Returns:
        Its rows, with the column ``ablated`` ("decision" or "trace"), of the benchmarks where every live
        feature was ablated over the trace; empty where there are none.
    """
    whole = [benchmark for benchmark in benchmarks if benchmark.whole]
    over = [replace(benchmark, truths=benchmark.over_trace) for benchmark in whole]
    tables = [
        evaluate_all(scorers, judged, kind).assign(ablated=place)
        for place, judged in ((PLACE, whole), (TRACE, over))
        if judged
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def compare_places(benchmark: Benchmark, kind: str, chosen: Collection[int]) -> pd.DataFrame:
    """Features ablated at both places, the largest change over the trace first.

    Args:
        benchmark: with effects of this kind over the trace.
        kind: of decision.
        chosen: features to mark.

    Returns:
        ``feature``; mean change of the log-odds on ablation, in nats, ``at the decision`` and ``over the
        trace``, each with its 95% interval over traces and its threshold (``low``, ``high``, ``threshold``;
        ``trace low`` and so on); ``passes`` (of ``PASSES``); ``chosen``.
    """
    both = _shared(benchmark, kind)
    table: dict[str, object] = {"feature": both[PLACE].features}
    for place, truth in both.items():
        name, prefix = COLUMNS[place]
        # an effect is that of the feature as it is; ablation changes the log-odds the other way
        low, high = np.quantile(-truth.resampled(RESAMPLES, SEED), [0.025, 0.975], axis=0)
        table |= {name: -truth.effect, f"{prefix}low": low, f"{prefix}high": high}
        table[f"{prefix}threshold"] = truth.threshold
    table["passes"] = np.array(PASSES)[both[PLACE].true + 2 * both[TRACE].true]
    table["chosen"] = np.isin(both[PLACE].features, list(chosen))
    frame = pd.DataFrame(table)
    order = frame["over the trace"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)


@dataclass(frozen=True)
class Agreement:
    """How far two places agree on the effects of the same features.

    Attributes:
        features: how many were ablated at both.
        at_decision, over_trace, both: how many pass there.
        correlation: Spearman's, of signed effects; its interval resamples traces.
        slope: of what random directions do over the trace, by their size: 1 where it is in proportion.
    """

    features: int
    at_decision: int
    over_trace: int
    both: int
    correlation: Interval
    slope: float

    def __str__(self) -> str:
        return (
            f"{self.at_decision} of {self.features} pass at the decision, {self.over_trace} over the trace, "
            f"{self.both} at both; rank correlation {self.correlation}; slope {self.slope:.2f}"
        )


def agreement_of_places(benchmark: Benchmark, kind: str) -> Agreement:
    """Numbers of features that pass at each place, and the rank correlation of their effects."""
    both = _shared(benchmark, kind)
    here, over = both[PLACE], both[TRACE]
    resampled = _correlation(here.resampled(RESAMPLES, SEED), over.resampled(RESAMPLES, SEED))
    estimate = float(_correlation(here.effect[None], over.effect[None])[0])
    return Agreement(
        features=len(here.features),
        at_decision=int(here.true.sum()),
        over_trace=int(over.true.sum()),
        both=int((here.true & over.true).sum()),
        correlation=percentile_interval(estimate, resampled, len(here.counts)),
        slope=over.slope,
    )


def _shared(benchmark: Benchmark, kind: str) -> dict[str, Truth]:
    """Place → the truth of the features that were ablated at both places."""
    places = {PLACE: benchmark.truths[kind], TRACE: benchmark.over_trace[kind]}
    features = np.intersect1d(places[PLACE].features, places[TRACE].features)
    return {place: truth.of(features) for place, truth in places.items()}


def _correlation(one: Array, other: Array) -> Array:
    """Spearman's correlation of each row of ``[b, f]`` with the same row of the other → ``[b]``."""
    middle = (one.shape[1] + 1) / 2
    ranks, others = rankdata(one, axis=1) - middle, rankdata(other, axis=1) - middle
    scale = np.sqrt((ranks**2).sum(axis=1) * (others**2).sum(axis=1))
    return np.divide((ranks * others).sum(axis=1), scale, out=np.full(len(one), np.nan), where=scale > 0)
