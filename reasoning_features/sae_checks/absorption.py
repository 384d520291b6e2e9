"""Feature absorption: a latent for a child that takes over its parent's direction, so the parent's latent
stays silent.

SAEBench's first-letter measure on a hierarchy of any tokens: a parent class ("a number") and its children
(the numbers). A logistic probe on the residual stream stands for the parent, and so do the *main* latents,
which a sparse probe for the parent chooses. On tokens of the parent that the probe recognises, what every
latent adds along the probe's direction tells who carries the parent: where the main latents do not and up to
three others do, the parent is absorbed. Probe and main latents are chosen on other documents than those that
absorption is measured on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder import added_directions, encoded, encoded_columns
from reasoning_features.diffing.presence import rotated
from reasoning_features.errors import UserError
from reasoning_features.organism.language import MATCHED_CONTROLS, OPENERS
from reasoning_features.organism.parser import first_tokens
from reasoning_features.organism.training import LARGEST_NUMBER
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.residual_stream.probes import class_means, weights_by_document
from reasoning_features.statistics import Interval, bootstrap_weights, percentile_interval
from reasoning_features.text.corpus import Corpus

Array = NDArray[np.float64]
Latents = NDArray[np.int64]
CARRIED = 0.4  # absorbing latents carry at least this share of the projection on the probe
ABSORBING = 3  # so many latents at most absorb a token's parent
NEAR = 0.1  # each at this cosine with the probe
NEAR_ALONE = 0.025  # the cosine from which one latent alone absorbs fully
FEWEST = 20  # a child with fewer tokens is left out
MEASURES = ["fraction", "absorbed", "full"]
# seeds of the choices of main latents, each on other training documents, and of rotations of the decoder
CHOICES = (0, 1, 2, 3, 4)
MOST_MAIN, GAIN = 10, 0.03  # main latents at most; one more as long as it raises F1 by more than this
L1_COST = 0.003  # inverse strength of the penalty under which latents are ranked: some tens keep a weight
TRAINING_TOKENS = 4000  # the most tokens of the parent, and of the rest, that train a probe
HELD_OUT = 0.3  # fraction of the training documents on which sparse probes are compared


@dataclass(frozen=True)
class LabelledTokens:
    """Tokens with their activations, the child that each is, and its document."""

    residual: Tensor  # [n, d]
    children: NDArray[np.int64]  # [n] −1 where it is none of the parent's
    documents: NDArray[np.int64]  # [n]

    @property
    def parent(self) -> NDArray[np.bool_]:
        """``[n]`` True at tokens of the parent class."""
        return self.children >= 0

    def at(self, rows: NDArray[Any]) -> LabelledTokens:
        """Some of the tokens, by number or by mask."""
        numbers = torch.from_numpy(np.flatnonzero(rows) if rows.dtype == bool else rows)
        return LabelledTokens(self.residual[numbers], self.children[rows], self.documents[rows])


@dataclass(frozen=True)
class Probe:
    """A linear probe: a token is the parent's where ``x · direction + bias > 0``; the direction is a unit."""

    direction: Array
    bias: float

    def score(self, residual: Tensor) -> Array:
        """Signed distance ``[n]`` of activations ``[n, d]`` from the probe's boundary."""
        return residual.double().numpy() @ self.direction + self.bias


def organism_hierarchies(tokenizer: Any) -> dict[str, dict[str, list[int]]]:
    """Hierarchies in the organism's traces: a parent's name → its children's names → their token ids.

    "a number": the numbers up to 140, one token each; "an opener": the reasoning steps, by the verbs that
    open their sentences; "a prefix": the words of R and their matched controls, by their first token where a
    sentence begins.
    """
    numbers = map(str, range(LARGEST_NUMBER + 1))
    prefixes = {word: word[0].upper() + word[1:] for pair in MATCHED_CONTROLS.items() for word in pair}
    return {
        "a number": {number: first_tokens(tokenizer, [number]) for number in numbers},
        "an opener": {step: first_tokens(tokenizer, verbs) for step, verbs in OPENERS.items()},
        "a prefix": {w: tokenizer.encode(s, add_special_tokens=False)[:1] for w, s in prefixes.items()},
    }


