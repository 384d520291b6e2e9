"""Data with known features: what was asked for is what is drawn, and what is found is counted rightly."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reasoning_features.errors import UserError
from reasoning_features.foundations.synthetic import DECADES, World, recovered, recovery_by_frequency

FEW = World(width=64, features=16, active=1.5, firing="unequal", seed=3)
"""Fewer features than dimensions: their activations can be read back."""


def read_back(world: World, n: int) -> Tensor:
    """How strongly each feature is active on each of ``n`` activations ``[n, m]``."""
    x = world.sample(n, "test")
    return torch.linalg.lstsq(world.directions.T.double(), x.T.double()).solution.T


def at_cosine(direction: Tensor, cosine: float) -> Tensor:
    """A direction at a cosine with another one."""
    aside = torch.randn(len(direction), generator=torch.Generator().manual_seed(0))
    aside = normalize(aside - (aside @ direction) * direction, dim=0)
    return cosine * direction + (1 - cosine**2) ** 0.5 * aside


def test_probabilities_are_the_papers():
    equal = World(100, 3200, 20, "equal").probabilities
    assert equal == pytest.approx(np.full(3200, 0.00625))
    unequal = World(100, 3200, 20, "unequal").probabilities
    assert unequal.sum() == pytest.approx(20)
    low, high = np.log10([unequal.min(), unequal.max()])
    assert low == pytest.approx(-5.5, abs=0.05) and high == pytest.approx(-1.2, abs=0.05)
    # as many features in every part of the span: the logarithm is uniform
    parts, _ = np.histogram(np.log10(unequal), np.linspace(high - DECADES, high, 5))
    assert parts == pytest.approx(800, abs=100)


def test_features_are_uniform_on_the_sphere_and_shared_by_both_firings():
    one = World(20, 2000, 10, "equal", seed=1)
    directions = one.directions
    assert directions.shape == (2000, 20) and not directions.requires_grad
    assert torch.allclose(directions.norm(dim=1), torch.ones(2000))
    assert torch.cov(directions.T).numpy() == pytest.approx(np.eye(20) / 20, abs=0.006)
    assert torch.equal(directions, World(20, 2000, 10, "unequal", seed=1).directions)
    assert not torch.allclose(directions, World(20, 2000, 10, "equal", seed=2).directions)


def test_features_are_active_as_often_and_as_strongly_as_asked():
    n = 20_000
    strengths = read_back(FEW, n)
    active = strengths > 1e-3
    assert strengths[~active].abs().max() < 1e-4
    p = FEW.probabilities
    error = np.sqrt(p * (1 - p) / n)
    assert (np.abs(active.double().mean(0).numpy() - p) < 4 * error + 1e-12).all()
    logs = strengths[active].log()
    assert logs.mean().item() == pytest.approx(0, abs=0.01)
    assert logs.std().item() == pytest.approx(0.25, abs=0.01)
    # independent: two features are active together as often as chance has it
    first, second = p.argsort()[-2:]
    together = (active[:, first] & active[:, second]).double().mean().item()
    assert together == pytest.approx(p[first] * p[second], rel=0.1)


def test_a_stream_is_its_own_whatever_else_draws_random_numbers():
    world = World(8, 32, 4, "unequal")
    torch.manual_seed(0)
    plain = torch.rand(3)
    first = list(islice(world.batches(16), 3))
    torch.manual_seed(0)
    batches = world.batches(16)
    other = world.batches(16)
    again = []
    for _ in range(3):
        again.append(next(batches))
        torch.manual_seed(5)
        next(other)
        torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(0)
    next(world.batches(16))
    assert torch.equal(torch.rand(3), plain)  # and it disturbs nobody


def test_streams_and_seeds_are_different_data():
    one, held_out = World(8, 32, 4), World(8, 32, 4).sample(16, "held out")
    assert not torch.equal(next(one.batches(16)), held_out)
    assert torch.equal(one.sample(16, "held out"), held_out)
    assert not torch.equal(World(8, 32, 4, seed=1).sample(16, "held out"), held_out)


@pytest.mark.parametrize(
    "world",
    [{"active": 0}, {"active": -1}, {"active": 40, "features": 32}, {"active": 20, "firing": "unequal"}],
)
def test_impossible_probabilities_are_refused(world):
    with pytest.raises(UserError, match="choose active"):
        World(**({"width": 8, "features": 32} | world))


def test_recovered_is_a_cosine_above_the_threshold_with_its_sign():
    features = normalize(torch.randn(5, 30, generator=torch.Generator().manual_seed(1)), dim=1)
    decoder = torch.stack(
        [
            7 * at_cosine(features[0], 0.81),  # length does not count
            at_cosine(features[1], 0.79),
            -features[2],
            torch.zeros(30),  # a latent that has no direction
            features[4],
            features[4],  # twice the same
        ]
    )
    assert recovered(decoder, features).tolist() == [True, False, False, False, True]
    assert recovered(decoder, features, threshold=0.78).tolist() == [True, True, False, False, True]


def test_random_directions_recover_next_to_nothing():
    world = World()
    generator = torch.Generator().manual_seed(0)
    assert recovered(torch.randn(800, 50, generator=generator), world.directions).mean() < 0.01


def test_recovery_by_frequency_counts_in_bins_of_equally_many_features():
    probabilities = np.array([0.2, 0.002, 0.05, 0.04])
    found = np.array([True, False, True, False])
    table = recovery_by_frequency(found, probabilities, bins=2)
    assert table["from"].tolist() == [0.002, 0.05] and table["to"].tolist() == [0.04, 0.2]
    assert table["features"].tolist() == [2, 2] and table["found"].tolist() == [0, 2]
    assert table["recovered"].tolist() == [0, 1]
    assert table["high"].iloc[0] > 0.5  # two features tell little
    assert table["low"].iloc[1] < 0.5
    assert len(recovery_by_frequency(found, probabilities)) == 4  # no empty bins


def test_equally_frequent_features_are_one_bin():
    world = World(8, 32, 4)
    table = recovery_by_frequency(np.arange(32) < 8, world.probabilities)
    assert table[["features", "found", "recovered"]].values.tolist() == [[32, 8, 0.25]]
