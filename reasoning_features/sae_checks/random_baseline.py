"""Trained dictionaries beside the random-SAE baseline: what ``make sanity`` stored of one model, compared.

Differences are of two arrays ``[1 + resamples]``, a measure of all units and of each resample of them; they
are paired where both dictionaries are measured on the same units.
"""

import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sae_lens import SAE

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import NAMES, architecture_label, load_autoencoder, name_of
from reasoning_features.dictionaries.evaluation import EXPLAINED, reconstruct
from reasoning_features.errors import MissingArtefact
from reasoning_features.files import verify_shipped
from reasoning_features.reporting.claims import Measured
from reasoning_features.reporting.plots import LINES, legend_below, look, name_rows, panels
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.residual_stream.probes import weights_by_document
from reasoning_features.sae_checks.interpretability import AS_IT_IS, CEILING, KS
from reasoning_features.sae_checks.synthetic import FROZEN, TRAINED
from reasoning_features.statistics import Interval
from reasoning_features.steering.steering_results import winners_table
from reasoning_features.steering.steering_study import Study, load_studies
from reasoning_features.truth import benchmark as scorers

Array = NDArray[np.float64]
Value = TypeVar("Value")
ENDS = ["estimate", "low", "high"]
SHARE = f"share of effect, top {scorers.TOP[0]}"
TRAINED_NAMES, FROZEN_NAMES = ([NAMES[architecture] for architecture in kind] for kind in (TRAINED, FROZEN))
GREYS = ("0", "0.4", "0.6")  # of frozen dictionaries
LETTERS = 30  # of a metric's name in one line under its panel


# --- what was trained and measured of one model, by the dictionary's name, trained ones first ---------------


def load_table(path: str) -> pd.DataFrame:
    """A shipped table, after its checksum; the path is absolute or taken from the repository's root."""
    table = paths.resolve(path)
    verify_shipped(table)
    return pd.read_parquet(table)


def load_dictionaries(
    folder: str, model: str, d_model: int, hook_name: str, device: str = "cpu", seed: int = 0
) -> dict[str, SAE[Any]]:
    """The autoencoders of a model and a seed in a folder; MissingArtefact where there are none."""
    home = paths.resolve(folder) / "autoencoders"
    found = sorted(path for path in home.glob(f"{model}-*-{seed}") if path.is_dir())
    if not found:
        raise MissingArtefact(f"There are no dictionaries of {model} in {folder}: `make sanity` trains them.")
    verify_shipped(home)
    saes = (load_autoencoder(paths.relative(path), d_model, hook_name, device) for path in found)
    return _trained_first({name_of(architecture_label(sae)): sae for sae in saes})


def benchmarks_by_name(folder: str, model: str) -> dict[str, scorers.Benchmark]:
    """Effects of the features of a model's dictionaries."""
    found = sorted(scorers.load_benchmarks(f"{folder}/truth"), key=lambda benchmark: benchmark.architecture)
    return _trained_first({name_of(b.architecture): b for b in found if b.model == model})


def studies_by_name(folder: str, model: str) -> dict[str, Study]:
    """Matched-budget searches of steering on a model's dictionaries."""
    found = load_studies(paths.resolve(folder) / "steering").values()
    named = {name_of(s.identity["architecture"]): s for s in found if s.identity["model"] == model}
    return _trained_first(named)


def _trained_first(named: Mapping[str, Value]) -> dict[str, Value]:
    return dict(sorted(named.items(), key=lambda item: "frozen" in item[0]))


# --- every measure, with floors and ceilings ----------------------------------------------------------------


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


# --- trained less random ------------------------------------------------------------------------------------


def row(measure: str, trained: Array, null: Array, floor: float, n: int) -> dict[str, Any]:
    """One measure of a trained dictionary beside a null's, from resamples of both ``[1 + resamples]``: their
    ``difference`` with its 95% ends ``low`` and ``high``, and ``low 90`` and ``high 90``.
    """
    difference = trained - null
    drawn = difference[1:][np.isfinite(difference[1:])]
    names = ("low", "high", "low 90", "high 90")
    ends = dict(zip(names, np.quantile(drawn, [0.025, 0.975, 0.05, 0.95]), strict=True))
    values = {"measure": measure, "trained": trained[0], "null": null[0], "floor": floor}
    return values | {"difference": difference[0]} | ends | {"n": n}


def variance_explained(
    sae: SAE[Any], fresh: ActivationBatch, documents: NDArray[np.int64], seed: int = 0
) -> Array:
    """Fraction of variance that a dictionary explains of all documents and of each resample ``[1 +
    resamples]``; ``documents`` ``[n_tokens]``: each token's.
    """
    sums = reconstruct(sae, fresh.residual).by_document(documents[fresh.positions.numpy()])
    weights = weights_by_document(len(sums), seed)
    return 1 - (weights @ sums["error"].to_numpy()) / (weights @ sums["deviation"].to_numpy())


def resampled_mean(values: ArrayLike, seed: int) -> Array:
    """Mean of values ``[n]``, and of each resample of them ``[1 + resamples]``."""
    units = np.asarray(values, dtype=float)
    return weights_by_document(len(units), seed, 2000) @ units / len(units)


def outcome(rows: pd.DataFrame, measure: str) -> Measured:
    """The difference in one :func:`row` of a table, as claims are judged by it."""
    (of,) = rows[rows["measure"] == measure].to_dict("records")
    wide = Interval(of["difference"], of["low"], of["high"], of["n"])
    return Measured(wide, narrow=Interval(of["difference"], of["low 90"], of["high 90"], of["n"]))


# --- scorers, steering and stages under each dictionary, and figures ---------------------------------------


def scorer_shares(scored: pd.DataFrame) -> pd.DataFrame:
    """Share of all effect that each scorer's ten best features have: rows of ``model``, ``dictionary``,
    ``scorer``, ``estimate`` with ``low`` and ``high`` (95%, traces resampled), ``chance`` (of a random
    ranking), ``causal``, ``live``, ``traces``.
    """
    rows = scored[scored["metric"] == SHARE].reset_index(drop=True)
    rows["dictionary"] = [name_of(label) for label in rows["architecture"]]
    return rows[["model", "dictionary", "scorer", *ENDS, "chance", "causal", "live", "traces"]]


def share_of_effect(benchmark: scorers.Benchmark) -> Array:
    """Share of effect on persistence that ReasonScore's ten best features have, of all traces and of each
    resample of them: the same for all dictionaries of a model.
    """
    truth = benchmark.truths["persistence"]
    score = scorers.live_scores(scorers.column("score:reason score"), benchmark, truth)
    resampled = truth.resampled(scorers.RESAMPLES, scorers.SEED)
    effects = np.concatenate([truth.effect[None], resampled])
    return scorers.metrics(score, truth, effects)[SHARE]


def winners(studies: Mapping[str, Study], seed: int = 0) -> pd.DataFrame:
    """Every class's winner on fresh problems, by ``dictionary`` (:func:`winners_table`)."""
    tables = {name: winners_table(study, seed, families=False) for name, study in studies.items()}
    table = pd.concat(tables, names=["dictionary"]).reset_index("dictionary")
    return table.reset_index(drop=True).drop(columns="domain")


def styles(dictionaries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How dictionaries look by name: trained ones full and coloured, frozen ones hollow grey. A variant
    ("OrtSAE, second seed") looks as its architecture does, but is dotted, and hollow where that one is full.
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
