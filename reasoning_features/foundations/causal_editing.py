"""Editing one attribute and not another: RAVEL's question (2402.17700) put to latents, with exact labels.

The attributes are the *result* of a trace's last try and the *style* in which the model means to go on
(:mod:`reasoning_features.foundations.standings`).

Of a pair of decisions that differ in both, n latents of the base are replaced by the source's, and the model
goes on. The *cause* score of an attribute is the share of pairs whose readout moved to the source's side, its
*isolation* the share whose other attribute stayed on the base's, *disentanglement* the mean of the two. The
style of an edited stream is read off the decision that its result asks for. Latents are chosen as those whose
means differ most between an attribute's values, the other attribute held, on decisions of other documents;
RAVEL, and SAEBench after it, learn the choice by gradient descent.

An edit goes on from the reconstruction, as in RAVEL, or keeps the base's reconstruction error. What a number
means depends on what stands beside it:

- the *ceiling* moves the whole stream along one direction, the difference of means, as far as the source's;
- replacing the whole stream gives every cause there is at this token, and no isolation. Of the style it is
  well below 1: later blocks read the style off earlier tokens too;
- the *floor* is an autoencoder that gives the mean whatever it reads. It is exactly one half in the mean of
  both attributes, as is every edit that is the same for both: what it causes of one it fails to isolate when
  the other is edited. That holds of the whole stream replaced, and of n = 0, the reconstruction alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.foundations.names import CEILING, FLOOR
from reasoning_features.foundations.sparse_probing import lengths
from reasoning_features.foundations.standings import Standings
from reasoning_features.models.subject import Subject
from reasoning_features.statistics import Interval, bootstrap_ratio, bootstrap_weights

Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]
ATTRIBUTES, BOTH = ("result", "style"), "both"
NS = (0, 1, 5, 20)
LEFT_OUT, KEPT = "left out", "kept"
SCORES = ("cause", "isolation", "disentanglement")


@dataclass(frozen=True)
class Editing:
    """What edits of the same pairs did, by every dictionary.

    Attributes:
        edits: a row an edit: ``dictionary`` (``CEILING`` with n = 1 and, the whole of it replaced, n = d;
            ``FLOOR`` with n = 0), ``n`` latents replaced, ``error`` (of reconstruction: ``LEFT_OUT``,
            ``KEPT``, or "" where there is none).
        marks: ``[e, 2, pairs, 3]`` by edit, attribute edited, pair and score; each between 0 and 1.
        documents: ``[pairs]`` the document of each base.
    """

    edits: pd.DataFrame
    marks: NDArray[np.float64]
    documents: Codes

    def table(self, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Mean scores of every edit, with intervals from resampling the bases' documents.

        Returns:
            Rows of ``dictionary``, ``attribute`` (or "both", their mean), ``n``, ``error``, the scores, each
            with its 95% ``… low`` and ``… high``, ``pairs``, ``documents``.
        """
        names, document = np.unique(self.documents, return_inverse=True)
        drawn = bootstrap_weights(len(names), n_resamples, seed)
        weights = np.concatenate([np.ones((1, len(names))), drawn])  # first the documents as they are
        weights = weights[:, document]
        shares = np.einsum("rp,eaps->reas", weights, self.marks, optimize=True)
        shares /= weights.sum(1)[:, None, None, None]
        shares = np.concatenate([shares, shares.mean(2, keepdims=True)], axis=2)
        low, high = np.quantile(shares[1:], [0.025, 0.975], axis=0)
        rows = []
        for e, (dictionary, n, error) in enumerate(self.edits.itertuples(index=False)):
            for a, attribute in enumerate((*ATTRIBUTES, BOTH)):
                row = {"dictionary": dictionary, "attribute": attribute, "n": n, "error": error}
                for s, score in enumerate(SCORES):
                    row |= {
                        score: shares[0, e, a, s],
                        f"{score} low": low[e, a, s],
                        f"{score} high": high[e, a, s],
                    }
                rows.append(row | {"pairs": len(document), "documents": len(names)})
        return pd.DataFrame(rows)

    def difference(
        self,
        one: str,
        other: str,
        n: int,
        error: str = LEFT_OUT,
        attribute: str = BOTH,
        score: str = "disentanglement",
        n_resamples: int = 1000,
        seed: int = 0,
        other_n: int | None = None,
        level: float = 0.95,
    ) -> Interval:
        """Mean score of one dictionary's edit less that of another's, bases' documents resampled with both.

        Args:
            one, other: dictionaries. Of ``CEILING`` and ``FLOOR`` the error that each has is taken.
            n: latents replaced.
            error: what becomes of the reconstruction error.
            attribute: which is edited; "both" for their mean.
            score: one of ``SCORES``.
            n_resamples, seed: of the bootstrap.
            other_n: latents of ``other`` that are replaced, where not ``n`` as well.
            level: of the interval.

        Raises:
            UserError: there is no such dictionary, n, error, attribute or score.
        """
        scores = [
            self._scores(name, count, error, attribute, score)
            for name, count in ((one, n), (other, n if other_n is None else other_n))
        ]
        _, document = np.unique(self.documents, return_inverse=True)
        return bootstrap_ratio(
            np.bincount(document, scores[0] - scores[1]), np.bincount(document), n_resamples, seed, level
        )

    def _scores(self, name: str, n: int, error: str, attribute: str, score: str) -> NDArray[np.float64]:
        """One edit's score ``[pairs]``."""
        edits = self.edits
        for what, value, known in (
            ("dictionary", name, edits["dictionary"].unique()),
            ("error", error, (LEFT_OUT, KEPT)),
            ("attribute", attribute, (*ATTRIBUTES, BOTH)),
            ("score", score, SCORES),
        ):
            if value not in known:
                raise UserError(f"No {what} {value!r} is among the edits: choose among {', '.join(known)}.")
        at = edits["dictionary"] == name
        if name not in (CEILING, FLOOR):
            at &= edits["error"] == error
        found = np.flatnonzero(at & (edits["n"] == n))
        if not len(found):
            counts = ", ".join(str(count) for count in edits["n"][at])
            raise UserError(f"No edit of {name} has n = {n}, error {error}: choose n among {counts}.")
        marks = self.marks[found[0], :, :, SCORES.index(score)]
        return marks.mean(0) if attribute == BOTH else marks[ATTRIBUTES.index(attribute)]


