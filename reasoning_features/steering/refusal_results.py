"""What came out of studies of refusals: compliance by kind of vector, layer and strength, with intervals."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact
from reasoning_features.models.subject import short_name
from reasoning_features.reporting.claims import Measured
from reasoning_features.settings import Settings
from reasoning_features.statistics import RESAMPLES, Interval, percentile_interval, two_way_means, wilson
from reasoning_features.steering.refusal_study import KEEPS, SELECTED, UNSELECTED, stored, study_folder
from reasoning_features.steering.refusals import COMPLIES
from reasoning_features.steering.refusers import DECODER, KINDS, RANDOM

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
    def middle(self) -> int:
        """The middle layer, where strengths were chosen."""
        return int(self.told["layers"][0])

    def rows(self, kind: str, layer: int, c: float | None = None, n: int = 1) -> pd.DataFrame:
        """Rows of one kind, layer, strength (by default c*) and number of vectors in a mean, of the
        evaluation split; none where that was not measured.
        """
        own, c = self.answers, self.told["c"] if c is None else c
        own = own[(own["split"] == "evaluation") & (own["kind"] == kind) & (own["layer"] == layer)]
        return own[(own["c"] == c) & (own["n"] == n)]

    def complied(self, kind: str, layer: int, c: float | None = None, n: int = 1) -> pd.DataFrame:
        """Share of answers that hold the right answer, a row a vector (of means: a source question, whose
        means are averaged) and a column a question.
        """
        return complied(self.rows(kind, layer, c, n))

    def kept(self, rows: pd.DataFrame) -> float:
        """Accuracy on allowed questions in some rows, over the unsteered one."""
        right = as_flags(rows["allowed"].dropna())
        return float(right.mean() / self.told["accuracy"]["evaluation"])

    def strongest(self, kinds: Sequence[str], layer: int) -> float | None:
        """The largest strength up to which all these kinds of vectors keep the accuracy on allowed questions
        of the evaluation split; what is then reported is of refused ones. None: the least does not.
        """
        own = self.answers[(self.answers["split"] == "evaluation") & (self.answers["layer"] == layer)]
        asked = [set(own.loc[own["kind"] == kind, "c"]) for kind in kinds]

        def keeps(c: float) -> bool:
            return min(self.kept(self.rows(kind, layer, c)) for kind in kinds) >= KEEPS

        kept = [*takewhile(keeps, sorted(set.intersection(*asked)))]
        return kept[-1] if kept else None


def as_flags(letters: pd.Series) -> NDArray[np.bool_]:
    """Letters of answers, a text a row, as whether each complies ``[rows, questions]``."""
    width = letters.str.len().max() if len(letters) else 0
    codes = np.frombuffer("".join(letters).encode(), dtype=np.uint8).reshape(len(letters), int(width))
    return codes == ord(COMPLIES)


def complied(rows: pd.DataFrame) -> pd.DataFrame:
    """As :meth:`Study.complied`, of rows at hand."""
    return pd.DataFrame(as_flags(rows["refused"])).groupby(rows["vector"].to_numpy()).mean()


def load_studies(settings: Settings) -> dict[str, list[Study]]:
    """The profile's studies by kind of refuser: those whose names differ in a seed at their end are one kind.
    MissingArtefact: a study is not there. UserError: it was made with other settings.
    """
    found: dict[str, list[Study]] = {}
    for name in settings.refusers:
        place = study_folder(settings, name)
        made = f"`make steering-safety PROFILE={settings.profile}` makes it"
        if (told := stored(settings, place)) is None:
            raise MissingArtefact(f"There is no {paths.relative(place)}: {made}.")
        study = Study(pd.read_parquet(place / "answers.parquet"), told)
        found.setdefault(re.sub(r"-\d+$", "", short_name(name)), []).append(study)
    return found


def rate(tables: Sequence[Any], others: Sequence[Any] = (), level: float = 0.95) -> Interval:
    """Share of answers that comply, mean over models, perhaps less that of other vectors on the same
    questions, the first that all have; the interval is over vectors and questions. n: vectors of all models.

    Where all answers are alike, resampling shows no spread: the ends are then as far away as Wilson's of a
    share of 0 among the questions, or among a model's vectors where there are several and fewer of them.
    """
    questions = min(np.shape(table)[1] for table in (*tables, *others))
    first, second = ([np.asarray(table)[:, :questions] for table in part] for part in (tables, others))
    resamples = two_way_means(first) - (two_way_means(second) if second else 0)
    vectors = sum(map(len, first))
    found = percentile_interval(resamples[0], resamples[1:], vectors, level)
    if found.low < found.high:
        return found
    far = wilson(0, min([questions, *(len(table) for table in (*first, *second) if len(table) > 1)])).high
    least, most = (-1.0 if second else 0.0), 1.0
    return replace(found, low=max(found.low - far, least), high=min(found.high + far, most))


def rates(studies: Sequence[Study], kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """A row a kind, layer, strength and number of vectors in a mean: the share of refusals ``broken``,
    which are refused questions answered rightly, with its ends, mean over models, on the first questions that
    all were asked; the share of the accuracy on allowed questions that is ``kept``; ``loss`` (neutral text,
    over the unsteered); the mean ``cosine`` with the refusal direction; ``questions``, and ``vectors``, which
    are source questions where vectors are means.
    """
    rows = []
    every = pd.concat([each.answers for each in studies])
    every = every[(every["split"] == "evaluation") & every["kind"].isin(kinds)]
    cells = every[["kind", "layer", "c", "n"]].drop_duplicates()
    for kind, layer, c, n in cells.itertuples(index=False, name=None):
        same = [(each, own) for each in studies if len(own := each.rows(kind, layer, c, n))]
        tables = [complied(own) for _, own in same]
        parts = [own[["loss", "cosine"]].mean() for _, own in same]
        usual = np.array([each.told["loss"] for each, _ in same])
        found = rate(tables)
        row = {"kind": kind, "layer": layer, "c": c, "n": n} | found.row("broken")
        row["kept"] = float(np.mean([each.kept(own) for each, own in same]))
        row["loss"] = float(np.mean([part["loss"] for part in parts] / usual))
        row["cosine"] = float(np.mean([part["cosine"] for part in parts]))
        rows.append(row | {"vectors": found.n, "questions": min(table.shape[1] for table in tables)})
    return pd.DataFrame(rows)


def by_source(studies: Sequence[Study], n: int = 20) -> pd.DataFrame:
    """A row a source question: how many vectors were ``tried`` on it and ``succeeded``; of means of ``n``
    successes the share of refusals ``broken``, mean, ``least`` and ``most``; the share of accuracy that the
    first has ``kept``; the mean ``cosine`` with the refusal direction. Missing where fewer succeeded.
    """
    parts = []
    for each in studies:
        own = each.rows(SELECTED, each.middle, n=n)
        first = own.dropna(subset="allowed")
        broken = pd.Series(as_flags(own["refused"]).mean(1), own["vector"]).groupby(level=0)
        right = pd.Series(as_flags(first["allowed"]).mean(1), first["vector"])
        table = pd.DataFrame(each.told["sources"]).join(broken.agg(broken="mean", least="min", most="max"))
        table["kept"] = right / each.told["accuracy"]["evaluation"]
        table["cosine"] = own.groupby("vector")["cosine"].mean()
        table.insert(0, "refuser", each.name)
        parts.append(table.rename_axis("source").reset_index())
    return pd.concat(parts, ignore_index=True)


def cosines(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a random vector at c*: its ``cosine`` with the refusal direction, and refusals ``broken``."""
    parts = [each.rows(RANDOM, each.middle).assign(refuser=each.name) for each in studies]
    rows = pd.concat(parts, ignore_index=True)
    rows["broken"] = rows["refused"].str.count(COMPLIES)
    return rows[["refuser", "vector", "c", "cosine", "broken"]]


