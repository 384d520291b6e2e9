"""N:M activation sparsity (arXiv 2509.22166): a linear layer reads only some of each token's inputs.

A pattern says how many inputs are kept, a criterion scores which, a correction mends what is lost; weights
can be pruned at the same patterns. Masks are applied to dense tensors: nothing here gets faster.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reasoning_features.errors import UserError

Score = Callable[[Tensor], Tensor]  # a layer's inputs [b, t, in] → how much each matters [b, t, in]


@dataclass(frozen=True)
class Pattern:
    """N:M, the N largest scores in each M consecutive inputs are kept; UserError unless 1 ≤ N ≤ M."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise UserError(f"A pattern of {self} keeps nothing, or more than there is: give 1 ≤ N ≤ M.")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def group(self, width: int, layer: str) -> tuple[int, int]:
        """How many are kept of how many consecutive inputs; UserError where the width does not divide."""
        if width % self.m:
            told = f"{layer} has {width} inputs, which do not divide into groups of {self.m}"
            raise UserError(f"{told}: give a pattern other than {self}, or leave the layer out.")
        return self.n, self.m


@dataclass(frozen=True)
class Unstructured:
    """A share of each token's inputs is kept, rounded to whole inputs; UserError: a share not in (0, 1].

    The limit of N:M, with all inputs as one group. The paper names the share that is taken away (1 − keep).
    """

    keep: float

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(f"A share of {self.keep:g} of the inputs cannot be kept: give one in (0, 1].")

    def __str__(self) -> str:
        return f"{self.keep:.0%} kept"

    def group(self, width: int, _layer: str) -> tuple[int, int]:
        return max(round(self.keep * width), 1), width


AnyPattern = Pattern | Unstructured


def mask(scores: Tensor, pattern: AnyPattern, layer: str = "The layer") -> Tensor:
    """What to keep, booleans of the shape of ``scores`` ``[…, in]``: along the last dimension the largest.

    Of equal scores those further left are kept, on every device. UserError, naming the layer, its width and
    the pattern: the width does not divide into groups.
    """
    n, m = pattern.group(scores.shape[-1], layer)
    if n == m:
        return torch.ones_like(scores, dtype=torch.bool)
    groups = scores.unflatten(-1, (-1, m))
    if m <= 16:  # every pair compared, a few passes over the whole tensor, is faster than any selection
        columns = groups.movedim(-1, 0).contiguous()
        before = torch.zeros_like(columns, dtype=torch.int8)  # how many of the group go first
        for i, j in itertools.combinations(range(m), 2):
            first = columns[i] >= columns[j]
            before[j] += first
            before[i] += ~first
        return (before < n).movedim(0, -1).flatten(-2)
    least = groups.kthvalue(m - n + 1, dim=-1, keepdim=True).values
    kept = groups >= least
    if bool((kept.sum(-1) > n).any()):  # ties at the boundary: count them from the left
        above, tied = groups > least, groups == least
        kept = above | (tied & (tied.cumsum(-1) <= n - above.sum(-1, keepdim=True)))
    return kept.flatten(-2)


@dataclass(frozen=True)
class Cost:
    """What a pattern needs at best, on hardware that could use it; shares are of the dense layer's."""

    multiplications: float
    weights_read: float  # of the weight's bytes
    metadata_bits: float  # to tell which are kept, per input: log2 C(M, N) / M
    practical_bits: float  # the same in whole bits a group


def cost(pattern: AnyPattern, width: int, tokens: int = 1) -> Cost:
    """Counts for a layer of ``width`` inputs that reads ``tokens`` tokens at once. No claim about time.

    A column of the weight is read if any token keeps its input: 1 − (1 − N/M)^tokens where tokens choose
    independently. UserError: the width does not divide into groups.
    """
    n, m = pattern.group(width, "The layer")
    bits = math.log2(math.comb(m, n))
    return Cost(n / m, 1 - (1 - n / m) ** tokens, bits / m, math.ceil(bits) / m)


