"""Whether a model knows a decision before it is taken: a linear probe on the stream at the decision's token.

What a dictionary lacks the model may still hold: the probe reads all of the stream, in any direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from reasoning_features.errors import UserError
from reasoning_features.statistics import Interval, bootstrap_weights, percentile_interval

TEST_SHARE = 0.4
"""Share of the traces that a probe is tested on."""


@dataclass(frozen=True)
class Probed:
    """A probe's answers on traces it has not seen.

    Attributes:
        scores: ``[n]`` larger where it expects the positive side.
        towards: ``[n]`` True where the trace took it.
        documents: ``[n]`` the trace of each.
    """

    scores: NDArray[np.float64]
    towards: NDArray[np.bool_]
    documents: NDArray[np.int64]

    def auc(self, n_resamples: int = 1000, seed: int = 0) -> Interval:
        """Area under the ROC curve, with its 95% interval over test traces."""
        return self._interval([self], n_resamples, seed)

    def auc_less(self, other: Probed, n_resamples: int = 1000, seed: int = 0) -> Interval:
        """This probe's area less another's on the same decisions, resampled together."""
        return self._interval([self, other], n_resamples, seed)

    @staticmethod
    def _interval(probes: list[Probed], n_resamples: int, seed: int) -> Interval:
        traces, document = np.unique(probes[0].documents, return_inverse=True)
        drawn = bootstrap_weights(len(traces), n_resamples, seed)[:, document]
        counts = [np.ones(len(document)), *drawn]
        one, *rest = (np.array([probe._weighted(count) for count in counts]) for probe in probes)
        values = one - sum(rest)
        return percentile_interval(values[0], values[1:], len(traces))

    def _weighted(self, weights: NDArray[np.float64]) -> float:
        """The area with each decision counted so many times; ties count half."""
        order = rankdata(self.scores, method="dense") - 1
        positive = np.bincount(order, weights * self.towards)
        negative = np.bincount(order, weights * ~self.towards)
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / (positive.sum() * negative.sum()))


def probe_decision(
    residual: NDArray[np.float32],
    towards: NDArray[np.bool_],
    documents: NDArray[np.int64],
    seed: int = 0,
    shuffled: bool = False,
) -> Probed:
    """Train a logistic regression on some traces' decisions and ask it about the others'.

    Args:
        residual: ``[n, d]`` the stream at each decision's token.
        towards: ``[n]`` True where the trace took the positive side (went on).
        documents: ``[n]`` the trace of each decision; the same seed divides the same traces alike.
        seed: of the division, and of the shuffle.
        shuffled: train on shuffled labels: the control, what a probe finds where there is nothing to find.

    Raises:
        UserError: too few traces for both sides to be on either part.
    """
    rng = np.random.default_rng(seed)
    traces = np.unique(documents)
    tested = np.isin(documents, rng.permutation(traces)[: round(TEST_SHARE * len(traces))])
    if any(len(np.unique(towards[part])) < 2 for part in (tested, ~tested)):
        raise UserError("There are too few decisions for a probe of them: raise reasoning_documents.")
    labels = rng.permutation(towards[~tested]) if shuffled else towards[~tested]
    scaler = StandardScaler().fit(residual[~tested])
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        model = LogisticRegression(C=0.1, max_iter=500).fit(scaler.transform(residual[~tested]), labels)
        scores = model.decision_function(scaler.transform(residual[tested]))
    return Probed(scores, towards[tested], documents[tested])
