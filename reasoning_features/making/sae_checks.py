"""What ``make sanity`` trains and measures on the organism for notebooks 07 and 08.

In ``data/organism/sae_checks``: ``autoencoders`` of several architectures at one L0, on one text;
``sweep.parquet``, OrtSAE's γ and K, and ``costs.parquet``, what its steps cost; ``truth`` and ``steering``,
the main line's effects and search repeated on them; ``diffing``, stages of a frozen decoder and of a
trained one; ``synthetic.parquet`` and ``revival.parquet``. A finished piece is not done again.
"""

import argparse
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import NAMES, load_autoencoder, save_autoencoder
from reasoning_features.dictionaries.evaluation import EXPLAINED, reconstruct
from reasoning_features.dictionaries.training import Recipe, new_trainer, train_autoencoder
from reasoning_features.diffing.stages import BASE, PATHS, reads_fine_tuned, stage_before, stage_recipe
from reasoning_features.files import write_table
from reasoning_features.making.organism import main_activations, stage_activations, write_checksums
from reasoning_features.residual_stream.activations import shuffled_batches
from reasoning_features.runs.shards import Each, each
from reasoning_features.sae_checks import ortsae_metrics, synthetic
from reasoning_features.settings import Settings, load_settings
from reasoning_features.steering.steering_study import store_study
from reasoning_features.truth.benchmark import measure_benchmark

TRACES = 9000  # documents of traces that dictionaries are trained on, and a third as many general ones
# of all dictionaries, as the main autoencoders but for architecture; L0 is matched by k
RECIPE = Recipe("batchtopk", d_sae=512, tokens=4_000_000, learning_rate=3e-3, k=8)
SEEDS = range(3)  # of every dictionary that a claim compares
FREE, MATRYOSHKA, ORTSAE = (replace(RECIPE, architecture=a) for a in ("batchtopk", "matryoshka", "ortsae"))
FROZEN = replace(RECIPE, architecture="frozen_decoder", directions="iso")
SOFT = replace(RECIPE, architecture="soft_frozen_decoder", directions="iso")
ONCE = (replace(FROZEN, directions="cov"), replace(RECIPE, architecture="frozen_encoder", directions="iso"))
MODEL, OTHER = "coupled-0", "decoupled-0"
GAMMAS, CHUNKS = (0.0, 0.05, 0.25, 1.0, 4.0), (1, 4, 16)
SWEEP_TOKENS = 1_000_000
MEASURED_ON = 65_536  # activations on which live latents of the sweep are counted
COST_SIZES = (512, 2048)
COST_TRACES = 300  # documents whose activations serve to time a step: enough for some batches
COST_STEPS, COST_RUNS = 5, 9  # steps that are timed together, after as many to warm up, and how often


@dataclass(frozen=True)
class Dictionary:
    """An autoencoder of one model."""

    model: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """Its folder: model, architecture, seed."""
        return f"{self.model}-{self.recipe.label}-{self.recipe.seed}"

    def settings(self, folder: Path) -> Settings:
        """The profile's settings with this model and autoencoder."""
        autoencoder = paths.relative(folder / "autoencoders" / self.name)
        subject = paths.relative(folder.parent / "models" / self.model)
        return load_settings("organism", subject=subject, autoencoder=autoencoder)


def with_seeds(*recipes: Recipe) -> tuple[Dictionary, ...]:
    """Dictionaries of the main model, three seeds of each recipe."""
    return tuple(Dictionary(MODEL, replace(recipe, seed=seed)) for recipe in recipes for seed in SEEDS)


# those under which the scorers are judged: all directions frozen, nearly frozen, and trained
BENCHMARKED = (
    *with_seeds(FREE, MATRYOSHKA, ORTSAE, SOFT),
    Dictionary(MODEL, FROZEN),
    *(Dictionary(OTHER, recipe) for recipe in (FREE, SOFT)),
)
DICTIONARIES = (*BENCHMARKED, *(Dictionary(MODEL, recipe) for recipe in ONCE))
STUDIED = tuple(Dictionary(MODEL, recipe) for recipe in (FREE, SOFT, ORTSAE, FROZEN))


def make(folder: Path, unfinished: Path, every: Each) -> None:
    """All pieces in order but those that are there; ``unfinished`` holds studies' finished conditions."""
    every(partial(make_dictionaries, folder), [MODEL, OTHER])
    if not (folder / "sweep.parquet").exists():
        make_sweep(folder)
    if not (folder / "costs.parquet").exists():
        make_costs(folder)
    every(partial(measure, folder), [d for d in BENCHMARKED if not (folder / "truth" / d.name).exists()])
    every(partial(make_stages, folder), [FREE, FROZEN])
    missing = [d for d in STUDIED if not (folder / "steering" / d.name).exists()]
    every(partial(study, folder, unfinished), missing)


def make_dictionaries(folder: Path, model: str) -> None:
    """One model's autoencoders that are missing, over traces, general texts and prose."""
    places = {d: folder / "autoencoders" / d.name for d in DICTIONARIES if d.model == model}
    missing = {dictionary: place for dictionary, place in places.items() if not place.exists()}
    if missing:
        subject, residual = main_activations(folder.parent / "models" / model, TRACES)
        for dictionary, place in missing.items():
            trained = train_autoencoder(residual, dictionary.recipe, model, subject.hook_name)
            save_autoencoder(trained.sae, place, {"training": trained.history})


