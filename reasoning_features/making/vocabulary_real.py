"""``make vocabulary-real``: figure 2 and the list R from real thinking, not the organism's.

DeepSeek-R1's thinking against Qwen2.5-32B-Instruct's solutions to the same problems
(:mod:`reasoning_features.text.real_text`). ``--dataset`` streams a dataset of the hub instead, such as
OpenThoughts (the paper's source): R1's reasoning against the reference solution of the same problem.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import datasets

from reasoning_features.errors import UserError
from reasoning_features.paths import RunPaths, relative
from reasoning_features.reporting.plots import save_figure
from reasoning_features.reporting.tables import save_table
from reasoning_features.runs.provenance import Run, digest, imported_files
from reasoning_features.settings import load_settings
from reasoning_features.text.corpora import thinking_of
from reasoning_features.text.real_text import INSTRUCT_ROWS, R1_ROWS, read_rows
from reasoning_features.text.vocabulary import draw_ranking, left_out, rank_words, vocabulary_origin

RUN = "vocabulary-real"
DATASET, CONFIGURATION = "open-thoughts/OpenThoughts-114k", "metadata"
PAPERS_DATASET = "andreuka18/OpenThoughts-10k-DeepSeek-R1"
SEED, BUFFER = 0, 10_000
_THINKING = re.compile(r"<think>(.*?)</think>(.*)", re.DOTALL)

Texts = tuple[list[str], list[str]]


def same_problems() -> Texts:
    """R1's thinking and the instruct model's solutions, of each problem of GSM8K and MATH that has both."""
    thinking = {row["problem"]: thinking_of(row["text"]) for row in read_rows(R1_ROWS)}
    solutions = {row["problem"]: row["solution"] for row in read_rows(INSTRUCT_ROWS)}
    both = [problem for problem in thinking if problem in solutions]
    return [thinking[problem] for problem in both], [solutions[problem] for problem in both]


def texts_of_rows(rows: Iterable[Mapping[str, Any]]) -> Texts:
    """Thinking and solution texts of OpenThoughts' rows; those that lack either are left out.

    A row with columns ``deepseek_reasoning`` and ``ground_truth_solution`` (the ``metadata`` configuration)
    gives R1's reasoning and the reference solution; a row with ``text`` alone (the paper's subset) gives what
    is between ``<think>`` and ``</think>`` and what follows it. Raises UserError: no row has both.
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


def stream_dataset(dataset: str, documents: int) -> Texts:
    """Texts of ``documents`` rows of a hub dataset, streamed through a seeded shuffling buffer.

    The hub's rows are ordered by domain; the buffer mixes shards and neighbours, not the whole dataset.
    Raises UserError: the hub cannot be reached, or its rows do not fit.
    """
    configuration = CONFIGURATION if dataset == DATASET else None
    try:
        rows = datasets.load_dataset(dataset, configuration, split="train", streaming=True)
        mixed = rows.shuffle(seed=SEED, buffer_size=max(BUFFER, documents)).take(documents)
        taken = list(mixed)
    except Exception as error:
        raise UserError(
            f"The dataset {dataset} cannot be streamed ({type(error).__name__}): run this on a machine that "
            "reaches the hub, or without --dataset."
        ) from error
    return texts_of_rows(taken)


def save(texts: Texts, source: str, threshold: float = 1e-3, top: int = 40) -> None:
    """Draw figures 2 and 5 from these texts into figures/vocabulary-real, and say what came out.

    ``source`` says what they are; words of general frequency ``threshold`` drop; ``top`` words are drawn.
    """
    settings = load_settings("organism")
    words = settings.words
    code = imported_files(["import reasoning_features.making.vocabulary_real"])
    made = {
        "inputs": {"texts": source, "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest()},
        "code_sha256": digest(f"{name} {content}" for name, content in code.items()),
        "versions": {name: importlib.metadata.version(name) for name in ("datasets", "wordfreq")},
    }
    run = Run("vocabulary_real", settings, RunPaths(RUN), made)
    ranking = rank_words(*texts)
    places = vocabulary_origin(ranking, words, threshold, top)
    counted, kept = int((places["rank"] <= top).sum()), int((places["rank_filtered"] <= top).sum())
    by_hand = ", ".join(places.loc[places["origin"] == "hand", "word"]) or "none"
    outcome = (
        f"{counted} of {len(words)} words of R are in the top {top} by count, {kept} after the "
        f"general-frequency filter at {threshold:g}; found by no count: {by_hand}."
    )
    others = f"In the filtered top but not in R: {', '.join(left_out(ranking, words, threshold, top))}."
    fig, data = draw_ranking(ranking, words, threshold, top)
    caption = (
        f"Top {top} words by p_think − p_solution (figure 2): {source}. Orange and hatched: words of the "
        f"paper's R; a filter drops what reaches beyond the dashed line. {outcome}"
    )
    save_figure(fig, "f02_vocabulary", data, run, caption)
    save_table(places, "f05_reasoning_words", run, f"The paper's R (figure 5): {source}. {outcome} {others}")
    print(outcome, others)
    print(f"Written to {relative(run.paths.figures)}.")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=RUN, description="Figure 2 and R from real thinking.")
    parser.add_argument("--dataset", help=f"a dataset of the hub, such as {DATASET} or {PAPERS_DATASET}")
    parser.add_argument("--documents", type=int, default=2000, help="rows of the dataset to stream")
    parser.add_argument("--threshold", type=float, default=1e-3, help="general frequency where words drop")
    parser.add_argument("--top", type=int, default=40, help="length of the ranking that is drawn")
    options = parser.parse_args(arguments)
    try:
        texts = stream_dataset(options.dataset, options.documents) if options.dataset else same_problems()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    n = len(texts[0])
    source = f"reasoning against reference solutions to the same {n} problems of {options.dataset}"
    if not options.dataset:
        models = "DeepSeek-R1's thinking against Qwen2.5-32B-Instruct's solutions"
        source = f"{models} to the same {n} problems of GSM8K and MATH"
    save(texts, source, options.threshold, options.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
