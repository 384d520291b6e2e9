"""What the steering studies say: winners beside the unsteered model and each other, the variants apart.

Mediation is by intervention: (a) the unsteered model is forced to go on at dead ends as often as the steered
model does, (b) the steered model as seldom as the unsteered. Forcing has a price: each is forced at its own
rates too, and forced runs are compared. Intervals over problems are paired: a problem has the same random
draws under every condition, and is resampled with all its answers.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torch import Tensor

from reasoning_features import statistics
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import Subject
from reasoning_features.reporting.claims import Measured
from reasoning_features.reporting.plots import variant_name
from reasoning_features.steering.answering import answers
from reasoning_features.steering.questions import Questions
from reasoning_features.steering.steering_study import CHOSEN, SIGNS, Study, best
from reasoning_features.steering.token_rules import COUNTERPARTS, forced_rates
from reasoning_features.truth.decisions import decision_rates, rates_of

ALL = "all"
BETTER, WITHIN, WORSE = "better by 0.5 points", "within 2 points", "worse"
# the paper's 46 features on MATH-500: nine gain at least half a point, eight lose more than 2
PAPER_SCREENING = {BETTER: 9, WITHIN: 29, WORSE: 8}
BENCHMARKS = ("AIME-2024", "MATH-500", "GPQA-Diamond")
# table 2: what is banned → percent right and thousands of thinking tokens on each of BENCHMARKS
PAPER_BAN: dict[str, tuple[float, ...]] = {
    "nothing": (53.3, 12.4, 93.2, 3.9, 50.0, 7.9),
    "R": (20.0, 9.1, 86.6, 2.5, 41.9, 5.7),
    "random words": (48.6, 13.3, 89.4, 4.2, 48.5, 8.9),
}
ARMS = (variant_name("coupled-0"), variant_name("decoupled-0"))  # where R's words matter, and where not
ZERO = "zero by construction"
CONTROL, APART = "best control", "ReasonScore − control"
MAJORITY = "majority"
STEERED = "steered"
TO_STEERED, OWN = "unsteered, at the steered rates", "unsteered, at its own rates"
STEERED_OWN = "steered, at its own rates"
# name of a forced run → which model it is, and whose rates it is forced to
RUNS: Mapping[str, tuple[str, str]] = {
    TO_STEERED: (UNSTEERED, STEERED),
    "steered, at the unsteered rates": (STEERED, UNSTEERED),
    OWN: (UNSTEERED, UNSTEERED),
    STEERED_OWN: (STEERED, STEERED),
}


def same_as(told: Mapping[str, object]) -> dict[str, str]:
    """Name → the other names that stand for an equal object, "" where none does."""
    return {one: ", ".join(n for n, thing in told.items() if n != one and thing == told[one]) for one in told}


def screening_counts(study: Study) -> pd.DataFrame:
    """Shares of each class's screened trials that are better, within 2 points, and worse. ``same as`` names
    classes that tried the same vectors.
    """
    rows = []
    equal = same_as({str(name): {*own} for name, own in study.screening.groupby("group")["condition"]})
    for group, part in study.screening.groupby("group", sort=False):
        gain = part["gain"].to_numpy()
        better, worse = gain >= 0.005, gain < -0.02
        shares = {BETTER: better.mean(), WITHIN: (~better & ~worse).mean(), WORSE: worse.mean()}
        rows.append({"class": group, "trials": len(part)} | shares | {"same as": equal[str(group)]})
    total = sum(PAPER_SCREENING.values())
    paper = {name: count / total for name, count in PAPER_SCREENING.items()}
    return pd.DataFrame([*rows, {"class": "the paper's 46 features", "trials": total} | paper])


def winners_table(study: Study, seed: int = 0, families: bool = True) -> pd.DataFrame:
    """Every class's winner on fresh problems, over all of them (``ALL``) and, with ``families``, by family.

    A class's best amplified trial (γ > 0) has a row of its own; ``same as`` names rows of the same trial.
    ``gain`` and ``longer`` (the change of thinking tokens) have 95% intervals. ``p`` is McNemar's,
    ``p (Holm)`` is over rows for all problems, over rows × families else.
    """
    rows: list[dict[str, object]] = []
    by_group = {name: part.sort_values("problem") for name, part in study.evaluation.groupby("group")}
    equal = same_as({str(name): part["condition"].iloc[0] for name, part in by_group.items()})
    domains = by_group[UNSTEERED]["domain"].to_numpy()
    for group in study.evaluation["group"].unique():
        for domain in (ALL, *np.unique(domains)) if families else (ALL,):
            which = (domains == domain) | (domain == ALL)
            own, usual = by_group[group][which], by_group[UNSTEERED][which]
            right, tokens = own["correct"].astype(float), own["thinking_tokens"].astype(float)
            row = {"class": group, "condition": own["condition"].iloc[0], "same as": equal[group]}
            row |= {"share of norm": own["share of norm"].iloc[0], "domain": domain, "n": len(own)}
            row |= {"accuracy": right.mean(), "thinking tokens": tokens.mean()}
            if group != UNSTEERED:
                plain = usual["correct"].astype(float)
                row |= statistics.paired_difference(right, plain, seed=seed).row("gain")
                row |= {"p": statistics.mcnemar(right, plain)}
                longer = statistics.paired_difference(tokens, usual["thinking_tokens"], seed=seed)
                row |= longer.row("longer", "longer ")
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
    """ReasonScore less ``against`` where R's words matter, less the same where they do not (``ARMS``).

    A row a seed of the models, its interval (95%) over problems, and "all", over seeds: ``n`` counts them.
    The ``finding`` is on the 90% interval. ``ZERO`` names the models in which both classes have one winner.
    """
    rows = []
    for number, both in pairs(studies).items():
        apart = [study.outcome(CHOSEN) - study.outcome(against) for study in both]
        won = [study.winners.set_index("group")["condition"] for study in both]
        shared = [arm for arm, own in zip(ARMS, won, strict=True) if own[CHOSEN] == own[against]]
        row: dict[str, Any] = {"seed": str(number)} | dict(zip(ARMS, map(np.mean, apart), strict=True))
        rows.append(row | {"found": paired_effect(apart[0], apart[1], seed), ZERO: ", ".join(shared)})
    means = {arm: np.mean([row[arm] for row in rows]) for arm in ARMS}
    found = over_models([row["found"].value.estimate for row in rows])
    rows.append({"seed": ALL} | means | {"found": found, ZERO: ""})
    return _told(rows)


def by_model(studies: Sequence[Study], seed: int = 0) -> pd.DataFrame:
    """What ReasonScore's winner gains, what the best control gains, and the difference, in every model.

    The control is the ``best`` of the second screening, before any fresh problem. ``longer`` is of thinking
    tokens, relative to unsteered. The rows of "all" are over models: ``n`` counts them.
    """
    rows: list[dict[str, Any]] = []
    for (signs, (chosen, *controls)), study in itertools.product(SIGNS.items(), studies):
        won = study.winners[study.winners["group"].isin(controls)]
        for control in best(won.assign(name=won["group"], group=CONTROL), 1)["name"]:
            ends = {CHOSEN: (chosen, UNSTEERED), CONTROL: (control, UNSTEERED), APART: (chosen, control)}
            for what, (one, less) in ends.items():
                tokens = [study.outcome(name, "thinking_tokens").mean() for name in (one, less, UNSTEERED)]
                row = {"signs": signs, "seed": str(study.identity["model_seed"]), "what": what}
                row |= {"control": control, "longer": (tokens[0] - tokens[1]) / tokens[2]}
                rows.append(row | {"found": effect(study, one, less, seed)})
    for (sign, whose), own in pd.DataFrame(rows).groupby(["signs", "what"], sort=False):
        found = over_models([each.value.estimate for each in own["found"]])
        told = {"signs": sign, "seed": ALL, "what": whose, "longer": own["longer"].mean(), "found": found}
        rows.append(told)
    return _told(rows)


def _told(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows, with what was ``found`` as an estimate with its 95% interval, and the 90%'s ``finding``."""
    for row in rows:
        found = row.pop("found")
        row |= vars(found.value) | {"finding": statistics.finding(found.narrow)}
    return pd.DataFrame(rows)


