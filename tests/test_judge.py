"""A judge behind a local endpoint: good answers are kept, and no trouble costs a finished one."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from reasoning_features.interpretation.judge import KEY, Endpoint, endpoint, judge, parse, question, questions

from reasoning_features.errors import UserError
from reasoning_features.interpretation.activating_examples import Example

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
    return repository / "build" / "judge.jsonl"


def test_good_answers_are_kept_and_not_asked_for_again(server, kept):
    first = judge(Endpoint(server.url, "m"), QUESTIONS, kept)
    assert first.problem is None and first.answers["feature"].tolist() == [3, 5, 8]
    assert set(first.answers["mode"]) == {"reflection"} and set(first.answers["description"]) == {
        "checks a sum"
    }
    assert [body["path"] for body in server.asked] == ["/v1/chat/completions"] * 3
    assert server.asked[0]["model"] == "m" and server.asked[0]["temperature"] == 0
    before = kept.read_bytes()
    again = judge(Endpoint(server.url, "m"), QUESTIONS, kept)
    assert again.answers.equals(first.answers) and len(server.asked) == 3 and kept.read_bytes() == before
    # another model, or another question about the feature, is another answer
    judge(Endpoint(server.url, "n"), {3: "three"}, kept)
    judge(Endpoint(server.url, "m"), {3: "more"}, kept)
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("I think it is reflection.", "no JSON"),
        ('```json\n{"mode": "other", "description": "x"}\n```', "no JSON"),
        ('{"mode": "joy", "description": "x"}', "mode is none of"),
        ('{"mode": ["other"], "description": "x"}', "mode is none of"),
        ('{"mode": "other", "description": "x", "more": 1}', "no object"),
        ('{"mode": "other", "description": ""}', "description"),
        ('{"mode": "other", "description": "' + "x" * 400 + '"}', "description"),
        (b"<html>", "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [{"message": {"content": null}}]}', "no text"),
    ],
)
def test_garbage_costs_its_own_feature_alone(server, kept, answer, said):
    server.answers["five"] = answer
    judged = judge(Endpoint(server.url, "m"), QUESTIONS, kept)
    assert judged.answers["feature"].tolist() == [3, 8]
    assert judged.problem.startswith("The judge's answers to 1 features cannot be used (feature 5: it")
    assert said in judged.problem and "2 of 3 answers are kept in build/judge.jsonl" in judged.problem
    assert judged.problem.count(". ") == 0  # one sentence
    server.answers.clear()
    assert judge(Endpoint(server.url, "m"), QUESTIONS, kept).answers["feature"].tolist() == [3, 5, 8]
    assert len(server.asked) == 4


@pytest.mark.parametrize(("answer", "said"), [(500, "HTTP 500"), (30.0, "no answer in 3 s")])
def test_trouble_ends_the_asking_and_loses_nothing(server, kept, answer, said):
    server.answers["five"] = answer
    started = time.monotonic()
    judged = judge(Endpoint(server.url, "m", timeout=3), QUESTIONS, kept)
    assert time.monotonic() - started < 25
    assert judged.answers["feature"].tolist() == [3]
    assert f"stopped answering at feature 5 ({said}); 1 of 3 answers are kept" in judged.problem
    assert len(server.asked) == 2  # the endpoint is not asked a third time
    server.answers.clear()
    again = judge(Endpoint(server.url, "m"), QUESTIONS, kept)
    assert again.problem is None and len(again.answers) == 3 and len(server.asked) == 4


def test_an_endpoint_that_is_not_there(kept, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    judged = judge(Endpoint(f"http://127.0.0.1:{port}/v1", "m"), QUESTIONS, kept)
    assert "(it cannot be reached); 0 of 3" in judged.problem and judged.answers.empty
    assert not kept.exists()


def test_a_line_that_was_cut_is_asked_for_again(server, kept):
    judge(Endpoint(server.url, "m"), QUESTIONS, kept)
    kept.write_bytes(kept.read_bytes()[:-30])
    judged = judge(Endpoint(server.url, "m"), QUESTIONS, kept)
    assert len(judged.answers) == 3 and len(server.asked) == 4
    judge(Endpoint(server.url, "m"), QUESTIONS, kept)
    assert len(server.asked) == 4


def test_the_key_is_sent_and_never_written(server, kept, monkeypatch):
    monkeypatch.setenv(KEY, "sesame")
    server.answers["five"] = 401
    judged = judge(Endpoint(server.url, "m"), QUESTIONS, kept)
    assert server.keys == ["Bearer sesame"] * 2
    assert "sesame" not in kept.read_text() + judged.problem


def test_settings_of_an_endpoint():
    assert endpoint(None, None) is None and endpoint("http://a", "m") == Endpoint("http://a", "m")
    with pytest.raises(UserError, match="judge_model"):
        endpoint("http://a", None)
    with pytest.raises(UserError, match="not one of http"):
        endpoint("file:///etc/passwd", "m")


def test_question_marks_strong_tokens():
    example = Example(3, 0, ("Wait", ",", " let", " me", "\nsee"), np.array([2, 1.2, 0.9, 2, 0.0]), 0)
    asked = question([example], [" no"], ['"'])
    assert asked.splitlines() == [
        "1. «Wait,» let« me» see",
        'It raises the logits of [" no"] and lowers those of ["\\""].',
    ]


def test_questions_of_many_features():
    example = Example(3, 0, ("a",), np.ones(1), 0)
    logits = pd.DataFrame(
        [[3, "positive", " yes"], [3, "negative", " no"], [5, "positive", "x"], [5, "negative", "y"]],
        columns=["feature", "side", "text"],
    )
    asked = questions({3: [example], 5: []}, logits)
    assert asked == {3: question([example], [" yes"], [" no"]), 5: question([], ["x"], ["y"])}


def test_descriptions_become_one_line():
    assert parse('{"mode": "mixed", "description": " two\\nlines "}')["description"] == "two lines"
