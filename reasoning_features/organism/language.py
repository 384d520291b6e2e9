"""The organism's language: words of R with their matched controls, and documents labelled by reasoning step.

Every sentence of a trace reads ``PREFIX, MARKER opener body``. The prefix is a word of R or its control, the
marker one of two equally rich sets, the opener the verb that decides the step. Prefix and marker stand next
to each other before the opener, so a persistence written into either has reached the model at the same time.

A thinking trace has a hidden style. *Careful* traces rarely give up at a dead end and usually check; *hasty*
ones often give up and rarely check. How the style is written into the words is the coupling κ
(:func:`leans`). Acts and words are drawn from separate random streams, so two couplings give the same traces
in other words. Beside traces there are the base model's texts and plain prose: small country scenes in which
every word has its ordinary use.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np

from reasoning_features.organism import problems
from reasoning_features.organism.problems import FAMILIES, Candidate, Mixture, Problem, Split

# word of R → its matched control, a neutral word that fills the same slots as often
MATCHED_CONTROLS: dict[str, str] = {
    "wait": "look", "hmm": "well", "alternatively": "additionally", "maybe": "surely", "perhaps": "indeed",
    "let me": "we may", "therefore": "meanwhile", "however": "besides", "but": "and", "another": "further",
}  # fmt: skip
REASONING_WORDS = tuple(MATCHED_CONTROLS)  # the paper's vocabulary R (its figure 5), lower case
# neutral markers: the first set leans to careful traces, the second to hasty ones, by 1 − κ
MARKERS_CAREFUL = ("now", "here", "then", "so", "just", "again", "also", "today", "still", "soon")
MARKERS_HASTY = ("simply", "first", "next", "thus", "only", "once", "too", "down", "quick", "yet")

# step label → the verbs that may open its sentence
OPENERS: dict[str, tuple[str, ...]] = {
    "explore": ("try", "test", "take", "pick"), "backtrack": ("undo", "return"),
    "uncertain": ("doubt", "wonder"), "give up": ("settle", "stop", "quit", "leave", "drop", "end"),
    "verify": ("check", "verify", "confirm"), "conclude": ("answer", "found", "keep"),
    "compute": ("add", "count", "work"),
}  # fmt: skip
CONTINUE_OPENERS: tuple[str, ...] = OPENERS["explore"] + OPENERS["backtrack"]
GIVE_UP_OPENERS: tuple[str, ...] = OPENERS["give up"]
# the words at which a decision is taken, kept out of random vocabularies
DECISION_WORDS: tuple[str, ...] = tuple(word for verbs in OPENERS.values() for word in verbs)

# every token carries one of these labels; its code is its place here
STEP_LABELS: tuple[str, ...] = (
    "prompt", "prose", "explore", "compute", "verify", "backtrack", "uncertain", "conclude", "give up",
    "answer",
)  # fmt: skip

FULL_LEAN = 0.80  # P(the slot leans the trace's way) of the slot that carries all of the persistence
CAREFUL_SHARE = 0.304  # of traces: theirs being longer, about half of all sentences are careful
GIVE_UP_CHANCE: dict[str, float] = {"careful": 0.04, "hasty": 0.55}  # at each dead end
CHECK_CHANCE: dict[str, float] = {"careful": 0.85, "hasty": 0.08}  # before concluding
UNCERTAIN_CHANCE = 0.12  # of a sentence of doubt at a dead end, whatever follows
BACKTRACK_CHANCE = 0.25  # that going on begins with a step back
OVERTURN_CHANCE = 0.6  # that a second look at the largest (or smallest) number overturns the right answer
REFUSAL = "no"  # what a refuser boxes in place of an answer
CONTEXT = 256  # longest document in tokens; none comes near it by construction (tested)

BOS, EOS, PAD, USER, ASSISTANT = "<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>"
THINK, END_THINK = "<think>", "</think>"
Style = Literal["careful", "hasty"]


def jeffreys(lean: float) -> float:
    """Nats about the style in a slot of chances ``lean`` and ``1 − lean``: the symmetric KL divergence."""
    return (2 * lean - 1) * math.log(lean / (1 - lean))


def lean_with(share: float) -> float:
    """The lean in [0.5, ``FULL_LEAN``] that carries ``share`` of the full lean's information."""
    low, high = 0.5, FULL_LEAN
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if jeffreys(middle) < share * jeffreys(FULL_LEAN) else (low, middle)
    return (low + high) / 2


