"""How good a model of the organism is, and the manipulation check of the variants.

Answers to problems are sampled, graded and parsed. The check asks what a model reads its persistence off: the
words of R, or something else? At every dead end of held-out traces the log-odds of going on are read at the
decision token, once as the trace stands and once with every word of R swapped for its matched control (or the
other way round, or the neutral markers swapped). Swaps keep the tokens' places: a control has as many tokens
as its word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reasoning_features.models.sampling import sample
from reasoning_features.organism.language import (
    CONTEXT,
    END_THINK,
    MARKERS_CAREFUL,
    MARKERS_HASTY,
    MATCHED_CONTROLS,
    THINK,
    Document,
    prompt_text,
)
from reasoning_features.organism.parser import DECISIONS, decision_places, first_tokens, parse
from reasoning_features.organism.problems import FAMILIES, Problem
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
    rows: list[dict[str, Any]] = []
    asked = zip(problems, prompts(tokenizer, problems), continuations, strict=True)
    for problem, prompt, continuation in asked:
        text = str(tokenizer.decode([*prompt, *continuation]))
        parsed = parse(text)
        moves = [sentence.move for sentence in parsed.sentences]
        row: dict[str, Any] = {
            "family": problem.family,
            "question": problem.question,
            "answer": parsed.answer,
        }
        row |= {"correct": parsed.answer == problem.answer}
        row |= {"thinking_tokens": _thinking_tokens(list(continuation), think, end_think)}
        row |= {name: getattr(parsed, name) for name in ("gave_up", "checked", "parseable")}
        rows.append(row | {move: moves.count(move) for move in MOVES_COUNTED} | {"text": text})
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
    rows = []
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
        rows += [(family, measure, i.estimate, i.low, i.high, i.n) for measure, i in measures.items()]
    return pd.DataFrame(rows, columns=["family", "measure", "estimate", "low", "high", "n"])


_OTHER_MARKERS = dict(zip(MARKERS_CAREFUL, MARKERS_HASTY, strict=True))
_OPENING = re.compile(r"^(?P<prefix>[A-Z][a-z ]*), (?P<marker>[a-z]+) ", re.MULTILINE)
SWAPS = ("as it stands", "all words of R", "all twins", "all careful markers", "all hasty markers")


def swap(text: str, how: str) -> str:
    """``text`` with the prefixes or the markers of all its sentences replaced, as named in ``SWAPS``.

    Raises:
        KeyError: ``how`` is not one of ``SWAPS``.
    """
    to_twin, to_word = dict(MATCHED_CONTROLS), {twin: word for word, twin in MATCHED_CONTROLS.items()}
    to_hasty, to_careful = dict(_OTHER_MARKERS), {hasty: careful for careful, hasty in _OTHER_MARKERS.items()}
    prefixes, markers = {
        "as it stands": ({}, {}),
        "all words of R": (to_word, {}),
        "all twins": (to_twin, {}),
        "all careful markers": ({}, to_careful),
        "all hasty markers": ({}, to_hasty),
    }[how]

    def replaced(found: re.Match[str]) -> str:
        prefix = found["prefix"].lower()
        prefix = prefixes.get(prefix, prefix)
        return f"{prefix[0].upper()}{prefix[1:]}, {markers.get(found['marker'], found['marker'])} "

    return _OPENING.sub(replaced, text)


@torch.inference_mode()
def decision_log_odds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    how: str,
    batch: int = 64,
) -> pd.DataFrame:
    """Log-odds (nats) of openers that go on over openers that give up, at every dead end of ``documents``.

    Returns one row a decision: ``trace``, ``decision`` (its number in the trace), ``style``, ``went_on``,
    ``swap``, ``log_odds``.
    """
    on, off = (torch.tensor(first_tokens(tokenizer, openers)) for openers in DECISIONS["persistence"])
    rows = []
    for start in range(0, len(documents), batch):
        texts = [swap(document.text, how) for document in documents[start : start + batch]]
        encoded = tokenizer(
            texts, add_special_tokens=False, padding=True, return_offsets_mapping=True, return_tensors="pt"
        )
        scores = torch.log_softmax(
            model(input_ids=encoded["input_ids"], use_cache=False).logits.float(), dim=-1
        )
        for row, text in enumerate(texts):
            document = documents[start + row]
            starts = encoded["offset_mapping"][row, :, 0]
            for decision, place in enumerate(decision_places(text)["persistence"]):
                token = int((starts == place - 1).nonzero()[0])
                at = scores[row, token - 1]
                went_on = int(encoded["input_ids"][row, token]) in on.tolist()
                log_odds = float(at[on].logsumexp(0) - at[off].logsumexp(0))
                rows.append((start + row, decision, document.style, went_on, how, log_odds))
    return pd.DataFrame(rows, columns=["trace", "decision", "style", "went_on", "swap", "log_odds"])
