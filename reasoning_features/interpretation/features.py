"""What there is to look at of a feature: its logits, its mode, its examples, and how active it is.

*Logits*: what a feature writes into the next token's logits, W_U (γ ⊙ W_dec,i), the logit lens. γ is the
scale of the final norm. An RMSNorm divides by the stream's root mean square and does not centre, so up to
that positive number this is the feature's direct path to the logits; what later blocks make of the feature is
left out. Units: logits for one unit of activation where the stream's root mean square is 1.

*Mode*, by a rule from the steps of reasoning, fixed beforehand: uncertainty, exploration, reflection, mixed
or other. Let m(v) be a feature's mean activation on the tokens of step v, and p(v) = m(v) / Σ_u m(u) over all
steps that occur: its share of activation if every step had equally many tokens. The share of a mode is the
largest p(v) of its steps (:data:`STEPS_OF`). The same is computed from the mean activation on the last token
before each step, and the larger of the two counts: a feature may announce a step or stand on it. With ten
steps chance is a tenth; a mode *holds* when its share reaches :data:`THRESHOLD`. One mode that holds is the
feature's mode, two or more make it mixed, none makes it other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.interpretation.activating_examples import EDGES, Activity, Example
from reasoning_features.models.subject import Subject

Mode = Literal["uncertainty", "exploration", "reflection", "mixed", "other"]
MODES: tuple[Mode, ...] = ("uncertainty", "exploration", "reflection", "mixed", "other")
PAPER_MODES: tuple[Mode, ...] = MODES[:4]
"""Modes that the paper found; "other" is none of them."""
STEPS_OF: dict[Mode, tuple[str, ...]] = {
    "uncertainty": ("uncertain",),
    "exploration": ("explore",),
    "reflection": ("verify", "backtrack"),
}
"""The labelled steps of each mode; the others belong to none."""
THRESHOLD = 0.3
"""Three times what one of ten steps has by chance."""
WORDS_OF: dict[Mode, tuple[str, ...]] = {
    "uncertainty": ("hmm", "maybe", "perhaps"),
    "exploration": ("alternatively", "another", "let me"),
    "reflection": ("wait", "but", "however"),
}
"""The words of R of each mode; *therefore*, and words of one's own, belong to none."""
WORD, HALF = "word:", 0.5
PLACES = ("mean", "before")
"""Columns are named ``mean:<step>`` (on its tokens) and ``before:<step>`` (on the last token before it)."""
EFFECT = "effect:"
"""Columns of ablation effects are named ``effect:<decision>``."""
LOGITS = 10


@torch.no_grad()
def logit_effects(subject: Subject, directions: Tensor) -> Tensor:
    """Effects ``[n, vocabulary]`` float32 of directions ``[n, d]`` in the residual stream.

    Raises:
        UserError: the model's final norm is no RMSNorm (it has a bias, or no scale).
    """
    norm: Any = getattr(subject.model.base_model, "norm", None)
    if getattr(norm, "weight", None) is None or getattr(norm, "bias", None) is not None:
        raise UserError(
            f"{subject.name} does not end in an RMSNorm with a scale: its logit effects are not defined here."
        )
    unembedding: Any = subject.model.get_output_embeddings().weight
    scaled = directions.to(norm.weight.device).float() * norm.weight.float()
    return scaled @ unembedding.float().T


