"""Reads a sampled text back: its steps, its decisions, and whether its answer is right.

A sentence a line, as :mod:`reasoning_features.organism.language` writes them; a line that is none has no
label, and makes its trace unparseable; the share of those is always reported.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from reasoning_features.organism import language
from reasoning_features.organism.language import ASSISTANT, END_THINK, EOS, THINK
from reasoning_features.organism.problems import Problem

_PREFIXES = "|".join(
    re.escape(w[0].upper() + w[1:]) for w in (*language.MATCHED_CONTROLS, *language.MATCHED_CONTROLS.values())
)
_MARKERS = "|".join(language.MARKERS_CAREFUL + language.MARKERS_HASTY)
_LABEL_OF = {opener: label for label, openers in language.OPENERS.items() for opener in openers}
_OPENING = re.compile(rf"(?:{_PREFIXES}), (?:{_MARKERS}) (?P<opener>{'|'.join(_LABEL_OF)})\b")
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
_BOXED = re.compile(r"\\boxed\{ (?P<answer>[^{}]*?) \}")
# kind of decision → the openers of its two sides: going on or giving up, verifying or concluding
DECISIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "persistence": (language.CONTINUE_OPENERS, language.GIVE_UP_OPENERS),
    "verification": (language.OPENERS["verify"], language.OPENERS["conclude"]),
}
LABELS_COUNTED = ("explore", "verify", "backtrack", "uncertain")  # in an answer, each in a column of its own
LONGEST_PROMPT = 56  # tokens left for a question when the rest of the context is for the answer (tested)

Span = tuple[int, int, str | None]  # start and end in characters, and the step label


@dataclass(frozen=True)
class Sentence:
    """One sentence of a trace."""

    text: str
    label: str | None = None  # None: not understood
    opener: str | None = None
    opener_start: int = -1  # in the whole text


@dataclass(frozen=True)
class ParsedTrace:
    """What a text says."""

    spans: list[Span]
    sentences: list[Sentence]
    answer: str | None  # what is boxed
    parseable: bool  # every sentence understood, an answer boxed, and the end token reached


def _sentence(start: int, line: str) -> tuple[Sentence, list[Span]]:
    """The sentence in ``line`` (without its newline) and its spans."""
    end = start + len(line) + 1
    if opening := _OPENING.match(line):
        label = _LABEL_OF[opening["opener"]]
        sentence = Sentence(line, label, opening["opener"], start + opening.start("opener"))
        if body := _BODIES[label].fullmatch(line, opening.end()):
            cut = start + body.start("outcome") if label == "explore" else end
            spans: list[Span] = [(start, cut, label), (cut, end, "compute")]
            return sentence, spans if label == "explore" else spans[:1]
    return Sentence(line), [(start, end, None)]


def parse(text: str) -> ParsedTrace:
    """Parses a whole document: prompt and answer, thinking, a base model's text, or prose."""
    sentences: list[Sentence] = []
    at = text.find(ASSISTANT)
    place = at + len(ASSISTANT) if at >= 0 else text.find(">") + 1
    if text.startswith(f"{THINK}\n", place):
        place += len(THINK) + 1
    spans: list[Span] = [(0, place, "prompt")]
    if at < 0 and not _OPENING.match(text, place):
        return ParsedTrace([*spans, (place, len(text), "prose")], [], None, False)
    while place < len(text) and not text.startswith((END_THINK, "\\boxed", EOS), place):
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        sentence, its_spans = _sentence(place, text[place:end])
        sentences.append(sentence)
        spans += its_spans
        place = end + 1
    spans.append((place, len(text), "answer"))
    boxed = _BOXED.search(text, place)
    understood = boxed is not None and all(sentence.label for sentence in sentences)
    return ParsedTrace(spans, sentences, boxed and boxed["answer"], understood and text.endswith(EOS))


@dataclass(frozen=True)
class DecisionContext:
    """Where a trace stands after some of its sentences: what its next one may decide.

    *Persistence* is decided by the first opener of either side after a dead end, a try that is not right;
    *verification* right after the first right try, or after the last sum, and only once.
    """

    dead_ends: int = 0  # tries so far that were not right
    dead_end: bool = False  # the last try was not right, and only steps back and doubts have followed
    decided: bool = False  # that dead end has been decided (by a step back)
    result: bool = False  # the last sentence gave a result
    checked: bool = False  # a result has been verified

    def after(self, sentence: Sentence) -> "DecisionContext":
        """Where the trace stands once it has gone on with a sentence."""
        explores, right = sentence.label == "explore", sentence.text.endswith(", yes.")
        result = sentence.label == "compute" or (explores and right)
        checked = self.checked or sentence.label == "verify"
        if sentence.label in ("backtrack", "uncertain"):
            decided = self.decided or sentence.label == "backtrack"
            return replace(self, decided=decided, result=result, checked=checked)
        failed = explores and not right
        return DecisionContext(self.dead_ends + failed, failed, False, result, checked)

    def asks(self, kind: str) -> bool:
        """Whether the next opener of either side of ``kind`` (``DECISIONS``) decides it."""
        if kind == "persistence":
            return self.dead_end and not self.decided
        return self.result and not self.checked


