"""What came out of studies of refusals: compliance by kind of vector, layer and strength, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact
from reasoning_features.files import read_json
from reasoning_features.statistics import Flags, Interval, percentile_interval, two_way_means
from reasoning_features.steering.refusal_study import FAILED, MEANS, SELECTED, UNSELECTED
from reasoning_features.steering.refusals import COMPLIES


@dataclass(frozen=True)
class Study:
    """A stored study of one refuser."""

    vectors: pd.DataFrame
    universal: pd.DataFrame
    told: Mapping[str, Any]  # ``study.json``

    @property
    def name(self) -> str:
        return str(self.told["refuser"])

    def complied(self, kind: str, layer: int, c: float | None = None, column: str = "refused") -> Flags:
        """Which answers of the evaluation split hold the right answer ``[vectors, questions]``; by default at
        c*. Of refused questions as many as were asked at this strength, or of the allowed ones.
        """
        own, c = self.vectors[self.vectors["split"] == "evaluation"], self.told["c"] if c is None else c
        own = own[(own["kind"] == kind) & (own["layer"] == layer) & (own["c"] == c)].dropna(subset=column)
        length = own[column].str.len()
        return as_flags(own.loc[length == length.max(), column])

    def kept(self, kind: str, layer: int, c: float | None = None) -> float:
        """Accuracy on allowed questions, over the unsteered one."""
        accuracy = self.told["accuracy"]["evaluation"]
        return float(self.complied(kind, layer, c, "allowed").mean() / accuracy)


def as_flags(letters: pd.Series) -> Flags:
    """Letters of answers, a text a row, as whether each complies ``[rows, questions]``."""
    codes = np.frombuffer("".join(letters).encode(), dtype=np.uint8).reshape(len(letters), -1)
    return codes == ord(COMPLIES)


def load_studies(folder: Path) -> list[Study]:
    """The studies of a folder, by name. MissingArtefact: there is none."""
    found = []
    for place in sorted(path.parent for path in folder.glob("studies/*/study.json")):
        vectors, universal = (pd.read_parquet(place / f"{name}.parquet") for name in ("vectors", "universal"))
        found.append(Study(vectors, universal, read_json(place / "study.json")))
    if not found:
        told = f"There are no studies in {paths.relative(folder)}"
        raise MissingArtefact(f"{told}: `make steering-safety` with this PROFILE makes them.")
    return found


def rate(tables: Sequence[Flags], others: Sequence[Flags] = (), level: float = 0.95) -> Interval:
    """Share of answers that comply, mean over models, perhaps less that of other vectors on the same
    questions; the interval is over vectors and questions. n: vectors of all models.
    """
    resamples = two_way_means(tables)
    if others:
        resamples = resamples - two_way_means(others)
    return percentile_interval(resamples[0], resamples[1:], sum(len(table) for table in tables), level)


def rates(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a kind, layer and strength: ``complies`` with its ends, ``capability`` (share of the accuracy on
    allowed questions that is kept), ``loss`` (neutral text, over the unsteered), ``vectors``, ``questions``.
    """
    rows = []
    cells = studies[0].vectors.query("split == 'evaluation'")[["kind", "layer", "c"]].drop_duplicates()
    for kind, layer, c in cells.itertuples(index=False, name=None):
        same = [each for each in studies if len(each.complied(kind, layer, c))]
        tables = [each.complied(kind, layer, c) for each in same]
        narrowest = min(table.shape[1] for table in tables)
        found = rate([table[:, :narrowest] for table in tables])
        row = {"kind": kind, "layer": layer, "c": c} | found.row("complies")
        row["capability"] = float(np.mean([each.kept(kind, layer, c) for each in same]))
        own = [each.vectors.query("kind == @kind and layer == @layer and c == @c") for each in same]
        losses = [part["loss"].mean() / each.told["loss"] for part, each in zip(own, same, strict=True)]
        rows.append(row | {"loss": float(np.mean(losses)), "vectors": found.n, "questions": narrowest})
    return pd.DataFrame(rows)


def universal_rates(studies: Sequence[Study]) -> tuple[pd.DataFrame, dict[tuple[str, int], list[Flags]]]:
    """Compliance of means of vectors by set and number, mean over models; and the tables behind, of a model
    each ``[means, questions]``, repeats of one source question averaged.
    """
    rows, tables = [], {}
    for name in (SELECTED, UNSELECTED, FAILED):
        for n in MEANS:
            mine = [each.universal.query("set == @name and n == @n") for each in studies]
            per_model = [_by_source(part) for part in mine if len(part)]
            if per_model:
                tables[name, n] = per_model
                found = rate(per_model)
                rows.append({"set": name, "n": n, "sources": found.n} | found.row("complies"))
    return pd.DataFrame(rows), tables


def _by_source(part: pd.DataFrame) -> Any:
    means = [as_flags(own["refused"]).mean(0) for _, own in part.groupby("source")]
    return np.stack(means)
