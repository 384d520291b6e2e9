"""Residual activations of a corpus: as a stream, and as a checksummed sample on disk.

A harvest is made in shards of whole batches (:mod:`reasoning_features.runs.shards`), so that one that
was interrupted goes on where it stopped and gives the same bytes, and many machines may share it; it is named
when it is whole. Each token's activation is stored with the token's index in the corpus.

Attention sinks are left out: where a model attends when it has nothing to attend to, the residual stream is
a hundred times as long as elsewhere, and a few such tokens would be most of the variance (2309.17453). The
rule: special tokens, BOS first of all, are left out by position, and of the others those whose activation is
more than ten times as long as the median of their batch.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.models.subject import Subject
from reasoning_features.runs.shards import (
    Arrays,
    Work,
    checksum,
    complete,
    intact_arrays,
    read_arrays,
    shard_file,
)
from reasoning_features.settings import READ
from reasoning_features.text.corpus import Corpus, TokenBatch

MANIFEST = "manifest.json"
BATCHES_A_SHARD = 16
SINK = 10.0
"""A token whose activation is so many times as long as the median is an attention sink."""
FEW = 8
"""Fewer batches than these are read without a progress bar."""
PART = 2**24
"""The most numbers that are held in float64 at once."""
SAMPLE_FIELDS = (
    "subject",
    *READ,
    "seed",
    "reasoning_documents",
    "general_documents",
    "sample_documents",
    "batch_tokens",
)
"""The settings that determine the sample of activations which the first notebook stores."""


@dataclass(frozen=True)
class ActivationBatch:
    """Residual activations of some tokens.

    Attributes:
        residual: ``[n, d]`` float32.
        positions: ``[n]`` int64, each token's index in ``corpus.tokens``.
    """

    residual: Tensor
    positions: Tensor

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of some of these tokens ``[k]``, given by their index in ``corpus.tokens``.

        Raises:
            ValueError: one of them is not among these.
        """
        held = self.positions.numpy()
        order = np.argsort(held)
        found = order[np.searchsorted(held, positions, sorter=order).clip(max=len(held) - 1)]
        if not np.array_equal(held[found], positions):
            raise ValueError("some of these tokens were not read: special tokens and attention sinks are not")
        return found


