"""The stored study of unlearning: every method searched on some persons, then measured on others.

The search chooses rate and steps for each method with both modalities forgotten, on ten persons; what is
reported forgets ten others.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.files import directory_digest, write_json, write_table
from reasoning_features.runs.shards import Arrays, Work, map_shards
from reasoning_features.unlearning.items import CAPTION, NAME, TEXT, Encode, Item, with_answers
from reasoning_features.unlearning.methods import METHODS, nll
from reasoning_features.unlearning.metrics import likelihoods, measured
from reasoning_features.unlearning.persons import (
    FRACTIONS,
    REAL,
    UNSEEN,
    encoder,
    load_faces,
    load_persons,
    picture_items,
    text_items,
)
from reasoning_features.unlearning.subjects import problem_item, with_adapter
from reasoning_features.unlearning.unlearn import FORGOTTEN, Recipe, applied, distance, in_turn, unlearn

BASE, GOLD = "Base", "Gold"
TASKS = (TEXT, NAME, CAPTION)
SEEDS = range(3)
FEWER = range(2)  # seeds of what forgets one modality alone, or with a penalty
RANK = 8  # of the adapter that unlearns, as CLEAR's
RATES, AT = (1e-3, 3e-3, 1e-2), (6, 12, 24, 48)  # what is searched: rates, and numbers of steps
SEARCHED = range(10, 20)  # persons that the search forgets; those that are reported are the first ones
TRAINED_VIEWS, VIEWS = 3, 2  # pictures of a person that are read in unlearning, and in evaluation
WATCHED = range(80, 90)  # retained persons that the search watches; those that are reported are the last
GROUPS = {"retain": range(90, 100), "real": REAL[:5], "unseen": UNSEEN[:10]}  # measured beside the forgotten
PENALISED = ("GA", "GD", "KL", "NPO")  # of the six of CLEAR's first version, table 4
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # λ of the ℓ1 norm
PROBLEMS = 60  # of the organism's, on which every model's loss is taken
RELEARNING = 20  # steps in which the forgotten are taught again
RELEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Run:
    """One unlearning that is reported."""

    method: str
    forgotten: str = "both"  # of :data:`FORGOTTEN`
    fraction: float = 0.1
    penalty: float = 0.0
    seed: int = 0


def grid() -> list[Run]:
    """Every run of the study."""
    return [
        *(Run(method, seed=seed) for method in METHODS for seed in SEEDS),
        *(Run(m, what, seed=seed) for m in METHODS for what in ("text", "pictures") for seed in FEWER),
        *(Run(method, fraction=part) for method in METHODS for part in FRACTIONS if part < 0.1),
        *(Run(m, penalty=each, seed=seed) for m in PENALISED for each in PENALTIES for seed in FEWER),
    ]


@dataclass(frozen=True)
class World:
    """What every run reads: the pretrained model's folder and the persons' items."""

    folder: Path
    tokenizer: Any
    encode: Encode

    def model(self, name: str | None) -> Any:
        """The pretrained model in float32, or Base or Gold by name, such as ``gold-0.1-2``."""
        model = LlavaForConditionalGeneration.from_pretrained(self.folder / "pretrained", dtype="float32")
        if name is not None:
            model = PeftModel.from_pretrained(model, self.folder / name).merge_and_unload()
        return model.eval()

    def items(self, numbers: Sequence[int], views: int, seed: int) -> list[Item]:
        """All questions about some persons, with so many pictures of each."""
        persons, faces = _persons(self.folder)
        made: list[Item] = []
        for number in numbers:
            made += text_items(persons[number])
            made += picture_items(persons[number], faces[number], persons, seed, views)
        return made


@lru_cache(1)
def _persons(folder: Path) -> Any:
    return load_persons(), load_faces(folder)


@lru_cache(1)
def load_world(folder: Path) -> World:
    """MissingArtefact: the organism with eyes is not there."""
    if not (folder / "pretrained").is_dir():
        raise MissingArtefact(f"There is no {paths.relative(folder)}/pretrained: `make unlearning` makes it.")
    tokenizer = AutoTokenizer.from_pretrained(folder / "pretrained")
    return World(folder, tokenizer, encoder(tokenizer))


def to_read(
    world: World, numbers: Sequence[int], forgotten: str, known: int = 100
) -> tuple[list[Item], list[Item]]:
    """The items that unlearning ``numbers`` reads: those to be forgotten, and those of all others."""
    others = [number for number in range(known) if number not in numbers]
    tasks = FORGOTTEN[forgotten]
    read = (world.items(each, TRAINED_VIEWS, seed=1) for each in (numbers, others))
    forget, retain = ([item for item in items if item.task in tasks] for items in read)
    return forget, retain


def groups(world: World, forgotten: Sequence[int]) -> dict[str, list[Item]]:
    """The items that every model is measured on, pictures that no training showed."""
    return {
        name: world.items(numbers, VIEWS, seed=2)
        for name, numbers in ({"forget": forgotten} | GROUPS).items()
    }


def measured_groups(world: World, model: Any, forgotten: Sequence[int]) -> Arrays:
    """The metrics of every item, group after group: a column each ``[items]``; the unseen have no ROUGE."""
    parts = []
    for name, items in groups(world, forgotten).items():
        unseen = name == "unseen"
        given = (model, world.encode, items)
        parts.append(likelihoods(*given) if unseen else measured(*given, world.tokenizer))
    table = pd.concat(parts, ignore_index=True)
    return {name: table[name].to_numpy() for name in table.columns.drop("task")}


def exact(world: World, model: Any, items: Sequence[Item]) -> dict[str, float]:
    """Share of answers that are exact, by task."""
    short = [replace(item, perturbed=item.perturbed[:1]) for item in items]
    table = likelihoods(model, world.encode, short)
    return {task: float(table.loc[table["task"] == task, "exact"].mean()) for task in TASKS}


def searched(folder: Path, shard: int) -> Arrays:
    """A shard of the search: one method at one rate; exact shares by numbers of steps and task ``[at, 2, 3]``
    of persons that are forgotten, and of retained ones.
    """
    method, rate = [(method, rate) for method in METHODS for rate in RATES][shard]
    world = load_world(folder)
    model = with_adapter(world.model("base-0"), RANK, seed=0)
    shown = {"forget": world.items(SEARCHED, VIEWS, 2), "retain": world.items(WATCHED, VIEWS, 2)}
    forget, retain = to_read(world, SEARCHED, "both")
    rows = np.zeros((len(AT), len(shown), len(TASKS)))
    with contextlib.suppress(UserError):  # a rate at which the loss diverges answers nothing from there on
        for done in unlearn(model, world.encode, forget, retain, Recipe(method, rate, max(AT))):
            if done in AT:
                with applied(model, method):
                    told = [list(exact(world, model, items).values()) for items in shown.values()]
                rows[AT.index(done)] = told
    return {"exact": rows}


def chosen(found: Sequence[Arrays]) -> dict[str, tuple[float, int]]:
    """Rate and steps of each method: where retained persons are answered best in comparison with forgotten
    ones, means over tasks; the gentler of two that do equally well.
    """
    recipes = {}
    for i, method in enumerate(METHODS):
        own = [found[i * len(RATES) + j]["exact"].mean(-1) for j in range(len(RATES))]  # [at, 2] each
        gain = np.array([each[:, 1] - each[:, 0] for each in own])
        at_rate, at_steps = np.unravel_index(int(gain.round(6).argmax()), gain.shape)
        recipes[method] = (RATES[at_rate], AT[at_steps])
    return recipes


def unlearned(folder: Path, recipes: dict[str, tuple[float, int]], shard: int) -> Arrays:
    """A shard of the study: a run's metrics, the distance moved, and how much of the forgotten comes back."""
    run, world = grid()[shard], load_world(folder)
    forgotten = range(FRACTIONS[run.fraction])
    model = with_adapter(world.model(f"base-{run.seed}"), RANK, run.seed)
    forget, retain = to_read(world, forgotten, run.forgotten)
    rate, steps = recipes[run.method]
    recipe = Recipe(run.method, rate, steps, run.penalty, run.seed)
    for _ in unlearn(model, world.encode, forget, retain, recipe):
        pass
    with applied(model, run.method):
        found = {"distance": np.array([distance(model)])}
        model = model.merge_and_unload()
    found |= measured_groups(world, model, forgotten) | lost(world, model)
    main = run == Run(run.method, seed=run.seed)
    return found | (back(world, model, forgotten) if main else {})


