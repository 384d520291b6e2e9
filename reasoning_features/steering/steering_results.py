"""What the steering studies say: winners beside the unsteered model and each other, the variants apart.

Beside them other ways to spend as many tokens: a majority over several answers, and thinking longer. And
mediation by intervention: two crossed runs tell how much of what steering gains is carried by going on at
dead ends. (a) The unsteered model is forced to go on as often as the steered one does: what it gains needs no
steering, only the decisions. (b) The steered model is forced to go on as seldom as the unsteered one does:
what is left of its gain is not carried by the decisions. Each is forced at its own rates too, which should
change nothing if decisions, beyond their rates, do not depend on the problem.

All intervals are paired: a problem is answered under every condition with the same random draws, and problems
are resampled with all their answers. Winners × families are many comparisons, and corrected for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import Subject
from reasoning_features.reporting.claims import Measured
from reasoning_features.reporting.plots import (
    COLOURS,
    forest,
    legend_below,
    look,
    name_rows,
    new_figure,
    panels,
)
from reasoning_features.statistics import (
    MARGIN,
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    difference_in_differences,
    finding,
    holm,
    paired_difference,
    paired_p_value,
)
from reasoning_features.steering.answering import answers
from reasoning_features.steering.questions import Questions
from reasoning_features.steering.steering_study import CHOSEN, SLOT, Study, best
from reasoning_features.steering.token_rules import InTurn, forced_rates
from reasoning_features.truth.decisions import Rates, decision_rates, rates_of

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
    """Shares of each class's screened trials that are better, within 2 points, and worse, and their gains."""
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
    unsteered = by_group[UNSTEERED]
    for group in study.evaluation["group"].unique():
        for domain in (ALL, *np.unique(unsteered["domain"])) if families else (ALL,):
            which = (unsteered["domain"].to_numpy() == domain) | (domain == ALL)
            own, usual = by_group[group][which], unsteered[which]
            right, tokens = own["correct"].astype(float), own["thinking_tokens"].astype(float)
            row = {"class": group, "condition": own["condition"].iloc[0]}
            row |= {"share of norm": own["share of norm"].iloc[0], "domain": domain, "n": len(own)}
            row |= {"accuracy": right.mean(), "thinking tokens": tokens.mean()}
            if group != UNSTEERED:
                plain = usual["correct"].astype(float)
                row |= paired_difference(right, plain, seed=seed).row("gain")
                row |= {"p": paired_p_value(right, plain, seed=seed)}
                row |= paired_difference(tokens, usual["thinking_tokens"], seed=seed).row("longer", "longer ")
            rows.append(row)
    columns = ["class", "condition", "share of norm", "domain", "n", "accuracy", "thinking tokens", "gain"]
    ends = ["low", "high", "p", "longer", "longer low", "longer high", "p (Holm)"]
    table = pd.DataFrame(rows).reindex(columns=[*columns, *ends])
    compared = table["class"] != UNSTEERED
    for rows_of in (compared & (table["domain"] == ALL), compared & (table["domain"] != ALL)):
        table.loc[rows_of, "p (Holm)"] = holm(table.loc[rows_of, "p"].to_numpy())
    return table


def contrasts(studies: Sequence[Study], seed: int = 0) -> pd.DataFrame:
    """Accuracy of ReasonScore's winner less every other class's, paired over problems, in every study.

    ``same`` is True where both classes have one winner, so nothing can differ.
    """
    rows = []
    for study in studies:
        named = study.evaluation.groupby("group", sort=False)["condition"].first()
        own = {name: study.identity[name] for name in ("model", "kappa", "model_seed")}
        for group in named.index.drop(CHOSEN):
            apart = paired_difference(study.outcome(CHOSEN), study.outcome(group), seed=seed)
            same = named[group] == named[CHOSEN]
            rows.append(own | {"against": group} | vars(apart) | {"same": same})
    return pd.DataFrame(rows)


