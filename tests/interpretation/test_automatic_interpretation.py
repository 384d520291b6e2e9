"""What steering changes, and the group that follows; a judge behind an endpoint that is a stub."""

import json

import httpx
import numpy as np
import pandas as pd
import pytest

from reasoning_features.errors import UserError
from reasoning_features.interpretation import automatic_interpretation as asked
from reasoning_features.interpretation.automatic_interpretation import BROKEN, KEY, NO_CHANGE
from reasoning_features.interpretation.features import Example
from reasoning_features.models.conditions import UNSTEERED

N = 30
MEASURES = ("thinking_tokens", "verify", "parseable")


def test_changes_and_groups():
    # feature 1 adds 10 tokens a unit of γ; 2 does nothing; 3 spoils the form; 4 spoils it upwards only
    rng = np.random.default_rng(0)
    tokens, checks = rng.integers(30, 50, N), rng.integers(0, 2, N)
    rows = [(UNSTEERED, -1, 0.0, tokens, checks, True)]
    for gamma in (-1.0, 1.0):
        rows.append((f"1 at {gamma}", 1, gamma, tokens + 10 * gamma, checks, True))
        rows.append((f"2 at {gamma}", 2, gamma, tokens, checks, True))
        rows.append((f"3 at {gamma}", 3, gamma, tokens, checks, False))
        rows.append((f"4 at {gamma}", 4, gamma, tokens, checks + (gamma < 0), gamma < 0))
    columns = ("condition", "feature", "gamma", *MEASURES)
    parts = [pd.DataFrame(dict(zip(columns, row, strict=True)) | {"problem": range(N)}) for row in rows]
    changed = asked.changes(pd.concat(parts, ignore_index=True), MEASURES)
    found = changed.set_index(["feature", "measure"])
    # strengths that spoil the form are left out: of 3 all, of 4 the positive one
    bounds = changed.groupby("feature")[["low", "high"]].first()
    assert bounds.to_numpy().tolist() == [[-1, 1], [-1, 1], [0, 0], [-1, 0]]
    # +10 less −10: 20 tokens on every problem, so the interval has no width.
    assert found.loc[(1, "thinking_tokens"), "change"] == pytest.approx(20)
    assert found.loc[(1, "thinking_tokens"), "change low"] == pytest.approx(20)
    # unsteered (0) less γ = −1 (one more check on every problem): −1.
    assert found.loc[(4, "verify"), "change"] == pytest.approx(-1)
    groups = asked.function_groups(changed).set_index("feature")["group"]
    assert groups.to_dict() == {1: "thinks longer", 2: NO_CHANGE, 3: BROKEN, 4: "checks less"}


def test_shares_of_each_class():
    chosen = pd.DataFrame({"group": ["goes on", "goes on", "checks", "goes on"]})
    random = pd.DataFrame({"group": ["none", "checks"]})
    shares = asked.group_shares({"chosen": chosen, "random": random})
    found = shares.set_index(["class", "group"])["share"]
    assert found["chosen", "goes on"] == pytest.approx(0.75)
    assert found["random", "goes on"] == 0
    assert found["random", "checks"] == pytest.approx(0.5)
    # Mean shares: goes on .375, checks .375, none .25.
    assert list(shares["group"].unique())[-1] == "none"
    assert (shares["low"] <= shares["share"]).all() and (shares["share"] <= shares["high"]).all()
    assert asked.group_shares({}).empty


GOOD = '{"mode": "reflection", "description": "checks a sum"}'
QUESTIONS = {3: "three", 5: "five", 8: "eight"}
URL = "http://judge/v1"


@pytest.fixture
def endpoint(monkeypatch):
    """What the endpoint says of some questions (others get a good answer), and what it was sent."""
    said, sent = {}, []

    def post(address, json, headers, timeout):
        sent.append({"address": address, "key": headers.get("Authorization")} | json)
        answer = said.get(json["messages"][-1]["content"], GOOD)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            answer = httpx.Response(200, json={"choices": [{"message": {"content": answer}}]})
        answer.request = httpx.Request("POST", address)
        return answer

    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(httpx, "post", post)
    return said, sent


@pytest.fixture
def kept(repository):
    return repository / "build" / "judge.json"


def test_good_answers_are_kept_and_not_asked_for_again(endpoint, kept):
    _, sent = endpoint
    answers, problem = asked.judge(URL, "m", QUESTIONS, kept)
    assert problem is None and answers["feature"].tolist() == [3, 5, 8]
    assert set(answers["mode"]) == {"reflection"} and set(answers["description"]) == {"checks a sum"}
    assert sent[0]["address"] == f"{URL}/chat/completions" and sent[0]["model"] == "m"
    again, _ = asked.judge(URL, "m", QUESTIONS, kept)
    assert again.equals(answers) and len(sent) == 3
    # another model, or another question about the feature, is another answer
    asked.judge(URL, "n", {3: "three"}, kept)
    asked.judge(URL, "m", {3: "more"}, kept)
    assert len(sent) == 5
    with pytest.raises(UserError, match="judge_model"):
        asked.judge(URL, None, {}, kept)


@pytest.mark.parametrize(
    "answer",
    ["I think it is reflection.", '{"mode": "rest", "description": "x"}',
     json.dumps({"mode": "other", "description": "x" * 400}), httpx.Response(200, text="<html>"),
     httpx.Response(200, json={"choices": []})],
)  # fmt: skip
def test_garbage_costs_its_own_feature_alone(endpoint, kept, answer):
    said, sent = endpoint
    said["five"] = answer
    answers, problem = asked.judge(URL, "m", QUESTIONS, kept)
    assert answers["feature"].tolist() == [3, 8]
    assert problem == (
        "The judge's answer about feature 5 is not what it was asked for; 2 of 3 answers are kept in "
        "build/judge.json, and a rerun asks for the others."
    )
    said.clear()
    assert asked.judge(URL, "m", QUESTIONS, kept)[0]["feature"].tolist() == [3, 5, 8] and len(sent) == 4


@pytest.mark.parametrize(
    ("answer", "why"), [(httpx.Response(401), "401"), (httpx.ReadTimeout("timed out"), "timed out")]
)
def test_trouble_ends_the_asking_and_loses_nothing(endpoint, kept, monkeypatch, answer, why):
    said, sent = endpoint
    said["five"] = answer
    monkeypatch.setenv(KEY, "sesame")
    answers, problem = asked.judge(URL, "m", QUESTIONS, kept)
    assert answers["feature"].tolist() == [3] and len(sent) == 2
    assert "stopped answering at feature 5" in problem and why in problem and "\n" not in problem
    # the key is sent and never written
    assert {one["key"] for one in sent} == {"Bearer sesame"} and "sesame" not in kept.read_text() + problem


def test_questions_mark_strong_tokens():
    example = Example(3, 0, ("Wait", ",", " let", " me", "\nsee"), np.array([2, 1.2, 0.9, 2, 0.0]), 0)
    logits = pd.DataFrame([[3, "positive", " no"], [3, "negative", '"']], columns=["feature", "side", "text"])
    assert asked.questions({3: [example]}, logits)[3].splitlines() == [
        "1. «Wait,» let« me» see",
        'It raises the logits of [" no"] and lowers those of ["\\""].',
    ]
