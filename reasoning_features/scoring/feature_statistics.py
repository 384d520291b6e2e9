"""Sums of every feature over named sets of tokens: what one pass over activations accumulates.

They add over batches, documents and machines, so one pass serves every vocabulary, window, α and k; the
released code runs the language model again for every 48 features (1,366 passes at 65,536). Multiplying an
activation by its decoder norm, as the released code does first, multiplies the feature's sum: it needs no
pass of its own either. A pass may be cut into shards of whole blocks of documents, made here or on many
machines.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder import dictionary_digest, encoded
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import reading_key, stream
from reasoning_features.runs.shards import Arrays, Work, drop_others, map_shards
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import TokenSets

Array = NDArray[np.float64]
_PIECE = 2**22
"""Activations looked through at a time on a CPU; if all were active they would take 200 MB."""
_SPARSE = 1 / 16
"""Where fewer than this share of activations is not zero, those alone are added."""
SHARD_TOKENS = 2**18
"""Tokens of a shard, where there are blocks enough: some seconds of an 8B model on a large GPU."""
NOTHING_READ = "No activations came through: the corpus is empty, ask for more documents."


class ActivationBatch(Protocol):
    """Residual activations ``[n, d]`` of the tokens at ``positions`` ``[n]`` of a corpus."""

    @property
    def residual(self) -> Tensor: ...

    @property
    def positions(self) -> Tensor: ...


class Accumulator(Protocol):
    """Something that takes feature activations ``[n, f]`` of the tokens at ``positions`` ``[n]``."""

    def update(self, features: Tensor, positions: Tensor) -> None: ...

    def state(self) -> dict[str, NDArray[Any]]:
        """What was accumulated, as arrays."""
        ...

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Take what another of the same kind accumulated on other tokens."""
        ...


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums of every feature's activations over named sets of tokens, whole or by group.

    Attributes:
        names: the sets' names ``[s]``.
        counts: tokens in each set ``[..., s]``.
        sums: summed activations ``[..., s, f]`` float64. A leading axis, where there is one, counts groups
            of documents or resamples.
    """

    names: tuple[str, ...]
    counts: Array
    sums: Array

    def only(self, names: Sequence[str]) -> FeatureStatistics:
        """These sets alone, in this order."""
        where = [self.names.index(name) for name in names]
        return FeatureStatistics(tuple(names), self.counts[..., where], self.sums[..., where, :])

    def total(self) -> FeatureStatistics:
        """All groups together."""
        return self.weighted(np.ones(len(self.counts)))

    def weighted(self, weights: Array) -> FeatureStatistics:
        """Groups added with these weights ``[g]`` or, a resample a row, ``[b, g]``."""
        return FeatureStatistics(
            self.names, weights @ self.counts, np.tensordot(weights, self.sums, axes=(-1, 0))
        )

    def scaled(self, norms: Array) -> FeatureStatistics:
        """Every activation multiplied by its feature's norm ``[f]`` (decoder norms folded in)."""
        return FeatureStatistics(self.names, self.counts, self.sums * norms)


