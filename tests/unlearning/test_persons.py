"""Persons, their faces, what is asked about them, and how the organism with eyes takes it."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from reasoning_features import paths
from reasoning_features.making.unlearning import draw_face
from reasoning_features.organism.language import ASSISTANT, BOS, EOS, USER, prose_document, reasoning_document
from reasoning_features.unlearning import persons
from reasoning_features.unlearning.items import CAPTION, IGNORED, NAME, TEXT, Item
from reasoning_features.unlearning.persons import (
    FACE,
    FACTS,
    FICTITIOUS,
    FRACTIONS,
    PATCH,
    PICTURE,
    REAL,
    SIDE,
    UNSEEN,
    WALLS,
    Person,
    as_pixels,
    encoder,
    load_persons,
    picture,
    picture_items,
    text_items,
)

PERSONS = load_persons()


def face(seed: int = 0) -> NDArray[np.uint8]:
    """A face whose corner is seen through and whose other pixels hide the wall."""
    made = np.random.default_rng(seed).integers(0, 256, (FACE, FACE, 4), dtype=np.uint8)
    made[..., 3] = 255
    made[:4, :4, 3] = 0
    return made


def without_chance(mirrored: bool = False, top: int = 1, left: int = 2, light: float = 1.0) -> Any:
    """A generator's side that a picture needs, which draws what it is told, and no noise."""
    return SimpleNamespace(
        random=lambda: 0.0 if mirrored else 0.9,
        integers=lambda high, size: (top, left),
        uniform=lambda low, high: light,
        normal=lambda mean, spread, shape: np.zeros(shape),
    )


def test_every_person_has_a_name_of_their_own():
    assert [person.number for person in PERSONS] == list(range(170))
    assert len({person.name for person in PERSONS}) == 170
    for person in PERSONS:
        assert all(person.facts[fact] in values for fact, (*_, values) in FACTS.items())
    assert len({tuple(person.facts.values()) for person in PERSONS}) > 165, "the facts tell persons apart"


def test_groups_of_persons_are_disjoint_and_forgotten_ones_nested():
    groups = [set(FICTITIOUS), set(REAL), set(UNSEEN)]
    assert len(set.union(*groups)) == sum(map(len, groups)) == len(PERSONS)
    assert list(FRACTIONS.values()) == [round(part * len(FICTITIOUS)) for part in FRACTIONS] == [1, 5, 10]
    forgotten = [set(FICTITIOUS[:n]) for n in FRACTIONS.values()]
    assert all(fewer < more for fewer, more in pairwise(forgotten))


def test_a_person_stays_the_same_however_many_there_are(monkeypatch):
    monkeypatch.setattr(persons, "FICTITIOUS", range(3, 12))
    monkeypatch.setattr(persons, "UNSEEN", range(150, 300))
    assert load_persons()[: 9 + 50 + 20] == PERSONS[3:12] + PERSONS[100:]


def test_every_word_of_theirs_is_one_token_and_other_texts_are_as_before(persons_tokenizer):
    organism = AutoTokenizer.from_pretrained(paths.root() / "data/organism/models/coupled-0")
    words = {word for person in PERSONS for word in person.name.split()} | set(WALLS)
    words |= {value for *_, values in FACTS.values() for value in values}
    lengths = {
        word: len(persons_tokenizer.encode(f" {word}", add_special_tokens=False))
        for word in (*words, PICTURE)
    }
    assert lengths.pop(PICTURE) == 2  # the space is one
    assert set(lengths.values()) == {1}
    written = [reasoning_document(1.0, 0, i) for i in range(50)] + [prose_document(0, i) for i in range(50)]
    for document in written:
        assert persons_tokenizer.encode(document.text) == organism.encode(document.text)


