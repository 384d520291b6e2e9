"""What an exact rule says of a latent: automatic interpretation by detection, with rules instead of a judge.

A language model that describes a latent from examples, and then tells from the description where the latent
is active (Paulo et al., 2410.13928; SAEBench), may see more or less than is there. The organism's texts are
written by a known grammar, so the descriptions can be a fixed family of rules over a token's context, each
exactly true or false at every token:

- *token*: the token is w;  *previous token*: the one before it in the document is w;
- *move*: the token's move is m;  *next move*: that of the token after it is m;
- *family*, *style*: the document's family is f, its hidden style is s;
- *token in move*: the token is w and its move is m.

On one half of the documents the rule is chosen that best tells where the latent is active (balanced accuracy,
so that a rare latent is not told by "never"); its balanced accuracy on the other half is the latent's
*detection accuracy*. Active means > 0, which is what the dictionary itself says and needs no threshold: a top
quantile would spare a latent its weak activations, which are part of every reconstruction.

Two controls choose and test in the same way: firing *shuffled* over a half's tokens, which leaves what a rule
finds by chance; and firing of *another document* at the same places, which leaves in it that a document has
a beginning, a middle and an end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sae_lens import SAE
from scipy.sparse import csr_matrix

from reasoning_features.dictionaries.autoencoder import encoded
from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.residual_stream.probes import move_targets
from reasoning_features.statistics import Interval, bootstrap_difference, bootstrap_mean
from reasoning_features.text.corpus import Corpus

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
AS_IT_IS, SHUFFLED, ANOTHER = "as it is", "shuffled", "another document"
FIRING = (AS_IT_IS, ANOTHER, SHUFFLED)
MINIMUM = 20
"""Tokens of each half on which a latent must be active, and on which it must not, to be judged."""


@dataclass(frozen=True)
class RuleKind:
    """Rules of one kind, of which at most one holds at a token.

    Attributes:
        name: the kind.
        codes: ``[n_tokens]`` which of ``rules`` holds at each token; -1 where none does.
        rules: what each says.
    """

    name: str
    codes: Codes
    rules: tuple[str, ...]


def rule_kinds(corpus: Corpus, tokenizer: Any) -> list[RuleKind]:
    """The rules over a corpus' tokens, the plainest kind first: of equally good rules the first is chosen.

    Raises:
        UserError: moves or styles of the corpus are not known.
    """
    if corpus.styles is None:
        raise UserError(f"The corpus {corpus.name!r} has no styles, so rules about them cannot be judged.")
    ids, token = np.unique(corpus.tokens, return_inverse=True)
    words = [repr(tokenizer.decode([int(i)])) for i in ids]
    previous = np.where(corpus.position_of > 0, np.roll(token, 1), -1)
    move, next_move = move_targets(corpus), move_targets(corpus, offset=1)
    moves = corpus.move_names
    kinds = [
        RuleKind("token", token, tuple(f"token is {word}" for word in words)),
        RuleKind("move", move, tuple(f"move is {name}" for name in moves)),
        RuleKind("next move", next_move, tuple(f"next move is {name}" for name in moves)),
        _of_documents(corpus, "family", corpus.domains),
        _of_documents(corpus, "style", corpus.styles),
        RuleKind("previous token", previous, tuple(f"previous token is {word}" for word in words)),
    ]
    pairs, pair = np.unique(token * len(moves) + move, return_inverse=True)
    said = tuple(f"token is {words[p // len(moves)]} and move is {moves[p % len(moves)]}" for p in pairs)
    return [*kinds, RuleKind("token in move", np.where(move >= 0, pair, -1), said)]


def _of_documents(corpus: Corpus, name: str, values: Sequence[str]) -> RuleKind:
    names, code = np.unique(values, return_inverse=True)
    return RuleKind(name, code[corpus.document_of], tuple(f"{name} is {value}" for value in names))


def judge(
    sae: SAE[Any],
    activations: ActivationBatch,
    corpus: Corpus,
    kinds: Sequence[RuleKind],
    latents: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """The best rule of each of some latents, and how well it tells where they are active.

    Args:
        sae: encodes raw activations.
        activations: the stream at tokens of the corpus, as
            :func:`reasoning_features.residual_stream.activations.collect` gives them.
        corpus: the documents.
        kinds: the rules (:func:`rule_kinds`).
        latents: at most so many are drawn, among those that are active on ``MINIMUM`` tokens of both halves
            and not active on as many.
        seed: divides the documents, draws the latents and shuffles.

    Returns:
        Rows of ``firing`` (``FIRING``), ``latent``, ``density`` (share of tokens it is active on), ``kind``
        and ``rule`` (the best on the discovery half), and balanced accuracies ``discovery`` and ``detection``
        (on the half that did not choose the rule).

    Raises:
        UserError: fewer than two documents, or no latent is active often enough.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(activations.positions.numpy(), kind="stable")
    positions = activations.positions.numpy()[order]
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    if len(names) < 2:
        raise UserError("A rule is chosen on one half of the documents and tested on the other: give two.")
    first = np.isin(document, rng.permutation(len(names))[: len(names) // 2])
    halves = [np.flatnonzero(first), np.flatnonzero(~first)]
    active = np.concatenate([(part > 0).cpu().numpy() for _, part in encoded(sae, activations.residual)])[
        order
    ]
    times = np.array([active[half].sum(0) for half in halves])
    sizes = np.array([[len(half)] for half in halves])
    able = np.flatnonzero(((times >= MINIMUM) & (sizes - times >= MINIMUM)).all(0))
    if not len(able):
        raise UserError(f"No latent is active on {MINIMUM} tokens of each half: give more documents.")
    drawn = np.sort(rng.permutation(able)[:latents])
    fires = active[:, drawn]
    kind_of = [kind.name for kind in kinds for _ in kind.rules]
    rules = [rule for kind in kinds for rule in kind.rules]
    tables = []
    for firing in FIRING:
        discovery, detected = (
            _accuracies(fires[half[_taken(firing, document[half], rng)]], kinds, positions[half])
            for half in halves
        )
        best, each = discovery.argmax(0), np.arange(len(drawn))
        judged = {"firing": firing, "latent": drawn, "density": fires.mean(0)}
        judged |= {"kind": [kind_of[i] for i in best], "rule": [rules[i] for i in best]}
        judged |= {"discovery": discovery[best, each], "detection": detected[best, each]}
        tables.append(pd.DataFrame(judged))
    return pd.concat(tables, ignore_index=True)


def _taken(firing: str, document: Codes, rng: np.random.Generator) -> Codes:
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


def _accuracies(fires: NDArray[np.bool_], kinds: Sequence[RuleKind], positions: Codes) -> Array:
    """Balanced accuracy ``[rules, latents]`` of every rule for firing ``[n, latents]``.

    A rule that holds at none of the tokens tells nothing: 1/2.
    """
    n, active = len(fires), fires.sum(0)
    values = fires.astype(np.float32)  # sums of ones, exact up to 2²⁴
    found = []
    for kind in kinds:
        code = kind.codes[positions]
        rows = np.flatnonzero(code >= 0)
        holds = csr_matrix((np.ones(len(rows), np.float32), (code[rows], rows)), (len(kind.rules), n))
        both = (holds @ values).astype(np.float64)
        alone = np.bincount(code[rows], minlength=len(kind.rules))[:, None] - both
        found.append((1 + both / active - alone / (n - active)) / 2)
    return np.concatenate(found)


def detection(judged: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """Mean detection accuracy of each dictionary's latents, and of its controls.

    Args:
        judged: tables of :func:`judge`, by dictionary.
        seed: of the bootstrap, which resamples latents.

    Returns:
        Rows of ``dictionary``, ``firing``, ``detection``, ``low``, ``high`` (95%), ``latents``.
    """
    rows = []
    for name, table in judged.items():
        for firing, held in table.groupby("firing", sort=False):
            found = bootstrap_mean(held["detection"], seed=seed)
            rows.append((name, firing, found.estimate, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=["dictionary", "firing", "detection", "low", "high", "latents"])


def excess(judged: Mapping[str, pd.DataFrame], name: str) -> pd.Series:
    """Detection accuracy of each latent of a dictionary less that of its control, firing of another document.

    Raises:
        UserError: the dictionary is not among those judged.
    """
    if name not in judged:
        raise UserError(f"The dictionary {name!r} was not judged: choose among {', '.join(judged)}.")
    table = judged[name].pivot(index="latent", columns="firing", values="detection")
    return table[AS_IT_IS] - table[ANOTHER]


def excess_difference(
    judged: Mapping[str, pd.DataFrame], one: str, other: str, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean :func:`excess` of one dictionary's latents less that of another's.

    Args:
        judged: tables of :func:`judge`, by dictionary.
        one, other: the dictionaries.
        seed: of the bootstrap, which resamples the latents of each on their own.
        level: of the interval.

    Raises:
        UserError: a dictionary is not among those judged.
    """
    first, second = (excess(judged, name) for name in (one, other))
    return bootstrap_difference(first, second, seed=seed, level=level)
