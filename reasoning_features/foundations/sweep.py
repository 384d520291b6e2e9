"""OrtSAE's settings against what they change: short trainings, their reconstruction and geometry."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.evaluation import reconstruct
from reasoning_features.dictionaries.training import Recipe, new_trainer, train_autoencoder
from reasoning_features.foundations.dictionary_geometry import mean_cos_sim
from reasoning_features.foundations.meta_autoencoder import composition
from reasoning_features.residual_stream.activations import Moments, shuffled_batches

MEASURED_ON = 65_536
"""Activations on which live latents are counted."""


def sweep_rows(residual: Tensor, recipes: Sequence[Recipe], model_name: str, hook_name: str) -> pd.DataFrame:
    """Train each recipe on activations ``[n, d]`` and measure it.

    Returns:
        A row a recipe: ``gamma``, ``chunks``, ``every``, ``seed``, ``tokens``, ``L0`` and ``fraction of
        variance explained`` (held out), ``dead share``, ``MeanCosSim`` and ``composition`` (live latents).
    """
    rows = []
    for recipe in tqdm(recipes, desc="OrtSAE's settings", unit="training"):
        trained = train_autoencoder(residual, recipe, model_name, hook_name)
        last = trained.history.iloc[-1]
        found = reconstruct(trained.sae, residual[:MEASURED_ON])
        live = trained.sae.W_dec[found.live]
        told = {name: getattr(recipe, name) for name in ("gamma", "chunks", "every", "seed", "tokens")}
        told |= {name: float(last[name]) for name in ("L0", "fraction of variance explained")}
        told |= {"dead share": found.dead_share, "MeanCosSim": mean_cos_sim(live).estimate}
        rows.append(told | {"composition": float(composition(live, seeds=[recipe.seed]).by_seed.mean())})
    return pd.DataFrame(rows)


def step_times(
    residual: Tensor, recipes: Mapping[str, Recipe], hook_name: str, steps: int = 5, runs: int = 9
) -> pd.DataFrame:
    """Seconds of a training step of several recipes, run in turn, after as many steps to warm up.

    Args:
        residual: activations ``[n, d]``.
        recipes: name → recipe, of one batch size.
        hook_name: where the activations were read.
        steps: steps of each recipe that are timed together.
        runs: how often.

    Returns:
        Rows of ``name``, ``features``, ``batch``, ``run``, ``seconds`` (of one step).
    """
    moments, trainers = Moments.of(residual), {}
    for name, recipe in recipes.items():
        data = shuffled_batches(residual, recipe.batch, recipe.seed)
        trainers[name] = new_trainer(recipe, "model", hook_name, moments, data, "cpu")
    rows = []
    for run in range(-1, runs):
        for name, trainer in trainers.items():
            began = time.perf_counter()
            for _ in range(steps):
                trainer.step(next(trainer.data_provider))
                trainer.n_training_steps += 1
            taken = (time.perf_counter() - began) / steps
            if run >= 0:
                recipe = recipes[name]
                told = {"name": name, "features": recipe.d_sae, "batch": recipe.batch}
                rows.append(told | {"run": run, "seconds": taken})
    return pd.DataFrame(rows)
