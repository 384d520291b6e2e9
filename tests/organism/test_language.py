"""The organism's data: problems, words, traces, tokenizer and parser."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from transformers import AutoTokenizer

from reasoning_features.organism import language
from reasoning_features.organism.language import STEP_LABELS, Document, base_documents, reasoning_documents
from reasoning_features.organism.parser import LONGEST_PROMPT, decisions_of, parse, prompts
from reasoning_features.organism.problems import FAMILIES, SPLITS, problems, split_of
from reasoning_features.organism.training import LARGEST_NUMBER, encode_documents
from reasoning_features.paths import root

KAPPAS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def corpora() -> dict[float, list[Document]]:
    return {kappa: list(reasoning_documents(kappa, 2000, seed=3)) for kappa in KAPPAS}


@pytest.fixture(scope="module")
def tokenizer():
    """The shipped one."""
    return AutoTokenizer.from_pretrained(root() / "data" / "organism" / "models" / "base")


def prefix_of(line: str) -> str:
    return line.split(",")[0].lower()


def sentences(document: Document) -> list[tuple[str, str]]:
    """(label, text) of the sentences of a trace's thinking."""
    return [(s.label, s.text) for s in parse(document.text).sentences]


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_problem(family):
    questions = [{p.question for p in problems(split, family, 150)} for split in SPLITS]
    assert all(split_of(p) == split for split in SPLITS for p in problems(split, family, 20))
    assert not any(one & other for one, other in combinations(questions, 2))


def test_answers_are_right():
    for problem in [*problems("evaluation", None, 200), *problems("evaluation", None, 100, mixture="other")]:
        given = [int(x) for x in problem.question.replace(".", " ").replace(",", " ").split() if x.isdigit()]
        plain = {"largest": max, "smallest": min, "total": sum}
        if problem.family in plain:
            assert int(problem.answer) == plain[problem.family](given)
        else:
            assert eval(problem.answer) == given[0 if problem.family == "ops" else -1]
        if problem.family in ("pair", "times", "differ"):
            assert set(map(int, problem.answer.split()[::2])) <= set(given[:-1])
        assert sum(c.right for c in problem.candidates) == (1 if FAMILIES[problem.family].searches else 0)


def test_leans_share_the_information():
    # A slot that says "careful" with chance .8 or .2 carries (2·.8 − 1)·log(.8/.2) = .6·log 4 nats.
    assert language.jeffreys(0.8) == pytest.approx(0.6 * math.log(4))
    for kappa in KAPPAS:
        prefix, marker = language.leans(kappa)
        assert language.jeffreys(prefix) == pytest.approx(kappa * 0.6 * math.log(4), abs=1e-9)
        assert language.jeffreys(marker) == pytest.approx((1 - kappa) * 0.6 * math.log(4), abs=1e-9)
    assert language.leans(1.0) == pytest.approx((0.8, 0.5), abs=1e-6)


def test_couplings_differ_in_words_alone(corpora):
    for one, other in zip(corpora[0.0][:300], corpora[1.0][:300], strict=True):
        assert [label for label, _ in sentences(one)] == [label for label, _ in sentences(other)]
        assert (one.style, one.problem) == (other.style, other.problem)


def decisions(documents: list[Document]) -> dict[str, list[bool]]:
    """For going on and giving up: whether the decision's own sentence opens with a word of R."""
    found: dict[str, list[bool]] = {"on": [], "off": []}
    for document in documents:
        for kind, sentence, _ in decisions_of(document.text):
            if kind == "persistence":
                side = found["off" if sentence.label == "give up" else "on"]
                side.append(prefix_of(sentence.text) in language.MATCHED_CONTROLS)
    return found


