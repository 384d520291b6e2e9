"""Equal tokens: votes by hand, mixtures of two sizes, and differences paired over problems."""

from __future__ import annotations

import pandas as pd
import pytest

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.steering.answering import answers
from reasoning_features.steering.benchmarks import Questions, repeated
from reasoning_features.steering.equal_tokens import (
    LONGER,
    MAJORITY,
    at_equal_tokens,
    equal_token_comparison,
    majority_votes,
    single_answers,
    spending_curve,
)


def votes(*samples):
    """Answers to two problems whose right answer is "a", sample by sample, ten tokens each."""
    rows = [
        {"problem": 2 * sample + i, "answer": answer, "correct": answer == "a", "thinking_tokens": 10 + i}
        for sample, given in enumerate(samples)
        for i, answer in enumerate(given)
    ]
    return pd.DataFrame(rows)


def test_majorities_by_hand():
    answered = votes("ab", "bb", "ba", [None, "a"], "aa")
    found = majority_votes(answered.sample(frac=1, random_state=0), 2, [1, 2, 3, 4, 5])
    right = found.pivot(index="size", columns="problem", values="correct")
    assert right[0].tolist() == [True, True, False, False, True]  # a, tie to a, b b, b b, tie to a
    assert right[1].tolist() == [False, False, False, False, True]  # b, b b, b b, tie to b, a a a
    assert found.loc[found["size"] == 3, "tokens"].tolist() == [30, 33]
    assert not majority_votes(votes([None, "a"]), 2, [1])["correct"].iloc[0]
    with pytest.raises(UserError, match="7 answers to each of 2 problems"):
        majority_votes(answered, 2, [1, 7])


def test_repeated_questions_have_draws_of_their_own(tiny_subject):
    def grade(numbers, continuations):
        return pd.DataFrame({"asked": list(numbers)})

    questions = Questions("two", [[0, 5, 6], [0, 9]], ["a", "b"], 1, 8, ("asked",), grade)
    again = answers(tiny_subject, repeated(questions, 3), [], seed=2, progress=None)
    assert again["asked"].tolist() == [0, 1] * 3
    once = answers(tiny_subject, questions, [], seed=2, progress=None)
    assert again["tokens"].tolist()[:2] == once["tokens"].tolist()
    assert len(set(again["tokens"])) == 6


@pytest.fixture
def spent():
    """One answer costs 10 tokens and is right on the first problem; three cost 30 and are right on both."""
    rows = [
        (MAJORITY, size, problem, size == 3 or problem == 0, 10 * size)
        for size in (1, 3)
        for problem in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["method", "size", "problem", "correct", "tokens"])


@pytest.mark.parametrize(("tokens", "expected"), [(10, [1, 0]), (15, [1, 0.25]), (30, [1, 1])])
def test_between_two_sizes_lies_their_mixture(spent, tokens, expected):
    assert at_equal_tokens(spent, tokens).tolist() == pytest.approx(expected)


def test_what_cannot_be_spent_is_told(spent):
    for tokens in (9.0, 31.0):
        with pytest.raises(UserError, match=r"Majority spends 10\.0 to 30\.0 tokens"):
            at_equal_tokens(spent, tokens)


def test_steered_answers_beside_others_of_equal_tokens(spent):
    def answered(condition, correct, tokens):
        return pd.DataFrame(
            {"condition": condition, "problem": [0, 1], "correct": correct, "thinking_tokens": tokens}
        )

    plain, wait = answered(UNSTEERED, [True, False], 10), answered("wait", [False, False], 20)
    longer = single_answers(pd.concat([plain, wait]), {UNSTEERED: 0, "wait": 1})
    assert longer["size"].tolist() == [0, 0, 1, 1]
    steered = answered("steered", [True, True], 15).iloc[::-1]
    found = equal_token_comparison(steered, pd.concat([spent, longer])).set_index("method")
    # majority: (1 + .25) / 2; longer: half of the first problem's one, and none of the second's
    assert found["other"].to_dict() == pytest.approx({MAJORITY: 0.625, LONGER: 0.25})
    assert found["difference"].to_dict() == pytest.approx({MAJORITY: 0.375, LONGER: 0.75})
    assert found["n"].tolist() == [2, 2]
    curve = spending_curve(spent)
    assert curve[["tokens", "accuracy"]].values.tolist() == [[10, 0.5], [30, 1.0]]
