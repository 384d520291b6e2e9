"""Grades of answers: boxes, letters and formulas, none of which is ever run."""

import time
from decimal import Decimal
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning_features.steering import grading
from reasoning_features.steering.grading import graded_formula


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"so \boxed{3}, no: \boxed{\frac{1}{2}}. \boxed{ }", r"\frac{1}{2}"),
        (r"\boxed{ {a} \text{ and } b }", r"{a} \text{ and } b"),
        (r"$\boxed 5$, or \fbox12 in \boxed.", "12"),
        (r"\boxed {\left\{1\right.}, the word \boxed was asked", r"\left\{1\right."),
        (r"\boxed{3", None),
        (r"\boxed{}", None),
        ("nothing", None),
    ],
)
def test_the_last_box_counts(text, held):
    assert grading.boxed(text) == held


GRADES: list[tuple[str, list[str], list[str]]] = [  # a truth, answers that equal it, answers that do not
    ("204", ["204.0", "0204", "$204$", r"\mathbf{204}.", r"204\text{ cm}", "204 apples"], ["203", "2 04"]),
    (r"\frac{1}{2^{99}}", ["2^{-99}"], [r"\frac{1}{2^{98}}", "0"]),
    (r"\pi 10^{-30}", [r"\frac{\pi}{10^{30}}"], [r"\pi 10^{-31}"]),
    (r"\{10^{-20}, 1\}", ["1, 10^{-20}"], [r"\{10^{-21}, 1\}", "(10^{-20}, 1)"]),
    ("x = 10^{-20}", ["10^{-20}"], ["x = 10^{-21}", "y = 10^{-20}"]),
    ("2^{100}", ["1267650600228229401496703205376"], ["1267650600228229401496703205377", "2100"]),
    ("12345", ["12,345", r"12\,345", "12{,}345", "12 345", r"12,\!345"], ["12 34 5", "123 45", "12, 345"]),
    ("12", ["12,", "12;", r"12\\", "１２", r"\underline{12}", r"\phantom{1}12", r"\text{Answer: }12"], [
        "1 2", "1$2$", r"1 \text{ } 2", "1,2", r"\phantom{1}11", "12...", "[12]", r"\{12\}", r"12\text{ 0}"]),
    ("5", ["x=5", "5=x", "f(2)=5", "a_1 = 5", "5 feet", "5_{10}"], [r"\sqrt{x}=5", "x(2)=5", r"x \approx 5",
        *(f"{side}=5" for side in ("x+1", "2x", "x^2", "|x|", "x+y", "x,y", "2+x", "y+0x")),
        *(f"5 {word}" for word in ("tenths", "lakh", "bn", "twice", "wrong", "log", "permille", "pm"))]),
    ("0", ["x=0"], ["x^2+1=0", r"\sin x = 0"]), ("2x+3", ["y=2x+3", "f(x)=2x+3"], ["2y=2x+3", "x=2x+3"]),
    ("(2,3)", ["(x,y)=(2,3)"], ["(y,x)=(2,3)", "2,3"]), ("1,-2", ["-2,1"], ["(1,-2)", "1,-2,-2"]),
    ("1.5e-3", [r"1.5\times10^{-3}", "0.0015", "1.5 x 10^-3"], ["1.5e-2", "1.5", "0.00150001"]),
    (r"0.1\overline{6}", [r"\frac16"], ["0.16", "0.1666667"]),
    (r"2\frac{1}{2}", ["2.5", "2 1/2", "2½", r"\dfrac52"], [r"\frac{21}{2}", "5:2", r"2(\frac{1}{2})"]),
    ("6", ["2(3)", "3!", r"\log_2 64"], ["(2)(4)", "5!", r"6\text{ million}", r"6\text{ or more}", "6_7"]),
    ("[0,1)", [r"0 \le x < 1", r"x\in[0,1)"], ["(0,1)", r"0 \le x \le 1", r"\{0,1\}"]),
    (r"(-\infty,0)\cup(0,\infty)", [r"x \ne 0", "x<0 or x>0"], [r"x \ge 0", r"\mathbb{R}"]),
    (r"\emptyset", [r"\varnothing", r"\{\}"], ["0", r"\{0\}"]), (r"\mathbb{R}", ["all real numbers"], ["R"]),
    (r"\pm 3", [r"3 \text{ and } -3", "x=3 or x=-3"], ["3", "-3"]),
    ("1,2", ["2, 1", r"1 \text{ and } 2"], ["2", "1,1,2", r"1,2,\ldots"]),
    ("x=1, y=2", ["(1,2)", "y=2, x=1"], ["(2,1)", r"x=2\text{ and }y=1"]),
    (r"( 3, \frac{\pi}{2} )", [r"\left(3,\dfrac{\pi}{2}\right)"], [r"(\frac{\pi}{2},3)"]),
    ("R^2-r^2", ["(R-r)(R+r)"], ["0", "r^2-R^2"]),
    ("x^2", ["x²", "x·x"], ["X^2", "x2"]), (r"\theta", ["θ"], [r"\Theta"]), ("xyz", [], ["XYZ"]),
    ("e^{i\\pi/3}", [r"\frac{1}{2}+\frac{\sqrt3}{2}i"], [r"\frac{1}{2}-\frac{\sqrt3}{2}i", "I^2"]),
    ("x^2+1=0", ["2x^2+2=0"], ["x^2+2=0"]),
    (r"13\text{ cm}", ["13", "13 cm", r"13\,\mathrm{centimeters}"], ["13 m", r"13\text{ cm}^2", "13 inches"]),
    (r"13\text{ m}^2", ["13 square meters"], [r"13\text{ m}^3", r"13\text{ cubic meters}"]),
    (r"90^\circ", ["90", "90°", r"90\degree", r"90\text{ degrees}"], [r"90\text{ radians}", r"91^\circ"]),
    (r"\sin 30^\circ", ["0.5"], [r"\sin 30", r"\sin 60^\circ"]), ("27", ["27_{10}"], ["27_8"]),
    (r"\$18.90", ["18.90", r"18.9\text{ dollars}"], ["€18.90", r"18.90\text{ cents}"]),
    (r"\sin(x/\cos x)", [], [r"\sin x/\cos x"]), ("5i", [], [r"\sum_{i=1}^{5}i"]), ("A3_{16}", [], ["A3"]),
    (r"28\%", ["28", "0.28", r"28\text{ percent}"], ["2800", r"0.28\%"]),
    ("0.5", [r"50\%"], [r"0.5\%"]), (r"3\text{ hours }20\text{ minutes}", [], ["3", "20 minutes"]),
    ("2516_8", ["2516_{8}", "2516"], ["2516_9"]), ("1:30", ["1 : 30"], ["2:60", "1", r"\frac{1}{30}"]),
    ("1:2:3", [], ["1:1:6", r"\frac16"]), (r"\text{cat}", ["cat"], ["act"]), ("cats", ["Cats"], ["cat"]),
    (r"\text{Evelyn}", ["evelyn", r"\textbf{Evelyn}", "The answer is Evelyn."], ["Evelyn or Carla", "Eve"]),
    (r"\text{even}", [r"\text{The function is even}"], [r"\text{The function is not even}"]),
    (r"\text{No solution}", ["no solutions"], [r"\text{One solution}"]), (r"\text{(C)}", ["C"], ["D"]),
    (r"\begin{pmatrix}1\\-1/2\end{pmatrix}", [r"\begin{bmatrix} 1 \\ -0.5 \end{bmatrix}"], ["(1)", "1, 2"]),
]  # fmt: skip


