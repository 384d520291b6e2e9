"""What a notebook's result depends on, as a key file that changes when, and only when, any of it does.

``make`` asks for every notebook's key each time, so this imports nothing but the standard library.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reasoning_features import paths, sources
from reasoning_features.checksums import directory_digest, file_digest
from reasoning_features.files import read_json, write_json

RECORD = "REASONING_FEATURES_RECORD"  # names the file that a run tells what it read and wrote
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
    last run read (models, autoencoders, artefacts, by content) and which of the files it wrote are gone.
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
    if not plan.file("record.json").is_file():
        return {"read": {}, "gone": []}
    record = read_json(plan.file("record.json"))
    gone = [name for name in record["written"] if not paths.resolve(name).exists()]
    return {"read": {name: _content(paths.resolve(name)) for name in record["read"]}, "gone": gone}


def write_key(plan: Plan, content: dict[str, Any]) -> bool:
    """Write the key as ``build/<run>/NN.key``, unless it is there already; says whether it changed."""
    return write_json(plan.file("key"), content)


def _content(path: Path) -> str | None:
    if path.is_dir():
        return directory_digest(path)
    return file_digest(path) if path.is_file() else None
