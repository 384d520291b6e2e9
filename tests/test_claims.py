from __future__ import annotations

import json
from dataclasses import replace

import pytest
from stub_notebooks import write_notebook

from reasoning_features.bookkeeping.provenance import begin
from reasoning_features.errors import UserError
from reasoning_features.reporting import claims, paper_claims
from reasoning_features.settings import load_settings


@pytest.fixture
def run(repository):
    write_notebook(repository, "02_sae")
    return begin("02_sae", load_settings("organism"))


def claim(rule, bar=None):
    return paper_claims.Claim("a", "02_sae", "", "", "", rule, bar)


RULES = [
    ("above control", None, (0.4, 0.6), 0.3, True),
    ("above control", None, (0.4, 0.6), 0.4, None),
    ("above control", None, (0.4, 0.6), 0.5, None),
    ("above control", None, (0.4, 0.6), 0.7, False),
    ("above control", None, None, 0.4, True),  # an exact 0.5 is its own interval
    ("at least", 0.4, (0.4, 0.6), None, True),
    ("at least", 0.5, (0.4, 0.6), None, None),
    ("at least", 0.7, (0.4, 0.6), None, False),
    ("at most", 0.6, (0.4, 0.6), None, True),
    ("at most", 0.5, (0.4, 0.6), None, None),
    ("at most", 0.3, (0.4, 0.6), None, False),
]


@pytest.mark.parametrize(("rule", "bar", "interval", "control", "holds"), RULES)
def test_verdicts_follow_from_the_rule_and_the_interval(rule, bar, interval, control, holds):
    said = [claims.verdict(claim(rule, bar), 0.5, interval, control, planted) for planted in (True, False)]
    # on the organism the method is tested; only a real model can reproduce
    assert (
        said
        == {
            True: ["recovers the planted effect", "reproduced"],
            False: ["does not", "not reproduced"],
            None: ["undecided", "undecided"],
        }[holds]
    )


@pytest.mark.parametrize(
    ("interval", "narrow", "expected"),
    [
        ((0.01, 0.03), (0.012, 0.028), claims.RECOVERS),
        ((-0.03, -0.01), (-0.028, -0.012), claims.DOES_NOT),
        ((-0.055, 0.02), (-0.049, 0.015), claims.DOES_NOT),  # at most five points, surely
        ((-0.03, 0.06), (-0.02, 0.055), claims.UNDECIDED),  # it may be more
        ((-0.001, 0.03), (0.001, 0.028), claims.UNDECIDED),
    ],
)
def test_there_is_no_effect_only_where_it_is_shown(interval, narrow, expected):
    ours = sum(interval) / 2
    assert claims.verdict(claim("effect"), ours, interval, None, True, narrow) == expected


def test_what_cannot_be_judged_is_said():
    for rule in ("beside", "planted"):
        assert claims.verdict(claim(rule), 0.5, (0.4, 0.6), 0.3, planted=False) == claims.BESIDE
    assert claims.verdict(claim("beside"), 0.5, None, None, planted=True) == claims.BESIDE
    assert claims.verdict(claim("planted"), 0.5, None, None, planted=True) == claims.UNTESTABLE
    with pytest.raises(ValueError, match="no 90% interval"):
        claims.verdict(claim("effect"), 0.5, (0.4, 0.6), None, planted=True)


def test_a_control_is_not_forgotten():
    with pytest.raises(ValueError, match="control"):
        claims.verdict(claim("above control"), 0.5, (0.4, 0.6), None, planted=True)


def test_claims_have_names_of_their_own_in_order_of_notebooks():
    assert len({c.id for c in claims.ALL_CLAIMS}) == len(claims.ALL_CLAIMS)
    notebooks = [c.notebook for c in claims.ALL_CLAIMS]
    assert notebooks == sorted(notebooks)
    assert all((c.bar is not None) == (c.rule in ("at least", "at most")) for c in claims.ALL_CLAIMS)


