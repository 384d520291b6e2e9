"""Models that refuse: their questions, unit vectors v, and what adding x ← x + c · μ_l · v does to answers.

μ_l is the mean norm of the residual stream after block l over tokens of prompts, mean of the refused and the
allowed questions. The vectors are random, directions of an autoencoder's decoder, random with the stream's
covariance, the best by ReasonScore, the refusal direction with either sign, or nothing is added and that
direction is taken away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.errors import UserError
from reasoning_features.models.conditions import Condition, steered_logits
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.runs.shards import Arrays
from reasoning_features.settings import Settings
from reasoning_features.steering import refusals
from reasoning_features.steering.questions import Questions, subset
from reasoning_features.steering.steering_study import mean_norm
from reasoning_features.text.corpora import general_corpus
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth.feature_table import measure_features

RANDOM, DECODER, COVARIANCE = "random", "SAE decoder", "random, the stream's covariance"
REASONING = "ReasonScore's features"
TOWARDS, AWAY, REMOVED = (f"refusal direction {how}" for how in ("added", "subtracted", "removed"))
DIRECTION = (TOWARDS, AWAY, REMOVED)
KINDS = (RANDOM, DECODER, COVARIANCE, REASONING, *DIRECTION)
NEUTRAL = 6  # documents of general text
LEAST = 30  # refused questions that a study takes, unless fewer are asked for


@dataclass(frozen=True)
class Refuser:
    """A model that refuses, with its questions by split, and the neutral text."""

    settings: Settings
    subject: Subject  # read at the settings' layer
    refused: Mapping[str, Questions]
    allowed: Mapping[str, Questions]
    neutral: Corpus

    @property
    def layers(self) -> list[int]:
        """The depths ½, ⅓ and ⅔, and the profile's layer: there the autoencoder is."""
        n = self.subject.n_layers
        return list(dict.fromkeys([n // 2, n // 3, 2 * n // 3, self.settings.layer]))

    def at(self, layer: int) -> Subject:
        return replace(self.subject, layer=layer)

    def autoencoder(self, layer: int) -> str | None:
        """The autoencoder of this model and layer, if there is one."""
        if (home := self.settings.refuser_autoencoders) is None:
            return self.settings.autoencoder if layer == self.settings.layer else None
        place = f"{home}/{Path(self.subject.name).name}-{layer}"
        return place if paths.resolve(place).is_dir() else None

    @cached_property
    def norms(self) -> dict[int, float]:
        """μ_l by layer, of the selection split, over tokens that are not special."""
        asked = [part["selection"] for part in (self.refused, self.allowed)]
        corpora = [refusals.prompt_corpus(self.subject, each) for each in asked]
        size = self.settings.batch_tokens
        means = [{at: mean_norm(self.at(at), corpus, size) for at in self.layers} for corpus in corpora]
        return {layer: float(np.mean([each[layer] for each in means])) for layer in self.layers}

    def read(self, layer: int, questions: Questions) -> tuple[Tensor, Tensor]:
        """The stream at tokens of prompts that are not special ``[n, d]``, and at each's last ``[q, d]``."""
        corpus = refusals.prompt_corpus(self.subject, questions)
        batch = collect(stream(self.at(layer), corpus, self.settings.batch_tokens))
        document = corpus.document_of[batch.positions.numpy()]
        last = np.flatnonzero(np.diff(np.append(document, -1)))
        return batch.residual, batch.residual[torch.from_numpy(last)]

    @cached_property
    def refusal_directions(self) -> dict[int, Tensor]:
        """Unit ``[d]`` by layer: mean stream at the last token that can be steered, refused less allowed
        questions of the training split (the difference in means of 2406.11717).
        """
        both = (self.refused["training"], self.allowed["training"])
        means = {at: [self.read(at, questions)[1].mean(0) for questions in both] for at in self.layers}
        return {layer: normalize(refused - allowed, dim=0) for layer, (refused, allowed) in means.items()}

    def directions(self, kind: str, layer: int, n: int) -> Tensor:
        """The first ``n`` unit vectors ``[n, d]`` of a kind, as many as there are. UserError: a feature is
        asked for and none is active on the texts.
        """
        rng, d = np.random.default_rng([self.settings.seed, layer, KINDS.index(kind)]), self.subject.d_model
        if kind in DIRECTION:
            return self.refusal_directions[layer][None] * (-1 if kind == AWAY else 1)
        if kind == RANDOM:
            return normalize(torch.from_numpy(rng.standard_normal((n, d))).float(), dim=1)
        if kind == COVARIANCE:
            covariance = self.read(layer, self.allowed["training"])[0].double().T.cov()
            values, vectors = torch.linalg.eigh(covariance)
            drawn = torch.from_numpy(rng.standard_normal((n, d))) * values.clamp(min=0).sqrt()
            return normalize((drawn @ vectors.T).float(), dim=1)
        subject = self.at(layer)
        sae = load_autoencoder(self.autoencoder(layer) or "", d, subject.hook_name, str(subject.device))
        settings = self.settings.model_copy(update={"subject": subject.name, "layer": layer})
        kept = paths.RunPaths(settings.profile).shards
        _, table = measure_features(settings, subject, sae, {"R": tuple(settings.words)}, kept=kept)
        live = table[table["density"] > 0]
        if live.empty:
            raise UserError(
                f"No feature of {self.autoencoder(layer)} is active on the texts: give other texts."
            )
        numbers = rng.permutation(live["feature"])[:n]
        if kind == REASONING:
            ranked = live.sort_values("score:reason score", ascending=False, kind="stable")
            numbers = ranked["feature"].to_numpy()[: settings.selected]
        return normalize(sae.W_dec.detach().cpu().float()[torch.from_numpy(np.array(numbers))], dim=1)

    def conditions(self, vectors: Tensor, layer: int, c: float, removed: bool = False) -> list[Condition]:
        """Each unit vector ``[n, d]`` added c · μ_l long wherever a token is not special, or taken away."""
        if removed:
            return [Condition(f"vector {i}", removed=vector) for i, vector in enumerate(vectors)]
        added = c * self.norms[layer] * vectors
        return [Condition(f"vector {i}", vector=v, gamma=c, spares_special=True) for i, v in enumerate(added)]

    def measured(
        self,
        vectors: Tensor,
        layer: int,
        conditions: Sequence[Condition],
        split: str,
        questions: Questions,
        capable: Sequence[int],
        losses: int = 0,
    ) -> Arrays:
        """What a condition a vector does, a row each: letters of questions ``[rows, questions]``, of the
        split's allowed ones under those that are ``capable`` ``[rows, allowed]`` (else 0), the neutral loss
        under the first ``losses`` (else NaN), the vector's cosine with the refusal direction.
        """
        model, allowed = self.at(layer), self.allowed[split]
        found = {
            "refused": _letters(model, questions, conditions),
            "allowed": np.zeros((len(conditions), len(allowed)), dtype=np.uint8),
            "loss": np.full(len(conditions), np.nan),
            "cosine": (vectors @ self.refusal_directions[layer]).double().numpy(),
        }
        found["allowed"][capable] = _letters(model, allowed, [conditions[i] for i in capable])
        found["loss"][:losses] = [neutral_loss(model, self.neutral, each) for each in conditions[:losses]]
        return found


def _letters(*asked: Any) -> NDArray[np.uint8]:
    """As :func:`refusals.outcomes` gives them, a byte each: shards hold numbers."""
    return refusals.outcomes(*asked).astype("S1").view(np.uint8)


def neutral_loss(subject: Subject, corpus: Corpus, condition: Condition) -> float:
    """Mean next-token loss (nats) at tokens of a corpus that are not special, under a condition."""
    total, count = 0.0, 0
    for batch in corpus.batches(4096):
        tokens = batch.tokens.to(subject.device)
        logits = steered_logits(subject, tokens, [condition] * len(tokens))[:, :-1]
        wanted = batch.valid & torch.from_numpy(~corpus.special[batch.positions.numpy()])
        wanted, following = wanted[:, 1:].to(subject.device), tokens[:, 1:]
        total += float(cross_entropy(logits[wanted].float(), following[wanted], reduction="sum"))
        count += int(wanted.sum())
    return total / count


def load_refusers(settings: Settings, names: Sequence[str]) -> list[Refuser]:
    """The profile's refusers of these names, all with the same questions: those that each refuser refuses
    and each parent, the same model without the rule, answers rightly. UserError: a split has none, or the
    evaluation split too few.
    """
    load = partial(load_subject, layer=settings.layer, device=settings.device, dtype=settings.dtype)
    subjects, parents = [*map(load, settings.refusers)], [*map(load, settings.refuser_parents)]
    tokenizer, most = subjects[0].tokenizer, max(settings.refused_prompts, settings.refused_shown)
    for model in [*subjects, *parents]:
        if model.tokenizer.get_vocab() != tokenizer.get_vocab():
            told = f"{model.name} has other tokens than {subjects[0].name}"
            raise UserError(f"{told}, so they cannot be asked the same: give them profiles of their own.")
    refused, allowed = {}, {}
    for split in ("training", "selection", "evaluation"):
        asked = partial(refusals.refusal_questions, settings, tokenizer, split)
        every, others = asked(refused=True), asked(refused=False)
        if split != "training":
            every = subset(every, refusals.refused_by_all(subjects, parents, every, most))
            others = subset(others, range(min(len(others), settings.allowed_prompts)))
        if not len(every) or not len(others):
            lacks = "that all refusers refuse" if len(others) else "that may be answered"
            raise UserError(f"The {split} split has no question {lacks}: give others, or more of them.")
        refused[split], allowed[split] = every, others
    if (n := len(refused["evaluation"])) < min(LEAST, settings.refused_prompts):
        told = f"{n} evaluation questions are refused by all refusers and known to their parents"
        raise UserError(f"Only {told}, and {LEAST} are needed: give more of them, or easier ones.")
    neutral = general_corpus(settings, tokenizer, "evaluation")
    prose = [i for i, domain in enumerate(neutral.domains) if settings.corpus == "text" or domain == "prose"]
    neutral = neutral.select(prose[:NEUTRAL])
    chosen = [s for name, s in zip(settings.refusers, subjects, strict=True) if name in names]
    return [Refuser(settings, subject, refused, allowed, neutral) for subject in chosen]
