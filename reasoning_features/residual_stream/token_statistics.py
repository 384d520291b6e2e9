"""What each token of a corpus costs the model to predict, and how long its residual stream is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import no_sink, told
from reasoning_features.residual_stream.losses import next_token_loss
from reasoning_features.statistics import bootstrap_weights
from reasoning_features.text.corpus import Corpus

BIN = 16
"""Positions are averaged so many together."""


def token_table(subject: Subject, corpus: Corpus, layers: Sequence[int], batch_tokens: int) -> pd.DataFrame:
    """One row for each token that is neither special nor an attention sink, in the corpus' order.

    Returns:
        ``document``; ``position`` in the document; ``move`` (its name, None where moves are not known);
        ``loss``, of predicting this token from those before it, nats; and for each layer ``norm <layer>``,
        the norm of the residual stream after it.
    """
    columns = {name: np.full(corpus.n_tokens, np.nan) for name in ["loss", *(f"norm {i}" for i in layers)]}
    counted = np.zeros(corpus.n_tokens, dtype=bool)
    for batch in told(list(corpus.batches(batch_tokens)), corpus):
        where = batch.positions[batch.valid].numpy()
        read = subject.residuals(batch.tokens, sorted({*layers, subject.layer}))
        ordinary = batch.valid & torch.from_numpy(~corpus.special)[batch.positions]
        usual = no_sink(read[subject.layer][ordinary.to(subject.device)]).cpu()
        counted[batch.positions[ordinary][usual].numpy()] = True
        for layer, residual in ((layer, read[layer]) for layer in layers):
            columns[f"norm {layer}"][where] = residual.float().norm(dim=-1).cpu()[batch.valid].numpy()
        losses = next_token_loss(subject.logits(batch.tokens), batch.tokens, batch.valid).cpu()
        predicted = batch.valid[:, 1:]
        columns["loss"][batch.positions[:, 1:][predicted].numpy()] = losses[predicted].numpy()
    moves = None if corpus.moves is None else np.array(corpus.move_names)[corpus.moves]
    places = {"document": corpus.document_of, "position": corpus.position_of, "move": moves}
    return pd.DataFrame(places | columns)[counted].reset_index(drop=True)


def means_by_place_and_move(table: pd.DataFrame, value: str, seed: int = 0) -> pd.DataFrame:
    """Mean of a column by position in the document and, where moves are known, by move.

    Returns:
        Rows of ``by`` ("position" or "move"), ``group`` (the first of ``BIN`` positions, or the move's name),
        ``mean``, ``low``, ``high`` (95% over documents), ``tokens``.
    """
    binned = table.assign(position=table["position"] // BIN * BIN)
    parts = [
        grouped_means(binned, value, by, seed=seed).rename(columns={by: "group"}).assign(by=by)
        for by in ("position", "move")
        if binned[by].notna().any()
    ]
    return pd.concat(parts, ignore_index=True)[["by", "group", "mean", "low", "high", "tokens"]]


def grouped_means(
    table: pd.DataFrame, value: str, by: str, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean of a column in each group of tokens, with its bootstrap interval over documents.

    Args:
        table: one row a token, with ``document``, ``value`` and ``by``; rows without a value are left out.
        value: the column to average.
        by: the column to group by.
        n_resamples: bootstrap resamples.
        seed: draws the resamples.

    Returns:
        Rows of ``by``, ``mean``, ``low``, ``high`` (95%), ``tokens``; groups in order. A resample that lacks
        a group has no say in that group's interval.
    """
    held = table.dropna(subset=[value, by])
    names, document = np.unique(held["document"], return_inverse=True)
    groups, group = np.unique(held[by].to_numpy(), return_inverse=True)
    sums, counts = (np.zeros((len(names), len(groups))) for _ in range(2))
    np.add.at(sums, (document, group), held[value].to_numpy())
    np.add.at(counts, (document, group), 1)
    weights = bootstrap_weights(len(names), n_resamples, seed)
    seen = weights @ counts
    means = np.divide(weights @ sums, seen, out=np.full_like(seen, np.nan), where=seen > 0)
    low, high = np.nanquantile(means, [0.025, 0.975], axis=0)
    total = counts.sum(0)
    return pd.DataFrame(
        {by: groups, "mean": sums.sum(0) / total, "low": low, "high": high, "tokens": total.astype(int)}
    )
