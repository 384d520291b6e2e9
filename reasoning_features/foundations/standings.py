"""Decisions with two binary attributes that a model itself tells: what edits of a stream are scored on.

At the token before a sentence's opener two binary attributes of a trace stand. The *result*: the last try was
wrong, and what follows goes on or gives up; or it was right, and what follows verifies it or concludes. The
*style*: whether the model leans to the persistent side of the decision that the result asks for (going on,
verifying), told from its log-odds by their median among training decisions of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.truth.decisions import Decisions, log_odds

Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Standings:
    """Decisions that the model reads as what they are: a wrong result's or a right one's.

    Attributes:
        stream: ``[n, d]`` the stream at each decision's token.
        sides: ``[n, 2]`` True where its result is right, and where the model leans to the persistent side.
        documents: ``[n]`` the document of each.
        places: ``[n]`` its place there.
        training: ``[n]`` True in the documents that latents, directions and medians are taken from.
        readouts: what logits are read by: the result, then the decision after a wrong one and a right one.
        medians: ``[3]`` log-odds in nats that divide the sides.
    """

    stream: Tensor
    sides: Flags
    documents: Codes
    places: Codes
    training: Flags
    readouts: tuple[Decisions, Decisions, Decisions]
    medians: Tensor

    def read(self, logits: Tensor) -> Flags:
        """Sides ``[..., 2]`` that next-token logits ``[..., V]`` are on."""
        return _sides(_odds(logits, self.readouts), self.medians)

    def difference(self, values: Tensor, attribute: int) -> Tensor:
        """How much more values ``[n, ...]`` are on an attribute's True side, the other attribute held.

        Raises:
            UserError: no training decision has some pair of sides.
        """
        means = {}
        for side in ((True, True), (True, False), (False, True), (False, False)):
            which = self.training & (self.sides == side).all(1)
            if not which.any():
                raise UserError(
                    "Some pair of result and style is in no training document: take more documents."
                )
            means[side] = values[torch.from_numpy(which)].mean(0)
        held = ((True, False), (False, True))[attribute]  # one attribute True, the other False
        other = (held[1], held[0])
        return (means[True, True] + means[held] - means[other] - means[False, False]) / 2


def read_standings(
    subject: Subject, decisions: Mapping[str, Decisions], batch_tokens: int, seed: int = 0
) -> Standings:
    """The decisions of a corpus with the sides that the model is on.

    Args:
        subject: the model and its hook point.
        decisions: "persistence" and "verification" of one corpus
            (:func:`reasoning_features.truth.decisions.find_decisions`).
        batch_tokens: the most token ids in one forward pass.
        seed: divides the documents, one half for training.

    Raises:
        UserError: a kind of decision has none in the training documents.
    """
    wrong, right = decisions["persistence"], decisions["verification"]
    result = replace(
        right,
        name="result",
        positive=np.concatenate([right.positive, right.negative]),
        negative=np.concatenate([wrong.positive, wrong.negative]),
    )
    readouts = (result, wrong, right)
    is_right = np.repeat([False, True], [len(wrong), len(right)])
    documents = np.concatenate([wrong.documents, right.documents])
    places = np.concatenate([wrong.places, right.places])
    stream, odds = torch.empty(len(places), subject.d_model), torch.empty(len(places), 3)
    names = np.unique(documents)
    for batch in right.corpus.batches(batch_tokens, names):
        held = [np.flatnonzero(documents == document) for document in batch.documents]
        longest = max(len(rows) for rows in held)
        at = np.stack([np.pad(places[rows], (0, longest - len(rows))) for rows in held])
        read = subject.residual(batch.tokens)
        logits = subject.logits_from(read, subject.layer, torch.from_numpy(at))
        for i, rows in enumerate(held):
            stream[rows] = read[i, at[i, : len(rows)]].float().cpu()
            odds[rows] = _odds(logits[i, : len(rows)], readouts)
    training = np.isin(documents, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
    of_kind = [odds[torch.from_numpy(training & (is_right == kind))] for kind in (False, True)]
    if not all(map(len, of_kind)):
        raise UserError("A kind of decision is in no training document: take more documents.")
    wrongs, rights = (read.median(0).values for read in of_kind)
    medians = torch.stack([(wrongs[0] + rights[0]) / 2, wrongs[1], rights[2]])
    sides = _sides(odds, medians)
    understood = sides[:, 0] == is_right
    return Standings(
        stream[torch.from_numpy(understood)],
        sides[understood],
        documents[understood],
        places[understood],
        training[understood],
        readouts,
        medians,
    )


def halves(standings: Standings, seed: int = 0) -> tuple[Codes, Codes]:
    """Test documents in two halves: one to choose numbers of latents on, the other to report on."""
    names = np.random.default_rng(seed).permutation(np.unique(standings.documents[~standings.training]))
    return np.sort(names[: len(names) // 2]), np.sort(names[len(names) // 2 :])


def draw_pairs(
    standings: Standings, n: int, seed: int = 0, documents: Codes | None = None
) -> tuple[Codes, Codes]:
    """Base and source ``[≤ n]`` of pairs of test decisions that differ in both attributes.

    Half of the bases have a wrong result, half a right one; none is a base twice.

    Args:
        standings: the decisions.
        n: how many pairs at most: fewer where there are fewer decisions of one result.
        seed: of the draw.
        documents: where bases and sources are drawn (one of :func:`halves`); by default all test documents.

    Raises:
        UserError: some pair of sides has no decision.
    """
    rng = np.random.default_rng(seed)
    test, sides = ~standings.training, standings.sides
    if documents is not None:
        test = test & np.isin(standings.documents, documents)
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


def _odds(logits: Tensor, readouts: Sequence[Decisions]) -> Tensor:
    """Log-odds ``[..., 3]`` in nats of each readout."""
    return torch.stack([log_odds(logits, readout).cpu() for readout in readouts], dim=-1)


def _sides(odds: Tensor, medians: Tensor) -> Flags:
    """Sides ``[..., 2]`` that log-odds ``[..., 3]`` are on; the result says which decision tells style."""
    result, wrong, right = (odds > medians).unbind(-1)
    return torch.stack([result, torch.where(result, right, wrong)], dim=-1).numpy()
