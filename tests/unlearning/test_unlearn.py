"""Unlearning itself: a small LLaVA with an adapter, the batches of a step, and what a few steps do."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners import lora
from transformers import AutoModelForCausalLM

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.organism.language import reasoning_document
from reasoning_features.unlearning import unlearn as unlearning
from reasoning_features.unlearning.items import CAPTION, NAME, TEXT, Encode, Inputs, Item
from reasoning_features.unlearning.methods import l1_of_adapter, nll
from reasoning_features.unlearning.persons import FACE, encoder, load_persons, picture_items, text_items
from reasoning_features.unlearning.subjects import LINEARS, new_model, with_adapter
from reasoning_features.unlearning.unlearn import (
    BATCH,
    IGNORANT,
    Recipe,
    applied,
    distance,
    draw_step,
    unlearn,
)

ORGANISM = paths.root() / "data/organism/models/coupled-0"
RANK = 2


def items_of(numbers: Sequence[int], seed: int = 0) -> list[Item]:
    """Seven items a person: five in words, and two of a picture."""
    persons, made = load_persons(), []
    for number in numbers:
        face = np.random.default_rng(number).integers(0, 256, (FACE, FACE, 4), dtype=np.uint8)
        made += text_items(persons[number]) + picture_items(persons[number], face, persons, seed, 1)
    return made


FORGET, RETAIN = items_of(range(3)), items_of(range(3, 6))


@pytest.fixture(scope="module")
def encode(persons_tokenizer) -> Encode:
    return encoder(persons_tokenizer)


@pytest.fixture
def base(persons_tokenizer) -> Any:
    return new_model(ORGANISM, persons_tokenizer, seed=0).eval()


@pytest.fixture
def model(base) -> Any:
    return with_adapter(base, RANK, seed=0)


def moved(model: Any, seed: int = 0) -> Any:
    """The model with an adapter whose change of weights is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers_of(model):
            weight = layer.lora_B["default"].weight
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return model


def layers_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, lora.Linear)]


def batch_of(encode: Encode, items: Sequence[Item]) -> Inputs:
    return encode(items, [item.answer for item in items])


@torch.no_grad()
def logits_of(model: Any, inputs: Inputs) -> torch.Tensor:
    return model(**{**inputs, "labels": None}, use_cache=False).logits


@torch.no_grad()
def loss_of(model: Any, encode: Encode, items: Sequence[Item]) -> float:
    return nll(model, batch_of(encode, items)).item()


def run(model: Any, encode: Encode, recipe: Recipe) -> Any:
    assert list(unlearn(model, encode, FORGET, RETAIN, recipe)) == list(range(1, recipe.steps + 1))
    return model


def test_the_organism_with_eyes_reads_as_the_organism(base, persons_tokenizer):
    organism = AutoModelForCausalLM.from_pretrained(ORGANISM, dtype=torch.float32).eval()
    tokens = persons_tokenizer(reasoning_document(1.0, 0, 0).text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        own, theirs = base(input_ids=tokens).logits, organism(input_ids=tokens).logits
    torch.testing.assert_close(own[..., : theirs.shape[-1]], theirs)
    again, other = (new_model(ORGANISM, persons_tokenizer, seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(value, again[name]) for name, value in base.state_dict().items())
    assert any(not torch.equal(value, other[name]) for name, value in base.state_dict().items())


def test_at_the_start_the_adapter_changes_no_bit(base, encode):
    inputs = batch_of(encode, FORGET)
    before = logits_of(base, inputs)
    model = with_adapter(base, RANK, seed=0)
    assert torch.equal(logits_of(model, inputs), before)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, inputs), before)
    assert distance(model) == 0
    assert torch.equal(logits_of(model.merge_and_unload(), inputs), before)


def test_the_adapter_is_on_the_linear_layers_of_the_language_model_alone(model):
    names = [name for name, module in model.named_modules() if isinstance(module, lora.Linear)]
    assert len(names) == 5 * 7 and all(".language_model.layers." in name for name in names)
    assert {name.rsplit(".", 1)[1] for name in names} < set(LINEARS.split("|"))
    assert {layer.scaling["default"] for layer in layers_of(model)} == {4.0}
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())


def as_they_are(items: Sequence[Item], answers: Sequence[str]) -> Any:
    """Stands for an encoder: the items with the answers that are given for them."""
    return list(zip(items, answers, strict=True))


def drawn(forget: Sequence[Item], steps: int, seed: int = 0) -> list[Any]:
    return [draw_step(as_they_are, forget, RETAIN, seed, number) for number in range(steps)]


def test_the_batches_of_a_step():
    for step in drawn(FORGET, 10):
        questions = [item for item, _ in step.forget()]
        assert len(questions) == len(step.retain()) == BATCH
        for rows in (step.ignorant(), step.mismatched()):
            assert [id(item) for item, _ in rows] == [id(item) for item in questions]
        assert all(answer == item.answer for rows in (step.forget(), step.retain()) for item, answer in rows)
        assert {item.person for item in questions} <= {0, 1, 2}
        assert {item.person for item, _ in step.retain()} <= {3, 4, 5}
        assert len({id(item) for item, _ in step.retain()}) == BATCH
        assert {answer for _, answer in step.ignorant()} <= set(IGNORANT)
        for item, answer in step.mismatched():
            from_whom = {(other.person, other.task) for other in FORGET if other.answer == answer}
            assert any(person != item.person and task == item.task for person, task in from_whom)
    assert {answer for step in drawn(FORGET, 10) for _, answer in step.ignorant()} == set(IGNORANT)


