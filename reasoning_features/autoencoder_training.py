"""Training a sparse autoencoder on activations in memory, with SAELens' trainer.

Two architectures: "relu", the paper's (loss ‖x − x̂‖² + λ Σ_i f_i ‖W_dec,i‖₂), and "topk". The paper's
schedule: Adam (0.9, 0.999), gradient clipped at 1, learning rate falling linearly over the last 20% of the
steps, λ warming up over the first 5%, input scaled by its expected norm. The scaling is folded into the
weights at the end, so that an SAE given back here works on raw activations.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import (
    SAE,
    SAETrainer,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from torch import Tensor

from reasoning_features import checksums, paths
from reasoning_features.activations import Moments, shuffled_batches
from reasoning_features.autoencoder import matched_share, paired_share, quality
from reasoning_features.errors import UserError

Architecture = Literal["relu", "topk"]
HELD_OUT = 8192


@dataclass(frozen=True)
class Recipe:
    """What determines a trained SAE besides its activations.

    Attributes:
        architecture: "relu" (the paper's) or "topk".
        d_sae: number of features.
        tokens: activations seen in training, repeats included.
        learning_rate: Adam's, before its decay.
        batch: activations a step.
        seed: sets the start and the order of the data. The model's name and the architecture go into it too:
            two SAEs that start alike would look alike for that reason alone.
        k: active features ("topk").
        l1: λ, in units of the scaled input ("relu").
    """

    architecture: Architecture
    d_sae: int
    tokens: int
    learning_rate: float
    batch: int = 2048
    seed: int = 0
    k: int = 16
    l1: float = 5.0

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.tokens // self.batch

    def start(self, model_name: str) -> int:
        """The seed of the random streams for a model."""
        text = f"{model_name}/{self.architecture}/{self.seed}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


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
    if recipe.steps < 1:
        raise UserError(
            f"{recipe.tokens:,} training tokens are fewer than one batch of {recipe.batch:,}: "
            "raise train_tokens."
        )
    start = recipe.start(model_name)
    order = torch.randperm(len(residual), generator=torch.Generator().manual_seed(start))
    n_held_out = min(HELD_OUT, len(residual) // 10)
    held_out, sample = residual[order[:n_held_out]].to(device), residual[order[n_held_out:]]
    moments = Moments.of(sample)
    scale = sample.shape[1] ** 0.5 / moments.mean_norm
    metadata = SAEMetadata(model_name=model_name, hook_name=hook_name, recipe=asdict(recipe))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        sae = _new(recipe, sample.shape[1], metadata).to(device)
    if initial is not None:
        _start_from(sae, initial, scale)
    else:
        sae.b_dec.data = torch.from_numpy(moments.mean * scale).to(sae.b_dec)
        if not sae.cfg.apply_b_dec_to_input:  # then the encoder's bias takes the mean away instead
            sae.b_enc.data = -(sae.b_dec.data @ sae.W_enc.data)
    trainer = SAETrainer(
        cfg=_schedule(recipe, device), sae=sae, data_provider=shuffled_batches(sample, recipe.batch, start)
    )
    trainer.activation_scaler.scaling_factor = scale
    rows: list[dict[str, float]] = []
    decoders: dict[int, Tensor] = {}
    live: dict[int, NDArray[np.bool_]] = {}

    def record(checkpoint_path: Path | None = None) -> None:
        step = trainer.n_training_samples // recipe.batch
        numbers, live[step] = _held_out(trainer, held_out * scale)
        rows.append({"step": step, "tokens": trainer.n_training_samples} | numbers)
        decoders[step] = sae.W_dec.detach().cpu().clone()

    trainer.save_checkpoint_fn = record
    last = recipe.steps
    trainer.checkpoint_thresholds = [
        step * recipe.batch - 1 for step in sorted({*record_at, last}) if 0 < step <= last
    ]
    record()
    trainer.fit()
    if sae.cfg.normalize_activations != "none" or trainer.activation_scaler.scaling_factor is not None:
        raise AssertionError("the input scaling was not folded into the weights")
    return Training(_inference(sae), pd.DataFrame(rows), decoders, live)


def save_autoencoder(
    sae: SAE[Any], directory: Path, tables: Mapping[str, pd.DataFrame] | None = None
) -> None:
    """Write an inference SAE in SAELens' format, whole or not at all; refuses to overwrite.

    Args:
        sae: the SAE.
        directory: where it goes.
        tables: tables to keep beside it as CSV, by name (how it was trained, how it agrees with another).

    Raises:
        UserError: the directory is there already.
    """
    if directory.exists():
        raise UserError(f"{paths.relative(directory)} is there already: delete it or choose another name.")
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    sae.save_model(partial)
    cfg = partial / "cfg.json"
    cfg.write_text(json.dumps(json.loads(cfg.read_text()), indent=1, sort_keys=True) + "\n")
    for name, table in (tables or {}).items():
        table.to_csv(partial / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
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
        setting = f"k = {recipe.k}" if recipe.architecture == "topk" else f"λ = {recipe.l1:g}"
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


def _new(recipe: Recipe, d_in: int, metadata: SAEMetadata) -> TrainingSAE[Any]:
    common: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": recipe.d_sae,
        "normalize_activations": "expected_average_only_in",
        "metadata": metadata,
    }
    if recipe.architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**common, k=recipe.k))
    penalty = {"l1_coefficient": recipe.l1, "l1_warm_up_steps": max(1, recipe.steps // 20)}
    return StandardTrainingSAE(StandardTrainingSAEConfig(**common, **penalty, apply_b_dec_to_input=False))


def _start_from(sae: TrainingSAE[Any], initial: SAE[Any], scale: float) -> None:
    """Gives a new SAE the features of one on raw activations, while its own inputs are scaled."""
    if initial.cfg.architecture() != sae.cfg.architecture() or initial.W_enc.shape != sae.W_enc.shape:
        raise UserError(
            f"Training cannot go on from a {initial.cfg.architecture()} autoencoder of {initial.cfg.d_sae} "
            f"features on width {initial.cfg.d_in}: the recipe makes a {sae.cfg.architecture()} one of "
            f"{sae.cfg.d_sae} on {sae.cfg.d_in}."
        )
    sae.W_enc.data = (initial.W_enc.data / scale).to(sae.W_enc)
    sae.W_dec.data = (initial.W_dec.data * scale).to(sae.W_dec)
    sae.b_dec.data = (initial.b_dec.data * scale).to(sae.b_dec)
    sae.b_enc.data = initial.b_enc.data.clone().to(sae.b_enc)


def _schedule(recipe: Recipe, device: str) -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=recipe.steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.learning_rate,
        lr_end=0.0,
        lr_decay_steps=recipe.steps // 5,
        device=device,
    )


@torch.no_grad()
def _held_out(trainer: SAETrainer[Any, Any], scaled: Tensor) -> tuple[dict[str, float], NDArray[np.bool_]]:
    sae = trainer.sae
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=scaled,
            coefficients=trainer.get_coefficients(),
            dead_neuron_mask=None,
            n_training_steps=trainer.n_training_steps,
            is_logging_step=False,
        )
    )
    error = (scaled - output.sae_out).double().square().sum()
    deviation = (scaled - scaled.mean(0)).double().square().sum()
    active = output.feature_acts > 0
    live = active.any(0).cpu().numpy()
    numbers = {
        "loss": float(output.loss),
        "L0": float(active.sum(1).double().mean()),
        "fraction of variance explained": float(1 - error / deviation),
        "dead share": float(1 - live.mean()),
    }
    return numbers, live


def _inference(sae: TrainingSAE[Any]) -> SAE[Any]:
    """The inference SAE of a trained one, exactly as a saved and reloaded copy has it."""
    sae.to("cpu").cfg.device = "cpu"
    with tempfile.TemporaryDirectory() as directory:
        sae.save_inference_model(directory)
        return SAE.load_from_disk(directory).requires_grad_(False).eval()
