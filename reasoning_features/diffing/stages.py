"""The stages of model diffing: one autoencoder fine-tuned over models and data, step by step.

S is the base model on base data, D the base model on reasoning data, M the reasoning model on base data, F
both. An autoencoder is trained at S, and each later stage of a path ("S-D-F") goes on from the one before it
with 30% of the tokens. A *placebo stage* changes nothing: same model, same data. The *placebo checkpoint*,
the organism's alone, is the base model fine-tuned on prose.

Stages lie in one folder: ``base/S-0`` (and ``S-1``, a second seed), ``base/S-S``, ``<model>/S-M`` and so on,
``placebo/S-M``, and ``layers/<n>``, the autoencoders of other layers.
"""

import gc
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder, save_autoencoder
from reasoning_features.dictionaries.streaming import check_made, train_streamed
from reasoning_features.dictionaries.training import Recipe, Training, settings_recipe
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.files import verify_shipped
from reasoning_features.models.subject import Subject, load_subject, short_name
from reasoning_features.paths import RunPaths
from reasoning_features.settings import Settings, TextSource
from reasoning_features.text.corpora import general_corpus, reasoning_corpus
from reasoning_features.text.corpus import Corpus

STAGES = ("S", "D", "M", "F")
PATHS = ("S-D", "S-M", "S-D-F", "S-M-F")  # the paper's stages after S, each by the path that leads to it
PLACEBO_STAGES = ("S-S", "S-S-S")  # nothing changes, with as many tokens as a path of one and of two steps
PLACEBO_PATHS = ("S-M", "S-M-F")  # stages of the placebo checkpoint; S and D read the base model
TOKENS_OF_STAGE = 0.3  # tokens of a later stage, as a fraction of a training from scratch (the paper's 30%)
BASE = "base"  # folder of what reads the base model and base data: S, its second seed, the placebo stages
PLACEBO = "placebo"  # name of the placebo checkpoint, and folder of its stages
PLACEBO_MODEL = "placebo-model"  # folder of the placebo checkpoint itself
SEED_OF_LAYERS = 20  # seed of the autoencoder of layer 0; one more a layer


def stage_before(path: str) -> str:
    """The stored stage that the last one of a path starts from: the path without it; "S-0" for S."""
    before = path.rpartition("-")[0]
    return "S-0" if before == "S" else before


def reads_fine_tuned(path: str) -> bool:
    """Whether the last stage of a path reads the fine-tuned model (M, F) or the base model (S, D)."""
    return path[-1] in "MF"


def stage_recipe(recipe: Recipe, path: str) -> Recipe:
    """The recipe of a path's last stage: fewer tokens, and batches in an order of their own."""
    seed = recipe.seed + len(path.split("-"))
    return replace(recipe, tokens=round(TOKENS_OF_STAGE * recipe.tokens), seed=seed)


def stage_corpus(stage: str, settings: Settings, tokenizer: Any, model: str, documents: int) -> Corpus:
    """The training text of a stage: general documents at S and M, the reasoning model's traces at D and F."""
    if stage in "SM":
        return general_corpus(settings, tokenizer, "training", documents)
    return reasoning_corpus(settings, tokenizer, "training", model, documents)


def store_half(training: Training, directory: Path) -> None:
    """Write a trained autoencoder and its history, weights as 16-bit floats, in the place of any there."""
    for parameter in training.sae.parameters():
        parameter.data = parameter.data.half()
    save_autoencoder(training.sae, directory, {"training": training.history})


def load_stage(folder: str, model: str, path: str, d_model: int, hook_name: str | None) -> SAE[Any]:
    """The autoencoder of a stored stage, such as "S-D-F", or "S-0" and "S-1" for S and its second seed.
    ``model`` is the fine-tuned model's name. MissingArtefact where it is not stored.
    """
    home = model if {"D", "M", "F"} & set(path) else BASE
    return load_autoencoder(f"{folder}/{home}/{path}", d_model, hook_name)


def load_stages(
    folder: str, model: str, d_model: int, hook_name: str | None
) -> dict[str, tuple[str, SAE[Any]]]:
    """Stage → which model it reads (``model``, "base" or "placebo") and its autoencoder, in figures' order.
    Placebos are there where they are stored; MissingArtefact where S or a path is not.
    """
    home = paths.resolve(folder)
    if not (home / BASE / "S-0").is_dir():
        raise MissingArtefact(f"There are no stages in {folder}: `make organism` trains the shipped ones.")
    verify_shipped(home)
    wanted = [("S", BASE, "S-0")]
    wanted += [(path, BASE, path) for path in PLACEBO_STAGES if (home / BASE / path).is_dir()]
    wanted += [(path, model, path) for path in PATHS]
    wanted += [(f"{PLACEBO} {p}", PLACEBO, p) for p in PLACEBO_PATHS if (home / PLACEBO / p).is_dir()]
    readers = {name: owner if reads_fine_tuned(path) else BASE for name, owner, path in wanted}
    saes = (load_stage(folder, owner, path, d_model, hook_name) for _, owner, path in wanted)
    return {name: (reader, sae) for (name, reader), sae in zip(readers.items(), saes, strict=True)}


