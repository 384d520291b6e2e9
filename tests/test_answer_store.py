"""Finished answers on disk: found again, never doubled, and whole whatever interrupted the writing."""

from __future__ import annotations

import json

from reasoning_features.steering.answer_store import AnswerStore

OF = {"model": "m", "seed": 0}


def file_of(store):
    (file,) = store.folder.glob("*.jsonl")
    return file


def test_answers_are_found_by_prompt_and_stream(tmp_path):
    with AnswerStore(tmp_path / "made", OF) as store:
        store.add([1, 2], 0, [5, 6])
        store.add([1, 2], 1, [7])
    again = AnswerStore(tmp_path / "made", OF)
    assert again.folder == store.folder and len(again) == 2
    assert (again.get([1, 2], 0), again.get([1, 2], 1), again.get([1], 0)) == ([5, 6], [7], None)
    assert json.loads(file_of(store).read_text().splitlines()[0]) == OF
    assert AnswerStore(tmp_path / "made", OF | {"seed": 1}).folder != store.folder


def test_what_other_processes_wrote_is_read_too(tmp_path, monkeypatch):
    with AnswerStore(tmp_path, OF) as store:
        store.add([1], 0, [5])
    monkeypatch.setattr("os.getpid", lambda: -1)
    with AnswerStore(tmp_path, OF) as other:
        assert other.get([1], 0) == [5]
        other.add([1], 1, [6])
    assert len(list(store.folder.iterdir())) == 2
    assert len(AnswerStore(tmp_path, OF)) == 2


def test_a_torn_line_is_passed_over_and_does_not_spoil_the_next(tmp_path, capsys):
    with AnswerStore(tmp_path, OF) as store:
        store.add([1], 0, [5, 6])
        store.add([1], 1, [7, 8])
    file = file_of(store)
    file.write_bytes(file.read_bytes()[:-4])
    with AnswerStore(tmp_path, OF) as store:
        assert f"{file.name}: 1 of its answers are damaged" in capsys.readouterr().err
        assert len(store) == 1 and store.get([1], 1) is None
        store.add([1], 2, [9])
        store.add([1], 1, [7, 8])
    again = AnswerStore(tmp_path, OF)
    assert [again.get([1], stream) for stream in range(3)] == [[5, 6], [7, 8], [9]]


def test_a_changed_token_is_noticed(tmp_path):
    with AnswerStore(tmp_path, OF) as store:
        store.add([1], 0, [5, 6])
    file = file_of(store)
    file.write_text(file.read_text().replace("[5,6]", "[5,7]"))
    assert AnswerStore(tmp_path, OF).get([1], 0) is None


def test_a_file_of_one_torn_line_is_begun_again(tmp_path):
    with AnswerStore(tmp_path, OF) as store:
        pass
    file_of(store).write_bytes(b'{"mod')
    with AnswerStore(tmp_path, OF) as store:
        store.add([1], 0, [5])
    assert AnswerStore(tmp_path, OF).get([1], 0) == [5]
