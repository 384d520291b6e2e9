"""What latents tell, and what tells them: k-sparse probing, and exact rules in the place of a judge.

**Sparse probing**, as in SAEBench (2503.09532). For every class of a labelling, against the rest, the k
latents whose means differ most between the two are chosen on training documents, and a logistic regression on
them alone is tested on others. The sanity checks (2602.14111) ask what such a number stands between: the
*ceiling* is a regression on the whole residual stream, the *floor* an autoencoder that gives the mean
whatever it reads: its latents are constant.

**Exact rules.** A language model that describes a latent from examples (Paulo et al., 2410.13928; SAEBench)
may see more or less than is there. The organism's texts are written by a known grammar, so descriptions can
be rules over a token's context, each exactly true or false at every token. On one half of the documents the
rule is chosen that best tells where the latent is active in balanced accuracy; its balanced accuracy on the
other half is the latent's *detection accuracy*. Two controls choose and test in the same way: firing
*shuffled* over a half's tokens, which leaves what a rule finds by chance; and firing of *another document* at
the same places, which leaves in it that a document has a beginning, a middle and an end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
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
from reasoning_features.statistics import percentile_interval
from reasoning_features.text.corpus import Corpus

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
# dictionaries that measures stand between: nothing is lost, and nothing is kept but the mean
CEILING, FLOOR = "residual stream", "mean reconstruction"
KS = (1, 5)  # how many latents a probe is given
TESTED = 0.4  # fraction of the documents that probes are tested on
AS_IT_IS, SHUFFLED, ANOTHER = "as it is", "shuffled", "another document"
FIRING = (AS_IT_IS, ANOTHER, SHUFFLED)
MINIMUM = 20  # tokens of each half on which a latent must be active, and on which it must not, to be judged


@dataclass(frozen=True)
class Labelling:
    """What holds at tokens, at most one thing at a token: the classes that probes tell apart, or rules.

    ``codes`` ``[n_tokens]`` say which of ``classes`` holds at each token; −1 where none does.
    """

    name: str
    codes: Codes
    classes: tuple[str, ...]


@dataclass(frozen=True)
class SparseProbes:
    """Balanced accuracy averaged over classes of every dictionary, labelling and k, ``[1 + resamples]``: of
    all test documents, and of each resample of them, the same for all.
    """

    accuracy: dict[tuple[str, str, int], Array]
    documents: int

    def table(self) -> pd.DataFrame:
        """A row a probe: ``balanced accuracy`` with its 95% ``low`` and ``high``, ``documents`` tested."""
        rows = [
            (*probe, *astuple(percentile_interval(values[0], values[1:], self.documents)))
            for probe, values in self.accuracy.items()
        ]
        columns = ["dictionary", "labelling", "k", "balanced accuracy", "low", "high", "documents"]
        return pd.DataFrame(rows, columns=columns)


def labellings(corpus: Corpus) -> list[Labelling]:
    """The reasoning step of every token, and the family of the document at its thinking tokens."""
    families, code = np.unique(corpus.domains, return_inverse=True)
    thinking = corpus.thinking & ~corpus.special
    return [
        Labelling("move", move_targets(corpus), corpus.move_names),
        Labelling("family", np.where(thinking, code[corpus.document_of], -1), tuple(families.tolist())),
    ]


def sparse_probes(
    saes: Mapping[str, SAE[Any]], activations: ActivationBatch, corpus: Corpus, seed: int = 0
) -> SparseProbes:
    """Probe every dictionary of raw activations, the residual stream and the mean for every class of all
    :func:`labellings`; ``seed`` divides the documents and draws resamples.

    A latent counts by its activation times the length of its decoder direction, in the stream's units, so
    that a dictionary scaled up and down again is the same dictionary. Besides ``saes`` there are the stream's
    own coordinates (``CEILING``: the k best, and all of them) and constant latents (``FLOOR``). UserError
    where a labelling has fewer than two classes, or one that is missing in training or test documents.
    """
    positions = activations.positions.numpy()
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    tested = np.random.default_rng(seed).permutation(len(names))[: max(1, round(TESTED * len(names)))]
    test_document = np.full(len(names), -1)
    test_document[tested] = np.arange(len(tested))
    weights = weights_by_document(len(tested), seed)
    accuracy: dict[tuple[str, str, int], Array] = {}
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        for name in (*saes, CEILING, FLOOR):
            ks: tuple[int, ...] = KS
            if name in saes:
                latents = scaled_latents(saes[name], activations.residual)
            elif name == CEILING:
                latents, ks = activations.residual.numpy(), (*KS, activations.residual.shape[1])
            else:
                latents = np.zeros((len(positions), max(KS)), np.float32)
            for labelling in labellings(corpus):
                codes = labelling.codes[positions]
                found = _probed(latents, codes, test_document[document], weights, ks, labelling.name)
                accuracy |= {(name, labelling.name, k): of_k for k, of_k in found.items()}
    return SparseProbes(accuracy, len(tested))


def scaled_latents(sae: SAE[Any], residual: torch.Tensor) -> NDArray[np.float32]:
    """Latents ``[n, f]`` of activations ``[n, d]`` in units of the stream, whatever scales the decoder."""
    scale = added_directions(sae).norm(dim=1)
    return np.concatenate([(values.float().cpu() * scale).numpy() for _, values in encoded(sae, residual)])


def _probed(
    latents: NDArray[np.float32],
    codes: Codes,
    test_document: Codes,
    weights: Array,
    ks: Sequence[int],
    labelling: str,
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


def rule_kinds(corpus: Corpus, tokenizer: Any) -> list[Labelling]:
    """The rules over a corpus' tokens, the plainest kind first: of equally good rules the first is chosen."""
    if corpus.styles is None:
        raise UserError(f"The corpus {corpus.name!r} has no styles, so rules about them cannot be judged.")
    ids, token = np.unique(corpus.tokens, return_inverse=True)
    words = [repr(tokenizer.decode([int(i)])) for i in ids]
    previous = np.where(corpus.position_of > 0, np.roll(token, 1), -1)
    move, moves = move_targets(corpus), corpus.move_names
    pairs, pair = np.unique(token * len(moves) + move, return_inverse=True)
    both = tuple(f"token is {words[p // len(moves)]} and move is {moves[p % len(moves)]}" for p in pairs)
    kinds = [
        Labelling("token", token, tuple(f"token is {word}" for word in words)),
        Labelling("move", move, tuple(f"move is {name}" for name in moves)),
        Labelling("next move", move_targets(corpus, offset=1), tuple(f"next move is {m}" for m in moves)),
    ]
    for name, values in (("family", corpus.domains), ("style", corpus.styles)):
        known, code = np.unique(values, return_inverse=True)
        rules = tuple(f"{name} is {value}" for value in known)
        kinds.append(Labelling(name, code[corpus.document_of], rules))
    return [
        *kinds,
        Labelling("previous token", previous, tuple(f"previous token is {word}" for word in words)),
        Labelling("token in move", np.where(move >= 0, pair, -1), both),
    ]


