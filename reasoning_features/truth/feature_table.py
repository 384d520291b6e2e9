"""The feature table: all that a score of features may look at, one row a feature, from one pass over traces.

The traces are those of the selection split; what features cause is measured on the evaluation split, so a
score cannot have seen what it is judged by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.files import read_json, write_json
from reasoning_features.models.subject import Subject
from reasoning_features.runs.shards import Arrays
from reasoning_features.scoring import reason_score
from reasoning_features.scoring.feature_statistics import (
    Accumulator,
    BestTokens,
    FeatureStatistics,
    IdentitySums,
    SetSums,
    one_pass_in_shards,
    token_classes,
)
from reasoning_features.scoring.selection import IDENTITIES, REFERENCE
from reasoning_features.settings import READ, Settings
from reasoning_features.text import vocabulary
from reasoning_features.text.corpora import general_corpus, reasoning_corpus, solution_texts, thinking_texts
from reasoning_features.text.corpus import Corpus, join
from reasoning_features.text.vocabulary import Lexicon, lexicon
from reasoning_features.text.words import (
    ALL,
    Mask,
    TokenIndex,
    TokenSets,
    Window,
    capitalised_with_twins,
    form_ids,
    occurrence_table,
    token_sets,
    vocabulary_set,
    word_set,
)
from reasoning_features.truth.decisions import label_sets

Array = NDArray[np.float64]
Words = Mapping[str, Sequence[str]]  # a vocabulary's name → its words
RARE = 20  # words that occur less often in the scored corpus are not drawn into random vocabularies
ARTEFACT = "features"  # that notebook 03 stores, and the settings that determine it
DETERMINED_BY = (
    *READ, "subject", "autoencoder", "seed", "reasoning_documents", "general_documents", "words", "alpha",
    "window", "windows", "variant", "selected", "blocks", "batch_tokens", "random_vocabularies",
    "slot_vocabularies",
)  # fmt: skip


def draw_words(
    settings: Settings, subject: Subject, ranking: pd.DataFrame | None = None
) -> tuple[dict[str, tuple[str, ...]], dict[str, float]]:
    """R and the vocabularies it is compared with, from the selection split, and how well random ones match.

    Name → words: "R" first; "twins" and "slot i", the label-swap null, where the matched control word of
    every word is known; "random i". How well they match is measured by
    :func:`reasoning_features.text.vocabulary.random_vocabularies`. ``ranking`` is that of
    :func:`reasoning_features.text.vocabulary.rank_words`, where it is there already. Frequency and share
    inside thinking are measured in reasoning and general text, since all of a reasoning corpus is thinking; a
    candidate must occur at least 20 times in the traces.
    Raises UserError: too few candidates, or more mixtures than there are.
    """
    tokenizer, words, known = subject.tokenizer, settings.words, lexicon(settings.corpus)
    traces = reasoning_corpus(settings, tokenizer, "selection", settings.subject)
    everything = join("all", [traces, general_corpus(settings, tokenizer, "selection")])
    if ranking is None:
        ranking = vocabulary.rank_words(
            thinking_texts(settings, tokenizer), solution_texts(settings, tokenizer)
        )
    one_form = capitalised_with_twins(known.twins)
    frequent = occurrence_table(traces, tokenizer, ranking["word"].tolist(), one_form)
    names = frequent.loc[frequent["occurrences"] >= RARE, "word"].tolist()
    table = occurrence_table(everything, tokenizer, list(dict.fromkeys([*words, *names])), one_form)
    reference = table[table["word"].isin(words)].set_index("word").reindex(list(words)).dropna().reset_index()
    inside = {part for word in words for part in word.split()}
    pool = table[~table["word"].isin(inside)]
    n, seed = settings.random_vocabularies, settings.seed
    drawn, matching = vocabulary.random_vocabularies(reference, pool, n, seed, excluded=known.decision_words)
    vocabularies = {REFERENCE: tuple(words)}
    if all(word in known.twins for word in words):
        vocabularies["twins"] = tuple(known.twins[word] for word in words)
        slots = vocabulary.slot_vocabularies(words, known.twins, settings.slot_vocabularies, seed)
        vocabularies |= {f"slot {i}": mixture for i, mixture in enumerate(slots)}
    vocabularies |= {f"random {i}": vocabulary for i, vocabulary in enumerate(drawn)}
    return vocabularies, matching


def needed_sets(
    corpus: Corpus,
    tokenizer: Any,
    vocabularies: Words,
    window: Window,
    windows: Sequence[Window],
    known: Lexicon,
    labels: Mapping[str, Mask] | None = None,
) -> TokenSets:
    """All sets of tokens that one pass sums over; raises as :func:`token_sets`.

    They are the sets of all vocabularies at one window; of R at all ``windows`` and the released one; of R
    with nothing but the tokens before each word (``before|…``); of R at ``window`` with every token of a word
    of R left out of everything (``masked|…``); and ``labels``.
    """
    one_form = capitalised_with_twins(known.twins)
    words = vocabularies[REFERENCE]
    grid = list(dict.fromkeys([*windows, window, reason_score.RELEASED_WINDOW]))
    sets = token_sets(corpus, tokenizer, vocabularies, [window], one_form)
    sets = sets.join(token_sets(corpus, tokenizer, {REFERENCE: words}, grid, one_form))
    index = TokenIndex(corpus)
    spans = {word: index.occurrences(form_ids(tokenizer, word, one_form)) for word in words}
    own = np.any([index.mask(span, (0, 0)) for span in spans.values()], axis=0)
    before, masked = {}, {}
    for word, span in spans.items():
        first = corpus.starts[np.searchsorted(corpus.starts, span[:, 0], side="right") - 1]
        ahead = np.stack([np.maximum(span[:, 0] - window[0], first), span[:, 0]], axis=1)
        before[word] = index.mask(ahead[ahead[:, 0] < ahead[:, 1]], (0, 0))
        masked[word] = index.mask(span, window) & ~own
    more = _variant_masks("before", ~corpus.special, before, (window[0], 0))
    more |= _variant_masks("masked", ~corpus.special & ~own, masked, window)
    return sets.join(TokenSets.of(more | dict(labels or {})))


def _variant_masks(variant: str, every: Mask, by_word: Mapping[str, Mask], window: Window) -> dict[str, Mask]:
    """Masks of a variant of R's sets under names of their own."""
    around = {word_set(word, window): mask for word, mask in by_word.items()}
    union = np.any(list(by_word.values()), axis=0)
    masks = {ALL: every} | around | {vocabulary_set(REFERENCE, window): union}
    return {f"{variant}|{name}": mask for name, mask in masks.items()}


