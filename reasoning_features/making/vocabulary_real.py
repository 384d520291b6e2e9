"""``make vocabulary-real``: figure 2 and the list R from real thinking, not the organism's.

By default the texts are OpenThoughts' (the paper's source), streamed from the hub: R1's reasoning against the
reference solution of the same problem. ``--traces FOLDER`` takes local files instead: one JSON object a line,
``thinking`` of the reasoning models' files against the ``answer`` of the instruct model's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from reasoning_features.bookkeeping import sources
from reasoning_features.bookkeeping.provenance import Run
from reasoning_features.errors import UserError
from reasoning_features.paths import RunPaths, relative
from reasoning_features.reporting.figures import save_figure
from reasoning_features.reporting.tables import save_table
from reasoning_features.settings import load_settings
from reasoning_features.text.vocabulary import left_out, rank_words, vocabulary_origin
from reasoning_features.text.vocabulary_figures import draw_ranking

RUN = "vocabulary-real"
DATASET = "open-thoughts/OpenThoughts-114k"
CONFIGURATION = "metadata"
PAPERS_DATASET = "andreuka18/OpenThoughts-10k-DeepSeek-R1"
SEED, BUFFER = 0, 10_000
INSTRUCT_MARK = "assistant\n"

_THINKING = re.compile(r"<think>(.*?)</think>(.*)", re.DOTALL)

Texts = tuple[list[str], list[str]]


def texts_of_rows(rows: Iterable[Mapping[str, Any]]) -> Texts:
    """Thinking and solution texts of OpenThoughts' rows.

    A row with columns ``deepseek_reasoning`` and ``ground_truth_solution`` (the ``metadata`` configuration)
    gives R1's reasoning and the reference solution; a row with ``text`` alone (the paper's subset) gives what
    is between ``<think>`` and ``</think>`` and what follows it. Rows that lack either are left out.

    Raises:
        UserError: no row has both.
    """
    thinking, solutions = [], []
    for row in rows:
        think, solution = row.get("deepseek_reasoning"), row.get("ground_truth_solution")
        match = _THINKING.search(row.get("text") or "")
        if not (think and solution) and match:
            think, solution = match.groups()
        if think and solution:
            thinking.append(think)
            solutions.append(solution)
    if not thinking:
        raise UserError("No row holds both a reasoning and a solution: give another dataset.")
    return thinking, solutions


def stream_openthoughts(documents: int, dataset: str = DATASET, configuration: str | None = None) -> Texts:
    """Texts of ``documents`` rows of a hub dataset, streamed through a seeded shuffling buffer.

    The hub's rows are ordered by domain; the buffer mixes shards and neighbours, not the whole dataset.

    Raises:
        UserError: the hub cannot be reached, or its rows do not fit.
    """
    configuration = CONFIGURATION if dataset == DATASET and configuration is None else configuration
    try:
        rows = datasets.load_dataset(dataset, configuration, split="train", streaming=True)
        mixed = rows.shuffle(seed=SEED, buffer_size=max(BUFFER, documents))
        taken = list(itertools.islice(mixed, documents))
    except Exception as error:
        raise UserError(
            f"The dataset {dataset} cannot be streamed ({type(error).__name__}): run this on a machine that "
            "reaches the hub, or give local files with --traces."
        ) from error
    return texts_of_rows(taken)


def local_traces(folder: Path) -> Texts:
    """Thinking of every ``deepseek-r1*.jsonl`` in a folder, and the answers of every ``*instruct*.jsonl``.

    An instruct answer is what follows the last mark of the assistant's turn.

    Raises:
        UserError: the folder lacks either kind of file.
    """
    thinking = [row["thinking"] for row in _rows(folder, "deepseek-r1*.jsonl")]
    answers = [row["answer"].rsplit(INSTRUCT_MARK, 1)[-1] for row in _rows(folder, "*instruct*.jsonl")]
    if not thinking or not answers:
        raise UserError(
            f"{folder} has no traces: it needs deepseek-r1*.jsonl with `thinking` and *instruct*.jsonl "
            "with `answer`."
        )
    return thinking, answers


def _rows(folder: Path, pattern: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob(pattern))
    return [
        json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines() if line
    ]


@dataclass(frozen=True)
class Origin:
    """What counts say about a list of words: the ranking, each word's place in it, both in two sentences."""

    ranking: pd.DataFrame
    words: pd.DataFrame
    sentence: str


def origin_of(texts: Texts, words: list[str], threshold: float = 1e-3, top: int = 40) -> Origin:
    """Rank the words of real texts and find the words of R in the ranking."""
    table = rank_words(*texts)
    places = vocabulary_origin(table, words, threshold, top)
    counted, kept = int((places["rank"] <= top).sum()), int((places["rank_filtered"] <= top).sum())
    by_hand = ", ".join(places.loc[places["origin"] == "hand", "word"]) or "none"
    others = ", ".join(left_out(table, words, threshold, top))
    sentence = (
        f"{counted} of {len(words)} words of R are in the top {top} by count, {kept} after the "
        f"general-frequency filter at {threshold:g}; found by no count: {by_hand}. "
        f"In the filtered top but not in R: {others}."
    )
    return Origin(table, places, sentence)


def save(texts: Texts, source: str, threshold: float, top: int) -> None:
    """Draw figures 2 and 5 from these texts into figures/vocabulary-real, and say what came out."""
    settings = load_settings("organism")
    code = sources.imported_sources(["import reasoning_features.making.vocabulary_real"])
    made = {
        "source": source,
        "documents": [len(part) for part in texts],
        "code_sha256": sources.digest(f"{name} {digest}" for name, digest in code.items()),
        "versions": {name: importlib.metadata.version(name) for name in ("datasets", "wordfreq")},
    }
    run = Run("vocabulary_real", settings, RunPaths(RUN), made)
    found = origin_of(texts, settings.words, threshold, top)
    fig, data = draw_ranking(found.ranking, settings.words, threshold, top)
    save_figure(
        fig, "f02_vocabulary", data, run, f"Top {top} words by p_think − p_solution, {source} (figure 2)."
    )
    save_table(
        found.words, "f05_reasoning_words", run, f"The paper's R (figure 5) in {source}. {found.sentence}"
    )
    print(found.sentence)
    print(f"Written to {relative(run.paths.figures)}.")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=RUN, description="Figure 2 and R from real thinking.")
    parser.add_argument("--traces", type=Path, help="folder with local traces instead of the hub")
    parser.add_argument("--dataset", default=DATASET, help=f"hub dataset ({PAPERS_DATASET} is the paper's)")
    parser.add_argument("--documents", type=int, default=2000, help="rows to stream")
    parser.add_argument(
        "--threshold", type=float, default=1e-3, help="general frequency from which words drop"
    )
    parser.add_argument("--top", type=int, default=40, help="length of the ranking that is drawn")
    given = parser.parse_args(arguments)
    try:
        texts = (
            local_traces(given.traces)
            if given.traces
            else stream_openthoughts(given.documents, given.dataset)
        )
        source = "local traces" if given.traces else given.dataset
        save(texts, source, given.threshold, given.top)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
