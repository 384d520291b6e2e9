"""A matched-budget search on one model, and its winners on problems that no choice has seen.

Whoever tries many vectors finds a good one by luck alone. So ReasonScore's features are compared with classes
of steering vectors that have the same luck, as many candidates, strengths, signs and problems each: what
ReasonScore picks from other vocabularies, random features, random directions. Every candidate is screened at
every strength on a few problems; the best of each class are tried again on other problems; and one winner a
class goes on to fresh problems of the evaluation split. All choices are made by the rules below, on problems
of the selection split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.files import read_json, write_json
from reasoning_features.models.conditions import UNSTEERED, Condition, added, feature_conditions
from reasoning_features.models.subject import Subject
from reasoning_features.settings import READ, Settings, load_settings
from reasoning_features.statistics import bootstrap_mean
from reasoning_features.steering.answering import answers
from reasoning_features.steering.baselines import baselines, mean_norm
from reasoning_features.steering.benchmarks import COMMON, Questions, load_questions
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.truth.benchmark import Benchmark, Variant, gather_table, identity
from reasoning_features.truth.decisions import find_decisions

Features = NDArray[np.int64]
CHOSEN, SLOT, WORDS = "ReasonScore", "slot-matched words", "random words"
FEATURES, DIRECTIONS, CAUSAL = "random features", "random directions", "causal features"
CLASSES = (CHOSEN, SLOT, WORDS, FEATURES, DIRECTIONS, CAUSAL)
NEAREST = 5
"""A random feature is drawn from this many that are nearest in size and density."""
FRAMES = ("screening", "rescreening", "evaluation")
SEEDS = {"screening": 101, "rescreening": 102, "evaluation": 103}
"""Seed of the draws at each stage, added to the run's."""
COLUMNS = ("group", "candidate", "feature", "gamma", "share of norm", "condition")
"""What identifies a trial."""
ADDED, CLAMPED = "added", "clamped"
DETERMINED_BY = (
    *READ, "subject", "contrast", "autoencoder", "contrast_autoencoder", "seed", "reasoning_documents",
    "general_documents", "words", "alpha", "window", "batch_tokens", "candidates",
    "search_vocabularies", "strengths", "screening_problems", "rescreened", "rescreening_problems",
    "steering_problems",
)  # fmt: skip
"""The settings that determine a study."""
SHIPPED_WITH = "organism"
"""The profile that the shipped studies were made with."""

Ask = Callable[[str, Sequence[Condition]], pd.DataFrame]
"""Answers under conditions and unsteered to the questions of a stage of the study (its name)."""


@dataclass(frozen=True)
class Candidate:
    """A steering vector of one class.

    Attributes:
        group: its class.
        name: what it is; the same vector has the same name in every class.
        feature: the feature, −1 for a direction.
        vector: what strength γ = 1 adds ``[d]``: f_max · W_dec of the feature.
    """

    group: str
    name: str
    feature: int
    vector: Tensor

    def at(self, gamma: float) -> Condition:
        """This candidate at strength ``gamma``."""
        return added(self.name, self.feature, gamma, self.vector)


