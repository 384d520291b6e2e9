"""A matched-budget search on one model, and its winners on problems that no choice has seen.

Whoever tries many vectors finds a good one by luck alone. So ReasonScore's features are compared with classes
of vectors that have as many candidates, strengths, signs and problems. Every candidate is screened at every
strength on a few problems; the best of each class, with baselines, are tried again on others; one winner a
class goes on to fresh problems of the evaluation split, and its best with γ > 0, as the paper amplifies.
"""

import functools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.files import read_json, write_json
from reasoning_features.models.conditions import UNSTEERED, Condition, added, feature_conditions
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.settings import READ, Settings, load_settings
from reasoning_features.statistics import Array, Ids
from reasoning_features.steering.answering import answers
from reasoning_features.steering.questions import load_questions
from reasoning_features.steering.token_rules import bias_to_go_on, bias_to_words, forced_wait
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth import benchmark as scorers
from reasoning_features.truth.benchmark import Benchmark, Variant
from reasoning_features.truth.decisions import Decisions, find_decisions

# classes of candidates
CHOSEN, SLOT, WORDS = "ReasonScore", "slot-matched words", "random words"
FEATURES, DIRECTIONS, CAUSAL = "random features", "random directions", "causal features"
AMPLIFIED = {name: f"{name}, γ > 0" for name in (CHOSEN, SLOT, WORDS, FEATURES)}
# signs of γ → ReasonScore's class, and the control classes, which are searched in the same way
SIGNS = {"both signs": (CHOSEN, SLOT, WORDS, FEATURES, DIRECTIONS), "γ > 0": tuple(AMPLIFIED.values())}
# baselines and their strengths: shares of the residual stream's mean norm, nats, and times
MEAN_DIFFERENCE, REASONING_BIAS = "mean difference", "bias on R"
STOPPING_BIAS, WAIT = "bias against stopping", "forced Wait"
SHARES = (-0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3)
NATS = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
WAITS = (1, 2)
NEAREST = 5  # a random feature is drawn from this many that are nearest in size and density
SEEDS = {"screening": 101, "rescreening": 102, "evaluation": 103}  # of a stage's draws, added to the run's
COLUMNS = ("group", "candidate", "feature", "gamma", "share of norm", "condition")  # identify a trial
ADDED, CLAMPED = "added", "clamped"
# the settings that determine a study
DETERMINED_BY = (
    *READ, "subject", "contrast", "autoencoder", "contrast_autoencoder", "seed", "reasoning_documents",
    "general_documents", "words", "alpha", "window", "batch_tokens", "candidates",
    "search_vocabularies", "strengths", "screening_problems", "rescreened", "rescreening_problems",
    "steering_problems",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """A class's candidate at one strength, or a baseline."""

    group: str  # its class, or the baseline's name
    candidate: str  # one vector has one name in every class; "" for a baseline
    condition: Condition


def candidates(settings: Settings, sae: Any, evidence: pd.DataFrame, effects: Array | None) -> list[Trial]:
    """``settings.candidates`` vectors of each class, each at every strength γ.

    Those of the slot-matched and of the random vocabularies in the feature table, ``evidence``, are taken in
    turn. A random feature is matched to one of ReasonScore's, and a random direction has its size. Causal
    features have the largest ``effects`` ``[d_sae]`` on persistence (None: no such class). UserError: too
    few live features.
    """
    n, seed = settings.candidates, settings.seed
    live = np.flatnonzero(evidence["density"].to_numpy() > 0)
    if len(live) < 2 * n:
        raise UserError(f"{n} candidates need {2 * n} live features, not {len(live)}: lower `candidates`.")

    def ranking(vocabulary: str) -> Ids:
        score = evidence[f"score:{vocabulary}"].to_numpy(dtype=float)[live]
        return live[np.argsort(-score, kind="stable")]

    features = {CHOSEN: ranking("reason score")[:n]}
    for group, kind in ((SLOT, "slot"), (WORDS, "random")):
        names = [f"{kind} {i}" for i in range(settings.search_vocabularies)]
        if ranked := [ranking(name) for name in names if f"score:{name}" in evidence]:
            features[group] = pd.unique(np.stack(ranked, axis=1).ravel())[:n]
    features[FEATURES] = matched_features(evidence, features[CHOSEN], live, seed)
    if effects is not None:
        features[CAUSAL] = live[np.argsort(-np.abs(effects[live]), kind="stable")][:n]
    decoder, maxima = sae.W_dec.detach().cpu(), evidence["maximum"].to_numpy(dtype=float)
    asked = [(group, int(feature)) for group, own in features.items() for feature in own]
    vectors = [(group, f"feature {i}", i, float(maxima[i]) * decoder[i]) for group, i in asked]
    sizes = torch.stack([vector for *_, vector in vectors[:n]]).norm(dim=1, keepdim=True)
    drawn = torch.randn(n, decoder.shape[1], generator=torch.Generator().manual_seed(seed))
    directions = sizes * torch.nn.functional.normalize(drawn.to(sizes), dim=1)
    vectors += [(DIRECTIONS, f"direction {i}", -1, vector) for i, vector in enumerate(directions)]
    return [
        Trial(group, name, added(name, feature, gamma, vector))
        for group, name, feature, vector in vectors
        for gamma in settings.strengths
    ]


def matched_features(evidence: pd.DataFrame, chosen: Ids, live: Ids, seed: int) -> Ids:
    """One random live feature for each chosen one, of the ``NEAREST`` in log f_max‖W_dec‖ and log density."""
    size = evidence["maximum"].to_numpy(dtype=float) * evidence["decoder norm"].to_numpy(dtype=float)
    density = evidence["density"].to_numpy(dtype=float)
    points = np.log(np.stack([size[live], density[live]], axis=1))
    points = points / points.std(axis=0)
    rng, taken = np.random.default_rng(seed), set(chosen.tolist())
    drawn = []
    for feature in chosen:
        distance = np.linalg.norm(points - points[np.searchsorted(live, feature)], axis=1)
        near = [int(f) for f in live[np.argsort(distance, kind="stable")] if int(f) not in taken]
        drawn.append(int(rng.choice(near[:NEAREST])))
        taken.add(drawn[-1])
    return np.array(drawn, dtype=np.int64)


def mean_norm(subject: Subject, corpus: Corpus, batch_tokens: int) -> float:
    """Mean norm of the residual stream over a corpus' tokens that are not special."""
    total, count = 0.0, 0
    for batch in stream(subject, corpus, batch_tokens):
        total += float(batch.residual.double().norm(dim=1).sum())
        count += len(batch.residual)
    return total / count


def mean_difference(subject: Subject, decisions: Decisions, batch_tokens: int) -> Tensor:
    """Direction ``[d]`` of unit norm: mean stream at decisions of the positive side less the negative's."""
    include = np.isin(np.arange(decisions.corpus.n_tokens), decisions.positions)
    read = collect(stream(subject, decisions.corpus, batch_tokens, include))
    own = read.residual[torch.from_numpy(read.rows(decisions.positions))].double()
    towards = torch.from_numpy(decisions.towards)
    return torch.nn.functional.normalize(own[towards].mean(0) - own[~towards].mean(0), dim=0).float()


def baselines(settings: Settings, tokenizer: Any, direction: Tensor | None, norm: float) -> list[Trial]:
    """Simpler ways to make a model go on: the mean difference where decisions are known, biases, "Wait"."""

    def trial(group: str, strength: str, gamma: float, **how: Any) -> Trial:
        return Trial(group, "", Condition(f"{group}{strength}", gamma=gamma, **how))

    made = []
    if direction is not None:
        made = [trial(MEAN_DIFFERENCE, f" at {g:g}", g, vector=g * norm * direction) for g in SHARES]
    for nats in NATS:
        bias = bias_to_words(tokenizer, settings.words, nats, settings.capitalised)
        made.append(trial(REASONING_BIAS, f" of {nats:g}", nats, rule=bias))
    made += [trial(STOPPING_BIAS, f" of {g:g}", g, rule=bias_to_go_on(tokenizer, g)) for g in NATS]
    return made + [trial(WAIT, f", {n} times", float(n), rule=forced_wait(tokenizer, n)) for n in WAITS]


@dataclass(frozen=True)
class Tried:
    """What a study of one model tries."""

    candidates: list[Trial]
    baselines: list[Trial]  # of each, the second screening chooses one
    norm: float  # mean norm of the residual stream, the other unit of strength

    def table(self, trials: Iterable[Trial]) -> pd.DataFrame:
        """A row a trial (``COLUMNS``); one vector may stand in several classes."""
        told = [(trial.group, trial.candidate, trial.condition) for trial in trials]
        rows = [(group, name, c.feature, c.gamma, self.share(c), c.name) for group, name, c in told]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def share(self, condition: Condition) -> float:
        """Norm of the vector that is added, over that of the stream, signed as γ; nan where none is."""
        if condition.vector is None:
            return np.nan
        return float(np.sign(condition.gamma)) * float(condition.vector.norm()) / self.norm

    def conditions(self, names: Iterable[str]) -> list[Condition]:
        """Conditions by name, each once."""
        known = {each.condition.name: each.condition for each in (*self.candidates, *self.baselines)}
        return [known[name] for name in dict.fromkeys(names)]

    def winner(self, study: "Study", group: str) -> Condition:
        """The condition with which a class went on to fresh problems in a study of these."""
        return self.conditions([study.winners.set_index("group")["condition"][group]])[0]


def tested(variant: Variant, stored: Sequence[Benchmark]) -> Benchmark:
    """The stored benchmark of a model and its autoencoder; else evidence gathered anew, without effects."""
    who = scorers.identity(variant.settings, variant.sae)
    known = [benchmark for benchmark in stored if benchmark.identity == who]
    if known:
        return known[0]
    return Benchmark(**who, evidence=scorers.gather_table(variant), truths={}, nulls=pd.DataFrame())


def going_on(variant: Variant) -> tuple[float, Tensor | None]:
    """Mean norm of the residual stream, and where decisions are known their mean difference ``[d]``."""
    settings, subject = variant.settings, variant.model
    traces = reasoning_corpus(settings, subject.tokenizer, "selection", settings.subject)
    decisions = find_decisions(traces, subject.tokenizer, settings.corpus)
    norm = mean_norm(subject, traces, settings.batch_tokens)
    if "persistence" not in decisions:
        return norm, None
    return norm, mean_difference(subject, decisions["persistence"], settings.batch_tokens)


def prepare(variant: Variant, benchmark: Benchmark) -> Tried:
    """The candidates and baselines of one model, from texts of the selection split and its benchmark."""
    settings, subject = variant.settings, variant.model
    norm, direction = going_on(variant)
    effects = benchmark.effect("persistence") if "persistence" in benchmark.truths else None
    vectors = candidates(settings, variant.sae, benchmark.evidence, effects)
    return Tried(vectors, baselines(settings, subject.tokenizer, direction, norm), norm)


@dataclass(frozen=True)
class Study:
    """What came out on one model."""

    identity: Mapping[str, Any]  # `model`, `kappa`, `model_seed`, and what else tells it from other studies
    screening: pd.DataFrame  # every trial (COLUMNS) with the mean of each measure, `gain` and `n`
    rescreening: pd.DataFrame  # the same of the best trials of each class, and of the baselines
    evaluation: pd.DataFrame  # an answer to a fresh problem a row: trial, `problem`, `domain`, the measures

    @property
    def winners(self) -> pd.DataFrame:
        """A row a class and of ``AMPLIFIED``: what went on to fresh problems; ``correct`` is before them."""
        return _winners(self.rescreening)[[*COLUMNS, "correct"]]

    def outcome(self, group: str, measure: str = "correct") -> Array:
        """A measure of every fresh problem under a class's winner (or ``UNSTEERED``) ``[n]``."""
        rows = self.evaluation[self.evaluation["group"] == group].sort_values("problem")
        return rows[measure].to_numpy(dtype=float)

    def save(self, folder: Path) -> None:
        """Write the study's files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in SEEDS:
            getattr(self, name).to_parquet(folder / f"{name}.parquet", index=False, compression="zstd")
        write_json(folder / "study.json", dict(self.identity))


def load_studies(folder: Path) -> dict[str, Study]:
    """All studies in a folder, by name; MissingArtefact where there are none, CorruptArtefact where torn."""
    studies = {}
    for path in sorted(folder.glob("[!.]*/study.json")):
        own = path.parent
        try:
            frames = {name: pd.read_parquet(own / f"{name}.parquet") for name in SEEDS}
            studies[own.name] = Study(read_json(path), **frames)
        except (OSError, ValueError) as error:
            raise CorruptArtefact(f"The study {own.name} cannot be read: restore its files.") from error
    if not studies:
        raise MissingArtefact(f"There are no steering studies in {folder.name}: `make organism` makes them.")
    return studies


def shipped_study(settings: Settings, shipped: Mapping[str, Study], identity: dict[str, Any]) -> Study | None:
    """The shipped study of one model, where the run's settings are those that it was made with; else None."""
    own = {"subject", "contrast", "autoencoder", "contrast_autoencoder"}  # these the identity tells
    made_with = load_settings("organism")
    same = all(getattr(settings, n) == getattr(made_with, n) for n in DETERMINED_BY if n not in own)
    name = "{model}-{architecture}-{autoencoder_seed}".format(**identity)
    return shipped.get(name) if same else None


def study_variants(
    variants: Mapping[str, Variant],
    tried: Mapping[str, Tried],
    tables: Mapping[str, Benchmark],
    shipped: Mapping[str, Study],
    folder: Path,
) -> tuple[dict[str, Study], list[str]]:
    """A study of every variant, saved in a folder, and which of them were made anew: no shipped one fits."""
    found = {name: shipped_study(v.settings, shipped, tables[name].identity) for name, v in variants.items()}
    studies = {
        name: study or study_model(variants[name], tried[name], tables[name].identity, folder / "unfinished")
        for name, study in found.items()
    }
    for name, study in studies.items():
        study.save(folder / name)
    shutil.rmtree(folder / "unfinished", ignore_errors=True)
    return studies, [name for name, study in found.items() if study is None]


def study_model(variant: Variant, tried: Tried, identity: Mapping[str, Any], unfinished: Path) -> Study:
    """Screen every trial, try each class's best again with the baselines, and put the winners to the test.
    Each stage has other problems. An interrupted study goes on from the answers in ``unfinished``.
    """
    settings = variant.settings
    load = functools.partial(load_questions, settings, variant.model.tokenizer)
    asked = {
        "screening": load("selection", settings.screening_problems),
        "rescreening": load("selection", settings.rescreening_problems, start=settings.screening_problems),
        "evaluation": load("evaluation", settings.steering_problems, start=settings.evaluation_start),
    }
    measures = asked["screening"].measures

    def ask(stage: str, trials: pd.DataFrame) -> pd.DataFrame:
        conditions, told = tried.conditions(trials["condition"]), f"{identity['model']}, {stage}"
        seed = settings.seed + SEEDS[stage]
        return answers(variant.model, asked[stage], conditions, seed, progress=told, kept=unfinished)

    trials = tried.table(tried.candidates)
    first = outcomes(trials, ask("screening", trials), measures)
    amplified = best(_amplified(first), settings.rescreened)
    best_again = pd.concat([best(first, settings.rescreened), amplified])[list(COLUMNS)]
    again = pd.concat([best_again.drop_duplicates(), tried.table(tried.baselines)], ignore_index=True)
    second = outcomes(again, ask("rescreening", again), measures)
    winners = _winners(second)
    kept = ask("evaluation", winners)[["condition", "problem", "domain", *measures]]
    unsteered = kept[kept["condition"] == UNSTEERED].assign(group=UNSTEERED, feature=-1, gamma=0.0)
    unsteered["share of norm"] = 0.0
    named = winners[["group", "condition", "feature", "gamma", "share of norm"]]
    steered = named.merge(kept, on="condition", sort=False)  # classes may share a winner
    frame = pd.concat([unsteered[steered.columns], steered], ignore_index=True)
    return Study(identity, first, second, frame)


def store_study(target: Path, settings: Settings, truth: Path, unfinished: Path) -> None:
    """The study of the settings' subject, whole or not at all in ``target``; ``truth`` holds benchmarks."""
    variant = scorers.load_variant(settings)
    benchmark = tested(variant, scorers.load_benchmarks(truth))
    study = study_model(variant, prepare(variant, benchmark), benchmark.identity, unfinished)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    study.save(fresh)
    fresh.rename(target)


def outcomes(trials: pd.DataFrame, answered: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """The trials with each measure's mean over problems, ``gain`` in accuracy over unsteered, and ``n``."""
    grouped = answered.groupby("condition")[list(measures)]
    means = grouped.mean()
    means = means.assign(gain=means["correct"] - means["correct"].to_dict()[UNSTEERED], n=grouped.size())
    return trials.merge(means, left_on="condition", right_index=True, how="left", sort=False)


def best(tried: pd.DataFrame, k: int) -> pd.DataFrame:
    """The ``k`` rows of each class with the highest accuracy; ties go to the weaker, then to the earlier."""
    order = tried.assign(strength=tried["gamma"].abs(), place=np.arange(len(tried)))
    order = order.sort_values(["correct", "strength", "place"], ascending=[False, True, True])
    return tried.loc[order.groupby("group", sort=False).head(k).index.sort_values()].reset_index(drop=True)


def _amplified(tried: pd.DataFrame) -> pd.DataFrame:
    return tried[tried["group"].isin(list(AMPLIFIED)) & (tried["gamma"] > 0)]


def _winners(second: pd.DataFrame) -> pd.DataFrame:
    amplified = best(_amplified(second), 1)
    return pd.concat([best(second, 1), amplified.replace({"group": AMPLIFIED})], ignore_index=True)


def strength_trials(
    variant: Variant, tried: Tried, evidence: pd.DataFrame, features: Mapping[str, int]
) -> tuple[list[Condition], pd.DataFrame]:
    """Features added (equation 7) and clamped (the released hook) at every strength; the mean difference.

    Returns the conditions, and one row each: ``vector`` (the key of ``features``), ``how``, ``gamma``,
    ``share of norm`` (for a clamped feature that of adding γ f_max W_dec) and ``condition``.
    """
    gammas, maxima = variant.settings.strengths, evidence["maximum"]
    made: list[Condition] = []
    rows: list[tuple[str, str, float, float, str]] = []
    for name, feature in features.items():
        plain = feature_conditions(variant.sae, [feature], gammas, maxima)
        clamped = feature_conditions(variant.sae, [feature], gammas, maxima, clamp=True)
        made += plain + clamped
        for how, own in ((ADDED, plain), (CLAMPED, clamped)):
            rows += [(name, how, c.gamma, tried.share(p), c.name) for p, c in zip(plain, own, strict=True)]
    others = [each.condition for each in tried.baselines if each.group == MEAN_DIFFERENCE]
    rows += [(MEAN_DIFFERENCE, ADDED, c.gamma, tried.share(c), c.name) for c in others]
    columns = ["vector", "how", "gamma", "share of norm", "condition"]
    return made + others, pd.DataFrame(rows, columns=columns)
