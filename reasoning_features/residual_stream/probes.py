"""What can be read linearly from the stream: moves, a probe a layer, and decisions; shuffled as a control.

A probe is multinomial logistic regression on standardised activations. Documents, not tokens, are divided
into training and test; accuracy is balanced, so that chance is one over the number of moves however common
each is; intervals resample test documents.
"""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.statistics import Array, Flags, Ids, Interval, bootstrap_weights, percentile_interval
from reasoning_features.text.corpus import Corpus

EMBEDDINGS = -1  # the "layer" of the token embeddings, before the first block: what the token alone tells
TEST_FRACTION = 0.4  # of the documents
TOKENS_PER_CLASS = 500  # the most that a probe of moves is trained on
TARGETS = {"own move": 0, "next token's move": 1}  # of which token, counted from the token itself


def probe_layers(subject: Subject, corpus: Corpus, batch_tokens: int, seed: int = 0) -> pd.DataFrame:
    """Probe every layer, and the embeddings (-1), for each token's move and the next token's (``target``).
    ``labels`` are "true", or "shuffled" for the control; intervals are of 95%.
    """
    targets = {name: move_targets(corpus, offset) for name, offset in TARGETS.items()}
    shape, documents = (corpus.n_tokens, subject.d_model), corpus.document_of
    read = {layer: np.empty(shape, np.float32) for layer in range(EMBEDDINGS, subject.n_layers)}
    for batch in corpus.batches(batch_tokens):
        residuals = subject.residuals(batch.tokens, range(subject.n_layers))
        for layer, residual in ({EMBEDDINGS: subject.embeddings(batch.tokens)} | residuals).items():
            read[layer][batch.positions[batch.valid]] = residual.float().cpu()[batch.valid].numpy()
    cases = list(itertools.product(targets.items(), read.items(), ("true", "shuffled")))
    rows = []
    for (name, codes), (layer, activations), labels in tqdm(cases, desc="Probing layers", unit="probe"):
        shuffled, chance = labels == "shuffled", 1 / len(np.unique(codes[codes >= 0]))
        accuracy = probe(activations, codes, documents, seed, shuffled)
        rows.append((layer, labels, accuracy.estimate, accuracy.low, accuracy.high, accuracy.n, chance, name))
    columns = ["layer", "labels", "balanced accuracy", "low", "high", "documents", "chance", "target"]
    return pd.DataFrame(rows, columns=columns)


def move_targets(corpus: Corpus, offset: int = 0) -> Ids:
    """The move of each token, or of that ``offset`` later ``[n_tokens]``; -1 at special tokens and beyond the
    document's end. UserError: the corpus has no move labels.
    """
    if corpus.moves is None:
        raise UserError(f"The corpus {corpus.name!r} has no move labels, so there is nothing to probe for.")
    targets = np.full(corpus.n_tokens, -1, dtype=np.int64)
    later = np.arange(corpus.n_tokens) + offset
    inside = later < np.repeat(corpus.starts[1:], np.diff(corpus.starts))
    usable = inside & ~corpus.special
    usable[inside] &= ~corpus.special[later[inside]]
    targets[usable] = corpus.moves[later[usable]]
    return targets


@threadpool_limits.wrap(limits=1)  # threads only wait for one another on matrices this small
def probe(
    activations: NDArray[np.float32], targets: Ids, documents: Ids, seed: int = 0, shuffled: bool = False
) -> Interval:
    """Balanced accuracy of a linear probe on the tokens of documents that it has not seen.

    Activations are ``[n, d]``, ``targets`` ``[n]`` class codes (-1: left out). The control trains on
    ``shuffled`` labels. UserError: fewer than two classes, or one that is missing in training.
    """
    rng = np.random.default_rng(seed)
    tested = _tested(documents, rng)
    in_test, in_training = tested & (targets >= 0), ~tested & (targets >= 0)
    classes = np.unique(targets[in_training])
    if len(classes) < 2 or not np.isin(targets[in_test], classes).all():
        raise UserError("There are too few documents for a probe of every move: raise probe_documents.")
    drawn = [rng.permutation(np.flatnonzero(in_training & (targets == c))) for c in classes]
    rows = np.concatenate([of_class[:TOKENS_PER_CLASS] for of_class in drawn])
    labels = rng.permutation(targets[rows]) if shuffled else targets[rows]
    classifier = LogisticRegression(C=0.1, class_weight="balanced", max_iter=300, tol=1e-3)
    model = make_pipeline(StandardScaler(), classifier)
    right = model.fit(activations[rows], labels).predict(activations[in_test]) == targets[in_test]
    return balanced_accuracy(right, targets[in_test], documents[in_test], seed)


