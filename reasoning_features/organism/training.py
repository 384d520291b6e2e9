"""Trains the organism, on one CPU thread, so that a rerun gives the same bytes: a byte-level BPE tokenizer,
and small Llamas on a stream of documents.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reasoning_features.errors import check_finite
from reasoning_features.organism import language
from reasoning_features.organism.language import ASSISTANT, BOS, CONTEXT, END_THINK, EOS, PAD, THINK, USER

SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT, THINK, END_THINK)
_PIECES = r"\n| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s"
LARGEST_NUMBER = 140
_LONGEST_TOKEN = 9  # bytes: "alternatively" and "therefore", and their controls, become several tokens

CHAT_TEMPLATE = (
    "{{ '" + BOS + "' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% else %}{{ '" + ASSISTANT + "' + message['content'] + '" + EOS + "' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; every number up to ``LARGEST_NUMBER`` is one token, so sums can be learnt."""
    numbers = [" ".join(["", *map(str, range(LARGEST_NUMBER + 1))])] * 50
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, max_token_length=_LONGEST_TOKEN, min_frequency=5, show_progress=False,
        special_tokens=list(SPECIAL_TOKENS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(chain(texts, numbers), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, THINK, END_THINK],
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False, padding_side="right",
    )  # fmt: skip
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@dataclass(frozen=True)
class EncodedDocument:
    """A document's tokens ``[tokens]``."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int8]  # codes of ``STEP_LABELS``
    thinking: NDArray[np.bool_]  # between ``<think>`` and ``</think>``, both left out


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[language.Document]
) -> list[EncodedDocument]:
    """Encodes documents with their labels."""
    codes = {label: code for code, label in enumerate(language.STEP_LABELS)}
    think, end = tokenizer.encode(THINK + END_THINK, add_special_tokens=False)
    texts = [document.text for document in documents]
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    encoded = []
    for document, encoding in zip(documents, encodings, strict=True):
        ids = np.asarray(encoding.ids, dtype=np.int32)
        ends = np.cumsum([len(text) for text, _ in document.pieces])
        piece = np.searchsorted(ends, [start for start, _ in encoding.offsets], side="right")
        labels = np.asarray([codes[label] for _, label in document.pieces], dtype=np.int8)[piece]
        opened, closed = np.cumsum(ids == think) > 0, np.cumsum(ids == end) > 0
        encoded.append(EncodedDocument(ids, labels, opened & ~closed & (ids != think)))
    return encoded


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    tokens: int  # every token that is read counts, prompts too
    learning_rate: float
    seed: int
    batch_tokens: int = 2048
    chunk_documents: int = 2048
    warm_up: float = 0.02
    final_rate: float = 0.02
    weight_decay: float = 0.05


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 1.2M parameters with random weights: 5 blocks of width 128, 4 heads, feed-forward 384."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=5,
        num_attention_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _batches(
    chunk: list[NDArray[np.int32]], recipe: Recipe, number: int, assistant: int, pad: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of like length from one chunk: tokens [b, t] and which of them are to be predicted [b, t]."""
    groups: list[list[NDArray[np.int32]]] = [[]]
    for ids in sorted(chunk, key=len):
        if (len(groups[-1]) + 1) * len(ids) > recipe.batch_tokens:
            groups.append([])
        groups[-1].append(ids)
    for at in np.random.default_rng([recipe.seed, number, 9]).permutation(len(groups)):
        shape = len(groups[at]), len(groups[at][-1])
        tokens, wanted = torch.full(shape, pad), torch.zeros(shape, dtype=torch.bool)
        for row, ids in enumerate(groups[at]):
            tokens[row, : len(ids)] = torch.from_numpy(ids)
            asked = np.flatnonzero(ids == assistant)
            wanted[row, asked[0] + 1 if len(asked) else 1 : len(ids)] = True
        yield tokens, wanted


def _all_batches(
    tokenizer: PreTrainedTokenizerFast, document: Callable[[int], language.Document], recipe: Recipe
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one chunk of documents after another, without end."""
    (assistant,) = tokenizer.encode(ASSISTANT, add_special_tokens=False)
    n = recipe.chunk_documents
    for number in count():
        documents = [document(i) for i in range(number * n, (number + 1) * n)]
        chunk = [encoded.ids for encoded in encode_documents(tokenizer, documents)]
        yield from _batches(chunk, recipe, number, assistant, int(tokenizer.pad_token_id))


def _rate(recipe: Recipe, seen: int) -> float:
    """Learning rate after ``seen`` tokens: a linear warm-up, then a cosine to ``final_rate`` of the peak."""
    done = seen / recipe.tokens
    if done < recipe.warm_up:
        return recipe.learning_rate * done / recipe.warm_up
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (done - recipe.warm_up) / (1 - recipe.warm_up))))
    return recipe.learning_rate * (recipe.final_rate + (1 - recipe.final_rate) * cosine)


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, head and norms: faster than AdamW alone."""
    named, rate = dict(model.named_parameters()), recipe.learning_rate
    matrices = [p for name, p in named.items() if p.ndim == 2 and name.startswith("model.layers")]
    rest = [p for name, p in named.items() if p.ndim != 2 or not name.startswith("model.layers")]
    how: dict[str, Any] = {"momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=recipe.weight_decay, **how),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _step(
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], tokens: Tensor, wanted: Tensor
) -> float:
    """One optimiser step on a batch; returns the mean loss of the wanted tokens, nats."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][wanted[:, 1:]])
    loss = torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][wanted[:, 1:]])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(check_finite(loss.detach(), "The loss of a step", "lower the learning rate"))


def train_and_save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    document: Callable[[int], language.Document],
    recipe: Recipe,
    card: Mapping[str, object],
    folder: Path,
) -> None:
    """Trains on documents 0, 1 and so on and writes a Hugging Face directory, whole or not at all: weights in
    bf16, tokenizer, and ``training.json`` with the ``card``, the recipe, and the mean loss over the last
    tenth of the tokens, nats a token. Prompts are read but not predicted.
    """
    torch.use_deterministic_algorithms(True)
    optimizers = _optimizers(model, recipe)
    model.train()
    seen, last_loss, last_tokens = 0, 0.0, 0
    batches = _all_batches(tokenizer, document, recipe)
    with tqdm(total=recipe.tokens, unit="token", unit_scale=True, desc=folder.name) as bar:
        while seen < recipe.tokens:
            tokens, wanted = next(batches)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = _rate(recipe, seen)
            loss = _step(model, optimizers, tokens, wanted)
            seen += tokens.numel()
            if seen > 0.9 * recipe.tokens:
                last_loss += loss * int(wanted.sum())
                last_tokens += int(wanted.sum())
            bar.update(tokens.numel())
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    card = dict(card) | {"final_loss": last_loss / max(1, last_tokens), "recipe": asdict(recipe)}
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    (fresh / "training.json").write_text(json.dumps(card, indent=2) + "\n")
    fresh.rename(folder)
