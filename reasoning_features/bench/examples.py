"""Activating examples kept in one pass, against storing all activations and sorting them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reasoning_features.bench.setting import Setting, Sizes
from reasoning_features.bench.timing import Row, compared, in_turn
from reasoning_features.dictionaries.autoencoder import encoded
from reasoning_features.interpretation.activating_examples import ActivatingExamples
from reasoning_features.residual_stream.activations import stream
from reasoning_features.scoring.feature_statistics import one_pass

EXAMPLES = 12
"""Activating examples kept of each feature."""


def in_one_pass(given: Setting, sae: Any) -> np.ndarray:
    """Positions of the strongest examples of all features ``[f, m]``, kept while reading."""
    kept: Any = ActivatingExamples(given.corpus, EXAMPLES)
    one_pass(stream(given.subject, given.corpus, given.settings.batch_tokens), sae, [kept])
    return kept.result().positions


def by_sorting(given: Setting, sae: Any) -> np.ndarray:
    """The same from the activations of all tokens, stored and sorted feature by feature."""
    values, positions = [], []
    for batch in stream(given.subject, given.corpus, given.settings.batch_tokens):
        values += [features for _, features in encoded(sae, batch.residual)]
        positions.append(batch.positions)
    stored, at = torch.cat(values), torch.cat(positions).numpy()
    documents, found = given.corpus.document_of[at], np.full((stored.shape[1], EXAMPLES), -1)
    for feature in range(stored.shape[1]):
        order = torch.argsort(stored[:, feature], descending=True, stable=True).numpy()
        order = order[stored[:, feature].numpy()[order] > 0]
        _, first = np.unique(documents[order], return_index=True)
        best = at[order[np.sort(first)[:EXAMPLES]]]
        found[feature, : len(best)] = best
    return found


def rows(setting: Setting, sizes: Sizes) -> list[Row]:
    """Time of one pass against time of sorting; what each holds is measured in processes of their own."""

    def ours() -> float:
        in_one_pass(setting, setting.sae)
        return float(setting.tokens)

    def theirs() -> float:
        by_sorting(setting, setting.sae)
        return float(setting.tokens)

    pairs = in_turn(ours, theirs, sizes.runs)
    told = f"{setting.tokens:,} tokens, {setting.sae.cfg.d_sae} features, {EXAMPLES} examples of each"
    what, against = (
        "activating examples of all features, one pass",
        "storing all activations and sorting them",
    )
    return [compared(what, against, pairs, "time", None, told)]
