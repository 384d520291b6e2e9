"""How good an autoencoder is: reconstruction, agreement with another, the model's loss through it.

Explained variance is about the mean, 1 − Σ‖x − x̂‖² / Σ‖x − mean‖²: always giving the mean scores 0.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder import rows_at_once
from reasoning_features.errors import check_finite
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import ActivationBatch, Moments, next_token_loss, no_sink
from reasoning_features.statistics import Interval, bootstrap_ratio
from reasoning_features.text.corpus import Corpus

EXPLAINED = "fraction of variance explained"
WIDE = 2**24  # the most pairs of directions compared in float64 and at once; more: float32, some at a time
MANY = 2**27  # the most numbers of activations that stand in memory in float64: 1 GiB
ROWS = 4096  # the most activations that are reconstructed at once


@dataclass(frozen=True)
class Reconstruction:
    """How well each of n activations is reconstructed, and how often each of s features is active."""

    error: NDArray[np.float64]  # [n] squared distance of x from its reconstruction
    deviation: NDArray[np.float64]  # [n] squared distance of x from the mean activation
    active: NDArray[np.int64]  # [n] number of active features
    density: NDArray[np.float64]  # [s] fraction of tokens on which each feature is active

    @property
    def explained(self) -> float:
        """Fraction of variance explained; UserError where there is no variance."""
        explained = 1 - self.error.sum() / self.deviation.sum()
        return float(check_finite(explained, f"The {EXPLAINED}", "give activations that differ"))

    @property
    def live(self) -> NDArray[np.bool_]:
        """``[s]`` True for features active on at least one token."""
        return self.density > 0

    def by_document(self, documents: NDArray[np.int64]) -> pd.DataFrame:
        """Sums ``tokens``, ``error``, ``deviation``, ``active`` of each document, of tokens' ``[n]``."""
        columns = {"document": documents, "error": self.error, "deviation": self.deviation}
        return pd.DataFrame(columns | {"active": self.active, "tokens": 1}).groupby("document").sum()


@torch.no_grad()
def reconstruct(sae: SAE[Any], residual: Tensor) -> Reconstruction:
    """Reconstruct raw activations ``[n, d]`` and keep what the quality of an SAE is computed from."""
    mean = torch.from_numpy(Moments.of(residual).mean)
    parts, fired = [], torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    for batch in residual.split(min(ROWS, rows_at_once(sae))):
        features = sae.encode(batch.to(sae.device))
        distances = (batch.double() - of for of in (sae.decode(features).cpu().double(), mean))
        active = (features > 0).cpu()
        parts.append(torch.stack([*(each.square().sum(1) for each in distances), active.sum(1).double()]))
        fired += active.sum(0)
    error, deviation, count = check_finite(torch.cat(parts, dim=1), "The error of a reconstruction").numpy()
    return Reconstruction(error, deviation, count.astype(np.int64), (fired.double() / len(residual)).numpy())


def quality(sae: SAE[Any], residual: Tensor) -> dict[str, float]:
    """L0, fraction of variance explained, dead share and median density of live features on activations."""
    found = reconstruct(sae, residual)
    return {
        "L0": float(found.active.mean()),
        EXPLAINED: found.explained,
        "dead share": float(1 - found.live.mean()),
        "median density": float(np.median(found.density[found.live])) if found.live.any() else 0.0,
    }


def best_cosines(decoder: Tensor, other: Tensor) -> NDArray[np.float64]:
    """For each decoder direction ``[s, d]`` its largest cosine with a direction of ``other`` ``[r, d]``."""
    return torch.cat([part.max(1).values.double().cpu() for part in cosines(decoder, other)]).numpy()


def matched_share(decoder: Tensor, other: Tensor, threshold: float = 0.7) -> float:
    """Fraction of directions ``[s, d]`` with one of ``[r, d]`` at the paper's cosine, 0.7, or nearer."""
    return float((best_cosines(decoder, other) >= threshold).mean())


def paired_share(decoder: Tensor, other: Tensor, threshold: float = 0.7) -> float:
    """The same where none is the partner of two, as early in training: the largest pairing."""
    near = vstack([csr_matrix((part >= threshold).cpu().numpy()) for part in cosines(decoder, other)])
    return float((maximum_bipartite_matching(near, perm_type="column") >= 0).mean())


