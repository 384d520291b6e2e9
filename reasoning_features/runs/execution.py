"""Makes one notebook: checks what was asked for, runs it if anything that it depends on changed, renders it.

``make nb-03 PARAMS=alpha=0.3`` calls ``python -m reasoning_features.runs.execution 03`` and so on.
"""

import argparse
import ast
import fcntl
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import file_digest, read_json, write_json
from reasoning_features.runs import provenance
from reasoning_features.runs.preflight import check, tell
from reasoning_features.runs.provenance import RECORD, code_cells, content, imported_files, stored_manifest
from reasoning_features.settings import Settings, load_settings, read_overrides

USER_ERRORS = frozenset({"UserError", "MissingArtefact", "CorruptArtefact"})
KERNEL = "python3"


def _is_there(folder: str | None, content: str) -> bool:
    return folder is not None and (paths.resolve(folder) / content).exists()


# notebooks that some profiles cannot run, what they need, and whether a profile has it
NEEDS: tuple[tuple[tuple[str, ...], str, Callable[[Settings], bool]], ...] = (
    (("05", "13"), "problems with known answers", lambda s: s.corpus == "organism" or bool(s.problems)),
    (("13",), "a model that solves problems (full: true)", lambda s: s.full),
    (("07", "08", "12"), "text whose decisions are known", lambda s: s.corpus == "organism"),
    (("09",), "models that refuse, and what steering does to them", lambda s: s.steering_safety is not None),
    (
        ("10",),
        "a study of what pruning does to it (make activation-sparsity)",
        lambda s: _is_there(s.activation_sparsity, "."),
    ),
    (
        ("11",),
        "persons, and a study of forgetting them (make unlearning)",
        lambda s: _is_there(s.unlearning, "study.json"),
    ),
    (("14",), "stages of model diffing", lambda s: s.has_stages),
    (("07", "08"), "dictionaries, trained and frozen (sae_checks)", lambda s: s.sae_checks is not None),
)


@dataclass(frozen=True)
class Plan:
    """A notebook to make under some settings; ``build/<run>/NN.stamp.json`` says what was made from what."""

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
        return stored_manifest(self.file("stamp.json")) or {}

    def key(self) -> dict[str, dict[str, Any]]:
        """All that the result may depend on: code, settings, inputs by their content, the interpreter."""
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
        stamp = self.stamp
        if not stamp:
            return "nothing of it is made yet"
        for part, now in self.key().items():
            before = stamp["key"].get(part, {})
            if part == "inputs":  # of which a notebook depends on those alone that it asked for
                now = {name: now.get(name, {}) for name in before}
            for name in sorted({*before, *now}):
                if before.get(name) != now.get(name):
                    return f"its {part} changed ({name})"
        for place, pin in stamp["read"].items():
            if content(place) != pin:
                return f"{place} changed"
        return next((f"{name} is gone or damaged" for name in _damaged(stamp["written"])), "")

    def parameters(self) -> dict[str, Any]:
        """What papermill puts after the parameters cell: profile, settings there that differ, others."""
        values, cell = self.settings.model_dump(mode="json"), defaults(self.notebook)
        own = {name for name in cell if name in values and name != "profile"}
        found = {name: values[name] for name in cell if name in own and values[name] != cell[name]}
        changes = {name: values[name] for name in self.changes if name not in found}
        profile = {"profile": self.profile} if self.profile != cell["profile"] else {}
        return profile | found | ({"changes": changes} if changes else {})