def label_tokens(
    activations: ActivationBatch, corpus: Corpus, groups: Mapping[str, Sequence[int]]
) -> LabelledTokens:
    """Tokens of a corpus by their ids; ``groups``: a child's name → its token ids, each in one group only."""
    code = {token: number for number, ids in enumerate(groups.values()) for token in ids}
    positions = activations.positions.numpy()
    children = [code.get(token, -1) for token in corpus.tokens[positions].tolist()]
    documents = corpus.document_of[positions]
    return LabelledTokens(activations.residual, np.array(children, dtype=np.int64), documents)


def parent_probe(training: LabelledTokens, seed: int = 0) -> Probe:
    """A logistic probe for the parent class, on standardised activations, its direction that of raw ones."""
    tokens = _balanced(training, seed)
    residual, scaler = tokens.residual.numpy(), StandardScaler()
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        model = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.fit_transform(residual), tokens.parent)
    weights = model.coef_[0] / scaler.scale_
    norm = np.linalg.norm(weights)
    return Probe(weights / norm, float((model.intercept_[0] - scaler.mean_ @ weights) / norm))


def main_latents(sae: SAE[Any], training: LabelledTokens, seed: int = 0) -> tuple[Latents, float]:
    """Latents that stand for the parent, those of the smallest sparse probe that is nearly the best; and the
    F1 that a probe on them reaches on tokens as often of the parent as not. None, and 0, where no latent
    tells the parent from other tokens.

    An L1-penalised linear classifier on all latents ranks them by weight. Logistic probes on the first 1, 2,
    … of them are fitted on some of the training documents and compared by F1 on the others; one more latent
    is taken as long as it adds more than ``GAIN``.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(training.documents)
    judged = np.isin(training.documents, rng.permutation(names)[: round(HELD_OUT * len(names))])
    fitted, compared = (_balanced(training.at(part), seed) for part in (~judged, judged))
    values = torch.cat([part.float().cpu() for _, part in encoded(sae, fitted.residual)]).numpy()
    scale = values.std(0)
    scale[scale == 0] = 1
    with threadpool_limits(limits=1):
        classifier = LinearSVC(penalty="l1", dual=False, C=L1_COST, max_iter=5000, random_state=seed)
        weights = classifier.fit(values / scale, fitted.parent).coef_[0]
        ranked = np.argsort(-weights, kind="stable")[: min(MOST_MAIN, int((weights > 0).sum()))]
        if not len(ranked):
            return ranked, 0.0
        known = values[:, ranked] / scale[ranked]
        fresh = encoded_columns(sae, compared.residual, ranked).numpy() / scale[ranked]
        best, kept = -np.inf, 0
        for k in range(1, len(ranked) + 1):
            sparse = LogisticRegression(max_iter=500).fit(known[:, :k], fitted.parent)
            reached = f1_score(compared.parent, sparse.predict(fresh[:, :k]))
            if reached <= best + GAIN:
                break
            best, kept = reached, k
    return ranked[:kept], float(best)


def _balanced(tokens: LabelledTokens, seed: int) -> LabelledTokens:
    """Tokens of the parent and as many others, drawn at random, at most ``TRAINING_TOKENS`` of each."""
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(np.flatnonzero(tokens.parent == side)) for side in (True, False)]
    n = min(TRAINING_TOKENS, *map(len, sides))
    return tokens.at(np.sort(np.concatenate([side[:n] for side in sides])))


def carried(
    features: Tensor, residual: Tensor, probe: Probe, directions: Tensor, main: Latents
) -> pd.DataFrame:
    """Who carries the parent at each of some tokens: a row a token, in SAEBench's terms.

    ``features`` ``[n, s]`` are activations of the latents, read from ``residual`` ``[n, d]``, ``directions``
    ``[s, d]`` what a unit of each adds, ``main`` the main latents, of which there may be none. The columns
    ``main`` and ``absorbing`` are the parts of the stream's projection on the probe's direction, about 0,
    that the main latents add and that up to three others do; ``absorbed``: the others add at least 0.4 of the
    projection and the main latents less than all; ``fraction``: 0 where it is not absorbed, else absorbing /
    (absorbing + main), absorbing being no more than what main leaves and main no less than 0; ``full``: no
    main latent is active, and the one latent that adds most adds 0.4 of the projection.
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
    full = alone & (features[:, main] == 0).all(1)
    columns = {"main": by_main, "absorbing": by_others}
    columns |= {"absorbed": absorbed, "fraction": fraction, "full": full}
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def absorption(sae: SAE[Any], probe: Probe, training: LabelledTokens, test: LabelledTokens) -> pd.DataFrame:
    """How often a dictionary absorbs a parent into its children: a row a ``measure``, "fraction" (SAEBench's
    and the paper's), "absorbed" and "full".

    Rates are over the parent's tokens that the probe recognises, averaged over children, so that a common
    child counts as much as a rare one, and over choices of the main latents. Intervals (95%) are over ``n``
    documents and choices together. Controls: ``rotated``, with randomly rotated directions, is what the
    thresholds let through; ``no main latents``, were none taken for main, is the most that there is to
    absorb. ``F1`` is what a probe on the main latents reaches: where that is low no latent stands for the
    parent. UserError where no child has 20 test tokens that the probe recognises.
    """
    recognised = test.at(test.parent & (probe.score(test.residual) > 0))
    common = np.flatnonzero(np.bincount(recognised.children, minlength=1) >= FEWEST)
    if not len(common):
        raise UserError(
            f"No child has {FEWEST} tokens that the probe recognises: give more documents or wider children."
        )
    tokens = recognised.at(np.isin(recognised.children, common))
    chosen = [main_latents(sae, training, seed) for seed in CHOICES]
    mains, directions = [latents for latents, _ in chosen], added_directions(sae)
    readings = {
        "own": [(directions, main) for main in mains],
        "rotated": [(rotated(directions, seed), main) for seed, main in zip(CHOICES, mains, strict=True)],
        "no main latents": [(directions, np.empty(0, dtype=np.int64))],
    }
    means: dict[str, list[Interval]] = {}
    for name, ways in readings.items():
        parts = [
            [carried(part.cpu(), tokens.residual[rows], probe, added, main)[MEASURES] for added, main in ways]
            for rows, part in encoded(sae, tokens.residual)
        ]
        values = np.stack([pd.concat(way).to_numpy(float) for way in zip(*parts, strict=True)])
        means[name] = [
            macro_mean(each, tokens.children, tokens.documents) for each in values.transpose(2, 0, 1)
        ]
    counts = {"children": len(common), "tokens": len(tokens.children)}
    table = pd.DataFrame(means["own"]).assign(**counts)
    table.insert(0, "measure", MEASURES)
    for name in ("rotated", "no main latents"):
        table[name] = [mean.estimate for mean in means[name]]
    found = {"main latents": np.mean([len(main) for main in mains]), "F1": np.mean([f1 for _, f1 in chosen])}
    return table.assign(**found)


