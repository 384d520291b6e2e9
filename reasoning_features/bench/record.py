"""What is written beside a table of speeds: when, on what, by which code and versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from reasoning_features import paths
from reasoning_features.files import file_digest
from reasoning_features.runs.provenance import digest, imported_files

PACKAGES = ("numpy", "sae-lens", "scipy", "torch", "transformer-lens", "transformers")


def _code() -> str:
    """Digest of these sources and of all that they import."""
    here = sorted(Path(__file__).parent.glob("*.py"))
    code = imported_files([file.read_text(encoding="utf-8") for file in here])
    code |= {paths.relative(file): file_digest(file) for file in here}
    return digest(f"{name} {sha}" for name, sha in sorted(code.items()))


_CODE = _code()  # as it was when it was loaded, not when minutes later something is written


def processor() -> str:
    """The processor's name, as the system tells it."""
    table = Path("/proc/cpuinfo")
    for line in table.read_text().splitlines() if table.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance(files: list[Path], caption: str, device: str) -> dict[str, Any]:
    """The record of some written files.

    Args:
        files: what was written.
        caption: what it shows.
        device: the name of what it ran on.
    """
    versions = {package: importlib.metadata.version(package).split("+")[0] for package in PACKAGES}
    return {
        "caption": caption,
        "date": datetime.date.today().isoformat(),
        "device": device,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | versions,
        "code_sha256": _CODE,
        "files": {file.name: file_digest(file) for file in files},
    }