def judge(
    saes: Mapping[str, SAE[Any]],
    activations: ActivationBatch,
    corpus: Corpus,
    kinds: Sequence[Labelling],
    latents: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """The best rule of each of some latents of every dictionary, and how well it tells where they are active.

    At most ``latents`` of a dictionary are drawn, among those that can be judged (``MINIMUM``); ``seed``
    divides the documents, draws the latents and shuffles. ``kinds`` are the rules (:func:`rule_kinds`). Rows
    of ``dictionary``, ``firing``, ``latent``, ``density`` (fraction of tokens it is active on), ``kind`` and
    ``rule``, and balanced accuracies ``discovery`` and ``detection`` (on the half that did not choose it).
    """
    order = np.argsort(activations.positions.numpy(), kind="stable")
    positions = activations.positions.numpy()[order]
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    rules = [(kind.name, rule) for kind in kinds for rule in kind.classes]
    tables = []
    for name, sae in saes.items():
        rng = np.random.default_rng(seed)
        first = np.isin(document, rng.permutation(len(names))[: len(names) // 2])
        halves = [np.flatnonzero(first), np.flatnonzero(~first)]
        active = np.concatenate([(part > 0).cpu().numpy() for _, part in encoded(sae, activations.residual)])
        active = active[order]
        times = np.array([active[half].sum(0) for half in halves])
        sizes = np.array([[len(half)] for half in halves])
        able = np.flatnonzero(((times >= MINIMUM) & (sizes - times >= MINIMUM)).all(0))
        if not len(able):
            raise UserError(f"No latent of {name} is active on {MINIMUM} tokens of each half: add documents.")
        drawn = np.sort(rng.permutation(able)[:latents])
        fires, each = active[:, drawn], np.arange(len(drawn))
        for firing in FIRING:
            discovery, detected = (
                _accuracies(fires[half[_donors(firing, document[half], rng)]], kinds, positions[half])
                for half in halves
            )
            best = discovery.argmax(0)
            judged = {"dictionary": name, "firing": firing, "latent": drawn, "density": fires.mean(0)}
            judged |= {"kind": [rules[i][0] for i in best], "rule": [rules[i][1] for i in best]}
            judged |= {"discovery": discovery[best, each], "detection": detected[best, each]}
            tables.append(pd.DataFrame(judged))
    return pd.concat(tables, ignore_index=True)


def _donors(firing: str, document: Codes, rng: np.random.Generator) -> Codes:
    """Whose firing each token of a half is given ``[n]``: rows of the half."""
    rows = np.arange(len(document))
    if firing == AS_IT_IS:
        return rows
    if firing == SHUFFLED:
        return rng.permutation(rows)
    _, first, code, lengths = np.unique(document, return_index=True, return_inverse=True, return_counts=True)
    # each document takes the next one's of a random circle: none keeps its own
    circle = rng.permutation(len(first))
    other = np.empty_like(circle)
    other[circle] = np.roll(circle, 1)
    place = rows - first[code]
    return first[other[code]] + place % lengths[other[code]]


def _accuracies(fires: NDArray[np.bool_], kinds: Sequence[Labelling], positions: Codes) -> Array:
    """Balanced accuracy ``[rules, latents]`` of every rule for firing ``[n, latents]``; 1/2 if none holds."""
    n, active = len(fires), fires.sum(0)
    values = fires.astype(np.float32)  # sums of ones, exact up to 2²⁴
    found = []
    for kind in kinds:
        code = kind.codes[positions]
        rows = np.flatnonzero(code >= 0)
        holds = csr_matrix((np.ones(len(rows), np.float32), (code[rows], rows)), (len(kind.classes), n))
        both = (holds @ values).astype(np.float64)
        alone = np.bincount(code[rows], minlength=len(kind.classes))[:, None] - both
        found.append((1 + both / active - alone / (n - active)) / 2)
    return np.concatenate(found)
