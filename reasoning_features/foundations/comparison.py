"""Trained against frozen, measure by measure: levels, floors and ceilings, and their differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sae_lens import SAE

from reasoning_features.dictionaries.evaluation import quality, reconstruct
from reasoning_features.foundations import causal_editing, rule_judge, sparse_probing
from reasoning_features.foundations.causal_editing import Editing
from reasoning_features.foundations.names import CEILING, FLOOR
from reasoning_features.foundations.sparse_probing import SparseProbes
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.statistics import Interval, bootstrap_weights, percentile_interval

ENDS = ["estimate", "low", "high"]
EXPLAINED = "fraction of variance explained"
Difference = Callable[..., Interval]
"""Takes a ``level`` and gives a difference with its interval."""


def at_chosen(table: pd.DataFrame, latents: Mapping[str, int]) -> pd.DataFrame:
    """Rows of causal editing of both attributes, the error left out, at each dictionary's own number of
    latents; floor and ceiling as they are.
    """
    both = table[(table["attribute"] == "both") & (table["error"] != causal_editing.KEPT)]
    fixed = ~both["dictionary"].isin(list(latents))
    chosen = both["n"] == both["dictionary"].map(latents)
    return both[fixed | chosen].reset_index(drop=True)


def metrics(
    reconstruction: pd.DataFrame, probes: pd.DataFrame, rules: pd.DataFrame, edited: pd.DataFrame
) -> pd.DataFrame:
    """Every measure of every dictionary in one long table, floors and ceilings as dictionaries of their own.

    Args:
        reconstruction: :func:`reasoning_features.dictionaries.evaluation.evaluate`.
        probes: :meth:`reasoning_features.foundations.sparse_probing.SparseProbes.averaged`.
        rules: :func:`reasoning_features.foundations.rule_judge.detection`.
        edited: of causal editing, :func:`at_chosen`.

    Returns:
        Rows of ``metric``, ``dictionary``, ``estimate``, ``low``, ``high``.
    """
    parts = []
    for name, metric in ((EXPLAINED, "variance explained"), ("loss recovered", "loss recovered")):
        found = reconstruction[["autoencoder", name, f"{name} low", f"{name} high"]]
        parts.append(found.set_axis(["dictionary", *ENDS], axis=1).assign(metric=metric))
    few = probes["k"] <= max(sparse_probing.KS)
    full = probes[~few]
    for labelling in pd.unique(probes["labelling"]):
        for k in sparse_probing.KS:
            rows = probes[few & (probes["labelling"] == labelling) & (probes["k"] == k)]
            rows = rows[rows["dictionary"] != CEILING]
            rows = pd.concat([rows, full[full["labelling"] == labelling]])
            found = rows[["dictionary", "balanced accuracy", "low", "high"]]
            metric = f"probing, {labelling}, {k} latent{'s' if k > 1 else ''}"
            parts.append(found.set_axis(["dictionary", *ENDS], axis=1).assign(metric=metric))
    own = rules[rules["firing"] == rule_judge.FIRING[0]]
    found = own[["dictionary", "detection", "low", "high"]]
    parts.append(found.set_axis(["dictionary", *ENDS], axis=1).assign(metric="exact rules, detection"))
    score = causal_editing.SCORES[2]
    one = edited[(edited["dictionary"] != CEILING) | (edited["n"] == 1)]
    found = one[["dictionary", score, f"{score} low", f"{score} high"]]
    parts.append(found.set_axis(["dictionary", *ENDS], axis=1).assign(metric="causal editing"))
    return pd.concat(parts, ignore_index=True)[["metric", "dictionary", *ENDS]]


def variance_difference(
    fresh: ActivationBatch,
    documents: NDArray[np.int64],
    one: SAE[Any],
    other: SAE[Any],
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Fraction of variance that one dictionary explains less what another does, documents resampled."""
    of = documents[fresh.positions.numpy()]
    first, second = (reconstruct(sae, fresh.residual).by_document(of) for sae in (one, other))
    weights = np.concatenate([np.ones((1, len(first))), bootstrap_weights(len(first), 1000, seed)])
    error = weights @ (second["error"] - first["error"]).to_numpy()
    values = error / (weights @ first["deviation"].to_numpy())
    return percentile_interval(float(values[0]), values[1:], len(first), level)


