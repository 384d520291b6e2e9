"""Ablation effects: what setting a feature to its mean does to the log-odds of a decision, in nats.

A feature i is ablated by adding (mean_i − a_i)·W_dec,i to the residual stream at the hook point. What the
autoencoder does not explain stays as it is, so nothing but the feature changes.

Random directions say which effects are more than any push of that size would do. Each takes the signed sizes
(mean_j − a_j)·‖W_dec,j‖ of a live feature j drawn at random. Small pushes act in proportion to their size, so
the 99th percentile of effects *per unit of size*, times feature i's own mean size, is that of random
directions of equal norm: one set serves every feature. :attr:`Effects.slope` is 1 where the proportion holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder import ELEMENTS
from reasoning_features.errors import UserError
from reasoning_features.interpretation.features import logit_effects
from reasoning_features.models.subject import Subject
from reasoning_features.statistics import bootstrap_ratio, bootstrap_weights
from reasoning_features.text.corpus import Corpus, by_length, sentence_starts
from reasoning_features.truth.decisions import Decisions, balanced, find_decisions, log_odds, swapped

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
QUANTILE = 0.99  # of random directions of equal norm; the share above it passes by chance
ROWS = 32  # ablated copies of a whole trace in one forward pass
LENS_TOKENS = 20  # of the logit lens that the output score looks for (2505.20063's released code)
AMPLIFICATION = 10.0  # a feature is raised by so many times the largest activation there (the same code)
# positions that are patched: the decision's token; its sentence up to it; all before that sentence; all
GROUPS = ("decision", "opening", "before", "all")

# from a trace's decisions (their numbers [k]) and its edits, how far each moves each token's stream [t, m]
# and along which direction [m, d], to changes of the log-odds and norms of the edits, [k, m] each
Place = Callable[[Subject, Decisions, Ids, Tensor, Tensor], tuple[Tensor, Tensor]]


def at_decision(
    subject: Subject, decisions: Decisions, which: Ids, amounts: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Edits at each decision's own token alone."""
    prefix = subject.prefix(_tokens(decisions, which))
    changes = []
    for place in decisions.places[which].tolist():
        moved = amounts[place, :, None] * directions
        # the first version is the stream as it is: what the others are compared with
        versions = prefix.stream[place] + torch.cat([torch.zeros_like(moved[:1]), moved])
        odds = log_odds(subject.logits_of_versions(prefix, place, versions), decisions)
        changes.append(odds[1:] - odds[0])
    norms = amounts.abs() * directions.norm(dim=1)
    return torch.stack(changes), norms[torch.from_numpy(decisions.places[which])]


