"""Nearest neighbours, clusters and uniqueness of constructed dictionaries whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

import reasoning_features.foundations.dictionary_geometry as room
from reasoning_features.errors import UserError
from reasoning_features.foundations.dictionary_geometry import (
    as_rare,
    clustering,
    isotropic_directions,
    mean_cos_sim,
    nearest_cosines,
    random_cos_sim,
    uniqueness,
)

SCALES = torch.tensor([0.5, 3.0, 1.0, 20.0])[:, None]


def test_orthonormal_directions_have_no_near_neighbours() -> None:
    found = mean_cos_sim(SCALES * torch.eye(4))
    assert (found.estimate, found.low, found.high, found.n) == (0.0, 0.0, 0.0, 4)


def test_doubled_directions_are_their_own_neighbours() -> None:
    found = mean_cos_sim(torch.cat([torch.eye(4), SCALES * torch.eye(4)]))
    assert found.estimate == pytest.approx(1.0) and found.low == pytest.approx(1.0)


def test_neighbours_are_signed_and_by_hand() -> None:
    # an opposite direction is no neighbour: the nearest of (1, 0) is (0.6, 0.8) at cosine 0.6
    decoder = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.6, 0.8]])
    np.testing.assert_allclose(nearest_cosines(decoder), [0.6, -0.6, 0.6])
    np.testing.assert_allclose(nearest_cosines(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), -1.0)
    assert mean_cos_sim(decoder).estimate == pytest.approx(0.2)


def test_a_dead_direction_is_near_nothing_and_one_latent_is_refused() -> None:
    np.testing.assert_allclose(nearest_cosines(torch.tensor([[0.0, 0.0], [1.0, 0.0]])), 0.0)
    with pytest.raises(UserError, match="two live latents"):
        nearest_cosines(torch.ones(1, 3))


def test_many_directions_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = isotropic_directions(200, 8, seed=0)
    whole = nearest_cosines(decoder)
    monkeypatch.setattr(room, "WIDE", 3000)
    np.testing.assert_allclose(nearest_cosines(decoder), whole, atol=1e-6)


def test_random_directions_are_nearer_in_fewer_dimensions_of_the_stream() -> None:
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(4000, 32, generator=generator) * torch.tensor([1.0] * 4 + [0.01] * 28)
    found = random_cos_sim(100, flat, draws=5).set_index("directions")
    expected = nearest_cosines(isotropic_directions(100, 32, seed=77)).mean()
    assert found.loc["isotropic", "estimate"] == pytest.approx(expected, abs=0.03)
    in_four = nearest_cosines(isotropic_directions(100, 4, seed=77)).mean()
    assert found.loc["activations' covariance", "estimate"] == pytest.approx(in_four, abs=0.03)
    assert (found["low"] <= found["estimate"]).all() and (found["estimate"] <= found["high"]).all()


def test_clustering_by_hand() -> None:
    # three directions at 60° of one another, and a fourth at 60° of one of them alone
    corner = [[1.0, 0, 0, 0], [0.5, 0.75**0.5, 0, 0], [0.5, 12**-0.5, (2 / 3) ** 0.5, 0]]
    decoder = torch.tensor([*corner, [0.5, -(12**-0.5), -(6**-0.5), 0.5**0.5]])
    found = clustering(decoder, thresholds=[0.4, 0.9]).set_index("threshold")
    # the first has three neighbours of which one pair is joined, the second and third a closed triangle
    assert found.loc[0.4, "estimate"] == pytest.approx((1 / 3 + 1 + 1 + 0) / 4)
    assert found.loc[0.4, "joined"] == pytest.approx(4 / 6)
    assert found.loc[0.9, "estimate"] == found.loc[0.9, "joined"] == 0


def test_clustering_is_that_of_the_graph() -> None:
    networkx = pytest.importorskip("networkx")  # comes with torch
    decoder = isotropic_directions(60, 6, seed=3)
    cosines = (decoder @ decoder.T).numpy()
    for row in clustering(decoder).itertuples():
        joined = (cosines >= row.threshold) & ~np.eye(60, dtype=bool)
        assert row.estimate == pytest.approx(networkx.average_clustering(networkx.from_numpy_array(joined)))
        assert row.low <= row.estimate <= row.high
    assert len(clustering(decoder)) == 10


def test_as_rare_against_closed_forms() -> None:
    # on the sphere a cosine is uniform, P(cos ≥ ½) = ¼; on the circle P(cos ≥ c) = arccos(c) / π
    assert as_rare(0.5, 2, 3) == pytest.approx(np.cos(np.pi / 4))
    assert as_rare(0.2, 2304, 2304) == pytest.approx(0.2)
    # in many dimensions cosines are nearly normal with variance 1/d
    many = as_rare(0.02, 40_000, 10_000)
    assert many == pytest.approx(norm.isf(norm.sf(0.02 * 100)) / 200, rel=1e-3)
    assert 0.7 < as_rare(0.2, 128, 2304) < 0.75


def test_uniqueness_of_itself_and_of_other_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.zeros(40, 64), torch.zeros(50, 64)
    one[:, :32] = torch.randn(40, 32, generator=generator)
    other[:, 32:] = torch.randn(50, 32, generator=generator)
    assert (uniqueness(one, one)["estimate"] == 0).all()
    apart = uniqueness(one, other)
    assert (apart["estimate"] == 1).all() and (apart["high"] == 1).all() and (apart["low"] < 1).all()
    half = uniqueness(torch.cat([one, other[:40]]), other)
    assert half["estimate"].tolist() == [0.5] * 3 and half["n"].tolist() == [80] * 3


def test_random_directions_are_unique_as_often_as_they_are_to_be() -> None:
    other, drawn = isotropic_directions(512, 128, seed=10), isotropic_directions(2000, 128, seed=11)
    found = uniqueness(drawn, other).set_index("threshold")
    assert found.loc["random", "estimate"] == pytest.approx(0.95, abs=0.02)
    assert found.loc["random", "random directions"] == pytest.approx(0.95, abs=0.01)
    # the paper's threshold lies below what random directions reach in this width; one as rare lies above it
    assert found.loc["paper", "estimate"] < 0.1
    assert found.loc["as rare", "estimate"] == 1
    assert found.loc["paper", "cosine"] < found.loc["random", "cosine"] < found.loc["as rare", "cosine"]


def test_dictionaries_of_two_widths_are_refused() -> None:
    with pytest.raises(UserError, match="widths 4 and 5"):
        uniqueness(torch.eye(4), torch.eye(5))
