"""All replaced gives all of the change back; after the last block the decision's token holds it all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import LAYERS, VOCABULARY, make_corpus

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.truth.decisions import Decisions
from reasoning_features.truth.patching import GROUPS, _masks, patch

CORPUS = make_corpus(8)
DOCUMENTS = np.array([0, 1, 1, 3, 4, 6])
DECISIONS = Decisions(
    name="persistence",
    corpus=CORPUS,
    positions=CORPUS.starts[DOCUMENTS] + np.array([3, 2, 4, 4, 3, 4]),
    documents=DOCUMENTS,
    styles=[""] * 6,
    towards=np.zeros(6, dtype=bool),
    positive=np.array([10, 11]),
    negative=np.array([20]),
)
OTHER = replace(
    CORPUS, tokens=np.where(CORPUS.special, CORPUS.tokens, (CORPUS.tokens + 7) % VOCABULARY).astype(np.int32)
)


def test_shares_that_must_be_all_or_nothing(tiny_subject: Subject) -> None:
    table = patch(tiny_subject, DECISIONS, OTHER, batch_tokens=12, n_resamples=200)
    assert len(table) == LAYERS * len(GROUPS)
    share = table.pivot(index="layer", columns="group", values="share")
    assert share["all"].to_numpy() == pytest.approx(1.0, abs=1e-4)
    # nothing is read from other tokens after the last block
    last = share.loc[LAYERS - 1]
    assert last["decision"] == last["opening"] == pytest.approx(1.0, abs=1e-4)
    assert last["before"] == pytest.approx(0.0, abs=1e-4)
    assert abs(share.loc[0, "decision"] - 1) > 0.001
    assert (table["low"] <= table["share"]).all() and (table["share"] <= table["high"]).all()
    assert set(table["traces"]) == {5} and set(table["decisions"]) == {6}
    # the batches' size changes nothing
    assert patch(tiny_subject, DECISIONS, OTHER, 4096, 200)["share"].to_numpy() == pytest.approx(
        table["share"].to_numpy(), abs=1e-3
    )


def test_groups_of_positions_by_hand() -> None:
    decision, opening, before, everything = _masks(torch.tensor([3]), torch.tensor([2]), 5)
    assert decision.int().tolist() == [[0, 0, 0, 1, 0]]
    assert opening.int().tolist() == [[0, 0, 1, 1, 0]]
    assert before.int().tolist() == [[1, 1, 0, 0, 0]]
    assert everything.int().tolist() == [[1, 1, 1, 1, 0]]


def test_what_cannot_be_patched_is_said(tiny_subject: Subject) -> None:
    with pytest.raises(UserError, match="the same tokens"):
        patch(tiny_subject, DECISIONS, CORPUS, 512)
    with pytest.raises(ValueError, match="equal lengths"):
        patch(tiny_subject, DECISIONS, make_corpus(8, seed=1), 512)
    with pytest.raises(UserError, match="at least one decision"):
        patch(tiny_subject, DECISIONS.select(np.array([], dtype=np.int64)), OTHER, 512)
