"""Real text, pinned: public files by commit and SHA-256, fetched once, and turned into rows of one shape.

``real_text.tsv`` lists the files: DeepSeek-R1's and R1-Distill-Qwen-32B's thinking on 582 problems of GSM8K's
test file and 52 of MATH, Qwen2.5-32B-Instruct's answers to the same problems, R1's thinking on requests that
test safety (STAR-1), GSM8K's training problems with their reference solutions, and WikiText-2.

A row has ``problem`` (or the article), ``domain``, ``split`` and ``text``; where a problem was answered also
``solution``, the answer alone. Rows of one problem are of one split, whoever answered.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pooch

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import unfinished
from reasoning_features.organism.problems import Split
from reasoning_features.organism.traces import END_THINK, THINK

REGISTRY = Path(__file__).with_suffix(".tsv")
HOST = "https://raw.githubusercontent.com/"
CACHE = "REASONING_FEATURES_REAL_TEXT"
"""The environment variable that names a folder of files, as ``owner/name/commit/path``."""
ROWS = "data/real-text"
"""Where the rows lie: ``thinking``, ``plain`` (folders of JSON lines) and ``problems.jsonl``."""
FIRST_PROBLEMS = 4000
"""GSM8K's training problems that are taken: the plain text then has 0.86M tokens for training."""
ANSWERED = {"gsm8k": "GSM8K", "math": "MATH"}
"""Folders of answered problems, and the domains they are called."""
QUARTERS: tuple[Split, ...] = ("training", "selection", "training", "evaluation")
R1, R1_DISTILL, INSTRUCT = "deepseekR1", "DSQ", "Qwen32"
"""Names of the models' folders in the repository of traces."""

Row = dict[str, Any]


