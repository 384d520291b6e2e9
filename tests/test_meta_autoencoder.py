"""MetaSAEs explain rows that are sums of few atoms, and not random ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reasoning_features.errors import UserError
from reasoning_features.foundations.dictionary_geometry import isotropic_directions
from reasoning_features.foundations.meta_autoencoder import Composition, composition


def sums_of_atoms(n: int, width: int, atoms: int) -> torch.Tensor:
    """Rows that are each the sum of two of some orthogonal atoms, of any length."""
    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(atoms, 2, replace=False) for _ in range(n)])
    rows = torch.zeros(n, width)
    rows[np.arange(n), pairs[:, 0]] = rows[np.arange(n), pairs[:, 1]] = 1.0
    return rows * torch.rand(n, 1, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def composed() -> Composition:
    return composition(sums_of_atoms(128, 64, atoms=16), seeds=(0, 1))


def test_rows_of_few_atoms_are_explained(composed: Composition) -> None:
    assert composed.by_seed.min() > 0.95
    found = composed.interval()
    assert found.low <= found.estimate <= found.high and found.n == 128


def test_random_rows_are_not(composed: Composition) -> None:
    random = composition(isotropic_directions(128, 64, seed=0), seeds=(0,))
    assert random.by_seed[0] < 0.6
    assert random.interval().high < composed.interval().low


def test_the_same_seed_gives_the_same_bytes_and_length_does_not_count(composed: Composition) -> None:
    again = composition(8 * sums_of_atoms(128, 64, atoms=16), seeds=(1,))
    assert np.array_equal(again.error[0], composed.error[1])
    assert not np.array_equal(composed.error[0], composed.error[1])


def test_explained_variance_and_interval_by_hand() -> None:
    # deviations 1 and 3; errors 0.5 and 0.3 in one seed, nothing in the other
    held = Composition(np.array([[0.5, 0.3], [0.0, 0.0]]), np.array([1.0, 3.0]))
    assert held.by_seed.tolist() == pytest.approx([0.8, 1.0])
    found = held.interval()
    assert found.estimate == pytest.approx(0.9)
    # the worst resample has the bad seed and the first row alone, the best the good seed
    assert found.low == pytest.approx(0.5) and found.high == pytest.approx(1.0)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="at least 16 live ones"):
        composition(torch.eye(15))
