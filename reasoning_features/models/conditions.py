"""Ways of steering: a vector added to the stream, a feature clamped, or a rule on the tokens written.

Equation 7 adds: x' = x + γ · f_i^max · W_dec,i at every position, the prompt's too. The released hook clamps:
it encodes x, sets f_i to γ · f_i^max, decodes, and adds the reconstruction's error back, which comes to
x' = x + (γ · f_i^max − f_i(x)) · W_dec,i.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from reasoning_features.errors import UserError, check_finite
from reasoning_features.models.sampling import Change, Rule
from reasoning_features.models.subject import Subject

UNSTEERED = "unsteered"


@dataclass(frozen=True)
class Condition:
    """One way of steering; without anything that changes the model, the model as it is.

    The rows of ``rule``, of which every sampling gets a copy, are numbers of problems. Two rules of one
    ``repr`` do the same.
    """

    name: str
    feature: int = -1  # what it is made of; −1: not of a feature
    gamma: float = 0.0  # the strength, in units of the feature's largest activation
    vector: Tensor | None = None  # [d], added to the stream at every position (equation 7)
    spares_special: bool = False  # the vector is not added at special tokens
    removed: Tensor | None = None  # [d] of unit norm: the stream's part along it is taken away everywhere
    clamp: float | None = None  # the activation that the feature is set to everywhere, the error kept
    rule: Rule | None = None  # changes the next token's logits, or what was drawn


def added(name: str, feature: int, gamma: float, direction: Tensor) -> Condition:
    """Equation 7: γ times a direction ``[d]`` (a feature's: f_max · W_dec) is added at every position."""
    return Condition(f"{name} at {gamma:g}", feature, gamma, vector=gamma * direction)


def feature_conditions(
    sae: Any, features: Sequence[int], gammas: Sequence[float], maxima: ArrayLike, clamp: bool = False
) -> list[Condition]:
    """Every feature at every strength: added (equation 7), or with ``clamp`` clamped (the released hook).

    ``maxima`` ``[d_sae]`` are the largest activations f_i^max, on data that nothing is reported of.
    UserError: a feature that is not there or never active, or a number that is not finite.
    """
    largest = check_finite(np.asarray(maxima, dtype=float), "The largest activation of a feature")
    check_finite(np.asarray(gammas, dtype=float), f"A strength of {list(gammas)}", "give finite ones")
    made = []
    for feature in features:
        if not 0 <= feature < sae.cfg.d_sae:
            raise UserError(f"Feature {feature} is not there: this autoencoder has 0 to {sae.cfg.d_sae - 1}.")
        if not (most := float(largest[feature])) > 0:
            raise UserError(f"Feature {feature} is never active, so it has no strength to steer with.")
        name, direction = str(feature), most * sae.W_dec[feature].detach().cpu()
        if clamp:
            made += [Condition(f"{name} clamped at {g:g}", feature, g, clamp=g * most) for g in gammas]
        else:
            made += [added(name, feature, gamma, direction) for gamma in gammas]
    return made


def check_conditions(subject: Subject, conditions: Sequence[Condition], sae: Any = None) -> None:
    """UserError where two conditions have one name, a vector does not fit, or a clamp has no autoencoder."""
    width, dtype, names = subject.d_model, subject.model.dtype, set[str]()
    for condition in conditions:
        if condition.name in names:
            raise UserError(f"Two conditions are named {condition.name!r}: give each a name of its own.")
        names.add(condition.name)
        for vector in (condition.vector, condition.removed):
            if vector is None:
                continue
            if vector.shape != (width,) or not bool(vector.to(dtype).isfinite().all()):
                told = f"The vector of {condition.name!r} is not {width} finite {dtype} numbers"
                raise UserError(f"{told}: weaken it.")
        check_finite(np.float64(condition.clamp or 0), f"The clamp of {condition.name!r}", "change it")
        if condition.clamp is not None and sae is None:
            raise UserError(f"{condition.name!r} clamps a feature: give the autoencoder as `sae`.")


def stream_change(
    subject: Subject, conditions: Sequence[Condition], which: Tensor, sae: Any = None
) -> Change | None:
    """What conditions do to the stream at the hook point (None: nothing); row ``r`` is of ``which[r]``."""
    if all(c.vector is None and c.clamp is None and c.removed is None for c in conditions):
        return None
    device, dtype, still = subject.device, subject.model.dtype, torch.zeros(subject.d_model)
    vectors = torch.stack([still if c.vector is None else c.vector for c in conditions]).to(device, dtype)
    away = torch.stack([still if c.removed is None else c.removed for c in conditions]).to(device, dtype)
    spares = torch.tensor([c.spares_special for c in conditions], device=device)
    special, which = torch.tensor(subject.special_ids, device=device), which.to(device)
    clamped = torch.tensor([c.clamp is not None for c in conditions], device=device)
    features = torch.tensor([max(c.feature, 0) for c in conditions], device=device)
    targets = torch.tensor([c.clamp or 0.0 for c in conditions], device=device)

    def change(stream: Tensor, rows: Tensor, tokens: Tensor | None = None) -> Tensor:
        condition = which[rows]
        own = vectors[condition][:, None]
        if tokens is not None and bool(spares.any()):
            spared = spares[condition][:, None] & torch.isin(tokens, special)
            own = own.masked_fill(spared[..., None], 0)
        changed = stream + own
        if bool(away.any()):
            direction = away[condition][:, None]
            changed = changed - (changed * direction).sum(-1, keepdim=True) * direction
        if sae is not None and len(places := clamped[condition].nonzero().flatten()):
            at, own = condition[places], stream[places]
            feature = features[at][:, None, None].expand(-1, stream.shape[1], 1)
            missing = targets[at][:, None, None] - sae.encode(own.to(sae.dtype)).gather(-1, feature)
            changed[places] += (missing * sae.W_dec[features[at]][:, None]).to(stream.dtype)
        return changed

    return change


def steered_logits(subject: Subject, tokens: Tensor, conditions: Sequence[Condition]) -> Tensor:
    """Next-token logits ``[b, t, vocabulary]`` of ids ``[b, t]``, each row under its condition, no clamp."""
    given, rows = tokens.to(subject.device), torch.arange(len(tokens), device=subject.device)
    if (change := stream_change(subject, conditions, rows)) is None:
        return subject.logits(given)
    return subject.logits_with(given, partial(change, rows=rows, tokens=given))


class Rules(Rule):
    """The conditions' rules as one: row ``r`` is of condition ``which[r]`` and problem ``problems[r]``."""

    def __init__(
        self, conditions: Sequence[Condition], which: Sequence[int], problems: Sequence[int]
    ) -> None:
        self._which, self._problems = np.asarray(which), np.asarray(problems)
        self._rules = {i: copy.deepcopy(c.rule) for i, c in enumerate(conditions) if c.rule is not None}

    def logits(self, logits: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor:
        return self._changed("logits", logits, rows, written)

    def drawn(self, tokens: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor:
        return self._changed("drawn", tokens, rows, written)

    def _changed(
        self, what: str, given: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]
    ) -> Tensor:
        """What is given, with each rule's method of this name applied to that rule's rows."""
        changed, asked = given.clone(), np.asarray(rows)
        for i, rule in self._rules.items():
            if at := np.flatnonzero(self._which[asked] == i).tolist():
                problems, texts = self._problems[asked[at]].tolist(), [written[place] for place in at]
                changed[at] = getattr(rule, what)(given[at], problems, texts)
        return changed