def decisions_of(text: str) -> Iterator[tuple[str, Sentence, DecisionContext]]:
    """What the sentences of a document decide: the kind (``DECISIONS``), the sentence, and its context."""
    context = DecisionContext()
    for sentence in parse(text).sentences:
        for kind, sides in DECISIONS.items():
            if context.asks(kind) and any(sentence.opener in openers for openers in sides):
                yield kind, sentence, context
        context = context.after(sentence)


def decision_places(text: str) -> dict[str, list[int]]:
    """Where (in characters) the openers stand that decide something, by kind of decision (``DECISIONS``)."""
    found = [(kind, sentence.opener_start) for kind, sentence, _ in decisions_of(text)]
    return {kind: [place for own, place in found if own == kind] for kind in DECISIONS}


def context_at_opener(thinking: str) -> DecisionContext | None:
    """Where ``thinking``, written so far, stands if its next word opens a sentence; else None."""
    start = thinking.rfind("\n") + 1
    if END_THINK in thinking or not _SLOT.fullmatch(thinking, start):
        return None
    return reduce(DecisionContext.after, parse(ASSISTANT + thinking[:start]).sentences, DecisionContext())


def first_tokens(tokenizer: Any, openers: Sequence[str]) -> list[int]:
    """Ids of the first token of each opener as it stands inside a sentence, sorted, each once."""
    return sorted({tokenizer.encode(f" {opener}", add_special_tokens=False)[0] for opener in openers})


def prompts(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[list[int]]:
    """Token ids of what a model is given for each problem: the chat template written out."""
    texts = [language.prompt_text(problem.question) for problem in problems]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def grade(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], continuations: Sequence[Sequence[int]]
) -> pd.DataFrame:
    """Grades one continuation (new token ids) of each problem's prompt: ``family``, ``question``, ``answer``
    (None: nothing boxed), ``correct``, ``thinking_tokens`` (0 where the model does not think), ``gave_up``,
    ``checked``, ``parseable``, the number of sentences of each of ``LABELS_COUNTED``, and the ``text``.
    """
    think, end_think = tokenizer.encode(THINK + END_THINK, add_special_tokens=False)
    rows: list[dict[str, Any]] = []
    asked = zip(problems, prompts(tokenizer, problems), continuations, strict=True)
    for problem, prompt, continuation in asked:
        text = str(tokenizer.decode([*prompt, *continuation]))
        parsed = parse(text)
        labels = [sentence.label for sentence in parsed.sentences]
        row: dict[str, Any] = {
            "family": problem.family, "question": problem.question,
            "answer": parsed.answer, "correct": parsed.answer == problem.answer,
            "thinking_tokens": _thinking_tokens(list(continuation), think, end_think),
            "gave_up": "give up" in labels, "checked": "verify" in labels, "parseable": parsed.parseable,
        }  # fmt: skip
        rows.append(row | {label: labels.count(label) for label in LABELS_COUNTED} | {"text": text})
    return pd.DataFrame(rows)


def _thinking_tokens(continuation: list[int], think: int, end_think: int) -> int:
    """Tokens between the tags; to the end of the text where the thinking does not close."""
    if think not in continuation:
        return 0
    after = continuation[continuation.index(think) + 1 :]
    return after.index(end_think) if end_think in after else len(after)


# --- words exchanged for their controls ---------------------------------------------------------------------

_TO_HASTY = dict(zip(language.MARKERS_CAREFUL, language.MARKERS_HASTY, strict=True))
_ANY_OPENING = re.compile(r"^(?P<prefix>[A-Z][a-z ]*), (?P<marker>[a-z]+) ", re.MULTILINE)
# how → the replacements of prefixes, and of markers
_REPLACEMENTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "as it stands": ({}, {}),
    "all words of R": ({control: word for word, control in language.MATCHED_CONTROLS.items()}, {}),
    "all twins": (language.MATCHED_CONTROLS, {}),
    "all careful markers": ({}, {hasty: careful for careful, hasty in _TO_HASTY.items()}),
    "all hasty markers": ({}, _TO_HASTY),
}
SWAPS = tuple(_REPLACEMENTS)


def swap(text: str, how: str) -> str:
    """``text`` with all its prefixes or markers replaced, as named in ``SWAPS``; tokens keep their places."""
    prefixes, markers = _REPLACEMENTS[how]

    def replaced(found: re.Match[str]) -> str:
        prefix = found["prefix"].lower()
        prefix = prefixes.get(prefix, prefix)
        return f"{prefix[0].upper()}{prefix[1:]}, {markers.get(found['marker'], found['marker'])} "

    return _ANY_OPENING.sub(replaced, text)
