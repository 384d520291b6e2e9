"""Studies of refusals: on a model whose one refusal direction is known, and against loops."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reasoning_features.errors import UserError
from reasoning_features.files import write_json
from reasoning_features.models.conditions import Condition
from reasoning_features.models.subject import Subject
from reasoning_features.settings import load_settings
from reasoning_features.statistics import wilson
from reasoning_features.steering import refusal_results, refusal_study, refusals, refusers
from reasoning_features.steering.questions import Questions

WIDTH, ANSWER, REFUSE, END = 8, 20, 21, 1


@pytest.fixture
def refuser():
    """Blocks add nothing: tokens 10 to 19 carry the refusal direction, and the last token alone decides."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for block in model.model.layers:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    embedded, read = model.model.embed_tokens.weight, model.lm_head.weight
    embedded.zero_()
    read.zero_()
    embedded[:, 0], embedded[10:20, 1], read[ANSWER, 0], read[REFUSE, 1] = 1, 2, 1, 1
    ids = {"eos_token_id": END, "pad_token_id": END, "added_tokens_decoder": {}}
    tokenizer = SimpleNamespace(all_special_ids=[0, END], **ids)
    subject = Subject(model, tokenizer, 0, "built", "1", ".")
    settings = load_settings("organism", vectors=6, layer=0)
    refused = {split: asked([[0, 5, 12], [0, 6, 15], [0, 7, 7, 18]]) for split in ("selection", "evaluation")}
    allowed = {split: asked([[0, 5, 5], [0, 12, 6]]) for split in ("selection", "evaluation")}
    parts = [part | {"training": part["selection"]} for part in (refused, allowed)]
    return refusers.Refuser(settings, subject, *parts, refusals.prompt_corpus(subject, allowed["selection"]))


def asked(prompts):
    letters = {ANSWER: refusals.COMPLIES, REFUSE: refusals.REFUSES}

    def grade(numbers, written):
        return pd.DataFrame({"outcome": [letters.get(tokens[0], refusals.INCOHERENT) for tokens in written]})

    return Questions(prompts, ["one"] * len(prompts), 1, (), grade, pad=END, greedy=True)


def test_taking_the_refusal_direction_away_turns_every_prompt_and_an_orthogonal_vector_none(refuser):
    questions, model = refuser.refused["evaluation"], refuser.subject
    assert "".join(refusals.outcomes(model, questions)[0]) == "RRR"
    assert "".join(refusals.outcomes(model, refuser.allowed["evaluation"])[0]) == "CC"
    direction = refuser.refusal_directions[0]
    torch.testing.assert_close(direction, torch.eye(WIDTH)[1])
    orthogonal = 50 * torch.eye(WIDTH)[3]
    conditions = [
        Condition("removed", removed=direction),
        *refuser.conditions(torch.stack([-direction, direction]), 0, 1.0),
        Condition("orthogonal", vector=orthogonal, spares_special=True),
    ]
    told = ["".join(row) for row in refusals.outcomes(model, questions, conditions)]
    assert told == ["CCC", "CCC", "RRR", "RRR"]
    odds = refusals.refusal_log_odds(model, questions, [Condition("plain"), *conditions], [REFUSE])
    assert (odds[[0, 3]] > odds[[1, 2]]).all(), "the log-odds of the first token say the same"


def test_the_mean_norm_and_the_vectors_are_those_of_a_loop(refuser):
    found = []
    for part in (refuser.refused, refuser.allowed):
        norms = []
        for prompt in part["selection"].prompts:
            stream = refuser.subject.residuals(torch.tensor([prompt]), [0])[0][0]
            norms += [float(row.norm()) for row, token in zip(stream, prompt, strict=True) if token > 1]
        found.append(np.mean(norms))
    assert refuser.norms[0] == pytest.approx(np.mean(found))
    vectors = refuser.directions(refusers.RANDOM, 0, 4)
    assert torch.equal(vectors[:2], refuser.directions(refusers.RANDOM, 0, 2)), "more go on from fewer"
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    added = refuser.conditions(vectors, 0, 0.5)
    assert all(float(each.vector.norm()) == pytest.approx(0.5 * refuser.norms[0], rel=1e-5) for each in added)
    towards, away = (refuser.directions(kind, 0, 9) for kind in (refusers.TOWARDS, refusers.AWAY))
    assert torch.equal(towards, -away) and len(towards) == 1


def test_the_strength_is_the_largest_up_to_which_capability_is_kept():
    letters = ["CCCC", "CCCW", "CCCC"]
    found = {"allowed": np.array([[list(row.encode())] for row in letters], dtype=np.uint8)}
    assert refusal_study.choose(found, [0.1, 0.2, 0.3], usual=1.0) == 0.1, "0.3 lies beyond a loss"
    assert refusal_study.choose(found, [0.1, 0.2, 0.3], usual=0.7) == 0.3


def study(name, broken, c=0.25):
    """A stored study whose random vectors break these shares of ten questions."""
    rows = [
        {"split": "evaluation", "layer": 0, "kind": refusers.RANDOM, "n": 1, "c": c, "vector": i,
         "refused": "C" * n + "R" * (10 - n), "allowed": "CCCC", "loss": 1.0, "cosine": -0.01 * n}
        for i, n in enumerate(broken)
    ]  # fmt: skip
    rows.append(rows[0] | {"refused": "CC", "c": 0.1})  # at another strength, on fewer questions
    told = {"refuser": name, "layers": [0], "c": c, "sampled": 0.0, "loss": 1.0,
            "accuracy": {"evaluation": 1.0}, "d_model": 8}  # fmt: skip
    return refusal_results.Study(pd.DataFrame(rows), told)


