"""Which sets of tokens the evidence of features is summed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasoning_features.errors import UserError
from reasoning_features.scoring.feature_statistics import FeatureStatistics
from reasoning_features.scoring.reason_score import RELEASED_WINDOW
from reasoning_features.scoring.selection import REFERENCE
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.sentences import last_before, sentence_starts
from reasoning_features.text.vocabulary import Lexicon
from reasoning_features.text.word_masks import (
    ALL,
    Mask,
    TokenIndex,
    TokenSets,
    Window,
    capitalised_with_twins,
    form_ids,
    token_sets,
    vocabulary_set,
    word_set,
)
from reasoning_features.truth.decisions import Decisions


@dataclass(frozen=True)
class EvidenceSets:
    """All sets of one pass.

    Attributes:
        vocabularies: sets of every vocabulary at the paper's window, and of R at the released one.
        variants: name of a variant of ReasonScore → its own sets, named as any sets of R are.
        labels: name of a column → its set (:func:`label_sets`).
    """

    vocabularies: TokenSets
    variants: dict[str, TokenSets]
    labels: dict[str, Mask]

    @property
    def together(self) -> TokenSets:
        """Everything under names of its own: those of a variant begin with the variant's."""
        names, bits = list(self.vocabularies.names), [self.vocabularies.bits]
        for variant, sets in self.variants.items():
            names += [f"{variant}|{name}" for name in sets.names]
            bits.append(sets.bits)
        bits += [np.packbits(mask)[None] for mask in self.labels.values()]
        return TokenSets((*names, *self.labels), np.concatenate(bits), self.vocabularies.n_tokens)

    def of_variant(self, statistics: FeatureStatistics, variant: str) -> FeatureStatistics:
        """A variant's statistics, under the names that ReasonScore looks for."""
        names = self.variants[variant].names
        own = statistics.only([f"{variant}|{name}" for name in names])
        return FeatureStatistics(names, own.counts, own.sums)


def evidence_sets(
    corpus: Corpus,
    tokenizer: Any,
    words: Sequence[str],
    known: Lexicon,
    vocabularies: Mapping[str, Sequence[str]],
    decisions: Mapping[str, Decisions],
    window: Window,
) -> EvidenceSets:
    """The sets that the evidence needs (arguments: :func:`reasoning_features.truth.evidence.gather`).

    Raises:
        UserError: a word never occurs, or decisions are another corpus'.
    """
    capitalised = capitalised_with_twins(known.twins)
    at_window = token_sets(corpus, tokenizer, vocabularies, [window], capitalised)
    released = token_sets(corpus, tokenizer, {REFERENCE: words}, [RELEASED_WINDOW], capitalised)
    return EvidenceSets(
        at_window.join(released),
        {
            "before": before_only(corpus, tokenizer, words, window, known),
            "masked": without_words(corpus, tokenizer, words, window, known),
        },
        label_sets(corpus, tokenizer, decisions),
    )


def label_sets(corpus: Corpus, tokenizer: Any, decisions: Mapping[str, Decisions]) -> dict[str, Mask]:
    """Sets of tokens that labels give ``[n_tokens]``; none without labels.

    ``mean:<move>``: tokens of a move. ``before:<move>``: the last token before each sentence that begins with
    a move. ``at <kind>:positive`` and ``:negative``: the positions of decisions by the side the trace took.

    Raises:
        UserError: decisions of another corpus.
    """
    sets: dict[str, Mask] = {}
    if corpus.moves is not None:
        before = last_before(corpus, sentence_starts(corpus, tokenizer))
        follows = corpus.moves[before + 1]
        for code, move in enumerate(corpus.move_names):
            sets[f"mean:{move}"] = (corpus.moves == code) & ~corpus.special
            sets[f"before:{move}"] = np.zeros(corpus.n_tokens, dtype=bool)
            sets[f"before:{move}"][before[follows == code]] = True
    for kind, found in decisions.items():
        if found.corpus.digest != corpus.digest:
            raise UserError(
                f"The decisions of {kind} are from the corpus {found.corpus.name!r}, the evidence from "
                f"{corpus.name!r}: find the decisions in the selection split's traces."
            )
        for side, towards in (("positive", True), ("negative", False)):
            mask = np.zeros(corpus.n_tokens, dtype=bool)
            mask[found.positions[found.towards == towards]] = True
            sets[f"at {kind}:{side}"] = mask
    return {name: mask for name, mask in sets.items() if mask.any()}


def before_only(
    corpus: Corpus, tokenizer: Any, words: Sequence[str], window: Window, known: Lexicon
) -> TokenSets:
    """R's sets with nothing but the tokens before each word: not the word, and nothing after it."""
    spans = _spans(corpus, tokenizer, words, known)
    index = TokenIndex(corpus)
    ahead = {
        w: np.stack([np.maximum(s[:, 0] - window[0], _first(corpus, s)), s[:, 0]], 1)
        for w, s in spans.items()
    }
    masks = {w: index.mask(s[s[:, 0] < s[:, 1]], (0, 0)) for w, s in ahead.items()}
    return _sets(~corpus.special, masks, (window[0], 0))


def without_words(
    corpus: Corpus, tokenizer: Any, words: Sequence[str], window: Window, known: Lexicon
) -> TokenSets:
    """R's sets at ``window`` with every token of a word of R left out, of the sets and of all the rest."""
    spans = _spans(corpus, tokenizer, words, known)
    index = TokenIndex(corpus)
    own = np.any([index.mask(s, (0, 0)) for s in spans.values()], axis=0)
    masks = {word: index.mask(s, window) & ~own for word, s in spans.items()}
    return _sets(~corpus.special & ~own, masks, window)


def _spans(
    corpus: Corpus, tokenizer: Any, words: Sequence[str], known: Lexicon
) -> dict[str, NDArray[np.int64]]:
    index, capitalised = TokenIndex(corpus), capitalised_with_twins(known.twins)
    return {word: index.occurrences(form_ids(tokenizer, word, capitalised)) for word in words}


def _first(corpus: Corpus, spans: NDArray[np.int64]) -> NDArray[np.int64]:
    return corpus.starts[np.searchsorted(corpus.starts, spans[:, 0], side="right") - 1]


def _sets(every: Mask, masks: Mapping[str, Mask], window: Window) -> TokenSets:
    around = {word_set(word, window): mask for word, mask in masks.items()}
    union = np.any(list(masks.values()), axis=0)
    return TokenSets.of({ALL: every} | around | {vocabulary_set(REFERENCE, window): union})
