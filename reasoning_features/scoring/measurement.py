"""One arm measured in one pass: every statistic that notebook 03 draws comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features.models.subject import Subject
from reasoning_features.scoring.feature_statistics import Accumulator, FeatureStatistics, SetSums
from reasoning_features.scoring.lexical import BestTokens, IdentitySums, token_classes
from reasoning_features.scoring.passes import one_pass_in_shards
from reasoning_features.scoring.selection import REFERENCE, document_blocks
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.vocabulary import (
    Lexicon,
    RandomVocabularies,
    random_vocabularies,
    slot_vocabularies,
)
from reasoning_features.text.word_masks import (
    ALL,
    TokenSets,
    Window,
    capitalised_with_twins,
    occurrence_table,
    token_sets,
    vocabulary_set,
    word_set,
)

RARE = 20
"""Words that occur less often in the scored corpus are not drawn into random vocabularies."""

IDENTITIES: dict[str, int] = {"token": 0, "token and the one before": 1}
"""What identity-only features may depend on → tokens of context."""


@dataclass(frozen=True)
class Vocabularies:
    """R, the vocabularies it is compared with, and how well the random ones match.

    Attributes:
        words: name → words. "R" first; "twins" and "slot i" where every word's twin is known; "random i".
        matching: the random draw.
        pool: occurrences of all candidate words.
    """

    words: dict[str, tuple[str, ...]]
    matching: RandomVocabularies
    pool: pd.DataFrame


def draw_vocabularies(
    scored: Corpus,
    everything: Corpus,
    tokenizer: Any,
    words: Sequence[str],
    candidates: Sequence[str],
    known: Lexicon,
    n_random: int,
    n_slot: int,
    seed: int,
) -> Vocabularies:
    """R, its random and its slot-matched vocabularies.

    Frequency and share inside thinking are measured in ``everything`` (reasoning and general text, since all
    of a reasoning corpus is thinking); a candidate must occur at least 20 times in ``scored``.

    Raises:
        UserError: too few candidates, or more mixtures than there are.
    """
    capitalised = capitalised_with_twins(known.twins)
    frequent = occurrence_table(scored, tokenizer, candidates, capitalised)
    names = frequent.loc[frequent["occurrences"] >= RARE, "word"].tolist()
    table = occurrence_table(everything, tokenizer, list(dict.fromkeys([*words, *names])), capitalised)
    reference = table[table["word"].isin(words)].set_index("word").reindex(list(words)).dropna().reset_index()
    inside = {part for word in words for part in word.split()}
    pool = table[~table["word"].isin(inside)]
    drawn = random_vocabularies(reference, pool, n_random, seed, excluded=known.decision_words)
    found = {REFERENCE: tuple(words)}
    if all(word in known.twins for word in words):
        found["twins"] = tuple(known.twins[word] for word in words)
        slots = slot_vocabularies(words, known.twins, n_slot, seed)
        found |= {f"slot {i}": mixture for i, mixture in enumerate(slots)}
    found |= {f"random {i}": vocabulary for i, vocabulary in enumerate(drawn.vocabularies)}
    return Vocabularies(found, drawn, table)


def needed_sets(
    corpus: Corpus,
    tokenizer: Any,
    vocabularies: Mapping[str, Sequence[str]],
    window: Window,
    grid: Sequence[Window],
    known: Lexicon,
) -> TokenSets:
    """The sets of all vocabularies at one window, and of R at the windows of the grid too.

    Raises:
        UserError: the tokenizer cannot produce a word, or a word never occurs in the corpus.
    """
    capitalised = capitalised_with_twins(known.twins)
    at_window = token_sets(corpus, tokenizer, vocabularies, [window], capitalised)
    reference = {REFERENCE: vocabularies[REFERENCE]}
    return at_window.join(token_sets(corpus, tokenizer, reference, grid, capitalised))


@dataclass(frozen=True)
class Measurement:
    """What one pass over an arm's corpus gives.

    Attributes:
        statistics: sums over all sets, by block of documents ``[blocks, s, f]``.
        identity: statistics of identity-only features for R at one window, by what they may depend on.
        best: each feature's best token as a detector (:class:`lexical.BestTokens`), with its text.
        density: share of tokens on which each feature is active ``[f]``.
    """

    statistics: FeatureStatistics
    identity: dict[str, FeatureStatistics]
    best: pd.DataFrame
    density: NDArray[np.float64]


def measure(
    subject: Subject,
    sae: Any,
    corpus: Corpus,
    sets: TokenSets,
    words: Sequence[str],
    window: Window,
    blocks: int,
    batch_tokens: int,
    kept: Path | None = None,
) -> Measurement:
    """Read the corpus once and accumulate everything.

    Memory, beside the model and the autoencoder: 8 · blocks · sets · features bytes of sums, 2 GB for
    pieces of activations and best tokens, and (sets / 8 + 150) bytes a token of the corpus.

    Args:
        sets: what to sum over.
        words: R, for the identity-only features.
        window: R's window, for the same.
        blocks: blocks of documents to keep apart.
        batch_tokens: the most token ids in one forward pass.
        kept: folder of shards (:func:`reasoning_features.scoring.passes.one_pass_in_shards`); each holds its
            own blocks' sums, so all together are as large as the sums.

    Raises:
        UserError: the autoencoder has another width.
    """
    sums = SetSums(sets, document_blocks(corpus, blocks), blocks)
    few = sets.only([ALL, *(word_set(word, window) for word in words), vocabulary_set(REFERENCE, window)])
    by_class = {}
    for name, context in IDENTITIES.items():
        classes, ids = token_classes(corpus, context)
        by_class[name] = IdentitySums(classes, len(ids), few)
    classes, ids = token_classes(corpus)
    tokens = BestTokens(classes, len(ids))
    gathered: dict[str, Accumulator] = {"sums": sums, "tokens": tokens, **by_class}
    key = {"sets": sets.digest, "words": list(words), "window": list(window)}
    one_pass_in_shards("scores", subject, sae, corpus, gathered, batch_tokens, key, kept, blocks)
    identity = {name: accumulator.result() for name, accumulator in by_class.items()}
    best = tokens.result()
    alone = ids[best["token_class"], -1]
    best["token"] = [repr(subject.tokenizer.decode([int(token)])) for token in alone]
    return Measurement(sums.result(), identity, best, tokens.density)
