"""How well any score of features ranks them by their ablation effects, on every model and autoencoder.

A score sees the feature table (selection split); it is judged by each feature's effect on the log-odds of a
decision (evaluation split). Intervals resample traces. Only features that are ever active count.

A folder an autoencoder: ``features.parquet``, one row a feature of the dictionary (feature table, then
effects by kind and place, missing for features that were not ablated), and ``traces.safetensors``: per-trace
sums of the changes and counts of decisions, and as metadata what identifies the autoencoder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
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
from reasoning_features.models.subject import Subject, load_subject, short_name
from reasoning_features.settings import READ, Settings
from reasoning_features.statistics import null_rank
from reasoning_features.text.corpora import general_corpus, reasoning_corpus, with_words_that_occur
from reasoning_features.truth.decisions import SIDES, Decisions, balanced, find_decisions
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
Ids = NDArray[np.int64]
Score = Callable[[pd.DataFrame], ArrayLike]
# the settings that determine a stored benchmark
DETERMINED_BY = (
    *READ, "subject", "contrast", "autoencoder", "contrast_autoencoder", "seed", "reasoning_documents",
    "general_documents", "words", "alpha", "window", "batch_tokens", "random_vocabularies",
    "slot_vocabularies", "decisions", "random_directions",
)  # fmt: skip
# traces read for each decision that is wanted: careful ones are few, and decide once whether to verify
DOCUMENTS_A_DECISION = 3
PROMPTS, PROMPT_LENGTH = 8, 8  # neutral openings of the output score, and their length in tokens
EFFECT_COLUMNS = ("effect:", "absolute:", "size:", "threshold:", "true:")  # that no score may see
FEATURES, TRACES = "features.parquet", "traces.safetensors"
PLACE, TRACE = "decision", "trace"  # where features were ablated, the second perhaps some of them alone
PASSES = ("neither", PLACE, TRACE, "both")  # where an effect passes what random directions do
TOP = (10, 20)  # numbers of features whose share of the effect is reported
RESAMPLES, PLACE_RESAMPLES, SEED = 200, 1000, 0
CEILING = "the effect itself"


# --- one autoencoder of one model, its feature table and effects -------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """One autoencoder of one model: what a score may look at, and the effects it is judged by."""

    model: str
    kappa: float  # coupling of the words of R to persistence, nan where none is planted
    model_seed: int
    architecture: str
    autoencoder_seed: int
    evidence: pd.DataFrame  # the feature table
    truths: dict[str, Effects]  # kind of decision → effects of ablating at the decision's own token
    over_trace: dict[str, Effects] = field(default_factory=dict)  # at every token up to it, perhaps of fewer

    @property
    def whole(self) -> bool:
        """Whether every live feature was ablated over the whole trace too, for every kind of decision."""
        here, over = ({k: v.features.tolist() for k, v in e.items()} for e in (self.truths, self.over_trace))
        return bool(here) and here == over

    @property
    def identity(self) -> dict[str, Any]:
        """Columns that say which benchmark a row of a table is of."""
        names = ("model", "kappa", "model_seed", "architecture", "autoencoder_seed")
        return {name: getattr(self, name) for name in names}

    def truth(self, kind: str) -> Effects:
        """Effects at one kind of decision; UserError where there are none."""
        if kind not in self.truths:
            known = ", ".join(self.truths)
            raise UserError(f"{self.model} has no decisions of the kind {kind!r}: choose one of {known}.")
        return self.truths[kind]

    def effect(self, kind: str) -> Array:
        """The effect of every row of the feature table ``[f]``; nan of features that were not ablated."""
        effect = np.full(len(self.evidence), np.nan)
        effect[self.truth(kind).features] = self.truth(kind).effect
        return effect


@dataclass(frozen=True)
class Variant:
    """A model of the run and its autoencoder, with the settings that name this model as ``subject``."""

    settings: Settings
    model: Subject
    sae: Any


def load_variant(settings: Settings) -> Variant:
    """The subject of these settings and its autoencoder."""
    device, dtype, site = settings.device, settings.dtype, settings.site
    model = load_subject(settings.subject, settings.layer, device=device, dtype=dtype, site=site)
    sae = load_autoencoder(settings.autoencoder, model.d_model, model.hook_name, settings.device)
    return Variant(settings, model, sae)


def load_variants(settings: Settings, subject: Variant | None = None) -> dict[str, Variant]:
    """The subject and, where the profile names one, the contrast, by the model's name; R is what occurs.

    A ``subject`` that is loaded already is not loaded again: a second copy may not fit.
    """
    autoencoders = {settings.subject: settings.autoencoder, settings.contrast: settings.contrast_autoencoder}
    variants = {}
    for name, autoencoder in autoencoders.items():
        if name and autoencoder:
            own = settings.model_copy(update={"subject": name, "autoencoder": autoencoder})
            loaded = subject if subject and name == settings.subject else load_variant(own)
            own = with_words_that_occur(own, loaded.model.tokenizer)
            variants[short_name(name)] = replace(loaded, settings=own)
    return variants


def identity(settings: Settings, sae: Any) -> dict[str, Any]:
    """What identifies an autoencoder among benchmarks; κ is missing where a model's card gives none.

    The autoencoder's seed is the number that its directory's name ends in, 0 where there is none.
    """
    card = paths.resolve(settings.subject) / "training.json"
    training = json.loads(card.read_text()) if card.is_file() else {}
    last = Path(settings.autoencoder).name.rsplit("-", 1)[-1]
    return {
        "model": short_name(settings.subject),
        "kappa": training.get("kappa", float("nan")),
        "model_seed": training.get("seed", 0),
        "architecture": architecture_label(sae),
        "autoencoder_seed": int(last) if last.isdigit() else 0,
    }


def gather_table(variant: Variant) -> pd.DataFrame:
    """The feature table of an autoencoder from the selection split, :func:`with_output_scores`."""
    words = draw_words(variant.settings, variant.model)[0]
    table = measure_features(variant.settings, variant.model, variant.sae, words)[1]
    return with_output_scores(variant, table)


def with_output_scores(variant: Variant, table: pd.DataFrame) -> pd.DataFrame:
    """A feature table with ``score:output`` and ``score:gradient <kind>``, where decisions are known."""
    settings, model, sae = variant.settings, variant.model, variant.sae
    traces = reasoning_corpus(settings, model.tokenizer, "selection", settings.subject)
    decisions = find_decisions(traces, model.tokenizer, settings.corpus)
    if not decisions:
        return table
    general = general_corpus(settings, model.tokenizer, "selection")
    prompts = neutral_prompts(general, PROMPTS, PROMPT_LENGTH)
    live, scores = np.flatnonzero(table["density"] > 0), np.zeros(len(table))
    scores[live] = output_scores(model, sae, prompts, settings.batch_tokens, live)
    added, mean = {"score:output": scores}, table["mean"].to_numpy(dtype=float)
    for kind, own in decisions.items():
        added[f"score:gradient {kind}"] = gradient_attribution(model, sae, own, mean, settings.batch_tokens)
    return table.assign(**{name: values.astype(np.float32) for name, values in added.items()})


def held_out_decisions(variant: Variant) -> dict[str, Decisions]:
    """Decisions of the evaluation split: ``settings.decisions`` of each kind, balanced by style.

    Raises UserError: there are too few.
    """
    settings, tokenizer = variant.settings, variant.model.tokenizer
    documents = DOCUMENTS_A_DECISION * settings.decisions
    traces = reasoning_corpus(settings, tokenizer, "evaluation", settings.subject, documents=documents)
    decisions = find_decisions(traces, tokenizer, settings.corpus)
    return {kind: balanced(every, settings.decisions, settings.seed) for kind, every in decisions.items()}


def ablation_effects(
    variant: Variant, decisions: Decisions, table: pd.DataFrame, place: str, features: Ids | None = None
) -> Effects:
    """Effects on one kind of decision of features set to their mean, at the decision or over the trace.

    Without ``features`` every live one is ablated; with them there are as many random directions as features.
    """
    settings = variant.settings
    some = np.flatnonzero(table["density"] > 0) if features is None else features
    means = table["mean"].to_numpy(dtype=float)[some]
    n_random = settings.random_directions if features is None else len(some)
    progress = f"{decisions.name}, {len(some)} features, {place}"
    return measure_effects(
        variant.model, variant.sae, decisions, some, means, PLACES[place], n_random, settings.seed, progress
    )


def measured(
    variant: Variant,
    table: pd.DataFrame,
    decisions: Mapping[str, Decisions],
    chosen: Ids,
    stored: Sequence[Benchmark],
) -> Benchmark:
    """The benchmark of a variant: effects of every live feature at the decision, of some over the trace.

    Over the trace those with the largest effects are ablated, and as many of the ``chosen``: as many as are
    selected, or, where the ``stored`` benchmark of the autoencoder has them all, two of each as a check.
    """
    who = identity(variant.settings, variant.sae)
    known = any(each.whole for each in stored if each.identity == who)
    n = 2 if known else variant.settings.selected
    truths = {kind: ablation_effects(variant, own, table, PLACE) for kind, own in decisions.items()}
    over_trace = {
        kind: ablation_effects(variant, own, table, TRACE, np.union1d(truths[kind].strongest[:n], chosen[:n]))
        for kind, own in decisions.items()
        if kind == "persistence" or not known
    }
    return Benchmark(**who, evidence=table, truths=truths, over_trace=over_trace)


def measure_benchmark(target: Path, settings: Settings, over_trace: bool) -> None:
    """Measure and store the benchmark of the settings' subject and autoencoder, with all live features.

    The folder ``target`` is not there yet; it is made whole or not at all.
    """
    variant = load_variant(settings)
    table, decisions = gather_table(variant), held_out_decisions(variant)
    truths, over = (
        {kind: ablation_effects(variant, own, table, place) for kind, own in decisions.items() if wanted}
        for place, wanted in ((PLACE, True), (TRACE, over_trace))
    )
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    who = identity(settings, variant.sae)
    save_benchmark(fresh, Benchmark(**who, evidence=table, truths=truths, over_trace=over))
    fresh.rename(target)


def save_benchmark(folder: Path, benchmark: Benchmark) -> None:
    """Store a benchmark, for :func:`load_benchmarks`; effects are rounded to 32 bits, their sums to 16."""
    folder.mkdir(parents=True, exist_ok=True)
    frames, tensors = [benchmark.evidence], {}
    for place, effects in ((PLACE, benchmark.truths), (TRACE, benchmark.over_trace)):
        for kind, own in effects.items():
            parts = {"effect": own.change, "size": own.size, "threshold": own.threshold, "true": own.true}
            named = {f"{name}:{kind}:{place}": values for name, values in parts.items()}
            columns = pd.DataFrame(named, index=own.features, dtype=np.float32)
            frames.append(columns.reindex(benchmark.evidence.index))
            tensors[_sums(kind, place)] = own.sums.astype(np.float16)
            if place == TRACE:
                tensors[f"{kind}:{TRACE}:random"] = own.random.astype(np.float32)
            else:
                tensors[f"{kind}:counts"] = own.counts.astype(np.int32)
    pd.concat(frames, axis=1).to_parquet(folder / FEATURES, index=False, compression="zstd")
    save_file(tensors, folder / TRACES, metadata={"identity": json.dumps(benchmark.identity)})


def load_benchmarks(folder: str | Path) -> list[Benchmark]:
    """All benchmarks in a folder (absolute, or from the repository's root), by name.

    Raises MissingArtefact: there are none; CorruptArtefact: a file cannot be read.
    """
    found = sorted(path.parent for path in (paths.root() / folder).glob(f"*/{FEATURES}"))
    if not found:
        raise MissingArtefact(f"There are no ablation effects in {folder}: `make organism` measures them.")
    return [_load(path) for path in found]


def _sums(kind: str, place: str) -> str:
    """The name of the sums over traces."""
    return f"{kind}:sums" if place == PLACE else f"{kind}:{place}:sums"


def _load(folder: Path) -> Benchmark:
    try:
        table = pd.read_parquet(folder / FEATURES)
        with safe_open(folder / TRACES, framework="numpy") as file:
            identity = json.loads(file.metadata()["identity"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise CorruptArtefact(f"{paths.relative(folder)} cannot be read: restore its files.") from error

    def effects(kind: str, place: str) -> Effects:
        columns = [f"{name}:{kind}:{place}" for name in ("effect", "size", "threshold")]
        own = table[columns].dropna().astype(float)
        change, size, threshold = own.to_numpy().T
        return Effects(
            features=own.index.to_numpy(),
            change=change,
            size=size,
            threshold=threshold,
            sums=tensors[_sums(kind, place)].astype(float),
            counts=tensors[f"{kind}:counts"].astype(float),
            random=tensors.get(f"{kind}:{place}:random", np.empty((3, 0))).astype(float),
        )

    kinds = sorted(name.removesuffix(":counts") for name in tensors if name.endswith(":counts"))
    return Benchmark(
        **identity,
        evidence=table[[name for name in table if not str(name).startswith(EFFECT_COLUMNS)]],
        truths={kind: effects(kind, PLACE) for kind in kinds},
        over_trace={kind: effects(kind, TRACE) for kind in kinds if _sums(kind, TRACE) in tensors},
    )


def agreement(fresh: Sequence[Benchmark], stored: Sequence[Benchmark]) -> pd.DataFrame:
    """How far effects (nats) that were measured anew agree with the stored ones of the same autoencoder.

    A row an autoencoder, kind of decision and place that both have, of the ``features`` that both ablated.
    """
    rows: list[dict[str, Any]] = []
    for here, there in product(fresh, stored):
        places = {PLACE: (here.truths, there.truths), TRACE: (here.over_trace, there.over_trace)}
        for place, (ours, theirs) in places.items() if here.identity == there.identity else ():
            for kind in sorted(set(ours) & set(theirs)):
                shared = np.intersect1d(ours[kind].features, theirs[kind].features)
                one, two = ours[kind].of(shared).change, theirs[kind].of(shared).change
                row = {"model": here.model, "decision": kind, "ablated": place, "features": len(shared)}
                row |= {"correlation": np.corrcoef(one, two)[0, 1]}
                rows.append(row | {"largest difference": np.abs(one - two).max()})
    return pd.DataFrame(rows)


# --- scores ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scorer:
    """One row of the benchmark: a function from the feature table to one number a feature."""

    name: str  # as figures and tables say it
    function: Score
    signed: bool = False  # whether its sign says which side is promoted: features are then ranked by size


def column(name: str) -> Score:
    """The score that a column of the feature table holds; UserError, when called, where it has none."""

    def score(table: pd.DataFrame) -> ArrayLike:
        if name not in table:
            raise UserError(f"There is no column {name!r}: it needs labels, or another feature table.")
        return table[name].to_numpy()

    return score


def mean_difference(kind: str) -> Score:
    """Mean activation where the decision took its positive side less where it did not, × decoder norm.

    That is each feature's part of the mean-difference vector of the autoencoder's reconstructions.
    """
    positive, negative = column(f"at {kind}:positive"), column(f"at {kind}:negative")
    return lambda table: (np.asarray(positive(table)) - negative(table)) * table["decoder norm"]


def builtin(kind: str) -> list[Scorer]:
    """The built-in scorers for one kind of decision, in the order of the benchmark's rows."""
    return [
        Scorer("ReasonScore", column("score:reason score")),  # 2503.18878, equation 5
        Scorer("ReasonScore, released settings", column("score:released")),  # its released code
        Scorer("ReasonScore, before the word only", column("score:before")),
        Scorer("ReasonScore, R's tokens masked out", column("score:masked")),
        Scorer("word identity", column("score:identity")),  # ReasonScore of a token's mean activation
        Scorer("density", column("density")),
        Scorer("output score", column("score:output")),  # 2505.20063
        Scorer("mean difference", mean_difference(kind), signed=True),
        Scorer("gradient attribution", column(f"score:gradient {kind}"), signed=True),
    ]


def live_scores(score: Score, benchmark: Benchmark, truth: Effects) -> Array:
    """A score's values at the features that count ``[f]``; UserError where it lacks a finite number."""
    values, n = np.asarray(score(benchmark.evidence), dtype=float), len(benchmark.evidence)
    if values.shape != (n,) or not np.isfinite(values[truth.features]).all():
        raise UserError(f"Give each of the {n} features of {benchmark.model} a number, finite where active.")
    return values[truth.features]


# --- how well scores rank features -------------------------------------------------------------------------


def metrics(score: Array, effects: Array, threshold: Array, signed: bool) -> dict[str, Array]:
    """Every metric of one score ``[f]`` against effects ``[b, f]``, one number a row of effects ``[b]``.

    The rank correlation (Spearman) is of the score as given with the signed effect; "share of effect, top k"
    is of Σ|effect|.
    """
    ranking, sizes = np.abs(score) if signed else score, np.abs(effects)
    found = {
        "average precision": average_precision(ranking, sizes > threshold),
        "rank correlation": rank_correlation(score, effects),
    }
    best = np.argsort(-ranking, kind="stable")
    for k in TOP:
        found[f"share of effect, top {k}"] = _ratio(sizes[:, best[:k]].sum(axis=1), sizes.sum(axis=1))
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
    return _ratio((gained * hits / (ends + 1)).sum(axis=1), hits[:, -1])


def rank_correlation(score: Array, effects: Array) -> Array:
    """Spearman's correlation of a score ``[f]`` with each row of effects ``[b, f]`` → ``[b]``."""
    middle = (len(score) + 1) / 2
    ranks, others = rankdata(score) - middle, rankdata(effects, axis=1) - middle
    return _ratio(others @ ranks, np.sqrt((ranks**2).sum() * (others**2).sum(axis=1)))


def _ratio(top: Array, bottom: NDArray[Any]) -> Array:
    """Quotients, missing where the bottom is 0."""
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)


