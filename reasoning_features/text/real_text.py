"""Real text, pinned: the public files of ``real_text.tsv``, fetched once, and turned into rows of one shape.

They are DeepSeek-R1's and R1-Distill-Qwen-32B's thinking on 582 problems of GSM8K's test file and 52 of MATH,
Qwen2.5-32B-Instruct's answers to the same problems, R1's thinking on requests that test safety (STAR-1),
GSM8K's training problems with their reference solutions, and WikiText-2. A row has ``problem`` (or the
article), ``domain``, ``split`` and ``text``; where a problem was answered also ``solution``, the answer
alone. Rows of one problem are of one split, whoever answered. Of the zero-shot tasks no rows are written.
"""

import contextlib
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
from reasoning_features.files import MADE, file_digest, unfinished, write_json, write_text
from reasoning_features.organism.language import END_THINK, THINK
from reasoning_features.organism.problems import Split

REGISTRY = Path(__file__).with_suffix(".tsv")
HOST = "https://raw.githubusercontent.com/"
CACHE = "REASONING_FEATURES_REAL_TEXT"  # environment variable: a folder of files, owner/name/commit/path
ROWS = "data/real-text"  # holds `thinking`, `plain` (folders of JSON lines) and `problems.jsonl`
R1_ROWS, INSTRUCT_ROWS = "thinking/deepseek-r1", "plain/qwen2.5-32b-instruct"  # of the same problems
FIRST_PROBLEMS = 4000  # GSM8K's that are taken: the plain text then has 0.86M tokens for training
ANSWERED = {"gsm8k": "GSM8K", "math": "MATH"}  # folders of answered problems → domains
QUARTERS: tuple[Split, ...] = ("training", "selection", "training", "evaluation")
R1, R1_DISTILL, INSTRUCT = "deepseekR1", "DSQ", "Qwen32"  # folders in the repository of traces
# Lines of WikiText-2 that begin as the title of an article does, and are parts of a formula or a legend.
NO_TITLES = {"1 rad / s and a nominal impedance k", "1 henry and capacitance C"}
NO_TITLES |= {"Qualified for the next round", "National record"}

Row = dict[str, Any]


def fetch(path: str) -> str:
    """A file's text, by its path in the registry, from the cache or from its repository at the pinned commit.
    UserError: it cannot be fetched, or what came is not the pinned file.
    """
    with REGISTRY.open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file, delimiter="\t"))
    names = {row["path"]: "/".join([row["repository"], row["commit"], row["path"]]) for row in listed}
    sums = {names[row["path"]]: f"sha256:{row['sha256']}" for row in listed}
    cache = pooch.create(pooch.os_cache("reasoning-features"), HOST, env=CACHE, registry=sums)
    try:
        return Path(cache.fetch(names[path])).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = type(error).__name__ if isinstance(error, OSError) else "what came has another SHA-256"
        advice = f"run this where {HOST} can be reached, or let {CACHE} name a folder that holds the files"
        raise UserError(f"{names[path]} cannot be fetched ({why}): {advice} of {REGISTRY.name}.") from error


