"""Problems with known answers: the organism's, those of published benchmarks, or of a file of one's own.

A problem of a benchmark belongs to one split for good; the run's seed orders problems within a split, and
benchmarks are mixed evenly. What stands in the last box of an answer is compared with the truth as a formula
(by math-verify), a text or a letter.
"""

import contextlib
import logging
import re
import signal
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.math_normalization import NormalizationConfig
from latex2sympy2_extended.sets import FiniteSet
from math_verify import verify
from math_verify.errors import TimeoutException
from math_verify.utils import timeout
from sympy import Eq, MatrixBase, Pow, Rational, Union, factorial, simplify, solve
from sympy.core.relational import Relational
from sympy.physics import units

from reasoning_features.errors import UserError
from reasoning_features.organism.language import CONTEXT, END_THINK, THINK
from reasoning_features.organism.parser import LABELS_COUNTED, LONGEST_PROMPT, grade, prompts
from reasoning_features.organism.problems import Split, problems
from reasoning_features.paths import RunPaths
from reasoning_features.settings import ProblemSource, Settings
from reasoning_features.text.corpora import TEXT, dataset_name, open_rows, stable_number, tell_left_out

COMMON = ("correct", "thinking_tokens")  # what is measured of every answer, whatever the problems
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
CHOOSE = r"Please reason step by step, and put the letter of your answer within \boxed{}."
LONGEST = 400  # characters of the longest answer that is compared as a formula
SECONDS = 3  # for comparing an answer; one that takes longer is wrong
BITS, DIGITS = 15_000, 5_000  # of the longest number that is evaluated, and of what is compared: no less
STEERED = "steered in version 2"  # the set of `settings.published` whose features are steered
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # names of choices
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<open>\{)|(?P<bare>(?:\\[A-Za-z]+|\{[^{}]*\}|[^\s$\\{}])+))")
_WRAPPED = re.compile(r"\\(?:text|math(?!bb|cal)|mbox|bold|bm|emph|operatorname)[a-z]*\s*\{([^{}]*)\}")
# what may stand around the letter of a choice, and what names another one behind it
_CHOSEN = re.compile(
    r"(?:(?:the|my|final|correct|right|best|answer|option|choice|letter|is|it|i|think|believe|choose|pick|so|thus"
    r"|therefore|must|should|would|be)\b[\s:=,]*)*[(\[\s]*([A-Z])(?:\s*[)\].:]+(.*)|\s+(?:because|since)\b.*"
    r"|\s+is\s+(?:the\s+)?(?:correct|right|best)(?:\s+\w+)?\.?)?",
    re.DOTALL | re.IGNORECASE,
)
_ANOTHER = re.compile(
    r"(?:\b(?:and|or|not|maybe)\b|[,/&;+])\W*([A-Z])(?![A-Za-z])|(?<![\dA-Za-z(])(?<!\d )([A-Z])\W*$"
    r"|(?<![A-Za-z(])([A-Za-z])\)|(?<![A-Za-z])\(([A-Za-z])\)|\b(?:and|or)\W*([a-z])\W*$"
)
_WORDS = re.compile(r"[\w\s.,;'-]*(?<![a-z])[a-z]{3}[\w\s.,;'-]*")
_AROUND_WORDS = re.compile(r"^(?:(?:it|the (?:answer|function|number)) is )?(?:the |an? )?|(?<=\w\w)s$")
_SPELLINGS: list[tuple[str, Any]] = [  # one for all ways to write the same
    ("[²³¹⁰-ⁿ]+", lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}"),
    ("[¼-¾⅐-⅞]", lambda m: rf"\frac{{{unicodedata.normalize('NFKC', m[0])}}}".replace("⁄", "}{")),
    ("[−–·°∞]", lambda m: {"·": r"\cdot ", "°": r"^\circ ", "∞": r"\infty "}.get(m[0], "-")),
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\$|\\displaystyle", " "),
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?", ""),
    (r"(?<=\d)(?:\{,\}|,\\!)(?=\d{3})|\\!|\\(?:textbf|textit|mathbf|mathit|boldsymbol|bm)(?![a-z])", ""),
    (r"\\(?:(?:math|text)(?:rm|sf|tt|up|normal)|mbox|operatorname\*?) *(?=\{)", r"\\text"),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-z])|\\text *\{\s*\}|\s+", " "),
    (r"^ *\\text ?\{([^{}]*)\} *$", r"\1"),
    (r"\\varnothing", r"\\emptyset "),
    (r"\\%", "%"),
    (r"(?:√|\\sqrt ?)(\d+)", r"\\sqrt{\1}"),
    (r"^ *(-?) ?(\\\$|[€£¥]) ?(.*)", r"\1\3\\text{\2}"),
    (" +", " "),
]
_I = {"i": "I", "i^": "(I)^", "I": r"\mathcal{I}"}
_NUMBERS: list[tuple[str, Any]] = [  # what math-verify does not read, or takes for something else
    (r" ?,? ?(?:\\text ?\{ ?,? ?(?:and|or) ?\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])) ?", ", "),
    (r"\\text ?\{ ?\(?(\\?[A-Za-z]|[-\d.,/ ]+)\)? ?\}", r"\1"),
    (r"(\d)[eE]([-+]?\d+)", r"\1\\times 10^{\2}"),
    (r"(?<=\d) ?[x*] ?(?=10 ?\^)", r"\\times "),
    (r"(?<![\d.,])\d{1,3}([ ,])\d{3}(?:\1\d{3})*(?![ ,]?\d)", lambda m: _joined(m)),
    (r"(\d+) (\d+) ?/ ?(\d+)", r"\1\\frac{\2}{\3}"),
    # 2(3) is no mixed number, and I^2 is not I
    (r"(?<![_^\d.])(\d+) ?(?=\(|\\[dt]?binom|\\lfloor|\\lceil)|(\)) ?(?=[\d(])", r"\1\2\\cdot "),
    (r"\\(?:begin|end)\{\w+\}|_\{?i|\\?[A-Za-z]{3,}|\\[A-Za-z]+|i\^|[iI]", lambda m: _I.get(m[0], m[0])),
    # fractions are exact, decimals would become floats
    (r"(\d*)\.(\d*)\\(?:overline|bar|dot) ?\{?(\d+)\}?", lambda m: _repeating(*m.groups())),
    (
        r"(?<![\d.])(?<!\d )(\d*)\.(\d+)(?![\d.]| \d)",
        lambda m: rf"\frac{{{m[1]}{m[2]}}}{{{10 ** len(m[2])}}}",
    ),
    (r"(?:\^|\*\*) ?(-?\d+|\\[dt]?frac ?(?:\{[^{}]*\}|\d){2})", r"^{\1}"),
]
# two numbers in a row, dots, times, ratios of three, dates, primes and words
_OPAQUE = re.compile(
    r"(?<!_)\d [\d.]|\\[lc]?dots|\.\.|…|:.*:|\b\d?\d:\d\d\b|\d/\d+/\d|\d{4}-\d\d-\d\d|'|\\text|\\p?b?mod"
    r"|(?<![\\A-Za-z])(?!sqrt|infinity|\w*matrix|array)[A-Za-z]{4,}"
)
_PART = (  # of a unit
    r"(?:\^?\\text ?\{[^{}]*\}|%|\^ ?\{? ?\\circ ?\}?(?: ?[CF](?![A-Za-z]))?| [A-Za-z]{3,}(?![A-Za-z])"
    r"|(?<![\\A-Za-z])(?:[cmk]m|[mk]g|m[lL]|ft|in|mi|yd|lbs?|oz|hrs?|mph|Hz|eV|kJ)(?![A-Za-z]))"
)
_UNIT = re.compile(
    rf"(.*?(?:[\d)}}\]]|\\pi|\\infty)) ?({_PART}(?: |\^ ?\{{?-?\d\}}?|\\cdot|/ ?(?:[A-Za-z]+)?|{_PART})*)"
)
# what is no value with a unit, and no unit: 2\mathrm{e} has none
_NO_VALUE = re.compile(r"(?<![\\A-Za-z])(?!sqrt|and\b)[A-Za-z]{3}|\\(?:sin|cos|tan|cot|sec|csc)")
_NO_UNIT = re.compile(
    r"\\text ?\{ ?[^smghlLNJWVACKFT€£¥] ?\}|\b(?:and|or|not|no|to|more|fewer|less|least|most|than|over|under"
    r"|if|for|above|below|up|down|when|where|only|mod|base|half|dozen|hundred|thousand|[mbtr]+illion"
    r"|squared|cubed|factorial|choose|plus|minus|pi|sqrt|is)s?\b"
)
_UNITS = {"circ": "degree", "%": "percent", "$": "dollar", "hr": "hour", "min": "minute", "in": "inch"}
_NORMAL = NormalizationConfig(malformed_operators=True, boxed="none")
logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # that a formula took too long is no news


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