def defaults(notebook: Path) -> dict[str, Any]:
    """Parameter → value in the cell with the tag ``parameters``, whose lines read ``name: type = value``."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    lines = [node for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(line.target): ast.literal_eval(line.value) for line in lines if line.value}


def plan(number: str, profile: str, parameters: str = "", device: str = "", needed: bool = False) -> Plan:
    """What to make of notebook ``number``, every name and type of ``parameters`` (``alpha=0.3``) checked.

    Where it is only ``needed`` for another notebook, what its stored artefacts do not depend on is left out.
    """
    notebook = provenance.notebook_path(number)
    changes = read_overrides(parameters) | ({"device": device} if device else {})
    settings = load_settings(profile, **changes)
    if needed:
        stored = [stored_manifest(path) for path in provenance.manifests(settings)]
        mine = [set(each["determined_by"]) for each in stored if each and each["notebook"] == notebook.stem]
        if mine:
            used = set.union({"device"}, *mine)
            changes = {name: value for name, value in changes.items() if name in used}
            settings = load_settings(profile, **changes)
    return Plan(notebook, settings, profile, changes)


def make(plan: Plan, cell_limit: int | None = None) -> None:
    """Run the notebook if anything changed, and render it if its text or its run did."""
    from reasoning_features.runs.rendering import render

    plan.file("lock").parent.mkdir(parents=True, exist_ok=True)
    with plan.file("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits until no other make is at work on it
        if why := plan.outdated():
            print(f"{plan.notebook.stem} runs as {plan.settings.run}: {why}.", flush=True)
            run(plan, cell_limit)
        stamp = plan.stamp
        if stamp.get("page") != file_digest(plan.notebook) or _damaged(stamp["rendered"]):
            print(f"{plan.notebook.stem} is rendered.", flush=True)
            pages = render(plan.notebook, plan.file("ipynb"), paths.RunPaths(plan.settings.run).figures)
            rendered = {"page": file_digest(plan.notebook), "rendered": _digests(pages)}
            write_json(plan.file("stamp.json"), stamp | rendered)


def run(plan: Plan, cell_limit: int | None = None) -> None:
    """Execute a notebook by papermill, a cell in at most so many seconds; keeps ``build/<run>/NN.ipynb``, or
    ``NN.failed.ipynb``. UserError: a cell failed or took too long, or :func:`check` refuses the profile.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    check(plan.settings)
    key, name = plan.key(), plan.notebook.stem
    endings = ("running.ipynb", "failed.ipynb", "running.json")
    partial, failed, notes = (plan.file(ending) for ending in endings)
    for stale in (plan.file("stamp.json"), failed, partial, notes):
        stale.unlink(missing_ok=True)
    _pin_kernel(notes)
    how = {"parameters": plan.parameters(), "kernel_name": KERNEL, "execution_timeout": cell_limit}
    how |= {"cwd": str(plan.notebook.parent), "progress_bar": sys.stderr.isatty()}  # where JupyterLab runs it
    try:
        papermill.execute_notebook(str(plan.notebook), str(partial), **how)
    except papermill.PapermillExecutionError as error:
        partial.replace(failed)
        if error.ename in USER_ERRORS:
            raise UserError(error.evalue) from error
        what = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise UserError(f"{name} failed ({what}): see {paths.relative(failed)}.") from error
    except CellTimeoutError as error:
        limit = f"{cell_limit} seconds: give CELL_LIMIT= to make."
        raise UserError(f"A cell of {name} took more than {limit}") from error
    except DeadKernelError as error:
        raise UserError(f"The kernel of {name} died: is there enough memory?") from error
    noted = read_json(notes) if notes.is_file() else {"inputs": [], "read": {}, "written": []}
    notes.unlink(missing_ok=True)
    partial.replace(plan.file("ipynb"))
    # what was there before the run counts as it was then; what the run fetched or trained, as it is now
    before, now = key["inputs"], provenance.inputs(plan.settings)
    key["inputs"] = {name: now.get(name, {}) | before.get(name, {}) for name in noted["inputs"]}
    made = [*(paths.resolve(name) for name in noted["written"]), plan.file("ipynb")]
    stamp = {"key": key, "read": noted["read"], "written": _digests(made), "rendered": {}}
    write_json(plan.file("stamp.json"), stamp)


def _pin_kernel(notes: Path) -> None:
    """Have kernels run in this very interpreter, see this package first, read no user's startup files."""
    home = paths.root() / "build" / "jupyter"
    # a kernel that is asked to end logs an error
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
    kernel = {"argv": argv, "display_name": "Python 3", "language": "python"}
    write_json(home / "kernels" / KERNEL / "kernel.json", kernel)
    path = os.pathsep.join(filter(None, [str(paths.root()), os.environ.get("PYTHONPATH")]))
    os.environ |= {"JUPYTER_PATH": str(home), "IPYTHONDIR": str(home / "ipython")}
    os.environ |= {RECORD: str(notes), "PYTHONPATH": path}


def _digests(files: list[Path]) -> dict[str, str | None]:
    return {paths.relative(file): content(paths.relative(file)) for file in files}


def _damaged(expected: dict[str, str]) -> list[str]:
    return [name for name, pin in expected.items() if content(name) != pin]


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives 1 when a comparison differs, 2 when something cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m reasoning_features.runs.execution")
    parser.add_argument("goal", help="a notebook's number, or: plan, verify")
    parser.add_argument("--profile", default="organism")
    for name in ("--parameters", "--device", "--engine"):
        parser.add_argument(name, default="")
    parser.add_argument("--cell-limit", type=int)
    parser.add_argument("--asked", default="by name", choices=("by name", "in all", "for another notebook"))
    try:
        return _do(parser.parse_args(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _do(asked: argparse.Namespace) -> int:
    if asked.goal == "plan":
        tell(load_settings(asked.profile))
        return 0
    if asked.goal == "verify":
        from reasoning_features.runs.verification import verify

        return verify(asked.profile)
    if asked.engine not in ("", "ray"):
        raise UserError(f"There is no engine {asked.engine!r}: leave ENGINE out, or give ENGINE=ray.")
    if asked.engine and importlib.util.find_spec("ray") is None:
        raise UserError("ENGINE=ray needs Ray: `pip install 'ray>=2.40,<3'`, or leave ENGINE out.")
    needed = asked.asked == "for another notebook"
    planned = plan(asked.goal, asked.profile, asked.parameters, asked.device, needed)
    for numbers, what, has in NEEDS:
        if asked.goal in numbers and not has(planned.settings):
            lacks = f"{planned.notebook.stem} needs {what}"
            if asked.asked == "by name":
                raise UserError(f"{lacks}: make that, or give PROFILE=organism, which ships it.")
            print(f"{lacks}: it is left out.")
            return 0
    make(planned, asked.cell_limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
