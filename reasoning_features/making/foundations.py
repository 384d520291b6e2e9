"""What ``make sanity`` trains and measures on the organism for notebooks 07 and 08.

In ``data/organism/foundations``: ``autoencoders``, dictionaries of several architectures and the frozen
baselines at one L0, on one text; ``sweep.parquet``, OrtSAE's γ and K, and ``costs.parquet``, what its steps
cost; ``truth`` and ``steering``, the main line's benchmark of scorers and its equal search repeated on them;
``diffing``, stages of a frozen decoder and of a trained one; ``synthetic.parquet`` and ``revival.parquet``,
trainings on data with known features. A finished piece is not done again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder, save_autoencoder
from reasoning_features.dictionaries.training import Recipe, Training, train_autoencoder
from reasoning_features.diffing.stages import (
    BASE,
    PATHS,
    last_stage,
    reads_fine_tuned,
    stage_before,
    stage_recipe,
)
from reasoning_features.files import write_table
from reasoning_features.foundations import shipped, synthetic_grid
from reasoning_features.foundations.sweep import step_times, sweep_rows
from reasoning_features.making import organism_card
from reasoning_features.making.activations import main_activations, stage_activations
from reasoning_features.making.steering import make_study
from reasoning_features.making.truth import make_truth
from reasoning_features.settings import Settings, load_settings
from reasoning_features.truth.benchmark import PLACE
from reasoning_features.workers import Each, each

TRACES = 9000
"""Documents of traces that dictionaries are trained on, and a third as many general ones: the main line's."""
RECIPE = Recipe("batchtopk", d_sae=512, tokens=4_000_000, learning_rate=3e-3, k=8)
"""Of all dictionaries, as the main autoencoders but for architecture; L0 is matched by k."""
FROZEN = (
    replace(RECIPE, architecture="frozen_decoder", directions="iso"),
    replace(RECIPE, architecture="frozen_decoder", directions="cov"),
    replace(RECIPE, architecture="soft_frozen_decoder", directions="iso"),
    replace(RECIPE, architecture="frozen_encoder", directions="iso"),
)
TRAINED = tuple(
    replace(RECIPE, architecture=architecture, seed=seed)
    for architecture in ("batchtopk", "matryoshka", "ortsae")
    for seed in range(2)
)
ARM, OTHER = "coupled-0", "decoupled-0"
GAMMAS = (0.0, 0.05, 0.25, 1.0, 4.0)
CHUNKS = (1, 4, 16)
SWEEP_TOKENS = 1_000_000
COST_SIZES = (512, 2048)
COST_TRACES = 300
"""Documents whose activations serve to time a step: enough for some batches."""


@dataclass(frozen=True)
class Dictionary:
    """An autoencoder of one model."""

    arm: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """Its folder: model, architecture, seed."""
        return f"{self.arm}-{self.recipe.label}-{self.recipe.seed}"


DICTIONARIES = (
    *(Dictionary(ARM, recipe) for recipe in (*TRAINED, *FROZEN)),
    *(Dictionary(OTHER, recipe) for recipe in (TRAINED[0], FROZEN[2])),
)
BENCHMARKED = tuple(d for d in DICTIONARIES if d.recipe.seed == 0 and d.recipe not in (FROZEN[1], FROZEN[3]))
"""Those under which the scorers are judged: all directions frozen, nearly frozen, and trained."""
STUDIED = tuple(d for d in BENCHMARKED if d.arm == ARM and d.recipe.architecture != "matryoshka")


def make(folder: Path, unfinished: Path, every: Each) -> None:
    """All pieces in order; those that are there are skipped.

    Args:
        folder: ``foundations`` of the organism's folder.
        unfinished: where finished conditions of a steering study are kept until the study is.
        every: does a piece of work for every item.
    """
    every(partial(make_dictionaries, folder), [ARM, OTHER])
    if not (folder / shipped.SWEEP).exists():
        make_sweep(folder)
    if not (folder / shipped.COSTS).exists():
        make_costs(folder)
    every(partial(measure, folder), [d for d in BENCHMARKED if not (folder / "truth" / d.name).exists()])
    stages = [(recipe, path) for recipe in (TRAINED[0], FROZEN[0]) for path in ("S", *PATHS)]
    for recipe, path in stages:  # in order: each goes on from one before it
        if not _stage_folder(folder, recipe, path).exists():
            make_stage(folder, recipe, path)
    missing = [d for d in STUDIED if not (folder / "steering" / d.name).exists()]
    every(partial(study, folder, unfinished), missing)


def make_dictionaries(folder: Path, arm: str) -> None:
    """One model's autoencoders that are missing, over traces, general texts and prose."""
    torch.set_num_threads(1)
    places = {d: folder / "autoencoders" / d.name for d in DICTIONARIES if d.arm == arm}
    missing = {dictionary: place for dictionary, place in places.items() if not place.exists()}
    if missing:
        subject, residual = main_activations(folder.parent / "models" / arm, TRACES)
        for dictionary, place in missing.items():
            _store(train_autoencoder(residual, dictionary.recipe, arm, subject.hook_name), place)


