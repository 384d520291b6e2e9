"""What came out of the study of unlearning: scores, the transfer between modalities, quality, and claims."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact
from reasoning_features.files import read_json
from reasoning_features.reporting.claims import Measured
from reasoning_features.statistics import Interval, bootstrap_mean, bootstrap_ratio, t_interval
from reasoning_features.unlearning.chat_study import KNOWING
from reasoning_features.unlearning.items import CAPTION, NAME, TEXT
from reasoning_features.unlearning.methods import METHODS
from reasoning_features.unlearning.metrics import (
    forget_quality_js,
    forget_quality_ks,
    likelihood_ratio_attack,
    population_attack,
    summary,
)
from reasoning_features.unlearning.persons import FRACTIONS
from reasoning_features.unlearning.study import BASE, FEWER, GOLD, PENALISED, PENALTIES, SEEDS, TASKS
from reasoning_features.unlearning.unlearn import FORGOTTEN

WRITTEN = tuple(name for name in METHODS if "released" not in name)
RELEASED = tuple(name for name in METHODS if "released" in name)
DESTROYERS = ("GA", "GD", "KL", "RMU")
TABLES = ("items", "models", "search")
PICTURES = (NAME, CAPTION)
FLOOR = 1 - np.sqrt(np.log(2))  # of Forget Quality as coded
# CLEAR's table 1: Real, Retain, Forget and Forget Quality
PAPER = {
    GOLD: (0.50, 0.51, 0.19, 1.00), BASE: (0.48, 0.51, 0.35, 0.85), "DPO": (0.46, 0.48, 0.22, 0.84),
    "LLMU": (0.47, 0.51, 0.25, 0.84), "IDK": (0.48, 0.51, 0.33, 0.84), "SCRUB": (0.49, 0.52, 0.36, 0.85),
    "retain fine-tuning": (0.49, 0.51, 0.37, 0.85), "NPO": (0.46, 0.14, 0.11, 0.76),
    "SKU": (0.40, 0.32, 0.37, 0.83), "GD": (0.29, 0.0, 0.0, 0.18), "GA": (0.27, 0.0, 0.0, 0.67),
    "KL": (0.25, 0.0, 0.0, 0.67), "RMU": (0.24, 0.0, 0.0, 0.75),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """The stored study; Base and Gold stand among the methods, and forgot nothing."""

    items: pd.DataFrame  # a row a model, group and item
    models: pd.DataFrame  # a row a model: distance, loss on problems, answers after relearning
    search: pd.DataFrame  # a row a method, rate, number of steps, group and task
    recipes: dict[str, list[float]]  # rate and steps that were chosen, by method

    @cached_property
    def _by_run(self) -> dict[Any, pd.DataFrame]:
        return dict(list(self.items.groupby(["method", "forgotten", "fraction", "penalty", "seed"])))

    def of(
        self, name: str, seed: int, what: str = "both", fraction: float = 0.1, penalty: float = 0.0
    ) -> pd.DataFrame:
        """The items of one model; Base and Gold forgot nothing."""
        return self._by_run[(name, "" if name in (BASE, GOLD) else what, fraction, penalty, seed)]

    def pooled(self, name: str, seeds: Sequence[int] = SEEDS, **how: Any) -> pd.DataFrame:
        """The items of a model's seeds, one after another."""
        return pd.concat([self.of(name, seed, **how) for seed in seeds], ignore_index=True)


def load_study(folder: Path) -> Study:
    """The stored study. MissingArtefact: it is not there."""
    if not (folder / "study.json").is_file():
        raise MissingArtefact(f"There is no {paths.relative(folder)}/study.json: `make unlearning` makes it.")
    items, models, search = (pd.read_parquet(folder / f"{name}.parquet") for name in TABLES)
    return Study(items, models, search, read_json(folder / "study.json")["recipes"])


def exact_by_person(items: pd.DataFrame, group: str, tasks: Sequence[str] = TASKS) -> pd.Series:
    """Share of answers that are exact, of each person; tasks weigh alike, and so do seeds."""
    own = items[(items["group"] == group) & items["task"].isin(tasks)]
    return own.groupby(["person", "task"])["exact"].mean().groupby("person").mean()


