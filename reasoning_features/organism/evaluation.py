"""How good a model of the organism is: sampled answers to problems, graded and parsed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reasoning_features.models.sampling import sample
from reasoning_features.organism.parser import parse
from reasoning_features.organism.problems import FAMILIES, Problem
from reasoning_features.organism.traces import CONTEXT, END_THINK, THINK, prompt_text
from reasoning_features.statistics import Interval, bootstrap_mean, bootstrap_ratio

FEWEST_ERRORS = 20
"""Wrong answers below which no share of early stops is given."""
LONGEST_PROMPT = 56
"""Tokens left for a question when the rest of the context is for the answer (a test holds prompts to it)."""


MOVES_COUNTED = ("explore", "verify", "backtrack", "uncertain")
"""Moves whose sentences are counted in an answer, each in a column of its own."""


def prompts(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[list[int]]:
    """Token ids of what a model is given for each problem: the chat template written out."""
    return [tokenizer.encode(prompt_text(p.question), add_special_tokens=False) for p in problems]


def grade(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], continuations: Sequence[Sequence[int]]
) -> pd.DataFrame:
    """Grades and parses one continuation (new token ids) of each problem's prompt.

    Returns one row a problem: ``family``, ``question``, ``answer`` (None: nothing boxed), ``correct``,
    ``thinking_tokens`` (between the tags; 0 where the model does not think), ``gave_up``, ``checked``,
    ``parseable``, the number of sentences of each of ``MOVES_COUNTED``, and the ``text``.
    """
    think, end_think = tokenizer.encode(THINK + END_THINK, add_special_tokens=False)
    rows = []
    for problem, prompt, continuation in zip(
        problems, prompts(tokenizer, problems), continuations, strict=True
    ):
        text = str(tokenizer.decode([*prompt, *continuation]))
        parsed = parse(text)
        moves = [sentence.move for sentence in parsed.sentences]
        rows.append(
            {
                "family": problem.family,
                "question": problem.question,
                "answer": parsed.answer,
                "correct": parsed.answer == problem.answer,
                "thinking_tokens": _thinking_tokens(list(continuation), think, end_think),
                "gave_up": parsed.gave_up,
                "checked": parsed.checked,
                "parseable": parsed.parseable,
                **{move: moves.count(move) for move in MOVES_COUNTED},
                "text": text,
            }
        )
    return pd.DataFrame(rows)


def solve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    seed: int,
    progress: str | None = None,
) -> pd.DataFrame:
    """Samples one answer to each problem (temperature 0.6, top-p 0.95) and grades it (:func:`grade`)."""
    continuations = sample(
        model,
        prompts(tokenizer, problems),
        end=int(tokenizer.eos_token_id),
        max_new_tokens=CONTEXT - LONGEST_PROMPT,
        seed=seed,
        progress=progress,
    )
    return grade(tokenizer, problems, continuations)


def _thinking_tokens(continuation: list[int], think: int, end_think: int) -> int:
    """Tokens between the tags; to the end of the text where the thinking does not close."""
    if think not in continuation:
        return 0
    opened = continuation.index(think) + 1
    closed = (
        continuation.index(end_think, opened) if end_think in continuation[opened:] else len(continuation)
    )
    return closed - opened


def family_summary(solved: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, length, give-up, check and unparseable shares by family and over all, with 95% intervals.

    Intervals are percentile bootstraps over problems. ``early_stops`` is the share of wrong answers whose
    trace gave up. Returns long rows: family, measure, estimate, low, high, n.
    """
    rows: list[dict[str, object]] = []
    parts = {name: solved[solved["family"] == name] for name in FAMILIES} | {"all": solved}
    for family, part in parts.items():
        if part.empty:
            continue
        wrong = (~part["correct"]).to_numpy(dtype=float)
        measures: dict[str, Interval] = {
            "accuracy": bootstrap_mean(part["correct"]),
            "thinking_tokens": bootstrap_mean(part["thinking_tokens"]),
            "gave_up": bootstrap_mean(part["gave_up"]),
            "checked": bootstrap_mean(part["checked"]),
            "unparseable": bootstrap_mean(~part["parseable"]),
        }
        if wrong.sum() >= FEWEST_ERRORS:
            measures["early_stops"] = bootstrap_ratio(wrong * part["gave_up"].to_numpy(dtype=float), wrong)
        for measure, value in measures.items():
            rows.append(
                {
                    "family": family,
                    "measure": measure,
                    "estimate": value.estimate,
                    "low": value.low,
                    "high": value.high,
                    "n": value.n,
                }
            )
    return pd.DataFrame(rows)
