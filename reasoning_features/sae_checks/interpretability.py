"""What latents tell, and what tells them: k-sparse probing, and exact rules in the place of a judge.

**Sparse probing**, as in SAEBench (2503.09532). For every class of a labelling, against the rest, the k
latents whose means differ most between the two are chosen on training documents, and a logistic regression on
them alone is tested on others. The *ceiling* is a regression on the whole residual stream, the *floor* an
autoencoder whose latents are constant.

**Exact rules.** The organism's texts are written by a known grammar, so a latent can be described by a rule
over a token's context that is exactly true or false. On one half of the documents the rule is chosen that
best tells where the latent is active; its balanced accuracy on the other half is the latent's *detection
accuracy*. The control chooses and tests in the same way, with firing of *another document* at the same
places: what is left in it is that a document has a beginning, a middle and an end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from reasoning_features.dictionaries.autoencoder import added_directions, encoded
from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.residual_stream.probes import class_means, move_targets, weights_by_document
from reasoning_features.statistics import Array, Flags, Ids, percentile_interval
from reasoning_features.text.corpus import Corpus

Latents = NDArray[np.float32]
Saes = Mapping[str, SAE[Any]]
# dictionaries that measures stand between: nothing is lost, and nothing is kept but the mean
CEILING, FLOOR = "residual stream", "mean reconstruction"
KS = (1, 5)  # how many latents a probe is given
TESTED = 0.4  # fraction of the documents that probes are tested on
AS_IT_IS, ANOTHER = "as it is", "another document"
MINIMUM = 20  # tokens of each half on which a latent must be active, and on which it must not, to be judged


def labellings(corpus: Corpus) -> dict[str, Ids]:
    """Classes of tokens ``[n_tokens]``, −1 for none: the reasoning step, and a thinking token's family."""
    family = np.unique(corpus.domains, return_inverse=True)[1][corpus.document_of]
    thinking = corpus.thinking & ~corpus.special
    return {"move": move_targets(corpus), "family": np.where(thinking, family, -1)}


def sparse_probes(saes: Saes, activations: ActivationBatch, corpus: Corpus, seed: int = 0) -> pd.DataFrame:
    """Probe dictionaries of raw activations for every class of all :func:`labellings`, beside the stream's
    own coordinates (``CEILING``: the k best, and all) and constant latents (``FLOOR``).

    Gives a row a ``dictionary``, ``labelling`` and ``k``: ``balanced accuracy``, mean over classes, with its
    95% ``low`` and ``high``, ``documents`` tested. ``seed`` divides the documents and draws resamples.
    UserError where a labelling has fewer than two classes in either part.
    """
    positions, residual = activations.positions.numpy(), activations.residual
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    tested = np.random.default_rng(seed).permutation(len(names))[: max(1, round(TESTED * len(names)))]
    test_document = np.full(len(names), -1)
    test_document[tested] = np.arange(len(tested))
    weights = weights_by_document(len(tested), seed)
    rows: list[tuple[Any, ...]] = []
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        for name in (*saes, CEILING):
            latents = scaled_latents(saes[name], residual) if name in saes else residual.numpy()
            ks = KS if name in saes else (*KS, latents.shape[1])
            for labelling, codes in labellings(corpus).items():
                found = _probed(latents, codes[positions], test_document[document], weights, ks, labelling)
                for k, values in found.items():
                    interval = percentile_interval(values[0], values[1:], len(tested))
                    rows.append((name, labelling, k, *astuple(interval)))
    even = (0.5, 0.5, 0.5, len(tested))  # of what is the same everywhere, whatever is said of it
    rows += [(FLOOR, labelling, k, *even) for labelling in labellings(corpus) for k in KS]
    columns = ["dictionary", "labelling", "k", "balanced accuracy", "low", "high", "documents"]
    return pd.DataFrame(rows, columns=columns)


def scaled_latents(sae: SAE[Any], residual: torch.Tensor) -> Latents:
    """Latents ``[n, f]`` of activations ``[n, d]`` in units of the stream, whatever scales the decoder."""
    scale = added_directions(sae).norm(dim=1)
    return np.concatenate([(values.float().cpu() * scale).numpy() for _, values in encoded(sae, residual)])


def _probed(
    latents: Latents, codes: Ids, test_document: Ids, weights: Array, ks: Sequence[int], labelling: str
) -> dict[int, Array]:
    """k → balanced accuracy averaged over classes ``[r]`` for weights of test documents ``[r, t]``.
    ``test_document`` ``[n]`` is −1 in training. A class that a resample lacks is left out of its mean.
    """
    labelled, held_out = codes >= 0, test_document >= 0
    training, test = labelled & ~held_out, labelled & held_out
    classes = np.unique(codes[labelled])
    if len(classes) < 2 or any(len(np.unique(codes[part])) < len(classes) for part in (training, test)):
        raise UserError(f"Probes for {labelling} need two classes or more in each part: take more documents.")
    known, fresh = latents[training], latents[test]
    by_class: dict[int, list[Array]] = {k: [] for k in ks}
    for code in classes:
        inside, truly = codes[training] == code, codes[test] == code
        sums = inside.astype(np.float32) @ known
        difference = sums / inside.sum() - (known.sum(0) - sums) / (~inside).sum()
        order = np.argsort(-np.abs(difference), kind="stable")
        for k in ks:
            regression = LogisticRegression(class_weight="balanced", max_iter=500)
            probe = make_pipeline(StandardScaler(), regression).fit(known[:, order[:k]], inside)
            right = probe.predict(fresh[:, order[:k]]) == truly
            by_class[k].append(class_means(right, truly, test_document[test], weights).mean(1))
    accuracy = {k: np.stack(found, axis=1) for k, found in by_class.items()}
    return {k: np.nanmean(found[~np.isnan(found).all(1)], axis=1) for k, found in accuracy.items()}


