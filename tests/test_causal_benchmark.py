"""One autoencoder's benchmark: evidence and effects on the shipped organism, and what is made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.errors import UserError
from reasoning_features.models.subject import load_subject
from reasoning_features.settings import load_settings
from reasoning_features.truth import causal_benchmark as room
from reasoning_features.truth.causal_truth import Effects
from reasoning_features.truth.stored_benchmarks import Benchmark, Truth


def effects(effect: list[float]) -> Effects:
    """Two traces of one decision each, both with these effects; a feature passes from 0.2."""
    values = np.array(effect)
    return Effects(
        features=np.arange(len(effect)),
        effect=values,
        absolute=np.abs(values),
        size=np.ones(len(effect)),
        threshold=np.full(len(effect), 0.2),
        documents=np.arange(2),
        traces=np.stack([values, values]).astype(np.float32),
        counts=np.ones(2, dtype=np.int64),
        random_effect=np.zeros(3),
        random_absolute=np.ones(3),
        random_size=np.ones(3),
    )


def test_features_that_pass_come_largest_first():
    assert effects([0.5, 0.1, -0.9]).passed.tolist() == [2, 0]


def test_agreement_is_of_the_same_autoencoder():
    def benchmark(model: str, effect: list[float]) -> Benchmark:
        values = np.array(effect)
        truth = Truth(np.arange(3), values, values[None], np.ones(1), np.full(3, 0.2))
        return Benchmark(model, 1.0, 0, "relu", 0, None, {"persistence": truth})

    here = [benchmark("a", [0.5, 0.1, 0.0])]
    stored = [benchmark("b", [9.0, 9.0, 9.0]), benchmark("a", [0.5, 0.3, 0.0])]
    # over the trace, where the one measured some features and the other all
    some = Truth(np.array([1]), np.array([0.5]), np.full((1, 1), 0.5), np.ones(1), np.full(1, 0.2))
    here.append(replace(here[0], model="c", truths={}, over_trace={"persistence": some}))
    every = benchmark("c", [0.0, 0.1, 0.0])
    stored.append(replace(every, over_trace=every.truths))
    row, over = room.agreement(here, stored).to_dict("records")
    assert (over["ablated"], over["features"], over["largest difference"]) == ("trace", 1, pytest.approx(0.4))
    assert row["ablated"] == "decision" and row["features"] == 3
    assert row["model"] == "a" and row["largest difference"] == pytest.approx(0.2)
    assert (row["here"], row["stored"], row["both"]) == (1, 2, 1)
    assert row["correlation"] == pytest.approx(np.corrcoef([0.5, 0.1, 0.0], [0.5, 0.3, 0.0])[0, 1])


@pytest.mark.slow
def test_end_to_end_on_the_organism():
    settings = load_settings("smoke", decisions=10, random_directions=10, random_vocabularies=4)
    subject = load_subject(settings.subject, settings.layer)
    sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
    told = room.identity(settings, sae)
    assert told == {
        "model": "coupled-0", "kappa": 1.0, "model_seed": 0, "architecture": "relu", "autoencoder_seed": 0
    }  # fmt: skip
    vocabularies = room.draw_words(settings, subject)
    assert vocabularies["R"] == tuple(settings.words) and "random 3" in vocabularies
    evidence = room.gather_evidence(settings, subject, sae, vocabularies)
    held = room.held_out_decisions(settings, subject)
    assert {kind: len(found) for kind, found in held.items()} == {"persistence": 10, "verification": 10}
    found = room.causal_effects(settings, subject, sae, held, evidence, ["decision"])
    at = found["persistence"]["decision"]
    strongest = at.features[np.argsort(-np.abs(at.effect))[:3]]
    whole = room.whole_trace_effects(settings, subject, sae, held["persistence"], evidence, strongest)
    assert whole.features.tolist() == strongest.tolist() and len(whole.random_effect) == 3


def test_text_without_labels_has_no_decisions():
    settings = load_settings("smoke", corpus="organism-text", decisions=10)
    subject = load_subject(settings.subject, settings.layer)
    with pytest.raises(UserError, match="No decisions are known"):
        room.held_out_decisions(settings, subject)
