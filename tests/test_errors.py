"""Numbers are told finite from not, whatever holds them."""

import math

import numpy as np
import pytest
import torch

from reasoning_features.errors import UserError, check_finite


@pytest.mark.parametrize(
    ("values", "place"),
    [
        (
            torch.tensor([[1.0, -math.inf], [math.nan, math.inf]], requires_grad=True),
            r" \(first at \[0, 1\]\)",
        ),
        (torch.tensor([1.0, math.nan]).bfloat16(), r" \(first at \[1\]\)"),
        (np.array([[[0.0, math.inf]]]), r" \(first at \[0, 0, 1\]\)"),
        (np.float64("nan"), ""),
    ],
)
def test_the_first_that_is_not_finite_is_told(values, place):
    with pytest.raises(UserError, match=f"^A weight is not finite{place}: raise it.$"):
        check_finite(values, "A weight", "raise it")


# the sums of the last three are not finite
@pytest.mark.parametrize(
    "values",
    [np.empty((0, 3)), torch.tensor(3), torch.full((9,), 6e4).half(), np.full(9, 1e308), -np.full(9, 1e308)],
)
def test_finite_numbers_are_given_back(values):
    assert check_finite(values, "A weight") is values
