"""What ``make organism`` makes for notebook 06: a placebo checkpoint, and autoencoders by stage and by layer.

They go into the folder that :mod:`reasoning_features.diffing.stages` describes, with ``placebo-model``, the
base model fine-tuned on plain prose by the arms' recipe, and ``references``, how close the main autoencoder's
features come to stages trained from scratch. A piece that is there is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.dictionaries.training import Recipe as AutoencoderRecipe
from reasoning_features.dictionaries.training import train_autoencoder
from reasoning_features.diffing.stages import (
    BASE,
    PATHS,
    PLACEBO,
    PLACEBO_MODEL,
    PLACEBO_PATHS,
    PLACEBO_STAGES,
    SEED_OF_LAYERS,
    STAGES,
    last_stage,
    load_stage,
    reads_fine_tuned,
    stage_before,
    stage_recipe,
    store_half,
)
from reasoning_features.files import write_table
from reasoning_features.making.activations import main_activations, stage_activations
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.organism.language import Document, prose_documents
from reasoning_features.organism.training import Recipe, save_model, train
from reasoning_features.settings import load_settings
from reasoning_features.workers import Each

SEEDS_OF_REFERENCES = {"D": 12, "M": 13, "F": 14}
"""Seeds of stages from scratch: other starts than those of S and of the main autoencoder."""


@dataclass(frozen=True)
class Plan:
    """What is made.

    Attributes:
        folder: the organism's.
        arms: names of the reasoning models; the placebo reads the first one's data, and layers are its.
        model_recipe: of the placebo checkpoint.
        recipe: of an autoencoder from scratch.
        documents: of each corpus.
        prose_seed: seed of the placebo checkpoint's prose.
        checkpoints: where an interrupted training of a model is kept.
    """

    folder: Path
    arms: tuple[str, ...]
    model_recipe: Recipe
    recipe: AutoencoderRecipe
    documents: int
    prose_seed: int
    checkpoints: Path

    @property
    def home(self) -> Path:
        """Where it goes."""
        return self.folder / "diffing"

    def model(self, name: str) -> Path:
        """A model's directory."""
        return self.home / PLACEBO_MODEL if name == PLACEBO else self.folder / "models" / name

    def activations(self, path: str, model: str) -> tuple[Subject, Tensor]:
        """Who reads the last stage of a path of one fine-tuned model, and the activations on its data."""
        reader = model if reads_fine_tuned(path) else BASE
        traces = model if model in self.arms else self.arms[0]  # whose kind of traces are reasoning data
        return stage_activations(self.model(reader), last_stage(path), self.model(traces), self.documents)


def make(plan: Plan, each: Each) -> None:
    """All pieces in order; those that are there are skipped."""
    if not plan.model(PLACEBO).exists():
        make_placebo(plan)
    if not all((plan.home / BASE / name).exists() for name in ("S-0", "S-1", *PLACEBO_STAGES)):
        make_start(plan)
    each(partial(make_paths, plan), [*plan.arms, PLACEBO])
    depth = load_subject(paths.relative(plan.model(plan.arms[0])), 0).n_layers
    layers = [n for n in range(depth) if n != load_settings("organism").layer]
    each(partial(make_layer, plan), [n for n in layers if not (plan.home / "layers" / str(n)).exists()])
    if not (plan.home / "references" / f"{plan.arms[0]}.parquet").exists():
        make_references(plan, plan.arms[0])


def make_placebo(plan: Plan) -> None:
    """The placebo checkpoint: the base model fine-tuned on plain prose alone, by the arms' recipe."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(plan.model(BASE), dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(plan.model(BASE))

    def documents(start: int, n: int) -> list[Document]:
        return list(prose_documents(n, plan.prose_seed, start=start))

    loss = train(model, tokenizer, documents, plan.model_recipe, plan.checkpoints / PLACEBO)
    card: dict[str, object] = {"name": PLACEBO, "final_loss": loss}
    save_model(model, tokenizer, plan.model(PLACEBO), card, plan.model_recipe)


def make_start(plan: Plan) -> None:
    """S, its second seed, and the placebo stages, which change nothing."""
    torch.set_num_threads(1)
    subject, residual = plan.activations("S", BASE)
    for seed in (0, 1):
        trained = train_autoencoder(residual, replace(plan.recipe, seed=seed), BASE, subject.hook_name)
        store_half(trained, plan.home / BASE / f"S-{seed}")
    for path in PLACEBO_STAGES:
        _go_on(plan, subject, residual, path, BASE)


def make_paths(plan: Plan, model: str) -> None:
    """The stages of both paths of one fine-tuned model, each from the one before it."""
    torch.set_num_threads(1)
    for path in PLACEBO_PATHS if model == PLACEBO else PATHS:
        if not (plan.home / model / path).exists():
            _go_on(plan, *plan.activations(path, model), path, model)


def make_layer(plan: Plan, layer: int) -> None:
    """The autoencoder of another layer of the first arm, on the main autoencoder's text."""
    torch.set_num_threads(1)
    subject, residual = main_activations(plan.model(plan.arms[0]), plan.documents, layer)
    recipe = replace(plan.recipe, seed=SEED_OF_LAYERS + layer)
    trained = train_autoencoder(residual, recipe, plan.arms[0], subject.hook_name)
    store_half(trained, plan.home / "layers" / str(layer))


def make_references(plan: Plan, arm: str) -> None:
    """How close the main features come to D, M and F trained from scratch, without the way there.

    Writes ``references/<arm>.parquet``: rows of ``stage``, ``feature``, ``cosine`` (the largest with a
    decoder direction) and ``explained`` (fraction of variance, of the stage's autoencoder on held-out
    activations).
    """
    torch.set_num_threads(1)
    main = plan.folder / "autoencoders" / f"{arm}-{plan.recipe.architecture}-{plan.recipe.seed}"
    tables = []
    for stage in STAGES[1:]:
        subject, residual = plan.activations(stage, arm)
        recipe = replace(plan.recipe, seed=SEEDS_OF_REFERENCES[stage])
        trained = train_autoencoder(residual, recipe, Path(subject.name).name, subject.hook_name)
        features = load_autoencoder(paths.relative(main), subject.d_model).W_dec
        cosines = best_cosines(features, trained.sae.W_dec)
        explained = trained.history["fraction of variance explained"].iloc[-1]
        table = {"stage": stage, "feature": range(len(cosines)), "cosine": cosines, "explained": explained}
        tables.append(pd.DataFrame(table))
    write_table(plan.home / "references" / f"{arm}.parquet", pd.concat(tables, ignore_index=True))


def _go_on(plan: Plan, subject: Subject, residual: Tensor, path: str, model: str) -> None:
    """Train and store the last stage of a path, from the stored stage before it."""
    before = load_stage(
        paths.relative(plan.home), model, stage_before(path), subject.d_model, subject.hook_name
    )
    recipe, reader = stage_recipe(plan.recipe, path), Path(subject.name).name
    trained = train_autoencoder(residual, recipe, reader, subject.hook_name, initial=before)
    store_half(trained, plan.home / model / path)