def relearnt(world: World, model: Any, forget: Sequence[Item], shown: Sequence[Item]) -> float:
    """Share of answers about the forgotten, mean over tasks, that is exact, of pictures that were not shown,
    after :data:`RELEARNING` steps of ordinary training on them. ``model`` is merged.
    """
    model = with_adapter(model, RANK, seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RELEARNING_RATE)
    for number in range(RELEARNING):
        nll(model, with_answers(world.encode, in_turn(forget, 0, number))).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(np.mean(list(exact(world, model, shown).values())))


def references() -> dict[str, Run]:
    """Base and Gold by name, such as ``gold-0.1-2``, as runs that forget nothing."""
    main = {f"base-{seed}": Run(BASE, "", seed=seed) for seed in SEEDS}
    main |= {f"gold-0.1-{seed}": Run(GOLD, "", seed=seed) for seed in SEEDS}
    return main | {f"gold-{part}-0": Run(GOLD, "", part) for part in FRACTIONS if part < 0.1}


def reference(folder: Path, shard: int) -> Arrays:
    """A shard of the study: Base or Gold, measured as the unlearned models are."""
    (name, run), world = list(references().items())[shard], load_world(folder)
    forgotten, model = range(FRACTIONS[run.fraction]), world.model(name)
    found = measured_groups(world, model, forgotten) | lost(world, model)
    return found | back(world, model, forgotten)


