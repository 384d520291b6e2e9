"""Steering: directions added to the residual stream while the model answers, many conditions in one batch.

Equation 7: x' = x + γ · f_i^max · W_dec,i at the autoencoder's layer, at every position, the prompt's too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from reasoning_features.benchmarks import Questions
from reasoning_features.errors import UserError
from reasoning_features.sampling import RowEdit, sample
from reasoning_features.subject import Subject

UNSTEERED = "unsteered"


@dataclass(frozen=True)
class Condition:
    """One way of steering: its name, what it is made of, and the vector ``[d]`` that is added."""

    name: str
    feature: int
    gamma: float
    vector: Tensor


def feature_conditions(
    sae: Any, features: Sequence[int], gammas: Sequence[float], maxima: ArrayLike
) -> list[Condition]:
    """Every feature at every strength (equation 7).

    Args:
        sae: gives the decoder directions.
        features: which features.
        gammas: strengths, in units of the feature's largest activation.
        maxima: each feature's largest activation f_i^max ``[d_sae]``, on data that nothing is reported of.

    Raises:
        UserError: a feature that is not there or never active, or a strength that is not finite.
    """
    largest = np.asarray(maxima, dtype=float)
    for feature in features:
        if not 0 <= feature < sae.cfg.d_sae:
            raise UserError(f"Feature {feature} is not there: this autoencoder has 0 to {sae.cfg.d_sae - 1}.")
        if not largest[feature] > 0:
            raise UserError(f"Feature {feature} is never active, so it has no strength to steer with.")
    if not np.isfinite(gammas).all():
        raise UserError(f"The strengths {list(gammas)} are not all finite numbers: give finite ones.")
    decoder = sae.W_dec.detach().cpu()
    return [
        Condition(
            f"{feature} at {gamma:g}", feature, gamma, gamma * float(largest[feature]) * decoder[feature]
        )
        for feature in features
        for gamma in gammas
    ]


def answers(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    batch: int = 512,
    progress: str | None = "steered answers",
) -> pd.DataFrame:
    """One answer to every question under every condition, and unsteered.

    A question draws the same uniforms under all conditions, so differences between them are paired.

    Returns:
        The rows of ``questions.grade`` with ``condition``, ``feature`` (−1 unsteered), ``gamma`` and
        ``problem``.
    """
    n = len(questions)
    vectors = torch.stack([torch.zeros(subject.d_model), *(condition.vector for condition in conditions)])
    vectors = vectors.to(subject.device, subject.model.dtype)

    def add(stream: Tensor, rows: Tensor) -> Tensor:
        return stream + vectors[rows // n][:, None]

    numbers = list(range(n)) * len(vectors)
    continuations = sample(
        subject.model,
        [questions.prompts[number] for number in numbers],
        end=questions.end,
        max_new_tokens=questions.max_new_tokens,
        seed=seed,
        streams=numbers,
        edit=RowEdit(subject.hooked_block, add),
        batch=batch,
        progress=progress,
    )
    graded = questions.grade(numbers, continuations)
    names = [(UNSTEERED, -1, 0.0), *((c.name, c.feature, c.gamma) for c in conditions)]
    told = pd.DataFrame(names, columns=["condition", "feature", "gamma"])
    told = told.loc[told.index.repeat(n)].reset_index(drop=True)
    return pd.concat([told.assign(problem=numbers), graded], axis=1)
