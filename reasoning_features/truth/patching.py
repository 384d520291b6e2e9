"""Where a decision is taken: parts of the residual stream exchanged between two wordings of one trace.

Two token sequences of equal length differ in some words, and so does a decision's log-odds. Running one with
some of its stream, after one block, replaced by the other's gives back a share of that difference: all of it
where everything is replaced, and as much as these positions hold at that depth otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.statistics import bootstrap_ratio
from reasoning_features.text.corpus import Corpus, by_length
from reasoning_features.text.sentences import sentence_starts
from reasoning_features.truth.decisions import Decisions, balanced, find_decisions, log_odds, swapped

GROUPS = ("decision", "opening", "before", "all")
"""Positions that are replaced: the decision's token; its sentence up to it; all before that sentence; all."""


def patch(
    subject: Subject,
    decisions: Decisions,
    other: Corpus,
    batch_tokens: int,
    n_resamples: int = 2000,
    seed: int = 0,
    progress: str | None = None,
) -> pd.DataFrame:
    """Share of the change of log-odds that each group of positions carries after each block.

    Args:
        subject: the model; all of its blocks are looked at.
        decisions: decisions of one wording (``decisions.corpus``).
        other: the same traces, token for token, in the other wording.
        batch_tokens: the most token ids in one forward pass.
        n_resamples, seed: of the bootstrap, which resamples traces.
        progress: what the progress bar says; None for no bar.

    Returns:
        One row a block and group: ``layer``, ``group``, ``share`` (Σ patched change / Σ whole change) with
        its 95% interval ``low``, ``high``, ``change`` (mean whole change in nats), ``decisions``, ``traces``.

    Raises:
        UserError: there are no decisions, or the two wordings give the same tokens.
        ValueError: the two corpora do not have the same documents' lengths.
    """
    if not np.array_equal(decisions.corpus.starts, other.starts):
        raise ValueError("patching needs documents of equal lengths in both corpora")
    if not len(decisions):
        raise UserError("Patching needs at least one decision: take more documents.")
    if np.array_equal(decisions.corpus.tokens, other.tokens):
        raise UserError("Patching needs two wordings, but both corpora hold the same tokens.")
    starts = sentence_starts(decisions.corpus, subject.tokenizer)
    openings = starts[np.searchsorted(starts, decisions.positions, side="right") - 1]
    openings = openings - decisions.corpus.starts[decisions.documents]
    changes = np.empty((subject.n_layers, len(GROUPS), len(decisions)))
    whole = np.empty(len(decisions))
    with tqdm(total=len(decisions), desc=progress, unit=" decisions", disable=progress is None) as bar:
        for batch in by_length(decisions.places + 1, batch_tokens):
            which = np.array(batch)
            found = _patched(subject, decisions, other, which, openings[which])
            whole[which], changes[:, :, which] = found
            bar.update(len(which))
    _, trace = np.unique(decisions.documents, return_inverse=True)
    totals = np.bincount(trace, whole)
    rows: list[dict[str, Any]] = []
    for layer in range(subject.n_layers):
        for name, change in zip(GROUPS, changes[layer], strict=True):
            share = bootstrap_ratio(np.bincount(trace, change), totals, n_resamples, seed)
            rows.append(
                {
                    "layer": layer,
                    "group": name,
                    "share": share.estimate,
                    "low": share.low,
                    "high": share.high,
                    "change": whole.mean(),
                    "decisions": len(decisions),
                    "traces": share.n,
                }
            )
    return pd.DataFrame(rows)


def patch_wordings(
    subject: Subject, corpus: Corpus, kind: str, n: int, seed: int, batch_tokens: int
) -> tuple[str, pd.DataFrame]:
    """:func:`patch` ``n`` decisions on persistence between two wordings of their traces.

    Args:
        subject: the model.
        corpus: the traces.
        kind: of corpora (``settings.corpus``).
        n: decisions, balanced by style.
        seed: draws them.
        batch_tokens: the most token ids in one forward pass.

    Returns:
        Of the pairs of wordings (:data:`reasoning_features.truth.decisions.SWAPS`) the name of the pair that
        moves the log-odds most, and its table.
    """
    tables = {}
    for name, (one, other) in swapped(corpus, subject.tokenizer, kind).items():
        found = find_decisions(one, subject.tokenizer, kind)["persistence"]
        tables[name] = patch(subject, balanced(found, n, seed), other, batch_tokens).assign(swap=name)
    strongest = max(tables, key=lambda name: abs(tables[name]["change"].iloc[0]))
    return strongest, tables[strongest]


def _patched(
    subject: Subject,
    decisions: Decisions,
    other: Corpus,
    which: NDArray[np.int64],
    openings: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Whole changes ``[k]`` and patched changes ``[layers, groups, k]`` of some decisions.

    ``openings`` ``[k]`` are the places where the decisions' sentences begin.
    """
    places = torch.from_numpy(decisions.places[which])
    layers = range(subject.n_layers)
    ours = subject.residuals(_rows(decisions.corpus, decisions, which), layers)
    theirs = subject.residuals(_rows(other, decisions, which), layers)

    def odds(stream: Tensor, layer: int) -> NDArray[np.float64]:
        logits = subject.logits_from(stream, layer, places[:, None])[:, 0]
        return log_odds(logits, decisions).double().cpu().numpy()

    last = subject.n_layers - 1
    as_it_is = odds(ours[last], last)
    masks = _masks(places, torch.from_numpy(openings), ours[last].shape[1])
    changes = np.empty((subject.n_layers, len(GROUPS), len(which)))
    for layer in layers:
        for group, mask in enumerate(masks):
            mixed = torch.where(mask[..., None].to(subject.device), theirs[layer], ours[layer])
            changes[layer, group] = odds(mixed, layer) - as_it_is
    return odds(theirs[last], last) - as_it_is, changes


def _rows(corpus: Corpus, decisions: Decisions, which: NDArray[np.int64]) -> Tensor:
    """Tokens ``[k, t]`` of each decision's document, cut after the batch's last decision, padded with 0."""
    rows = torch.zeros(len(which), int(decisions.places[which].max()) + 1, dtype=torch.long)
    for row, i in zip(rows, which, strict=True):
        tokens = corpus.document(int(decisions.documents[i]))[: len(row)]
        row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
    return rows


def _masks(places: Tensor, openings: Tensor, length: int) -> list[Tensor]:
    """Which positions each of ``GROUPS`` replaces ``[k, t]``."""
    at = torch.arange(length)[None]
    place, opening = places[:, None], openings[:, None]
    return [at == place, (at >= opening) & (at <= place), at < opening, at <= place]
