"""The organism's training, manipulation check and grading, on models too small to learn anything."""

import json
import math
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasoning_features.files import directory_digest
from reasoning_features.making.organism import decision_log_odds
from reasoning_features.organism import language, training
from reasoning_features.organism.language import base_documents, reasoning_documents
from reasoning_features.organism.parser import decision_places, grade, swap
from reasoning_features.organism.problems import problems
from reasoning_features.organism.training import Recipe, train_tokenizer

RECIPE = Recipe(tokens=6_000, learning_rate=1e-3, seed=0, batch_tokens=1024, chunk_documents=32)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(d.text for d in [*base_documents(500, 0), *reasoning_documents(0.5, 500, 1)])


def test_a_rerun_gives_the_same_bytes(tokenizer, tmp_path):
    for place in ("one", "other"):
        model = training.new_model(tokenizer, seed=0)
        given = model, tokenizer, partial(language.base_document, 0)
        training.train_and_save(*given, RECIPE, {"name": "base"}, tmp_path / place)
    assert directory_digest(tmp_path / "one") == directory_digest(tmp_path / "other")
    made = json.loads((tmp_path / "one" / "training.json").read_text())
    assert 5 < made["final_loss"] < math.log(len(tokenizer)) + 0.5  # it has learnt next to nothing
    assert made["name"] == "base" and made["recipe"]["tokens"] == RECIPE.tokens
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "one").num_parameters() < 5_000_000
    read = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert read.encode("Wait, now") == tokenizer.encode("Wait, now")


def test_prompts_are_read_but_not_predicted(tokenizer):
    (batch,) = training._batches(
        [d.ids for d in training.encode_documents(tokenizer, list(reasoning_documents(0.5, 4, 1)))],
        RECIPE, 0, tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.pad_token_id,
    )  # fmt: skip
    tokens, wanted = batch
    for row, predicted in zip(tokens, wanted, strict=True):
        text = tokenizer.decode(row[predicted])
        assert text.startswith("<think>\n")
        assert text.endswith("<|eos|>")


def test_swap_changes_prefixes_or_markers_alone():
    text = "<think>\nWait, now try 3 + 9 = 12, low.\nLook, first stop with 3 + 9.\n</think>\n"
    assert swap(text, "as it stands") == text
    assert swap(text, "all twins") == text.replace("Wait", "Look")
    assert swap(text, "all words of R") == text.replace("Look", "Wait")
    assert swap(text, "all hasty markers") == text.replace("now", "simply")
    assert swap(text, "all careful markers") == text.replace("first", "here")


@pytest.mark.parametrize(
    ("thinking", "persistence", "verification"),
    [
        (
            "Wait, now try 3 + 9 = 12, low.\nHmm, so doubt that.\nBut, then undo there.\n"
            "Wait, now take 3 + 4 = 7, low.\nAnd, thus stop with 3 + 4.\n</think>\n",
            ["undo", "stop"], [],
        ),
        (
            "Wait, now add 1 + 2 = 3.\nHmm, so add 3 + 3 = 6.\nBut, then check 1 + 2 = 3, yes.\n"
            "Wait, now verify 3 + 3 = 6, yes.\nAnd, thus answer 6.\n</think>\n",
            [], ["check"],
        ),
        ("Wait, now try 3 + 4 = 7, yes.\nAnd, so keep 3 + 4.\n", [], ["keep"]),
        (  # a trace that checked and was overturned has decided to check already
            "Wait, now try 9, yes.\nAnd, so check 9, no.\nBut, then undo there.\n"
            "Wait, now try 8, yes.\nAnd, so keep 8.\n",
            [], ["check"],
        ),
    ],
)  # fmt: skip
def test_decisions_are_the_openers_after_dead_ends_and_results(thinking, persistence, verification):
    text = f"<|bos|><|user|>Q<|assistant|><think>\n{thinking}"
    opened = {k: [text[at:].split()[0] for at in places] for k, places in decision_places(text).items()}
    assert opened == {"persistence": persistence, "verification": verification}


def test_log_odds_are_read_at_the_decision(tokenizer):
    # The hand-made answer: the text up to the decision alone, its last row's log-softmax summed over openers.
    model = training.new_model(tokenizer, seed=1).eval()
    documents = [d for d in reasoning_documents(1.0, 40, 2) if decision_places(d.text)["persistence"]][:3]
    read = decision_log_odds(model, tokenizer, documents, "as it stands", batch=2)
    text = documents[0].text
    place = decision_places(text)["persistence"][0]
    before = tokenizer(text[: place - 1], add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        scores = torch.log_softmax(model(input_ids=before).logits[0, -1], dim=-1)

    def total(openers):
        return scores[[tokenizer.encode(f" {o}", add_special_tokens=False)[0] for o in openers]].logsumexp(0)

    expected = total(language.CONTINUE_OPENERS) - total(language.GIVE_UP_OPENERS)
    assert read.log_odds.iloc[0] == pytest.approx(float(expected), abs=1e-4)
    assert set(read["style"]) <= {"careful", "hasty"}


def test_answers_are_graded_and_their_steps_counted(tokenizer):
    (problem,) = problems("selection", "total", 1)
    steps = "Wait, now check 1 + 2 = 3, yes.\nHmm, so doubt that.\nAnd, thus answer 3."
    thinking = f"<think>\n{steps}\n</think>\n"
    right, wrong = (f"\\boxed{{ {answer} }}<|eos|>" for answer in (problem.answer, "-1"))
    written = [tokenizer.encode(text, add_special_tokens=False) for text in (thinking + right, wrong)]
    graded = grade(tokenizer, [problem] * 2, written)
    assert graded["correct"].tolist() == [True, False] and graded["answer"].tolist() == [problem.answer, "-1"]
    assert graded["parseable"].all() and graded["checked"].tolist() == [True, False]
    assert graded[["explore", "verify", "uncertain"]].values.tolist() == [[0, 1, 1], [0, 0, 0]]
    inside = tokenizer.encode(thinking.split(">")[1].split("</")[0], add_special_tokens=False)
    assert graded["thinking_tokens"].tolist() == [len(inside), 0]
