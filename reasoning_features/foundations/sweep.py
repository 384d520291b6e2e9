"""OrtSAE's settings against what they change: short trainings, their reconstruction and geometry."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.autoencoder import reconstruct
from reasoning_features.autoencoder_recipe import Recipe
from reasoning_features.autoencoder_training import train_autoencoder
from reasoning_features.foundations.dictionary_geometry import mean_cos_sim
from reasoning_features.foundations.meta_autoencoder import composition

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