def over_trace(
    subject: Subject, decisions: Decisions, which: Ids, amounts: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Edits at every token up to each decision; an edit's norm is that of all these tokens together.

    Later tokens cannot be seen by the decision, so one run serves all decisions of a trace.
    """
    places = torch.from_numpy(decisions.places[which])
    stream = subject.residual(_tokens(decisions, which)[None])[0]
    as_it_is = log_odds(subject.logits_from(stream[None], subject.layer, places[None])[0], decisions)
    changes = []
    for some, along in zip(amounts[: len(stream)].T.split(ROWS), directions.split(ROWS), strict=True):
        edited = torch.addcmul(stream, some[:, :, None], along[:, None])
        logits = subject.logits_from(edited, subject.layer, places.expand(len(edited), -1))
        changes.append(log_odds(logits, decisions) - as_it_is)
    norms = amounts.abs() * directions.norm(dim=1)
    return torch.cat(changes).T, norms.square().cumsum(0).sqrt()[places]


PLACES: dict[str, Place] = {"decision": at_decision, "trace": over_trace}


@dataclass(frozen=True)
class Effects:
    """Effects of features on one kind of decision, ablated at one place."""

    features: Ids  # that were ablated [f], ascending
    change: Array  # mean change of the log-odds on ablation [f]
    size: Array  # mean norm of the edit [f]
    threshold: Array  # 99th percentile of |mean change| under random directions of equal norm [f]
    sums: NDArray[np.floating]  # change summed over each trace's decisions [t, f]
    counts: NDArray[Any]  # decisions of each trace [t]
    # mean change, mean |change| and mean size of random directions [3, k]
    random: Array = field(default_factory=lambda: np.empty((3, 0)))

    @property
    def effect(self) -> Array:
        """Effect of each feature as it is ``[f]``: positive where it promotes the positive side."""
        return -self.change

    @property
    def true(self) -> NDArray[np.bool_]:
        """``[f]`` True where the mean change passes the threshold."""
        return np.abs(self.change) > self.threshold

    @property
    def strongest(self) -> Ids:
        """All features ``[f]``, the largest mean change first."""
        return self.features[np.argsort(-np.abs(self.change), kind="stable")]

    @property
    def passed(self) -> Ids:
        """The features that pass, the largest mean change first."""
        return self.strongest[np.isin(self.strongest, self.features[self.true])]

    @property
    def slope(self) -> float:
        """Slope of log mean |change| on log size over random directions; nan where none are stored."""
        _, absolute, size = self.random
        known = (size > 0) & (absolute > 0)
        if not known.any():
            return np.nan
        return float(np.polyfit(np.log(size[known]), np.log(absolute[known]), 1)[0])

    def of(self, features: Ids) -> Effects:
        """The effects of some of its features, in ascending order of their ids."""
        kept = np.isin(self.features, features)
        own = {name: getattr(self, name)[kept] for name in ("features", "change", "size", "threshold")}
        return replace(self, **own, sums=self.sums[:, kept])

    def resampled(self, resamples: int, seed: int) -> Array:
        """Effects on resampled traces ``[resamples, f]``."""
        weights = bootstrap_weights(len(self.counts), resamples, seed)
        return -(weights @ self.sums) / (weights @ self.counts)[:, None]

    def table(self) -> pd.DataFrame:
        """Features and random directions (``feature`` −1, with effect and size alone), one row each.

        ``effect`` on ablation has its 95% interval ``low``, ``high``; ``rank`` is by its size, from 1.
        """
        low, high = np.quantile(-self.resampled(2000, 0), [0.025, 0.975], axis=0)
        columns = {"feature": self.features, "effect": self.change, "low": low, "high": high}
        columns |= {"size": self.size, "threshold": self.threshold, "true": self.true}
        features = pd.DataFrame(columns)
        features["rank"] = features["effect"].abs().rank(ascending=False, method="first").astype(int)
        random = pd.DataFrame({"effect": self.random[0], "size": self.random[2]})
        return pd.concat([features, random.assign(feature=-1, true=False)], ignore_index=True)


@torch.no_grad()
def measure_effects(
    subject: Subject,
    sae: Any,
    decisions: Decisions,
    features: Ids,
    means: Array,
    place: Place,
    n_random: int,
    seed: int,
    progress: str = "",
) -> Effects:
    """Ablate each feature to its mean at each decision, and random directions by sizes of those ablations.

    ``means`` ``[f]`` are mean activations over tokens that are not special; special tokens are never edited.
    ``progress`` names the progress bar. Raises UserError without decisions or features.
    """
    if not len(decisions) or not len(features):
        raise UserError("Causal effects need a decision and a live feature: take more documents.")
    generator, f = torch.Generator().manual_seed(seed), len(features)
    decoder = sae.W_dec.detach()[torch.from_numpy(features)]
    drawn = torch.randint(f, (n_random,), generator=generator)
    unit = torch.nn.functional.normalize(torch.randn(n_random, decoder.shape[1], generator=generator), dim=1)
    directions = torch.cat([decoder, unit.to(decoder.device) * decoder[drawn].norm(dim=1, keepdim=True)])
    sources = torch.cat([torch.arange(f), drawn])  # which feature lends each edit its amounts
    documents, counts = np.unique(decisions.documents, return_counts=True)
    sums, traces = np.zeros((3, len(sources))), np.empty((len(documents), f), np.float32)
    with tqdm(total=len(decisions), desc=progress, unit=" decisions") as bar:
        for row, document in enumerate(documents):
            which = np.flatnonzero(decisions.documents == document)
            amounts = _amounts(subject, sae, decisions, document, features, means)[:, sources]
            found = place(subject, decisions, which, amounts, directions)
            change, size = (values.double().cpu().numpy() for values in found)
            change[size == 0] = 0  # rounding alone: rows of one product need not round alike
            sums += change.sum(0), np.abs(change).sum(0), size.sum(0)
            traces[row] = change[:, :f].sum(0)
            bar.update(len(which))
    means_of = sums / len(decisions)
    effect, _, size = means_of
    pushed = size[f:] > 0
    ratio = float(np.quantile(np.abs(effect[f:][pushed]) / size[f:][pushed], QUANTILE))
    return Effects(features, effect[:f], size[:f], ratio * size[:f], traces, counts, means_of[:, f:])


def _tokens(decisions: Decisions, which: Ids) -> Tensor:
    """Tokens of the decisions' one document up to the last of them: what comes later plays no part."""
    document = decisions.corpus.document(int(decisions.documents[which[0]]))
    return torch.from_numpy(document[: decisions.places[which].max() + 1].astype(np.int64))


def _amounts(
    subject: Subject, sae: Any, decisions: Decisions, document: int, features: Ids, means: Array
) -> Tensor:
    """mean_i − a_i ``[t, f]`` over the tokens of a document; 0 at special tokens."""
    corpus = decisions.corpus
    stream = subject.residual(torch.from_numpy(corpus.document(document).astype(np.int64))[None])[0]
    active = sae.encode(stream.float())[:, torch.from_numpy(features)]
    special = torch.from_numpy(corpus.special[corpus.span(document)]).to(active.device)
    return (torch.from_numpy(means).to(active) - active).masked_fill(special[:, None], 0)


def gradient_attribution(
    subject: Subject, sae: Any, decisions: Decisions, means: Array, batch_tokens: int
) -> Array:
    """Mean over decisions of (a_i − mean_i) · (W_dec,i · ∂ log-odds / ∂ stream) ``[f]``, in nats.

    The first-order estimate of ablation to ``means`` ``[f]`` at the decision's own position. Each decision is
    a row of its own, so that the others of a trace do not enter.
    """
    mean = torch.from_numpy(means)
    decoder = sae.W_dec.detach().double().cpu()
    total = torch.zeros(len(means), dtype=torch.float64)
    for batch in by_length(decisions.places + 1, batch_tokens):
        which = np.array(batch)
        ids, at = _rows(decisions.corpus, decisions, which), torch.from_numpy(decisions.places[which])
        index = torch.arange(len(which))

        def summed(logits: Tensor, index: Tensor = index, at: Tensor = at) -> Tensor:
            return log_odds(logits[index, at], decisions).sum()

        stream, gradients = (read[index, at] for read in subject.gradient(ids, summed))
        with torch.no_grad():
            features = sae.encode(stream.float()).double().cpu()
        total += ((features - mean) * (gradients.double().cpu() @ decoder.T)).sum(0)
    return (total / len(decisions.positions)).numpy()


def neutral_prompts(general: Corpus, n: int, length: int) -> list[list[int]]:
    """The first ``length`` tokens of ``n`` documents without thinking, spread evenly over the corpus.

    Raises UserError: fewer than ``n`` documents are long enough.
    """
    thinks = np.bincount(general.document_of, general.thinking, general.n_documents) > 0
    plain = np.flatnonzero(~thinks & (np.diff(general.starts) > length))
    if len(plain) < n:
        raise UserError(
            f"The corpus {general.name!r} has {len(plain)} documents without thinking of more than {length} "
            f"tokens, {n} are needed: raise `general_documents`."
        )
    chosen = plain[np.linspace(0, len(plain) - 1, n).round().astype(int)]
    return [general.document(int(i))[:length].tolist() for i in chosen]


@torch.no_grad()
def output_scores(
    subject: Subject, sae: Any, prompts: Sequence[Sequence[int]], batch_tokens: int, features: Ids
) -> Array:
    """The output score of 2505.20063 of each of ``features``, a mean over prompts of token ids ``[f]``.

    It asks without labels whether forcing a feature raises the very tokens that its decoder direction points
    at: at the prompt's last position its activation is raised by ten times the largest one there. With T the
    20 tokens that the direction raises most through final norm and unembedding, the score is (1 − best rank
    of T / size of the vocabulary) · max_{t ∈ T} P(t). The paper has one prompt, "From my experience,".
    """
    decoder = sae.W_dec.detach()[torch.from_numpy(features)]
    rows_at_once = max(1, ELEMENTS // subject.model.config.vocab_size)  # rows of logits
    parts = decoder.split(rows_at_once)
    meant = torch.cat([logit_effects(subject, part).topk(LENS_TOKENS, dim=1).indices for part in parts])
    total = np.zeros(len(features))
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        largest = sae.encode(subject.residual(ids)[:, -1].float()).max()
        size = max(1, min(batch_tokens, 4 * rows_at_once) // len(prompt))
        scores = []
        for start in range(0, len(features), size):
            rows = slice(start, start + size)
            added = AMPLIFICATION * largest * decoder[rows]

            def amplified(stream: Tensor, added: Tensor = added) -> Tensor:
                changed = stream.clone()
                changed[:, -1] += added.to(stream)
                return changed

            logits = subject.logits_with(ids.expand(len(added), -1), amplified)[:, -1].float()
            best = logits.gather(1, meant[rows]).max(1).values
            rank = (logits > best[:, None]).sum(1).double()
            probability = logits.softmax(1).gather(1, meant[rows]).max(1).values.double()
            scores.append((1 - rank / logits.shape[1]) * probability)
        total += torch.cat(scores).cpu().numpy()
    return total / len(prompts)


def patch(subject: Subject, decisions: Decisions, other: Corpus, batch_tokens: int) -> pd.DataFrame:
    """Share of the change of log-odds that each group of positions carries after each block.

    ``other`` holds the traces of ``decisions.corpus``, token for token, in another wording. ``share`` is
    Σ patched change / Σ whole change, with its 95% interval (traces resampled); ``change`` is the mean whole
    change in nats.
    """
    starts = sentence_starts(decisions.corpus, subject.tokenizer)
    openings = starts[np.searchsorted(starts, decisions.positions, side="right") - 1]
    openings = openings - decisions.corpus.starts[decisions.documents]
    changes, whole = np.empty((subject.n_layers, len(GROUPS), len(decisions))), np.empty(len(decisions))
    for batch in by_length(decisions.places + 1, batch_tokens):
        which = np.array(batch)
        whole[which], changes[:, :, which] = _patched(subject, decisions, other, which, openings[which])
    _, trace = np.unique(decisions.documents, return_inverse=True)
    totals, rows = np.bincount(trace, whole), []
    for layer, group in np.ndindex(changes.shape[:2]):
        share = bootstrap_ratio(np.bincount(trace, changes[layer, group]), totals)
        row = {"layer": layer, "group": GROUPS[group]} | share.row("share") | {"change": whole.mean()}
        rows.append(row | {"decisions": len(decisions), "traces": share.n})
    return pd.DataFrame(rows)


def patch_wordings(
    subject: Subject, corpus: Corpus, kind: str, n: int, seed: int, batch_tokens: int
) -> tuple[str, pd.DataFrame]:
    """:func:`patch` ``n`` decisions on persistence of each style between two wordings of their traces.

    Gives, of the pairs of wordings (:data:`reasoning_features.truth.decisions.SWAPS`), the name of the pair
    that moves the log-odds most, and its table.
    """
    tables = {}
    for name, (one, other) in swapped(corpus, subject.tokenizer, kind).items():
        decisions = balanced(find_decisions(one, subject.tokenizer, kind)["persistence"], 2 * n, seed)
        tables[name] = patch(subject, decisions, other, batch_tokens).assign(swap=name)
    strongest = max(tables, key=lambda name: abs(tables[name]["change"].iloc[0]))
    return strongest, tables[strongest]


def _patched(
    subject: Subject, decisions: Decisions, other: Corpus, which: Ids, openings: Ids
) -> tuple[Array, Array]:
    """Whole changes ``[k]`` and patched changes ``[layers, groups, k]`` of some decisions.

    ``openings`` ``[k]`` are the places where the decisions' sentences begin.
    """
    places = torch.from_numpy(decisions.places[which])
    layers = range(subject.n_layers)
    ours = subject.residuals(_rows(decisions.corpus, decisions, which), layers)
    theirs = subject.residuals(_rows(other, decisions, which), layers)

    def odds(stream: Tensor, layer: int) -> Array:
        logits = subject.logits_from(stream, layer, places[:, None])[:, 0]
        return log_odds(logits, decisions).double().cpu().numpy()

    last = subject.n_layers - 1
    as_it_is = odds(ours[last], last)
    at, place = torch.arange(ours[last].shape[1])[None], places[:, None]
    opening = torch.from_numpy(openings)[:, None]
    masks = at == place, (at >= opening) & (at <= place), at < opening, at <= place  # of GROUPS
    changes = np.empty((subject.n_layers, len(GROUPS), len(which)))
    for layer in layers:
        for group, mask in enumerate(masks):
            mixed = torch.where(mask[..., None].to(subject.device), theirs[layer], ours[layer])
            changes[layer, group] = odds(mixed, layer) - as_it_is
    return odds(theirs[last], last) - as_it_is, changes


def _rows(corpus: Corpus, decisions: Decisions, which: Ids) -> Tensor:
    """Tokens ``[k, t]`` of each decision's document, cut after the batch's last decision, padded with 0."""
    rows = torch.zeros(len(which), int(decisions.places[which].max()) + 1, dtype=torch.long)
    for row, i in zip(rows, which, strict=True):
        tokens = corpus.document(int(decisions.documents[i]))[: len(row)]
        row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
    return rows
