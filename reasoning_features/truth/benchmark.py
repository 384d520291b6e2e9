"""How well any score of features ranks them by their ablation effects, on every model and autoencoder.

A score sees the feature table (selection split); it is judged by each feature's effect on the log-odds of a
decision (evaluation split). Intervals resample traces: effects are averaged again, features that pass the
threshold are found again, and the metric is taken again. Only features that are ever active count.

A folder an autoencoder: ``features.parquet``, one row a feature of the dictionary (feature table, then
``effect:``, ``size:``, ``threshold:`` and ``true:<kind>:<place>``, missing for features that are never
active), and ``traces.safetensors``: per-trace sums of the changes and counts of decisions, with what
identifies the autoencoder in its metadata. Where features were ablated over the whole trace too it holds the
sums of that, and what random directions did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.stats import rankdata

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import architecture_label, load_autoencoder
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.interpretation.lexical_controls import class_shares, measure_controls
from reasoning_features.models.subject import Subject, load_subject, short_name
from reasoning_features.settings import READ, Settings
from reasoning_features.statistics import null_rank, percentile_interval
from reasoning_features.text.corpora import general_corpus, reasoning_corpus, with_words_that_occur
from reasoning_features.truth.decisions import Decisions, balanced, find_decisions
from reasoning_features.truth.effects import (
    PLACES,
    Effects,
    gradient_attribution,
    measure_effects,
    neutral_prompts,
    output_scores,
)
from reasoning_features.truth.feature_table import draw_words, measure_features

Array = NDArray[np.float64]
Score = Callable[[pd.DataFrame], ArrayLike]
DETERMINED_BY = (
    *READ, "subject", "contrast", "autoencoder", "contrast_autoencoder", "seed", "reasoning_documents",
    "general_documents", "words", "alpha", "window", "batch_tokens", "random_vocabularies",
    "slot_vocabularies", "decisions", "random_directions",
)  # fmt: skip
"""The settings that determine a stored benchmark."""
DOCUMENTS_A_DECISION = 3
"""Traces read for each decision that is wanted: careful ones are few, and decide once whether to verify."""
PROMPTS, PROMPT_LENGTH = 8, 8
"""Neutral openings of the output score, and their length in tokens."""
EFFECT_COLUMNS = ("effect:", "absolute:", "size:", "threshold:", "true:")
"""Columns of the stored table that no score may see."""
FEATURES, TRACES = "features.parquet", "traces.safetensors"
PLACE, TRACE = "decision", "trace"
"""Where features were ablated: the benchmark is of the first, the second is measured for some of them."""
PASSES = ("neither", PLACE, TRACE, "both")
"""Where a feature's effect passes what random directions of equal norm do."""
TOP = (10, 20)
"""Numbers of features whose share of the effect, and precision, are reported."""
RESAMPLES, PLACE_RESAMPLES, SEED = 200, 1000, 0
CEILING = "the effect itself"


