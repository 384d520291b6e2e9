"""How well any score of features ranks them by their patching effects, on every model and autoencoder.

A score sees the feature table (selection split); it is judged by each feature's effect on the log-odds of a
decision (evaluation split). Intervals resample traces. Only features that are ever active count.

A folder an autoencoder: ``features.parquet``, one row a feature of the dictionary (feature table, then
effects by kind of decision, missing for features that are never active); ``traces.safetensors``: per-trace
sums of the effects, counts of decisions, effects of random directions, and as metadata what identifies the
autoencoder; ``vocabularies.parquet``: ReasonScore of R among other vocabularies (:func:`null_band`).
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from reasoning_features.organism.problems import Split
from reasoning_features.settings import READ, Settings
from reasoning_features.statistics import Array, Flags, Ids, null_rank
from reasoning_features.text.corpora import general_corpus, reasoning_corpus, with_words_that_occur
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth import effects as patching
from reasoning_features.truth.decisions import Decisions, balanced, find_decisions, wordings
from reasoning_features.truth.effects import Effects
from reasoning_features.truth.feature_table import draw_words, measure_features

Score = Callable[[pd.DataFrame], ArrayLike]
# the settings that determine a stored benchmark
DETERMINED_BY = (
    *READ, "subject", "contrast", "autoencoder", "contrast_autoencoder", "seed", "reasoning_documents",
    "general_documents", "words", "alpha", "window", "batch_tokens", "random_vocabularies",
    "slot_vocabularies", "search_vocabularies", "decisions", "random_directions",
)  # fmt: skip
# traces read for each decision that is wanted: careful ones are few, and decide once whether to verify
DOCUMENTS_A_DECISION = 3
PROMPTS, PROMPT_LENGTH = 8, 8  # neutral openings of the output score, and their length in tokens
EFFECT_COLUMNS = ("effect:", "size:")  # that no score may see
FEATURES, TRACES, NULLS = "features.parquet", "traces.safetensors", "vocabularies.parquet"
TOP = (10, 20)  # numbers of features whose share of the effect is reported
FEWEST_CAUSAL = 5  # causal features below which average precision says nothing
RESAMPLES, SEED = 200, 0
CEILING, PRECISION = "the effect itself", "average precision"


@dataclass(frozen=True)
class Benchmark:
    """One autoencoder of one model: what a score may look at, and the effects it is judged by."""

    model: str
    kappa: float  # coupling of the words of R to persistence, nan where none is planted
    model_seed: int
    architecture: str
    autoencoder_seed: int
    evidence: pd.DataFrame  # the feature table
    truths: dict[str, Effects]  # kind of decision → effects
    nulls: pd.DataFrame  # ReasonScore of R among other vocabularies, by kind of decision

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
        """The effect of every row of the feature table ``[f]``; nan of features that are never active."""
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
    """The subject and, where the profile names one, the contrast, by the model's name; R is what occurs. A
    ``subject`` that is loaded already is not loaded again: a second copy may not fit.
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
    """What identifies an autoencoder among benchmarks; κ is missing where a model's card gives none. The
    autoencoder's seed is the number that its directory's name ends in, 0 where there is none.
    """
    card = paths.resolve(settings.subject) / "training.json"
    training = json.loads(card.read_text()) if card.is_file() else {}
    last = Path(settings.autoencoder).name.rsplit("-", 1)[-1]
    return {
        "model": short_name(settings.subject), "kappa": training.get("kappa", float("nan")),
        "model_seed": training.get("seed", 0), "architecture": architecture_label(sae),
        "autoencoder_seed": int(last) if last.isdigit() else 0,
    }  # fmt: skip


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
    prompts = patching.neutral_prompts(general, PROMPTS, PROMPT_LENGTH)
    live, scores = np.flatnonzero(table["density"] > 0), np.zeros(len(table))
    scores[live] = patching.output_scores(model, sae, prompts, settings.batch_tokens, live)
    added, mean = {"score:output": scores}, table["mean"].to_numpy(dtype=float)
    for kind, own in decisions.items():
        score = patching.gradient_attribution(model, sae, own, mean, settings.batch_tokens)
        added[f"score:gradient {kind}"] = score
    return table.assign(**{name: values.astype(np.float32) for name, values in added.items()})


def worded_decisions(variant: Variant, split: Split, n: int) -> tuple[dict[str, Decisions], Corpus]:
    """``n`` decisions of each kind in traces in careful words, and the same traces in hasty words. They are
    balanced by the traces' own style. Raises UserError: there are too few.
    """
    settings, tokenizer = variant.settings, variant.model.tokenizer
    documents = DOCUMENTS_A_DECISION * n
    traces = reasoning_corpus(settings, tokenizer, split, settings.subject, documents=documents)
    careful, hasty = wordings(traces, tokenizer)
    found = find_decisions(careful, tokenizer, settings.corpus)
    return {kind: balanced(own, n, settings.seed) for kind, own in found.items()}, hasty


