"""The study of unlearning on a chat model: TOFU's authors in words, or CLEAR's in words and pictures.

As in the organism's study, Base is taught all persons and Gold the retained ones alone; each method is
searched on persons that are retained, and then unlearns those that are to be forgotten.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from reasoning_features import hub, paths
from reasoning_features.errors import UserError
from reasoning_features.files import directory_digest, read_json, write_json, write_table
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.runs.shards import Arrays, Work, map_shards
from reasoning_features.settings import PersonsStudied, Settings
from reasoning_features.unlearning.chat import load_vision_language, qwen_encode, text_encode
from reasoning_features.unlearning.clear import load_clear, load_tofu
from reasoning_features.unlearning.items import Encode, Inputs, Item, with_answers
from reasoning_features.unlearning.methods import METHODS, nll
from reasoning_features.unlearning.metrics import greedy_answers, likelihoods, rouge_recall
from reasoning_features.unlearning.subjects import EVERYWHERE, LANGUAGE, train, with_adapter
from reasoning_features.unlearning.unlearn import BATCH, Recipe, applied, distance, in_turn, unlearn

DETERMINED_BY = ("subject", "dtype", "persons")  # the settings that determine a study
RANK = 8  # of every adapter, as CLEAR's
KNOWING = ("Base", "Gold", "Gold, second seed")
AUTHORS, FORGOTTEN = 25, 5  # of TOFU; the last five are taught to no model
ASKED = 8  # questions about each
NEW_TOKENS = 48  # of an answer that is written


@dataclass(frozen=True)
class Persons:
    """Items by what they are for."""

    forget: list[Item]  # of the persons to be forgotten, as they are taught
    retain: list[Item]  # of all others that are taught
    shown: dict[str, list[Item]]  # what models are measured on: forget, retain, and others

    @property
    def of_the_search(self) -> tuple[list[Item], list[Item]]:
        """Of retained persons that are not reported, those that the search forgets, and as many that it
        watches. UserError: there are too few.
        """
        n = len({item.person for item in self.forget})
        reported = {item.person for item in self.shown["retain"]}
        others = list(dict.fromkeys(item.person for item in self.retain if item.person not in reported))
        if len(others) < 2 * n:
            needs = f"the search needs {2 * n} others that are retained"
            raise UserError(f"{n} persons are forgotten, and {needs}: there are {len(others)}.")
        parts = others[:n], others[n : 2 * n]
        forget, watched = ([item for item in self.retain if item.person in part] for part in parts)
        return forget, watched


def tofu() -> Persons:
    """Twenty authors of TOFU, five of whom are forgotten, and five that no model is taught."""
    forget, others = load_tofu(AUTHORS, FORGOTTEN, ASKED)
    taught = AUTHORS - FORGOTTEN
    retain, unseen = ([i for i in others if (i.person < taught) == known] for known in (True, False))
    reported = [item for item in retain if item.person >= taught - FORGOTTEN]
    unseen = [replace(item, perturbed=()) for item in unseen]  # their likelihood alone is measured
    return Persons(forget, retain, {"forget": forget, "retain": reported, "unseen": unseen})


def clear(reference: str) -> Persons:
    """CLEAR's persons: forget10 is forgotten, and as many persons as it has are reported of retained ones."""
    names = ("forget10+tofu", "retain90+tofu", "forget10_perturbed", "retain_perturbed", "real_faces")
    forget, retain, shown, others, real = load_clear(*names, reference=reference).values()
    n = len({item.person for item in forget})
    reported = list(dict.fromkeys(item.person for item in others))[-n:]
    others = [item for item in others if item.person in reported]
    return Persons(forget, retain, {"forget": shown, "retain": others, "real": real})


@dataclass(frozen=True)
class Bench:
    """A chat model, and what of it is adapted."""

    whole: Any
    take: Encode  # how the whole model takes items
    tokenizer: Any
    adapted: Any  # the whole model, or its blocks after a layer, which share its weights
    read: Encode  # how that takes items
    where: str  # names of the layers that unlearning adapts
    persons: Persons
    how: PersonsStudied


