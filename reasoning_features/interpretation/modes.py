"""The mode of a feature by an explicit rule from moves: uncertainty, exploration, reflection, mixed or other.

The rule. Let m(v) be a feature's mean activation on the tokens of move v, and p(v) = m(v) / Σ_u m(u) over all
moves that occur: its share of activation if every move had equally many tokens. The share of a mode is the
largest p(v) of its moves (:data:`MOVES_OF`). The same is computed from the mean activation on the last token
before each move, and the larger of the two counts: a feature may announce a move or stand on it. With ten
moves chance is a tenth; a mode *holds* when its share reaches :data:`THRESHOLD`. One mode that holds is the
feature's mode, two or more make it mixed, none makes it other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Mode = Literal["uncertainty", "exploration", "reflection", "mixed", "other"]

MODES: tuple[Mode, ...] = ("uncertainty", "exploration", "reflection", "mixed", "other")
PAPER_MODES: tuple[Mode, ...] = MODES[:4]
"""Those that the paper found; "other" is none of them."""
MOVES_OF: dict[Mode, tuple[str, ...]] = {
    "uncertainty": ("uncertain",),
    "exploration": ("explore",),
    "reflection": ("verify", "backtrack"),
}
"""The moves of each mode; the others belong to none."""
THRESHOLD = 0.3
"""Three times what one of ten moves has by chance."""
WORDS_OF: dict[Mode, tuple[str, ...]] = {
    "uncertainty": ("hmm", "maybe", "perhaps"),
    "exploration": ("alternatively", "another", "let me"),
    "reflection": ("wait", "but", "however"),
}
"""The words of R of each mode; *therefore*, and words of one's own, belong to none."""
WORD, HALF = "word:", 0.5
PLACES = ("mean", "before")
"""Columns are named ``mean:<move>`` (on its tokens) and ``before:<move>`` (on the last token before it)."""


def mode_shares(means: pd.DataFrame) -> pd.DataFrame | None:
    """The share of each mode in every feature's activation.

    Args:
        means: one row a feature with ``mean:<move>`` and, where there are any, ``before:<move>``; a move that
            does not occur is left out or NaN.

    Returns:
        A column a mode, one row a feature with the index of ``means``; None where moves are not known.
    """
    places = [place for place in PLACES if any(name.startswith(f"{place}:") for name in means.columns)]
    if not places:
        return None
    shares = {mode: np.zeros(len(means)) for mode in MOVES_OF}
    for place in places:
        by_move = _shares(means, place)
        for mode, moves in MOVES_OF.items():
            for move in moves:
                if move in by_move:
                    shares[mode] = np.maximum(shares[mode], by_move[move])
    return pd.DataFrame(shares, index=means.index)


def modes(means: pd.DataFrame) -> list[Mode] | None:
    """The mode of every feature by the rule; None where moves are not known.

    Args:
        means: as for :func:`mode_shares`.
    """
    shares = mode_shares(means)
    if shares is None:
        return None
    holds = shares.to_numpy() >= THRESHOLD
    return [_mode([mode for mode, held in zip(MOVES_OF, row, strict=True) if held]) for row in holds]


def modes_by_words(means: pd.DataFrame) -> list[Mode]:
    """The mode of every feature by the words of R that it is active around, where moves are not known.

    The rule. Let p(r) be the share of the word r in the feature's mean activations around words of R
    (equation 4). The mode whose words (:data:`WORDS_OF`) have more than half of it is the feature's mode.
    Where words of no mode have more than half, or it is active around no word, it is other; all else is
    mixed. So a mode says around which words a feature is active, and not that it stands for what they
    express.

    Args:
        means: one row a feature with ``word:<r>``, its mean activation in the window around each word of R.
    """
    names = [name for name in means.columns if name.startswith(WORD)]
    known = {word: mode for mode, words in WORDS_OF.items() for word in words}
    of_word = np.array([known.get(name.removeprefix(WORD).lower(), "other") for name in names])
    kinds: tuple[Mode, ...] = (*WORDS_OF, "other")
    values = means[names].to_numpy(float)
    by_kind = np.stack([values[:, of_word == kind].sum(axis=1) for kind in kinds], axis=1)
    total, first = by_kind.sum(axis=1), by_kind.argmax(axis=1)
    clear = by_kind.max(axis=1) > HALF * total
    return [
        "other" if not total[i] else kinds[first[i]] if clear[i] else "mixed" for i in range(len(by_kind))
    ]


def _mode(held: list[Mode]) -> Mode:
    if not held:
        return "other"
    return held[0] if len(held) == 1 else "mixed"


def _shares(means: pd.DataFrame, place: str) -> dict[str, NDArray[np.float64]]:
    """Move → share of every feature ``[f]``; zero where the feature is active on no move."""
    names = [name for name in means.columns if name.startswith(f"{place}:") and means[name].notna().any()]
    values = means[names].fillna(0.0).to_numpy(float)
    total = values.sum(axis=1, keepdims=True)
    shares = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return {name.removeprefix(f"{place}:"): shares[:, column] for column, name in enumerate(names)}