def repeated(questions: Questions, times: int) -> Questions:
    """The questions several times over: number ``i`` asks question ``i % n``, with draws of its own."""
    n = len(questions)
    return replace(
        questions,
        prompts=questions.prompts * times,
        domains=questions.domains * times,
        grade=lambda numbers, written: questions.grade([number % n for number in numbers], written),
        streams=questions.streams and [stream + i for i in range(times) for stream in questions.streams],
    )


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
    first = (
        bisect_left(range(behind), True, key=lambda n: END_THINK not in tokenizer.decode(tokens[n:behind]))
        - 1
    )
    return first + (
        not tokenizer.decode(tokens[first:behind]).startswith(END_THINK)
    )  # it may end the thinking too


def prompt_ids(problem: RealProblem, tokenizer: Any, system: str | None = None) -> list[int]:
    """The prompt's token ids: the problem and the paper's instruction in the model's own template.

    A model that knows ``<think>`` begins its answer inside the thinking. There is one BOS if it has one.
    """
    asked = f"{problem.question}\n\n{CHOOSE if problem.letters else INSTRUCTION}"
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": asked})
    if tokenizer.chat_template is None:
        text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
    else:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
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


def _problem(
    benchmark: str, source: ProblemSource, row: dict[str, str | None], seed: list[int]
) -> RealProblem | str:
    """The problem that a row holds, or what is at fault with it."""
    question, answer = ((row[column] or "").strip() for column in (source.problem, source.answer))
    last = f"\n{answer}".rpartition("\n####")[2].strip()  # GSM8K's solutions end with a line of the answer
    answer = answer if "\n" in last else last
    if not question or not answer:
        return f"have no {source.answer if question else source.problem}"
    if not source.wrong:
        return RealProblem(benchmark, question, answer, letters="")
    choices = [answer, *(found.strip() for column in source.wrong if (found := row[column]))]
    if len(choices) == 1 or answer in choices[1:]:
        return "have the right answer among the wrong" if choices[1:] else "have no wrong choice"
    order = np.random.default_rng(seed).permutation(len(choices))
    lines = [f"{letter}) {choices[i]}" for letter, i in zip(LETTERS, order, strict=False)]
    truth = LETTERS[int(np.flatnonzero(order == 0)[0])]
    return RealProblem(benchmark, "\n".join([question, "", *lines]), truth, LETTERS[: len(choices)])


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{…}`` or ``\\boxed …`` of a text holds; None: none, or it is empty or open."""
    for box in reversed(list(_BOX.finditer(text))):
        depth, bare = 1, (box["bare"] or "").rstrip(".,;:")
        if re.search(r"\d|\\|^[A-Za-z]$", bare):  # else it is a word of the text
            return bare
        for mark in re.finditer(r"\\.|[{}]", text[box.end() :], re.DOTALL) if box["open"] else ():
            depth += {"{": 1, "}": -1}.get(mark[0], 0)
            if depth == 0:
                return text[box.end() : box.end() + mark.start()].strip() or None
        if box["open"]:
            return None
    return None


def graded_letter(truth: str, answer: str | None, letters: str = LETTERS) -> tuple[bool, str | None]:
    """Whether an answer names the right choice, and which of ``letters`` it names (None: not just one)."""
    bare = re.sub(r"\\(?:left|right)|\\[()\[\]{} ,;!]|[$*{}\"'`~]", " ", _unwrapped(answer or ""))
    found = _CHOSEN.fullmatch(bare.strip())
    named = found[1].upper() if found else ""
    others = {max(each).upper() for each in _ANOTHER.findall(found[2] or "")} - {named} if found else set()
    if not named or named not in letters or others & set(letters):
        return False, None
    return named == truth, named


def _unwrapped(latex: str) -> str:
    while (inner := _WRAPPED.sub(r"\1", latex)) != latex:
        latex = inner
    return latex


def _rewritten(latex: str, rules: Sequence[tuple[str, Any]]) -> str:
    for pattern, to in rules:
        latex = re.sub(pattern, to, latex)
    return latex.strip().rstrip(" .")


def plain(latex: str) -> str:
    """An answer for comparison as a text; of one in words neither case nor article nor plural counts."""
    text = _unwrapped(_rewritten(latex, _SPELLINGS))
    if len(text) <= LONGEST and _WORDS.fullmatch(words := re.sub("[{}]", "", text).lower()):
        return _AROUND_WORDS.sub("", words)
    return re.sub(r"(?<![\d.]) | (?![\d.])", "", text)


@cache
def graded_formula(truth: str, answer: str | None) -> tuple[bool, str | None]:
    """Whether an answer equals the truth, and a string that equal answers share (None: no answer)."""
    if answer is None:
        return False, None
    right, said = plain(answer) == plain(truth), plain(answer)
    if not right and len(answer) <= LONGEST:
        with contextlib.suppress(Exception, TimeoutException):
            right, said = timeout(SECONDS)(_compared)(truth, answer)
    return right, plain(truth) if right else said


def _compared(truth: str, answer: str) -> tuple[bool, str]:
    """Whether an answer says what the truth does, and what it says."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)  # again and again: in a destructor an exception is lost
    (known, its), (said, own) = _measured(truth), _measured(answer)
    # a unit may be left out, but a number without a base has the base ten, and 0.5 is not 0.5%
    more = re.fullmatch(r"[1-9][\d.]*", said) is not None if own == "percent" else own[:1] != "_"
    same = own in ("", its) or (not its and more)
    if same and plain(said) == plain(known):
        return True, ""
    found = _formula(said)
    right = same and _equal(known, said)
    if {own, its} == {"percent", ""} and not right:
        right = _equal(*(rf"\frac{{{x}}}{{100}}" if unit else x for x, unit in ((known, its), (said, own))))
    with contextlib.suppress(Exception):
        found = found.simplify()
    return right, f"{found} {own}".strip()


