"""The features that the paper names, or the best of ours: how scores rank them, and what steering them does.

Steering is seen in answers (table 1), in text whatever the answer, and in traces side by side (figure 1,
tables 5 to 9). The paper's numbers, majorities over four answers (version 2 of arXiv 2503.18878), are of one
published autoencoder's features.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import hypergeom

from reasoning_features import statistics
from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition, feature_conditions
from reasoning_features.organism.language import ASSISTANT, END_THINK, USER
from reasoning_features.organism.parser import parse
from reasoning_features.reporting.claims import Measured
from reasoning_features.scoring.reason_score import ranks, select
from reasoning_features.settings import Settings
from reasoning_features.steering.questions import STEERED
from reasoning_features.steering.steering_results import BENCHMARKS, majority_votes, paired_effect
from reasoning_features.steering.steering_study import CHOSEN, matched_features
from reasoning_features.text.traces import draw_runs
from reasoning_features.text.vocabulary import split_words

Published = Mapping[str, Sequence[int]]  # a set's name → its features
# feature (−1: unsteered) → percent right and thousands of thinking tokens on each of BENCHMARKS
PUBLISHED: dict[int, tuple[float, ...]] = {
    -1: (53.3, 12.4, 93.2, 3.9, 50.0, 7.9),
    3942: (56.7, 11.1, 93.0, 3.4, 46.5, 6.7),
    4395: (56.7, 14.7, 95.4, 4.1, 52.0, 8.5),
    16441: (60.0, 14.0, 95.0, 4.1, 54.0, 8.3),
    16778: (56.7, 14.1, 94.0, 4.7, 51.0, 9.0),
    25953: (60.0, 12.8, 94.2, 4.2, 53.0, 8.1),
    46691: (56.7, 14.0, 94.2, 4.2, 54.0, 8.0),
    61104: (66.7, 12.0, 95.0, 3.6, 53.0, 7.5),
}
NAMED, RANDOM = "the paper's", "random"
LENGTH, REASONING, REPEATED = "tokens", "words of R in a hundred", "repeated pairs of tokens (%)"
_MARK = re.compile(r"<[^<>\s]*>")  # of the template, such as the end of a text: its letters are no words


def check_published(published: Published, d_sae: int) -> None:
    """Raises a UserError where a published feature is not among this autoencoder's."""
    beyond = [feature for feature in _numbers(published) if not 0 <= feature < d_sae]
    if beyond:
        lacks = f"{', '.join(map(str, beyond))} are not there: this autoencoder has 0 to {d_sae - 1}"
        advice = "Give the published autoencoder, or set `published` to features of this one."
        raise UserError(f"The published features {lacks}. {advice}")


def _numbers(published: Published) -> list[int]:
    return sorted({feature for own in published.values() for feature in own})


def found_table(scores: Mapping[str, ArrayLike], published: Published, k: int) -> pd.DataFrame:
    """How many published features are among the k with the highest score, beside chance.

    ``scores`` is name of the score's hyperparameters → score of every feature ``[f]``; ``p`` (that as many or
    more are found by chance) is hypergeometric.
    """
    rows = []
    for hyperparameters, values in scores.items():
        rank = ranks(values)
        check_published(published, len(rank))
        for name, ids in published.items():
            own = rank[sorted(set(ids))]
            found, expected = int((own <= k).sum()), k * len(own) / len(rank)
            p = float(hypergeom.sf(found - 1, len(rank), k, len(own)))
            rows.append((hyperparameters, name, len(own), found, expected, p, float(np.median(own))))
    columns = ["hyperparameters", "set", "features", "found", "by chance", "p", "median rank"]
    return pd.DataFrame(rows, columns=columns)


def share_found(scores: ArrayLike, published: Published, k: int) -> statistics.Interval:
    """Share of all published features, of whichever set, that are among the k with the highest score."""
    return statistics.bootstrap_mean(ranks(scores)[_numbers(published)] <= k)


