"""Answers by either engine: what steers them, what is kept, and what an interruption leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WIDTH, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import Condition, clamped_conditions
from reasoning_features.models.continuous import edited_everywhere, sample_continuously
from reasoning_features.models.sampling import sample
from reasoning_features.steering import generation
from reasoning_features.steering.answering import answers
from reasoning_features.steering.benchmarks import Questions
from reasoning_features.steering.generation import continuations
from reasoning_features.steering.token_rules import Bias, ForcedWait

PROMPTS = [[0, 5, 6], [0, 7, 8, 9, 10, 11], [0, 9], [0, 5, 6]]


def questions(kept=None, engine="rows", pad=None):
    def grade(numbers, written):
        return pd.DataFrame({"asked": list(numbers)})

    return Questions("four", PROMPTS, ["a"] * 4, 1, 16, ("asked",), grade, engine, kept, pad)


@pytest.fixture
def conditions():
    return [Condition("none"), Condition("strong", vector=40.0 * torch.eye(WIDTH)[2])]


def counted(monkeypatch):
    """Prompts that either engine was asked to continue."""
    asked = []
    for name in ("sample", "sample_continuously"):
        real = getattr(generation, name)

        def counting(model, prompts, real=real, **given):
            asked.extend(prompts)
            return real(model, prompts, **given)

        monkeypatch.setattr(generation, name, counting)
    return asked


def test_padding_and_keeping_change_no_answer_of_rows(tiny_subject, conditions, tmp_path):
    rule = Condition("waits", rule=ForcedWait((200, 201), 1, (7,)))
    plain = continuations(tiny_subject, questions(), [*conditions, rule], 3)
    assert continuations(tiny_subject, questions(pad=1), [*conditions, rule], 3) == plain
    assert continuations(tiny_subject, questions(tmp_path, pad=1), [*conditions, rule], 3) == plain
    assert plain[0] != plain[3]  # one prompt, two streams


def test_an_end_of_thinking_of_several_tokens_gives_way_when_it_is_whole():
    rule, written = ForcedWait((200, 201), 1, (7, 8, 9)), [[7, 8], [8, 8]]
    drawn = rule.drawn(torch.tensor([9, 9]), [0, 1], written)
    assert drawn.tolist() == [200, 9]
    assert rule.drawn(torch.tensor([5, 5]), [0, 1], [[7, 8, 200], [8, 8, 9]]).tolist() == [201, 5]
    assert rule.drawn(torch.tensor([9, 9]), [0, 1], [[7, 8], [7, 8]]).tolist() == [9, 200]
    bias = Bias({3: 1.0}, (7, 8))
    assert bias.logits(torch.zeros(3, 5), [0, 1, 2], [[7, 8, 1], [8, 7], []])[:, 3].tolist() == [0, 1, 1]


@pytest.mark.parametrize("engine", ["rows", "continuous"])
def test_no_answer_is_made_twice(tiny_subject, conditions, tmp_path, monkeypatch, engine):
    asked = counted(monkeypatch)
    first = continuations(tiny_subject, questions(tmp_path, engine, 1), conditions[:1], 3)
    assert len(asked) == 4
    both = continuations(tiny_subject, questions(tmp_path, engine, 1), conditions, 3)
    assert len(asked) == 8 and both[:4] == first
    renamed = [replace(each, name=f"{each.name} again") for each in conditions]
    assert continuations(tiny_subject, questions(tmp_path, engine, 1), renamed, 3) == both
    assert len(asked) == 8
    continuations(tiny_subject, questions(tmp_path, engine, 1), conditions[:1], 4)
    assert len(asked) == 12


@pytest.mark.parametrize("engine", ["rows", "continuous"])
def test_an_interruption_keeps_what_has_finished(tiny_subject, conditions, tmp_path, monkeypatch, engine):
    asked, add, written = counted(monkeypatch), generation.AnswerStore.add, []
    hooks = len(tiny_subject.hooked_block._forward_hooks)  # transformers leaves some of its own

    def breaking(self, *given):
        add(self, *given)
        written.append(given)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(generation.AnswerStore, "add", breaking)
    with pytest.raises(KeyboardInterrupt):
        continuations(tiny_subject, questions(tmp_path, engine, 1), conditions, 3)
    asked.clear()
    again = continuations(tiny_subject, questions(tmp_path, engine, 1), conditions, 3)
    assert len(asked) == 5 and len(again) == 8
    if engine == "rows":
        assert again == continuations(tiny_subject, questions(), conditions, 3)
    assert tiny_subject.model.config._attn_implementation == "sdpa"
    assert len(tiny_subject.hooked_block._forward_hooks) == hooks


def test_continuous_answers_are_the_likeliest_at_temperature_0(tiny_subject):
    model, found = tiny_subject.model, {}
    vector = 3.0 * torch.eye(WIDTH)[5]
    given = {"end": 1, "max_new_tokens": 20, "temperature": 0.0, "seed": 0, "ended": found.__setitem__}
    for change in (None, lambda stream: stream + vector):
        with edited_everywhere(tiny_subject.hooked_block, change):
            sample_continuously(model, PROMPTS, **given)
        for row, prompt in enumerate(PROMPTS):
            tokens = list(prompt)
            for token in found[row]:
                edit = change or (lambda stream: stream)
                logits = tiny_subject.logits_with(torch.tensor([tokens]), edit)[0, -1]
                assert logits[token] > logits.max() - 1e-3
                tokens.append(token)
            assert found[row][-1] == 1 or len(found[row]) == 20
    assert model.config._attn_implementation == "sdpa"


def test_continuous_answers_are_steered_and_rules_are_followed(tiny_subject, conditions, tmp_path):
    sae = signed_identity(WIDTH)
    clamp = clamped_conditions(sae, [3], [20.0], np.ones(2 * WIDTH))[0]
    rule = Condition("waits", rule=ForcedWait((200, 201), 1, (7,)))
    asked = replace(questions(engine="continuous"), max_new_tokens=30)
    frame = answers(tiny_subject, asked, [*conditions, clamp, rule], 3, progress=None, sae=sae)
    by = frame.groupby("condition")["tokens"].apply(list)
    assert by["strong"] != by["none"] and by[clamp.name] != by["none"]
    rows = answers(tiny_subject, replace(asked, engine="rows"), [rule], 3, progress=None)
    assert by["waits"] == rows.loc[rows["condition"] == "waits", "tokens"].tolist()


def test_a_prompt_beyond_the_context_is_told_by_either_engine(tiny_subject):
    for engine in ("rows", "continuous"):
        long = replace(questions(engine=engine), max_new_tokens=127)
        with pytest.raises(UserError, match="do not fit into the model's context of 128"):
            continuations(tiny_subject, long, [Condition("none")], 0)


def test_continuous_draws_as_often_as_rows(tiny_subject):
    model, many = tiny_subject.model, [[0, 5, 6]] * 400
    found = {}
    sample_continuously(model, many, end=1, max_new_tokens=1, seed=4, ended=found.__setitem__)
    rows = sample(model, many, end=1, max_new_tokens=1, seed=4)
    ours, theirs = (
        np.bincount([row[0] for row in given], minlength=300) / 400 for given in (list(found.values()), rows)
    )
    assert np.abs(ours - theirs).max() < 0.12
    assert set(np.flatnonzero(ours > 0.02)) <= set(np.flatnonzero(theirs > 0))
