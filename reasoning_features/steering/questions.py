"""Problems with known answers: the organism's, those of published benchmarks, or of a file of one's own.

A problem of a benchmark belongs to one split for good; the run's seed orders problems within a split, and
benchmarks are mixed evenly.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from reasoning_features.errors import UserError
from reasoning_features.organism.language import CONTEXT, END_THINK, THINK
from reasoning_features.organism.parser import LABELS_COUNTED, LONGEST_PROMPT, grade, prompts
from reasoning_features.organism.problems import Split, problems
from reasoning_features.paths import RunPaths
from reasoning_features.settings import ProblemSource, Settings
from reasoning_features.steering.grading import LETTERS, boxed, graded_formula, graded_letter
from reasoning_features.text.corpora import TEXT, dataset_name, stable_number, templated
from reasoning_features.text.rows import open_rows, tell_left_out

COMMON = ("correct", "thinking_tokens")  # what is measured of every answer, whatever the problems
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
CHOOSE = r"Please reason step by step, and put the letter of your answer within \boxed{}."
STEERED = "steered in version 2"  # the set of `settings.published` whose features are steered


@dataclass(frozen=True)
class Questions:
    """Problems as token ids, and how their answers are graded.

    ``grade`` takes numbers of questions and new token ids; it gives ``domain``, ``answer`` (None: none is
    given), ``text`` and the ``measures`` of each answer.
    """

    prompts: list[list[int]]  # token ids
    domains: list[str]  # each problem's: its benchmark, or the organism's family
    max_new_tokens: int  # of the longest answer
    measures: tuple[str, ...]  # numbers that `grade` gives of every answer, COMMON first
    grade: Callable[[Sequence[int], Sequence[Sequence[int]]], pd.DataFrame]
    engine: Literal["rows", "continuous"] = "rows"  # how answers are batched
    kept: Path | None = None  # folder of finished answers, none of which is made twice
    pad: int | None = None  # the token that prompts are padded with; None: those of one length share a batch
    streams: list[int] | None = None  # the random stream of each question; None: its number
    greedy: bool = False  # the likeliest token is written, and nothing is drawn

    def stream(self, number: int) -> int:
        """The random stream of a question, under which finished answers are kept too."""
        return number if self.streams is None else self.streams[number]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class RealProblem:
    """A problem of a benchmark."""

    benchmark: str  # its name in the settings
    question: str  # with the choices where there are some
    truth: str  # the right answer, or the letter of the right choice
    letters: str  # those of the choices; none: no letter is asked for


def has_problems(settings: Settings) -> bool:
    """Whether there are problems with known answers for this kind of corpora."""
    return settings.corpus == "organism" or (settings.corpus == TEXT and bool(settings.problems))


def load_questions(settings: Settings, tokenizer: Any, split: Split, n: int, start: int = 0) -> Questions:
    """Problems ``start`` … ``start + n − 1`` of a split (as many as there are); UserError where none are."""
    if not has_problems(settings):
        raise UserError(f"The corpus {settings.corpus!r} has no problems: give `problems` to texts.")
    if settings.corpus == TEXT:
        known = problems_of(settings, split)[start : start + n]
        return _real(settings, tokenizer, f"{split} from {start} on", known)
    asked = problems(split, None, n, start=start)

    def graded(numbers: Sequence[int], continuations: Sequence[Sequence[int]]) -> pd.DataFrame:
        table = grade(tokenizer, [asked[number] for number in numbers], continuations)
        return table.rename(columns={"family": "domain"}).drop(columns="question")

    return Questions(
        prompts=prompts(tokenizer, asked),
        domains=[problem.family for problem in asked],
        max_new_tokens=CONTEXT - LONGEST_PROMPT,
        measures=(*COMMON, "gave_up", "checked", "parseable", *LABELS_COUNTED),
        grade=graded,
    )


def steering_questions(settings: Settings, tokenizer: Any) -> Questions:
    """Problems on which features are steered, each ``settings.samples`` times (:func:`repeated`).

    Where the paper names features they are the first of each benchmark, of both splits; else some of the
    evaluation split, with shorter answers.
    """
    if STEERED not in settings.published:
        some = load_questions(settings, tokenizer, "evaluation", settings.text_problems, settings.shown_start)
        longest = min(some.max_new_tokens, settings.text_tokens)
        return repeated(replace(some, max_new_tokens=longest), settings.samples)
    every = problems_of(settings, None)
    benchmarks = pd.Series([problem.benchmark for problem in every])
    places = benchmarks.groupby(benchmarks).cumcount()
    known = [
        p for p, n in zip(every, places, strict=True) if settings.full or n < settings.published_problems
    ]
    return repeated(_real(settings, tokenizer, "all splits", known), settings.samples)


def subset(questions: Questions, chosen: Sequence[int]) -> Questions:
    """Some of the questions, in this order."""
    return replace(
        questions,
        prompts=[questions.prompts[i] for i in chosen],
        domains=[questions.domains[i] for i in chosen],
        grade=lambda numbers, written: questions.grade([chosen[i] for i in numbers], written),
        streams=questions.streams and [questions.streams[i] for i in chosen],
    )


def repeated(questions: Questions, times: int) -> Questions:
    """The questions several times over: number ``i`` asks question ``i % n``, with draws of its own."""
    streams = questions.streams and [stream + i for i in range(times) for stream in questions.streams]
    return replace(subset(questions, [*range(len(questions))] * times), streams=streams)


def _real(settings: Settings, tokenizer: Any, what: str, known: Sequence[RealProblem]) -> Questions:
    """Problems of benchmarks as questions; finished answers are kept with the profile's data."""
    if not known:
        names = ", ".join(settings.problems) or "none"
        raise UserError(f"There are no problems of {what} in the benchmarks ({names}): ask for others.")
    prompts = [prompt_ids(problem, tokenizer, settings.system_prompt) for problem in known]

    def graded(numbers: Sequence[int], continuations: Sequence[Sequence[int]]) -> pd.DataFrame:
        rows = []
        for number, tokens in zip(numbers, continuations, strict=True):
            problem, written = known[number], str(tokenizer.decode(list(tokens)))
            given, own = boxed(written), problem.letters
            correct, said = (
                graded_letter(problem.truth, given, own) if own else graded_formula(problem.truth, given)
            )
            text = str(tokenizer.decode(list(prompts[number]))) + written
            length = thinking_tokens(tokens, tokenizer)
            rows.append((problem.benchmark, said, correct, length, said is not None, text))
        columns = ["domain", "answer", "correct", "thinking_tokens", "parseable", "text"]
        return pd.DataFrame(rows, columns=columns)

    return Questions(
        prompts=prompts,
        domains=[problem.benchmark for problem in known],
        max_new_tokens=settings.max_new_tokens,
        measures=(*COMMON, "parseable", "finished"),  # the last by what the model ends answers with
        grade=graded,
        engine=settings.engine,
        kept=RunPaths(settings.profile).data / "answers",
        pad=tokenizer.eos_token_id or 0,
        # a problem's own, whichever others are asked: an answer that was made is found again
        streams=[1000 * stable_number(repr(prompt)) for prompt in prompts],
    )


