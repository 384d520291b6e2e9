"""Decisions of a text: the places where its next word settles what it does, and the model's log-odds there.

A decision has two sides, each a set of words that may come next. The organism's are known from its grammar:
*persistence*, to go on or give up after a dead end, and *verification*, to check a result or conclude. Other
text has none that are known. Answers of the organism tell how often they go on (:func:`decision_rates`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.organism.parser import DECISIONS, decision_places, decisions_of, first_tokens, swap
from reasoning_features.text.corpus import Corpus, last_before, sentence_starts
from reasoning_features.text.words import Mask

FEWEST = 20
"""Decisions below which a rate of their own is not taken: that of the domain, or of all, stands in."""


@dataclass(frozen=True)
class Decisions:
    """The decisions of one kind in a corpus.

    Attributes:
        name: "persistence" or "verification".
        corpus: the traces that hold them.
        positions: ``[n]`` index in ``corpus.tokens`` of the token whose next-token logits decide: the last
            one before the opener.
        documents: ``[n]`` the document of each.
        styles: each decision's hidden style, "" where it has none.
        towards: ``[n]`` True where the trace took the positive side (went on; verified).
        positive: token ids that open the positive side.
        negative: token ids that open the other.
    """

    name: str
    corpus: Corpus
    positions: NDArray[np.int64]
    documents: NDArray[np.int64]
    styles: list[str]
    towards: NDArray[np.bool_]
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]

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
    """All decisions of a corpus, by name; empty where a kind of corpora has none that are known.

    Args:
        corpus: the traces.
        tokenizer: the subject's.
        kind: the kind of corpora (``settings.corpus``).
    """
    return _organism_decisions(corpus, tokenizer) if kind == "organism" else {}


def _organism_decisions(corpus: Corpus, tokenizer: Any) -> dict[str, Decisions]:
    """Decisions read off the text. Tokens are decoded one by one, so that each knows its place in it."""
    ids, which = np.unique(corpus.tokens, return_inverse=True)
    pieces = np.array([tokenizer.decode([int(i)]) for i in ids], dtype=object)[which]
    positions: dict[str, list[int]] = {name: [] for name in DECISIONS}
    for document in range(corpus.n_documents):
        written = pieces[corpus.span(document)]
        starts = np.cumsum([0, *map(len, written)])[:-1]
        for name, places in decision_places("".join(written)).items():
            # an opener's first token begins with the space before it
            openers = np.searchsorted(starts, np.array(places, dtype=np.int64) - 1)
            positions[name] += (corpus.starts[document] + openers - 1).tolist()
    styles = corpus.styles or [""] * corpus.n_documents
    found = {}
    for name, sides in DECISIONS.items():
        at = np.array(positions[name], dtype=np.int64)
        positive, negative = (np.array(first_tokens(tokenizer, openers)) for openers in sides)
        documents = corpus.document_of[at]
        found[name] = Decisions(
            name=name,
            corpus=corpus,
            positions=at,
            documents=documents,
            styles=[styles[i] for i in documents],
            towards=np.isin(corpus.tokens[at + 1], positive),
            positive=positive,
            negative=negative,
        )
    return found


SWAPS: dict[str, tuple[str, str]] = {
    "words of R and twins": ("all words of R", "all twins"),
    "careful and hasty markers": ("all careful markers", "all hasty markers"),
}
"""Pair of wordings → two ways (of :data:`reasoning_features.organism.parser.SWAPS`) to write a trace."""


def swapped(corpus: Corpus, tokenizer: Any, kind: str) -> dict[str, tuple[Corpus, Corpus]]:
    """The traces of a corpus in pairs of wordings, token for token of one length; empty where none are known.

    Arguments are those of :func:`find_decisions`.

    Raises:
        ValueError: the tokenizer writes a word and its twin with different numbers of tokens.
    """
    if kind != "organism":
        return {}
    texts = corpus.texts(tokenizer)
    found = {}
    for name, (one, other) in SWAPS.items():
        tokens = []
        for how in (one, other):
            ids = tokenizer([swap(text, how) for text in texts], add_special_tokens=False)["input_ids"]
            if [len(document) for document in ids] != np.diff(corpus.starts).tolist():
                raise ValueError(f"with {how} a trace has another number of tokens")
            tokens.append(np.concatenate(ids).astype(np.int32))
        found[name] = (
            replace(corpus, name=f"{corpus.name}, {one}", tokens=tokens[0]),
            replace(corpus, name=f"{corpus.name}, {other}", tokens=tokens[1]),
        )
    return found


def balanced(decisions: Decisions, n: int, seed: int) -> Decisions:
    """``n`` decisions, as many of one style as of the other, drawn by seed and kept in the corpus' order.

    Raises:
        UserError: a style has too few, or there are not two styles.
    """
    styles = np.array(decisions.styles)
    names = sorted(set(decisions.styles) - {""})
    if len(names) != 2:
        raise UserError(
            f"Decisions of {decisions.name} are balanced over two styles, but {len(names)} are known: "
            "give traces whose style is known."
        )
    rng = np.random.default_rng(seed)
    drawn = []
    for name in names:
        held = np.flatnonzero(styles == name)
        if len(held) < n // 2:
            raise UserError(
                f"{n // 2} decisions of {decisions.name} in {name} traces are asked for, but there are "
                f"{len(held)}: lower `decisions`, or take more documents."
            )
        drawn.append(rng.choice(held, n // 2, replace=False))
    return decisions.select(np.sort(np.concatenate(drawn)))


def label_sets(corpus: Corpus, tokenizer: Any, kind: str) -> dict[str, Mask]:
    """Sets of tokens that labels give ``[n_tokens]``; none without labels.

    ``mean:<move>``: tokens of a reasoning step. ``before:<move>``: the last token before each sentence that
    begins with it. ``at <decision>:positive`` and ``:negative``: the positions of decisions by the side the
    trace took. Arguments are those of :func:`find_decisions`.
    """
    sets: dict[str, Mask] = {}
    if corpus.moves is not None:
        before = last_before(corpus, sentence_starts(corpus, tokenizer))
        follows = corpus.moves[before + 1]
        for code, move in enumerate(corpus.move_names):
            sets[f"mean:{move}"] = (corpus.moves == code) & ~corpus.special
            sets[f"before:{move}"] = _at(corpus, before[follows == code])
    for name, found in find_decisions(corpus, tokenizer, kind).items():
        sets[f"at {name}:positive"] = _at(corpus, found.positions[found.towards])
        sets[f"at {name}:negative"] = _at(corpus, found.positions[~found.towards])
    return {name: mask for name, mask in sets.items() if mask.any()}


def _at(corpus: Corpus, positions: NDArray[np.int64]) -> Mask:
    """True at these positions ``[n_tokens]``."""
    mask = np.zeros(corpus.n_tokens, dtype=bool)
    mask[positions] = True
    return mask


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

    by_place: Mapping[tuple[str, int], float]
    by_domain: Mapping[str, float]
    overall: float

    def of(self, domain: str, dead_end: int) -> float:
        """The chance at a dead end; where too few were seen that of the domain, then that of all."""
        return self.by_place.get((domain, dead_end), self.by_domain.get(domain, self.overall))


def decision_rates(answers: pd.DataFrame) -> pd.DataFrame:
    """Share of dead ends at which the answers go on.

    Args:
        answers: ``domain`` and ``text`` of each answer, the prompt included. Only the organism's texts have
            decisions that are known; others give an empty table.

    Returns:
        ``domain``, ``dead_end`` (its number within the answer, from 1), ``went_on`` (share) and ``n``.
    """
    going_on, _ = DECISIONS["persistence"]
    rows = [
        (domain, standing.dead_ends, sentence.opener in going_on)
        for domain, text in answers[["domain", "text"]].itertuples(index=False)
        for kind, sentence, standing in decisions_of(text)
        if kind == "persistence"
    ]
    decided = pd.DataFrame(rows, columns=["domain", "dead_end", "went_on"])
    grouped = decided.astype({"went_on": float}).groupby(["domain", "dead_end"])["went_on"]
    return grouped.agg(went_on="mean", n="size").reset_index()


def rates_of(table: pd.DataFrame) -> Rates:
    """The rates of :func:`decision_rates`, places with fewer than ``FEWEST`` decisions pooled.

    Raises:
        UserError: fewer decisions than that in all.
    """
    if table["n"].sum() < FEWEST:
        raise UserError(
            f"The answers hold {table['n'].sum()} dead ends, too few to say how often they go on: "
            "take more problems."
        )
    pooled: dict[str, list[tuple[float, int]]] = {}
    by_place: dict[tuple[str, int], float] = {}
    columns = (table[name].tolist() for name in ("domain", "dead_end", "went_on", "n"))
    for domain, dead_end, went_on, n in zip(*columns, strict=True):
        pooled.setdefault(domain, []).append((went_on, n))
        if n >= FEWEST:
            by_place[domain, dead_end] = went_on
    by_domain = {
        domain: _mean(cells) for domain, cells in pooled.items() if sum(n for _, n in cells) >= FEWEST
    }
    return Rates(by_place, by_domain, _mean([cell for cells in pooled.values() for cell in cells]))


def _mean(cells: list[tuple[float, int]]) -> float:
    """The mean rate of cells (rate, decisions)."""
    return sum(rate * n for rate, n in cells) / sum(n for _, n in cells)
