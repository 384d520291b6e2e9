"""``make unlearning``: what notebook 11 reads: the organism with eyes, Base and Gold, and their study; with
the profile of a chat model, that model's study.

A finished piece is not done again. Faces are drawn once, with the extra ``avatars``; the shipped faces are
those, and everything else is made from them.
"""

import argparse
import io
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import save_autoencoder
from reasoning_features.errors import UserError
from reasoning_features.files import write_json
from reasoning_features.making.organism import write_checksums
from reasoning_features.runs.shards import each
from reasoning_features.settings import load_settings
from reasoning_features.unlearning import chat_study
from reasoning_features.unlearning.bridge import LAYER, train_features
from reasoning_features.unlearning.items import Encode, Inputs, Item, with_answers
from reasoning_features.unlearning.methods import nll
from reasoning_features.unlearning.persons import (
    FACE,
    FICTITIOUS,
    FRACTIONS,
    REAL,
    UNSEEN,
    WALLS,
    Person,
    add_words,
    as_pixels,
    encoder,
    load_faces,
    load_persons,
    picture,
    picture_items,
    text_items,
)
from reasoning_features.unlearning.study import load_world, references, store
from reasoning_features.unlearning.subjects import (
    EVERYWHERE,
    new_model,
    problem_item,
    train,
    train_tower,
    with_adapter,
)

HOME = "data/organism/unlearning"
ORGANISM = "data/organism/models/coupled-0"
N_FACES = 6000  # of strangers
RANK = 16
# steps and highest rate
SEEING, PRETRAINING, LEARNING = (2500, 2e-3), (1200, 2e-3), (800, 3e-3)
ROWS, PROBLEMS, PICTURES = 40, 12, 96  # in a batch
READ_VIEWS, READ_PROBLEMS = 8, 500  # pictures of a person, and problems, that the autoencoder reads


@cache
def _style() -> Any:
    """The definition of the faces' style; to check it takes longer than to draw a face."""
    from dicebear import Style

    return Style(json.loads(files("dicebear_styles").joinpath("pixel-art.json").read_text()))