def over_models(values: ArrayLike) -> Measured:
    """Mean over models, the units, with Student's 95% and 90% intervals."""
    return Measured(statistics.t_interval(values), narrow=statistics.t_interval(values, level=0.90))


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


def mediation_answers(
    subject: Subject, measured: Questions, reported: Questions, vector: Tensor, seed: int
) -> pd.DataFrame:
    """Answers to the reported problems unsteered, steered by a vector, and in the forced ``RUNS``. Rates of
    going on are those on the measured problems; UserError where these have too few dead ends.
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
    """Accuracy of every run over the unsteered model that is forced at its own rates: ``estimate`` (95%)."""
    right, _ = _by_problem(answered)
    gains = {run: statistics.paired_difference(right[run], right[OWN], seed=seed) for run in right}
    return pd.DataFrame([{"run": run} | vars(gains[run]) for run in (UNSTEERED, STEERED, *RUNS)])


def mediated_share(answered: pd.DataFrame, seed: int = 0) -> statistics.Interval:
    """Part of the steered gain that the steered rates alone bring (95%, paired over problems).

    Both are gains of forced runs over the unsteered model at its own rates, so forcing costs all alike. Above
    1 the vector does harm beside the decisions. NaN of 0 problems where the gain's interval reaches 0.
    """
    right, _ = _by_problem(answered)
    alone, steered = right[TO_STEERED] - right[OWN], right[STEERED_OWN] - right[OWN]
    if statistics.bootstrap_mean(steered, seed=seed).low <= 0:
        return statistics.Interval(np.nan, np.nan, np.nan, 0)
    return statistics.bootstrap_ratio(alone, steered, seed=seed)


def ban_table(answered: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Table 2: accuracy and length under a ban of R and of other words; random sets count by their mean.

    ``change`` is from no ban (95%); the last rows are R's accuracy less each control's. The paper's percent
    right and thousands of thinking tokens stand beside.
    """
    right, random = _by_problem(answered)
    tokens = answered.groupby("condition")["thinking_tokens"].mean()
    controls = {name: [name] for name in right if name == COUNTERPARTS} | {"random words": random}
    rows: list[dict[str, Any]] = []
    for name, columns in ({"nothing": [UNSTEERED], "R": ["R"]} | controls).items():
        own = right[columns].to_numpy()
        change = statistics.paired_difference(own.mean(axis=1), right[UNSTEERED], seed=seed)
        row = {"banned": name, "accuracy": float(own.mean())} | change.row("change")
        row |= {"thinking tokens": float(tokens.loc[columns].mean()), "n": change.n}
        paper = zip(BENCHMARKS, *(PAPER_BAN.get(name, ())[at::2] for at in (0, 1)), strict=False)
        rows.append(row | {f"paper, {each}": f"{share} / {length}k" for each, share, length in paper})
    for name, columns in controls.items():
        apart = statistics.paired_difference(right["R"], right[columns].to_numpy().mean(axis=1), seed=seed)
        rows.append({"banned": f"R less {name}"} | apart.row("change") | {"n": apart.n})
    return pd.DataFrame(rows)


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


def screening_effect(study: Study, seed: int = 0) -> Measured:
    """Share of ReasonScore's screened trials that are better by half a point, and the largest control's. The
    interval is over candidates, whose strengths go together.
    """
    better = study.screening.set_index(["group", "candidate"])["gain"] >= 0.005
    shares = better.groupby(["group", "candidate"], sort=False).mean()
    usual = shares.groupby("group").mean().reindex(SIGNS["both signs"][1:]).max()
    return Measured(statistics.bootstrap_mean(shares[CHOSEN], seed=seed), float(usual))


def ban_effects(answered: Sequence[pd.DataFrame], seed: int = 0) -> tuple[Measured | None, ...]:
    """What banning R costs beyond its counterparts (control: the second variant) and beyond random words."""
    known = [_by_problem(each) for each in answered]
    gaps = [paired_effect(r[COUNTERPARTS], r["R"], seed) for r, _ in known if COUNTERPARTS in r]
    beyond = gaps[0]._replace(control=gaps[1].estimate) if len(gaps) > 1 else None
    costs = (paired_effect(r[random].mean(axis=1), r["R"], seed) for r, random in known)
    return beyond, next(costs, None)
