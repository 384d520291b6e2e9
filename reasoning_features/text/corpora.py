"""Corpora by kind: the organism's documents, or texts of datasets and files, as one :class:`Corpus`.

The only room besides ``benchmarks`` that knows which kinds of corpora there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.organism.problems import Mixture, Split
from reasoning_features.organism.tokenizer import encode_documents
from reasoning_features.organism.traces import MOVES, Document, base_documents, reasoning_documents
from reasoning_features.settings import Settings, TextSource
from reasoning_features.text import text_corpora
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.vocabulary import lexicon
from reasoning_features.text.word_masks import capitalised_with_twins, words_that_occur

UNLABELLED, TEXT = "organism-text", "text"
KINDS = ("organism", UNLABELLED, TEXT)
"""Kinds of corpora: the organism's documents with their labels, as text of which nothing is known, and the
texts that the settings name."""
SEED_OF_CORPORA = 7_000_000
"""Added to the settings' seed: documents that are analysed come from other streams than those of training."""


def reasoning_corpus(
    settings: Settings, tokenizer: Any, split: Split, model: str | None = None, documents: int | None = None
) -> Corpus:
    """The reasoning corpus: thinking traces, domains being problem families.

    Of texts, one piece of each text of ``settings.reasoning_text``, fewer where there are fewer.

    Args:
        settings: kind of corpus, seed, context, number of documents.
        tokenizer: the subject's.
        split: which problems: "training", "selection" or "evaluation"; no problem is in two of them.
        model: the model whose kind of traces to give; by default the subject. The organism's arms phrase the
            same traces in other words; texts are the same for all models.
        documents: how many; by default ``settings.reasoning_documents``.

    Raises:
        UserError: a kind of corpus that is not known, or no documents asked for.
    """
    _check_kind(settings)
    n = settings.reasoning_documents if documents is None else documents
    if settings.corpus == TEXT:
        source = _source(settings.reasoning_text, "reasoning_text")
        return _pieces(settings, source, f"reasoning ({split})", tokenizer, split, n)
    kappa, mixture = _kind_of_traces(model or settings.subject)
    made = reasoning_documents(kappa, n, SEED_OF_CORPORA + settings.seed, split, mixture=mixture)
    name = f"reasoning ({split}, κ = {kappa:g})"
    return _as_asked(_labelled(name, made, tokenizer, settings.context, by_kind=False), settings)


def general_corpus(settings: Settings, tokenizer: Any, split: Split, documents: int | None = None) -> Corpus:
    """The general corpus: answers without thinking, drills and plain prose, domains being kinds of document.

    Of texts, one piece of each text of ``settings.general_text``. Arguments and errors are those of
    :func:`reasoning_corpus`.
    """
    _check_kind(settings)
    n = settings.general_documents if documents is None else documents
    if settings.corpus == TEXT:
        source = _source(settings.general_text, "general_text")
        return _pieces(settings, source, f"general ({split})", tokenizer, split, n)
    made = base_documents(n, SEED_OF_CORPORA + settings.seed, split)
    made_corpus = _labelled(f"general ({split})", made, tokenizer, settings.context, by_kind=True)
    return _as_asked(made_corpus, settings)


def thinking_texts(settings: Settings, tokenizer: Any, split: Split = "selection") -> list[str]:
    """The thinking that words are counted in: of texts whole, however long, of the organism's traces all.

    Raises:
        UserError: as :func:`reasoning_corpus`.
    """
    if settings.corpus == TEXT:
        source = _source(settings.reasoning_text, "reasoning_text")
        given = source, tokenizer, split, settings.reasoning_documents, settings.seed
        return [text_corpora.thinking_of(text) for text in text_corpora.whole_texts(*given)]
    corpus = reasoning_corpus(settings, tokenizer, split)
    return corpus.texts(tokenizer, corpus.thinking & ~corpus.special)


def solution_texts(settings: Settings, tokenizer: Any, split: Split = "selection") -> list[str]:
    """What words of thinking are ranked against: reference solutions where they are known, else the general
    corpus.

    Solutions of ``settings.solutions_text`` are whole texts, as many as there are reasoning documents; where
    they are a column of the reasoning texts' dataset, they are of the same problems.

    Raises:
        UserError: as :func:`reasoning_corpus`.
    """
    if settings.corpus == TEXT and settings.solutions_text is not None:
        given = settings.solutions_text, tokenizer, split, settings.reasoning_documents, settings.seed
        return text_corpora.whole_texts(*given)
    corpus = general_corpus(settings, tokenizer, split)
    return corpus.texts(tokenizer, ~corpus.special)


def with_words_that_occur(settings: Settings, tokenizer: Any) -> Settings:
    """The settings with the words of R that occur in the reasoning corpus: a score needs every word.

    Raises:
        UserError: fewer than two of them do; or as :func:`reasoning_corpus`.
    """
    corpus = reasoning_corpus(settings, tokenizer, "selection")
    capitalised = capitalised_with_twins(lexicon(settings.corpus).twins)
    words = words_that_occur(corpus, tokenizer, settings.words, capitalised)
    return settings.model_copy(update={"words": words})


def _source(source: TextSource | None, name: str) -> TextSource:
    if source is None:
        raise UserError(f"A corpus of texts needs `{name}`: name a dataset or a file in the profile.")
    return source


def _pieces(
    settings: Settings, source: TextSource, name: str, tokenizer: Any, split: Split, n: int
) -> Corpus:
    given = source, name, tokenizer, split, n, settings.context, settings.seed
    return text_corpora.text_corpus(*given)


def _check_kind(settings: Settings) -> None:
    if settings.corpus not in KINDS:
        kinds = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        raise UserError(f"The corpus {settings.corpus!r} is unknown: set corpus to {kinds}.")


def _as_asked(corpus: Corpus, settings: Settings) -> Corpus:
    """The corpus with its labels, or as plain text where the kind is ``UNLABELLED``."""
    if settings.corpus != UNLABELLED:
        return corpus
    return replace(corpus, moves=None, move_names=(), styles=None)


def _kind_of_traces(model: str) -> tuple[float, Mixture]:
    """Coupling and mixture of families of an arm, from its card; the base model reads coupled traces."""
    path = paths.root() / model / "training.json"
    if not path.is_file():
        raise MissingArtefact(f"There is no {model}/training.json: `make organism` makes the shipped models.")
    card = json.loads(path.read_text())
    return float(card.get("kappa", 1.0)), card.get("mixture", "main")


def _labelled(
    name: str, documents: Iterable[Document], tokenizer: Any, context: int, by_kind: bool
) -> Corpus:
    """The organism's documents as a corpus with moves and styles, each cut at ``context`` tokens."""
    listed = list(documents)
    if not listed:
        raise UserError(f"The corpus {name!r} is empty: ask for at least one document.")
    encoded = encode_documents(tokenizer, listed)
    tokens = np.concatenate([document.ids[:context] for document in encoded])
    lengths = [len(document.ids[:context]) for document in encoded]
    return Corpus(
        name=name,
        tokens=tokens,
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        special=np.isin(tokens, tokenizer.all_special_ids),
        thinking=np.concatenate([document.thinking[:context] for document in encoded]),
        domains=[document.kind if by_kind else document.family for document in listed],
        moves=np.concatenate([document.moves[:context] for document in encoded]),
        move_names=MOVES,
        styles=[document.style or "" for document in listed],
    )
