"""What the steering studies say: winners beside the unsteered model and each other, the variants apart.

Beside them other ways to spend as many tokens, and mediation by intervention: (a) the unsteered model is
forced to go on at dead ends as often as the steered one does: what it gains needs only the decisions; (b) the
steered model is forced to go on as seldom as the unsteered one: what is left of its gain is not carried by
the decisions. Each is forced at its own rates too, which changes nothing if rates are all that matters.

Intervals are paired: a problem is answered under every condition with the same random draws, and resampled
with all its answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reasoning_features import statistics
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import Subject
from reasoning_features.reporting.claims import Measured
from reasoning_features.steering.answering import answers
from reasoning_features.steering.questions import Questions
from reasoning_features.steering.steering_study import CHOSEN, SLOT, Study
from reasoning_features.steering.token_rules import forced_rates
from reasoning_features.truth.decisions import decision_rates, rates_of

ALL = "all"
BETTER, WITHIN, WORSE = "better by 0.5 points", "within 2 points", "worse"
# the paper's 46 features on MATH-500: nine gain at least half a point, eight lose more than 2
PAPER_SCREENING = {BETTER: 9, WITHIN: 29, WORSE: 8}
MAJORITY, LONGER = "majority", "thinking longer"
STEERED = "steered"
TO_STEERED, OWN = "unsteered, at the steered rates", "unsteered, at its own rates"
# name of a forced run → which model it is, and whose rates it is forced to
RUNS: Mapping[str, tuple[str, str]] = {
    TO_STEERED: (UNSTEERED, STEERED),
    "steered, at the unsteered rates": (STEERED, UNSTEERED),
    OWN: (UNSTEERED, UNSTEERED),
    "steered, at its own rates": (STEERED, STEERED),
}


def screening_counts(study: Study) -> pd.DataFrame:
    """Shares of each class's screened trials that are better, within 2 points, and worse; their gains."""
    rows = []
    for group, part in study.screening.groupby("group", sort=False):
        gain = part["gain"].to_numpy()
        better, worse = gain >= 0.005, gain < -0.02
        shares = {BETTER: better.mean(), WITHIN: (~better & ~worse).mean(), WORSE: worse.mean()}
        gains = {"mean gain": gain.mean(), "largest gain": gain.max()}
        rows.append({"class": group, "trials": len(part)} | shares | gains)
    total = sum(PAPER_SCREENING.values())
    paper = {name: count / total for name, count in PAPER_SCREENING.items()}
    return pd.DataFrame([*rows, {"class": "the paper's 46 features", "trials": total} | paper])


def winners_table(study: Study, seed: int = 0, families: bool = True) -> pd.DataFrame:
    """Every class's winner on fresh problems, over all of them (``ALL``) and, with ``families``, by family.

    ``gain`` and ``longer`` (the change of thinking tokens) have 95% intervals. ``p`` is exact where there are
    fewer than 200 problems; ``p (Holm)`` is over classes for all problems, over classes × families else.
    """
    rows: list[dict[str, object]] = []
    by_group = {name: part.sort_values("problem") for name, part in study.evaluation.groupby("group")}
    domains = by_group[UNSTEERED]["domain"].to_numpy()
    for group in study.evaluation["group"].unique():
        for domain in (ALL, *np.unique(domains)) if families else (ALL,):
            which = (domains == domain) | (domain == ALL)
            own, usual = by_group[group][which], by_group[UNSTEERED][which]
            right, tokens = own["correct"].astype(float), own["thinking_tokens"].astype(float)
            row = {"class": group, "condition": own["condition"].iloc[0]}
            row |= {"share of norm": own["share of norm"].iloc[0], "domain": domain, "n": len(own)}
            row |= {"accuracy": right.mean(), "thinking tokens": tokens.mean()}
            if group != UNSTEERED:
                plain = usual["correct"].astype(float)
                row |= statistics.paired_difference(right, plain, seed=seed).row("gain")
                row |= {"p": statistics.paired_p_value(right, plain, seed=seed)}
                row |= statistics.paired_difference(tokens, usual["thinking_tokens"], seed=seed).row(
                    "longer", "longer "
                )
            rows.append(row)
    table = pd.DataFrame(rows)
    compared = table["class"] != UNSTEERED
    for tests in (compared & (table["domain"] == ALL), compared & (table["domain"] != ALL)):
        table.loc[tests, "p (Holm)"] = statistics.holm(table.loc[tests, "p"].to_numpy())
    return table


