"""Evidence and causal truth of every shipped autoencoder, as stored and as the benchmark reads them.

A folder an autoencoder: ``features.parquet``, one row a feature of the dictionary (evidence, then
``effect:``, ``absolute:``, ``size:``, ``threshold:`` and ``true:<kind>:<place>``, missing for features that
are never active), and ``traces.safetensors``: per-trace sums of the changes and counts of decisions, with
what identifies the autoencoder in its metadata. Where features were ablated over the whole trace too it holds
the sums of that, and what random directions did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.statistics import bootstrap_weights
from reasoning_features.truth.causal_truth import Effects, slope_of_random

Array = NDArray[np.float64]
TRUTH_COLUMNS = ("effect:", "absolute:", "size:", "threshold:", "true:")
"""Columns of the stored table that no score may see."""
FEATURES, TRACES = "features.parquet", "traces.safetensors"
PLACE, TRACE = "decision", "trace"
"""Where features were ablated: the benchmark is of the first, the second is measured for some of them."""


@dataclass(frozen=True)
class Truth:
    """Causal effects on one kind of decision, ablated at one place.

    Attributes:
        features: ids of the features that were ablated ``[f]`` (those that are ever active).
        effect: effect of each feature as it is ``[f]``, nats: minus the mean change on ablation.
        sums: change of the log-odds on ablation, summed over each trace's decisions ``[t, f]``, nats.
        counts: decisions of each trace ``[t]``.
        threshold: size of a mean change that counts as an effect ``[f]``.
        random: mean change, mean |change| and mean size of random directions ``[3, k]``; they are stored for
            the whole trace alone.
    """

    features: NDArray[np.int64]
    effect: Array
    sums: Array
    counts: Array
    threshold: Array
    random: Array = field(default_factory=lambda: np.empty((3, 0)))

    @property
    def true(self) -> NDArray[np.bool_]:
        """``[f]`` True where the effect passes the threshold."""
        return np.abs(self.effect) > self.threshold

    @property
    def slope(self) -> float:
        """:func:`reasoning_features.truth.causal_truth.slope_of_random`; nan where none are stored."""
        return slope_of_random(self.random[1], self.random[2]) if self.random.size else float("nan")

    def of(self, features: NDArray[np.int64]) -> Truth:
        """The effects of some of its features, in ascending order of their ids."""
        kept = np.isin(self.features, features)
        return replace(
            self,
            features=self.features[kept],
            effect=self.effect[kept],
            sums=self.sums[:, kept],
            threshold=self.threshold[kept],
        )

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
        truths: kind of decision → effects of ablating at the decision's own token.
        over_trace: the same of ablating at every token up to the decision; empty where not measured, and of
            fewer features where only some were ablated so.
    """

    model: str
    kappa: float
    model_seed: int
    architecture: str
    autoencoder_seed: int
    evidence: pd.DataFrame
    truths: dict[str, Truth]
    over_trace: dict[str, Truth] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every live feature was ablated over the whole trace too, for every kind of decision."""
        return bool(self.truths) and all(
            kind in self.over_trace and np.array_equal(self.over_trace[kind].features, truth.features)
            for kind, truth in self.truths.items()
        )

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
        evidence: one row a feature (:func:`reasoning_features.truth.evidence.gather`).
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
        if TRACE in places:
            over = places[TRACE]
            tensors[f"{kind}:{TRACE}:sums"] = over.traces.astype(np.float16)
            random = over.random_effect, over.random_absolute, over.random_size
            tensors[f"{kind}:{TRACE}:random"] = np.stack(random).astype(np.float32)
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
    kinds = sorted(name.removesuffix(":counts") for name in tensors if name.endswith(":counts"))
    return Benchmark(
        model=identity["model"],
        kappa=float(identity["kappa"]),
        model_seed=int(identity["model_seed"]),
        architecture=identity["architecture"],
        autoencoder_seed=int(identity["autoencoder_seed"]),
        evidence=table[[name for name in table if not str(name).startswith(TRUTH_COLUMNS)]],
        truths={kind: _truth(table, tensors, kind, PLACE, kind) for kind in kinds},
        over_trace={
            kind: _truth(table, tensors, kind, TRACE, f"{kind}:{TRACE}")
            for kind in kinds
            if f"{kind}:{TRACE}:sums" in tensors
        },
    )


def _truth(
    table: pd.DataFrame, tensors: Mapping[str, NDArray[Any]], kind: str, place: str, prefix: str
) -> Truth:
    """Effects at one place; ``prefix`` is how its tensors' names begin."""
    effect = table[f"effect:{kind}:{place}"].to_numpy(dtype=float)
    features = np.flatnonzero(~np.isnan(effect))
    return Truth(
        features=features,
        effect=-effect[features],
        sums=tensors[f"{prefix}:sums"].astype(float),
        counts=tensors[f"{kind}:counts"].astype(float),
        threshold=table[f"threshold:{kind}:{place}"].to_numpy(dtype=float)[features],
        random=tensors.get(f"{prefix}:random", np.empty((3, 0))).astype(float),
    )
