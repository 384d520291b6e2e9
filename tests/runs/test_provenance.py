import json
from pathlib import Path
from typing import Any

import miniatures
import pytest
from local_hub import LocalHub
from stub_notebooks import write_notebook

from reasoning_features import hub as hub_room
from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.files import file_digest
from reasoning_features.paths import root
from reasoning_features.runs import provenance
from reasoning_features.runs.provenance import Run, begin, imported_files
from reasoning_features.settings import load_settings

FIELDS = ("subject", "layer", "seed")


@pytest.fixture
def house(repository: Path) -> Path:
    write_notebook(repository, "01_one")
    write_notebook(repository, "02_two")
    model = repository / "data/organism/models/coupled-0"
    model.mkdir(parents=True)
    (model / "weights").write_text("1 2 3")
    return repository


def run(notebook: str = "01_one", profile: str = "organism", **overrides: object) -> Run:
    return begin(notebook, load_settings(profile, **overrides))


def stored(made: Run) -> Path:
    with made.store("sample", FIELDS) as folder:
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "numbers.txt").write_text("x")
    return made.find("sample", FIELDS, "01")


def interrupted() -> Path:
    with pytest.raises(RuntimeError), run().store("sample", FIELDS) as folder:
        (folder / "half").write_text("half")
        (folder / ".numbers.json.0x.partial").write_text("[1, ")
        raise RuntimeError
    return folder


def test_what_is_stored_is_found_by_every_run_that_it_serves(house: Path) -> None:
    folder = stored(run())
    assert folder == house / "data/organism/artefacts/sample"
    assert run("02_two", alpha=0.3).find("sample", FIELDS, "01") == folder
    made = stored(run(layer=1))
    assert run("02_two", alpha=0.3, layer=1).find("sample", FIELDS, "01") == made
    (house / "data/organism/models/coupled-0/weights").write_text("4 5 6")  # as long as before, at once
    with pytest.raises(MissingArtefact, match="run `make nb-01` with the same PROFILE and PARAMS"):
        run("02_two").find("sample", FIELDS, "01")


@pytest.mark.parametrize("name", ["deep/numbers.txt", "artefact.json"])
def test_a_damaged_file_is_named_and_another_runs_whole_artefact_is_taken(house: Path, name: str) -> None:
    folder = stored(run())
    (folder / name).write_text('{"name":')
    with pytest.raises(CorruptArtefact, match=rf"sample/{name} is damaged or missing: run `make nb-01`"):
        run("02_two").find("sample", FIELDS, "01")
    folder.rename(folder.with_name("elsewhere"))
    other = house / "data/organism+alpha=0.3/artefacts"
    other.mkdir(parents=True)
    stored(run()).rename(other / "sample")
    folder.with_name("elsewhere").rename(folder)
    assert run("02_two").find("sample", FIELDS, "01") == other / "sample"


def test_an_interrupted_store_keeps_the_old_artefact_and_can_go_on(house: Path) -> None:
    old = stored(run())
    interrupted()
    assert not (run().find("sample", FIELDS, "01") / "half").exists()
    with run().store("sample", FIELDS) as folder:
        assert (folder / "half").read_text() == "half"
    assert sorted(path.name for path in old.iterdir()) == ["artefact.json", "half"]


def test_what_an_interrupted_store_left_is_dropped_when_anything_changed(house: Path) -> None:
    weights = house / "data/organism/models/coupled-0/weights"
    for change in (
        lambda folder: weights.write_text("other"),
        lambda folder: write_notebook(house, "01_one", "x = 1"),
        lambda folder: (folder / "artefact.json").write_text('{"name": "sam'),
    ):
        change(interrupted())
        with run().store("sample", FIELDS) as folder:
            assert not (folder / "half").exists()


def recorded(made: Run) -> tuple[Path, dict[str, Any]]:
    """A saved table, and its provenance."""
    file = made.paths.figures / "x01_a.csv"
    file.parent.mkdir(parents=True)
    file.write_text("a\n1\n")
    return file, json.loads(provenance.record_artefact(made, "x01_a", [file], "A caption.").read_text())


