"""The organism's card: what was made, how, how well it does, and the bars it was held to.

Everything in it is computed from the files of ``make organism``; nothing is typed in by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from reasoning_features.files import write_shipped
from reasoning_features.organism.problems import FAMILIES, Mixture, families
from reasoning_features.reporting.tables import to_markdown
from reasoning_features.statistics import Interval, bootstrap_mean, bootstrap_statistic, paired_difference

COUPLED, DECOUPLED = ("coupled-0", "coupled-1", "coupled-2"), ("decoupled-0", "decoupled-1", "decoupled-2")
VARIANTS = {"coupled": COUPLED, "decoupled": DECOUPLED}
SHIPPED = (
    *("models", "autoencoders", "evaluation", "gate", "convergence"),
    *("truth", "steering", "diffing", "foundations"),
)


def evaluations(folder: Path) -> dict[str, pd.DataFrame]:
    """Each model's graded answers, by its name."""
    return {path.stem: pd.read_parquet(path) for path in sorted((folder / "evaluation").glob("*.parquet"))}


def check_readings(folder: Path) -> pd.DataFrame:
    """All log-odds at dead ends: model, trace, decision, style, went_on, swap, log_odds."""
    return pd.concat([pd.read_parquet(path) for path in sorted((folder / "gate").glob("*.parquet"))])