def candidates(
    evidence: pd.DataFrame,
    sae: Any,
    n: int,
    n_vocabularies: int,
    seed: int,
    effects: NDArray[np.float64] | None = None,
) -> list[Candidate]:
    """``n`` candidates of each class.

    ReasonScore's features are its first ``n``. Those of the slot-matched and of the random vocabularies are
    taken in turn, the first of each of ``n_vocabularies``, then the second of each, every feature once. A
    random feature is live, none of ReasonScore's, and drawn from the ``NEAREST`` in log f_max‖W_dec‖ and log
    density to one of them. A random direction has the size of one of them. Causal features have the largest
    ``effects`` ``[d_sae]`` on persistence when ablated (nan: never active; None: not known, no such class).

    ``evidence`` has a row a feature: ``maximum``, ``density``, ``decoder norm`` and ``score:…`` of every
    vocabulary; a kind of vocabularies that is not there makes no class.

    Raises:
        UserError: fewer live features or vocabularies than are asked for.
    """
    live = np.flatnonzero(evidence["density"].to_numpy() > 0)
    if len(live) < 2 * n:
        raise UserError(
            f"{n} candidates a class need {2 * n} live features, and there are {len(live)}: "
            "lower `candidates`."
        )

    def ranking(vocabulary: str) -> Features:
        score = evidence[f"score:{vocabulary}"].to_numpy(dtype=float)[live]
        return live[np.argsort(-score, kind="stable")]

    chosen = ranking("reason score")[:n]
    features = {CHOSEN: chosen}
    for group, kind in ((SLOT, "slot"), (WORDS, "random")):
        names = [f"{kind} {i}" for i in range(n_vocabularies) if f"score:{kind} {i}" in evidence]
        if names and len(names) < n_vocabularies:
            raise UserError(
                f"{n_vocabularies} vocabularies a class are asked for, and there are {len(names)} of the "
                f"{group}: lower `search_vocabularies`."
            )
        if names:
            features[group] = in_turn([ranking(name) for name in names], n)
    features[FEATURES] = matched_features(evidence, chosen, live, seed)
    if effects is not None:
        features[CAUSAL] = live[np.argsort(-np.abs(effects[live]), kind="stable")][:n]
    decoder, maxima = sae.W_dec.detach().cpu(), evidence["maximum"].to_numpy(dtype=float)
    made = [
        Candidate(group, f"feature {feature}", int(feature), float(maxima[feature]) * decoder[feature])
        for group, own in features.items()
        for feature in own
    ]
    sizes = torch.stack([candidate.vector for candidate in made[:n]]).norm(dim=1, keepdim=True)
    drawn = torch.randn(n, decoder.shape[1], generator=torch.Generator().manual_seed(seed))
    vectors = sizes * torch.nn.functional.normalize(drawn.to(sizes), dim=1)
    return made + [Candidate(DIRECTIONS, f"direction {i}", -1, vector) for i, vector in enumerate(vectors)]


def in_turn(rankings: Sequence[Features], n: int) -> Features:
    """The first of each ranking, then the second of each, and so on, every feature once, until ``n``."""
    interleaved = np.stack(rankings, axis=1).ravel()
    _, first = np.unique(interleaved, return_index=True)
    return interleaved[np.sort(first)][:n]


def matched_features(evidence: pd.DataFrame, chosen: Features, live: Features, seed: int) -> Features:
    """One random live feature for each chosen one, near it in log f_max‖W_dec‖ and in log density."""
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


