"""One benchmark of ``make organism`` and ``make sanity``: an autoencoder's feature table and effects."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.models.subject import load_subject
from reasoning_features.settings import Settings
from reasoning_features.truth.benchmark import (
    ablation_effects,
    gather_table,
    held_out_decisions,
    identity,
    save_benchmark,
)


def make_truth(target: Path, settings: Settings, places: Sequence[str]) -> None:
    """The table of an autoencoder's features and their effects on held-out decisions, whole or not at all.

    Args:
        target: the benchmark's folder; it is not there yet.
        settings: of the run, with the model as ``subject`` and its ``autoencoder``.
        places: where features are ablated.
    """
    subject = load_subject(settings.subject, settings.layer)
    sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
    table = gather_table(settings, subject, sae)
    effects = {
        kind: {place: ablation_effects(settings, subject, sae, held, table, place) for place in places}
        for kind, held in held_out_decisions(settings, subject).items()
    }
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    save_benchmark(fresh, table, effects, identity(settings, sae))
    fresh.rename(target)