def steered_conditions(
    settings: Settings, sae: Any, evidence: pd.DataFrame
) -> tuple[list[Condition], dict[str, list[int]]]:
    """The features that the paper names at its strength, or where none are named the best by ReasonScore.

    A random live feature is matched to each; a named feature that is never active here is left out.
    ``evidence`` is the feature table. Gives the conditions, and kind → its features.
    """
    live = np.flatnonzero(evidence["density"] > 0)
    if named := settings.published.get(STEERED):
        check_published(settings.published, sae.cfg.d_sae)
        kind, best, others, gammas = NAMED, np.intersect1d(named, live), live, [settings.gamma]
    else:
        score = evidence["score:reason score"].to_numpy(dtype=float)[live]
        chosen = live[select(score, min(settings.selected, len(live) // 2))]
        kind, best, gammas = CHOSEN, chosen[: settings.interpreted], settings.gammas
        others = np.setdiff1d(live, chosen[settings.interpreted :])
    random = matched_features(evidence, best, others, settings.seed)
    kinds = {kind: best.tolist(), RANDOM: random.tolist()}
    every = [feature for features in kinds.values() for feature in features]
    return feature_conditions(sae, every, gammas, evidence["maximum"].to_numpy(dtype=float)), kinds


def steered_table(answered: pd.DataFrame, problems: int, seed: int = 0) -> pd.DataFrame:
    """What steering did on each benchmark, paired over problems with the unsteered model.

    Answers to one problem have numbers ``problems`` apart. A row a condition and benchmark: ``pass@1`` (mean
    over a problem's ``k`` answers), ``maj@k``, ``tokens``; ``gain`` in pass@1 and ``longer`` (relative change
    of tokens) with their ends (95%).
    """
    frame = answered.assign(item=answered["problem"] % problems)
    samples = len(frame) // (problems * frame["condition"].nunique())
    voted: dict[Any, pd.Series] = {
        condition: majority_votes(own, problems, [samples]).set_index("problem")["correct"]
        for condition, own in frame.groupby("condition")
    }
    every = frame.groupby(["condition", "domain", "item"])[["correct", "thinking_tokens"]].mean()
    rows: list[dict[str, Any]] = []
    for (condition, benchmark), part in frame.groupby(["condition", "domain"], sort=False):
        means: Any = every.xs((condition, benchmark))
        usual: Any = every.xs((UNSTEERED, benchmark))
        correct, tokens = means["correct"], means["thinking_tokens"]
        plain, length = usual["correct"], usual["thinking_tokens"]
        longer = statistics.paired_difference(tokens, length, seed=seed) / (length.mean() or np.nan)
        row = {"benchmark": benchmark, "condition": condition, "feature": int(part["feature"].iloc[0])}
        row |= {"problems": len(means), "pass@1": correct.mean()}
        row |= {"maj@k": float(voted[condition].reindex(means.index).mean()), "tokens": tokens.mean()}
        row |= statistics.paired_difference(correct, plain, seed=seed).row("gain", "gain ")
        rows.append(row | longer.row("longer", "longer ") | {"k": samples})
    return pd.DataFrame(rows)


def overall(
    answered: pd.DataFrame, problems: int, random: Sequence[int], seed: int = 0
) -> tuple[Measured, Measured]:
    """Gain in pass@1, and relative change of thinking tokens, on average over the published features. Paired
    over problems as in :func:`steered_table`; the ``random`` features' change is the second's control.
    """
    frame = answered.assign(item=answered["problem"] % problems)
    kinds = np.where(frame["feature"].isin(random), RANDOM, NAMED)
    frame["kind"] = np.where(frame["condition"] == UNSTEERED, UNSTEERED, kinds)
    means = frame.groupby(["kind", "item"])[["correct", "thinking_tokens"]].mean()
    correct, tokens = (means[name].unstack(0) for name in ("correct", "thinking_tokens"))
    plain = tokens[UNSTEERED]
    named, other = (statistics.bootstrap_ratio(tokens[k] - plain, plain, seed=seed) for k in (NAMED, RANDOM))
    return paired_effect(correct[NAMED], correct[UNSTEERED], seed), Measured(named, other.estimate)


def table_one(table: pd.DataFrame, random: Sequence[int], gamma: float) -> pd.DataFrame:
    """Table 1 as printed, from :func:`steered_table`: "percent right / tokens", a column a benchmark.
    Features have rows at strength ``gamma``, the ``random`` ones by their mean. The paper's stand below.
    """
    own = table[(table["condition"] == UNSTEERED) | table["condition"].str.endswith(f" at {gamma:g}")]
    names = own["condition"].mask(own["feature"].isin(random), f"{len(random)} random features, mean")
    means = own.groupby([names, own["benchmark"]], sort=False)[["maj@k", "tokens"]].mean()
    cells = [(*at, f"{100 * right:.1f} / {tokens:.0f}") for at, right, tokens in means.itertuples(name=None)]
    for feature, told in PUBLISHED.items():
        named = f"the paper's {feature if feature >= 0 else UNSTEERED}"
        pairs = zip(BENCHMARKS, told[::2], told[1::2], strict=True)
        cells += [(named, each, f"{share} / {length}k") for each, share, length in pairs]
    wide = pd.DataFrame(cells, columns=["steered", "benchmark", "cell"])
    return wide.pivot_table("cell", "steered", "benchmark", "first", sort=False).reset_index()


def text_measures(answers: pd.DataFrame, prompts: Sequence[str], words: Sequence[str]) -> pd.DataFrame:
    """The measures of every answer's text, without its prompt: of its thinking, or of all where none ends.

    ``prompts`` are texts; ``words`` is R. Repeated pairs are the share of pairs of neighbouring tokens that
    stood in the text before (near 100 where it goes in circles).
    """
    phrases = [split_words(word) for word in words if split_words(word)]
    rows = []
    for text, problem, tokens in answers[["text", "problem", "tokens"]].itertuples(index=False, name=None):
        thinking = text[len(prompts[problem]) :].split(END_THINK)[0]
        written = split_words(_MARK.sub(" ", thinking))
        pairs = list(pairwise(tokens))
        hits = sum(written[i : i + len(phrase)] == phrase for phrase in phrases for i in range(len(written)))
        repeated = 100 * (len(pairs) - len(set(pairs))) / max(len(pairs), 1)
        rows.append((100 * hits / max(len(written), 1), repeated))
    measured = answers[["condition", "feature", "gamma", "problem"]].reset_index(drop=True)
    measured[LENGTH] = answers["thinking_tokens"].to_numpy(dtype=float)
    return measured.join(pd.DataFrame(rows, columns=[REASONING, REPEATED], dtype=float))


def text_effects(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Change of each measure from the unsteered text of the same problem and the same draws. A row a
    condition and measure: ``change`` with ``low``, ``high`` (95%), ``problems``
    """
    named, measures = ["condition", "feature", "gamma"], [LENGTH, REASONING, REPEATED]
    plain = measured[measured["condition"] == UNSTEERED].set_index("problem")[measures]
    steered = measured[measured["condition"] != UNSTEERED].set_index([*named, "problem"])[measures]
    changes = steered - plain.loc[steered.index.get_level_values("problem")].to_numpy()
    long = pd.DataFrame({"change": changes.rename_axis(columns="measure").stack()}).reset_index()
    table = statistics.means_by(long, [*named, "measure"], "change", seed)
    return table.rename(columns={"n": "problems"})


def moves_of(text: str, prompt: str = "") -> pd.DataFrame:
    """A text after its ``prompt`` as runs of one step: ``move`` ("": none is known) and ``text``."""
    spans = parse(text).spans
    known = any(move not in ("prompt", "prose", "answer", None) for _, _, move in spans)
    runs = [
        (move or "", text[start:end])
        for start, end, move in (spans if known else [(len(prompt), len(text), None)])
        if move != "prompt" and start < end
    ]
    return pd.DataFrame(runs, columns=["move", "text"])


def side_by_side(
    answers: pd.DataFrame, problem: int, conditions: Sequence[str] = ()
) -> tuple[str, dict[str, str]]:
    """The question, and heading → trace of one problem: unsteered, then under the conditions named. Traces
    hold their prompt. The question is that of a text in the organism's chat; else "".
    """
    own = answers[answers["problem"] == problem].set_index("condition").loc[[UNSTEERED, *conditions]]
    traces = {}
    for name, row in own.iterrows():
        verdict = ("right" if row["correct"] else "wrong") if row.get("finished", True) else "cut"
        traces[f"{name}: {verdict}, {row['thinking_tokens']} tokens"] = row["text"]
    text: str = own["text"].iloc[0]
    start, end = text.find(USER), text.find(ASSISTANT)
    return text[start + len(USER) : end] if 0 <= start < end else "", traces


def draw_traces(title: str, traces: Mapping[str, str], prompt: str = "") -> tuple[Figure, pd.DataFrame]:
    """Traces (heading → text) after their prompt, two in a row, reasoning steps behind and in the margin."""
    runs = {}
    for heading, text in traces.items():
        printable = "".join(c if c == "\n" or c.isprintable() else "□" for c in text)
        runs[heading] = moves_of(printable, prompt)
    data = pd.concat([part.assign(trace=heading) for heading, part in runs.items()], ignore_index=True)
    data = data[["trace", "move", "text"]].assign(text=data["text"].str.replace("\n", "⏎"))
    return draw_runs(runs, 2, f"Problem: {title}" if title else ""), data
