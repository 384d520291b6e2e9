"""Base, unlearned models and Gold in one basis: are forgotten persons' features gone, silenced or moved?

One autoencoder, of Base's stream, reads all models' streams at the tokens that predict answers. The measure
of notebook 06, which calls a feature present where its activations correlate at 0.7, stands beside how
strongly features fire, which no correlation sees.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE
from torch import Tensor

from reasoning_features.dictionaries.evaluation import reconstruct
from reasoning_features.dictionaries.training import Recipe, train_autoencoder
from reasoning_features.diffing import presence
from reasoning_features.statistics import Array, Ids, bootstrap_ratio
from reasoning_features.unlearning.items import IGNORED, Encode, Inputs, Item, with_answers

LAYER = 2  # the block, of five from 0, whose stream the stored autoencoder reads
# ReLU: TopK has as many features active on every stream, so where one falls silent another must rise
RECIPE = Recipe("relu", d_sae=512, tokens=4_000_000, learning_rate=3e-3, l1=1.0)
BATCH = 32  # items that are read at once
SILENCED = 0.5  # of Base's activation


def _states(model: Any, encode: Encode, items: Sequence[Item], layer: int) -> Iterator[tuple[Inputs, Tensor]]:
    """Batches of items, and the stream ``[n, t, d]`` after a block; the last block's comes normalised."""
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        inputs = with_answers(encode, some)
        with torch.no_grad():
            outputs = model(**{**inputs, "labels": None}, output_hidden_states=True, use_cache=False)
        yield inputs, outputs.hidden_states[layer + 1].float()  # the first are the embeddings


def residual(model: Any, encode: Encode, items: Sequence[Item], layer: int) -> tuple[Tensor, Ids]:
    """The stream ``[m, d]`` after a block at the tokens that predict the answers, with or without an adapter,
    and each token's item, by its place among the items ``[m]``.
    """
    parts, counts = [], []
    for inputs, states in _states(model, encode, items, layer):
        wanted = inputs["labels"][:, 1:] != IGNORED
        parts.append(states[:, :-1][wanted])
        counts.append(wanted.sum(1).numpy())
    return torch.cat(parts), np.repeat(np.arange(len(items)), np.concatenate(counts))


def train_features(model: Any, encode: Encode, items: Sequence[Item], layer: int, name: str) -> SAE[Any]:
    """An autoencoder of a block's stream at all tokens of items but the first, which is always the same."""
    batches = _states(model, encode, items, layer)
    parts = [states[:, 1:][inputs["attention_mask"][:, 1:] > 0] for inputs, states in batches]
    return train_autoencoder(torch.cat(parts), RECIPE, name, f"blocks.{layer}.hook_resid_post").sae


@torch.no_grad()
def _by_item(sae: SAE[Any], stream: Tensor, places: Ids) -> Array:
    """Mean activation ``[items, f]`` over each item's tokens, of what :func:`residual` gives."""
    counts = torch.from_numpy(np.bincount(places))
    sums = torch.zeros(len(counts), sae.cfg.d_sae, dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(places), sae.encode(stream).double())
    return (sums / counts[:, None]).numpy()


def activations(sae: SAE[Any], model: Any, encode: Encode, items: Sequence[Item], layer: int) -> Array:
    """Mean activation ``[items, f]`` of each feature over the tokens that predict an item's answer."""
    return _by_item(sae, *residual(model, encode, items, layer))


def own_features(own: Array, others: Array, k: int = 20) -> Ids:
    """The k features whose :func:`activations` best tell some items ``[n, f]`` from others ``[m, f]``, the
    best first: (mean of own − mean of others) / √((variance of own + variance of others) / 2), or 0 / 0 = 0.
    """
    gap, spread = own.mean(0) - others.mean(0), np.sqrt((own.var(0) + others.var(0)) / 2)
    told = np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)
    return np.argsort(-told, kind="stable")[:k]


def bridge_table(
    sae: SAE[Any], models: Mapping[str, Any], encode: Encode, shown: Mapping[str, Sequence[Item]],
    own: Mapping[str, Ids], layer: int = LAYER,
) -> pd.DataFrame:  # fmt: skip
    """A row a model, Base first, and group of features: ``own``, each on its group's items ``shown``, the
    forgotten first; and as many random ones, as often active in Base on the forgotten's items as theirs.

    With a and b the mean activations on these items in a model and in Base: ``activation`` is Σ a / Σ b over
    the features (95% over features), ``others`` the same over all other features, ``silenced`` the share with
    a < b / 2. ``present`` is the share whose activations over the tokens of all items correlate with Base's
    at 0.7 or more, ``found`` that where any feature's do; ``explained`` is of a model's variance there.
    """
    its = {name: {g: residual(m, encode, shown[g], layer) for g in shown} for name, m in models.items()}
    base, forgotten = its[next(iter(models))], next(iter(shown))
    density, rows = reconstruct(sae, base[forgotten][0]).density, []
    random = presence.frequency_matched(own[forgotten], density, draws=1, seed=0)[0]
    groups = [*((group, group, own[group]) for group in shown), (presence.RANDOM, forgotten, random)]
    for name, streams in its.items():
        before, now = (torch.cat([stream for stream, _ in each.values()]) for each in (base, streams))
        for label, group, ids in groups:
            a, b = (_by_item(sae, *each[group]).mean(0) for each in (streams, base))
            alike = presence.activation_correlation(sae, before, sae, now, ids) >= presence.PAPER_THRESHOLD
            row = {"model": name, "features": label} | bootstrap_ratio(a[ids], b[ids]).row("activation")
            row["silenced"] = (a[ids] < SILENCED * b[ids]).mean()
            row |= {"present": alike[np.arange(len(ids)), ids].mean(), "found": alike.any(1).mean()}
            row["others"] = np.delete(a, ids).sum() / np.delete(b, ids).sum()
            rows.append(row | {"explained": reconstruct(sae, streams[group][0]).explained})
    return pd.DataFrame(rows)
