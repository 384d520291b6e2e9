"""One model's steering study from its settings: what is tried, on which problems, with which draws.

The notebook and ``make organism`` call the same function, so that what the one shows of a shipped model the
other has computed by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features.models.conditions import Condition
from reasoning_features.models.subject import Subject
from reasoning_features.settings import READ, Settings, load_settings
from reasoning_features.steering.baselines import baselines, mean_norm
from reasoning_features.steering.benchmarks import Questions, load_questions
from reasoning_features.steering.search import Candidate, candidates
from reasoning_features.steering.steering_study import Study, run_study
from reasoning_features.steering.steering_sweep import answers_resumable
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.truth.decisions import find_decisions
from reasoning_features.truth.stored_benchmarks import Benchmark

DETERMINED_BY = (
    *READ, "subject", "contrast", "autoencoder", "contrast_autoencoder", "seed", "reasoning_documents",
    "general_documents", "words", "alpha", "window", "batch_tokens", "candidates",
    "search_vocabularies", "strengths", "screening_problems", "rescreened", "rescreening_problems",
    "steering_problems",
)  # fmt: skip
"""The settings that determine a study."""
SHIPPED_WITH = "organism"
"""The profile that the shipped studies were made with."""
SEEDS = {"screening": 101, "rescreening": 102, "evaluation": 103}
"""Seed of the draws at each stage, added to the run's."""


@dataclass(frozen=True)
class Tried:
    """What a study of one model tries.

    Attributes:
        candidates: steering vectors of all classes.
        baselines: name → conditions, of which the study chooses one.
        norm: mean norm of the residual stream.
    """

    candidates: list[Candidate]
    baselines: dict[str, list[Condition]]
    norm: float

    def winner(self, study: Study, group: str) -> Condition:
        """The condition with which a class went on to fresh problems in a study of these."""
        (row,) = study.winners.query("group == @group").to_dict("records")
        for candidate in self.candidates:
            if candidate.name == row["candidate"]:
                return candidate.at(row["gamma"])
        return next(condition for condition in self.baselines[group] if condition.name == row["condition"])


def prepare(settings: Settings, subject: Subject, sae: Any, benchmark: Benchmark) -> Tried:
    """The candidates and baselines of one model, from texts of the selection split.

    Args:
        settings: of the run, with this model as ``subject``.
        subject: the model, read at the autoencoder's hook point.
        sae: its autoencoder.
        benchmark: evidence of its features and, where known, their causal effects.

    Raises:
        UserError: too few features or vocabularies, or a word that the tokenizer cannot write.
    """
    traces = reasoning_corpus(settings, subject.tokenizer, "selection", settings.subject)
    decisions = find_decisions(traces, subject.tokenizer, settings.corpus)
    norm = mean_norm(subject, traces, settings.batch_tokens)
    made = candidates(
        benchmark.evidence,
        sae,
        settings.candidates,
        settings.search_vocabularies,
        settings.seed,
        known_effects(benchmark),
    )
    return Tried(made, baselines(subject, decisions, settings.words, norm, settings.batch_tokens), norm)


def study_model(
    settings: Settings, subject: Subject, tried: Tried, identity: Mapping[str, Any], unfinished: Path
) -> Study:
    """The steering study of one model.

    Args:
        settings: of the run, with this model as ``subject``.
        subject: the model, steered at the autoencoder's hook point.
        tried: candidates and baselines (:func:`prepare`).
        identity: what the study is of (``model``, ``kappa``, ``model_seed`` …).
        unfinished: folder for the conditions that are finished, from which an interrupted study goes on.

    Raises:
        UserError: there are no problems to ask.
    """
    load = partial(load_questions, settings, subject.tokenizer)
    first, second = settings.screening_problems, settings.rescreening_problems

    def ask(questions: Questions, conditions: Sequence[Condition], stage: str) -> pd.DataFrame:
        told = f"{identity['model']}, {stage}"
        return answers_resumable(
            subject, questions, conditions, settings.seed + SEEDS[stage], unfinished, told
        )

    return run_study(
        identity,
        tried.candidates,
        tried.baselines,
        settings.strengths,
        settings.rescreened,
        tried.norm,
        load("selection", first),
        load("selection", second, start=first),
        load("evaluation", settings.steering_problems, start=settings.evaluation_start),
        ask,
    )


def shipped_study(
    settings: Settings, shipped: Mapping[str, Study], identity: Mapping[str, Any]
) -> Study | None:
    """The shipped study of one model, where the run's settings are those that it was made with; else None.

    Args:
        settings: of the run.
        shipped: name → study (:func:`reasoning_features.steering.steering_study.load_studies`).
        identity: what the study is of.
    """
    own = {"subject", "contrast", "autoencoder", "contrast_autoencoder"}  # these the identity tells
    made_with = load_settings(SHIPPED_WITH)
    same = all(getattr(settings, n) == getattr(made_with, n) for n in DETERMINED_BY if n not in own)
    name = "{model}-{architecture}-{autoencoder_seed}".format(**identity)
    return shipped.get(name) if same else None


def known_effects(benchmark: Benchmark) -> NDArray[np.float64] | None:
    """Each feature's effect on persistence ``[d_sae]``, nan where never active; None where not measured."""
    truth = benchmark.truths.get("persistence")
    if truth is None:
        return None
    effects = np.full(len(benchmark.evidence), np.nan)
    effects[truth.features] = truth.effect
    return effects
