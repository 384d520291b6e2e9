"""What came out of studies of pruning: settings compared on the same texts and items, means over models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, ttest_1samp

from reasoning_features.dictionaries.evaluation import EXPLAINED
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.claims import Measured
from reasoning_features.scoring.selection import chosen, overlap
from reasoning_features.sparsity.patterns import CRITERIA, Pattern, cost
from reasoning_features.sparsity.pruning import (
    BY_PATTERN,
    COMPARED,
    DENSE,
    PATTERNS,
    STEERED,
    WEIGHTS,
    Setting,
)
from reasoning_features.sparsity.study import Study
from reasoning_features.statistics import (
    RESAMPLES,
    Array,
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_weights,
    holm,
    percentile_interval,
)
from reasoning_features.steering.questions import COMMON

HALVES = "dense, other half"  # two halves of the documents, compared
OVER_FEATURES = 400  # resamples of features, of which there may be many
PROTOTYPE = "Llama-2-7B-chat, released prototype, windows of 2,048"
BASE = "Llama-2-7B, locuslab/wanda"
# pattern, what is pruned → perplexity on WikiText-2, the dense model's, and whose
PAPER = {
    ("2:4", "ACT"): (10.23, 6.943, PROTOTYPE), ("8:16", "ACT"): (8.12, 6.943, PROTOTYPE),
    ("2:4", "magnitude"): (42.4, 6.943, PROTOTYPE), ("8:16", "magnitude"): (20.47, 6.943, PROTOTYPE),
    ("2:4", "Wanda"): (11.02, 5.12, BASE), ("2:4", "SparseGPT"): (10.17, 5.12, BASE),
}  # fmt: skip


def values(studies: Sequence[Study], setting: Setting, measure: str) -> Array:
    """A measure of every unit under a setting, mean over models ``[n]``; none where it was not measured."""
    return np.mean([study.values(setting, measure) for study in studies], axis=0)


def excess(studies: Sequence[Study], setting: Setting) -> Array:
    """Loss above the dense model's on each text, nats a token ``[n]``."""
    return values(studies, setting, "loss") - values(studies, DENSE, "loss")