def wide(x: Tensor) -> Tensor:
    """At least float32, so that half precision neither overflows nor makes ties."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Criteria: each takes a layer's weight [out, in] and gives the score of its inputs.


def act(_weight: Tensor) -> Score:
    """ACT: |x|."""
    return torch.abs


def _by_column(x: Tensor, factor: Tensor) -> Tensor:
    return x.abs() * factor


def wina(weight: Tensor) -> Score:
    """WINA: |x_j| · ‖W_:j‖ (github.com/microsoft/wina)."""
    return partial(_by_column, factor=wide(weight).norm(dim=0))


def amber(weight: Tensor) -> Score:
    """Amber: |x_j| · ‖Ŵ_:j‖ / min_k ‖Ŵ_:k‖ (arXiv 2508.02128).

    Ŵ is W clipped to its .5–99.5% quantiles, less the mean and over the standard deviation of the weights
    within them. Quantiles are exact; the released code takes those of 50,000 sampled weights, and does not
    clip. The minimum changes no order within a token.
    """
    whole = wide(weight)
    low, high = np.quantile(whole.cpu().numpy(), [0.005, 0.995]).tolist()
    within = whole[(whole >= low) & (whole <= high)]
    standardised = (whole.clamp(low, high) - within.mean()) / within.std(unbiased=False).clamp_min(1e-8)
    norms = standardised.norm(dim=0)
    return partial(_by_column, factor=norms / norms.min().clamp_min(1e-8))


def _clact(x: Tensor, columns: Callable[[Tensor], Tensor]) -> Tensor:
    return x.abs() * columns(x) / (x.norm(dim=-1, keepdim=True) + 1e-8)


def clact_published(_weight: Tensor) -> Score:
    """CLACT as published: |x_ti| · ‖x_:i‖ / ‖x_t‖, the column's norm over all tokens of the batch.

    Not causal: what a token keeps depends on later tokens and on its neighbours in the batch. ‖x_t‖ changes
    no order within a token; it did in the released unstructured version, which ranks a whole batch at once.
    """
    return partial(_clact, columns=lambda x: x.norm(dim=tuple(range(x.ndim - 1)), keepdim=True))


def clact_sequence(_weight: Tensor) -> Score:
    """CLACT in batches of one: the column's norm over all tokens of the same sequence. Not causal."""
    return partial(_clact, columns=lambda x: x.norm(dim=-2, keepdim=True))


def clact_causal(_weight: Tensor) -> Score:
    """CLACT made causal: the column's norm over the tokens of the sequence up to and including this one."""
    return partial(_clact, columns=lambda x: x.square().cumsum(-2).sqrt())


Criterion = Callable[[Tensor], Score]
CRITERIA: dict[str, Criterion] = {
    "ACT": act, "CLACT, published": clact_published, "CLACT, sequence": clact_sequence,
    "CLACT, causal": clact_causal, "Amber": amber, "WINA": wina,
}  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """What calibration tells of one layer's inputs, over all tokens it read."""

    norms: Tensor  # [in] ‖x_:j‖
    largest: Tensor  # [in] max |x_j|
    median: float  # mean over tokens of the token's median (of two middle ones the lower)
    inputs: list[Tensor]  # [t, in] of the first sequences, on the CPU


# Weights: each takes a layer's weight [out, in], a pattern along its inputs and the layer's statistics, and
# gives a new weight. UserError: the inputs do not divide into groups.


def prune_magnitude(weight: Tensor, pattern: AnyPattern, _statistics: Statistics) -> Tensor:
    """Keep the largest |W_ij|; unstructured in each row, where others rank the whole matrix at once."""
    return weight * mask(weight.abs(), pattern)


def prune_wanda(weight: Tensor, pattern: AnyPattern, statistics: Statistics) -> Tensor:
    """Wanda: keep the largest |W_ij| · ‖x_:j‖ of each row (arXiv 2306.11695).

    With the dense model's inputs; the released code prunes block after block and reads what comes out.
    """
    return weight * mask(wide(weight).abs() * statistics.norms, pattern)


def prune_sparsegpt(weight: Tensor, pattern: AnyPattern, statistics: Statistics, block: int = 128) -> Tensor:
    """SparseGPT: keep the largest W_ij² / [H⁻¹]_jj, and let later columns take over (arXiv 2301.00774).

    H = XᵀX of the inputs kept in calibration, damped by 1% of its mean diagonal. N:M is chosen within each
    row, unstructured over ``block`` columns of all rows. UserError: calibration kept no inputs.
    """
    if not statistics.inputs:
        raise UserError("SparseGPT needs inputs and calibration kept none: calibrate with `keep` sequences.")
    left, width = wide(weight).clone(), weight.shape[1]  # what is left to do, and then what is made
    _, m = pattern.group(width, "The layer")
    rowwise = isinstance(pattern, Pattern)
    block = max(block // m, 1) * m if rowwise else block
    x = torch.cat(statistics.inputs).to(left)
    hessian = x.T @ x
    dead = hessian.diagonal() == 0  # inputs that are never there
    hessian.diagonal()[dead] = 1
    left[:, dead] = 0
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)  # row i: of H⁻¹ without the columns before i
    for start in range(0, width, block):
        part = left[:, start : start + block]  # a view, changed in place
        own, stop = factor[start : start + block, start : start + block], start + part.shape[1]
        kept, errors = torch.ones_like(part, dtype=torch.bool), torch.zeros_like(part)
        group = m if rowwise else part.shape[1]
        for i in range(part.shape[1]):
            if i % group == 0:
                scores = (part[:, i : i + group] / own.diagonal()[i : i + group]).abs()
                chosen = mask(scores if rowwise else scores.reshape(1, -1), pattern)
                kept[:, i : i + group] = chosen.view_as(scores)
            errors[:, i] = part[:, i] * ~kept[:, i] / own[i, i]
            part[:, i:] -= errors[:, i, None] * own[i, i:]
        part *= kept
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return left.to(weight)


PRUNERS: dict[str, Callable[[Tensor, AnyPattern, Statistics], Tensor]] = {
    "magnitude": prune_magnitude, "Wanda": prune_wanda, "SparseGPT": prune_sparsegpt,
}  # fmt: skip
