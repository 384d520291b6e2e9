"""What a scorer may look at: a table with one row a feature, from the traces of the selection split.

Causal truth is measured on other traces (the evaluation split), so a score cannot have seen what it is
judged by. Columns about moves and decisions are absent where the corpus has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.scoring.feature_statistics import Accumulator, FeatureStatistics, SetSums
from reasoning_features.scoring.lexical import BestTokens, IdentitySums, token_classes
from reasoning_features.scoring.passes import one_pass_in_shards
from reasoning_features.scoring.reason_score import (
    RELEASED_WINDOW,
    decoder_norms,
    entropy,
    set_means,
    vocabulary_scores,
)
from reasoning_features.scoring.selection import REFERENCE
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.vocabulary import Lexicon
from reasoning_features.text.word_masks import Window
from reasoning_features.truth.attribution import gradient_attribution, neutral_prompts, output_scores
from reasoning_features.truth.decisions import Decisions
from reasoning_features.truth.evidence_sets import EvidenceSets, evidence_sets

Array = NDArray[np.float64]
PROMPTS, PROMPT_LENGTH = 8, 8
"""Neutral openings of the output score, and their length in tokens."""


class Spread:
    """Accumulates each feature's largest activation, sum of squares and number of active tokens."""

    def __init__(self) -> None:
        self._maximum: Tensor | None = None
        self._squares: Tensor | None = None
        self._active: Tensor | None = None
        self._count = 0

    def update(self, features: Tensor, positions: Tensor) -> None:
        """Add activations ``features`` ``[n, f]``."""
        maximum = features.max(dim=0).values.double()
        self._take(maximum, features.double().square().sum(0), (features > 0).sum(0), len(features))

    def state(self) -> dict[str, NDArray[Any]]:
        """Largest activation, sum of squares, active tokens, and tokens in all."""
        if self._maximum is None or self._squares is None or self._active is None:
            raise UserError("No activations came through: the corpus is empty, ask for more documents.")
        held = {"maximum": self._maximum, "squares": self._squares, "active": self._active}
        return {name: values.cpu().numpy() for name, values in held.items()} | {
            "count": np.array(self._count)
        }

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Take another's :meth:`state`."""
        maximum, squares, active = (torch.from_numpy(state[n]) for n in ("maximum", "squares", "active"))
        self._take(maximum, squares, active, int(state["count"]))

    def _take(self, maximum: Tensor, squares: Tensor, active: Tensor, count: int) -> None:
        self._count += count
        if self._maximum is None or self._squares is None or self._active is None:
            self._maximum, self._squares, self._active = maximum, squares, active
        else:
            self._maximum = torch.maximum(self._maximum, maximum)
            self._squares, self._active = self._squares + squares, self._active + active

    def result(self) -> tuple[Array, Array, Array]:
        """Largest activation, mean square and density ``[f]`` each.

        Raises:
            UserError: nothing came through.
        """
        if self._maximum is None or self._squares is None or self._active is None:
            raise UserError("No activations came through: the corpus is empty, ask for more documents.")
        return (
            self._maximum.cpu().numpy(),
            (self._squares / self._count).cpu().numpy(),
            (self._active / self._count).double().cpu().numpy(),
        )


