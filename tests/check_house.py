"""``make check-house``: how large the house is, beside its bars; fails where a bar is missed."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Row = tuple[str, float, float]  # what is counted, how many there are, how many there may be


def lines(paths: Iterable[Path]) -> int:
    """Lines of files, as ``wc -l`` counts them."""
    return sum(path.read_bytes().count(b"\n") for path in paths)


def code_cells(path: Path) -> list[str]:
    """A notebook's code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def is_import(cell: str) -> bool:
    """Whether a cell holds imports and nothing else."""
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(cell).body)


def splats(cells: list[str]) -> int:
    """Calls that unpack their arguments from a name (``f(*given)``, ``f(**rest)``)."""
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Call)]
    stars = [arg.value for node in nodes for arg in node.args if isinstance(arg, ast.Starred)]
    stars += [keyword.value for node in nodes for keyword in node.keywords if keyword.arg is None]
    return sum(isinstance(value, ast.Name) for value in stars)


def guards(cells: list[str]) -> int:
    """``if`` statements, wherever in the cells."""
    return sum(isinstance(node, ast.If) for cell in cells for node in ast.walk(ast.parse(cell)))


def rows() -> list[Row]:
    """Everything that has a bar."""
    package, tests = ([*(ROOT / name).rglob("*.py")] for name in ("reasoning_features", "tests"))
    readme = ROOT / "README.md"
    found: list[Row] = [
        ("package, lines", lines(package), 15_000),
        ("package, files", len(package), 70),
        ("tests, lines", lines(tests), 10_000),
        ("README, lines", lines([readme]), 150),
        ("README, KB", readme.stat().st_size / 1024, 12),
    ]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        cells, name = code_cells(path), path.stem[:2]
        if name <= "06":
            found += [(f"{name}, code cells", len(cells), 20)]
            found += [(f"{name}, code lines", sum(len(cell.splitlines()) for cell in cells), 160)]
        found += [(f"{name}, import cells", sum(map(is_import, cells)), 1)]
        found += [(f"{name}, unpacked arguments", splats(cells), 0), (f"{name}, guards", guards(cells), 2)]
    return found


def main() -> int:
    """Print the table; 1 where a bar is missed."""
    found = rows()
    for what, counted, bar in found:
        print(f"{what:28}{counted:>10,.0f}{bar:>10,.0f}{'' if counted <= bar else '   missed'}")
    return int(any(counted > bar for _, counted, bar in found))


if __name__ == "__main__":
    sys.exit(main())
