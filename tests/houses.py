"""Repositories of their own for the tests of the house, run by make as a user would, and interrupted."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from reasoning_features import paths
from reasoning_features.reporting import claims

EXECUTED = re.compile(r"execution run .*/(\d\d)\.plan\.json")


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


def environment() -> dict[str, str]:
    """This process' environment, without what a make above it left."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def make(folder: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run make to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a make that succeeded did, as 'run 01' and 'render 01'."""
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    return [f"{w[3]} {w[-1].split('/')[-1][:2]}" if len(w) > 4 else w[3] for w in words]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its name there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Interrupted:
    """A make that is started, and interrupted at some moment.

    Attributes:
        process: make.
        log: what it printed.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "build" / "interrupted.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command(*arguments),
                cwd=folder,
                env=environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def executed(self) -> list[str]:
        """The numbers of the notebooks whose execution began."""
        return EXECUTED.findall(self.log.read_text())

    def wait(self, reached: Callable[[], bool], limit: float = 120) -> None:
        """Until something is so, or make has ended."""
        until = time.monotonic() + limit
        while not reached() and self.process.poll() is None:
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def descendants(self) -> list[psutil.Process]:
        """All that make started, kernels in sessions of their own among them."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill_all(self) -> None:
        """SIGKILL to make and all that it started, at once."""
        everyone = self.descendants()
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in everyone + self.descendants():
            if process.is_running():
                process.kill()
        self.process.wait()
        psutil.wait_procs(everyone, 10)

    def end(self, how: str) -> list[psutil.Process]:
        """End it in one of the ways of :data:`WAYS`; gives what is still alive when make is not."""
        everyone = self.descendants()
        if how == "all killed":
            self.kill_all()
        elif how == "make killed":
            self.process.kill()
        elif how == "make terminated":
            self.process.terminate()
        else:  # what a terminal does at Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(30)
        return psutil.wait_procs(everyone, 15)[1]


WAYS = ("all killed", "make killed", "make terminated", "interrupted")
"""How a make is ended: all processes by SIGKILL, make alone by SIGKILL or SIGTERM, its group by SIGINT."""