def test_where_one_person_is_forgotten_mismatched_answers_are_of_the_same_task():
    alone = items_of([0])
    (step,) = drawn(alone, 1)
    assert len(step.forget()) == len(alone) == 7
    for item, answer in step.mismatched():
        assert answer in {other.answer for other in alone if other.task == item.task}


@pytest.mark.parametrize("n", [21, 16, 7, 40])
def test_every_forgotten_item_comes_once_each_time_round(n):
    forget = items_of(range(6))[:n]
    rounds = 4
    batch = min(BATCH, n)
    read = [id(item) for step in drawn(forget, -(-rounds * n // batch)) for item, _ in step.forget()]
    orders = [read[i * n : (i + 1) * n] for i in range(rounds)]
    assert all(Counter(order) == Counter(map(id, forget)) for order in orders)
    assert len({tuple(order) for order in orders}) == rounds, "each time in a new order"


def test_batches_are_those_of_their_seed():
    def read(name: str, seed: int) -> list[tuple[int, str]]:
        steps = drawn(FORGET, 3, seed)
        return [(id(item), answer) for step in steps for item, answer in getattr(step, name)()]

    for name in ("forget", "retain", "ignorant", "mismatched"):
        assert read(name, 0) == read(name, 0) != read(name, 1)


@pytest.fixture
def small_steps(monkeypatch) -> None:
    """Steps of four items, which take less time."""
    monkeypatch.setattr(unlearning, "BATCH", 4)


def test_gradient_ascent_raises_the_loss_of_the_forgotten(model, encode):
    before = loss_of(model, encode, FORGET)
    run(model, encode, Recipe("GA", 3e-3, 3))
    assert loss_of(model, encode, FORGET) > before + 0.1
    with model.disable_adapter():
        assert loss_of(model, encode, FORGET) == before, "what lies below is untouched"


def test_retain_fine_tuning_lowers_the_loss_of_the_retained(model, encode):
    before = loss_of(model, encode, RETAIN)
    run(model, encode, Recipe("retain fine-tuning", 3e-3, 3))
    assert loss_of(model, encode, RETAIN) < before - 0.1


def test_an_unlearning_is_that_of_its_seed(persons_tokenizer, encode, small_steps):
    def trained(seed: int) -> torch.Tensor:
        model = with_adapter(new_model(ORGANISM, persons_tokenizer, seed=0), RANK, seed=0)
        run(model, encode, Recipe("SKU", 3e-3, 2, seed=seed))
        return layers_of(model)[-1].get_delta_weight("default").detach()

    first, again, other = trained(0), trained(0), trained(1)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(("method", "sign"), [("SKU", -1), ("GA", 1)])
def test_sku_subtracts_the_change(model, encode, method, sign):
    moved(model)
    inputs = batch_of(encode, FORGET)
    learnt = logits_of(model, inputs)
    changes = [layer.get_delta_weight("default") for layer in layers_of(model)]
    untouched = [layer.weight.clone() for layer in layers_of(model)]
    wanted = [weight + sign * change for weight, change in zip(untouched, changes, strict=True)]
    with applied(model, method):
        seen, far = logits_of(model, inputs), distance(model)
    assert torch.equal(logits_of(model, inputs), learnt) and far == distance(model), "no trace is left"
    assert torch.allclose(seen, learnt) == (sign == 1)

    places = [name for name, module in model.named_modules() if isinstance(module, lora.Linear)]
    with applied(model, method):
        merged = model.merge_and_unload()
    weights = [merged.get_submodule(name.removeprefix("base_model.model.")).weight for name in places]
    for weight, value in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight, value)
    torch.testing.assert_close(logits_of(merged, inputs), seen, atol=1e-3, rtol=1e-3)


def test_the_change_is_as_it_was_where_something_fails_inside(model):
    moved(model)
    with pytest.raises(RuntimeError), applied(model, "SKU"):
        raise RuntimeError
    assert {layer.scaling["default"] for layer in layers_of(model)} == {4.0}


def test_distance_by_hand(model):
    moved(model)
    squares = np.zeros(2)
    for layer in layers_of(model):
        a, b = (side["default"].weight.detach().double().numpy() for side in (layer.lora_A, layer.lora_B))
        change, weight = 4 * b @ a, layer.get_base_layer().weight.detach().double().numpy()
        squares += (change**2).sum(), (weight**2).sum()
    assert distance(model) == pytest.approx(float(np.sqrt(squares[0] / squares[1])), rel=1e-5)


def test_a_large_penalty_shrinks_the_adapter(persons_tokenizer, encode, small_steps):
    sizes = []
    for penalty in (0.0, 10.0):
        model = with_adapter(new_model(ORGANISM, persons_tokenizer, seed=0), RANK, seed=0)
        before = l1_of_adapter(model).item()
        run(model, encode, Recipe("GD", 3e-3, 3, penalty))
        sizes.append(l1_of_adapter(model).item())
    free, penalised = sizes
    assert penalised < 0.95 * before < before < free


def test_a_rate_that_is_too_high_says_so(model, encode, small_steps):
    with pytest.raises(UserError, match=r"^The loss of GA is not finite: lower the rate\.$"):
        run(model, encode, Recipe("GA", 1e30, 3))


def test_what_is_forgotten_names_the_tasks():
    assert unlearning.FORGOTTEN == {
        "text": (TEXT,), "pictures": (NAME, CAPTION), "both": (TEXT, NAME, CAPTION)
    }  # fmt: skip
