"""``make vocabulary-real``: figure 2 and the list R from real thinking, not the organism's.

DeepSeek-R1's thinking against Qwen2.5-32B-Instruct's solutions to the same problems
(:mod:`reasoning_features.text.real_text`).
"""

import hashlib
import json
import sys

from reasoning_features.errors import UserError
from reasoning_features.paths import RunPaths, relative
from reasoning_features.reporting.plots import save_figure
from reasoning_features.reporting.tables import save_table
from reasoning_features.runs.provenance import Run, digest, imported_files, versions
from reasoning_features.settings import load_settings
from reasoning_features.text.corpora import thinking_of
from reasoning_features.text.real_text import INSTRUCT_ROWS, R1_ROWS, read_rows
from reasoning_features.text.vocabulary import draw_ranking, left_out, rank_words, vocabulary_origin

TOP = 40  # words that are drawn


def same_problems() -> tuple[list[str], list[str]]:
    """R1's thinking and the instruct model's solutions, of each problem of GSM8K and MATH that has both."""
    thinking = {row["problem"]: thinking_of(row["text"]) for row in read_rows(R1_ROWS)}
    solutions = {row["problem"]: row["solution"] for row in read_rows(INSTRUCT_ROWS)}
    both = [problem for problem in thinking if problem in solutions]
    return [thinking[problem] for problem in both], [solutions[problem] for problem in both]


def main() -> None:
    """Draw figures 2 and 5 into ``figures/vocabulary-real`` and say what came out."""
    try:
        texts = same_problems()
    except UserError as error:
        sys.exit(str(error))
    models = "DeepSeek-R1's thinking against Qwen2.5-32B-Instruct's solutions"
    source = f"{models} to the same {len(texts[0])} problems of GSM8K and MATH"
    settings = load_settings("organism")
    words = settings.words
    code = imported_files(["import reasoning_features.making.vocabulary_real"])
    read = {"texts": source, "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}
    code_sha256 = digest(f"{name} {content}" for name, content in code.items())
    made = {"inputs": read, "code_sha256": code_sha256, "versions": versions()}
    run = Run("vocabulary_real", settings, RunPaths("vocabulary-real"), made)
    ranking = rank_words(*texts)
    places = vocabulary_origin(ranking, words, top=TOP)
    counted, kept = ((places[rank] <= TOP).sum() for rank in ("rank", "rank_filtered"))
    by_hand = ", ".join(places.loc[places["origin"] == "hand", "word"]) or "none"
    in_top = f"{counted} of {len(words)} words of R are in the top {TOP} by count, {kept} after the"
    outcome = f"{in_top} general-frequency filter at 0.001; found by no count: {by_hand}."
    others = f"In the filtered top but not in R: {', '.join(left_out(ranking, words, top=TOP))}."
    fig, data = draw_ranking(ranking, words, top=TOP)
    marks = "Hatched: words of the paper's R; struck out: dropped by the filter (dashed line)."
    caption = f"Top {TOP} words by p_think − p_solution (figure 2): {source}. {marks} {outcome}"
    save_figure(fig, "f02_vocabulary", data, run, caption)
    save_table(places, "f05_reasoning_words", run, f"The paper's R (figure 5): {source}. {outcome} {others}")
    print(outcome, others, f"Written to {relative(run.paths.figures)}.", sep="\n")


if __name__ == "__main__":
    main()
