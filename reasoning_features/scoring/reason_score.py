"""ReasonScore (equations 3–6) of all features, from sums over sets of tokens that one pass gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reasoning_features.dictionaries.autoencoder import ELEMENTS
from reasoning_features.errors import UserError, check_finite
from reasoning_features.scoring.feature_statistics import FeatureStatistics
from reasoning_features.text.words import ALL, Window, vocabulary_set, word_set

Array = NDArray[np.float64]
RELEASED_WINDOW: Window = (1, 2)  # of the released script (``--expand_range 1,2``): 1 before, 2 after


def entropy(word_means: Array) -> Array:
    """Equation 4: entropy over words of each feature's mean activation μ(i, D_r) ``[..., words, f]``, 0 to 1.

    A feature that fires on no word has H = 0 (0 · log 0 := 0). With one word H = 1, as in the released code.
    """
    words = word_means.shape[-2]
    if words == 1:
        return np.ones_like(word_means[..., 0, :])
    p = _shares(word_means, axis=-2)
    logs = np.log(np.maximum(p, np.finfo(p.dtype).tiny))
    return np.clip(-(p * logs).sum(axis=-2) / np.log(words), 0.0, 1.0)


def reason_score(inside: Array, outside: Array, word_means: Array, alpha: float) -> Array:
    """Equation 5 (at α = 0 equation 3): the share of the mean activation inside, μ(i, D_R), weighted by
    entropy to the power α, less that outside, μ(i, D_¬R) ``[..., f]``. A feature that never fires scores 0.
    UserError: a score is not finite.
    """
    scores = _shares(inside) * entropy(word_means) ** alpha - _shares(outside)
    return check_finite(scores, "The ReasonScore of a feature", "give an `alpha` from 0 up")


def _shares(means: Array, axis: int = -1) -> Array:
    """Means as shares of their sum over features, or words; zero where none is active."""
    total = check_finite(means, "The mean activation of a feature").sum(axis=axis, keepdims=True)
    return np.divide(means, total, out=np.zeros_like(means), where=total > 0)


def set_means(
    statistics: FeatureStatistics, vocabulary: str, words: Sequence[str], window: Window
) -> tuple[Array, Array, Array]:
    """Mean activations of a vocabulary: μ(i, D_R), μ(i, D_¬R) ``[..., f]`` and μ(i, D_r) ``[..., r, f]``.

    A resample in which a word does not occur takes μ(i, D_r) = 0. UserError: a set is empty throughout.
    """
    union, every = statistics.only([vocabulary_set(vocabulary, window)]), statistics.only([ALL])
    by_word = statistics.only([word_set(word, window) for word in words])
    rest = every.counts - union.counts
    seen = by_word.counts.reshape(-1, len(words)).any(axis=0)
    if not seen.all():
        absent = words[int(np.argmin(seen))]
        raise UserError(f"The word {absent!r} never occurs in these documents: use more of them.")
    if not rest.all():
        raise UserError(f"A window of {window} around the words covers every token: make it smaller.")
    inside = union.sums[..., 0, :] / union.counts
    outside = (every.sums - union.sums)[..., 0, :] / rest
    return inside, outside, by_word.sums / np.maximum(by_word.counts, 1)[..., None]


def sets_of_score(vocabulary: str, words: Sequence[str], window: Window) -> list[str]:
    """Names of the sets that a vocabulary's score is made of."""
    return [ALL, vocabulary_set(vocabulary, window), *(word_set(word, window) for word in words)]


def vocabulary_scores(
    statistics: FeatureStatistics, vocabulary: str, words: Sequence[str], window: Window, alpha: float
) -> Array:
    """ReasonScore of every feature for one vocabulary ``[..., f]``; raises as :func:`set_means`."""
    return reason_score(*set_means(statistics, vocabulary, words, window), alpha)


def resampled_scores(
    statistics: FeatureStatistics,
    vocabulary: str,
    words: Sequence[str],
    window: Window,
    alpha: float,
    weights: Array,
) -> Array:
    """ReasonScore of every feature for one vocabulary under weights of the groups ``[b, g]``: ``[b, f]``."""
    own = statistics.only(sets_of_score(vocabulary, words, window))
    # some at a time: of 65,536 features and twelve sets ten, 63 MB
    rows = max(1, ELEMENTS // 4 // own.sums[0].size)
    parts = (own.weighted(weights[start : start + rows]) for start in range(0, len(weights), rows))
    return np.concatenate([vocabulary_scores(part, vocabulary, words, window, alpha) for part in parts])


def decoder_norms(sae: Any) -> Array:
    """‖W_dec,i‖ of every feature ``[f]``."""
    return sae.W_dec.detach().double().norm(dim=-1).cpu().numpy()


def ranks(scores: ArrayLike) -> NDArray[np.int64]:
    """Each feature's rank by score ``[f]``, 1 the highest; ties in the order of features."""
    return np.argsort(-np.asarray(scores, dtype=float), kind="stable").argsort() + 1


def select(scores: Array, k: int | None = None, quantile: float = 0.997) -> NDArray[np.int64]:
    """Features chosen by score, best first: the top ``k``, or those above the ``quantile`` (equation 6).

    Ties go to the lower index. Raises UserError: there are fewer than ``k``, or a score is not finite.
    """
    check_finite(scores, "The score of a feature", "give every feature a finite one")
    order = np.argsort(-scores, kind="stable")
    if k is None:
        return order[: int((scores > np.quantile(scores, quantile)).sum())]
    if k > len(scores):
        raise UserError(f"{k} features are asked for, but there are {len(scores)}: lower `selected`.")
    return order[:k]
