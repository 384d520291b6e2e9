"""How answers to questions are made: in batches of rows or continuously, and kept or not.

Two engines. "rows" samples many conditions in one batch; every row draws from its own random stream, so
answers are paired between conditions and do not depend on their batch. A batch lasts as long as its longest
answer, and keys and values are copied at every token: right for short answers, on a CPU, and for token rules,
which it alone can follow. "continuous" (:mod:`reasoning_features.models.continuous`) refills the batch as
answers
end: meant for long answers of unequal lengths on a GPU. On two cores, 48 answers of a Llama of 4 blocks of
width 64, it made 1,300 tokens/s of answers of up to 512 tokens and 370 of up to 2,000, where rows, padded,
made 4,000 and 2,750, and rows by length of prompt, few to a batch, 720 and 490.

Where questions say so, finished answers are kept on disk (:mod:`reasoning_features.steering.answer_store`).
Many answers are made in shards (:mod:`reasoning_features.bookkeeping.shards`): some conditions' answers to
all questions, or one condition's to some.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.bookkeeping.shards import Arrays, Work, map_shards
from reasoning_features.dictionaries.autoencoder import dictionary_digest
from reasoning_features.models.conditions import Condition, ConditionRules, check_conditions, stream_edit
from reasoning_features.models.continuous import edited_everywhere, sample_continuously
from reasoning_features.models.sampling import TEMPERATURE, TOP_P, RowEdit, rows_that_fit, sample
from reasoning_features.models.subject import Subject
from reasoning_features.steering.answer_store import AnswerStore
from reasoning_features.steering.benchmarks import Questions

BATCH = 1024
"""Rows that are sampled together: on two cores half as many are a tenth slower."""
ROWS_A_SHARD = 8192
"""Answers in a shard: enough to fill batches, few enough to lose."""
KEPT_ROWS_A_SHARD = 128
"""The same of questions whose answers are kept one by one: long ones, which a large GPU writes together."""


def continuations(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int = BATCH,
    progress: str | None = None,
    sae: Any = None,
    rows: Sequence[int] | None = None,
) -> list[list[int]]:
    """New tokens of one answer to every question under every condition, condition by condition.

    Args:
        subject: the model, steered at its hook point.
        questions: what is asked, by which engine, and where finished answers are kept.
        conditions: ways of steering; all of them are sampled together by the engine "rows".
        seed: of the draws.
        batch: the most rows that are sampled together; fewer where memory is short and prompts are padded.
        progress: names the progress bar; None shows none.
        sae: the autoencoder, where a condition clamps one of its features.
        rows: which answers, where row ``r`` is question ``r % n`` under condition ``r // n``; by default all.

    Raises:
        UserError: as :func:`reasoning_features.steering.answering.answers`.
    """
    check_conditions(subject, conditions, sae)
    n = len(questions)
    asked = list(range(n * len(conditions)) if rows is None else rows)
    done: dict[int, list[int]] = {}
    with contextlib.ExitStack() as stack:
        kept = {row // n for row in asked} if questions.kept else set()
        stores = {i: stack.enter_context(_store(subject, questions, conditions[i], seed, sae)) for i in kept}
        for row in asked if stores else ():
            held = stores[row // n].get(questions.prompts[row % n], questions.stream(row % n))
            if held is not None:
                done[row] = held
        missing = [row for row in asked if row not in done]

        def ended(row: int, tokens: list[int]) -> None:
            done[row] = tokens
            if stores:
                stores[row // n].add(questions.prompts[row % n], questions.stream(row % n), tokens)

        flowing = [row for row in missing if engine_of(questions, conditions[row // n]) == "continuous"]
        in_rows = sorted(set(missing) - set(flowing))
        if in_rows:
            _in_rows(subject, questions, conditions, in_rows, seed, batch, progress, sae, ended)
        if flowing:
            with tqdm(total=len(flowing), desc=progress, unit="answer", disable=progress is None) as bar:
                for condition in sorted({row // n for row in flowing}):
                    some = [row for row in flowing if row // n == condition]
                    _continuous(subject, questions, conditions[condition], some, seed, sae, ended, bar)
    return [done[row] for row in asked]


def continuations_in_shards(
    name: str,
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    kept: Path,
    batch: int = BATCH,
    progress: bool = True,
    sae: Any = None,
    size: int | None = None,
) -> list[list[int]]:
    """The same as :func:`continuations` in shards, which are kept: here, or on many machines.

    Args:
        name: what is answered, as the progress bar and the folder are named.
        kept: folder of shards.
        size: answers of a shard, about; by default ``ROWS_A_SHARD``, or ``KEPT_ROWS_A_SHARD`` long ones.
        subject, questions, conditions, seed, batch, progress, sae: as there.

    Raises:
        UserError: as there.
        ShareDone: only a share was asked for, and others are not finished.
    """
    check_conditions(subject, conditions, sae)
    most = size or (KEPT_ROWS_A_SHARD if questions.kept else ROWS_A_SHARD)
    parts = _parts(len(questions), len(conditions), most)
    clamps = any(condition.clamp is not None for condition in conditions)
    asked = replace(questions, grade=_ungraded)  # which may hold much that is not needed to write answers
    told = name if progress and questions.kept else None  # a shard of long answers takes long itself
    given = subject, asked, list(conditions), seed, batch, told, sae if clamps else None, parts
    compute = partial(_shard, *given)
    key = {
        "prompts": hashlib.sha256(repr((questions.prompts, questions.streams)).encode()).hexdigest(),
        "conditions": [answers_key(subject, questions, each, seed, sae) for each in conditions],
        "batch": batch,
    }
    work = Work(name, compute, len(parts), key, str(subject.device))
    written: list[list[int]] = []
    for arrays in map_shards(work, kept, progress):
        ends = np.cumsum(arrays["lengths"])
        written += [part.tolist() for part in np.split(arrays["tokens"], ends[:-1])]
    return written


def _shard(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int,
    progress: str | None,
    sae: Any,
    parts: Sequence[Sequence[int]],
    shard: int,
) -> Arrays:
    """One shard's answers end to end, and their lengths."""
    written = continuations(subject, questions, conditions, seed, batch, progress, sae, parts[shard])
    lengths = np.array([len(tokens) for tokens in written], dtype=np.int64)
    return {"tokens": np.array([t for tokens in written for t in tokens], np.int32), "lengths": lengths}


