"""The same work at the true shape of the paper's model, with random weights, on any device.

Nothing of what is timed depends on what the weights are, but for how many features are active, which is set
to the paper's. The weights are made where they are used, in the precision that they are used in.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from reasoning_features.bench.processes import peak
from reasoning_features.bench.record import processor
from reasoning_features.bench.setting import random_autoencoder
from reasoning_features.dictionaries.autoencoder import encoded
from reasoning_features.dictionaries.training import Recipe, new_trainer
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import Moments, shuffled_batches, stream
from reasoning_features.scoring.feature_statistics import accumulate
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import ALL, TokenSets

SCORED_TOKENS = 10_000_000
"""Tokens that the paper scores."""
TRAINING_TOKENS = {"SAE training, 819.2M tokens": 819_200_000, "SAE training, 1B tokens": 1_000_000_000}
"""Tokens of the paper's trainings; each runs through the model once and is trained on once."""
GOAL = 0.5
"""Share of the device's measured bf16 rate that is aimed at."""


@dataclass(frozen=True)
class Shape:
    """A model's prefix, an autoencoder behind it, and how much is run; by default the paper's.

    Attributes:
        blocks: blocks up to the hook point.
        hidden, intermediate, heads, kv_heads, vocabulary: of the model.
        features: of the autoencoder.
        active: features active on a token.
        context: tokens a document.
        batch_tokens: tokens of a forward pass.
        batches: forward passes that are timed.
        train_batch: tokens of a step of training.
        train_steps: steps that are timed.
        matmul: width of the square matrices by which the device's rate is measured.
        runs: how often each is timed; the median counts.
    """

    blocks: int = 20
    hidden: int = 4096
    intermediate: int = 14_336
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 128_256
    features: int = 65_536
    active: float = 86
    context: int = 1024
    batch_tokens: int = 16_384
    batches: int = 4
    train_batch: int = 4096
    train_steps: int = 10
    matmul: int = 8192
    runs: int = 3

    @property
    def prefix_flop(self) -> float:
        """Operations a token in the blocks: two a weight, and attention over half the context on average."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * head
        weights = attention + 3 * self.hidden * self.intermediate
        return float(self.blocks * (2 * weights + 4 * self.hidden * self.context / 2))

    @property
    def encode_flop(self) -> float:
        """Operations a token in the encoder."""
        return 2.0 * self.hidden * self.features


def random_subject(shape: Shape, device: str) -> Subject:
    """A Llama of random bf16 weights up to the hook point, without the head that predicts tokens."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(2048, shape.context),
    )
    with torch.device("meta"):
        model: Any = LlamaModel(config)
        model.to(torch.bfloat16)
    model.to_empty(device=device)
    with torch.device(device):  # its frequencies are no weights
        model.rotary_emb = LlamaRotaryEmbedding(config)
    for name, weights in model.named_parameters():
        if "norm" in name:
            weights.data.fill_(1)
        else:
            weights.data.uniform_(-(3**0.5) * 0.02, 3**0.5 * 0.02)
    model.eval().requires_grad_(False)
    named = "random", "random", ""
    return Subject(model, cast(Any, None), shape.blocks - 1, *named)


