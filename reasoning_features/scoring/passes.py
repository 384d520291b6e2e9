"""One pass over a corpus in shards of whole blocks of documents, here or on many machines."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from reasoning_features.bookkeeping.shards import Arrays, Work, drop_others, map_shards
from reasoning_features.dictionaries.autoencoder import dictionary_digest
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import reading_key, stream
from reasoning_features.scoring.feature_statistics import Accumulator, one_pass
from reasoning_features.text.corpus import Corpus

TOKENS = 2**18
"""Tokens of a shard, where there are blocks enough: some seconds of an 8B model on a large GPU."""


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
    tokens: int = TOKENS,
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
        ShareDone: only a share was asked for, and others are not finished.
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
