"""``make check-house``: how large the house is, beside its bars; fails where a bar is missed."""

import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Row = tuple[str, float, float]  # what is counted, how many there are, how many there may be
IMPORTS = (ast.Import, ast.ImportFrom)


def notebook_rows(path: Path) -> list[Row]:
    """A notebook's size; calls that unpack their arguments from a name; ``if`` statements as guards."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    trees, name = [ast.parse(cell) for cell in code], path.stem[:2]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    unpacked = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Starred)]
    unpacked += [keyword.value for call in calls for keyword in call.keywords if keyword.arg is None]
    sizes: list[Row] = [
        (f"{name}, code cells", len(code), 20),
        (f"{name}, code lines", sum(len(cell.splitlines()) for cell in code), 160),
    ]
    imports = sum(all(isinstance(node, IMPORTS) for node in tree.body) for tree in trees)
    return [
        *(sizes if name <= "06" else []),
        (f"{name}, import cells", imports, 1),
        (f"{name}, unpacked arguments", sum(isinstance(value, ast.Name) for value in unpacked), 0),
        (f"{name}, guards", sum(isinstance(node, ast.If) for node in nodes), 2),
    ]


def main() -> int:
    """Print everything that has a bar; 1 where one is missed."""
    package, tests = ([*(ROOT / name).rglob("*.py")] for name in ("reasoning_features", "tests"))
    readme = ROOT / "README.md"
    found: list[Row] = [
        ("package, lines", sum(path.read_bytes().count(b"\n") for path in package), 15_000),
        ("package, files", len(package), 70),
        ("tests, lines", sum(path.read_bytes().count(b"\n") for path in tests), 10_000),
        ("README, lines", readme.read_bytes().count(b"\n"), 150),
        ("README, KB", readme.stat().st_size / 1024, 12),
    ]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        found += notebook_rows(path)
    for what, counted, bar in found:
        print(f"{what:28}{counted:>10,.0f}{bar:>10,.0f}{'' if counted <= bar else '   missed'}")
    return int(any(counted > bar for _, counted, bar in found))


if __name__ == "__main__":
    sys.exit(main())
