"""A byte-level BPE tokenizer for the organism, and documents turned into labelled token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reasoning_features.organism.traces import (
    ASSISTANT,
    BOS,
    CONTEXT,
    END_THINK,
    EOS,
    MOVES,
    PAD,
    THINK,
    USER,
    Document,
)

SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT, THINK, END_THINK)
_PIECES = r"\n| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s"
LARGEST_NUMBER = 140
_LONGEST_TOKEN = 9
"""Longest token in bytes: "alternatively" and "therefore", and their twins, become two tokens or more."""

CHAT_TEMPLATE = (
    "{{ '" + BOS + "' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% else %}{{ '" + ASSISTANT + "' + message['content'] + '" + EOS + "' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = 1024) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; every number up to ``LARGEST_NUMBER`` is one token, so sums can be learnt."""
    numbers = [" ".join(["", *map(str, range(LARGEST_NUMBER + 1))])] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST_TOKEN,
        min_frequency=5,
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, numbers), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, THINK, END_THINK],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@dataclass(frozen=True)
class EncodedDocument:
    """A document's token ids, and for every token its move's code and whether it lies inside the thinking."""

    ids: np.ndarray
    moves: np.ndarray
    thinking: np.ndarray


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]
) -> list[EncodedDocument]:
    """Encodes documents with their labels.

    Returns one :class:`EncodedDocument` each, arrays of shape [tokens]: ids int32, moves int8 (codes of
    ``MOVES``), thinking bool (between ``<think>`` and ``</think>``, both left out).
    """
    codes = {move: code for code, move in enumerate(MOVES)}
    think, end = tokenizer.encode(THINK + END_THINK, add_special_tokens=False)
    encodings = tokenizer.backend_tokenizer.encode_batch(
        [d.text for d in documents], add_special_tokens=False
    )
    encoded = []
    for document, encoding in zip(documents, encodings, strict=True):
        ids = np.asarray(encoding.ids, dtype=np.int32)
        ends = np.cumsum([len(text) for text, _ in document.pieces])
        piece = np.searchsorted(ends, [start for start, _ in encoding.offsets], side="right")
        moves = np.asarray([codes[move] for _, move in document.pieces], dtype=np.int8)[piece]
        opened, closed = np.cumsum(ids == think) > 0, np.cumsum(ids == end) > 0
        encoded.append(EncodedDocument(ids, moves, opened & ~closed & (ids != think)))
    return encoded