def make_rows() -> Path:
    """Fetch all files and write their rows to ``data/real-text``, whole or not at all; gives the folder. Rows
    that this code made from this registry are kept as they are. Raises as :func:`fetch`.
    """
    folder = paths.resolve(ROWS)
    made = {"code": file_digest(Path(__file__)), "registry": file_digest(REGISTRY)}
    with contextlib.suppress(OSError, ValueError):  # no record, or a damaged one
        if json.loads((folder / MADE).read_text(encoding="utf-8")) == made:
            return folder
    files = {name: list(rows) for name, rows in _files()}
    fresh = unfinished(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(fresh / f"{name}.jsonl", "".join(lines))
    write_json(fresh / MADE, made)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    return folder


def read_rows(name: str) -> list[Row]:
    """The rows of one of the files in ``data/real-text``, which is made where it is not there."""
    text = (make_rows() / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.strip().split("\n")]


def splits_of(problems: Iterable[str]) -> dict[str, Split]:
    """The split of each problem, drawn by the problems' digests, whatever their order: half are for training,
    a quarter for selection, a quarter for evaluation.
    """
    drawn = sorted(set(problems), key=lambda problem: hashlib.sha256(problem.encode()).digest())
    return {problem: QUARTERS[place % len(QUARTERS)] for place, problem in enumerate(drawn)}


def _files() -> Iterator[tuple[str, Iterable[Row]]]:
    """The name of each file that is written, and its rows."""
    for name, model in ((R1_ROWS, R1), ("thinking/r1-distill-qwen-32b", R1_DISTILL)):
        # where a request failed there is no </think>
        yield name, [_thought(row, text) for row, _, text in _answers(model) if END_THINK in text]
    requests = json.loads(fetch("data/STAR-1.json"))
    safety: Row = {"domain": "STAR-1", "split": "training"}
    yield "thinking/star-1", [_thought({"problem": r["question"]} | safety, r["response"]) for r in requests]
    yield INSTRUCT_ROWS, [_solved(row, text.strip()) for row, _, text in _answers(INSTRUCT)]
    yield "plain/gsm8k", _reference_solutions()
    yield "plain/wikitext-2", _articles()
    yield "problems", [row | {"answer": answer.split("####")[-1].strip()} for row, answer, _ in _answers(R1)]


def _reference_solutions() -> Iterator[Row]:
    """GSM8K's training problems, their solutions without the calculator's marks."""
    for line in fetch("grade_school_math/data/train.jsonl").strip().split("\n")[:FIRST_PROBLEMS]:
        problem, answer = json.loads(line)["question"], json.loads(line)["answer"]
        solution = re.sub(r"<<.*?>>", "", answer).replace("####", "Answer:")
        yield _solved({"problem": problem, "domain": "GSM8K", "split": "training"}, solution)


def _articles() -> Iterator[Row]:
    """Sections of WikiText-2's articles that have more than headings."""
    sections: list[tuple[str, list[str]]] = []
    titles: list[str] = []
    for line in fetch("data/wikitext-2-raw/wiki.test.raw").split("\n"):
        marks, title = _level(line), line.strip(" =")
        if marks == 1:
            titles.append(title)
        if marks in (1, 2) and title not in NO_TITLES:
            sections.append((title if marks == 1 else sections[-1][0], []))
        if sections:
            sections[-1][1].append(line)
    splits = splits_of(titles)  # those that are none draw too: autoencoders were trained on these splits
    for article, lines in sections:
        if any(line.strip() and not _level(line) for line in lines):
            known = {"problem": _joined(article), "domain": "WikiText-2", "split": splits[article]}
            yield known | {"text": _joined("\n".join(lines))}


def _level(line: str) -> int:
    """How many marks of a heading a line of WikiText begins with: one for an article's title."""
    return line[: len(line) - len(line.lstrip(" ="))].count("=")


def _joined(text: str) -> str:
    """A text of WikiText without the spaces and marks that its tokens were split by."""
    text = re.sub(r" @(.)@ ", r"\1", text)
    text = re.sub(r'" ([^"\n]*) "', r'"\1"', text)
    text = re.sub(r" ([.,;:!?)\]%]|'(?:s|t|re|ve|ll|d|m)\b)", r"\1", text)
    text = re.sub(r"([(\[$£]) ", r"\1", text)
    return re.sub(r" *\n *", "\n", text).strip()


def _answers(model: str) -> Iterator[tuple[Row, str, str]]:
    """Of each problem what is known, its true answer, and the model's text, in R1's order of problems. Other
    models' rows of GSM8K name the problem; those of MATH are in R1's order.
    """
    column = "deepseek-reasoner (question)" if model == R1 else "model_answer"
    for part, domain in ANSWERED.items():
        files = (f"response/{part}/normal/{name}/response.json" for name in (R1, model))
        first, own = (json.loads(fetch(file)) for file in files)
        by_problem = {row["question"]: row for row in own if "question" in row}
        splits = splits_of(row["question"] for row in first)
        for place, row in enumerate(first):
            problem = row["question"]
            answered = by_problem[problem] if by_problem else own[place]
            known = {"problem": problem, "domain": domain, "split": splits[problem]}
            yield known, row["answer"], answered[column]


def _solved(row: Row, solution: str) -> Row:
    """A row with its text and solution."""
    return row | {"text": f"{row['problem']}\n\n{solution}", "solution": solution}


def _thought(row: Row, response: str) -> Row:
    """A row with its text and solution, of a response that holds ``</think>``."""
    thought, solution = (part.strip() for part in response.split(END_THINK, 1))
    thought = thought.removeprefix(THINK).strip()
    text = f"{row['problem']}\n{THINK}\n{thought}\n{END_THINK}\n\n{solution}"
    return row | {"text": text, "solution": solution}
