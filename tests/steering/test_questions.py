"""Problems with known answers: prompts, splits, grades, and answers in boxes that are never run."""

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
from reasoning_features.steering.questions import RealProblem, graded_formula, load_questions, prompt_ids
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


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"so \boxed{3}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{ {a} \text{ and } b }", r"{a} \text{ and } b"),
        (r"\boxed{3", None),
        (r"\boxed{}", None),
        ("nothing", None),
    ],
)
def test_the_last_box_counts(text, held):
    assert known.boxed(text) == held


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("204", "204.0"),
        ("025", "25"),
        (r"\frac{1}{2}", "0.5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"),
        ("p - q", "-q+p"),
        (r"11\sqrt2", r"\sqrt{242}"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"90^\circ", "90"),
        ("10,080", "10080"),
    ],
)
def test_equal_answers_are_right_and_vote_with_the_truth(truth, answer):
    assert graded_formula(truth, answer) == (True, graded_formula(truth, truth)[1])


def test_other_answers_are_wrong_and_equal_ones_vote_together():
    pairs = [("204", "203"), ("(1,2)", "(2,1)"), ("p - q", "q - p")]
    pairs += [("5", answer) for answer in (r"\text{", "}{", "é" * 500)]
    assert not any(graded_formula(*pair)[0] for pair in pairs)
    votes = {graded_formula("7", answer) for answer in (r"\frac{3}{4}", "0.75", r"\dfrac{6}{8}", "3/4")}
    assert votes == {(False, "3/4")}
    assert graded_formula("7", None) == (False, None)


def test_nothing_in_an_answer_is_run(tmp_path):
    target = tmp_path / "written"
    code = f"__import__('pathlib').Path('{target}').touch()"
    for answer in (code, rf"\text{{{code}}}", rf"\operatorname{{exec}}({code})"):
        graded_formula("5", answer)
    assert not target.exists()


@pytest.mark.parametrize(
    ("answer", "named"),
    [("B", "B"), (r"\text{B}", "B"), ("(B)", "B"), ("B) 10 eV", "B"), (r"\textbf{(B)}", "B"), ("Both", None),
     ("10 eV", None), (None, None)],
)  # fmt: skip
def test_choices_are_letters(answer, named):
    assert known.graded_letter("B", answer) == (named == "B", named)


def test_a_comparison_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(known, "SECONDS", 1)
    began = time.monotonic()
    assert not graded_formula("5", "9^{9^{9^{9}}}")[0]
    assert time.monotonic() - began < 4
    assert graded_formula("6", r"\frac{12}{2}")[0]


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
    assert len(before) <= known.thinking_tokens(given, base) <= len(given) - len(base.encode(" The end")) + 2
    assert known.thinking_tokens(before, base) == len(before)


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