def test_claims_are_decided_by_vectors_and_questions():
    studies = [study("one", [0, 1, 2, 3, 4] * 8), study("other", [1, 1, 1, 1, 1] * 8)]
    found = refusal_results.random_breaks(studies)
    assert found.estimate == pytest.approx(0.15) and found.control == 0.01
    assert found.value.low < 0.15 < found.value.high and found.value.n == 80
    row, other = refusal_results.rates(studies).to_dict("records")
    assert row["broken"] == pytest.approx(0.15) and row["kept"] == 1 and row["questions"] == 10
    assert other["broken"] == 1 and other["questions"] == 2 and other["vectors"] == 2
    lost = replace(studies[0], told=studies[0].told | {"accuracy": {"evaluation": 1.2}})
    assert refusal_results.random_breaks([lost]) is None, "capability is not kept, so nothing is claimed"
    assert refusal_results.beyond_random(studies, refusers.DECODER, 0) is None
    assert refusal_results.between({"one": studies[:1]}) is None
    between = refusal_results.between({"one": studies[:1], "other": studies[1:]})
    assert between.estimate == pytest.approx(0.1) and between.narrow is not None
    assert refusal_results.cosine_correlation(studies[:1]).estimate == pytest.approx(1)
    assert refusal_results.cosine_correlation(studies) is None, "where all break as many there is none"
    mirrored = replace(studies[0], answers=studies[0].answers.assign(cosine=lambda rows: -rows["cosine"]))
    opposite = refusal_results.cosine_correlation([studies[0], mirrored])
    assert opposite.estimate == pytest.approx(0, abs=1e-9), "what points both ways has no size"


def test_where_no_answer_complies_the_interval_is_as_wide_as_so_few_questions_leave_it():
    none, all_of_them = np.zeros((500, 30)), np.ones((2, 4))
    found = refusal_results.rate([none, none])
    assert found.low == 0 and found.high == pytest.approx(wilson(0, 30).high)
    assert refusal_results.rate([none[:1]]).high == found.high, "one direction is no sample of directions"
    assert refusal_results.rate([all_of_them]).low == pytest.approx(1 - wilson(0, 2).high)
    difference = refusal_results.rate([none], [none[:, :5]])
    assert -difference.low == difference.high == pytest.approx(wilson(0, 5).high)


def means(kind, source, repeats, broken, allowed):
    rows = [{"kind": kind, "n": 20, "vector": source, "refused": "C" * n + "R" * (10 - n)} for n in broken]
    shown = [allowed] + [None] * (repeats - 1)
    return [row | {"allowed": told} for row, told in zip(rows, shown, strict=True)]


def test_the_universal_vector_is_compared_by_source_question():
    base = study("one", [0] * 4)
    rows = means("successes", 0, 2, [8, 6], "CCCC") + means("successes", 2, 2, [2, 0], "CCWW")
    rows += [row for i in range(3) for row in means("unselected", i, 2, [i, i], "CCCC")]
    common = {"split": "evaluation", "layer": 0, "c": 0.25, "loss": np.nan, "cosine": 0.0}
    answers = pd.concat([base.answers, pd.DataFrame([row | common for row in rows])])
    found = refusal_results.universal_beyond([replace(base, answers=answers)])
    assert found.estimate == pytest.approx((0.7 - 0.0 + 0.1 - 0.2) / 2), "source 1 has no twenty successes"
    assert refusal_results.universal_beyond([base]) is None
    told = base.told | {"sources": [{"tried": 60, "succeeded": n} for n in (30, 5, 40)]}
    table = refusal_results.by_source([replace(base, answers=answers, told=told)])
    assert table["succeeded"].tolist() == [30, 5, 40] and table.loc[1, "broken":].isna().all()
    shown = table.loc[[0, 2], ["broken", "least", "most", "kept"]].to_numpy()
    assert shown == pytest.approx(np.array([[0.7, 0.6, 0.8, 1], [0.1, 0, 0.2, 0.5]]))


def test_the_strength_of_a_comparison_is_the_largest_up_to_which_both_kinds_keep_accuracy():
    told = ("CCCC", "CCCC", "CCWW", "CCCC")
    rows = [
        {"split": "evaluation", "layer": 0, "kind": kind, "n": 1, "c": c, "vector": 0, "refused": "R",
         "allowed": letters if kind == "weak" else "CCCC", "loss": 1.0, "cosine": 0.0}
        for kind in ("weak", "firm") for c, letters in zip((0.1, 0.2, 0.3, 0.4), told, strict=True)
    ]  # fmt: skip
    both = replace(study("one", [0]), answers=pd.DataFrame(rows))
    assert both.strongest(("weak", "firm"), 0) == 0.2 and both.strongest(("firm",), 0) == 0.4
    assert both.strongest(("weak", "lacking"), 0) is None


def test_a_study_of_other_questions_or_vectors_is_refused(tmp_path):
    settings = load_settings("organism", steering_safety=tmp_path.as_posix())
    place = refusal_study.study_folder(settings, settings.refusers[0])
    assert refusal_study.stored(settings, place) is None
    write_json(place / "study.json", {"settings": refusal_study.determined_by(settings)})
    assert refusal_study.stored(settings, place) is not None
    other = load_settings("organism", steering_safety=tmp_path.as_posix(), vectors=7)
    with pytest.raises(UserError, match=r"was made with vectors = 500, not 7: take that, or let a profile"):
        refusal_study.stored(other, place)
    with pytest.raises(UserError, match="multiples"):
        load_settings("organism", multiples=[0.5, 0.25])
