"""Real text: rows of a small registry offline, what is not the pinned file, and the files themselves."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from tiny import contents

from reasoning_features.errors import UserError
from reasoning_features.settings import TextSource
from reasoning_features.text import real_text
from reasoning_features.text.corpora import open_texts
from reasoning_features.text.real_text import make_rows, read_rows, splits_of

COMMIT = "c" * 40
NAMES = (
    *("thinking/deepseek-r1", "thinking/r1-distill-qwen-32b", "thinking/star-1"),
    *("plain/qwen2.5-32b-instruct", "plain/gsm8k", "plain/wikitext-2", "problems"),
)
ANSWERS = NAMES[0], NAMES[1], NAMES[3], NAMES[6]
WIKI = """
 = Ise @-@ class battleship = 
 The two ships cost £ 1 @,@ 000 ( or so ) , he said : " They don 't sink . " 
 = = Design = = 
 = = = Armour = = = 
 It weighed 2 @.@ 5 tons ; where the length is L 
 = 1 henry and capacitance C = 
 1 farad . 
 = = Notes = = 
 = = = Sources = = = 
 = Du Fu = 
 A poet . 
 = = Legacy = = 
 Many read him . 
"""


def pinned() -> dict[str, str]:
    """The registry's files, each with a few rows of the form that the pinned ones have."""
    problems = {
        "gsm8k": [(f"How many are {i} + 2?", f"{i} + 2 = {i + 2}\n#### {i + 2}") for i in range(8)],
        "math": [(f"Find $x^{i}$.", f"x^{i}") for i in range(4)],
    }
    files = {}
    for part, pairs in problems.items():
        rows = [{"question": question, "answer": answer} for question, answer in pairs]
        thinking = "<think>\nHmm, wait.\n</think>\n\nIt is {}."
        column = "deepseek-reasoner (question)"
        r1 = [row | {column: thinking.format(row["answer"]), "level": 1} for row in rows]
        distill = [row | {"model_answer": f"First.\n</think>\n\n{row['answer']}."} for row in rows]
        instruct = [row | {"model_answer": f" It is {row['answer']}. "} for row in rows]
        if part == "gsm8k":  # the others' rows are in another order, and name the problem
            r1[3][column] = "Error after 6 attempts: Error code: 500"
            distill, instruct = distill[::-1], instruct[3:] + instruct[:3]
        else:  # and here they do not
            for row in distill + instruct:
                del row["question"]
        for name, answers in (("deepseekR1", r1), ("DSQ", distill), ("Qwen32", instruct)):
            files[f"response/{part}/normal/{name}/response.json"] = json.dumps(answers)
    taught = [f"4+{i} = <<4+{i}={4 + i}>>{4 + i}\n#### {4 + i}" for i in range(3)]
    lines = [json.dumps({"question": f"{i}?", "answer": answer}) for i, answer in enumerate(taught)]
    files["grade_school_math/data/train.jsonl"] = "\n".join([*lines, ""])
    files["data/wikitext-2-raw/wiki.test.raw"] = WIKI
    safety = {"question": "May I?", "response": "<think>\nThe policy…\n</think>\n\nNo."}
    files["data/STAR-1.json"] = json.dumps([safety])
    return files