@dataclass(frozen=True)
class Moments:
    """Sums over activations, float64, which add when shards are merged.

    Attributes:
        count: number of activations.
        total: their sum ``[d]``.
        squares: the sum of their squares ``[d]``.
        norms: the sum of their norms.
    """

    count: int
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    norms: float

    @staticmethod
    def of(residual: Tensor) -> Moments:
        """The moments of activations ``[n, d]``."""
        width = residual.shape[1]
        total, squares = torch.zeros(2, width, dtype=torch.float64)
        norms = 0.0
        for part in residual.split(max(1, PART // width)):  # all of them in float64 may not fit into memory
            wide = part.double()
            total += wide.sum(0)
            squares += wide.square().sum(0)
            norms += float(wide.norm(dim=1).sum())
        return Moments(len(residual), total.numpy(), squares.numpy(), norms)

    def merge(self, other: Moments) -> Moments:
        """The moments of both."""
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.norms + other.norms,
        )

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean activation ``[d]``."""
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Mean squared distance from the mean, summed over dimensions."""
        return float((self.squares / self.count - self.mean**2).sum())

    @property
    def mean_norm(self) -> float:
        """Mean norm of an activation."""
        return self.norms / self.count


def stream(
    subject: Subject,
    corpus: Corpus,
    batch_tokens: int,
    include: NDArray[np.bool_] | None = None,
    documents: NDArray[np.integer] | None = None,
) -> Iterator[ActivationBatch]:
    """Activations at the subject's hook point of a corpus' tokens, batch by batch.

    Args:
        subject: the model and its hook point.
        corpus: the documents; every document is read whole whichever of its tokens are given.
        batch_tokens: the most token ids, padding included, in one forward pass.
        include: ``[n_tokens]`` the tokens to give; by default all that are neither special nor sinks.
        documents: which documents; by default all.
    """
    batches = list(corpus.batches(batch_tokens, documents))
    return (_read(subject, batch, corpus, include) for batch in told(batches, corpus))


def told(batches: Sequence[TokenBatch], corpus: Corpus) -> Iterator[TokenBatch]:
    """The batches of a corpus, with a bar that shows tokens a second where they take a while."""
    total = sum(int(batch.valid.sum()) for batch in batches)
    options = {"unit": "token", "unit_scale": True, "leave": False, "disable": len(batches) < FEW}
    with tqdm(total=total, desc=corpus.name, **options) as bar:
        for batch in batches:
            yield batch
            bar.update(int(batch.valid.sum()))


def _read(
    subject: Subject, batch: TokenBatch, corpus: Corpus, include: NDArray[np.bool_] | None
) -> ActivationBatch:
    residual = subject.residual(batch.tokens)
    kept = torch.from_numpy(~corpus.special if include is None else include)
    wanted = batch.valid & kept[batch.positions]  # padding has some token's answer
    rows, positions = residual[wanted.to(residual.device)].float().cpu(), batch.positions[wanted]
    if include is None:
        usual = no_sink(rows)
        if not bool(usual.all()):  # most batches have none, and need no copy
            rows, positions = rows[usual], positions[usual]
    return ActivationBatch(residual=rows, positions=positions)


def no_sink(residual: Tensor) -> Tensor:
    """Which activations ``[n, d]`` are of no attention sink ``[n]``: at most ten times the median long.

    Raises:
        UserError: an activation is not finite.
    """
    norms = residual.float().norm(dim=1)
    if not bool(norms.isfinite().all()):
        raise UserError(
            "The model gives activations that are not finite: run it in float32 or bfloat16 (`dtype`), or at "
            "another layer."
        )
    return norms <= SINK * norms.median() if len(norms) else norms > 0


def in_common(batches: Mapping[str, ActivationBatch]) -> dict[str, ActivationBatch]:
    """Activations of one corpus, by several models or at several layers, at the tokens that all of them have.

    What is an attention sink at one layer need not be at another.
    """
    shared = functools.reduce(np.intersect1d, (batch.positions.numpy() for batch in batches.values()))
    rows = {name: torch.from_numpy(batch.rows(shared)) for name, batch in batches.items()}
    return {n: ActivationBatch(b.residual[rows[n]], b.positions[rows[n]]) for n, b in batches.items()}


def collect(batches: Iterable[ActivationBatch]) -> ActivationBatch:
    """All batches of a stream as one."""
    held = list(batches)
    return ActivationBatch(
        residual=torch.cat([batch.residual for batch in held]),
        positions=torch.cat([batch.positions for batch in held]),
    )


def reading_key(subject: Subject) -> dict[str, Any]:
    """What determines activations beside the text: the model, where it is read, and its precision."""
    return {
        "model": subject.name,
        "revision": subject.revision,
        "hook_name": subject.hook_name,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
    }


def sample_key(
    subject: Subject, corpus: Corpus, batch_tokens: int, include: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Everything that determines a harvest's content: two harvests with one key have the same activations."""
    kept = ~corpus.special if include is None else include
    return reading_key(subject) | {
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "included_digest": hashlib.sha256(np.packbits(kept).tobytes()).hexdigest(),
        "batch_tokens": batch_tokens,
        "sinks": include is not None,
    }


def harvest(
    subject: Subject,
    corpus: Corpus,
    directory: Path,
    batch_tokens: int,
    include: NDArray[np.bool_] | None = None,
    progress: bool = True,
) -> Path:
    """Write the activations of a corpus to a directory, whole or not at all; go on with an interrupted one.

    Args:
        subject: the model and its hook point.
        corpus: the documents.
        directory: where the sample goes. One that is there already, with the same key, is kept as it is.
        batch_tokens: the most token ids in one forward pass.
        include: ``[n_tokens]`` the tokens to store; by default all that are neither special nor sinks.
        progress: show a progress bar.

    Returns:
        ``directory``.

    Raises:
        UserError: the directory holds a sample of something else; nothing is overwritten.
    """
    key = sample_key(subject, corpus, batch_tokens, include)
    finished = directory.with_name(directory.name + ".shards")
    if directory.exists():
        _check_key(directory, _read_manifest(directory)["key"], key)
        shutil.rmtree(finished, ignore_errors=True)
        return directory
    batches = list(corpus.batches(batch_tokens))
    groups = [batches[i : i + BATCHES_A_SHARD] for i in range(0, len(batches), BATCHES_A_SHARD)]
    compute = partial(_shard, subject, corpus, groups, include)
    work = Work("activations", compute, len(groups), key, str(subject.device))
    complete(work, finished, progress)
    fresh = directory.with_name(directory.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    done = []
    for shard in range(work.n):
        name, path = f"shard-{shard:05d}.safetensors", shard_file(work, finished, shard)
        n_tokens = len(read_arrays(path)["positions"])
        done.append({"file": name, "tokens": n_tokens, "sha256": checksum(path)})
        os.link(path, fresh / name)
    _write_manifest(fresh, key, done)
    os.replace(fresh, directory)
    shutil.rmtree(finished)
    return directory


def _shard(
    subject: Subject,
    corpus: Corpus,
    groups: Sequence[Sequence[TokenBatch]],
    include: NDArray[np.bool_] | None,
    shard: int,
) -> Arrays:
    """The activations of one group of batches."""
    read = collect(_read(subject, batch, corpus, include) for batch in groups[shard])
    return {"residual": read.residual.numpy(), "positions": read.positions.numpy()}


def load_sample(
    directory: Path, key: dict[str, Any] | None = None, shards: Sequence[int] | None = None
) -> ActivationBatch:
    """Read a harvested sample, after its checksums; with ``shards`` only those, by number.

    Raises:
        MissingArtefact: there is no sample in ``directory``.
        CorruptArtefact: a shard is missing or damaged; the message names it.
        UserError: the sample's key is not ``key``: it was made from something else.
    """
    manifest = _read_manifest(directory)
    if key is not None:
        _check_key(directory, manifest["key"], key)
    entries = manifest["shards"] if shards is None else [manifest["shards"][i] for i in shards]
    return collect(_load_shard(directory, entry) for entry in entries)


def batches_of(sample: ActivationBatch, size: int) -> Iterator[ActivationBatch]:
    """A sample in batches of at most ``size`` tokens: what :func:`stream` gives, without the model."""
    for residual, positions in zip(sample.residual.split(size), sample.positions.split(size), strict=True):
        yield ActivationBatch(residual, positions)


def shuffled_batches(residual: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches ``[size, d]`` of a sample in memory, each epoch in a new order drawn from the seed.

    Raises:
        UserError: the sample holds fewer activations than one batch.
    """
    if len(residual) < size:
        raise UserError(
            f"The sample holds {len(residual):,} activations, fewer than one batch of {size:,}: "
            "take more documents or a smaller train_batch."
        )
    generator = torch.Generator().manual_seed(seed)
    for _ in itertools.count():
        order = torch.randperm(len(residual), generator=generator)
        for start in range(0, len(residual) - size + 1, size):
            yield residual[order[start : start + size]]


def _load_shard(directory: Path, entry: dict[str, Any]) -> ActivationBatch:
    arrays = intact_arrays(directory / entry["file"], entry["sha256"])
    if arrays is None:
        name = paths.relative(directory / entry["file"])
        raise CorruptArtefact(
            f"{name} is missing or damaged (its checksum is not the manifest's): "
            "delete its folder and run `make nb-01` again."
        )
    return ActivationBatch(torch.from_numpy(arrays["residual"]), torch.from_numpy(arrays["positions"]))


def _check_key(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        raise UserError(
            f"{paths.relative(directory)} holds a sample with another {', '.join(different)}: "
            "delete that folder or store under another name."
        )


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise MissingArtefact(
            f"There is no activation sample in {paths.relative(directory)}: `make nb-01` makes it."
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CorruptArtefact(
            f"{paths.relative(path)} is damaged: delete its folder and run `make nb-01` again."
        ) from error


def _write_manifest(directory: Path, key: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    content = {"key": key, "tokens": sum(entry["tokens"] for entry in shards), "shards": shards}
    writing = directory / (MANIFEST + ".writing")
    writing.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(writing, directory / MANIFEST)