def beside_the_paper(studies: Sequence[Study], layer: int) -> pd.DataFrame:
    """The paper's numbers of both versions, and ours at c* and one layer, of the models that have them."""
    rows = []
    for (what, kind), printed in PAPER.items():
        tables = [each.complied(kind, layer) for each in studies if len(each.rows(kind, layer))]
        ours = f"{rate(tables) / 0.01}%" if tables else "–"
        if tables and what.startswith("vectors"):
            hit = np.concatenate([table.mean(axis=1) for table in tables]) >= 0.05
            ours = f"{hit.sum()} of {len(hit):,}"
        rows.append((what, kind, *printed, ours, len(tables)))
    columns = ["number", "vectors", "paper, version 1", "paper, version 2", "ours", "models"]
    return pd.DataFrame(rows, columns=columns)


# --- what decides the claims --------------------------------------------------------------------------------


def random_breaks(studies: Sequence[Study]) -> Measured | None:
    """Compliance under random vectors at c*; its control is 1%, or what is answered unsteered when sampled if
    that is more. None where capability is not kept on the evaluation split.
    """
    kept = [each.kept(each.rows(RANDOM, studies[0].middle)) for each in studies]
    if not np.mean(kept) >= KEEPS:
        return None
    found = rate([each.complied(RANDOM, each.middle) for each in studies])
    return Measured(found, max(0.01, float(np.mean([each.told["sampled"] for each in studies]))))


def beyond_random(studies: Sequence[Study], kind: str, layer: int) -> Measured | None:
    """Compliance under a kind of vectors less that under random ones at one layer, each model at the largest
    strength up to which capability is kept under both. None where a model has none.
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
    first, second = ([each.complied(RANDOM, each.middle) for each in own] for own in [*groups.values()][:2])
    return _difference(first, second)


def universal_beyond(studies: Sequence[Study], n: int = 20) -> Measured | None:
    """Compliance under the mean of ``n`` successes less that of ``n`` unselected vectors, paired by source
    question; None where a model has no source with so many successes. Capability is not asked for.
    """
    both = ([each.complied(kind, each.middle, n=n) for each in studies] for kind in (SELECTED, UNSELECTED))
    selected, unselected = both
    if not all(map(len, selected)):
        return None
    paired = [other.loc[own.index] for own, other in zip(selected, unselected, strict=True)]
    return _difference(selected, paired)


def cosine_correlation(studies: Sequence[Study]) -> Measured | None:
    """Size of the mean over models of the rank correlation of refusals broken and the cosine with the refusal
    direction, over random vectors at c*; the interval resamples vectors. None: all break as many.
    """
    rows, found = cosines(studies), []
    for _, own in rows.groupby("refuser"):
        if own["broken"].nunique() < 2:
            return None
        pairs, rng = np.stack([rankdata(own["broken"]), rankdata(own["cosine"])]), np.random.default_rng(0)
        drawn = [np.arange(len(own)), *rng.integers(len(own), size=(RESAMPLES, len(own)))]
        with np.errstate(invalid="ignore"):  # a resample may hold no vector that breaks any
            found.append([float(np.corrcoef(pairs[:, at])[0, 1]) for at in drawn])
    sizes = np.abs(np.mean(found, axis=0))
    return Measured(percentile_interval(sizes[0], sizes[np.isfinite(sizes)][1:], len(rows)))


def _difference(first: Sequence[Any], second: Sequence[Any]) -> Measured:
    wide, narrow = (rate(first, second, level) for level in (0.95, 0.9))
    return Measured(wide, narrow=narrow)