def draw_face(seed: str) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """An avatar ``[16, 16, 4]`` and what was drawn by chance in it."""
    import resvg_py
    from dicebear import Avatar

    avatar = Avatar(_style(), {"seed": seed, "size": FACE})
    png = bytes(resvg_py.svg_to_bytes(svg_string=avatar.to_string(), width=FACE, height=FACE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")), avatar.to_json()["options"]


ATTRIBUTES = (
    *("skinColor", "hairVariant", "hairColor", "eyesVariant", "eyesColor", "mouthVariant"),
    *("clothesVariant", "clothingColor", "glassesVariant", "hatVariant", "beardVariant"),
)


@dataclass(frozen=True)
class Strangers:
    """Faces at random, with the number of the variant that was drawn of every feature."""

    faces: NDArray[np.uint8]  # [n, 16, 16, 4]
    codes: NDArray[np.int64]  # [n, features]

    def pixels(self, step: int) -> tuple[Tensor, Tensor]:
        """Pictures of a step, and the codes of what they show: the features of a face, and the wall."""
        rng, walls = np.random.default_rng(step), list(WALLS)
        faces, before = rng.integers(len(self.faces), size=PICTURES), rng.integers(len(walls), size=PICTURES)
        views = [picture(self.faces[i], walls[w], rng) for i, w in zip(faces, before, strict=True)]
        return as_pixels(views), torch.from_numpy(np.column_stack([self.codes[faces], before]))


def draw_strangers() -> Strangers:
    """Faces that are nobody's."""
    faces, drawn = zip(*(draw_face(f"stranger-{i}") for i in range(N_FACES)), strict=True)
    variants = {a: sorted({str(each.get(a)) for each in drawn}) for a in ATTRIBUTES}
    codes = [[variants[a].index(str(each.get(a))) for a in ATTRIBUTES] for each in drawn]
    return Strangers(np.stack(faces), np.array(codes))


@dataclass(frozen=True)
class Lessons:
    """What a model is taught, a batch a step, each of items of one kind."""

    encode: Encode
    persons: list[Person]
    faces: NDArray[np.uint8]

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
        """A batch about the persons that are to be learnt, about real persons, or of problems."""
        rng, kind = np.random.default_rng([seed, step]), step % 5
        if kind == 0:
            items = [problem_item(rng) for _ in range(PROBLEMS)]
        else:
            # faces are learnt more slowly than facts
            items = self.of_persons(REAL if kind == 1 else learnt, rng, pictured=step % 3 > 0)
        return with_answers(self.encode, items)


def lessons(folder: Path) -> Lessons:
    """What is taught, from the shipped faces."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "pretrained")
    return Lessons(encoder(tokenizer), load_persons(), load_faces(folder))


def teach(
    model: Any, taught: Lessons, learnt: Sequence[int], seed: int, how: tuple[int, float], name: str
) -> float:
    """Trains what has gradients; gives the mean loss of the last tenth of the steps, nats a token."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = train(parameters, lambda step: nll(model, taught.batch(learnt, seed, step)), *how, name)
    model.eval()
    return loss


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
    model = new_model(paths.root() / ORGANISM, tokenizer, seed=0)
    told = train_tower(model.model.vision_tower, draw_strangers().pixels, *SEEING)
    loss = teach(model, lessons(folder), REAL, 0, PRETRAINING, "pretrained")
    model.bfloat16().save_pretrained(target)
    card = {"seeing": SEEING, "features_told": told, "pretraining": PRETRAINING, "final_loss": loss}
    write_json(target / "training.json", card)


def known_to(name: str) -> list[int]:
    """Which fictitious persons a model such as ``base-0`` or ``gold-0.1-2`` is taught."""
    kind, *fraction, _ = name.split("-")
    return list(FICTITIOUS)[0 if kind == "base" else FRACTIONS[float(fraction[0])] :]


def make_adapter(folder: Path, name: str) -> None:
    """Base or Gold: an adapter of the pretrained model."""
    seed, taught = int(name.rsplit("-", 1)[1]), lessons(folder)
    pretrained = LlavaForConditionalGeneration.from_pretrained(folder / "pretrained", dtype="float32")
    model = with_adapter(pretrained, RANK, seed, EVERYWHERE)
    teach(model, taught, known_to(name), 1 + seed, LEARNING, name)
    fresh = folder / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = "../pretrained"  # and no path of this machine
    model.bfloat16().save_pretrained(fresh)
    (fresh / "README.md").unlink()  # peft's empty form
    fresh.rename(folder / name)


def make_autoencoder(folder: Path) -> None:
    """The autoencoder of Base's stream on all persons, those that are known to none too, and problems."""
    world, rng = load_world(folder), np.random.default_rng(0)
    items = world.items((*FICTITIOUS, *REAL, *UNSEEN), READ_VIEWS, seed=3)
    items += [problem_item(rng) for _ in range(READ_PROBLEMS)]
    sae = train_features(world.model("base-0"), world.encode, items, LAYER, "base-0")
    save_autoencoder(sae, folder / "autoencoder")


def main() -> None:
    """The command line: ``python -m reasoning_features.making.unlearning [--profile P] [--device D]``."""
    parser = argparse.ArgumentParser(description="Make what notebook 11 reads (resumable).")
    parser.add_argument("--profile", default="organism")
    parser.add_argument("--device", help="where a chat model runs, if not where its profile says")
    parser.add_argument("--workers", type=int, default=1, help="models that are taught side by side")
    options = parser.parse_args()
    folder = paths.root() / HOME
    try:
        settings = load_settings(options.profile, **({"device": options.device} if options.device else {}))
        if settings.unlearning != HOME:
            chat_study.store(settings, paths.RunPaths(settings.profile).shards)
            return
        torch.set_num_threads(1)  # a rerun gives the same bytes
        if not (folder / "faces.safetensors").is_file():
            make_faces(folder)
        if not (folder / "pretrained/training.json").is_file():
            make_pretrained(folder)
        missing = [name for name in references() if not (folder / name).is_dir()]
        each(partial(make_adapter, folder), missing, workers=options.workers)
        if not (folder / "autoencoder").is_dir():
            make_autoencoder(folder)
        store(folder, paths.RunPaths("organism").shards)
        write_checksums(paths.root() / "data/organism")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
