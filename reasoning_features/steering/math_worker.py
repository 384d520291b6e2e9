"""Compares formulas for :mod:`reasoning_features.steering.grading`, in a process that may be ended at any
time.

Reads one JSON line at a time, ``[truth, answer]`` in LaTeX, and writes one, ``[equal, canonical]``: the
answer as a string that equal answers share (null: not a formula). LaTeX is read by a grammar (math-verify)
and never evaluated as code. Imports nothing of this package, so that it starts alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from fractions import Fraction
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

MEMORY = 4 << 30
"""Bytes of address space: a power of powers must not take the machine's memory."""


def compare(truth: str, answer: str) -> tuple[bool, str | None]:
    """Whether two formulas are equal, and the answer's canonical form."""
    found, known = _parsed(answer), _parsed(truth)
    if not found:
        return False, None
    equal = bool(known) and bool(verify(known, found, timeout_seconds=3))
    return equal, _canonical(found[0])


def _parsed(latex: str) -> list[Any]:
    """What a formula says, as SymPy's objects; nothing where it cannot be read."""
    given = parse(
        f"\\boxed{{{latex}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=3,
    )
    return [each for each in given if not isinstance(each, str)]


def _canonical(found: Any) -> str:
    """One string for formulas that simplify to the same; numbers that are fractions become so."""
    with contextlib.suppress(Exception):
        found = found.doit()
        if getattr(found, "is_Number", False):
            return str(Fraction(str(found)))
        found = found.simplify()
    return str(found)


def _limit_memory() -> None:
    """Limits the process' memory, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """Answers lines until there are no more."""
    _limit_memory()
    logging.disable(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not mix with the answers
    for line in sys.stdin:
        try:
            given = compare(*json.loads(line))
        except (Exception, MemoryError, RecursionError):
            given = (False, None)
        out.write(json.dumps(given) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
