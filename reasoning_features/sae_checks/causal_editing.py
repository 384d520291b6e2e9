"""Editing one attribute and not another: RAVEL's question (2402.17700) put to latents, with exact labels.

At the token before a sentence's opener two binary attributes of a trace stand. The *result*: the last try was
wrong, and what follows goes on or gives up; or it was right, and what follows verifies it or concludes. The
*style*: whether the model leans to the persistent side of the decision that the result asks for (going on,
verifying), told from its log-odds by their median among training decisions of that kind.

Of a pair of decisions that differ in both, n latents of the base are replaced by the source's, and the model
goes on from the reconstruction. The *cause* score of an attribute is the share of pairs whose readout moved
to the source's side, its *isolation* the share whose other attribute stayed on the base's, *disentanglement*
the mean of the two. Latents are those whose means differ most between an attribute's values, the other held,
on decisions of other documents; RAVEL, and SAEBench after it, learn the choice by gradient descent.

The *ceiling* moves the whole stream along one direction, the difference of means, as far as the source's. The
*floor* is an autoencoder that gives the mean whatever it reads: one half in the mean of both attributes, as
is every edit that is the same for both (the whole stream replaced; n = 0, the reconstruction alone).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import added_directions
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.probes import weights_by_document
from reasoning_features.sae_checks.interpretability import CEILING, FLOOR, Saes
from reasoning_features.statistics import Array, Flags, Ids, percentile_interval
from reasoning_features.truth.decisions import Decisions, log_odds

NS = (0, 1, 5, 20)
SCORES = ("cause", "isolation", "disentanglement")


@dataclass(frozen=True)
class DecisionContexts:
    """Decisions that the model reads as what they are, wrong or right results: RAVEL's contexts."""

    stream: Tensor  # [n, d] at each decision's token
    sides: Flags  # [n, 2] True where its result is right, and where the model leans to the persistent side
    documents: Ids  # [n] the document of each
    places: Ids  # [n] its place there
    training: Flags  # [n] in the documents that latents, directions and medians are taken from
    readouts: tuple[Decisions, Decisions, Decisions]  # the result; decisions after a wrong and a right one
    medians: Tensor  # [3] log-odds of the readouts, in nats, that divide the sides

    def read(self, logits: Tensor) -> Flags:
        """Sides ``[..., 2]`` that next-token logits ``[..., V]`` are on."""
        return _sides(_odds(logits, self.readouts), self.medians)

    def difference(self, values: Tensor, attribute: int) -> Tensor:
        """How much more values ``[n, ...]`` are on an attribute's True side, the other held; UserError: no
        training decision has some pair of sides.
        """
        means = {}
        for side in ((True, True), (True, False), (False, True), (False, False)):
            which = self.training & (self.sides == side).all(1)
            if not which.any():
                raise UserError("Some pair of result and style is not in training: take more documents.")
            means[side] = values[torch.from_numpy(which)].mean(0)
        own = ((True, False), (False, True))[attribute]  # one attribute True, the other False
        return (means[True, True] + means[own] - means[own[1], own[0]] - means[False, False]) / 2


