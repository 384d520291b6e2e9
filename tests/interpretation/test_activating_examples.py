"""The strongest examples and the counts of every feature, by hand and against a plain sort."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import make_corpus, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.interpretation.activating_examples import (
    EDGES,
    ActivatingExamples,
    feature_examples,
    read_examples,
    token_pieces,
)
from reasoning_features.text.corpus import Corpus


def corpus_of(*lengths: int, moves: list[int] | None = None) -> Corpus:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(starts[-1])
    return Corpus(
        name="by hand",
        tokens=np.arange(n, dtype=np.int32),
        starts=starts,
        special=np.zeros(n, bool),
        thinking=np.ones(n, bool),
        domains=[""] * len(lengths),
        moves=None if moves is None else np.array(moves, np.int8),
        move_names=() if moves is None else ("explore", "verify"),
    )


def gathered(corpus: Corpus, features: torch.Tensor, examples: int, *splits: int, order=None):
    found = ActivatingExamples(corpus, examples)
    where = torch.arange(len(features)) if order is None else torch.tensor(order)
    for part in torch.tensor_split(where, splits):
        found.update(features[part], part)
    return found.result()


def test_by_hand():
    # documents 0: tokens 0 1 2, 1: tokens 3 4, 2: token 5.
    # feature 0: 1 3 3 | 2 0 | 3: strongest of each: token 1 (the earlier 3), 3, 5; equal 3s by position
    # feature 1: 0 0 0 | 0 .5 | 0: one example
    # feature 2: never
    columns = [[1.0, 3, 3, 2, 0, 3], [0, 0, 0, 0, 0.5, 0], [0.0] * 6]
    corpus = corpus_of(3, 2, 1, moves=[0, 0, 1, 1, 1, 0])
    found = gathered(corpus, torch.tensor(columns).T, 2)
    assert found.tokens == 6 and found.active.tolist() == [5, 1, 0] and found.maximum.tolist() == [3, 0.5, 0]
    assert found.positions.tolist() == [[1, 5], [4, -1], [-1, -1]]
    assert found.activations.tolist() == [[3, 3], [0.5, 0], [0, 0]]
    assert found.density.tolist() == [5 / 6, 1 / 6, 0]
    # explore: tokens 0 1 5; verify: 2 3 4
    assert found.density_by_step(0) == {"explore": 1, "verify": pytest.approx(2 / 3)}
    assert found.density_by_step(1) == {"explore": 0, "verify": pytest.approx(1 / 3)}
    # 1, 2 and 3 lie in the bins that begin at 1, 2 and 2^1.5 = 2.83
    used = np.flatnonzero(found.histogram[0])
    assert EDGES[used] == pytest.approx([1, 2, 2**1.5]) and found.histogram[0, used].tolist() == [1, 1, 3]
    assert found.histogram.sum(1).tolist() == [5, 1, 0]


def test_without_moves_nothing_is_said_of_them():
    assert gathered(corpus_of(2), torch.ones(2, 1), 1).density_by_step(0) == {}


@pytest.mark.parametrize("seed", range(4))
def test_batches_in_any_order_and_cut_anywhere_give_the_same(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=15)
    corpus = corpus_of(*lengths)
    n = corpus.n_tokens
    values = np.maximum(rng.normal(-0.3, 1, size=(n, 6)), 0).round(1).astype(np.float32)  # many ties
    whole = gathered(corpus, torch.from_numpy(values), 4)
    cuts = sorted(rng.choice(n, 5, replace=False).tolist())
    parts = gathered(corpus, torch.from_numpy(values), 4, *cuts, order=rng.permutation(n).tolist())
    for name in ("active", "maximum", "histogram", "positions", "activations"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name), err_msg=name)
    # against sorting everything
    for feature in range(6):
        tokens = sorted(
            (t for t in range(n) if values[t, feature] > 0), key=lambda t: (-values[t, feature], t)
        )
        best: dict[int, int] = {}
        for token in tokens:
            best.setdefault(int(corpus.document_of[token]), token)
        expected = [*best.values(), -1, -1, -1, -1][:4]
        assert whole.positions[feature].tolist() == expected


def test_last_bits_do_not_order_examples():
    # the later document's 1.0000001 is rounding, not strength; its 1.001 is strength
    corpus = corpus_of(1, 1)
    assert gathered(corpus, torch.tensor([[1.0], [1.0000001]]), 2).positions.tolist() == [[0, 1]]
    assert gathered(corpus, torch.tensor([[1.0], [1.001]]), 2).positions.tolist() == [[1, 0]]


def test_nothing_came():
    with pytest.raises(UserError, match="corpus is empty"):
        ActivatingExamples(corpus_of(1), 2).result()


def test_examples_show_the_activations_of_their_tokens(tiny_subject, tiny_corpus):
    sae = signed_identity(tiny_subject.d_model)
    activity, longer = feature_examples(tiny_subject, sae, tiny_corpus, [5, 40], 3, 64)
    shown = read_examples(tiny_subject, sae, tiny_corpus, activity, [5, 40], 200, around=4)
    assert all(one.text in other.text for one, other in zip(shown[5], longer[5], strict=True))
    assert list(shown) == [5, 40]
    for feature, examples in shown.items():
        assert len(examples) == 3 and len({example.document for example in examples}) == 3
        for example, position in zip(examples, activity.positions[feature], strict=True):
            begin = tiny_corpus.starts[example.document]
            first = int(position) - example.peak
            ids = tiny_corpus.tokens[first : first + len(example.pieces)]
            assert example.feature == feature and first >= begin and example.peak <= 4
            assert example.text == tiny_subject.tokenizer.decode(ids.tolist())
            # the same activations as the document alone gives, and none at the special first token
            alone = torch.from_numpy(tiny_corpus.document(example.document).astype(np.int64))[None]
            values = sae.encode(tiny_subject.residual(alone))[0, :, feature].numpy()
            values[0] = 0
            np.testing.assert_allclose(
                example.activations, values[first - begin : first - begin + len(ids)], rtol=1e-4, atol=1e-4
            )
            assert example.activations[example.peak] == pytest.approx(values.max(), rel=1e-3)


def test_a_feature_that_is_never_active_has_no_examples(tiny_subject):
    corpus = make_corpus(3)
    activity = gathered(corpus, torch.zeros(corpus.n_tokens, 4), 2)
    sae = signed_identity(tiny_subject.d_model)
    assert read_examples(tiny_subject, sae, corpus, activity, [1], 100) == {1: []}


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class Spaces:
    """A tokenizer that drops the space before the first word, as SentencePiece does."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"w{i}" for i in ids)


def test_pieces_join_to_the_text():
    assert token_pieces(Bytes(), list("añb".encode())) == ["a", "", "ñ", "b"]
    assert token_pieces(Spaces(), [1, 2, 3]) == ["w1", " w2", " w3"]
    # cut within a character: what is left of it is shown once
    assert "".join(token_pieces(Bytes(), list("añ".encode())[:2])) == "a\N{REPLACEMENT CHARACTER}"


def test_memory_does_not_grow_with_tokens():
    corpus = corpus_of(*[10] * 50)
    found = ActivatingExamples(replace(corpus), 3)
    sizes = set()
    for i in range(50):
        batch = SimpleNamespace(features=torch.rand(10, 4), positions=torch.arange(10 * i, 10 * i + 10))
        found.update(batch.features, batch.positions)
        sizes.add(sum(values.numel() for values in found._sums.values()))
    assert len(sizes) == 1
