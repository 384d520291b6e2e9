"""Dictionaries side by what OrtSAE (2509.22033) is judged by, and what they say of reasoning features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.diffing.presence import SAME, activation_correlation, share_of
from reasoning_features.foundations.absorption import absorption
from reasoning_features.foundations.dictionary_geometry import mean_cos_sim, uniqueness
from reasoning_features.foundations.hierarchies import label_tokens, parent_probe
from reasoning_features.foundations.meta_autoencoder import composition
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.statistics import Interval, independent_difference
from reasoning_features.steering.steering_results import screening_counts
from reasoning_features.steering.steering_study import CHOSEN, FEATURES, Study
from reasoning_features.text.corpus import Corpus

COLUMNS = ["metric", "dictionary", "estimate", "low", "high", "n"]
NEIGHBOURS, COMPOSITION = "MeanCosSim", "composition (MetaSAE's explained variance)"
REASON_SCORE = "score:reason score"


def geometry(decoders: Mapping[str, Tensor], seed: int = 0) -> pd.DataFrame:
    """MeanCosSim and composition of dictionaries, name → live directions ``[s, d]``; 95% intervals.

    Returns:
        Rows of ``metric``, ``dictionary``, ``estimate``, ``low``, ``high``, ``n``.
    """
    rows: list[tuple[Any, ...]] = []
    for name, decoder in tqdm(decoders.items(), desc="Geometry", unit="dictionary"):
        for metric, found in (
            (NEIGHBOURS, mean_cos_sim(decoder, seed=seed)),
            (COMPOSITION, composition(decoder).interval(seed=seed)),
        ):
            rows.append((metric, name, found.estimate, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("metric", kind="stable", ignore_index=True)


def absorptions(
    saes: Mapping[str, SAE[Any]],
    hierarchies: Mapping[str, Mapping[str, Sequence[int]]],
    training: tuple[ActivationBatch, Corpus],
    test: tuple[ActivationBatch, Corpus],
    seed: int = 0,
) -> pd.DataFrame:
    """Absorption of every parent by every dictionary.

    Args:
        saes: by name.
        hierarchies: a parent's name → its children's names → their token ids.
        training: activations and corpus that probes and main latents are chosen on.
        test: those that absorption is measured on.
        seed: of the probes.

    Returns:
        Rows of ``dictionary``, ``parent`` and the columns of
        :func:`reasoning_features.foundations.absorption.absorption`.
    """
    tables = []
    for parent, groups in tqdm(hierarchies.items(), desc="Absorption", unit="parent"):
        learnt, held = (label_tokens(read, corpus, groups) for read, corpus in (training, test))
        probe = parent_probe(learnt, seed)
        for name, sae in saes.items():
            tables.append(absorption(sae, probe, learnt, held).assign(dictionary=name, parent=parent))
    table = pd.concat(tables, ignore_index=True)
    return table[["dictionary", "parent", *table.columns.drop(["dictionary", "parent"])]]


def absorption_panels(table: pd.DataFrame, measure: str = "absorbed") -> pd.DataFrame:
    """One measure of :func:`absorptions`, a panel a parent, as ``draw_metrics`` draws it."""
    rows = table[table["measure"] == measure]
    return rows.assign(metric="absorption, " + rows["parent"])[COLUMNS]


def absorption_difference(
    table: pd.DataFrame, parent: str, one: str = "BatchTopK", other: str = "OrtSAE"
) -> Interval:
    """Share of absorbed tokens of a parent in one dictionary less that in another."""
    rows = table[(table["measure"] == "absorbed") & (table["parent"] == parent)]
    found = {row["dictionary"]: as_interval(row) for _, row in rows.iterrows()}
    return independent_difference(found[one], found[other])


def as_interval(row: pd.Series) -> Interval:
    """A row's ``estimate``, ``low``, ``high`` and ``n``."""
    estimate, low, high = (float(row[name]) for name in ("estimate", "low", "high"))
    return Interval(estimate, low, high, int(row["n"]))