def measured(
    variant: Variant, table: pd.DataFrame, decisions: Mapping[str, Decisions], hasty: Corpus
) -> Benchmark:
    """The benchmark of a variant and its feature table: effects of every live feature on
    :func:`worded_decisions` of the evaluation split.

    Of other vocabularies' scores the table keeps the first ``settings.search_vocabularies`` of each kind.
    """
    settings, live = variant.settings, np.flatnonzero(table["density"] > 0)
    n, seed = settings.random_directions, settings.seed
    truths = {
        kind: patching.measure_effects(variant.model, variant.sae, own, hasty, live, n, seed)
        for kind, own in decisions.items()
    }
    nulls = pd.concat([null_band(table, truth).assign(decision=kind) for kind, truth in truths.items()])
    names = [str(name) for name in table]
    drawn = [re.fullmatch(r"score:(slot|random) (\d+)", name) for name in names]
    kept = [not found or int(found[2]) < settings.search_vocabularies for found in drawn]
    who = identity(settings, variant.sae)
    return Benchmark(**who, evidence=table.loc[:, kept], truths=truths, nulls=nulls)


def measure_benchmark(target: Path, settings: Settings) -> None:
    """Measure and store the benchmark of the settings' subject and autoencoder. The folder ``target`` is not
    there yet; it is made whole or not at all.
    """
    variant, fresh = load_variant(settings), target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    decided = worded_decisions(variant, "evaluation", settings.decisions)
    save_benchmark(fresh, measured(variant, gather_table(variant), *decided))
    fresh.rename(target)


def save_benchmark(folder: Path, benchmark: Benchmark) -> None:
    """Store a benchmark, for :func:`load_benchmarks`; effects are rounded to 32 bits, their sums to 16."""
    folder.mkdir(parents=True, exist_ok=True)
    frames, tensors = [benchmark.evidence], {}
    for kind, own in benchmark.truths.items():
        parts = {f"effect:{kind}": own.effect, f"size:{kind}": own.size}
        columns = pd.DataFrame(parts, index=own.features, dtype=np.float32)
        frames.append(columns.reindex(benchmark.evidence.index))
        tensors[f"{kind}:sums"] = own.sums.astype(np.float16)
        tensors[f"{kind}:counts"] = own.counts.astype(np.int32)
        tensors[f"{kind}:random"] = own.random.astype(np.float32)
    pd.concat(frames, axis=1).to_parquet(folder / FEATURES, index=False, compression="zstd")
    benchmark.nulls.to_parquet(folder / NULLS, index=False, compression="zstd")
    save_file(tensors, folder / TRACES, metadata={"identity": json.dumps(benchmark.identity)})


def load_benchmarks(folder: str | Path) -> list[Benchmark]:
    """All benchmarks in a folder (absolute, or from the repository's root), by name. Raises MissingArtefact:
    there are none; CorruptArtefact: a file cannot be read.
    """
    found = sorted(path.parent for path in (paths.root() / folder).glob(f"*/{FEATURES}"))
    if not found:
        raise MissingArtefact(f"There are no patching effects in {folder}: `make organism` measures them.")
    return [_load(path) for path in found]


