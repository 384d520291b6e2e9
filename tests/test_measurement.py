"""One arm measured: vocabularies drawn from a corpus, and one pass against direct sums."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_word_masks import Pieces, corpus_of

from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import stream
from reasoning_features.scoring.measurement import draw_vocabularies, measure, needed_sets
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.vocabulary import Lexicon
from reasoning_features.text.word_masks import ALL, TokenSets, vocabulary_set, word_set

WINDOW = (0, 1)


class FirstEight:
    """An autoencoder whose features are the first eight dimensions, where positive."""

    def __init__(self, d_in: int) -> None:
        self.cfg, self.device = SimpleNamespace(d_in=d_in, d_sae=8), torch.device("cpu")

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x[:, :8])


def random_sets(corpus: Corpus) -> TokenSets:
    rng = np.random.default_rng(0)
    ordinary = ~corpus.special
    a, b = (ordinary & (rng.random(corpus.n_tokens) < 0.3) for _ in range(2))
    by_word = {word_set("a", WINDOW): a, word_set("b", WINDOW): b}
    return TokenSets.of({ALL: ordinary} | by_word | {vocabulary_set("R", WINDOW): a | b})


def test_one_pass_equals_direct_sums(tiny_subject: Subject, tiny_corpus: Corpus):
    sets, sae = random_sets(tiny_corpus), FirstEight(tiny_subject.d_model)
    found = measure(tiny_subject, sae, tiny_corpus, sets, ["a", "b"], WINDOW, blocks=4, batch_tokens=64)
    features = np.zeros((tiny_corpus.n_tokens, 8))
    for batch in stream(tiny_subject, tiny_corpus, 64):
        features[batch.positions.numpy()] = sae.encode(batch.residual).numpy()
    total = found.statistics.total()
    np.testing.assert_allclose(total.sums, sets.masks.astype(float) @ features, rtol=1e-6)
    np.testing.assert_array_equal(total.counts, sets.masks.sum(axis=1))
    assert found.statistics.sums.shape == (4, 4, 8)
    ordinary = sets.masks[0]
    np.testing.assert_allclose(found.density, (features[ordinary] > 0).mean(axis=0))
    # over all tokens identity changes no sum: the means of each token are weighted by its count
    for statistics in found.identity.values():
        np.testing.assert_allclose(statistics.sums[0], total.sums[0], rtol=1e-6)
    assert len(found.best) == 8 and found.best["token"].str.len().min() > 0


def repeated(thinking: bool) -> Corpus:
    document = [" wait", " a", "But", " b", ".", "let", " me"]
    corpus = corpus_of(*[document] * 25)
    corpus.thinking[:] = thinking
    return corpus


def test_vocabularies_of_a_corpus():
    corpus = repeated(True)
    known = Lexicon({"wait": "a", "a": "wait"}, ("b",))
    drawn = draw_vocabularies(
        corpus,
        corpus,
        Pieces(),
        ["wait"],
        ["wait", "a", "b", "let me", "me"],
        known,
        n_random=6,
        n_slot=1,
        seed=0,
    )
    # R's own word and the decision word are never drawn; the only mixture other than R is its twin
    assert {w for name, v in drawn.words.items() if name.startswith("random") for w in v} <= {
        "a",
        "let me",
        "me",
    }
    assert drawn.words["R"] == ("wait",) and drawn.words["twins"] == drawn.words["slot 0"] == ("a",)
    assert drawn.matching.pool == 2 + len({"me"} & set(drawn.pool["word"]))
    sets = needed_sets(corpus, Pieces(), drawn.words, WINDOW, [(1, 1)], known)
    assert {ALL, vocabulary_set("R", (1, 1)), vocabulary_set("slot 0", WINDOW)} <= set(sets.names)
    assert vocabulary_set("slot 0", (1, 1)) not in sets.names


def test_no_slots_where_a_twin_is_not_known():
    corpus = repeated(False)
    drawn = draw_vocabularies(
        corpus, corpus, Pieces(), ["wait", "let me"], ["a", "b"], Lexicon({"wait": "a"}), 2, 2, seed=0
    )
    assert set(drawn.words) == {"R", "random 0", "random 1"}


@pytest.mark.parametrize("seed", [0, 1])
def test_drawing_repeats(seed: int):
    corpus = repeated(True)
    given = corpus, corpus, Pieces(), ["wait"], ["a", "b", "let me"], Lexicon(), 3, 0, seed
    assert draw_vocabularies(*given).words == draw_vocabularies(*given).words
