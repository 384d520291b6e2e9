"""What the steering studies say: winners beside the unsteered model, classes beside each other, arms apart.

All intervals are paired: a problem is answered under every condition with the same random draws, and problems
are resampled with all their answers. Winners × families are many comparisons, and corrected for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.statistics import (
    difference_in_differences,
    finding,
    holm,
    paired_difference,
    paired_p_value,
)
from reasoning_features.steering.search import CHOSEN, SLOT
from reasoning_features.steering.steering_study import Study

ALL = "all"
BETTER, WITHIN, WORSE = "better by 0.5 points", "within 2 points", "worse"
PAPER_SCREENING = {BETTER: 9, WITHIN: 29, WORSE: 8}
"""The paper's 46 features on MATH-500: nine gain at least half a point, eight lose more than 2."""


def screening_counts(study: Study) -> pd.DataFrame:
    """Shares of each class's screened trials that are better, within 2 points, and worse, and their gains.

    Returns:
        One row a class: ``class``, ``trials``, the three shares, ``mean gain``, ``largest gain``.
    """
    rows = []
    for group, part in study.screening.groupby("group", sort=False):
        gain = part["gain"].to_numpy()
        better, worse = gain >= 0.005, gain < -0.02
        shares = {BETTER: better.mean(), WITHIN: (~better & ~worse).mean(), WORSE: worse.mean()}
        told = {"mean gain": gain.mean(), "largest gain": gain.max()}
        rows.append({"class": group, "trials": len(part)} | shares | told)
    total = sum(PAPER_SCREENING.values())
    paper = {name: count / total for name, count in PAPER_SCREENING.items()}
    return pd.DataFrame([*rows, {"class": "the paper's 46 features", "trials": total} | paper])


def winners_table(study: Study, seed: int = 0) -> pd.DataFrame:
    """Table 1: every class's winner on fresh problems, over all of them and by family.

    Args:
        study: one model's.
        seed: of the resamples and permutations.

    Returns:
        One row a class and domain (``ALL`` first): ``class``, ``condition``, ``share of norm``, ``domain``,
        ``n``, ``accuracy``, ``gain`` with ``low`` and ``high`` (95%), ``p`` (exact where there are fewer than
        200 problems) and ``p (Holm)``: over classes for all problems, over classes × families for families;
        ``thinking tokens``, ``longer`` (their change) with ``longer low`` and ``longer high``.
    """
    domains = study.evaluation.loc[study.evaluation["group"] == UNSTEERED, "domain"]
    return _table(study, (ALL, *np.unique(domains)), seed)


def overall_table(study: Study, seed: int = 0) -> pd.DataFrame:
    """The rows of :func:`winners_table` over all problems, without its families."""
    return _table(study, (ALL,), seed)


def _table(study: Study, shown: Sequence[str], seed: int) -> pd.DataFrame:
    rows = []
    usual = study.evaluation[study.evaluation["group"] == UNSTEERED].sort_values("problem")
    domains = usual["domain"].to_numpy()
    for group in study.evaluation["group"].unique():
        own = study.evaluation[study.evaluation["group"] == group].sort_values("problem")
        for domain in shown:
            held = np.ones(len(domains), dtype=bool) if domain == ALL else domains == domain
            rows.append(_row(own[held], usual[held], domain, seed))
    table = pd.DataFrame(rows)
    compared = table["class"] != UNSTEERED
    for held in (compared & (table["domain"] == ALL), compared & (table["domain"] != ALL)):
        table.loc[held, "p (Holm)"] = holm(table.loc[held, "p"].to_numpy())
    return table


def _row(own: pd.DataFrame, usual: pd.DataFrame, domain: str, seed: int) -> dict[str, object]:
    right, unsteered = (frame["correct"].to_numpy(dtype=float) for frame in (own, usual))
    tokens, before = (frame["thinking_tokens"].to_numpy(dtype=float) for frame in (own, usual))
    first = own.iloc[0]
    row: dict[str, object] = {
        "class": first["group"],
        "condition": first["condition"],
        "share of norm": first["share of norm"],
        "domain": domain,
        "n": len(own),
        "accuracy": right.mean(),
    }
    if first["group"] == UNSTEERED:
        return row | {"thinking tokens": tokens.mean()}
    gain = paired_difference(right, unsteered, seed=seed)
    longer = paired_difference(tokens, before, seed=seed)
    row |= {"gain": gain.estimate, "low": gain.low, "high": gain.high}
    row |= {"p": paired_p_value(right, unsteered, seed=seed), "thinking tokens": tokens.mean()}
    return row | {"longer": longer.estimate, "longer low": longer.low, "longer high": longer.high}


def contrasts(studies: Sequence[Study], measure: str = "correct", seed: int = 0) -> pd.DataFrame:
    """ReasonScore's winner less every other class's, paired over problems, in every study.

    Returns:
        One row a study and class: ``model``, ``kappa``, ``model_seed``, ``against``, ``estimate``, ``low``,
        ``high`` (95%), ``n`` and ``same`` (True where both classes have one winner, so nothing can differ).
    """
    rows = []
    for study in studies:
        named = study.evaluation.groupby("group", sort=False)["condition"].first()
        for group in named.index:
            if group == CHOSEN:
                continue
            apart = paired_difference(
                study.outcome(CHOSEN, measure), study.outcome(group, measure), seed=seed
            )
            rows.append(
                {name: study.identity[name] for name in ("model", "kappa", "model_seed")}
                | {"against": group, "estimate": apart.estimate, "low": apart.low, "high": apart.high}
                | {"n": apart.n, "same": named[group] == named[CHOSEN]}
            )
    return pd.DataFrame(rows)


