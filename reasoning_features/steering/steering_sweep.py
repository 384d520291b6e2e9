"""Many steered answers in shards that are kept, so that an interrupted sweep keeps what it has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import Subject
from reasoning_features.steering.answering import told
from reasoning_features.steering.benchmarks import Questions
from reasoning_features.steering.generation import continuations_in_shards


def answers_resumable(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    folder: Path,
    name: str = "steered answers",
    sae: Any = None,
    size: int | None = None,
) -> pd.DataFrame:
    """:func:`reasoning_features.steering.answering.answers` without texts and tokens, kept in a folder.

    Args:
        subject: the model, steered at its hook point.
        questions: what is asked.
        conditions: ways of steering; unsteered is added.
        seed: of the draws.
        folder: where finished shards are kept; made where it is missing.
        name: names the progress bar and the shards.
        sae: the autoencoder, where a condition clamps one of its features.
        size: answers of a shard, about.

    Raises:
        UserError: as :func:`reasoning_features.steering.answering.answers`, before anything is asked.
        ShareDone: only a share was asked for, and others are not finished.
    """
    asked, slug = [Condition(UNSTEERED), *conditions], re.sub(r"[^\w.]+", "-", name)
    written = continuations_in_shards(slug, subject, questions, asked, seed, folder, sae=sae, size=size)
    graded = questions.grade(list(range(len(questions))) * len(asked), written)
    return pd.concat([told(asked, len(questions)), graded.drop(columns="text")], axis=1)
