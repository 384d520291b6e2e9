"""What ``make sanity`` trained of one model, and trained dictionaries beside the random-SAE baseline.

A difference is of two arrays ``[1 + resamples]``: a measure of all units (documents, pairs, traces, problems,
latents) and of each resample. Where both dictionaries are measured on the same units the resamples are the
same, and the difference is paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sae_lens import SAE

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import architecture_label, load_autoencoder, name_of
from reasoning_features.dictionaries.evaluation import EXPLAINED, best_cosines, reconstruct
from reasoning_features.diffing.presence import PAPER_THRESHOLD, SAME, share_of
from reasoning_features.errors import MissingArtefact
from reasoning_features.files import verify_shipped
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.claims import Measured
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.sae_checks.causal_editing import Editing
from reasoning_features.sae_checks.interpretability import (
    AS_IT_IS,
    CEILING,
    FLOOR,
    KS,
    SparseProbes,
    excess,
    weights_by_document,
)
from reasoning_features.statistics import Interval
from reasoning_features.steering.steering_results import winners_table
from reasoning_features.steering.steering_study import CHOSEN, FEATURES, Study, load_studies
from reasoning_features.truth import benchmark as scorers

Array = NDArray[np.float64]
Value = TypeVar("Value")
ENDS = ["estimate", "low", "high"]
PRECISION = "average precision"
# scorers that are drawn; the table has all
SHOWN = (
    *("ReasonScore", "word identity", "density", "mean difference", "gradient attribution"),
    scorers.CEILING,
)


# --- what was trained and measured of one model, by the dictionary's name, trained ones first ---------------


def load_table(path: str) -> pd.DataFrame:
    """A shipped table, after its checksum; the path is absolute or taken from the repository's root."""
    table = paths.resolve(path)
    verify_shipped(table)
    return pd.read_parquet(table)


def load_dictionaries(
    folder: str, model: str, d_model: int, hook_name: str, device: str = "cpu", seed: int = 0
) -> dict[str, SAE[Any]]:
    """The autoencoders of a model and a seed in ``settings.foundations``; MissingArtefact where there are
    none.
    """
    home = paths.resolve(folder) / "autoencoders"
    found = sorted(path for path in home.glob(f"{model}-*-{seed}") if path.is_dir())
    if not found:
        raise MissingArtefact(
            f"There are no dictionaries of {model} in {folder}: `make sanity` trains the shipped models'."
        )
    verify_shipped(home)
    saes = (load_autoencoder(paths.relative(path), d_model, hook_name, device) for path in found)
    return _trained_first({name_of(architecture_label(sae)): sae for sae in saes})


def benchmarks_by_name(folder: str, model: str) -> dict[str, scorers.Benchmark]:
    """Ablation effects of the features of a model's dictionaries."""
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
    """Every measure of every dictionary in one long table, floors and ceilings as dictionaries of their own:
    rows of ``metric``, ``dictionary``, ``estimate``, ``low``, ``high``.
    """
    parts = []

    def add(metric: str, rows: pd.DataFrame, *columns: str) -> None:
        parts.append(rows[list(columns)].set_axis(["dictionary", *ENDS], axis=1).assign(metric=metric))

    for name in (EXPLAINED, "loss recovered"):
        metric = name.removeprefix("fraction of ")
        add(metric, quality, "autoencoder", name, f"{name} low", f"{name} high")
    for labelling, rows in probes.groupby("labelling", sort=False):
        for k in KS:
            # the ceiling is the whole stream, not its k best coordinates
            shown = rows[(rows["k"] == k) & (rows["dictionary"] != CEILING)]
            shown = pd.concat([shown, rows[~rows["k"].isin(KS)]])
            metric = f"probing, {labelling}, {k} latent{'s' if k > 1 else ''}"
            add(metric, shown, "dictionary", "balanced accuracy", "low", "high")
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
    """Fraction of variance that a dictionary explains of fresh activations, of all documents and of each
    resample; ``documents`` ``[n_tokens]``: the document of each token of the text.
    """
    sums = reconstruct(sae, fresh.residual).by_document(documents[fresh.positions.numpy()])
    weights = weights_by_document(len(sums), seed)
    return 1 - (weights @ sums["error"].to_numpy()) / (weights @ sums["deviation"].to_numpy())


