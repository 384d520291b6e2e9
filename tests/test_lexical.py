"""Token identity: best tokens and identity-only statistics, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reasoning_features.corpora import Corpus
from reasoning_features.errors import UserError
from reasoning_features.lexical import ClassSums, best_token, identity_statistics, token_classes
from reasoning_features.reason_score import SetSums, one_pass
from reasoning_features.word_masks import ALL, TokenSets

TOKENS = np.array([5, 7, 5, 7, 7, 9], dtype=np.int32)
CORPUS = Corpus("c", TOKENS, np.array([0, 4, 6]), np.zeros(6, bool), np.zeros(6, bool), ["a", "a"])
# feature 0 fires on token 5 alone, feature 1 on two of three 7s and on 9, feature 2 never
FEATURES = torch.tensor(
    [[1.0, 0, 0], [0, 2.0, 0], [3.0, 0, 0], [0, 4.0, 0], [0, 0, 0], [0, 6.0, 0]], dtype=torch.float64
)


class Through:
    cfg = SimpleNamespace(d_in=3)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x


def run(accumulator, parts=((0, 1, 2), (5, 4, 3))):
    batches = [SimpleNamespace(residual=FEATURES[list(p)], positions=torch.tensor(p)) for p in parts]
    one_pass(batches, Through(), [accumulator])
    return accumulator.result()


def test_classes_of_single_tokens_and_with_context():
    classes, ids = token_classes(CORPUS)
    assert ids.ravel().tolist() == [5, 7, 9] and classes.tolist() == [0, 1, 0, 1, 1, 2]
    classes, ids = token_classes(CORPUS, context=1)
    # pairs, -1 before a document: (-1,5) (5,7) (7,5) (5,7) | (-1,7) (7,9)
    assert ids.tolist() == [[-1, 5], [-1, 7], [5, 7], [7, 5], [7, 9]]
    assert classes.tolist() == [0, 2, 3, 2, 1, 4]


def test_best_token_by_hand():
    classes, ids = token_classes(CORPUS)
    statistics = run(ClassSums(classes, len(ids)))
    assert statistics.counts.tolist() == [2, 3, 1]
    assert statistics.sums.tolist() == [[4, 0, 0], [0, 6, 0], [0, 6, 0]]
    best = best_token(statistics)
    assert best["token_class"].tolist() == [0, 1, 0]
    # feature 1: active on 3 tokens, 2 of them 7s, of which there are 3: precision 2/3, recall 2/3
    assert best["precision"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert best["recall"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert best["f1"].tolist() == pytest.approx([1, 2 / 3, 0])


def test_identity_statistics_by_hand():
    # means by token: 5 → (2, 0, 0), 7 → (0, 2, 0), 9 → (0, 6, 0)
    # over all: 2·5, 3·7, 1·9 → (4, 12, 0), the true sums; over tokens {0, 1}: (2, 2, 0), where the true
    # sums are (1, 2, 0)
    masks = np.array([[1] * 6, [1, 1, 0, 0, 0, 0]], bool)
    classes, ids = token_classes(CORPUS)
    sets = TokenSets((ALL, "two"), masks)
    ours = identity_statistics(run(ClassSums(classes, len(ids))), classes, sets)
    assert ours.sums.tolist() == [[4, 12, 0], [2, 2, 0]] and ours.counts.tolist() == [6, 2]
    true = run(SetSums(sets.names, masks))
    assert true.sums.tolist() == [[4, 12, 0], [1, 2, 0]]


def test_classes_as_fine_as_tokens_change_nothing():
    # with every token its own class the means are the activations themselves
    masks = np.array([[1] * 6, [0, 1, 1, 0, 0, 1]], bool)
    sets = TokenSets((ALL, "three"), masks)
    ours = identity_statistics(run(ClassSums(np.arange(6), 6)), np.arange(6), sets)
    np.testing.assert_allclose(ours.sums, run(SetSums(sets.names, masks)).sums)


def test_no_activations():
    with pytest.raises(UserError, match="corpus is empty"):
        ClassSums(np.zeros(1, dtype=np.int64), 1).result()
