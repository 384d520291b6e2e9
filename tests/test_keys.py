from __future__ import annotations

import subprocess
import sys

import pytest
from stub_notebooks import write_notebook

from reasoning_features.bookkeeping import keys
from reasoning_features.bookkeeping.keys import Plan
from reasoning_features.errors import UserError
from reasoning_features.files import read_json, write_json
from reasoning_features.running.execution import plan


@pytest.fixture
def house(repository):
    write_notebook(repository, "01_one")
    write_notebook(repository, "02_two", parameters='profile: str = "organism"')
    return repository


def test_plans_hold_each_notebooks_own_overrides_and_run(house):
    one, two = plan(["01", "02"], "smoke", "alpha=0.3", "cuda")
    assert (one.run, two.run) == ("smoke+alpha=0.3", "smoke")
    assert one.parameters == {"alpha": 0.3, "profile": "smoke", "device": "cuda"}
    assert two.parameters == {"profile": "smoke"}  # it declares neither alpha nor device
    assert one.settings["alpha"] == 0.3 and two.settings["alpha"] == 0.7
    assert Plan.load(house / "build/smoke+alpha=0.3/01.plan.json") == one


def test_what_the_notebook_already_says_is_not_injected(house):
    assert plan(["01"], "organism")[0].parameters == {}


def test_a_profile_file_is_given_by_its_whole_path(house, monkeypatch):
    (house / "mine.yaml").write_text("extends: smoke\n")
    monkeypatch.chdir(house)
    made = plan(["01"], "mine.yaml")[0]
    assert made.run == "mine" and made.parameters["profile"] == str(house / "mine.yaml")


def test_an_unknown_notebook_is_named(house):
    with pytest.raises(UserError, match="'03'"):
        plan(["03"], "organism")


def changed(made, before):
    after = keys.key(made)
    return sorted(name for name in after if after[name] != before[name])


def test_the_key_changes_with_what_it_depends_on_and_with_nothing_else(house):
    made = plan(["01"], "organism")[0]
    model = house / "data" / "model"
    model.mkdir(parents=True)
    (model / "weights").write_text("1")
    (house / "figure").write_text("drawn")
    notes, copy = made.file("running.json"), made.file("running.ipynb")
    write_json(notes, {"read": {"data/model": "", "none": ""}, "written": ["figure"]})
    copy.write_text("{}")
    keys.seal(made, notes, copy)
    copy.replace(made.file("ipynb"))
    first = keys.key(made)
    assert keys.write_key(made, first) and not keys.write_key(made, keys.key(made))
    assert first["read"]["none"] is None and first["lost"] == {}

    (house / "requirements.lock").write_text("numpy==2\n")
    assert changed(made, first) == ["lock"]
    (model / "weights").write_text("2")
    assert changed(made, first) == ["lock", "read"]
    (house / "figure").unlink()
    assert changed(made, first) == ["lock", "lost", "read"]
    write_notebook(house, "01_one", "x = 1")
    assert changed(made, first) == ["code_cells", "lock", "lost", "read"]


def test_what_is_lost_is_named_file_by_file(house, capsys):
    made = plan(["01"], "organism")[0]
    artefact = house / "data/organism/artefacts/sample"
    artefact.mkdir(parents=True)
    (artefact / "a").write_text("whole")
    write_json(artefact / keys.MANIFEST, {"files": {"a": keys.file_digest(artefact / "a")}})
    (house / "figure").write_text("drawn")
    notes, copy = made.file("running.json"), made.file("running.ipynb")
    write_json(notes, {"read": {}, "written": ["figure", f"data/organism/artefacts/sample/{keys.MANIFEST}"]})
    copy.write_text("{}")
    keys.seal(made, notes, copy)
    assert keys.lost(made) == {"build/organism/01.ipynb": "gone"}
    copy.replace(made.file("ipynb"))
    assert keys.lost(made) == {} and keys.renew(made) and not keys.renew(made)

    (artefact / "a").write_text("other")
    (house / "figure").unlink()
    assert keys.lost(made) == {"data/organism/artefacts/sample/a": "damaged", "figure": "gone"}
    assert keys.renew(made)
    said = capsys.readouterr().err
    assert "data/organism/artefacts/sample/a is damaged: 01_one runs again.\n" in said
    assert "figure is gone: 01_one runs again.\n" in said
    (artefact / keys.MANIFEST).write_text("")
    assert keys.lost(made) == {f"data/organism/artefacts/sample/{keys.MANIFEST}": "damaged", "figure": "gone"}
    made.file("record.json").write_text('{"read": {')
    assert keys.lost(made) == {"build/organism/01.record.json": "damaged"}
    assert keys.key(made)["read"] == {}
    made.file("record.json").unlink()
    assert keys.lost(made) == {}


def test_prose_is_not_in_the_key(house):
    made = plan(["01"], "organism")[0]
    first = keys.key(made)
    path = house / "notebooks" / "01_one.ipynb"
    notebook = read_json(path)
    notebook["cells"][0]["source"] = ["# Another title"]
    write_json(path, notebook)
    assert changed(made, first) == []


def test_asking_for_a_key_imports_nothing_heavy():
    code = (
        "import sys, reasoning_features.running.execution, reasoning_features.bookkeeping.keys\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}"
        " & {'numpy', 'pandas', 'torch', 'yaml', 'pydantic', 'papermill', 'nbformat', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
