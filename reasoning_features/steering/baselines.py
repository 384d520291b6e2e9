"""What steering by a feature is compared with, and what carries its gain.

Simpler ways to make a model go on: the mean difference is told the decisions; biases push the next token
itself; a forced "Wait" takes the place of the end of thinking. Other ways to spend as many tokens: a majority
over several answers, thinking longer.

And mediation by intervention: two crossed runs tell how much of what steering gains is carried by going on at
dead ends. (a) The unsteered model is forced to go on as often as the steered one does: what it gains needs no
steering, only the decisions. (b) The steered model is forced to go on as seldom as the unsteered one does:
what is left of its gain is not carried by the decisions. Each is forced at its own rates too, which should
change nothing if decisions, beyond their rates, do not depend on the problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import Moments, collect, stream
from reasoning_features.statistics import bootstrap_mean, bootstrap_ratio, paired_difference
from reasoning_features.steering.answering import answers
from reasoning_features.steering.benchmarks import Questions
from reasoning_features.steering.token_rules import (
    InTurn,
    bias_to_go_on,
    bias_to_words,
    forced_rates,
    forced_wait,
)
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth.decisions import Decisions, Rates, decision_rates, rates_of

MEAN_DIFFERENCE, REASONING_BIAS = "mean difference", "bias on R"
STOPPING_BIAS, WAIT = "bias against stopping", "forced Wait"
SHARES = (-0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3)
"""Strengths of the mean difference, as shares of the residual stream's mean norm."""
NATS = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
"""Strengths of a bias."""
WAITS = (1, 2)
"""How often the end of thinking is replaced."""
MAJORITY, LONGER = "majority", "thinking longer"
STEERED = "steered"
RUNS: Mapping[str, tuple[str, str]] = {
    "unsteered, at the steered rates": (UNSTEERED, STEERED),
    "steered, at the unsteered rates": (STEERED, UNSTEERED),
    "unsteered, at its own rates": (UNSTEERED, UNSTEERED),
    "steered, at its own rates": (STEERED, STEERED),
}
"""Name of a forced run → which model it is, and whose rates it is forced to."""


def mean_norm(subject: Subject, corpus: Corpus, batch_tokens: int) -> float:
    """Mean norm of the residual stream over a corpus' tokens that are not special."""
    total, *rest = (Moments.of(batch.residual) for batch in stream(subject, corpus, batch_tokens))
    for part in rest:
        total = total.merge(part)
    return total.mean_norm


def mean_difference(subject: Subject, decisions: Decisions, batch_tokens: int) -> Tensor:
    """Direction ``[d]`` of unit norm from where the trace took a decision's negative side to the positive.

    The difference of the mean residual stream at the decisions' own tokens.

    Raises:
        UserError: the decisions all went one way.
    """
    corpus, sides = decisions.corpus, decisions.towards
    if sides.all() or not sides.any():
        raise UserError(f"The decisions of {decisions.name} all went one way: take more documents.")
    include = np.zeros(corpus.n_tokens, dtype=bool)
    include[decisions.positions] = True
    read = collect(stream(subject, corpus, batch_tokens, include))
    own = read.residual[torch.from_numpy(read.rows(decisions.positions))].double()
    towards = torch.from_numpy(sides)
    return torch.nn.functional.normalize(own[towards].mean(0) - own[~towards].mean(0), dim=0).float()


def baselines(
    subject: Subject,
    decisions: Mapping[str, Decisions],
    words: Sequence[str],
    norm: float,
    batch_tokens: int,
) -> dict[str, list[Condition]]:
    """Name → conditions, of which a study chooses one; the mean difference only where decisions are known.

    ``decisions`` are those of traces of the selection split, by name; ``words`` is R; ``norm`` is the mean
    norm of the residual stream.

    Raises:
        UserError: a word that the tokenizer cannot write, or decisions that all went one way.
    """
    tokenizer, made = subject.tokenizer, {}
    if "persistence" in decisions:
        direction = mean_difference(subject, decisions["persistence"], batch_tokens)
        made[MEAN_DIFFERENCE] = [
            Condition(f"{MEAN_DIFFERENCE} at {share:g}", gamma=share, vector=share * norm * direction)
            for share in SHARES
        ]
    made[REASONING_BIAS] = [
        Condition(f"{REASONING_BIAS} of {nats:g}", gamma=nats, rule=bias_to_words(tokenizer, words, nats))
        for nats in NATS
    ]
    made[STOPPING_BIAS] = [
        Condition(f"{STOPPING_BIAS} of {nats:g}", gamma=nats, rule=bias_to_go_on(tokenizer, nats))
        for nats in NATS
    ]
    made[WAIT] = [
        Condition(f"{WAIT}, {times} times", gamma=float(times), rule=forced_wait(tokenizer, times))
        for times in WAITS
    ]
    return made


# --- as many tokens, spent otherwise ------------------------------------------------------------------------


