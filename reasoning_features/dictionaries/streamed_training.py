"""Training an autoencoder on activations that stream from a model, where they would not fit on a disk.

The same recipe and trainer as for activations in memory. A training goes on from its newest checkpoint when
it was interrupted, at any point and as often as need be, and ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE, SAETrainer
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.bookkeeping.projections import project
from reasoning_features.checksums import MADE as KEY
from reasoning_features.checksums import damaged_files, damaged_training, file_digests
from reasoning_features.dictionaries.autoencoder_recipe import Architecture, Recipe
from reasoning_features.dictionaries.autoencoder_trainer import finished, held_out_quality, new_trainer
from reasoning_features.dictionaries.autoencoder_training import save_autoencoder
from reasoning_features.dictionaries.training_buffers import Buffers, Place, Rows
from reasoning_features.dictionaries.training_rows import training_rows
from reasoning_features.errors import CorruptArtefact, UserError
from reasoning_features.files import read_json, write_json
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import SINK, reading_key
from reasoning_features.settings import Settings, TextSource

COLUMNS = ["step", "tokens", "loss", "L0", "fraction of variance explained", "dead share"]
"""Of a training's history; all but the first two on activations that were held out."""
PROGRESS = "progress.json"
SPACED, NEWEST = "step", "newest"
"""Beginnings of the names of checkpoints; the number of the step follows."""
NEWEST_EVERY = 1200.0
"""Seconds after which the newest checkpoint is written anew."""


def settings_recipe(
    settings: Settings,
    tokens: int | None = None,
    seed: int | None = None,
    architecture: Architecture = "relu",
) -> Recipe:
    """The recipe that settings ask for.

    Args:
        settings: size, batch, learning rate, sparsity, and tokens and seed where they are not given.
        tokens: of the training.
        seed: of its start and its order.
        architecture: "relu" is the paper's.
    """
    return Recipe(
        architecture,
        d_sae=settings.d_sae,
        tokens=settings.train_tokens if tokens is None else tokens,
        learning_rate=settings.learning_rate,
        batch=settings.train_batch,
        seed=settings.seed if seed is None else seed,
        k=settings.k,
        l1=settings.l1,
    )


def trained(
    settings: Settings,
    subject: Subject,
    sources: Sequence[TextSource],
    folder: Path,
    tokens: int | None = None,
    initial: SAE[Any] | None = None,
    seed: int | None = None,
) -> Path:
    """Train an autoencoder on a subject's activations on texts; one that is there already is kept.

    One of which a file is damaged is named, set aside as ``<folder>.damaged`` and trained again.

    Args:
        settings: recipe, context, ``batch_tokens``, ``checkpoints`` and device.
        subject: the model, read at its hook point.
        sources: the texts, in equal parts.
        folder: where the autoencoder goes, with ``training.csv`` and what it was made from. Checkpoints are
            in ``<folder>.training`` beside it until it is done.
        tokens: of the training; by default ``settings.train_tokens``.
        initial: an autoencoder on raw activations to go on from.
        seed: of start and order; by default the settings'.

    Returns:
        ``folder``, in SAELens' format; the autoencoder works on raw activations.

    Raises:
        UserError: too few texts or tokens, ``initial`` is of another kind, or the folder or its checkpoints
            are of a training on something else.
        CorruptArtefact: what tells of what it was made from cannot be read.
    """
    recipe = settings_recipe(settings, tokens, seed)
    rows = training_rows(settings, subject.tokenizer, sources, recipe.tokens)
    return train_on_rows(
        subject, rows, recipe, folder, settings.batch_tokens, settings.checkpoints, settings.device, initial
    )


def train_on_rows(
    subject: Subject,
    rows: Rows,
    recipe: Recipe,
    folder: Path,
    batch_tokens: int,
    checkpoints: int,
    device: str,
    initial: SAE[Any] | None = None,
) -> Path:
    """The same for rows of tokens and a recipe.

    A checkpoint takes twelve bytes a weight (6.4 GB at the paper's size); ``checkpoints`` of them, evenly
    spaced, and the newest are kept until the training is done.

    Raises:
        UserError: as :func:`trained`; or it will take longer than make gives a cell, which is said after
            one buffer.
    """
    key = _key(subject, rows, recipe, batch_tokens, device, initial)
    work, whole = (folder.with_name(folder.name + ending) for ending in (".training", ".whole"))
    if folder.exists():
        check_made(folder, key)
        if not (bad := damaged_training(folder)):
            shutil.rmtree(work, ignore_errors=True)
            return folder
        _set_aside(folder, bad[0])
    if (work / KEY).is_file():
        check_made(work, key)
    start = recipe.start(subject.short_name)
    buffers = Buffers(subject, rows, recipe.batch, recipe.steps, batch_tokens, start)
    held_out = buffers.held_out().to(device)
    began = time.monotonic()  # the first buffer is read for its moments
    with _fast_products(device):
        trainer = new_trainer(
            recipe, subject.short_name, subject.hook_name, buffers.moments(), iter(()), device, initial
        )
        write_json(work / KEY, key)
        place, history = _resume(work, trainer)

        def record() -> None:
            numbers = held_out_quality(trainer, held_out)[0]
            history.append({"step": trainer.n_training_steps, "tokens": trainer.n_training_samples} | numbers)

        if not history:
            record()
        if place[0]:  # other buffers are read as they come
            began = time.monotonic()
        measured_from = began if place[1] == 0 else None
        _run(trainer, buffers, place, recipe, work, checkpoints, history, record, measured_from)
        sae = finished(trainer)
    shutil.rmtree(whole, ignore_errors=True)
    save_autoencoder(sae, whole, {"training": pd.DataFrame(history, columns=COLUMNS)})
    write_json(whole / KEY, key | {"files": file_digests(whole)})
    os.replace(whole, folder)
    shutil.rmtree(work)
    return folder


