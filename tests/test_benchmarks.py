"""Problems as questions: prompts, domains and grades."""

from __future__ import annotations

import pytest

from reasoning_features.errors import UserError
from reasoning_features.organism.problems import problems
from reasoning_features.organism.tokenizer import train_tokenizer
from reasoning_features.organism.traces import THINK, base_documents, prompt_text
from reasoning_features.settings import load_settings
from reasoning_features.steering.benchmarks import load_questions


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(d.text for d in base_documents(500, 0))


def test_questions_continue_a_fixed_sequence(tokenizer):
    settings = load_settings("smoke")
    questions = load_questions(settings, tokenizer, "selection", 4, start=3)
    asked = problems("selection", None, 7)[3:]
    assert len(questions) == 4
    assert [tokenizer.decode(ids) for ids in questions.prompts] == [prompt_text(p.question) for p in asked]
    assert questions.domains == [p.family for p in asked]


def test_grades_are_of_the_question_that_was_answered(tokenizer):
    questions = load_questions(load_settings("smoke"), tokenizer, "selection", 3)
    right = problems("selection", None, 3)[2]
    text = f"{THINK}\nWait, now check {right.answer}, yes.\n</think>\n\\boxed{{ {right.answer} }}<|eos|>"
    answer = tokenizer.encode(text, add_special_tokens=False)
    graded = questions.grade([2, 1], [answer, answer])
    assert graded["correct"].tolist() == [True, False]
    assert graded["verify"].tolist() == [1, 1]
    assert graded["domain"].tolist() == [questions.domains[2], questions.domains[1]]
    assert set(questions.measures) <= set(graded.columns)
    assert (graded["thinking_tokens"] > 5).all()


def test_a_corpus_without_problems_is_told(tokenizer):
    with pytest.raises(UserError, match="has no problems"):
        load_questions(load_settings("smoke", corpus="texts"), tokenizer, "selection", 3)
