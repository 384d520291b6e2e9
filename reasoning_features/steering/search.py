"""An equal search: classes of steering vectors with as many candidates, strengths, signs and problems each.

Whoever tries many vectors finds a good one by luck alone. So ReasonScore's features are compared with classes
that have the same luck: what ReasonScore picks from other vocabularies, random features, random directions.
Every candidate is screened at every strength on a few problems; the best of each class are tried again on
other problems; and one winner a class goes on to problems that no choice has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition

Array = NDArray[np.float64]
Features = NDArray[np.int64]
CHOSEN, SLOT, WORDS = "ReasonScore", "slot-matched words", "random words"
FEATURES, DIRECTIONS, CAUSAL = "random features", "random directions", "causal features"
CLASSES = (CHOSEN, SLOT, WORDS, FEATURES, DIRECTIONS, CAUSAL)
NEAREST = 5
"""A random feature is drawn from this many that are nearest in size and density."""


@dataclass(frozen=True)
class Candidate:
    """A steering vector of one class.

    Attributes:
        group: its class.
        name: what it is; the same vector has the same name in every class.
        feature: the feature, −1 for a direction.
        vector: what strength γ = 1 adds ``[d]``: f_max · W_dec of the feature.
    """

    group: str
    name: str
    feature: int
    vector: Tensor

    def at(self, gamma: float) -> Condition:
        """This candidate at strength ``gamma`` (equation 7)."""
        return Condition(f"{self.name} at {gamma:g}", self.feature, gamma, vector=gamma * self.vector)


def candidates(
    evidence: pd.DataFrame, sae: Any, n: int, n_vocabularies: int, seed: int, effects: Array | None = None
) -> list[Candidate]:
    """``n`` candidates of each class.

    ReasonScore's features are its first ``n``. Those of the slot-matched and of the random vocabularies are
    taken in turn, the first of each of ``n_vocabularies``, then the second of each, every feature once, until
    there are ``n``. A random feature is live, none of ReasonScore's, and drawn from the ``NEAREST`` in log
    f_max‖W_dec‖ and log density to one of them. A random direction has the size of one of them. Causal
    features have the largest effects on persistence when ablated.

    Args:
        evidence: one row a feature: ``maximum``, ``density``, ``decoder norm`` and ``score:…`` of every
            vocabulary. A kind of vocabularies that is not there makes no class.
        sae: gives the decoder directions.
        n: candidates a class.
        n_vocabularies: vocabularies of a kind.
        seed: draws features and directions.
        effects: the effect of every feature on persistence ``[d_sae]``, nan where it is never active; None
            where it is not known: no such class.

    Raises:
        UserError: fewer live features or vocabularies than are asked for.
    """
    live = np.flatnonzero(evidence["density"].to_numpy() > 0)
    if len(live) < 2 * n:
        raise UserError(
            f"{n} candidates a class need {2 * n} live features, and there are {len(live)}: "
            "lower `candidates`."
        )
    chosen = _ranking(evidence, "reason score", live)[:n]
    found = {CHOSEN: chosen}
    for group, kind in ((SLOT, "slot"), (WORDS, "random")):
        names = [f"{kind} {i}" for i in range(n_vocabularies) if f"score:{kind} {i}" in evidence]
        if names and len(names) < n_vocabularies:
            raise UserError(
                f"{n_vocabularies} vocabularies a class are asked for, and there are {len(names)} of the "
                f"{group}: lower `search_vocabularies`."
            )
        if names:
            found[group] = in_turn([_ranking(evidence, name, live) for name in names], n)
    found[FEATURES] = matched_features(evidence, chosen, live, seed)
    if effects is not None:
        order = np.argsort(-np.abs(effects[live]), kind="stable")
        found[CAUSAL] = live[order][:n]
    decoder, maxima = sae.W_dec.detach().cpu(), evidence["maximum"].to_numpy(dtype=float)
    made = [
        Candidate(group, f"feature {feature}", int(feature), float(maxima[feature]) * decoder[feature])
        for group, features in found.items()
        for feature in features
    ]
    sizes = torch.stack([candidate.vector for candidate in made[:n]]).norm(dim=1, keepdim=True)
    drawn = torch.randn(n, decoder.shape[1], generator=torch.Generator().manual_seed(seed))
    vectors = sizes * torch.nn.functional.normalize(drawn.to(sizes), dim=1)
    return made + [Candidate(DIRECTIONS, f"direction {i}", -1, vector) for i, vector in enumerate(vectors)]


def _ranking(evidence: pd.DataFrame, vocabulary: str, live: Features) -> Features:
    """Live features by a vocabulary's ReasonScore, the largest first."""
    score = evidence[f"score:{vocabulary}"].to_numpy(dtype=float)[live]
    return live[np.argsort(-score, kind="stable")]


