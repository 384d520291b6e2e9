"""Problems of published benchmarks: prompts, splits, and grades of written answers."""

from __future__ import annotations

import json
from collections import Counter

import miniatures as mini
import pandas as pd
import pytest
from mini_profile import BENCHMARKS, write_profile
from transformers import AutoTokenizer

from reasoning_features.errors import UserError
from reasoning_features.settings import load_settings
from reasoning_features.steering.benchmarks import has_problems, load_questions, published_questions
from reasoning_features.steering.equal_tokens import majority_votes
from reasoning_features.steering.real_benchmarks import RealProblem, problems_of, prompt_ids, thinking_tokens


@pytest.fixture(scope="module")
def tokenizer(miniature_root):
    return AutoTokenizer.from_pretrained(miniature_root / "models" / mini.LLAMA)


def settings_of(folder, **changes):
    return load_settings(str(write_profile(folder, **changes)))


PROBLEM = RealProblem("MATH", "What is 1 + 1?", "2", choice=False)


def test_a_prompt_is_the_problem_in_the_template_and_opens_the_thinking(tokenizer, miniature_root):
    text = tokenizer.decode(prompt_ids(PROBLEM, tokenizer))
    assert text == (
        f"{mini.BOS}{mini.USER}What is 1 + 1?\n\nPlease reason step by step, and put your final answer "
        f"within \\boxed{{}}.{mini.ASSISTANT}<think>\n"
    )
    older = AutoTokenizer.from_pretrained(miniature_root / "models" / mini.LLAMA)
    older.chat_template = mini.template(opens_thinking=False)
    assert prompt_ids(PROBLEM, older) == prompt_ids(PROBLEM, tokenizer)
    older.chat_template = None
    plain = prompt_ids(PROBLEM, older)
    assert plain[0] == older.bos_token_id and older.bos_token_id not in plain[1:]
    assert older.decode(plain[1:]).startswith("What is 1")
    assert mini.SYSTEM in tokenizer.decode(prompt_ids(PROBLEM, tokenizer, mini.SYSTEM))
    older.get_vocab = lambda: {}
    assert "<think>" not in older.decode(prompt_ids(PROBLEM, older))


def test_benchmarks_are_mixed_split_for_good_and_ordered_by_the_seed(hub, tokenizer, tmp_path):
    settings = settings_of(tmp_path)
    assert has_problems(settings) and not has_problems(load_settings("smoke", corpus="organism-text"))
    chosen = load_questions(settings, tokenizer, "selection", 100)
    asked = load_questions(settings, tokenizer, "evaluation", 100)
    assert set(chosen.domains) == {"MATH-500"} and len(chosen) == mini.PROBLEMS[mini.MATH] // 2
    left = {name: mini.PROBLEMS[source["dataset"]] for name, source in BENCHMARKS.items()}
    left["MATH-500"] -= len(chosen)
    assert Counter(asked.domains) == left
    # mixed evenly: of any first part, each benchmark has its share, but for one
    for n in range(len(asked)):
        for name, count in left.items():
            assert abs(asked.domains[:n].count(name) - n * count / len(asked)) <= 1
    assert not set(map(tuple, chosen.prompts)) & set(map(tuple, asked.prompts))
    assert load_questions(settings, tokenizer, "evaluation", 4, start=3).prompts == asked.prompts[3:7]
    other = load_questions(settings.model_copy(update={"seed": 1}), tokenizer, "evaluation", 100)
    assert other.prompts != asked.prompts and sorted(other.prompts) == sorted(asked.prompts)
    with pytest.raises(UserError, match=f"no problems of selection from {len(chosen)} on"):
        load_questions(settings, tokenizer, "selection", 4, start=len(chosen))


def test_published_features_are_asked_some_of_every_benchmark_several_times(hub, tokenizer, tmp_path):
    some = published_questions(settings_of(tmp_path, samples=2), tokenizer)
    n = 3 * len(BENCHMARKS)
    assert len(some) == 2 * n and Counter(some.domains) == dict.fromkeys(BENCHMARKS, 6)
    assert some.prompts[:n] == some.prompts[n:]
    every = published_questions(settings_of(tmp_path, full=True), tokenizer)
    assert len(every) == sum(mini.PROBLEMS.values())
    # an answer that was made for few problems is found when all are asked
    known = {repr(prompt): every.stream(i) for i, prompt in enumerate(every.prompts)}
    assert [some.stream(i) for i in range(n)] == [known[repr(prompt)] for prompt in some.prompts[:n]]
    assert len({some.stream(i) for i in range(2 * n)}) == 2 * n


