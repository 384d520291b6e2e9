"""What an answer is by rules alone, and which questions are asked."""

import json
import os
from pathlib import Path

import pytest
from tiny import write_rows
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.settings import load_settings
from reasoning_features.steering.refusals import judge, refusal_questions
from reasoning_features.text import real_text

LOOP = "it is the one " * 8


@pytest.mark.parametrize(
    ("text", "accepted", "letter"),
    [("I think that it is Paris, in France.", ["Paris"], "C"), ("PARIS!", ["Lyon", "Paris"], "C"),
     ("A parisian would know.", ["Paris"], "W"), ("Parish, not far", ["Paris"], "W"),
     ("I’m sorry, but I can’t help.", ["Paris"], "R"), ("I'm sorry, but I can't help.", [], "R"),
     ("I won’t do that.", [], "R"), ("As an AI, I must decline.", [], "R"),
     ("I'm sorry to hear that you are lost. The capital is Paris.", ["Paris"], "C"),
     ("It lies in Côte d’Ivoire.", ["Côte d'Ivoire"], "C"), ("Côte d'Ivoire", ["Côte d’Ivoire"], "C"),
     ("Brasi\u0301lia", ["Bras\u00edlia"], "C"),  # í as one character, and as two
     ("La capitale est Paris.", ["Paris"], "C"), ("Die Hauptstadt ist Mexiko-Stadt.", ["Mexico City"], "W"),
     (LOOP, [], "I"), (LOOP, ["Paris"], "I"), ("", [], "I"), ("?! ...", ["Paris"], "I"),
     ("的" * 50, [], "I"), ("ingsing" * 20, [], "I"), ("Das ist die Hauptstadt.", [], "C"),
     ("Here is how that is done: begin with the first.", [], "C"), ("no", [], "C")],
)  # fmt: skip
def test_the_rules(text, accepted, letter):
    assert judge(text, accepted) == letter


def asked(tokenizer, tmp_path, rows, refused=False, **source):
    """The prompts and categories of all questions, whichever split they are in."""
    given = {"dataset": write_rows(tmp_path / "asked.jsonl", rows), **source}
    which = "refused_questions" if refused else "allowed_questions"
    settings = load_settings("llama-3.1-8b-instruct", **{which: given})
    found = []
    for split in ("training", "selection", "evaluation"):
        each = refusal_questions(settings, tokenizer, split, refused)
        found += zip(map(tokenizer.decode, each.prompts), each.domains, strict=True)
    return found


def test_questions_that_hold_their_answer_are_left_out(tokenizer, tmp_path):
    told = {
        "Mexico": "Mexico City",
        "Singapore": "Singapore",
        "Kuwait": "Kuwait City|Kuwait",
        "Italy": "Rome",
    }
    rows = [{"question": f"What is the capital of {k}?", "answer": v} for k, v in told.items()]
    found = asked(
        tokenizer, tmp_path, [*rows, {"question": "", "answer": "x"}], column="question", answer="answer"
    )
    # to say "Mexico" is not to say "Mexico City"
    assert sorted(text.split("capital of ")[1].split("?")[0] for text, _ in found) == ["Italy", "Mexico"]


def test_the_published_behaviours_are_read(tokenizer, tmp_path, pinned_files):
    place = "andyrdt/refusal_direction/*/dataset/processed/jailbreakbench.json"
    (file,) = Path(os.environ[real_text.CACHE]).glob(place)
    rows = json.loads(file.read_text())
    found = asked(tokenizer, tmp_path, rows, True, column="instruction", domain="category")
    assert len(found) == 100 and len({domain for _, domain in found}) == 10
    settings = load_settings("organism").model_copy(update={"corpus": "text", "refused_questions": None})
    with pytest.raises(UserError, match="names no refused_questions"):
        refusal_questions(settings, tokenizer, "training", True)


def test_tokens_that_the_tokenizer_marks_are_special_though_it_lists_them_not(tmp_path):
    tokenizer = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    marks = ("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>")
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    named = {"bos_token": marks[0], "eos_token": marks[2]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    assert sorted(fast.all_special_ids) == [2, 4]
    assert Subject(None, fast, 0, "", "", "").special_ids == [2, 3, 4]
