"""The features that the paper names: where our scores rank them, and what steering them does.

Numbers are those of arXiv 2503.18878, version 2 (table 1: majority over four answers) and version 1 (table 1:
one answer). They belong to one published autoencoder; another one's features have other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition, feature_conditions
from reasoning_features.scoring.reason_score import ranks, select
from reasoning_features.settings import Settings
from reasoning_features.statistics import Interval, bootstrap_mean, bootstrap_ratio, paired_difference
from reasoning_features.steering.baselines import majority_votes
from reasoning_features.steering.benchmarks import STEERED
from reasoning_features.steering.steering_study import CHOSEN, matched_features

BENCHMARKS = ("AIME-2024", "MATH-500", "GPQA-Diamond")
VERSION_2: dict[int, tuple[float, ...]] = {
    -1: (53.3, 12.4, 93.2, 3.9, 50.0, 7.9),
    3942: (56.7, 11.1, 93.0, 3.4, 46.5, 6.7),
    4395: (56.7, 14.7, 95.4, 4.1, 52.0, 8.5),
    16441: (60.0, 14.0, 95.0, 4.1, 54.0, 8.3),
    16778: (56.7, 14.1, 94.0, 4.7, 51.0, 9.0),
    25953: (60.0, 12.8, 94.2, 4.2, 53.0, 8.1),
    46691: (56.7, 14.0, 94.2, 4.2, 54.0, 8.0),
    61104: (66.7, 12.0, 95.0, 3.6, 53.0, 7.5),
}
"""Feature (−1: unsteered) → percent right and thousands of thinking tokens on each of ``BENCHMARKS``."""
VERSION_1: dict[int, tuple[float, ...]] = {
    -1: (46.6, 12.0, 91.0, 3.7, 54.0, 7.9),
    15136: (60.0, 13.8, 89.6, 4.3, 50.5, 8.9),
    17456: (50.0, 14.2, 93.0, 4.2, 53.0, 8.7),
    46379: (53.3, 15.5, 92.4, 4.4, 55.5, 9.0),
    62777: (56.6, 12.9, 93.0, 4.1, 48.5, 8.3),
}
NAMED, RANDOM = "the paper's", "random"


def check_published(published: Mapping[str, Sequence[int]], d_sae: int) -> None:
    """Raises a UserError where a published feature is not among this autoencoder's."""
    beyond = sorted({feature for ids in published.values() for feature in ids if not 0 <= feature < d_sae})
    if beyond:
        raise UserError(
            f"The published features {', '.join(map(str, beyond))} are not there: this autoencoder has 0 to "
            f"{d_sae - 1}. Give the published autoencoder, or set `published` to features of this one."
        )


def found_table(
    scores: Mapping[str, ArrayLike], published: Mapping[str, Sequence[int]], k: int
) -> pd.DataFrame:
    """How many published features are among the k with the highest score, beside chance.

    ``scores`` is name of the dials → score of every feature ``[f]``; ``published`` is name → features.

    Returns:
        A row for each dials and set: ``dials``, ``set``, ``features``, ``found``, ``by chance`` (expected of
        as many random features), ``p`` (that as many or more are found by chance, hypergeometric), and
        ``median rank`` (1 is the highest).

    Raises:
        UserError: a feature that is not there.
    """
    rows = []
    for dials, values in scores.items():
        rank = ranks(values)
        check_published(published, len(rank))
        for name, ids in published.items():
            unique = sorted(set(ids))
            found = int((rank[unique] <= k).sum())
            rows.append(
                {
                    "dials": dials,
                    "set": name,
                    "features": len(unique),
                    "found": found,
                    "by chance": k * len(unique) / len(rank),
                    "p": float(hypergeom.sf(found - 1, len(rank), k, len(unique))),
                    "median rank": float(np.median(rank[unique])),
                }
            )
    return pd.DataFrame(rows)


def share_found(scores: ArrayLike, published: Mapping[str, Sequence[int]], k: int) -> Interval:
    """Share of all published features, of whichever set, that are among the k with the highest score."""
    ids = sorted({feature for held in published.values() for feature in held})
    return bootstrap_mean(ranks(scores)[ids] <= k)


