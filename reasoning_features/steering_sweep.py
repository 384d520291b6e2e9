"""Many steered answers, condition by condition on disk, so that an interrupted sweep keeps what it has.

A condition's answers are one file, whole or absent, named after all that determines them: the model and its
hook point, the problems, the seed, and what the condition changes. A rerun asks only what is missing, and a
condition that another sweep in the folder has asked already is read. The code is no part of the name: a
folder is for one version of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from reasoning_features.benchmarks import Questions
from reasoning_features.conditions import UNSTEERED, Condition, check_conditions
from reasoning_features.generation import answers_key
from reasoning_features.steering import answers_under, told
from reasoning_features.subject import Subject

_ROWS_A_PIECE = 8192
"""Answers that are sampled before they are written: enough to fill batches, few enough to lose."""


def answers_resumable(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    folder: Path,
    batch: int = 512,
    progress: str | None = "steered answers",
    sae: Any = None,
) -> pd.DataFrame:
    """The answers of :func:`reasoning_features.steering.answers`, without their texts, kept in a folder.

    Args:
        subject: the model, steered at its hook point.
        questions: what is asked.
        conditions: ways of steering; unsteered is added.
        seed: of the draws.
        folder: where finished conditions are kept; made where it is missing.
        batch: rows that are sampled together.
        progress: names the one progress bar; None shows none.
        sae: the autoencoder, where a condition clamps one of its features.

    Raises:
        UserError: as :func:`reasoning_features.steering.answers`, before anything is asked.
    """
    asked = [Condition(UNSTEERED), *conditions]
    check_conditions(subject, asked, sae)
    files = [folder / f"{_digest(subject, questions, c, seed, sae)}.parquet" for c in asked]
    missing = [i for i, file in enumerate(files) if not file.is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    n, size = len(questions), max(1, _ROWS_A_PIECE // len(questions))
    with tqdm(total=n * len(missing), desc=progress, unit="answer", disable=progress is None) as bar:
        for start in range(0, len(missing), size):
            piece = missing[start : start + size]
            given = answers_under(subject, questions, [asked[i] for i in piece], seed, batch, None, sae)
            graded = given.drop(columns=[*told([], 0).columns, "text"])
            for place, i in enumerate(piece):
                _write(files[i], graded[place * n : (place + 1) * n])
            bar.update(n * len(piece))
    graded = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    return pd.concat([told(asked, n), graded], axis=1)


def _write(file: Path, rows: pd.DataFrame) -> None:
    writing = file.with_name(f"{file.name}.writing")
    rows.to_parquet(writing, index=False)
    os.replace(writing, file)


def _digest(subject: Subject, questions: Questions, condition: Condition, seed: int, sae: Any) -> str:
    """Names a condition's answers; the condition's own name is no part of it."""
    determined_by = answers_key(subject, questions, condition, seed, sae)
    told = json.dumps({"prompts": questions.prompts} | determined_by)
    return hashlib.sha256(told.encode()).hexdigest()[:24]
