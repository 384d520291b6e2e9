"""Trainings on data whose features are known, so that what an autoencoder finds of them can be counted.

After *Sanity Checks for Sparse Autoencoders* (2602.14111): an activation is x = Σ_i b_i c_i f_i, with
features f_i uniform on the unit sphere, b_i ~ Bernoulli(p_i) and c_i ~ LogNormal(0, 0.25), all independent.
The paper has 3,200 features in 100 dimensions, 20 of them active on average: p_i = 0.00625 for all, or
p_i ~ LogUniform(10^-5.5, 10^-1.2).

Each cell of the grid, architectures × firing × seeds, trains one autoencoder with as many latents as its
world has features, as many of them active, on activations that never repeat. A seed is another world and
another start. Trainings run on one thread: a rerun on the same machine gives the same bytes.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
from torch import Tensor
from torch.sparse import check_sparse_tensor_invariants

from reasoning_features.dictionaries import training
from reasoning_features.dictionaries.autoencoder import NAMES
from reasoning_features.dictionaries.evaluation import EXPLAINED, best_cosines
from reasoning_features.dictionaries.training import HELD_OUT, Architecture, Recipe
from reasoning_features.files import write_table
from reasoning_features.runs.shards import Each
from reasoning_features.statistics import Array, Flags, Interval, bootstrap_mean, percentile_interval, wilson

Firing = Literal["equal", "unequal"]
DECADES = 4.3  # of firing probability in the unequal case: 10^-5.5 to 10^-1.2 in the paper
SPREAD = 0.25  # standard deviation of the logarithm of a magnitude
RECOVERED = 0.8  # the cosine above which the paper counts a feature as recovered

TRAINED: tuple[Architecture, ...] = ("relu", "topk", "batchtopk", "jumprelu", "matryoshka", "ortsae")
# the paper's baselines: directions are random and kept, or nearly kept, as they were drawn
FROZEN: tuple[Architecture, ...] = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
FIRINGS: tuple[Firing, ...] = ("equal", "unequal")
BATCH = 512
# TopK and BatchTopK explained most variance at it in short trials; recovery had no say in it
LEARNING_RATE = 3e-3
# weight of the sparsity penalty at which about ``active`` latents are active, in worlds outside the grid
PENALTY = {"relu": 4.0, "jumprelu": 1.0}
SEEDS = 2
STEPS = 6000  # one or two minutes of one core; OrtSAE, all of whose pairs are compared, four
LONGER = 24_000  # steps of longer trainings: TopK is still rising after 6,000; five minutes of one core
PAPERS_STEPS = 18_000  # at the paper's size: 25 minutes of one core
# the two that the paper's numbers on equally frequent features are of, and their weights of the loss that
# revives dead latents
USUAL: dict[Architecture, float] = {"topk": training.TOPK_AUXILIARY, "batchtopk": training.AUXILIARY}
RECORD_AT = (100, 300, 1000, 3000, 10_000)  # steps after which features are counted, beside 0 and the last

SETTING = ["architecture", "firing", "width", "features", "steps"]  # what a training is of
TRAINING = [*SETTING, "seed"]  # one training
MEASURED = ["L0", EXPLAINED, "dead share", "best cosine"]
BINS = 10  # of features by how often they are active
RESAMPLES = 2000


@dataclass(frozen=True)
class World:
    """Where activations come from: m ``features`` in d = ``width`` dimensions, of which ``active`` are active
    on an activation, in expectation: all as often, or LogUniform over 4.3 decades, by ``firing``.
    """

    width: int = 50
    features: int = 800
    active: float = 10.0
    firing: Firing = "equal"
    seed: int = 0

    @property
    def directions(self) -> Tensor:
        """The features ``[m, d]``, of length 1."""
        return self._dictionary().feature_vectors.detach()

    @property
    def probabilities(self) -> Array:
        """The probability ``[m]`` with which each feature is active; they sum to ``active``."""
        relative = np.ones(self.features)
        if self.firing == "unequal":
            drawn = np.random.default_rng(self._seed("probabilities"))
            relative = 10 ** -(DECADES * drawn.random(self.features))
        return self.active * relative / relative.sum()

    def batches(self, size: int, stream: str = "training") -> Iterator[Tensor]:
        """Endless batches ``[size, d]`` of raw activations, float32; each is a function of the world, the
        stream and its number alone, and leaves torch's global random state as it was.
        """
        probabilities = torch.from_numpy(self.probabilities).float()
        ways = {"modify_activations": _log_normal, "use_sparse_tensors": True}
        generator, dictionary = ActivationGenerator(self.features, probabilities, **ways), self._dictionary()
        for number in itertools.count():
            with torch.no_grad(), torch.random.fork_rng(devices=[]), check_sparse_tensor_invariants(False):
                torch.manual_seed(self._seed(stream, number))
                batch = dictionary(generator.sample(size))
            yield batch

    def _dictionary(self) -> FeatureDictionary:
        return FeatureDictionary(self.features, self.width, initializer=None, seed=self._seed("directions"))

    def _seed(self, purpose: str, number: int = 0) -> int:
        text = f"{self.width}/{self.features}/{self.seed}/{purpose}/{number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _log_normal(activations: Tensor) -> Tensor:
    """The same sparse activations with magnitudes drawn from LogNormal(0, 0.25) where a feature is active."""
    sparse = activations.coalesce()
    magnitudes = torch.empty_like(sparse.values()).log_normal_(0, SPREAD)
    return torch.sparse_coo_tensor(sparse.indices(), magnitudes, sparse.shape)


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    architecture: Architecture
    world: World = World()
    steps: int = STEPS
    auxiliary: float | None = None  # weight of the loss that revives dead latents; None: the usual one

    @property
    def file(self) -> str:
        """What its file is called."""
        world, more = self.world, "" if self.auxiliary is None else f"-auxiliary-{self.auxiliary:g}"
        return f"{self.architecture}-{world.firing}-{world.width}-{self.steps}-{world.seed}{more}.parquet"

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        sizes = self.world.features, self.steps * BATCH, LEARNING_RATE, BATCH, self.world.seed
        penalty = PENALTY.get(self.architecture, 0.0)
        return Recipe(self.architecture, *sizes, self.world.active, penalty, auxiliary=self.auxiliary)


# worlds of half the paper's width, a quarter of its features, half as many active; of two architectures
# longer trainings there, and one in a world of the paper's size, at the learning rate of the smaller ones
GRID = itertools.product(range(SEEDS), FIRINGS, (*TRAINED, *FROZEN))
CELLS = (
    *(Cell(architecture, World(firing=firing, seed=seed)) for seed, firing, architecture in GRID),
    *(Cell(architecture, World(seed=seed), LONGER) for seed in range(SEEDS) for architecture in USUAL),
    *(Cell(architecture, World(width=100, features=3200, active=20), PAPERS_STEPS) for architecture in USUAL),
)
# each of the two with the other's weight: is that what they differ by?
REVIVAL = (
    *(Cell("topk", World(seed=seed), auxiliary=USUAL["batchtopk"]) for seed in range(SEEDS)),
    *(Cell("batchtopk", World(seed=seed), auxiliary=USUAL["topk"]) for seed in range(SEEDS)),
)
# what notebook 07 trains again for a few steps
CHECKED = (
    Cell("topk", World(firing="unequal")),
    Cell("batchtopk"),
    Cell("frozen_decoder", World(firing="unequal")),
)


def count_by_frequency(found: Flags, probabilities: Array) -> pd.DataFrame:
    """How many features ``[m]`` were ``found``, in bins of equally many by how often they are active, the
    rarest first; one bin where all are equally frequent.
    """
    bins = min(BINS, len(np.unique(probabilities)))
    rows = []
    for i, part in enumerate(np.array_split(np.argsort(probabilities, kind="stable"), bins)):
        rows.append((i, *probabilities[part[[0, -1]]], len(part), int(found[part].sum())))
    return pd.DataFrame(rows, columns=["bin", "from", "to", "in bin", "found"])


def train_cell(cell: Cell, until: int | None = None) -> pd.DataFrame:
    """Train an autoencoder, up to step ``until`` or the last: features found, by recorded step and bin of
    firing probability, and measures on held-out activations. ``best cosine`` is the mean over features of the
    largest cosine with a decoder direction.
    """
    world, recipe = cell.world, cell.recipe
    rows: list[pd.DataFrame] = []
    with ExitStack() as after, torch.random.fork_rng(devices=[]):
        after.callback(torch.set_num_threads, torch.get_num_threads())  # also where the training breaks off
        torch.set_num_threads(1)
        features, held_out = world.directions, next(world.batches(HELD_OUT, "held out"))
        sample = next(world.batches(HELD_OUT, "moments"))
        torch.manual_seed(recipe.start("synthetic"))
        trainer = training.new_trainer(recipe, "synthetic", world.firing, sample, world.batches(BATCH), "cpu")
        trainer.cfg.total_training_samples = min(until or recipe.steps, recipe.steps) * BATCH
        for step in itertools.chain([0], training.steps(trainer)):
            if step in (0, *RECORD_AT, recipe.steps):
                numbers, _ = training.held_out_quality(trainer, held_out)
                # the sign counts: a feature's opposite is not that feature
                closest = best_cosines(features, trainer.sae.W_dec)
                bins = count_by_frequency(closest > RECOVERED, world.probabilities)
                numbers |= {"samples": numbers["tokens"], "best cosine": closest.mean()}
                rows.append(pd.DataFrame([numbers])[["step", "samples", *MEASURED]].merge(bins, how="cross"))
    about = {"architecture": cell.architecture, "firing": world.firing, "width": world.width}
    about |= {"features": world.features, "steps": cell.steps, "seed": world.seed}
    return pd.DataFrame([about]).merge(pd.concat(rows), how="cross")


def make(folder: Path, every: Each, cells: Sequence[Cell] = (*CELLS, *REVIVAL)) -> None:
    """Train those cells that have no file in ``folder`` yet."""
    every(partial(make_cell, folder), [cell for cell in cells if not (folder / cell.file).exists()])


def make_cell(folder: Path, cell: Cell) -> None:
    """Train one cell and write its file."""
    write_table(folder / cell.file, train_cell(cell))


def merged(folder: Path, cells: Sequence[Cell] = CELLS) -> pd.DataFrame:
    """All cells' rows, in the cells' order."""
    return pd.concat([pd.read_parquet(folder / cell.file) for cell in cells], ignore_index=True)


def swapped(folder: Path) -> pd.DataFrame:
    """The rows of :data:`REVIVAL`, with the weight of each as ``auxiliary``."""
    parts = (merged(folder, [cell]).assign(auxiliary=cell.auxiliary) for cell in REVIVAL)
    return pd.concat(parts, ignore_index=True)


def curves(grid: pd.DataFrame) -> pd.DataFrame:
    """One row a training and recorded step: ``found`` summed over bins, and its share ``recovered``."""
    sums = grid.groupby([*TRAINING, "step", "samples", *MEASURED], sort=False)["found"].sum().reset_index()
    return sums.assign(recovered=sums["found"] / sums["features"])


def labels(rows: pd.DataFrame) -> pd.Series:
    """Each training's architecture in words, with its features or steps where these are more than usual."""
    usual = rows[["features", "steps"]].min()
    more = [rows[of].map(f", {{:,}} {of}".format) for of in usual.index]
    return rows["architecture"].map(NAMES) + np.select([rows[of] > usual[of] for of in usual.index], more, "")


