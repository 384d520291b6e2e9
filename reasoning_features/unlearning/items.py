"""Questions about persons, in words and of pictures, and how a model takes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEXT, NAME, CAPTION = "text", "name", "caption"  # what is asked: a fact, who a picture shows, what it shows
IGNORED = -100  # a label that is not to be predicted, as Hugging Face writes it

# as a Hugging Face model takes a batch, with ``labels [n, t]``: the answer's tokens, elsewhere ``IGNORED``
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Item:
    """A question about a person with its answer, and what the metrics compare the answer with."""

    person: int
    task: str
    question: str
    answer: str
    paraphrase: str  # the answer in other words
    perturbed: tuple[str, ...]  # the answer with what it tells changed, in the paraphrase's words
    picture: NDArray[np.uint8] | None = None  # [height, width, 3]


# a batch of items, each followed by the answer that is given for it; padded on the right
Encode = Callable[[Sequence[Item], Sequence[str]], Inputs]


def with_answers(encode: Encode, items: Sequence[Item]) -> Inputs:
    """A batch of items, each followed by its true answer."""
    return encode(items, [item.answer for item in items])


def answer_logits(model: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Logits ``[m, vocabulary]`` in float32 that predict the batch's answer tokens, and the tokens ``[m]``,
    row after row; no other token's logits are computed.
    """
    given = {name: values for name, values in inputs.items() if name != "labels"}
    labels = inputs["labels"][:, 1:]
    wanted = labels != IGNORED

    def answers_alone(_: Any, read: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (read[0][:, -labels.shape[1] - 1 : -1][wanted],)

    handle = model.get_output_embeddings().register_forward_pre_hook(answers_alone)
    try:
        logits = model(**given, use_cache=False).logits
    finally:
        handle.remove()
    return logits.float(), labels[wanted]


def answer_log_probabilities(model: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's answer, summed over its tokens ``[n]``, nats, and how many they are."""
    logits, tokens = answer_logits(model, inputs)
    each = torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
    counts = (inputs["labels"][:, 1:] != IGNORED).sum(1)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=each.device), counts)
    return torch.zeros(len(counts), device=each.device).index_add(0, rows, each), counts