def _parts(questions: int, conditions: int, most: int) -> list[list[int]]:
    """Rows in their order, at most ``most`` in a part: whole conditions, or parts of one."""
    if questions <= most:
        starts = range(0, questions * conditions, most // questions * questions)
        ends = [*starts[1:], questions * conditions]
        return [list(range(start, end)) for start, end in zip(starts, ends, strict=True)]
    return [
        list(range(row, min(row + most, (condition + 1) * questions)))
        for condition in range(conditions)
        for row in range(condition * questions, (condition + 1) * questions, most)
    ]


def _ungraded(numbers: Sequence[int], continuations: Sequence[Sequence[int]]) -> pd.DataFrame:
    raise NotImplementedError("answers are graded where they are asked for")


def engine_of(questions: Questions, condition: Condition) -> str:
    """The engine that answers under a condition: token rules need rows."""
    return "rows" if condition.rule is not None else questions.engine


def answers_key(
    subject: Subject, questions: Questions, condition: Condition, seed: int, sae: Any = None
) -> dict[str, Any]:
    """All that determines a condition's answers but the prompts; its name is no part of it."""
    clamps = condition.clamp is not None
    return {
        "model": subject.revision,
        "hook": subject.hook_name,
        "dtype": str(subject.model.dtype),
        "end": questions.end,
        "max_new_tokens": questions.max_new_tokens,
        "sampling": [TEMPERATURE, TOP_P],
        "seed": seed,
        "engine": engine_of(questions, condition),
        "vector": None if condition.vector is None else _bytes(condition.vector),
        "clamp": (condition.feature, condition.clamp) if clamps else None,
        "sae": dictionary_digest(sae) if clamps else None,
        "rule": repr(condition.rule),
    }


def _in_rows(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    rows: list[int],
    seed: int,
    batch: int,
    progress: str | None,
    sae: Any,
    ended: Any,
) -> None:
    """Answers some rows, of all conditions together; each question draws from its own stream."""
    n, asked = len(questions), torch.tensor(rows)
    edit = stream_edit(subject, conditions, n, sae)
    rules = ConditionRules(conditions, n, asked) if any(condition.rule for condition in conditions) else None
    if edit is not None:
        places, change = asked.to(subject.device), edit.change
        edit = RowEdit(edit.block, lambda stream, some: change(stream, places[some]))
    prompts = [questions.prompts[row % n] for row in rows]
    if questions.pad is not None:
        longest = max(map(len, prompts)) + questions.max_new_tokens
        batch = min(batch, rows_that_fit(subject.model, longest))
    sample(
        subject.model,
        prompts,
        end=questions.end,
        max_new_tokens=questions.max_new_tokens,
        seed=seed,
        streams=[questions.stream(row % n) for row in rows],
        edit=edit,
        rule=rules,
        batch=batch,
        progress=progress,
        pad=questions.pad,
        ended=lambda place, tokens: ended(rows[place], tokens),
    )


def _continuous(
    subject: Subject,
    questions: Questions,
    condition: Condition,
    rows: list[int],
    seed: int,
    sae: Any,
    ended: Any,
    bar: Any,
) -> None:
    """Answers some rows of one condition, refilling the batch as they end."""
    n = len(questions)
    edit = stream_edit(subject, [condition], n, sae)
    nobody = torch.zeros(1, dtype=torch.int64, device=subject.device)

    def change(stream: Tensor) -> Tensor:
        assert edit is not None
        return edit.change(stream, nobody)

    # what is asked again after an interruption must not draw as its beginning did
    drawn = hashlib.sha256(repr((seed, rows)).encode()).digest()
    with edited_everywhere(subject.hooked_block, change if edit else None):
        sample_continuously(
            subject.model,
            [questions.prompts[row % n] for row in rows],
            end=questions.end,
            max_new_tokens=questions.max_new_tokens,
            seed=int.from_bytes(drawn[:4], "big") >> 1,
            ended=lambda place, tokens: ended(rows[place], tokens),
            progress=bar,
        )


def _store(subject: Subject, questions: Questions, condition: Condition, seed: int, sae: Any) -> AnswerStore:
    """Where a condition's finished answers are kept."""
    assert questions.kept is not None
    return AnswerStore(questions.kept, answers_key(subject, questions, condition, seed, sae))


def _bytes(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().float().numpy().tobytes()).hexdigest()