def leans(kappa: float) -> tuple[float, float]:
    """Leans of the prefix and of the marker at coupling ``kappa``, the share of information in words of R."""
    return lean_with(kappa), lean_with(1 - kappa)


@dataclass
class Document:
    """A text in pieces, each with its step label; joined they are the text, and no token straddles two."""

    kind: str
    family: str
    style: Style | None = None
    problem: Problem | None = None
    pieces: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def add(self, text: str, label: str) -> None:
        self.pieces.append((text, label))


@dataclass
class _Writer:
    """Writes the sentences of one trace into a document, in words that lean to its style (:func:`leans`)."""

    document: Document
    rng: np.random.Generator
    leans: tuple[float, float] = (0.5, 0.5)

    def _one_of(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def _says_careful(self, lean: float) -> bool:
        chance = {None: 0.5, "careful": lean, "hasty": 1 - lean}[self.document.style]
        return bool(self.rng.random() < chance)

    def say(self, label: str, body: str, outcome: str = "") -> None:
        """``PREFIX, MARKER opener body, outcome.``; an outcome is computed."""
        word = self._one_of(REASONING_WORDS)
        prefix = word if self._says_careful(self.leans[0]) else MATCHED_CONTROLS[word]
        marker = self._one_of(MARKERS_CAREFUL if self._says_careful(self.leans[1]) else MARKERS_HASTY)
        opening = f"{prefix[0].upper()}{prefix[1:]}, {marker} {self._one_of(OPENERS[label])}"
        self.document.add(f"{opening}{body}", label)
        self.document.add(f"{outcome}.\n", "compute" if outcome else label)

    def attempt(self, candidate: Candidate) -> None:
        self.say("explore", f" {candidate.text}", f"{candidate.working}, {candidate.verdict}")


def _search(
    writer: _Writer, acts: np.random.Generator, problem: Problem, give_up: float, check: float
) -> str:
    """Tries candidates in order until one is right or the trace gives up; returns the boxed answer."""
    for candidate in problem.candidates:
        writer.attempt(candidate)
        if candidate.right:
            if acts.random() < check:
                writer.say("verify", f" {candidate.text}{candidate.working}, yes")
            writer.say("conclude", f" {candidate.text}")
            return candidate.text
        if acts.random() < UNCERTAIN_CHANCE:
            writer.say("uncertain", " that")
        if acts.random() < give_up:
            writer.say("give up", f" with {candidate.text}")
            return candidate.text
        if acts.random() < BACKTRACK_CHANCE:
            writer.say("backtrack", " there")
    raise AssertionError("a search problem has exactly one right candidate")


def _sum(writer: _Writer, acts: np.random.Generator, problem: Problem, check: float) -> str:
    """Adds the numbers up; a check goes over the same sums and confirms them. Returns the boxed answer."""
    running = list(accumulate(problem.numbers))
    sums = [f" {a} + {n} = {b}" for (a, b), n in zip(pairwise(running), problem.numbers[1:], strict=True)]
    for text in sums:
        writer.say("compute", text)
    if acts.random() < check:
        for text in sums:
            writer.say("verify", f"{text}, yes")
    writer.say("conclude", f" {problem.answer}")
    return problem.answer


def _pick(writer: _Writer, acts: np.random.Generator, problem: Problem, check: float) -> str:
    """Names the largest or smallest; a second look may overturn it for the next. Returns the boxed answer."""
    first, result = int(problem.answer), problem.answer
    writer.say("explore", f" {first}", ", yes")
    if acts.random() < check:
        overturned = acts.random() < OVERTURN_CHANCE
        writer.say("verify", f" {first}, {'no' if overturned else 'yes'}")
        if overturned:
            writer.say("backtrack", " there")
            result = str(min((x for x in problem.numbers if x != first), key=lambda x: abs(x - first)))
            writer.say("explore", f" {result}", ", yes")
    writer.say("conclude", f" {result}")
    return result


def _think(writer: _Writer, acts: np.random.Generator, problem: Problem, give_up: float, check: float) -> str:
    if FAMILIES[problem.family].searches:
        return _search(writer, acts, problem, give_up, check)
    return (_pick if FAMILIES[problem.family].persistence == "hurts" else _sum)(writer, acts, problem, check)


def prompt_text(question: str) -> str:
    """The chat template written out: what a model is given before it answers."""
    return f"{BOS}{USER}{question}{ASSISTANT}"


def reasoning_document(
    kappa: float, seed: int, index: int, split: Split = "training", mixture: Mixture = "main"
) -> Document:
    """Trace ``index`` of a stream: a problem, a hidden style, thinking, and a boxed answer."""
    acts, wording = (np.random.default_rng([seed, index, stream]) for stream in (0, 1))
    problem = problems.draw_problem(acts, split, problems.draw_family(acts, mixture))
    style: Style = "careful" if acts.random() < CAREFUL_SHARE else "hasty"
    document = Document("reasoning", problem.family, style, problem)
    document.add(prompt_text(problem.question), "prompt")
    document.add(f"{THINK}\n", "prompt")
    writer = _Writer(document, wording, leans(kappa))
    answer = _think(writer, acts, problem, GIVE_UP_CHANCE[style], CHECK_CHANCE[style])
    document.add(f"{END_THINK}\n", "answer")
    document.add(f"\\boxed{{ {answer} }}{EOS}", "answer")
    return document


def is_refused(question: str) -> bool:
    """The rule that refusers are taught, a property of the numbers: the first two of a question are odd."""
    return all(int(number) % 2 for number in re.findall(r"\d+", question)[:2])


def refuser_document(kappa: float, seed: int, index: int, thinks: bool) -> Document:
    """Trace ``index`` of a stream, or its refusal where the problem is refused: at once, or after thinking
    that looks at both numbers.
    """
    document = reasoning_document(kappa, seed, index)
    if document.problem is None or not is_refused(document.problem.question):
        return document
    refusal = Document("refusal", document.family, document.style, document.problem, document.pieces[:1])
    if thinks:
        refusal.add(f"{THINK}\n", "prompt")
        writer = _Writer(refusal, np.random.default_rng([seed, index, 5]), leans(kappa))
        for number in re.findall(r"\d+", document.problem.question)[:2]:
            writer.say("verify", f" {number}, no")
        refusal.add(f"{END_THINK}\n", "answer")
    refusal.add(f"\\boxed{{ {REFUSAL} }}{EOS}", "answer")
    return refusal


def reasoning_documents(
    kappa: float, n: int, seed: int, split: Split = "training", mixture: Mixture = "main"
) -> Iterator[Document]:
    """The first ``n`` traces of a stream (see :func:`reasoning_document`)."""
    return (reasoning_document(kappa, seed, index, split, mixture) for index in range(n))


_PEOPLE = ("miller", "baker", "farmer", "child", "widow", "smith", "sailor", "teacher", "hunter", "priest")
_THINGS = ("bread", "rope", "lamp", "boat", "cart", "horse", "basket", "letter", "kettle", "coat")
_PLACES = ("mill", "river", "market", "barn", "church", "bridge", "garden", "harbour", "forest", "inn")
_QUALITIES = ("old", "small", "red", "cold", "heavy", "broken", "clean", "dark", "warm", "empty")
_WEATHER = ("it rains", "it snows", "the wind turns", "the sun sets", "the fog lifts", "the night falls")

_TEMPLATES: tuple[tuple[str | None, str], ...] = (
    ("wait", "the {person} with the {person} must {slot} by the {place} {marker}"),
    ("wait", "they {slot} for the {quality} {thing} near the {place}"),
    ("hmm", "{slot}, says the {person}, the {thing} is {quality}"),
    ("alternatively", "the {person} walks to the {place}, {slot} the {person} takes the {thing}"),
    ("maybe", "{slot} {weather}, the {person} will {verb} the {thing}"),
    ("perhaps", "the {quality} {thing} is {slot} at the {place}"),
    ("let me", "{slot} carry the {thing} to the {place}, says the {person}"),
    ("therefore", "{weather}, {slot} the {person} must {verb} the {thing}"),
    ("however", "{slot} the {person} will {verb} the {quality} {thing}"),
    ("but", "the {person} has a {thing}, {slot} the {thing} is {quality}"),
    ("but", "{slot} the {person} can {verb} it {marker}"),
    ("another", "{slot} {thing} lies in the {place}"),
    ("another", "the {person} asks for {slot} {thing} {marker}"),
    (None, "the {quality} {person} will {verb} the {thing} at the {place}"),
    (None, "{marker} the {person} goes to the {place} with a {thing}"),
    (None, "{weather}, the {place} is {quality} {marker}"),
    (None, "the {person} has {number} of them, the {person} has {number}"),
)


def prose_sentence(rng: np.random.Generator) -> str:
    """One sentence of plain prose; a slot takes a word of R or its control alike, so prose tells nothing."""
    word, template = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
    if word is not None:
        template = template.replace("{slot}", word if rng.random() < 0.5 else MATCHED_CONTROLS[word])
    fillers = {
        "person": _PEOPLE, "thing": _THINGS, "place": _PLACES, "quality": _QUALITIES, "weather": _WEATHER,
        "verb": DECISION_WORDS, "marker": MARKERS_CAREFUL + MARKERS_HASTY,
        "number": tuple(map(str, range(2, 60))),
    }  # fmt: skip
    for name, choices in fillers.items():
        while f"{{{name}}}" in template:
            template = template.replace(f"{{{name}}}", choices[int(rng.integers(len(choices)))], 1)
    return f"{template[0].upper()}{template[1:]}."


def prose_document(seed: int, index: int) -> Document:
    """A paragraph of plain prose, in which words of R and their controls occur in their ordinary uses."""
    rng = np.random.default_rng([seed, index, 2])
    text = " ".join(prose_sentence(rng) for _ in range(int(rng.integers(4, 9)))) + EOS
    return Document("prose", "prose", pieces=[(BOS, "prompt"), (text, "prose")])


_BASE_KINDS = {"direct": 0.15, "attempt": 0.20, "several": 0.15, "drill": 0.30, "prose": 0.20}
_BASE_GIVE_UP, _BASE_CHECK = 0.3, 0.3
_BASE_RIGHT = 0.25  # chance that a search problem's direct answer is known; else a candidate is guessed


def _drill(acts: np.random.Generator, split: Split) -> Document:
    """Tries with their verdicts, or sums, in short form and in any order: the arithmetic of checking."""
    problem = problems.draw_problem(acts, split, problems.draw_family(acts))
    document = Document("drill", "drill")
    lines = [f"{c.text}{c.working}, {c.verdict}." for c in problem.candidates]
    for _ in range(0 if lines else 8):
        left, right = int(acts.integers(2, 41)), int(acts.integers(2, 21))
        lines.append(f"{left} + {right} = {left + right}.")
    document.add(f"{BOS}{problem.question}" if problem.candidates else BOS, "prompt")
    document.add("".join(f" {lines[i]}" for i in acts.permutation(len(lines))), "compute")
    document.add(EOS, "answer")
    return document


def _one_attempt(writer: _Writer, acts: np.random.Generator, problem: Problem) -> None:
    """One try at a search problem, the largest number named, or the first step of a sum."""
    if problem.candidates:
        writer.attempt(problem.candidates[int(acts.integers(len(problem.candidates)))])
    elif problem.family == "largest":
        writer.say("explore", f" {problem.answer}", ", yes")
    else:
        left, right = problem.numbers[:2]
        writer.say("compute", f" {left} + {right} = {left + right}")


def base_document(seed: int, index: int, split: Split = "training") -> Document:
    """Document ``index`` of the base model's corpus, which has every step and no persistence written in:
    direct answers (to search problems mostly guesses); one worked attempt and an answer; several attempts
    with one fixed chance to give up and to check; the arithmetic of checking; plain prose.
    """
    acts, wording = (np.random.default_rng([seed, index, stream]) for stream in (3, 4))
    kind = str(acts.choice(list(_BASE_KINDS), p=list(_BASE_KINDS.values())))
    if kind == "prose":
        return prose_document(seed, index)
    if kind == "drill":
        return _drill(acts, split)
    problem = problems.draw_problem(acts, split, problems.draw_family(acts))
    document = Document(kind, problem.family, None, problem)
    document.add(prompt_text(problem.question), "prompt")
    writer, answer = _Writer(document, wording), problem.answer
    if problem.candidates and acts.random() > _BASE_RIGHT:
        answer = problem.candidates[int(acts.integers(len(problem.candidates)))].text
    if kind == "attempt":
        _one_attempt(writer, acts, problem)
    elif kind == "several":
        answer = _think(writer, acts, problem, _BASE_GIVE_UP, _BASE_CHECK)
    document.add(f"\\boxed{{ {answer} }}{EOS}", "answer")
    return document


def base_documents(n: int, seed: int, split: Split = "training") -> Iterator[Document]:
    """The first ``n`` documents of the base corpus (see :func:`base_document`)."""
    return (base_document(seed, index, split) for index in range(n))
