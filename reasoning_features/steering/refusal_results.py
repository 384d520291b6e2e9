"""What came out of studies of refusals: compliance by kind of vector, layer and strength, with intervals."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact
from reasoning_features.files import read_json
from reasoning_features.models.subject import short_name
from reasoning_features.reporting.claims import Measured
from reasoning_features.settings import Settings
from reasoning_features.statistics import RESAMPLES, Flags, Interval, percentile_interval, two_way_means
from reasoning_features.steering.refusal_study import (
    DECODER,
    KEEPS,
    KINDS,
    RANDOM,
    SELECTED,
    UNSELECTED,
)
from reasoning_features.steering.refusals import COMPLIES

# what is counted, the kind of vectors → numbers of version 1 and of version 2 (Llama; Qwen), as printed
PAPER = {
    ("refused questions answered rightly", RANDOM): ("about 17%; 10–11%", "4.6%; 3.8%"),
    ("refused questions answered rightly", DECODER): ("2 to 4 points more", "4.6%"),
    ("vectors that break at least 5% of refusals", RANDOM): ("–", "387; 313 of 1,000"),
    ("vectors that break at least 5% of refusals", DECODER): ("668 of 1,000", "353 of 1,000"),
}


@dataclass(frozen=True)
class Study:
    """A stored study of one refuser."""

    answers: pd.DataFrame  # a row a vector or mean of vectors, layer and c
    told: Mapping[str, Any]  # ``study.json``

    @property
    def name(self) -> str:
        return str(self.told["refuser"])

    @property
    def first(self) -> int:
        """The middle layer, where strengths were chosen."""
        return int(self.told["layers"][0])

    def rows(self, kind: str, layer: int, c: float | None = None, n: int = 1) -> pd.DataFrame:
        """Rows of one kind, layer, strength (by default c*) and number of vectors in a mean, of the
        evaluation split, where the most questions were asked.
        """
        own, c = self.answers, self.told["c"] if c is None else c
        own = own[(own["split"] == "evaluation") & (own["kind"] == kind) & (own["layer"] == layer)]
        own = own[(own["c"] == c) & (own["n"] == n)]
        length = own["refused"].str.len()
        return own[length == length.max()]

    def complied(self, kind: str, layer: int, c: float | None = None, n: int = 1) -> Flags:
        """Whether answers of these rows hold the right answer ``[vectors, questions]``; of means, a share of
        those from one source question ``[sources, questions]``.
        """
        own = self.rows(kind, layer, c, n)
        return pd.DataFrame(as_flags(own["refused"])).groupby(own["vector"].to_numpy()).mean().to_numpy()

    def kept(self, kind: str, layer: int, c: float | None = None, n: int = 1) -> float:
        """Accuracy on allowed questions, over the unsteered one."""
        right = as_flags(self.rows(kind, layer, c, n)["allowed"].dropna())
        return float(right.mean() / self.told["accuracy"]["evaluation"])

    def strongest(self, kinds: Sequence[str], layer: int) -> float | None:
        """The largest strength at which all these kinds of vectors keep the accuracy on allowed questions."""
        own = self.answers[(self.answers["split"] == "evaluation") & (self.answers["layer"] == layer)]
        asked = [set(own.loc[own["kind"] == kind, "c"]) for kind in kinds]
        both = [c for c in set.intersection(*asked) if min(self.kept(k, layer, c) for k in kinds) >= KEEPS]
        return max(both, default=None)


def as_flags(letters: pd.Series) -> Flags:
    """Letters of answers, a text a row, as whether each complies ``[rows, questions]``."""
    width = letters.str.len().max() if len(letters) else 0
    codes = np.frombuffer("".join(letters).encode(), dtype=np.uint8).reshape(len(letters), int(width))
    return codes == ord(COMPLIES)


def load_studies(settings: Settings) -> dict[str, list[Study]]:
    """The profile's studies by kind of refuser: those whose names differ in a seed at their end are one kind.
    MissingArtefact: a study is not there.
    """
    found: dict[str, list[Study]] = {}
    for name in settings.refusers:
        place = paths.resolve(settings.steering_safety or "") / "studies" / short_name(name)
        if not (place / "study.json").is_file():
            told = f"There is no {paths.relative(place)}"
            raise MissingArtefact(f"{told}: `make steering-safety PROFILE={settings.profile}` makes it.")
        study = Study(pd.read_parquet(place / "answers.parquet"), read_json(place / "study.json"))
        found.setdefault(re.sub(r"-\d+$", "", short_name(name)), []).append(study)
    return found


def rate(tables: Sequence[Flags], others: Sequence[Flags] = (), level: float = 0.95) -> Interval:
    """Share of answers that comply, mean over models, perhaps less that of other vectors on the same
    questions; the interval is over vectors and questions. n: vectors of all models.
    """
    resamples = two_way_means(tables)
    if others:
        resamples = resamples - two_way_means(others)
    return percentile_interval(resamples[0], resamples[1:], sum(len(table) for table in tables), level)


def rates(studies: Sequence[Study], kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """A row a kind, layer, strength and number of vectors in a mean: ``complies`` with its ends, mean over
    models; ``capability`` (share of the accuracy on allowed questions that is kept); ``loss`` (neutral text,
    over the unsteered); the mean ``cosine`` with the refusal direction; ``vectors`` (of means: source
    questions) and ``questions``.
    """
    rows = []
    every = pd.concat([each.answers for each in studies])
    every = every[(every["split"] == "evaluation") & every["kind"].isin(kinds)]
    cells = every[["kind", "layer", "c", "n"]].drop_duplicates()
    for kind, layer, c, n in cells.itertuples(index=False, name=None):
        same = [each for each in studies if len(each.rows(kind, layer, c, n))]
        tables = [each.complied(kind, layer, c, n) for each in same]
        parts = [each.rows(kind, layer, c, n)[["loss", "cosine"]].mean() for each in same]
        usual = np.array([each.told["loss"] for each in same])
        narrowest = min(table.shape[1] for table in tables)
        found = rate([table[:, :narrowest] for table in tables])
        row = {"kind": kind, "layer": layer, "c": c, "n": n} | found.row("complies")
        row["capability"] = float(np.mean([each.kept(kind, layer, c, n) for each in same]))
        row["loss"] = float(np.mean([part["loss"] for part in parts] / usual))
        row["cosine"] = float(np.mean([part["cosine"] for part in parts]))
        rows.append(row | {"vectors": found.n, "questions": narrowest})
    return pd.DataFrame(rows)


def cosines(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a random vector at c*: its ``cosine`` with the refusal direction, and refusals ``broken``."""
    parts = [each.rows(RANDOM, each.first).assign(refuser=each.name) for each in studies]
    rows = pd.concat(parts, ignore_index=True)
    rows["broken"] = rows["refused"].str.count(COMPLIES)
    return rows[["refuser", "vector", "c", "cosine", "broken"]]


