"""How strongly words of R mark going on in real labelled traces, on the scale of the organism's coupling κ.

In the organism κ is the share of the information about persistence (a Jeffreys divergence) that lies in the
words of R. Real traces have no hidden persistence to measure that by, but sentences with labels. So one
statistic is taken on both: the Jeffreys divergence between "holds a word of R" in sentences that keep the
search open and in all others, J = (p − q)(logit p − logit q). On the organism it grows with κ, and the κ at
which the organism's traces have the real traces' J is their coupling.

It says how well the words tell such sentences from others in text. It cannot say that a model reads its
persistence off the words, nor that an organism of that κ is like the real model in anything else. The real
labels were given by a model, which may have gone by those very words: J is then too large.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.organism.language import Document, reasoning_documents
from reasoning_features.organism.parser import DecisionContext, parse
from reasoning_features.settings import load_settings
from reasoning_features.statistics import bootstrap_weights
from reasoning_features.text.vocabulary import split_words

Array = NDArray[np.float64]
Marked = list[tuple[bool, str]]
"""A trace's sentences: whether each keeps the search open, and its text."""

SHIPPED = "reasoning_features/truth/real_coupling.csv"
"""What :func:`coupling_of_traces` gives of DeepSeek-R1-Distill-Qwen-14B's and 32B's traces and the paper's R,
100 labelled traces each: ``python -m reasoning_features.truth.real_coupling FOLDER`` measures it again."""
OPEN_LABELS = frozenset({"backtracking", "uncertainty-estimation"})
"""Labels of real sentences that keep the search open."""
OPEN_MOVES = frozenset({"backtrack", "uncertain"})
"""The organism's moves that do; a try after a dead end does too."""
KAPPAS = (0.0, 0.25, 0.5, 0.75, 1.0)
DOCUMENTS, RESAMPLES, SEED = 600, 1000, 0


def real_sentences(folder: Path) -> dict[str, list[Marked]]:
    """Sentences of every ``deepseek-r1*.jsonl`` in a folder, by file name; a labelled span is a sentence.

    Raises:
        UserError: there is no such file, or its rows have no labelled ``spans``.
    """
    found: dict[str, list[Marked]] = {}
    for file in sorted(folder.glob("deepseek-r1*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        if not all("spans" in row for row in rows):
            raise UserError(f"{file.name} has no labelled spans: give traces with `spans` of label and text.")
        found[file.stem] = [
            [(span["label"] in OPEN_LABELS, span["text"]) for span in row["spans"]] for row in rows
        ]
    if not found:
        raise UserError(f"{folder} has no labelled traces: it needs deepseek-r1*.jsonl with `spans`.")
    return found


def organism_sentences(document: Document) -> Marked:
    """The sentences of one of the organism's traces."""
    sentences: Marked = []
    standing = DecisionContext()
    for sentence in parse(document.text).sentences:
        opens = sentence.label in OPEN_MOVES or (sentence.label == "explore" and standing.dead_end)
        sentences.append((opens, sentence.text))
        standing = standing.after(sentence)
    return sentences


def marking_counts(traces: Iterable[Marked], words: Sequence[str]) -> Array:
    """Sentences of each trace ``[t, 2, 2]``: by whether they keep the search open, and hold a word of R."""
    sought = [tuple(word.split()) for word in words]
    counts = []
    for trace in traces:
        table = np.zeros((2, 2))
        for opens, text in trace:
            found = split_words(text)
            held = {
                tuple(found[i : i + n]) for n in {len(word) for word in sought} for i in range(len(found))
            }
            table[int(opens), int(any(word in held for word in sought))] += 1
        counts.append(table)
    return np.stack(counts)


def shares(counts: Array) -> tuple[Array, Array]:
    """P(holds a word of R) in sentences that keep the search open, and in others, from ``[..., 2, 2]``.

    Half a sentence is added to every cell, so that a share is never 0 or 1.
    """
    smoothed = counts + 0.5
    given = smoothed[..., 1] / smoothed.sum(axis=-1)
    return given[..., 1], given[..., 0]


def divergence(counts: Array) -> Array:
    """Jeffreys divergence in nats between the two shares, from counts ``[..., 2, 2]``."""
    p, q = shares(counts)
    return (p - q) * (np.log(p / (1 - p)) - np.log(q / (1 - q)))


def organism_scale(words: Sequence[str], documents: int = DOCUMENTS, seed: int = SEED) -> pd.DataFrame:
    """J on the organism's traces at each κ: columns ``kappa`` and ``divergence``."""
    found = []
    for kappa in KAPPAS:
        traces = map(organism_sentences, reasoning_documents(kappa, documents, seed, "selection"))
        found.append(float(divergence(marking_counts(traces, words).sum(axis=0))))
    return pd.DataFrame({"kappa": KAPPAS, "divergence": found})


def coupling_of_traces(folder: Path, words: Sequence[str]) -> pd.DataFrame:
    """The coupling of real labelled traces, one row a model.

    Args:
        folder: where the traces are.
        words: R.

    Returns:
        ``model``, ``open_share`` and ``other_share`` (of sentences with a word of R), ``divergence``,
        ``low``, ``high`` (95%, traces resampled), ``kappa``, ``kappa_low``, ``kappa_high`` (within [0, 1]),
        ``outside`` (True where J is beyond that of every κ, so that κ is only a bound), ``traces``.

    Raises:
        UserError: the folder has no labelled traces.
    """
    scale = organism_scale(words)
    rows: list[dict[str, Any]] = []
    for model, traces in real_sentences(folder).items():
        counts = marking_counts(traces, words)
        weights = bootstrap_weights(len(counts), RESAMPLES, SEED)
        again = divergence(np.tensordot(weights, counts, axes=1))
        found = np.array([divergence(counts.sum(axis=0)), *np.quantile(again, [0.025, 0.975])])
        kappa = on_scale(found, scale)
        opens, others = shares(counts.sum(axis=0))
        told = {"model": model, "open_share": float(opens), "other_share": float(others)}
        told |= dict(zip(("divergence", "low", "high"), found.tolist(), strict=True))
        told |= dict(zip(("kappa", "kappa_low", "kappa_high"), kappa.tolist(), strict=True))
        rows.append(told | {"outside": bool(found[0] > scale["divergence"].max()), "traces": len(counts)})
    return pd.DataFrame(rows)


def on_scale(divergences: Array, scale: pd.DataFrame) -> Array:
    """The κ at which the organism has these divergences, by linear interpolation, within [0, 1]."""
    growing = np.maximum.accumulate(scale["divergence"].to_numpy())
    return np.interp(divergences, growing, scale["kappa"].to_numpy())


if __name__ == "__main__":
    coupling_of_traces(Path(sys.argv[1]), load_settings("organism").words).to_csv(
        paths.root() / SHIPPED, index=False
    )