def edit_attributes(
    subject: Subject,
    saes: Mapping[str, SAE[Any]],
    standings: Standings,
    pairs: tuple[Codes, Codes],
    mean: NDArray[np.float64],
    ns: Sequence[int] = NS,
) -> Editing:
    """Cause, isolation and disentanglement of editing each attribute by every dictionary.

    Args:
        subject: the model; autoencoders are put in at its hook point, at the decision's token.
        saes: autoencoders of raw activations, by name.
        standings: decisions (:func:`reasoning_features.foundations.standings.read_standings`).
        pairs: base and source of each pair (:func:`reasoning_features.foundations.standings.draw_pairs`).
        mean: ``[d]`` mean activation, what a collapsed autoencoder gives.
        ns: how many latents are replaced.
    """
    edits = list(_edits(saes, standings, *pairs, torch.from_numpy(mean).float(), ns))
    versions = torch.stack([edited for *_, edited in edits])
    changed = _sides_after(subject, standings, pairs[0], versions) != standings.sides[pairs[0]]
    marks = np.empty((len(edits), len(ATTRIBUTES), len(pairs[0]), len(SCORES)))
    for i in range(len(ATTRIBUTES)):
        marks[:, i, :, 0], marks[:, i, :, 1] = changed[:, i, :, i], ~changed[:, i, :, 1 - i]
    marks[..., 2] = marks[..., :2].mean(-1)
    what = pd.DataFrame([edit[:3] for edit in edits], columns=["dictionary", "n", "error"])
    return Editing(what, marks, standings.documents[pairs[0]])


def chosen_n(table: pd.DataFrame, error: str = LEFT_OUT) -> dict[str, int]:
    """How many latents disentangle both attributes best, for each dictionary; of equals the fewest.

    Args:
        table: an :meth:`Editing.table` of pairs other than those to be reported
            (:func:`reasoning_features.foundations.standings.halves`).
        error: what becomes of the reconstruction error.

    Raises:
        UserError: the table has no edit of one latent or more.
    """
    held = table[(table["attribute"] == BOTH) & (table["error"] == error) & (table["n"] > 0)]
    if held.empty:
        raise UserError(f"No edit of a latent has error {error!r}: edit by one latent or more.")
    held = held.assign(rounded=held["disentanglement"].round(12))  # equal means may differ in the last digit
    held = held.sort_values(["rounded", "n"], ascending=[False, True]).drop_duplicates("dictionary")
    return dict(zip(held["dictionary"], held["n"].tolist(), strict=True))


@torch.no_grad()
def _edits(
    saes: Mapping[str, SAE[Any]],
    standings: Standings,
    base: Codes,
    source: Codes,
    mean: Tensor,
    ns: Sequence[int],
) -> Iterator[tuple[str, int, str, Tensor]]:
    """Dictionary, n, what becomes of the error, and streams ``[2, pairs, d]`` with each attribute edited."""
    stream = standings.stream
    ours, theirs = stream[base], stream[source]
    for name, sae in saes.items():
        latents = sae.encode(stream.to(sae.device))
        error = ours - sae.decode(latents[base]).cpu()
        sizes = [standings.difference(latents.cpu(), i).abs() * lengths(sae) for i in range(len(ATTRIBUTES))]
        orders = [size.argsort(descending=True, stable=True) for size in sizes]
        for n in ns:
            edited = []
            for order in orders:
                mixed = latents[base]
                mixed[:, order[:n]] = latents[source][:, order[:n]]
                edited.append(sae.decode(mixed).cpu())
            yield name, n, LEFT_OUT, torch.stack(edited)
            yield name, n, KEPT, torch.stack(edited) + error
    along = []
    for i in range(len(ATTRIBUTES)):
        direction = torch.nn.functional.normalize(standings.difference(stream, i), dim=0)
        along.append(ours + ((theirs - ours) @ direction)[:, None] * direction)
    yield CEILING, 1, "", torch.stack(along)
    yield CEILING, stream.shape[1], "", torch.stack([theirs, theirs])
    yield FLOOR, 0, LEFT_OUT, mean.expand(2, *ours.shape)


def _sides_after(subject: Subject, standings: Standings, base: Codes, versions: Tensor) -> Flags:
    """Sides ``[e, 2, pairs, 2]`` with the bases' streams replaced by ``versions`` ``[e, 2, pairs, d]``."""
    corpus = standings.readouts[0].corpus
    found = np.empty((*versions.shape[:3], 2), dtype=bool)
    for document in np.unique(standings.documents[base]):
        held = np.flatnonzero(standings.documents[base] == document)
        places = standings.places[base[held]]
        tokens = corpus.document(int(document))[: places.max() + 1].astype(np.int64)
        prefix = subject.prefix(torch.from_numpy(tokens))
        for pair, place in zip(held, places, strict=True):
            given = versions[:, :, pair].flatten(0, 1)
            logits = subject.logits_of_versions(prefix, int(place), given, width=len(given))
            found[:, :, pair] = standings.read(logits).reshape(len(versions), 2, 2)
    return found
