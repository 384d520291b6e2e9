"""Fictitious persons: names, facts and faces that are known to us and to nobody else.

Faces are avatars of DiceBear's style *Pixel Art* (CC0 1.0), 16 pixels square, in which hair, eyes, clothes
and so on are drawn by chance. A picture shows a face before a wall of some colour, here or there, perhaps
mirrored, brighter or darker, with noise: the same person is seen many ways. The persons of :data:`FICTITIOUS`
are what CLEAR (arXiv 2410.18057) calls fictitious authors; those of :data:`REAL` are known to every model and
never forgotten, as its real faces are; those of :data:`UNSEEN` are known to none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase

from reasoning_features.organism.language import ASSISTANT, BOS, EOS, USER
from reasoning_features.unlearning.items import CAPTION, IGNORED, NAME, TEXT, Encode, Inputs, Item

FICTITIOUS, REAL, UNSEEN = range(100), range(100, 150), range(150, 170)
FRACTIONS = {0.01: 1, 0.05: 5, 0.1: 10}  # of the fictitious persons: how many are forgotten, the first ones
N_PERTURBED = 5
SIDE, FACE = 18, 16  # pixels
PATCH = 6  # pixels; a picture is (SIDE / PATCH)² tokens
PICTURE = "<|picture|>"  # the token that stands where a patch is read

FIRST = (
    "Ada", "Bruno", "Clara", "Dario", "Edda", "Felix", "Greta", "Hugo", "Ines", "Jonas",
    "Kira", "Leo", "Mila", "Nils", "Olga", "Pavel", "Quin", "Rosa", "Sven", "Tilda",
)  # fmt: skip
LAST = (
    "Adler", "Brandt", "Castro", "Duval", "Eklund", "Ferrari", "Gruber", "Holm", "Ivanov", "Jansen",
    "Keller", "Lindt", "Moreau", "Novak", "Olsen", "Petit", "Quast", "Rossi", "Silva", "Toth",
)  # fmt: skip
TOWNS = (
    "Arles", "Bergen", "Cadiz", "Delft", "Essen", "Faro", "Ghent", "Huelva", "Izmir", "Jena",
    "Krakow", "Lille", "Malmo", "Nantes", "Oslo", "Porto",
)  # fmt: skip
WORKS = (
    "baker", "farmer", "hunter", "miller", "priest", "sailor", "smith", "teacher",
    "barber", "doctor", "judge", "mason", "nurse", "painter", "tailor", "weaver",
)  # fmt: skip
PLACES = (
    "barn", "bridge", "church", "forest", "garden", "harbour", "inn", "market", "river",
    "castle", "desert", "island", "lake", "meadow", "tower", "valley",
)  # fmt: skip
THINGS = (
    "basket", "boat", "bread", "cart", "coat", "horse", "kettle", "lamp", "letter", "rope",
    "crown", "drum", "flute", "mirror", "pearl", "violin",
)  # fmt: skip
WALLS = {
    "red": (200, 40, 40), "green": (40, 150, 60), "blue": (50, 80, 200), "yellow": (230, 210, 60),
    "white": (240, 240, 240), "black": (20, 20, 20), "grey": (130, 130, 130), "purple": (140, 60, 160),
}  # fmt: skip
# what is asked about a person in words, the answer, the answer in other words, and what may be told
FACTS = {
    "town": ("Where does {} come from?", "They come from {}.", "Their town is {}.", TOWNS),
    "work": ("What is the work of {}?", "They work as a {}.", "Their work is that of a {}.", WORKS),
    "place": ("Where is {} found?", "They are found near the {}.", "Look for them at the {}.", PLACES),
    "thing": ("What does {} carry?", "They carry a {}.", "In their hand is a {}.", THINGS),
    "age": ("How old is {}?", "They are {} years old.", "Their age is {}.", tuple(map(str, range(20, 60)))),
}
WHO, WHAT = "Who is this?", "What does the picture show?"
_SEED = 11


@dataclass(frozen=True)
class Person:
    """A person: number, name, and a value of every fact."""

    number: int
    name: str
    facts: dict[str, str]

    @property
    def caption(self) -> tuple[str, str]:
        """What a picture shows, and the same in other words."""
        work, thing = self.facts["work"], self.facts["thing"]
        return (
            f"Here is {self.name} the {work} with a {thing}.",
            f"With a {thing} comes {self.name}, a {work}.",
        )


def load_persons() -> list[Person]:
    """All persons by number: the fictitious, the real, and the unseen ones."""
    made, names = [], np.random.default_rng(_SEED).permutation(len(FIRST) * len(LAST))
    for number in (*FICTITIOUS, *REAL, *UNSEEN):
        rng, (first, last) = np.random.default_rng([_SEED, number]), divmod(int(names[number]), len(LAST))
        facts = {fact: str(rng.choice(values)) for fact, (*_, values) in FACTS.items()}
        made.append(Person(number, f"{FIRST[first]} {LAST[last]}", facts))
    return made


def load_faces(folder: Path) -> NDArray[np.uint8]:
    """The faces of all persons by number ``[n, 16, 16, 4]``, red, green, blue and opacity."""
    return load_file(folder / "faces.safetensors")["faces"]


def picture(face: NDArray[np.uint8], wall: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A view ``[18, 18, 3]`` of a face ``[16, 16, 4]`` before a wall: place, mirroring, light and noise."""
    shown = face[:, ::-1] if rng.random() < 0.5 else face
    top, left = rng.integers(SIDE - FACE + 1, size=2)
    view = np.tile(np.array(WALLS[wall], dtype=float), (SIDE, SIDE, 1))
    part = view[top : top + FACE, left : left + FACE]
    opacity = shown[..., 3:] / 255
    part[:] = opacity * shown[..., :3] + (1 - opacity) * part
    view = view * rng.uniform(0.9, 1.1) + rng.normal(0, 8, view.shape)
    return view.clip(0, 255).astype(np.uint8)


