"""The equal search on one model: screening, a second screening, and the winners on fresh problems.

Everything that is chosen here is chosen by the rules below on problems of the selection split; what is
reported is measured on problems of the evaluation split that no choice has seen. Two vectors tried with the
same luck can then be compared by what their winners do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.files import read_json, write_json
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.steering import search
from reasoning_features.steering.benchmarks import Questions

FRAMES = ("screening", "rescreening", "evaluation")
COLUMNS = ("group", "candidate", "feature", "gamma", "share of norm", "condition")
"""What identifies a trial."""

Ask = Callable[[Questions, Sequence[Condition], str], pd.DataFrame]
"""Answers to questions under conditions and unsteered, for a stage of the study (its name)."""


@dataclass(frozen=True)
class Study:
    """What came out on one model.

    Attributes:
        identity: ``model``, ``kappa``, ``model_seed``, and what else tells it from other studies.
        screening: every trial (``COLUMNS``) with the mean of each measure, ``gain`` and ``n``.
        rescreening: the same of the best trials of each class, and of the baselines.
        evaluation: one row an answer to a fresh problem: ``group``, ``condition``, ``feature``, ``gamma``,
            ``share of norm``, ``problem``, ``domain`` and the measures; unsteered too.
    """

    identity: Mapping[str, Any]
    screening: pd.DataFrame
    rescreening: pd.DataFrame
    evaluation: pd.DataFrame

    @property
    def winners(self) -> pd.DataFrame:
        """One row a class: the trial that went on to fresh problems (``COLUMNS``)."""
        return search.best(self.rescreening, 1)[list(COLUMNS)]

    def outcome(self, group: str, measure: str = "correct") -> NDArray[np.float64]:
        """A measure of every fresh problem under a class's winner (or ``UNSTEERED``) ``[n]``."""
        rows = self.evaluation[self.evaluation["group"] == group].sort_values("problem")
        return rows[measure].to_numpy(dtype=float)

    def save(self, folder: Path) -> None:
        """Write the study's files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FRAMES:
            getattr(self, name).to_parquet(folder / f"{name}.parquet", index=False, compression="zstd")
        write_json(folder / "study.json", dict(self.identity))


def load_study(folder: Path) -> Study:
    """Read a study's folder.

    Raises:
        MissingArtefact: it is not there.
        CorruptArtefact: a file cannot be read.
    """
    if not (folder / "study.json").is_file():
        raise MissingArtefact(f"There is no steering study in {folder.name}: `make organism` makes it.")
    try:
        frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in FRAMES}
        return Study(read_json(folder / "study.json"), **frames)
    except (OSError, ValueError) as error:
        raise CorruptArtefact(
            f"The steering study {folder.name} cannot be read ({error}): restore its files."
        ) from error


def load_studies(folder: Path) -> dict[str, Study]:
    """All studies in a folder, by name.

    Raises:
        MissingArtefact: there are none.
        CorruptArtefact: a file cannot be read.
    """
    found = {path.parent.name: load_study(path.parent) for path in sorted(folder.glob("[!.]*/study.json"))}
    if not found:
        raise MissingArtefact(f"There are no steering studies in {folder.name}: `make organism` makes them.")
    return found


def run_study(
    identity: Mapping[str, Any],
    candidates: Sequence[search.Candidate],
    baselines: Mapping[str, Sequence[Condition]],
    strengths: Sequence[float],
    rescreened: int,
    norm: float,
    screening: Questions,
    rescreening: Questions,
    evaluation: Questions,
    ask: Ask,
) -> Study:
    """Screen every trial, try each class's best again with the baselines, and put the winners to the test.

    Args:
        identity: what the study is of.
        candidates: of all classes (:func:`reasoning_features.steering.search.candidates`).
        baselines: name → its conditions, one of which the second screening chooses.
        strengths: γ at which every candidate is screened, both signs.
        rescreened: trials of a class that are tried again.
        norm: mean norm of the residual stream.
        screening: problems of the selection split.
        rescreening: others of them.
        evaluation: problems of the evaluation split.
        ask: answers questions; may keep what it has finished.
    """
    measures = [name for name in screening.measures if name in evaluation.measures]
    tried = search.trials(candidates, strengths, norm)
    found = ask(screening, search.conditions(candidates, tried), "screening")
    first = search.outcomes(tried, found, measures)

    again = search.best(first, rescreened)[list(COLUMNS)]
    others = [condition for conditions in baselines.values() for condition in conditions]
    again = pd.concat([again, _baseline_trials(baselines, norm)], ignore_index=True)
    held = search.conditions(candidates, again[again["candidate"] != ""])
    second = search.outcomes(again, ask(rescreening, [*held, *others], "rescreening"), measures)

    winners = search.best(second, 1)
    named = {condition.name: condition for condition in [*held, *others]}
    final = [named[name] for name in winners["condition"].unique()]
    return Study(identity, first, second, _by_class(winners, ask(evaluation, final, "evaluation"), measures))


def _baseline_trials(baselines: Mapping[str, Sequence[Condition]], norm: float) -> pd.DataFrame:
    """Baselines as trials: no candidate; those that add a vector have a share of the norm."""
    rows = [
        {
            "group": name,
            "candidate": "",
            "feature": -1,
            "gamma": condition.gamma,
            "share of norm": _signed_norm(condition) / norm,
            "condition": condition.name,
        }
        for name, conditions in baselines.items()
        for condition in conditions
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _signed_norm(condition: Condition) -> float:
    """Norm of what a condition adds, negative where its strength is; nan where it adds nothing."""
    return np.nan if condition.vector is None else np.sign(condition.gamma) * float(condition.vector.norm())


def _by_class(winners: pd.DataFrame, answers: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Answers of the unsteered model and of each class's winner; classes may share a winner."""
    kept = answers[["condition", "problem", "domain", *measures]]
    unsteered = kept[kept["condition"] == UNSTEERED]
    unsteered = unsteered.assign(group=UNSTEERED, feature=-1, gamma=0.0)
    unsteered["share of norm"] = 0.0
    columns = ["group", "condition", "feature", "gamma", "share of norm"]
    steered = winners[columns].merge(kept, on="condition", sort=False)
    return pd.concat([unsteered[steered.columns], steered], ignore_index=True)
