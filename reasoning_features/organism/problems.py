"""Problems with a known answer, made from a seed and never stored.

Five families make the main mixture, three others that of a second reasoning model. The sign that more
persistence is expected to have on accuracy is part of each family, written down before anything was trained:
otherwise "reasons better" and "stops later" could not be told apart.
"""

import hashlib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np

Split = Literal["training", "selection", "evaluation"]
Mixture = Literal["main", "other"]
SPLITS: tuple[Split, ...] = ("training", "selection", "evaluation")
_SHARES = (0.8, 0.1, 0.1)
CLEARLY_WRONG = 2  # every wrong candidate misses the target by at least this much


@dataclass(frozen=True)
class Candidate:
    """One possible try."""

    text: str
    working: str  # shown when it is tried
    verdict: str  # on its result

    @property
    def right(self) -> bool:
        return self.verdict == "yes"


@dataclass(frozen=True)
class Problem:
    """A problem with its answer."""

    family: str
    question: str
    answer: str
    candidates: tuple[Candidate, ...] = ()  # its tries in canonical order (search families)
    numbers: tuple[int, ...] = ()  # its data


@dataclass(frozen=True)
class Family:
    """A kind of problem."""

    name: str
    searches: bool  # solved by trying candidates, so a dead end leaves the choice to go on or give up
    persistence: Literal["pays", "neutral", "hurts"]  # the effect on accuracy expected of more of it
    share: float  # of its mixture of problems
    draw: Callable[[np.random.Generator], Problem | None]
    mixture: Mixture = "main"


def _integers(rng: np.random.Generator, low: int, high: int, n: int, distinct: bool) -> list[int]:
    """``n`` integers from ``low`` to ``high``, both included."""
    return [int(x) for x in rng.choice(np.arange(low, high + 1), size=n, replace=not distinct)]


def _search(
    rng: np.random.Generator, family: str, question: str, tries: list[tuple[str, str, int]]
) -> Problem | None:
    """A problem from its tries (text, working, value), of which one is drawn as the target in the question;
    None unless it is right alone, the others clearly wrong.
    """
    target = tries[int(rng.integers(len(tries)))][2]
    misses = [abs(value - target) for _, _, value in tries if value != target]
    if len(misses) != len(tries) - 1 or min(misses) < CLEARLY_WRONG:
        return None
    verdicts = {-1: "low", 0: "yes", 1: "high"}
    candidates = tuple(Candidate(a, b, verdicts[int(np.sign(value - target))]) for a, b, value in tries)
    answer = next(candidate.text for candidate in candidates if candidate.right)
    return Problem(family, question.format(target), answer, candidates)


def _two_of(family: str, named: str, sign: str, high: int, rng: np.random.Generator) -> Problem | None:
    """Which two of five numbers have a given sum, product or gap, the larger less the smaller."""
    numbers = _integers(rng, 2, high, 5, distinct=True)
    result = {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign]
    pairs = [(max(pair), min(pair)) if sign == "-" else pair for pair in combinations(numbers, 2)]
    tries = [(f"{a} {sign} {b}", f" = {result(a, b)}", result(a, b)) for a, b in pairs]
    return _search(rng, family, f"Two of {' '.join(map(str, numbers))} with {named} {{}}.", tries)


def _ops(rng: np.random.Generator) -> Problem | None:
    b, c = int(rng.integers(2, 5)), int(rng.integers(2, 13))
    a = int(rng.integers(b + c, 25))
    tries: list[tuple[str, str, int]] = []
    for first, middle in (("+", a + b), ("-", a - b), ("*", a * b)):
        for second, value in (("+", middle + c), ("-", middle - c)):
            tries.append((f"{a} {first} {b} {second} {c}", f" = {middle} {second} {c} = {value}", value))
    return _search(rng, "ops", f"Make {{}} from {a} {b} {c}.", tries)


def _of_all(
    family: str, answer: Callable[[list[int]], int], n: int, high: int, rng: np.random.Generator
) -> Problem:
    """The sum of three numbers, which may be equal, or the largest or smallest of five that are not."""
    numbers = _integers(rng, 2, high, n, distinct=family != "total")
    question = f"{family.capitalize()} {' '.join(map(str, numbers))}."
    return Problem(family, question, str(answer(numbers)), numbers=tuple(numbers))


def _scale(rng: np.random.Generator) -> Problem | None:
    """Which of six numbers gives a target when scaled and shifted."""
    numbers = _integers(rng, 2, 12, 6, distinct=True)
    factor, shift = int(rng.integers(2, 6)), int(rng.integers(1, 20))
    tries = [
        (f"{x} * {factor} + {shift}", f" = {x * factor} + {shift} = {x * factor + shift}", x * factor + shift)
        for x in numbers
    ]
    question = f"One of {' '.join(map(str, numbers))} scaled {factor} plus {shift} makes {{}}."
    return _search(rng, "scale", question, tries)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("pair", True, "pays", 0.22, partial(_two_of, "pair", "sum", "+", 30)),
        Family("times", True, "pays", 0.22, partial(_two_of, "times", "product", "*", 12)),
        Family("ops", True, "pays", 0.22, _ops),
        Family("total", False, "neutral", 0.17, partial(_of_all, "total", sum, 3, 20)),
        Family("largest", False, "hurts", 0.17, partial(_of_all, "largest", max, 5, 49)),
        Family("differ", True, "pays", 0.4, partial(_two_of, "differ", "gap", "-", 40), "other"),
        Family("scale", True, "pays", 0.4, _scale, "other"),
        Family("smallest", False, "hurts", 0.2, partial(_of_all, "smallest", min, 5, 49), "other"),
    )
}


def families(mixture: Mixture) -> dict[str, Family]:
    """The families of a mixture."""
    return {name: family for name, family in FAMILIES.items() if family.mixture == mixture}


def split_of(problem: Problem) -> Split:
    """The split a problem belongs to: a hash of its question decides, so the splits cannot overlap."""
    digest = hashlib.sha256(problem.question.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return SPLITS[int(np.searchsorted(np.cumsum(_SHARES)[:-1], place, side="right"))]


def draw_problem(rng: np.random.Generator, split: Split, family: str) -> Problem:
    """One problem of ``family`` that belongs to ``split``, drawn by rejection."""
    while True:
        problem = FAMILIES[family].draw(rng)
        if problem is not None and split_of(problem) == split:
            return problem


def draw_family(rng: np.random.Generator, mixture: Mixture = "main") -> str:
    """The name of a family of the mixture, drawn by the families' shares."""
    drawn = families(mixture)
    shares = np.cumsum([family.share for family in drawn.values()])
    return list(drawn)[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]


def problems(
    split: Split, family: str | None, n: int, start: int = 0, mixture: Mixture = "main"
) -> list[Problem]:
    """Problems ``start`` … ``start + n − 1`` of a split, of one family or (None) of a mixture: a fixed
    sequence, in which no question is repeated as long as the family has enough of them (ops has few).
    """
    sequence = [0] if family is None else [1 + list(FAMILIES).index(family)]
    rng = np.random.default_rng([SPLITS.index(split), *sequence, *([1] if mixture == "other" else [])])
    found: list[Problem] = []
    seen: set[str] = set()
    while len(found) < start + n:
        name = draw_family(rng, mixture) if family is None else family
        for _ in range(20):
            problem = draw_problem(rng, split, name)
            if problem.question not in seen:
                break
        seen.add(problem.question)
        found.append(problem)
    return found[start:]
