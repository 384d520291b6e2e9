"""Files: written whole or not at all, equal values as equal bytes; and checksums, which tell damage."""

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError


def write_text(path: Path, text: str) -> None:
    """Write a text file, newlines as they are, unless it holds the text already."""
    if path.is_file() and path.read_bytes() == text.encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished(path)
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)


def write_table(path: Path, frame: Any) -> None:
    """Write a pandas table as parquet, without its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished(path)
    frame.to_parquet(partial, index=False)
    partial.replace(path)


def unfinished(path: Path) -> Path:
    """Where a file is written until it is whole: hidden, beside its place, and this process' own."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Write a text between two lines that a file must hold once each."""
    before = path.read_text(encoding="utf-8")
    if before.count(begin) != 1 or before.count(end) != 1:
        raise UserError(f"{path.name} must hold the lines {begin!r} and {end!r} once: put them back.")
    head, rest = before.split(begin)
    write_text(path, f"{head}{begin}\n{text}{end}{rest.split(end)[1]}")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON with sorted names."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value that a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


# --- checksums: what a file was when it was made, and whether it still is -----------------------------------

SHIPPED = "data/*/checksums.json"  # lists of shipped files, by what they belong to: path → SHA-256
MADE = "made_from.json"  # beside what a training here made: what from, and the digests of its files
SETTLED = 2e9  # nanoseconds after which a file that is written again surely bears another time


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a process reads it once, and again when it has changed."""
    state = path.stat()
    version = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if time.time_ns() - state.st_ctime_ns < SETTLED:
        return _sha256.__wrapped__(path, version)
    return _sha256(path, version)


@functools.cache
def _sha256(path: Path, version: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_digest(directory: Path) -> str:
    """SHA-256 over the names and digests of all files under a directory: pins what is in it."""
    lines = [f"{digest}  {name}\n" for name, digest in file_digests(directory).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """Name, relative to a directory, → SHA-256 of every file under it."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in files}


def damaged_files(directory: Path, expected: Mapping[str, str]) -> list[Path]:
    """The files under a directory that are missing, or not what they were."""
    digests = {directory / name: digest for name, digest in expected.items()}
    return [path for path, digest in digests.items() if not path.is_file() or file_digest(path) != digest]


def damaged_training(directory: Path) -> list[Path]:
    """The same of what a training here made, by the digests that it wrote; of anything else none."""
    if not (made := directory / MADE).is_file():
        return []
    try:
        return damaged_files(directory, read_json(made).get("files", {}))
    except (ValueError, AttributeError):
        return [made]


def verify_shipped(directory: Path) -> None:
    """Compare the files under a directory with the checksums that were committed with them.

    Directories that no list mentions (a user's own model) pass unchecked. Raises MissingArtefact or
    CorruptArtefact, which name the file.
    """
    for listing in sorted(paths.root().glob(SHIPPED)):
        its_name, restore = paths.relative(listing), "restore it with `git checkout -- {}`."
        try:
            listed: dict[str, str] = read_json(listing)
        except ValueError as error:
            raise CorruptArtefact(f"{its_name} is damaged: {restore.format(its_name)}") from error
        home = directory.resolve()
        inside = {n: sha for n, sha in listed.items() if paths.resolve(n).resolve().is_relative_to(home)}
        for path in damaged_files(paths.root(), inside):
            name = paths.relative(path)
            if not path.is_file():
                raise MissingArtefact(f"{name} is missing: {restore.format(name)}")
            why = f"its checksum is not the one in {its_name}"
            raise CorruptArtefact(f"{name} is damaged ({why}): {restore.format(name)}")


def write_shipped(files: Iterable[Path], listing: Path) -> None:
    """List shipped files with their checksums, for :func:`verify_shipped`."""
    sums = {paths.relative(path): file_digest(path) for path in sorted(files)}
    listing.write_text(json.dumps(sums, indent=1) + "\n")