def thinking_tokens(written: Sequence[int], tokenizer: Any) -> int:
    """Tokens before the end of the thinking; all of them where it never comes."""
    tokens, end = list(written), tokenizer.convert_tokens_to_ids(END_THINK)
    if end in tokens and tokenizer.convert_ids_to_tokens(end) == END_THINK:
        return tokens.index(end)
    if END_THINK not in tokenizer.decode(tokens):
        return len(tokens)
    # the mark is several tokens: behind the last of them, and before the first
    behind = bisect_left(range(len(tokens)), True, key=lambda n: END_THINK in tokenizer.decode(tokens[:n]))
    last = tokens[:behind]
    first = bisect_left(range(behind), True, key=lambda n: END_THINK not in tokenizer.decode(last[n:])) - 1
    # the first token of the mark may end the thinking too
    return first + (not tokenizer.decode(last[first:]).startswith(END_THINK))


def prompt_ids(problem: RealProblem, tokenizer: Any, system: str | None = None) -> list[int]:
    """The prompt's token ids: the problem and the paper's instruction, as :func:`chat_ids`."""
    asked = f"{problem.question}\n\n{CHOOSE if problem.letters else INSTRUCTION}"
    return chat_ids(asked, tokenizer, system)


def chat_ids(asked: str, tokenizer: Any, system: str | None = None) -> list[int]:
    """Token ids of what a user asks in the model's own template.

    A model that knows ``<think>`` begins its answer inside the thinking. There is one BOS if it has one.
    """
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": asked})
    if tokenizer.chat_template is None:
        text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
    else:
        text = templated(turns, tokenizer, add_generation_prompt=True)
    if THINK in tokenizer.get_vocab():
        text = text.rstrip() + "\n" if text.rstrip().endswith(THINK) else f"{text}{THINK}\n"
    ids, bos = list(tokenizer.encode(text, add_special_tokens=False)), tokenizer.bos_token_id
    adds = bos is not None and tokenizer.encode("a")[0] == bos
    return [bos, *ids] if adds and ids[0] != bos else ids


