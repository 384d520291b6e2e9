"""A language model asked what a feature is for, behind any OpenAI-compatible chat endpoint; off by default.

It sees what a person would: activating examples and logits. Each answer is kept on disk as soon as it has
come, by feature, model and prompt, so that whatever ends the asking costs no finished work and a rerun goes
on from there. The key is read from the environment and never written.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.interpretation.activating_examples import Example
from reasoning_features.interpretation.modes import MODES

KEY = "REASONING_FEATURES_JUDGE_KEY"
"""The environment variable that holds the endpoint's key, where it needs one."""
TIMEOUT = 60.0  # seconds of silence
LONGEST_DESCRIPTION = 300  # characters
LONGEST_ANSWER = 1 << 20  # bytes
STRONG = 0.5  # of an example's largest activation: tokens the prompt marks

INSTRUCTIONS = """\
You are shown texts that activate one feature of a language model; the tokens on which it is strongly active \
are between « and ». Say what the feature responds to.
Modes: uncertainty (doubt, hedging), exploration (trying another way), reflection (checking or correcting \
what was done), mixed (more than one of these), other (none of these).
Answer with one JSON object and nothing else: {"mode": "<one of the modes>", "description": "<one line>"}"""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask.

    Attributes:
        url: the address that ``/chat/completions`` is appended to, such as ``http://localhost:8000/v1``.
        model: the model's name there.
        timeout: seconds of silence after which an answer is given up.
    """

    url: str
    model: str
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"The judge's address {self.url!r} is not one of http: give judge_url in full.")


@dataclass(frozen=True)
class Judged:
    """What the judge said.

    Attributes:
        answers: ``feature``, ``mode``, ``description``, for the features that were answered.
        problem: what went wrong, in a sentence; None where every feature was answered.
    """

    answers: pd.DataFrame
    problem: str | None


class _NoAnswer(Exception):
    """The endpoint gave no answer, and would give none to the next question either."""


class _Garbage(Exception):
    """The endpoint answered, but not with what was asked for."""


def endpoint(url: str | None, model: str | None) -> Endpoint | None:
    """The endpoint of the settings; None where there is none.

    Raises:
        UserError: an address without a model, or one that is not of http.
    """
    if url is None:
        return None
    if model is None:
        raise UserError("A judge needs a model: give judge_model beside judge_url.")
    return Endpoint(url, model)


def question(examples: Sequence[Example], positive: Sequence[str], negative: Sequence[str]) -> str:
    """The question about a feature: its examples, strong tokens marked, and what it raises and lowers."""
    texts = [f"{i}. {_marked(example)}" for i, example in enumerate(examples, start=1)]
    raised, lowered = (json.dumps(list(side), ensure_ascii=False) for side in (positive, negative))
    logits = f"It raises the logits of {raised} and lowers those of {lowered}."
    return "\n".join([*texts, logits])


def questions(examples: Mapping[int, Sequence[Example]], logits: pd.DataFrame) -> dict[int, str]:
    """Feature → its question.

    Args:
        examples: :func:`reasoning_features.interpretation.activating_examples.read_examples`.
        logits: :func:`reasoning_features.interpretation.logit_effects.top_logits` of the same features.
    """
    sides = {key: part["text"].tolist() for key, part in logits.groupby(["feature", "side"])}
    return {
        feature: question(held, sides[feature, "positive"], sides[feature, "negative"])
        for feature, held in examples.items()
    }


def judge(at: Endpoint, questions: Mapping[int, str], kept: Path) -> Judged:
    """Ask about every feature that has not been answered yet.

    An endpoint that does not answer ends the asking; an answer that cannot be read costs that feature alone.

    Args:
        at: the endpoint.
        questions: feature → what :func:`question` gives.
        kept: the file of JSON lines where answers are kept.
    """
    known = _read(kept)
    garbage: list[tuple[int, str]] = []
    problem = None
    for feature, text in questions.items():
        digest = _digest(at, text)
        if (feature, digest) in known:
            continue
        try:
            answer = parse(_ask(at, text))
        except _Garbage as error:
            garbage.append((feature, str(error)))
            continue
        except _NoAnswer as error:
            problem = f"The judge at {at.url} stopped answering at feature {feature} ({error})"
            break
        known[feature, digest] = answer
        _append(kept, {"feature": feature, "digest": digest, "model": at.model} | answer)
    rows = [
        {"feature": feature} | known[feature, digest]
        for feature, text in questions.items()
        if (feature, digest := _digest(at, text)) in known
    ]
    if problem is None and garbage:
        feature, said = garbage[0]
        problem = f"The judge's answers to {len(garbage)} features cannot be used (feature {feature}: {said})"
    if problem is not None:
        problem += (
            f"; {len(rows)} of {len(questions)} answers are kept in {paths.relative(kept)}, and a rerun "
        )
        problem += "asks for the others."
    return Judged(pd.DataFrame(rows, columns=["feature", "mode", "description"]), problem)


def parse(content: str) -> dict[str, str]:
    """The mode and the description of an answer that is exactly the JSON object which was asked for."""
    try:
        value = json.loads(content)
    except ValueError:
        raise _Garbage("it is no JSON") from None
    if not isinstance(value, dict) or set(value) != {"mode", "description"}:
        raise _Garbage("it is no object of mode and description")
    mode, description = value["mode"], value["description"]
    if mode not in MODES:
        raise _Garbage(f"its mode is none of {', '.join(MODES)}")
    if not isinstance(description, str) or not description.strip() or len(description) > LONGEST_DESCRIPTION:
        raise _Garbage(f"its description is no text of 1 to {LONGEST_DESCRIPTION} characters")
    return {"mode": mode, "description": " ".join(description.split())}


def _ask(at: Endpoint, text: str) -> str:
    """The content of the endpoint's answer."""
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}]
    body = json.dumps({"model": at.model, "messages": messages, "temperature": 0}).encode()
    request = urllib.request.Request(
        f"{at.url.rstrip('/')}/chat/completions", body, {"Content-Type": "application/json"}
    )
    if key := os.environ.get(KEY):
        request.add_unredirected_header("Authorization", f"Bearer {key}")  # not to go where it is sent on
    try:
        with urllib.request.urlopen(request, timeout=at.timeout) as response:
            answer = response.read(LONGEST_ANSWER)
    except urllib.error.HTTPError as error:
        raise _NoAnswer(f"HTTP {error.code}") from None
    except TimeoutError:
        raise _NoAnswer(f"no answer in {at.timeout:g} s") from None
    except urllib.error.URLError as error:
        slow = isinstance(error.reason, TimeoutError)
        raise _NoAnswer(f"no answer in {at.timeout:g} s" if slow else "it cannot be reached") from None
    except (OSError, http.client.HTTPException):
        raise _NoAnswer("the connection broke") from None
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise _Garbage("it is no chat completion") from None
    if not isinstance(content, str):
        raise _Garbage("it has no text")
    return content


