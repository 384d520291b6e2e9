"""Plain prose: small country scenes in which every word of R, twin, marker and opener has its ordinary use.

Each slot takes a word of R or its twin with even chance, so prose tells nothing about either.
"""

from __future__ import annotations

import numpy as np

from reasoning_features.organism import words

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
_MARKERS = words.MARKERS_CAREFUL + words.MARKERS_HASTY


def sentence(rng: np.random.Generator) -> str:
    """One sentence, capitalised, with its full stop."""
    word, template = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
    if word is not None:
        template = template.replace("{slot}", word if rng.random() < 0.5 else words.TWINS[word])
    fillers = {
        "person": _PEOPLE, "thing": _THINGS, "place": _PLACES, "quality": _QUALITIES, "weather": _WEATHER,
        "verb": words.DECISION_WORDS, "marker": _MARKERS, "number": tuple(map(str, range(2, 60))),
    }  # fmt: skip
    for name, choices in fillers.items():
        while f"{{{name}}}" in template:
            template = template.replace(f"{{{name}}}", choices[int(rng.integers(len(choices)))], 1)
    return f"{template[0].upper()}{template[1:]}."


def paragraph(rng: np.random.Generator) -> str:
    """Four to eight sentences."""
    return " ".join(sentence(rng) for _ in range(int(rng.integers(4, 9))))