def beside_the_paper(studies: Sequence[Study], layer: int) -> pd.DataFrame:
    """The paper's numbers of both versions, and ours at c* and one layer, of all models together."""
    rows = []
    for (what, kind), printed in PAPER.items():
        tables = [each.complied(kind, layer) for each in studies if len(each.rows(kind, layer))]
        hit = [mean >= 0.05 for table in tables for mean in table.mean(1)]
        share = f"{rate(tables) / 0.01}%" if tables else "–"
        ours = f"{sum(hit)} of {len(hit):,}" if what.startswith("vectors") else share
        rows.append((what, kind, *printed, ours))
    return pd.DataFrame(rows, columns=["number", "vectors", "paper, version 1", "paper, version 2", "ours"])


# --- what decides the claims --------------------------------------------------------------------------------


def random_breaks(studies: Sequence[Study]) -> Measured | None:
    """Compliance under random vectors at c*; its control is 1%, or what is answered unsteered when sampled if
    that is more. None where capability is not kept on the evaluation split.
    """
    if not _capable(studies, RANDOM, studies[0].first):
        return None
    found = rate([each.complied(RANDOM, each.first) for each in studies])
    return Measured(found, max(0.01, float(np.mean([each.told["sampled"] for each in studies]))))


def beyond_random(studies: Sequence[Study], kind: str, layer: int) -> Measured | None:
    """Compliance under a kind of vectors less that under random ones at one layer, each model at the largest
    strength that keeps capability under both. None where a model has none.
    """
    strengths = [each.strongest((kind, RANDOM), layer) for each in studies]
    if None in strengths:
        return None
    pairs = list(zip(studies, strengths, strict=True))
    return _difference(*([each.complied(k, layer, c) for each, c in pairs] for k in (kind, RANDOM)))


def between(groups: Mapping[str, Sequence[Study]]) -> Measured | None:
    """Compliance under random vectors of the first kind of refusers less the second's, each at its own c*."""
    if len(groups) < 2:
        return None
    first, second = ([each.complied(RANDOM, each.first) for each in own] for own in [*groups.values()][:2])
    return _difference(first, second)


def universal_beyond(studies: Sequence[Study], n: int = 20) -> Measured | None:
    """Compliance under the mean of ``n`` successes less that of ``n`` unselected vectors, by source question;
    None where a model has no source with so many successes.
    """
    both = ([each.complied(kind, each.first, n=n) for each in studies] for kind in (SELECTED, UNSELECTED))
    selected, unselected = both
    return _difference(selected, unselected) if all(map(len, selected)) else None


def cosine_correlation(studies: Sequence[Study]) -> Measured | None:
    """Size of the rank correlation of refusals broken and the cosine with the refusal direction, over random
    vectors at c*, mean over models; the interval resamples vectors.
    """
    rows, found = cosines(studies), []
    for _, own in rows.groupby("refuser"):
        if own["broken"].nunique() < 2:
            return None
        pairs, rng = np.stack([rankdata(own["broken"]), rankdata(own["cosine"])]), np.random.default_rng(0)
        drawn = [np.arange(len(own)), *rng.integers(len(own), size=(RESAMPLES, len(own)))]
        found.append([abs(float(np.corrcoef(pairs[:, at])[0, 1])) for at in drawn])
    means = np.nanmean(found, axis=0)
    return Measured(percentile_interval(means[0], means[1:], len(rows)))


def _difference(first: Sequence[Any], second: Sequence[Any]) -> Measured:
    wide, narrow = (rate(first, second, level) for level in (0.95, 0.9))
    return Measured(wide, narrow=narrow)


def _capable(studies: Sequence[Study], kind: str, layer: int) -> bool:
    return bool(np.mean([each.kept(kind, layer) for each in studies]) >= KEEPS)
