"""Features: the strongest examples, by hand and against a plain sort; modes, logits, what is gathered."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import corpus_of, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.interpretation import features as room
from reasoning_features.interpretation.features import Example
from reasoning_features.text.corpus import Corpus


def documents_of(*lengths: int) -> Corpus:
    return corpus_of(*[["a"] * length for length in lengths])


def gathered(corpus: Corpus, features: torch.Tensor, examples: int, *splits: int, order=None):
    found = room.ActivatingExamples(corpus, examples)
    where = torch.arange(len(features)) if order is None else torch.tensor(order)
    for part in torch.tensor_split(where, splits):
        found.update(features[part], part)
    return found.result()


def test_activity_by_hand():
    # documents 0: tokens 0 1 2, 1: tokens 3 4, 2: token 5.
    # feature 0: 1 3 3 | 2 0 | 3: strongest of each: token 1 (the earlier 3), 3, 5; equal 3s by position
    # feature 1: 0 0 0 | 0 .5 | 0: one example
    # feature 2: never
    columns = [[1.0, 3, 3, 2, 0, 3], [0, 0, 0, 0, 0.5, 0], [0.0] * 6]
    corpus = documents_of(3, 2, 1)
    found = gathered(corpus, torch.tensor(columns).T, 2)
    assert found.maximum.tolist() == [3, 0.5, 0]
    assert found.positions.tolist() == [[1, 5], [4, -1], [-1, -1]]
    assert found.density.tolist() == [5 / 6, 1 / 6, 0]
    # 1, 2 and 3 lie in the bins that begin at 1, 2 and 2^1.5 = 2.83
    used = np.flatnonzero(found.histogram[0])
    assert room.EDGES[used] == pytest.approx([1, 2, 2**1.5])
    assert found.histogram[0, used].tolist() == [1, 1, 3]
    assert found.histogram.sum(1).tolist() == [5, 1, 0]
    with pytest.raises(UserError, match="corpus is empty"):
        room.ActivatingExamples(documents_of(1), 2).result()
    # the later document's 1.0000001 is rounding, not strength; its 1.001 is strength
    corpus = documents_of(1, 1)
    assert gathered(corpus, torch.tensor([[1.0], [1.0000001]]), 2).positions.tolist() == [[0, 1]]
    assert gathered(corpus, torch.tensor([[1.0], [1.001]]), 2).positions.tolist() == [[1, 0]]


@pytest.mark.parametrize("seed", range(2))
def test_batches_in_any_order_and_cut_anywhere_give_the_same(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=15)
    corpus = documents_of(*lengths)
    n = corpus.n_tokens
    values = np.maximum(rng.normal(-0.3, 1, size=(n, 6)), 0).round(1).astype(np.float32)  # many ties
    whole = gathered(corpus, torch.from_numpy(values), 4)
    cuts = sorted(rng.choice(n, 5, replace=False).tolist())
    parts = gathered(corpus, torch.from_numpy(values), 4, *cuts, order=rng.permutation(n).tolist())
    for name in ("density", "maximum", "histogram", "positions"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name), err_msg=name)
    # against sorting everything
    for feature, column in enumerate(values.T):
        best: dict[int, int] = {}
        for token in sorted(np.flatnonzero(column), key=lambda t: (-column[t], t)):
            best.setdefault(corpus.document_of[token], token)
        assert whole.positions[feature].tolist() == [*best.values(), -1, -1, -1, -1][:4]


def test_examples_show_the_activations_of_their_tokens(tiny_subject, tiny_corpus):
    sae = signed_identity(tiny_subject.d_model)
    activity, shown = room.feature_examples(tiny_subject, sae, tiny_corpus, [5, 40], 3, 64)
    assert list(shown) == [5, 40]
    for feature, examples in shown.items():
        assert len({example.document for example in examples}) == 3
        for example, position in zip(examples, activity.positions[feature].tolist(), strict=True):
            begin, first = tiny_corpus.starts[example.document], position - example.peak
            ids = tiny_corpus.tokens[first : first + len(example.pieces)]
            assert first > begin and example.peak <= room.AROUND
            assert "".join(example.pieces) == tiny_subject.tokenizer.decode(ids.tolist())
            # the same activations as the document alone gives, and none at the special first token
            alone = torch.from_numpy(tiny_corpus.document(example.document).astype(np.int64))[None]
            values = sae.encode(tiny_subject.residual(alone))[0, :, feature].numpy()
            own = values[first - begin : first - begin + len(ids)]
            np.testing.assert_allclose(example.activations, own, rtol=1e-4, atol=1e-4)
            assert example.activations[example.peak] == pytest.approx(values[1:].max(), rel=1e-3)
    silent = gathered(tiny_corpus, torch.zeros(tiny_corpus.n_tokens, 4), 2)
    assert room.read_examples(tiny_subject, sae, tiny_corpus, silent, [1], 100) == {1: []}


# tokens are the bytes of UTF-8; the space before the first word is dropped, as SentencePiece does
BYTES = SimpleNamespace(decode=lambda ids: bytes(ids).decode("utf-8", errors="replace"))
SPACES = SimpleNamespace(decode=lambda ids: " ".join(f"w{i}" for i in ids))


def test_pieces_join_to_the_text():
    assert room.token_pieces(BYTES, list("añb".encode())) == ["a", "", "ñ", "b"]
    assert room.token_pieces(SPACES, [1, 2, 3]) == ["w1", " w2", " w3"]
    # cut within a character: what is left of it is shown once
    assert "".join(room.token_pieces(BYTES, list("añ".encode())[:2])) == "a\N{REPLACEMENT CHARACTER}"


MOVES = ("explore", "compute", "verify", "backtrack", "uncertain")


def means(*rows: tuple[float, ...], place: str = "mean") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[f"{place}:{move}" for move in MOVES])


@pytest.mark.parametrize(
    ("row", "mode"),
    [((0, 0, 0, 0, 2), "uncertainty"), ((3, 3.9, 1, 1, 1), "exploration"),  # 3 / 9.9 = 0.303
     ((3, 5, 1, 1, 1), "other"),  # 3 / 11 = 0.27
     ((0, 7, 3, 0, 0), "reflection"),  # exactly the threshold
     ((1, 0, 0, 1, 0), "mixed"), ((0, 5, 2, 2, 0), "other"),  # two moves of one mode do not add
     ((0, 0, 0, 0, 0), "other"), ((1, 1, np.nan, np.nan, np.nan), "exploration")],  # a half of what occurs
)  # fmt: skip
def test_the_rule_by_hand(row, mode):
    assert room.modes(means(row)) == [mode]


def test_a_feature_may_announce_a_move_or_stand_on_it():
    flat = means((1, 1, 1, 1, 1))
    before = means((0, 1, 0, 0, 3), place="before")
    # 0.2 on each move, 3/4 before doubt: the larger counts
    assert room.modes(flat) == ["other"] and room.modes(pd.concat([flat, before], axis=1)) == ["uncertainty"]
    assert room.modes(pd.DataFrame({"feature": [0, 1]})) is None  # steps are not labelled


R = ("hmm", "maybe", "alternatively", "another", "wait", "but", "therefore")


@pytest.mark.parametrize(
    ("row", "mode"),
    [((2, 1, 1, 0, 1, 0, 0), "uncertainty"),  # (2 + 1) / 5
     ((1, 1, 2, 0, 0, 0, 0), "mixed"),  # two modes with half each
     ((1, 0, 1, 0, 0, 0, 2), "mixed"),  # words of no mode have half, and not more
     ((0, 0, 0, 0, 0, 1, 2), "other"), ((0, 0, 0, 0, 0, 0, 0), "other")],  # active around no word
)  # fmt: skip
def test_the_rule_of_words_by_hand(row, mode):
    table = pd.DataFrame([row], columns=[f"word:{word}" for word in R], dtype=np.float32)
    assert room.modes_by_words(table.assign(feature=0, mean=9.0)) == [mode]


def test_what_is_gathered():
    features = torch.zeros(60, 3)
    features[:9, 2], features[9:12, 2] = 1.0, 1.5
    activity = gathered(documents_of(60), features, 1)
    table = pd.DataFrame({"feature": [2, 0], "score": [0.5, 0.1], "rank": [1, 7], "mode": ["mixed", None]})
    table["effect:persistence"] = [0.25, np.nan]
    logits = pd.DataFrame({"feature": 2, "side": ["positive", "positive", "negative"], "rank": [2, 1, 1]})
    logits = logits.assign(text=[" b", " a", "c"], value=[1.0, 2.0, -1.0])
    example = Example(2, 0, ("a",), np.ones(1, np.float32), 0)
    first, second = room.feature_interfaces(table, activity, logits, {2: [example]})
    assert (first.feature, first.score, first.rank, first.mode) == (2, 0.5, 1, "mixed")
    assert first.density == 0.2
    # from the first to the last bin that holds anything
    assert first.histogram.tolist() == [9, 0, 3]
    assert first.edges.tolist() == pytest.approx([1, 2**0.25, 2**0.5, 2**0.75])
    assert first.positive == [(" a", 2), (" b", 1)] and first.negative == [("c", -1)]
    assert first.examples == [example] and first.effects == {"persistence": 0.25}
    assert first.description is None
    # a feature that is never active, of which nothing else is known
    assert second.mode is None and second.effects == {} and second.examples == [] and second.positive == []
    assert len(second.histogram) == 0 and second.density == 0


def stub(unembedding, scale, bias=None):
    """A subject of which only the norm and the unembedding are there; token i is written as its number."""
    base = SimpleNamespace(norm=SimpleNamespace(weight=torch.tensor(scale), bias=bias))
    head = SimpleNamespace(weight=torch.tensor(unembedding))
    model = SimpleNamespace(base_model=base, get_output_embeddings=lambda: head)
    tokenizer = SimpleNamespace(decode=lambda ids: f"t{ids[0]}")
    return SimpleNamespace(model=model, tokenizer=tokenizer, name="stub")


def test_logits_by_hand():
    # γ = (1, 2); the direction (3, 1) becomes (3, 2); rows (1, 0), (0, 1), (−1, −1) give 3, 2, −5
    subject = stub([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], [1.0, 2.0])
    assert room.logit_effects(subject, torch.tensor([[3.0, 1.0]])).tolist() == [[3, 2, -5]]
    sae = SimpleNamespace(W_dec=torch.tensor([[0.0, 0.0], [3.0, 1.0]]))
    table = room.top_logits(subject, sae, [1], n=2)
    assert table["text"].tolist() == ["t0", "t1", "t2", "t1"]
    assert table["value"].tolist() == [3, 2, -5, 2]
    assert table["side"].tolist() == ["positive"] * 2 + ["negative"] * 2 and set(table["feature"]) == {1}
    # equal values keep the order of ids
    assert room.top_logits(subject, sae, [0], n=2)["token"].tolist() == [0, 1, 0, 1]
    # a norm that centres
    with pytest.raises(UserError, match="does not end in an RMSNorm"):
        room.logit_effects(stub([[1.0]], [1.0], bias=torch.zeros(1)), torch.ones(1, 1))


def test_a_stretch_of_text_is_shown_once():
    def of(*documents: int) -> list[Example]:
        return [Example(0, document, ("a",), np.ones(1, np.float32), 0) for document in documents]

    kept = room.shown_once({3: of(5, 6, 7), 4: of(6, 8, 9), 2: of(5)}, 2)
    assert [[example.document for example in own] for own in kept.values()] == [[5, 6], [8, 9], []]
