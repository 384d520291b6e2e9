"""Recovers the moves of a sampled text from the text alone.

The grammar is the one :mod:`reasoning_features.organism.language` writes: a sentence a line, its move decided
by the opener after ``PREFIX, MARKER``. A line that is no such sentence has no move, and makes its trace
unparseable; the share of those is always reported. The same text tells where a trace decides something.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reasoning_features.organism import language
from reasoning_features.organism.language import ASSISTANT, END_THINK, EOS, MOVES, THINK

_PREFIXES = "|".join(
    re.escape(w[0].upper() + w[1:]) for w in (*language.MATCHED_CONTROLS, *language.MATCHED_CONTROLS.values())
)
_MARKERS = "|".join(language.MARKERS_CAREFUL + language.MARKERS_HASTY)
_MOVE_OF = {opener: move for move, openers in language.OPENERS.items() for opener in openers}
_OPENING = re.compile(rf"(?P<prefix>{_PREFIXES}), (?P<marker>{_MARKERS}) (?P<opener>{'|'.join(_MOVE_OF)})\b")
_SLOT = re.compile(rf"(?:{_PREFIXES}), (?:{_MARKERS})")
_TRY = r" \d+(?: [-+*] \d+){0,2}"
_VERDICT = r", (?:yes|no|low|high)\."
_WORKING = r"(?: = \d+(?: [-+] \d+ = -?\d+)?)?"
_BODIES = {
    "explore": re.compile(rf"{_TRY}(?P<outcome>{_WORKING}{_VERDICT})"),
    "verify": re.compile(rf"{_TRY}{_WORKING}{_VERDICT}"),
    "compute": re.compile(r" \d+ \+ \d+ = \d+\."),
    "backtrack": re.compile(r" there\."),
    "uncertain": re.compile(r" that\."),
    "give up": re.compile(rf" with{_TRY}\."),
    "conclude": re.compile(rf"{_TRY}\."),
}
DECISIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "persistence": (language.CONTINUE_OPENERS, language.GIVE_UP_OPENERS),
    "verification": (language.OPENERS["verify"], language.OPENERS["conclude"]),
}
"""Kind of decision → the openers of its two sides: going on or giving up, verifying or concluding."""
_BOXED = re.compile(r"\\boxed\{ (?P<answer>[^{}]*?) \}")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a trace: where it starts in the text, its words and its move (None: not understood)."""

    start: int
    text: str
    move: str | None
    opener: str | None = None
    opener_start: int = -1


@dataclass(frozen=True)
class ParsedTrace:
    """What a text says.

    ``spans`` are (start, end, move) over the characters, ``answer`` what is boxed (None: nothing), ``ended``
    whether the text ran to its end token.
    """

    spans: tuple[tuple[int, int, str | None], ...]
    sentences: tuple[Sentence, ...]
    answer: str | None
    ended: bool

    @property
    def parseable(self) -> bool:
        """Every sentence understood, an answer boxed, and the end reached."""
        return self.ended and self.answer is not None and all(s.move is not None for s in self.sentences)

    @property
    def gave_up(self) -> bool:
        return any(s.move == "give up" for s in self.sentences)

    @property
    def checked(self) -> bool:
        return any(s.move == "verify" for s in self.sentences)


def _sentence(start: int, line: str) -> tuple[Sentence, list[tuple[int, int, str | None]]]:
    """The sentence in ``line`` (without its newline) and the spans of its moves."""
    end = start + len(line) + 1
    opening = _OPENING.match(line)
    if opening is None:
        return Sentence(start, line, None), [(start, end, None)]
    move = _MOVE_OF[opening["opener"]]
    body = _BODIES[move].fullmatch(line, opening.end())
    if body is None:
        return Sentence(start, line, None), [(start, end, None)]
    sentence = Sentence(start, line, move, opening["opener"], start + opening.start("opener"))
    if move == "explore":
        cut = start + body.start("outcome")
        return sentence, [(start, cut, move), (cut, end, "compute")]
    return sentence, [(start, end, move)]


