"""How dictionaries look in figures: one colour and mark an architecture, frozen baselines hollow and grey.

Floors, ceilings and random directions are black, whatever stands beside them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from reasoning_features.foundations.names import NAMES
from reasoning_features.foundations.synthetic_cells import FROZEN, TRAINED
from reasoning_features.reporting.plots import LINES, MARKERS, look

GREYS = ("0", "0.4", "0.6")
OTHERS = ("x", "+", "1", "2", "3", "4", "|", "_")
"""Marks of what is no architecture."""


def style(architecture: str) -> dict[str, Any]:
    """How an architecture's mark and line look, with its name as ``label``."""
    frozen = architecture in FROZEN
    place = FROZEN.index(architecture) if frozen else TRAINED.index(architecture)
    every = look(place)
    if frozen:
        every["color"] = GREYS[place]
    every["markerfacecolor"] = "white" if frozen else every["color"]
    return every | {"linestyle": LINES[3 if frozen else place % 3], "label": NAMES[architecture]}


def styles(dictionaries: list[str]) -> dict[str, dict[str, Any]]:
    """How dictionaries look by name, as in ``NAMES``, with what tells variants apart after it.

    "OrtSAE, second seed" and "frozen decoder (cov)" look as their architecture does, but that their mark is
    hollow where that one's is full, and full where it is hollow; the next variant has the next mark.
    """
    architectures = {name: architecture for architecture, name in NAMES.items()}
    found: dict[str, dict[str, Any]] = {}
    others, variants = 0, Counter[str]()
    for name in dictionaries:
        plain = name.partition(",")[0].partition(" (")[0]
        if plain in architectures:
            found[name] = style(architectures[plain]) | {"label": name}
            if name != plain:
                full, place = found[name]["markerfacecolor"] != "white", MARKERS.index(found[name]["marker"])
                found[name] |= {
                    "marker": MARKERS[(place + variants[plain]) % len(MARKERS)],
                    "markerfacecolor": "white" if full else found[name]["color"],
                    "linestyle": (0, (1, 1)),
                    "markersize": 5,
                    "mew": 0.8,
                }
                variants[plain] += 1
        else:
            # dotted as long as their marks are all different
            mark, line = OTHERS[others % len(OTHERS)], LINES[(3 + others // len(OTHERS)) % len(LINES)]
            found[name] = {"color": "black", "marker": mark, "linestyle": line, "label": name}
            others += 1
    return found
