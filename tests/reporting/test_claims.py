"""Claims: their rules as data, the verdicts that follow, and the tables of what came out."""

import json
import math
import re

import pytest
from stub_notebooks import write_notebook

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.reporting import claims
from reasoning_features.reporting.claims import Claim, Interval, Measured
from reasoning_features.runs.execution import NEEDS
from reasoning_features.runs.provenance import begin
from reasoning_features.settings import load_settings

ABOUT_HALF = Interval(0.5, 0.4, 0.6, n=10)


@pytest.fixture
def run(repository):
    write_notebook(repository, "02_sae")
    return begin("02_sae", load_settings("organism"))


def claim(comparison, line=None, paper=claims.MAIN_PAPER, number="1", planted=True, **rule):
    rule |= {"quantity": "q", "unit": "u", "comparison": comparison, "line": line}
    told = {"statement": "s", "falsified": "f", "place": "table 2"}
    told |= {"paper": paper, "number": number, "planted": planted}
    return Claim(id="a", notebook="02_sae", rule=rule, **told)


@pytest.mark.parametrize(
    ("comparison", "line", "value", "control", "holds"),
    [
        ("above", "control", ABOUT_HALF, 0.3, True), ("above", "control", ABOUT_HALF, 0.4, None),
        ("above", "control", ABOUT_HALF, 0.7, False),
        ("above", "control", 0.5, 0.4, True),  # an exact 0.5 is its own interval
        ("at least", 0.4, ABOUT_HALF, None, True), ("at least", 0.5, ABOUT_HALF, None, None),
        ("at least", 0.7, ABOUT_HALF, None, False), ("at most", 0.6, ABOUT_HALF, None, True),
        ("at most", 0.5, ABOUT_HALF, None, None), ("at most", 0.3, ABOUT_HALF, None, False),
    ],
)  # fmt: skip
def test_verdicts_follow_from_the_rule_and_the_interval(comparison, line, value, control, holds):
    def said(organism, **told):
        return claims.verdict(claim(comparison, line, **told), Measured(value, control), organism)

    # on the organism the method is tested; only a real model can reproduce, and only what the paper measured
    words = {True: ("recovers the planted effect", "reproduced", "holds here")}
    words |= {False: ("does not", "not reproduced", "does not hold here"), None: ("undecided",) * 3}
    assert (said(True), said(False), said(False, number="–")) == words[holds]
    assert said(True, number="–") == words[holds][0]
    assert said(True, planted=False) == words[holds][2]  # there is no effect to recover
    assert {said(real, paper="2602.14111v1") for real in (True, False)} == {words[holds][2]}


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ((0.02, 0.08), (0.03, 0.07), claims.RECOVERS),
        ((0.01, 0.03), (0.012, 0.028), claims.DOES_NOT),  # sure, and too small to matter
        ((-0.03, -0.01), (-0.028, -0.012), claims.DOES_NOT),
        ((-0.055, 0.02), (-0.049, 0.015), claims.DOES_NOT),  # at most five points, surely
        ((-0.03, 0.06), (-0.02, 0.055), claims.UNDECIDED),  # it may be more
    ],
)
def test_a_difference_is_none_only_within_its_margin(wide, narrow, expected):
    given = Measured(Interval(0.0, *wide, n=9), narrow=Interval(0.0, *narrow, n=9))
    assert claims.verdict(claim("above", 0, margin=0.05), given, True) == expected


def test_what_is_shown_beside_is_not_judged_and_a_lacking_control_is_told():
    assert claims.verdict(claim("shown beside"), Measured(0.5), True) == claims.BESIDE
    assert claims.verdict(claim("real models only"), Measured(0.5), False) == claims.BESIDE
    assert claims.verdict(claim("real models only"), Measured(0.5), True) == claims.UNTESTABLE
    alone = Measured(Interval(0.5, math.nan, math.nan, 1))
    assert claims.verdict(claim("above", 0), alone, True) == claims.UNDECIDED
    unmeasured = {"control": claim("above", "control"), "90% interval": claim("above", 0, margin=0.05)}
    for lacks, asked in unmeasured.items():
        with pytest.raises(UserError, match=f"02_sae gives claim 'a' of claims.yaml no {lacks}"):
            claims.verdict(asked, Measured(0.5), True)