def row(measure: str, levels: Sequence[float], floor: float, difference: Difference) -> dict[str, Any]:
    """One row of the table of claims, from the levels of a trained dictionary and of a null.

    Returns:
        ``measure``, ``trained``, ``null``, ``floor``, ``difference`` with its 95% ends ``low`` and ``high``,
        ``low 90`` and ``high 90``, and ``n``.
    """
    wide, narrow = difference(level=0.95), difference(level=0.90)
    trained, null = levels
    told = {"measure": measure, "trained": trained, "null": null, "floor": floor}
    ends = {"difference": wide.estimate, "low": wide.low, "high": wide.high}
    return told | ends | {"low 90": narrow.low, "high 90": narrow.high, "n": wide.n}


@dataclass(frozen=True)
class Measured:
    """What was measured of one model's dictionaries.

    Attributes:
        fresh: activations of fresh text.
        documents: ``[n_tokens]`` the document of each token of that text.
        saes: the dictionaries, by name.
        probes: sparse probes of them all.
        judged: tables of exact rules, by name.
        edited: causal editing of them all.
        latents: how many latents are replaced of each.
    """

    fresh: ActivationBatch
    documents: NDArray[np.int64]
    saes: Mapping[str, SAE[Any]]
    probes: SparseProbes
    judged: Mapping[str, pd.DataFrame]
    edited: Editing
    latents: Mapping[str, int]


def differences(measured: Measured, one: str, other: str, seed: int = 0) -> pd.DataFrame:
    """Every measure of a trained dictionary beside a null's: :func:`row` by :func:`row`.

    Paired over documents, or pairs of decisions; exact rules are of different latents, which are resampled
    on their own, and count beyond what they score on another document's firing.
    """
    saes, latents = measured.saes, measured.latents
    explained = [quality(saes[name], measured.fresh.residual)[EXPLAINED] for name in (one, other)]
    given = measured.fresh, measured.documents, saes[one], saes[other], seed
    rows = [row("variance explained", explained, 0.0, partial(variance_difference, *given))]
    probed = measured.probes.averaged(seed=seed).to_dict("records")
    levels = {(r["dictionary"], r["labelling"], r["k"]): float(r["balanced accuracy"]) for r in probed}
    for labelling in ("move", "family"):
        for k in sparse_probing.KS:
            pair = [levels[name, labelling, k] for name in (one, other)]
            floor = levels[FLOOR, labelling, k]
            found = partial(measured.probes.difference, one, other, labelling, k, seed=seed)
            rows.append(row(f"probing, {labelling}, k = {k}", pair, floor, found))
    beyond = [float(rule_judge.excess(measured.judged, name).mean()) for name in (one, other)]
    found = partial(rule_judge.excess_difference, measured.judged, one, other, seed=seed)
    rows.append(row("exact rules, beyond chance", beyond, 0.0, found))
    edited = at_chosen(measured.edited.table(seed=seed), latents).to_dict("records")
    scores = {r["dictionary"]: float(r[causal_editing.SCORES[2]]) for r in edited}
    pair = [scores[name] for name in (one, other)]
    found = partial(measured.edited.difference, one, other, latents[one], other_n=latents[other], seed=seed)
    rows.append(row("causal editing", pair, 0.5, found))
    return pd.DataFrame(rows)


def kept(rows: pd.DataFrame) -> pd.DataFrame:
    """What of the trained dictionary's distance from the floor the null keeps: ``measure`` and ``kept``.

    1: the null is as good; 0: it is at the floor. NaN where the trained one is at the floor itself.
    """
    distance = rows["trained"] - rows["floor"]
    share = np.where(distance > 0, (rows["null"] - rows["floor"]) / distance.where(distance > 0), np.nan)
    return pd.DataFrame({"measure": rows["measure"], "kept": share})
