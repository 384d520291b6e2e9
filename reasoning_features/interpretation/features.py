"""What there is to look at of a feature: where and how much it is active, its logits, its mode, its examples.

*Activity*: the strongest examples of all features in one pass. Examples are ranked by activation rounded to
12 bits, then by position: the same text padded otherwise differs in the last bits, which must not decide.

*Logits*: what a feature writes into the next token's logits, W_U (γ ⊙ W_dec,i), the logit lens; γ is the
scale of the final norm. Units: logits for one unit of activation where the stream's root mean square is 1.

*Mode*, by a rule from the steps of reasoning, fixed beforehand: uncertainty, exploration, reflection, mixed
or other. Let m(v) be a feature's mean activation on the tokens of step v, and p(v) = m(v) / Σ_u m(u) over all
steps that occur. The share of a mode is the largest p(v) of its steps (:data:`STEPS_OF`). The same is taken
from the mean activation on the last token before each step, and the larger of the two counts: a feature may
announce a step or stand on it. A mode *holds* when its share reaches :data:`THRESHOLD`. One mode that holds
is the feature's mode, two or more make it mixed, none makes it other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import encoded, encoded_columns
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import stream
from reasoning_features.statistics import Array, Ids
from reasoning_features.text.corpus import Corpus

BINS_AN_OCTAVE, OCTAVES = 4, (-12, 12)  # what lies outside is counted in the first or last bin
EDGES: Array = 2.0 ** np.arange(OCTAVES[0], OCTAVES[1] + 1 / 8, 1 / BINS_AN_OCTAVE)
BITS = 12
NOWHERE = -1
Mode = Literal["uncertainty", "exploration", "reflection", "mixed", "other"]
MODES: tuple[Mode, ...] = ("uncertainty", "exploration", "reflection", "mixed", "other")
PAPER_MODES: tuple[Mode, ...] = MODES[:4]  # that the paper found; "other" is none of them
STEPS_OF: dict[Mode, tuple[str, ...]] = {  # other labelled steps belong to no mode
    "uncertainty": ("uncertain",),
    "exploration": ("explore",),
    "reflection": ("verify", "backtrack"),
}
THRESHOLD = 0.3  # three times what one of ten steps has by chance
WORDS_OF: dict[Mode, tuple[str, ...]] = {  # *therefore*, and words of one's own, belong to none
    "uncertainty": ("hmm", "maybe", "perhaps"),
    "exploration": ("alternatively", "another", "let me"),
    "reflection": ("wait", "but", "however"),
}
WORD, HALF = "word:", 0.5
PLACES = ("mean", "before")  # begin columns ``…:<step>``: on its tokens, on the last token before it
EFFECT = "effect:"  # begins names of columns of patching effects, one a kind of decision
LOGITS = 10
AROUND = 20  # tokens that an example shows before and after its peak


@dataclass(frozen=True)
class Activity:
    """How active every feature is, and where most."""

    density: Array  # [f] fraction of tokens on which the feature is above zero
    maximum: NDArray[np.float32]  # [f] largest activation
    histogram: Ids  # [f, bins] active tokens by activation, between EDGES
    # [f, m] the strongest token of each of the m strongest documents, strongest first (-1: active in fewer)
    positions: Ids


class ActivatingExamples:
    """Accumulates :class:`Activity` of a corpus, batch by batch in any order, with m examples a feature."""

    def __init__(self, corpus: Corpus, examples: int) -> None:
        self._document_of, self._examples = torch.from_numpy(corpus.document_of), examples
        self._tokens, self._sums = 0, dict[str, Tensor]()

    def update(self, features: Tensor, positions: Tensor) -> None:
        """Take the activations ``features`` ``[n, f]`` of the tokens at ``positions`` ``[n]``."""
        if not len(positions):
            return
        if not self._sums:
            self._begin(features)
        positions, order = positions.to(features.device).sort()
        features, sums = features[order].float(), self._sums
        self._tokens += len(positions)
        sums["maximum"] = torch.maximum(sums["maximum"], features.amax(0))
        token, feature = (features > 0).nonzero(as_tuple=True)
        bins = ((features[token, feature].log2() - OCTAVES[0]) * BINS_AN_OCTAVE).floor().long()
        n_bins = len(EDGES) - 1
        places = feature * n_bins + bins.clamp(0, n_bins - 1)
        sums["histogram"] += torch.bincount(places, minlength=sums["histogram"].numel()).view(-1, n_bins)
        self._rank(*self._strongest_by_document(features, positions))

    def result(self) -> Activity:
        """What was accumulated; UserError where nothing was."""
        if not self._sums:
            raise UserError("No activations came through: the corpus is empty, ask for more documents.")
        sums = {name: values.cpu().numpy() for name, values in self._sums.items()}
        density, positions = sums["histogram"].sum(axis=1) / self._tokens, sums["positions"].T
        return Activity(density, sums["maximum"], sums["histogram"], np.ascontiguousarray(positions))

    def _begin(self, features: Tensor) -> None:
        """Make room for as many features, where they are computed."""
        n, m, device = features.shape[1], self._examples, features.device
        self._document_of = self._document_of.to(device)
        self._sums = {
            "maximum": torch.zeros(n, device=device),
            "histogram": torch.zeros(n, len(EDGES) - 1, dtype=torch.int64, device=device),
            "activations": torch.zeros(m, n, device=device),
            "positions": torch.full((m, n), NOWHERE, device=device),
        }

    def _strongest_by_document(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The strongest token of each document, earliest of equals: activations and positions ``[d, f]``."""
        _, document = torch.unique_consecutive(self._document_of[positions], return_inverse=True)
        at = document[:, None].expand_as(features)
        values = _rounded(features)
        best = values.new_zeros(int(document[-1]) + 1, features.shape[1])
        best = best.scatter_reduce(0, at, values, "amax")
        last = int(positions[-1]) + 1
        candidates = torch.where(values == best[document], positions[:, None], last)
        where = torch.full_like(best, last, dtype=torch.int64).scatter_reduce(0, at, candidates, "amin")
        return best, torch.where(best > 0, where, NOWHERE)

    def _rank(self, values: Tensor, positions: Tensor) -> None:
        """Keep the strongest of what was kept and what came, at most one of a document."""
        m = self._examples
        values, positions = _strongest(values, positions, m)
        values = torch.cat([self._sums["activations"], values])
        values, positions = _strongest(values, torch.cat([self._sums["positions"], positions]))
        document = self._document_of[positions]
        for i in range(1, len(values)):  # a document may come in two batches
            again = (document[:i] == document[i]).any(0) & (positions[i] >= 0)
            values[i] = values[i].masked_fill(again, 0)
            positions[i] = positions[i].masked_fill(again, NOWHERE)
        self._sums["activations"], self._sums["positions"] = _strongest(values, positions, m)


