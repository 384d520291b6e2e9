"""How answers to questions are made: in batches of rows or continuously, and kept or not.

Two engines. "rows" samples many conditions in one batch; every row draws from its own random stream, so
answers are paired between conditions and do not depend on their batch. A batch lasts as long as its longest
answer, and keys and values are copied at every token: right for short answers, on a CPU, and for token rules,
which it alone can follow. "continuous" (:mod:`reasoning_features.continuous`) refills the batch as answers
end: meant for long answers of unequal lengths on a GPU. On two cores, 48 answers of a Llama of 4 blocks of
width 64, it made 1,300 tokens/s of answers of up to 512 tokens and 370 of up to 2,000, where rows, padded,
made 4,000 and 2,750, and rows by length of prompt, few to a batch, 720 and 490.

Where questions say so, finished answers are kept on disk (:mod:`reasoning_features.answer_store`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.answer_store import AnswerStore
from reasoning_features.benchmarks import Questions
from reasoning_features.conditions import Condition, ConditionRules, check_conditions, stream_edit
from reasoning_features.continuous import edited_everywhere, sample_continuously
from reasoning_features.sampling import TEMPERATURE, TOP_P, RowEdit, rows_that_fit, sample
from reasoning_features.subject import Subject


def continuations(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int = 512,
    progress: str | None = None,
    sae: Any = None,
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

    Raises:
        UserError: as :func:`reasoning_features.steering.answers`.
    """
    check_conditions(subject, conditions, sae)
    n = len(questions)
    done: dict[int, list[int]] = {}
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(s) for s in _stores(subject, questions, conditions, seed, sae)]
        for row in range(n * len(conditions)) if stores else ():
            held = stores[row // n].get(questions.prompts[row % n], questions.stream(row % n))
            if held is not None:
                done[row] = held
        missing = [row for row in range(n * len(conditions)) if row not in done]

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
                    rows = [row for row in flowing if row // n == condition]
                    _continuous(subject, questions, conditions[condition], rows, seed, sae, ended, bar)
    return [done[row] for row in range(n * len(conditions))]


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
        "sae": {name: _bytes(value) for name, value in sae.state_dict().items()} if clamps else None,
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


def _stores(
    subject: Subject, questions: Questions, conditions: Sequence[Condition], seed: int, sae: Any
) -> list[AnswerStore]:
    """The store of each condition; none where nothing is kept."""
    if questions.kept is None:
        return []
    return [
        AnswerStore(questions.kept, answers_key(subject, questions, each, seed, sae)) for each in conditions
    ]


def _bytes(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().float().numpy().tobytes()).hexdigest()
