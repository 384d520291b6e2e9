"""What every shipped notebook must be: stripped, short-celled, typed parameters, story and no logic."""

import ast
import json
import re

import pytest

from reasoning_features.paths import root
from reasoning_features.reporting.claims import all_claims
from reasoning_features.runs.execution import defaults, main, plan
from reasoning_features.settings import Settings, load_settings, notebook_settings

NOTEBOOKS = sorted((root() / "notebooks").glob("*.ipynb"))
SERIES = [path for path in NOTEBOOKS if path.stem != "00_quickstart"]  # which stores no figures, on one model


@pytest.fixture(params=SERIES, ids=lambda path: path.stem)
def path(request):
    return request.param


def code(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_stripped_and_short_and_define_nothing(path):
    notebook = json.loads(path.read_text())
    kept, cells = notebook["metadata"], notebook["cells"]
    assert kept["kernelspec"]["name"] == "python3" and "papermill" not in kept
    assert 15 <= len(cells) <= 46
    assert cells[0]["cell_type"] == "markdown"
    for cell in code(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        lines = cell["source"].splitlines()
        tree = ast.parse(cell["source"])
        imports = all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body)
        given = "parameters" in cell["metadata"].get("tags", [])
        assert len(lines) <= 15 or given or imports, cell["source"]
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not any(isinstance(node, kinds) for node in ast.walk(tree))


def test_parameters_are_settings_and_explained(path):
    found = defaults(path)
    assert next(iter(found)) == "profile" and found["profile"] == "organism"
    assert set(found) - {"changes"} <= set(Settings.model_fields)
    assert found["changes"] == {} and len(found) <= 9
    (cell,) = [c["source"] for c in code(path) if "parameters" in c["metadata"].get("tags", [])]
    ends = [node.end_lineno for node in ast.parse(cell).body]
    assert len(ends) == len(found) and all("  # " in cell.splitlines()[end - 1] for end in ends)
    plain = load_settings("organism").model_dump(mode="json")
    assert all(found[name] == plain[name] for name in found if name in plain)


def test_papermill_gives_a_notebook_the_settings_that_were_asked_for(path):
    for profile in ("organism", "smoke", "smollm2-135m"):
        asked = plan(path.stem[:2], profile, "seed=7")
        given = defaults(path) | asked.parameters()
        assert notebook_settings(given) == asked.settings
        assert asked.settings.run == f"{profile}+seed=7"


def test_the_opening_and_the_claims_are_the_notebooks_own_and_figures_saved_where_they_are_drawn(path):
    text = "\n".join(cell["source"] for cell in code(path))
    assert f'begin("{path.stem}", settings)' in text
    assert "settings = notebook_settings(globals())" in text
    for claim in all_claims():
        if claim.notebook == path.stem:
            assert f'"{claim.id}"' in text, f"claim {claim.id} is not recorded"
    # an open figure would be shown at its cell's end, and again where it is saved
    for cell in code(path):
        drawn = re.search(r"\bfig, \w+ = ", cell["source"])
        assert not drawn or "save_figure(fig" in cell["source"], cell["source"]


def test_notebooks_are_left_out_where_the_profile_lacks_what_they_need(capsys):
    for name, what in (
        ("12_known_truth", "text whose decisions are known"),
        ("13_matched_search", "a model that solves problems (full: true)"),
        ("14_stages_checked", "stages of model diffing"),
    ):
        assert main([name[:2], "--profile=smollm2-135m", "--asked=in all"]) == 0
        assert f"{name} needs {what}" in capsys.readouterr().out
        assert main([name[:2], "--profile=smollm2-135m"]) == 2
    assert main(["05", "--profile=smoke", "--parameters=corpus=organism-text"]) == 2
    assert "05_steering needs problems with known answers" in capsys.readouterr().err


def test_make_knows_what_each_notebook_reads_of_others_and_no_more(path):
    nodes = [node for cell in code(path) for node in ast.walk(ast.parse(cell["source"]))]
    calls = [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == "run.find"]
    read = {ast.literal_eval(call.args[2]) for call in calls} - {path.stem[:2]}
    makefile = (root() / "Makefile").read_text()
    edges = re.findall(r"^((?:nb-\d\d ?)+): ((?:nb-\d\d ?)+)$", makefile, re.MULTILINE)
    named = [made.split() for of, made in edges if f"nb-{path.stem[:2]}" in of.split()]
    assert {name for names in named for name in names} == {f"nb-{number}" for number in read}
