"""Hierarchies of tokens, a parent and its children, and who stands for the parent: a probe, a few latents.

The probe is logistic, on the residual stream; the *main* latents are those that a sparse probe for the parent
chooses, as SAEBench chooses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import encoded, encoded_columns
from reasoning_features.errors import UserError
from reasoning_features.organism.parser import first_tokens
from reasoning_features.organism.tokenizer import LARGEST_NUMBER
from reasoning_features.organism.words import OPENERS, TWINS
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.text.corpus import Corpus

Array = NDArray[np.float64]
MOST_MAIN, GAIN = 10, 0.03
"""At most so many main latents: one more as long as it raises the sparse probe's F1 by more than this."""
L1_COST = 0.003
"""Inverse strength of the penalty under which latents are ranked: some tens of them keep a weight."""
TRAINING_TOKENS = 4000
"""At most so many tokens of the parent, and of the rest, train a probe."""
HELD_OUT_SHARE = 0.3
"""Share of the training documents on which sparse probes are compared."""


@dataclass(frozen=True)
class LabelledTokens:
    """Tokens with their activations and their places in a hierarchy.

    Attributes:
        residual: ``[n, d]`` activations.
        children: ``[n]`` the child each token is, −1 where it is none of the parent's.
        documents: ``[n]`` the document of each token.
    """

    residual: Tensor
    children: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def parent(self) -> NDArray[np.bool_]:
        """``[n]`` True at tokens of the parent class."""
        return self.children >= 0

    def at(self, rows: NDArray[Any]) -> LabelledTokens:
        """Some of the tokens, by number or by mask."""
        held = torch.from_numpy(np.flatnonzero(rows) if rows.dtype == bool else rows)
        return LabelledTokens(self.residual[held], self.children[rows], self.documents[rows])


@dataclass(frozen=True)
class Probe:
    """A linear probe: a token is the parent's where ``x · direction + bias > 0``; the direction is a unit."""

    direction: Array
    bias: float

    def score(self, residual: Tensor) -> Array:
        """Signed distance ``[n]`` of activations ``[n, d]`` from the probe's boundary."""
        return residual.double().numpy() @ self.direction + self.bias


def organism_hierarchies(tokenizer: Any) -> dict[str, dict[str, list[int]]]:
    """Hierarchies in the organism's traces: a parent's name → its children's names → their token ids.

    "a number": the numbers up to 140, one token each; "an opener": the moves, by the verbs that open their
    sentences; "a prefix": the words of R and their twins, by their first token where a sentence begins.
    """
    numbers = map(str, range(LARGEST_NUMBER + 1))
    prefixes = [word for pair in TWINS.items() for word in pair]
    starts = (word[0].upper() + word[1:] for word in prefixes)
    begins = [tokenizer.encode(text, add_special_tokens=False)[:1] for text in starts]
    return {
        "a number": {number: first_tokens(tokenizer, [number]) for number in numbers},
        "an opener": {move: first_tokens(tokenizer, verbs) for move, verbs in OPENERS.items()},
        "a prefix": dict(zip(prefixes, begins, strict=True)),
    }


def label_tokens(
    read: ActivationBatch, corpus: Corpus, groups: Mapping[str, Sequence[int]]
) -> LabelledTokens:
    """Tokens of a corpus by their ids: each one's child is its group's number in their order.

    Args:
        read: the activations of the corpus.
        corpus: the documents.
        groups: a child's name → its token ids.

    Raises:
        UserError: a token id in two groups.
    """
    code = {token: number for number, ids in enumerate(groups.values()) for token in ids}
    if len(code) < sum(len(set(ids)) for ids in groups.values()):
        raise UserError("Two children of the hierarchy share a token: give each token one child.")
    positions = read.positions.numpy()
    children = [code.get(token, -1) for token in corpus.tokens[positions].tolist()]
    return LabelledTokens(read.residual, np.array(children, dtype=np.int64), corpus.document_of[positions])


def parent_probe(training: LabelledTokens, seed: int = 0) -> Probe:
    """A logistic probe for the parent class, on standardised activations, its direction that of raw ones.

    Raises:
        UserError: all tokens, or none, belong to the parent.
    """
    held = _balanced(training, seed)
    residual, scaler = held.residual.numpy(), StandardScaler()
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        model = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.fit_transform(residual), held.parent)
    weights = model.coef_[0] / scaler.scale_
    norm = np.linalg.norm(weights)
    return Probe(weights / norm, float((model.intercept_[0] - scaler.mean_ @ weights) / norm))


def main_latents(sae: SAE[Any], training: LabelledTokens, seed: int = 0) -> tuple[NDArray[np.int64], float]:
    """Latents that stand for the parent: those of the smallest sparse probe that is nearly the best.

    An L1-penalised linear classifier on all latents ranks them by weight. Logistic probes on the first 1, 2,
    … of them are fitted on some of the training documents and compared by F1 on the others; one more latent
    is taken as long as it adds more than ``GAIN``.

    Returns:
        The latents, and the F1 that a probe on them reaches on tokens as often of the parent as not; none,
        and 0, where no latent tells the parent from other tokens.

    Raises:
        UserError: all tokens, or none, belong to the parent.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(training.documents)
    judged = np.isin(training.documents, rng.permutation(names)[: round(HELD_OUT_SHARE * len(names))])
    fitted, held = (_balanced(training.at(part), seed) for part in (~judged, judged))
    values = torch.cat([part.float().cpu() for _, part in encoded(sae, fitted.residual)]).numpy()
    scale = values.std(0)
    scale[scale == 0] = 1
    with threadpool_limits(limits=1):
        classifier = LinearSVC(penalty="l1", dual=False, C=L1_COST, max_iter=5000, random_state=seed)
        weights = classifier.fit(values / scale, fitted.parent).coef_[0]
        ranked = np.argsort(-weights, kind="stable")[: min(MOST_MAIN, int((weights > 0).sum()))]
        if not len(ranked):
            return ranked, 0.0
        known = values[:, ranked] / scale[ranked]
        fresh = encoded_columns(sae, held.residual, ranked).numpy() / scale[ranked]
        best, kept = -np.inf, 0
        for k in range(1, len(ranked) + 1):
            sparse = LogisticRegression(max_iter=500).fit(known[:, :k], fitted.parent)
            reached = f1_score(held.parent, sparse.predict(fresh[:, :k]))
            if reached <= best + GAIN:
                break
            best, kept = reached, k
    return ranked[:kept], float(best)


def _balanced(tokens: LabelledTokens, seed: int) -> LabelledTokens:
    """Tokens of the parent and as many others, drawn at random, at most ``TRAINING_TOKENS`` of each."""
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(np.flatnonzero(tokens.parent == side)) for side in (True, False)]
    n = min(TRAINING_TOKENS, *map(len, sides))
    if not n:
        raise UserError(
            "Of the tokens given all or none belong to the parent class: give documents that hold both."
        )
    return tokens.at(np.sort(np.concatenate([side[:n] for side in sides])))