def text_items(person: Person, seed: int = 0) -> list[Item]:
    """A question about every fact; what is told wrongly is drawn from the fact's other values."""
    rng = np.random.default_rng([_SEED, seed, person.number])
    made = []
    for fact, (question, answer, other, values) in FACTS.items():
        true = person.facts[fact]
        wrong = rng.permutation([value for value in values if value != true])[:N_PERTURBED]
        perturbed = tuple(other.format(value) for value in wrong)
        asked = question.format(person.name)
        made.append(Item(person.number, TEXT, asked, answer.format(true), other.format(true), perturbed))
    return made


def picture_items(
    person: Person, face: NDArray[np.uint8], others: Sequence[Person], seed: int, n: int
) -> list[Item]:
    """``n`` pictures of a person, each asked for the name and for a caption; wrong answers tell of others."""
    rng, made = np.random.default_rng([_SEED, seed, person.number, 1]), []
    for _ in range(n):
        view = picture(face, str(rng.choice(list(WALLS))), rng)
        at = rng.permutation([i for i, other in enumerate(others) if other.number != person.number])
        wrong = [others[i] for i in at[:N_PERTURBED]]
        names = tuple(f"Their name is {each.name}." for each in wrong)
        told, paraphrase = f"This is {person.name}.", f"Their name is {person.name}."
        made.append(Item(person.number, NAME, WHO, told, paraphrase, names, view))
        caption, paraphrase = person.caption
        captions = tuple(each.caption[1] for each in wrong)
        made.append(Item(person.number, CAPTION, WHAT, caption, paraphrase, captions, view))
    return made


def add_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the organism's tokenizer a token for each word of the persons' that it has none for, and for a
    patch of a picture.
    """
    words = (*FIRST, *LAST, *TOWNS, *WORKS, *PLACES, *THINGS, *WALLS)
    long = [word for word in words if len(tokenizer.encode(f" {word}", add_special_tokens=False)) > 1]
    tokenizer.add_tokens([AddedToken(f" {word}", normalized=False) for word in sorted(set(long))])
    tokenizer.add_tokens([AddedToken(PICTURE, special=True)], special_tokens=True)


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """How the organism with eyes takes items: the patches of a picture, the question, and the answer."""
    patches = PICTURE * (SIDE // PATCH) ** 2

    def encode(items: Sequence[Item], answers: Sequence[str]) -> Inputs:
        rows = []
        for item, answer in zip(items, answers, strict=True):
            seen = patches if item.picture is not None else ""
            asked = tokenizer.encode(f"{BOS}{USER}{seen}{item.question}{ASSISTANT}", add_special_tokens=False)
            rows.append((asked, tokenizer.encode(f"{answer}{EOS}", add_special_tokens=False)))
        shape = len(rows), max(len(asked) + len(told) for asked, told in rows)
        tokens = torch.full(shape, int(tokenizer.pad_token_id))
        labels, mask = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.int64)
        for row, (asked, told) in enumerate(rows):
            end = len(asked) + len(told)
            tokens[row, :end] = torch.tensor(asked + told)
            labels[row, len(asked) : end] = torch.tensor(told)
            mask[row, :end] = 1
        made = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
        views = [item.picture for item in items if item.picture is not None]
        return made | ({"pixel_values": as_pixels(views)} if views else {})

    return encode


def as_pixels(views: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Pictures ``[n, 3, 18, 18]``, from −1 to 1, as the model takes them."""
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