def unique_shares(decoders: Mapping[str, Tensor], seed: int = 0) -> pd.DataFrame:
    """Latents of each dictionary that another lacks: ``dictionary``, ``other``, and the columns of
    :func:`reasoning_features.foundations.dictionary_geometry.uniqueness`.
    """
    tables = [
        uniqueness(one, two, seed).assign(dictionary=name, other=other)
        for name, one in decoders.items()
        for other, two in decoders.items()
        if name != other
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[["dictionary", "other", *table.columns.drop(["dictionary", "other"])]]


def sweep_panels(swept: pd.DataFrame) -> pd.DataFrame:
    """OrtSAE's sweep as ``draw_sweep`` draws it: means over seeds, the band their range.

    Args:
        swept: :func:`reasoning_features.foundations.sweep.sweep_rows`.

    Returns:
        Rows of ``setting`` ("γ" at one chunk, "K" at the paper's γ), ``value``, ``metric``, ``estimate``,
        ``low``, ``high``.
    """
    usual = (swept["every"] == 1) & (swept["gamma"] == 0.25)
    parts = {"γ": swept[(swept["chunks"] == 1) & (swept["every"] == 1)], "K": swept[usual]}
    rows = []
    for setting, part in parts.items():
        for value, held in part.groupby("gamma" if setting == "γ" else "chunks"):
            for metric in ("fraction of variance explained", "MeanCosSim", "composition"):
                seen = held[metric]
                rows.append((setting, value, metric, seen.mean(), seen.min(), seen.max()))
    return pd.DataFrame(rows, columns=["setting", "value", "metric", "estimate", "low", "high"])


def chosen_overlap(
    saes: Mapping[str, SAE[Any]],
    chosen: Mapping[str, NDArray[np.int64]],
    residual: Tensor,
) -> pd.DataFrame:
    """How far dictionaries choose the same features: those chosen in one that some chosen one of another does
    (correlation of activations ≥ 0.7), beside those that any latent of the other does.

    Args:
        saes: by name.
        chosen: name → features that ReasonScore chose.
        residual: ``[n, d]`` activations that both read.

    Returns:
        Rows of ``dictionary``, ``other``, ``share`` with ``low`` and ``high`` (Wilson), ``n``, and
        ``in the other at all``.
    """
    rows = []
    for one, other in combinations(saes, 2):
        found = activation_correlation(saes[one], residual, saes[other], residual, chosen[one])
        among = share_of(found[:, chosen[other]].max(axis=1) >= SAME)
        anywhere = float((found.max(axis=1) >= SAME).mean())
        rows.append((one, other, among.estimate, among.low, among.high, among.n, anywhere))
    columns = ["dictionary", "other", "share", "low", "high", "n", "in the other at all"]
    return pd.DataFrame(rows, columns=columns)


def steered_features(studies: Mapping[str, Study]) -> pd.DataFrame:
    """Screened trials of single features, those of ReasonScore beside random ones: ``dictionary`` and the
    columns of :func:`reasoning_features.steering.steering_results.screening_counts`.
    """
    tables = []
    for name, study in studies.items():
        table = screening_counts(study)
        tables.append(table[table["class"].isin([CHOSEN, FEATURES])].assign(dictionary=name))
    table = pd.concat(tables, ignore_index=True)
    return table[["dictionary", *table.columns.drop("dictionary")]]


def cost_ratios(costs: pd.DataFrame, against: str = "BatchTopK") -> pd.DataFrame:
    """What a training step costs against another architecture's, by size: median over runs done in turn.

    Args:
        costs: :func:`reasoning_features.foundations.sweep.step_times`.
        against: the name that others are compared with.

    Returns:
        Rows of ``name``, ``features``, ``ratio`` (median), ``lowest``, ``highest``, ``runs``.
    """
    rows = []
    wide = costs.pivot(index=["features", "run"], columns="name", values="seconds")
    for features, held in wide.groupby("features"):
        for name in pd.unique(costs["name"]):
            if name != against:
                ratio = held[name] / held[against]
                rows.append((name, features, ratio.median(), ratio.min(), ratio.max(), len(ratio)))
    return pd.DataFrame(rows, columns=["name", "features", "ratio", "lowest", "highest", "runs"])
