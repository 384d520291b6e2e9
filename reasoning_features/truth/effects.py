"""Patching effects: what a feature, a set of features, or the whole stream carries of a decision, in nats.

A trace is written twice, token for token: in the words that careful traces lean to, and in those of hasty
ones. At a decision's own token the residual stream of the first is moved towards the second's, and the effect
is how far the log-odds of the decision fall. A feature i alone is moved by adding (a'_i − a_i)·W_dec,i, where
a and a' are its activations in the two wordings. Where that switches it off and the log-odds fall, its own
activity speaks for going on (or for checking), and its effect is positive; where it switches it on, it speaks
for giving up, and the effect is negative. (Set to its mean instead, a feature that tells careful traces from
hasty ones would raise the log-odds of as many decisions as it lowers.)

Random directions say which effects are more than any push of that size would have. Each takes the signed
sizes (a'_j − a_j)·‖W_dec,j‖ of a feature j that moves at all. Such effects are the projections of a gradient
on random directions: normal, and in proportion to the size of the push. Their spread per unit of size gives
every feature's p-value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, norm
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features.dictionaries.autoencoder import ELEMENTS
from reasoning_features.errors import UserError
from reasoning_features.interpretation.features import logit_effects
from reasoning_features.models.subject import Subject
from reasoning_features.statistics import Array, Flags, Ids, bootstrap_ratio, bootstrap_weights
from reasoning_features.text.corpus import Corpus, by_length, sentence_starts
from reasoning_features.truth.decisions import Decisions, log_odds

FLOOR = 0.02  # nats: a smaller effect is none, however sure
FALSE_DISCOVERIES = 0.05  # expected share of features called causal that are no more than random directions
LENS_TOKENS = 20  # of the logit lens that the output score looks for (2505.20063's released code)
AMPLIFICATION = 10.0  # a feature is raised by so many times the largest activation there (the same code)
# positions that are patched: the decision's token; its sentence up to it; all before that sentence; all
GROUPS = ("decision", "opening", "before", "all")
STREAM, RECONSTRUCTION, ERROR = "whole stream", "reconstruction", "error term"  # parts of the move
BATCH_TOKENS = 16_384  # read at once


@dataclass(frozen=True)
class Effects:
    """Effects of features on one kind of decision, each patched alone at the decision's own token."""

    features: Ids  # that were patched [f], ascending
    effect: Array  # mean effect [f]: positive where the feature's activity speaks for going on, or checking
    size: Array  # mean norm of the move [f]
    random: Array  # mean fall and mean norm of random directions [2, k]
    sums: NDArray[np.floating]  # fall summed over each trace's decisions [t, f]
    counts: NDArray[Any]  # decisions of each trace [t]

    @property
    def spread(self) -> float:
        """Standard deviation of random directions' effects per unit of size, in nats; 0 where none move."""
        effect, size = self.random[:, self.random[1] > 0]
        return float(np.sqrt(np.mean((effect / size) ** 2))) if len(size) else 0.0

    @property
    def z(self) -> Array:
        """Effects in standard deviations of those of random directions of their size ``[f]``."""
        limit = self.spread * self.size
        return np.divide(self.effect, limit, out=np.zeros(len(limit)), where=limit > 0)

    @property
    def p_values(self) -> Array:
        """Chance that a random direction of a feature's size has as large an effect ``[f]``; two-sided."""
        return 2 * norm.sf(np.abs(self.z))

    @cached_property
    def threshold(self) -> Array:
        """The effect from which a feature is causal ``[f]``, in nats; infinite where it never moves.

        At least ``FLOOR``, and beyond random directions of its size by Benjamini and Hochberg (1995) among
        the features that move.
        """
        moved = self.size > 0
        found = false_discovery_control(self.p_values[moved]) <= FALSE_DISCOVERIES if moved.any() else moved
        # a hair below the last that is found, which rounding would lose
        critical = (1 - 1e-9) * np.abs(self.z[moved][found]).min(initial=np.inf)
        return np.maximum(FLOOR, critical * self.spread * np.where(moved, self.size, np.inf))

    @property
    def causal(self) -> Flags:
        """``[f]`` True where the effect reaches the threshold, whichever its sign."""
        return np.abs(self.effect) >= self.threshold

    def resampled(self, resamples: int, seed: int) -> Array:
        """Effects on resampled traces ``[resamples, f]``."""
        weights = bootstrap_weights(len(self.counts), resamples, seed)
        return (weights @ self.sums) / (weights @ self.counts)[:, None]

    def table(self) -> pd.DataFrame:
        """Features and random directions (``feature`` −1, with effect and size alone), one row each.
        ``effect`` has its 95% interval ``low``, ``high`` over traces; ``rank`` is by its size, from 1.
        """
        low, high = np.quantile(self.resampled(2000, 0), [0.025, 0.975], axis=0)
        columns = {"feature": self.features, "effect": self.effect, "low": low, "high": high}
        columns |= {"size": self.size, "z": self.z, "causal": self.causal}
        features = pd.DataFrame(columns)
        features["rank"] = features["effect"].abs().rank(ascending=False, method="first").astype(int)
        random = pd.DataFrame({"effect": self.random[0], "size": self.random[1]})
        return pd.concat([features, random.assign(feature=-1, causal=False)], ignore_index=True)


