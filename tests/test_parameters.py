from __future__ import annotations

import pytest
from stub_notebooks import write_notebook

from reasoning_features.bookkeeping.parameters import Parameter, check, declared, split
from reasoning_features.errors import UserError


@pytest.fixture
def notebooks(tmp_path):
    other = 'from typing import Optional\nprofile: str = "organism"\nlayer: Optional[int] = None  # block'
    return [
        write_notebook(tmp_path, "01_one", parameters=other),
        write_notebook(tmp_path, "02_two"),
    ]


def test_the_parameters_cell_is_read_with_types_and_defaults(notebooks):
    found = declared(notebooks[1])
    assert list(found) == ["profile", "alpha", "window", "device"]
    assert found["profile"].default == "organism" and found["alpha"].annotation == "Optional[float]"


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("Optional[float]", "0.3", 0.3),
        ("Optional[float]", "1", 1.0),
        ("Optional[float]", "1e-3", 1e-3),  # YAML alone takes it for a word
        ("Optional[int]", "3", 3),
        ("Optional[list[int]]", "[1,2]", [1, 2]),
        ("Optional[tuple[int, int]]", "[1,2]", [1, 2]),
        ("Optional[list[str]]", "[wait, let me]", ["wait", "let me"]),
        ("Optional[str]", "released", "released"),
        ("Optional[str]", "1.50", "1.50"),
        ("Optional[Literal['paper', 'released']]", "paper", "paper"),
        ("Optional[bool]", "true", True),
    ],
)
def test_text_becomes_a_value_of_the_declared_type(annotation, text, value):
    parsed = Parameter("x", annotation, None).parse(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("Optional[float]", "much"),
        ("Optional[int]", "0.5"),
        ("Optional[list[int]]", "[1,x]"),
        ("Optional[tuple[int, int]]", "[1,2,3]"),
        ("Optional[Literal['paper', 'released']]", "mine"),
    ],
)
def test_text_of_another_type_is_refused(annotation, text):
    with pytest.raises(UserError, match="not of the type"):
        Parameter("x", annotation, None).parse(text)


def test_words_are_split_as_by_a_shell():
    assert split("alpha=0.3 window='[1, 2]' name=a=b") == {"alpha": "0.3", "window": "[1, 2]", "name": "a=b"}
    assert split("  ") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpha", "name=value"),
        ("=3", "name=value"),
        ("alpha='0.3", "quotes"),
        ("alpha=1 alpha=2", "twice"),
        ("profile=smoke", "PROFILE=smoke"),
        ("device=cuda", "DEVICE=cuda"),
    ],
)
def test_malformed_words_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        split(text)


def test_each_notebook_takes_the_overrides_it_declares(notebooks):
    assert check(notebooks, "alpha=0.3 layer=2") == {"01_one": {"layer": 2}, "02_two": {"alpha": 0.3}}


def test_a_parameter_that_no_asked_notebook_declares_is_refused(notebooks):
    with pytest.raises(UserError, match=r"no parameter 'alpha' in 01_one: there are layer\."):
        check(notebooks[:1], "alpha=0.3")
    with pytest.raises(UserError, match=r"no parameter 'layer' in 02_two: there are alpha, window\."):
        check(notebooks, "layer=2", asked=["02_two"])
    assert check(notebooks, "alpha=0.3", asked=["02_two"])["01_one"] == {}


def test_a_type_that_is_not_known_is_named():
    with pytest.raises(UserError, match="Tensor"):
        Parameter("x", "Optional[Tensor]", None).parse("1")


def test_a_parameters_cell_without_types_is_refused(tmp_path):
    for cell in ("alpha = 3", "alpha: float"):
        path = write_notebook(tmp_path, "03_three", parameters=cell)
        with pytest.raises(UserError, match="Line 1"):
            declared(path)