def pairs(studies: Sequence[Study]) -> dict[int, tuple[Study, Study]]:
    """Seed → the coupled and the decoupled study, where there are both."""
    held = {(study.identity["kappa"], study.identity["model_seed"]): study for study in studies}
    seeds = sorted(seed for kappa, seed in held if kappa == 1 and (0, seed) in held)
    return {seed: (held[1, seed], held[0, seed]) for seed in seeds}


def arms_apart(
    studies: Sequence[Study],
    against: str = SLOT,
    measure: str = "correct",
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The difference in differences: (ReasonScore − ``against``) in the coupled arm, less the same decoupled.

    The four winners of a seed answer the same problems, which are resampled for all four together.

    Args:
        studies: of both arms, one autoencoder a model.
        against: the class whose winner is compared with ReasonScore's.
        measure: of an answer.
        level: of the intervals, which are about problems; the seeds show what varies between trainings.
        seed: of the resamples.

    Returns:
        One row a seed of the models and one for all of them together (``seed`` "all"): ``seed``, ``coupled``
        and ``decoupled`` (each arm's mean difference), ``estimate``, ``low``, ``high``, ``n``, ``finding``
        (:func:`reasoning_features.statistics.finding` on the 90% interval).

    Raises:
        UserError: no seed has both arms.
    """
    by_seed = {
        number: [study.outcome(group, measure) for study in pair for group in (CHOSEN, against)]
        for number, pair in pairs(studies).items()
    }
    if not by_seed:
        raise UserError("The arms are compared seed by seed, and no seed has a study of both arms.")
    stacked = [np.stack([values[cell] for values in by_seed.values()]) for cell in range(4)]
    rows = []
    for number, four in [*by_seed.items(), ("all", stacked)]:
        one, its_control, other, others_control = four
        apart, narrow = (
            difference_in_differences(one, its_control, other, others_control, seed=seed, level=wide)
            for wide in (level, 0.90)
        )
        means = [float(np.mean(cell)) for cell in four]
        row = {"seed": str(number), "coupled": means[0] - means[1], "decoupled": means[2] - means[3]}
        row |= {"estimate": apart.estimate, "low": apart.low, "high": apart.high, "n": apart.n}
        rows.append(row | {"finding": finding(narrow)})
    return pd.DataFrame(rows)


def comparable(fresh: Study | None, stored: Study) -> bool:
    """Whether two studies are of one model and autoencoder, and of as many trials and problems."""
    return (
        fresh is not None
        and fresh.identity == stored.identity
        and len(fresh.screening) == len(stored.screening)
        and len(fresh.evaluation) == len(stored.evaluation)
    )


def agreement(fresh: Study, stored: Study) -> dict[str, object]:
    """How far a study that was computed anew agrees with the stored one.

    Returns:
        ``model``; ``winners`` (share of classes with the same winner); ``answers`` (share of fresh problems
        that are graded alike, over those classes); ``screening`` (largest difference of a trial's accuracy).
    """
    ours, theirs = (study.winners.set_index("group")["condition"] for study in (fresh, stored))
    same = [group for group in ours.index if theirs.get(group) == ours[group]]
    alike = [(fresh.outcome(group) == stored.outcome(group)).mean() for group in [UNSTEERED, *same]]
    both = fresh.screening.merge(stored.screening, on=["group", "condition"], suffixes=("", " stored"))
    return {
        "model": fresh.identity["model"],
        "winners": len(same) / len(ours),
        "answers": float(np.mean(alike)),
        "screening": float((both["correct"] - both["correct stored"]).abs().max()),
    }


def ban_table(answered: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Table 2: accuracy and length under a ban of R and of other words; random sets count by their mean.

    Args:
        answered: answers unsteered, under "R", "random …" (as many sets as there are), and other sets.
        seed: of the resamples.

    Returns:
        ``banned``, ``accuracy``, ``change`` (from no ban) with ``low`` and ``high`` (95%), ``thinking
        tokens`` and ``n``; last R's accuracy less that of the random sets.
    """
    right = answered.pivot(index="problem", columns="condition", values="correct").astype(float)
    tokens = answered.groupby("condition")["thinking_tokens"].mean()
    random = [str(name) for name in right if str(name).startswith("random")]
    others = [str(name) for name in right if name not in {UNSTEERED, "R", *random}]
    groups = {"nothing": [UNSTEERED], "R": ["R"]} | {name: [name] for name in others}
    groups[f"random words ({len(random)} sets)"] = random
    rows: list[dict[str, Any]] = []
    for name, columns in groups.items():
        change = paired_difference(right[columns].to_numpy().mean(axis=1), right[UNSTEERED], seed=seed)
        told = {"banned": name, "accuracy": float(right[columns].to_numpy().mean())}
        told |= {"change": change.estimate, "low": change.low, "high": change.high}
        rows.append(told | {"thinking tokens": float(tokens.loc[columns].mean()), "n": change.n})
    apart = paired_difference(right["R"], right[random].to_numpy().mean(axis=1), seed=seed)
    told = {"change": apart.estimate, "low": apart.low, "high": apart.high, "n": apart.n}
    return pd.DataFrame([*rows, {"banned": "R less random words"} | told])
