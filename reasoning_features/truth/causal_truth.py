"""The causal effect of every feature on a decision: what ablating it to its mean does to the log-odds.

A feature i is ablated by adding (mean_i − a_i)·W_dec,i to the residual stream at the hook point. What the
autoencoder does not explain stays as it is, so nothing but the feature changes. The effect is the change of
the decision's log-odds, ablated minus as is, in nats: negative where the feature drove the positive side.

Random directions say which effects are more than any push of that size would do. Each takes the signed sizes
(mean_j − a_j)·‖W_dec,j‖ of a live feature j drawn at random. For small pushes the effect grows in proportion
to the size, so the effect of one direction *per unit of size* is the same whichever feature lent the sizes,
and the 99th percentile of these ratios times feature i's own mean size is the 99th percentile of random
directions of equal norm: one set of directions serves every feature. :attr:`Effects.slope` tests the
proportion; it is 1 where it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.statistics import bootstrap_weights
from reasoning_features.truth.decisions import Decisions, log_odds

Array = NDArray[np.float64]
QUANTILE = 0.99
"""Of random directions of equal norm; the share above it passes by chance."""
ROWS = 32
"""Ablated copies of a whole trace in one forward pass."""


@dataclass(frozen=True)
class Ablations:
    """Edits of one trace: each moves the stream along its own direction, by its own amount at each token.

    Attributes:
        amounts: ``[t, m]`` how far each edit moves each token's stream, in units of its direction.
        directions: ``[m, d]``.
    """

    amounts: Tensor
    directions: Tensor

    @property
    def norms(self) -> Tensor:
        """Norm of every edit at every token ``[t, m]``."""
        return self.amounts.abs() * self.directions.norm(dim=1)


Place = Callable[[Subject, Decisions, NDArray[np.int64], Ablations], tuple[Tensor, Tensor]]
"""From a trace's decisions (numbers of ``Decisions``) and edits to changes and sizes, ``[k, m]`` each."""


def at_decision(
    subject: Subject, decisions: Decisions, which: NDArray[np.int64], edits: Ablations
) -> tuple[Tensor, Tensor]:
    """Edits at each decision's own token alone: changes of its log-odds and norms of the edits ``[k, m]``."""
    prefix = subject.prefix(_tokens(decisions, which))
    changes = []
    for place in decisions.places[which].tolist():
        moved = edits.amounts[place, :, None] * edits.directions
        # the first version is the stream as it is: what the others are compared with
        versions = prefix.stream[place] + torch.cat([torch.zeros_like(moved[:1]), moved])
        found = log_odds(subject.logits_of_versions(prefix, place, versions), decisions)
        changes.append(found[1:] - found[0])
    return torch.stack(changes), edits.norms[torch.from_numpy(decisions.places[which])]


def over_trace(
    subject: Subject, decisions: Decisions, which: NDArray[np.int64], edits: Ablations
) -> tuple[Tensor, Tensor]:
    """Edits at every token up to each decision: changes of its log-odds and norms of the edits ``[k, m]``.

    The norm of an edit is that of all its tokens up to the decision together. Later tokens cannot be seen by
    the decision, so one run serves all decisions of a trace.
    """
    places = torch.from_numpy(decisions.places[which])
    stream = subject.residual(_tokens(decisions, which)[None])[0]
    as_it_is = log_odds(subject.logits_from(stream[None], subject.layer, places[None])[0], decisions)
    changes = []
    for amounts, directions in zip(
        edits.amounts[: len(stream)].T.split(ROWS), edits.directions.split(ROWS), strict=True
    ):
        edited = torch.addcmul(stream, amounts[:, :, None], directions[:, None])
        logits = subject.logits_from(edited, subject.layer, places.expand(len(edited), -1))
        changes.append(log_odds(logits, decisions) - as_it_is)
    return torch.cat(changes).T, edits.norms.square().cumsum(0).sqrt()[places]


PLACES: dict[str, Place] = {"decision": at_decision, "trace": over_trace}
"""Where features are ablated: at the decision's own token, or at every token up to it."""


