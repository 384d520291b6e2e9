"""Sampling: the nucleus, the cache, rows that do not depend on their batch, and continuous batching."""

import numpy as np
import pytest
import torch
from tiny import WIDTH
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reasoning_features.errors import UserError
from reasoning_features.models import sampling
from reasoning_features.models.sampling import (
    draw,
    edited,
    likeliest,
    rows_that_fit,
    sample,
    sample_continuously,
)


def test_draw_takes_the_nucleus_in_order_of_likelihood(monkeypatch):
    # Temperature 1, probabilities .5, .3, .2. With top-p .8 the nucleus is {.5, .3} (the .2 begins at .8),
    # renormalised to .625 and .375: a uniform below .625 gives the first, else the second, never the third.
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).repeat(3, 1)
    monkeypatch.setattr(sampling, "TEMPERATURE", 1.0)
    monkeypatch.setattr(sampling, "TOP_P", 0.79)
    assert draw(logits, torch.tensor([0.0, 0.62, 0.99])).tolist() == [1, 1, 2]


def test_sorting_only_the_front_draws_what_sorting_all_does():
    # 200 tokens: sharp rows, flat ones whose nucleus needs nearly all, and rows of equal logits
    torch.manual_seed(0)
    logits = torch.cat([8 * torch.randn(40, 200), 0.1 * torch.randn(40, 200), torch.zeros(20, 200)])
    logits[5, 20:] = logits[5, 19]
    uniform = torch.rand(100, dtype=torch.float64)
    probabilities, order = torch.softmax(logits.double() / 0.6, -1).sort(dim=-1, descending=True, stable=True)
    kept = torch.where(probabilities.cumsum(-1) - probabilities < 0.95, probabilities, 0.0)
    place = torch.searchsorted(kept.cumsum(-1), (uniform * kept.sum(-1))[:, None], right=True)
    assert draw(logits, uniform).tolist() == order.gather(1, place).squeeze(1).tolist()


def test_no_token_is_drawn_from_what_is_not_finite():
    inf, nan, half = torch.inf, torch.nan, torch.full((2,), 0.5)
    assert draw(torch.tensor([[-inf, 0.0, -inf], [0.0, -inf, -inf]]), half).tolist() == [
        1,
        0,
    ]  # barred tokens
    for row in ([0.0, nan, 0.0], [0.0, inf, 0.0], [-inf, -inf, -inf]):
        with pytest.raises(UserError, match=r"next token is not finite \(first at \[1, 0\]\): steer less"):
            draw(torch.tensor([[0.0, 1.0, 2.0], row]), half)


def test_rows_do_not_depend_on_their_batch(tiny_subject):
    model = tiny_subject.model
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8], [9, 10, 11]]
    together = sample(model, prompts, end=[0], max_new_tokens=30, seed=5)
    one_by_one = sample(model, prompts, end=[0], max_new_tokens=30, seed=5, batch=1)
    assert together == one_by_one
    assert together != sample(model, prompts, end=[0], max_new_tokens=30, seed=6)
    assert sample(model, prompts[:2], end=[0], max_new_tokens=30, seed=5) == together[:2]
    streamed = sample(model, [[1, 2, 3]] * 3, end=[0], max_new_tokens=20, seed=5, streams=[4, 4, 2])
    assert streamed[0] == streamed[1] != streamed[2]
    some = max(together[0], key=together[0].count)
    cut = [[*row[: row.index(some)], some] if some in row else row for row in together]
    assert sample(model, prompts, end=[0, some], max_new_tokens=30, seed=5) == cut != together


def test_cached_equals_uncached(tiny_subject):
    model = tiny_subject.model
    (drawn,) = sample(model, [[1, 2, 3]], end=[0], max_new_tokens=25, seed=1)
    uniforms = np.random.default_rng([1, 0]).random(25)
    tokens = [1, 2, 3]
    for step in range(len(drawn)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1]
        tokens.append(int(draw(logits, torch.tensor([uniforms[step]]))[0]))
    assert tokens[3:] == drawn


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 40}


