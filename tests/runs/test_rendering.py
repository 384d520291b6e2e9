import base64
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_output
from stub_notebooks import write_notebook

from reasoning_features.runs.rendering import render

DRAWN, PASSING = b"\x89PNG drawn", b"\x89PNG passing"


def image(content: bytes, **metadata: str) -> nbformat.NotebookNode:
    data = {"image/png": base64.b64encode(content).decode(), "text/plain": "<Figure at 0x7f00>"}
    return new_output("display_data", data=data, metadata={"image/png": metadata})


def test_a_page_holds_todays_prose_linked_figures_and_nothing_that_changes(repository: Path) -> None:
    """Of a notebook that was executed with an override, and whose prose was mended since."""
    path = write_notebook(repository, "01_one", "first", "second")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(2, new_code_cell("alpha = 0.3", metadata={"tags": ["injected-parameters"]}))
    said = f"\x1b[31m<a.B object at 0x7f12>\x1b[0m {repository}/data\n"
    frame = {"text/html": '<table class="dataframe"></table>', "text/plain": "   x\n0  1"}
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}
    notebook.cells[-2].outputs = [
        new_output("stream", name="stderr", text="100%|##| 3.1s"),
        new_output("stream", name="stdout", text=said),
        new_output("display_data", data=widget),
        new_output("execute_result", data=frame, execution_count=3),
    ]
    notebook.cells[-1].outputs = [image(DRAWN, alt="A line."), image(PASSING)]
    nbformat.write(notebook, repository / "executed.ipynb")
    source = nbformat.read(path, as_version=4)
    source.cells[0].source = "# A better title"
    source.cells.insert(3, nbformat.v4.new_markdown_cell("A sentence more."))
    nbformat.write(source, path)
    folder = repository / "figures"
    folder.mkdir()
    (folder / "x01_line.png").write_bytes(DRAWN)
    page, other = render(path, repository / "executed.ipynb", folder)
    assert page == folder / "01_one.md" and other.read_bytes() == PASSING
    assert f"(01_one_files/{other.name})" in page.read_text()
    text = page.read_text()
    assert "![A line.](x01_line.png)" in text
    assert text.startswith("# A better title\n") and "A sentence more." in text
    for noise in ("100%", "bar", "0x7f", "\x1b", str(repository), "dataframe"):
        assert noise not in text
    assert "<a.B object> data" in text and "0  1" in text
    assert "```python\nalpha = 0.3\n```" in text
    assert text.index("profile: str") < text.index("alpha = 0.3\n") < text.index("notebook_settings(")
