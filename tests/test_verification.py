from __future__ import annotations

import json

import pytest

from reasoning_features.running.verification import compare, report, tolerance


@pytest.fixture
def pair(tmp_path):
    def write(name, committed, rebuilt):
        paths = []
        for folder, text in (("committed", committed), ("rebuilt", rebuilt)):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is not None:
                path.write_text(text)
            paths.append(path)
        return paths

    return write


@pytest.mark.parametrize(
    ("committed", "rebuilt", "agree", "said"),
    [
        ("x,w\n1,a\n", "x,w\n1,a\n", True, "same bytes"),
        ("x,w\n1,a\n", "x,w\n1.0005,a\n", True, "largest difference 0.0005"),  # 1e-4 + 1e-3·1
        ("x,w\n1,a\n", "x,w\n1.002,a\n", False, "column x"),
        ("x,w\n1,a\n", "x,w\n1,b\n", False, "column w"),
        ("x,w\n1,a\n", "x,w\n1,a\n2,a\n", False, "shape"),
        ("x,w\n1,a\n", "y,w\n1,a\n", False, "shape"),
        ("x,w\n,a\n", "x,w\n,a\r\n", True, "largest difference 0"),
        ("x,w\n,a\n", "x,w\n1,a\n", False, "column x"),
    ],
)
def test_numbers_are_compared_within_the_declared_tolerance(pair, committed, rebuilt, agree, said):
    result = compare(*pair("x03_grid.csv", committed, rebuilt))
    assert result[0] == agree and said in result[1]


def test_what_is_trained_live_may_differ_more():
    assert tolerance("x02_curves.csv").relative > tolerance("x03_grid.csv").relative


@pytest.mark.parametrize(
    ("rebuilt", "agree", "said"),
    [
        ("<p style=--a:.51>wait 2.31e-05</p>", True, "largest difference 0.01"),
        ("<p style=--a:.53>wait 2.3e-05</p>", False, "a number lies beyond"),
        ("<p style=--a:.50>hmm 2.3e-05</p>", False, "other words"),
    ],
)
def test_pages_have_the_same_words_and_numbers_that_are_near(pair, rebuilt, agree, said):
    result = compare(*pair("features/index.html", "<p style=--a:.50>wait 2.3e-05</p>", rebuilt))
    assert result[0] == agree and said in result[1]


def test_claims_agree_when_numbers_are_near_and_verdicts_the_same(pair):
    def text(ours, verdict):
        return json.dumps({"a": {"ours": ours, "interval": [0, ours], "n": None, "verdict": verdict}})

    assert compare(*pair("claims_03_a.json", text(1, "agrees"), text(1.0001, "agrees")))[0]
    assert not compare(*pair("claims_03_a.json", text(1, "agrees"), text(1, "undecided")))[0]
    assert not compare(*pair("claims_03_a.json", text(1, "agrees"), text(1.1, "agrees")))[0]


def test_the_report_counts_equal_bytes_and_fails_on_a_file_that_is_missing(pair, capsys, tmp_path):
    pair("a.png", "1", "2")
    pair("b.csv", "x\n1\n", "x\n1\n")
    assert report(tmp_path / "committed", tmp_path / "rebuilt") == 0
    said = capsys.readouterr().out
    assert "a.png: other bytes" in said and "1 of 2 files have the same bytes; 0 differ" in said
    pair("c.csv", "x\n1\n", None)
    pair("d.csv", None, "x\n1\n")
    assert report(tmp_path / "committed", tmp_path / "rebuilt") == 1
    said = capsys.readouterr().out
    assert "c.csv: not rebuilt" in said and "d.csv: not committed" in said and "2 differ" in said
