"""Neighbours, composition, clusters and uniqueness of constructed dictionaries whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from tiny import signed_identity

from reasoning_features.sae_checks import ortsae_metrics
from reasoning_features.sae_checks.ortsae_metrics import (
    as_rare,
    clustering,
    composition,
    explained,
    isotropic_directions,
    meta_errors,
    nearest_cosines,
    uniqueness,
)

SCALES = torch.tensor([0.5, 3.0, 1.0, 20.0])[:, None]


def test_neighbours_are_signed_and_by_hand():
    # an opposite direction is no neighbour: the nearest of (1, 0) is (0.6, 0.8) at cosine 0.6
    decoder = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.6, 0.8]])
    np.testing.assert_allclose(nearest_cosines(decoder), [0.6, -0.6, 0.6])
    assert nearest_cosines(SCALES * torch.eye(4)).tolist() == [0.0] * 4
    np.testing.assert_allclose(nearest_cosines(torch.cat([torch.eye(4), SCALES * torch.eye(4)])), 1.0)
    np.testing.assert_allclose(nearest_cosines(torch.tensor([[0.0, 0.0], [1.0, 0.0]])), 0.0)  # a dead one


def sums_of_atoms(n: int, width: int, atoms: int) -> torch.Tensor:
    """Unit rows that are each the sum of two of some orthogonal atoms."""
    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(atoms, 2, replace=False) for _ in range(n)])
    rows = torch.zeros(n, width)
    rows[np.arange(n), pairs[:, 0]] = rows[np.arange(n), pairs[:, 1]] = 1.0
    return rows / 2**0.5


@pytest.fixture
def short(monkeypatch):
    """MetaSAEs train for a few steps, enough for rows of few atoms."""
    monkeypatch.setattr(ortsae_metrics, "STEPS", 100)
    monkeypatch.setattr(ortsae_metrics, "LEARNING_RATE", 1e-2)


def test_rows_of_few_atoms_are_explained_and_random_ones_are_not(short):
    rows = sums_of_atoms(128, 64, atoms=16)
    composed = composition(8 * rows, seeds=(0, 1))
    assert composed.low > 0.9 and composed.low <= composed.estimate <= composed.high and composed.n == 128
    random = composition(isotropic_directions(128, 64, seed=0), seeds=(0,))
    assert random.high < composed.low
    one, again = meta_errors(rows, 1), meta_errors(rows, 1)
    assert np.array_equal(one, again) and not np.array_equal(one, meta_errors(rows, 0))


def test_explained_variance_and_its_interval_by_hand():
    # deviations 1 and 3; errors 0.5 and 0.3 in one seed, nothing in the other: 0.8 and 1
    found = explained(np.array([[0.5, 0.3], [0.0, 0.0]]), np.array([1.0, 3.0]))
    assert found.estimate == pytest.approx(0.9)
    # the worst resample has the bad seed and the first row alone, the best the good seed
    assert found.low == pytest.approx(0.5) and found.high == pytest.approx(1.0)


def test_clustering_by_hand():
    # three directions at 60° of one another, and a fourth at 60° of one of them alone
    corner = [[1.0, 0, 0, 0], [0.5, 0.75**0.5, 0, 0], [0.5, 12**-0.5, (2 / 3) ** 0.5, 0]]
    decoder = torch.tensor([*corner, [0.5, -(12**-0.5), -(6**-0.5), 0.5**0.5]])
    found = clustering(decoder, thresholds=[0.4, 0.9]).set_index("threshold")
    # the first has three neighbours of which one pair is joined, the second and third a closed triangle
    assert found.loc[0.4, "estimate"] == pytest.approx((1 / 3 + 1 + 1 + 0) / 4)
    assert found.loc[0.4, "joined"] == pytest.approx(4 / 6)
    assert found.loc[0.9, "estimate"] == found.loc[0.9, "joined"] == 0


def test_as_rare_against_closed_forms():
    # on the sphere a cosine is uniform, P(cos ≥ ½) = ¼; on the circle P(cos ≥ c) = arccos(c) / π
    assert as_rare(0.5, 2, 3) == pytest.approx(np.cos(np.pi / 4))
    assert as_rare(0.2, 2304, 2304) == pytest.approx(0.2)
    # in many dimensions cosines are nearly normal with variance 1/d
    many = as_rare(0.02, 40_000, 10_000)
    assert many == pytest.approx(norm.isf(norm.sf(0.02 * 100)) / 200, rel=1e-3)
    assert 0.7 < as_rare(0.2, 128, 2304) < 0.75


def test_unique_latents_are_those_that_the_other_lacks():
    axes = torch.eye(64)
    table = uniqueness({"all": axes, "half": axes[:32]})
    paper = table[table["threshold"] == "paper"].set_index(["dictionary", "other"])["estimate"]
    assert paper["all", "half"] == 0.5 and paper["half", "all"] == 0
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(40, 64, generator=generator), torch.randn(50, 64, generator=generator)
    found = uniqueness({"one": one, "other": other}).set_index(["dictionary", "threshold"]).loc["one"]
    assert found.loc["random", "random directions"] == pytest.approx(0.95, abs=0.01)
    assert found.loc["paper", "cosine"] < found.loc["random", "cosine"] < found.loc["as rare", "cosine"]
    assert found.loc["as rare", "estimate"] == 1 and found.loc["random", "estimate"] > 0.8


def test_features_are_chosen_alike_where_they_fire_alike():
    saes = {"one": signed_identity(3), "other": signed_identity(3)}
    residual = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    chosen = {"one": np.array([0, 1]), "other": np.array([1, 2])}
    (row,) = ortsae_metrics.chosen_overlap(saes, chosen, residual).to_dict("records")
    assert row["share"] == 0.5 and row["n"] == 2 and row["in the other at all"] == 1