def rank_table(scores: Mapping[str, ArrayLike], published: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Each published feature: ``feature``, ``sets`` that name it, and its rank under each dials."""
    ids = sorted({feature for held in published.values() for feature in held})
    sets = ["; ".join(name for name, held in published.items() if feature in held) for feature in ids]
    columns = {f"rank, {dials}": ranks(values)[ids] for dials, values in scores.items()}
    return pd.DataFrame({"feature": ids, "sets": sets} | columns)


def steered_conditions(
    settings: Settings, sae: Any, evidence: pd.DataFrame
) -> tuple[list[Condition], dict[str, list[int]]]:
    """The features that the paper names at its strength, or where none are named the best by ReasonScore.

    A random live feature is matched to each. A named feature that is never active here has no strength to
    steer with, and is left out. ``evidence`` has a row a feature: ``maximum``, ``density``, ``decoder norm``,
    ``score:reason score``.

    Returns:
        The conditions, the first feature's first; and kind → its features, the random ones under ``RANDOM``.

    Raises:
        UserError: a named feature is not among the autoencoder's.
    """
    live = np.flatnonzero(evidence["density"] > 0)
    if named := settings.published.get(STEERED):
        check_published(settings.published, sae.cfg.d_sae)
        kind, best, others, gammas = NAMED, np.intersect1d(named, live), live, [settings.gamma]
    else:
        score = evidence["score:reason score"].to_numpy(dtype=float)[live]
        chosen = live[select(score, min(settings.selected, len(live) // 2))]
        kind, best, gammas = CHOSEN, chosen[: settings.interpreted], settings.gammas
        others = np.setdiff1d(live, chosen[settings.interpreted :])
    random = matched_features(evidence, best, others, settings.seed)
    kinds = {kind: best.tolist(), RANDOM: random.tolist()}
    every = [feature for features in kinds.values() for feature in features]
    return feature_conditions(sae, every, gammas, evidence["maximum"].to_numpy(dtype=float)), kinds


def steered_table(answered: pd.DataFrame, problems: int, seed: int = 0) -> pd.DataFrame:
    """What steering did on each benchmark, paired over problems with the unsteered model.

    ``answered`` are answers; those to one problem have numbers ``problems`` apart.

    Returns:
        A row for each benchmark and condition: ``benchmark``, ``condition``, ``feature``, ``problems``,
        ``pass@1`` (mean over a problem's answers), ``maj@k``, ``tokens``; ``gain`` in pass@1 and ``longer``
        (relative change of tokens) with ``low`` and ``high`` ends (95%); ``k``.
    """
    frame = answered.assign(item=answered["problem"] % problems)
    samples = len(frame) // (problems * frame["condition"].nunique())
    rows = []
    usual: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for condition, held in frame.groupby("condition", sort=False):
        voted = majority_votes(held, problems, [samples]).set_index("problem")["correct"]
        for benchmark, part in held.groupby("domain", sort=False):
            benchmark = str(benchmark)
            means = part.groupby("item")[["correct", "thinking_tokens"]].mean()
            correct, tokens = (means[name].to_numpy(dtype=float) for name in means)
            if condition == UNSTEERED:
                usual[benchmark] = correct, tokens
            before = usual[benchmark]
            gain = paired_difference(correct, before[0], seed=seed)
            longer = paired_difference(tokens, before[1], seed=seed)
            scale = before[1].mean() or np.nan
            rows.append(
                {
                    "benchmark": benchmark,
                    "condition": condition,
                    "feature": int(part["feature"].iloc[0]),
                    "problems": len(means),
                    "pass@1": correct.mean(),
                    "maj@k": float(voted.reindex(means.index).mean()),
                    "tokens": tokens.mean(),
                    "gain": gain.estimate,
                    "gain low": gain.low,
                    "gain high": gain.high,
                    "longer": longer.estimate / scale,
                    "longer low": longer.low / scale,
                    "longer high": longer.high / scale,
                    "k": samples,
                }
            )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Overall:
    """What steering did on average over features, paired over problems (95% and 90% intervals).

    Attributes:
        gain: in pass@1, the published features'.
        gain_90: its 90% interval.
        longer: relative change of thinking tokens, the published features'.
        longer_random: the same of the random ones.
    """

    gain: Interval
    gain_90: Interval
    longer: Interval
    longer_random: Interval


def overall(answered: pd.DataFrame, problems: int, random: Sequence[int], seed: int = 0) -> Overall:
    """The mean over published features, and over the ``random`` ones; else as :func:`steered_table`."""
    frame = answered.assign(item=answered["problem"] % problems)
    kinds = np.where(frame["feature"].isin(random), RANDOM, NAMED)
    frame["kind"] = np.where(frame["condition"] == UNSTEERED, UNSTEERED, kinds)
    means = frame.groupby(["kind", "item"])[["correct", "thinking_tokens"]].mean()
    correct, tokens = (means[name].unstack(0) for name in ("correct", "thinking_tokens"))
    longer = [
        bootstrap_ratio(tokens[kind] - tokens[UNSTEERED], tokens[UNSTEERED], seed=seed)
        for kind in (NAMED, RANDOM)
    ]
    gain, narrow = (
        paired_difference(correct[NAMED], correct[UNSTEERED], seed=seed, level=level) for level in (0.95, 0.9)
    )
    return Overall(gain, narrow, *longer)


def beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`steered_table` with the paper's numbers, where it has any of that feature.

    Adds ``paper`` (percent right), ``paper tokens`` (thousands) and ``version``; nan where there are none.
    """
    rows = []
    for benchmark, feature in table[["benchmark", "feature"]].itertuples(index=False):
        version, numbers = (2, VERSION_2) if feature in VERSION_2 else (1, VERSION_1)
        known = benchmark in BENCHMARKS and feature in numbers
        at = 2 * BENCHMARKS.index(benchmark) if known else 0
        accuracy, tokens = numbers[feature][at : at + 2] if known else (np.nan, np.nan)
        rows.append((accuracy, tokens, version if known else np.nan))
    paper = pd.DataFrame(rows, columns=["paper", "paper tokens", "version"])
    return pd.concat([table.reset_index(drop=True), paper], axis=1)
