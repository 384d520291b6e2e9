"""What is benchmarked: the organism, its autoencoder or a wider one of random weights, and R's sets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.residual_stream import activations
from reasoning_features.settings import Settings, load_settings
from reasoning_features.steering.benchmarks import Questions, load_questions
from reasoning_features.text import corpora
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import TokenSets, token_sets

PAPER_FEATURES, PAPER_L0 = 65_536, 86
"""Features of the paper's autoencoder, and how many are active on a token."""


@dataclass(frozen=True)
class Sizes:
    """How much each comparison does.

    Attributes:
        documents: documents that are scored and harvested (some 70 tokens each).
        runs: pairs that count.
        wide: features of the wider autoencoder.
        released_passes: passes of the released procedure that are run; the rest is reckoned.
        train_tokens: tokens of a training.
        problems: problems that are answered under each condition.
        features, strengths: how many of each make the conditions.
        few: conditions of the peers that are run; the rest would be as many runs more.
        documents_by_step: documents of the three runs in processes of their own.
        features_by_step: features of the other three.
    """

    documents: int = 600
    runs: int = 5
    wide: int = 4096
    released_passes: int = 3
    train_tokens: int = 204_800
    problems: int = 32
    features: int = 8
    strengths: int = 8
    few: int = 2
    documents_by_step: tuple[int, ...] = (1000, 2000, 4000)
    features_by_step: tuple[int, ...] = (1024, 4096, 16_384)


@dataclass(frozen=True)
class Setting:
    """The organism, loaded.

    Attributes:
        settings: of the default profile.
        subject: the model.
        sae: its shipped autoencoder.
        corpus: reasoning documents.
        sets: all tokens, R, and each of its ten words: twelve sets.
    """

    settings: Settings
    subject: Subject
    sae: Any
    corpus: Corpus
    sets: TokenSets

    @property
    def tokens(self) -> int:
        """Tokens that count."""
        return int((~self.corpus.special).sum())

    @property
    def residual(self) -> Tensor:
        """Residual activations of the corpus ``[n, d]`` float32."""
        batches = activations.stream(self.subject, self.corpus, self.settings.batch_tokens)
        return activations.collect(batches).residual


def load(documents: int) -> Setting:
    """The organism with so many reasoning documents."""
    settings = load_settings("organism")
    subject = load_subject(settings.subject, settings.layer)
    sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
    corpus = corpora.reasoning_corpus(settings, subject.tokenizer, "selection", documents=documents)
    sets = token_sets(corpus, subject.tokenizer, {"R": settings.words}, [settings.window])
    return Setting(settings, subject, sae, corpus, sets)


def random_autoencoder(
    residual: Tensor, d_sae: int, active: float | None = None, device: str = "cpu"
) -> StandardSAE:
    """An autoencoder of random directions, so many of which are active on these activations ``[n, d]``.

    Args:
        residual: what its biases are set by; some hundred are enough.
        d_sae: features.
        active: features active on a token; by default as large a share's square root as the paper's, which
            is 22 of 4,096 and 86 of 65,536.
        device: where to put it.
    """
    wanted = PAPER_L0 * (d_sae / PAPER_FEATURES) ** 0.5 if active is None else active
    width = residual.shape[1]
    given = residual[:256].float().to(device)
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=d_sae, device=device)).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    directions = torch.randn(width, d_sae, generator=generator, device=device)
    sae.W_enc.data = directions / directions.norm(dim=0)
    sae.W_dec.data = sae.W_enc.data.T.contiguous()
    sae.b_dec.data.zero_()
    sae.b_enc.data.zero_()
    before = given @ sae.W_enc.data
    sae.b_enc.data = -before.mean(0)
    deviations = (before + sae.b_enc.data).flatten()
    sae.b_enc.data -= deviations.kthvalue(max(1, int(len(deviations) * (1 - wanted / d_sae)))).values
    return sae


def questions_of_one_length(setting: Setting, n: int) -> Questions:
    """``n`` problems whose prompts have as many tokens, so that no way of sampling has to pad."""
    asked = load_questions(setting.settings, setting.subject.tokenizer, "selection", 8 * n)
    length = Counter(map(len, asked.prompts)).most_common(1)[0][0]
    chosen = [i for i, prompt in enumerate(asked.prompts) if len(prompt) == length][:n]
    if len(chosen) < n:
        raise ValueError(f"only {len(chosen)} of {8 * n} problems have prompts of one length")
    prompts, domains = [asked.prompts[i] for i in chosen], [asked.domains[i] for i in chosen]
    return replace(asked, prompts=prompts, domains=domains)