def _set_aside(folder: Path, damaged: Path) -> None:
    """Keep a damaged autoencoder beside its place: it took hours."""
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    print(
        f"{paths.relative(damaged)} is damaged: {folder.name} is trained again, "
        f"and what is left of it is in {paths.relative(aside)}."
    )


def _run(
    trainer: SAETrainer[Any, Any],
    buffers: Buffers,
    place: Place,
    recipe: Recipe,
    work: Path,
    checkpoints: int,
    history: list[dict[str, float]],
    record: Callable[[], None],
    measured_from: float | None,
) -> None:
    """All steps that are left, with checkpoints; the history grows at the evenly spaced ones.

    How long the rest will take is told after one whole buffer: the first, read and trained on since
    ``measured_from``; where that is None the training goes on within a buffer, and the next is measured.
    """
    spaced = {round(recipe.steps * i / (checkpoints + 1)) for i in range(1, checkpoints + 1)}
    total, done = recipe.steps * recipe.batch, trainer.n_training_samples
    saved, told = time.monotonic(), False
    bar = tqdm(total=total, initial=done, desc=f"Training {work.stem}", unit="token", unit_scale=True)
    with bar:
        for batch, after in buffers.batches(place, trainer.n_training_steps):
            trainer.maybe_reset_sparsity()
            trainer.step(batch)
            trainer.n_training_steps += 1
            bar.update(len(batch))
            step = trainer.n_training_steps
            if step in spaced or step == recipe.steps:
                record()
            if step in spaced:
                _save(work, f"{SPACED}-{step}", trainer, after, history)
                saved = time.monotonic()
            elif time.monotonic() - saved > NEWEST_EVERY and step < recipe.steps:
                _save(work, f"{NEWEST}-{step}", trainer, after, history)
                saved = time.monotonic()
            if not told and after[1] == 0 and step < recipe.steps:  # a buffer is through
                now, samples = time.monotonic(), trainer.n_training_samples
                if measured_from is not None:
                    rate, told = (samples - done) / (now - measured_from), True
                    project(f"Training {work.stem}", total - samples, rate)
                measured_from, done = now, samples


def _save(
    work: Path, name: str, trainer: SAETrainer[Any, Any], place: Place, history: list[dict[str, float]]
) -> None:
    """Writes everything that decides what comes next, whole or not at all; the newest one before it goes."""
    fresh, before = work / f"{name}.new", list(work.glob(f"{NEWEST}-*"))
    fresh.mkdir()
    weights = {name: value.detach().cpu().contiguous() for name, value in trainer.sae.state_dict().items()}
    save_file(weights, fresh / "weights.safetensors")
    trainer.save_trainer_state(fresh)
    progress = {"place": place, "history": history, "files": file_digests(fresh)}
    write_json(fresh / PROGRESS, progress)
    os.replace(fresh, work / name)
    for folder in before:
        shutil.rmtree(folder)


def _resume(work: Path, trainer: SAETrainer[Any, Any]) -> tuple[Place, list[dict[str, float]]]:
    """Puts the trainer where the newest whole checkpoint stands; where there is none, at the beginning."""
    for unfinished in work.glob("*.new"):
        shutil.rmtree(unfinished)
    found = [path for path in work.glob("*-*") if path.name.split("-")[0] in (SPACED, NEWEST)]
    for newest in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        progress = _progress(newest)
        if progress is None:
            name = paths.relative(newest)
            print(f"The checkpoint {name} is damaged: the training goes on from the one before.")
            shutil.rmtree(newest)
            continue
        trainer.sae.load_state_dict(load_file(newest / "weights.safetensors"))
        trainer.load_trainer_state(newest)
        number, batch = progress["place"]
        return (number, batch), progress["history"]
    return (0, 0), []


def _progress(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint tells of the training; None where any of its files is not as it was written."""
    try:
        told = read_json(checkpoint / PROGRESS)
        return None if damaged_files(checkpoint, told["files"]) else told
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _key(
    subject: Subject, rows: Rows, recipe: Recipe, batch_tokens: int, device: str, initial: SAE[Any] | None
) -> dict[str, Any]:
    """What determines an autoencoder to the last bit, on one machine."""
    return reading_key(subject) | {
        "texts": rows.identity,
        "rows": len(rows),
        "context": rows.context,
        "batch_tokens": batch_tokens,
        "sinks_from": SINK,
        "recipe": asdict(recipe),
        "initial": None if initial is None else _digest(initial),
        "device": torch.device(device).type,
    }


def _digest(sae: SAE[Any]) -> str:
    """Stands for an autoencoder's weights."""
    digest = hashlib.sha256()
    for _, value in sorted(sae.state_dict().items()):
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_made(folder: Path, key: dict[str, Any]) -> None:
    """See that a training, or one that is under way, was made from these things, by name.

    Raises:
        UserError: it was made from something else, or by hand.
        CorruptArtefact: what tells that cannot be read.
    """
    path = folder / KEY
    name = paths.relative(folder)
    if not path.is_file():
        raise UserError(
            f"{name} is there already, and no training made it: delete it or choose another name."
        )
    try:
        found = read_json(path)
    except ValueError as error:
        raise CorruptArtefact(
            f"{paths.relative(path)} is damaged: delete {name}, and it is trained again."
        ) from error
    different = [name for name in key if found.get(name) != key[name]]
    if different:
        raise UserError(
            f"{name} is of a training with another {', '.join(different)}: delete it or choose another name."
        )


@contextlib.contextmanager
def _fast_products(device: str) -> Iterator[None]:
    """On a GPU float32 matrices are multiplied with its matrix units (TF32), several times as fast."""
    before = torch.get_float32_matmul_precision()
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
