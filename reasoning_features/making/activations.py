"""The activations that ``make organism`` and ``make sanity`` train autoencoders on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reasoning_features import paths
from reasoning_features.diffing.stages import Stage, stage_corpus
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.residual_stream.activations import stream
from reasoning_features.settings import load_settings
from reasoning_features.text.corpora import general_corpus, reasoning_corpus
from reasoning_features.text.corpus import Corpus, join


def main_activations(model: Path, traces: int, layer: int | None = None) -> tuple[Subject, Tensor]:
    """A model and its residual stream ``[n, d]`` on the text of the main autoencoders.

    Args:
        model: its directory.
        traces: documents of its kind of traces; there are a third as many general ones.
        layer: where it is read; the profile's where none is given.
    """
    settings = load_settings("organism", subject=paths.relative(model), layer=layer)
    subject = load_subject(settings.subject, settings.layer)
    texts = [
        reasoning_corpus(settings, subject.tokenizer, "training", documents=traces),
        general_corpus(settings, subject.tokenizer, "training", documents=traces // 3),
    ]
    return subject, _residual(subject, join("autoencoder training", texts), settings.batch_tokens)


def stage_activations(model: Path, stage: Stage, arm: Path, documents: int) -> tuple[Subject, Tensor]:
    """A model and its residual stream ``[n, d]`` on a stage's data.

    Args:
        model: its directory.
        stage: of model diffing.
        arm: directory of the model whose kind of traces are the reasoning data.
        documents: of each corpus.
    """
    settings = load_settings("organism")
    subject = load_subject(paths.relative(model), settings.layer)
    corpus = stage_corpus(stage, settings, subject.tokenizer, paths.relative(arm), documents)
    return subject, _residual(subject, corpus, settings.batch_tokens)


def _residual(subject: Subject, corpus: Corpus, batch_tokens: int) -> Tensor:
    return torch.cat([batch.residual for batch in stream(subject, corpus, batch_tokens)])
