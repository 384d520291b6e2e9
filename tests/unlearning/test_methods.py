"""Losses of unlearning: each against numbers by hand, and what a small step of each does."""

import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from reasoning_features.unlearning import methods
from reasoning_features.unlearning.methods import METHODS, Step

VOCABULARY = 8


class Table(torch.nn.Module):
    """A model that reads one token: the logits and the stream are the token's row of a table."""

    def __init__(self, seed, changed=True):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.start = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
        change = torch.randn(VOCABULARY, VOCABULARY, generator=generator) * changed
        self.change = torch.nn.Parameter(change)
        self.untouched = False
        self.head = torch.nn.Identity()

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, labels=None, use_cache=None, output_hidden_states=False):
        rows = (self.start if self.untouched else self.start + self.change)[input_ids]
        # the embeddings and four blocks: a quarter of the depth is the first block
        return SimpleNamespace(
            logits=self.head(rows), hidden_states=(rows * 0, rows, rows * 3, rows * 5, rows * 7)
        )

    @contextmanager
    def reference(self):
        self.untouched = True
        yield
        self.untouched = False


def batch(*rows):
    """Each row a question of one token and an answer; shorter rows are padded with token 7."""
    longest = max(map(len, rows))
    padded = [row + [7] * (longest - len(row)) for row in rows]
    labels = [[-100, *row[1:]] + [-100] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(padded), "labels": torch.tensor(labels)}


# predicted from tokens 0, 1 and 2 (forget), 3 and 4 (retain), so that each batch has rows of its own
STEP = Step(
    forget=lambda: batch([0, 1, 2], [2, 5]), retain=lambda: batch([3, 4, 1]),
    ignorant=lambda: batch([0, 6, 5], [2, 6, 6]), mismatched=lambda: batch([0, 2], [2, 3], [2, 1, 4]),
)  # fmt: skip


def positions(inputs):
    """For each row of a batch the pairs of the token that is read and the answer token that follows."""
    pairs = []
    for tokens, labels in zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True):
        pairs.append([(tokens[t - 1], labels[t]) for t in range(1, len(tokens)) if labels[t] != -100])
    return pairs


def flat(inputs):
    return [pair for row in positions(inputs) for pair in row]