def top_logits(
    subject: Subject, sae: Any, features: Sequence[int] | NDArray[Any], n: int = LOGITS
) -> pd.DataFrame:
    """The ``n`` tokens that each feature raises most, and those that it lowers most.

    Returns:
        ``feature``, ``side`` ("positive", "negative"), ``rank`` (from 1), ``token`` (its id), ``text``,
        ``value``. Equal values keep the order of ids.
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
    """The mode of every feature by the rule; None where the text's steps are not labelled.

    Args:
        means: one row a feature with ``mean:<step>`` and, where there are any, ``before:<step>``; a step that
            does not occur is left out or NaN.
    """
    places = [place for place in PLACES if any(name.startswith(f"{place}:") for name in means.columns)]
    if not places:
        return None
    shares = np.zeros((len(means), len(STEPS_OF)))
    for place in places:
        names = [name for name in means.columns if name.startswith(f"{place}:")]
        labelled = means[names].astype(float).fillna(0.0)
        by_step = labelled.div(labelled.sum(axis=1).replace(0.0, np.nan), axis=0).fillna(0.0)
        for column, steps in enumerate(STEPS_OF.values()):
            own = by_step.reindex(columns=[f"{place}:{step}" for step in steps], fill_value=0.0)
            shares[:, column] = np.maximum(shares[:, column], own.max(axis=1))
    holds = shares >= THRESHOLD
    first = holds.argmax(axis=1)
    return [
        "mixed" if n > 1 else list(STEPS_OF)[i] if n else "other"
        for n, i in zip(holds.sum(axis=1), first, strict=True)
    ]


def modes_by_words(means: pd.DataFrame) -> list[Mode]:
    """The mode of every feature by the words of R that it is active around, where steps are not labelled.

    The rule. Let p(r) be the share of the word r in the feature's mean activations around words of R
    (equation 4). The mode whose words (:data:`WORDS_OF`) have more than half of it is the feature's mode.
    Where words of no mode have more than half, or it is active around no word, it is other; all else is
    mixed. So a mode says around which words a feature is active, and not that it stands for what they
    express.

    Args:
        means: one row a feature with ``word:<r>``, its mean activation in the window around each word of R.
    """
    names = [name for name in means.columns if name.startswith(WORD)]
    known = {word: mode for mode, words in WORDS_OF.items() for word in words}
    of_word = np.array([known.get(name.removeprefix(WORD).lower(), "other") for name in names])
    kinds: tuple[Mode, ...] = (*WORDS_OF, "other")
    values = means[names].to_numpy(float)
    by_kind = np.stack([values[:, of_word == kind].sum(axis=1) for kind in kinds], axis=1)
    total, first = by_kind.sum(axis=1), by_kind.argmax(axis=1)
    clear = by_kind.max(axis=1) > HALF * total
    return [
        "other" if not total[i] else kinds[first[i]] if clear[i] else "mixed" for i in range(len(by_kind))
    ]


@dataclass(frozen=True)
class FeatureInterface:
    """One feature, ready to be drawn.

    Attributes:
        feature: its number.
        score: ReasonScore.
        rank: by that score, from 1.
        density: fraction of tokens on which it is active.
        maximum: its largest activation.
        histogram: active tokens by activation, one a bin, from the first to the last bin that holds anything.
        edges: of the bins, ascending, one more than there are bins.
        by_step: fraction of each step's tokens on which it is active; empty where steps are not labelled.
        positive: tokens it raises and by how much, most first.
        negative: tokens it lowers.
        examples: strongest first.
        mode: see :func:`modes`; None where it is not known.
        effects: decision → change of its log-odds when the feature is ablated, nats; empty where there was no
            measuring.
        description: a judge's, None where none was asked.
    """

    feature: int
    score: float
    rank: int
    density: float
    maximum: float
    histogram: NDArray[np.int64]
    edges: NDArray[np.float64]
    by_step: dict[str, float]
    positive: list[tuple[str, float]]
    negative: list[tuple[str, float]]
    examples: list[Example]
    mode: str | None = None
    effects: dict[str, float] = field(default_factory=dict)
    description: str | None = None


def feature_interfaces(
    table: pd.DataFrame, activity: Activity, logits: pd.DataFrame, examples: Mapping[int, Sequence[Example]]
) -> list[FeatureInterface]:
    """The interfaces of a table's features, in its order.

    Args:
        table: one row a feature: ``feature``, ``score``, ``rank`` and, where they are known, ``mode``,
            ``description`` and ``effect:<decision>``.
        activity: of all features.
        logits: :func:`top_logits` of these.
        examples: :func:`reasoning_features.interpretation.activating_examples.read_examples` of these.
    """
    sides = {
        key: list(zip(part["text"], part["value"], strict=True))
        for key, part in logits.sort_values("rank", kind="stable").groupby(["feature", "side"])
    }
    made = []
    for row in table.to_dict("records"):
        feature = int(row["feature"])
        used = np.flatnonzero(activity.histogram[feature])
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        mode, description = (row.get(name) for name in ("mode", "description"))
        effects = {str(n).removeprefix(EFFECT): v for n, v in row.items() if str(n).startswith(EFFECT)}
        made.append(
            FeatureInterface(
                feature=feature,
                score=float(row["score"]),
                rank=int(row["rank"]),
                density=float(activity.density[feature]),
                maximum=float(activity.maximum[feature]),
                histogram=activity.histogram[feature, first:end],
                edges=EDGES[first : end + 1],
                by_step=activity.density_by_step(feature),
                positive=sides.get((feature, "positive"), []),
                negative=sides.get((feature, "negative"), []),
                examples=list(examples.get(feature, [])),
                mode=None if pd.isna(mode) else str(mode),
                effects={name: float(value) for name, value in effects.items() if pd.notna(value)},
                description=None if pd.isna(description) else str(description),
            )
        )
    return made


def by_mode(interfaces: Sequence[FeatureInterface]) -> dict[str, list[Example]]:
    """Mode ("not known" where it is not) → the strongest example of each of its features, in their order.

    A stretch of text is shown once: a feature takes its strongest example from a document that none before it
    has taken, or none.
    """
    shown: dict[str, list[Example]] = {}
    taken: set[int] = set()
    for interface in interfaces:
        examples = shown.setdefault(interface.mode or "not known", [])
        free = [example for example in interface.examples if example.document not in taken][:1]
        examples += free
        taken |= {example.document for example in free}
    return shown
