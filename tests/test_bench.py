"""Every comparison at tiny sizes: both ways do the same, and the rows say what was run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig

from reasoning_features import bench
from reasoning_features.files import read_json
from reasoning_features.residual_stream.activations import collect
from reasoning_features.scoring.reason_score import vocabulary_scores
from reasoning_features.settings import load_settings


@pytest.fixture(scope="module")
def organism() -> bench.Given:
    return bench.organism(40)


def test_ways_run_in_turn_after_a_warm_up(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def way(name, seconds, done):
        def work():
            order.append(name)
            now[0] += seconds[order.count(name) - 1]
            return done

        return work

    # the warm-ups take 100 s and do not count: rates are 4, 2, 1 and 4, 0.5, 2
    ways = way("a", [100, 2, 4, 8], 8.0), way("b", [100, 1, 8, 2], 4.0)
    speed = bench.compared("a", "b", *ways, ("≥", 1.5), "few", runs=3)
    assert order == ["a", "b"] * 4 and speed["measure"] == "speed, ours / theirs"
    assert (speed["lowest"], speed["ratio"], speed["highest"], speed["met"]) == (0.5, 1.0, 4.0, "missed")
    assert (speed["ours per s"], speed["theirs per s"]) == (2.0, 2.0)
    order.clear()
    time = bench.compared("a", "b", *ways, ("≤", 1.15), "few", runs=3)
    assert (time["lowest"], time["highest"], time["met"]) == (0.25, 2.0, "yes")


def test_the_released_procedure_gives_our_scores(organism):
    residual = collect(organism.stream()).residual
    given = replace(organism, sae=bench.random_autoencoder(residual, 100, 3.0))
    ours = bench.accumulate(given.stream(), given.sae, given.sets)
    passes = [bench.released_pass(given, range(i, min(i + 48, 100))) for i in (0, 48, 96)]
    theirs = replace(ours, sums=np.concatenate([each.sums for each in passes], axis=1))
    np.testing.assert_array_equal(passes[0].counts, ours.counts)
    np.testing.assert_allclose(theirs.sums, ours.sums, rtol=1e-3, atol=1e-2)
    settings = load_settings("organism")
    scores = [vocabulary_scores(each, "R", settings.words, settings.window, 0.7) for each in (ours, theirs)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


@pytest.mark.slow
def test_rows_say_what_was_run(organism):
    narrow, wide, released = bench.scoring_rows(organism, 600, 2, 1)
    assert "512 features" in narrow["sizes"] and "600 features" in wide["sizes"]
    assert f"{organism.tokens:,} tokens" in wide["sizes"] and "12 sets" in wide["sizes"]
    assert released["note"].startswith("13 passes; 2 of them")
    harvesting, training = bench.disk_rows(organism, 2048, 1)
    assert "1 steps of 2,048, 512 features, width 128" in training["sizes"]
    asked = replace(bench.questions_of_one_length(organism, 2), max_new_tokens=5)
    assert len({len(prompt) for prompt in asked.prompts}) == 1
    generation = bench.generation_rows(organism, asked, 1, 1, 1)
    assert "8 conditions × 2 problems" in generation[0]["sizes"]
    bars = [row["bar"] for row in (wide, released, harvesting, training, *generation)]
    assert bars == ["≤ 1.15", "≥ 30", "≥ 0.95", "≤ 1.05", "≥ 3", "≥ 3", "≥ 0.97"]


def test_the_truncated_model_gives_the_same_activations(organism):
    batch = next(iter(organism.corpus.batches(512)))
    model, last = bench.truncated(organism.subject), []
    handle = model.layers[-1].register_forward_hook(lambda *given: last.append(given[-1]))
    with torch.no_grad():
        model(input_ids=batch.tokens, use_cache=False)
    handle.remove()
    torch.testing.assert_close(last[0], organism.subject.residual(batch.tokens))


def test_the_released_hook_is_the_clamp(organism):
    residual, feature = organism.subject.residual(torch.tensor([[1, 5, 9]])), 7
    active = organism.sae.encode(residual)[..., feature, None]
    expected = residual + (2.5 - active) * organism.sae.W_dec[feature]
    changed = bench.released_change(organism.sae, feature, 2.5, residual)
    torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-4)


def test_memory_and_time_against_tokens():
    found = bench.measured(bench.EXAMPLES, 40)
    assert found["tokens"] > 100 and found["seconds"] > 0 and 1e8 < found["peak"] < 1e11
    peaks = {"scores": [1e9, 1e9, 1.05e9], "examples": [1e9, 1e9, 1.2e9]}
    parts = [
        pd.DataFrame({"tokens": [100, 200, 400], "peak": each, "seconds": [1, 2, 4.4], "way": way})
        for way, each in peaks.items()
    ]
    memory, time, kept, _ = bench.growth_rows(pd.concat(parts))
    assert [row["ratio"] for row in (memory, time, kept)] == pytest.approx([1.05, 1.1, 1.2])
    assert [row["met"] for row in (memory, time, kept)] == ["yes", "yes", "missed"]
    assert "100 to 400 tokens" in time["sizes"]


SMALL = LlamaConfig(
    vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip


def test_a_pass_over_the_papers_features_takes_the_memory_that_is_stated():
    given = bench.random_model(SMALL, bench.FEATURES, 10, 500, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = bench.peak()
    assert given.score() == given.tokens == 10 * 499
    assert bench.peak() - before < 2e9


def test_on_a_device(tmp_path):
    table = bench.device_table(SMALL, "cpu", 128, documents=2, length=16, batch=16)
    value = table.set_index("quantity")["value"]
    assert (value > 0).all() and np.isfinite(value).all()
    assert value["scoring 10M tokens"] == pytest.approx(1e7 / value["whole ReasonScore pass, 12 sets"] / 3600)
    bench.write(tmp_path, "device", table, "Small.")
    record = read_json(tmp_path / "device.json")
    assert set(record["files"]) == {"device.csv", "device.md"}
    assert record["threads"] >= 1 and len(record["code_sha256"]) == 64 and record["versions"]["torch"]
