"""What a model gives at every token: residual activations, as a stream or a sample on disk; norms and losses.

Attention sinks, whose stream is a hundred times as long as others' (2309.17453), are left out: special
tokens, BOS first of all, and those more than ten times as long as their batch's median.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError, check_finite
from reasoning_features.models.subject import Subject
from reasoning_features.reporting.plots import colour_bar, look, panels
from reasoning_features.runs.shards import Arrays, Work, complete, drop_others, read_shard
from reasoning_features.settings import READ
from reasoning_features.statistics import bootstrap_ratio
from reasoning_features.text.corpus import Corpus, TokenBatch

BATCHES_A_SHARD = 16
SINK = 10.0  # a token whose activation is so many times as long as the median is an attention sink
FEW = 8  # batches that are read without a progress bar
PART = 2**24  # the most numbers that are held in float64 at once
BIN = 16  # positions that are averaged together
# The settings that determine the sample of activations which the first notebook stores.
SAMPLE_FIELDS = (
    *("subject", *READ, "seed", "batch_tokens"),
    *("reasoning_documents", "general_documents", "sample_documents"),
)


@dataclass(frozen=True)
class ActivationBatch:
    """Residual activations of some tokens."""

    residual: Tensor  # [n, d] float32
    positions: Tensor  # [n] int64, each token's index in `corpus.tokens`

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows ``[k]`` of tokens given by their index in ``corpus.tokens``; ValueError: one was not read."""
        rows = pd.Index(self.positions.numpy()).get_indexer(positions)
        if (rows < 0).any():
            raise ValueError("some of these tokens were not read: special tokens and attention sinks are not")
        return rows