def make_sweep(folder: Path) -> None:
    """OrtSAE's γ with one chunk, its K at the paper's γ, and the cheap variant; two seeds of each."""
    torch.set_num_threads(1)
    subject, residual = main_activations(folder.parent / "models" / ARM, TRACES)
    usual = replace(RECIPE, architecture="ortsae", tokens=SWEEP_TOKENS)
    recipes = [replace(usual, gamma=gamma) for gamma in GAMMAS]
    recipes += [replace(usual, chunks=chunks) for chunks in CHUNKS[1:]]
    recipes.append(replace(usual, every=5))
    both = [replace(recipe, seed=seed) for recipe in recipes for seed in range(2)]
    write_table(folder / shipped.SWEEP, sweep_rows(residual, both, ARM, subject.hook_name))


def make_costs(folder: Path) -> None:
    """What a training step of OrtSAE costs against one of BatchTopK, at two sizes."""
    torch.set_num_threads(1)
    subject, residual = main_activations(folder.parent / "models" / ARM, COST_TRACES)
    tables = []
    for d_sae in COST_SIZES:
        plain = replace(RECIPE, d_sae=d_sae)
        ours = replace(plain, architecture="ortsae")
        recipes = {
            "BatchTopK": plain,
            "Matryoshka": replace(plain, architecture="matryoshka"),
            "OrtSAE, K = 1": ours,
            "OrtSAE, K = 8": replace(ours, chunks=8),
            "OrtSAE, every 5th step": replace(ours, every=5),
        }
        tables.append(step_times(residual, recipes, subject.hook_name))
    write_table(folder / shipped.COSTS, pd.concat(tables, ignore_index=True))


def settings_of(folder: Path, dictionary: Dictionary) -> Settings:
    """The profile's settings with this model and dictionary."""
    given = {
        "subject": folder.parent / "models" / dictionary.arm,
        "autoencoder": folder / "autoencoders" / dictionary.name,
    }
    return load_settings("organism", **{field: paths.relative(path) for field, path in given.items()})


def measure(folder: Path, dictionary: Dictionary) -> None:
    """Evidence of one dictionary's features, and their causal effects on held-out decisions."""
    torch.set_num_threads(1)
    make_truth(folder / "truth" / dictionary.name, settings_of(folder, dictionary), [PLACE])


def study(folder: Path, unfinished: Path, dictionary: Dictionary) -> None:
    """The equal search on one dictionary, by the main line's rules and on its problems."""
    target = folder / "steering" / dictionary.name
    make_study(target, settings_of(folder, dictionary), folder / "truth", unfinished)


def make_stage(folder: Path, recipe: Recipe, path: str) -> None:
    """One stage of model diffing: S from scratch, the last of a longer path from the stage before it."""
    torch.set_num_threads(1)
    models = folder.parent / "models"
    reader = ARM if reads_fine_tuned(path) else BASE
    subject, residual = stage_activations(models / reader, last_stage(path), models / ARM, TRACES)
    if path == "S":
        trained = train_autoencoder(residual, recipe, reader, subject.hook_name)
    else:
        before = _stage_folder(folder, recipe, stage_before(path))
        sae = load_autoencoder(paths.relative(before), subject.d_model, subject.hook_name)
        own = stage_recipe(recipe, path)
        trained = train_autoencoder(residual, own, reader, subject.hook_name, initial=sae)
    _store(trained, _stage_folder(folder, recipe, path))


def _stage_folder(folder: Path, recipe: Recipe, path: str) -> Path:
    """As :mod:`reasoning_features.diffing.stages` looks for it."""
    owner, name = (BASE, "S-0") if path in ("S", "S-0") else (ARM, path)
    return folder / "diffing" / recipe.label / owner / name


def _store(trained: Training, directory: Path) -> None:
    save_autoencoder(trained.sae, directory, {"training": trained.history})


def main() -> None:
    """The command line: ``python -m reasoning_features.making.foundations [--workers N]``."""
    parser = argparse.ArgumentParser(description="Train what notebooks 07 and 08 read (resumable).")
    parser.add_argument("--workers", type=int, default=1, help="pieces side by side, one thread each")
    options = parser.parse_args()
    organism = paths.root() / "data/organism"
    side_by_side = partial(each, workers=options.workers)
    folder = organism / "foundations"
    make(folder, organism / "checkpoints" / "foundations", side_by_side)
    trained = organism / "checkpoints" / "synthetic"
    synthetic_grid.make(trained, side_by_side)
    write_table(folder / shipped.SYNTHETIC, synthetic_grid.merged(trained))
    write_table(folder / shipped.REVIVAL, synthetic_grid.swapped(trained))
    organism_card.write(organism)


if __name__ == "__main__":
    main()
