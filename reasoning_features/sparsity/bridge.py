"""What an autoencoder, ReasonScore and steering tell of a model: is it still so when the model is pruned?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasoning_features.dictionaries.autoencoder import dictionary_digest
from reasoning_features.dictionaries.evaluation import reconstruct
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.runs.shards import Arrays
from reasoning_features.scoring import reason_score
from reasoning_features.scoring.feature_statistics import SetSums, one_pass
from reasoning_features.scoring.selection import REFERENCE
from reasoning_features.statistics import Ids
from reasoning_features.text.corpora import reasoning_corpus, with_words_that_occur
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import TokenSets, WordIndex, token_sets
from reasoning_features.truth.benchmark import Variant
from reasoning_features.truth.feature_table import Largest

STEERED = 5  # features by ReasonScore, and as many random live ones, whose effect is followed
GAMMA = 0.25  # how strongly, in units of a feature's largest activation
TEXTS, PLACES = 4, 64  # where effects are read, and the most places of each


@dataclass(frozen=True)
class Bridge:
    """A model's autoencoder, text to read with it, and features that are steered."""

    variant: Variant
    traces: Corpus  # reasoning text of the evaluation split
    words: tuple[str, ...]  # of R, those that occur in it
    sets: TokenSets
    features: Ids  # [k] the dense model's best by ReasonScore, then random live ones
    vectors: Tensor  # [k, d] what is added to the stream of each
    texts: list[Tensor]  # [w][t] token ids
    places: list[Tensor]  # [w][p] where effects are read
    dense: Tensor  # [k, all places, vocabulary] effects on the dense model's logits

    @property
    def told(self) -> dict[str, Any]:
        """What a study says of it."""
        half = len(self.features) // 2
        kinds = ["ReasonScore"] * half + ["random"] * half
        steered = {"steered": self.features.tolist(), "kinds": kinds}
        return steered | {"autoencoder": dictionary_digest(self.variant.sae), "words": list(self.words)}

    def read(self) -> Arrays:
        """As the model is now: of each document the sums ``error``, ``deviation``, ``active`` and ``tokens``;
        of each feature ReasonScore ``score``, also of either half of the documents, and ``density``; of each
        steered feature ``effect``, ⟨Δ, Δ_dense⟩ / ‖Δ_dense‖² of the changes of logits, ``alignment``, their
        cosine, and ``others``, the mean cosine with what the other features do to the dense model.
        """
        found = _features(self.variant, self.traces, self.words, self.sets)
        del found["maximum"]
        changes = _effects(self.variant, self.vectors, self.texts, self.places).double().flatten(1)
        usual = self.dense.double().flatten(1)
        lengths = changes.norm(dim=1), usual.norm(dim=1)
        cosines = (changes @ usual.T / lengths[0][:, None] / lengths[1]).numpy()
        own = cosines.diagonal()
        found["effect"] = own * (lengths[0] / lengths[1]).numpy()
        found["alignment"] = own.copy()
        found["others"] = (cosines.sum(1) - own) / (len(own) - 1)
        return found


def load_bridge(variant: Variant, texts: Sequence[Tensor]) -> Bridge:
    """What to read a pruned model with, from the dense one; ``texts`` are token ids ``[t]`` each."""
    settings, subject = variant.settings, variant.model
    settings = with_words_that_occur(settings, subject.tokenizer)
    traces = reasoning_corpus(settings, subject.tokenizer, "evaluation", None, settings.sparsity_documents)
    index = WordIndex(traces, subject.tokenizer)
    words = tuple(word for word in settings.words if len(index.occurrences(word, settings.capitalised)))
    sets = token_sets(index, {REFERENCE: words}, [settings.window], settings.capitalised)
    found = _features(variant, traces, words, sets)
    live, rng = np.flatnonzero(found["density"] > 0), np.random.default_rng(settings.seed)
    best = reason_score.select(found["score"], k=min(STEERED, len(live) // 2))
    random = rng.permutation(np.setdiff1d(live, best))[: len(best)]
    features = np.concatenate([best, random])
    scale = torch.from_numpy(GAMMA * found["maximum"][features]).float()
    vectors = scale[:, None] * variant.sae.W_dec.detach()[torch.from_numpy(features)].cpu().float()
    some = list(texts[:TEXTS])
    drawn = [rng.permutation(len(text))[:PLACES] for text in some]
    at = [torch.from_numpy(np.sort(own)) for own in drawn]
    dense = _effects(variant, vectors, some, at)
    return Bridge(variant, traces, words, sets, features, vectors, some, at, dense)


def _features(variant: Variant, traces: Corpus, words: Sequence[str], sets: TokenSets) -> Arrays:
    """What features do on the traces: see :meth:`Bridge.read`; and each one's ``maximum``."""
    settings, sae = variant.settings, variant.sae
    read = collect(stream(variant.model, traces, settings.batch_tokens))
    sums, largest = SetSums(sets, traces.document_of % 2, 2), Largest()
    one_pass([read], sae, [sums, largest])
    halves, told = sums.result(), reconstruct(sae, read.residual)
    given = REFERENCE, words, settings.window, settings.alpha
    by_half = reason_score.vocabulary_scores(halves, *given)
    found = {"score": reason_score.vocabulary_scores(halves.total(), *given)}
    found |= {f"score, half {half}": by_half[half] for half in (0, 1)}
    found |= {"density": told.density, "maximum": largest.state()["maximum"]}
    documents = told.by_document(traces.document_of[read.positions.numpy()])
    return found | {str(name): column.to_numpy(dtype=float) for name, column in documents.items()}


def _effects(variant: Variant, vectors: Tensor, texts: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Changes of centred logits ``[k, all places, vocabulary]`` when each vector ``[k, d]`` is added to the
    stream at every token.
    """
    subject, changes = variant.model, []
    for text, at in zip(texts, places, strict=True):
        tokens, where = text[None], at[None]
        residual = subject.residual(tokens)
        base = subject.logits_from(residual, subject.layer, where)[0].float()
        own = []
        for vector in vectors.to(residual):
            moved = subject.logits_from(residual + vector, subject.layer, where)[0].float() - base
            own.append((moved - moved.mean(-1, keepdim=True)).cpu())
        changes.append(torch.stack(own))
    return torch.cat(changes, dim=1)