def cosines(decoder: Tensor, other: Tensor) -> Iterator[Tensor]:
    """Cosines ``[m, r]`` of some rows of ``decoder`` at a time with all of ``other``."""
    dtype = torch.float64 if len(decoder) * len(other) <= WIDE else torch.float32
    unit, others = (normalize(directions.detach().to(dtype), dim=1) for directions in (decoder, other))
    for part in unit.split(max(1, WIDE // len(others))):
        yield part @ others.T


def principal_explained(residual: Tensor, k: int) -> float:
    """Fraction of variance that ``k`` principal components of activations ``[n, d]`` explain: the most."""
    variances = torch.linalg.eigvalsh(_covariance(residual)).flip(0)
    return float(variances[:k].sum() / variances.sum())


def gaussian_directions(residual: Tensor, n: int, seed: int) -> Tensor:
    """``n`` random directions ``[n, d]`` with the covariance of activations: what is shared by chance."""
    generator = torch.Generator().manual_seed(seed)
    variances, axes = torch.linalg.eigh(_covariance(residual))
    noise = torch.randn(n, residual.shape[1], generator=generator, dtype=torch.float64)
    return (noise * variances.clamp(min=0).sqrt()) @ axes.T


def _covariance(residual: Tensor) -> Tensor:
    """Covariance ``[d, d]`` of activations ``[n, d]`` in float64; of many, some are summed at a time."""
    if residual.numel() <= MANY:
        return torch.cov(residual.double().T)
    mean = torch.from_numpy(Moments.of(residual).mean)
    total = torch.zeros(2 * residual.shape[1:], dtype=torch.float64)
    for part in residual.split(max(1, MANY // residual.shape[1])):
        centred = part.double() - mean
        total += centred.T @ centred
    return total / (len(residual) - 1)


@torch.no_grad()
def loss_by_document(
    subject: Subject, saes: Mapping[str, SAE[Any]], corpus: Corpus, batch_tokens: int
) -> pd.DataFrame:
    """Next-token loss with the stream as it is, zeroed, and as each SAE reconstructs it, at tokens that are
    neither special nor sinks. A row a document: ``tokens`` predicted that are not special, and their summed
    loss in nats ``clean``, ``zeroed``, and a column an SAE under its name.
    """
    edits: dict[str, Callable[..., Tensor]] = {"clean": torch.clone, "zeroed": torch.zeros_like, **saes}
    special = torch.from_numpy(corpus.special)
    parts = []
    for batch in tqdm([*corpus.batches(batch_tokens)], desc="Losses with the stream replaced", unit="batch"):
        ordinary = batch.valid & ~special[batch.positions]  # position -1 is not valid anyway
        where, counted = ordinary[..., None].to(subject.device), ordinary[:, 1:]
        columns: dict[str, Any] = {"document": batch.documents, "tokens": counted.sum(1).numpy()}
        for name, edit in edits.items():
            logits = subject.logits_with(batch.tokens, partial(_at_ordinary, edit, where))
            losses = next_token_loss(logits, batch.tokens).cpu().double()
            columns[name] = losses.where(counted, 0.0).sum(1).numpy()
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts).sort_values("document").set_index("document")


def _at_ordinary(edit: Callable[..., Tensor], where: Tensor, stream: Tensor) -> Tensor:
    """The stream ``[b, t, d]`` edited where it may be ``[b, t, 1]``, and at no attention sink."""
    usual = no_sink(stream.flatten(0, 1)).view(stream.shape[:2])[..., None]
    return torch.where(where & usual, edit(stream.float()).to(stream.dtype), stream)


def evaluate(
    saes: Mapping[str, SAE[Any]],
    fresh: ActivationBatch,
    documents: NDArray[np.int64],
    losses: pd.DataFrame,
    sample: Tensor,
    seed: int = 0,
) -> pd.DataFrame:
    """A table of SAEs, a row each, with intervals (95%) over documents.

    L0, explained variance and loss recovered, (L_zeroed − L_reconstructed) / (L_zeroed − L_clean), are of
    ``fresh`` text (``documents`` ``[n_tokens]``: each token's; ``losses``: :func:`loss_by_document`); dead
    share and median density of ``sample`` ``[n, d]``, more activations.
    """
    rows, zeroed = [], losses["zeroed"]
    for name, sae in saes.items():
        sums = reconstruct(sae, fresh.residual).by_document(documents[fresh.positions.numpy()])
        lost = bootstrap_ratio(sums["error"], sums["deviation"], seed=seed)
        row = {"autoencoder": name, "architecture": sae.cfg.architecture(), "features": sae.cfg.d_sae}
        for column, value in {
            "L0": bootstrap_ratio(sums["active"], sums["tokens"], seed=seed),
            EXPLAINED: Interval(1 - lost.estimate, 1 - lost.high, 1 - lost.low, lost.n),
            "loss recovered": bootstrap_ratio(zeroed - losses[name], zeroed - losses["clean"], seed=seed),
        }.items():
            row |= value.row(column, f"{column} ")
        many = quality(sae, sample)
        rows.append(row | {name: many[name] for name in ("dead share", "median density")})
    return pd.DataFrame(rows)
