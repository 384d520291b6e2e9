"""What steering changes, and the group that follows; a judge behind a local endpoint."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from reasoning_features.errors import UserError
from reasoning_features.interpretation.automatic_interpretation import (
    BROKEN,
    KEY,
    NO_CHANGE,
    changes,
    dose,
    function_groups,
    group_shares,
    judge,
    parse,
    questions,
    words_of_reasoning,
)
from reasoning_features.interpretation.features import Example
from reasoning_features.models.conditions import UNSTEERED

N = 30
MEASURES = ("thinking_tokens", "verify", "parseable")


def frame() -> pd.DataFrame:
    """Feature 1 adds 10 tokens a unit of γ; 2 does nothing; 3 spoils the form; 4 spoils it upwards only."""
    rng = np.random.default_rng(0)
    tokens, checks = rng.integers(30, 50, N), rng.integers(0, 2, N)
    rows = []

    def add(condition, feature, gamma, length, verify, parseable):
        told = {"condition": condition, "feature": feature, "gamma": gamma, "problem": np.arange(N)}
        told |= {"thinking_tokens": length, "verify": verify, "parseable": parseable}
        rows.append(pd.DataFrame(told))

    add(UNSTEERED, -1, 0.0, tokens, checks, True)
    for gamma in (-1.0, 1.0):
        add(f"1 at {gamma}", 1, gamma, tokens + 10 * gamma, checks, True)
        add(f"2 at {gamma}", 2, gamma, tokens, checks, True)
        add(f"3 at {gamma}", 3, gamma, tokens, checks, False)
        add(f"4 at {gamma}", 4, gamma, tokens, checks + (gamma < 0), gamma < 0)
    return pd.concat(rows, ignore_index=True)


def test_dose_leaves_out_strengths_that_spoil_the_form():
    bounds = dose(frame()).set_index("feature")
    assert bounds.loc[1].tolist() == [-1.0, 1.0]
    assert bounds.loc[3].tolist() == [0.0, 0.0]
    assert bounds.loc[4].tolist() == [-1.0, 0.0]


def test_changes_and_groups():
    changed = changes(frame(), MEASURES)
    found = changed.set_index(["feature", "measure"])
    # +10 less −10: 20 tokens on every problem, so the interval has no width.
    assert found.loc[(1, "thinking_tokens"), "change"] == pytest.approx(20)
    assert found.loc[(1, "thinking_tokens"), "change low"] == pytest.approx(20)
    # unsteered (0) less γ = −1 (one more check on every problem): −1.
    assert found.loc[(4, "verify"), "change"] == pytest.approx(-1)
    groups = function_groups(changed).set_index("feature")["group"]
    assert groups.to_dict() == {1: "thinks longer", 2: NO_CHANGE, 3: BROKEN, 4: "checks less"}


def test_words_are_counted_whole_and_in_any_casing():
    assert words_of_reasoning(
        ["Wait, wait. Waiter", "Let me see, but"], ["wait", "let me", "but"]
    ).tolist() == [2, 2]


def test_shares_of_each_class():
    chosen = pd.DataFrame({"group": ["goes on", "goes on", "checks", "goes on"]})
    random = pd.DataFrame({"group": ["none", "checks"]})
    shares = group_shares({"chosen": chosen, "random": random})
    found = shares.set_index(["class", "group"])["share"]
    assert found["chosen", "goes on"] == pytest.approx(0.75)
    assert found["random", "goes on"] == 0
    assert found["random", "checks"] == pytest.approx(0.5)
    # Mean shares: goes on .375, checks .375, none .25.
    assert list(shares["group"].unique())[-1] == "none"
    assert (shares["low"] <= shares["share"]).all() and (shares["share"] <= shares["high"]).all()
    assert group_shares({}).empty


GOOD = json.dumps({"mode": "reflection", "description": "checks a sum"})
QUESTIONS = {3: "three", 5: "five", 8: "eight"}


class Server(ThreadingHTTPServer):
    """Answers each question by its text: a content, an HTTP status, raw bytes, or seconds to wait."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, object] = {}
        self.asked: list[dict] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body | {"path": self.path})
        self.server.keys.append(self.headers["Authorization"])
        answer = self.server.answers.get(body["messages"][-1]["content"], GOOD)
        if isinstance(answer, float):
            time.sleep(answer)
            answer = GOOD
        if isinstance(answer, int):
            self.send_error(answer)
            return
        if isinstance(answer, str):
            answer = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def kept(repository):
    return repository / "build" / "judge.json"


