"""Imports point one way between the folders of the package: each can be read without those after it."""

import ast
import graphlib
from collections import defaultdict
from pathlib import Path

from reasoning_features.paths import root
from reasoning_features.runs.provenance import PACKAGE


def room(parts: tuple[str, ...]) -> str:
    """The folder that a module lies in, from its name without the package; "" for the package itself.

    The benchmark of speeds is a room of its own: it imports all others.
    """
    first = parts[0].removesuffix(".py") if parts else ""
    return first if first == "bench" or (root() / PACKAGE / first).is_dir() else ""


def imports(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            _, *parts = node.module.split(".")
            found |= {room((*parts, name.name)) for name in node.names}
        elif isinstance(node, ast.Import):
            names = [name.name.split(".") for name in node.names]
            found |= {room(tuple(parts)) for first, *parts in names if first == PACKAGE}
    return found


def test_imports_point_one_way_between_rooms():
    rooms = defaultdict(set)
    for path in (root() / PACKAGE).rglob("*.py"):
        own = room(path.relative_to(root() / PACKAGE).parts)
        rooms[own] |= imports(path) - {own}
    assert {"models", "steering", "truth"} <= set(rooms)
    order = list(graphlib.TopologicalSorter(rooms).static_order())  # raises where there is a circle
    assert order.index("models") < order.index("dictionaries") < order.index("steering")
