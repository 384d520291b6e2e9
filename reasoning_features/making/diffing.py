"""What ``make organism`` makes for notebook 06: a placebo checkpoint, and autoencoders by stage and by layer.

In one folder: ``placebo-model``, the base model fine-tuned on plain prose by the arms' recipe; ``base``,
a folder an arm and ``placebo``, the autoencoders of the stages
(:mod:`reasoning_features.diffing.stage_wise`); ``layers``, those of other layers; ``references``, how close
the main autoencoder's features come to stages trained from scratch.
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
from reasoning_features.diffing.stage_wise import (
    BASE,
    PATHS,
    PLACEBO,
    PLACEBO_MODEL,
    PLACEBO_PATHS,
    PLACEBO_STAGES,
    STAGES,
    Stage,
    fine_tune,
    load_stage,
    reads_fine_tuned,
    stage_before,
    stage_recipe,
    stages_of,
    store,
)
from reasoning_features.making.activations import main_activations, stage_activations
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.organism.traces import Document, prose_documents
from reasoning_features.organism.training import Recipe, save_model, train
from reasoning_features.settings import load_settings
from reasoning_features.workers import Each

SEEDS_OF_REFERENCES = {"D": 12, "M": 13, "F": 14}
"""Seeds of stages from scratch: other starts than those of S and of the main autoencoder."""
SEED_OF_LAYERS = 20
"""Seed of the autoencoder of layer 0; one more a layer."""


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

    def activations(self, model: str, stage: Stage, arm: str) -> tuple[Subject, Tensor]:
        """A model, and its activations on a stage's data; an arm says which kind of traces are reasoning."""
        return stage_activations(self.model(model), stage, self.model(arm), self.documents)


def make(plan: Plan, each: Each) -> None:
    """All pieces in order; those that are there are skipped."""
    if not plan.model(PLACEBO).exists():
        make_placebo(plan)
    if not all((plan.home / BASE / name).exists() for name in ("S-0", "S-1", *PLACEBO_STAGES)):
        make_start(plan)
    each(partial(make_paths, plan), [*plan.arms, PLACEBO])
    layers = [path.name for path in (plan.home / "layers").glob("*")]
    depth = load_subject(paths.relative(plan.model(plan.arms[0])), 0).n_layers
    wanted = [layer for layer in range(depth) if layer != load_settings("organism").layer]
    each(partial(make_layer, plan), [layer for layer in wanted if str(layer) not in layers])
    if not (plan.home / "references" / f"{plan.arms[0]}.parquet").exists():
        make_references(plan, plan.arms[0])


def make_placebo(plan: Plan) -> None:
    """The placebo checkpoint: the base model fine-tuned on plain prose alone, by the arms' recipe."""
    torch.set_num_threads(1)
    base = plan.model(BASE)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base)

    def documents(start: int, n: int) -> list[Document]:
        return list(prose_documents(n, plan.prose_seed, start=start))

    loss = train(model, tokenizer, documents, plan.model_recipe, plan.checkpoints / PLACEBO)
    card: dict[str, object] = {"name": PLACEBO, "final_loss": loss}
    save_model(model, tokenizer, plan.model(PLACEBO), card, plan.model_recipe)


def make_start(plan: Plan) -> None:
    """S, its second seed, and the placebo stages, which change nothing."""
    torch.set_num_threads(1)
    subject, residual = plan.activations(BASE, "S", plan.arms[0])
    for seed in (0, 1):
        recipe = replace(plan.recipe, seed=seed)
        trained = train_autoencoder(residual, recipe, BASE, subject.hook_name)
        store(trained, plan.home / BASE / f"S-{seed}")
    for path in PLACEBO_STAGES:
        _go_on(plan, subject, residual, path, BASE)


def make_paths(plan: Plan, model: str) -> None:
    """The stages of both paths of one fine-tuned model, each from the one before it."""
    torch.set_num_threads(1)
    for path in PLACEBO_PATHS if model == PLACEBO else PATHS:
        if not (plan.home / model / path).exists():
            stage = stages_of(path)[-1]
            reader = model if reads_fine_tuned(stage) else BASE
            arm = plan.arms[0] if model == PLACEBO else model
            _go_on(plan, *plan.activations(reader, stage, arm), path, model)


def make_layer(plan: Plan, layer: int) -> None:
    """The autoencoder of another layer of the first arm, on the main autoencoder's text."""
    torch.set_num_threads(1)
    arm = plan.arms[0]
    subject, residual = main_activations(plan.model(arm), plan.documents, layer)
    recipe = replace(plan.recipe, seed=SEED_OF_LAYERS + layer)
    store(train_autoencoder(residual, recipe, arm, subject.hook_name), plan.home / "layers" / str(layer))


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
        subject, residual = plan.activations(arm if reads_fine_tuned(stage) else BASE, stage, arm)
        recipe = replace(plan.recipe, seed=SEEDS_OF_REFERENCES[stage])
        trained = train_autoencoder(residual, recipe, Path(subject.name).name, subject.hook_name)
        features = load_autoencoder(paths.relative(main), subject.d_model).W_dec
        cosines = best_cosines(features, trained.sae.W_dec)
        explained = trained.history["fraction of variance explained"].iloc[-1]
        found = {"feature": range(len(cosines)), "cosine": cosines, "explained": explained}
        tables.append(pd.DataFrame({"stage": stage} | found))
    path = plan.home / "references" / f"{arm}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(tables, ignore_index=True).to_parquet(path.with_suffix(".new"), index=False)
    path.with_suffix(".new").rename(path)


def _go_on(plan: Plan, subject: Subject, residual: Tensor, path: str, model: str) -> None:
    """Train and store the last stage of a path, from the stored stage before it."""
    before = stage_before(path)
    sae = load_stage(paths.relative(plan.home), model, before, subject.d_model, subject.hook_name)
    recipe = stage_recipe(plan.recipe, path)
    trained = fine_tune(sae, residual, recipe, Path(subject.name).name, subject.hook_name)
    store(trained, plan.home / model / path)