@dataclass(frozen=True)
class Example:
    """A stretch of text around a feature's activation."""

    feature: int
    document: int  # of the corpus
    pieces: tuple[str, ...]  # the text of each token [t]
    activations: NDArray[np.float32]  # [t], 0 at special tokens
    peak: int  # the place in ``pieces`` of the token that it was chosen for


def read_examples(
    subject: Subject, sae: Any, corpus: Corpus, activity: Activity, features: Iterable[int], batch_tokens: int
) -> dict[int, list[Example]]:
    """Feature → examples, strongest first, of which ``activity`` says where they are in the corpus."""
    chosen = [int(feature) for feature in features]
    peaks, document_of = activity.positions[chosen], corpus.document_of
    found: dict[tuple[int, int], Example] = {}
    needed = np.unique(document_of[peaks[peaks >= 0]])
    for batch in stream(subject, corpus, batch_tokens, documents=needed):
        columns, positions = encoded_columns(sae, batch.residual, chosen).numpy(), batch.positions.numpy()
        for document in np.unique(document_of[positions]).tolist():
            span, here = corpus.span(document), document_of[positions] == document
            values = np.zeros((span.stop - span.start, len(chosen)), np.float32)
            values[positions[here] - span.start] = columns[here]
            first = span.start + int(np.argmin(corpus.special[span]))  # after BOS
            for place, rank in np.argwhere((peaks >= span.start) & (peaks < span.stop)).tolist():
                peak = int(peaks[place, rank])
                shown = slice(max(first, peak - AROUND), min(peak + AROUND + 1, span.stop))
                pieces = tuple(token_pieces(subject.tokenizer, corpus.tokens[shown].tolist()))
                own = values[shown.start - span.start : shown.stop - span.start, place].copy()
                found[place, peak] = Example(chosen[place], document, pieces, own, peak - shown.start)
    return {
        feature: [found[place, int(peak)] for peak in peaks[place] if peak >= 0]
        for place, feature in enumerate(chosen)
    }