def majority_votes(answered: pd.DataFrame, n: int, sizes: Sequence[int]) -> pd.DataFrame:
    """Majority over the first answers to each problem; ties go to the answer that came first.

    With two answers the first always wins, so odd sizes waste nothing.

    Args:
        answered: unsteered answers to repeated questions: ``problem``, ``answer`` (None has no vote),
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
    ballots = list(ordered[["answer", "correct", "thinking_tokens"]].itertuples(index=False, name=None))
    rows = []
    for size in sizes:
        for problem in range(n):
            votes = ballots[problem::n][:size]
            tokens = sum(tokens for *_, tokens in votes)
            rows.append((MAJORITY, size, problem, _elected(votes), tokens))
    return pd.DataFrame(rows, columns=["method", "size", "problem", "correct", "tokens"])


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
    """What single answers spend, as :func:`majority_votes` tells it; condition → the size it stands for."""
    own = answered[answered["condition"].isin(list(sizes))].reset_index(drop=True)
    own = own.assign(method=method, size=own["condition"].map(sizes), tokens=own["thinking_tokens"])
    return own[["method", "size", "problem", "correct", "tokens"]]


def spending_curve(spent: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy against mean tokens, with 95% intervals over problems.

    Columns: ``method``, ``size``, ``tokens``, ``accuracy``, ``low``, ``high`` and ``n``.
    """
    rows = []
    for (method, size), part in spent.groupby(["method", "size"], sort=False):
        found = bootstrap_mean(part["correct"], seed=seed)
        told = {"method": method, "size": size, "tokens": float(part["tokens"].mean())}
        rows.append(told | {"accuracy": found.estimate, "low": found.low, "high": found.high, "n": found.n})
    return pd.DataFrame(rows)


def at_equal_tokens(spent: pd.DataFrame, tokens: float) -> pd.Series:
    """Chance to be right on each problem when one method spends so many tokens on average.

    Between two sizes lies a mixture: a share of the problems, drawn blindly, gets the larger.

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
    return (1 - share) * correct[means.index[upper - 1]] + share * correct[means.index[upper]]


def equal_token_comparison(
    steered: pd.DataFrame, spent: pd.DataFrame, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """A steered answer less each other way to spend as many tokens, paired over problems.

    Tokens are equal on average over the problems at hand; resamples keep the mixture. ``steered`` are the
    answers under one condition, ``spent`` those of one method or more to the same problems.

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


# --- mediation ----------------------------------------------------------------------------------------------


def mediation_answers(
    subject: Subject,
    measured: Questions,
    reported: Questions,
    condition: Condition,
    seed: int,
    progress: str | None = "mediation",
) -> tuple[pd.DataFrame, dict[str, Rates]]:
    """The answers of the six runs to the reported problems, and the rates that were measured on the others.

    Args:
        subject: the model, steered at its hook point.
        measured: problems on which the rates are measured.
        reported: other problems, which are answered unsteered, steered, and in the forced ``RUNS``.
        condition: the way of steering.
        seed: of the draws; forced sides are drawn from it too.
        progress: names the progress bars; None shows none.

    Returns:
        Answers whose ``condition`` is ``UNSTEERED``, ``STEERED`` or one of ``RUNS``; and the rates of the
        unsteered and the steered model.

    Raises:
        UserError: a problem is in both, or the measured ones have too few dead ends.
    """
    if set(map(tuple, measured.prompts)) & set(map(tuple, reported.prompts)):
        raise UserError("Some problems are both measured and reported: take them from two splits.")
    models = {UNSTEERED: Condition(UNSTEERED), STEERED: replace(condition, name=STEERED)}
    asked = answers(subject, measured, [models[STEERED]], seed, progress=progress)
    rates = {name: rates_of(decision_rates(asked[asked["condition"] == name])) for name in models}
    forced = []
    for run, (model, pace) in RUNS.items():
        rule = forced_rates(subject.tokenizer, rates[pace], reported.domains, seed)
        own = models[model].rule
        forced.append(replace(models[model], name=run, rule=InTurn((own, rule)) if own else rule))
    return answers(subject, reported, [models[STEERED], *forced], seed, progress=progress), rates


def mediation_table(
    answered: pd.DataFrame, measure: str = "correct", n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """The gain in ``measure`` of every run over unsteered, and what share of the steered gain it is.

    Returns:
        One row a run: ``run``, ``mean``, ``gain``, ``low``, ``high`` (95%, paired over problems), ``share``,
        ``share_low``, ``share_high`` (of the steered gain; missing where its interval holds 0) and ``n``
        problems.
    """
    table = answered.pivot(index="problem", columns="condition", values=measure).astype(float)
    plain = table[UNSTEERED]
    all_gained = paired_difference(table[STEERED], plain, n_resamples, seed)
    rows = []
    for run in (STEERED, *RUNS):
        found = paired_difference(table[run], plain, n_resamples, seed)
        row = {"run": run, "mean": table[run].mean(), "gain": found.estimate, "low": found.low}
        row |= {"high": found.high, "share": np.nan, "share_low": np.nan, "share_high": np.nan, "n": found.n}
        if all_gained.low > 0 or all_gained.high < 0:
            share = bootstrap_ratio(table[run] - plain, table[STEERED] - plain, n_resamples, seed)
            row |= {"share": share.estimate, "share_low": share.low, "share_high": share.high}
        rows.append(row)
    return pd.DataFrame(rows)
