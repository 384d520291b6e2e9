"""Checksums: what a file was when it was made, and whether it still is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact

SHIPPED = "data/*/checksums.json"
"""Lists of shipped files, by what they belong to: path → SHA-256."""
MADE = "made_from.json"
"""Beside what a training here made: what from, and the digests of its files."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_digest(directory: Path) -> str:
    """SHA-256 over the names and digests of all files under a directory: pins what is in it."""
    lines = [f"{digest}  {name}\n" for name, digest in file_digests(directory).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """Name, relative to a directory, → SHA-256 of every file under it."""
    return {
        path.relative_to(directory).as_posix(): file_digest(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def damaged_files(directory: Path, expected: Mapping[str, str]) -> list[Path]:
    """The files under a directory that are missing, or not what they were."""
    paths_of = {directory / name: digest for name, digest in expected.items()}
    return [path for path, digest in paths_of.items() if not path.is_file() or file_digest(path) != digest]


def damaged_training(directory: Path) -> list[Path]:
    """The same of what a training here made, by the digests that it wrote; of anything else none."""
    try:
        told = json.loads((directory / MADE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        return [directory / MADE]
    return damaged_files(directory, told.get("files", {}))


def verify_shipped(directory: Path) -> None:
    """Compare the files under a shipped directory with the checksums that were committed with them.

    Directories that the list does not mention (a user's own model) pass unchecked.

    Raises:
        MissingArtefact: a listed file is not there.
        CorruptArtefact: a file is not what was shipped; the message names it.
    """
    for listing in sorted(paths.root().glob(SHIPPED)):
        told = paths.relative(listing)
        try:
            listed: dict[str, str] = json.loads(listing.read_text())
        except ValueError as error:
            raise CorruptArtefact(f"{told} is damaged: restore it with `git checkout -- {told}`.") from error
        for name, expected in listed.items():
            path = paths.root() / name
            if not path.resolve().is_relative_to(directory.resolve()):
                continue
            if not path.is_file():
                raise MissingArtefact(f"{name} is missing: restore it with `git checkout -- {name}`.")
            if file_digest(path) != expected:
                raise CorruptArtefact(
                    f"{name} is damaged (its checksum is not the one in {told}): "
                    f"restore it with `git checkout -- {name}`."
                )


def write_shipped(files: Iterable[Path], listing: Path) -> None:
    """List shipped files with their checksums, for :func:`verify_shipped`."""
    sums = {paths.relative(path): file_digest(path) for path in sorted(files)}
    listing.write_text(json.dumps(sums, indent=1) + "\n")