@pytest.mark.parametrize(
    ("config", "kind"), [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)]
)
def test_a_row_of_a_padded_batch_is_what_it_is_alone(config, kind):
    torch.manual_seed(3)
    model = kind(config(hidden_size=32, intermediate_size=64, initializer_range=0.3, **GROUPED)).eval()
    prompts = [[1, 2, 3], [4] * 17, [7, 8], list(range(9, 30)), [5]]
    vectors = 5 * torch.randn(5, 32)
    given = {"end": [0], "max_new_tokens": 40, "seed": 5, "block": model.model.layers[0]}
    given["change"] = lambda stream, rows, tokens: stream + vectors[rows][:, None]  # to each row its own
    ended = {}
    padded = sample(model, prompts, **given, pad=39, batch=3, ended=ended.__setitem__)
    assert padded == sample(model, prompts, **given) == [ended[row] for row in range(5)]
    assert len({len(row) for row in padded}) > 1  # some left the batch before others
    assert all(0 not in row[:-1] and (row[-1] == 0 or len(row) == 40) for row in padded)
    assert padded != sample(model, prompts, end=[0], max_new_tokens=40, seed=5)
    assert rows_that_fit(model, 1000) > rows_that_fit(model, 100_000) > rows_that_fit(model, 10**15) == 1


PROMPTS = [[0, 5, 6], [0, 7, 8, 9, 10, 11], [0, 9], [0, 5, 6]]


def test_continuous_answers_are_the_likeliest_when_it_is_cold(tiny_subject, monkeypatch):
    monkeypatch.setattr(sampling, "TEMPERATURE", 1e-4)
    model, found = tiny_subject.model, {}
    vector = 3.0 * torch.eye(WIDTH)[5]
    given = {"max_new_tokens": 20, "seed": 0, "ended": found.__setitem__}
    for change, end in ((None, [1]), (lambda stream: stream + vector, [1, 5])):
        with edited(tiny_subject.hooked_block, change):
            sample_continuously(model, PROMPTS, end=end, **given)
        for row, prompt in enumerate(PROMPTS):
            tokens = list(prompt)
            for token in found[row]:
                edit = change or (lambda stream: stream)
                logits = tiny_subject.logits_with(torch.tensor([tokens]), edit)[0, -1]
                assert logits[token] > logits.max() - 1e-3
                tokens.append(token)
            assert found[row][-1] in end or len(found[row]) == 20
            assert not set(found[row][:-1]) & set(end)


def test_continuous_draws_as_often_as_rows(tiny_subject):
    model, many = tiny_subject.model, [[0, 5, 6]] * 200
    found = {}
    sample_continuously(model, many, end=[1], max_new_tokens=1, seed=4, ended=found.__setitem__)
    rows = sample(model, many, end=[1], max_new_tokens=1, seed=4)
    ours, theirs = (
        np.bincount([row[0] for row in given], minlength=300) / 200 for given in (list(found.values()), rows)
    )
    assert np.abs(ours - theirs).max() < 0.16
    assert set(np.flatnonzero(ours > 0.04)) <= set(np.flatnonzero(theirs > 0))


def test_prompts_that_are_read_once_give_the_same_answers(tiny_subject):
    """The stream up to the hook point is computed once for all rows of a prompt, and nothing else changes."""
    prompts = [[0, 5, 6, 9], [0, 7], [0, 5, 6, 9], [0, 5, 6, 9], [0, 7]]
    vectors = 3 * torch.randn(5, tiny_subject.d_model, generator=torch.Generator().manual_seed(1))

    def change(stream, rows, tokens):
        return stream + vectors[rows][:, None] * (tokens > 1)[..., None]

    given = {"end": [1], "max_new_tokens": 12, "seed": 0, "block": tiny_subject.hooked_block, "pad": 1}
    given |= {"change": change, "choice": likeliest}
    alone = sample(tiny_subject.model, prompts, **given)
    assert sample(tiny_subject.model, prompts, **given, reader=tiny_subject.read_once) == alone
    assert alone[0] != alone[2], "rows of one prompt are steered apart"
    plain = sample(tiny_subject.model, prompts, end=[1], max_new_tokens=12, seed=0, choice=likeliest)
    ids = torch.tensor([prompts[1]])
    for token in plain[1]:
        assert token == int(tiny_subject.logits(ids)[0, -1].argmax())
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
