"""Makes one notebook: checks what was asked for, runs it if anything that it depends on changed, renders it.

``make nb-03 PARAMS=alpha=0.3`` calls ``python -m reasoning_features.runs.execution 03`` and so on.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import drop_unfinished, file_digest, read_json, write_json
from reasoning_features.runs import provenance
from reasoning_features.runs.provenance import RECORD, code_cells, content, imported_files, notebook_path
from reasoning_features.settings import Settings, load_settings, read_overrides

USER_ERRORS = frozenset({"UserError", "MissingArtefact", "CorruptArtefact"})
KERNEL = "python3"
NEEDS_PROBLEMS = ("05", "13")  # notebooks that steer a model while it answers
NEEDS_FULL = ("13",)  # notebooks of many answers, which make no sense of a model that solves no problem
NEEDS_DECISIONS = ("07", "08", "12")  # notebooks about decisions, known in the organism's text alone
NEEDS_STAGES = ("14",)  # notebooks about the stages of model diffing
NEEDS_BASELINES = ("07", "08")  # notebooks about dictionaries that `make sanity` trained


class RunFailed(UserError):
    """A notebook failed; the message says where, and what it said."""


@dataclass(frozen=True)
class Plan:
    """A notebook to make under some settings; what it makes is told in ``build/<run>/NN.stamp.json``."""

    notebook: Path
    settings: Settings
    profile: str  # as it was asked for: a name, or a file's path
    changes: dict[str, Any]  # what differs from it

    def file(self, ending: str) -> Path:
        """A file of the notebook in the run's folder, such as ``build/<run>/03.ipynb``."""
        return paths.RunPaths(self.settings.run).build / f"{self.notebook.name[:2]}.{ending}"

    @property
    def stamp(self) -> dict[str, Any]:
        """What the last run depended on and made; nothing where it did not end well."""
        try:
            return dict(read_json(self.file("stamp.json")))
        except (OSError, ValueError):
            return {}

    def key(self) -> dict[str, dict[str, Any]]:
        """All that the result depends on: code, settings, inputs by their content, the interpreter."""
        cells = code_cells(self.notebook)
        return {
            "code cells": {str(place): cell for place, cell in enumerate(cells)},
            "package": imported_files(cells),
            "settings": self.settings.model_dump(mode="json"),
            "inputs": provenance.inputs(self.settings),
            "environment": provenance.versions() | {"interpreter": sys.executable},
        }

    def outdated(self) -> str:
        """Why the notebook must run, in words; empty where all is as it would be made now."""
        held = self.stamp
        if not held:
            return "nothing of it is made yet"
        for part, now in self.key().items():
            if first := _first_difference(held["key"].get(part, {}), now):
                return f"its {part} changed ({first})"
        for place, told in held["read"].items():
            if content(place) != told:
                return f"{place} changed"
        return next((f"{name} is gone or damaged" for name in _damaged(held["written"])), "")

    def parameters(self) -> dict[str, Any]:
        """What papermill puts after the parameters cell: profile, knobs that differ, other changes."""
        values, cell = self.settings.model_dump(mode="json"), defaults(self.notebook)
        knobs = {name for name in cell if name in values and name != "profile"}
        found = {name: values[name] for name in cell if name in knobs and values[name] != cell[name]}
        changes = {name: values[name] for name in self.changes if name not in found}
        if changes and "changes" not in cell:  # a cell of the older form
            raise UserError(f"{self.notebook.stem} has no parameter {next(iter(changes))!r}.")
        profile = {"profile": self.profile} if self.profile != cell["profile"] else {}
        return profile | found | ({"changes": changes} if changes else {})


