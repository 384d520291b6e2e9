"""The gate of the arms: does a model read its persistence off the words of R, or off something else?

At every dead end of held-out traces the log-odds of going on are read at the decision token, once as the
trace stands and once with every word of R swapped for its twin (or the other way round, or the neutral
markers swapped). Swaps keep the tokens' places: a twin has as many tokens as its word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reasoning_features.organism import words
from reasoning_features.organism.parser import DECISIONS, decision_places, first_tokens
from reasoning_features.organism.traces import Document

_MARKER_TWINS = dict(zip(words.MARKERS_CAREFUL, words.MARKERS_HASTY, strict=True))
_OPENING = re.compile(r"^(?P<prefix>[A-Z][a-z ]*), (?P<marker>[a-z]+) ", re.MULTILINE)
SWAPS = ("as it stands", "all words of R", "all twins", "all careful markers", "all hasty markers")


def swap(text: str, how: str) -> str:
    """``text`` with the prefixes or the markers of all its sentences replaced, as named in ``SWAPS``.

    Raises:
        KeyError: ``how`` is not one of ``SWAPS``.
    """
    to_twin, to_word = dict(words.TWINS), {twin: word for word, twin in words.TWINS.items()}
    to_hasty, to_careful = dict(_MARKER_TWINS), {hasty: careful for careful, hasty in _MARKER_TWINS.items()}
    prefixes, markers = {
        "as it stands": ({}, {}),
        "all words of R": (to_word, {}),
        "all twins": (to_twin, {}),
        "all careful markers": ({}, to_careful),
        "all hasty markers": ({}, to_hasty),
    }[how]

    def replaced(found: re.Match[str]) -> str:
        prefix = found["prefix"].lower()
        prefix = prefixes.get(prefix, prefix)
        return f"{prefix[0].upper()}{prefix[1:]}, {markers.get(found['marker'], found['marker'])} "

    return _OPENING.sub(replaced, text)


@torch.inference_mode()
def decision_log_odds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    how: str,
    batch: int = 64,
) -> pd.DataFrame:
    """Log-odds (nats) of openers that go on over openers that give up, at every dead end of ``documents``.

    Returns one row a decision: ``trace``, ``decision`` (its number in the trace), ``style``, ``went_on``,
    ``swap``, ``log_odds``.
    """
    on, off = (torch.tensor(first_tokens(tokenizer, openers)) for openers in DECISIONS["persistence"])
    rows = []
    for start in range(0, len(documents), batch):
        texts = [swap(document.text, how) for document in documents[start : start + batch]]
        encoded = tokenizer(
            texts, add_special_tokens=False, padding=True, return_offsets_mapping=True, return_tensors="pt"
        )
        scores = torch.log_softmax(
            model(input_ids=encoded["input_ids"], use_cache=False).logits.float(), dim=-1
        )
        for row, text in enumerate(texts):
            document = documents[start + row]
            starts = encoded["offset_mapping"][row, :, 0]
            for decision, place in enumerate(decision_places(text)["persistence"]):
                token = int((starts == place - 1).nonzero()[0])
                at = scores[row, token - 1]
                rows.append(
                    {
                        "trace": start + row,
                        "decision": decision,
                        "style": document.style,
                        "went_on": int(encoded["input_ids"][row, token]) in on.tolist(),
                        "swap": how,
                        "log_odds": float(at[on].logsumexp(0) - at[off].logsumexp(0)),
                    }
                )
    return pd.DataFrame(rows)
