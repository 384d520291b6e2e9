"""Dictionaries that are compared, by name, and what ``make sanity`` trained and measured of one model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import pandas as pd
from sae_lens import SAE

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import architecture_label, load_autoencoder
from reasoning_features.errors import MissingArtefact
from reasoning_features.files import verify_shipped
from reasoning_features.steering.steering_study import Study, load_studies
from reasoning_features.truth.benchmark import Benchmark, load_benchmarks

NAMES = {
    "relu": "ReLU",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "matryoshka": "Matryoshka",
    "ortsae": "OrtSAE",
    "frozen_decoder": "frozen decoder",
    "soft_frozen_decoder": "soft-frozen decoder",
    "frozen_encoder": "frozen encoder",
}
"""Architecture → its name in figures and tables."""
CEILING, FLOOR = "residual stream", "mean reconstruction"
"""Dictionaries that measures stand between: nothing is lost, and nothing is kept but the mean."""
Value = TypeVar("Value")


def name_of(label: str) -> str:
    """The name of an architecture's label: "frozen_decoder-cov" is the frozen decoder (cov).

    The start "iso" (on the sphere) is left out: a baseline starts there unless another start is named.
    """
    architecture, _, start = label.partition("-")
    return NAMES[architecture] + ("" if start in ("", "iso") else f" ({start})")


def load_table(path: str) -> pd.DataFrame:
    """A shipped table, after its checksum; the path is absolute or taken from the repository's root.

    Raises:
        MissingArtefact: it is not there.
        CorruptArtefact: it is not what was shipped.
    """
    table = paths.resolve(path)
    verify_shipped(table)
    return pd.read_parquet(table)


def load_dictionaries(
    folder: str, model: str, d_model: int, hook_name: str, device: str = "cpu", seed: int = 0
) -> dict[str, SAE[Any]]:
    """One model's dictionaries of one seed: name → autoencoder, trained ones before frozen ones.

    Args:
        folder: ``settings.foundations``.
        model: the model's name; ``d_model`` is its width, and ``hook_name`` where it is read.
        device: where to put the autoencoders.
        seed: of their training.

    Raises:
        MissingArtefact: there are none.
        CorruptArtefact: a file is not what was shipped.
    """
    home = paths.resolve(folder) / "autoencoders"
    found = sorted(path for path in home.glob(f"{model}-*-{seed}") if path.is_dir())
    if not found:
        raise MissingArtefact(
            f"There are no dictionaries of {model} in {folder}: `make sanity` trains the shipped models'."
        )
    verify_shipped(home)
    saes = (load_autoencoder(paths.relative(path), d_model, hook_name, device) for path in found)
    return _trained_first({name_of(architecture_label(sae)): sae for sae in saes})


def benchmarks_by_name(folder: str, model: str) -> dict[str, Benchmark]:
    """Ablation effects of the features of one model's dictionaries, by the dictionary's name."""
    found = sorted(load_benchmarks(f"{folder}/truth"), key=lambda benchmark: benchmark.architecture)
    return _trained_first({name_of(b.architecture): b for b in found if b.model == model})


def studies_by_name(folder: str, model: str) -> dict[str, Study]:
    """Matched-budget searches of steering on one model's dictionaries, by the dictionary's name."""
    found = load_studies(paths.resolve(folder) / "steering").values()
    named = {name_of(s.identity["architecture"]): s for s in found if s.identity["model"] == model}
    return _trained_first(named)


def _trained_first(named: Mapping[str, Value]) -> dict[str, Value]:
    return dict(sorted(named.items(), key=lambda item: "frozen" in item[0]))
