"""Mediation by intervention: how much of what steering gains is carried by going on at dead ends.

Two crossed runs tell. (a) The unsteered model is forced to go on as often as the steered one does: what it
gains needs no steering, only the decisions. (b) The steered model is forced to go on as seldom as the
unsteered one does: what is left of its gain is not carried by the decisions. Each is forced at its own rates
too, which should change nothing if decisions, beyond their rates, do not depend on the problem. Rates are
measured on other problems than those reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import Subject
from reasoning_features.statistics import bootstrap_ratio, paired_difference
from reasoning_features.steering.answering import answers
from reasoning_features.steering.benchmarks import Questions
from reasoning_features.steering.token_rules import InTurn, forced_rates
from reasoning_features.truth.decision_rates import Rates, decision_rates, rates_of

STEERED = "steered"
RUNS: Mapping[str, tuple[str, str]] = {
    "unsteered, at the steered rates": (UNSTEERED, STEERED),
    "steered, at the unsteered rates": (STEERED, UNSTEERED),
    "unsteered, at its own rates": (UNSTEERED, UNSTEERED),
    "steered, at its own rates": (STEERED, STEERED),
}
"""Name of a forced run → which model it is, and whose rates it is forced to."""


def mediation_answers(
    subject: Subject,
    measured: Questions,
    reported: Questions,
    condition: Condition,
    seed: int,
    sae: Any = None,
    progress: str | None = "mediation",
) -> tuple[pd.DataFrame, dict[str, Rates]]:
    """The answers of the six runs to the reported problems, and the rates that were measured on the others.

    Args:
        subject: the model, steered at its hook point.
        measured: problems on which the rates are measured.
        reported: other problems, which are answered unsteered, steered, and in the forced ``RUNS``.
        condition: the way of steering.
        seed: of the draws; forced sides are drawn from it too.
        sae: the autoencoder, where the condition clamps.
        progress: names the progress bars; None shows none.

    Returns:
        Rows of :func:`reasoning_features.steering.answering.answers` whose ``condition`` is ``UNSTEERED``,
        ``STEERED`` or one of ``RUNS``; and the rates of the unsteered and the steered model.

    Raises:
        UserError: a problem is in both, or the measured ones have too few dead ends.
    """
    if set(map(tuple, measured.prompts)) & set(map(tuple, reported.prompts)):
        raise UserError("Some problems are both measured and reported: take them from two splits.")
    models = {UNSTEERED: Condition(UNSTEERED), STEERED: replace(condition, name=STEERED)}
    asked = answers(subject, measured, [models[STEERED]], seed, progress=progress, sae=sae)
    rates = {name: rates_of(decision_rates(asked[asked["condition"] == name])) for name in models}
    forced = [
        _forced(subject, models[model], run, rates[pace], reported, seed)
        for run, (model, pace) in RUNS.items()
    ]
    return answers(subject, reported, [models[STEERED], *forced], seed, progress=progress, sae=sae), rates


def _forced(
    subject: Subject, condition: Condition, name: str, rates: Rates, questions: Questions, seed: int
) -> Condition:
    """A condition that goes on at these rates, after whatever rule it has."""
    rule = forced_rates(subject.tokenizer, rates, questions.domains, seed)
    return replace(condition, name=name, rule=InTurn((condition.rule, rule)) if condition.rule else rule)


def mediation_table(
    answered: pd.DataFrame, measure: str = "correct", n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """The gain of every run over unsteered, and what share of the steered gain it is.

    Args:
        answered: from :func:`mediation_answers`, or some of its domains.
        measure: what is compared.
        n_resamples: resamples of problems.
        seed: of the resamples.

    Returns:
        One row a run: ``run``, ``mean``, ``gain``, ``low``, ``high`` (95%, paired over problems), ``share``,
        ``share_low``, ``share_high`` (of the steered gain; missing where its interval holds 0) and ``n``
        problems.
    """
    table = answered.pivot(index="problem", columns="condition", values=measure).astype(float)
    plain = table[UNSTEERED].to_numpy()
    gains = {run: table[run].to_numpy() - plain for run in (STEERED, *RUNS)}
    steered = paired_difference(table[STEERED], plain, n_resamples, seed)
    rows = []
    for run, gain in gains.items():
        found = paired_difference(table[run], plain, n_resamples, seed)
        share = [np.nan] * 3
        if steered.low > 0 or steered.high < 0:
            of_all = bootstrap_ratio(gain, gains[STEERED], n_resamples, seed)
            share = [of_all.estimate, of_all.low, of_all.high]
        told = {"run": run, "mean": float(table[run].mean())}
        told |= {"gain": found.estimate, "low": found.low, "high": found.high}
        rows.append(
            told | dict(zip(("share", "share_low", "share_high"), share, strict=True)) | {"n": found.n}
        )
    return pd.DataFrame(rows)