def in_turn(rankings: Sequence[Features], n: int) -> Features:
    """The first of each ranking, then the second of each, and so on, every feature once, until ``n``."""
    interleaved = np.stack(rankings, axis=1).ravel()
    _, first = np.unique(interleaved, return_index=True)
    return interleaved[np.sort(first)][:n]


def matched_features(evidence: pd.DataFrame, chosen: Features, live: Features, seed: int) -> Features:
    """One random live feature for each chosen one, near it in log f_max‖W_dec‖ and in log density."""
    size = evidence["maximum"].to_numpy(dtype=float) * evidence["decoder norm"].to_numpy(dtype=float)
    density = evidence["density"].to_numpy(dtype=float)
    points = np.log(np.stack([size[live], density[live]], axis=1))
    points = points / points.std(axis=0)
    rng, taken = np.random.default_rng(seed), set(chosen.tolist())
    drawn = []
    for feature in chosen:
        distance = np.linalg.norm(points - points[np.searchsorted(live, feature)], axis=1)
        near = [int(f) for f in live[np.argsort(distance, kind="stable")] if int(f) not in taken]
        drawn.append(int(rng.choice(near[:NEAREST])))
        taken.add(drawn[-1])
    return np.array(drawn, dtype=np.int64)


def trials(candidates: Sequence[Candidate], strengths: Sequence[float], norm: float) -> pd.DataFrame:
    """Every candidate at every strength.

    Args:
        candidates: of all classes.
        strengths: γ, both signs.
        norm: mean norm of the residual stream, the other unit of strength.

    Returns:
        ``group``, ``candidate``, ``feature``, ``gamma``, ``share of norm`` (γ f_max‖W_dec‖ over ``norm``)
        and ``condition``, the name by which answers know it; one vector may stand in several classes.
    """
    rows = [
        {
            "group": candidate.group,
            "candidate": candidate.name,
            "feature": candidate.feature,
            "gamma": gamma,
            "share of norm": gamma * float(candidate.vector.norm()) / norm,
            "condition": candidate.at(gamma).name,
        }
        for candidate in candidates
        for gamma in strengths
    ]
    return pd.DataFrame(rows)


def conditions(candidates: Sequence[Candidate], tried: pd.DataFrame) -> list[Condition]:
    """What to run for some rows of :func:`trials`: each vector and strength once."""
    by_name = {candidate.name: candidate for candidate in candidates}
    pairs = tried[["candidate", "gamma"]].drop_duplicates().itertuples(index=False)
    return [by_name[name].at(gamma) for name, gamma in pairs]


def outcomes(tried: pd.DataFrame, answers: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """The rows of ``tried`` with each measure's mean over problems, ``gain`` in accuracy, and ``n``.

    Args:
        tried: with ``condition``.
        answers: one row an answer, those of the unsteered model too.
        measures: columns of ``answers``, ``correct`` among them.
    """
    grouped = answers.groupby("condition")[list(measures)]
    means = grouped.mean()
    usual = means["correct"].to_dict()[UNSTEERED]
    means = means.assign(gain=means["correct"] - usual, n=grouped.size())
    return tried.merge(means, left_on="condition", right_index=True, how="left", sort=False)


def best(tried: pd.DataFrame, k: int) -> pd.DataFrame:
    """The ``k`` rows of each class with the highest accuracy; ties go to the weaker, then to the earlier."""
    order = tried.assign(strength=tried["gamma"].abs(), place=np.arange(len(tried)))
    order = order.sort_values(["correct", "strength", "place"], ascending=[False, True, True])
    kept = order.groupby("group", sort=False).head(k).index
    return tried.loc[kept.sort_values()].reset_index(drop=True)
