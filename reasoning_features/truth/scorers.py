"""The rows of the benchmark: every built-in way to score features, as a function of the evidence.

A score is one number a feature. ``signed`` says how it is read: a one-sided score is ranked as given (high
means chosen), a signed one by its size, its sign saying which side of the decision the feature promotes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from reasoning_features.errors import UserError

Score = Callable[[pd.DataFrame], ArrayLike]


@dataclass(frozen=True)
class Scorer:
    """One row of the benchmark.

    Attributes:
        name: as figures and tables say it.
        function: from the evidence (:mod:`reasoning_features.truth.evidence`) to one number a feature.
        signed: whether the sign says which side is promoted; features are then ranked by size.
        labels: whether it needs to know which decisions went which way, or where decisions are.
        source: the paper or code that defines it.
    """

    name: str
    function: Score
    signed: bool
    labels: bool
    source: str


def column(name: str) -> Score:
    """The score that a column of the evidence holds.

    Raises (when called):
        UserError: the evidence has no such column.
    """

    def score(evidence: pd.DataFrame) -> ArrayLike:
        if name not in evidence:
            raise UserError(
                f"The evidence has no column {name!r}: it needs labels, or evidence gathered with that score."
            )
        return evidence[name].to_numpy()

    return score


def mean_difference(kind: str) -> Score:
    """Mean activation where the decision took its positive side less where it did not, × decoder norm.

    That is each feature's part of the mean-difference vector of the autoencoder's reconstructions. Dividing
    by the standard deviation instead would raise features that are hardly ever active, whose ablation moves
    the stream hardly at all.
    """
    positive, negative = column(f"at {kind}:positive"), column(f"at {kind}:negative")

    def score(evidence: pd.DataFrame) -> ArrayLike:
        return (np.asarray(positive(evidence)) - np.asarray(negative(evidence))) * evidence["decoder norm"]

    return score


def builtin(kind: str) -> list[Scorer]:
    """The built-in scorers for one kind of decision, in the order of the benchmark's rows."""
    paper, code = "2503.18878, equation 5", "2503.18878, released code"
    return [
        Scorer("ReasonScore", column("score:reason score"), False, False, paper),
        Scorer("ReasonScore, released settings", column("score:released"), False, False, code),
        Scorer("ReasonScore, before the word only", column("score:before"), False, False, paper),
        Scorer("ReasonScore, R's tokens masked out", column("score:masked"), False, False, paper),
        Scorer("word identity", column("score:identity"), False, False, "ReasonScore of a token's mean"),
        Scorer("density", column("density"), False, False, "share of tokens on which a feature is active"),
        Scorer("output score", column("score:output"), False, False, "2505.20063"),
        Scorer("mean difference", mean_difference(kind), True, True, "difference in means"),
        Scorer("gradient attribution", column(f"score:gradient {kind}"), True, True, "attribution patching"),
    ]


def vocabulary_columns(evidence: pd.DataFrame, null: str) -> list[str]:
    """Columns with the ReasonScore under each null vocabulary: ``null`` is "random" or "slot"."""
    return [str(name) for name in evidence if str(name).startswith(f"score:{null} ")]