def rule_kinds(corpus: Corpus) -> list[Ids]:
    """Which rule of each kind, the plainest first, holds at a token ``[n_tokens]``, −1: none; of equally good
    ones the first is chosen. UserError: no styles.
    """
    if corpus.styles is None:
        raise UserError(f"The corpus {corpus.name!r} has no styles, so rules about them cannot be judged.")
    token, family, style = (
        np.unique(values, return_inverse=True)[1] for values in (corpus.tokens, corpus.domains, corpus.styles)
    )
    move, document = move_targets(corpus), corpus.document_of
    before = np.where(corpus.position_of > 0, np.roll(token, 1), -1)
    pair = np.unique(token * len(corpus.move_names) + move, return_inverse=True)[1]
    in_move = np.where(move >= 0, pair, -1)
    return [token, move, move_targets(corpus, offset=1), family[document], style[document], before, in_move]


def judge(
    saes: Saes, activations: ActivationBatch, corpus: Corpus, latents: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How well the best rule of each of some latents tells where it is active: rows of ``dictionary``,
    ``firing``, ``latent`` and ``detection``, balanced accuracy on the half that did not choose the rule.

    At most ``latents`` of a dictionary are drawn, among those that can be judged (``MINIMUM``); ``seed``
    divides the documents and draws. UserError where a dictionary has none, or as :func:`rule_kinds`.
    """
    order = np.argsort(activations.positions.numpy(), kind="stable")
    positions = activations.positions.numpy()[order]
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    kinds = [codes[positions] for codes in rule_kinds(corpus)]
    tables = []
    for name, sae in saes.items():
        rng = np.random.default_rng(seed)
        first = np.isin(document, rng.permutation(len(names))[: len(names) // 2])
        halves = [np.flatnonzero(first), np.flatnonzero(~first)]
        parts = ((values > 0).cpu().numpy() for _, values in encoded(sae, activations.residual))
        active = np.concatenate([*parts])[order]
        times = np.array([active[half].sum(0) for half in halves])
        sizes = np.array([[len(half)] for half in halves])
        able = np.flatnonzero(((times >= MINIMUM) & (sizes - times >= MINIMUM)).all(0))
        if not len(able):
            raise UserError(f"No latent of {name} is active on {MINIMUM} tokens of each half: add documents.")
        drawn = np.sort(rng.permutation(able)[:latents])
        fires = active[:, drawn]
        for firing in (AS_IT_IS, ANOTHER):
            whose = [half if firing == AS_IT_IS else half[_donors(document[half], rng)] for half in halves]
            discovery, detected = (
                _accuracies(fires[rows], kinds, half) for rows, half in zip(whose, halves, strict=True)
            )
            best = detected[discovery.argmax(0), np.arange(len(drawn))]
            judged = {"dictionary": name, "firing": firing, "latent": drawn, "detection": best}
            tables.append(pd.DataFrame(judged))
    return pd.concat(tables, ignore_index=True)


def _donors(document: Ids, rng: np.random.Generator) -> Ids:
    """Rows ``[n]`` of another document, at the same places, whose firing each token is given."""
    _, first, code, lengths = np.unique(document, return_index=True, return_inverse=True, return_counts=True)
    # each document takes the next one's of a random circle: none keeps its own
    circle = rng.permutation(len(first))
    other = np.empty_like(circle)
    other[circle] = np.roll(circle, 1)
    place = np.arange(len(document)) - first[code]
    return first[other[code]] + place % lengths[other[code]]


def _accuracies(fires: Flags, kinds: Sequence[Ids], half: Ids) -> Array:
    """Balanced accuracy ``[rules, latents]`` of every rule for firing ``[n, latents]`` of a half's tokens."""
    n, active = len(fires), fires.sum(0)
    values = fires.astype(np.float32)  # sums of ones, exact up to 2²⁴
    found = []
    for codes in kinds:
        code, rules = codes[half], codes.max() + 1
        rows = np.flatnonzero(code >= 0)
        holds = csr_matrix((np.ones(len(rows), np.float32), (code[rows], rows)), (rules, n))
        both = (holds @ values).astype(np.float64)
        alone = np.bincount(code[rows], minlength=rules)[:, None] - both
        found.append((1 + both / active - alone / (n - active)) / 2)
    return np.concatenate(found)
