"""Steering's results as claims record them: an estimate with its intervals, and a control."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from numpy.typing import ArrayLike

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.claims import Measured
from reasoning_features.statistics import Interval, bootstrap_mean, paired_difference
from reasoning_features.steering.search import CHOSEN, SLOT, best
from reasoning_features.steering.steering_results import arms_apart
from reasoning_features.steering.steering_study import Study


def effect(study: Study, group: str, against: str = UNSTEERED, seed: int = 0) -> Measured:
    """Accuracy of a class's winner less that of another's on fresh problems."""
    return paired_effect(study.outcome(group), study.outcome(against), seed)


def paired_effect(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Measured:
    """Mean of a − b over problems, as a claim records it (:func:`effect`)."""
    wide, narrow = (paired_difference(a, b, seed=seed, level=level) for level in (0.95, 0.90))
    return Measured(wide, narrow=narrow)


def length_effect(study: Study, controls: Sequence[str], seed: int = 0) -> Measured:
    """Relative change of thinking tokens under ReasonScore's winner, and the largest of the controls'."""
    plain = study.outcome(UNSTEERED, "thinking_tokens").mean()
    found = paired_difference(
        study.outcome(CHOSEN, "thinking_tokens"), study.outcome(UNSTEERED, "thinking_tokens"), seed=seed
    )
    longest = max(study.outcome(name, "thinking_tokens").mean() for name in controls) / plain - 1
    relative = Interval(found.estimate / plain, found.low / plain, found.high / plain, found.n)
    return Measured(relative, longest)


def screening_effect(study: Study, controls: Sequence[str], seed: int = 0) -> Measured:
    """Share of ReasonScore's screened trials that are better by half a point; the control's is the largest.

    The interval is over candidates, whose strengths go together.
    """
    better = study.screening.assign(better=study.screening["gain"] >= 0.005)
    by_candidate = better.groupby(["group", "candidate"], sort=False)["better"].mean()
    share = bootstrap_mean(by_candidate[CHOSEN], seed=seed)
    usual = max(float(by_candidate[name].mean()) for name in controls)
    return Measured(share, usual)


def strongest_control(study: Study, controls: Sequence[str]) -> str:
    """The control class whose winner was best in the second screening, before any fresh problem."""
    second = study.rescreening[study.rescreening["group"].isin(controls)]
    return str(best(second, 1).sort_values("correct", kind="stable")["group"].iloc[-1])


def difference_effect(
    studies: Sequence[Study], against: str = SLOT, measure: str = "correct", seed: int = 0
) -> Measured:
    """The difference in differences over all seeds, as a claim records it."""
    rows = (arms_apart(studies, against, measure, level, seed).iloc[-1] for level in (0.95, 0.90))
    wide, narrow = (Interval(row["estimate"], row["low"], row["high"], int(row["n"])) for row in rows)
    return Measured(wide, narrow=narrow)


def ban_effect(answered: pd.DataFrame, seed: int = 0) -> Measured:
    """What banning R costs in accuracy beyond a ban of random words, as a claim records it."""
    right = answered.pivot(index="problem", columns="condition", values="correct").astype(float)
    random = [str(name) for name in right if str(name).startswith("random")]
    return paired_effect(right[random].to_numpy().mean(axis=1), right["R"], seed)


def run_effect(answered: pd.DataFrame, condition: str, against: str, seed: int = 0) -> Measured:
    """Accuracy under one condition less that under another, as a claim records it."""
    right = answered.pivot(index="problem", columns="condition", values="correct").astype(float)
    return paired_effect(right[condition], right[against], seed)
