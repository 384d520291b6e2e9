"""Decisions of a text: the places where its next word settles what it does, and the model's log-odds there.

A decision has two sides, each a set of words that may come next. The organism's are known from its grammar:
*persistence*, to go on or give up after a dead end, and *verification*, to check a result or conclude. Other
text has none that are known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.organism.gate import swap
from reasoning_features.organism.parser import DECISIONS, decision_places, first_tokens
from reasoning_features.text.corpus import Corpus


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
"""Pair of wordings → the two ways (of :data:`reasoning_features.organism.gate.SWAPS`) to write a trace."""


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


def log_odds(logits: Tensor, decisions: Decisions) -> Tensor:
    """Log-odds in nats ``[...]`` of the positive over the negative side, from logits ``[..., V]``."""
    positive, negative = (
        logits[..., torch.from_numpy(side).to(logits.device)].float().logsumexp(-1)
        for side in (decisions.positive, decisions.negative)
    )
    return positive - negative
