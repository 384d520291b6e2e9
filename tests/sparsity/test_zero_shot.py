"""Zero-shot tasks: scores against a loop, and rows of the pinned files as the harness asks them."""

import pytest
import torch

from reasoning_features.errors import UserError
from reasoning_features.sparsity import zero_shot
from reasoning_features.sparsity.zero_shot import Item, correct, encode, load_items, log_likelihoods

REQUESTS = [
    ("3 + 4.", " is 7"),
    ("Wait, let me try ", "3"),
    ("Hmm", ", but 7 is wrong."),
    ("9", " is right."),
]


def by_loop(subject, context, continuation):
    whole = subject.tokenizer.encode(context + continuation)
    first, likeliest, total = len(subject.tokenizer.encode(context.rstrip())), True, 0.0
    for place in range(first, len(whole)):
        with torch.no_grad():
            logits = subject.model(torch.tensor([whole[:place]])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[whole[place]])
        likeliest &= int(logits.argmax()) == whole[place]
    return total, likeliest


def test_log_likelihoods_are_those_of_a_loop_whatever_the_batch(tiny_subject):
    wanted = [by_loop(tiny_subject, *request) for request in REQUESTS]
    for batch_tokens in (1, 4096):
        found, greedy = log_likelihoods(tiny_subject, REQUESTS, batch_tokens)
        assert found == pytest.approx([total for total, _ in wanted], rel=1e-5)
        assert greedy.tolist() == [likeliest for _, likeliest in wanted]


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(tiny_subject):
    whole, n = encode(tiny_subject.tokenizer, "Wait ", "perhaps")
    assert tiny_subject.tokenizer.decode(whole[-n:]) == " perhaps"


def test_the_likeliest_choice_is_taken_and_a_single_one_has_to_be_the_likeliest_text(tiny_subject):
    contexts = [("Wait", word) for word in (" try", " Hmm", " right")]
    best = int(log_likelihoods(tiny_subject, contexts, 4096)[0].argmax())
    items = [Item(tuple(contexts), gold) for gold in range(3)]
    assert correct(tiny_subject, items).tolist() == [gold == best for gold in range(3)]
    ids = torch.tensor([tiny_subject.tokenizer.encode("Wait")])
    likeliest = tiny_subject.model(ids).logits[0, -1].argmax()
    told = tiny_subject.tokenizer.decode([int(likeliest)])
    same = tiny_subject.tokenizer.encode("Wait" + told) == [*ids[0].tolist(), int(likeliest)]
    assert correct(tiny_subject, [Item((("Wait", told),), 0)]).tolist() == [same]


def test_rows_are_asked_as_the_harness_asks_them(pinned_files):
    arc, piqa, wino, lambada = (load_items(task, 2)[0] for task in zero_shot.FILES)
    assert arc.requests[1][0].startswith("Question: Which statement best") and arc.gold == 0
    assert arc.requests[1][0].endswith("food webs?\nAnswer:")
    assert arc.requests[3][1] == " The producers in all ecosystems are plants."
    assert (
        piqa.requests[0][0] == "Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:"
    )
    assert [context[-5:] for context, _ in wino.requests] == ["Sarah", "Maria"] and wino.gold == 1
    assert {continuation for _, continuation in wino.requests} == {" always got the easier cases."}
    assert lambada.requests[0][1] == " signs" and len(lambada.requests) == 1
    assert load_items("PIQA", 1, start=1) == [load_items("PIQA", 2)[1]]
    with pytest.raises(UserError, match=r"no task 'MMLU': choose from ARC-easy, PIQA, WinoGrande, LAMBADA"):
        load_items("MMLU", 1)