def pairs(studies: Sequence[Study]) -> dict[int, tuple[Study, Study]]:
    """Seed → the coupled and the decoupled study, where there are both."""
    known = {(study.identity["kappa"], study.identity["model_seed"]): study for study in studies}
    seeds = sorted(seed for kappa, seed in known if kappa == 1 and (0, seed) in known)
    return {seed: (known[1, seed], known[0, seed]) for seed in seeds}


def variants_apart(
    studies: Sequence[Study], against: str = SLOT, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """The difference in differences: (ReasonScore − ``against``) in the coupled model, less the decoupled.

    The four winners of a seed answer the same problems, which are resampled for all four together; the seeds
    show what varies between trainings. UserError where no seed has both models.

    Returns:
        One row a seed of the models and one for all of them together (``seed`` "all"): ``coupled`` and
        ``decoupled`` are each one's mean difference, and the ``finding`` is on the 90% interval.
    """
    by_seed = {
        str(number): [study.outcome(group) for study in pair for group in (CHOSEN, against)]
        for number, pair in pairs(studies).items()
    }
    if not by_seed:
        raise UserError("The variants are compared seed by seed, and no seed has a study of both.")
    by_seed["all"] = [np.stack([values[cell] for values in by_seed.values()]) for cell in range(4)]
    rows = []
    for number, four in by_seed.items():
        apart, narrow = (
            difference_in_differences(four[0], four[1], four[2], four[3], seed=seed, level=wide)
            for wide in (level, 0.90)
        )
        means = [float(np.mean(cell)) for cell in four]
        row = {"seed": number, "coupled": means[0] - means[1], "decoupled": means[2] - means[3]}
        rows.append(row | vars(apart) | {"finding": finding(narrow)})
    return pd.DataFrame(rows)


# --- as many tokens, spent otherwise ------------------------------------------------------------------------


def majority_votes(answered: pd.DataFrame, n: int, sizes: Sequence[int]) -> pd.DataFrame:
    """Majority over the first answers to each of ``n`` problems; ties go to the answer that came first.

    With two answers the first always wins, so odd ``sizes`` waste nothing. UserError where fewer answers to a
    problem than vote.

    Returns:
        ``method``, ``size``, ``problem``, ``correct`` (of the majority's answer; none is wrong) and
        ``tokens`` (thinking tokens of all that vote).
    """
    if max(sizes) * n > len(answered):
        raise UserError(
            f"{max(sizes)} answers to each of {n} problems are to vote, but there are {len(answered)} in "
            "all: sample more, or let fewer vote."
        )
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


def spending_curve(spent: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy against mean tokens of each ``method`` and ``size``, with 95% intervals over problems."""
    rows = []
    for (method, size), part in spent.groupby(["method", "size"], sort=False):
        row = {"method": method, "size": size, "tokens": float(part["tokens"].mean())}
        rows.append(row | vars(bootstrap_mean(part["correct"], seed=seed)))
    return pd.DataFrame(rows).rename(columns={"estimate": "accuracy"})


def at_equal_tokens(spent: pd.DataFrame, tokens: float) -> pd.Series | None:
    """Chance to be right on each problem when one method spends so many tokens on average; None: it cannot.

    Between two sizes lies a mixture: a share of the problems, drawn blindly, gets the larger.
    """
    means = spent.groupby("size")["tokens"].mean().sort_values()
    correct = spent.pivot(index="problem", columns="size", values="correct").astype(float)[means.index]
    if not means.iloc[0] <= tokens <= means.iloc[-1]:
        return None
    return correct.apply(lambda right: np.interp(tokens, means, right), axis=1)


def equal_token_comparison(
    steered: Mapping[str, pd.DataFrame], spent: pd.DataFrame, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Steered answers less each other way to spend as many tokens (95%, paired over problems).

    Tokens are equal on average over the problems at hand; resamples keep the mixture. ``steered`` is name →
    answers under one condition, ``spent`` those of one method or more to the same problems. A method that
    cannot spend as many tokens has no row.
    """
    rows = []
    for steering, own in steered.items():
        tokens = float(own["thinking_tokens"].mean())
        right = own.set_index("problem")["correct"].astype(float).sort_index()
        for method, part in spent.groupby("method", sort=False):
            other = at_equal_tokens(part, tokens)
            if other is not None:
                other = other.loc[right.index]
                row = {"method": method, "tokens": tokens, "steered": right.mean(), "other": other.mean()}
                row |= vars(paired_difference(right, other, n_resamples, seed))
                rows.append(row | {"steering": steering})
    return pd.DataFrame(rows).rename(columns={"estimate": "difference"})


# --- mediation ----------------------------------------------------------------------------------------------


def mediation_answers(
    subject: Subject,
    measured: Questions,
    reported: Questions,
    condition: Condition,
    seed: int,
    progress: str | None = "mediation",
) -> tuple[pd.DataFrame, dict[str, Rates]]:
    """Answers to the reported problems unsteered, steered and in the forced ``RUNS``, and the two rates.

    The rates of the unsteered and the steered model are of the measured problems. ``seed`` is that of the
    draws and of forced sides. UserError where a problem is in both, or the measured ones have too few dead
    ends.
    """
    if set(map(tuple, measured.prompts)) & set(map(tuple, reported.prompts)):
        raise UserError("Some problems are both measured and reported: take them from two splits.")
    models = {UNSTEERED: Condition(UNSTEERED), STEERED: replace(condition, name=STEERED)}
    asked = answers(subject, measured, [models[STEERED]], seed, progress=progress)
    rates = {name: rates_of(decision_rates(asked[asked["condition"] == name])) for name in models}
    forced = []
    for run, (model, pace) in RUNS.items():
        rule = forced_rates(subject.tokenizer, rates[pace], reported.domains, seed)
        own = models[model].rule
        forced.append(replace(models[model], name=run, rule=InTurn((own, rule)) if own else rule))
    return answers(subject, reported, [models[STEERED], *forced], seed, progress=progress), rates


def mediation_table(
    answered: pd.DataFrame, measure: str = "correct", n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """The gain in ``measure`` of every run over unsteered: ``estimate`` (95%, paired over problems).

    ``share`` is that of the steered gain, missing where the steered gain's interval holds 0.
    """
    table = answered.pivot(index="problem", columns="condition", values=measure).astype(float)
    gains = table.sub(table[UNSTEERED], axis=0)
    steered = bootstrap_mean(gains[STEERED], n_resamples, seed)
    rows = []
    for run in (STEERED, *RUNS):
        gain = bootstrap_mean(gains[run], n_resamples, seed)
        share = Interval(np.nan, np.nan, np.nan, gain.n)
        if steered.low > 0 or steered.high < 0:
            share = bootstrap_ratio(gains[run], gains[STEERED], n_resamples, seed)
        row = {"run": run, "mean": table[run].mean()} | gain.row("estimate")
        rows.append(row | share.row("share", "share_") | {"n": gain.n})
    return pd.DataFrame(rows)


# --- table 2 ------------------------------------------------------------------------------------------------


def ban_table(answered: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Table 2: accuracy and length under a ban of R and of other words; random sets count by their mean.

    ``answered`` are answers unsteered, under "R", "random …" (as many sets as there are), and other sets.
    ``change`` is from no ban (95%); the last row is R's accuracy less that of the random sets.
    """
    right, random = _by_problem(answered)
    tokens = answered.groupby("condition")["thinking_tokens"].mean()
    others = [str(name) for name in right if name not in {UNSTEERED, "R", *random}]
    groups = {"nothing": [UNSTEERED], "R": ["R"]} | {name: [name] for name in others}
    groups[f"random words ({len(random)} sets)"] = random
    rows: list[dict[str, Any]] = []
    for name, columns in groups.items():
        change = paired_difference(right[columns].to_numpy().mean(axis=1), right[UNSTEERED], seed=seed)
        row = {"banned": name, "accuracy": float(right[columns].to_numpy().mean())} | change.row("change")
        rows.append(row | {"thinking tokens": float(tokens.loc[columns].mean()), "n": change.n})
    apart = paired_difference(right["R"], right[random].to_numpy().mean(axis=1), seed=seed)
    return pd.DataFrame([*rows, {"banned": "R less random words"} | apart.row("change") | {"n": apart.n}])


def _by_problem(answered: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Right or wrong, a row a problem and a column a condition; and which conditions ban random words."""
    right = answered.pivot(index="problem", columns="condition", values="correct").astype(float)
    return right, [str(name) for name in right if str(name).startswith("random")]


# --- as claims record them ----------------------------------------------------------------------------------


def paired_effect(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Measured:
    """Mean of a − b over problems, with its 95% and its 90% interval."""
    wide, narrow = (paired_difference(a, b, seed=seed, level=level) for level in (0.95, 0.90))
    return Measured(wide, narrow=narrow)


def effect(study: Study, group: str, against: str = UNSTEERED, seed: int = 0) -> Measured:
    """Accuracy of a class's winner less that of another's on fresh problems."""
    return paired_effect(study.outcome(group), study.outcome(against), seed)


def length_effect(study: Study, controls: Sequence[str], seed: int = 0) -> Measured:
    """Relative change of thinking tokens under ReasonScore's winner, and the largest of the controls'."""
    lengths = {name: study.outcome(name, "thinking_tokens") for name in (UNSTEERED, CHOSEN, *controls)}
    plain = lengths[UNSTEERED].mean()
    found = paired_difference(lengths[CHOSEN], lengths[UNSTEERED], seed=seed)
    longest = max(lengths[name].mean() for name in controls) / plain - 1
    return Measured(found / plain, longest)


def screening_effect(study: Study, controls: Sequence[str], seed: int = 0) -> Measured:
    """Share of ReasonScore's screened trials that are better by half a point; the control's is the largest.

    The interval is over candidates, whose strengths go together.
    """
    better = study.screening.assign(better=study.screening["gain"] >= 0.005)
    by_candidate = better.groupby(["group", "candidate"], sort=False)["better"].mean()
    usual = max(float(by_candidate[name].mean()) for name in controls)
    return Measured(bootstrap_mean(by_candidate[CHOSEN], seed=seed), usual)


def strongest_control(study: Study, controls: Sequence[str]) -> str:
    """The control class whose winner was best in the second screening, before any fresh problem."""
    second = study.rescreening[study.rescreening["group"].isin(controls)]
    return str(best(second, 1).sort_values("correct", kind="stable")["group"].iloc[-1])


def difference_effect(studies: Sequence[Study], against: str = SLOT, seed: int = 0) -> Measured:
    """The difference in differences over all seeds."""
    rows = (variants_apart(studies, against, level, seed).iloc[-1] for level in (0.95, 0.90))
    wide, narrow = (Interval(row["estimate"], row["low"], row["high"], int(row["n"])) for row in rows)
    return Measured(wide, narrow=narrow)


def ban_effect(answered: pd.DataFrame, seed: int = 0) -> Measured:
    """What banning R costs in accuracy beyond a ban of random words."""
    right, random = _by_problem(answered)
    return paired_effect(right[random].to_numpy().mean(axis=1), right["R"], seed)


def mediation_effect(answered: pd.DataFrame, seed: int = 0) -> Measured:
    """Accuracy of the unsteered model at the steered rates less that at its own."""
    right, _ = _by_problem(answered)
    return paired_effect(right[TO_STEERED], right[OWN], seed)


# --- figures ------------------------------------------------------------------------------------------------


def draw_screening(studies: Mapping[str, Study]) -> tuple[Figure, pd.DataFrame]:
    """Gain in accuracy of every screened trial, a row a class, a variant a panel; the sign of γ as colour."""
    groups = list(dict.fromkeys(g for study in studies.values() for g in study.screening["group"]))
    fig, axes = panels(len(studies), height=0.9 + 0.32 * len(groups), sharey=True, sharex=True)
    rng = np.random.default_rng(0)
    for ax, (arm, study) in zip(axes, studies.items(), strict=True):
        ax.axvspan(-2, 0.5, color="0.9", linewidth=0)
        for place, group in enumerate(groups):
            own = study.screening[study.screening["group"] == group]
            for sign, marker, label in ((1, "o", "γ > 0"), (-1, "v", "γ < 0")):
                part, colour = own[np.sign(own["gamma"]) == sign], COLOURS[0 if sign > 0 else 1]
                at = place + rng.uniform(-0.28, 0.28, len(part))
                ax.scatter(100 * part["gain"], at, s=6, color=colour, marker=marker, alpha=0.6, label=label)
            ax.vlines(100 * own["gain"].median(), place - 0.35, place + 0.35, color="black", linewidth=1.4)
        ax.set(title=arm, xlabel="change of accuracy (points)")
        name_rows(ax, groups)
    axes[0].plot([], [], color="black", marker="|", linestyle="", label="median")
    axes[0].fill_between([], [], color="0.9", label="the paper's middle: −2 to 0.5")
    legend_below(fig)
    columns = ["group", "candidate", "feature", "gamma", "share of norm", "correct", "gain", "n"]
    frames = [study.screening[columns].assign(arm=arm) for arm, study in studies.items()]
    return fig, pd.concat(frames, ignore_index=True)


def draw_winners(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Gain in accuracy and thinking tokens of each class's winner, from each variant's ``winners_table``."""
    table = pd.concat([own.assign(arm=arm) for arm, own in tables.items()], ignore_index=True)
    shown = table[(table["domain"] == ALL) & (table["class"] != UNSTEERED)]
    height = 0.9 + max(0.32, 0.1 * len(tables)) * shown["class"].nunique()
    fig, axes = new_figure(1, 2, height=height, sharey=True)
    forest(axes[0], shown, "class", "gain", "arm", unit=100)
    forest(axes[1], shown, "class", "longer", "arm", ("longer low", "longer high"))
    axes[0].set(xlabel="change of accuracy (points)")
    axes[1].set(xlabel="change of thinking tokens")
    legend_below(fig)
    return fig, table


def draw_variants_apart(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Each variant's difference between two classes, and the difference of the variants, seed by seed.

    ``tables`` is what ReasonScore is compared with → :func:`variants_apart`.
    """
    fig, axes = panels(len(tables), height=0.8 + 0.3 * max(map(len, tables.values())), sharex=True)
    for ax, (against, table) in zip(axes, tables.items(), strict=True):
        ax.axvspan(-100 * MARGIN, 100 * MARGIN, color="0.9", linewidth=0, label="counts as none")
        names = ["all seeds" if seed == "all" else f"seed {seed}" for seed in table["seed"]]
        shown = table.assign(seed=names, what="coupled − decoupled")
        forest(ax, shown, "seed", "estimate", "what", unit=100)
        for i, (name, place) in enumerate((("coupled", -0.22), ("decoupled", 0.22)), start=1):
            at = np.arange(len(table)) + place
            ax.scatter(100 * table[name], at, s=12, label=name, **look(i, "color", "marker"))
        ax.set(title=f"ReasonScore −\n{against}", xlabel="accuracy (points)")
    legend_below(fig)
    return fig, pd.concat([t.assign(against=against) for against, t in tables.items()], ignore_index=True)


def draw_mediation(table: pd.DataFrame) -> Figure:
    """Gain of each ``run`` (rows of :func:`mediation_table`), a ``panel`` a panel."""
    fig, axes = panels(table["panel"].nunique(), height=0.7 + 0.22 * table["run"].nunique(), sharey=True)
    for ax, (panel, own) in zip(axes, table.groupby("panel", sort=False), strict=True):
        forest(ax, own, "run", "estimate", unit=100)
        ax.set(title=panel, xlabel="gain in accuracy (points)")
    return fig