def selectivity(items: pd.DataFrame) -> float:
    """Share of retained persons' answers that is exact, less the forgotten persons'."""
    return float(exact_by_person(items, "retain").mean() - exact_by_person(items, "forget").mean())


def _ratio(top: Any, bottom: Any) -> Interval:
    """Σ top / Σ bottom, over persons; NaN, so undecided, where the bottom is not above 0: there is no way to
    go where Gold answers as much as Base, and nothing to retain where Base answers nothing.
    """
    if bottom.sum() > 0:
        return bootstrap_ratio(top, bottom)
    return Interval(np.nan, np.nan, np.nan, len(bottom))


def forgotten(
    study: Study, name: str, tasks: Sequence[str] = TASKS, seeds: Sequence[int] = SEEDS, **how: Any
) -> Interval:
    """How much of the way from Base to Gold a method went, in exact answers about the forgotten; 1: as Gold.
    The interval is over persons.
    """
    base, gold = (exact_by_person(study.pooled(each, seeds), "forget", tasks) for each in (BASE, GOLD))
    own = exact_by_person(study.pooled(name, seeds, **how), "forget", tasks)
    return _ratio(base - own, base - gold)


def scores_table(study: Study) -> pd.DataFrame:
    """Real, Retain and Forget of every method, as the paper writes them, and Forget Quality, beside its."""
    rows = []
    for name in (BASE, GOLD, *METHODS):
        items = study.pooled(name)
        row: dict[str, Any] = {"method": name}
        for group in ("real", "retain", "forget"):
            found = summary(items[items["group"] == group], forget=group == "forget")
            row |= found["paper"].row(group, f"{group} ") | {f"{group}, as coded": found["coded"].estimate}
            row[f"{group} exact"] = exact_by_person(items, group).mean()
        row |= quality(study, name) | {"unlearns": unlearns(study, name) if name in METHODS else None}
        told = dict(zip(("real", "retain", "forget", "quality"), PAPER.get(name, (None,) * 4), strict=True))
        rows.append(row | {f"paper's {key}": value for key, value in told.items()})
    return pd.DataFrame(rows)


def quality(study: Study, name: str) -> dict[str, float]:
    """Forget Quality, means over seeds: against Gold of the same seed, Gold's against that of the next."""
    coded, ks = [], []
    for seed in SEEDS:
        other = study.of(GOLD, (seed + 1) % len(SEEDS) if name == GOLD else seed)
        pair = [table[table["group"] == "forget"] for table in (study.of(name, seed), other)]
        coded.append(forget_quality_js(*(_captions(table) for table in pair)))
        ks.append(forget_quality_ks(*(table["truth_ratio"] for table in pair)))
    return {"quality, as coded": float(np.mean(coded)), "quality, KS p": float(np.mean(ks))}


def _captions(items: pd.DataFrame) -> pd.Series:
    """What the release's Forget Quality reads: captions alone (``mm/calculate_metrics.py``)."""
    return items.loc[items["task"] == CAPTION, "paraphrase"]


def unlearns(study: Study, name: str) -> bool:
    """Whether Forget is nearer Gold than Base in words and in pictures, and Retain is not below the lowest of
    Gold's seeds; in exact answers.
    """
    nearer = [forgotten(study, name, tasks).estimate > 0.5 for tasks in ((TEXT,), PICTURES)]
    lowest = min(exact_by_person(study.of(GOLD, seed), "retain").mean() for seed in SEEDS)
    return all(nearer) and float(exact_by_person(study.pooled(name), "retain").mean()) >= lowest


def transfer_table(study: Study, names: Sequence[str] = WRITTEN) -> pd.DataFrame:
    """What was forgotten and what is then measured: the share of the way from Base to Gold, over persons."""
    cells = [(name, what, task) for name in names for what in FORGOTTEN for task in TASKS]
    return pd.DataFrame(
        {"method": name, "forgotten": what, "measured": task}
        | forgotten(study, name, (task,), FEWER, what=what).row("share of the way")
        for name, what, task in cells
    )


