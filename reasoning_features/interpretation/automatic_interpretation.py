"""What a feature is for, without a reader: measured from what steering it changes, or asked of a judge.

The paper lets a language model describe each feature from pairs of generations and clusters the descriptions
into ten groups. Here the description is what was measured: the change of each measure from the lowest to the
highest strength, paired over problems. The function group follows by a rule fixed before any feature was
looked at.

A judge, off by default, is a language model behind any OpenAI-compatible chat endpoint. It sees what a person
would: activating examples and logits. Each answer is kept as soon as it comes: a rerun asks for the others.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import product
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
from reasoning_features.statistics import bootstrap_mean, share_of

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
TIMEOUT = 60  # seconds
STRONG = 0.5  # of an example's largest activation: tokens the prompt marks
INSTRUCTIONS = """\
You are shown texts that activate one feature of a language model; the tokens on which it is strongly active \
are between « and ». Say what the feature responds to.
Modes: uncertainty (doubt, hedging), exploration (trying another way), reflection (checking or correcting \
what was done), mixed (more than one of these), other (none of these).
Answer with one JSON object and nothing else: {"mode": "<one of the modes>", "description": "<one line>"}"""


def dose(answers: pd.DataFrame) -> pd.DataFrame:
    """The ``low``est and ``high``est strength of each feature that leave the answers' form whole, if there is
    a measure ``parseable``; 0, unsteered, where all of a sign spoil it.
    """
    steered = answers[answers["feature"] >= 0]
    if "parseable" in answers:
        usual = answers.loc[answers["condition"] == UNSTEERED, "parseable"].mean()
        whole = steered.groupby("condition")["parseable"].transform("mean")
        steered = steered.assign(gamma=steered["gamma"].where(usual - whole <= UNFIT, 0.0))
    bounds = steered.groupby("feature")["gamma"].agg(low="min", high="max")
    return bounds.assign(low=bounds["low"].clip(upper=0), high=bounds["high"].clip(lower=0)).reset_index()


def changes(answers: pd.DataFrame, measures: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Change of each measure from a feature's ``low`` to its ``high`` kept strength, paired over problems,
    with its ``LEVEL`` interval; ``standardised``: in standard deviations of the unsteered answers.

    ``answers`` has a row a problem and condition: ``feature``, ``gamma`` (-1 and 0 unsteered), ``measures``.
    """
    table = answers.pivot(index="problem", columns=["feature", "gamma"], values=list(measures)).astype(float)
    rows: list[dict[str, Any]] = []
    for (feature, low, high), measure in product(dose(answers).itertuples(index=False), measures):
        plain = table[measure][-1, 0.0]
        start, end = (table[measure][feature, at] if at else plain for at in (low, high))
        change = bootstrap_mean(end - start, seed, LEVEL)
        spread = plain.std(ddof=1)
        row = {"feature": feature, "low": low, "high": high, "measure": measure}
        row |= change.row("change", "change ")
        rows.append(row | {"standardised": change.estimate / spread if spread > 0 else 0.0})
    return pd.DataFrame(rows)


def function_groups(changed: pd.DataFrame) -> pd.DataFrame:
    """Each feature's function ``group`` and ``description`` in words, from :func:`changes`.

    The rule: of the changes whose interval leaves out 0, the largest in standard deviations names the group
    (``GROUPS``), if any. A feature none of whose strengths leaves the form of the answers whole breaks it.
    """
    rows = []
    for feature, part in changed.groupby("feature", sort=False):
        low, high = part[["low", "high"]].iloc[0]
        sure = part[(part["change low"] > 0) | (part["change high"] < 0)]
        sure = sure.sort_values("standardised", key=np.abs, ascending=False, kind="stable")
        group = BROKEN if low == high else NO_CHANGE
        if low < high and len(sure):
            group = GROUPS[sure["measure"].iloc[0]][int(sure["change"].iloc[0] < 0)]
        most = ", ".join(f"{row.measure} {row.change:+.2g}" for row in sure.itertuples()) or "nothing"
        rows.append((feature, group, f"γ from {low:g} to {high:g}: {most}"))
    return pd.DataFrame(rows, columns=["feature", "group", "description"])


def group_shares(groups: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Fraction of features in each function group, by class, with its 95% interval over features by Wilson
    (figure 3b), groups by their mean fraction.
    """
    rows = []
    for name in sorted(pd.concat(groups.values())["group"].unique()) if groups else ():
        shares = {kind: share_of(frame["group"] == name) for kind, frame in groups.items()}
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
    url: str, model: str | None, questions: Mapping[int, str], kept: Path
) -> tuple[pd.DataFrame, str | None]:
    """Ask about every feature that has no answer in the JSON file ``kept`` yet; give ``feature``, ``mode``,
    ``description`` of those that were answered, and what went wrong in a sentence. UserError: no model.

    An endpoint that does not answer ends the asking; an answer that cannot be read costs that feature alone.
    """
    if model is None:
        raise UserError("A judge needs a model: give judge_model beside judge_url.")
    known: dict[str, dict[str, str]] = read_json(kept) if kept.is_file() else {}
    rows, problem, gone = [], None, False
    for feature, text in questions.items():
        asked = json.dumps([model, INSTRUCTIONS, feature, text])
        digest = hashlib.sha256(asked.encode()).hexdigest()
        try:
            if digest not in known and not gone:
                known[digest] = Answer.model_validate_json(chat(url, model, INSTRUCTIONS, text)).model_dump()
                write_json(kept, known)
        except httpx.HTTPError as error:
            why, gone = str(error).splitlines()[0], True
            problem = f"The judge at {url} stopped answering at feature {feature} ({why})"
        except (ValueError, LookupError, TypeError):
            problem = f"The judge's answer about feature {feature} is not what it was asked for"
        rows += [{"feature": feature} | known[digest]] if digest in known else []
    if problem is not None:
        stored = f"{len(rows)} of {len(questions)} answers are kept in {paths.relative(kept)}"
        problem += f"; {stored}, and a rerun asks for the others."
    return pd.DataFrame(rows, columns=["feature", "mode", "description"]), problem


def chat(url: str, model: str, instructions: str, text: str) -> str:
    """What the model behind an OpenAI-compatible endpoint says to a text, drawn at temperature 0; an error of
    the connection, or of what came over it.
    """
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "temperature": 0}
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
    address = f"{url.rstrip('/')}/chat/completions"
    answer = httpx.post(address, json=body, headers=headers, timeout=TIMEOUT).raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


def _marked(example: Example) -> str:
    """An example on one line, strongly active tokens between « and »."""
    strong = example.activations > STRONG * max(float(np.max(example.activations)), 1e-12)
    pieces = zip(example.pieces, strong, strict=True)
    marked = "".join(f"«{piece}»" if active else piece for piece, active in pieces)
    return " ".join(marked.replace("»«", "").split())
