"""Finished answers on disk, one line each, written as they finish: none is ever made twice.

A folder is of all that determines its answers together (model, hook point, condition, seed, limits, engine)
and named by its digest; every process writes a file of its own in it and reads all of them, and the first
line says what determines them. An answer is found by its prompt and its random stream. A line that an
interruption left torn, or that is not what its checksum says, is passed over, and the answer is made anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from reasoning_features import paths


class AnswerStore:
    """The finished answers of one condition; a context manager that holds a file open for more.

    Attributes:
        folder: where they are.
    """

    def __init__(self, folder: Path, determined_by: Mapping[str, Any]) -> None:
        told = json.dumps(determined_by, sort_keys=True)
        self.folder = folder / hashlib.sha256(told.encode()).hexdigest()[:24]
        self._first = told
        self._held: dict[tuple[str, int], list[int]] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            self._held |= _read(file)
        self._open: Any = None

    def get(self, prompt: Sequence[int], stream: int) -> list[int] | None:
        """The new tokens of an answer, or None where it is not there."""
        return self._held.get((_digest(prompt), stream))

    def add(self, prompt: Sequence[int], stream: int, tokens: Sequence[int]) -> None:
        """Writes one finished answer."""
        key = _digest(prompt)
        self._held[key, stream] = list(tokens)
        line = {"prompt": key, "stream": stream, "tokens": list(tokens), "sum": _sum(key, stream, tokens)}
        self._open.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._open.flush()

    def __len__(self) -> int:
        return len(self._held)

    def __enter__(self) -> AnswerStore:
        self.folder.mkdir(parents=True, exist_ok=True)
        # two machines may have a process of one number
        file = self.folder / f"{platform.node()}-{os.getpid()}.jsonl"
        whole = not file.is_file() or file.read_bytes().endswith(b"\n")
        new = not file.is_file()
        self._open = file.open("a", encoding="utf-8")
        if new or not whole:
            self._open.write(f"{self._first}\n" if new else "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._open.close()
        self._open = None


def _read(file: Path) -> dict[tuple[str, int], list[int]]:
    """The answers of one file; damaged lines are counted and named."""
    held: dict[tuple[str, int], list[int]] = {}
    damaged = 0
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in itertools.islice(lines, 1, None):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt, stream, tokens = row["prompt"], row["stream"], row["tokens"]
                if row["sum"] != _sum(prompt, stream, tokens):
                    raise ValueError(line)
                held[prompt, stream] = tokens
            except (ValueError, KeyError, TypeError):
                damaged += 1
    if damaged:
        said = f"{paths.relative(file)}: {damaged} of its answers are damaged and are made again."
        print(said, file=sys.stderr)
    return held


def _sum(prompt: str, stream: int, tokens: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps([prompt, stream, list(tokens)]).encode()).hexdigest()[:16]


def _digest(prompt: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest()[:16]