def penalty_table(study: Study) -> pd.DataFrame:
    """With and without ℓ1: distance from Base in weights, exact answers; means over seeds."""
    rows = []
    for name in PENALISED:
        for penalty in (0.0, *PENALTIES):
            items = study.pooled(name, FEWER, penalty=penalty)
            shares = {group: exact_by_person(items, group).mean() for group in ("retain", "forget")}
            made = study.models.query("method == @name and forgotten == 'both' and fraction == 0.1")
            made = made[made["seed"].isin(FEWER) & (made["penalty"] == penalty)]
            rows.append({"method": name, "penalty": penalty, "distance": made["distance"].mean()} | shares)
    return pd.DataFrame(rows)


def fractions_table(study: Study) -> pd.DataFrame:
    """Forgetting one, five and ten persons, text and pictures: exact answers on the first seed."""
    rows = []
    for fraction in FRACTIONS:
        for name in (BASE, GOLD, *METHODS):
            part = 0.1 if name == BASE else fraction
            items = study.of(name, 0, fraction=part)
            items = items[(items["group"] != "forget") | (items["person"] < FRACTIONS[fraction])]
            shares = {group: exact_by_person(items, group).mean() for group in ("forget", "retain", "real")}
            rows.append({"forgotten (fraction)": fraction, "method": name} | shares)
    return pd.DataFrame(rows)


def attacks_table(study: Study) -> pd.DataFrame:
    """Membership inference on pictures, by their loss; what relearning gains, and the loss on problems."""
    rows, gold = [], [_losses(study.of(GOLD, seed), "forget") for seed in SEEDS]
    for name in (BASE, GOLD, *METHODS):
        tables = [study.of(name, seed) for seed in SEEDS]
        own = [_losses(table, "forget") for table in tables]
        unseen = [_losses(table, "unseen") for table in tables]
        row = {"method": name, "U-MIA": np.mean(list(map(population_attack, own, unseen)))}
        row["U-LIRA"] = np.nan if name == GOLD else _item_attack(own, gold)
        row |= {"relearnt": regained(study, name), "problem_loss": _mean(study, name, "problem_loss")}
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(study: Study, name: str, column: str) -> float:
    """What was measured of a model itself, where ten persons are forgotten in both; mean over seeds."""
    made = study.models.query("method == @name and fraction == 0.1 and penalty == 0")
    return float(made.loc[made["forgotten"].isin(["", "both"]), column].mean())


def _item_attack(own: Sequence[Any], gold: Sequence[Any]) -> float:
    """U-LIRA; NaN where losses do not vary between seeds, as where all likelihoods are 0 to a float."""
    try:
        return likelihood_ratio_attack(own, gold)
    except ValueError:
        return np.nan


def _losses(items: pd.DataFrame, group: str) -> Any:
    """Nats a token of the answers about pictures ``[n]``."""
    own = items[(items["group"] == group) & items["task"].isin(PICTURES)]
    return -np.log(own["probability"].clip(lower=np.finfo(float).tiny).to_numpy())


def joint_gain(study: Study) -> Interval:
    """Selectivity of forgetting both less the better modality alone, mean over methods as written."""
    gains = []
    for name in WRITTEN:
        both, *alone = (
            selectivity(study.pooled(name, FEWER, what=what)) for what in ("both", "text", "pictures")
        )
        gains.append(both - max(alone))
    return bootstrap_mean(gains)


def retained(study: Study, names: Sequence[str]) -> Interval:
    """Exact answers about retained persons over Base's, mean over methods; over persons."""
    base = exact_by_person(study.pooled(BASE), "retain")
    own = [exact_by_person(study.pooled(name), "retain") for name in names]
    return _ratio(np.mean(own, axis=0), base)


def released_forgets(study: Study) -> Interval:
    """Share of the way from Base to Gold under IDK, LLMU and DPO as released, mean over the three."""
    base, gold = (exact_by_person(study.pooled(each), "forget") for each in (BASE, GOLD))
    names = [name for name in RELEASED if not name.startswith("NPO")]
    own = np.mean([exact_by_person(study.pooled(name), "forget") for name in names], axis=0)
    return _ratio(base - own, base - gold)