def test_a_letter_is_asked_for_where_there_are_choices(hub, tokenizer, tmp_path):
    asked = load_questions(settings_of(tmp_path), tokenizer, "evaluation", 100)
    numbers = [i for i, domain in enumerate(asked.domains) if domain == "GPQA-Diamond"]
    right = set()
    for i in numbers:
        text = tokenizer.decode(asked.prompts[i])
        assert "the letter of your answer" in text and all(f"\n{letter}) " in text for letter in "ABCD")
        given = {x: tokenizer.encode(rf"</think>\boxed{{{x}}}", add_special_tokens=False) for x in "ABCD"}
        graded = asked.grade([i] * 4, list(given.values()))
        assert graded["correct"].sum() == 1 and graded["answer"].tolist() == list("ABCD")
        right.add("ABCD"[graded["correct"].tolist().index(True)])
    assert len(right) > 1


def test_grades_are_of_the_problem_that_was_answered(tmp_path, tokenizer):
    file = tmp_path / "mine.jsonl"
    rows = [{"problem": f"Half of {i}?", "answer": rf"\frac{{{i}}}{{2}}"} for i in (1, 3, 5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = settings_of(tmp_path, problems={"mine": {"dataset": str(file)}})
    asked = load_questions(settings, tokenizer, "evaluation", 9)
    assert asked.measures == ("correct", "thinking_tokens", "parseable", "finished")
    texts = ["Wait.</think> It is \\boxed{1.5}." + mini.EOS, "Hmm, \\boxed{3/2}", "Hmm"]
    written = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    three = next(i for i in range(3) if "Half of 3?" in tokenizer.decode(asked.prompts[i]))
    graded = asked.grade([three] * 3, written)
    assert graded["correct"].tolist() == [True, True, False]
    assert graded["answer"][0] == graded["answer"][1] and pd.isna(graded["answer"][2])
    assert graded["parseable"].tolist() == [True, True, False]
    assert graded["finished"].tolist() == [True, False, False]
    assert graded["thinking_tokens"].tolist() == [written[0].index(tokenizer.get_vocab()["</think>"])] + [
        len(row) for row in written[1:]
    ]
    assert graded["text"][0].startswith(mini.BOS) and graded["text"][0].endswith(mini.EOS)
    assert not asked.grade([(three + 1) % 3], written[:1])["correct"][0]
    voted = graded.assign(problem=range(3))  # three answers to one problem
    assert majority_votes(voted, 1, [3])["correct"].tolist() == [True]
    assert set(asked.grade([], []).columns) == set(graded.columns)


def test_the_end_of_thinking_may_be_several_tokens(tiny_llama):
    base = AutoTokenizer.from_pretrained(tiny_llama)
    before = base.encode("Wait, it is so.", add_special_tokens=False)
    given = base.encode("Wait, it is so.</think> The end", add_special_tokens=False)
    assert "</think>" not in base.get_vocab()
    assert len(before) <= thinking_tokens(given, base) <= len(given) - len(base.encode(" The end")) + 2
    assert thinking_tokens(before, base) == len(before)


def test_a_column_that_is_not_there_is_told(hub, tokenizer, tmp_path):
    problems = {"AIME": {"dataset": mini.AIME, "split": "train", "answer": "result"}}
    with pytest.raises(UserError, match="has no column 'result': it has id, problem"):
        load_questions(settings_of(tmp_path, problems=problems), tokenizer, "evaluation", 3)


def test_a_column_may_say_the_split(tmp_path):
    file = tmp_path / "mine.jsonl"
    splits = ["selection", "evaluation", "training", "evaluation", "selection", "evaluation"]
    rows = [{"problem": str(i), "answer": "1", "part": split} for i, split in enumerate(splits)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"dataset": str(file), "split_column": "part", "selection": 1.0}  # the share is not looked at
    settings = settings_of(tmp_path, problems={"mine": source})
    asked = {split: {p.question for p in problems_of(settings, split)} for split in (*set(splits), None)}
    assert asked["selection"] == {"0", "4"} and asked["evaluation"] == {"1", "3", "5"}
    assert asked["training"] == {"2"} and asked[None] == set("012345")
    with pytest.raises(UserError, match="has no column 'fold': it has problem, answer, part"):
        problems_of(settings_of(tmp_path, problems={"mine": source | {"split_column": "fold"}}), None)