def of_variant(statistics: FeatureStatistics, variant: str) -> FeatureStatistics:
    """The statistics of a variant's sets, under the names that ReasonScore looks for."""
    own = statistics.only([name for name in statistics.names if name.startswith(f"{variant}|")])
    return replace(own, names=tuple(name.removeprefix(f"{variant}|") for name in own.names))


class Spread:
    """Accumulates each feature's largest activation and its sum of squares."""

    def __init__(self) -> None:
        self._state: Arrays = {}

    def update(self, features: Tensor, positions: Tensor) -> None:
        maximum, squares = features.amax(0).double(), features.double().square().sum(0)
        count = np.array(len(features))
        self.merge({"maximum": maximum.cpu().numpy(), "squares": squares.cpu().numpy(), "count": count})

    def state(self) -> Arrays:
        return self._state

    def merge(self, state: Arrays) -> None:
        had = self._state or {name: np.zeros_like(values) for name, values in state.items()}
        self._state = {name: had[name] + state[name] for name in ("squares", "count")}
        self._state["maximum"] = np.maximum(had["maximum"], state["maximum"])


@dataclass(frozen=True)
class Measurement:
    """What one pass over the traces gives."""

    statistics: FeatureStatistics  # over the sets, by block of documents [blocks, s, f]
    identity: dict[str, FeatureStatistics]  # of token-identity baselines, by what these depend on [s, f]
    best: pd.DataFrame  # of ``BestTokens``, with the token's text
    density: Array  # share of tokens on which each feature is active [f]
    maximum: Array  # largest activation [f]
    mean_square: Array  # [f]


