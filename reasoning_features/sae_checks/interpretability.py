"""What latents tell, and what tells them: k-sparse probing, and exact rules in the place of a judge.

**Sparse probing**, as in SAEBench (2503.09532). For every class of a labelling, against the rest, the k
latents whose means differ most between the two are chosen on training documents, and a logistic regression on
them alone is tested on others. The sanity checks (2602.14111) ask what such a number stands between: the
*ceiling* is a regression on the whole residual stream, whose own k best coordinates are a dictionary that
nobody trained; the *floor* is an autoencoder that gives the mean whatever it reads: its latents are constant.

**Exact rules.** A language model that describes a latent from examples, and then tells from the description
where the latent is active (Paulo et al., 2410.13928; SAEBench), may see more or less than is there. The
organism's texts are written by a known grammar, so descriptions can be rules over a token's context, each
exactly true or false at every token: the token, the one before it, its reasoning step and the next token's,
token and step together, the document's family and its hidden style. On one half of the documents the rule is
chosen that best tells where the latent is active (> 0) in balanced accuracy; its balanced accuracy on the
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
from reasoning_features.residual_stream.probes import move_targets
from reasoning_features.statistics import bootstrap_mean, bootstrap_weights, percentile_interval
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


def weights_by_document(documents: int, seed: int, n_resamples: int = 1000) -> Array:
    """How often each document counts ``[1 + resamples, documents]``; first every one of them once."""
    return np.concatenate([np.ones((1, documents)), bootstrap_weights(documents, n_resamples, seed)])


@dataclass(frozen=True)
class SparseProbes:
    """Balanced accuracy averaged over classes of every dictionary, labelling and k, ``[1 + resamples]``: of
    all test documents, and of each resample of them. Resamples are the same for all, so differences are
    paired.
    """

    accuracy: dict[tuple[str, str, int], Array]
    documents: int

    def table(self) -> pd.DataFrame:
        """Rows of ``dictionary``, ``labelling``, ``k``, ``balanced accuracy`` with its 95% ``low`` and
        ``high``, and ``documents`` tested.
        """
        rows = [
            (*probe, *astuple(percentile_interval(values[0], values[1:], self.documents)))
            for probe, values in self.accuracy.items()
        ]
        columns = ["dictionary", "labelling", "k", "balanced accuracy", "low", "high", "documents"]
        return pd.DataFrame(rows, columns=columns)


def mean_accuracy(hits: Array, totals: Array, weights: Array) -> Array:
    """Balanced accuracy averaged over classes ``[r]`` for weights of documents ``[r, t]``.

    ``hits`` of ``totals`` ``[classes, t, 2]`` tokens of each document were right: of the class, of the rest.
    A class that a resample lacks is left out of its mean.
    """
    right, drawn = (np.einsum("rt,cts->rcs", weights, of, optimize=True) for of in (hits, totals))
    accuracy = np.divide(right, drawn, out=np.full_like(right, np.nan), where=drawn > 0).mean(-1)
    return np.nanmean(accuracy[~np.isnan(accuracy).all(1)], axis=1)


def labellings(corpus: Corpus) -> list[Labelling]:
    """The reasoning step of every token, and the family of the document at its thinking tokens."""
    families, code = np.unique(corpus.domains, return_inverse=True)
    thinking = corpus.thinking & ~corpus.special
    return [
        Labelling("move", move_targets(corpus), corpus.move_names),
        Labelling("family", np.where(thinking, code[corpus.document_of], -1), tuple(families.tolist())),
    ]


def sparse_probes(
    saes: Mapping[str, SAE[Any]],
    activations: ActivationBatch,
    corpus: Corpus,
    labels: Sequence[Labelling] | None = None,
    seed: int = 0,
) -> SparseProbes:
    """Probe every dictionary of raw activations, the residual stream and the mean for every class of every
    labelling (by default :func:`labellings`); ``seed`` divides the documents and draws resamples.

    A latent counts by its activation times the length of its decoder direction, in the stream's units, so
    that a dictionary scaled up and down again is the same dictionary. Besides ``saes`` there are the stream's
    own coordinates (``CEILING``: the k best, and all of them) and constant latents (``FLOOR``).

    Raises:
        UserError: fewer than two classes, or one that is missing among the training or the test documents.
    """
    positions = activations.positions.numpy()
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    tested = np.random.default_rng(seed).permutation(len(names))[: max(1, round(TESTED * len(names)))]
    test_document = np.full(len(names), -1)
    test_document[tested] = np.arange(len(tested))
    weights = weights_by_document(len(tested), seed)
    accuracy = {}
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        for name in (*saes, CEILING, FLOOR):
            ks: tuple[int, ...] = KS
            if name in saes:
                latents = scaled_latents(saes[name], activations.residual)
            elif name == CEILING:
                latents, ks = activations.residual.numpy(), (*KS, activations.residual.shape[1])
            else:
                latents = np.zeros((len(positions), max(KS)), np.float32)
            for labelling in labels or labellings(corpus):
                codes = labelling.codes[positions]
                hits, totals = _probed(
                    latents, codes, test_document[document], len(tested), ks, labelling.name
                )
                for k, of_k in zip(ks, hits, strict=True):
                    accuracy[name, labelling.name, k] = mean_accuracy(of_k, totals, weights)
    return SparseProbes(accuracy, len(tested))


def scaled_latents(sae: SAE[Any], residual: torch.Tensor) -> NDArray[np.float32]:
    """Latents ``[n, f]`` of activations ``[n, d]`` in units of the stream, whatever scales the decoder."""
    scale = added_directions(sae).norm(dim=1)
    return np.concatenate([(values.float().cpu() * scale).numpy() for _, values in encoded(sae, residual)])


def _probed(
    latents: NDArray[np.float32],
    codes: Codes,
    test_document: Codes,
    n_tested: int,
    ks: Sequence[int],
    labelling: str,
) -> tuple[Array, Array]:
    """Tokens of each test document that probes got right ``[ks, classes, t, 2]``, of the class and of the
    rest, and how many there are ``[classes, t, 2]``; ``test_document`` ``[n]`` is −1 in training.
    """
    labelled, held_out = codes >= 0, test_document >= 0
    training, test = labelled & ~held_out, labelled & held_out
    classes = np.unique(codes[labelled])
    for part, where in (("training", training), ("test", test)):
        if len(classes) < 2 or len(np.unique(codes[where])) < len(classes):
            raise UserError(
                f"Probes for {labelling} need two classes or more, each among the {part} documents: "
                "take more documents."
            )
    known, fresh, at = latents[training], latents[test], test_document[test]
    hits = np.empty((len(ks), len(classes), n_tested, 2))
    totals = np.empty((len(classes), n_tested, 2))
    for c, code in enumerate(classes):
        inside, truly = codes[training] == code, codes[test] == code
        sums = inside.astype(np.float32) @ known
        difference = sums / inside.sum() - (known.sum(0) - sums) / (~inside).sum()
        order = np.argsort(-np.abs(difference), kind="stable")
        totals[c] = np.stack([np.bincount(at, side, n_tested) for side in (truly, ~truly)], axis=1)
        for i, k in enumerate(ks):
            chosen = order[:k]
            regression = LogisticRegression(class_weight="balanced", max_iter=500)
            probe = make_pipeline(StandardScaler(), regression).fit(known[:, chosen], inside)
            right = probe.predict(fresh[:, chosen]) == truly
            both = [np.bincount(at, right & side, n_tested) for side in (truly, ~truly)]
            hits[i, c] = np.stack(both, axis=1)
    return hits, totals


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
    divides the documents, draws the latents and shuffles. ``kinds`` are the rules (:func:`rule_kinds`).

    Returns:
        Rows of ``dictionary``, ``firing`` (``FIRING``), ``latent``, ``density`` (fraction of tokens it is
        active on), ``kind`` and ``rule`` (the best on the discovery half), and balanced accuracies
        ``discovery`` and ``detection`` (on the half that did not choose the rule).
    """
    order = np.argsort(activations.positions.numpy(), kind="stable")
    positions = activations.positions.numpy()[order]
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    if len(names) < 2:
        raise UserError("A rule is chosen on one half of the documents and tested on the other: give two.")
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
            raise UserError(
                f"No latent of {name} is active on {MINIMUM} tokens of each half: give more documents."
            )
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


def detection(judged: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean detection accuracy of each dictionary's latents (:func:`judge`), and of its controls: rows of
    ``dictionary``, ``firing``, ``detection`` with ``low`` and ``high`` (95%, latents resampled), ``latents``.
    """
    grouped = judged.groupby(["dictionary", "firing"], sort=False)["detection"]
    rows = [(*about, *astuple(bootstrap_mean(of_latents, seed=seed))) for about, of_latents in grouped]
    return pd.DataFrame(rows, columns=["dictionary", "firing", "detection", "low", "high", "latents"])


def excess(judged: pd.DataFrame, name: str) -> pd.Series:
    """Detection accuracy of a dictionary's latents less that of their control, another document's firing."""
    own = judged[judged["dictionary"] == name]
    table = own.pivot(index="latent", columns="firing", values="detection")
    return table[AS_IT_IS] - table[ANOTHER]
