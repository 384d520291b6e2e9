"""Logit effects by hand, and against a forward pass that goes straight to the unembedding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from reasoning_features.interpretation.logit_effects import logit_effects, top_logits

from reasoning_features.errors import UserError


def stub(unembedding, scale, bias=None):
    """A subject of which only the norm and the unembedding are there; token i is written as its number."""
    norm = SimpleNamespace(weight=torch.tensor(scale), bias=bias)
    model = SimpleNamespace(
        base_model=SimpleNamespace(norm=norm),
        get_output_embeddings=lambda: SimpleNamespace(weight=torch.tensor(unembedding)),
    )
    tokenizer = SimpleNamespace(decode=lambda ids: f"t{ids[0]}")
    return SimpleNamespace(model=model, tokenizer=tokenizer, name="stub")


def test_by_hand():
    # γ = (1, 2); the direction (3, 1) becomes (3, 2); rows (1, 0), (0, 1), (−1, −1) give 3, 2, −5
    subject = stub([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], [1.0, 2.0])
    assert logit_effects(subject, torch.tensor([[3.0, 1.0]])).tolist() == [[3, 2, -5]]
    sae = SimpleNamespace(W_dec=torch.tensor([[0.0, 0.0], [3.0, 1.0]]))
    table = top_logits(subject, sae, [1], n=2)
    assert table["text"].tolist() == ["t0", "t1", "t2", "t1"]
    assert table["value"].tolist() == [3, 2, -5, 2]
    assert table["side"].tolist() == ["positive"] * 2 + ["negative"] * 2 and set(table["feature"]) == {1}
    # equal values keep the order of ids
    assert top_logits(subject, sae, [0], n=2)["token"].tolist() == [0, 1, 0, 1]


def test_it_is_what_the_model_adds_at_its_end(tiny_subject):
    # the last block's output x gives logits W_U (γ ⊙ x) / rms(x)
    direction = torch.randn(1, tiny_subject.d_model, generator=torch.Generator().manual_seed(0))
    norm, head = tiny_subject.model.base_model.norm, tiny_subject.model.get_output_embeddings()
    logits = head(norm(direction)) * direction.square().mean().sqrt()
    torch.testing.assert_close(logit_effects(tiny_subject, direction), logits, rtol=1e-3, atol=1e-3)


def test_a_norm_that_centres_is_refused():
    with pytest.raises(UserError, match="does not end in an RMSNorm"):
        logit_effects(stub([[1.0]], [1.0], bias=torch.zeros(1)), torch.ones(1, 1))


def test_no_features():
    assert top_logits(stub([[1.0]], [1.0]), SimpleNamespace(W_dec=torch.ones(1, 1)), []).empty
