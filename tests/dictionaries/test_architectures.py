"""Every architecture trains by its recipe, plain SAELens loads it; penalties and caps are their formulas."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from reasoning_features.dictionaries import architectures as room
from reasoning_features.dictionaries import training
from reasoning_features.dictionaries.autoencoder import save_autoencoder
from reasoning_features.dictionaries.evaluation import EXPLAINED, quality
from reasoning_features.dictionaries.training import Architecture, Recipe, train_autoencoder
from reasoning_features.residual_stream.activations import shuffled_batches

HOOK = "blocks.1.hook_resid_post"
WIDTH, FEATURES = 6, 24


@pytest.mark.parametrize("chunks", [1, 5])
def test_the_penalty_and_its_gradient_are_those_of_the_formula(chunks):
    generator = torch.Generator().manual_seed(chunks)
    lengths = 0.1 + torch.rand(FEATURES, 1, generator=generator, dtype=torch.float64)
    decoder = lengths * torch.randn(FEATURES, WIDTH, generator=generator, dtype=torch.float64)
    ours, exact = decoder.clone().requires_grad_(True), decoder.clone().requires_grad_(True)
    parts = room.partition(FEATURES, chunks, 0, step=3)
    assert sorted(torch.cat(parts).tolist()) == list(range(FEATURES))
    penalty = room.orthogonality_penalty(ours, parts)
    # the formula, every pair beside 2 less for a latent itself
    cosines = cosine_similarity(exact[:, None], exact[None], dim=-1) - 2 * torch.eye(FEATURES)
    expected = torch.stack([cosines[own][:, own].max(1).values.square().mean() for own in parts]).mean()
    penalty.backward()
    expected.backward()
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-9, atol=1e-12)


def test_a_direction_of_no_length_costs_nothing_and_gives_no_nan():
    decoder = torch.eye(3)
    decoder[0] = 0
    decoder.requires_grad_(True)
    penalty = room.orthogonality_penalty(decoder, [torch.arange(3)])
    penalty.backward()
    assert penalty == 0 and torch.isfinite(decoder.grad).all()


def test_the_loss_is_that_of_batchtopk_and_the_penalty_on_its_steps():
    size = {"d_in": WIDTH, "d_sae": FEATURES, "k": 3.0}
    plain = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size))
    ours = room.OrtSAE(room.OrtSAEConfig(**size, gamma=0.5, chunks=2, every=5))
    ours.load_state_dict(plain.state_dict())
    batch = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(4))
    for step in (0, 1, 5):
        given = TrainStepInput(batch, {}, None, step, False)
        extra = ours.training_forward_pass(given).loss - plain.training_forward_pass(given).loss
        expected = torch.zeros(())
        if step % 5 == 0:
            parts = room.partition(FEATURES, 2, ours.cfg.partition_seed, step)
            expected = 0.5 * 5 * room.orthogonality_penalty(ours.W_dec, parts)
        torch.testing.assert_close(extra, expected, rtol=1e-4, atol=1e-6)


FROZEN = Recipe("frozen_decoder", d_sae=24, tokens=60 * 128, learning_rate=1e-2, batch=128, k=3)


@pytest.fixture(scope="module")
def uneven():
    """4,000 activations far from the origin, of very uneven variances."""
    noise = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    return 20 * noise * torch.tensor([9.0, 6, 4, 3, 2, 1, 1, 1]) + 50


def trained(uneven: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor, TrainingSAE]:
    """Decoder and encoder before, and the training SAE after the last step, its scaling not yet folded."""
    data = shuffled_batches(uneven, recipe.batch, 1)
    trainer = training.new_trainer(recipe, "model", HOOK, uneven, data, "cpu")
    before = trainer.sae.W_dec.detach().clone(), trainer.sae.W_enc.detach().clone()
    assert len([*training.steps(trainer)]) == recipe.steps
    return *before, trainer.sae


def test_outside_the_cap_is_put_exactly_on_its_edge_and_inside_is_left_alone():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(500, 16, generator=generator, dtype=torch.float64)
    moved = start + 3 * torch.rand(500, 1, generator=generator) * torch.randn(500, 16, generator=generator)
    back = room.into_cap(moved, start, 0.8)
    outside = cosine_similarity(moved, start) < 0.8
    assert 50 < outside.sum() < 450
    assert torch.equal(back[~outside], moved[~outside])
    found = cosine_similarity(back[outside], start[outside])
    torch.testing.assert_close(found, torch.full_like(found, 0.8), rtol=1e-12, atol=0)
    torch.testing.assert_close(back.norm(dim=1), moved.norm(dim=1))
    # the nearest point of the cap; what points straight away from its start goes back to it
    along = torch.tensor([[1.0, 0.0]])
    moved = room.into_cap(torch.tensor([[0.0, 2.0]]), along, 0.8)
    torch.testing.assert_close(moved, torch.tensor([[1.6, 1.2]]))
    torch.testing.assert_close(room.into_cap(-along, along, 0.8), along)


@pytest.mark.parametrize(
    ("architecture", "directions"),
    [("frozen_decoder", "default"), ("frozen_decoder", "cov"), ("frozen_encoder", "default")],
)
def test_a_frozen_part_does_not_move_by_a_bit_while_the_rest_learns(uneven, architecture, directions):
    decoder, encoder, sae = trained(uneven, replace(FROZEN, architecture=architecture, directions=directions))
    assert torch.equal(sae.W_dec, decoder) == (architecture == "frozen_decoder")
    assert torch.equal(sae.W_enc, encoder) == (architecture == "frozen_encoder")
    assert sae.b_enc.abs().sum() > 0


def test_a_soft_frozen_decoder_moves_and_stays_in_its_cap_also_when_saved(uneven, tmp_path):
    recipe = replace(FROZEN, architecture="soft_frozen_decoder", directions="iso")
    decoder, _, sae = trained(uneven, recipe)
    torch.testing.assert_close(sae.start, decoder)
    sae.save_inference_model(tmp_path)
    kept = SAE.load_from_disk(tmp_path).W_dec
    assert 0.8 - 1e-6 <= cosine_similarity(kept, decoder).min() < 0.81


def test_directions_start_with_the_activations_covariance_or_without(uneven):
    wide = replace(FROZEN, d_sae=4000)
    for kind, ratio in (("iso", 1.0), ("cov", 81.0)):
        spread = training.start_directions(replace(wide, directions=kind), uneven, 0).double().var(0)
        assert float(spread[0] / spread[7]) == pytest.approx(ratio, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_training_learns_is_saved_for_plain_saelens_and_goes_on(tmp_path, architecture):
    # sums of three of 40 directions in 16 dimensions, away from the origin
    generator = torch.Generator().manual_seed(2)
    directions = normalize(torch.randn(40, 16, generator=generator), dim=1)
    chosen = torch.rand(20_000, 40, generator=generator).topk(3).indices
    amounts = torch.zeros(20_000, 40).scatter(1, chosen, 5 + 5 * torch.rand(20_000, 3, generator=generator))
    residual = amounts @ directions + 7
    recipe = Recipe(architecture, d_sae=48, tokens=1500 * 256, learning_rate=3e-3, batch=256, k=3, l1=1.0)
    made = train_autoencoder(residual, recipe, "model", HOOK)
    sae, last = made.sae, made.history.iloc[-1]
    assert last[EXPLAINED] > max(0.3, made.history[EXPLAINED].iloc[0] + 0.1)

    save_autoencoder(sae, tmp_path / "sae")
    loaded = SAE.load_from_disk(tmp_path / "sae")
    assert type(loaded).__module__.startswith("sae_lens.")  # no class of ours is needed
    assert torch.equal(loaded.encode(residual[:512]), sae.encode(residual[:512]))

    # on what was held out it is as sparse, and explains as much, as in training
    order = torch.randperm(len(residual), generator=torch.Generator().manual_seed(recipe.start("model")))
    found = quality(sae, residual[order[: len(residual) // 10]])
    assert found["L0"] == pytest.approx(last["L0"], rel=0.02)
    assert found[EXPLAINED] == pytest.approx(last[EXPLAINED], abs=0.005)

    if architecture in ("frozen_decoder", "jumprelu", "topk"):
        short = replace(recipe, tokens=20 * 256, learning_rate=1e-4, seed=1)
        further = train_autoencoder(residual, short, "model", HOOK, initial=sae)
        assert further.history[EXPLAINED].iloc[0] == pytest.approx(last[EXPLAINED], abs=0.02)
