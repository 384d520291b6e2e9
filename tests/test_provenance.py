from __future__ import annotations

import json

import miniatures
import numpy as np
import pytest
import torch
from stub_notebooks import write_notebook

from reasoning_features import hub as hub_room
from reasoning_features.bookkeeping import provenance
from reasoning_features.bookkeeping.provenance import begin
from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.settings import load_settings

FIELDS = ("subject", "layer", "seed")


@pytest.fixture
def house(repository):
    write_notebook(repository, "01_one")
    write_notebook(repository, "02_two")
    model = repository / "data/organism/models/coupled-0"
    model.mkdir(parents=True)
    (model / "weights").write_text("1 2 3")
    return repository


def run(notebook="01_one", profile="organism", **overrides):
    return begin(notebook, load_settings(profile, **overrides))


def stored(made, name="sample", text="x"):
    with made.store(name, FIELDS) as folder:
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "numbers.txt").write_text(text)
    return made.find(name, FIELDS, "01")


def test_what_is_stored_is_found_by_the_run_and_by_one_that_does_not_depend_on_its_override(house):
    folder = stored(run())
    assert folder == house / "data/organism/artefacts/sample"
    assert run("02_two", alpha=0.3).find("sample", FIELDS, "01") == folder
    assert not (house / "data/organism+alpha=0.3").exists()


def test_an_override_that_determines_the_artefact_asks_for_the_make_target(house):
    stored(run())
    with pytest.raises(MissingArtefact, match=r'`make nb-01 PARAMS="layer=1"`'):
        run("02_two", alpha=0.3, layer=1).find("sample", FIELDS, "01")
    with pytest.raises(MissingArtefact, match=r"`make nb-01 PROFILE=smoke`"):
        run("02_two", "smoke").find("sample", FIELDS, "01")