def dictionary_rows(
    pair: tuple[str, str],
    saes: Mapping[str, SAE[Any]],
    fresh: ActivationBatch,
    documents: NDArray[np.int64],
    probes: SparseProbes,
    judged: pd.DataFrame,
    edited: Editing,
    latents: Mapping[str, int],
    seed: int = 0,
) -> pd.DataFrame:
    """Measures of a trained dictionary and a null's, the ``pair``, :func:`row` by :func:`row`.

    ``fresh`` are activations of text that neither was trained on, ``documents`` ``[n_tokens]`` the document
    of each of its tokens, ``latents`` how many are replaced of each dictionary. Exact rules are of different
    latents, which are resampled on their own, and count beyond what they score on another document's firing.
    """
    one, other = (variance_explained(saes[name], fresh, documents, seed) for name in pair)
    n = len(np.unique(documents[fresh.positions.numpy()]))
    rows = [row("variance explained", one, other, 0.0, n)]
    for labelling in ("move", "family"):
        for k in KS:
            one, other, floor = (probes.accuracy[name, labelling, k] for name in (*pair, FLOOR))
            measure = f"probing, {labelling}, k = {k}"
            rows.append(row(measure, one, other, float(floor[0]), probes.documents))
    beyond = [excess(judged, name).to_numpy() for name in pair]
    one, other = (weights_by_document(len(x), seed + i, 2000) @ x / len(x) for i, x in enumerate(beyond))
    rows.append(row("exact rules, beyond chance", one, other, 0.0, sum(map(len, beyond))))
    one, other = (edited.resampled(name, latents[name], seed) for name in pair)
    return pd.DataFrame([*rows, row("causal editing", one, other, 0.5, len(np.unique(edited.documents)))])


def main_line_rows(
    pair: tuple[str, str],
    benchmarks: Mapping[str, scorers.Benchmark],
    studies: Mapping[str, Study],
    seed: int = 0,
) -> pd.DataFrame:
    """ReasonScore's precision and what steering its winner gains, under a trained dictionary and a null."""
    one, other = (precision_over_chance(benchmarks[name]) for name in pair)
    traces = len(benchmarks[pair[0]].truths["persistence"].counts)
    rows = [row("ReasonScore's precision over chance", one, other, 0.0, traces)]
    gains = [studies[name].outcome(CHOSEN) - studies[name].outcome(UNSTEERED) for name in pair]
    one, other = (weights_by_document(len(gain), seed, 2000) @ gain / len(gain) for gain in gains)
    rows.append(row("steering, gain of ReasonScore's winner", one, other, 0.0, len(gains[0])))
    return pd.DataFrame(rows)


def outcome(rows: pd.DataFrame, measure: str) -> Measured:
    """The difference in one :func:`row` of a table, as claims are judged by it."""
    (of,) = rows[rows["measure"] == measure].to_dict("records")
    wide = Interval(of["difference"], of["low"], of["high"], of["n"])
    return Measured(wide, narrow=Interval(of["difference"], of["low 90"], of["high 90"], of["n"]))


def kept(rows: pd.DataFrame) -> pd.DataFrame:
    """What of the trained dictionary's distance from the floor the null keeps: ``measure`` and ``kept``.

    1: the null is as good; 0: it is at the floor. NaN where the trained one is at the floor itself.
    """
    distance = (rows["trained"] - rows["floor"]).where(rows["trained"] > rows["floor"])
    return pd.DataFrame({"measure": rows["measure"], "kept": (rows["null"] - rows["floor"]) / distance})


# --- scorers, steering and stages under each dictionary -----------------------------------------------------


def over_chance(scored: pd.DataFrame) -> pd.DataFrame:
    """Average precision less the share of features that pass, which a random ranking gets.

    Returns:
        Rows of ``model``, ``dictionary``, ``scorer``, ``estimate`` with ``low`` and ``high`` (95%, traces
        resampled, the features that pass held), ``chance``, ``positives``, ``live``, ``traces``.
    """
    rows = scored[scored["metric"] == PRECISION].reset_index(drop=True)
    rows["dictionary"] = [name_of(label) for label in rows["architecture"]]
    rows[ENDS] = rows[ENDS].sub(rows["chance"], axis=0)
    return rows[["model", "dictionary", "scorer", *ENDS, "chance", "positives", "live", "traces"]]


