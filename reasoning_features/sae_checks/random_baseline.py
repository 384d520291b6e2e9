"""Trained dictionaries beside the random-SAE baseline: what ``make sanity`` stored of one model, compared.

What is compared are architectures: the difference is taken seed by seed, on the same documents and problems,
and its interval is over seeds.
"""

import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sae_lens import SAE

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import NAMES, architecture_label, load_autoencoder, name_of
from reasoning_features.dictionaries.evaluation import EXPLAINED
from reasoning_features.errors import MissingArtefact
from reasoning_features.files import verify_shipped
from reasoning_features.reporting.claims import Measured
from reasoning_features.reporting.plots import LINES, legend_below, look, name_rows, panels
from reasoning_features.sae_checks.interpretability import AS_IT_IS, CEILING, KS
from reasoning_features.sae_checks.synthetic import FROZEN, TRAINED
from reasoning_features.statistics import Interval, t_interval
from reasoning_features.steering.steering_results import winners_table
from reasoning_features.steering.steering_study import Study, load_studies
from reasoning_features.truth import benchmark as scorers

Value = TypeVar("Value")
ENDS = ["estimate", "low", "high"]
SHARE = f"share of effect, top {scorers.TOP[0]}"
TRAINED_NAMES, FROZEN_NAMES = ([NAMES[architecture] for architecture in kind] for kind in (TRAINED, FROZEN))
GREYS = ("0", "0.4", "0.6")  # of frozen dictionaries
LETTERS = 30  # of a metric's name in one line under its panel


def load_table(path: str) -> pd.DataFrame:
    """A shipped table, after its checksum; the path is absolute or taken from the repository's root."""
    table = paths.resolve(path)
    verify_shipped(table)
    return pd.read_parquet(table)


def dictionary_name(label: str, seed: int) -> str:
    """A dictionary's name, by its architecture's label: "BatchTopK", and "BatchTopK, seed 1" of another."""
    return name_of(label) + (f", seed {seed}" if seed else "")


def load_dictionaries(
    folder: str, model: str, d_model: int, hook_name: str, device: str = "cpu"
) -> dict[str, SAE[Any]]:
    """All autoencoders of a model in a folder, by name; MissingArtefact where there are none."""
    home = paths.resolve(folder) / "autoencoders"
    found = sorted(path for path in home.glob(f"{model}-*") if path.is_dir())
    if not found:
        raise MissingArtefact(f"There are no dictionaries of {model} in {folder}: `make sanity` trains them.")
    verify_shipped(home)
    seeds = [int(path.name.rsplit("-", 1)[1]) for path in found]
    saes = [load_autoencoder(paths.relative(path), d_model, hook_name, device) for path in found]
    named = zip(saes, seeds, strict=True)
    return _trained_first({dictionary_name(architecture_label(sae), seed): sae for sae, seed in named})


def benchmarks_by_name(folder: str, model: str) -> dict[str, scorers.Benchmark]:
    """Effects of the features of a model's dictionaries."""
    known = [b for b in scorers.load_benchmarks(f"{folder}/truth") if b.model == model]
    return _trained_first({dictionary_name(b.architecture, b.autoencoder_seed): b for b in known})


def studies_by_name(folder: str, model: str) -> dict[str, Study]:
    """Matched-budget searches of steering on a model's dictionaries."""
    known = load_studies(paths.resolve(folder) / "steering").values()
    told = [(study.identity, study) for study in known if study.identity["model"] == model]
    named = {dictionary_name(who["architecture"], who["autoencoder_seed"]): study for who, study in told}
    return _trained_first(named)


def _trained_first(named: Mapping[str, Value]) -> dict[str, Value]:
    return dict(sorted(named.items(), key=lambda item: "frozen" in item[0]))


def metrics(
    quality: pd.DataFrame, probes: pd.DataFrame, rules: pd.DataFrame, edited: pd.DataFrame
) -> pd.DataFrame:
    """The paper's measures of every dictionary (probing: of steps), floors and ceilings as dictionaries of
    their own: rows of ``metric``, ``dictionary``, ``estimate``, ``low``, ``high``.
    """
    parts = []

    def add(metric: str, rows: pd.DataFrame, *columns: str) -> None:
        parts.append(rows[list(columns)].set_axis(["dictionary", *ENDS], axis=1).assign(metric=metric))

    ends = EXPLAINED, f"{EXPLAINED} low", f"{EXPLAINED} high"
    add(EXPLAINED.removeprefix("fraction of "), quality, "autoencoder", *ends)
    moves = probes[probes["labelling"] == "move"]
    for k in KS:
        # the ceiling is the whole stream, not its k best coordinates
        shown = moves[(moves["k"] == k) & (moves["dictionary"] != CEILING) | ~moves["k"].isin(KS)]
        add(f"probing, latents: {k}", shown, "dictionary", "balanced accuracy", "low", "high")
    own = rules[rules["firing"] == AS_IT_IS]
    add("exact rules, detection", own, "dictionary", "detection", "low", "high")
    score = "disentanglement"
    one = edited[(edited["dictionary"] != CEILING) | (edited["n"] == 1)]
    add("causal editing", one, "dictionary", score, f"{score} low", f"{score} high")
    return pd.concat(parts, ignore_index=True)[["metric", "dictionary", *ENDS]]


