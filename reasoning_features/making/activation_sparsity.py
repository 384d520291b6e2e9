"""``make activation-sparsity``: what notebook 10 reads of a profile, in shards that are made once.

On the organism three seeds are studied, and a model with large biases is made first, for a lesson: the
organism in Qwen2's form, whose queries, keys and values have biases.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.making.organism import (
    VARIANT_RECIPE,
    VARIANTS,
    load_model,
    variant_document,
    write_checksums,
)
from reasoning_features.organism.training import train_and_save
from reasoning_features.settings import Settings, load_settings
from reasoning_features.sparsity.study import BIASED, store

HOME = "data/organism/activation_sparsity"
PARENT = "coupled-0"
SPREAD = 2.0  # standard deviation of the biases that training starts from
RECIPE = replace(VARIANT_RECIPE, tokens=300_000)
SEEDS = range(3)
SHAPE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)


def make_biased(folder: Path) -> None:
    """The organism as a Qwen2, from ``PARENT``'s weights and random biases, trained on the same documents."""
    parent, tokenizer = load_model(paths.root() / "data/organism", PARENT)
    own = parent.config.to_dict()
    model = Qwen2ForCausalLM(Qwen2Config(**{name: own[name] for name in SHAPE}))
    model.load_state_dict(parent.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(RECIPE.seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, SPREAD, generator)
    card = {"name": folder.name, "parent": PARENT, "kappa": 1.0, "bias": SPREAD}
    train_and_save(model, tokenizer, partial(variant_document, VARIANTS[0]), RECIPE, card, folder)


def organism_settings(seed: int) -> Settings:
    """The organism's settings with the model of a seed, and its autoencoder."""
    name = f"coupled-{seed}"
    places = {"subject": f"data/organism/models/{name}"}
    return load_settings("organism", **places, autoencoder=f"data/organism/autoencoders/{name}-relu-0")


def main() -> None:
    """The command line: ``python -m reasoning_features.making.activation_sparsity [--profile P]``."""
    parser = argparse.ArgumentParser(description="Make what notebook 10 reads (resumable).")
    parser.add_argument("--profile", default="organism")
    options = parser.parse_args()
    try:
        settings = load_settings(options.profile)
        kept = paths.RunPaths(settings.profile).shards
        if settings.activation_sparsity != HOME:
            store(settings, kept)
            return
        torch.set_num_threads(1)  # a rerun gives the same bytes
        if not (paths.root() / BIASED).is_dir():
            make_biased(paths.root() / BIASED)
        for seed in SEEDS:
            store(organism_settings(seed), kept)
        write_checksums(paths.root() / "data/organism")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