def test_claims_of_other_papers_name_them_and_hold_or_do_not():
    assert all(bool(c.source) == (c.notebook in ("07_sanity_checks", "08_ortsae")) for c in claims.ALL_CLAIMS)
    other = replace(claim("at least", 0.4), source="2602.14111v1", place="table 2")
    assert other.where == "2602.14111v1, table 2" and claim("beside").where == ""
    for planted in (True, False):
        assert claims.verdict(other, 0.5, (0.45, 0.6), None, planted) == claims.HOLDS
        assert claims.verdict(other, 0.3, (0.2, 0.35), None, planted) == claims.HOLDS_NOT
        assert claims.verdict(other, 0.4, (0.3, 0.5), None, planted) == claims.UNDECIDED


def test_recorded_claims_make_the_readmes_table(run, repository):
    assert claims.record(run, "variance_explained", 0.9711111111, (0.96, 0.98), 2048) == claims.RECOVERS
    assert claims.record(run, "l0", 16.0) == claims.BESIDE
    held = json.loads((run.paths.figures / "claims_02_sae.json").read_text())
    assert held["variance_explained"]["ours"] == 0.971111 and held["l0"]["interval"] is None
    readme = repository / "README.md"
    readme.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
    assert claims.update_readme(readme, run.paths.figures)
    lines = readme.read_text().splitlines()
    assert lines[:2] == ["before", claims.BEGIN] and lines[-2:] == [claims.END, "after"]
    assert "86 of 65,536" in lines[4] and "| 16 | – | – | – | shown beside" in lines[4]
    assert "68.5%" in lines[5] and "| 0.9711 | 0.96 to 0.98 | 2048 |" in lines[5]
    assert not claims.update_readme(readme, run.paths.figures)
    assert "68.5%" in claims.show(run).data


def test_a_run_keeps_nothing_of_an_earlier_ones_claims(run, repository):
    path = run.paths.figures / "claims_02_sae.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"l0": {"ours": ')  # torn
    claims.record(run, "variance_explained", 0.97, (0.96, 0.98), 2048)
    assert list(json.loads(path.read_text())) == ["variance_explained"]


def test_every_claim_of_the_paper_is_listed():
    by_notebook = {}
    for listed in paper_claims.CLAIMS:
        by_notebook.setdefault(listed.notebook, set()).add(listed.id)
    assert {"steering_accuracy", "steering_length", "screening", "ban"} < by_notebook["05_steering"]
    assert {"diffing_absent", "diffing_appears", "cross_layer"} < by_notebook["06_diffing"]
    # what the paper does not test has no number of its own
    untested = [c for c in claims.ALL_CLAIMS if c.place == "not tested"]
    assert untested and all(c.paper == "–" for c in untested)


def test_a_difference_keeps_both_intervals(repository):
    write_notebook(repository, "05_steering")
    run = begin("05_steering", load_settings("organism"))
    said = claims.record(run, "steering_control", 0.01, (-0.03, 0.05), 1000, narrow=(-0.02, 0.04))
    assert said == claims.DOES_NOT
    held = json.loads((run.paths.figures / "claims_05_steering.json").read_text())["steering_control"]
    assert held["interval"] == [-0.03, 0.05] and held["interval_90"] == [-0.02, 0.04]
    assert claims.frame([run.paths.figures / "claims_05_steering.json"])["95% interval"][0] == "-0.03 to 0.05"


def test_what_cannot_be_tested_is_said(run, repository):
    assert claims.record_untestable(run, "second_seed") == claims.UNTESTABLE
    row = claims.frame([run.paths.figures / "claims_02_sae.json"]).iloc[0]
    assert row["verdict"] == "not testable here" and row["ours"] is None
    with pytest.raises(ValueError, match="no claim of 02_sae"):
        claims.record_untestable(run, "dials")


def test_another_notebooks_claim_is_refused(run):
    with pytest.raises(ValueError, match="no claim of 02_sae"):
        claims.record(run, "selected", 3)


def test_a_readme_without_markers_is_left_alone(repository):
    readme = repository / "README.md"
    readme.write_text("nothing\n")
    with pytest.raises(UserError, match="put them back"):
        claims.update_readme(readme, repository)
    assert readme.read_text() == "nothing\n"
