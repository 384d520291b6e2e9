"""lm-evaluation-harness on a model in memory: what it answers, what it leaves alone, what a user is told."""

import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tiny import write_rows

from reasoning_features.errors import UserError
from reasoning_features.models.subject import load_subject
from reasoning_features.sparsity import harness
from reasoning_features.sparsity.harness import answered
from reasoning_features.sparsity.layers import linear_layers, sparse
from reasoning_features.sparsity.patterns import CRITERIA, Pattern
from reasoning_features.sparsity.zero_shot import correct, load_items

N = 12
ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}


@pytest.fixture
def lm_eval():
    """Skips where the extra is not installed."""
    return pytest.importorskip("lm_eval")


@pytest.fixture
def items(pinned_files):
    return load_items("ARC-easy", N)


@pytest.fixture
def task(items, tmp_path):
    """ARC-easy's first items as a local task: gives its file, with some of its lines changed."""

    def write(**changed):
        rows = [
            {
                "question": asked.requests[0][0],
                "choices": [c[1:] for _, c in asked.requests],
                "gold": asked.gold,
            }
            for asked in items
        ]
        told = {
            "task": "local_arc", "dataset_path": "json", "test_split": "test",
            "output_type": "multiple_choice",
            "dataset_kwargs": {
                "data_files": {"test": write_rows(tmp_path / "rows.jsonl", rows)},
                "cache_dir": str(tmp_path / "cache"),
            },
            "doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "gold",
            "metric_list": [ACC], "num_fewshot": 2,
        }  # fmt: skip
        file = tmp_path / "local_arc.yaml"
        file.write_text(yaml.safe_dump(told | changed))
        return str(file)

    return write


def test_answers_are_those_of_our_own_scoring_dense_and_pruned(lm_eval, task, items, tiny_subject):
    file = task()
    found = [answered(tiny_subject, file, None)]
    assert np.array_equal(found[0], correct(tiny_subject, items, batch_tokens=1))
    assert np.array_equal(answered(tiny_subject, file, 5), found[0][:5])
    for by in ("ACT", "CLACT, published", "Amber"):
        with sparse(linear_layers(tiny_subject.model), Pattern(1, 4), CRITERIA[by]):
            found.append(answered(tiny_subject, file, N))
            assert np.array_equal(found[-1], correct(tiny_subject, items, batch_tokens=1)), by
    with sparse(linear_layers(tiny_subject.model), Pattern(1, 4)):
        assert np.array_equal(answered(tiny_subject, file, N, batch_size=8), found[1])
    assert len({tuple(answers) for answers in found}) > 2, "pruning changes what is answered"
    assert np.array_equal(answered(tiny_subject, file, N), found[0])


def test_nothing_is_left_changed(lm_eval, task, tiny_llama, monkeypatch, tmp_path):
    subject = load_subject(str(tiny_llama), 1)
    subject.tokenizer.pad_token = None
    weights = {name: (weight, weight.clone()) for name, weight in subject.model.named_parameters()}
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)  # not what the harness begins with
    file, generators = task(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.chdir(empty)
    answered(subject, file, 2)
    assert not os.listdir(empty)
    assert random.getstate() == generators[0] and torch.equal(torch.get_rng_state(), generators[2])
    assert all(np.array_equal(*pair) for pair in zip(np.random.get_state(), generators[1], strict=True))
    assert subject.tokenizer.pad_token is None and not subject.model.training
    for name, weight in subject.model.named_parameters():
        own, values = weights[name]
        assert weight is own and weight.dtype == values.dtype and torch.equal(weight, values), name
        assert not weight.requires_grad
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_a_task_that_draws_its_documents_draws_the_same_each_time(lm_eval, task, tiny_subject, tmp_path):
    (tmp_path / "draws.py").write_text(
        "import random\n\n\ndef process_docs(docs):\n"
        "    return docs.select(random.sample(range(len(docs)), len(docs)))\n"
    )
    file = Path(task(process_docs="!"))
    file.write_text(file.read_text().replace("'!'", "!function draws.process_docs"))
    first = answered(tiny_subject, str(file), None)
    random.seed(5)
    assert np.array_equal(answered(tiny_subject, str(file), None), first)


def test_a_user_is_told_of_a_task_that_is_not_there_or_has_no_yes_and_no(
    lm_eval, task, tiny_subject, monkeypatch
):
    # in place of reading all of its tasks, which takes long
    monkeypatch.setattr(harness, "_once", lambda make: SimpleNamespace(all_subtasks=["piqa"]))
    with pytest.raises(UserError, match="The harness has no task 'mmlu': give one that"):
        answered(tiny_subject, "mmlu", 2)
    with pytest.raises(UserError, match=r"task '.*local_arc.yaml' has no `acc` that is 0 or 1: choose one"):
        answered(tiny_subject, task(metric_list=[ACC | {"metric": "acc_norm"}]), 2)
    file = Path(task(process_results="!"))
    file.with_name("half.py").write_text("def process_results(doc, results):\n    return {'acc': 0.5}\n")
    file.write_text(file.read_text().replace("'!'", "!function half.process_results"))
    with pytest.raises(UserError, match="has no `acc` that is 0 or 1"):
        answered(tiny_subject, str(file), 2)


def test_a_user_without_the_harness_is_told_how_to_get_it(tiny_subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        UserError, match=r"need lm-eval: `pip install -e '\.\[harness\]'` \(import of lm_eval"
    ):
        answered(tiny_subject, "piqa", 2)