def last(rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows of the grid, or of its curves, that are of each training's last step."""
    return rows[rows["step"] == rows.groupby(TRAINING)["step"].transform("max")]


def longest(grid: pd.DataFrame) -> pd.DataFrame:
    """Each architecture's longest trainings in the smallest worlds, by which claims are judged."""
    small = grid[grid["features"] == grid["features"].min()]
    most = small.groupby(["architecture", "firing"])["steps"].transform("max")
    return small[small["steps"] == most]


def by_frequency(grid: pd.DataFrame) -> pd.DataFrame:
    """What is recovered at the end by how often a feature is active, over the features of all seeds: a row a
    setting and ``bin`` (0 the rarest), with its share ``recovered``, and ``low`` and ``high`` (95%, Wilson).
    """
    sums = {"from": "min", "to": "max", "in bin": "sum", "found": "sum"}
    bins = last(grid).groupby([*SETTING, "bin"], sort=False).agg(sums).reset_index()
    counts = zip(bins["found"], bins["in bin"], strict=True)
    return bins.join(pd.DataFrame([wilson(found, n).row("recovered") for found, n in counts]))


def frequent(grid: pd.DataFrame, architecture: str) -> tuple[Interval, Interval]:
    """Share recovered of the most frequent fifth of unequally frequent features, and of the rest (Wilson)."""
    rows = last(longest(grid)).query("architecture == @architecture and firing == 'unequal'")
    often = rows["bin"] >= 0.8 * (rows["bin"].max() + 1)
    one, other = (rows.loc[which, ["found", "in bin"]].sum() for which in (often, ~often))
    return wilson(*one), wilson(*other)


def at_end(grid: pd.DataFrame, architecture: str, column: str) -> Interval:
    """A number of an architecture's longest trainings on equally frequent features at their end
    (:func:`summary`). ``n`` counts features for ``recovered``, else trainings.
    """
    rows = summary(longest(grid)).query("architecture == @architecture and firing == 'equal'")
    (row,) = rows.to_dict("records")
    n = row["seeds"] * (row["features"] if column == "recovered" else 1)
    return Interval(row[column], row[f"{column} low"], row[f"{column} high"], n)


def summary(grid: pd.DataFrame) -> pd.DataFrame:
    """Each architecture at the end of its trainings: means over seeds, and 95% intervals ``… low``, ``…
    high``. That of explained variance resamples seeds: of one there is none. That of ``recovered`` draws the
    share of each seed from Beta(found + ½, missed + ½), Jeffreys', too.
    """
    rows = []
    for setting, runs in last(curves(grid)).groupby(SETTING, sort=False):
        seeds, n = len(runs), runs["features"].iloc[0]
        row: dict[str, Any] = dict(zip(SETTING, setting, strict=True)) | {"seeds": seeds}
        row |= {name: runs[name].mean() for name in (*MEASURED, "recovered")}
        row |= {f"{EXPLAINED} low": np.nan, f"{EXPLAINED} high": np.nan}
        if seeds > 1:
            row |= bootstrap_mean(runs[EXPLAINED]).row(EXPLAINED, f"{EXPLAINED} ")
        rng = np.random.default_rng(0)
        found = runs["found"].to_numpy()[rng.integers(seeds, size=(RESAMPLES, seeds))]
        drawn = rng.beta(found + 0.5, n - found + 0.5).mean(1)
        share = percentile_interval(row["recovered"], drawn, seeds)
        rows.append(row | share.row("recovered", "recovered "))
    return pd.DataFrame(rows)
