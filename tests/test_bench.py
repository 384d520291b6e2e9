"""Every comparison at tiny sizes: both ways do the same, and the rows say what was run."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features.bench import (
    __main__,
    device,
    examples,
    generation,
    harvesting,
    processes,
    scaling,
    scoring,
    setting,
    training,
)
from reasoning_features.bench.setting import Setting, Sizes
from reasoning_features.files import read_json
from reasoning_features.residual_stream.activations import stream
from reasoning_features.scoring.reason_score import vocabulary_scores

TINY = Sizes(
    documents=40,
    runs=1,
    wide=600,
    released_passes=2,
    train_tokens=2048,
    problems=2,
    features=2,
    strengths=2,
    few=1,
)


@pytest.fixture(scope="module")
def organism() -> Setting:
    return setting.load(TINY.documents)


def test_the_released_procedure_gives_our_scores(organism):
    sae = setting.random_autoencoder(organism.residual, 100)
    ours = scoring.statistics(organism, sae)
    batches = list(organism.corpus.batches(organism.settings.batch_tokens))
    passes = [
        scoring.released_pass(organism, sae, batches, range(i, min(i + scoring.AT_ONCE, 100)))
        for i in range(0, 100, scoring.AT_ONCE)
    ]
    theirs = replace(ours, sums=np.concatenate([each.sums for each in passes], axis=1))
    assert len(passes) == 3
    np.testing.assert_array_equal(passes[0].counts, ours.counts)
    np.testing.assert_allclose(theirs.sums, ours.sums, rtol=1e-3, atol=1e-2)
    words, window = organism.settings.words, organism.settings.window
    scores = [vocabulary_scores(each, "R", words, window, 0.7) for each in (ours, theirs)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_scoring_rows(organism):
    narrow, wide, released = scoring.rows(organism, TINY)
    assert "512 features" in narrow.sizes and "600 features" in wide.sizes and "12 sets" in wide.sizes
    assert f"{organism.tokens:,} tokens" in wide.sizes
    assert (str(wide.bar), str(released.bar)) == ("≤ 1.15", "≥ 30")
    assert released.note.startswith("13 passes; 2 of them")
    assert len(released.ratios) == TINY.runs


def test_random_autoencoder_is_as_sparse_as_asked(organism):
    sae = setting.random_autoencoder(organism.residual, 1024, 20)
    assert 15 < float((sae.encode(organism.residual[:256]) > 0).sum(1).float().mean()) < 25


def test_the_truncated_model_gives_the_same_activations(organism):
    batch = next(iter(organism.corpus.batches(512)))
    model, last = harvesting.truncated(organism), []
    handle = model.layers[-1].register_forward_hook(lambda *given: last.append(given[-1]))
    with torch.no_grad():
        model(input_ids=batch.tokens, use_cache=False)
    handle.remove()
    torch.testing.assert_close(last[0], organism.subject.residual(batch.tokens))
    assert len(organism.subject.model.base_model.layers) == organism.subject.n_layers
    (row,) = harvesting.rows(organism, TINY)
    assert row.measure == "speed, ours / theirs" and str(row.bar) == "≥ 0.95"


def test_training_rows(organism, monkeypatch):
    monkeypatch.setattr(training, "PEERS", "build/nowhere/python")
    (row,) = training.rows(organism, TINY)
    assert "1 steps of 2,048, 512 features, width 128" in row.sizes and str(row.bar) == "≤ 1.05"


def test_tokens_written():
    tokens = torch.tensor([[7, 7, 3, 2, 0, 0], [7, 7, 3, 3, 3, 3], [7, 7, 2, 2, 2, 2]])
    assert generation.written(tokens, 2, 2) == 2 + 4 + 1


@pytest.mark.slow
def test_generation_rows(organism, monkeypatch):
    asked = replace(setting.questions_of_one_length(organism, TINY.problems), max_new_tokens=5)
    assert len({len(prompt) for prompt in asked.prompts}) == 1
    monkeypatch.setattr(generation, "questions_of_one_length", lambda given, n: asked)
    bridge, released, one = generation.rows(organism, TINY)
    assert "4 conditions × 2 problems" in bridge.sizes and bridge.note.startswith("1 of the 4")
    assert [str(row.bar) for row in (bridge, released, one)] == ["≥ 3", "≥ 3", "≥ 0.97"]


def test_the_released_hook_is_the_clamp(organism):
    conditions, maxima = generation.conditions_of(organism, TINY)
    assert len(conditions) == 4
    feature, tokens = conditions[0].feature, torch.tensor([[1, 5, 9]])
    residual = organism.subject.residual(tokens)
    active = organism.sae.encode(residual)[..., feature, None]
    expected = residual + (float(maxima[feature]) - active) * organism.sae.W_dec[feature]
    changed = generation.released_change(organism.sae, feature, float(maxima[feature]))(residual)
    torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-4)


def test_examples_are_those_of_sorting(organism):
    kept = examples.in_one_pass(organism, organism.sae)
    by_sorting = examples.by_sorting(organism, organism.sae)
    assert kept.shape == by_sorting.shape == (512, examples.EXAMPLES)
    values = torch.zeros(organism.corpus.n_tokens, 512)
    for batch in stream(organism.subject, organism.corpus, organism.settings.batch_tokens):
        values[batch.positions] = organism.sae.encode(batch.residual)
    for feature in range(512):  # ranked by rounded activations, so of near equals either may stand
        pair = [values[row[row >= 0], feature] for row in (kept[feature], by_sorting[feature])]
        torch.testing.assert_close(*pair, rtol=2**-10, atol=0)
    (row,) = examples.rows(organism, TINY)
    assert row.bar is None and "512 features" in row.sizes


@pytest.mark.slow
def test_a_pass_in_a_process_of_its_own():
    found = processes.in_a_process("scores", 40, 64)
    assert found["features"] == 64 and found["tokens"] > 100 and found["seconds"] > 0
    assert 1e8 < found["held before"] <= found["peak"] < 4e9


def runs_of(peaks, seconds, way="scores", against="tokens"):
    tokens = [100, 200, 400]
    frame = pd.DataFrame({"tokens": tokens, "features": tokens, "peak": peaks, "seconds": seconds})
    return frame.assign(way=way, against=against)


def test_memory_and_time_against_tokens():
    scores, kept = runs_of([1e9, 1e9, 1.05e9], [1, 2, 4.4]), runs_of([1e9, 1e9, 1.2e9], [1, 2, 4])
    memory, examples_kept, by_sorting, time = scaling.rows(scores, kept, runs_of([1e9, 2e9, 3e9], [1, 1, 1]))
    assert (memory.ratio, memory.met) == (pytest.approx(1.05), "yes")
    assert (examples_kept.ratio, examples_kept.met) == (pytest.approx(1.2), "missed")
    assert (by_sorting.ratio, by_sorting.met) == (pytest.approx(3), "")
    assert (time.ratio, time.met) == (pytest.approx(1.1), "yes")
    assert "100 to 400 tokens" in time.sizes
    figure = scaling.draw(pd.concat([scores, runs_of([1e9] * 3, [1, 2, 3], against="features")]))
    assert len(figure.axes) == 4
    plt.close(figure)


SMALL = device.Shape(
    blocks=2,
    hidden=32,
    intermediate=64,
    heads=4,
    kv_heads=2,
    vocabulary=100,
    features=128,
    active=10,
    context=16,
    batch_tokens=64,
    batches=2,
    train_batch=32,
    train_steps=2,
    matmul=64,
    runs=1,
)


def test_operations_of_the_true_shape():
    # Llama 3.1 8B: 218.1M weights a block; 20 blocks are 8.72 GFLOP a token beside attention
    attention = 20 * 4 * 4096 * 512
    assert device.Shape().prefix_flop - attention == pytest.approx(8.72e9, rel=1e-3)
    assert device.Shape().encode_flop == pytest.approx(0.537e9, rel=1e-3)
    subject = device.random_subject(SMALL, "cpu")
    weights = sum(p.numel() for name, p in subject.model.named_parameters() if "proj" in name)
    assert SMALL.prefix_flop == 2 * weights + 2 * 4 * 32 * 8
    assert subject.model.dtype == torch.bfloat16 and subject.layer == 1
    residual = subject.residual(torch.arange(8)[None])
    assert residual.shape == (1, 8, 32) and bool(residual.isfinite().all())


def test_on_a_device(tmp_path):
    table = __main__.on_device(SMALL, "cpu", tmp_path).set_index("quantity")
    value = table["value"]
    shares = [f"{part}, share of the pass" for part in ("prefix", "encoder", "the rest")]
    # the last two are differences of times, which a busy machine may turn around
    assert (value > 0).drop(shares[1:]).all() and np.isfinite(value).all()
    rate = value["whole ReasonScore pass, 12 sets"]
    assert value["scoring 10M tokens"] == pytest.approx(1e7 / rate / 3600)
    each = 1 / value["prefix"] + 1 / value["SAE training, batches of 32"]
    hours = value["SAE training, 1B tokens, harvested and trained"]
    assert hours == pytest.approx(1e9 * each / 3600)
    assert value[shares].sum() == pytest.approx(1)
    (written,) = tmp_path.glob("device_*.csv")
    record = read_json(written.with_suffix(".json"))
    assert set(record["files"]) == {written.name, written.with_suffix(".md").name}
    assert record["threads"] >= 1 and len(record["code_sha256"]) == 64 and record["versions"]["torch"]
