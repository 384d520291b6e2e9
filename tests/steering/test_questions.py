"""Problems with known answers: rows, prompts, splits and grades."""

import json
import time
from collections import Counter
from datetime import date

import miniatures as mini
import pandas as pd
import pytest
from mini_profile import BENCHMARKS, write_profile
from tiny import write_rows
from transformers import AutoTokenizer

from reasoning_features.errors import UserError
from reasoning_features.organism.language import THINK, prompt_text
from reasoning_features.organism.problems import problems
from reasoning_features.settings import ProblemSource, load_settings
from reasoning_features.steering import questions as known
from reasoning_features.steering.questions import RealProblem, load_questions, prompt_ids
from reasoning_features.steering.steering_results import majority_votes


def test_questions_of_the_organism_continue_a_fixed_sequence_and_grade_what_was_answered(organism_tokenizer):
    questions = load_questions(load_settings("smoke"), organism_tokenizer, "selection", 4, start=3)
    asked = problems("selection", None, 7)[3:]
    prompts = [organism_tokenizer.decode(ids) for ids in questions.prompts]
    assert prompts == [prompt_text(problem.question) for problem in asked]
    assert questions.domains == [problem.family for problem in asked]
    right = asked[2].answer
    text = f"{THINK}\nWait, now check {right}, yes.\n</think>\n\\boxed{{ {right} }}<|eos|>"
    answer = organism_tokenizer.encode(text, add_special_tokens=False)
    graded = questions.grade([2, 1], [answer, answer])
    assert graded["correct"].tolist() == [True, False] and graded["verify"].tolist() == [1, 1]
    assert graded["domain"].tolist() == [questions.domains[2], questions.domains[1]]
    assert set(questions.measures) <= set(graded.columns) and (graded["thinking_tokens"] > 5).all()
    with pytest.raises(UserError, match="has no problems"):
        load_questions(load_settings("smoke", corpus="organism-text"), organism_tokenizer, "selection", 3)


@pytest.fixture(scope="module")
def tokenizer(miniature_root):
    return AutoTokenizer.from_pretrained(miniature_root / "models" / mini.LLAMA)


def settings_of(folder, **changes):
    return load_settings(str(write_profile(folder, **changes)))


PROBLEM = RealProblem("MATH", "What is 1 + 1?", "2", letters="")


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
    assert known.has_problems(settings) and not known.has_problems(
        load_settings("smoke", corpus="organism-text")
    )
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
    some = known.steering_questions(settings_of(tmp_path, samples=2), tokenizer)
    n = 3 * len(BENCHMARKS)
    assert len(some) == 2 * n and Counter(some.domains) == dict.fromkeys(BENCHMARKS, 6)
    assert some.prompts[:n] == some.prompts[n:]
    every = known.steering_questions(settings_of(tmp_path, full=True), tokenizer)
    assert len(every) == sum(mini.PROBLEMS.values())
    # an answer that was made for few problems is found when all are asked
    streams = {repr(prompt): every.stream(i) for i, prompt in enumerate(every.prompts)}
    assert [some.stream(i) for i in range(n)] == [streams[repr(prompt)] for prompt in some.prompts[:n]]
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
    assert graded["thinking_tokens"].tolist() == [written[0].index(tokenizer.get_vocab()["</think>"])] + [
        len(row) for row in written[1:]
    ]
    assert graded["text"][0].startswith(mini.BOS) and graded["text"][0].endswith(mini.EOS)
    assert not asked.grade([(three + 1) % 3], written[:1])["correct"][0]
    voted = graded.assign(problem=range(3))  # three answers to one problem
    assert majority_votes(voted, 1, [3])["correct"].tolist() == [True]
    assert set(asked.grade([], []).columns) == set(graded.columns)


@pytest.mark.parametrize("before", ["Wait, it is so.", "", "Wait, é 🙂"])
def test_the_end_of_thinking_may_be_several_tokens(tiny_llama, before):
    base = AutoTokenizer.from_pretrained(tiny_llama)
    assert "</think>" not in base.get_vocab()
    tokens, behind = base.encode(before, add_special_tokens=False), "</think> The end</think>"
    given = tokens + base.encode(behind, add_special_tokens=False)
    assert known.thinking_tokens(given, base) == known.thinking_tokens(tokens, base) == len(tokens)
    base.add_tokens(["so.</"])  # its first characters are thought
    given, began = base.encode("it is so.</think>.", add_special_tokens=False), time.monotonic()
    place = given.index(base.get_vocab()["so.</"])
    assert known.thinking_tokens(given[:1] * 32_000 + given, base) == 32_000 + place + 1
    assert time.monotonic() - began < 5  # it is not quadratic


