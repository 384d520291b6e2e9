"""A sweep on disk: what it gives, what an interruption leaves, and when a condition is asked anew."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import WIDTH, signed_identity

from reasoning_features.models.conditions import Condition
from reasoning_features.steering import generation
from reasoning_features.steering.answering import answers
from reasoning_features.steering.benchmarks import Questions
from reasoning_features.steering.steering_sweep import answers_resumable


def grade(numbers, continuations):
    told = {"length": [len(row) for row in continuations], "total": [sum(row) for row in continuations]}
    return pd.DataFrame({**told, "text": "long"})


@pytest.fixture
def questions():
    return Questions("two", [[0, 5, 6], [0, 9]], ["a"] * 2, 1, 8, ("length", "total"), grade)


@pytest.fixture
def conditions():
    torch.manual_seed(0)
    return [Condition(f"c{i}", i, 1.0, vector=20 * torch.randn(WIDTH)) for i in range(3)]


def test_a_sweep_gives_the_answers_without_their_texts(tiny_subject, questions, conditions, tmp_path):
    sae = signed_identity(WIDTH)
    conditions = [*conditions, Condition("clamped", 3, 0.5, clamp=30.0)]
    swept = answers_resumable(tiny_subject, questions, conditions, 3, tmp_path, sae=sae)
    plain = answers(tiny_subject, questions, conditions, 3, progress=None, sae=sae)
    pd.testing.assert_frame_equal(swept, plain.drop(columns=["text", "tokens"]))


def counted(monkeypatch, most=10**9):
    """Counts the answers that are made, and breaks off after some."""
    made, real = [], generation.continuations

    def wrapped(*given):
        if len(made) >= most:
            raise KeyboardInterrupt
        made.extend(given[-1])
        return real(*given)

    monkeypatch.setattr(generation, "continuations", wrapped)
    return made


def test_an_interrupted_sweep_keeps_what_it_has_and_goes_on(
    tiny_subject, questions, conditions, tmp_path, monkeypatch
):
    given = tiny_subject, questions, conditions, 3
    whole = answers_resumable(*given, tmp_path / "whole", size=4)  # two conditions a shard
    with monkeypatch.context() as patch:
        counted(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            answers_resumable(*given, tmp_path / "cut", size=4)
    made = counted(monkeypatch)
    again = answers_resumable(*given, tmp_path / "cut", size=4)
    assert made == [4, 5, 6, 7]
    pd.testing.assert_frame_equal(again, whole)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_what_is_finished_is_read_under_other_names_and_made_anew_when_anything_changes(
    tiny_subject, questions, conditions, tmp_path, monkeypatch
):
    made = counted(monkeypatch)

    def ask(conditions, seed=3, questions=questions):
        made.clear()
        return answers_resumable(tiny_subject, questions, conditions, seed, tmp_path), len(made)

    assert ask(conditions)[1] == 8
    frame, asked = ask([replace(conditions[0], name="renamed"), *conditions[1:]])
    assert asked == 0 and frame["condition"].tolist()[2:4] == ["renamed"] * 2
    assert ask([replace(conditions[0], vector=-conditions[0].vector), *conditions[1:]])[1] == 8
    assert ask(conditions, seed=4)[1] == 8
    assert ask(conditions, questions=replace(questions, prompts=[[0, 5, 6], [0, 8]]))[1] == 8


def test_shards_are_whole_conditions_or_parts_of_one():
    parts = generation._parts(3, 4, 7)
    assert parts == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert generation._parts(5, 2, 3) == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]
    assert generation._parts(2, 3, 100) == [[0, 1, 2, 3, 4, 5]]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}
