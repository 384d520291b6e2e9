"""Feature absorption: a latent for a child that takes over its parent's direction, so the parent's latent
stays silent.

SAEBench's first-letter measure on a hierarchy of any tokens: a parent class ("a number") and its children
(the numbers). On tokens of the parent that its probe recognises, what every latent adds along the probe's
direction tells who carries the parent: where the main latents do not and up to three others do, the parent is
absorbed.

Probe and main latents (:mod:`reasoning_features.foundations.hierarchies`) are chosen on other documents than
those that absorption is measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import encoded
from reasoning_features.diffing.presence import rotated
from reasoning_features.errors import UserError
from reasoning_features.foundations.dictionary_geometry import added_directions
from reasoning_features.foundations.hierarchies import LabelledTokens, Probe, main_latents
from reasoning_features.statistics import Interval, bootstrap_weights, percentile_interval

Array = NDArray[np.float64]
CARRIED = 0.4
"""Absorbing latents carry at least this share of the projection on the probe."""
ABSORBING, NEAR = 3, 0.1
"""At most so many latents absorb a token's parent, each at this cosine with the probe or nearer."""
NEAR_ALONE = 0.025
"""The cosine from which one latent alone absorbs fully."""
FEWEST = 20
"""A child with fewer tokens is left out."""
MEASURES = ("fraction", "absorbed", "full")
CHOICES = (0, 1, 2, 3, 4)
"""Seeds of the choices of main latents, each on other training documents, and of rotations of the decoder."""


def carried(
    features: Tensor, residual: Tensor, probe: Probe, directions: Tensor, main: NDArray[np.int64]
) -> pd.DataFrame:
    """Who carries the parent at each of some tokens.

    Args:
        features: ``[n, s]`` activations of the latents.
        residual: ``[n, d]`` the stream that they were read from.
        probe: for the parent class.
        directions: ``[s, d]`` what a unit of each latent adds.
        main: the main latents; there may be none.

    Returns:
        A row a token, in SAEBench's terms: ``projection`` of the stream on the probe's direction, about 0;
        ``main`` and ``absorbing``, the parts of it that the main latents add and that up to three others do;
        ``absorbed``: the others add at least 0.4 of the projection and the main latents less than all;
        ``fraction``: 0 where it is not absorbed, else absorbing / (absorbing + main), absorbing being no more
        than what main leaves and main no less than 0; ``full``: no main latent is active, and the one latent
        that adds most adds 0.4 of the projection.
    """
    along = directions.double() @ torch.from_numpy(probe.direction)
    cosines = along / directions.double().norm(dim=1).clamp(min=1e-12)
    others = cosines >= NEAR
    others[main] = False
    added = features.double() * along
    projection = residual.double() @ torch.from_numpy(probe.direction)
    by_main = added[:, main].sum(1)
    by_others = added[:, others].clamp(min=0).topk(min(ABSORBING, int(others.sum()))).values.sum(1)
    absorbed = (projection > 0) & (by_others >= CARRIED * projection) & (by_main < projection)
    rest = torch.minimum(by_others, projection - by_main)
    fraction = torch.where(absorbed, rest / (rest + by_main.clamp(min=0)), 0.0)
    most = added.max(1)
    alone = (cosines[most.indices] >= NEAR_ALONE) & (most.values >= CARRIED * projection) & (projection > 0)
    columns = {
        "projection": projection,
        "main": by_main,
        "absorbing": by_others,
        "absorbed": absorbed,
        "fraction": fraction,
        "full": alone & (features[:, main] == 0).all(1),
    }
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def absorption(
    sae: SAE[Any],
    probe: Probe,
    training: LabelledTokens,
    test: LabelledTokens,
    seeds: Sequence[int] = CHOICES,
) -> pd.DataFrame:
    """How often a dictionary absorbs a parent into its children.

    Rates are over the parent's tokens that the probe recognises, of each child, averaged over children, so
    that a common child counts as much as a rare one, and over choices of the main latents: which these are
    hangs on the documents they are chosen on, and the rate on them more than on the tokens.

    Args:
        sae: the dictionary.
        probe: from :func:`parent_probe`, of the training tokens.
        training: tokens that the main latents are chosen on.
        test: tokens of other documents.
        seeds: of the choices, and of a rotation for each.

    Returns:
        Rows of ``measure`` ("fraction", SAEBench's and the paper's; "absorbed"; "full"), ``estimate``,
        ``low``, ``high`` (95%, over documents and choices together), ``n`` (documents), ``children``,
        ``tokens``; the controls ``rotated`` (the same activations with randomly rotated directions: what the
        thresholds let through) and ``no main latents`` (were none taken for main: the most that there is to
        absorb); and over choices the mean number of ``main latents`` and their ``F1``: where that is low no
        latent stands for the parent, and a high rate says that it is split among its children.

    Raises:
        UserError: no child has 20 tokens in the test documents that the probe recognises; or what
            :func:`main_latents` raises.
    """
    held = test.at(test.parent & (probe.score(test.residual) > 0))
    common = np.flatnonzero(np.bincount(held.children, minlength=1) >= FEWEST)
    if not len(common):
        raise UserError(
            f"No child has {FEWEST} tokens that the probe recognises: give more documents or wider children."
        )
    held = held.at(np.isin(held.children, common))
    chosen = [main_latents(sae, training, seed) for seed in seeds]
    mains, directions = [latents for latents, _ in chosen], added_directions(sae)
    none = np.empty(0, dtype=np.int64)
    readings = {
        "own": [(directions, main) for main in mains],
        "rotated": [(rotated(directions, seed), main) for seed, main in zip(seeds, mains, strict=True)],
        "no main latents": [(directions, none)],
    }
    read = _measures(sae, held, probe, [each for kept in readings.values() for each in kept])
    found = []
    for place, measure in enumerate(MEASURES):
        parts = np.split(read[:, :, place], np.cumsum([len(kept) for kept in readings.values()])[:-1])
        own, *controls = (macro_mean(part, held.children, held.documents) for part in parts)
        row = {"measure": measure, "estimate": own.estimate, "low": own.low, "high": own.high, "n": own.n}
        row |= {"children": len(common), "tokens": len(held.children)}
        row |= {name: each.estimate for name, each in zip(list(readings)[1:], controls, strict=True)}
        row["main latents"] = np.mean([len(main) for main in mains])
        found.append(row | {"F1": np.mean([reached for _, reached in chosen])})
    return pd.DataFrame(found)