def test_a_profile_of_ones_own_is_asked_for_by_a_path(house, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: smoke\n")
    with pytest.raises(MissingArtefact, match=r"`make nb-01 PROFILE=path/of/mine.yaml`"):
        run("02_two", str(tmp_path / "mine.yaml")).find("sample", FIELDS, "01")


def test_the_named_make_target_satisfies_a_run_with_further_overrides(house):
    made = stored(run(layer=1))
    assert run("02_two", alpha=0.3, layer=1).find("sample", FIELDS, "01") == made


def test_an_artefact_of_another_model_under_the_same_name_is_not_taken(house):
    stored(run())
    (house / "data/organism/models/coupled-0/weights").write_text("4 5 6")
    with pytest.raises(MissingArtefact):
        run("02_two").find("sample", FIELDS, "01")


@pytest.mark.parametrize("damage", ["change", "delete"])
def test_a_damaged_file_is_named(house, damage):
    file = stored(run()) / "deep" / "numbers.txt"
    file.write_text("y") if damage == "change" else file.unlink()
    told = r"data/organism/artefacts/sample/deep/numbers\.txt is damaged or missing .* `make nb-01`, which"
    with pytest.raises(CorruptArtefact, match=told):
        run("02_two").find("sample", FIELDS, "01")


def test_a_damaged_manifest_is_named_and_another_runs_whole_artefact_is_taken(house):
    folder = stored(run())
    (folder / "artefact.json").write_text('{"name":')
    with pytest.raises(CorruptArtefact, match=r"sample/artefact\.json is damaged .* `make nb-01`"):
        run("02_two").find("sample", FIELDS, "01")
    other = house / "data/organism+alpha=0.3/artefacts"
    other.mkdir(parents=True)
    stored(run())
    folder.rename(other / "sample")
    stored(run())
    (folder / "deep" / "numbers.txt").write_text("y")
    assert run("02_two").find("sample", FIELDS, "01") == other / "sample"


def test_an_interrupted_store_keeps_the_old_artefact_and_can_go_on(house):
    old = stored(run())
    with pytest.raises(RuntimeError), run().store("sample", FIELDS) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert not (run().find("sample", FIELDS, "01") / "half").exists()
    with run().store("sample", FIELDS) as folder:
        assert (folder / "half").read_text() == "half"
    assert sorted(path.name for path in old.iterdir()) == ["artefact.json", "half"]


def test_what_an_interrupted_store_left_is_dropped_when_what_determines_it_changed(house):
    with pytest.raises(RuntimeError), run().store("sample", FIELDS) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    (house / "data/organism/models/coupled-0/weights").write_text("other")
    with run().store("sample", FIELDS) as folder:
        assert not (folder / "half").exists()


def test_what_an_interrupted_store_left_is_dropped_when_the_code_changed(house):
    with pytest.raises(RuntimeError), run().store("sample", FIELDS) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    write_notebook(house, "01_one", "x = 1")
    with run().store("sample", FIELDS) as folder:
        assert not (folder / "half").exists()


@pytest.mark.parametrize("left", ['{"name": "sam', '{"files": {}}', None])
def test_a_damaged_beginning_is_dropped_and_half_a_file_is_no_part(house, left):
    with pytest.raises(RuntimeError), run().store("sample", FIELDS) as folder:
        (folder / "half").write_text("half")
        (folder / ".numbers.json.0x.partial").write_text("[1, ")
        raise RuntimeError
    if left is not None:
        (folder / "artefact.json").write_text(left)
    with run().store("sample", FIELDS) as folder:
        assert (folder / "half").exists() == (left is None)
        assert not (folder / ".numbers.json.0x.partial").exists()
    run("02_two").find("sample", FIELDS, "01")


def test_provenance_holds_what_made_the_figure_and_nothing_of_the_machine(house):
    made = run(alpha=0.3)
    file = made.paths.figures / "x01_a.csv"
    file.parent.mkdir(parents=True)
    file.write_text("a\n1\n")
    path = provenance.record_artefact(made, "x01_a", [file], "A caption.")
    text = path.read_text()
    held = json.loads(text)
    assert held["settings"]["alpha"] == 0.3 and held["run"] == "organism+alpha=0.3"
    assert held["seeds"] == [0] and held["dtype"] == "float32" and held["device"] == "cpu"
    assert len(held["inputs"]["subject_sha256"]) == 64
    assert held["files"] == {"x01_a.csv": provenance.file_digest(file)}
    assert "+" not in held["versions"]["torch"]
    assert str(house) not in text and "202" not in held["caption"]
    assert provenance.record_artefact(run(alpha=0.3), "x01_a", [file], "A caption.").read_text() == text


def test_begin_seeds_every_generator(house):
    run()
    first = (np.random.rand(), torch.rand(1).item())
    run()
    assert (np.random.rand(), torch.rand(1).item()) == first
    run(seed=1)
    assert (np.random.rand(), torch.rand(1).item()) != first


def test_the_line_that_a_notebook_prints_names_the_run(house):
    line = str(run(alpha=0.3))
    assert "organism+alpha=0.3" in line and "seed 0" in line and "\n" not in line


def test_the_runner_learns_what_was_read_and_written(house, monkeypatch, tmp_path):
    record = tmp_path / "record.json"
    monkeypatch.setenv(provenance.RECORD, str(record))
    stored(run())
    held = json.loads(record.read_text())
    manifest = "data/organism/artefacts/sample/artefact.json"
    assert held["written"] == [manifest] and set(held["read"]) == {manifest, "data/organism/models/coupled-0"}


def test_the_commits_of_the_hub_are_recorded_once_they_are_known(house, hub):
    names = {"subject": miniatures.LLAMA, "reasoning_text": {"dataset": miniatures.THOUGHTS}}
    made = run(**names)
    assert "subject_commit" not in made.provenance["inputs"]
    hub_room.local_copy(miniatures.LLAMA, patterns=["config.json"])
    hub_room.local_copy(miniatures.THOUGHTS, "dataset")
    asked = hub.asked("")
    file = made.paths.figures / "x01_a.csv"
    file.parent.mkdir(parents=True)
    file.write_text("a\n1\n")
    held = json.loads(provenance.record_artefact(made, "x01_a", [file], "A caption.").read_text())
    sha = hub.sha(miniatures.LLAMA)
    assert held["inputs"]["subject_commit"] == sha == run(**names).provenance["inputs"]["subject_commit"]
    data = hub.sha(miniatures.THOUGHTS, "datasets")
    assert held["inputs"]["reasoning_text_commits"] == {miniatures.THOUGHTS: data}
    assert hub.asked("") == asked


def test_what_another_commit_made_is_not_taken(house, hub):
    one, other = (f"{miniatures.LLAMA}@{digit * 40}" for digit in "12")
    made = stored(run(subject=one))
    assert run("02_two", subject=one, alpha=0.3).find("sample", FIELDS, "01") == made
    with pytest.raises(MissingArtefact):
        run("02_two", subject=other).find("sample", FIELDS, "01")
    # main, where it is that commit or another one
    ref = hub.home / "hub" / f"models--{miniatures.LLAMA.replace('/', '--')}" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("3" * 40)
    stored(run(subject=miniatures.LLAMA))
    run("02_two", subject=miniatures.LLAMA).find("sample", FIELDS, "01")
    ref.write_text("4" * 40)
    with pytest.raises(MissingArtefact):
        run("02_two", subject=miniatures.LLAMA).find("sample", FIELDS, "01")


def test_a_changed_file_of_texts_is_another_input(house):
    texts = house / "mine.jsonl"
    texts.write_text("{}\n")
    names = {"reasoning_text": {"dataset": "mine.jsonl"}, "problems": {"own": {"dataset": "mine.jsonl"}}}
    first = run(**names).provenance["inputs"]
    assert (
        first["problems_commits"]
        == first["reasoning_text_commits"]
        == {"mine.jsonl": provenance.file_digest(texts)}
    )
    texts.write_text('{"text": "x"}\n')
    assert run(**names).provenance["inputs"]["problems_commits"] != first["problems_commits"]


def test_what_a_run_reads_is_named_beside_its_figures_and_must_be_there(house):
    made = run()
    place = made.reads("data/organism/models/coupled-0")
    assert place == "data/organism/models/coupled-0"
    before = made._read[place]
    (house / place / "weights").write_text("4 5 6")
    again = run()
    again.reads(place)
    assert again._read[place] != before
    with pytest.raises(MissingArtefact, match="There is no data/nowhere"):
        made.reads("data/nowhere")
