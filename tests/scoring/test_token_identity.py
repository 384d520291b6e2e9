"""Token identity: best tokens and identity-only statistics, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features.errors import UserError
from reasoning_features.scoring.feature_statistics import SetSums, one_pass
from reasoning_features.scoring.token_identity import BestTokens, IdentitySums, token_classes
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import ALL, TokenSets

TOKENS = np.array([5, 7, 5, 7, 7, 9], dtype=np.int32)
CORPUS = Corpus("c", TOKENS, np.array([0, 4, 6]), np.zeros(6, bool), np.zeros(6, bool), ["a", "a"])
# feature 0 fires on token 5 alone, feature 1 on two of three 7s and on 9, feature 2 never
FEATURES = torch.tensor(
    [[1.0, 0, 0], [0, 2.0, 0], [3.0, 0, 0], [0, 4.0, 0], [0, 0, 0], [0, 6.0, 0]], dtype=torch.float64
)


class Through:
    cfg, device = SimpleNamespace(d_in=3, d_sae=3), torch.device("cpu")

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
    accumulator = BestTokens(classes, len(ids))
    best = run(accumulator)
    assert best["token_class"].tolist() == [0, 1, 0]
    # feature 1: active on 3 tokens, 2 of them 7s, of which there are 3: precision 2/3, recall 2/3
    assert best["precision"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert best["recall"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert best["f1"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert accumulator.density.tolist() == pytest.approx([2 / 6, 3 / 6, 0])


def counted(most: int, batches: int = 20) -> tuple[BestTokens, np.ndarray, np.ndarray]:
    """Random features of random classes; three features are made to tell classes 4, 5 and 6."""
    rng = np.random.default_rng(0)
    classes, active = rng.integers(0, 40, size=4000), rng.random((4000, 12)) < 0.05
    for feature in range(3):
        active[:, feature] |= (classes == feature + 4) & (rng.random(4000) < 0.8)
    found = BestTokens(classes, 40, most)
    for part in np.array_split(np.arange(4000), batches):
        found.update(torch.from_numpy(active[part]).float(), torch.from_numpy(part))
    return found, classes, active


def test_best_tokens_against_the_whole_table():
    found, classes, active = counted(2**20)
    hits = np.array([[(active[classes == v, f]).sum() for f in range(12)] for v in range(40)])
    f1 = 2 * hits / (active.sum(0) + np.bincount(classes)[:, None])
    best = found.result()
    assert best["token_class"].tolist() == f1.argmax(0).tolist()
    np.testing.assert_allclose(best["f1"], f1.max(0))
    np.testing.assert_allclose(best["precision"], hits[f1.argmax(0), range(12)] / active.sum(0))


def test_best_tokens_in_little_memory():
    whole, few = counted(2**20)[0], counted(120)[0]
    assert len(whole._pairs) == 20 and sum(map(len, few._pairs)) < 120 + 4 * 40
    # what tells a feature is found all the same, and counted to the last token
    telling = [0, 1, 2]
    pd.testing.assert_frame_equal(few.result().loc[telling], whole.result().loc[telling])
    np.testing.assert_array_equal(few.density, whole.density)


def test_identity_statistics_by_hand():
    # means by token: 5 → (2, 0, 0), 7 → (0, 2, 0), 9 → (0, 6, 0)
    # over all: 2·5, 3·7, 1·9 → (4, 12, 0), the true sums; over tokens {0, 1}: (2, 2, 0), where the true
    # sums are (1, 2, 0)
    sets = TokenSets.of({ALL: np.ones(6, bool), "two": np.array([1, 1, 0, 0, 0, 0], bool)})
    classes, ids = token_classes(CORPUS)
    ours = run(IdentitySums(classes, len(ids), sets))
    np.testing.assert_allclose(ours.sums, [[4, 12, 0], [2, 2, 0]])
    assert ours.counts.tolist() == [6, 2]
    true = run(SetSums(sets))
    assert true.sums.tolist() == [[4, 12, 0], [1, 2, 0]]


def test_classes_as_fine_as_tokens_change_nothing():
    # with every token its own class the means are the activations themselves
    sets = TokenSets.of({ALL: np.ones(6, bool), "three": np.array([0, 1, 1, 0, 0, 1], bool)})
    ours = run(IdentitySums(np.arange(6), 6, sets))
    np.testing.assert_allclose(ours.sums, run(SetSums(sets)).sums)


def test_no_activations():
    sets = TokenSets.of({ALL: np.ones(1, bool)})
    for empty in (BestTokens(np.zeros(1, dtype=np.int64), 1), IdentitySums(np.zeros(1, np.int64), 1, sets)):
        with pytest.raises(UserError, match="corpus is empty"):
            empty.result()