def _marked(example: Example) -> str:
    strong = example.activations > STRONG * max(float(np.max(example.activations)), 1e-12)
    text, inside = "", False
    for piece, marked in zip(example.pieces, strong, strict=True):
        if bool(marked) != inside:
            text += "«" if marked else "»"
            inside = bool(marked)
        text += piece
    return " ".join((text + ("»" if inside else "")).split())


def _digest(at: Endpoint, text: str) -> str:
    return hashlib.sha256(json.dumps([at.model, INSTRUCTIONS, text]).encode()).hexdigest()


def _read(kept: Path) -> dict[tuple[int, str], dict[str, str]]:
    """The answers that are kept; a line that an interruption cut is left out."""
    known: dict[tuple[int, str], dict[str, str]] = {}
    for line in kept.read_text(encoding="utf-8", errors="replace").split("\n") if kept.is_file() else []:
        try:
            row: dict[str, Any] = json.loads(line)
            known[row["feature"], row["digest"]] = {name: row[name] for name in ("mode", "description")}
        except (ValueError, LookupError, TypeError):
            continue
    return known


def _append(kept: Path, row: dict[str, Any]) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    cut = kept.is_file() and not kept.read_bytes().endswith(b"\n")
    with kept.open("a", encoding="utf-8", newline="") as file:
        file.write("\n" * cut + json.dumps(row, ensure_ascii=False) + "\n")
