"""Sampling: the nucleus, the cache, and rows that do not depend on their batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reasoning_features.errors import UserError
from reasoning_features.models.sampling import RowEdit, draw, rows_that_fit, sample


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def test_draw_takes_the_nucleus_in_order_of_likelihood():
    # Temperature 1, probabilities .5, .3, .2. With top-p .8 the nucleus is {.5, .3} (the .2 begins at .8),
    # renormalised to .625 and .375: a uniform below .625 gives the first, else the second, never the third.
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).repeat(3, 1)
    drawn = draw(logits, torch.tensor([0.0, 0.62, 0.99]), temperature=1.0, top_p=0.79)
    assert drawn.tolist() == [1, 1, 2]


def test_temperature_sharpens():
    # p ∝ .6^(1/.5) : .4^(1/.5) = .36 : .16, so the first is drawn below .36 / .52 = .692.
    logits = torch.log(torch.tensor([[0.6, 0.4]] * 2))
    assert draw(logits, torch.tensor([0.69, 0.70]), temperature=0.5, top_p=1.0).tolist() == [0, 1]


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


def test_a_prompt_beyond_the_context_is_told(model):
    with pytest.raises(UserError, match="do not fit into the model's context of 2048"):
        sample(model, [[1] * 2040], end=0, max_new_tokens=9, seed=5)


class CountingRule:
    """Bans the tokens a row has written, and turns every third token into its row's number."""

    def logits(self, logits, rows, written):
        for i, tokens in enumerate(written):
            logits[i, tokens] = -torch.inf
        return logits

    def drawn(self, tokens, rows, written):
        third = torch.tensor([len(row) % 3 == 2 for row in written])
        return torch.where(third, rows, tokens)


def test_a_rule_sees_each_row_whatever_its_batch(model):
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8], [9, 10, 11], [1, 2, 3]]
    drawn = sample(model, prompts, end=39, max_new_tokens=20, seed=5, rule=CountingRule())
    for row, tokens in enumerate(drawn):
        assert tokens[2::3] == [row] * len(tokens[2::3])
        free = [token for place, token in enumerate(tokens) if place % 3 != 2]
        assert len(set(free)) == len(free)
    assert drawn == sample(model, prompts, end=39, max_new_tokens=20, seed=5, rule=CountingRule(), batch=1)


def test_rows_do_not_depend_on_their_batch(model):
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8], [9, 10, 11]]
    together = sample(model, prompts, end=0, max_new_tokens=30, seed=5)
    one_by_one = sample(model, prompts, end=0, max_new_tokens=30, seed=5, batch=1)
    assert together == one_by_one
    assert together != sample(model, prompts, end=0, max_new_tokens=30, seed=6)
    assert sample(model, prompts[:2], end=0, max_new_tokens=30, seed=5) == together[:2]


def test_cached_equals_uncached(model):
    (drawn,) = sample(model, [[1, 2, 3]], end=0, max_new_tokens=25, seed=1)
    uniforms = np.random.default_rng([1, 0]).random(25)
    tokens = [1, 2, 3]
    for step in range(len(drawn)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1]
        tokens.append(int(draw(logits, torch.tensor([uniforms[step]]))[0]))
    assert tokens[3:] == drawn


def test_sampling_stops_at_the_end_token(model):
    for row in sample(model, [[i, i + 1] for i in range(1, 30)], end=7, max_new_tokens=200, seed=2):
        assert 7 not in row[:-1]
        assert row[-1] == 7 or len(row) == 200


def added(model, vectors: torch.Tensor) -> RowEdit:
    return RowEdit(model.model.layers[0], lambda stream, rows: stream + vectors[rows][:, None])


def test_an_edit_of_zero_changes_nothing(model):
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8]]
    plain = sample(model, prompts, end=0, max_new_tokens=20, seed=5)
    assert (
        sample(model, prompts, end=0, max_new_tokens=20, seed=5, edit=added(model, torch.zeros(3, 32)))
        == plain
    )


def test_each_row_gets_its_own_vector_whatever_its_batch(model):
    torch.manual_seed(1)
    vectors = 20 * torch.randn(6, 32)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8], [1, 2, 3], [9, 9], [3, 2, 1]]
    together = sample(model, prompts, end=0, max_new_tokens=20, seed=5, edit=added(model, vectors))
    one_by_one = sample(model, prompts, end=0, max_new_tokens=20, seed=5, edit=added(model, vectors), batch=1)
    assert together == one_by_one
    alone = sample(
        model, prompts[3:4], end=0, max_new_tokens=20, seed=5, streams=[3], edit=added(model, vectors[3:4])
    )
    assert alone[0] == together[3]
    assert together != sample(model, prompts, end=0, max_new_tokens=20, seed=5)


def test_rows_of_one_stream_draw_alike(model):
    rows = sample(model, [[1, 2, 3]] * 3, end=0, max_new_tokens=20, seed=5, streams=[4, 4, 2])
    assert rows[0] == rows[1] != rows[2]


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 40}


@pytest.mark.parametrize(
    ("config", "kind"), [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)]
)
def test_a_row_of_a_padded_batch_is_what_it_is_alone(config, kind):
    torch.manual_seed(3)
    model = kind(config(hidden_size=32, intermediate_size=64, initializer_range=0.3, **GROUPED)).eval()
    prompts = [[1, 2, 3], [4] * 17, [7, 8], list(range(9, 30)), [5]]
    vectors = 5 * torch.randn(5, 32)
    edit = RowEdit(model.model.layers[0], lambda stream, rows: stream + vectors[rows][:, None])
    given = {"end": 0, "max_new_tokens": 40, "seed": 5, "edit": edit}
    ended = {}
    padded = sample(model, prompts, **given, pad=39, batch=3, ended=ended.__setitem__)
    assert padded == sample(model, prompts, **given) == [ended[row] for row in range(5)]
    assert len({len(row) for row in padded}) > 1  # some left the batch before others


def test_rows_that_fit_are_fewer_where_they_are_longer(model):
    assert rows_that_fit(model, 1000) > rows_that_fit(model, 100_000) >= 1
    assert rows_that_fit(model, 10**15) == 1