def _measures(
    sae: SAE[Any],
    held: LabelledTokens,
    probe: Probe,
    readings: Sequence[tuple[Tensor, NDArray[np.int64]]],
) -> Array:
    """The measures ``[readings, n, 3]`` of :func:`carried` at every token, by directions and main latents."""
    parts: list[list[Array]] = [[] for _ in readings]
    for rows, features in encoded(sae, held.residual):
        for kept, (directions, main) in zip(parts, readings, strict=True):
            found = carried(features.cpu(), held.residual[rows], probe, directions, main)
            kept.append(found[list(MEASURES)].to_numpy(float))
    return np.stack([np.concatenate(kept) for kept in parts])


def macro_mean(
    values: Array,
    children: NDArray[np.int64],
    documents: NDArray[np.int64],
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean over children of the mean of tokens' values, averaged over ways to measure them.

    Args:
        values: ``[k, n]`` the values of tokens, measured in k ways.
        children: ``[n]`` the child of each token.
        documents: ``[n]`` the document of each token.
        n_resamples: in which documents and ways are drawn together. A child that a resample lacks is left out
            of that resample's mean.
        seed: of the resamples.
    """
    names, document = np.unique(documents, return_inverse=True)
    codes, child = np.unique(children, return_inverse=True)
    weights = bootstrap_weights(len(names), n_resamples, seed)
    counts = np.zeros((len(names), len(codes)))
    np.add.at(counts, (document, child), 1)
    drawn = weights @ counts
    estimates, resampled = [], []
    for each in values:
        sums = np.zeros_like(counts)
        np.add.at(sums, (document, child), each)
        means = np.divide(weights @ sums, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
        estimates.append((sums.sum(0) / counts.sum(0)).mean())
        resampled.append(np.nanmean(means, axis=1))
    of_ways = bootstrap_weights(len(values), n_resamples, seed + 1) / len(values)
    averaged = (of_ways * np.stack(resampled, axis=1)).sum(1)
    return percentile_interval(float(np.mean(estimates)), averaged, len(names))
