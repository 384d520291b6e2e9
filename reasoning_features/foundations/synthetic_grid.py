"""The grid of the sanity checks on data with known features: how it is trained, and what it says.

Each cell trains one autoencoder, by SAELens' trainer, on activations that never repeat, and counts what it
has found of the features as it goes. Cells are kept one by one, so that an interrupted grid goes on where it
stopped, and every training runs on one thread, so that a rerun on the same machine gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.dictionaries.training import HELD_OUT, held_out_quality, new_trainer
from reasoning_features.diffing.presence import share_of
from reasoning_features.errors import MissingArtefact
from reasoning_features.files import write_table
from reasoning_features.foundations.synthetic import Firing, recovered, recovery_by_frequency
from reasoning_features.foundations.synthetic_cells import BATCH, CELLS, REVIVAL, USUAL, Cell
from reasoning_features.residual_stream.activations import Moments
from reasoning_features.statistics import Interval, bootstrap_mean, percentile_interval
from reasoning_features.workers import Each

EXPLAINED = "fraction of variance explained"
SETTING = ["architecture", "firing", "width", "features", "steps"]
"""What a training is of; with ``seed`` it is one training."""
TRAINING = [*SETTING, "seed"]
MEASURED = ["L0", EXPLAINED, "dead share", "best cosine"]
RESAMPLES = 2000
RECORD_AT = (100, 300, 1000, 3000, 10_000)
"""Steps after which features are counted, beside 0 and the last."""
CHECKED = (
    Cell("topk", "unequal", 0),
    Cell("batchtopk", "equal", 0),
    Cell("frozen_decoder", "unequal", 0),
)
"""What :func:`check` trains again."""


def train_cell(cell: Cell, until: int | None = None) -> pd.DataFrame:
    """Train one autoencoder, and count what it has found of the features as it goes.

    Args:
        cell: what is trained.
        until: the step to stop at; the schedule remains that of all steps, which are the default.

    Returns:
        A row for each recorded step and bin of firing probability: the cell's ``architecture``, ``firing``,
        ``width``, ``features``, ``steps`` (of the whole schedule), ``seed``; ``step`` and ``samples`` seen;
        on held-out activations ``L0``, ``fraction of variance explained``, ``dead share``; ``best cosine``,
        the mean over features of the largest cosine with a decoder direction; and ``bin`` with its ``from``,
        ``to`` (probability), ``in bin`` (features) and ``found``, how many of these were recovered.
    """
    torch.set_num_threads(1)
    world, recipe = cell.world, cell.recipe
    end = min(until or recipe.steps, recipe.steps)
    features, held_out = world.directions, world.sample(HELD_OUT, "held out")
    moments = Moments.of(world.sample(HELD_OUT, "moments"))
    rows: list[pd.DataFrame] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.start("synthetic"))
        trainer = new_trainer(recipe, "synthetic", cell.firing, moments, world.batches(BATCH), device="cpu")

        def record(checkpoint_path: Path | None = None) -> None:
            samples = trainer.n_training_samples
            numbers, _ = held_out_quality(trainer, held_out)
            del numbers["loss"]
            decoder = trainer.sae.W_dec.detach()
            bins = recovery_by_frequency(recovered(decoder, features), world.probabilities)
            bins = bins[["from", "to", "features", "found"]].rename(columns={"features": "in bin"})
            bins.insert(0, "bin", range(len(bins)))
            closest = float(best_cosines(features, decoder).mean())
            about = {"step": samples // BATCH, "samples": samples, **numbers, "best cosine": closest}
            rows.append(pd.DataFrame([about]).merge(bins, how="cross"))

        trainer.save_checkpoint_fn = record
        trainer.checkpoint_thresholds = [
            step * BATCH - 1 for step in sorted({*RECORD_AT, recipe.steps}) if step <= end
        ]
        trainer.cfg.total_training_samples = end * BATCH
        record()
        trainer.fit()
    about_cell = pd.DataFrame([{name: getattr(cell, name) for name in TRAINING}])
    return about_cell.merge(pd.concat(rows), how="cross")


def make(folder: Path, every: Each, cells: Sequence[Cell] = (*CELLS, *REVIVAL)) -> None:
    """Train those cells that have no file in ``folder`` yet; a file is written when it is whole."""
    every(partial(make_cell, folder), [cell for cell in cells if not place(folder, cell).exists()])


def make_cell(folder: Path, cell: Cell) -> None:
    """Train one cell and write its file."""
    write_table(place(folder, cell), train_cell(cell))


def place(folder: Path, cell: Cell) -> Path:
    """Where a cell's file is."""
    return folder / f"{cell.name}.parquet"


