"""One benchmark of ``make organism`` and ``make sanity``: an autoencoder's evidence and causal truth."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.models.subject import load_subject
from reasoning_features.settings import Settings
from reasoning_features.truth.causal_benchmark import (
    causal_effects,
    draw_words,
    gather_evidence,
    held_out_decisions,
    identity,
)
from reasoning_features.truth.stored_benchmarks import save_benchmark


def make_truth(target: Path, settings: Settings, places: Sequence[str]) -> None:
    """Evidence of an autoencoder's features and their causal effects on held-out decisions, whole or not.

    Args:
        target: the benchmark's folder; it is not there yet.
        settings: of the run, with the model as ``subject`` and its ``autoencoder``.
        places: where features are ablated.
    """
    subject = load_subject(settings.subject, settings.layer)
    sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
    evidence = gather_evidence(settings, subject, sae, draw_words(settings, subject))
    decisions = held_out_decisions(settings, subject)
    effects = causal_effects(settings, subject, sae, decisions, evidence, places)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    save_benchmark(fresh, evidence, effects, identity(settings, sae))
    fresh.rename(target)