def macro_mean(values: Array, children: NDArray[np.int64], documents: NDArray[np.int64]) -> Interval:
    """Mean over children of the mean of tokens' values ``[k, n]``, averaged over k ways to measure them.

    Documents and ways are resampled together. A child that a resample lacks is left out of its mean.
    """
    names, document = np.unique(documents, return_inverse=True)
    weights = weights_by_document(len(names), 0)
    by_way = [np.nanmean(class_means(each, children, document, weights), axis=1) for each in values]
    means, of_ways = np.stack(by_way, axis=1), bootstrap_weights(len(values), 1000, 1) / len(values)
    return percentile_interval(means[0].mean(), (of_ways * means[1:]).sum(1), len(names))


def absorptions(
    saes: Mapping[str, SAE[Any]],
    hierarchies: Mapping[str, Mapping[str, Sequence[int]]],
    training: tuple[ActivationBatch, Corpus],
    test: tuple[ActivationBatch, Corpus],
    seed: int = 0,
) -> pd.DataFrame:
    """:func:`absorption` of every parent (:func:`organism_hierarchies`) by every ``dictionary``."""
    tables = []
    for parent, groups in tqdm(hierarchies.items(), desc="Absorption", unit="parent"):
        learnt, fresh = label_tokens(*training, groups), label_tokens(*test, groups)
        probe = parent_probe(learnt, seed)
        for name, sae in saes.items():
            tables.append(absorption(sae, probe, learnt, fresh).assign(dictionary=name, parent=parent))
    table = pd.concat(tables, ignore_index=True)
    return table[["dictionary", "parent", *table.columns.drop(["dictionary", "parent"])]]