def test_coupled_words_mark_persistence_and_decoupled_ones_say_nothing(corpora):
    found = [decisions(corpora[kappa]) for kappa in KAPPAS]
    shares = [np.mean(sides["on"]) - np.mean(sides["off"]) for sides in found]
    assert shares == sorted(shares) and shares[-1] > 0.2
    n_on, n_off = (len(found[0][side]) for side in ("on", "off"))
    assert n_on > 1500 and n_off > 500
    assert abs(shares[0]) < 3 * math.sqrt(0.25 / n_on + 0.25 / n_off)
    assert abs(np.mean(found[0]["on"]) - 0.5) < 0.03


@pytest.mark.parametrize("kappa", KAPPAS)
def test_every_step_has_words_of_r_and_their_controls_alike(corpora, kappa):
    found: dict[str, list[bool]] = {}
    counts: Counter[str] = Counter()
    for document in corpora[kappa]:
        for label, text in sentences(document):
            found.setdefault(label, []).append(prefix_of(text) in language.MATCHED_CONTROLS)
            counts[prefix_of(text)] += 1
    assert set(found) == set(language.OPENERS)
    assert all(0.2 <= np.mean(has) <= 0.8 for has in found.values())
    words = [counts[word] for word in language.MATCHED_CONTROLS]
    controls = [counts[control] for control in language.MATCHED_CONTROLS.values()]
    assert np.divide(words, controls) == pytest.approx(1, abs=0.3)  # some 300 of each
    assert sum(words) / sum(controls) == pytest.approx(1, abs=0.05)


def test_tokens(tokenizer):
    def n_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    assert all(n_tokens(f" {n}") == 1 for n in range(LARGEST_NUMBER + 1))
    assert sum(n_tokens(w[0].upper() + w[1:]) > 1 for w in language.MATCHED_CONTROLS) >= 2
    for word, control in language.MATCHED_CONTROLS.items():
        assert n_tokens(word.capitalize()) == n_tokens(control.capitalize())
    messages = [{"role": "user", "content": "Total 3 4 5."}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == language.prompt_text("Total 3 4 5.")


def test_labels_and_parser_agree_token_by_token(corpora, tokenizer):
    written = [d for d in base_documents(500, 8) if d.kind != "drill"]  # drills are no sentences
    others = reasoning_documents(0.5, 200, seed=3, mixture="other")
    documents = [*corpora[0.5][:500], *others, *written]
    agree = total = 0
    for document, encoded in zip(documents, encode_documents(tokenizer, documents), strict=True):
        assert len(encoded.ids) <= language.CONTEXT
        offsets = tokenizer.backend_tokenizer.encode(document.text, add_special_tokens=False).offsets
        spans = parse(document.text).spans
        ends = [end for _, end, _ in spans]
        said = [spans[np.searchsorted(ends, start, side="right")][2] for start, _ in offsets]
        agree += sum(STEP_LABELS[code] == label for code, label in zip(encoded.labels, said, strict=True))
        total += len(encoded.ids)
        pieces = [i for text, _ in document.pieces for i in tokenizer.encode(text, add_special_tokens=False)]
        assert pieces == encoded.ids.tolist()
        thought = document.text.partition("<think>")[2].partition("</think>")[0]
        assert tokenizer.decode(encoded.ids[encoded.thinking].tolist()) == thought
    assert agree / total >= 0.995


def test_prompts_leave_the_rest_of_the_context_to_the_answer(tokenizer):
    drawn = [*problems("evaluation", None, 300), *problems("evaluation", None, 300, mixture="other")]
    assert max(map(len, prompts(tokenizer, drawn))) <= LONGEST_PROMPT


def test_parser_says_when_it_does_not_understand():
    trace = parse(
        "<|bos|><|user|>Total 1 2 3.<|assistant|><think>\nWait, now add 1 + 2 = 3.\nWait wait 3.\n"
        "Hmm, so answer 6.\n</think>\n\\boxed{ 6 }<|eos|>"
    )
    assert [s.label for s in trace.sentences] == ["compute", None, "conclude"]
    assert trace.answer == "6" and not trace.parseable
    assert parse("<|bos|><|user|>Q<|assistant|><think>\nWait, now").answer is None
