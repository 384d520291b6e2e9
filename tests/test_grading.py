"""Answers in boxes: found, compared as formulas, texts and letters, and never run."""

from __future__ import annotations

import time

import pytest

from reasoning_features.steering import grading
from reasoning_features.steering.grading import boxed, graded_formula, graded_letter


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"so \boxed{3}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{ {a} \text{ and } b }", r"{a} \text{ and } b"),
        (r"\boxed{3", None),
        (r"\boxed{}", None),
        ("nothing", None),
    ],
)
def test_the_last_box_counts(text, held):
    assert boxed(text) == held


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("204", "204.0"),
        ("025", "25"),
        (r"\frac{1}{2}", "0.5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"),
        ("p - q", "-q+p"),
        (r"11\sqrt2", r"\sqrt{242}"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"90^\circ", "90"),
        ("10,080", "10080"),
    ],
)
def test_equal_answers_are_right_and_vote_with_the_truth(truth, answer):
    assert graded_formula(truth, answer) == (True, graded_formula(truth, truth)[1])


@pytest.mark.parametrize(
    ("truth", "answer"),
    [("204", "203"), ("(1,2)", "(2,1)"), ("p - q", "q - p"), ("5", r"\text{"), ("5", "}{"), ("5", "é" * 500)],
)
def test_other_answers_are_wrong(truth, answer):
    assert not graded_formula(truth, answer)[0]


def test_equal_wrong_answers_vote_together():
    votes = {graded_formula("7", answer) for answer in (r"\frac{3}{4}", "0.75", r"\dfrac{6}{8}", "3/4")}
    assert votes == {(False, "3/4")}
    assert graded_formula("7", None) == (False, None)


def test_nothing_in_an_answer_is_run(tmp_path):
    target = tmp_path / "written"
    code = f"__import__('pathlib').Path('{target}').touch()"
    for answer in (code, rf"\text{{{code}}}", rf"\operatorname{{exec}}({code})"):
        graded_formula("5", answer)
    assert not target.exists()


def test_a_comparison_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 1.0)
    graded_formula("1", "2")  # the process is there
    began = time.monotonic()
    assert not graded_formula("5", "9^{9^{9^{9}}}")[0]
    assert time.monotonic() - began < 3
    monkeypatch.undo()
    assert graded_formula("6", r"\frac{12}{2}")[0]


@pytest.mark.parametrize(
    ("answer", "named"),
    [("B", "B"), (r"\text{B}", "B"), ("(B)", "B"), ("B) 10 eV", "B"), (r"\textbf{(B)}", "B"), ("Both", None),
     ("10 eV", None), (None, None)],
)  # fmt: skip
def test_choices_are_letters(answer, named):
    assert graded_letter("B", answer) == (named == "B", named)
