"""Repositories of their own for the tests of the house, run by make as a user would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from reasoning_features import paths
from reasoning_features.reporting import claims

SAID = re.compile(r"^(\d\d)_\w+ (runs|is rendered)", re.MULTILINE)


def build_house(folder: Path) -> Path:
    """A repository with the package and the Makefile, and no notebooks yet."""
    shutil.copytree(paths.root() / "reasoning_features", folder / "reasoning_features")
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".gitignore"):
        shutil.copy(paths.root() / name, folder)
    (folder / "README.md").write_text(f"{claims.BEGIN}\n{claims.END}\n")
    (folder / "build").mkdir()
    (folder / "build" / "ready").touch()
    return folder


def command(*arguments: str) -> list[str]:
    """Make with this environment, which it takes for set up: nothing is installed from another folder."""
    return ["make", "--no-print-directory", f"VENV={sys.prefix}", "STAMP=build/ready", *arguments]


def environment(**more: str) -> dict[str, str]:
    """This process' environment, without what a make above it left."""
    return {n: value for n, value in os.environ.items() if not n.startswith(("MAKE", "MFLAGS"))} | more


def make(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run make to its end."""
    options = {"cwd": folder, "env": environment(**more), "capture_output": True, "text": True}
    return subprocess.run(command(*arguments), timeout=900, **options)


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a make that succeeded did, as 'run 01' and 'render 01'."""
    assert done.returncode == 0, done.stderr
    return [f"{'run' if did == 'runs' else 'render'} {number}" for number, did in SAID.findall(done.stdout)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its name there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
