"""A sweep on disk: what it gives, what an interruption leaves, and when a condition is asked anew."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import WIDTH, signed_identity

from reasoning_features import steering_sweep
from reasoning_features.benchmarks import Questions
from reasoning_features.conditions import UNSTEERED, Condition
from reasoning_features.steering import answers
from reasoning_features.steering_sweep import answers_resumable


class Grades:
    """Grades answers by their tokens; counts what it was given, and may break off."""

    def __init__(self):
        self.graded, self.most = 0, 10**9

    def __call__(self, numbers, continuations):
        if self.graded + len(numbers) > self.most:
            raise KeyboardInterrupt
        self.graded += len(numbers)
        told = {"length": [len(row) for row in continuations], "total": [sum(row) for row in continuations]}
        return pd.DataFrame({**told, "text": "long"})


@pytest.fixture
def questions():
    return Questions("two", [[0, 5, 6], [0, 9]], ["a"] * 2, 1, 8, ("length", "total"), Grades())


@pytest.fixture
def conditions():
    torch.manual_seed(0)
    return [Condition(f"c{i}", i, 1.0, vector=20 * torch.randn(WIDTH)) for i in range(3)]


def test_a_sweep_gives_the_answers_without_their_texts(tiny_subject, questions, conditions, tmp_path):
    sae = signed_identity(WIDTH)
    conditions = [*conditions, Condition("clamped", 3, 0.5, clamp=30.0)]
    swept = answers_resumable(tiny_subject, questions, conditions, 3, tmp_path, progress=None, sae=sae)
    plain = answers(tiny_subject, questions, conditions, 3, progress=None, sae=sae)
    pd.testing.assert_frame_equal(swept, plain.drop(columns="text"))


def test_an_interrupted_sweep_keeps_what_it_has_and_goes_on(
    tiny_subject, questions, conditions, tmp_path, monkeypatch
):
    monkeypatch.setattr(steering_sweep, "_ROWS_A_PIECE", 4)  # two conditions a piece
    whole = answers_resumable(tiny_subject, questions, conditions, 3, tmp_path / "whole", progress=None)
    questions.grade.graded, questions.grade.most = 0, 4
    with pytest.raises(KeyboardInterrupt):
        answers_resumable(tiny_subject, questions, conditions, 3, tmp_path / "cut", progress=None)
    assert len(list((tmp_path / "cut").iterdir())) == 2
    questions.grade.most = 8
    again = answers_resumable(tiny_subject, questions, conditions, 3, tmp_path / "cut", progress=None)
    assert questions.grade.graded == 8
    pd.testing.assert_frame_equal(again, whole)


def test_only_what_changed_is_asked_anew(tiny_subject, questions, conditions, tmp_path):
    def ask(conditions, seed=3, questions=questions):
        before = questions.grade.graded
        frame = answers_resumable(tiny_subject, questions, conditions, seed, tmp_path, progress=None)
        return frame, (questions.grade.graded - before) // 2

    assert ask(conditions)[1] == 4
    renamed = replace(conditions[0], name="renamed")
    other = replace(conditions[1], vector=-conditions[1].vector)
    frame, asked = ask([renamed, other])
    assert asked == 1
    assert frame["condition"].tolist() == [UNSTEERED] * 2 + ["renamed"] * 2 + ["c1"] * 2
    assert ask(conditions, seed=4)[1] == 4
    assert ask(conditions, questions=replace(questions, prompts=[[0, 5, 6], [0, 8]]))[1] == 4