def test_provenance_holds_what_made_the_figure_and_nothing_of_the_machine(house: Path) -> None:
    made = run(alpha=0.3)
    made.reads("data/organism/models/coupled-0/weights")
    file, held = recorded(made)
    assert held["settings"]["alpha"] == 0.3 and held["run"] == "organism+alpha=0.3"
    assert held["seeds"] == [0] and held["dtype"] == "float32" and held["device"] == "cpu"
    assert len(held["inputs"]["subject_sha256"]) == 64
    assert held["files"] == {"x01_a.csv": file_digest(file)}
    weights = house / "data/organism/models/coupled-0/weights"
    assert held["artefacts"] == {"data/organism/models/coupled-0/weights": file_digest(weights)}
    assert "+" not in held["versions"]["torch"] and str(house) not in json.dumps(held)
    assert "organism+alpha=0.3" in str(made) and "seed 0" in str(made) and "\n" not in str(made)


def test_make_learns_what_was_read_and_written(house, monkeypatch, tmp_path):
    monkeypatch.setenv(provenance.RECORD, str(tmp_path / "record.json"))
    stored(run())
    held = json.loads((tmp_path / "record.json").read_text())
    folder = "data/organism/artefacts/sample"
    assert held["written"] == [f"{folder}/artefact.json", f"{folder}/deep/numbers.txt"]
    assert list(held["read"]) == [f"{folder}/artefact.json"]
    with pytest.raises(MissingArtefact, match="There is no data/nowhere"):
        run().reads("data/nowhere")


def test_every_model_and_text_is_an_input_by_its_content_wherever_it_lies(house, tmp_path_factory):
    texts = tmp_path_factory.mktemp("elsewhere") / "mine.jsonl"
    sources = {"reasoning_text": {"dataset": str(texts)}, "problems": {"own": {"dataset": str(texts)}}}
    sources |= {"general_text": {"dataset": str(texts.parent)}}
    seen = []
    for line in ("{}\n", '{"text": "x"}\n'):
        texts.write_text(line)
        settings = load_settings("organism", **sources)
        seen.append(provenance.inputs(settings))
        held = begin("01_one", settings).provenance["inputs"]
        digests = {"mine.jsonl": file_digest(texts)}
        assert held["problems_commits"] == held["reasoning_text_commits"] == digests
    for name in sources:
        assert seen[0][name] != seen[1][name]
    assert seen[0]["subject"] == seen[1]["subject"] and len(seen[0]["subject"]) == 1


def test_commits_of_the_hub_are_recorded_once_they_are_known(house: Path, hub: LocalHub) -> None:
    names = {"subject": miniatures.LLAMA, "reasoning_text": {"dataset": miniatures.THOUGHTS}}
    made = run(**names)
    assert "subject_commit" not in made.provenance["inputs"]
    hub_room.local_copy(miniatures.LLAMA, patterns=["config.json"])
    hub_room.local_copy(miniatures.THOUGHTS, "dataset")
    asked = hub.asked("")
    _, held = recorded(made)
    assert held["inputs"]["subject_commit"] == hub.sha(miniatures.LLAMA)
    data = hub.sha(miniatures.THOUGHTS, "datasets")
    assert held["inputs"]["reasoning_text_commits"] == {miniatures.THOUGHTS: data}
    assert hub.asked("") == asked
    # what another commit made is not taken
    one, other = (f"{miniatures.LLAMA}@{digit * 40}" for digit in "12")
    pinned = stored(run(subject=one))
    assert run("02_two", subject=one, alpha=0.3).find("sample", FIELDS, "01") == pinned
    with pytest.raises(MissingArtefact):
        run("02_two", subject=other).find("sample", FIELDS, "01")


def test_sources_are_followed_through_imports_with_the_tables_beside_them() -> None:
    found = imported_files(["%matplotlib inline\nfrom reasoning_features.runs.rendering import render\n"])
    assert {"reasoning_features/runs/rendering.py", "reasoning_features/paths.py"} <= set(found)
    assert "reasoning_features/runs/verification.py" not in found
    assert found["reasoning_features/paths.py"] == file_digest(root() / "reasoning_features/paths.py")
    tables = imported_files(["import reasoning_features.text.real_text as t"])
    assert any(name.endswith(".tsv") for name in tables)


def test_a_setting_that_names_several_models_is_pinned_by_each(repository):
    for name in ("a", "b"):
        (repository / "data" / name).mkdir(parents=True)
        (repository / "data" / name / "config.json").write_text(name)
    told = provenance.determinants(load_settings("organism", refusers=["data/a", "data/b"]), ["refusers"])
    assert told["refusers"] == ["data/a", "data/b"] and [*told["refusers_commits"]] == ["data/a", "data/b"]
