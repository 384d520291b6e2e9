"""What latents tell, and what tells them: k-sparse probing, and exact rules in the place of a judge.

**Sparse probing**, as in SAEBench (2503.09532). For every class of a labelling, against the rest, the k
latents whose means differ most between the two are chosen on training documents, and a logistic regression on
them alone is tested on others. The sanity checks (2602.14111) ask what such a number stands between: the
*ceiling* is a regression on the whole residual stream, whose own k best coordinates are a dictionary that
nobody trained; the *floor* is an autoencoder that gives the mean whatever it reads: its latents are constant.

**Exact rules.** A language model that describes a latent from examples, and then tells from the description
where the latent is active (Paulo et al., 2410.13928; SAEBench), may see more or less than is there. The
organism's texts are written by a known grammar, so descriptions can be rules over a token's context, each
exactly true or false at every token: which token it is, and which the one before it; which reasoning step it
belongs to, and the token after it; both token and step; the document's family and its hidden style. On one
half of the documents the rule is chosen that best tells where the latent is active (balanced accuracy, so
that a rare latent is not told by "never"); its balanced accuracy on the other half is the latent's *detection
accuracy*. Active means > 0: a top quantile would spare a latent its weak activations, which are part of every
reconstruction. Two controls choose and test in the same way: firing *shuffled* over a half's tokens, which
leaves what a rule finds by chance; and firing of *another document* at the same places, which leaves in it
that a document has a beginning, a middle and an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from reasoning_features.dictionaries.autoencoder import encoded
from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.residual_stream.probes import move_targets
from reasoning_features.sae_checks.ortsae_metrics import added_directions
from reasoning_features.sae_checks.shipped import CEILING, FLOOR
from reasoning_features.statistics import bootstrap_mean, bootstrap_weights, percentile_interval
from reasoning_features.text.corpus import Corpus

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
KS = (1, 5)
"""How many latents a probe is given."""
TESTED = 0.4
"""Fraction of the documents that probes are tested on."""
PROBE = ["dictionary", "labelling", "k"]
AS_IT_IS, SHUFFLED, ANOTHER = "as it is", "shuffled", "another document"
FIRING = (AS_IT_IS, ANOTHER, SHUFFLED)
MINIMUM = 20
"""Tokens of each half on which a latent must be active, and on which it must not, to be judged."""


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
    """Probes' answers on test documents, one probe a dictionary, labelling, k and class.

    Attributes:
        probes: a row a probe: ``dictionary``, ``labelling``, ``k``, ``class``, ``latents`` (those chosen).
        hits: ``[p, t, 2]`` tokens of each test document that each probe got right: of the class, of the rest.
        totals: ``[p, t, 2]`` tokens of each test document: of the class, of the rest.
    """

    probes: pd.DataFrame
    hits: Array
    totals: Array

    def averaged(self, seed: int = 0) -> pd.DataFrame:
        """Balanced accuracy averaged over classes, test documents resampled.

        Returns:
            Rows of ``dictionary``, ``labelling``, ``k``, ``balanced accuracy`` with its 95% ``low`` and
            ``high``, and ``documents`` tested.
        """
        documents, rows = self.totals.shape[1], []
        for dictionary, labelling, k in self.probes[PROBE].drop_duplicates().itertuples(index=False):
            means = self.resampled(dictionary, labelling, k, seed)
            found = percentile_interval(means[0], means[1:], documents)
            rows.append((dictionary, labelling, k, found.estimate, found.low, found.high, documents))
        return pd.DataFrame(rows, columns=[*PROBE, "balanced accuracy", "low", "high", "documents"])

    def resampled(self, dictionary: str, labelling: str, k: int, seed: int = 0) -> Array:
        """Balanced accuracy averaged over classes, of all test documents and of each resample.

        Two dictionaries lack the same classes in the same resamples, so their differences are paired.

        Raises:
            UserError: there is no such probe.
        """
        asked = (self.probes[PROBE] == [dictionary, labelling, k]).all(axis=1).to_numpy()
        if not asked.any():
            raise UserError(f"There is no probe of {dictionary} for {labelling} with k = {k}.")
        weights = weights_by_document(self.totals.shape[1], seed)
        hits, totals = (
            np.einsum("rt,pts->rps", weights, of[asked], optimize=True) for of in (self.hits, self.totals)
        )
        sides = np.divide(hits, totals, out=np.full_like(hits, np.nan), where=totals > 0)
        accuracy = sides.mean(-1)  # nan where a resample lacks the class: left out of its mean
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
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> SparseProbes:
    """Probe every dictionary, the residual stream and the mean for every class of every labelling.

    A latent counts by its activation times the length of its decoder direction, in the stream's units, so
    that a dictionary scaled up and down again is the same dictionary.

    Args:
        saes: autoencoders of raw activations, by name; all latents of one stand in memory at once.
        activations: the stream at tokens of the corpus.
        corpus: the documents, which ``seed`` divides.
        labels: what to probe for, by default :func:`labellings`; classes that no token has are left out.
        ks: how many latents a probe is given.

    Returns:
        The probes of ``saes``; those of the stream's own coordinates (``CEILING``: the k best, and all of
        them, which is the ceiling); and those of constant latents (``FLOOR``).

    Raises:
        UserError: fewer than two classes, or one that is missing among the training or the test documents.
    """
    positions = activations.positions.numpy()
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    tested = np.random.default_rng(seed).permutation(len(names))[: max(1, round(TESTED * len(names)))]
    test_document = np.full(len(names), -1)
    test_document[tested] = np.arange(len(tested))
    probes: list[tuple[Any, ...]] = []
    counts: list[tuple[Array, Array]] = []
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        for name in (*saes, CEILING, FLOOR):
            if name in saes:
                latents, few = scaled_latents(saes[name], activations.residual), list(ks)
            elif name == CEILING:
                latents, few = activations.residual.numpy(), [*ks, activations.residual.shape[1]]
            else:
                latents, few = np.zeros((len(positions), max(ks)), np.float32), list(ks)
            for labelling in labels or labellings(corpus):
                codes = labelling.codes[positions]
                probed = _probed(latents, codes, test_document[document], len(tested), few, labelling.name)
                for code, chosen, hits, totals in probed:
                    what = (labelling.name, len(chosen), labelling.classes[code])
                    probes.append((name, *what, tuple(chosen.tolist())))
                    counts.append((hits, totals))
    hits, totals = (np.array(of) for of in zip(*counts, strict=True))
    return SparseProbes(pd.DataFrame(probes, columns=[*PROBE, "class", "latents"]), hits, totals)


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
) -> Iterator[tuple[int, Codes, Array, Array]]:
    """For every class and k: its code, the latents chosen, hits and totals ``[t, 2]`` by test document."""
    labelled, held_out = codes >= 0, test_document >= 0
    training, test = labelled & ~held_out, labelled & held_out
    classes = np.unique(codes[labelled])
    for part, where in (("training", training), ("test", test)):
        if len(classes) < 2 or len(np.unique(codes[where])) < len(classes):
            raise UserError(
                f"Probes for {labelling} need two classes or more, each among the {part} documents: "
                "take more documents."
            )
    known, fresh = latents[training], latents[test]
    true, at = codes[test], test_document[test]
    for code in classes:
        inside = codes[training] == code
        sums = inside.astype(np.float32) @ known
        difference = sums / inside.sum() - (known.sum(0) - sums) / (~inside).sum()
        order = np.argsort(-np.abs(difference), kind="stable")
        sides = (true == code, true != code)
        for k in ks:
            chosen = order[:k]
            scaler = StandardScaler().fit(known[:, chosen])
            model = LogisticRegression(class_weight="balanced", max_iter=500)
            model.fit(scaler.transform(known[:, chosen]), inside)
            right = model.predict(scaler.transform(fresh[:, chosen])) == sides[0]
            hits = np.array([np.bincount(at, right & side, n_tested) for side in sides], float)
            totals = np.array([np.bincount(at, side, n_tested) for side in sides], float)
            yield int(code), chosen.astype(np.int64), hits.T, totals.T


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

    Args:
        saes: encode raw activations, by name.
        activations: the stream at tokens of the corpus.
        corpus: the documents.
        kinds: the rules (:func:`rule_kinds`).
        latents: at most so many of a dictionary are drawn, among those that can be judged (``MINIMUM``).
        seed: divides the documents, draws the latents and shuffles.

    Returns:
        Rows of ``dictionary``, ``firing`` (``FIRING``), ``latent``, ``density`` (fraction of tokens it is
        active on), ``kind`` and ``rule`` (the best on the discovery half), and balanced accuracies
        ``discovery`` and ``detection`` (on the half that did not choose the rule).

    Raises:
        UserError: fewer than two documents, or no latent of a dictionary is active often enough.
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
    """Mean detection accuracy of each dictionary's latents (:func:`judge`), and of its controls.

    Returns:
        Rows of ``dictionary``, ``firing``, ``detection`` with ``low`` and ``high`` (95%, latents resampled),
        ``latents``.
    """
    rows = []
    for (name, firing), accuracies in judged.groupby(["dictionary", "firing"], sort=False)["detection"]:
        found = bootstrap_mean(accuracies, seed=seed)
        rows.append((name, firing, found.estimate, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=["dictionary", "firing", "detection", "low", "high", "latents"])


def excess(judged: pd.DataFrame, name: str) -> pd.Series:
    """Detection accuracy of a dictionary's latents less that of their control, another document's firing."""
    own = judged[judged["dictionary"] == name]
    table = own.pivot(index="latent", columns="firing", values="detection")
    return table[AS_IT_IS] - table[ANOTHER]
