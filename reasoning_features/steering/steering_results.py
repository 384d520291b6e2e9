"""What the steering studies say: winners beside the unsteered model, classes beside each other, arms apart.

All intervals are paired: a problem is answered under every condition with the same random draws, and problems
are resampled with all their answers. Winners × families are many comparisons, and corrected for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.claims import Measured
from reasoning_features.reporting.plots import COLOURS, legend_below, look, name_rows, new_figure, panels
from reasoning_features.statistics import (
    MARGIN,
    Interval,
    bootstrap_mean,
    difference_in_differences,
    finding,
    holm,
    paired_difference,
    paired_p_value,
)
from reasoning_features.steering.steering_study import CHOSEN, SLOT, Study, best

ALL = "all"
BETTER, WITHIN, WORSE = "better by 0.5 points", "within 2 points", "worse"
PAPER_SCREENING = {BETTER: 9, WITHIN: 29, WORSE: 8}
"""The paper's 46 features on MATH-500: nine gain at least half a point, eight lose more than 2."""
_ENDS = ["estimate", "low", "high"]


def screening_counts(study: Study) -> pd.DataFrame:
    """Shares of each class's screened trials that are better, within 2 points, and worse, and their gains.

    Columns: ``class``, ``trials``, the three shares, ``mean gain``, ``largest gain``.
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


def winners_table(study: Study, seed: int = 0, families: bool = True) -> pd.DataFrame:
    """Every class's winner on fresh problems, over all of them and, with ``families``, by family.

    Returns:
        One row a class and domain (``ALL`` first): ``class``, ``condition``, ``share of norm``, ``domain``,
        ``n``, ``accuracy``, ``gain`` with ``low`` and ``high`` (95%), ``p`` (exact where there are fewer than
        200 problems) and ``p (Holm)``: over classes for all problems, over classes × families for families;
        ``thinking tokens``, ``longer`` (their change) with ``longer low`` and ``longer high``.
    """
    rows: list[dict[str, object]] = []
    by_group = {name: part.sort_values("problem") for name, part in study.evaluation.groupby("group")}
    domains = by_group[UNSTEERED]["domain"].to_numpy()
    for group in study.evaluation["group"].unique():
        for domain in (ALL, *np.unique(domains)) if families else (ALL,):
            of_domain = np.ones(len(domains), dtype=bool) if domain == ALL else domains == domain
            own, usual = by_group[group][of_domain], by_group[UNSTEERED][of_domain]
            right, tokens = own["correct"].astype(float), own["thinking_tokens"].astype(float)
            row = {"class": group, "condition": own["condition"].iloc[0]}
            row |= {"share of norm": own["share of norm"].iloc[0], "domain": domain, "n": len(own)}
            row |= {"accuracy": right.mean(), "thinking tokens": tokens.mean()}
            if group != UNSTEERED:
                plain = usual["correct"].astype(float)
                gain = paired_difference(right, plain, seed=seed)
                longer = paired_difference(tokens, usual["thinking_tokens"], seed=seed)
                row |= {"gain": gain.estimate, "low": gain.low, "high": gain.high}
                row |= {"p": paired_p_value(right, plain, seed=seed), "longer": longer.estimate}
                row |= {"longer low": longer.low, "longer high": longer.high}
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

    Columns: ``model``, ``kappa``, ``model_seed``, ``against``, ``estimate``, ``low``, ``high`` (95%), ``n``
    and ``same`` (True where both classes have one winner, so nothing can differ).
    """
    rows = []
    for study in studies:
        named = study.evaluation.groupby("group", sort=False)["condition"].first()
        for group in named.index.drop(CHOSEN):
            apart = paired_difference(study.outcome(CHOSEN), study.outcome(group), seed=seed)
            rows.append(
                {name: study.identity[name] for name in ("model", "kappa", "model_seed")}
                | {"against": group, "estimate": apart.estimate, "low": apart.low, "high": apart.high}
                | {"n": apart.n, "same": named[group] == named[CHOSEN]}
            )
    return pd.DataFrame(rows)


def pairs(studies: Sequence[Study]) -> dict[int, tuple[Study, Study]]:
    """Seed → the coupled and the decoupled study, where there are both."""
    by_arm = {(study.identity["kappa"], study.identity["model_seed"]): study for study in studies}
    seeds = sorted(seed for kappa, seed in by_arm if kappa == 1 and (0, seed) in by_arm)
    return {seed: (by_arm[1, seed], by_arm[0, seed]) for seed in seeds}