@dataclass(frozen=True)
class Tried:
    """What a study of one model tries.

    Attributes:
        candidates: steering vectors of all classes.
        baselines: name → conditions, of which the second screening chooses one.
        norm: mean norm of the residual stream, the other unit of strength.
    """

    candidates: list[Candidate]
    baselines: dict[str, list[Condition]]
    norm: float

    def trials(self, strengths: Sequence[float]) -> pd.DataFrame:
        """Every candidate at every strength γ (``COLUMNS``); one vector may stand in several classes.

        ``share of norm`` is γ f_max‖W_dec‖ over ``norm``; ``condition`` is the name by which answers know it.
        """
        rows = [
            (c.group, c.name, c.feature, gamma, gamma * float(c.vector.norm()) / self.norm, c.at(gamma).name)
            for c in self.candidates
            for gamma in strengths
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def baseline_trials(self) -> pd.DataFrame:
        """Baselines as trials: no candidate; a share of the norm where they add a vector, signed as γ."""
        rows = [
            (name, "", -1, c.gamma, _signed_norm(c, np.nan) / self.norm, c.name)
            for name, conditions in self.baselines.items()
            for c in conditions
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def conditions(self, trials: pd.DataFrame) -> list[Condition]:
        """What to run for some trials: each vector and strength once, then the baselines among them."""
        by_name = {candidate.name: candidate for candidate in self.candidates}
        others = {each.name: each for conditions in self.baselines.values() for each in conditions}
        rows = trials[["candidate", "gamma", "condition"]].drop_duplicates().itertuples(index=False)
        return [by_name[name].at(gamma) if name else others[condition] for name, gamma, condition in rows]

    def winner(self, study: Study, group: str) -> Condition:
        """The condition with which a class went on to fresh problems in a study of these."""
        return self.conditions(study.winners[study.winners["group"] == group])[0]


def _signed_norm(condition: Condition, without: float) -> float:
    if condition.vector is None:
        return without
    return float(np.sign(condition.gamma)) * float(condition.vector.norm())


def tested(settings: Settings, subject: Subject, sae: Any, stored: Sequence[Benchmark]) -> Benchmark:
    """The stored benchmark of a model and its autoencoder; else evidence gathered anew, without effects."""
    who = identity(settings, sae)
    for benchmark in stored:
        if benchmark.identity == who:
            return benchmark
    return Benchmark(**who, evidence=gather_table(Variant(settings, subject, sae)), truths={})


def prepare(settings: Settings, subject: Subject, sae: Any, benchmark: Benchmark) -> Tried:
    """The candidates and baselines of one model, ``settings.subject``, from texts of the selection split.

    ``benchmark`` has the evidence of its features and, where known, their causal effects.

    Raises:
        UserError: too few features or vocabularies, or a word that the tokenizer cannot write.
    """
    traces = reasoning_corpus(settings, subject.tokenizer, "selection", settings.subject)
    decisions = find_decisions(traces, subject.tokenizer, settings.corpus)
    norm = mean_norm(subject, traces, settings.batch_tokens)
    effects = benchmark.effect("persistence") if "persistence" in benchmark.truths else None
    n, vocabularies = settings.candidates, settings.search_vocabularies
    made = candidates(benchmark.evidence, sae, n, vocabularies, settings.seed, effects)
    return Tried(made, baselines(subject, decisions, settings.words, norm, settings.batch_tokens), norm)


@dataclass(frozen=True)
class Study:
    """What came out on one model.

    Attributes:
        identity: ``model``, ``kappa``, ``model_seed``, and what else tells it from other studies.
        screening: every trial (``COLUMNS``) with the mean of each measure, ``gain`` and ``n``.
        rescreening: the same of the best trials of each class, and of the baselines.
        evaluation: one row an answer to a fresh problem: ``group``, ``condition``, ``feature``, ``gamma``,
            ``share of norm``, ``problem``, ``domain`` and the measures; unsteered too.
    """

    identity: Mapping[str, Any]
    screening: pd.DataFrame
    rescreening: pd.DataFrame
    evaluation: pd.DataFrame

    @property
    def winners(self) -> pd.DataFrame:
        """One row a class: the trial that went on to fresh problems (``COLUMNS``)."""
        return best(self.rescreening, 1)[list(COLUMNS)]

    def outcome(self, group: str, measure: str = "correct") -> NDArray[np.float64]:
        """A measure of every fresh problem under a class's winner (or ``UNSTEERED``) ``[n]``."""
        rows = self.evaluation[self.evaluation["group"] == group].sort_values("problem")
        return rows[measure].to_numpy(dtype=float)

    def save(self, folder: Path) -> None:
        """Write the study's files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FRAMES:
            getattr(self, name).to_parquet(folder / f"{name}.parquet", index=False, compression="zstd")
        write_json(folder / "study.json", dict(self.identity))


def load_studies(folder: Path) -> dict[str, Study]:
    """All studies in a folder, by name.

    Raises:
        MissingArtefact: there are none.
        CorruptArtefact: a file cannot be read.
    """
    studies = {}
    for path in sorted(folder.glob("[!.]*/study.json")):
        own = path.parent
        try:
            frames = {name: pd.read_parquet(own / f"{name}.parquet") for name in FRAMES}
            studies[own.name] = Study(read_json(path), **frames)
        except (OSError, ValueError) as error:
            raise CorruptArtefact(
                f"The steering study {own.name} cannot be read ({error}): restore its files."
            ) from error
    if not studies:
        raise MissingArtefact(f"There are no steering studies in {folder.name}: `make organism` makes them.")
    return studies


def shipped_study(
    settings: Settings, shipped: Mapping[str, Study], identity: Mapping[str, Any]
) -> Study | None:
    """The shipped study of one model, where the run's settings are those that it was made with; else None.

    ``shipped`` is name → study (:func:`load_studies`), ``identity`` what the study is of.
    """
    own = {"subject", "contrast", "autoencoder", "contrast_autoencoder"}  # these the identity tells
    made_with = load_settings(SHIPPED_WITH)
    same = all(getattr(settings, n) == getattr(made_with, n) for n in DETERMINED_BY if n not in own)
    name = "{model}-{architecture}-{autoencoder_seed}".format(**identity)
    return shipped.get(name) if same else None


def study_model(
    settings: Settings, subject: Subject, tried: Tried, identity: Mapping[str, Any], unfinished: Path
) -> Study:
    """The steering study of one model, ``settings.subject``.

    ``identity`` is what the study is of (``model``, ``kappa``, ``model_seed`` …); an interrupted study goes
    on from the finished answers in the folder ``unfinished``.

    Raises:
        UserError: there are no problems to ask.
    """
    first, second, last = (
        settings.screening_problems,
        settings.rescreening_problems,
        settings.steering_problems,
    )
    asked: dict[str, Questions] = {
        "screening": load_questions(settings, subject.tokenizer, "selection", first),
        "rescreening": load_questions(settings, subject.tokenizer, "selection", second, start=first),
        "evaluation": load_questions(
            settings, subject.tokenizer, "evaluation", last, start=settings.evaluation_start
        ),
    }

    def ask(stage: str, conditions: Sequence[Condition]) -> pd.DataFrame:
        told = f"{identity['model']}, {stage}"
        seed = settings.seed + SEEDS[stage]
        return answers(subject, asked[stage], conditions, seed, progress=told, kept=unfinished)

    measures = asked["screening"].measures
    return run_study(identity, tried, settings.strengths, settings.rescreened, measures, ask)


def run_study(
    identity: Mapping[str, Any],
    tried: Tried,
    strengths: Sequence[float],
    rescreened: int,
    measures: Sequence[str],
    ask: Ask,
) -> Study:
    """Screen every trial, try each class's best again with the baselines, and put the winners to the test.

    ``ask`` answers the questions of a stage (``FRAMES``), other problems each; ``strengths`` are γ, both
    signs; the best ``rescreened`` trials of a class are tried again; ``measures`` are columns to keep.
    """
    trials = tried.trials(strengths)
    first = outcomes(trials, ask("screening", tried.conditions(trials)), measures)
    again = best(first, rescreened)[list(COLUMNS)]
    again = pd.concat([again, tried.baseline_trials()], ignore_index=True)
    second = outcomes(again, ask("rescreening", tried.conditions(again)), measures)
    winners = best(second, 1)
    fresh = ask("evaluation", tried.conditions(winners.drop_duplicates("condition")))
    kept = fresh[["condition", "problem", "domain", *measures]]
    unsteered = kept[kept["condition"] == UNSTEERED].assign(group=UNSTEERED, feature=-1, gamma=0.0)
    unsteered["share of norm"] = 0.0
    named = winners[["group", "condition", "feature", "gamma", "share of norm"]]
    steered = named.merge(kept, on="condition", sort=False)  # classes may share a winner
    frame = pd.concat([unsteered[steered.columns], steered], ignore_index=True)
    return Study(identity, first, second, frame)


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


def strength_trials(
    sae: Any,
    evidence: pd.DataFrame,
    features: Mapping[str, int],
    strengths: Sequence[float],
    norm: float,
    others: Mapping[str, Sequence[Condition]],
) -> tuple[list[Condition], pd.DataFrame]:
    """Every feature added (equation 7) and clamped (the released hook) at every strength; others added.

    Args:
        sae: gives the decoder directions.
        evidence: ``maximum`` and ``decoder norm`` of every feature.
        features: what each is called → the feature.
        strengths: γ, for the features.
        norm: mean norm of the residual stream.
        others: what a vector is called → its conditions.

    Returns:
        The conditions, and one row each: ``vector``, ``how``, ``gamma``, ``share of norm`` (for a clamped
        feature that of adding γ f_max W_dec) and ``condition``.
    """
    made: list[Condition] = []
    rows: list[tuple[str, str, float, float, str]] = []
    size = evidence["maximum"].to_numpy(dtype=float) * evidence["decoder norm"].to_numpy(dtype=float)
    for name, feature in features.items():
        for how in (ADDED, CLAMPED):
            own = feature_conditions(sae, [feature], strengths, evidence["maximum"], clamp=how == CLAMPED)
            rows += [(name, how, c.gamma, c.gamma * size[feature] / norm, c.name) for c in own]
            made += own
    for name, conditions in others.items():
        rows += [(name, ADDED, c.gamma, _signed_norm(c, 0.0) / norm, c.name) for c in conditions]
        made += conditions
    return made, pd.DataFrame(rows, columns=["vector", "how", "gamma", "share of norm", "condition"])


def strength_curves(answered: pd.DataFrame, trials: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean accuracy and thinking tokens of every trial with their 95% intervals over problems.

    Returns a row a trial and measure: the trial's columns, ``measure``, ``mean``, ``low``, ``high``, ``n``.
    """
    by_condition = dict(list(answered.groupby("condition")))
    rows = []
    for trial in trials.to_dict("records"):
        for column, measure in zip(COMMON, ("accuracy", "thinking tokens"), strict=True):
            mean = bootstrap_mean(by_condition[trial["condition"]][column].astype(float), seed=seed)
            told = {"measure": measure, "mean": mean.estimate, "low": mean.low, "high": mean.high}
            rows.append(trial | told | {"n": mean.n})
    return pd.DataFrame(rows)
