"""The penalty is its formula, and OrtSAE is SAELens' BatchTopK with it."""

from __future__ import annotations

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from reasoning_features.architectures.ortsae import OrtSAE, OrtSAEConfig, orthogonality_penalty, partition

WIDTH, FEATURES = 6, 24


def brute_force(decoder: Tensor, chunks: list[list[int]], delta: float) -> Tensor:
    """The formula, pair by pair, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for chunk in chunks:
        terms = []
        for i in chunk:
            cosines = []
            for j in chunk:
                if j != i:
                    scale = decoder[i].norm() * decoder[j].norm()
                    cosines.append((decoder[i] @ decoder[j]) / torch.clamp(scale, min=delta))
            terms.append(torch.stack(cosines).max() ** 2)
        total = total + torch.stack(terms).sum() / len(chunk)
    return total / len(chunks)


def decoder_of(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = 0.1 + torch.rand(FEATURES, 1, generator=generator, dtype=torch.float64)
    return lengths * torch.randn(FEATURES, WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("chunks", [1, 2, 5, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_penalty_and_its_gradient_are_those_of_the_formula(chunks: int, seed: int) -> None:
    parts = partition(FEATURES, chunks, seed, step=3)
    ours, exact = (decoder_of(seed).requires_grad_(True) for _ in range(2))
    penalty = orthogonality_penalty(ours, parts)
    expected = brute_force(exact, [part.tolist() for part in parts], delta=1e-8)
    penalty.backward()
    expected.backward()
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-9, atol=1e-12)


def test_one_chunk_is_all_pairs() -> None:
    decoder = decoder_of(0)
    cosines = torch.nn.functional.normalize(decoder, dim=1) @ torch.nn.functional.normalize(decoder, dim=1).T
    largest = cosines.fill_diagonal_(-1).max(dim=1).values
    (everything,) = partition(FEATURES, 1, seed=0, step=0)
    torch.testing.assert_close(orthogonality_penalty(decoder, [everything]), largest.square().mean())


def test_an_orthonormal_decoder_costs_nothing_and_a_copy_the_most() -> None:
    orthonormal = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    parts = [torch.arange(8)]
    assert orthogonality_penalty(orthonormal.double(), parts) < 1e-12
    assert orthogonality_penalty(orthonormal[:1].repeat(8, 1).double(), parts) == pytest.approx(1)
    # the cosine is signed: of two that are opposite the largest is −1, and its square counts
    opposite = torch.stack([orthonormal[0], -orthonormal[0]]).double()
    assert orthogonality_penalty(opposite, [torch.arange(2)]) == pytest.approx(1)


def test_a_direction_of_no_length_costs_nothing_and_gives_no_nan() -> None:
    decoder = torch.eye(3)
    decoder[0] = 0
    decoder.requires_grad_(True)
    penalty = orthogonality_penalty(decoder, [torch.arange(3)])
    penalty.backward()
    assert penalty == 0 and torch.isfinite(decoder.grad).all()


def test_partitions_are_even_and_drawn_from_seed_and_step_alone() -> None:
    parts = partition(10, 4, seed=1, step=5)
    assert sorted(len(part) for part in parts) == [2, 2, 3, 3]
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    torch.manual_seed(99)
    again = partition(10, 4, seed=1, step=5)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(torch.cat(partition(10, 4, seed=1, step=6)), torch.cat(parts))
    assert not torch.equal(torch.cat(partition(10, 4, seed=2, step=5)), torch.cat(parts))


def autoencoder(kind: type, config: type, **options: float) -> TrainingSAE:
    torch.manual_seed(0)
    return kind(config(d_in=WIDTH, d_sae=FEATURES, k=3.0, **options))


def step_input(step: int) -> TrainStepInput:
    batch = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(4))
    return TrainStepInput(
        sae_in=batch, coefficients={}, dead_neuron_mask=None, n_training_steps=step, is_logging_step=False
    )


def test_the_loss_is_that_of_batchtopk_and_the_penalty_on_its_steps() -> None:
    plain = autoencoder(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig)
    ours = autoencoder(OrtSAE, OrtSAEConfig, gamma=0.5, chunks=2, every=5)
    for step in (0, 1, 5):
        usual, with_penalty = (sae.training_forward_pass(step_input(step)) for sae in (plain, ours))
        extra = with_penalty.loss - usual.loss
        expected = torch.zeros(())
        if step % 5 == 0:
            parts = partition(FEATURES, 2, ours.cfg.partition_seed, step)
            expected = 0.5 * 5 * orthogonality_penalty(ours.W_dec, parts)
        torch.testing.assert_close(extra, expected, rtol=1e-4, atol=1e-6)
        assert ("orthogonality_loss" in with_penalty.losses) == (step % 5 == 0)


@pytest.mark.parametrize("wrong", [{"gamma": -1.0}, {"chunks": 0}, {"chunks": FEATURES + 1}, {"every": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="OrtSAE takes"):
        OrtSAEConfig(d_in=WIDTH, d_sae=FEATURES, **wrong)
