"""Evidence and causal truth of every shipped autoencoder, as stored and as the benchmark reads them.

A folder an autoencoder: ``features.parquet``, one row a feature of the dictionary (evidence, then
``effect:``, ``absolute:``, ``size:``, ``threshold:`` and ``true:<kind>:<place>``, missing for features that
are never active), and ``traces.safetensors``: per-trace sums of the changes at the decision's own token and
counts of decisions, with what identifies the autoencoder in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from reasoning_features import paths
from reasoning_features.causal_truth import Effects
from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.significance import bootstrap_weights

Array = NDArray[np.float64]
TRUTH_COLUMNS = ("effect:", "absolute:", "size:", "threshold:", "true:")
"""Columns of the stored table that no score may see."""
FEATURES, TRACES = "features.parquet", "traces.safetensors"
PLACE = "decision"
"""Where features were ablated whose effects the benchmark is of; per-trace sums are stored for it alone."""


@dataclass(frozen=True)
class Truth:
    """Causal effects on one kind of decision.

    Attributes:
        features: ids of the features that were ablated ``[f]`` (those that are ever active).
        effect: effect of each feature as it is ``[f]``, nats: minus the mean change on ablation.
        sums: change of the log-odds on ablation, summed over each trace's decisions ``[t, f]``, nats.
        counts: decisions of each trace ``[t]``.
        threshold: size of a mean change that counts as an effect ``[f]``.
    """

    features: NDArray[np.int64]
    effect: Array
    sums: Array
    counts: Array
    threshold: Array

    def resampled(self, resamples: int, seed: int) -> Array:
        """Effects on resampled traces ``[resamples, f]``."""
        weights = bootstrap_weights(len(self.counts), resamples, seed)
        return -(weights @ self.sums) / (weights @ self.counts)[:, None]


@dataclass(frozen=True)
class Benchmark:
    """One autoencoder of one model: what a score may look at, and the truth it is judged by.

    Attributes:
        model: the model's name.
        kappa: coupling of the words of R to persistence, nan where none is planted.
        model_seed: seed of the model's training.
        architecture: of the autoencoder.
        autoencoder_seed: its seed.
        evidence: one row a feature.
        truths: kind of decision → causal effects.
    """

    model: str
    kappa: float
    model_seed: int
    architecture: str
    autoencoder_seed: int
    evidence: pd.DataFrame
    truths: dict[str, Truth]

    @property
    def identity(self) -> dict[str, Any]:
        """Columns that say which benchmark a row of a table is of."""
        names = ("model", "kappa", "model_seed", "architecture", "autoencoder_seed")
        return {name: getattr(self, name) for name in names}


def save_benchmark(
    folder: Path,
    evidence: pd.DataFrame,
    effects: Mapping[str, Mapping[str, Effects]],
    identity: Mapping[str, Any],
) -> None:
    """Store one autoencoder's evidence and truth.

    Args:
        folder: where to; made where it is not there.
        evidence: one row a feature (:func:`reasoning_features.evidence.gather`).
        effects: kind of decision → place → effects.
        identity: ``model``, ``kappa``, ``model_seed``, ``architecture``, ``autoencoder_seed``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for kind, places in effects.items():
        for place, found in places.items():
            values = {name: getattr(found, name) for name in ("effect", "absolute", "size", "threshold")}
            for name, value in values.items():
                columns[f"{name}:{kind}:{place}"] = _at(found.features, value, len(evidence))
            passed = _at(found.features, found.true.astype(float), len(evidence))
            columns[f"true:{kind}:{place}"] = passed
        own = places[PLACE]
        tensors[f"{kind}:sums"] = own.traces.astype(np.float16)
        tensors[f"{kind}:counts"] = own.counts.astype(np.int32)
    table = pd.concat([evidence, pd.DataFrame(columns, index=evidence.index)], axis=1)
    table.to_parquet(folder / FEATURES, index=False, compression="zstd")
    save_file(tensors, folder / TRACES, metadata={"identity": json.dumps(dict(identity))})


def _at(features: NDArray[np.int64], values: Array, n: int) -> NDArray[np.float32]:
    """Values at their features, missing at the others ``[n]``."""
    column = np.full(n, np.nan, dtype=np.float32)
    column[features] = values
    return column


def load_benchmarks(folder: str | Path) -> list[Benchmark]:
    """All benchmarks in a folder, by name.

    Args:
        folder: absolute, or from the repository's root: ``settings.truth``.

    Raises:
        MissingArtefact: there are none.
        CorruptArtefact: a file cannot be read.
    """
    root = paths.root() / folder
    found = sorted(path.parent for path in root.glob(f"*/{FEATURES}"))
    if not found:
        raise MissingArtefact(f"There is no causal truth in {folder}: `make organism` measures it.")
    return [_load(path) for path in found]


def _load(folder: Path) -> Benchmark:
    try:
        table = pd.read_parquet(folder / FEATURES)
        with safe_open(folder / TRACES, framework="numpy") as file:
            identity = json.loads(file.metadata()["identity"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise CorruptArtefact(
            f"The causal truth in {paths.relative(folder)} cannot be read: restore its files."
        ) from error
    truths = {}
    for kind in sorted(name.removesuffix(":counts") for name in tensors if name.endswith(":counts")):
        effect = table[f"effect:{kind}:{PLACE}"].to_numpy(dtype=float)
        features = np.flatnonzero(~np.isnan(effect))
        threshold = table[f"threshold:{kind}:{PLACE}"].to_numpy(dtype=float)[features]
        sums, counts = tensors[f"{kind}:sums"].astype(float), tensors[f"{kind}:counts"].astype(float)
        truths[kind] = Truth(features, -effect[features], sums, counts, threshold)
    return Benchmark(
        model=identity["model"],
        kappa=float(identity["kappa"]),
        model_seed=int(identity["model_seed"]),
        architecture=identity["architecture"],
        autoencoder_seed=int(identity["autoencoder_seed"]),
        evidence=table[[name for name in table if not str(name).startswith(TRUTH_COLUMNS)]],
        truths=truths,
    )
