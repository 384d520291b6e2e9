"""Stub notebooks for the tests of the house."""

from pathlib import Path

import nbformat

PARAMETERS = (
    'profile: str = "organism"  # the profile, or the path of a YAML file\n'
    "alpha: float = 0.7  # exponent of the entropy\n"
    "window: list[int] = [2, 3]  # tokens before and after\n"
    "changes: dict = {}  # other settings, by name"
)
OPENING = (
    "from reasoning_features.runs.provenance import begin\n"
    "from reasoning_features.settings import notebook_settings\n\n"
    "settings = notebook_settings(globals())\n"
    'run = begin("{name}", settings)\nprint(run)'
)


def write_notebook(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a title, a parameters cell, the opening of every notebook, and more code cells."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    code = [nbformat.v4.new_code_cell(text) for text in (OPENING.format(name=name), *cells)]
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {name}"), first, *code]
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place}"
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path
