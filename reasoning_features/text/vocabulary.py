"""The reasoning vocabulary R, from counts; and the vocabularies that R has to be compared with.

The paper ranks words by p_think − p_solution over the same problems, drops words frequent in a general
corpus (Google Books Ngram; here ``wordfreq``), and chooses R by hand. Two kinds of vocabularies say what
another choice would have given: random ones, matched in frequency and in share inside thinking, and mixtures
in which words of R give way to neutral twins.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from wordfreq import word_frequency

from reasoning_features.errors import UserError
from reasoning_features.organism import language
from reasoning_features.reporting.plots import COLOURS, HATCHES, legend_below, name_rows, new_figure
from reasoning_features.settings import Settings

SHARE_SCALE = 0.2  # so much in share inside thinking counts like a factor e in frequency when matching
NEAREST = 10  # a word is drawn among so many that match a word of R best
FLOOR = 1e-7  # the lowest general frequency that is drawn (of words that general English lacks)
PHRASES = ("let me",)  # of two words, which are ranked like words
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class Lexicon:
    """What is known beforehand about the words of a kind of corpora."""

    twins: Mapping[str, str] = field(default_factory=dict)  # word of R ↔ neutral word of the same slots
    decision_words: tuple[str, ...] = ()  # at which a text goes on or gives up; in no random vocabulary
    capitalised: frozenset[str] = frozenset()  # words that count in one form (`settings.capitalised`)


def lexicon(settings: Settings) -> Lexicon:
    """The lexicon of the settings' kind of corpora; natural text has no twins and no decision words."""
    if settings.corpus != "organism":
        return Lexicon(capitalised=settings.capitalised)
    twins = language.MATCHED_CONTROLS
    twins = twins | {twin: word for word, twin in twins.items()}
    # a twin must fill its word's slot and no other
    one_form = settings.capitalised | {twins[word] for word in settings.capitalised}
    return Lexicon(twins, language.DECISION_WORDS, one_form)


def split_words(text: str) -> list[str]:
    """The words of a text in lower case: letters, perhaps with an apostrophe inside (``let's``)."""
    return _WORD.findall(text.lower().replace("’", "'"))


def word_shares(texts: Iterable[str]) -> pd.Series:
    """Share of each word, and of each phrase, among all words of the texts. UserError: they hold none."""
    words, phrases = Counter[str](), Counter[str]()
    for found in map(split_words, texts):
        words.update(found)
        phrases.update(pair for pair in map(" ".join, pairwise(found)) if pair in PHRASES)
    if not words:
        raise UserError("The texts hold no words of Latin letters, which alone are counted: give others.")
    return pd.Series(words | phrases, dtype=float) / words.total()


def rank_words(thinking_texts: Iterable[str], solution_texts: Iterable[str]) -> pd.DataFrame:
    """All words by p_think − p_solution, largest first (figure 2): ``rank`` (from 1), ``word``, ``p_think``,
    ``p_solution``, ``difference``, ``general_frequency`` (share of general English, of phrases by parts).
    """
    think, solution = word_shares(thinking_texts), word_shares(solution_texts)
    table = pd.DataFrame({"p_think": think, "p_solution": solution}).fillna(0.0)
    table = table.rename_axis("word").reset_index()
    table["difference"] = table["p_think"] - table["p_solution"]
    table = table.sort_values(["difference", "word"], ascending=[False, True], ignore_index=True)
    table["general_frequency"] = [word_frequency(word, "en") for word in table["word"]]
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table


def frequency_filter(table: pd.DataFrame, threshold: float = 1e-3) -> pd.DataFrame:
    """The words of a ranking less frequent than ``threshold`` in general English, ranked anew."""
    kept = table[table["general_frequency"] < threshold]
    return kept.assign(rank=np.arange(1, len(kept) + 1))


def vocabulary_origin(
    table: pd.DataFrame, words: Sequence[str], threshold: float = 1e-3, top: int = 40
) -> pd.DataFrame:
    """Where each word of R stands in a ranking: what the list owes to counts, and what to choice by hand.

    Columns, beside the ranking's: ``rank_filtered`` after the frequency filter (missing where it drops the
    word or the word never occurs) and ``origin``: "count and filter" (top of the filtered ranking), "count"
    (top of the plain one alone) or "hand" (neither).
    """
    plain = table.set_index("word")
    filtered = frequency_filter(table, threshold).set_index("word")["rank"]
    rows = plain[["p_think", "p_solution", "difference", "rank"]].reindex(list(words)).rename_axis("word")
    rows["general_frequency"] = [word_frequency(word, "en") for word in words]
    rows["rank_filtered"] = filtered.reindex(list(words))
    by_filter, by_count = rows["rank_filtered"] <= top, rows["rank"] <= top  # a missing rank is no rank
    rows["origin"] = np.where(by_filter, "count and filter", np.where(by_count, "count", "hand"))
    return rows.reset_index().astype({"rank": "Int64", "rank_filtered": "Int64"})


def left_out(table: pd.DataFrame, words: Sequence[str], threshold: float = 1e-3, top: int = 40) -> list[str]:
    """Words in the top of the filtered ranking that R leaves out, best first."""
    best, known = frequency_filter(table, threshold)["word"].head(top), _with_parts(words)
    return [word for word in best if word not in known]


def _with_parts(words: Sequence[str]) -> set[str]:
    """Words, and the parts of phrases among them."""
    return {*words, *(part for word in words for part in word.split())}


