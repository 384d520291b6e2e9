"""Problems of published benchmarks, or of a file of one's own: the paper's prompts, and graded answers.

A problem belongs to one split for good, drawn from its dataset's name and its place there; the run's seed
orders problems within a split. Benchmarks are mixed evenly, so that the first n problems are a fair sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features.errors import UserError
from reasoning_features.organism.problems import Split
from reasoning_features.organism.traces import END_THINK, THINK
from reasoning_features.settings import ProblemSource, Settings
from reasoning_features.steering import grading
from reasoning_features.text.text_sources import check_column, dataset_name, open_rows, stable_number

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
CHOOSE = r"Please reason step by step, and put the letter of your answer within \boxed{}."
MEASURES = ("parseable", "finished")
"""What is measured of every answer beside what all problems have: a box was given, and the answer ended."""


@dataclass(frozen=True)
class RealProblem:
    """One problem.

    Attributes:
        benchmark: its name in the settings.
        question: what is asked, with the choices where there are some.
        truth: the right answer, or the letter of the right choice.
        choice: whether a letter is asked for.
    """

    benchmark: str
    question: str
    truth: str
    choice: bool


def problems_of(settings: Settings, split: Split | None) -> list[RealProblem]:
    """The problems of one split, or all (None), of every benchmark, evenly mixed in an order set by the seed.

    Raises:
        UserError: a dataset that cannot be read or lacks a column.
    """
    placed = []
    for benchmark, source in settings.problems.items():
        mine = _of_source(benchmark, source, split, settings.seed)
        placed += [((i + 0.5) / len(mine), problem) for i, problem in enumerate(mine)]
    return [problem for _, problem in sorted(placed, key=lambda each: each[0])]


def first_of_each(problems: Sequence[RealProblem], n: int) -> list[RealProblem]:
    """The first n problems of each benchmark, in their order."""
    seen: dict[str, int] = {}
    kept = []
    for problem in problems:
        seen[problem.benchmark] = seen.get(problem.benchmark, 0) + 1
        if seen[problem.benchmark] <= n:
            kept.append(problem)
    return kept


def prompt_ids(problem: RealProblem, tokenizer: Any, system: str | None = None) -> list[int]:
    """The prompt's token ids: the problem and the paper's instruction in the model's own template.

    A model that knows ``<think>`` begins its answer inside the thinking, whether or not its template opens
    it. There is one BOS where the model has one.
    """
    asked = f"{problem.question}\n\n{CHOOSE if problem.choice else INSTRUCTION}"
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": asked})
    if tokenizer.chat_template is None:
        text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
    else:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    if THINK in tokenizer.get_vocab():
        text = text.rstrip() + "\n" if text.rstrip().endswith(THINK) else f"{text}{THINK}\n"
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    bos = tokenizer.bos_token_id
    adds = bos is not None and tokenizer.encode("a")[0] == bos
    return [bos, *ids] if adds and ids[0] != bos else ids


def grade_answers(
    tokenizer: Any,
    asked: Sequence[RealProblem],
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    continuations: Sequence[Sequence[int]],
) -> pd.DataFrame:
    """Grades a continuation of each of some problems, given by number.

    Returns:
        One row an answer: ``domain`` (the benchmark), ``answer`` (a string that equal answers share; None:
        no box), ``correct``, ``thinking_tokens`` (before ``</think>``; all where it never comes),
        ``parseable``, ``finished`` and ``text`` (with the prompt).
    """
    rows = []
    for number, given in zip(numbers, continuations, strict=True):
        problem, written = asked[number], str(tokenizer.decode(list(given)))
        answer = grading.boxed(written)
        judge = grading.graded_letter if problem.choice else grading.graded_formula
        correct, said = judge(problem.truth, answer)
        rows.append(
            {
                "domain": problem.benchmark,
                "answer": said,
                "correct": correct,
                "thinking_tokens": thinking_tokens(given, tokenizer),
                "parseable": said is not None,
                "finished": len(given) > 0 and given[-1] == tokenizer.eos_token_id,
                "text": str(tokenizer.decode(list(prompts[number]))) + written,
            }
        )
    columns = ["domain", "answer", "correct", "thinking_tokens", *MEASURES, "text"]
    return pd.DataFrame(rows, columns=columns)


def thinking_tokens(given: Sequence[int], tokenizer: Any) -> int:
    """Tokens before the end of the thinking; all of them where it never comes."""
    end = tokenizer.get_vocab().get(END_THINK)
    if end is not None:
        return list(given).index(end) if end in given else len(given)
    if END_THINK not in tokenizer.decode(list(given)):
        return len(given)
    low, high = 0, len(given)  # the mark is several tokens: the longest beginning without it
    while high - low > 1:
        middle = (low + high) // 2
        if END_THINK in tokenizer.decode(list(given[:middle])):
            high = middle
        else:
            low = middle
    return low


def _of_source(benchmark: str, source: ProblemSource, split: Split | None, seed: int) -> list[RealProblem]:
    """A benchmark's problems of one split in their seeded order."""
    rows = open_rows(source)
    for column in (source.problem, source.answer, *source.wrong, source.split_column):
        if column is not None:
            check_column(source, rows, column)
    name = dataset_name(source.dataset)
    if source.split_column is not None and split is not None:
        mine = np.flatnonzero(np.asarray(rows[source.split_column][:]) == split)
    else:
        mine = split_problems(name, len(rows), source.selection, split)
    order = np.random.default_rng([seed, stable_number(name)]).permutation(mine)
    held = rows.to_pandas()
    return [
        _problem(benchmark, source, held.iloc[int(row)], [stable_number(name), int(row)]) for row in order
    ]


def split_problems(name: str, n: int, share: float, split: Split | None) -> NDArray[np.int64]:
    """Places of the problems of a split, or all (None): a share for selection, the rest for evaluation."""
    drawn = np.random.default_rng(stable_number(name)).permutation(n)
    cut = round(share * n)
    parts = {None: drawn, "selection": drawn[:cut], "evaluation": drawn[cut:], "training": drawn[:0]}
    return np.sort(parts[split])


def _problem(benchmark: str, source: ProblemSource, row: pd.Series, seed: list[int]) -> RealProblem:
    question, answer = str(row[source.problem]).strip(), str(row[source.answer]).strip()
    if not source.wrong:
        return RealProblem(benchmark, question, answer, choice=False)
    choices = [answer, *(str(row[column]).strip() for column in source.wrong)]
    order = np.random.default_rng(seed).permutation(len(choices))
    lines = [f"{letter}) {choices[i]}" for letter, i in zip(grading.LETTERS, order, strict=False)]
    truth = grading.LETTERS[int(np.flatnonzero(order == 0)[0])]
    return RealProblem(benchmark, "\n".join([question, "", *lines]), truth, choice=True)


def none_left(settings: Settings, what: str) -> UserError:
    """The error where no problems are left."""
    held = ", ".join(settings.problems) or "none"
    return UserError(
        f"There are no problems of {what} in the benchmarks ({held}): ask for others, or add some."
    )
