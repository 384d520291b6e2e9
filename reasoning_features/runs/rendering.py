"""Executed notebooks as Markdown beside their figures."""

import base64
import hashlib
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

from reasoning_features import paths
from reasoning_features.files import write_text

NOISE = re.compile(r" at 0x[0-9a-fA-F]+|\x1b\[[0-9;]*[A-Za-z]")  # addresses in memory, terminal colours
SHOWN = ["text/markdown", "image/png", "text/html", "text/plain"]  # the first that an output has
INJECTED = "injected-parameters"
WIDGET = "application/vnd.jupyter.widget-view+json"


def render(notebook: Path, executed: Path, folder: Path) -> list[Path]:
    """Write ``<notebook>.md`` into a folder: today's prose with the outputs of the last execution, saved
    figures linked, other images in ``<notebook>_files``. Gives the files that were written.
    """
    code = iter([cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"])
    shown = nbformat.read(notebook, as_version=4)
    figures = {hashlib.sha256(png.read_bytes()).hexdigest(): png.name for png in folder.glob("*.png")}
    cells: list[NotebookNode] = []
    for cell in shown.cells:
        if cell.cell_type == "code":
            while INJECTED in (ran := next(code)).metadata.get("tags", []):
                cells.append(ran)
            cell = ran
            said = [out for out in cell.outputs if out.get("name") != "stderr"]
            cell.outputs = [_tidy(out, figures) for out in said if WIDGET not in out.get("data", {})]
        cells.append(cell)
    shown.cells, shown.metadata = cells, NotebookNode(language_info={"name": "python"})
    shown, _ = CoalesceStreamsPreprocessor().preprocess(shown, {})
    images = folder / f"{notebook.stem}_files"
    shutil.rmtree(images, ignore_errors=True)
    exporter = MarkdownExporter(config={"NbConvertBase": {"display_data_priority": SHOWN}})
    named = {"unique_key": "output", "output_files_dir": images.name}
    text, resources = exporter.from_notebook_node(shown, named)
    written = resources["outputs"]
    for name, content in written.items():
        images.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    page = folder / f"{notebook.stem}.md"
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    lines = lines.replace("](../", "](../../")  # the page lies one folder deeper than the notebook
    write_text(page, re.sub(r"\n{3,}", "\n\n", lines) + "\n")
    return [page, *(folder / name for name in written)]


def _tidy(output: NotebookNode, figures: dict[str, str]) -> NotebookNode:
    """Link an image that was saved as a figure; take what differs between machines out of text."""
    if output.output_type == "stream":
        output.text = _plain(output.text)
    data = output.get("data", {})
    png = data.get("image/png")
    if png and (name := figures.get(hashlib.sha256(base64.b64decode(png)).hexdigest())):
        caption = output.get("metadata", {}).get("image/png", {}).get("alt", "")
        output.data = NotebookNode({"text/markdown": f"![{caption}]({name})"})
    elif 'class="dataframe"' in data.get("text/html", ""):
        data.pop("text/html")
    for kind in {"text/plain", "text/html", "text/markdown"} & set(data):
        data[kind] = _plain(data[kind])
    return output


def _plain(text: str) -> str:
    return NOISE.sub("", text).replace(f"{paths.root()}/", "")