# --- one autoencoder of one model, its feature table and effects -------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """One autoencoder of one model: what a score may look at, and the effects it is judged by.

    Attributes:
        model: the model's name.
        kappa: coupling of the words of R to persistence, nan where none is planted.
        model_seed: seed of the model's training.
        architecture: of the autoencoder.
        autoencoder_seed: its seed.
        evidence: the feature table.
        truths: kind of decision → effects of ablating at the decision's own token.
        over_trace: the same of ablating at every token up to the decision; empty where not measured, and of
            fewer features where only some were ablated so.
    """

    model: str
    kappa: float
    model_seed: int
    architecture: str
    autoencoder_seed: int
    evidence: pd.DataFrame
    truths: dict[str, Effects]
    over_trace: dict[str, Effects] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every live feature was ablated over the whole trace too, for every kind of decision."""
        return bool(self.truths) and all(
            kind in self.over_trace and np.array_equal(self.over_trace[kind].features, truth.features)
            for kind, truth in self.truths.items()
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Columns that say which benchmark a row of a table is of."""
        names = ("model", "kappa", "model_seed", "architecture", "autoencoder_seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Variant:
    """A model of the run and its autoencoder, with the settings that name this model as ``subject``."""

    settings: Settings
    model: Subject
    sae: Any


def load_variants(settings: Settings) -> dict[str, Variant]:
    """The subject and, where the profile names one, the contrast, by the model's name; R is what occurs."""
    named = {
        settings.subject: settings.autoencoder,
        settings.contrast: settings.contrast_autoencoder,
    }
    found = {}
    for name, autoencoder in named.items():
        if name and autoencoder:
            own = settings.model_copy(update={"subject": name, "autoencoder": autoencoder})
            model = load_subject(name, own.layer, device=own.device, dtype=own.dtype, site=own.site)
            sae = load_autoencoder(autoencoder, model.d_model, model.hook_name, own.device)
            found[short_name(name)] = Variant(with_words_that_occur(own, model.tokenizer), model, sae)
    return found


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


def gather_table(settings: Settings, subject: Subject, sae: Any) -> pd.DataFrame:
    """The feature table of an autoencoder, :func:`with_output_scores`, from the selection split.

    Args:
        settings: of the run, with this model as ``subject``.
        subject: the model and its hook point.
        sae: its autoencoder.

    Raises:
        UserError: too few words to draw from, a word that never occurs, or an autoencoder of another width.
    """
    table = measure_features(settings, subject, sae, draw_words(settings, subject).words)[1]
    return with_output_scores(settings, subject, sae, table)


def with_output_scores(settings: Settings, subject: Subject, sae: Any, table: pd.DataFrame) -> pd.DataFrame:
    """A feature table with the scores that look at the output, where decisions are known.

    ``score:output`` and ``score:gradient <kind>`` are long work that only serves to be judged. Arguments are
    those of :func:`gather_table`.
    """
    traces = reasoning_corpus(settings, subject.tokenizer, "selection", settings.subject)
    found = find_decisions(traces, subject.tokenizer, settings.corpus)
    if not found:
        return table
    general = general_corpus(settings, subject.tokenizer, "selection")
    prompts = neutral_prompts(general, PROMPTS, PROMPT_LENGTH)
    live, scores = live_features(table), np.zeros(len(table))
    scores[live] = output_scores(subject, sae, prompts, settings.batch_tokens, live)
    added = {"score:output": scores}
    mean = table["mean"].to_numpy(dtype=float)
    for kind, held in found.items():
        added[f"score:gradient {kind}"] = gradient_attribution(
            subject, sae, held, mean, settings.batch_tokens
        )
    return pd.concat([table, pd.DataFrame(added).astype(np.float32)], axis=1)


def live_features(table: pd.DataFrame) -> NDArray[np.int64]:
    """The features that are ever active, of a feature table."""
    return np.flatnonzero(table["density"].to_numpy() > 0)


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


def ablation_effects(
    settings: Settings,
    subject: Subject,
    sae: Any,
    decisions: Decisions,
    table: pd.DataFrame,
    place: str,
    features: NDArray[np.int64] | None = None,
) -> Effects:
    """Effects on one kind of decision of features set to their mean.

    Args:
        settings: random directions and seed.
        subject: the model.
        sae: its autoencoder.
        decisions: one kind of :func:`held_out_decisions`.
        table: the feature table, which has the means.
        place: "decision", or "trace": at every token up to it.
        features: which; by default every live one. There are as many random directions as features, where
            they are given.
    """
    some = live_features(table) if features is None else features
    means = table["mean"].to_numpy(dtype=float)[some]
    n_random = settings.random_directions if features is None else len(some)
    told = (
        f"{decisions.name}, {len(some)} features, {'over the trace' if place == TRACE else 'at the decision'}"
    )
    return measure_effects(subject, sae, decisions, some, means, PLACES[place], n_random, settings.seed, told)


def effects_of(
    settings: Settings,
    subject: Subject,
    sae: Any,
    decisions: Mapping[str, Decisions],
    table: pd.DataFrame,
    chosen: NDArray[np.int64],
    known: bool,
) -> dict[str, dict[str, Effects]]:
    """Kind of decision → place → effects: of every live feature at the decision, of some over the trace.

    Args:
        settings: of the run, with this model as ``subject``.
        subject: the model.
        sae: its autoencoder.
        decisions: :func:`held_out_decisions`.
        table: the feature table.
        chosen: features that are ablated over the trace beside those with the largest effects.
        known: whether effects over the trace are stored of this autoencoder already: then a few features are
            ablated so, as a check; else as many as are selected.
    """
    found: dict[str, dict[str, Effects]] = {}
    for kind, held in decisions.items():
        at = ablation_effects(settings, subject, sae, held, table, PLACE)
        found[kind] = {PLACE: at}
        if not known or kind == "persistence":
            n = 2 if known else settings.selected
            some = np.union1d(at.strongest[:n], chosen[:n])
            found[kind][TRACE] = ablation_effects(settings, subject, sae, held, table, TRACE, some)
    return found


def lexical_shares(
    settings: Settings,
    subject: Subject,
    sae: Any,
    groups: Mapping[str, NDArray[np.int64]],
    causal: NDArray[np.int64],
    control_words: Sequence[str],
) -> pd.DataFrame:
    """Share of features of each group that words of R in plain prose switch on, and how many are causal
    (:func:`reasoning_features.interpretation.lexical_controls.class_shares`).

    Args:
        settings: of the run, with this model as ``subject``.
        subject: the model.
        sae: its autoencoder.
        groups: name → features.
        causal: the features that are truly causal.
        control_words: words matched to R in frequency.
    """
    features = np.unique(np.concatenate(list(groups.values())))
    found = measure_controls(settings, subject, sae, features, control_words)
    members = {name: np.isin(features, own) for name, own in groups.items()}
    return class_shares(found, members, np.isin(features, causal))


def save_benchmark(
    folder: Path,
    evidence: pd.DataFrame,
    effects: Mapping[str, Mapping[str, Effects]],
    identity: Mapping[str, Any],
) -> None:
    """Store one autoencoder's feature table and effects.

    Args:
        folder: where to; made where it is not there.
        evidence: the feature table.
        effects: kind of decision → place → effects.
        identity: from :func:`identity`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for kind, places in effects.items():
        for place, found in places.items():
            values = {"effect": found.change, "size": found.size, "threshold": found.threshold}
            for name, value in (values | {"true": found.true}).items():
                column = np.full(len(evidence), np.nan, dtype=np.float32)
                column[found.features] = value
                columns[f"{name}:{kind}:{place}"] = column
            prefix = kind if place == PLACE else f"{kind}:{place}"
            tensors[f"{prefix}:sums"] = found.sums.astype(np.float16)
        tensors[f"{kind}:counts"] = places[PLACE].counts.astype(np.int32)
        if TRACE in places:
            tensors[f"{kind}:{TRACE}:random"] = places[TRACE].random.astype(np.float32)
    table = pd.concat([evidence, pd.DataFrame(columns, index=evidence.index)], axis=1)
    table.to_parquet(folder / FEATURES, index=False, compression="zstd")
    save_file(tensors, folder / TRACES, metadata={"identity": json.dumps(dict(identity))})


def load_benchmarks(folder: str | Path) -> list[Benchmark]:
    """All benchmarks in a folder, by name.

    Args:
        folder: absolute, or from the repository's root: ``settings.truth``.

    Raises:
        MissingArtefact: there are none.
        CorruptArtefact: a file cannot be read.
    """
    root = paths.root() / folder
    found = sorted(path.parent for path in root.glob(f"*/{FEATURES}"))
    if not found:
        raise MissingArtefact(f"There are no ablation effects in {folder}: `make organism` measures them.")
    return [_load(path) for path in found]


def _load(folder: Path) -> Benchmark:
    try:
        table = pd.read_parquet(folder / FEATURES)
        with safe_open(folder / TRACES, framework="numpy") as file:
            identity = json.loads(file.metadata()["identity"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise CorruptArtefact(
            f"The ablation effects in {paths.relative(folder)} cannot be read: restore its files."
        ) from error

    def effects(kind: str, place: str, prefix: str) -> Effects:
        change = table[f"effect:{kind}:{place}"].to_numpy(dtype=float)
        features = np.flatnonzero(~np.isnan(change))
        return Effects(
            features=features,
            change=change[features],
            size=table[f"size:{kind}:{place}"].to_numpy(dtype=float)[features],
            threshold=table[f"threshold:{kind}:{place}"].to_numpy(dtype=float)[features],
            sums=tensors[f"{prefix}:sums"].astype(float),
            counts=tensors[f"{kind}:counts"].astype(float),
            random=tensors.get(f"{prefix}:random", np.empty((3, 0))).astype(float),
        )

    kinds = sorted(name.removesuffix(":counts") for name in tensors if name.endswith(":counts"))
    traced = [kind for kind in kinds if f"{kind}:{TRACE}:sums" in tensors]
    return Benchmark(
        **identity,
        evidence=table[[name for name in table if not str(name).startswith(EFFECT_COLUMNS)]],
        truths={kind: effects(kind, PLACE, kind) for kind in kinds},
        over_trace={kind: effects(kind, TRACE, f"{kind}:{TRACE}") for kind in traced},
    )


def agreement(fresh: Sequence[Benchmark], stored: Sequence[Benchmark]) -> pd.DataFrame:
    """How far effects that were measured anew agree with the stored ones of the same autoencoder.

    Returns:
        One row an autoencoder that both have, a kind of decision and a place where both ablated:
        ``features`` that both ablated there, and of their effects ``correlation``, ``largest difference`` in
        nats, and how many pass ``here``, ``stored`` and in ``both``.
    """
    rows = []
    pairs = [(here, there) for here in fresh for there in stored if here.identity == there.identity]
    for here, there in pairs:
        for place, ours, theirs in (
            (PLACE, here.truths, there.truths),
            (TRACE, here.over_trace, there.over_trace),
        ):
            for kind in sorted(set(ours) & set(theirs)):
                shared = np.intersect1d(ours[kind].features, theirs[kind].features)
                one, two = ours[kind].of(shared), theirs[kind].of(shared)
                rows.append(
                    {
                        "model": here.model,
                        "decision": kind,
                        "ablated": place,
                        "features": len(shared),
                        "correlation": np.corrcoef(one.change, two.change)[0, 1],
                        "largest difference": np.abs(one.change - two.change).max(),
                        "here": int(one.true.sum()),
                        "stored": int(two.true.sum()),
                        "both": int((one.true & two.true).sum()),
                    }
                )
    return pd.DataFrame(rows)


# --- scores ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scorer:
    """One row of the benchmark.

    Attributes:
        name: as figures and tables say it.
        function: from the feature table to one number a feature.
        signed: whether the sign says which side of the decision is promoted; features are then ranked by
            size. Else a high score means chosen.
        labels: whether it needs to know which decisions went which way, or where decisions are.
        source: the paper or code that defines it.
    """

    name: str
    function: Score
    signed: bool
    labels: bool
    source: str


def column(name: str) -> Score:
    """The score that a column of the feature table holds; UserError, when called, where it has none."""

    def score(table: pd.DataFrame) -> ArrayLike:
        if name not in table:
            raise UserError(
                f"The feature table has no column {name!r}: it needs labels, or a table with that score."
            )
        return table[name].to_numpy()

    return score


def mean_difference(kind: str) -> Score:
    """Mean activation where the decision took its positive side less where it did not, × decoder norm.

    That is each feature's part of the mean-difference vector of the autoencoder's reconstructions. Dividing
    by the standard deviation instead would raise features that are hardly ever active, whose ablation moves
    the stream hardly at all.
    """
    positive, negative = column(f"at {kind}:positive"), column(f"at {kind}:negative")

    def score(table: pd.DataFrame) -> ArrayLike:
        return (np.asarray(positive(table)) - np.asarray(negative(table))) * table["decoder norm"]

    return score


def builtin(kind: str) -> list[Scorer]:
    """The built-in scorers for one kind of decision, in the order of the benchmark's rows."""
    paper, code = "2503.18878, equation 5", "2503.18878, released code"
    return [
        Scorer("ReasonScore", column("score:reason score"), False, False, paper),
        Scorer("ReasonScore, released settings", column("score:released"), False, False, code),
        Scorer("ReasonScore, before the word only", column("score:before"), False, False, paper),
        Scorer("ReasonScore, R's tokens masked out", column("score:masked"), False, False, paper),
        Scorer("word identity", column("score:identity"), False, False, "ReasonScore of a token's mean"),
        Scorer("density", column("density"), False, False, "share of tokens on which a feature is active"),
        Scorer("output score", column("score:output"), False, False, "2505.20063"),
        Scorer("mean difference", mean_difference(kind), True, True, "difference in means"),
        Scorer("gradient attribution", column(f"score:gradient {kind}"), True, True, "attribution patching"),
    ]


def live_scores(score: Score, benchmark: Benchmark, truth: Effects) -> Array:
    """A score's values at the features that count ``[f]``.

    Raises:
        UserError: it does not give one finite number a feature.
    """
    values = np.asarray(score(benchmark.evidence), dtype=float)
    if values.shape != (len(benchmark.evidence),):
        raise UserError(
            f"The score gives {values.shape} numbers for the {len(benchmark.evidence)} features of "
            f"{benchmark.model}: it must give one number a row of the table."
        )
    kept = values[truth.features]
    if not np.isfinite(kept).all():
        raise UserError(
            f"The score is not a finite number at {int((~np.isfinite(kept)).sum())} of {len(kept)} live "
            f"features of {benchmark.model}: give every active feature a number."
        )
    return kept


# --- how well scores rank features -------------------------------------------------------------------------


def metrics(score: Array, effects: Array, threshold: Array, signed: bool) -> dict[str, Array]:
    """Every metric of one score ``[f]`` against effects ``[b, f]``, one number a row of effects ``[b]``.

    "average precision"; "rank correlation" (Spearman, the score as given with the signed effect); "share of
    effect, top k" (of Σ|effect|); "precision at k", where no row has fewer than k true features.
    """
    ranking = np.abs(score) if signed else score
    true, sizes = np.abs(effects) > threshold, np.abs(effects)
    order = np.argsort(-ranking, kind="stable")
    found = {
        "average precision": average_precision(ranking, true),
        "rank correlation": rank_correlation(score[None], effects),
    }
    total = sizes.sum(axis=1)
    for k in TOP:
        top = sizes[:, order[:k]].sum(axis=1)
        found[f"share of effect, top {k}"] = np.divide(
            top, total, out=np.full_like(top, np.nan), where=total > 0
        )
        found[f"precision at {k}"] = true[:, order[:k]].mean(axis=1)
    return found


def average_precision(ranking: Array, true: NDArray[np.bool_]) -> Array:
    """Average precision of a ranking ``[f]`` for each row of true sets ``[b, f]`` → ``[b]``.

    Σ over distinct values of the ranking, best first, of (gain in recall) · precision: tied features enter
    together. Missing where a row has no true feature.
    """
    order = np.argsort(-ranking, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(ranking[order]) != 0, True))
    hits = np.cumsum(true[:, order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    total = hits[:, -1]
    summed = (gained * hits / (ends + 1)).sum(axis=1)
    return np.divide(summed, total, out=np.full(len(true), np.nan), where=total > 0)


def rank_correlation(one: Array, other: Array) -> Array:
    """Spearman's correlation of each row ``[b, f]`` (or of the only row) with the other's → ``[b]``."""
    middle = (other.shape[1] + 1) / 2
    ranks, others = rankdata(one, axis=1) - middle, rankdata(other, axis=1) - middle
    scale = np.sqrt((ranks**2).sum(axis=1) * (others**2).sum(axis=1))
    return np.divide((ranks * others).sum(axis=1), scale, out=np.full(len(other), np.nan), where=scale > 0)


def _chance(metric: str, positives: int, live: int) -> float:
    """What a random ranking gives: the base rate, 0, or k of the live features."""
    if metric == "rank correlation":
        return 0.0
    if metric.startswith("share of effect"):
        return min(int(metric.rsplit(" ", 1)[1]) / live, 1.0)
    return positives / live


def _taken(metric: str, positives: int) -> bool:
    """Whether there are positives enough for a metric: precision at k needs k."""
    return not metric.startswith("precision at") or positives >= int(metric.rsplit(" ", 1)[1])


def _effects(benchmark: Benchmark, kind: str) -> Effects:
    if kind not in benchmark.truths:
        raise UserError(
            f"The benchmark of {benchmark.model} has no decisions of the kind {kind!r}: choose one of "
            f"{', '.join(benchmark.truths) or 'none'}."
        )
    return benchmark.truths[kind]


def _middle(values: Array) -> tuple[float, float]:
    """Middle 95% of the values that could be taken."""
    taken = values[np.isfinite(values)]
    low, high = np.quantile(taken, [0.025, 0.975]) if len(taken) else (np.nan, np.nan)
    return float(low), float(high)


def evaluate_scorer(
    score: Score, benchmarks: Sequence[Benchmark], kind: str = "persistence", signed: bool = False
) -> pd.DataFrame:
    """Rank features by a score and compare with their ablation effects, on every benchmark.

    A feature is truly causal where its mean effect passes the threshold, whichever its sign.

    Args:
        score: takes the feature table and gives one number a feature.
        benchmarks: models and autoencoders with their effects (:func:`load_benchmarks`).
        kind: of decision, "persistence" or "verification".
        signed: whether to rank by the size of the score (its sign then says which side is promoted).

    Returns:
        One row a benchmark and metric (:func:`metrics`): what identifies the benchmark, ``metric``,
        ``estimate``, ``low`` and ``high`` (95%, traces resampled), ``chance`` (what a random ranking gives),
        ``traces``, ``positives``, ``live``.

    Raises:
        UserError: no benchmarks, one has no decisions of this kind, or the score does not give one finite
            number a feature.
    """
    if not benchmarks:
        raise UserError("There is no benchmark to evaluate on: `make organism` measures the shipped models.")
    scores = [live_scores(score, benchmark, _effects(benchmark, kind)) for benchmark in benchmarks]
    return _evaluated(scores, benchmarks, kind, signed)


def _evaluated(
    scores: Sequence[Array], benchmarks: Sequence[Benchmark], kind: str, signed: bool
) -> pd.DataFrame:
    """Rows of :func:`evaluate_scorer` from the scores of each benchmark's live features."""
    rows: list[dict[str, Any]] = []
    for benchmark, values in zip(benchmarks, scores, strict=True):
        truth = _effects(benchmark, kind)
        found = metrics(values, truth.effect[None], truth.threshold, signed)
        resampled = metrics(values, truth.resampled(RESAMPLES, SEED), truth.threshold, signed)
        positives = int(truth.true.sum())
        told = {"traces": len(truth.counts), "positives": positives, "live": len(values)}
        for name, estimate in found.items():
            if _taken(name, positives):
                low, high = _middle(resampled[name])
                numbers = {"metric": name, "estimate": float(estimate[0]), "low": low, "high": high}
                chance = {"chance": _chance(name, positives, len(values))}
                rows.append(benchmark.identity | numbers | chance | told)
    return pd.DataFrame(rows)


def evaluate_all(
    scorers: Sequence[Scorer], benchmarks: Sequence[Benchmark], kind: str = "persistence"
) -> pd.DataFrame:
    """:func:`evaluate_scorer` for each scorer, with columns ``scorer``, ``signed`` and ``labels``.

    The last rows, of the scorer ``CEILING``, are the measured effect used as a score: what could be had at
    most. Its average precision is below 1: the threshold grows with the size of the edit, so a feature that
    is hardly active can pass with a small effect, and one that moves the stream far fail with a larger one.
    """
    found = [
        evaluate_scorer(scorer.function, benchmarks, kind, scorer.signed).assign(
            scorer=scorer.name, signed=scorer.signed, labels=scorer.labels
        )
        for scorer in scorers
    ]
    effects = [_effects(benchmark, kind).effect for benchmark in benchmarks]
    most = _evaluated(effects, benchmarks, kind, signed=True)
    return pd.concat([*found, most.assign(scorer=CEILING, signed=True, labels=True)], ignore_index=True)


def null_band(benchmarks: Sequence[Benchmark], kind: str = "persistence", null: str = "slot") -> pd.DataFrame:
    """Every metric of ReasonScore under other vocabularies, and where R stands among them.

    To the metrics of :func:`evaluate_scorer` comes "contrast": Σ score · signed effect, whose z among the
    vocabularies says whether R's words point at the causal features more than other words in their place.

    Args:
        benchmarks: models and autoencoders with their effects.
        kind: of decision.
        null: "random" (matched in frequency) or "slot" (mixtures of R and its matched control words).

    Returns:
        One row a benchmark and metric: what identifies it, ``null``, ``metric``, ``ours`` (R), ``mean``,
        ``low``, ``high`` (of the middle 95% of vocabularies), ``z``, ``percentile``, ``p_value``,
        ``vocabularies``. Empty where there are no such vocabularies.
    """
    rows: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        truth = _effects(benchmark, kind)
        names = [str(name) for name in benchmark.evidence if str(name).startswith(f"score:{null} ")]
        found = []
        for name in ["score:reason score", *names] if names else []:
            values = live_scores(column(name), benchmark, truth)
            one = metrics(values, truth.effect[None], truth.threshold, signed=False)
            contrast = {"contrast": float(values @ truth.effect)}
            found.append({metric: float(value[0]) for metric, value in one.items()} | contrast)
        positives = int(truth.true.sum())
        for metric in [m for m in found[0] if _taken(m, positives)] if found else []:
            ours, *others = (row[metric] for row in found)
            draws = np.array(others)
            rank = null_rank(ours, draws)
            low, high = _middle(draws)
            told = {"null": null, "metric": metric, "vocabularies": rank.n, "ours": ours}
            band = {"mean": float(draws.mean()), "low": low, "high": high}
            place = {"z": rank.z, "percentile": rank.percentile, "p_value": rank.p_value}
            rows.append(benchmark.identity | told | band | place)
    return pd.DataFrame(rows)


# --- ablated at the decision, and over the whole trace -----------------------------------------------------


def where_most_is_known(fresh: Sequence[Benchmark], stored: Sequence[Benchmark]) -> list[Benchmark]:
    """For each that was measured anew the stored benchmark of the same autoencoder, where that holds the
    whole trace of every live feature; else itself.
    """
    return [
        next((there for there in stored if there.whole and there.identity == here.identity), here)
        for here in fresh
    ]


def evaluate_places(scorers: Sequence[Scorer], benchmarks: Sequence[Benchmark], kind: str) -> pd.DataFrame:
    """:func:`evaluate_all` against the effects at each place, with the column ``ablated``.

    Only of the benchmarks where every live feature was ablated over the trace; empty where there are none.
    """
    whole = [benchmark for benchmark in benchmarks if benchmark.whole]
    if not whole:
        return pd.DataFrame()
    over = [replace(benchmark, truths=benchmark.over_trace) for benchmark in whole]
    tables = [
        evaluate_all(scorers, judged, kind).assign(ablated=place)
        for place, judged in ((PLACE, whole), (TRACE, over))
    ]
    return pd.concat(tables, ignore_index=True)


def compare_places(benchmark: Benchmark, kind: str, chosen: Collection[int]) -> tuple[pd.DataFrame, str]:
    """Features ablated at both places, the largest change over the trace first.

    At the decision's token only what the feature does there counts; over the whole trace also what it wrote
    into earlier tokens that the decision looks back at: a feature that governs decisions from afar shows
    there.

    Args:
        benchmark: with effects of this kind over the trace.
        kind: of decision.
        chosen: features to mark.

    Returns:
        A table: ``feature``; mean change of the log-odds on ablation, in nats, ``at the decision`` and ``over
        the trace``, each with its 95% interval over traces and its threshold (``low``, ``high``,
        ``threshold``; ``trace low`` and so on); ``passes`` (of ``PASSES``); ``chosen``. And a sentence: how
        many pass, and the rank correlation of the effects with its interval over traces.
    """
    shared = np.intersect1d(benchmark.truths[kind].features, benchmark.over_trace[kind].features)
    here, over = benchmark.truths[kind].of(shared), benchmark.over_trace[kind].of(shared)
    table: dict[str, object] = {"feature": shared}
    again = []
    for name, prefix, found in (("at the decision", "", here), ("over the trace", "trace ", over)):
        again.append(found.resampled(PLACE_RESAMPLES, SEED))
        low, high = np.quantile(-again[-1], [0.025, 0.975], axis=0)
        table |= {name: found.change, f"{prefix}low": low, f"{prefix}high": high}
        table[f"{prefix}threshold"] = found.threshold
    table["passes"] = np.array(PASSES)[here.true + 2 * over.true]
    table["chosen"] = np.isin(shared, list(chosen))
    frame = pd.DataFrame(table)
    order = frame["over the trace"].abs().sort_values(ascending=False, kind="stable").index
    estimate = float(rank_correlation(here.effect[None], over.effect[None])[0])
    alike = percentile_interval(estimate, rank_correlation(again[0], again[1]), len(here.counts))
    told = (
        f"{here.true.sum()} of {len(shared)} pass at the decision, {over.true.sum()} over the trace, "
        f"{(here.true & over.true).sum()} at both; rank correlation {alike}; slope {over.slope:.2f}"
    )
    return frame.loc[order].reset_index(drop=True), told
