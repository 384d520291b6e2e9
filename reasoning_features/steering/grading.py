"""Whether an answer is right: a letter of the problem's own choices, a formula or a text in its last box.

Formulas are read by math-verify's parser, in one spelling, evaluated exactly and compared by its ``verify``,
with guards for what these take for something else. A wrong answer must not count as right; where both cannot
be had, a right answer in an unusual form counts as wrong.
"""

import contextlib
import logging
import re
import signal
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

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

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # names of choices
LONGEST = 400  # characters of the longest answer that is compared as a formula
SECONDS = 3  # for comparing an answer; one that takes longer is wrong
BITS, DIGITS = 15_000, 5_000  # of the longest number that is evaluated, and of what is compared: no less
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
