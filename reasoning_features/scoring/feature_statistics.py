"""What one pass over activations accumulates: sums of every feature over named sets of tokens.

Sums add over batches, documents and machines, so one pass serves every vocabulary, window, α and k. Two more
accumulators ask how far a feature is explained by which token it stands on (2601.05679).
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder import dictionary_digest, encoded
from reasoning_features.errors import UserError, check_finite
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import ActivationBatch, reading_key, stream
from reasoning_features.runs.shards import Arrays, Work, drop_others, map_shards
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import TokenSets

Array = NDArray[np.float64]
_PIECE = 2**22  # activations looked through at a time on a CPU; if all were active they would take 200 MB
_SPARSE = 1 / 16  # where a smaller share of activations than this is not zero, those alone are added
SHARD_TOKENS = 2**18  # where there are blocks enough: some seconds of an 8B model on a large GPU
SUM = "The sum of a feature's activations [..., set, feature]"
NOTHING_READ = "No activations came through: the corpus is empty, ask for more documents."


class Accumulator(Protocol):
    """Takes the activations ``[n, f]`` of the tokens at ``positions`` ``[n]``, and others' states."""

    def update(self, features: Tensor, positions: Tensor) -> None: ...
    def state(self) -> Arrays: ...
    def merge(self, state: Arrays) -> None: ...


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums of every feature's activations over named sets of tokens, perhaps by groups of documents."""

    names: tuple[str, ...]
    counts: Array  # tokens in each set [..., s]
    sums: Array  # [..., s, f]

    def only(self, names: Sequence[str]) -> "FeatureStatistics":
        """These sets alone, in this order."""
        where = [self.names.index(name) for name in names]
        return FeatureStatistics(tuple(names), self.counts[..., where], self.sums[..., where, :])

    def total(self) -> "FeatureStatistics":
        """All groups together."""
        return self.weighted(np.ones(len(self.counts)))

    def weighted(self, weights: Array) -> "FeatureStatistics":
        """Groups added with these weights ``[g]`` or, a resample a row, ``[b, g]``."""
        sums = np.tensordot(weights, self.sums, axes=(-1, 0))
        return FeatureStatistics(self.names, weights @ self.counts, sums)

    def scaled(self, norms: Array) -> "FeatureStatistics":
        """Every activation multiplied by its feature's norm ``[f]``, as the released code does first."""
        return FeatureStatistics(self.names, self.counts, self.sums * norms)