def _measured(latex: str) -> tuple[str, str]:
    """A formula and its unit, the base of a number, or the names of what it assigns; empty: none of them."""
    text = _rewritten(latex, _SPELLINGS)
    if base := re.fullmatch(r"\(?(\d+)\)?_\{?(\d+)\}?", text):
        return base[1], "_" + base[2]
    named = dict(re.findall(r"(?:^|,) *([A-Za-z]) *=([^=<>,]+)(?=,|$)", _rewritten(text, _NUMBERS[:1])))
    if len(named) > 1 and len(named) == text.count("="):
        return f"({','.join(named[name] for name in sorted(named))})", " ".join(sorted(named))
    found = _UNIT.fullmatch(text)
    if found is None or _NO_VALUE.search(found[1]) or _NO_UNIT.search(found[2]):
        return text, ""
    words = []
    for word in re.findall(r"[A-Za-z]+|[%$€£¥/]|-?\d", re.sub(r"\\(?:text|cdot)", " ", found[2])):
        word = word.lower() if len(word) > 3 else word
        single = word.removesuffix("s") if len(word) > 2 else word
        words.append(_UNITS.get(single) or str(getattr(units, word, getattr(units, single, single))))
    for name, power in (("square", "2"), ("cubic", "3")):
        words = [word for word in words if word != name] + [power] * (name in words)
    return re.sub(r"\^ ?\{? ?\\circ ?\}?", "", found[1]), " ".join(words)


