"""Text, JSON and table files written whole or not at all, so that equal values give equal bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoning_features.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def write_text(path: Path, text: str) -> bool:
    """Write a text file with its newlines as they are; one that holds the text already is not touched.

    Returns
    -------
    bool
        Whether the file changed.
    """
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished(path)
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)
    return True


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as parquet, without its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished(path)
    frame.to_parquet(partial, index=False)
    partial.replace(path)


def unfinished(path: Path) -> Path:
    """Where a file is written until it is whole: hidden, beside its place, and this process' own."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def drop_unfinished(folder: Path) -> None:
    """Delete the files under a folder that processes left half written which are no more."""
    for path in list(folder.rglob(".*.partial")):
        if path.is_file() and not _alive(path.name.split(".")[-2]):
            path.unlink(missing_ok=True)


def write_between(path: Path, begin: str, end: str, text: str) -> bool:
    """Write a text between two lines that a file holds; says whether the file changed.

    Raises
    ------
    UserError
        If the lines are not there, each once.
    """
    held = path.read_text(encoding="utf-8")
    if held.count(begin) != 1 or held.count(end) != 1:
        raise UserError(f"{path.name} must hold the lines {begin!r} and {end!r} once: put them back.")
    before, _, rest = held.partition(begin)
    return write_text(path, f"{before}{begin}\n{text}{end}{rest.partition(end)[2]}")


def write_json(path: Path, value: Any) -> bool:
    """Write a value as JSON with sorted names; says whether the file changed."""
    return write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value that a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def _alive(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
