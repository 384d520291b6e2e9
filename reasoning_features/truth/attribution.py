"""What gradients and a forced activation say of a feature's effect: two scores that look at the output.

Gradient attribution is the first-order estimate of what ablating a feature to its mean does to a decision.
The output score (2505.20063, "SAEs Are Good for Steering – If You Select the Right Features") asks, without
labels, whether forcing a feature raises the very tokens that its decoder direction points at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import ELEMENTS
from reasoning_features.errors import UserError
from reasoning_features.interpretation.logit_effects import logit_effects
from reasoning_features.models.subject import Subject
from reasoning_features.text.corpus import Corpus, by_length
from reasoning_features.truth.decisions import Decisions, log_odds

Array = NDArray[np.float64]
LENS_TOKENS = 20
"""Tokens of the logit lens that the output score looks for (2505.20063's released code)."""
AMPLIFICATION = 10.0
"""A feature is raised by this many times the largest activation at the position (the same code)."""


def gradient_attribution(
    subject: Subject, sae: Any, decisions: Decisions, means: Array, batch_tokens: int
) -> Array:
    """Mean over decisions of (a_i − mean_i) · (W_dec,i · ∂ log-odds / ∂ stream) ``[f]``, in nats.

    Activation and gradient are those at the decision's own position; positive where the feature, as it is,
    promotes the decision's positive side. Each decision is a row of its own, cut after its position, so that
    later decisions of a trace do not enter.

    Args:
        subject: the model and its hook point.
        sae: encodes the stream.
        decisions: where to measure.
        means: each feature's mean activation ``[f]``, what an ablation would set it to.
        batch_tokens: the most token ids in one pass.
    """
    corpus = decisions.corpus
    begins = corpus.starts[decisions.documents]
    lengths = decisions.positions - begins + 1
    mean = torch.from_numpy(means)
    decoder = sae.W_dec.detach().double().cpu()
    total = torch.zeros(len(means), dtype=torch.float64)
    for rows in by_length(lengths, batch_tokens):
        tokens = np.zeros((len(rows), int(lengths[rows].max())), dtype=np.int64)
        for row, decision in enumerate(rows):
            tokens[row, : lengths[decision]] = corpus.tokens[
                begins[decision] : decisions.positions[decision] + 1
            ]
        ids, at = torch.from_numpy(tokens), torch.from_numpy(lengths[rows] - 1)
        index = torch.arange(len(rows))

        def summed(logits: Tensor, index: Tensor = index, at: Tensor = at) -> Tensor:
            return log_odds(logits[index, at], decisions).sum()

        gradients = subject.gradient(ids, summed)[index, at].double().cpu()
        with torch.no_grad():
            features = sae.encode(subject.residual(ids)[index, at].float()).double().cpu()
        total += ((features - mean) * (gradients @ decoder.T)).sum(0)
    return (total / len(decisions.positions)).numpy()


def neutral_prompts(general: Corpus, n: int, length: int) -> list[list[int]]:
    """The first ``length`` tokens of ``n`` documents without thinking, spread evenly over the corpus.

    Raises:
        UserError: fewer than ``n`` documents are long enough.
    """
    span = np.diff(general.starts)
    plain = [
        i
        for i in range(general.n_documents)
        if span[i] > length and not general.thinking[general.span(i)].any()
    ]
    if len(plain) < n:
        raise UserError(
            f"The corpus {general.name!r} has {len(plain)} documents without thinking of more than {length} "
            f"tokens, {n} are needed: raise `general_documents`."
        )
    chosen = np.asarray(plain)[np.linspace(0, len(plain) - 1, n).round().astype(int)]
    return [general.document(int(i))[:length].tolist() for i in chosen]


@torch.no_grad()
def output_scores(
    subject: Subject,
    sae: Any,
    prompts: Sequence[Sequence[int]],
    batch_tokens: int,
    features: NDArray[np.int64],
) -> Array:
    """The output score of 2505.20063 of each of ``features``, a mean over prompts ``[len(features)]``.

    At the prompt's last position the feature's activation is raised by ten times the largest activation
    there, the autoencoder's error kept. With T the 20 tokens that the decoder direction raises most through
    final norm and unembedding, the score is (1 − best rank of T / size of the vocabulary) · max_{t ∈ T} P(t).
    Where the paper has one prompt, "From my experience,", this takes the openings of some plain documents.

    Args:
        subject: the model and its hook point.
        sae: the autoencoder.
        prompts: token ids.
        batch_tokens: the most token ids in one pass.
        features: which features.
    """
    decoder = sae.W_dec.detach()[torch.from_numpy(features)]
    held = max(1, ELEMENTS // subject.model.config.vocab_size)  # rows of logits
    meant = torch.cat(
        [logit_effects(subject, part).topk(LENS_TOKENS, dim=1).indices for part in decoder.split(held)]
    )
    total = np.zeros(len(features))
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        largest = sae.encode(subject.residual(ids)[:, -1].float()).max()
        size = max(1, min(batch_tokens, 4 * held) // len(prompt))
        scores = []
        for start in range(0, len(features), size):
            rows = slice(start, start + size)
            added = AMPLIFICATION * largest * decoder[rows]

            def amplified(stream: Tensor, added: Tensor = added) -> Tensor:
                changed = stream.clone()
                changed[:, -1] += added.to(stream)
                return changed

            logits = subject.logits_with(ids.expand(len(added), -1), amplified)[:, -1].float()
            best = logits.gather(1, meant[rows]).max(1).values
            rank = (logits > best[:, None]).sum(1).double()
            probability = logits.softmax(1).gather(1, meant[rows]).max(1).values.double()
            scores.append((1 - rank / logits.shape[1]) * probability)
        total += torch.cat(scores).cpu().numpy()
    return total / len(prompts)