def differences(table: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """One architecture less another in each ``metric`` of a table such as :func:`metrics` that has both.

    A row has the means over seeds (``one``, ``other``), their ``difference``, and Student's interval over
    ``seeds`` of the differences seed by seed (95%: ``low``, ``high``; 90%: ``low 90``, ``high 90``).
    """
    values = table.pivot(index="metric", columns="dictionary", values="estimate")
    sides = [[name for name in values if str(name).split(", ")[0] == each] for each in (one, other)]
    rows: list[dict[str, Any]] = []
    for metric in table["metric"].unique():
        first, second = (values.loc[metric, names].to_numpy(dtype=float) for names in sides)
        if not len(both := np.flatnonzero(np.isfinite(first - second))):
            continue
        gap = first[both] - second[both]
        wide, narrow = t_interval(gap), t_interval(gap, 0.9)
        row = {"metric": metric, "one": first[both].mean(), "other": second[both].mean()}
        row |= wide.row("difference") | {"low 90": narrow.low, "high 90": narrow.high, "seeds": wide.n}
        rows.append(row | {"compared": f"{one} less {other}"})
    return pd.DataFrame(rows)


def outcome(rows: pd.DataFrame, metric: str, control: float | None = None) -> Measured:
    """The difference in one row of :func:`differences`, as claims are judged by it."""
    (of,) = rows[rows["metric"] == metric].to_dict("records")
    wide = Interval(of["difference"], of["low"], of["high"], of["seeds"])
    return Measured(wide, control, Interval(of["difference"], of["low 90"], of["high 90"], of["seeds"]))


def scorer_shares(scored: pd.DataFrame) -> pd.DataFrame:
    """Share of all effect that each scorer's ten best features have: rows of ``model``, ``dictionary``,
    ``scorer``, ``estimate`` with ``low`` and ``high`` (95%, traces resampled), ``chance`` (of a random
    ranking), ``causal``, ``live``, ``traces``.
    """
    rows = scored[scored["metric"] == SHARE].reset_index(drop=True)
    told = zip(rows["architecture"], rows["autoencoder_seed"], strict=True)
    rows["dictionary"] = [dictionary_name(label, seed) for label, seed in told]
    return rows[["model", "dictionary", "scorer", *ENDS, "chance", "causal", "live", "traces"]]


def winners(studies: Mapping[str, Study], seed: int = 0) -> pd.DataFrame:
    """Every class's winner on fresh problems, by ``dictionary`` (:func:`winners_table`)."""
    tables = {name: winners_table(study, seed, families=False) for name, study in studies.items()}
    table = pd.concat(tables, names=["dictionary"]).reset_index("dictionary")
    return table.reset_index(drop=True).drop(columns="domain")


def styles(dictionaries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How dictionaries look by name: trained ones full and coloured, frozen ones hollow grey. A variant
    ("OrtSAE, seed 1") looks as its architecture does, but is dotted, and hollow where that one is full.
    """
    looks: dict[str, dict[str, Any]] = {}
    for name in dictionaries:
        plain = re.split(r", | \(", name)[0]
        if plain in TRAINED_NAMES:
            own = look(TRAINED_NAMES.index(plain))
        else:
            own = look(FROZEN_NAMES.index(plain)) | {"color": GREYS[FROZEN_NAMES.index(plain)]}
        hollow = (plain in FROZEN_NAMES) != (name != plain)
        looks[name] = own | {"markerfacecolor": "white" if hollow else own["color"], "label": name}
        if name != plain:
            looks[name]["linestyle"] = ":"
    return looks


def draw_metrics(table: pd.DataFrame, lines: Sequence[str] = ()) -> tuple[Figure, pd.DataFrame]:
    """A small panel a metric, with one dictionary a row and its interval; and the rows in the order drawn.

    ``table`` has rows of ``metric``, ``dictionary``, ``estimate``, ``low``, ``high`` (NaN: no interval), both
    in the order in which they come first; a dictionary may lack a metric. Those in ``lines`` (floors, chance)
    are no rows, but a line in each panel.
    """
    metrics, marks = list(pd.unique(table["metric"])), dict[str, Any]()
    dictionaries = [name for name in pd.unique(table["dictionary"]) if name not in lines]
    looks, across = styles(dictionaries), -(-len(metrics) // -(-len(metrics) // 3))
    fig, axes = panels(len(metrics), across, height=0.6 + 0.22 * len(dictionaries), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        for row in table[table["metric"] == metric].to_dict("records"):
            if (name := row["dictionary"]) in lines:
                line = LINES[1 + lines.index(name)]
                marks[name] = ax.axvline(row["estimate"], color="0.4", linestyle=line, marker="")
                continue
            place, style = dictionaries.index(name), looks[name]
            ax.plot([row["low"], row["high"]], [place] * 2, color=style["color"], marker="", linestyle="-")
            ax.plot([row["estimate"]], [place], **style | {"linestyle": ""})
        ax.set_xlabel(fill(str(metric), LETTERS))
        ax.margins(x=0.1)
        ax.locator_params(axis="x", nbins=3)
        name_rows(ax, dictionaries)
    if marks:
        legend_below(fig, marks)
    drawn = table.sort_values("metric", key=lambda names: names.map(metrics.index), kind="stable")
    return fig, drawn.reset_index(drop=True)