def parse(text: str) -> ParsedTrace:
    """Parses a whole document: prompt and answer, thinking, a base model's text, or prose.

    Characters of a line that is not understood get move None.
    """
    spans: list[tuple[int, int, str | None]] = []
    sentences: list[Sentence] = []
    at = text.find(ASSISTANT)
    place = at + len(ASSISTANT) if at >= 0 else text.find(">") + 1
    if text.startswith(f"{THINK}\n", place):
        place += len(THINK) + 1
    spans.append((0, place, "prompt"))
    if at < 0 and not _OPENING.match(text, place):
        spans.append((place, len(text), "prose"))
        return ParsedTrace(tuple(spans), (), None, text.endswith(EOS))
    while place < len(text):
        if text.startswith((END_THINK, "\\boxed", EOS), place):
            break
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        sentence, found = _sentence(place, text[place:end])
        sentences.append(sentence)
        spans += found
        place = end + 1
    spans.append((place, len(text), "answer"))
    boxed = _BOXED.search(text, place)
    return ParsedTrace(tuple(spans), tuple(sentences), boxed["answer"] if boxed else None, text.endswith(EOS))


@dataclass(frozen=True)
class DecisionContext:
    """Where a trace stands after some of its sentences: what its next one may decide.

    *Persistence* is decided by the first opener of either side after a dead end, a try that is not right.
    *Verification* is decided right after the first right try, or after the last sum: a trace that has checked
    once does not decide it again.

    Attributes:
        dead_ends: tries so far that were not right.
        dead_end: the last try was not right, and only steps back and doubts have followed.
        decided: that dead end has been decided (by a step back).
        result: the last sentence gave a result.
        checked: a result has been verified.
    """

    dead_ends: int = 0
    dead_end: bool = False
    decided: bool = False
    result: bool = False
    checked: bool = False

    def after(self, sentence: Sentence) -> DecisionContext:
        """Where the trace stands once it has gone on with a sentence."""
        explores, right = sentence.move == "explore", sentence.text.endswith(", yes.")
        result = sentence.move == "compute" or (explores and right)
        checked = self.checked or sentence.move == "verify"
        if sentence.move in ("backtrack", "uncertain"):
            decided = self.decided or sentence.move == "backtrack"
            return replace(self, decided=decided, result=result, checked=checked)
        failed = explores and not right
        return DecisionContext(self.dead_ends + failed, failed, False, result, checked)

    def asks(self, kind: str) -> bool:
        """Whether the next opener of either side of ``kind`` (``DECISIONS``) decides it."""
        if kind == "persistence":
            return self.dead_end and not self.decided
        return self.result and not self.checked


def decisions_of(text: str) -> Iterator[tuple[str, Sentence, DecisionContext]]:
    """What the sentences of a document decide: the kind (``DECISIONS``), the sentence, and what it found."""
    context = DecisionContext()
    for sentence in parse(text).sentences:
        for kind, sides in DECISIONS.items():
            if context.asks(kind) and any(sentence.opener in openers for openers in sides):
                yield kind, sentence, context
        context = context.after(sentence)


def decision_places(text: str) -> dict[str, list[int]]:
    """Where (in characters) the openers stand that decide something, by kind of decision (``DECISIONS``)."""
    places: dict[str, list[int]] = {kind: [] for kind in DECISIONS}
    for kind, sentence, _ in decisions_of(text):
        places[kind].append(sentence.opener_start)
    return places


def context_at_opener(thinking: str) -> DecisionContext | None:
    """Where a trace stands whose next word opens a sentence; None where another word is next.

    ``thinking`` is what was written after the prompt so far. It is read by the rule of :func:`decisions_of`.
    """
    start = thinking.rfind("\n") + 1
    if END_THINK in thinking or not _SLOT.fullmatch(thinking, start):
        return None
    context = DecisionContext()
    for sentence in parse(ASSISTANT + thinking[:start]).sentences:
        context = context.after(sentence)
    return context


def first_tokens(tokenizer: Any, openers: Sequence[str]) -> list[int]:
    """Ids of the first token of each opener as it stands inside a sentence, sorted, each once."""
    return sorted({tokenizer.encode(f" {opener}", add_special_tokens=False)[0] for opener in openers})


def token_moves(parsed: ParsedTrace, offsets: list[tuple[int, int]]) -> list[int]:
    """The move code of every token, from its character offsets; −1 where the text was not understood."""
    codes: dict[str | None, int] = {move: code for code, move in enumerate(MOVES)}
    codes[None] = -1
    moves, spans, i = [], parsed.spans, 0
    for start, _ in offsets:
        while i + 1 < len(spans) and start >= spans[i][1]:
            i += 1
        moves.append(codes[spans[i][2]])
    return moves
