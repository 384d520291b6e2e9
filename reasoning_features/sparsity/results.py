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
from reasoning_features.sparsity.study import (
    BY_PATTERN,
    COMPARED,
    DENSE,
    PATTERNS,
    Setting,
    Study,
)
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
# what the papers report: perplexity of Llama-2-7B, over the dense model's less 1, on WikiText-2: activations
# and magnitude by the released prototype (chat, windows of 2,048), the others by locuslab/wanda (base)
PAPER = {
    ("2:4", "ACT"): 10.23 / 6.943 - 1, ("8:16", "ACT"): 8.12 / 6.943 - 1,
    ("2:4", "magnitude"): 42.4 / 6.943 - 1, ("8:16", "magnitude"): 20.47 / 6.943 - 1,
    ("2:4", "Wanda"): 11.02 / 5.12 - 1, ("2:4", "SparseGPT"): 10.17 / 5.12 - 1,
}  # fmt: skip


def values(studies: Sequence[Study], setting: Setting, measure: str) -> Array:
    """A measure of every unit under a setting, mean over models ``[n]``; none where it was not measured."""
    return np.mean([study.values(setting, measure) for study in studies], axis=0)


def excess(studies: Sequence[Study], setting: Setting) -> Array:
    """Loss above the dense model's on each text, nats a token ``[n]``."""
    return values(studies, setting, "loss") - values(studies, DENSE, "loss")


def accuracy(studies: Sequence[Study], setting: Setting) -> Array:
    """Right answers, 0 or 1 (or their mean over models), to all items of all tasks ``[n]``."""
    return np.concatenate([values(studies, setting, name) for name in studies[0].tasks])


