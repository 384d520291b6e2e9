"""The dictionaries that ``make sanity`` made of one model, and what was measured of them, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from sae_lens import SAE

from reasoning_features import checksums, paths
from reasoning_features.dictionaries.autoencoder import architecture_label, load_autoencoder
from reasoning_features.errors import MissingArtefact
from reasoning_features.foundations.names import name_of
from reasoning_features.steering.steering_study import Study, load_studies
from reasoning_features.truth.benchmark import Benchmark, load_benchmarks

AUTOENCODERS, TRUTH, STEERING, DIFFING = "autoencoders", "truth", "steering", "diffing"
"""Folders of the foundations' folder."""
SYNTHETIC, REVIVAL = "synthetic.parquet", "revival.parquet"
SWEEP, COSTS = "sweep.parquet", "costs.parquet"
"""Tables of it."""


def load_table(path: str) -> pd.DataFrame:
    """A shipped table, after its checksum; the path is absolute or taken from the repository's root.

    Raises:
        MissingArtefact: it is not there.
        CorruptArtefact: it is not what was shipped.
    """
    table = paths.resolve(path)
    checksums.verify_shipped(table)
    return pd.read_parquet(table)


def load_dictionaries(
    folder: str, model: str, d_model: int, hook_name: str, device: str = "cpu", seed: int = 0
) -> dict[str, SAE[Any]]:
    """One model's dictionaries of one seed: name → autoencoder, trained ones before frozen ones.

    Args:
        folder: ``settings.foundations``.
        model: the model's name.
        d_model: width of the activations.
        hook_name: where they are read.
        device: where to put them.
        seed: which seed.

    Raises:
        MissingArtefact: there are none.
        CorruptArtefact: a file is not what was shipped.
    """
    home = paths.resolve(folder) / AUTOENCODERS
    found = sorted(path for path in home.glob(f"{model}-*-{seed}") if path.is_dir())
    if not found:
        raise MissingArtefact(
            f"There are no dictionaries of {model} in {folder}: `make sanity` trains the shipped models'."
        )
    checksums.verify_shipped(home)
    named = {}
    for path in found:
        sae = load_autoencoder(paths.relative(path), d_model, hook_name, device)
        named[name_of(architecture_label(sae))] = sae
    return dict(sorted(named.items(), key=lambda item: "frozen" in item[0]))


def benchmarks_by_name(folder: str, model: str) -> dict[str, Benchmark]:
    """Causal truth of one model's dictionaries, by the dictionary's name."""
    found = load_benchmarks(f"{folder}/{TRUTH}")
    return {name_of(b.architecture): b for b in _ordered(found) if b.model == model}


def studies_by_name(folder: str, model: str) -> dict[str, Study]:
    """Steering studies of one model's dictionaries, by the dictionary's name."""
    found = load_studies(paths.resolve(folder) / STEERING)
    named = {name_of(s.identity["architecture"]): s for s in found.values() if s.identity["model"] == model}
    return dict(sorted(named.items(), key=lambda item: "frozen" in item[0]))


def stages_folder(folder: str, label: str) -> str:
    """Where the stages of model diffing of one kind of dictionary are."""
    return str(Path(folder) / DIFFING / label)


def _ordered(benchmarks: Sequence[Benchmark]) -> list[Benchmark]:
    return sorted(benchmarks, key=lambda b: ("frozen" in b.architecture, b.architecture))
