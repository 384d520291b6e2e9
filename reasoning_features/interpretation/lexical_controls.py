"""Do its own top tokens drive a feature? They are put into plain text that holds none of them.

The protocol of 2601.05679 ("Do Sparse Autoencoders Identify Reasoning Features in Language Models?"): the ten
tokens of a feature are those with its largest mean activation in traces, of tokens that occur five times or
more. Three of them, drawn at random, are put into each plain document of 64 tokens; the largest activation in
the document with them is compared with that without. A feature is driven by them at Cohen's d ≥ 0.8, p < 0.01
of a t-test; partly at d ≥ 0.5, p < 0.01; weakly at d ≥ 0.2, p < 0.05. The paper calls the rest
context-dependent. Here it is "not triggered by its own top tokens": that is all the test shows.

Deviations: one and eight tokens are put in besides; there are 60 plain documents instead of 500, at which
d = 0.36 reaches p < 0.05; the feature's top tokens are first left out of them, which else may hold them;
tokens come singly at random places between words, where the paper tries pairs, triples and other places too
and keeps what works best. So fewer features are found to be driven here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from reasoning_features.dictionaries.autoencoder import encoded_columns
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import stream
from reasoning_features.settings import Settings
from reasoning_features.statistics import Array, Ids, share_of
from reasoning_features.text import words
from reasoning_features.text.corpora import general_corpus, reasoning_corpus
from reasoning_features.text.corpus import Corpus

LARGE, MEDIUM, SMALL = 0.8, 0.5, 0.2  # Cohen's d from which a feature is driven, partly, weakly
P_VALUES = {LARGE: 0.01, MEDIUM: 0.01, SMALL: 0.05}
DRIVEN, NOT_TRIGGERED = "driven by its top tokens", "not triggered by its own top tokens"
CLASSES = (DRIVEN, "partly driven", "weakly driven", NOT_TRIGGERED)
TOP, OCCURRENCES = 10, 5  # tokens of a feature, of those that occur as often
DOCUMENTS = 60  # plain ones, at most: from 55 on, d = 0.5 reaches p < 0.01
FEATURES = 12  # the first ones of a group, at most: each takes four passes over the documents
INJECTED, PAPER = (1, 3, 8), 3  # tokens put into a document, against none; the paper's number


def top_tokens(
    subject: Subject, corpus: Corpus, groups: Mapping[str, tuple[Any, Ids]], batch_tokens: int
) -> dict[str, dict[int, list[int]]]:
    """Group → feature → the ids of its ten tokens with the largest mean activation in a corpus, largest
    first, in one pass for all groups; of tokens that occur five times, and on which it is active at all.
    """
    counts = np.bincount(corpus.tokens[~corpus.special])
    ids = torch.from_numpy(corpus.tokens.astype(np.int64))
    sums = {g: torch.zeros(len(counts), len(own), dtype=torch.float64) for g, (_, own) in groups.items()}
    for batch in stream(subject, corpus, batch_tokens):
        for group, (sae, features) in groups.items():
            columns = encoded_columns(sae, batch.residual, features).cpu().double()
            sums[group].index_add_(0, ids[batch.positions.cpu()], columns)
    found: dict[str, dict[int, list[int]]] = {}
    share = np.where(counts >= OCCURRENCES, 1 / np.maximum(counts, 1), 0.0)[:, None]
    for group, (_, own) in groups.items():
        means = sums[group].numpy() * share
        best = np.argsort(-means, axis=0, kind="stable")[:TOP].T
        found[group] = {int(f): [int(t) for t in best[i] if means[t, i] > 0] for i, f in enumerate(own)}
    return found


def largest(subject: Subject, sae: Any, corpus: Corpus, feature: int, batch_tokens: int) -> Array:
    """A feature's largest activation in each document ``[d]``."""
    found = np.zeros(corpus.n_documents)
    for batch in stream(subject, corpus, batch_tokens):
        values = encoded_columns(sae, batch.residual, [feature])[:, 0].cpu().numpy()
        np.maximum.at(found, corpus.document_of[batch.positions.cpu().numpy()], values)
    return found


def measure_controls(
    settings: Settings, subject: Subject, groups: Mapping[str, tuple[Any, Ids]]
) -> pd.DataFrame:
    """Put each feature's own top tokens into plain documents: a row for each of the first features of every
    group (a dictionary and features of it) and number ``injected``, with ``d``, ``p``, ``class``, its top
    ``tokens``.

    Top tokens come from the subject's traces, plain documents from its general text. A feature that is never
    active in traces has no tokens and no rows. UserError: no plain document has room.
    """
    tokenizer, batch = subject.tokenizer, settings.batch_tokens
    traces = reasoning_corpus(settings, tokenizer, "selection", settings.subject)
    plain = words.plain_documents(general_corpus(settings, tokenizer, "evaluation")).head(DOCUMENTS)
    rows: list[dict[str, Any]] = []
    groups = {group: (sae, features[:FEATURES]) for group, (sae, features) in groups.items()}
    tops = top_tokens(subject, traces, groups, batch)
    for group, (sae, _) in groups.items():
        for feature, own in tops[group].items():
            if not own:
                continue
            texts = ", ".join(repr(tokenizer.decode([token])) for token in own)
            bare = words.hosts(plain, tokenizer, own, max(INJECTED))
            before = largest(subject, sae, bare, feature, batch)
            for n in INJECTED:
                places = words.draw_places(bare, tokenizer, n, settings.seed)
                drawn = np.random.default_rng([settings.seed, n]).choice(own, len(places))
                changed = words.inject(bare, places, drawn, "with top tokens")
                d, p = effect_size(before, largest(subject, sae, changed, feature, batch))
                row = {"group": group, "feature": feature, "injected": n, "d": d, "p": p}
                rows.append(row | {"class": classify(d, p), "documents": len(before), "tokens": texts})
    return pd.DataFrame(rows)


def effect_size(untouched: Array, changed: Array) -> tuple[float, float]:
    """Cohen's d of activations changed against untouched ``[n]``, and p of Student's two-sided two-sample
    test. d is 0 where neither varies nor differs, infinite where a difference has no spread.
    """
    n, gap = len(untouched), float(changed.mean() - untouched.mean())
    pooled = float(np.sqrt((untouched.var(ddof=1) + changed.var(ddof=1)) / 2))
    d = gap / pooled if pooled > 0 else float(np.copysign(np.inf, gap)) if gap else 0.0
    return d, float(2 * student.sf(abs(d) * np.sqrt(n / 2), 2 * n - 2))


def classify(d: float, p: float) -> str:
    """The class of a feature by effect size and p: one of :data:`CLASSES`."""
    reached = [d >= least and p < most for least, most in P_VALUES.items()]
    return CLASSES[reached.index(True)] if any(reached) else NOT_TRIGGERED


def class_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Share of each class in each group and number of tokens put in, from the rows of
    :func:`measure_controls`, with its 95% interval over features (Wilson).
    """
    rows: list[dict[str, Any]] = []
    for (group, n), own in table.groupby(["group", "injected"], sort=False):
        for kind in CLASSES:
            share = share_of(own["class"] == kind).row("share")
            row = {"group": group, "injected": n, "class": kind} | share
            rows.append(row | {"features": len(own), "documents": int(own["documents"].min())})
    return pd.DataFrame(rows)