def scorer_panels(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """One model's rows of :func:`over_chance` as ``figures.draw_metrics`` draws them."""
    rows = table[(table["model"] == model) & table["scorer"].isin(SHOWN)]
    rows = rows.sort_values("scorer", key=lambda names: names.map(SHOWN.index), kind="stable")
    return rows.rename(columns={"scorer": "metric"})[["metric", "dictionary", *ENDS]]


def precision_over_chance(benchmark: scorers.Benchmark) -> Array:
    """ReasonScore's average precision less chance against effects on persistence, of all traces and of each
    resample, which are the same for all dictionaries of a model: their differences are paired.
    """
    truth = benchmark.truths["persistence"]
    score = scorers.live_scores(scorers.column("score:reason score"), benchmark, truth)
    resampled = truth.resampled(scorers.RESAMPLES, scorers.SEED)
    effects = np.concatenate([truth.effect[None], resampled])
    precision = scorers.metrics(score, effects, truth.threshold, signed=False)[PRECISION]
    return precision - (np.abs(effects) > truth.threshold).mean(axis=1)


def winners(studies: Mapping[str, Study], seed: int = 0) -> pd.DataFrame:
    """Every class's winner on fresh problems, by dictionary: ``dictionary`` and the columns of
    :func:`reasoning_features.steering.steering_results.winners_table`.
    """
    tables = {name: winners_table(study, seed, families=False) for name, study in studies.items()}
    table = pd.concat(tables, names=["dictionary"]).reset_index("dictionary")
    return table.reset_index(drop=True).drop(columns="domain")


def winner_panels(won: pd.DataFrame) -> pd.DataFrame:
    """Gains in points of the classes that differ by dictionary, as ``figures.draw_metrics`` draws them."""
    rows = won[won["class"].isin([CHOSEN, FEATURES])]
    points = (100 * rows[["gain", "low", "high"]]).set_axis(ENDS, axis=1)
    named = rows[["dictionary"]].assign(metric=rows["class"] + ", gain (points)")
    return pd.concat([named, points], axis=1)


def presence(
    matched: pd.DataFrame,
    sae: SAE[Any],
    stages: Mapping[str, tuple[str, SAE[Any]]],
    features: NDArray[np.int64],
) -> pd.DataFrame:
    """Share of some features of a dictionary that are present at each stage, by what they do and by where
    they point.

    ``matched`` has a row a feature, in their order: the largest correlation of its activations with a latent
    of each stage; ``share`` is of those at 0.7 or more (Wilson). ``by cosine`` is the share with a direction
    of the stage at 0.7 or nearer, ``between stages`` the share of S's latents that have one. ``stages``: who
    is read, and its dictionary; "S" is the first.
    """
    rows, start = [], stages["S"][1].W_dec
    for stage, (_, other) in stages.items():
        share = share_of(matched[stage].to_numpy(dtype=float) >= SAME)
        cosine = float((best_cosines(sae.W_dec[features], other.W_dec) >= PAPER_THRESHOLD).mean())
        same = float((best_cosines(start, other.W_dec) >= PAPER_THRESHOLD).mean())
        rows.append((stage, *astuple(share), cosine, same))
    columns = ["stage", "share", "low", "high", "n", "by cosine", "between stages"]
    return pd.DataFrame(rows, columns=columns)


def absent(staged: pd.DataFrame, trained: str, null: str) -> Measured:
    """Share of a trained dictionary's features that are absent at stage S, beside that of a null's.

    ``staged`` has the rows of :func:`presence`, with ``dictionary``.
    """
    at_start = {row["dictionary"]: row for row in staged.to_dict("records") if row["stage"] == "S"}
    own = at_start[trained]
    share = Interval(1 - own["share"], 1 - own["high"], 1 - own["low"], own["n"])
    return Measured(share, 1 - at_start[null]["share"])