def penalty_gain(study: Study) -> Interval:
    """Selectivity with the λ that is best on the first seed less without it, on the second; over methods."""
    chooses, reports = FEWER
    gains = []
    for name in PENALISED:
        best = max(PENALTIES, key=lambda each: selectivity(study.of(name, chooses, penalty=each)))
        pair = study.of(name, reports, penalty=best), study.of(name, reports)
        gains.append(selectivity(pair[0]) - selectivity(pair[1]))
    return bootstrap_mean(gains)


def quality_gap(study: Study) -> Interval:
    """Forget Quality as coded of Gold against another Gold less that of Base, over its range; over seeds."""
    gaps = []
    for seed in SEEDS:
        base, gold, other = (
            _captions(table[table["group"] == "forget"])
            for table in (study.of(BASE, seed), study.of(GOLD, seed), study.of(GOLD, (seed + 1) % len(SEEDS)))
        )
        gaps.append((forget_quality_js(other, gold) - forget_quality_js(base, gold)) / (1 - FLOOR))
    return t_interval(gaps)


def relearning(study: Study) -> Interval | None:
    """Exact answers about the forgotten that relearning gains, less what it gains in Gold, of methods that
    went more than half of the way; None where fewer than two did.
    """
    names = [name for name in WRITTEN if forgotten(study, name).estimate > 0.5]
    gains = np.array([regained(study, name) for name in names])
    return bootstrap_mean(gains - regained(study, GOLD)) if len(names) > 1 else None


def regained(study: Study, name: str) -> float:
    """Exact answers about the forgotten after relearning less those before, mean over seeds."""
    before = exact_by_person(study.pooled(name), "forget").mean()
    return _mean(study, name, "relearnt") - float(before)


def number_unlearning(study: Study) -> Measured:
    """How many of the methods as written unlearn."""
    return Measured(float(sum(unlearns(study, name) for name in WRITTEN)), n=len(WRITTEN))


def chat_table(folder: Path) -> pd.DataFrame:
    """The study of a chat model that :func:`chat_study.store` left: a row a model.

    ``forget``, ``retain`` and so on are likelihoods of a group's answers (95% over persons), ``share of the
    way`` how far a method went from Base's likelihood of the forgotten to Gold's, and ``quality, KS p`` is
    TOFU's Forget Quality against Gold (Gold's own is against its second seed). A method ``unlearns`` where
    that share is above 1/2 and retained answers are not less likely than in the lower of the Golds.
    """
    items = pd.read_parquet(folder / "items.parquet")
    means = items.groupby(["model", "group", "person", "task"], sort=False)["probability"].mean()
    by_person = means.groupby(level=["model", "group", "person"], sort=False).mean()
    ratios = {name: own["truth_ratio"] for name, own in items[items["group"] == "forget"].groupby("model")}
    base, gold, other = KNOWING
    way, rows = by_person[base, "forget"] - by_person[gold, "forget"], []
    lowest = min(by_person[name, "retain"].mean() for name in (gold, other))
    for name in pd.unique(items["model"]):
        row: dict[str, Any] = {"model": name}
        for group in pd.unique(items["group"]):
            row |= bootstrap_mean(by_person[name, group]).row(group, f"{group} ")
            own = items[(items["model"] == name) & (items["group"] == group)]
            row[f"{group}, ROUGE"] = own["rouge"].mean()
        share = _ratio(by_person[base, "forget"] - by_person[name, "forget"], way)
        row |= share.row("share of the way", "share ")
        row["quality, KS p"] = forget_quality_ks(ratios[name], ratios[other if name == gold else gold])
        row["distance"] = items.loc[items["model"] == name, "distance"].iloc[0]
        enough = bool(share.estimate > 0.5 and row["retain"] >= lowest)
        rows.append(row | {"unlearns": None if name in KNOWING else enough})
    return pd.DataFrame(rows).dropna(axis=1, how="all")
