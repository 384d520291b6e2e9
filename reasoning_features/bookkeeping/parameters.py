"""Overrides given as text, ``alpha=0.3 window='[1,2]'``, checked against notebooks' own typed parameters."""

from __future__ import annotations

import ast
import json
import shlex
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from reasoning_features.errors import UserError

RESERVED = ("profile", "device")  # given by PROFILE= and DEVICE=
TYPES = {name: getattr(typing, name) for name in ("Optional", "Literal", "Union", "Any")}
TYPES |= {kind.__name__: kind for kind in (int, float, str, bool, list, tuple, dict)}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell: ``name: annotation = default``."""

    name: str
    annotation: str
    default: Any

    def parse(self, text: str) -> Any:
        """The value that text stands for under the annotation, as JSON can hold it; UserError if none."""
        try:
            kind = eval(self.annotation, {"__builtins__": {}}, TYPES)
        except (NameError, TypeError) as error:
            raise UserError(f"Parameter {self.name} has the type {self.annotation}: {error}.") from error
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        for candidate in (value, text):
            try:
                return adapter.dump_python(adapter.validate_python(candidate), mode="json")
            except ValidationError:
                continue
        raise UserError(f"Parameter {self.name}={text!r} is not of the type {self.annotation}: mend it.")


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook, from the cell with the tag ``parameters``.

    Raises
    ------
    UserError
        If the cell is missing, or a line of it has no type or no plain default.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise UserError(f"{notebook.name} must have one cell with the tag 'parameters', not {len(tagged)}.")
    found = {}
    for node in ast.parse("".join(tagged[0]["source"])).body:
        if isinstance(node, ast.ImportFrom) and node.module == "typing":
            continue
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value):
            raise UserError(
                f"Line {node.lineno} of the parameters cell of {notebook.name} must read "
                "`name: type = default`."
            )
        name = node.target.id
        found[name] = Parameter(name, ast.unparse(node.annotation), ast.literal_eval(node.value))
    return found


def split(text: str) -> dict[str, str]:
    """The names and texts of ``alpha=0.3 window='[1,2]'``, as a shell reads it; UserError if it is not so."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"PARAMS={text!r} cannot be read ({error}): close the quotes.") from error
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"PARAMS has {word!r}, which is not of the form name=value.")
        if name in RESERVED:
            raise UserError(f"PARAMS must not set {name}: give {name.upper()}={value} to make instead.")
        if name in found:
            raise UserError(f"PARAMS gives {name} twice: give it once.")
        found[name] = value
    return found


def check(notebooks: list[Path], text: str, asked: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """The overrides that each notebook takes.

    Parameters
    ----------
    notebooks
        The notebooks that will run; an override goes to those that declare it.
    text
        ``name=value`` words, quoted as for a shell.
    asked
        The names of the notebooks of which one at least must declare each override; by default all.

    Returns
    -------
    dict
        From each notebook's name to its overrides; values are as JSON holds them.

    Raises
    ------
    UserError
        If none of those asked for declares a parameter, or a value is not of its type.
    """
    asked = asked or [path.stem for path in notebooks]
    parameters = {path.stem: declared(path) for path in notebooks}
    overrides: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    for name, value in split(text).items():
        takers = [notebook for notebook, has in parameters.items() if name in has]
        if not set(takers) & set(asked):
            known = sorted({n for notebook in asked for n in parameters[notebook]} - set(RESERVED))
            raise UserError(
                f"There is no parameter {name!r} in {', '.join(asked)}: there are {', '.join(known)}."
            )
        for notebook in takers:
            overrides[notebook][name] = parameters[notebook][name].parse(value)
    return overrides
