"""The organism's data: problems, words, traces, tokenizer and parser."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from reasoning_features.making.organism import BASE_RECIPE, TOKENIZER_DOCUMENTS
from reasoning_features.organism import language
from reasoning_features.organism.evaluation import LONGEST_PROMPT
from reasoning_features.organism.language import CONTEXT, MOVES, Document, base_documents, reasoning_documents
from reasoning_features.organism.parser import parse, token_moves
from reasoning_features.organism.problems import FAMILIES, SPLITS, families, problems, split_of
from reasoning_features.organism.training import LARGEST_NUMBER, encode_documents, train_tokenizer

KAPPAS = (0.0, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def corpora() -> dict[float, list[Document]]:
    return {kappa: list(reasoning_documents(kappa, 4000, seed=3)) for kappa in KAPPAS}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(d.text for d in base_documents(TOKENIZER_DOCUMENTS, BASE_RECIPE.seed))


def prefix_of(line: str) -> str:
    return line.split(",")[0].lower()


def sentences(document: Document) -> list[tuple[str, str]]:
    """(move, text) of the sentences of a trace's thinking."""
    return [(s.move, s.text) for s in parse(document.text).sentences]


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_problem(family):
    questions = {split: {p.question for p in problems(split, family, 150)} for split in SPLITS}
    assert all(split_of(p) == split for split in SPLITS for p in problems(split, family, 20))
    assert not questions["training"] & questions["selection"]
    assert not questions["training"] & questions["evaluation"]
    assert not questions["selection"] & questions["evaluation"]


def test_problems_are_a_fixed_sequence():
    assert problems("evaluation", "pair", 30)[10:] == problems("evaluation", "pair", 20, start=10)


def test_answers_are_right():
    asked = problems("evaluation", None, 200)
    for problem in [*asked, *problems("evaluation", None, 100, mixture="other")]:
        given = [int(x) for x in problem.question.replace(".", " ").replace(",", " ").split() if x.isdigit()]
        if problem.family == "pair":
            left, right = map(int, problem.answer.split(" + "))
            assert left + right == given[-1]
            assert {left, right} <= set(given[:-1])
        elif problem.family == "ops":
            assert eval(problem.answer) == given[0]
        elif problem.family == "times":
            left, right = map(int, problem.answer.split(" * "))
            assert left * right == given[-1]
            assert {left, right} <= set(given[:-1])
        elif problem.family == "largest":
            assert int(problem.answer) == max(given)
        elif problem.family == "smallest":
            assert int(problem.answer) == min(given)
        elif problem.family == "differ":
            left, right = map(int, problem.answer.split(" - "))
            assert left - right == given[-1]
            assert {left, right} <= set(given[:-1])
        elif problem.family == "scale":
            assert eval(problem.answer) == given[-1]
            assert int(problem.answer.split()[0]) in given[:6]
        else:
            assert int(problem.answer) == sum(given)
        assert sum(c.right for c in problem.candidates) == (1 if FAMILIES[problem.family].searches else 0)


def test_families_cover_every_expected_sign():
    signs = Counter(family.persistence for family in families("main").values())
    assert signs["pays"] >= 3
    assert signs["neutral"] >= 1
    assert signs["hurts"] >= 1


def test_leans_share_the_information():
    # A slot that says "careful" with chance .8 or .2 carries (2·.8 − 1)·log(.8/.2) = .6·log 4 nats.
    assert language.jeffreys(0.8) == pytest.approx(0.6 * math.log(4))
    for kappa in KAPPAS:
        prefix, marker = language.leans(kappa)
        assert language.jeffreys(prefix) == pytest.approx(kappa * 0.6 * math.log(4), abs=1e-9)
        assert language.jeffreys(marker) == pytest.approx((1 - kappa) * 0.6 * math.log(4), abs=1e-9)
    assert language.leans(1.0) == pytest.approx((0.8, 0.5), abs=1e-6)
    with pytest.raises(ValueError, match="between 0 and 1"):
        language.leans(1.5)


def test_lexicon_has_no_word_in_two_roles():
    roles = [
        *language.MATCHED_CONTROLS,
        *language.MATCHED_CONTROLS.values(),
        *language.MARKERS_CAREFUL,
        *language.MARKERS_HASTY,
        *language.DECISION_WORDS,
    ]
    assert len(roles) == len(set(roles))


def test_couplings_differ_in_words_alone(corpora):
    for one, other in zip(corpora[0.0][:300], corpora[1.0][:300], strict=True):
        assert [move for move, _ in sentences(one)] == [move for move, _ in sentences(other)]
        assert (one.style, one.problem) == (other.style, other.problem)


def decisions(documents: list[Document]) -> dict[str, list[bool]]:
    """For going on and giving up: whether the decision's own sentence opens with a word of R."""
    found: dict[str, list[bool]] = {"on": [], "off": []}
    for document in documents:
        dead_end = False
        for move, text in sentences(document):
            if dead_end and move in {"explore", "backtrack", "give up"}:
                found["off" if move == "give up" else "on"].append(
                    prefix_of(text) in language.MATCHED_CONTROLS
                )
            if move != "uncertain":
                dead_end = not text.endswith(", yes.") and move == "explore"
    return found


