"""Features and steering of a pruned model, on the organism."""

from dataclasses import replace

import numpy as np
import pytest

from reasoning_features.dictionaries.evaluation import quality
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.settings import load_settings
from reasoning_features.sparsity import bridge
from reasoning_features.sparsity.layers import linear_layers, sparse
from reasoning_features.sparsity.patterns import Pattern
from reasoning_features.sparsity.pruning import load_texts
from reasoning_features.text.words import WordIndex
from reasoning_features.truth.benchmark import load_variant


@pytest.fixture(scope="module")
def read():
    variant = load_variant(load_settings("organism", sparsity_documents=40))
    texts, _ = load_texts(variant.settings, variant.model, "evaluation", 5)
    return bridge.load_bridge(variant, texts)


def test_the_dense_model_agrees_with_itself_and_a_pruned_one_does_not(read):
    found = read.read()
    assert found["effect"] == pytest.approx(np.ones(10), abs=1e-9)
    assert found["alignment"] == pytest.approx(np.ones(10), abs=1e-9)
    assert (np.abs(found["others"]) < 0.9).all()
    with sparse(linear_layers(read.variant.model.model), Pattern(1, 4)):
        pruned = read.read()
    assert (pruned["alignment"] < 0.9).any() and not np.array_equal(pruned["score"], found["score"])
    assert pruned["error"].sum() / pruned["deviation"].sum() > found["error"].sum() / found["deviation"].sum()
    again = read.read()
    assert all(np.array_equal(again[name], found[name]) for name in found), "no trace is left"


def test_what_is_read_is_what_other_functions_give(read):
    found, variant = read.read(), read.variant
    activations = collect(stream(variant.model, read.traces, variant.settings.batch_tokens))
    told = quality(variant.sae, activations.residual)
    assert 1 - found["error"].sum() / found["deviation"].sum() == pytest.approx(
        told["fraction of variance explained"]
    )
    assert found["active"].sum() / found["tokens"].sum() == pytest.approx(told["L0"])
    features = variant.sae.encode(activations.residual).double().numpy()
    index, settings = WordIndex(read.traces, variant.model.tokenizer), variant.settings
    spans = [index.occurrences(word, settings.capitalised) for word in read.words]
    around = np.stack([index.mask(span, settings.window)[activations.positions] for span in spans])
    inside = around.any(axis=0)
    by_word = np.stack([features[own].mean(axis=0) for own in around])
    p = by_word / np.maximum(by_word.sum(axis=0), 1e-30)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=0) / np.log(len(p))
    shares = [features[own].mean(axis=0) / features[own].mean(axis=0).sum() for own in (inside, ~inside)]
    assert found["score"] == pytest.approx(shares[0] * entropy**settings.alpha - shares[1], abs=1e-6)
    best = np.argsort(-found["score"], kind="stable")[: bridge.STEERED]
    assert read.features[: bridge.STEERED].tolist() == best.tolist()
    assert (found["density"][read.features] > 0).all() and len(set(read.features)) == 10


def test_an_effect_is_the_change_of_logits_where_a_vector_is_added(read):
    model = read.variant.model
    rows = []
    for text, places in zip(read.texts, read.places, strict=True):
        usual = model.logits(text[None])[0, places]
        moved = model.logits_with(text[None], lambda stream: stream + read.vectors[3])[0, places] - usual
        rows.append(moved - moved.mean(-1, keepdim=True))
    wanted = np.concatenate([row.numpy() for row in rows])
    assert read.dense[3].numpy() == pytest.approx(wanted, abs=1e-3)
    half = replace(read, vectors=read.vectors / 2).read()["effect"]
    assert (half < 0.9).all() and (half > 0.1).all()
