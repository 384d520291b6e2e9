"""Per-token numbers are the model's own, and means by group are weighted by tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.token_statistics import (
    grouped_means,
    means_by_place_and_move,
    token_table,
)
from reasoning_features.text.corpus import Corpus


def test_a_token_has_the_loss_of_predicting_it(tiny_subject: Subject, tiny_corpus: Corpus) -> None:
    table = token_table(tiny_subject, tiny_corpus, [0, 1], 90)
    assert len(table) == int((~tiny_corpus.special).sum())
    assert not table.isna().to_numpy().any()  # the only token that nothing predicts, BOS, is special
    ids = torch.from_numpy(tiny_corpus.document(5)).long()[None]
    log_probabilities = tiny_subject.logits(ids).log_softmax(-1)[0]
    rows = table[table["document"] == 5].set_index("position")
    assert rows["loss"][3] == pytest.approx(-float(log_probabilities[2, ids[0, 3]]), rel=1e-4)
    norms = tiny_subject.residuals(ids, [1])[1][0].norm(dim=-1)
    assert rows["norm 1"][3] == pytest.approx(float(norms[3]), rel=1e-4)
    assert rows["move"][3] == tiny_corpus.move_names[tiny_corpus.moves[tiny_corpus.starts[5] + 3]]


def test_grouped_means_by_hand() -> None:
    # group a: 1, 2, 6 (two documents), mean 3; group b: 10; the row without a value is left out
    table = pd.DataFrame(
        {
            "document": [0, 0, 1, 1, 1],
            "group": ["a", "a", "a", "b", "b"],
            "value": [1.0, 2.0, 6.0, 10.0, np.nan],
        }
    )
    means = grouped_means(table, "value", "group").set_index("group")
    assert means["mean"].tolist() == [3.0, 10.0]
    assert means["tokens"].tolist() == [3, 1]
    # a's resamples are 1.5 (document 0 twice), 3 or 6; b is 10 whenever document 1 is drawn
    assert (means["low"]["a"], means["high"]["a"]) == (1.5, 6.0)
    assert (means["low"]["b"], means["high"]["b"]) == (10.0, 10.0)


def test_means_by_place_and_move() -> None:
    table = pd.DataFrame(
        {"document": [0, 0, 0], "position": [1, 15, 16], "move": ["a", "b", "b"], "loss": [1.0, 3.0, 5.0]}
    )
    means = means_by_place_and_move(table, "loss").set_index(["by", "group"])["mean"]
    assert means.to_dict() == {("position", 0): 2, ("position", 16): 5, ("move", "a"): 1, ("move", "b"): 4}
    unlabelled = means_by_place_and_move(table.assign(move=None), "loss")
    assert unlabelled["by"].unique().tolist() == ["position"]
