"""The activations that ``make organism`` and ``make sanity`` train autoencoders on."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from reasoning_features import paths
from reasoning_features.diffing.stages import Stage, stage_corpus
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.settings import load_settings
from reasoning_features.text.corpora import general_corpus, reasoning_corpus
from reasoning_features.text.corpus import join


def main_activations(model: Path, traces: int, layer: int | None = None) -> tuple[Subject, Tensor]:
    """A model and its residual stream ``[n, d]`` on the text of the main autoencoders.

    The text is so many documents of the model's kind of traces, and a third as many general ones. The model
    is read at the profile's layer where none is given.
    """
    settings = load_settings("organism", subject=paths.relative(model))
    subject = load_subject(settings.subject, settings.layer if layer is None else layer)
    texts = [
        reasoning_corpus(settings, subject.tokenizer, "training", documents=traces),
        general_corpus(settings, subject.tokenizer, "training", documents=traces // 3),
    ]
    corpus = join("autoencoder training", texts)
    return subject, collect(stream(subject, corpus, settings.batch_tokens)).residual


def stage_activations(model: Path, stage: Stage, arm: Path, documents: int) -> tuple[Subject, Tensor]:
    """A model and its residual stream ``[n, d]`` on a stage's data, so many documents of each corpus.

    The reasoning data are traces of the model in the directory ``arm``.
    """
    settings = load_settings("organism")
    subject = load_subject(paths.relative(model), settings.layer)
    corpus = stage_corpus(stage, settings, subject.tokenizer, paths.relative(arm), documents)
    return subject, collect(stream(subject, corpus, settings.batch_tokens)).residual
