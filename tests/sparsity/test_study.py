"""What pruning does to a tiny model: windows, statistics and measures agree with plain passes."""

import numpy as np
import pytest
import torch

from reasoning_features.sparsity import study
from reasoning_features.sparsity.layers import linear_layers
from reasoning_features.sparsity.patterns import Pattern, Unstructured
from reasoning_features.sparsity.study import WEIGHTS, Setting, Workbench, as_table, measured
from reasoning_features.sparsity.zero_shot import Item

GRID = (
    Setting(Pattern(4, 4)), Setting(Pattern(2, 4)), Setting(Pattern(2, 4), correction="VAR"),
    Setting(Pattern(2, 4), correction="L-PTS"), Setting(Unstructured(0.5), WEIGHTS, "Wanda"),
    Setting(Pattern(2, 4), which=(1, 2)), Setting(Pattern(2, 4), which="mlp"),
)  # fmt: skip


@pytest.fixture(scope="module")
def workbench(tiny_subject):
    rng = torch.Generator().manual_seed(0)
    read, held_out = (torch.randint(2, 300, (4, 24), generator=rng) for _ in range(2))
    layers = linear_layers(tiny_subject.model)
    statistics = study.calibrate(tiny_subject.model, layers, read.split(1), keep=4)
    items = {"task": [Item((("Wait", " try"), ("Wait", " Hmm")), gold) for gold in (0, 1)]}
    return Workbench(tiny_subject, held_out, statistics, items)


def test_all_kept_is_the_dense_model_and_what_is_pruned_moves_away_from_it(workbench):
    dense = workbench.measured()
    found = [measured(workbench, GRID, shard) for shard in range(len(GRID))]
    assert dense["divergence"] == pytest.approx(np.zeros(4), abs=1e-6) and dense["task"].sum() == 1
    assert all(np.array_equal(found[0][name], dense[name]) for name in dense)
    for own in found[1:]:
        assert (own["divergence"] > 1e-4).all() and not np.array_equal(own["loss"], dense["loss"])
    again = workbench.measured()
    assert all(np.array_equal(again[name], dense[name]) for name in dense), "no trace is left"
    with torch.no_grad():
        loss = workbench.subject.model(workbench.windows[:1], labels=workbench.windows[:1]).loss
    assert dense["loss"][0] == pytest.approx(float(loss), rel=1e-5)
    table = as_table(GRID, found)
    assert len(table) == len(GRID) * (4 + 4 + 2) and not table.isna().any(axis=None)
    assert set(table["layers"]) == {"all", "mlp", "blocks 1 to 2"}
