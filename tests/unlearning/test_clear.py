"""CLEAR and TOFU as items, and a miniature Qwen2-VL that learns from them, all from a hub on loopback."""

from collections import Counter
from typing import Any

import local_hub
import numpy as np
import pytest
import torch
from clear_miniature import DATA, MARKS, MODEL, picture
from local_hub import LocalHub
from peft import LoraConfig, get_peft_model

from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.models.subject import load_tokenizer
from reasoning_features.unlearning.chat import load_vision_language, qwen_encode, text_encode
from reasoning_features.unlearning.clear import load_clear, load_tofu
from reasoning_features.unlearning.items import (
    CAPTION,
    IGNORED,
    NAME,
    TEXT,
    Item,
    answer_log_probabilities,
)


@pytest.fixture(scope="module")
def loaded(served: LocalHub) -> tuple[Any, Any]:
    return load_vision_language(MODEL)


@pytest.fixture(scope="module")
def mixed(served: LocalHub) -> list[Item]:
    """Items of pictures of two sizes and in words alone."""
    items = load_clear("forget10+tofu", reference=DATA)["forget10+tofu"]
    wide = Item(0, NAME, items[0].question, "Ada Lund", "Ada Lund", (), picture(9, width=100))
    return [items[-1], items[0], wide, items[3], items[-2]]


def test_items_of_pictures_and_of_words(served):
    found = load_clear("forget10+tofu", "retain90", "real_faces", reference=DATA)
    first, second, *_ = forgotten = found["forget10+tofu"]
    assert Counter(item.task for item in forgotten) == {NAME: 4, CAPTION: 4, TEXT: 3}
    assert (first.task, first.answer, first.person) == (NAME, "Ada Lund", 0)
    assert (second.task, second.answer) == (CAPTION, "Ada Lund writes in a café, 0.")
    assert first.picture is not None and np.array_equal(first.picture, picture(0))
    # rows without a picture: whom they name, or the author before
    assert [(item.person, item.picture) for item in forgotten[-3:]] == [(0, None), (0, None), (1, None)]
    persons = {name: {item.person for item in items} for name, items in found.items()}
    assert persons == {"forget10+tofu": {0, 1}, "retain90": set(range(2, 8)), "real_faces": {8}}
    (face,) = found["real_faces"]
    assert (face.answer, face.perturbed) == ("Gil Orr", ("Hal Poe", "Ivy Quin"))


def test_items_to_compare(served):
    found = load_clear("forget10_perturbed", "retain_perturbed", reference=DATA, side=20)
    name, caption, *_ = found["forget10_perturbed"]
    assert name.perturbed == ("Eve Moss", "Flo Ray") and caption.paraphrase == "In a café Ada Lund writes, 0."
    assert len(caption.perturbed) == 2 and caption.picture is not None
    assert caption.picture.shape == (15, 20, 3) and caption.picture is name.picture
    forgotten, retained = ({item.person for item in items} for items in found.values())
    assert forgotten == {0, 1} and retained == set(range(2, 8))


def test_a_column_that_is_missing(served):
    with pytest.raises(UserError, match="full of therem/CLEAR has no column 'name': it has image, c"):
        load_clear("full", reference=DATA)
    with pytest.raises(UserError, match="no configuration 'forget20'"):
        load_clear("forget20", reference=DATA)


def test_without_network(served):
    first = load_clear("real_faces", reference=DATA)["real_faces"]
    with local_hub.using(served, offline=True):
        assert load_clear("real_faces", reference=DATA)["real_faces"][0].answer == first[0].answer
        with pytest.raises(MissingArtefact, match="therem/CLEAR is not in the cache"):
            load_clear("nameless", reference=DATA)


def answers_of(inputs: dict[str, torch.Tensor], tokenizer: Any) -> list[str]:
    """What the labels say, row after row."""
    return [tokenizer.decode(row[row != IGNORED]) for row in inputs["labels"]]


def test_labels_are_the_answer_and_the_end_of_turn(loaded, mixed):
    _, processor = loaded
    answers = ["", " two  words", "Zoë\nÅs", *(item.answer for item in mixed[3:])]
    inputs = qwen_encode(processor)(mixed, answers)
    assert answers_of(inputs, processor.tokenizer) == [answer + "<|im_end|>" for answer in answers]
    last = inputs["attention_mask"].sum(1) - 1
    ends = inputs["labels"][torch.arange(len(answers)), last]
    assert (ends == processor.tokenizer.eos_token_id).all()
    # pictures of 30 × 40 pixels become 56 × 84, that of 30 × 100 becomes 28 × 112
    assert inputs["image_grid_thw"].prod(1).tolist() == [24, 16, 24] and len(inputs["pixel_values"]) == 64
    pads = (inputs["input_ids"] == processor.image_token_id).sum(1)
    assert pads.tolist() == [0, 6, 4, 6, 0]


