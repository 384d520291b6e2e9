"""Stage-wise fine-tuning of one autoencoder over models and data: the paper's model diffing.

A stage is a model and the data it reads. S is the base model on base data, D the base model on reasoning
data, M the reasoning model on base data, F the reasoning model on reasoning data. An autoencoder is
trained at S, and each later stage of a path goes on from the one before it with 30% of the tokens, so
that a feature which changes can be laid to what changed. A *placebo stage* changes nothing: the same
model, the same data.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from sae_lens import SAE
from torch import Tensor

from reasoning_features import checksums, paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder, save_autoencoder
from reasoning_features.dictionaries.training import Recipe, Training, train_autoencoder
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.settings import Settings
from reasoning_features.text.corpora import general_corpus, reasoning_corpus
from reasoning_features.text.corpus import Corpus

Stage = Literal["S", "D", "M", "F"]
STAGES: tuple[Stage, ...] = ("S", "D", "M", "F")
PATHS = ("S-D", "S-M", "S-D-F", "S-M-F")
"""The paper's stages after S, each by the path that leads to it."""
PLACEBO_STAGES = ("S-S", "S-S-S")
"""Stages in which nothing changes, as many tokens as the paths' of one and of two stages."""
PLACEBO_PATHS = ("S-M", "S-M-F")
"""Stages of the placebo checkpoint; at S and D the base model is read, which is none of its own."""
SHARE = 0.3
"""Tokens of a later stage, as a share of those of a training from scratch (the paper's 30%)."""
BASE = "base"
"""Folder of what was trained on the base model alone: S, its second seed and the placebo stages."""
PLACEBO = "placebo"
"""Name of the placebo checkpoint: the base model fine-tuned on plain prose; its stages' folder."""
PLACEBO_MODEL = "placebo-model"
"""Folder of the placebo checkpoint itself."""


def stages_of(path: str) -> list[Stage]:
    """The stages of a path such as "S-D-F", in order.

    Raises:
        UserError: a stage that is none, or a path that does not begin at S.
    """
    found = [stage for name in path.split("-") for stage in STAGES if stage == name]
    if "-".join(found) != path or not path.startswith("S"):
        raise UserError(f"{path!r} is no path of stages: begin with S and go on with {', '.join(STAGES)}.")
    return found


def stage_before(path: str) -> str:
    """The stored stage that the last one of a path starts from: the path without it; "S-0" for S."""
    before = path.rpartition("-")[0]
    return "S-0" if before == "S" else before


def reads_fine_tuned(stage: Stage) -> bool:
    """Whether a stage reads the fine-tuned model (M and F) or the base model (S and D)."""
    return stage in ("M", "F")


def stage_corpus(
    stage: Stage, settings: Settings, tokenizer: Any, reasoning_model: str, documents: int
) -> Corpus:
    """The training text of a stage: general documents at S and M, thinking traces at D and F.

    Args:
        stage: which.
        settings: kind of corpus, seed, context.
        tokenizer: the models'.
        reasoning_model: directory of the model whose kind of traces are reasoning data.
        documents: how many.
    """
    if stage in ("S", "M"):
        return general_corpus(settings, tokenizer, "training", documents)
    return reasoning_corpus(settings, tokenizer, "training", reasoning_model, documents)


def stage_recipe(recipe: Recipe, path: str) -> Recipe:
    """The recipe of a path's last stage: fewer tokens, and batches in an order of their own."""
    return replace(recipe, tokens=round(SHARE * recipe.tokens), seed=recipe.seed + len(stages_of(path)))


def fine_tune(
    before: SAE[Any], residual: Tensor, recipe: Recipe, model_name: str, hook_name: str
) -> Training:
    """One stage: the autoencoder before it goes on training on this stage's activations.

    Args:
        before: of the stage before, on raw activations.
        residual: ``[n, d]`` activations of this stage's model on this stage's data.
        recipe: of this stage (:func:`stage_recipe`).
        model_name: what the activations are of.
        hook_name: where they were read.

    Raises:
        UserError: too few activations, or an autoencoder that the recipe does not make.
    """
    return train_autoencoder(residual, recipe, model_name, hook_name, initial=before)


