"""One autoencoder of one model, ready for the benchmark: its evidence, and its features' causal effects.

Evidence is gathered on problems of the selection split, effects are measured on those of the evaluation
split, so nothing that a score was computed from enters what it is judged by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import architecture_label
from reasoning_features.errors import UserError
from reasoning_features.interpretation.lexical_controls import Controls, measure_controls
from reasoning_features.models.subject import Subject, short_name
from reasoning_features.scoring.measurement import draw_vocabularies
from reasoning_features.settings import READ, Settings
from reasoning_features.text import vocabulary
from reasoning_features.text.corpora import general_corpus, reasoning_corpus, solution_texts, thinking_texts
from reasoning_features.text.corpus import join
from reasoning_features.text.word_masks import capitalised_with_twins
from reasoning_features.truth.causal_truth import PLACES, Effects, measure_effects
from reasoning_features.truth.decisions import Decisions, balanced, find_decisions
from reasoning_features.truth.evidence import gather
from reasoning_features.truth.stored_benchmarks import PLACE, TRACE, Benchmark, Truth

DETERMINED_BY = (
    *READ, "subject", "contrast", "autoencoder", "contrast_autoencoder", "seed", "reasoning_documents",
    "general_documents", "words", "alpha", "window", "batch_tokens", "random_vocabularies",
    "slot_vocabularies", "decisions", "random_directions",
)  # fmt: skip
"""The settings that determine a stored benchmark."""
DOCUMENTS_A_DECISION = 3
"""Traces read for each decision that is wanted: careful ones are few, and decide once whether to verify."""


def draw_words(settings: Settings, subject: Subject) -> dict[str, tuple[str, ...]]:
    """R and the vocabularies it is compared with, drawn as notebook 03 draws them: name → words.

    Raises:
        UserError: too few other words to draw from.
    """
    tokenizer = subject.tokenizer
    traces = reasoning_corpus(settings, tokenizer, "selection", settings.subject)
    general = general_corpus(settings, tokenizer, "selection")
    ranking = vocabulary.rank_words(thinking_texts(settings, tokenizer), solution_texts(settings, tokenizer))
    drawn = draw_vocabularies(
        traces,
        join("all", [traces, general]),
        tokenizer,
        settings.words,
        ranking["word"].tolist(),
        vocabulary.lexicon(settings.corpus),
        settings.random_vocabularies,
        settings.slot_vocabularies,
        settings.seed,
    )
    return drawn.words


def gather_evidence(
    settings: Settings,
    subject: Subject,
    sae: Any,
    vocabularies: Mapping[str, Sequence[str]],
    kept: Path | None = None,
) -> pd.DataFrame:
    """What a scorer may look at (:func:`reasoning_features.truth.evidence.gather`), on the selection split.

    Raises:
        UserError: a word that never occurs, or an autoencoder of another width.
    """
    tokenizer = subject.tokenizer
    traces = reasoning_corpus(settings, tokenizer, "selection", settings.subject)
    return gather(
        subject,
        sae,
        traces,
        general_corpus(settings, tokenizer, "selection"),
        tokenizer,
        settings.words,
        vocabulary.lexicon(settings.corpus),
        vocabularies,
        find_decisions(traces, tokenizer, settings.corpus),
        settings.window,
        settings.alpha,
        settings.batch_tokens,
        kept,
    )


def held_out_decisions(settings: Settings, subject: Subject) -> dict[str, Decisions]:
    """Decisions of the evaluation split: ``settings.decisions`` of each kind, balanced by style.

    Raises:
        UserError: decisions are not known in this kind of text, or too few.
    """
    documents = DOCUMENTS_A_DECISION * settings.decisions
    traces = reasoning_corpus(
        settings, subject.tokenizer, "evaluation", settings.subject, documents=documents
    )
    found = find_decisions(traces, subject.tokenizer, settings.corpus)
    if not found:
        raise UserError(
            f"No decisions are known in the corpus {settings.corpus!r}: their effects can be measured on the "
            "organism alone."
        )
    return {kind: balanced(every, settings.decisions, settings.seed) for kind, every in found.items()}


def causal_effects(
    settings: Settings,
    subject: Subject,
    sae: Any,
    decisions: dict[str, Decisions],
    evidence: pd.DataFrame,
    places: Sequence[str] = tuple(PLACES),
) -> dict[str, dict[str, Effects]]:
    """Kind of decision → place → effects of every live feature.

    Args:
        settings: random directions and seed.
        subject: the model.
        sae: its autoencoder.
        decisions: :func:`held_out_decisions`.
        evidence: says which features are live, and their means.
        places: of ``PLACES``.
    """
    live = np.flatnonzero(evidence["density"].to_numpy() > 0)
    means = evidence["mean"].to_numpy(dtype=float)[live]
    return {
        kind: {
            place: measure_effects(
                subject,
                sae,
                held,
                live,
                means,
                PLACES[place],
                settings.random_directions,
                settings.seed,
                f"{kind}, ablated {'at the decision' if place == 'decision' else 'over the trace'}",
            )
            for place in places
        }
        for kind, held in decisions.items()
    }


def whole_trace_effects(
    settings: Settings,
    subject: Subject,
    sae: Any,
    decisions: Decisions,
    evidence: pd.DataFrame,
    features: NDArray[np.int64],
) -> Effects:
    """Effects of some features ablated at every token up to the decision; as many random directions."""
    means = evidence["mean"].to_numpy(dtype=float)[features]
    place, told = PLACES["trace"], f"{decisions.name}, {len(features)} features over the trace"
    return measure_effects(
        subject, sae, decisions, features, means, place, len(features), settings.seed, told
    )


def word_controls(
    settings: Settings,
    subject: Subject,
    sae: Any,
    features: NDArray[np.int64],
    control_words: Sequence[str],
) -> Controls:
    """What words of R in plain prose do to some features
    (:func:`reasoning_features.interpretation.lexical_controls.measure_controls`).

    Raises:
        UserError: no plain documents, or a word that cannot be written.
    """
    twins = vocabulary.lexicon(settings.corpus).twins
    return measure_controls(
        subject,
        sae,
        features,
        reasoning_corpus(settings, subject.tokenizer, "selection", settings.subject),
        general_corpus(settings, subject.tokenizer, "evaluation"),
        subject.tokenizer,
        settings.words,
        control_words,
        capitalised_with_twins(twins),
        settings.window,
        settings.batch_tokens,
        settings.seed,
    )


def identity(settings: Settings, sae: Any) -> dict[str, Any]:
    """What identifies an autoencoder among benchmarks; κ is missing where a model's card gives none.

    The autoencoder's seed is the number that its directory's name ends in, 0 where there is none.
    """
    card = paths.resolve(settings.subject) / "training.json"
    told = json.loads(card.read_text()) if card.is_file() else {}
    last = Path(settings.autoencoder).name.rsplit("-", 1)[-1]
    return {
        "model": short_name(settings.subject),
        "kappa": told.get("kappa", float("nan")),
        "model_seed": told.get("seed", 0),
        "architecture": architecture_label(sae),
        "autoencoder_seed": int(last) if last.isdigit() else 0,
    }


def agreement(fresh: Sequence[Benchmark], stored: Sequence[Benchmark]) -> pd.DataFrame:
    """How far effects that were measured anew agree with the stored ones of the same autoencoder.

    Returns:
        One row an autoencoder that both have, a kind of decision and a place where both ablated:
        ``features`` that both ablated there, and of their effects ``correlation``, ``largest difference`` in
        nats, and how many pass ``here``, ``stored`` and in ``both``.
    """
    rows = []
    for here in fresh:
        for there in stored:
            if here.identity != there.identity:
                continue
            for place, ours, theirs in (
                (PLACE, here.truths, there.truths),
                (TRACE, here.over_trace, there.over_trace),
            ):
                for kind in sorted(set(ours) & set(theirs)):
                    told = {"model": here.model, "decision": kind, "ablated": place}
                    rows.append(told | _agreement(ours[kind], theirs[kind]))
    return pd.DataFrame(rows)


def _agreement(ours: Truth, theirs: Truth) -> dict[str, float]:
    """One row of :func:`agreement`."""
    shared = np.intersect1d(ours.features, theirs.features)
    here, there = ours.of(shared), theirs.of(shared)
    return {
        "features": len(shared),
        "correlation": np.corrcoef(here.effect, there.effect)[0, 1],
        "largest difference": np.abs(here.effect - there.effect).max(),
        "here": int(here.true.sum()),
        "stored": int(there.true.sum()),
        "both": int((here.true & there.true).sum()),
    }