def feature_table(
    measured: Measurement, norms: Array, vocabularies: Words, labels: list[str], window: Window, alpha: float
) -> pd.DataFrame:
    """One row a feature, from one pass over :func:`needed_sets` of these vocabularies and labels.

    ``norms`` are ‖W_dec,i‖ ``[f]``. ``inside``, ``outside`` and ``word:<r>`` are mean activations in R's
    windows, out of them and around each word of R; ``precision``, ``recall``, ``f1`` are the best token's; a
    label's column is the mean over its set; ``score:…`` is ReasonScore: of R, of each vocabulary, by the
    released code, with the tokens before each word alone, without R's own tokens, and by token identity.
    """
    whole, words = measured.statistics.total(), vocabularies[REFERENCE]
    means = whole.sums / np.maximum(whole.counts, 1)[:, None]
    mean = means[whole.names.index(ALL)]
    inside, outside, by_word = reason_score.set_means(whole, REFERENCE, words, window)
    columns: dict[str, Any] = {
        "density": measured.density,
        "mean": mean,
        "standard deviation": np.sqrt(np.maximum(measured.mean_square - mean**2, 0)),
        "maximum": measured.maximum,
        "decoder norm": norms,
        "inside": inside,
        "outside": outside,
        "entropy": reason_score.entropy(by_word),
        **{name: measured.best[name].to_numpy() for name in ("precision", "recall", "f1")},
        **{f"word:{word}": by_word[i] for i, word in enumerate(words)},
        **{name: means[whole.names.index(name)] for name in labels},
    }
    for name, own in vocabularies.items():
        column = "score:reason score" if name == REFERENCE else f"score:{name}"
        columns[column] = reason_score.vocabulary_scores(whole, name, own, window, alpha)
    variants = {
        "released": (whole.scaled(norms), reason_score.RELEASED_WINDOW),
        "before": (of_variant(whole, "before"), (window[0], 0)),
        "masked": (of_variant(whole, "masked"), window),
        "identity": (measured.identity["token"], window),
        "identity of two": (measured.identity["token and the one before"], window),
    }
    for name, (statistics, at) in variants.items():
        columns[f"score:{name}"] = reason_score.vocabulary_scores(statistics, REFERENCE, words, at, alpha)
    table = pd.DataFrame(columns).astype(np.float32)
    table.insert(0, "feature", np.arange(len(table)))
    table.insert(1, "best token", measured.best["token"])
    return table


def measure_features(
    settings: Settings,
    subject: Subject,
    sae: Any,
    vocabularies: Words,
    blocks: int | None = None,
    kept: Path | None = None,
) -> tuple[Measurement, pd.DataFrame]:
    """Read the selection split's traces once; what that gives, and the :func:`feature_table`.

    ``blocks`` of documents are kept apart, or summed where it is None. Memory: 8 · blocks · sets · features
    bytes of sums, 2 GB for pieces of activations and best tokens, and (sets / 8 + 150) bytes a token.
    """
    traces = reasoning_corpus(settings, subject.tokenizer, "selection", settings.subject)
    window = reason_score.variant_window(settings.variant, settings.window)
    labels = label_sets(traces, subject.tokenizer, settings.corpus)
    known, words = lexicon(settings.corpus), vocabularies[REFERENCE]
    sets = needed_sets(traces, subject.tokenizer, vocabularies, window, settings.windows, known, labels)
    sums = SetSums(sets, traces.document_of % (blocks or 1), blocks or 1)
    few = sets.only([ALL, *(word_set(word, window) for word in words), vocabulary_set(REFERENCE, window)])
    by_class = {}
    for name, context in IDENTITIES.items():
        classes, ids = token_classes(traces, context)
        by_class[name] = IdentitySums(classes, len(ids), few)
    classes, ids = token_classes(traces)
    tokens, spread = BestTokens(classes, len(ids)), Spread()
    gathered: dict[str, Accumulator] = {"sums": sums, "tokens": tokens, "spread": spread, **by_class}
    key = {"sets": sets.digest, "words": list(words), "window": list(window)}
    one_pass_in_shards("features", subject, sae, traces, gathered, settings.batch_tokens, key, kept, blocks)
    best, seen = tokens.result(), spread.state()
    texts = [repr(subject.tokenizer.decode([int(ids[label, -1])])) for label in best["token_class"]]
    identity = {name: accumulator.result() for name, accumulator in by_class.items()}
    squares = seen["squares"] / seen["count"]
    measured = Measurement(
        sums.result(), identity, best.assign(token=texts), tokens.density, seen["maximum"], squares
    )
    norms = reason_score.decoder_norms(sae)
    return measured, feature_table(measured, norms, vocabularies, list(labels), window, settings.alpha)


def save_features(folder: Path, table: pd.DataFrame, vocabularies: Words) -> None:
    """Store a feature table, and the vocabularies that its scores are of."""
    table.to_parquet(folder / "features.parquet", index=False)
    write_json(folder / "vocabularies.json", dict(vocabularies))


def load_features(folder: Path) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """What :func:`save_features` wrote."""
    words = read_json(folder / "vocabularies.json")
    return pd.read_parquet(folder / "features.parquet"), {name: tuple(own) for name, own in words.items()}
