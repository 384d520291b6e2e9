"""SAELens' trainer set up by a recipe, and what comes out of it.

The paper's schedule: Adam (0.9, 0.999), gradient clipped at 1, learning rate falling linearly over the last
20% of the steps, penalties warming up over the first 5%, input scaled by its expected norm. The scaling is
folded into the weights at the end, so that an SAE given back here works on raw activations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE, BatchTopKTrainingSAE, JumpReLUTrainingSAE, SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from torch import Tensor
from torch.nn.functional import normalize

from reasoning_features.architectures import SoftFrozenDecoder
from reasoning_features.dictionaries.autoencoder_recipe import Recipe, new_autoencoder
from reasoning_features.dictionaries.encoding import rows_at_once
from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import Moments

HELD_OUT = 8192
"""Activations that no step sees, on which a training is judged."""


def new_trainer(
    recipe: Recipe,
    model_name: str,
    hook_name: str,
    moments: Moments,
    data: Iterator[Tensor],
    device: str,
    initial: SAE[Any] | None = None,
    directions: Tensor | None = None,
    **metadata: Any,
) -> SAETrainer[Any, Any]:
    """SAELens' trainer at the first step; the same arguments give the same start.

    Args:
        recipe: architecture, size and schedule.
        model_name: what the activations are of; kept in the SAE's metadata.
        hook_name: where they were read; kept in the SAE's metadata.
        moments: of activations, for the scale and the start of the bias.
        data: endless batches of raw activations.
        device: where to train.
        initial: an SAE on raw activations to go on from; by default a random start.
        directions: ``[d_sae, d]`` where decoder directions start; by default as SAELens draws them.
        metadata: what else the SAE's metadata keeps.

    Raises:
        UserError: too few tokens for one step, or an SAE to go on from that is of another kind or size.
    """
    if recipe.steps < 1:
        raise UserError(
            f"{recipe.tokens:,} training tokens are fewer than one batch of {recipe.batch:,}: "
            "raise train_tokens."
        )
    width = len(moments.total)
    scale = width**0.5 / moments.mean_norm
    about = SAEMetadata(model_name=model_name, hook_name=hook_name, recipe=recipe.told, **metadata)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.start(model_name))
        sae = new_autoencoder(recipe, width, model_name, about).to(device)
    if directions is not None:
        _start_at(sae, directions)
    if initial is not None:
        _start_from(sae, initial, scale)
    else:
        sae.b_dec.data = torch.from_numpy(moments.mean * scale).to(sae.b_dec)
        if not sae.cfg.apply_b_dec_to_input:  # then the encoder's bias takes the mean away instead
            sae.b_enc.data = -(sae.b_dec.data @ sae.W_enc.data)
    trainer = SAETrainer(cfg=_schedule(recipe, device), sae=sae, data_provider=data)
    trainer.activation_scaler.scaling_factor = scale
    return trainer


@torch.no_grad()
def _start_at(sae: TrainingSAE[Any], directions: Tensor) -> None:
    """Gives a new SAE its decoder directions, and its encoder the same, as SAELens does where it draws."""
    length = sae.cfg.decoder_init_norm
    sae.W_dec.data = (normalize(directions, dim=1) * length).to(sae.W_dec)
    sae.W_enc.data = sae.W_dec.data.T.clone(memory_format=torch.contiguous_format)
    if isinstance(sae, SoftFrozenDecoder):
        sae.start = sae.W_dec.data.clone()


def _start_from(sae: TrainingSAE[Any], initial: SAE[Any], scale: float) -> None:
    """Gives a new SAE the features of one on raw activations, while its own inputs are scaled."""
    kind = sae.cfg.get_inference_config_class().architecture()
    if initial.cfg.architecture() != kind or initial.W_enc.shape != sae.W_enc.shape:
        raise UserError(
            f"Training cannot go on from a {initial.cfg.architecture()} autoencoder of {initial.cfg.d_sae} "
            f"features on width {initial.cfg.d_in}: the recipe makes a {kind} one of "
            f"{sae.cfg.d_sae} on {sae.cfg.d_in}."
        )
    sae.W_enc.data = (initial.W_enc.data / scale).to(sae.W_enc)
    sae.W_dec.data = (initial.W_dec.data * scale).to(sae.W_dec)
    sae.b_dec.data = (initial.b_dec.data * scale).to(sae.b_dec)
    sae.b_enc.data = initial.b_enc.data.clone().to(sae.b_enc)
    if isinstance(sae, BatchTopKTrainingSAE):  # its threshold is in units of the decoder's norms
        sae.topk_threshold = (initial.threshold * initial.W_dec.norm(dim=1)).mean().double() * scale
    elif isinstance(sae, JumpReLUTrainingSAE):
        sae.threshold.data = initial.threshold.data.clone().to(sae.threshold)


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
def held_out_quality(
    trainer: SAETrainer[Any, Any], held_out: Tensor
) -> tuple[dict[str, float], NDArray[np.bool_]]:
    """Loss (of scaled input), L0, explained variance and dead share on raw activations ``[n, d]``.

    Returns:
        The numbers by name, and which features are active on any of them ``[f]``.
    """
    sae, scaled = trainer.sae, held_out * trainer.activation_scaler.scaling_factor
    mean, parts = scaled.mean(0), scaled.split(rows_at_once(sae))
    loss, error, deviation, active = 0.0, 0.0, 0.0, 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=scaled.device)
    kept = {name: buffer.clone() for name, buffer in sae.named_buffers(recurse=False)}
    for part in parts:
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=part,
                coefficients=trainer.get_coefficients(),
                dead_neuron_mask=None,
                n_training_steps=trainer.n_training_steps,
                is_logging_step=False,
            )
        )
        loss += float(output.loss) * len(part) / len(scaled)
        error += float((part - output.sae_out).double().square().sum())
        deviation += float((part - mean).double().square().sum())
        active += float((output.feature_acts > 0).sum(1).double().sum())
        fired |= (output.feature_acts > 0).any(0)
    for name, buffer in kept.items():  # a pass moves BatchTopK's threshold, and this one is no step
        setattr(sae, name, buffer)
    live = fired.cpu().numpy()
    numbers = {
        "loss": loss,
        "L0": active / len(scaled),
        "fraction of variance explained": 1 - error / deviation,
        "dead share": float(1 - live.mean()),
    }
    return numbers, live


def finished(trainer: SAETrainer[Any, Any]) -> SAE[Any]:
    """The inference SAE of a training that is over, on raw activations, exactly as a saved copy loads."""
    sae, scale = trainer.sae, trainer.activation_scaler.scaling_factor
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
        trainer.activation_scaler.scaling_factor = None
        trainer.set_final_sae_metadata()
    if sae.cfg.normalize_activations != "none" or trainer.activation_scaler.scaling_factor is not None:
        raise AssertionError("the input scaling was not folded into the weights")
    sae.to("cpu").cfg.device = "cpu"
    with tempfile.TemporaryDirectory() as directory:
        sae.save_inference_model(directory)
        return SAE.load_from_disk(directory).requires_grad_(False).eval()
