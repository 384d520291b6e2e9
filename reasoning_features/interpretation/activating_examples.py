"""Where features are active: the strongest examples of all of them, and how active they are, in one pass.

The histogram has fixed edges, a quarter of an octave apart, so that it streams and merges: nothing has to be
known of a feature before its first token comes. Examples are ranked by activation rounded to 12 bits, then
by position: the same text padded otherwise differs in the last bits, and those must not decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import encoded, encoded_columns
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import stream
from reasoning_features.text.corpus import Corpus

BINS_AN_OCTAVE = 4
OCTAVES = (-12, 12)
"""The histogram reaches from 2⁻¹² to 2¹²; what lies outside is counted in the first or last bin."""
EDGES: NDArray[np.float64] = 2.0 ** np.arange(
    OCTAVES[0], OCTAVES[1] + 1 / BINS_AN_OCTAVE / 2, 1 / BINS_AN_OCTAVE
)
BITS = 12
NOWHERE = -1


@dataclass(frozen=True)
class Activity:
    """How active every feature is, and where most.

    Attributes:
        tokens: tokens that were read.
        active: ``[f]`` tokens on which the feature is above zero.
        maximum: ``[f]`` largest activation.
        histogram: ``[f, bins]`` active tokens by activation, between :data:`EDGES`.
        positions: ``[f, m]`` the strongest token of each of the m strongest documents, strongest first;
            -1 where a feature is active in fewer.
        activations: ``[f, m]`` float32, there, rounded to :data:`BITS` bits; 0 where there is none.
        step_names: names of the labelled steps of reasoning; empty where steps are not labelled.
        step_tokens: ``[steps]`` tokens of each step.
        step_active: ``[steps, f]`` tokens of each step on which the feature is above zero.
    """

    tokens: int
    active: NDArray[np.int64]
    maximum: NDArray[np.float32]
    histogram: NDArray[np.int64]
    positions: NDArray[np.int64]
    activations: NDArray[np.float32]
    step_names: tuple[str, ...]
    step_tokens: NDArray[np.int64]
    step_active: NDArray[np.int64]

    @property
    def density(self) -> NDArray[np.float64]:
        """``[f]`` fraction of tokens on which each feature is active."""
        return self.active / self.tokens

    def density_by_step(self, feature: int) -> dict[str, float]:
        """Fraction of each step's tokens on which a feature is active; empty where steps are not labelled."""
        shares = zip(self.step_names, self.step_active[:, feature], self.step_tokens, strict=True)
        return {name: float(active / tokens) for name, active, tokens in shares if tokens}


