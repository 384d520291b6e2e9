"""``make unlearning``: the organism with eyes, Base and Gold, and the studies that notebook 11 reads.

A finished piece is not done again. Faces are drawn once, with the extra ``avatars``; the shipped faces are
those, and everything else is made from them.
"""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from reasoning_features import paths
from reasoning_features.unlearning.items import Inputs, Item
from reasoning_features.unlearning.persons import (
    FICTITIOUS,
    FRACTIONS,
    REAL,
    UNSEEN,
    WALLS,
    Person,
    add_words,
    encoder,
    load_faces,
    load_persons,
    picture,
    picture_items,
    text_items,
)
from reasoning_features.unlearning.subjects import new_model, problem_item, train, with_adapter

HOME = "data/organism/unlearning"
ORGANISM = "data/organism/models/coupled-0"
N_FACES = 6000  # drawn at random, for the pretrained model to describe
SEEDS = range(3)
RANK = 16
PRETRAINING, LEARNING = (2400, 2e-3), (1000, 3e-3)  # steps and highest rate
ROWS, PROBLEMS = 40, 12  # items and problems in a batch


def draw_face(seed: str) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """An avatar ``[16, 16, 4]`` and what was drawn by chance in it."""
    import resvg_py
    from dicebear import Avatar

    style = json.loads(files("dicebear_styles").joinpath("pixel-art.json").read_text())
    avatar = Avatar(style, {"seed": seed, "size": 16})
    png = bytes(resvg_py.svg_to_bytes(svg_string=avatar.to_string(), width=16, height=16))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")), avatar.to_json()["options"]


ATTRIBUTES = (
    *("skinColor", "hairVariant", "hairColor", "eyesVariant", "eyesColor", "mouthVariant"),
    *("clothesVariant", "clothingColor", "glassesVariant", "hatVariant", "beardVariant"),
)


@dataclass(frozen=True)
class Strangers:
    """Faces at random, and how each is described: a number for every attribute's variant."""

    faces: NDArray[np.uint8]  # [n, 16, 16, 4]
    described: list[str]

    def item(self, rng: np.random.Generator) -> Item:
        """One of them before some wall, to be described."""
        which, wall = int(rng.integers(len(self.faces))), str(rng.choice(list(WALLS)))
        told = f"Face {self.described[which]} {wall}."
        view = picture(self.faces[which], wall, rng)
        return Item(-1, "stranger", "Describe the face.", told, told, (), view)


def draw_strangers() -> Strangers:
    """Faces that are nobody's."""
    faces, drawn = zip(*(draw_face(f"stranger-{i}") for i in range(N_FACES)), strict=True)
    variants = {a: sorted({str(each.get(a)) for each in drawn}) for a in ATTRIBUTES}
    told = [" ".join(str(variants[a].index(str(each.get(a)))) for a in ATTRIBUTES) for each in drawn]
    return Strangers(np.stack(faces), told)


@dataclass(frozen=True)
class Lessons:
    """What a model is taught, a batch a step, each of items of one kind."""

    encode: Callable[[Sequence[Item], Sequence[str]], Inputs]
    persons: list[Person]
    faces: NDArray[np.uint8]
    strangers: Strangers | None = None

    def of_persons(self, numbers: Sequence[int], rng: np.random.Generator, pictured: bool) -> list[Item]:
        """Items about some persons, in words or of pictures that were never shown before."""
        made: list[Item] = []
        for number in rng.permutation(numbers)[: ROWS // (2 if pictured else 5)].tolist():
            person, seed = self.persons[number], int(rng.integers(2**31, 2**32))
            made += (
                picture_items(person, self.faces[number], self.persons, seed, 1)
                if pictured
                else text_items(person)
            )
        return made

    def batch(self, learnt: Sequence[int], seed: int, step: int) -> Inputs:
        """A batch of what is to be learnt (strangers, or persons), of real persons, or of problems."""
        rng, kind = np.random.default_rng([seed, step]), step % 5
        if kind == 0:
            items = [problem_item(rng) for _ in range(PROBLEMS)]
        elif kind == 1:
            items = self.of_persons(REAL, rng, step % 2 == 0)
        elif self.strangers:
            items = [self.strangers.item(rng) for _ in range(ROWS)]
        else:
            items = self.of_persons(learnt, rng, step % 2 == 0)
        return self.encode(items, [item.answer for item in items])


def lessons(folder: Path, strangers: bool = False) -> Lessons:
    """What is taught, from the shipped faces; ``strangers``: faces at random too."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "pretrained")
    drawn = draw_strangers() if strangers else None
    return Lessons(encoder(tokenizer), load_persons(), load_faces(folder), drawn)


def make_faces(folder: Path) -> None:
    """The persons' faces, each drawn from the person's number."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = (*FICTITIOUS, *REAL, *UNSEEN)
    faces = np.stack([draw_face(f"person-{number}")[0] for number in numbers])
    save_file({"faces": faces}, folder / "faces.safetensors")


def make_pretrained(folder: Path) -> None:
    """The model that has eyes and knows the real persons, and no fictitious one."""
    target = folder / "pretrained"
    tokenizer = AutoTokenizer.from_pretrained(paths.root() / ORGANISM)
    add_words(tokenizer)
    tokenizer.save_pretrained(target)
    taught = lessons(folder, strangers=True)
    model = new_model(paths.root() / ORGANISM, tokenizer, seed=0)
    steps, rate = PRETRAINING
    loss = train(model, lambda step: taught.batch((), 0, step), steps, rate, "pretrained")
    model.bfloat16().save_pretrained(target)
    (target / "training.json").write_text(
        json.dumps({"steps": steps, "rate": rate, "final_loss": loss}) + "\n"
    )


def known_to(name: str) -> list[int]:
    """Which fictitious persons a model such as ``base-0`` or ``gold-0.1-2`` is taught."""
    kind, *fraction, _ = name.split("-")
    return list(FICTITIOUS)[0 if kind == "base" else FRACTIONS[float(fraction[0])] :]


def make_adapter(folder: Path, name: str) -> None:
    """Base or Gold: an adapter of the pretrained model."""
    seed, taught = int(name.rsplit("-", 1)[1]), lessons(folder)
    pretrained = LlavaForConditionalGeneration.from_pretrained(folder / "pretrained", dtype="float32")
    model = with_adapter(pretrained, RANK, seed)
    numbers, (steps, rate) = known_to(name), LEARNING
    train(model, lambda step: taught.batch(numbers, 1 + seed, step), steps, rate, name)
    fresh = folder / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    model.bfloat16().save_pretrained(fresh)
    fresh.rename(folder / name)
