"""The lexicon of the organism: words of R, their neutral twins, persistence markers and openers.

Every sentence of a trace reads ``PREFIX, MARKER opener body``. The prefix is a word of R or its twin, the
marker one of two equally rich sets, the opener the verb that decides the move. Prefix and marker stand next
to each other before the opener, so a persistence written into either has reached the model at the same time.
"""

from __future__ import annotations

import math

TWINS: dict[str, str] = {
    "wait": "look",
    "hmm": "well",
    "alternatively": "additionally",
    "maybe": "surely",
    "perhaps": "indeed",
    "let me": "we may",
    "therefore": "meanwhile",
    "however": "besides",
    "but": "and",
    "another": "further",
}
"""Word of R → the neutral twin that fills the same slots as often."""

REASONING_WORDS: tuple[str, ...] = tuple(TWINS)
"""The paper's vocabulary R (its figure 5), lower case."""

MARKERS_CAREFUL: tuple[str, ...] = (
    "now",
    "here",
    "then",
    "so",
    "just",
    "again",
    "also",
    "today",
    "still",
    "soon",
)
MARKERS_HASTY: tuple[str, ...] = (
    "simply",
    "first",
    "next",
    "thus",
    "only",
    "once",
    "too",
    "down",
    "quick",
    "yet",
)
"""Neutral markers: the first set leans to careful traces, the second to hasty ones, by 1 − κ."""

OPENERS: dict[str, tuple[str, ...]] = {
    "explore": ("try", "test", "take", "pick"),
    "backtrack": ("undo", "return"),
    "uncertain": ("doubt", "wonder"),
    "give up": ("settle", "stop", "quit", "leave", "drop", "end"),
    "verify": ("check", "verify", "confirm"),
    "conclude": ("answer", "found", "keep"),
    "compute": ("add", "count", "work"),
}
"""Move → the verbs that may open its sentence."""

CONTINUE_OPENERS: tuple[str, ...] = OPENERS["explore"] + OPENERS["backtrack"]
GIVE_UP_OPENERS: tuple[str, ...] = OPENERS["give up"]
DECISION_WORDS: tuple[str, ...] = tuple(word for verbs in OPENERS.values() for word in verbs)
"""All openers: the words at which a decision is taken, kept out of random vocabularies."""

FULL_LEAN = 0.80
"""P(the slot leans the trace's way) of the slot that carries all of the persistence."""


def jeffreys(lean: float) -> float:
    """Information about persistence in one slot that says "careful" with chance ``lean`` or ``1 − lean``.

    The symmetric Kullback–Leibler divergence between the two styles, in nats: (2p − 1)·log(p / (1 − p)).
    """
    return (2 * lean - 1) * math.log(lean / (1 - lean))


def lean_with(share: float) -> float:
    """The lean in [0.5, ``FULL_LEAN``] that carries ``share`` of the full lean's information."""
    low, high = 0.5, FULL_LEAN
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if jeffreys(middle) < share * jeffreys(FULL_LEAN) else (low, middle)
    return (low + high) / 2


def leans(kappa: float) -> tuple[float, float]:
    """Lean of the prefix slot (R or twin) and of the neutral marker slot at coupling ``kappa``.

    ``kappa`` is the share of the information that lies in the words of R: the prefix carries ``kappa`` of
    it, the marker 1 − ``kappa``. At 1 the markers are uninformative, at 0 the
    words of R are (lean 0.5).

    Raises:
        ValueError: ``kappa`` outside [0, 1].
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa is {kappa}, but a coupling lies between 0 and 1.")
    return lean_with(kappa), lean_with(1 - kappa)
