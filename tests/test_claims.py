from __future__ import annotations

import json

import pytest
from stub_notebooks import write_notebook

from reasoning_features import claims
from reasoning_features.errors import UserError
from reasoning_features.provenance import begin
from reasoning_features.settings import load_settings


@pytest.fixture
def run(repository):
    write_notebook(repository, "02_sae")
    return begin("02_sae", load_settings("organism"))


def claim(rule, bar=None):
    return claims.Claim("a", "02_sae", "", "", "", rule, bar)


@pytest.mark.parametrize(
    ("rule", "bar", "interval", "control", "expected"),
    [
        ("above control", None, (0.4, 0.6), 0.3, claims.AGREES),
        ("above control", None, (0.4, 0.6), 0.4, claims.UNDECIDED),
        ("above control", None, (0.4, 0.6), 0.5, claims.UNDECIDED),
        ("above control", None, (0.4, 0.6), 0.7, claims.DISAGREES),
        ("above control", None, None, 0.4, claims.AGREES),  # an exact 0.5 is its own interval
        ("at least", 0.4, (0.4, 0.6), None, claims.AGREES),
        ("at least", 0.5, (0.4, 0.6), None, claims.UNDECIDED),
        ("at least", 0.7, (0.4, 0.6), None, claims.DISAGREES),
        ("beside", None, (0.4, 0.6), 0.3, claims.BESIDE),
        ("planted", None, (0.4, 0.6), 0.3, claims.PLANTED),
    ],
)
def test_verdicts_follow_from_the_rule_and_the_interval(rule, bar, interval, control, expected):
    assert claims.verdict(claim(rule, bar), 0.5, interval, control, planted=True) == expected


def test_what_was_planted_is_only_shown_beside_on_a_real_model():
    assert claims.verdict(claim("planted"), 0.5, None, None, planted=False) == claims.BESIDE


def test_a_control_is_not_forgotten():
    with pytest.raises(ValueError, match="control"):
        claims.verdict(claim("above control"), 0.5, (0.4, 0.6), None, planted=True)


def test_claims_have_names_of_their_own_in_order_of_notebooks():
    assert len({c.id for c in claims.CLAIMS}) == len(claims.CLAIMS)
    notebooks = [c.notebook for c in claims.CLAIMS]
    assert notebooks == sorted(notebooks)
    assert all((c.bar is not None) == (c.rule == "at least") for c in claims.CLAIMS)


def test_recorded_claims_make_the_readmes_table(run, repository):
    assert claims.record(run, "variance_explained", 0.9711111111, (0.96, 0.98), 2048) == claims.AGREES
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
