"""What notebook 03 stores of an arm for later notebooks, and how they read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from reasoning_features.files import read_json, write_json
from reasoning_features.scoring.feature_statistics import FeatureStatistics
from reasoning_features.scoring.reason_score import ranks
from reasoning_features.settings import READ

ARTEFACT = "reason_score"
"""Name of the artefact, for :meth:`reasoning_features.bookkeeping.provenance.Run.find`."""

DETERMINED_BY = (
    *READ, "subject", "contrast", "autoencoder", "contrast_autoencoder", "seed", "reasoning_documents",
    "general_documents", "words", "alpha", "window", "variant", "selected", "windows",
    "random_vocabularies", "slot_vocabularies", "blocks",
)  # fmt: skip
"""The settings that determine it."""


@dataclass(frozen=True)
class StoredScores:
    """One arm's scores.

    Attributes:
        features: one row a feature: ``feature``, ``score``, ``rank``, ``chosen``, ``density``,
            ``best_token``, ``precision``, ``recall``, ``f1`` and the scores by identity alone.
        statistics: sums over all sets and documents ``[s, f]``.
        vocabularies: name → words.
        scores: name → ReasonScore of every feature ``[f]``.
    """

    features: pd.DataFrame
    statistics: FeatureStatistics
    vocabularies: dict[str, tuple[str, ...]]
    scores: dict[str, NDArray[np.float64]]

    def save(self, folder: Path, arm: str) -> None:
        """Write the arm's files into a folder."""
        self.features.to_parquet(folder / f"features_{arm}.parquet", index=False)
        self.statistics.save(folder / f"statistics_{arm}.safetensors")
        write_json(folder / f"vocabularies_{arm}.json", self.vocabularies)
        save_file(self.scores, folder / f"scores_{arm}.safetensors")


def load_scores(folder: Path, arm: str) -> StoredScores:
    """Read one arm from the artefact's folder."""
    with safe_open(folder / f"scores_{arm}.safetensors", framework="numpy") as file:
        scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    words = read_json(folder / f"vocabularies_{arm}.json")
    return StoredScores(
        features=pd.read_parquet(folder / f"features_{arm}.parquet"),
        statistics=FeatureStatistics.load(folder / f"statistics_{arm}.safetensors"),
        vocabularies={name: tuple(vocabulary) for name, vocabulary in words.items()},
        scores=scores,
    )


def feature_table(
    scores: NDArray[np.float64],
    k: int,
    density: NDArray[np.float64],
    best: pd.DataFrame,
    identity: Mapping[str, Sequence[float] | NDArray[np.float64]],
) -> pd.DataFrame:
    """One row a feature: score, rank (from 1), whether chosen, density, best token, identity-only scores."""
    rank = ranks(scores)
    table = pd.DataFrame(
        {"feature": np.arange(len(scores)), "score": scores, "rank": rank, "density": density}
    )
    table["chosen"] = rank <= k
    table = table.merge(best[["feature", "token", "precision", "recall", "f1"]], on="feature")
    return table.rename(columns={"token": "best_token"}).assign(**{name: identity[name] for name in identity})