def _middle(values: Array) -> tuple[float, float]:
    """Middle 95% of the values that are not missing."""
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def evaluate_all(
    scorers: Sequence[Scorer], benchmarks: Sequence[Benchmark], kind: str = "persistence"
) -> pd.DataFrame:
    """Rank features by each score and compare with their ablation effects, on every benchmark.

    A feature is truly causal where its mean effect passes the threshold, whichever its sign. A signed score
    ranks by its size.

    A row a scorer, benchmark and metric (:func:`metrics`), with its 95% interval (traces resampled) and
    ``chance``, what a random ranking gives. The last rows, of the scorer ``CEILING``, are the measured effect
    used as a score: what could be had at most. Its average precision is below 1, since the threshold grows
    with the size of the edit.

    Raises UserError: no benchmarks, one has no decisions of this kind, or a score does not give one finite
    number a feature.
    """
    if not benchmarks:
        raise UserError("There is no benchmark to evaluate on: `make organism` measures the shipped models.")
    rows: list[dict[str, Any]] = []
    for scorer, benchmark in product([*scorers, None], benchmarks):
        truth = benchmark.truth(kind)
        values = live_scores(scorer.function, benchmark, truth) if scorer else truth.effect
        effects = np.concatenate([truth.effect[None], truth.resampled(RESAMPLES, SEED)])
        positives, live = int(truth.true.sum()), len(values)
        chance = {"average precision": positives / live, "rank correlation": 0.0}
        chance |= {f"share of effect, top {k}": min(k / live, 1.0) for k in TOP}
        for name, found in metrics(values, effects, truth.threshold, not scorer or scorer.signed).items():
            low, high = _middle(found[1:])
            row = {"metric": name, "estimate": found[0], "low": low, "high": high, "chance": chance[name]}
            row |= {"traces": len(truth.counts), "positives": positives, "live": live}
            rows.append(benchmark.identity | row | {"scorer": scorer.name if scorer else CEILING})
    return pd.DataFrame(rows)


