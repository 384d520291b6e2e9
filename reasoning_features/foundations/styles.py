"""How dictionaries look in figures: one colour and mark an architecture, frozen baselines hollow and grey.

Floors, ceilings and random directions are black, whatever stands beside them.
"""

from __future__ import annotations

from typing import Any

from reasoning_features.foundations.names import NAMES
from reasoning_features.foundations.synthetic_cells import FROZEN, TRAINED
from reasoning_features.reporting.figures import COLOURS, LINES, MARKERS

GREYS = ("0", "0.4", "0.6")
OTHERS = ("x", "+", "1", "2")
"""Marks of what is no architecture."""


def style(architecture: str) -> dict[str, Any]:
    """How an architecture's mark and line look, with its name as ``label``."""
    frozen = architecture in FROZEN
    place = FROZEN.index(architecture) if frozen else TRAINED.index(architecture)
    colour = GREYS[place] if frozen else COLOURS[place]
    return {
        "color": colour,
        "marker": MARKERS[place],
        "markerfacecolor": "white" if frozen else colour,
        "linestyle": LINES[3] if frozen else LINES[place % 3],
        "label": NAMES[architecture],
    }


def styles(dictionaries: list[str]) -> dict[str, dict[str, Any]]:
    """How dictionaries look by name, as in ``NAMES``, with what tells variants apart after it.

    "OrtSAE, second seed" and "frozen decoder (cov)" look as their architecture does, but that their mark is
    hollow where that one's is full, and full where it is hollow.
    """
    architectures = {name: architecture for architecture, name in NAMES.items()}
    found: dict[str, dict[str, Any]] = {}
    others = 0
    for name in dictionaries:
        plain = name.partition(",")[0].partition(" (")[0]
        if plain in architectures:
            look = style(architectures[plain]) | {"label": name}
            if name != plain:
                full = look["markerfacecolor"] != "white"
                look |= {"markerfacecolor": "white" if full else look["color"], "markersize": 5, "mew": 0.8}
                look["linestyle"] = (0, (1, 1))
        else:
            look = {"color": "black", "marker": OTHERS[others % len(OTHERS)], "linestyle": ":", "label": name}
            others += 1
        found[name] = look
    return found
