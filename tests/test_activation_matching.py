"""Activations compared on the same tokens: against numpy, in parts as at once; what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import signed_identity

from reasoning_features.diffing.activation_matching import (
    JointMoments,
    compare,
    largest_correlations,
    own_correlation,
)
from reasoning_features.errors import UserError


@pytest.fixture
def sides() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(500, 4, generator=generator)
    b = torch.rand(500, 3, generator=generator) + a[:, :1]
    b[:, 2] = 0.0
    return a, b


def test_correlation_and_cosine_against_numpy(sides):
    a, b = sides
    found = JointMoments.of([(a[:100], b[:100]), (a[100:], b[100:])])
    expected = np.corrcoef(a.T, b[:, :2].T)[:4, 4:]
    assert found.correlation()[:, :2] == pytest.approx(expected, abs=1e-5)
    norms = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b[:, :2], axis=0))
    assert found.cosine()[:, :2] == pytest.approx((a.T @ b[:, :2]).numpy() / norms, abs=1e-5)
    assert found.count == 500


def test_a_feature_that_never_fires_is_like_none(sides):
    found = JointMoments.of([sides])
    assert (found.correlation()[:, 2] == 0).all() and (found.cosine()[:, 2] == 0).all()


def test_two_dictionaries_on_the_same_tokens():
    residual = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    sae = signed_identity(5)
    found = compare(sae, residual, sae, residual, size=64)
    assert np.diag(found.correlation()) == pytest.approx(1.0)
    assert found.correlation()[0, 5] < 0  # a coordinate and its opposite
    other = compare(sae, residual, sae, residual * 3)
    assert np.diag(other.correlation()) == pytest.approx(1.0, abs=1e-6)


def test_what_cannot_be_compared():
    sae = signed_identity(5)
    with pytest.raises(UserError, match="Activations of 4 and 3 tokens"):
        compare(sae, torch.zeros(4, 5), sae, torch.zeros(3, 5))
    with pytest.raises(UserError, match="no tokens"):
        JointMoments.of([])


def test_a_feature_with_itself_is_the_diagonal_and_some_features_are_rows_of_all():
    sae = signed_identity(4)
    one, two = torch.randn(50, 4), torch.randn(50, 4)
    whole = compare(sae, one, sae, two).correlation()
    np.testing.assert_allclose(own_correlation(sae, one, two, size=7), whole.diagonal(), atol=1e-6)
    every = largest_correlations(sae, one, {"other": (sae, two)})
    some = largest_correlations(sae, one, {"other": (sae, two)}, features=np.array([5, 1]))
    assert some["other"].notna().sum() == 2
    np.testing.assert_allclose(some["other"][[1, 5]], every["other"][[1, 5]], rtol=1e-6)
    with pytest.raises(UserError, match="give the same tokens"):
        own_correlation(sae, one, two[:3])


def test_few_features_stand_in_memory_at_once(monkeypatch):
    sae, seen = signed_identity(4), []
    encode = sae.encode
    monkeypatch.setattr(sae, "encode", lambda x: seen.append(len(x)) or encode(x))
    one, two = torch.randn(50, 4), torch.randn(50, 4)
    whole = compare(sae, one, sae, two).correlation(), own_correlation(sae, one, two)
    monkeypatch.setattr("reasoning_features.dictionaries.autoencoder.ELEMENTS", 10 * sae.cfg.d_sae)
    seen.clear()
    parts = compare(sae, one, sae, two).correlation(), own_correlation(sae, one, two)
    assert max(seen) == 10 and len(seen) == 20
    for found, wanted in zip(parts, whole, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