def null_band(benchmarks: Sequence[Benchmark], kind: str = "persistence", null: str = "slot") -> pd.DataFrame:
    """Every metric of ReasonScore under other vocabularies, and where R stands among them.

    To :func:`metrics` comes "contrast": Σ score · signed effect, whose z among the vocabularies says whether
    R's words point at the causal features more than other words in their place. The ``null`` is "random"
    (matched in frequency) or "slot" (mixtures of R and its matched control words); ``low`` and ``high`` are
    their middle 95%. Empty where there are no such vocabularies.
    """
    rows: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        truth = benchmark.truth(kind)
        drawn = [str(name) for name in benchmark.evidence if str(name).startswith(f"score:{null} ")]
        points = []
        for name in ["score:reason score", *drawn] if drawn else []:
            values = live_scores(column(name), benchmark, truth)
            found = metrics(values, truth.effect[None], truth.threshold, signed=False)
            points.append({metric: own[0] for metric, own in found.items()})
            points[-1]["contrast"] = values @ truth.effect
        for metric, (ours, *others) in pd.DataFrame(points).items():
            rank, (low, high) = null_rank(ours, others), _middle(np.array(others))
            row = {"null": null, "metric": metric, "vocabularies": rank.n, "ours": ours}
            row |= {"mean": np.mean(others), "low": low, "high": high}
            row |= {"z": rank.z, "percentile": rank.percentile, "p_value": rank.p_value}
            rows.append(benchmark.identity | row)
    return pd.DataFrame(rows)


