"""Steered answers to questions, many conditions in a batch, each graded and paired by question.

Two engines write them. "rows" samples many conditions in one batch; every row draws from its own random
stream, so answers are paired between conditions and do not depend on their batch. A batch lasts as long as
its longest answer, and keys and values are copied at every token: right for short answers, on a CPU, and for
token rules, which it alone can follow. "continuous" refills the batch as answers end: for long answers of
unequal lengths on a GPU. On two cores, 48 answers of a Llama of 4 blocks of width 64, it made 1,300 tokens/s
of answers of up to 512 tokens and 370 of up to 2,000, where rows, padded, made 4,000 and 2,750.

Where a folder is given, every finished answer is kept there and none is made twice. ``ENGINE=ray`` makes
answers that are kept on a Ray cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import dictionary_digest
from reasoning_features.models.conditions import (
    UNSTEERED,
    Condition,
    ConditionRules,
    check_conditions,
    stream_change,
)
from reasoning_features.models.sampling import (
    TEMPERATURE,
    TOP_P,
    Ended,
    edited,
    rows_that_fit,
    sample,
    sample_continuously,
)
from reasoning_features.models.subject import Subject
from reasoning_features.runs.shards import ENGINE, each_by_ray
from reasoning_features.steering.benchmarks import Questions

BATCH = 1024
"""Rows that are sampled together: on two cores half as many are a tenth slower."""
ROWS_A_PART = 8192
"""Answers that are handed out together where they are kept; of long ones, ``LONG_ROWS_A_PART``."""
LONG_ROWS_A_PART = 128


def answers(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int = BATCH,
    progress: str | None = "steered answers",
    sae: Any = None,
    kept: Path | None = None,
) -> pd.DataFrame:
    """One answer to every question under every condition, and unsteered.

    A question draws the same uniforms under all conditions, so differences between them are paired.

    Args:
        subject: the model, steered at its hook point.
        questions: what is asked, and by which engine it is answered.
        conditions: ways of steering.
        seed: of the draws.
        batch: the most rows that are sampled together; fewer where memory is short and prompts are padded.
        progress: names the progress bar; None shows none.
        sae: the autoencoder, where a condition clamps one of its features.
        kept: folder of finished answers, by default the questions' own, if any.

    Returns:
        The rows of ``questions.grade`` with ``condition``, ``feature`` (−1 unsteered), ``gamma``,
        ``problem`` and ``tokens`` (the new ones); unsteered first, then the conditions in their order.

    Raises:
        UserError: two conditions of one name, a vector that is not finite or of another width, a clamp
            without an autoencoder, or a prompt beyond the model's context.
    """
    asked, n = [Condition(UNSTEERED), *conditions], len(questions)
    written = _written(subject, questions, asked, seed, batch, progress, sae, kept or questions.kept)
    rows = [(c.name, c.feature, c.gamma, problem) for c in asked for problem in range(n)]
    known = pd.DataFrame(rows, columns=["condition", "feature", "gamma", "problem"])
    known["tokens"] = pd.Series([tuple(tokens) for tokens in written], dtype=object)
    return pd.concat([known, questions.grade(list(range(n)) * len(asked), written)], axis=1)


def _written(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int,
    progress: str | None,
    sae: Any,
    kept: Path | None,
) -> list[list[int]]:
    """New tokens of every answer; row ``r`` is question ``r % n`` under condition ``r // n``."""
    check_conditions(subject, conditions, sae)
    n, rows = len(questions), len(questions) * len(conditions)
    stores: list[AnswerStore] = []
    done: dict[int, list[int]] = {}
    parts: Sequence[Sequence[int]] = [range(rows)]
    if kept is not None:
        keys = [answers_key(subject, questions, condition, seed, sae) for condition in conditions]
        stores = [AnswerStore(kept, key) for key in keys]
        for row in range(rows):
            found = stores[row // n].get(questions.prompts[row % n], questions.stream(row % n))
            if found is not None:
                done[row] = found
        most = LONG_ROWS_A_PART if questions.kept else ROWS_A_PART
        parts = _parts(n, len(conditions), most)
    parts = [missing for part in parts if (missing := [row for row in part if row not in done])]
    with tqdm(total=rows - len(done), desc=progress, unit="answer", disable=progress is None) as bar:

        def ended(row: int, tokens: list[int]) -> None:
            done[row] = tokens
            if stores:
                stores[row // n].add(questions.prompts[row % n], questions.stream(row % n), tokens)
            bar.update(1)

        clamps = any(condition.clamp is not None for condition in conditions)
        # the grader may hold much that is not needed to write answers
        ungraded, sae = replace(questions, grade=_ungraded), sae if clamps else None
        if kept is not None and os.environ.get(ENGINE):
            compute = partial(_part, subject, ungraded, list(conditions), seed, batch, sae, parts)
            for _, made in each_by_ray(compute, range(len(parts)), str(subject.device)):
                for row, tokens in made.items():
                    ended(row, tokens)
        else:
            for part in parts:
                write(subject, questions, conditions, seed, part, ended, batch, sae)
    return [done[row] for row in range(rows)]


def write(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    rows: Sequence[int],
    ended: Ended,
    batch: int = BATCH,
    sae: Any = None,
) -> None:
    """Writes answers and tells ``ended`` each; row ``r`` is question ``r % n`` under condition ``r // n``."""
    n = len(questions)
    flowing = [row for row in rows if _engine(questions, conditions[row // n]) == "continuous"]
    together = sorted(set(rows) - set(flowing))
    if together:
        which, problems = [row // n for row in together], [row % n for row in together]
        prompts = [questions.prompts[problem] for problem in problems]
        if questions.pad is not None:
            longest = max(map(len, prompts)) + questions.max_new_tokens
            batch = min(batch, rows_that_fit(subject.model, longest))
        sample(
            subject.model,
            prompts,
            end=questions.end,
            max_new_tokens=questions.max_new_tokens,
            seed=seed,
            streams=[questions.stream(problem) for problem in problems],
            block=subject.hooked_block,
            change=stream_change(subject, conditions, torch.tensor(which), sae),
            rule=ConditionRules(conditions, which, problems) if any(c.rule for c in conditions) else None,
            batch=batch,
            pad=questions.pad,
            ended=lambda place, tokens: ended(together[place], tokens),
        )
    nobody = torch.zeros(1, dtype=torch.int64, device=subject.device)
    for condition in sorted({row // n for row in flowing}):
        own = [row for row in flowing if row // n == condition]
        # what is asked again after an interruption must not draw as its beginning did
        drawn = hashlib.sha256(repr((seed, own)).encode()).digest()
        change = stream_change(subject, [conditions[condition]], nobody, sae)
        with edited(subject.hooked_block, change, nobody):
            sample_continuously(
                subject.model,
                [questions.prompts[row % n] for row in own],
                end=questions.end,
                max_new_tokens=questions.max_new_tokens,
                seed=int.from_bytes(drawn[:4], "big") >> 1,
                ended=lambda place, tokens, own=own: ended(own[place], tokens),  # type: ignore[misc]
            )


def _part(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int,
    sae: Any,
    parts: Sequence[Sequence[int]],
    part: int,
) -> dict[int, list[int]]:
    """The answers of one part, in a worker."""
    made: dict[int, list[int]] = {}
    write(subject, questions, conditions, seed, parts[part], made.__setitem__, batch, sae)
    return made


def _ungraded(numbers: Sequence[int], continuations: Sequence[Sequence[int]]) -> pd.DataFrame:
    raise NotImplementedError("answers are graded where they are asked for")


def _parts(questions: int, conditions: int, most: int) -> list[Sequence[int]]:
    """Rows in their order, at most ``most`` in a part: whole conditions, or parts of one."""
    rows = questions * conditions
    if questions <= most:
        size = most // questions * questions
        return [range(start, min(start + size, rows)) for start in range(0, rows, size)]
    return [
        range(start, min(start + most, first + questions))
        for first in range(0, rows, questions)
        for start in range(first, first + questions, most)
    ]


def _engine(questions: Questions, condition: Condition) -> str:
    """The engine that answers under a condition: token rules need rows."""
    return "rows" if condition.rule is not None else questions.engine


def answers_key(
    subject: Subject, questions: Questions, condition: Condition, seed: int, sae: Any = None
) -> dict[str, Any]:
    """All that determines a condition's answers but the prompts; its name is no part of it."""
    clamps, vector = condition.clamp is not None, None
    if condition.vector is not None:
        vector = hashlib.sha256(condition.vector.detach().cpu().float().numpy().tobytes()).hexdigest()
    return {
        "model": subject.revision,
        "hook": subject.hook_name,
        "dtype": str(subject.model.dtype),
        "end": questions.end,
        "max_new_tokens": questions.max_new_tokens,
        "sampling": [TEMPERATURE, TOP_P],
        "seed": seed,
        "engine": _engine(questions, condition),
        "vector": vector,
        "clamp": (condition.feature, condition.clamp) if clamps else None,
        "sae": dictionary_digest(sae) if clamps else None,
        "rule": repr(condition.rule),
    }


class AnswerStore:
    """The finished answers of one condition on disk, one line each, written as they finish.

    A folder is of all that determines its answers together (:func:`answers_key`) and named by its digest;
    every process writes a file of its own in it and reads all of them. An answer is found by its prompt and
    its random stream. A line that an interruption left torn is passed over, and the answer is made anew.
    """

    def __init__(self, folder: Path, determined_by: Mapping[str, Any]) -> None:
        self._first = json.dumps(determined_by, sort_keys=True)
        self.folder = folder / hashlib.sha256(self._first.encode()).hexdigest()[:24]
        # two machines may have a process of one number
        self._own = self.folder / f"{platform.node()}-{os.getpid()}.jsonl"
        self._found: dict[tuple[str, int], list[int]] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            damaged = 0
            for line in file.read_text("utf-8", errors="replace").splitlines()[1:]:
                try:
                    row = json.loads(line or "{}")
                    if row:
                        self._found[row["prompt"], row["stream"]] = row["tokens"]
                except (ValueError, KeyError, TypeError):
                    damaged += 1
            if damaged:
                told = f"{paths.relative(file)}: {damaged} of its answers are damaged and are made again."
                print(told, file=sys.stderr)
        new = not self._own.is_file()
        self._before = f"{self._first}\n" if new else "" if self._own.read_bytes().endswith(b"\n") else "\n"

    def get(self, prompt: Sequence[int], stream: int) -> list[int] | None:
        """The new tokens of an answer, or None where it is not there."""
        return self._found.get((_digest(prompt), stream))

    def add(self, prompt: Sequence[int], stream: int, tokens: Sequence[int]) -> None:
        """Writes one finished answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        row = {"prompt": _digest(prompt), "stream": stream, "tokens": list(tokens)}
        with self._own.open("a", encoding="utf-8") as file:
            file.write(f"{self._before}{json.dumps(row, separators=(',', ':'))}\n")
        self._before = ""
        self._found[row["prompt"], stream] = list(tokens)  # type: ignore[index]


def _digest(prompt: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest()[:16]
