"""Numbers are told finite from not, whatever holds them."""

import math

import numpy as np
import pytest
import torch

from reasoning_features.errors import UserError, check_finite


def test_the_first_that_is_not_finite_is_told_and_finite_numbers_are_given_back():
    for values, place in {
        torch.tensor([[1.0, -math.inf], [math.nan, math.inf]], requires_grad=True): r" \(first at \[0, 1\]\)",
        torch.tensor([1.0, math.nan]).bfloat16(): r" \(first at \[1\]\)",
        np.float64("nan"): "",
    }.items():
        with pytest.raises(UserError, match=f"^A weight is not finite{place}: raise it.$"):
            check_finite(values, "A weight", "raise it")
    # of the last two the sums are not finite
    for values in (np.empty((0, 3)), torch.tensor(3), torch.full((9,), 6e4).half(), np.full(9, -1e308)):
        assert check_finite(values, "A weight") is values