def settings_table(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a setting: its loss, ``excess`` with 95% over texts, and divergence from the dense model."""
    rows = []
    for setting in studies[0].settings:
        loss, apart = (values(studies, setting, name).mean() for name in ("loss", "divergence"))
        found = bootstrap_mean(excess(studies, setting)).row("excess")
        rows.append(setting.row | {"loss": loss} | found | {"divergence": apart})
    return pd.DataFrame(rows)


def tasks_table(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a setting and task, or family of problems: accuracy, and its change from the dense model with 95%
    over items.
    """
    rows = []
    for setting in studies[0].settings:
        for task in studies[0].tasks:
            if not len(right := values(studies, setting, task)):
                continue
            changed = right - values(studies, DENSE, task)
            for part, own in studies[0].parts(task).items():
                named = {"pattern": setting.row["pattern"], "by": setting.by, "task": part}
                change = bootstrap_mean(changed[own]).row("change")
                rows.append(named | {"accuracy": right[own].mean()} | change | {"items": int(own.sum())})
    return pd.DataFrame(rows)


def excess_ratio(studies: Sequence[Study], first: Setting, second: Setting) -> Interval:
    """Excess loss under one setting over that under another; texts are resampled."""
    return bootstrap_ratio(excess(studies, first), excess(studies, second))


def accuracy_ratio(studies: Sequence[Study], first: Setting, second: Setting) -> Interval:
    """Accuracy lost under one setting over that lost under another; items are resampled."""
    dense = accuracy(studies, DENSE)
    return bootstrap_ratio(dense - accuracy(studies, first), dense - accuracy(studies, second))


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
            share = bootstrap_ratio(gained, plain).row("recovered")
            rows.append(row | {"pattern": str(pattern)} | share | {"texts": len(gained)})
            p_values.append(float(ttest_1samp(gained, 0).pvalue) if gained.any() else 1.0)
    return pd.DataFrame(rows).assign(p=holm(p_values))


def least_recovered(studies: Sequence[Study], names: Sequence[str]) -> Interval:
    """The least share of ACT's excess loss that any of these ways takes away at any pattern compared: above 0
    where each of them helps. Texts are resampled, and the least is taken anew.
    """
    made, shares = ways(studies), []
    for name in names:
        for pattern, setting in made[name].items():
            plain = excess(studies, Setting(pattern))
            weights = np.vstack([np.ones(len(plain)), bootstrap_weights(len(plain), RESAMPLES, 0)])
            shares.append((weights @ (plain - excess(studies, setting))) / (weights @ plain))
    least = np.min(shares, axis=0)
    return percentile_interval(least[0], least[1:], len(plain))


def knee(studies: Sequence[Study]) -> Interval:
    """What a bit of metadata brings from 8:16 to 16:32, over what it brings from 4:8 to 8:16: excess loss
    taken away, a bit an input. Texts are resampled.
    """
    steps = []
    for coarse, fine in ((PATTERNS[1], PATTERNS[2]), (PATTERNS[2], PATTERNS[3])):
        bits = cost(fine, fine.m).metadata_bits - cost(coarse, coarse.m).metadata_bits
        steps.append((excess(studies, Setting(coarse)) - excess(studies, Setting(fine))) / bits)
    return bootstrap_ratio(steps[1], steps[0])


def features_table(studies: Sequence[Study], k: int) -> pd.DataFrame:
    """A row a model and setting under which features were read.

    Explained variance and L0 are of its autoencoder. ReasonScore's rank correlation with the dense model's is
    over features alive there; ``overlap`` is that of the ``k`` best, and ``rarer`` says how many of the dense
    model's are active half as often or less. ``effect`` and ``alignment`` are means over steered features
    (:class:`Bridge`). The row :data:`HALVES` compares two halves of the documents on the dense model,
    which differ by chance alone.
    """
    rows = []
    for study in studies:
        read = [setting for setting in study.settings if len(study.values(setting, "score"))]
        for setting in read:
            told = {name: setting.row[name] for name in ("pattern", "layers")}
            row = {"model": study.told["model"]} | told | _sums(study, setting)
            score, density = (study.values(setting, name) for name in ("score", "density"))
            dense = {name: study.values(DENSE, name) for name in ("score", "density")}
            best, live = chosen(dense["score"], k), dense["density"] > 0
            row |= _agreement(dense["score"], score, live, k)
            row["rarer"] = int((density[best] <= dense["density"][best] / 2).sum())
            for kind in dict.fromkeys(study.told["kinds"]):
                own = np.array(study.told["kinds"]) == kind
                for name in ("effect", "alignment"):
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
    """Rank correlation of ReasonScore, dense and pruned, over features alive in the dense model, mean over
    models; features are resampled. Control: two halves of the documents. None: no features were read.
    """
    if not len(studies[0].values(DENSE, "score")):
        return None
    kept = _correlation(studies, (DENSE, "score"), (setting, "score"))
    halves = _correlation(studies, (DENSE, "score, half 0"), (DENSE, "score, half 1"))
    return Measured(kept, halves.estimate)


def _correlation(
    studies: Sequence[Study], first: tuple[Setting, str], second: tuple[Setting, str]
) -> Interval:
    found = np.zeros(1 + RESAMPLES)
    for study in studies:
        live = study.values(DENSE, "density") > 0
        x, y = (rankdata(study.values(*each)[live]) for each in (first, second))
        x, y = (each - each.mean() for each in (x, y))
        weights = np.vstack([np.ones(len(x)), bootstrap_weights(len(x), RESAMPLES, 0)])
        xy, xx, yy, mx, my = (weights @ each / len(x) for each in (x * y, x * x, y * y, x, y))
        found += (xy - mx * my) / np.sqrt((xx - mx**2) * (yy - my**2)) / len(studies)
    return percentile_interval(found[0], found[1:], len(x))


def effects_kept(studies: Sequence[Study], setting: Setting) -> Interval | None:
    """Mean ``alignment`` of steered features; those of all models are resampled. None: none were steered."""
    found = np.concatenate([study.values(setting, "alignment") for study in studies])
    return bootstrap_mean(found) if len(found) else None


def steering_kept(studies: Sequence[Study], setting: Setting) -> Measured | None:
    """What steering gains in accuracy under a setting, over problems; control: on the dense model. None: no
    problems were solved.
    """
    names = [f"{how}: {COMMON[0]}" for how in ("steered", UNSTEERED)]
    gain, dense = (np.subtract(*(values(studies, at, name) for name in names)) for at in (setting, DENSE))
    return Measured(bootstrap_mean(gain), float(dense.mean())) if len(gain) else None


def beside_the_paper(studies: Sequence[Study]) -> pd.DataFrame:
    """Reported increases of perplexity over the dense model's, and ours with 95% over texts."""
    rows = []
    for (pattern, by), reported in PAPER.items():
        setting = next(own for own in studies[0].settings if (str(own.pattern), own.by) == (pattern, by))
        own = bootstrap_mean(excess(studies, setting))
        pruned = f"{setting.what}, {by}"
        ends = {"ours": own.estimate, "low": own.low, "high": own.high}
        row = {"pattern": pattern, "pruned": pruned, "reported": reported}
        rows.append(row | {name: float(np.expm1(value)) for name, value in ends.items()})
    return pd.DataFrame(rows)


def steered_table(studies: Sequence[Study]) -> pd.DataFrame:
    """A row a setting under which steered problems were solved, and a measure: what steering changes, mean
    over models, with 95% over problems.
    """
    rows = []
    for setting in studies[0].settings:
        for name in COMMON:
            plain, steered = (values(studies, setting, f"{how}: {name}") for how in (UNSTEERED, "steered"))
            if len(steered):
                found = bootstrap_mean(steered - plain).row("change")
                row = {"pattern": setting.row["pattern"], "by": setting.by, "measure": name}
                rows.append(row | {"unsteered": plain.mean(), "steered": steered.mean()} | found)
    return pd.DataFrame(rows)