def pairs(studies: Sequence[Study]) -> dict[int, tuple[Study, Study]]:
    """Seed → the coupled and the decoupled study, where there are both."""
    known = {(study.identity["kappa"], study.identity["model_seed"]): study for study in studies}
    seeds = sorted(seed for kappa, seed in known if kappa == 1 and (0, seed) in known)
    return {seed: (known[1, seed], known[0, seed]) for seed in seeds}


def variants_apart(studies: Sequence[Study], against: str, seed: int = 0) -> pd.DataFrame:
    """ReasonScore less ``against`` in the coupled model, less the same in the decoupled one.

    A row a seed of the models and one for all together ("all"); the ``finding`` is on the 90% interval.
    """
    rows = []
    for number, (coupled, decoupled) in _by_seed(studies, against).items():
        wide, narrow = (
            statistics.paired_difference(coupled, decoupled, seed=seed, level=x) for x in (0.95, 0.90)
        )
        row = {"seed": number, "coupled": coupled.mean(), "decoupled": decoupled.mean()}
        rows.append(row | vars(wide) | {"finding": statistics.finding(narrow)})
    return pd.DataFrame(rows)


def _by_seed(studies: Sequence[Study], against: str) -> dict[str, NDArray[np.float64]]:
    """Seed, or "all" for their mean → ReasonScore − ``against`` by model and problem ``[2, n]``."""
    apart = {
        str(number): np.stack([study.outcome(CHOSEN) - study.outcome(against) for study in pair])
        for number, pair in pairs(studies).items()
    }
    return apart | {"all": np.mean(list(apart.values()), axis=0)}


def majority_votes(answered: pd.DataFrame, n: int, sizes: Sequence[int]) -> pd.DataFrame:
    """Majority over the first answers to each of ``n`` problems; ties go to the answer that came first.

    ``correct`` is of the majority's answer (none is wrong), ``tokens`` the thinking tokens of all that vote.
    With two answers the first always wins: give odd ``sizes``.
    """
    ordered = answered.sort_values("problem", kind="stable", ignore_index=True)
    rows = []
    for size in sizes:
        for problem in range(n):
            votes = ordered.iloc[problem : size * n : n]
            given = votes["answer"].dropna()
            elected = given.map(given.value_counts()).idxmax() if len(given) else None
            correct = elected is not None and bool(votes.at[elected, "correct"])
            rows.append((MAJORITY, size, problem, correct, votes["thinking_tokens"].sum()))
    return pd.DataFrame(rows, columns=["method", "size", "problem", "correct", "tokens"])


def single_answers(answered: pd.DataFrame, sizes: Mapping[str, int], method: str = LONGER) -> pd.DataFrame:
    """What single answers spend, as :func:`majority_votes` tells it; condition → the size it stands for."""
    own = answered[answered["condition"].isin(list(sizes))].reset_index(drop=True)
    own = own.assign(method=method, size=own["condition"].map(sizes), tokens=own["thinking_tokens"])
    return own[["method", "size", "problem", "correct", "tokens"]]


def mediation_answers(
    subject: Subject, measured: Questions, reported: Questions, vector: Tensor, seed: int
) -> pd.DataFrame:
    """Answers to the reported problems unsteered, steered by a vector, and in the forced ``RUNS``.

    Rates of going on are those on the measured problems; UserError where these have too few dead ends.
    """
    models = {UNSTEERED: Condition(UNSTEERED), STEERED: Condition(STEERED, vector=vector)}
    asked = answers(subject, measured, [models[STEERED]], seed, progress="rates")
    rates = {name: rates_of(decision_rates(asked[asked["condition"] == name])) for name in models}
    forced = []
    for run, (model, pace) in RUNS.items():
        rule = forced_rates(subject.tokenizer, rates[pace], reported.domains, seed)
        forced.append(replace(models[model], name=run, rule=rule))
    return answers(subject, reported, [models[STEERED], *forced], seed, progress="mediation")