@torch.no_grad()
def streams(subject: Subject, decisions: Decisions, corpus: Corpus) -> Tensor:
    """The residual stream at each decision's own token ``[n, d]``, in a wording of its traces."""
    found = torch.empty(len(decisions), subject.d_model, device=subject.device)
    for batch in by_length(decisions.places + 1, BATCH_TOKENS):
        which = np.array(batch)
        places = torch.from_numpy(decisions.places[which])
        stream = subject.residual(_rows(corpus, decisions, which))
        found[which] = stream[torch.arange(len(which)), places].float()
    return found


@torch.no_grad()
def falls(
    subject: Subject, decisions: Decisions, moves: Callable[[int], Tensor], progress: str = ""
) -> tuple[Array, Array]:
    """How far each move lowers each decision's log-odds (nats), and the norm of the move, ``[n, m]`` each.

    ``moves`` gives those of a decision, by its number: what is added to the stream at its own token
    ``[m, d]``. ``progress`` names the progress bar. UserError: there are no decisions.
    """
    if not len(decisions):
        raise UserError("Effects need a decision: take more documents.")
    found: list[Any] = [None] * len(decisions)
    with tqdm(total=len(decisions), desc=progress, unit=" decisions") as bar:
        for document in np.unique(decisions.documents):
            which = np.flatnonzero(decisions.documents == document)
            # what comes after the last decision plays no part
            tokens = decisions.corpus.document(int(document))[: decisions.places[which].max() + 1]
            prefix = subject.prefix(torch.from_numpy(tokens.astype(np.int64)))
            for i, place in zip(which.tolist(), decisions.places[which].tolist(), strict=True):
                moved = moves(i)
                # the first version is the stream as it is: what the others are compared with
                versions = prefix.stream[place] + torch.cat([torch.zeros_like(moved[:1]), moved])
                odds = log_odds(subject.logits_of_versions(prefix, place, versions), decisions)
                norms = moved.norm(dim=1)
                # what is not moved differs by rounding alone: rows of one product need not round alike
                fallen = torch.where(norms > 0, odds[0] - odds[1:], 0)
                found[i] = [each.double().cpu().numpy() for each in (fallen, norms)]
            bar.update(len(which))
    changes, sizes = (np.stack(each) for each in zip(*found, strict=True))
    return changes, sizes


@torch.no_grad()
def measure_effects(
    subject: Subject, sae: Any, decisions: Decisions, other: Corpus, features: Ids, n_random: int, seed: int
) -> Effects:
    """Patch each feature alone at each decision, and random directions by sizes of those moves.

    ``other`` holds the traces of ``decisions.corpus``, token for token, in another wording. Raises UserError:
    there are no decisions, or no feature's activation differs between the wordings.
    """
    ours, theirs = (streams(subject, decisions, corpus) for corpus in (decisions.corpus, other))
    ids = torch.from_numpy(features)
    amounts, decoder = sae.encode(theirs)[:, ids] - sae.encode(ours)[:, ids], sae.W_dec.detach()[ids]
    moving = (amounts != 0).any(dim=0).nonzero().squeeze(1)  # others are active at no decision
    if not len(moving):
        raise UserError("No feature differs between wordings at any decision: take more documents.")
    generator = torch.Generator().manual_seed(seed)
    drawn = moving[torch.arange(n_random) % len(moving)]  # each in turn
    unit = torch.nn.functional.normalize(torch.randn(n_random, decoder.shape[1], generator=generator), dim=1)
    directions = torch.cat([decoder[moving], unit.to(decoder) * decoder[drawn].norm(dim=1, keepdim=True)])
    sources, m = torch.cat([moving, drawn]), len(moving)
    told = f"{decisions.name}, {len(features)} features"
    fallen, norms = falls(subject, decisions, lambda i: amounts[i, sources][:, None] * directions, told)
    totals, counts = _by_trace(decisions, fallen[:, :m])
    sums, size, moved = np.zeros((len(counts), len(features))), np.zeros(len(features)), moving.cpu().numpy()
    # a feature that the hasty wording turns on speaks against going on where the log-odds fall
    sign = np.sign(-amounts[:, moving].double().mean(dim=0).cpu().numpy())
    sums[:, moved], size[moved] = totals * sign, norms[:, :m].mean(axis=0)
    random = np.stack([fallen[:, m:].mean(axis=0), norms[:, m:].mean(axis=0)])
    return Effects(features, sums.sum(axis=0) / len(decisions), size, random, sums, counts)