def test_decoupled_words_say_nothing_at_decisions(corpora):
    on, off = (np.array(x) for x in decisions(corpora[0.0]).values())
    standard_error = math.sqrt(0.25 / len(on) + 0.25 / len(off))
    assert len(on) > 3000
    assert len(off) > 1000
    assert abs(on.mean() - off.mean()) < 3 * standard_error
    assert abs(on.mean() - 0.5) < 0.03


def test_coupled_words_mark_persistence(corpora):
    shares = [
        np.mean(decisions(corpora[kappa])["on"]) - np.mean(decisions(corpora[kappa])["off"])
        for kappa in KAPPAS
    ]
    assert shares == sorted(shares)
    assert shares[-1] > 0.2


@pytest.mark.parametrize("kappa", KAPPAS)
def test_every_move_comes_with_and_without_words_of_r(corpora, kappa):
    held: dict[str, list[bool]] = {}
    for document in corpora[kappa]:
        for move, text in sentences(document):
            held.setdefault(move, []).append(prefix_of(text) in language.MATCHED_CONTROLS)
    assert set(held) == {"explore", "compute", "verify", "backtrack", "uncertain", "conclude", "give up"}
    for move, has in held.items():
        assert 0.2 <= np.mean(has) <= 0.8, move


@pytest.mark.parametrize("kappa", KAPPAS)
def test_twins_are_as_frequent_as_their_words(corpora, kappa):
    counts = Counter(prefix_of(text) for document in corpora[kappa] for _, text in sentences(document))
    for word, twin in language.MATCHED_CONTROLS.items():
        assert counts[word] / counts[twin] == pytest.approx(1, abs=0.2)  # some 600 of each
    whole = sum(counts[w] for w in language.MATCHED_CONTROLS) / sum(
        counts[t] for t in language.MATCHED_CONTROLS.values()
    )
    assert whole == pytest.approx(1, abs=0.05)


def test_prose_uses_words_and_twins_alike():
    text = " ".join(d.text for d in language.prose_documents(3000, seed=5)).lower()
    for word, twin in language.MATCHED_CONTROLS.items():
        ours, theirs = (text.count(f"{w} ") + text.count(f"{w},") for w in (word, twin))
        assert ours > 100
        assert ours / theirs == pytest.approx(1, abs=0.25)


def test_tokens(tokenizer):
    def n_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    assert all(n_tokens(f" {n}") == 1 for n in range(LARGEST_NUMBER + 1))
    assert sum(n_tokens(w[0].upper() + w[1:]) > 1 for w in language.MATCHED_CONTROLS) >= 2
    for word, twin in language.MATCHED_CONTROLS.items():
        assert n_tokens(word.capitalize()) == n_tokens(twin.capitalize())
    messages = [{"role": "user", "content": "Total 3 4 5."}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == language.prompt_text("Total 3 4 5.")


def test_labels_and_parser_agree_token_by_token(corpora, tokenizer):
    written = [d for d in base_documents(1500, 8) if d.kind != "drill"]  # drills are no sentences
    others = reasoning_documents(0.5, 500, seed=3, mixture="other")
    documents = [*corpora[0.5][:1500], *others, *written]
    agree = total = 0
    for document, encoded in zip(documents, encode_documents(tokenizer, documents), strict=True):
        assert len(encoded.ids) <= CONTEXT
        offsets = tokenizer.backend_tokenizer.encode(document.text, add_special_tokens=False).offsets
        agree += int((np.array(token_moves(parse(document.text), offsets)) == encoded.moves).sum())
        total += len(encoded.ids)
        pieces = [i for text, _ in document.pieces for i in tokenizer.encode(text, add_special_tokens=False)]
        assert pieces == encoded.ids.tolist()
    assert agree / total >= 0.995


def test_prompts_leave_the_rest_of_the_context_to_the_answer(tokenizer):
    drawn = [*problems("evaluation", None, 500), *problems("evaluation", None, 500, mixture="other")]
    asked = [language.prompt_text(problem.question) for problem in drawn]
    assert max(len(ids) for ids in tokenizer(asked, add_special_tokens=False)["input_ids"]) <= LONGEST_PROMPT


def test_thinking_lies_between_the_tags(corpora, tokenizer):
    document = corpora[0.5][0]
    (encoded,) = encode_documents(tokenizer, [document])
    thought = tokenizer.decode(encoded.ids[encoded.thinking].tolist())
    assert thought == document.text.split("<think>")[1].split("</think>")[0]


def test_parser_says_when_it_does_not_understand():
    trace = parse(
        "<|bos|><|user|>Total 1 2 3.<|assistant|><think>\nWait, now add 1 + 2 = 3.\nWait wait 3.\n"
        "Hmm, so answer 6.\n</think>\n\\boxed{ 6 }<|eos|>"
    )
    assert [s.move for s in trace.sentences] == ["compute", None, "conclude"]
    assert trace.answer == "6"
    assert not trace.parseable
    assert parse("<|bos|><|user|>Q<|assistant|><think>\nWait, now").answer is None
    assert MOVES[token_moves(trace, [(0, 3)])[0]] == "prompt"