class ActivatingExamples:
    """Accumulates :class:`Activity`, batch by batch in any order.

    Memory grows with features and examples, not with tokens.

    Args:
        corpus: what is read; at most one example of a feature comes from each of its documents.
        examples: how many to keep of each feature (m).
    """

    def __init__(self, corpus: Corpus, examples: int) -> None:
        self._document_of = torch.from_numpy(corpus.document_of)
        self._steps = None if corpus.moves is None else torch.from_numpy(corpus.moves.astype(np.int64))
        self._step_names = corpus.move_names if corpus.moves is not None else ()
        self._examples = examples
        self._tokens = 0
        self._sums: dict[str, Tensor] = {}

    def update(self, features: Tensor, positions: Tensor) -> None:
        """Take the activations ``features`` ``[n, f]`` of the tokens at ``positions`` ``[n]``."""
        if not len(positions):
            return
        if not self._sums:
            self._begin(features)
        positions = positions.to(features.device)
        order = torch.argsort(positions)
        positions, features = positions[order], features[order].float()
        sums, active = self._sums, features > 0
        self._tokens += len(positions)
        sums["active"] += active.sum(0)
        sums["maximum"] = torch.maximum(sums["maximum"], features.amax(0))
        token, feature = active.nonzero(as_tuple=True)
        bins = ((features[token, feature].log2() - OCTAVES[0]) * BINS_AN_OCTAVE).floor().long()
        n_bins = len(EDGES) - 1
        places = feature * n_bins + bins.clamp(0, n_bins - 1)
        sums["histogram"] += torch.bincount(places, minlength=sums["histogram"].numel()).view(-1, n_bins)
        if self._steps is not None:
            steps, n_steps = self._steps[positions], len(self._step_names)
            sums["step_tokens"] += torch.bincount(steps, minlength=n_steps)
            places = steps[token] * features.shape[1] + feature
            counts = torch.bincount(places, minlength=n_steps * features.shape[1])
            sums["step_active"] += counts.view(n_steps, -1)
        self._rank(*self._strongest_by_document(features, positions))

    def result(self) -> Activity:
        """What was accumulated.

        Raises:
            UserError: nothing was.
        """
        if not self._sums:
            raise UserError("No activations came through: the corpus is empty, ask for more documents.")
        sums = {name: values.cpu().numpy() for name, values in self._sums.items()}
        sums |= {name: np.ascontiguousarray(sums[name].T) for name in ("positions", "activations")}
        return Activity(tokens=self._tokens, step_names=self._step_names, **sums)

    def _begin(self, features: Tensor) -> None:
        """Make room for as many features, where they are computed."""
        n, bins, steps, device = features.shape[1], len(EDGES) - 1, len(self._step_names), features.device
        self._document_of = self._document_of.to(device)
        self._steps = None if self._steps is None else self._steps.to(device)
        zeros = {"active": (n,), "histogram": (n, bins), "step_tokens": (steps,), "step_active": (steps, n)}
        self._sums = {name: torch.zeros(size, dtype=torch.int64) for name, size in zeros.items()}
        self._sums |= {"maximum": torch.zeros(n), "activations": torch.zeros(self._examples, n)}
        self._sums["positions"] = torch.full((self._examples, n), NOWHERE)
        self._sums = {name: values.to(device) for name, values in self._sums.items()}

    def _strongest_by_document(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The strongest token of each document, earliest of equals: activations and positions ``[d, f]``."""
        _, document = torch.unique_consecutive(self._document_of[positions], return_inverse=True)
        at = document[:, None].expand_as(features)
        values = _rounded(features)
        best = values.new_zeros(int(document[-1]) + 1, features.shape[1]).scatter_reduce(
            0, at, values, "amax"
        )
        last = int(positions[-1]) + 1
        candidates = torch.where(values == best[document], positions[:, None], last)
        where = torch.full_like(best, last, dtype=torch.int64).scatter_reduce(0, at, candidates, "amin")
        return best, torch.where(best > 0, where, NOWHERE)

    def _rank(self, values: Tensor, positions: Tensor) -> None:
        """Keep the strongest of what was held and what came, at most one of a document."""
        values, positions = _strongest(values, positions, self._examples)
        held_values, held_positions = self._sums["activations"], self._sums["positions"]
        for i in range(len(held_values)):  # a document may come in two batches
            same = (self._document_of[held_positions[i]] == self._document_of[positions]) & (positions >= 0)
            same &= held_positions[i] >= 0
            # of equals the earlier one
            better = (values > held_values[i]) | (
                (values == held_values[i]) & (positions < held_positions[i])
            )
            beaten = (same & better).any(0)
            held_values[i] = held_values[i].masked_fill(beaten, 0)
            held_positions[i] = held_positions[i].masked_fill(beaten, NOWHERE)
            values = values.masked_fill(same & ~better, 0)
            positions = positions.masked_fill(same & ~better, NOWHERE)
        self._sums["activations"], self._sums["positions"] = _strongest(
            torch.cat([held_values, values]), torch.cat([held_positions, positions]), self._examples
        )


@dataclass(frozen=True)
class Example:
    """A stretch of text around a feature's activation.

    Attributes:
        feature: the feature.
        document: the corpus' document it comes from.
        pieces: the text of each token ``[t]``; together they are the text.
        activations: ``[t]`` float32; 0 at special tokens.
        peak: the place in ``pieces`` of the token that it was chosen for.
    """

    feature: int
    document: int
    pieces: tuple[str, ...]
    activations: NDArray[np.float32]
    peak: int

    @property
    def text(self) -> str:
        """The text."""
        return "".join(self.pieces)


def read_examples(
    subject: Subject,
    sae: Any,
    corpus: Corpus,
    activity: Activity,
    features: Sequence[int] | NDArray[np.int64],
    batch_tokens: int,
    around: int = 20,
) -> dict[int, list[Example]]:
    """The examples of some features with the activation of every token: reads only the documents they lie in.

    Args:
        subject: the model.
        sae: its autoencoder.
        corpus: the one that ``activity`` was gathered on.
        activity: where the features are most active.
        features: which features.
        batch_tokens: the most token ids in one forward pass.
        around: tokens shown before and after the peak, within the document.

    Returns:
        Feature → examples, strongest first; none for a feature that is never active.
    """
    chosen = [int(feature) for feature in features]
    held: dict[int, list[Example]] = {feature: [] for feature in chosen}
    peaks = activity.positions[chosen]
    if not (peaks >= 0).any():
        return held
    document_of = corpus.document_of
    needed = np.unique(document_of[peaks[peaks >= 0]])
    # features with an example in each document
    wanted = {int(d): np.flatnonzero(((document_of[peaks] == d) & (peaks >= 0)).any(1)) for d in needed}
    read: dict[tuple[int, int], NDArray[np.float32]] = {}
    part = corpus.select(needed)
    part_of = part.document_of
    for batch in stream(subject, part, batch_tokens):
        encoded = encoded_columns(sae, batch.residual, chosen).numpy()
        positions = batch.positions.numpy()
        for i in np.unique(part_of[positions]):
            here = part_of[positions] == i
            values = np.zeros((part.span(i).stop - part.span(i).start, len(chosen)), np.float32)
            values[positions[here] - part.starts[i]] = encoded[here]
            document = int(needed[i])
            read |= {(document, chosen[place]): values[:, place].copy() for place in wanted[document]}
    for feature, row in zip(chosen, peaks, strict=True):
        for peak in row[row >= 0]:
            document = int(document_of[peak])
            begin, place = int(corpus.starts[document]), int(peak - corpus.starts[document])
            length = int(corpus.starts[document + 1]) - begin
            text_begins = int(np.argmin(corpus.special[begin : begin + length]))  # after BOS
            shown = slice(max(text_begins, place - around), min(length, place + around + 1))
            ids = corpus.tokens[begin : begin + length][shown].tolist()
            values = read[document, feature][shown]
            text = tuple(token_pieces(subject.tokenizer, ids))
            held[feature].append(Example(feature, document, text, values, place - shown.start))
    return held


def feature_examples(
    subject: Subject,
    sae: Any,
    corpus: Corpus,
    features: Sequence[int] | NDArray[np.int64],
    examples: int,
    batch_tokens: int,
) -> tuple[Activity, dict[int, list[Example]]]:
    """How active every feature is, and the strongest examples of some, in two readings of a corpus.

    Args:
        subject: the model.
        sae: its autoencoder.
        corpus: what is read.
        features: whose examples are read.
        examples: how many of each feature, one a document.
        batch_tokens: the most token ids in one forward pass.
    """
    accumulator = ActivatingExamples(corpus, examples)
    for batch in stream(subject, corpus, batch_tokens):
        for part, activations in encoded(sae, batch.residual):
            accumulator.update(activations, batch.positions[part])
    activity = accumulator.result()
    return activity, read_examples(subject, sae, corpus, activity, features, batch_tokens)


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the text.

    Where tokens are no whole characters, or lose a space when decoded alone, each piece is what its token
    adds to the text before it; a character split over tokens goes to the one that completes it.
    """
    whole = tokenizer.decode(list(ids))
    alone = [tokenizer.decode([token]) for token in ids]
    if "".join(alone) == whole:
        return alone
    pieces, told = [], ""
    for end in range(1, len(ids) + 1):
        text = whole if end == len(ids) else tokenizer.decode(list(ids[:end]))
        grows = whole.startswith(text)
        pieces.append(text[len(told) :] if grows else "")
        told = text if grows else told
    return pieces


def _rounded(values: Tensor) -> Tensor:
    """Values to ``BITS`` binary digits."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(mantissa * 2**BITS) / 2**BITS, exponent)


def _strongest(values: Tensor, positions: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The first ``m`` rows of ``[c, f]``, every column sorted by value, largest first, then by position."""
    order = torch.argsort(positions, dim=0, stable=True)
    values, positions = values.gather(0, order), positions.gather(0, order)
    order = torch.argsort(values, dim=0, descending=True, stable=True)[:m]
    return values.gather(0, order), positions.gather(0, order)
