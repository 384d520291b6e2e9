"""Executed notebooks as Markdown beside their figures, in bytes that repeat."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

from reasoning_features import paths
from reasoning_features.bookkeeping import keys, sources
from reasoning_features.bookkeeping.keys import Plan
from reasoning_features.files import write_text

INJECTED = "injected-parameters"
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PNG = "image/png"


def render(plan: Plan) -> Path:
    """Write ``figures/<run>/<notebook>.md``: a notebook's prose with the outputs of its last execution.

    Prose is taken from the notebook as it stands, so that mending a sentence needs no execution. What goes
    to standard error (progress bars, warnings, times) is left out; images that were saved as figures are
    linked, others are written beside, in ``<notebook>_files``.

    Returns
    -------
    Path
        The Markdown file.
    """
    executed = nbformat.read(plan.file("ipynb"), as_version=4)
    source = nbformat.read(sources.notebook_path(plan.notebook), as_version=4)
    folder = paths.RunPaths(plan.run).figures
    figures = {hashlib.sha256(png.read_bytes()).hexdigest(): png.name for png in sorted(folder.glob("*.png"))}
    shown = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    shown.cells = [_tidied(cell, figures) for cell in _merged(source, executed)]
    images = folder / f"{plan.notebook}_files"
    text, resources = MarkdownExporter().from_notebook_node(
        shown, {"unique_key": "output", "output_files_dir": images.name}
    )
    shutil.rmtree(images, ignore_errors=True)
    for name, content in resources.get("outputs", {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    lines = [line.rstrip() for line in text.strip().splitlines()]
    path = folder / f"{plan.notebook}.md"
    write_text(path, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n")
    keys.seal_rendering(plan, [path, *(folder / name for name in resources.get("outputs", {}))])
    path.touch()  # as new as the execution, even where nothing changed
    return path


def _merged(source: NotebookNode, executed: NotebookNode) -> Iterator[NotebookNode]:
    """The source's cells, each code cell as it was executed, and the parameters that were injected."""
    code = iter([cell for cell in executed.cells if cell.cell_type == "code"])
    for cell in source.cells:
        if cell.cell_type != "code":
            yield cell
            continue
        while (ran := next(code)) and INJECTED in ran.metadata.get("tags", []):
            yield ran
        yield ran


def _tidied(cell: NotebookNode, figures: dict[str, str]) -> NotebookNode:
    """A cell without what differs from one execution to the next."""
    cell = copy.deepcopy(cell)
    if cell.cell_type == "code":
        outputs = [_output(output, figures) for output in cell.outputs]
        cell.outputs = list(_joined(output for output in outputs if output is not None))
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _plain(output.text)
    return cell


def _joined(outputs: Iterable[NotebookNode]) -> Iterator[NotebookNode]:
    """Outputs, what is printed in a row as one: how a kernel parts it depends on how busy the machine is."""
    said: NotebookNode | None = None
    for output in outputs:
        if output.output_type != "stream":
            if said is not None:
                yield said
            said = None
            yield output
        elif said is None:
            said = output
        else:
            said.text += output.text
    if said is not None:
        yield said


def _output(output: NotebookNode, figures: dict[str, str]) -> NotebookNode | None:
    if output.output_type == "stream":
        return None if output.name == "stderr" else output
    data: dict[str, Any] = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return None
    if PNG in data and (name := figures.get(hashlib.sha256(base64.b64decode(data[PNG])).hexdigest())):
        caption = output.get("metadata", {}).get(PNG, {}).get("alt", "")
        output.data = NotebookNode({"text/markdown": f"![{caption}]({name})"})
        return output
    if "text/markdown" in data or 'class="dataframe"' in data.get("text/html", ""):
        data.pop("text/html", None)
    for kind in ("text/plain", "text/html", "text/markdown"):
        if kind in data:
            data[kind] = _plain(data[kind])
    return output


def _plain(text: str) -> str:
    """Text without terminal colours, addresses in memory, or this machine's folders."""
    return ADDRESS.sub("", ANSI.sub("", text)).replace(f"{paths.root()}/", "")
