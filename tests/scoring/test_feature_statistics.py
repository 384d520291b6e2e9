"""Sums over sets of tokens, best tokens and token-identity sums: by hand, in parts, in pieces, merged."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import Positive, reversed_batches

from reasoning_features.errors import UserError
from reasoning_features.scoring import feature_statistics as passes
from reasoning_features.scoring.feature_statistics import Accumulator, BestTokens, FeatureStatistics, SetSums
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import ALL, TokenSets


def named(masks: np.ndarray) -> TokenSets:
    return TokenSets.of(dict(zip("abcd", masks, strict=True)))


def read(accumulator: Accumulator, activations: np.ndarray, *splits: int) -> Accumulator:
    passes.one_pass(reversed_batches(activations, *splits), Positive(activations.shape[1]), [accumulator])
    return accumulator


def grouped(
    activations: np.ndarray, masks: np.ndarray, groups: np.ndarray, *splits: int
) -> FeatureStatistics:
    return read(SetSums(named(masks), groups, int(groups.max()) + 1), activations, *splits).result()


def drawn(tokens: int, features: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random activations, four random sets, and groups of as many tokens."""
    rng = np.random.default_rng(tokens)
    masks = rng.random((4, tokens)) < 0.4
    return rng.normal(size=(tokens, features)), masks, np.repeat(np.arange(groups), tokens // groups)


def test_parts_merge_to_one_pass():
    activations, masks, groups = drawn(300, 7, 10)
    whole = grouped(activations, masks, groups, 100, 170)
    states = []
    for part in (slice(0, 130), slice(130, 300)):
        sums = SetSums(named(masks), groups, 10)
        sums.update(torch.from_numpy(activations[part]).relu(), torch.arange(300)[part])
        states.append(sums.state())
    for order in (states, states[::-1]):
        merged = SetSums(named(masks), groups, 10)
        for state in order:
            merged.merge(state)
        np.testing.assert_array_equal(merged.result().counts, whole.counts)
        np.testing.assert_allclose(merged.result().sums, whole.sums, rtol=1e-12)
    # groups add to the pass without groups
    plain = passes.accumulate(reversed_batches(activations), Positive(7), named(masks))
    np.testing.assert_allclose(whole.total().sums, plain.sums, rtol=1e-12)


def test_resample_equals_repeating_documents():
    activations, masks, groups = drawn(60, 3, 3)
    resampled = grouped(activations, masks, groups).weighted(np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    again = np.concatenate([np.arange(20), np.arange(20), np.arange(40, 60)])
    repeated = passes.accumulate(reversed_batches(activations[again]), Positive(3), named(masks[:, again]))
    np.testing.assert_allclose(resampled.sums[0], repeated.sums, rtol=1e-12)
    np.testing.assert_array_equal(resampled.counts[0], repeated.counts)
    assert resampled.sums.shape == (2, 4, 3)


@pytest.mark.parametrize("threshold", [-0.5, 2.5])  # two of three are active, and one of 160
def test_few_active_features_are_summed_as_many_are(monkeypatch, threshold):
    activations, masks, groups = drawn(120, 9, 3)
    activations = activations - threshold
    groups = np.random.default_rng(4).permutation(groups)
    sums = grouped(activations, masks, groups, 50)
    for group in range(3):
        members = masks & (groups == group)
        direct = members.astype(float) @ np.maximum(activations, 0)
        np.testing.assert_allclose(sums.sums[group], direct, rtol=1e-12)
        np.testing.assert_array_equal(sums.counts[group], members.sum(axis=1))
    monkeypatch.setattr("reasoning_features.scoring.feature_statistics._SPARSE", 0)  # all, zero or not
    np.testing.assert_allclose(grouped(activations, masks, groups, 50).sums, sums.sums, rtol=1e-12)


def test_an_autoencoder_of_another_width_and_a_corpus_without_tokens_are_told():
    with pytest.raises(UserError, match="takes 4 dimensions but the residual stream has 3"):
        passes.accumulate(reversed_batches(np.ones((6, 3))), Positive(4), named(np.ones((4, 6), bool)))
    sets, classes = TokenSets.of({ALL: np.ones(1, bool)}), np.zeros(1, dtype=np.int64)
    for empty in (SetSums(sets, classes, 1), BestTokens(classes, 1)):
        with pytest.raises(UserError, match="corpus is empty"):
            empty.result()


# of few active features, and of all
@pytest.mark.parametrize(("fill", "value"), [(0.0, np.nan), (1.0, np.nan), (0.0, np.inf)])
def test_a_sum_that_is_not_finite_names_its_feature(fill, value):
    (activations := np.full((200, 40), fill))[7, 3] = value
    sets, classes = named(np.ones((4, 200), bool)), np.zeros(200, dtype=np.int64)
    for sums in (SetSums(sets, classes, 1), passes.IdentitySums(classes, 1, sets)):
        with pytest.raises(UserError, match=r"sum of a feature's activations .* is not finite .*0, 3\]"):
            read(sums, activations).state()


# two documents; feature 0 fires on token 5 alone, feature 1 on two of three 7s and on 9, feature 2 never
TOKENS = np.array([5, 7, 5, 7, 7, 9], dtype=np.int32)
CORPUS = Corpus("c", TOKENS, np.array([0, 4, 6]), np.zeros(6, bool), np.zeros(6, bool), ["a", "a"])
FEATURES = np.array([[1.0, 0, 0], [0, 2, 0], [3, 0, 0], [0, 4, 0], [0, 0, 0], [0, 6, 0]])


def test_classes_of_single_tokens_and_with_context():
    classes, ids = passes.token_classes(CORPUS)
    assert ids.ravel().tolist() == [5, 7, 9] and classes.tolist() == [0, 1, 0, 1, 1, 2]
    classes, ids = passes.token_classes(CORPUS, context=1)
    # pairs, -1 before a document: (-1,5) (5,7) (7,5) (5,7) | (-1,7) (7,9)
    assert ids.tolist() == [[-1, 5], [-1, 7], [5, 7], [7, 5], [7, 9]]
    assert classes.tolist() == [0, 2, 3, 2, 1, 4]


def counted(most: int) -> tuple[BestTokens, np.ndarray, np.ndarray]:
    """Random features of random classes; three features are made to tell classes 4, 5 and 6."""
    rng = np.random.default_rng(0)
    classes, active = rng.integers(0, 40, size=4000), rng.random((4000, 12)) < 0.05
    for feature in range(3):
        active[:, feature] |= (classes == feature + 4) & (rng.random(4000) < 0.8)
    tokens = BestTokens(classes, 40, most)
    for part in np.array_split(np.arange(4000), 20):
        tokens.update(torch.from_numpy(active[part]).float(), torch.from_numpy(part))
    return tokens, classes, active


def test_best_tokens_against_the_whole_table():
    tokens, classes, active = counted(2**20)
    hits = np.array([[(active[classes == v, f]).sum() for f in range(12)] for v in range(40)])
    f1 = 2 * hits / (active.sum(0) + np.bincount(classes)[:, None])
    best = tokens.result()
    assert best["token_class"].tolist() == f1.argmax(0).tolist()
    np.testing.assert_allclose(best["f1"], f1.max(0))
    most = hits[f1.argmax(0), range(12)]
    np.testing.assert_allclose(best["precision"], most / active.sum(0))
    np.testing.assert_allclose(best["recall"], most / np.bincount(classes)[f1.argmax(0)])
    np.testing.assert_allclose(tokens.density, active.mean(0))
    # in little memory what tells a feature is found all the same, and counted to the last token
    pd.testing.assert_frame_equal(counted(120)[0].result().head(3), best.head(3))


def test_identity_statistics_by_hand():
    # means by token: 5 → (2, 0, 0), 7 → (0, 2, 0), 9 → (0, 6, 0)
    # over all: 2·5, 3·7, 1·9 → (4, 12, 0), the true sums; over tokens {0, 1}: (2, 2, 0), where the true
    # sums are (1, 2, 0)
    sets = TokenSets.of({ALL: np.ones(6, bool), "two": np.array([1, 1, 0, 0, 0, 0], bool)})
    classes, ids = passes.token_classes(CORPUS)
    ours = read(passes.IdentitySums(classes, len(ids), sets), FEATURES, 3).result()
    np.testing.assert_allclose(ours.sums, [[4, 12, 0], [2, 2, 0]])
    assert ours.counts.tolist() == [6, 2]
    true = passes.accumulate(reversed_batches(FEATURES, 3), Positive(3), sets)
    assert true.sums.tolist() == [[4, 12, 0], [1, 2, 0]]