def merged(folder: Path, cells: Sequence[Cell] = CELLS) -> pd.DataFrame:
    """All cells' rows, in the cells' order.

    Raises:
        MissingArtefact: a cell has not been trained.
    """
    missing = [cell.name for cell in cells if not place(folder, cell).exists()]
    if missing:
        raise MissingArtefact(
            f"{len(missing)} of {len(cells)} trainings on synthetic data are missing ({missing[0]} is one): "
            "run `make sanity`, which goes on where it stopped."
        )
    return pd.concat([pd.read_parquet(place(folder, cell)) for cell in cells], ignore_index=True)


def swapped(folder: Path) -> pd.DataFrame:
    """The rows of :data:`REVIVAL`, with the weight of each as ``auxiliary``; raises as :func:`merged`."""
    parts = [merged(folder, [cell]).assign(auxiliary=cell.auxiliary) for cell in REVIVAL]
    return pd.concat(parts, ignore_index=True)


def check(grid: pd.DataFrame, steps: int, cells: Sequence[Cell] = CHECKED) -> pd.DataFrame:
    """Train some cells again for their first steps, and hold what comes out beside what the grid has.

    Returns:
        A row a cell and recorded step up to ``steps``: ``architecture``, ``firing``, ``seed``, ``step``, and
        ``fraction of variance explained`` and ``found`` as stored and, with ``… now``, as they came again.
        Another processor may round otherwise; on the same one they are the same.
    """
    threads = torch.get_num_threads()
    try:
        again = curves(pd.concat([train_cell(cell, steps) for cell in cells], ignore_index=True))
    finally:
        torch.set_num_threads(threads)
    both = curves(grid).merge(again, on=[*TRAINING, "step"], suffixes=("", " now"))
    kept = ["architecture", "firing", "seed", "step"]
    return both[[*kept, EXPLAINED, f"{EXPLAINED} now", "found", "found now"]]


def curves(grid: pd.DataFrame) -> pd.DataFrame:
    """One row a training and recorded step: ``found`` summed over bins, and its share ``recovered``."""
    held = grid.groupby([*TRAINING, "step", "samples", *MEASURED], sort=False)["found"].sum().reset_index()
    return held.assign(recovered=held["found"] / held["features"])


