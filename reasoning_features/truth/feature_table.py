"""The feature table: all that a score of features may look at, one row a feature, from one pass over traces.

The traces are those of the selection split; what features cause is measured on the evaluation split, so a
score cannot have seen what it is judged by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from reasoning_features.files import read_json, write_json
from reasoning_features.models.subject import Subject
from reasoning_features.runs.shards import Arrays
from reasoning_features.scoring import feature_statistics as passes
from reasoning_features.scoring import reason_score
from reasoning_features.scoring.feature_statistics import FeatureStatistics, token_classes
from reasoning_features.scoring.selection import IDENTITIES, REFERENCE
from reasoning_features.settings import READ, Settings
from reasoning_features.statistics import Array
from reasoning_features.text import vocabulary
from reasoning_features.text.corpora import general_corpus, reasoning_corpus, solution_texts, thinking_texts
from reasoning_features.text.corpus import Corpus, join
from reasoning_features.text.vocabulary import Lexicon, lexicon
from reasoning_features.text.words import (
    ALL,
    Mask,
    TokenSets,
    Window,
    WordIndex,
    occurrence_table,
    token_sets,
    vocabulary_set,
    word_set,
)
from reasoning_features.truth.decisions import label_sets

Words = Mapping[str, Sequence[str]]  # a vocabulary's name → its words
RARE = 20  # words that occur less often in the scored corpus are not drawn into random vocabularies
ARTEFACT = "features"  # that notebook 03 stores, and the settings that determine it
DETERMINED_BY = (
    *READ, "subject", "autoencoder", "seed", "reasoning_documents", "general_documents", "words", "alpha",
    "window", "windows", "selected", "blocks", "batch_tokens", "random_vocabularies",
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
    tokenizer, words, known = subject.tokenizer, settings.words, lexicon(settings)
    n, seed = settings.random_vocabularies, settings.seed
    traces = reasoning_corpus(settings, tokenizer, "selection", settings.subject)
    everything = join("all", [traces, general_corpus(settings, tokenizer, "selection")])
    if ranking is None:
        ranking = vocabulary.rank_words(
            thinking_texts(settings, tokenizer), solution_texts(settings, tokenizer)
        )
    spoken = ranking["word"].tolist()
    frequent = occurrence_table(WordIndex(traces, tokenizer), spoken, known.capitalised)
    names = frequent.loc[frequent["occurrences"] >= RARE, "word"].tolist()
    index, candidates = WordIndex(everything, tokenizer), list(dict.fromkeys([*words, *names]))
    table = occurrence_table(index, candidates, known.capitalised)
    reference = table.set_index("word").reindex(list(words)).dropna().reset_index()
    pool = table[~table["word"].isin({part for word in words for part in word.split()})]
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
    index, words = WordIndex(corpus, tokenizer), vocabularies[REFERENCE]
    grid = list(dict.fromkeys([*windows, window, reason_score.RELEASED_WINDOW]))
    sets = token_sets(index, vocabularies, [window], known.capitalised)
    sets = sets.join(token_sets(index, {REFERENCE: words}, grid, known.capitalised))
    spans = {word: index.occurrences(word, known.capitalised) for word in words}
    own = np.any([index.mask(span, (0, 0)) for span in spans.values()], axis=0)
    before, masked = {}, {}
    for word, span in spans.items():
        first = corpus.starts[np.searchsorted(corpus.starts, span[:, 0], side="right") - 1]
        ahead = np.stack([np.maximum(span[:, 0] - window[0], first), span[:, 0]], axis=1)
        before[word] = index.mask(ahead[ahead[:, 0] < ahead[:, 1]], (0, 0))
        masked[word] = index.mask(span, window) & ~own
    more = dict(labels or {})
    for variant, every, by_word, around in (
        ("before", ~corpus.special, before, (window[0], 0)),
        ("masked", ~corpus.special & ~own, masked, window),
    ):
        masks = {ALL: every} | {word_set(word, around): mask for word, mask in by_word.items()}
        masks[vocabulary_set(REFERENCE, around)] = np.any(list(by_word.values()), axis=0)
        more |= {f"{variant}|{name}": mask for name, mask in masks.items()}
    return sets.join(TokenSets.of(more))


def of_variant(statistics: FeatureStatistics, variant: str) -> FeatureStatistics:
    """The statistics of a variant's sets, under the names that ReasonScore looks for."""
    own = statistics.only([name for name in statistics.names if name.startswith(f"{variant}|")])
    return replace(own, names=tuple(name.removeprefix(f"{variant}|") for name in own.names))