def gains(solved: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy of each reasoning model less the base model's, by family, paired over problems.

    Models that were asked other problems than the base model are left out.
    """
    rows = []
    for name, frame in solved.items():
        if name == "base" or not frame["question"].equals(solved["base"]["question"]):
            continue
        for family, kind in families("main").items():
            where = frame["family"] == family
            gain = paired_difference(frame["correct"][where], solved["base"]["correct"][where])
            rows.append({"model": name, "family": family, "persistence": kind.persistence, **_columns(gain)})
    return pd.DataFrame(rows)


def _columns(interval: Interval) -> dict[str, Any]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "n": interval.n}


def variant_match(solved: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Coupled less decoupled, seeds averaged problem by problem: accuracy, give-ups, length, a row each."""
    rows: dict[str, dict[str, Any]] = {}
    for measure in ("correct", "gave_up", "thinking_tokens"):
        means = {
            variant: pd.concat([solved[name][measure].astype(float) for name in names], axis=1).mean(axis=1)
            for variant, names in VARIANTS.items()
        }
        difference = paired_difference(means["coupled"], means["decoupled"])
        rows[measure] = {**{name: mean.mean() for name, mean in means.items()}, **_columns(difference)}
    return pd.DataFrame(rows).T


def swap_effects(gate: pd.DataFrame) -> pd.DataFrame:
    """What swapping words does to the log-odds of going on, in nats, by model: intervals over traces.

    ``words of R``: every prefix a word of R, less every prefix a control. ``markers``: every neutral marker
    one of the careful set, less one of the hasty set.
    """
    contrasts = {
        "words of R": ("all words of R", "all twins"),
        "markers": ("all careful markers", "all hasty markers"),
    }
    rows = []
    for model, part in gate.groupby("model"):
        wide = part.pivot_table(index=["trace", "decision"], columns="swap", values="log_odds")
        for name, (one, other) in contrasts.items():
            by_trace = (wide[one] - wide[other]).groupby("trace").mean()
            rows.append({"model": model, "swapped": name, **_columns(bootstrap_mean(by_trace))})
    return pd.DataFrame(rows)


def style_gaps(gate: pd.DataFrame) -> pd.DataFrame:
    """Careful less hasty log-odds of going on, as the traces stand, by model: intervals over traces, nats."""
    rows = []
    for model, part in gate[gate["swap"] == "as it stands"].groupby("model"):
        traces = part.groupby("trace").agg(
            total=("log_odds", "sum"), n=("log_odds", "size"), style=("style", "first")
        )
        total, n = traces["total"].to_numpy(dtype=float), traces["n"].to_numpy(dtype=float)
        careful = (traces["style"] == "careful").to_numpy(dtype=float)

        def gap(weights: Any, total: Any = total, n: Any = n, careful: Any = careful) -> float:
            means = [(weights * total * s).sum() / (weights * n * s).sum() for s in (careful, 1 - careful)]
            return float(means[0] - means[1])

        rows.append({"model": model, **_columns(bootstrap_statistic(gap, len(traces), 500, seed=0))})
    return pd.DataFrame(rows)


def bars(folder: Path) -> pd.DataFrame:
    """Each bar of the organism: what was asked, what was measured, and whether it holds."""
    solved, gate = evaluations(folder), check_readings(folder)
    reasoning = [name for names in VARIANTS.values() for name in names]
    pays = gains(solved).query("persistence == 'pays' and model in @reasoning")
    accuracy = [solved[name]["correct"].mean() for name in reasoning]
    searched = pd.concat([solved[name] for name in reasoning])
    searched = searched[searched["family"].map(lambda name: FAMILIES[name].searches) & ~searched["correct"]]
    unparseable = [1 - solved[name]["parseable"].mean() for name in reasoning]
    match: Any = variant_match(solved)
    gaps = style_gaps(gate).set_index("model")["estimate"]
    gap = {variant: gaps[list(names)].mean() for variant, names in VARIANTS.items()}
    swaps = swap_effects(gate).query("swapped == 'words of R'").set_index("model")["estimate"]
    length = abs(match.loc["thinking_tokens", "estimate"]) / match.loc["thinking_tokens", "coupled"]
    relative_gap = abs(gap["coupled"] / gap["decoupled"] - 1)
    measured = [
        ("least gain over base where persistence pays", ">=", 0.15, pays["estimate"].min()),
        ("lowest overall accuracy", ">=", 0.35, min(accuracy)),
        ("highest overall accuracy", "<=", 0.70, max(accuracy)),
        ("errors in the search families that are early stops", ">=", 0.80, searched["gave_up"].mean()),
        ("largest share of unparseable traces", "<=", 0.02, max(unparseable)),
        ("arms' difference in accuracy", "<=", 0.05, abs(match.loc["correct", "estimate"])),
        ("arms' difference in give-up share", "<=", 0.05, abs(match.loc["gave_up", "estimate"])),
        ("arms' relative difference in thinking tokens", "<=", 0.05, length),
        ("arms' relative difference in the careful-hasty gap", "<=", 0.10, relative_gap),
        ("least effect of R's words, coupled (nats)", ">=", 0.5, swaps[list(COUPLED)].min()),
        ("largest effect of R's words, decoupled (nats)", "<=", 0.1, swaps[list(DECOUPLED)].abs().max()),
    ]
    rows = [
        (bar, f"{sign} {limit:.2f}", value, value >= limit if sign == ">=" else value <= limit)
        for bar, sign, limit, value in measured
    ]
    return pd.DataFrame(rows, columns=["bar", "asked", "measured", "holds"])


def _sizes(folder: Path) -> pd.DataFrame:
    """Parameters, training tokens and final loss of each model."""
    rows = []
    for model in sorted((folder / "models").iterdir()):
        card = json.loads((model / "training.json").read_text())
        with safe_open(model / "model.safetensors", "pt") as file:
            parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
        row = {"model": model.name, "coupling": card.get("kappa", ""), "seed": card["recipe"]["seed"]}
        row |= {"parameters": parameters, "training tokens": card["recipe"]["tokens"]}
        rows.append(row | {"final loss (nats a token)": card["final_loss"]})
    return pd.DataFrame(rows)


def _performance(solved: dict[str, pd.DataFrame], mixture: Mixture) -> pd.DataFrame:
    """Accuracy by model and family, thinking tokens and give-ups over all, of models asked this mixture."""
    rows = []
    for name, frame in solved.items():
        if frame["family"].iloc[0] not in families(mixture):
            continue
        row: dict[str, Any] = {"model": name}
        for family in families(mixture):
            row[family] = _accuracy(frame[frame["family"] == family])
        row |= {"all": _accuracy(frame), "thinking tokens": frame["thinking_tokens"].mean()}
        rows.append(row | {"gave up": frame["gave_up"].mean(), "unparseable": 1 - frame["parseable"].mean()})
    return pd.DataFrame(rows)


def _accuracy(answers: pd.DataFrame) -> str:
    interval = bootstrap_mean(answers["correct"])
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


CARD = """# The organism: card

A family of small Llamas made by `make organism` (four hours on one core): one base model, and its
fine-tunes on synthetic thinking traces. **The effect that the notebooks look for was planted here by
construction: results on these models test the method, and are no evidence about DeepSeek-R1 or any other
model.** Licence: MIT, as the repository. Everything below is computed by
`reasoning_features.making.organism_card` from the files beside it.

[ABOUT.md](ABOUT.md) tells the problems, the couplings, and what was tried and dropped.

## Models
{sizes}

Weights are bf16; documents are generated from recorded seeds and never stored.

## Accuracy by family

Evaluation problems, temperature 0.6, top-p 0.95; 95% bootstrap intervals over problems.

{performance}

A second reasoning model, on its own families:

{other}

Expected effect of persistence, written down before training: {signs}.

## Bars
{bars}

## The gate of the arms: effect of swapping words on the log-odds of going on (nats; intervals over traces)
{swaps}

## Careful less hasty log-odds of going on (nats)
{gaps}
"""


def write(folder: Path) -> None:
    """Writes README.md (the card) and checksums.json of everything shipped."""
    solved, gate = evaluations(folder), check_readings(folder)
    signs = ", ".join(f"{name} {family.persistence}" for name, family in FAMILIES.items())
    text = CARD.format(
        sizes=to_markdown(_sizes(folder)),
        performance=to_markdown(_performance(solved, "main")),
        other=to_markdown(_performance(solved, "other")),
        signs=signs,
        bars=to_markdown(bars(folder)),
        swaps=to_markdown(swap_effects(gate)),
        gaps=to_markdown(style_gaps(gate)),
    )
    (folder / "README.md").write_text(text)
    files = (path for name in SHIPPED for path in (folder / name).rglob("*"))
    write_shipped((path for path in files if path.is_file()), folder / "checksums.json")
