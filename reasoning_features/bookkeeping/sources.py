"""What a notebook is made of: its code cells and the package sources that they import, directly or not.

Reads source as text and imports nothing heavy, so that ``make`` can ask in no time whether to rerun.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from reasoning_features import paths
from reasoning_features.errors import UserError

PACKAGE = "reasoning_features"


def notebook_path(notebook: str) -> Path:
    """The notebook's file, from its name (``03_reason_score``); UserError if there is none."""
    path = paths.root() / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        raise UserError(f"There is no notebook {paths.relative(path)}: give the name of one that is there.")
    return path


def code_cells(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells, in order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def digest(texts: Iterable[str]) -> str:
    """SHA-256 over texts, with their borders."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def imported_sources(code: Iterable[str], package: Path | None = None) -> dict[str, str]:
    """SHA-256 of each source file of the package that code imports, directly or through others.

    Parameters
    ----------
    code
        Python sources; lines that start with ``%`` or ``!`` (a notebook's own commands) are ignored.
    package
        The package's folder, by default this one's.

    Returns
    -------
    dict
        From the file, relative to the package's parent, to its digest; sorted.
    """
    folder = package or paths.root() / PACKAGE
    found: dict[Path, str] = {}
    waiting = [path for text in code for path in _imports(text, folder, folder)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        text = path.read_text(encoding="utf-8")
        found[path] = hashlib.sha256(text.encode()).hexdigest()
        if path.suffix == ".py":
            waiting.extend(_imports(text, folder, path.parent))
    return {path.relative_to(folder.parent).as_posix(): found[path] for path in sorted(found)}


def _imports(text: str, folder: Path, here: Path) -> Iterator[Path]:
    """Files of the package that a source file lying in the folder ``here`` imports."""
    for node in _import_statements(text):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _module(name.name.split("."), folder)
        else:
            base = _base(node, folder, here)
            for name in node.names:
                yield from _module([*base, name.name], folder)


@functools.cache
def _import_statements(text: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """A source's import statements, wherever they stand; each text is parsed once in a process."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("%", "!"))]
    nodes = ast.walk(ast.parse("\n".join(lines)))
    return tuple(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def _base(node: ast.ImportFrom, folder: Path, here: Path) -> list[str]:
    stated = node.module.split(".") if node.module else []
    if not node.level:
        return stated
    above = here
    for _ in range(node.level - 1):
        above = above.parent
    return [*above.relative_to(folder.parent).parts, *stated]


def _module(parts: list[str], folder: Path) -> Iterator[Path]:
    """The files that importing a dotted name runs: each package's ``__init__``, the module's own, and the
    YAML file of the same name that it reads.
    """
    if parts[0] != folder.name:
        return
    place = folder.parent
    for part in parts:
        place = place / part
        for candidate in (place / "__init__.py", place.with_suffix(".py"), place.with_suffix(".yaml")):
            if candidate.is_file():
                yield candidate