def write_registry(place: Path, files: dict[str, str]) -> Path:
    """The files under ``place/held`` as a cache has them, and the list of them."""
    lines = ["repository\tcommit\tpath\tsha256"]
    for path, text in files.items():
        file = place / "held" / "some" / "name" / COMMIT / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        lines.append(f"some/name\t{COMMIT}\t{path}\t{hashlib.sha256(text.encode()).hexdigest()}")
    (place / "registry.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place / "registry.tsv"


@pytest.fixture
def held(repository, monkeypatch):
    """The small registry's files in the folder that the variable names; no other host is reached."""
    monkeypatch.setattr(real_text, "REGISTRY", write_registry(repository, pinned()))
    monkeypatch.setattr(real_text, "HOST", "http://127.0.0.1:9/")
    monkeypatch.setenv(real_text.CACHE, str(repository / "held"))
    return repository / "held" / "some" / "name" / COMMIT


def test_rows_have_what_is_promised(held):
    folder = make_rows()
    written = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.jsonl")}
    assert written == set(NAMES)
    for kind in ("thinking", "plain"):  # folders that are read as a dataset
        rows = open_texts(TextSource(dataset=str(folder / kind), domain="domain", split_column="split"))
        assert len(rows.rows) == sum(len(read_rows(name)) for name in NAMES if name.startswith(kind))


def test_splits_do_not_depend_on_the_order():
    problems = [f"problem {i}" for i in range(400)]
    splits = splits_of(problems)
    assert splits == splits_of(problems[::-1] + problems[:7])
    assert Counter(splits.values()) == {"training": 200, "selection": 100, "evaluation": 100}


def test_answers_are_of_their_problem(held):
    rows = {name: {row["problem"]: row for row in read_rows(name)} for name in ANSWERS}
    for problem, known in rows["problems"].items():
        for name in ANSWERS[:3]:
            if row := rows[name].get(problem):
                assert row["split"] == known["split"]  # whoever answered
                assert row["text"].startswith(f"{problem}\n") and known["answer"] in row["solution"]
                assert row["text"].endswith(row["solution"]) and row["domain"] == known["domain"]
                assert row["text"].count("<think>") == row["text"].count("</think>") == ("plain" not in name)
    # R1's request that failed is in no file of its own, and the problem in all others
    assert set(rows["problems"]) - set(rows[NAMES[0]]) == {"How many are 3 + 2?"}
    assert all(len(rows[name]) == 12 for name in ANSWERS[1:])
    assert rows["problems"]["How many are 3 + 2?"]["answer"] == "5"
    assert "\n<think>\nHmm, wait.\n</think>\n\nIt is" in rows[NAMES[0]]["Find $x^2$."]["text"]
    # the marks of a calculator are gone
    taught = [row["solution"] for row in read_rows("plain/gsm8k")]
    assert taught == [f"4+{i} = {4 + i}\nAnswer: {4 + i}" for i in range(3)]


def test_sections_carry_their_article_and_no_marks(held):
    rows = read_rows("plain/wikitext-2")
    ships = "Ise-class battleship"
    assert [row["problem"] for row in rows] == [ships, ships, "Du Fu", "Du Fu"]
    assert rows[0]["text"] == (
        '= Ise-class battleship =\nThe two ships cost £1,000 (or so), he said: "They don\'t sink."'
    )
    # a line of a formula is no title, and a section of headings alone is none
    assert rows[1]["text"].startswith("= = Design = =\n= = = Armour = = =\nIt weighed 2.5 tons; where")
    assert rows[1]["text"].endswith("\n= 1 henry and capacitance C =\n1 farad.")
    assert len({(row["problem"], row["split"]) for row in rows}) == 2


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_what_is_not_the_pinned_file_is_one_sentence_and_nothing_is_written(held, repository, damage):
    file = held / "data" / "STAR-1.json"
    file.write_text("[]")
    if damage == "missing":
        file.unlink()
    with pytest.raises(UserError, match=rf"some/name/{COMMIT}/data/STAR-1\.json cannot be fetched") as raised:
        make_rows()
    assert f"run this where http://127.0.0.1:9/ can be reached, or let {real_text.CACHE}" in str(raised.value)
    assert not (repository / real_text.ROWS).parent.exists()
    assert damage == "missing" or file.read_text() == "[]"


def test_rows_of_other_code_are_made_again(held, repository):
    folder = make_rows()
    made, whole = folder / "made_from.json", contents(folder)
    old = (folder / "problems.jsonl").stat().st_mtime_ns
    assert make_rows() == folder and (folder / "problems.jsonl").stat().st_mtime_ns == old
    for stale in ("{", made.read_text().replace('"code": "', '"code": "0')):
        (folder / "problems.jsonl").write_text("old\n")
        made.write_text(stale)
        make_rows()
        assert contents(folder) == whole


def test_the_pinned_files(pinned_files, monkeypatch):
    monkeypatch.setattr(real_text, "HOST", "http://127.0.0.1:9/")
    of = {name: {row["problem"]: row["split"] for row in read_rows(name)} for name in ANSWERS}
    problems = of["problems"]
    assert [len(of[name]) for name in ANSWERS] == [633, 634, 634, 634]
    assert Counter(problems.values()) == {"training": 317, "selection": 159, "evaluation": 158}
    # GSM8K's training problems are none of these
    assert not {row["problem"] for row in read_rows("plain/gsm8k")} & set(problems)
    articles = {}
    for row in read_rows("plain/wikitext-2"):
        assert articles.setdefault(row["problem"], row["split"]) == row["split"]
    assert len(articles) == 60
