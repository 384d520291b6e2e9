"""Steered answers to questions, many conditions in a batch, each graded and paired by question.

Two engines write them. "rows" samples many conditions in one batch; every row draws from its own random
stream, so answers are paired between conditions and do not depend on their batch: for short answers, on a
CPU, and for token rules, which it alone can follow. "continuous" refills the batch as answers end: for long
answers on a GPU. ``ENGINE=ray`` makes answers that are kept in a folder on a Ray cluster.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import dictionary_digest
from reasoning_features.models import sampling
from reasoning_features.models.conditions import UNSTEERED, Condition, Rules, check_conditions, stream_change
from reasoning_features.models.sampling import Ended
from reasoning_features.models.subject import Subject
from reasoning_features.runs.shards import ENGINE, each_by_ray
from reasoning_features.steering.questions import Questions

BATCH = 1024  # rows that are sampled together: on two cores half as many are a tenth slower
ROWS_A_PART, LONG_ROWS_A_PART = 8192, 128  # answers handed out together where they are kept


def answers(
    subject: Subject,
    questions: Questions,
    conditions: Sequence[Condition],
    seed: int,
    progress: str | None = "steered answers",
    sae: Any = None,
    kept: Path | None = None,
) -> pd.DataFrame:
    """One answer to every question unsteered and under every condition, in this order.

    A question draws the same uniforms under all conditions, so differences between them are paired. ``sae``
    is the autoencoder where a condition clamps, ``kept`` the folder of finished answers, else the questions'.

    Gives the rows of ``questions.grade`` with ``condition``, ``feature`` (−1 unsteered), ``gamma``,
    ``problem`` and ``tokens`` (the new ones). UserError where conditions do not fit, or a prompt is beyond
    the model's context.
    """
    asked = [Condition(UNSTEERED), *conditions]
    check_conditions(subject, asked, sae)
    written = _kept_or_written(Asked(subject, questions, asked, seed, sae, BATCH), kept, progress)
    graded = questions.grade([*range(len(questions))] * len(asked), written)
    if "finished" in questions.measures:
        ends = subject.ends
        graded["finished"] = [bool(tokens) and tokens[-1] in ends for tokens in written]
    rows = [(c.name, c.feature, c.gamma, problem) for c in asked for problem in range(len(questions))]
    known = pd.DataFrame(rows, columns=["condition", "feature", "gamma", "problem"])
    known["tokens"] = pd.Series([tuple(tokens) for tokens in written], dtype=object)
    return pd.concat([known, graded], axis=1)


@dataclass(frozen=True)
class Asked:
    """Questions under conditions: row ``r`` is question ``r % n`` under condition ``r // n``."""

    subject: Subject
    questions: Questions
    conditions: Sequence[Condition]
    seed: int
    sae: Any  # the autoencoder where a condition clamps
    batch: int  # the most rows that are sampled together

    def __len__(self) -> int:
        return len(self.questions) * len(self.conditions)

    def write(self, rows: Sequence[int], ended: Ended) -> None:
        """Writes the answers of some rows, and tells ``ended`` each."""
        n = len(self.questions)
        flowing = [row for row in rows if _engine(self.questions, self.conditions[row // n]) == "continuous"]
        if together := sorted(set(rows) - set(flowing)):
            self._write_rows(together, ended)
        for condition in sorted({row // n for row in flowing}):
            own = [row for row in flowing if row // n == condition]
            self._write_continuously(self.conditions[condition], own, ended)

    def _write_rows(self, rows: Sequence[int], ended: Ended) -> None:
        questions, n, batch = self.questions, len(self.questions), self.batch
        which, problems = [row // n for row in rows], [row % n for row in rows]
        prompts = [questions.prompts[problem] for problem in problems]
        if questions.pad is not None:
            longest = max(map(len, prompts)) + questions.max_new_tokens
            batch = min(batch, sampling.rows_that_fit(self.subject.model, longest))
        ruled = any(condition.rule for condition in self.conditions)
        sampling.sample(
            self.subject.model,
            prompts,
            end=self.subject.ends,
            max_new_tokens=questions.max_new_tokens,
            seed=self.seed,
            streams=[questions.stream(problem) for problem in problems],
            block=self.subject.hooked_block,
            change=stream_change(self.subject, self.conditions, torch.tensor(which), self.sae),
            rule=Rules(self.conditions, which, problems) if ruled else None,
            batch=batch,
            pad=questions.pad,
            ended=lambda place, tokens: ended(rows[place], tokens),
            choice=sampling.likeliest if questions.greedy else sampling.draw,
            reader=self.subject.read_once if questions.greedy else None,
        )

    def _write_continuously(self, condition: Condition, rows: Sequence[int], ended: Ended) -> None:
        questions, n = self.questions, len(self.questions)
        # what is asked again after an interruption must not draw as its beginning did
        drawn = hashlib.sha256(repr((self.seed, rows)).encode()).digest()
        nobody = torch.zeros(1, dtype=torch.int64, device=self.subject.device)
        change = stream_change(self.subject, [condition], nobody, self.sae)
        with sampling.edited(self.subject.hooked_block, change, nobody):
            sampling.sample_continuously(
                self.subject.model,
                [questions.prompts[row % n] for row in rows],
                end=self.subject.ends,
                max_new_tokens=questions.max_new_tokens,
                seed=int.from_bytes(drawn[:4], "big") >> 1,
                ended=lambda place, tokens: ended(rows[place], tokens),
            )


def _kept_or_written(asked: Asked, kept: Path | None, progress: str | None) -> list[list[int]]:
    """New tokens of every row: those that are kept in a folder, the others written and kept there."""
    questions, n, rows, most = asked.questions, len(asked.questions), range(len(asked)), len(asked)
    done: dict[int, list[int]] = {}
    stores: list[AnswerStore] = []
    if folder := kept or questions.kept:
        stores = [AnswerStore(folder, answers_key(asked, condition)) for condition in asked.conditions]
        for row in rows:
            found = stores[row // n].get(questions.prompts[row % n], questions.stream(row % n))
            if found is not None:
                done[row] = found
        most = LONG_ROWS_A_PART if questions.kept else ROWS_A_PART
    missing = [row for row in rows if row not in done]
    parts = [missing[start : start + most] for start in range(0, len(missing), most)]
    with tqdm(total=len(missing), desc=progress, unit="answer", disable=progress is None) as bar:

        def ended(row: int, tokens: list[int]) -> None:
            done[row] = tokens
            if stores:
                stores[row // n].add(questions.prompts[row % n], questions.stream(row % n), tokens)
            bar.update(1)

        def compute(part: int) -> dict[int, list[int]]:
            made: dict[int, list[int]] = {}
            asked.write(parts[part], made.__setitem__)
            return made

        if stores and os.environ.get(ENGINE):
            for _, made in each_by_ray(compute, range(len(parts)), str(asked.subject.device)):
                for row, tokens in made.items():
                    ended(row, tokens)
        else:
            for part in parts:
                asked.write(part, ended)
    return [done[row] for row in rows]


def _engine(questions: Questions, condition: Condition) -> str:
    """The engine that answers under a condition: only rows know token rules, ids and greedy decoding."""
    rows = condition.rule is not None or condition.spares_special or questions.greedy
    return "rows" if rows else questions.engine


def answers_key(asked: Asked, condition: Condition) -> dict[str, Any]:
    """All that determines a condition's answers but the prompts; its name is no part of it."""
    clamps, ends = condition.clamp is not None, asked.subject.ends
    told = {"spares_special": condition.spares_special, "removed": _sum(condition.removed)}
    told |= {"greedy": asked.questions.greedy}
    # what is usual has no word here: answers that were kept before there was anything else are found again
    return {name: value for name, value in told.items() if value} | {
        "model": asked.subject.revision,
        "hook": asked.subject.hook_name,
        "dtype": str(asked.subject.model.dtype),
        "end": ends[0] if len(ends) == 1 else ends,
        "max_new_tokens": asked.questions.max_new_tokens,
        "sampling": [sampling.TEMPERATURE, sampling.TOP_P],
        "seed": asked.seed,
        "engine": _engine(asked.questions, condition),
        "vector": _sum(condition.vector),
        "clamp": (condition.feature, condition.clamp) if clamps else None,
        "sae": dictionary_digest(asked.sae) if clamps else None,
        "rule": repr(condition.rule),
    }


def _sum(vector: torch.Tensor | None) -> str | None:
    return None if vector is None else hashlib.sha256(vector.cpu().float().numpy().tobytes()).hexdigest()


class AnswerStore:
    """The finished answers of one condition on disk, a line each, found by their prompt and random stream.

    A folder is named by the digest of all that determines its answers; every process writes a file of its own
    and reads all. A line that an interruption left torn is passed over.
    """

    def __init__(self, folder: Path, determined_by: Mapping[str, Any]) -> None:
        self._first = json.dumps(determined_by, sort_keys=True)
        self.folder = folder / hashlib.sha256(self._first.encode()).hexdigest()[:24]
        # two machines may have a process of one number
        self._own = self.folder / f"{platform.node()}-{os.getpid()}.jsonl"
        self._found: dict[tuple[str, int], list[int]] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in filter(None, file.read_text("utf-8", errors="replace").splitlines()[1:]):
                try:
                    row = json.loads(line)
                    self._found[row["prompt"], row["stream"]] = row["tokens"]
                except (ValueError, KeyError, TypeError):
                    print(f"A damaged answer in {paths.relative(file)} is made again.", file=sys.stderr)

    def get(self, prompt: Sequence[int], stream: int) -> list[int] | None:
        return self._found.get((_digest(prompt), stream))

    def add(self, prompt: Sequence[int], stream: int, tokens: Sequence[int]) -> None:
        """Writes one finished answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest, written = _digest(prompt), list(tokens)
        row = {"prompt": digest, "stream": stream, "tokens": written}
        with self._own.open("a", encoding="utf-8") as file:
            # a line that was left torn ends here
            file.write(f"{'' if file.tell() else self._first}\n{json.dumps(row, separators=(',', ':'))}")
        self._found[digest, stream] = written


def _digest(prompt: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest()[:16]