def mediation_table(answered: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The gain in accuracy of every run over unsteered: ``estimate`` (95%, paired over problems).

    ``share`` is that of the steered gain, missing where the steered gain's interval holds 0.
    """
    right, _ = _by_problem(answered)
    gains = right.sub(right[UNSTEERED], axis=0)
    steered = statistics.bootstrap_mean(gains[STEERED], seed=seed)
    rows = []
    for run in (STEERED, *RUNS):
        gain = statistics.bootstrap_mean(gains[run], seed=seed)
        share = statistics.Interval(np.nan, np.nan, np.nan, gain.n)
        if steered.low > 0 or steered.high < 0:
            share = statistics.bootstrap_ratio(gains[run], gains[STEERED], seed=seed)
        row = {"run": run, "mean": right[run].mean()} | gain.row("estimate")
        rows.append(row | share.row("share", "share_") | {"n": gain.n})
    return pd.DataFrame(rows)


def ban_table(answered: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Table 2: accuracy and length under a ban of R and of other words; random sets count by their mean.

    ``change`` is from no ban (95%); the last row is R's accuracy less that of the random sets.
    """
    right, random = _by_problem(answered)
    tokens = answered.groupby("condition")["thinking_tokens"].mean()
    others = [str(name) for name in right if name not in {UNSTEERED, "R", *random}]
    groups = {"nothing": [UNSTEERED], "R": ["R"]} | {name: [name] for name in others}
    groups[f"random words ({len(random)} sets)"] = random
    rows: list[dict[str, Any]] = []
    for name, columns in groups.items():
        own = right[columns].to_numpy()
        change = statistics.paired_difference(own.mean(axis=1), right[UNSTEERED], seed=seed)
        row = {"banned": name, "accuracy": float(own.mean())} | change.row("change")
        rows.append(row | {"thinking tokens": float(tokens.loc[columns].mean()), "n": change.n})
    apart = statistics.paired_difference(right["R"], right[random].to_numpy().mean(axis=1), seed=seed)
    return pd.DataFrame([*rows, {"banned": "R less random words"} | apart.row("change") | {"n": apart.n}])


def _by_problem(answered: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Right or wrong, a row a problem and a column a condition; and which conditions ban random words."""
    right = answered.pivot(index="problem", columns="condition", values="correct").astype(float)
    return right, [str(name) for name in right if str(name).startswith("random")]


def paired_effect(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Measured:
    """Mean of a − b over problems, with its 95% and its 90% interval."""
    wide, narrow = (statistics.paired_difference(a, b, seed=seed, level=level) for level in (0.95, 0.90))
    return Measured(wide, narrow=narrow)


def effect(study: Study, group: str, against: str = UNSTEERED, seed: int = 0) -> Measured:
    """Accuracy of a class's winner less that of another's on fresh problems."""
    return paired_effect(study.outcome(group), study.outcome(against), seed)


def length_effect(study: Study, controls: Sequence[str], seed: int = 0) -> Measured:
    """Relative change of thinking tokens under ReasonScore's winner, and the largest of the controls'."""
    lengths = {name: study.outcome(name, "thinking_tokens") for name in (UNSTEERED, CHOSEN, *controls)}
    plain = lengths[UNSTEERED].mean()
    found = statistics.paired_difference(lengths[CHOSEN], lengths[UNSTEERED], seed=seed)
    longest = max(lengths[name].mean() for name in controls) / plain - 1
    return Measured(found / plain, longest)


def screening_effect(study: Study, controls: Sequence[str], seed: int = 0) -> Measured:
    """Share of ReasonScore's screened trials that are better by half a point; the control's is the largest.

    The interval is over candidates, whose strengths go together.
    """
    better = study.screening.assign(better=study.screening["gain"] >= 0.005)
    by_candidate = better.groupby(["group", "candidate"], sort=False)["better"].mean()
    usual = max(float(by_candidate[name].mean()) for name in controls)
    return Measured(statistics.bootstrap_mean(by_candidate[CHOSEN], seed=seed), usual)


def difference_effect(studies: Sequence[Study], seed: int = 0) -> Measured:
    """The difference in differences from slot-matched words, over all seeds."""
    coupled, decoupled = _by_seed(studies, SLOT)["all"]
    return paired_effect(coupled, decoupled, seed)


def ban_effect(answered: pd.DataFrame, seed: int = 0) -> Measured:
    """What banning R costs in accuracy beyond a ban of random words."""
    right, random = _by_problem(answered)
    return paired_effect(right[random].to_numpy().mean(axis=1), right["R"], seed)
