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
from sympy import Eq, MatrixBase, Pow, Rational, Union, factorial, latex, simplify, solve, sympify
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
    r"(?si)(?:(?:the|my|final|correct|right|best|answer|option|choice|letter|is|it|i|think|believe|choose|pick|so"
    r"|thus|therefore|must|should|would|be)\b[\s:=,]*)*[(\[\s]*([A-Z])(?:\s*[)\].:]+(.*)"
    r"|[,\s]+(?:because|since)\b.*|\s+is\s+(?:the\s+)?(?:correct|right|best)(?:\s+\w+)?\.?|\s*[,;!]|\s*\([^A-Za-z]*\))?",
)
_ANOTHER = re.compile(
    r"(?:\b(?:and|or|but|not|maybe)\b|[,/&;+])\W*([A-Z])(?![A-Za-z])|(?<![\dA-Za-z(])(?<!\d )([A-Z])\W*$"
    r"|(?<![A-Za-z(])([A-Za-z])\)|(?<![A-Za-z])\(([A-Za-z])\)|\b(?:and|or|but|not|maybe)\W*([b-z])(?![A-Za-z])"
    r"|(?<![\dA-Za-z(])(?<!\d )([B-HJ-Z])(?![A-Za-z])|^\W*([a-z])\W*$|(?:\b(?:and|or|but)|,)\W*(a)\W*$"
)
_WORDS = re.compile(r"[\w\s.,;'-]*(?<![a-z])(?:[a-z]{4}|yes|odd)[\w\s.,;'-]*")
_AROUND_WORDS = re.compile(r"^(?:(?:it|the (?:function|number)) is )?(?:the |an? )?|(?<= solution)s$")
_SIGNS = {"−": "-", "–": "-", "·": r"\cdot ", "∞": r"\infty ", r"\%": "%", r"\varnothing": r"\emptyset "}
_SPELLINGS: list[tuple[str, Any]] = [  # one for all ways to write the same
    ("[！-～]+", lambda m: unicodedata.normalize("NFKC", m[0])),
    ("[²³¹⁰-ⁿ]+", lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}"),
    ("[¼-¾⅐-⅞]", lambda m: rf"\frac{{{unicodedata.normalize('NFKC', m[0])}}}".replace("⁄", "}{")),
    (r"[·°∞−–]|\\(?:varnothing|degree)(?![a-z])|\\%", lambda m: _SIGNS.get(m[0], r"^\circ ")),
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\$|\\displaystyle", " "),
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?|\\phantom *\{[^{}]*\}|\\\\ *$", ""),
    (r"(?<=\d)(?:\{,\}|,\\!)(?=\d{3})|\\!|^ *[A-Za-z] *\\in(?![a-z]) *(?=[\[(\\])", ""),
    (r"\\(?:(?:text|math)(?:bf|it)|boldsymbol|bm|underline) *\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1"),
    (r"\\(?:(?:math|text)(?:rm|sf|tt|up|normal)|mbox|operatorname\*?) *(?=\{)", r"\\text"),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-z])|\\text *\{\s*\}|\s+", " "),
    (r"^ *\\text ?\{([^{}]*\d[^{}]*|.|(?i:all real numbers))\} *$", r"\1"),
    (r"^(\\text ?\{ ?)?(?i:(?:(?:the|my|final) )*answer(?: is|:)+) ?(?(1)\}) ?", ""),
    (r"^(?i:all real numbers)$", r"\\mathbb{R}"),
    (r"\\[dt]?frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),
    (r"(?:√|\\sqrt ?)(\d+)", r"\\sqrt{\1}"),
    (r"^ *(-?) ?(\\\$|[€£¥]) ?(.*)", r"\1\3\\text{\2}"),
    (" +", " "),
]
_I = {"i": "I", "i^": "(I)^", "I": r"\mathcal{I}"}
# what is not read or misread: 1,234 is no pair, 2(3) no mixed number, I^2 not I, and a decimal no float
_NUMBERS: list[tuple[str, Any]] = [
    (r" ?,? ?(?:\\text ?\{ ?,? ?(?:and|or) ?\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])) ?", ", "),
    (r"\\text ?\{ ?\(?(\\?[A-Za-z]|[-\d.,/ ]+)\)? ?\}", r"\1"),
    (r"(\d)[eE]([-+]?\d+)", r"\1\\times 10^{\2}"),
    (r"(?<=\d) ?[x*] ?(?=10 ?\^)", r"\\times "),
    (r"(?<![\d.,])\d{1,3}([ ,])\d{3}(\1\d{3})*(?![ ,]?\d|.*[])}])", lambda m: m[0].replace(m[1], "")),
    (r"(?<![_^\d])(\d+) (\d+) ?/ ?(\d+)", r"\1\\frac{\2}{\3}"),
    (r"(?<![_^\d.])(\d+) ?(?=\(|\\[dt]?binom|\\lfloor|\\lceil)|(\)) ?(?=[\d(])", r"\1\2\\cdot "),
    (r"\\(?:begin|end)\{\w+\}|_\{?i|\\?[A-Za-z]{3,}|\\[A-Za-z]+|i\^|[iI]", lambda m: _I.get(m[0], m[0])),
    (r"(\d+\.\d*)\\(?:overline|bar|dot) ?\{?(\d+)\}?", lambda m: latex(sympify(f"{m[1]}[{m[2]}]"))),
    (r"(?<![\d.])(?<!\d )\d*\.\d+(?![\d.]| \d)", lambda m: latex(Rational(m[0]))),
    (r"(?:\^|\*\*) ?(-?\d+|\\[dt]?frac ?(?:\{[^{}]*\}|\d){2})", r"^{\1}"),
]
# what is not read at all: numbers in a row, dots, ratios, dates, words, [5], 5_1, sums over i, \sin x/2
_OPAQUE = re.compile(
    r"(?<!_)\d [\d.]|\.\.|…|:|\d/\d+/\d|\d{4}-\d\d-\d\d|'|\\(?:[lc]?dots|prime|text|p?b?mod|approx|equiv"
    r"|lbrace|in\b)|(?<![\\A-Za-z])(?!sqrt|infinity|\w*matrix|array)[A-Za-z]{4,}|^[({ ]*\[[^,]*\]\W*$|[\d)}]_"
    r"|_\{?i ?=|\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|l[ng]|log)(?:\^\{-1\})?[^()+,=<>-]*(?:/|\\cdot|\\times)"
)
# what may stand alone beside =, and a number with its unit
_NAME = (
    r"(?:(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho))(?:_\{?\w\}?)?"
    r"|[fghpqFGHPQ]\((?:\w|-?\d+)\)|\((?:x, ?y(?:, ?z)?|a, ?b(?:, ?c)?|m, ?n|r, ?(?:s|\\theta))\)(?= *= *\())"
)
_UNIT = re.compile(
    r"((?:[^A-Za-z\\]|\\(?:[dt]?frac|sqrt|pi|infty|times|cdot))*?(?<=[\d)}\]iy])) ?((?:\\text|%|\^ ?\{? ?"
    r"\\circ|(?<= )[A-Za-z]{3}|(?:[cmk]m|[mk]g|m[lL]|ft|in|mi|yd|lbs?|hrs?)(?![A-Za-z])).*)"
)
# units besides SymPy's, nouns, and what is no unit here; no other word may stand behind a number
_NOUNS = """circ:degree %:percent $:dollar €:euro ¥:yen per:/ / hr:hour in:inch min:minute lb:pound C:celsius
F:fahrenheit celsius fahrenheit cent dollar euro gallon ounce acre week month unit way point people person
student child children friend book page apple egg mph mil:? permille:? pm:? D:? H:? K:? T:? S:? t:? v:? """
_UNITS = {name: to or name for name, to in re.findall(r"(\S+?)(?::(\S+))?\s", _NOUNS)}
_NORMAL = NormalizationConfig(malformed_operators=True, boxed="none")
logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # that a formula took too long is no news


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{…}`` or ``\\boxed …`` that is not empty holds; None: none, or it is open."""
    text = re.sub(r"\\(?:boxed|fbox)\s*\{\s*\}", "", text)
    for box in reversed(list(_BOX.finditer(text))):
        depth, bare = 1, (box["bare"] or "").rstrip(".,;:")
        if re.search(r"\d|\\|^[A-Za-z]$", bare):  # else it is a word of the text
            return bare
        for mark in re.finditer(r"\\.|[{}]", text[box.end() :], re.DOTALL) if box["open"] else ():
            depth += {"{": 1, "}": -1}.get(mark[0], 0)
            if depth == 0:
                return text[box.end() : box.end() + mark.start()].strip()
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
    return re.sub(r"(?<!\.)[.,;]?\s*$", "", latex.strip()).strip()


def plain(latex: str) -> str:
    """An answer for comparison as a text; of one in words neither case nor article counts."""
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
    (known, its, whose), (said, own, name) = _measured(truth), _measured(answer)
    # a unit may be left out, but a number without a base has the base ten, and 0.5 is not 0.5%
    more = bool(re.fullmatch(r"[1-9][\d.]*", said)) if own == "percent" else own[:1] != "_" or own == "_10"
    named = "" in (name, whose) or name == whose
    same = named and (own in ("", its) or (not its and more))
    found = _formula(said)
    right = same and _equal(known, said)
    if named and {own, its} == {"percent", ""} and not right:
        right = _equal(*(rf"\frac{{{x}}}{{100}}" if unit else x for x, unit in ((known, its), (said, own))))
    with contextlib.suppress(Exception):
        found = found.simplify()
    return right, f"{found} {own}".strip()


def _measured(latex: str) -> tuple[str, str, str]:
    """A formula, its unit or the base of a number, and the name that it is given; empty: none of them."""
    text, name = _named(_rewritten(latex, _SPELLINGS))
    if base := re.fullmatch(r"\(?(\d+)\)?_\{?(\d+)\}?", text):
        return base[1], "_" + base[2], name
    found, words = _UNIT.fullmatch(text), []
    tail = re.sub(r"\\text|\\cdot|\^ ?\{? ?\\|[{}]", " ", found[2] if found else "")
    tail = re.sub(r"\b(square|cubic) +([a-z]+)", lambda m: f"{m[2]}^{2 + (m[1] == 'cubic')}", tail)
    for word in re.findall(r"[A-Za-z]+|\^ *-?\d|[^\s\\]", tail):
        word = word.lower() if len(word) > 3 else word
        single = word.removesuffix("s") if len(word) > 2 else word
        unit = getattr(units, word, getattr(units, single, None))
        known = str(unit) if type(unit) is units.Quantity else word.strip("^ ") if word[0] == "^" else "?"
        words.append(_UNITS.get(single, known))
    if found is None or not re.fullmatch("(?!.+percent|percent.)[a-z][^?]*[^?/]", tail := " ".join(words)):
        return text, "", name
    return found[1], tail, name


def _named(text: str) -> tuple[str, str]:
    """The value of what ``x = 5``, ``5 = x``, ``f(2) = 5`` or ``x = 5, y = 6`` names, and the name."""
    spelled = re.sub(rf"^(?!{_NAME} *=)([^=<>]+)= *({_NAME})$", r"\2 = \1", _rewritten(text, _NUMBERS[:1]))
    part = rf"(?:^|,) *({_NAME}) *=([^=<>]+?)(?=, *{_NAME} *=|$)"
    parts = re.findall(part, spelled)
    named, values = dict(parts), ", ".join(value.strip() for _, value in parts)
    heads, token = re.sub(r"(?<=\w)[(_][^,]*", "", ",".join(named)), r"\\[a-z]+|[A-Za-z]"
    shared = {*re.findall(token, heads)} & {*re.findall(token, values)}
    if shared or 1 < len(named) < len(parts) or re.sub(part, "", spelled):
        return text, ""
    values = values if len(named) == 1 else f"({','.join(named[name] for name in sorted(named))})"
    return values, re.sub(r"[() ]", "", ",".join(sorted(named)))


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
    pair = [_formula(known), _formula(said)]
    sizes = [getattr(x, "is_FiniteSet", False) and len(getattr(x, "_unsorted_args", "1")) for x in pair]
    if all(getattr(each, "is_Atom", False) for each in pair):  # E and e
        return bool(pair[0] == pair[1])
    one = bool(sizes[1])  # x < 0 or x > 1: the numbers that they describe
    if one == (not sizes[0]) and " or " in (known, said)[one]:
        pair[one] = Union(*(part.as_set() for part in pair[one].args))
    elif sizes[0] != sizes[1] or len({bool(re.search("(?<![<>])=", text)) for text in (known, said)}) > 1:
        return False  # a list is no tuple and no number, and x + 1 = 5 is not 5
    right = verify(*pair, numeric_precision=DIGITS, allow_set_relation_comp=True, timeout_seconds=None)
    if right and all(isinstance(each, Eq) for each in pair) and not solve(pair[0]):  # as all without solution
        right = simplify((pair[0].lhs - pair[0].rhs) / (pair[1].lhs - pair[1].rhs)).is_number
    return bool(right)