def _load(folder: Path) -> Benchmark:
    try:
        table, nulls = pd.read_parquet(folder / FEATURES), pd.read_parquet(folder / NULLS)
        with safe_open(folder / TRACES, framework="numpy") as file:
            identity = json.loads(file.metadata()["identity"])
            tensors = {name: file.get_tensor(name).astype(float) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise CorruptArtefact(f"{paths.relative(folder)} cannot be read: restore its files.") from error

    def effects(kind: str) -> Effects:
        own = table[[f"effect:{kind}", f"size:{kind}"]].dropna().astype(float)
        effect, size = own.to_numpy().T
        random, sums, counts = (tensors[f"{kind}:{name}"] for name in ("random", "sums", "counts"))
        return Effects(own.index.to_numpy(), effect, size, random, sums, counts)

    kinds = sorted(name.removesuffix(":counts") for name in tensors if name.endswith(":counts"))
    evidence = table[[name for name in table if not str(name).startswith(EFFECT_COLUMNS)]]
    return Benchmark(**identity, evidence=evidence, truths={k: effects(k) for k in kinds}, nulls=nulls)


# --- scores ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scorer:
    """One row of the benchmark: a function from the feature table to one number a feature."""

    name: str  # as figures and tables say it
    function: Score
    signed: bool = False  # whether its sign says for which side a feature speaks: its size then ranks both

    def ranking(self, table: pd.DataFrame) -> Array:
        """What features are ranked by ``[d_sae]``, the largest first."""
        values = np.asarray(self.function(table), dtype=float)
        return np.abs(values) if self.signed else values


def column(name: str) -> Score:
    """The score that a column of the feature table holds; UserError, when called, where it has none."""

    def score(table: pd.DataFrame) -> ArrayLike:
        if name not in table:
            raise UserError(f"There is no column {name!r}: it needs labels, or another feature table.")
        return table[name].to_numpy()

    return score


def mean_difference(kind: str) -> Score:
    """Mean activation where the decision took its positive side less where it did not, × decoder norm. That
    is each feature's part of the mean-difference vector of the autoencoder's reconstructions.
    """
    positive, negative = column(f"at {kind}:positive"), column(f"at {kind}:negative")
    return lambda table: (np.asarray(positive(table)) - negative(table)) * table["decoder norm"]


def top_sets(table: pd.DataFrame, scorers: Sequence[Scorer], counts: Sequence[int]) -> dict[str, Ids]:
    """The first so many live features by each score, best first: "<scorer>, top <k>" → ids ``[k]``."""
    live, found = np.flatnonzero(table["density"] > 0), dict[str, Ids]()
    for scorer in scorers:
        order = live[np.argsort(-scorer.ranking(table)[live], kind="stable")]
        found |= {f"{scorer.name}, top {k}": order[:k] for k in counts}
    return found


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


# --- how well scores rank features -------------------------------------------------------------------------


def metrics(score: Array, truth: Effects, effects: Array, signed: bool = False) -> dict[str, Array]:
    """Every metric of one score ``[f]`` against effects ``[b, f]``, one number a row of effects ``[b]``.

    "share of effect, top k" is of Σ|effect|; a ``signed`` score ranks by its size. The rank correlation
    (Spearman), among the features that move, is of the score as given with the signed effect; average
    precision is missing where fewer than five features are causal.
    """
    ranking, sizes, moved = np.abs(score) if signed else score, np.abs(effects), truth.size > 0
    best, causal = np.argsort(-ranking, kind="stable"), sizes >= truth.threshold
    found = {}
    for k in TOP:
        found[f"share of effect, top {k}"] = _ratio(sizes[:, best[:k]].sum(axis=1), sizes.sum(axis=1))
    found["rank correlation"] = rank_correlation(score[moved], effects[:, moved])
    precision = average_precision(ranking, causal)
    found[PRECISION] = np.where(causal.sum(axis=1) >= FEWEST_CAUSAL, precision, np.nan)
    return found


def average_precision(ranking: Array, true: Flags) -> Array:
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
    """Rank features by each score and compare with their patching effects, on every benchmark.

    A row a scorer, benchmark and metric (:func:`metrics`), with its 95% interval (traces resampled) and
    ``chance``, what a random ranking gives. The last rows, of the scorer ``CEILING``, are the measured effect
    used as a score: what could be had at most.

    Raises UserError: no benchmarks, one has no decisions of this kind, or a score does not give one finite
    number a feature.
    """
    if not benchmarks:
        raise UserError("There is no benchmark to evaluate on: `make organism` measures the shipped models.")
    rows: list[dict[str, Any]] = []
    for scorer, benchmark in product([*scorers, None], benchmarks):
        truth, n = benchmark.truth(kind), len(benchmark.evidence)
        values = np.asarray(scorer.function(benchmark.evidence), float) if scorer else benchmark.effect(kind)
        if values.shape != (n,) or not np.isfinite(values[truth.features]).all():
            each = f"each of the {n} features of {benchmark.model}"
            raise UserError(f"Give {each} a number, finite where active.")
        values = values[truth.features]
        effects = np.concatenate([truth.effect[None], truth.resampled(RESAMPLES, SEED)])
        causal, live = int(truth.causal.sum()), len(values)
        chance = {PRECISION: causal / live, "rank correlation": 0.0}
        chance |= {f"share of effect, top {k}": min(k / live, 1.0) for k in TOP}
        for name, found in metrics(values, truth, effects, not scorer or scorer.signed).items():
            low, high = _middle(found[1:])
            row = {"metric": name, "estimate": found[0], "low": low, "high": high, "chance": chance[name]}
            row |= {"traces": len(truth.counts), "causal": causal, "live": live}
            rows.append(benchmark.identity | row | {"scorer": scorer.name if scorer else CEILING})
    return pd.DataFrame(rows)


def null_band(table: pd.DataFrame, truth: Effects) -> pd.DataFrame:
    """Where R's ReasonScore stands among that of other vocabularies, by each metric.

    To :func:`metrics` comes "contrast": Σ score · signed effect, whose z among the vocabularies says whether
    R's words point at the features that carry the decision more than other words in their place. A ``null``
    is "random" (matched in frequency) or "slot" (mixtures of R and its control words); ``low`` and ``high``
    are their middle 95%. Empty where the feature ``table`` has no such vocabularies.
    """
    rows: list[dict[str, Any]] = []
    for null in ("slot", "random"):
        names = [name for name in table if str(name).startswith(f"score:{null} ")]
        points = []
        for name in ["score:reason score", *names] if names else []:
            values = table[name].to_numpy(dtype=float)[truth.features]
            found = metrics(values, truth, truth.effect[None])
            points.append({metric: own[0] for metric, own in found.items()})
            points[-1]["contrast"] = values @ truth.effect
        for metric, (ours, *others) in pd.DataFrame(points).dropna(axis=1).items():
            rank, (low, high) = null_rank(ours, others), _middle(np.array(others))
            row = {"null": null, "metric": metric, "vocabularies": rank.n, "ours": ours}
            row |= {"mean": np.mean(others), "low": low, "high": high}
            row |= {"z": rank.z, "percentile": rank.percentile, "p_value": rank.p_value}
            rows.append(row)
    return pd.DataFrame(rows)