def store(training: Training, directory: Path) -> None:
    """Write a trained autoencoder and how it got there, its weights as 16-bit floats; loads as 32-bit.

    One that is there is replaced, as when an interrupted piece is done again.
    """
    for parameter in training.sae.parameters():
        parameter.data = parameter.data.half()
    save_autoencoder(training.sae, directory, {"training": training.history})


def load_stage(folder: str, model: str, path: str, d_model: int, hook_name: str | None) -> SAE[Any]:
    """The autoencoder of a stored stage.

    Args:
        folder: ``settings.diffing``.
        model: the fine-tuned model's name; stages of the base model on base data are found under any.
        path: such as "S-D-F", or "S-0" and "S-1" for S and its second seed.
        d_model: width of the activations.
        hook_name: where they are read; None accepts any.

    Raises:
        MissingArtefact: it is not stored; the message names ``make organism``.
    """
    home = model if {"D", "M", "F"} & set(path) else BASE
    return load_autoencoder(f"{folder}/{home}/{path}", d_model, hook_name)


def load_stages(
    folder: str, model: str, d_model: int, hook_name: str | None
) -> dict[str, tuple[str, SAE[Any]]]:
    """All stages that bear on one fine-tuned model, in the order in which figures show them.

    Args:
        folder: ``settings.diffing``.
        model: the fine-tuned model's name.
        d_model: width of the activations.
        hook_name: where they are read; None accepts any.

    Returns:
        Stage → which model it reads (``model``, "base" or "placebo") and its autoencoder. "S", the
        placebo stages, the paths, and the placebo checkpoint's under "placebo S-M"; placebos where there
        are any.

    Raises:
        MissingArtefact: S or a path is not stored.
    """
    home = paths.resolve(folder)
    wanted = [("S", model, "S-0")]
    wanted += [(path, model, path) for path in PLACEBO_STAGES if (home / BASE / path).is_dir()]
    wanted += [(path, model, path) for path in PATHS]
    wanted += [(f"{PLACEBO} {p}", PLACEBO, p) for p in PLACEBO_PATHS if (home / PLACEBO / p).is_dir()]
    found = {}
    for name, owner, path in wanted:
        last = stages_of(name.removeprefix(f"{PLACEBO} "))[-1]
        sae = load_stage(folder, owner, path, d_model, hook_name)
        found[name] = (owner if reads_fine_tuned(last) else BASE), sae
    return found


def stage_qualities(folder: str, model: str) -> pd.DataFrame:
    """How well each stage's autoencoder reconstructs held-out activations of its own model and data.

    Returns:
        A row a stored training: ``stages`` (whose), ``path``, and ``tokens``, ``L0``,
        ``fraction of variance explained``, ``dead share`` at its end.
    """
    rows = []
    for owner in (BASE, model, PLACEBO):
        for table in sorted((paths.root() / folder / owner).glob("*/training.csv")):
            last = pd.read_csv(table).iloc[-1]
            rows.append({"stages": owner, "path": table.parent.name} | last.drop(["step", "loss"]).to_dict())
    return pd.DataFrame(rows)


def load_layers(folder: str, model: str, d_model: int) -> dict[int, SAE[Any]]:
    """Autoencoders of a model's other layers, where they are stored: layer → autoencoder."""
    found = {}
    for directory in sorted((paths.root() / folder / "layers").glob("*")):
        sae = load_autoencoder(f"{folder}/layers/{directory.name}", d_model)
        if sae.cfg.metadata.model_name == model:
            found[int(directory.name)] = sae
    return found


def check_stored(folder: str) -> None:
    """See that the stages are there and whole, before long work.

    Raises:
        MissingArtefact: there are none.
        CorruptArtefact: a file is not what was shipped.
    """
    directory = paths.root() / folder
    if not (directory / BASE / "S-0").is_dir():
        raise MissingArtefact(f"There are no stages in {folder}: `make organism` trains the shipped ones.")
    checksums.verify_shipped(directory)