class SetSums:
    """Accumulates :class:`FeatureStatistics` by group; ``groups`` ``[n_tokens]`` gives each token's.

    On a CPU only activations that are not zero are multiplied, as long as few are.
    """

    def __init__(self, sets: TokenSets, groups: NDArray[np.int64], n_groups: int) -> None:
        self._names = sets.names
        self._bits, self._groups = torch.from_numpy(sets.bits), torch.from_numpy(groups)
        self._counts = torch.zeros(n_groups, len(self._names), dtype=torch.float64)
        self._sums: Tensor | None = None

    def update(self, features: Tensor, positions: Tensor) -> None:
        sums, positions = self._room(features.shape[1], features.device), positions.cpu()
        if features.device.type != "cpu":
            self._add_dense(sums, features, positions)
            return
        rows = max(1, _PIECE // features.shape[1])
        for part, at in zip(features.split(rows), positions.split(rows), strict=True):
            # torch's nonzero, and numpy's in two dimensions, would take as long as the encoder
            active = np.divmod(np.flatnonzero(part.numpy() != 0), part.shape[1])
            if len(active[0]) < _SPARSE * part.numel():
                self._add_active(sums, part, active, at)
            else:
                self._add_dense(sums, part, at)

    def result(self) -> FeatureStatistics:
        """What was accumulated ``[groups, s, f]``; UserError if that is nothing, or not finite."""
        if self._sums is None:
            raise UserError(NOTHING_READ)
        sums = check_finite(self._sums, SUM)
        return FeatureStatistics(self._names, self._counts.numpy(), sums.cpu().numpy())

    def state(self) -> Arrays:
        """Counts and sums of the groups that came, and which these are."""
        whole = self.result()
        came = np.flatnonzero(whole.counts.any(axis=1))
        return {"groups": came, "counts": whole.counts[came], "sums": whole.sums[came]}

    def merge(self, state: Arrays) -> None:
        groups, counts, sums = (torch.from_numpy(state[name]) for name in ("groups", "counts", "sums"))
        self._counts[groups] += counts
        self._room(sums.shape[-1], sums.device)[groups] += sums

    def _room(self, n_features: int, device: torch.device) -> Tensor:
        """The sums ``[groups, s, f]``, zero at first."""
        if self._sums is None:
            self._sums = torch.zeros(*self._counts.shape, n_features, dtype=torch.float64, device=device)
        return self._sums

    def _add_dense(self, sums: Tensor, features: Tensor, positions: Tensor) -> None:
        """Add every activation, zero or not: a product of matrices for each group."""
        groups, members = self._groups[positions], self._members(positions)
        for group in groups.unique().tolist():
            own = groups == group
            self._counts[group] += members[:, own].sum(dim=1)
            values = features[own.to(features.device)].to(torch.float64)
            sums[group].addmm_(members[:, own].to(values), values)

    def _add_active(
        self, sums: Tensor, features: Tensor, active: tuple[NDArray[np.int64], ...], positions: Tensor
    ) -> None:
        """Add the activations that are not zero, whose rows and columns are ``active``, ``[a]`` each.

        What is added is the product of two sparse matrices: sets of groups by tokens, and tokens by features.
        """
        n_groups, n_sets, n_features = sums.shape
        values = features.numpy()[active].astype(np.float64)
        activations = csr_array((values, active), shape=features.shape)
        name, member = self._members(positions).nonzero(as_tuple=True)
        row = self._groups[positions][member] * n_sets + name
        shape = n_groups * n_sets, len(positions)
        inside = csr_array((np.ones(len(row)), (row.numpy(), member.numpy())), shape=shape)
        self._counts += torch.from_numpy(np.diff(inside.indptr).reshape(n_groups, n_sets))
        added = inside @ activations
        rows = np.repeat(np.arange(n_groups * n_sets), np.diff(added.indptr))
        sums.view(-1).numpy()[rows * n_features + added.indices] += added.data

    def _members(self, positions: Tensor) -> Tensor:
        """1 where a token belongs to a set, else 0: ``[s, n]`` uint8."""
        return (self._bits[:, positions >> 3] >> (7 - (positions & 7)).to(torch.uint8)) & 1


def token_classes(corpus: Corpus, context: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Each token's class ``[n_tokens]``, and the ids that make each class ``[v, context + 1]``.

    A class is a token with the ``context`` tokens before it, -1 before a document's beginning.
    """
    place = corpus.position_of
    size = int(corpus.tokens.max()) + 2
    keys = np.zeros(corpus.n_tokens, dtype=np.int64)  # ids as the digits of one number, the token's own last
    for back in range(context, -1, -1):
        keys = keys * size + np.where(place >= back, np.roll(corpus.tokens, back), -1) + 1
    different, classes = np.unique(keys, return_inverse=True)
    ids = [different // size**back % size - 1 for back in range(context, -1, -1)]
    return classes.reshape(-1).astype(np.int64), np.stack(ids, axis=1).astype(np.int32)


class BestTokens:
    """Accumulates for each feature the class of token whose presence best tells that the feature is active.

    Where pairs are more than ``most``, each feature goes on with its best classes so far, half as many pairs.
    """

    def __init__(self, classes: NDArray[np.int64], n_classes: int, most: int = 2**23) -> None:
        self._classes, self._n_classes, self._most = torch.from_numpy(classes), n_classes, most
        self._sizes, self._fired = np.zeros(n_classes, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._hits: list[pd.Series] = []  # by pair, feature · n_classes + class: each part without duplicates

    def update(self, features: Tensor, positions: Tensor) -> None:
        token, feature = (features > 0).nonzero().cpu().unbind(1)
        classes = self._classes[positions.cpu()]
        pairs, hits = torch.unique(feature * self._n_classes + classes[token], return_counts=True)
        fired = torch.bincount(feature, minlength=features.shape[1])
        sizes = torch.bincount(classes, minlength=self._n_classes)
        counts = {"fired": fired, "sizes": sizes, "pairs": pairs, "hits": hits}
        self.merge({name: values.numpy() for name, values in counts.items()})

    @property
    def density(self) -> Array:
        """Share of tokens on which each feature is active ``[f]``."""
        return self._fired / max(int(self._sizes.sum()), 1)

    def result(self) -> pd.DataFrame:
        """One row a feature: ``feature``, ``token_class``, ``precision``, ``recall``, ``f1``.

        The best class has the highest F1, of equals it is the first. A feature that is never active has 0 in
        all. Raises UserError: nothing came through.
        """
        best = self._by_f1(self._merged()).drop_duplicates("feature").set_index("feature")
        best = best.reindex(pd.RangeIndex(len(self._fired), name="feature"), fill_value=0)
        best["precision"] = best["hits"] / np.maximum(self._fired, 1)
        best["recall"] = best["hits"] / np.maximum(self._sizes[best["token_class"]], 1)
        return best[["token_class", "precision", "recall", "f1"]].reset_index()

    def state(self) -> Arrays:
        hits = self._merged()
        pairs = hits.index.to_numpy()
        return {"fired": self._fired, "sizes": self._sizes, "pairs": pairs, "hits": hits.to_numpy()}

    def merge(self, state: Arrays) -> None:
        self._sizes = self._sizes + state["sizes"]
        self._fired = self._fired + state["fired"] if self._hits else state["fired"]
        self._hits.append(pd.Series(state["hits"], index=state["pairs"]))
        if sum(map(len, self._hits[1:])) > self._most // 4:
            self._merged()

    def _merged(self) -> pd.Series:
        """Hits by pair, ascending, each once, the least telling dropped where there are too many."""
        if not self._hits:
            raise UserError(NOTHING_READ)
        hits = pd.concat(self._hits).groupby(level=0).sum()
        if len(hits) > self._most:
            most = max(1, self._most // 2 // len(self._fired))
            hits = hits.iloc[np.sort(self._by_f1(hits).groupby("feature").head(most).index)]
        self._hits = [hits]
        return hits

    def _by_f1(self, hits: pd.Series) -> pd.DataFrame:
        """Pairs with their ``f1``, the highest first, indexed by their place in ``hits``."""
        feature, label = np.divmod(hits.index.to_numpy(), self._n_classes)
        f1 = 2 * hits.to_numpy() / (self._fired[feature] + self._sizes[label])
        table = pd.DataFrame({"feature": feature, "token_class": label, "hits": hits.to_numpy(), "f1": f1})
        return table.sort_values("f1", ascending=False, kind="stable")


class IdentitySums:
    """Accumulates the statistics of features that depend on the token's class ``[n_tokens]`` alone.

    Every activation is replaced by its feature's mean over tokens of that class. The sum over a set S is then
    Σ_v n_v(S) · mean_v = Σ_t [n_v(t)(S) / n_v(t)] f_t, with weights known from the tokens. The first set
    holds every token that comes.
    """

    def __init__(self, classes: NDArray[np.int64], n_classes: int, sets: TokenSets) -> None:
        self._names, self._classes = sets.names, torch.from_numpy(classes)
        inside = np.stack([np.bincount(classes[sets.mask(name)], minlength=n_classes) for name in sets.names])
        self._counts = inside.sum(axis=1).astype(float)
        self._weights = torch.from_numpy(inside / np.maximum(inside[0], 1))
        self._sums: Array | float = 0.0

    def update(self, features: Tensor, positions: Tensor) -> None:
        weights = self._weights[:, self._classes[positions.cpu()]].to(features.device)
        self.merge({"sums": (weights @ features.to(torch.float64)).cpu().numpy()})

    def state(self) -> Arrays:
        return {"sums": check_finite(np.asarray(self._sums), SUM)}

    def merge(self, state: Arrays) -> None:
        self._sums = self._sums + state["sums"]

    def result(self) -> FeatureStatistics:
        return FeatureStatistics(self._names, self._counts, self.state()["sums"])


@torch.no_grad()
def one_pass(batches: Iterable[ActivationBatch], sae: Any, accumulators: Sequence[Accumulator]) -> None:
    """Encode each batch of residual activations once and hand the features to every accumulator, in pieces.

    Raises UserError: the autoencoder has another width than the residual stream.
    """
    for batch in batches:
        if batch.residual.shape[-1] != sae.cfg.d_in:
            widths = f"{sae.cfg.d_in} dimensions but the residual stream has {batch.residual.shape[-1]}"
            raise UserError(f"The autoencoder takes {widths}: give the one that was trained on this model.")
        for part, features in encoded(sae, batch.residual):
            for accumulator in accumulators:
                accumulator.update(features, batch.positions[part])


def accumulate(batches: Iterable[ActivationBatch], sae: Any, sets: TokenSets) -> FeatureStatistics:
    """Statistics of all features over these sets, in one pass; raises as :func:`one_pass`."""
    sums = SetSums(sets, np.zeros(sets.n_tokens, dtype=np.int64), 1)
    one_pass(batches, sae, [sums])
    return sums.result().total()


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
    """Read a corpus once and hand the features to every accumulator, empty before, in shards of some tokens.

    Documents are dealt in turn into ``blocks``, none of which is cut; by default as many as shards. ``key``
    is what determines the accumulators beside model, autoencoder and corpus; ``kept`` the folder of shards,
    or None: nothing is kept, and this process does it all.
    """
    wanted = max(1, -(-corpus.n_tokens // tokens))
    n = min(wanted, blocks or wanted, corpus.n_documents)
    dealt = np.arange(corpus.n_documents) % (blocks or n) * n // (blocks or n)
    shards, shard_of = np.unique(dealt, return_inverse=True)  # with few documents some would be empty
    empty = copy.deepcopy(dict(accumulators))  # those given fill up while shards are still being made

    def compute(shard: int) -> Arrays:
        fresh, documents = copy.deepcopy(empty), np.flatnonzero(shard_of == shard)
        one_pass(stream(subject, corpus, batch_tokens, documents=documents), sae, list(fresh.values()))
        return {f"{one}/{n}": array for one, each in fresh.items() for n, array in each.state().items()}

    made: Iterator[Arrays]
    if kept is None:
        made = map(compute, tqdm(range(len(shards)), desc=name, unit="shard"))
    else:
        determined_by = reading_key(subject) | {"autoencoder": dictionary_digest(sae)} | dict(key)
        determined_by |= {"corpus": corpus.digest, "blocks": blocks, "batch_tokens": batch_tokens}
        full_name = f"{name}-{subject.short_name}"
        work = Work(full_name, compute, len(shards), determined_by, str(subject.device))
        made = map_shards(work, kept)
        drop_others(work, kept)
    for arrays in made:
        for one, accumulator in accumulators.items():
            own = f"{one}/"
            accumulator.merge({n.removeprefix(own): a for n, a in arrays.items() if n.startswith(own)})
