"""Problems with known answers, asked of a subject: what to ask, and what to make of the answers.

The only room besides ``corpora`` that knows which kinds of problems there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pandas as pd

from reasoning_features.errors import UserError
from reasoning_features.organism.evaluation import LONGEST_PROMPT, MOVES_COUNTED, grade, prompts
from reasoning_features.organism.problems import Mixture, Split, problems
from reasoning_features.organism.traces import CONTEXT
from reasoning_features.settings import Settings

COMMON = ("correct", "thinking_tokens")
"""What is measured of every answer, whatever the problems."""


class Grader(Protocol):
    """Grades continuations (new token ids) of some of the questions, given by number."""

    def __call__(self, numbers: Sequence[int], continuations: Sequence[Sequence[int]]) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Questions:
    """Problems as token ids, and how their answers are graded.

    Attributes:
        name: what these problems are.
        prompts: token ids of each prompt.
        domains: each problem's domain (the problem family of the organism).
        end: the token that ends an answer.
        max_new_tokens: the longest answer.
        measures: numbers that :attr:`grade` gives of every answer, ``COMMON`` first.
        grade: takes numbers of questions and a continuation of each; gives one row an answer: ``domain``,
            ``answer`` (None: none is given), ``text`` and the ``measures``.
    """

    name: str
    prompts: list[list[int]]
    domains: list[str]
    end: int
    max_new_tokens: int
    measures: tuple[str, ...]
    grade: Grader

    def __len__(self) -> int:
        return len(self.prompts)


def has_problems(settings: Settings) -> bool:
    """Whether there are problems with known answers for this kind of corpora."""
    return settings.corpus == "organism"


def load_questions(
    settings: Settings, tokenizer: Any, split: Split, n: int, start: int = 0, mixture: Mixture = "main"
) -> Questions:
    """Problems ``start`` … ``start + n − 1`` of a split.

    Raises:
        UserError: a kind of corpus that has no problems.
    """
    if not has_problems(settings):
        raise UserError(f"The corpus {settings.corpus!r} has no problems: set corpus to 'organism'.")
    asked = problems(split, None, n, start=start, mixture=mixture)
    return Questions(
        name=f"problems {start} to {start + n - 1} of {split}",
        prompts=prompts(tokenizer, asked),
        domains=[problem.family for problem in asked],
        end=int(tokenizer.eos_token_id),
        max_new_tokens=CONTEXT - LONGEST_PROMPT,
        measures=(*COMMON, "gave_up", "checked", "parseable", *MOVES_COUNTED),
        grade=partial(_grade, tokenizer, asked),
    )


def _grade(
    tokenizer: Any, asked: Sequence[Any], numbers: Sequence[int], continuations: Sequence[Sequence[int]]
) -> pd.DataFrame:
    graded = grade(tokenizer, [asked[number] for number in numbers], continuations)
    return graded.rename(columns={"family": "domain"}).drop(columns="question")