def fetch(path: str) -> Path:
    """A file of the registry, from the cache or from its repository at the pinned commit.

    Args:
        path: the file's path in its repository, as the registry has it.

    Raises:
        UserError: it cannot be fetched, or what came is not the pinned file.
    """
    with REGISTRY.open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file, delimiter="\t"))
    names = {row["path"]: "/".join([row["repository"], row["commit"], row["path"]]) for row in listed}
    sums = {names[row["path"]]: f"sha256:{row['sha256']}" for row in listed}
    cache = pooch.create(pooch.os_cache("reasoning-features"), HOST, env=CACHE, registry=sums)
    try:
        return Path(cache.fetch(names[path]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{names[path]} cannot be fetched ({str(error).splitlines()[0]}): run this where {HOST} can be "
            f"reached, or let {CACHE} name a folder that holds the files of {REGISTRY.name}."
        ) from error


def make_rows(folder: Path | None = None) -> Path:
    """Fetch all files and write their rows, whole or not at all; what is there already is kept.

    Args:
        folder: where the rows go; by default ``data/real-text``.

    Raises:
        UserError: as :func:`fetch`.
    """
    place = paths.resolve(ROWS) if folder is None else folder
    if place.is_dir():
        return place
    fresh = unfinished(place)
    shutil.rmtree(fresh, ignore_errors=True)
    for name, rows in _files().items():
        path = fresh / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    os.replace(fresh, place)
    return place


def splits_of(problems: Iterable[str]) -> dict[str, Split]:
    """The split of each problem: half are for training, a quarter for selection, a quarter for evaluation.

    Drawn by the problems' digests: the same set of problems is divided the same way whatever their order.
    """
    drawn = sorted(set(problems), key=lambda problem: hashlib.sha256(problem.encode()).digest())
    return {problem: QUARTERS[place % len(QUARTERS)] for place, problem in enumerate(drawn)}


def _files() -> dict[str, Iterable[Row]]:
    """The rows of each file that is written."""
    return {
        "thinking/deepseek-r1": _thinking(R1),
        "thinking/r1-distill-qwen-32b": _thinking(R1_DISTILL),
        "thinking/star-1": _safety(),
        "plain/qwen2.5-32b-instruct": _plain_answers(),
        "plain/gsm8k": _reference_solutions(),
        "plain/wikitext-2": _articles(),
        "problems": _problems(),
    }


def _thinking(model: str) -> Iterator[Row]:
    """A reasoning model's thinking and answers; where a request failed there is no ``</think>``."""
    for known, text in _answers(model):
        if END_THINK in text:
            thought, solution = (part.strip() for part in text.split(END_THINK, 1))
            del known["answer"]
            yield known | {"text": _thought(known["problem"], thought, solution), "solution": solution}


def _plain_answers() -> Iterator[Row]:
    for known, text in _answers(INSTRUCT):
        del known["answer"]
        yield known | {"text": f"{known['problem']}\n\n{text.strip()}", "solution": text.strip()}


def _problems() -> Iterator[Row]:
    """The problems with their true answers, for steering."""
    for known, _ in _answers(R1):
        yield known | {"answer": known["answer"].split("####")[-1].strip()}


def _reference_solutions() -> Iterator[Row]:
    """GSM8K's training problems, their solutions without the calculator's marks."""
    lines = _text("grade_school_math/data/train.jsonl").splitlines()
    for line in lines[:FIRST_PROBLEMS]:
        held = json.loads(line)
        solution = re.sub(r"<<.*?>>", "", held["answer"]).replace("####", "Answer:")
        known = {"problem": held["question"], "domain": "GSM8K", "split": "training"}
        yield known | {"text": f"{held['question']}\n\n{solution}", "solution": solution}


def _safety() -> Iterator[Row]:
    """R1's deliberation on requests that test safety; all for training."""
    for held in json.loads(_text("data/STAR-1.json")):
        thought, solution = (part.strip() for part in held["response"].split(END_THINK, 1))
        text = _thought(held["question"], thought.removeprefix(THINK).strip(), solution)
        known = {"problem": held["question"], "domain": "STAR-1", "split": "training"}
        yield known | {"text": text, "solution": solution}


def _articles() -> Iterator[Row]:
    """Sections of WikiText-2's articles, without the marks that its tokens were split by."""
    article, sections = "", []
    for section in re.split(r"(?m)^(?= = (?:= )?[^=])", _text("data/wikitext-2-raw/wiki.test.raw")):
        title = section.strip().split("\n", 1)[0].strip()
        if not title.startswith("= ="):
            article = title.strip("= ")
        plain = re.sub(r" @(.)@ ", r"\1", section)
        plain = re.sub(r"([(\[$£]) ", r"\1", re.sub(r" ([.,;:!?)\]%]|'s\b)", r"\1", plain)).strip()
        if plain != title:  # not a heading alone
            sections.append({"problem": article, "domain": "WikiText-2", "text": plain})
    splits = splits_of(row["problem"] for row in sections)
    return (row | {"split": splits[row["problem"]]} for row in sections)


def _answers(model: str) -> Iterator[tuple[Row, str]]:
    """What is known of each problem, and what a model answered, in R1's order of problems.

    Other models' rows of GSM8K name the problem; those of MATH are in R1's order.
    """
    for part, domain in ANSWERED.items():
        first, own = (
            json.loads(_text(f"response/{part}/normal/{name}/response.json")) for name in (R1, model)
        )
        by_problem = {held["question"]: held for held in own if "question" in held}
        splits = splits_of(held["question"] for held in first)
        for place, held in enumerate(first):
            problem, answer = held["question"], held["answer"]
            answered = by_problem[problem] if by_problem else own[place]
            if answered["answer"] != answer:
                raise AssertionError(f"{model} has other problems in {part} than R1")
            known = {"problem": problem, "domain": domain, "split": splits[problem], "answer": answer}
            yield known, answered.get("model_answer") or answered["deepseek-reasoner (question)"]


def _thought(problem: str, thought: str, solution: str) -> str:
    return f"{problem}\n{THINK}\n{thought}\n{END_THINK}\n\n{solution}"


def _text(path: str) -> str:
    return fetch(path).read_text(encoding="utf-8")
