"""Tasks of lm-evaluation-harness itself (the extra ``harness``), on a model in memory, pruned or not."""

import copy
import functools
import operator
import random
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject

_once = functools.cache(operator.call)  # the harness reads 13,000 files to know its own tasks


def answered(subject: Subject, task: str, n: int | None, batch_size: int = 1) -> NDArray[np.bool_]:
    """Which of a task's first ``n`` documents (None: all) are answered rightly, zero-shot (``acc``) ``[n]``.

    ``task`` is a name of the harness', or the path of a task's YAML file. Batches are padded on the right,
    and what CLACT keeps may hang on padding and neighbours: only in batches of one is an answer the
    document's own. Criteria that see one token at a time (ACT, WINA, Amber) may have larger ones.
    Log-probabilities are rounded to the model's dtype, as the harness does by default. UserError: no
    harness, no such task, or one without an ``acc`` that is 0 or 1.
    """
    try:
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"The harness' tasks need lm-eval: `pip install -e '.[harness]'` ({error})."
        ) from error
    local = Path(task).is_file()
    manager = TaskManager(include_defaults=False) if local else _once(TaskManager)
    if not local and task not in manager.all_subtasks:
        told = "give one that `lm-eval ls subtasks` lists, or the path of a task's YAML file"
        raise UserError(f"The harness has no task {task!r}: {told}.")
    unfit = UserError(f"The harness' task {task!r} has no `acc` that is 0 or 1: choose one that has.")
    with torch.random.fork_rng(), ExitStack() as after:
        after.callback(random.setstate, random.getstate())
        after.callback(np.random.set_state, np.random.get_state())
        for seed, start in ((random.seed, 0), (np.random.seed, 1234), (torch.manual_seed, 1234)):
            seed(start)  # the harness' own: some tasks shuffle choices as they load
        loaded = manager.load([task])
        [(name, asked)] = loaded["tasks"].items()
        if "acc" not in asked.aggregation():
            raise unfit
        asked.set_config("num_fewshot", 0)
        asked.set_fewshot_seed(1234)  # tasks in Python want one even for no examples
        tokenizer = copy.deepcopy(subject.tokenizer)  # which is given a padding token where it has none
        model = HFLM(subject.model, tokenizer=tokenizer, batch_size=batch_size)
        samples = evaluate(model, loaded, limit=n, bootstrap_iters=0, log_samples=True)["samples"][name]
    found = [sample["acc"] for sample in samples if sample["filter"] == samples[0]["filter"]]
    if not set(found) <= {0, 1}:
        raise unfit
    return np.array(found, dtype=bool)