class Largest:
    """Accumulates each feature's largest activation."""

    def __init__(self) -> None:
        self._state: Arrays = {}

    def update(self, features: Tensor, positions: Tensor) -> None:
        self.merge({"maximum": features.amax(0).double().cpu().numpy()})

    def state(self) -> Arrays:
        return self._state

    def merge(self, state: Arrays) -> None:
        had = self._state.get("maximum", state["maximum"])
        self._state = {"maximum": np.maximum(had, state["maximum"])}


@dataclass(frozen=True)
class Measurement:
    """What one pass over the traces gives."""

    statistics: FeatureStatistics  # over the sets, by block of documents [blocks, s, f]
    identity: dict[str, FeatureStatistics]  # of token-identity baselines, by what these depend on [s, f]
    learnt: dict[str, FeatureStatistics]  # of the same, from even blocks of documents alone; empty without
    best: pd.DataFrame  # of ``BestTokens``, with the token's text
    density: Array  # share of tokens on which each feature is active [f]
    maximum: Array  # largest activation [f]


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
    inside, outside, by_word = reason_score.set_means(whole, REFERENCE, words, window)
    columns: dict[str, Any] = {
        "density": measured.density,
        "mean": means[whole.names.index(ALL)],
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
    window, words = settings.window, vocabularies[REFERENCE]
    labels = label_sets(traces, subject.tokenizer, settings.corpus)
    known = lexicon(settings)
    sets = needed_sets(traces, subject.tokenizer, vocabularies, window, settings.windows, known, labels)
    sums = passes.SetSums(sets, traces.document_of % (blocks or 1), blocks or 1)
    few = sets.only([ALL, *(word_set(word, window) for word in words), vocabulary_set(REFERENCE, window)])
    odd = traces.document_of % (blocks or 1) % 2
    even = TokenSets.of({name: few.mask(name) & (odd == 0) for name in few.names})
    by_class, by_half = {}, {}
    for name, context in IDENTITIES.items():
        classes, ids = token_classes(traces, context)
        by_class[name] = passes.IdentitySums(classes, len(ids), few)
        if blocks:  # tokens of odd blocks are classes of their own, so that no mean is of both
            by_half[name] = passes.IdentitySums(2 * classes + odd, 2 * len(ids), even)
    classes, ids = token_classes(traces)
    tokens, largest = passes.BestTokens(classes, len(ids)), Largest()
    gathered: dict[str, passes.Accumulator] = {"sums": sums, "tokens": tokens, "largest": largest, **by_class}
    gathered |= {f"{name}, even blocks": each for name, each in by_half.items()}
    key = {"sets": sets.digest, "words": list(words), "window": list(window), "gathered": list(gathered)}
    given = subject, sae, traces, gathered, settings.batch_tokens
    passes.one_pass_in_shards("features", *given, key, kept, blocks)
    best, maximum = tokens.result(), largest.state()["maximum"]
    texts = [repr(subject.tokenizer.decode([int(ids[label, -1])])) for label in best["token_class"]]
    identity, learnt = ({name: each.result() for name, each in own.items()} for own in (by_class, by_half))
    found = sums.result(), identity, learnt, best.assign(token=texts), tokens.density, maximum
    measured = Measurement(*found)
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
