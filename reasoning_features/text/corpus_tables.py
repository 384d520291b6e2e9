"""Tables of what corpora hold: documents, tokens, moves, and how often each move is phrased with R."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from reasoning_features.text.corpus import Corpus


def summary_table(corpora: Sequence[Corpus]) -> pd.DataFrame:
    """One row a corpus: documents, tokens, median length, share of special and thinking tokens, domains."""
    rows = [
        {
            "corpus": corpus.name,
            "documents": corpus.n_documents,
            "tokens": corpus.n_tokens,
            "median length": float(np.median(np.diff(corpus.starts))),
            "special": float(corpus.special.mean()),
            "thinking": float(corpus.thinking.mean()),
            "domains": ", ".join(f"{k} {v}" for k, v in pd.Series(corpus.domains).value_counts().items()),
        }
        for corpus in corpora
    ]
    return pd.DataFrame(rows)


def sentences(corpus: Corpus, tokenizer: Any) -> pd.DataFrame:
    """Every line of every document, also cut at special tokens: ``document``, ``move``, ``text``.

    The move is that of the line's first token, None where moves are not known.
    """
    newline = np.array(["\n" in tokenizer.decode([i]) for i in range(len(tokenizer))])
    ends = newline[corpus.tokens] | corpus.special
    ends[corpus.starts[1:] - 1] = True
    stops = np.flatnonzero(ends) + 1
    document = corpus.document_of
    rows = []
    for start, stop in zip(np.concatenate([[0], stops[:-1]]), stops, strict=True):
        kept = np.arange(start, stop)[~corpus.special[start:stop]]
        text = tokenizer.decode(corpus.tokens[kept].tolist()).strip()
        if text:
            move = None if corpus.moves is None else corpus.move_names[corpus.moves[kept[0]]]
            rows.append((int(document[start]), move, text))
    return pd.DataFrame(rows, columns=["document", "move", "text"])


def move_table(corpora: Sequence[Corpus], tokenizer: Any, words: Sequence[str]) -> pd.DataFrame:
    """How each move is phrased: ``corpus``, ``move``, ``tokens``, ``sentences``, share ``with a word of R``.

    Corpora without labels have one row, whose move is "all".
    """
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE)
    parts = []
    for corpus in corpora:
        held = sentences(corpus, tokenizer).fillna({"move": "all"})
        held["with a word of R"] = held["text"].str.contains(pattern)
        grouped = held.groupby("move", sort=False)["with a word of R"].agg(["size", "mean"]).reset_index()
        grouped.columns = pd.Index(["move", "sentences", "with a word of R"])
        names = np.array(corpus.move_names or ["all"])
        codes = np.zeros(corpus.n_tokens, int) if corpus.moves is None else corpus.moves
        tokens = pd.Series(names[codes][~corpus.special]).value_counts()
        grouped.insert(0, "corpus", corpus.name)
        grouped.insert(2, "tokens", grouped["move"].map(tokens))
        order = grouped["move"].map({name: i for i, name in enumerate(names)})
        parts.append(grouped.loc[order.sort_values().index])
    return pd.concat(parts, ignore_index=True)


def telling_documents(corpus: Corpus, quantile: float = 0.7) -> list[int]:
    """Documents to show: one of each of the first two styles, or where styles are not known two documents.

    Of those with the most kinds of moves the one whose length is nearest to a ``quantile`` of all lengths.
    """
    lengths = np.diff(corpus.starts)
    kinds = np.zeros(corpus.n_documents)
    if corpus.moves is not None:
        pairs = np.unique(np.stack([corpus.document_of, corpus.moves]), axis=1)
        kinds = np.bincount(pairs[0], minlength=corpus.n_documents).astype(float)
    order = np.lexsort((np.abs(lengths - np.quantile(lengths, quantile)), -kinds))
    if corpus.styles is None:
        return [int(i) for i in order[:2]]
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(corpus.styles[i], int(i))
    return [first[style] for style in dict.fromkeys(corpus.styles)][:2]
