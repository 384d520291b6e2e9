"""The feature table: vocabularies drawn, sets by hand, one pass and its columns against direct sums."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny import Pieces, corpus_of, signed_identity, small_corpus

from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.scoring.feature_statistics import accumulate
from reasoning_features.scoring.reason_score import vocabulary_scores
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.vocabulary import Lexicon
from reasoning_features.text.words import ALL, WordIndex, token_sets, vocabulary_set, word_set
from reasoning_features.truth import feature_table as room

WINDOW = (2, 1)
VOCABULARIES = {"R": ("wait", "let me"), "random 0": ("a", "let me"), "slot 0": ("wait", "a")}


def measure(subject: Subject, labels: dict, blocks: int | None, kept: Path | None, text: Corpus):
    settings = SimpleNamespace(corpus="", subject="", batch_tokens=64, window=WINDOW, windows=[], alpha=0.7)
    sae, subject = signed_identity(subject.d_model), replace(subject, tokenizer=Pieces())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, "reasoning_corpus", lambda *_: text)
        patched.setattr(room, "lexicon", lambda _: Lexicon())
        patched.setattr(room, "label_sets", lambda *_: labels)
        return room.measure_features(settings, subject, sae, VOCABULARIES, blocks, kept)


def table(subject: Subject, labels: dict, blocks: int | None = None, kept: Path | None = None):
    return measure(subject, labels, blocks, kept, small_corpus())[1]


def at(*positions: int) -> np.ndarray:
    return np.isin(np.arange(small_corpus().n_tokens), positions)


LABELS = {"at persistence:positive": at(4, 30), "at persistence:negative": at(13)}


@pytest.fixture(scope="module")
def gathered(tiny_subject):
    return table(tiny_subject, LABELS)


def test_the_table_is_the_same_by_blocks_and_by_shards_that_are_kept(tiny_subject, gathered, tmp_path):
    for _ in range(2):
        found = table(tiny_subject, LABELS, None, tmp_path)
        pd.testing.assert_frame_equal(found, gathered)
    # and as it is stored
    room.save_features(tmp_path, found, VOCABULARIES)
    again, words = room.load_features(tmp_path)
    assert again.equals(gathered) and words == VOCABULARIES
    assert len(list(tmp_path.glob("features-*/*.safetensors"))) == 1
    pd.testing.assert_frame_equal(table(tiny_subject, LABELS, 5), gathered)
    # labels are optional
    plain = table(tiny_subject, {})
    assert set(gathered) - set(plain) == set(LABELS)
    pd.testing.assert_frame_equal(plain, gathered[list(plain)])
    assert plain["score:masked"].notna().all()


def test_identity_is_learnt_on_even_blocks_alone(tiny_subject):
    learnt = measure(tiny_subject, {}, 2, None, small_corpus())[0].learnt
    alone = measure(tiny_subject, {}, None, None, small_corpus().select(np.arange(0, 12, 2)))[0].identity
    for kind, found in alone.items():
        np.testing.assert_allclose(learnt[kind].sums, found.sums, rtol=1e-5, atol=1e-6)
        assert learnt[kind].counts.tolist() == found.counts.tolist()


def test_before_only_and_masked_by_hand():
    corpus = corpus_of(["<s>", "a", " wait", " b", "."], [" a", " let", " me", " b"])
    sets = room.needed_sets(corpus, Pieces(), {"R": ("wait", "let me")}, WINDOW, [], Lexicon())

    def where(name: str) -> list[int]:
        return np.flatnonzero(sets.mask(name)).tolist()

    assert where(f"before|{word_set('wait', (2, 0))}") == [1]
    assert where(f"before|{word_set('let me', (2, 0))}") == [5]
    assert where(f"before|{vocabulary_set('R', (2, 0))}") == [1, 5]
    # the window is 2 before and 1 after; the words' own tokens 2, 6 and 7 are in no set at all
    assert where(f"masked|{word_set('wait', WINDOW)}") == [1, 3]
    assert where(f"masked|{word_set('let me', WINDOW)}") == [5, 8]
    assert where("masked|all") == [1, 3, 4, 5, 8]


def test_scores_equal_those_of_direct_sums(tiny_subject, gathered):
    corpus, sae = small_corpus(), signed_identity(tiny_subject.d_model)
    sets = token_sets(WordIndex(corpus, Pieces()), VOCABULARIES, [WINDOW])
    statistics = accumulate(stream(tiny_subject, corpus, 64), sae, sets)
    for name, words in VOCABULARIES.items():
        direct = vocabulary_scores(statistics, name, words, WINDOW, 0.7)
        column = "score:reason score" if name == "R" else f"score:{name}"
        np.testing.assert_allclose(gathered[column], direct, rtol=1e-5, atol=1e-7)
    batch = collect(stream(tiny_subject, corpus, 64))
    features = sae.encode(batch.residual).double().numpy()
    direct = {"mean": features.mean(0), "maximum": features.max(0), "density": (features > 0).mean(0)}
    for column, values in direct.items():
        np.testing.assert_allclose(gathered[column], values, rtol=1e-4, atol=1e-5)
    rows = {int(position): row for row, position in enumerate(batch.positions)}
    positive = features[[rows[4], rows[30]]].mean(0)
    np.testing.assert_allclose(gathered["at persistence:positive"], positive, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gathered["at persistence:negative"], features[rows[13]], rtol=1e-4, atol=1e-6)


NEAR = (0, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_vocabularies_of_a_corpus(monkeypatch, seed):
    corpus = corpus_of(*[[" wait", " a", " But", " b", ".", "let", " me"]] * 25, thinking=range(175))
    for name in ("reasoning_corpus", "general_corpus"):
        monkeypatch.setattr(room, name, lambda *_: corpus)
    subject, numbers = SimpleNamespace(tokenizer=Pieces()), {"seed": seed, "corpus": "", "subject": ""}

    def drawn(known, words, candidates, random, slot):
        monkeypatch.setattr(room, "lexicon", lambda _: known)
        settings = SimpleNamespace(words=words, random_vocabularies=random, slot_vocabularies=slot, **numbers)
        return room.draw_words(settings, subject, pd.DataFrame({"word": candidates}))[0]

    known = Lexicon({"wait": "a", "a": "wait"}, ("b",))
    words = ["wait", "a", "b", "let me", "me"]
    first, found = (drawn(known, ["wait"], words, 6, 1) for _ in range(2))
    assert first == found
    # R's own word and the decision word are never drawn; the only mixture other than R is its twin
    random = [own for name, own in found.items() if name.startswith("random")]
    assert {word for own in random for word in own} <= {"a", "let me", "me"}
    assert found["R"] == ("wait",) and found["twins"] == found["slot 0"] == ("a",)
    sets = room.needed_sets(corpus, Pieces(), found, NEAR, [(1, 1)], known)
    assert {ALL, vocabulary_set("R", (1, 1)), vocabulary_set("slot 0", NEAR)} <= set(sets.names)
    assert vocabulary_set("slot 0", (1, 1)) not in sets.names
    # no slots where a twin is not known
    found = drawn(Lexicon({"wait": "a"}), ["wait", "let me"], ["a", "b"], 2, 2)
    assert set(found) == {"R", "random 0", "random 1"}