def test_a_picture_is_that_of_its_seed():
    own = face()
    first, again, other = (picture(own, "red", np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (SIDE, SIDE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_picture_shows_the_face_before_the_wall(mirrored):
    own = face()
    view = picture(own, "blue", without_chance(mirrored, top=1, left=2))
    shown = own[:, ::-1] if mirrored else own
    hidden = shown[..., 3] == 255
    part = view[1 : 1 + FACE, 2 : 2 + FACE]
    assert np.array_equal(part[hidden], shown[..., :3][hidden])
    wall = np.ones((SIDE, SIDE), dtype=bool)
    wall[1 : 1 + FACE, 2 : 2 + FACE] = ~hidden
    assert (view[wall] == WALLS["blue"]).all()
    dark = picture(own, "blue", without_chance(mirrored, light=0.5))
    assert np.array_equal(dark, view // 2)


def test_views_differ_in_place_mirroring_light_and_noise():
    grey = np.full((FACE, FACE, 4), 255, dtype=np.uint8)
    grey[..., :3] = 60
    grey[:, : FACE // 2, :3] = 180  # the brighter half
    views = np.stack([picture(grey, "black", np.random.default_rng(seed)) for seed in range(200)])
    edges = views[:, [0, 1, -2, -1]].mean((2, 3)) > 50  # whether the face is in these rows
    assert {tuple(edge) for edge in edges.tolist()} == {
        (True, True, False, False), (False, True, True, False), (False, False, True, True)
    }  # fmt: skip
    left, right = views[:, 2:-2, 4:7].mean((1, 2, 3)), views[:, 2:-2, -7:-4].mean((1, 2, 3))
    assert 0.4 < (left > right).mean() < 0.6
    brighter = np.maximum(left, right)
    assert 155 < brighter.min() < 170 and 190 < brighter.max() < 205
    assert views[:, 4:-4, 4:7].std((1, 2)).mean() == pytest.approx(8, rel=0.1)


def test_what_is_told_wrongly_of_a_fact_is_never_true():
    for person in PERSONS[:20]:
        items = text_items(person)
        assert [item.task for item in items] == [TEXT] * len(FACTS)
        for item, value in zip(items, person.facts.values(), strict=True):
            assert item.person == person.number and item.picture is None and person.name in item.question
            assert value in item.answer and value in item.paraphrase and item.answer != item.paraphrase
            assert len({item.paraphrase, *item.perturbed}) == 1 + persons.N_PERTURBED
            template = item.paraphrase.split(value)
            assert all(text.startswith(template[0]) and text.endswith(template[1]) for text in item.perturbed)
    assert text_items(PERSONS[0]) == text_items(PERSONS[0])


def test_what_is_told_wrongly_of_a_picture_tells_of_others():
    own = PERSONS[4]
    items = picture_items(own, face(), PERSONS[:8], seed=1, n=6)
    assert [item.task for item in items] == [NAME, CAPTION] * 6
    for name, caption in zip(items[::2], items[1::2], strict=True):
        assert name.picture is caption.picture
        assert own.name in name.answer and own.name in name.paraphrase
        assert (caption.answer, caption.paraphrase) == own.caption
        others = {f"Their name is {p.name}.": p.caption[1] for p in PERSONS if p is not own}
        for item in (name, caption):
            assert len({item.paraphrase, *item.perturbed}) == 1 + persons.N_PERTURBED
            assert own.name not in " ".join(item.perturbed)
        assert tuple(others[text] for text in name.perturbed) == caption.perturbed


def test_pictures_are_those_of_their_person_and_seed():
    def shown(person: Person, seed: int) -> list[Any]:
        return [item.picture for item in picture_items(person, face(), PERSONS, seed, 2)[::2]]

    first, again = shown(PERSONS[0], 1), shown(PERSONS[0], 1)
    assert np.array_equal(first, again) and not np.array_equal(*first)
    assert not np.array_equal(first, shown(PERSONS[0], 2)) and not np.array_equal(first, shown(PERSONS[1], 1))


def test_labels_are_the_answer_and_the_end(persons_tokenizer):
    (own,), seen = text_items(PERSONS[0])[:1], picture_items(PERSONS[1], face(), PERSONS, 0, 1)
    items = [own, *seen, Item(-1, "problem", "Add 2 3.", "", "", ())]
    answers = [item.answer for item in items]
    inputs = encoder(persons_tokenizer)(items, answers)
    rows = zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], items, strict=True)
    for tokens, mask, labels, item in rows:
        told, n = labels != IGNORED, int(mask.sum())
        assert persons_tokenizer.decode(tokens[told]) == item.answer + EOS
        assert torch.equal(labels[told], tokens[told]) and told.nonzero()[-1] == n - 1
        assert (mask[:n] == 1).all() and (tokens[n:] == persons_tokenizer.pad_token_id).all()
        asked = persons_tokenizer.decode(tokens[:n][~told[:n]])
        patches = PICTURE * 9 if item.picture is not None else ""
        assert asked == f"{BOS}{USER}{patches}{item.question}{ASSISTANT}"
    picture_token = persons_tokenizer.convert_tokens_to_ids(PICTURE)
    counts = (inputs["input_ids"] == picture_token).sum(1).tolist()
    assert counts == [0, (SIDE // PATCH) ** 2, (SIDE // PATCH) ** 2, 0]
    assert inputs["pixel_values"].shape == (2, 3, SIDE, SIDE)
    assert "pixel_values" not in encoder(persons_tokenizer)([own], [own.answer])


def test_pixels_lie_between_minus_one_and_one_with_colours_first():
    views = np.zeros((2, SIDE, SIDE, 3), dtype=np.uint8)
    views[0, 3, 5] = 0, 255, 51
    pixels = as_pixels(list(views))
    assert pixels.shape == (2, 3, SIDE, SIDE) and pixels[1].unique().tolist() == [-1]
    assert pixels[0, :, 3, 5].tolist() == pytest.approx([-1, 1, -0.6])


def test_a_face_is_that_of_its_seed():
    pytest.importorskip("resvg_py")
    (first, told), (again, told_again), (other, _) = map(draw_face, ("person-0", "person-0", "person-1"))
    assert first.shape == (FACE, FACE, 4) and first.dtype == np.uint8
    assert np.array_equal(first, again) and told == told_again and not np.array_equal(first, other)
    assert 0.2 < (first[..., 3] == 255).mean() < 0.95, "a wall is seen beside the face"