def feature_examples(
    subject: Subject, sae: Any, corpus: Corpus, features: Iterable[int], examples: int, batch_tokens: int
) -> tuple[Activity, dict[int, list[Example]]]:
    """How active every feature is, and the strongest ``examples`` of some features, one a document."""
    accumulator = ActivatingExamples(corpus, examples)
    for batch in stream(subject, corpus, batch_tokens):
        for part, activations in encoded(sae, batch.residual):
            accumulator.update(activations, batch.positions[part])
    activity = accumulator.result()
    return activity, read_examples(subject, sae, corpus, activity, features, batch_tokens)


def shown_once(examples: Mapping[int, Sequence[Example]], n: int = 1) -> dict[int, list[Example]]:
    """The first ``n`` examples of each feature from documents that no feature before it shows."""
    taken, kept = set[int](), dict[int, list[Example]]()
    for feature, own in examples.items():
        kept[feature] = [example for example in own if example.document not in taken][:n]
        taken |= {example.document for example in kept[feature]}
    return kept


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


def _strongest(values: Tensor, positions: Tensor, m: int | None = None) -> tuple[Tensor, Tensor]:
    """The first ``m`` rows of ``[c, f]``, every column sorted by value, largest first, then by position."""
    order = torch.argsort(positions, dim=0, stable=True)
    values, positions = values.gather(0, order), positions.gather(0, order)
    order = torch.argsort(values, dim=0, descending=True, stable=True)[:m]
    return values.gather(0, order), positions.gather(0, order)


# --- logits and modes --------------------------------------------------------------------------------------


@torch.no_grad()
def logit_effects(subject: Subject, directions: Tensor) -> Tensor:
    """Effects ``[n, vocabulary]`` float32 of directions ``[n, d]`` in the stream; UserError: the final norm
    is no RMSNorm (it has a bias, or no scale).
    """
    norm: Any = getattr(subject.model.base_model, "norm", None)
    if getattr(norm, "weight", None) is None or getattr(norm, "bias", None) is not None:
        raise UserError(f"{subject.name} does not end in an RMSNorm with a scale, so there is no logit lens.")
    unembedding: Any = subject.model.get_output_embeddings().weight
    scaled = directions.to(norm.weight.device).float() * norm.weight.float()
    return scaled @ unembedding.float().T


def top_logits(subject: Subject, sae: Any, features: Iterable[int], n: int = LOGITS) -> pd.DataFrame:
    """The ``n`` tokens that each ``feature`` raises most ("positive" ``side``) and lowers most: ``rank`` from
    1, ``token`` (its id), ``text``, ``value``; equal values keep the order of ids.
    """
    rows = []
    for feature in features:
        effect = logit_effects(subject, sae.W_dec[[int(feature)]])[0].cpu()
        for side, sign in (("positive", 1), ("negative", -1)):
            order = torch.argsort(-sign * effect, stable=True)[:n].tolist()
            for rank, token in enumerate(order, start=1):
                text = subject.tokenizer.decode([token])
                rows.append((int(feature), side, rank, token, text, float(effect[token])))
    return pd.DataFrame(rows, columns=["feature", "side", "rank", "token", "text", "value"])