class Hand:
    """The losses' parts by loops over float64 tables."""

    def __init__(self, table):
        start = table.start.double().numpy()
        self.rows, self.rows0 = start + table.change.detach().double().numpy(), start
        self.p, self.p0 = (self.softmax(rows) for rows in (self.rows, self.rows0))

    @staticmethod
    def softmax(rows):
        weights = np.exp(rows - rows.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def nll(self, inputs):
        return np.mean([-math.log(self.p[read, said]) for read, said in flat(inputs)])

    def kl(self, inputs, first, second):
        return np.mean([np.sum(first[i] * np.log(first[i] / second[i])) for i, _ in flat(inputs)])

    def ratios(self, inputs):
        return np.array(
            [math.prod(self.p[i, j] / self.p0[i, j] for i, j in row) for row in positions(inputs)]
        )

    def expected(self):
        forget, retain, ignorant = (self.nll(x) for x in (STEP.forget(), STEP.retain(), STEP.ignorant()))
        own_first, own_second = (self.kl(STEP.retain(), *x) for x in ((self.p, self.p0), (self.p0, self.p)))
        preferred = (self.ratios(STEP.ignorant()) / self.ratios(STEP.forget())) ** 0.1
        length = 5 * np.mean([np.linalg.norm(self.rows0[i]) for i, _ in flat(STEP.forget())])
        target = length * methods.random_direction(VOCABULARY).double().numpy()
        away = np.mean([np.sum((self.rows[i] - target) ** 2) for i, _ in flat(STEP.forget())])
        kept = np.mean([np.sum((self.rows[i] - self.rows0[i]) ** 2) for i, _ in flat(STEP.retain())])
        read = STEP.forget()["input_ids"].ravel().tolist()  # padding too
        return {
            "retain fine-tuning": retain, "GA": -forget, "GD": retain - forget, "IDK": retain + ignorant,
            "KL": own_first - forget, "LLMU": ignorant - forget + own_first,
            "SCRUB": own_second - self.kl(STEP.forget(), self.p0, self.p) + retain,
            "NPO": 2 * np.mean(np.log(1 + self.ratios(STEP.forget()))),
            "DPO": ignorant - np.mean(np.log(preferred / (1 + preferred))),
            "RMU": away + kept,
            "SKU": 2.5 * forget + self.nll(STEP.mismatched()) - 0.5 * own_second,
            "IDK, as released": retain + forget, "LLMU, as released": own_first,
            "DPO, as released": forget * len(flat(STEP.forget())) / 2,  # three tokens of two items
            "NPO, as released": 2 * np.mean([np.log(1 + self.p[i] / self.p0[i]) for i in read]),
        }  # fmt: skip


def test_every_method_has_a_number_by_hand():
    assert set(Hand(Table(0)).expected()) == set(METHODS)
    assert len([name for name in METHODS if "released" not in name]) == 11


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_is_the_number_by_hand(name, seed):
    model = Table(seed)
    found = METHODS[name].loss(model, model.reference, STEP)
    assert found.shape == () and found.item() == pytest.approx(Hand(model).expected()[name], rel=1e-5)


def gradient(loss, model):
    return torch.autograd.grad(loss(model, model.reference, STEP), model.change)[0]


def test_at_the_untouched_model():
    model = Table(2, changed=False)
    losses = {name: METHODS[name].loss(model, model.reference, STEP).item() for name in METHODS}
    refusal = methods.nll(model, STEP.ignorant()).item()
    assert losses["NPO"] == pytest.approx(2 * math.log(2), rel=1e-6)
    assert methods.npo(model, model.reference, STEP, beta=0.5).item() == pytest.approx(
        4 * math.log(2), rel=1e-6
    )
    assert losses["DPO"] == pytest.approx(math.log(2) + refusal, rel=1e-6)
    assert losses["NPO, as released"] == pytest.approx(2 * math.log(2), rel=1e-5)
    assert losses["KL"] == pytest.approx(losses["GA"]) and losses["LLMU, as released"] == pytest.approx(
        0, abs=1e-6
    )
    only_retained = gradient(METHODS["retain fine-tuning"].loss, model)
    assert only_retained.abs().max() > 0.1
    torch.testing.assert_close(gradient(METHODS["SCRUB"].loss, model), only_retained)
    torch.testing.assert_close(gradient(METHODS["LLMU, as released"].loss, model), torch.zeros(8, 8))


def test_npo_becomes_gradient_ascent_as_beta_falls():
    model = Table(3)
    ascent = gradient(METHODS["GA"].loss, model) * 3 / 2  # tokens summed in each item: three in two items

    def apart(beta):
        found = gradient(lambda *given: methods.npo(*given, beta=beta), model)
        return ((found - ascent).norm() / ascent.norm()).item()

    assert apart(1e-3) < 0.01 < 0.1 < apart(1.0)


def test_scrub_goes_away_from_the_reference_on_forget_and_towards_it_on_retain():
    model = Table(4)
    hand, expected = Hand(model), np.zeros((VOCABULARY, VOCABULARY))
    for i, _ in flat(STEP.forget()):
        expected[i] -= (hand.p[i] - hand.p0[i]) / 3  # ∂ KL(p₀ ‖ p) / ∂ logits = p − p₀
    for i, said in flat(STEP.retain()):
        expected[i] += (hand.p[i] - hand.p0[i] + hand.p[i] - np.eye(VOCABULARY)[said]) / 2
    np.testing.assert_allclose(gradient(METHODS["SCRUB"].loss, model).numpy(), expected, atol=1e-6)


def test_rmu_draws_forget_to_its_vector_and_holds_retain():
    model = Table(5)
    u = methods.random_direction(VOCABULARY)
    forget, retain = [0, 1, 2], [3, 4]
    target = 5 * model.start[forget].norm(dim=-1).mean() * u

    def distances():
        rows = (model.start + model.change).detach()
        return (rows[forget] - target).norm(dim=-1), (rows[retain] - model.start[retain]).norm(dim=-1)

    before = distances()
    descent = gradient(METHODS["RMU"].loss, model)
    with torch.no_grad():
        model.change -= 0.01 * descent
    for old, new in zip(before, distances(), strict=True):
        assert (new < old).all()
    assert descent[5:].abs().max() == 0, "tokens that predict no answer are left alone"


def test_the_random_direction_is_that_of_its_seed():
    u = methods.random_direction(16, seed=1)
    assert torch.equal(u, methods.random_direction(16, seed=1)) and (u >= 0).all()
    assert u.norm().item() == pytest.approx(1) and not torch.allclose(u, methods.random_direction(16, seed=2))


@pytest.mark.parametrize("name", ["IDK", "LLMU", "DPO"])
def test_released_methods_never_read_the_refusals(name):
    model, other = Table(6), replace(STEP, ignorant=lambda: batch([0, 3, 3], [2, 4]))
    for method, reads in ((METHODS[name], True), (METHODS[f"{name}, as released"], False)):
        with_refusals, with_others = (method.loss(model, model.reference, step) for step in (STEP, other))
        assert (with_refusals.item() != with_others.item()) == reads


def test_released_npo_makes_distributions_more_peaked_whatever_the_labels():
    model = Table(7, changed=False)
    found = gradient(METHODS["NPO, as released"].loss, model)
    with torch.no_grad():
        model.change -= 5 * found
    after = Hand(model)
    for i in {0, 1, 2}:
        assert np.mean(np.log(after.p[i])) < np.mean(np.log(after.p0[i]))
        assert after.p[i].max() > after.p0[i].max()


def test_only_sku_subtracts_what_it_learns():
    assert {name: method.scale for name, method in METHODS.items() if method.scale != 1} == {"SKU": -1.0}
    model = Table(8, changed=False)
    learnt = gradient(METHODS["SKU"].loss, model)
    ascent = gradient(METHODS["GA"].loss, model)
    assert (learnt * ascent).sum() < 0, "what is subtracted was learnt towards the true answers"


@pytest.fixture(scope="module")
def adapted():
    """A random Llama of four layers and width 16 with LoRA, whose change is not zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=4,
        num_attention_heads=2, max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM(config), lora)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_with_an_adapter_is_trained_against_itself_without(adapted, name):
    with torch.no_grad():
        before = adapted(STEP.forget()["input_ids"]).logits
    adapted.zero_grad()
    loss = METHODS[name].loss(adapted, adapted.disable_adapter, STEP)
    loss.backward()
    gradients = {n: w.grad for n, w in adapted.named_parameters() if w.grad is not None}
    assert math.isfinite(loss.item()) and gradients and all("lora_" in n for n in gradients)
    assert max(g.abs().max().item() for g in gradients.values()) > 0
    assert torch.equal(adapted(STEP.forget()["input_ids"]).logits, before), "the adapter is on again"


def test_l1_of_an_adapter(adapted):
    found = methods.l1_of_adapter(adapted)
    trained = [w for n, w in adapted.named_parameters() if "lora_A" in n or "lora_B" in n]
    by_hand = sum(abs(x) for w in trained for x in w.detach().ravel().tolist())
    assert len(trained) == 16 and found.item() == pytest.approx(by_hand, rel=1e-5)
    (sign,) = torch.autograd.grad(found, trained[0])
    assert torch.equal(sign, trained[0].detach().sign())
    trained[0].requires_grad_(False)
    less = methods.l1_of_adapter(adapted).item()
    trained[0].requires_grad_(True)
    assert found.item() - less == pytest.approx(trained[0].abs().sum().item(), rel=1e-4)
