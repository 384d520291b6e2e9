"""What a notebook's result depends on, as a key file that changes when, and only when, any of it does.

``make`` asks for every notebook's key each time, so this imports nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reasoning_features import paths
from reasoning_features.bookkeeping import sources
from reasoning_features.checksums import directory_digest, file_digest
from reasoning_features.files import read_json, write_json

RECORD = "REASONING_FEATURES_RECORD"  # names the file that a run tells what it read and wrote
MANIFEST = "artefact.json"  # a stored artefact's own list of its files, with their digests
GONE, DAMAGED = "gone", "damaged"
CELL_LIMIT = "REASONING_FEATURES_CELL_LIMIT"  # the seconds that a cell may take, for what looks ahead


@dataclass(frozen=True)
class Plan:
    """One notebook to run: the overrides that it takes, and the run's name and settings that follow."""

    notebook: str
    run: str
    parameters: dict[str, Any]
    settings: dict[str, Any]

    @property
    def number(self) -> str:
        """The notebook's number, two digits."""
        return self.notebook[:2]

    def file(self, ending: str) -> Path:
        """The plan's file of a kind, as ``build/<run>/03.ipynb``."""
        return paths.RunPaths(self.run).build / f"{self.number}.{ending}"

    def save(self) -> Path:
        """Write the plan as ``build/<run>/NN.plan.json``."""
        write_json(self.file("plan.json"), asdict(self))
        return self.file("plan.json")

    @staticmethod
    def load(path: Path) -> Plan:
        """The plan that was saved."""
        return Plan(**read_json(path))


def key(plan: Plan) -> dict[str, Any]:
    """Digests of all that a plan's result depends on.

    The code cells, the package's sources that they import, parameters and settings, the lock; and what the
    last run read (models, autoencoders, artefacts, by content) and which of the files it wrote are gone or
    damaged.
    """
    return before(plan) | after(plan)


def before(plan: Plan) -> dict[str, Any]:
    """The part of the key that is known before the notebook has run."""
    cells = sources.code_cells(sources.notebook_path(plan.notebook))
    lock = paths.root() / "requirements.lock"
    return {
        "code_cells": sources.digest(cells),
        "package": sources.imported_sources(cells),
        "parameters": plan.parameters,
        "settings": plan.settings,
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest(),
    }


def after(plan: Plan) -> dict[str, Any]:
    """The part of the key that the last run's record tells."""
    record = _json(plan.file("record.json"))
    read = {name: _content(paths.resolve(name)) for name in record.get("read", {})}
    return {"read": read, "lost": lost(plan)}


def lost(plan: Plan) -> dict[str, str]:
    """What the last run wrote and is no longer as it was: file → gone or damaged.

    Figures, tables, the executed copy and the record itself; of an artefact every file that it lists.
    """
    path = plan.file("record.json")
    if path.is_file() and not _json(path):
        return {paths.relative(path): DAMAGED}
    found: dict[str, str] = {}
    for name, expected in _json(path).get("sha256", {}).items():
        found |= _compared(name, expected)
        if name.endswith(f"/{MANIFEST}") and name not in found:
            manifest = paths.resolve(name)
            for file, listed in read_json(manifest)["files"].items():
                found |= _compared(paths.relative(manifest.parent / file), listed)
    return found


def seal(plan: Plan, notes: Path, copy: Path) -> None:
    """Write ``build/<run>/NN.record.json``: a run's notes, with digests of what it wrote and of its copy."""
    told = _json(notes)
    written = {name: _content(paths.resolve(name)) for name in told.get("written", [])}
    written[paths.relative(plan.file("ipynb"))] = file_digest(copy)
    write_json(plan.file("record.json"), {"read": told.get("read", {}), "sha256": written})


def renew(plan: Plan) -> bool:
    """Write the key as it is now, naming what was lost on standard error; says whether it changed."""
    for name, how in lost(plan).items():
        print(f"{name} is {how}: {plan.notebook} runs again.", file=sys.stderr)
    return write_key(plan, key(plan))


def seal_rendering(plan: Plan, files: list[Path]) -> None:
    """Note the digests of a notebook's Markdown, which is first, and of its images."""
    sums = {paths.relative(file): file_digest(file) for file in files}
    write_json(plan.file("rendered.json"), {"page": paths.relative(files[0]), "files": sums})


def drop_damaged_rendering(plan: Plan) -> None:
    """Delete a notebook's Markdown where it or an image is not as it was rendered: make renders it again."""
    told = _json(plan.file("rendered.json"))
    for name, expected in told.get("files", {}).items():
        for file, how in _compared(name, expected).items():
            print(f"{file} is {how}: {plan.notebook} is rendered again.", file=sys.stderr)
            paths.resolve(told["page"]).unlink(missing_ok=True)


def write_key(plan: Plan, content: dict[str, Any]) -> bool:
    """Write the key as ``build/<run>/NN.key``, unless it is there already; says whether it changed."""
    return write_json(plan.file("key"), content)


def _compared(name: str, expected: str | None) -> dict[str, str]:
    """The file and what became of it; nothing where its digest is the expected one."""
    found = _content(paths.resolve(name))
    return {} if found == expected else {name: GONE if found is None else DAMAGED}


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file of make's own holds; nothing where it is not there or damaged."""
    try:
        held = read_json(path)
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _content(path: Path) -> str | None:
    if path.is_dir():
        return directory_digest(path)
    return file_digest(path) if path.is_file() else None
