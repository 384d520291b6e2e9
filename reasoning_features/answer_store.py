"""Finished answers on disk, one line each, written as they finish: none is ever made twice.

A file is of all that determines its answers together (model, hook point, condition, seed, limits, engine) and
named by its digest; the first line says what that is. An answer is found by its prompt and its random stream.
A line that an interruption left torn is passed over, and the answer is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class AnswerStore:
    """The finished answers of one condition; a context manager that holds the file open for more.

    Attributes:
        file: where they are.
    """

    def __init__(self, folder: Path, determined_by: Mapping[str, Any]) -> None:
        told = json.dumps(determined_by, sort_keys=True)
        self.file = folder / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.jsonl"
        self._first = told
        self._held = self._read()
        self._open: Any = None

    def get(self, prompt: Sequence[int], stream: int) -> list[int] | None:
        """The new tokens of an answer, or None where it is not there."""
        return self._held.get((_digest(prompt), stream))

    def add(self, prompt: Sequence[int], stream: int, tokens: Sequence[int]) -> None:
        """Writes one finished answer."""
        key = _digest(prompt)
        self._held[key, stream] = list(tokens)
        line = {"prompt": key, "stream": stream, "tokens": list(tokens)}
        self._open.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._open.flush()

    def __len__(self) -> int:
        return len(self._held)

    def __enter__(self) -> AnswerStore:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torn = self.file.is_file() and not self.file.read_bytes().endswith(b"\n")
        new = not self.file.is_file()
        self._open = self.file.open("a", encoding="utf-8")
        if new or torn:
            self._open.write(f"{self._first}\n" if new else "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._open.close()
        self._open = None

    def _read(self) -> dict[tuple[str, int], list[int]]:
        held: dict[tuple[str, int], list[int]] = {}
        if self.file.is_file():
            with self.file.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        row = json.loads(line)
                        held[row["prompt"], row["stream"]] = row["tokens"]
        return held


def _digest(prompt: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest()[:16]