def test_good_answers_are_kept_and_not_asked_for_again(server, kept):
    answers, problem = judge(server.url, "m", QUESTIONS, kept)
    assert problem is None and answers["feature"].tolist() == [3, 5, 8]
    assert set(answers["mode"]) == {"reflection"} and set(answers["description"]) == {"checks a sum"}
    assert [body["path"] for body in server.asked] == ["/v1/chat/completions"] * 3
    assert server.asked[0]["model"] == "m" and server.asked[0]["temperature"] == 0
    before = kept.read_bytes()
    again, _ = judge(server.url, "m", QUESTIONS, kept)
    assert again.equals(answers) and len(server.asked) == 3 and kept.read_bytes() == before
    # another model, or another question about the feature, is another answer
    judge(server.url, "n", {3: "three"}, kept)
    judge(server.url, "m", {3: "more"}, kept)
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("I think it is reflection.", "no JSON"),
        ('```json\n{"mode": "other", "description": "x"}\n```', "no JSON"),
        ('{"mode": ["other"], "description": "x"}', "mode is none of"),
        ('{"mode": "other", "description": "x", "more": 1}', "no object"),
        ('{"mode": "other", "description": "' + "x" * 400 + '"}', "description"),
        (b"<html>", "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [{"message": {"content": null}}]}', "no text"),
    ],
)
def test_garbage_costs_its_own_feature_alone(server, kept, answer, said):
    server.answers["five"] = answer
    answers, problem = judge(server.url, "m", QUESTIONS, kept)
    assert answers["feature"].tolist() == [3, 8]
    assert problem.startswith("The judge's answers to 1 features cannot be used (feature 5: it")
    assert said in problem and "2 of 3 answers are kept in build/judge.json" in problem
    assert problem.count(". ") == 0  # one sentence
    server.answers.clear()
    assert judge(server.url, "m", QUESTIONS, kept)[0]["feature"].tolist() == [3, 5, 8]
    assert len(server.asked) == 4


@pytest.mark.parametrize(("answer", "said"), [(500, "HTTP 500"), (5.0, "no answer in 1 s")])
def test_trouble_ends_the_asking_and_loses_nothing(server, kept, answer, said):
    server.answers["five"] = answer
    answers, problem = judge(server.url, "m", QUESTIONS, kept, timeout=1)
    assert answers["feature"].tolist() == [3]
    assert f"stopped answering at feature 5 ({said}); 1 of 3 answers are kept" in problem
    assert len(server.asked) == 2  # the endpoint is not asked a third time
    server.answers.clear()
    answers, problem = judge(server.url, "m", QUESTIONS, kept)
    assert problem is None and len(answers) == 3 and len(server.asked) == 4


def test_an_endpoint_that_is_not_there(server, kept):
    server.shutdown()
    server.server_close()
    answers, problem = judge(server.url, "m", QUESTIONS, kept)
    assert "(it cannot be reached); 0 of 3" in problem and answers.empty and not kept.exists()


def test_the_key_is_sent_and_never_written(server, kept, monkeypatch):
    monkeypatch.setenv(KEY, "sesame")
    server.answers["five"] = 401
    _, problem = judge(server.url, "m", QUESTIONS, kept)
    assert server.keys == ["Bearer sesame"] * 2
    assert "sesame" not in kept.read_text() + problem


def test_questions_and_endpoints(kept):
    with pytest.raises(UserError, match="judge_model"):
        judge("http://a", None, {}, kept)
    with pytest.raises(UserError, match="not one of http"):
        judge("file:///etc/passwd", "m", {}, kept)
    example = Example(3, 0, ("Wait", ",", " let", " me", "\nsee"), np.array([2, 1.2, 0.9, 2, 0.0]), 0)
    logits = pd.DataFrame(
        [[3, "positive", " no"], [3, "negative", '"'], [5, "positive", "x"], [5, "negative", "y"]],
        columns=["feature", "side", "text"],
    )
    asked = questions({3: [example], 5: []}, logits)
    assert asked[3].splitlines() == [
        "1. «Wait,» let« me» see",
        'It raises the logits of [" no"] and lowers those of ["\\""].',
    ]
    assert asked[5] == 'It raises the logits of ["x"] and lowers those of ["y"].'
    assert parse('{"mode": "mixed", "description": " two\\nlines "}')["description"] == "two lines"