def lost(world: World, model: Any) -> Arrays:
    """Loss on the organism's problems, nats a token."""
    rng = np.random.default_rng(0)
    problems = [problem_item(rng, "evaluation") for _ in range(PROBLEMS)]
    with torch.no_grad():
        loss = float(nll(model, with_answers(world.encode, problems)))
    return {"problem_loss": np.array([loss])}


def back(world: World, model: Any, forgotten: Sequence[int]) -> Arrays:
    """How much of what is forgotten comes back (:func:`relearnt`)."""
    forget, _ = to_read(world, forgotten, "both")
    shown = groups(world, forgotten)["forget"]
    return {"relearnt": np.array([relearnt(world, model, forget, shown)])}


def store(folder: Path, kept: Path) -> None:
    """Search, then every run and Base and Gold, in shards that are kept, unless that is stored."""
    if (folder / "study.json").is_file():
        return
    models = {name: directory_digest(folder / name) for name in ("pretrained", *references())}
    search = Work("unlearning-search", partial(searched, folder), len(METHODS) * len(RATES), models)
    found = list(map_shards(search, kept))
    recipes = chosen(found)
    untouched = Work("unlearning-models", partial(reference, folder), len(references()), models)
    runs = Work("unlearning", partial(unlearned, folder, recipes), len(grid()), models | {"recipes": recipes})
    world = load_world(folder)
    pairs = zip(
        [*references().values(), *grid()],
        [*map_shards(untouched, kept), *map_shards(runs, kept)],
        strict=True,
    )
    rows = [as_rows(world, asdict(run), arrays) for run, arrays in pairs]
    write_table(folder / "items.parquet", pd.concat([items for items, _ in rows], ignore_index=True))
    write_table(folder / "models.parquet", pd.DataFrame([told for _, told in rows]))
    names: dict[str, Any] = {
        "method": METHODS,
        "rate": RATES,
        "steps": AT,
        "group": ("forget", "retain"),
        "task": TASKS,
    }
    index = pd.MultiIndex.from_product(list(names.values()), names=list(names))
    curves = pd.DataFrame({"exact": np.stack([each["exact"] for each in found]).ravel()}, index)
    write_table(folder / "search.parquet", curves.reset_index())
    write_json(folder / "study.json", {"recipes": recipes, "models": models})


def as_rows(world: World, told: dict[str, Any], arrays: Arrays) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What was measured of a model's items, a row each, in float32, and what was measured of the model."""
    asked = groups(world, range(FRACTIONS[told["fraction"]]))
    kinds = [(name, item.task) for name, items in asked.items() for item in items]
    columns = {name: values for name, values in arrays.items() if len(values) == len(kinds)}
    single = {name: float(values[0]) for name, values in arrays.items() if len(values) == 1}
    table = pd.DataFrame(kinds, columns=["group", "task"]).assign(**columns)
    few = {name: "float32" for name, values in columns.items() if values.dtype == float}
    return table.astype(few).assign(**told), told | single
