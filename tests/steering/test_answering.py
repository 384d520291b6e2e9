"""Steered answers: where the vector is added, what is paired, what is kept and what is made again."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WIDTH, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.models import sampling
from reasoning_features.models.conditions import UNSTEERED, Condition, feature_conditions
from reasoning_features.models.sampling import Rule
from reasoning_features.steering import answering
from reasoning_features.steering.answering import AnswerStore, answers
from reasoning_features.steering.questions import Questions
from reasoning_features.steering.token_rules import ForcedWait

PROMPTS = [[0, 5, 6], [0, 7, 8, 9, 10, 11], [0, 9], [0, 5, 6]]


def four(kept=None, engine="rows", pad=None):
    """Four questions, the first and the last alike."""

    def grade(numbers, written):
        return pd.DataFrame({"asked": list(numbers)})

    return Questions(PROMPTS, ["a"] * 4, 16, ("asked",), grade, engine, kept, pad)


def written(subject, questions, conditions, seed=3, **given):
    """New tokens of all answers, those unsteered first."""
    return answers(subject, questions, conditions, seed, progress=None, **given)["tokens"].tolist()


STRONG = Condition("strong", vector=40.0 * torch.eye(WIDTH)[2])
WAITS = Condition("waits", rule=ForcedWait((200, 201), 1, (7,)))


def test_a_prompt_beyond_the_context_is_told_before_it_is_asked(tiny_subject):
    long = replace(four(), prompts=[[5] * 120] * 4)
    with pytest.raises(UserError, match="do not fit into the model's context of 128"):
        answers(tiny_subject, long, [], seed=0, progress=None)


class Only(Rule):
    """Writes one token alone, and in every place the problem's number instead where asked to."""

    def __init__(self, token, numbers=False):
        self.token, self.numbers = token, numbers

    def logits(self, logits, rows, written):
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([self.token]), 0.0)

    def drawn(self, tokens, rows, written):
        return 20 + torch.tensor(rows) if self.numbers else tokens


def test_rules_change_their_own_condition_alone_and_a_batch_changes_nothing(tiny_subject, monkeypatch):
    conditions = [
        Condition("ten", rule=Only(10)),
        Condition("none", 4, 0.0, torch.zeros(WIDTH)),
        Condition("numbers", rule=Only(10, numbers=True)),
        STRONG,
    ]
    monkeypatch.setattr(answering, "BATCH", 5)
    frame = answers(tiny_subject, four(), conditions, seed=3, progress=None)
    assert frame["condition"].unique().tolist() == [UNSTEERED, *(c.name for c in conditions)]
    assert frame["problem"].tolist() == frame["asked"].tolist() == [0, 1, 2, 3] * 5
    by = frame.groupby("condition")["tokens"].apply(list)
    assert by["ten"] == [(10,) * 16] * 4
    assert by["numbers"] == [(20 + problem,) * 16 for problem in range(4)]
    assert by[UNSTEERED] == by["none"] == written(tiny_subject, four(), []) != by["strong"]
    monkeypatch.setattr(answering, "BATCH", 1)
    assert written(tiny_subject, four(), [STRONG])[4:] == by["strong"]
    assert by[UNSTEERED][0] != by[UNSTEERED][3]  # one prompt, two streams


def test_a_rule_that_remembers_may_be_shared_and_used_again(tiny_subject, monkeypatch):
    plain = sum(written(tiny_subject, four(), []), ())
    rule = ForcedWait((200, 201), 1, (max(set(plain), key=plain.count),))
    conditions = [Condition("one", rule=rule), replace(STRONG, rule=rule)]
    mixed = written(tiny_subject, four(), conditions)
    assert any(200 in tokens for tokens in mixed)
    monkeypatch.setattr(answering, "BATCH", 1)
    for i, condition in enumerate(conditions, start=1):
        assert written(tiny_subject, four(), [condition])[4:] == mixed[4 * i : 4 * i + 4]


def test_the_vector_is_added_everywhere_and_nothing_else(tiny_subject):
    vector, questions = torch.linspace(-1, 1, WIDTH), four()
    drawn = written(tiny_subject, questions, [Condition("c", 0, 1.0, vector)])[4]
    prompt = questions.prompts[0]
    tokens = torch.tensor([[*prompt, *drawn]])
    logits = tiny_subject.logits_with(tokens, lambda stream: stream + vector)
    assert not torch.allclose(logits, tiny_subject.logits(tokens))
    # under the edit each drawn token is in the nucleus of the edited logits
    chances = torch.softmax(logits[0, len(prompt) - 1 : -1].double() / 0.6, -1)
    own = chances[torch.arange(len(drawn)), torch.tensor(drawn)]
    assert ((chances * (chances > own[:, None])).sum(-1) < 0.95).all()


@pytest.fixture
def asked(monkeypatch):
    """Prompts that either engine was asked to continue."""
    seen = []
    for name in ("sample", "sample_continuously"):
        real = getattr(sampling, name)

        def counting(model, prompts, real=real, **given):
            seen.extend(prompts)
            return real(model, prompts, **given)

        monkeypatch.setattr(sampling, name, counting)
    return seen


def test_padding_and_keeping_change_no_answer_of_rows(tiny_subject, tmp_path):
    plain = written(tiny_subject, four(), [STRONG, WAITS])
    assert written(tiny_subject, four(tmp_path, pad=1), [STRONG, WAITS]) == plain
    assert written(tiny_subject, four(), [STRONG, WAITS], kept=tmp_path / "here") == plain


