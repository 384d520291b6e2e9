"""Finished answers on disk: found again, never doubled, and whole whatever interrupted the writing."""

from __future__ import annotations

import json

from reasoning_features.answer_store import AnswerStore

OF = {"model": "m", "seed": 0}


def test_answers_are_found_by_prompt_and_stream(tmp_path):
    with AnswerStore(tmp_path / "made", OF) as store:
        store.add([1, 2], 0, [5, 6])
        store.add([1, 2], 1, [7])
    again = AnswerStore(tmp_path / "made", OF)
    assert again.file == store.file and len(again) == 2
    assert (again.get([1, 2], 0), again.get([1, 2], 1), again.get([1], 0)) == ([5, 6], [7], None)
    assert json.loads(store.file.read_text().splitlines()[0]) == OF
    assert AnswerStore(tmp_path / "made", OF | {"seed": 1}).file != store.file


def test_a_torn_line_is_passed_over_and_does_not_spoil_the_next(tmp_path):
    with AnswerStore(tmp_path, OF) as store:
        store.add([1], 0, [5, 6])
        store.add([1], 1, [7, 8])
    store.file.write_bytes(store.file.read_bytes()[:-4])
    with AnswerStore(tmp_path, OF) as store:
        assert len(store) == 1 and store.get([1], 1) is None
        store.add([1], 2, [9])
        store.add([1], 1, [7, 8])
    again = AnswerStore(tmp_path, OF)
    assert [again.get([1], stream) for stream in range(3)] == [[5, 6], [7, 8], [9]]


def test_a_file_of_one_torn_line_is_begun_again(tmp_path):
    with AnswerStore(tmp_path, OF) as store:
        pass
    store.file.write_bytes(b'{"mod')
    with AnswerStore(tmp_path, OF) as store:
        store.add([1], 0, [5])
    assert AnswerStore(tmp_path, OF).get([1], 0) == [5]
