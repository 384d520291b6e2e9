from __future__ import annotations

import base64

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_output
from stub_notebooks import write_notebook

from reasoning_features.running.execution import plan
from reasoning_features.running.rendering import render

DRAWN = b"\x89PNG drawn"
PASSING = b"\x89PNG passing"


def image(content, alt=None):
    data = {"image/png": base64.b64encode(content).decode(), "text/plain": "<Figure at 0x7f00>"}
    return new_output("display_data", data=data, metadata={"image/png": {"alt": alt}} if alt else {})


@pytest.fixture
def executed(repository):
    """A notebook of two code cells beyond its opening, executed with an override."""
    path = write_notebook(repository, "01_one", "first", "second")
    made = plan(["01"], "organism", "alpha=0.3")[0]
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(2, new_code_cell("alpha = 0.3", metadata={"tags": ["injected-parameters"]}))
    frame = {"text/html": '<table class="dataframe"></table>', "text/plain": "   x\n0  1"}
    notebook.cells[-2].outputs = [
        new_output("stream", name="stderr", text="100%|##| 3.1s"),
        new_output(
            "stream", name="stdout", text=f"\x1b[31m<a.B object at 0x7f12>\x1b[0m {repository}/data\n"
        ),
        new_output(
            "display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}
        ),
        new_output("execute_result", data=frame, execution_count=3),
    ]
    notebook.cells[-1].outputs = [image(DRAWN, "A line."), image(PASSING)]
    nbformat.write(notebook, made.file("ipynb"))
    folder = repository / "figures/organism+alpha=0.3"
    folder.mkdir(parents=True)
    (folder / "x01_line.png").write_bytes(DRAWN)
    return made


def test_saved_figures_are_linked_and_other_images_lie_beside(executed, repository):
    path = render(executed)
    text = path.read_text()
    assert path == repository / "figures/organism+alpha=0.3/01_one.md"
    assert "![A line.](x01_line.png)" in text
    (other,) = (path.parent / "01_one_files").iterdir()
    assert f"(01_one_files/{other.name})" in text and other.read_bytes() == PASSING


def test_what_differs_between_executions_is_left_out(executed, repository):
    text = render(executed).read_text()
    assert "100%" not in text and "bar" not in text and "0x7f" not in text and "\x1b" not in text
    assert str(repository) not in text and "<a.B object> data" in text
    assert "dataframe" not in text and "0  1" in text


def test_code_is_marked_as_python_and_the_override_is_shown(executed):
    text = render(executed).read_text()
    assert "```python\nalpha = 0.3\n```" in text
    assert text.index("profile: str") < text.index("alpha = 0.3") < text.index("load_settings(")


def test_mended_prose_is_rendered_with_the_outputs_there_are(executed, repository):
    source = repository / "notebooks/01_one.ipynb"
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[0].source = "# A better title"
    notebook.cells.insert(3, nbformat.v4.new_markdown_cell("A sentence more."))
    nbformat.write(notebook, source)
    text = render(executed).read_text()
    assert text.startswith("# A better title\n") and "A sentence more." in text and "x01_line.png" in text


def test_rendering_again_gives_the_same_bytes(executed):
    first = render(executed).read_bytes()
    assert render(executed).read_bytes() == first


def test_how_a_busy_kernel_parts_what_is_printed_is_not_seen(executed, repository):
    whole = render(executed).read_bytes()
    copy = nbformat.read(executed.file("ipynb"), as_version=4)
    outputs = copy.cells[-2].outputs
    said = outputs[1].text
    at = said.index("0x7f12") + 3  # within an address
    parts = [new_output("stream", name="stdout", text=part) for part in (said[:at], said[at:])]
    between = new_output("stream", name="stderr", text="a warning")
    copy.cells[-2].outputs = [outputs[0], parts[0], between, parts[1], *outputs[2:]]
    nbformat.write(copy, executed.file("ipynb"))
    assert render(executed).read_bytes() == whole