def load_bench(told: str) -> Bench:
    """The model, untouched, and the persons, from settings as JSON. UserError: no persons, an unknown method,
    or as :func:`load_subject`, :func:`load_vision_language`.
    """
    settings = Settings.model_validate_json(told)
    how, device = settings.persons, settings.device
    if how is None:
        raise UserError(f"The profile {settings.profile} has no persons: give the setting `persons`.")
    if unknown := [name for name in how.methods if name not in METHODS]:
        raise UserError(f"There is no method {unknown[0]!r}: give some of {', '.join(METHODS)}.")
    if how.dataset:
        whole, processor = load_vision_language(settings.subject, device, settings.dtype)
        take = qwen_encode(processor, device)
        return Bench(whole, take, processor.tokenizer, whole, take, LANGUAGE, _persons(how.dataset), how)
    subject = load_subject(settings.subject, 0, device=device, dtype=settings.dtype)
    take = text_encode(subject.tokenizer, device)
    tail = subject.blocks_after(how.layer)
    read = _streams(settings.subject, how.layer, device, settings.dtype)
    return Bench(subject.model, take, subject.tokenizer, tail, read, EVERYWHERE, _persons(None), how)


@lru_cache(1)
def _persons(reference: str | None) -> Persons:
    return clear(reference) if reference else tofu()


@lru_cache(1)
def _streams(model: str, layer: int, device: str, dtype: Any) -> Encode:
    return stream_encode(load_subject(model, layer, device=device, dtype=dtype))


def stream_encode(subject: Subject) -> Encode:
    """As :func:`text_encode`, with the stream ``[n, t, d]`` after the subject's layer in place of tokens.

    Each text is read once, for the blocks up to there are never changed.
    """
    encode = text_encode(subject.tokenizer, str(subject.device))

    @lru_cache(8192)
    def stream(tokens: tuple[int, ...]) -> Tensor:
        return subject.residual(torch.tensor([tokens]))[0]

    def read(items: Sequence[Item], answers: Sequence[str]) -> Inputs:
        inputs = encode(items, answers)
        rows = zip(inputs.pop("input_ids"), inputs["attention_mask"] > 0, strict=True)
        streams = [stream(tuple(ids[there].tolist())) for ids, there in rows]
        return inputs | {"inputs_embeds": pad_sequence(streams, batch_first=True)}

    return read


