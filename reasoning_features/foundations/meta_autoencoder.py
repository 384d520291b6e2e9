"""Composition: how far a dictionary's directions are sums of a few others (OrtSAE, 2509.22033).

A MetaSAE, BatchTopK with a quarter as many latents and four active ones a row, is trained on the decoder
rows, unit-normalised; composition is the fraction of their variance that it explains. Lower is more atomic.
The number depends on the width: with as many latents as dimensions four of them explain much of any row, so
it is to be read beside that of as many random directions, and between dictionaries of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
from sae_lens.config import SAETrainerConfig
from torch import Tensor

from reasoning_features.dictionaries.training import AUXILIARY
from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import shuffled_batches
from reasoning_features.statistics import Interval, bootstrap_weights, percentile_interval

Array = NDArray[np.float64]
ACTIVE = 4
"""Active latents a row, on average."""
FEWER = 4
"""The MetaSAE has so many times fewer latents than the dictionary."""
DEAD_AFTER = 100
"""Steps without activity after which a latent is dead."""
STEPS, BATCH, LEARNING_RATE = 400, 2048, 3e-3
"""Of 512 rows, all at a step; five times as many explained 0.02 more of ReLU's rows, 0.003 of TopK's."""


@dataclass(frozen=True)
class Composition:
    """How well MetaSAEs reconstruct a dictionary's rows.

    Attributes:
        error: ``[seeds, s]`` squared distance of each unit row from its reconstruction.
        deviation: ``[s]`` squared distance of each unit row from their mean.
    """

    error: Array
    deviation: Array

    @property
    def by_seed(self) -> Array:
        """Fraction of variance explained ``[seeds]``."""
        return 1 - self.error.sum(1) / self.deviation.sum()

    def interval(self, n_resamples: int = 2000, seed: int = 0) -> Interval:
        """Fraction of variance explained, mean over seeds, with its 95% interval; ``n`` counts the rows.

        Seeds and rows are resampled together. The rows are those that the MetaSAE was trained on.
        """
        seeds, rows = self.error.shape
        of_seeds = bootstrap_weights(seeds, n_resamples, seed) / seeds
        of_rows = bootstrap_weights(rows, n_resamples, seed + 1)
        unexplained = ((of_seeds @ self.error) * of_rows).sum(1) / (of_rows @ self.deviation)
        return percentile_interval(float(self.by_seed.mean()), 1 - unexplained, rows)


def composition(decoder: Tensor, seeds: Sequence[int] = (0, 1, 2)) -> Composition:
    """Train MetaSAEs on a dictionary's rows; the same arguments give the same bytes on the same machine.

    Args:
        decoder: ``[s, d]`` directions; leave dead latents out.
        seeds: of the MetaSAEs.

    Raises:
        UserError: too few directions for a MetaSAE of as many latents as are to be active.
    """
    if len(decoder) < FEWER * ACTIVE:
        raise UserError(
            f"A MetaSAE of {len(decoder)} rows has fewer than {ACTIVE} latents: "
            f"give a dictionary of at least {FEWER * ACTIVE} live ones."
        )
    rows = torch.nn.functional.normalize(decoder.detach().float().cpu(), dim=1)
    error = np.stack([_errors(_trained(rows, seed), rows) for seed in seeds])
    return Composition(error, (rows - rows.mean(0)).double().square().sum(1).numpy())


def _trained(rows: Tensor, seed: int) -> BatchTopKTrainingSAE:
    """A MetaSAE of unit rows ``[s, d]``."""
    batch = min(BATCH, len(rows))
    config = BatchTopKTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=len(rows) // FEWER,
        k=ACTIVE,
        aux_loss_coefficient=AUXILIARY,
        normalize_activations="none",
    )
    schedule = SAETrainerConfig(
        total_training_samples=STEPS * batch,
        train_batch_size_samples=batch,
        lr=LEARNING_RATE,
        lr_end=0.0,
        lr_decay_steps=STEPS // 5,
        dead_feature_window=DEAD_AFTER,
    )
    scaled = rows * rows.shape[1] ** 0.5  # inputs of norm √d, for which SAELens' learning rates are meant
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        meta = BatchTopKTrainingSAE(config)
    meta.b_dec.data = scaled.mean(0)
    trainer: SAETrainer[Any, Any] = SAETrainer(
        cfg=schedule, sae=meta, data_provider=shuffled_batches(scaled, batch, seed)
    )
    with redirect_stderr(StringIO()):  # a bar for each of many short trainings; callers show one for all
        return trainer.fit()


@torch.no_grad()
def _errors(meta: BatchTopKTrainingSAE, rows: Tensor) -> Array:
    """Squared distance of each unit row from its reconstruction ``[s]``, with ``ACTIVE`` latents a row."""
    scale = rows.shape[1] ** 0.5
    rebuilt = meta.decode(meta.encode(rows * scale)) / scale
    return (rows - rebuilt).double().square().sum(1).numpy()