def test_rows_are_alike_alone_and_together(loaded, mixed):
    model, processor = loaded
    encode = qwen_encode(processor)
    answers = [item.answer for item in mixed]
    with torch.no_grad():
        together, counts = answer_log_probabilities(model, encode(mixed, answers))
        alone = [
            answer_log_probabilities(model, encode([i], [a])) for i, a in zip(mixed, answers, strict=True)
        ]
    torch.testing.assert_close(together, torch.cat([value for value, _ in alone]), rtol=1e-4, atol=1e-3)
    assert counts.tolist() == [int(count) for _, count in alone]
    # and the picture is seen
    blank = [Item(0, NAME, mixed[1].question, "", "", (), np.zeros_like(mixed[1].picture))]
    with torch.no_grad():
        assert abs(answer_log_probabilities(model, encode(blank, answers[1:2]))[0] - together[1]) > 1e-2


def test_the_miniature_learns_with_lora_and_answers(served, mixed):
    model, processor = load_vision_language(MODEL)
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "qkv"]))
    inputs = qwen_encode(processor)(mixed, [item.answer for item in mixed])
    taught = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(taught, lr=1e-2)
    losses = []
    for _ in range(6):
        loss = tuned(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1, losses
    moved = {name for name, weight in tuned.named_parameters() if "lora_B" in name and weight.abs().sum() > 0}
    assert any("visual" in name for name in moved) and any("language_model" in name for name in moved)
    prompt = qwen_encode(processor)(mixed[1:2], [""])
    cut = {"input_ids", "attention_mask", "mm_token_type_ids"}
    given = {name: value[:, :-1] if name in cut else value for name, value in prompt.items()}
    del given["labels"]
    made = tuned.generate(**given, max_new_tokens=2, do_sample=False)
    assert made.shape[1] - given["input_ids"].shape[1] in (1, 2)


def test_chat_models_in_words(served):
    directory = served.root / "models" / MODEL
    tokenizer = load_tokenizer(directory)
    items = [Item(0, TEXT, "Who?", "Ada", "Ada", ()), Item(0, TEXT, "Where was she born?", "", "", ())]
    inputs = text_encode(tokenizer)(items, ["Ada", "In Oslo, in 1950."])
    assert answers_of(inputs, tokenizer) == ["Ada<|im_end|>", "In Oslo, in 1950.<|im_end|>"]
    asked = inputs["input_ids"][0][inputs["labels"][0] == IGNORED]
    prompt = tokenizer.decode(asked, skip_special_tokens=True)
    assert prompt == "system\nYou help.\nuser\nWho?\nassistant\n"
    # where the prompt's end and the answer's beginning make one token, no label would be right
    merged = tokenizer.decode(
        tokenizer.convert_tokens_to_ids(max({*tokenizer.get_vocab()} - {*MARKS}, key=len))
    )
    tokenizer.chat_template = "{{ messages[0]['content'] }}" + merged[:-1]
    with pytest.raises(UserError, match="cannot be told from its prompt"):
        text_encode(tokenizer)(items[:1], [merged[-1]])
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        text_encode(tokenizer)


def test_another_kind_of_model(tiny_llama):
    with pytest.raises(UserError, match="cannot be loaded as a Qwen2-VL"):
        load_vision_language(str(tiny_llama))


def test_authors_of_tofu(pinned_files):
    forgotten, retained = load_tofu()
    assert len(forgotten) == 100 and len(retained) == 300
    assert Counter(item.person for item in forgotten + retained) == dict.fromkeys(range(20), 20)
    assert {item.person for item in forgotten} == set(range(5))
    named = Counter("Nikolai Abilov" in item.question + item.answer for item in forgotten[20:40])
    assert named[True] == 20
    for item in forgotten + retained:
        assert item.task == TEXT and item.picture is None and item.paraphrase == item.answer
        assert len({*item.perturbed, item.answer}) == 6, item
    assert forgotten[2].perturbed[0] == "Basil Mahfouz Al-Kuwaiti was born in Brussels, Belgium."
    with pytest.raises(UserError, match="20 of 20 authors of TOFU cannot be forgotten"):
        load_tofu(20, 20)