def placebo_model(folder: str) -> str | None:
    """Directory of the placebo checkpoint in a folder of stages, where there is one."""
    place = f"{folder}/{PLACEBO_MODEL}"
    return place if folder and paths.resolve(place).is_dir() else None


def load_layers(folder: str, model: str, d_model: int) -> dict[int, SAE[Any]]:
    """Autoencoders of a model's other layers, where they are stored: layer → autoencoder."""
    found = {}
    for directory in sorted((paths.resolve(folder) / "layers").glob("*")) if folder else []:
        sae = load_autoencoder(f"{folder}/layers/{directory.name}", d_model)
        if sae.cfg.metadata.model_name == model:
            found[int(directory.name)] = sae
    return dict(sorted(found.items()))


def stage_qualities(folder: str, model: str) -> pd.DataFrame:
    """``stages`` (whose), ``path`` and the last row of ``training.csv`` of each stage's autoencoder."""
    rows = []
    for owner in (BASE, model, PLACEBO) if folder else ():
        for table in sorted((paths.resolve(folder) / owner).glob("*/training.csv")):
            last = pd.read_csv(table).iloc[-1]
            rows.append({"stages": owner, "path": table.parent.name} | last.drop(["step", "loss"]).to_dict())
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class PlannedTraining:
    """One autoencoder to be trained by streaming."""

    training: str  # a path, or "layer n"
    folder: Path  # where it goes
    model: str  # name of the model that is read
    fine_tuned: bool  # whether that is the fine-tuned model, or the base model
    texts: str  # the setting that names the texts, for a message
    sources: list[TextSource]
    recipe: Recipe
    layer: int  # where the model is read
    before: str | None = None  # the stored stage it starts from; None for a random start


def planned_trainings(settings: Settings, folder: Path | None = None) -> list[PlannedTraining]:
    """All trainings of :func:`train_stages`, each after the one it goes on from; nothing is trained."""
    home = folder if folder is not None else RunPaths(settings.profile).data / "diffing"
    model, base = short_name(settings.subject), short_name(settings.base) if settings.base else BASE
    reasoning = settings.stages_text or ([settings.reasoning_text] if settings.reasoning_text else [])
    recipe, layer = settings_recipe(settings), settings.layer
    general, own_text = ("base_text", settings.base_text), ("stages_text", reasoning)
    every = [PlannedTraining("S", home / BASE / "S-0", base, False, *general, recipe, layer)]
    for path in sorted((*PLACEBO_STAGES, *PATHS), key=reads_fine_tuned):
        place, fine_tuned = home / (BASE if path in PLACEBO_STAGES else model) / path, reads_fine_tuned(path)
        reader, texts = model if fine_tuned else base, general if path[-1] in "SM" else own_text
        own, before = stage_recipe(recipe, path), stage_before(path)
        every.append(PlannedTraining(path, place, reader, fine_tuned, *texts, own, layer, before))
    for other in settings.layers:
        place, own = home / "layers" / str(other), replace(recipe, seed=SEED_OF_LAYERS + other)
        texts = ("training_text", settings.training_text)
        every.append(PlannedTraining(f"layer {other}", place, model, True, *texts, own, other))
    return every


def train_stages(settings: Settings, subject: Subject, folder: Path | None = None) -> str:
    """Train S, the stages of both paths, the placebo stages, and the other layers, by streaming.

    What is there is kept, and an interrupted training goes on. Gives the folder as ``settings.diffing`` names
    it. UserError: no base model, no texts or too few, or a stored stage of another training.
    """
    if settings.base is None:
        raise UserError("Stages need the model before fine-tuning: set `base`.")
    every = planned_trainings(settings, folder)
    for each in every:
        if not each.sources:
            raise UserError(f"There are no texts to train {each.training} on: set `{each.texts}`.")
        if each.folder.is_dir():
            check_made(each.folder, {"recipe": asdict(each.recipe)})
            shutil.rmtree(each.folder.with_name(each.folder.name + ".training"), ignore_errors=True)
    missing = [each for each in every if not each.folder.is_dir()]
    if from_base := [each for each in missing if not each.fine_tuned]:
        device, dtype, site = settings.device, settings.dtype, settings.site
        base = load_subject(settings.base, settings.layer, device=device, dtype=dtype, site=site)
        if base.d_model != subject.d_model:
            widths = f"{settings.base} is {base.d_model} wide and {subject.name} {subject.d_model}"
            raise UserError(f"{widths}: give the model that it was fine-tuned from.")
        _train(settings, base, from_base)
        del base
        gc.collect()
        torch.cuda.empty_cache()
    _train(settings, subject, [each for each in missing if each.fine_tuned])
    home = every[0].folder.parent.parent
    return home.relative_to(paths.root()).as_posix() if home.is_relative_to(paths.root()) else str(home)


def _train(settings: Settings, subject: Subject, trainings: list[PlannedTraining]) -> None:
    for each in trainings:
        at_layer = replace(subject, layer=each.layer)
        before: SAE[Any] | None = None
        if each.before is not None:
            home, owner = str(each.folder.parent.parent), each.folder.parent.name
            before = load_stage(home, owner, each.before, subject.d_model, subject.hook_name)
        train_streamed(settings, at_layer, each.sources, each.recipe, each.folder, before)
