"""Steering against other ways to spend as many tokens: majority over several answers, and thinking longer.

A way of spending has sizes (how many answers, how often the thinking is made to go on). Between two of them
lies a mixture: a share of the problems, drawn blindly, gets the larger. So any mean number of tokens between
the smallest and the largest size can be spent, and the chance to be right on each problem is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import Condition
from reasoning_features.statistics import bootstrap_mean, paired_difference
from reasoning_features.steering.token_rules import forced_wait

MAJORITY, LONGER = "majority", "thinking longer"
COLUMNS = ["method", "size", "problem", "correct", "tokens"]


def majority_votes(answered: pd.DataFrame, n: int, sizes: Sequence[int]) -> pd.DataFrame:
    """Majority over the first answers to each problem; ties go to the answer that came first.

    With two answers the first always wins, so odd sizes waste nothing.

    Args:
        answered: unsteered answers to :func:`repeated` questions: ``problem``, ``answer`` (None has no vote),
            ``correct`` and ``thinking_tokens``.
        n: number of questions.
        sizes: how many answers vote.

    Returns:
        ``method``, ``size``, ``problem``, ``correct`` (of the majority's answer; none is wrong) and
        ``tokens`` (thinking tokens of all that vote).

    Raises:
        UserError: fewer answers to a problem than vote.
    """
    if max(sizes) * n > len(answered):
        raise UserError(
            f"{max(sizes)} answers to each of {n} problems are to vote, but there are {len(answered)} in "
            "all: sample more, or let fewer vote."
        )
    ordered = answered.sort_values("problem", kind="stable")
    ordered["answer"] = ordered["answer"].astype(object).where(ordered["answer"].notna(), None)
    given = zip(*(ordered[name].tolist() for name in ("answer", "correct", "thinking_tokens")), strict=True)
    by_problem: list[list[tuple[Any, bool, int]]] = [[] for _ in range(n)]
    for place, row in enumerate(given):
        by_problem[place % n].append(row)
    rows = [
        (MAJORITY, size, problem, _elected(votes[:size]), sum(tokens for *_, tokens in votes[:size]))
        for size in sizes
        for problem, votes in enumerate(by_problem)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _elected(votes: Sequence[tuple[Any, bool, int]]) -> bool:
    counts = Counter(answer for answer, _, _ in votes if answer is not None)
    if not counts:
        return False
    ((winner, _),) = counts.most_common(1)  # of equals the one seen first
    return next(bool(correct) for answer, correct, _ in votes if answer == winner)


def longer_conditions(tokenizer: Any, times: Sequence[int]) -> list[Condition]:
    """Thinking made to go on once, twice, …, with "Wait" in the place of its end."""
    return [Condition(f"{LONGER} {n} times", rule=forced_wait(tokenizer, n)) for n in times]


def single_answers(answered: pd.DataFrame, sizes: Mapping[str, int], method: str = LONGER) -> pd.DataFrame:
    """What single answers spend, as :func:`majority_votes` tells it.

    Args:
        answered: :func:`reasoning_features.steering.answering.answers`.
        sizes: name of a condition → the size it stands for.
        method: what the sizes are of.
    """
    held = answered[answered["condition"].isin(list(sizes))]
    return pd.DataFrame(
        {
            "method": method,
            "size": held["condition"].map(sizes),
            "problem": held["problem"],
            "correct": held["correct"],
            "tokens": held["thinking_tokens"],
        }
    ).reset_index(drop=True)


def spending_curve(spent: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy against mean tokens, with 95% intervals over problems.

    Returns:
        ``method``, ``size``, ``tokens``, ``accuracy``, ``low``, ``high`` and ``n``.
    """
    rows = []
    for (method, size), part in spent.groupby(["method", "size"], sort=False):
        found = bootstrap_mean(part["correct"], seed=seed)
        told = {"method": method, "size": size, "tokens": float(part["tokens"].mean())}
        rows.append(told | {"accuracy": found.estimate, "low": found.low, "high": found.high, "n": found.n})
    return pd.DataFrame(rows)


def at_equal_tokens(spent: pd.DataFrame, tokens: float) -> pd.Series:
    """Chance to be right on each problem when one method spends so many tokens on average.

    Args:
        spent: of one method, from :func:`majority_votes` or :func:`single_answers`.
        tokens: what the mixture of the two nearest sizes spends on average.

    Raises:
        UserError: less than the smallest size spends, or more than the largest.
    """
    means = spent.groupby("size")["tokens"].mean().sort_values(kind="stable")
    correct = spent.pivot(index="problem", columns="size", values="correct").astype(float)
    if not means.iloc[0] <= tokens <= means.iloc[-1]:
        raise UserError(
            f"{str(spent['method'].iloc[0]).capitalize()} spends {means.iloc[0]:.1f} to "
            f"{means.iloc[-1]:.1f} tokens, so it cannot be compared at {tokens:.1f}: take other sizes."
        )
    upper = max(int(np.searchsorted(means.to_numpy(), tokens)), 1)
    low, high = means.iloc[upper - 1], means.iloc[upper]
    share = (tokens - low) / (high - low) if high > low else 1.0
    smaller, larger = (correct[means.index[i]] for i in (upper - 1, upper))
    return (1 - share) * smaller + share * larger


def equal_token_comparison(
    steered: pd.DataFrame, spent: pd.DataFrame, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """A steered answer less each other way to spend as many tokens, paired over problems.

    Tokens are equal on average over the problems at hand; resamples keep the mixture.

    Args:
        steered: rows of :func:`reasoning_features.steering.answering.answers` of one condition.
        spent: of one method or more, on the same problems.
        n_resamples: resamples of problems.
        seed: of the resamples.

    Returns:
        One row a method: ``method``, ``tokens``, ``steered`` and ``other`` (accuracies), ``difference``,
        ``low``, ``high`` (95%) and ``n``.

    Raises:
        UserError: a method's sizes spend all less, or all more, than the steered answers.
    """
    tokens = float(steered["thinking_tokens"].mean())
    right = steered.set_index("problem")["correct"].astype(float).sort_index()
    rows = []
    for method, part in spent.groupby("method", sort=False):
        other = at_equal_tokens(part, tokens).loc[right.index]
        found = paired_difference(right, other, n_resamples, seed)
        told = {"method": method, "tokens": tokens, "steered": right.mean(), "other": other.mean()}
        rows.append(told | {"difference": found.estimate, "low": found.low, "high": found.high, "n": found.n})
    return pd.DataFrame(rows)
