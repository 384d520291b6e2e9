"""``make activation-sparsity``: what notebook 10 reads of a profile, in shards that are made once."""

import argparse
import sys

import torch

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.making.organism import write_checksums
from reasoning_features.settings import Settings, load_settings
from reasoning_features.sparsity.study import store

HOME = "data/organism/activation_sparsity"
SEEDS = range(3)


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
        for seed in SEEDS:
            store(organism_settings(seed), kept)
        write_checksums(paths.root() / "data/organism")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