def gather(
    subject: Subject,
    sae: Any,
    corpus: Corpus,
    general: Corpus,
    tokenizer: Any,
    words: Sequence[str],
    known: Lexicon,
    vocabularies: Mapping[str, Sequence[str]],
    decisions: Mapping[str, Decisions],
    window: Window,
    alpha: float,
    batch_tokens: int,
    kept: Path | None = None,
) -> pd.DataFrame:
    """The evidence of every feature, from one pass over the activations of ``corpus``.

    Args:
        subject: the model and its hook point.
        sae: the autoencoder.
        corpus: reasoning traces of the selection split.
        general: general text, whose plain documents open the output score's prompts.
        tokenizer: the subject's.
        words: R.
        known: twins of words (for their forms).
        vocabularies: name → words: R and the vocabularies it is compared with
            (:func:`reasoning_features.scoring.measurement.draw_vocabularies`).
        decisions: kind → decisions of ``corpus``; empty where they are not known.
        window: the paper's window.
        alpha: exponent of the entropy.
        batch_tokens: the most token ids in one pass.
        kept: folder of shards (:func:`reasoning_features.scoring.passes.one_pass_in_shards`).

    Returns:
        One row a feature: ``feature``, ``density``, ``mean``, ``standard deviation``, ``maximum``,
        ``decoder norm``, ``inside`` and ``outside`` (mean activation in R's windows and out of them),
        ``word:<r>`` (mean activation around each word of R), ``entropy``, ``best token``, ``precision``,
        ``recall``, ``f1`` (lexical.BestTokens), the means of
        :func:`reasoning_features.truth.evidence_sets.label_sets`, and ``score:<name>`` for scores that need
        more than these columns. float32, but for ``feature`` and ``best token``.

    Raises:
        UserError: a word never occurs, decisions are another corpus', or the autoencoder has another width.
    """
    sets = evidence_sets(corpus, tokenizer, words, known, vocabularies, decisions, window)
    classes, ids = token_classes(corpus)
    together = sets.together
    sums, spread = SetSums(together), Spread()
    identity = IdentitySums(classes, len(ids), together.only(sets.variants["masked"].names))
    by_token = BestTokens(classes, len(ids))
    gathered: dict[str, Accumulator] = {
        "sums": sums,
        "identity": identity,
        "tokens": by_token,
        "spread": spread,
    }
    key = {"sets": together.digest, "identity": sets.variants["masked"].names}
    one_pass_in_shards("evidence", subject, sae, corpus, gathered, batch_tokens, key, kept)

    statistics, best = sums.result(), by_token.result()
    maximum, square, density = spread.result()
    means = statistics.sums / np.maximum(statistics.counts, 1)[:, None]
    mean, norms = means[0], decoder_norms(sae)
    inside, outside, by_word = set_means(statistics, REFERENCE, words, window)
    columns: dict[str, Array] = {
        "density": density,
        "mean": mean,
        "standard deviation": np.sqrt(np.maximum(square - mean**2, 0)),
        "maximum": maximum,
        "decoder norm": norms,
        "inside": inside,
        "outside": outside,
        "entropy": entropy(by_word),
        **{name: best[name].to_numpy() for name in ("precision", "recall", "f1")},
        **{f"word:{word}": by_word[i] for i, word in enumerate(words)},
        **{name: means[statistics.names.index(name)] for name in sets.labels},
    }
    scores = _reason_scores(sets, statistics, norms, words, vocabularies, window, alpha)
    scores["identity"] = vocabulary_scores(identity.result(), REFERENCE, words, window, alpha)
    live = np.flatnonzero(density > 0)
    if decisions:  # these two only serve to be judged by effects on decisions, and are long work
        prompts = neutral_prompts(general, PROMPTS, PROMPT_LENGTH)
        scores["output"] = np.zeros(len(density))
        scores["output"][live] = output_scores(subject, sae, prompts, batch_tokens, live)
    for kind, found in decisions.items():
        scores[f"gradient {kind}"] = gradient_attribution(subject, sae, found, mean, batch_tokens)
    frame = pd.DataFrame(columns | {f"score:{name}": values for name, values in scores.items()})
    frame = frame.astype(np.float32)
    frame.insert(0, "feature", np.arange(len(frame)))
    texts = [repr(tokenizer.decode([int(token)])) for token in ids[best["token_class"], -1]]
    frame.insert(1, "best token", texts)
    return frame


def _reason_scores(
    sets: EvidenceSets,
    statistics: FeatureStatistics,
    norms: Array,
    words: Sequence[str],
    vocabularies: Mapping[str, Sequence[str]],
    window: Window,
    alpha: float,
) -> dict[str, Array]:
    """ReasonScore ``[f]`` of R and its variants, and of every other vocabulary under its own name."""
    scores = {
        "reason score" if name == REFERENCE else name: vocabulary_scores(
            statistics, name, chosen, window, alpha
        )
        for name, chosen in vocabularies.items()
    }
    scaled = statistics.scaled(norms)
    scores["released"] = vocabulary_scores(scaled, REFERENCE, words, RELEASED_WINDOW, alpha)
    for variant, at in (("before", (window[0], 0)), ("masked", window)):
        own = sets.of_variant(statistics, variant)
        scores[variant] = vocabulary_scores(own, REFERENCE, words, at, alpha)
    return scores
