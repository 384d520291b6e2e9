"""Features: modes by hand, logit effects against a forward pass, and what is gathered of a feature."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features.errors import UserError
from reasoning_features.interpretation.activating_examples import EDGES, Activity, Example
from reasoning_features.interpretation.features import (
    FeatureInterface,
    by_mode,
    feature_interfaces,
    logit_effects,
    modes,
    modes_by_words,
    top_logits,
)

MOVES = ("explore", "compute", "verify", "backtrack", "uncertain")


def means(*rows: tuple[float, ...], place: str = "mean") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[f"{place}:{move}" for move in MOVES])


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        ((0, 0, 0, 0, 2), "uncertainty"),
        ((3, 3.9, 1, 1, 1), "exploration"),  # 3 / 9.9 = 0.303
        ((3, 5, 1, 1, 1), "other"),  # 3 / 11 = 0.27
        ((0, 7, 3, 0, 0), "reflection"),  # exactly the threshold
        ((0, 4, 0, 3, 0), "reflection"),
        ((1, 0, 0, 1, 0), "mixed"),
        ((1, 0, 1, 0, 1), "mixed"),
        ((0, 5, 2, 2, 0), "other"),  # two moves of one mode do not add
        ((0, 0, 0, 0, 0), "other"),
    ],
)
def test_the_rule_by_hand(row, mode):
    assert modes(means(row)) == [mode]


def test_a_feature_may_announce_a_move_or_stand_on_it():
    flat = means((1, 1, 1, 1, 1))
    before = means((0, 1, 0, 0, 3), place="before")
    both = pd.concat([flat, before], axis=1)
    # 0.2 on each move, 3/4 before doubt: the larger counts
    assert modes(flat) == ["other"] and modes(before) == ["uncertainty"] and modes(both) == ["uncertainty"]


def test_moves_that_do_not_occur_are_left_out():
    table = means((1, 1, np.nan, np.nan, np.nan))
    assert modes(table) == ["exploration"]  # a half of what there is
    assert modes(table[["mean:compute"]]) == ["other"]


def test_where_moves_are_not_known_there_is_no_mode():
    assert modes(pd.DataFrame({"feature": [0, 1]})) is None


R = ("hmm", "maybe", "alternatively", "another", "wait", "but", "therefore")


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        ((2, 1, 1, 0, 1, 0, 0), "uncertainty"),  # (2 + 1) / 5
        ((0, 1, 2, 3, 1, 1, 0), "exploration"),  # (2 + 3) / 8
        ((0, 0, 0, 0, 2, 4, 5), "reflection"),  # (2 + 4) / 11
        ((2, 0, 2, 0, 2, 0, 0), "mixed"),
        ((1, 1, 2, 0, 0, 0, 0), "mixed"),  # two modes with half each
        ((1, 0, 1, 0, 0, 0, 2), "mixed"),  # words of no mode have half, and not more
        ((0, 0, 0, 0, 0, 1, 2), "other"),
        ((0, 0, 0, 0, 0, 0, 0), "other"),  # active around no word
    ],
)
def test_the_rule_of_words_by_hand(row, mode):
    table = pd.DataFrame([row], columns=[f"word:{word}" for word in R], dtype=np.float32)
    assert modes_by_words(table.assign(feature=0, mean=9.0)) == [mode]


def test_words_of_ones_own_belong_to_no_mode():
    table = pd.DataFrame({"word:Wait": [3, 1], "word:let me": [0, 1], "word:actually": [2, 3]})
    assert modes_by_words(table) == ["reflection", "other"]  # 3 / 5; 3 / 5 of a word without a mode
    assert modes_by_words(table[["word:actually"]]) == ["other", "other"]


def activity(histogram: np.ndarray) -> Activity:
    n = len(histogram)
    return Activity(
        tokens=100,
        active=histogram.sum(1),
        maximum=np.full(n, 3, np.float32),
        histogram=histogram,
        positions=np.full((n, 1), -1),
        activations=np.zeros((n, 1), np.float32),
        step_names=("explore", "verify"),
        step_tokens=np.array([60, 0]),
        step_active=np.stack([histogram.sum(1), np.zeros(n, int)]),
    )


def test_what_is_gathered():
    histogram = np.zeros((3, len(EDGES) - 1), np.int64)
    one = int(np.flatnonzero(EDGES == 1)[0])
    histogram[2, one], histogram[2, one + 2] = 9, 3
    table = pd.DataFrame({"feature": [2, 0], "score": [0.5, 0.1], "rank": [1, 7], "mode": ["mixed", None]})
    table["effect:persistence"] = [0.25, np.nan]
    logits = pd.DataFrame(
        [
            [2, "positive", 2, 5, " b", 1.0],
            [2, "positive", 1, 4, " a", 2.0],
            [2, "negative", 1, 6, "c", -1.0],
        ],
        columns=["feature", "side", "rank", "token", "text", "value"],
    )
    example = Example(2, 0, ("a",), np.ones(1, np.float32), 0)
    first, second = feature_interfaces(table, activity(histogram), logits, {2: [example]})
    assert (first.feature, first.score, first.rank, first.mode) == (2, 0.5, 1, "mixed")
    assert first.density == 0.12 and first.by_step == {"explore": 0.2}  # no token of verify: nothing to say
    # from the first to the last bin that holds anything
    assert first.histogram.tolist() == [9, 0, 3]
    assert first.edges.tolist() == pytest.approx([1, 2**0.25, 2**0.5, 2**0.75])
    assert first.positive == [(" a", 2), (" b", 1)] and first.negative == [("c", -1)]
    assert first.examples == [example] and first.effects == {"persistence": 0.25}
    assert first.description is None
    # a feature that is never active, of which nothing else is known
    assert second.mode is None and second.effects == {} and second.examples == [] and second.positive == []
    assert len(second.histogram) == 0 and second.density == 0


def test_by_mode_shows_a_document_once():
    def interface(feature: int, mode: str | None, documents: list[int]) -> FeatureInterface:
        examples = [Example(feature, document, ("a",), np.ones(1, np.float32), 0) for document in documents]
        none, edges = np.zeros(0, np.int64), np.ones(1)
        return FeatureInterface(feature, 0.0, 1, 0.1, 1.0, none, edges, {}, [], [], examples, mode)

    made = [interface(1, "mixed", [5, 6]), interface(2, None, [5, 7]), interface(3, "mixed", [5, 7])]
    shown = {
        mode: [(example.feature, example.document) for example in examples]
        for mode, examples in by_mode(made).items()
    }
    assert shown == {"mixed": [(1, 5)], "not known": [(2, 7)]}


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
