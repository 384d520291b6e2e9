"""The features that the paper names: where our scores rank them, and what steering them does.

Numbers are those of arXiv 2503.18878, version 2 (table 1: majority over four answers) and version 1 (table 1:
one answer). They belong to one published autoencoder; another one's features have other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition, feature_conditions
from reasoning_features.scoring.reason_score import ranks
from reasoning_features.statistics import Interval, bootstrap_mean, bootstrap_ratio, paired_difference
from reasoning_features.steering.baselines import majority_votes
from reasoning_features.steering.steering_study import matched_features

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
STEERED = "steered in version 2"
"""The set of ``settings.published`` whose features are steered."""
RANDOM = "random feature"
CONTROLS = 3
"""Random features that are steered beside the published ones."""


def check_published(published: Mapping[str, Sequence[int]], d_sae: int) -> None:
    """See that the published features can be features of this autoencoder.

    Raises:
        UserError: one is not among its features.
    """
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

    Args:
        scores: name of the dials → score of every feature ``[f]``.
        published: name of the set → its features.
        k: features chosen.

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


def published_conditions(
    sae: object,
    evidence: pd.DataFrame,
    features: Sequence[int],
    gamma: float,
    seed: int,
    controls: int = CONTROLS,
) -> list[Condition]:
    """Published features at one strength (equation 7), and random live ones matched to the first of them.

    Args:
        sae: gives the decoder directions.
        evidence: one row a feature: ``maximum``, ``density``, ``decoder norm``.
        features: the published features.
        gamma: the strength, in units of each feature's largest activation.
        seed: draws the random features.
        controls: how many of them, at most as many as there are published ones.

    A published feature that is never active here has no strength to steer with, and is left out.
    """
    live = np.flatnonzero(evidence["density"].to_numpy() > 0)
    maxima = evidence["maximum"].to_numpy(dtype=float)
    active = np.intersect1d(features, live)
    named = feature_conditions(sae, active.tolist(), [gamma], maxima)
    drawn = matched_features(evidence, active, live, seed)[:controls]
    matched = feature_conditions(sae, [int(feature) for feature in drawn], [gamma], maxima)
    return named + [
        Condition(f"{RANDOM} {made.feature}", made.feature, gamma, vector=made.vector) for made in matched
    ]


def steered_table(answered: pd.DataFrame, problems: int, seed: int = 0) -> pd.DataFrame:
    """What steering did on each benchmark, paired over problems with the unsteered model.

    Args:
        answered: answers with ``condition``, ``problem``, ``domain``, ``answer``, ``correct`` and
            ``thinking_tokens``; several to a problem have numbers ``problems`` apart.
        problems: how many different problems there are.
        seed: of the resamples.

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


def overall(answered: pd.DataFrame, problems: int, seed: int = 0) -> Overall:
    """The mean over published features, and over random ones; arguments as :func:`steered_table`."""
    frame = answered.assign(item=answered["problem"] % problems)
    kinds = np.where(frame["condition"].str.startswith(RANDOM), RANDOM, STEERED)
    frame["kind"] = np.where(frame["condition"] == UNSTEERED, UNSTEERED, kinds)
    means = frame.groupby(["kind", "item"])[["correct", "thinking_tokens"]].mean()
    correct, tokens = (means[name].unstack(0) for name in ("correct", "thinking_tokens"))
    given = correct[STEERED], correct[UNSTEERED]
    longer = [
        bootstrap_ratio(tokens[kind] - tokens[UNSTEERED], tokens[UNSTEERED], seed=seed)
        for kind in (STEERED, RANDOM)
    ]
    gain, narrow = (paired_difference(*given, seed=seed, level=level) for level in (0.95, 0.9))
    return Overall(gain, narrow, *longer)


def beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`steered_table` with the paper's numbers, where it has any of that feature.

    Adds ``paper`` (percent right), ``paper tokens`` (thousands) and ``version``; nan where there are none.
    """
    rows = []
    for benchmark, feature, condition in table[["benchmark", "feature", "condition"]].itertuples(index=False):
        version, held = (2, VERSION_2) if feature in VERSION_2 else (1, VERSION_1)
        known = benchmark in BENCHMARKS and feature in held and not str(condition).startswith(RANDOM)
        at = 2 * BENCHMARKS.index(benchmark) if known else 0
        accuracy, tokens = held[feature][at : at + 2] if known else (np.nan, np.nan)
        told = {"paper": accuracy, "paper tokens": tokens, "version": version if known else np.nan}
        rows.append(told)
    return pd.concat([table.reset_index(drop=True), pd.DataFrame(rows)], axis=1)