def read_contexts(
    subject: Subject, decisions: Mapping[str, Decisions], batch_tokens: int, seed: int = 0
) -> DecisionContexts:
    """The decisions of a corpus with the model's sides; ``seed`` draws half of the documents for training."""
    wrong, right = decisions["persistence"], decisions["verification"]
    of_right, of_wrong = (np.concatenate([each.positive, each.negative]) for each in (right, wrong))
    readouts = (replace(right, name="result", positive=of_right, negative=of_wrong), wrong, right)
    is_right = np.repeat([False, True], [len(wrong), len(right)])
    documents = np.concatenate([wrong.documents, right.documents])
    places = np.concatenate([wrong.places, right.places])
    stream, odds = torch.empty(len(places), subject.d_model), torch.empty(len(places), 3)
    names = np.unique(documents)
    for batch in right.corpus.batches(batch_tokens, names):
        rows = [np.flatnonzero(documents == document) for document in batch.documents]
        longest = max(map(len, rows))
        at = np.stack([np.pad(places[own], (0, longest - len(own))) for own in rows])
        read = subject.residual(batch.tokens)
        logits = subject.logits_from(read, subject.layer, torch.from_numpy(at))
        for i, own in enumerate(rows):
            stream[own] = read[i, at[i, : len(own)]].float().cpu()
            odds[own] = _odds(logits[i, : len(own)], readouts)
    training = np.isin(documents, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
    known = (odds[torch.from_numpy(training & (is_right == kind))] for kind in (False, True))
    wrongs, rights = (each.median(0).values for each in known)
    medians = torch.stack([(wrongs[0] + rights[0]) / 2, wrongs[1], rights[2]])
    sides = _sides(odds, medians)
    read_so = sides[:, 0] == is_right
    kept = (sides[read_so], documents[read_so], places[read_so], training[read_so])
    return DecisionContexts(stream[torch.from_numpy(read_so)], *kept, readouts, medians)


def _odds(logits: Tensor, readouts: Sequence[Decisions]) -> Tensor:
    """Log-odds ``[..., 3]`` in nats of each readout."""
    return torch.stack([log_odds(logits, readout).cpu() for readout in readouts], dim=-1)


def _sides(odds: Tensor, medians: Tensor) -> Flags:
    """Sides ``[..., 2]`` that log-odds ``[..., 3]`` are on; the result says which decision tells style."""
    result, wrong, right = (odds > medians).unbind(-1)
    return torch.stack([result, torch.where(result, right, wrong)], dim=-1).numpy()


def halves(contexts: DecisionContexts, seed: int = 0) -> tuple[Ids, Ids]:
    """Test documents in two halves: one to choose numbers of latents on, the other to report on."""
    names = np.random.default_rng(seed).permutation(np.unique(contexts.documents[~contexts.training]))
    return np.sort(names[: len(names) // 2]), np.sort(names[len(names) // 2 :])


def draw_pairs(contexts: DecisionContexts, n: int, documents: Ids, seed: int = 0) -> tuple[Ids, Ids]:
    """Base and source ``[≤ n]`` of pairs of test decisions in some documents (one of :func:`halves`) that
    differ in both attributes: half of the bases of a wrong result, half of a right one, none twice, fewer
    than ``n`` where there are not as many. UserError where some pair of sides has no decision.
    """
    rng = np.random.default_rng(seed)
    test, sides = ~contexts.training & np.isin(contexts.documents, documents), contexts.sides
    of_result = [np.flatnonzero(test & (sides[:, 0] == result)) for result in (False, True)]
    each = min(n // 2, *map(len, of_result))
    bases, sources = [], []
    for result in (False, True):
        fitting = [np.flatnonzero(test & (sides == (not result, style)).all(1)) for style in (False, True)]
        if not all(map(len, fitting)):
            raise UserError("Some pair of result and style is in no test document: take more documents.")
        able = rng.permutation(of_result[result])[:each]
        bases += able.tolist()
        sources += [int(rng.choice(fitting[int(not sides[base, 1])])) for base in able]
    return np.array(bases), np.array(sources)


@dataclass(frozen=True)
class Editing:
    """What edits of the same pairs did, by every dictionary."""

    # dictionary and number of latents replaced of each edit; CEILING with n = 1 and n = d; FLOOR with n = 0
    edits: tuple[tuple[str, int], ...]
    marks: Array  # [e, 2, pairs, 3] by edit, attribute edited, pair and score, each 0 to 1
    documents: Ids  # [pairs] the document of each base

    def table(self, seed: int = 0) -> pd.DataFrame:
        """Scores of every edit, means over both attributes, with 95% intervals from resampling the bases'
        documents: rows of ``dictionary``, ``n``, the scores with ends, ``pairs``, ``documents``.
        """
        names, document = np.unique(self.documents, return_inverse=True)
        weights, documents = weights_by_document(len(names), seed)[:, document], len(names)
        shares = np.einsum("rp,eps->res", weights, self.marks.mean(1), optimize=True)
        shares, rows = shares / weights.sum(1)[:, None, None], []
        for (dictionary, n), of_edit in zip(self.edits, shares.transpose(1, 2, 0), strict=True):
            row: dict[str, Any] = {"dictionary": dictionary, "n": n}
            for score, values in zip(SCORES, of_edit, strict=True):
                row |= percentile_interval(values[0], values[1:], documents).row(score, f"{score} ")
            rows.append(row | {"pairs": len(self.documents), "documents": documents})
        return pd.DataFrame(rows)


def edit_attributes(
    subject: Subject, saes: Saes, contexts: DecisionContexts, pairs: tuple[Ids, Ids], mean: Array
) -> Editing:
    """Cause, isolation and disentanglement of editing each attribute by every dictionary of raw activations,
    at the model's hook point and the decision's token. ``pairs`` are base and source (:func:`draw_pairs`),
    ``mean`` ``[d]`` what a collapsed autoencoder gives; of ``NS`` latents each number is replaced.
    """
    base, source = pairs
    edits = list(_edits(saes, contexts, base, source, torch.from_numpy(mean).float()))
    versions = torch.stack([edited for *_, edited in edits])
    changed = _sides_after(subject, contexts, base, versions) != contexts.sides[base]
    cause = np.stack([changed[:, i, :, i] for i in range(2)], axis=1)
    isolation = np.stack([~changed[:, i, :, 1 - i] for i in range(2)], axis=1)
    marks = np.stack([cause, isolation, (cause.astype(float) + isolation) / 2], axis=-1)
    return Editing(tuple((name, n) for name, n, _ in edits), marks, contexts.documents[base])


@torch.no_grad()
def _edits(
    saes: Saes, contexts: DecisionContexts, base: Ids, source: Ids, mean: Tensor
) -> Iterator[tuple[str, int, Tensor]]:
    """Dictionary, n, and streams ``[2, pairs, d]`` with each attribute edited."""
    stream = contexts.stream
    ours, theirs = stream[base], stream[source]
    for name, sae in saes.items():
        latents, lengths = sae.encode(stream.to(sae.device)), added_directions(sae).norm(dim=1)
        sizes = [contexts.difference(latents.cpu(), i).abs() * lengths for i in range(2)]
        orders = [size.argsort(descending=True, stable=True) for size in sizes]
        for n in NS:
            edited = []
            for order in orders:
                mixed = latents[base]
                mixed[:, order[:n]] = latents[source][:, order[:n]]
                edited.append(sae.decode(mixed).cpu())
            yield name, n, torch.stack(edited)
    directions = [torch.nn.functional.normalize(contexts.difference(stream, i), dim=0) for i in range(2)]
    along = [ours + ((theirs - ours) @ direction)[:, None] * direction for direction in directions]
    yield CEILING, 1, torch.stack(along)
    yield CEILING, stream.shape[1], torch.stack([theirs, theirs])
    yield FLOOR, 0, mean.expand(2, *ours.shape)


def _sides_after(subject: Subject, contexts: DecisionContexts, base: Ids, versions: Tensor) -> Flags:
    """Sides ``[e, 2, pairs, 2]`` with the bases' streams replaced by ``versions`` ``[e, 2, pairs, d]``."""
    corpus = contexts.readouts[0].corpus
    found = np.empty((*versions.shape[:3], 2), dtype=bool)
    for document in np.unique(contexts.documents[base]):
        own = np.flatnonzero(contexts.documents[base] == document)
        places = contexts.places[base[own]]
        tokens = corpus.document(int(document))[: places.max() + 1].astype(np.int64)
        prefix = subject.prefix(torch.from_numpy(tokens))
        for pair, place in zip(own, places, strict=True):
            streams = versions[:, :, pair].flatten(0, 1)
            logits = subject.logits_of_versions(prefix, int(place), streams, width=len(streams))
            found[:, :, pair] = contexts.read(logits).reshape(len(versions), 2, 2)
    return found