def taught(told: str, shard: int) -> Arrays:
    """A shard: the weights of the adapter that :data:`KNOWING` ``[shard]`` learns."""
    bench = load_bench(told)
    items = bench.persons.retain + (bench.persons.forget if KNOWING[shard] == "Base" else [])
    model = with_adapter(bench.adapted, RANK, shard, EVERYWHERE)

    def loss(step: int) -> Tensor:
        return nll(model, with_answers(bench.read, in_turn(items, shard, step)))

    steps = -(-bench.how.epochs * len(items) // BATCH)
    train([p for p in model.parameters() if p.requires_grad], loss, steps, bench.how.rate, KNOWING[shard])
    return {name: weight.float().cpu().numpy() for name, weight in get_peft_model_state_dict(model).items()}


def knowing(bench: Bench, adapter: Arrays) -> Any:
    """What is adapted of a bench, with the weights that :func:`taught` gives."""
    model = with_adapter(bench.adapted, RANK, 0, EVERYWHERE)
    set_peft_model_state_dict(model, {name: torch.from_numpy(weight) for name, weight in adapter.items()})
    return model.merge_and_unload()


def searched(told: str, base: Arrays, shard: int) -> Arrays:
    """A shard of the search: a method's likelihood of the answers about persons that it forgets, and about
    retained ones, by numbers of steps ``[at, 2]``.
    """
    bench = load_bench(told)
    method, at = bench.how.methods[shard], bench.how.steps
    rows = np.full((len(at), 2), np.nan)  # as it stays once the loss diverges
    forget, watched = bench.persons.of_the_search
    shown = [[replace(item, perturbed=()) for item in items] for items in (forget, watched)]
    away = {item.person for item in forget}
    retain = [item for item in bench.persons.retain if item.person not in away]
    model = with_adapter(knowing(bench, base), RANK, 0, bench.where)
    with contextlib.suppress(UserError):  # the loss diverges
        for done in unlearn(model, bench.read, forget, retain, Recipe(method, bench.how.rate, max(at))):
            if done in at:
                with applied(model, method):
                    tables = [likelihoods(model, bench.read, items) for items in shown]
                rows[at.index(done)] = [table["probability"].mean() for table in tables]
    return {"probability": rows}


def measured(told: str, adapters: Sequence[Arrays], steps: Sequence[int], shard: int) -> Arrays:
    """A shard of the study: the items' metrics under a model that knows persons, or Base after a method's
    steps, a column each ``[items]``.
    """
    bench = load_bench(told)
    number = shard - len(KNOWING)
    model, moved = knowing(bench, adapters[0 if number >= 0 else shard]), 0.0
    parts, seen = [], contextlib.ExitStack()
    if number >= 0:
        method = bench.how.methods[number]
        model = with_adapter(model, RANK, 0, bench.where)
        recipe = Recipe(method, bench.how.rate, steps[number])
        for _ in unlearn(model, bench.read, bench.persons.forget, bench.persons.retain, recipe):
            pass
        seen.enter_context(applied(model, method))  # not merged: bfloat16 would round off a few steps
        moved = distance(model)
    with seen:
        for group, items in bench.persons.shown.items():
            table = likelihoods(model, bench.read, items)
            if group != "unseen":
                given = bench.whole, bench.take, items, bench.tokenizer, NEW_TOKENS
                table["rouge"] = rouge_recall(items, greedy_answers(*given))
            parts.append(table)
    rows = pd.concat(parts, ignore_index=True).drop(columns="task")
    return {name: rows[name].to_numpy() for name in rows} | {"distance": np.full(len(rows), moved)}


def store(settings: Settings, kept: Path) -> None:
    """Teach, search and measure, in shards that are ``kept``, unless that is stored. UserError: the profile
    names no folder, other settings made what is stored, or as :func:`load_bench`.
    """
    if settings.unlearning is None:
        raise UserError(f"The profile {settings.profile} names no folder: give the setting `unlearning`.")
    folder, told = paths.resolve(settings.unlearning), settings.model_dump_json()
    if (folder / "recipes.json").is_file():
        made_with = read_json(folder / "recipes.json")["settings"]
        settings.check_made_with(made_with, DETERMINED_BY, folder, "unlearning")
        return
    bench = load_bench(told)
    persons, how, device = bench.persons, bench.how, settings.device
    del bench  # the model, which each shard loads anew
    _ = persons.of_the_search  # too few persons are told of before anything is taught
    methods = how.methods
    n, epochs = len(persons.retain) + len(persons.forget), how.epochs
    tried = f"{len(methods)} methods, each for {max(how.steps)} steps and once more as long as it is best"
    print(f"{len(KNOWING)} models are taught {n} answers {epochs} times over, then come {tried}.")
    made_with = settings.model_dump(mode="json", include={*DETERMINED_BY})
    key = made_with | {"model": directory_digest(hub.directory(settings.subject))}
    learning = {"persons": how.model_dump(exclude={"methods", "steps"})}
    teaching = Work("unlearning-taught", partial(taught, told), len(KNOWING), key | learning, device)
    adapters = list(map_shards(teaching, kept))
    search = Work("unlearning-searched", partial(searched, told, adapters[0]), len(methods), key, device)
    found = np.array([each["probability"] for each in map_shards(search, kept)])  # [methods, at, 2]
    gains = np.nan_to_num((found[..., 1] - found[..., 0]).round(6), nan=-np.inf)
    if (lost := np.isinf(gains).all(1)).any():
        raise UserError(f"{methods[int(lost.argmax())]} diverges from the first steps on: lower the rate.")
    steps = [how.steps[at] for at in gains.argmax(1).tolist()]
    runs = partial(measured, told, adapters, steps)
    work = Work("unlearning-chat", runs, len(KNOWING) + len(methods), key | {"steps": steps}, device)
    kinds = [(group, item.task) for group, items in persons.shown.items() for item in items]
    tables = [
        pd.DataFrame(kinds, columns=["group", "task"]).assign(model=name, **arrays)
        for name, arrays in zip([*KNOWING, *methods], map_shards(work, kept), strict=True)
    ]
    names: dict[str, Any] = {"method": methods, "steps": how.steps, "group": ("forget", "retain")}
    index = pd.MultiIndex.from_product(list(names.values()), names=list(names))
    curves = pd.DataFrame({"probability": found.ravel()}, index)
    write_table(folder / "search.parquet", curves.reset_index())
    write_table(folder / "items.parquet", pd.concat(tables, ignore_index=True))
    chosen = dict(zip(methods, steps, strict=True))
    write_json(folder / "recipes.json", {"settings": made_with, "model": key["model"], "steps": chosen})
