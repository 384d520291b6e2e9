"""Decisions of a text: the places where its next word settles what it does, and what tells their side.

A decision has two sides, each a set of words that may come next. The organism's are known from its grammar:
*persistence*, to go on or give up after a dead end, and *verification*, to check a result or conclude. Other
text has none that are known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.organism import parser
from reasoning_features.statistics import Flags, Ids
from reasoning_features.text.corpus import Corpus, last_before, sentence_starts
from reasoning_features.text.words import Mask

# decisions below which a rate of their own is not taken: that of the domain, or of all, stands in
FEWEST = 20
# style → how its prefixes and its markers are written (of ``organism.parser.SWAPS``)
WORDINGS = {"careful": ("all words of R", "all careful markers"), "hasty": ("all twins", "all hasty markers")}


@dataclass(frozen=True)
class Decisions:
    """The decisions of one kind in a corpus."""

    name: str  # "persistence" or "verification"
    corpus: Corpus  # the traces that hold them
    positions: Ids  # [n] of the token in ``corpus.tokens`` whose logits decide: the last before the opener
    documents: Ids  # [n] the document of each
    styles: list[str]  # each decision's hidden style, "" where it has none
    towards: Flags  # [n] True where the trace took the positive side (went on; verified)
    positive: Ids  # token ids that open the positive side
    negative: Ids  # token ids that open the other

    def __post_init__(self) -> None:
        if set(self.positive.tolist()) & set(self.negative.tolist()):
            raise ValueError(f"a token opens both sides of {self.name}, so its log-odds mean nothing")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def places(self) -> Ids:
        """Place of each decision in its own document, from 0 ``[n]``."""
        return self.positions - self.corpus.starts[self.documents]

    def select(self, which: Ids) -> "Decisions":
        """These decisions alone, in this order."""
        own = {name: getattr(self, name)[which] for name in ("positions", "documents", "towards")}
        return replace(self, styles=[self.styles[i] for i in which], **own)


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


def wordings(corpus: Corpus, tokenizer: Any) -> tuple[Corpus, Corpus]:
    """The organism's traces in the words of careful and in those of hasty traces, token for token. Raises
    ValueError: the tokenizer writes a word and its control with different numbers of tokens.
    """
    texts = corpus.texts(tokenizer)

    def written(name: str, prefixes: str, markers: str) -> Corpus:
        swapped = [parser.swap(parser.swap(text, prefixes), markers) for text in texts]
        ids = tokenizer(swapped, add_special_tokens=False)["input_ids"]
        if [len(document) for document in ids] != np.diff(corpus.starts).tolist():
            raise ValueError(f"in {name} words a trace has another number of tokens")
        return replace(corpus, name=f"{corpus.name}, {name}", tokens=np.concatenate(ids).astype(np.int32))

    careful, hasty = (written(name, *how) for name, how in WORDINGS.items())
    return careful, hasty


def balanced(decisions: Decisions, n: int, seed: int) -> Decisions:
    """``n`` decisions, as many of one style as of the other, drawn by seed and kept in the corpus' order.
    Raises UserError: a style has too few.
    """
    styles, rng, drawn = np.array(decisions.styles), np.random.default_rng(seed), []
    for name in sorted(set(decisions.styles)):
        own = np.flatnonzero(styles == name)
        if len(own) < n // 2:
            asked = f"{n // 2} decisions of {decisions.name} in {name} traces are asked for"
            raise UserError(f"{asked}, but there are {len(own)}: lower `decisions`, or take more documents.")
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

    def total(side: Ids) -> Tensor:
        return logits[..., torch.from_numpy(side).to(logits.device)].float().logsumexp(-1)

    return total(decisions.positive) - total(decisions.negative)


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
    """The rates of :func:`decision_rates`, places with fewer than ``FEWEST`` decisions pooled. Raises
    UserError: fewer decisions than that in all.
    """
    if (total := table["n"].sum()) < FEWEST:
        raise UserError(f"The answers hold {total} dead ends, too few for rates: take more problems.")
    counted = table.assign(went=table["went_on"] * table["n"])
    seen = counted.query("n >= @FEWEST").set_index(["domain", "dead_end"])["went_on"]
    pooled = counted.groupby("domain")[["went", "n"]].sum().query("n >= @FEWEST")
    overall = float(counted["went"].sum() / counted["n"].sum())
    return Rates(seen.to_dict(), (pooled["went"] / pooled["n"]).to_dict(), overall)