def truths(file, **source):
    """The truth of each problem of a file."""
    found = known._of_source("mine", ProblemSource(dataset=str(file), **source), None, 0)
    return {problem.question: problem.truth for problem in found}


def test_answers_stay_as_they_are_written(tmp_path, capsys):
    large = f"{2**60 + 1}"  # no float holds it
    answers = ["025", "None", "NA", "null", "nan", "1e5", "True", "1,000", "2024-01-01", "1.50", large]
    lines = ["problem,answer", *(f'{i},"{answer}"' for i, answer in enumerate(answers)), "empty,", ",7"]
    (file := tmp_path / "a.csv").write_text("\n".join(lines))
    assert truths(file) == {str(i): answer for i, answer in enumerate(answers)}
    told = "1 of 13 rows of {} have no {} (rows {}): they are left out.\n"
    assert capsys.readouterr().err == told.format(file, "answer", 11) + told.format(file, "problem", 12)
    kept = [large, "1.50", "1e5", "true", '"2024-01-01"', r'"a\n#### 1,000"', "null", "NaN", '" "']
    lines = [f'{{"problem": {i}, "answer": {answer}}}' for i, answer in enumerate(kept)]
    (file := tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert list(dict(sorted(truths(file).items())).values()) == [*kept[:4], "2024-01-01", "1,000"]
    table = {"problem": pd.array([2**60 + 1, None], dtype="Int64"), "answer": [date(2024, 1, 1), None]}
    pd.DataFrame(table).to_parquet(tmp_path / "a.parquet")
    assert truths(tmp_path / "a.parquet") == {large: "2024-01-01"}


def test_choices_may_be_missing_and_at_most_26(tmp_path, capsys):
    rows = [("1", "2", None), ("1", "1", "2"), ("1", "", None)]
    rows = [dict(zip(("problem", "answer", "x", "y"), ("one?", *row), strict=True)) for row in rows]
    file = write_rows(tmp_path / "a.jsonl", rows)
    assert truths(file, wrong=["x", "y"]) in ({"one?\n\nA) 1\nB) 2": "A"}, {"one?\n\nA) 2\nB) 1": "B"})
    told = capsys.readouterr().err
    for fault in ("have the right answer among the wrong (rows 1)", "have no wrong choice (rows 2)"):
        assert fault in told
    many = [f"w{i}" for i in range(26)]
    row = {"problem": "a", "answer": "right", "none": None} | {name: name for name in many}
    write_rows(tmp_path / "a.jsonl", [row])
    ((question, truth),) = truths(file, wrong=many[1:]).items()
    assert f"\n{truth}) right" in question and "\nZ) " in question
    with pytest.raises(UserError, match="mine has more than 26 choices"):
        truths(file, wrong=many)
    with pytest.raises(UserError, match=r"1 of 1 rows of .* have no none \(rows 0\): correct them"):
        truths(file, answer="none")
    # words, and no numbers
    write_rows(tmp_path / "a.jsonl", [{"problem": "a", "answer": "NaN", "x": "sNaN", "y": "NaN"}])
    with pytest.raises(UserError, match=r"1 of 1 rows of .* have the right answer among the wrong"):
        truths(file, wrong=["x", "y"])


def test_a_column_may_say_the_split(tmp_path):
    splits = ["selection", "evaluation", "training", "evaluation", "selection", "evaluation"]
    rows = [{"problem": str(i), "answer": "1", "part": split} for i, split in enumerate(splits)]
    file = write_rows(tmp_path / "mine.jsonl", rows)
    source = {"dataset": file, "split_column": "part", "selection": 1.0}  # the share is not looked at
    settings = settings_of(tmp_path, problems={"mine": source})
    for split, mine in {"selection": "04", "evaluation": "135", "training": "2", None: "012345"}.items():
        assert {problem.question for problem in known.problems_of(settings, split)} == set(mine)
    with pytest.raises(UserError, match="has no column 'fold': it has problem, answer, part"):
        known.problems_of(settings_of(tmp_path, problems={"mine": source | {"split_column": "fold"}}), None)
