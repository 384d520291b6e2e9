"""Every comparison at tiny sizes: both ways do the same, and the rows say what was run."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
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
    monkeypatch.setattr(bench, "RUNS", 3)

    def way(name, seconds, done):
        def work():
            order.append(name)
            now[0] += seconds[order.count(name) - 1]
            return done

        return work

    # the warm-ups take 100 s and do not count: rates are 4, 2, 1 and 4, 0.5, 2
    ways = way("a", [100, 2, 4, 8], 8.0), way("b", [100, 1, 8, 2], 4.0)
    speed = bench.compared("a", "b", *ways, ("≥", 1.5), "few")
    assert order == ["a", "b"] * 4 and speed["measure"] == "speed, ours / theirs"
    assert (speed["lowest"], speed["ratio"], speed["highest"], speed["met"]) == (0.5, 1.0, 4.0, "missed")
    order.clear()
    time = bench.compared("a", "b", *ways, ("≤", 1.15), "few")
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
def test_rows_say_what_was_run(organism, monkeypatch):
    monkeypatch.setattr(bench, "RUNS", 1)
    narrow, wide, released = bench.scoring_rows(organism, 600, 2)
    assert "512 features" in narrow["sizes"] and "600 features" in wide["sizes"]
    assert f"{organism.tokens:,.0f} tokens, 12 sets" in wide["sizes"]
    assert "2 of 13 passes are run" in released["sizes"]
    harvesting, training = bench.disk_rows(organism, 2048)
    assert "1 steps of 2,048, 512 features, width 128" in training["sizes"]
    asked = replace(bench.questions_of_one_length(organism, 2), max_new_tokens=5)
    assert len({len(prompt) for prompt in asked.prompts}) == 1
    generation = bench.generation_rows(organism, asked, 1, 1)
    assert "8 conditions × 2 problems" in generation[0]["sizes"]
    refusal = bench.refusal_row(organism, asked, 3, 2)
    assert "3 vectors × 2 problems" in refusal["sizes"]
    bars = [row["bar"] for row in (wide, released, harvesting, training, *generation, refusal)]
    assert bars == ["≤ 1.15", "≥ 30", "≥ 0.95", "≤ 1.05", "≥ 3", "≥ 3", "≥ 0.97", "≥ 5"]


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


def test_memory_and_time_against_tokens(monkeypatch):
    monkeypatch.setattr(bench, "WAYS", {bench.EXAMPLES: bench.Given.examples})
    memory, time = bench.growth_rows((20, 40))
    assert 0.5 < memory["ratio"] < 1.5 and time["ratio"] > 0
    assert [row["bar"] for row in (memory, time)] == ["≤ 1.1", "≤ 1.15"]
    few, many = (int(n.replace(",", "")) for n in re.findall(r"([0-9,]+) ", time["sizes"])[:2])
    assert 100 < few < many


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
