"""Every comparison at tiny sizes: both ways do the same, and the rows say what was run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features import bench
from reasoning_features.bench import Organism, Shape, Sizes
from reasoning_features.files import read_json
from reasoning_features.residual_stream.activations import collect
from reasoning_features.scoring.reason_score import vocabulary_scores

TINY = Sizes(40, 1, 600, 2, 2048, 2, 2, 2, 1)


@pytest.fixture(scope="module")
def organism() -> Organism:
    return Organism.load(TINY.documents)


@pytest.fixture(scope="module")
def residual(organism) -> torch.Tensor:
    return collect(organism.stream()).residual


def test_ways_run_in_turn_after_a_warm_up():
    now, order = [0.0], []

    def way(name, seconds, done):
        def work():
            order.append(name)
            now[0] += seconds[order.count(name) - 1]
            return done

        return work

    # the warm-ups take 100 s and do not count
    ways = [way("a", [100, 2, 4], 8.0), way("b", [100, 1, 8], 4.0), way("c", [100, 3, 3], 6.0)]
    rates = bench.in_turn(ways, 2, clock=lambda: now[0])
    assert order == ["a", "b", "c"] * 3
    assert rates == [[4.0, 2.0], [4.0, 0.5], [2.0, 2.0]]
    speed, time = (bench.compared("a", "b", rates[:2], of, None, "few") for of in ("speed", "time"))
    assert (speed["lowest"], speed["highest"], time["lowest"], time["highest"]) == (1.0, 4.0, 0.25, 1.0)
    for bar, met in ((("≤", 1.15), "missed"), (("≥", 1.15), "yes"), (None, "")):
        row = bench.row("a", "b", "time", [1.3, 1.1, 1.2], bar, "3 tokens")
        assert (row["ratio"], row["lowest"], row["highest"], row["met"]) == (1.2, 1.1, 1.3, met)


def test_the_released_procedure_gives_our_scores(organism, residual):
    sae = bench.random_autoencoder(residual, 100)
    ours, batches = bench.statistics(organism, sae), organism.batches()
    parts = [range(i, min(i + bench.AT_ONCE, 100)) for i in range(0, 100, bench.AT_ONCE)]
    passes = [bench.released_pass(organism, sae, batches, part) for part in parts]
    theirs = replace(ours, sums=np.concatenate([each.sums for each in passes], axis=1))
    assert len(passes) == 3
    np.testing.assert_array_equal(passes[0].counts, ours.counts)
    np.testing.assert_allclose(theirs.sums, ours.sums, rtol=1e-3, atol=1e-2)
    words, window = organism.settings.words, organism.settings.window
    scores = [vocabulary_scores(each, "R", words, window, 0.7) for each in (ours, theirs)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


@pytest.mark.slow
def test_rows_say_what_was_run(organism, monkeypatch):
    narrow, wide, released = bench.scoring_rows(organism, TINY)
    assert "512 features" in narrow["sizes"] and "600 features" in wide["sizes"]
    assert f"{organism.tokens:,} tokens" in wide["sizes"] and "12 sets" in wide["sizes"]
    assert (released["runs"], released["note"][:20]) == (TINY.runs, "13 passes; 2 of them")
    (training,) = bench.training_rows(organism, TINY)
    assert "1 steps of 2,048, 512 features, width 128" in training["sizes"]
    asked = replace(bench.questions_of_one_length(organism, TINY.problems), max_new_tokens=5)
    assert len({len(prompt) for prompt in asked.prompts}) == 1
    monkeypatch.setattr(bench, "questions_of_one_length", lambda given, n: asked)
    generation = bench.generation_rows(organism, TINY)
    assert "4 conditions × 2 problems" in generation[0]["sizes"]
    bars = [row["bar"] for row in (wide, released, training, *generation)]
    assert bars == ["≤ 1.15", "≥ 30", "≤ 1.05", "≥ 3", "≥ 3", "≥ 0.97"]


def test_the_truncated_model_gives_the_same_activations(organism):
    batch = next(iter(organism.corpus.batches(512)))
    model, last = bench.truncated(organism.subject), []
    handle = model.layers[-1].register_forward_hook(lambda *given: last.append(given[-1]))
    with torch.no_grad():
        model(input_ids=batch.tokens, use_cache=False)
    handle.remove()
    torch.testing.assert_close(last[0], organism.subject.residual(batch.tokens))
    assert len(organism.subject.model.base_model.layers) == organism.subject.n_layers


def test_tokens_written():
    tokens = torch.tensor([[7, 7, 3, 2, 0, 0], [7, 7, 3, 3, 3, 3], [7, 7, 2, 2, 2, 2]])
    assert bench.written(tokens, 2, 2) == 2 + 4 + 1


def test_the_released_hook_is_the_clamp(organism):
    conditions, maxima = bench.conditions_of(organism, TINY)
    assert len(conditions) == 4
    feature, tokens = conditions[0].feature, torch.tensor([[1, 5, 9]])
    residual = organism.subject.residual(tokens)
    active = organism.sae.encode(residual)[..., feature, None]
    expected = residual + (float(maxima[feature]) - active) * organism.sae.W_dec[feature]
    changed = bench.released_change(organism.sae, feature, float(maxima[feature]))(residual)
    torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_pass_in_a_process_of_its_own():
    found = bench.in_a_process("scores", 40)
    assert found["tokens"] > 100 and found["seconds"] > 0 and 1e8 < found["peak"] < 4e9


def test_memory_and_time_against_tokens():
    tokens, seconds = [100, 200, 400], [1, 2, 4.4]
    peaks = {"scores": [1e9, 1e9, 1.05e9], "examples": [1e9, 1e9, 1.2e9]}
    parts = [
        pd.DataFrame({"tokens": tokens, "peak": each, "seconds": seconds, "way": way})
        for way, each in peaks.items()
    ]
    kept, _, memory, time = bench.growth_rows(pd.concat(parts))
    assert (memory["ratio"], memory["met"]) == (pytest.approx(1.05), "yes")
    assert (kept["ratio"], kept["met"]) == (pytest.approx(1.2), "missed")
    assert (time["ratio"], time["met"]) == (pytest.approx(1.1), "yes")
    assert "100 to 400 tokens" in time["sizes"]


SMALL = Shape(2, 32, 64, 4, 2, 100, 128, 10, 16, 64, 2, 32, 2, 64, 1)


def test_operations_of_the_true_shape():
    # Llama 3.1 8B: 218.1M weights a block; 20 blocks are 8.72 GFLOP a token beside attention
    attention = 20 * 4 * 4096 * 512
    assert Shape().prefix_flop - attention == pytest.approx(8.72e9, rel=1e-3)
    assert Shape().encode_flop == pytest.approx(0.537e9, rel=1e-3)
    subject = bench.random_subject(SMALL, "cpu")
    weights = sum(p.numel() for name, p in subject.model.named_parameters() if "proj" in name)
    assert SMALL.prefix_flop == 2 * weights + 2 * 4 * 32 * 8
    assert subject.model.dtype == torch.bfloat16 and subject.layer == 1
    residual = subject.residual(torch.arange(8)[None])
    assert residual.shape == (1, 8, 32) and bool(residual.isfinite().all())


def test_on_a_device(tmp_path):
    value = bench.on_device(SMALL, "cpu", tmp_path).set_index("quantity")["value"]
    shares = [f"{part}, share of the pass" for part in ("prefix", "encoder", "the rest")]
    # the last two are differences of times, which a busy machine may turn around
    assert (value > 0).drop(shares[1:]).all() and np.isfinite(value).all()
    assert value["scoring 10M tokens"] == pytest.approx(1e7 / value["whole ReasonScore pass, 12 sets"] / 3600)
    each = 1 / value["prefix"] + 1 / value["SAE training, batches of 32"]
    hours = value["SAE training, 1B tokens, harvested and trained"]
    assert hours == pytest.approx(1e9 * each / 3600)
    assert value[shares].sum() == pytest.approx(1)
    (written,) = tmp_path.glob("device_*.csv")
    record = read_json(written.with_suffix(".json"))
    assert set(record["files"]) == {written.name, written.with_suffix(".md").name}
    assert record["threads"] >= 1 and len(record["code_sha256"]) == 64 and record["versions"]["torch"]