def _tested(documents: Ids, rng: np.random.Generator) -> Flags:
    """Which rows are of the documents that a probe is tested on ``[n]``."""
    names = rng.permutation(np.unique(documents))
    return np.isin(documents, names[: max(1, round(TEST_FRACTION * len(names)))])


def balanced_accuracy(right: Flags, targets: Ids, documents: Ids, seed: int = 0) -> Interval:
    """Mean over classes (of those that a resample has) of the fraction right; intervals over documents."""
    names, document = np.unique(documents, return_inverse=True)
    weights = weights_by_document(len(names), seed)
    means = np.nanmean(class_means(right, targets, document, weights), axis=1)
    return percentile_interval(means[0], means[1:], len(names))


def weights_by_document(documents: int, seed: int, n_resamples: int = 1000) -> Array:
    """How often each document counts ``[1 + resamples, documents]``; first every one of them once."""
    return np.concatenate([np.ones((1, documents)), bootstrap_weights(documents, n_resamples, seed)])


def class_means(values: NDArray[Any], classes: NDArray[Any], document: Ids, weights: Array) -> Array:
    """Means of tokens' values ``[n]`` within each class ``[r, classes]`` for weights ``[r, documents]``, of
    which ``document`` ``[n]`` is each token's column; nan where a class has no weight.
    """
    names, code = np.unique(classes, return_inverse=True)
    counts, sums = np.zeros((2, weights.shape[1], len(names)))
    np.add.at(counts, (document, code), 1)
    np.add.at(sums, (document, code), values)
    drawn = weights @ counts
    return np.divide(weights @ sums, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)


def auc(scores: Array, towards: Flags, documents: Ids, seed: int = 0) -> Interval:
    """Area under the ROC curve of scores for the positive side ``[n]``, with its interval over documents."""
    names, document = np.unique(documents, return_inverse=True)
    weights = weights_by_document(len(names), seed)[:, document]
    areas = [weighted_auc(scores, towards, row) for row in weights]
    return percentile_interval(areas[0], areas[1:], len(names))


def weighted_auc(scores: Array, towards: Flags, weights: Array) -> float:
    """Area under the ROC curve with each row counted so many times; ties count half."""
    order = rankdata(scores, method="dense") - 1
    positive, negative = np.bincount(order, weights * towards), np.bincount(order, weights * ~towards)
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / (positive.sum() * negative.sum()))


@threadpool_limits.wrap(limits=1)
def probe_decision(
    residual: NDArray[np.float32], towards: Flags, documents: Ids, seed: int = 0, shuffled: bool = False
) -> Interval:
    """AUC on some traces of a logistic regression on the stream ``[n, d]`` at the decisions of others.
    ``shuffled`` labels are the control. UserError: too few traces for both sides on either part.
    """
    rng = np.random.default_rng(seed)
    tested = _tested(documents, rng)
    if any(len(np.unique(towards[part])) < 2 for part in (tested, ~tested)):
        raise UserError("There are too few decisions for a probe of them: raise reasoning_documents.")
    labels = rng.permutation(towards[~tested]) if shuffled else towards[~tested]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    scores = model.fit(residual[~tested], labels).decision_function(residual[tested])
    return auc(scores, towards[tested], documents[tested], seed)