def test_an_answer_is_made_again_only_where_what_determines_it_changes(tiny_subject, tmp_path, asked):
    kept = four(tmp_path, pad=1)
    first = written(tiny_subject, kept, [])
    assert len(asked) == 4
    both = written(tiny_subject, kept, [STRONG])
    assert len(asked) == 8 and both[:4] == first
    assert written(tiny_subject, kept, [replace(STRONG, name="renamed")]) == both and len(asked) == 8
    for changed in (
        {"conditions": [replace(STRONG, vector=-STRONG.vector)]},
        {"conditions": [], "seed": 4},
        {"questions": replace(kept, prompts=[[0, 2], *PROMPTS[1:]]), "conditions": []},
    ):
        asked.clear()
        written(**({"subject": tiny_subject, "questions": kept} | changed))
        assert len(asked) == (1 if "questions" in changed else 4)


@pytest.mark.parametrize("engine", ["rows", "continuous"])
def test_every_end_of_the_models_configuration_ends_an_answer(tiny_subject, tmp_path, monkeypatch, engine):
    assert tiny_subject.ends == (1,)
    finishing = replace(four(tmp_path, engine), measures=("finished",))
    frame = answers(tiny_subject, finishing, [], seed=3, progress=None)
    assert frame["finished"].tolist() == [tokens[-1] == 1 for tokens in frame["tokens"]]
    monkeypatch.setattr(tiny_subject.model.generation_config, "eos_token_id", [frame["tokens"][0][2], 1])
    assert len(tiny_subject.ends) == 2
    frame = answers(tiny_subject, finishing, [], seed=3, progress=None)
    assert frame["finished"].tolist() == [tokens[-1] in tiny_subject.ends for tokens in frame["tokens"]]
    assert all(not set(tokens[:-1]) & set(tiny_subject.ends) for tokens in frame["tokens"])
    assert frame["finished"].any() and len(list(tmp_path.iterdir())) == 2  # answers by other ends are others


@pytest.mark.parametrize("engine", ["rows", "continuous"])
def test_an_interruption_keeps_what_has_finished(tiny_subject, tmp_path, monkeypatch, asked, engine):
    add, added = AnswerStore.add, []
    hooks = len(tiny_subject.hooked_block._forward_hooks)  # transformers leaves some of its own

    def breaking(self, *given):
        add(self, *given)
        added.append(given)
        if len(added) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswerStore, "add", breaking)
    with pytest.raises(KeyboardInterrupt):
        written(tiny_subject, four(tmp_path, engine, 1), [STRONG])
    asked.clear()
    again = written(tiny_subject, four(tmp_path, engine, 1), [STRONG])
    assert len(asked) == 5 and len(again) == 8
    if engine == "rows":
        assert again == written(tiny_subject, four(), [STRONG])
    assert tiny_subject.model.config._attn_implementation == "sdpa"
    assert len(tiny_subject.hooked_block._forward_hooks) == hooks


def test_continuous_answers_are_steered_and_rules_are_followed(tiny_subject):
    sae = signed_identity(WIDTH)
    clamp = feature_conditions(sae, [3], [20.0], np.ones(2 * WIDTH), clamp=True)[0]
    long = replace(four(engine="continuous"), max_new_tokens=30)
    frame = answers(tiny_subject, long, [STRONG, clamp, WAITS], 3, progress=None, sae=sae)
    by = frame.groupby("condition")["tokens"].apply(list)
    assert by["strong"] != by[UNSTEERED] and by[clamp.name] != by[UNSTEERED]
    assert by["waits"] == written(tiny_subject, replace(long, engine="rows"), [WAITS])[4:]


OF = {"model": "m", "seed": 0}


def test_kept_answers_are_found_by_prompt_and_stream_whichever_process_wrote_them(tmp_path, monkeypatch):
    store = AnswerStore(tmp_path, OF)
    store.add([1, 2], 0, [5, 6])
    store.add([1, 2], 1, [7])
    monkeypatch.setattr("os.getpid", lambda: -1)
    other = AnswerStore(tmp_path, OF)
    assert other.folder == store.folder != AnswerStore(tmp_path, OF | {"seed": 1}).folder
    assert (other.get([1, 2], 0), other.get([1, 2], 1), other.get([1], 0)) == ([5, 6], [7], None)
    other.add([1], 1, [6])
    files = sorted(store.folder.iterdir())
    assert len(files) == 2 and all(json.loads(file.read_text().splitlines()[0]) == OF for file in files)
    assert AnswerStore(tmp_path, OF).get([1], 1) == [6]


def test_a_torn_line_is_passed_over_and_does_not_spoil_the_next(tmp_path, capsys):
    store = AnswerStore(tmp_path, OF)
    store.add([1], 0, [5, 6])
    store.add([1], 1, [7, 8])
    (file,) = store.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    store = AnswerStore(tmp_path, OF)
    assert f"{file.name} is made again" in capsys.readouterr().err
    assert store.get([1], 1) is None
    store.add([1], 2, [9])
    again = AnswerStore(tmp_path, OF)
    assert [again.get([1], stream) for stream in range(3)] == [[5, 6], None, [9]]
    file.write_bytes(b'{"mod')
    AnswerStore(tmp_path, OF).add([1], 0, [5])
    assert AnswerStore(tmp_path, OF).get([1], 0) == [5]
