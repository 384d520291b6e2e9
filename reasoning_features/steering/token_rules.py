"""Rules for what a condition's answers write: tokens biased, words banned, thinking or decisions forced.

Each is a condition's :class:`~reasoning_features.models.sampling.Rule`, whose rows are numbers of problems.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasoning_features.models.conditions import Condition
from reasoning_features.models.sampling import TEMPERATURE, Rule
from reasoning_features.organism import language
from reasoning_features.organism.language import END_THINK
from reasoning_features.organism.parser import DECISIONS, context_at_opener, first_tokens
from reasoning_features.settings import Settings
from reasoning_features.text.corpora import reasoning_corpus, solution_texts, thinking_texts
from reasoning_features.text.corpus import Corpus, token_bytes
from reasoning_features.text.vocabulary import draw_word_sets, lexicon, rank_words
from reasoning_features.text.words import WordIndex
from reasoning_features.truth.decisions import Rates

COUNTERPARTS = "counterparts of R"  # the neutral words of R's slots, where the organism has some
_MOSTLY = 0.5  # a token that begins banned words more often than this is forbidden
_SIDES = 1  # sets the random streams of sides apart from those that tokens are drawn from
_IN_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Bias(Rule):
    """Adds to the logits of some tokens for as long as the thinking has not ended."""

    nats: Mapping[int, float]  # token id → what is added to its logit, before the temperature divides it
    end_think: tuple[int, ...]  # the tokens that end the thinking

    def logits(self, logits: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor:
        thinking = torch.tensor([not self._ended(row) for row in written], device=logits.device)
        added = torch.zeros(logits.shape[1], dtype=logits.dtype, device=logits.device)
        added[list(self.nats)] = torch.tensor(list(self.nats.values())).to(added)
        return logits + thinking[:, None] * added

    def _ended(self, row: Sequence[int]) -> bool:
        n = len(self.end_think)
        return any(tuple(row[i : i + n]) == self.end_think for i in range(len(row) - n + 1))


def bias_to_words(
    tokenizer: Any, words: Sequence[str], nats: float, capitalised: Collection[str] = ()
) -> Bias:
    """A bias on the first token of every form of these words: in lower case and capitalised, with a space
    before it and without; of those ``capitalised`` (:meth:`WordIndex.occurrences`) of that form alone.
    """
    forms = [word.capitalize() for word in words]
    for word in {*words} - {*capitalised}:
        forms += [word, f" {word}", f" {word.capitalize()}"]
    first = sorted({tokenizer.encode(form, add_special_tokens=False)[0] for form in forms})
    return Bias(dict.fromkeys(first, nats), _end_think(tokenizer))


def bias_to_go_on(tokenizer: Any, nats: float) -> Bias:
    """Budget forcing by a bias: against the openers that give up and against the end of the thinking."""
    end, (_, giving_up) = _end_think(tokenizer), DECISIONS["persistence"]
    return Bias(dict.fromkeys([*first_tokens(tokenizer, giving_up), end[0]], -nats), end)


@dataclass(frozen=True)
class Ban(Rule):
    """Never lets some words be written: in any casing and spacing, and in any split into tokens.

    Tokens that mostly begin banned words are forbidden from the start: a model that may write "There" but
    not "fore" is left with half a word.
    """

    words: tuple[str, ...]  # or phrases, lower case
    beginnings: tuple[int, ...]  # tokens that are always forbidden, for what they begin
    pieces: tuple[str, ...] = field(repr=False)  # text of every token of the vocabulary
    _forbidden: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def logits(self, logits: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor:
        forbidden = torch.stack([self._forbidden_after(self._begun(row)) for row in written])
        # a model may have room for more tokens than its tokenizer has
        forbidden = torch.nn.functional.pad(forbidden, (0, logits.shape[1] - forbidden.shape[1]))
        return logits.masked_fill(forbidden.to(logits.device), -torch.inf)

    def _begun(self, written: Sequence[int]) -> str:
        """The beginning of a banned word that the text ends with, the longest; else all that matters of it.
        That is "_" after a letter, a digit or an underscore, where no word can begin, and "" elsewhere.
        """
        longest, text = max(map(len, self.words)), ""
        for token in reversed(written):
            if len(text) > longest:
                break
            text = _squeezed(self.pieces[token] + text) if token < len(self.pieces) else text
        for start in range(max(len(text) - longest, 0), len(text)):
            begins = start == 0 or not _IN_WORD.match(text[start - 1])
            if begins and any(word.startswith(text[start:]) for word in self.words):
                return text[start:]
        return "_" if text and _IN_WORD.match(text[-1]) else ""

    def _forbidden_after(self, begun: str) -> Tensor:
        """Which tokens are forbidden ``[vocabulary]``."""
        if begun not in self._forbidden:
            found = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, self.words))})(?!\w)")
            texts = [_squeezed(begun + piece) for piece in self.pieces]
            self._forbidden[begun] = torch.tensor([found.search(text) is not None for text in texts])
            self._forbidden[begun][list(self.beginnings)] = True
        return self._forbidden[begun]


def _squeezed(text: str) -> str:
    """Lower case, every run of white space one space."""
    return re.sub(r"\s+", " ", text.lower())


def ban(tokenizer: Any, words: Sequence[str], corpus: Corpus) -> Ban:
    """A ban of words or phrases; ``corpus``, text of the subject's kind, tells which tokens mostly begin a
    banned word.
    """
    index, size = WordIndex(corpus, tokenizer), int(corpus.tokens.max()) + 1
    first = np.concatenate([index.occurrences(word)[:, 0] for word in words])
    begun, written = (np.bincount(ids, minlength=size) for ids in (corpus.tokens[first], corpus.tokens))
    beginnings = np.flatnonzero(begun > _MOSTLY * written).tolist()
    return Ban(tuple(map(_squeezed, words)), tuple(beginnings), token_pieces(tokenizer))


def word_bans(settings: Settings, tokenizer: Any) -> list[Condition]:
    """Table 2's bans: of R, of ten random sets of as many words, and of R's counterparts where known."""
    ranking = rank_words(thinking_texts(settings, tokenizer), solution_texts(settings, tokenizer))
    drawn = draw_word_sets(ranking, 10, len(settings.words), settings.seed, settings.words)
    sets = {"R": settings.words} | {f"random {i}": words for i, words in enumerate(drawn)}
    twins = lexicon(settings).twins
    if set(settings.words) <= set(twins):
        sets[COUNTERPARTS] = [twins[word] for word in settings.words]
    text = reasoning_corpus(settings, tokenizer, "selection", settings.subject)
    return [Condition(name, rule=ban(tokenizer, words, text)) for name, words in sets.items()]


@dataclass(frozen=True)
class ForcedWait(Rule):
    """Thinks longer: the whole end of the thinking, the first times it is drawn, gives way to some tokens."""

    sequence: tuple[int, ...]  # the tokens that are written in its place
    times: int
    end_think: tuple[int, ...]  # the tokens that end the thinking
    _used: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _queue: dict[int, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def drawn(self, tokens: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor:
        return tokens.new_tensor(list(map(self._next, tokens.tolist(), rows, written)))

    def _next(self, token: int, problem: int, written: Sequence[int]) -> int:
        queue, used = self._queue.get(problem, ()), self._used.get(problem, 0)
        ends = (*written[len(written) - len(self.end_think) + 1 :], token) == self.end_think
        if not queue and ends and used < self.times:
            self._used[problem], queue = used + 1, self.sequence
        self._queue[problem] = queue[1:]
        return queue[0] if queue else token


def forced_wait(tokenizer: Any, times: int) -> ForcedWait:
    """One more "Wait," in the place of the end of the thinking, which begins a line."""
    wait = tuple(tokenizer.encode("Wait,", add_special_tokens=False))
    return ForcedWait(wait, times, _end_think(tokenizer))


@dataclass(frozen=True)
class ForcedRates(Rule):
    """Goes on or gives up at prescribed rates, whatever the model would do.

    At each dead end a side is drawn from a random stream of the problem and the dead end alone. The other
    side's openers are forbidden, their chance falls to the side that was drawn.
    """

    rates: Rates  # the chances to go on
    domains: tuple[str, ...]  # each problem's
    seed: int
    sides: tuple[tuple[int, ...], tuple[int, ...]]  # token ids of openers that go on, and that give up
    pieces: tuple[str, ...] = field(repr=False)  # text of every token of the vocabulary

    @cached_property
    def _before(self) -> frozenset[int]:
        """The tokens with which a marker may just have ended: an opener follows one."""
        markers = [f" {word}" for word in (*language.MARKERS_CAREFUL, *language.MARKERS_HASTY)]
        ends = {marker[place:] for marker in markers for place in range(len(marker))}
        return frozenset(token for token, piece in enumerate(self.pieces) if piece in ends)

    def logits(self, logits: Tensor, rows: Sequence[int], written: Sequence[Sequence[int]]) -> Tensor:
        changed = logits.clone()
        for row, (problem, tokens) in enumerate(zip(rows, written, strict=True)):
            if (dead_end := self._dead_end(tokens)) is None:
                continue
            taken, barred = self.sides if self.goes_on(problem, dead_end) else self.sides[::-1]
            scaled = logits[row].double() / TEMPERATURE
            gained = scaled[[*taken, *barred]].logsumexp(0) - scaled[list(taken)].logsumexp(0)
            changed[row, list(taken)] += (gained * TEMPERATURE).to(logits.dtype)
            changed[row, list(barred)] = -torch.inf
        return changed

    def goes_on(self, problem: int, dead_end: int) -> bool:
        """The side of a dead end (from 1) in the answer to a problem."""
        uniform = np.random.default_rng([self.seed, problem, _SIDES, dead_end]).random()
        return bool(uniform < self.rates.of(self.domains[problem], dead_end))

    def _dead_end(self, tokens: Sequence[int]) -> int | None:
        """The number of the dead end that the next token decides; None where it decides none."""
        if not tokens or tokens[-1] not in self._before:
            return None
        standing = context_at_opener("".join(self.pieces[token] for token in tokens))
        return standing.dead_ends if standing is not None and standing.asks("persistence") else None


def forced_rates(tokenizer: Any, rates: Rates, domains: Sequence[str], seed: int) -> ForcedRates:
    """Decisions of persistence at these rates, for problems of these domains."""
    going_on, giving_up = (tuple(first_tokens(tokenizer, openers)) for openers in DECISIONS["persistence"])
    return ForcedRates(rates, tuple(domains), seed, (going_on, giving_up), token_pieces(tokenizer))


def token_pieces(tokenizer: Any) -> tuple[str, ...]:
    """The text of every token of the vocabulary."""
    every = token_bytes(tokenizer, range(len(tokenizer)))
    return tuple(piece.decode("utf-8", "replace") for piece in every)


def _end_think(tokenizer: Any) -> tuple[int, ...]:
    return tuple(tokenizer.encode(END_THINK, add_special_tokens=False))
