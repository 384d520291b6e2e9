"""What features tell, and what the model knows before it decides (areas under the ROC curve).

Decodable is not causal: a feature may tell what comes next and play no part in it. Which label a feature
tells best, and whether by being high or low, is chosen on half of the traces and reported on the other. What
a dictionary lacks the model may still hold: a linear probe reads all of the stream, in any direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from reasoning_features.dictionaries.autoencoder import encoded_columns
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.statistics import Interval, bootstrap_weights, percentile_interval
from reasoning_features.text.corpus import Corpus, last_before, sentence_starts
from reasoning_features.truth.decisions import Decisions

Array = NDArray[np.float64]
SIDES: dict[str, tuple[str, str]] = {
    "persistence": ("give up", "go on"),
    "verification": ("conclude", "verify"),
}
"""Kind of decision → names of its negative and its positive side."""
TEST_SHARE = 0.4
"""Share of the traces that a probe is tested on."""


def auc_by_class(activations: NDArray[np.float32], classes: NDArray[np.int64], n_classes: int) -> Array:
    """Area under the ROC curve of each feature for each class against all others ``[f, c]``.

    Ties count half. NaN for a class with no token, or with all of them.

    Args:
        activations: ``[n, f]``.
        classes: ``[n]`` 0 ≤ class < ``n_classes``.
        n_classes: number of classes.
    """
    ranks = rankdata(activations, axis=0)
    of_class = (classes[:, None] == np.arange(n_classes)).astype(np.float64)
    inside = of_class.sum(0)
    pairs = inside * (len(classes) - inside)
    above = ranks.T @ of_class - inside * (inside + 1) / 2
    return np.divide(above, pairs, out=np.full_like(above, np.nan), where=pairs > 0)


def best_class(
    activations: NDArray[np.float32],
    classes: NDArray[np.int64],
    first_half: NDArray[np.bool_],
    n_classes: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], Array]:
    """Each feature's best class ``[f]``, whether it is high there ``[f]``, and its held-out AUC ``[f]``.

    Class and side are those that are farthest from chance on ``first_half``; the AUC is of the other half,
    and below 0.5 where the choice does not carry over. Classes missing from either half are not chosen; the
    AUC is NaN where that leaves none.
    """
    chosen, held = (
        auc_by_class(activations[half], classes[half], n_classes) for half in (first_half, ~first_half)
    )
    usable = ~np.isnan(chosen) & ~np.isnan(held)
    best = np.where(usable, np.abs(chosen - 0.5), -1).argmax(axis=1)
    rows = np.arange(len(best))
    high = chosen[rows, best] >= 0.5
    found = held[rows, best]
    return best, high, np.where(high, found, 1 - found)


def targets(
    corpus: Corpus, tokenizer: Any, decisions: Mapping[str, Decisions]
) -> dict[str, tuple[tuple[str, ...], NDArray[np.int64]]]:
    """What there is to tell at which tokens: label → names of its classes and class ``[n_tokens]``, -1: none.

    "current move" at every token of thinking; "next move", the move that the next sentence begins with, at
    the last token of every sentence; and each decision's side at its token. No moves, no labels of moves.
    """
    found: dict[str, tuple[tuple[str, ...], NDArray[np.int64]]] = {}
    if corpus.moves is not None:
        usable = corpus.thinking & ~corpus.special
        found["current move"] = corpus.move_names, np.where(usable, corpus.moves, -1).astype(np.int64)
        following = np.full(corpus.n_tokens, -1, dtype=np.int64)
        last = last_before(corpus, sentence_starts(corpus, tokenizer))
        last = last[usable[last] & usable[last + 1]]
        following[last] = corpus.moves[last + 1]
        found["next move"] = corpus.move_names, following
    for name, held in decisions.items():
        sides = np.full(corpus.n_tokens, -1, dtype=np.int64)
        sides[held.positions] = held.towards
        found[name] = SIDES[name], sides
    return found


def decodability(
    subject: Subject,
    sae: Any,
    corpus: Corpus,
    decisions: Mapping[str, Decisions],
    features: NDArray[np.int64],
    batch_tokens: int,
    most_tokens: int,
    seed: int,
) -> pd.DataFrame | None:
    """The held-out AUC of every feature for moves and decisions; None where neither is known.

    Args:
        subject: the model, read where the autoencoder reads.
        sae: encodes raw activations.
        corpus: the traces; half of them, drawn by ``seed``, choose class and side.
        decisions: decisions of this corpus, by name.
        features: ``[f]`` which features.
        batch_tokens: the most token ids in one forward pass.
        most_tokens: of a label with more tokens than this, so many are drawn by ``seed``.
        seed: of both draws.

    Returns:
        One row a label and feature: ``feature``, ``label``, ``best`` (the class it tells best), ``high``
        (whether it is high there), ``auc`` (held-out half), ``tokens`` (of both halves).
    """
    labels = targets(corpus, subject.tokenizer, decisions)
    if not labels:
        return None
    rng = np.random.default_rng(seed)
    first_half = rng.permutation(corpus.n_documents) < corpus.n_documents // 2
    drawn = {}
    for label, (_, classes) in labels.items():
        held = np.flatnonzero(classes >= 0)
        drawn[label] = np.sort(rng.choice(held, min(len(held), most_tokens), replace=False))
    include = np.zeros(corpus.n_tokens, dtype=bool)
    include[np.concatenate(list(drawn.values()))] = True
    read = collect(stream(subject, corpus, batch_tokens, include))
    parts = read.residual.split(batch_tokens)
    activations = torch.cat([encoded_columns(sae, part, features) for part in parts]).numpy()
    tables = []
    for label, (names, classes) in labels.items():
        at = drawn[label]
        half = first_half[corpus.document_of[at]]
        best, high, auc = best_class(activations[read.rows(at)], classes[at], half, len(names))
        table = pd.DataFrame({"feature": features, "label": label, "best": np.array(names)[best]})
        tables.append(table.assign(high=high, auc=auc, tokens=len(at)))
    return pd.concat(tables, ignore_index=True)


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
