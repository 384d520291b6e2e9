"""What is stored of a benchmark comes back, and no score can see the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.truth.causal_truth import Effects
from reasoning_features.truth.stored_benchmarks import load_benchmarks, save_benchmark

IDENTITY = {
    "model": "kappa-0.5-0",
    "kappa": 0.5,
    "model_seed": 0,
    "architecture": "relu",
    "autoencoder_seed": 1,
}


def effects(features: list[int]) -> Effects:
    n = len(features)
    counts = np.array([1, 2, 1])
    traces = np.arange(3 * n, dtype=np.float32).reshape(3, n) / 8
    return Effects(
        features=np.array(features),
        effect=traces.sum(0) / counts.sum(),
        absolute=np.ones(n),
        size=np.ones(n),
        threshold=np.full(n, 0.7),
        documents=np.arange(3),
        traces=traces,
        counts=counts,
        random_effect=np.zeros(4),
        random_absolute=np.zeros(4),
        random_size=np.ones(4),
    )


def test_round_trip_and_the_same_bytes(repository: Path):
    evidence = pd.DataFrame({"feature": range(4), "density": [0.5, 0.0, 0.1, 0.2]})
    measured = {"persistence": {"decision": effects([0, 2, 3]), "trace": effects([0, 2, 3])}}
    folder = repository / "truth" / "kappa-0.5-0-relu-1"
    save_benchmark(folder, evidence, measured, IDENTITY)
    written = [path.read_bytes() for path in sorted(folder.iterdir())]
    save_benchmark(folder, evidence, measured, IDENTITY)
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == written
    (found,) = load_benchmarks("truth")
    assert found.identity == IDENTITY
    assert list(found.evidence) == ["feature", "density"]
    truth = found.truths["persistence"]
    assert truth.features.tolist() == [0, 2, 3] and truth.counts.tolist() == [1, 2, 1]
    # the effect as it is: minus the change on ablation
    np.testing.assert_allclose(truth.effect, -measured["persistence"]["decision"].effect)
    np.testing.assert_allclose(truth.effect, -truth.sums.sum(0) / truth.counts.sum())
    again = truth.resampled(500, 0)
    assert again.shape == (500, 3)
    np.testing.assert_allclose(again.mean(0), truth.effect, atol=0.05)
    table = pd.read_parquet(folder / "features.parquet")
    assert {"effect:persistence:trace", "true:persistence:decision"} <= set(table)
    assert table["effect:persistence:decision"].isna().tolist() == [False, True, False, False]


def test_the_whole_trace_comes_back_where_it_was_measured(repository: Path):
    evidence = pd.DataFrame({"feature": range(4), "density": [0.5, 0.0, 0.1, 0.2]})
    over = replace(effects([0, 2]), random_absolute=np.array([1.0, 2, 4, 8]), random_size=2.0 ** np.arange(4))
    save_benchmark(
        repository / "truth" / "a", evidence, {"persistence": {"decision": effects([0, 2, 3])}}, IDENTITY
    )
    both = {"decision": effects([0, 2, 3]), "trace": over}
    save_benchmark(repository / "truth" / "b", evidence, {"persistence": both}, IDENTITY)
    without, found = load_benchmarks("truth")
    assert without.over_trace == {}
    # what is measured at the decision alone is stored as before
    with safe_open(repository / "truth" / "a" / "traces.safetensors", framework="numpy") as file:
        assert set(file.keys()) == {"persistence:sums", "persistence:counts"}
    truth = found.over_trace["persistence"]
    assert truth.features.tolist() == [0, 2] and truth.counts.tolist() == [1, 2, 1]
    np.testing.assert_allclose(truth.effect, -over.effect)
    np.testing.assert_allclose(truth.effect, -truth.sums.sum(0) / truth.counts.sum())
    assert truth.slope == pytest.approx(1) and np.isnan(found.truths["persistence"].slope)
    assert truth.true.tolist() == (np.abs(over.effect) > 0.7).tolist()
    some = truth.of(np.array([2, 7]))
    assert some.features.tolist() == [2] and some.sums.shape == (3, 1) and some.effect == truth.effect[1:]


def test_missing_and_damaged(repository: Path):
    with pytest.raises(MissingArtefact, match="no causal truth in truth: `make organism`"):
        load_benchmarks("truth")
    folder = repository / "truth" / "m-relu-0"
    folder.mkdir(parents=True)
    (folder / "features.parquet").write_bytes(b"no table")
    with pytest.raises(CorruptArtefact, match="m-relu-0 cannot be read"):
        load_benchmarks("truth")
