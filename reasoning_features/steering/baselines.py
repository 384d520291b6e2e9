"""What steering by a feature is compared with: simpler ways to make a model go on.

The mean difference is told the decisions; biases push the next token itself; a forced "Wait" takes the place
of the end of thinking. A feature that does no better than these has not been needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import Condition
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import Moments, collect, stream
from reasoning_features.steering.token_rules import bias_to_go_on, bias_to_words, forced_wait
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth.decisions import Decisions

MEAN_DIFFERENCE, REASONING_BIAS = "mean difference", "bias on R"
STOPPING_BIAS, WAIT = "bias against stopping", "forced Wait"
SHARES = (-0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3)
"""Strengths of the mean difference, as shares of the residual stream's mean norm."""
NATS = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
"""Strengths of a bias."""
WAITS = (1, 2)
"""How often the end of thinking is replaced."""


def mean_norm(subject: Subject, corpus: Corpus, batch_tokens: int) -> float:
    """Mean norm of the residual stream over a corpus' tokens that are not special."""
    moments = [Moments.of(batch.residual) for batch in stream(subject, corpus, batch_tokens)]
    total = moments[0]
    for part in moments[1:]:
        total = total.merge(part)
    return total.mean_norm


def mean_difference(subject: Subject, decisions: Decisions, batch_tokens: int) -> Tensor:
    """Direction ``[d]`` of unit norm from where the trace took a decision's negative side to the positive.

    The difference of the mean residual stream at the decisions' own tokens.

    Raises:
        UserError: the decisions all went one way.
    """
    corpus, sides = decisions.corpus, decisions.towards
    if sides.all() or not sides.any():
        raise UserError(f"The decisions of {decisions.name} all went one way: take more documents.")
    include = np.zeros(corpus.n_tokens, dtype=bool)
    include[decisions.positions] = True
    read = collect(stream(subject, corpus, batch_tokens, include))
    held = read.residual[torch.from_numpy(read.rows(decisions.positions))].double()
    towards = torch.from_numpy(sides)
    return torch.nn.functional.normalize(held[towards].mean(0) - held[~towards].mean(0), dim=0).float()


def baselines(
    subject: Subject,
    decisions: Mapping[str, Decisions],
    words: Sequence[str],
    norm: float,
    batch_tokens: int,
) -> dict[str, list[Condition]]:
    """Name → conditions, of which a study chooses one; the mean difference only where decisions are known.

    Args:
        subject: the model.
        decisions: decisions of traces of the selection split, by name.
        words: the vocabulary R.
        norm: the residual stream's mean norm.
        batch_tokens: the most token ids in one forward pass.

    Raises:
        UserError: a word that the tokenizer cannot write, or decisions that all went one way.
    """
    tokenizer, made = subject.tokenizer, {}
    if "persistence" in decisions:
        direction = mean_difference(subject, decisions["persistence"], batch_tokens)
        made[MEAN_DIFFERENCE] = [
            Condition(f"{MEAN_DIFFERENCE} at {share:g}", gamma=share, vector=share * norm * direction)
            for share in SHARES
        ]
    made[REASONING_BIAS] = [
        Condition(f"{REASONING_BIAS} of {nats:g}", gamma=nats, rule=bias_to_words(tokenizer, words, nats))
        for nats in NATS
    ]
    made[STOPPING_BIAS] = [
        Condition(f"{STOPPING_BIAS} of {nats:g}", gamma=nats, rule=bias_to_go_on(tokenizer, nats))
        for nats in NATS
    ]
    made[WAIT] = [
        Condition(f"{WAIT}, {times} times", gamma=float(times), rule=forced_wait(tokenizer, times))
        for times in WAITS
    ]
    return made