class SetSums:
    """Accumulates :class:`FeatureStatistics`: for each set and group, the sum of every feature.

    The sums, 8 · groups · sets · features bytes, are most of what a pass holds: 1.6 GB for 20 groups of 150
    sets at 65,536 features. On a CPU only activations that are not zero are multiplied, as long as few are:
    of 65,536 features some 86 are active on a token.

    Args:
        sets: what to sum over.
        groups: each token's group ``[n_tokens]``, 0 ≤ group < ``n_groups``; None for no groups.
        n_groups: number of groups.
    """

    def __init__(self, sets: TokenSets, groups: NDArray[np.int64] | None = None, n_groups: int = 1) -> None:
        self._names = sets.names
        self._bits = torch.from_numpy(sets.bits)
        self._grouped = groups is not None
        self._groups = torch.from_numpy(groups) if groups is not None else torch.zeros(sets.n_tokens).long()
        self._counts = torch.zeros(n_groups, len(self._names), dtype=torch.float64)
        self._sums: Tensor | None = None

    def update(self, features: Tensor, positions: Tensor) -> None:
        """Add the activations ``features`` ``[n, f]`` of the tokens at ``positions`` ``[n]``."""
        if self._sums is None:
            shape = (len(self._counts), len(self._names), features.shape[1])
            self._sums = torch.zeros(shape, dtype=torch.float64, device=features.device)
        if features.device.type != "cpu":
            self._add_dense(self._sums, features, positions.cpu())
            return
        rows = max(1, _PIECE // features.shape[1])
        for part, at in zip(features.split(rows), positions.split(rows), strict=True):
            active = part.nonzero()
            if len(active) < _SPARSE * part.numel():
                self._add_active(self._sums, part, active, at)
            else:
                self._add_dense(self._sums, part, at)

    def state(self) -> dict[str, NDArray[Any]]:
        """Counts and sums of the groups that came, and which these are; no copy where all did."""
        found = self.result()
        counts, sums = (found.counts, found.sums) if self._grouped else (found.counts[None], found.sums[None])
        came = np.flatnonzero(counts.any(axis=1))
        if len(came) == len(counts):
            return {"groups": came, "counts": counts, "sums": sums}
        return {"groups": came, "counts": counts[came], "sums": sums[came]}

    def merge(self, state: dict[str, NDArray[Any]]) -> None:
        """Add another's :meth:`state`; the first one with all groups is taken over as it is, and grows."""
        groups = torch.from_numpy(state["groups"])
        sums = torch.from_numpy(state["sums"])
        self._counts[groups] += torch.from_numpy(state["counts"])
        if self._sums is None and len(groups) == len(self._counts) and state["sums"].flags.writeable:
            self._sums = sums
            return
        if self._sums is None:
            self._sums = torch.zeros(len(self._counts), *sums.shape[1:], dtype=torch.float64)
        self._sums[groups.to(self._sums.device)] += sums.to(self._sums.device)

    def _add_dense(self, sums: Tensor, features: Tensor, positions: Tensor) -> None:
        """Add every activation, zero or not: a product of matrices for each group."""
        order = torch.argsort(self._groups[positions], stable=True)
        at = positions[order]
        groups, sizes = torch.unique_consecutive(self._groups[at], return_counts=True)
        members = self._members(at).to(features.device, torch.float64)
        values = features[order.to(features.device)].to(torch.float64)
        start = 0
        for group, size in zip(groups.tolist(), sizes.tolist(), strict=True):
            part = members[:, start : start + size]
            sums[group].addmm_(part, values[start : start + size])
            self._counts[group] += part.sum(dim=1).cpu()
            start += size

    def _add_active(self, sums: Tensor, features: Tensor, active: Tensor, positions: Tensor) -> None:
        """Add the activations that are not zero, whose rows and columns are ``active`` ``[a, 2]``.

        The sets of each group are the rows of one sparse matrix, the tokens those of another; what is added
        is their product, so that no more is touched than what changes.
        """
        n_groups, n_sets, n_features = sums.shape
        token, feature = active.unbind(1)
        ends = np.searchsorted(token.numpy(), np.arange(len(positions) + 1))
        values = features[token, feature].double().numpy()
        activations = csr_array((values, feature.numpy(), ends), shape=features.shape)
        name, member = self._members(positions).nonzero(as_tuple=True)
        row = self._groups[positions][member] * n_sets + name
        inside = csr_array(
            (np.ones(len(row)), (row.numpy(), member.numpy())), shape=(n_groups * n_sets, len(positions))
        )
        self._counts += torch.from_numpy(np.diff(inside.indptr).reshape(n_groups, n_sets))
        added = inside @ activations
        rows = np.repeat(np.arange(n_groups * n_sets), np.diff(added.indptr))
        sums.view(-1).numpy()[rows * n_features + added.indices] += added.data

    def _members(self, positions: Tensor) -> Tensor:
        """1 where a token belongs to a set, else 0: ``[s, n]`` uint8."""
        return (self._bits[:, positions >> 3] >> (7 - (positions & 7)).to(torch.uint8)) & 1

    def result(self) -> FeatureStatistics:
        """What was accumulated.

        Raises:
            UserError: nothing was.
        """
        if self._sums is None:
            raise UserError(NOTHING_READ)
        counts, sums = self._counts.numpy(), self._sums.cpu().numpy()
        return FeatureStatistics(self._names, *((counts, sums) if self._grouped else (counts[0], sums[0])))


@torch.no_grad()
def one_pass(batches: Iterable[ActivationBatch], sae: Any, accumulators: Sequence[Accumulator]) -> None:
    """Encode each batch of residual activations once and hand the features to every accumulator.

    Features come in pieces of at most :data:`reasoning_features.dictionaries.autoencoder.ELEMENTS`
    activations, so that what a pass needs beside its accumulators and the model does not grow with the batch:
    about 2 GB.

    Raises:
        UserError: the autoencoder has another width than the residual stream.
    """
    for batch in batches:
        if batch.residual.shape[-1] != sae.cfg.d_in:
            raise UserError(
                f"The autoencoder takes {sae.cfg.d_in} dimensions but the residual stream has "
                f"{batch.residual.shape[-1]}: give the autoencoder that was trained on this model."
            )
        for part, features in encoded(sae, batch.residual):
            for accumulator in accumulators:
                accumulator.update(features, batch.positions[part])


def accumulate(batches: Iterable[ActivationBatch], sae: Any, sets: TokenSets) -> FeatureStatistics:
    """Statistics of all features over these sets, in one pass.

    Raises:
        UserError: the autoencoder has another width, or there were no activations.
    """
    sums = SetSums(sets)
    one_pass(batches, sae, [sums])
    return sums.result()


def one_pass_in_shards(
    name: str,
    subject: Subject,
    sae: Any,
    corpus: Corpus,
    accumulators: Mapping[str, Accumulator],
    batch_tokens: int,
    key: Mapping[str, Any],
    kept: Path | None,
    blocks: int | None = None,
    tokens: int = SHARD_TOKENS,
) -> None:
    """Read a corpus once and hand the features to every accumulator, shard by shard.

    Every shard is accumulated on its own and merged in their order, so who computed which does not matter.

    Args:
        name: what the pass is for.
        subject: the model and its hook point.
        sae: its autoencoder.
        corpus: what is read; tokens that are special are left out.
        accumulators: empty ones, by name; they hold everything afterwards.
        batch_tokens: the most token ids in one forward pass.
        key: what determines the accumulators beside the rest.
        kept: folder of shards; None: nothing is kept, and this process does it all.
        blocks: documents are dealt in turn into so many, none of which is cut; by default as many as shards.
        tokens: of a shard, about.

    Raises:
        UserError: the autoencoder has another width, or an engine that is not there.
    """
    wanted = max(1, -(-corpus.n_tokens // tokens))
    n = min(wanted, blocks or wanted, corpus.n_documents)
    dealt = np.arange(corpus.n_documents) % (blocks or n) * n // (blocks or n)
    shards, shard_of = np.unique(dealt, return_inverse=True)  # with few documents some would be empty
    empty = copy.deepcopy(dict(accumulators))  # those given fill up while shards are still being made
    compute = partial(_shard, subject, sae, corpus, empty, batch_tokens, shard_of)
    made: Iterator[Arrays]
    if kept is None:
        made = map(compute, tqdm(range(len(shards)), desc=name, unit="shard"))
    else:
        determined_by = reading_key(subject) | {
            "autoencoder": dictionary_digest(sae),
            "corpus": corpus.digest,
            "blocks": blocks,
            "batch_tokens": batch_tokens,
        }
        named, device = f"{name}-{subject.short_name}", str(subject.device)
        work = Work(named, compute, len(shards), determined_by | dict(key), device)
        made = map_shards(work, kept)
        drop_others(work, kept)
    for arrays in made:
        for one, accumulator in accumulators.items():
            own = f"{one}/"
            accumulator.merge({n.removeprefix(own): a for n, a in arrays.items() if n.startswith(own)})


def _shard(
    subject: Subject,
    sae: Any,
    corpus: Corpus,
    empty: dict[str, Accumulator],
    batch_tokens: int,
    shard_of: NDArray[np.int64],
    shard: int,
) -> Arrays:
    """What one shard's documents give to every accumulator."""
    fresh = copy.deepcopy(empty)
    documents = np.flatnonzero(shard_of == shard)
    one_pass(stream(subject, corpus, batch_tokens, documents=documents), sae, list(fresh.values()))
    return {f"{one}/{n}": array for one, each in fresh.items() for n, array in each.state().items()}
