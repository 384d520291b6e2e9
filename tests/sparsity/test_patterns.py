"""N:M sparsity: masks against brute force, criteria and pruned weights against loops, and costs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning_features.errors import UserError
from reasoning_features.sparsity import patterns
from reasoning_features.sparsity.patterns import Pattern, Statistics, Unstructured, mask

PATTERNS = [Pattern(1, 2), Pattern(2, 4), Pattern(3, 4), Pattern(4, 8), Pattern(8, 16), Pattern(16, 32),
            Pattern(5, 32), Pattern(32, 32), *map(Unstructured, (0.5, 0.3, 0.001))]  # fmt: skip


def brute(row, n, m):
    """What is kept of one row of numbers: the largest of each group, of equal ones the first."""
    kept = [False] * len(row)
    for start in range(0, len(row), m):
        for i in sorted(range(start, start + m), key=lambda i: (-row[i], i))[:n]:
            kept[i] = True
    return kept


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(0, 10**6), st.integers(1, 50), st.booleans())
def test_a_mask_keeps_the_largest_of_each_group_and_of_ties_the_first(pattern, seed, levels, ties):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, 64, generator=generator)
    if ties:  # few different numbers, down to one
        scores = (scores.abs() * levels / 5).floor()
    n, m = pattern.group(64, "")
    expected = [[brute(row.tolist(), n, m) for row in sequence] for sequence in scores]
    found = mask(scores, pattern)
    assert found.dtype == torch.bool and found.tolist() == expected
    assert torch.equal(found.sum(-1), torch.full((2, 3), 64 * n // m)), "as many in every token"
    assert torch.equal(mask(scores.half().float(), pattern), mask(scores.half(), pattern))


def test_what_is_no_pattern_is_told():
    with pytest.raises(UserError, match=r"block\.q_proj has 30 inputs.*groups of 4.*other than 2:4"):
        mask(torch.zeros(2, 30), Pattern(2, 4), "block.q_proj")
    for wrong in ((0, 4), (5, 4)):
        with pytest.raises(UserError, match=f"{wrong[0]}:4"):
            Pattern(*wrong)
    for share in (0.0, 1.1, math.nan):
        with pytest.raises(UserError, match="cannot be kept"):
            Unstructured(share)


@pytest.fixture
def layer():
    """Inputs ``[2, 5, 8]`` and a weight ``[6, 8]`` in float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    return x, torch.randn(6, 8, generator=generator, dtype=torch.float64)


def norm(numbers):
    return math.sqrt(sum(float(number) ** 2 for number in numbers))


def amber_factors(weight):
    """‖Ŵ_:j‖ / min_k ‖Ŵ_:k‖, the quantiles interpolated between the neighbours in order."""
    flat = sorted(weight.flatten().tolist())

    def quantile(share):
        place = share * (len(flat) - 1)
        below = math.floor(place)
        return flat[below] + (place - below) * (flat[below + 1] - flat[below])

    low, high = quantile(0.005), quantile(0.995)
    within = [w for w in flat if low <= w <= high]
    mean = sum(within) / len(within)
    deviation = math.sqrt(sum((w - mean) ** 2 for w in within) / len(within))
    norms = [
        norm((min(max(w, low), high) - mean) / deviation for w in column.tolist()) for column in weight.T
    ]
    return [each / min(norms) for each in norms]


def looped(name, x, weight, b, t, i):
    columns = {
        "ACT": lambda: 1.0,
        "CLACT, published": lambda: norm(x[:, :, i].flatten()) / norm(x[b, t]),
        "CLACT, sequence": lambda: norm(x[b, :, i]) / norm(x[b, t]),
        "CLACT, causal": lambda: norm(x[b, : t + 1, i]) / norm(x[b, t]),
        "Amber": lambda: amber_factors(weight)[i],
        "WINA": lambda: norm(weight[:, i]),
    }
    return abs(float(x[b, t, i])) * columns[name]()


