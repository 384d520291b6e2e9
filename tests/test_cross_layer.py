"""Pairs over depth: a permutation is undone, verdicts are the paper's, shares add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reasoning_features.diffing.cross_layer import (
    PAPER,
    VERDICTS,
    judged,
    layer_table,
    neighbours,
    pair_decoders,
)
from reasoning_features.errors import UserError


def test_the_nearest_layers_on_either_side():
    assert neighbours([23, 3, 18, 30, 13], 18) == [13, 23]
    assert neighbours([18, 5], 18) == [5] and neighbours([], 18) == []


def test_a_permuted_decoder_is_put_back():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(30, 12, generator=generator)
    order = torch.randperm(30, generator=generator)
    other = decoder[order] * 7 + 0.05 * torch.randn(30, 12, generator=generator)
    partners = pair_decoders(decoder, other)
    assert order[partners].tolist() == list(range(30))


def test_pairs_are_one_to_one_even_when_all_want_the_same():
    decoder = torch.eye(3)[[0, 0, 0]] + 0.1 * torch.eye(3)
    assert sorted(pair_decoders(decoder, torch.eye(3)).tolist()) == [0, 1, 2]


def test_dictionaries_that_cannot_be_paired():
    with pytest.raises(UserError, match="4 directions of width 3 cannot be paired with 3 of width 3"):
        pair_decoders(torch.ones(4, 3), torch.eye(3))
    with pytest.raises(UserError, match="of width 2"):
        pair_decoders(torch.ones(2, 3), torch.ones(2, 2))


def test_verdicts_have_the_papers_edges():
    cosines = np.array([0.0, 0.5, 0.51, 0.7, 0.71])
    named = [VERDICTS[code] for code in judged(cosines)]
    assert named == ["different", "different", "maybe", "maybe", "same"]


def test_shares_of_groups_add_up_and_count_their_own_features():
    cosines = {"1": np.array([0.9, 0.9, 0.1, 0.6]), "3": np.array([0.1, 0.2, 0.3, 0.4])}
    table = layer_table(cosines, {"first": np.array([0, 1]), "others": np.array([2, 3])})
    assert table[list(VERDICTS)].sum(axis=1).to_numpy() == pytest.approx(1.0)
    at = table.set_index(["layer", "group"])
    assert at.loc[("1", "first"), "same"] == 1.0 and at.loc[("1", "others"), "maybe"] == 0.5
    assert at.loc[("3", "first"), "different"] == 1.0
    assert (table["features"] == 2).all()


def test_the_papers_table_is_shares():
    assert PAPER[list(VERDICTS)].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert (PAPER.groupby("layer")["group"].nunique() == 2).all()
