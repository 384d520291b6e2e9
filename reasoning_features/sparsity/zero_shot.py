"""Four zero-shot tasks, scored as lm-evaluation-harness scores them: by log-likelihoods of continuations.

ARC-easy and PIQA ask which of some answers is the likeliest after the question, WinoGrande after which of two
names the rest of a sentence is the likeliest, and LAMBADA whether a passage's last word is the likeliest text
token by token. The rows are llm-foundry's copies of the tasks, with the harness' own prompts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.text.real_text import fetch

FOLDER = "scripts/eval/local_data"
FILES = {
    "ARC-easy": f"{FOLDER}/world_knowledge/arc_easy.jsonl",
    "PIQA": f"{FOLDER}/commonsense_reasoning/piqa.jsonl",
    "WinoGrande": f"{FOLDER}/language_understanding/winogrande.jsonl",
    "LAMBADA": f"{FOLDER}/language_understanding/lambada_openai.jsonl",
}


@dataclass(frozen=True)
class Item:
    """One question of a task."""

    requests: tuple[tuple[str, str], ...]  # context and continuation of each choice
    gold: int  # the number of the right choice


def load_items(task: str, n: int, start: int = 0) -> list[Item]:
    """Items ``start`` … ``start + n − 1`` of a task, as many as there are. UserError: there is no such task,
    or its file cannot be fetched.
    """
    if task not in FILES:
        raise UserError(f"There is no task {task!r}: choose from {', '.join(FILES)}.")
    lines = fetch(FILES[task]).strip().split("\n")[start : start + n]
    return [_item(json.loads(line)) for line in lines]


def _item(row: dict[str, Any]) -> Item:
    """A row of any of the tasks, with the prompt that the harness gives it."""
    if "choices" in row:
        context = f"{row['query'].rstrip()}\nAnswer:"
        return Item(tuple((context, f" {choice}") for choice in row["choices"]), row["gold"])
    contexts = row.get("context_options") or [row["context"]]
    return Item(tuple((context, f" {row['continuation']}") for context in contexts), row.get("gold", 0))


def encode(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], int]:
    """Ids of the whole text and how many of them, at its end, are the continuation's. Spaces at the end of a
    context belong to the continuation, as in the harness.
    """
    bare = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    return whole, len(whole) - len(tokenizer.encode(bare))


@torch.no_grad()
def log_likelihoods(
    subject: Subject, requests: Sequence[tuple[str, str]], batch_tokens: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-likelihood (nats) of each continuation after its context ``[requests]``, and whether each of its
    tokens was the likeliest ``[requests]``. Texts of similar length share a batch, padded on the right. A
    context that is too long loses its beginning.
    """
    most = int(subject.model.config.max_position_embeddings)
    encoded = [encode(subject.tokenizer, *request) for request in requests]
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
    found, greedy = np.empty(len(encoded)), np.empty(len(encoded), dtype=bool)
    while order:
        size = max(1, batch_tokens // min(most, len(encoded[order[0]][0])))
        part, order = order[:size], order[size:]
        rows = [torch.tensor(encoded[i][0][-most - 1 :]) for i in part]
        tokens = pad_sequence([row[:-1] for row in rows], batch_first=True)
        longest = max(encoded[i][1] for i in part)
        ends = torch.tensor([len(row) - 1 for row in rows])
        places = (ends[:, None] - longest + torch.arange(longest)).clamp(min=0)
        logits = subject.logits_at(tokens, places)
        for i, row, own in zip(part, rows, logits, strict=True):
            n = encoded[i][1]
            scores = own[longest - n :].double().log_softmax(-1).cpu()
            wanted = row[-n:]
            found[i] = float(scores.gather(1, wanted[:, None]).sum())
            greedy[i] = bool((scores.argmax(-1) == wanted).all())
    return found, greedy


def correct(subject: Subject, items: Sequence[Item], batch_tokens: int = 4096) -> NDArray[np.bool_]:
    """Which items a model answers rightly ``[items]``: the likeliest continuation is the right one (the
    harness' ``acc``), or of one alone each token is the likeliest.
    """
    requests = [request for item in items for request in item.requests]
    found, greedy = log_likelihoods(subject, requests, batch_tokens)
    right, place = [], 0
    for item in items:
        own = slice(place, place := place + len(item.requests))
        alone = len(item.requests) == 1
        right.append(bool(greedy[own][0]) if alone else int(found[own].argmax()) == item.gold)
    return np.array(right)