def defaults(notebook: Path) -> dict[str, Any]:
    """Parameter → value in the cell with the tag ``parameters``, whose lines read ``name: type = value``."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    lines = [node for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(line.target): ast.literal_eval(line.value) for line in lines if line.value}


def plan(number: str, profile: str, parameters: str = "", device: str = "", needed: bool = False) -> Plan:
    """What to make of a notebook, every name and type checked.

    Args:
        number: the notebook's, two digits.
        profile: a profile's name or the path of its file.
        parameters: settings that differ, as ``alpha=0.3 window='[1,2]'``.
        device: where the model runs; empty for the profile's own.
        needed: the notebook is made for another: what its stored artefacts do not depend on is left out.

    Raises:
        UserError: a notebook, the profile or a setting is not there, or a value is of another type.
    """
    notebook = notebook_path(number)
    changes = read_overrides(parameters) | ({"device": device} if device else {})
    settings = load_settings(profile, **changes)
    if needed:
        stored = [provenance.stored_manifest(path) for path in provenance.manifests(settings)]
        mine = [set(each["determined_by"]) for each in stored if each and each["notebook"] == notebook.stem]
        if mine:
            used = set.union({"device"}, *mine)
            changes = {name: value for name, value in changes.items() if name in used}
            settings = load_settings(profile, **changes)
    return Plan(notebook, settings, profile, changes)


def make(plan: Plan, cell_limit: int | None = None) -> None:
    """Run the notebook if anything changed, and render it if its text or its run did."""
    from reasoning_features.runs.rendering import render

    with _alone(plan.file("lock")):
        if why := plan.outdated():
            print(f"{plan.notebook.stem} runs as {plan.settings.run}: {why}.", flush=True)
            run(plan, cell_limit)
        held = plan.stamp
        if held.get("page") != file_digest(plan.notebook) or _damaged(held["rendered"]):
            print(f"{plan.notebook.stem} is rendered.", flush=True)
            rendered = render(plan.notebook, plan.file("ipynb"), paths.RunPaths(plan.settings.run).figures)
            told = {"page": file_digest(plan.notebook), "rendered": _digests(rendered)}
            write_json(plan.file("stamp.json"), held | told)


def run(plan: Plan, cell_limit: int | None = None) -> None:
    """Execute a notebook by papermill; its executed copy is ``build/<run>/NN.ipynb``.

    Args:
        plan: from :func:`plan`.
        cell_limit: seconds that one cell may take; None: any time.

    Raises:
        RunFailed: a cell failed or took too long; the copy is kept as ``NN.failed.ipynb``.
        UserError: what the profile names is out of reach, or does not fit; nothing has run.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    from reasoning_features.runs.preflight import check

    check(plan.settings)
    key, started = plan.key(), time.monotonic()
    partial, failed, notes = (
        plan.file(ending) for ending in ("running.ipynb", "failed.ipynb", "running.json")
    )
    for stale in (plan.file("stamp.json"), failed, partial, notes):
        stale.unlink(missing_ok=True)
    drop_unfinished(paths.RunPaths(plan.settings.run).figures)
    _pin_kernel(notes)
    try:
        papermill.execute_notebook(
            str(plan.notebook),
            str(partial),
            cwd=str(plan.notebook.parent),  # where JupyterLab runs it
            parameters=plan.parameters(),
            kernel_name=KERNEL,
            execution_timeout=cell_limit,
            progress_bar=sys.stderr.isatty(),
        )
    except papermill.PapermillExecutionError as error:
        partial.replace(failed)
        if error.ename in USER_ERRORS:
            raise RunFailed(error.evalue) from error
        said = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise RunFailed(f"{plan.notebook.stem} failed ({said}): see {paths.relative(failed)}.") from error
    except CellTimeoutError as error:
        raise RunFailed(
            f"A cell of {plan.notebook.stem} took more than {cell_limit} seconds: give CELL_LIMIT= to make."
        ) from error
    except DeadKernelError as error:
        raise RunFailed(f"The kernel of {plan.notebook.stem} died: is there enough memory?") from error
    told = read_json(notes) if notes.is_file() else {"read": {}, "written": []}
    notes.unlink(missing_ok=True)
    partial.replace(plan.file("ipynb"))
    # what was there before the run counts as it was then; what the run fetched or trained, as it is now
    before, now = key["inputs"], provenance.inputs(plan.settings)
    key["inputs"] = {name: now[name] | before.get(name, {}) for name in now}
    cost = {
        "seconds": round(time.monotonic() - started, 1),
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    made = [*(paths.resolve(name) for name in told["written"]), plan.file("ipynb")]
    stamp = {"key": key, "read": told["read"], "written": _digests(made), "cost": cost, "rendered": {}}
    write_json(plan.file("stamp.json"), stamp)


def _pin_kernel(notes: Path) -> None:
    """Have kernels run in this very interpreter, see this package first, read no user's startup files."""
    home = paths.root() / "build" / "jupyter"
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    write_json(
        home / "kernels" / KERNEL / "kernel.json",
        {"argv": argv, "display_name": "Python 3", "language": "python"},
    )
    path = os.pathsep.join(filter(None, [str(paths.root()), os.environ.get("PYTHONPATH")]))
    os.environ |= {"JUPYTER_PATH": str(home), "IPYTHONDIR": str(home / "ipython")}
    os.environ |= {RECORD: str(notes), "PYTHONPATH": path}


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other make is at work on the same notebook of the same run."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _digests(files: list[Path]) -> dict[str, str | None]:
    return {paths.relative(file): content(paths.relative(file)) for file in files}


def _damaged(expected: dict[str, str]) -> list[str]:
    return [name for name, told in expected.items() if content(name) != told]


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first name whose value is not the same in both; empty where there is none."""
    return next((name for name in sorted({*before, *now}) if before.get(name) != now.get(name)), "")


def _known_engine(engine: str) -> None:
    if engine not in ("", "ray"):
        raise UserError(f"There is no engine {engine!r}: leave ENGINE out, or give ENGINE=ray.")
    if engine and importlib.util.find_spec("ray") is None:
        raise UserError("ENGINE=ray needs Ray: `pip install 'ray>=2.40,<3'`, or leave ENGINE out.")


def _lacks(number: str, settings: Settings) -> str | None:
    """What a notebook needs and the profile does not have; None where it has all."""
    if number in NEEDS_PROBLEMS and settings.corpus != "organism" and not settings.problems:
        return "problems with known answers"
    if number in NEEDS_FULL and not settings.full:
        return "a model that solves problems (full: true)"
    if number in NEEDS_DECISIONS and settings.corpus != "organism":
        return "text whose decisions are known"
    if number in NEEDS_STAGES and not settings.has_stages:
        return "stages of model diffing"
    if number in NEEDS_BASELINES and settings.foundations is None:
        return "dictionaries, trained and frozen (foundations)"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Make a notebook by its number; or ``plan`` a profile, or ``verify`` it.

    Returns 0; 1 when a run failed or a comparison differs; 2 when what was asked for cannot be done; 130 when
    interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m reasoning_features.runs.execution")
    parser.add_argument("goal", help="a notebook's number, or: plan, verify")
    parser.add_argument("--profile", default="organism")
    parser.add_argument("--parameters", default="")
    parser.add_argument("--device", default="")
    parser.add_argument("--engine", default="")
    parser.add_argument("--cell-limit", type=int)
    parser.add_argument("--asked", default="by name", choices=("by name", "in all", "for another notebook"))
    asked = parser.parse_args(arguments)
    try:
        if asked.goal == "plan":
            from reasoning_features.runs.preflight import tell

            tell(load_settings(asked.profile))
        elif asked.goal == "verify":
            from reasoning_features.runs.verification import verify

            return verify(asked.profile)
        else:
            _known_engine(asked.engine)
            needed = asked.asked == "for another notebook"
            planned = plan(asked.goal, asked.profile, asked.parameters, asked.device, needed)
            if lacks := _lacks(asked.goal, planned.settings):
                told = f"{planned.notebook.stem} needs {lacks}, as the organism's"
                if asked.asked == "by name":
                    raise UserError(f"{told}: give PROFILE=organism.")
                print(f"{told}: it is left out.")
                return 0
            make(planned, asked.cell_limit)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
