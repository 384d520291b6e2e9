"""Training a sparse autoencoder on activations in memory, and comparing what trainings find.

How one is trained stands in :mod:`reasoning_features.dictionaries.autoencoder_recipe` and
:mod:`reasoning_features.dictionaries.autoencoder_trainer`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor

from reasoning_features import checksums, paths
from reasoning_features.dictionaries.autoencoder import (
    gaussian_directions,
    matched_share,
    paired_share,
    quality,
)
from reasoning_features.dictionaries.autoencoder_recipe import Recipe
from reasoning_features.dictionaries.autoencoder_trainer import (
    HELD_OUT,
    finished,
    held_out_quality,
    new_trainer,
)
from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import Moments, shuffled_batches


@dataclass(frozen=True)
class Training:
    """A trained SAE and how it got there.

    Attributes:
        sae: SAELens' inference SAE, on raw activations.
        history: one row a recorded step: ``step``, ``tokens``, ``loss`` (held-out, scaled input), ``L0``,
            ``fraction of variance explained``, ``dead share`` (all on held-out activations).
        decoders: decoder directions ``[s, d]`` at each recorded step.
        live: ``[s]`` True for features active on a held-out activation, at each recorded step.
    """

    sae: SAE[Any]
    history: pd.DataFrame
    decoders: dict[int, Tensor]
    live: dict[int, NDArray[np.bool_]]


def train_autoencoder(
    residual: Tensor,
    recipe: Recipe,
    model_name: str,
    hook_name: str,
    record_at: Sequence[int] = (),
    device: str = "cpu",
    initial: SAE[Any] | None = None,
) -> Training:
    """Train an SAE on activations ``[n, d]``; the same arguments give the same bytes on the same machine.

    The first 8,192 activations of a seeded order (at most a tenth) are held out, and seen by no step.

    Args:
        residual: raw activations, float32.
        recipe: architecture, size and schedule.
        model_name: what the activations are of; kept in the SAE's metadata.
        hook_name: where they were read; kept in the SAE's metadata.
        record_at: steps after which the held-out metrics and the decoder are recorded, beside 0 and the last.
        device: where to train.
        initial: an SAE on raw activations to go on from; by default a random start.

    Raises:
        UserError: too few activations for one batch, too few tokens for one step, or an SAE to go on from
            that is not of the recipe's kind and size.
    """
    start = recipe.start(model_name)
    order = torch.randperm(len(residual), generator=torch.Generator().manual_seed(start))
    n_held_out = min(HELD_OUT, len(residual) // 10)
    held_out, sample = residual[order[:n_held_out]].to(device), residual[order[n_held_out:]]
    data = shuffled_batches(sample, recipe.batch, start)
    directions = start_directions(recipe, sample, start)
    trainer = new_trainer(
        recipe, model_name, hook_name, Moments.of(sample), data, device, initial, directions
    )
    rows: list[dict[str, float]] = []
    decoders: dict[int, Tensor] = {}
    live: dict[int, NDArray[np.bool_]] = {}

    def record(checkpoint_path: Path | None = None) -> None:
        step = trainer.n_training_samples // recipe.batch
        numbers, live[step] = held_out_quality(trainer, held_out)
        rows.append({"step": step, "tokens": trainer.n_training_samples} | numbers)
        decoders[step] = trainer.sae.W_dec.detach().cpu().clone()

    trainer.save_checkpoint_fn = record
    last = recipe.steps
    trainer.checkpoint_thresholds = [
        step * recipe.batch - 1 for step in sorted({*record_at, last}) if 0 < step <= last
    ]
    record()
    trainer.fit()
    return Training(finished(trainer), pd.DataFrame(rows), decoders, live)


def start_directions(recipe: Recipe, residual: Tensor, seed: int) -> Tensor | None:
    """Where a recipe's decoder directions start ``[d_sae, d]``; None where SAELens draws them.

    Args:
        recipe: says how they are drawn.
        residual: activations ``[n, d]``, for their covariance.
        seed: of the draw.
    """
    if recipe.directions == "cov":
        return gaussian_directions(residual, recipe.d_sae, seed)
    if recipe.directions == "iso":
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(recipe.d_sae, residual.shape[1], generator=generator)
    return None


def save_autoencoder(
    sae: SAE[Any],
    directory: Path,
    tables: Mapping[str, pd.DataFrame] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an inference SAE in SAELens' format, whole or not at all; refuses to overwrite unless told to.

    Args:
        sae: the SAE.
        directory: where it goes.
        tables: tables to keep beside it as CSV, by name (how it was trained, how it agrees with another).
        overwrite: replace one that is there, as an interrupted run may have left it in an unfinished folder.

    Raises:
        UserError: the directory is there already.
    """
    if directory.exists() and not overwrite:
        raise UserError(f"{paths.relative(directory)} is there already: delete it or choose another name.")
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    sae.save_model(partial)
    cfg = partial / "cfg.json"
    cfg.write_text(json.dumps(json.loads(cfg.read_text()), indent=1, sort_keys=True) + "\n")
    for name, table in (tables or {}).items():
        table.to_csv(partial / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(partial, directory)


def convergence(first: Training, second: Training, threshold: float = 0.7) -> pd.DataFrame:
    """How much of what one seed finds another finds too, at the steps both recorded.

    Returns:
        ``step``, ``tokens``, and ``matched share``: the share of either's live features that has a live
        partner in the other at cosine ≥ ``threshold``, averaged over the two directions; and
        ``paired one to one``: the same where no partner counts twice.
    """
    tokens = first.history.set_index("step")["tokens"]
    rows = []
    for step in sorted(first.decoders.keys() & second.decoders.keys()):
        one, other = first.decoders[step][first.live[step]], second.decoders[step][second.live[step]]
        share = (matched_share(one, other, threshold) + matched_share(other, one, threshold)) / 2
        paired = (paired_share(one, other, threshold) + paired_share(other, one, threshold)) / 2
        shares = {"matched share": share, "paired one to one": paired}
        rows.append({"step": step, "tokens": tokens[step]} | shares)
    return pd.DataFrame(rows)


def shipped_agreement(sae: SAE[Any], directory: str) -> pd.DataFrame | None:
    """What :func:`convergence` gave when a shipped SAE and its second seed were trained; None if not kept.

    Args:
        sae: the shipped SAE.
        directory: where it is, as in the settings; the table is ``convergence/<model>.parquet`` beside the
            folder of autoencoders.
    """
    home = (paths.root() / directory).parent.parent
    table = home / "convergence" / f"{sae.cfg.metadata.model_name}.parquet"
    if not table.is_file():
        return None
    checksums.verify_shipped(table)
    return pd.read_parquet(table)


def sweep(
    residual: Tensor,
    held_out: Tensor,
    recipes: Sequence[Recipe],
    model_name: str,
    hook_name: str,
    device: str = "cpu",
) -> pd.DataFrame:
    """Train two seeds of each recipe; measure the first on activations it has not seen, and their agreement.

    Returns:
        Rows of ``architecture``, ``setting`` (its k or λ), ``L0``, ``fraction of variance explained``,
        ``dead share``, ``matched share``, ``paired one to one``.
    """
    rows = []
    for recipe in recipes:
        first, second = (
            train_autoencoder(residual, replace(recipe, seed=seed), model_name, hook_name, device=device)
            for seed in (recipe.seed, recipe.seed + 1)
        )
        setting = f"λ = {recipe.l1:g}" if recipe.architecture == "relu" else f"k = {recipe.k:g}"
        shares = convergence(first, second).iloc[-1][["matched share", "paired one to one"]]
        named = {"architecture": recipe.architecture, "setting": setting}
        rows.append(named | quality(first.sae, held_out) | shares.to_dict())
    return pd.DataFrame(rows).drop(columns="median density")


def equal_l0(frontier: pd.DataFrame, l0: float) -> pd.DataFrame:
    """The rows of :func:`sweep` at one L0: for each architecture between its rows, linearly in log L0.

    Returns:
        A row an architecture, with ``fraction of variance explained``, ``matched share``,
        ``paired one to one``; NaN outside the range of L0 that its rows span.
    """
    found = []
    for architecture, rows in frontier.sort_values("L0").groupby("architecture"):
        at = {
            column: np.interp(np.log(l0), np.log(rows["L0"]), rows[column], left=np.nan, right=np.nan)
            for column in ("fraction of variance explained", "matched share", "paired one to one")
        }
        found.append({"architecture": architecture} | at)
    return pd.DataFrame(found)
