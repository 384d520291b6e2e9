"""Grading answers to real problems: the last box, compared with the truth as a formula, a text or a letter.

Formulas are compared by math-verify in a process of its own: nothing in an answer is ever run as code, and a
comparison that takes too long or too much memory is ended and counts as wrong.
"""

from __future__ import annotations

import atexit
import json
import re
import selectors
import subprocess
import sys
from functools import cache
from pathlib import Path

LONGEST = 400
"""Characters of the longest answer that is compared as a formula."""
SECONDS = 10.0
"""Time for one comparison."""
LETTERS = "ABCDEFGHIJ"
"""Names of choices."""
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boldsymbol)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\left|\\right|\\[,;:! ]|[$\s]")


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{…}`` of a text holds; None: there is none, or it is empty or open."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip() or None
    return None


def plain(latex: str) -> str:
    """An answer without wrappers and spacing, for comparison as a text."""
    shown = latex
    while (inner := _WRAPPED.sub(r"\1", shown)) != shown:
        shown = inner
    shown = _NOISE.sub("", shown.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))
    return shown.rstrip(".").lower()


def letter(answer: str) -> str | None:
    """The choice that an answer names: a letter, alone or before what it stands for; else None."""
    shown = answer
    while (inner := _WRAPPED.sub(r"\1", shown)) != shown:
        shown = inner
    found = re.match(rf"[\s($*]*([{LETTERS}])(?![A-Za-z])", shown)
    return found.group(1) if found else None


def graded_letter(truth: str, answer: str | None) -> tuple[bool, str | None]:
    """Whether an answer names the right choice, and the choice it names (None: none)."""
    given = None if answer is None else letter(answer)
    return given == truth, given


@cache
def graded_formula(truth: str, answer: str | None) -> tuple[bool, str | None]:
    """Whether an answer equals the truth, and a string that equal answers share (None: no answer).

    Right answers share the truth's own string, so that they always vote together.
    """
    if answer is None:
        return False, None
    if plain(answer) == plain(truth):
        return True, plain(truth)
    if len(answer) > LONGEST:
        return False, plain(answer)
    equal, canonical = _worker().compare(truth, answer)
    if equal:
        return True, plain(truth)
    return False, canonical if canonical is not None else plain(answer)


class _Worker:
    """A process that compares formulas, started when first needed and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def compare(self, truth: str, answer: str) -> tuple[bool, str | None]:
        """Whether two formulas are equal and the answer's canonical form; (False, None) where it fails."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps([truth, answer]) + "\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as waiting:
                waiting.register(process.stdout, selectors.EVENT_READ)
                line = process.stdout.readline() if waiting.select(SECONDS) else ""
        except BrokenPipeError:
            line = ""
        if not line:
            self.end()
            return False, None
        equal, canonical = json.loads(line)
        return bool(equal), canonical

    def end(self) -> None:
        """Ends the process, where there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            script = Path(__file__).with_name("math_worker.py")
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(script)],
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        return self._process


@cache
def _worker() -> _Worker:
    worker = _Worker()
    atexit.register(worker.end)
    return worker