@dataclass(frozen=True)
class Moments:
    """Means over activations."""

    count: int
    mean: NDArray[np.float64]  # [d]
    variance: float  # mean squared distance from the mean, summed over dimensions
    mean_norm: float

    @staticmethod
    def of(residual: Tensor) -> "Moments":
        """The moments of activations ``[n, d]``."""
        n, width = residual.shape
        total, squares = torch.zeros(2, width, dtype=torch.float64)
        norms = 0.0
        for part in residual.split(max(1, PART // width)):  # all of them in float64 may not fit into memory
            wide = part.double()
            total += wide.sum(0)
            squares += wide.square().sum(0)
            norms += float(wide.norm(dim=1).sum())
        mean = check_finite(total / n, "The mean activation in a dimension")
        return Moments(n, mean.numpy(), float((squares / n - mean**2).sum()), norms / n)


def stream(
    subject: Subject,
    corpus: Corpus,
    batch_tokens: int,
    include: NDArray[np.bool_] | None = None,
    documents: NDArray[np.integer] | None = None,
) -> Iterator[ActivationBatch]:
    """Activations at the subject's hook point, at most ``batch_tokens`` ids with padding in one forward pass.

    Documents are read whole; given are the tokens of ``include`` ``[n_tokens]``, by default all that are
    neither special nor sinks.
    """
    for batch in _with_bar(corpus.batches(batch_tokens, documents), corpus):
        yield _read(subject, batch, corpus, include)


def _with_bar(batches: Iterable[TokenBatch], corpus: Corpus) -> Iterator[TokenBatch]:
    """The batches of a corpus, with a bar that shows tokens a second where they are many."""
    listed = list(batches)
    total = sum(int(batch.valid.sum()) for batch in listed)
    options = {"unit": "token", "unit_scale": True, "leave": False, "disable": len(listed) < FEW}
    with tqdm(total=total, desc=corpus.name, **options) as bar:
        for batch in listed:
            yield batch
            bar.update(int(batch.valid.sum()))


def _read(
    subject: Subject, batch: TokenBatch, corpus: Corpus, include: NDArray[np.bool_] | None = None
) -> ActivationBatch:
    residual = subject.residual(batch.tokens)
    kept = torch.from_numpy(~corpus.special if include is None else include)
    wanted = batch.valid & kept[batch.positions]  # padding has some token's answer
    rows, positions = residual[wanted.to(residual.device)].float().cpu(), batch.positions[wanted]
    if include is None and not bool((usual := no_sink(rows)).all()):  # most batches need no copy
        rows, positions = rows[usual], positions[usual]
    return ActivationBatch(rows, positions)


def no_sink(residual: Tensor) -> Tensor:
    """Which activations ``[n, d]`` are of no attention sink ``[n]``; UserError where one is not finite."""
    norms = check_finite(residual.float().norm(dim=1), "The norm of an activation")
    return norms <= SINK * norms.median() if len(norms) else norms > 0


def in_common(batches: Mapping[str, ActivationBatch]) -> dict[str, ActivationBatch]:
    """Activations of one corpus by several models, or at several layers, at the tokens that all have."""
    shared = functools.reduce(np.intersect1d, (batch.positions.numpy() for batch in batches.values()))
    rows = {name: torch.from_numpy(batch.rows(shared)) for name, batch in batches.items()}
    return {n: ActivationBatch(b.residual[rows[n]], b.positions[rows[n]]) for n, b in batches.items()}


def collect(batches: Iterable[ActivationBatch]) -> ActivationBatch:
    """All batches of a stream as one."""
    parts = list(batches)
    residual = torch.cat([batch.residual for batch in parts])
    return ActivationBatch(residual, torch.cat([batch.positions for batch in parts]))


def reading_key(subject: Subject) -> dict[str, Any]:
    """What determines activations beside the text: the model, where it is read, and its precision."""
    dtype = str(subject.model.dtype).removeprefix("torch.")
    read = {"model": subject.name, "revision": subject.revision, "hook_name": subject.hook_name}
    return read | {"dtype": dtype}


def harvest(
    subject: Subject, corpus: Corpus, directory: Path, batch_tokens: int, progress: bool = True
) -> None:
    """Write a corpus' activations as shards; goes on with an interrupted sample, deletes one of another."""
    batches = list(corpus.batches(batch_tokens))
    groups = [batches[i : i + BATCHES_A_SHARD] for i in range(0, len(batches), BATCHES_A_SHARD)]
    special = hashlib.sha256(np.packbits(corpus.special).tobytes()).hexdigest()
    key = reading_key(subject) | {"corpus": corpus.name, "corpus_digest": corpus.digest}
    key |= {"special_digest": special, "batch_tokens": batch_tokens}

    def compute(shard: int) -> Arrays:
        read = collect(_read(subject, batch, corpus) for batch in groups[shard])
        return {"residual": read.residual.numpy(), "positions": read.positions.numpy()}

    work = Work("activations", compute, len(groups), key, str(subject.device))
    complete(work, directory, progress)
    drop_others(work, directory)


def load_sample(directory: Path) -> ActivationBatch:
    """A whole harvested sample; MissingArtefact where there is none, CorruptArtefact where it is damaged."""
    shards = []
    for path in sorted(directory.glob("activations-*/*.safetensors")):
        arrays = read_shard(path)
        if arrays is None:
            name = paths.relative(path)
            raise CorruptArtefact(f"{name} is damaged: delete its folder and run `make nb-01` again.")
        check_finite(arrays["residual"], f"An activation in {paths.relative(path)}", "run `make nb-01` again")
        shards.append(ActivationBatch(*(torch.from_numpy(arrays[n]) for n in ("residual", "positions"))))
    if not shards:
        name = paths.relative(directory)
        raise MissingArtefact(f"There is no activation sample in {name}: `make nb-01` makes it.")
    return collect(shards)


def shuffled_batches(residual: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches ``[size, d]`` of a sample, each epoch in a new order; UserError: it is too small."""
    if (n := len(residual)) < size:
        told = f"The sample holds {n:,} activations, fewer than one batch of {size:,}"
        raise UserError(f"{told}: take more documents or a smaller train_batch.")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(residual), generator=generator)
        for start in range(0, len(residual) - size + 1, size):
            yield residual[order[start : start + size]]


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of tokens after the first ``[b, t - 1]`` in nats, from logits ``[b, t, vocabulary]``."""
    # row by row: a whole batch's probabilities over a large vocabulary would take most of the memory
    targets, losses = tokens[:, 1:].to(logits.device), []
    for row, target in zip(logits, targets, strict=True):
        losses.append(cross_entropy(row[:-1].float(), target, reduction="none"))
    return check_finite(torch.stack(losses), "The loss of a token")


def token_table(subject: Subject, corpus: Corpus, layers: Sequence[int], batch_tokens: int) -> pd.DataFrame:
    """One row for each token that is neither special nor an attention sink, in the corpus' order.

    Columns: ``document``; ``position`` in it; ``move`` (None where not known); ``loss`` of predicting this
    token, nats; for each layer ``norm <layer>`` of the residual stream after it.
    """
    columns = {name: np.full(corpus.n_tokens, np.nan) for name in ["loss", *(f"norm {i}" for i in layers)]}
    counted = np.zeros(corpus.n_tokens, dtype=bool)
    for batch in _with_bar(corpus.batches(batch_tokens), corpus):
        where = batch.positions[batch.valid].numpy()
        read = subject.residuals(batch.tokens, sorted({*layers, subject.layer}))
        ordinary = batch.valid & torch.from_numpy(~corpus.special)[batch.positions]
        usual = no_sink(read[subject.layer][ordinary.to(subject.device)]).cpu()
        counted[batch.positions[ordinary][usual].numpy()] = True
        for layer, residual in ((layer, read[layer]) for layer in layers):
            norms = residual.float().norm(dim=-1).cpu()[batch.valid].numpy()
            columns[f"norm {layer}"][where] = check_finite(norms, f"The norm at layer {layer} of a token")
        losses = next_token_loss(subject.logits(batch.tokens), batch.tokens).cpu()
        predicted = batch.valid[:, 1:]
        columns["loss"][batch.positions[:, 1:][predicted].numpy()] = losses[predicted].numpy()
    names = pd.Index(corpus.move_names)
    moves = None if corpus.moves is None else pd.Categorical.from_codes(corpus.moves, names)
    places = {"document": corpus.document_of, "position": corpus.position_of, "move": moves}
    return pd.DataFrame(places | columns)[counted].reset_index(drop=True)


def means_by_place_and_move(table: pd.DataFrame, value: str, seed: int = 0) -> pd.DataFrame:
    """Mean of a column, with its interval (95%) over documents, by position and, where known, by move.

    ``group`` is the first of ``BIN`` positions, or the move (in order). UserError: a value is not finite, but
    for first tokens, which may have none.
    """
    check_finite(table.loc[table["position"] > 0, value].to_numpy(dtype=float), f"The {value} of a token")
    binned = table.assign(position=table["position"] // BIN * BIN)
    rows = []
    for by in ("position", "move"):
        values = binned.dropna(subset=[value, by]).groupby(["document", by], observed=True)[value]
        sums, counts = values.sum().unstack(fill_value=0), values.count().unstack(fill_value=0)
        for group in sums.columns:
            mean = bootstrap_ratio(sums[group], counts[group], n_resamples=1000, seed=seed)
            rows.append((by, group, mean.estimate, mean.low, mean.high, int(counts[group].sum())))
    return pd.DataFrame(rows, columns=["by", "group", "mean", "low", "high", "tokens"])


def draw_means(data: pd.DataFrame, ylabel: str) -> Figure:
    """Means (:func:`means_by_place_and_move`) over positions and moves; of layers on a logarithmic axis."""
    kinds = list(pd.unique(data["by"]))
    fig, axes = panels(len(kinds), height=2.8, sharey=True, ylabel=ylabel)
    scale = colour_bar(fig, axes, data["layer"], "layer") if "layer" in data else None
    for ax, by in zip(axes, kinds, strict=True):
        for name, part in data[data["by"] == by].groupby("layer" if scale else "by", sort=False):
            # there may be eighty layers, so thin lines
            style = look(0) if not scale else dict(color=scale.to_rgba(name), linewidth=0.9, marker=".", ms=3)
            style["linestyle"] = "none" if by == "move" else "-"
            spread = np.abs(part[["low", "high"]].to_numpy().T - part["mean"].to_numpy())
            ax.errorbar(part["group"].tolist(), part["mean"], yerr=spread, capsize=1, **style)
        ax.tick_params(axis="x", rotation=0 if by == "position" else 90)
        ax.set(xlabel="position (tokens)" if by == "position" else by, yscale="log" if scale else "linear")
    return fig