def arms_apart(
    studies: Sequence[Study], against: str = SLOT, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """The difference in differences: (ReasonScore − ``against``) in the coupled arm, less the same decoupled.

    The four winners of a seed answer the same problems, which are resampled for all four together; the seeds
    show what varies between trainings.

    Returns:
        One row a seed of the models and one for all of them together (``seed`` "all"): ``seed``, ``coupled``
        and ``decoupled`` (each arm's mean difference), ``estimate``, ``low``, ``high``, ``n``, ``finding``
        (:func:`reasoning_features.statistics.finding` on the 90% interval).

    Raises:
        UserError: no seed has both arms.
    """
    by_seed = {
        str(number): [study.outcome(group) for study in pair for group in (CHOSEN, against)]
        for number, pair in pairs(studies).items()
    }
    if not by_seed:
        raise UserError("The arms are compared seed by seed, and no seed has a study of both arms.")
    by_seed["all"] = [np.stack([values[cell] for values in by_seed.values()]) for cell in range(4)]
    rows = []
    for number, four in by_seed.items():
        one, its_control, other, others_control = four
        apart, narrow = (
            difference_in_differences(one, its_control, other, others_control, seed=seed, level=wide)
            for wide in (level, 0.90)
        )
        means = [float(np.mean(cell)) for cell in four]
        row = {"seed": number, "coupled": means[0] - means[1], "decoupled": means[2] - means[3]}
        row |= {"estimate": apart.estimate, "low": apart.low, "high": apart.high, "n": apart.n}
        rows.append(row | {"finding": finding(narrow)})
    return pd.DataFrame(rows)


def agreement(fresh: Study, stored: Study) -> dict[str, object]:
    """How far a study that was computed anew agrees with the stored one.

    ``winners``: share of classes with the same winner; ``answers``: share of fresh problems that are graded
    alike, over those classes; ``screening``: largest difference of a trial's accuracy.
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


def agreements(fresh: Sequence[Study], stored: Sequence[Study]) -> pd.DataFrame:
    """:func:`agreement` of each study with the stored one of as many trials and problems, if there is one."""
    rows = [
        agreement(ours, theirs)
        for ours in fresh
        for theirs in stored
        if ours.identity == theirs.identity
        and len(ours.screening) == len(theirs.screening)
        and len(ours.evaluation) == len(theirs.evaluation)
    ]
    return pd.DataFrame(rows)


def ban_table(answered: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Table 2: accuracy and length under a ban of R and of other words; random sets count by their mean.

    ``answered`` are answers unsteered, under "R", "random …" (as many sets as there are), and other sets.

    Returns:
        ``banned``, ``accuracy``, ``change`` (from no ban) with ``low`` and ``high`` (95%), ``thinking
        tokens`` and ``n``; last R's accuracy less that of the random sets.
    """
    right, random = _by_problem(answered)
    tokens = answered.groupby("condition")["thinking_tokens"].mean()
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
    relative = Interval(found.estimate / plain, found.low / plain, found.high / plain, found.n)
    return Measured(relative, longest)


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
    rows = (arms_apart(studies, against, level, seed).iloc[-1] for level in (0.95, 0.90))
    wide, narrow = (Interval(row["estimate"], row["low"], row["high"], int(row["n"])) for row in rows)
    return Measured(wide, narrow=narrow)


def ban_effect(answered: pd.DataFrame, seed: int = 0) -> Measured:
    """What banning R costs in accuracy beyond a ban of random words."""
    right, random = _by_problem(answered)
    return paired_effect(right[random].to_numpy().mean(axis=1), right["R"], seed)


def run_effect(answered: pd.DataFrame, condition: str, against: str, seed: int = 0) -> Measured:
    """Accuracy under one condition less that under another."""
    right, _ = _by_problem(answered)
    return paired_effect(right[condition], right[against], seed)


# --- figures ------------------------------------------------------------------------------------------------


def draw_screening(studies: Mapping[str, Study]) -> tuple[Figure, pd.DataFrame]:
    """Gain in accuracy of every screened trial, a row a class, an arm a panel; colour tells the sign of γ."""
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
    """Gain in accuracy and thinking tokens of each class's winner, all problems: arm → its winners' table."""
    every = {arm: table[table["domain"] == ALL].set_index("class") for arm, table in tables.items()}
    groups = [g for g in dict.fromkeys(g for table in every.values() for g in table.index) if g != UNSTEERED]
    height = 0.9 + max(0.32, 0.1 * len(every)) * len(groups)
    fig, axes = new_figure(1, 2, height=height, sharey=True)
    reach = min(0.15 * (len(every) - 1), 0.4)
    shift = np.linspace(-reach, reach, len(every))
    for number, (arm, table) in enumerate(every.items()):
        style, rows = look(number, "color", "marker"), table.reindex(groups)
        for ax, columns, unit in (
            (axes[0], ["gain", "low", "high"], 100),
            (axes[1], ["longer", "longer low", "longer high"], 1),
        ):
            part = rows[columns].set_axis(_ENDS, axis=1)
            _forest(ax, part, np.arange(len(groups)) + shift[number], unit, label=arm, **style)
    for ax, label in zip(axes, ("change of accuracy (points)", "change of thinking tokens"), strict=True):
        ax.set(xlabel=label)
        name_rows(ax, groups)
    legend_below(fig)
    return fig, pd.concat([table.assign(arm=arm) for arm, table in tables.items()], ignore_index=True)


def draw_arms_apart(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Each arm's difference between two classes, and the difference of the arms, seed by seed and together.

    ``tables`` is what ReasonScore is compared with → :func:`arms_apart`.
    """
    fig, axes = panels(len(tables), height=0.8 + 0.3 * max(map(len, tables.values())), sharex=True)
    for ax, (against, table) in zip(axes, tables.items(), strict=True):
        at = np.arange(len(table))
        ax.axvspan(-100 * MARGIN, 100 * MARGIN, color="0.9", linewidth=0, label="counts as none")
        _forest(ax, table, at, 100, color="black", marker="D", label="coupled − decoupled")
        for number, arm in enumerate(("coupled", "decoupled")):
            mark = look(number, "color", "marker")
            ax.scatter(100 * table[arm], at + 0.22 * (2 * number - 1), s=12, label=arm, **mark)
        ax.set(title=f"ReasonScore −\n{against}", xlabel="accuracy (points)")
        name_rows(ax, [f"seed {seed}" if seed != "all" else "all seeds" for seed in table["seed"]])
    legend_below(fig)
    return fig, pd.concat([t.assign(against=against) for against, t in tables.items()], ignore_index=True)


def draw_forest(table: pd.DataFrame, rows: str, by: str, label: str, unit: float = 1.0) -> Figure:
    """``estimate``, ``low`` and ``high``, times ``unit``, a row a name, a panel a group.

    ``rows`` and ``by`` are the columns of the names and of the panels, ``label`` is the axis' own.
    """
    names, groups = list(table[rows].unique()), list(table[by].unique())
    fig, axes = panels(len(groups), height=0.7 + 0.22 * len(names), sharey=True)
    for ax, group in zip(axes, groups, strict=True):
        own = table[table[by] == group].set_index(rows).reindex(names)
        _forest(ax, own, np.arange(len(own)), unit, color=COLOURS[0])
        ax.set(title=group, xlabel=label)
        name_rows(ax, names)
    return fig


def _forest(ax: Axes, own: pd.DataFrame, at: ArrayLike, unit: float, **style: Any) -> None:
    ax.axvline(0, color="0.4", linestyle=":", marker="", linewidth=1)
    ax.hlines(at, unit * own["low"], unit * own["high"], color=style["color"], linewidth=1.2)
    ax.scatter(unit * own["estimate"], at, s=16, zorder=3, **style)


def draw_strengths(curves: pd.DataFrame) -> Figure:
    """Accuracy and thinking tokens against strength, a line a vector, with 95% intervals of the mean."""
    fig, axes = new_figure(1, 2, height=2.4)
    for ax, (measure, rows) in zip(axes, curves.groupby("measure"), strict=True):
        for number, ((vector, how), own) in enumerate(rows.groupby(["vector", "how"], sort=False)):
            own, style = own.sort_values("share of norm"), look(number)
            at = own["share of norm"]
            ax.plot(at, own["mean"], label=f"{vector}, {how}", **style)
            ax.fill_between(at, own["low"], own["high"], color=style["color"], alpha=0.15, linewidth=0)
        ax.axvline(0, color="0.4", linestyle=":", marker="", linewidth=1)
        ax.set(xlabel="strength (share of the stream's norm)", ylabel=str(measure))
    legend_below(fig)
    return fig


def draw_spending(curve: pd.DataFrame) -> Figure:
    """Accuracy against mean thinking tokens, a line a way to spend them; steered answers are points."""
    fig, ax = new_figure(height=2.6, width=4.5)
    for number, (method, own) in enumerate(curve.groupby("method", sort=False)):
        own, style = own.sort_values("tokens"), look(number)
        ax.plot(own["tokens"], own["accuracy"], label=method, **style)
        ax.vlines(own["tokens"], own["low"], own["high"], color=style["color"], linewidth=0.8)
    ax.set(xlabel="mean thinking tokens of a problem", ylabel="accuracy")
    legend_below(fig)
    return fig