def draw_ranking(
    ranking: pd.DataFrame, words: Sequence[str], threshold: float = 1e-3, top: int = 40
) -> tuple[Figure, pd.DataFrame]:
    """Bars of a ranking's ``top`` words, those of R hatched; to the right their general frequency and the
    ``threshold``: words beyond it are struck out. The data are the drawn rows, with ``in_R`` and ``kept``.
    """
    data = ranking.head(top)
    data = data.assign(in_R=data["word"].isin(words), kept=data["general_frequency"] < threshold)
    fig, (left, right) = new_figure(1, 2, height=0.8 + 0.14 * len(data), sharey=True)  # 0.14 inches a word
    for (in_r, kept), rows in data.groupby(["in_R", "kept"], sort=False):
        label = ("in R" if in_r else "not in R") + ("" if kept else ", dropped by the filter")
        colour = COLOURS[bool(in_r)] if kept else "0.75"
        style = {"color": colour, "hatch": HATCHES[bool(in_r)], "label": label}
        left.barh(rows.index, rows["difference"], **style)
        right.barh(rows.index, rows["general_frequency"].clip(lower=FLOOR), **style)
    left.set(xlabel="p_think − p_solution")
    struck = data["word"].str.replace("(.)", "\\1\u0336", regex=True)  # by a stroke over every letter
    name_rows(left, data["word"].where(data["kept"], struck).tolist())
    right.axvline(threshold, color=COLOURS[7], linestyle="--", marker="", label=f"threshold {threshold:g}")
    right.set(xscale="log", xlabel="general frequency", xlim=(FLOOR, 0.2))
    right.grid(axis="y", visible=False)
    legend_below(fig)
    return fig, data


def random_vocabularies(
    reference: pd.DataFrame, pool: pd.DataFrame, n: int, seed: int, excluded: Collection[str] = ()
) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Draw ``n`` vocabularies matched to R word by word in frequency and share inside thinking.

    ``reference`` (R) and ``pool`` are rows of :func:`reasoning_features.text.words.occurrence_table`; R's own
    words and those ``excluded`` are never drawn. Each vocabulary takes R's words in random order; for each it
    draws evenly among the ``NEAREST`` words of the pool that it has not used yet. Gives them, word i matched
    to R's word i, and how well they match: words in the ``pool``, ``distinct`` words drawn, mean absolute
    differences ``log_frequency_difference`` and ``share_difference``, and ``overlap`` (mean Jaccard of two).
    UserError: the pool has fewer words than R.
    """
    barred = set(reference["word"]) | set(excluded)
    candidates = pool[~pool["word"].isin(barred)].reset_index(drop=True)
    size = len(reference)
    if len(candidates) < size:
        few = f"Random vocabularies of {size} words cannot be drawn from {len(candidates)} other words"
        raise UserError(f"{few}: use more documents, or exclude fewer words.")
    frequency, share = (reference[column].to_numpy()[:, None] for column in ("frequency", "thinking_share"))
    log_gap = np.abs(np.log(frequency) - np.log(candidates["frequency"].to_numpy()))
    share_gap = np.abs(share - candidates["thinking_share"].to_numpy())
    closest = np.argsort(np.hypot(log_gap, share_gap / SHARE_SCALE), axis=1, kind="stable")
    rng = np.random.default_rng(seed)
    draws = np.empty((n, size), dtype=int)
    for draw in draws:
        used: set[int] = set()
        for word in rng.permutation(size):
            free = [candidate for candidate in closest[word].tolist() if candidate not in used]
            draw[word] = free[int(rng.integers(min(NEAREST, len(free))))]
            used.add(int(draw[word]))
    pairs = list(combinations([set(draw.tolist()) for draw in draws], 2))
    matching = {
        "pool": len(candidates),
        "distinct": len(np.unique(draws)),
        "log_frequency_difference": float(log_gap[np.arange(size), draws].mean()),
        "share_difference": float(share_gap[np.arange(size), draws].mean()),
        "overlap": float(np.mean([len(a & b) / len(a | b) for a, b in pairs])) if pairs else 1.0,
    }
    return [tuple(candidates["word"].iloc[draw]) for draw in draws], matching


def slot_vocabularies(
    words: Sequence[str], twins: Mapping[str, str], n: int, seed: int
) -> list[tuple[str, ...]]:
    """``n`` different mixtures of R and its twins, or all 2^words − 1 where there are no more.

    Each word is itself or its twin, drawn evenly, R itself never. Were R and its twins interchangeable, R
    would be one more such draw: its rank among them is an exact test. UserError: a word has no twin.
    """
    alone = [word for word in words if word not in twins]
    if alone:
        raise UserError(f"The word {alone[0]!r} has no neutral twin: leave it out of the slot-matched null.")
    possible = 2 ** len(words) - 1
    drawn = np.random.default_rng(seed).choice(possible, size=min(n, possible), replace=False)
    return [
        tuple(twins[word] if int(code) >> place & 1 else word for place, word in enumerate(words))
        for code in drawn + 1  # code 0 is R itself
    ]


def draw_word_sets(
    ranking: pd.DataFrame, n_sets: int, n_words: int, seed: int, excluded: Sequence[str]
) -> list[tuple[str, ...]]:
    """Sets of words drawn by p_think from a ranking, for the paper's control of banning R, within a set each
    once; none that is ``excluded`` (R) or part of a phrase among them. UserError: fewer words than a set.
    """
    pool = ranking[(ranking["p_think"] > 0) & ~ranking["word"].isin(_with_parts(excluded))]
    if len(pool) < n_words:
        few = f"Sets of {n_words} words cannot be drawn from {len(pool)} words of the thinking"
        raise UserError(f"{few}: use more documents, or draw smaller sets.")
    chances, rng = (pool["p_think"] / pool["p_think"].sum()).to_numpy(), np.random.default_rng(seed)
    drawn = (rng.choice(len(pool), size=n_words, replace=False, p=chances) for _ in range(n_sets))
    return [tuple(pool["word"].iloc[places]) for places in drawn]
