"""The features that the paper names: ranks and chance, steering beside the paper's numbers, texts, traces."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from tiny import signed_identity

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.settings import load_settings
from reasoning_features.steering import paper_features
from reasoning_features.steering.paper_features import LENGTH, NAMED, RANDOM, REASONING, REPEATED
from reasoning_features.steering.questions import STEERED

SETS = {"named": [0, 1, 9], "other": [5]}


def test_found_counts_those_among_the_best_and_chance():
    scores = {"paper": np.arange(10.0)[::-1], "released": np.arange(10.0)}
    table = paper_features.found_table(scores, SETS, k=2).set_index(["hyperparameters", "set"])
    assert table.loc[("paper", "named"), "found"] == 2
    assert table.loc[("released", "named"), "found"] == 1
    assert table.loc[("paper", "named"), "by chance"] == pytest.approx(0.6)
    # both of the two best among three named of ten: C(3,2) / C(10,2)
    assert table.loc[("paper", "named"), "p"] == pytest.approx(3 / 45)
    assert table.loc[("paper", "other"), ["found", "p"]].tolist() == [0, 1.0]
    assert paper_features.share_found(scores["paper"], SETS, 2).estimate == pytest.approx(2 / 4)
    assert table.loc[("released", "other"), "median rank"] == 5
    with pytest.raises(UserError, match="10, 12 are not there: this autoencoder has 0 to 9"):
        paper_features.check_published({"a": [3, 12], "b": [10]}, 10)


@pytest.fixture
def evidence():
    table = pd.DataFrame({"score:reason score": [9.0, 1, 5, 8, 2, 3, 4, 0], "maximum": np.arange(8.0)})
    return table.assign(density=np.linspace(0, 0.4, 8), **{"decoder norm": 1.0})  # the best is never active


def settings(**changes):
    return load_settings("smoke").model_copy(update={"seed": 0, "gamma": 2.0} | changes)


def test_the_best_features_are_steered_where_none_are_named_and_a_random_one_beside_each(evidence):
    asked = settings(interpreted=2, selected=3, gammas=[-1.0, 2.0])
    conditions, kinds = paper_features.steered_conditions(asked, signed_identity(4), evidence)
    # the third that ReasonScore chooses, 6, is not random either
    assert kinds["ReasonScore"] == [3, 2] and len(set(kinds[RANDOM]) & {1, 4, 5, 7}) == 2
    assert [(c.feature, c.gamma) for c in conditions[:4]] == [(3, -1), (3, 2), (2, -1), (2, 2)]
    assert conditions[1].vector is not None and conditions[1].vector.norm() == 2 * 3


def test_named_features_are_steered_at_the_papers_strength_and_none_is_random(evidence):
    asked = settings(published={STEERED: [0, 2, 5]})  # 0 is never active
    conditions, kinds = paper_features.steered_conditions(asked, signed_identity(4), evidence)
    assert [c.name for c in conditions[:2]] == ["2 at 2", "5 at 2"] and kinds[NAMED] == [2, 5]
    assert len(kinds[RANDOM]) == 2 and not set(kinds[RANDOM]) & {0, 2, 5}
    for condition in conditions:
        size = 2 * evidence["maximum"][condition.feature]
        assert condition.vector is not None and float(condition.vector.norm()) == pytest.approx(size)


def test_steering_is_paired_over_problems_and_votes_over_answers():
    right = {("unsteered", -1): [1, 0, 0, 1, 0, 0], ("4395 at 2", 4395): [1, 1, 0, 1, 1, 0]}
    rows = [
        (*condition, number, "MATH-500", str(correct), bool(correct), 10 + correct)
        for condition, own in right.items()
        for number, correct in enumerate(own)  # three problems, twice
    ]
    columns = ["condition", "feature", "problem", "domain", "answer", "correct", "thinking_tokens"]
    table = paper_features.steered_table(pd.DataFrame(rows, columns=columns), 3).set_index("condition")
    assert table.loc["unsteered", ["pass@1", "maj@k", "gain"]].tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    assert table.loc["4395 at 2", "gain"] == pytest.approx(1 / 3)
    assert table.loc["4395 at 2", ["problems", "k"]].tolist() == [3, 2]
    assert table.loc["4395 at 2", "longer"] == pytest.approx((32 / 3) / (31 / 3) - 1)
    wide = paper_features.table_one(table.reset_index(), [], 2).set_index("steered")
    assert wide.loc[["unsteered", "4395 at 2", "the paper's 4395"], "MATH-500"].tolist() == [
        "33.3 / 10", "66.7 / 11", "95.4 / 4.1k"
    ]  # fmt: skip
    assert wide.loc["the paper's unsteered", "AIME-2024"] == "53.3 / 12.4k"
    means = paper_features.table_one(table.reset_index(), [4395], 2).set_index("steered")
    assert means.loc["1 random features, mean", "MATH-500"] == "66.7 / 11"


def test_the_mean_over_features_leaves_random_ones_apart():
    rows = []
    for condition, feature, right, tokens in (("unsteered", -1, [0, 1], 10), ("a", 1, [1, 1], 12),
                                              ("b", 2, [0, 1], 14), ("c", 7, [0, 0], 11)):  # fmt: skip
        rows += [(condition, feature, number, bool(right[number]), tokens) for number in (0, 1)]
    columns = ["condition", "feature", "problem", "correct", "thinking_tokens"]
    gain, longer = paper_features.overall(pd.DataFrame(rows, columns=columns), 2, [7])
    assert gain.value.estimate == pytest.approx(0.25) and gain.value.n == gain.narrow.n == 2
    assert longer.value.estimate == pytest.approx(0.3) and longer.control == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "reasoning", "repeated"),
    [("wait, let me see: wait, let it be.", 100 * 3 / 8, 100 * 1 / 7),  # "wait, let" comes again
     ("Let's wait. Let me wait", 100 * 3 / 5, 0),  # let's is one word
     ("no no no no no", 0, 100 * 3 / 4), ("wait", 100, 0), ("1 + 1 = 2.", 0, 0),  # without words
     ("", 0, 0), ("Hmm, wait.</think> Wait, wait, wait", 100 * 1 / 2, 0),  # its thinking alone
     ("so wait<|im_end|>", 100 * 1 / 2, 0)],  # a mark is no word
)  # fmt: skip
def test_measures_by_hand(text, reasoning, repeated):
    told = {"condition": UNSTEERED, "feature": -1, "gamma": 0.0, "problem": 0, "thinking_tokens": 7}
    answer = pd.DataFrame([told | {"text": f"Wait?<think>{text}", "tokens": tuple(text.split())}])
    words = ["wait", "let me", "1"]  # the last has no letters: it is never found, and found nowhere
    row = paper_features.text_measures(answer, ["Wait?<think>"], words).loc[0]
    assert row[[LENGTH, REASONING, REPEATED]].tolist() == pytest.approx([7, reasoning, repeated])


def measured(condition: str, feature: int, gamma: float, lengths: dict[int, float]) -> pd.DataFrame:
    told = {"condition": condition, "feature": feature, "gamma": gamma, "problem": list(lengths)}
    return pd.DataFrame(told | {LENGTH: list(lengths.values()), REASONING: 5.0, REPEATED: 10.0})


def test_effects_are_paired_over_problems():
    plain = measured(UNSTEERED, -1, 0.0, {0: 10, 1: 20, 2: 60})
    # in another order: 13 − 10, 23 − 20, 63 − 60 are the same change, so there is nothing to resample
    more = measured("4 at 2", 4, 2.0, {2: 63, 0: 13, 1: 23})
    less = measured("4 at -1", 4, -1.0, {0: 10, 1: 14, 2: 48}).assign(**{REPEATED: [10.0, 40.0, 40.0]})
    table = paper_features.text_effects(pd.concat([plain, more, less]))
    assert table["condition"].tolist() == ["4 at 2"] * 3 + ["4 at -1"] * 3
    told = table.set_index(["gamma", "measure"])
    assert told.loc[(2, LENGTH), ["change", "low", "high"]].tolist() == [3, 3, 3]
    assert told.loc[(-1, LENGTH), "change"] == pytest.approx((0 - 6 - 12) / 3)
    assert told.loc[(-1, LENGTH), "low"] < -6 < told.loc[(-1, LENGTH), "high"]
    assert told.loc[(-1, REPEATED), "change"] == pytest.approx(20)
    assert (told["problems"] == 3).all() and (told.xs(REASONING, level="measure")["change"] == 0).all()


PROMPT = "<|bos|><|user|>Two of 3 9 4 with sum 7.<|assistant|><think>\n"
GIVES_UP = (
    PROMPT + "Wait, now try 3 + 9 = 12, high.\nAnd, thus stop with 3 + 9.\n</think>\n\\boxed{ 3 + 9 }<|eos|>"
)
GOES_ON = PROMPT + (
    "Wait, now try 3 + 9 = 12, high.\nHmm, so undo there.\nWait, now take 3 + 4 = 7, yes.\nSpoilt line\n"
    "And, so keep 3 + 4.\n</think>\n\\boxed{ 3 + 4 }<|eos|>"
)


def test_moves_are_read_after_the_prompt():
    runs = paper_features.moves_of(GOES_ON)
    moves = "explore compute backtrack explore compute  conclude answer"  # one line is of no move
    assert runs["move"].tolist() == moves.split(" ")
    assert PROMPT + "".join(runs["text"]) == GOES_ON
    assert paper_features.moves_of("Some <b>prose</b>.").values.tolist() == [["", "Some <b>prose</b>."]]
    # the prompt is left out where steps are known and where none are
    assert paper_features.moves_of(GOES_ON, PROMPT).equals(runs)
    assert paper_features.moves_of("Why? Some prose.", "Why?").values.tolist() == [["", " Some prose."]]


def test_a_problem_under_two_conditions_and_every_word_of_it_in_the_figure():
    rows = [(UNSTEERED, 0, False, 12, GIVES_UP), ("on", 0, True, 20, GOES_ON)]
    answers = pd.DataFrame(rows, columns=["condition", "problem", "correct", "thinking_tokens", "text"])
    question, traces = paper_features.side_by_side(answers, 0, ["on"])
    assert question == "Two of 3 9 4 with sum 7."
    assert traces == {"unsteered: wrong, 12 tokens": GIVES_UP, "on: right, 20 tokens": GOES_ON}
    strange = traces | {"prose": "It costs $5_x^2 \\frac \x00\ud800"}
    fig, data = paper_features.draw_traces("$x$ and $5", strange)
    for ax, text in zip(fig.axes, traces.values(), strict=False):
        drawn = [t.get_text() for t in ax.texts if t.get_family() == ["DejaVu Sans Mono"]]
        assert "".join(drawn).replace(" ", "") == re.sub(r"\s", "", text.removeprefix(PROMPT))
    assert {mark.get_text() for mark in fig.legends[0].get_texts()} >= {"explore", "give up", "conclude"}
    assert data["trace"].unique().tolist() == [*traces, "prose"]
    fig.draw_without_rendering()
    plt.close(fig)