@dataclass(frozen=True)
class Effects:
    """Effects of ablating features on one kind of decision, at one place; nats of log-odds.

    Attributes:
        features: ``[f]`` which features.
        effect: ``[f]`` mean signed change.
        absolute: ``[f]`` mean |change|.
        size: ``[f]`` mean norm of the edit.
        threshold: ``[f]`` 99th percentile of |mean change| under random directions of equal norm.
        documents: ``[t]`` the traces.
        traces: ``[t, f]`` float32 sums of the changes of a trace's decisions.
        counts: ``[t]`` decisions of each trace.
        random_effect, random_absolute, random_size: ``[k]`` the same of the random directions.
    """

    features: NDArray[np.int64]
    effect: Array
    absolute: Array
    size: Array
    threshold: Array
    documents: NDArray[np.int64]
    traces: NDArray[np.float32]
    counts: NDArray[np.int64]
    random_effect: Array
    random_absolute: Array
    random_size: Array

    @property
    def true(self) -> NDArray[np.bool_]:
        """``[f]`` True where the mean change passes the threshold."""
        return np.abs(self.effect) > self.threshold

    @property
    def strongest(self) -> NDArray[np.int64]:
        """All features ``[f]``, the largest mean change first."""
        return self.features[np.argsort(-np.abs(self.effect), kind="stable")]

    @property
    def passed(self) -> NDArray[np.int64]:
        """The features that pass, the largest mean change first."""
        return self.strongest[np.isin(self.strongest, self.features[self.true])]

    @property
    def expected_by_chance(self) -> float:
        """How many features would pass if all their directions were random."""
        return (1 - QUANTILE) * len(self.features)

    @property
    def slope(self) -> float:
        """:func:`slope_of_random` of this measurement's random directions."""
        return slope_of_random(self.random_absolute, self.random_size)

    def interval(self, n_resamples: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[Array, Array]:
        """Lower and upper ends ``[f]`` of the interval of the mean change; traces are resampled."""
        weights = bootstrap_weights(len(self.counts), n_resamples, seed)
        means = (weights @ self.traces) / (weights @ self.counts)[:, None]
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high


def slope_of_random(absolute: Array, size: Array) -> float:
    """Slope of log mean |change| on log size over random directions: 1 where effects are proportional."""
    held = (size > 0) & (absolute > 0)
    return float(np.polyfit(np.log(size[held]), np.log(absolute[held]), 1)[0])


@torch.no_grad()
def measure_effects(
    subject: Subject,
    sae: Any,
    decisions: Decisions,
    features: NDArray[np.int64],
    means: Array,
    place: Place,
    n_random: int,
    seed: int,
    progress: str | None = None,
) -> Effects:
    """Ablate each feature to its mean at each decision, and random directions by sizes of those ablations.

    Args:
        subject: the model, read where the autoencoder reads.
        sae: encodes raw activations and has decoder directions ``W_dec``.
        decisions: where the log-odds are read (:func:`reasoning_features.truth.decisions.balanced`).
        features: ``[f]`` the live features.
        means: ``[f]`` their mean activations over tokens that are not special.
        place: one of ``PLACES``; special tokens are never edited.
        n_random: random directions.
        seed: draws the directions, and the feature that lends each its sizes.
        progress: what the progress bar says; None for no bar.

    Raises:
        UserError: there are no decisions, or no features.
    """
    if not len(decisions) or not len(features):
        raise UserError("Causal effects need a decision and a live feature: take more documents.")
    sources, directions = _directions(sae, features, n_random, seed)
    documents, counts = np.unique(decisions.documents, return_counts=True)
    sums, f = np.zeros((3, len(sources))), len(features)
    traces = np.empty((len(documents), f), np.float32)
    with tqdm(total=len(decisions), desc=progress, unit=" decisions", disable=progress is None) as bar:
        for row, document in enumerate(documents):
            which = np.flatnonzero(decisions.documents == document)
            edits = Ablations(
                _amounts(subject, sae, decisions, document, features, means)[:, sources], directions
            )
            found = place(subject, decisions, which, edits)
            change, size = (values.double().cpu().numpy() for values in found)
            change[size == 0] = 0  # rounding alone: rows of one product need not round alike
            sums += change.sum(0), np.abs(change).sum(0), size.sum(0)
            traces[row] = change[:, :f].sum(0)
            bar.update(len(which))
    effect, absolute, size = sums / len(decisions)
    pushed = size[f:] > 0
    ratio = float(np.quantile(np.abs(effect[f:][pushed]) / size[f:][pushed], QUANTILE))
    return Effects(
        features=features,
        effect=effect[:f],
        absolute=absolute[:f],
        size=size[:f],
        threshold=ratio * size[:f],
        documents=documents,
        traces=traces,
        counts=counts,
        random_effect=effect[f:],
        random_absolute=absolute[f:],
        random_size=size[f:],
    )


def _tokens(decisions: Decisions, which: NDArray[np.int64]) -> Tensor:
    """Tokens of the decisions' one document up to the last of them: what comes later plays no part."""
    document = decisions.corpus.document(int(decisions.documents[which[0]]))
    return torch.from_numpy(document[: decisions.places[which].max() + 1].astype(np.int64))


def _directions(
    sae: Any, features: NDArray[np.int64], n_random: int, seed: int
) -> tuple[NDArray[np.int64], Tensor]:
    """Which feature lends each edit its amounts ``[m]``, and directions ``[m, d]``: features, then random."""
    generator = torch.Generator().manual_seed(seed)
    decoder = sae.W_dec.detach()[torch.from_numpy(features)]
    drawn = torch.randint(len(features), (n_random,), generator=generator)
    unit = torch.nn.functional.normalize(torch.randn(n_random, decoder.shape[1], generator=generator), dim=1)
    random = unit.to(decoder.device) * decoder[drawn].norm(dim=1, keepdim=True)
    return np.concatenate([np.arange(len(features)), drawn.numpy()]), torch.cat([decoder, random])


def _amounts(
    subject: Subject,
    sae: Any,
    decisions: Decisions,
    document: int,
    features: NDArray[np.int64],
    means: Array,
) -> Tensor:
    """mean_i − a_i ``[t, f]`` over the tokens of a document; 0 at special tokens."""
    corpus = decisions.corpus
    stream = subject.residual(torch.from_numpy(corpus.document(document).astype(np.int64))[None])[0]
    active = sae.encode(stream.float())[:, torch.from_numpy(features)]
    special = torch.from_numpy(corpus.special[corpus.span(document)]).to(active.device)
    return (torch.from_numpy(means).to(active) - active).masked_fill(special[:, None], 0)