def random_corpus(shape: Shape) -> tuple[Corpus, TokenSets]:
    """Documents of random tokens, and twelve sets as large as R's: all tokens, ten words, their union."""
    generator = np.random.default_rng(0)
    documents = max(1, shape.batches * shape.batch_tokens // shape.context)
    n = documents * shape.context
    special = np.arange(n) % shape.context == 0
    corpus = Corpus(
        "random",
        generator.integers(0, shape.vocabulary, n).astype(np.int32),
        shape.context * np.arange(documents + 1, dtype=np.int64),
        special,
        ~special,
        ["random"] * documents,
    )
    words = {f"word {i}": ~special & (generator.random(n) < 0.01) for i in range(10)}
    return corpus, TokenSets.of({ALL: ~special} | words | {"union": np.any(list(words.values()), axis=0)})


def matmul_rate(shape: Shape, device: str) -> float:
    """Operations a second of one large product of bf16 matrices."""
    a, b = (torch.randn(shape.matmul, shape.matmul, device=device).to(torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: a @ b, shape.runs, device)
    return 2 * shape.matmul**3 / seconds


def timed(work: Callable[[], Any], runs: int, device: str) -> float:
    """Median seconds, after a warm-up; waits for what a GPU has been given."""
    taken = []
    for _ in range(runs + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def measure(shape: Shape, device: str, training: bool = True) -> pd.DataFrame:
    """Rates at this shape on this device: one row a quantity, with ``value`` and ``unit``.

    Args:
        shape: what is run.
        device: where.
        training: measure steps of training too, after the model is gone: they take eight times the
            autoencoder's memory.
    """
    rate = matmul_rate(shape, device)
    subject, (corpus, sets) = random_subject(shape, device), random_corpus(shape)
    batches, tokens = list(corpus.batches(shape.batch_tokens)), corpus.n_tokens
    first = subject.residual(batches[0].tokens)[0]
    sae = random_autoencoder(first, shape.features, shape.active, device)

    def prefix() -> None:
        for batch in batches:
            subject.residual(batch.tokens)

    def encoding() -> None:
        for batch in batches:
            for _ in encoded(sae, subject.residual(batch.tokens).flatten(0, 1).float()):
                pass

    def scoring() -> None:
        accumulate(stream(subject, corpus, shape.batch_tokens), sae, sets)

    taken = {
        name: timed(work, shape.runs, device)
        for name, work in (("prefix", prefix), ("encoded", encoding), ("scored", scoring))
    }
    active = float((sae.encode(first.float()) > 0).sum(1).double().mean())
    per_second = {name: tokens / seconds for name, seconds in taken.items()}
    whole = taken["scored"]
    rows: list[tuple[str, float, str]] = [
        ("bf16 product of matrices, measured", rate / 1e12, "TFLOP/s"),
        ("features active on a token", active, "features"),
        ("prefix", per_second["prefix"], "tokens/s"),
        ("prefix and encoder", per_second["encoded"], "tokens/s"),
        (f"whole ReasonScore pass, {len(sets.names)} sets", per_second["scored"], "tokens/s"),
        ("prefix, share of the measured rate", per_second["prefix"] * shape.prefix_flop / rate, "share"),
        (
            f"whole pass, share of the measured rate (goal {GOAL:g})",
            per_second["scored"] * (shape.prefix_flop + shape.encode_flop) / rate,
            "share",
        ),
        ("prefix, share of the pass", taken["prefix"] / whole, "share"),
        ("encoder, share of the pass", (taken["encoded"] - taken["prefix"]) / whole, "share"),
        ("the rest, share of the pass", (whole - taken["encoded"]) / whole, "share"),
        ("peak memory of the pass", _peak(device) / 1e9, "GB"),
        ("scoring 10M tokens", SCORED_TOKENS / per_second["scored"] / 3600, "hours"),
    ]
    if training:
        sample = first.float().cpu()
        del subject, sae, first, prefix, encoding, scoring
        gc.collect()
        trained = training_rate(shape, sample, device)
        rows.append((f"SAE training, batches of {shape.train_batch:,}", trained, "tokens/s"))
        for name, n in TRAINING_TOKENS.items():
            seconds = n * (1 / per_second["prefix"] + 1 / trained)
            rows.append((f"{name}, harvested and trained", seconds / 3600, "hours"))
        rows.append(("peak memory, training too", _peak(device) / 1e9, "GB"))
    return pd.DataFrame(rows, columns=["quantity", "value", "unit"])


def training_rate(shape: Shape, sample: torch.Tensor, device: str) -> float:
    """Tokens a second of SAELens' trainer on activations ``[n, d]``, its first steps left out."""
    repeats = -(-2 * shape.train_batch // len(sample))
    residual = sample.repeat(repeats, 1).to(device)
    warm, steps = 2, shape.train_steps
    recipe = Recipe("relu", shape.features, (warm + steps) * shape.train_batch, 1e-4, shape.train_batch)
    data = shuffled_batches(residual, shape.train_batch, 0)
    moments = Moments.of(sample)
    trainer = new_trainer(recipe, "random", "blocks.0.hook_resid_post", moments, data, device)
    marks: list[float] = []

    def mark(checkpoint_path: Any = None) -> None:
        _wait(device)
        marks.append(time.perf_counter())

    trainer.save_checkpoint_fn = mark
    trainer.checkpoint_thresholds = [n * shape.train_batch - 1 for n in (warm, warm + steps)]
    trainer.fit()
    return steps * shape.train_batch / (marks[1] - marks[0])


def device_name(device: str) -> str:
    """The card's name, or the processor's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: str) -> int:
    """The most memory held so far, bytes: the card's, or the process's."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak()