def _joined(number: re.Match[str]) -> str:
    """Thousands without separators, but (1,234) is a pair."""
    pair = number[1] == "," and re.search(r"[(\[]|\\\{", number.string)
    return number[0] if pair else number[0].replace(number[1], "")


def _repeating(whole: str, once: str, again: str) -> str:
    return rf"({whole}.{once}0+\frac{{{again}}}{{{'9' * len(again)}{'0' * len(once)}}})"


@lru_cache(20)
def _formula(latex: str) -> Any:
    """What a formula says, evaluated exactly, as one of SymPy's objects; ValueError where it cannot be."""
    text = _rewritten(latex, _NUMBERS)
    if _OPAQUE.search(text):
        raise ValueError("This is no formula.")
    found = latex2sympy(text, None, True, True, _NORMAL, ConversionConfig(lowercase_symbols=False))
    if _bits(found) > BITS:
        raise ValueError("Its numbers are too long.")
    return _evaluated(found)


def _bits(found: Any) -> float:
    """The most bits of a number that evaluating a formula makes."""
    bits = [_bits(part) for part in (found.flat() if isinstance(found, MatrixBase) else found.args)]
    if isinstance(found, Rational):
        return float(found.p.bit_length() + found.q.bit_length())
    if isinstance(found, Pow | factorial):
        size = abs(float(found.args[-1])) if found.args[-1].is_Rational else 2.0 ** min(bits[-1], 64)
        return max(bits[0], 1) * max(size, 1)
    return sum(bits) + 1


