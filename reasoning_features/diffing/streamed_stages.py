"""The stages of model diffing at real size: autoencoders trained by streaming, one from the other.

In the folder and under the names that :mod:`reasoning_features.diffing.stage_wise` reads. There is no placebo
checkpoint (that would be another fine-tuned model), but there are stages that change nothing, and a second
seed of S is not trained: the main autoencoder's says what chance does. Whatever is interrupted goes on where
it stopped.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from reasoning_features import paths
from reasoning_features.dictionaries.streaming import check_made, train_streamed, training_rows
from reasoning_features.dictionaries.training import Recipe, settings_recipe
from reasoning_features.diffing.stage_wise import (
    BASE,
    PATHS,
    PLACEBO_STAGES,
    load_stage,
    reads_fine_tuned,
    stage_before,
    stage_recipe,
    stages_of,
)
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject, load_subject, short_name
from reasoning_features.paths import RunPaths
from reasoning_features.settings import Settings, TextSource

SEED_OF_LAYERS = 20
"""Seed of the autoencoder of layer 0; one more a layer."""


@dataclass(frozen=True)
class _Training:
    """One autoencoder to be trained.

    Attributes:
        name: its place in the folder, with forward slashes.
        path: the stages that lead to it; empty for another layer's.
        layer: where the model is read.
        fine_tuned: whether the fine-tuned model is read, or the base model.
        data: what kind of texts.
        sources: the texts.
        recipe: how.
    """

    name: str
    path: str
    layer: int
    fine_tuned: bool
    data: str
    sources: list[TextSource]
    recipe: Recipe


def stage_costs(settings: Settings, folder: Path | None = None) -> pd.DataFrame:
    """What training the stages, and the other layers that are asked for, takes; nothing is trained.

    Args:
        settings: recipe and ``layers``.
        folder: where they are or would be; by default as for :func:`train_stages`.

    Returns:
        A row a training, in order: ``training``, ``model``, ``data``, ``tokens``, ``stored`` (whether it is
        there). All but S go on from another and take 30% of its tokens.
    """
    home = _home(settings, folder)
    model = short_name(settings.subject)
    base = short_name(settings.base) if settings.base else BASE
    rows = [
        {
            "training": each.path or f"layer {each.layer}",
            "model": model if each.fine_tuned else base,
            "data": each.data,
            "tokens": each.recipe.tokens,
            "stored": (home / each.name).is_dir(),
        }
        for each in _trainings(settings, model)
    ]
    return pd.DataFrame(rows)


def train_stages(settings: Settings, subject: Subject, folder: Path | None = None) -> str:
    """Train S, the stages of both paths, those that change nothing, and other layers; what is there is kept.

    Args:
        settings: base model, texts, recipe, ``layers`` and device.
        subject: the fine-tuned model.
        folder: where they go; by default ``data/<profile>/diffing``.

    Returns:
        The folder, as ``settings.diffing`` would name it.

    Raises:
        UserError: no base model, no texts, too few of them, or a stage in the folder is of another training.
    """
    if settings.base is None:
        raise UserError("Stages need the model before fine-tuning: set `base`.")
    home = _home(settings, folder)
    every = list(_trainings(settings, subject.short_name))
    for each in every:
        if not each.sources:
            fields = {"base": "base_text", "reasoning": "stages_text", "training": "training_text"}
            what = each.path or f"layer {each.layer}"
            raise UserError(f"There are no texts to train {what} on: set `{fields[each.data]}`.")
    left = [each for each in every if not _is_stored(home / each.name, each.recipe)]
    if any(not each.fine_tuned for each in left):
        options: dict[str, Any] = dict(device=settings.device, dtype=settings.dtype, site=settings.site)
        base = load_subject(settings.base, settings.layer, **options)
        if base.d_model != subject.d_model:
            raise UserError(
                f"{settings.base} is {base.d_model} wide and {subject.name} {subject.d_model}: "
                "give the model that it was fine-tuned from."
            )
        for each in left:
            if not each.fine_tuned:
                _train(settings, base, each, home)
        del base
        gc.collect()
        torch.cuda.empty_cache()
    for each in left:
        if each.fine_tuned:
            _train(settings, replace(subject, layer=each.layer), each, home)
    return home.relative_to(paths.root()).as_posix() if home.is_relative_to(paths.root()) else str(home)


def _home(settings: Settings, folder: Path | None) -> Path:
    return folder if folder is not None else RunPaths(settings.profile).data / "diffing"


def _trainings(settings: Settings, model: str) -> Iterator[_Training]:
    """All trainings, each after the one that it goes on from; those of the base model first."""
    reasoning = [settings.reasoning_text] if settings.reasoning_text else []
    texts = {"base": settings.base_text, "reasoning": settings.stages_text or reasoning}
    recipe = settings_recipe(settings)
    yield _Training(f"{BASE}/S-0", "S", settings.layer, False, "base", texts["base"], recipe)
    for path in sorted((*PLACEBO_STAGES, *PATHS), key=lambda p: reads_fine_tuned(stages_of(p)[-1])):
        last = stages_of(path)[-1]
        home, data = BASE if path in PLACEBO_STAGES else model, "base" if last in ("S", "M") else "reasoning"
        given = settings.layer, reads_fine_tuned(last), data, texts[data], stage_recipe(recipe, path)
        yield _Training(f"{home}/{path}", path, *given)
    for layer in settings.layers:
        own = replace(recipe, seed=SEED_OF_LAYERS + layer)
        yield _Training(f"layers/{layer}", "", layer, True, "training", settings.training_text, own)


def _is_stored(folder: Path, recipe: Recipe) -> bool:
    """Whether a training is done, and with this recipe."""
    if not folder.is_dir():
        return False
    check_made(folder, {"recipe": asdict(recipe)})
    shutil.rmtree(folder.with_name(folder.name + ".training"), ignore_errors=True)
    return True


def _train(settings: Settings, subject: Subject, training: _Training, home: Path) -> None:
    rows = training_rows(settings, subject.tokenizer, training.sources, training.recipe.tokens)
    before: SAE[Any] | None = None
    if len(training.path) > 1:
        model = training.name.split("/")[0]
        given = subject.d_model, subject.hook_name
        before = load_stage(str(home), model, stage_before(training.path), *given)
    train_streamed(settings, subject, rows, training.recipe, home / training.name, before)