def modes(means: pd.DataFrame) -> list[Mode] | None:
    """The mode of every row by the rule; None where the text's steps are not labelled. Columns of ``means``
    are ``mean:<step>`` and ``before:<step>``; a step that does not occur is left out or NaN.
    """
    shares = np.zeros((len(means), len(STEPS_OF)))
    labelled = means.filter(regex=f"^({'|'.join(PLACES)}):").astype(float).fillna(0.0)
    if labelled.empty:
        return None
    for place in PLACES:
        own = labelled.filter(regex=f"^{place}:").rename(columns=lambda name: name.split(":")[1])
        by_step = own.div(own.sum(axis=1).replace(0.0, np.nan), axis=0).fillna(0.0)
        for column, steps in enumerate(STEPS_OF.values()):
            most = by_step.reindex(columns=list(steps), fill_value=0.0).max(axis=1)
            shares[:, column] = np.maximum(shares[:, column], most)
    holds = shares >= THRESHOLD
    names, first = list(STEPS_OF), holds.argmax(axis=1)
    numbers = holds.sum(axis=1)
    return ["mixed" if n > 1 else names[i] if n else "other" for n, i in zip(numbers, first, strict=True)]


def modes_by_words(means: pd.DataFrame) -> list[Mode]:
    """The mode of every feature by the words of R that it is active around, where no steps are labelled: that
    whose words (:data:`WORDS_OF`) have more than half of its mean activations around words of R
    (``word:<r>``); other, where words of no mode have, or it is active around none; else mixed.
    """
    names = [name for name in means.columns if name.startswith(WORD)]
    known = {word: mode for mode, words in WORDS_OF.items() for word in words}
    of_word = np.array([known.get(name.removeprefix(WORD).lower(), "other") for name in names])
    kinds: tuple[Mode, ...] = (*WORDS_OF, "other")
    values = means[names].to_numpy(float)
    by_kind = np.stack([values[:, of_word == kind].sum(axis=1) for kind in kinds], axis=1)
    total, first = by_kind.sum(axis=1), by_kind.argmax(axis=1)
    clear = by_kind.max(axis=1) > HALF * total
    return ["other" if not total[i] else kinds[first[i]] if clear[i] else "mixed" for i in range(len(total))]


@dataclass(frozen=True)
class FeatureInterface:
    """One feature, ready to be drawn."""

    feature: int
    score: float  # ReasonScore
    rank: int  # by that score, from 1
    density: float  # fraction of tokens on which it is active
    maximum: float  # its largest activation
    histogram: Ids  # active tokens by activation, from the first to the last bin that is used
    edges: Array  # of the bins, ascending, one more than there are bins
    positive: list[tuple[str, float]]  # tokens it raises and by how much, most first
    negative: list[tuple[str, float]]  # tokens it lowers
    examples: list[Example]  # strongest first
    mode: str | None = None
    effects: dict[str, float] = field(default_factory=dict)  # on a decision's log-odds, nats
    description: str | None = None  # a judge's


def feature_interfaces(
    table: pd.DataFrame, activity: Activity, logits: pd.DataFrame, examples: Mapping[int, Sequence[Example]]
) -> list[FeatureInterface]:
    """Interfaces of the features of a table with ``feature``, ``score``, ``rank``, and perhaps ``mode``,
    ``description``, ``effect:<decision>``; with their :func:`top_logits` and examples.
    """
    sides = {
        key: list(zip(part["text"], part["value"], strict=True))
        for key, part in logits.sort_values("rank", kind="stable").groupby(["feature", "side"])
    }
    made = []
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        feature = int(row["feature"])
        used = np.flatnonzero(activity.histogram[feature])
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        effects = {str(n).removeprefix(EFFECT): v for n, v in row.items() if str(n).startswith(EFFECT)}
        interface = FeatureInterface(
            feature=feature, score=float(row["score"]), rank=int(row["rank"]),
            density=float(activity.density[feature]), maximum=float(activity.maximum[feature]),
            histogram=activity.histogram[feature, first:end], edges=EDGES[first : end + 1],
            positive=sides.get((feature, "positive"), []), negative=sides.get((feature, "negative"), []),
            examples=list(examples.get(feature, [])), mode=row.get("mode"),
            effects={name: float(value) for name, value in effects.items() if value is not None},
            description=row.get("description"),
        )  # fmt: skip
        made.append(interface)
    return made
