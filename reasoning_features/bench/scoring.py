"""ReasonScore's statistics against a bare pass of the model, and against the released procedure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasoning_features.bench.setting import Setting, Sizes, random_autoencoder
from reasoning_features.bench.timing import Bar, Row, compared, in_turn
from reasoning_features.dictionaries.autoencoder import encoded
from reasoning_features.residual_stream import activations
from reasoning_features.scoring.feature_statistics import FeatureStatistics, accumulate
from reasoning_features.text.corpus import TokenBatch

AT_ONCE = 48
"""Features for which the released script runs the model over the data once (its ``feature_batch``)."""


def statistics(setting: Setting, sae: Any) -> FeatureStatistics:
    """Our pass: sums of all features over all sets."""
    batches = activations.stream(setting.subject, setting.corpus, setting.settings.batch_tokens)
    return accumulate(batches, sae, setting.sets)


def _residuals(setting: Setting, batches: Sequence[TokenBatch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Residual activations ``[n, d]`` of a batch's tokens that count, and their positions ``[n]``."""
    special = torch.from_numpy(setting.corpus.special)
    for batch in batches:
        counted = batch.valid.clone()
        counted[batch.valid] = ~special[batch.positions[batch.valid]]
        yield setting.subject.residual(batch.tokens)[counted], batch.positions[counted]


def bare_pass(setting: Setting, sae: Any, batches: Sequence[TokenBatch]) -> None:
    """The model up to the hook point and the autoencoder's encoder, and nothing else."""
    for residual, _ in _residuals(setting, batches):
        for _part in encoded(sae, residual):
            pass


@torch.no_grad()
def released_pass(
    setting: Setting, sae: Any, batches: Sequence[TokenBatch], features: Sequence[int]
) -> FeatureStatistics:
    """One pass of the released procedure: some features' activations kept for all tokens, then their means.

    Only these features are encoded, which is the least that the procedure can do.
    """
    encoder, bias = sae.W_enc[:, list(features)], sae.b_enc[list(features)]
    values, positions = [], []
    for residual, at in _residuals(setting, batches):
        values.append(torch.relu(residual @ encoder + bias))
        positions.append(at)
    held, order = torch.cat(values), torch.cat(positions).numpy()
    sums, counts = [], []
    for name in setting.sets.names:
        inside = held[torch.from_numpy(setting.sets.mask(name)[order])]
        sums.append(inside.sum(0, dtype=torch.float64).numpy())
        counts.append(len(inside))
    return FeatureStatistics(setting.sets.names, np.array(counts, dtype=float), np.stack(sums))


def rows(setting: Setting, sizes: Sizes) -> list[Row]:
    """ReasonScore at two widths against the bare pass; at the wider one against the released procedure."""
    batches = list(setting.corpus.batches(setting.settings.batch_tokens))
    wide = random_autoencoder(setting.residual, sizes.wide)
    found = []
    for sae in (setting.sae, wide):
        active = _active(setting, sae)
        pairs = in_turn(partial(_scored, setting, sae), partial(_bare, setting, sae, batches), sizes.runs)
        width = f"{sae.cfg.d_sae:,} features ({active:.3g} active on a token)"
        told = f"{setting.tokens:,} tokens, {width}, {len(setting.sets.names)} sets"
        bare = "the model's prefix and the encoder alone, same batches"
        of = "ReasonScore's statistics of all features"
        found.append(compared(of, bare, pairs, "time", Bar("at most", 1.15), told))
    passes = math.ceil(sizes.wide / AT_ONCE)
    ran = min(sizes.released_passes, passes)

    def released() -> float:
        for i in range(ran):
            features = range(i * AT_ONCE, min((i + 1) * AT_ONCE, sizes.wide))
            released_pass(setting, wide, batches, features)
        return setting.tokens * ran / passes

    pairs = in_turn(partial(_scored, setting, wide), released, sizes.runs)
    note = f"{passes} passes; {ran} of them are run each time and the time multiplied"
    against = f"the released procedure, {AT_ONCE} features a pass"
    found.append(compared(of, against, pairs, "speed", Bar("at least", 30), told, note))
    return found


def _scored(setting: Setting, sae: Any) -> float:
    statistics(setting, sae)
    return float(setting.tokens)


def _bare(setting: Setting, sae: Any, batches: Sequence[TokenBatch]) -> float:
    bare_pass(setting, sae, batches)
    return float(setting.tokens)


def _active(setting: Setting, sae: Any) -> float:
    features = sae.encode(setting.residual[:4096])
    return float((features > 0).sum(1).double().mean())