@pytest.mark.parametrize("name", patterns.CRITERIA)
def test_each_criterion_is_that_of_a_loop(layer, name):
    x, weight = layer
    found = patterns.CRITERIA[name](weight)(x)
    expected = [[[looped(name, x, weight, b, t, i) for i in range(8)] for t in range(5)] for b in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_causal_clact_alone_does_not_see_later_tokens_and_the_published_one_sees_its_neighbours(layer):
    x, weight = layer
    later, neighbour = x.clone(), x.clone()
    later[0, 3:] *= 9
    neighbour[1] *= 9
    score = {name: criterion(weight) for name, criterion in patterns.CRITERIA.items() if "CLACT" in name}
    same = {name: torch.equal(s(x)[0, :3], s(later)[0, :3]) for name, s in score.items()}
    assert same == {"CLACT, published": False, "CLACT, sequence": False, "CLACT, causal": True}
    same = {name: torch.equal(s(x)[0], s(neighbour)[0]) for name, s in score.items()}
    assert same == {"CLACT, published": False, "CLACT, sequence": True, "CLACT, causal": True}


def statistics(x):
    flat = x.flatten(0, 1)
    return Statistics(flat.norm(dim=0), flat.abs().amax(0), float(flat.median(-1).values.mean()), list(x))


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 8), Unstructured(0.25)], ids=str)
def test_magnitude_and_wanda_are_those_of_a_loop(layer, pattern):
    x, weight = layer
    n, m = pattern.group(8, "")
    for name in ("magnitude", "Wanda"):
        made = patterns.PRUNERS[name](weight, pattern, statistics(x))
        for row, found in zip(weight.tolist(), made.tolist(), strict=True):
            importance = [
                abs(w) * (norm(x[:, :, j].flatten()) if name == "Wanda" else 1.0) for j, w in enumerate(row)
            ]
            kept = brute(importance, n, m)
            assert found == [w if keep else 0.0 for w, keep in zip(row, kept, strict=True)]


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Unstructured(0.5)], ids=str)
def test_sparsegpt_is_optimal_brain_surgery_column_by_column(layer, pattern):
    """Against the inverse of what is left of H, taken anew at each column."""
    x, weight = layer
    flat = x.flatten(0, 1)
    hessian = flat.T @ flat
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    whole, m = weight.clone(), 4  # blocks of four columns, for both patterns
    for i in range(8):
        if i % m == 0:
            curvature = torch.stack([hessian[j:, j:].inverse()[0, 0] for j in range(i, i + m)])
            scores = whole[:, i : i + m] ** 2 / curvature
            rows = scores.tolist() if isinstance(pattern, Pattern) else [scores.flatten().tolist()]
            chosen = torch.tensor([brute(row, len(row) // 2, len(row)) for row in rows]).view_as(scores)
        inverse = hessian[i:, i:].inverse()
        gone = whole[:, i] * ~chosen[:, i - i // m * m]
        whole[:, i:] -= gone[:, None] / inverse[0, 0] * inverse[0]
    made = patterns.prune_sparsegpt(weight, pattern, statistics(x), block=4)
    torch.testing.assert_close(made, whole, rtol=1e-6, atol=1e-9)
    assert int((made == 0).sum()) == made.numel() // 2


def test_sparsegpt_makes_up_for_what_it_takes_and_tells_what_it_lacks():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 32) @ torch.randn(32, 32)
    x[..., 3] = 0  # an input that is never there
    weight, known = torch.randn(16, 32), statistics(x)
    for pattern in (Pattern(2, 4), Pattern(16, 32), Unstructured(0.5)):
        made = patterns.prune_sparsegpt(weight, pattern, known)
        errors = [((w - weight) @ x.flatten(0, 1).T).square().mean() for w in (made, weight * (made != 0))]
        assert errors[0] < errors[1], "the weights that stay take over from those that go"
        assert not made[:, 3].any() and made.isfinite().all()
    for prune in (patterns.prune_magnitude, patterns.prune_wanda):
        assert torch.equal(prune(weight, Pattern(4, 4), known), weight)
    with pytest.raises(UserError, match="kept none"):
        patterns.prune_sparsegpt(weight, Pattern(2, 4), Statistics(known.norms, known.largest, 0.0, []))


def test_costs_are_counted():
    found = patterns.cost(Pattern(2, 4), 64)
    assert (found.multiplications, found.weights_read) == (0.5, 0.5)
    assert found.metadata_bits == pytest.approx(math.log2(6) / 4) and found.practical_bits == 0.75
    assert patterns.cost(Pattern(8, 16), 64).practical_bits == 14 / 16
    assert patterns.cost(Pattern(16, 32), 64).metadata_bits == pytest.approx(math.log2(601080390) / 32)
    assert patterns.cost(Pattern(2, 4), 64, tokens=3).weights_read == 0.875
    dense = patterns.cost(Unstructured(1.0), 1536)
    assert (dense.multiplications, dense.weights_read, dense.metadata_bits) == (1, 1, 0)
    assert 0.99 < patterns.cost(Unstructured(0.5), 1536).metadata_bits < 1
    with pytest.raises(UserError, match="50 inputs"):
        patterns.cost(Pattern(2, 4), 50)
