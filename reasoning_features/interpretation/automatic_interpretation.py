"""What a feature is for, without a reader: measured from what steering it changes, or asked of a judge.

The paper lets a language model describe each feature from pairs of generations and clusters the descriptions
into ten groups. Here the description is what was measured: the change of each measure from the lowest to the
highest strength, paired over problems. The function group follows by a rule fixed before any feature was
looked at.

A judge, off by default, is a language model behind any OpenAI-compatible chat endpoint. It sees what a person
would: activating examples and logits. Each answer is kept as soon as it comes: a rerun asks for the others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import read_json, write_json
from reasoning_features.interpretation.features import Example, Mode
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.statistics import bootstrap_mean, bootstrap_weights

# a change counts when its bootstrap interval of this level leaves out 0: several measures are looked at
LEVEL = 0.99
# measure → the group of a feature that raises it most, and of one that lowers it most
GROUPS = {
    "parseable": ("keeps the form of the text", "breaks the form of the text"),
    "gave_up": ("gives up", "goes on"),
    "explore": ("goes on", "gives up"),
    "verify": ("checks", "checks less"),
    "checked": ("checks", "checks less"),
    "backtrack": ("steps back", "steps back less"),
    "uncertain": ("doubts", "doubts less"),
    "words of R": ("says words of R", "avoids words of R"),
    "thinking_tokens": ("thinks longer", "thinks shorter"),
    "correct": ("answers better", "answers worse"),
}
BROKEN = "breaks the form of the text"
NO_CHANGE = "no change measured"
UNFIT = 0.1  # a strength that spoils more than this fraction of the answers' form is left out of the dose

KEY = "REASONING_FEATURES_JUDGE_KEY"  # names the variable that holds the endpoint's key, where it needs one
STRONG = 0.5  # of an example's largest activation: tokens the prompt marks
INSTRUCTIONS = """\
You are shown texts that activate one feature of a language model; the tokens on which it is strongly active \
are between « and ». Say what the feature responds to.
Modes: uncertainty (doubt, hedging), exploration (trying another way), reflection (checking or correcting \
what was done), mixed (more than one of these), other (none of these).
Answer with one JSON object and nothing else: {"mode": "<one of the modes>", "description": "<one line>"}"""


# --- measured -----------------------------------------------------------------------------------------------


def dose(answers: pd.DataFrame) -> pd.DataFrame:
    """The ``low``est and ``high``est strength of each feature that leave the answers' form whole.

    0, unsteered, where all of a sign spoil it. Without a measure ``parseable`` every strength is kept.
    """
    spoilt = pd.Series(0.0, index=answers.index)
    if "parseable" in answers:
        usual = answers.loc[answers["condition"] == UNSTEERED, "parseable"].mean()
        spoilt = usual - answers.groupby("condition")["parseable"].transform("mean")
    kept = answers[(spoilt <= UNFIT) & (answers["condition"] != UNSTEERED)]
    bounds = kept.groupby("feature")["gamma"].agg(low="min", high="max")
    bounds = bounds.reindex(sorted(answers.loc[answers["feature"] >= 0, "feature"].unique())).fillna(0.0)
    return bounds.assign(low=bounds["low"].clip(upper=0), high=bounds["high"].clip(lower=0)).reset_index()


def changes(answers: pd.DataFrame, measures: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Change of each measure from a feature's ``low`` to its ``high`` kept strength, paired over problems.

    ``answers`` has one row a problem and condition, ``feature`` and ``gamma`` (-1 and 0 unsteered), with the
    ``measures`` as columns. The interval is that of ``LEVEL``; ``standardised`` is the change in standard
    deviations of the unsteered answers.
    """
    table = answers.pivot(index="problem", columns=["feature", "gamma"], values=list(measures)).astype(float)
    weights = bootstrap_weights(len(table), 1000, seed) / len(table)
    rows: list[dict[str, Any]] = []
    for feature, low, high in dose(answers).itertuples(index=False):
        for measure in measures:
            plain = table[measure][-1, 0.0]
            ends = [plain if end == 0 else table[measure][feature, end] for end in (low, high)]
            difference = (ends[1] - ends[0]).to_numpy()
            interval = np.quantile(weights @ difference, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            change, spread = difference.mean(), plain.std(ddof=1)
            row = {"feature": feature, "low": low, "high": high, "measure": measure, "change": change}
            row |= {"change low": interval[0], "change high": interval[1], "unsteered": plain.mean()}
            rows.append(row | {"standardised": change / spread if spread > 0 else 0.0, "n": len(table)})
    return pd.DataFrame(rows)


def function_groups(changed: pd.DataFrame) -> pd.DataFrame:
    """Each feature's function ``group`` and ``description`` in words, from :func:`changes`.

    The rule: of the changes whose interval leaves out 0, the largest in standard deviations of the unsteered
    answers names the group (``GROUPS``); none, and the feature is of "no change measured". A feature none of
    whose strengths leaves the form of the answers whole breaks it.
    """
    rows = []
    for feature, part in changed.groupby("feature", sort=False):
        sure = part[(part["change low"] > 0) | (part["change high"] < 0)]
        sure = sure.sort_values("standardised", key=np.abs, ascending=False, kind="stable")
        if (part["low"] == part["high"]).all():
            group = BROKEN
        elif sure.empty:
            group = NO_CHANGE
        else:
            group = GROUPS[sure["measure"].iloc[0]][int(sure["change"].iloc[0] < 0)]
        changed_most = ", ".join(f"{row.measure} {row.change:+.2g}" for row in sure.itertuples())
        span = f"γ from {part['low'].iloc[0]:g} to {part['high'].iloc[0]:g}"
        rows.append((feature, group, f"{span}: {changed_most or 'nothing'}"))
    return pd.DataFrame(rows, columns=["feature", "group", "description"])


def group_shares(groups: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Fraction of features in each function group, by class, with its 95% interval over features (figure 3b),
    groups by their mean fraction.
    """
    rows = []
    for name in sorted(pd.concat(groups.values())["group"].unique()) if groups else ():
        shares = {kind: bootstrap_mean(frame["group"] == name) for kind, frame in groups.items()}
        mean = np.mean([share.estimate for share in shares.values()])
        rows += [(mean, k, name, s.estimate, s.low, s.high, s.n) for k, s in shares.items()]
    table = pd.DataFrame(rows, columns=["mean", "class", "group", "share", "low", "high", "n"])
    return table.sort_values("mean", ascending=False, kind="stable", ignore_index=True).drop(columns="mean")


# --- asked --------------------------------------------------------------------------------------------------


class Answer(BaseModel, extra="forbid"):
    """What a judge is asked for."""

    mode: Mode
    description: str = Field(min_length=1, max_length=300)


def questions(examples: Mapping[int, Sequence[Example]], logits: pd.DataFrame) -> dict[int, str]:
    """Feature → the question about it: its examples, strong tokens marked, and what it raises and lowers."""
    sides = logits.groupby(["feature", "side"])["text"].agg(list)
    asked = {}
    for feature, shown in examples.items():
        up, down = (json.dumps(sides[feature, s], ensure_ascii=False) for s in ("positive", "negative"))
        lines = [f"{i}. {_marked(example)}" for i, example in enumerate(shown, start=1)]
        lines.append(f"It raises the logits of {up} and lowers those of {down}.")
        asked[feature] = "\n".join(lines)
    return asked


def judge(
    url: str, model: str | None, questions: Mapping[int, str], kept: Path, timeout: float = 60.0
) -> tuple[pd.DataFrame, str | None]:
    """Ask about every feature that has no answer in the JSON file ``kept`` yet.

    ``/chat/completions`` is appended to the address. An endpoint that does not answer within ``timeout``
    seconds ends the asking; an answer that cannot be read costs that feature alone. Gives ``feature``,
    ``mode``, ``description`` of the features that were answered, and what went wrong in a sentence.
    """
    if model is None:
        raise UserError("A judge needs a model: give judge_model beside judge_url.")
    known: dict[str, dict[str, str]] = read_json(kept) if kept.is_file() else {}
    asked = {feature: json.dumps([model, INSTRUCTIONS, feature, text]) for feature, text in questions.items()}
    digests = {feature: hashlib.sha256(each.encode()).hexdigest() for feature, each in asked.items()}
    problem = None
    for feature, text in questions.items():
        if digests[feature] in known:
            continue
        try:
            known[digests[feature]] = _ask(url, model, text, timeout).model_dump()
        except httpx.HTTPError as error:
            why = str(error).splitlines()[0]
            problem = f"The judge at {url} stopped answering at feature {feature} ({why})"
            break
        except (ValueError, LookupError, TypeError):
            problem = f"The judge's answer about feature {feature} is not what it was asked for"
            continue
        write_json(kept, known)
    rows = [{"feature": feature} | known[each] for feature, each in digests.items() if each in known]
    if problem is not None:
        stored = f"{len(rows)} of {len(questions)} answers are kept in {paths.relative(kept)}"
        problem += f"; {stored}, and a rerun asks for the others."
    return pd.DataFrame(rows, columns=["feature", "mode", "description"]), problem


def _ask(url: str, model: str, text: str, timeout: float) -> Answer:
    """The endpoint's answer; an error of the connection, or of what came over it."""
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "temperature": 0}
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
    address = f"{url.rstrip('/')}/chat/completions"
    answer = httpx.post(address, json=body, headers=headers, timeout=timeout).raise_for_status()
    return Answer.model_validate_json(answer.json()["choices"][0]["message"]["content"])


def _marked(example: Example) -> str:
    """An example on one line, strongly active tokens between « and »."""
    strong = example.activations > STRONG * max(float(np.max(example.activations)), 1e-12)
    pieces = zip(example.pieces, strong, strict=True)
    marked = "".join(f"«{piece}»" if active else piece for piece, active in pieces)
    return " ".join(marked.replace("»«", "").split())
