"""``make steering-safety``: what notebook 09 reads of a profile, in pieces that are made once.

On the organism the refusers come first: each variant where R matters is taught to refuse one class of
problems, after thinking or at once, and those that think get autoencoders. Then every refuser of the profile
is studied. The shards of a study are kept, so an interrupted one goes on.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import save_autoencoder
from reasoning_features.dictionaries.training import train_autoencoder
from reasoning_features.errors import UserError
from reasoning_features.making.organism import (
    PROSE_EVERY,
    RELU_RECIPE,
    evaluate,
    load_model,
    main_activations,
    write_checksums,
)
from reasoning_features.organism import language
from reasoning_features.organism.training import Recipe, train_and_save
from reasoning_features.runs.shards import each
from reasoning_features.settings import Settings, load_settings
from reasoning_features.steering.refusal_study import store, stored, study_folder

HOME = Path("data/organism/steering_safety")
RECIPE = Recipe(tokens=2_000_000, learning_rate=3e-3, seed=100)
KAPPA, TRACE_SEED = 1.0, 2000
REFUSED_EVERY = 4  # every fourth document is of the refused class, whatever was drawn
STRIDE = 10_000_000  # from one draw of such a document to the next
TRACES = 9000  # documents of traces that autoencoders are trained on
AUTOENCODER_RECIPE = replace(RELU_RECIPE, tokens=2_000_000)
LAYERS = (1, 2, 3)


def refuser_document(seed: int, thinks: bool, index: int) -> language.Document:
    """A fine-tuning document of a refuser."""
    if index % PROSE_EVERY == PROSE_EVERY - 1:
        return language.prose_document(TRACE_SEED + seed, index)
    document = language.refuser_document(KAPPA, TRACE_SEED + seed, index, thinks)
    while index % REFUSED_EVERY == 1 and document.kind != "refusal":
        index += STRIDE
        document = language.refuser_document(KAPPA, TRACE_SEED + seed, index, thinks)
    return document


def make_refuser(folder: Path, name: str) -> None:
    """One refuser of the organism, such as ``thinking-0``, from the variant of its seed."""
    kind, seed = name.split("-")
    parent = f"coupled-{seed}"
    recipe = replace(RECIPE, seed=RECIPE.seed + int(seed))
    card = {"name": name, "parent": parent, "kappa": KAPPA, "thinks": kind == "thinking"}
    document = partial(refuser_document, int(seed), kind == "thinking")
    train_and_save(*load_model(folder.parent, parent), document, recipe, card, folder / "models" / name)


def make_autoencoders(folder: Path, name: str) -> None:
    """A refuser's autoencoders, at each layer that is steered, as the organism's main one."""
    for layer in LAYERS:
        if (target := folder / "autoencoders" / f"{name}-{layer}").is_dir():
            continue
        subject, residual = main_activations(folder / "models" / name, TRACES, layer)
        trained = train_autoencoder(residual, AUTOENCODER_RECIPE, name, subject.hook_name)
        save_autoencoder(trained.sae, target, {"training": trained.history})


def make_organism(folder: Path, names: list[str], workers: int) -> None:
    """The refusers, their answers to the evaluation problems, and autoencoders of those that think; what is
    there is not made again.
    """
    for make, place in ((make_refuser, "models/{}"), (evaluate, "evaluation/{}.parquet")):
        missing = [name for name in names if not (folder / place.format(name)).exists()]
        each(partial(make, folder), missing, workers=workers)
    thinking = [name for name in names if name.startswith("thinking")]
    each(partial(make_autoencoders, folder), thinking, workers=workers)


def study(settings: Settings, name: str) -> None:
    """What steering does to one refuser, unless that is stored."""
    target = study_folder(settings, name)
    if stored(settings, target) is None:
        store(settings, name, target)


def main() -> None:
    """The command line: ``python -m reasoning_features.making.steering_safety [--profile P]``."""
    parser = argparse.ArgumentParser(description="Make what notebook 09 reads (resumable).")
    parser.add_argument("--profile", default="organism")
    parser.add_argument("--workers", type=int, default=1, help="pieces side by side, one thread each")
    options = parser.parse_args()
    try:
        settings = load_settings(options.profile)
        if not settings.refusers:
            raise UserError(f"The profile {settings.profile} names no model that refuses: give refusers.")
        for name in settings.refusers:  # what is stored is looked at before anything is made
            stored(settings, study_folder(settings, name))
        shipped = settings.steering_safety == HOME.as_posix()
        if shipped:
            torch.set_num_threads(1)  # a rerun gives the same bytes
            names = [Path(name).name for name in settings.refusers]
            make_organism(paths.root() / HOME, names, options.workers)
        each(partial(study, settings), settings.refusers, workers=options.workers)
        if shipped:
            write_checksums(paths.root() / "data/organism")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
