"""Are features driven by tokens or by context? Words put into plain text, and sentences without those words.

After 2601.05679 ("Do Sparse Autoencoders Identify Reasoning Features in Language Models?"): three words are
put into each plain document of 64 tokens, and activations with them are compared with those without. By its
rule a feature is token-driven at Cohen's d ≥ 0.8 and p < 0.01 of a t-test; partially at d ≥ 0.5, p < 0.01;
weakly at d ≥ 0.2, p < 0.05; else context-dependent. Here the middle two are one class, "partly".
"Context-driven" says only that R's words do not do it: a feature of the full stop before them is so too.

That paper puts in each feature's own top tokens; here they are R's words, at random places between words,
after sentences that hold one are taken out. It compares the largest activation in a whole document, in which
other words hide what was put in; here it is the largest at the word or within its window after, against the
same place untouched. The whole document's verdict stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from reasoning_features.dictionaries.autoencoder import ELEMENTS, encoded_columns
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import stream
from reasoning_features.settings import Settings
from reasoning_features.statistics import bootstrap_weights
from reasoning_features.text import words
from reasoning_features.text.corpora import general_corpus, reasoning_corpus
from reasoning_features.text.corpus import Corpus, sentence_of, sentence_starts
from reasoning_features.text.vocabulary import lexicon

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
Maxima = NDArray[np.float32]
CLASSES = ("token-driven", "partly", "context-driven")
LARGE, SMALL = 0.8, 0.2  # Cohen's d from which a feature is token-driven, and from which it is partly so
P_LARGE, P_SMALL = 0.01, 0.05
RESAMPLES, SEED = 1000, 0


def largest(
    subject: Subject, sae: Any, corpus: Corpus, features: Ids, spans: Ids, batch_tokens: int
) -> tuple[Maxima, Maxima]:
    """Each feature's largest activation in each span ``[n, k]`` and in each document ``[d, k]``.

    ``spans`` ``[n, 2]`` are start and end (exclusive), not empty. Documents are read some at a time, so that
    memory grows with spans and not with tokens.
    """
    in_spans = np.zeros((len(spans), len(features)), dtype=np.float32)
    in_documents = np.zeros((corpus.n_documents, len(features)), dtype=np.float32)
    document = np.searchsorted(corpus.starts, spans[:, 0], side="right") - 1
    part = corpus.starts[:-1] * len(features) // ELEMENTS
    for number in np.unique(part):
        chosen = np.flatnonzero(part == number)
        some, begin = corpus.select(chosen), corpus.starts[chosen[0]]
        values = np.zeros((some.n_tokens + 1, len(features)), dtype=np.float32)  # 0 at special tokens
        for batch in stream(subject, some, batch_tokens):
            values[batch.positions.numpy()] = encoded_columns(sae, batch.residual, features).numpy()
        in_documents[chosen] = np.maximum.reduceat(values[:-1], corpus.starts[chosen] - begin, axis=0)
        inside = np.flatnonzero(np.isin(document, chosen))
        if len(inside):
            in_spans[inside] = np.maximum.reduceat(values, (spans[inside] - begin).ravel(), axis=0)[::2]
    return in_spans, in_documents


@dataclass(frozen=True)
class Controls:
    """What words do to features, feature by feature."""

    table: pd.DataFrame  # one row a feature (:func:`measure_controls`)
    untouched: Maxima  # largest activation at each place as it stands [n, k],
    with_words: Maxima  # and with a word of R put in [n, k]
    documents: Ids  # the document of each place [n]


def measure_controls(
    settings: Settings, subject: Subject, sae: Any, groups: Mapping[str, Ids], control_words: Sequence[str]
) -> Controls:
    """Activate the features of some groups by words of R alone, and by reasoning without those words.

    The subject's traces give the words' usual forms, and sentences with and without them; plain documents of
    its general text take the words. ``control_words`` are matched to R in frequency. A word acts on its own
    tokens and on as many after it as the window says.

    The table has shares of places at which each feature is active, with R and control words put in, and
    ``untouched``; shares of sentences of thinking; and by effect size ``d`` and ``p`` the ``class``, and the
    ``document class`` of whole documents as in 2601.05679.

    Raises UserError: no plain documents, none left without R's words, or a word that cannot be written.
    """
    tokenizer, features = subject.tokenizer, np.unique(np.concatenate(list(groups.values())))
    reasoning = reasoning_corpus(settings, tokenizer, "selection", settings.subject)
    plain = words.plain_documents(general_corpus(settings, tokenizer, "evaluation"))
    one_form = words.capitalised_with_twins(lexicon(settings.corpus).twins)
    bare = words.hosts(plain, tokenizer, settings.words, words.INJECTED)
    places = words.draw_places(bare, tokenizer, words.INJECTED, settings.seed)
    drawn = np.random.default_rng(settings.seed).integers(0, 2**31, size=len(places))

    def read(corpus: Corpus, spans: Ids) -> tuple[Maxima, Maxima]:
        end = corpus.starts[np.searchsorted(corpus.starts, spans[:, 0], side="right")]
        reached = np.stack([spans[:, 0], np.minimum(spans[:, 1] + settings.window[1], end)], axis=1)
        return largest(subject, sae, corpus, features, reached, settings.batch_tokens)

    untouched, before = read(bare, np.stack([places, places + 1], axis=1))
    at_place, whole = {}, {}
    for name, chosen in {"R": settings.words, "control": control_words}.items():
        forms = words.usual_forms(reasoning, tokenizer, chosen, one_form)
        put_in = [forms[draw % len(forms)] for draw in drawn]
        at_place[name], whole[name] = read(*words.inject(bare, places, put_in, f"{name} put in"))
    table: dict[str, Any] = {"feature": features}
    table |= {f"{name} put in": (maxima > 0).mean(axis=0) for name, maxima in at_place.items()}
    table["untouched"] = (untouched > 0).mean(axis=0)
    table |= _sentence_shares(settings, subject, sae, features, reasoning)
    pairs = {"": (untouched, at_place["R"]), "control ": (untouched, at_place["control"])}
    for prefix, (first, second) in (pairs | {"document ": (before, whole["R"])}).items():
        d, p = effect_size(first, second, np.ones((1, len(first))))
        table |= {f"{prefix}d": d[0], f"{prefix}p": p[0]}
    table["class"] = classify(table["d"], table["p"])
    table["document class"] = classify(table["document d"], table["document p"])
    return Controls(pd.DataFrame(table), untouched, at_place["R"], bare.document_of[places])


def _sentence_shares(
    settings: Settings, subject: Subject, sae: Any, features: Ids, reasoning: Corpus
) -> dict[str, Array]:
    """Share of sentences of thinking with and without a word of R in which each feature is active ``[k]``.

    R's own tokens are left out, so that a feature of the word itself does not count for the sentence.
    """
    starts = sentence_starts(reasoning, subject.tokenizer)
    sentence = sentence_of(reasoning, starts)
    index = words.TokenIndex(reasoning)
    one_form = words.capitalised_with_twins(lexicon(settings.corpus).twins)
    spans = [index.occurrences(words.form_ids(subject.tokenizer, word, one_form)) for word in settings.words]
    own = index.mask(np.concatenate(spans), (0, 0))
    inside = (sentence >= 0) & reasoning.thinking
    holds, counted = (np.zeros(len(starts), dtype=bool) for _ in range(2))
    holds[sentence[own & inside]] = True
    counted[sentence[inside]] = True
    active = np.zeros((len(starts), len(features)), dtype=bool)
    for batch in stream(subject, reasoning, settings.batch_tokens, inside & ~own & ~reasoning.special):
        values = encoded_columns(sae, batch.residual, features).numpy()
        np.logical_or.at(active, sentence[batch.positions.numpy()], values > 0)
    groups = {"sentences with R": counted & holds, "sentences without R": counted & ~holds}
    missing = np.full(len(features), np.nan)
    return {name: active[group].mean(axis=0) if group.any() else missing for name, group in groups.items()}


def effect_size(
    untouched: NDArray[np.floating], changed: NDArray[np.floating], weights: Array
) -> tuple[Array, Array]:
    """Cohen's d of activations changed against untouched ``[n, k]``, and p of the t-test, both ``[b, k]``.

    Rows count as often as the weights ``[b, n]`` say. d is 0 where neither varies nor differs, infinite where
    a difference has no spread; p is of Student's two-sample test, two-sided.
    """
    n = weights.sum(axis=1, keepdims=True)
    moments = []
    for values in (untouched, changed):
        wide = np.asarray(values, dtype=float)
        mean = weights @ wide / n
        moments.append((mean, np.maximum(weights @ wide**2 / n - mean**2, 0) * n / (n - 1)))
    (first, spread), (second, other) = moments
    pooled = np.sqrt((spread + other) / 2)
    gap = second - first
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.where(np.abs(gap) > 1e-12, gap / pooled, 0.0)
    return d, 2 * student.sf(np.abs(d) * np.sqrt(n / 2), 2 * n - 2)


def classify(d: Array, p: Array) -> NDArray[np.str_]:
    """The class of each feature by effect size and p, elementwise: one of :data:`CLASSES`."""
    token = (d >= LARGE) & (p < P_LARGE)
    partly = (d >= SMALL) & (p < P_SMALL)
    return np.where(token, CLASSES[0], np.where(partly, CLASSES[1], CLASSES[2]))


def class_shares(controls: Controls, groups: Mapping[str, Ids], causal: Ids | None = None) -> pd.DataFrame:
    """Share of each class in groups of features, with its 95% interval (features and documents resampled).

    The column ``causal`` is the share of the group that is of the class and has a true causal effect, where
    the features that do are known. Raises UserError: a group has no features.
    """
    documents = int(controls.documents.max()) + 1
    weights = bootstrap_weights(documents, RESAMPLES, SEED)[:, controls.documents]
    d, p = effect_size(controls.untouched, controls.with_words, weights)
    again = classify(d, p)
    table = controls.table
    rows: list[dict[str, Any]] = []
    for name, features in groups.items():
        member = np.isin(table["feature"], features)
        n = int(member.sum())
        if not n:
            raise UserError(f"There are no features in the group {name!r}: choose at least one.")
        drawn = bootstrap_weights(n, RESAMPLES, SEED + 1)
        for kind in CLASSES:
            own = table["class"].to_numpy()[member] == kind
            both = np.nan if causal is None else (own & np.isin(table["feature"][member], causal)).mean()
            resampled = (drawn * (again[:, member] == kind)).sum(axis=1) / n
            low, high = np.quantile(resampled, [0.025, 0.975])
            row = {"group": name, "class": kind, "share": own.mean(), "low": low, "high": high}
            rows.append(row | {"causal": both, "features": n, "documents": documents})
    return pd.DataFrame(rows)
