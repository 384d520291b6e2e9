"""Frozen parts stay where they began, and the soft-frozen ones within their cap."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sae_lens import TrainingSAE
from torch.nn.functional import cosine_similarity, normalize

from reasoning_features.architectures.frozen import SoftFrozenDecoderConfig, into_cap
from reasoning_features.dictionaries.autoencoder_recipe import Recipe
from reasoning_features.dictionaries.autoencoder_trainer import new_trainer
from reasoning_features.dictionaries.autoencoder_training import start_directions, train_autoencoder
from reasoning_features.residual_stream.activations import Moments, shuffled_batches

HOOK = "blocks.1.hook_resid_post"
RECIPE = Recipe("frozen_decoder", d_sae=24, tokens=60 * 128, learning_rate=1e-2, batch=128, k=3)


@pytest.fixture(scope="module")
def residual() -> torch.Tensor:
    """4,000 activations far from the origin, of very uneven variances."""
    noise = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    return 20 * noise * torch.tensor([9.0, 6, 4, 3, 2, 1, 1, 1]) + 50


def trained(residual: torch.Tensor, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor, TrainingSAE]:
    """Decoder and encoder before, and the training SAE after the last step, its scaling not yet folded."""
    directions = start_directions(recipe, residual, 5)
    data = shuffled_batches(residual, recipe.batch, 1)
    given = recipe, "model", HOOK, Moments.of(residual), data, "cpu"
    trainer = new_trainer(*given, directions=directions)
    before = trainer.sae.W_dec.detach().clone(), trainer.sae.W_enc.detach().clone()
    for _ in range(recipe.steps):
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
    return *before, trainer.sae


def test_outside_the_cap_is_put_exactly_on_its_edge_and_inside_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(500, 16, generator=generator, dtype=torch.float64)
    moved = start + 3 * torch.rand(500, 1, generator=generator) * torch.randn(500, 16, generator=generator)
    back = into_cap(moved, start, 0.8)
    outside = cosine_similarity(moved, start) < 0.8
    assert 50 < outside.sum() < 450
    assert torch.equal(back[~outside], moved[~outside])
    found = cosine_similarity(back[outside], start[outside])
    torch.testing.assert_close(found, torch.full_like(found, 0.8), rtol=1e-12, atol=0)
    torch.testing.assert_close(back.norm(dim=1), moved.norm(dim=1))
    # the edge's point lies in the plane of start and direction, on the direction's side
    first = normalize(start, dim=1)
    aside = moved - (moved * first).sum(1, keepdim=True) * first
    left = back - (back * first).sum(1, keepdim=True) * first
    torch.testing.assert_close(
        cosine_similarity(left[outside], aside[outside]), torch.ones(int(outside.sum()), dtype=torch.float64)
    )


def test_the_edge_is_the_nearest_point_of_the_cap() -> None:
    start, moved = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    back = into_cap(moved, start, 0.8)
    torch.testing.assert_close(back, torch.tensor([[1.6, 1.2]]))
    angles = torch.linspace(-math.acos(0.8), math.acos(0.8), 1001)
    cap = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    distances = (cap - moved).norm(dim=1)
    assert (back - moved).norm() <= distances.min() + 1e-6


def test_straight_away_from_the_start_goes_back_to_it() -> None:
    start = torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(into_cap(-start, start, 0.8), start)


@pytest.mark.parametrize("directions", ["default", "iso", "cov"])
def test_a_frozen_decoder_does_not_move_by_a_bit_while_the_rest_learns(residual, directions) -> None:
    recipe = replace(RECIPE, directions=directions)
    decoder, encoder, sae = trained(residual, recipe)
    assert torch.equal(sae.W_dec, decoder)
    assert not torch.equal(sae.W_enc, encoder)


def test_a_frozen_encoder_does_not_move_by_a_bit_while_the_rest_learns(residual) -> None:
    recipe = replace(RECIPE, architecture="frozen_encoder")
    decoder, encoder, sae = trained(residual, recipe)
    assert torch.equal(sae.W_enc, encoder)
    assert not torch.equal(sae.W_dec, decoder) and sae.b_enc.abs().sum() > 0


def test_a_soft_frozen_decoder_moves_and_stays_in_its_cap_also_when_saved(residual, tmp_path) -> None:
    recipe = replace(RECIPE, architecture="soft_frozen_decoder", directions="iso")
    decoder, _, sae = trained(residual, recipe)
    torch.testing.assert_close(sae.start, decoder)
    sae.save_model(tmp_path / "training")
    sae.put_back()
    cosines = cosine_similarity(sae.W_dec, decoder)
    assert cosines.min() >= 0.8 - 1e-6 and cosines.min() < 0.81
    again = TrainingSAE.load_from_disk(tmp_path / "training")
    assert torch.equal(again.W_dec, sae.W_dec) and torch.equal(again.start, sae.start)


def test_directions_start_with_the_activations_covariance_or_without(residual) -> None:
    wide = replace(RECIPE, d_sae=4000)
    for kind, ratio in (("iso", 1.0), ("cov", 81.0)):
        drawn = start_directions(replace(wide, directions=kind), residual, 0)
        spread = drawn.double().var(0)
        assert float(spread[0] / spread[7]) == pytest.approx(ratio, rel=0.15)
    assert start_directions(wide, residual, 0) is None


def test_frozen_autoencoders_explain_less_than_a_trained_one(residual) -> None:
    explained = {}
    for architecture in ("batchtopk", "soft_frozen_decoder", "frozen_decoder"):
        recipe = replace(RECIPE, architecture=architecture, directions="iso")
        history = train_autoencoder(residual, recipe, "model", HOOK).history
        explained[architecture] = history["fraction of variance explained"].iloc[-1]
    assert explained["frozen_decoder"] < explained["soft_frozen_decoder"] < explained["batchtopk"]


def test_a_cap_that_is_no_cosine_is_refused() -> None:
    with pytest.raises(ValueError, match="cosine between 0 and 1"):
        SoftFrozenDecoderConfig(d_in=4, d_sae=8, cap=1.2)
