"""How much memory one pass takes at the size of the paper's autoencoder: measured, against what is stated."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from reasoning_features import paths

FEATURES, WIDTH, WORDS, BLOCKS = 65_536, 64, 140, 20


class Stub:
    """A subject whose stream is a random vector of each token."""

    tokenizer = SimpleNamespace(decode=str)

    def __init__(self) -> None:
        self.table = torch.randn(5_000, WIDTH, generator=torch.Generator().manual_seed(0))

    def residual(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens]


def peak() -> int:
    """The most memory this process has held, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(n_tokens: int) -> dict[str, float]:
    """What notebook 03 does with one arm: how much memory it took, and what the bound is made of."""
    from reasoning_features.interpretation.features import ActivatingExamples
    from reasoning_features.residual_stream.activations import stream
    from reasoning_features.scoring.feature_statistics import one_pass
    from reasoning_features.scoring.selection import resampled_comparison, top_features
    from reasoning_features.text.corpus import Corpus
    from reasoning_features.text.words import ALL, TokenSets, vocabulary_set, word_set
    from reasoning_features.truth.feature_table import measure

    rng, window, n = np.random.default_rng(0), (2, 3), n_tokens // 1000
    special = np.arange(n_tokens) % 1000 == 0
    corpus = Corpus(
        "random",
        rng.zipf(1.2, n_tokens).clip(max=4_999).astype(np.int32),
        1000 * np.arange(n + 1, dtype=np.int64),
        special,
        ~special,
        ["a"] * n,
    )
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=FEATURES)).requires_grad_(False)
    sae.W_enc.data = torch.nn.functional.normalize(torch.randn(WIDTH, FEATURES), dim=0)
    sae.b_enc.data.fill_(-3.0)
    words = [f"w{i}" for i in range(WORDS)]
    masks = {word_set(word, window): ~special & (rng.random(n_tokens) < 0.02) for word in words}
    vocabularies = {"R": words[:10]} | {f"random {i}": words[10 * i : 10 * i + 10] for i in range(1, 9)}
    unions = {
        vocabulary_set(name, window): np.any([masks[word_set(w, window)] for w in held], axis=0)
        for name, held in vocabularies.items()
    }
    sets = TokenSets.of({ALL: ~special} | masks | unions)
    started, subject = peak(), Stub()
    found = measure(subject, sae, corpus, sets, words[:10], window, BLOCKS, 8192)
    accumulator = ActivatingExamples(corpus, 12)
    one_pass(stream(subject, corpus.select(range(4)), 8192), sae, [accumulator])
    after = peak()
    dial = window, 0.7, 200, 20, 0
    top_features(found.statistics, words[:10], *dial)
    resampled_comparison(found.statistics, vocabularies, *dial)
    return {
        "grown": after - started,
        "resampling": peak() - after,
        "sums": found.statistics.sums.nbytes,
        "active": FEATURES * found.density.mean(),
    }


@pytest.mark.slow
def test_one_pass_keeps_to_what_is_stated():
    """In a process that has held nothing else."""
    environment = os.environ | {"PYTHONPATH": str(paths.root())}
    done = subprocess.run(
        [sys.executable, __file__], check=True, capture_output=True, text=True, env=environment
    )
    found = json.loads(done.stdout)
    assert 20 < found["active"] < 400
    assert found["sums"] == 8 * BLOCKS * (1 + WORDS + 9) * FEATURES
    assert found["grown"] < found["sums"] + 2e9
    assert found["resampling"] < 1e9


if __name__ == "__main__":
    print(json.dumps(measured(10_000)))