@pytest.mark.parametrize(("truth", "equal", "other"), GRADES)
def test_equal_answers_are_right_and_vote_with_the_truth_and_no_other_is(truth, equal, other):
    vote = graded_formula(truth, truth)
    assert {answer: graded_formula(truth, answer) for answer in equal} == dict.fromkeys(equal, vote)
    assert {answer: graded_formula(truth, answer)[0] for answer in other} == dict.fromkeys(other, False)


@settings(max_examples=40, deadline=None)
@given(st.integers(-(10**8), 10**8), st.integers(0, 6), st.integers(-(10**8), 10**8))
def test_a_number_is_right_however_it_is_written_and_every_other_number_is_wrong(number, places, other):
    value = Decimal(number).scaleb(-places)
    ways = [rf"{number}\times10^{{-{places}}}", f"{number}e-{places}", rf"\frac{{{number}}}{{{10**places}}}"]
    ways += ["/".join(map(str, value.as_integer_ratio())), f"{value:f}", f"{value:,.{places + 1}f}"]
    for truth in (ways[0], ways[-2]):
        assert [way for way in ways if not graded_formula(truth, way)[0]] == []
        assert graded_formula(truth, f"{Decimal(other).scaleb(-places):f}")[0] == (other == number)


def test_unreadable_answers_are_wrong_and_equal_wrong_ones_vote_together():
    assert not any(graded_formula("5", answer)[0] for answer in (r"\text{", "}{", "é" * 500))
    votes = {graded_formula("7", answer) for answer in (r"\frac{3}{4}", "0.75", r"\dfrac{6}{8}", "3/4")}
    assert votes == {(False, "3/4")}
    assert graded_formula("7", None) == (False, None)


def test_nothing_in_an_answer_is_run(tmp_path):
    target = tmp_path / "written"
    code = f"__import__('pathlib').Path('{target}').touch()"
    for answer in (code, rf"\text{{{code}}}", rf"\operatorname{{exec}}({code})"):
        graded_formula("5", answer)
    assert not target.exists()


B = r"""B|b|(b)|(B)|{B}|[B]|\textrm{B}|\text{(B)}|\(B\)|$B$|B.|b)|\textbf{B}) 42|Option B|Answer: B|B) 5 C|
The answer is B|I think B|**B**|\text{B is correct.}|B because C is wrong|\text{B: } \frac{1}{2}|
B, because A is wrong|B,|B!|B\;(42)"""
NONE = """B and C|B or D|B/C|B, C|(B) and (C)|B) 42 or C) 3|b or c|B. C.|A, B|BC|B C|not B|B, not C|Both|
10 eV|A cat|J|either B or C|all but B|I think so|B) but D too|B) c|b) c|B) see D"""


@pytest.mark.parametrize("letters", ["ABCD", "ABCDEFGHI"])
def test_a_choice_is_one_letter_of_the_problems_own(letters):
    grade = partial(grading.graded_letter, "B", letters=letters)
    assert {each: grade(each) for each in B.split("|")} == dict.fromkeys(B.split("|"), (True, "B"))
    assert [each for each in [*NONE.split("|"), None] if grade(each) != (False, None)] == []
    assert grade(r"\text{(C)}") == (False, "C")


@pytest.mark.parametrize("answer", ["9^{9^{9^9}}", "10000000!", r"\sum_{k=1}^{10^7} \frac1{k^2}", "(" * 300])
def test_a_comparison_without_end_is_ended(monkeypatch, answer):
    monkeypatch.setattr(grading, "SECONDS", 1)
    began = time.monotonic()
    assert not graded_formula("5", answer)[0]
    assert time.monotonic() - began < 4
    assert graded_formula("6", r"\frac{12}{2}")[0]