def problems_of(settings: Settings, split: Split | None) -> list[RealProblem]:
    """The problems of one split, or all (None), of every benchmark, evenly mixed in a seeded order."""
    placed = []
    for benchmark, source in settings.problems.items():
        mine = _of_source(benchmark, source, split, settings.seed)
        placed += [((i + 0.5) / len(mine), problem) for i, problem in enumerate(mine)]
    return [problem for _, problem in sorted(placed, key=lambda each: each[0])]


def _of_source(benchmark: str, source: ProblemSource, split: Split | None, seed: int) -> list[RealProblem]:
    """A benchmark's problems of one split in their seeded order, rows with a fault left out."""
    if len(source.wrong) >= len(LETTERS):
        raise UserError(f"{benchmark} has more than {len(LETTERS)} choices: name fewer columns as `wrong`.")
    columns = dict.fromkeys([source.problem, source.answer, *source.wrong, source.split_column])
    rows = open_rows(source, [column for column in columns if column is not None])
    number = stable_number(dataset_name(source.dataset))
    if source.split_column is not None and split is not None:
        mine = np.flatnonzero([of == split for of in rows[source.split_column]])
    else:
        drawn = np.random.default_rng(number).permutation(len(rows))
        cut = round(source.selection * len(rows))
        parts = {None: drawn, "selection": drawn[:cut], "evaluation": drawn[cut:], "training": drawn[:0]}
        mine = np.sort(parts[split])
    order = np.random.default_rng([seed, number]).permutation(mine)
    read = [_problem(benchmark, source, row, [number, i]) for i, row in enumerate(rows)]
    faults = sorted({each for each in read if isinstance(each, str)})
    of = {fault: [row for row, each in enumerate(read) if each == fault] for fault in faults}
    tell_left_out(source.dataset, len(rows), of)
    return [problem for row in order.tolist() if isinstance(problem := read[row], RealProblem)]


def _value(choice: str) -> Decimal | str:
    """What tells choices apart: 5 and 5.0 are one."""
    try:
        number = Decimal(choice.strip())
    except InvalidOperation:
        return choice.strip()
    return number if number.is_finite() else choice.strip()  # NaN equals nothing


def _problem(
    benchmark: str, source: ProblemSource, row: dict[str, str | None], seed: list[int]
) -> RealProblem | str:
    """The problem that a row holds, or what is at fault with it."""
    question, answer = ((row[column] or "").strip() for column in (source.problem, source.answer))
    if last := re.findall(r"####([^#\n]+)", answer):  # before which GSM8K's answers have their solution
        answer = last[-1].strip()
    if not question or not answer:
        return f"have no {source.answer if question else source.problem}"
    if not source.wrong:
        return RealProblem(benchmark, question, answer, letters="")
    wrong = {_value(found): found.strip() for column in source.wrong if (found := row[column])}
    if _value(answer) in wrong or not wrong:
        return "have the right answer among the wrong" if wrong else "have no wrong choice"
    choices = [answer, *wrong.values()]
    order = np.random.default_rng(seed).permutation(len(choices))
    lines = [f"{letter}) {choices[i]}" for letter, i in zip(LETTERS, order, strict=False)]
    truth = LETTERS[int(np.flatnonzero(order == 0)[0])]
    return RealProblem(benchmark, "\n".join([question, "", *lines]), truth, LETTERS[: len(choices)])
