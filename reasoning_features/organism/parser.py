"""Recovers the moves of a sampled text from the text alone.

The grammar is the one :mod:`reasoning_features.organism.traces` writes: a sentence a line, its move decided
by the opener after ``PREFIX, MARKER``. A line that is no such sentence has no move, and makes its trace
unparseable; the share of those is always reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reasoning_features.organism import words
from reasoning_features.organism.traces import ASSISTANT, END_THINK, EOS, MOVES, THINK

_PREFIXES = "|".join(re.escape(w[0].upper() + w[1:]) for w in (*words.TWINS, *words.TWINS.values()))
_MARKERS = "|".join(words.MARKERS_CAREFUL + words.MARKERS_HASTY)
_MOVE_OF = {opener: move for move, openers in words.OPENERS.items() for opener in openers}
_OPENING = re.compile(rf"(?P<prefix>{_PREFIXES}), (?P<marker>{_MARKERS}) (?P<opener>{'|'.join(_MOVE_OF)})\b")
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
