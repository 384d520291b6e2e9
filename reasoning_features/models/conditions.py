"""Ways of steering: a vector added to the stream, a feature clamped, or a rule on the tokens written.

Equation 7 adds: x' = x + γ · f_i^max · W_dec,i at the autoencoder's layer, at every position, the
prompt's too.
The released hook clamps: it encodes x, sets f_i to γ · f_i^max, decodes, and adds the reconstruction's error
back, which comes to x' = x + (γ · f_i^max − f_i(x)) · W_dec,i.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.models.sampling import RowEdit
from reasoning_features.models.subject import Subject

UNSTEERED = "unsteered"


class ConditionRule(Protocol):
    """A change of what a condition's answers write: a token rule that is told each row's problem.

    The methods are those of :class:`reasoning_features.models.sampling.TokenRule`, with the numbers of the
    rows' questions, ``problems``, in the place of ``rows``. Every sampling gets a copy of its own, in which
    each problem is answered once, so a rule may remember things by problem. Two rules of one ``repr`` do the
    same.
    """

    def logits(self, logits: Tensor, problems: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor: ...

    def drawn(self, tokens: Tensor, problems: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor: ...


@dataclass(frozen=True)
class Condition:
    """One way of steering; without anything that changes the model, the model as it is.

    Attributes:
        name: tells it from the other conditions.
        feature: what it is made of (−1: not of a feature).
        gamma: the strength, in units of the feature's largest activation.
        vector: ``[d]``, added to the stream at every position, the prompt's too (equation 7).
        clamp: the activation that ``feature`` is set to everywhere, the error kept (the released hook).
        rule: changes the next token's logits, or what was drawn.
    """

    name: str
    feature: int = -1
    gamma: float = 0.0
    vector: Tensor | None = None
    clamp: float | None = None
    rule: ConditionRule | None = None


def feature_conditions(
    sae: Any, features: Sequence[int], gammas: Sequence[float], maxima: ArrayLike
) -> list[Condition]:
    """Every feature added at every strength (equation 7).

    Args:
        sae: gives the decoder directions.
        features: which features.
        gammas: strengths, in units of the feature's largest activation.
        maxima: each feature's largest activation f_i^max ``[d_sae]``, on data that nothing is reported of.

    Raises:
        UserError: a feature that is not there or never active, or a strength that is not finite.
    """
    decoder = sae.W_dec.detach().cpu()
    return [
        Condition(f"{feature} at {gamma:g}", feature, gamma, vector=activation * decoder[feature])
        for feature, gamma, activation in _activations(sae, features, gammas, maxima)
    ]


def clamped_conditions(
    sae: Any, features: Sequence[int], gammas: Sequence[float], maxima: ArrayLike
) -> list[Condition]:
    """Every feature clamped at every strength (the released hook); arguments as :func:`feature_conditions`.

    Raises:
        UserError: a feature that is not there or never active, or a strength that is not finite.
    """
    return [
        Condition(f"{feature} clamped at {gamma:g}", feature, gamma, clamp=activation)
        for feature, gamma, activation in _activations(sae, features, gammas, maxima)
    ]


def _activations(
    sae: Any, features: Sequence[int], gammas: Sequence[float], maxima: ArrayLike
) -> list[tuple[int, float, float]]:
    """Feature, strength and γ · f_i^max of every pair, after checks."""
    largest = np.asarray(maxima, dtype=float)
    for feature in features:
        if not 0 <= feature < sae.cfg.d_sae:
            raise UserError(f"Feature {feature} is not there: this autoencoder has 0 to {sae.cfg.d_sae - 1}.")
        if not largest[feature] > 0:
            raise UserError(f"Feature {feature} is never active, so it has no strength to steer with.")
    if not np.isfinite(gammas).all():
        raise UserError(f"The strengths {list(gammas)} are not all finite numbers: give finite ones.")
    return [(feature, gamma, gamma * float(largest[feature])) for feature in features for gamma in gammas]


def stream_edit(subject: Subject, conditions: Sequence[Condition], n: int, sae: Any = None) -> RowEdit | None:
    """What conditions do to the stream at the hook point; row ``r`` is of condition ``r // n``.

    Returns None where no condition changes the stream.

    Raises:
        UserError: as :func:`reasoning_features.steering.answering.answers`.
    """
    check_conditions(subject, conditions, sae)
    if all(condition.vector is None and condition.clamp is None for condition in conditions):
        return None
    device, dtype = subject.device, subject.model.dtype
    still = torch.zeros(subject.d_model)
    vectors = torch.stack([still if c.vector is None else c.vector for c in conditions]).to(device, dtype)
    clamps = [(i, c.feature, c.clamp) for i, c in enumerate(conditions) if c.clamp is not None]
    if not clamps:
        return RowEdit(subject.hooked_block, lambda stream, rows: stream + vectors[rows // n][:, None])
    clamped = torch.zeros(len(conditions), dtype=torch.bool, device=device)
    features = torch.zeros(len(conditions), dtype=torch.int64, device=device)
    targets = torch.zeros(len(conditions), device=device)
    for i, feature, target in clamps:
        clamped[i], features[i], targets[i] = True, feature, target

    def change(stream: Tensor, rows: Tensor) -> Tensor:
        condition = rows // n
        changed = stream + vectors[condition][:, None]
        held = clamped[condition].nonzero().flatten()
        if len(held):
            at = condition[held]
            changed[held] += _clamping(sae, stream[held], features[at], targets[at])
        return changed

    return RowEdit(subject.hooked_block, change)


def _clamping(sae: Any, stream: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """What clamping adds to streams ``[b, t, d]``: one feature and one activation for each row ``[b]``."""
    encoded = sae.encode(stream.to(sae.dtype))
    active = encoded.gather(-1, features[:, None, None].expand(-1, stream.shape[1], 1))
    return ((targets[:, None, None] - active) * sae.W_dec[features][:, None]).to(stream.dtype)


def check_conditions(subject: Subject, conditions: Sequence[Condition], sae: Any = None) -> None:
    """Checks what can be checked before anything is asked.

    Raises:
        UserError: as :func:`reasoning_features.steering.answering.answers`.
    """
    names = [condition.name for condition in conditions]
    for condition in conditions:
        if names.count(condition.name) > 1:
            raise UserError(f"Two conditions are named {condition.name!r}: give each a name of its own.")
        vector = condition.vector
        if vector is not None and (vector.shape != (subject.d_model,) or not bool(vector.isfinite().all())):
            raise UserError(
                f"The vector of {condition.name!r} must be {subject.d_model} finite numbers, as many as the "
                "model's stream has."
            )
        if condition.clamp is None:
            continue
        if sae is None:
            raise UserError(f"{condition.name!r} clamps a feature: give the autoencoder as `sae`.")
        if not 0 <= condition.feature < sae.cfg.d_sae:
            raise UserError(
                f"Feature {condition.feature} is not there: this autoencoder has 0 to {sae.cfg.d_sae - 1}."
            )
        if not np.isfinite(condition.clamp):
            raise UserError(f"{condition.name!r} clamps to {condition.clamp}: give a finite activation.")


class ConditionRules:
    """The conditions' rules as one token rule (:class:`reasoning_features.models.sampling.TokenRule`).

    Place ``i`` of what is sampled is row ``asked[i]``, and row ``r`` answers question ``r % n`` under
    condition ``r // n``.
    """

    def __init__(self, conditions: Sequence[Condition], n: int, asked: Tensor) -> None:
        self._n, self._asked = n, asked
        self._rules = {i: copy.deepcopy(c.rule) for i, c in enumerate(conditions) if c.rule is not None}

    def logits(self, logits: Tensor, rows: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        changed = logits.clone()
        for rule, at, problems, texts in self._parts(rows, written):
            changed[at] = rule.logits(logits[at], problems, texts)
        return changed

    def drawn(self, tokens: Tensor, rows: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        changed = tokens.clone()
        for rule, at, problems, texts in self._parts(rows, written):
            changed[at] = rule.drawn(tokens[at], problems, texts)
        return changed

    def _parts(
        self, rows: Tensor, written: Sequence[Sequence[int]]
    ) -> Iterator[tuple[ConditionRule, Tensor, list[int], list[Sequence[int]]]]:
        """Each rule with its rows' places in the batch, their problems, and what they have written."""
        asked = self._asked[rows]
        condition, problem = (asked // self._n).numpy(), (asked % self._n).numpy()
        for i, rule in self._rules.items():
            at = np.flatnonzero(condition == i)
            if len(at):
                yield rule, torch.from_numpy(at), problem[at].tolist(), [written[j] for j in at.tolist()]
