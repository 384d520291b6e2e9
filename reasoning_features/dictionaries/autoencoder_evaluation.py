"""Autoencoders on fresh text: what the model's loss says of them, and a table of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder import reconstruct
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import ActivationBatch, no_sink
from reasoning_features.residual_stream.losses import next_token_loss
from reasoning_features.statistics import Interval, bootstrap_ratio
from reasoning_features.text.corpus import Corpus, TokenBatch

Edit = Callable[[Tensor], Tensor]


def loss_by_document(
    subject: Subject,
    saes: Mapping[str, SAE[Any]],
    corpus: Corpus,
    batch_tokens: int,
    mean: NDArray[np.float64],
) -> pd.DataFrame:
    """Next-token loss with the stream as it is, as each SAE reconstructs it, set to its mean, and to zero.

    The stream is changed at every token that is neither special nor an attention sink (an SAE never saw the
    others), and the loss is that of predicting tokens that are not special.

    Args:
        subject: the model; SAEs are put in at its hook point.
        saes: by name.
        corpus: documents to predict.
        batch_tokens: the most token ids in one forward pass.
        mean: ``[d]`` mean activation.

    Returns:
        One row a document, in the corpus' order: ``tokens`` predicted, and the summed loss in nats ``clean``,
        ``averaged``, ``zeroed``, and one column an SAE under its name.
    """
    average = torch.from_numpy(mean).float().to(subject.device)
    edits: dict[str, Edit] = {
        "clean": lambda stream: stream,
        "averaged": lambda stream: average.to(stream.dtype).expand_as(stream),
        "zeroed": torch.zeros_like,
    }
    edits |= {name: _through(sae) for name, sae in saes.items()}
    batches = tqdm(list(corpus.batches(batch_tokens)), desc="Losses with the stream replaced", unit="batch")
    parts = [_losses(subject, batch, corpus.special, edits) for batch in batches]
    return pd.concat(parts).sort_values("document").set_index("document")


def loss_recovered(losses: pd.DataFrame, name: str, reference: str = "zeroed", seed: int = 0) -> Interval:
    """Share of the loss that ablating the stream costs and a reconstruction gives back, over documents.

    (L_ablated − L_reconstructed) / (L_ablated − L_clean).

    Args:
        losses: from :func:`loss_by_document`.
        name: the SAE's column.
        reference: "zeroed" or "averaged".
        seed: draws the bootstrap's resamples of documents.
    """
    ablated = losses[reference]
    return bootstrap_ratio(ablated - losses[name], ablated - losses["clean"], seed=seed)


def evaluate(
    saes: Mapping[str, SAE[Any]],
    fresh: ActivationBatch,
    documents: NDArray[np.int64],
    losses: pd.DataFrame,
    sample: Tensor,
    seed: int = 0,
) -> pd.DataFrame:
    """A table of SAEs: one row each, intervals (95%) over documents.

    Args:
        saes: by name.
        fresh: activations of text that no SAE was trained on; L0 and explained variance are measured on them.
        documents: ``[n_tokens]`` the document of each token of that text.
        losses: from :func:`loss_by_document`, with these SAEs.
        sample: activations ``[n, d]``, more of them, on which dead features and densities are counted.
        seed: draws the resamples.

    Returns:
        ``autoencoder``, ``architecture``, ``features``, ``L0``, ``fraction of variance explained``,
        ``loss recovered`` (the three with ``… low`` and ``… high`` too), ``dead share``, ``median density``.
    """
    rows = []
    for name, sae in saes.items():
        sums = reconstruct(sae, fresh.residual).by_document(documents[fresh.positions.numpy()])
        unexplained = bootstrap_ratio(sums["error"], sums["deviation"], seed=seed)
        explained = Interval(
            1 - unexplained.estimate, 1 - unexplained.high, 1 - unexplained.low, unexplained.n
        )
        many = reconstruct(sae, sample).summary()
        rows.append(
            {"autoencoder": name, "architecture": sae.cfg.architecture(), "features": sae.cfg.d_sae}
            | _columns("L0", bootstrap_ratio(sums["active"], sums["tokens"], seed=seed))
            | _columns("fraction of variance explained", explained)
            | _columns("loss recovered", loss_recovered(losses, name, seed=seed))
            | {"dead share": many["dead share"], "median density": many["median density"]}
        )
    return pd.DataFrame(rows)


def _columns(name: str, value: Interval) -> dict[str, float]:
    return {name: value.estimate, f"{name} low": value.low, f"{name} high": value.high}


def _through(sae: SAE[Any]) -> Edit:
    return lambda stream: sae.decode(sae.encode(stream.float())).to(stream.dtype)


@torch.no_grad()
def _losses(
    subject: Subject, batch: TokenBatch, special: NDArray[np.bool_], edits: Mapping[str, Edit]
) -> pd.DataFrame:
    ordinary = batch.valid & ~torch.from_numpy(special)[batch.positions]  # position -1 is not valid anyway
    where = ordinary[..., None].to(subject.device)
    counted = ordinary[:, 1:]
    columns: dict[str, Any] = {"document": batch.documents, "tokens": counted.sum(1).numpy()}
    for name, edit in edits.items():

        def at_ordinary(stream: Tensor, edit: Edit = edit) -> Tensor:
            kept = where & no_sink(stream.flatten(0, 1)).view(stream.shape[:2])[..., None]
            return torch.where(kept, edit(stream), stream)

        losses = next_token_loss(subject.logits_with(batch.tokens, at_ordinary), batch.tokens, batch.valid)
        columns[name] = losses.cpu().double().where(counted, 0.0).sum(1).numpy()
    return pd.DataFrame(columns)
