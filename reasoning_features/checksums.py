"""Checksums: what a file was when it was made, and whether it still is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact

SHIPPED = "data/organism/checksums.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_digest(directory: Path) -> str:
    """SHA-256 over the names and digests of all files under a directory: pins what is in it."""
    lines = [
        f"{file_digest(path)}  {path.relative_to(directory).as_posix()}\n"
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify_shipped(directory: Path) -> None:
    """Compare the files under a shipped directory with the checksums that were committed with them.

    Directories that the list does not mention (a user's own model) pass unchecked.

    Raises:
        MissingArtefact: a listed file is not there.
        CorruptArtefact: a file is not what was shipped; the message names it.
    """
    listing = paths.root() / SHIPPED
    if not listing.is_file():
        return
    for name, expected in json.loads(listing.read_text()).items():
        path = paths.root() / name
        if not path.resolve().is_relative_to(directory.resolve()):
            continue
        if not path.is_file():
            raise MissingArtefact(f"{name} is missing: restore it with `git checkout -- {name}`.")
        if file_digest(path) != expected:
            raise CorruptArtefact(
                f"{name} is damaged (its checksum is not the one in {SHIPPED}): "
                f"restore it with `git checkout -- {name}`."
            )