def make_sweep(folder: Path) -> None:
    """OrtSAE's γ at K = 1, its K at the paper's γ, the cheap variant: two seeds of each, a row each."""
    subject, residual = main_activations(folder.parent / "models" / MODEL, TRACES)
    usual = replace(RECIPE, architecture="ortsae", tokens=SWEEP_TOKENS)
    recipes = [replace(usual, gamma=gamma) for gamma in GAMMAS]
    recipes += [replace(usual, chunks=chunks) for chunks in CHUNKS[1:]]
    recipes.append(replace(usual, every=5))
    both = [replace(recipe, seed=seed) for recipe in recipes for seed in range(2)]
    rows = []
    for recipe in tqdm(both, desc="OrtSAE's settings", unit="training"):
        trained = train_autoencoder(residual, recipe, MODEL, subject.hook_name)
        last = trained.history.iloc[-1]
        measured = reconstruct(trained.sae, residual[:MEASURED_ON])
        live = trained.sae.W_dec[measured.live]
        row = {name: getattr(recipe, name) for name in ("gamma", "chunks", "every", "seed", "tokens")}
        row |= {name: float(last[name]) for name in ("L0", EXPLAINED)}
        row["dead share"] = float(1 - measured.live.mean())
        row["MeanCosSim"] = ortsae_metrics.nearest_cosines(live).mean()
        rows.append(row | {"composition": ortsae_metrics.composition(live, seeds=[recipe.seed]).estimate})
    write_table(folder / "sweep.parquet", pd.DataFrame(rows))


def make_costs(folder: Path) -> None:
    """Seconds of a training step of OrtSAE, BatchTopK and Matryoshka, at two sizes; recipes run in turn."""
    subject, residual = main_activations(folder.parent / "models" / MODEL, COST_TRACES)
    rows = []
    for d_sae in COST_SIZES:
        ours = replace(RECIPE, architecture="ortsae", d_sae=d_sae)
        recipes = {NAMES[kind]: replace(ours, architecture=kind) for kind in ("batchtopk", "matryoshka")}
        recipes |= {"OrtSAE, K = 1": ours, "OrtSAE, K = 8": replace(ours, chunks=8)}
        recipes |= {"OrtSAE, every 5th step": replace(ours, every=5)}
        trainers = {}
        for name, recipe in recipes.items():
            data = shuffled_batches(residual, recipe.batch, recipe.seed)
            trainers[name] = new_trainer(recipe, "model", subject.hook_name, residual, data, "cpu")
        for run in range(-1, COST_RUNS):
            for name, trainer in trainers.items():
                began = time.perf_counter()
                for _ in range(COST_STEPS):
                    trainer.step(next(trainer.data_provider))
                    trainer.n_training_steps += 1
                seconds = (time.perf_counter() - began) / COST_STEPS
                if run >= 0:
                    rows.append((name, d_sae, RECIPE.batch, run, seconds))
    columns = ["name", "features", "batch", "run", "seconds"]
    write_table(folder / "costs.parquet", pd.DataFrame(rows, columns=columns))


def measure(folder: Path, dictionary: Dictionary) -> None:
    """What scores may see of one dictionary's features, and their effects on held-out decisions."""
    measure_benchmark(folder / "truth" / dictionary.name, dictionary.settings(folder))


def study(folder: Path, unfinished: Path, dictionary: Dictionary) -> None:
    """The matched-budget search on one dictionary, by the main line's rules and on its problems."""
    target = folder / "steering" / dictionary.name
    store_study(target, dictionary.settings(folder), folder / "truth", unfinished)


def make_stages(folder: Path, recipe: Recipe) -> None:
    """The stages of model diffing that are missing, in order: each goes on from one before it."""
    for path in ("S", *PATHS):
        if not _stage_folder(folder, recipe, path).exists():
            make_stage(folder, recipe, path)


def make_stage(folder: Path, recipe: Recipe, path: str) -> None:
    """One stage of model diffing: S from scratch, the last of a longer path from the stage before it."""
    models, reader = folder.parent / "models", MODEL if reads_fine_tuned(path) else BASE
    subject, residual = stage_activations(models / reader, path[-1], models / MODEL, TRACES)
    own, initial = recipe, None
    if path != "S":
        before = _stage_folder(folder, recipe, stage_before(path))
        initial = load_autoencoder(paths.relative(before), subject.d_model, subject.hook_name)
        own = stage_recipe(recipe, path)
    trained = train_autoencoder(residual, own, reader, subject.hook_name, initial=initial)
    save_autoencoder(trained.sae, _stage_folder(folder, recipe, path), {"training": trained.history})


def _stage_folder(folder: Path, recipe: Recipe, path: str) -> Path:
    """As :mod:`reasoning_features.diffing.stages` looks for it."""
    owner, name = (BASE, "S-0") if path in ("S", "S-0") else (MODEL, path)
    return folder / "diffing" / recipe.label / owner / name


def main() -> None:
    """The command line: ``python -m reasoning_features.making.sae_checks [--workers N]``."""
    parser = argparse.ArgumentParser(description="Train what notebooks 07 and 08 read (resumable).")
    parser.add_argument("--workers", type=int, default=1, help="pieces side by side, one thread each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    organism = paths.root() / "data/organism"
    side_by_side = partial(each, workers=options.workers)
    folder = organism / "sae_checks"
    make(folder, organism / "checkpoints" / "sae_checks", side_by_side)
    trained = organism / "checkpoints" / "synthetic"
    synthetic.make(trained, side_by_side)
    write_table(folder / "synthetic.parquet", synthetic.merged(trained))
    write_table(folder / "revival.parquet", synthetic.swapped(trained))
    write_checksums(organism)


if __name__ == "__main__":
    main()
