"""Decisions of a text: the places where its next word settles what it does, and what tells their side.

A decision has two sides, each a set of words that may come next. The organism's are known from its grammar:
*persistence*, to go on or give up after a dead end, and *verification*, to check a result or conclude. Other
text has none that are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import encoded_columns
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.organism import parser
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.text.corpus import Corpus, last_before, sentence_starts
from reasoning_features.text.words import Mask

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
# decisions below which a rate of their own is not taken: that of the domain, or of all, stands in
FEWEST = 20
# pair of wordings → two ways (of ``organism.parser.SWAPS``) to write a trace
SWAPS = {
    "words of R and twins": ("all words of R", "all twins"),
    "careful and hasty markers": ("all careful markers", "all hasty markers"),
}
# kind of decision → names of its negative and its positive side
SIDES = {"persistence": ("give up", "go on"), "verification": ("conclude", "verify")}


@dataclass(frozen=True)
class Decisions:
    """The decisions of one kind in a corpus."""

    name: str  # "persistence" or "verification"
    corpus: Corpus  # the traces that hold them
    positions: Ids  # [n] of the token in ``corpus.tokens`` whose logits decide: the last before the opener
    documents: Ids  # [n] the document of each
    styles: list[str]  # each decision's hidden style, "" where it has none
    towards: NDArray[np.bool_]  # [n] True where the trace took the positive side (went on; verified)
    positive: Ids  # token ids that open the positive side
    negative: Ids  # token ids that open the other

    def __post_init__(self) -> None:
        if set(self.positive.tolist()) & set(self.negative.tolist()):
            raise ValueError(f"a token opens both sides of {self.name}, so its log-odds mean nothing")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def places(self) -> NDArray[np.int64]:
        """Place of each decision in its own document, from 0 ``[n]``."""
        return self.positions - self.corpus.starts[self.documents]

    def select(self, which: NDArray[np.int64]) -> Decisions:
        """These decisions alone, in this order."""
        return replace(
            self,
            positions=self.positions[which],
            documents=self.documents[which],
            styles=[self.styles[i] for i in which],
            towards=self.towards[which],
        )


def find_decisions(corpus: Corpus, tokenizer: Any, kind: str) -> dict[str, Decisions]:
    """All decisions of a corpus, by name; none where they are not known in its kind (``settings.corpus``).

    Tokens are decoded one by one, so that each knows its place in the text.
    """
    if kind != "organism":
        return {}
    ids, which = np.unique(corpus.tokens, return_inverse=True)
    pieces = np.array([tokenizer.decode([int(i)]) for i in ids], dtype=object)[which]
    positions: dict[str, list[int]] = {name: [] for name in parser.DECISIONS}
    for document in range(corpus.n_documents):
        written = pieces[corpus.span(document)]
        starts = np.cumsum([0, *map(len, written)])[:-1]
        for name, places in parser.decision_places("".join(written)).items():
            # an opener's first token begins with the space before it
            openers = np.searchsorted(starts, np.array(places, dtype=np.int64) - 1)
            positions[name] += (corpus.starts[document] + openers - 1).tolist()
    styles, found = corpus.styles or [""] * corpus.n_documents, {}
    for name, sides in parser.DECISIONS.items():
        at = np.array(positions[name], dtype=np.int64)
        positive, negative = (np.array(parser.first_tokens(tokenizer, openers)) for openers in sides)
        documents, towards = corpus.document_of[at], np.isin(corpus.tokens[at + 1], positive)
        own = [styles[i] for i in documents]
        found[name] = Decisions(name, corpus, at, documents, own, towards, positive, negative)
    return found


def swapped(corpus: Corpus, tokenizer: Any, kind: str) -> dict[str, tuple[Corpus, Corpus]]:
    """The traces of a corpus in pairs of wordings, token for token of one length; none in other kinds.

    Raises ValueError: the tokenizer writes a word and its twin with different numbers of tokens.
    """
    if kind != "organism":
        return {}
    texts = corpus.texts(tokenizer)

    def written(how: str) -> Corpus:
        ids = tokenizer([parser.swap(text, how) for text in texts], add_special_tokens=False)["input_ids"]
        if [len(document) for document in ids] != np.diff(corpus.starts).tolist():
            raise ValueError(f"with {how} a trace has another number of tokens")
        return replace(corpus, name=f"{corpus.name}, {how}", tokens=np.concatenate(ids).astype(np.int32))

    return {name: (written(one), written(other)) for name, (one, other) in SWAPS.items()}


def balanced(decisions: Decisions, n: int, seed: int) -> Decisions:
    """``n`` decisions, as many of one style as of the other, drawn by seed and kept in the corpus' order.

    Raises UserError: a style has too few.
    """
    styles, rng, drawn = np.array(decisions.styles), np.random.default_rng(seed), []
    for name in sorted(set(decisions.styles)):
        own = np.flatnonzero(styles == name)
        if len(own) < n // 2:
            raise UserError(
                f"{n // 2} decisions of {decisions.name} in {name} traces are asked for, but there are "
                f"{len(own)}: lower `decisions`, or take more documents."
            )
        drawn.append(rng.choice(own, n // 2, replace=False))
    return decisions.select(np.sort(np.concatenate(drawn)))


def label_sets(corpus: Corpus, tokenizer: Any, kind: str) -> dict[str, Mask]:
    """Sets of tokens that labels give ``[n_tokens]``; none without labels.

    ``mean:<move>``: tokens of a reasoning step. ``before:<move>``: the last token before each sentence that
    begins with it. ``at <decision>:positive`` and ``:negative``: the positions of decisions by the side the
    trace took.
    """
    sets: dict[str, Mask] = {}
    token = np.arange(corpus.n_tokens)
    if corpus.moves is not None:
        before = last_before(corpus, sentence_starts(corpus, tokenizer))
        follows = corpus.moves[before + 1]
        for code, move in enumerate(corpus.move_names):
            sets[f"mean:{move}"] = (corpus.moves == code) & ~corpus.special
            sets[f"before:{move}"] = np.isin(token, before[follows == code])
    for name, found in find_decisions(corpus, tokenizer, kind).items():
        sets[f"at {name}:positive"] = np.isin(token, found.positions[found.towards])
        sets[f"at {name}:negative"] = np.isin(token, found.positions[~found.towards])
    return {name: mask for name, mask in sets.items() if mask.any()}


def log_odds(logits: Tensor, decisions: Decisions) -> Tensor:
    """Log-odds in nats ``[...]`` of the positive over the negative side, from logits ``[..., V]``."""
    positive, negative = (
        logits[..., torch.from_numpy(side).to(logits.device)].float().logsumexp(-1)
        for side in (decisions.positive, decisions.negative)
    )
    return positive - negative


@dataclass(frozen=True)
class Rates:
    """Chances to go on, by domain and by the number of the dead end (from 1)."""

    by_place: Mapping[Any, float]
    by_domain: Mapping[Any, float]
    overall: float

    def of(self, domain: str, dead_end: int) -> float:
        """The chance at a dead end; where too few were seen that of the domain, then that of all."""
        return self.by_place.get((domain, dead_end), self.by_domain.get(domain, self.overall))


def decision_rates(answers: pd.DataFrame) -> pd.DataFrame:
    """Share of dead ends at which the organism's answers go on, from each one's ``domain`` and ``text``.

    Columns ``domain``, ``dead_end`` (its number within the answer, from 1), ``went_on`` (share), ``n``.
    """
    going_on, _ = parser.DECISIONS["persistence"]
    rows = [
        (domain, standing.dead_ends, sentence.opener in going_on)
        for domain, text in answers[["domain", "text"]].itertuples(index=False)
        for kind, sentence, standing in parser.decisions_of(text)
        if kind == "persistence"
    ]
    decided = pd.DataFrame(rows, columns=["domain", "dead_end", "went_on"])
    grouped = decided.astype({"went_on": float}).groupby(["domain", "dead_end"])["went_on"]
    return grouped.agg(went_on="mean", n="size").reset_index()


def rates_of(table: pd.DataFrame) -> Rates:
    """The rates of :func:`decision_rates`, places with fewer than ``FEWEST`` decisions pooled.

    Raises UserError: fewer decisions than that in all.
    """
    if (total := table["n"].sum()) < FEWEST:
        raise UserError(f"The answers hold {total} dead ends, too few for rates: take more problems.")
    counted = table.assign(went=table["went_on"] * table["n"])
    seen = counted.query("n >= @FEWEST").set_index(["domain", "dead_end"])["went_on"]
    pooled = counted.groupby("domain")[["went", "n"]].sum().query("n >= @FEWEST")
    overall = float(counted["went"].sum() / counted["n"].sum())
    return Rates(seen.to_dict(), (pooled["went"] / pooled["n"]).to_dict(), overall)


# --- what features tell ------------------------------------------------------------------------------------


def auc_by_class(activations: NDArray[np.float32], classes: Ids, n_classes: int) -> Array:
    """Area under the ROC curve of each feature ``[n, f]`` for each class ``[n]`` against others ``[f, c]``.

    Ties count half. NaN for a class with no token, or with all of them.
    """
    ranks = rankdata(activations, axis=0)
    of_class = (classes[:, None] == np.arange(n_classes)).astype(np.float64)
    inside = of_class.sum(0)
    pairs = inside * (len(classes) - inside)
    above = ranks.T @ of_class - inside * (inside + 1) / 2
    return np.divide(above, pairs, out=np.full_like(above, np.nan), where=pairs > 0)


def best_class(
    activations: NDArray[np.float32], classes: Ids, first_half: NDArray[np.bool_], n_classes: int
) -> tuple[Ids, NDArray[np.bool_], Array]:
    """Each feature's best class ``[f]``, whether it is high there ``[f]``, and its held-out AUC ``[f]``.

    Class and side are those that are farthest from chance on ``first_half``; the AUC is of the other half,
    and below 0.5 where the choice does not carry over. Classes missing from either half are not chosen; the
    AUC is NaN where that leaves none.
    """
    first, second = (
        auc_by_class(activations[half], classes[half], n_classes) for half in (first_half, ~first_half)
    )
    best = np.where(np.isnan(first + second), -1, np.abs(first - 0.5)).argmax(axis=1)
    rows = np.arange(len(best))
    high, auc = first[rows, best] >= 0.5, second[rows, best]
    return best, high, np.where(high, auc, 1 - auc)


def targets(
    corpus: Corpus, tokenizer: Any, decisions: Mapping[str, Decisions]
) -> dict[str, tuple[tuple[str, ...], Ids]]:
    """What there is to tell at which tokens: label → names of its classes and class ``[n_tokens]``, -1: none.

    "current move" at every token of thinking; "next move", the move that the next sentence begins with, at
    the last token of every sentence; and each decision's side at its token. No moves, no labels of moves.
    """
    found: dict[str, tuple[tuple[str, ...], Ids]] = {}
    if corpus.moves is not None:
        usable = corpus.thinking & ~corpus.special
        found["current move"] = corpus.move_names, np.where(usable, corpus.moves, -1).astype(np.int64)
        following = np.full(corpus.n_tokens, -1, dtype=np.int64)
        last = last_before(corpus, sentence_starts(corpus, tokenizer))
        last = last[usable[last] & usable[last + 1]]
        following[last] = corpus.moves[last + 1]
        found["next move"] = corpus.move_names, following
    for name, own in decisions.items():
        sides = np.full(corpus.n_tokens, -1, dtype=np.int64)
        sides[own.positions] = own.towards
        found[name] = SIDES[name], sides
    return found


def decodability(
    subject: Subject,
    sae: Any,
    corpus: Corpus,
    decisions: Mapping[str, Decisions],
    features: Ids,
    batch_tokens: int,
    most_tokens: int,
    seed: int,
) -> pd.DataFrame:
    """The held-out AUC of every feature for moves and decisions, one row a label and feature.

    Decodable is not causal: a feature may tell what comes next and play no part in it. ``best``, the class
    that a feature tells best, and whether by being ``high``, is chosen on half of the traces and reported on
    the other (``auc``). Of a label with more than ``most_tokens`` so many are drawn.
    """
    labels = targets(corpus, subject.tokenizer, decisions)
    rng = np.random.default_rng(seed)
    first_half = rng.permutation(corpus.n_documents) < corpus.n_documents // 2
    drawn = {}
    for label, (_, classes) in labels.items():
        known = np.flatnonzero(classes >= 0)
        drawn[label] = np.sort(rng.choice(known, min(len(known), most_tokens), replace=False))
    include = np.isin(np.arange(corpus.n_tokens), np.concatenate(list(drawn.values())))
    read = collect(stream(subject, corpus, batch_tokens, include))
    parts = read.residual.split(batch_tokens)
    activations = torch.cat([encoded_columns(sae, part, features) for part in parts]).numpy()
    tables = []
    for label, (names, classes) in labels.items():
        at = drawn[label]
        half = first_half[corpus.document_of[at]]
        best, high, auc = best_class(activations[read.rows(at)], classes[at], half, len(names))
        table = pd.DataFrame({"feature": features, "label": label, "best": np.array(names)[best]})
        tables.append(table.assign(high=high, auc=auc, tokens=len(at)))
    return pd.concat(tables, ignore_index=True)