def _evaluated(found: Any) -> Any:
    """Evaluated part by part: sets keep their order, and relations stay what they are."""
    if isinstance(found, Relational):
        return found.func(*map(_evaluated, found.args), evaluate=False)
    if isinstance(found, FiniteSet | And):
        return found.func(*map(_evaluated, found._unsorted_args))
    return found.doit()


def _equal(known: str, said: str) -> bool:
    """Whether two formulas are equal, by math-verify but for what it takes for equal."""
    pair, braces = [_formula(known), _formula(said)], [text.startswith(r"\{") for text in (known, said)]
    lists = [isinstance(each, FiniteSet) for each in pair]
    if all(getattr(each, "is_Atom", False) for each in pair):  # E and e
        return bool(pair[0] == pair[1])
    if braces[0] != braces[1] and re.match(r"[(\[]", (said, known)[braces[1]]):  # (0, 1) and {0, 1}
        return False
    if len({len(each._unsorted_args) for each in pair if all(lists)}) > 1 and not any(braces):  # 1, 1 and 1
        return False
    if lists[0] != lists[1] and " or " in (known, said)[lists[1]]:
        parts = pair[lists[1]].args  # x < 0 or x > 1: the numbers that they describe
        pair[lists[1]] = Union(*(part.as_set() for part in parts))
    right = verify(*pair, numeric_precision=DIGITS, allow_set_relation_comp=True, timeout_seconds=None)
    if right and all(isinstance(each, Eq) for each in pair) and not solve(pair[0]):  # as all without solution
        right = simplify((pair[0].lhs - pair[0].rhs) / (pair[1].lhs - pair[1].rhs)).is_number
    return bool(right)