# --- ablated at the decision, and over the whole trace -----------------------------------------------------


def evaluate_places(benchmarks: Sequence[Benchmark]) -> pd.DataFrame:
    """:func:`evaluate_all` of the built-in scorers by ``decision`` and place where features were ``ablated``.

    Only of the benchmarks where every live feature was ablated over the trace; empty where there are none.
    """
    whole = [benchmark for benchmark in benchmarks if benchmark.whole]
    if not whole:
        return pd.DataFrame()
    over = [replace(benchmark, truths=benchmark.over_trace) for benchmark in whole]
    tables = [
        evaluate_all(builtin(kind), judged, kind).assign(ablated=place, decision=kind)
        for kind in SIDES
        for place, judged in ((PLACE, whole), (TRACE, over))
    ]
    return pd.concat(tables, ignore_index=True)


def compare_places(benchmark: Benchmark, kind: str, chosen: Collection[int]) -> pd.DataFrame:
    """Features ablated at both places, the largest change over the trace first; ``chosen`` ones are marked.

    The mean change of the log-odds on ablation, in nats, ``at the decision`` and ``over the trace``, each
    with its 95% interval over traces and its threshold, and ``passes`` (of ``PASSES``).
    """
    shared = np.intersect1d(benchmark.truths[kind].features, benchmark.over_trace[kind].features)
    here, over = benchmark.truths[kind].of(shared), benchmark.over_trace[kind].of(shared)
    table = pd.DataFrame({"feature": shared})
    for name, prefix, effects in (("at the decision", "", here), ("over the trace", "trace ", over)):
        low, high = np.quantile(-effects.resampled(PLACE_RESAMPLES, SEED), [0.025, 0.975], axis=0)
        ends = {f"{prefix}low": low, f"{prefix}high": high, f"{prefix}threshold": effects.threshold}
        table = table.assign(**{name: effects.change}, **ends)
    table["passes"] = np.array(PASSES)[here.true + 2 * over.true]
    table["chosen"] = np.isin(shared, list(chosen))
    return table.sort_values("over the trace", key=np.abs, ascending=False, kind="stable", ignore_index=True)