@torch.no_grad()
def mechanism(
    subject: Subject, sae: Any, decisions: Decisions, other: Corpus, sets: Mapping[str, Ids]
) -> pd.DataFrame:
    """Where the effect of the wording lies: in the stream, the reconstruction, the error term, and ``sets``.

    A row each ``part``: its mean ``effect`` in nats, and its ``share`` of the whole stream's with its 95%
    interval over ``traces``. The moves add up: reconstruction and error term to the whole stream's, a set's
    to its features'; their effects need not.
    """
    ours, theirs = (streams(subject, decisions, corpus) for corpus in (decisions.corpus, other))
    before, after = sae.encode(ours), sae.encode(theirs)
    whole, shift, reconstructed = theirs - ours, after - before, sae.decode(after) - sae.decode(before)
    decoder, members = sae.W_dec.detach(), [torch.from_numpy(ids) for ids in sets.values()]

    def moves(i: int) -> Tensor:
        alone = [shift[i, ids] @ decoder[ids] for ids in members]
        return torch.stack([whole[i], reconstructed[i], whole[i] - reconstructed[i], *alone])

    fallen, _ = falls(subject, decisions, moves)
    totals = _by_trace(decisions, fallen)[0].T
    rows, parts = [], [STREAM, RECONSTRUCTION, ERROR, *sets]
    for part, total, effect in zip(parts, totals, fallen.mean(axis=0), strict=True):
        share = bootstrap_ratio(total, totals[0])
        rows.append({"part": part, "effect": effect} | share.row("share") | {"traces": share.n})
    return pd.DataFrame(rows)


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
    """The first ``length`` tokens of ``n`` documents without thinking, spread evenly over the corpus. Raises
    UserError: fewer than ``n`` documents are long enough.
    """
    thinks = np.bincount(general.document_of, general.thinking, general.n_documents) > 0
    plain = np.flatnonzero(~thinks & (np.diff(general.starts) > length))
    if len(plain) < n:
        has = f"has {len(plain)} documents without thinking of more than {length} tokens, {n} are needed"
        raise UserError(f"The corpus {general.name!r} {has}: raise `general_documents`.")
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
    every, rows = np.stack([whole, *changes.reshape(-1, len(decisions))], axis=1), []
    totals, *parts = _by_trace(decisions, every)[0].T
    for (layer, group), part in zip(np.ndindex(changes.shape[:2]), parts, strict=True):
        share = bootstrap_ratio(part, totals)
        row = {"layer": layer, "group": GROUPS[group]} | share.row("share") | {"change": whole.mean()}
        rows.append(row | {"decisions": len(decisions), "traces": share.n})
    return pd.DataFrame(rows)


def _by_trace(decisions: Decisions, values: Array) -> tuple[Array, Ids]:
    """Values of decisions ``[n, m]`` summed over each trace's ``[t, m]``, and how many it has ``[t]``."""
    _, trace, counts = np.unique(decisions.documents, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, trace, values)
    return sums, counts


def _patched(
    subject: Subject, decisions: Decisions, other: Corpus, which: Ids, openings: Ids
) -> tuple[Array, Array]:
    """Whole changes ``[k]`` and patched changes ``[layers, groups, k]`` of some decisions. ``openings``
    ``[k]`` are the places where the decisions' sentences begin.
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