def test_the_claims_are_complete_and_in_order():
    listed = claims.all_claims()
    assert len({c.id for c in listed}) == len(listed) >= 48
    assert [c.notebook for c in listed] == sorted(c.notebook for c in listed)
    for c in listed:
        assert (paths.root() / "notebooks" / f"{c.notebook}.ipynb").is_file()
        assert c.statement.endswith(".") and c.falsified.endswith(".")
        assert (c.rule.line is not None) == (c.rule.comparison in ("above", "at least", "at most"))
        # what a paper does not test has no number of its own
        assert c.place != "not tested" or c.number == "–"
    assert sum(c.headline for c in listed) == 10


def test_committed_verdicts_follow_from_the_rules():
    files = sorted((paths.root() / "figures" / "organism").glob("claims_*.json"))
    recorded = {name: row for path in files for name, row in json.loads(path.read_text()).items()}
    organism = load_settings("organism")
    left_out = {number for numbers, _, has in NEEDS if not has(organism) for number in numbers}
    made = [c for c in claims.all_claims() if c.notebook[:2] not in left_out]
    assert set(recorded) == {c.id for c in made}
    for c in made:
        row = recorded[c.id]
        if row["ours"] is not None:
            value = Interval(row["ours"], *row["interval"], n=row["n"]) if row["interval"] else row["ours"]
            narrow = Interval(row["ours"], *row["interval_90"], n=0) if "interval_90" in row else None
            given = Measured(value, row["control"], narrow)
            assert claims.verdict(c, given, planted=True) == row["verdict"], c.id


def test_a_notebooks_claims_are_written_together_and_what_is_left_out_was_untestable(run):
    path = run.paths.figures / "claims_02_sae.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"l0": {"ours": ')  # torn
    explained = Interval(0.9711111111, 0.96, 0.98, n=2048)
    shown = claims.record(run, {"variance_explained": explained, "l0": 16.0})
    written = json.loads(path.read_text())
    assert written["variance_explained"] == {
        "ours": 0.971111, "interval": [0.96, 0.98], "n": 2048, "control": None, "verdict": claims.HOLDS
    }  # fmt: skip
    assert written["l0"]["interval"] is None and written["l0"]["verdict"] == claims.BESIDE
    assert written["second_seed"]["ours"] is None
    lines = shown.data.splitlines()
    assert "86 of 65,536" in lines[2] and "| 16 | shown beside" in lines[2]
    assert "68.5%" in lines[3] and "| 0.9711; 0.96 to 0.98; 2048 documents |" in lines[3]
    assert "not testable here" in lines[4] and len(lines) == 5
    with pytest.raises(ValueError, match="hyperparameters: no claim of 02_sae"):
        claims.record(run, {"hyperparameters": 0.5})


def test_recorded_claims_make_the_tables(run, repository):
    claims.record(run, {"l0": 16.0, "variance_explained": Interval(0.97, 0.96, 0.98, n=2048)})
    readme, figures = repository / "README.md", run.paths.figures
    readme.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
    claims.write_tables(figures, readme)
    assert re.search(r"86 of 65,536.*\| 16 \|", (figures / "claims.md").read_text())
    # 0.97 lies 28 half intervals above the line of 0.685, and is drawn at the end
    (ax,) = claims.draw_summary(claims.summary(figures.glob("claims_*.json"))).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["2503.18878 · variance_explained"]
    assert ax.containers[0].lines[0].get_xdata().tolist() == [claims.FARTHEST]
    assert (figures / "claims.png").is_file()
    lines = readme.read_text().splitlines()
    assert lines[:2] == ["before", claims.BEGIN] and lines[-2:] == [claims.END, "after"]
    assert "68.5%" in lines[4] and len(lines) == 7  # l0 is no headline
    readme.write_text("nothing\n")
    claims.write_tables(figures)
    with pytest.raises(UserError, match="put them back"):
        claims.write_tables(figures, readme)
    assert readme.read_text() == "nothing\n"