def settings_table(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a setting: its loss, ``excess`` with 95% over texts, divergence from the dense model, and where
    there are several models the excess of each.
    """
    rows = []
    for setting in studies[0].settings:
        loss, apart = (values(studies, setting, name).mean() for name in ("loss", "divergence"))
        found = bootstrap_mean(excess(studies, setting)).row("excess")
        row = setting.row | {"loss": loss} | found | {"divergence": apart}
        each = {f"excess, {study.told['model']}": excess([study], setting).mean() for study in studies}
        rows.append(row | (each if len(studies) > 1 else {}))
    return pd.DataFrame(rows)


ALL_ITEMS = "all items"


def tasks_table(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a setting and task, or family of problems, and one of all items: accuracy, and its change from
    the dense model; of weights ``gain``, what activations at the same pattern have right above them. 95%
    over items.
    """
    rows = []
    parts = {(task, part): own for task in studies[0].tasks for part, own in studies[0].parts(task).items()}
    for setting in studies[0].settings:
        for (task, part), own in (parts | {(ALL_ITEMS, ALL_ITEMS): slice(None)}).items():
            asked = studies[0].tasks if task == ALL_ITEMS else [task]
            right, dense, other = (
                np.concatenate([values(studies, each, name) for name in asked])
                for each in (setting, DENSE, Setting(setting.pattern))
            )
            if len(right):
                row: dict[str, Any] = {"pattern": setting.row["pattern"], "by": setting.by, "task": part}
                row |= {"accuracy": right[own].mean(), "items": len(right[own])}
                row |= bootstrap_mean((right - dense)[own]).row("change")
                above = bootstrap_mean((other - right)[own]).row("gain", "gain's ")
                rows.append(row | (above if setting.what == WEIGHTS else {}))
    columns = [
        "pattern",
        "by",
        "task",
        "accuracy",
        "change",
        "low",
        "high",
        "gain",
        "gain's low",
        "gain's high",
    ]
    return pd.DataFrame(rows, columns=[*columns, "items"])


def ratio(top: Array, bottom: Array) -> Interval:
    """Σ top / Σ bottom, units resampled; without ends, so undecided, where the bottom is not surely above 0:
    what is no cost cannot be exceeded a number of times.
    """
    if bootstrap_mean(bottom).low > 0:
        return bootstrap_ratio(top, bottom)
    shown = top.sum() / bottom.sum() if bottom.any() else np.nan
    return Interval(float(shown), np.nan, np.nan, len(top))


def excess_ratio(studies: Sequence[Study], first: Setting, second: Setting) -> Interval:
    """Excess loss under one setting over that under another, over texts."""
    return ratio(excess(studies, first), excess(studies, second))


def accuracy_ratio(studies: Sequence[Study], first: Setting, second: Setting) -> Interval | None:
    """Accuracy lost under one setting over that lost under another, over all tasks' items. None: no tasks."""
    if not (tasks := studies[0].tasks):
        return None
    dense, *others = (
        np.concatenate([values(studies, setting, name) for name in tasks])
        for setting in (DENSE, first, second)
    )
    return ratio(*(dense - other for other in others))


def knee(studies: Sequence[Study]) -> Interval:
    """What a bit of metadata (log2 C(M, N) / M an input) brings from 8:16 to 16:32, over what it brings from
    4:8 to 8:16: excess loss taken away, over texts.
    """
    steps = []
    for coarse, fine in ((PATTERNS[1], PATTERNS[2]), (PATTERNS[2], PATTERNS[3])):
        bits = cost(fine, fine.m).metadata_bits - cost(coarse, coarse.m).metadata_bits
        steps.append((excess(studies, Setting(coarse)) - excess(studies, Setting(fine))) / bits)
    return ratio(steps[1], steps[0])


def ways(studies: Sequence[Study]) -> dict[str, dict[Pattern, Setting]]:
    """Criteria and corrections that a study compares with plain ACT, each at both patterns."""
    made: dict[str, dict[Pattern, Setting]] = {}
    for setting in studies[0].settings:
        plain = setting.by in CRITERIA and setting.which == "all" and setting.pattern in COMPARED
        if plain and setting not in BY_PATTERN and isinstance(setting.pattern, Pattern):
            name = setting.by if setting.correction == "none" else setting.correction
            made.setdefault(name, {})[setting.pattern] = setting
    return made


def ways_table(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a way and pattern: the share of ACT's excess loss that it takes away (``recovered``, 95% over
    texts), and p of a paired t-test of no change, by Holm over all rows.
    """
    rows, p_values = [], []
    for name, at in ways(studies).items():
        for pattern, setting in at.items():
            plain = excess(studies, Setting(pattern))
            gained = plain - excess(studies, setting)
            row = {"way": name, "kind": "criterion" if name in CRITERIA else "correction"}
            share = ratio(gained, plain).row("recovered")
            rows.append(row | {"pattern": str(pattern)} | share | {"texts": len(gained)})
            p_values.append(float(ttest_1samp(gained, 0).pvalue) if gained.any() else 1.0)
    return pd.DataFrame(rows).assign(p=holm(p_values))


def least_recovered(studies: Sequence[Study], names: Sequence[str]) -> Interval | None:
    """The least share of ACT's excess loss that any of these ways takes away, at both patterns.

    The lower end is the least of all 95% intervals' (each must hold by itself), the upper the least of all
    upper ends at a level corrected for their number (that one of many fails must not be chance). None: a way
    was not measured.
    """
    made, found = ways(studies), []
    if not set(names) <= set(made):
        return None
    arms = [(pattern, setting) for name in names for pattern, setting in made[name].items()]
    for pattern, setting in arms:
        plain = excess(studies, Setting(pattern))
        weights = bootstrap_weights(len(plain), RESAMPLES, 0)
        resampled = (weights @ (plain - excess(studies, setting))) / (weights @ plain)
        share = 1 - excess(studies, setting).sum() / plain.sum()
        found.append((share, *np.quantile(resampled, [0.025, 1 - 0.025 / len(arms)])))
    share, low, high = np.min(found, axis=0).tolist()
    return Interval(share, low, high, len(plain))


def features_table(studies: Sequence[Study], k: int) -> pd.DataFrame:
    """A row a model and setting under which features were read.

    Explained variance and L0 are of its autoencoder. ReasonScore's rank correlation with the dense model's is
    over features alive there; ``overlap`` is that of the ``k`` best, and ``rarer`` says how many of the dense
    model's are active half as often or less. ``effect``, ``alignment`` and ``others`` are means over steered
    features (:class:`Bridge`). The row :data:`HALVES` compares two halves of the documents on the dense
    model, which differ by chance alone.
    """
    rows: list[dict[str, Any]] = []
    for study in studies:
        read = [setting for setting in study.settings if len(study.values(setting, "score"))]
        for setting in read:
            told = {name: setting.row[name] for name in ("pattern", "layers")}
            row = {"model": study.told["model"]} | told | _sums(study, setting)
            score, density = (study.values(setting, name) for name in ("score", "density"))
            usual, often = (study.values(DENSE, name) for name in ("score", "density"))
            row |= _agreement(usual, score, often > 0, k)
            row["rarer"] = int((density <= often / 2)[chosen(usual, k)].sum())
            for kind in dict.fromkeys(study.told["kinds"]):
                own = np.array(study.told["kinds"]) == kind
                for name in ("effect", "alignment", "others"):
                    row[f"{name}, {kind}"] = study.values(setting, name)[own].mean()
            rows.append(row)
        if read:
            first, second = (study.values(DENSE, f"score, half {half}") for half in (0, 1))
            row = {"model": study.told["model"], "pattern": HALVES, "layers": "all"}
            rows.append(row | _agreement(first, second, study.values(DENSE, "density") > 0, k))
    return pd.DataFrame(rows)


def _sums(study: Study, setting: Setting) -> dict[str, float]:
    error, deviation, active, tokens = (
        study.values(setting, name).sum() for name in ("error", "deviation", "active", "tokens")
    )
    return {EXPLAINED: 1 - error / deviation, "L0": active / tokens}


def _agreement(first: Array, second: Array, live: Any, k: int) -> dict[str, float]:
    pair = (rankdata(scores[live]) for scores in (first, second))
    shared = float(overlap(chosen(first, k), chosen(second, k)))
    return {"rank correlation": float(np.corrcoef(*pair)[0, 1]), "overlap": shared}


def features_kept(studies: Sequence[Study], setting: Setting) -> Measured | None:
    """Rank correlation of ReasonScore between one half of the documents, dense, and the other half, pruned,
    less that between the halves on the dense model (which is the control); mean over models, over features
    alive in the dense model. Features are resampled; they share documents. None: no features were read.
    """
    if not len(studies[0].values(DENSE, "score")):
        return None
    lost, dense, n = np.zeros(1 + OVER_FEATURES), 0.0, 0
    for study in studies:
        live = study.values(DENSE, "density") > 0
        halves = [f"score, half {half}" for half in (0, 1)]
        usual, pruned = (
            [rankdata(study.values(at, half)[live]) for half in halves] for at in (DENSE, setting)
        )
        weights = bootstrap_weights(int(live.sum()), OVER_FEATURES, 0)
        weights = np.vstack([np.ones(weights.shape[1]), weights])
        itself = _weighted_correlation(weights, usual[0], usual[1])
        across = [_weighted_correlation(weights, usual[i], pruned[1 - i]) for i in (0, 1)]
        lost += (np.mean(across, axis=0) - itself) / len(studies)
        dense, n = dense + itself[0] / len(studies), n + weights.shape[1]
    return Measured(percentile_interval(lost[0], lost[1:], n), dense)


def _weighted_correlation(weights: Array, x: Array, y: Array) -> Array:
    """Correlation of x and y ``[n]`` under each row of weights ``[b, n]`` → ``[b]``."""
    xy, xx, yy, mx, my = (weights @ each / len(x) for each in (x * y, x * x, y * y, x, y))
    return (xy - mx * my) / np.sqrt((xx - mx**2) * (yy - my**2))


def effects_kept(studies: Sequence[Study], setting: Setting) -> Measured | None:
    """Mean ``alignment`` of steered features; those of all models are resampled. Control: ``others``. None:
    none were steered.
    """
    own, others = (
        np.concatenate([study.values(setting, name) for study in studies]) for name in ("alignment", "others")
    )
    return Measured(bootstrap_mean(own), float(others.mean())) if len(own) else None


def steering_gain(studies: Sequence[Study], setting: Setting, share: float) -> Array:
    """What steering changes in each problem's accuracy, mean over models ``[n]``; none where not measured."""
    steered, plain = (
        values(studies, setting, f"{how}: {COMMON[0]}") for how in (f"steered at {share:g}", UNSTEERED)
    )
    return steered - plain if len(steered) else steered


def steering_kept(studies: Sequence[Study], setting: Setting) -> Measured | None:
    """What the stronger steering gains in accuracy under a setting, over problems; control: on the dense
    model. None: no problems were steered, or it does not surely help there.
    """
    gain, dense = (steering_gain(studies, at, STEERED[-1]) for at in (setting, DENSE))
    if not len(gain) or bootstrap_mean(dense).low <= 0:
        return None
    return Measured(bootstrap_mean(gain), float(dense.mean()), bootstrap_mean(gain, level=0.9))


def steered_table(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a model, setting and strength: accuracy and thinking tokens, unsteered and steered, and the gain
    in accuracy with 95% over problems. No rows where problems were not steered.
    """
    rows = []
    for study in studies:
        for setting in study.settings:
            for share in STEERED:
                if not len(gain := steering_gain([study], setting, share)):
                    continue
                row = {"model": study.told["model"], "pattern": setting.row["pattern"], "by": setting.by}
                row |= {"strength": share}
                for measure in COMMON:
                    for how, name in ((UNSTEERED, UNSTEERED), (f"steered at {share:g}", "steered")):
                        row[f"{measure}, {name}"] = study.values(setting, f"{how}: {measure}").mean()
                rows.append(row | bootstrap_mean(gain).row("gain"))
    asked = ["model", "pattern", "by", "strength", "gain", "low", "high"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=asked)


def beside_the_paper(studies: Sequence[Study]) -> pd.DataFrame:
    """Reported increases of perplexity over the dense model's, and ours with 95% over texts."""
    rows = []
    for (pattern, by), (pruned, dense, whose) in PAPER.items():
        setting = next(own for own in studies[0].settings if (str(own.pattern), own.by) == (pattern, by))
        own = bootstrap_mean(excess(studies, setting))
        ends = {"ours": own.estimate, "low": own.low, "high": own.high}
        row = {"pattern": pattern, "pruned": f"{setting.what}, {by}", "reported": pruned / dense - 1}
        rows.append(row | {name: float(np.expm1(value)) for name, value in ends.items()} | {"of": whose})
    return pd.DataFrame(rows)
