"""Problems with known answers, asked of a subject: what to ask, and what to make of the answers.

The only room besides ``corpora`` that knows which kinds of problems there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd

from reasoning_features.errors import UserError
from reasoning_features.organism.evaluation import LONGEST_PROMPT, MOVES_COUNTED, grade, prompts
from reasoning_features.organism.problems import Mixture, Split, problems
from reasoning_features.organism.traces import CONTEXT
from reasoning_features.paths import RunPaths
from reasoning_features.settings import Settings
from reasoning_features.steering import real_benchmarks
from reasoning_features.steering.real_benchmarks import RealProblem
from reasoning_features.text.corpora import TEXT
from reasoning_features.text.text_sources import stable_number

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
        engine: how answers are batched (:mod:`reasoning_features.steering.generation`).
        kept: folder where finished answers are kept, so that none is made twice; None: nowhere.
        pad: the token that prompts of different lengths are padded with; None: only prompts of one length
            share a batch.
        streams: the random stream of each question, under which finished answers are kept too; None: its
            number.
    """

    name: str
    prompts: list[list[int]]
    domains: list[str]
    end: int
    max_new_tokens: int
    measures: tuple[str, ...]
    grade: Grader
    engine: Literal["rows", "continuous"] = "rows"
    kept: Path | None = None
    pad: int | None = None
    streams: list[int] | None = None

    def stream(self, number: int) -> int:
        """The random stream of a question."""
        return number if self.streams is None else self.streams[number]

    def __len__(self) -> int:
        return len(self.prompts)


def has_problems(settings: Settings) -> bool:
    """Whether there are problems with known answers for this kind of corpora."""
    return settings.corpus == "organism" or (settings.corpus == TEXT and bool(settings.problems))


def load_questions(
    settings: Settings, tokenizer: Any, split: Split, n: int, start: int = 0, mixture: Mixture = "main"
) -> Questions:
    """Problems ``start`` … ``start + n − 1`` of a split; of benchmarks, as many of these as there are.

    Raises:
        UserError: a kind of corpus that has no problems, or benchmarks without any from ``start`` on.
    """
    if not has_problems(settings):
        raise UserError(
            f"The corpus {settings.corpus!r} has no problems: set corpus to 'organism', or give `problems` "
            "to a corpus of texts."
        )
    if settings.corpus == TEXT:
        known = real_benchmarks.problems_of(settings, split)[start : start + n]
        return _real(settings, tokenizer, f"{split} from {start} on", known)
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


def published_questions(settings: Settings, tokenizer: Any) -> Questions:
    """Problems of every benchmark for the features that a paper names, each ``settings.samples`` times.

    The first ``settings.published_problems`` of each benchmark, of both splits, or all where
    ``settings.full``; laid out as :func:`repeated` does.

    Raises:
        UserError: no problems.
    """
    known = real_benchmarks.problems_of(settings, None)
    if not settings.full:
        known = real_benchmarks.first_of_each(known, settings.published_problems)
    return repeated(_real(settings, tokenizer, "all splits", known), settings.samples)


def repeated(questions: Questions, times: int) -> Questions:
    """The questions several times over: number ``i`` asks question ``i % n``, with draws of its own.

    The first ``n`` draw as the questions themselves do under the same seed.
    """
    n = len(questions)

    def grade(numbers: Sequence[int], continuations: Sequence[Sequence[int]]) -> pd.DataFrame:
        return questions.grade([number % n for number in numbers], continuations)

    return replace(
        questions,
        name=f"{questions.name}, {times} times",
        prompts=questions.prompts * times,
        domains=questions.domains * times,
        grade=grade,
        streams=questions.streams and [stream + i for i in range(times) for stream in questions.streams],
    )


def _real(settings: Settings, tokenizer: Any, what: str, known: Sequence[RealProblem]) -> Questions:
    """Problems of benchmarks as questions; finished answers are kept with the profile's data."""
    if not known:
        raise real_benchmarks.none_left(settings, what)
    prompts = [real_benchmarks.prompt_ids(problem, tokenizer, settings.system_prompt) for problem in known]
    return Questions(
        name=f"problems of {what}",
        prompts=prompts,
        domains=[problem.benchmark for problem in known],
        end=int(tokenizer.eos_token_id),
        max_new_tokens=settings.max_new_tokens,
        measures=(*COMMON, *real_benchmarks.MEASURES),
        grade=partial(real_benchmarks.grade_answers, tokenizer, known, prompts),
        engine=settings.engine,
        kept=RunPaths(settings.profile).data / "answers",
        pad=int(tokenizer.eos_token_id),
        # a problem's own, whichever others are asked: an answer that was made is found again
        streams=[1000 * stable_number(repr(prompt)) for prompt in prompts],
    )


def _grade(
    tokenizer: Any, asked: Sequence[Any], numbers: Sequence[int], continuations: Sequence[Sequence[int]]
) -> pd.DataFrame:
    graded = grade(tokenizer, [asked[number] for number in numbers], continuations)
    return graded.rename(columns={"family": "domain"}).drop(columns="question")
