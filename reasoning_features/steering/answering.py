"""Steered answers to questions, many conditions in a batch, each graded and paired by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from reasoning_features.bookkeeping.projections import measured_rate, project
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import Subject
from reasoning_features.steering.benchmarks import Questions
from reasoning_features.steering.generation import BATCH, continuations, continuations_in_shards

TYPICAL = 0.25
"""Tokens of an answer, as a share of the longest: the paper's means are 3,400 to 14,700 of 32,768."""


def answers(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int = BATCH,
    progress: str | None = "steered answers",
    sae: Any = None,
) -> pd.DataFrame:
    """One answer to every question under every condition, and unsteered.

    A question draws the same uniforms under all conditions, so differences between them are paired; how
    answers are batched and kept is the questions' own (:mod:`reasoning_features.steering.generation`).

    Args:
        subject: the model, steered at its hook point.
        questions: what is asked.
        conditions: ways of steering.
        seed: of the draws.
        batch: rows that are sampled together.
        progress: names the progress bar; None shows none.
        sae: the autoencoder, where a condition clamps one of its features.

    Returns:
        The rows of ``questions.grade`` with ``condition``, ``feature`` (−1 unsteered), ``gamma``,
        ``problem`` and ``tokens`` (the new ones); unsteered first, then the conditions in their order.

    Raises:
        UserError: two conditions of one name, a vector that is not finite or of another width, a clamp
            without an autoencoder, or a prompt beyond the model's context.
    """
    asked = [Condition(UNSTEERED), *conditions]
    return answers_under(subject, questions, asked, seed, batch, progress, sae)


def answers_under(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int = BATCH,
    progress: str | None = None,
    sae: Any = None,
) -> pd.DataFrame:
    """One answer to every question under every one of these conditions alone; else as :func:`answers`."""
    numbers = list(range(len(questions))) * len(conditions)
    if questions.kept is None:
        written = continuations(subject, questions, conditions, seed, batch, progress, sae)
    else:
        given = subject, questions, conditions, seed, questions.kept, batch
        written = continuations_in_shards("answers", *given, progress is not None, sae)
    known = told(conditions, len(questions))
    known["tokens"] = pd.Series([tuple(tokens) for tokens in written], dtype=object)
    return pd.concat([known, questions.grade(numbers, written)], axis=1)


def told(conditions: Sequence[Condition], n: int) -> pd.DataFrame:
    """What is known of each answer beforehand: ``condition``, ``feature``, ``gamma``, ``problem``."""
    rows = [
        (condition.name, condition.feature, condition.gamma, problem)
        for condition in conditions
        for problem in range(n)
    ]
    return pd.DataFrame(rows, columns=["condition", "feature", "gamma", "problem"])


def project_answers(subject: Subject, questions: Questions, conditions: int, tokens: int = 64) -> float:
    """Tell how long the answers to some questions will take under several conditions; gives the seconds.

    A few answers are begun, as the rest will be, to measure the rate; how long answers get is not known
    before they are made, so they are taken for ``TYPICAL`` of the longest.

    Raises:
        UserError: they will take longer than a cell may.
    """
    few = replace(
        questions,
        prompts=questions.prompts[:16],
        domains=questions.domains[:16],
        max_new_tokens=min(tokens, questions.max_new_tokens),
        kept=None,
    )

    def begun() -> float:
        answers(subject, few, [], seed=0)
        return len(few) * few.max_new_tokens

    total = len(questions) * conditions * questions.max_new_tokens * TYPICAL
    return project(f"{len(questions) * conditions:,} answers", total, measured_rate(begun))