def last(rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows of the grid, or of its curves, that are of each training's last step."""
    return rows[rows["step"] == rows.groupby(TRAINING)["step"].transform("max")]


def by_frequency(grid: pd.DataFrame) -> pd.DataFrame:
    """What is recovered at the end by how often a feature is active, over the features of all seeds.

    Returns:
        Rows of ``architecture``, ``firing``, ``width``, ``features``, ``steps``; ``bin`` (0 the rarest),
        ``from``, ``to`` (probability), ``in bin`` (features), ``found``; ``recovered`` (share), and ``low``
        and ``high``, its 95% interval by Wilson.
    """
    sums = {"from": "min", "to": "max", "in bin": "sum", "found": "sum"}
    held = last(grid).groupby([*SETTING, "bin"], sort=False).agg(sums).reset_index()
    shares = [_share(row) for _, row in held.iterrows()]
    ends = {"recovered": [s.estimate for s in shares], "low": [s.low for s in shares]}
    return held.assign(**ends, high=[s.high for s in shares])


def _share(counts: pd.Series[int]) -> Interval:
    return share_of(np.arange(counts["in bin"]) < counts["found"])


@dataclass(frozen=True)
class Frequent:
    """Share of frequent features recovered, its 95% interval by Wilson over ``n``, and that of ``others``."""

    share: float
    low: float
    high: float
    n: int
    others: float


def frequent(grid: pd.DataFrame, architecture: str) -> Frequent:
    """Share of the most frequent fifth of unequally frequent features that is recovered, and of the others;
    all seeds together.
    """
    rows = by_frequency(grid)
    rows = rows[(rows["architecture"] == architecture) & (rows["firing"] == "unequal")]
    often = rows["bin"] >= 0.8 * (rows["bin"].max() + 1)
    top, rest = (rows[kept][["in bin", "found"]].sum() for kept in (often, ~often))
    share = _share(top)
    return Frequent(share.estimate, share.low, share.high, share.n, float(rest["found"] / rest["in bin"]))


def longest(grid: pd.DataFrame) -> pd.DataFrame:
    """Each architecture's longest trainings in the smallest worlds, by which claims are judged."""
    small = grid[grid["features"] == grid["features"].min()]
    most = small.groupby(["architecture", "firing"])["steps"].transform("max")
    return small[small["steps"] == most]


def at_end(grid: pd.DataFrame, firing: Firing, architecture: str, column: str) -> Interval:
    """A number of one training setting at its end, with the interval that :func:`summary` has.

    ``n`` counts features for ``recovered`` and trainings for anything else; of one training there is no
    interval, and its ends are NaN.
    """
    rows = summary(grid)
    (row,) = rows[(rows["firing"] == firing) & (rows["architecture"] == architecture)].to_dict("records")
    n = row["seeds"] * (row["features"] if column == "recovered" else 1)
    return Interval(row[column], row[f"{column} low"], row[f"{column} high"], n)


def revival(grid: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """TopK and BatchTopK with either's weight of the loss that revives dead latents, at the end of training.

    Args:
        grid: with their usual weights.
        others: :func:`swapped`, each with the other's.

    Returns:
        The rows of :func:`summary` by ``auxiliary``, the weight.
    """
    weight = grid["architecture"].map(USUAL)
    same = weight.notna() & (grid["firing"] == "equal") & (grid["features"] == grid["features"].min())
    same &= grid["steps"] == grid["steps"].min()
    both = pd.concat([grid[same].assign(auxiliary=weight[same]), others], ignore_index=True)
    parts = [summary(held).assign(auxiliary=weight) for weight, held in both.groupby("auxiliary")]
    table = pd.concat(parts).sort_values(["architecture", "auxiliary"], ignore_index=True)
    kept = ["architecture", "auxiliary", "seeds", *MEASURED, "recovered", "recovered low", "recovered high"]
    return table[kept]


def summary(grid: pd.DataFrame) -> pd.DataFrame:
    """Each architecture at the end of its trainings: means over seeds, and how sure they are.

    Returns:
        Rows of ``architecture``, ``firing``, ``width``, ``features``, ``steps``, ``seeds`` (number), means of
        ``L0``, ``fraction of variance explained``, ``dead share``, ``best cosine`` and ``recovered``; and 95%
        intervals, ``… low`` and ``… high``. That of explained variance resamples seeds: of two it is their
        range, of one there is none. That of ``recovered`` resamples seeds and draws the share of each from
        Beta(found + ½, missed + ½): Jeffreys' interval where there is one seed.
    """
    rows = []
    for setting, held in last(curves(grid)).groupby(SETTING, sort=False):
        seeds, n = len(held), int(held["features"].iloc[0])
        about: dict[str, Any] = dict(zip(SETTING, setting, strict=True)) | {"seeds": seeds}
        means = held[[*MEASURED, "recovered"]].mean().to_dict()
        explained = bootstrap_mean(held[EXPLAINED])
        ends = (explained.low, explained.high) if seeds > 1 else (np.nan, np.nan)
        rng = np.random.default_rng(0)
        found = held["found"].to_numpy()[rng.integers(seeds, size=(RESAMPLES, seeds))]
        drawn = rng.beta(found + 0.5, n - found + 0.5).mean(1)
        share = percentile_interval(means["recovered"], drawn, seeds)
        limits = {f"{EXPLAINED} low": ends[0], f"{EXPLAINED} high": ends[1]}
        rows.append(about | means | limits | {"recovered low": share.low, "recovered high": share.high})
    return pd.DataFrame(rows)
